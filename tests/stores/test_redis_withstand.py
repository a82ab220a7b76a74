"""What managers on one Redis withstand when it fails them, or the way to it does."""

import gc
import json
import logging
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import attrs
import pytest

from callbackkit.errors import StoreUnavailableError, UnknownSessionError
from callbackkit.events import Event, Position
from callbackkit.sessions.limits import Limits
from callbackkit.sessions.manager import CallbackManager
from callbackkit.sessions.session import Session
from callbackkit.stores.base import NewSession, Record
from callbackkit.stores.redis import RedisStore
from callbackkit.stores.redis_client import client_of
from callbackkit.testing import FaultProxy
from tests.stores.redis_rig import PATIENCE, Follower, Told, TwoWays, emit, until
from tests.stores.redis_server import Server, call, fresh_prefix, marks, shared_server

pytestmark = marks

CONFIG = {"delivery_method": "told"}

# The store asks from a thread of its own: what takes long is seen on one event loop only.
on_trio = pytest.mark.parametrize("anyio_backend", ["trio"])


@pytest.fixture(scope="module", autouse=True)
def garbage() -> Iterator[None]:
    """What coredis leaves open is collected while its warning is passed over, see `marks`."""
    yield
    gc.collect()


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """What is logged holds tracebacks, and so what coredis leaves open, for longer than a test."""
    for name in ("callbackkit", "coredis"):
        caplog.set_level(logging.CRITICAL, name)


@pytest.fixture
def prefix() -> str:
    return fresh_prefix()


def managing(url: str, prefix: str, *, timeout: float = 5.0) -> CallbackManager:
    store = RedisStore.from_url(url, prefix=prefix, timeout=timeout)
    return CallbackManager(store, [Told()], drain_timeout=1)


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
        CallbackManager(
            new_store(clock), limits=Limits(max_readers=10_000), drain_timeout=1
        ) as following,
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
            # From the oldest event each time: all of it, and none but over a gap again.
            assert it.client.numbers == [*range(5), *range(10), *range(15)]
            assert it.told.numbers == [*range(15)]
            stats = await it.session.stats()
            assert (stats.events_sent, stats.queued_events, stats.events_expired) == (15, 0, 0)


async def check_all_lost(prefix: str, lose: Callable[[Server], object]) -> None:
    with Server() as server:
        async with scene(storing(server.url, prefix)) as it:
            lose(server)
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


async def test_after_a_restart_without_data_clients_know_and_new_sessions_work(
    prefix: str,
) -> None:
    await check_all_lost(prefix, Server.restart)


@on_trio
async def test_after_flushall_clients_know_and_new_sessions_work(prefix: str) -> None:
    """The server is the same, and nobody has to emit: it is looked for."""
    await check_all_lost(prefix, lambda server: server.call("FLUSHALL"))


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


@on_trio
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
            assert it.client.numbers == [*range(7), *range(5), 7, 8]
            assert it.told.numbers == [*range(9)]
            # The numbers go back, and mean nothing else: that is told, and the epoch is another.
            lost, gap, again = [
                each for each in it.client.events if each.is_gap or each.data["n"] in {6, 8}
            ]
            assert gap.is_gap
            assert (lost.position.seq, again.position.seq) == (7, 7)
            assert lost.position.epoch != again.position.epoch


def stop_writing(server: Server) -> None:
    """It goes on to answer others; a failover that is asked for begins so."""
    server.call("CLIENT", "PAUSE", 60_000, "WRITE")


def resume_writing(server: Server) -> None:
    server.call("CLIENT", "UNPAUSE")


@pytest.mark.parametrize(
    ("pause", "resume", "anyio_backend"),
    [
        pytest.param(Server.pause, Server.resume, "trio", id="standstill"),
        pytest.param(stop_writing, resume_writing, "asyncio", id="no writing"),
    ],
)
async def test_a_pause_longer_than_the_timeout_costs_nothing_but_time(
    prefix: str, pause: Callable[[Server], None], resume: Callable[[Server], None]
) -> None:
    with Server() as server:
        async with (
            scene(storing(server.url, prefix, timeout=1.0)) as it,
            anyio.create_task_group() as tasks,
        ):
            pause(server)
            with pytest.raises(StoreUnavailableError):
                await it.session.emit("step", {"n": 5}, idempotency_key="k5")
            tasks.start_soon(it.emit, *range(5, 10))
            await anyio.sleep(0.5)
            resume(server)
            await it.until_read(9)
            await it.until_delivered(9)
            assert it.client.numbers == [*range(10)]
            assert it.told.numbers == [*range(10)]
            assert it.client.gaps == []


