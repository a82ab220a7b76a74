"""The log in memory: order, bounds, cursors of its own for each reader, threads and loops."""

import asyncio
import gc
import sys
import threading
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
import trio
from anyio import wait_all_tasks_blocked
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    precondition,
    rule,
)

from callbackkit import StreamLagError
from callbackkit.buffer import (
    Log,
    Reader,
    RunLog,
    ThreadWaiter,
    checkpoint,
    in_event_loop,
    new_waiter,
)

on_asyncio = pytest.mark.parametrize("anyio_backend", ["asyncio"])


class Thing:
    """An item that can be held weakly."""


def log_of(*items: Any, max_items: int = 100, **options: Any) -> Log[Any]:
    log: Log[Any] = Log(max_items=max_items, **options)
    for item in items:
        log.append(item)
    return log


def at_once(awaitable: Coroutine[Any, Any, Any]) -> Any:
    """Return what a coroutine gives that need not wait."""
    try:
        awaitable.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("it waits")


def failure_of(awaitable: Coroutine[Any, Any, Any]) -> BaseException:
    """Return what a coroutine raises at once, without the traceback, which holds the reader."""
    try:
        awaitable.send(None)
    except (StopAsyncIteration, StreamLagError) as exc:
        return exc.with_traceback(None)
    raise AssertionError("it waits")


def read_all(reader: Reader[Any]) -> list[Any]:
    """Read what is there, waiting for nothing."""
    items = []
    while reader.lag:
        items.append(at_once(reader.__anext__()))
    return items


async def rest_of(reader: Reader[Any]) -> list[Any]:
    return [item async for item in reader]


def run_threads(*calls: Callable[[], object]) -> None:
    """Run each call in a thread, all let go at once, and wait for all of them."""
    gate = threading.Barrier(len(calls))
    failures: list[BaseException] = []

    def run(call: Callable[[], object]) -> None:
        gate.wait()
        try:
            call()
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


# Order.


async def test_items_come_in_the_order_they_were_appended() -> None:
    log = log_of("a", "b", "c")
    log.close()
    assert await rest_of(log.reader()) == ["a", "b", "c"]


async def test_items_of_many_threads_come_once_each_and_in_the_order_of_each_thread() -> None:
    log: Log[tuple[int, int]] = Log(max_items=8 * 300)

    def produce(thread: int) -> None:
        for number in range(300):
            log.append((thread, number))

    got: list[list[tuple[int, int]]] = []

    async def read(reader: Reader[tuple[int, int]]) -> None:
        got.append(await rest_of(reader))

    async with anyio.create_task_group() as group:
        group.start_soon(read, log.reader())
        group.start_soon(read, log.reader())
        producers = [lambda thread=thread: produce(thread) for thread in range(8)]
        await anyio.to_thread.run_sync(run_threads, *producers)
        log.close()
    assert got[0] == got[1], "every reader sees one and the same order"
    for thread in range(8):
        assert [pair for pair in got[0] if pair[0] == thread] == [(thread, n) for n in range(300)]
    assert len(got[0]) == 8 * 300


def test_each_reader_has_a_cursor_of_its_own() -> None:
    log = log_of(1, 2, 3)
    fast, slow = log.reader(), log.reader()
    assert read_all(fast) == [1, 2, 3]
    assert at_once(slow.__anext__()) == 1
    log.append(4)
    assert (fast.lag, slow.lag) == (1, 3)
    assert (read_all(fast), read_all(slow)) == ([4], [2, 3, 4])


def test_a_reader_starts_with_the_oldest_item_kept() -> None:
    assert read_all(log_of(1, 2, 3, max_items=2).reader()) == [2, 3]


def test_a_reader_from_now_starts_behind_the_newest_item() -> None:
    log = log_of(1, 2)
    reader = log.reader(from_now=True)
    log.append(3)
    assert read_all(reader) == [3]


# Bounds.


def test_no_more_than_max_items_are_kept() -> None:
    log = log_of(*range(10), max_items=3)
    assert len(log) == 3
    assert read_all(log.reader()) == [7, 8, 9]


