"""Waking many tasks that wait, with one call per event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from callbackkit.buffer import Waiter, _AsyncioWaiter, _TrioWaiter

__all__ = ["wake_all"]


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
