"""Callbacks that note how they are called."""

import asyncio
import contextvars
import itertools
import re
import threading
from collections import Counter
from unittest import mock as unittest_mock

import anyio
import anyio.to_thread
import pytest
from hypothesis import given, strategies as st

from callbackkit import CallbackManager, CallbackRegistry, safe_callback_execution, trace_callback
from callbackkit.dispatch.callables import is_async_callable, wanted_arguments
from callbackkit.testing import AsyncMockCallback, MockCallback

BOTH = pytest.mark.parametrize("kind", [MockCallback, AsyncMockCallback])

VALUES = st.integers(0, 2) | st.sampled_from(["a", "b"])
ARGS = st.lists(VALUES, max_size=3).map(tuple)
KWARGS = st.dictionaries(st.sampled_from(["key", "self"]), VALUES, max_size=2)


def outcome(call):
    """Return what a call gives, or the class of what it raises."""
    try:
        return call()
    except Exception as exc:
        return type(exc)


def is_right(assertion, *args, **kwargs) -> bool:
    try:
        assertion(*args, **kwargs)
    except AssertionError:
        return False
    return True


def in_threads(function, count: int = 8) -> None:
    threads = [threading.Thread(target=function) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# The guide this grew from.


async def test_the_example_of_the_guide_works_as_it_stands() -> None:
    manager = CallbackManager()
    mock_callback = MockCallback()
    manager.register_callback("test_event", mock_callback)
    await manager.trigger_callbacks("test_event", {"data": "test"})
    assert mock_callback.call_count == 1
    mock_callback.assert_called_with({"data": "test"})
    mock_callback.assert_called_with(({"data": "test"},), {})
    assert mock_callback.calls == [(({"data": "test"},), {})]
    assert manager.unregister_callback("test_event", mock_callback) is True
    await manager.trigger_callbacks("test_event", {"data": "again"})
    assert mock_callback.call_count == 1


# Being called.


def test_calls_are_noted_in_order_as_args_and_kwargs() -> None:
    mock = MockCallback()
    assert (mock.called, mock.call_count, mock.calls) == (False, 0, [])
    mock()
    mock(1, 2, self=3)
    assert mock.calls == [((), {}), ((1, 2), {"self": 3})]
    assert (mock.called, mock.call_count) == (True, 2)


def test_a_call_that_raises_is_noted_too() -> None:
    mock = MockCallback(side_effect=LookupError)
    with pytest.raises(LookupError):
        mock(1)
    mock.assert_called_once_with(1)


def test_reset_forgets_calls_and_keeps_answers() -> None:
    mock = MockCallback(side_effect=[1, 2])
    assert mock("a") == 1
    mock.reset()
    assert not mock.called
    assert mock("b") == 2
    assert mock.calls == [(("b",), {})]


@BOTH
def test_a_registry_gives_it_all_arguments(kind) -> None:
    assert wanted_arguments(kind(), 2) == 2


@pytest.mark.parametrize("with_event", [False, True])
@BOTH
async def test_a_registry_calls_it_like_any_callback(kind, with_event: bool) -> None:
    registry, mock = CallbackRegistry(), kind(return_value="done")
    registry.register_callback("order.*", mock, with_event=with_event)
    result = await registry.trigger_callbacks("order.created", 7)
    assert result.values() == ["done"]
    mock.assert_called_once_with(*(["order.created", 7] if with_event else [7]))


def test_a_synchronous_trigger_refuses_only_the_async_one() -> None:
    registry = CallbackRegistry()
    registry.register_callback("x", MockCallback(1))
    assert registry.trigger_callbacks_sync("x").values() == [1]
    assert is_async_callable(AsyncMockCallback())
    assert not is_async_callable(MockCallback())


def test_it_runs_in_a_worker_thread() -> None:
    registry = CallbackRegistry()
    mock = MockCallback(side_effect=lambda _: threading.get_ident())
    registry.register_callback("x", mock, thread=True)
    [ident] = registry.trigger_callbacks_sync("x").values()
    assert ident != threading.get_ident()


def test_no_call_of_eight_threads_is_lost_or_answered_twice() -> None:
    mock = MockCallback(side_effect=itertools.count())
    answers: list[int] = []
    in_threads(lambda: [answers.append(mock(n)) for n in range(500)])
    assert sorted(answers) == list(range(4000))
    assert Counter(args for args, _ in mock.calls) == {(n,): 8 for n in range(500)}


# Answering.


def test_without_an_answer_it_returns_none() -> None:
    assert MockCallback()() is None
    assert MockCallback(return_value=3)() == 3


EFFECTS = st.sampled_from(
    [0, None, "text", ValueError("own"), KeyError, unittest_mock.DEFAULT, (), [OSError]]
)


@given(st.lists(EFFECTS, max_size=5), st.integers(0, 7))
def test_an_iterable_answers_as_in_unittest_mock(effects: list, calls: int) -> None:
    ours = MockCallback("usual", side_effect=effects)
    theirs = unittest_mock.Mock(return_value="usual", side_effect=effects)
    for _ in range(calls):
        assert outcome(ours) == outcome(theirs)


@given(st.lists(EFFECTS, max_size=5), st.integers(0, 7))
def test_an_iterable_answers_awaiting_as_in_unittest_mock(effects: list, calls: int) -> None:
    ours = AsyncMockCallback("usual", side_effect=effects)
    theirs = unittest_mock.AsyncMock(return_value="usual", side_effect=effects)

    async def answers(mock) -> list:
        return [type(one) if isinstance(one, Exception) else one for one in await attempts(mock)]

    async def attempts(mock) -> list:
        return [await attempt(mock) for _ in range(calls)]

    async def attempt(mock):
        try:
            return await mock()
        except Exception as exc:
            return exc

    assert asyncio.run(answers(ours)) == asyncio.run(answers(theirs))


@pytest.mark.parametrize(
    "effect",
    [
        ValueError("own"),
        ValueError,
        lambda *args, **kwargs: (args, kwargs),
        lambda *_args, **_kwargs: unittest_mock.DEFAULT,
        dict,
        {"key": 1},
        range(2),
        None,
    ],
    ids="abcdefgh",
)
def test_any_side_effect_does_what_it_does_in_unittest_mock(effect) -> None:
    theirs = unittest_mock.Mock(return_value="usual", side_effect=effect)
    expected = outcome(lambda: theirs([("a", 1)], b=2))
    assert outcome(lambda: MockCallback("usual", effect)([("a", 1)], b=2)) == expected


def test_an_exception_is_raised_as_it_is() -> None:
    error = LookupError("mine")
    with pytest.raises(LookupError) as caught:
        MockCallback(side_effect=error)()
    assert caught.value is error


@pytest.mark.parametrize("effect", [KeyboardInterrupt, asyncio.CancelledError()])
def test_what_is_no_exception_is_raised_too(effect) -> None:
    with pytest.raises((KeyboardInterrupt, asyncio.CancelledError)):
        MockCallback(side_effect=effect)()


def test_answers_may_be_changed() -> None:
    mock = MockCallback(1, side_effect=[5])
    assert mock.side_effect == [5]
    mock.side_effect = None
    assert mock() == 1
    mock.return_value = 2
    assert mock() == 2


@pytest.mark.parametrize("effect", [3, object()])
def test_a_side_effect_that_is_none_is_refused_at_once(effect) -> None:
    with pytest.raises(TypeError, match=r"an exception, a callable or an iterable, not"):
        MockCallback(side_effect=effect)


def test_a_generator_that_calls_its_own_mock_fails_instead_of_hanging() -> None:
    def answers():
        yield mock()

    mock = MockCallback(side_effect=answers())
    with pytest.raises(ValueError, match="generator already executing"):
        mock()


def test_an_exhausted_iterable_is_an_outcome_like_any_other() -> None:
    registry, mock = CallbackRegistry(), MockCallback(side_effect=[1])
    registry.register_callback("x", mock)
    assert registry.trigger_callbacks_sync("x").ok
    [error] = registry.trigger_callbacks_sync("x").errors
    assert isinstance(error, StopIteration)
    assert "no value left" in str(error)


# The asynchronous one.


async def test_an_async_call_is_noted_when_its_awaiting_begins() -> None:
    mock = AsyncMockCallback(side_effect=lambda: mock.call_count)
    coroutine = mock()
    assert mock.call_count == 0
    assert await coroutine == 1


async def test_what_an_async_side_effect_returns_is_awaited() -> None:
    async def double(number: int) -> int:
        await anyio.lowlevel.checkpoint()
        return number * 2

    assert await AsyncMockCallback(side_effect=double)(21) == 42
    assert await AsyncMockCallback(side_effect=lambda n: double(n))(21) == 42
    outcome = await safe_callback_execution(MockCallback(side_effect=double), 21)
    assert outcome.value == 42


async def test_an_async_side_effect_that_waits_is_cancelled_with_its_call() -> None:
    mock = AsyncMockCallback(side_effect=anyio.sleep_forever)
    with anyio.move_on_after(0.01) as scope:
        await mock()
    assert scope.cancelled_caught
    assert mock.call_count == 1


async def test_context_variables_reach_the_side_effect() -> None:
    variable = contextvars.ContextVar("variable")
    variable.set("here")
    assert await AsyncMockCallback(side_effect=variable.get)() == "here"


# Names.


def test_it_has_a_name_wherever_functions_have_one() -> None:
    assert MockCallback().__name__ == "MockCallback"
    assert AsyncMockCallback().__name__ == "AsyncMockCallback"
    assert MockCallback(name="audit").__name__ == "audit"
    assert trace_callback(MockCallback(name="audit")).__name__ == "audit"


async def test_the_log_of_a_failure_has_its_name(caplog) -> None:
    await safe_callback_execution(MockCallback(side_effect=OSError, name="audit"))
    assert "mocks.audit failed" in caplog.text


def test_its_repr_tells_how_often_and_with_what_it_was_called() -> None:
    mock = MockCallback()
    assert repr(mock) == "<MockCallback called 0 times>"
    mock({"data": 1}, key=2)
    assert repr(mock) == "<MockCallback called 1 time, last with ({'data': 1}, key=2)>"
    assert repr(AsyncMockCallback(name="audit")) == "<AsyncMockCallback 'audit' called 0 times>"


def test_a_word_it_does_not_have_is_an_error() -> None:
    """Not so in unittest.mock, where a misspelt assertion is a call that passes."""
    with pytest.raises(AttributeError):
        MockCallback().assert_called_wiht(3)


# Asserting.


@given(st.lists(st.tuples(ARGS, KWARGS), max_size=3), ARGS, KWARGS)
def test_assertions_hold_when_those_of_unittest_mock_do(calls: list, args, kwargs) -> None:
    ours, theirs = MockCallback(), unittest_mock.Mock()
    for call_args, call_kwargs in calls:
        ours(*call_args, **call_kwargs)
        theirs(*call_args, **call_kwargs)
    kwargs.pop("self", None)  # which their assertions can't be given
    for name in ("assert_called_with", "assert_called_once_with", "assert_any_call"):
        expected = is_right(getattr(theirs, name), *args, **kwargs)
        assert is_right(getattr(ours, name), *args, **kwargs) is expected
    assert is_right(ours.assert_not_called) is is_right(theirs.assert_not_called)


@given(ARGS, KWARGS, ARGS, KWARGS)
def test_a_tuple_and_a_dict_may_be_the_arguments_themselves(args, kwargs, came, came_kw) -> None:
    mock = MockCallback()
    mock(*came, **came_kw)
    expected = (args, kwargs) == (came, came_kw)
    assert is_right(mock.assert_called_with, args, kwargs) is expected
    assert is_right(mock.assert_called_once_with, args, kwargs) is expected
    assert is_right(mock.assert_any_call, args, kwargs) is expected


def test_a_tuple_and_a_dict_may_also_have_been_passed_as_such() -> None:
    mock = MockCallback()
    mock((1,), {})
    mock.assert_called_with((1,), {})


def test_expected_keywords_that_are_empty_are_checked() -> None:
    mock = MockCallback()
    mock(1, key=2)
    with pytest.raises(AssertionError):
        mock.assert_called_with((1,), {})
    mock.assert_called_with((1,), {"key": 2})


def test_a_tuple_and_a_dict_beside_keywords_are_what_was_passed() -> None:
    mock = MockCallback()
    mock(1)
    with pytest.raises(AssertionError):
        mock.assert_called_with((1,), {}, key=2)
    mock((1,), {}, key=2)
    mock.assert_called_with((1,), {}, key=2)


def test_a_tuple_alone_is_what_was_passed() -> None:
    mock = MockCallback()
    mock(1)
    with pytest.raises(AssertionError):
        mock.assert_called_with((1,))
    mock((1,))
    mock.assert_called_with((1,))


def test_any_may_stand_for_an_argument() -> None:
    class Odd:
        def __eq__(self, other):
            return False

        __hash__ = None

    mock = MockCallback()
    mock({"at": 3}, Odd())
    mock.assert_called_with({"at": unittest_mock.ANY}, unittest_mock.ANY)


def test_a_failed_assertion_shows_what_was_expected_and_what_came() -> None:
    mock = MockCallback(name="audit")
    mock({"data": "one"})
    mock("two", key=3)
    with pytest.raises(AssertionError) as caught:
        mock.assert_called_with({"data": "test"})
    assert str(caught.value) == (
        "expected the last call to be audit({'data': 'test'}); it was called 2 times\n"
        "    1. audit({'data': 'one'})\n"
        "    2. audit('two', key=3)"
    )


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (lambda mock: mock.assert_called_with((5,), {}), "to be audit((5,), {}) or audit(5); it"),
        (lambda mock: mock.assert_called_once_with(1), "a single call, audit(1); it was called 2"),
        (lambda mock: mock.assert_any_call(3), "some call to be audit(3); it was called 2 times"),
        (lambda mock: mock.assert_not_called(), "expected no call of audit; it was called 2 times"),
    ],
)
def test_each_assertion_says_what_it_expected(check, message: str) -> None:
    mock = MockCallback(name="audit")
    mock(1)
    mock(2)
    with pytest.raises(AssertionError, match=re.escape(message)):
        check(mock)


