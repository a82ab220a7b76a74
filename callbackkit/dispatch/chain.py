"""Run callbacks in a row, each given what the one before returned."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from typing import Any, Literal, Self

import attrs

from callbackkit.dispatch.callables import (
    callable_name,
    check_callable,
    give,
    is_async_callable,
    is_awaitable,
    short_repr,
)
from callbackkit.dispatch.dispatcher import Dispatcher
from callbackkit.dispatch.failures import refusal
from callbackkit.dispatch.outcome import Outcome
from callbackkit.dispatch.registration import Bound
from callbackkit.errors import StopChain

__all__ = ["CallbackChain", "ChainResult"]

OnError = Literal["stop", "skip", "raise"]


@attrs.frozen
class ChainResult:
    """What became of one run of a chain.

    Attributes:
        value: What the last callback that did not fail returned, or the value of
            :exc:`~callbackkit.StopChain`; the initial value if there is neither.
        completed: The chain ran to its end, or :exc:`~callbackkit.StopChain` ended it; ``False``
            if a failure did.
        failed_at: Index of the first callback that failed, from 0; ``None`` if none did.
        error: Why that one failed.
    """

    value: Any = attrs.field(repr=short_repr)
    completed: bool
    failed_at: int | None = None
    error: Exception | None = attrs.field(default=None, repr=short_repr)


class CallbackChain:
    """Callbacks in a row, each given what the one before returned.

    Sync and async ones may be mixed; one that has no parameter without a default is given
    nothing. One that raises :exc:`~callbackkit.StopChain` ends the run early with a value. A
    cancellation that nobody sent to the running task is a failure, as
    :exc:`~callbackkit.CallbackCancelledError`; a cancellation of the run itself,
    ``KeyboardInterrupt`` and ``SystemExit`` pass through.

    A chain may be run and changed from any thread, and by its own callbacks; a change counts
    from the next run on.

    >>> chain = CallbackChain().add_callback(str.strip).add_callback(str.title)
    >>> chain.execute_chain_sync("  ada lovelace ")
    'Ada Lovelace'

    Args:
        on_error: What follows when a callback fails. ``"stop"``: it is logged with its
            traceback, and the run ends with the last good value. ``"skip"``: it is logged, and
            the next callback gets the last good value. ``"raise"``: the exception is raised.

    Raises:
        ValueError: *on_error* is none of these.
    """

    def __init__(self, *, on_error: OnError = "stop") -> None:
        if on_error not in ("stop", "skip", "raise"):
            raise ValueError(f"on_error must be 'stop', 'skip' or 'raise', not {on_error!r}")
        self._on_error: OnError = on_error
        # Ends a run without being logged as a failure.
        self._ending = Exception if on_error == "raise" else StopChain
        self._dispatcher = Dispatcher()
        self._lock = threading.Lock()
        self._callbacks: tuple[Callable[..., Any], ...] = ()

    def __len__(self) -> int:
        return len(self._callbacks)

    def __repr__(self) -> str:
        names = " -> ".join(map(callable_name, self._callbacks))
        return f"<CallbackChain on_error={self._on_error!r}: {names or 'no callbacks'}>"

    # Changing.

    def add_callback(self, callback: Callable[..., Any]) -> Self:
        """Append a callback, sync or async, and return the chain."""
        check_callable(callback)
        with self._lock:
            self._callbacks += (callback,)
        return self

    def remove_callback(self, callback: Callable[..., Any]) -> bool:
        """Take the first such callback out; ``False`` if there is none."""
        while True:
            # Comparing may run anybody's __eq__, so no lock is held meanwhile.
            callbacks = self._callbacks
            found = (index for index, there in enumerate(callbacks) if there == callback)
            index = next(found, None)
            if index is None:
                return False
            with self._lock:
                if self._callbacks is callbacks:
                    self._callbacks = callbacks[:index] + callbacks[index + 1 :]
                    return True

    # Running.

    async def execute_chain(self, initial: Any) -> Any:
        """Run the chain and return its value; :meth:`run` tells also how it got there."""
        return (await self.run(initial)).value

    def execute_chain_sync(self, initial: Any) -> Any:
        """Like :meth:`execute_chain`, for synchronous callbacks only; see :meth:`run_sync`."""
        return self.run_sync(initial).value

    async def run(self, initial: Any) -> ChainResult:
        """Give *initial* to the first callback and what it returns, awaited, to the next.

        Raises:
            Exception: What a callback raised, if *on_error* is ``"raise"``.
        """
        run = _Run(initial, self._on_error)
        for index, callback in enumerate(self._callbacks):
            entry = Bound(self._awaited_step(callback), None, callback)
            [outcome] = await self._dispatcher.run([entry], run.value, f"chain[{index}]")
            if not run.goes_on(index, outcome):
                break
        return run.result()

    def run_sync(self, initial: Any) -> ChainResult:
        """Like :meth:`run`, for synchronous callbacks only.

        Raises:
            AsyncCallbackError: A callback is known to be async; none has been called then. An
                awaitable that comes back unforeseen is closed, and its callback has failed.
            Exception: What a callback raised, if *on_error* is ``"raise"``.
        """
        callbacks = self._callbacks
        for callback in callbacks:
            if is_async_callable(callback):
                raise refusal(callback)
        run = _Run(initial, self._on_error)
        for index, callback in enumerate(callbacks):
            entry = Bound(self._step(callback), None, callback)
            [outcome] = self._dispatcher.run_sync([entry], run.value, f"chain[{index}]")
            if not run.goes_on(index, outcome):
                break
        return run.result()

    # The dispatcher takes what a callback raises for its failure. What ends the run otherwise is
    # therefore handed to it as a value.

    def _step(self, callback: Callable[..., Any]) -> Callable[[Any], Any]:
        call, ending = give(callback, 1), self._ending

        def step(value: Any) -> Any:
            try:
                return call(value)
            except ending as exc:
                return _Ending(exc)

        return step

    def _awaited_step(self, callback: Callable[..., Any]) -> Callable[[Any], Any]:
        call, ending = self._step(callback), self._ending

        async def finish(awaitable: Awaitable[Any]) -> Any:
            try:
                return await awaitable
            except ending as exc:
                return _Ending(exc)

        def step(value: Any) -> Any:
            result = call(value)
            return finish(result) if is_awaitable(result) else result

        return step


class _Ending:
    """Stands for a value where an exception ends the run."""

    __slots__ = ("exception",)

    def __init__(self, exception: Exception) -> None:
        self.exception = exception


class _Run:
    """One run of a chain so far."""

    def __init__(self, value: Any, on_error: OnError) -> None:
        self.value = value
        self._on_error = on_error
        self._completed = True
        self._failed_at: int | None = None
        self._error: Exception | None = None

    def goes_on(self, index: int, outcome: Outcome) -> bool:
        """Take note of what a callback did; ``False`` if the run ends with it."""
        if outcome.error is not None:
            return self._goes_on_after(index, outcome.error)
        if type(outcome.value) is _Ending:
            exception = outcome.value.exception
            if not isinstance(exception, StopChain):
                raise exception
            self.value = exception.value
            return False
        self.value = outcome.value
        return True

    def _goes_on_after(self, index: int, error: Exception) -> bool:
        if self._on_error == "raise":
            raise error
        if self._error is None:
            self._failed_at, self._error = index, error
        self._completed = self._on_error == "skip"
        return self._completed

    def result(self) -> ChainResult:
        return ChainResult(self.value, self._completed, self._failed_at, self._error)
