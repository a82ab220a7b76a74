"""Recording the events of a registry."""

import enum
import itertools
import re
import threading
from unittest.mock import ANY

import anyio
import anyio.lowlevel
import anyio.to_thread
import attrs
import pytest
from hypothesis import given, strategies as st

from callbackkit import (
    AsyncCallbackError,
    CallbackManager,
    CallbackRegistry,
    CallbackTimeoutError,
    Delivery,
    EventKey,
    Gone,
    Transport,
)
from callbackkit.testing import MockCallback, Recorder


class Status(enum.StrEnum):
    DONE = "status.done"


@attrs.frozen
class Order:
    number: int


@attrs.frozen
class RushOrder(Order):
    pass


SEGMENTS = st.sampled_from(["order", "created", "paid"])
NAMES = st.lists(SEGMENTS, min_size=1, max_size=3).map(".".join)
PATTERNS = NAMES | st.sampled_from(["*", "**", "order.*", "*.created", "order.**", "*.*.paid"])


def emitted(*names: str) -> Recorder:
    """Return a recorder of events, their data being 1, 2, 3, ..."""
    registry = CallbackRegistry()
    recorder = Recorder(registry)
    for number, name in enumerate(names, 1):
        registry.trigger_callbacks_sync(name, number)
    return recorder


# What is recorded.


async def test_events_are_recorded_in_order_from_its_creation_to_its_end() -> None:
    registry = CallbackRegistry()
    registry.register_callback("a", MockCallback())
    await registry.trigger_callbacks("a", 0)
    with Recorder(registry) as recorder:
        await registry.trigger_callbacks("a", 1)
        registry.trigger_callbacks_sync("b", 2)
        await registry.emit(Order(3))
    registry.trigger_callbacks_sync("a", 4)
    assert recorder.events == [("a", 1), ("b", 2), (Order, Order(3))]


async def test_it_is_no_listener() -> None:
    registry = CallbackRegistry()
    with Recorder(registry) as recorder:
        assert not registry.has_listeners("a")
        assert len(await registry.trigger_callbacks("a")) == 0
    assert recorder.events == [("a", None)]


async def test_an_event_stands_before_those_its_callbacks_trigger() -> None:
    registry = CallbackRegistry()
    registry.register_callback("outer", lambda: registry.trigger_callbacks_sync("inner"))
    with Recorder(registry) as recorder:
        await registry.trigger_callbacks("outer")
    recorder.assert_order(["outer", "inner"])


def test_a_manager_is_recorded_by_its_registry() -> None:
    manager = CallbackManager()
    with Recorder(manager) as recorder:
        manager.registry.trigger_callbacks_sync("a", 1)
    assert recorder.events == [("a", 1)]


async def test_of_a_manager_the_events_of_all_sessions_are_recorded() -> None:
    manager = CallbackManager()
    one, two = await manager.create_session(), await manager.create_session()
    with Recorder(manager) as recorder:
        events = [await one.progress(0.4), await two.progress(0.5)]
    assert recorder.events == [("progress", event) for event in events]
    recorder.assert_emitted("progress", events[1])
    with pytest.raises(AssertionError, match=r"<Event \w+-1 progress> \{'progress': 0.4\}"):
        recorder.assert_emitted("completion")


async def test_of_a_session_what_is_emitted_to_it_is_recorded() -> None:
    manager = CallbackManager()
    session = await manager.create_session({"events": ["progress", "custom.type"]})
    other = await manager.create_session()
    await session.progress(0.1)
    with Recorder(session) as recorder:
        await session.progress(0.4, "parsing")
        await other.progress(0.5)
        await session.thinking("left out")
        await manager.emit(session.id, "custom.type")
        await manager.trigger_callbacks("custom.type", {"of": "no session"})
    await session.progress(1)
    assert recorder.events == [
        ("progress", {"progress": 0.4, "message": "parsing"}),
        ("custom.type", {}),
    ]
    recorder.assert_emitted_once("progress", {"progress": 0.4, "message": "parsing"})
    recorder.assert_order(["progress", "custom.*"])
    recorder.assert_not_emitted("thinking")
    with pytest.raises(AssertionError, match=r"1\. 'progress': \{'message': 'parsing'"):
        recorder.assert_emitted("completion")


async def test_of_a_session_what_is_handed_over_is_recorded() -> None:
    async with CallbackManager() as manager:
        session = await manager.create_session()
        with Recorder(session) as recorder:
            session.emit_soon("progress", {"progress": 1})
            assert await recorder.wait_for("progress") == [("progress", {"progress": 1})]


async def test_of_a_session_what_failed_for_its_events_is_recorded() -> None:
    manager = CallbackManager()
    manager.register_callback("*", MockCallback(side_effect=OSError))
    session, other = await manager.create_session(), await manager.create_session()
    with Recorder(session) as recorder:
        await session.progress(1)
        await other.progress(1)
        await manager.trigger_callbacks("progress")
    assert len(recorder.failures) == 1
    with pytest.raises(ExceptionGroup, match="callbacks failed 1 time"):
        recorder.raise_for_failures()


