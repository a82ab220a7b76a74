"""An operation: what is told of its progress, when, in which order, and how it ends."""

import asyncio
import functools
import math
import threading
from fractions import Fraction
from itertools import pairwise

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from hypothesis import given, strategies as st

from callbackkit import AsyncCallbackError, Operation


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Log:
    """What was called, in order."""

    def __init__(self) -> None:
        self.seen: list[object] = []

    def progress(self, fraction: float, message: str | None) -> None:
        self.seen.append(fraction if message is None else (fraction, message))

    def complete(self, result: object) -> None:
        self.seen.append(("complete", result))

    def error(self, exc: BaseException, context: str) -> None:
        self.seen.append(("error", repr(exc), context))

    def operation(self, **options) -> Operation:
        options = {"min_interval": 0, **options}
        return Operation(
            on_progress=self.progress, on_complete=self.complete, on_error=self.error, **options
        )


class AsyncLog(Log):
    async def progress(self, fraction: float, message: str | None) -> None:
        await anyio.lowlevel.checkpoint()
        super().progress(fraction, message)

    async def complete(self, result: object) -> None:
        await anyio.lowlevel.checkpoint()
        super().complete(result)

    async def error(self, exc: BaseException, context: str) -> None:
        await anyio.lowlevel.checkpoint()
        super().error(exc, context)


@pytest.fixture
def log() -> Log:
    return Log()


def in_thread(function, *args) -> threading.Thread:
    thread = threading.Thread(target=function, args=args, daemon=True)
    thread.start()
    return thread


# Progress.


def test_steps_become_fractions_of_the_total(log) -> None:
    operation = log.operation(total=4)
    operation.advance()
    operation.advance(2)
    assert log.seen == [0.25, 0.75]
    assert operation.fraction == 0.75
    assert not operation.is_done


def test_steps_beyond_the_total_count_as_all_of_it(log) -> None:
    operation = log.operation(total=2, min_interval=math.inf, clock=Clock())
    operation.advance(5)
    operation.advance(5)
    assert log.seen == [1.0]
    assert operation.fraction == 1.0


def test_a_fraction_comes_with_the_last_message(log) -> None:
    operation = log.operation(total=4)
    operation.update(0.5, "parsing")
    operation.advance()
    operation.update(0.8)
    operation.update(0.9, "writing")
    assert log.seen == [
        (0.5, "parsing"),
        (0.75, "parsing"),
        (0.8, "parsing"),
        (0.9, "writing"),
    ]


def test_progress_may_go_back(log) -> None:
    operation = log.operation()
    operation.update(0.5)
    operation.update(0.25)
    assert log.seen == [0.5, 0.25]


@pytest.mark.parametrize("fraction", [0, 1, Fraction(1, 2)])
def test_any_real_number_is_told_as_a_float(log, fraction) -> None:
    log.operation().update(fraction)
    assert type(log.seen[0]) is float


def test_a_callback_is_given_what_it_takes() -> None:
    """Only parameters without a default count."""
    seen: list[object] = []
    for callback in (
        lambda: seen.append("nothing"),
        seen.append,
        lambda fraction, bar="bar": seen.append((fraction, bar)),
        lambda fraction, message: seen.append((fraction, message)),
        lambda *args: seen.append(args),
    ):
        Operation(on_progress=callback).update(0.5, "half")
    assert seen == ["nothing", 0.5, (0.5, "bar"), (0.5, "half"), (0.5, "half")]


def test_end_callbacks_are_given_what_they_take() -> None:
    seen: list[object] = []
    Operation(on_complete=lambda: seen.append("complete")).complete("result")
    Operation(on_error=lambda: seen.append("failed")).fail(ValueError())
    error = ValueError()
    Operation(on_error=seen.append).fail(error)
    assert seen == ["complete", "failed", error]


def test_an_operation_without_callbacks_counts_too() -> None:
    operation = Operation(total=2)
    operation.advance()
    assert operation.fraction == 0.5
    operation.complete()
    assert operation.is_done
    assert repr(operation) == "<Operation 100%, done>"


# How often.


def test_progress_is_told_at_most_once_an_interval(log) -> None:
    clock = Clock()
    operation = log.operation(total=100, min_interval=0.5, clock=clock)
    for _ in range(99):
        operation.advance()
        clock.now += 0.125
    assert log.seen[:3] == [0.01, 0.05, 0.09]
    assert len(log.seen) == 25