def test_arguments_with_a_hostile_repr_are_told_all_the_same() -> None:
    class Hostile:
        def __repr__(self):
            raise RuntimeError("no repr today")

    mock = MockCallback()
    mock(Hostile())
    with pytest.raises(AssertionError, match="Hostile instance at"):
        mock.assert_called_with(3)


# Waiting.


@BOTH
async def test_calls_that_came_before_count(kind) -> None:
    registry, mock = CallbackRegistry(), kind()
    registry.register_callback("x", mock)
    for _ in range(2):
        await registry.trigger_callbacks("x")
    await mock.wait_called(2, timeout=0.001)


async def test_a_wait_ends_with_a_call_of_another_task() -> None:
    mock = AsyncMockCallback()
    async with anyio.create_task_group() as group:
        group.start_soon(mock.wait_called, 2)
        await anyio.wait_all_tasks_blocked()
        await mock()
        await anyio.wait_all_tasks_blocked()
        await mock()


async def test_a_wait_ends_with_calls_of_threads() -> None:
    mock = MockCallback()
    async with anyio.create_task_group() as group:
        group.start_soon(anyio.to_thread.run_sync, in_threads, lambda: [mock() for _ in range(250)])
        await mock.wait_called(2000, timeout=30)
    assert mock.call_count == 2000


async def test_a_call_that_hangs_has_been_made() -> None:
    mock, release = MockCallback(), threading.Event()
    mock.side_effect = lambda: release.wait(10)
    async with anyio.create_task_group() as group:
        group.start_soon(anyio.to_thread.run_sync, mock)
        await mock.wait_called()
        release.set()


async def test_a_wait_in_vain_tells_how_many_calls_came() -> None:
    mock = MockCallback(name="audit")
    mock()
    with pytest.raises(TimeoutError, match=r"audit was called 1 time within 0\.01 seconds, not 2"):
        await mock.wait_called(2, timeout=0.01)


async def test_after_a_reset_calls_are_counted_anew() -> None:
    mock = MockCallback()
    mock()
    mock.reset()
    with pytest.raises(TimeoutError, match="called 0 times"):
        await mock.wait_called(timeout=0.01)


@pytest.mark.parametrize("count", [0, -1])
async def test_waiting_for_nothing_is_a_mistake(count: int) -> None:
    with pytest.raises(ValueError, match="count must be at least 1"):
        await MockCallback().wait_called(count)
