import asyncio
import itertools
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from callbackkit.errors import LimitError, StoreError, StoreUnavailableError, UnknownSessionError
from callbackkit.events import Position
from callbackkit.stores.base import LETTER_KEPT, NewSession, Retention
from callbackkit.stores.sqlite import SQLiteStore
from callbackkit.testing import ManualClock
from callbackkit.testing.stores import check_store

BODY = b'{"conversation_id":null,"data":{},"metadata":{}}'


def new(session_id: str = "s", **options) -> NewSession:
    return NewSession(id=session_id, token_hash=b"hash", **options)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SQLiteStore]:
    store = SQLiteStore(path)
    await store.create_session(new())
    yield store
    await store.aclose()


def exists(path: Path) -> bool:
    return path.exists()


async def numbers(store: SQLiteStore, session_id: str = "s") -> list[int]:
    page = await store.read(session_id, limit=100_000)
    return [record.seq for record in page.records]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_it_is_a_store(tmp_path: Path, backend: str) -> None:
    names = map(str, itertools.count())
    check_store(lambda clock: SQLiteStore(tmp_path / next(names), clock=clock), backend=backend)


# Its life.


@pytest.mark.parametrize("bad", ["", ":memory:", "a\0b"])
def test_what_is_no_file_is_refused(bad: str) -> None:
    with pytest.raises(ValueError, match="must name a file"):
        SQLiteStore(bad)


def test_a_path_of_bytes_is_refused() -> None:
    with pytest.raises(TypeError, match="path must be"):
        SQLiteStore(b"events.db")  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{"poll": 0}, {"timeout": -1}, {"synchronous": "OFF"}])
def test_a_bad_option_is_refused(path: Path, options) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        SQLiteStore(path, **options)


def test_it_shows_its_path(path: Path) -> None:
    assert str(path) in repr(SQLiteStore(path))


async def test_nothing_is_made_before_it_is_used(path: Path) -> None:
    store = SQLiteStore(path)
    await store.aclose()
    assert not exists(path)


async def test_a_path_may_have_any_characters(tmp_path: Path) -> None:
    path = tmp_path / "a b?mode=ro#%41é.db"
    store = SQLiteStore(path)
    await store.create_session(new())
    await store.aclose()
    assert exists(path)


async def test_it_is_there_again_after_it_was_closed(store: SQLiteStore, path: Path) -> None:
    first = await store.append("s", "progress", BODY, key="k")
    session = await store.get_session("s")
    await store.aclose()
    await store.aclose()
    other = SQLiteStore(path)
    assert await other.get_session("s") == session
    assert await other.append("s", "progress", BODY, key="k") == first._replace(is_new=False)
    await other.aclose()


async def test_a_closed_store_that_is_used_begins_again(store: SQLiteStore) -> None:
    await store.append("s", "progress", BODY)
    await store.aclose()
    assert await numbers(store) == [1]
    await store.append("s", "progress", BODY)
    assert await numbers(store) == [1, 2]


async def test_what_was_asked_for_before_closing_is_done(store: SQLiteStore) -> None:
    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(store.append, "s", "progress", BODY)
        await anyio.wait_all_tasks_blocked()
        await store.aclose()
    assert await numbers(store) == list(range(1, 21))


async def test_closed_the_file_stands_alone(store: SQLiteStore, path: Path) -> None:
    await store.append("s", "progress", BODY)
    await numbers(store)
    with store.watch("s"):
        await store.aclose()
    assert sorted(each.name for each in path.parent.iterdir()) == [
        "events.db",
        "events.db-instance",
    ]


async def test_dropped_records_leave_the_file(path: Path) -> None:
    store = SQLiteStore(path)
    await store.create_session(new(retention=Retention(max_events=10)))
    for _ in range(300):
        await store.append("s", "progress", BODY)
    assert await numbers(store) == list(range(291, 301))
    await store.aclose()
    connection = sqlite3.connect(path)
    (count,) = connection.execute("SELECT count(*) FROM event").fetchone()
    connection.close()
    assert count < 10 + 64


