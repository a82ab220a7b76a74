"""From the connection to whoever iterates."""

import anyio
import pytest

from callbackkit.client.handover import Handover
from tests.client.rig import PATIENCE, event


async def test_whoever_puts_waits_until_the_last_is_taken() -> None:
    handover, done = Handover(), anyio.Event()

    async def put() -> None:
        await handover.put([event(1), event(2)])
        done.set()

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(put)
            assert await handover.take() == event(1)
            await anyio.lowlevel.checkpoint()
            assert not done.is_set()
            assert await handover.take() == event(2)
            await done.wait()


async def test_who_is_cancelled_loses_nothing() -> None:
    handover = Handover()
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            with anyio.move_on_after(0.01):
                await handover.take()
            tasks.start_soon(handover.put, [event(1)])
            assert await handover.take() == event(1)


async def test_several_may_take() -> None:
    handover, found = Handover(), []

    async def take() -> None:
        found.append(await handover.take())

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(take)
            tasks.start_soon(take)
            await anyio.wait_all_tasks_blocked()
            await handover.put([event(1)])
            await handover.put([event(2)])
    assert found == [event(1), event(2)]


async def test_what_was_put_is_taken_before_the_end_and_its_reason() -> None:
    handover = Handover()
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(handover.put, [event(1)])
            await anyio.wait_all_tasks_blocked()
            handover.close(OSError("why"))
            handover.close(OSError("something else"))
            assert await handover.take() == event(1)
            for _ in range(2):
                with pytest.raises(OSError, match="why"):
                    await handover.take()


async def test_the_end_wakes_who_waits() -> None:
    handover = Handover()
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.lowlevel.checkpoint)
            tasks.start_soon(handover.take)
            await anyio.wait_all_tasks_blocked()
            handover.close()
    assert await handover.take() is None
