import gc
import time
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import coredis
import pytest
from coredis.retry import NoRetryPolicy

from callbackkit.errors import (
    LeaseLostError,
    LimitError,
    StoreError,
    StoreUnavailableError,
    UnknownSessionError,
)
from callbackkit.events import Position
from callbackkit.stores.base import (
    KEY_KEPT,
    LETTER_KEPT,
    Attempt,
    NewSession,
    SessionRecord,
)
from callbackkit.stores.redis import RedisStore
from callbackkit.testing import ManualClock
from callbackkit.testing.stores import check_store
from tests.stores.redis_server import Server, call, fresh_prefix, marks, shared_server

pytestmark = marks

BODY = b'{"conversation_id":null,"data":{},"metadata":{}}'
ATTEMPT = Attempt(delivery_id="d", number=1, at=1.0, duration=0.1, events=1, error="no")


def new(session_id: str = "s", **options: Any) -> NewSession:
    return NewSession(id=session_id, token_hash=b"hash", **options)


def pushing(session_id: str = "s", **options: Any) -> NewSession:
    return new(session_id, method="webhook", pushes=True, **options)


@pytest.fixture(scope="module")
def url() -> str:
    return shared_server()


@pytest.fixture(scope="module", autouse=True)
def garbage() -> Iterator[None]:
    """What coredis leaves open is collected while its warning is passed over, see `marks`."""
    yield
    gc.collect()


@pytest.fixture
def prefix() -> str:
    return fresh_prefix()


@pytest.fixture
def redis(url: str) -> Callable[..., Any]:
    """Has the shared server do a command."""
    return partial(call, url)


@pytest.fixture
async def store(url: str, prefix: str) -> AsyncIterator[RedisStore]:
    store = RedisStore.from_url(url, prefix=prefix, partitions=1)
    await store.create_session(new())
    yield store
    await store.aclose()


def keys(redis: Callable[..., Any], prefix: str) -> set[str]:
    """Return the names of all keys with a prefix, without it."""
    found: set[str] = set()
    cursor = b"0"
    while True:
        cursor, names = redis("SCAN", cursor, "MATCH", f"{{{prefix}:*", "COUNT", 1000)
        found |= {name.decode().partition("}:")[2] for name in names}
        if cursor == b"0":
            return found


async def numbers(store: RedisStore, session_id: str = "s") -> list[int]:
    page = await store.read(session_id, limit=100_000)
    return [record.seq for record in page.records]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_it_is_a_store(url: str, backend: str) -> None:
    def make(clock: Callable[[], float]) -> RedisStore:
        return RedisStore.from_url(url, prefix=fresh_prefix(), partitions=2, clock=clock)

    check_store(make, backend=backend, examples=5)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Callable[[], Any]]:
    """Makes clients of a cluster of one server."""
    with Server(cluster_enabled="yes") as server:
        server.call("CLUSTER", "ADDSLOTS", *range(16_384))
        deadline = time.monotonic() + 10
        while b"cluster_state:ok" not in server.call("CLUSTER", "INFO"):
            assert time.monotonic() < deadline
        yield lambda: coredis.RedisCluster("127.0.0.1", server.port, retry_policy=NoRetryPolicy())


async def test_it_goes_by_a_cluster(cluster: Callable[[], Any]) -> None:
    prefix = fresh_prefix()
    store, other = RedisStore(cluster, prefix=prefix), RedisStore(cluster, prefix=prefix)
    names = [f"s{n}" for n in range(20)]
    for name in names:
        await store.create_session(pushing(name))
    assert sorted(each.id for each in await other.sessions()) == sorted(names)
    for name in names[:3]:
        with other.watch(name) as watch:
            await watch.wait(10)  # once it is listened to
            await store.append(name, "progress", BODY)
            assert await watch.wait(10)
    assert len(await deliver(other)) == 3
    await store.aclose()
    await other.aclose()


