"""One session of a store in memory: its log, its cursor and what it owes."""

from __future__ import annotations

import math
from collections import deque
from typing import NamedTuple

import attrs

from callbackkit.stores.base import (
    LETTER_KEPT,
    Attempt,
    Claim,
    DeadLetter,
    NewSession,
    Record,
    SessionRecord,
    SessionState,
)
from callbackkit.stores.memory_log import Log

__all__ = ["Known", "Letter", "Owed", "Session"]


class Known(NamedTuple):
    """What is remembered of an event that came with an idempotency key.

    Attributes:
        until: When it is forgotten.
        record: The record, without its body.
        digest: Of the body.
    """

    until: float
    record: Record
    digest: bytes


class Session:
    """A session; its store holds the lock.

    Attributes:
        cursor: Number up to which all is settled.
        settled: Ordinal of the record there.
        owed: Its entry, where a transport pushes.
        letters: Its dead letters, by id, the oldest first.
        keys: Idempotency keys with when they are forgotten, the oldest first.
        leaves_at: When it goes, once it has ended or was deleted.
        due_at: When time asks for something, see :class:`~callbackkit.stores.agenda.Agenda`.
        listed_at: For the agenda, like the next.
        entry: Where it stands there.
    """

    __slots__ = (
        "_last_at",
        "_log",
        "_ordinal",
        "attempts",
        "created_at",
        "cursor",
        "due_at",
        "entry",
        "epoch",
        "expired",
        "failed",
        "first",
        "keys",
        "leaves_at",
        "letters",
        "listed_at",
        "new",
        "owed",
        "retries",
        "settled",
        "state",
        "top",
        "touched_at",
    )

    def __init__(self, new: NewSession, epoch: str, created_at: float, now: float) -> None:
        self.new: NewSession = new
        self.epoch: str = epoch
        self.state: SessionState = "active"
        self.created_at: float = created_at
        self.touched_at: float = now
        self.leaves_at: float = math.inf
        # Made by the first record: many sessions have none.
        self._log: Log | None = None
        self._last_at = 0
        self._ordinal = 0
        self.first: int = 1
        self.top: int = 0
        self.cursor: int = 0
        self.settled: int = 0
        self.failed: int = 0
        self.expired: int = 0
        self.retries: int = 0
        self.owed: Owed | None = Owed(self) if new.pushes else None
        # Made when first used: most sessions never do.
        self.letters: dict[str, Letter] | None = None
        self.keys: dict[str, Known] | None = None
        self.attempts: deque[Attempt] | None = None
        self.due_at: float | None = None
        self.listed_at: float = math.inf
        self.entry: list[object] = []

    # The log.

    @property
    def sent(self) -> int:
        """Owed records ever appended."""
        return self._ordinal

    @property
    def queued(self) -> int:
        """Owed records behind the cursor."""
        return self._ordinal - self.settled

    def append(self, at: int, event_type: str, body: bytes, owed: bool) -> Record:
        """Append a record; its time is later than that of the one before."""
        if at <= self._last_at:
            at = self._last_at + 1
        self._last_at = at
        self.top += 1
        if owed:
            self._ordinal += 1
        kept = (self.top, at, event_type, body, owed, self._ordinal)
        log = self._log
        if log is None:
            log = self._log = Log()
        log.append(kept)
        return Record._make(kept)

    def slice(self, begin: int, end: int | None) -> list[Record]:
        """Return the records from one number, which is kept, up to before another."""
        if self._log is None:
            return []
        first = self.first
        return self._log.slice(begin - first, None if end is None else end - first)

    def ordinal_at(self, seq: int) -> int | None:
        """Return the ordinal of a record, or ``None`` if it is not kept."""
        if self._log is not None and self.first <= seq <= self.top:
            return self._log.kept_at(seq - self.first)[5]
        return None

    def oldest(self) -> Record:
        """Return the oldest record; there has to be one."""
        assert self._log is not None
        return self._log.at(0)

    def drop(self) -> None:
        """Drop the oldest record; there has to be one."""
        assert self._log is not None
        self._log.drop()
        self.first += 1

    def clear(self) -> None:
        """Drop all but the figures and dead letters; nobody can read it any more."""
        self.state = "deleted"
        self.settled = self._ordinal
        self.cursor = self.top
        self.first = self.top + 1
        self._log = None
        self.keys = None
        if not self.letters:
            self.attempts = None
        self.leaves_at = -math.inf
        if self.owed is not None:
            self.owed.withdraw()

    # What time and bounds ask for.

    def is_over(self, wall: float | None = None) -> bool:
        """Tell whether the retention does not allow the oldest record, by age if *wall* is given.

        Age goes by the clock that timestamps are of: one that is turned back makes nothing older.
        """
        kept = self.new.retention
        count = self.top - self.first + 1
        if count <= 1:
            return False
        if kept.max_events is not None and count > kept.max_events:
            return True
        if kept.max_bytes is not None and self._log and self._log.size > kept.max_bytes:
            return True
        if wall is None or kept.max_age is None:
            return False
        return self.oldest().at <= (wall - kept.max_age) * 1e6

    def must_deliver(self) -> bool:
        """Tell whether a transport is still to deliver the oldest record."""
        if self.owed is None:
            return False
        record = self.oldest()
        return record.owed and record.seq > self.cursor

    def must_stay(self) -> bool:
        """Tell whether a transport is still to deliver anything."""
        return self.owed is not None and self.queued > 0

    def is_leaving(self, now: float) -> bool:
        """Tell whether its time is over."""
        if self.state == "active":
            return self.new.ttl is not None and self.touched_at + self.new.ttl <= now
        return self.leaves_at <= now

    def forget_keys(self, now: float) -> None:
        """Forget idempotency keys whose time is over."""
        while self.keys and self.keys[oldest := next(iter(self.keys))].until <= now:
            del self.keys[oldest]

    def next_check(self) -> float:
        """Return when time asks for something next."""
        if self.state == "deleted":
            since = [each.since for each in (self.letters or {}).values()][:1]
            return max([self.leaves_at, *(at + LETTER_KEPT for at in since)])
        at = self.leaves_at
        if self.state == "active" and self.new.ttl is not None:
            at = self.touched_at + self.new.ttl
        if self.keys:
            at = min(at, next(iter(self.keys.values())).until)
        if self.first < self.top and self.new.retention.max_age is not None:
            at = min(at, self.oldest().at / 1e6 + self.new.retention.max_age)
        return at

    # Looking at it.

    def matches(self, state: SessionState | None, owner: str | None) -> bool:
        """Tell whether it is in a state, by default any to be read in, and somebody's."""
        is_wanted = self.state != "deleted" if state is None else self.state == state
        return is_wanted and (owner is None or owner == self.new.owner)

    def record(self) -> SessionRecord:
        """Return it as it stands."""
        new = self.new
        return SessionRecord(
            id=new.id,
            token_hash=new.token_hash,
            owner=new.owner,
            config=new.config,
            method=new.method,
            pushes=new.pushes,
            unowed=new.unowed,
            state=self.state,
            created_at=self.created_at,
            epoch=self.epoch,
            first=self.first,
            top=self.top,
            cursor=self.cursor,
            sent=self._ordinal,
            delivered=self.settled - self.failed - self.expired,
            failed=self.failed,
            expired=self.expired,
            queued=self.queued,
            retries=self.retries,
        )


