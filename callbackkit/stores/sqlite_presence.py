"""That a process has an SQLite file open, told by a lock on the file beside it.

Each process that has the database open holds a shared lock on ``<path>-instance``. Whoever opens
the database first tries to lock it alone: if that works, no delivery is on its way, whatever
leases say. The lock is shared again once the opening is committed; whoever comes meanwhile waits
for that before it begins a transaction, so that nobody waits for a lock inside one.
"""

from __future__ import annotations

import os
import random
import sys
import time

from callbackkit.errors import StoreUnavailableError

if sys.platform != "win32":
    import fcntl

__all__ = ["Presence"]

# Seconds between two tries, at most.
_LONGEST_PAUSE = 0.005


class Presence:
    """The file beside a database, held from the first opening until the store is closed.

    An error that makes a store open its database anew leaves it: whoever lets go of it is taken for
    dead, and what it is delivering is given to others.

    Args:
        path: The database.
    """

    def __init__(self, path: str) -> None:
        self._database = path
        self._path = f"{path}-instance"
        self._file: int | None = None
        self._is_held = False
        # Nobody else has the database open.
        self.is_alone: bool = False

    @property
    def file(self) -> int:
        """The file, which is open from :meth:`enter` on."""
        assert self._file is not None
        return self._file

    def enter(self, *, is_first: bool, timeout: float) -> None:
        """Tell others of this process, and find out whether there are any; waits for an opening.

        Args:
            is_first: The store opens its file for the first time: nobody relies on the lock yet.
            timeout: Seconds to wait.

        Raises:
            OSError: The file can't be opened or made.
            StoreUnavailableError: Another process did not finish its opening in that time.
        """
        file = self._open()
        # Whoever asks for more loses what he has (flock(2)), so a lock that counts is left alone.
        if is_first:
            self.is_alone = _lock(file, alone=True)
        if not self.is_alone and (is_first or not self._is_held):
            self._wait(file, timeout)

    def share(self, timeout: float) -> None:
        """Let others in, after the opening.

        Raises:
            StoreUnavailableError: As for :meth:`enter`: one may slip in between two locks.
        """
        if self.is_alone:
            self.is_alone = False
            self._wait(self.file, timeout)

    def fail(self) -> None:
        """Let others in, after an opening that came to nothing."""
        if self.is_alone:
            self.close()

    def close(self) -> None:
        """Be gone."""
        file, self._file = self._file, None
        self._is_held = self.is_alone = False
        if file is not None:
            os.close(file)

    def _open(self) -> int:
        if self._file is not None and not self._is_in_place(self._file):
            # Nobody else would see a lock on a file that was removed.
            self.close()
        if self._file is None:
            flags = os.O_RDWR | os.O_CREAT
            flags |= getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
            self._file = os.open(self._path, flags, 0o600)
        return self._file

    def _is_in_place(self, file: int) -> bool:
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(file))
        except OSError:
            return False

    def _wait(self, file: int, timeout: float) -> None:
        """Wait for a shared lock."""
        self._is_held = False
        until = time.monotonic() + timeout
        while not _lock(file, alone=False):
            if time.monotonic() >= until:
                raise StoreUnavailableError(
                    f"{self._database} was being opened by another process for {timeout:g} seconds"
                )
            time.sleep(random.uniform(0.0, _LONGEST_PAUSE))
        self._is_held = True


def _lock(file: int, *, alone: bool) -> bool:
    """Lock a file, alone or with others; ``False`` if others are in the way.

    The lock goes with the opened file: a kill ends it, another file of this process does not.
    Where there are no such locks nobody is alone, and nobody waits.
    """
    if sys.platform == "win32":
        return not alone
    try:
        fcntl.flock(file, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return not alone
    return True
