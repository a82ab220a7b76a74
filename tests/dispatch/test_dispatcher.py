"""Running any callables so that none can stop another, and single calls."""

import asyncio
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from callbackkit import (
    AsyncCallbackError,
    CallbackCancelledError,
    CallbackRegistry,
    CallbackTimeoutError,
    DispatchDepthError,
    Dispatcher,
    ErrorContext,
    Outcome,
    safe_callback_execution,
    safe_callback_execution_sync,
)


def fail(*_args: object) -> None:
    raise ValueError("broken")


async def fail_async(*_args: object) -> None:
    await anyio.lowlevel.checkpoint()
    raise ValueError("broken")


async def double(number: int) -> int:
    await anyio.lowlevel.checkpoint()
    return number * 2


async def sleep(*_args: object) -> None:
    await anyio.sleep_forever()


@pytest.fixture
def records() -> Iterator[list[logging.LogRecord]]:
    """What is logged, kept from pytest."""
    kept: list[logging.LogRecord] = []

    def keep(record: logging.LogRecord) -> bool:
        kept.append(record)
        return False

    logger = logging.getLogger("callbackkit.dispatch")
    logger.addFilter(keep)
    yield kept
    logger.removeFilter(keep)


# Any callables.


async def test_it_calls_callables_in_order_and_awaits_what_they_return():
    result = await Dispatcher().dispatch([abs, double, lambda number: -number], -3)
    assert result.values() == [3, -6, 3]


def test_it_calls_synchronous_callables_without_a_loop():
    result = Dispatcher().dispatch_sync([abs, str], -3)
    assert result.values() == [3, "-3"]


async def test_it_gives_all_arguments_and_to_each_as_many_as_it_takes():
    def two(first: object, second: object) -> tuple[object, object]:
        return first, second

    callbacks: list[Callable[..., Any]] = [
        lambda: (),
        lambda first: (first,),
        two,
        lambda first, second, third=3: (first, second, third),
        lambda *args: args,
    ]
    for arguments in (("a", "b"), ("a", "b", "c")):
        result = await Dispatcher().dispatch(callbacks, *arguments)
        assert result.values() == [
            (),
            ("a",),
            ("a", "b"),
            ("a", "b", 3),
            arguments,
        ]
        assert Dispatcher().dispatch_sync(callbacks, *arguments).values() == result.values()


async def test_without_arguments_it_calls_without_arguments():
    assert (await Dispatcher().dispatch([lambda: 1, lambda *args: args])).values() == [1, ()]


async def test_one_that_wants_more_arguments_fails_alone():
    result = await Dispatcher().dispatch([lambda a, b: None, abs], -1)
    assert [outcome.status for outcome in result] == ["error", "ok"]
    assert isinstance(result[0].error, TypeError)


async def test_it_takes_any_iterable_of_callables_once():
    taken = iter([abs, double])
    dispatcher = Dispatcher()
    assert (await dispatcher.dispatch(taken, 2)).values() == [2, 4]
    assert (await dispatcher.dispatch(taken, 2)).values() == []
    assert dispatcher.dispatch_sync((each for each in (abs, abs)), -1).values() == [1, 1]


async def test_outcomes_have_the_callable_and_no_registration():
    (outcome,) = await Dispatcher().dispatch([abs], -1)
    assert outcome == Outcome(None, "ok", 1, callback=abs)


async def test_what_is_not_callable_is_refused_before_anybody_is_called():
    called: list[int] = []
    callbacks: list[Any] = [lambda: called.append(1), "text"]
    with pytest.raises(TypeError, match="callback must be callable, not str"):
        await Dispatcher().dispatch(callbacks)
    with pytest.raises(TypeError, match="callback must be callable, not str"):
        Dispatcher().dispatch_sync(callbacks)
    assert called == []


def test_known_async_callables_are_refused_before_anybody_is_called():
    called: list[int] = []
    with pytest.raises(AsyncCallbackError, match=r"double is asynchronous .* await the trigger"):
        Dispatcher().dispatch_sync([lambda: called.append(1), double], 1)
    assert called == []


