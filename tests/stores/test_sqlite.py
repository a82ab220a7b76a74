import asyncio
import itertools
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import closing
from functools import partial
from pathlib import Path

import anyio
import pytest

from callbackkit.errors import (
    LeaseLostError,
    LimitError,
    StoreError,
    StoreUnavailableError,
    UnknownSessionError,
)
from callbackkit.events import Position
from callbackkit.stores.base import KEY_KEPT, LETTER_KEPT, Claim, NewSession, Retention
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


async def test_a_change_of_a_session_is_taken_back_with_its_transaction(
    store: SQLiteStore,
) -> None:
    """Those of the same transaction are done again: what is remembered of it is what is kept."""
    await store.create_session(new("other", pushes=True, method="push", config=b"1"))
    await store.append("other", "a", BODY)

    async def fail() -> None:
        with pytest.raises(StoreError):
            await store.append("s", "a", [1])  # type: ignore[arg-type]

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(fail)
        tasks.start_soon(partial(change, store, "other", b"1", b"2"))
        tasks.start_soon(fail)
    with pytest.raises(StoreError):
        await change(store, "other", b"2", [3])  # type: ignore[arg-type]
    assert (await store.get_session("other")).config == b"2"
    (claim,) = (await store.claim(methods=["push"], limit=5, lease=60)).claims
    assert claim.config == b"2"


async def change(store: SQLiteStore, session_id: str, known: bytes, config: bytes) -> None:
    await store.update_session(session_id, known=known, config=config, unowed=())


async def test_a_change_of_a_session_outlives_the_process(path: Path) -> None:
    store = SQLiteStore(path)
    await store.create_session(new(config=b"1", unowed=("a",)))
    types = ("progress", "a'b", "\ud800")
    changed = await store.update_session("s", known=b"1", config=b"2\xff", unowed=types)
    await store.aclose()
    assert (changed.config, changed.unowed) == (b"2\xff", types)
    assert await store.get_session("s") == changed
    assert await store.update_session("s", known=b"1", config=b"3", unowed=()) == changed
    await store.aclose()


async def test_a_change_that_changes_nothing_writes_nothing(store: SQLiteStore, path: Path) -> None:
    before = (path.parent / f"{path.name}-wal").stat().st_size
    await change(store, "s", b"not what it is", b"2")
    assert (path.parent / f"{path.name}-wal").stat().st_size == before


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
    (claim,) = (await store.claim(methods=["m"], limit=1, lease=60)).claims
    await store.retry(claim, delay=600, attempt=None)
    await store.aclose()
    clock = ManualClock(start=10_000 - 3600)
    store = SQLiteStore(path, clock=clock)
    assert (await store.claim(methods=["m"], limit=1, lease=60)).next_in == 600
    clock.advance(599)
    assert not (await store.claim(methods=["m"], limit=1, lease=60)).claims
    clock.advance(1)
    assert (await store.claim(methods=["m"], limit=1, lease=60)).claims
    await store.aclose()


async def test_dead_letters_of_an_expired_session_are_forgotten_one_by_one(path: Path) -> None:
    clock = ManualClock(start=1e9)
    store = SQLiteStore(path, clock=clock)
    await store.create_session(new(pushes=True, method="m", ttl=60))
    for number in (1, 2):
        await store.append("s", "progress", BODY)
        (claim,) = (await store.claim(methods=["m"], limit=1, lease=60)).claims
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
    assert (rows(path, "session"), rows(path, "letter_record")) == (0, 0)
    await store.aclose()


async def test_parking_what_is_settled_makes_no_dead_letter(path: Path) -> None:
    store = SQLiteStore(path)
    await store.create_session(new(pushes=True, method="m"))
    await store.append("s", "progress", BODY)
    (claim,) = (await store.claim(methods=["m"], limit=1, lease=60)).claims
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


async def test_a_key_that_is_used_again_before_a_sweep_is_counted_once(path: Path) -> None:
    clock = ManualClock(start=1e9)
    store = SQLiteStore(path, clock=clock)
    await store.create_session(new(ttl=None))
    for _ in range(3):
        assert (await store.append("s", "progress", BODY, key="k")).is_new
        assert not (await store.append("s", "progress", BODY, key="k")).is_new
        clock.advance(KEY_KEPT)
    await store.append("s", "progress", BODY, key="other")
    await store.aclose()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT keys FROM log").fetchone() == (2,)
        assert connection.execute("SELECT count(*) FROM idempotency").fetchone() == (2,)


# What is kept.


