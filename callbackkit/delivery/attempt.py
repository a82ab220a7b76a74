"""One call of a transport under a deadline, whose failure is a value."""

from __future__ import annotations

import asyncio
from asyncio import CancelledError
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

import anyio

from callbackkit.delivery.transport import DeliveryConfig
from callbackkit.dispatch.concurrency import on_asyncio
from callbackkit.errors import CallbackCancelledError, Gone, Rejected, Retry

__all__ = ["Deadlines", "describe", "failure_of"]

# Seconds that a timer of asyncio may be early by.
_RESOLUTION: Final = 1e-3
# Characters of an error that are kept.
_LONGEST: Final = 300


async def failure_of(
    function: Callable[..., Awaitable[None]], *args: Any, timeout: float
) -> Exception | None:
    """Call a function of a transport, and return what it raised.

    Cancelling the caller passes through, as does any other ``BaseException``; a
    ``CancelledError`` that nobody sent to this task is a failure.

    Args:
        function: What to call and await.
        *args: What it gets.
        timeout: Seconds; then it is cancelled, and has failed with a ``TimeoutError``.
    """
    deadlines = Deadlines()
    try:
        return await deadlines.failure_of(function, *args, timeout=timeout)
    finally:
        deadlines.close()


class Deadlines:
    """The deadlines of many attempts in one event loop.

    On asyncio those with the same timeout stand in a row, and share a timer: making and cancelling
    one for each took 5 of the 50 µs that a webhook takes us (tests/benchmarks, "webhooks").
    """

    def __init__(self) -> None:
        self._rows: dict[float, _Row] = {}

    async def failure_of(
        self, function: Callable[..., Awaitable[None]], *args: Any, timeout: float
    ) -> Exception | None:
        """Call a function of a transport, as :func:`failure_of` does."""
        if not on_asyncio():
            return await _on_trio(_awaiting(function, args), timeout)
        row = self._rows.get(timeout)
        if row is None:
            row = self._rows[timeout] = _Row(self._rows, timeout)
        attempt = row.begin()
        try:
            await function(*args)
        except CancelledError as exc:
            return attempt.verdict(exc, timeout)
        except Exception as exc:
            return exc
        finally:
            row.under_way.pop(attempt, None)
            if attempt.has_expired:
                attempt.settle()
        return None

    def close(self) -> None:
        """Let go of timers; what is under way has no deadline any more."""
        for row in tuple(self._rows.values()):
            row.close()


class _Row:
    """Attempts with one timeout: whoever began first is the first whose time is up."""

    __slots__ = ("_loop", "_rows", "_timeout", "_timer", "under_way")

    def __init__(self, rows: dict[float, _Row], timeout: float) -> None:
        self._rows = rows
        self._timeout = timeout
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        # In the order they began.
        self.under_way: dict[_Attempt, None] = {}

    def begin(self) -> _Attempt:
        task = asyncio.current_task()
        assert task is not None
        attempt = _Attempt(task, self._loop.time() + self._timeout)
        self.under_way[attempt] = None
        if self._timer is None:
            self._timer = self._loop.call_at(attempt.ends_at, self._look)
        return attempt

    def _look(self) -> None:
        self._timer = None
        now = self._loop.time()
        # As precise as the loop is when it calls.
        now += _RESOLUTION
        while self.under_way:
            attempt = next(iter(self.under_way))
            if attempt.ends_at > now:
                self._timer = self._loop.call_at(attempt.ends_at, self._look)
                return
            del self.under_way[attempt]
            attempt.expire()
        # Clients choose timeouts: not one row for each that ever was.
        self._rows.pop(self._timeout, None)

    def close(self) -> None:
        self._rows.pop(self._timeout, None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _Attempt:
    """One attempt, and the task that makes it."""

    __slots__ = ("_cancelling", "_task", "ends_at", "has_expired")

    def __init__(self, task: asyncio.Task[Any], ends_at: float) -> None:
        self._task = task
        self._cancelling = task.cancelling()
        self.has_expired = False
        self.ends_at: float = ends_at

    def expire(self) -> None:
        self.has_expired = True
        self._task.cancel()

    def settle(self) -> bool:
        """Take our cancellation back; ``True`` if it was that, and nobody else cancelled."""
        if not self.has_expired:
            return False
        self.has_expired = False
        # As asyncio.timeout() does: our cancellation is taken back, anybody else's stands.
        return self._task.uncancel() <= self._cancelling

    def verdict(self, exc: CancelledError, timeout: float) -> Exception:
        """Return the failure that a cancellation is; raise it if somebody cancelled this task."""
        if self.settle():
            return _expiry(timeout)
        if self._task.cancelling():
            raise exc
        failure = CallbackCancelledError("cancelled, and not by us")
        failure.__cause__ = exc
        return failure


async def _on_trio(coroutine: Coroutine[Any, Any, None], timeout: float) -> Exception | None:
    try:
        with anyio.move_on_after(timeout):
            await coroutine
            return None
    except Exception as exc:
        return exc
    return _expiry(timeout)


async def _awaiting(function: Callable[..., Awaitable[None]], args: tuple[Any, ...]) -> None:
    # What is no coroutine function fails in here, as a failure of the transport.
    await function(*args)


def _expiry(timeout: float) -> TimeoutError:
    return TimeoutError(f"not done within {timeout:g} s")


def describe(error: BaseException, config: DeliveryConfig | None) -> str:
    """Return the name and text of an error without secrets, to be stored and logged.

    Without a configuration nobody knows what the secrets are: then only its name.
    """
    name = type(error).__name__
    if config is None:
        return name
    try:
        told = error.reason if isinstance(error, Retry | Rejected | Gone) else str(error)
        text = str(config.mask(f"{name}: {told}" if told else name))
    except Exception:
        # Asked for its text, or for its secrets, somebody else's object may do anything.
        return name
    # A store may refuse what is no Unicode.
    return text[:_LONGEST].encode("utf-8", "replace").decode()
