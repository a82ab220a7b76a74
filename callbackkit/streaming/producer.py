"""A producer in a task of its own, which holds nothing in the task that started it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Generic, Protocol, TypeVar, cast

import anyio
from anyio.abc import TaskStatus

from callbackkit.dispatch.detached import detach, wait_for_end
from callbackkit.errors import StreamCancelledError
from callbackkit.streaming.callback import Callback
from callbackkit.streaming.ownership import produce

__all__ = ["Producer", "TaskGroup"]

T = TypeVar("T")


class TaskGroup(Protocol):
    """Where a producer may run: a task group of anyio or a nursery of trio."""

    async def start(self, func: Callable[..., Awaitable[Any]], /, *args: Any) -> Any: ...


class Producer(Generic[T]):
    """A function that feeds a run, in a task.

    To be made in the event loop it runs in. A task group around the caller's block would not do:
    it is entered in one task and, if the block stands in a generator that is closed elsewhere,
    left in another.

    Args:
        name: What it is called in messages.
        callback: The run, which ends with it.
        call: Calls the function.
        timeout: Seconds it may take.

    Attributes:
        error: What the function raised, or what became of the run.
    """

    def __init__(
        self,
        name: str,
        callback: Callback,
        call: Callable[[], Awaitable[T]],
        timeout: float | None,
    ) -> None:
        self.error: BaseException | None = None
        self._name = name
        self._callback = callback
        self._call = call
        self._timeout = timeout
        self._scope = anyio.CancelScope()
        self._done = anyio.Event()
        self._value: T | None = None
        self._task: object = None

    @property
    def is_done(self) -> bool:
        """It has ended, and so has its run."""
        return self._done.is_set()

    async def result(self) -> T:
        """Wait for it; return what it returned, or raise its error."""
        await self._done.wait()
        if self.error is not None:
            raise self.error
        return cast("T", self._value)

    async def wait(self) -> None:
        """Wait until it has ended; being cancelled, cancel it."""
        try:
            await self._done.wait()
        except BaseException:
            await self.cancel()
            raise

    async def cancel(self) -> None:
        """Cancel it, and wait until it has ended, whatever comes."""
        self._scope.cancel()
        await wait_for_end(self._done)

    # The task.

    async def start(self, task_group: TaskGroup | None, ended: Callable[[], None]) -> None:
        """Begin, in a task group if there is one.

        Args:
            task_group: The task group.
            ended: Called in there when it has ended; what it raises goes to the group.
        """
        if task_group is not None:
            await task_group.start(self._run_in_group, ended)
        else:
            self._task = detach(self._run, self._end)

    async def _run_in_group(
        self, ended: Callable[[], None], *, task_status: TaskStatus[None]
    ) -> None:
        task_status.started()
        await self._run()
        ended()

    async def _run(self) -> None:
        try:
            with self._scope:
                if self._timeout is None:
                    await self._produce()
                else:
                    await self._produce_in_time(self._timeout)
        finally:
            self._end()

    async def _produce_in_time(self, timeout: float) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(self._expire, timeout)
            await self._produce()
            group.cancel_scope.cancel()

    async def _expire(self, timeout: float) -> None:
        await anyio.sleep(timeout)
        error = TimeoutError(f"the run of {self._name} took longer than {timeout} seconds")
        # This cancels the producer, see produce().
        self._callback.end("timeout", error)

    async def _produce(self) -> None:
        try:
            self._value = await produce(self._callback, self._call)
        except anyio.get_cancelled_exc_class():
            self.error = StreamCancelledError()
            raise
        except BaseException as exc:
            # Kept for whoever asks for the result.
            self.error = exc

    def _end(self) -> None:
        if not self._callback.is_closed:
            self.error = StreamCancelledError()
            self._callback.cancel()
        self._done.set()
