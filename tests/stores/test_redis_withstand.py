"""What managers on one Redis withstand: processes that are killed, and a Redis that fails them."""

import gc
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import attrs
import pytest

from callbackkit.errors import StoreUnavailableError, UnknownSessionError
from callbackkit.events import Event, Position
from callbackkit.sessions.manager import CallbackManager
from callbackkit.sessions.session import Session
from callbackkit.stores.base import Record
from callbackkit.stores.redis import RedisStore
from callbackkit.stores.redis_client import client_of
from tests.stores.redis_rig import FaultProxy, Follower, Told, TwoWays, Worker, emit, until
from tests.stores.redis_server import Server, call, fresh_prefix, marks, shared_server

pytestmark = marks

CONFIG = {"delivery_method": "told"}


@pytest.fixture(scope="module", autouse=True)
def garbage() -> Iterator[None]:
    """What coredis leaves open is collected while its warning is passed over, see `marks`."""
    yield
    gc.collect()


@pytest.fixture
def prefix() -> str:
    return fresh_prefix()


def managing(url: str, prefix: str, *, timeout: float = 5.0) -> CallbackManager:
    store = RedisStore.from_url(url, prefix=prefix, timeout=timeout)
    return CallbackManager(store, [Told()], drain_timeout=1)


# Several processes. They are told what to do by lines, and say what happens by lines.


def new_sessions(url: str, prefix: str, count: int = 1) -> list[str]:
    """Create sessions that are delivered; no process of these tests serves them yet."""

    async def create() -> list[str]:
        manager = managing(url, prefix)
        ids = [(await manager.create_session(CONFIG)).id for _ in range(count)]
        await manager.store.aclose()
        return ids

    return anyio.run(create)


def ask(url: str, prefix: str, verb: Callable[[CallbackManager], Any]) -> Any:
    """Return what a coroutine function gets of a manager that delivers nothing."""

    async def run() -> Any:
        manager = managing(url, prefix)
        result = await verb(manager)
        await manager.store.aclose()
        return result

    return anyio.run(run)


def check_read(events: list[list[Any]], emitted: list[list[Any]]) -> None:
    """See that who follows got each event once, in order, and all that was acknowledged."""
    positions = [Position.parse(position) for _, position, _, _ in events]
    assert len({each.epoch for each in positions}) == 1
    assert [each.seq for each in positions] == list(range(1, len(positions) + 1))
    assert "callbackkit.gap" not in {event_type for _, _, event_type, _ in events}
    read = {position: n for _, position, _, n in events}
    assert {position: read.get(position) for _, position, n, _ in emitted} == {
        position: n for _, position, n, _ in emitted
    }