def test_the_first_report_and_the_last_are_always_told(log) -> None:
    operation = log.operation(total=3, min_interval=math.inf, clock=Clock())
    for _ in range(3):
        operation.advance()
    assert log.seen == [1 / 3, 1.0]


def test_a_complete_operation_has_told_one_before_its_result(log) -> None:
    operation = log.operation(total=3, min_interval=math.inf, clock=Clock())
    operation.advance()
    operation.advance()
    operation.complete("result")
    assert log.seen == [1 / 3, 1.0, ("complete", "result")]
    assert operation.fraction == 1.0


def test_one_is_told_once(log) -> None:
    operation = log.operation(total=1)
    operation.advance()
    operation.complete()
    assert log.seen == [1.0, ("complete", None)]


def test_one_is_told_again_with_a_new_message(log) -> None:
    operation = log.operation(min_interval=math.inf, clock=Clock())
    operation.update(1.0)
    operation.update(1.0, "cleaning up")
    operation.complete()
    assert log.seen == [1.0, (1.0, "cleaning up"), ("complete", None)]


def test_an_operation_nobody_reported_on_tells_one(log) -> None:
    log.operation().complete()
    assert log.seen == [1.0, ("complete", None)]


def test_a_failed_operation_has_told_the_last_report(log) -> None:
    operation = log.operation(total=10, min_interval=math.inf, clock=Clock())
    operation.advance()
    operation.update(0.4, "parsing")
    operation.fail(ValueError("bad page"))
    assert log.seen == [
        0.1,
        (0.4, "parsing"),
        ("error", "ValueError('bad page')", "operation failed at 40% (parsing)"),
    ]


def test_a_failure_before_any_report_tells_no_progress(log) -> None:
    log.operation().fail(ValueError())
    assert log.seen == [("error", "ValueError()", "operation failed at 0%")]


# The end.


@pytest.mark.parametrize("first", ["complete", "fail"])
def test_an_operation_ends_once(log, first) -> None:
    operation = log.operation(total=4)
    ends = {"complete": operation.complete, "fail": lambda: operation.fail(ValueError())}
    ends[first]()
    so_far = list(log.seen)
    operation.advance()
    operation.update(0.1)
    operation.complete("late")
    operation.fail(OSError())
    assert log.seen == so_far
    assert operation.is_done


def test_an_end_reported_by_a_callback_counts() -> None:
    seen: list[object] = []

    def progress(fraction: float) -> None:
        seen.append(fraction)
        operation.complete("from inside")
        seen.append("still in progress")

    operation = Operation(on_progress=progress, on_complete=seen.append, min_interval=0)
    operation.update(0.5)
    assert seen == [0.5, "still in progress", 1.0, "still in progress", "from inside"]


def test_a_failure_nobody_hears_is_logged(caplog) -> None:
    Operation().fail(ValueError("unheard"))
    assert "ValueError: unheard" in caplog.text
    caplog.clear()
    operation = Operation()
    operation.complete()
    operation.fail(ValueError("late"))
    assert caplog.records == []


# As a block.


def test_a_block_completes_the_operation(log) -> None:
    with log.operation(total=1) as operation:
        operation.advance()
        assert not operation.is_done
    assert log.seen == [1.0, ("complete", None)]


def test_a_block_that_raises_fails_the_operation(log, caplog) -> None:
    def work() -> None:
        with log.operation() as operation:
            operation.update(0.5)
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        work()
    assert log.seen == [0.5, ("error", "ValueError('mine')", "operation failed at 50%")]
    with pytest.raises(ValueError, match="mine"), Operation():
        raise ValueError("mine")
    assert caplog.records == []


def test_an_interrupt_of_a_block_fails_the_operation(log) -> None:
    with pytest.raises(KeyboardInterrupt), log.operation():
        raise KeyboardInterrupt
    assert log.seen == [("error", "KeyboardInterrupt()", "operation failed at 0%")]


def test_a_block_may_end_the_operation_itself(log) -> None:
    with log.operation() as operation:
        operation.complete("early")
    assert log.seen == [1.0, ("complete", "early")]


# Tracking.


