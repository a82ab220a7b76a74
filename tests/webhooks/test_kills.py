"""Webhooks whose sender is killed, stopped or overtaken: none is lost, and repeats have one id."""

import json
import random
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from callbackkit import CallbackManager
from callbackkit.stores.base import steady_time
from callbackkit.stores.memory import MemoryStore
from callbackkit.stores.sqlite import SQLiteStore
from callbackkit.testing.clock import ManualClock
from tests.webhooks.rig import (
    HERE,
    PATIENCE,
    SECRET,
    Agent,
    History,
    Process,
    Receiver,
    Watched,
    development,
    repeats,
    sending,
    step,
)

pytestmark = [
    pytest.mark.real_server,
    pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no kill -9"),
]

# Seconds that a clock is ahead by, for which any lease of another process has run out.
AHEAD = 600.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.db"


class Worker(Process):
    """A process that emits and delivers."""

    def __init__(
        self, path: Path, receiver: Receiver, *, timeout: float = 5.0, **asked: Any
    ) -> None:
        defaults = {"session": None, "batch": None, "kill": None, "pause": None, "events": 0}
        told = {"path": str(path), "url": receiver.url(), "secret": SECRET, "timeout": timeout}
        super().__init__(HERE / "worker_process.py", json.dumps({**defaults, **told, **asked}))

    def has(self, key: str) -> bool:
        return any(key in line for line in list(self.lines))

    def all(self, key: str) -> list[Any]:
        return [line[key] for line in list(self.lines) if key in line]

    @property
    def session_id(self) -> str:
        [session_id] = self.all("session")
        return str(session_id)


@contextmanager
def working(path: Path, receiver: Receiver, **asked: Any) -> Iterator[Worker]:
    """A worker, which is ended whatever happens."""
    worker = Worker(path, receiver, **asked)
    try:
        yield worker
    finally:
        if worker.popen.poll() is None:
            worker.popen.send_signal(signal.SIGCONT)
        worker.end()


def history_of(session_id: str, seqs: list[int]) -> History:
    history = History()
    history.appended[session_id] = seqs
    return history


async def finish(path: Path, session_id: str, clock: Any = None) -> tuple[int, int]:
    """Have another manager deliver what is left; return what was appended, and delivered."""
    async with sending(SQLiteStore(path, clock=clock)) as agent:
        session = await agent.manager.get_session(session_id)
        await agent.until_settled(session)
        record = await agent.store.get_session(session_id)
    return record.top, record.delivered


def integrity(path: Path) -> str:
    connection = sqlite3.connect(path)
    (found,) = connection.execute("PRAGMA integrity_check").fetchone()
    connection.close()
    return str(found)


# Killed.

KILLS = [
    # After the append, before anybody knows of it.
    (["append", "after", 5], 5, None),
    # Claimed, and not sent.
    (["load_endpoint", "before", 1], None, None),
    # Sent, and not acknowledged: the one that comes twice.
    (["ack", "before", 1], None, None),
    (["ack", "before", 1], None, 3),
    (["ack", "after", 1], None, None),
]


@pytest.mark.parametrize(
    ("kill", "appended", "batch"), KILLS, ids=["append", "claim", "send", "batch", "ack"]
)
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_what_a_killed_process_owed_is_sent_by_the_next_one(
    path: Path, receiver: Receiver, kill: list[Any], appended: int | None, batch: int | None
) -> None:
    """What was sent and not acknowledged comes once more, by the same id, and nothing else does."""
    with working(path, receiver, events=20, kill=kill, batch=batch) as worker:
        assert await worker.until_gone() == 137
        assert worker.errors == ""
        sent_before = len(await receiver.arrived())
        top, delivered = await finish(path, worker.session_id)
    assert top == delivered
    assert appended in {None, top}
    history_of(worker.session_id, list(range(1, top + 1))).check(
        await receiver.arrived(), signed_by=SECRET
    )
    assert set(worker.all("seq")) <= set(range(1, top + 1))
    again = [times for times in repeats(await receiver.arrived()).values() if times > 1]
    assert again in [[], [2]]
    if kill[:2] == ["ack", "before"]:
        assert again == [2]
    if kill[0] == "load_endpoint":
        assert (sent_before, again) == (0, [])


async def check_kills(path: Path, receiver: Receiver, rounds: int) -> None:
    """Kill a process again and again, somewhere, while it emits and delivers."""
    session_id: str | None = None
    acknowledged: list[int] = []
    for _ in range(rounds):
        with working(path, receiver, events=10**6, session=session_id) as worker:
            wanted = random.randint(1, 40)
            await worker.until(lambda w=worker, n=wanted: len(w.all("seq")) >= n)
            await anyio.sleep(random.uniform(0, 0.003))
            worker.popen.kill()
            assert await worker.until_gone() == -signal.SIGKILL
            assert worker.errors == ""
            session_id = worker.session_id
            acknowledged += worker.all("seq")
    assert session_id is not None
    # No number was given twice.
    assert acknowledged == sorted(set(acknowledged))
    assert integrity(path) == "ok"
    top, delivered = await finish(path, session_id)
    assert top == delivered
    history_of(session_id, list(range(1, top + 1))).check(
        await receiver.arrived(), signed_by=SECRET
    )
    assert set(acknowledged) <= set(range(1, top + 1))
    # One that was on its way, at most, each time.
    assert sum(times - 1 for times in repeats(await receiver.arrived()).values()) <= rounds
    assert integrity(path) == "ok"


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_no_event_is_lost_or_out_of_order_however_often_its_sender_is_killed(
    path: Path, receiver: Receiver
) -> None:
    await check_kills(path, receiver, 3)