def test_no_more_than_max_bytes_are_kept() -> None:
    log = log_of("aaa", "bbb", "ccc", "dddd", max_bytes=8, size=len)
    assert read_all(log.reader()) == ["ccc", "dddd"]


@pytest.mark.parametrize("keep_read", [False, True])
def test_the_newest_item_is_kept_whatever_its_size(keep_read: bool) -> None:
    log = log_of("small", "x" * 100, max_bytes=10, size=len, keep_read=keep_read)
    assert len(log) == 1
    assert read_all(log.reader()) == ["x" * 100]
    log.append("next")
    assert read_all(log.reader()) == ["next"]


def test_an_item_that_grows_after_it_was_appended_still_counts_as_it_did() -> None:
    log: Log[bytearray] = Log(max_items=10, max_bytes=4, size=len)
    item = bytearray(b"abcd")
    log.append(item)
    item.extend(b"efgh")
    for _ in range(3):
        log.append(bytearray(b"ij"))
    assert len(log) == 2


async def test_numbers_stay_right_when_many_thousand_items_pass_through() -> None:
    log: Log[int] = Log(max_items=70, max_bytes=1_000, size=lambda _: 10)
    reader = log.reader()
    for number in range(5_000):
        log.append(number)
        if number % 3 == 0:
            assert await anext(reader) == max(number // 3, number - 69)
    assert len(log._items) < 70 * 3, "what is gone does not pile up"


@pytest.mark.parametrize("name", ["max_items", "max_bytes"])
@pytest.mark.parametrize(
    ("value", "error"), [(0, ValueError), (-1, ValueError), (True, TypeError), (1.5, TypeError)]
)
def test_a_bound_that_is_none_is_refused_by_name(
    name: str, value: Any, error: type[Exception]
) -> None:
    with pytest.raises(error, match=name):
        Log(**{"max_items": 10, "size": len, name: value})


def test_max_bytes_without_size_is_refused() -> None:
    with pytest.raises(ValueError, match="size"):
        Log(max_items=10, max_bytes=10)


# Overflow.


def test_a_reader_that_lost_items_goes_on_with_the_oldest_kept_and_counts() -> None:
    log = log_of(max_items=2)
    reader = log.reader()
    for number in range(5):
        log.append(number)
    assert reader.missed == 3, "told at once, not only when it reads on"
    assert read_all(reader) == [3, 4]
    for number in range(5, 9):
        log.append(number)
    assert read_all(reader) == [7, 8]
    assert reader.missed == 5


def test_a_reader_with_overflow_error_gets_the_error_once_then_goes_on() -> None:
    log = log_of(max_items=2)
    reader = log.reader(overflow="error")
    for number in range(5):
        log.append(number)
    failure = failure_of(reader.__anext__())
    assert isinstance(failure, StreamLagError)
    assert failure.missed == reader.missed == 3
    assert read_all(reader) == [3, 4]


def test_a_slow_reader_costs_the_others_nothing() -> None:
    log = log_of(max_items=2)
    slow, fast = log.reader(), log.reader()
    for number in range(5):
        log.append(number)
        assert read_all(fast) == [number]
    assert (slow.missed, fast.missed) == (3, 0)


def test_another_overflow_is_refused_by_value() -> None:
    with pytest.raises(ValueError, match="'block'"):
        log_of().reader(overflow="block")


# What is kept, and for how long.


def test_an_item_is_let_go_of_once_every_reader_has_read_it() -> None:
    log = log_of(max_items=10)
    first, second = log.reader(), log.reader()
    thing = Thing()
    log.append(thing)
    seen = weakref.ref(thing)
    del thing
    read_all(first)
    assert seen() is not None
    read_all(second)
    assert seen() is None
    assert len(log) == 0


def test_with_keep_read_items_stay_for_readers_that_come_later() -> None:
    log = log_of(1, 2, keep_read=True)
    assert read_all(log.reader()) == [1, 2]
    assert read_all(log.reader()) == [1, 2]


def test_a_reader_that_is_dropped_without_close_holds_up_nothing() -> None:
    log = log_of(max_items=10)
    left, stays = log.reader(), log.reader()
    log.append(1)
    log.append(2)
    del left
    gc.collect()
    assert read_all(stays) == [1, 2]
    assert len(log) == 0


@pytest.mark.parametrize("keep_read", [False, True])
def test_readers_that_come_and_go_leave_nothing_behind(keep_read: bool) -> None:
    log = log_of(1, keep_read=keep_read)
    for _ in range(100):
        log.reader()
    assert len(log._readers) <= 1


def test_what_only_a_closed_reader_had_not_read_is_let_go_of() -> None:
    log = log_of(max_items=10)
    slow, fast = log.reader(), log.reader()
    log.append(1)
    log.append(2)
    assert at_once(fast.__anext__()) == 1
    slow.close()
    assert len(log) == 1
    fast.close()
    assert len(log) == 0


class Echo:
    """An item that appends another one when it is dropped."""

    def __init__(self, log: Log[Any]) -> None:
        self._log = log

    def __del__(self) -> None:
        self._log.append("gone")


@pytest.mark.parametrize("max_items", [1, 2, 3])
def test_an_item_may_append_when_it_is_dropped(max_items: int) -> None:
    """Garbage collection runs anybody's code, also in the middle of an append."""
    log: Log[Any] = Log(max_items=max_items, max_bytes=max_items, size=lambda _: 1)
    reader = log.reader()
    for number in range(max_items):
        log.append(Echo(log) if number == 0 else number)
    log.append("next")
    assert len(log) == max_items
    assert read_all(reader)[-1] == "gone"
    log.append("last")
    assert read_all(reader) == ["last"]


def test_an_item_may_append_when_its_last_reader_has_closed() -> None:
    log = log_of(max_items=10)
    reader = log.reader()
    log.append(Echo(log))
    log.append("next")
    reader.close()
    assert read_all(log.reader()) == ["gone"]


def test_looking_at_a_log_while_threads_write_never_fails() -> None:
    log: Log[int] = Log(max_items=65)
    readers = [log.reader()]
    done = threading.Event()

    def produce() -> None:
        for number in range(20_000):
            log.append(number)
        done.set()

    def look() -> None:
        while not done.is_set():
            assert 0 <= len(log) <= 65
            assert readers[0].lag >= 0
            assert readers[0].missed >= 0

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        run_threads(produce, look)
    finally:
        sys.setswitchinterval(interval)


def test_repr_tells_the_state() -> None:
    log = log_of(1, 2, 3, max_items=2)
    reader = log.reader()
    assert repr(reader) == "<Reader at 1 of <Log open, 2 items from 1>, missed 0>"
    log.close()
    assert repr(log) == "<Log closed, 2 items from 1>"


# The end.


async def test_a_closed_log_lets_readers_finish() -> None:
    log = log_of(1, 2)
    reader = log.reader()
    log.close()
    log.close()
    assert log.is_closed
    assert await rest_of(reader) == [1, 2]
    assert await rest_of(reader) == []


def test_a_closed_log_takes_nothing() -> None:
    log = log_of(1)
    assert log.append(2)
    log.close()
    assert not log.append(3)
    assert read_all(log.reader()) == [1, 2]


async def test_closing_the_log_ends_a_waiting_reader() -> None:
    log = log_of()
    async with anyio.create_task_group() as group:
        group.start_soon(rest_of, log.reader())
        await wait_all_tasks_blocked()
        log.close()


@pytest.mark.parametrize("where", ["task", "thread"])
async def test_closing_a_reader_ends_it_where_it_waits(where: str) -> None:
    log = log_of()
    reader, other = log.reader(), log.reader()
    async with anyio.create_task_group() as group:
        group.start_soon(rest_of, reader)
        group.start_soon(rest_of, other)
        await wait_all_tasks_blocked()
        if where == "task":
            reader.close()
        else:
            await anyio.to_thread.run_sync(reader.close)
        await wait_all_tasks_blocked()
        assert not group.cancel_scope.cancel_called
        log.append("more")
        log.close()
    assert await rest_of(reader) == []


async def test_a_closed_reader_gives_nothing_more_and_counts_no_further() -> None:
    log = log_of(max_items=2)
    reader = log.reader(overflow="error")
    for number in range(3):
        log.append(number)
    reader.close()
    reader.close()
    for number in range(3, 6):
        log.append(number)
    assert await rest_of(reader) == []
    assert reader.missed == 1


async def test_breaking_off_leaves_the_reader_usable() -> None:
    log = log_of(1, 2, 3)
    reader = log.reader()
    async for item in reader:
        assert item == 1
        break
    assert read_all(reader) == [2, 3]


# Cancellation.


async def test_a_reader_cancelled_while_it_waits_loses_nothing() -> None:
    log = log_of()
    reader = log.reader()
    with anyio.move_on_after(0) as scope:
        await anext(reader)
    assert scope.cancelled_caught
    assert log._parked == [], "nobody is left waiting"
    log.append("kept")
    assert await anext(reader) == "kept"


async def test_a_reader_woken_and_cancelled_at_once_loses_nothing() -> None:
    log = log_of()
    reader = log.reader()
    got: list[int] = []

    async def read(scope: anyio.CancelScope) -> None:
        with scope:
            got.append(await anext(reader))

    for number in range(20):
        scope = anyio.CancelScope()
        async with anyio.create_task_group() as group:
            group.start_soon(read, scope)
            await wait_all_tasks_blocked()
            if number % 2:
                log.append(number)
                scope.cancel()
            else:
                scope.cancel()
                log.append(number)
    log.close()
    assert [*got, *await rest_of(reader)] == list(range(20))


@on_asyncio
async def test_wait_for_of_asyncio_loses_nothing() -> None:
    log = log_of()
    reader = log.reader()
    got: list[int] = []
    for number in range(20):
        waiting = asyncio.create_task(asyncio.wait_for(anext(reader), 0.01 if number % 4 else 5))
        for _ in range(1 + number % 4):
            await asyncio.sleep(0)
        if number % 2:
            waiting.cancel()
        log.append(number)
        if number % 3 == 0:
            waiting.cancel()
        try:
            got.append(await waiting)
        except (TimeoutError, asyncio.CancelledError):
            pass
    log.close()
    assert [*got, *await rest_of(reader)] == list(range(20))


async def test_the_forced_pause_of_a_cancelled_reader_loses_nothing() -> None:
    log = log_of(*range(1_000), max_items=1_000)
    log.close()
    reader = log.reader()
    got: list[int] = []
    with anyio.CancelScope() as scope:
        scope.cancel()
        while True:
            got.append(await anext(reader))
    assert 0 < len(got) < 1_000
    assert [*got, *await rest_of(reader)] == list(range(1_000))


# Loops and threads.


async def test_a_reader_with_much_to_read_lets_other_tasks_run() -> None:
    """Without the forced pause a producer faster than its reader would keep the loop for ever."""
    log = log_of(*range(2_560), max_items=2_560)
    log.close()
    turns = 0

    async def tick() -> None:
        nonlocal turns
        while True:
            turns += 1
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as group:
        group.start_soon(tick)
        await anyio.lowlevel.checkpoint()
        before = turns
        await rest_of(log.reader())
        assert turns - before >= 5
        group.cancel_scope.cancel()


async def test_a_thread_wakes_an_idle_loop() -> None:
    log = log_of()
    reader = log.reader()
    thread = threading.Thread(target=log.append, args=("from outside",))
    async with anyio.create_task_group() as group:
        group.start_soon(start_when_idle, thread)
        assert await anext(reader) == "from outside"
    thread.join()


def test_an_item_that_comes_while_a_reader_makes_ready_to_wait_is_not_slept_through() -> None:
    log = log_of()

    class Busy(asyncio.SelectorEventLoop):
        def create_future(self) -> asyncio.Future[Any]:
            log.append("just in time")
            return super().create_future()

    with asyncio.Runner(loop_factory=Busy) as runner:
        assert runner.run(log.reader().__anext__()) == "just in time"


async def start_when_idle(thread: threading.Thread) -> None:
    await wait_all_tasks_blocked()
    thread.start()


def run_on(backend: str, function: Callable[..., Awaitable[Any]], *args: Any) -> Any:
    return anyio.run(function, *args, backend=backend)


@pytest.mark.parametrize(
    "backends", [("asyncio", "asyncio"), ("asyncio", "trio"), ("trio", "trio")], ids="-".join
)
def test_two_loops_in_two_threads_read_one_log(backends: tuple[str, str]) -> None:
    log: Log[int] = Log(max_items=10_000)
    readers = [log.reader(), log.reader()]
    got: dict[int, list[int]] = {}
    half_way = threading.Barrier(3)

    async def read(place: int) -> None:
        reader = readers[place]
        got[place] = [await anext(reader) for _ in range(500)]
        half_way.wait()
        got[place] += await rest_of(reader)

    def produce() -> None:
        for number in range(500):
            log.append(number)
        half_way.wait()
        for number in range(500, 1_000):
            log.append(number)
        log.close()

    run_threads(
        produce,
        *(lambda place=place: run_on(backends[place], read, place) for place in range(2)),
    )
    assert got == {0: list(range(1_000)), 1: list(range(1_000))}


def test_trio_as_a_guest_of_asyncio_reads_what_a_thread_writes() -> None:
    log = log_of(1)
    reader = log.reader()

    async def in_trio() -> list[int]:
        got = [await anext(reader)]
        writer = threading.Thread(target=run_on, args=("asyncio", write))
        writer.start()
        got += await rest_of(reader)
        writer.join()
        return got

    async def write() -> None:
        log.append(2)
        log.close()

    async def in_asyncio() -> Any:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Any] = loop.create_future()
        trio.lowlevel.start_guest_run(
            in_trio,
            run_sync_soon_threadsafe=loop.call_soon_threadsafe,
            done_callback=lambda outcome: done.set_result(outcome.unwrap()),
        )
        return await done

    assert asyncio.run(in_asyncio()) == [1, 2]


