"""Retries, breakers, rates and batches, with time and chance given."""

import math

import attrs
import pytest
from hypothesis import given, strategies as st

from callbackkit.delivery.policy import Batching, Circuit, CircuitBreaker, RateLimit, RetryPolicy

chances = st.floats(0, 1)
seconds = st.floats(0, 1e6)


# Trying again.


def test_the_schedule_is_followed_and_then_given_up() -> None:
    policy = RetryPolicy(schedule=(5, 300), jitter=0)
    assert [policy.delay(n, chance=0.9) for n in (1, 2, 3)] == [5.0, 300.0, None]


def test_the_default_schedule_takes_27_hours() -> None:
    policy = RetryPolicy(jitter=0)
    delays = [policy.delay(n, chance=0) for n in range(1, 8)]
    assert delays == [5, 300, 1800, 7200, 18000, 36000, 36000]
    assert policy.delay(8, chance=0) is None


@given(
    schedule=st.lists(seconds, min_size=1, max_size=9),
    jitter=st.floats(0, 1),
    chance=chances,
    attempt=st.integers(1, 12),
    allowed=st.none() | st.integers(0, 12),
)
def test_a_delay_is_within_the_jitter_of_its_place_in_the_schedule(
    schedule, jitter, chance, attempt, allowed
) -> None:
    delay = RetryPolicy(schedule=schedule, jitter=jitter).delay(
        attempt, chance=chance, attempts_allowed=allowed
    )
    retries = len(schedule) if allowed is None else allowed
    if attempt > retries:
        assert delay is None
        return
    base = schedule[min(attempt, len(schedule)) - 1]
    assert delay is not None
    assert base * (1 - jitter) - 1e-6 <= delay <= base * (1 + jitter) + 1e-6


def test_more_attempts_than_the_schedule_has_repeat_its_last_delay() -> None:
    policy = RetryPolicy(schedule=(1, 2), jitter=0)
    delays = [policy.delay(n, chance=0.5, attempts_allowed=4) for n in range(1, 6)]
    assert delays == [1, 2, 2, 2, None]


def test_no_retries_are_no_retries_even_if_the_destination_asks() -> None:
    assert RetryPolicy().delay(1, chance=0, attempts_allowed=0, retry_after=3) is None
    assert RetryPolicy(schedule=()).delay(1, chance=0, attempts_allowed=5) is None


@pytest.mark.parametrize(
    ("asked", "delay"),
    [(7, 7.0), (0, 0.0), (-5, 0.0), (1e12, 600.0), (math.inf, 600.0), (math.nan, 5.0)],
)
def test_what_the_destination_asks_for_stands_instead_of_the_schedule(asked, delay) -> None:
    policy = RetryPolicy(schedule=(5,), jitter=0, max_retry_after=600)
    assert policy.delay(1, chance=0.3, retry_after=asked) == delay


def test_exponential_delays_grow_up_to_a_bound() -> None:
    policy = RetryPolicy.exponential(first=2, factor=3, max_delay=20, retries=4, jitter=0.1)
    assert policy.schedule == (2, 6, 18, 20)
    assert policy.jitter == 0.1
    assert len(RetryPolicy.exponential(factor=10, retries=1000).schedule) == 1000


@pytest.mark.parametrize(
    ("make", "values", "named"),
    [
        (RetryPolicy, {"schedule": (1, -1)}, r"schedule\[1\]"),
        (RetryPolicy, {"schedule": (math.inf,)}, r"schedule\[0\]"),
        (RetryPolicy, {"schedule": "12"}, "schedule"),
        (RetryPolicy, {"jitter": 1.5}, "jitter"),
        (RetryPolicy, {"max_retry_after": math.nan}, "max_retry_after"),
        (RetryPolicy.exponential, {"first": -1}, "first"),
        (RetryPolicy.exponential, {"factor": 0.5}, "factor"),
        (RetryPolicy.exponential, {"max_delay": -1}, "max_delay"),
        (RetryPolicy.exponential, {"retries": 0}, "retries"),
        (CircuitBreaker, {"failures": 0}, "failures"),
        (CircuitBreaker, {"rate": 0}, "rate"),
        (CircuitBreaker, {"rate": 1.1}, "rate"),
        (CircuitBreaker, {"min_requests": True}, "min_requests"),
        (CircuitBreaker, {"window": 0}, "window"),
        (CircuitBreaker, {"open_for": 0}, "open_for"),
        (CircuitBreaker, {"open_for": 60, "max_open": 30}, "max_open"),
        (CircuitBreaker, {"disable_after": 0}, "disable_after"),
        (RateLimit, {"per_second": 0}, "per_second"),
        (RateLimit, {"per_second": math.inf}, "per_second"),
        (RateLimit, {"per_second": "5"}, "per_second"),
        (Batching, {"max_events": 0}, "max_events"),
        (Batching, {"max_events": 10_001}, "max_events"),
        (Batching, {"max_events": 2.5}, "max_events"),
        (Batching, {"max_bytes": 0}, "max_bytes"),
        (Batching, {"max_delay": -1}, "max_delay"),
        (Batching, {"max_delay": 4000}, "max_delay"),
        (Batching, {"max_delay": "1"}, "max_delay"),
        # Whole numbers that no float can hold.
        (RetryPolicy, {"schedule": (10**400,)}, r"schedule\[0\]"),
        (RetryPolicy, {"max_retry_after": 10**400}, "max_retry_after"),
        (CircuitBreaker, {"open_for": 10**400}, "open_for"),
        (CircuitBreaker, {"window": -(10**400)}, "window"),
        (RateLimit, {"per_second": 10**400}, "per_second"),
        (Batching, {"max_delay": 10**400}, "max_delay"),
    ],
)
def test_a_number_out_of_its_range_is_refused_by_name(make, values, named) -> None:
    with pytest.raises(ValueError, match=f"^{named} "):
        make(**values)


