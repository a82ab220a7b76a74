"""Run callbacks so that none of them can stop another."""

from __future__ import annotations

import logging
from asyncio import CancelledError
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from time import perf_counter
from types import CoroutineType
from typing import Any, Literal

from callbackkit.dispatch.callables import (
    callable_name,
    check_callable,
    give,
    is_async_callable,
    is_awaitable,
)
from callbackkit.dispatch.concurrency import on_asyncio, run_together
from callbackkit.dispatch.deadline import Watch, check_timeout, within
from callbackkit.dispatch.event_types import EventName
from callbackkit.dispatch.failures import (
    Failures,
    dispose_unstarted,
    log,
    refusal,
    refuse_awaitable,
)
from callbackkit.dispatch.nesting import is_loop, is_root, nesting
from callbackkit.dispatch.outcome import SKIPPED, DispatchResult, ErrorContext, Outcome, make_result
from callbackkit.dispatch.registration import Bound, Entry
from callbackkit.dispatch.threads import WorkerThreads
from callbackkit.errors import DispatchDepthError

__all__ = ["Dispatcher", "Mode", "safe_callback_execution", "safe_callback_execution_sync"]

logger: logging.Logger = logging.getLogger("callbackkit.dispatch")

Mode = Literal["sequential", "concurrent"]

# Without the types it is generic in, which type checkers would miss where it is compared with.
_COROUTINE: type[Any] = CoroutineType


