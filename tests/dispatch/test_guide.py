"""What the well-known guide to callbacks shows works here with our imports."""

import enum
import inspect
import logging
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from callbackkit import (
    CallbackChain,
    CallbackManager,
    CallbackRegistry,
    CallbackSlot,
    EventRouter,
    FunctionRegistry,
    ObservableState,
    Operation,
    UnknownFunctionError,
    monitor_callback_performance,
    safe_callback_execution,
    trace_callback,
)
from callbackkit.testing import AsyncMockCallback, MockCallback

# A mock in a manager.


async def test_callback_integration():
    manager = CallbackManager()
    mock_callback = MockCallback()

    # Register callback
    manager.register_callback("test_event", mock_callback)

    # Trigger event
    await manager.trigger_callbacks("test_event", {"data": "test"})

    # Verify callback was called
    assert mock_callback.call_count == 1
    mock_callback.assert_called_with({"data": "test"})


async def test_a_mock_may_be_asked_for_arguments_and_keywords_apart():
    manager = CallbackManager()
    mock_callback = MockCallback()
    manager.register_callback("test_event", mock_callback)
    await manager.trigger_callbacks("test_event", {"data": "test"})
    mock_callback.assert_called_with(({"data": "test"},), {})
    assert mock_callback.calls == [(({"data": "test"},), {})]
    with pytest.raises(AssertionError):
        mock_callback.assert_called_with({"data": "other"})


async def test_an_async_mock_is_awaited():
    manager = CallbackManager()
    mock_callback = AsyncMockCallback()
    manager.register_callback("test_event", mock_callback)
    await manager.trigger_callbacks("test_event", {"data": "test"})
    mock_callback.assert_called_with({"data": "test"})


# Registering, unregistering, triggering.


async def test_unregister_callback_says_whether_there_was_one():
    manager = CallbackManager()
    mock_callback = MockCallback()
    manager.register_callback("test_event", mock_callback)
    assert manager.unregister_callback("test_event", mock_callback) is True
    assert manager.unregister_callback("test_event", mock_callback) is False
    assert manager.unregister_callback("never_seen", mock_callback) is False
    await manager.trigger_callbacks("test_event", {"data": "test"})
    assert mock_callback.call_count == 0


async def test_a_failing_mock_does_not_stop_the_next():
    """It has no ``__name__`` to be logged by where it was first written down."""
    manager = CallbackManager()
    failing, following = MockCallback(side_effect=ValueError), MockCallback()
    manager.register_callback("test_event", failing)
    manager.register_callback("test_event", following)
    await manager.trigger_callbacks("test_event", 1)
    assert (failing.call_count, following.call_count) == (1, 1)


async def test_a_callback_that_unregisters_itself_does_not_hide_the_next():
    manager = CallbackManager()
    following = MockCallback()

    def only_once(_data: object) -> None:
        manager.unregister_callback("test_event", only_once)

    manager.register_callback("test_event", only_once)
    manager.register_callback("test_event", following)
    await manager.trigger_callbacks("test_event", 1)
    assert following.call_count == 1


# A single call in isolation.


async def test_safe_callback_execution_runs_sync_and_async_callbacks():
    seen: list[object] = []

    async def note(data: object) -> None:
        await anyio.lowlevel.checkpoint()
        seen.append(data)

    await safe_callback_execution(seen.append, 1, "audio")
    await safe_callback_execution(note, 2, context="audio")
    await safe_callback_execution(note, 3)
    assert seen == [1, 2, 3]


async def test_safe_callback_execution_logs_a_failure_with_its_context(
    caplog: pytest.LogCaptureFixture,
):
    def broken(_data: object) -> None:
        raise ValueError("no data")

    outcome = await safe_callback_execution(broken, None, "recording")
    assert isinstance(outcome.error, ValueError)
    assert "recording" in caplog.text
    assert "ValueError: no data" in caplog.text


# A chain.


async def test_each_callback_of_a_chain_gets_the_last_ones_result():
    async def shout(text: str) -> str:
        await anyio.lowlevel.checkpoint()
        return text.upper()

    chain = CallbackChain()
    chain.add_callback(str.strip)
    chain.add_callback(shout)
    chain.add_callback(lambda text: text + "!")
    assert await chain.execute_chain("  hello ") == "HELLO!"


