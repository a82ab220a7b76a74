"""What a store is to do, written as simply as can be: the model stores are compared with."""

from __future__ import annotations

import math
from typing import Final

import attrs

from callbackkit.stores.base import (
    MOST_ATTEMPTS,
    Appended,
    Attempt,
    Claim,
    Record,
    SessionState,
    Totals,
)

__all__ = ["Held", "ModelEntry", "ModelLetter", "ModelSession", "StoreModel"]

_FIGURES: Final = ("sent", "delivered", "failed", "expired", "queued", "retries")


@attrs.define(eq=False)
class ModelEntry:
    """What falls due and is claimed.

    Attributes:
        until: When the lease or the delay that runs is over.
        fence: The highest one seen.
        attempts: Tries at what comes next.
        bound: Last number of what comes next, if that was fixed.
        holder: Who claimed it last and has not settled it.
    """

    until: float = -math.inf
    fence: int = 0
    attempts: int = 0
    bound: int | None = None
    holder: Held | None = None

    def let_go(self, until: float = -math.inf) -> None:
        """Have nobody hold it."""
        self.holder = None
        self.until = until

    def begin_anew(self) -> None:
        """Turn to what comes next."""
        self.attempts = 0
        self.bound = None


@attrs.define(eq=False)
class ModelLetter(ModelEntry):
    """A dead letter."""

    id: str = ""
    records: tuple[Record, ...] = ()
    is_due: bool = False


@attrs.define(eq=False)
class Held:
    """A claim that somebody has, rightly or no more.

    Attributes:
        claim: The claim.
        session: Its session.
        entry: What it is on: the entry of the session, or a dead letter.
    """

    claim: Claim
    session: ModelSession
    entry: ModelEntry

    @property
    def is_right(self) -> bool:
        """Nobody has claimed it since, and it is not settled."""
        return self.entry.holder is self


@attrs.define(eq=False)
class ModelSession:
    """A session with all records it ever had."""

    id: str
    epoch: str
    pushes: bool
    max_events: int
    max_pending: int
    ttl: float | None
    touched_at: float
    config: bytes = b"{}"
    unowed: tuple[str, ...] = ()
    leaves_at: float = math.inf
    state: SessionState = "active"
    is_known: bool = True
    log: list[Record] = attrs.field(factory=list[Record])
    first: int = 1
    cursor: int = 0
    failed: int = 0
    expired: int = 0
    delivered: int = 0
    retries: int = 0
    attempts: list[Attempt] = attrs.field(factory=list[Attempt])
    keys: dict[str, Appended] = attrs.field(factory=dict[str, Appended])
    letters: dict[str, ModelLetter] = attrs.field(factory=dict[str, ModelLetter])
    entry: ModelEntry = attrs.field(factory=ModelEntry)

    # Looking at it.

    @property
    def top(self) -> int:
        """Number of the newest record."""
        return len(self.log)

    @property
    def kept(self) -> list[Record]:
        """Records that can be read."""
        return self.log[self.first - 1 :]

    @property
    def pending(self) -> list[Record]:
        """Owed records behind the cursor."""
        return [record for record in self.log[self.cursor :] if record.owed]

    @property
    def sent(self) -> int:
        """Owed records ever appended."""
        return sum(record.owed for record in self.log)

    @property
    def queued(self) -> int:
        """Owed records neither delivered nor given up."""
        return len(self.pending)

    @property
    def can_be_read(self) -> bool:
        """It is not deleted."""
        return self.state != "deleted"

    def figures(self) -> dict[str, int]:
        """Return what it counts."""
        return {name: getattr(self, name) for name in _FIGURES}

    def must_deliver(self, record: Record) -> bool:
        """Tell whether a transport is still to deliver a record."""
        return self.pushes and record.owed and record.seq > self.cursor

    # Changing it.

    def append(self, record: Record) -> list[Record]:
        """Add a record, drop what is too much; return what becomes a dead letter."""
        self.log.append(record)
        return self.shed()

    def shed(self) -> list[Record]:
        """Drop what is too much; return what becomes a dead letter."""
        overflow: list[Record] = []
        while len(self.kept) > self.max_events:
            oldest = self.kept[0]
            if self.must_deliver(oldest):
                if self.queued <= self.max_pending:
                    break
                overflow.append(oldest)
                self._give_up(oldest)
            self._drop(oldest)
        return overflow

    def _give_up(self, record: Record) -> None:
        self.cursor = record.seq
        self.failed += 1
        entry = self.entry
        entry.begin_anew()
        if entry.holder is not None:
            # He may be sending this very record; what he says of it is too late.
            entry.let_go()

    def _drop(self, record: Record) -> None:
        if record.seq > self.cursor:
            self.expired += record.owed
            self.cursor = record.seq
        self.first = record.seq + 1

    def trim(self, before: int) -> int:
        """Drop what may be dropped; return how many."""
        count = 0
        while self.kept and self.kept[0].seq < before and not self.must_deliver(self.kept[0]):
            self._drop(self.kept[0])
            count += 1
        return count

    def deliver(self, upto: int) -> None:
        """Move the cursor on."""
        if upto > self.cursor:
            self.delivered += sum(record.owed for record in self.log[self.cursor : upto])
            self.cursor = upto

    def note(self, attempt: Attempt | None) -> None:
        """Remember a try."""
        if attempt is not None:
            self.attempts = [*self.attempts, attempt][-MOST_ATTEMPTS:]
            self.retries += attempt.number > 1

    def bury(self, records: list[Record], letter_id: str) -> None:
        """Add a dead letter; the oldest one beyond the bound is let go of, whoever holds it."""
        if records:
            self.letters[letter_id] = ModelLetter(id=letter_id, records=tuple(records))
        if len(self.letters) > self.max_pending:
            self.letters.pop(next(iter(self.letters))).let_go()

    def clear(self) -> None:
        """Delete it."""
        self.expired += self.queued
        self.cursor = self.top
        self.first = self.top + 1
        self.state = "deleted"
        self.entry.let_go()

    def is_over(self, now: float) -> bool:
        """Tell whether time removes it."""
        if self.pushes and self.queued:
            return False
        if self.state == "active":
            return self.ttl is not None and self.touched_at + self.ttl <= now
        return self.leaves_at <= now


@attrs.define
class StoreModel:
    """All sessions there ever were."""

    sessions: list[ModelSession] = attrs.field(factory=list[ModelSession])
    held: list[Held] = attrs.field(factory=list[Held])
    endpoint: tuple[int, bytes] = (0, b"")

    def readable(self) -> list[ModelSession]:
        """Return the sessions that can be read."""
        return [session for session in self.sessions if session.can_be_read]

    def owing(self) -> list[tuple[ModelSession, ModelEntry]]:
        """Return all that is due, leased or delayed."""
        entries: list[tuple[ModelSession, ModelEntry]] = []
        for session in self.sessions:
            if session.pushes and session.queued:
                entries.append((session, session.entry))
            entries.extend((session, each) for each in session.letters.values() if each.is_due)
        return entries

    def expire(self, now: float) -> list[str]:
        """Remove what time removes; return the ids."""
        over = [session for session in self.readable() if session.is_over(now)]
        for session in over:
            session.clear()
            session.is_known = False
        return [session.id for session in over]

    def totals(self) -> Totals:
        """Return the sums."""
        readable = self.readable()
        sums = {name: sum(getattr(each, name) for each in self.sessions) for name in _FIGURES}
        active = sum(session.state == "active" for session in readable)
        return Totals(sessions=len(readable), active=active, **sums)
