"""What of positions, leases and connections holds when another server takes over."""

import gc
from collections.abc import Iterator

import pytest

from callbackkit.errors import LeaseLostError, StoreUnavailableError
from callbackkit.events import Position
from callbackkit.stores.base import Claim
from callbackkit.stores.redis import RedisStore
from callbackkit.testing import ManualClock
from tests.stores.redis_given import BODY, claim_one, counted, new, pushing
from tests.stores.redis_rig import until
from tests.stores.redis_server import Server, fresh_prefix, marks

pytestmark = marks


@pytest.fixture(scope="module", autouse=True)
def garbage() -> Iterator[None]:
    """What coredis leaves open is collected while its warning is passed over, see `marks`."""
    yield
    gc.collect()


@pytest.fixture
def prefix() -> str:
    return fresh_prefix()


def primary() -> Server:
    return Server(repl_diskless_sync_delay=0)


async def follow(replica: Server, primary: Server) -> None:
    """Have a server be the replica of another, with all that this one has."""
    replica.call("REPLICAOF", "127.0.0.1", primary.port)
    await until(lambda: b"master_link_status:up" in replica.call("INFO", "replication"))
    newest = counted(primary, "replication", "master_repl_offset")
    await until(lambda: counted(replica, "replication", "slave_repl_offset") >= newest)


def promote(replica: Server) -> None:
    replica.call("REPLICAOF", "NO", "ONE")


async def test_what_a_server_took_over_and_gave_back_means_no_position_twice(
    prefix: str,
) -> None:
    with primary() as first, primary() as second:
        store = RedisStore.from_url(first.url, prefix=prefix, partitions=1)
        await store.create_session(new())
        await store.append("s", "progress", b"kept")
        await follow(second, first)
        promote(second)
        lost = [await store.append("s", "progress", b"lost") for _ in range(3)]
        # The second one leads, nobody asks it for anything, and the first one leads again.
        await follow(first, second)
        promote(first)
        other = [await store.append("s", "progress", b"other") for _ in range(3)]
        assert [each.record.seq for each in lost] == [each.record.seq for each in other]
        assert not {each.epoch for each in lost} & {each.epoch for each in other}
        page = await store.read("s", after=Position(lost[-1].epoch, lost[-1].record.seq))
        assert [each.body for each in page.records] == [b"kept", *[b"other"] * 3]
        await store.aclose()


async def claim_again_and_again(store: RedisStore, clock: ManualClock, times: int) -> Claim:
    """Claim what is due, let each lease but the last lapse."""
    claim = await claim_one(store, lease=10)
    for _ in range(times - 1):
        clock.advance(11)
        claim = await claim_one(store, lease=10)
    return claim


async def test_a_lease_of_before_settles_nothing_that_another_one_holds_now(prefix: str) -> None:
    clock = ManualClock(1_000.0)
    with primary() as first, primary() as second:
        store = RedisStore.from_url(first.url, prefix=prefix, partitions=1, clock=clock)
        await store.create_session(pushing())
        await store.append("s", "progress", BODY)
        await follow(second, first)
        promote(second)
        # Of these leases the second one does not know.
        before = await claim_again_and_again(store, clock, 3)
        await store.aclose()
        store = RedisStore.from_url(second.url, prefix=prefix, partitions=1, clock=clock)
        for times in (1, 1, 1):
            now = await claim_again_and_again(store, clock, times)
            assert now.fence != before.fence
            with pytest.raises(LeaseLostError):
                await store.ack(before, 1, None)
            clock.advance(11)
        await store.ack(await claim_one(store), 1, None)
        assert (await store.get_session("s")).delivered == 1
        await store.aclose()


async def test_a_lease_on_a_letter_of_before_settles_nothing_either(prefix: str) -> None:
    clock = ManualClock(1_000.0)
    with primary() as first, primary() as second:
        store = RedisStore.from_url(first.url, prefix=prefix, partitions=1, clock=clock)
        await store.create_session(pushing())
        await store.append("s", "progress", BODY)
        await store.park(await claim_one(store), upto=1, letter_id="l", reason="", attempt=None)
        assert await store.redrive("s") == 1
        known = await claim_one(store, lease=10)
        await follow(second, first)
        promote(second)
        # Of these leases the second one does not know.
        clock.advance(11)
        before = await claim_again_and_again(store, clock, 2)
        await store.aclose()
        store = RedisStore.from_url(second.url, prefix=prefix, partitions=1, clock=clock)
        with pytest.raises(LeaseLostError):
            await store.ack(known, 1, None)
        clock.advance(11)
        for _ in range(4):
            now = await claim_one(store, lease=10)
            assert now.letter is not None
            assert now.fence not in {known.fence, before.fence}
            with pytest.raises(LeaseLostError):
                await store.ack(before, 1, None)
            clock.advance(11)
        await store.ack(await claim_one(store), 1, None)
        assert await store.dead_letters("s") == []
        await store.aclose()


async def test_one_that_became_a_replica_is_left_for_whom_its_name_leads_to_now(
    prefix: str,
) -> None:
    with Server() as first, Server() as second:
        leading = [second]
        store = RedisStore(lambda: leading[0].client(), prefix=prefix, partitions=1)
        await store.create_session(new())
        await store.aclose()
        leading[0] = first
        store = RedisStore(lambda: leading[0].client(), prefix=prefix, partitions=1)
        await store.create_session(new())
        # Of one that can't be reached, so that nothing but this changes.
        first.call("REPLICAOF", "127.0.0.1", 1)
        leading[0] = second
        with pytest.raises(StoreUnavailableError, match=r"READONLY|read only"):
            await store.append("s", "progress", BODY)
        assert (await store.append("s", "progress", BODY)).record.seq == 1
        await store.aclose()
