"""The way from threads into the loop that serves: order, context, bounds, and every end of it."""

import asyncio
import gc
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, wait
from contextvars import ContextVar
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from anyio import wait_all_tasks_blocked

from callbackkit import BacklogError, CallbackRegistry, DispatchResult
from callbackkit.dispatch.serving import Serving

EVENT = "order.created"

who = ContextVar("who", default="nobody")


async def in_thread(function: Callable[..., Any], *args: Any) -> Any:
    """Run a function in a plain thread, which inherits no context, and wait for it."""
    results: list[Any] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            results.append(function(*args))
        except BaseException as exc:
            failures.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    await anyio.to_thread.run_sync(thread.join)
    if failures:
        raise failures[0]
    return results[0]


async def answer(value: Any = None) -> Any:
    return value


async def for_ever() -> None:
    await anyio.sleep_forever()


def submit(serving: Serving[Any], call: Callable[[], Any], times: int) -> list[Future[Any]]:
    return [serving.submit(call) for _ in range(times)]


# In order.


async def test_a_call_from_a_thread_runs_in_the_loop_and_its_value_comes_back() -> None:
    registry = CallbackRegistry()
    loop_thread = threading.get_ident()

    async def callback(data: int) -> int:
        assert threading.get_ident() == loop_thread
        await anyio.lowlevel.checkpoint()
        return data + 1

    registry.register_callback(EVENT, callback)

    def from_thread() -> DispatchResult:
        return registry.trigger_threadsafe(EVENT, 1).result(timeout=10)

    async with registry.serving():
        result = await in_thread(from_thread)
    assert result.values() == [2]


