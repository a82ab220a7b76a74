"""The laws of a store whose clock is turned back while something runs."""

from __future__ import annotations

from typing import Final

from callbackkit.stores.base import Retention
from callbackkit.testing.store_bench import Bench, Law, body, hold, same, tried

__all__ = ["TURNED_CLOCK_LAWS"]

HOUR: Final = 3600.0


async def a_clock_turned_back_changes_nothing(bench: Bench) -> None:
    """The clock goes an hour back: leases, delays and ends come when they would have come."""
    clock = bench.clock
    for name in ("leased", "delayed"):
        await bench.pushes(name)
        await bench.add(name)
    await bench.reads("idle", ttl=60)
    await bench.reads("ended")
    await bench.store.end_session("ended", linger=60)
    claims = {claim.session_id: claim for claim in await bench.claim(lease=60)}
    await bench.store.retry(claims["delayed"], delay=60, attempt=tried(1))
    await bench.add("leased")
    if clock:
        clock.turn_back(HOUR)
    same(await bench.sweep(), [], "sessions that went at once")
    await bench.let_pass(30)
    same(list(await bench.claim()), [], "what is due after half of it")
    same(await bench.sweep(), [], "sessions that went after half of it")
    await bench.let_pass(40)
    gone = await bench.sweep()
    same(sorted(gone), ["ended", "idle"], "sessions that went after all of it")
    due = sorted(claim.session_id for claim in await bench.claim())
    same(due, ["delayed", "leased"], "what is due after all of it")


async def times_rise_on_a_clock_turned_back(bench: Bench) -> None:
    """The clock goes an hour back: records keep rising times, and are dropped no earlier."""
    await bench.reads(retention=Retention(max_age=600))
    await bench.add("r")
    if bench.clock:
        bench.clock.turn_back(HOUR)
    await bench.add("r", 2)
    await bench.reads("new", retention=Retention(max_age=600))
    await bench.add("new", 3)
    await bench.sweep()
    times = [record.at for record in await bench.kept("r")]
    same(times, sorted(set(times)), "times of the records")
    same(await bench.numbers("r"), [1, 2, 3], "what is kept of the old session")
    same(await bench.numbers("new"), [1, 2, 3], "what is kept of the new session")
    await bench.let_pass(700)
    await bench.sweep()
    same(await bench.numbers("new"), [3], "what is kept of the new session, once old")
    again = await bench.store.append("new", "progress", body(1), key="k")
    hold(again.is_new, "it goes on")


async def renewals_hold_on_a_clock_turned_back(bench: Bench) -> None:
    """The clock goes an hour back while a claim is held: its holder can settle it."""
    await bench.pushes()
    await bench.add("p", 2)
    claim = await bench.claim_one(lease=60)
    if bench.clock:
        bench.clock.turn_back(HOUR)
    claim = await bench.store.renew(claim, lease=60)
    same(list(await bench.claim()), [], "what is due meanwhile")
    await bench.store.ack(claim, 1, tried(1))
    same((await bench.claim_one()).cursor, 1, "what is due at once")
    same((await bench.store.totals()).delivered, 1, "delivered")


TURNED_CLOCK_LAWS: Final[tuple[Law, ...]] = (
    a_clock_turned_back_changes_nothing,
    times_rise_on_a_clock_turned_back,
    renewals_hold_on_a_clock_turned_back,
)