def test_an_append_after_the_readers_loop_was_closed_does_not_fail() -> None:
    log = log_of()
    reader = log.reader()
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)  # it complains of the task left behind
    waiting = rest_of(reader)
    task = loop.create_task(waiting)
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    assert len(log._parked) == 1
    run_threads(lambda: log.append("nobody waits"))
    waiting.close()
    assert not task.done()
    assert read_all(reader) == ["nobody waits"]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_waking_after_the_run_is_over_is_harmless(backend: str) -> None:
    async def make() -> Any:
        return new_waiter()

    waiter = run_on(backend, make)
    waiter.wake()
    run_threads(waiter.wake)


async def test_waking_twice_is_waking_once() -> None:
    waiter = new_waiter()
    waiter.wake()
    await anyio.to_thread.run_sync(waiter.wake)
    await waiter.wait()


async def test_a_waiter_may_be_woken_before_anybody_waits() -> None:
    waiter = new_waiter()
    await anyio.to_thread.run_sync(waiter.wake)
    await waiter.wait()


# Waking.


class Parking:
    """A waiter that notes when it is woken, and may park again at once."""

    def __init__(self, woken: list[str], name: str, again: RunLog[str] | None = None) -> None:
        self.woken = woken
        self.name = name
        self.again = again

    def wake(self) -> None:
        self.woken.append(self.name)
        if self.again is not None:
            self.again._parked.append(self)

    def wait(self) -> Awaitable[None]:
        raise NotImplementedError

    def renew(self) -> bool:
        return True


