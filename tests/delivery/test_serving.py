"""One claim: what is sent, what becomes of it, what operators hear."""

import logging

import anyio
import attrs
import pytest
from anyio.lowlevel import checkpoint

from callbackkit.delivery.policy import Batching, Circuit, CircuitBreaker, RetryPolicy
from callbackkit.errors import ConfigError, Gone, Rejected, Retry, StoreUnavailableError
from callbackkit.stores.memory import MemoryStore
from tests.delivery.rig import Config, Rig, Told


def failing(times: int, error: Exception | None = None):
    """Fail so many times, then work."""
    left = [times]

    async def act(_delivery) -> None:
        await checkpoint()
        if left[0]:
            left[0] -= 1
            raise error or OSError("refused")

    return act


BATCHED = Config(batching=Batching(max_events=3, max_delay=10.0))


async def always_gone(_delivery) -> None:
    raise Gone("deleted hunter2")


# Failures.


async def test_a_failure_is_tried_again_when_the_schedule_says() -> None:
    told = Told(failing(2))
    rig = Rig(told)
    await rig.session()
    await rig.emit("s", 1, 2)
    async with rig.running():
        await rig.until_failed(1)
        rig.advance(9.9)
        await anyio.wait_all_tasks_blocked()
        assert len(told.tried) == 1
        rig.advance(0.2)
        await rig.until_failed(2)
        rig.advance(20)
        await rig.until_settled()
    assert told.numbers() == [1, 2]
    assert [delivery.attempt for delivery in told.tried] == [1, 2, 3, 1]
    assert len({delivery.id for delivery in told.tried[:3]}) == 1
    attempts = await rig.store.attempts("s")
    assert [attempt.error for attempt in attempts] == ["OSError: refused"] * 2 + [""] * 2
    assert [attempt.number for attempt in attempts] == [1, 2, 3, 1]
    assert [attempt.at for attempt in attempts] == pytest.approx([1000, 1010.1, 1030.1, 1030.1])
    assert (await rig.store.get_session("s")).retries == 2


async def test_a_waiting_retry_holds_no_lease_and_no_place() -> None:
    told = Told(failing(1))
    rig = Rig(told)
    await rig.session()
    await rig.emit("s", 1)
    engine = rig.engine()
    async with rig.running(engine):
        await rig.until_failed(1)
        await anyio.wait_all_tasks_blocked()
        assert engine.serving == 0
        rig.clock.advance(10)
        claims = await rig.store.claim(methods=["told"], limit=1, lease=5)
        assert claims.claims[0].attempts == 1


@pytest.mark.parametrize(("after", "delay"), [(3, 3), (-1, 0), (1e9, 86_400)])
async def test_the_destination_says_when_to_come_back_and_it_counts(after, delay) -> None:
    told = Told(failing(1, Retry(after=after, reason="busy")))
    rig = Rig(told)
    await rig.session()
    await rig.emit("s", 1)
    async with rig.running():
        await rig.until_failed(1)
        if delay:
            rig.advance(delay - 0.1)
            await anyio.wait_all_tasks_blocked()
            assert len(told.tried) == 1
        rig.advance(0.2)
        await told.until_done(1)
    assert told.done[0].attempt == 2
    assert (await rig.store.attempts("s"))[0].error == "Retry: busy"


@pytest.mark.parametrize("after", ["Wed, 21 Oct 2026 07:28:00 GMT", object(), 10**400])
async def test_what_is_no_number_of_seconds_leaves_it_to_the_schedule(after) -> None:
    told = Told(failing(1, Retry(after=after)))
    rig = Rig(told)
    await rig.session()
    await rig.emit("s", 1)
    async with rig.running():
        await rig.until_failed(1)
        rig.advance(9.9)
        await anyio.wait_all_tasks_blocked()
        assert len(told.tried) == 1
        rig.advance(0.2)
        await told.until_done(1)


async def test_the_text_of_a_header_is_read_as_seconds() -> None:
    told = Told(failing(1, Retry(after="3")))  # type: ignore[arg-type]
    rig = Rig(told)
    await rig.session()
    await rig.emit("s", 1)
    async with rig.running():
        await rig.until_failed(1)
        rig.advance(3)
        await told.until_done(1)


async def test_what_used_up_its_attempts_is_a_dead_letter_and_the_next_goes_on(caplog) -> None:
    async def act(delivery) -> None:
        if delivery.event.data["n"] == 1:
            raise ValueError("bad hunter2")

    told = Told(act)
    rig = Rig(told, config=Config(retry_attempts=1))
    await rig.session()
    await rig.emit("s", 1, 2)
    with caplog.at_level(logging.INFO, "callbackkit.delivery"):
        async with rig.running():
            await rig.until_failed(1)
            rig.advance(11)
            await rig.until_settled()
    assert told.numbers() == [2]
    (letter,) = await rig.store.dead_letters("s")
    assert (letter.id, letter.attempts) == (told.tried[0].id, 2)
    assert letter.reason == "ValueError: bad ***"
    assert rig.told == [
        (
            "delivery.dead",
            "s",
            {
                "delivery_id": letter.id,
                "delivery_method": "told",
                "events": 1,
                "attempts": 2,
                "reason": "ValueError: bad ***",
            },
        )
    ]
    assert "hunter2" not in str([vars(record) for record in caplog.records])
    assert caplog.records[0].delivery_error == "ValueError: bad ***"


