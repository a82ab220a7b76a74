"""Watching callbacks without changing what they do: log lines, numbers, and the same behaviour."""

import asyncio
import functools
import gc
import inspect
import logging
import threading
import types
from collections.abc import Awaitable, Callable, Generator, Iterator
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from anyio import wait_all_tasks_blocked
from hypothesis import given, strategies as st

from callbackkit import (
    AsyncCallbackError,
    CallbackRegistry,
    PerformanceStats,
    monitor_callback_performance,
    trace_callback,
)
from callbackkit.testing import ManualClock

on_asyncio = pytest.mark.parametrize("anyio_backend", ["asyncio"])
WATCHERS = [trace_callback, monitor_callback_performance]
each_watcher = pytest.mark.parametrize("watch", WATCHERS, ids=["trace", "monitor"])


def sync_callback(data: int, *, more: int = 0) -> int:
    """Add."""
    return data + more


async def async_callback(data: int, *, more: int = 0) -> int:
    """Add, later."""
    await anyio.lowlevel.checkpoint()
    return data + more


class Watched:
    """A callable object with a state of its own."""

    def __init__(self) -> None:
        self.stats = "its own"
        self.calls = 0

    def __call__(self, data: int) -> int:
        self.calls += 1
        return data

    def method(self, data: int) -> int:
        return data


class AsyncWatched:
    async def __call__(self, data: int) -> int:
        return data