# The breaker.


def failing(breaker: CircuitBreaker, circuit: Circuit, times: int, now: float = 0.0) -> Circuit:
    for _ in range(times):
        circuit = breaker.failed(circuit, now, chance=0.5)
    return circuit


def test_it_opens_at_the_fifth_failure_in_a_row() -> None:
    breaker = CircuitBreaker()
    assert failing(breaker, Circuit(), 4).phase == "closed"
    circuit = failing(breaker, Circuit(), 5, now=100.0)
    assert (circuit.phase, circuit.until) == ("open", 130.0)


def test_a_success_breaks_a_row_of_failures() -> None:
    breaker = CircuitBreaker()
    circuit = breaker.succeeded(failing(breaker, Circuit(), 4), 0.0)
    assert circuit.is_spotless
    assert failing(breaker, circuit, 4).phase == "closed"


def test_it_opens_when_half_of_ten_requests_within_the_window_fail() -> None:
    breaker = CircuitBreaker(failures=100)
    circuit = Circuit()
    for n in range(9):
        change = breaker.succeeded if n % 2 else lambda c, now: breaker.failed(c, now, chance=0)
        circuit = change(circuit, float(n))
        assert circuit.phase == "closed"
    assert breaker.failed(circuit, 9.0, chance=0).phase == "open"


def test_requests_before_the_window_do_not_count() -> None:
    breaker = CircuitBreaker(failures=100)
    circuit = failing(breaker, Circuit(), 9, now=0.0)
    assert breaker.failed(circuit, 59.9, chance=0).phase == "open"
    assert breaker.failed(circuit, 60.0, chance=0).phase == "closed"


def test_successes_may_be_counted_many_at_a_time() -> None:
    breaker = CircuitBreaker(failures=100)
    many = breaker.succeeded(Circuit(), 0.0, times=11)
    assert failing(breaker, many, 10).phase == "closed"
    assert failing(breaker, many, 11).phase == "open"


def test_counts_from_the_future_of_a_clock_set_back_are_dropped() -> None:
    breaker = CircuitBreaker(failures=100)
    circuit = failing(breaker, Circuit(), 9, now=1000.0)
    assert breaker.failed(circuit, 10.0, chance=0).phase == "closed"


def test_an_open_one_waits_and_then_one_tries_it_out() -> None:
    breaker = CircuitBreaker()
    circuit = failing(breaker, Circuit(), 5)
    assert breaker.wait(circuit, 10.0) == 20.0
    assert breaker.wait(circuit, 30.0) == 0.0
    probing = breaker.try_out(circuit, 30.0, probe="me", lease=20.0)
    assert (probing.phase, probing.probe) == ("half_open", "me")
    assert breaker.wait(probing, 35.0) == 15.0
    assert breaker.wait(probing, 50.0) == 0.0


def test_the_probe_decides_and_nobody_else() -> None:
    breaker = CircuitBreaker()
    probing = breaker.try_out(failing(breaker, Circuit(), 5), 30.0, probe="me", lease=20.0)
    assert breaker.succeeded(probing, 31.0) == probing
    assert breaker.failed(probing, 31.0, chance=0.5, probe="other") == probing
    assert breaker.succeeded(probing, 31.0, probe="me") == Circuit()
    again = breaker.failed(probing, 31.0, chance=0.5, probe="me")
    assert (again.phase, again.until, again.reopened) == ("open", 91.0, 1)