def calls(url: str, *names: str) -> int:
    """Return how often a server was asked for commands, by scripts or by clients."""
    stats = call(url, "INFO", "commandstats").decode()
    counts = [
        int(line.partition("calls=")[2].partition(",")[0])
        for line in stats.splitlines()
        if line.partition(":")[0].removeprefix("cmdstat_") in names
    ]
    return sum(counts)


# What a store asks, and what reading a log takes.
ASKING = ("evalsha", "eval", "subscribe")
READING = ("xrange",)


def idle_since(began: float) -> float:
    """Return how often two stores may have asked meanwhile for no reason: 20 times a second."""
    return 2 * 20 * (anyio.current_time() - began)


async def check_cut_off(prefix: str, *, seconds: float, timeout: float, most: int) -> None:
    """Cut two processes with a hundred clients off, twice; count how often it is asked."""
    with Server() as server:
        async with (
            FaultProxy("127.0.0.1", server.port) as proxy,
            scene(storing(f"redis://{proxy.host}:{proxy.port}", prefix, timeout=timeout)) as it,
            anyio.create_task_group() as tasks,
        ):
            clients = [Follower(it.following, it.session.id) for _ in range(100)]
            for each in clients:
                tasks.start_soon(each.run)
            await until(lambda: all(len(each.events) == 5 for each in clients))
            accepted, before = proxy.accepted, calls(server.url, *ASKING)
            began = anyio.current_time()
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
            # Not as many as there are clients: one reads for all, and they only listen.
            assert calls(server.url, *ASKING) - before < most + idle_since(began)
            tasks.cancel_scope.cancel()


@on_trio
async def test_cut_off_from_it_nobody_storms_and_all_goes_on_afterwards(prefix: str) -> None:
    await check_cut_off(prefix, seconds=1.0, timeout=1.0, most=100)


@pytest.mark.torture
@pytest.mark.timeout(400)
async def test_cut_off_for_a_minute_nobody_storms_and_all_goes_on_afterwards(prefix: str) -> None:
    await check_cut_off(prefix, seconds=60, timeout=5.0, most=1_000)


async def check_come_back(prefix: str, *, clients: int, most: int) -> None:
    """Have many clients leave, and come back in one moment; count what Redis is asked."""
    url = shared_server()
    async with scene(storing(url, prefix)) as it:
        for begin in (5, 25):
            followers = [Follower(it.following, it.session.id) for _ in range(clients)]
            await it.emit(*range(begin, begin + 20))
            await it.until_read(begin + 19)
            before = [calls(url, *ASKING), calls(url, *READING)]
            began = anyio.current_time()
            async with anyio.create_task_group() as tasks:
                for each in followers:
                    each.events = it.client.events[:4]
                    tasks.start_soon(each.run)
                for each in followers:
                    await until(lambda each=each: each.numbers == it.client.numbers)
                more = [calls(url, *ASKING) - before[0], calls(url, *READING) - before[1]]
                tasks.cancel_scope.cancel()
            # The log is read about once, and that they are there is told in few calls.
            assert max(more) < most + idle_since(began), more


@on_trio
async def test_clients_that_come_back_all_at_once_ask_it_about_once(prefix: str) -> None:
    await check_come_back(prefix, clients=300, most=30)


@pytest.mark.torture
async def test_many_clients_that_come_back_all_at_once_ask_it_about_once(prefix: str) -> None:
    await check_come_back(prefix, clients=5_000, most=300)


# What an eviction may take alone, and what becomes of the session.


def evict(url: str, prefix: str, kind: str) -> None:
    """Delete the keys of a kind, in all partitions."""
    names = [each.decode() for each in call(url, "KEYS", f"{{{prefix}:*")]
    chosen = [each for each in names if f"{each.partition('}:')[2]}:".startswith(f"{kind}:")]
    assert chosen, kind
    for each in chosen:
        call(url, "DEL", each)


@on_trio
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


@pytest.mark.parametrize(
    ("weather", "anyio_backend"), [(FaultProxy.black_hole, "asyncio"), (FaultProxy.refuse, "trio")]
)
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
            await emit(emitting, session_id, [1])
            # Every 1.5 seconds it looks. A connection that is silent is seen to be dead after 5,
            # and whoever waits looks by himself after 60.
            with anyio.fail_after(1.5 + 3):
                await until(lambda: client.numbers == told.numbers == [0, 1])
            assert client.failures == 0
            tasks.cancel_scope.cancel()
        await emitting.store.aclose()


@on_trio
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


