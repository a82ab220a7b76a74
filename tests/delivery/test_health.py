"""How an endpoint does, put together of its breaker and the attempts of a session."""

from datetime import UTC, datetime, timedelta
from typing import Any

import attrs
import pytest

from callbackkit.delivery.health import EndpointHealth, health_of
from callbackkit.delivery.policy import Circuit, CircuitBreaker
from callbackkit.stores.base import Attempt
from callbackkit.stores.memory import MemoryStore
from tests.delivery.rig import Config, Told

NOW = 1_000_000.0


def at(seconds: float) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)


class Remembering(MemoryStore):
    """Has the attempts that it is given."""

    def __init__(self, *attempts: Attempt) -> None:
        super().__init__()
        self.given = attempts

    async def attempts(self, session_id: str) -> tuple[Attempt, ...]:
        del session_id
        return self.given


def tried(number: int, duration: float, error: str = "") -> Attempt:
    return Attempt(
        delivery_id="d", number=number, at=NOW + number, duration=duration, events=1, error=error
    )


async def look(
    *attempts: Attempt, breaker: CircuitBreaker | None = None, **circuit: Any
) -> EndpointHealth:
    store = Remembering(*attempts)
    if circuit:
        await store.save_endpoint("told:s", 0, Circuit(**circuit).to_json())
    return await health_of(store, Told(breaker=breaker), "s", Config(), now=NOW)


async def test_of_an_endpoint_that_was_never_sent_to_nothing_bad_is_known() -> None:
    assert await look() == EndpointHealth(
        name="told:s",
        phase="closed",
        is_healthy=True,
        failures=0,
        reason="",
        retry_at=None,
        attempts=0,
        failed_attempts=0,
        p50=None,
        p95=None,
        last_success_at=None,
        last_failure_at=None,
    )


async def test_attempts_are_summed_up() -> None:
    attempts = [tried(n, n / 10, "HTTP 500" if n in {3, 7} else "") for n in range(1, 21)]
    health = await look(*attempts)
    assert (health.attempts, health.failed_attempts) == (20, 2)
    assert (health.p50, health.p95) == (1.0, 1.9)
    assert (health.last_success_at, health.last_failure_at) == (at(NOW + 20), at(NOW + 7))


async def test_half_of_three_attempts_are_two() -> None:
    health = await look(tried(1, 0.3), tried(2, 0.1), tried(3, 0.2))
    assert (health.p50, health.p95) == (0.2, 0.3)


async def test_one_attempt_is_every_part_of_all() -> None:
    health = await look(tried(1, 0.25, "HTTP 500"))
    assert (health.p50, health.p95) == (0.25, 0.25)
    assert (health.last_success_at, health.last_failure_at) == (None, at(NOW + 1))


@pytest.mark.parametrize("breaker", [CircuitBreaker(), None], ids=["breaker", "none"])
@pytest.mark.parametrize(
    ("circuit", "is_healthy", "retry_at"),
    [
        ({"failures": 2}, False, None),
        ({"resumes_at": NOW + 30, "rests": 60.0}, False, at(NOW + 30)),
        ({"resumes_at": NOW - 1, "rests": 60.0}, True, None),
        ({"phase": "open", "until": NOW + 9, "lasts": 30.0, "failures": 5}, False, at(NOW + 9)),
        ({"phase": "open", "until": NOW - 9, "lasts": 30.0}, False, None),
        ({"phase": "half_open", "until": NOW + 9, "lasts": 20.0}, False, at(NOW + 9)),
        ({"phase": "disabled", "reason": "Gone: HTTP 410"}, False, None),
    ],
    ids=["failed", "spared", "was spared", "open", "was open", "tried out", "disabled"],
)
async def test_the_breaker_tells_when_it_will_be_sent_to_again(
    breaker, circuit, is_healthy, retry_at
) -> None:
    health = await look(breaker=breaker, **circuit)
    assert (health.is_healthy, health.retry_at) == (is_healthy, retry_at)
    assert health.phase == circuit.get("phase", "closed")
    assert health.reason == circuit.get("reason", "")
    assert health.failures == circuit.get("failures", 0)


async def test_a_time_beyond_all_calendars_is_told_as_their_last_second() -> None:
    health = await look(resumes_at=1e300, rests=1e300)
    assert health.retry_at == datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)


async def test_a_state_that_was_broken_is_that_of_an_unknown_endpoint() -> None:
    store = Remembering()
    await store.save_endpoint("told:s", 0, b'{"phase":"melted"}')
    assert (await health_of(store, Told(), "s", Config(), now=NOW)).is_healthy


async def test_a_health_never_changes() -> None:
    health = await look()
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        health.failures = 3  # type: ignore[misc]
