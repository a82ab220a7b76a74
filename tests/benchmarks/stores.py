"""Stores: what it takes to append an event, and to read the last ones.

SQLite syncs each commit to the disk (WAL, ``synchronous=FULL``), so these times are those of a
clock on the wall, and of the disk that :mod:`tempfile` uses.
"""

import asyncio
import json
import tempfile
import time
from collections.abc import Awaitable, Callable, Generator, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from statistics import quantiles
from time import perf_counter
from typing import Any

from callbackkit.events import Position
from callbackkit.stores.base import NewSession, Store
from callbackkit.stores.memory import MemoryStore
from callbackkit.stores.sqlite import SQLiteStore
from tests.benchmarks.harness import Case, Measure, Table, awaited

TASKS = 64

NEWEST = 10

BODY = json.dumps(
    {"conversation_id": None, "data": {"message": "x" * 160}, "metadata": {}},
    separators=(",", ":"),
).encode()

Append = Callable[[int], Awaitable[object]]
"""Appends an event for the task with a number."""


@contextmanager
def appends(tasks: int, events: int) -> Iterator[Table]:
    """Append durably from many tasks at once."""
    with asyncio.Runner() as runner, tempfile.TemporaryDirectory() as folder:
        run = partial(appending, runner, tasks)
        path = Path(folder)
        with (
            sqlite(runner, path / "many.db", tasks) as many,
            sqlite(runner, path / "one.db", 1) as one,
            by_peer(runner, path / "peer.db") as append,
        ):
            yield Table(
                f"durable appends of {tasks} tasks",
                [
                    Case("aiosqlite, a commit each", append and run(append)),
                    Case("callbackkit, a session each", run(many), 15.0, 20.0),
                    Case("callbackkit, all in one session", run(one), 15.0, 20.0),
                ],
                ratio="speed",
                number=events,
            )


@contextmanager
def appends_alone(events: int) -> Iterator[Table]:
    """Append durably from one task, which waits each time."""
    with asyncio.Runner() as runner, tempfile.TemporaryDirectory() as folder:
        run = partial(appending, runner, 1)
        path = Path(folder)
        with (
            sqlite(runner, path / "one.db", 1) as one,
            by_peer(runner, path / "peer.db") as append,
        ):
            yield Table(
                "durable appends of one task",
                [
                    Case("aiosqlite, a commit each", append and run(append)),
                    Case("callbackkit", run(one), 2.0, 1.1),
                ],
                number=events,
            )


@contextmanager
def hand_over(tasks: int, events: int) -> Iterator[Table]:
    """Hold up the loop with a durable append: until it waits for the thread that writes."""
    with (
        asyncio.Runner() as runner,
        tempfile.TemporaryDirectory() as folder,
        sqlite(runner, Path(folder) / "many.db", tasks) as many,
    ):
        yield Table(
            f"the loop held up by an append, one of {tasks} tasks",
            [
                Case("callbackkit, percentile 50", holding_up(runner, tasks, 50, many)),
                Case("callbackkit, percentile 99", holding_up(runner, tasks, 99, many), 5.0),
            ],
            unit="microseconds",
            number=events,
        )


@contextmanager
def appends_in_memory() -> Iterator[Table]:
    """Append to the memory of the process."""
    with asyncio.Runner() as runner:
        append = runner.run(_opened(MemoryStore(), 1))
        yield Table(
            "an append in memory",
            [Case("callbackkit", awaited(runner, append, 0), 5.0)],
            unit="microseconds",
        )


@contextmanager
def polls(events: int) -> Iterator[Table]:
    """Read the last events of many: as a list that is looked through, and as a position."""
    with asyncio.Runner() as runner:
        yield Table(
            f"the last {NEWEST} of {events:_} events in memory",
            [
                Case("a list, looked through and dumped", awaited(runner, scanning(events))),
                Case("callbackkit", awaited(runner, reading(runner, events)), 100.0, 300.0),
            ],
            ratio="speed",
        )


@contextmanager
def polls_by_length(few: int, many: int) -> Iterator[Table]:
    """Read the last events of a few, and of many."""
    with asyncio.Runner() as runner:
        yield Table(
            f"the last {NEWEST} events in memory, by how many there are",
            [
                Case(f"of {few:_}", awaited(runner, reading(runner, few))),
                Case(f"of {many:_}", awaited(runner, reading(runner, many)), 1.3),
            ],
        )