@pytest.mark.torture
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_no_event_is_lost_in_hundreds_of_kills(path: Path, receiver: Receiver) -> None:
    await check_kills(path, receiver, 500)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_what_a_killed_process_had_claimed_is_taken_over_when_its_lease_is_over(
    path: Path, receiver: Receiver
) -> None:
    """Though the file was open elsewhere all the time, so that nobody knows that it is dead."""
    keeper = SQLiteStore(path)
    await keeper.start()
    with working(path, receiver, events=3, kill=["ack", "before", 1]) as worker:
        await worker.until_gone()
    session_id = worker.session_id
    claims = await keeper.claim(methods=["webhook"], limit=9, lease=1)
    assert not claims.claims
    assert claims.next_in is not None
    assert 0 < claims.next_in < 30
    top, delivered = await finish(path, session_id, lambda: steady_time() + AHEAD)
    await keeper.aclose()
    assert top == delivered
    history_of(session_id, list(range(1, top + 1))).check(
        await receiver.arrived(), signed_by=SECRET
    )
    assert sorted(repeats(await receiver.arrived()).values()) == [1] * (top - 1) + [2]


# Overtaken.


@pytest.fixture(params=["memory", "sqlite"])
def stores(request: pytest.FixtureRequest, path: Path) -> tuple[ManualClock, Watched, Watched]:
    """The same events twice, as two processes have them, and the clock of both."""
    clock = ManualClock(start=steady_time())
    shared = Shared(clock=clock)
    first, second = (
        Watched(shared if request.param == "memory" else SQLiteStore(path, clock=clock))
        for _ in range(2)
    )
    second.join(first)
    return clock, first, second


class Shared(MemoryStore):
    """Closed by neither of its managers, as no server of a database is."""

    async def aclose(self) -> None:
        pass


async def test_a_late_acknowledgement_of_one_that_was_overtaken_is_refused(
    stores: tuple[ManualClock, Watched, Watched],
    receiver: Receiver,
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock, one, two = stores
    async with sending(one) as first:
        gate = one.pause("ack")
        session = await first.session(receiver.url())
        await first.emit(session, 1, 2, 3)
        assert await gate.reached(PATIENCE)
        clock.advance(AHEAD)
        async with sending(two) as second:
            await second.until_settled(session)
            cursor = (await two.get_session(session.id)).cursor
            gate.release()
            await one.until(lambda: said(caplog, "somebody else took a delivery over"))
            record = await two.get_session(session.id)
            assert record.cursor == cursor == 3
            assert (record.delivered, record.failed, record.queued) == (3, 0, 0)
            await first.emit(session, 4)
            await first.until_settled(session)
    first.history.check(await receiver.arrived())
    assert sorted(repeats(await receiver.arrived()).values()) == [1, 1, 1, 2]


async def said(caplog: pytest.LogCaptureFixture, words: str) -> bool:
    return words in caplog.text


async def test_a_lease_that_runs_out_while_a_request_is_on_its_way_is_taken_over(
    stores: tuple[ManualClock, Watched, Watched],
    receiver: Receiver,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The attempt that fails late changes nothing either."""
    clock, one, two = stores
    await receiver.script(step("Hang"))
    async with sending(one, timeout=1.0) as first:
        session = await first.session(receiver.url())
        await first.emit(session, 1, 2)
        await receiver.until(1)
        gate = one.pause("retry")
        clock.advance(AHEAD)
        async with sending(two) as second:
            await second.until_settled(session)
            assert await gate.reached(PATIENCE)
            gate.release()
            await one.until(lambda: said(caplog, "somebody else took a delivery over"))
        record = await one.get_session(session.id)
    assert (record.cursor, record.delivered, record.failed, record.queued) == (2, 2, 0, 0)
    first.history.check(await receiver.arrived())
    assert sorted(repeats(await receiver.arrived()).values()) == [1, 2]


STOPPED = [
    # It has sent, and was stopped before it could acknowledge.
    {"pause": ["ack", "before", 1], "timeout": 30.0},
    # It was stopped while it waited for an answer.
    {"pause": None, "timeout": 1.0},
]


@pytest.mark.parametrize("asked", STOPPED, ids=["sent", "waiting"])
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_process_that_was_stopped_beyond_its_lease_changes_nothing_when_it_goes_on(
    path: Path, receiver: Receiver, asked: dict[str, Any]
) -> None:
    if asked["pause"] is None:
        await receiver.script(step("Hang"))
    with working(path, receiver, events=3, **asked) as worker:
        await worker.until(lambda: worker.has("emitted"))
        await receiver.until(1)
        if asked["pause"] is not None:
            await worker.until(lambda: worker.has("paused"))
        worker.popen.send_signal(signal.SIGSTOP)
        # For this manager the lease is over.
        store = Watched(SQLiteStore(path, clock=lambda: steady_time() + AHEAD))
        async with CallbackManager(store, [development()]) as manager:
            agent = Agent(manager, store)
            session = await manager.get_session(worker.session_id)
            await agent.until_settled(session)
            cursor = (await store.get_session(session.id)).cursor
            worker.popen.send_signal(signal.SIGCONT)
            worker.tell(release=True)
            assert worker.popen.stdin is not None
            worker.popen.stdin.close()
            await worker.until_gone()
            record = await store.get_session(session.id)
            attempts = await session.attempts()
    assert any("took a delivery over" in line for line in worker.all("logged")[0])
    assert (record.cursor, cursor) == (3, 3)
    assert (record.delivered, record.failed, record.queued) == (3, 0, 0)
    assert [each.error for each in attempts] == ["", "", ""]
    history_of(session.id, [1, 2, 3]).check(await receiver.arrived(), signed_by=SECRET)
    assert sorted(repeats(await receiver.arrived()).values()) == [1, 1, 2]