async def test_attempts_end_at_the_deadline_of_the_client() -> None:
    async def act(_delivery) -> None:
        await anyio.sleep_forever()

    told = Told(act, timeout=60.0)
    rig = Rig(told, config=Config(timeout=0.02))
    await rig.session()
    await rig.emit("s", 1)
    async with rig.running():
        await rig.until_failed(1)
    (attempt,) = await rig.store.attempts("s")
    assert attempt.error == "TimeoutError: not done within 0.02 s"


async def test_events_that_can_not_be_decoded_become_a_dead_letter() -> None:
    async def act(delivery) -> None:
        assert delivery.event.data

    told = Told(act, retry=RetryPolicy(schedule=()))
    rig = Rig(told)
    await rig.session()
    await rig.store.append("s", "progress", b"{broken")
    await rig.emit("s", 2)
    async with rig.running():
        await rig.until_settled()
    assert told.numbers() == [2]
    assert len(await rig.store.dead_letters("s")) == 1


async def test_a_configuration_that_can_not_be_read_makes_dead_letters_of_one_session() -> None:
    def read_config(text: bytes) -> Config:
        if text == b"bad":
            raise ConfigError("options", "hunter2 is no recipient")
        return Config()

    told = Told()
    rig = Rig(told)
    for session_id in ("bad", "good"):
        await rig.session(session_id)
        await rig.emit(session_id, 1, 2)
    async with rig.running(rig.engine(read_config=read_config)):
        await rig.until_settled("bad")
        await rig.until_settled("good")
    assert told.numbers("good") == [1, 2]
    letters = await rig.store.dead_letters("bad")
    assert [letter.reason for letter in letters] == [
        "the endpoint could not be told: ConfigError"
    ] * 2
    assert rig.events == ["delivery.dead"] * 2


@pytest.mark.parametrize("endpoint", [lambda: 1 / 0, lambda: None], ids=["raises", "no name"])
async def test_a_transport_that_can_not_name_an_endpoint_holds_up_nobody(endpoint) -> None:
    class Lost(Told):
        def endpoint(self, session_id, config):
            return endpoint() if session_id == "bad" else "fine"

    told = Lost()
    rig = Rig(told)
    for session_id in ("bad", "good"):
        await rig.session(session_id)
        await rig.emit(session_id, 1)
    async with rig.running():
        await rig.until_settled("bad")
        await rig.until_settled("good")
    assert len(await rig.store.dead_letters("bad")) == 1
    assert told.numbers() == [1]


async def test_operators_that_can_not_be_told_stop_nothing(caplog) -> None:
    async def notify(*_event) -> None:
        raise RuntimeError("no operators")

    told = Told(failing(1), retry=RetryPolicy(schedule=()))
    rig = Rig(told)
    await rig.session()
    await rig.emit("s", 1, 2)
    async with rig.running(rig.engine(notify=notify)):
        await rig.until_settled()
    assert told.numbers() == [2]
    assert "operators could not be told" in caplog.messages


# Gone, and back.


async def test_gone_disables_the_endpoint_once_and_makes_dead_letters_of_all_that_is_owed() -> None:
    told = Told(always_gone)
    told.shared = "acme"
    rig = Rig(told)
    for session_id in ("a", "b"):
        await rig.session(session_id)
        await rig.emit(session_id, 1, 2)
    async with rig.running():
        await rig.until_settled("a")
        await rig.until_settled("b")
        await rig.emit("a", 3)
        await rig.until_settled("a")
    assert rig.events.count("endpoint.disabled") == 1
    assert rig.events.count("delivery.dead") == 5
    assert len(told.tried) <= 2
    letters = await rig.store.dead_letters("a")
    assert len(letters) == 3
    assert letters[-1].reason == "the endpoint is disabled: Gone: deleted ***"


async def test_a_disabled_endpoint_stays_so_for_another_process() -> None:
    told = Told(always_gone)
    rig = Rig(told)
    await rig.session()
    await rig.emit("s", 1)
    async with rig.running():
        await rig.until_settled()
    await rig.emit("s", 2)
    fresh = Told()
    async with rig.running(rig.engine(transports=[fresh])):
        await rig.until_settled()
    assert fresh.tried == []


async def test_redriving_works_on_a_disabled_endpoint_and_enables_it() -> None:
    told = Told(always_gone)
    rig = Rig(told)
    await rig.session()
    await rig.emit("s", 1, 2)
    async with rig.running():
        await rig.until_settled()
        told.act = None
        await rig.store.redrive("s")
        await told.until_done(2)
        await rig.emit("s", 3)
        await told.until_done(3)
        await rig.until_settled()
    # Letters are deliveries of their own, in no order among themselves.
    assert sorted(told.numbers()[:2]) == [1, 2]
    assert told.numbers()[2:] == [3]
    assert [delivery.is_redrive for delivery in told.done] == [True, True, False]
    assert [delivery.attempt for delivery in told.done] == [1, 1, 1]
    assert told.tried[0].id in {delivery.id for delivery in told.done}
    assert rig.events[-1] == "endpoint.recovered"
    assert await rig.store.dead_letters("s") == []


