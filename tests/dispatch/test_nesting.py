"""How deep dispatches stand inside each other, and that a runaway ends fast."""

import logging
import sys
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import asynccontextmanager
from contextvars import copy_context
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from callbackkit import CallbackRegistry, DispatchDepthError
from callbackkit.dispatch.nesting import Spawn, nesting

EVENT = "order.created"


@pytest.fixture(autouse=True)
def quiet(without_collection: None) -> Any:
    """Hundreds of tracebacks are no news here."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


Depths = list[int]


def count_async(registry: CallbackRegistry, deepest: int) -> Depths:
    """Register a callback that triggers its own event until it is so deep; return the depths."""
    depths: Depths = []

    async def callback(data: int) -> None:
        await anyio.lowlevel.checkpoint()
        depths.append(nesting())
        if data < deepest:
            await registry.trigger_callbacks(EVENT, data + 1)

    registry.register_callback(EVENT, callback)
    return depths


def count_sync(registry: CallbackRegistry, deepest: int, **options: Any) -> Depths:
    depths: Depths = []

    def callback(data: int) -> None:
        depths.append(nesting())
        if data < deepest:
            registry.trigger_callbacks_sync(EVENT, data + 1)

    registry.register_callback(EVENT, callback, **options)
    return depths


# Counting.


def test_outside_of_a_dispatch_there_is_none() -> None:
    assert nesting() == 0


def test_synchronous_triggers_are_counted() -> None:
    registry = CallbackRegistry()
    depths = count_sync(registry, 5)
    registry.trigger_callbacks_sync(EVENT, 1)
    assert depths == [1, 2, 3, 4, 5]


async def test_awaited_triggers_are_counted() -> None:
    registry = CallbackRegistry()
    depths = count_async(registry, 5)
    await registry.trigger_callbacks(EVENT, 1)
    assert depths == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    "options",
    [{"timeout": 60}, {"timing": True}, {"trace": True, "monitor": True}],
    ids=["timeout", "timing", "traced"],
)
async def test_options_do_not_change_the_count(options: Any) -> None:
    registry = CallbackRegistry(**options)
    depths = count_async(registry, 5)
    await registry.trigger_callbacks(EVENT, 1)
    assert depths == [1, 2, 3, 4, 5]


async def test_concurrent_triggers_are_counted() -> None:
    registry = CallbackRegistry(mode="concurrent")
    depths = count_async(registry, 5)

    async def other() -> None:
        await anyio.lowlevel.checkpoint()

    registry.register_callback(EVENT, other)
    await registry.trigger_callbacks(EVENT, 1)
    assert depths == [1, 2, 3, 4, 5]


async def test_a_concurrent_callback_that_does_not_suspend_counts_as_much() -> None:
    """From Python 3.12 on its task begins on the stack of the dispatch itself."""
    registry = CallbackRegistry(mode="concurrent")
    depths: Depths = []

    async def callback(data: int) -> None:
        depths.append(nesting())
        if data < 5:
            await registry.trigger_callbacks(EVENT, data + 1)

    async def other() -> None: ...

    registry.register_callback(EVENT, callback)
    registry.register_callback(EVENT, other)
    await registry.trigger_callbacks(EVENT, 1)
    assert depths == [1, 2, 3, 4, 5]


def test_triggers_in_threads_are_counted() -> None:
    registry = CallbackRegistry()
    depths = count_sync(registry, 5, thread=True)
    registry.trigger_callbacks_sync(EVENT, 1)
    assert depths == [1, 2, 3, 4, 5]


async def test_a_thread_of_an_awaited_trigger_is_counted() -> None:
    registry = CallbackRegistry()
    depths = count_sync(registry, 5, thread=True)
    await registry.trigger_callbacks(EVENT, 1)
    assert depths == [1, 2, 3, 4, 5]


async def test_what_a_callback_in_a_thread_returns_to_be_awaited_is_counted() -> None:
    registry = CallbackRegistry()
    depths: Depths = []

    async def later(data: int) -> None:
        depths.append(nesting())
        if data < 5:
            await registry.trigger_callbacks(EVENT, data + 1)

    registry.register_callback(EVENT, lambda data: later(data), thread=True)
    await registry.trigger_callbacks(EVENT, 1)
    assert depths == [1, 2, 3, 4, 5]


async def test_dispatches_of_different_kinds_add_up() -> None:
    concurrent = CallbackRegistry(mode="concurrent")
    sequential = CallbackRegistry()
    depths: Depths = []

    async def down(data: int) -> None:
        depths.append(nesting())
        if data < 5:
            await sequential.trigger_callbacks(EVENT, data)

    async def up(data: int) -> None:
        depths.append(nesting())
        await concurrent.trigger_callbacks(EVENT, data + 1)

    async def other() -> None: ...

    concurrent.register_callback(EVENT, down)
    concurrent.register_callback(EVENT, other)
    sequential.register_callback(EVENT, up)
    await concurrent.trigger_callbacks(EVENT, 1)
    assert depths == list(range(1, 10))


# What is not counted.


@asynccontextmanager
async def own_tasks() -> AsyncIterator[Callable[..., None]]:
    """Give what starts a task that belongs to nobody's dispatch."""
    async with anyio.create_task_group() as group:
        yield group.start_soon


