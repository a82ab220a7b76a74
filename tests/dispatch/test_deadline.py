"""Timeouts: what they end, what they leave alone, and that they cost nothing until one suspends."""

import asyncio
import functools
import inspect
import math
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextvars import ContextVar
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import trio
import trio.testing

from callbackkit import (
    AsyncCallbackError,
    CallbackRegistry,
    CallbackTimeoutError,
    Dispatcher,
    DispatchResult,
    Outcome,
)
from callbackkit.dispatch.deadline import check_timeout, expiry, is_expiry, within
from callbackkit.dispatch.registration import Bound

who = ContextVar("who", default="nobody")


class Jumping(asyncio.SelectorEventLoop):
    """A loop whose time stands still while there is work and jumps to the next timer then."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.timers: list[asyncio.TimerHandle] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, *args: Any, **options: Any) -> asyncio.TimerHandle:
        self.timers.append(super().call_at(when, *args, **options))
        return self.timers[-1]

    def _run_once(self) -> None:
        waiting = [timer.when() for timer in self._scheduled if not timer.cancelled()]
        if waiting and not self._ready:
            self.now = max(self.now, min(waiting))
        super()._run_once()


def run_on(backend: str, main: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Run *main* in a time that costs none."""
    clock = trio.testing.MockClock(autojump_threshold=0)
    options: dict[str, Any] = {"asyncio": {"loop_factory": Jumping}, "trio": {"clock": clock}}
    return anyio.run(main, backend=backend, backend_options=options[backend])


class World:
    """An event loop, and a way to run callbacks in it."""

    def __init__(self, backend: str, mode: Any) -> None:
        self.backend = backend
        self.mode = mode

    def outcome_of(self, callback: Callable[..., Any], timeout: float = 1) -> Outcome:
        """Run a callback in a dispatch; another one that stands behind it is fine."""
        first, other = run_on(self.backend, lambda: self.dispatch([callback, by], timeout))
        assert other.value == "another"
        assert isinstance(first, Outcome)
        return first

    def statuses_of(self, *callbacks: Callable[..., Any], timeout: float = 1) -> list[str]:
        result = run_on(self.backend, lambda: self.dispatch([*callbacks], timeout))
        return [outcome.status for outcome in result]

    async def dispatch(self, callbacks: list[Callable[..., Any]], timeout: float) -> DispatchResult:
        return await Dispatcher(mode=self.mode, timeout=timeout).dispatch(callbacks)


async def by() -> str:
    await anyio.lowlevel.checkpoint()
    return "another"


@pytest.fixture(params=["asyncio", "trio"])
def backend(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(params=["sequential", "concurrent"])
def world(request: pytest.FixtureRequest, backend: str) -> World:
    return World(backend, request.param)


@pytest.fixture(params=["sequential", "concurrent"])
def asyncio_world(request: pytest.FixtureRequest) -> World:
    return World("asyncio", request.param)


# The cost.


def timers_of(*callbacks: Callable[..., Any], mode: Any = "sequential") -> list[Any]:
    """Return the timers that a dispatch with a timeout set on asyncio."""

    async def main() -> list[Any]:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, Jumping)
        loop.timers.clear()
        assert (await Dispatcher(mode=mode, timeout=5).dispatch(callbacks)).ok
        return list(loop.timers)

    timers: list[Any] = run_on("asyncio", main)
    return timers


async def does_not_suspend() -> int:
    return 1


async def suspends() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


@pytest.mark.parametrize("mode", ["sequential", "concurrent"])
def test_no_timer_is_set_when_nothing_suspends(mode: Any) -> None:
    plain = [lambda: 1, functools.partial(int), lambda: does_not_suspend()]
    assert timers_of(*[does_not_suspend] * 10, *plain, mode=mode) == []