def test_what_began_before_it_opened_says_nothing_about_it() -> None:
    breaker = CircuitBreaker()
    circuit = failing(breaker, Circuit(), 5)
    assert breaker.succeeded(circuit, 1.0) == circuit
    assert breaker.failed(circuit, 1.0, chance=0.5) == circuit


def test_it_stays_open_no_longer_than_it_was_opened_for_if_the_clock_is_set_back() -> None:
    breaker = CircuitBreaker(failures=1, open_for=0.5)
    circuit = breaker.failed(Circuit(), 5000, chance=1.0)
    assert breaker.wait(circuit, 5000) == pytest.approx(0.6)
    # Clocks of processes differ a little.
    assert breaker.wait(circuit, 4999.5) == pytest.approx(1.1)
    assert breaker.wait(circuit, 1400) == 0
    probed = breaker.try_out(circuit, 1400, probe="a", lease=20)
    assert breaker.wait(probed, 1400) == 20
    assert breaker.wait(probed, 300) == 0


def test_how_long_an_older_version_opened_it_for_is_not_known() -> None:
    circuit = Circuit.from_json(b'{"phase":"open","until":3600.0}')
    assert CircuitBreaker().wait(circuit, 0) == 3600


def test_that_it_is_disabled_is_noted_once_an_hour() -> None:
    breaker = CircuitBreaker()
    circuit = breaker.disabled(Circuit(), 1000, "Gone")
    assert breaker.noted(circuit, 4599) is circuit
    assert breaker.noted(circuit, 4600) == attrs.evolve(circuit, noted_at=4600)
    # The clock was set back.
    assert breaker.noted(circuit, 999) == attrs.evolve(circuit, noted_at=999)
    assert breaker.noted(Circuit(), 10**6) == Circuit()


def test_it_is_disabled_after_ten_probes_that_failed_in_a_row() -> None:
    breaker = CircuitBreaker()
    circuit, now = failing(breaker, Circuit(), 5), 0.0
    for n in range(10):
        assert circuit.phase == "open"
        now = circuit.until
        circuit = breaker.try_out(circuit, now, probe=str(n), lease=20)
        circuit = breaker.failed(circuit, now, chance=0.5, probe=str(n), reason="OSError: no")
    assert (circuit.phase, circuit.reason) == ("disabled", "OSError: no")
    assert breaker.wait(circuit, 1e12) == math.inf


def test_it_is_never_disabled_if_so_asked() -> None:
    breaker = CircuitBreaker(disable_after=None)
    circuit = failing(breaker, Circuit(), 5)
    for n in range(2000):
        circuit = breaker.try_out(circuit, 0.0, probe=str(n), lease=20)
        circuit = breaker.failed(circuit, 0.0, chance=0.5, probe=str(n))
    assert circuit.until == 3600.0


def test_only_a_dead_letter_that_arrives_enables_what_is_disabled() -> None:
    breaker = CircuitBreaker()
    circuit = breaker.disabled(Circuit(), 0.0, "Gone")
    assert breaker.succeeded(circuit, 0.0) == circuit
    assert breaker.failed(circuit, 0.0, chance=0.5) == circuit
    assert breaker.succeeded(circuit, 0.0, redriven=True) == Circuit()


@given(chance=chances, reopened=st.integers(0, 5000))
def test_it_stays_open_twice_as_long_each_time_give_or_take_a_fifth(chance, reopened) -> None:
    breaker = CircuitBreaker(disable_after=None)
    probing = Circuit(phase="half_open", probe="me", until=1.0, reopened=reopened)
    circuit = breaker.failed(probing, 0.0, chance=chance, probe="me")
    stay = min(30.0 * 2 ** min(reopened + 1, 20), 4500.0)
    assert 0.8 * min(stay, 3600) - 1e-6 <= circuit.until <= min(1.2 * stay, 3600) + 1e-6


outcomes = st.lists(st.tuples(st.floats(0, 40), st.booleans(), chances), max_size=60)


