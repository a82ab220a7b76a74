"""Follow the events of a registry from asynchronous code."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Coroutine
from typing import Any, Generic, Self, TypeVar

import anyio

from callbackkit.buffer import Log, Overflow
from callbackkit.dispatch.callables import (
    callable_name,
    check_callable,
    decider,
    is_async_callable,
)
from callbackkit.dispatch.deadline import check_timeout
from callbackkit.dispatch.event_types import EventName
from callbackkit.dispatch.listeners import Listeners
from callbackkit.errors import AsyncCallbackError

__all__ = ["EventStream", "first_event"]

N_co = TypeVar("N_co", covariant=True)
T_co = TypeVar("T_co", covariant=True)

Item = tuple[EventName, Any]


class EventStream(Generic[N_co, T_co]):
    """The events of one type, pattern or class, as ``(event_type, data)``.

    Returned by :meth:`~callbackkit.CallbackRegistry.stream`; it sees every event triggered
    from that moment on, from any thread. It ends with :meth:`aclose`, at the end of
    ``async with``, or when nobody holds it any more.
    """

    def __init__(
        self, listeners: Listeners, event: EventName, max_items: int, overflow: Overflow
    ) -> None:
        log: Log[tuple[N_co, T_co]] = Log(max_items=max_items)

        def keep(event_type: Any, data: Any) -> None:
            log.append((event_type, data))

        self._log = log
        self._reader = log.reader(overflow=overflow)
        self._detach = _attached(self, listeners, event, keep)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc_info: object) -> None:
        await self.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> tuple[N_co, T_co]:
        """Return the next event, waiting for it.

        Raises:
            StreamLagError: Events were dropped and *overflow* is ``"error"``; told once for
                each time it happens.
        """
        return await anext(self._reader)

    @property
    def dropped(self) -> int:
        """How many events came while *max_items* others waited to be read, and were lost."""
        return self._reader.missed

    async def aclose(self) -> None:
        """End the stream, also for a task that waits for its next event."""
        self._detach()
        self._log.close()
        self._reader.close()


# One event.


def first_event(
    listeners: Listeners,
    event: EventName,
    when: Callable[..., Any] | None,
    timeout: float | None,
) -> Coroutine[Any, Any, Item]:
    """Wait for the first event that *when* accepts, counted from this call on."""
    check_timeout(timeout)
    if when is not None:
        check_callable(when, "when")
        if is_async_callable(when):
            raise AsyncCallbackError(f"when must be synchronous; {callable_name(when)} is async")
    wanted = None if when is None else decider(when)
    log: Log[Item | Exception] = Log(max_items=1)
    # Whoever gets it has found the event; of two threads that come at once, one does.
    claim = threading.Lock()

    def look(event_type: EventName, data: Any) -> None:
        if claim.locked():
            return
        found: Item | Exception = (event_type, data)
        try:
            if wanted is not None and not wanted(data):
                return
        except Exception as exc:
            found = exc
        if claim.acquire(blocking=False):
            log.append(found)

    waiting = _Waiting(log)
    return waiting.first(timeout, _attached(waiting, listeners, event, look))


class _Waiting:
    """Whoever waits for one event; no more awaited and no longer held, it is forgotten."""

    def __init__(self, log: Log[Item | Exception]) -> None:
        self._reader = log.reader()

    async def first(self, timeout: float | None, detach: Callable[[], Any]) -> Item:
        try:
            with anyio.fail_after(timeout):
                found = await anext(self._reader)
        finally:
            detach()
        if isinstance(found, Exception):
            raise found
        return found


# Seeing events.


def _attached(
    owner: object, listeners: Listeners, event: EventName, tap: Callable[[EventName, Any], object]
) -> Callable[[], Any]:
    """Have *tap* see events until what is returned is called or nobody holds *owner*."""
    detach = weakref.finalize(owner, listeners.remove_tap, listeners.add_tap(event, tap))
    detach.atexit = False
    return detach
