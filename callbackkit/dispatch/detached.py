"""A task that belongs to no task group, and waiting for its end whatever comes."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from typing import Any

import anyio

from callbackkit.dispatch.concurrency import on_asyncio

__all__ = ["detach", "wait_for_end"]


def detach(run: Callable[[], Coroutine[Any, Any, None]], ended: Callable[[], None]) -> object:
    """Run a function in a task of its own, with a copy of the context; return what to hold on to.

    Args:
        run: The function; it handles its errors itself.
        ended: Called when the task has ended, also if it was cancelled before its first step and
            so ran none of *run*. May be called more than once.

    Returns:
        Something to keep as long as the task runs: an event loop holds its tasks weakly.
    """
    if on_asyncio():
        task = asyncio.create_task(run())
        task.add_done_callback(lambda _: ended())
        return task
    import trio

    return trio.lowlevel.spawn_system_task(run, context=contextvars.copy_context())


async def wait_for_end(done: anyio.Event) -> None:
    """Wait for an event; a cancellation is kept back until it has come."""
    cancellation: BaseException | None = None
    while not done.is_set():
        try:
            with anyio.CancelScope(shield=True):
                await done.wait()
        except anyio.get_cancelled_exc_class() as exc:
            # Of asyncio's own, which no shield keeps off.
            cancellation = exc
    if cancellation is not None:
        raise cancellation