@pytest.mark.parametrize("mode", ["sequential", "concurrent"])
async def test_a_chain_of_tasks_is_not_nested_however_long(mode: Any) -> None:
    registry = CallbackRegistry(mode=mode, depth_limit=3)
    done: Depths = []

    async with own_tasks() as start:

        async def callback(data: int) -> None:
            await anyio.lowlevel.checkpoint()
            done.append(nesting())
            if data:
                start(registry.trigger_callbacks, EVENT, data - 1)

        async def other() -> None: ...

        registry.register_callback(EVENT, callback)
        registry.register_callback(EVENT, other)
        assert (await registry.trigger_callbacks(EVENT, 500)).ok
    assert done == [1] * 501


async def test_many_dispatches_at_once_are_not_nested() -> None:
    registry = CallbackRegistry(depth_limit=2)
    go_on = anyio.Event()
    results: list[bool] = []

    async def trigger() -> None:
        results.append((await registry.trigger_callbacks(EVENT)).ok)

    registry.register_callback(EVENT, lambda: go_on.wait())
    async with anyio.create_task_group() as group:
        for _ in range(50):
            group.start_soon(trigger)
        await anyio.wait_all_tasks_blocked()
        go_on.set()
    assert results == [True] * 50


async def test_after_a_dispatch_counting_begins_anew() -> None:
    registry = CallbackRegistry(mode="concurrent")
    for _ in range(2):
        depths = count_async(registry, 3)
        await registry.trigger_callbacks(EVENT, 1)
        registry.clear()
        assert max(depths) <= 3


def test_a_context_kept_from_a_dispatch_that_is_over_counts_nothing() -> None:
    with Spawn():
        kept = copy_context()
        assert kept.run(Spawn).depth == 1, "nothing but itself stands on this stack"
    assert kept.run(Spawn).depth == 1


def test_a_dispatch_may_be_closed_in_another_context() -> None:
    spawn = Spawn()
    copy_context().run(spawn.__enter__)
    spawn.__exit__()
    assert Spawn().depth == 1


# A runaway.


@pytest.fixture
def room_on_the_stack() -> Generator[None, None, None]:
    """Whatever runs the tests stands on the stack, too; the depth limit is to come first."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(limit + 500)
    yield
    sys.setrecursionlimit(limit)


def both_trigger(registry: CallbackRegistry, **options: Any) -> list[int]:
    """Register two callbacks that trigger each other's event; return a list of their calls."""
    calls: list[int] = []

    async def callback() -> None:
        calls.append(1)
        assert len(calls) < 20_000, "a runaway"
        await anyio.lowlevel.checkpoint()
        await registry.trigger_callbacks(EVENT)

    for _ in range(2):
        registry.register_callback(EVENT, callback, **options)
    return calls


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"timeout": 60},
        {"timing": True},
        {"timeout": 60, "trace": True, "monitor": True, "timing": True},
    ],
    ids=["plain", "timeout", "timing", "all"],
)
@pytest.mark.parametrize("mode", ["sequential", "concurrent"])
@pytest.mark.usefixtures("room_on_the_stack")
async def test_callbacks_that_trigger_each_other_end_fast(mode: Any, options: Any) -> None:
    """Were the error an outcome at every level, they would run 2 ** 100 times."""
    registry = CallbackRegistry(mode=mode, **options)
    calls = both_trigger(registry)
    result = await registry.trigger_callbacks(EVENT)
    assert all(isinstance(error, RecursionError) for error in result.errors)
    assert len(result.errors) == 2
    assert len(calls) < 5_000


async def test_callbacks_that_trigger_each_other_in_two_registries_end_fast() -> None:
    one, other = CallbackRegistry(mode="concurrent"), CallbackRegistry()
    calls: list[int] = []

    async def there() -> None:
        calls.append(1)
        await other.trigger_callbacks(EVENT)

    async def back() -> None:
        calls.append(1)
        await one.trigger_callbacks(EVENT)

    for _ in range(2):
        one.register_callback(EVENT, there)
        other.register_callback(EVENT, back)
    result = await one.trigger_callbacks(EVENT)
    assert all(isinstance(error, RecursionError) for error in result.errors)
    assert len(result.errors) == 2
    assert len(calls) < 5_000


@pytest.mark.parametrize("thread", [False, True])
def test_synchronous_callbacks_that_trigger_each_other_end_fast(thread: bool) -> None:
    registry = CallbackRegistry(depth_limit=20)
    calls: list[int] = []

    def callback() -> None:
        calls.append(1)
        registry.trigger_callbacks_sync(EVENT)

    for _ in range(2):
        registry.register_callback(EVENT, callback, thread=thread)
    result = registry.trigger_callbacks_sync(EVENT)
    assert [type(error) for error in result.errors] == [DispatchDepthError] * 2
    assert len(calls) == 2 * 20


@pytest.mark.parametrize("limit", [1, 5])
async def test_the_limit_is_how_many_may_stand_inside_each_other(limit: int) -> None:
    registry = CallbackRegistry(depth_limit=limit)
    depths = count_async(registry, 1_000)
    [outcome] = await registry.trigger_callbacks(EVENT, 1)
    assert isinstance(outcome.error, DispatchDepthError)
    assert f"{limit + 1} dispatches stand inside each other" in str(outcome.error)
    assert depths == list(range(1, limit + 1))


async def test_after_a_runaway_the_registry_works() -> None:
    registry = CallbackRegistry(mode="concurrent", depth_limit=10)
    both_trigger(registry)
    assert not (await registry.trigger_callbacks(EVENT)).ok
    registry.clear()
    depths = count_async(registry, 10)
    assert (await registry.trigger_callbacks(EVENT, 1)).ok
    assert depths == list(range(1, 11))
