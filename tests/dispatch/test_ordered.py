"""Calls in order: one at a time, none under a lock, from threads and tasks alike."""

import asyncio
import itertools
import random
import sys
import threading
from contextvars import ContextVar
from functools import partial

import anyio
import anyio.to_thread
import pytest

from callbackkit import BacklogError, DispatchDepthError
from callbackkit.dispatch.ordered import InOrder

NAME: ContextVar[str] = ContextVar("name", default="nobody")


def in_thread(function, *args) -> threading.Thread:
    thread = threading.Thread(target=function, args=args, daemon=True)
    thread.start()
    return thread


# Synchronous.


def test_who_asks_makes_the_call_at_once() -> None:
    made: list[threading.Thread] = []
    InOrder().run(lambda: made.append(threading.current_thread()))
    assert made == [threading.current_thread()]


def test_what_is_asked_for_inside_a_call_is_made_after_it() -> None:
    order = InOrder()
    seen: list[str] = []

    def outer() -> None:
        order.run(lambda: seen.append("inner"))
        seen.append("outer ends")

    order.run(outer)
    assert seen == ["outer ends", "inner"]


def test_a_place_taken_first_is_made_first() -> None:
    order = InOrder()
    seen: list[str] = []
    first = order.queue(lambda: seen.append("first"))
    second = order.queue(lambda: seen.append("second"))
    second.take()
    first.take()
    assert seen == ["first", "second"]
    assert order.waiting == 0


def test_a_call_is_left_to_the_thread_that_makes_calls() -> None:
    """It returns at once, and the call is made in order with the asker's context variables."""
    order = InOrder()
    is_running, may_end = threading.Event(), threading.Event()
    seen: list[tuple[str, str, threading.Thread]] = []

    def slow() -> None:
        is_running.set()
        assert may_end.wait(10)
        seen.append(("slow", NAME.get(), threading.current_thread()))

    def quick() -> None:
        seen.append(("quick", NAME.get(), threading.current_thread()))

    def ask() -> None:
        NAME.set("thread")
        order.run(slow)

    thread = in_thread(ask)
    assert is_running.wait(10)
    token = NAME.set("test")
    order.run(quick)
    NAME.reset(token)
    assert seen == []
    assert order.waiting == 1
    may_end.set()
    thread.join(10)
    assert seen == [("slow", "thread", thread), ("quick", "test", thread)]


def test_a_call_one_makes_oneself_may_change_the_context() -> None:
    def change() -> None:
        NAME.set("changed")

    token = NAME.set("before")
    InOrder().run(change)
    assert NAME.get() == "changed"
    NAME.reset(token)


def test_calls_of_many_threads_are_made_one_at_a_time() -> None:
    order = InOrder()
    busy = threading.Lock()
    seen: list[tuple[int, int]] = []
    start = threading.Barrier(8)

    def call(thread: int, number: int) -> None:
        assert busy.acquire(blocking=False)
        seen.append((thread, number))
        busy.release()

    def ask(thread: int) -> None:
        start.wait(10)
        for number in range(300):
            order.run(partial(call, thread, number))

    threads = [in_thread(ask, thread) for thread in range(8)]
    for thread in threads:
        thread.join(10)
    assert len(seen) == 8 * 300
    for thread in range(8):
        assert [number for who, number in seen if who == thread] == list(range(300))


def test_a_call_that_raises_keeps_no_other_from_being_made() -> None:
    order = InOrder()
    seen: list[str] = []

    def fail() -> None:
        order.run(lambda: seen.append("after"))
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        order.run(fail)
    assert seen == ["after"]
    order.run(lambda: seen.append("later"))
    assert seen == ["after", "later"]


def test_the_failure_of_a_call_left_to_others_goes_to_the_log(caplog) -> None:
    order = InOrder()

    def fail() -> None:
        raise ValueError("left")

    order.run(lambda: order.run(fail))
    [record] = caplog.records
    assert "left to another" in record.message
    assert "ValueError: left" in caplog.text


def test_an_own_failure_is_raised_though_a_later_call_fails_too(caplog) -> None:
    order = InOrder()

    def fail(what: str) -> None:
        raise ValueError(what)

    def fail_twice() -> None:
        order.run(lambda: fail("left"))
        fail("mine")

    with pytest.raises(ValueError, match="mine"):
        order.run(fail_twice)
    assert "ValueError: left" in caplog.text


