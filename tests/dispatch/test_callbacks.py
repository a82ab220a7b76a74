"""The shapes of callbacks that users annotate with."""

import inspect
from typing import Any

import pytest

from callbackkit import (
    CallbackRegistry,
    CompletionCallback,
    ErrorCallback,
    EventCallback,
    ObservableState,
    Operation,
    ProgressCallback,
    StateChangeCallback,
)

SHAPES: dict[Any, list[str]] = {
    EventCallback: ["data"],
    StateChangeCallback: ["old", "new"],
    ErrorCallback: ["exception", "context"],
    CompletionCallback: ["result"],
    ProgressCallback: ["fraction"],
}


@pytest.mark.parametrize("protocol", SHAPES)
def test_a_shape_takes_its_arguments_by_position(protocol: Any):
    """A callback may name its parameters as it likes."""
    _self, *parameters = inspect.signature(protocol.__call__).parameters.values()
    assert [parameter.name for parameter in parameters] == SHAPES[protocol]
    assert {parameter.kind for parameter in parameters} == {inspect.Parameter.POSITIONAL_ONLY}


@pytest.mark.parametrize("protocol", SHAPES)
def test_a_shape_says_when_it_is_called(protocol: Any):
    assert inspect.getdoc(protocol).startswith("Called ")


def test_an_event_callback_gets_the_data():
    seen: list[int] = []
    callback: EventCallback[int] = seen.append
    registry = CallbackRegistry()
    registry.register_callback("count", callback)
    registry.trigger_callbacks_sync("count", 3)
    assert seen == [3]


def test_an_error_callback_gets_exception_and_context():
    seen: list[tuple[Exception, Any]] = []

    def note(exception: Exception, context: Any, /) -> None:
        seen.append((exception, context))

    callback: ErrorCallback = note
    registry = CallbackRegistry()
    registry.add_error_callback(callback)
    registry.register_callback("count", lambda: 1 // 0)
    registry.trigger_callbacks_sync("count")
    ((exception, context),) = seen
    assert isinstance(exception, ZeroDivisionError)
    assert context.event_type == "count"


def test_a_state_change_callback_gets_old_and_new():
    seen: list[tuple[str, str]] = []

    def note(old: str, new: str, /) -> None:
        seen.append((old, new))

    callback: StateChangeCallback[str] = note
    state = ObservableState("idle")
    state.add_change_callback(callback)
    state.set("talking")
    assert seen == [("idle", "talking")]


def test_progress_and_completion_callbacks_get_fraction_and_result():
    fractions: list[float] = []
    results: list[str] = []
    on_progress: ProgressCallback = fractions.append
    on_complete: CompletionCallback[str] = results.append
    operation = Operation(total=2, on_progress=on_progress, on_complete=on_complete)
    operation.advance(2)
    operation.complete("done")
    assert fractions[-1] == 1.0
    assert results == ["done"]