async def test_health_writes_and_reads(store: SQLiteStore, path: Path) -> None:
    await store.health()
    connection = sqlite3.connect(path)
    before = connection.execute("SELECT change FROM store").fetchone()
    await store.health()
    assert connection.execute("SELECT change FROM store").fetchone() > before
    connection.close()


# Tasks, threads and loops.


async def test_an_append_whose_task_is_cancelled_is_whole_or_not_there(store: SQLiteStore) -> None:
    for _ in range(20):
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                for _ in range(5):
                    tasks.start_soon(store.append, "s", "progress", BODY)
                await anyio.wait_all_tasks_blocked()
                scope.cancel()
    last = await store.append("s", "progress", BODY)
    assert await numbers(store) == list(range(1, last.record.seq + 1))


def test_loops_in_several_threads_use_one_store(path: Path) -> None:
    store = SQLiteStore(path)

    async def use(name: str) -> None:
        await store.create_session(new(name))
        for _ in range(50):
            await store.append(name, "progress", BODY)
        assert await numbers(store, name) == list(range(1, 51))

    threads = [
        threading.Thread(target=anyio.run, args=(use, str(place)), kwargs={"backend": backend})
        for place, backend in enumerate(["asyncio", "trio"] * 2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    async def total() -> int:
        totals = await store.totals()
        await store.aclose()
        return totals.sent

    assert anyio.run(total) == 200


def test_a_loop_that_closes_before_the_answer_harms_nobody(path: Path) -> None:
    store = SQLiteStore(path)
    asyncio.run(store.create_session(new()))
    for _ in range(20):
        loop = asyncio.new_event_loop()
        task = loop.create_task(store.append("s", "progress", BODY))
        loop.call_soon(loop.stop)
        loop.run_forever()
        task.cancel()
        loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
        loop.close()

    async def last() -> int:
        appended = await store.append("s", "progress", BODY)
        assert await numbers(store) == list(range(1, appended.record.seq + 1))
        await store.aclose()
        return appended.record.seq

    assert asyncio.run(last()) == 21


FORKING = """
import os, sys, anyio
from callbackkit.errors import StoreError
from callbackkit.stores.sqlite import SQLiteStore

unopened, opened = SQLiteStore(sys.argv[1]), SQLiteStore(sys.argv[2])
anyio.run(opened.start)
child = os.fork()
if child:
    _, status = os.waitpid(child, 0)
    anyio.run(opened.health)
    anyio.run(opened.aclose)
    os._exit(os.waitstatus_to_exitcode(status))

async def use():
    await unopened.health()
    await unopened.aclose()
    try:
        await opened.health()
    except StoreError as error:
        assert "forked" in str(error), error
        await opened.aclose()
        return
    raise AssertionError("a store that was opened before the fork was used")

try:
    anyio.run(use)
except BaseException as error:
    print(repr(error), file=sys.stderr, flush=True)
    os._exit(1)
os._exit(0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_store_that_was_opened_before_a_fork_is_refused_after_it(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKING]
    done = subprocess.run(
        [*command, tmp_path / "unopened", tmp_path / "opened"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


# One that fails, fails alone.


async def test_a_job_that_fails_half_way_takes_no_other_with_it(store: SQLiteStore) -> None:
    results: list[object] = []

    async def append(event_type: str, body: object) -> None:
        try:
            appended = await store.append("s", event_type, body)  # type: ignore[arg-type]
            results.append(appended.record.seq)
        except Exception as error:
            results.append(type(error))

    bodies = [("a", BODY), ("\ud800", BODY), ("b", BODY), ("c", [1]), ("d", BODY), ("e", None)]
    async with anyio.create_task_group() as tasks:
        for event_type, body in bodies:
            tasks.start_soon(append, event_type, body)
    failures = [each for each in results if not isinstance(each, int)]
    assert sorted(each for each in results if isinstance(each, int)) == [1, 2, 3]
    assert len(failures) == 3
    assert await numbers(store) == [1, 2, 3]
    assert (await store.totals()).sent == 3


async def test_a_value_sqlite_can_not_hold_is_a_store_error(store: SQLiteStore) -> None:
    with pytest.raises(StoreError) as caught:
        await store.append("s", "a", [1])  # type: ignore[arg-type]
    assert isinstance(caught.value.__cause__, sqlite3.Error)
    assert not isinstance(caught.value, StoreUnavailableError)


# Time.


async def test_time_goes_on_where_the_clock_was_turned_back_between_two_runs(path: Path) -> None:
    clock = ManualClock(start=10_000)
    store = SQLiteStore(path, clock=clock)
    await store.create_session(new(pushes=True, method="m", ttl=None))
    await store.append("s", "progress", BODY)
    (claim,) = (await store.claim("w", methods=["m"], limit=1, lease=60)).claims
    await store.retry(claim, delay=600, attempt=None)
    await store.aclose()
    clock = ManualClock(start=10_000 - 3600)
    store = SQLiteStore(path, clock=clock)
    assert (await store.claim("w", methods=["m"], limit=1, lease=60)).next_in == 600
    clock.advance(599)
    assert not (await store.claim("w", methods=["m"], limit=1, lease=60)).claims
    clock.advance(1)
    assert (await store.claim("w", methods=["m"], limit=1, lease=60)).claims
    await store.aclose()


async def test_dead_letters_of_an_expired_session_are_forgotten_one_by_one(path: Path) -> None:
    clock = ManualClock(start=1e9)
    store = SQLiteStore(path, clock=clock)
    await store.create_session(new(pushes=True, method="m", ttl=60))
    for number in (1, 2):
        await store.append("s", "progress", BODY)
        (claim,) = (await store.claim("w", methods=["m"], limit=1, lease=60)).claims
        await store.park(claim, upto=number, letter_id=f"{number}", reason="", attempt=None)
        clock.advance(1000)
    assert (await store.sweep()).sessions == ["s"]
    assert [letter.id for letter in await store.dead_letters("s")] == ["1", "2"]
    clock.advance(LETTER_KEPT - 2000)
    await store.sweep()
    assert [letter.id for letter in await store.dead_letters("s")] == ["2"]
    clock.advance(1000)
    await store.sweep()
    with pytest.raises(UnknownSessionError):
        await store.dead_letters("s")
    await store.aclose()


async def test_parking_what_is_settled_makes_no_dead_letter(path: Path) -> None:
    store = SQLiteStore(path)
    await store.create_session(new(pushes=True, method="m"))
    await store.append("s", "progress", BODY)
    (claim,) = (await store.claim("w", methods=["m"], limit=1, lease=60)).claims
    await store.park(claim, upto=0, letter_id="x", reason="", attempt=None)
    assert await store.dead_letters("s") == []
    await store.aclose()


async def test_there_is_a_most_of_idempotency_keys(store: SQLiteStore, path: Path) -> None:
    await store.append("s", "progress", BODY, key="known")
    connection = sqlite3.connect(path)
    connection.execute("UPDATE log SET keys = 100000")
    connection.commit()
    connection.close()
    with pytest.raises(LimitError, match="keys=100000"):
        await store.append("s", "progress", BODY, key="new")
    assert not (await store.append("s", "progress", BODY, key="known")).is_new
    await store.append("s", "progress", BODY)


# What is not there.


async def test_an_unknown_session_is_told_by_every_verb(store: SQLiteStore) -> None:
    for verb in (
        store.get_session("x"),
        store.end_session("x", linger=1),
        store.delete_session("x", linger=1),
        store.append("x", "a", BODY),
        store.read("x"),
        store.tail("x", limit=1),
        store.trim("x", before=1),
        store.dead_letters("x"),
        store.redrive("x"),
        store.attempts("x"),
    ):
        with pytest.raises(UnknownSessionError):
            await verb


async def test_a_position_of_another_epoch_reads_from_the_oldest(store: SQLiteStore) -> None:
    for _ in range(3):
        await store.append("s", "progress", BODY)
    page = await store.read("s", after=Position("elsewhere", 2))
    assert [record.seq for record in page.records] == [1, 2, 3]
