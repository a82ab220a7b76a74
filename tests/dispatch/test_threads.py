"""Worker threads: what goes in and comes back, and what becomes of those that hang."""

import asyncio
import functools
import inspect
import logging
import math
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from anyio import wait_all_tasks_blocked

from callbackkit import (
    AbandonedThreadsError,
    AsyncCallbackError,
    CallbackRegistry,
    CallbackTimeoutError,
    DispatchResult,
)
from callbackkit.dispatch.registration import Bound
from callbackkit.dispatch.threads import WorkerThreads

on_asyncio = pytest.mark.parametrize("anyio_backend", ["asyncio"])

EVENT = "order.created"
SOON = 0.005

who = ContextVar("who", default="nobody")


class Gate:
    """A callback that hangs until it is opened; then it calls its data, or returns it."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self.entered = threading.Semaphore(0)

    def __call__(self, data: Any) -> Any:
        self.entered.release()
        self._open.wait()
        return data() if callable(data) else data

    def open(self) -> None:
        self._open.set()


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open()


def registry_of(callback: Callable[..., Any], **options: Any) -> CallbackRegistry:
    registry = CallbackRegistry()
    registry.register_callback(EVENT, callback, thread=True, **options)
    return registry


def entry_of(callback: Callable[[Any], Any]) -> Bound:
    return Bound(callback, None, callback)


def until(condition: Callable[[], bool]) -> None:
    """Wait for what a thread does next: it ends without telling anybody."""
    for thread in threading.enumerate():
        if thread.name == "callbackkit callback":
            thread.join(timeout=10)
    assert condition()


Trigger = Callable[[CallbackRegistry, Any], Any]


async def awaited(registry: CallbackRegistry, data: Any = None) -> DispatchResult:
    return await registry.trigger_callbacks(EVENT, data)


async def in_sync(registry: CallbackRegistry, data: Any = None) -> DispatchResult:
    return registry.trigger_callbacks_sync(EVENT, data)


each_trigger = pytest.mark.parametrize("trigger", [awaited, in_sync], ids=["async", "sync"])


# What goes in and comes back.


@each_trigger
async def test_a_callback_runs_in_another_thread_with_the_callers_context(trigger: Trigger) -> None:
    def callback(data: str) -> tuple[str, str]:
        before = who.get()
        who.set("the callback")
        return before, threading.current_thread().name

    who.set("the caller")
    result = await trigger(registry_of(callback), "data")
    assert result.values() == [("the caller", "callbackkit callback")]
    assert who.get() == "the caller"


@each_trigger
async def test_the_value_comes_back(trigger: Trigger) -> None:
    assert (await trigger(registry_of(lambda data: data + 1), 1)).values() == [2]


@each_trigger
async def test_an_exception_comes_back_with_where_it_was_raised(trigger: Trigger) -> None:
    error = ValueError("mine")

    def callback() -> None:
        raise error

    result = await trigger(registry_of(callback))
    assert result.errors == [error]
    assert "callback" in [frame.name for frame in frames(error)]


def frames(error: BaseException) -> Any:
    return traceback.extract_tb(error.__traceback__)


@each_trigger
@pytest.mark.parametrize("exception", [KeyboardInterrupt, SystemExit])
async def test_what_is_for_the_program_comes_out_of_the_trigger(
    trigger: Trigger, exception: type[BaseException]
) -> None:
    def callback() -> None:
        raise exception

    with pytest.raises(exception):
        await trigger(registry_of(callback))


async def test_a_coroutine_that_comes_back_is_awaited_in_the_loop() -> None:
    loop_thread = threading.get_ident()

    async def later(data: int) -> tuple[int, bool]:
        await anyio.lowlevel.checkpoint()
        return data, threading.get_ident() == loop_thread

    result = await awaited(registry_of(lambda data: later(data)), 1)
    assert result.values() == [(1, True)]


async def test_a_coroutine_that_comes_back_to_a_synchronous_trigger_is_closed() -> None:
    coroutines: list[Any] = []

    def callback() -> Any:
        coroutines.append(anyio.lowlevel.checkpoint())
        return coroutines[0]

    [error] = (await in_sync(registry_of(callback))).errors
    assert isinstance(error, AsyncCallbackError)
    assert inspect.getcoroutinestate(coroutines[0]) == inspect.CORO_CLOSED


async def test_what_is_awaited_afterwards_is_under_the_timeout_too() -> None:
    registry = registry_of(lambda: anyio.sleep_forever(), timeout=SOON)
    [outcome] = await awaited(registry)
    assert outcome.status == "timeout"
    assert (registry.abandoned_threads, registry.hanging_threads) == (0, 0)


@each_trigger
async def test_a_cancellation_nobody_sent_is_an_outcome(trigger: Trigger) -> None:
    def callback() -> None:
        raise asyncio.CancelledError

    [outcome] = await trigger(registry_of(callback))
    assert outcome.status == "cancelled"


async def test_the_loop_is_free_while_a_callback_blocks(gate: Gate) -> None:
    results: list[DispatchResult] = []

    async def run() -> None:
        results.append(await awaited(registry_of(gate), "value"))

    async with anyio.create_task_group() as group:
        group.start_soon(run)
        await wait_all_tasks_blocked()
        gate.open()
    assert results[0].values() == ["value"]


async def test_callbacks_that_wait_for_each_other_all_get_a_thread() -> None:
    """A pool full of waiting threads would never empty."""
    meeting = threading.Barrier(100)
    registry = CallbackRegistry(mode="concurrent")
    for _ in range(100):
        registry.register_callback(EVENT, lambda: meeting.wait(), thread=True)
    assert sorted((await awaited(registry)).values()) == list(range(100))


# Given up on.


@each_trigger
async def test_a_callback_that_takes_too_long_is_abandoned_and_counted(
    trigger: Trigger, gate: Gate
) -> None:
    registry = registry_of(gate, timeout=SOON)
    [outcome] = await trigger(registry)
    assert outcome.status == "timeout"
    assert isinstance(outcome.error, CallbackTimeoutError)
    assert (outcome.error.timeout, registry.abandoned_threads) == (SOON, 1)
    assert registry.hanging_threads == 1
    gate.open()
    until(lambda: registry.hanging_threads == 0)
    assert registry.abandoned_threads == 1


@each_trigger
@pytest.mark.parametrize("timeout", [1e300, math.inf, threading.TIMEOUT_MAX * 2])
async def test_a_very_long_timeout_is_no_error(trigger: Trigger, timeout: float) -> None:
    result = await trigger(registry_of(lambda: "value", timeout=timeout))
    assert result.values() == ["value"]


@each_trigger
async def test_the_other_callbacks_run_although_one_hangs(trigger: Trigger, gate: Gate) -> None:
    registry = registry_of(gate, timeout=SOON)
    registry.register_callback(EVENT, lambda: "other")
    result = await trigger(registry)
    assert [outcome.status for outcome in result] == ["timeout", "ok"]


@each_trigger
async def test_a_late_failure_is_logged(
    trigger: Trigger, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise ValueError("too late")

    await trigger(registry_of(gate, timeout=SOON), fail)
    caplog.clear()
    gate.open()
    until(lambda: len(caplog.records) == 1)
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "failed after it was given up on" in record.getMessage()
    assert record.exc_info is not None
    assert "too late" in str(record.exc_info[1])


@each_trigger
async def test_a_late_value_is_nobodys(
    trigger: Trigger, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    await trigger(registry_of(gate, timeout=SOON), lambda: "late")
    caplog.clear()
    gate.open()
    until(lambda: caplog.records == [])


@each_trigger
async def test_a_coroutine_that_comes_too_late_is_closed(trigger: Trigger, gate: Gate) -> None:
    coroutines: list[Any] = []

    def late() -> Any:
        coroutines.append(anyio.lowlevel.checkpoint())
        return coroutines[0]

    await trigger(registry_of(gate, timeout=SOON), late)
    gate.open()
    until(lambda: inspect.getcoroutinestate(coroutines[0]) == inspect.CORO_CLOSED)


async def test_a_cancelled_dispatch_abandons_at_once(gate: Gate) -> None:
    registry = registry_of(gate)
    async with anyio.create_task_group() as group:
        group.start_soon(awaited, registry)
        await anyio.to_thread.run_sync(gate.entered.acquire)
        group.cancel_scope.cancel()
    assert (registry.abandoned_threads, registry.hanging_threads) == (1, 1)
    gate.open()
    until(lambda: registry.hanging_threads == 0)


@on_asyncio
@pytest.mark.parametrize("kind", ["value", "error", "coroutine"])
async def test_a_result_that_meets_a_cancellation_is_not_lost_in_silence(
    kind: str, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    """The thread is done and has woken its caller, who is cancelled before it runs."""
    coroutine = anyio.lowlevel.checkpoint()

    def finish() -> Any:
        if kind == "error":
            raise ValueError("just too late")
        return coroutine if kind == "coroutine" else "value"

    registry = registry_of(gate)
    task = asyncio.create_task(awaited(registry, finish))
    await anyio.to_thread.run_sync(gate.entered.acquire)
    gate.open()
    # Nothing else runs in this loop until the thread has handed over its result.
    until(lambda: True)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert registry.abandoned_threads == 0
    assert ("just too late" in caplog.text) is (kind == "error")
    if kind == "coroutine":
        assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED
    coroutine.close()


def test_an_interrupted_synchronous_trigger_abandons(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real Ctrl-C could come anywhere; this one comes where the trigger waits."""
    registry = registry_of(gate)

    class Interrupted(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            if timeout is None:
                # A thread that is being started.
                return super().wait()
            gate.entered.acquire()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(threading, "Event", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            registry.trigger_callbacks_sync(EVENT)
    assert (registry.abandoned_threads, registry.hanging_threads) == (1, 1)


# When too many hang.


@each_trigger
async def test_when_too_many_hang_calls_fail_at_once(trigger: Trigger, gate: Gate) -> None:
    threads = WorkerThreads(max_hanging=2)
    entry = entry_of(gate)
    for _ in range(2):
        with pytest.raises(CallbackTimeoutError):
            await call(trigger, threads, entry, SOON)
    with pytest.raises(AbandonedThreadsError, match="2 worker threads hang"):
        await call(trigger, threads, entry, None)
    gate.open()
    until(lambda: threads.hanging == 0)
    assert await call(trigger, threads, entry, None) is None
    assert threads.abandoned == 2


async def call(trigger: Trigger, threads: WorkerThreads, entry: Bound, timeout: Any) -> Any:
    if trigger is awaited:
        return await threads.run(entry, None, timeout)
    return threads.run_sync(entry, None, timeout)


@each_trigger
async def test_the_fortieth_hanging_thread_is_the_last_one(trigger: Trigger, gate: Gate) -> None:
    registry = registry_of(gate, timeout=0.001)
    statuses = [(await trigger(registry))[0] for _ in range(42)]
    assert [outcome.status for outcome in statuses] == ["timeout"] * 40 + ["error"] * 2
    assert isinstance(statuses[-1].error, AbandonedThreadsError)
    assert (registry.abandoned_threads, registry.hanging_threads) == (40, 40)


@each_trigger
async def test_a_thread_that_cannot_be_started_is_that_callbacks_failure(
    trigger: Trigger, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = registry_of(lambda: "value")
    registry.register_callback(EVENT, lambda: "other")

    def refuse(*_args: Any, **_kwargs: Any) -> Any:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        result = await trigger(registry)
    assert [outcome.status for outcome in result] == ["error", "ok"]
    assert (registry.abandoned_threads, registry.hanging_threads) == (0, 0)
    assert (await trigger(registry)).values() == ["value", "other"]


@pytest.mark.parametrize("backend", ["asyncio", "trio", "sync"])
def test_the_interpreter_exits_although_a_callback_hangs(backend: str) -> None:
    program = f"""
import threading
from callbackkit import CallbackRegistry
registry = CallbackRegistry()
registry.register_callback("a", threading.Event().wait, thread=True, timeout=0.01)
if {backend!r} == "sync":
    result = registry.trigger_callbacks_sync("a")
else:
    import anyio
    result = anyio.run(registry.trigger_callbacks, "a", backend={backend!r})
print(result, registry.hanging_threads)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert done.stdout == "<DispatchResult [timeout]> 1\n"


def test_garbage_collection_may_give_up_on_a_call_in_the_middle_of_another(gate: Gate) -> None:
    threads = WorkerThreads()

    class Loose:
        def __del__(self) -> None:
            with pytest.raises(CallbackTimeoutError):
                threads.run_sync(entry_of(gate), None, SOON)

    with threads._lock:
        Loose()
    assert threads.abandoned == 1


def test_a_partial_in_a_thread_is_called_by_its_function_in_the_log(
    gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_more: int, _data: Any) -> None:
        gate(None)
        raise ValueError("too late")

    registry_of(functools.partial(fail, 1), timeout=SOON).trigger_callbacks_sync(EVENT)
    caplog.clear()
    gate.open()
    until(lambda: "fail failed after" in caplog.text)
