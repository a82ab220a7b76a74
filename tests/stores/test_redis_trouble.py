"""What a RedisStore does while Redis, or what is in one partition of it, fails."""

import contextlib
import gc
import time
from collections.abc import AsyncIterator, Iterator

import anyio
import pytest

from callbackkit.errors import StoreError, StoreUnavailableError
from callbackkit.stores.redis import RedisStore
from tests.stores.redis_given import (
    BODY,
    claim_one,
    counted,
    key,
    names_in,
    new,
    pushing,
    spoilt,
    until_it_answers,
)
from tests.stores.redis_server import Server, fresh_prefix, marks, shared_server

pytestmark = marks


@pytest.fixture(scope="module", autouse=True)
def garbage() -> Iterator[None]:
    """What coredis leaves open is collected while its warning is passed over, see `marks`."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def url() -> str:
    return shared_server()


@pytest.fixture
def prefix() -> str:
    return fresh_prefix()


# One partition.


async def test_while_a_partition_fails_what_the_others_owe_is_claimed(
    url: str, prefix: str
) -> None:
    store = RedisStore.from_url(url, prefix=prefix, partitions=4)
    names = {f"s{n}" for n in range(20)}
    for name in names:
        await store.create_session(pushing(name))
        await store.append(name, "progress", BODY)
    with spoilt(url, key(prefix, "meta", 2)):
        found = await store.claim(methods=["webhook"], limit=100, lease=60)
        healthy = [each.session_id for each in found.claims]
        assert 0 < len(healthy) < len(names)
        # Soon it is asked again.
        assert found.next_in is not None
        assert found.next_in < 5
        again = await store.claim(methods=["webhook"], limit=100, lease=60)
        assert again.claims == []
        assert again.next_in is not None
        assert again.next_in < 5
    late = (await store.claim(methods=["webhook"], limit=100, lease=60)).claims
    assert sorted([*healthy, *(each.session_id for each in late)]) == sorted(names)
    await store.aclose()


async def test_an_error_of_one_partition_costs_the_others_no_connection(prefix: str) -> None:
    with Server() as server:
        store = RedisStore.from_url(server.url, prefix=prefix, partitions=2)
        (well,) = await names_in(store, server.url, prefix, 0, 1)
        (ill,) = await names_in(store, server.url, prefix, 1, 1)
        with store.watch(well) as watch:
            await watch.wait(10)  # once it is listened to, too
        with spoilt(server.url, key(prefix, "meta", 1)):
            before = counted(server, "stats", "total_connections_received")
            for _ in range(20):
                with pytest.raises(StoreError):
                    await store.append(ill, "progress", BODY)
                await store.append(well, "progress", BODY)
            after = counted(server, "stats", "total_connections_received")
        # One asks how many there were.
        assert after - before == 1
        await store.append(ill, "progress", BODY)
        await store.aclose()


# An append that fails half way.


@contextlib.asynccontextmanager
async def denied(server: Server, prefix: str, command: str) -> AsyncIterator[RedisStore]:
    """A store of a user who may not use a command."""
    server.call("ACL", "SETUSER", "poor", "on", "nopass", "~*", "&*", "+@all", f"-{command}")
    url = server.url.replace("redis://", "redis://poor:any@")
    store = RedisStore.from_url(url, prefix=prefix, partitions=1)
    yield store
    await store.aclose()


@pytest.fixture(scope="module")
def own() -> Iterator[Server]:
    with Server() as server:
        yield server


async def test_an_append_that_failed_half_way_is_not_read_and_the_next_takes_its_place(
    own: Server, prefix: str
) -> None:
    store = RedisStore.from_url(own.url, prefix=prefix, partitions=1)
    await store.create_session(pushing())
    await store.append("s", "progress", b"first")
    async with denied(own, prefix, "hset") as poor:
        for _ in range(2):
            with pytest.raises(StoreUnavailableError):
                await poor.append("s", "progress", b"ghost")
    assert (await store.get_session("s")).top == 1
    assert (await store.totals()).sent == 1
    for page in (
        await store.read("s"),
        await store.read("s", owed=True),
        await store.tail("s", limit=10),
    ):
        assert (page.top, [each.body for each in page.records]) == (1, [b"first"])
    for n, body in enumerate([b"second", b"third"], 2):
        assert (await store.append("s", "progress", body)).record.seq == n
    page = await store.read("s")
    assert [(each.seq, each.body) for each in page.records] == [
        (1, b"first"), (2, b"second"), (3, b"third"),
    ]  # fmt: skip
    await store.aclose()


@pytest.mark.parametrize("command", ["hset", "zadd"])
async def test_the_key_of_an_append_that_failed_half_way_stands_for_nothing(
    own: Server, prefix: str, command: str
) -> None:
    store = RedisStore.from_url(own.url, prefix=prefix, partitions=1)
    await store.create_session(pushing())
    await store.append("s", "progress", b"first")
    async with denied(own, prefix, command) as poor:
        with pytest.raises(StoreUnavailableError):
            await poor.append("s", "progress", b"ghost", key="k")
    await store.append("s", "progress", b"second")
    for is_new in (True, False):
        appended = await store.append("s", "progress", b"ghost", key="k")
        assert (appended.is_new, appended.record.seq) == (is_new, 3)
    bodies = [each.body for each in (await store.read("s")).records]
    assert bodies == [b"first", b"second", b"ghost"]
    await store.aclose()


@pytest.mark.parametrize("broken", ["chk", "due:webhook"])
async def test_an_append_that_failed_once_it_was_kept_is_known_by_its_key(
    url: str, prefix: str, broken: str
) -> None:
    store = RedisStore.from_url(url, prefix=prefix, partitions=1)
    await store.create_session(pushing())
    await store.append("s", "progress", b"first")
    await store.ack(await claim_one(store), 1, None)
    await store.create_session(pushing("t"))
    await store.append("t", "progress", BODY)
    with spoilt(url, key(prefix, broken)), pytest.raises(StoreError, match="WRONGTYPE"):
        await store.append("s", "progress", b"second", key="k")
    await store.append("s", "progress", b"third")
    again = await store.append("s", "progress", b"second", key="k")
    assert (again.is_new, again.record.seq) == (False, 2)
    bodies = [each.body for each in (await store.read("s")).records]
    assert bodies == [b"first", b"second", b"third"]
    claims = (await store.claim(methods=["webhook"], limit=10, lease=60)).claims
    assert {each.session_id for each in claims} == {"s", "t"}
    await store.aclose()


# All of it.


async def test_however_many_wait_nobody_waits_much_longer_than_a_call_may_take(
    prefix: str,
) -> None:
    with Server() as server:
        store = RedisStore.from_url(server.url, prefix=prefix, partitions=1, timeout=0.5)
        await store.create_session(new())
        server.pause()
        refused = 0

        async def append() -> None:
            nonlocal refused
            with pytest.raises(StoreUnavailableError):
                await store.append("s", "progress", BODY)
            refused += 1

        begun = time.monotonic()
        async with anyio.create_task_group() as tasks:
            # So many that they go there in twelve calls.
            for _ in range(1_500):
                tasks.start_soon(append)
        # At most what is left of one call, and one more; not six seconds.
        assert time.monotonic() - begun < 3
        assert refused == 1_500
        server.resume()
        await until_it_answers(store)
        await store.append("s", "progress", BODY)
        await store.aclose()


@pytest.mark.parametrize(
    ("ill", "well"),
    [
        (("CONFIG", "SET", "maxmemory", 1), ("CONFIG", "SET", "maxmemory", 0)),
        (
            ("CONFIG", "SET", "min-replicas-to-write", 1),
            ("CONFIG", "SET", "min-replicas-to-write", 0),
        ),
        (("REPLICAOF", "127.0.0.1", 1), ("REPLICAOF", "NO", "ONE")),
    ],
    ids=["no memory", "no replicas", "replica"],
)
async def test_it_is_not_well_where_nothing_can_be_written(
    prefix: str, ill: tuple[str | int, ...], well: tuple[str | int, ...]
) -> None:
    with Server(maxmemory_policy="noeviction") as server:
        store = RedisStore.from_url(server.url, prefix=prefix, partitions=2)
        await store.create_session(new())
        await store.health()
        server.call(*ill)
        with pytest.raises(StoreUnavailableError):
            await store.append("s", "progress", BODY)
        with pytest.raises(StoreUnavailableError):
            await store.health()
        server.call(*well)
        await until_it_answers(store)
        await store.append("s", "progress", BODY)
        await store.aclose()
