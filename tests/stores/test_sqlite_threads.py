import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import anyio
import pytest

from callbackkit.buffer import ThreadWaiter, Waiter, new_waiter
from callbackkit.stores.sqlite_threads import Crew, Job, Worker, wake_all


class Doing(Worker):
    """Calls what it is given; notes what it was asked."""

    def __init__(self, pause: float | None = None) -> None:
        self.batches: list[int] = []
        self.pause = pause
        self.has_tidied = threading.Event()
        self.is_closed = False
        self.threads: set[int] = set()

    def work(self, jobs: Sequence[Job[Any]]) -> None:
        self.threads.add(threading.get_ident())
        self.batches.append(len(jobs))
        for job in jobs:
            job.result = job.call(*job.arguments)

    def rest(self) -> float | None:
        return None if self.has_tidied.is_set() else self.pause

    def tidy(self) -> None:
        self.has_tidied.set()

    def close(self) -> None:
        self.is_closed = True


async def test_a_job_gives_its_result_from_another_thread() -> None:
    crew = Crew("test", Doing)
    assert await crew.do(threading.get_ident) != threading.get_ident()
    await crew.aclose()


async def test_jobs_that_came_meanwhile_are_done_together() -> None:
    worker = Doing()
    crew = Crew("test", lambda: worker)
    began, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        began.set()
        assert go_on.wait(20)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(crew.do, hold)
        await anyio.to_thread.run_sync(began.wait)
        for _ in range(600):
            tasks.start_soon(crew.do, int)
        await anyio.wait_all_tasks_blocked()
        go_on.set()
    await crew.aclose()
    assert worker.batches == [1, 512, 88]
    assert worker.is_closed


async def test_a_worker_that_fails_leaves_nobody_waiting() -> None:
    crew = Crew("test", Doing)
    with pytest.raises(ZeroDivisionError):
        await crew.do(divmod, 1, 0)
    assert await crew.do(divmod, 5, 2) == (2, 1)
    await crew.aclose()


async def test_there_are_more_threads_while_all_are_busy_and_no_more_than_the_most() -> None:
    workers: list[Doing] = []

    def new_worker() -> Doing:
        workers.append(Doing())
        return workers[-1]

    crew = Crew("test", new_worker, most=2)
    both = threading.Barrier(2)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(crew.do, both.wait, 20)
        await anyio.wait_all_tasks_blocked()
        for _ in range(5):
            tasks.start_soon(crew.do, int)
        tasks.start_soon(crew.do, both.wait, 20)
        await anyio.wait_all_tasks_blocked()
    await crew.aclose()
    assert len(workers) == 2
    assert all(worker.is_closed for worker in workers)


async def test_a_worker_without_jobs_tidies_once_it_rested() -> None:
    worker = Doing(pause=0.01)
    crew = Crew("test", lambda: worker)
    await crew.do(int)
    assert await anyio.to_thread.run_sync(worker.has_tidied.wait, 20)
    assert await crew.do(int) == 0
    await crew.aclose()


async def test_closing_twice_or_unused_is_harmless() -> None:
    crew = Crew("test", Doing)
    await crew.aclose()
    await crew.do(int)
    await crew.aclose()
    await crew.aclose()
    assert await crew.do(int) == 0
    await crew.aclose()


async def test_a_task_that_is_cancelled_does_not_wait_for_its_job() -> None:
    crew = Crew("test", Doing)
    began, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        began.set()
        assert go_on.wait(20)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(crew.do, hold)
        await anyio.to_thread.run_sync(began.wait)
        tasks.cancel_scope.cancel()
    go_on.set()
    assert await crew.do(int) == 0
    await crew.aclose()


def test_a_finalizer_may_hand_over_a_job_in_the_midst_of_another() -> None:
    """Garbage collection runs anybody's code anywhere, also where the lock is held."""
    workers: list[Doing] = []
    inner: list[Any] = []

    def new_worker() -> Doing:
        workers.append(Doing())
        return workers[-1]

    class Name(str):
        """Asked for by the thread that is made, with the lock held; stands for a finalizer."""

        def __str__(self) -> str:
            if not inner:
                inner.append(crew.do(int))
                # Up to where it waits.
                inner[0].send(None)
            return "test"

    crew = Crew(Name("test"), new_worker)

    def run() -> None:
        async def main() -> None:
            assert await crew.do(int) == 0
            await crew.aclose()

        asyncio.run(main())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    inner[0].close()
    assert len(workers) == 1
    assert sum(workers[0].batches) == 2


async def test_a_thread_that_can_not_be_started_is_told_and_tried_again(monkeypatch) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    crew = Crew("test", Doing)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="new thread"):
            await crew.do(int)
    assert await crew.do(int) == 0
    await crew.aclose()


def test_a_waiter_of_another_kind_is_woken_too() -> None:
    waiter = ThreadWaiter()
    wake_all([waiter])  # type: ignore[list-item]
    assert waiter.wait_in_thread(0)


def test_a_loop_that_is_closed_harms_nobody() -> None:
    waiters: list[Waiter] = []

    async def make() -> None:
        waiters.append(new_waiter())

    anyio.run(make, backend="asyncio")
    anyio.run(make, backend="trio")
    wake_all(waiters)


def test_one_wake_serves_all_tasks_of_a_loop() -> None:
    calls = 0

    class Loop(asyncio.SelectorEventLoop):
        def call_soon_threadsafe(self, *arguments: Any, **options: Any) -> asyncio.Handle:
            nonlocal calls
            calls += 1
            return super().call_soon_threadsafe(*arguments, **options)

    async def main() -> None:
        nonlocal calls
        crew = Crew("test", Doing)
        go_on = threading.Event()
        held = asyncio.create_task(crew.do(go_on.wait, 20))
        await asyncio.sleep(0)
        others = [asyncio.create_task(crew.do(int)) for _ in range(50)]
        await asyncio.sleep(0)
        before = calls
        go_on.set()
        await asyncio.gather(held, *others)
        assert calls - before <= 2
        await crew.aclose()

    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(main())
