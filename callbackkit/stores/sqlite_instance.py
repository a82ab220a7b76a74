"""Which file a store is, so that one that was copied, moved or turned back is recognised.

The database holds a random *instance* and counts its transactions. A file beside it,
``<path>-instance``, repeats the instance, names the inode of the database and holds the highest
count that this place has seen. It is written after each commit and never synced, so a crash can
leave it behind the database but not before it. When a store is opened and the file beside it is
missing, of another instance or inode, or *ahead*, then the database is not the one that was here
last: it gets a new instance, and every log in it a new epoch.

A kill leaves both files as they are; after a power failure that took acknowledged transactions
away (``synchronous="NORMAL"``) the file beside may be ahead, and new epochs are what is right.

A kill leaves the write-ahead log, too, and SQLite would play it over whatever database stands at
its path. So a database that is another file than the one here last is refused beside such a log.
The name of a new instance is synced, and stands there before a log of its database has content.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
import struct
from typing import Final

from callbackkit.errors import StoreError
from callbackkit.stores.sqlite_presence import Presence

__all__ = ["Instance", "refuse_foreign_log"]

_MAGIC: Final = b"cbkinst1"
# Magic, instance, inode, count.
_LAYOUT: Final = struct.Struct("<8s16sQQ")
_COUNT: Final = struct.Struct("<Q")
_COUNT_AT: Final = _LAYOUT.size - _COUNT.size

_NEW_EPOCHS: Final = """
    UPDATE log SET epoch = lower(hex(randomblob(8))), change = ?,
        attempts = 0, bound = NULL, due_at = iif(due_at IS NULL, NULL, min(due_at, ?)),
        is_leased = 0
"""
_END_LEASES: Final = """
    UPDATE {} SET is_leased = 0, fence = fence + 1, due_at = min(due_at, ?) WHERE is_leased
"""
_NEW_INSTANCE: Final = "UPDATE store SET instance = ?, change = ?"


def refuse_foreign_log(path: str) -> None:
    """Return if the write-ahead log beside a database may be its own; changes nothing.

    Raises:
        StoreError: It belongs to the file that was here before.
    """
    try:
        # In this order: a log with content is younger than the name of its database.
        has_log = os.stat(f"{path}-wal").st_size > 0
        # Beside an empty file, made by an opening that came no further, SQLite drops the log.
        has_log = has_log and os.stat(path).st_size > 0
        with open(f"{path}-instance", "rb") as file:
            magic, _, inode, _ = _LAYOUT.unpack(file.read(_LAYOUT.size))
        is_another = magic == _MAGIC and inode != os.stat(path).st_ino
    except (OSError, struct.error):
        # One of them is missing, or says nothing.
        return
    if has_log and is_another:
        raise StoreError(
            f"{path} is not the file that was here last, and {path}-wal beside it belongs to that "
            f"one: SQLite would destroy the file with it. If a backup was put back, remove "
            f"{path}-wal and {path}-shm; if all files were moved here together, remove "
            f"{path}-instance"
        )


class Instance:
    """What stands in the file beside the database; for the thread that writes.

    Args:
        path: The database.
        presence: Holds the file beside it, which is open.

    Raises:
        OSError: There is no database.
    """

    def __init__(self, path: str, presence: Presence) -> None:
        self._path = path
        self._presence = presence
        self.inode: int = os.stat(path).st_ino

    def is_in_place(self) -> bool:
        """Tell whether the database is still the file that stands at its path."""
        try:
            return os.stat(self._path).st_ino == self.inode
        except OSError:
            return False

    def check(self, connection: sqlite3.Connection, *, is_first: bool) -> None:
        """Give the database a new instance if it is not the one that was here last.

        Called inside a transaction, which keeps other processes out.

        Args:
            connection: The database.
            is_first: This store opens it for the first time, and so has no delivery on its way.
        """
        instance, change, now = connection.execute(
            "SELECT instance, change, now FROM store"
        ).fetchone()
        if not instance or not self._is_the_last(instance.encode(), change):
            self._begin_anew(connection, change + 1, now)
        if is_first and self._presence.is_alone:
            for table in ("log", "letter"):
                connection.execute(_END_LEASES.format(table), (now,))

    def _begin_anew(self, connection: sqlite3.Connection, change: int, now: float) -> None:
        new = secrets.token_hex(8)
        # Written before the commit: should that not happen, the next one to open comes here again.
        self._write(_LAYOUT.pack(_MAGIC, new.encode(), self.inode, 0), 0)
        os.fsync(self._presence.file)
        connection.execute(_NEW_INSTANCE, (new, change))
        connection.execute(_NEW_EPOCHS, (change, now))

    def note(self, count: int) -> None:
        """Note how many transactions there are; never goes back by itself."""
        try:
            known = _COUNT.unpack(self._read(_COUNT.size, _COUNT_AT))[0]
            if known < count:
                self._write(_COUNT.pack(count), _COUNT_AT)
        except (OSError, struct.error):
            # Then it stays behind, which does no harm.
            return

    def _is_the_last(self, instance: bytes, change: int) -> bool:
        try:
            known = _LAYOUT.unpack(self._read(_LAYOUT.size, 0))
        except struct.error:
            return False
        return bool(known[:3] == (_MAGIC, instance, self.inode) and known[3] <= change)

    def _read(self, size: int, at: int) -> bytes:
        os.lseek(self._presence.file, at, os.SEEK_SET)
        return os.read(self._presence.file, size)

    def _write(self, data: bytes, at: int) -> None:
        os.lseek(self._presence.file, at, os.SEEK_SET)
        os.write(self._presence.file, data)