async def test_calls_of_many_threads_are_all_made() -> None:
    registry = CallbackRegistry()
    got: list[int] = []
    registry.register_callback(EVENT, got.append)
    gate = threading.Barrier(8)

    def from_thread(thread: int) -> None:
        gate.wait()
        futures = [registry.trigger_threadsafe(EVENT, 100 * thread + n) for n in range(100)]
        assert all(future.result(timeout=10).ok for future in futures)

    async with registry.serving(), anyio.create_task_group() as group:
        for thread in range(8):
            group.start_soon(in_thread, from_thread, thread)
    assert sorted(got) == list(range(800))
    for thread in range(8):
        mine = [number for number in got if number // 100 == thread]
        assert mine == sorted(mine), "each thread's calls begin in its order"


async def test_calls_begin_in_the_order_they_were_handed_over() -> None:
    serving: Serving[None] = Serving()
    began: list[int] = []

    async def call(number: int) -> None:
        began.append(number)
        await anyio.lowlevel.checkpoint()

    async with serving.open():
        for number in range(200):
            serving.submit(lambda number=number: call(number))
    assert began == list(range(200))


async def test_calls_run_at_the_same_time() -> None:
    serving: Serving[None] = Serving()
    here, there = anyio.Event(), anyio.Event()

    async def one() -> None:
        here.set()
        await there.wait()

    async def other() -> None:
        there.set()
        await here.wait()

    async with serving.open():
        serving.submit(one)
        serving.submit(other)


async def test_a_call_has_the_context_variables_of_its_thread() -> None:
    registry = CallbackRegistry()

    @registry.on(EVENT)
    def callback() -> str:
        before = who.get()
        who.set("the callback")
        return before

    def from_thread(name: str) -> list[str]:
        who.set(name)
        result = registry.trigger_threadsafe(EVENT).result(timeout=10)
        assert who.get() == name, "what a callback sets stays with it"
        return result.values()

    who.set("the loop")
    async with registry.serving():
        assert await in_thread(from_thread, "thread one") == ["thread one"]
        assert await in_thread(from_thread, "thread two") == ["thread two"]
    assert who.get() == "the loop"


async def test_a_call_may_be_handed_over_in_the_loops_own_thread() -> None:
    registry = CallbackRegistry()
    registry.register_callback(EVENT, lambda data: data)
    async with registry.serving():
        future = registry.trigger_threadsafe(EVENT, "from here")
        assert not future.done(), "it never runs at once"
    assert future.result(timeout=0).values() == ["from here"]


async def test_a_call_may_hand_over_another_one() -> None:
    serving: Serving[str] = Serving()
    later: list[Future[str]] = []

    async def call() -> str:
        later.append(serving.submit(lambda: answer("second")))
        return "first"

    async with serving.open():
        first = serving.submit(call)
        await wait_all_tasks_blocked()
    assert [future.result(timeout=0) for future in (first, *later)] == ["first", "second"]


async def test_a_failing_call_is_the_business_of_its_future() -> None:
    serving: Serving[Any] = Serving()

    async def call() -> None:
        raise ValueError("mine")

    async with serving.open():
        failed = serving.submit(call)
        fine = serving.submit(answer)
    with pytest.raises(ValueError, match="mine"):
        failed.result(timeout=0)
    assert fine.done()


async def test_nothing_to_trigger_is_refused_before_it_is_handed_over() -> None:
    registry = CallbackRegistry()
    async with registry.serving():
        with pytest.raises(ValueError, match="pattern"):
            registry.trigger_threadsafe("order.*")


# Who serves.


def test_without_a_serving_loop_a_call_is_refused_with_the_remedy() -> None:
    with pytest.raises(RuntimeError, match=r"registry\.serving\(\)"):
        CallbackRegistry().trigger_threadsafe(EVENT)


async def test_after_the_block_a_call_is_refused() -> None:
    registry = CallbackRegistry()
    async with registry.serving():
        pass
    with pytest.raises(RuntimeError, match="no event loop serves"):
        registry.trigger_threadsafe(EVENT)


async def test_serving_twice_at_once_is_refused_and_the_first_goes_on() -> None:
    registry = CallbackRegistry()
    registry.register_callback(EVENT, lambda data: data)
    async with registry.serving():
        with pytest.raises(RuntimeError, match="already"):
            async with registry.serving():
                raise AssertionError("never reached")
        future = registry.trigger_threadsafe(EVENT, 1)
    assert future.result(timeout=0).values() == [1]


async def test_serving_again_is_fine() -> None:
    serving: Serving[int] = Serving()
    for number in range(3):
        async with serving.open():
            future = serving.submit(lambda number=number: answer(number))
        assert future.result(timeout=0) == number


# The end.


async def test_the_end_of_the_block_waits_for_what_was_handed_over() -> None:
    serving: Serving[str] = Serving()

    async def slow() -> str:
        for _ in range(10):
            await anyio.lowlevel.checkpoint()
        return "done"

    async with serving.open():
        futures = submit(serving, slow, 20)
    assert [future.result(timeout=0) for future in futures] == ["done"] * 20


async def test_a_block_that_fails_ends_every_future_and_its_error_comes_out_as_it_is() -> None:
    serving: Serving[None] = Serving()
    futures: list[Future[None]] = []
    error = ValueError("the block's own")

    async def block() -> None:
        async with serving.open():
            futures.extend(submit(serving, for_ever, 3))
            await wait_all_tasks_blocked()
            futures.extend(submit(serving, for_ever, 3))
            raise error

    with pytest.raises(ValueError, match="own") as raised:
        await block()
    assert raised.value is error
    assert_all_ended(futures)


async def test_a_block_that_is_cancelled_ends_every_future() -> None:
    serving: Serving[None] = Serving()
    with anyio.CancelScope() as scope:
        async with serving.open():
            running = submit(serving, for_ever, 3)
            await wait_all_tasks_blocked()
            waiting = submit(serving, for_ever, 3)
            scope.cancel()
            await anyio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    assert_all_ended([*running, *waiting])


def assert_all_ended(futures: list[Future[Any]]) -> None:
    done, pending = wait(futures, timeout=10)
    assert (len(done), len(pending)) == (len(futures), 0)
    for future in futures:
        with pytest.raises(CancelledError):
            future.result(timeout=0)


# The task is one of anyio, which leaves the coroutine alone that it never began.
@pytest.mark.filterwarnings("ignore:coroutine '_Home._finish' was never awaited:RuntimeWarning")
@pytest.mark.parametrize("rounds", range(6))
def test_a_loop_that_is_torn_down_ends_every_future(rounds: int) -> None:
    """A task cancelled before its first step runs no code that could end its future."""
    serving: Serving[None] = Serving()
    futures: list[Future[None]] = []

    async def serve() -> None:
        async with serving.open():
            await asyncio.sleep(3600)

    async def main() -> None:
        tasks.append(asyncio.get_running_loop().create_task(serve()))
        await asyncio.sleep(0.001)
        futures.extend(submit(serving, for_ever, 5))
        for _ in range(rounds):
            await asyncio.sleep(0)

    tasks: list[asyncio.Task[None]] = []
    asyncio.run(main())
    gc.collect()
    assert_all_ended(futures)


@pytest.mark.parametrize("exception", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_what_is_for_the_program_ends_the_block_and_every_future(
    exception: type[BaseException], backend: str
) -> None:
    serving: Serving[None] = Serving()
    futures: list[Future[None]] = []

    async def call() -> None:
        raise exception

    async def main() -> None:
        async with serving.open():
            futures.extend(submit(serving, for_ever, 2))
            futures.append(serving.submit(call))
            await for_ever()

    with pytest.raises(exception):
        anyio.run(main, backend=backend)
    assert_all_ended(futures)


def test_of_two_that_end_the_block_the_first_comes_out() -> None:
    serving: Serving[None] = Serving()

    async def call(error: BaseException) -> None:
        raise error

    async def main() -> None:
        async with serving.open():
            serving.submit(lambda: call(KeyboardInterrupt()))
            serving.submit(lambda: call(SystemExit()))

    with pytest.raises((KeyboardInterrupt, SystemExit)):
        anyio.run(main, backend="trio")


async def test_a_future_may_be_cancelled_before_its_call_begins() -> None:
    serving: Serving[str] = Serving()
    made: list[str] = []

    async def call() -> str:
        made.append("a call")
        return "value"

    async with serving.open():
        first, second, third = submit(serving, call, 3)
        assert second.cancel()
    assert len(made) == 2
    assert (first.result(0), third.result(0)) == ("value", "value")
    assert wait([second], timeout=10).done == {second}


async def test_a_future_cannot_be_cancelled_once_its_call_has_begun() -> None:
    serving: Serving[str] = Serving()
    go_on = anyio.Event()

    async def call() -> str:
        await go_on.wait()
        return "value"

    async with serving.open():
        future = serving.submit(call)
        await wait_all_tasks_blocked()
        assert future.running()
        assert not future.cancel()
        go_on.set()
    assert future.result(timeout=0) == "value"


async def test_what_a_futures_own_callback_raises_harms_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    serving: Serving[int] = Serving()

    def fail(_future: Future[int]) -> None:
        raise ValueError("in a done callback")

    async with serving.open():
        future = serving.submit(lambda: answer(1))
        future.add_done_callback(fail)
        other = serving.submit(lambda: answer(2))
    assert (future.result(0), other.result(0)) == (1, 2)
    assert "in a done callback" in caplog.text


# The bound.


async def test_no_more_calls_are_taken_than_may_wait() -> None:
    serving: Serving[None] = Serving(max_pending=3)
    go_on = anyio.Event()
    async with serving.open():
        submit(serving, go_on.wait, 2)
        await wait_all_tasks_blocked()
        submit(serving, go_on.wait, 1)
        with pytest.raises(BacklogError, match="3 triggers from threads have not finished"):
            serving.submit(go_on.wait)
        go_on.set()
        await wait_all_tasks_blocked()
        submit(serving, go_on.wait, 3)


async def test_a_refused_call_is_never_made() -> None:
    serving: Serving[None] = Serving(max_pending=1)
    made: list[int] = []

    async def call(number: int) -> None:
        made.append(number)

    async with serving.open():
        serving.submit(lambda: call(1))
        with pytest.raises(BacklogError):
            serving.submit(lambda: call(2))
    assert made == [1]


class Loose:
    """Hands over a call when it is dropped, wherever that happens to be."""

    def __init__(self, serving: Serving[Any]) -> None:
        self._serving = serving

    def __del__(self) -> None:
        self._serving.submit(answer)


async def test_garbage_collection_may_hand_over_a_call_in_the_middle_of_another() -> None:
    """No thread waits for itself: the lock is held while a job is made."""
    serving: Serving[Any] = Serving()
    async with serving.open():
        with serving._lock:
            Loose(serving)
        serving.submit(answer)
