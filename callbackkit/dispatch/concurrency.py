"""Run coroutines at the same time and wait for all of them, on asyncio or trio."""

from __future__ import annotations

import asyncio
import sys
from asyncio import CancelledError
from collections.abc import Coroutine, Sequence
from typing import Any

import anyio

from callbackkit.dispatch.nesting import Spawn

__all__ = ["on_asyncio", "run_together"]


def on_asyncio() -> bool:
    """Tell whether the caller runs in an asyncio task; in trio's guest mode it does not."""
    try:
        return asyncio.current_task() is not None
    except RuntimeError:
        return False


async def run_together(
    coroutines: Sequence[Coroutine[Any, Any, None]],
) -> list[tuple[int, CancelledError]]:
    """Run *coroutines* to their ends, each in a task with a copy of the context.

    Any exception of one ends the rest and is raised, as does cancelling the caller: no task
    outlives the call.

    Returns:
        The places of those whose task somebody cancelled, not by cancelling the caller, and how.
    """
    if not coroutines:
        return []
    try:
        with Spawn():
            return await (_run_on_asyncio if on_asyncio() else _run_in_group)(coroutines)
    except BaseException:
        # Some may not have begun.
        for coroutine in coroutines:
            coroutine.close()
        raise


# asyncio. Its tasks cost a third of those of an anyio task group, and from Python 3.12 on one
# that does not suspend never reaches the event loop (tests/benchmarks, "concurrent mode").


async def _run_on_asyncio(
    coroutines: Sequence[Coroutine[Any, Any, None]],
) -> list[tuple[int, CancelledError]]:
    loop = asyncio.get_running_loop()
    pending: list[asyncio.Task[None]] = []
    places: list[int] = []
    cancelled: list[tuple[int, CancelledError]] = []
    try:
        for place, coroutine in enumerate(coroutines):
            task = _begin(coroutine, loop)
            if task.done():
                _collect(task, place, cancelled)
            else:
                pending.append(task)
                places.append(place)
        if pending:
            await asyncio.wait(pending, return_when=asyncio.FIRST_EXCEPTION)
        for task, place in zip(pending, places, strict=True):
            if task.done():
                _collect(task, place, cancelled)
    except BaseException:
        await _cancel(pending)
        raise
    return cancelled


def _collect(
    task: asyncio.Task[None], place: int, cancelled: list[tuple[int, CancelledError]]
) -> None:
    """Raise what a task ended with, unless that is a cancellation, which is noted."""
    try:
        task.result()
    except CancelledError as exc:
        cancelled.append((place, exc))


if sys.version_info >= (3, 12):

    def _begin(
        coroutine: Coroutine[Any, Any, None], loop: asyncio.AbstractEventLoop
    ) -> asyncio.Task[None]:
        return asyncio.Task(coroutine, loop=loop, eager_start=True)

else:

    def _begin(
        coroutine: Coroutine[Any, Any, None], loop: asyncio.AbstractEventLoop
    ) -> asyncio.Task[None]:
        return loop.create_task(coroutine)


async def _cancel(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Cancel tasks, once each so that they can clean up, and wait for them whatever comes."""
    cancellation: CancelledError | None = None
    for task in tasks:
        task.cancel()
    while not all(task.done() for task in tasks):
        try:
            # Scopes of anyio would cancel again and again.
            with anyio.CancelScope(shield=True):
                await asyncio.wait(tasks)
        except CancelledError as exc:
            cancellation = exc
    for task in tasks:
        if not task.cancelled():
            # Looked at, so that nobody complains it never was.
            task.exception()
    if cancellation is not None:
        raise cancellation


# trio.


async def _run_in_group(
    coroutines: Sequence[Coroutine[Any, Any, None]],
) -> list[tuple[int, CancelledError]]:
    failures: list[BaseException] = []

    async def run(coroutine: Coroutine[Any, Any, None]) -> None:
        try:
            await coroutine
        except anyio.get_cancelled_exc_class():
            raise
        except BaseException as exc:
            # Raised below as it is: a task group would wrap it.
            failures.append(exc)
            group.cancel_scope.cancel()

    try:
        async with anyio.create_task_group() as group:
            for coroutine in coroutines:
                group.start_soon(run, coroutine)
    finally:
        if failures:
            raise failures[0]
    return []