def test_tracking_takes_the_total_from_the_items(log) -> None:
    operation = log.operation()
    seen = [(item, len(log.seen)) for item in operation.track("ab")]
    assert seen == [("a", 0), ("b", 1)]
    assert log.seen == [0.5, 1.0]
    assert not operation.is_done


def test_tracking_keeps_a_total_that_was_given(log) -> None:
    operation = log.operation(total=4)
    for _ in operation.track(iter("ab")):
        pass
    for _ in operation.track("cd"):
        pass
    assert log.seen == [0.25, 0.5, 0.75, 1.0]


def test_tracking_what_has_no_length_needs_a_total() -> None:
    with pytest.raises(TypeError, match=r"has no length; .*total="):
        Operation().track(iter("ab"))


def test_tracking_nothing_completes_like_anything_else(log) -> None:
    with log.operation() as operation:
        for _ in operation.track([]):
            pass
    assert log.seen == [1.0, ("complete", None)]


def test_a_loop_that_is_left_does_not_count_its_item(log) -> None:
    operation = log.operation()
    for item in operation.track("abcd"):
        if item == "b":
            break
    assert log.seen == [0.25]


def test_a_loop_that_raises_fails_its_block(log) -> None:
    def work() -> None:
        with log.operation() as operation:
            for item in operation.track([1, 0]):
                if item == 0:
                    raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        work()
    assert log.seen == [
        0.5,
        (
            "error",
            "ValueError('mine')",
            "operation failed at 50%",
        ),
    ]


# Callbacks that fail.


def test_callbacks_that_fail_do_not_disturb_the_work(caplog) -> None:
    def fail(*_args: object) -> None:
        raise RuntimeError("broken")

    with Operation(on_progress=fail, on_complete=fail, min_interval=0, total=2) as operation:
        operation.advance()
        operation.advance()
    with pytest.raises(ValueError, match="mine"), Operation(on_error=fail):
        raise ValueError("mine")
    assert len(caplog.records) == 4
    for record, part in zip(
        caplog.records, ["on_progress", "on_progress", "on_complete", "on_error"], strict=True
    ):
        assert part in record.message
        assert "fail" in record.message


def test_a_foreign_cancellation_does_not_disturb_the_work(caplog) -> None:
    def cancel(_fraction: float) -> None:
        raise asyncio.CancelledError

    Operation(on_progress=cancel).update(0.5)
    assert len(caplog.records) == 1


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_passes(stop) -> None:
    def interrupt(_fraction: float) -> None:
        raise stop

    with pytest.raises(stop):
        Operation(on_progress=interrupt).update(0.5)


def test_an_awaitable_that_comes_back_is_a_failure(log, caplog) -> None:
    asynchronous = AsyncLog()
    Operation(on_progress=lambda fraction: asynchronous.progress(fraction, None)).update(0.5)
    assert "AsyncCallbackError" in caplog.text
    assert asynchronous.seen == []


# Threads.


def test_threads_report_in_order_and_one_at_a_time() -> None:
    busy = threading.Lock()
    seen: list[float] = []

    def progress(fraction: float) -> None:
        assert busy.acquire(blocking=False)
        seen.append(fraction)
        busy.release()

    operation = Operation(total=8 * 200, on_progress=progress, min_interval=0)
    start = threading.Barrier(8)

    def work() -> None:
        start.wait(10)
        for _ in range(200):
            operation.advance()

    threads = [in_thread(work) for _ in range(8)]
    for thread in threads:
        thread.join(20)
    assert seen == sorted(seen)
    assert len(seen) == len(set(seen))
    assert seen[-1] == operation.fraction == 1.0


def test_no_lock_is_held_while_a_callback_runs(log) -> None:
    """Other threads report meanwhile, and are not held up; it is told in order later."""
    is_running, may_end = threading.Event(), threading.Event()

    def slow(fraction: float) -> None:
        is_running.set()
        assert may_end.wait(10)
        log.progress(fraction, None)

    operation = Operation(on_progress=slow, on_complete=log.complete, min_interval=0)
    thread = in_thread(operation.update, 0.25)
    assert is_running.wait(10)
    operation.update(0.5)
    operation.complete("result")
    assert log.seen == []
    may_end.set()
    thread.join(10)
    assert log.seen == [0.25, 0.5, 1.0, ("complete", "result")]


