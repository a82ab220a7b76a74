"""The newest events of a session that is read here, shared by all who read it."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from callbackkit.buffer import Waiter, _AsyncioWaiter, checkpoint, new_waiter
from callbackkit.events import Event, Position
from callbackkit.stores.base import Page, Record, SessionState, Store, Watch

if TYPE_CHECKING:
    from callbackkit.sessions.subscription import Subscription

__all__ = ["Entry", "Tail"]

# Kept of one session; its newest event always is. Whoever is further behind reads the store. While
# nobody is behind there are few: each is some objects that the garbage collector looks at, and with
# a thousand sessions it stops the process for a tenth of a second to look at a million of them.
_FEW_ENTRIES: Final = 4
_MOST_ENTRIES: Final = 128
_MOST_BYTES: Final = 131_072
# Read from the store at once.
_PAGE: Final = 100
# How often a reader waits in vain for what another one reads, before it reads by itself.
_MOST_TURNS: Final = 3


class Entry:
    """An event, and what transports have made of it: once, for all their clients.

    Attributes:
        event: The event.
        epoch: The epoch of its position.
        seq: The number in it.
        sse: What SSE sends of it, an ASGI message; ``None`` until the first asks.
        text: What a WebSocket sends of it, likewise.
    """

    __slots__ = ("epoch", "event", "seq", "sse", "text")

    def __init__(self, event: Event) -> None:
        self.event: Event = event
        self.epoch: str = event._position.epoch
        self.seq: int = event._position.seq
        self.sse: MutableMapping[str, Any] | None = None
        self.text: MutableMapping[str, Any] | None = None


class Tail:
    """The newest events of one session, as long as somebody here reads it.

    What is emitted in this process is put in as it is stored, and the store is not read for it.
    What others emit is read from the store, once for all readers, when the store rings. A ring
    says how far the log goes: so it is known whether what was put in is all.

    Threads that emit, that ring and that read may be different ones; ``_lock`` guards what they
    share.

    Args:
        store: Where the session is.
        session_id: The session.
        decode: Reads JSON, for its events.

    Attributes:
        is_stale: The store may hold more than this, or the state may be another.
        epoch: The epoch of its events; ``None`` before the store was read.
        first: Number of the oldest event in here; ``top + 1`` for none.
        top: Number of the newest event.
        newest: That event, if there is one in here.
        kept_from: Number of the oldest event in the store, when that was read last.
        state: The state of the session then.
        rings: How often readers were woken; to see that it happened since.
        noted: Number up to which it is noted as read.
        readers: How many read it; whoever counts them closes it after the last one.
        joined: What SSE sends of several entries, with the first and the last of them.
    """

    __slots__ = (
        "_bytes",
        "_decode",
        "_entries",
        "_expected",
        "_gate",
        "_heard",
        "_listed",
        "_lock",
        "_session_id",
        "_store",
        "_watch",
        "epoch",
        "first",
        "is_stale",
        "joined",
        "kept_from",
        "newest",
        "noted",
        "readers",
        "rings",
        "state",
        "top",
    )

    def __init__(self, store: Store, session_id: str, decode: Callable[[bytes], Any]) -> None:
        self._store = store
        self._session_id = session_id
        self._decode = decode
        # Re-entrant: garbage collection may end a subscription while it is held.
        self._lock = threading.RLock()
        self._entries: list[Entry] = []
        self._bytes = 0
        self._watch: Watch | None = None
        self._listed: deque[Subscription] = deque()
        # Who waits for somebody else's reading of the store; None while nobody reads.
        self._gate: deque[Waiter] | None = None
        # Appends of this process that go on, and how far the log goes by what was rung meanwhile.
        self._expected = 0
        self._heard = 0
        self.is_stale: bool = True
        self.epoch: str | None = None
        self.first: int = 1
        self.top: int = 0
        self.newest: Entry | None = None
        self.kept_from: int = 1
        self.state: SessionState = "active"
        self.rings: int = 0
        self.noted: int = -1
        self.readers: int = 0
        self.joined: tuple[Entry, Entry, MutableMapping[str, Any]] | None = None

    def __repr__(self) -> str:
        return f"<Tail of {self._session_id}, {len(self._entries)} events up to {self.top}>"

    # Who reads.

    def close(self) -> None:
        """Have the store ring no longer; nobody reads this any more."""
        with self._lock:
            watch, self._watch = self._watch, None
        if watch is not None:
            _end_watch(watch)

    def enlist(self, reader: Subscription) -> None:
        """Have a reader woken at the next ring."""
        reader._is_listed = True
        self._listed.append(reader)

    def delist(self, reader: Subscription) -> None:
        """Have a reader woken no longer."""
        reader._is_listed = False
        try:
            self._listed.remove(reader)
        except ValueError:
            # Somebody is just waking it.
            return

    def wake(self) -> None:
        """Wake who is enlisted; from any thread."""
        self.rings += 1
        listed = self._listed
        loop = asyncio._get_running_loop()
        # Who enlists meanwhile has seen what this is for.
        for _ in range(len(listed)):
            try:
                reader = listed.popleft()
            except IndexError:
                return
            reader._is_listed = False
            waiter = reader._waiter
            if type(waiter) is _AsyncioWaiter and waiter._loop is loop:
                # What its wake() does; of a hundred readers, a tenth of the time of an event.
                if not waiter._future.done():
                    waiter._future.set_result(None)
            elif waiter is not None:
                waiter.wake()

    # What is there.

    def take(self, epoch: str | None, seq: int, most: int) -> Sequence[Entry] | None:
        """Return what follows a position, so many entries at most; ``None`` if that is not here."""
        with self._lock:
            if seq < self.first - 1 or seq > self.top or epoch != self.epoch or epoch is None:
                return None
            begin = seq + 1 - self.first
            return self._entries[begin : begin + most]

    def has(self, epoch: str | None, seq: int) -> bool:
        """Tell whether what follows a position is here."""
        return epoch is not None and epoch == self.epoch and self.first - 1 <= seq <= self.top

    def forget(self, before: int) -> None:
        """Drop the events with lower numbers."""
        with self._lock:
            self._drop(max(min(before, self.top + 1) - self.first, 0))
            self.joined = None
            if not self._entries:
                self.newest = None
            self.kept_from = max(self.kept_from, min(before, self.top + 1))

    # What this process appends.

    def expect(self) -> None:
        """Note that an append begins: until it is settled its ring wakes nobody."""
        with self._lock:
            self._expected += 1

    def offer(self, event: Event) -> None:
        """Put in an event that was stored, if it is the next one, and wake the readers."""
        position = event._position
        with self._lock:
            if position.epoch == self.epoch and position.seq <= self.top:
                return
            if position.epoch == self.epoch and position.seq == self.top + 1:
                self._put(event)
                # All of them wait: none is behind, but by this one.
                is_followed = len(self._listed) == self.readers
                self._trim(_FEW_ENTRIES if is_followed else _MOST_ENTRIES)
            else:
                self.is_stale = True
        self.wake()

    def settle(self) -> None:
        """Note that an append that was expected has ended."""
        with self._lock:
            self._expected -= 1
            if self._expected or self._heard <= self.top:
                return
            self.is_stale = True
        self.wake()

    def _on_ring(self, top: int | None) -> None:
        with self._lock:
            if top is None:
                self.is_stale = True
            elif top <= self.top:
                return
            elif self._expected:
                self._heard = max(self._heard, top)
                return
            else:
                self.is_stale = True
        self.wake()

    # What the store has.

    async def refresh(self, begin: Position | None = None) -> None:
        """Read from the store what is new; of several who ask one reads.

        Args:
            begin: Where who asks goes on: the first reading begins there, if that is near the end.

        Raises:
            UnknownSessionError: There is no such session, or no longer.
            StoreError: The store failed.
        """
        while self.is_behind:
            gate, is_mine = self._come_to_gate()
            if is_mine:
                await self._read(gate, begin)
                return
            await self._wait_for(gate)

    async def reach(self, begin: Position) -> Page | None:
        """Read from the store what is missing between a position and here, if that is little.

        Of several clients that come back at once, each from a little earlier, few read.

        Returns:
            What was read but is too much to be held, or has lost some; ``None`` otherwise.

        Raises:
            UnknownSessionError: There is no such session, or no longer.
            StoreError: The store failed.
        """
        turns = 0
        while self._is_near(begin) and turns < _MOST_TURNS:
            first = self.first
            gate, is_mine = self._come_to_gate()
            if is_mine:
                try:
                    most = first - 1 - begin.seq
                    page = await self._store.read(self._session_id, after=begin, limit=most)
                    return None if self._put_before(page) else page
                finally:
                    self._open(gate)
            await self._wait_for(gate)
            # What others read was of no use, and might be again.
            turns += self.first >= first
        return None

    @property
    def is_behind(self) -> bool:
        """The store has to be read, or is just being read for the first time."""
        return self.is_stale or self.epoch is None

    def _is_near(self, begin: Position) -> bool:
        return begin.epoch == self.epoch and 0 < self.first - 1 - begin.seq <= _PAGE

    async def _wait_for(self, gate: deque[Waiter]) -> None:
        waiter = new_waiter()
        gate.append(waiter)
        # Looked at again: it may have been opened in another thread meanwhile.
        if self._gate is gate:
            await waiter.wait()

    def _open(self, gate: deque[Waiter]) -> None:
        self._gate = None
        while gate:
            gate.popleft().wake()

    def _come_to_gate(self) -> tuple[deque[Waiter], bool]:
        """Return the gate, and whether it is for who asks to read and to open it then."""
        with self._lock:
            gate = self._gate
            if gate is not None:
                return gate, False
            gate = self._gate = deque[Waiter]()
            return gate, True

    async def _read(self, gate: deque[Waiter], begin: Position | None = None) -> None:
        before = self.top
        try:
            self._begin_watch()
            # Before it is read: what rings meanwhile makes it stale again.
            self.is_stale = False
            if self.epoch is None:
                page = await self._first_page(begin)
            else:
                after = Position(self.epoch, before)
                page = await self._store.read(self._session_id, after=after, limit=_PAGE)
            self._take_page(page, before)
            if self.top != before:
                # Where more comes than can be read, others run all the same.
                await checkpoint()
        except BaseException:
            self.is_stale = True
            raise
        finally:
            self._open(gate)
            self.wake()

    async def _first_page(self, begin: Position | None) -> Page:
        """Return what follows where the first reader goes on, or the end of the log."""
        if begin is not None:
            page = await self._store.read(self._session_id, after=begin, limit=_PAGE)
            is_there = page.epoch == begin.epoch and page.first - 1 <= begin.seq <= page.top
            if is_there and page.top - begin.seq == len(page.records):
                # One who has seen all holds nothing in memory.
                return page
        return await self._store.tail(self._session_id, limit=2 * _FEW_ENTRIES)

    def _begin_watch(self) -> None:
        """Have the store ring, from before it is read."""
        with self._lock:
            if self._watch is not None or not self.readers:
                return
            watch = self._watch = self._store.watch(self._session_id)
            watch.on_ring = self._on_ring
        # Without the lock: a finalizer that wants it may run where the store holds its own.
        watch.__enter__()
        if not self.readers:
            # The last one has left meanwhile.
            self._watch = None
            _end_watch(watch)

    def _take_page(self, page: Page, asked: int) -> None:
        """Put in what was read from behind a number; more may have been put in meanwhile."""
        with self._lock:
            self.state = page.state
            self.kept_from = page.first
            if self.epoch is None:
                self.epoch = page.epoch
                self._restart(page.records[0].seq if page.records else page.top + 1)
            elif page.epoch != self.epoch or page.top < asked:
                # Another log: its end is to be read.
                self.epoch = None
                self.noted = -1
                self._restart(1)
                self.is_stale = True
                return
            for record in page.records:
                if record.seq > self.top:
                    if record.seq != self.top + 1:
                        # What was in between is no longer kept.
                        self._restart(record.seq)
                    self._put(self._event(record))
            if not page.records and page.top > self.top:
                self._restart(page.top + 1)
            if page.top > self.top:
                self.is_stale = True
            self._trim()

    def _event(self, record: Record) -> Event:
        assert self.epoch is not None
        return Event(
            Position(self.epoch, record.seq),
            record.event_type,
            record.at,
            self._session_id,
            record.body,
            self._decode,
        )

    def _put_before(self, page: Page) -> bool:
        """Put in what was read from before what is here, unless it is much, or some is gone."""
        with self._lock:
            # Some may have been cleared since they were read.
            records = [each for each in page.records if self.kept_from <= each.seq < self.first]
            size = self._bytes + sum(len(each.body) for each in records)
            is_whole = bool(records) and records[-1].seq == self.first - 1
            if not is_whole or page.epoch != self.epoch or size > 2 * _MOST_BYTES:
                return False
            self._entries[:0] = [Entry(self._event(each)) for each in records]
            self._bytes = size
            self.first = records[0].seq
            self.newest = self._entries[-1]
            return True

    # Called with the lock held.

    def _put(self, event: Event) -> None:
        entry = Entry(event)
        self._entries.append(entry)
        self._bytes += len(event._body)
        self.newest = entry
        self.top = entry.seq

    def _restart(self, first: int) -> None:
        self._entries.clear()
        self._bytes = 0
        self.joined = None
        self.newest = None
        self.first = first
        self.top = first - 1

    def _trim(self, most: int = _MOST_ENTRIES) -> None:
        # Twice as much is let come, then half of it let go of: dropping moves what stays.
        entries = self._entries
        if len(entries) <= 2 * most and self._bytes <= 2 * _MOST_BYTES:
            return
        kept, size = 1, len(entries[-1].event._body)
        while kept < min(len(entries), most):
            size += len(entries[-kept - 1].event._body)
            if size > _MOST_BYTES:
                break
            kept += 1
        self._drop(len(entries) - kept)

    def _drop(self, count: int) -> None:
        self._bytes -= sum(len(each.event._body) for each in self._entries[:count])
        del self._entries[:count]
        self.first += count


def _end_watch(watch: Watch) -> None:
    watch.on_ring = None
    watch.__exit__(None, None, None)
