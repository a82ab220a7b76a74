"""What becomes known where no message arrives, by looking at what changed; and at the end."""

import gc
from collections.abc import AsyncIterator, Iterator

import pytest

from callbackkit.stores.base import Watch
from callbackkit.stores.redis import RedisStore
from callbackkit.stores.redis_client import client_of
from callbackkit.stores.redis_link import Link, Verb
from tests.stores.redis_given import BODY, claim_one, key, new, pushing
from tests.stores.redis_rig import until
from tests.stores.redis_server import Server, call, fresh_prefix, marks

pytestmark = marks


@pytest.fixture(scope="module", autouse=True)
def garbage() -> Iterator[None]:
    """What coredis leaves open is collected while its warning is passed over, see `marks`."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as server:
        server.call("ACL", "SETUSER", "deaf", "on", ">pw", "~*", "+@all", "resetchannels")
        yield server


@pytest.fixture
def prefix() -> str:
    return fresh_prefix()


@pytest.fixture
async def store(server: Server, prefix: str) -> AsyncIterator[RedisStore]:
    """A store that changes what another one waits for."""
    store = RedisStore.from_url(server.url, prefix=prefix, partitions=1)
    await store.create_session(pushing())
    yield store
    await store.aclose()


@pytest.fixture
async def deaf(server: Server, prefix: str) -> AsyncIterator[Link]:
    """What may listen to no channel, and looks often."""
    link = Link(
        client_of(f"redis://deaf:pw@127.0.0.1:{server.port}", timeout=5.0),
        prefix=prefix,
        partitions=1,
        timeout=5.0,
        reconcile=0.02,
        clock=None,
    )
    await link.do([Verb(0, "count", ())])
    yield link
    await link.aclose()


async def settle(watch: Watch) -> None:
    """Have all that was known."""
    while await watch.wait(0.2):
        pass


async def test_an_append_is_found(store: RedisStore, deaf: Link) -> None:
    with deaf.wakes.watch(None) as due, deaf.wakes.watch("s") as session:
        await settle(due)
        await settle(session)
        await store.append("s", "progress", BODY)
        assert await session.wait(5)
        assert await due.wait(5)


async def test_a_retry_is_found(store: RedisStore, deaf: Link) -> None:
    await store.append("s", "progress", BODY)
    claim = await claim_one(store)
    with deaf.wakes.watch(None) as due:
        await settle(due)
        await store.retry(claim, delay=0, attempt=None)
        assert await due.wait(5)


async def test_a_redrive_is_found(store: RedisStore, deaf: Link) -> None:
    await store.append("s", "progress", BODY)
    await store.park(await claim_one(store), upto=1, letter_id="l", reason="", attempt=None)
    with deaf.wakes.watch(None) as due, deaf.wakes.watch("other") as other:
        await settle(due)
        await settle(other)
        assert await store.redrive("s") == 1
        assert await due.wait(5)
        assert not await other.wait(0.1)


@pytest.mark.parametrize("verb", ["ack", "park"])
async def test_a_delivery_that_is_let_go_with_more_to_come_is_found(
    store: RedisStore, deaf: Link, verb: str
) -> None:
    for _ in range(2):
        await store.append("s", "progress", BODY)
    claim = await claim_one(store)
    with deaf.wakes.watch(None) as due:
        await settle(due)
        if verb == "ack":
            await store.ack(claim, 1, None)
        else:
            await store.park(claim, upto=1, letter_id="l", reason="", attempt=None)
        assert await due.wait(5)


# What so many others did at once as is not told one by one.
CHANGE_MANY = """
local newest = tonumber(redis.call('HGET', KEYS[1], 'ch'))
for n = 1, 10100 do redis.call('ZADD', KEYS[2], newest + n, 't' .. n) end
redis.call('HSET', KEYS[1], 'ch', string.format('%.0f', newest + 10100))
"""


async def test_of_more_changes_than_are_told_at_once_none_is_overlooked(
    store: RedisStore, deaf: Link, server: Server, prefix: str
) -> None:
    with deaf.wakes.watch("t10100") as last:
        await settle(last)
        server.call("EVAL", CHANGE_MANY, 2, key(prefix, "meta"), key(prefix, "ch"))
        assert await last.wait(5)


# The end.


async def test_who_waits_is_woken_when_the_store_is_closed(
    server: Server, store: RedisStore
) -> None:
    with store.watch("s") as session, store.watch(None) as due:
        for watch in (session, due):
            assert await watch.wait(10)  # once it is listened to
            await settle(watch)
        await store.aclose()
        assert await session.wait(5)
        assert await due.wait(5)


async def test_a_store_that_is_closed_has_no_connection_any_more(prefix: str) -> None:
    with Server() as server:
        store = RedisStore.from_url(server.url, prefix=prefix)
        await store.create_session(new())
        with store.watch("s") as watch:
            assert await watch.wait(10)
            assert len(clients(server)) > 1
        await store.aclose()
        await until(lambda: len(clients(server)) == 1)


def clients(server: Server) -> list[bytes]:
    """Return who is connected, oneself too."""
    lines: bytes = call(server.url, "CLIENT", "LIST")
    return lines.splitlines()