async def test_a_redriven_letter_that_fails_again_stays_dead() -> None:
    told = Told(always_gone)
    rig = Rig(told)
    await rig.session()
    await rig.emit("s", 1)
    async with rig.running():
        await rig.until_settled()
        await rig.store.redrive("s")
        await rig.until_failed(2)
        await anyio.wait_all_tasks_blocked()
    (letter,) = await rig.store.dead_letters("s")
    assert not letter.is_due
    assert rig.events == ["endpoint.disabled", "delivery.dead", "delivery.dead"]


async def test_a_redriven_letter_is_retried_by_schedule() -> None:
    told = Told(failing(2), retry=RetryPolicy(schedule=()))
    rig = Rig(told)
    await rig.session()
    await rig.emit("s", 1)
    async with rig.running():
        await rig.until_settled()
        told.retry = RetryPolicy(schedule=(10.0,), jitter=0)
        await rig.store.redrive("s")
        await rig.until_failed(2)
        rig.advance(10)
        await told.until_done(1)
    assert told.done[0].attempt == 2


async def test_a_letter_of_a_session_that_is_gone_is_delivered_too() -> None:
    told = Told(always_gone)
    rig = Rig(told)
    await rig.session(ttl=60)
    await rig.emit("s", 1)
    async with rig.running():
        await rig.until_settled()
        rig.advance(61)
        await rig.store.sweep()
        told.act = None
        await rig.store.redrive("s")
        await told.until_done(1)
    assert told.numbers() == [1]


# The breaker.


async def test_an_open_breaker_burns_no_attempts_and_loses_nothing() -> None:
    told = Told(failing(3), breaker=CircuitBreaker(failures=2, open_for=30))
    rig = Rig(told)
    await rig.session()
    await rig.emit("s", 1, 2)
    async with rig.running():
        await rig.until_failed(1)
        rig.advance(10)
        await rig.until_failed(2)
        assert rig.events == ["endpoint.failing"]
        # Due by the schedule, and put off.
        rig.advance(20)
        await anyio.wait_all_tasks_blocked()
        assert len(told.tried) == 2
        # The probe fails; the breaker stays open twice as long.
        rig.advance(12)
        await rig.until_failed(3)
        rig.advance(45)
        await anyio.wait_all_tasks_blocked()
        assert len(told.tried) == 3
        rig.advance(25)
        await told.until_done(2)
    assert [delivery.attempt for delivery in told.tried] == [1, 2, 3, 4, 1]
    assert rig.events == ["endpoint.failing", "endpoint.recovered"]
    assert rig.told[0][2] == {
        "endpoint": "told:s",
        "delivery_method": "told",
        "reason": "OSError: refused",
    }
    assert await rig.store.dead_letters("s") == []


async def test_one_of_many_sessions_tries_the_endpoint_out() -> None:
    async def act(_delivery) -> None:
        if not is_up:
            raise OSError("refused")
        await gate.wait()

    is_up, gate = False, anyio.Event()
    told = Told(act, breaker=CircuitBreaker(failures=3, open_for=30), concurrency=50)
    told.shared = "acme"
    rig = Rig(told)
    for n in range(20):
        await rig.session(f"s{n}")
    await rig.emit("s0", 0)
    async with rig.running(rig.engine(), rig.engine()):
        for n, delay in enumerate((10, 20, 0), 1):
            await rig.until_failed(n, "s0")
            rig.advance(delay)
        for n in range(1, 20):
            await rig.emit(f"s{n}", n)
        await anyio.wait_all_tasks_blocked()
        tried = len(told.tried)
        is_up = True
        rig.advance(40)
        await told.until_tried(tried + 1)
        await anyio.wait_all_tasks_blocked()
        assert len(told.tried) == tried + 1
        gate.set()
        await told.until_done(1)
        # The others look again soon, not when the time of the probe would be over.
        rig.advance(3)
        await told.until_done(20)
    assert sorted(told.numbers()) == list(range(20))
    assert rig.events == ["endpoint.failing", "endpoint.recovered"]


async def test_a_probe_that_disables_makes_a_dead_letter_of_itself() -> None:
    told = Told(
        failing(99),
        breaker=CircuitBreaker(failures=1, open_for=30, disable_after=1),
        retry=RetryPolicy(schedule=(1.0,) * 50),
    )
    rig = Rig(told)
    await rig.session()
    await rig.emit("s", 1, 2)
    async with rig.running():
        await rig.until_failed(1)
        rig.advance(1)
        await anyio.wait_all_tasks_blocked()
        rig.advance(40)
        await rig.until_settled()
    assert len(told.tried) == 2
    assert rig.events == ["endpoint.failing", "endpoint.disabled", *["delivery.dead"] * 2]
    letters = await rig.store.dead_letters("s")
    assert {letter.reason for letter in letters} == {"the endpoint is disabled: OSError: refused"}


# An endpoint that asks to be spared.


def busy(after: float | None = None, *, throttles: bool = True) -> Retry:
    return Retry(after, "HTTP 429", throttles=throttles)


