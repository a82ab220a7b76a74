"""The jobs of deliveries: claims, leases, dead letters and endpoints."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

import attrs

from callbackkit.errors import LeaseLostError
from callbackkit.stores.base import MOST_ATTEMPTS, Attempt, Claim, Claims
from callbackkit.stores.sqlite_keeping import (
    as_record,
    bury,
    drop_letter,
    owe,
    settle,
    shed_settled,
)
from callbackkit.stores.sqlite_letters import LETTER, dead_letter
from callbackkit.stores.sqlite_row import ENDED, Row
from callbackkit.stores.sqlite_work import Work

__all__ = ["ack", "claim", "park", "redrive", "renew", "retry", "save_endpoint"]

_DUE_LOGS: Final = """
    SELECT due_at, sid FROM log WHERE method = ? AND due_at <= ? ORDER BY due_at LIMIT ?
"""
_DUE_LETTERS: Final = """
    SELECT due_at, number FROM letter WHERE method = ? AND due_at <= ? ORDER BY due_at LIMIT ?
"""
_NEXT: Final = """
    SELECT min(due_at) FROM (
        SELECT min(due_at) AS due_at FROM log WHERE method = ? AND due_at IS NOT NULL
        UNION ALL SELECT min(due_at) FROM letter WHERE method = ? AND due_at IS NOT NULL)
"""
_OWED: Final = """
    SELECT seq, at, event_type, body, owed, ordinal FROM event
    WHERE sid = ? AND seq BETWEEN ? AND ? AND owed ORDER BY seq
"""
_SAVE_LETTER: Final = """
    UPDATE letter SET is_due = ?, due_at = ?, is_leased = ?, fence = ?, attempts = ?, reason = ?,
        tried = ? WHERE number = ?