@pytest.mark.torture
def test_it_is_a_store_by_a_cluster(cluster: Callable[[], Any]) -> None:
    def make(clock: Callable[[], float]) -> RedisStore:
        return RedisStore(cluster, prefix=fresh_prefix(), clock=clock)

    check_store(make)


@pytest.mark.torture
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_it_is_a_store_by_the_clock_of_redis(url: str, backend: str) -> None:
    def make(_clock: Callable[[], float]) -> RedisStore:
        return RedisStore.from_url(url, prefix=fresh_prefix())

    check_store(make, backend=backend, manual_time=False)


# What it is given.


@pytest.mark.parametrize(
    "bad", ["", "localhost", "http://localhost", "redis://:secret@host:notaport", "redis://["]
)
def test_what_is_no_url_of_redis_is_refused_without_its_password(bad: str) -> None:
    with pytest.raises(ValueError, match="url is not one of Redis") as caught:
        RedisStore.from_url(bad)
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"prefix": ""}, ValueError),
        ({"prefix": "a{b}"}, ValueError),
        ({"prefix": b"a"}, TypeError),
        ({"partitions": 0}, ValueError),
        ({"partitions": 16_385}, ValueError),
        ({"partitions": 2.0}, TypeError),
        ({"partitions": True}, TypeError),
        ({"timeout": 0}, ValueError),
        ({"timeout": float("inf")}, ValueError),
        ({"timeout": "1"}, TypeError),
        ({"clock": 1.0}, TypeError),
    ],
)
def test_a_bad_option_is_refused_by_its_name(options: dict[str, Any], error: type) -> None:
    with pytest.raises(error, match=next(iter(options))):
        RedisStore.from_url("redis://localhost", **options)
    with pytest.raises(error, match=next(iter(options))):
        RedisStore(lambda: None, **options)


def test_what_makes_no_clients_is_refused() -> None:
    with pytest.raises(TypeError, match="new_client"):
        RedisStore("redis://localhost")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="url"):
        RedisStore.from_url(b"redis://localhost")  # type: ignore[arg-type]


async def test_no_password_is_shown() -> None:
    store = RedisStore.from_url("redis://:secret@127.0.0.1:1/0", timeout=1.0)
    assert "secret" not in repr(store)
    with pytest.raises(StoreUnavailableError) as caught:
        await store.start()
    texts = []
    error: BaseException | None = caught.value
    while error is not None:
        texts += [str(error), repr(error)]
        error = error.__cause__ or error.__context__
    assert "secret" not in "".join(texts)
    await store.aclose()


async def test_a_password_is_given_to_the_server_and_a_wrong_one_is_told(prefix: str) -> None:
    with Server(requirepass="pass/word%") as server:
        address = f"127.0.0.1:{server.port}"
        store = RedisStore.from_url(f"redis://:pass%2Fword%25@{address}", prefix=prefix)
        await store.create_session(new())
        await store.aclose()
        store = RedisStore.from_url(f"redis://:other-word@{address}", prefix=prefix)
        with pytest.raises(StoreUnavailableError) as caught:
            await store.start()
        assert "other-word" not in str(caught.value)
        await store.aclose()


async def test_a_client_that_decodes_is_refused(url: str) -> None:
    store = RedisStore(lambda: coredis.Redis.from_url(url, decode_responses=True))
    with pytest.raises(StoreError, match="does not decode"):
        await store.start()
    await store.aclose()


# What is kept in it.