@pytest.mark.parametrize(
    ("error", "rest"),
    [
        (busy(), 10.0),
        (busy(90.0), 90.0),
        (busy(1e9), 500.0),
        (TimeoutError("late"), 10.0),
    ],
    ids=["schedule", "asked", "too-much", "timeout"],
)
@pytest.mark.parametrize("breaker", [CircuitBreaker(), None], ids=["breaker", "none"])
async def test_who_asks_to_be_spared_is_sent_nothing_by_any_session_or_process(
    breaker, error, rest
) -> None:
    told = Told(failing(1, error), breaker=breaker)
    told.retry = RetryPolicy(schedule=(10.0, 20.0), jitter=0.0, max_retry_after=500.0)
    told.shared = "acme"
    rig = Rig(told)
    await rig.session("a")
    await rig.session("b")
    await rig.emit("a", 1)
    async with rig.running(rig.engine()):
        await rig.until_failed(1, "a")
    await rig.emit("a", 2)
    await rig.emit("b", 3)
    async with rig.running(rig.engine(), rig.engine()):
        await anyio.wait_all_tasks_blocked()
        rig.advance(rest - 0.5)
        await anyio.wait_all_tasks_blocked()
        assert len(told.tried) == 1
        # Those who wait come back within a tenth of their time.
        rig.advance(rest / 10 + 1)
        await told.until_done(3)
        await rig.until_settled("a")
        await rig.until_settled("b")
    assert rig.events == []
    # Waiting was no attempt.
    assert [each.attempt for each in told.tried] in ([1, 2, 1, 1], [1, 1, 2, 1])
    assert await rig.store.dead_letters("a") == []


async def test_without_being_asked_an_endpoint_is_spared_a_minute_at_most() -> None:
    told = Told(failing(1, busy()), retry=RetryPolicy(schedule=(7200.0,), jitter=0.0))
    told.shared = "acme"
    rig = Rig(told)
    await rig.session("a")
    await rig.session("b")
    await rig.emit("a", 1)
    async with rig.running():
        await rig.until_failed(1, "a")
        await rig.emit("b", 2)
        await anyio.wait_all_tasks_blocked()
        rig.advance(59)
        await anyio.wait_all_tasks_blocked()
        assert len(told.tried) == 1
        rig.advance(10)
        await told.until_done(1)
    assert told.numbers() == [2]


async def test_what_is_only_to_be_sent_again_later_holds_back_nobody_else() -> None:
    told = Told(failing(1, busy(90.0, throttles=False)))
    told.shared = "acme"
    rig = Rig(told)
    await rig.session("a")
    await rig.session("b")
    await rig.emit("a", 1)
    async with rig.running():
        await rig.until_failed(1, "a")
        await rig.emit("b", 2)
        await told.until_done(1)
    assert told.numbers() == [2]


async def test_the_last_attempt_too_has_the_endpoint_spared() -> None:
    told = Told(failing(1, busy(90.0)))
    rig = Rig(told, config=Config(retry_attempts=0))
    await rig.session()
    await rig.emit("s", 1, 2)
    async with rig.running():
        await rig.until_failed(1)
        await anyio.wait_all_tasks_blocked()
        rig.advance(89)
        await anyio.wait_all_tasks_blocked()
        assert len(told.tried) == 1
        rig.advance(20)
        await rig.until_settled()
    assert told.numbers() == [2]
    (letter,) = await rig.store.dead_letters("s")
    assert letter.reason == "Retry: HTTP 429"


# What will never be taken.


async def test_what_is_rejected_is_dead_at_once_and_the_next_is_sent() -> None:
    told = Told(failing(1, Rejected("HTTP 422 hunter2")), breaker=CircuitBreaker())
    rig = Rig(told)
    await rig.session()
    await rig.emit("s", 1, 2)
    async with rig.running():
        await rig.until_settled()
        assert told.numbers() == [2]
        (letter,) = await rig.store.dead_letters("s")
        assert (letter.reason, letter.attempts) == ("Rejected: HTTP 422 ***", 1)
        assert rig.events == ["delivery.dead"]
        # It may have been mended.
        await rig.store.redrive("s")
        await told.until_done(2)
    assert told.done[1].is_redrive


async def test_many_rejections_have_the_endpoint_left_alone_for_a_while() -> None:
    told = Told(failing(99, Rejected("HTTP 401")), breaker=CircuitBreaker(failures=3))
    rig = Rig(told)
    await rig.session()
    await rig.emit("s", *range(9))
    async with rig.running():
        await rig.until_failed(3)
        await anyio.wait_all_tasks_blocked()
    assert len(told.tried) == 3
    assert rig.events.count("delivery.dead") == 3
    assert rig.events.count("endpoint.failing") == 1


async def test_gone_is_told_once_whoever_hears_it() -> None:
    """Several sessions, each of them sending when the endpoint goes; two processes."""

    async def act(_delivery) -> None:
        if len(told.tried) == 4:
            all_there.set()
        await all_there.wait()
        raise Gone("HTTP 410")

    all_there = anyio.Event()
    told = Told(act, breaker=CircuitBreaker(), concurrency=2)
    told.shared = "acme"
    rig = Rig(told)
    for session_id in "abcdef":
        await rig.session(session_id)
        await rig.emit(session_id, 1)
    async with rig.running(rig.engine(concurrency=2), rig.engine(concurrency=2)):
        for session_id in "abcdef":
            await rig.until_settled(session_id)
    assert rig.events.count("endpoint.disabled") == 1
    assert rig.events.count("delivery.dead") == 6
    assert "endpoint.failing" not in rig.events


