"""Tasks that belong to no task that entered them."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from callbackkit.sessions.background import Background
from tests.sessions.rig import PATIENCE


class Function:
    def __init__(self, then: Callable[[], Awaitable[object]] = anyio.sleep_forever) -> None:
        self.log: list[str] = []
        self.then = then

    async def __call__(self, *, task_status: Any) -> None:
        await checkpoint()
        self.log.append("begun")
        task_status.started()
        try:
            await self.then()
            self.log.append("done")
        except BaseException:
            self.log.append("cancelled")
            raise


async def test_starting_waits_until_all_have_begun_and_stopping_until_all_have_ended():
    one, two = Function(), Function(checkpoint)
    background = Background(one, two)
    await background.start()
    assert (one.log, two.log[:1]) == (["begun"], ["begun"])
    await background.stop()
    assert one.log == ["begun", "cancelled"]
    assert two.log[0] == "begun"
    await background.wait()
    await background.stop()


async def test_it_may_be_stopped_by_another_task_and_outlives_the_one_that_started_it():
    function = Function()
    background = Background(function)
    async with anyio.create_task_group() as group:
        group.start_soon(background.start)
    assert function.log == ["begun"]
    async with anyio.create_task_group() as group:
        group.start_soon(background.stop)
    assert function.log == ["begun", "cancelled"]


async def test_waiting_ends_when_the_functions_do():
    background = Background(Function(checkpoint))
    await background.start()
    with anyio.fail_after(PATIENCE):
        await background.wait()
    await background.stop()


async def test_what_a_function_raises_before_it_has_begun_is_raised_at_the_start():
    async def fails(*, task_status: Any) -> None:
        raise OSError("no")

    other = Function()
    with pytest.raises(ExceptionGroup) as caught:
        await Background(other, fails).start()
    assert caught.group_contains(OSError)
    assert other.log == ["begun", "cancelled"]


async def test_what_a_function_raises_later_ends_the_others_and_is_raised_when_stopped():
    gate = anyio.Event()

    async def raises() -> None:
        await gate.wait()
        raise OSError("broken")

    other = Function()
    background = Background(other, Function(raises))
    await background.start()
    gate.set()
    await background.wait()
    assert other.log == ["begun", "cancelled"]
    with pytest.raises(ExceptionGroup) as caught:
        await background.stop()
    assert caught.group_contains(OSError)


async def test_a_start_that_is_cancelled_leaves_nothing_behind():
    function = Function()

    async def never(*, task_status: Any) -> None:
        await anyio.sleep_forever()

    with anyio.move_on_after(0.01) as scope:
        await Background(function, never).start()
    assert scope.cancelled_caught
    assert function.log == ["begun", "cancelled"]


async def test_a_cancellation_does_not_keep_it_from_stopping():
    function = Function()
    background = Background(function)
    await background.start()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await background.stop()
    assert function.log == ["begun", "cancelled"]


async def lingers() -> None:
    try:
        await anyio.sleep_forever()
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(0.05)


def test_a_cancellation_of_asyncios_own_waits_for_the_end_and_is_raised_then():
    async def main() -> list[str]:
        function = Function(lingers)
        background = Background(function)
        await background.start()
        stopping = asyncio.create_task(background.stop())
        await asyncio.sleep(0)
        stopping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stopping
        return list(function.log)

    assert asyncio.run(main()) == ["begun", "cancelled"]


def test_a_loop_that_cancels_its_tasks_leaves_nobody_waiting():
    async def main() -> None:
        background = Background(Function())
        starting = asyncio.create_task(background.start())
        await asyncio.sleep(0)
        # Before its first step: none of its code runs.
        task: Any = background._task
        task.cancel()
        await asyncio.wait_for(starting, PATIENCE)
        await asyncio.wait_for(background.stop(), PATIENCE)

    asyncio.run(main())
