"""Events of all sessions as they come, for operators."""

from __future__ import annotations

import time
from collections.abc import Collection
from types import TracebackType
from typing import Final, Self

from callbackkit.buffer import Reader
from callbackkit.errors import StreamLagError
from callbackkit.events import GAP, Event, Position
from callbackkit.sessions.pump import Pump
from callbackkit.wire.envelope import JsonCodec, encode_body

__all__ = ["EVERYWHERE", "Firehose"]

EVERYWHERE: Final = "*"
"""The session of a gap that stands for events of any sessions."""

# The epoch of such gaps, which no log has.
_EPOCH: Final = "firehose"
_JSON: Final = JsonCodec()


class Firehose:
    """An asynchronous iterator over the events of all sessions; made by ``manager.firehose()``.

    It begins with ``async with``, or when the first event is asked for, and knows no past. Events
    of one session come in order; those of this process at once, those of others within two
    seconds, or later where there are more than some 50 000 sessions. Events for operators, such as
    a breaker that opens, are among them. Whoever reads too slowly holds up nobody: a gap of the
    session ``"*"`` tells how many events were missed. Where those of one session are no longer
    kept, a gap of that session does. Iteration ends when it is closed, or the manager stops or
    drains. One task iterates at a time.
    """

    def __init__(self, pump: Pump, types: Collection[str] | None) -> None:
        if isinstance(types, str):
            raise TypeError(f"types is a list of event types, not the string {types!r:.80}")
        self._pump = pump
        self._types = None if types is None else frozenset((GAP, *types))
        self._reader: Reader[Event] | None = None
        self._is_closed = False

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else "open"
        return f"<Firehose {state}>"

    def __aiter__(self) -> Self:
        return self

    async def __aenter__(self) -> Self:
        """Begin here.

        Raises:
            LimitError: There are ``Limits.max_readers``.
            RuntimeError: The manager is not running.
            StoreError: The store failed; it has not begun.
        """
        await self._begin()
        return self

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.close()

    async def __anext__(self) -> Event:
        """Return the next event, waiting for it.

        Raises:
            Exception: As for beginning, if it has not begun. Once it has, a store that fails is
                tried again: events come later, and none is lost.
        """
        if self._is_closed:
            raise StopAsyncIteration
        reader = self._reader or await self._begin()
        while True:
            try:
                event = await anext(reader)
            except StreamLagError as lag:
                return _missed(lag.missed, reader.missed)
            if self._types is None or event.event_type in self._types:
                return event

    async def _begin(self) -> Reader[Event]:
        if self._reader is not None:
            return self._reader
        reader = self._pump.add(self)
        try:
            await self._pump.ready(self)
        except BaseException:
            self._pump.remove(self)
            reader.close()
            raise
        self._reader = reader
        if self._is_closed:
            # Meanwhile.
            reader.close()
        return reader

    def close(self) -> None:
        """End the iteration, one that waits now too; from any thread. Twice is harmless."""
        self._is_closed = True
        self._pump.remove(self)
        reader = self._reader
        if reader is not None:
            reader.close()

    async def aclose(self) -> None:
        """Close it."""
        self.close()


def _missed(count: int, in_all: int) -> Event:
    body = encode_body(_JSON, {"from": None, "to": None, "missed": count})
    microseconds = int(time.time() * 1e6)
    return Event(Position(_EPOCH, in_all), GAP, microseconds, EVERYWHERE, body, _JSON.decode)
