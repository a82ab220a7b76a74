"""The job that does what time asks for."""

from __future__ import annotations

from typing import Final

from callbackkit.stores.base import LETTER_KEPT, Swept
from callbackkit.stores.sqlite_keeping import clear, drop_letters, next_check, purge, shed
from callbackkit.stores.sqlite_row import DELETED, Row
from callbackkit.stores.sqlite_work import Work

__all__ = ["sweep"]

# Seconds a session that left no row behind is told to other processes.
_TOLD_FOR: Final = 300.0
# Seconds until what could not be done now, for a delivery that is owed, is looked at again.
_AGAIN: Final = 1.0

_DUE: Final = "SELECT sid FROM log WHERE check_at <= ? ORDER BY check_at LIMIT ?"
_FORGET_KEYS: Final = "DELETE FROM idempotency WHERE sid = ? AND until <= ?"


def sweep(work: Work, limit: int) -> Swept:
    """Look at so many sessions that time may ask something of."""
    work.save()
    sids = [sid for (sid,) in work.execute(_DUE, (work.now, limit))]
    gone: list[str] = []
    for sid in sids:
        row = work.find_by_sid(sid)
        if _check(work, row):
            gone.append(row.id)
    work.execute("DELETE FROM endpoint WHERE saved_at <= ?", (work.now - LETTER_KEPT,))
    work.execute("DELETE FROM gone WHERE at <= ?", (work.now - _TOLD_FOR,))
    return Swept(gone, len(sids) == limit)


def _check(work: Work, row: Row) -> bool:
    """Do what time asks for; tell whether the session can't be read from now on."""
    if row.state == DELETED:
        drop_letters(work, row, work.now - LETTER_KEPT)
        if row.is_leaving(work.now) and not row.letters:
            work.drop(row)
        else:
            _look_again(work, row)
        return False
    if row.is_leaving(work.now) and not row.must_stay():
        clear(work, row)
        row.leaves_at = 0.0
        if row.letters:
            _look_again(work, row)
        else:
            work.execute("INSERT INTO gone VALUES (?, ?, ?)", (work.sums.change, row.id, work.now))
            work.drop(row)
        return True
    row.keys -= work.execute(_FORGET_KEYS, (row.sid, work.now)).rowcount
    shed(work, row)
    purge(work, row)
    _look_again(work, row)
    return False


def _look_again(work: Work, row: Row) -> None:
    at = next_check(work, row)
    row.check_at = None if at is None else max(at, work.now + _AGAIN)
    work.move(row)
