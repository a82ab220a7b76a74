"""Waking many tasks that wait, with one call per event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from callbackkit.buffer import Waiter, _AsyncioWaiter, _TrioWaiter, new_waiter

__all__ = ["Place", "call_there", "place_here", "wake_all"]

Place = Any
"""An event loop of asyncio, or the token of a run of trio."""


def wake_all(waiters: Iterable[Waiter]) -> None:
    """Wake many who wait, with one call per event loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
    by_run: dict[Any, list[Callable[[], None]]] = {}
    for waiter in waiters:
        if isinstance(waiter, _AsyncioWaiter):
            futures = by_loop.get(waiter._loop)
            if futures is None:
                futures = by_loop[waiter._loop] = []
            futures.append(waiter._future)
        elif isinstance(waiter, _TrioWaiter):
            by_run.setdefault(waiter._token, []).append(waiter._event.set)
        else:
            waiter.wake()
    # One that is closed: nobody waits there any more.
    for loop, futures in by_loop.items():
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(_settle_all, futures)
    for token, calls in by_run.items():
        with suppress(RuntimeError):
            token.run_sync_soon(_call_all, calls)


def _settle_all(futures: Iterable[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)


def _call_all(calls: Iterable[Callable[[], None]]) -> None:
    for call in calls:
        call()


def place_here() -> Place | None:
    """Return the event loop that runs in this thread, or ``None``."""
    try:
        waiter = new_waiter()
    except (ImportError, RuntimeError):
        return None
    if isinstance(waiter, _AsyncioWaiter):
        return waiter._loop
    return waiter._token if isinstance(waiter, _TrioWaiter) else None


def call_there(place: Place, call: Callable[[], object]) -> bool:
    """Have an event loop call something soon; ``False`` if it has ended."""
    soon = (
        place.call_soon_threadsafe
        if isinstance(place, asyncio.AbstractEventLoop)
        else place.run_sync_soon
    )
    try:
        soon(call)
    except RuntimeError:
        return False
    return True