class Hostile:
    """Nothing can be asked of it, but it can be called."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("not to be asked")

    def __call__(self, data: int) -> int:
        return data


class Later(Awaitable[int]):
    def __await__(self) -> Generator[Any, Any, int]:
        yield from asyncio.sleep(0).__await__()
        return 7


@types.coroutine
def old_style(data: int) -> Generator[Any, Any, int]:
    yield from asyncio.sleep(0).__await__()
    return data


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """Return what is logged, the times taken out."""
    caplog.set_level(logging.DEBUG, "callbackkit.trace")
    found: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage().split(" after ")[0])

    handler = Collect()
    logging.getLogger("callbackkit.trace").addHandler(handler)
    yield found
    logging.getLogger("callbackkit.trace").removeHandler(handler)


# The same as before.


@each_watcher
def test_a_sync_callback_stays_sync(watch: Any) -> None:
    watched = watch(sync_callback)
    assert not inspect.iscoroutinefunction(watched)
    assert watched(1, more=2) == 3


@each_watcher
async def test_an_async_callback_stays_async(watch: Any) -> None:
    watched = watch(async_callback)
    assert inspect.iscoroutinefunction(watched)
    assert await watched(1, more=2) == 3


@each_watcher
async def test_an_async_callable_object_stays_async(watch: Any) -> None:
    watched = watch(AsyncWatched())
    assert inspect.iscoroutinefunction(watched)
    assert await watched(1) == 1


@each_watcher
@pytest.mark.parametrize("callback", [sync_callback, async_callback])
def test_name_docstring_and_signature_stay(watch: Any, callback: Any) -> None:
    watched = watch(callback)
    assert watched.__name__ == callback.__name__
    assert watched.__doc__ == callback.__doc__
    assert inspect.signature(watched) == inspect.signature(callback)
    assert watched.__wrapped__ is callback


OF_ALL_KINDS: dict[str, Callable[[int], int]] = {
    "callable object": Watched(),
    "method": Watched().method,
    "partial": functools.partial(sync_callback),
    "partial by name": functools.partial(sync_callback, more=0),
    "hostile object": Hostile(),
    "partial of a hostile object": functools.partial(Hostile()),
    "class": int,
    "static method": staticmethod(sync_callback),
    "lru_cache": functools.lru_cache(sync_callback),
}


@each_watcher
@pytest.mark.parametrize("kind", OF_ALL_KINDS)
def test_any_callable_can_be_watched(watch: Any, kind: str) -> None:
    assert watch(OF_ALL_KINDS[kind])(1) == 1


@each_watcher
def test_attributes_of_a_function_stay(watch: Any) -> None:
    def callback() -> None: ...

    callback.mark = "mine"
    assert watch(callback).mark == "mine"


def test_the_state_of_a_callable_object_is_not_copied() -> None:
    callback = Watched()
    watched: Any = trace_callback(callback)
    watched(1)
    assert callback.calls == 1
    assert not hasattr(watched, "calls")
    monitored = monitor_callback_performance(callback)
    monitored(1)
    assert monitored.stats.count == 1
    assert callback.stats == "its own"


@each_watcher
def test_what_it_raises_is_raised(watch: Any) -> None:
    error = ValueError("mine")

    def callback() -> None:
        raise error

    with pytest.raises(ValueError, match="mine") as raised:
        watch(callback)()
    assert raised.value is error


@each_watcher
@pytest.mark.parametrize("exception", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_what_is_for_the_program_is_raised_too(watch: Any, exception: type[BaseException]) -> None:
    def callback() -> None:
        raise exception

    with pytest.raises(exception):
        watch(callback)()


@each_watcher
def test_what_cannot_be_called_is_refused(watch: Any) -> None:
    with pytest.raises(TypeError, match="must be callable, not int"):
        watch(1)


@on_asyncio
@each_watcher
async def test_a_coroutine_that_comes_back_can_become_a_task(watch: Any) -> None:
    watched = watch(lambda data: async_callback(data))
    assert await asyncio.create_task(watched(1)) == 1


@on_asyncio
@each_watcher
async def test_a_task_that_comes_back_is_that_task(watch: Any) -> None:
    watched = watch(lambda data: asyncio.create_task(async_callback(data)))
    task = watched(1)
    assert isinstance(task, asyncio.Task)
    assert await task == 1


@on_asyncio
@each_watcher
@pytest.mark.parametrize(
    ("callback", "value"),
    [(lambda data: Later(), 7), (old_style, 1), (lambda data: async_callback(data), 1)],
    ids=["awaitable object", "generator coroutine", "coroutine"],
)
async def test_whatever_comes_back_to_be_awaited_can_be(
    watch: Any, callback: Callable[[int], Any], value: int
) -> None:
    assert await watch(callback)(1) == value


@each_watcher
async def test_a_cancellation_goes_on(watch: Any) -> None:
    cleaned: list[str] = []

    async def callback() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            cleaned.append("up")

    for watched in (watch(callback), watch(lambda: callback())):
        with anyio.move_on_after(0) as scope:
            await watched()
        assert scope.cancelled_caught
    assert cleaned == ["up", "up"]


@on_asyncio
@each_watcher
async def test_what_is_thrown_into_a_task_reaches_the_callback(watch: Any) -> None:
    async def callback() -> str:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            return "caught"
        return "slept"

    task = asyncio.create_task(watch(lambda: callback())())
    await asyncio.sleep(0)
    task.cancel()
    assert await task == "caught"


@each_watcher
async def test_in_a_synchronous_trigger_a_coroutine_is_closed_and_counts_as_failure(
    watch: Any,
) -> None:
    registry = CallbackRegistry()
    coroutines: list[Any] = []

    def callback() -> Any:
        coroutines.append(async_callback(1))
        return coroutines[0]

    watched = watch(watch(callback))
    registry.register_callback("a", watched)
    [outcome] = registry.trigger_callbacks_sync("a")
    assert isinstance(outcome.error, AsyncCallbackError)
    assert inspect.getcoroutinestate(coroutines[0]) == inspect.CORO_CLOSED
    if watch is monitor_callback_performance:
        assert (watched.stats.count, watched.stats.errors) == (1, 1)


@on_asyncio
async def test_closing_what_has_begun_or_ended_counts_once() -> None:
    watched = monitor_callback_performance(lambda: async_callback(1))
    begun = watched()
    begun.send(None)
    begun.close()
    begun.close()
    assert (watched.stats.count, watched.stats.errors) == (1, 1)
    ended = watched()
    assert await ended == 1
    ended.close()
    assert (watched.stats.count, watched.stats.errors) == (2, 1)
    closed = watched()
    closed.close()
    closed.close()
    assert (watched.stats.count, watched.stats.errors) == (3, 2)


def test_closing_an_object_that_was_to_be_awaited_counts_too() -> None:
    watched = monitor_callback_performance(lambda: Later())
    watched().close()
    assert (watched.stats.count, watched.stats.errors) == (1, 1)


@on_asyncio
async def test_throwing_into_what_has_not_begun_raises_there() -> None:
    watched = monitor_callback_performance(lambda: Later())
    with pytest.raises(ValueError, match="thrown"):
        watched().throw(ValueError("thrown"))
    with pytest.raises(ValueError, match="thrown"):
        watched().throw(ValueError, ValueError("thrown"))


# The log.


def test_a_trace_logs_begin_and_end(lines: list[str]) -> None:
    trace_callback(sync_callback, name="add")(1)
    assert lines == ["add called", "add returned"]


async def test_a_trace_of_an_async_callback_ends_when_it_does(lines: list[str]) -> None:
    go_on = anyio.Event()

    async def callback() -> None:
        await go_on.wait()

    async with anyio.create_task_group() as group:
        group.start_soon(trace_callback(callback, "wait"))
        await wait_all_tasks_blocked()
        assert lines == ["wait called"]
        go_on.set()
    assert lines == ["wait called", "wait returned"]


def fail() -> Any:
    raise ValueError("a secret")


async def fail_later() -> Any:
    await anyio.lowlevel.checkpoint()
    raise ValueError("a secret")


FAILING = {"sync": fail, "async": fail_later, "lambda": lambda: fail_later()}


@pytest.mark.parametrize("kind", FAILING)
async def test_a_trace_tells_what_was_raised(lines: list[str], kind: str) -> None:
    with pytest.raises(ValueError, match="secret"):
        await trace_callback(FAILING[kind], "it")()
    assert lines == ["it called", "it raised ValueError"]


def test_a_trace_does_not_log_arguments_nor_results(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "callbackkit.trace")
    trace_callback(lambda password: password)("hunter2")
    assert "hunter2" not in caplog.text


def test_a_trace_gives_the_seconds_to_those_who_read_records(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "callbackkit.trace")
    trace_callback(sync_callback)(1)
    assert caplog.records[-1].seconds >= 0


def test_a_trace_is_called_after_the_callback_unless_named(lines: list[str]) -> None:
    @trace_callback
    def plain() -> None: ...

    @trace_callback()
    def called() -> None: ...

    @trace_callback(name="audit")
    def named() -> None: ...

    for callback in (plain, called, named):
        callback()
    names = [line.removesuffix(" called").rpartition(".")[2] for line in lines[::2]]
    assert names == ["plain", "called", "audit"]


def test_the_trace_of_a_hostile_object_has_some_name(lines: list[str]) -> None:
    trace_callback(Hostile())(1)
    assert len(lines) == 2


# The numbers.


def durations(seconds: list[float]) -> PerformanceStats:
    stats = PerformanceStats()
    for second in seconds:
        stats.add(second)
    return stats


def test_before_the_first_call_all_is_nothing() -> None:
    stats = PerformanceStats()
    assert (stats.count, stats.errors, stats.total, stats.mean) == (0, 0, 0, 0)
    assert (stats.min, stats.max, stats.p50, stats.p95, stats.p99) == (0, 0, 0, 0, 0)


def test_the_numbers_of_some_calls() -> None:
    stats = durations([0.4, 0.1, 0.2, 0.3])
    stats.add(1.0, is_error=True)
    assert (stats.count, stats.errors) == (5, 1)
    assert (stats.min, stats.max) == (0.1, 1.0)
    assert stats.total == pytest.approx(2.0)
    assert stats.mean == pytest.approx(0.4)
    assert repr(stats) == "<PerformanceStats count=5 errors=1 mean=0.400000>"


def test_percentiles_are_of_the_nearest_rank() -> None:
    stats = durations([15, 20, 35, 40, 50])
    assert [stats.percentile(percent) for percent in (5, 30, 40, 50, 100)] == [15, 20, 20, 35, 50]
    hundred = durations([float(number) for number in range(1, 101)])
    assert (hundred.p50, hundred.p95, hundred.p99) == (50, 95, 99)


@given(
    st.lists(st.floats(0, 1e6), min_size=1, max_size=50),
    st.floats(0, 100, exclude_min=True),
)
def test_a_percentile_is_the_least_that_so_many_do_not_exceed(
    seconds: list[float], percent: float
) -> None:
    found = durations(seconds).percentile(percent)
    assert found in seconds
    share = percent / 100 * len(seconds)
    assert sum(one <= found for one in seconds) >= share - 1e-9
    assert sum(one < found for one in seconds) < share + 1e-9


@pytest.mark.parametrize("percent", [0, -1, 100.1, float("nan")])
def test_a_percentile_that_is_none_is_refused(percent: float) -> None:
    with pytest.raises(ValueError, match="percent"):
        PerformanceStats().percentile(percent)


def test_memory_is_bounded_and_percentiles_are_of_the_last_calls() -> None:
    stats = durations([1.0] * 10_000 + [2.0] * 1_024)
    assert stats.count == 11_024
    assert len(stats._recent) == 1_024
    assert stats.p50 == 2.0
    assert stats.min == 1.0


def test_calls_of_many_threads_are_all_counted() -> None:
    monitored = monitor_callback_performance(sync_callback)

    def call() -> None:
        for _ in range(1_000):
            monitored(1)

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert monitored.stats.count == 8_000


def test_garbage_collection_may_call_a_monitored_callback_while_it_is_counted() -> None:
    monitored = monitor_callback_performance(sync_callback)

    class Loose:
        def __del__(self) -> None:
            monitored(1)

    with monitored.stats._lock:
        Loose()
    gc.collect()
    assert monitored.stats.count == 1


def test_the_time_of_a_call_is_measured_by_the_clock_given() -> None:
    clock = ManualClock()
    monitored = monitor_callback_performance(clock.advance, clock=clock)
    for seconds in (1, 3):
        monitored(seconds)
    assert (monitored.stats.min, monitored.stats.max, monitored.stats.total) == (1, 3, 4)


@pytest.mark.parametrize("kind", ["async", "lambda"])
async def test_the_time_something_is_awaited_is_measured(kind: str) -> None:
    clock = ManualClock()

    async def callback() -> None:
        clock.advance(1)
        await anyio.lowlevel.checkpoint()
        clock.advance(2)

    monitored: Any = monitor_callback_performance(
        callback if kind == "async" else lambda: callback(), clock=clock
    )
    await monitored()
    assert (monitored.stats.count, monitored.stats.total) == (1, 3)


@pytest.mark.parametrize("kind", FAILING)
async def test_a_failed_call_is_counted_as_call_and_error(kind: str) -> None:
    monitored = monitor_callback_performance(FAILING[kind])
    with pytest.raises(ValueError, match="secret"):
        await monitored()
    assert (monitored.stats.count, monitored.stats.errors) == (1, 1)


async def test_a_call_with_wrong_arguments_is_counted_too() -> None:
    monitored: Any = monitor_callback_performance(async_callback)
    with pytest.raises(TypeError):
        await monitored()
    assert (monitored.stats.count, monitored.stats.errors) == (1, 1)


@pytest.mark.parametrize("kind", ["async", "lambda"])
async def test_a_cancelled_call_is_counted_as_error(kind: str) -> None:
    monitored: Any = monitor_callback_performance(
        anyio.sleep_forever if kind == "async" else lambda: anyio.sleep_forever()
    )
    with anyio.move_on_after(0):
        await monitored()
    assert (monitored.stats.count, monitored.stats.errors) == (1, 1)


def test_each_monitored_callback_has_numbers_of_its_own() -> None:
    one, other = (monitor_callback_performance(sync_callback) for _ in range(2))
    one(1)
    assert (one.stats.count, other.stats.count) == (1, 0)


def test_a_callback_may_be_traced_and_monitored(lines: list[str]) -> None:
    both: Any = trace_callback(monitor_callback_performance(sync_callback), "add")
    assert both(1) == 1
    assert both.stats.count == 1
    assert len(lines) == 2


async def test_a_registry_that_monitors_gives_numbers_to_each_registration() -> None:
    registry = CallbackRegistry(monitor=True)
    one = registry.register_callback("a", sync_callback)
    other = registry.register_callback("a", async_callback)
    await registry.trigger_callbacks("a", 1)
    assert one.stats is not None
    assert other.stats is not None
    assert (one.stats.count, other.stats.count) == (1, 1)


async def test_a_registry_that_traces_logs_each_call(lines: list[str]) -> None:
    registry = CallbackRegistry(trace=True)
    registry.register_callback("a", sync_callback)
    await registry.trigger_callbacks("a", 1)
    assert [line.rpartition(".")[2] for line in lines] == [
        "sync_callback called",
        "sync_callback returned",
    ]
