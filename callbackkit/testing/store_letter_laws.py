"""The laws of dead letters: copied, listed, delivered again."""

from __future__ import annotations

from typing import Final

from callbackkit.errors import SessionDeletedError, UnknownSessionError
from callbackkit.stores.base import LETTER_KEPT, Retention, delivery_id
from callbackkit.testing.store_bench import Bench, Law, hold, raises, same, tried
from callbackkit.testing.store_late import check_refused

__all__ = ["LETTER_CLOCK_LAWS", "LETTER_LAWS"]

HOUR: Final = 3600.0


async def a_dead_letter_is_a_copy(bench: Bench) -> None:
    """Parked records are copied, the owed ones only, and the delivery goes on behind them."""
    session = await bench.pushes()
    records = await bench.add("p", 2)
    await bench.add("p", 1, owed=False)
    records += await bench.add("p", 3)
    store = bench.store
    await store.retry(await bench.claim_one(), delay=0, attempt=tried(1, "no"), bound=4)
    claim = await bench.claim_one()
    name = delivery_id("p", session.epoch, 1)
    rest = await store.park(
        claim, upto=4, letter_id=name, reason="refused", attempt=tried(2, "no"), lease=HOUR
    )
    hold(rest is not None, "the claim goes on while more is owed")
    rest = rest or claim
    same((rest.cursor, rest.attempts, rest.bound), (4, 0, None), "what comes next")
    [letter] = await store.dead_letters("p")
    seen = (letter.id, letter.session_id, letter.method, letter.epoch, letter.is_due)
    same(seen, (name, "p", "push", session.epoch, False), "the letter")
    same((letter.reason, letter.attempts), ("refused", 2), "reason and attempts")
    same(letter.records, tuple(records[:3]), "its records")
    after = await store.get_session("p")
    figures = (after.cursor, after.failed, after.delivered, after.queued)
    same(figures, (4, 3, 0, 2), "cursor, failed, delivered, queued")
    await store.ack(rest, 6, None)
    await store.trim("p", before=99)
    same(list(await store.dead_letters("p")), [letter], "letters once the log is empty")
    same(len(await store.attempts("p")), 2, "attempts")


async def dead_letters_are_listed(bench: Bench) -> None:
    """Dead letters are listed, the oldest first, page by page."""
    await bench.pushes()
    await bench.add("p", 5)
    for upto, name in enumerate("dbeac", 1):
        await bench.bury(await bench.claim_one(), upto=upto, letter_id=name)
    store = bench.store
    for what, letters, wanted in (
        ("all", await store.dead_letters("p"), "dbeac"),
        ("the first two", await store.dead_letters("p", limit=2), "db"),
        ("two after one", await store.dead_letters("p", after="b", limit=2), "ea"),
        ("after the last", await store.dead_letters("p", after="c"), ""),
    ):
        same("".join(letter.id for letter in letters), wanted, f"dead letters: {what}")
    same(list(await bench.claim()), [], "what is due")


async def _two_letters(bench: Bench) -> None:
    await bench.pushes()
    await bench.add("p", 4)
    await bench.bury(await bench.claim_one(), upto=1, letter_id="a")
    await bench.bury(await bench.claim_one(), upto=3, letter_id="b")


async def an_overflow_settles_what_is_held(bench: Bench) -> None:
    """What becomes a dead letter because too much is owed is settled: its holder is refused."""
    await bench.pushes(retention=Retention(max_events=1), max_pending=2)
    await bench.add("p", 2)
    claim = await bench.claim_one(lease=HOUR)
    await bench.add("p")
    await check_refused(bench, claim, "given up meanwhile")
    new = await bench.claim_one()
    same((new.cursor, new.attempts, new.bound), (1, 0, None), "what comes next, at once")


async def a_letter_is_redriven(bench: Bench) -> None:
    """A redriven letter falls due beside the rest, tries counted anew; delivered, it is gone."""
    await _two_letters(bench)
    store = bench.store
    same(await store.redrive("p", ["b", "unknown"]), 1, "how many are redriven")
    marks = [(letter.id, letter.is_due) for letter in await store.dead_letters("p")]
    same(marks, [("a", False), ("b", True)], "which are due")
    claims = await bench.claim()
    same(len(claims), 2, "what is due: the rest and the letter")
    [claim] = [each for each in claims if each.letter]
    letter = claim.letter
    hold(letter is not None and letter.id == "b", "the letter is claimed", letter)
    seen = (claim.session_id, claim.method, claim.attempts, claim.cursor)
    same(seen, ("p", "push", 0, 1), "the claim")
    same([each.seq for each in letter.records] if letter else [], [2, 3], "its records")
    same(await store.ack(claim, 3, tried(1), lease=HOUR), None, "what its end gives")
    same([each.id for each in await store.dead_letters("p")], ["a"], "letters that are left")
    session = await store.get_session("p")
    figures = (session.delivered, session.failed, session.queued, session.cursor)
    same(figures, (2, 1, 1, 3), "delivered, failed, queued and cursor")
    same(await store.redrive("p"), 1, "how many are redriven without names")