@pytest.mark.parametrize("name", ["a" * 10_000, "ä☃𝄞", "a\0b", "a b\r\n", "{x}", "1:2", "\ud800"])
async def test_any_text_is_an_id_a_key_and_the_name_of_an_endpoint(
    store: RedisStore, name: str
) -> None:
    await store.create_session(pushing(name, owner=name))
    first = await store.append(name, name, BODY, key=name)
    again = await store.append(name, name, BODY, key=name)
    assert (again.is_new, again.record) == (False, first.record)
    assert [each.id for each in await store.sessions(owner=name)] == [name]
    (claim,) = (await store.claim(methods=["webhook"], limit=10, lease=10)).claims
    await store.park(claim, upto=1, letter_id=f"{name}_1", reason=name, attempt=None)
    (letter,) = await store.dead_letters(name)
    assert (letter.id, letter.reason) == (f"{name}_1", name)
    assert await store.redrive(name, [f"{name}_1"]) == 1
    (claim,) = (await store.claim(methods=["webhook"], limit=10, lease=10)).claims
    assert claim.letter is not None
    assert claim.letter.records[0].event_type == name
    assert await store.save_endpoint(name, 0, b"state")
    assert await store.load_endpoint(name) == (1, b"state")
    await store.delete_session(name, linger=0)


async def test_the_wake_of_any_id_arrives(url: str, prefix: str) -> None:
    other = RedisStore.from_url(url, prefix=prefix)
    store = RedisStore.from_url(url, prefix=prefix)
    for name in ("ä☃𝄞", "\ud800", "a\0b"):
        await store.create_session(new(name))
        with other.watch(name) as watch:
            await other.start()
            await watch.wait(10)  # once it is listened to
            await store.append(name, "progress", BODY)
            assert await watch.wait(10)
    await store.aclose()
    await other.aclose()


async def test_many_sessions_are_touched_at_once(store: RedisStore) -> None:
    await store.append("s", "progress", BODY)
    await store.touch({**{f"unknown{n}": n for n in range(10_000)}, "s": 1})
    assert (await store.get_session("s")).delivered == 1


async def test_many_letters_are_named_at_once(store: RedisStore) -> None:
    await store.create_session(pushing("p"))
    await store.append("p", "progress", BODY)
    (claim,) = (await store.claim(methods=["webhook"], limit=1, lease=10)).claims
    await store.park(claim, upto=1, letter_id="last", reason="", attempt=None)
    assert await store.redrive("p", [*(f"unknown{n}" for n in range(10_000)), "last"]) == 1


async def test_many_methods_are_claimed_for_at_once(store: RedisStore) -> None:
    await store.create_session(pushing("p"))
    await store.append("p", "progress", BODY)
    methods = [*(f"m{n}" for n in range(10_000)), "webhook"]
    assert len((await store.claim(methods=methods, limit=1, lease=10)).claims) == 1


async def test_large_events_are_appended_by_many_at_once(store: RedisStore) -> None:
    body = b"x" * 262_144

    async def append() -> None:
        await store.append("s", "progress", body)

    async with anyio.create_task_group() as tasks:
        for _ in range(128):
            tasks.start_soon(append)
    page = await store.read("s", limit=1_000)
    assert [len(record.body) for record in page.records] == [len(body)] * 128


async def test_sessions_are_listed_in_order_however_many_there_are(url: str, prefix: str) -> None:
    store = RedisStore.from_url(url, prefix=prefix, partitions=2)
    names = sorted(f"{n:05}" for n in range(2_500))
    async with anyio.create_task_group() as tasks:
        for name in names:
            owner = "few" if name.endswith("99") else None
            tasks.start_soon(store.create_session, new(name, owner=owner))
    assert [each.id for each in await store.sessions(limit=10_000)] == names
    assert [each.id for each in await store.sessions(limit=3, after="01000")] == [
        "01001", "01002", "01003",
    ]  # fmt: skip
    few = await store.sessions(owner="few", limit=20)
    assert [each.id for each in few] == [n for n in names if n.endswith("99")][:20]
    assert await store.sessions(owner="nobody") == []
    await store.aclose()


