"""What happens in all sessions, gathered as long as somebody wants to see it."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

import anyio
from anyio.abc import TaskStatus

from callbackkit.buffer import Log, Reader, Waiter, checkpoint, new_waiter
from callbackkit.errors import LimitError, StoreUnavailableError, UnknownSessionError
from callbackkit.events import Event, Position
from callbackkit.sessions.subscription import gap_before
from callbackkit.stores.base import Page, SessionRecord, Store, Watch, Watches

if TYPE_CHECKING:
    from callbackkit.sessions.firehose import Firehose

__all__ = ["Pump"]

logger: logging.Logger = logging.getLogger("callbackkit.sessions")

# Seconds after which whoever waits looks by himself: a wake is a hint, no more.
_LOOK_AGAIN: Final = 5.0
# Sessions, and events of one, that are read at once.
_SESSIONS: Final = 200
_PAGE: Final = 100
# What is kept for those who read slowly, all of them together.
_MOST_EVENTS: Final = 10_000
_MOST_BYTES: Final = 16_777_216


class Pump:
    """Reads what is new in any session, once for all who follow it; idle while nobody does.

    It knows of each session how far it was read. This process tells which sessions it appends to;
    what others append is found by looking at all sessions now and then.

    Args:
        store: Where the sessions are.
        decode: Reads JSON, for the events.
        max_readers: Followers at a time.

    Attributes:
        look_every: Seconds between two looks at what other processes did.
    """

    def __init__(self, store: Store, decode: Callable[[bytes], Any], max_readers: int) -> None:
        self._store = store
        self._decode = decode
        self._max_readers = max_readers
        self.look_every: float = 1.0
        # Re-entrant: a follower may be collected while it is held, and a signal may come.
        self._lock = threading.RLock()
        self._open: weakref.WeakSet[Firehose] = weakref.WeakSet()
        self._doors = Watches()
        self._log = _new_log()
        self._is_running = False
        # What is appended here is of interest: the sessions, and the epochs of their logs.
        self._is_wanted = False
        self._marked: dict[str, str] = {}
        # How far each session was read; None before the first look.
        self._known: dict[str, Position] | None = None
        self._waiting: list[Waiter] = []
        self._failures = 0
        self._failure: Exception | None = None

    # Who follows.

    def add(self, firehose: Firehose) -> Reader[Event]:
        """Count a follower in, and return what it reads from now on.

        Raises:
            LimitError: There are ``max_readers``.
            RuntimeError: The manager is not running.
        """
        with self._lock:
            if not self._is_running:
                raise RuntimeError("firehose needs a running manager: async with manager: ...")
            if len(self._open) >= self._max_readers:
                raise LimitError("max_readers", self._max_readers, "readers of all sessions")
            self._open.add(firehose)
            self._is_wanted = True
            reader = self._log.reader(overflow="error", from_now=True)
        self._doors.ring(None)
        return reader

    def remove(self, firehose: Firehose) -> None:
        """Count a follower out."""
        with self._lock:
            self._open.discard(firehose)
        self._doors.ring(None)
        # It may wait itself until all is ready.
        self._wake()

    async def ready(self, firehose: Firehose) -> None:
        """Wait until what others append from now on is found too, or a follower is counted out.

        Raises:
            StoreUnavailableError: The store failed meanwhile.
        """
        failures = self._failures
        while self._known is None and firehose in self._open:
            if self._failures != failures:
                raise StoreUnavailableError("the sessions can't be read now") from self._failure
            waiter = new_waiter()
            with self._lock:
                self._waiting.append(waiter)
            # Looked at again: something may have happened in another thread.
            if self._known is None and firehose in self._open and self._failures == failures:
                with anyio.move_on_after(_LOOK_AGAIN):
                    await waiter.wait()

    def end_all(self) -> None:
        """End every follower; others may come. From any thread, and from a signal."""
        with self._lock:
            firehoses = list(self._open)
        for each in firehoses:
            each.close()

    # What this process does, in any thread.

    def mark(self, event: Event) -> None:
        """Note that an event was stored by this process."""
        if not self._is_wanted:
            return
        with self._lock:
            self._marked[event.session_id] = event.position.epoch
        self._doors.ring(None)

    def put(self, event: Event) -> None:
        """Pass on an event that stands in no session."""
        if self._is_wanted:
            self._log.append(event)

    # Its life.

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Pass on what happens, until cancelled."""
        self._is_running = True
        with self._doors.watch(None) as door:
            task_status.started()
            try:
                while True:
                    if self._rest():
                        await door.wait(_LOOK_AGAIN)
                    else:
                        await self._follow(door)
            finally:
                self._is_running = False
                self.end_all()
                self._rest()

    def _rest(self) -> bool:
        """Forget all if nobody follows; tell whether that is so."""
        with self._lock:
            if len(self._open):
                return False
            self._is_wanted = False
            self._marked = {}
            self._known = None
            self._log = _new_log()
            return True

    async def _follow(self, door: Watch) -> None:
        """Look at all sessions, and then at those that this process appends to."""
        began = time.monotonic()
        try:
            await self._look_at_all()
            # What looking takes is paused for as well: it never takes more than half of the time.
            ended = time.monotonic()
            until = ended + max(self.look_every, ended - began)
            while len(self._open):
                await self._look_at_marked(until)
                left = until - time.monotonic()
                if left <= 0:
                    break
                await door.wait(left)
        except Exception as error:
            self._failure = error
            self._failures += 1
            self._wake()
            logger.exception(
                "what happens in all sessions can't be read; trying again",
                extra={"store": repr(self._store)},
            )
            await anyio.sleep(self.look_every)

    def _wake(self) -> None:
        with self._lock:
            waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            waiter.wake()

    # Looking.

    async def _look_at_all(self) -> None:
        is_first = self._known is None
        known = {} if self._known is None else self._known
        seen: set[str] = set()
        last: str | None = None
        while True:
            page = await self._store.sessions(after=last, limit=_SESSIONS)
            for session in page:
                seen.add(session.id)
                if is_first:
                    known[session.id] = session.position
                elif _has_news(session, known):
                    await self._read(session.id, known)
            if len(page) < _SESSIONS:
                break
            last = page[-1].id
            await checkpoint()
        for session_id in known.keys() - seen:
            del known[session_id]
        self._known = known
        self._wake()

    async def _look_at_marked(self, until: float) -> None:
        known = self._known
        # Where more is always marked, others' sessions have their turn all the same.
        while self._marked and known is not None and time.monotonic() < until and len(self._open):
            with self._lock:
                session_id = next(iter(self._marked))
                epoch = self._marked.pop(session_id)
            # One that was not there at the first look: all of it is new.
            known.setdefault(session_id, Position(epoch, 0))
            await self._read(session_id, known)
            await checkpoint()

    async def _read(self, session_id: str, known: dict[str, Position]) -> None:
        """Pass on what is new in a session; what comes meanwhile is left for the next time."""
        goal: int | None = None
        while True:
            after = known[session_id]
            try:
                page = await self._store.read(session_id, after=after, limit=_PAGE)
            except UnknownSessionError:
                del known[session_id]
                return
            for event in self._events(session_id, after, page):
                self._log.append(event)
                known[session_id] = event.position
            goal = page.top if goal is None else goal
            if not page.records or known[session_id].seq >= goal:
                return
            await checkpoint()

    def _events(self, session_id: str, after: Position, page: Page) -> Iterator[Event]:
        gap = gap_before(session_id, after, page)
        if gap is not None:
            yield gap
        for record in page.records:
            position = Position(page.epoch, record.seq)
            yield Event(
                position, record.event_type, record.at, session_id, record.body, self._decode
            )


def _has_news(session: SessionRecord, known: dict[str, Position]) -> bool:
    before = known.setdefault(session.id, Position(session.epoch, 0))
    return before != session.position


def _new_log() -> Log[Event]:
    return Log(max_items=_MOST_EVENTS, max_bytes=_MOST_BYTES, size=_size)


def _size(event: Event) -> int:
    return len(event.body)
