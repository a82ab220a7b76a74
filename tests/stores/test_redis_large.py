"""That much of something is answered, dropped and shared out in pieces, and all of it is."""

import gc
from collections.abc import AsyncIterator, Iterator

import anyio
import pytest

from callbackkit.stores.base import Retention
from callbackkit.stores.redis import RedisStore
from callbackkit.testing import ManualClock
from tests.stores.redis_given import ATTEMPT, BODY, key, names_in, new, pushing
from tests.stores.redis_server import Server, call, fresh_prefix, marks, shared_server

pytestmark = marks

FOREVER = Retention(max_events=None, max_bytes=None, max_age=None)


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


@pytest.fixture
async def strict(prefix: str) -> AsyncIterator[RedisStore]:
    """A store on a server that hangs up on whom it owes 4 MiB of answers."""
    with Server(client_output_buffer_limit="normal 4mb 0 0") as server:
        store = RedisStore.from_url(server.url, prefix=prefix, partitions=1)
        yield store
        await store.aclose()


async def fill(store: RedisStore, names: list[str], events: int) -> None:
    """Create sessions with events of 64 KiB."""
    for name in names:
        await store.create_session(new(name, retention=FOREVER))
        async with anyio.create_task_group() as tasks:
            for _ in range(events):
                tasks.start_soon(store.append, name, "progress", b"x" * 65_536)


async def test_many_who_read_much_at_the_same_moment_get_it_in_pieces(strict: RedisStore) -> None:
    names = [f"s{n}" for n in range(12)]
    await fill(strict, names, 20)
    found: dict[str, list[int]] = {}

    async def read(name: str) -> None:
        page = await strict.read(name, limit=20)
        assert {len(each.body) for each in page.records} == {65_536}
        found[name] = [each.seq for each in page.records]

    async def tail(name: str) -> None:
        page = await strict.tail(name, limit=20)
        assert [each.seq for each in page.records] == list(range(1, 21))

    async with anyio.create_task_group() as tasks:
        for name in names:
            tasks.start_soon(read, name)
            tasks.start_soon(tail, name)
    # 30 MiB.
    assert found == {name: list(range(1, 21)) for name in names}


async def test_what_is_written_between_large_reads_is_done_and_answered_to_whom_it_belongs(
    strict: RedisStore,
) -> None:
    names = [f"s{n}" for n in range(6)]
    await fill(strict, names, 20)
    appended: dict[str, int] = {}

    async def append(name: str) -> None:
        appended[name] = (await strict.append(name, "progress", name.encode())).record.seq

    async def read(name: str) -> None:
        page = await strict.read(name, limit=100)
        assert page.top in {20, 21}
        assert len(page.records) == page.top
        assert page.records[-1].body in {b"x" * 65_536, name.encode()}

    async with anyio.create_task_group() as tasks:
        for name in names:
            tasks.start_soon(read, name)
            tasks.start_soon(append, name)
            tasks.start_soon(read, name)
    assert appended == dict.fromkeys(names, 21)
    for name in names:
        assert (await strict.tail(name, limit=1)).records[0].body == name.encode()


async def test_a_trim_of_many_drops_them_all_in_redis_too(prefix: str) -> None:
    # By itself Redis would drop at most a hundred nodes at a time.
    with Server(stream_node_max_entries=10) as server:
        store = RedisStore.from_url(server.url, prefix=prefix, partitions=1)
        await store.create_session(new(retention=FOREVER))
        async with anyio.create_task_group() as tasks:
            for _ in range(2_500):
                tasks.start_soon(store.append, "s", "progress", BODY)
        for before, kept in ((2_001, 500), (2_491, 10)):
            await store.trim("s", before=before)
            # Whole nodes are dropped.
            assert kept <= server.call("XLEN", key(prefix, "l:s")) < kept + 10
        page = await store.read("s", limit=100)
        assert [each.seq for each in page.records] == list(range(2_491, 2_501))
        await store.aclose()


async def test_what_retention_drops_is_dropped_in_redis_too(url: str, prefix: str) -> None:
    store = RedisStore.from_url(url, prefix=prefix, partitions=1)
    kept = Retention(max_events=10, max_bytes=None, max_age=None)
    await store.create_session(new(retention=kept))
    async with anyio.create_task_group() as tasks:
        for _ in range(1_000):
            tasks.start_soon(store.append, "s", "progress", BODY)
    # About: a node has a hundred.
    assert call(url, "XLEN", key(prefix, "l:s")) <= 10 + 100
    await store.aclose()


async def test_a_session_that_is_deleted_leaves_no_events_keys_and_attempts_at_once(
    url: str, prefix: str
) -> None:
    store = RedisStore.from_url(url, prefix=prefix, partitions=1)
    await store.create_session(pushing())
    await store.append("s", "progress", BODY, key="k")
    (claim,) = (await store.claim(methods=["webhook"], limit=1, lease=10)).claims
    await store.ack(claim, 1, ATTEMPT)
    kinds = [key(prefix, f"{kind}:s") for kind in "lkxa"]
    assert call(url, "EXISTS", *kinds) == 4
    await store.delete_session("s", linger=1_000)
    assert call(url, "EXISTS", *kinds) == 0
    await store.aclose()


# Between partitions.


async def test_one_sweep_does_as_many_as_it_may_wherever_they_are(url: str, prefix: str) -> None:
    clock = ManualClock(1_000.0)
    store = RedisStore.from_url(url, prefix=prefix, partitions=2, clock=clock)
    names = await names_in(store, url, prefix, 1, 10)
    for name in names:
        await store.end_session(name, linger=10)
    clock.advance(11)
    swept = await store.sweep(limit=10)
    assert sorted(swept.sessions) == sorted(names)
    await store.aclose()


async def test_where_few_are_claimed_at_a_time_every_partition_has_its_turn(
    url: str, prefix: str
) -> None:
    store = RedisStore.from_url(url, prefix=prefix, partitions=4)
    for n in range(40):
        await store.create_session(pushing(f"s{n}"))
        await store.append(f"s{n}", "progress", BODY)
    served: set[int] = set()
    for _ in range(8):
        (claim,) = (await store.claim(methods=["webhook"], limit=1, lease=60)).claims
        where = [
            each
            for each in range(4)
            if call(url, "EXISTS", key(prefix, f"s:{claim.session_id}", each))
        ]
        served |= set(where)
        await store.retry(claim, delay=0, attempt=None)
    assert served == {0, 1, 2, 3}
    await store.aclose()
