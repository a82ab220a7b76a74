"""An endpoint: places, rate, and a breaker that several processes share."""

import asyncio
import math

import anyio
import pytest

from callbackkit.delivery.endpoint import Endpoint, Endpoints
from callbackkit.delivery.policy import Circuit, CircuitBreaker, RateLimit
from callbackkit.errors import StoreUnavailableError
from callbackkit.stores.memory import MemoryStore

BREAKER = CircuitBreaker(failures=2, open_for=30, disable_after=2)


def endpoint(store: MemoryStore, breaker: CircuitBreaker | None = BREAKER) -> Endpoint:
    return Endpoint("acme", store, breaker, 2)


async def fail(place: Endpoint, now: float, times: int = 1, probe: str = ""):
    changes = [await place.failed(now, chance=0.5, probe=probe, reason="no") for _ in range(times)]
    return changes[-1]


async def succeed(place: Endpoint, now: float, probe: str = "", *, redriven: bool = False):
    return await place.succeeded(now, probe=probe, redriven=redriven)


# Places.


async def test_so_many_are_let_in_and_the_others_wait_in_line() -> None:
    place = endpoint(MemoryStore())
    assert await place.enter(may_refuse=True)
    assert await place.enter(may_refuse=True)
    entered: list[int] = []

    async def enter(n: int) -> None:
        if await place.enter(may_refuse=True):
            entered.append(n)

    async with anyio.create_task_group() as group:
        for n in range(4):
            group.start_soon(enter, n)
            await anyio.wait_all_tasks_blocked()
        assert place.has_line
        # The line is full.
        assert not await place.enter(may_refuse=True)
        assert entered == []
        for _ in range(4):
            place.leave(1.0, None)
            await anyio.wait_all_tasks_blocked()
    assert entered == [0, 1, 2, 3]
    assert not place.has_line


async def test_whoever_is_cancelled_in_line_takes_no_place() -> None:
    place = endpoint(MemoryStore())
    await place.enter(may_refuse=True)
    await place.enter(may_refuse=True)

    async def visit() -> None:
        if await place.enter(may_refuse=True):
            place.leave(0.0, None)

    for is_let_in in (False, True):
        async with anyio.create_task_group() as group:
            group.start_soon(visit)
            await anyio.wait_all_tasks_blocked()
            if is_let_in:  # and cancelled at the same moment
                place.leave(0.0, None)
            group.cancel_scope.cancel()
        assert not place.has_line
    place.leave(0.0, None)
    with anyio.fail_after(1):
        assert await place.enter(may_refuse=False)
        assert await place.enter(may_refuse=False)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_who_is_let_in_and_cancelled_by_asyncio_itself_passes_the_place_on(
    anyio_backend,
) -> None:
    place = endpoint(MemoryStore())
    await place.enter(may_refuse=True)
    await place.enter(may_refuse=True)
    task = asyncio.ensure_future(place.enter(may_refuse=True))
    await anyio.wait_all_tasks_blocked()
    place.leave(0.0, None)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with anyio.fail_after(1):
        assert await place.enter(may_refuse=False)


def test_those_sent_away_come_back_one_after_the_other() -> None:
    place = endpoint(MemoryStore())
    place.leave(100.0, 4.0)
    delays = [place.come_back_in(100.0) for _ in range(5)]
    assert delays == sorted(delays)
    assert delays[0] == pytest.approx(0.05)
    assert delays[1] - delays[0] == pytest.approx(0.5)


def test_the_longer_it_hangs_the_less_it_is_asked_about() -> None:
    place = endpoint(MemoryStore())
    place.leave(100.0, 0.001)
    short = [place.come_back_in(100.0) for _ in range(1000)]
    assert max(short) <= 0.2
    long = [place.come_back_in(115.0) for _ in range(1000)]
    assert 20 <= max(long) <= 30.0


# Rate.


def test_those_over_the_rate_come_back_one_interval_apart() -> None:
    place, limit = endpoint(MemoryStore()), RateLimit(2)
    assert place.wait_for_rate(limit, 10.0) == 0
    place.take_rate(limit, 10.0)
    assert place.wait_for_rate(limit, 10.0) == 0.5
    assert [place.turn_in(limit, 0.5, 10.0) for _ in range(3)] == [0.5, 1.0, 1.5]


# The breaker.


async def test_processes_share_what_they_find_out() -> None:
    store = MemoryStore()
    one, two = endpoint(store), endpoint(store)
    assert await fail(one, 0.0) is None
    assert await fail(two, 0.0) == "failing"
    assert one.circuit.phase == "closed"
    await one.load(0.0)
    assert one.circuit.phase == "open"
    assert await fail(one, 0.0) is None


async def test_only_one_of_several_processes_tries_it_out() -> None:
    store = MemoryStore()
    one, two = endpoint(store), endpoint(store)
    await fail(one, 0.0, 2)
    await two.load(30.0)
    assert one.wait(30.0) == two.wait(30.0) == 0.0
    assert await one.try_out(30.0, probe="one", lease=20)
    assert not await two.try_out(30.0, probe="two", lease=20)
    assert two.wait(30.0) == 20.0
    assert await succeed(one, 31.0, "one") == "recovered"
    await two.load(31.0)
    assert two.circuit == Circuit()


