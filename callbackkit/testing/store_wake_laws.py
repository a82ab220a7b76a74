"""The laws of a store's wakes: whoever waits for a change is told."""

from __future__ import annotations

from typing import Final

import anyio
import anyio.abc

from callbackkit.stores.base import Watch
from callbackkit.testing.store_bench import Bench, Law, hold

__all__ = ["WAKE_LAWS"]

# So long that it does not end while a law is checked.
_LONG: Final = 1000.0


async def _is_woken(bench: Bench, watch: Watch, what: str) -> None:
    hold(await watch.wait(bench.patience), f"it is woken by {what}")


async def a_change_wakes(bench: Bench) -> None:
    """Who watches is woken by an append, an end and a deletion, though he waits only after."""
    for change in ("append", "end", "deletion"):
        await bench.reads(change)
        with bench.store.watch(change) as watch:
            await _change(bench, change)
            await _is_woken(bench, watch, f"an {change} before it waits")


async def a_change_wakes_who_waits(bench: Bench) -> None:
    """Everybody who waits for a session is woken by each append, end and deletion."""
    for change in ("append", "end", "deletion"):
        await bench.reads(change)
        async with anyio.create_task_group() as tasks:
            for _ in range(2):
                await tasks.start(_wait_for_one, bench, change)
            await anyio.wait_all_tasks_blocked()
            await _change(bench, change)


async def _wait_for_one(
    bench: Bench, change: str, *, task_status: anyio.abc.TaskStatus[None]
) -> None:
    with bench.store.watch(change) as watch:
        task_status.started()
        await _is_woken(bench, watch, f"an {change} while it waits")


async def _change(bench: Bench, change: str) -> None:
    if change == "append":
        await bench.add(change)
    elif change == "end":
        await bench.store.end_session(change, linger=_LONG)
    else:
        await bench.store.delete_session(change, linger=_LONG)


async def a_ring_tells_how_far_the_log_goes(bench: Bench) -> None:
    """A ring has the number of the newest record, or none; what is more than an append has none."""
    rings: list[int | None] = []
    for change in ("append", "end", "deletion"):
        await bench.reads(change)
        rings.clear()
        with bench.store.watch(change) as watch:
            watch.on_ring = rings.append
            await _change(bench, change)
            await _is_woken(bench, watch, f"an {change}")
        known = {1, None} if change == "append" else {None}
        hold(
            bool(rings) and set(rings) <= known,
            f"an {change} of record 1 rings {known}, not {rings}",
        )


async def what_falls_due_wakes(bench: Bench) -> None:
    """Who waits for deliveries is woken when an append, a settling or a redrive makes one due."""
    await bench.pushes()
    store = bench.store
    with store.watch(None) as watch:
        await bench.add("p", 3)
        await _is_woken(bench, watch, "an append")
    claim = await bench.claim_one()
    with store.watch(None) as watch:
        await store.ack(claim, 1, None)
        await _is_woken(bench, watch, "an acknowledgement that leaves more")
    claim = await bench.claim_one()
    with store.watch(None) as watch:
        await store.retry(claim, delay=0, attempt=None)
        await _is_woken(bench, watch, "a retry without a delay")
    await bench.bury(await bench.claim_one(), upto=3)
    with store.watch(None) as watch:
        await store.redrive("p")
        await _is_woken(bench, watch, "a redrive")


WAKE_LAWS: Final[tuple[Law, ...]] = (
    a_change_wakes,
    a_change_wakes_who_waits,
    a_ring_tells_how_far_the_log_goes,
    what_falls_due_wakes,
)