def test_a_callback_slower_than_the_work_does_not_fill_the_memory(log) -> None:
    is_running, may_end = threading.Event(), threading.Event()

    def slow(fraction: float) -> None:
        is_running.set()
        assert may_end.wait(10)
        log.progress(fraction, None)

    operation = Operation(total=5000, on_progress=slow, on_complete=log.complete, min_interval=0)
    thread = in_thread(operation.advance)
    assert is_running.wait(10)
    for _ in range(4000):
        operation.advance()
    operation.complete()
    may_end.set()
    thread.join(10)
    assert len(log.seen) == 1003
    assert log.seen[:2] == [1 / 5000, 2 / 5000]
    assert log.seen[-2:] == [1.0, ("complete", None)]


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("advance"), st.integers(0, 3)),
            st.tuples(st.just("update"), st.floats(0, 1)),
            st.tuples(st.just("wait"), st.floats(0, 0.2)),
        )
    ),
    st.booleans(),
)
def test_what_is_told_of_any_work(reports, fails) -> None:
    """The first report and the last, never two within the interval but for 1, and one end."""
    clock, log = Clock(), Log()
    at: list[float] = []

    def progress(fraction: float) -> None:
        log.seen.append(fraction)
        at.append(clock.now)

    operation = Operation(
        total=10, on_progress=progress, on_complete=log.complete, on_error=log.error, clock=clock
    )
    reported = 0
    for kind, amount in reports:
        if kind == "wait":
            clock.now += amount
            continue
        reported += 1
        getattr(operation, kind)(amount)
        assert log.seen[0] in ({operation.fraction} if reported == 1 else set(log.seen))
        assert operation.fraction != 1.0 or log.seen[-1] == 1.0
    for one, (before, after) in zip(log.seen[1:], pairwise(at), strict=True):
        assert after - before >= 0.1 or one == 1.0
    last = operation.fraction
    if fails:
        operation.fail(ValueError())
        assert not reported or log.seen[-2] == last
    else:
        operation.complete()
        assert log.seen[-2] == 1.0
    assert [type(one) is tuple for one in log.seen].count(True) == 1
    assert type(log.seen[-1]) is tuple


# Asynchronous callbacks.


async def test_async_callbacks_are_awaited_in_order() -> None:
    log = AsyncLog()
    async with log.operation(total=3) as operation:
        for _ in operation.track("abc"):
            await anyio.lowlevel.checkpoint()
        assert not operation.is_done
    assert log.seen == [1 / 3, 2 / 3, 1.0, ("complete", None)]


async def test_every_report_is_told_though_the_work_never_awaits() -> None:
    log = AsyncLog()
    async with log.operation(total=3) as operation:
        for _ in range(3):
            operation.advance()
        operation.complete("result")
        assert log.seen == []
    assert log.seen == [1 / 3, 2 / 3, 1.0, ("complete", "result")]


async def test_sync_and_async_callbacks_may_be_mixed() -> None:
    log = AsyncLog()
    operation = Operation(
        on_progress=lambda fraction: Log.progress(log, fraction, None),
        on_complete=log.complete,
        min_interval=0,
    )
    async with operation:
        operation.update(0.5)
    assert log.seen == [0.5, 1.0, ("complete", None)]


async def test_an_awaitable_that_comes_back_is_awaited_in_a_block() -> None:
    log = AsyncLog()
    async with Operation(on_progress=lambda fraction: log.progress(fraction, None)) as operation:
        operation.update(0.5)
    assert log.seen == [0.5, 1.0]


async def test_threads_report_to_the_loop() -> None:
    """Also to one that is idle: an update is told while the block just waits."""
    threads: set[threading.Thread] = set()
    is_told = anyio.Event()
    seen: list[float] = []

    async def progress(fraction: float) -> None:
        await anyio.lowlevel.checkpoint()
        threads.add(threading.current_thread())
        seen.append(fraction)
        is_told.set()

    with anyio.fail_after(10):
        async with Operation(on_progress=progress, min_interval=0, total=200) as operation:
            await anyio.wait_all_tasks_blocked()
            in_thread(operation.advance)
            await is_told.wait()
            await anyio.to_thread.run_sync(lambda: [operation.advance() for _ in range(99)])
    assert seen == [*[step / 200 for step in range(1, 101)], 1.0]
    assert threads == {threading.current_thread()}