class Owed:
    """The one entry of what a session owes its transport.

    Attributes:
        session: The session.
        due_at: When it may be claimed; ``None`` if nothing is owed.
        listed_at: For the agenda, like the next.
        entry: Where it stands there.
        fence: Number of the last claim.
        is_leased: That claim is not settled.
        attempts: Tries at what comes next.
        bound: Number of the last record of what comes next, if it was fixed.
    """

    __slots__ = (
        "attempts",
        "bound",
        "due_at",
        "entry",
        "fence",
        "is_leased",
        "listed_at",
        "session",
    )

    def __init__(self, session: Session) -> None:
        self.session: Session = session
        self.due_at: float | None = None
        self.listed_at: float = math.inf
        self.entry: list[object] = []
        self.fence: int = 0
        self.is_leased: bool = False
        self.attempts: int = 0
        self.bound: int | None = None

    def claim(self) -> Claim:
        """Begin a lease; whoever held the one before is refused from now on."""
        self.fence += 1
        self.is_leased = True
        return self.as_claim()

    def as_claim(self) -> Claim:
        """Return the claim as it stands."""
        session = self.session
        return Claim(
            session_id=session.new.id,
            method=session.new.method,
            config=session.new.config,
            epoch=session.epoch,
            cursor=session.cursor,
            attempts=self.attempts,
            bound=self.bound,
            fence=self.fence,
        )

    def begin_anew(self) -> None:
        """Refuse whoever holds the lease, and forget the tries."""
        self.fence += 1
        self.is_leased = False
        self.attempts = 0
        self.bound = None
        self.due_at = None

    def withdraw(self) -> None:
        """Owe nothing any more."""
        self.begin_anew()


class Letter(Owed):
    """A dead letter, which falls due when it is redriven.

    Attributes:
        letter: What it holds.
        since: When it became one, by the clock of the store.
    """

    __slots__ = ("letter", "since")

    def __init__(self, session: Session, letter: DeadLetter, since: float) -> None:
        super().__init__(session)
        self.letter: DeadLetter = letter
        self.since: float = since

    def as_claim(self) -> Claim:
        """Return the claim as it stands."""
        letter = self.letter
        claim = super().as_claim()
        return attrs.evolve(
            claim,
            epoch=letter.epoch,
            cursor=letter.records[0].seq - 1,
            bound=letter.records[-1].seq,
            letter=letter,
        )

    def stay_dead(self, reason: str, attempts: int) -> None:
        """Be given up once more."""
        self.begin_anew()
        self.letter = attrs.evolve(self.letter, is_due=False, reason=reason, attempts=attempts)