@given(outcomes)
def test_its_rate_is_that_of_the_last_window_and_no_event_older_counts(steps) -> None:
    """Ten parts make up the window, so up to a tenth of it may be missing at its far end."""
    breaker = CircuitBreaker(failures=10_000, min_requests=4)
    circuit, now = Circuit(), 0.0
    history: list[tuple[float, bool]] = []
    for pause, worked, chance in steps:
        now += pause
        history.append((now, worked))
        before = circuit
        if worked:
            circuit = breaker.succeeded(circuit, now)
        else:
            circuit = breaker.failed(circuit, now, chance=chance)
        counted = sum(part[1] for part in circuit.window)
        if circuit.phase == "closed":
            whole = [at for at, _ in history if at > now - 60]
            sure = [at for at, _ in history if at > now - 54]
            assert len(sure) <= counted <= len(whole)
        else:
            assert not worked
            assert sum(part[1] for part in before.window) + 1 >= 4
            return


@given(
    st.builds(
        Circuit,
        phase=st.sampled_from(["closed", "open", "half_open", "disabled"]),
        until=st.floats(-1e12, 1e12),
        lasts=st.floats(0, 1e12),
        noted_at=st.floats(-1e12, 1e12),
        probe=st.text(),
        failures=st.integers(0, 10**9),
        reopened=st.integers(0, 10**9),
        reason=st.text(),
        resumes_at=st.floats(-1e12, 1e12),
        rests=st.floats(0, 1e12),
        window=st.lists(
            st.tuples(st.floats(0, 1e12), st.integers(0, 99), st.integers(0, 99)), max_size=10
        ).map(tuple),
    )
)
def test_a_circuit_goes_to_json_and_back(circuit) -> None:
    assert Circuit.from_json(circuit.to_json()) == circuit


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"\xff",
        b"[]",
        b"3",
        b'{"phase":"melted"}',
        b'{"until":"x"}',
        b'{"until":NaN}',
        b'{"until":1%s}' % (b"0" * 400),
        b'{"lasts":"x"}',
        b'{"noted_at":Infinity}',
        b'{"window":[[1%s,1,1]]}' % (b"0" * 400),
        b'{"resumes_at":"x"}',
        b'{"resumes_at":null}',
        b'{"resumes_at":Infinity}',
        b'{"rests":NaN}',
        b'{"rests":[1]}',
        b'{"failures":-1}',
        b'{"failures":true}',
        b'{"reopened":"x"}',
        b'{"reason":3}',
        b'{"window":[1]}',
        b'{"window":3}',
        b'{"window":[["x",1,1]]}',
    ],
)
def test_an_endpoint_whose_state_can_not_be_read_is_sent_to(text) -> None:
    assert Circuit.from_json(text) == Circuit()


@given(st.binary())
def test_no_text_at_all_breaks_the_reading_of_a_state(text) -> None:
    Circuit.from_json(text)


def test_keys_of_a_later_version_are_passed_over() -> None:
    assert Circuit.from_json(b'{"phase":"open","until":5,"colour":"red"}').until == 5


# Sparing an endpoint.


def test_nothing_is_sent_while_an_endpoint_is_spared_whatever_its_phase() -> None:
    breaker = CircuitBreaker(failures=1, open_for=30)
    spared = breaker.throttled(Circuit(), 0.0, 100.0)
    assert (spared.phase, breaker.wait(spared, 0.0), breaker.wait(spared, 99.0)) == (
        "closed",
        100.0,
        1.0,
    )
    assert breaker.wait(spared, 100.0) == 0.0
    opened = breaker.failed(spared, 0.0, chance=0.5)
    assert (opened.phase, breaker.wait(opened, 0.0)) == ("open", 100.0)
    long = breaker.failed(breaker.throttled(Circuit(), 0.0, 5.0), 0.0, chance=0.5)
    assert breaker.wait(long, 0.0) == 30.0
    gone = breaker.disabled(spared, 0.0, "Gone")
    assert breaker.wait(gone, 1e9) == math.inf
    assert breaker.throttled(gone, 1.0, 500.0) is gone


def test_the_longest_rest_that_was_asked_for_stands() -> None:
    breaker = CircuitBreaker()
    spared = breaker.throttled(Circuit(), 0.0, 100.0)
    assert breaker.throttled(spared, 50.0, 50.0) is spared
    assert breaker.wait(breaker.throttled(spared, 50.0, 60.0), 50.0) == 60.0


def test_a_clock_set_back_ends_a_rest_and_hinders_no_other() -> None:
    breaker = CircuitBreaker()
    spared = breaker.throttled(Circuit(), 10_000.0, 100.0)
    assert breaker.wait(spared, 5_000.0) == 0.0
    assert breaker.wait(breaker.throttled(spared, 5_000.0, 10.0), 5_000.0) == 10.0


def test_a_rest_of_unknown_length_is_over() -> None:
    assert CircuitBreaker().wait(Circuit(resumes_at=1e300), 0.0) == 0.0


