"""Waiting for what other tasks and threads do."""

import threading
import weakref

import anyio
import pytest

from callbackkit.testing.waiting import Bell


async def test_what_is_true_already_needs_no_ringing() -> None:
    assert await Bell().wait_until(lambda: True, 0.001)


async def test_a_ringing_that_made_nothing_true_ends_no_waiting() -> None:
    bell, asked, done = Bell(), [], []

    async def wait() -> None:
        done.append(await bell.wait_until(lambda: bool(asked.append(None)) or len(asked) > 6, 10))

    async with anyio.create_task_group() as group:
        group.start_soon(wait)
        while not done:
            bell.ring()
            await anyio.lowlevel.checkpoint()
    assert done == [True]


async def test_nothing_is_asked_while_nobody_rings() -> None:
    """No polling: a wait of ten times the usual interval asks a handful of times."""
    asked: list[None] = []
    assert not await Bell().wait_until(lambda: bool(asked.append(None)), 0.2)
    assert len(asked) == 3


async def test_what_became_true_while_a_wait_began_is_not_missed() -> None:
    answers = iter([False, True, True, True])
    with anyio.fail_after(5):
        assert await Bell().wait_until(lambda: next(answers), None)


async def test_what_became_true_with_nobody_ringing_is_still_seen_at_the_end() -> None:
    answers = iter([False, False, True])
    assert await Bell().wait_until(lambda: next(answers), 0.01)


async def test_everybody_who_waits_is_woken() -> None:
    bell, true, done = Bell(), threading.Event(), []

    async def wait() -> None:
        done.append(await bell.wait_until(true.is_set, 10))

    def ring() -> None:
        true.set()
        bell.ring()

    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        await anyio.to_thread.run_sync(ring)
    assert done == [True] * 5


async def test_a_cancelled_wait_is_over_and_harms_nobody() -> None:
    bell, true = Bell(), threading.Event()
    with anyio.move_on_after(0.01) as scope:
        await bell.wait_until(true.is_set, None)
    assert scope.cancelled_caught
    true.set()
    bell.ring()
    assert await bell.wait_until(true.is_set, 1)


async def test_a_finalizer_may_ring_while_somebody_waits() -> None:
    bell, dead = Bell(), threading.Event()

    class Node:
        pass

    node = Node()
    weakref.finalize(node, lambda: (dead.set(), bell.ring()))
    async with anyio.create_task_group() as group:
        group.start_soon(bell.wait_until, dead.is_set, 10)
        await anyio.wait_all_tasks_blocked()
        del node


def test_loops_in_two_threads_wait_for_the_same_bell() -> None:
    bell, true, done = Bell(), threading.Event(), []
    waiting = threading.Semaphore(0)

    async def wait() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(note)
            await anyio.wait_all_tasks_blocked()
            waiting.release()

    async def note() -> None:
        done.append(await bell.wait_until(true.is_set, 10))

    threads = [
        threading.Thread(target=anyio.run, args=(wait,), kwargs={"backend": backend})
        for backend in ("asyncio", "trio")
    ]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert waiting.acquire(timeout=10)
    true.set()
    bell.ring()
    for thread in threads:
        thread.join(timeout=10)
    assert done == [True, True]


@pytest.mark.parametrize(
    ("timeout", "error"), [(0, ValueError), (-1, ValueError), ("1", TypeError)]
)
async def test_a_timeout_that_is_none_is_refused(timeout, error) -> None:
    with pytest.raises(error, match="timeout must be"):
        await Bell().wait_until(lambda: True, timeout)
