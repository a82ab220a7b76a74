"""What of a session is kept, settled, buried and dropped: the steps that several jobs share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from callbackkit.stores.base import LETTER_KEPT, Record, delivery_id
from callbackkit.stores.sqlite_row import ACTIVE, DELETED, Row
from callbackkit.stores.sqlite_work import Work

__all__ = [
    "as_record",
    "bury",
    "clear",
    "drop",
    "drop_letter",
    "drop_letters",
    "next_check",
    "owe",
    "purge",
    "settle",
    "shed",
    "shed_settled",
]

# Records that are dropped leave the file this many at a time.
_PURGE_EVERY: Final = 64

_ORDINAL: Final = "SELECT ordinal FROM event WHERE sid = ? AND seq = ?"
_RECORD: Final = """
    SELECT seq, at, event_type, body, owed, ordinal FROM event WHERE sid = ? AND seq = ?
"""
_PURGE: Final = tuple(
    f"DELETE FROM {table} WHERE sid = ? AND seq < ?" for table in ("record", "fresh")
)
_BURY: Final = """
    INSERT INTO letter (sid, id, method, epoch, reason, tried, at, since, records,
        is_due, due_at, is_leased, fence, attempts)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 0, NULL, 0, 0, 0)
"""
_BURY_RECORD: Final = "INSERT INTO letter_record VALUES (?, ?, ?, ?, ?, ?, ?)"
_DROP_LETTER_RECORDS: Final = """
    DELETE FROM letter_record WHERE letter IN (
        SELECT number FROM letter WHERE sid = ? AND since <= ?)