async def test_of_a_session_that_is_gone_nothing_is_left(
    url: str, prefix: str, redis: Callable[..., Any]
) -> None:
    clock = ManualClock()
    store = RedisStore.from_url(url, prefix=prefix, partitions=1, clock=clock)
    await store.save_endpoint("e", 0, b"state")
    for name in ("deleted", "ended", "lettered", "idle"):
        await store.create_session(pushing(name, ttl=100.0 if name == "idle" else None))
        await store.append(name, "progress", BODY, key="k")
        (claim,) = (await store.claim(methods=["webhook"], limit=1, lease=10)).claims
        if name == "lettered":
            await store.park(claim, upto=1, letter_id="l", reason="", attempt=ATTEMPT)
        else:
            await store.ack(claim, 1, ATTEMPT)
    assert {"l:deleted", "k:ended", "x:idle", "a:idle", "d:lettered"} <= keys(redis, prefix)
    await store.delete_session("deleted", linger=10)
    await store.end_session("ended", linger=10)
    await store.end_session("lettered", linger=10)
    clock.advance(LETTER_KEPT + KEY_KEPT)
    for _ in range(10):
        clock.advance(100)
        await store.sweep()
    assert keys(redis, prefix) == {"meta", "ch"}
    assert redis("ZRANGE", f"{{{prefix}:0}}:ch", 0, -1) == [b""]
    await store.aclose()


# What is lost is told, and what is left goes on.


async def fill(store: RedisStore) -> SessionRecord:
    """Have a session that owes two events and one with a letter; return the first."""
    await store.create_session(pushing("p"))
    await store.create_session(pushing("l"))
    await store.append("l", "progress", BODY)
    (claim,) = (await store.claim(methods=["webhook"], limit=1, lease=10)).claims
    await store.park(claim, upto=1, letter_id="l1", reason="", attempt=ATTEMPT)
    for n in range(2):
        await store.append("p", "progress", BODY, key=f"k{n}")
        await store.append("s", "progress", BODY)
    await store.save_endpoint("e", 0, b"state")
    return await store.get_session("p")


async def deliver(store: RedisStore) -> list[tuple[str, int]]:
    """Sweep, then deliver all that is due; return of which session and up to which number."""
    done: list[tuple[str, int]] = []
    while (await store.sweep()).has_more:
        pass
    while claims := (await store.claim(methods=["webhook"], limit=10, lease=10)).claims:
        for claim in claims:
            upto = (await store.get_session(claim.session_id)).top
            await store.ack(claim, upto, None)
            done.append((claim.session_id, upto))
    return done


def lose(redis: Callable[..., Any], prefix: str, kind: str) -> None:
    """Delete all keys of a kind, as eviction may."""
    names = [each for each in keys(redis, prefix) if each == kind or each.startswith(f"{kind}:")]
    assert names, kind
    redis("DEL", *(f"{{{prefix}:0}}:{each}" for each in names))


@pytest.mark.parametrize("kind", ["ids", "ch", "chk", "due", "ev", "es", "ez", "k", "x", "a", "o"])
async def test_without_a_key_that_can_be_done_without_all_goes_on(
    store: RedisStore, prefix: str, redis: Callable[..., Any], kind: str
) -> None:
    before = await fill(store)
    lose(redis, prefix, kind)
    assert await deliver(store) == [("p", 2)]
    await store.append("p", "progress", BODY)
    await store.append("s", "progress", BODY)
    after = await store.get_session("p")
    assert (after.epoch, after.top) == (before.epoch, 3)
    assert await numbers(store, "s") == [1, 2, 3]
    assert await deliver(store) == [("p", 3)]
    assert [each.id for each in await store.sessions()] == ["l", "p", "s"]
    totals = await store.totals()
    assert (totals.sessions, totals.queued, totals.delivered) == (3, 2 + 1, 3)
    await store.attempts("l")
    await store.dead_letters("l")
    await store.redrive("l")
    await store.load_endpoint("e")
    for name in ("s", "p", "l"):
        await store.delete_session(name, linger=0)
    while (await store.sweep()).has_more:
        pass


