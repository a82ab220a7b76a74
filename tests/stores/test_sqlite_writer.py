import itertools
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest

from callbackkit.errors import StoreError
from callbackkit.stores.base import Appended, NewSession, Page, Retention
from callbackkit.stores.sqlite_deliveries import claim
from callbackkit.stores.sqlite_log import append, create_session, end_session, trim
from callbackkit.stores.sqlite_place import Place
from callbackkit.stores.sqlite_reader import Reader, read, tail
from callbackkit.stores.sqlite_sweep import sweep
from callbackkit.stores.sqlite_threads import Job, Worker
from callbackkit.stores.sqlite_writer import Writer

BODY = b'{"conversation_id":null,"data":{},"metadata":{}}'


def jobs_for(calls: Sequence[tuple[Any, ...]]) -> list[Job[Any]]:
    async def make() -> list[Job[Any]]:
        return [Job(call, arguments) for call, *arguments in calls]  # type: ignore[arg-type]

    return anyio.run(make)


def do(worker: Worker, *calls: tuple[Any, ...]) -> list[Any]:
    """Have jobs done together in this thread; return their results."""
    jobs = jobs_for(calls)
    worker.work(jobs)
    for job in jobs:
        if job.error is not None:
            raise job.error
    return [job.result for job in jobs]


