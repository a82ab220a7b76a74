"""Following events: streams and waiting for one, what they see, and that they leave nothing."""

import asyncio
import gc
import threading
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import anyio
import anyio.to_thread
import pytest
from anyio import wait_all_tasks_blocked

from callbackkit import AsyncCallbackError, CallbackRegistry, EventKey, EventStream, StreamLagError

on_asyncio = pytest.mark.parametrize("anyio_backend", ["asyncio"])


class Order:
    """Data that can be held weakly, and an event of its own."""


class RushOrder(Order): ...


@pytest.fixture
def registry() -> CallbackRegistry:
    return CallbackRegistry()


def taps(registry: CallbackRegistry) -> int:
    """How many look at events now."""
    return len(registry._listeners._taps)


async def items_of(stream: EventStream, count: int) -> list[Any]:
    return [await anext(stream) for _ in range(count)]


# A stream.


async def test_a_stream_sees_what_is_triggered_from_the_call_on(registry: CallbackRegistry) -> None:
    await registry.trigger_callbacks("order.created", 1)
    stream = registry.stream("order.created")
    await registry.trigger_callbacks("order.created", 2)
    registry.trigger_callbacks_sync("order.created", 3)
    assert await items_of(stream, 2) == [("order.created", 2), ("order.created", 3)]


async def test_a_stream_of_a_pattern_tells_which_event_it_was(registry: CallbackRegistry) -> None:
    stream = registry.stream("order.*")
    for event in ("order.created", "user.created", "order.paid"):
        await registry.trigger_callbacks(event, event.upper())
    got = await items_of(stream, 2)
    assert got == [("order.created", "ORDER.CREATED"), ("order.paid", "ORDER.PAID")]


async def test_a_stream_of_a_class_sees_its_subclasses(registry: CallbackRegistry) -> None:
    stream = registry.stream(Order)
    rush = RushOrder()
    await registry.emit(rush)
    assert await items_of(stream, 1) == [(RushOrder, rush)]


async def test_a_stream_of_a_key_sees_the_event_of_its_name(registry: CallbackRegistry) -> None:
    stream = registry.stream(EventKey[int]("order.created"))
    await registry.trigger_callbacks("order.created", 1)
    assert await items_of(stream, 1) == [("order.created", 1)]


async def test_a_stream_sees_an_event_nobody_else_listens_to_and_whose_callbacks_fail(
    registry: CallbackRegistry,
) -> None:
    stream = registry.stream("order.created")
    await registry.trigger_callbacks("order.created", 1)

    def fail(_data: Any) -> None:
        raise ValueError("mine")

    registry.register_callback("order.created", fail)
    await registry.trigger_callbacks("order.created", 2)
    assert [data for _, data in await items_of(stream, 2)] == [1, 2]


async def test_a_muted_event_does_not_reach_a_stream(registry: CallbackRegistry) -> None:
    stream = registry.stream("order.created")
    with registry.muted("order.*"):
        await registry.trigger_callbacks("order.created", "muted")
    await registry.trigger_callbacks("order.created", "heard")
    assert await items_of(stream, 1) == [("order.created", "heard")]


async def test_a_stream_is_no_listener(registry: CallbackRegistry) -> None:
    stream = registry.stream("order.created")
    assert not registry.has_listeners("order.created")
    assert len(await registry.trigger_callbacks("order.created")) == 0
    await stream.aclose()


async def test_two_streams_each_get_everything(registry: CallbackRegistry) -> None:
    one, other = registry.stream("a"), registry.stream("**")
    await registry.trigger_callbacks("a", 1)
    await registry.trigger_callbacks("b", 2)
    assert await items_of(one, 1) == [("a", 1)]
    assert await items_of(other, 2) == [("a", 1), ("b", 2)]


async def test_a_thread_wakes_a_stream_that_waits(registry: CallbackRegistry) -> None:
    stream = registry.stream("order.created")
    got: list[Any] = []

    async def read() -> None:
        got.extend(await items_of(stream, 1))

    async with anyio.create_task_group() as group:
        group.start_soon(read)
        await wait_all_tasks_blocked()
        await anyio.to_thread.run_sync(registry.trigger_callbacks_sync, "order.created", 1)
    assert got == [("order.created", 1)]


# Too much.


async def test_a_stream_that_is_behind_loses_the_oldest_and_counts(
    registry: CallbackRegistry,
) -> None:
    stream = registry.stream("a", max_items=2)
    for number in range(5):
        await registry.trigger_callbacks("a", number)
    assert stream.dropped == 3
    assert await items_of(stream, 2) == [("a", 3), ("a", 4)]
    assert stream.dropped == 3


