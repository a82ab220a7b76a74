"""The engine's life: claiming, waking, draining, stores and transports that fail."""

import asyncio
import gc
import logging

import anyio
import pytest
from anyio.lowlevel import checkpoint

from callbackkit.delivery.policy import Batching, RetryPolicy
from callbackkit.errors import StoreUnavailableError
from callbackkit.stores.memory import MemoryStore
from tests.delivery.rig import Config, Rig, Told


async def test_what_is_owed_is_delivered_in_order() -> None:
    told = Told()
    rig = Rig(told)
    await rig.session()
    await rig.emit("s", 1, 2, 3)
    async with rig.running():
        await rig.until_settled()
        await rig.emit("s", 4)
        await told.until_done(4)
        await rig.until_settled()
    assert told.numbers() == [1, 2, 3, 4]
    assert [delivery.attempt for delivery in told.done] == [1, 1, 1, 1]
    epoch = (await rig.store.get_session("s")).epoch
    assert [delivery.id for delivery in told.done] == [f"s_{epoch}_{n}" for n in (1, 2, 3, 4)]
    assert (await rig.store.get_session("s")).delivered == 4


async def test_only_sessions_of_its_transports_are_claimed() -> None:
    told = Told()
    rig = Rig(told)
    await rig.session("mine")
    await rig.session("other", method="pigeon")
    for session_id in ("mine", "other"):
        await rig.emit(session_id, 1)
    async with rig.running():
        await rig.until_settled("mine")
    assert (await rig.store.get_session("other")).queued == 1


async def test_an_engine_without_transports_waits_and_drains() -> None:
    rig = Rig()
    async with rig.running() as engine:
        assert repr(engine) == "<DeliveryEngine of nothing, 0 claims>"
        await engine.drain()


async def test_no_more_claims_are_served_than_asked_for() -> None:
    most = 0
    gate = anyio.Event()

    async def act(delivery) -> None:
        nonlocal most
        most = max(most, engine.serving)
        await gate.wait()

    told = Told(act)
    rig = Rig(told)
    for n in range(10):
        await rig.session(f"s{n}")
        await rig.emit(f"s{n}", 1, 2)
    engine = rig.engine(concurrency=3)
    async with rig.running(engine):
        await told.until_tried(3)
        await anyio.wait_all_tasks_blocked()
        assert len(told.tried) == 3
        assert repr(engine) == "<DeliveryEngine of told, 3 claims>"
        gate.set()
        await told.until_done(20)
    assert most == 3


async def test_one_transport_that_hangs_leaves_room_for_another() -> None:
    async def hang(_delivery) -> None:
        await anyio.sleep_forever()

    stuck, told = Told(hang, name="stuck", timeout=60.0), Told()
    rig = Rig(stuck, told)
    for n in range(20):
        await rig.session(f"a{n}", method="stuck")
        await rig.emit(f"a{n}", 1)
    async with rig.running(rig.engine(concurrency=4)):
        await stuck.until_tried(3)
        for n in range(20):
            await rig.session(f"b{n}")
            await rig.emit(f"b{n}", 1)
        await told.until_done(20)
    assert len(stuck.tried) == 3


async def test_a_session_with_a_long_backlog_lets_others_in() -> None:
    """With one place, whoever holds it lets go after a quarter of a second."""
    order: list[str] = []

    async def act(delivery) -> None:
        order.append(delivery.session_id)
        rig.clock.advance(0.1)
        await checkpoint()

    told = Told(act)
    rig = Rig(told)
    for session_id in ("long", "short"):
        await rig.session(session_id)
    await rig.emit("long", *range(50))
    await rig.emit("short", 1)
    async with rig.running(rig.engine(concurrency=1)):
        await told.until_done(51)
    assert order.index("short") <= 4
    assert told.numbers("long") == list(range(50))


async def test_a_transport_that_never_suspends_does_not_stop_the_loop() -> None:
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await checkpoint()

    told = Told()
    rig = Rig(told)
    await rig.session()
    await rig.emit("s", *range(1000))
    async with anyio.create_task_group() as group:
        group.start_soon(count_turns)
        async with rig.running():
            await rig.until_settled()
        group.cancel_scope.cancel()
    assert turns > 20


async def test_running_twice_at_the_same_time_is_refused_and_again_later_is_not() -> None:
    told = Told()
    rig = Rig(told)
    engine = rig.engine()
    async with rig.running(engine):
        with pytest.raises(RuntimeError, match="runs already"):
            await engine.run()
    await rig.session()
    await rig.emit("s", 1)
    async with rig.running(engine):
        await told.until_done(1)


@pytest.mark.parametrize("value", [0, -1])
def test_a_concurrency_below_1_is_refused(value) -> None:
    with pytest.raises(ValueError, match="concurrency"):
        Rig().engine(concurrency=value)