def run_log(*items: str, max_bytes: int = 1_000) -> RunLog[str]:
    log: RunLog[str] = RunLog(max_bytes=max_bytes, sizes=total_of)
    for item in items:
        log.append(item)
    return log


def total_of(items: list[str]) -> int:
    return sum(map(len, items))


def test_who_parks_again_while_all_are_woken_is_not_woken_again() -> None:
    """Or the one who wakes might never come to an end."""
    log = run_log()
    woken: list[str] = []
    for name in "abc":
        log.park(Parking(woken, name, again=log), 0)
    log.append("x")
    assert woken == ["a", "b", "c"]
    assert len(log._parked) == 3


def test_waking_goes_on_where_another_one_was_faster() -> None:
    log = run_log()
    woken: list[str] = []

    class Faster(Parking):
        def wake(self) -> None:
            super().wake()
            log.wake()

    log.park(Faster(woken, "a"), 0)
    log.park(Parking(woken, "b"), 0)
    log.wake()
    assert woken == ["a", "b"]
    assert not log._parked


def test_a_thread_waits_until_it_is_woken() -> None:
    waiter = ThreadWaiter()
    woken = threading.Timer(0.01, waiter.wake)
    woken.start()
    assert waiter.wait_in_thread()
    woken.join()


def test_a_thread_waits_no_longer_than_it_is_told() -> None:
    assert not ThreadWaiter().wait_in_thread(0.001)
    assert not ThreadWaiter().wait_in_thread(-1.0)


