"""What a dispatch tells of its callbacks."""

from collections.abc import Sequence
from typing import Any

import attrs
import pytest
from hypothesis import given, strategies as st

from callbackkit import (
    CallbackCancelledError,
    CallbackRegistry,
    CallbackTimeoutError,
    DispatchResult,
    ErrorContext,
    Outcome,
)
from callbackkit.dispatch.outcome import make_result

EVENT = "call.ended"


def run(*callbacks: Any, **options: Any) -> DispatchResult:
    registry = CallbackRegistry(**options)
    for callback in callbacks:
        registry.register_callback(EVENT, callback)
    return registry.trigger_callbacks_sync(EVENT, "data")


def raising(error: BaseException) -> Any:
    def callback() -> None:
        raise error

    return callback


# One outcome.


def test_an_outcome_names_registration_callback_status_and_value():
    registry = CallbackRegistry()
    registration = registry.register_callback(EVENT, len)
    (outcome,) = registry.trigger_callbacks_sync(EVENT, "four")
    assert outcome == Outcome(registration, "ok", 4, callback=len)
    assert outcome.registration is registration
    assert outcome.callback is len
    assert (outcome.error, outcome.duration) == (None, None)


def test_an_outcome_is_ok_unless_it_failed():
    assert Outcome(None, "ok", 1).ok
    assert Outcome(None, "skipped").ok
    assert not Outcome(None, "error", error=ValueError()).ok
    assert not Outcome(None, "timeout", error=CallbackTimeoutError()).ok
    assert not Outcome(None, "cancelled", error=CallbackCancelledError()).ok


def test_an_outcome_does_not_change():
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        run(len)[0].value = 2


def test_a_failed_outcome_has_the_very_exception_and_no_value():
    error = ValueError("broken")
    (outcome,) = run(raising(error))
    assert outcome.status == "error"
    assert outcome.error is error
    assert outcome.value is None


# The result of a dispatch.


def test_a_result_is_a_sequence_in_the_order_of_the_callbacks():
    result = run(lambda: "a", lambda: "b", lambda: "c")
    assert isinstance(result, Sequence)
    assert len(result) == 3
    assert [outcome.value for outcome in result] == ["a", "b", "c"]
    assert [result[0].value, result[-1].value, result[2].value] == ["a", "c", "c"]
    assert [outcome.value for outcome in result[1:]] == ["b", "c"]
    assert [outcome.value for outcome in result[::-1]] == ["c", "b", "a"]
    assert [outcome.value for outcome in reversed(result)] == ["c", "b", "a"]
    assert result[1] in result
    assert result.index(result[2]) == 2


@pytest.mark.parametrize("index", [3, -4, 100])
def test_an_index_out_of_range_is_an_index_error(index: int):
    with pytest.raises(IndexError):
        run(len, len, len)[index]


def test_a_result_can_be_looked_at_again_and_again():
    result = run(len, raising(ValueError()))
    assert list(result) == list(result)
    assert result.errors == result.errors


def test_a_result_of_nobody_is_empty_and_ok():
    result = run()
    assert len(result) == 0
    assert list(result) == []
    assert result.ok
    assert result.values() == result.errors == []
    assert result.first() is None
    assert not result
    result.raise_for_errors()


def test_a_result_shows_the_statuses():
    assert repr(run(len, raising(ValueError()))) == "<DispatchResult [ok, error]>"


def test_a_result_is_not_ok_if_one_callback_failed():
    assert run(len, len).ok
    assert not run(len, raising(ValueError()), len).ok


@pytest.mark.parametrize("length", [0, 1])
def test_a_result_with_a_false_exception_is_not_ok(length: int):
    """An exception may have a length, or say of itself that it is false."""

    class SizedError(Exception):
        def __len__(self) -> int:
            return length

    error = SizedError()
    result = run(raising(error))
    assert not result.ok
    assert result.errors == [error]
    with pytest.raises(ExceptionGroup):
        result.raise_for_errors()


def test_values_are_those_that_were_returned_none_among_them():
    assert run(lambda: 1, raising(ValueError()), lambda: None, lambda: 0).values() == [1, None, 0]


def test_a_returned_exception_is_a_value():
    """So one that was returned and one that was raised can be told apart."""
    error = ValueError("returned")
    result = run(lambda: error)
    assert result.ok
    assert result.values() == [error]
    assert result.errors == []


def test_a_returned_error_context_is_a_value():
    contexts: list[ErrorContext] = []
    registry = CallbackRegistry()
    registry.add_error_callback(lambda _exc, context: contexts.append(context))
    registry.register_callback(EVENT, raising(ValueError()))
    registry.trigger_callbacks_sync(EVENT)
    result = run(lambda: contexts[0])
    assert result.ok
    assert result.values() == contexts


@pytest.mark.parametrize("value", [0, "", False, [], "text"])
def test_first_is_the_first_value_that_is_not_none(value: Any):
    assert run(lambda: None, raising(ValueError()), lambda: value, lambda: 5).first() == value


