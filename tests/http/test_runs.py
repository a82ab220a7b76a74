"""Runs to come back to: who still needs one, and how many are remembered for how long."""

import gc
import threading
import weakref

import anyio
import pytest
from anyio import wait_all_tasks_blocked

from callbackkit import Callback
from callbackkit.http.runs import RecentRuns, Run
from callbackkit.testing import ManualClock


def ended(runs: RecentRuns, path: str = "/") -> Run:
    run = Run(Callback(), path)
    runs.add(run)
    assert run.callback is not None
    run.callback("a")
    run.callback.close()
    runs.end(run)
    return run


# Who needs a run.


async def test_a_run_that_has_ended_is_not_needed() -> None:
    callback = Callback()
    callback.close()
    run = Run(callback, "/")
    run.join()
    await run.unneeded(None)
    await run.unneeded(3600)


@pytest.mark.parametrize("grace", [0.0, 0.01])
async def test_a_run_that_nobody_reads_is_needed_for_a_while(grace: float) -> None:
    await Run(Callback(), "/").unneeded(grace)


@pytest.mark.parametrize("grace", [None, 3600])
async def test_the_end_is_noticed_from_any_thread(grace: float | None) -> None:
    callback = Callback()
    run = Run(callback, "/")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run.unneeded, grace)
        await wait_all_tasks_blocked()
        thread = threading.Thread(target=callback.close)
        thread.start()
    thread.join()


async def test_a_run_is_needed_as_long_as_somebody_reads() -> None:
    run = Run(Callback(), "/")
    run.join()
    run.join()
    is_over = anyio.Event()

    async def wait() -> None:
        await run.unneeded(0.0)
        is_over.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await wait_all_tasks_blocked()
        run.leave()
        await wait_all_tasks_blocked()
        assert not is_over.is_set()
        run.leave()
        await is_over.wait()


async def test_a_client_that_comes_back_in_time_keeps_the_run() -> None:
    run = Run(Callback(), "/")
    run.join()
    is_over = anyio.Event()

    async def wait() -> None:
        await run.unneeded(0.0)
        is_over.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await wait_all_tasks_blocked()
        run.leave()
        run.join()
        await wait_all_tasks_blocked()
        assert not is_over.is_set()
        run.leave()
        await is_over.wait()


async def test_without_a_grace_only_the_end_counts() -> None:
    callback = Callback()
    run = Run(callback, "/")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run.unneeded, None)
        await wait_all_tasks_blocked()
        run.join()
        run.leave()
        await wait_all_tasks_blocked()
        assert "0 clients" in repr(run)
        callback.close()


def test_a_run_has_more_until_its_end_was_seen() -> None:
    callback = Callback()
    run = Run(callback, "/")
    callback("a")
    assert run.has_more(1)
    callback.close()
    assert run.has_more(1)
    assert not run.has_more(2)
    run.callback = None
    assert not run.has_more(1)


# What is remembered.


def test_a_run_is_found_by_its_name_and_path() -> None:
    runs = RecentRuns()
    going, over = Run(Callback(), "/a"), ended(runs, "/b")
    runs.add(going)
    assert runs.find(going.run_id, "/a") is going
    assert runs.find(over.run_id, "/b") is over
    assert runs.find(going.run_id, "/b") is None
    assert runs.find(over.run_id, "/a") is None
    assert runs.find("0" * 32, "/a") is None
    assert repr(runs) == "<RecentRuns, 1 going on, 1 ended>"


def test_an_ended_run_is_known_for_five_minutes() -> None:
    clock = ManualClock()
    runs = RecentRuns(clock=clock)
    run = ended(runs)
    clock.advance(299)
    assert runs.find(run.run_id, "/") is run
    clock.advance(2)
    assert runs.find(run.run_id, "/") is None
    assert run.callback is None


def test_a_run_that_goes_on_is_known_for_ever() -> None:
    clock = ManualClock()
    runs = RecentRuns(clock=clock)
    run = Run(Callback(), "/")
    runs.add(run)
    clock.advance(1e6)
    assert runs.find(run.run_id, "/") is run


def test_of_many_ended_runs_the_newest_are_kept_whole_and_more_by_name() -> None:
    runs = RecentRuns(max_kept=2, max_known=4)
    every = [ended(runs) for _ in range(6)]
    assert [runs.find(run.run_id, "/") is run for run in every] == [False] * 2 + [True] * 4
    assert [run.callback is not None for run in every] == [False] * 4 + [True] * 2


def test_long_runs_are_kept_as_far_as_memory_allows() -> None:
    """Each has two entries."""
    runs = RecentRuns(max_entries=5)
    every = [ended(runs) for _ in range(4)]
    assert [run.callback is not None for run in every] == [False, False, True, True]
    assert runs.find(every[0].run_id, "/") is every[0]


def test_the_newest_run_is_kept_however_long_it_was() -> None:
    runs = RecentRuns(max_entries=1)
    every = [ended(runs) for _ in range(3)]
    assert [run.callback is not None for run in every] == [False, False, True]


def test_what_a_thousand_runs_said_is_not_kept() -> None:
    runs = RecentRuns()
    said = []
    for _ in range(1_000):
        callback = ended(runs).callback
        assert callback is not None
        said.append(weakref.ref(callback))
    del callback
    gc.collect()
    assert sum(reference() is not None for reference in said) == 64
