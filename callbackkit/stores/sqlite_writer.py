"""The thread that writes to an SQLite file: all that waits, in one transaction."""

from __future__ import annotations

import os
import random
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final, TypeVar

from callbackkit.errors import CallbackKitError, StoreError, StoreUnavailableError
from callbackkit.stores.sqlite_instance import Instance
from callbackkit.stores.sqlite_place import Place, is_harmless, is_locked, translated
from callbackkit.stores.sqlite_presence import Presence
from callbackkit.stores.sqlite_schema import check, connect, migrate
from callbackkit.stores.sqlite_threads import Job, Worker
from callbackkit.stores.sqlite_work import IdTakenError, Rows, Sums, Work

__all__ = ["Writer"]

T = TypeVar("T")

# Sessions whose rows are remembered between transactions.
_MOST_ROWS: Final = 1024
# Seconds without a job after which the write-ahead log is emptied.
_REST: Final = 1.0
# Bytes from which it is emptied though there are jobs, and transactions between two looks.
_MOST_WAL: Final = 16_777_216
_LOOK_EVERY: Final = 256
# Fresh records from which they are moved to their sessions, and transactions between two looks.
_MOST_FRESH: Final = 4_000
_MOVE_EVERY: Final = 16
_COUNT_FRESH: Final = """
    SELECT ifnull((SELECT max(place) FROM fresh) - (SELECT min(place) FROM fresh) + 1, 0)
"""
_MOVE_FRESH: Final = """
    INSERT INTO record SELECT sid, seq, at, event_type, body, owed, ordinal, total FROM fresh
    ORDER BY sid, seq
"""
# Seconds between two tries to begin, at most: SQLite's own steps go up to 0.1 and are unfair.
_LONGEST_PAUSE: Final = 0.005