async def test_a_probe_nobody_hears_of_again_is_followed_by_another() -> None:
    store = MemoryStore()
    one, two = endpoint(store), endpoint(store)
    await fail(one, 0.0, 2)
    await one.try_out(30.0, probe="one", lease=20)
    await two.load(50.0)
    assert await two.try_out(50.0, probe="two", lease=20)
    assert await succeed(one, 51.0, "one") is None
    assert await fail(two, 51.0, probe="two") is None
    assert two.circuit.phase == "open"


async def test_probes_that_keep_failing_disable_it_once() -> None:
    store = MemoryStore()
    one = endpoint(store)
    await fail(one, 0.0, 2)
    changes = []
    for n in range(2):
        await one.try_out(1000.0 * (n + 1), probe=str(n), lease=20)
        changes.append(await fail(one, 1000.0 * (n + 1), probe=str(n)))
    assert changes == [None, "disabled"]
    assert one.wait(1e9) == math.inf


async def test_disabling_is_told_once_and_a_redriven_letter_enables() -> None:
    store = MemoryStore()
    one, two = endpoint(store, None), endpoint(store, None)
    assert await one.disable(0.0, "Gone") == "disabled"
    assert await two.disable(0.0, "Gone again") is None
    assert two.circuit.reason == "Gone"
    assert await succeed(two, 1.0) is None
    assert await succeed(two, 1.0, redriven=True) == "recovered"


async def test_without_a_breaker_failures_change_nothing() -> None:
    store = MemoryStore()
    assert await fail(endpoint(store, None), 0.0, 100) is None
    assert await store.load_endpoint("acme") == (0, b"")


@pytest.mark.parametrize("breaker", [BREAKER, None], ids=["breaker", "none"])
async def test_processes_spare_it_together(breaker) -> None:
    store = MemoryStore()
    one, two = endpoint(store, breaker), endpoint(store, breaker)
    assert await one.throttle(0.0, 30.0) is None
    assert (one.wait(10.0), two.wait(10.0)) == (20.0, 0.0)
    # What this one does not know yet stands.
    await two.throttle(10.0, 5.0)
    assert two.wait(10.0) == 20.0
    assert one.circuit.is_spotless


async def test_a_disabled_one_is_not_spared_too() -> None:
    store = MemoryStore()
    one = endpoint(store)
    await one.disable(0.0, "Gone")
    before = await store.load_endpoint("acme")
    await one.throttle(0.0, 30.0)
    assert await store.load_endpoint("acme") == before


async def test_successes_cost_the_store_nothing_and_still_count() -> None:
    store = MemoryStore()
    breaker = CircuitBreaker(failures=100)
    one, two = endpoint(store, breaker), endpoint(store, breaker)
    for n in range(40):
        await succeed(one, n / 10)
        await succeed(two, n / 10)
    assert await store.load_endpoint("acme") == (0, b"")
    # Nine of a hundred fail: far from half, though both save the same state by turns.
    for _ in range(9):
        assert await fail(one, 4.0) is None
        assert await fail(two, 4.0) is None
        for _ in range(10):
            await succeed(one, 4.0)
            await succeed(two, 4.0)
    assert one.circuit.phase == two.circuit.phase == "closed"


async def test_old_successes_do_not_make_up_for_new_failures() -> None:
    place = endpoint(MemoryStore(), CircuitBreaker(failures=100))
    for _ in range(1000):
        await succeed(place, 0.0)
    await succeed(place, 100.0)
    assert await fail(place, 100.0, 8) is None
    assert await fail(place, 100.0) == "failing"


async def test_a_store_that_fails_costs_others_the_news_and_this_process_nothing() -> None:
    class Failing(MemoryStore):
        async def save_endpoint(self, endpoint, version, state):
            raise StoreUnavailableError("disk full")

    place = endpoint(Failing())
    assert await fail(place, 0.0, 2) == "failing"
    assert place.wait(0.0) == 30.0


async def test_a_state_that_others_keep_changing_is_given_up_on() -> None:
    class Contended(MemoryStore):
        async def save_endpoint(self, endpoint, version, state):
            return False

    assert await fail(endpoint(Contended()), 0.0) is None


def test_a_state_is_fresh_for_a_moment() -> None:
    place = endpoint(MemoryStore())
    assert not place.is_fresh(0.0)


async def test_a_state_looked_up_is_fresh_until_the_clock_goes_on_or_back() -> None:
    place = endpoint(MemoryStore())
    await place.load(100.0)
    assert place.is_fresh(100.5)
    assert not place.is_fresh(101.5)
    assert not place.is_fresh(99.0)


# All of them.


def test_one_that_has_never_answered_is_asked_less_and_less_often() -> None:
    """A process starts while it hangs, with a backlog: nobody has left yet, and nobody does."""
    place = Endpoints(MemoryStore()).get("new", None, 8)
    assert max(place.come_back_in(100.0) for _ in range(50)) <= 0.1
    later = [place.come_back_in(120.0) for _ in range(50)]
    assert later[-1] > 10
    assert sorted(later) == later


def test_idle_endpoints_are_forgotten_and_used_ones_are_not() -> None:
    endpoints = Endpoints(MemoryStore())
    used = endpoints.get("used", None, 8)
    used.users = 1
    for n in range(5000):
        endpoints.get(f"idle{n}", None, 8)
        assert endpoints.get("idle0", None, 8)
    assert len(endpoints) <= 4097
    assert endpoints.get("used", None, 8) is used
