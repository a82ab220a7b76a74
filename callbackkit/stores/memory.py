"""A store in the memory of this process: the reference for all others."""

from __future__ import annotations

import hashlib
import itertools
import math
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final

import attrs

from callbackkit.errors import (
    IdempotencyError,
    LeaseLostError,
    LimitError,
    SessionDeletedError,
    SessionEndedError,
    UnknownSessionError,
)
from callbackkit.events import Position
from callbackkit.stores.agenda import Agenda, SortedIds
from callbackkit.stores.base import (
    KEY_KEPT,
    LETTER_KEPT,
    MOST_ATTEMPTS,
    Appended,
    Attempt,
    Claim,
    Claims,
    DeadLetter,
    NewSession,
    Page,
    Record,
    SessionRecord,
    SessionState,
    Store,
    Swept,
    Totals,
    Watch,
    Watches,
    delivery_id,
    steady_time,
)
from callbackkit.stores.memory_session import Known, Letter, Owed, Session

__all__ = ["MemoryStore"]

# Idempotency keys one session may have at a time.
_MOST_KEYS: Final = 100_000


class MemoryStore(Store):
    """Sessions that live as long as this process; nothing to set up.

    Args:
        clock: Seconds since 1970, for tests; by default time passes evenly whatever is done to
            the clock of the machine, and timestamps are what that clock shows.
    """

    def __init__(self, *, clock: Callable[[], float] | None = None) -> None:
        self._clock: Callable[[], float] = clock or steady_time
        self._wall: Callable[[], float] = clock or time.time
        self._latest = -math.inf
        self._turned_back = 0.0
        # Re-entrant: garbage collection may run anybody's code while it is held.
        self._lock = threading.RLock()
        self._watches = Watches()
        self._sessions: dict[str, Session] = {}
        self._ids = SortedIds()
        self._readable = 0
        self._due: dict[str, Agenda[Owed]] = {}
        self._checks: Agenda[Session] = Agenda()
        self._endpoints: dict[str, tuple[int, bytes, float]] = {}
        self._active = 0
        self._sent = 0
        self._settled = 0
        self._failed = 0
        self._expired = 0
        self._retries = 0

    def __repr__(self) -> str:
        return f"<MemoryStore, {self._readable} sessions>"

    async def start(self) -> None:
        """Do nothing: it is ready."""

    async def aclose(self) -> None:
        """Wake who waits; what is in memory stays until the store is let go of."""
        self._watches.ring_all()

    def _now(self) -> float:
        """Return a time that never goes back: where the clock was turned back, it goes on."""
        now = self._clock() + self._turned_back
        if now < self._latest:
            self._turned_back += self._latest - now
            return self._latest
        self._latest = now
        return now

    # Sessions.

    async def create_session(
        self, new: NewSession, *, max_sessions: int | None = None
    ) -> SessionRecord:
        with self._lock:
            if new.id in self._sessions:
                raise ValueError("a session with this id exists already")
            if max_sessions is not None and self._readable >= max_sessions:
                raise LimitError("max_sessions", max_sessions)
            session = Session(new, secrets.token_hex(8), self._wall(), self._now())
            self._sessions[new.id] = session
            self._ids.add(new.id)
            self._readable += 1
            self._active += 1
            self._schedule(session)
            return session.record()

    async def get_session(self, session_id: str) -> SessionRecord:
        with self._lock:
            return self._get(session_id).record()

    async def sessions(
        self,
        *,
        state: SessionState | None = None,
        owner: str | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> Sequence[SessionRecord]:
        with self._lock:
            found: list[SessionRecord] = []
            for session_id in self._ids.after(after):
                session = self._sessions.get(session_id)
                if session is None or not session.matches(state, owner):
                    continue
                found.append(session.record())
                if len(found) == limit:
                    break
            return found

    async def update_session(
        self, session_id: str, *, known: bytes, config: bytes, unowed: tuple[str, ...]
    ) -> SessionRecord:
        with self._lock:
            session = self._get(session_id)
            if session.state != "active":
                raise SessionEndedError(session_id)
            if session.new.config == known:
                session.new = attrs.evolve(session.new, config=config, unowed=unowed)
            return session.record()

    async def touch(self, reads: Mapping[str, int | None]) -> None:
        with self._lock:
            now = self._now()
            for session_id, upto in reads.items():
                session = self._sessions.get(session_id)
                if session is None or session.state == "deleted":
                    continue
                session.touched_at = now
                if upto is not None and not session.new.pushes:
                    self._settle(session, min(upto, session.top))

    async def end_session(self, session_id: str, *, linger: float) -> SessionRecord:
        with self._lock:
            session = self._get(session_id)
            if session.state == "active":
                session.state = "ended"
                self._active -= 1
                session.leaves_at = self._now() + linger
                self._schedule(session)
            record = session.record()
        self._watches.ring(session_id)
        return record

    async def delete_session(self, session_id: str, *, linger: float) -> None:
        with self._lock:
            session = self._get(session_id)
            for letter in (session.letters or {}).values():
                self._let_go(letter)
            session.letters = None
            self._clear(session)
            session.leaves_at = self._now() + linger
            self._schedule(session)
        self._watches.ring(session_id)

    def _get(self, session_id: str) -> Session:
        session = self._sessions.get(session_id)
        if session is None:
            raise UnknownSessionError(session_id)
        if session.state == "deleted":
            raise SessionDeletedError(session_id)
        return session

    def _get_with_letters(self, session_id: str) -> Session:
        session = self._sessions.get(session_id)
        if session is not None and session.letters:
            return session
        return self._get(session_id)

    # The log.

    async def append(
        self,
        session_id: str,
        event_type: str,
        body: bytes,
        *,
        owed: bool = True,
        key: str | None = None,
    ) -> Appended:
        with self._lock:
            session = self._get(session_id)
            now = self._now()
            if key is not None and session.keys:
                session.forget_keys(now)
                if (known := session.keys.get(key)) is not None:
                    return self._again(session, known, key, event_type, body)
            if session.state != "active":
                raise SessionEndedError(session_id)
            if key is not None and session.keys and len(session.keys) >= _MOST_KEYS:
                raise LimitError("keys", _MOST_KEYS, "so many idempotency keys in 24 hours")
            record = session.append(int(self._wall() * 1e6), event_type, body, owed)
            session.touched_at = now
            if key is not None:
                if session.keys is None:
                    session.keys = {}
                digest = hashlib.sha256(body).digest()
                session.keys[key] = Known(now + KEY_KEPT, record._replace(body=b""), digest)
            if owed:
                self._sent += 1
                if session.owed is not None:
                    self._owe(session.owed, now)
            if session.is_over():
                self._shed(session, now)
            if record.seq == session.first + 1 or key is not None:
                self._schedule(session)
        self._watches.ring(session_id, record.seq)
        if owed and session.owed is not None:
            self._watches.ring(None)
        return Appended(session.epoch, record, True)

    def _again(
        self,
        session: Session,
        known: Known,
        key: str,
        event_type: str,
        body: bytes,
    ) -> Appended:
        record = known.record
        if record.event_type != event_type or known.digest != hashlib.sha256(body).digest():
            raise IdempotencyError(f"the key {key!r:.100} came before with another event")
        return Appended(session.epoch, record._replace(body=body), False)

    async def read(
        self,
        session_id: str,
        *,
        after: Position | None = None,
        limit: int = 100,
        owed: bool = False,
    ) -> Page:
        with self._lock:
            session = self._get(session_id)
            first = session.first
            begin = first
            if after is not None and after.epoch == session.epoch and after.seq <= session.top:
                begin = max(after.seq + 1, first)
            if owed:
                found = (each for each in session.slice(begin, None) if each.owed)
                records = list(itertools.islice(found, limit))
            else:
                records = session.slice(begin, begin + limit)
            return Page(records, session.epoch, first, session.top, session.state)

    async def tail(self, session_id: str, *, limit: int) -> Page:
        with self._lock:
            session = self._get(session_id)
            begin = max(session.first, session.top - limit + 1)
            records = session.slice(begin, None)
            return Page(records, session.epoch, session.first, session.top, session.state)

    def watch(self, session_id: str | None) -> Watch:
        return self._watches.watch(session_id)

    async def trim(self, session_id: str, *, before: int) -> int:
        with self._lock:
            session = self._get(session_id)
            dropped = 0
            while session.first < min(before, session.top + 1) and not session.must_deliver():
                self._drop(session)
                dropped += 1
            return dropped

    async def sweep(self, *, limit: int = 100) -> Swept:
        gone: list[str] = []
        with self._lock:
            now = self._now()
            checked = 0
            while checked < limit and (session := self._checks.pop(now)) is not None:
                checked += 1
                if self._check(session, now):
                    gone.append(session.new.id)
            self._forget_endpoints(now)
            has_more = checked == limit
        for session_id in gone:
            self._watches.ring(session_id)
        return Swept(gone, has_more)

    # What is dropped. All below is called with the lock held.

    def _shed(self, session: Session, now: float) -> None:
        """Drop what the retention allows no longer."""
        wall = self._wall()
        while session.is_over(wall):
            if session.must_deliver():
                if session.queued <= session.new.max_pending:
                    return
                self._give_up(session, now)
            self._drop(session)

    def _drop(self, session: Session) -> None:
        """Drop the oldest record; where clients read, it has expired if nobody read it."""
        record = session.oldest()
        if record.seq > session.cursor:
            expired = record.ordinal - session.settled
            session.expired += expired
            self._expired += expired
            self._settle(session, record.seq)
        session.drop()

    def _give_up(self, session: Session, now: float) -> None:
        """Make a dead letter of the oldest record, which is owed."""
        record = session.oldest()
        self._bury(session, (record,), "more events were waiting than max_pending", 0, now)
        self._settle(session, record.seq)
        owed = session.owed
        if owed is not None:
            was_leased, due_at = owed.is_leased, owed.due_at
            # Who holds the lease may be sending this very record: what he says is too late.
            owed.begin_anew()
            # A delay that runs goes on: a dead endpoint is not tried at every append.
            self._owe(owed, now if was_leased or due_at is None else due_at)

    def _settle(self, session: Session, upto: int) -> None:
        """Move the cursor on, never back."""
        if upto <= session.cursor:
            return
        found = session.ordinal_at(upto)
        ordinal = session.settled if found is None else found
        self._settled += ordinal - session.settled
        session.settled = ordinal
        session.cursor = upto

    def _bury(
        self,
        session: Session,
        records: Sequence[Record],
        reason: str,
        attempts: int,
        now: float,
        letter_id: str | None = None,
    ) -> None:
        if not records:
            return
        first = records[0].seq
        letter = DeadLetter(
            id=letter_id or delivery_id(session.new.id, session.epoch, first),
            session_id=session.new.id,
            method=session.new.method,
            epoch=session.epoch,
            records=tuple(records),
            reason=reason,
            attempts=attempts,
            at=self._wall(),
        )
        if session.letters is None:
            session.letters = {}
        session.letters[letter.id] = Letter(session, letter, now)
        while len(session.letters) > session.new.max_pending:
            self._let_go(session.letters.pop(next(iter(session.letters))))
        session.failed += len(records)
        self._failed += len(records)
        self._schedule(session)

    def _clear(self, session: Session) -> None:
        """Let go of what a session holds, dead letters aside."""
        queued = session.queued
        session.expired += queued
        self._expired += queued
        self._settled += queued
        self._readable -= 1
        self._active -= session.state == "active"
        if session.owed is not None:
            self._let_go(session.owed)
        session.clear()

    def _check(self, session: Session, now: float) -> bool:
        """Do what time asks for; tell whether the session can't be read from now on."""
        self._forget_letters(session, now)
        was_deleted = session.state == "deleted"
        if was_deleted:
            if not session.letters and session.is_leaving(now):
                self._sessions.pop(session.new.id, None)
                self._ids.discard(session.new.id)
                return False
        elif session.is_leaving(now) and not session.must_stay():
            self._clear(session)
            if not session.letters:
                self._sessions.pop(session.new.id, None)
                self._ids.discard(session.new.id)
                return True
        else:
            session.forget_keys(now)
            self._shed(session, now)
        self._schedule(session, now)
        return not was_deleted and session.state == "deleted"

    def _forget_letters(self, session: Session, now: float) -> None:
        letters = session.letters
        while letters:
            oldest = next(iter(letters.values()))
            if session.state != "deleted" or oldest.since + LETTER_KEPT > now:
                return
            self._let_go(oldest)
            del letters[oldest.letter.id]

    def _forget_endpoints(self, now: float) -> None:
        while self._endpoints:
            endpoint, (_, _, saved_at) = next(iter(self._endpoints.items()))
            if saved_at + LETTER_KEPT > now:
                return
            del self._endpoints[endpoint]

    def _let_go(self, owed: Owed) -> None:
        """Owe something no longer; whoever holds a claim on it is refused."""
        owed.withdraw()
        agenda = self._due.get(owed.session.new.method)
        if agenda is not None:
            agenda.discard(owed)

    def _schedule(self, session: Session, now: float | None = None) -> None:
        at = session.next_check()
        if now is not None:
            # What could not be done now: once nothing is owed any more it is scheduled anew.
            at = max(at, now + (60.0 if session.must_stay() else 1.0))
        self._checks.put(session, at)

    def _owe(self, owed: Owed, at: float) -> None:
        """Have an entry fall due, unless it does already or a lease or delay runs."""
        if owed.due_at is None:
            self._put_due(owed, at)

    def _put_due(self, owed: Owed, at: float) -> None:
        owed.due_at = at
        method = owed.session.new.method
        agenda = self._due.get(method)
        if agenda is None:
            agenda = self._due[method] = Agenda()
        agenda.put(owed, at)

    # Deliveries.

    async def claim(self, *, methods: Collection[str], limit: int, lease: float) -> Claims:
        with self._lock:
            now = self._now()
            claims: list[Claim] = []
            for method in methods:
                agenda = self._due.get(method)
                while agenda and len(claims) < limit and (owed := agenda.pop(now)) is not None:
                    claims.append(owed.claim())
                    self._put_due(owed, now + lease)
            waits = [agenda.first_at() for method in methods if (agenda := self._due.get(method))]
            nearest = min(waits, default=math.inf)
            return Claims(claims, None if nearest == math.inf else max(nearest - now, 0.0))

    async def renew(self, claim: Claim, *, lease: float, bound: int | None = None) -> Claim:
        with self._lock:
            owed = self._held(claim)
            if bound is not None:
                owed.bound = bound
            self._put_due(owed, self._now() + lease)
            return owed.as_claim()

    async def ack(
        self, claim: Claim, upto: int, attempt: Attempt | None, *, lease: float | None = None
    ) -> Claim | None:
        with self._lock:
            owed = self._held(claim)
            session = owed.session
            self._note(session, attempt)
            if isinstance(owed, Letter):
                self._drop_letter(owed)
                return None
            self._settle(session, upto)
            return self._go_on(owed, lease)

    async def retry(
        self, claim: Claim, *, delay: float, attempt: Attempt | None, bound: int | None = None
    ) -> None:
        with self._lock:
            owed = self._held(claim)
            owed.is_leased = False
            if attempt is not None:
                owed.attempts += 1
            if bound is not None:
                owed.bound = bound
            self._note(owed.session, attempt)
            self._put_due(owed, self._now() + delay)
        # Whoever claims looks at when it is due.
        self._watches.ring(None)

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
        with self._lock:
            owed = self._held(claim)
            session = owed.session
            self._note(session, attempt)
            attempts = owed.attempts + (attempt is not None)
            if isinstance(owed, Letter):
                owed.stay_dead(reason, attempts)
                return None
            begin = max(session.cursor + 1, session.first)
            records = [each for each in session.slice(begin, upto + 1) if each.owed]
            self._bury(session, records, reason, attempts, self._now(), letter_id)
            self._settle(session, upto)
            return self._go_on(owed, lease)

    def _held(self, claim: Claim) -> Owed:
        session = self._sessions.get(claim.session_id)
        owed: Owed | None = None
        if session is not None and claim.letter is not None:
            owed = (session.letters or {}).get(claim.letter.id)
        elif session is not None:
            owed = session.owed
        if owed is None or not owed.is_leased or owed.fence != claim.fence:
            raise LeaseLostError(f"the lease on a delivery of session {claim.session_id} was lost")
        return owed

    def _go_on(self, owed: Owed, lease: float | None) -> Claim | None:
        """Turn to what comes next, if anything is owed."""
        session = owed.session
        owed.attempts = 0
        owed.bound = None
        if session.is_over():
            # What was kept to be delivered only.
            self._shed(session, self._now())
        if session.queued and lease is not None:
            self._put_due(owed, self._now() + lease)
            return owed.as_claim()
        owed.is_leased = False
        owed.due_at = None
        if session.queued:
            self._owe(owed, self._now())
            self._watches.ring(None)
        else:
            self._schedule(session)
        return None

    def _note(self, session: Session, attempt: Attempt | None) -> None:
        if attempt is None:
            return
        if session.attempts is None:
            session.attempts = deque(maxlen=MOST_ATTEMPTS)
        session.attempts.append(attempt)
        if attempt.number > 1:
            session.retries += 1
            self._retries += 1

    def _drop_letter(self, owed: Letter) -> None:
        session = owed.session
        self._let_go(owed)
        if session.letters is not None:
            session.letters.pop(owed.letter.id, None)
        session.failed -= len(owed.letter.records)
        self._failed -= len(owed.letter.records)

    async def dead_letters(
        self, session_id: str, *, after: str | None = None, limit: int = 100
    ) -> Sequence[DeadLetter]:
        with self._lock:
            letters = self._get_with_letters(session_id).letters or {}
            ids = list(letters)
            begin = ids.index(after) + 1 if after in letters else 0
            return [letters[each].letter for each in ids[begin : begin + limit]]

    async def redrive(self, session_id: str, ids: Collection[str] | None = None) -> int:
        with self._lock:
            letters = self._get_with_letters(session_id).letters or {}
            chosen = [
                each
                for letter_id, each in letters.items()
                if (ids is None or letter_id in ids) and not each.letter.is_due
            ]
            now = self._now()
            for owed in chosen:
                owed.letter = attrs.evolve(owed.letter, is_due=True)
                owed.attempts = 0
                self._owe(owed, now)
        if chosen:
            self._watches.ring(None)
        return len(chosen)

    async def attempts(self, session_id: str) -> Sequence[Attempt]:
        with self._lock:
            return list(self._get_with_letters(session_id).attempts or ())

    async def load_endpoint(self, endpoint: str) -> tuple[int, bytes]:
        with self._lock:
            version, state, _ = self._endpoints.get(endpoint, (0, b"", 0.0))
            return version, state

    async def save_endpoint(self, endpoint: str, version: int, state: bytes) -> bool:
        with self._lock:
            known, _, _ = self._endpoints.get(endpoint, (0, b"", 0.0))
            if known != version:
                return False
            # The oldest saved stands first.
            self._endpoints.pop(endpoint, None)
            self._endpoints[endpoint] = (version + 1, state, self._now())
            return True

    # All of it.

    async def totals(self) -> Totals:
        with self._lock:
            return Totals(
                sessions=self._readable,
                active=self._active,
                sent=self._sent,
                delivered=self._settled - self._failed - self._expired,
                failed=self._failed,
                expired=self._expired,
                queued=self._sent - self._settled,
                retries=self._retries,
            )

    async def health(self) -> None:
        """Return: memory can be read and written."""