# What was changed while it is delivered.


@pytest.mark.parametrize("readable", [True, False], ids=["another", "unreadable"])
async def test_the_next_delivery_goes_by_what_the_client_asks_for_now(readable) -> None:
    async def act(delivery) -> None:
        if len(told.tried) == 1:
            await rig.store.update_session("s", known=b"s", config=b"new", unowed=())

    def read_config(text: bytes) -> Config:
        if text == b"new" and not readable:
            raise ConfigError("options", "must be an object")
        return Config(options={"to": "you"}) if text == b"new" else Config()

    told = Told(act)
    rig = Rig(told)
    await rig.session()
    await rig.emit("s", 1, 2, 3)
    async with rig.running(rig.engine(read_config=read_config)):
        await rig.until_settled()
    (first, *others) = told.done
    assert first.options == {}
    assert [each.options for each in others] == [{"to": "you"}] * (2 * readable)
    assert len(await rig.store.dead_letters("s")) == (0 if readable else 2)


class Moving(Told):
    """Has an endpoint for each place that a client wants it to go to."""

    def endpoint(self, session_id, config) -> str:
        return config.options.get("to", "me")


async def change(rig: Rig, session_id: str = "s", *, new: Config) -> None:
    """Change what a client asks for, as a rotation and a PATCH do."""
    rig.configs[b"new"] = new
    known = session_id.encode()
    await rig.store.update_session(session_id, known=known, config=b"new", unowed=())


TO_YOU = Config(options={"to": "you"})


@pytest.mark.parametrize("filled", [False, True], ids=["time is up", "full"])
async def test_a_batch_that_fills_goes_by_what_the_client_asks_for_when_it_goes(filled) -> None:
    """A secret that was rotated without an overlap signs nothing any more."""
    told = Moving()
    rig = Rig(told, config=BATCHED)
    await rig.session()
    async with rig.running():
        await rig.emit("s", 1)
        await anyio.wait_all_tasks_blocked()
        await change(rig, new=attrs.evolve(BATCHED, options={"to": "you"}))
        if filled:
            rig.clock.advance(1.5)
            await rig.emit("s", 2, 3)
        else:
            rig.advance(10.1)
        await told.until_done(1)
        await rig.until_settled()
    assert [dict(each.options) for each in told.tried] == [{"to": "you"}]
    assert told.numbers() == ([1, 2, 3] if filled else [1])


async def test_a_change_that_a_renewal_told_of_is_heeded_at_once() -> None:
    """A batch that fills keeps its lease; right after that it is full."""

    class Renewing(MemoryStore):
        renewals = 0

        async def renew(self, *args, **options):
            claim = await super().renew(*args, **options)
            self.renewals += 1
            if self.renewals == 1:
                await rig.emit("s", 2, 3)
            return claim

    told = Moving()
    rig = Rig(told, config=Config(batching=Batching(max_events=3, max_delay=100.0)))
    rig.store = Renewing(clock=rig.clock)
    await rig.session()
    async with rig.running():
        await rig.emit("s", 1)
        await anyio.wait_all_tasks_blocked()
        await change(rig, new=attrs.evolve(BATCHED, options={"to": "you"}))
        # Nine seconds of the lease are left, and it looks again after five: too close.
        rig.advance(6)
        await told.until_done(1)
        await rig.until_settled()
    assert [dict(each.options) for each in told.tried] == [{"to": "you"}]


@pytest.mark.parametrize("shared", [True, False], ids=["same endpoint", "another"])
async def test_who_waits_in_line_goes_by_what_the_client_asks_for_when_his_turn_comes(
    shared,
) -> None:
    async def act(delivery) -> None:
        if delivery.session_id == "first":
            await gate.wait()

    gate = anyio.Event()
    told = (Told if shared else Moving)(act, concurrency=1)
    told.shared = "acme"
    rig = Rig(told)
    await rig.session("first")
    await rig.session("s")
    async with rig.running() as engine:
        await rig.emit("first", 1)
        await told.until_tried(1)
        await rig.emit("s", 2)
        await anyio.wait_all_tasks_blocked()
        assert (engine.serving, len(told.tried)) == (2, 1)
        await change(rig, new=TO_YOU)
        rig.advance(1.5)
        await anyio.wait_all_tasks_blocked()
        gate.set()
        await told.until_done(2)
        await rig.until_settled()
        await anyio.wait_all_tasks_blocked()
        users = [engine._desk.endpoints.get(n, None, 1).users for n in ("acme", "me", "you")]
    assert [(each.session_id, dict(each.options)) for each in told.tried] == [
        ("first", {}),
        ("s", {"to": "you"}),
    ]
    # It was no try, and no place was lost over it.
    assert told.tried[1].attempt == 1
    assert users == [0, 0, 0]