def test_an_unforeseen_awaitable_is_closed_and_an_error():
    result = Dispatcher(timeout=60).dispatch_sync([lambda number: double(number), abs], 1)
    assert [outcome.status for outcome in result] == ["error", "ok"]
    assert isinstance(result[0].error, AsyncCallbackError)


async def test_a_dispatcher_may_run_many_dispatches_at_once():
    """More than the depth limit: they do not stand inside each other."""
    dispatcher = Dispatcher(depth_limit=3)
    everybody = anyio.Event()
    waiting: list[int] = []
    values: list[Any] = []

    async def wait() -> None:
        waiting.append(1)
        if len(waiting) == 20:
            everybody.set()
        await everybody.wait()

    async def run() -> None:
        values.extend((await dispatcher.dispatch([wait, lambda: "done"])).values())

    async with anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(run)
    assert values.count("done") == 20


# Error callbacks.


@pytest.mark.parametrize("mode", ["sequential", "concurrent"])
async def test_on_error_gets_each_failure_with_its_context(mode: Any):
    seen: list[tuple[Exception, ErrorContext]] = []

    async def on_error(exception: Exception, context: ErrorContext) -> None:
        await anyio.lowlevel.checkpoint()
        seen.append((exception, context))

    dispatcher = Dispatcher(mode=mode, on_error=on_error)
    result = await dispatcher.dispatch([fail, abs, fail_async], -1)
    assert [outcome.status for outcome in result] == ["error", "ok", "error"]
    assert [exception for exception, _ in seen] == result.errors
    assert [context.callback for _, context in seen] == [fail, fail_async]
    assert {context.event_type for _, context in seen} == {None}
    assert {context.registration for _, context in seen} == {None}


def test_the_context_of_a_call_without_an_event_names_the_callable():
    contexts: list[str] = []
    Dispatcher(on_error=lambda _exc, context: contexts.append(str(context))).dispatch_sync([fail])
    assert contexts == [f"{__name__}.fail"]


@pytest.mark.usefixtures("records")
def test_an_async_on_error_cannot_run_synchronously():
    async def on_error(_exception: Exception) -> None: ...

    result = Dispatcher(on_error=on_error).dispatch_sync([fail, abs], -1)
    assert [outcome.status for outcome in result] == ["error", "ok"]


@pytest.mark.usefixtures("records")
@pytest.mark.parametrize(
    "options", [{}, {"mode": "concurrent"}, {"timing": True}, {"timeout": 60}], ids=str
)
async def test_failures_are_not_chained_to_each_other(options: dict[str, Any]):
    """Each callback starts with a clean slate, however often the event was triggered before."""
    registry = CallbackRegistry(**options)
    seen: list[BaseException | None] = []

    async def fail_later() -> None:
        seen.append(sys.exception())
        await anyio.lowlevel.checkpoint()
        seen.append(sys.exception())
        raise LookupError("later")

    def fail_too() -> None:
        seen.append(sys.exception())
        raise KeyError("too")

    registry.register_callback("event", fail)
    registry.register_callback("event", fail_too)
    for _ in range(3):
        result = registry.trigger_callbacks_sync("event")
        assert [error.__context__ for error in result.errors] == [None, None]
    registry.register_callback("event", fail_later)
    registry.register_callback("event", fail_too)
    for _ in range(3):
        result = await registry.trigger_callbacks("event")
        assert [error.__context__ for error in result.errors] == [None] * 4
    assert set(seen) == {None}


def test_on_error_must_be_callable():
    with pytest.raises(TypeError, match="error callback must be callable"):
        Dispatcher(on_error="log")


# Logging.


async def test_a_failure_is_logged_with_name_status_and_traceback(
    records: list[logging.LogRecord],
):
    await Dispatcher().dispatch([fail, abs], -1)
    (record,) = records
    assert record.levelno == logging.ERROR
    assert record.getMessage() == f"callback {__name__}.fail failed (error)"
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], ValueError)
    assert record.__dict__["callback_name"] == f"{__name__}.fail"
    assert record.__dict__["status"] == "error"
    assert record.__dict__["event_type"] is None


async def test_timeouts_and_foreign_cancellations_are_logged(records: list[logging.LogRecord]):
    async def cancelled() -> None:
        raise asyncio.CancelledError

    await Dispatcher(timeout=0.01).dispatch([sleep, cancelled])
    assert [record.__dict__["status"] for record in records] == ["timeout", "cancelled"]