def test_a_call_asked_for_by_garbage_collection_is_not_lost() -> None:
    """It may run anybody's ``__del__`` at any time: here, just when calls stop being made."""
    order = InOrder()
    seen: list[str] = []

    def collect(frame, event, _arg) -> None:
        if event == "call" and frame.f_code is InOrder._stop.__code__ and len(seen) == 1:
            order.run(lambda: seen.append("finaliser"))

    sys.setprofile(collect)
    try:
        order.run(lambda: seen.append("call"))
    finally:
        sys.setprofile(None)
    assert seen == ["call", "finaliser"]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_passes_at_once(stop) -> None:
    """What waits is made by who comes next."""
    order = InOrder()
    seen: list[str] = []

    def interrupt() -> None:
        order.run(lambda: seen.append("waiting"))
        raise stop

    with pytest.raises(stop):
        order.run(interrupt)
    assert seen == []
    order.run(lambda: seen.append("next"))
    assert seen == ["waiting", "next"]


def test_calls_that_cause_each_other_for_ever_are_stopped() -> None:
    order = InOrder(depth_limit=5)
    depth = 0
    refused: list[str] = []

    def recurse() -> None:
        nonlocal depth
        depth += 1
        try:
            order.run(recurse)
        except DispatchDepthError as exc:
            refused.append(str(exc))

    order.run(recurse)
    assert depth == 5
    assert "depth_limit=5" in refused[0]


def test_calls_in_a_row_are_not_deep() -> None:
    order = InOrder(depth_limit=2)
    seen: list[int] = []

    def outer() -> None:
        for number in range(10):
            order.run(partial(seen.append, number))

    order.run(outer)
    assert seen == list(range(10))


def test_calls_that_wait_are_limited() -> None:
    order = InOrder(max_waiting=2)
    for _ in range(2):
        order.queue(int)
    with pytest.raises(BacklogError, match="2 calls wait"):
        order.queue(int)
    with pytest.raises(BacklogError):
        order.aqueue(anyio.lowlevel.checkpoint)
    assert order.waiting == 2


# Asynchronous.


async def test_a_call_is_awaited() -> None:
    seen: list[str] = []

    async def call() -> None:
        await anyio.lowlevel.checkpoint()
        seen.append("made")

    await InOrder().arun(call)
    assert seen == ["made"]


async def test_each_task_makes_its_own_call_in_its_turn() -> None:
    order = InOrder()
    seen: list[str] = []

    async def call() -> None:
        seen.append(f"{NAME.get()} begins")
        await anyio.lowlevel.checkpoint()
        seen.append(f"{NAME.get()} ends")

    async def ask(name: str) -> None:
        NAME.set(name)
        await order.arun(call)
        seen.append(f"{name} goes on")

    async with anyio.create_task_group() as group:
        for name in "abc":
            group.start_soon(ask, name)
    calls = [line.split() for line in seen if "goes on" not in line]
    for (beginner, begins), (ender, ends) in zip(calls[::2], calls[1::2], strict=True):
        assert (begins, ends) == ("begins", "ends")
        assert beginner == ender
        assert seen.index(f"{ender} ends") < seen.index(f"{ender} goes on")


async def test_an_async_call_asked_for_inside_a_call_is_made_after_it() -> None:
    order = InOrder()
    seen: list[str] = []

    async def inner() -> None:
        await anyio.lowlevel.checkpoint()
        seen.append("inner")

    async def outer() -> None:
        await order.arun(inner)
        order.run(lambda: seen.append("sync"))
        await anyio.lowlevel.checkpoint()
        seen.append("outer ends")

    await order.arun(outer)
    assert seen == ["outer ends", "inner", "sync"]


async def test_a_task_started_inside_a_call_is_not_inside_for_ever() -> None:
    """Once that call has ended, the task waits for its turn like any other."""
    order = InOrder()
    seen: list[str] = []
    may_ask, may_end = anyio.Event(), anyio.Event()

    async def child() -> None:
        await may_ask.wait()
        await order.arun(lambda: note("child"))
        seen.append("child goes on")

    async def note(what: str) -> None:
        seen.append(what)

    async def start() -> None:
        group.start_soon(child)

    async def slow() -> None:
        await may_end.wait()
        seen.append("slow")

    async with anyio.create_task_group() as group:
        await order.arun(start)
        group.start_soon(order.arun, slow)
        await anyio.wait_all_tasks_blocked()
        may_ask.set()
        await anyio.wait_all_tasks_blocked()
        assert seen == []
        may_end.set()
    assert seen == ["slow", "child", "child goes on"]


