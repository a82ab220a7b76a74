"""Give up on callbacks after a while, at next to no cost for those that do not suspend."""

from __future__ import annotations

import asyncio
from asyncio import CancelledError
from collections.abc import Awaitable, Coroutine, Generator
from typing import Any

import anyio

from callbackkit.dispatch.callables import callable_name
from callbackkit.dispatch.concurrency import on_asyncio
from callbackkit.dispatch.registration import Entry
from callbackkit.errors import CallbackTimeoutError

__all__ = ["Watch", "check_timeout", "expiry", "is_expiry", "within"]


def check_timeout(timeout: float | None, name: str = "timeout") -> None:
    """Raise unless *timeout* is ``None`` or a positive number of seconds."""
    if timeout is None:
        return
    if isinstance(timeout, bool) or not isinstance(timeout, int | float):
        raise TypeError(f"{name} must be a number of seconds, not {timeout!r}")
    if not timeout > 0:
        raise ValueError(f"{name} must be positive, not {timeout!r}; None means no limit")


def expiry(entry: Entry, timeout: float) -> CallbackTimeoutError:
    """Return the error for a callback that was given up on."""
    error = CallbackTimeoutError(
        f"{callable_name(entry.callback)} did not finish within {timeout} seconds", timeout=timeout
    )
    error.source = _source(entry)
    return error


def is_expiry(error: BaseException, entry: Entry) -> bool:
    """Tell whether we gave up on this very entry: a callback may pass on such an error too."""
    return isinstance(error, CallbackTimeoutError) and error.source is _source(entry)


def _source(entry: Entry) -> object:
    return entry if entry.registration is None else entry.registration


async def within(awaitable: Awaitable[Any], timeout: float, entry: Entry) -> Any:
    """Await what a callback returned for at most *timeout* seconds.

    Raises:
        CallbackTimeoutError: It took longer. A ``TimeoutError`` of the callback stays its own.
    """
    if not on_asyncio():
        with anyio.move_on_after(timeout):
            return await awaitable
        raise expiry(entry, timeout)
    watch = Watch()
    watch.timeout = timeout
    try:
        # Wrapped, because only a real await refuses a coroutine that is being awaited already.
        return await watch.over(_awaiting(awaitable))
    except CancelledError as exc:
        verdict = watch.verdict(exc, entry)
        if verdict is exc:
            raise
        try:
            raise verdict from exc
        finally:
            # Its traceback holds this frame, which must not hold it.
            del verdict
    finally:
        watch.disarm()


async def _awaiting(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


class Watch:
    """A timer of asyncio for whatever a coroutine awaits, set only when it suspends.

    ``asyncio.timeout()`` around each of ten callbacks that do not suspend costs 26 times a loop
    that awaits them. This one wraps the whole loop: the loop says what the timeout is now, by
    :attr:`timeout`, and a timer is started only when the loop really suspends (tests/benchmarks,
    "a timeout on each"). Everything stays in the caller's task.

    Attributes:
        timeout: Seconds for what is awaited from now on; ``None`` for no limit.
        timer: What runs since :attr:`timeout` was last set, if anything suspended.
    """

    __slots__ = ("_cancelling", "_has_fired", "_task", "timeout", "timer")

    def __init__(self) -> None:
        self.timeout: float | None = None
        self.timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[Any] | None = None
        self._cancelling = 0
        self._has_fired = False

    def over(self, coroutine: Coroutine[Any, Any, Any]) -> Awaitable[Any]:
        """Return *coroutine* to be awaited under this watch."""
        return _Watched(coroutine, self)

    def arm(self) -> None:
        """Start the timer, unless it runs or there is no limit; called when suspending."""
        if self.timer is None and self.timeout is not None:
            self._task = asyncio.current_task()
            assert self._task is not None
            self._cancelling = self._task.cancelling()
            self.timer = self._task.get_loop().call_later(self.timeout, self._fire)

    def disarm(self) -> bool:
        """Stop the timer; ``True`` if it had fired and nothing else cancelled the task."""
        if self.timer is None:
            return False
        self.timer.cancel()
        self.timer = None
        if not self._has_fired:
            return False
        self._has_fired = False
        assert self._task is not None
        # As asyncio.timeout() does: our cancellation is taken back, anybody else's stands.
        return self._task.uncancel() <= self._cancelling

    def verdict(self, exc: BaseException, entry: Entry) -> BaseException:
        """Return what *exc*, which ended the callback, means: time is up, or itself."""
        timeout = self.timeout
        if self.disarm() and isinstance(exc, CancelledError) and timeout is not None:
            return expiry(entry, timeout)
        return exc

    def _fire(self) -> None:
        assert self._task is not None
        self._has_fired = True
        self._task.cancel()


class _Watched:
    """Awaits a coroutine and arms a watch whenever it suspends."""

    __slots__ = ("_coroutine", "_watch")

    def __init__(self, coroutine: Coroutine[Any, Any, Any], watch: Watch) -> None:
        self._coroutine = coroutine
        self._watch = watch

    def __await__(self) -> Generator[Any, Any, Any]:
        coroutine, watch = self._coroutine, self._watch
        thrown: list[BaseException] = []
        try:
            step = coroutine.send(None)
            while True:
                watch.arm()
                sent = None
                try:
                    sent = yield step
                except GeneratorExit:
                    coroutine.close()
                    raise
                except BaseException as exc:
                    # Whatever the event loop throws belongs to the coroutine, cancellation too.
                    thrown.append(exc)
                # Out here, where the coroutine does not see it as the one being handled.
                step = coroutine.throw(thrown.pop()) if thrown else coroutine.send(sent)
        except StopIteration as stop:
            return stop.value
