import asyncio
from contextvars import ContextVar

import anyio
import pytest

from callbackkit.dispatch.detached import detach, wait_for_end

place: ContextVar[str] = ContextVar("place", default="nowhere")


async def test_a_task_runs_in_a_copy_of_the_context_and_tells_its_end() -> None:
    seen: list[str] = []
    done = anyio.Event()

    async def run() -> None:
        seen.append(place.get())
        place.set("there")
        done.set()

    token = place.set("here")
    task = detach(run, done.set)
    with anyio.fail_after(5):
        await done.wait()
    assert (seen, place.get(), task is not None) == (["here"], "here", True)
    place.reset(token)


def test_one_that_is_cancelled_before_its_first_step_tells_its_end_too() -> None:
    ended: list[bool] = []

    async def run() -> None:
        raise AssertionError("it never begins")

    async def main() -> None:
        task = detach(run, lambda: ended.append(True))
        assert isinstance(task, asyncio.Task)
        task.cancel()
        await asyncio.wait([task])

    asyncio.run(main())
    assert ended == [True]


async def test_an_end_is_waited_for_though_the_scope_is_cancelled() -> None:
    done = anyio.Event()
    waited: list[bool] = []

    async def wait() -> None:
        await wait_for_end(done)
        waited.append(True)

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            group.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                await anyio.wait_all_tasks_blocked()
                assert waited == []
                done.set()
    assert waited == [True]


def test_a_cancellation_of_asyncios_own_is_kept_back_until_the_end() -> None:
    async def main() -> None:
        done = anyio.Event()
        task = asyncio.create_task(wait_for_end(done))
        for _ in range(3):
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.sleep(0)
            assert not task.done()
        done.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