async def test_what_is_not_owed_outlives_the_process(path: Path) -> None:
    types = ("progress", "a'b", "\ud800")
    store = SQLiteStore(path)
    await store.create_session(new(unowed=types))
    await store.aclose()
    assert (await store.get_session("s")).unowed == types
    assert [session.unowed for session in await store.sessions()] == [types]
    assert (await store.end_session("s", linger=60)).unowed == types
    await store.aclose()


@pytest.mark.parametrize("count", [2, 5])
async def test_age_counts_again_after_only_the_newest_was_left(path: Path, count: int) -> None:
    clock = ManualClock(start=1e9)
    store = SQLiteStore(path, clock=clock)
    await store.create_session(new(ttl=None, retention=Retention(max_age=60)))
    await store.append("s", "progress", BODY)
    clock.advance(70)
    await store.sweep()
    assert await numbers(store) == [1]
    for _ in range(count - 1):
        clock.advance(1)
        await store.append("s", "progress", BODY)
    clock.advance(100)
    await store.sweep()
    assert await numbers(store) == [count]
    await store.aclose()


async def test_a_log_of_one_record_asks_for_no_look(path: Path) -> None:
    clock = ManualClock(start=1e9)
    store = SQLiteStore(path, clock=clock)
    await store.create_session(new(ttl=None, retention=Retention(max_age=60)))
    await store.append("s", "progress", BODY)
    clock.advance(70)
    assert not (await store.sweep(limit=1)).has_more
    await store.append("s", "progress", BODY)
    assert (await store.sweep(limit=1)).has_more
    assert await numbers(store) == [2]
    await store.aclose()


async def claim_one(store: SQLiteStore) -> Claim:
    (claim,) = (await store.claim(methods=["m"], limit=1, lease=60)).claims
    return claim


def pushing(**options) -> NewSession:
    return new(pushes=True, method="m", ttl=None, **options)


@pytest.mark.parametrize("verb", ["ack", "park"])
@pytest.mark.parametrize("lease", [None, 60.0])
async def test_what_was_kept_to_be_delivered_goes_with_the_delivery(path, verb, lease) -> None:
    store = SQLiteStore(path)
    await store.create_session(pushing(retention=Retention(max_events=3)))
    for _ in range(100):
        await store.append("s", "progress", BODY)
    claim = await claim_one(store)
    assert await numbers(store) == list(range(1, 101))
    for upto, first in ((40, 41), (100, 98)):
        if verb == "ack":
            again = await store.ack(claim, upto, None, lease=lease)
        else:
            again = await store.park(
                claim, upto=upto, letter_id=f"{upto}", reason="", attempt=None, lease=lease
            )
        assert await numbers(store) == list(range(first, 101))
        if upto == 40:
            claim = again or await claim_one(store)
    await store.aclose()


async def test_what_is_too_old_once_it_is_delivered_goes_too(path: Path) -> None:
    clock = ManualClock(start=1e9)
    store = SQLiteStore(path, clock=clock)
    await store.create_session(pushing(retention=Retention(max_age=60)))
    for _ in range(5):
        await store.append("s", "progress", BODY)
    clock.advance(70)
    await store.sweep()
    await store.ack(await claim_one(store), 3, None)
    assert await numbers(store) == [4, 5]
    await store.aclose()


# Dead letters.


async def letters(store: SQLiteStore) -> list[tuple[int, ...]]:
    found = await store.dead_letters("s")
    return [tuple(record.seq for record in letter.records) for letter in found]


def rows(path: Path, table: str) -> int:
    with closing(sqlite3.connect(path)) as connection:
        (count,) = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
    return int(count)


async def test_at_most_max_pending_dead_letters_are_kept(path: Path) -> None:
    store = SQLiteStore(path)
    await store.create_session(pushing(max_pending=3))
    for number in range(1, 6):
        await store.append("s", "progress", BODY)
        await store.park(
            await claim_one(store), upto=number, letter_id=f"{number}", reason="", attempt=None
        )
    assert await letters(store) == [(3,), (4,), (5,)]
    session = await store.get_session("s")
    assert (session.failed, session.delivered, (await store.totals()).failed) == (5, 0, 5)
    assert (rows(path, "letter"), rows(path, "letter_record")) == (3, 3)
    await store.aclose()