class Dispatcher:
    """Runs callables one after another, or at once, and tells what each of them did.

    An ``Exception`` of one becomes its outcome and is logged; the others run. A cancellation
    that nobody sent to the running task is an outcome too. ``KeyboardInterrupt``,
    ``SystemExit`` and a cancellation of the dispatch itself pass through at once.

    Args:
        mode: ``"sequential"``: each callback is awaited before the next is called, in the
            caller's task. ``"concurrent"``: they are called in order, and what they return is
            awaited at the same time, in tasks of their own; all are waited for.
        timeout: Seconds each callback may take to finish once it suspends.
        timing: Fill in ``duration`` of outcomes.
        slow_threshold: Seconds a synchronous callback may hold up its caller before a warning
            is logged.
        on_error: Called with ``(exception, context)`` for each failure, sync or async; what it
            raises is logged and goes no further.
        depth_limit: How deep dispatches may stand inside each other.

    Raises:
        ValueError: An option is out of range.
    """

    def __init__(
        self,
        *,
        mode: Mode = "sequential",
        timeout: float | None = None,
        timing: bool = False,
        slow_threshold: float | None = None,
        on_error: Callable[..., Any] | None = None,
        depth_limit: int = 100,
    ) -> None:
        if mode not in ("sequential", "concurrent"):
            raise ValueError(f"mode must be 'sequential' or 'concurrent', not {mode!r}")
        check_timeout(timeout)
        check_timeout(slow_threshold, "slow_threshold")
        if isinstance(depth_limit, bool) or not isinstance(depth_limit, int) or depth_limit < 1:
            raise ValueError(f"depth_limit must be an int of at least 1, not {depth_limit!r}")
        self.threads: WorkerThreads = WorkerThreads()
        self.failures: Failures = Failures()
        self.timeout = timeout
        self.depth_limit = depth_limit
        # One element per dispatch under way; appending and popping are atomic.
        self.running: list[None] = []
        self._is_concurrent = mode == "concurrent"
        self._is_timed = timing or slow_threshold is not None
        self._timing = timing
        self._slow_threshold = slow_threshold
        if on_error is not None:
            self.failures.add_callback(on_error)

    @property
    def is_plain(self) -> bool:
        """Nothing but the callbacks themselves is wanted: no tasks, no times."""
        return not (self._is_concurrent or self._is_timed)

    async def dispatch(self, callbacks: Iterable[Callable[..., Any]], *args: Any) -> DispatchResult:
        """Call each of *callbacks* with *args*, or the first few of them, and await them.

        Raises:
            TypeError: One of them is not callable; none has been called then.
        """
        return await self.run([self._bind(callback, args) for callback in callbacks], None)

    def dispatch_sync(self, callbacks: Iterable[Callable[..., Any]], *args: Any) -> DispatchResult:
        """Call each of *callbacks* with *args*, or the first few of them.

        Raises:
            AsyncCallbackError: One of them is known to be async; none has been called then.
            TypeError: One of them is not callable; likewise.
        """
        entries = [self._bind(callback, args) for callback in callbacks]
        for entry in entries:
            if is_async_callable(entry.callback):
                raise refusal(entry.callback)
        return self.run_sync(entries, None)

    def _bind(self, callback: Callable[..., Any], args: tuple[Any, ...]) -> Bound:
        check_callable(callback)
        given = give(callback, len(args))

        def call(_data: object) -> Any:
            return given(*args)

        return Bound(call, None, callback, self.timeout)

    # What a registry uses too, for all that is not plain.

    @is_loop
    def run_sync(
        self, entries: Sequence[Entry], data: Any, event: EventName | None = None
    ) -> DispatchResult:
        """Call entries one after another with *data*; awaitables that come back are refused."""
        values: list[Any] = []
        durations: list[float] = []
        self.running.append(None)
        try:
            if len(self.running) > self.depth_limit:
                self.check_depth()
            values = [self._one_sync(entry, data, event, durations) for entry in entries]
        finally:
            self.running.pop()
        done, values = [values], []
        return self._result(entries, done, durations)

    @is_loop
    async def run(
        self, entries: Sequence[Entry], data: Any, event: EventName | None = None
    ) -> DispatchResult:
        """Call entries with *data* and await what they return."""
        values: list[Any] = []
        durations: list[float] = []
        self.running.append(None)
        try:
            if len(self.running) > self.depth_limit:
                self.check_depth()
            if self._is_concurrent and len(entries) > 1:
                await self._all_at_once(entries, data, event, values, durations)
            elif self._is_timed or not on_asyncio():
                values = [await self._one(entry, data, event, durations) for entry in entries]
            else:
                watch = Watch()
                await watch.over(self._watched(entries, data, event, values, watch))
        finally:
            self.running.pop()
        done, values = [values], []
        return self._result(entries, done, durations)

    def resume_sync(
        self,
        entries: Sequence[Entry],
        done: list[list[Any]],
        failed: list[BaseException],
        event: EventName | None,
        data: Any,
    ) -> DispatchResult:
        """Go on with a run at the first entry that failed.

        Args:
            done: Holds the values before it, and *failed* what it raised; both are taken out.
        """
        values = done.pop()
        self.running.append(None)
        try:
            values.append(self.failures.fail_sync(entries[len(values)], failed.pop(), event, data))
            for entry in entries[len(values) :]:
                try:
                    value = entry.call(data)
                    if value is not None:
                        refuse_awaitable(entry.callback, value)
                except (Exception, CancelledError) as exc:
                    value = self.failures.fail_sync(entry, exc, event, data)
                values.append(value)
        finally:
            self.running.pop()
        done, values, value = [values], [], None
        return make_result(entries, done.pop())

    async def resume(
        self,
        entries: Sequence[Entry],
        done: list[list[Any]],
        failed: list[BaseException],
        event: EventName | None,
        data: Any,
    ) -> DispatchResult:
        """Like :meth:`resume_sync`, awaiting what comes back."""
        values = done.pop()
        self.running.append(None)
        try:
            entry = entries[len(values)]
            values.append(await self.failures.fail(entry, failed.pop(), event, data))
            for entry in entries[len(values) :]:
                values.append(await self._one(entry, data, event, []))
        finally:
            self.running.pop()
        done, values = [values], []
        return make_result(entries, done.pop())

    def check_depth(self) -> None:
        """Raise if dispatches really stand inside each other; many may just run at once."""
        depth = nesting()
        if depth > self.depth_limit:
            raise DispatchDepthError(
                f"{depth} dispatches stand inside each other (depth_limit={self.depth_limit}): "
                "a callback triggers the event that calls it, directly or through others"
            )

    def _result(
        self, entries: Sequence[Entry], done: list[list[Any]], durations: Sequence[float]
    ) -> DispatchResult:
        """Return the result; *done* holds the values, which no frame of a run may hold.

        The traceback of a callback's exception holds those frames, and the values the exception:
        only a garbage collection would free them.
        """
        return make_result(entries, done.pop(), durations if self._timing else None)

    # One after another.

    def _one_sync(
        self, entry: Entry, data: Any, event: EventName | None, durations: list[float]
    ) -> Any:
        start = perf_counter()
        try:
            try:
                value = entry.call(data)
                if value is not None:
                    refuse_awaitable(entry.callback, value)
            finally:
                durations.append(perf_counter() - start)
                self._check_slow(entry, durations[-1])
        except (Exception, CancelledError) as exc:
            return self.failures.fail_sync(entry, exc, event, data)
        return value

    async def _one(
        self, entry: Entry, data: Any, event: EventName | None, durations: list[float]
    ) -> Any:
        start = perf_counter()
        try:
            try:
                value = self._call(entry, data, start)
                if is_awaitable(value):
                    value = await _limited(entry, value)
            finally:
                durations.append(perf_counter() - start)
        except (Exception, CancelledError) as exc:
            return await self.failures.fail(entry, exc, event, data)
        return value

    def _call(self, entry: Entry, data: Any, start: float) -> Any:
        try:
            return entry.call(data)
        finally:
            self._check_slow(entry, perf_counter() - start)

    async def _watched(
        self,
        entries: Sequence[Entry],
        data: Any,
        event: EventName | None,
        values: list[Any],
        watch: Watch,
    ) -> None:
        """Call and await entries one after another, all under one watch."""
        try:
            for entry in entries:
                watch.timeout = entry.timeout
                try:
                    value = entry.call(data)
                    if type(value) is _COROUTINE or (value is not None and is_awaitable(value)):
                        value = await value
                except (Exception, CancelledError) as exc:
                    value = await self._give_up(entry, exc, data, event, watch)
                if watch.timer is not None:
                    watch.disarm()
                values.append(value)
        finally:
            # Whatever ends the run, its timer must not cancel the task later. For the values, see
            # _result().
            watch.disarm()
            values, value = [], None

    async def _give_up(
        self,
        entry: Entry,
        exc: BaseException,
        data: Any,
        event: EventName | None,
        watch: Watch,
    ) -> ErrorContext:
        verdict = watch.verdict(exc, entry)
        if verdict is not exc:
            verdict.__cause__ = exc
        # Error callbacks have all the time in the world.
        watch.timeout = None
        return await self.failures.fail(entry, verdict, event, data)

    def _check_slow(self, entry: Entry, took: float) -> None:
        if self._slow_threshold is not None and took > self._slow_threshold:
            name = callable_name(entry.callback)
            message = "callback %s held up its caller for %.3f seconds; thread=True would not"
            extra = {"callback_name": name, "seconds": took}
            log(logging.WARNING, message, name, took, extra=extra)

    # At the same time.

    async def _all_at_once(
        self,
        entries: Sequence[Entry],
        data: Any,
        event: EventName | None,
        values: list[Any],
        durations: list[float],
    ) -> None:
        """Call all entries, then await what they returned, each in a task of its own."""
        is_timed, start = self._is_timed, 0.0
        awaitables: list[Awaitable[Any]] = []
        indexes: list[int] = []
        finishes: list[Coroutine[Any, Any, None]] = []
        try:
            for index, entry in enumerate(entries):
                if is_timed:
                    start = perf_counter()
                try:
                    value = entry.call(data)
                    if value is not SKIPPED and is_awaitable(value):
                        awaitables.append(value)
                        indexes.append(index)
                        finishes.append(self._finish(entry, value, data, event, values, index))
                except (Exception, CancelledError) as exc:
                    value = await self.failures.fail(entry, exc, event, data)
                values.append(value)
                if is_timed:
                    durations.append(perf_counter() - start)
                    self._check_slow(entry, durations[-1])
            coroutines = finishes
            if is_timed:
                coroutines = [
                    _timed(finish, durations, index)
                    for finish, index in zip(finishes, indexes, strict=True)
                ]
            for place, cancellation in await run_together(coroutines):
                # Somebody cancelled the callback's own task.
                index = indexes[place]
                values[index] = await self.failures.fail(entries[index], cancellation, event, data)
        except BaseException:
            # The dispatch ends here; what nobody has begun to await nobody will.
            for finish in finishes:
                finish.close()
            for awaitable in awaitables:
                dispose_unstarted(awaitable)
            raise
        # See _result().
        values, value = [], None

    @is_root
    async def _finish(
        self,
        entry: Entry,
        awaitable: Awaitable[Any],
        data: Any,
        event: EventName | None,
        values: list[Any],
        index: int,
    ) -> None:
        try:
            if entry.timeout is None:
                value = await awaitable
            else:
                value = await within(awaitable, entry.timeout, entry)
        except (Exception, CancelledError) as exc:
            value = await self.failures.fail(entry, exc, event, data)
        values[index] = value
        # See _result().
        values, value = [], None


