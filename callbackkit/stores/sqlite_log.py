"""The jobs that write to sessions and their logs."""

from __future__ import annotations

import hashlib
import json
import math
import secrets
from collections.abc import Mapping
from typing import Final

from callbackkit.errors import IdempotencyError, LimitError, SessionEndedError
from callbackkit.stores.base import KEY_KEPT, Appended, NewSession, Record, SessionRecord
from callbackkit.stores.sqlite_keeping import (
    clear,
    drop,
    drop_letters,
    next_check,
    owe,
    purge,
    settle,
    shed,
)
from callbackkit.stores.sqlite_row import (
    ACTIVE,
    DELETED,
    ENDED,
    Row,
    session_record,
    storable,
)
from callbackkit.stores.sqlite_work import IdTakenError, Work

__all__ = [
    "append",
    "create_session",
    "delete_session",
    "end_session",
    "touch",
    "trim",
    "update_session",
]

# Idempotency keys one session may have at a time.
_MOST_KEYS: Final = 100_000

_KNOWN: Final = """
    SELECT seq, at, event_type, digest, owed, ordinal FROM idempotency
    WHERE sid = ? AND key = ? AND until > ?
"""
_REMEMBER: Final = "INSERT INTO idempotency VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
_FORGET: Final = "DELETE FROM idempotency WHERE sid = ? AND key = ?"
_UPDATE: Final = "UPDATE session SET config = ?, unowed = ? WHERE sid = ?"


# Sessions.


def create_session(work: Work, new: NewSession, max_sessions: int | None) -> SessionRecord:
    """Begin a session."""
    for name, value in (("id", new.id), ("owner", new.owner)):
        if value is not None and isinstance(storable(value), bytes):
            raise ValueError(f"{name} must be text that UTF-8 can hold, not {value!r:.100}")
    if work.find(new.id) is not None:
        raise IdTakenError("a session with this id exists already")
    if max_sessions is not None and work.sums.readable >= max_sessions:
        raise LimitError("max_sessions", max_sessions)
    row = Row.new(new, epoch=secrets.token_hex(8), created_at=work.wall(), now=work.now)
    row.check_at = next_check(work, row)
    work.add(row)
    work.sums.readable += 1
    return session_record(row)


def update_session(
    work: Work, session_id: str, known: bytes, config: bytes, unowed: tuple[str, ...]
) -> SessionRecord:
    """Give a session another configuration, if it is still the known one."""
    row = work.get(session_id)
    if row.state != ACTIVE:
        raise SessionEndedError(session_id)
    if row.config == known:
        row.config = config
        row.unowed = json.dumps(unowed)
        work.execute(_UPDATE, (row.config, row.unowed, row.sid))
    return session_record(row)


def touch(work: Work, reads: Mapping[str, int | None]) -> None:
    """Note that sessions are in use, and how far they were read."""
    for session_id, upto in reads.items():
        row = work.find(session_id)
        if row is None or row.state == DELETED:
            continue
        row.touched_at = work.now
        work.touch(row)
        if upto is not None and not row.pushes:
            settle(work, row, upto)


def end_session(work: Work, session_id: str, linger: float) -> SessionRecord:
    """Make a session read-only."""
    row = work.get(session_id)
    if row.state == ACTIVE:
        row.state = ENDED
        row.leaves_at = work.now + linger
        row.stay(row.leaves_at)
        work.move(row)
    work.ring(row)
    return session_record(row)


def delete_session(work: Work, session_id: str, linger: float) -> None:
    """Drop a session with what it holds."""
    row = work.get(session_id)
    drop_letters(work, row, math.inf)
    work.execute("DELETE FROM attempt WHERE sid = ?", (row.sid,))
    clear(work, row)
    row.leaves_at = row.check_at = work.now + linger
    work.move(row)


# The log.


def append(
    work: Work, session_id: str, event_type: str, body: bytes, owed: bool, key: str | None
) -> Appended:
    """Append an event: one row more, and the figures of the session."""
    row = work.get(session_id)
    if key is not None:
        known = _known(work, row, event_type, body, key)
        if known is not None:
            return Appended(row.epoch, known, False)
    if row.state != ACTIVE:
        raise SessionEndedError(session_id)
    if key is not None and row.keys >= _MOST_KEYS:
        raise LimitError("keys", _MOST_KEYS, "so many idempotency keys in 24 hours")
    record = _add(work, row, event_type, body, owed)
    if key is not None:
        _remember(work, row, record, key)
    if owed and row.pushes:
        owe(work, row)
    if row.is_over():
        shed(work, row)
    if record.seq == row.first + 1 and row.max_age is not None:
        # The newest is kept whatever its age; the one before it is what may get too old.
        row.stay(row.oldest(work.connection).at / 1e6 + row.max_age)
    work.ring(row, record.seq)
    return Appended(row.epoch, record, True)


def _add(work: Work, row: Row, event_type: str, body: bytes, owed: bool) -> Record:
    at = max(int(work.wall() * 1e6), row.last_at + 1)
    seq = row.top + 1
    ordinal = row.sent + owed
    size = row.size + len(body)
    work.append(row, (row.sid, seq, at, event_type, body, owed, ordinal, size))
    row.top = seq
    row.last_at = at
    row.sent = ordinal
    row.size = size
    row.touched_at = work.now
    return Record(seq, at, event_type, body, owed, ordinal)


def _known(work: Work, row: Row, event_type: str, body: bytes, key: str) -> Record | None:
    """Return the record that an idempotency key gave before."""
    known = work.execute(_KNOWN, (row.sid, storable(key), work.now)).fetchone()
    if known is None:
        return None
    seq, at, known_type, digest, owed, ordinal = known
    if known_type != event_type or digest != hashlib.sha256(body).digest():
        raise IdempotencyError(f"the key {key!r:.100} came before with another event")
    return Record(seq, at, event_type, body, owed == 1, ordinal)


def _remember(work: Work, row: Row, record: Record, key: str) -> None:
    digest = hashlib.sha256(record.body).digest()
    until = work.now + KEY_KEPT
    columns = (record.seq, record.at, record.event_type, digest, record.owed, record.ordinal)
    # One whose time is over may still be there.
    forgotten = work.execute(_FORGET, (row.sid, storable(key))).rowcount
    work.execute(_REMEMBER, (row.sid, storable(key), until, *columns))
    row.keys += 1 - forgotten
    work.touch(row)
    row.stay(until)


def trim(work: Work, session_id: str, before: int) -> int:
    """Drop records up to a number."""
    row = work.get(session_id)
    first = row.first
    while row.first < min(before, row.top + 1) and not row.must_deliver(work.connection):
        drop(work, row)
    purge(work, row)
    return row.first - first