async def test_two_orders_that_call_each_other_do_not_deadlock() -> None:
    first, second = InOrder(), InOrder()
    both = 0
    seen: list[str] = []
    are_both_there = anyio.Event()

    async def note(what: str) -> None:
        await anyio.lowlevel.checkpoint()
        seen.append(what)

    async def call(other: InOrder, what: str) -> None:
        nonlocal both
        both += 1
        if both == 2:
            are_both_there.set()
        await are_both_there.wait()
        await other.arun(lambda: note(what))

    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(first.arun, lambda: call(second, "second"))
            group.start_soon(second.arun, lambda: call(first, "first"))
    assert sorted(seen) == ["first", "second"]


async def test_a_sync_call_is_left_to_the_task_that_makes_calls() -> None:
    order = InOrder()
    seen: list[str] = []
    may_end = anyio.Event()

    async def slow() -> None:
        await may_end.wait()
        seen.append("slow")

    async with anyio.create_task_group() as group:
        group.start_soon(order.arun, slow)
        await anyio.wait_all_tasks_blocked()
        await anyio.to_thread.run_sync(order.run, lambda: seen.append("from a thread"))
        assert seen == []
        may_end.set()
    assert seen == ["slow", "from a thread"]


async def test_an_async_call_waits_while_a_thread_makes_calls() -> None:
    """Then its own task makes it, and what was asked for after it."""
    order = InOrder()
    seen: list[str] = []
    is_running, may_end = threading.Event(), threading.Event()

    def slow() -> None:
        is_running.set()
        assert may_end.wait(10)
        seen.append("thread")

    async def call() -> None:
        await anyio.lowlevel.checkpoint()
        seen.append(NAME.get())

    async def ask() -> None:
        NAME.set("task")
        await order.arun(call)

    thread = in_thread(order.run, slow)
    await anyio.to_thread.run_sync(is_running.wait, 10)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            await anyio.wait_all_tasks_blocked()
            order.run(lambda: seen.append("after"))
            assert seen == []
            may_end.set()
    assert seen == ["thread", "task", "after"]
    thread.join(10)


async def test_an_async_call_from_inside_another_order_waits_for_a_thread() -> None:
    """A thread could not await it."""
    order, other = InOrder(), InOrder()
    seen: list[str] = []
    is_running, may_end = threading.Event(), threading.Event()

    def slow() -> None:
        is_running.set()
        assert may_end.wait(10)

    async def call() -> None:
        seen.append("made")

    thread = in_thread(order.run, slow)
    await anyio.to_thread.run_sync(is_running.wait, 10)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(other.arun, lambda: order.arun(call))
            await anyio.wait_all_tasks_blocked()
            assert seen == []
            may_end.set()
    assert seen == ["made"]
    thread.join(10)


async def test_an_async_call_that_raises_keeps_no_other_from_being_made(caplog) -> None:
    order = InOrder()
    seen: list[str] = []

    async def note() -> None:
        seen.append("after")

    async def fail(what: str) -> None:
        raise ValueError(what)

    async def fail_twice() -> None:
        await order.arun(lambda: fail("left"))
        await order.arun(note)
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        await order.arun(fail_twice)
    assert seen == ["after"]
    assert "ValueError: left" in caplog.text
    await order.arun(note)
    assert seen == ["after", "after"]


async def test_an_interrupt_passes_a_task_at_once() -> None:
    """What its own calls asked for is dropped; what threads left is made by who comes next."""
    order = InOrder()
    seen: list[str] = []

    async def note(what: str) -> None:
        seen.append(what)

    async def interrupt() -> None:
        await order.arun(lambda: note("inner"))
        order.run(lambda: seen.append("left"))
        raise SystemExit

    coroutine = order.arun(interrupt)
    with pytest.raises(SystemExit):
        await coroutine
    assert seen == []
    order.run(lambda: seen.append("next"))
    assert seen == ["left", "next"]


# Cancellation.


