"""Read a session from a position on: what is there and what comes are the same read."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Literal, Self

from callbackkit.buffer import checkpoint
from callbackkit.errors import StoreError
from callbackkit.events import Event, Position
from callbackkit.sessions.readers import Readers
from callbackkit.stores.base import Page, Store, Watch
from callbackkit.wire.envelope import gap_event

__all__ = ["After", "Subscription", "read_after"]

After = Position | Event | str | None
"""Where to go on: a position, as text too, or an event; ``None`` for the oldest event kept;
``"now"`` for behind the newest."""

# Events read from the store at once.
_PAGE: Final = 100


def read_after(after: After) -> Position | Literal["now"] | None:
    """Return what somebody gave as the place to go on from.

    Raises:
        PositionError: A text that is no position.
        TypeError: Anything else.
    """
    if after is None or isinstance(after, Position):
        return after
    if isinstance(after, Event):
        return after.position
    if isinstance(after, str):
        return "now" if after == "now" else Position.parse(after)
    raise TypeError(f"after is a position, 'now' or None, not {type(after).__name__}")


class Subscription:
    """An asynchronous iterator over the events of a session; made by ``session.subscribe()``.

    It keeps one position and no queue of its own: a reader that is slow costs nobody anything.
    Where events are no longer kept, a gap stands for them (:attr:`Event.is_gap`). Iteration ends
    when the session has ended and all was read, or when it is closed. Cancellation passes through
    and loses nothing. One task iterates at a time.

    Attributes:
        session_id: The session.
        kind: What it is read through, for the statistics.
        ttl: Seconds of idleness after which the session expires, but not while this is open.
        position: Behind what was returned last, at first what was given; ``None`` for nothing. A
            reader that comes back goes on from here.
        has_ended: The session has ended, and all of it was read.
    """

    def __init__(
        self,
        store: Store,
        readers: Readers,
        session_id: str,
        *,
        after: After,
        types: Collection[str] | None,
        kind: str,
        ttl: float | None,
        notes_reading: bool,
        decode: Callable[[bytes], Any],
    ) -> None:
        # First of all, for __del__().
        self._readers = readers
        self.session_id: str = session_id
        self.kind: str = kind
        self.ttl: float | None = ttl
        begin = read_after(after)
        if isinstance(types, str):
            raise TypeError(f"types is a list of event types, not the string {types!r:.80}")
        self._is_at_now = begin == "now"
        self.position: Position | None = None if begin == "now" else begin
        self.has_ended: bool = False
        self._store = store
        self._types = None if types is None else frozenset(types)
        self._notes_reading = notes_reading
        self._decode = decode
        self._is_closed = False
        self._waiting: deque[Event] = deque()
        self._watch: Watch | None = None
        # Where the store was read up to; what of it waits here is not returned yet.
        self._read_upto: Position | None = self.position
        readers.add(self)

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else "open"
        return f"<Subscription to {self.session_id}, {state}, at {self.position}>"

    def __aiter__(self) -> Self:
        return self

    async def __aenter__(self) -> Self:
        """Begin here: ``after="now"`` means this moment, otherwise that of the first read."""
        if self._is_at_now:
            await self._find_now()
        return self

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def __anext__(self) -> Event:
        """Return the next event, waiting for it.

        Raises:
            UnknownSessionError: There is no such session, or no longer.
            RuntimeError: Another task waits here.
            StoreError: The store failed; iterating again goes on at the same place.
        """
        while True:
            if self._is_closed:
                raise StopAsyncIteration
            if self._waiting:
                event = self._waiting.popleft()
                break
            if self.has_ended:
                self.close()
                raise StopAsyncIteration
            await self._read()
        self.position = event.position
        if self._notes_reading:
            self.note_read(event)
        return event

    def note_read(self, event: Event) -> None:
        """Note that the session was read up to an event, for the statistics."""
        self._readers.note(self.session_id, event.position.seq)

    def close(self) -> None:
        """End the iteration, one that waits now too; from any thread. Twice is harmless."""
        self._is_closed = True
        self._readers.remove(self)
        watch = self._watch
        if watch is not None:
            watch.ring()

    async def aclose(self) -> None:
        """Close it, and tell the store how far it got; if that fails, it is told later."""
        self.close()
        with suppress(StoreError):
            await self._readers.flush()

    def __del__(self) -> None:
        # One that was left with "break" counts as a reader no longer.
        self._readers.remove(self)

    async def _find_now(self) -> None:
        session = await self._store.get_session(self.session_id)
        self._is_at_now = False
        self.position = self._read_upto = session.position

    async def _read(self) -> None:
        """Take a page of the store, or wait for one."""
        if self._watch is not None:
            raise RuntimeError("another task reads here: give each task a subscription of its own")
        if self._is_at_now:
            await self._find_now()
        # Registered before the store is read: what is appended in between rings.
        with self._store.watch(self.session_id) as watch:
            self._watch = watch
            try:
                page = await self._store.read(self.session_id, after=self._read_upto, limit=_PAGE)
                if self._take(page):
                    # A reader that is always behind lets others run.
                    await checkpoint()
                elif page.state != "active":
                    self.has_ended = True
                elif not self._is_closed:
                    await watch.wait(self._store.reconcile)
            finally:
                self._watch = None

    def _take(self, page: Page) -> bool:
        """Queue what a page brings; tell whether it moved on."""
        before = self._read_upto
        if before is None:
            # From here on whatever is dropped before it was read is a gap.
            before = self._read_upto = Position(page.epoch, page.first - 1)
        elif _misses(before, page):
            gap = gap_event(
                self.session_id,
                page.epoch,
                asked=before,
                first=page.first,
                microseconds=page.records[0].at if page.records else int(time.time() * 1e6),
            )
            self._waiting.append(gap)
            self._read_upto = gap.position
        for record in page.records:
            position = Position(page.epoch, record.seq)
            self._read_upto = position
            if self._types is None or record.event_type in self._types:
                self._waiting.append(
                    Event(
                        position,
                        record.event_type,
                        record.at,
                        self.session_id,
                        record.body,
                        self._decode,
                    )
                )
        return self._read_upto != before


def _misses(after: Position, page: Page) -> bool:
    """Tell whether events that follow a position are gone, or were never what it means."""
    if after.epoch != page.epoch or after.seq > page.top:
        return True
    return after.seq + 1 < page.first
