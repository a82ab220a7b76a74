"""The store in memory."""

import gc
import threading
import time
import tracemalloc

import anyio
import pytest

from callbackkit.errors import LimitError
from callbackkit.stores.base import NewSession, Retention
from callbackkit.stores.memory import MemoryStore
from callbackkit.stores.memory_session import Session
from callbackkit.testing import ManualClock
from callbackkit.testing.stores import check_store

BODY = b'{"conversation_id":null,"data":{},"metadata":{}}'


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_it_is_a_store(backend: str) -> None:
    check_store(lambda clock: MemoryStore(clock=clock), backend=backend)


def new(session_id: str, **options) -> NewSession:
    return NewSession(id=session_id, token_hash=b"", **options)


async def test_without_a_clock_times_are_those_of_the_machine() -> None:
    store = MemoryStore()
    before = time.time()
    session = await store.create_session(new("a"))
    appended = await store.append("a", "progress", BODY)
    after = time.time()
    assert before <= session.created_at <= after
    assert int(before * 1e6) <= appended.record.at <= int(after * 1e6)


async def test_closing_it_wakes_who_waits() -> None:
    store = MemoryStore()
    with store.watch("a") as one, store.watch(None) as other:
        await store.aclose()
        assert await one.wait(0)
        assert await other.wait(0)


async def test_it_shows_how_many_sessions_it_has() -> None:
    store = MemoryStore()
    await store.create_session(new("a"))
    assert repr(store) == "<MemoryStore, 1 sessions>"


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_keys_of_one_session_are_limited() -> None:
    store = MemoryStore()
    await store.create_session(new("a", retention=Retention(max_events=1)))
    for n in range(100_000):
        await store.append("a", "progress", BODY, key=str(n))
    with pytest.raises(LimitError, match="the limit keys=100000 is reached"):
        await store.append("a", "progress", BODY, key="one more")
    assert not (await store.append("a", "progress", BODY, key="0")).is_new


def test_threads_with_event_loops_of_their_own_share_it() -> None:
    """Appends of several threads get numbers of their own, and wake readers in any of them."""
    store = MemoryStore()
    anyio.run(store.create_session, new("a"))
    seen: list[list[int]] = []

    async def write() -> None:
        for _ in range(200):
            await store.append("a", "progress", BODY)

    async def read() -> None:
        numbers: list[int] = []
        with store.watch("a") as watch:
            while len(numbers) < 800:
                page = await store.read("a", limit=1000)
                numbers = [record.seq for record in page.records]
                if len(numbers) < 800:
                    assert await watch.wait(5)
        seen.append(numbers)

    def run(main, backend: str) -> threading.Thread:
        thread = threading.Thread(target=lambda: anyio.run(main, backend=backend))
        thread.start()
        return thread

    threads = [run(main, each) for main in (read, write, write) for each in ("asyncio", "trio")]
    for thread in threads:
        thread.join()
    assert seen == [list(range(1, 801))] * 2


def sessions_alive() -> set[int]:
    """Identities of the sessions in memory, those of other tests among them."""
    gc.collect()
    return {id(each) for each in gc.get_objects() if type(each) is Session}


async def test_sessions_that_are_gone_leave_nothing() -> None:
    before = sessions_alive()
    clock = ManualClock(1e9)
    store = MemoryStore(clock=clock)
    for n in range(2_000):
        await store.create_session(new(str(n), ttl=10, pushes=n % 2 == 0, method="push"))
        await store.append(str(n), "progress", BODY, key="k", owed=n % 3 == 0)
        clock.advance(0.001)
    clock.advance(86_500)
    while claims := (await store.claim(methods=["push"], limit=100, lease=60)).claims:
        for claim in claims:
            await store.ack(claim, 1, None)
    clock.advance(60)
    count = 0
    while (swept := await store.sweep(limit=100)).sessions or swept.has_more:
        count += len(swept.sessions)
        clock.advance(1)
    assert count == 2_000
    assert sessions_alive() <= before
    totals = await store.totals()
    assert (totals.sessions, totals.queued) == (0, 0)
    assert totals.sent == totals.delivered + totals.expired


@pytest.mark.parametrize("way", ["ended", "deleted"])
async def test_sessions_that_are_over_before_their_time_to_live_leave_nothing(way: str) -> None:
    """A stranger may ask for a long one, again and again."""
    before = sessions_alive()
    clock = ManualClock(1e9)
    store = MemoryStore(clock=clock)
    for n in range(500):
        await store.create_session(new(str(n), ttl=1e6))
        await store.append(str(n), "progress", BODY)
        if way == "ended":
            await store.end_session(str(n), linger=5)
        else:
            await store.delete_session(str(n), linger=5)
    clock.advance(6)
    while (await store.sweep(limit=100)).has_more:
        pass
    assert sessions_alive() <= before
    assert len(store._checks._heap) < 100


async def test_a_key_keeps_no_body_in_memory() -> None:
    store = MemoryStore(clock=ManualClock(1e9))
    await store.create_session(new("s", retention=Retention(max_events=1)))
    gc.collect()
    tracemalloc.start()
    for n in range(100):
        await store.append("s", "progress", b"x" * 100_000, key=str(n))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 500_000
    again = await store.append("s", "progress", b"x" * 100_000, key="7")
    assert (again.record.seq, again.record.body) == (8, b"x" * 100_000)
