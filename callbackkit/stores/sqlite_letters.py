"""Reading dead letters."""

from __future__ import annotations

from collections.abc import Callable
from sqlite3 import Cursor
from typing import Any, Final

from callbackkit.stores.base import DeadLetter, Record

__all__ = ["LETTER", "dead_letter"]

LETTER: Final = """
    SELECT t.number, t.id, s.id, t.method, t.epoch, t.reason, t.tried, t.at, t.is_due
    FROM letter t JOIN session s ON s.sid = t.sid
"""
_RECORDS: Final = """
    SELECT seq, at, event_type, body, owed, ordinal FROM letter_record
    WHERE letter = ? ORDER BY seq
"""


def dead_letter(execute: Callable[..., Cursor], columns: tuple[Any, ...]) -> DeadLetter:
    """Return the dead letter of a row of :data:`LETTER`."""
    number, letter_id, session_id, method, epoch, reason, tried, at, is_due = columns
    return DeadLetter(
        id=letter_id,
        session_id=session_id,
        method=method,
        epoch=epoch,
        records=tuple(
            Record(seq, when, event_type, body, owed == 1, ordinal)
            for seq, when, event_type, body, owed, ordinal in execute(_RECORDS, (number,))
        ),
        reason=reason,
        attempts=tried,
        at=at,
        is_due=bool(is_due),
    )
