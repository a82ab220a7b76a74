"""Where a store is, and what may be wrong with it there."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Final, Literal

import attrs

from callbackkit.errors import StoreError, StoreUnavailableError

__all__ = ["Place", "is_harmless", "is_locked", "translated"]


@attrs.frozen
class Place:
    """What the threads of one store have in common.

    Attributes:
        path: The file.
        synchronous: What a commit waits for.
        timeout: Seconds to wait for another process that writes.
        clock: Seconds since 1970 that pass evenly.
        wall: Seconds since 1970, for timestamps.
    """

    path: str
    synchronous: Literal["FULL", "NORMAL"]
    timeout: float
    clock: Callable[[], float]
    wall: Callable[[], float]


def is_locked(error: BaseException) -> bool:
    """Tell whether another connection is in the way."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL)


def is_harmless(error: BaseException) -> bool:
    """Tell whether it says nothing about the file: another connection, or a value it can't hold."""
    if isinstance(error, sqlite3.DataError | sqlite3.IntegrityError | sqlite3.ProgrammingError):
        return True
    return is_locked(error) or not isinstance(error, sqlite3.Error | OSError)


_UNAVAILABLE: Final = {
    sqlite3.SQLITE_CANTOPEN: "can't be opened",
    sqlite3.SQLITE_CORRUPT: "is damaged",
    sqlite3.SQLITE_FULL: "can't grow, the disk is full",
    sqlite3.SQLITE_IOERR: "can't be read or written",
    sqlite3.SQLITE_NOTADB: "is no SQLite database",
    sqlite3.SQLITE_PERM: "may not be used",
    sqlite3.SQLITE_READONLY: "may not be written",
}


def translated(error: BaseException, place: Place) -> StoreError:
    """Return the error of ours for one of SQLite or the file system."""
    if isinstance(error, StoreError):
        return error
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    new: StoreError
    if is_locked(error):
        new = StoreUnavailableError(
            f"{place.path} was locked by another process for {place.timeout:g} seconds"
        )
    elif code in _UNAVAILABLE:
        new = StoreUnavailableError(f"{place.path} {_UNAVAILABLE[code]}: {error}")
    elif isinstance(error, OSError):
        new = StoreUnavailableError(f"{place.path}: {error}")
    else:
        new = StoreError(f"{place.path}: {error}")
    new.__cause__ = error
    return new
