"""What becomes of an exception that a callback raised."""

import gc
import logging
import weakref
from collections.abc import Iterator
from typing import Any

import anyio
import pytest

from callbackkit import AsyncCallbackError, CallbackRegistry
from callbackkit.dispatch.failures import dispose, dispose_unstarted, refuse_awaitable

EVENT = "call.ended"


def fail() -> None:
    raise ValueError("broken")


class RaisingFilter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        raise RuntimeError("a filter of the application is broken")


@pytest.fixture
def broken_filter() -> Iterator[None]:
    logger = logging.getLogger("callbackkit.dispatch")
    broken = RaisingFilter()
    logger.addFilter(broken)
    yield
    logger.removeFilter(broken)


@pytest.mark.usefixtures("broken_filter")
async def test_logging_that_fails_stops_no_callback() -> None:
    registry = CallbackRegistry(slow_threshold=1e-9)
    registry.tap(lambda *_: fail())
    registry.add_error_callback(lambda error: fail())
    registry.register_callback(EVENT, fail)
    registry.register_callback(EVENT, lambda: "fine")
    awaited = await registry.trigger_callbacks(EVENT)
    synchronous = registry.trigger_callbacks_sync(EVENT)
    assert [outcome.status for outcome in [*awaited, *synchronous]] == ["error", "ok"] * 2


class Silent:
    def __repr__(self) -> str:
        raise RuntimeError("not to be asked")

    def __call__(self) -> "Silent":
        return self


def test_an_outcome_can_be_shown_whatever_is_in_it() -> None:
    registry = CallbackRegistry()
    registry.register_callback(EVENT, Silent())
    assert "Silent" in repr(registry.trigger_callbacks_sync(EVENT)[0])


async def test_a_stop_iteration_from_a_thread_names_its_callback() -> None:
    registry = CallbackRegistry()
    registry.register_callback(EVENT, lambda: next(iter([])), thread=True)
    [error] = (await registry.trigger_callbacks(EVENT)).errors
    assert isinstance(error.__cause__, StopIteration)
    assert "test_failures" in str(error)


@pytest.fixture
def unlogged() -> Iterator[None]:
    """Keep pytest from holding the exceptions it finds in the log."""
    logger = logging.getLogger("callbackkit.dispatch")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(level)


class Thing:
    """Data that can be referred to weakly."""


@pytest.mark.usefixtures("unlogged")
@pytest.mark.parametrize("options", [{"mode": "concurrent"}, {"timing": True}, {}])
async def test_data_of_a_callback_given_up_on_is_freed(options: dict[str, Any]) -> None:
    async def hang(data: object) -> None:
        await anyio.sleep_forever()

    registry = CallbackRegistry(timeout=0.01, **options)
    registry.register_callback(EVENT, hang)
    registry.register_callback(EVENT, hang)
    data = Thing()
    reference = weakref.ref(data)
    gc.disable()
    try:
        result = await registry.trigger_callbacks(EVENT, data)
        assert [outcome.status for outcome in result] == ["timeout", "timeout"]
        del result, data
        for _ in range(3):
            # The loop itself lets go of timers and handles a turn later.
            await anyio.sleep(0)
        assert reference() is None
    finally:
        gc.enable()


async def answer() -> int:
    return 42


async def test_what_nobody_has_begun_to_await_is_closed() -> None:
    coroutine = answer()
    dispose_unstarted(coroutine)
    with pytest.raises(RuntimeError, match="cannot reuse"):
        await coroutine
    dispose(coroutine)


def test_an_awaitable_where_nothing_can_be_awaited_is_closed_and_named() -> None:
    with pytest.raises(AsyncCallbackError, match="returned a coroutine"):
        refuse_awaitable(answer, answer())
    refuse_awaitable(answer, "no awaitable")
