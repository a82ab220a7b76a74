"""Threads that do jobs for tasks: many at once, and with one wake per event loop for all."""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Any, Final, Generic, TypeVar

from callbackkit.buffer import Waiter, new_waiter
from callbackkit.errors import StoreError
from callbackkit.stores.waking import wake_all

__all__ = ["Crew", "Job", "Worker"]

T = TypeVar("T")

# Jobs a thread takes at a time.
_MOST_AT_ONCE: Final = 512


class Job(Generic[T]):
    """Something a thread is to do; whoever wants it done may be gone when it is.

    Attributes:
        call: Does it, given what the worker has for it and the arguments.
        arguments: What else it is given.
        waiter: Wakes who waits.
        result: What it returned.
        error: What it raised instead.
    """

    __slots__ = ("arguments", "call", "error", "result", "waiter")

    def __init__(self, call: Callable[..., T], arguments: tuple[Any, ...]) -> None:
        self.call: Callable[..., T] = call
        self.arguments: tuple[Any, ...] = arguments
        self.waiter: Waiter = new_waiter()
        self.result: T
        self.error: BaseException | None = None


class Worker(ABC):
    """What one thread does with jobs, and has for them."""

    @abstractmethod
    def work(self, jobs: Sequence[Job[Any]]) -> None:
        """Do jobs; each has its result or its error then."""

    @abstractmethod
    def rest(self) -> float | None:
        """Return after how many seconds without a job :meth:`tidy` is to be called, if at all."""

    @abstractmethod
    def tidy(self) -> None:
        """Do what there is time for now."""

    @abstractmethod
    def close(self) -> None:
        """Let go of everything."""


class _Shift:
    """A queue and the threads that serve it until it is closed."""

    def __init__(self) -> None:
        self.queue: SimpleQueue[Job[Any] | None] = SimpleQueue()
        self.threads: list[threading.Thread] = []
        self.process: int = os.getpid()
        self.ended: list[Waiter] = []
        self.running: int = 0


class Crew:
    """Daemon threads that do jobs, begun when there is something to do.

    Args:
        name: What the threads are called.
        workers: Makes the worker of a thread, in that thread.
        most: Most threads.
    """

    def __init__(self, name: str, workers: Callable[[], Worker], most: int = 1) -> None:
        self._name = name
        self._workers = workers
        self._most = most
        # Re-entrant: a finalizer may hand over a job while the lock is held.
        self._lock = threading.RLock()
        self._shift = _Shift()

    async def do(self, call: Callable[..., T], *arguments: Any) -> T:
        """Have a job done; cancelled, the task goes on at once, and the job is done all the same.

        Handing over takes some microseconds, whatever the job takes
        (tests/benchmarks, "store-hand-over").
        """
        job = Job(call, arguments)
        self._hand_over(job)
        await job.waiter.wait()
        if job.error is not None:
            raise job.error
        return job.result

    async def aclose(self) -> None:
        """Wait until all that was asked for is done, and the threads have let go."""
        waiter = new_waiter()
        with self._lock:
            shift = self._shift
            if not shift.threads or shift.process != os.getpid():
                return
            self._shift = _Shift()
            shift.ended.append(waiter)
            for _ in shift.threads:
                shift.queue.put(None)
        await waiter.wait()

    def _hand_over(self, job: Job[Any]) -> None:
        # The lock: behind what closes a queue nobody would look.
        with self._lock:
            shift = self._shift
            if shift.process != os.getpid():
                shift = self._after_fork(shift)
            shift.queue.put(job)
            threads = shift.threads
            # More than one waiting: nobody was idle.
            if len(threads) < self._most and (not threads or shift.queue.qsize() > 1):
                self._begin(shift)

    def _after_fork(self, shift: _Shift) -> _Shift:
        # SQLite believes to hold the locks that the parent's connections hold.
        if shift.threads:
            raise StoreError("the store was opened before this process was forked; make one anew")
        self._shift = _Shift()
        return self._shift

    def _begin(self, shift: _Shift) -> None:
        thread = threading.Thread(target=self._serve, args=(shift,), name=self._name, daemon=True)
        # Looked at again, and counted before it starts: a finalizer may come here meanwhile.
        if len(shift.threads) >= self._most:
            return
        shift.threads.append(thread)
        shift.running += 1
        try:
            thread.start()
        except RuntimeError:
            shift.threads.remove(thread)
            shift.running -= 1
            raise

    def _serve(self, shift: _Shift) -> None:
        worker = self._workers()
        is_open = True
        while is_open:
            jobs, is_open = _take(shift.queue, worker)
            if jobs:
                _work(worker, jobs)
            # Keeps nothing alive while it waits.
            del jobs
        worker.close()
        with self._lock:
            shift.running -= 1
            ended = [] if shift.running else shift.ended
        wake_all(ended)


def _work(worker: Worker, jobs: Sequence[Job[Any]]) -> None:
    try:
        worker.work(jobs)
    except Exception as error:
        # A mistake of ours; nobody shall wait for ever because of it.
        for job in jobs:
            job.error = error
    wake_all([job.waiter for job in jobs])


def _take(queue: SimpleQueue[Job[Any] | None], worker: Worker) -> tuple[list[Job[Any]], bool]:
    """Wait for jobs and take all there are; tell whether there may be more later."""
    try:
        job = queue.get(timeout=worker.rest())
    except Empty:
        worker.tidy()
        return [], True
    jobs: list[Job[Any]] = []
    while job is not None:
        jobs.append(job)
        if len(jobs) >= _MOST_AT_ONCE:
            return jobs, True
        try:
            job = queue.get_nowait()
        except Empty:
            return jobs, True
    return jobs, False