def test_a_thread_that_was_woken_before_does_not_wait() -> None:
    for timeout in (None, 0.0, float("inf"), 1e300):
        waiter = ThreadWaiter()
        waiter.wake()
        waiter.wake()
        assert waiter.wait_in_thread(timeout)


async def test_a_checkpoint_lets_other_tasks_run_and_can_be_cancelled() -> None:
    order: list[str] = []

    async def other() -> None:
        order.append("other")

    async with anyio.create_task_group() as group:
        group.start_soon(other)
        # Trio begins with either of the two.
        await checkpoint()
        await checkpoint()
        order.append("this")
    assert order == ["other", "this"]
    with anyio.CancelScope() as scope:
        scope.cancel()
        await checkpoint()
    assert scope.cancelled_caught


async def test_a_thread_knows_whether_it_runs_a_loop() -> None:
    assert in_event_loop()
    assert not await anyio.to_thread.run_sync(in_event_loop)


# The log of a run.


def kept(log: RunLog[str]) -> list[str]:
    return log.read(0, 1_000)[1]


def test_a_run_log_keeps_what_was_read_and_numbers_it() -> None:
    log = run_log("a", "b", "c")
    assert log.read(0, 2) == (0, ["a", "b"], 1)
    assert log.read(0, 2) == (0, ["a", "b"], 1)
    assert log.read(2, 2) == (2, ["c"], 0)
    assert log.read(3, 2) == (3, [], 0)
    assert log.end == 3