async def test_of_a_session_what_operators_are_told_is_not_recorded() -> None:
    class Dead(Transport):
        name = "dead"

        async def send(self, delivery: Delivery) -> None:
            raise Gone("410")

    async with CallbackManager(transports=[Dead()]) as manager:
        session = await manager.create_session({"delivery_method": "dead"})
        with Recorder(manager) as all_, Recorder(session) as mine:
            await session.progress(1)
            await all_.wait_for("delivery.dead")
    assert [name for name, _ in mine.events] == ["progress"]


def test_of_several_recorders_each_records_until_its_own_end() -> None:
    registry = CallbackRegistry()
    registry.register_callback("*", MockCallback(side_effect=OSError))
    with Recorder(registry) as one, Recorder(registry) as two:
        registry.trigger_callbacks_sync("a")
        one.close()
        one.close()
        registry.trigger_callbacks_sync("b")
    assert (one.events, two.events) == ([("a", None)], [("a", None), ("b", None)])
    assert (len(one.failures), len(two.failures)) == (1, 2)


def test_a_muted_event_is_not_recorded() -> None:
    registry = CallbackRegistry()
    with Recorder(registry) as recorder, registry.muted("a.*"):
        registry.trigger_callbacks_sync("a.b")
    assert recorder.events == []


def test_a_trigger_that_is_refused_is_not_recorded() -> None:
    async def listener() -> None: ...

    registry = CallbackRegistry()
    registry.register_callback("a", listener)
    with Recorder(registry) as recorder, pytest.raises(AsyncCallbackError):
        registry.trigger_callbacks_sync("a")
    assert recorder.events == []


def test_no_event_of_eight_threads_is_lost() -> None:
    registry = CallbackRegistry()

    def trigger(name: str) -> None:
        for number in range(250):
            registry.trigger_callbacks_sync(name, number)

    with Recorder(registry) as recorder:
        threads = [threading.Thread(target=trigger, args=(f"t.{n}",)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(recorder.events) == 2000
    for name in (f"t.{n}" for n in range(8)):
        assert [number for _, number in recorder.of(name)] == list(range(250))


@pytest.mark.parametrize("source", ["registry", None, CallbackRegistry], ids=str)
def test_only_what_has_events_can_be_recorded(source) -> None:
    with pytest.raises(TypeError, match="a CallbackManager or a Session, not"):
        Recorder(source)


def test_its_repr_tells_how_much_it_has() -> None:
    recorder = emitted("a", "b")
    assert repr(recorder) == "<Recorder of <CallbackRegistry, 0 callbacks>: 2 events, 0 failures>"


# Looking.


@given(st.lists(NAMES, max_size=6), PATTERNS)
def test_it_finds_what_a_callback_for_the_pattern_is_given(names: list[str], pattern: str) -> None:
    registry, mock = CallbackRegistry(), MockCallback()
    registry.register_callback(pattern, mock, with_event=True)
    with Recorder(registry) as recorder:
        for number, name in enumerate(names):
            registry.trigger_callbacks_sync(name, number)
    assert recorder.of(pattern) == [args for args, _ in mock.calls]
    assert recorder.count(pattern) == mock.call_count


def test_members_keys_and_classes_are_event_types_too() -> None:
    registry = CallbackRegistry()
    with Recorder(registry) as recorder:
        registry.trigger_callbacks_sync(Status.DONE, 1)
        registry.trigger_callbacks_sync(EventKey[int]("key"), 2)
        registry.trigger_callbacks_sync(RushOrder, RushOrder(3))
    assert recorder.events == [("status.done", 1), ("key", 2), (RushOrder, RushOrder(3))]
    recorder.assert_emitted_once(Status.DONE, 1)
    recorder.assert_emitted_once(EventKey[int]("key"), 2)
    recorder.assert_emitted_once(Order, RushOrder(3))
    recorder.assert_not_emitted(int)


@pytest.mark.parametrize("event_type", ["", "a*", 3])
def test_what_is_no_event_type_is_refused(event_type) -> None:
    recorder = emitted("a")
    for method in (recorder.of, recorder.count, recorder.assert_emitted):
        with pytest.raises((TypeError, ValueError), match=r"event type|pattern"):
            method(event_type)


# Asserting.


def test_assertions_that_hold_say_nothing() -> None:
    recorder = emitted("a.x", "b", "a.y", "a.x")
    recorder.assert_emitted("a.x")
    recorder.assert_emitted("a.x", 4)
    recorder.assert_emitted("a.*", ANY)
    recorder.assert_emitted_once("b")
    recorder.assert_emitted_once("b", 2)
    recorder.assert_not_emitted("c.*")
    recorder.assert_order(["a.*", "b", "a.x"])


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (lambda r: r.assert_emitted("c"), "expected 'c'; recorded: 3 events\n    1. 'a.x': 1\n"),
        (lambda r: r.assert_emitted("a.x", 2), "expected 'a.x' with 2; recorded"),
        (lambda r: r.assert_emitted("a.x", None), "expected 'a.x' with None; recorded"),
        (lambda r: r.assert_emitted_once("a.*"), "expected a single 'a.*'; recorded"),
        (lambda r: r.assert_emitted_once("a.*", 1), "expected a single 'a.*' with 1; recorded"),
        (lambda r: r.assert_emitted_once("b", 1), "expected a single 'b' with 1; recorded"),
        (lambda r: r.assert_emitted_once("c"), "expected a single 'c'; recorded"),
        (lambda r: r.assert_not_emitted("a.*"), "expected no 'a.*'; recorded"),
        (lambda r: r.assert_order(["c"]), "the order 'c'; there is no 'c'; recorded"),
        (
            lambda r: r.assert_order(["b", "a.x"]),
            "the order 'b', 'a.x'; there is no 'a.x' after 'b'; recorded",
        ),
        (lambda r: r.assert_emitted(Order), "test_recorder.Order; recorded"),
    ],
    ids=lambda value: value if isinstance(value, str) else "check",
)
def test_a_failed_assertion_says_what_was_expected_and_what_came(check, message: str) -> None:
    with pytest.raises(AssertionError, match=re.escape(message)):
        check(emitted("a.x", "b", "a.y"))