# Draining.


async def test_draining_attempts_what_is_due_and_ends_the_run() -> None:
    told = Told()
    rig = Rig(told)
    for n in range(30):
        await rig.session(f"s{n}")
        await rig.emit(f"s{n}", *range(20))
    engine = rig.engine(concurrency=4)
    async with anyio.create_task_group() as group:
        await group.start(engine.run)
        await engine.drain()
        await rig.emit("s0", 99)
    assert len(told.done) == 600
    assert (await rig.store.get_session("s0")).queued == 1
    # It has ended; draining again is harmless.
    await engine.drain()


async def test_draining_waits_for_attempts_in_flight() -> None:
    gate = anyio.Event()

    async def act(_delivery) -> None:
        await gate.wait()

    told = Told(act)
    rig = Rig(told)
    await rig.session()
    await rig.emit("s", 1)
    async with rig.running() as engine:
        await told.until_tried(1)
        async with anyio.create_task_group() as group:
            group.start_soon(engine.drain)
            await anyio.wait_all_tasks_blocked()
            assert told.done == []
            gate.set()
        assert len(told.done) == 1
        assert (await rig.store.get_session("s")).queued == 0


async def test_when_the_time_to_drain_is_over_claims_are_let_go_at_once() -> None:
    async def act(_delivery) -> None:
        await anyio.sleep_forever()

    told = Told(act, timeout=60.0)
    rig = Rig(told)
    await rig.session()
    await rig.emit("s", 1)
    async with rig.running() as engine:
        await told.until_tried(1)
        await engine.drain(0.02)
        claims = await rig.store.claim(methods=["told"], limit=1, lease=1)
        assert claims.claims[0].attempts == 0
    assert await rig.store.attempts("s") == []


async def test_who_drains_holds_on_though_others_stand_in_line() -> None:
    async def act(_delivery) -> None:
        rig.clock.advance(0.1)
        await checkpoint()

    told = Told(act, concurrency=1)
    told.shared = "acme"
    rig = Rig(told)
    for n in range(3):
        await rig.session(f"s{n}")
        await rig.emit(f"s{n}", *range(10))
    async with rig.running() as engine:
        await engine.drain()
    assert len(told.done) == 30


async def test_what_fails_while_draining_is_tried_once() -> None:
    async def act(_delivery) -> None:
        raise OSError("refused")

    told = Told(act, retry=RetryPolicy(schedule=(0.0,) * 1000))
    rig = Rig(told)
    await rig.session()
    await rig.emit("s", 1)
    engine = rig.engine()
    async with anyio.create_task_group() as group:
        await group.start(engine.run)
        await engine.drain()
    # Before it drained it may have been tried more often.
    assert 1 <= len(told.tried) < 100
    assert (await rig.store.get_session("s")).queued == 1


async def test_draining_sends_batches_as_they_are() -> None:
    told = Told()
    rig = Rig(told, config=Config(batching=Batching(max_events=10, max_delay=100)))
    await rig.session()
    await rig.emit("s", 1, 2)
    async with rig.running() as engine:
        await anyio.wait_all_tasks_blocked()
        assert told.tried == []
        await engine.drain()
    assert told.numbers() == [1, 2]
    assert len(told.done) == 1


# Transports that start, or do not.


async def test_transports_are_started_before_and_closed_behind_what_they_send() -> None:
    steps: list[str] = []

    class Living(Told):
        async def start(self) -> None:
            steps.append("start")

        async def send(self, delivery) -> None:
            steps.append("send")
            await super().send(delivery)

        async def aclose(self) -> None:
            steps.append("close")

    living = Living()
    rig = Rig(living)
    await rig.session()
    await rig.emit("s", 1)
    async with rig.running():
        await living.until_done(1)
    assert steps == ["start", "send", "close"]


async def test_a_transport_that_can_not_start_holds_back_only_itself(caplog) -> None:
    class Lame(Told):
        starts = 0

        async def start(self) -> None:
            self.starts += 1
            if self.starts < 3:
                raise OSError("no route")

        async def aclose(self) -> None:
            raise OSError("not open")

    lame, told = Lame(name="lame"), Told()
    rig = Rig(lame, told)
    await rig.session("a", method="lame")
    await rig.session("b")
    for session_id in ("a", "b"):
        await rig.emit(session_id, 1)
    with caplog.at_level(logging.WARNING, "callbackkit.delivery"):
        async with rig.running():
            await told.until_done(1)
            while lame.starts < 3:
                rig.advance(60)
                await checkpoint()
            await lame.until_done(1)
    assert [record.delivery_method for record in caplog.records] == ["lame"] * 3