async def test_when_keys_are_forgotten_is_set_anew_where_it_was_lost(
    store: RedisStore, prefix: str, redis: Callable[..., Any]
) -> None:
    await fill(store)
    lose(redis, prefix, "x")
    assert not (await store.append("p", "progress", BODY, key="k0")).is_new
    assert redis("ZCARD", f"{{{prefix}:0}}:x:p") == 2


async def test_without_its_meta_key_every_log_gets_a_new_epoch_and_what_is_owed_is_delivered(
    store: RedisStore, prefix: str, redis: Callable[..., Any]
) -> None:
    before = await fill(store)
    (claim,) = (await store.claim(methods=["webhook"], limit=1, lease=10)).claims
    totals = await store.totals()
    lose(redis, prefix, "meta")
    assert await store.totals() == totals
    with pytest.raises(LeaseLostError):
        await store.ack(claim, 2, None)
    after = await store.get_session("p")
    assert (after.epoch != before.epoch, after.top) == (True, 2)
    assert await deliver(store) == [("p", 2)]
    page = await store.read("p", after=Position(before.epoch, 2))
    assert [record.seq for record in page.records] == [1, 2]


async def test_without_its_log_a_session_has_a_new_epoch_and_what_it_owed_has_expired(
    store: RedisStore, prefix: str, redis: Callable[..., Any]
) -> None:
    before = await fill(store)
    lose(redis, prefix, "l")
    await store.append("p", "progress", BODY)
    after = await store.get_session("p")
    assert after.epoch != before.epoch
    assert (after.first, after.top, after.expired, after.queued) == (3, 3, 2, 1)
    page = await store.read("p", after=Position(before.epoch, 1))
    assert (page.first, [record.seq for record in page.records]) == (3, [3])
    assert await deliver(store) == [("p", 3)]


async def test_a_lease_on_what_was_lost_with_the_log_holds_back_nothing_that_comes(
    store: RedisStore, prefix: str, redis: Callable[..., Any]
) -> None:
    await fill(store)
    (claim,) = (await store.claim(methods=["webhook"], limit=1, lease=60)).claims
    lose(redis, prefix, "l")
    await store.append("p", "progress", BODY)
    with pytest.raises(LeaseLostError):
        await store.ack(claim, 2, None)
    assert await deliver(store) == [("p", 3)]


async def test_without_its_hash_a_session_is_gone_and_counts_no_more(
    store: RedisStore, prefix: str, redis: Callable[..., Any]
) -> None:
    await fill(store)
    lose(redis, prefix, "s")
    for verb in (store.get_session, store.attempts, store.dead_letters):
        with pytest.raises(UnknownSessionError):
            await verb("p")
    assert await deliver(store) == []
    assert await store.sessions() == []
    totals = await store.totals()
    assert (totals.sessions, totals.active, totals.queued) == (0, 0, 0)
    assert (totals.sent, totals.expired) == (5, 4)
    assert keys(redis, prefix) == {"meta", "ch", "ev", "es", "ez"}
    await store.create_session(pushing("p"))
    await store.append("p", "progress", BODY, key="k1")
    assert await numbers(store, "p") == [1]


@pytest.mark.parametrize("kind", ["d", "r"])
async def test_a_letter_of_which_a_part_is_lost_is_gone(
    store: RedisStore, prefix: str, redis: Callable[..., Any], kind: str
) -> None:
    await fill(store)
    await store.redrive("l")
    lose(redis, prefix, kind)
    assert await store.dead_letters("l") == []
    assert await store.redrive("l") == 0
    assert await deliver(store) == [("p", 2)]
    assert not {"d:l", "r:l", "o:l"} & keys(redis, prefix)


async def test_after_flushall_sessions_are_unknown_and_new_ones_begin(
    prefix: str,
) -> None:
    with Server() as server:
        store = RedisStore.from_url(server.url, prefix=prefix)
        await store.create_session(new())
        before = await store.append("s", "progress", BODY)
        server.call("FLUSHALL")
        with pytest.raises(UnknownSessionError):
            await store.append("s", "progress", BODY)
        await store.create_session(new())
        assert (await store.append("s", "progress", BODY)).epoch != before.epoch
        assert (await store.totals()).sessions == 1
        await store.aclose()


