"""The laws of what a store owes: claimed with a lease, settled once, never forgotten."""

from __future__ import annotations

from typing import Final

from callbackkit.errors import LeaseLostError
from callbackkit.stores.base import MOST_ATTEMPTS
from callbackkit.testing.store_bench import Bench, Law, hold, raises, same, tried
from callbackkit.testing.store_late import check_refused, late_verbs

__all__ = ["DELIVERY_LAWS"]

HOUR: Final = 3600.0


# Claiming.


async def what_is_owed_is_claimed(bench: Bench) -> None:
    """A claim says what is owed to whom, and how often it was tried."""
    session = await bench.pushes(config=b'{"a":1}')
    await bench.add("p", 3)
    claim = await bench.claim_one()
    same((claim.session_id, claim.method, claim.config), ("p", "push", b'{"a":1}'), "whom")
    same((claim.epoch, claim.cursor, claim.letter), (session.epoch, 0, None), "what")
    same((claim.attempts, claim.bound), (0, None), "attempts and bound")


async def nothing_else_is_claimed(bench: Bench) -> None:
    """Nothing is due where nothing is owed, and of another method nothing is claimed."""
    await bench.pushes()
    await bench.add("p", 2, owed=False)
    await bench.reads("r", method="push")
    await bench.add("r", 2)
    found = await bench.store.claim(methods=["push"], limit=10, lease=bench.period)
    same((list(found.claims), found.next_in), ([], None), "claims and next_in")
    await bench.pushes("other", method="mail")
    await bench.add("other")
    found = await bench.store.claim(methods=["push"], limit=10, lease=bench.period)
    same((list(found.claims), found.next_in), ([], None), "claims and next_in of one method")
    both = await bench.claim(methods=["push", "mail"])
    same([claim.session_id for claim in both], ["other"], "claims of both methods")


async def claims_are_limited(bench: Bench) -> None:
    """So many are claimed at most; it is told when more falls due."""
    for name in ("a", "b", "c"):
        await bench.pushes(name)
        await bench.add(name)
    begun = bench.now()
    first = await bench.store.claim(methods=["push"], limit=2, lease=bench.period)
    same((len(first.claims), first.next_in), (2, 0), "claims and next_in")
    second = await bench.store.claim(methods=["push"], limit=2, lease=bench.period)
    claimed = sorted(claim.session_id for claim in (*first.claims, *second.claims))
    if bench.now() - begun < bench.period:
        same(claimed, ["a", "b", "c"], "all that was claimed")
    next_in = second.next_in
    hold(
        next_in is not None and 0 <= next_in <= bench.period,
        "more falls due when a lease is over",
        next_in,
    )


async def it_is_told_when_the_next_falls_due(bench: Bench) -> None:
    """Of several methods, it is told when the first of them has something due."""
    for name, delay in (("late", 3600.0), ("soon", bench.period), ("later", 7200.0)):
        await bench.pushes(name, method=name)
        await bench.add(name)
        [claim] = await bench.claim(methods=[name])
        await bench.store.retry(claim, delay=delay, attempt=None)
    methods = ["late", "soon", "later"]
    found = await bench.store.claim(methods=methods, limit=1, lease=bench.period)
    next_in = found.next_in
    hold(
        bool(found.claims) or (next_in is not None and 0 <= next_in <= bench.period),
        "the soonest counts",
        next_in,
    )


async def a_lease_holds(bench: Bench) -> None:
    """What is claimed is not due again before its lease is over, and is then, with more right."""
    await bench.pushes()
    await bench.add("p", 2)
    begun = bench.now()
    old = await bench.claim_one()
    await bench.let_pass(bench.period * 0.6)
    claims = await bench.claim()
    if bench.now() - begun < bench.period:
        same(list(claims), [], "claims while the lease holds")
        await bench.let_pass(bench.period * 0.6)
        claims = await bench.claim()
    same(len(claims), 1, "claims when the lease is over")
    new = claims[0]
    hold(new.fence > old.fence, "the fence is higher", old.fence, new.fence)
    same((new.cursor, new.attempts), (0, 0), "cursor and attempts")


