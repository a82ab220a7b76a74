"""The port every store keeps: append in order, read after a position, owe deliveries.

A store holds sessions. A session is a log of records, numbered 1, 2, 3 ... in one *epoch*, and a
*cursor* into it: everything up to the cursor was delivered, given up on or expired. Where a
transport pushes (``pushes``), the cursor belongs to one *owed entry*, which falls due, is claimed
with a lease and settled; where clients read, :meth:`Store.touch` moves it.

Figures follow from the log and can't drift: each record carries its ``ordinal``, the number of
owed records up to it. ``sent`` is the ordinal of the newest record, ``queued`` what of it lies
behind the cursor, and ``delivered`` is ``sent - queued - failed - expired``.
"""

from __future__ import annotations

import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Final, Literal, NamedTuple, Self

import anyio
import attrs

from callbackkit.buffer import Waiter, new_waiter
from callbackkit.events import Position

__all__ = [
    "KEY_KEPT",
    "LETTER_KEPT",
    "MOST_ATTEMPTS",
    "Appended",
    "Attempt",
    "Claim",
    "Claims",
    "DeadLetter",
    "NewSession",
    "Page",
    "Record",
    "Retention",
    "SessionRecord",
    "SessionState",
    "Store",
    "Swept",
    "Totals",
    "Watch",
    "Watches",
    "delivery_id",
    "steady_time",
]

SessionState = Literal["active", "ended", "deleted"]

# Seconds an idempotency key is remembered, and a dead letter whose session is over.
KEY_KEPT: Final = 86_400.0
LETTER_KEPT: Final = 604_800.0
# Attempts a session remembers.
MOST_ATTEMPTS: Final = 100


# Values.