async def test_after_debug_reload_nothing_has_changed(prefix: str) -> None:
    with Server() as server:
        store = RedisStore.from_url(server.url, prefix=prefix)
        await store.create_session(pushing())
        before = await store.append("s", "progress", BODY)
        server.call("DEBUG", "RELOAD")
        after = await store.append("s", "progress", BODY)
        assert (after.epoch, after.record.seq) == (before.epoch, 2)
        assert await deliver(store) == [("s", 2)]
        await store.aclose()


async def test_after_a_restart_with_all_its_data_every_log_has_a_new_epoch(prefix: str) -> None:
    with Server(appendonly="yes", appendfsync="always") as server:
        store = RedisStore.from_url(server.url, prefix=prefix, partitions=1)
        await store.create_session(pushing())
        before = await store.append("s", "progress", BODY, key="k")
        (claim,) = (await store.claim(methods=["webhook"], limit=1, lease=60)).claims
        server.restart()
        await until_it_answers(store)
        with pytest.raises(LeaseLostError):
            await store.renew(claim, lease=60)
        again = await store.append("s", "progress", BODY, key="k")
        assert (again.is_new, again.epoch != before.epoch) == (False, True)
        assert await deliver(store) == [("s", 1)]
        await store.aclose()


async def test_after_its_file_was_turned_back_no_position_means_another_event(prefix: str) -> None:
    with Server() as server:
        store = RedisStore.from_url(server.url, prefix=prefix)
        await store.create_session(new())
        await store.append("s", "progress", b"kept")
        server.call("SAVE")
        lost = await store.append("s", "progress", b"lost")
        server.restart(how="kill")
        await until_it_answers(store)
        other = await store.append("s", "progress", b"other")
        assert (other.record.seq, other.epoch != lost.epoch) == (2, True)
        page = await store.read("s", after=Position(lost.epoch, 2))
        assert [record.body for record in page.records] == [b"kept", b"other"]
        await store.aclose()


async def test_after_a_restart_without_data_sessions_are_unknown(prefix: str) -> None:
    with Server() as server:
        store = RedisStore.from_url(server.url, prefix=prefix)
        await store.create_session(new())
        server.restart()
        await until_it_answers(store)
        with pytest.raises(UnknownSessionError):
            await store.get_session("s")
        await store.aclose()


async def test_a_replica_refuses_and_once_promoted_begins_new_epochs(prefix: str) -> None:
    with (
        Server(repl_diskless_sync_delay=0) as primary,
        Server(replicaof=f"127.0.0.1 {primary.port}") as replica,
    ):
        store = RedisStore.from_url(primary.url, prefix=prefix, partitions=1)
        await store.create_session(pushing())
        before = await store.append("s", "progress", BODY)
        with anyio.fail_after(10):
            while replica.call("XLEN", f"{{{prefix}:0}}:l:s") == 0:
                await anyio.lowlevel.checkpoint()
        await store.aclose()
        store = RedisStore.from_url(replica.url, prefix=prefix, partitions=1)
        with pytest.raises(StoreUnavailableError, match=r"READONLY|read only"):
            await store.read("s")
        replica.call("REPLICAOF", "NO", "ONE")
        await until_it_answers(store)
        after = await store.append("s", "progress", BODY)
        assert (after.record.seq, after.epoch != before.epoch) == (2, True)
        assert await deliver(store) == [("s", 2)]
        await store.aclose()


async def until_it_answers(store: RedisStore) -> None:
    with anyio.fail_after(10):
        while True:
            try:
                return await store.health()
            except StoreUnavailableError:
                await anyio.sleep(0.01)


# What Redis refuses.


