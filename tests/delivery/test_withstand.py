"""What a delivery withstands: outages, flapping, hangs, lost leases, two engines, a crash."""

from collections import Counter

import anyio
import pytest
from anyio.lowlevel import checkpoint

from callbackkit.delivery.policy import Batching, Circuit, CircuitBreaker, RetryPolicy
from callbackkit.errors import Gone, StoreUnavailableError
from callbackkit.stores.base import LETTER_KEPT, Retention
from callbackkit.stores.memory import MemoryStore
from tests.delivery.rig import Config, Rig, Told


async def turns(times: int = 12) -> None:
    for _ in range(times):
        await checkpoint()


async def test_a_destination_that_fails_for_an_hour_gets_everything_in_order_afterwards() -> None:
    """Its attempts follow the schedule, give or take the jitter."""

    async def act(_delivery) -> None:
        if rig.clock() < 1000 + 3600:
            raise OSError("refused")

    told = Told(act, retry=RetryPolicy(jitter=0.2), breaker=CircuitBreaker())
    rig = Rig(told)
    await rig.session()
    await rig.emit("s", *range(20))
    async with rig.running():
        for number, delay in enumerate((5, 300, 1800, 7200), 1):
            await rig.until_failed(number)
            await rig.emit("s", 19 + number)
            # The chance was 0.5: as the schedule says.
            rig.advance(delay - 0.25)
            await turns()
            assert len(told.tried) == number
            rig.advance(0.5)
        await rig.until_settled()
    assert told.numbers() == list(range(24))
    assert [delivery.attempt for delivery in told.tried[:6]] == [1, 2, 3, 4, 5, 1]
    assert len({delivery.id for delivery in told.tried[:5]}) == 1
    assert await rig.store.dead_letters("s") == []


@pytest.mark.parametrize(("chance", "delay"), [(0.0, 8.0), (1.0, 12.0)])
async def test_a_retry_strays_by_the_jitter(chance, delay) -> None:
    async def act(delivery) -> None:
        if delivery.attempt == 1:
            raise OSError("refused")

    told = Told(act, retry=RetryPolicy(schedule=(10.0,), jitter=0.2))
    rig = Rig(told)
    rig.chance = chance
    await rig.session()
    await rig.emit("s", 1)
    async with rig.running():
        await rig.until_failed(1)
        rig.advance(delay - 0.1)
        await turns()
        assert len(told.tried) == 1
        rig.advance(0.2)
        await told.until_done(1)


async def test_a_destination_that_flaps_gets_everything_and_no_budget_is_burnt() -> None:
    """It is down for 40 of every 100 seconds; each delivery has four tries."""

    async def act(_delivery) -> None:
        if rig.clock() % 100 < 40:
            raise OSError("refused")

    told = Told(
        act,
        retry=RetryPolicy(schedule=(15.0, 15.0, 15.0, 15.0), jitter=0.0),
        breaker=CircuitBreaker(failures=2, open_for=10.0, max_open=10.0, disable_after=None),
    )
    told.shared = "acme"
    rig = Rig(told)
    for n in range(5):
        await rig.session(f"s{n}")
    async with rig.running():
        for second in range(1000):
            if second % 10 == 0 and second < 800:
                for n in range(5):
                    await rig.emit(f"s{n}", second)
            rig.advance(1)
            await turns(6)
    for n in range(5):
        assert told.numbers(f"s{n}") == list(range(0, 800, 10))
        assert await rig.store.dead_letters(f"s{n}") == []
    outages = Counter(rig.events)
    assert outages["endpoint.failing"] == outages["endpoint.recovered"]
    assert 5 <= outages["endpoint.failing"] <= 10


async def test_hundreds_of_endpoints_that_hang_hold_back_no_other() -> None:
    """They stand aside after a second each: behind them others are served while all hang."""

    async def act(delivery) -> None:
        if delivery.session_id != "free":
            await anyio.sleep_forever()

    told = Told(act, timeout=60.0)
    rig = Rig(told)
    for n in range(400):
        await rig.session(f"stuck{n}")
        await rig.emit(f"stuck{n}", n)
    await rig.session("free")
    await rig.emit("free", 0)
    engine = rig.engine(concurrency=32)
    async with rig.running(engine):
        # As many seconds as there are turns for 32 of 401.
        for _ in range(13):
            await anyio.wait_all_tasks_blocked()
            rig.advance(1.0)
        await told.until_done(1)
        # Now that all stand aside no time has to pass.
        for n in range(1, 20):
            await rig.emit("free", n)
            await told.until_done(n + 1)
        assert len(told.tried) == 400 + 20
        # The free one holds its place still, or has let go.
        assert 400 <= engine.serving <= 401
        await engine.drain(0.0)
        assert engine.serving == 0
    assert told.numbers() == list(range(20))
    claims = await rig.store.claim(methods=["told"], limit=500, lease=1)
    assert len(claims.claims) == 400