async def test_whoever_sends_one_after_the_other_does_not_ask_each_time() -> None:
    """What was settled tells of it; asking as well would cost the store one more write each."""

    class Counting(MemoryStore):
        renewals = 0

        async def renew(self, *args, **options):
            self.renewals += 1
            return await super().renew(*args, **options)

    async def act(_delivery) -> None:
        rig.clock.advance(0.05)

    told = Told(act)
    rig = Rig(told)
    store = rig.store = Counting(clock=rig.clock)
    await rig.session()
    async with rig.running():
        await rig.emit("s", *range(50))
        await rig.until_settled()
    assert told.numbers() == list(range(50))
    assert store.renewals == 0


async def test_where_it_went_before_is_not_in_use_any_more() -> None:
    class Moving(Told):
        def endpoint(self, session_id, config) -> str:
            return config.options.get("to", "nobody")

    async def act(_delivery) -> None:
        used.append([engine._desk.endpoints.get(name, None, 1).users for name in ("me", "you")])
        if len(used) == 1:
            await rig.store.update_session("s", known=b"s", config=b"new", unowed=())

    used: list[list[int]] = []
    rig = Rig(Moving(act))
    rig.configs[b"new"] = Config(options={"to": "you"})
    await rig.session(config=Config(options={"to": "me"}))
    await rig.emit("s", 1, 2)
    engine = rig.engine()
    async with rig.running(engine):
        await rig.until_settled()
        await anyio.wait_all_tasks_blocked()
        users = [engine._desk.endpoints.get(name, None, 1).users for name in ("me", "you")]
    assert used == [[1, 0], [0, 1]]
    assert users == [0, 0]


# Places and rates.


async def test_an_endpoint_gets_no_more_at_once_than_its_concurrency() -> None:
    now = most = 0

    async def act(_delivery) -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await checkpoint()
        now -= 1

    told = Told(act, concurrency=2)
    told.shared = "acme"
    rig = Rig(told)
    for n in range(20):
        await rig.session(f"s{n}")
        await rig.emit(f"s{n}", *range(5))
    async with rig.running():
        while len(told.done) < 100:
            rig.advance(0.1)
            await checkpoint()
    assert most == 2
    for n in range(20):
        assert told.numbers(f"s{n}") == list(range(5))
        assert all(attempt.number == 1 for attempt in await rig.store.attempts(f"s{n}"))


async def test_a_client_gets_no_more_requests_in_a_second_than_it_asked_for() -> None:
    times: list[float] = []

    async def act(_delivery) -> None:
        times.append(rig.clock())

    told = Told(act)
    rig = Rig(told, config=Config(rate_limit=10.0))
    await rig.session()
    await rig.emit("s", *range(40))
    async with rig.running():
        while len(told.done) < 40:
            rig.advance(0.05)
            for _ in range(8):
                await checkpoint()
    assert told.numbers() == list(range(40))
    for first, begin in enumerate(times):
        assert sum(begin <= at < begin + 1 for at in times[first:]) <= 11
    assert times[-1] - times[0] < 10


async def test_draining_keeps_the_rate() -> None:
    class Gated(Told):
        async def start(self) -> None:
            await gate.wait()

    gate = anyio.Event()
    told = Gated()
    rig = Rig(told, config=Config(rate_limit=10.0))
    await rig.session()
    await rig.emit("s", *range(5))
    async with rig.running() as engine, anyio.create_task_group() as group:
        group.start_soon(engine.drain)
        await anyio.wait_all_tasks_blocked()
        gate.set()
        while len(told.done) < 5:
            rig.advance(0.05)
            await checkpoint()
    assert rig.clock() >= 1000.4


# Batches.


async def test_a_batch_that_is_not_full_waits_and_a_full_one_goes_at_once() -> None:
    told = Told()
    rig = Rig(told, config=BATCHED)
    await rig.session()
    async with rig.running() as engine:
        await rig.emit("s", 1, 2)
        await anyio.wait_all_tasks_blocked()
        assert told.tried == []
        assert engine.serving == 1
        await rig.emit("s", 3)
        await told.until_done(1)
        await rig.emit("s", 4)
        await anyio.wait_all_tasks_blocked()
        rig.advance(9.9)
        await anyio.wait_all_tasks_blocked()
        assert len(told.done) == 1
        rig.advance(0.2)
        await told.until_done(2)
        await rig.until_settled()
    assert [[event.data["n"] for event in delivery.events] for delivery in told.done] == [
        [1, 2, 3],
        [4],
    ]


async def test_a_claim_that_waits_for_its_batch_keeps_its_lease() -> None:
    told = Told()
    rig = Rig(told, config=Config(batching=Batching(max_events=3, max_delay=100.0)))
    await rig.session()
    async with rig.running(rig.engine(), rig.engine()):
        await rig.emit("s", 1)
        for _ in range(9):
            rig.advance(11)
            await anyio.wait_all_tasks_blocked()
        assert told.tried == []
        rig.advance(11)
        await told.until_done(1)
        await rig.until_settled()
    assert len(told.tried) == 1


