"""Which file a store is, so that one that was copied, moved or turned back is recognised.

The database holds a random *instance* and counts its transactions. A file beside it,
``<path>-instance``, repeats the instance, names the inode of the database and holds the highest
count that this place has seen. It is written after each commit and never synced, so a crash can
leave it behind the database but not before it. When a store is opened and the file beside it is
missing, of another instance or inode, or *ahead*, then the database is not the one that was here
last: it gets a new instance, and every log in it a new epoch.

Each process that has the database open holds a shared lock on the file beside it. Whoever opens it
and finds no lock is alone: then no delivery is on its way, whatever leases say, and those of
processes that were killed end at once.

A kill leaves both files as they are; after a power failure that took acknowledged transactions
away (``synchronous="NORMAL"``) the file beside may be ahead, and new epochs are what is right.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
import struct
import sys
import time
from contextlib import suppress
from typing import Final

if sys.platform != "win32":
    import fcntl

__all__ = ["Instance"]

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
# Seconds to wait for another process that is opening the file at this moment.
_LOCK_TIMEOUT: Final = 5.0
_NEW_INSTANCE: Final = "UPDATE store SET instance = ?, change = ?"


class Instance:
    """The file beside the database, open; for the thread that writes.

    Args:
        path: The database.

    Raises:
        OSError: It can't be opened or made.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        self._file = os.open(f"{path}-instance", flags, 0o600)
        self.inode: int = os.stat(path).st_ino
        self._is_alone = _lock(self._file, alone=True)

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._file)

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
        if is_first and self._is_alone:
            for table in ("log", "letter"):
                connection.execute(_END_LEASES.format(table), (now,))
        self._share()
        if instance and self._is_the_last(instance.encode(), change):
            return
        new = secrets.token_hex(8)
        # Written before the commit: should that not happen, the next one to open comes here again.
        self._write(_LAYOUT.pack(_MAGIC, new.encode(), self.inode, 0), 0)
        connection.execute(_NEW_INSTANCE, (new, change + 1))
        connection.execute(_NEW_EPOCHS, (change + 1, now))

    def _share(self) -> None:
        """Tell who opens the file later that it is in use."""
        until = time.monotonic() + _LOCK_TIMEOUT
        while not _lock(self._file, alone=False) and time.monotonic() < until:
            time.sleep(0.005)

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
        os.lseek(self._file, at, os.SEEK_SET)
        return os.read(self._file, size)

    def _write(self, data: bytes, at: int) -> None:
        os.lseek(self._file, at, os.SEEK_SET)
        os.write(self._file, data)


def _lock(file: int, *, alone: bool) -> bool:
    """Lock a file, alone or with others; ``False`` if that can't be done now, or here at all.

    The lock goes with the opened file: a kill ends it, another file of this process does not.
    """
    if sys.platform == "win32":
        return False
    with suppress(OSError):
        fcntl.flock(file, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        return True
    return False