async def test_those_of_an_overflow_are_bounded_together_with_others(path: Path) -> None:
    store = SQLiteStore(path)
    await store.create_session(pushing(max_pending=2, retention=Retention(max_events=1)))
    await store.append("s", "progress", BODY)
    await store.park(await claim_one(store), upto=1, letter_id="x", reason="", attempt=None)
    for _ in range(6):
        await store.append("s", "progress", BODY)
    assert await letters(store) == [(4,), (5,)]
    session = await store.get_session("s")
    assert (session.sent, session.failed, session.queued) == (7, 5, 2)
    assert (rows(path, "letter"), rows(path, "letter_record")) == (2, 2)
    await store.aclose()


async def test_a_dead_letter_that_is_let_go_of_while_it_is_delivered_is_refused(path) -> None:
    store = SQLiteStore(path)
    await store.create_session(pushing(max_pending=1))
    await store.append("s", "progress", BODY)
    await store.park(await claim_one(store), upto=1, letter_id="a", reason="", attempt=None)
    await store.redrive("s")
    held = await claim_one(store)
    assert held.letter is not None
    await store.append("s", "progress", BODY)
    await store.park(await claim_one(store), upto=2, letter_id="b", reason="", attempt=None)
    with pytest.raises(LeaseLostError):
        await store.ack(held, 1, None)
    assert await letters(store) == [(2,)]
    assert (await store.get_session("s")).failed == 2
    await store.aclose()


async def test_those_that_were_delivered_after_all_leave_room(path: Path) -> None:
    store = SQLiteStore(path)
    await store.create_session(pushing(max_pending=2))
    for number in (1, 2, 3, 4):
        await store.append("s", "progress", BODY)
        await store.park(
            await claim_one(store), upto=number, letter_id=f"{number}", reason="", attempt=None
        )
        if number == 2:
            await store.redrive("s", ["2"])
            await store.ack(await claim_one(store), 2, None)
    # The count of them is right after the file was opened anew, too.
    await store.aclose()
    assert await letters(store) == [(3,), (4,)]
    assert (await store.get_session("s")).failed == 3
    await store.aclose()


async def test_one_of_the_same_id_takes_the_place_of_another_with_its_records(path: Path) -> None:
    store = SQLiteStore(path)
    await store.create_session(pushing(max_pending=2))
    for upto in (1, 2, 3):
        await store.append("s", "progress", BODY)
        letter_id = "same" if upto < 3 else "other"
        claim = await claim_one(store)
        await store.park(claim, upto=upto, letter_id=letter_id, reason="", attempt=None)
    assert await letters(store) == [(2,), (3,)]
    assert (rows(path, "letter"), rows(path, "letter_record")) == (2, 2)
    await store.aclose()


# What is not there.


async def test_an_id_that_utf8_can_not_hold_is_that_of_no_session(store: SQLiteStore) -> None:
    """A client can ask for it: JSON has a way to write it."""
    bad = "s\ud800"
    for verb in (
        store.get_session(bad),
        store.update_session(bad, known=b"", config=b"", unowed=()),
        store.end_session(bad, linger=1),
        store.delete_session(bad, linger=1),
        store.append(bad, "a", BODY),
        store.append(bad, "a", BODY, key=bad),
        store.read(bad),
        store.tail(bad, limit=1),
        store.trim(bad, before=1),
        store.dead_letters(bad),
        store.redrive(bad),
        store.attempts(bad),
    ):
        with pytest.raises(UnknownSessionError):
            await verb
    await store.touch({bad: 1, "s": None})
    assert await store.sessions(owner=bad) == []
    assert [each.id for each in await store.sessions(after="\ud800")] == ["s"][1:]
    assert [each.id for each in await store.sessions(after="a\ud800")] == ["s"]
    assert await store.dead_letters("s", after=bad) == []


@pytest.mark.parametrize("name", ["id", "owner"])
async def test_a_session_of_such_a_name_is_refused(store: SQLiteStore, name: str) -> None:
    options: dict[str, str] = {"id": "t", "owner": "me", name: "\udfff"}
    with pytest.raises(ValueError, match=f"{name} must be text"):
        await store.create_session(NewSession(token_hash=b"hash", **options))  # type: ignore[arg-type]
    assert (await store.totals()).sessions == 1


async def test_a_key_may_be_any_text(store: SQLiteStore) -> None:
    first = await store.append("s", "progress", BODY, key="\ud800")
    assert await store.append("s", "progress", BODY, key="\ud800") == first._replace(is_new=False)
    assert (await store.append("s", "progress", BODY, key="\ud801")).is_new


async def test_an_unknown_session_is_told_by_every_verb(store: SQLiteStore) -> None:
    for verb in (
        store.get_session("x"),
        store.update_session("x", known=b"", config=b"", unowed=()),
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