async def test_a_stream_with_overflow_error_is_told_once_for_each_loss(
    registry: CallbackRegistry,
) -> None:
    stream = registry.stream("a", max_items=2, overflow="error")
    for _ in range(2):
        for number in range(5):
            await registry.trigger_callbacks("a", number)
        with pytest.raises(StreamLagError, match="3 items"):
            await anext(stream)
        assert await items_of(stream, 2) == [("a", 3), ("a", 4)]
    assert stream.dropped == 6


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"max_items": 0}, ValueError),
        ({"max_items": None}, TypeError),
        ({"overflow": "block"}, ValueError),
    ],
)
async def test_a_bad_option_is_refused_and_leaves_nothing(
    registry: CallbackRegistry, options: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error, match=next(iter(options))):
        registry.stream("a", **options)
    assert taps(registry) == 0


# The end of a stream.


async def test_aclose_ends_the_iteration_and_nothing_more_is_seen(
    registry: CallbackRegistry,
) -> None:
    stream = registry.stream("a")
    await registry.trigger_callbacks("a", 1)
    await stream.aclose()
    await stream.aclose()
    await registry.trigger_callbacks("a", 2)
    assert [item async for item in stream] == []
    assert taps(registry) == 0


async def test_aclose_in_another_task_ends_a_stream_that_waits(registry: CallbackRegistry) -> None:
    stream = registry.stream("a")
    got: list[Any] = []

    async def read() -> None:
        got.extend([item async for item in stream])
        got.append("the end")

    async with anyio.create_task_group() as group:
        group.start_soon(read)
        await wait_all_tasks_blocked()
        await registry.trigger_callbacks("a", 1)
        await wait_all_tasks_blocked()
        await stream.aclose()
    assert got == [("a", 1), "the end"]


async def test_the_end_of_the_block_closes_a_stream(registry: CallbackRegistry) -> None:
    async with registry.stream("a") as stream:
        assert taps(registry) == 1
        await registry.trigger_callbacks("a", 1)
        assert await items_of(stream, 1) == [("a", 1)]
    assert taps(registry) == 0


async def test_an_error_in_the_block_closes_a_stream_and_comes_out(
    registry: CallbackRegistry,
) -> None:
    async def block() -> None:
        async with registry.stream("a"):
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        await block()
    assert taps(registry) == 0


async def test_breaking_off_leaves_nothing_behind(registry: CallbackRegistry) -> None:
    registry.register_callback("a", lambda: None)

    async def read() -> None:
        async for _item in registry.stream("a"):
            break

    async with anyio.create_task_group() as group:
        group.start_soon(read)
        await wait_all_tasks_blocked()
        await registry.trigger_callbacks("a", Order())
    gc.collect()
    assert taps(registry) == 0


async def test_a_stream_nobody_holds_lets_go_of_its_events(registry: CallbackRegistry) -> None:
    stream = registry.stream("a")
    order = Order()
    gone = weakref.ref(order)
    await registry.trigger_callbacks("a", order)
    del order, stream
    gc.collect()
    assert gone() is None
    assert taps(registry) == 0


async def test_a_closed_stream_lets_go_of_its_events(registry: CallbackRegistry) -> None:
    stream = registry.stream("a")
    order = Order()
    gone = weakref.ref(order)
    await registry.trigger_callbacks("a", order)
    await stream.aclose()
    del order
    gc.collect()
    assert gone() is None


async def test_an_event_that_was_read_is_let_go_of(registry: CallbackRegistry) -> None:
    stream = registry.stream("a")
    gone = []
    for _ in range(3):
        order = Order()
        gone.append(weakref.ref(order))
        await registry.trigger_callbacks("a", order)
        del order
        await anext(stream)
    gc.collect()
    assert [ref() for ref in gone] == [None] * 3


async def test_a_stream_cancelled_while_it_waits_goes_on_later(registry: CallbackRegistry) -> None:
    stream = registry.stream("a")
    with anyio.move_on_after(0):
        await anext(stream)
    await registry.trigger_callbacks("a", 1)
    assert await items_of(stream, 1) == [("a", 1)]


# Waiting for one event.


async def when_waiting(
    registry: CallbackRegistry, act: Callable[[], Any], *args: Any, **options: Any
) -> Any:
    """Return what wait_for() gives when *act* is called while it waits."""
    got: list[Any] = []

    async def wait() -> None:
        got.append(await registry.wait_for(*args, **options))

    async with anyio.create_task_group() as group:
        group.start_soon(wait)
        await wait_all_tasks_blocked()
        act()
    return got[0]


async def test_the_first_event_is_returned_with_its_type(registry: CallbackRegistry) -> None:
    got = await when_waiting(
        registry, lambda: registry.trigger_callbacks_sync("order.paid", 1), "order.*"
    )
    assert got == ("order.paid", 1)
    assert taps(registry) == 0


async def test_waiting_begins_with_the_call(registry: CallbackRegistry) -> None:
    waiting = registry.wait_for("a")
    await registry.trigger_callbacks("a", "before the await")
    assert await waiting == ("a", "before the await")


async def test_when_decides(registry: CallbackRegistry) -> None:
    waiting = registry.wait_for("a", when=lambda number: number > 2)
    for number in range(5):
        await registry.trigger_callbacks("a", number)
    assert await waiting == ("a", 3)