async def test_memory_that_is_full_is_told_and_nothing_half_done(prefix: str) -> None:
    with Server(maxmemory_policy="noeviction") as server:
        store = RedisStore.from_url(server.url, prefix=prefix, partitions=1)
        await store.create_session(pushing())
        await store.append("s", "progress", BODY)
        server.call("CONFIG", "SET", "maxmemory", 1)
        before = await store.get_session("s")
        for _ in range(3):
            with pytest.raises(StoreUnavailableError, match="OOM"):
                await store.append("s", "progress", BODY, key="k")
        with pytest.raises(StoreUnavailableError, match="OOM"):
            await store.create_session(new("t"))
        assert await store.get_session("s") == before
        assert (await store.totals()).sent == 1
        server.call("CONFIG", "SET", "maxmemory", 0)
        assert (await store.append("s", "progress", BODY, key="k")).record.seq == 2
        assert await numbers(store) == [1, 2]
        assert (await store.totals()).sent == 2
        await store.aclose()


async def test_a_verb_that_fails_does_not_take_others_with_it(
    store: RedisStore, prefix: str, redis: Callable[..., Any]
) -> None:
    await store.create_session(new("broken"))
    await store.append("broken", "progress", BODY)
    redis("DEL", f"{{{prefix}:0}}:l:broken")
    redis("SET", f"{{{prefix}:0}}:l:broken", "no stream")
    errors: list[StoreError] = []

    async def append(name: str) -> None:
        try:
            await store.append(name, "progress", BODY)
        except StoreError as error:
            errors.append(error)

    async with anyio.create_task_group() as tasks:
        for n in range(60):
            tasks.start_soon(append, "broken" if n % 3 == 1 else "s")
    assert await numbers(store) == list(range(1, 41))
    assert len(errors) == 20
    assert all("WRONGTYPE" in str(each) for each in errors)
    assert not any(isinstance(each, StoreUnavailableError) for each in errors)
    assert (await store.get_session("broken")).top == 1
    assert (await store.totals()).sent == 41


async def test_of_a_verb_that_fails_half_way_the_sums_know_nothing(
    store: RedisStore, prefix: str, redis: Callable[..., Any]
) -> None:
    redis("DEL", f"{{{prefix}:0}}:chk")
    redis("SET", f"{{{prefix}:0}}:chk", "no set")
    results: list[object] = []

    async def end() -> None:
        try:
            await store.end_session("s", linger=10)
        except StoreError as error:
            results.append(error)

    async def append() -> None:
        results.append(await store.append("s", "progress", BODY))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(end)
        tasks.start_soon(append)
    assert len(results) == 2
    assert (await store.get_session("s")).state == "active"
    totals = await store.totals()
    assert (totals.active, totals.sent) == (1, 1)


async def test_what_this_store_did_not_write_is_told(
    store: RedisStore, prefix: str, redis: Callable[..., Any]
) -> None:
    redis("HSET", f"{{{prefix}:0}}:s:s", "un", "no JSON")
    with pytest.raises(StoreError, match="did not write") as caught:
        await store.get_session("s")
    assert isinstance(caught.value.__cause__, ValueError)


async def test_a_script_that_redis_has_forgotten_is_given_again(
    store: RedisStore, redis: Callable[..., Any]
) -> None:
    for _ in range(3):
        redis("SCRIPT", "FLUSH")
        await store.append("s", "progress", BODY)
    assert await numbers(store) == [1, 2, 3]
    await store.append("s", "progress", BODY)


async def test_a_replica_too_few_is_told(prefix: str) -> None:
    with Server(min_replicas_to_write=1) as server:
        store = RedisStore.from_url(server.url, prefix=prefix)
        with pytest.raises(StoreUnavailableError, match="NOREPLICAS"):
            await store.create_session(new())
        await store.aclose()


async def test_too_many_keys_or_sessions_are_refused(store: RedisStore) -> None:
    with pytest.raises(LimitError, match="max_sessions"):
        await store.create_session(new("t"), max_sessions=1)