def _positive(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ValueError(f"{attribute.name} must be a number above 0, not {value!r}")


@attrs.frozen(kw_only=True)
class Retention:
    """How much of a session is kept; its newest event always is. ``None`` sets no bound.

    Events that a delivery still owes are exempt, up to ``Limits.max_pending`` of them.

    Attributes:
        max_events: Events.
        max_bytes: Bytes of their JSON.
        max_age: Seconds.

    Raises:
        ValueError: A bound that is not above 0.
    """

    max_events: int | None = attrs.field(default=10_000, validator=_positive)
    max_bytes: int | None = attrs.field(default=67_108_864, validator=_positive)
    max_age: float | None = attrs.field(default=86_400.0, validator=_positive)


class Record(NamedTuple):
    """An event as it is stored.

    Attributes:
        seq: Its number in the epoch of its session, from 1.
        at: Microseconds since 1970, UTC; higher than that of any record before it.
        event_type: Its type.
        body: The rest of it, as JSON in UTF-8, see :mod:`callbackkit.wire.envelope`.
        owed: The method of its session is to deliver it.
        ordinal: How many records up to here, this one included, are owed.
    """

    seq: int
    at: int
    event_type: str
    body: bytes
    owed: bool
    ordinal: int


class Appended(NamedTuple):
    """What an append gave.

    Attributes:
        epoch: The epoch of the log.
        record: The record.
        is_new: It was appended now, not by an earlier append with the same key.
    """

    epoch: str
    record: Record
    is_new: bool


@attrs.frozen(kw_only=True)
class NewSession:
    """What a session is created with.

    Attributes:
        id: Unguessable, and unused.
        token_hash: SHA-256 of its token.
        owner: Whose it is, for the application.
        config: What the client asked for, as JSON; may hold secrets.
        method: How it is delivered: the name of a transport, or of a way to read.
        pushes: A transport delivers it, so its events are owed until settled.
        unowed: Event types its transport is not to deliver.
        ttl: Seconds without an append or a touch after which it expires; ``None`` for never.
        retention: What is kept.
        max_pending: Owed events that are kept beyond the retention, and dead letters.
    """

    id: str
    token_hash: bytes = attrs.field(repr=False)
    owner: str | None = None
    config: bytes = attrs.field(default=b"{}", repr=False)
    method: str = "sse"
    pushes: bool = False
    unowed: tuple[str, ...] = ()
    ttl: float | None = None
    retention: Retention = Retention()
    max_pending: int = 10_000


@attrs.frozen(kw_only=True)
class SessionRecord:
    """A session as it stands.

    Attributes:
        id: Its id.
        token_hash: SHA-256 of its token.
        owner: Whose it is.
        config: What the client asked for, as JSON.
        method: How it is delivered.
        pushes: A transport delivers it.
        unowed: Event types its transport is not to deliver.
        state: ``"active"``; ``"ended"``, to be read for a while; ``"deleted"``, remembered for
            a while.
        created_at: Seconds since 1970.
        epoch: The epoch of its log.
        first: Number of the oldest record kept; ``top + 1`` if there is none.
        top: Number of the newest record ever appended; 0 for none.
        cursor: Number up to which all is delivered, failed or expired.
        sent: Owed records ever appended.
        delivered: Of those, delivered.
        failed: Dead letters' records.
        expired: Dropped unread.
        queued: None of these yet.
        retries: Attempts after the first ones.
    """

    id: str
    token_hash: bytes = attrs.field(repr=False)
    owner: str | None
    config: bytes = attrs.field(repr=False)
    method: str
    pushes: bool
    unowed: tuple[str, ...]
    state: SessionState
    created_at: float
    epoch: str
    first: int
    top: int
    cursor: int
    sent: int
    delivered: int
    failed: int
    expired: int
    queued: int
    retries: int

    @property
    def position(self) -> Position:
        """Where the newest event stands."""
        return Position(self.epoch, self.top)


@attrs.frozen
class Page:
    """Records that follow a position.

    Attributes:
        records: In order, without a hole between two of them.
        epoch: The epoch of the log.
        first: Number of the oldest record kept; ``top + 1`` if there is none.
        top: Number of the newest record.
        state: State of the session at the same moment.
    """

    records: Sequence[Record]
    epoch: str
    first: int
    top: int
    state: SessionState


@attrs.frozen(kw_only=True)
class Attempt:
    """One try to deliver.

    Attributes:
        delivery_id: Which delivery; the same for each try.
        number: From 1.
        at: When it began, seconds since 1970.
        duration: Seconds it took.
        events: How many it carried.
        error: What went wrong; ``""`` if nothing did.
    """

    delivery_id: str
    number: int
    at: float
    duration: float
    events: int
    error: str = ""


@attrs.frozen(kw_only=True)
class DeadLetter:
    """Events that could not be delivered, copied so that retention can't take them.

    Attributes:
        id: The id of their delivery.
        session_id: Their session.
        method: The transport that gave up.
        epoch: The epoch their positions are of.
        records: The events.
        reason: Why it gave up.
        attempts: How often it was tried.
        at: When it gave up, seconds since 1970.
        is_due: It is to be delivered again.
    """

    id: str
    session_id: str
    method: str
    epoch: str
    records: tuple[Record, ...] = attrs.field(repr=False)
    reason: str
    attempts: int
    at: float
    is_due: bool = False


@attrs.frozen(kw_only=True)
class Claim:
    """A right to deliver what a session owes, until its lease runs out.

    Attributes:
        session_id: The session.
        method: Its transport.
        config: Its configuration, as JSON.
        epoch: The epoch of its log.
        cursor: What is owed follows this number.
        attempts: Tries already made at what comes next.
        bound: Number of the last record of what comes next, if that was fixed: a batch that was
            tried once stays as it is.
        fence: Higher than that of any claim before it on the same thing; whoever holds a lower one
            is refused.
        letter: The dead letter to deliver again, instead of what follows the cursor.
    """

    session_id: str
    method: str
    config: bytes = attrs.field(repr=False)
    epoch: str
    cursor: int
    attempts: int
    bound: int | None
    fence: int
    letter: DeadLetter | None = None


@attrs.frozen
class Claims:
    """What could be claimed.

    Attributes:
        claims: The claims.
        next_in: Seconds until more falls due by itself, 0 if more is due now; ``None`` if nothing
            waits.
    """

    claims: Sequence[Claim]
    next_in: float | None


@attrs.frozen
class Swept:
    """What a sweep did.

    Attributes:
        sessions: Ids of sessions that can't be read any more.
        has_more: Another sweep would do more at once.
    """

    sessions: Sequence[str]
    has_more: bool


@attrs.frozen(kw_only=True)
class Totals:
    """Sums over all sessions; those of sessions that are gone stay in them.

    Attributes:
        sessions: Sessions that can be read now.
        active: Of those, not ended.
        sent: Owed records.
        delivered: Delivered.
        failed: In dead letters.
        expired: Dropped unread.
        queued: None of these yet.
        retries: Attempts after the first ones.
    """

    sessions: int = 0
    active: int = 0
    sent: int = 0
    delivered: int = 0
    failed: int = 0
    expired: int = 0
    queued: int = 0
    retries: int = 0


def delivery_id(session_id: str, epoch: str, seq: int) -> str:
    """Return the id of the delivery, and dead letter, that begins with a record."""
    return f"{session_id}_{epoch}_{seq}"


# The port.


class Store(ABC):
    """Sessions, their logs and what they owe.

    Every verb is atomic: cancelled or failed, it happened or it did not. All may be called from
    several tasks at once, and, where several processes share what is behind the store, from those.
    Errors of the backend are :exc:`~callbackkit.StoreError`. Every verb that takes a
    ``session_id`` raises :exc:`~callbackkit.UnknownSessionError` for one that there is not, and
    its subclass :exc:`~callbackkit.SessionDeletedError` while a deleted one is remembered.

    Attributes:
        reconcile: Seconds after which whoever waits for a wake looks by himself: how late it is
            noticed what another process did and no wake told of.
    """

    reconcile: float = 60.0

    @abstractmethod
    async def start(self) -> None:
        """Get ready; starting twice is harmless, and every verb does it if nobody did."""

    @abstractmethod
    async def aclose(self) -> None:
        """Let go of everything; what was promised is kept. Closing twice is harmless."""

    # Sessions.

    @abstractmethod
    async def create_session(
        self, new: NewSession, *, max_sessions: int | None = None
    ) -> SessionRecord:
        """Begin a session, with an epoch that no log ever had.

        Raises:
            LimitError: There are *max_sessions* that can be read already.
            ValueError: The id is taken.
        """

    @abstractmethod
    async def get_session(self, session_id: str) -> SessionRecord:
        """Return a session that is active or ended."""

    @abstractmethod
    async def sessions(
        self,
        *,
        state: SessionState | None = None,
        owner: str | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> Sequence[SessionRecord]:
        """Return sessions in the order of their ids, those after one, of a state or owner only.

        Without a *state* those that can be read.
        """

    @abstractmethod
    async def update_session(
        self, session_id: str, *, known: bytes, config: bytes, unowed: tuple[str, ...]
    ) -> SessionRecord:
        """Give a session another configuration, unless somebody else has done so meanwhile.

        What is claimed from now on is delivered by it; what was owed stays owed.

        Args:
            session_id: The session.
            known: The configuration that the other one was made of: where it is no longer that,
                nothing is changed.
            config: The other one, as JSON.
            unowed: Event types that its transport is not to deliver.

        Returns:
            The session as it stands then; its ``config`` tells whether it was changed.

        Raises:
            SessionEndedError: The session has ended.
        """

    @abstractmethod
    async def touch(self, reads: Mapping[str, int | None]) -> None:
        """Tell that sessions are in use now, and up to which number they were read.

        The cursor of a session that does not push moves up to that number, never back. Sessions
        that are gone are passed over.
        """

    @abstractmethod
    async def end_session(self, session_id: str, *, linger: float) -> SessionRecord:
        """Make a session read-only, and wake its readers; ending twice is harmless.

        It is deleted *linger* seconds later, but not while a delivery is owed.
        """

    @abstractmethod
    async def delete_session(self, session_id: str, *, linger: float) -> None:
        """Drop a session with its log, dead letters and keys now; wake its readers.

        For *linger* seconds it is told apart from one that never was.
        """

    # The log.

    @abstractmethod
    async def append(
        self,
        session_id: str,
        event_type: str,
        body: bytes,
        *,
        owed: bool = True,
        key: str | None = None,
    ) -> Appended:
        """Append an event; when this returns, it is kept, in the order of the returns of one task.

        Drops what the retention allows no longer, and wakes who waits. Owed records are exempt
        from the retention while at most ``max_pending`` are owed; the oldest ones beyond become
        dead letters; whoever holds a claim on one of these is refused, and tries at what is left
        begin anew. Where clients read, records that are dropped before the cursor got there count
        as expired.

        Args:
            session_id: The session.
            event_type: Type of the event.
            body: The rest of it.
            owed: The method of the session is to deliver it.
            key: Remembered for :data:`KEY_KEPT` seconds: appending again with it gives the first
                record back and appends nothing.

        Raises:
            SessionEndedError: The session has ended (a key that is known is answered still).
            IdempotencyError: The key came with another event type or body before.
        """

    @abstractmethod
    async def read(
        self,
        session_id: str,
        *,
        after: Position | None = None,
        limit: int = 100,
        owed: bool = False,
    ) -> Page:
        """Return records that follow a position.

        A position of another epoch, or beyond the newest record, or older than the oldest one
        kept, reads from the oldest one kept; so does ``None``. Whoever asked sees from the page
        that it is so.

        Args:
            session_id: The session.
            after: Position seen last.
            limit: Most records, from 1.
            owed: Only those that are owed; there are holes between them then.
        """

    @abstractmethod
    async def tail(self, session_id: str, *, limit: int) -> Page:
        """Return the newest records, so many at most, in order."""

    @abstractmethod
    def watch(self, session_id: str | None) -> Watch:
        """Wait for a session to change, or, with ``None``, for when deliveries fall due.

        Register first, then read, then wait: so nothing is missed. Whether the session exists is
        left to the read.
        """

    @abstractmethod
    async def trim(self, session_id: str, *, before: int) -> int:
        """Drop the records with lower numbers, but none that a transport is still to deliver.

        Returns:
            How many were dropped.
        """

    @abstractmethod
    async def sweep(self, *, limit: int = 100) -> Swept:
        """Do what time asks for, on so many sessions at most.

        Drops records older than their retention allows; removes active sessions whose ``ttl`` is
        over and ended ones whose linger is, but none that owes a delivery; forgets deleted ones
        whose linger is over, keys, and endpoints that nobody saved for :data:`LETTER_KEPT`. A
        session removed by time is unknown at once, unless it has dead letters: then it is
        ``"deleted"``, and they are kept, listed and redriven for :data:`LETTER_KEPT` seconds. Due
        times that lie in the future because the clock was turned back are moved along with it.
        """

    # Deliveries.

    @abstractmethod
    async def claim(self, *, methods: Collection[str], limit: int, lease: float) -> Claims:
        """Claim what is due: entries of sessions, and dead letters to be redriven.

        An entry is due when something is owed, no delay of a retry runs and no lease holds. What
        is claimed is not due again before *lease* seconds.
        """

    @abstractmethod
    async def renew(self, claim: Claim, *, lease: float, bound: int | None = None) -> Claim:
        """Hold a claim for *lease* seconds from now, and fix the *bound* of what comes next.

        Raises:
            LeaseLostError: Somebody else has claimed it since, or it is settled.
        """

    @abstractmethod
    async def ack(
        self, claim: Claim, upto: int, attempt: Attempt | None, *, lease: float | None = None
    ) -> Claim | None:
        """Note that everything up to a number was delivered.

        What was kept for the delivery only, beyond the retention, is dropped.

        Args:
            claim: The claim; the dead letter of it, if it has one, is dropped.
            upto: Number of the last record delivered.
            attempt: How it went, to be remembered.
            lease: Seconds to hold on if more is owed; ``None`` lets go in any case.

        Returns:
            The claim on what comes next, or ``None`` if it was let go.

        Raises:
            LeaseLostError: As for :meth:`renew`; nothing is changed.
        """

    @abstractmethod
    async def retry(
        self, claim: Claim, *, delay: float, attempt: Attempt | None, bound: int | None = None
    ) -> None:
        """Let go of a claim until *delay* seconds have passed; no lease is held meanwhile.

        Rings whoever watches what is due, as a claim now tells of an earlier time.

        Args:
            claim: The claim.
            delay: Seconds.
            attempt: The try that failed, which counts; ``None`` if there was none.
            bound: Number of the last record of what was tried.

        Raises:
            LeaseLostError: As for :meth:`renew`.
        """

    @abstractmethod
    async def park(
        self,
        claim: Claim,
        *,
        upto: int,
        letter_id: str,
        reason: str,
        attempt: Attempt | None,
        lease: float | None = None,
    ) -> Claim | None:
        """Copy the owed records up to a number into a dead letter, and go on behind them.

        The dead letter of the claim, if it has one, stays dead. Otherwise as :meth:`ack`. A
        session keeps ``max_pending`` dead letters: the oldest ones beyond are let go of, whoever
        made them, and their records count as failed for ever.
        """

    @abstractmethod
    async def dead_letters(
        self, session_id: str, *, after: str | None = None, limit: int = 100
    ) -> Sequence[DeadLetter]:
        """Return dead letters, the oldest first, those after the one with an id."""

    @abstractmethod
    async def redrive(self, session_id: str, ids: Collection[str] | None = None) -> int:
        """Have dead letters, all or those named, delivered again, with their tries counted anew.

        Returns:
            How many.
        """

    @abstractmethod
    async def attempts(self, session_id: str) -> Sequence[Attempt]:
        """Return the last :data:`MOST_ATTEMPTS` tries, the oldest first."""

    @abstractmethod
    async def load_endpoint(self, endpoint: str) -> tuple[int, bytes]:
        """Return the version and the state of an endpoint; ``(0, b"")`` for one never saved."""

    @abstractmethod
    async def save_endpoint(self, endpoint: str, version: int, state: bytes) -> bool:
        """Save the state of an endpoint if its version is still this one; tell whether."""

    # All of it.

    @abstractmethod
    async def totals(self) -> Totals:
        """Return the sums over all sessions."""

    @abstractmethod
    async def health(self) -> None:
        """Return if the store can read and write.

        Raises:
            StoreUnavailableError: It can't.
        """


# Waking.


class Watch:
    """Something to wait on until a session may have changed; a wake is a hint, no more.

    For ``with``, and for one task::

        with store.watch(session_id) as watch:
            while True:
                page = await store.read(session_id, after=position)
                ...
                await watch.wait(store.reconcile)

    Attributes:
        on_ring: Called at each ring, in whatever thread rings, with the number of the newest record
            if the ring is for that alone, else with ``None``.
    """

    __slots__ = ("_is_rung", "_topic", "_waiter", "_watches", "on_ring")

    def __init__(self, watches: Watches, topic: str | None) -> None:
        self._watches = watches
        self._topic = topic
        self._is_rung = False
        self._waiter: Waiter | None = None
        self.on_ring: Callable[[int | None], object] | None = None

    def __enter__(self) -> Self:
        self._watches.add(self._topic, self)
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._watches.remove(self._topic, self)

    def ring(self, top: int | None = None) -> None:
        """Have whoever waits look again; from any thread.

        Args:
            top: Number of the newest record, if nothing else has changed since this process
                rang last.
        """
        self._is_rung = True
        # Looked at once: another thread may just be taking it away.
        on_ring = self.on_ring
        if on_ring is not None:
            on_ring(top)
        waiter = self._waiter
        if waiter is not None:
            waiter.wake()

    async def wait(self, timeout: float | None) -> bool:
        """Wait for a ring since the last time, *timeout* seconds at most; tell if there was one."""
        if not self._is_rung:
            waiter = self._waiter = new_waiter()
            try:
                # Looked at again: a ring between the two lines above found no waiter.
                if not self._is_rung:
                    with anyio.move_on_after(timeout):
                        await waiter.wait()
            finally:
                self._waiter = None
        was_rung, self._is_rung = self._is_rung, False
        return was_rung


class Watches:
    """The watches of one process on one store, by session; ``None`` stands for what is due."""

    def __init__(self) -> None:
        # Re-entrant: a finalizer may ring while the lock is held.
        self._lock = threading.RLock()
        self._by_topic: dict[str | None, list[Watch]] = {}

    def __len__(self) -> int:
        return len(self._by_topic)

    @property
    def topics(self) -> list[str | None]:
        """What somebody watches now."""
        with self._lock:
            return list(self._by_topic)

    def watch(self, topic: str | None) -> Watch:
        """Return a watch that begins with its ``with``."""
        return Watch(self, topic)

    def add(self, topic: str | None, watch: Watch) -> None:
        """Have a watch rung from now on."""
        with self._lock:
            self._by_topic.setdefault(topic, []).append(watch)

    def remove(self, topic: str | None, watch: Watch) -> None:
        """Ring a watch no longer."""
        with self._lock:
            watching = self._by_topic.get(topic, [])
            if watch in watching:
                watching.remove(watch)
            if not watching:
                self._by_topic.pop(topic, None)

    def ring(self, topic: str | None, top: int | None = None) -> None:
        """Ring the watches of one topic, see :meth:`Watch.ring`; from any thread."""
        if topic in self._by_topic:
            with self._lock:
                watching = list(self._by_topic.get(topic, ()))
            for watch in watching:
                watch.ring(top)

    def ring_all(self) -> None:
        """Ring every watch."""
        for topic in self.topics:
            self.ring(topic)


# Time.


# Called for each step of a delivery, so without a function of ours in between. On Linux the clock
# that goes on while the machine is suspended, which the monotonic one does not.
_uptime: Callable[[], float] = (
    partial(time.clock_gettime, time.CLOCK_BOOTTIME) if sys.platform == "linux" else time.monotonic
)
_BEGAN: Final = time.time() - _uptime()


def steady_time() -> float:
    """Return seconds since 1970 that pass evenly, whatever is done to the clock of the machine.

    Leases, retries and retention go by it: the clock being set while this process runs neither
    makes them early nor late.
    """
    return _BEGAN + _uptime()
