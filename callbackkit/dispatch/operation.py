"""Tell how far a piece of work is, and once how it ended."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sized
from contextlib import AsyncExitStack, asynccontextmanager
from math import inf
from numbers import Real
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import anyio
import attrs

from callbackkit.buffer import Log, Reader
from callbackkit.dispatch.callables import (
    callable_name,
    check_callable,
    give,
    is_async_callable,
)
from callbackkit.dispatch.callbacks import CompletionCallback, ProgressCallback
from callbackkit.dispatch.dispatcher import Dispatcher
from callbackkit.dispatch.ordered import InOrder, Turn
from callbackkit.dispatch.registration import Bound
from callbackkit.errors import AsyncCallbackError

__all__ = ["Operation"]

T = TypeVar("T")

logger: logging.Logger = logging.getLogger("callbackkit.dispatch")

# Progress that waits for callbacks slower than the work. Beyond, only the newest is kept.
_MAX_WAITING = 1000

_Part = Literal["on_progress", "on_complete", "on_error"]
_Call = tuple[_Part, Bound]


class Operation:
    """A piece of work that tells its progress, throttled, and once its end.

    Any thread may report. Callbacks are called one at a time, in order, under no lock; nothing
    is called after ``on_complete`` or ``on_error``. One that fails is logged and never disturbs
    the work. They run in the reporting thread, or in the one that is busy with them already.

    ``with`` completes the operation at the end of the block, or fails it with the exception,
    which goes on::

        with Operation(on_progress=show) as operation:
            for page in operation.track(pages):
                parse(page)

    In ``async with`` callbacks may be asynchronous. All of them then run in the event loop, in a
    task of the block, and the end of the block waits for the last one. A block that is
    cancelled does not: what is being awaited is cancelled, and the end is told as far as its
    callback does not suspend.

    Args:
        total: How many steps there are, for :meth:`advance`.
        on_progress: Called with the fraction done, 0 to 1, and also with the last message if it
            takes two arguments. The first report and the last are always told, others at most
            every *min_interval*; a complete operation has told 1.
        on_complete: Called with the result.
        on_error: Called with the exception, and also with a line of text about where it happened
            if it takes two arguments. Without it, what :meth:`fail` is given is logged.
        min_interval: Seconds between two calls of *on_progress*.
        clock: Tells seconds that only grow.

    Raises:
        TypeError: A callback is not callable, or a number is none.
        ValueError: *total* or *min_interval* is out of range.
    """

    def __init__(
        self,
        *,
        total: float | None = None,
        on_progress: ProgressCallback
        | Callable[[float, str | None], object]
        | Callable[[], object]
        | None = None,
        on_complete: CompletionCallback[Any] | Callable[[], object] | None = None,
        on_error: Callable[..., object] | None = None,
        min_interval: float = 0.1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if total is not None:
            _check_number("total", total)
        if not _real("min_interval", min_interval) >= 0:
            raise ValueError(f"min_interval must be 0 or more seconds, not {min_interval!r}")
        self._callbacks: dict[_Part, _Callback] = {}
        # The last of them known to be async: nothing can be told outside `async with`.
        self._async_part: _Part | None = None
        self._add("on_progress", on_progress, 2)
        self._add("on_complete", on_complete, 1)
        self._add("on_error", on_error, 2)
        self._min_interval = min_interval
        self._clock = clock
        self._dispatcher = Dispatcher()
        # Re-entrant because garbage collection may run anybody's __del__ at any time, and that
        # may report.
        self._lock = threading.RLock()
        # What is told waits here in order; in `async with` it waits in the log, for the loop.
        self._calls = InOrder()
        self._log: Log[_Call] | None = None
        self._block = AsyncExitStack()
        self._interrupt: BaseException | None = None
        self._total = total
        self._steps = 0.0
        self._fraction = 0.0
        self._message: str | None = None
        self._is_done = False
        # Of the progress told last: when, how far, and whether there is news since.
        self._told_at = -inf
        self._told: float | None = None
        self._has_news = False

    def _add(self, part: _Part, callback: Any, given: int) -> None:
        if callback is not None:
            check_callable(callback, part)
            self._callbacks[part] = _Callback(callback, give(callback, given))
            if is_async_callable(callback):
                self._async_part = part

    def __repr__(self) -> str:
        return f"<Operation {self._fraction:.0%}{', done' if self._is_done else ''}>"

    @property
    def fraction(self) -> float:
        """How much is done, 0 to 1, as reported last; 1 when complete."""
        return self._fraction

    @property
    def is_done(self) -> bool:
        """It is complete or has failed; whatever is reported from now on is ignored."""
        return self._is_done

    # Reporting, from any thread.

    def advance(self, n: float = 1) -> None:
        """Report that *n* more steps of *total* are done; steps beyond it count as 1.0.

        Raises:
            RuntimeError: There is no *total*.
            ValueError: *n* is negative or not finite.
        """
        _check_number("n", n)
        self._check_mode()
        now = self._clock()
        with self._lock:
            if self._is_done:
                return
            if self._total is None:
                raise RuntimeError("advance() needs Operation(total=...); without one, update()")
            self._steps += n
            fraction = self._steps / self._total if self._steps < self._total else 1.0
            turn = self._report(fraction, now)
        _take(turn)

    def update(self, fraction: float, message: str | None = None) -> None:
        """Report how much is done, and what is being done.

        Args:
            fraction: 0 to 1; it may also go back.
            message: Told with this and later reports, until there is another.

        Raises:
            ValueError: *fraction* is not within 0 to 1.
        """
        if not 0 <= _real("fraction", fraction) <= 1:
            raise ValueError(f"fraction must be 0 to 1, not {fraction!r}")
        self._check_mode()
        now = self._clock()
        with self._lock:
            if self._is_done:
                return
            if message is not None:
                self._message = message
            if self._total is not None:
                self._steps = fraction * self._total
            turn = self._report(float(fraction), now)
        _take(turn)

    def track(self, items: Iterable[T]) -> Iterator[T]:
        """Return an iterator over *items* that reports a step after each one.

        It does not complete the operation, and an exception in the body of the loop is not seen
        here: put the loop into ``with operation:`` for both. An item left by ``break`` or an
        exception does not count.

        Raises:
            TypeError: There is no *total*, and *items* has no length to take for it.
        """
        self._check_mode()
        with self._lock:
            if self._total is None:
                self._total = _length(items)
        return self._tracked(items)

    def _tracked(self, items: Iterable[T]) -> Iterator[T]:
        for item in items:
            yield item
            self.advance()

    def complete(self, result: Any = None) -> None:
        """End well: tell progress 1 unless that is told already, then *result*.

        An operation ends once; if it has, this is ignored.
        """
        self._check_mode()
        now = self._clock()
        with self._lock:
            if self._is_done:
                return
            self._fraction = 1.0
            turn = None
            if self._has_news or self._told != 1.0:
                turn = self._tell_progress(now)
            turn = self._end("on_complete", result) or turn
        _take(turn)

    def fail(self, exc: BaseException) -> None:
        """End badly: tell the progress reported last, then *exc*.

        An operation ends once; if it has, this is ignored.
        """
        _check_exception(exc)
        if self._fail(exc) and "on_error" not in self._callbacks:
            logger.error("operation failed", exc_info=exc)

    def _fail(self, exc: BaseException) -> bool:
        """Tell an exception; ``False`` if the operation has ended already."""
        self._check_mode()
        now = self._clock()
        with self._lock:
            if self._is_done:
                return False
            turn = self._tell_progress(now) if self._has_news else None
            turn = self._end("on_error", exc, self._where()) or turn
        _take(turn)
        return True

    def _where(self) -> str:
        about = "" if self._message is None else f" ({self._message})"
        return f"operation failed at {self._fraction:.0%}{about}"

    def _check_mode(self) -> None:
        if self._async_part is not None and self._log is None:
            callback = self._callbacks[self._async_part].callback
            raise AsyncCallbackError(
                f"{self._async_part}, {callable_name(callback)}, is asynchronous: enter the "
                "operation with 'async with' before anything is reported"
            )

    # Telling. The lock is held; turns are taken after it is released.

    def _report(self, fraction: float, now: float) -> Turn | None:
        self._fraction = fraction
        self._has_news = True
        return self._tell_progress(now) if self._is_due(now) else None

    def _is_due(self, now: float) -> bool:
        waiting = self._calls.waiting if self._log is None else len(self._log)
        if waiting >= _MAX_WAITING:
            return False
        if self._told is None or (self._fraction == 1.0 and self._told != 1.0):
            return True
        return now - self._told_at >= self._min_interval

    def _tell_progress(self, now: float) -> Turn | None:
        turn = self._tell("on_progress", self._fraction, self._message)
        self._told, self._told_at, self._has_news = self._fraction, now, False
        return turn

    def _end(self, part: _Part, *args: Any) -> Turn | None:
        turn = self._tell(part, *args)
        self._is_done = True
        if self._log is not None:
            self._log.close()
        return turn

    def _tell(self, part: _Part, *args: Any) -> Turn | None:
        """Settle that a callback is called next; the turn is to be taken unless the loop does."""
        callback = self._callbacks.get(part)
        if callback is None:
            return None
        call = callback.bound(args)
        if self._log is None:
            return self._calls.queue(lambda: self._dispatcher.run_sync([call], None, part))
        self._log.append((part, call))
        return None

    # As a block.

    def __enter__(self) -> Self:
        self._check_mode()
        return self

    def __exit__(self, _exc_type: object, exc: BaseException | None, _traceback: object) -> None:
        if exc is None:
            self.complete()
        else:
            self._fail(exc)

    async def __aenter__(self) -> Self:
        with self._lock:
            if self._log is not None:
                raise RuntimeError("an operation is entered with 'async with' once")
            log = self._log = Log(max_items=_MAX_WAITING + 2)
            if self._is_done:
                log.close()
        await self._block.enter_async_context(self._served(log.reader()))
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._block.__aexit__(exc_type, exc, traceback)

    @asynccontextmanager
    async def _served(self, reader: Reader[_Call]) -> AsyncGenerator[None]:
        """Call callbacks in a task beside the block, and end with it."""
        raised: BaseException | None = None
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._call_all, reader, group.cancel_scope)
                try:
                    yield
                except anyio.get_cancelled_exc_class() as exc:
                    self._fail(exc)
                    raise
                except BaseException as exc:
                    # Raised below as it is: a task group would wrap it.
                    raised = exc
                    self._fail(exc)
                    if not isinstance(exc, Exception):
                        group.cancel_scope.cancel()
                else:
                    self.complete()
        finally:
            if self._interrupt is None:
                await self._begin_end(reader)
        if (raised := self._interrupt or raised) is not None:
            raise raised

    async def _call_all(self, reader: Reader[_Call], scope: anyio.CancelScope) -> None:
        try:
            async for part, call in reader:
                await self._dispatcher.run([call], None, part)
        except (Exception, KeyboardInterrupt, SystemExit) as exc:
            # Not of the callback's own, which the dispatcher keeps: it ends the block.
            self._interrupt = exc
            scope.cancel()

    async def _begin_end(self, reader: Reader[_Call]) -> None:
        """Tell the end if a cancellation came before it, as far as that does not suspend."""
        with anyio.CancelScope() as scope:
            scope.cancel()
            async for part, call in reader:
                if part != "on_progress":
                    await self._dispatcher.run([call], None, part)


@attrs.frozen
class _Callback:
    """A callback, made to take what it wants of the arguments there are."""

    callback: Any
    call: Callable[..., Any]

    def bound(self, args: tuple[Any, ...]) -> Bound:
        def call(_data: object) -> Any:
            return self.call(*args)

        return Bound(call, None, self.callback)


def _take(turn: Turn | None) -> None:
    if turn is not None:
        turn.take()


def _length(items: object) -> int:
    if isinstance(items, Sized):
        return len(items)
    raise TypeError(
        f"{type(items).__name__} has no length; give the number of items as Operation(total=...)"
    )


def _check_exception(exc: Any) -> None:
    if not isinstance(exc, BaseException):
        raise TypeError(f"fail() takes an exception, not {exc!r:.200}")


def _real(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, not {value!r:.200}")
    return float(value)


def _check_number(name: str, value: Any) -> None:
    if not 0 <= _real(name, value) < inf:
        raise ValueError(f"{name} must be 0 or more, and finite, not {value!r}")