async def test_endpoints_that_failed_last_time_take_no_place_of_others() -> None:
    """They stand aside at once, up to a bound; those beyond are put back, and no try counts."""

    async def act(delivery) -> None:
        if delivery.session_id != "free":
            if delivery.attempt > 1:
                await anyio.sleep_forever()
            raise OSError("refused")

    told = Told(act, timeout=60.0, breaker=CircuitBreaker(failures=3))
    rig = Rig(told)
    for n in range(100):
        await rig.session(f"bad{n}")
        await rig.emit(f"bad{n}", n)
    await rig.session("free")
    async with rig.running(rig.engine(concurrency=4)):
        await told.until_tried(100)
        await anyio.wait_all_tasks_blocked()
        rig.advance(10.0)
        # 16 times as many as there are places.
        await told.until_tried(164)
        for n in range(20):
            await rig.emit("free", n)
            await told.until_done(n + 1)
        await anyio.wait_all_tasks_blocked()
        assert len(told.tried) == 164 + 20
    counted = [len(await rig.store.attempts(f"bad{n}")) for n in range(100)]
    assert counted == [1] * 100


async def test_an_endpoint_that_took_long_takes_no_place_of_others_next_time() -> None:
    async def act(delivery) -> None:
        if delivery.session_id == "slow" and not hangs:
            rig.clock.advance(1.0)
        elif delivery.session_id == "slow":
            await anyio.sleep_forever()

    hangs = False
    told = Told(act, timeout=60.0)
    rig = Rig(told)
    for session_id in ("slow", "free"):
        await rig.session(session_id)
    async with rig.running(rig.engine(concurrency=1)):
        await rig.emit("slow", 1)
        await rig.until_settled("slow")
        hangs = True
        await rig.emit("slow", 2)
        await told.until_tried(2)
        await rig.emit("free", 3)
        await told.until_done(2)
    assert told.numbers() == [1, 3]


async def test_who_comes_back_from_aside_lines_up_if_his_place_was_given_away() -> None:
    gates = [anyio.Event() for _ in range(2)]

    async def act(delivery) -> None:
        if delivery.session_id == "slow":
            await gates[0].wait()
        elif delivery.session_id == "free":
            await gates[1].wait()

    told = Told(act, timeout=60.0)
    rig = Rig(told)
    for session_id in ("slow", "free"):
        await rig.session(session_id)
    async with rig.running(rig.engine(concurrency=1)) as engine:
        await rig.emit("slow", 1, 2)
        await told.until_tried(1)
        await rig.emit("free", 3)
        await anyio.wait_all_tasks_blocked()
        rig.advance(1.0)
        await told.until_tried(2)
        gates[0].set()
        await told.until_done(1)
        await anyio.wait_all_tasks_blocked()
        assert (len(told.tried), engine.serving) == (2, 1)
        gates[1].set()
        await told.until_done(3)
    assert told.numbers() == [1, 3, 2]


async def test_a_breaker_opened_before_the_clock_was_set_back_is_over() -> None:
    breaker = CircuitBreaker(failures=1, open_for=0.5)
    told = Told(breaker=breaker)
    rig = Rig(told)
    await rig.session()
    opened = breaker.failed(Circuit(), rig.clock() + 3600, chance=0.5)
    await rig.store.save_endpoint("told:s", 0, opened.to_json())
    async with rig.running():
        await rig.emit("s", 1)
        await told.until_done(1)
        await rig.until_settled()
    assert rig.events == ["endpoint.recovered"]


async def test_a_destination_that_is_gone_stays_so_while_something_is_owed_to_it() -> None:
    """The store forgets an endpoint that nobody saves for a week."""

    async def act(_delivery) -> None:
        raise Gone("moved")

    told = Told(act)
    rig = Rig(told)
    await rig.session(ttl=None)
    saved: list[int] = []
    async with rig.running():
        for day in range(10):
            for n in range(2):
                await rig.emit("s", n)
                await rig.until_settled()
            saved.append((await rig.store.load_endpoint("told:s"))[0])
            rig.advance(86_400)
            await rig.store.sweep()
            assert len(told.tried) == 1, f"sent to again on day {day}"
        # Nothing was owed for a week.
        rig.advance(LETTER_KEPT)
        await rig.store.sweep()
        await rig.emit("s", 3)
        await told.until_tried(2)
    # Once a day, not once for each event.
    assert saved == list(range(1, 11))


