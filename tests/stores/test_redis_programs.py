"""The laws, and what is told of a server that was lost, on the Redis of the system as well."""

import gc
from collections.abc import Callable, Iterator

import anyio
import pytest

from callbackkit.errors import StoreUnavailableError, UnknownSessionError
from callbackkit.events import Position
from callbackkit.stores.base import NewSession
from callbackkit.stores.redis import RedisStore
from callbackkit.testing import check_store
from tests.stores.redis_server import Server, found_programs, fresh_prefix, marks

pytestmark = marks

# One of nothing where there are none: so that it shows.
PROGRAMS: list[str | None] = [*found_programs()] or [None]


@pytest.fixture(scope="module", autouse=True)
def garbage() -> Iterator[None]:
    """What coredis leaves open is collected while its warning is passed over, see `marks`."""
    yield
    gc.collect()


@pytest.fixture(scope="module", params=PROGRAMS)
def program(request: pytest.FixtureRequest) -> str:
    if request.param is None:
        pytest.skip("there is neither a redis-server nor a valkey-server on PATH")
    path: str = request.param
    return path


def test_it_is_a_store(program: str) -> None:
    with Server(program) as server:

        def make(clock: Callable[[], float]) -> RedisStore:
            return RedisStore.from_url(server.url, prefix=fresh_prefix(), partitions=2, clock=clock)

        check_store(make, backend="trio", examples=2)


@pytest.mark.torture
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_it_is_a_store_by_its_clock(program: str, backend: str) -> None:
    with Server(program) as server:

        def make(_clock: Callable[[], float]) -> RedisStore:
            return RedisStore.from_url(server.url, prefix=fresh_prefix())

        check_store(make, backend=backend, manual_time=False)


@pytest.mark.parametrize("anyio_backend", ["trio"])
@pytest.mark.parametrize("keeps", [True, False], ids=["all data", "a snapshot"])
async def test_after_a_restart_no_position_means_another_event(program: str, keeps: bool) -> None:
    with Server(program, appendonly="yes" if keeps else "no", appendfsync="always") as server:
        store = RedisStore.from_url(server.url, prefix=fresh_prefix())
        await store.create_session(NewSession(id="s", token_hash=b"hash"))
        await store.append("s", "step", b"first")
        server.call("SAVE")
        before = await store.append("s", "step", b"second")
        server.restart()
        await until_it_answers(store)
        after = await store.append("s", "step", b"third")
        assert after.epoch != before.epoch
        assert after.record.seq == (3 if keeps else 2)
        page = await store.read("s", after=Position(before.epoch, 2))
        bodies = [b"first", b"second", b"third"] if keeps else [b"first", b"third"]
        assert [record.body for record in page.records] == bodies
        server.call("FLUSHALL")
        with pytest.raises(UnknownSessionError):
            await store.append("s", "step", b"fourth")
        await store.aclose()


async def until_it_answers(store: RedisStore) -> None:
    with anyio.fail_after(10):
        while True:
            try:
                return await store.health()
            except StoreUnavailableError:
                await anyio.sleep(0.01)