async def cancelled_at(turn: int, verb: Callable[[], Any], outcomes: Counter[str]) -> Any:
    """Have a coroutine function run, and cancel it after so many turns of the event loop.

    Every other time after that many milliseconds more, and at every tenth not at all.
    """
    results: list[Any] = []

    async def run() -> None:
        results.append(await verb())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        for _ in range(turn):
            await anyio.lowlevel.checkpoint()
        if turn % 2:
            await anyio.sleep(turn / 1_000)
        if turn % 10 < 9:
            tasks.cancel_scope.cancel()
    outcomes["answered" if results else "cancelled"] += 1
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
            outcomes: Counter[str] = Counter()

            async def work(place: int, session_id: str) -> None:
                for turn in range(turns):
                    # Beyond so many it is answered in any case.
                    await ask(turn % 40, session_id, 1_000 * place, 1_000 * place + turn)

            async def at(turn: int, verb: Callable[[], Any]) -> Any:
                return await cancelled_at(turn, verb, outcomes)

            async def ask(turn: int, session_id: str, first: int, n: int) -> None:
                event = await at(turn, lambda: manager.emit(session_id, "step", {"n": n}))
                if event is not None:
                    assert (event.session_id, event.data["n"]) == (session_id, n)
                    emitted[event.position] = n
                session = await at(turn, lambda: manager.get_session(session_id))
                assert session is None or session.id == session_id
                page = await at(turn, lambda: manager.store.read(session_id))
                read = [number(each) for each in page.records] if page is not None else []
                assert all(first <= each <= n for each in read)

            async with anyio.create_task_group() as tasks:
                for place, session_id in enumerate(ids):
                    tasks.start_soon(work, place, session_id)
            proxy.pass_on()
            # Neither is rare.
            assert min(outcomes["answered"], outcomes["cancelled"]) >= turns, outcomes
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


@on_trio
async def test_no_answer_to_a_call_that_took_too_long_reaches_another(prefix: str) -> None:
    with Server() as server:
        async with FaultProxy("127.0.0.1", server.port) as proxy:
            url = f"redis://{proxy.host}:{proxy.port}"
            manager = managing(url, prefix)
            ids = [(await manager.create_session(CONFIG)).id for _ in range(8)]
            hasty = RedisStore.from_url(url, prefix=prefix, timeout=0.05)
            outcomes: Counter[str] = Counter()

            async def ask(session_id: str) -> None:
                tries = 0
                while tries < 40 or not outcomes["right"]:
                    tries += 1
                    try:
                        session = await hasty.get_session(session_id)
                        outcomes["right" if session.id == session_id else "wrong"] += 1
                    except StoreUnavailableError:
                        outcomes["late"] += 1

            async def change(weather: Iterable[float]) -> None:
                for delay in weather:
                    proxy.delay(delay)
                    await anyio.sleep(0.02)

            with anyio.fail_after(PATIENCE):
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
@pytest.mark.parametrize("seed", range(3))
async def test_whatever_is_evicted_no_position_comes_to_mean_another_event(
    prefix: str, seed: int
) -> None:
    """Redis throws away whatever it likes, as nobody should have it do; and goes on."""
    chance = random.Random(seed)
    with Server(maxmemory_policy="allkeys-random", maxmemory_samples=1) as server:
        used = int(server.call("INFO", "memory").partition(b"used_memory:")[2].split()[0])
        store = RedisStore.from_url(server.url, prefix=prefix, partitions=2)
        await store.start()
        server.call("CONFIG", "SET", "maxmemory", used + 1_500_000)
        meant: dict[tuple[str, str, int], bytes] = {}
        unknown = 0
        names = [f"s{n}" for n in range(30)]

        async def append_and_read(name: str, body: bytes) -> None:
            done = await store.append(name, "step", body)
            assert meant.setdefault((name, done.epoch, done.record.seq), body) == body
            if chance.random() < 0.1:
                page = await store.read(name, limit=1_000)
                for record in page.records:
                    # What is left is read again where a log has begun anew.
                    key = (name, page.epoch, record.seq)
                    assert meant.setdefault(key, record.body) == record.body

        for n in range(6_000):
            name = chance.choice(names)
            try:
                await append_and_read(name, b'{"n":%d,"more":"%s"}' % (n, b"x" * 500))
            except UnknownSessionError:
                unknown += 1
                await store.create_session(NewSession(id=name, token_hash=b""))
        stats = server.call("INFO", "stats").decode()
        assert int(stats.partition("evicted_keys:")[2].split()[0]) > 30
        # More than those that never were.
        assert unknown > len(names)
        await store.aclose()


@pytest.mark.torture
@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", range(5))
async def test_in_any_weather_nothing_is_lost_that_redis_has_kept(prefix: str, seed: int) -> None:
    chance = random.Random(seed)
    with Server(appendonly="yes", appendfsync="always") as server:
        async with (
            FaultProxy("127.0.0.1", server.port) as proxy,
            scene(storing(f"redis://{proxy.host}:{proxy.port}", prefix, timeout=1.0)) as it,
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
