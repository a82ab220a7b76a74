"""Tasks that run as long as something is entered, and belong to no task that entered it."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import anyio

from callbackkit.dispatch.detached import detach, wait_for_end

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
        self._task: object = None

    async def start(self) -> None:
        """Begin, and wait until each of them has.

        Raises:
            Exception: What one of the functions raised instead; none of them runs then.
        """
        self._task = detach(self._run, self._end)
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
        await wait_for_end(self._done)
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