@pytest.mark.parametrize("max_bytes", [0, True, 1.5, None])
def test_a_run_log_refuses_a_bound_that_makes_no_sense(max_bytes: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="max_bytes must be"):
        RunLog(max_bytes=max_bytes, sizes=total_of)


@pytest.mark.parametrize("max_bytes", [1, 10, 100, 10_000])
def test_a_run_log_keeps_about_so_many_bytes_and_tells_what_is_gone(max_bytes: int) -> None:
    log: RunLog[str] = run_log(max_bytes=max_bytes)
    for number in range(5_000):
        log.append(f"{number:04}")
    first, items, more = log.read(0, 5_000)
    assert items == [f"{number:04}" for number in range(first, 5_000)]
    assert more == 0
    size = total_of(items)
    # Sizes are counted after every max_bytes / 4096 items, at least one and at most 256.
    assert size - 4 * 256 <= max_bytes or len(items) == 1
    assert size > max_bytes - 5
    assert log.end == 5_000
    # What is gone is not held in other ways either.
    assert len(log._items) <= 2 * len(items) + 64


def test_a_run_log_keeps_its_newest_item_whatever_its_size() -> None:
    log = run_log("a", "b" * 5_000, max_bytes=10)
    assert log.append("c" * 5_000, 5_000)
    assert log.read(0, 10) == (2, ["c" * 5_000], 0)


def test_the_size_of_a_large_item_is_counted_at_once() -> None:
    log = run_log(max_bytes=1_000_000)
    for number in range(10):
        log.append(str(number) * 400_000, 400_000)
    assert kept(log) == ["8" * 400_000, "9" * 400_000]


def test_a_closed_run_log_refuses_what_comes_and_keeps_what_was_there() -> None:
    log = run_log("a")
    log.close("end")
    log.close("again")
    assert not log.append("b")
    assert not log.append("end")
    assert kept(log) == ["a", "end"]
    assert (log.end, log.is_closed, len(log)) == (2, True, 2)