async def test_draining_does_not_wait_for_a_transport_that_can_not_start() -> None:
    class Lame(Told):
        async def start(self) -> None:
            raise OSError("no route")

    rig = Rig(Lame())
    await rig.session()
    await rig.emit("s", 1)
    async with rig.running() as engine:
        with anyio.fail_after(5):
            await engine.drain()
    assert (await rig.store.get_session("s")).queued == 1


# Stores that fail.


class Faulty(MemoryStore):
    """Fails as often as it is told to, each verb by itself."""

    def __init__(self, **options) -> None:
        super().__init__(**options)
        self.faults: dict[str, int] = {}
        self.error: Exception = StoreUnavailableError("disk full")

    def _fault(self, verb: str) -> None:
        if self.faults.get(verb, 0) > 0:
            self.faults[verb] -= 1
            raise self.error

    async def claim(self, *args, **options):
        self._fault("claim")
        return await super().claim(*args, **options)

    async def ack(self, *args, **options):
        self._fault("ack")
        return await super().ack(*args, **options)

    async def read(self, *args, **options):
        self._fault("read")
        return await super().read(*args, **options)

    async def load_endpoint(self, *args):
        self._fault("load_endpoint")
        return await super().load_endpoint(*args)


def faulty(told: Told) -> tuple[Rig, Faulty]:
    rig = Rig(told)
    store = rig.store = Faulty(clock=rig.clock)
    return rig, store


@pytest.mark.parametrize("error", [StoreUnavailableError("disk full"), ZeroDivisionError()])
async def test_a_store_that_fails_is_asked_again_less_and_less_often(caplog, error) -> None:
    told = Told()
    rig, store = faulty(told)
    store.faults["claim"] = 5
    store.error = error
    await rig.session()
    await rig.emit("s", 1)
    with caplog.at_level(logging.WARNING, "callbackkit.delivery"):
        async with rig.running():
            while not told.done:
                rig.advance(30)
                await checkpoint()
    # The lease may run out in these leaps as well, and that is told too.
    told_of_store = [each for each in caplog.records if hasattr(each, "delivery_failures")]
    assert [record.delivery_failures for record in told_of_store] == [1, 2, 3, 4, 5]
    assert [record.levelname for record in told_of_store][:2] == ["ERROR", "WARNING"]


def test_the_wait_for_a_store_grows_up_to_a_bound() -> None:
    engine = Rig().engine()
    waits = [engine._backoff(n) for n in range(1, 100)]
    assert waits[:2] == [pytest.approx(0.075), pytest.approx(0.15)]
    assert waits == sorted(waits)
    assert waits[-1] == pytest.approx(22.5)


async def test_draining_gives_a_store_up_that_keeps_failing() -> None:
    told = Told()
    rig, store = faulty(told)
    store.faults["claim"] = 10**9
    async with rig.running() as engine:
        with anyio.fail_after(5):
            await engine.drain()
    assert store.faults["claim"] <= 10**9 - 3


@pytest.mark.parametrize("verb", ["ack", "read", "load_endpoint"])
async def test_a_delivery_whose_store_failed_comes_again(caplog, verb) -> None:
    told = Told()
    rig, store = faulty(told)
    store.faults[verb] = 1
    await rig.session()
    await rig.emit("s", 1, 2)
    with caplog.at_level(logging.WARNING, "callbackkit.delivery"):
        async with rig.running():
            while not caplog.records:
                await checkpoint()
            # The claim lapses.
            rig.advance(16)
            await rig.until_settled()
    assert told.numbers() == ([1, 1, 2] if verb == "ack" else [1, 2])
    assert len({delivery.id for delivery in told.done}) == 2
    assert [record.delivery_session for record in caplog.records] == ["s"]


async def test_a_store_that_says_more_is_due_and_gives_nothing_is_not_asked_in_a_row() -> None:
    class Teasing(MemoryStore):
        claims = 0

        async def claim(self, *args, **options):
            self.claims += 1
            claims = await super().claim(*args, **options)
            return type(claims)(claims.claims, 0.0)

    rig = Rig(Told(), store=Teasing())
    async with rig.running():
        with anyio.move_on_after(0.1):
            await anyio.sleep_forever()
    assert rig.store.claims < 30


async def test_an_idle_engine_asks_nothing() -> None:
    class Counting(MemoryStore):
        claims = 0

        async def claim(self, *args, **options):
            self.claims += 1
            return await super().claim(*args, **options)

    told = Told()
    rig = Rig(told, store=Counting())
    async with rig.running():
        await rig.session()
        await rig.emit("s", 1)
        await told.until_done(1)
        await anyio.wait_all_tasks_blocked()
        before = rig.store.claims
        with anyio.move_on_after(0.05):
            await anyio.sleep_forever()
        assert rig.store.claims == before


