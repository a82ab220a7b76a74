"""Run synchronous callbacks in worker threads that can be given up on."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable
from contextvars import copy_context
from typing import Any

import anyio

from callbackkit.buffer import new_waiter
from callbackkit.dispatch.callables import callable_name, is_awaitable
from callbackkit.dispatch.deadline import expiry
from callbackkit.dispatch.failures import dispose
from callbackkit.dispatch.nesting import Spawn, is_root
from callbackkit.dispatch.registration import Entry
from callbackkit.errors import AbandonedThreadsError

__all__ = ["WorkerThreads"]

logger: logging.Logger = logging.getLogger("callbackkit.dispatch")

# Abandoned threads at which no more are started: the default number of worker threads in anyio.
_MAX_HANGING = 40


class WorkerThreads:
    """Daemon threads, one a call, begun in the caller's context.

    A call that times out or whose caller is cancelled is abandoned: its thread runs on until
    the callback returns, counted and waited for by nobody, not even by the interpreter's exit.
    When too many hang like that, further calls fail at once. Threads at work are not limited:
    they may wait for each other, and a pool that is full of waiting ones never empties.
    """

    def __init__(self, max_hanging: int = _MAX_HANGING) -> None:
        self._max_hanging = max_hanging
        # Re-entrant: garbage collection may run anybody's code at any time.
        self._lock = threading.RLock()
        self._hanging = 0
        self._abandoned = 0

    @property
    def abandoned(self) -> int:
        """Calls given up on so far."""
        return self._abandoned

    @property
    def hanging(self) -> int:
        """Abandoned threads whose callback has not returned yet."""
        return self._hanging

    async def run(self, entry: Entry, data: Any, timeout: float | None) -> Any:
        """Call an entry with *data* in a thread; await what it returns if that is an awaitable.

        Raises:
            CallbackTimeoutError: It did not finish within *timeout* seconds.
            AbandonedThreadsError: Too many threads hang.
        """
        limit = math.inf if timeout is None else timeout
        with anyio.move_on_after(limit):
            with Spawn():
                waiter = new_waiter()
                job = self._start(_Job(entry, data, waiter.wake))
                try:
                    await waiter.wait()
                except BaseException:
                    self._leave(job)
                    raise
            value = job.result()
            return await value if is_awaitable(value) else value
        raise expiry(entry, limit)

    def run_sync(self, entry: Entry, data: Any, timeout: float | None) -> Any:
        """Like :meth:`run`, blocking the calling thread and awaiting nothing."""
        limit = math.inf if timeout is None else timeout
        finished = threading.Event()
        with Spawn():
            job = self._start(_Job(entry, data, finished.set))
            try:
                in_time = finished.wait(min(limit, threading.TIMEOUT_MAX))
            except BaseException:
                self._leave(job)
                raise
        if in_time:
            return job.result()
        self._leave(job)
        raise expiry(entry, limit)

    def _start(self, job: _Job) -> _Job:
        if self._hanging >= self._max_hanging:
            raise AbandonedThreadsError(
                f"{self._hanging} worker threads hang in callbacks that were given up on; "
                "no more are started before some return"
            )
        threading.Thread(
            target=copy_context().run,
            args=(self._work, job),
            name="callbackkit callback",
            daemon=True,
        ).start()
        return job

    def _leave(self, job: _Job) -> None:
        """Nobody waits for the job any more: unless it is done, its thread is abandoned."""
        with self._lock:
            if not job.is_done:
                job.is_abandoned = True
                self._abandoned += 1
                self._hanging += 1
                return
        job.discard()

    # In the worker thread.

    @is_root
    def _work(self, job: _Job) -> None:
        try:
            job.value = job.entry.call(job.data)
        except BaseException as exc:
            # Whatever it is, it belongs to the caller, who waits for it: see _Job.result().
            job.error = exc
        with self._lock:
            job.is_done = True
            self._hanging -= job.is_abandoned
        job.wake()
        if job.is_abandoned:
            job.discard()


class _Job:
    """One call on its way through a worker thread."""

    def __init__(self, entry: Entry, data: Any, wake: Callable[[], None]) -> None:
        self.entry = entry
        self.data = data
        self.wake = wake
        self.value: Any = None
        self.error: BaseException | None = None
        self.is_done = False
        self.is_abandoned = False

    def result(self) -> Any:
        error, self.error = self.error, None
        if error is None:
            return self.value
        try:
            if isinstance(error, StopIteration):
                # A coroutine can't raise it: Python would say less of where it came from.
                name = callable_name(self.entry.callback)
                raise RuntimeError(f"callback {name} raised StopIteration") from error
            raise error
        finally:
            # Its traceback holds this frame, which must not hold it.
            del error

    def discard(self) -> None:
        """See to what came too late for anybody to get it."""
        if self.error is not None:
            logger.warning(
                "callback %s failed after it was given up on",
                callable_name(self.entry.callback),
                exc_info=(type(self.error), self.error, self.error.__traceback__),
            )
        elif is_awaitable(self.value):
            dispose(self.value)