async def who_is_late_is_refused(bench: Bench) -> None:
    """Once somebody else has claimed it, whoever held the claim before changes nothing."""
    await bench.pushes()
    await bench.add("p", 3)
    old = await bench.claim_one(lease=bench.period)
    await bench.let_pass(bench.period)
    new = await bench.claim_one(lease=HOUR)
    await check_refused(bench, old, "taken over")
    same(await bench.store.ack(new, 2, None), None, "what the acknowledgement of the new one gives")
    await check_refused(bench, old, "taken over and settled")
    same((await bench.store.get_session("p")).cursor, 2, "the cursor")
    same((await bench.claim_one()).cursor, 2, "what comes next")


async def a_claim_is_settled_once(bench: Bench) -> None:
    """A claim that was acknowledged, put off or parked is over."""
    for settle in ("acknowledged", "put off", "parked"):
        await bench.pushes(settle)
        await bench.add(settle, 3)
        claim = await bench.claim_one()
        if settle == "acknowledged":
            await bench.store.ack(claim, 3, None)
        elif settle == "put off":
            await bench.store.retry(claim, delay=HOUR, attempt=None)
        else:
            await bench.bury(claim, upto=3)
        await check_refused(bench, claim, settle)


async def a_claim_of_a_deleted_session_is_lost(bench: Bench) -> None:
    """A session that is deleted in the middle of a delivery takes nothing from it any more."""
    await bench.pushes()
    await bench.add("p", 3)
    claim = await bench.claim_one()
    await bench.store.delete_session("p", linger=HOUR)
    for name, verb in late_verbs(bench, claim).items():
        await raises(LeaseLostError, verb(), name)
    same((await bench.store.totals()).expired, 3, "expired")


async def a_lease_is_renewed(bench: Bench) -> None:
    """A renewed lease holds from then on; the bound it fixes outlives whoever fixed it."""
    await bench.pushes()
    await bench.add("p", 5)
    lease = bench.period
    claim = await bench.claim_one(lease=lease)
    claim = await bench.store.renew(claim, lease=lease, bound=3)
    same((claim.bound, claim.cursor), (3, 0), "bound and cursor of the claim")
    await bench.let_pass(lease * 0.6)
    begun = bench.now()
    claim = await bench.store.renew(claim, lease=lease)
    await bench.let_pass(lease * 0.6)
    taken = await bench.claim()
    if bench.now() - begun < lease:
        same(list(taken), [], "claims while the renewed lease holds")
        await bench.let_pass(lease)
        taken = await bench.claim()
    same(
        [(each.bound, each.attempts) for each in taken], [(3, 0)], "bound and attempts, taken over"
    )


# Settling.


async def an_acknowledgement_moves_on(bench: Bench) -> None:
    """What is acknowledged is delivered, never due again, and what follows comes next."""
    await bench.pushes()
    await bench.add("p", 5)
    store = bench.store
    claim = await store.ack(await bench.claim_one(), 2, tried(1), lease=bench.period)
    hold(claim is not None, "the claim goes on while more is owed")
    claim = claim or await bench.claim_one()
    same((claim.cursor, claim.attempts, claim.bound), (2, 0, None), "what comes next")
    session = await store.get_session("p")
    figures = (session.cursor, session.delivered, session.queued)
    same(figures, (2, 2, 3), "cursor, delivered, queued")
    same(await store.ack(claim, 4, tried(1)), None, "an acknowledgement without a lease")
    claim = await bench.claim_one()
    same(claim.cursor, 4, "what is due at once for anybody")
    rest = await store.ack(claim, 5, tried(1), lease=bench.period)
    same(rest, None, "an acknowledgement of all")
    found = await store.claim(methods=["push"], limit=10, lease=bench.period)
    same((list(found.claims), found.next_in), ([], None), "what is due when all is delivered")
    same(list(await store.attempts("p")), [tried(1)] * 3, "the attempts")
    await bench.add("p")
    same((await bench.claim_one()).cursor, 5, "what comes after all was delivered")