async def _timed(finish: Coroutine[Any, Any, None], durations: list[float], index: int) -> None:
    start = perf_counter()
    await finish
    durations[index] += perf_counter() - start


def _limited(entry: Entry, awaitable: Awaitable[Any]) -> Awaitable[Any]:
    if entry.timeout is None:
        return awaitable
    return within(awaitable, entry.timeout, entry)


# One call.


async def safe_callback_execution(
    callback: Callable[..., Any], data: Any = None, context: str | None = ""
) -> Outcome:
    """Call one callback with *data*, await it if need be, and return its outcome.

    Args:
        callback: Sync or async; a failure becomes the outcome and is logged, never raised.
        data: What it is given, if it takes an argument.
        context: Where this happens, for the log.

    Raises:
        TypeError: *callback* is not callable, or *context* no string.
    """
    entry = _single(callback, context)
    return (await Dispatcher().run([entry], data, context or None))[0]


def safe_callback_execution_sync(
    callback: Callable[..., Any], data: Any = None, context: str | None = ""
) -> Outcome:
    """Call one synchronous callback with *data* and return its outcome.

    Raises:
        AsyncCallbackError: The callback is known to be async; it has not been called.
        TypeError: *callback* is not callable.
    """
    entry = _single(callback, context)
    if is_async_callable(callback):
        raise refusal(callback)
    return Dispatcher().run_sync([entry], data, context or None)[0]


def _single(callback: Callable[..., Any], context: str | None) -> Bound:
    check_callable(callback)
    if context is not None and type(context) is not str:
        raise TypeError(f"context must be a string, not {type(context).__name__}")
    return Bound(give(callback, 1), None, callback)