def test_a_probe_that_arrives_does_not_end_a_rest_that_somebody_else_was_asked_for() -> None:
    breaker = CircuitBreaker(failures=1)
    circuit = breaker.try_out(
        breaker.failed(Circuit(), 0.0, chance=0.5), 100.0, probe="me", lease=5
    )
    circuit = breaker.succeeded(breaker.throttled(circuit, 101.0, 60.0), 102.0, probe="me")
    assert circuit.is_spotless
    assert breaker.wait(circuit, 102.0) == 59.0


@pytest.mark.parametrize(
    ("attempt", "asked", "rest"),
    [
        (1, None, 5.0),
        (2, None, 60.0),
        # The last one is followed by no delay of its own.
        (3, None, 60.0),
        (9, None, 60.0),
        (1, 7.0, 7.0),
        (9, 300.0, 300.0),
        (1, 1e9, 1000.0),
        (1, math.inf, 1000.0),
        (1, -3.0, 0.0),
        (1, math.nan, 5.0),
    ],
)
def test_an_endpoint_is_spared_as_long_as_it_asks_or_a_minute_at_most(attempt, asked, rest) -> None:
    policy = RetryPolicy(schedule=(5, 300, 7200), max_retry_after=1000)
    assert policy.rest(attempt, most=60.0, retry_after=asked) == rest


def test_without_a_schedule_an_endpoint_is_spared_only_if_it_asks() -> None:
    policy = RetryPolicy(schedule=())
    assert policy.rest(1, most=60.0) == 0.0
    assert policy.rest(1, most=60.0, retry_after=9.0) == 9.0


@given(st.lists(st.sampled_from(["ok", "fail", "probe", "gone", "redrive", "spare"]), max_size=40))
def test_a_breaker_never_leaves_its_table(steps) -> None:
    allowed = {
        ("closed", "closed"), ("closed", "open"), ("open", "open"), ("open", "half_open"),
        ("half_open", "half_open"), ("half_open", "closed"), ("half_open", "open"),
        ("half_open", "disabled"), ("disabled", "disabled"), ("disabled", "closed"),
        ("closed", "disabled"), ("open", "disabled"),
    }  # fmt: skip
    breaker = CircuitBreaker(failures=2, disable_after=2)
    circuit, now = Circuit(), 0.0
    for step in steps:
        before = circuit
        now += 1
        if step == "ok":
            circuit = breaker.succeeded(circuit, now, probe=circuit.probe)
        elif step == "fail":
            circuit = breaker.failed(circuit, now, chance=0.5, probe=circuit.probe)
        elif step == "gone":
            circuit = breaker.disabled(circuit, now, "Gone")
        elif step == "spare":
            circuit = breaker.throttled(circuit, now, 7.0)
        elif step == "redrive":
            circuit = breaker.succeeded(circuit, now, redriven=True, probe="nobody")
        elif circuit.phase in {"open", "half_open"}:
            now += breaker.wait(circuit, now)
            circuit = breaker.try_out(circuit, now, probe=str(now), lease=5)
        assert (before.phase, circuit.phase) in allowed


def test_a_circuit_never_changes() -> None:
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        Circuit().failures = 3  # type: ignore[misc]


# Rates.


@given(
    per_second=st.floats(0.1, 2000),
    pauses=st.lists(st.floats(0, 0.5), min_size=1, max_size=200),
)
def test_in_any_time_there_are_no_more_requests_than_the_rate_and_one_burst(
    per_second, pauses
) -> None:
    limit = RateLimit(per_second)
    now, full_at = 1000.0, -math.inf
    sent: list[float] = []
    for pause in pauses:
        now += pause
        if limit.wait(full_at, now) == 0:
            full_at = limit.take(full_at, now)
            sent.append(now)
    for first, begin in enumerate(sent):
        for last in range(first, len(sent)):
            time = sent[last] - begin
            assert last - first + 1 <= per_second * time + limit.burst + 1e-3


@given(per_second=st.floats(0.1, 2000), requests=st.integers(1, 100))
def test_whoever_waits_as_told_is_let_through(per_second, requests) -> None:
    limit = RateLimit(per_second)
    now, full_at = 0.0, -math.inf
    for _ in range(requests):
        now += limit.wait(full_at, now)
        assert limit.wait(full_at, now) < 1e-9
        full_at = limit.take(full_at, now)
    assert now <= requests * limit.interval


# Batches.


def test_batches_have_defaults() -> None:
    batching = Batching()
    assert (batching.max_events, batching.max_bytes, batching.max_delay) == (50, 1_048_576, 1.0)