"""
_NOTE: Final = "INSERT INTO attempt VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
_SAVE_ENDPOINT: Final = "INSERT OR REPLACE INTO endpoint VALUES (?, ?, ?, ?)"


@attrs.define
class _Letter:
    """A dead letter, which falls due when it is redriven; a row of its table."""

    number: int
    sid: int
    id: str
    records: int
    is_due: int
    due_at: float | None
    is_leased: int
    fence: int
    attempts: int
    reason: str
    tried: int

    def save(self, work: Work) -> None:
        """Write what may have changed."""
        columns = (self.is_due, self.due_at, self.is_leased, self.fence, self.attempts)
        work.execute(_SAVE_LETTER, (*columns, self.reason, self.tried, self.number))

    def as_claim(self, work: Work, row: Row) -> Claim:
        """Return the claim as it stands."""
        query = f"{LETTER} WHERE t.number = ?"
        letter = dead_letter(work.execute, work.execute(query, (self.number,)).fetchone())
        return Claim(
            session_id=row.id,
            method=letter.method,
            config=row.config,
            epoch=letter.epoch,
            cursor=letter.records[0].seq - 1,
            attempts=self.attempts,
            bound=letter.records[-1].seq,
            fence=self.fence,
            letter=letter,
        )


_LOAD_LETTER: Final = f"SELECT {', '.join(each.name for each in attrs.fields(_Letter))} FROM letter"


# Claiming.


def claim(work: Work, methods: Collection[str], limit: int, lease: float) -> Claims:
    """Claim what is due, the longest due first."""
    work.save()
    due: list[tuple[float, bool, int]] = []
    for method in methods:
        for query, is_letter in ((_DUE_LOGS, False), (_DUE_LETTERS, True)):
            found = work.execute(query, (method, work.now, limit))
            due.extend((at, is_letter, number) for at, number in found)
    due.sort()
    until = work.now + lease
    claims = [
        _claim_letter(work, number, until) if is_letter else _claim_log(work, number, until)
        for _, is_letter, number in due[:limit]
    ]
    if len(due) > limit:
        return Claims(claims, 0.0)
    work.save()
    times = [work.execute(_NEXT, (method, method)).fetchone()[0] for method in methods]
    nearest = min((at for at in times if at is not None), default=None)
    return Claims(claims, None if nearest is None else max(nearest - work.now, 0.0))


def _claim_log(work: Work, sid: int, until: float) -> Claim:
    row = work.find_by_sid(sid)
    row.fence += 1
    row.is_leased = 1
    row.due_at = until
    work.move(row)
    return row.as_claim()


def _claim_letter(work: Work, number: int, until: float) -> Claim:
    query = f"{_LOAD_LETTER} WHERE number = ?"
    letter = _Letter(*work.execute(query, (number,)).fetchone())
    letter.fence += 1
    letter.is_leased = 1
    letter.due_at = until
    letter.save(work)
    return letter.as_claim(work, work.find_by_sid(letter.sid))


def _held(work: Work, claim: Claim) -> tuple[Row, _Letter | None]:
    """Return what is claimed, if it still is."""
    row = work.find(claim.session_id)
    letter: _Letter | None = None
    held: Row | _Letter | None = row
    if row is not None and claim.letter is not None:
        query = f"{_LOAD_LETTER} WHERE sid = ? AND id = ?"
        columns = work.execute(query, (row.sid, claim.letter.id)).fetchone()
        held = letter = None if columns is None else _Letter(*columns)
    if row is None or held is None or not held.is_leased or held.fence != claim.fence:
        raise LeaseLostError(f"the lease on a delivery of session {claim.session_id} was lost")
    return row, letter


def renew(work: Work, claim: Claim, lease: float, bound: int | None) -> Claim:
    """Hold on."""
    row, letter = _held(work, claim)
    until = work.now + lease
    if letter is not None:
        letter.due_at = until
        letter.save(work)
        return letter.as_claim(work, row)
    row.due_at = until
    if bound is not None:
        row.bound = bound
    work.move(row)
    return row.as_claim()


# Settling.


def ack(
    work: Work, claim: Claim, upto: int, attempt: Attempt | None, lease: float | None
) -> Claim | None:
    """Note a success."""
    row, letter = _held(work, claim)
    _note(work, row, attempt)
    if letter is not None:
        drop_letter(work, row, letter.number)
        row.failed -= letter.records
        return None
    settle(work, row, upto)
    shed_settled(work, row)
    return _go_on(work, row, lease)


def retry(
    work: Work, claim: Claim, delay: float, attempt: Attempt | None, bound: int | None
) -> None:
    """Let go for a while."""
    row, letter = _held(work, claim)
    held: Row | _Letter = letter or row
    held.is_leased = 0
    held.attempts += attempt is not None
    held.due_at = work.now + delay
    if letter is not None:
        letter.save(work)
    else:
        row.bound = row.bound if bound is None else bound
        work.move(row)
    _note(work, row, attempt)
    # Whoever claims looks at when it is due.
    work.rings[None] = None


def park(
    work: Work,
    claim: Claim,
    upto: int,
    letter_id: str,
    reason: str,
    attempt: Attempt | None,
    lease: float | None,
) -> Claim | None:
    """Give up."""
    row, letter = _held(work, claim)
    _note(work, row, attempt)
    if letter is not None:
        letter.tried = letter.attempts + (attempt is not None)
        letter.reason = reason
        letter.fence += 1
        letter.is_due = letter.is_leased = letter.attempts = 0
        letter.due_at = None
        letter.save(work)
        return None
    begin = max(row.cursor + 1, row.first)
    records = [as_record(each) for each in work.execute(_OWED, (row.sid, begin, upto))]
    bury(work, row, records, reason, row.attempts + (attempt is not None), letter_id)
    settle(work, row, upto)
    shed_settled(work, row)
    return _go_on(work, row, lease)


def _go_on(work: Work, row: Row, lease: float | None) -> Claim | None:
    """Turn to what comes next, if anything is owed."""
    row.attempts = 0
    row.bound = None
    work.move(row)
    if row.queued() and lease is not None:
        row.due_at = work.now + lease
        return row.as_claim()
    row.is_leased = 0
    row.due_at = None
    if row.queued():
        owe(work, row)
    elif row.state == ENDED:
        row.stay(row.leaves_at)
    return None


def _note(work: Work, row: Row, attempt: Attempt | None) -> None:
    if attempt is None:
        return
    row.tries += 1
    work.execute(_NOTE, (row.sid, row.tries, *attrs.astuple(attempt)))
    if row.tries > MOST_ATTEMPTS:
        oldest = row.tries - MOST_ATTEMPTS
        work.execute("DELETE FROM attempt WHERE sid = ? AND place <= ?", (row.sid, oldest))
    row.retries += attempt.number > 1
    work.touch(row)


# Dead letters and endpoints.


def redrive(work: Work, session_id: str, ids: Collection[str] | None) -> int:
    """Have dead letters delivered again."""
    row = work.find(session_id)
    found: list[tuple[Any, ...]] = []
    if row is not None:
        query = f"{_LOAD_LETTER} WHERE sid = ? ORDER BY number"
        found = work.execute(query, (row.sid,)).fetchall()
    if not found:
        work.get(session_id)
    count = 0
    for columns in found:
        letter = _Letter(*columns)
        if letter.is_due or (ids is not None and letter.id not in ids):
            continue
        letter.is_due = 1
        letter.attempts = 0
        letter.due_at = work.now
        letter.save(work)
        count += 1
    if count:
        work.rings[None] = None
    return count


def save_endpoint(work: Work, endpoint: str, version: int, state: bytes) -> bool:
    """Save the state of an endpoint if nobody did since it was loaded."""
    query = "SELECT version FROM endpoint WHERE name = ?"
    known = work.execute(query, (endpoint,)).fetchone()
    if version != (0 if known is None else known[0]):
        return False
    work.execute(_SAVE_ENDPOINT, (endpoint, version + 1, state, work.now))
    return True
