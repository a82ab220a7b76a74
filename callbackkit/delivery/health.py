"""How a session's endpoint does: its breaker, and what became of the last attempts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

import attrs

from callbackkit.delivery.policy import Circuit, CircuitBreaker, Phase
from callbackkit.delivery.transport import DeliveryConfig, Transport
from callbackkit.stores.base import Attempt, Store

__all__ = ["EndpointHealth", "health_of"]

# The last second that a datetime can tell.
_LATEST: Final = 253_402_300_799.0


@attrs.frozen(kw_only=True)
class EndpointHealth:
    """How the endpoint of a session does.

    The phase and what belongs to it are those of the endpoint, whichever sessions it has. What is
    told of attempts is about this session, and no more than the store remembers of them.

    Attributes:
        name: What it is called; no secret.
        phase: ``"closed"``: it is sent to; ``"open"``: it failed too often and is left alone for a
            while; ``"half_open"``: one delivery tries it out; ``"disabled"``: nothing is sent to
            it.
        is_healthy: It is sent to, and what was sent last did not fail.
        failures: Failures in a row, up to the last time it was left alone.
        reason: Why it is disabled; ``""`` if it is not.
        retry_at: When it will be sent to again, UTC; ``None`` if that is now, or never.
        attempts: How many of the last attempts there are to tell of.
        failed_attempts: How many of them failed.
        p50: Seconds that half of them took no longer than; ``None`` if there were none.
        p95: Seconds that 19 of 20 took no longer than.
        last_success_at: When the last one that worked began, UTC.
        last_failure_at: When the last one that failed began, UTC.
    """

    name: str
    phase: Phase
    is_healthy: bool
    failures: int
    reason: str
    retry_at: datetime | None
    attempts: int
    failed_attempts: int
    p50: float | None
    p95: float | None
    last_success_at: datetime | None
    last_failure_at: datetime | None


async def health_of(
    store: Store, transport: Transport, session_id: str, config: DeliveryConfig, *, now: float
) -> EndpointHealth:
    """Look up how the endpoint of a session does.

    Args:
        store: Where its state is.
        transport: What delivers the session.
        session_id: The session.
        config: What its client asked for.
        now: Seconds since 1970, by the clock that deliveries go by.
    """
    name = transport.endpoint(session_id, config)
    _, state = await store.load_endpoint(name)
    circuit = Circuit.from_json(state)
    wait = (transport.breaker or CircuitBreaker()).wait(circuit, now)
    attempts = await store.attempts(session_id)
    failed = [each for each in attempts if each.error]
    durations = sorted(each.duration for each in attempts)
    return EndpointHealth(
        name=name,
        phase=circuit.phase,
        is_healthy=circuit.is_spotless and wait == 0,
        failures=circuit.failures,
        reason=circuit.reason,
        retry_at=_time(now + wait) if 0 < wait < math.inf else None,
        attempts=len(attempts),
        failed_attempts=len(failed),
        p50=_quantile(durations, 0.50),
        p95=_quantile(durations, 0.95),
        last_success_at=_last([each for each in attempts if not each.error]),
        last_failure_at=_last(failed),
    )


def _quantile(ascending: Sequence[float], part: float) -> float | None:
    """Return the least of some numbers that such a part of them is not above (nearest rank)."""
    if not ascending:
        return None
    return ascending[math.ceil(part * len(ascending)) - 1]


def _last(attempts: Sequence[Attempt]) -> datetime | None:
    return _time(max(each.at for each in attempts)) if attempts else None


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(min(seconds, _LATEST), UTC)
