"""Who waits for a session of an SQLite file, woken for what this process and others write."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

from callbackkit.errors import StoreError
from callbackkit.stores.base import Watch, Watches
from callbackkit.stores.sqlite_place import Place
from callbackkit.stores.sqlite_schema import connect

__all__ = ["Poller"]

_CHANGED: Final = """
    SELECT s.id FROM log l JOIN session s ON s.sid = l.sid WHERE l.change > ?
    UNION SELECT id FROM gone WHERE change > ?
"""
_IS_DUE: Final = """
    SELECT EXISTS(SELECT 1 FROM log WHERE due_at <= ?)
        OR EXISTS(SELECT 1 FROM letter WHERE due_at <= ?)
"""
_WILL_BE_DUE: Final = """
    SELECT EXISTS(SELECT 1 FROM log WHERE due_at IS NOT NULL)
        OR EXISTS(SELECT 1 FROM letter WHERE due_at IS NOT NULL)
"""
# Seconds between two tellings that others changed when something falls due: they do at every
# delivery, and whoever is told claims.
_TELL_EVERY: Final = 1.0


class Poller(Watches):
    """The watches of this process, and one thread that looks for what other processes wrote.

    It sleeps while nobody waits. A look takes microseconds (``PRAGMA data_version``) as long as
    nothing was written; only then it asks which sessions changed.

    Args:
        place: The file.
        interval: Seconds between two looks.
    """

    def __init__(self, place: Place, interval: float) -> None:
        super().__init__()
        self._place = place
        self._interval = interval
        # Re-entrant: a finalizer may begin or end a watch while the lock is held.
        self._guard = threading.RLock()
        # How often the file was opened: readers open it anew, too.
        self.generation: int = 0
        # Number of the last transaction whose wakes are given.
        self._seen = 0
        self._thread: threading.Thread | None = None
        self._is_wanted = threading.Event()
        self._is_over = threading.Event()
        # Of the thread alone.
        self._is_untold = False
        self._told_at = 0.0
        self._connection: sqlite3.Connection | None = None
        self._opened = 0
        self._version = 0

    # Watching.

    def add(self, topic: str | None, watch: Watch) -> None:
        """Have a watch rung from now on."""
        super().add(topic, watch)
        with self._guard:
            self._is_wanted.set()
            self._begin()

    def remove(self, topic: str | None, watch: Watch) -> None:
        """Ring a watch no longer."""
        super().remove(topic, watch)
        with self._guard:
            # Not while it closes: the thread is to find out, and may be about to wait for this.
            if not len(self) and not self._is_over.is_set():
                self._is_wanted.clear()

    # What the writer tells, from its thread.

    def opened(self, change: int) -> None:
        """Begin, or begin again, with what is there."""
        with self._guard:
            self._seen = change
            self.generation += 1
            if len(self):
                self._begin()
        # What happened before that is not known.
        self.ring_all()

    def committed(self, change: int, rings: Mapping[str | None, int | None]) -> None:
        """Wake for a transaction of this process; by topic the newest record, if that is all."""
        with self._guard:
            # Unless another process came in between; then the thread looks.
            if self._seen == change - 1:
                self._seen = change
        for topic, top in rings.items():
            self.ring(topic, top)

    def close(self) -> None:
        """Wait for the thread to end."""
        with self._guard:
            thread, self._thread = self._thread, None
            self._is_over.set()
            self._is_wanted.set()
        if thread is not None:
            thread.join()
        with self._guard:
            self._is_over = threading.Event()
            self.generation = 0
            if not len(self):
                self._is_wanted.clear()

    # The thread.

    def _begin(self) -> None:
        if self._thread is not None or not self.generation:
            return
        thread = threading.Thread(target=self._run, name="callbackkit-poll", daemon=True)
        # Looked at again: making the thread may have run a finalizer that began one.
        if self._thread is None:
            self._thread = thread
            thread.start()

    def _run(self) -> None:
        is_over = self._is_over
        while not is_over.wait(self._interval):
            self._is_wanted.wait()
            if is_over.is_set():
                break
            try:
                topics = self._look()
            except (sqlite3.Error, StoreError):
                # Perhaps next time; until then there is the reconciling of those who wait.
                self._let_go()
                continue
            for topic in (*topics, *self._put_off()):
                self.ring(topic)
        self._let_go()

    def _put_off(self) -> list[None]:
        """Return what is to be told of times that others have changed, now and then."""
        now = time.monotonic()
        if not self._is_untold or now < self._told_at + _TELL_EVERY:
            return []
        self._is_untold = False
        self._told_at = now
        return [None]

    def _look(self) -> list[str | None]:
        """Return what others have changed since the last look."""
        connection = self._open()
        (version,) = connection.execute("PRAGMA data_version").fetchone()
        if version == self._version:
            return []
        connection.execute("BEGIN")
        try:
            topics = self._changed(connection)
        finally:
            connection.execute("ROLLBACK")
        self._version = version
        return topics

    def _changed(self, connection: sqlite3.Connection) -> list[str | None]:
        (change,) = connection.execute("SELECT change FROM store").fetchone()
        with self._guard:
            seen = self._seen
            if change <= seen:
                return []
            self._seen = change
        topics: list[str | None] = [each for (each,) in connection.execute(_CHANGED, (seen, seen))]
        now = self._place.clock()
        (is_due,) = connection.execute(_IS_DUE, (now, now)).fetchone()
        if is_due:
            return [*topics, None]
        # A lease of another process that dies, say: its end has to be waited for here.
        (will_be_due,) = connection.execute(_WILL_BE_DUE).fetchone()
        self._is_untold = self._is_untold or bool(will_be_due)
        return topics

    def _open(self) -> sqlite3.Connection:
        connection = self._connection
        if connection is None or self._opened != self.generation:
            self._let_go()
            self._opened = self.generation
            place = self._place
            connection = self._connection = connect(
                place.path, mode="rw", synchronous=place.synchronous, timeout=place.timeout
            )
        return connection

    def _let_go(self) -> None:
        connection, self._connection = self._connection, None
        self._version = 0
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()