class Bench:
    """A writer and a reader of one file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.opened: list[int] = []
        self.committed: list[tuple[int, dict[str | None, int | None]]] = []
        place = Place(str(path), "NORMAL", 5.0, time.time, time.time)
        self.writer = Writer(
            place, self.opened.append, lambda *committed: self.committed.append(committed)
        )
        self.reader = Reader(place, lambda: 1)

    def create(self, session_id: str, **options: Any) -> None:
        new = NewSession(id=session_id, token_hash=b"hash", **options)
        do(self.writer, (create_session, new, None))

    def append(self, *session_ids: str, body: bytes = BODY) -> list[Appended]:
        calls = [(append, each, "progress", body, True, None) for each in session_ids]
        return do(self.writer, *calls)

    def read(self, session_id: str, limit: int = 100_000) -> list[int]:
        page: Page
        (page,) = do(self.reader, (read, session_id, None, limit, False))
        return [record.seq for record in page.records]

    def count(self, table: str) -> int:
        connection = sqlite3.connect(self.path)
        (count,) = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
        connection.close()
        return int(count)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path / "events.db")
    yield bench
    bench.reader.close()
    bench.writer.close()


def wal(bench: Bench) -> int:
    return Path(f"{bench.path}-wal").stat().st_size


def test_jobs_that_wait_together_are_one_transaction(bench: Bench) -> None:
    bench.create("a")
    bench.create("b")
    before = len(bench.committed)
    bench.append("a", "b", "a")
    ((_, rings),) = bench.committed[before:]
    assert rings == {"a": 2, "b": 1}


def test_a_transaction_that_does_more_than_append_rings_without_a_number(bench: Bench) -> None:
    """Whoever knows the record may not take that for all there is to know."""
    for name in ("ended", "rung", "trimmed"):
        bench.create(name)
    before = len(bench.committed)
    do(
        bench.writer,
        (append, "ended", "progress", BODY, True, None),
        (append, "ended", "progress", BODY, True, None),
        (end_session, "ended", 60.0),
        (lambda work: work.ring(work.get("rung")),),
        (append, "rung", "progress", BODY, True, None),
        (append, "trimmed", "progress", BODY, True, None),
        (append, "trimmed", "progress", BODY, True, None),
        (trim, "trimmed", 2),
    )
    ((_, rings),) = bench.committed[before:]
    assert rings == {"ended": None, "rung": None, "trimmed": 2}


def test_transactions_are_numbered_without_a_hole(bench: Bench) -> None:
    bench.create("a")
    bench.append("a")
    do(bench.writer, (trim, "a", 0))
    bench.append("a")
    numbers = [number for number, _ in bench.committed]
    assert numbers == list(range(numbers[0], numbers[0] + 3))


def test_jobs_that_change_nothing_are_no_transaction(bench: Bench) -> None:
    bench.create("a")
    before = list(bench.committed)
    do(bench.writer, (lambda work: None,))
    assert bench.committed == before


def test_jobs_of_one_transaction_see_what_those_before_them_did(bench: Bench) -> None:
    bench.create("p", pushes=True, method="m")
    bench.create("e")
    _, one, two, _, swept = do(
        bench.writer,
        (append, "p", "progress", BODY, True, None),
        (claim, ["m"], 5, 60.0),
        (claim, ["m"], 5, 60.0),
        (end_session, "e", 0.0),
        (sweep, 100),
    )
    assert [each.session_id for each in one.claims] == ["p"]
    assert one.next_in == 60
    assert not two.claims
    assert swept.sessions == ["e"]


def test_when_there_is_time_the_write_ahead_log_is_emptied(bench: Bench) -> None:
    assert bench.writer.rest() is None
    bench.create("a")
    bench.append("a", "a")
    assert bench.writer.rest() == 1.0
    assert wal(bench) > 0
    bench.writer.tidy()
    assert bench.writer.rest() is None
    assert wal(bench) == 0
    assert bench.count("fresh") == 0
    assert bench.read("a") == [1, 2]


def test_tidying_does_nothing_before_the_file_is_open_or_while_it_is_locked(bench: Bench) -> None:
    bench.writer.tidy()
    bench.create("a")
    bench.append("a")
    other = sqlite3.connect(bench.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    bench.writer.tidy()
    other.execute("ROLLBACK")
    other.close()
    assert bench.append("a")[0].record.seq == 2
    assert bench.read("a") == [1, 2]


def test_a_reader_that_stays_does_not_hold_up_tidying(bench: Bench) -> None:
    bench.create("a")
    other = sqlite3.connect(bench.path, isolation_level=None)
    other.execute("BEGIN")
    other.execute("SELECT * FROM log").fetchall()
    bench.append("a")
    bench.writer.tidy()
    bench.append("a")
    other.close()
    assert bench.read("a") == [1, 2]


def test_fresh_records_are_moved_to_their_sessions(bench: Bench) -> None:
    """And are read, dropped and counted alike before, while and after it."""
    names = [f"s{number}" for number in range(7)]
    for name in names:
        bench.create(name, retention=Retention(max_events=1500))
    chance = random.Random(7)
    expected = dict.fromkeys(names, 0)
    for _ in range(130):
        batch = chance.choices(names, k=100)
        for name, appended in zip(batch, bench.append(*batch), strict=True):
            expected[name] += 1
            assert appended.record.seq == expected[name]
        name = chance.choice(names)
        last = expected[name]
        assert bench.read(name) == list(range(max(last - 1500, 0) + 1, last + 1))
        (page,) = do(bench.reader, (tail, name, 20))
        newest = [each.seq for each in page.records]
        assert newest == list(range(max(last - 20, 0) + 1, last + 1))
    assert bench.count("record") > 0
    assert 0 < bench.count("fresh") < 9_600
    for name in names:
        last = expected[name]
        (dropped,) = do(bench.writer, (trim, name, last - 4))
        assert dropped == 1495
        assert bench.read(name) == list(range(last - 4, last + 1))


def read_without_a_pause(path: Path, is_over: threading.Event) -> None:
    """Read with one connection before the other has ended, again and again."""
    readers = [sqlite3.connect(path, isolation_level=None) for _ in range(2)]
    for reader in itertools.cycle(readers):
        if reader.in_transaction:
            reader.execute("ROLLBACK")
        if is_over.wait(0.002):
            break
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM log").fetchall()
    for reader in readers:
        reader.close()


def test_readers_that_never_pause_do_not_let_the_write_ahead_log_grow_for_ever(bench) -> None:
    bench.create("a", retention=Retention(max_events=1))
    is_over = threading.Event()
    thread = threading.Thread(target=read_without_a_pause, args=(bench.path, is_over))
    thread.start()
    try:
        for _ in range(512):
            bench.append("a", body=b"x" * 80_000)
    finally:
        is_over.set()
        thread.join()
    assert wal(bench) < 28 * 2**20


def test_after_an_error_of_the_file_it_is_opened_anew_and_after_one_of_a_value_not(bench) -> None:
    bench.create("a")
    with pytest.raises(StoreError):
        bench.append("a", body=[])
    bench.append("a")
    assert len(bench.opened) == 1
    with pytest.raises(StoreError):
        do(bench.writer, (lambda work: work.execute("SELECT * FROM nothing"),))
    bench.append("a")
    assert len(bench.opened) == 2
    assert bench.read("a") == [1, 2]


def test_what_a_reader_can_not_do_is_told_and_it_goes_on(bench: Bench) -> None:
    bench.create("a")

    def fail(connection: sqlite3.Connection) -> None:
        connection.execute("SELECT * FROM nothing")

    def write(connection: sqlite3.Connection) -> None:
        connection.execute("DELETE FROM log")

    calls: list[Callable[[sqlite3.Connection], None]] = [fail, write]
    for call in calls:
        with pytest.raises(Exception, match=str(bench.path)):
            do(bench.reader, (call,))
    assert bench.read("a") == []
