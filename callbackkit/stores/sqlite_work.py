"""One transaction of the writing thread, as the jobs in it see it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import Any, Final

import attrs

from callbackkit.errors import SessionDeletedError, UnknownSessionError
from callbackkit.stores.sqlite_row import DELETED, Row

__all__ = ["IdTakenError", "Rows", "Sums", "Work"]

_LOAD_SUMS: Final = """
    SELECT change, now, readable, gone_sent, gone_settled, gone_failed, gone_expired, gone_retries
    FROM store
"""
_SAVE_SUMS: Final = """
    UPDATE store SET change = ?, now = ?, readable = ?, gone_sent = ?, gone_settled = ?,
        gone_failed = ?, gone_expired = ?, gone_retries = ?
"""


_APPEND: Final = "INSERT INTO fresh VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?)"


class IdTakenError(ValueError):
    """A session has this id already."""


@attrs.define
class Sums:
    """The row of the table ``store``; ``gone_`` is of sessions without a row.

    Attributes:
        change: Number of the last transaction.
        now: When it began.
        readable: Sessions that can be read.
    """

    change: int
    now: float
    readable: int
    gone_sent: int
    gone_settled: int
    gone_failed: int
    gone_expired: int
    gone_retries: int

    @classmethod
    def load(cls, connection: sqlite3.Connection) -> Sums:
        """Read it."""
        return cls(*connection.execute(_LOAD_SUMS).fetchone())

    def save(self, connection: sqlite3.Connection) -> None:
        """Write it."""
        connection.execute(
            _SAVE_SUMS,
            (
                self.change,
                self.now,
                self.readable,
                self.gone_sent,
                self.gone_settled,
                self.gone_failed,
                self.gone_expired,
                self.gone_retries,
            ),
        )


# What is known from transactions before; right as long as nobody else writes.
Rows = dict[str, Row]


class Work:
    """A transaction. A job looks at everything before it changes anything.

    Attributes:
        now: When it began, seconds since 1970; no earlier than any transaction before it.
        wall: Tells the time for timestamps.
        sums: The sums.
        rings: What to wake once it is committed.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        rows: Rows,
        sums: Sums,
        wall: Callable[[], float],
    ) -> None:
        self._connection = connection
        self._fresh: list[tuple[Any, ...]] = []
        self.wall: Callable[[], float] = wall
        self.now: float = sums.now
        self.sums: Sums = sums
        self.rings: dict[str | None, int | None] = {}
        self._rows = rows
        self._listed: list[Row] = []
        self._changes = connection.total_changes

    @property
    def connection(self) -> sqlite3.Connection:
        """The connection, which knows all that was done so far."""
        self._insert()
        return self._connection

    def execute(self, statement: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        """Execute a statement."""
        self._insert()
        return self._connection.execute(statement, values)

    def append(self, row: Row, record: tuple[Any, ...]) -> None:
        """Have a record inserted, together with others: one by one costs a third more."""
        self._fresh.append(record)
        self._list(row)

    def _insert(self) -> None:
        if self._fresh:
            records, self._fresh = self._fresh, []
            self._connection.executemany(_APPEND, records)

    def find(self, session_id: str) -> Row | None:
        """Return a session, whatever its state."""
        row = self._rows.get(session_id)
        if row is None:
            row = Row.load(self.connection, session_id)
            if row is not None:
                self._rows[session_id] = row
        return row

    def find_by_sid(self, sid: int) -> Row:
        """Return the session of a row."""
        (session_id,) = self.execute("SELECT id FROM session WHERE sid = ?", (sid,)).fetchone()
        row = self.find(session_id)
        assert row is not None
        return row

    def get(self, session_id: str) -> Row:
        """Return a session that can be read.

        Raises:
            UnknownSessionError: There is none.
            SessionDeletedError: It was deleted.
        """
        row = self.find(session_id)
        if row is None:
            raise UnknownSessionError(session_id)
        if row.state == DELETED:
            raise SessionDeletedError(session_id)
        return row

    def add(self, row: Row) -> None:
        """Keep a new session."""
        row.change = self.sums.change
        row.insert(self.connection)
        self._rows[row.id] = row

    def touch(self, row: Row) -> None:
        """Have the figures of a session saved."""
        row.is_touched = True
        self._list(row)

    def move(self, row: Row) -> None:
        """Have all of a session saved."""
        row.is_moved = True
        self.touch(row)

    def ring(self, row: Row, top: int | None = None) -> None:
        """Wake who reads a session, in this process and others.

        Args:
            row: The session.
            top: Number of its newest record, if that is all that is new.
        """
        row.change = self.sums.change
        self._list(row)
        is_more = top is None or self.rings.get(row.id, 0) is None
        self.rings[row.id] = None if is_more else top

    def _list(self, row: Row) -> None:
        if not row.is_listed:
            row.is_listed = True
            self._listed.append(row)

    def drop(self, row: Row) -> None:
        """Forget a session but for its part in the sums."""
        for table in ("session", "log", "attempt"):
            self.execute(f"DELETE FROM {table} WHERE sid = ?", (row.sid,))
        self._rows.pop(row.id, None)
        if row.is_listed:
            self._listed.remove(row)
        sums = self.sums
        sums.gone_sent += row.sent
        sums.gone_settled += row.settled
        sums.gone_failed += row.failed
        sums.gone_expired += row.expired
        sums.gone_retries += row.retries

    def save(self) -> None:
        """Write the sessions that were touched, so that a query finds them as they are."""
        Row.save(self.connection, self._listed)
        self._listed.clear()

    def finish(self) -> bool:
        """Write what is still to be written; ``False`` if nothing was changed at all."""
        self.save()
        if self.connection.total_changes == self._changes:
            return False
        self.sums.save(self.connection)
        return True