@pytest.mark.parametrize("mode", ["sequential", "concurrent"])
def test_one_timer_is_set_for_each_that_suspends_and_taken_back(mode: Any) -> None:
    timers = timers_of(does_not_suspend, suspends, does_not_suspend, suspends, mode=mode)
    assert [timer.cancelled() for timer in timers] == [True, True]


def test_a_timeout_of_one_callback_sets_no_timer_for_the_others() -> None:
    async def main() -> list[Any]:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, Jumping)
        registry = CallbackRegistry()
        registry.register_callback("a", suspends, timeout=5)
        registry.register_callback("a", suspends)
        loop.timers.clear()
        await registry.trigger_callbacks("a")
        return loop.timers

    assert len(run_on("asyncio", main)) == 1


# Too late.


def test_a_slow_callback_is_timed_out_and_the_others_run(world: World) -> None:
    outcome = world.outcome_of(lambda: anyio.sleep(2))
    assert outcome.status == "timeout"
    assert isinstance(outcome.error, CallbackTimeoutError)
    assert outcome.error.timeout == 1
    assert "did not finish within 1 seconds" in str(outcome.error)


def test_each_callback_has_the_whole_time(world: World) -> None:
    slow, too_slow = functools.partial(anyio.sleep, 0.9), functools.partial(anyio.sleep, 1.1)
    statuses = world.statuses_of(slow, slow, too_slow, slow)
    assert statuses == ["ok", "ok", "timeout", "ok"]


def test_the_time_counts_over_all_suspensions(world: World) -> None:
    async def callback() -> None:
        for _ in range(5):
            await anyio.sleep(0.3)

    assert world.outcome_of(callback).status == "timeout"


def test_a_cleanup_runs_and_may_await(world: World) -> None:
    steps: list[str] = []

    async def callback() -> None:
        try:
            await anyio.sleep(2)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(3)
            steps.append("cleaned up")

    assert world.outcome_of(callback).status == "timeout"
    assert steps == ["cleaned up"]


def test_a_callback_is_told_once_on_asyncio(asyncio_world: World) -> None:
    steps: list[str] = []

    async def callback() -> None:
        try:
            await asyncio.sleep(2)
        finally:
            await asyncio.sleep(3)
            steps.append("cleaned up")

    assert asyncio_world.outcome_of(callback).status == "timeout"
    assert steps == ["cleaned up"]


def test_a_value_returned_all_the_same_is_the_value(world: World) -> None:
    async def callback() -> str:
        try:
            await anyio.sleep(2)
        except anyio.get_cancelled_exc_class():
            return "what there is so far"
        return "all"

    outcome = world.outcome_of(callback)
    assert (outcome.status, outcome.value) == ("ok", "what there is so far")


def test_an_error_raised_instead_is_the_error(world: World) -> None:
    async def callback() -> None:
        try:
            await anyio.sleep(2)
        except anyio.get_cancelled_exc_class():
            raise ValueError("while cleaning up") from None

    outcome = world.outcome_of(callback)
    assert (outcome.status, str(outcome.error)) == ("error", "while cleaning up")


def test_one_that_goes_on_regardless_is_waited_for_on_asyncio(asyncio_world: World) -> None:
    async def callback() -> str:
        for _ in range(2):
            try:
                await asyncio.sleep(2)
            except asyncio.CancelledError:
                continue
        return "in its own time"

    assert asyncio_world.outcome_of(callback).value == "in its own time"


def test_what_does_not_suspend_cannot_be_interrupted(world: World) -> None:
    def blocks() -> str:
        return "after a long time"

    assert world.outcome_of(blocks, timeout=1e-9).status == "ok"


# A TimeoutError of its own.


async def raises() -> None:
    raise TimeoutError("its own")


async def raises_later() -> None:
    await anyio.sleep(0.5)
    raise TimeoutError("its own")


async def by_anyio() -> None:
    with anyio.fail_after(0.5):
        await anyio.sleep(2)