class Stop(BaseException):
    """As KeyboardInterrupt, which asyncio would raise out of the loop of the test."""


async def test_what_is_to_end_the_program_passes_through_and_leaves_no_claim() -> None:
    async def act(_delivery) -> None:
        raise Stop

    told = Told(act)
    rig = Rig(told)
    await rig.session()
    await rig.emit("s", 1)
    with pytest.raises(BaseExceptionGroup) as caught:
        await rig.engine().run()
    assert caught.group_contains(Stop)
    assert (await rig.store.claim(methods=["told"], limit=1, lease=1)).claims


async def test_wakes_that_get_lost_cost_time_and_no_event() -> None:
    class Deaf(MemoryStore):
        reconcile = 0.02

        def watch(self, session_id):
            return MemoryStore().watch(session_id)

    told = Told()
    rig = Rig(told, store=Deaf())
    async with rig.running():
        await anyio.wait_all_tasks_blocked()
        await rig.session()
        await rig.emit("s", 1)
        await told.until_done(1)


# Ends in the middle of a claim.


class Claiming(MemoryStore):
    """Suspends behind a claim that happened, as a store in another thread does."""

    def __init__(self, **options) -> None:
        super().__init__(**options)
        self.claimed = anyio.Event()
        self.answers = anyio.Event()

    async def claim(self, *args, **options):
        claims = await super().claim(*args, **options)
        if claims.claims:
            self.claimed.set()
            await self.answers.wait()
        return claims


async def claiming(rig: Rig) -> Claiming:
    store = rig.store = Claiming(clock=rig.clock)
    for n in range(3):
        await rig.session(f"s{n}")
        await rig.emit(f"s{n}", n)
    return store


async def assert_no_lease(rig: Rig) -> None:
    rig.store.answers.set()
    claims = await rig.store.claim(methods=["told"], limit=9, lease=1)
    assert [claim.attempts for claim in claims.claims] == [0, 0, 0]


@pytest.mark.parametrize("is_drained", [False, True], ids=["cancelled", "drained for no time"])
async def test_a_run_that_ends_in_the_middle_of_a_claim_leaves_no_lease(is_drained) -> None:
    told = Told()
    rig = Rig(told)
    store = await claiming(rig)
    engine = rig.engine()
    async with anyio.create_task_group() as group:
        await group.start(engine.run)
        await store.claimed.wait()
        if is_drained:
            group.start_soon(engine.drain, 0.0)
            while not engine._scope.cancel_called:
                await checkpoint()
        else:
            group.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            await anyio.wait_all_tasks_blocked()
        store.answers.set()
    assert (told.done, engine.serving) == ([], 0)
    await assert_no_lease(rig)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_run_cancelled_by_asyncio_itself_leaves_no_lease() -> None:
    rig = Rig(Told())
    store = await claiming(rig)
    engine = rig.engine()
    task = asyncio.ensure_future(engine.run())
    await store.claimed.wait()
    task.cancel()
    await anyio.wait_all_tasks_blocked()
    store.answers.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert engine.serving == 0
    await assert_no_lease(rig)


async def test_a_store_that_never_answers_a_claim_does_not_keep_the_run_from_ending() -> None:
    rig = Rig(Told())
    store = await claiming(rig)
    with anyio.fail_after(10):
        async with rig.running():
            await store.claimed.wait()
    assert rig.engines[0].serving == 0


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
async def test_claims_whose_tasks_never_began_are_let_go(caplog, fails) -> None:
    """All tasks of a program are cancelled at once, as at the end of asyncio.run()."""
    others = asyncio.all_tasks()

    def cancel_all() -> None:
        for task in asyncio.all_tasks() - others:
            task.cancel()

    class Ending(MemoryStore):
        async def claim(self, *args, **options):
            claims = await super().claim(*args, **options)
            if claims.claims:
                asyncio.get_running_loop().call_soon(cancel_all)
            return claims

        async def retry(self, *args, **options):
            if fails:
                raise StoreUnavailableError("disk full")
            await super().retry(*args, **options)

    told = Told()
    rig = Rig(told)
    store = rig.store = Ending(clock=rig.clock)
    engine = rig.engine()
    task = asyncio.ensure_future(engine.run())
    await anyio.wait_all_tasks_blocked()
    await rig.session()
    await rig.emit("s", 1)
    with caplog.at_level(logging.INFO, "callbackkit.delivery"):
        await asyncio.wait([task])
    assert (told.tried, engine.serving) == ([], 0)
    assert engine._desk.places.room == 256
    claims = await MemoryStore.claim(store, methods=["told"], limit=9, lease=1)
    assert len(claims.claims) == (0 if fails else 1)
    assert caplog.messages == ["a claim was left to its lease"] * fails
    # Python warns of what never began, here and not in another test.
    del task
    gc.collect()