async def test_when_may_take_no_argument(registry: CallbackRegistry) -> None:
    is_open = False
    waiting = registry.wait_for("a", when=lambda: is_open)
    await registry.trigger_callbacks("a", 1)
    is_open = True
    await registry.trigger_callbacks("a", 2)
    assert await waiting == ("a", 2)


async def test_what_when_raises_is_raised_where_one_waits(registry: CallbackRegistry) -> None:
    called = []
    registry.register_callback("a", called.append)

    def fail(_data: Any) -> bool:
        raise ValueError("in when")

    waiting = registry.wait_for("a", when=fail)
    result = await registry.trigger_callbacks("a", 1)
    assert result.ok
    assert called == [1]
    with pytest.raises(ValueError, match="in when"):
        await waiting
    assert taps(registry) == 0


async def test_the_first_match_is_kept_whatever_comes_after(registry: CallbackRegistry) -> None:
    asked: list[int] = []

    def when(number: int) -> bool:
        asked.append(number)
        if number == 3:
            raise ValueError("asked once too often")
        return number == 2

    waiting = registry.wait_for("a", when=when)
    for number in range(100):
        await registry.trigger_callbacks("a", number)
    assert await waiting == ("a", 2)
    assert asked == [0, 1, 2], "nobody is asked once it is found"


async def test_of_two_threads_that_come_at_once_one_is_the_first(
    registry: CallbackRegistry,
) -> None:
    both_ask = threading.Barrier(2)

    def when(number: int) -> bool:
        both_ask.wait()
        return True

    waiting = registry.wait_for("a", when=when)
    async with anyio.create_task_group() as group:
        for number in range(2):
            group.start_soon(anyio.to_thread.run_sync, registry.trigger_callbacks_sync, "a", number)
    assert await waiting in [("a", 0), ("a", 1)]


async def test_when_may_trigger_the_event_it_waits_for(registry: CallbackRegistry) -> None:
    def when(number: int) -> bool:
        if number == 1:
            registry.trigger_callbacks_sync("a", 2)
        return True

    waiting = registry.wait_for("a", when=when)
    registry.trigger_callbacks_sync("a", 1)
    assert await waiting == ("a", 2), "the inner one was found first"


async def test_an_event_of_a_thread_is_waited_for(registry: CallbackRegistry) -> None:
    thread = threading.Thread(target=registry.trigger_callbacks_sync, args=("a", 1))
    got = await when_waiting(registry, thread.start, "a")
    thread.join()
    assert got == ("a", 1)


async def test_nothing_in_time_is_a_timeout(registry: CallbackRegistry) -> None:
    with pytest.raises(TimeoutError):
        await registry.wait_for("a", timeout=0.001)
    assert taps(registry) == 0


async def test_something_in_time_is_none(registry: CallbackRegistry) -> None:
    waiting = registry.wait_for("a", timeout=60)
    await registry.trigger_callbacks("a", 1)
    assert await waiting == ("a", 1)


async def test_a_cancelled_wait_leaves_nothing(registry: CallbackRegistry) -> None:
    with anyio.move_on_after(0) as scope:
        await registry.wait_for("a")
    assert scope.cancelled_caught
    assert taps(registry) == 0


@on_asyncio
async def test_a_cancelled_task_that_waits_leaves_nothing(registry: CallbackRegistry) -> None:
    task = asyncio.create_task(registry.wait_for("a"))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert taps(registry) == 0


@on_asyncio
async def test_wait_for_of_asyncio_leaves_nothing(registry: CallbackRegistry) -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(registry.wait_for("a"), 0.001)
    assert taps(registry) == 0


async def test_a_wait_that_is_dropped_leaves_nothing(registry: CallbackRegistry) -> None:
    waiting = registry.wait_for("a")
    assert taps(registry) == 1
    with warnings.catch_warnings():
        # Python says so too: it was never awaited.
        warnings.simplefilter("ignore", RuntimeWarning)
        del waiting
        gc.collect()
    assert taps(registry) == 0


async def test_a_wait_that_is_closed_leaves_nothing(registry: CallbackRegistry) -> None:
    waiting = registry.wait_for("a")
    waiting.close()
    del waiting
    assert taps(registry) == 0


@pytest.mark.parametrize(
    ("options", "error", "reason"),
    [
        ({"timeout": 0}, ValueError, "timeout"),
        ({"timeout": "1"}, TypeError, "timeout"),
        ({"when": 1}, TypeError, "when must be callable, not int"),
        ({"when": anyio.sleep}, AsyncCallbackError, "when must be synchronous; .*sleep is async"),
    ],
)
async def test_a_bad_option_is_refused_at_once_and_leaves_nothing(
    registry: CallbackRegistry, options: dict[str, Any], error: type[Exception], reason: str
) -> None:
    with pytest.raises(error, match=reason):
        registry.wait_for("a", **options)
    assert taps(registry) == 0
