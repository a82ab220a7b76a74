"""Read a session from a position on: what is there and what comes are the same read."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Literal, Self

import anyio

from callbackkit.buffer import Waiter, checkpoint, new_waiter
from callbackkit.errors import StoreError
from callbackkit.events import Event, Position
from callbackkit.sessions.readers import Readers
from callbackkit.sessions.tail import Entry, Tail
from callbackkit.stores.base import Page, Store
from callbackkit.wire.envelope import gap_event

__all__ = ["After", "Subscription", "gap_before", "read_after"]

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

    It keeps one position, and no queue of its own but for a page of what it reads behind the
    others: a reader that is slow costs nobody anything. Where events are no longer kept, a gap
    stands for them (:attr:`Event.is_gap`). Iteration ends when the session has ended and all was
    read, or when it is closed. Cancellation passes through and loses nothing. One task iterates at
    a time.

    Attributes:
        session_id: The session.
        kind: What it is read through, for the statistics.
        ttl: Seconds of idleness after which the session expires, but not while this is open.
        position: Behind what was returned last, at first what was given; ``None`` for nothing. A
            reader that comes back goes on from here.
        has_ended: The session has ended, and all of it was read.
        is_draining: The manager asks readers to go and come back elsewhere, or later.
    """

    __slots__ = (
        "__weakref__",
        "_decode",
        "_epoch",
        "_has_begun",
        "_is_at_now",
        "_is_closed",
        "_is_listed",
        "_is_poked",
        "_is_reading",
        "_notes_reading",
        "_queue",
        "_readers",
        "_seq",
        "_store",
        "_tail",
        "_types",
        "_waiter",
        "has_ended",
        "is_draining",
        "kind",
        "position",
        "session_id",
        "ttl",
    )

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
        self._is_closed = True
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
        # Where the store was read up to. What lies behind the tail waits in the queue.
        self._epoch: str | None = None if self.position is None else self.position.epoch
        self._seq = 0 if self.position is None else self.position.seq
        self._has_begun = self.position is not None
        self._queue: deque[Entry] | None = None
        self._is_reading = False
        self._is_listed = False
        self._is_poked = False
        self._waiter: Waiter | None = None
        self._tail = readers.add(self, decode)
        # After it was counted in: a drain that begins meanwhile tells it, or is seen here.
        self.is_draining: bool = readers.is_draining
        self._is_closed = False

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
        while not (found := self.take(1)):
            if self._is_closed:
                raise StopAsyncIteration
            if self.has_ended:
                self.close()
                raise StopAsyncIteration
            await self.more(timeout=self._store.reconcile)
        event = found[0].event
        if self._notes_reading:
            self.note_read(event)
        return event

    # Many at a time, for transports.

    def take(self, most: int = _PAGE) -> Sequence[Entry]:
        """Return what is there now, so many at most, without waiting; it counts as returned."""
        newest = self._tail.newest
        if newest is not None and newest.epoch == self._epoch and self._queue is None:
            # As a rule there is one event, or none: without the lock, and a list.
            if newest.seq == self._seq:
                return ()
            if newest.seq == self._seq + 1 and self._types is None and not self._is_closed:
                self._seq = newest.seq
                self.position = newest.event._position
                return (newest,)
        return self._take(most)

    def _take(self, most: int) -> Sequence[Entry]:
        if self._is_closed:
            return ()
        if self._queue:
            return self._take_queued(most)
        # Behind those that are not wanted others may follow.
        while self._has_begun and (found := self._tail.take(self._epoch, self._seq, most)):
            self._seq = found[-1].seq
            if self._types is not None:
                types = self._types
                found = [each for each in found if each.event._event_type in types]
            if found:
                self.position = found[-1].event._position
                return found
        return ()

    def _take_queued(self, most: int) -> Sequence[Entry]:
        assert self._queue is not None
        queue = self._queue
        found = [queue.popleft() for _ in range(min(most, len(queue)))]
        if not queue:
            self._queue = None
        self.position = found[-1].event._position
        return found

    async def begin(self) -> Position:
        """Find out where to begin, without waiting for events; return the position before it.

        Raises:
            UnknownSessionError: There is no such session, or no longer.
            StoreError: The store failed.
        """
        if self._is_at_now:
            await self._find_now()
        if self.position is None:
            if self._tail.is_behind:
                await self._tail.refresh()
            if not self._has_begun:
                await self._find_oldest()
        return self.position or Position(self._epoch or "", self._first_queued - 1)

    @property
    def _first_queued(self) -> int:
        return self._queue[0].seq if self._queue else self._seq + 1

    async def more(self, timeout: float | None = None) -> None:
        """Read, or wait for, what is not there yet; return when something may have changed.

        That is events to :meth:`take`, the end (:attr:`has_ended`), the closing, a
        :meth:`poke`; or nothing at all.

        Args:
            timeout: Seconds to wait, behind which the store is looked at; ``None`` for as long as
                it takes.

        Raises:
            UnknownSessionError: There is no such session, or no longer.
            RuntimeError: Another task waits here.
            StoreError: The store failed; going on goes on at the same place.
        """
        if self._is_reading:
            raise RuntimeError("another task reads here: give each task a subscription of its own")
        self._is_reading = True
        try:
            await self._more(timeout)
        finally:
            self._is_reading = False

    def pending(self) -> Awaitable[None] | None:
        """Return what to await where all was taken; ``None`` if :meth:`more` has to be called.

        The same as :meth:`more`, for those with no time for it, and for one who calls
        :meth:`close` in any case.
        """
        tail = self._tail
        if (
            self._seq != tail.top
            or self._queue is not None
            or self._epoch != tail.epoch
            or tail.state != "active"
            or self._is_poked
            or self._is_closed
        ):
            return None
        waiter = self._waiter
        if waiter is None or not waiter.renew():
            waiter = self._waiter = new_waiter()
        if not self._is_listed:
            tail.enlist(self)
        # Looked at last: another thread may have rung meanwhile.
        if tail.is_stale or self._seq != tail.top or self._is_poked or self._is_closed:
            return None
        return waiter.wait()

    def poke(self) -> None:
        """Have :meth:`more` return; from any thread."""
        self._is_poked = True
        self._wake()

    def read_again(self) -> None:
        """Read anew what was read and not returned: some of it may have been dropped."""
        if self._queue is not None:
            self._go_to(self.position or Position(self._epoch or "", self._first_queued - 1))
            self._queue = None

    def reconcile(self) -> None:
        """Have the store looked at, whether it rang or not."""
        self._tail.is_stale = True

    @property
    def looks_every(self) -> float:
        """Seconds after which who waits without a timeout should :meth:`reconcile`."""
        return self._store.reconcile

    @property
    def reached(self) -> Position | None:
        """Up to where it was read, what was not wanted too; ``None`` before it has begun."""
        return Position(self._epoch or "", self._seq) if self._has_begun else None

    @property
    def tail(self) -> Tail:
        """The newest events, shared by all readers of the session."""
        return self._tail

    @property
    def is_closed(self) -> bool:
        """It was closed."""
        return self._is_closed

    def note_read(self, event: Event) -> None:
        """Note that the session was read up to an event, for the statistics."""
        seq = event._position.seq
        tail = self._tail
        # One of many readers tells.
        if seq > tail.noted or event._position.epoch != tail.epoch:
            tail.noted = seq
            self._readers.note(self.session_id, seq)

    def close(self) -> None:
        """End the iteration, one that waits now too; from any thread. Twice is harmless."""
        if not self._is_closed:
            self._is_closed = True
            if self._is_listed:
                self._tail.delist(self)
            self._readers.remove(self, self._tail)
            self._wake()

    async def aclose(self) -> None:
        """Close it, and tell the store how far it got; if that fails, it is told later."""
        self.close()
        with suppress(StoreError):
            await self._readers.flush()

    def __del__(self) -> None:
        # One that was left with "break" counts as a reader no longer.
        if not self._is_closed:
            self._is_closed = True
            self._readers.remove(self, self._tail)

    # Reading and waiting.

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None:
            waiter.wake()

    async def _find_now(self) -> None:
        session = await self._store.get_session(self.session_id)
        self._go_to(session.position)
        self.position = session.position
        self._is_at_now = False

    async def _find_oldest(self) -> None:
        """Begin at the oldest event kept; what is dropped from now on, unread, is a gap."""
        tail = self._tail
        if tail.epoch is not None and tail.first <= tail.kept_from:
            # All there is is here.
            self._go_to(Position(tail.epoch, tail.kept_from - 1))
        else:
            await self._read_behind()

    @property
    def _place(self) -> Position | None:
        return Position(self._epoch or "", self._seq) if self._has_begun else None

    def _go_to(self, position: Position) -> None:
        self._epoch, self._seq = position.epoch, position.seq
        self._has_begun = True

    async def _more(self, timeout: float | None) -> None:
        tail = self._tail
        if self._is_at_now:
            await self._find_now()
        seen = tail.rings
        if tail.is_behind:
            await tail.refresh(self._place)
        if not self._has_begun:
            await self._find_oldest()
        elif not tail.has(self._epoch, self._seq):
            await self._catch_up()
        elif self._seq == tail.top and not tail.is_stale:
            if tail.state != "active":
                self.has_ended = True
            else:
                await self._wait(seen, timeout)

    async def _wait(self, seen: int, timeout: float | None) -> None:
        """Wait until the tail is rung, but not if it was since *seen*."""
        tail = self._tail
        waiter = self._waiter
        if waiter is None or not waiter.renew():
            waiter = self._waiter = new_waiter()
        if not self._is_listed:
            tail.enlist(self)
        try:
            # What rings from here on wakes the waiter; what rang before is looked for.
            if tail.rings != seen or self._is_poked or self._is_closed:
                return
            if timeout is None:
                await waiter.wait()
                return
            with anyio.move_on_after(timeout) as scope:
                await waiter.wait()
            if scope.cancelled_caught:
                tail.is_stale = True
        finally:
            self._is_poked = False
            if self._is_listed:
                tail.delist(self)

    async def _catch_up(self) -> None:
        """Have the tail begin here, if it begins a little later; else read on by oneself."""
        page = await self._tail.reach(Position(self._epoch or "", self._seq))
        if not self._tail.has(self._epoch, self._seq):
            await self._read_behind(page)

    async def _read_behind(self, page: Page | None = None) -> None:
        """Queue a page of the store: what follows is not in the tail."""
        before = Position(self._epoch or "", self._seq) if self._has_begun else None
        if page is None:
            page = await self._store.read(self.session_id, after=before, limit=_PAGE)
        if before is None:
            # From here on whatever is dropped before it was read is a gap.
            before = Position(page.epoch, page.first - 1)
            self._go_to(before)
        queue: deque[Entry] = deque()
        gap = gap_before(self.session_id, before, page)
        if gap is not None:
            queue.append(Entry(gap))
            self._go_to(gap.position)
        for record in page.records:
            position = Position(page.epoch, record.seq)
            self._seq = record.seq
            if self._types is None or record.event_type in self._types:
                event = Event(
                    position,
                    record.event_type,
                    record.at,
                    self.session_id,
                    record.body,
                    self._decode,
                )
                queue.append(Entry(event))
        if queue:
            self._queue = queue
        if not queue and not page.records:
            # The tail does not know of it yet.
            self._tail.is_stale = True
        # A reader that is always behind lets others run.
        await checkpoint()


def gap_before(session_id: str, after: Position, page: Page) -> Event | None:
    """Return the gap between a position and the page that was read from behind it.

    There is one if events that follow the position are gone, or were never what it means.
    """
    if after.epoch == page.epoch and page.first - 1 <= after.seq <= page.top:
        return None
    return gap_event(
        session_id,
        page.epoch,
        asked=after,
        first=page.first,
        microseconds=page.records[0].at if page.records else int(time.time() * 1e6),
    )