async def test_many_sessions_of_an_endpoint_that_hangs_hold_back_no_other() -> None:
    """Few claims wait for it here; the others are put back, and no try is counted."""

    async def act(delivery) -> None:
        if delivery.session_id.startswith("stuck"):
            await anyio.sleep_forever()

    class Shared(Told):
        def endpoint(self, session_id, config):
            return session_id.rstrip("0123456789")

    told = Shared(act, timeout=60.0, concurrency=2)
    rig = Rig(told)
    for n in range(100):
        await rig.session(f"stuck{n}")
        await rig.emit(f"stuck{n}", n)
    engine = rig.engine(concurrency=8)
    async with rig.running(engine):
        await told.until_tried(2)
        await rig.session("free")
        for n in range(20):
            await rig.emit("free", n)
            rig.advance(0.5)
            await told.until_done(n + 1)
        # Two hang, four are in line, and eight may be on the way back to the store.
        assert engine.serving <= 8 + 6
    assert told.numbers() == list(range(20))
    for n in range(100):
        assert await rig.store.attempts(f"stuck{n}") == []


async def test_a_worker_that_is_paused_beyond_its_lease_is_refused() -> None:
    """The other one delivers; its late acknowledgement changes nothing, and its id is the same."""
    gate = anyio.Event()

    async def paused(_delivery) -> None:
        await gate.wait()

    slow, quick = Told(paused, timeout=600.0), Told()
    rig = Rig()
    await rig.session()
    await rig.emit("s", 1, 2)
    async with rig.running(rig.engine(transports=[slow])):
        await slow.until_tried(1)
        # Longer than the lease; time does not pass for a process that is stopped.
        rig.clock.advance(1000)
        async with rig.running(rig.engine(transports=[quick])):
            await rig.until_settled()
            cursor = (await rig.store.get_session("s")).cursor
            gate.set()
            await slow.until_done(1)
            await anyio.wait_all_tasks_blocked()
            assert (await rig.store.get_session("s")).cursor == cursor == 2
    assert quick.numbers() == [1, 2]
    assert slow.numbers() == [1]
    assert slow.done[0].id == quick.done[0].id
    session = await rig.store.get_session("s")
    assert (session.delivered, session.failed) == (2, 0)
    assert len(await rig.store.attempts("s")) == 2


async def test_a_lease_that_runs_out_while_a_delivery_fails_changes_nothing() -> None:
    gate = anyio.Event()

    async def fails_late(_delivery) -> None:
        await gate.wait()
        raise OSError("refused")

    slow, quick = Told(fails_late, timeout=600.0), Told()
    rig = Rig()
    await rig.session()
    await rig.emit("s", 1)
    async with rig.running(rig.engine(transports=[slow])):
        await slow.until_tried(1)
        rig.clock.advance(1000)
        async with rig.running(rig.engine(transports=[quick])):
            await rig.until_settled()
            gate.set()
            await anyio.wait_all_tasks_blocked()
    session = await rig.store.get_session("s")
    assert (session.delivered, session.failed, session.queued) == (1, 0, 0)


async def test_two_engines_deliver_each_event_once_and_in_order() -> None:
    async def act(_delivery) -> None:
        await checkpoint()

    told = Told(act)
    rig = Rig(told)
    for n in range(10):
        await rig.session(f"s{n}")
    async with rig.running(rig.engine(), rig.engine()):
        for number in range(50):
            for n in range(10):
                await rig.emit(f"s{n}", number)
            await checkpoint()
        await told.until_done(500)
        await turns()
    for n in range(10):
        assert told.numbers(f"s{n}") == list(range(50))


@pytest.mark.parametrize("timeout", [0.5, 120.0])
async def test_a_lease_outlives_the_timeout_of_the_client(timeout) -> None:
    async def act(_delivery) -> None:
        rig.clock.advance(timeout)
        claims = await rig.store.claim(methods=["told"], limit=9, lease=1)
        assert not claims.claims

    told = Told(act)
    rig = Rig(told, config=Config(timeout=timeout))
    await rig.session()
    await rig.emit("s", 1, 2, 3)
    async with rig.running():
        await told.until_done(3)


