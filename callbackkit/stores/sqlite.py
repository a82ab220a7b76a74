"""A store in an SQLite file, for all processes of one machine."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final, Literal, TypeVar

import anyio.to_thread

from callbackkit.events import Position
from callbackkit.stores import (
    sqlite_deliveries as deliveries,
    sqlite_log as log,
    sqlite_reader as reader,
)
from callbackkit.stores.base import (
    Appended,
    Attempt,
    Claim,
    Claims,
    DeadLetter,
    NewSession,
    Page,
    SessionRecord,
    SessionState,
    Store,
    Swept,
    Totals,
    Watch,
    steady_time,
)
from callbackkit.stores.sqlite_place import Place
from callbackkit.stores.sqlite_poller import Poller
from callbackkit.stores.sqlite_sweep import sweep
from callbackkit.stores.sqlite_threads import Crew
from callbackkit.stores.sqlite_work import Work
from callbackkit.stores.sqlite_writer import Writer

__all__ = ["SQLiteStore"]

T = TypeVar("T")

# Threads that read. They share one interpreter lock, so more would not be faster.
_READERS: Final = 3


class SQLiteStore(Store):
    """Sessions in an SQLite file, which outlive the process and are shared by several.

    One thread writes: all that waits goes into one transaction, synced to the disk once. Files
    ``-wal``, ``-shm`` and ``-instance`` stand beside the file. To make a backup, copy the file
    alone, with ``VACUUM INTO`` or SQLite's backup; a copy that is put in its place, or anywhere
    else, is recognised, and positions of before are told as gaps. Before putting it there, close
    all stores on the file and remove ``-wal`` and ``-shm``: SQLite would write into the copy what
    they hold of the file before. A file that was moved there beside another's ``-wal`` is refused.

    The file has to be on a disk of this machine: SQLite's log is shared memory, which network file
    systems have not.

    Args:
        path: The file; made if there is none.
        synchronous: What an append waits for. ``"FULL"``: the disk, so that it survives a power
            failure. ``"NORMAL"``: the operating system, so that it survives the end of the process,
            however abrupt; after a power failure the last ones may be lost, which is told as a gap.
        clock: Seconds since 1970, for tests; by default time passes evenly whatever is done to
            the clock of the machine, and timestamps are what that clock shows.
        poll: Seconds between two looks at what other processes wrote, while somebody waits.
        timeout: Seconds to wait for another process that is writing.

    Raises:
        ValueError: *path* is no file, or a number is not above 0.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        synchronous: Literal["FULL", "NORMAL"] = "FULL",
        clock: Callable[[], float] | None = None,
        poll: float = 0.05,
        timeout: float = 30.0,
    ) -> None:
        name = os.fspath(path)
        if not isinstance(name, str):
            raise TypeError(f"path must be a str or a path of one, not {path!r}")
        if not name or name == ":memory:" or "\0" in name:
            raise ValueError(f"path must name a file, not be {name!r}; there is MemoryStore")
        if synchronous not in ("FULL", "NORMAL"):
            raise ValueError(f"synchronous must be 'FULL' or 'NORMAL', not {synchronous!r}")
        for option, value in (("poll", poll), ("timeout", timeout)):
            if not value > 0:
                raise ValueError(f"{option} must be above 0, not {value!r}")
        place = Place(
            path=os.path.realpath(name),
            synchronous=synchronous,
            timeout=timeout,
            clock=clock or steady_time,
            wall=clock or time.time,
        )
        self._path = place.path
        self._poller = Poller(place, poll)
        self._writers = Crew(
            "callbackkit-write",
            lambda: Writer(place, self._poller.opened, self._poller.committed),
        )
        self._readers = Crew(
            "callbackkit-read",
            lambda: reader.Reader(place, lambda: self._poller.generation),
            _READERS,
        )

    def __repr__(self) -> str:
        return f"<SQLiteStore {self._path}>"

    async def start(self) -> None:
        await self._writers.do(_look)

    async def aclose(self) -> None:
        await self._readers.aclose()
        await self._writers.aclose()
        await anyio.to_thread.run_sync(self._poller.close)
        self._poller.ring_all()

    async def _read(self, call: Callable[..., T], *arguments: Any) -> T:
        if not self._poller.generation:
            await self.start()
        return await self._readers.do(call, *arguments)

    # Sessions.

    async def create_session(
        self, new: NewSession, *, max_sessions: int | None = None
    ) -> SessionRecord:
        return await self._writers.do(log.create_session, new, max_sessions)

    async def get_session(self, session_id: str) -> SessionRecord:
        return await self._read(reader.get_session, session_id)

    async def sessions(
        self,
        *,
        state: SessionState | None = None,
        owner: str | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> Sequence[SessionRecord]:
        return await self._read(reader.sessions, state, owner, after, limit)

    async def update_session(
        self, session_id: str, *, known: bytes, config: bytes, unowed: tuple[str, ...]
    ) -> SessionRecord:
        return await self._writers.do(log.update_session, session_id, known, config, unowed)

    async def touch(self, reads: Mapping[str, int | None]) -> None:
        await self._writers.do(log.touch, dict(reads))

    async def end_session(self, session_id: str, *, linger: float) -> SessionRecord:
        return await self._writers.do(log.end_session, session_id, linger)

    async def delete_session(self, session_id: str, *, linger: float) -> None:
        await self._writers.do(log.delete_session, session_id, linger)

    # The log.

    async def append(
        self,
        session_id: str,
        event_type: str,
        body: bytes,
        *,
        owed: bool = True,
        key: str | None = None,
    ) -> Appended:
        return await self._writers.do(log.append, session_id, event_type, body, owed, key)

    async def read(
        self,
        session_id: str,
        *,
        after: Position | None = None,
        limit: int = 100,
        owed: bool = False,
    ) -> Page:
        return await self._read(reader.read, session_id, after, limit, owed)

    async def tail(self, session_id: str, *, limit: int) -> Page:
        return await self._read(reader.tail, session_id, limit)

    def watch(self, session_id: str | None) -> Watch:
        return self._poller.watch(session_id)

    async def trim(self, session_id: str, *, before: int) -> int:
        return await self._writers.do(log.trim, session_id, before)

    async def sweep(self, *, limit: int = 100) -> Swept:
        return await self._writers.do(sweep, limit)

    # Deliveries.

    async def claim(self, *, methods: Collection[str], limit: int, lease: float) -> Claims:
        return await self._writers.do(deliveries.claim, tuple(methods), limit, lease)

    async def renew(self, claim: Claim, *, lease: float, bound: int | None = None) -> Claim:
        return await self._writers.do(deliveries.renew, claim, lease, bound)

    async def ack(
        self, claim: Claim, upto: int, attempt: Attempt | None, *, lease: float | None = None
    ) -> Claim | None:
        return await self._writers.do(deliveries.ack, claim, upto, attempt, lease)

    async def retry(
        self, claim: Claim, *, delay: float, attempt: Attempt | None, bound: int | None = None
    ) -> None:
        await self._writers.do(deliveries.retry, claim, delay, attempt, bound)

    async def park(
        self,
        claim: Claim,
        *,
        upto: int,
        letter_id: str,
        reason: str,
        attempt: Attempt | None,
        lease: float | None = None,
    ) -> Claim | None:
        return await self._writers.do(
            deliveries.park, claim, upto, letter_id, reason, attempt, lease
        )

    async def dead_letters(
        self, session_id: str, *, after: str | None = None, limit: int = 100
    ) -> Sequence[DeadLetter]:
        return await self._read(reader.dead_letters, session_id, after, limit)

    async def redrive(self, session_id: str, ids: Collection[str] | None = None) -> int:
        chosen = None if ids is None else frozenset(ids)
        return await self._writers.do(deliveries.redrive, session_id, chosen)

    async def attempts(self, session_id: str) -> Sequence[Attempt]:
        return await self._read(reader.attempts, session_id)

    async def load_endpoint(self, endpoint: str) -> tuple[int, bytes]:
        return await self._read(reader.load_endpoint, endpoint)

    async def save_endpoint(self, endpoint: str, version: int, state: bytes) -> bool:
        return await self._writers.do(deliveries.save_endpoint, endpoint, version, state)

    # All of it.

    async def totals(self) -> Totals:
        return await self._read(reader.totals)

    async def health(self) -> None:
        await self._writers.do(_write)
        await self._read(_look)


def _look(_of: object) -> None:
    """Do nothing: to be done is enough."""


def _write(work: Work) -> None:
    work.execute("UPDATE store SET one = 1")
