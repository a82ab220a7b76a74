"""Events on their way from the connection to whoever iterates: as many as came at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import anyio

from callbackkit.events import Event

__all__ = ["Handover"]


class Handover:
    """Holds what came at once until it is taken; nothing more is read meanwhile."""

    def __init__(self) -> None:
        self._events: deque[Event] = deque()
        self._filled = anyio.Event()
        self._emptied = anyio.Event()
        self._is_closed = False
        self._failure: Exception | None = None

    async def put(self, events: Iterable[Event]) -> None:
        """Hand events on; returns once the last one is taken."""
        self._events.extend(events)
        self._filled.set()
        while self._events:
            self._emptied = anyio.Event()
            await self._emptied.wait()

    async def take(self) -> Event | None:
        """Return the next event, ``None`` behind the last one.

        Being cancelled loses none.

        Raises:
            Exception: What it was closed with.
        """
        while not self._events:
            if self._failure is not None:
                raise self._failure
            if self._is_closed:
                return None
            if self._filled.is_set():
                self._filled = anyio.Event()
            await self._filled.wait()
        event = self._events.popleft()
        if not self._events:
            self._emptied.set()
        return event

    def close(self, failure: Exception | None = None) -> None:
        """Say that no more will come, and why, if there is a reason; the first time counts."""
        if not self._is_closed:
            self._is_closed = True
            self._failure = failure
        self._filled.set()