def test_a_failure_is_not_named_where_errors_are_not_logged(
    caplog: pytest.LogCaptureFixture,
):
    asked: list[str] = []

    class Named:
        def __getattr__(self, name: str) -> str:
            asked.append(name)
            raise AttributeError(name)

        def __call__(self) -> None:
            raise ValueError

    caplog.set_level(logging.CRITICAL, "callbackkit.dispatch")
    Dispatcher().dispatch_sync([Named()])
    assert "__qualname__" not in asked
    caplog.set_level(logging.ERROR, "callbackkit.dispatch")
    Dispatcher().dispatch_sync([Named()])
    assert "__qualname__" in asked


def test_an_error_callback_that_fails_is_logged_by_its_name(records: list[logging.LogRecord]):
    Dispatcher(on_error=fail).dispatch_sync([fail])
    assert [record.getMessage() for record in records] == [
        f"callback {__name__}.fail failed (error)",
        f"error callback {__name__}.fail failed",
    ]


# Timeouts and times.


@pytest.mark.parametrize("timing", [False, True])
async def test_each_callable_has_the_whole_timeout(timing: bool):
    async def some_time() -> None:
        await anyio.sleep(0.11)

    dispatcher = Dispatcher(timeout=0.3, timing=timing)
    assert (await dispatcher.dispatch([some_time, some_time, some_time])).ok


@pytest.mark.parametrize("mode", ["sequential", "concurrent"])
@pytest.mark.parametrize("timing", [False, True])
async def test_a_timeout_works_every_time(mode: Any, timing: bool):
    async def quick(number: int) -> int:
        return number

    dispatcher = Dispatcher(mode=mode, timeout=0.01, timing=timing)
    for _ in range(3):
        result = await dispatcher.dispatch([sleep, quick, sleep, abs], 2)
        assert [outcome.status for outcome in result] == ["timeout", "ok", "timeout", "ok"]


async def test_a_timeout_is_for_an_awaitable_that_a_sync_callable_returns_too():
    result = await Dispatcher(timeout=0.01).dispatch([lambda: sleep()])
    assert result[0].status == "timeout"
    assert isinstance(result[0].error, CallbackTimeoutError)


async def test_an_awaitable_that_is_no_coroutine_has_a_timeout_too():
    class Later:
        def __await__(self) -> Iterator[Any]:
            yield from sleep().__await__()

    result = await Dispatcher(timeout=0.01).dispatch([Later, lambda: 1])
    assert [outcome.status for outcome in result] == ["timeout", "ok"]


async def test_a_timeout_does_not_count_the_error_callbacks():
    """They have no limit; the next callback has its whole time again."""
    slept: list[int] = []

    async def on_error() -> None:
        await anyio.sleep(0.15)
        slept.append(1)

    result = await Dispatcher(timeout=0.1, on_error=on_error).dispatch([fail_async, sleep, abs], 1)
    assert [outcome.status for outcome in result] == ["error", "timeout", "ok"]
    assert len(slept) == 2


async def test_a_callable_that_swallows_its_timeout_is_not_stopped_by_it():
    """What it returns is its value: it has finished after all."""

    async def stubborn() -> str:
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            return "stubborn"
        return "never"

    result = await Dispatcher(timeout=0.01).dispatch([stubborn, abs], -1)
    assert result.values() == ["stubborn", 1]


@pytest.mark.parametrize("timing", [False, True])
async def test_a_timeout_leaves_the_task_usable(timing: bool):
    await Dispatcher(timeout=0.01, timing=timing).dispatch([sleep, sleep])
    with anyio.move_on_after(0.01) as scope:
        await anyio.sleep_forever()
    assert scope.cancelled_caught
    await anyio.sleep(0)


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
@pytest.mark.parametrize("timing", [False, True])
async def test_a_timeout_leaves_no_cancellation_pending_on_the_task(timing: bool):
    task = asyncio.current_task()
    assert task is not None
    await Dispatcher(timeout=0.01, timing=timing).dispatch([sleep, fail_async, sleep])
    assert task.cancelling() == 0