async def test_a_task_cancelled_before_its_turn_leaves() -> None:
    order = InOrder()
    seen: list[str] = []
    may_end = anyio.Event()

    async def slow() -> None:
        await may_end.wait()
        seen.append("slow")

    async def note(what: str) -> None:
        seen.append(what)

    async def ask(scope: anyio.CancelScope) -> None:
        with scope:
            await order.arun(lambda: note("cancelled"))

    scope = anyio.CancelScope()
    async with anyio.create_task_group() as group:
        group.start_soon(order.arun, slow)
        await anyio.wait_all_tasks_blocked()
        group.start_soon(ask, scope)
        await anyio.wait_all_tasks_blocked()
        group.start_soon(order.arun, lambda: note("third"))
        await anyio.wait_all_tasks_blocked()
        scope.cancel()
        await anyio.wait_all_tasks_blocked()
        assert order.waiting == 1
        may_end.set()
    assert seen == ["slow", "third"]


@pytest.mark.parametrize("left", [[], ["left"]], ids=["to a task", "over a sync call"])
async def test_a_task_cancelled_when_its_turn_has_come_passes_it_on(left) -> None:
    """Sync calls behind it are made at once, and the task behind those has its turn."""
    order = InOrder()
    seen: list[str] = []
    scope = anyio.CancelScope()
    is_running, may_end = threading.Event(), threading.Event()

    def slow() -> None:
        is_running.set()
        assert may_end.wait(10)

    async def note(what: str) -> None:
        seen.append(what)

    async def ask() -> None:
        with scope:
            await order.arun(lambda: note("cancelled"))

    thread = in_thread(order.run, slow)
    await anyio.to_thread.run_sync(is_running.wait, 10)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            await anyio.wait_all_tasks_blocked()
            for what in left:
                order.run(partial(seen.append, what))
            group.start_soon(order.arun, lambda: note("third"))
            await anyio.wait_all_tasks_blocked()
            # The loop does not run between these: the turn comes, and the cancellation too.
            may_end.set()
            thread.join(10)
            scope.cancel()
    assert seen == [*left, "third"]
    assert order.waiting == 0


async def test_a_cancelled_task_still_makes_the_sync_calls_left_to_it() -> None:
    order = InOrder()
    seen: list[str] = []

    async def slow() -> None:
        order.run(lambda: seen.append("left"))
        await anyio.sleep_forever()

    with anyio.move_on_after(0) as scope:
        await order.arun(slow)
    assert scope.cancelled_caught
    assert seen == ["left"]


async def test_an_async_call_left_to_a_task_that_is_cancelled_is_begun() -> None:
    """It ends where it suspends."""
    order = InOrder()
    seen: list[str] = []

    async def left(what: str) -> None:
        seen.append(f"{what} begins")
        await anyio.sleep_forever()

    async def slow() -> None:
        await order.arun(lambda: left("one"))
        await order.arun(lambda: left("two"))
        await anyio.sleep_forever()

    with anyio.move_on_after(0) as scope:
        await order.arun(slow)
    assert scope.cancelled_caught
    assert seen == ["one begins", "two begins"]
    assert order.waiting == 0


def test_a_task_cancelled_by_asyncio_does_not_wait_for_what_is_left_to_it() -> None:
    order = InOrder()
    seen: list[str] = []

    async def left() -> None:
        seen.append("begins")
        await asyncio.Event().wait()

    async def slow() -> None:
        await order.arun(left)
        await asyncio.Event().wait()

    async def main() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(order.arun(slow), 0.01)

    asyncio.run(main())
    assert seen == ["begins"]


async def test_a_cancelled_call_lets_the_next_task_have_its_turn() -> None:
    order = InOrder()
    seen: list[str] = []

    async def note(what: str) -> None:
        await anyio.lowlevel.checkpoint()
        seen.append(what)

    async def ask(scope: anyio.CancelScope) -> None:
        with scope:
            await order.arun(anyio.sleep_forever)

    scope = anyio.CancelScope()
    async with anyio.create_task_group() as group:
        group.start_soon(ask, scope)
        await anyio.wait_all_tasks_blocked()
        group.start_soon(order.arun, lambda: note("next"))
        await anyio.wait_all_tasks_blocked()
        scope.cancel()
    assert seen == ["next"]


def test_wait_for_around_a_call_times_out() -> None:
    order = InOrder()

    async def main() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(order.arun(asyncio.Event().wait), 0.01)
        await asyncio.wait_for(order.arun(lambda: asyncio.sleep(0)), 10)

    asyncio.run(main())