async def test_a_chain_that_fails_gives_the_last_good_value():
    chain = CallbackChain()
    chain.add_callback(lambda number: number + 1)
    chain.add_callback(lambda number: number // 0)
    chain.add_callback(lambda number: number + 100)
    assert await chain.execute_chain(1) == 2
    assert await CallbackChain().execute_chain("initial") == "initial"


# Tracing and monitoring.


@trace_callback
def traced(data: int) -> int:
    """Double."""
    return data * 2


@trace_callback
async def traced_async(data: int) -> int:
    await anyio.lowlevel.checkpoint()
    return data * 2


@monitor_callback_performance
def monitored(data: int) -> int:
    return data * 2


@monitor_callback_performance
async def monitored_async(data: int) -> int:
    await anyio.sleep(0.02)
    return data * 2


async def test_decorated_callbacks_do_what_they_did():
    """A traced async callback runs, too."""
    manager = CallbackManager()
    for callback in (traced, traced_async, monitored, monitored_async):
        manager.register_callback("test_event", callback)
    assert (await manager.trigger_callbacks("test_event", 4)).values() == [8, 8, 8, 8]


def test_decorated_functions_stay_sync_or_async_and_keep_their_names():
    assert [inspect.iscoroutinefunction(one) for one in (traced, monitored)] == [False, False]
    assert inspect.iscoroutinefunction(traced_async)
    assert inspect.iscoroutinefunction(monitored_async)
    assert (traced.__name__, traced.__doc__) == ("traced", "Double.")
    assert (traced(1), monitored(2)) == (2, 4)


async def test_monitoring_measures_the_awaited_time():
    before = monitored_async.stats.count
    await monitored_async(1)
    assert monitored_async.stats.count == before + 1
    assert monitored_async.stats.max > 0.015


async def test_a_traced_callback_is_logged_under_the_name_it_is_given(
    caplog: pytest.LogCaptureFixture,
):
    caplog.set_level(logging.DEBUG, "callbackkit.trace")

    def broken() -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        trace_callback(broken, name="the broken one")()
    assert "the broken one called" in caplog.text
    assert "the broken one raised ValueError" in caplog.text


# A router with handlers for a platform and for a realtime connection.


class TelephonyEventType(str, enum.Enum):
    SESSION_INITIATE = "session.initiate"
    USER_STREAM_CHUNK = "userStream.chunk"


async def test_a_router_has_platform_and_realtime_handlers():
    handled: list[tuple[str, Any]] = []
    router = EventRouter()
    platform, realtime = router.channel("telephony"), router.channel("realtime")

    async def initiate(data: dict[str, Any]) -> None:
        await anyio.lowlevel.checkpoint()
        handled.append(("platform", data["type"]))

    platform.register_handler(TelephonyEventType.SESSION_INITIATE, initiate)
    platform.register_handler(
        TelephonyEventType.USER_STREAM_CHUNK, lambda data: handled.append(("chunk", data["audio"]))
    )
    realtime.register_handler(
        "session.initiate", lambda data: handled.append(("realtime", data["type"]))
    )
    await platform.handle_event({"type": "session.initiate"})
    await platform.handle_event({"type": "userStream.chunk", "audio": b"\x00"})
    await realtime.handle_event({"type": "session.initiate"})
    assert handled == [
        ("platform", "session.initiate"),
        ("chunk", b"\x00"),
        ("realtime", "session.initiate"),
    ]


async def test_a_router_survives_unknown_types_and_failing_handlers(
    caplog: pytest.LogCaptureFixture,
):
    router = EventRouter()
    router.register_handler("error", lambda data: data["no such key"])
    assert not (await router.handle_event({"type": "error"})).ok
    assert len(await router.handle_event({"type": "unknown"})) == 0
    assert len(await router.handle_event({"no": "type"})) == 0
    levels = [record.levelno for record in caplog.records]
    assert levels == [logging.ERROR, logging.WARNING, logging.WARNING]


# State changes.


class SessionStatus(enum.Enum):
    DISCONNECTED = "disconnected"
    CONNECTED = "connected"


class SessionState:
    """As applications write it, over one of ours."""

    def __init__(self) -> None:
        self._status = ObservableState(SessionStatus.DISCONNECTED)
        self.add_status_change_callback = self._status.add_change_callback

    @property
    def status(self) -> SessionStatus:
        return self._status.value

    @status.setter
    def status(self, new: SessionStatus) -> None:
        self._status.set(new)


def test_status_change_callbacks_get_the_old_and_the_new_state():
    changes: list[tuple[SessionStatus, SessionStatus]] = []
    session = SessionState()

    def broken(_old: SessionStatus, _new: SessionStatus) -> None:
        raise ValueError("broken")

    session.add_status_change_callback(broken)
    session.add_status_change_callback(lambda old, new: changes.append((old, new)))
    session.status = SessionStatus.CONNECTED
    session.status = SessionStatus.CONNECTED
    assert session.status is SessionStatus.CONNECTED
    assert changes == [(SessionStatus.DISCONNECTED, SessionStatus.CONNECTED)]


# Audio.


def test_an_audio_chunk_callback_may_be_set_and_may_fail():
    chunks: list[bytes] = []
    on_audio_chunk = CallbackSlot()
    on_audio_chunk(b"nobody listens")
    on_audio_chunk.set(chunks.append)
    on_audio_chunk(b"\x00\x01")
    on_audio_chunk.set(lambda chunk: chunk.no_such_attribute)
    on_audio_chunk(b"\x02\x03")
    assert chunks == [b"\x00\x01"]
    assert on_audio_chunk.failures == 1


# Functions.


async def test_functions_sync_and_async_are_called_with_their_arguments():
    functions = FunctionRegistry()

    async def get_balance(arguments: dict[str, Any]) -> str:
        await anyio.lowlevel.checkpoint()
        return f"balance of {arguments['account']}"

    functions.register_function("get_balance", get_balance)
    functions.register_function("transfer", lambda arguments: arguments["amount"])
    assert await functions.call("get_balance", {"account": 7}) == "balance of 7"
    assert await functions.call("transfer", '{"amount": 20}') == 20


async def test_an_unknown_function_is_an_error_that_names_those_known():
    functions = FunctionRegistry()
    functions.register_function("transfer", lambda arguments: None)
    with pytest.raises(UnknownFunctionError) as info:
        await functions.call("transfre", {})
    assert info.value.known == ("transfer",)


async def test_a_result_may_hang_up():
    hang_up_callback = MockCallback()
    functions = FunctionRegistry()
    functions.register_function("goodbye", lambda arguments: {"next_action": "end_call"})
    functions.register_function("hello", lambda arguments: {"next_action": "listen"})
    functions.on_result(lambda result: result["next_action"] == "end_call", hang_up_callback)
    await functions.call("hello", {})
    assert hang_up_callback.call_count == 0
    await functions.call("goodbye", {})
    hang_up_callback.assert_called_with({"next_action": "end_call"})


# Errors.


async def test_error_handlers_are_sync_or_async_and_may_fail():
    handled: list[str] = []
    registry = CallbackRegistry()

    def sync_handler(exception: Exception) -> None:
        handled.append(f"sync {exception}")

    async def async_handler(exception: Exception, context: object) -> None:
        await anyio.lowlevel.checkpoint()
        handled.append(f"async {exception} in {context}")

    def broken_handler(_exception: Exception) -> None:
        raise RuntimeError("the handler fails too")

    for handler in (sync_handler, broken_handler, async_handler):
        registry.add_error_callback(handler)

    def broken(_message: object) -> None:
        raise ValueError("broken")

    registry.register_callback("message", broken)
    await registry.trigger_callbacks("message", {"text": "hello"})
    assert handled[0] == "sync broken"
    assert handled[1].startswith("async broken in ")
    assert handled[1].endswith("for 'message'")


# Progress and completion.


def test_progress_and_completion_callbacks_are_called():
    fractions: list[float] = []
    on_complete, on_error = MockCallback(), MockCallback()
    operation = Operation(
        total=4, on_progress=fractions.append, on_complete=on_complete, on_error=on_error
    )
    for _ in operation.track(range(4)):
        pass
    operation.complete("processed")
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    on_complete.assert_called_with("processed")
    on_error.assert_not_called()
