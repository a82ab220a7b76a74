"""Synchronous and async callbacks on one event, awaited, cancelled and limited in time."""

import asyncio
import threading
from contextvars import ContextVar
from time import perf_counter
from typing import Any

from tests.comparison.libraries.base import Library
from tests.comparison.verdicts import STOPS, Verdict, judged

BLOCKED = 1.5
"""Seconds a blocking callback blocks."""


async def sync_and_async(library: Library) -> Verdict:
    """A synchronous and an async callback listen to one event.

    One awaited call calls both and returns when both are done.
    """
    done: list[str] = []

    def plain(*args: Any, **kwargs: Any) -> None:
        done.append("plain")

    async def suspends(*args: Any, **kwargs: Any) -> None:
        await asyncio.sleep(0.01)
        done.append("async")

    library.connect(plain)
    library.connect(suspends)
    if library.waits:
        await library.asend()
    else:
        library.send()
    return judged(
        (
            sorted(done) == ["async", "plain"],
            "does not wait",
            "the async callback goes to a queue, and nothing tells when it is done",
        ),
    )


async def async_object(library: Library) -> Verdict:
    """A callable object has an async `__call__`.

    What the call returns is awaited.
    """
    done: list[str] = []

    class Async:
        async def __call__(self, *args: Any, **kwargs: Any) -> None:
            done.append("async")

    library.connect(Async())
    await library.asend()
    return judged((done == ["async"], "never runs it", "the coroutine is dropped unawaited"))


async def order_of_registration(library: Library) -> Verdict:
    """A hundred callbacks are registered, synchronous and async in turn.

    They begin in order of registration.
    """
    called: list[int] = []

    def plain(number: int) -> Any:
        def callback(*args: Any, **kwargs: Any) -> None:
            called.append(number)

        return callback

    def asynchronous(number: int) -> Any:
        async def callback(*args: Any, **kwargs: Any) -> None:
            called.append(number)

        return callback

    # A hundred, as a few may come in order by luck where order follows addresses.
    for number in range(100):
        library.connect(asynchronous(number) if number % 2 else plain(number))
    await library.asend()
    kinds = [number % 2 for number in called]
    by_kind = kinds == sorted(kinds)
    said = "synchronous ones first, then the async ones" if by_kind else "in no certain order"
    return judged((called == list(range(100)), "reorders", said))


async def real_cancellation(library: Library) -> Verdict:
    """The sender is cancelled by `asyncio.wait_for` while an async callback waits.

    The callback is cancelled with it.
    """
    ended = asyncio.Event()

    async def waits(*args: Any, **kwargs: Any) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    library.connect(waits)
    try:
        await asyncio.wait_for(library.asend(), 0.05)
    except TimeoutError:
        pass
    else:
        return Verdict("swallows it", "the sender goes on as if nothing had happened")
    return judged((ended.is_set(), "keeps running", "the callback runs on without its sender"))


async def blocking_callback(library: Library) -> Verdict:
    """A synchronous callback blocks for 1.5 seconds; the sender gives up after 0.5.

    The event loop goes on, the next callback is called, the sender is back in time.
    """
    released = threading.Event()
    called: list[str] = []

    def blocks(*args: Any, **kwargs: Any) -> None:
        released.wait(BLOCKED)

    async def after(*args: Any, **kwargs: Any) -> None:
        called.append("after")

    library.connect_limited(blocks, 0.05)
    library.connect(after)
    pauses: list[float] = []
    beating = asyncio.create_task(_beat(pauses))
    await asyncio.sleep(0.01)
    began = perf_counter()
    try:
        await asyncio.wait_for(library.asend(), 0.5)
    except TimeoutError:
        pass
    took = perf_counter() - began
    await asyncio.sleep(0.02)
    beating.cancel()
    released.set()
    return judged(
        (max(pauses) < BLOCKED / 2, "blocks the loop", "the event loop stands until it is back"),
        (took < BLOCKED / 2, "waits for it", "the sender waits until it is back"),
        (called == ["after"], STOPS, "the sender gives up on the next callback, too"),
    )


async def _beat(pauses: list[float]) -> None:
    """Note how long the event loop takes from one turn to another."""
    last = perf_counter()
    while True:
        await asyncio.sleep(0.005)
        now = perf_counter()
        pauses.append(now - last)
        last = now


async def context_variables(library: Library) -> Verdict:
    """The sender sets a context variable.

    Synchronous and async callbacks see it.
    """
    tenant = ContextVar("tenant", default="nobody")
    seen: dict[str, str] = {}

    def plain(*args: Any, **kwargs: Any) -> None:
        seen["plain"] = tenant.get()

    async def asynchronous(*args: Any, **kwargs: Any) -> None:
        seen["async"] = tenant.get()

    library.connect(plain)
    library.connect(asynchronous)
    tenant.set("ada")
    await library.asend()
    return judged(
        (seen.get("plain") == "ada", "loses it", "synchronous callbacks do not see it"),
        (seen.get("async") == "ada", "loses it", "async callbacks do not see it"),
    )


PROBES = (
    sync_and_async,
    async_object,
    order_of_registration,
    real_cancellation,
    blocking_callback,
    context_variables,
)
