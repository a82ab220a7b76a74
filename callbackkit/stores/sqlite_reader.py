"""The threads that read an SQLite file, and what they are asked."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import Any, Final

from callbackkit.errors import SessionDeletedError, UnknownSessionError
from callbackkit.events import Position
from callbackkit.stores.base import (
    Attempt,
    DeadLetter,
    Page,
    Record,
    SessionRecord,
    SessionState,
    Totals,
)
from callbackkit.stores.sqlite_letters import LETTER, dead_letter
from callbackkit.stores.sqlite_place import Place, translated
from callbackkit.stores.sqlite_row import (
    DELETED,
    SESSION,
    STATES,
    Row,
    session_record,
    storable,
)
from callbackkit.stores.sqlite_schema import connect
from callbackkit.stores.sqlite_threads import Job, Worker

__all__ = [
    "Reader",
    "attempts",
    "dead_letters",
    "get_session",
    "load_endpoint",
    "read",
    "sessions",
    "tail",
    "totals",
]

Connection = sqlite3.Connection

_LOG: Final = """
    SELECT l.sid, l.state, l.epoch, l.first, l.top FROM session s JOIN log l ON l.sid = s.sid
    WHERE s.id = ?
"""
_RECORDS: Final = """
    SELECT seq, at, event_type, body, owed, ordinal FROM event WHERE sid = ? AND seq >= ?
    ORDER BY seq LIMIT ?
"""
_OWED: Final = """
    SELECT seq, at, event_type, body, owed, ordinal FROM event WHERE sid = ? AND seq >= ? AND owed
    ORDER BY seq LIMIT ?
"""
_ATTEMPTS: Final = """
    SELECT delivery_id, number, at, duration, events, error FROM attempt WHERE sid = ?
    ORDER BY place
"""
_TOTALS: Final = """
    SELECT t.readable, (SELECT count(*) FROM log WHERE state = 0),
        t.gone_sent + total(l.sent), t.gone_settled + total(l.settled),
        t.gone_failed + total(l.failed), t.gone_expired + total(l.expired),
        t.gone_retries + total(l.retries)
    FROM store t LEFT JOIN log l
