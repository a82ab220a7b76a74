"""The way from any thread into the event loop that serves a registry."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable
from concurrent.futures import CancelledError, Future
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Generic, TypeVar

import anyio

from callbackkit.buffer import Log, checkpoint
from callbackkit.errors import BacklogError

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

__all__ = ["Serving"]

T = TypeVar("T")

# Calls handed over and not finished. A thread that never looks at its futures meets this limit.
_MAX_PENDING = 10_000


class Serving(Generic[T]):
    """Runs calls that any thread hands over in the event loop that entered :meth:`open`.

    Calls start in the order they come in and may then run at the same time; who needs them one
    after another waits for the future of each.
    """

    def __init__(self, max_pending: int = _MAX_PENDING) -> None:
        self._max_pending = max_pending
        # Re-entrant: garbage collection may run anybody's code at any time.
        self._lock = threading.RLock()
        self._home: _Home[T] | None = None

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[None]:
        """Serve until the block ends, then finish what was handed over.

        A block that fails or is cancelled does not wait: calls that run are cancelled, the
        others never start, and every future ends.

        Raises:
            RuntimeError: It is open already.
        """
        home = _Home[T](self._max_pending)
        with self._lock:
            if self._home is not None:
                raise RuntimeError("this registry is being served already; serve it once")
            self._home = home
        try:
            async with anyio.create_task_group() as group:
                home.start(group)
                try:
                    yield
                except anyio.get_cancelled_exc_class():
                    raise
                except BaseException as exc:
                    home.fail(exc)
                finally:
                    self._close(home)
        finally:
            home.give_up()
        if home.failure is not None:
            raise home.failure

    def _close(self, home: _Home[T]) -> None:
        with self._lock:
            self._home = None
            home.log.close()

    def submit(self, call: Callable[[], Awaitable[T]]) -> Future[T]:
        """Have *call* run and awaited in the loop, with the context of the calling thread.

        Raises:
            RuntimeError: Nobody serves.
            BacklogError: Too many calls have not finished.
        """
        with self._lock:
            home = self._home
            if home is None:
                raise RuntimeError(
                    "no event loop serves this registry; trigger_threadsafe() needs one inside "
                    "'async with registry.serving():'"
                )
            if len(home.pending) >= self._max_pending:
                raise BacklogError(f"{self._max_pending} triggers from threads have not finished")
            job = _Job(call)
            home.pending[job] = None
            home.log.append(job)
        return job.future


class _Job(Generic[T]):
    """One call handed over."""

    def __init__(self, call: Callable[[], Awaitable[T]]) -> None:
        self.future: Future[T] = Future()
        self.context = contextvars.copy_context()
        self._call = call

    async def run(self) -> None:
        try:
            value = await self._call()
        except Exception as exc:
            self.future.set_exception(exc)
        except BaseException as exc:
            # The loop is being stopped; whoever waits in a thread must not wait for ever.
            self.future.set_exception(CancelledError(f"the serving loop stopped: {exc!r}"))
            raise
        else:
            self.future.set_result(value)

    def give_up(self) -> None:
        """End the future of a call that will not run any more."""
        if self.future.cancel():
            # Only this tells concurrent.futures.wait() that it was cancelled.
            self.future.set_running_or_notify_cancel()
        else:
            # The task was made, and cancelled before its first step.
            self.future.set_exception(CancelledError("the serving loop stopped"))


class _Home(Generic[T]):
    """One event loop while it serves."""

    def __init__(self, max_pending: int) -> None:
        # Room for all that may be pending, so nothing is ever dropped.
        self.log: Log[_Job[T]] = Log(max_items=max_pending)
        self.pending: dict[_Job[T], None] = {}
        self.failure: BaseException | None = None
        self._reader = self.log.reader()

    def start(self, group: TaskGroup) -> None:
        self._group = group
        group.start_soon(self._run)

    def fail(self, exc: BaseException) -> None:
        """Stop all calls because of an exception, which a task group would wrap."""
        if self.failure is None:
            self.failure = exc
        self._group.cancel_scope.cancel()

    def give_up(self) -> None:
        """End the futures of calls that never started."""
        for job in list(self.pending):
            del self.pending[job]
            job.give_up()

    async def _run(self) -> None:
        async for job in self._reader:
            if job.future.set_running_or_notify_cancel():
                job.context.run(self._group.start_soon, self._finish, job)
                # trio begins the tasks that were made in one round in any order.
                await checkpoint()
            else:
                del self.pending[job]

    async def _finish(self, job: _Job[T]) -> None:
        try:
            await job.run()
        except anyio.get_cancelled_exc_class():
            raise
        except BaseException as exc:
            # It is for the program, not for a callback: KeyboardInterrupt or SystemExit.
            self.fail(exc)
        finally:
            del self.pending[job]