async def holding_on_begins_a_new_lease(bench: Bench) -> None:
    """Whoever acknowledges and holds on has what follows for a new lease, from then on."""
    await bench.pushes()
    await bench.add("p", 3)
    lease = bench.period
    claim = await bench.claim_one(lease=lease)
    await bench.let_pass(lease * 0.6)
    begun = bench.now()
    await bench.store.ack(claim, 1, None, lease=lease)
    await bench.let_pass(lease * 0.6)
    taken = await bench.claim()
    if bench.now() - begun < lease:
        same(list(taken), [], "claims while the new lease holds")
        await bench.let_pass(lease)
        taken = await bench.claim()
    same([each.cursor for each in taken], [1], "what is due when it is over")


async def new_ones_wait_for_the_claim(bench: Bench) -> None:
    """What is appended while a claim is held falls due when it is settled."""
    await bench.pushes()
    await bench.add("p", 1)
    claim = await bench.claim_one(lease=HOUR)
    await bench.add("p", 2)
    same(list(await bench.claim()), [], "what is due meanwhile")
    await bench.store.ack(claim, 1, None)
    claim = await bench.claim_one()
    same(claim.cursor, 1, "what is due then")


async def a_retry_waits_without_a_lease(bench: Bench) -> None:
    """What is put off is due after its delay, for anybody, with its tries and its bound."""
    await bench.pushes()
    await bench.add("p", 4)
    store = bench.store
    claim = await bench.claim_one(lease=HOUR)
    begun = bench.now()
    await store.retry(claim, delay=bench.period, attempt=tried(1, "no"), bound=2)
    await bench.add("p")
    found = await store.claim(methods=["push"], limit=10, lease=HOUR)
    if bench.now() - begun < bench.period:
        same(list(found.claims), [], "claims before the delay is over")
        hold(
            found.next_in is not None and 0 <= found.next_in <= bench.period,
            "it is told when it falls due",
            found.next_in,
        )
        await bench.let_pass(bench.period)
        found = await store.claim(methods=["push"], limit=10, lease=HOUR)
    same([(each.attempts, each.bound) for each in found.claims], [(1, 2)], "tries and bound")
    await store.retry(found.claims[0], delay=0, attempt=tried(2, "no"))
    claim = await bench.claim_one()
    same((claim.attempts, claim.bound), (2, 2), "tries and bound after the second try")
    await store.retry(claim, delay=0, attempt=None)
    claim = await bench.claim_one()
    same(claim.attempts, 2, "tries after being put off without one")
    await store.ack(claim, 2, tried(3))
    claim = await bench.claim_one()
    same((claim.attempts, claim.bound, claim.cursor), (0, None, 2), "what comes next")
    session = await store.get_session("p")
    same((session.retries, session.delivered), (2, 2), "retries and delivered")
    numbers = [attempt.number for attempt in await store.attempts("p")]
    same(numbers, [1, 2, 3], "the attempts")


async def attempts_are_limited(bench: Bench) -> None:
    """The last :data:`MOST_ATTEMPTS` tries are remembered, the oldest first."""
    await bench.pushes()
    await bench.add("p")
    for number in range(1, MOST_ATTEMPTS + 6):
        claim = await bench.claim_one()
        await bench.store.retry(claim, delay=0, attempt=tried(number, f"error {number}"))
    same((await bench.claim_one()).attempts, MOST_ATTEMPTS + 5, "tries")
    wanted = [tried(n, f"error {n}") for n in range(6, MOST_ATTEMPTS + 6)]
    same(list(await bench.store.attempts("p")), wanted, "what is remembered")
    same((await bench.store.get_session("p")).retries, MOST_ATTEMPTS + 4, "retries")


DELIVERY_LAWS: Final[tuple[Law, ...]] = (
    what_is_owed_is_claimed,
    nothing_else_is_claimed,
    claims_are_limited,
    it_is_told_when_the_next_falls_due,
    a_lease_holds,
    who_is_late_is_refused,
    a_claim_is_settled_once,
    a_claim_of_a_deleted_session_is_lost,
    a_lease_is_renewed,
    an_acknowledgement_moves_on,
    holding_on_begins_a_new_lease,
    new_ones_wait_for_the_claim,
    a_retry_waits_without_a_lease,
    attempts_are_limited,
)
