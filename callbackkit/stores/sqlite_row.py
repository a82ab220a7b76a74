"""A session as the writing thread knows it: the figures of its row, and what they ask for."""

from __future__ import annotations

import json
import sqlite3
from collections import deque
from collections.abc import Sequence
from operator import attrgetter
from typing import Any, Final, NamedTuple

from callbackkit.stores.base import Claim, NewSession, SessionRecord, SessionState

__all__ = [
    "ACTIVE",
    "DELETED",
    "ENDED",
    "SESSION",
    "STATES",
    "Oldest",
    "Row",
    "session_record",
    "storable",
]

ACTIVE: Final = 0
ENDED: Final = 1
DELETED: Final = 2
STATES: Final[tuple[SessionState, ...]] = ("active", "ended", "deleted")

_FIXED: Final = (
    "sid",
    "id",
    "token_hash",
    "owner",
    "config",
    "pushes",
    "unowed",
    "ttl",
    "max_events",
    "max_bytes",
    "max_age",
    "max_pending",
    "created_at",
)
# What each append changes.
_HEAD: Final = ("top", "sent", "size", "last_at", "touched_at", "change")
# What some do.
_FIGURES: Final = (
    *_HEAD,
    "first",
    "cursor",
    "settled",
    "shed",
    "failed",
    "expired",
    "retries",
    "tries",
    "keys",
)
# Some of these have an index, so they are written only when one of them changed.
_REST: Final = (
    "state",
    "leaves_at",
    "check_at",
    "due_at",
    "is_leased",
    "fence",
    "attempts",
    "bound",
    "letters",
)
_COLUMNS: Final = (*_FIXED, "method", "epoch", *_FIGURES, *_REST)


def _set(names: Sequence[str]) -> str:
    return ", ".join(f"{name} = ?" for name in names)


SESSION: Final = (
    f"SELECT {', '.join(f's.{name}' for name in _FIXED)}, "
    f"{', '.join(f'l.{name}' for name in _COLUMNS[len(_FIXED) :])} "
    "FROM session s JOIN log l ON l.sid = s.sid "
)
_BY_ID: Final = f"{SESSION} WHERE s.id = ?"
_BY_SID: Final = f"{SESSION} WHERE s.sid = ?"
_SAVE_HEAD: Final = f"UPDATE log SET {_set(_HEAD)} WHERE sid = ?"
_SAVE_FIGURES: Final = f"UPDATE log SET {_set(_FIGURES)} WHERE sid = ?"
_SAVE: Final = f"UPDATE log SET {_set((*_FIGURES, *_REST))} WHERE sid = ?"
_OLDEST: Final = """
    SELECT seq, at, owed, ordinal, total FROM event WHERE sid = ? AND seq >= ?
    ORDER BY seq LIMIT 64
"""
_get_head: Final = attrgetter(*_HEAD, "sid")
_get_figures: Final = attrgetter(*_FIGURES, "sid")
_get_all: Final = attrgetter(*_FIGURES, *_REST, "sid")
_INSERT_SESSION: Final = (
    f"INSERT INTO session ({', '.join(_FIXED[1:])}) VALUES ({', '.join('?' * len(_FIXED[1:]))})"
)
_get_fixed: Final = attrgetter(*_FIXED[1:])
_INSERT_LOG: Final = (
    f"INSERT INTO log (method, epoch, {', '.join([*_FIGURES, *_REST])}, sid) "
    f"VALUES ({', '.join('?' * (len(_FIGURES) + len(_REST) + 3))})"
)
_get_log: Final = attrgetter("method", "epoch", *_FIGURES, *_REST, "sid")


class Oldest(NamedTuple):
    """What is to be known of a record to drop it."""

    seq: int
    at: int
    owed: int
    ordinal: int
    total: int


