"""What of a server, a user or a number a RedisStore can't work with, and what it says then."""

import contextlib
import gc
import socket
from collections.abc import Iterator

import pytest

from callbackkit.errors import StoreError, StoreUnavailableError
from callbackkit.stores.redis import RedisStore
from callbackkit.stores.redis_client import client_of
from tests.stores.redis_given import ATTEMPT, BODY, claim_one, key, new, pushing
from tests.stores.redis_server import Server, call, fresh_prefix, marks, shared_server

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


# Partitions.


async def test_another_number_of_partitions_is_refused_and_both_are_told(
    url: str, prefix: str
) -> None:
    store = RedisStore.from_url(url, prefix=prefix, partitions=8)
    await store.start()
    await store.create_session(pushing())
    await store.append("s", "progress", BODY)
    for partitions in (1, 6, 9):
        other = RedisStore.from_url(url, prefix=prefix, partitions=partitions)
        for verb in (
            other.start,
            other.health,
            other.sessions,
        ):
            with pytest.raises(StoreError, match=rf"\b8\b.*\b{partitions}\b") as caught:
                await verb()
            assert not isinstance(caught.value, StoreUnavailableError)
        # Of more partitions than there were, the last one has nothing.
        with contextlib.suppress(StoreError):
            assert not (await other.claim(methods=["webhook"], limit=1, lease=60)).claims
        await other.aclose()
    assert [each.id for each in await store.sessions()] == ["s"]
    assert (await claim_one(store)).session_id == "s"
    await store.aclose()


async def test_the_most_partitions_begin_within_the_timeout(url: str, prefix: str) -> None:
    store = RedisStore.from_url(url, prefix=prefix, partitions=1_024)
    await store.start()
    await store.aclose()


def test_more_partitions_than_begin_in_time_are_refused() -> None:
    with pytest.raises(ValueError, match="partitions must be from 1 to 1024, not 1025"):
        RedisStore.from_url("redis://localhost", partitions=1_025)


# Names.


def test_a_prefix_that_can_not_be_written_is_refused() -> None:
    with pytest.raises(ValueError, match="prefix"):
        RedisStore.from_url("redis://localhost", prefix="a\ud800")
    with pytest.raises(ValueError, match="prefix"):
        RedisStore(lambda: None, prefix="\udfff")


@pytest.mark.parametrize("path", ["abc", "0x1", "-1", "1/2", "0/abc", "²"])
def test_a_database_that_is_no_number_is_refused(path: str) -> None:
    for scheme in ("redis", "rediss"):
        with pytest.raises(ValueError, match="url is not one of Redis"):
            RedisStore.from_url(f"{scheme}://:secret@localhost/{path}")


@pytest.mark.parametrize(
    ("rest", "is_checked"),
    [
        ("", True),
        ("/0#part", True),
        ("?ssl_check_hostname=", True),
        ("?ssl_cert_reqs=required", True),
        ("?ssl_check_hostname=false", False),
        ("?ssl_cert_reqs=none", False),
    ],
)
def test_by_tls_the_certificate_has_to_be_of_the_host(rest: str, is_checked: bool) -> None:
    """Unless it is said otherwise; that of a password is nothing that is said."""
    client = client_of(f"rediss://u:ssl_check_hostname=@h{rest}", timeout=1)()
    context = client.connection_pool.connection_kwargs["ssl_context"]
    assert context.check_hostname is is_checked


@pytest.mark.parametrize(
    "place", ["redis://h", "redis://h/", "redis://h:1/15", "redis://h?db=3", "unix:///run/r.sock"]
)
def test_a_database_that_is_a_number_or_left_out_is_taken(place: str) -> None:
    RedisStore.from_url(place)


# Who it is reached as.


async def create_and_append(store: RedisStore, name: str) -> None:
    await store.create_session(new(name))
    assert (await store.append(name, "progress", BODY)).record.seq == 1


@pytest.mark.parametrize("denied", ["info", "xadd", "hset", "evalsha"])
async def test_what_its_user_may_not_do_is_told_until_he_may(prefix: str, denied: str) -> None:
    with Server() as server:
        server.call("ACL", "SETUSER", "u", "on", ">pw", "~*", "&*", "+@all", f"-{denied}")
        store = RedisStore.from_url(f"redis://u:pw@127.0.0.1:{server.port}", prefix=prefix)
        with pytest.raises(StoreUnavailableError, match=rf"permissions.*{denied}"):
            await create_and_append(store, "s")
        server.call("ACL", "SETUSER", "u", "+@all")
        await create_and_append(store, "t")
        await store.aclose()


async def test_a_server_with_too_many_clients_says_so(prefix: str) -> None:
    with Server() as server:
        server.call("CONFIG", "SET", "maxclients", 1)
        store = RedisStore.from_url(server.url, prefix=prefix)
        with socket.create_connection(("127.0.0.1", server.port)) as taken:
            taken.sendall(b"PING\r\n")
            assert taken.recv(100) == b"+PONG\r\n"
            for _ in range(2):
                with pytest.raises(StoreUnavailableError, match="max number of clients reached"):
                    await store.start()
        await store.aclose()


# Odd numbers, odd contents.


async def test_none_at_all_may_be_read(url: str, prefix: str) -> None:
    store = RedisStore.from_url(url, prefix=prefix, partitions=1)
    await store.create_session(pushing())
    epoch = (await store.append("s", "progress", BODY)).epoch
    for owed in (False, True):
        page = await store.read("s", limit=0, owed=owed)
        assert (page.epoch, page.first, page.top, page.records) == (epoch, 1, 1, [])
    assert (await store.tail("s", limit=0)).records == []
    await store.park(await claim_one(store), upto=1, letter_id="l", reason="", attempt=None)
    assert await store.dead_letters("s", limit=0) == []
    assert [each.id for each in await store.dead_letters("s", limit=1)] == ["l"]
    await store.aclose()


@pytest.mark.parametrize("odd", [b'{"number": 1, "colour": "red"}', b"[]", b"no JSON", b"\xff"])
async def test_an_attempt_that_this_store_did_not_write_is_told(
    url: str, prefix: str, odd: bytes
) -> None:
    store = RedisStore.from_url(url, prefix=prefix, partitions=1)
    await store.create_session(pushing())
    await store.append("s", "progress", BODY)
    await store.ack(await claim_one(store), 1, ATTEMPT)
    assert await store.attempts("s") == [ATTEMPT]
    call(url, "RPUSH", key(prefix, "a:s"), odd)
    with pytest.raises(StoreError, match="did not write"):
        await store.attempts("s")
    await store.aclose()