async def test_a_block_that_raises_waits_until_that_is_told() -> None:
    """The exception comes out as it is, not in a group."""
    log = AsyncLog()
    error = ValueError("mine")

    async def work() -> None:
        async with log.operation() as operation:
            operation.update(0.5)
            raise error

    with pytest.raises(ValueError, match="mine") as caught:
        await work()
    assert caught.value is error
    assert log.seen == [0.5, ("error", "ValueError('mine')", "operation failed at 50%")]


@pytest.mark.parametrize("error", [StopIteration, StopAsyncIteration, GeneratorExit, SystemExit])
async def test_odd_exceptions_of_a_block_come_out_as_they_are(error, log) -> None:
    with pytest.raises(error):
        async with log.operation():
            raise error
    assert log.seen == [("error", f"{error.__name__}()", "operation failed at 0%")]


async def test_an_interrupt_of_an_async_block_passes_at_once() -> None:
    """It does not wait for callbacks; the end is told as far as that does not suspend."""
    seen: list[object] = []

    async def progress(_fraction: float) -> None:
        await anyio.sleep_forever()

    async def work() -> None:
        async with Operation(on_progress=progress, on_error=seen.append) as operation:
            operation.update(0.5)
            await anyio.wait_all_tasks_blocked()
            raise SystemExit

    with pytest.raises(SystemExit), anyio.fail_after(10):
        await work()
    assert [type(one) for one in seen] == [SystemExit]


async def test_async_callbacks_that_fail_do_not_disturb_the_work(caplog) -> None:
    async def fail(*_args: object) -> None:
        await anyio.lowlevel.checkpoint()
        raise RuntimeError("broken")

    async with Operation(on_progress=fail, on_complete=fail, min_interval=0) as operation:
        operation.update(0.5)
    assert [record.event_type for record in caplog.records] == [
        "on_progress",
        "on_progress",
        "on_complete",
    ]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
async def test_an_interrupt_by_a_callback_ends_the_block(stop, log) -> None:
    async def interrupt(_fraction: float) -> None:
        await anyio.lowlevel.checkpoint()
        raise stop

    async def work(*, waits: bool) -> None:
        async with Operation(on_progress=interrupt, on_complete=log.complete) as operation:
            operation.update(0.5)
            if waits:
                await anyio.sleep_forever()

    for waits in (True, False):
        with pytest.raises(stop), anyio.fail_after(10):
            await work(waits=waits)
    assert log.seen == []


async def test_a_cancelled_block_cancels_what_is_awaited_and_tells_its_end(log) -> None:
    told: list[str] = []

    async def progress(_fraction: float) -> None:
        told.append("progress begins")
        await anyio.sleep_forever()

    async def error(_exc: BaseException, context: str) -> None:
        told.append(context)
        await anyio.lowlevel.checkpoint()
        told.append("never")

    with anyio.move_on_after(0.01) as scope:
        async with Operation(on_progress=progress, on_error=error, min_interval=0) as operation:
            operation.update(0.25)
            operation.update(0.5)
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert told == ["progress begins", "operation failed at 50%"]


async def test_a_block_cancelled_while_it_waits_at_its_end_is_not_held_up() -> None:
    told: list[object] = []

    async def progress(_fraction: float) -> None:
        await anyio.sleep_forever()

    with anyio.move_on_after(0.01) as scope:
        async with Operation(on_progress=progress, on_complete=told.append) as operation:
            operation.update(0.5)
            operation.complete("result")
    assert scope.cancelled_caught
    assert told == ["result"]


def test_a_cancelled_task_is_cancelled() -> None:
    told: list[str] = []

    async def progress(_fraction: float) -> None:
        await asyncio.sleep(60)

    async def error(exc: BaseException) -> None:
        told.append(type(exc).__name__)
        await asyncio.sleep(60)

    async def work() -> None:
        async with Operation(on_progress=progress, on_error=error) as operation:
            operation.update(0.5)
            await asyncio.sleep(60)

    async def main() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(work(), 0.01)

    asyncio.run(main())
    assert told == ["CancelledError"]


def test_a_foreign_cancellation_of_an_async_callback_does_not_disturb_the_work() -> None:
    async def progress(_fraction: float) -> None:
        task = asyncio.ensure_future(asyncio.sleep(60))
        task.cancel()
        await task

    async def main() -> list[object]:
        seen: list[object] = []
        async with Operation(on_progress=progress, on_complete=seen.append) as operation:
            operation.update(0.5)
            await asyncio.sleep(0)
            operation.complete("result")
        return seen

    assert asyncio.run(main()) == ["result"]