async def a_letter_is_put_off(bench: Bench) -> None:
    """A redriven letter has leases, delays and tries as anything that is owed."""
    await _two_letters(bench)
    store = bench.store
    await store.ack(await bench.claim_one(), 4, None)
    await store.redrive("p", ["a"])
    claim = await bench.claim_one(lease=bench.period)
    begun = bench.now()
    claims = await bench.claim()
    if bench.now() - begun < bench.period:
        same(list(claims), [], "claims while it is held")
    await bench.let_pass(bench.period)
    new = claims[0] if claims else await bench.claim_one(lease=HOUR)
    hold(new.fence > claim.fence, "the fence is higher")
    await check_refused(bench, claim, "the letter taken over")
    begun = bench.now()
    await store.retry(new, delay=bench.period, attempt=tried(1, "no"))
    claims = await bench.claim()
    if bench.now() - begun < bench.period:
        same(list(claims), [], "claims before its delay is over")
    await bench.let_pass(bench.period)
    new = claims[0] if claims else await bench.claim_one()
    same(new.attempts, 1, "its tries")
    same(new.letter.id if new.letter else None, "a", "the letter")


async def a_letter_stays_dead(bench: Bench) -> None:
    """A letter that fails again stays, is not due, and can be redriven again."""
    await _two_letters(bench)
    store = bench.store
    await store.ack(await bench.claim_one(), 4, None)
    for _ in range(2):
        same(await store.redrive("p", ["a"]), 1, "how many are redriven")
        claim = await bench.claim_one(lease=HOUR)
        same(claim.attempts, 0, "its tries")
        same(await bench.bury(claim, upto=1, letter_id="other"), None, "what parking it gives")
        marks = [(letter.id, letter.is_due) for letter in await store.dead_letters("p")]
        same(marks, [("a", False), ("b", False)], "the letters")
        same(list(await bench.claim()), [], "what is due")
        await check_refused(bench, claim, "the letter parked")
    session = await store.get_session("p")
    same((session.failed, session.delivered), (3, 1), "failed and delivered")


async def letters_outlive_their_session(bench: Bench) -> None:
    """Dead letters of a session that time removed are listed and redriven, for so long."""
    await _two_letters(bench)
    store = bench.store
    await store.ack(await bench.claim_one(), 4, None)
    await store.end_session("p", linger=10)
    await bench.let_pass(20)
    same(await bench.sweep(), ["p"], "sessions that can't be read any more")
    await raises(SessionDeletedError, store.read("p"), "reading it")
    await bench.let_pass(LETTER_KEPT - 100)
    await bench.sweep()
    same([each.id for each in await store.dead_letters("p")], ["a", "b"], "its letters")
    same(await store.redrive("p", ["b"]), 1, "how many are redriven")
    await store.ack(await bench.claim_one(), 3, tried(1))
    totals = await store.totals()
    same((totals.delivered, totals.failed), (3, 1), "delivered and failed")
    await bench.let_pass(200)
    await bench.sweep()
    await raises(UnknownSessionError, store.dead_letters("p"), "its letters in the end")
    totals = await store.totals()
    same((totals.delivered, totals.failed), (3, 1), "delivered and failed in the end")


async def a_delay_outlives_an_overflow(bench: Bench) -> None:
    """A delay goes on though older records become dead letters; tries then begin anew."""
    await bench.pushes(retention=Retention(max_events=1), max_pending=2)
    await bench.add("p", 2)
    await bench.store.retry(await bench.claim_one(), delay=HOUR, attempt=tried(1, "no"), bound=2)
    await bench.add("p", 2)
    same((await bench.store.get_session("p")).failed, 2, "failed")
    same(list(await bench.claim()), [], "what is due before the delay is over")
    await bench.let_pass(HOUR)
    claim = await bench.claim_one()
    same((claim.cursor, claim.attempts, claim.bound), (2, 0, None), "what is due then")


LETTER_LAWS: Final[tuple[Law, ...]] = (
    a_dead_letter_is_a_copy,
    dead_letters_are_listed,
    an_overflow_settles_what_is_held,
    a_letter_is_redriven,
    a_letter_is_put_off,
    a_letter_stays_dead,
)
LETTER_CLOCK_LAWS: Final[tuple[Law, ...]] = (
    letters_outlive_their_session,
    a_delay_outlives_an_overflow,
)