def test_a_run_log_may_be_closed_without_a_last_item() -> None:
    log = run_log("a")
    log.close()
    assert not log.append("a")
    assert kept(log) == ["a"]


def test_an_item_that_is_refused_takes_no_equal_one_with_it() -> None:
    item = "ab"
    log = run_log(item)
    log.close("end")
    assert not log.append(item)
    assert kept(log) == ["ab", "end"]


def test_parking_is_refused_where_there_is_something_or_will_be_nothing() -> None:
    log = run_log("a")
    waiter = ThreadWaiter()
    assert not log.park(waiter, 0)
    assert not log._parked
    assert log.park(waiter, 1)
    log.close()
    assert waiter.wait_in_thread(10)
    assert not log.park(ThreadWaiter(), 1)
    assert not log._parked


def test_the_next_item_wakes_who_is_parked() -> None:
    log = run_log()
    waiter = ThreadWaiter()
    assert log.park(waiter, 0)
    log.append("a")
    assert waiter.wait_in_thread(10)
    assert not log._parked


# What garbage collection and signal handlers may do at any time.


class Meddling:
    """Counts sizes, and does something else in the midst of that, at one of the calls."""

    def __init__(self, at: int, meddle: Callable[[RunLog[str]], object]) -> None:
        self.left = at
        self.meddle = meddle
        self.log: RunLog[str] = RunLog(max_bytes=30, sizes=self.sizes)

    def sizes(self, items: list[str]) -> int:
        self.left -= 1
        if not self.left:
            self.meddle(self.log)
        return total_of(items)


def fill(log: RunLog[str]) -> int:
    """Append until it is refused or enough; return how many were accepted."""
    for number in range(150):
        if not log.append(f"{number:03}"):
            return number
    return 150


# Some of them count what is new, some what is dropped, some just before the list is cut.
@pytest.mark.parametrize("at", range(1, 150))
def test_a_run_log_may_be_appended_to_while_it_counts(at: int) -> None:
    appended: list[bool] = []
    log = Meddling(at, lambda log: appended.extend(log.append("odd") for _ in range(70))).log
    assert fill(log) == 150
    assert appended == [True] * 70
    first, items, _ = log.read(0, 1_000)
    assert items[-1] == "149"
    assert first + len(items) == log.end == 220
    assert total_of(items) <= 36
    assert log._bytes == total_of(items[: log._counted - log._head])


@pytest.mark.parametrize("at", range(1, 150))
def test_a_run_log_may_be_closed_while_it_counts(at: int) -> None:
    log = Meddling(at, lambda log: log.close("end")).log
    accepted = fill(log)
    assert 0 < accepted < 150
    first, items, _ = log.read(0, 1_000)
    assert items[-2:] == [f"{accepted - 1:03}", "end"]
    assert first + len(items) == log.end == accepted + 1
    assert log._version & 1, "nobody reads it without the lock any more"


def test_counting_that_fails_is_made_up_for() -> None:
    def fail(_log: RunLog[str]) -> None:
        raise MemoryError

    log = Meddling(50, fail).log
    with pytest.raises(MemoryError):
        fill(log)
    fill(log)
    assert total_of(log.read(0, 1_000)[1]) <= 36


class Last:
    """An item whose end does something."""

    def __init__(self, call: Callable[[], object]) -> None:
        self.call = call

    def __del__(self) -> None:
        self.call()


@pytest.mark.parametrize("what", ["append", "close"])
def test_an_item_that_is_dropped_may_append_and_close(what: str) -> None:
    log: RunLog[Any] = RunLog(max_bytes=3, sizes=len)
    log.append(Last(lambda: log.append("odd") if what == "append" else log.close("end")))
    for number in range(100):
        if not log.append(number):
            break
    first, items, _ = log.read(0, 1_000)
    assert first + len(items) == log.end
    if what == "append":
        assert items == [97, 98, 99]
        assert log.end == 102
    else:
        assert items[-1] == "end"
        assert not log.append("late")
        assert log.read(0, 1_000)[1][-1] == "end"


