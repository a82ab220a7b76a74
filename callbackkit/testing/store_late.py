"""What somebody may try with a claim that he has lost, and that none of it does anything."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from callbackkit.errors import LeaseLostError
from callbackkit.stores.base import Claim
from callbackkit.testing.store_bench import Bench, raises, same, tried

__all__ = ["check_refused", "late_verbs"]


def late_verbs(bench: Bench, claim: Claim) -> dict[str, Callable[[], Awaitable[object]]]:
    """Return what somebody may try with a claim that he has lost."""
    store = bench.store
    attempt = tried(2)
    seq = claim.letter.records[-1].seq if claim.letter else 1
    return {
        "ack": lambda: store.ack(claim, seq, attempt),
        "ack and hold on": lambda: store.ack(claim, seq, attempt, lease=bench.period),
        "retry": lambda: store.retry(claim, delay=0, attempt=attempt, bound=1),
        "renew": lambda: store.renew(claim, lease=3600, bound=1),
        "park": lambda: store.park(claim, upto=seq, letter_id="x", reason="no", attempt=attempt),
    }


async def check_refused(bench: Bench, claim: Claim, why: str) -> None:
    """See that a claim is refused, and that nothing is changed by it."""
    before = await _state(bench, claim.session_id)
    for name, verb in late_verbs(bench, claim).items():
        await raises(LeaseLostError, verb(), f"a late {name}, {why}")
        same(await _state(bench, claim.session_id), before, f"the session after a late {name}")


async def _state(bench: Bench, session_id: str) -> object:
    letters = list(await bench.store.dead_letters(session_id))
    attempts = list(await bench.store.attempts(session_id))
    return await bench.store.get_session(session_id), letters, attempts