"""


class Reader(Worker):
    """Does jobs that read, each in a transaction of its own.

    Args:
        place: The file.
        generation: Tells how often the file was opened anew, after a failure.
    """

    def __init__(self, place: Place, generation: Callable[[], int]) -> None:
        self._place = place
        self._generation = generation
        self._opened = -1
        self._connection: Connection | None = None

    def work(self, jobs: Sequence[Job[Any]]) -> None:
        for job in jobs:
            try:
                job.result = self._do(job)
            except (sqlite3.Error, OSError) as error:
                self.close()
                job.error = translated(error, self._place)
            except Exception as error:
                job.error = error

    def rest(self) -> float | None:
        return None

    def tidy(self) -> None:
        """Nothing."""

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _do(self, job: Job[Any]) -> Any:
        generation = self._generation()
        connection = self._connection
        if connection is None or self._opened != generation:
            self.close()
            place = self._place
            connection = self._connection = connect(
                place.path, mode="rw", synchronous=place.synchronous, timeout=place.timeout
            )
            self._opened = generation
            connection.execute("PRAGMA query_only = ON")
        connection.execute("BEGIN")
        try:
            return job.call(connection, *job.arguments)
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")


# Sessions.


def get_session(connection: Connection, session_id: str) -> SessionRecord:
    """Return a session that can be read."""
    row = Row.load(connection, session_id)
    if row is None:
        raise UnknownSessionError(session_id)
    if row.state == DELETED:
        raise SessionDeletedError(session_id)
    return session_record(row)


def sessions(
    connection: Connection,
    state: SessionState | None,
    owner: str | None,
    after: str | None,
    limit: int,
) -> Sequence[SessionRecord]:
    """Return sessions in the order of their ids."""
    conditions = ["l.state < ?" if state is None else "l.state = ?"]
    arguments: list[Any] = [DELETED if state is None else STATES.index(state)]
    if owner is not None:
        conditions.append("s.owner = ?")
        arguments.append(storable(owner))
    if after is not None:
        # As bytes: half of a surrogate pair has its place in the order, too.
        conditions.append("s.id > CAST(? AS TEXT)")
        arguments.append(after.encode("utf-8", "surrogatepass"))
    query = f"{SESSION} WHERE {' AND '.join(conditions)} ORDER BY s.id LIMIT ?"
    found = connection.execute(query, (*arguments, limit)).fetchall()
    return [session_record(Row(columns)) for columns in found]


# Logs.


def read(
    connection: Connection, session_id: str, after: Position | None, limit: int, owed: bool
) -> Page:
    """Return records that follow a position."""
    sid, state, epoch, first, top = _log(connection, session_id)
    begin = first
    if after is not None and after.epoch == epoch and after.seq <= top:
        begin = max(after.seq + 1, first)
    found: list[Record] = []
    if begin <= top:
        found = _records(connection, _OWED if owed else _RECORDS, sid, begin, limit)
    return Page(found, epoch, first, top, STATES[state])


def tail(connection: Connection, session_id: str, limit: int) -> Page:
    """Return the newest records."""
    sid, state, epoch, first, top = _log(connection, session_id)
    begin = max(first, top - limit + 1)
    found = _records(connection, _RECORDS, sid, begin, limit)
    return Page(found, epoch, first, top, STATES[state])


def _log(connection: Connection, session_id: str) -> tuple[int, int, str, int, int]:
    found: tuple[int, int, str, int, int] | None
    found = connection.execute(_LOG, (storable(session_id),)).fetchone()
    if found is None:
        raise UnknownSessionError(session_id)
    if found[1] == DELETED:
        raise SessionDeletedError(session_id)
    return found


def _records(connection: Connection, query: str, sid: int, begin: int, limit: int) -> list[Record]:
    return [
        Record(seq, at, event_type, body, owed == 1, ordinal)
        for seq, at, event_type, body, owed, ordinal in connection.execute(
            query, (sid, begin, limit)
        )
    ]


# Deliveries.


def dead_letters(
    connection: Connection, session_id: str, after: str | None, limit: int
) -> Sequence[DeadLetter]:
    """Return dead letters, the oldest first."""
    sid = _with_letters(connection, session_id)
    number = 0
    if after is not None:
        query = "SELECT number FROM letter WHERE sid = ? AND id = ?"
        (number,) = connection.execute(query, (sid, storable(after))).fetchone() or (0,)
    query = f"{LETTER} WHERE t.sid = ? AND t.number > ? ORDER BY t.number LIMIT ?"
    found = connection.execute(query, (sid, number, limit)).fetchall()
    return [dead_letter(connection.execute, columns) for columns in found]


def attempts(connection: Connection, session_id: str) -> Sequence[Attempt]:
    """Return the last attempts, the oldest first."""
    sid = _with_letters(connection, session_id)
    return [
        Attempt(
            delivery_id=delivery_id,
            number=number,
            at=at,
            duration=duration,
            events=events,
            error=error,
        )
        for delivery_id, number, at, duration, events, error in connection.execute(
            _ATTEMPTS, (sid,)
        )
    ]


def _with_letters(connection: Connection, session_id: str) -> int:
    """Return the row of a session that can be read, or has dead letters still."""
    query = "SELECT s.sid FROM session s JOIN letter t ON t.sid = s.sid WHERE s.id = ? LIMIT 1"
    found = connection.execute(query, (storable(session_id),)).fetchone()
    sid: int = _log(connection, session_id)[0] if found is None else found[0]
    return sid


def load_endpoint(connection: Connection, endpoint: str) -> tuple[int, bytes]:
    """Return the version and state of an endpoint."""
    query = "SELECT version, state FROM endpoint WHERE name = ?"
    return connection.execute(query, (endpoint,)).fetchone() or (0, b"")


# All of it.


def totals(connection: Connection) -> Totals:
    """Return the sums over all sessions."""
    readable, active, *sums = connection.execute(_TOTALS).fetchone()
    sent, settled, failed, expired, retries = map(int, sums)
    return Totals(
        sessions=readable,
        active=active,
        sent=sent,
        delivered=settled - failed - expired,
        failed=failed,
        expired=expired,
        queued=sent - settled,
        retries=retries,
    )