async def test_a_lease_outlives_the_next_look_at_a_batch() -> None:
    class Counting(MemoryStore):
        renewals = 0

        async def renew(self, *args, **options):
            self.renewals += 1
            return await super().renew(*args, **options)

    rig = Rig(Told(), config=Config(batching=Batching(max_events=3, max_delay=100.0)))
    store = rig.store = Counting(clock=rig.clock)
    await rig.session()

    async def is_renewed() -> bool:
        return store.renewals > 0

    async with rig.running():
        await rig.emit("s", 1)
        await anyio.wait_all_tasks_blocked()
        # Nine seconds are left, and it looks again after five: too close.
        rig.advance(6)
        await rig.until(is_renewed)


async def test_waiting_batches_take_no_place_from_others() -> None:
    """Beyond a bound they are put back instead, for as long as they would have waited."""
    told = Told()
    rig = Rig(told, config=BATCHED)
    async with rig.running(rig.engine(concurrency=1)) as engine:
        for n in range(7):
            await rig.session(f"s{n}")
            await rig.emit(f"s{n}", 1)
            await anyio.wait_all_tasks_blocked()
        assert engine.serving == 4
        await rig.session("full")
        await rig.emit("full", 1, 2, 3)
        await told.until_done(1)
        rig.advance(10.1)
        await told.until_done(8)


async def test_who_waits_for_a_batch_makes_room_for_those_that_are_due() -> None:
    told = Told()
    rig = Rig(told, config=BATCHED)
    for session_id, numbers in (("a", [1]), ("b", [1, 2]), ("full", [1, 2, 3])):
        await rig.session(session_id)
        await rig.emit(session_id, *numbers)
    async with rig.running(rig.engine(concurrency=1)):
        await told.until_done(1)
        assert told.done[0].session_id == "full"


async def test_a_batch_whose_time_is_up_gets_its_place_as_the_others_do() -> None:
    async def act(delivery) -> None:
        if delivery.session_id == "long":
            await gate.wait()

    gate = anyio.Event()
    told = Told(act)
    rig = Rig(told, config=Config(batching=Batching(max_events=3, max_delay=0.5)))
    async with rig.running(rig.engine(concurrency=1)) as engine:
        await rig.session("short")
        await rig.emit("short", 1)
        await anyio.wait_all_tasks_blocked()
        await rig.session("long")
        await rig.emit("long", 1, 2, 3)
        await told.until_tried(1)
        assert engine.serving == 2
        # Not long enough for the long one to lose its place.
        rig.advance(0.6)

        async def is_put_back() -> bool:
            return engine.serving == 1

        await rig.until(is_put_back)
        assert len(told.tried) == 1
        gate.set()
        await told.until_done(2)
    assert told.done[1].attempt == 1


async def test_a_batch_that_was_tried_stays_as_it_was() -> None:
    told = Told(failing(1))
    rig = Rig(told, config=BATCHED)
    await rig.session()
    async with rig.running():
        await rig.emit("s", 1)
        await anyio.wait_all_tasks_blocked()
        rig.advance(10.1)
        await rig.until_failed(1)
        await rig.emit("s", 2, 3, 4)
        rig.advance(10)
        await told.until_done(2)
    assert told.numbers() == [1, 2, 3, 4]
    assert [delivery.events for delivery in told.tried[:2]] == [told.tried[0].events] * 2
    assert [len(delivery.events) for delivery in told.done] == [1, 3]


async def test_one_that_was_tried_alone_stays_alone_when_batching_is_turned_on() -> None:
    told = Told(failing(1))
    rig = Rig(told)
    await rig.session()
    await rig.emit("s", 1, 2, 3)
    async with rig.running():
        await rig.until_failed(1)
    batched = rig.engine(read_config=lambda _text: BATCHED)
    async with rig.running(batched) as engine, anyio.create_task_group() as group:
        rig.advance(10)
        await told.until_done(1)
        group.start_soon(engine.drain)
    assert [len(delivery.events) for delivery in told.tried[:2]] == [1, 1]


async def test_the_end_of_a_session_sends_its_last_batch() -> None:
    told = Told()
    rig = Rig(told, config=BATCHED)
    await rig.session()
    async with rig.running():
        await rig.emit("s", 1, 2)
        await anyio.wait_all_tasks_blocked()
        await rig.store.end_session("s", linger=60)
        await told.until_done(1)
    assert told.numbers() == [1, 2]


# Sessions and stores that change meanwhile.


async def test_a_session_that_is_deleted_while_it_is_delivered_is_dropped(caplog) -> None:
    async def act(_delivery) -> None:
        await rig.store.delete_session("s", linger=60)

    told = Told(act)
    rig = Rig(told)
    await rig.session()
    await rig.emit("s", 1, 2)
    async with rig.running() as engine:
        await told.until_done(1)
        await anyio.wait_all_tasks_blocked()
        assert engine.serving == 0
    assert len(told.tried) == 1


async def test_a_session_that_went_between_claim_and_read_is_dropped(caplog) -> None:
    class Racing(MemoryStore):
        async def claim(self, *args, **options):
            claims = await super().claim(*args, **options)
            for claim in claims.claims:
                await self.delete_session(claim.session_id, linger=60)
            return claims

    rig = Rig(Told())
    rig.store = Racing(clock=rig.clock)
    await rig.session()
    await rig.emit("s", 1)
    with caplog.at_level(logging.INFO, "callbackkit.delivery"):
        async with rig.running():
            await anyio.wait_all_tasks_blocked()
    assert caplog.messages == ["a session went while it was delivered"]