@pytest.mark.parametrize("callback", [raises, raises_later, by_anyio])
def test_a_timeout_of_the_callback_stays_its_own(world: World, callback: Callable[[], Any]) -> None:
    outcome = world.outcome_of(callback)
    assert outcome.status == "error"
    assert type(outcome.error) is TimeoutError


@pytest.mark.parametrize("after", [0, 0.5])
def test_a_timeout_of_asyncio_in_the_callback_stays_its_own(
    asyncio_world: World, after: float
) -> None:
    async def callback() -> None:
        await asyncio.sleep(0)
        async with asyncio.timeout(after):
            await asyncio.sleep(2)

    outcome = asyncio_world.outcome_of(callback)
    assert outcome.status == "error"
    assert type(outcome.error) is TimeoutError


def test_a_timeout_it_handles_itself_is_nothing(world: World) -> None:
    async def callback() -> str:
        with anyio.move_on_after(0.3):
            await anyio.sleep(2)
        try:
            with anyio.fail_after(0.3):
                await anyio.sleep(2)
        except TimeoutError:
            return "handled"
        return "slept"

    assert world.outcome_of(callback).value == "handled"


def test_a_longer_timeout_in_the_callback_does_not_count(world: World) -> None:
    async def callback() -> None:
        with anyio.fail_after(1.5):
            await anyio.sleep(2)

    assert world.outcome_of(callback).status == "timeout"


def test_both_at_the_same_moment_give_one_of_both(world: World) -> None:
    async def callback() -> None:
        with anyio.fail_after(1):
            await anyio.sleep(2)

    outcome = world.outcome_of(callback)
    assert isinstance(outcome.error, TimeoutError)


def test_the_timeout_of_an_inner_dispatch_is_an_error_of_the_outer_one(world: World) -> None:
    async def callback() -> None:
        [inner] = await Dispatcher(timeout=0.3).dispatch([lambda: anyio.sleep(2)])
        assert inner.status == "timeout"
        raise inner.error

    outcome = world.outcome_of(callback)
    assert outcome.status == "error"
    assert isinstance(outcome.error, CallbackTimeoutError)
    assert outcome.error.timeout == 0.3


# Scopes, groups and tasks inside.


def test_a_group_inside_is_ended_with_all_its_tasks(world: World) -> None:
    ended: list[int] = []

    async def child(number: int) -> None:
        try:
            await anyio.sleep(2)
        finally:
            ended.append(number)

    async def callback() -> None:
        async with anyio.create_task_group() as group:
            for number in range(3):
                group.start_soon(child, number)

    assert world.outcome_of(callback).status == "timeout"
    assert sorted(ended) == [0, 1, 2]


def test_a_group_inside_that_finishes_is_fine(world: World) -> None:
    async def callback() -> str:
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep, 0.5)
            group.start_soon(anyio.sleep, 2)
            await anyio.sleep(0.6)
            group.cancel_scope.cancel()
        await anyio.sleep(0.1)
        return "finished"

    assert world.outcome_of(callback).value == "finished"


def test_the_failure_of_a_group_inside_is_the_callbacks(world: World) -> None:
    async def fail() -> None:
        await anyio.sleep(0.1)
        raise ValueError("in a child")

    async def callback() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(fail)
            await anyio.sleep(0.9)

    outcome = world.outcome_of(callback)
    assert outcome.status == "error"
    assert isinstance(outcome.error, ExceptionGroup)


def test_a_scope_entered_before_the_first_suspension_works(world: World) -> None:
    async def callback() -> list[bool]:
        with anyio.move_on_after(0.2) as first:
            await anyio.sleep(0.5)
        with anyio.CancelScope() as second:
            second.cancel()
            await anyio.sleep(0.5)
        await anyio.sleep(0.1)
        return [first.cancelled_caught, second.cancelled_caught]

    assert world.outcome_of(callback).value == [True, True]


def test_the_task_is_the_same_before_and_after_it_suspends(world: World) -> None:
    async def callback() -> bool:
        before = anyio.get_current_task().id
        await anyio.sleep(0.1)
        return before == anyio.get_current_task().id

    assert world.outcome_of(callback).value is True