def test_a_task_that_is_closed_before_its_turn_passes_it_on() -> None:
    """A coroutine may be dropped with its loop; who comes next is not held up by it."""
    order = InOrder()
    seen: list[str] = []
    is_running, may_end = threading.Event(), threading.Event()

    def slow() -> None:
        is_running.set()
        assert may_end.wait(10)

    async def park() -> None:
        waiting.append(order.arun(lambda: asyncio.sleep(0)))
        waiting[0].send(None)

    waiting = []
    thread = in_thread(order.run, slow)
    assert is_running.wait(10)
    asyncio.run(park())
    may_end.set()
    thread.join(10)
    order.run(lambda: seen.append("made"))
    assert seen == []
    waiting[0].close()
    order.run(lambda: seen.append("next"))
    assert seen == ["made", "next"]


def test_tasks_of_two_loops_have_their_turns() -> None:
    order = InOrder()
    busy = threading.Lock()
    seen: list[int] = []
    start = threading.Barrier(2)

    async def call(loop: int) -> None:
        assert busy.acquire(blocking=False)
        await anyio.lowlevel.checkpoint()
        seen.append(loop)
        busy.release()

    async def ask(loop: int) -> None:
        start.wait(10)
        for _ in range(100):
            await order.arun(lambda: call(loop))

    threads = [
        in_thread(lambda loop, backend: anyio.run(ask, loop, backend=backend), loop, backend)
        for loop, backend in enumerate(["asyncio", "trio"])
    ]
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert sorted(seen) == [0] * 100 + [1] * 100


# A heavy round.


class Torture:
    """Threads and tasks of three loops ask two orders for calls, nested and cancelled at random."""

    ROUNDS = 30_000

    def __init__(self) -> None:
        orders = InOrder(max_waiting=10**9), InOrder(max_waiting=10**9)
        self.orders = {order: threading.Lock() for order in orders}
        self.asked = itertools.count()
        self.made = itertools.count()

    def ask(self, order: InOrder) -> None:
        next(self.asked)
        order.run(partial(self.call, order))

    def call(self, order: InOrder) -> None:
        assert self.orders[order].acquire(blocking=False)
        self.orders[order].release()
        next(self.made)

    async def acall(self, order: InOrder, chance: random.Random, depth: int = 0) -> None:
        assert self.orders[order].acquire(blocking=False)
        try:
            for _ in range(chance.randrange(3)):
                await anyio.lowlevel.checkpoint()
            other = chance.choice(list(self.orders))
            if depth < 2 and chance.random() < 0.5:
                await other.arun(partial(self.acall, other, chance, depth + 1))
            if chance.random() < 0.3:
                self.ask(other)
        finally:
            self.orders[order].release()

    def thread(self, seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(self.ROUNDS):
            self.ask(chance.choice(list(self.orders)))

    async def task(self, seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(self.ROUNDS // 10):
            order = chance.choice(list(self.orders))
            with anyio.move_on_after(chance.choice([0, 0.001, 0.003, 60])):
                await order.arun(partial(self.acall, order, chance))
            await anyio.lowlevel.checkpoint()

    async def loop(self, seed: int) -> None:
        async with anyio.create_task_group() as group:
            for number in range(5):
                group.start_soon(self.task, seed + number)


@pytest.mark.torture
@pytest.mark.timeout(300)
def test_whatever_threads_and_loops_ask_for_is_made_one_at_a_time() -> None:
    """And nobody is left waiting; an assertion that fails in a call goes to the log or a task."""
    torture = Torture()
    failed: list[BaseException] = []

    def guard(work, *args) -> None:
        try:
            work(*args)
        except BaseException as exc:
            failed.append(exc)

    threads = [in_thread(guard, torture.thread, seed) for seed in range(3)]
    for seed, backend in ((100, "asyncio"), (200, "trio"), (300, "asyncio")):
        run = partial(anyio.run, torture.loop, seed, backend=backend)
        threads.append(in_thread(guard, run))
    for thread in threads:
        thread.join(240)
        assert not thread.is_alive()
    assert failed == []
    assert next(torture.made) == next(torture.asked) > 90_000
    assert [order.waiting for order in torture.orders] == [0, 0]