def test_first_takes_a_default():
    assert run(lambda: None).first("default") == "default"
    assert run(raising(ValueError())).first(default=3) == 3
    assert run().first() is None


def test_raise_for_errors_raises_a_group_of_all_errors_in_order():
    first, second = ValueError("first"), TypeError("second")
    result = run(raising(first), len, raising(second))
    with pytest.raises(ExceptionGroup, match="2 of 3 callbacks failed") as info:
        result.raise_for_errors()
    assert info.value.exceptions == (first, second)


def test_raise_for_errors_raises_a_group_for_one_error_too():
    with pytest.raises(ExceptionGroup, match="1 of 1 callbacks failed"):
        run(raising(ValueError())).raise_for_errors()


def test_raise_for_errors_does_nothing_without_errors():
    run(len).raise_for_errors()


def test_a_group_can_be_taken_apart_with_except_star():
    result = run(raising(ValueError()), raising(KeyError()))
    caught = []
    try:
        result.raise_for_errors()
    except* ValueError:
        caught.append("value")
    except* KeyError:
        caught.append("key")
    assert caught == ["value", "key"]


def test_durations_are_there_with_timing_only():
    assert [outcome.duration for outcome in run(len, raising(ValueError()))] == [None, None]
    durations = [outcome.duration for outcome in run(len, raising(ValueError()), timing=True)]
    assert all(isinstance(duration, float) and duration >= 0 for duration in durations)


# Outcomes are made when looked at.


class WatchedEntry:
    """Tells whether anybody asked for what an outcome is made of."""

    def __init__(self) -> None:
        self.asked = 0

    @property
    def registration(self) -> None:
        self.asked += 1

    @property
    def callback(self) -> Any:
        return len


def test_outcomes_are_made_when_looked_at():
    entries = [WatchedEntry() for _ in range(3)]
    result = make_result(entries, [1, 2, 3])
    assert result.ok
    assert result.values() == [1, 2, 3]
    assert result.first() == 1
    assert result.errors == []
    result.raise_for_errors()
    assert len(result) == 3
    assert [entry.asked for entry in entries] == [0, 0, 0]
    assert result[1].value == 2
    assert [entry.asked for entry in entries] == [0, 1, 0]


# The law, for any mixture.


@given(st.lists(st.sampled_from(["value", "none", "error", "skipped"])))
def test_values_errors_and_outcomes_tell_the_same(kinds: list[str]):
    registry = CallbackRegistry()
    expected: list[tuple[str, Any, Any]] = []
    for number, kind in enumerate(kinds):
        error = ValueError(number)
        match kind:
            case "value":
                registry.register_callback(EVENT, lambda number=number: number)
                expected.append(("ok", number, None))
            case "none":
                registry.register_callback(EVENT, lambda: None)
                expected.append(("ok", None, None))
            case "error":
                registry.register_callback(EVENT, raising(error))
                expected.append(("error", None, error))
            case _:
                registry.register_callback(EVENT, len, when=lambda: False)
                expected.append(("skipped", None, None))
    result = registry.trigger_callbacks_sync(EVENT)
    assert [(one.status, one.value, one.error) for one in result] == expected
    assert result.values() == [value for status, value, _ in expected if status == "ok"]
    assert result.errors == [error for _, _, error in expected if error is not None]
    assert result.ok is (not result.errors)
    numbers = [value for _, value, _ in expected if value is not None]
    assert result.first("none") == (numbers[0] if numbers else "none")


# What error callbacks get beside the exception.


def failure_context(data: Any = None, **options: Any) -> ErrorContext:
    contexts: list[ErrorContext] = []
    registry = CallbackRegistry()
    registry.add_error_callback(lambda _exception, context: contexts.append(context))
    registry.register_callback(EVENT, raising(ValueError("broken")), **options)
    registry.trigger_callbacks_sync(EVENT, data)
    return contexts[0]


def test_an_error_context_names_event_data_callback_and_registration():
    context = failure_context({"id": 7})
    assert context.event_type == EVENT
    assert context.data == {"id": 7}
    assert context.registration is not None
    assert context.registration.event_type == EVENT
    assert context.callback is context.registration.callback


def test_an_error_context_is_a_line_for_a_log():
    line = str(failure_context())
    assert line.endswith("raising.<locals>.callback for 'call.ended'")
    assert "\n" not in line
    assert isinstance(repr(failure_context()), str)


def test_an_error_context_does_not_show_the_data():
    """They may hold secrets."""
    context = failure_context({"password": "hunter2"})
    assert "hunter2" not in str(context)
    assert "hunter2" not in repr(context)


def test_an_error_context_of_a_class_event_names_the_class():
    class Order:
        pass

    contexts: list[ErrorContext] = []
    registry = CallbackRegistry()
    registry.register_callback(
        Order, raising(ValueError()), on_error=lambda _exc, context: contexts.append(context)
    )
    registry.trigger_callbacks_sync(Order, Order())
    assert contexts[0].event_type is Order
    assert str(contexts[0]).endswith("<locals>.Order")