class Row:
    """A session; its attributes are the columns of its two tables.

    Attributes:
        unowed: Event types, as JSON.
        settled: Ordinal of the record at the cursor.
        size: Bytes of all records ever appended.
        shed: Bytes of those that were dropped.
        touched_at: When it was used last.
        tries: Attempts ever made.
        keys: Idempotency keys remembered.
        change: Number of the transaction that last changed what readers see.
        leaves_at: When it goes, once it has ended or was deleted.
        check_at: When time may ask for something; rather too early.
        due_at: When what it owes may be claimed; ``None`` if nothing is owed.
        letters: Dead letters kept.
    """

    __slots__ = (*_COLUMNS, "_oldest", "is_listed", "is_moved", "is_touched")

    sid: int
    id: str
    token_hash: bytes
    owner: str | None
    config: bytes
    pushes: int
    unowed: str
    ttl: float | None
    max_events: float | None
    max_bytes: float | None
    max_age: float | None
    max_pending: int
    created_at: float
    method: str
    epoch: str
    first: int
    top: int
    cursor: int
    settled: int
    sent: int
    size: int
    shed: int
    last_at: int
    touched_at: float
    failed: int
    expired: int
    retries: int
    tries: int
    keys: int
    change: int
    state: int
    leaves_at: float | None
    check_at: float | None
    due_at: float | None
    is_leased: int
    fence: int
    attempts: int
    bound: int | None
    letters: int

    def __init__(self, columns: tuple[Any, ...]) -> None:
        for name, value in zip(_COLUMNS, columns, strict=True):
            setattr(self, name, value)
        self._oldest: deque[Oldest] = deque()
        # What is to be saved: what each append changes, all figures, and the rest too.
        self.is_listed: bool = False
        self.is_touched: bool = False
        self.is_moved: bool = False

    # Loading and saving.

    @classmethod
    def new(cls, new: NewSession, *, epoch: str, created_at: float, now: float) -> Row:
        """Return the row of a session that begins."""
        values: dict[str, Any] = dict.fromkeys(_COLUMNS, 0)
        values.update(dict.fromkeys(("leaves_at", "check_at", "due_at", "bound")))
        kept = new.retention
        values.update(
            id=new.id,
            token_hash=new.token_hash,
            owner=new.owner,
            config=new.config,
            pushes=int(new.pushes),
            unowed=json.dumps(new.unowed),
            ttl=new.ttl,
            max_events=kept.max_events,
            max_bytes=kept.max_bytes,
            max_age=kept.max_age,
            max_pending=new.max_pending,
            created_at=created_at,
            method=new.method,
            epoch=epoch,
            first=1,
            touched_at=now,
        )
        return cls(tuple(values.values()))

    @classmethod
    def load(cls, connection: sqlite3.Connection, key: str | int) -> Row | None:
        """Read a session by its id, or the number of its row."""
        if isinstance(key, str):
            found = connection.execute(_BY_ID, (storable(key),)).fetchone()
        else:
            found = connection.execute(_BY_SID, (key,)).fetchone()
        return None if found is None else cls(found)

    def insert(self, connection: sqlite3.Connection) -> None:
        """Make the rows of a new session."""
        cursor = connection.execute(_INSERT_SESSION, _get_fixed(self))
        assert cursor.lastrowid is not None
        self.sid = cursor.lastrowid
        connection.execute(_INSERT_LOG, _get_log(self))

    @staticmethod
    def save(connection: sqlite3.Connection, rows: Sequence[Row]) -> None:
        """Write what changed."""
        heads: list[Any] = []
        figures: list[Any] = []
        moved: list[Any] = []
        for row in rows:
            if row.is_moved:
                moved.append(_get_all(row))
            elif row.is_touched:
                figures.append(_get_figures(row))
            else:
                heads.append(_get_head(row))
            row.is_listed = row.is_touched = row.is_moved = False
        for statement, values in ((_SAVE_HEAD, heads), (_SAVE_FIGURES, figures), (_SAVE, moved)):
            if values:
                connection.executemany(statement, values)

    # What time and bounds ask for.

    def count(self) -> int:
        """Return how many records are kept."""
        return self.top - self.first + 1

    def queued(self) -> int:
        """Return how many owed records stand behind the cursor."""
        return self.sent - self.settled

    def is_over(self) -> bool:
        """Tell whether count or bytes go beyond the retention."""
        count = self.top - self.first + 1
        if self.max_events is not None and count > self.max_events:
            return True
        return self.max_bytes is not None and self.size - self.shed > self.max_bytes and count > 1

    def is_too_old(self, connection: sqlite3.Connection, wall: float) -> bool:
        """Tell whether the oldest record is older than the retention; the newest may be so.

        Age goes by the clock that timestamps are of: one that is turned back makes nothing older.
        """
        if self.max_age is None or self.count() <= 1:
            return False
        return self.oldest(connection).at <= (wall - self.max_age) * 1e6

    def must_deliver(self, connection: sqlite3.Connection) -> bool:
        """Tell whether a transport is still to deliver the oldest record."""
        if not self.pushes or self.first <= self.cursor:
            return False
        return bool(self.oldest(connection).owed)

    def must_stay(self) -> bool:
        """Tell whether a transport is still to deliver anything."""
        return bool(self.pushes) and self.sent > self.settled

    def is_leaving(self, now: float) -> bool:
        """Tell whether its time is over."""
        if self.state == ACTIVE:
            return self.ttl is not None and self.touched_at + self.ttl <= now
        return self.leaves_at is not None and self.leaves_at <= now

    def oldest(self, connection: sqlite3.Connection) -> Oldest:
        """Return the oldest record; there has to be one. They are read many at a time."""
        known = self._oldest
        while known and known[0].seq < self.first:
            known.popleft()
        if not known:
            known.extend(map(Oldest._make, connection.execute(_OLDEST, (self.sid, self.first))))
        return known[0]

    def stay(self, at: float | None) -> None:
        """Have time look at it then, if not earlier."""
        if at is not None and (self.check_at is None or at < self.check_at):
            self.check_at = at
            self.is_moved = True

    # What it owes.

    def begin_anew(self) -> None:
        """Refuse whoever holds the lease, and forget the tries."""
        self.fence += 1
        self.is_leased = 0
        self.attempts = 0
        self.bound = None
        self.due_at = None
        self.is_moved = True

    def as_claim(self) -> Claim:
        """Return the claim on what comes next."""
        return Claim(
            session_id=self.id,
            method=self.method,
            config=self.config,
            epoch=self.epoch,
            cursor=self.cursor,
            attempts=self.attempts,
            bound=self.bound,
            fence=self.fence,
        )


def storable(text: str) -> str | bytes:
    """Return a text as SQLite takes it.

    One with half of a surrogate pair becomes bytes, which are equal to no text there is.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")
    return text


def session_record(row: Row) -> SessionRecord:
    """Return a session as it stands."""
    return SessionRecord(
        id=row.id,
        token_hash=row.token_hash,
        owner=row.owner,
        config=row.config,
        method=row.method,
        pushes=bool(row.pushes),
        unowed=tuple(json.loads(row.unowed)),
        state=STATES[row.state],
        created_at=row.created_at,
        epoch=row.epoch,
        first=row.first,
        top=row.top,
        cursor=row.cursor,
        sent=row.sent,
        delivered=row.settled - row.failed - row.expired,
        failed=row.failed,
        expired=row.expired,
        queued=row.sent - row.settled,
        retries=row.retries,
    )
