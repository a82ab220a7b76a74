"""Tasks that run as long as something is entered, and belong to no task that entered it."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from typing import Any

import anyio

from callbackkit.dispatch.concurrency import on_asyncio

__all__ = ["Background"]


class Background:
    """Functions that run side by side in a task of their own until they are stopped.

    A task group of the caller would have to be left in the task that entered it; whoever enters
    and leaves a manager first and last may be two different tasks.

    Args:
        functions: What runs; each calls ``task_status.started()`` once it does, and ends by
            itself or by being cancelled.
    """

    def __init__(self, *functions: Callable[..., Coroutine[Any, Any, None]]) -> None:
        self._functions = functions
        self._scope = anyio.CancelScope()
        self._begun = anyio.Event()
        self._done = anyio.Event()
        self._error: BaseException | None = None
        # Held here because an event loop holds its tasks weakly.
        self._task: object = None

    async def start(self) -> None:
        """Begin, and wait until each of them has.

        Raises:
            Exception: What one of the functions raised instead; none of them runs then.
        """
        if on_asyncio():
            task = asyncio.create_task(self._run())
            # A task that is cancelled before its first step runs none of its code.
            task.add_done_callback(lambda _: self._end())
            self._task = task
        else:
            import trio

            context = contextvars.copy_context()
            self._task = trio.lowlevel.spawn_system_task(self._run, context=context)
        try:
            await self._begun.wait()
        except BaseException:
            await self.stop()
            raise
        if self._error is not None:
            raise self._error

    async def wait(self) -> None:
        """Wait until all of them have ended."""
        await self._done.wait()

    async def stop(self) -> None:
        """Cancel all of it, and wait until it has ended, whatever comes.

        Raises:
            Exception: What one of the functions raised.
        """
        self._scope.cancel()
        cancellation: BaseException | None = None
        while not self._done.is_set():
            try:
                with anyio.CancelScope(shield=True):
                    await self._done.wait()
            except anyio.get_cancelled_exc_class() as exc:
                # Of asyncio's own, which no shield keeps off.
                cancellation = exc
        if cancellation is not None:
            raise cancellation
        if self._error is not None:
            raise self._error

    async def _run(self) -> None:
        try:
            with self._scope:
                async with anyio.create_task_group() as group:
                    for function in self._functions:
                        await group.start(function)
                    self._begun.set()
        except Exception as exc:
            # For whoever stops it.
            self._error = exc
        finally:
            self._end()

    def _end(self) -> None:
        self._done.set()
        self._begun.set()