def check_kill_under_load(url: str, prefix: str, *, after: int, sessions: int) -> None:
    ids = new_sessions(url, prefix, sessions)
    with Worker(url, prefix) as first, Worker(url, prefix, backend="trio") as second:
        for each in (first, second):
            each.wait_for("ready")
        for each in ids:
            first.tell("follow", id=each, after=None)
            first.tell("emit", id=each, numbers=list(range(10_000)))
            second.tell("emit", id=each, numbers=list(range(20_000, 20_000 + after // sessions)))
        first.wait_for("event", after)
        first.kill()
        read = first.of("event")
        for each in ids:
            last = max(
                (Position.parse(place) for name, place, _, _ in read if name == each),
                key=lambda position: position.seq,
                default=None,
            )
            second.tell("follow", id=each, after=None if last is None else str(last))
        second.wait_for("emitted", after // sessions * sessions)
        # What comes last is read last.
        for each in ids:
            second.tell("emit", id=each, numbers=[99_999])
        second.wait(lambda: sum(n == 99_999 for *_, n in second.of("event")) == sessions)
        emitted = first.of("emitted") + second.wait_for(
            "emitted", (after // sessions + 1) * sessions
        )
        for each in ids:
            check_read(
                [event for event in [*read, *second.of("event")] if event[0] == each],
                [event for event in emitted if event[0] == each],
            )
        assert second.stop() == 0


def test_clients_of_a_killed_process_go_on_at_another_and_miss_nothing(prefix: str) -> None:
    check_kill_under_load(shared_server(), prefix, after=60, sessions=2)


@pytest.mark.torture
@pytest.mark.timeout(300)
@pytest.mark.parametrize("after", [1, 7, 50, 300, 1_000])
def test_clients_of_processes_killed_at_any_time_miss_nothing(prefix: str, after: int) -> None:
    check_kill_under_load(shared_server(), prefix, after=after, sessions=1 + after // 50)


def delivered(worker: Worker, session_id: str, kind: str = "sent") -> list[int]:
    return [n for name, numbers, *_ in worker.of(kind) if name == session_id for n in numbers]


def check_taken_over(url: str, prefix: str, clock: Path, *, pauses: bool) -> None:
    """Have a process hang in a delivery until another took over, and be killed or go on then."""
    clock.write_text("0")
    stuck, other = new_sessions(url, prefix, 2)
    with Worker(url, prefix, clock=str(clock), hangs_at=3) as first:
        first.wait_for("ready")
        for each in (stuck, other):
            first.tell("emit", id=each, numbers=[*range(10)] if each == stuck else [100])
        # The other is done, and this is being sent.
        first.wait(lambda: 3 in delivered(first, stuck, "sending"))
        first.wait(lambda: 100 in delivered(first, other))
        first.wait_for("emitted", 11)
        first.pause() if pauses else first.kill()
        with Worker(
            url, prefix, clock=str(clock), hangs_at=5, hangs_for=2.0, backend="trio"
        ) as second:
            second.wait_for("ready")
            second.tell("emit", id=other, numbers=[101])
            second.wait(lambda: 101 in delivered(second, other))
            # While it is leased nobody takes it.
            assert delivered(second, stuck, "sending") == []
            clock.write_text("60")
            second.wait(lambda: 5 in delivered(second, stuck, "sending"))
            if pauses:
                # Now it says that it is done, while another one holds the lease.
                first.resume()
                first.wait(lambda: 3 in delivered(first, stuck))
            second.wait(lambda: 9 in delivered(second, stuck))
            assert delivered(second, stuck) == [*range(3, 10)]
            if pauses:
                assert first.stop() == 0
            assert second.stop() == 0
    assert delivered(first, stuck)[:3] == [0, 1, 2]
    check_acknowledged_once(url, prefix, stuck, 10)


def check_acknowledged_once(url: str, prefix: str, session_id: str, count: int) -> None:
    async def look(manager: CallbackManager) -> tuple[Any, Any, Any]:
        record = await manager.store.get_session(session_id)
        return record, await manager.store.attempts(session_id), await manager.store.totals()

    record, attempts, totals = ask(url, prefix, look)
    assert (record.sent, record.queued, record.failed, record.expired) == (count, 0, 0, 0)
    done = Counter(each.delivery_id for each in attempts if not each.error)
    assert len(done) == count
    assert set(done.values()) == {1}
    assert totals.queued == 0


@pytest.mark.parametrize("pauses", [False, True], ids=["killed", "paused"])
def test_what_a_process_had_claimed_is_taken_over_in_order_and_acknowledged_once(
    prefix: str, tmp_path: Path, pauses: bool
) -> None:
    check_taken_over(shared_server(), prefix, tmp_path / "clock", pauses=pauses)


def test_workers_whose_clocks_differ_by_ten_minutes_lease_and_retry_as_if_they_did_not(
    prefix: str,
) -> None:
    url = shared_server()
    ids = new_sessions(url, prefix, 4)
    now = time.time()
    settings = {"hangs_at": 2, "hangs_for": 1.5, "fails_at": 4, "schedule": [0.5]}
    with (
        Worker(url, prefix, skew=600, **settings) as fast,
        Worker(url, prefix, skew=-600, backend="trio", **settings) as slow,
    ):
        both = (fast, slow)
        for each in both:
            each.wait_for("ready")
        for n, each in enumerate(ids):
            follower, emitter = both if n % 2 else (slow, fast)
            follower.tell("follow", id=each, after=None)
            emitter.tell("emit", id=each, numbers=[*range(6)])
        for each in both:
            each.wait_for("emitted", 12)
            each.wait_for("event", 12)
        emitted = [*fast.of("emitted"), *slow.of("emitted")]
        # By the clock of Redis, whoever emitted.
        assert all(abs(at - now) < 60 for *_, at in emitted)
        for each in ids:
            fast.wait(lambda each=each: len(delivered(fast, each) + delivered(slow, each)) >= 6)
        for each in both:
            assert each.stop() == 0
    for each in ids:
        tries = sorted(
            (at, numbers, attempt)
            for worker in both
            for name, numbers, attempt, at in worker.of("sending")
            if name == each
        )
        # Nobody took what hung from whom it was leased to, and the retry came when it was due.
        expected = [0, 1, 2, 3, 4, 4, 5]
        assert [(n, attempt) for _, (n,), attempt in tries] == [
            (n, 2 if place == 5 else 1) for place, n in enumerate(expected)
        ]
        assert 0.45 < tries[5][0] - tries[4][0] < 10
        check_acknowledged_once(url, prefix, each, 6)


def test_the_same_key_from_two_processes_at_once_is_one_event(prefix: str) -> None:
    url = shared_server()
    (session_id,) = new_sessions(url, prefix)
    with (
        Worker(url, prefix, delivers=False) as first,
        Worker(url, prefix, delivers=False, backend="trio") as second,
    ):
        for each in (first, second):
            each.wait_for("ready")
        for n in range(100):
            for each in (first, second):
                each.tell("emit", id=session_id, numbers=[n], key="k")
        emitted = [
            {n: position for _, position, n, _ in each.wait_for("emitted", 100)}
            for each in (first, second)
        ]
        for each in (first, second):
            assert each.stop() == 0
    assert emitted[0] == emitted[1]
    assert sorted(Position.parse(each).seq for each in emitted[0].values()) == [*range(1, 101)]


# One Redis that fails them.


@attrs.frozen
class Scene:
    """Two managers, one of which emits and delivers, and one that a client follows at.

    Attributes:
        emitting: The one.
        following: The other.
        told: What was delivered.
        session: What it is about.
        client: Who follows.
        skew: By how many seconds the clock of the stores is ahead.
    """

    emitting: CallbackManager
    following: CallbackManager
    told: Told
    session: Session
    client: Follower
    skew: list[float]

    async def let_leases_lapse(self, n: int) -> None:
        """Have a minute pass for the stores, for claims that nobody knows of; emit an event."""
        self.skew[0] += 60
        await self.emit(n)

    async def emit(self, *numbers: int) -> None:
        await emit(self.emitting, self.session.id, numbers)

    async def until_read(self, n: int) -> None:
        await until(lambda: n in self.client.numbers)

    async def until_delivered(self, n: int) -> None:
        await until(lambda: n in self.told.numbers)

    def check_epochs(self) -> None:
        """See that each position stands for one event, and each new epoch begins with a gap."""
        told: dict[Position, int] = {}
        for event in [*self.client.events, *self.told.events]:
            if not event.is_gap:
                assert told.setdefault(event.position, event.data["n"]) == event.data["n"]
        before: Event | None = None
        for event in self.client.events:
            if before is not None and before.position.epoch != event.position.epoch:
                assert event.is_gap
            elif before is not None and not event.is_gap:
                assert event.position.seq == before.position.seq + 1
            before = event


NewStore = Callable[[Callable[[], float]], RedisStore]


@asynccontextmanager
async def scene(
    new_store: NewStore, *, followed_by: NewStore | None = None
) -> AsyncIterator[Scene]:
    """Have a session whose events up to 4 were read and delivered."""
    told = Told()
    skew = [0.0]

    def clock() -> float:
        return time.time() + skew[0]

    async with (
        CallbackManager(new_store(clock), [told], drain_timeout=1) as emitting,
        CallbackManager(new_store(clock), drain_timeout=1) as following,
        anyio.create_task_group() as tasks,
    ):
        session = await emitting.create_session(CONFIG)
        client = Follower(following, session.id)
        tasks.start_soon(client.run)
        made = Scene(emitting, following, told, session, client, skew)
        await made.emit(*range(5))
        await made.until_read(4)
        await made.until_delivered(4)
        yield made
        made.check_epochs()
        tasks.cancel_scope.cancel()


def storing(url: str, prefix: str, *, timeout: float = 2.0) -> NewStore:
    return lambda clock: RedisStore.from_url(url, prefix=prefix, timeout=timeout, clock=clock)


async def test_after_a_restart_with_all_its_data_clients_are_told_and_nothing_is_lost(
    prefix: str,
) -> None:
    with Server(appendonly="yes", appendfsync="always") as server:
        async with scene(storing(server.url, prefix)) as it:
            for begin in (5, 10):
                server.restart()
                await it.emit(*range(begin, begin + 5))
                await it.until_read(begin + 4)
                await it.until_delivered(begin + 4)
            assert len(it.client.epochs) == 3
            assert len(it.client.gaps) == 2
            assert it.told.numbers == [*range(15)]
            stats = await it.session.stats()
            assert (stats.events_sent, stats.queued_events, stats.events_expired) == (15, 0, 0)


async def test_after_a_restart_without_data_clients_know_and_new_sessions_work(
    prefix: str,
) -> None:
    with Server() as server:
        async with scene(storing(server.url, prefix)) as it:
            server.restart()
            await until(lambda: it.client.is_gone)
            with pytest.raises(UnknownSessionError):
                await emit(it.emitting, it.session.id, [5])
            session = await it.emitting.create_session(CONFIG)
            client = Follower(it.following, session.id)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(client.run)
                await emit(it.emitting, session.id, range(10, 15))
                await until(lambda: client.numbers == [*range(10, 15)])
                await it.until_delivered(14)
                tasks.cancel_scope.cancel()


async def test_after_it_was_turned_back_clients_are_told_and_read_what_is_left(
    prefix: str,
) -> None:
    with Server() as server:
        async with scene(storing(server.url, prefix)) as it:
            server.call("SAVE")
            await it.emit(5, 6)
            await it.until_read(6)
            await it.until_delivered(6)
            server.restart()
            await it.emit(7, 8)
            await it.until_read(8)
            await it.until_delivered(8)
            gap = next(n for n, event in enumerate(it.client.events) if event.is_gap)
            assert [event.data["n"] for event in it.client.events[:gap]] == [*range(7)]
            assert [event.data["n"] for event in it.client.events[gap + 1 :]] == [
                0,
                1,
                2,
                3,
                4,
                7,
                8,
            ]


async def test_a_replica_promoted_behind_its_master_is_told(prefix: str) -> None:
    with (
        Server(repl_diskless_sync_delay=0) as master,
        Server(replicaof=f"127.0.0.1 {master.port}") as replica,
    ):
        leading = [master]

        def new_store(clock: Callable[[], float]) -> RedisStore:
            # As one of Sentinel would be: asked for the master whenever it connects.
            return RedisStore(
                lambda: client_of(leading[0].url, timeout=2.0)(),
                prefix=prefix,
                timeout=2.0,
                clock=clock,
            )

        async with scene(new_store) as it:
            await until(lambda: replica.call("DBSIZE") == master.call("DBSIZE"))
            master.call("WAIT", 1, 5_000)
            replica.call("REPLICAOF", "NO", "ONE")
            await it.emit(5, 6)
            await it.until_read(6)
            await it.until_delivered(6)
            leading[0] = replica
            master.kill()
            await it.emit(7, 8)
            await it.until_read(8)
            await it.until_delivered(8)
            assert len(it.client.gaps) == 1
            assert it.client.numbers[-2:] == [7, 8]


async def test_a_pause_longer_than_the_timeout_costs_nothing_but_time(prefix: str) -> None:
    with Server() as server:
        async with scene(storing(server.url, prefix, timeout=0.3)) as it:
            server.pause()
            with pytest.raises(StoreUnavailableError):
                await it.session.emit("step", {"n": 5}, idempotency_key="k5")
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(it.emit, *range(5, 10))
                await anyio.sleep(0.5)
                server.resume()
            await it.until_read(9)
            await it.until_delivered(9)
            assert it.client.numbers == [*range(10)]
            assert it.told.numbers == [*range(10)]
            assert it.client.gaps == []


async def check_cut_off(prefix: str, *, seconds: float, most: int) -> None:
    """Cut two processes with a hundred clients off, twice; count their attempts to connect."""
    with Server() as server:
        async with (
            FaultProxy("127.0.0.1", server.port) as proxy,
            scene(storing(f"redis://{proxy.host}:{proxy.port}", prefix, timeout=1.0)) as it,
            anyio.create_task_group() as tasks,
        ):
            clients = [Follower(it.following, it.session.id) for _ in range(100)]
            for each in clients:
                tasks.start_soon(each.run)
            await until(lambda: all(len(each.events) == 5 for each in clients))
            accepted = proxy.accepted
            for n, weather in enumerate([proxy.black_hole, lambda: proxy.cut(after=0)], 5):
                weather()
                proxy.reset()
                async with anyio.create_task_group() as others:
                    others.start_soon(it.emit, n)
                    await anyio.sleep(seconds)
                    proxy.pass_on()
            for each in clients:
                await until(lambda each=each: each.numbers == [*range(7)])
            await it.let_leases_lapse(7)
            await it.until_delivered(7)
            assert it.told.numbers == [*range(8)]
            assert it.client.gaps == []
            assert proxy.accepted - accepted < most
            tasks.cancel_scope.cancel()


async def test_cut_off_from_it_nobody_storms_and_all_goes_on_afterwards(prefix: str) -> None:
    await check_cut_off(prefix, seconds=1.5, most=100)


@pytest.mark.torture
@pytest.mark.timeout(300)
async def test_cut_off_for_a_minute_nobody_storms_and_all_goes_on_afterwards(prefix: str) -> None:
    await check_cut_off(prefix, seconds=30, most=1_500)


# What an eviction may take alone, and what becomes of the session.


def evict(url: str, prefix: str, kind: str) -> None:
    """Delete the keys of a kind, in all partitions."""
    names = [each.decode() for each in call(url, "KEYS", f"{{{prefix}:*")]
    chosen = [each for each in names if f"{each.partition('}:')[2]}:".startswith(f"{kind}:")]
    assert chosen, kind
    for each in chosen:
        call(url, "DEL", each)


@pytest.mark.parametrize("kind", ["ids", "ch", "chk", "due", "k", "x", "a"])
async def test_without_a_key_that_can_be_made_anew_nobody_notices(prefix: str, kind: str) -> None:
    url = shared_server()
    async with scene(storing(url, prefix)) as it:
        it.told.is_refusing = True
        await it.emit(5)
        await it.until_read(5)
        evict(url, prefix, kind)
        it.told.is_refusing = False
        await it.emit(6)
        await it.until_read(6)
        await it.until_delivered(6)
        assert it.client.numbers == it.told.numbers == [*range(7)]
        assert it.client.gaps == []


async def test_without_what_is_known_of_the_partition_clients_are_told_and_nothing_is_lost(
    prefix: str,
) -> None:
    url = shared_server()
    async with scene(storing(url, prefix)) as it:
        it.told.is_refusing = True
        await it.emit(5)
        await it.until_read(5)
        evict(url, prefix, "meta")
        it.told.is_refusing = False
        # Nobody has to emit: it is looked for.
        await until(lambda: it.client.numbers[-6:] == [*range(6)] and len(it.client.gaps) == 1)
        await it.until_delivered(5)
        await it.emit(6)
        await it.until_read(6)
        await it.until_delivered(6)
        assert it.client.numbers == [*range(6), *range(7)]
        assert it.told.numbers == [*range(7)]


async def test_without_its_log_clients_of_a_session_are_told_and_it_goes_on(prefix: str) -> None:
    url = shared_server()
    async with scene(storing(url, prefix)) as it:
        it.told.is_refusing = True
        await it.emit(5)
        await it.until_read(5)
        evict(url, prefix, "l")
        it.told.is_refusing = False
        await it.emit(6, 7)
        await it.until_read(7)
        await it.until_delivered(7)
        assert it.client.numbers == [*range(8)]
        assert len(it.client.gaps) == 1
        # What was owed is not forgotten silently; an attempt may have had it in memory.
        assert it.told.numbers in ([0, 1, 2, 3, 4, 6, 7], [*range(8)])
        assert (await it.session.stats()).events_expired == 1


async def test_without_its_record_a_session_is_unknown_to_those_who_follow_it_too(
    prefix: str,
) -> None:
    url = shared_server()
    async with scene(storing(url, prefix)) as it:
        evict(url, prefix, "s")
        with pytest.raises(UnknownSessionError):
            await it.emit(5)
        await until(lambda: it.client.is_gone)


# Nothing but hints is lost.


@pytest.mark.parametrize("weather", [FaultProxy.black_hole, FaultProxy.refuse])
async def test_without_any_notification_all_is_read_and_delivered_a_little_later(
    prefix: str, weather: Callable[[FaultProxy], None]
) -> None:
    url = shared_server()
    host, _, port = url.rpartition("/")[2].rpartition(":")
    told = Told()
    async with FaultProxy(host.rpartition("@")[2], int(port)) as proxy:
        listening = client_of(f"redis://{proxy.host}:{proxy.port}", timeout=2.0)
        asking = client_of(url, timeout=2.0)
        deaf = RedisStore(lambda: TwoWays(asking, listening), prefix=prefix, timeout=2.0)
        # It is not entered, so that it only emits.
        emitting = managing(url, prefix)
        session_id = (await emitting.create_session(CONFIG)).id
        async with (
            CallbackManager(deaf, [told], drain_timeout=1) as manager,
            anyio.create_task_group() as tasks,
        ):
            client = Follower(manager, session_id)
            tasks.start_soon(client.run)
            await emit(emitting, session_id, [0])
            await until(lambda: client.numbers == told.numbers == [0])
            weather(proxy)
            for n in (1, 2):
                await emit(emitting, session_id, [n])
                # Every 1.5 seconds it looks; a lease, or a minute, would be too late.
                with anyio.fail_after(1.5 + 5):
                    await until(lambda n=n: n in client.numbers and n in told.numbers)
            assert client.numbers == told.numbers == [0, 1, 2]
            assert client.failures == 0
            tasks.cancel_scope.cancel()
        await emitting.store.aclose()


async def test_as_a_user_without_channels_all_is_emitted_read_and_delivered(prefix: str) -> None:
    with Server() as server:
        server.call("ACL", "SETUSER", "default", "resetchannels")
        async with scene(storing(server.url, prefix)) as it:
            await it.emit(5)
            await it.until_read(5)
            await it.until_delivered(5)
            assert it.client.numbers == it.told.numbers == [*range(6)]
            assert it.client.failures == 0


# Nobody gets what another one asked for.


async def cancelled_at(turn: int, verb: Callable[[], Any]) -> Any:
    """Have a coroutine function run, and cancel it after so many turns of the event loop."""
    results: list[Any] = []

    async def run() -> None:
        results.append(await verb())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        for _ in range(turn):
            await anyio.lowlevel.checkpoint()
        if turn % 2:
            await anyio.sleep(turn / 5_000)
        tasks.cancel_scope.cancel()
    return results[0] if results else None


def number(record: Record) -> int:
    data: dict[str, int] = json.loads(record.body)["data"]
    return data["n"]


async def check_cancelled(prefix: str, turns: int) -> None:
    with Server() as server:
        async with FaultProxy("127.0.0.1", server.port) as proxy:
            manager = managing(f"redis://{proxy.host}:{proxy.port}", prefix)
            ids = [(await manager.create_session(CONFIG)).id for _ in range(8)]
            proxy.delay(0.002)
            emitted: dict[Position, int] = {}

            async def work(place: int, session_id: str) -> None:
                for turn in range(turns):
                    await ask(turn, session_id, 1_000 * place, 1_000 * place + turn)

            async def ask(turn: int, session_id: str, first: int, n: int) -> None:
                event = await cancelled_at(turn, lambda: manager.emit(session_id, "step", {"n": n}))
                if event is not None:
                    assert (event.session_id, event.data["n"]) == (session_id, n)
                    emitted[event.position] = n
                session = await cancelled_at(turn, lambda: manager.get_session(session_id))
                assert session is None or session.id == session_id
                page = await cancelled_at(turn, lambda: manager.store.read(session_id))
                read = [number(each) for each in page.records] if page is not None else []
                assert all(first <= each <= n for each in read)

            async with anyio.create_task_group() as tasks:
                for place, session_id in enumerate(ids):
                    tasks.start_soon(work, place, session_id)
            proxy.pass_on()
            for place, session_id in enumerate(ids):
                page = await manager.store.read(session_id, limit=1_000)
                found = {Position(page.epoch, each.seq): number(each) for each in page.records}
                # Each is there once and in order, whether anybody waited for it or not.
                assert sorted(set(found.values())) == list(found.values())
                assert {n // 1_000 for n in found.values()} == {place}
                assert found.items() >= {
                    (position, n) for position, n in emitted.items() if n // 1_000 == place
                }
            await manager.store.aclose()


async def test_no_answer_of_a_slow_connection_reaches_the_wrong_caller(prefix: str) -> None:
    await check_cancelled(prefix, 30)


async def test_no_answer_to_a_call_that_took_too_long_reaches_another(prefix: str) -> None:
    with Server() as server:
        async with FaultProxy("127.0.0.1", server.port) as proxy:
            url = f"redis://{proxy.host}:{proxy.port}"
            manager = managing(url, prefix)
            ids = [(await manager.create_session(CONFIG)).id for _ in range(8)]
            hasty = RedisStore.from_url(url, prefix=prefix, timeout=0.05)
            outcomes: Counter[str] = Counter()

            async def ask(session_id: str) -> None:
                for _ in range(40):
                    try:
                        session = await hasty.get_session(session_id)
                        outcomes["right" if session.id == session_id else "wrong"] += 1
                    except StoreUnavailableError:
                        outcomes["late"] += 1

            async def change(weather: Iterable[float]) -> None:
                for delay in weather:
                    proxy.delay(delay)
                    await anyio.sleep(0.02)

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(change, [0.0, 0.024, 0.026, 0.03] * 12 + [0.0])
                for session_id in ids:
                    tasks.start_soon(ask, session_id)
            assert outcomes["wrong"] == 0
            assert outcomes["right"] > 0
            assert outcomes["late"] > 0
            await hasty.aclose()
            await manager.store.aclose()


@pytest.mark.torture
@pytest.mark.timeout(300)
async def test_no_answer_of_a_slow_connection_ever_reaches_the_wrong_caller(prefix: str) -> None:
    await check_cancelled(prefix, 400)


# All of it, for a while.


@pytest.mark.torture
@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", range(5))
async def test_in_any_weather_nothing_is_lost_that_redis_has_kept(prefix: str, seed: int) -> None:
    chance = random.Random(seed)
    with Server(appendonly="yes", appendfsync="always") as server:
        async with (
            FaultProxy("127.0.0.1", server.port) as proxy,
            scene(storing(f"redis://{proxy.host}:{proxy.port}", prefix, timeout=0.5)) as it,
        ):

            async def pause() -> None:
                server.pause()
                await anyio.sleep(chance.uniform(0, 1))
                server.resume()

            async def lose(weather: Callable[[], None]) -> None:
                weather()
                proxy.reset()
                await anyio.sleep(chance.uniform(0, 1))
                proxy.pass_on()

            async def part() -> None:
                server.call("CLIENT", "KILL", "TYPE", chance.choice(["normal", "pubsub"]))

            async def forget() -> None:
                evict(server.url, prefix, chance.choice(["meta", "ids", "ch", "chk"]))

            faults: list[Callable[[], Awaitable[None]]] = [
                lambda: anyio.to_thread.run_sync(server.restart),
                pause,
                lambda: lose(proxy.black_hole),
                lambda: lose(proxy.refuse),
                lambda: lose(lambda: proxy.cut(after=chance.randrange(2_000))),
                part,
                forget,
            ]
            done = 5
            for _ in range(12):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(it.emit, *range(done, done + 19))
                    await anyio.sleep(chance.uniform(0, 0.1))
                    await chance.choice(faults)()
                done += 20
                await it.let_leases_lapse(done - 1)
                await it.until_read(done - 1)
                await it.until_delivered(done - 1)
            assert [*dict.fromkeys(it.client.numbers)] == [*range(done)]
            assert it.told.numbers == [*range(done)]