def test_a_callback_of_a_sequential_dispatch_runs_in_the_callers_task(backend: str) -> None:
    tasks: list[int] = []

    async def callback() -> None:
        tasks.append(anyio.get_current_task().id)
        who.set("the callback")
        await anyio.sleep(0.1)
        tasks.append(anyio.get_current_task().id)

    async def main() -> str:
        tasks.append(anyio.get_current_task().id)
        await Dispatcher(timeout=1).dispatch([callback])
        return who.get()

    assert run_on(backend, main) == "the callback", "as after any awaited call"
    assert len(set(tasks)) == 1


# Cancelled from outside.


def test_a_cancellation_from_outside_passes_through(world: World) -> None:
    steps: list[str] = []

    async def callback() -> None:
        try:
            await anyio.sleep(10)
        finally:
            steps.append("cleaned up")

    async def main() -> bool:
        with anyio.move_on_after(0.5) as scope:
            await world.dispatch([callback, by], 5)
            steps.append("never reached")
        return scope.cancelled_caught

    assert run_on(world.backend, main) is True
    assert steps == ["cleaned up"]


@pytest.mark.parametrize("when", [0.5, 1])
def test_a_cancelled_task_is_cancelled_even_if_time_is_up_at_that_moment(
    asyncio_world: World, when: float
) -> None:
    async def main() -> bool:
        task = asyncio.create_task(asyncio_world.dispatch([lambda: asyncio.sleep(10), by], 1))
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_at(when, task.cancel)
        await asyncio.wait([task])
        return task.cancelled()

    assert run_on("asyncio", main) is True


def test_a_timeout_of_asyncio_around_the_dispatch_works(asyncio_world: World) -> None:
    async def main() -> None:
        async with asyncio.timeout(0.5):
            await asyncio_world.dispatch([lambda: asyncio.sleep(10), by], 1)

    with pytest.raises(TimeoutError):
        run_on("asyncio", main)


def test_after_a_timeout_the_task_is_as_it_was(asyncio_world: World) -> None:
    """What the timeout cancelled it has taken back: a later timeout of asyncio still works."""

    async def main() -> None:
        task = asyncio.current_task()
        assert task is not None
        for _ in range(3):
            result = await asyncio_world.dispatch([lambda: asyncio.sleep(10), by], 1)
            assert [outcome.status for outcome in result] == ["timeout", "ok"]
            assert task.cancelling() == 0
        async with asyncio.timeout(0.5):
            await asyncio.sleep(1)

    with pytest.raises(TimeoutError):
        run_on("asyncio", main)


def test_a_cancellation_nobody_sent_is_no_timeout(asyncio_world: World) -> None:
    async def callback() -> None:
        await asyncio.sleep(0.5)
        raise asyncio.CancelledError

    assert asyncio_world.outcome_of(callback).status == "cancelled"


def test_awaiting_a_task_that_somebody_cancelled_is_no_timeout(asyncio_world: World) -> None:
    async def callback() -> None:
        task = asyncio.create_task(asyncio.sleep(10))
        asyncio.get_running_loop().call_later(0.5, task.cancel)
        await task

    assert asyncio_world.outcome_of(callback).status == "cancelled"


# What can be awaited.


class Custom(Awaitable[str]):
    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __await__(self) -> Generator[Any, Any, str]:
        yield from anyio.sleep(self._seconds).__await__()
        return "awaited"


def test_an_object_with_await_is_given_its_time(world: World) -> None:
    assert world.outcome_of(lambda: Custom(0.5)).value == "awaited"
    assert world.outcome_of(lambda: Custom(2)).status == "timeout"