async def test_a_transport_with_a_long_timeout_makes_no_lease_of_others_long() -> None:
    """What a killed process held is taken over after less than a minute."""

    async def act(delivery) -> None:
        rig.clock.advance(45)
        methods = [delivery.config.delivery_method]
        found.append(len((await rig.store.claim(methods=methods, limit=9, lease=1)).claims))

    found: list[int] = []
    slow, quick = Told(act, name="slow", timeout=600.0), Told(act)
    rig = Rig(slow, quick)
    for method in ("slow", "told"):
        await rig.session(method, method=method, config=Config(delivery_method=method))
    async with rig.running():
        await rig.emit("slow", 1)
        await slow.until_done(1)
        await rig.until_settled("slow")
        await rig.emit("told", 1)
        await quick.until_done(1)
    assert found == [0, 1]


async def test_a_claim_that_waited_in_line_renews_its_lease_before_it_sends() -> None:
    gate = anyio.Event()

    async def act(delivery) -> None:
        if delivery.session_id == "first":
            await gate.wait()
            return
        rig.clock.advance(4.9)
        claims = await rig.store.claim(methods=["told"], limit=9, lease=1)
        assert [claim.session_id for claim in claims.claims] in ([], ["first"])

    told = Told(act, concurrency=1)
    told.shared = "acme"
    rig = Rig(told)
    for session_id in ("first", "second"):
        await rig.session(session_id)
    async with rig.running():
        await rig.emit("first", 1)
        await told.until_tried(1)
        await rig.emit("second", 1)
        await anyio.wait_all_tasks_blocked()
        rig.clock.advance(14.9)
        gate.set()
        await told.until_done(2)
        await rig.until_settled("second")
    assert [delivery.session_id for delivery in told.done] == ["first", "second"]


async def test_a_batch_killed_between_send_and_ack_comes_again_as_it_was() -> None:
    config = Config(batching=Batching(max_events=3, max_delay=0.0))

    async def dies(_delivery) -> None:
        await anyio.sleep_forever()

    killed, told = Told(dies), Told()
    rig = Rig(config=config)
    await rig.session()
    await rig.emit("s", 1, 2)
    async with rig.running(rig.engine(transports=[killed])):
        await killed.until_tried(1)
    # More came meanwhile, and there is room for it.
    await rig.emit("s", 3)
    async with rig.running(rig.engine(transports=[told])):
        await told.until_done(2)
    assert told.done[0].id == killed.tried[0].id
    assert told.done[0].events == killed.tried[0].events
    assert told.numbers() == [1, 2, 3]


class Mortal(MemoryStore):
    """A store that this process reaches until it is dead; then every verb is without effect."""

    is_dead = False

    async def ack(self, *args, **options):
        return await self._alive(super().ack, *args, **options)

    async def retry(self, *args, **options):
        return await self._alive(super().retry, *args, **options)

    async def _alive(self, verb, *args, **options):
        if self.is_dead:
            raise StoreUnavailableError("this process is dead")
        return await verb(*args, **options)


@pytest.mark.parametrize("events", [1, 2])
async def test_a_batch_of_a_process_killed_before_its_ack_comes_again_as_it_was(events) -> None:
    """The destination has it, the store has not heard: the lease has to run out."""

    async def act(_delivery) -> None:
        rig.store.is_dead = True

    killed, told = Told(act), Told()
    rig = Rig(config=Config(batching=Batching(max_events=9, max_delay=0.0)))
    rig.store = Mortal(clock=rig.clock)
    await rig.session()
    await rig.emit("s", *range(events))
    async with rig.running(rig.engine(transports=[killed])):
        await killed.until_done(1)
    rig.store.is_dead = False
    await rig.emit("s", 7, 8, 9)
    async with rig.running(rig.engine(transports=[told])):
        rig.advance(16)
        await told.until_done(2)
    assert told.done[0].id == killed.done[0].id
    assert told.done[0].events == killed.done[0].events
    assert told.numbers() == [*range(events), 7, 8, 9]


async def test_what_is_owed_beyond_max_pending_is_a_dead_letter_and_the_rest_arrives() -> None:
    """The record that is being sent may be among those given up on."""
    gate = anyio.Event()

    async def act(_delivery) -> None:
        await gate.wait()

    told = Told(act)
    rig = Rig(told)
    await rig.session(retention=Retention(max_events=2), max_pending=2)
    async with rig.running():
        await rig.emit("s", 1)
        await told.until_tried(1)
        await rig.emit("s", 2, 3, 4)
        gate.set()
        await rig.until_settled()
    assert told.numbers() == [1, 3, 4]
    letters = await rig.store.dead_letters("s")
    assert [record.seq for letter in letters for record in letter.records] == [1, 2]