async def test_what_is_owed_and_can_not_be_read_is_asked_for_again_later(caplog) -> None:
    class Blank(MemoryStore):
        is_blank = True

        async def read(self, *args, **options):
            page = await super().read(*args, **options)
            return type(page)((), *list(vars_of(page))[1:]) if self.is_blank else page

    def vars_of(page):
        return (page.records, page.epoch, page.first, page.top, page.state)

    told = Told()
    rig = Rig(told)
    store = rig.store = Blank(clock=rig.clock)
    await rig.session()
    await rig.emit("s", 1)
    async with rig.running():
        await anyio.wait_all_tasks_blocked()
        assert caplog.messages == ["nothing can be read of what is owed"]
        store.is_blank = False
        rig.advance(1)
        await told.until_done(1)


@pytest.mark.parametrize("bad", [{"batching": "50"}, {"timeout": "5"}])
async def test_a_fault_that_nobody_foresaw_ends_one_claim_and_no_other(caplog, bad) -> None:
    told = Told()
    rig = Rig(told)
    for session_id, config in (("bad", Config(**bad)), ("good", Config())):
        await rig.session(session_id, config=config)
        await rig.emit(session_id, 1)
    async with rig.running() as engine:
        await rig.until_settled("good")
        while "a delivery failed in an unforeseen way" not in caplog.messages:
            await checkpoint()
        await anyio.wait_all_tasks_blocked()
        assert engine.serving == 0


async def test_a_claim_that_can_not_be_let_go_is_left_to_its_lease(caplog) -> None:
    class Failing(MemoryStore):
        async def retry(self, *args, **options):
            raise StoreUnavailableError("disk full")

    async def act(_delivery) -> None:
        await anyio.sleep_forever()

    told = Told(act)
    rig = Rig(told)
    rig.store = Failing(clock=rig.clock)
    await rig.session()
    await rig.emit("s", 1)
    with caplog.at_level(logging.INFO, "callbackkit.delivery"):
        async with rig.running():
            await told.until_tried(1)
    assert caplog.messages == ["a claim was left to its lease"]


async def test_who_is_cancelled_behind_a_retry_leaves_it_as_it_is(caplog) -> None:
    """The claim is gone already; that it can't be let go of again is no news."""

    class Slow(MemoryStore):
        async def retry(self, *args, **options):
            await super().retry(*args, **options)
            await anyio.sleep_forever()

    told = Told(failing(1))
    rig = Rig(told)
    rig.store = Slow(clock=rig.clock)
    await rig.session()
    await rig.emit("s", 1)
    with caplog.at_level(logging.INFO, "callbackkit.delivery"):
        async with rig.running():
            await rig.until_failed(1)
    assert "a claim was left to its lease" not in caplog.messages
    claims = await rig.store.claim(methods=["told"], limit=1, lease=1)
    assert (claims.claims, claims.next_in) == ([], 10.0)


@pytest.mark.parametrize("events", [0, 1], ids=["put back", "failed"])
async def test_who_is_cancelled_before_a_retry_happened_leaves_no_lease(events) -> None:
    """The verb did nothing; letting go does it instead, and nothing was counted."""

    class Slow(MemoryStore):
        retries = 0

        async def retry(self, *args, **options):
            self.retries += 1
            if self.retries == 1:
                await anyio.sleep_forever()
            await super().retry(*args, **options)

        async def read(self, *args, **options):
            page = await super().read(*args, **options)
            return attrs.evolve(page, records=page.records[:events])

    rig = Rig(Told(failing(1)))
    store = rig.store = Slow(clock=rig.clock)
    await rig.session()
    await rig.emit("s", 1)

    async def is_letting_go() -> bool:
        return store.retries == 1

    async with rig.running():
        await rig.until(is_letting_go)
    claims = await store.claim(methods=["told"], limit=1, lease=1)
    assert [claim.attempts for claim in claims.claims] == [0]


async def test_of_two_processes_that_want_to_try_an_endpoint_out_one_does() -> None:
    """Both see that its time is over; the one whose state is saved second is put back."""

    class Racing(MemoryStore):
        rival = None

        async def save_endpoint(self, endpoint, version, state):
            if self.rival is not None and b"half_open" in state:
                rival, self.rival = self.rival, None
                await super().save_endpoint(endpoint, version, rival)
            return await super().save_endpoint(endpoint, version, state)

    told = Told(failing(1), breaker=CircuitBreaker(failures=1, open_for=5))
    rig = Rig(told)
    store = rig.store = Racing(clock=rig.clock)
    await rig.session()
    await rig.emit("s", 1)
    async with rig.running():
        await rig.until_failed(1)
        store.rival = Circuit(phase="half_open", probe="rival", until=rig.clock() + 30).to_json()
        rig.advance(10)
        while store.rival is not None:
            await checkpoint()
        await anyio.wait_all_tasks_blocked()
        assert len(told.tried) == 1
        # Nobody hears of the rival again.
        rig.advance(30)
        await told.until_done(1)
