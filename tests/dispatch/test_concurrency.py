"""Running coroutines at the same time: all waited for, none left behind, whatever ends them."""

import asyncio
import gc
import inspect
import logging
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import trio
from anyio import wait_all_tasks_blocked

from callbackkit import CallbackRegistry
from callbackkit.dispatch.concurrency import on_asyncio, run_together

asyncio_only = pytest.mark.parametrize("anyio_backend", ["asyncio"])

who = ContextVar("who", default="nobody")


class Diary:
    """What coroutines did, in the order they did it."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    async def turn(self, name: str, turns: int = 1) -> None:
        self.lines.append(f"{name} begins")
        for _ in range(turns):
            await anyio.lowlevel.checkpoint()
        self.lines.append(f"{name} ends")

    async def for_ever(self, name: str, *, farewell: int = 0) -> None:
        """Wait until cancelled, then take *farewell* turns to clean up."""
        self.lines.append(f"{name} begins")
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                for _ in range(farewell):
                    await anyio.lowlevel.checkpoint()
            self.lines.append(f"{name} cleaned up")

    async def fail(self, error: BaseException, turns: int = 0) -> None:
        for _ in range(turns):
            await anyio.lowlevel.checkpoint()
        raise error


@pytest.fixture
def diary() -> Diary:
    return Diary()


# All of them.


async def test_all_begin_before_the_first_ends_and_all_are_waited_for(diary: Diary) -> None:
    assert await run_together([diary.turn(name, turns=3) for name in "abc"]) == []
    assert sorted(diary.lines[:3]) == ["a begins", "b begins", "c begins"]
    assert sorted(diary.lines[3:]) == ["a ends", "b ends", "c ends"]


async def test_nothing_to_run_is_no_error() -> None:
    assert await run_together([]) == []


async def test_one_that_does_not_suspend_is_run_too(diary: Diary) -> None:
    await run_together([diary.turn("a", turns=0), diary.turn("b", turns=2)])
    assert "a ends" in diary.lines


async def test_they_wait_for_each_other() -> None:
    here, there = anyio.Event(), anyio.Event()

    async def meet(mine: anyio.Event, other: anyio.Event) -> None:
        mine.set()
        await other.wait()

    await run_together([meet(here, there), meet(there, here)])


async def test_each_has_a_copy_of_the_context() -> None:
    seen: list[str] = []

    async def look(name: str) -> None:
        seen.append(who.get())
        who.set(name)
        await anyio.lowlevel.checkpoint()
        seen.append(who.get())

    who.set("the caller")
    await run_together([look("a"), look("b")])
    assert sorted(seen) == ["a", "b", "the caller", "the caller"]
    assert who.get() == "the caller"


async def test_each_is_a_task_of_its_own() -> None:
    tasks: list[int] = [anyio.get_current_task().id]

    async def look(turns: int) -> None:
        for _ in range(turns):
            await anyio.lowlevel.checkpoint()
        tasks.append(anyio.get_current_task().id)

    await run_together([look(0), look(1)])
    assert len(set(tasks)) == 3


@asyncio_only
async def test_a_task_stays_the_same_when_it_suspends() -> None:
    async def look() -> None:
        before = asyncio.current_task()
        async with asyncio.timeout(10):
            await asyncio.sleep(0)
        assert asyncio.current_task() is before

    await run_together([look(), look()])


# The caller is cancelled.


async def test_when_the_caller_is_cancelled_all_are_cancelled_and_have_ended(diary: Diary) -> None:
    coroutines = [diary.for_ever(name, farewell=3) for name in "ab"]
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as group:
            group.start_soon(run_together, coroutines)
            await wait_all_tasks_blocked()
            scope.cancel()
    assert scope.cancelled_caught
    assert sorted(diary.lines[2:]) == ["a cleaned up", "b cleaned up"]


@asyncio_only
async def test_cancelling_the_caller_again_does_not_leave_tasks_behind(diary: Diary) -> None:
    before = asyncio.all_tasks()
    task = asyncio.create_task(run_together([diary.for_ever("a", farewell=5)]))
    for _ in range(4):
        await asyncio.sleep(0)
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert diary.lines == ["a begins", "a cleaned up"]
    assert asyncio.all_tasks() == before


@asyncio_only
async def test_a_cleanup_that_awaits_is_cancelled_only_once() -> None:
    """A scope of anyio cancels again and again; the tasks are plain ones of asyncio."""
    done: list[str] = []

    async def careful() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            for _ in range(5):
                await asyncio.sleep(0)
            done.append("cleaned up")

    with anyio.CancelScope() as scope:
        asyncio.get_running_loop().call_soon(scope.cancel)
        await run_together([careful(), careful()])
    assert done == ["cleaned up", "cleaned up"]


@asyncio_only
@pytest.mark.parametrize("turns", range(4))
async def test_a_caller_cancelled_early_leaves_no_coroutine_unclosed(
    diary: Diary, turns: int
) -> None:
    """Before Python 3.12 a task cancelled before its first step never begins its coroutine."""
    coroutines = [diary.for_ever(name) for name in "ab"]
    task = asyncio.create_task(run_together(coroutines))
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    if turns == 0:
        for coroutine in coroutines:
            coroutine.close()  # run_together() has not begun either
    assert {inspect.getcoroutinestate(coroutine) for coroutine in coroutines} == {"CORO_CLOSED"}


async def test_a_caller_that_is_cancelled_already_still_waits(diary: Diary) -> None:
    with anyio.CancelScope() as scope:
        scope.cancel()
        await run_together([diary.for_ever("a", farewell=1)])
    assert diary.lines[-1] == "a cleaned up"


@asyncio_only
async def test_a_task_that_will_not_be_cancelled_is_waited_for() -> None:
    ended: list[str] = []

    async def stubborn() -> None:
        while not ended:
            try:
                await asyncio.sleep(0.005)
                ended.append("in its own time")
            except asyncio.CancelledError:
                pass

    task = asyncio.create_task(run_together([stubborn()]))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == ["in its own time"]


# One of them is cancelled by somebody else.


@asyncio_only
@pytest.mark.parametrize("turns", [0, 2])
async def test_one_that_somebody_cancels_is_told_by_its_place(diary: Diary, turns: int) -> None:
    async def cancel_myself() -> None:
        for _ in range(turns):
            await asyncio.sleep(0)
        task = asyncio.current_task()
        assert task is not None
        task.cancel("by itself")
        await asyncio.sleep(0)

    [(place, how)] = await run_together([diary.turn("a"), cancel_myself(), diary.turn("c", 9)])
    assert place == 1
    assert how.args == ("by itself",)
    assert diary.lines[-1] == "c ends"


@asyncio_only
async def test_one_that_ends_itself_with_a_cancellation_at_once_is_told_too(diary: Diary) -> None:
    async def end() -> None:
        raise asyncio.CancelledError("no await")

    cancelled = await run_together([end(), diary.turn("b")])
    assert [(place, how.args) for place, how in cancelled] == [(0, ("no await",))]


# One of them fails.

FAILURES = [ValueError("mine"), KeyboardInterrupt(), SystemExit(3), GeneratorExit()]
each_failure = pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)


async def test_when_one_fails_the_others_may_clean_up(diary: Diary) -> None:
    coroutines = [diary.for_ever("a", farewell=3), diary.fail(ValueError("mine"), turns=2)]
    with pytest.raises(ValueError, match="mine"):
        await run_together(coroutines)
    assert diary.lines == ["a begins", "a cleaned up"]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("turns", [0, 2])
@each_failure
def test_an_exception_of_one_ends_the_rest_and_comes_out_as_it_is(
    diary: Diary, error: BaseException, turns: int, backend: str
) -> None:
    coroutines = [diary.for_ever("a"), diary.fail(error, turns), diary.for_ever("c")]

    async def main() -> None:
        await run_together(coroutines)

    with pytest.raises(type(error)) as raised:
        anyio.run(main, backend=backend)
    assert raised.value is error
    assert "a cleaned up" in diary.lines
    assert diary.lines.count("c begins") == diary.lines.count("c cleaned up")
    assert {inspect.getcoroutinestate(coroutine) for coroutine in coroutines} == {"CORO_CLOSED"}


async def test_of_two_exceptions_the_first_comes_out_and_nobody_complains_of_the_other(
    diary: Diary, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "asyncio")
    errors = [ValueError("one"), ValueError("other")]
    with pytest.raises(ValueError, match=r"one|other"):
        await run_together([diary.fail(error, turns=2) for error in errors])
    gc.collect()
    assert "never retrieved" not in caplog.text


@asyncio_only
async def test_a_cancellation_while_the_rest_is_ended_is_not_lost(diary: Diary) -> None:
    coroutines = [diary.for_ever("a", farewell=9), diary.fail(ValueError("mine"), 1)]
    task = asyncio.create_task(run_together(coroutines))
    for _ in range(6):
        await asyncio.sleep(0)
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert diary.lines == ["a begins", "a cleaned up"]


def test_what_is_for_the_program_is_not_lost_when_the_caller_is_cancelled_too(
    diary: Diary,
) -> None:
    async def main() -> None:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await run_together([diary.fail(KeyboardInterrupt()), diary.for_ever("b")])

    with pytest.raises(KeyboardInterrupt):
        anyio.run(main, backend="trio")


# Which loop it is.


async def test_the_loop_is_told_apart(anyio_backend_name: str) -> None:
    assert on_asyncio() is (anyio_backend_name == "asyncio")


def test_outside_of_a_loop_it_is_not_asyncio() -> None:
    assert not on_asyncio()


@asyncio_only
async def test_a_callback_of_the_loop_is_no_task() -> None:
    answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(lambda: answer.set_result(on_asyncio()))
    assert not await answer


def as_guest(function: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Run a function on trio, as a guest of an asyncio loop."""

    async def host() -> Any:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Any] = loop.create_future()
        trio.lowlevel.start_guest_run(
            function,
            run_sync_soon_threadsafe=loop.call_soon_threadsafe,
            done_callback=lambda outcome: done.set_result(outcome.unwrap()),
        )
        return await done

    return asyncio.run(host())