async def test_durations_do_not_contain_the_error_callbacks():
    began: list[float] = []

    async def on_error() -> None:
        began.append(perf_counter())
        await anyio.sleep(0.05)

    start = perf_counter()
    (outcome,) = await Dispatcher(timing=True, on_error=on_error).dispatch([fail_async])
    assert outcome.duration is not None
    assert 0 < outcome.duration <= began[0] - start


def test_durations_of_sync_runs_do_not_contain_the_error_callbacks():
    began: list[float] = []
    pause = threading.Event()

    def on_error() -> None:
        began.append(perf_counter())
        pause.wait(0.02)

    start = perf_counter()
    (outcome,) = Dispatcher(timing=True, on_error=on_error).dispatch_sync([fail])
    assert outcome.duration is not None
    assert 0 < outcome.duration <= began[0] - start


@pytest.mark.parametrize("mode", ["sequential", "concurrent"])
async def test_timing_gives_a_duration_to_every_outcome(mode: Any):
    dispatcher = Dispatcher(mode=mode, timing=True, timeout=0.01)
    result = await dispatcher.dispatch([abs, double, fail, fail_async, sleep], 1)
    assert all(outcome.duration is not None and outcome.duration >= 0 for outcome in result)
    sync = Dispatcher(timing=True).dispatch_sync([abs, fail], 1)
    assert all(outcome.duration is not None and outcome.duration >= 0 for outcome in sync)


def test_error_callbacks_do_not_make_a_callback_slow(records: list[logging.LogRecord]):
    pause = threading.Event()
    dispatcher = Dispatcher(slow_threshold=5, on_error=lambda: pause.wait(0.01))
    dispatcher.dispatch_sync([fail])
    assert [record.levelno for record in records] == [logging.ERROR]


def test_a_quick_callback_is_not_warned_of(records: list[logging.LogRecord]):
    Dispatcher(slow_threshold=60).dispatch_sync([abs], 1)
    assert records == []


# Depth.


def test_dispatchers_stand_inside_each_other_up_to_the_limit():
    dispatcher = Dispatcher(depth_limit=5)

    def nest(depth: int) -> Any:
        return dispatcher.dispatch_sync([nest], depth + 1)

    (outcome,) = dispatcher.dispatch_sync([nest], 1)
    assert isinstance(outcome.error, DispatchDepthError)
    assert "6 dispatches stand inside each other" in str(outcome.error)


async def test_concurrent_dispatches_stand_inside_each_other_up_to_the_limit():
    dispatcher = Dispatcher(mode="concurrent", depth_limit=5)
    depths: list[int] = []

    async def nest(depth: int) -> Any:
        depths.append(depth)
        await anyio.lowlevel.checkpoint()
        return await dispatcher.dispatch([nest, double], depth + 1)

    result = await dispatcher.dispatch([nest, double], 1)
    assert [outcome.status for outcome in result] == ["error", "ok"]
    assert isinstance(result[0].error, DispatchDepthError)
    assert depths == [1, 2, 3, 4, 5]


async def test_concurrent_dispatches_below_the_limit_do_not_fail():
    """Also those that do not suspend, whose tasks begin inside the stack of the dispatch."""
    dispatcher = Dispatcher(mode="concurrent", depth_limit=5)

    async def nest(depth: int) -> int:
        if depth == 5:
            return 5
        return (await dispatcher.dispatch([nest, abs], depth + 1)).first()

    assert (await dispatcher.dispatch([nest, abs], 1)).first() == 5
    assert (await dispatcher.dispatch([nest, double], 1)).first() == 5


async def test_a_task_a_callback_merely_starts_is_not_inside_its_dispatch():
    dispatcher = Dispatcher(depth_limit=3)
    finished = anyio.Event()
    results: list[Any] = []

    async def chain(group: Any, left: int) -> None:
        def again() -> None:
            group.start_soon(chain, group, left - 1)

        results.append(await dispatcher.dispatch([again if left else finished.set]))

    async with anyio.create_task_group() as group:
        await chain(group, 10)
        await finished.wait()
    assert all(result.ok for result in results)
    assert len(results) == 11


