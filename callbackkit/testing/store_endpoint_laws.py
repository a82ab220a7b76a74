"""The laws of what a store remembers of endpoints."""

from __future__ import annotations

from typing import Final

import anyio

from callbackkit.stores.base import LETTER_KEPT
from callbackkit.testing.store_bench import Bench, Law, hold, same

__all__ = ["ENDPOINT_CLOCK_LAWS", "ENDPOINT_LAWS"]


async def an_endpoint_is_saved_by_version(bench: Bench) -> None:
    """The state of an endpoint is saved by whoever knows its version, and by nobody else."""
    store = bench.store
    same(await store.load_endpoint("e"), (0, b""), "one never saved")
    hold(await store.save_endpoint("e", 0, b"one"), "the first save is taken")
    version, state = await store.load_endpoint("e")
    same(state, b"one", "its state")
    hold(version != 0, "its version has changed")
    for stale in (0, version + 1):
        hold(not await store.save_endpoint("e", stale, b"two"), f"version {stale} is refused")
    same(await store.load_endpoint("e"), (version, b"one"), "what is saved")
    same(await store.load_endpoint("f"), (0, b""), "another one")
    outcomes: list[bool] = []

    async def save(text: bytes) -> None:
        outcomes.append(await store.save_endpoint("e", version, text))

    async with anyio.create_task_group() as tasks:
        for n in range(5):
            tasks.start_soon(save, b"%d" % n)
    same(sorted(outcomes), [False] * 4 + [True], "five saves at once")


async def an_endpoint_is_forgotten(bench: Bench) -> None:
    """The state of an endpoint is forgotten :data:`LETTER_KEPT` seconds after it was saved."""
    store = bench.store
    await store.save_endpoint("old", 0, b"state")
    await store.save_endpoint("kept", 0, b"state")
    await bench.let_pass(LETTER_KEPT / 2)
    version, _ = await store.load_endpoint("kept")
    await store.save_endpoint("kept", version, b"more")
    await bench.let_pass(LETTER_KEPT / 2 + 60)
    await bench.sweep()
    same(await store.load_endpoint("old"), (0, b""), "one nobody saved")
    same((await store.load_endpoint("kept"))[1], b"more", "one saved since")


ENDPOINT_LAWS: Final[tuple[Law, ...]] = (an_endpoint_is_saved_by_version,)
ENDPOINT_CLOCK_LAWS: Final[tuple[Law, ...]] = (an_endpoint_is_forgotten,)