# The model: a plain list of what is kept, and a number for each reader.


class ModelReader:
    def __init__(self, cursor: int, overflow: str) -> None:
        self.cursor = cursor
        self.overflow = overflow
        self.missed = 0
        self.is_closed = False


class LogMachine(RuleBasedStateMachine):
    """A log does what a list does that is cut off at the front."""

    readers = Bundle("readers")
    keep_read = False

    def __init__(self) -> None:
        super().__init__()
        self.log: Log[str] = Log(max_items=5, max_bytes=12, size=len, keep_read=self.keep_read)
        self.kept: list[str] = []
        self.first = 0
        self.is_closed = False
        self.models: list[ModelReader] = []
        self.real: list[Reader[str] | None] = []

    @property
    def end(self) -> int:
        return self.first + len(self.kept)

    @rule(item=st.text("ab", max_size=15))
    def append(self, item: str) -> None:
        assert self.log.append(item) is not self.is_closed
        if self.is_closed:
            return
        self.kept.append(item)
        while len(self.kept) > 5 or (len(self.kept) > 1 and len("".join(self.kept)) > 12):
            self.drop_first()

    @rule(
        target=readers, overflow=st.sampled_from(["drop_oldest", "error"]), from_now=st.booleans()
    )
    def new_reader(self, overflow: Any, from_now: bool) -> int:
        self.real.append(self.log.reader(overflow=overflow, from_now=from_now))
        self.models.append(ModelReader(self.end if from_now else self.first, overflow))
        return len(self.models) - 1

    @rule(number=readers)
    def read(self, number: int) -> None:
        model, real = self.models[number], self.real[number]
        assert real is not None
        if model.is_closed:
            self.expect_end(real)
        elif model.cursor < self.first:
            self.read_after_a_loss(model, real)
        elif model.cursor < self.end:
            assert at_once(real.__anext__()) == self.kept[model.cursor - self.first]
            model.cursor += 1
            self.forget_read()
        elif self.is_closed:
            self.expect_end(real)

    def read_after_a_loss(self, model: ModelReader, real: Reader[str]) -> None:
        lost = self.first - model.cursor
        model.missed += lost
        model.cursor = self.first
        if model.overflow == "error":
            failure = failure_of(real.__anext__())
            assert isinstance(failure, StreamLagError)
            assert failure.missed == lost
        else:
            assert at_once(real.__anext__()) == self.kept[0]
            model.cursor += 1
            self.forget_read()

    def expect_end(self, real: Reader[str]) -> None:
        assert isinstance(failure_of(real.__anext__()), StopAsyncIteration)

    @rule(number=readers)
    def close_reader(self, number: int) -> None:
        model, real = self.models[number], self.real[number]
        assert real is not None
        real.close()
        if not model.is_closed:
            model.missed += max(0, self.first - model.cursor)
            model.is_closed = True
        self.forget_read()

    @rule(number=consumes(readers))
    def drop_reader(self, number: int) -> None:
        self.real[number] = None
        self.models[number].is_closed = True

    @precondition(lambda self: self.models)
    @rule()
    def close_log(self) -> None:
        self.log.close()
        self.is_closed = True

    def forget_read(self) -> None:
        if self.keep_read:
            return
        cursors = [model.cursor for model in self.models if not model.is_closed]
        while self.kept and self.first < min(cursors, default=self.end):
            self.drop_first()

    def drop_first(self) -> None:
        del self.kept[0]
        self.first += 1

    @invariant()
    def sizes_agree(self) -> None:
        assert len(self.log) == len(self.kept)
        assert self.log.is_closed == self.is_closed

    @invariant()
    def readers_agree(self) -> None:
        for model, real in zip(self.models, self.real, strict=True):
            if real is not None:
                lost = 0 if model.is_closed else max(0, self.first - model.cursor)
                assert real.missed == model.missed + lost
                if not model.is_closed:
                    assert real.lag == self.end - model.cursor


class KeepingLogMachine(LogMachine):
    """The same for a log that keeps what was read."""

    keep_read = True


TestLog = LogMachine.TestCase
TestKeepingLog = KeepingLogMachine.TestCase
