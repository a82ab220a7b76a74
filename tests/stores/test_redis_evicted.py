"""What becomes of sessions when Redis lost a key, and somebody wrote before anybody looked."""

import gc
from collections.abc import AsyncIterator, Iterator

import pytest

from callbackkit.errors import UnknownSessionError
from callbackkit.stores.redis import RedisStore
from callbackkit.testing import ManualClock
from tests.stores.redis_given import ATTEMPT, BODY, claim_one, key, new, pushing
from tests.stores.redis_server import call, fresh_prefix, marks, shared_server

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


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1_000.0)


@pytest.fixture
async def store(url: str, prefix: str, clock: ManualClock) -> AsyncIterator[RedisStore]:
    store = RedisStore.from_url(url, prefix=prefix, partitions=1, clock=clock)
    yield store
    await store.aclose()


@pytest.mark.parametrize("lost", ["due:webhook", "ids", "chk"])
async def test_a_set_that_was_lost_and_written_again_is_made_whole(
    url: str, prefix: str, clock: ManualClock, store: RedisStore, lost: str
) -> None:
    for name in ("a", "b"):
        await store.create_session(pushing(name))
    await store.create_session(new("idle", ttl=10.0))
    await store.append("a", "progress", BODY)
    await store.retry(await claim_one(store), delay=60.0, attempt=None)
    assert call(url, "DEL", key(prefix, lost)) == 1
    # All that writes to one of them, by others than those who are in it.
    await store.create_session(pushing("c"))
    for n in range(3):
        await store.append("b", "progress", BODY, key=f"k{n}")
    (claim,) = (await store.claim(methods=["webhook"], limit=1, lease=5)).claims
    await store.retry(claim, delay=60.0, attempt=None)
    assert [each.id for each in await store.sessions()] == ["a", "b", "c", "idle"]
    clock.advance(3_600)
    while (await store.sweep()).has_more:
        pass
    claims = (await store.claim(methods=["webhook"], limit=10, lease=5)).claims
    assert sorted(each.session_id for each in claims) == ["a", "b"]
    with pytest.raises(UnknownSessionError):
        await store.get_session("idle")
    assert [each.id for each in await store.sessions()] == ["a", "b", "c"]


@pytest.mark.parametrize("lost", [("ids", "due:webhook"), ("ids", "meta")])
async def test_of_two_sets_that_were_lost_at_once_nothing_is_missed(
    url: str, prefix: str, store: RedisStore, lost: tuple[str, str]
) -> None:
    for name in ("a", "b"):
        await store.create_session(pushing(name))
        await store.append(name, "progress", BODY)
    assert call(url, "DEL", *(key(prefix, each) for each in lost)) == 2
    await store.create_session(pushing("c"))
    claims = (await store.claim(methods=["webhook"], limit=10, lease=5)).claims
    assert sorted(each.session_id for each in claims) == ["a", "b"]
    assert [each.id for each in await store.sessions()] == ["a", "b", "c"]
    totals = await store.totals()
    assert (totals.sessions, totals.queued) == (3, 2)


async def test_a_session_that_is_created_anew_has_nothing_of_one_that_was_lost(
    url: str, prefix: str, store: RedisStore
) -> None:
    await store.create_session(pushing())
    for n in range(2):
        await store.append("s", "progress", b"old", key=f"k{n}")
    await store.park(await claim_one(store), upto=1, letter_id="l", reason="", attempt=ATTEMPT)
    # Not alone: who asks for it is told that there is none, and nobody cleans up.
    call(url, "DEL", key(prefix, "s:s"), key(prefix, "ids"))
    await store.create_session(pushing())
    appended = await store.append("s", "progress", b"new", key="k0")
    assert (appended.is_new, appended.record.seq) == (True, 1)
    assert [each.body for each in (await store.read("s")).records] == [b"new"]
    assert await store.dead_letters("s") == []
    assert await store.attempts("s") == []