"""
_DROP_LETTERS: Final = "DELETE FROM letter WHERE sid = ? AND since <= ?"
_OLDEST_LETTERS: Final = "SELECT number FROM letter WHERE sid = ? ORDER BY number LIMIT ?"
_SAME_LETTER: Final = "SELECT number FROM letter WHERE sid = ? AND id = ?"
_OLDEST_LETTER: Final = "SELECT since FROM letter WHERE sid = ? ORDER BY number LIMIT 1"
_OLDEST_KEY: Final = "SELECT min(until) FROM idempotency WHERE sid = ?"


def as_record(columns: tuple[int, int, str, bytes, int, int]) -> Record:
    """Return a record from ``seq, at, event_type, body, owed, ordinal``."""
    seq, at, event_type, body, owed, ordinal = columns
    return Record(seq, at, event_type, body, owed == 1, ordinal)


def settle(work: Work, row: Row, upto: int) -> None:
    """Move the cursor on, never back."""
    upto = min(upto, row.top)
    if upto <= row.cursor:
        return
    if upto == row.top:
        row.settled = row.sent
    elif row.sent == row.top:
        # All of them are owed.
        row.settled = upto
    else:
        (row.settled,) = work.execute(_ORDINAL, (row.sid, upto)).fetchone()
    row.cursor = upto
    work.touch(row)


def owe(work: Work, row: Row) -> None:
    """Have what a session owes fall due now, unless it does already or a lease or delay runs."""
    if row.due_at is None:
        row.due_at = work.now
        work.move(row)
    work.rings[None] = None


def shed(work: Work, row: Row) -> None:
    """Drop what the retention allows no longer."""
    connection = work.connection
    wall = work.wall()
    while row.is_over() or row.is_too_old(connection, wall):
        if row.must_deliver(connection):
            if row.queued() <= row.max_pending:
                return
            _give_up(work, row)
        drop(work, row)


def shed_settled(work: Work, row: Row) -> None:
    """Drop what was kept only because it was still to be delivered."""
    connection = work.connection
    wall = work.wall()
    while row.is_over() or row.is_too_old(connection, wall):
        if row.must_deliver(connection):
            return
        drop(work, row)


def drop(work: Work, row: Row) -> None:
    """Drop the oldest record; where clients read, it has expired if nobody read it."""
    oldest = row.oldest(work.connection)
    if oldest.seq > row.cursor:
        row.expired += oldest.ordinal - row.settled
        row.settled = oldest.ordinal
        row.cursor = oldest.seq
    row.shed = oldest.total
    row.first += 1
    work.touch(row)
    if row.first % _PURGE_EVERY == 0:
        purge(work, row)


def purge(work: Work, row: Row) -> None:
    """Take dropped records out of the file."""
    for statement in _PURGE:
        work.execute(statement, (row.sid, row.first))


def _give_up(work: Work, row: Row) -> None:
    """Make a dead letter of the oldest record, which is owed."""
    record = as_record(work.execute(_RECORD, (row.sid, row.first)).fetchone())
    bury(work, row, [record], "more events were waiting than max_pending", 0)
    settle(work, row, record.seq)
    due_at = work.now if row.is_leased or row.due_at is None else row.due_at
    # Who holds the lease may be sending this very record: what he says is too late.
    row.begin_anew()
    # A delay that runs goes on: a dead endpoint is not tried at every append.
    row.due_at = due_at
    owe(work, row)


def bury(
    work: Work,
    row: Row,
    records: Sequence[Record],
    reason: str,
    tried: int,
    letter_id: str | None = None,
) -> None:
    """Make a dead letter of records."""
    if not records:
        return
    name = letter_id or delivery_id(row.id, row.epoch, records[0].seq)
    for (same,) in work.execute(_SAME_LETTER, (row.sid, name)).fetchall():
        drop_letter(work, row, same)
    columns = (row.sid, name, row.method, row.epoch, reason, tried, work.wall(), work.now)
    number = work.execute(_BURY, (*columns, len(records))).lastrowid
    work.connection.executemany(_BURY_RECORD, [(number, *record) for record in records])
    row.failed += len(records)
    row.letters += 1
    work.move(row)
    excess = row.letters - row.max_pending
    if excess > 0:
        for (oldest,) in work.execute(_OLDEST_LETTERS, (row.sid, excess)).fetchall():
            drop_letter(work, row, oldest)


def clear(work: Work, row: Row) -> None:
    """Let go of what a session holds, dead letters aside."""
    row.expired += row.queued()
    row.settled = row.sent
    row.cursor = row.top
    row.first = row.top + 1
    row.shed = row.size
    row.keys = 0
    row.state = DELETED
    row.begin_anew()
    purge(work, row)
    work.execute("DELETE FROM idempotency WHERE sid = ?", (row.sid,))
    work.sums.readable -= 1
    work.ring(row)


def drop_letters(work: Work, row: Row, since: float) -> None:
    """Drop the dead letters that are no younger; they stay counted as failed."""
    work.execute(_DROP_LETTER_RECORDS, (row.sid, since))
    row.letters -= work.execute(_DROP_LETTERS, (row.sid, since)).rowcount
    work.move(row)


def drop_letter(work: Work, row: Row, number: int) -> None:
    """Drop a dead letter; whoever delivers it is refused."""
    work.execute("DELETE FROM letter_record WHERE letter = ?", (number,))
    work.execute("DELETE FROM letter WHERE number = ?", (number,))
    row.letters -= 1
    work.move(row)


def next_check(work: Work, row: Row) -> float | None:
    """Return when time asks for something next; ``None`` if never."""
    if row.state == DELETED:
        oldest = work.execute(_OLDEST_LETTER, (row.sid,)).fetchone()
        kept_until = 0.0 if oldest is None else oldest[0] + LETTER_KEPT
        return max(row.leaves_at or 0.0, kept_until)
    times: list[float | None] = [row.leaves_at]
    if row.state == ACTIVE and row.ttl is not None:
        times.append(row.touched_at + row.ttl)
    if row.keys:
        times.extend(work.execute(_OLDEST_KEY, (row.sid,)).fetchone())
    if row.max_age is not None and row.count() > 1:
        times.append(row.oldest(work.connection).at / 1e6 + row.max_age)
    return min((at for at in times if at is not None), default=None)