async def test_a_callback_slower_than_async_work_does_not_fill_the_memory() -> None:
    log = AsyncLog()
    async with log.operation(total=5000) as operation:
        for _ in range(4000):
            operation.advance()
    assert len(log.seen) == 1002
    assert log.seen[0] == 1 / 5000
    assert log.seen[-2:] == [1.0, ("complete", None)]


async def test_an_operation_that_has_ended_may_still_be_entered() -> None:
    log = Log()
    operation = log.operation()
    operation.complete("early")
    async with operation:
        operation.update(0.5)
    assert log.seen == [1.0, ("complete", "early")]


async def test_an_operation_is_entered_once() -> None:
    operation = Operation()
    async with operation:
        with pytest.raises(RuntimeError, match="once"):
            await operation.__aenter__()
    with pytest.raises(RuntimeError, match="once"):
        async with operation:
            pass


class AsyncObject:
    async def __call__(self, *_args: object) -> None: ...


@pytest.mark.parametrize("part", ["on_progress", "on_complete", "on_error"])
@pytest.mark.parametrize(
    "use",
    [
        lambda operation: operation.update(0.5),
        lambda operation: operation.advance(),
        lambda operation: operation.complete(),
        lambda operation: operation.fail(ValueError()),
        lambda operation: operation.track([]),
        lambda operation: operation.__enter__(),
    ],
    ids=["update", "advance", "complete", "fail", "track", "with"],
)
def test_an_async_callback_is_refused_outside_an_async_block(part, use) -> None:
    operation = Operation(total=2, **{part: AsyncObject()})
    with pytest.raises(AsyncCallbackError, match=rf"{part}, .*AsyncObject, .*'async with'"):
        use(operation)
    assert not operation.is_done
    assert operation.fraction == 0.0


# Bad input.


@pytest.mark.parametrize("total", [-1, math.nan, math.inf])
def test_a_bad_total_is_refused(total) -> None:
    with pytest.raises(ValueError, match="total must be"):
        Operation(total=total)


@pytest.mark.parametrize("interval", [-0.1, math.nan])
def test_a_bad_interval_is_refused(interval) -> None:
    with pytest.raises(ValueError, match="min_interval must be"):
        Operation(min_interval=interval)


@pytest.mark.parametrize("bad", ["1", None, True, 1j])
def test_what_is_no_number_is_refused(bad) -> None:
    with pytest.raises(TypeError, match="fraction must be a number"):
        Operation().update(bad)
    with pytest.raises(TypeError, match="n must be a number"):
        Operation(total=1).advance(bad)
    with pytest.raises(TypeError, match="min_interval must be a number"):
        Operation(min_interval=bad)
    if bad is not None:
        with pytest.raises(TypeError, match="total must be a number"):
            Operation(total=bad)


@pytest.mark.parametrize("fraction", [-0.1, 1.1, math.nan, math.inf])
def test_a_fraction_that_is_none_is_refused(log, fraction) -> None:
    operation = log.operation()
    with pytest.raises(ValueError, match="fraction must be 0 to 1"):
        operation.update(fraction)
    assert log.seen == []


@pytest.mark.parametrize("n", [-1, math.nan, math.inf])
def test_a_bad_step_is_refused(log, n) -> None:
    operation = log.operation(total=2)
    with pytest.raises(ValueError, match="n must be"):
        operation.advance(n)
    assert log.seen == []


def test_steps_need_a_total() -> None:
    with pytest.raises(RuntimeError, match=r"Operation\(total=...\)"):
        Operation().advance()


@pytest.mark.parametrize("part", ["on_progress", "on_complete", "on_error"])
def test_what_is_not_callable_is_refused(part) -> None:
    with pytest.raises(TypeError, match=f"{part} must be callable"):
        Operation(**{part: "print"})


@pytest.mark.parametrize("bad", ["message", None, ValueError])
def test_only_an_exception_fails_an_operation(bad) -> None:
    with pytest.raises(TypeError, match="fail"):
        Operation().fail(bad)


def test_a_partial_of_an_async_callback_is_async_too() -> None:
    with pytest.raises(AsyncCallbackError):
        Operation(on_progress=functools.partial(AsyncObject())).update(0.5)