# Stores.


async def _opened(store: Store, sessions: int) -> Append:
    for number in range(sessions):
        await store.create_session(NewSession(id=str(number), token_hash=b"hash"))
    return lambda task: store.append(str(task % sessions), "progress", BODY)


@contextmanager
def sqlite(runner: asyncio.Runner, path: Path, sessions: int) -> Iterator[Append]:
    """Append to as many sessions in a file."""
    store = SQLiteStore(path)
    try:
        yield runner.run(_opened(store, sessions))
    finally:
        runner.run(store.aclose())


@contextmanager
def by_peer(runner: asyncio.Runner, path: Path) -> Iterator[Append | None]:
    """Append with aiosqlite, as one would; ``None`` if it is not installed.

    A connection has one transaction at a time: without the lock, a task would commit what another
    has half written.
    """
    try:
        import aiosqlite
    except ModuleNotFoundError:
        yield None
        return
    numbers = count()
    lock = asyncio.Lock()

    async def connect() -> Any:
        connection = await aiosqlite.connect(path)
        await connection.execute("PRAGMA journal_mode = WAL")
        await connection.execute("PRAGMA synchronous = FULL")
        await connection.execute(
            "CREATE TABLE event (session TEXT, seq INTEGER, at INTEGER, type TEXT, body BLOB,"
            " PRIMARY KEY (session, seq)) WITHOUT ROWID"
        )
        return connection

    async def append(task: int) -> None:
        event = (str(task), next(numbers), time.time_ns(), "progress", BODY)
        async with lock:
            await connection.execute("INSERT INTO event VALUES (?, ?, ?, ?, ?)", event)
            await connection.commit()

    connection = runner.run(connect())
    try:
        yield append
    finally:
        runner.run(connection.close())


def reading(runner: asyncio.Runner, events: int) -> Callable[[], Awaitable[object]]:
    """Read the last of so many events in memory."""
    store = MemoryStore()

    async def fill() -> Position:
        append = await _opened(store, 1)
        for _ in range(events):
            await append(0)
        position = (await store.get_session("0")).position
        return Position(position.epoch, position.seq - NEWEST)

    position = runner.run(fill())

    async def read() -> None:
        page = await store.read("0", after=position, limit=100)
        _check(len(page.records))

    return read


def scanning(events: int) -> Callable[[], Awaitable[object]]:
    """Look through a list of so many events for those after a time, and dump them."""
    stored = [{"at": number, "type": "progress", "data": {"n": number}} for number in range(events)]

    async def read() -> None:
        found = [event for event in stored if event["at"] >= events - NEWEST]  # type: ignore[operator]
        json.dumps(found)
        _check(len(found))

    return read


def _check(found: int) -> None:
    if found != NEWEST:
        raise RuntimeError(f"{found} events were read, not {NEWEST}")


# Measuring.


def appending(runner: asyncio.Runner, tasks: int, append: Append) -> Measure:
    """Measure appends that many tasks share; each waits for its own before the next."""

    async def work(task: int, number: int) -> None:
        for _ in range(number):
            await append(task)

    async def measure(number: int) -> float:
        shares = [number // tasks + (task < number % tasks) for task in range(tasks)]
        began = perf_counter()
        await asyncio.gather(*[work(task, share) for task, share in enumerate(shares)])
        return perf_counter() - began

    return lambda number: runner.run(measure(number))


class _Stamped:
    """Awaits something, and notes how long it took until it waited."""

    def __init__(self, awaitable: Awaitable[object], stamps: list[float]) -> None:
        self._awaitable = awaitable
        self._stamps = stamps

    def __await__(self) -> Generator[Any, Any, object]:
        inner = self._awaitable.__await__()
        began = perf_counter()
        waits_for = next(inner)
        self._stamps.append(perf_counter() - began)
        yield waits_for
        return (yield from inner)


def holding_up(runner: asyncio.Runner, tasks: int, percentile: int, append: Append) -> Measure:
    """Measure a percentile of the times an append holds up the loop, times the number of appends.

    With that number it is what the table says of one.
    """

    def measure(number: int) -> float:
        stamps: list[float] = []

        async def stamped(task: int) -> None:
            await _Stamped(append(task), stamps)

        appending(runner, tasks, stamped)(number)
        return quantiles(stamps, n=100)[percentile - 1] * number

    return measure