class Writer(Worker):
    """Does all jobs that wait in one transaction; one that fails, fails alone.

    Args:
        place: The file.
        opened: Called when the file is open and in order, with the number of its last transaction.
        committed: Called after each transaction with its number and what to wake.
    """

    def __init__(
        self,
        place: Place,
        opened: Callable[[int], None],
        committed: Callable[[int, dict[str | None, int | None]], None],
    ) -> None:
        self._place = place
        self._opened = opened
        self._committed = committed
        self._connection: sqlite3.Connection | None = None
        self._presence = Presence(place.path)
        self._instance: Instance | None = None
        # Right as long as the version of the database is this one, which others change.
        self._rows: Rows = {}
        self._sums: Sums | None = None
        self._version = -1
        # How far the time of the store is ahead of the clock, which was turned back.
        self._ahead = 0.0
        self._commits = 0
        self._is_tidy = True
        # It has not opened the file yet.
        self._is_new = True

    # The life of a worker.

    def work(self, jobs: Sequence[Job[Any]]) -> None:
        error = self._try(jobs)
        if error is not None:
            _fail(jobs, error)

    def rest(self) -> float | None:
        return None if self._is_tidy else _REST

    def tidy(self) -> None:
        self._is_tidy = True
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._move_fresh(self._connection, 0)
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def close(self) -> None:
        self._let_go()
        self._presence.close()

    # A transaction.

    def _try(self, jobs: Sequence[Job[Any]]) -> StoreError | None:
        """Do jobs; return what is wrong if nothing can be written at all."""
        try:
            connection = self._open()
            self._begin(connection)
        except (sqlite3.Error, OSError, StoreError) as error:
            self._give_up(error)
            return translated(error, self._place)
        try:
            work = self._transact(connection, jobs)
        except Exception as error:
            self._give_up(error)
            return self._try_again(jobs, error)
        if work is not None:
            self._follow_up(connection, work)
        return None

    def _try_again(self, jobs: Sequence[Job[Any]], error: Exception) -> StoreError | None:
        """After a failure half-way, give each job a transaction of its own."""
        if len(jobs) == 1:
            job = jobs[0]
            is_ours = isinstance(error, sqlite3.Error | OSError)
            job.error = translated(error, self._place) if is_ours else error
            return None
        for place, job in enumerate(jobs):
            hopeless = self._try([job])
            if hopeless is not None:
                _fail(jobs[place:], hopeless)
                break
        return None

    def _begin(self, connection: sqlite3.Connection) -> None:
        self._patiently(lambda: connection.execute("BEGIN IMMEDIATE"))

    def _transact(self, connection: sqlite3.Connection, jobs: Sequence[Job[Any]]) -> Work | None:
        """Do jobs and commit; return what they did, or ``None`` if that was nothing.

        The commit is the last step: what fails here has not happened.
        """
        sums = self._begun(connection)
        work = Work(connection, self._rows, sums, self._place.wall)
        for job in jobs:
            _do(job, work)
        is_changed = work.finish()
        if not is_changed:
            sums.change -= 1
        connection.execute("COMMIT")
        return work if is_changed else None

    def _follow_up(self, connection: sqlite3.Connection, work: Work) -> None:
        """Do what a commit asks for."""
        change = work.sums.change
        if self._instance is not None:
            self._instance.note(change)
        self._committed(change, work.rings)
        self._is_tidy = False
        self._commits += 1
        with suppress(sqlite3.Error, OSError):
            if self._commits % _MOVE_EVERY == 0:
                self._move_fresh(connection, _MOST_FRESH)
            if self._commits % _LOOK_EVERY == 0:
                self._bound_wal(connection)

    def _begun(self, connection: sqlite3.Connection) -> Sums:
        (version,) = connection.execute("PRAGMA data_version").fetchone()
        if version != self._version or len(self._rows) > _MOST_ROWS:
            self._forget()
            self._version = version
        sums = self._sums
        if sums is None:
            sums = self._sums = Sums.load(connection)
        now = self._place.clock() + self._ahead
        if now < sums.now:
            # It goes on from where it was, so that what is due in an hour is due in an hour.
            self._ahead += sums.now - now
        sums.now = max(now, sums.now)
        sums.change += 1
        return sums

    def _give_up(self, error: Exception) -> None:
        """Take back what is not committed, and let go of the file unless it is in order."""
        connection = self._connection
        is_fine = is_harmless(error)
        if connection is not None and connection.in_transaction:
            try:
                connection.execute("ROLLBACK")
            except sqlite3.Error:
                is_fine = False
        self._forget()
        if not is_fine:
            self._let_go()

    def _let_go(self) -> None:
        """Close the file, to open it anew; others are still to see that this process lives."""
        connection, self._connection = self._connection, None
        self._instance = None
        self._forget()
        if connection is not None:
            connection.close()

    def _forget(self) -> None:
        self._rows.clear()
        self._sums = None
        self._version = -1

    def _move_fresh(self, connection: sqlite3.Connection, most: int) -> None:
        """Move fresh records to those of their sessions, if there are so many.

        What is read does not change by that.
        """
        (count,) = connection.execute(_COUNT_FRESH).fetchone()
        if count <= most:
            return
        connection.execute("BEGIN IMMEDIATE")
        try:
            connection.execute(_MOVE_FRESH)
            connection.execute("DELETE FROM fresh")
            connection.execute("COMMIT")
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")

    def _bound_wal(self, connection: sqlite3.Connection) -> None:
        """Empty the write-ahead log if readers that never paused have let it grow."""
        if os.stat(f"{self._place.path}-wal").st_size > _MOST_WAL:
            connection.execute("PRAGMA busy_timeout = 100")
            connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()
            connection.execute("PRAGMA busy_timeout = 0")
        # Kibibytes of pages: enough for those of many sessions when fresh records are moved.
        connection.execute("PRAGMA cache_size = -16000")

    # Opening.

    def _open(self) -> sqlite3.Connection:
        if self._connection is not None and self._instance is not None:
            if self._instance.is_in_place():
                return self._connection
            # Somebody put another file there, or took it away; what is written here is lost.
            self._let_go()
        try:
            return self._open_anew()
        except BaseException:
            self._let_go()
            self._presence.fail()
            raise

    def _open_anew(self) -> sqlite3.Connection:
        place = self._place
        connection = self._connection = self._patiently(
            lambda: connect(
                place.path, mode="rwc", synchronous=place.synchronous, timeout=place.timeout
            )
        )
        # From here on this thread waits for others in its own way.
        connection.execute("PRAGMA busy_timeout = 0")
        # First: what is not ours is not to become a WAL database.
        self._patiently(lambda: check(connection, place.path))
        (mode,) = self._patiently(
            lambda: connection.execute("PRAGMA journal_mode = WAL").fetchone()
        )
        if mode != "wal":
            raise StoreUnavailableError(f"{place.path}: its file system can't hold a WAL database")
        self._patiently(lambda: connection.execute(f"PRAGMA journal_size_limit = {_MOST_WAL}"))
        # Before the transaction: whoever is opening the file needs one to get done.
        self._presence.enter(is_first=self._is_new, timeout=place.timeout)
        instance = self._instance = Instance(place.path, self._presence)
        self._begin(connection)
        migrate(connection, place.path)
        instance.check(connection, is_first=self._is_new)
        (change,) = connection.execute("SELECT change FROM store").fetchone()
        connection.execute("COMMIT")
        self._presence.share(place.timeout)
        instance.note(change)
        self._is_new = False
        self._opened(change)
        return connection

    def _patiently(self, call: Callable[[], T]) -> T:
        """Call until no other process is in the way."""
        until = time.monotonic() + self._place.timeout
        while True:
            try:
                return call()
            except sqlite3.OperationalError as error:
                if not is_locked(error) or time.monotonic() >= until:
                    raise
            time.sleep(random.uniform(0.0, _LONGEST_PAUSE))


def _do(job: Job[Any], work: Work) -> None:
    job.error = None
    try:
        job.result = job.call(work, *job.arguments)
    except (CallbackKitError, IdTakenError) as error:
        # It has looked, and changed nothing.
        job.error = error


def _fail(jobs: Sequence[Job[Any]], error: StoreError) -> None:
    for job in jobs:
        # One of its own for each: tracebacks grow with each raise.
        job.error = type(error)(*error.args)
        job.error.__cause__ = error.__cause__