def test_a_future_is_given_its_time(asyncio_world: World) -> None:
    def future(seconds: float) -> asyncio.Future[str]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[str] = loop.create_future()
        loop.call_later(seconds, lambda: future.done() or future.set_result("set"))
        return future

    assert asyncio_world.outcome_of(lambda: future(0.5)).value == "set"
    assert asyncio_world.outcome_of(lambda: future(2)).status == "timeout"


def test_a_task_that_is_too_slow_is_cancelled(asyncio_world: World) -> None:
    tasks: list[asyncio.Task[None]] = []

    def start() -> asyncio.Task[None]:
        tasks.append(asyncio.create_task(asyncio.sleep(2)))
        return tasks[-1]

    assert asyncio_world.outcome_of(start).status == "timeout"
    assert tasks[0].cancelled()


def test_a_coroutine_somebody_else_awaits_is_refused_by_python(world: World) -> None:
    shared: list[Any] = []

    async def later() -> None:
        await anyio.sleep(0.2)

    def share() -> Any:
        if not shared:
            shared.append(later())
        return shared[0]

    async def main() -> list[str]:
        result = await Dispatcher(mode="concurrent", timeout=1).dispatch([share, share])
        return sorted(outcome.status for outcome in result)

    assert run_on(world.backend, main) == ["error", "ok"]


def test_a_synchronous_dispatch_closes_what_it_cannot_await() -> None:
    coroutines: list[Any] = []

    def callback() -> Any:
        coroutines.append(does_not_suspend())
        return coroutines[0]

    [outcome] = Dispatcher(timeout=1).dispatch_sync([callback])
    assert isinstance(outcome.error, AsyncCallbackError)
    assert inspect.getcoroutinestate(coroutines[0]) == inspect.CORO_CLOSED


def test_closing_a_dispatch_closes_the_callback() -> None:
    """As happens to a task that is left alone when its loop is gone."""
    steps: list[str] = []

    async def callback() -> None:
        try:
            await asyncio.sleep(2)
        finally:
            steps.append("cleaned up")

    async def main() -> None:
        entry = Bound(callback, None, callback)
        for dispatch in (
            Dispatcher(timeout=1).dispatch([callback]),
            within(callback(), 1, entry),
        ):
            assert dispatch.send(None) is not None
            dispatch.close()

    run_on("asyncio", main)
    assert steps == ["cleaned up"] * 2


def test_trio_as_a_guest_of_asyncio_is_given_its_time() -> None:
    async def main() -> list[str]:
        with trio.fail_after(10):
            result = await Dispatcher(timeout=0.001).dispatch([trio.sleep_forever, by])
        return [outcome.status for outcome in result]

    async def host() -> Any:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Any] = loop.create_future()
        trio.lowlevel.start_guest_run(
            main,
            run_sync_soon_threadsafe=loop.call_soon_threadsafe,
            done_callback=lambda outcome: done.set_result(outcome.unwrap()),
        )
        return await done

    assert asyncio.run(host()) == ["timeout", "ok"]


# Which numbers.


@pytest.mark.parametrize("timeout", [None, 1, 0.5, 1e-9, math.inf, 10**300])
def test_a_positive_number_of_seconds_is_a_timeout(timeout: Any) -> None:
    check_timeout(timeout)


@pytest.mark.parametrize(
    ("timeout", "error"),
    [
        (0, ValueError),
        (-1, ValueError),
        (math.nan, ValueError),
        (True, TypeError),
        ("1", TypeError),
        (1j, TypeError),
        ([1], TypeError),
    ],
)
def test_anything_else_is_refused_by_name(timeout: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"slow_threshold must be .*, not "):
        check_timeout(timeout, "slow_threshold")


def test_an_expiry_is_known_again_only_for_its_own_entry() -> None:
    one, other = (Bound(by, None, by) for _ in range(2))
    error = expiry(one, 1)
    assert is_expiry(error, one)
    assert not is_expiry(error, other)
    assert not is_expiry(TimeoutError(), one)
    assert not is_expiry(CallbackTimeoutError("made by a user"), one)