# Options.


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"mode": "bands"}, ValueError, "'sequential' or 'concurrent', not 'bands'"),
        ({"mode": None}, ValueError, "not None"),
        ({"timeout": -1}, ValueError, "timeout must be positive, not -1"),
        ({"timeout": []}, TypeError, "timeout must be a number of seconds"),
        ({"slow_threshold": 0}, ValueError, "slow_threshold must be positive"),
        ({"depth_limit": 0}, ValueError, "at least 1, not 0"),
        ({"depth_limit": "9"}, ValueError, "depth_limit must be an int"),
        ({"parallel": True}, TypeError, "parallel"),
    ],
    ids=[
        "mode",
        "mode None",
        "timeout",
        "timeout type",
        "threshold",
        "depth",
        "depth type",
        "name",
    ],
)
def test_an_option_out_of_range_is_refused(
    options: dict[str, Any], error: type[Exception], message: str
):
    with pytest.raises(error, match=message):
        Dispatcher(**options)


# One call.


@pytest.mark.parametrize("callback", [lambda data: data * 2, double], ids=["sync", "async"])
async def test_a_single_call_gives_its_outcome(callback: Callable[..., Any]):
    outcome = await safe_callback_execution(callback, 4)
    assert outcome == Outcome(None, "ok", 8, callback=callback)


@pytest.mark.usefixtures("records")
@pytest.mark.parametrize("callback", [fail, fail_async])
async def test_a_single_call_that_fails_gives_its_error(callback: Callable[..., Any]):
    outcome = await safe_callback_execution(callback, 4)
    assert outcome.status == "error"
    assert isinstance(outcome.error, ValueError)


async def test_a_single_call_needs_no_data():
    assert (await safe_callback_execution(lambda: 1)).value == 1
    assert (await safe_callback_execution(lambda data: data is None)).value is True
    assert safe_callback_execution_sync(lambda: 1).value == 1


def test_a_single_sync_call_gives_its_outcome():
    assert safe_callback_execution_sync(abs, -4) == Outcome(None, "ok", 4, callback=abs)
    assert safe_callback_execution_sync(fail, 1).status == "error"


def test_a_single_sync_call_refuses_an_async_callback():
    with pytest.raises(AsyncCallbackError, match="double is asynchronous"):
        safe_callback_execution_sync(double, 1)
    outcome = safe_callback_execution_sync(lambda number: double(number), 1)
    assert isinstance(outcome.error, AsyncCallbackError)


async def test_a_single_call_of_what_is_not_callable_is_refused():
    with pytest.raises(TypeError, match="callback must be callable, not NoneType"):
        await safe_callback_execution(None)
    with pytest.raises(TypeError, match="callback must be callable, not int"):
        safe_callback_execution_sync(5)


@pytest.mark.parametrize(
    "context", ["on call end", "2 * 3 = 6", "a**b", "order.cre*", "*", "with %s and {}", "\n"]
)
async def test_a_single_call_is_logged_with_its_context(
    context: str, records: list[logging.LogRecord]
):
    """Which is any text."""
    assert (await safe_callback_execution(fail, 1, context)).status == "error"
    assert safe_callback_execution_sync(fail, 1, context).status == "error"
    assert len(records) == 2
    for record in records:
        assert context in record.getMessage() or repr(context) in record.getMessage()
        assert record.exc_info is not None


async def test_a_single_call_without_a_context_is_logged_without(
    records: list[logging.LogRecord],
):
    await safe_callback_execution(fail, 1)
    await safe_callback_execution(fail, 1, "")
    assert {record.getMessage() for record in records} == {
        f"callback {__name__}.fail failed (error)"
    }


@pytest.mark.usefixtures("records")
async def test_a_single_call_that_is_cancelled_by_somebody_else_is_an_outcome():
    async def cancelled() -> None:
        raise asyncio.CancelledError

    outcome = await safe_callback_execution(cancelled)
    assert outcome.status == "cancelled"
    assert isinstance(outcome.error, CallbackCancelledError)


async def test_a_single_call_passes_our_cancellation_on():
    with anyio.move_on_after(0.01) as scope:
        await safe_callback_execution(sleep)
    assert scope.cancelled_caught