def test_trio_as_a_guest_of_asyncio_runs_them_on_trio(diary: Diary) -> None:
    async def main() -> list[Any]:
        assert not on_asyncio()
        return await run_together([diary.turn("a"), diary.turn("b")])

    assert as_guest(main) == []
    assert sorted(diary.lines[:2]) == ["a begins", "b begins"]


# In a registry.


async def test_results_of_a_concurrent_registry_stand_in_order() -> None:
    registry = CallbackRegistry(mode="concurrent")

    async def later(data: int, turns: int) -> int:
        for _ in range(turns):
            await anyio.lowlevel.checkpoint()
        return data + turns

    for turns in (3, 0, 2, 1):
        registry.register_callback("a", lambda data, turns=turns: later(data, turns))
    registry.register_callback("a", lambda data: data)
    assert (await registry.trigger_callbacks("a", 10)).values() == [13, 10, 12, 11, 10]


async def test_a_cancelled_concurrent_trigger_leaves_no_task_and_logs_nothing(
    diary: Diary, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "callbackkit")
    registry = CallbackRegistry(mode="concurrent")
    for name in "ab":
        registry.register_callback("a", lambda name=name: diary.for_ever(name, farewell=2))
    async with anyio.create_task_group() as group:
        group.start_soon(registry.trigger_callbacks, "a")
        await wait_all_tasks_blocked()
        group.cancel_scope.cancel()
    assert sorted(diary.lines[2:]) == ["a cleaned up", "b cleaned up"]
    assert [record for record in caplog.records if record.name.startswith("callbackkit")] == []