@given(st.lists(st.sampled_from("abc"), max_size=6), st.lists(st.sampled_from("abc"), max_size=4))
def test_an_order_is_what_is_left_when_other_events_are_taken_out(came, wanted) -> None:
    recorder = emitted(*came)
    if tuple(wanted) in itertools.combinations(came, len(wanted)):
        recorder.assert_order(wanted)
    else:
        with pytest.raises(AssertionError):
            recorder.assert_order(wanted)


# Waiting.


async def test_events_that_came_before_count() -> None:
    recorder = emitted("a.x", "b", "a.y", "a.x")
    assert await recorder.wait_for("a.*", 2, timeout=0.001) == [("a.x", 1), ("a.y", 3)]
    assert await recorder.wait_for("b") == [("b", 2)]


async def test_a_wait_ends_with_the_event_of_another_task() -> None:
    registry = CallbackRegistry()
    found = []

    async def wait(recorder: Recorder) -> None:
        found.extend(await recorder.wait_for("order.*", count=2))

    with Recorder(registry) as recorder:
        async with anyio.create_task_group() as group:
            group.start_soon(wait, recorder)
            for number, name in enumerate(["order.a", "other", "order.b", "order.c"]):
                await anyio.wait_all_tasks_blocked()
                await registry.trigger_callbacks(name, number)
    assert found == [("order.a", 0), ("order.b", 2)]


async def test_a_wait_ends_with_the_events_of_a_thread() -> None:
    registry = CallbackRegistry()

    def trigger() -> None:
        for number in range(5000):
            registry.trigger_callbacks_sync("tick", number)

    with Recorder(registry) as recorder:
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.to_thread.run_sync, trigger)
            found = await recorder.wait_for("tick", 5000, timeout=30)
    assert found == [("tick", number) for number in range(5000)]


async def test_a_wait_in_vain_tells_how_many_came_and_what_did() -> None:
    recorder = emitted("a", "b")
    message = "'a' came 1 time within 0.01 seconds, not 2 times; recorded: 2 events\n    1. 'a': 1"
    with pytest.raises(TimeoutError, match=re.escape(message)):
        await recorder.wait_for("a", 2, timeout=0.01)


@pytest.mark.parametrize("count", [0, -1])
async def test_waiting_for_nothing_is_a_mistake(count: int) -> None:
    with pytest.raises(ValueError, match="count must be at least 1"):
        await emitted("a").wait_for("a", count)


# Failures.


async def test_failures_are_recorded_with_where_they_happened() -> None:
    registry = CallbackRegistry()
    error = OSError("printer on fire")
    failing = MockCallback(side_effect=error)
    registry.register_callback("order.*", failing)
    registry.register_callback("order.*", anyio.sleep_forever, timeout=0.01)
    with Recorder(registry) as recorder:
        await registry.trigger_callbacks("order.created", 7)
    [(first, context), (second, _)] = recorder.failures
    assert first is error
    assert (context.callback, context.event_type, context.data) == (failing, "order.created", 7)
    assert isinstance(second, CallbackTimeoutError)
    with pytest.raises(ExceptionGroup, match="callbacks failed 2 times") as caught:
        recorder.raise_for_failures()
    assert caught.value.exceptions == (first, second)


async def test_without_failures_nothing_is_raised() -> None:
    registry = CallbackRegistry()
    registry.register_callback("a", MockCallback(side_effect=OSError))
    recorder = Recorder(registry)
    recorder.close()
    await registry.trigger_callbacks("a")
    recorder.raise_for_failures()
    assert recorder.failures == []
