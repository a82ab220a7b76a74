"""Registering, triggering and looking: what a user of the registry relies on."""

import asyncio
import contextvars
import enum
import gc
import inspect
import logging
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

import anyio
import attrs
import pytest

from callbackkit import (
    AsyncCallbackError,
    CallbackRegistry,
    CallbackTimeoutError,
    DispatchResult,
    ErrorContext,
    EventKey,
    Registration,
    StreamLagError,
)

EVENT = "order.created"


@pytest.fixture
def registry() -> CallbackRegistry:
    return CallbackRegistry()


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Callable[[], list[logging.LogRecord]]:
    """What was logged so far."""
    caplog.set_level(logging.WARNING, "callbackkit")
    return lambda: caplog.records


def is_released(reference: weakref.ref[Any]) -> bool:
    """Tell whether an object is gone; a full collection is made only if it has to be."""
    if reference() is not None:
        gc.collect()
    return reference() is None


def fail(_data: object = None) -> None:
    raise ValueError("broken")


class Order:
    pass


class RushOrder(Order):
    pass


class Loud:
    """Mixed into some events."""


class LoudRushOrder(RushOrder, Loud):
    pass


class Topic(str, enum.Enum):
    CREATED = EVENT
    SHIPPED = "order.shipped"


class Recorder:
    """Makes callbacks that note their names."""

    def __init__(self) -> None:
        self.called: list[str] = []

    def sync(self, name: str) -> Callable[[object], str]:
        def callback(_data: object) -> str:
            self.called.append(name)
            return name

        return callback

    def asynchronous(self, name: str) -> Callable[[object], Any]:
        async def callback(_data: object) -> str:
            await anyio.lowlevel.checkpoint()
            self.called.append(name)
            return name

        return callback


@pytest.fixture
def notes() -> Recorder:
    return Recorder()


def values(registry: CallbackRegistry, event_type: Any, data: Any = None) -> list[Any]:
    return registry.trigger_callbacks_sync(event_type, data).values()


# Triggering.


async def test_a_callback_gets_the_data_and_its_value_is_in_the_result(registry: CallbackRegistry):
    registry.register_callback(EVENT, lambda data: data + 1)
    assert (await registry.trigger_callbacks(EVENT, 1)).values() == [2]
    assert values(registry, EVENT, 2) == [3]


async def test_without_data_callbacks_get_none(registry: CallbackRegistry):
    registry.register_callback(EVENT, lambda data: data is None)
    assert (await registry.trigger_callbacks(EVENT)).values() == [True]
    assert values(registry, EVENT) == [True]


async def test_sync_and_async_callbacks_are_mixed_in_one_trigger(
    registry: CallbackRegistry, notes: Recorder
):
    registry.register_callback(EVENT, notes.asynchronous("a"))
    registry.register_callback(EVENT, notes.sync("b"))
    registry.register_callback(EVENT, notes.asynchronous("c"))
    registry.register_callback(EVENT, notes.sync("d"))
    result = await registry.trigger_callbacks(EVENT)
    assert notes.called == ["a", "b", "c", "d"]
    assert result.values() == ["a", "b", "c", "d"]


async def test_a_callback_is_finished_before_the_next_is_called(registry: CallbackRegistry):
    steps: list[str] = []

    async def slow() -> None:
        steps.append("begin")
        await anyio.lowlevel.checkpoint()
        steps.append("end")

    registry.register_callback(EVENT, slow)
    registry.register_callback(EVENT, lambda: steps.append("next"))
    await registry.trigger_callbacks(EVENT)
    assert steps == ["begin", "end", "next"]


async def test_in_concurrent_mode_callbacks_wait_at_the_same_time():
    """The first goes on only when the last has been called."""
    registry = CallbackRegistry(mode="concurrent")
    last_called = anyio.Event()

    async def first() -> str:
        await last_called.wait()
        return "first"

    async def last() -> str:
        last_called.set()
        return "last"

    registry.register_callback(EVENT, first)
    registry.register_callback(EVENT, lambda: "sync")
    registry.register_callback(EVENT, last)
    with anyio.fail_after(10):
        result = await registry.trigger_callbacks(EVENT)
    assert result.values() == ["first", "sync", "last"]


async def test_in_concurrent_mode_callbacks_are_called_in_order(notes: Recorder):
    registry = CallbackRegistry(mode="concurrent")
    for name in "abc":
        registry.register_callback(EVENT, notes.sync(name))
    await registry.trigger_callbacks(EVENT)
    assert notes.called == ["a", "b", "c"]


async def test_an_event_nobody_listens_to_is_fine(registry: CallbackRegistry):
    for result in (await registry.trigger_callbacks(EVENT), registry.trigger_callbacks_sync(EVENT)):
        assert isinstance(result, DispatchResult)
        assert len(result) == 0
        assert result.ok


async def test_every_trigger_has_a_result_of_its_own(registry: CallbackRegistry):
    registry.register_callback(EVENT, lambda data: data)
    first = await registry.trigger_callbacks(EVENT, 1)
    second = await registry.trigger_callbacks(EVENT, 2)
    assert (first.values(), second.values()) == ([1], [2])


async def test_a_result_outlives_changes_of_the_registry(registry: CallbackRegistry):
    registration = registry.register_callback(EVENT, lambda: 1)
    registry.register_callback(EVENT, fail)
    result = await registry.trigger_callbacks(EVENT)
    registry.clear()
    assert [outcome.status for outcome in result] == ["ok", "error"]
    assert result[0].registration is registration


async def test_registries_do_not_see_each_other(registry: CallbackRegistry, notes: Recorder):
    registry.register_callback(EVENT, notes.sync("here"))
    other = CallbackRegistry()
    await other.trigger_callbacks(EVENT)
    assert notes.called == []


# Arguments.


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_callback_may_take_no_argument(registry: CallbackRegistry, is_async: bool):
    async def nothing_async() -> str:
        return "called"

    registry.register_callback(EVENT, nothing_async if is_async else lambda: "called")
    assert (await registry.trigger_callbacks(EVENT, "data")).values() == ["called"]


def test_only_parameters_without_a_default_count(registry: CallbackRegistry):
    """A loop that registers ``lambda row=row: ...`` keeps its rows."""
    for row in range(3):
        registry.register_callback(EVENT, lambda row=row: row)
    assert values(registry, EVENT, "data") == [0, 1, 2]


def test_a_callback_that_takes_any_number_gets_all(registry: CallbackRegistry):
    registry.register_callback(EVENT, lambda *args: args)
    registry.register_callback(EVENT, lambda *args: args, with_event=True)
    assert values(registry, EVENT, "data") == [("data",), (EVENT, "data")]


def test_with_event_gives_the_event_type_first(registry: CallbackRegistry):
    registry.register_callback("order.*", lambda event, data: (event, data), with_event=True)
    registry.register_callback("order.*", lambda event: event, with_event=True)
    registry.register_callback("order.*", lambda: "nothing", with_event=True)
    assert values(registry, EVENT, 5) == [(EVENT, 5), EVENT, "nothing"]


def test_with_event_gives_the_class_of_an_object(registry: CallbackRegistry):
    registry.register_callback(Order, lambda event, data: (event, data), with_event=True)
    order = RushOrder()
    assert values(registry, RushOrder, order) == [(RushOrder, order)]


@pytest.mark.parametrize("event_type", [Topic.CREATED, EventKey[int](EVENT), EVENT], ids=repr)
def test_with_event_gives_a_plain_string_for_keys_and_enums(
    registry: CallbackRegistry, event_type: Any
):
    registry.register_callback(event_type, lambda event, _data: event, with_event=True)
    for trigger in (Topic.CREATED, EventKey[int](EVENT), EVENT):
        (event,) = values(registry, trigger)
        assert type(event) is str
        assert event == EVENT


def test_a_method_gets_its_object_and_the_data(registry: CallbackRegistry):
    class Owner:
        def take(self, data: object) -> tuple[object, object]:
            return self, data

        @classmethod
        def take_class(cls, data: object) -> tuple[object, object]:
            return cls, data

        @staticmethod
        def take_static(data: object) -> object:
            return data

    owner = Owner()
    for callback in (owner.take, owner.take_class, owner.take_static):
        registry.register_callback(EVENT, callback)
    assert values(registry, EVENT, 1) == [(owner, 1), (Owner, 1), 1]


def test_a_class_may_be_a_callback(registry: CallbackRegistry):
    @attrs.frozen
    class Command:
        data: object

    registry.register_callback(EVENT, Command)
    assert values(registry, EVENT, 1) == [Command(1)]


# Order.


def test_callbacks_are_called_in_the_order_they_were_registered(
    registry: CallbackRegistry, notes: Recorder
):
    for name in "abcdef":
        registry.register_callback(EVENT, notes.sync(name))
    assert values(registry, EVENT) == list("abcdef")


def test_higher_priorities_are_called_first_and_equal_ones_in_order(
    registry: CallbackRegistry, notes: Recorder
):
    for name, priority in [("a", 0), ("b", 5), ("c", -1), ("d", 5), ("e", 0.5), ("f", 0)]:
        registry.register_callback(EVENT, notes.sync(name), priority=priority)
    assert values(registry, EVENT) == ["b", "d", "e", "a", "f", "c"]


def test_infinite_priorities_are_first_and_last(registry: CallbackRegistry, notes: Recorder):
    registry.register_callback(EVENT, notes.sync("last"), priority=float("-inf"))
    registry.register_callback(EVENT, notes.sync("middle"), priority=10**9)
    registry.register_callback(EVENT, notes.sync("first"), priority=float("inf"))
    assert values(registry, EVENT) == ["first", "middle", "last"]


def test_a_priority_may_be_any_number(registry: CallbackRegistry, notes: Recorder):
    registry.register_callback(EVENT, notes.sync("huge"), priority=10**400)
    registry.register_callback(EVENT, notes.sync("tiny"), priority=-(10**400))
    registry.register_callback(EVENT, notes.sync("zero"), priority=-0.0)
    assert values(registry, EVENT) == ["huge", "zero", "tiny"]


def test_exact_names_and_patterns_are_in_one_order(registry: CallbackRegistry, notes: Recorder):
    registry.register_callback("order.**", notes.sync("any depth"))
    registry.register_callback(EVENT, notes.sync("exact"))
    registry.register_callback("*.created", notes.sync("created"))
    registry.register_callback("**", notes.sync("all"), priority=1)
    registry.register_callback("order.*", notes.sync("orders"))
    registry.register_callback(EVENT, notes.sync("exact again"))
    expected = ["all", "any depth", "exact", "created", "orders", "exact again"]
    assert values(registry, EVENT) == expected


def test_a_class_and_its_bases_are_in_one_order(registry: CallbackRegistry, notes: Recorder):
    registry.register_callback(object, notes.sync("object"))
    registry.register_callback(LoudRushOrder, notes.sync("loud rush"))
    registry.register_callback(Order, notes.sync("order"), priority=1)
    registry.register_callback(Loud, notes.sync("loud"))
    registry.register_callback(RushOrder, notes.sync("rush"))
    assert values(registry, LoudRushOrder) == ["order", "object", "loud rush", "loud", "rush"]


async def test_the_order_is_the_same_for_async_callbacks(
    registry: CallbackRegistry, notes: Recorder
):
    registry.register_callback("order.*", notes.asynchronous("b"))
    registry.register_callback(EVENT, notes.sync("a"), priority=1)
    registry.register_callback(EVENT, notes.asynchronous("c"))
    assert (await registry.trigger_callbacks(EVENT)).values() == ["a", "b", "c"]


# Event types.


@pytest.mark.parametrize(
    ("pattern", "event", "expected"),
    [
        ("order.*", "order.created", True),
        ("order.*", "order.item.added", False),
        ("order.*", "order", False),
        ("order.*", "orders.created", False),
        ("*", "order", True),
        ("*", "order.created", False),
        ("order.**", "order.created", True),
        ("order.**", "order.item.added", True),
        ("order.**", "orders", False),
        ("**", "anything.at.all", True),
        ("*.created", "order.created", True),
        ("*.created", "order.item.created", False),
        ("order.*.added", "order.item.added", True),
        ("order.*.added", "order.item.removed", False),
        ("a+b.*", "a+b.c", True),
        ("a+b.*", "aab.c", False),
        ("o.d.*", "oxd.e", False),
        ("zeile\n.*", "zeile\n.x", True),
    ],
)
def test_a_star_is_one_segment_and_two_are_any_rest(
    registry: CallbackRegistry, pattern: str, event: str, expected: bool
):
    registry.register_callback(pattern, lambda: "called")
    assert values(registry, event) == (["called"] if expected else [])


def test_a_pattern_registered_later_joins_events_triggered_before(registry: CallbackRegistry):
    registry.register_callback(EVENT, lambda: "exact")
    assert values(registry, EVENT) == ["exact"]
    pattern = registry.register_callback("order.*", lambda: "pattern")
    assert values(registry, EVENT) == ["exact", "pattern"]
    pattern.cancel()
    assert values(registry, EVENT) == ["exact"]


@pytest.mark.parametrize("trigger", [EVENT, Topic.CREATED, EventKey[Order](EVENT)], ids=repr)
@pytest.mark.parametrize(
    "registered", [EVENT, Topic.CREATED, EventKey[Order](EVENT), "order.*"], ids=repr
)
async def test_strings_enums_and_keys_of_one_name_are_one_event(
    registry: CallbackRegistry, registered: Any, trigger: Any
):
    callback = Order.__name__.lower
    for _ in range(2):
        registry.register_callback(registered, callback)
        assert (await registry.trigger_callbacks(trigger)).values() == ["order"]
        assert values(registry, trigger) == ["order"]
        assert registry.has_listeners(registered)
        assert registry.unregister_callback(registered, callback)
        assert values(registry, trigger) == []


def test_a_subclass_of_str_is_the_event_of_its_text(registry: CallbackRegistry):
    class Name(str):
        __slots__ = ()

        def __str__(self) -> str:
            return "something else"

    registry.register_callback(EVENT, lambda: "called")
    assert values(registry, Name(EVENT)) == ["called"]
    registry.register_callback(Name("other"), lambda: "other")
    assert values(registry, "other") == ["other"]


def test_a_str_with_an_equality_of_its_own_is_refused(registry: CallbackRegistry):
    class CaseInsensitive(str):
        __slots__ = ()

        def __eq__(self, other: object) -> bool:
            return isinstance(other, str) and self.lower() == other.lower()

        def __hash__(self) -> int:
            return hash(self.lower())

    with pytest.raises(TypeError, match="CaseInsensitive has an equality of its own"):
        registry.register_callback(CaseInsensitive("Order"), print)
    with pytest.raises(TypeError, match="CaseInsensitive has an equality of its own"):
        registry.trigger_callbacks_sync(CaseInsensitive("Order"))
    assert registry.event_types() == []


def test_an_enum_whose_value_is_not_its_text_is_the_event_of_one_of_them(
    registry: CallbackRegistry,
):
    """Whichever it is, another event never gets its callbacks."""

    class Odd(str, enum.Enum):
        def __new__(cls, text: str, value: str) -> "Odd":
            member = str.__new__(cls, text)
            member._value_ = value
            return member

        MEMBER = ("text", "value")

    registry.register_callback("text", lambda: "text")
    registry.register_callback("value", lambda: "value")
    assert values(registry, Odd.MEMBER) in (["text"], ["value"])
    assert values(registry, "text") == ["text"]
    assert values(registry, "value") == ["value"]


def test_strings_and_classes_are_never_the_same_event(registry: CallbackRegistry):
    registry.register_callback("Order", lambda: "string")
    registry.register_callback("**", lambda: "pattern")
    registry.register_callback(Order, lambda: "class")
    assert values(registry, Order) == ["class"]
    assert values(registry, "Order") == ["string", "pattern"]


def test_event_types_with_strange_text_are_events(registry: CallbackRegistry):
    for event in ("a b", "é.ü", "..", "x" * 10_000, "\x00", "a\nb"):
        registry.register_callback(event, lambda event=event: event)
        assert values(registry, event) == [event]


# Emitting.


async def test_emitting_an_object_triggers_its_class_and_its_bases(
    registry: CallbackRegistry, notes: Recorder
):
    registry.register_callback(Order, notes.sync("order"))
    registry.register_callback(RushOrder, notes.sync("rush"))
    registry.register_callback(LoudRushOrder, notes.sync("loud rush"))
    await registry.emit(RushOrder())
    assert notes.called == ["order", "rush"]


async def test_emitting_an_object_gives_it_to_the_callbacks(registry: CallbackRegistry):
    registry.register_callback(Order, lambda order: order)
    order = RushOrder()
    assert (await registry.emit(order)).values() == [order]


async def test_emitting_an_event_type_is_triggering_it(registry: CallbackRegistry):
    registry.register_callback(EVENT, lambda data: data)
    assert (await registry.emit(EVENT, 5)).values() == [5]
    assert (await registry.emit(EVENT)).values() == [None]
    assert (await registry.emit(Topic.CREATED, 6)).values() == [6]
    assert (await registry.emit(EventKey[int](EVENT), 7)).values() == [7]
    assert (await registry.emit(EVENT, None)).values() == [None]


async def test_emitting_a_class_with_data_triggers_the_class(registry: CallbackRegistry):
    registry.register_callback(Order, lambda data: data)
    order = Order()
    assert (await registry.emit(Order, order)).values() == [order]


async def test_emitting_something_else_with_data_is_a_type_error(registry: CallbackRegistry):
    with pytest.raises(TypeError, match="an event type is"):
        await registry.emit(Order(), "data")


# The aliases.


async def test_on_is_a_decorator_that_leaves_the_function_as_it_is(registry: CallbackRegistry):
    @registry.on("order.*", priority=1)
    async def audit(data: object) -> object:
        return data

    assert inspect.iscoroutinefunction(audit)
    assert [one.callback for one in registry.listeners("order.*")] == [audit]
    assert registry.listeners("order.*")[0].priority == 1
    assert (await registry.emit(EVENT, 1)).values() == [1]


def test_on_may_decorate_the_same_function_for_several_events(registry: CallbackRegistry):
    @registry.on("a")
    @registry.on("b")
    def callback(data: object) -> object:
        return data

    assert values(registry, "a", 1) == values(registry, "b", 1) == [1]


def test_on_and_once_with_a_callback_return_its_registration(registry: CallbackRegistry):
    assert isinstance(registry.on(EVENT, len), Registration)
    assert isinstance(registry.once(EVENT, len, priority=1), Registration)
    assert values(registry, EVENT, "four") == [4, 4]
    assert values(registry, EVENT, "four") == [4]


def test_once_is_a_decorator_too(registry: CallbackRegistry):
    @registry.once(EVENT)
    def callback() -> int:
        return 1

    assert values(registry, EVENT) == [1]
    assert values(registry, EVENT) == []


def test_off_is_unregistering(registry: CallbackRegistry):
    registry.on(EVENT, len)
    assert registry.off(EVENT, len) is True
    assert registry.off(EVENT, len) is False


def test_once_after_on_keeps_the_permanent_callback(registry: CallbackRegistry):
    registry.on(EVENT, len)
    registry.once(EVENT, len)
    assert values(registry, EVENT, "four") == [4, 4]
    assert values(registry, EVENT, "four") == [4]


# Unregistering.


def test_unregistering_tells_whether_there_was_one(registry: CallbackRegistry):
    registry.register_callback(EVENT, len)
    assert registry.unregister_callback(EVENT, len) is True
    assert registry.unregister_callback(EVENT, len) is False
    assert registry.unregister_callback("never.seen", len) is False
    assert registry.unregister_callback(EVENT, fail) is False


def test_a_callback_registered_three_times_is_called_and_removed_three_times(
    registry: CallbackRegistry,
):
    registrations = [registry.register_callback(EVENT, len) for _ in range(3)]
    assert values(registry, EVENT, "four") == [4, 4, 4]
    for left in (2, 1, 0):
        assert registry.unregister_callback(EVENT, len) is True
        assert registry.listeners(EVENT) == registrations[3 - left :]
    assert registry.unregister_callback(EVENT, len) is False


def test_unregistering_takes_the_first_registered_whatever_its_priority(
    registry: CallbackRegistry,
):
    first = registry.register_callback(EVENT, len)
    second = registry.register_callback(EVENT, len, priority=9)
    registry.unregister_callback(EVENT, len)
    assert (first.active, second.active) == (False, True)


def test_a_bound_method_looked_up_again_is_the_same(registry: CallbackRegistry):
    owner = Recorder()
    registry.register_callback(EVENT, owner.sync)
    assert registry.unregister_callback(EVENT, owner.sync) is True


@attrs.define
class Equal:
    """All are equal; none can be hashed."""

    name: str = attrs.field(eq=False)

    def take(self) -> str:
        return self.name

    def __call__(self) -> str:
        return self.name


def test_bound_methods_of_equal_objects_are_not_the_same(registry: CallbackRegistry):
    one, other = Equal("one"), Equal("other")
    registry.register_callback(EVENT, one.take)
    registry.register_callback(EVENT, other.take)
    assert registry.unregister_callback(EVENT, other.take) is True
    assert values(registry, EVENT) == ["one"]
    assert registry.unregister_callback(EVENT, Equal("third").take) is False


def test_an_equal_callable_object_unregisters_the_first(registry: CallbackRegistry):
    for name in ("a", "b", "c"):
        registry.register_callback(EVENT, Equal(name))
    assert registry.unregister_callback(EVENT, Equal("equal")) is True
    assert values(registry, EVENT) == ["b", "c"]


def test_an_equal_callable_object_unregisters_in_order_of_registration(
    registry: CallbackRegistry,
):
    a, b = Equal("a"), Equal("b")
    for callback in (a, b, a):
        registry.register_callback(EVENT, callback)
    registry.unregister_callback(EVENT, Equal("equal"))
    registry.unregister_callback(EVENT, Equal("equal"))
    assert values(registry, EVENT) == ["a"]


def test_unregistering_is_for_exactly_the_type_or_pattern(registry: CallbackRegistry):
    registry.register_callback("order.*", len)
    registry.register_callback(Order, len)
    assert registry.unregister_callback(EVENT, len) is False
    assert registry.unregister_callback("order.**", len) is False
    assert registry.unregister_callback(RushOrder, len) is False
    assert registry.unregister_callback("order.*", len) is True
    assert registry.unregister_callback(Order, len) is True


def test_what_cannot_be_called_was_never_registered(registry: CallbackRegistry):
    registry.register_callback(EVENT, len)
    assert registry.unregister_callback(EVENT, None) is False


# Looking.


def test_listeners_are_those_who_would_be_called_in_order(registry: CallbackRegistry):
    pattern = registry.register_callback("order.*", len)
    exact = registry.register_callback(EVENT, len, priority=1)
    other = registry.register_callback("other", len)
    assert registry.listeners(EVENT) == [exact, pattern]
    assert registry.listeners(Topic.CREATED) == [exact, pattern]
    assert registry.listeners() == [pattern, exact, other]
    assert registry.listeners("nobody") == []


def test_listeners_of_a_pattern_are_those_registered_for_it(registry: CallbackRegistry):
    pattern = registry.register_callback("order.*", len)
    registry.register_callback(EVENT, len)
    registry.register_callback("order.**", len)
    assert registry.listeners("order.*") == [pattern]
    assert not registry.has_listeners("*.created")


def test_listeners_of_a_class_include_those_of_its_bases(registry: CallbackRegistry):
    base = registry.register_callback(Order, print)
    registry.register_callback(LoudRushOrder, print)
    assert registry.listeners(RushOrder) == [base]
    assert registry.has_listeners(RushOrder)
    assert not registry.has_listeners(Loud)


def test_the_list_of_listeners_is_a_copy(registry: CallbackRegistry):
    registry.register_callback(EVENT, len)
    registry.listeners().clear()
    registry.listeners(EVENT).clear()
    registry.event_types().clear()
    assert len(registry.listeners(EVENT)) == len(registry.event_types()) == 1


def test_has_listeners_follows_every_change(registry: CallbackRegistry):
    assert not registry.has_listeners(EVENT)
    registration = registry.register_callback("order.*", len)
    assert registry.has_listeners(EVENT)
    registration.cancel()
    assert not registry.has_listeners(EVENT)


def test_event_types_are_what_somebody_registered_for(registry: CallbackRegistry):
    assert registry.event_types() == []
    for event_type in (EVENT, "order.*", Order, Topic.SHIPPED, EventKey[int]("count"), EVENT):
        registry.register_callback(event_type, print)
    assert registry.event_types() == [EVENT, "order.*", Order, "order.shipped", "count"]
    registry.unregister_callback("order.*", print)
    registry.unregister_callback(EVENT, print)
    assert registry.event_types() == [EVENT, Order, "order.shipped", "count"]


def test_triggering_makes_no_event_type(registry: CallbackRegistry):
    values(registry, "never.registered")
    assert registry.event_types() == []


def test_clear_takes_out_all_callbacks_and_leaves_the_rest(registry: CallbackRegistry):
    failures: list[Exception] = []
    registry.add_error_callback(failures.append)
    for event_type in (EVENT, "order.*", Order):
        registry.register_callback(event_type, print)
    registry.clear()
    assert registry.listeners() == registry.event_types() == []
    assert values(registry, EVENT) == []
    registry.register_callback(EVENT, fail)
    values(registry, EVENT)
    assert len(failures) == 1


def test_a_registry_shows_how_many_callbacks_it_has(registry: CallbackRegistry):
    registry.register_callback(EVENT, len)
    assert repr(registry) == "<CallbackRegistry, 1 callbacks>"


# Once.


@pytest.mark.parametrize("is_async", [False, True])
async def test_once_is_called_a_single_time(registry: CallbackRegistry, is_async: bool):
    notes = Recorder()
    callback = notes.asynchronous("once") if is_async else notes.sync("once")
    registration = registry.register_callback(EVENT, callback, once=True)
    assert (await registry.trigger_callbacks(EVENT)).values() == ["once"]
    assert not registration.active
    assert (await registry.trigger_callbacks(EVENT)).values() == []
    assert registry.unregister_callback(EVENT, callback) is False


async def test_once_is_claimed_before_the_call(registry: CallbackRegistry):
    """So a callback that triggers its own event is not called again."""
    calls: list[int] = []

    async def callback() -> None:
        calls.append(1)
        assert (await registry.trigger_callbacks(EVENT)).values() == []

    registry.register_callback(EVENT, callback, once=True)
    assert (await registry.trigger_callbacks(EVENT)).ok
    assert calls == [1]


async def test_once_is_claimed_by_one_of_two_triggers_at_once(registry: CallbackRegistry):
    notes = Recorder()
    registry.register_callback(EVENT, notes.asynchronous("first"))
    registry.register_callback(EVENT, notes.asynchronous("once"), once=True)
    results: list[DispatchResult] = []

    async def trigger() -> None:
        results.append(await registry.trigger_callbacks(EVENT))

    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(trigger)
    assert notes.called.count("once") == 1
    statuses = sorted(result[1].status for result in results)
    assert statuses == ["ok", "skipped", "skipped", "skipped", "skipped"]


def test_once_is_used_up_by_a_failure(registry: CallbackRegistry):
    registry.register_callback(EVENT, fail, once=True)
    assert not registry.trigger_callbacks_sync(EVENT).ok
    assert registry.listeners() == []


def test_once_is_not_claimed_when_when_is_false(registry: CallbackRegistry):
    registry.register_callback(EVENT, len, once=True, when=lambda data: data == "yes")
    assert [one.status for one in registry.trigger_callbacks_sync(EVENT, "no")] == ["skipped"]
    assert registry.has_listeners(EVENT)
    assert values(registry, EVENT, "yes") == [3]
    assert not registry.has_listeners(EVENT)


def test_once_is_not_claimed_when_when_raises(registry: CallbackRegistry):
    registry.register_callback(EVENT, len, once=True, when=lambda data: data["key"])
    assert not registry.trigger_callbacks_sync(EVENT, {}).ok
    assert registry.has_listeners(EVENT)


def test_once_for_a_pattern_is_once_for_all_its_events(registry: CallbackRegistry):
    registry.register_callback("order.*", lambda event: event, once=True, with_event=True)
    assert values(registry, "order.created") == ["order.created"]
    assert values(registry, "order.shipped") == []


def test_once_that_is_skipped_by_a_sync_refusal_is_not_used_up(registry: CallbackRegistry):
    registry.register_callback(EVENT, len, once=True)
    registry.register_callback(EVENT, Recorder().asynchronous("async"))
    with pytest.raises(AsyncCallbackError):
        registry.trigger_callbacks_sync(EVENT, "data")
    assert len(registry.listeners(EVENT)) == 2


# When.


@pytest.mark.parametrize(
    ("answer", "expected"), [(True, "ok"), (1, "ok"), (False, "skipped"), (0, "skipped")]
)
def test_when_decides_with_the_data(registry: CallbackRegistry, answer: object, expected: str):
    asked: list[object] = []
    registry.register_callback(EVENT, len, when=lambda data: asked.append(data) or answer)
    (outcome,) = registry.trigger_callbacks_sync(EVENT, "data")
    assert asked == ["data"]
    assert outcome.status == expected
    assert outcome.ok


def test_when_gets_the_data_though_its_parameter_has_a_default(registry: CallbackRegistry):
    registry.register_callback(EVENT, lambda: "bool", when=bool)
    registry.register_callback(EVENT, lambda: "default", when=lambda data=None: data)
    assert values(registry, EVENT, "true") == ["bool", "default"]
    assert values(registry, EVENT, "") == []


def test_when_may_take_no_argument(registry: CallbackRegistry):
    gate = [True]
    registry.register_callback(EVENT, lambda: "called", when=lambda: gate[0])
    assert values(registry, EVENT) == ["called"]
    gate[0] = False
    assert values(registry, EVENT) == []


def test_a_when_that_raises_is_a_failure_of_its_callback(
    registry: CallbackRegistry, logged: Callable[[], list[logging.LogRecord]]
):
    registry.register_callback(EVENT, len, when=lambda data: data.missing)
    registry.register_callback(EVENT, len)
    result = registry.trigger_callbacks_sync(EVENT, "data")
    assert [outcome.status for outcome in result] == ["error", "ok"]
    assert isinstance(result[0].error, AttributeError)
    assert len(logged()) == 1


async def test_a_when_whose_answer_cannot_be_asked_is_a_failure_of_its_callback(
    registry: CallbackRegistry,
):
    class Undecided:
        def __bool__(self) -> bool:
            raise RuntimeError("undecided")

    registry.register_callback(EVENT, len, when=lambda _data: Undecided())
    registry.register_callback(EVENT, len)
    result = await registry.trigger_callbacks(EVENT, "data")
    assert [outcome.status for outcome in result] == ["error", "ok"]


async def test_a_when_that_returns_a_coroutine_is_a_failure_of_its_callback(
    registry: CallbackRegistry,
):
    """It would be true whatever it says."""

    async def decide() -> bool:
        return False

    registry.register_callback(EVENT, len, when=lambda _data: decide())
    result = await registry.trigger_callbacks(EVENT, "data")
    assert isinstance(result[0].error, AsyncCallbackError)
    assert not registry.trigger_callbacks_sync(EVENT, "data").ok


async def test_when_is_asked_in_concurrent_mode_too():
    registry = CallbackRegistry(mode="concurrent")
    for wanted in (1, 2, 3):
        registry.register_callback(
            EVENT, Recorder().asynchronous(str(wanted)), when=lambda data, wanted=wanted: data == 2
        )
    result = await registry.trigger_callbacks(EVENT, 2)
    assert result.values() == ["1", "2", "3"]
    assert (await registry.trigger_callbacks(EVENT, 3)).values() == []


@pytest.mark.parametrize("how", ["cancel", "pause"])
def test_the_when_of_a_callback_removed_before_its_turn_is_not_asked(
    registry: CallbackRegistry, how: str
):
    asked: list[int] = []
    registry.register_callback(EVENT, lambda: getattr(later, how)())
    later = registry.register_callback(EVENT, len, when=lambda: asked.append(1))
    assert [one.status for one in registry.trigger_callbacks_sync(EVENT)] == ["ok", "skipped"]
    assert asked == []


def test_a_when_that_cancels_its_own_callback_keeps_it_from_being_called(
    registry: CallbackRegistry,
):
    registration = registry.register_callback(
        EVENT, lambda: "called", when=lambda: registration.cancel(), once=True
    )
    assert values(registry, EVENT) == []


# Weak methods.


class Owner:
    def __init__(self) -> None:
        self.seen: list[object] = []

    def take(self, data: object) -> object:
        self.seen.append(data)
        return data

    def nothing(self) -> str:
        return "nothing"

    async def take_async(self, data: object) -> object:
        await anyio.lowlevel.checkpoint()
        return data

    async def sleep(self) -> None:
        await anyio.sleep_forever()

    def both(self, event: object, data: object) -> tuple[object, object]:
        return event, data


WEAK_OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "timeout": {"timeout": 60},
    "thread": {"thread": True},
    "thread with timeout": {"thread": True, "timeout": 60},
    "once when false": {"once": True, "when": lambda: False},
    "when": {"when": lambda: True},
    "priority": {"priority": 3},
    "on_error": {"on_error": print},
}
REGISTRY_OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "timeout": {"timeout": 60},
    "timed": {"timing": True},
    "concurrent": {"mode": "concurrent"},
    "observed": {"trace": True, "monitor": True},
}


@pytest.mark.parametrize("registry_options", REGISTRY_OPTIONS)
@pytest.mark.parametrize("options", WEAK_OPTIONS)
async def test_a_weak_method_goes_with_its_object(options: str, registry_options: str):
    registry = CallbackRegistry(**REGISTRY_OPTIONS[registry_options])
    owner = Owner()
    registry.register_callback(EVENT, owner.take, weak=True, **WEAK_OPTIONS[options])
    registry.trigger_callbacks_sync(EVENT, 1)
    await registry.trigger_callbacks(EVENT, 2)
    gone = weakref.ref(owner)
    del owner
    assert is_released(gone)
    assert not registry.has_listeners(EVENT)
    assert registry.listeners() == registry.event_types() == []
    assert len(await registry.trigger_callbacks(EVENT)) == 0
    assert len(registry.trigger_callbacks_sync(EVENT)) == 0


@pytest.mark.parametrize("registry_options", REGISTRY_OPTIONS)
async def test_a_weak_async_method_goes_with_its_object(registry_options: str):
    registry = CallbackRegistry(**REGISTRY_OPTIONS[registry_options])
    owner = Owner()
    registry.register_callback(EVENT, owner.take_async, weak=True, timeout=60)
    registry.register_callback(EVENT, owner.take_async, weak=True)
    assert (await registry.trigger_callbacks(EVENT, 1)).values() == [1, 1]
    gone = weakref.ref(owner)
    del owner
    assert is_released(gone)
    assert len(await registry.trigger_callbacks(EVENT)) == 0
    assert len(registry.trigger_callbacks_sync(EVENT)) == 0


def test_a_weak_method_takes_fewer_or_more_arguments(registry: CallbackRegistry):
    owner = Owner()
    registry.register_callback(EVENT, owner.nothing, weak=True)
    registry.register_callback(EVENT, owner.both, weak=True, with_event=True)
    registry.register_callback(EVENT, owner.take, weak=True, with_event=True)
    assert values(registry, EVENT, 1) == ["nothing", (EVENT, 1), EVENT]


async def test_a_weak_async_method_is_refused_by_a_sync_trigger(registry: CallbackRegistry):
    owner = Owner()
    registry.register_callback(EVENT, owner.take, weak=True)
    registry.register_callback(EVENT, owner.take_async, weak=True)
    with pytest.raises(AsyncCallbackError, match="take_async"):
        registry.trigger_callbacks_sync(EVENT)
    assert owner.seen == []


async def test_a_weak_method_that_times_out_has_timed_out(registry: CallbackRegistry):
    owner = Owner()
    registry.register_callback(EVENT, owner.sleep, weak=True, timeout=0.01)
    (outcome,) = await registry.trigger_callbacks(EVENT)
    assert outcome.status == "timeout"


def test_a_weak_method_in_a_thread_that_times_out_has_timed_out(registry: CallbackRegistry):
    release = threading.Event()

    class Blocker:
        def block(self) -> None:
            release.wait(30)

    owner = Blocker()
    registry.register_callback(EVENT, owner.block, weak=True, thread=True, timeout=0.01)
    assert registry.trigger_callbacks_sync(EVENT)[0].status == "timeout"
    release.set()


async def test_a_weak_method_whose_object_dies_before_its_turn_is_skipped(
    registry: CallbackRegistry,
):
    owners = [Owner()]
    registry.register_callback(EVENT, owners.clear)
    registry.register_callback(EVENT, owners[0].nothing, weak=True)
    result = await registry.trigger_callbacks(EVENT)
    assert [outcome.status for outcome in result] == ["ok", "skipped"]
    assert result[1].callback is None


def test_a_weak_method_can_be_unregistered(registry: CallbackRegistry):
    owner, other = Owner(), Owner()
    registry.register_callback(EVENT, owner.take, weak=True)
    assert registry.unregister_callback(EVENT, other.take) is False
    assert registry.unregister_callback(EVENT, owner.nothing) is False
    assert registry.unregister_callback(EVENT, owner.take) is True
    assert registry.unregister_callback(EVENT, owner.take) is False


@pytest.mark.parametrize("weak_first", [True, False])
def test_of_a_weak_and_a_strong_registration_the_first_is_unregistered(
    registry: CallbackRegistry, weak_first: bool
):
    owner = Owner()
    first = registry.register_callback(EVENT, owner.take, weak=weak_first)
    second = registry.register_callback(EVENT, owner.take, weak=not weak_first)
    assert registry.unregister_callback(EVENT, owner.take) is True
    assert (first.active, second.active) == (False, True)
    assert registry.unregister_callback(EVENT, owner.take) is True
    assert registry.listeners() == []


def test_a_strong_method_keeps_its_object(registry: CallbackRegistry):
    owner = Owner()
    registry.register_callback(EVENT, owner.take)
    alive = weakref.ref(owner)
    del owner
    gc.collect()
    assert alive() is not None
    assert values(registry, EVENT, 1) == [1]


@pytest.mark.parametrize(
    "callback",
    [lambda: None, fail, len, print, [].append, Owner, Equal("object")],
    ids=["lambda", "function", "builtin", "print", "builtin method", "class", "object"],
)
def test_only_bound_methods_can_be_held_weakly(registry: CallbackRegistry, callback: Any):
    """Nothing else may hold a lambda, so it would vanish at once."""
    with pytest.raises(ValueError, match="weak=True takes bound methods only"):
        registry.register_callback(EVENT, callback, weak=True)
    assert registry.event_types() == []


def test_a_method_of_an_object_that_cannot_be_held_weakly_is_refused(
    registry: CallbackRegistry,
):
    class Slotted:
        __slots__ = ()

        def take(self) -> None: ...

    with pytest.raises(TypeError, match="a Slotted can't be held weakly; add '__weakref__'"):
        registry.register_callback(EVENT, Slotted().take, weak=True)
    assert registry.event_types() == []


# Muting.


def test_a_muted_event_happens_unnoticed(registry: CallbackRegistry, notes: Recorder):
    registry.register_callback(EVENT, notes.sync("exact"))
    registry.register_callback("**", notes.sync("pattern"))
    with registry.muted(EVENT):
        assert values(registry, EVENT) == []
        assert values(registry, "other") == ["pattern"]
    assert values(registry, EVENT) == ["exact", "pattern"]


@pytest.mark.parametrize(
    "muted", ["order.*", "order.**", "**", EVENT, Topic.CREATED, "*.created"], ids=repr
)
async def test_a_pattern_mutes_all_its_events(registry: CallbackRegistry, muted: Any):
    registry.register_callback(EVENT, lambda: "called")
    with registry.muted(muted):
        assert (await registry.trigger_callbacks(EVENT)).values() == []
    assert (await registry.trigger_callbacks(EVENT)).values() == ["called"]


async def test_a_class_mutes_its_subclasses(registry: CallbackRegistry):
    registry.register_callback(object, lambda: "called")
    with registry.muted(RushOrder):
        assert (await registry.emit(RushOrder())).values() == []
        assert (await registry.emit(LoudRushOrder())).values() == []
        assert (await registry.emit(Order())).values() == ["called"]


def test_muting_is_counted(registry: CallbackRegistry):
    registry.register_callback(EVENT, lambda: "called")
    with registry.muted(EVENT):
        with registry.muted(EVENT), registry.muted("order.*"):
            assert values(registry, EVENT) == []
        assert values(registry, EVENT) == []
    assert values(registry, EVENT) == ["called"]


def test_mutes_that_overlap_end_with_the_last(registry: CallbackRegistry):
    registry.register_callback(EVENT, lambda: "called")
    first, second = registry.muted(EVENT), registry.muted(Topic.CREATED)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert values(registry, EVENT) == []
    second.__exit__(None, None, None)
    assert values(registry, EVENT) == ["called"]


def test_muting_ends_with_an_exception_too(registry: CallbackRegistry):
    registry.register_callback(EVENT, lambda: "called")
    with pytest.raises(LookupError), registry.muted(EVENT):
        raise LookupError
    assert values(registry, EVENT) == ["called"]


def test_what_is_registered_while_muted_is_muted_too(registry: CallbackRegistry):
    with registry.muted("order.*"):
        registry.register_callback(EVENT, lambda: "called")
        assert values(registry, EVENT) == []
    assert values(registry, EVENT) == ["called"]


def test_a_muted_once_is_not_used_up(registry: CallbackRegistry):
    registry.register_callback(EVENT, lambda: "once", once=True)
    with registry.muted(EVENT):
        values(registry, EVENT)
    assert values(registry, EVENT) == ["once"]


def test_a_muted_event_with_async_callbacks_may_be_triggered_synchronously(
    registry: CallbackRegistry,
):
    registry.register_callback(EVENT, Recorder().asynchronous("async"))
    with registry.muted(EVENT):
        assert values(registry, EVENT) == []


async def test_a_dispatch_under_way_is_not_muted(registry: CallbackRegistry):
    """It was triggered before."""
    muting = registry.muted(EVENT)
    registry.register_callback(EVENT, lambda: muting.__enter__())
    registry.register_callback(EVENT, lambda: "last")
    assert (await registry.trigger_callbacks(EVENT)).values() == [None, "last"]
    muting.__exit__(None, None, None)


# Failures.


@pytest.mark.parametrize("mode", ["sequential", "concurrent"])
async def test_a_callback_that_raises_does_not_stop_the_next_one(mode: Any, notes: Recorder):
    registry = CallbackRegistry(mode=mode)
    registry.register_callback(EVENT, fail)
    registry.register_callback(EVENT, notes.asynchronous("async"))
    registry.register_callback(EVENT, fail)
    registry.register_callback(EVENT, notes.sync("sync"))
    result = await registry.trigger_callbacks(EVENT)
    assert sorted(notes.called) == ["async", "sync"]
    assert [outcome.status for outcome in result] == ["error", "ok", "error", "ok"]


@pytest.mark.parametrize("way", ["sync", "sequential", "concurrent", "timed", "timeout", "thread"])
async def test_a_failure_is_logged_once_with_its_traceback(
    way: str, logged: Callable[[], list[logging.LogRecord]]
):
    options: dict[str, dict[str, Any]] = {
        "concurrent": {"mode": "concurrent"},
        "timed": {"timing": True},
        "timeout": {"timeout": 60},
    }
    registry = CallbackRegistry(**options.get(way, {}))
    registry.add_error_callback(print_nothing)
    registry.register_callback(EVENT, fail, thread=way == "thread")
    registry.register_callback(EVENT, len)
    if way == "sync":
        registry.trigger_callbacks_sync(EVENT, "data")
    else:
        await registry.trigger_callbacks(EVENT, "data")
    (record,) = logged()
    assert record.levelno == logging.ERROR
    assert record.name.startswith("callbackkit")
    assert record.exc_info is not None
    assert record.exc_info[0] is ValueError
    message = record.getMessage()
    assert "fail" in message
    assert EVENT in message
    assert record.__dict__["callback_name"].endswith("fail")
    assert record.__dict__["event_type"] == EVENT


def print_nothing(_error: Exception) -> None: ...


def test_a_failure_of_an_event_with_a_long_name_is_a_short_line(
    registry: CallbackRegistry, logged: Callable[[], list[logging.LogRecord]]
):
    event = "x" * 100_000
    registry.register_callback(event, fail)
    registry.trigger_callbacks_sync(event)
    assert len(logged()[0].getMessage()) < 500


async def test_the_error_callback_of_one_gets_its_failures_only(registry: CallbackRegistry):
    seen: list[tuple[Exception, ErrorContext]] = []
    registration = registry.register_callback(
        EVENT, fail, on_error=lambda exc, context: seen.append((exc, context))
    )
    registry.register_callback(EVENT, lambda: 1 // 0)
    result = await registry.trigger_callbacks(EVENT, "data")
    ((exception, context),) = seen
    assert exception is result[0].error
    assert context.registration is registration
    assert (context.event_type, context.data, context.callback) == (EVENT, "data", fail)


async def test_error_callbacks_get_every_failure_in_order(registry: CallbackRegistry):
    seen: list[tuple[str, str]] = []

    async def general(exception: Exception, context: ErrorContext) -> None:
        await anyio.lowlevel.checkpoint()
        seen.append(("async", type(exception).__name__))
        assert context.event_type == EVENT

    registry.add_error_callback(lambda exc: seen.append(("sync", type(exc).__name__)))
    registry.add_error_callback(general)
    registry.register_callback(EVENT, fail, on_error=lambda: seen.append(("own", "")))
    registry.register_callback(EVENT, lambda: 1 // 0)
    await registry.trigger_callbacks(EVENT)
    assert seen == [
        ("own", ""),
        ("sync", "ValueError"),
        ("async", "ValueError"),
        ("sync", "ZeroDivisionError"),
        ("async", "ZeroDivisionError"),
    ]


async def test_a_failing_error_callback_is_logged_and_told_to_nobody(
    registry: CallbackRegistry, logged: Callable[[], list[logging.LogRecord]]
):
    seen: list[Exception] = []

    def broken(exception: Exception) -> None:
        seen.append(exception)
        raise LookupError("the error callback fails too")

    async def broken_async(exception: Exception) -> None:
        broken(exception)

    registry.add_error_callback(broken)
    registry.add_error_callback(broken_async)
    registry.register_callback(EVENT, fail, on_error=broken)
    registry.register_callback(EVENT, len)
    result = await registry.trigger_callbacks(EVENT, "data")
    assert [type(exception) for exception in seen] == [ValueError] * 3
    assert result.values() == [4]
    assert len(logged()) == 4
    assert [record.exc_info[0] for record in logged() if record.exc_info].count(LookupError) == 3


async def test_an_error_callback_may_trigger_events(registry: CallbackRegistry, notes: Recorder):
    async def report(exception: Exception) -> None:
        await registry.trigger_callbacks("failure", exception)

    registry.add_error_callback(report)
    registry.register_callback(EVENT, fail)
    registry.register_callback("failure", notes.asynchronous("reported"))
    registry.register_callback(EVENT, notes.sync("next"))
    await registry.trigger_callbacks(EVENT)
    assert notes.called == ["reported", "next"]


def test_an_async_error_callback_cannot_run_in_a_sync_trigger(
    registry: CallbackRegistry, logged: Callable[[], list[logging.LogRecord]]
):
    """That is logged, and its coroutine closed."""

    async def report(_exception: Exception) -> None: ...

    registry.add_error_callback(report)
    registry.register_callback(EVENT, fail)
    registry.register_callback(EVENT, len)
    result = registry.trigger_callbacks_sync(EVENT, "data")
    assert [outcome.status for outcome in result] == ["error", "ok"]
    assert [record.exc_info[0] for record in logged() if record.exc_info] == [
        ValueError,
        AsyncCallbackError,
    ]


def test_an_error_callback_can_be_removed(registry: CallbackRegistry):
    seen: list[Exception] = []
    registry.add_error_callback(seen.append)
    registry.add_error_callback(seen.append)
    registry.register_callback(EVENT, fail)
    registry.trigger_callbacks_sync(EVENT)
    assert len(seen) == 2
    assert registry.remove_error_callback(seen.append) is True
    registry.trigger_callbacks_sync(EVENT)
    assert len(seen) == 3
    assert registry.remove_error_callback(seen.append) is True
    assert registry.remove_error_callback(seen.append) is False
    registry.trigger_callbacks_sync(EVENT)
    assert len(seen) == 3


def test_adding_an_error_callback_is_a_decorator(registry: CallbackRegistry):
    @registry.add_error_callback
    def note(_exception: Exception) -> None: ...

    assert callable(note)
    assert registry.remove_error_callback(note) is True


@pytest.mark.parametrize("trigger", [EVENT, Topic.CREATED, EventKey[Order](EVENT)], ids=repr)
async def test_a_failure_is_told_under_the_plain_name_of_its_event(
    registry: CallbackRegistry, trigger: Any, logged: Callable[[], list[logging.LogRecord]]
):
    """Whatever it was triggered by, and however often."""
    seen: list[Any] = []
    registry.add_error_callback(lambda _exc, context: seen.append(context.event_type))
    registry.register_callback("order.*", fail)
    for _ in range(3):
        await registry.trigger_callbacks(trigger)
        registry.trigger_callbacks_sync(trigger)
    assert seen == [EVENT] * 6
    assert {type(event) for event in seen} == {str}
    assert {record.__dict__["event_type"] for record in logged()} == {EVENT}


def test_error_callbacks_may_change_while_they_are_called(registry: CallbackRegistry):
    seen: list[str] = []

    def leave() -> None:
        seen.append("leave")
        registry.remove_error_callback(leave)
        registry.add_error_callback(lambda: seen.append("new"))

    registry.add_error_callback(leave)
    registry.add_error_callback(lambda: seen.append("stay"))
    registry.register_callback(EVENT, fail)
    registry.trigger_callbacks_sync(EVENT)
    assert seen == ["leave", "stay"]
    registry.trigger_callbacks_sync(EVENT)
    assert seen == ["leave", "stay", "stay", "new"]


@pytest.mark.parametrize("status", ["timeout", "cancelled"])
async def test_error_callbacks_get_timeouts_and_foreign_cancellations(status: str):
    seen: list[Exception] = []
    own: list[Exception] = []

    async def callback() -> None:
        if status == "cancelled":
            raise asyncio.CancelledError
        await anyio.sleep_forever()

    registry = CallbackRegistry()
    registry.add_error_callback(seen.append)
    registry.register_callback(EVENT, callback, timeout=0.01, on_error=own.append)
    (outcome,) = await registry.trigger_callbacks(EVENT)
    assert outcome.status == status
    assert seen == own == [outcome.error]


# Timeouts, times and threads.


@pytest.mark.parametrize("mode", ["sequential", "concurrent"])
@pytest.mark.parametrize("timing", [False, True])
async def test_a_callback_that_takes_too_long_is_given_up_on(mode: Any, timing: bool):
    ended: list[str] = []

    async def slow() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ended.append("slow")

    async def quick() -> None: ...

    registry = CallbackRegistry(mode=mode, timing=timing, timeout=0.02)
    registry.register_callback(EVENT, slow)
    registry.register_callback(EVENT, quick)
    for turn in (1, 2, 3):
        result = await registry.trigger_callbacks(EVENT)
        assert [outcome.status for outcome in result] == ["timeout", "ok"]
        error = result[0].error
        assert isinstance(error, CallbackTimeoutError)
        assert error.timeout == 0.02
        assert "slow" in str(error)
        assert "0.02" in str(error)
        assert ended == ["slow"] * turn


async def test_a_callbacks_own_timeout_goes_before_the_registrys(registry: CallbackRegistry):
    registry = CallbackRegistry(timeout=0.01)

    async def patient() -> str:
        await anyio.sleep(0.05)
        return "patient"

    registry.register_callback(EVENT, patient, timeout=60)
    registry.register_callback(EVENT, patient)
    for _ in range(2):
        result = await registry.trigger_callbacks(EVENT)
        assert [outcome.status for outcome in result] == ["ok", "timeout"]


@pytest.mark.parametrize("mode", ["sequential", "concurrent"])
async def test_a_callbacks_own_timeout_error_stays_its_own(mode: Any):
    own = TimeoutError("mine")

    async def raise_later() -> None:
        await anyio.sleep(0)
        raise own

    async def own_scope() -> None:
        with anyio.fail_after(0.01):
            await anyio.sleep_forever()

    def raise_at_once() -> None:
        raise own

    registry = CallbackRegistry(mode=mode, timeout=60)
    for callback in (raise_later, own_scope, raise_at_once):
        registry.register_callback(EVENT, callback)
    result = await registry.trigger_callbacks(EVENT)
    assert [outcome.status for outcome in result] == ["error"] * 3
    assert result[0].error is result[2].error is own
    assert type(result[1].error) is TimeoutError


async def test_a_timeout_inside_a_nested_trigger_is_the_nested_callbacks(
    registry: CallbackRegistry,
):
    async def sleep() -> None:
        await anyio.sleep_forever()

    async def nest() -> list[str]:
        nested = await registry.trigger_callbacks("inner")
        return [outcome.status for outcome in nested]

    async def nest_and_raise() -> None:
        (outcome,) = await registry.trigger_callbacks("inner")
        assert outcome.error is not None
        raise outcome.error

    registry.register_callback("inner", sleep, timeout=0.01)
    registry.register_callback(EVENT, nest, timeout=60)
    registry.register_callback(EVENT, nest_and_raise, timeout=60)
    result = await registry.trigger_callbacks(EVENT)
    assert result[0].value == ["timeout"]
    assert result[1].status == "error"


async def test_a_timeout_does_not_reach_the_next_callback(registry: CallbackRegistry):
    async def sleep() -> None:
        await anyio.sleep_forever()

    async def longer() -> str:
        await anyio.sleep(0.05)
        return "longer"

    registry.register_callback(EVENT, sleep, timeout=0.01)
    registry.register_callback(EVENT, longer)
    registry.register_callback(EVENT, longer, timeout=60)
    for _ in range(2):
        result = await registry.trigger_callbacks(EVENT)
        assert [outcome.status for outcome in result] == ["timeout", "ok", "ok"]


async def test_a_callback_that_answers_a_timeout_with_another_error_has_failed_with_it(
    registry: CallbackRegistry,
):
    """Nothing of it is lost: the error names the timeout as its context."""

    async def callback() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise LookupError("cleaning up failed")

    registry.register_callback(EVENT, callback, timeout=0.01)
    registry.register_callback(EVENT, len)
    result = await registry.trigger_callbacks(EVENT, "data")
    assert not result[0].ok
    assert result[1].value == 4


async def test_a_sync_callback_is_not_interrupted_by_a_timeout(registry: CallbackRegistry):
    registry.register_callback(EVENT, lambda: sum(range(100_000)), timeout=0.000_001)
    assert (await registry.trigger_callbacks(EVENT)).ok
    assert registry.trigger_callbacks_sync(EVENT).ok


@pytest.mark.parametrize("timeout", [float("inf"), 1e300, 10**12])
async def test_a_timeout_may_be_very_long(registry: CallbackRegistry, timeout: float):
    registry.register_callback(EVENT, Recorder().asynchronous("async"), timeout=timeout)
    registry.register_callback(EVENT, lambda: "thread", timeout=timeout, thread=True)
    assert (await registry.trigger_callbacks(EVENT)).values() == ["async", "thread"]


@pytest.mark.parametrize("timeout", [1e10, 1e300, float("inf"), 10**12])
def test_a_very_long_timeout_works_in_a_thread(registry: CallbackRegistry, timeout: float):
    registry.register_callback(EVENT, lambda: "thread", timeout=timeout, thread=True)
    assert values(registry, EVENT) == ["thread"]


async def test_durations_contain_the_awaited_time():
    registry = CallbackRegistry(timing=True)

    async def sleep() -> None:
        await anyio.sleep(0.05)

    registry.register_callback(EVENT, sleep)
    registry.register_callback(EVENT, len)
    result = await registry.trigger_callbacks(EVENT, "data")
    assert result[0].duration is not None
    assert result[1].duration is not None
    assert result[0].duration > 0.04
    assert 0 <= result[1].duration < result[0].duration


async def test_durations_of_concurrent_callbacks_are_their_own():
    registry = CallbackRegistry(mode="concurrent", timing=True)

    async def sleep() -> None:
        await anyio.sleep(0.05)

    registry.register_callback(EVENT, sleep)
    registry.register_callback(EVENT, lambda: None)
    result = await registry.trigger_callbacks(EVENT)
    assert result[0].duration is not None
    assert result[1].duration is not None
    assert result[0].duration > 0.04
    assert 0 <= result[1].duration < result[0].duration


async def test_without_timing_there_are_no_durations():
    registry = CallbackRegistry(slow_threshold=60)
    registry.register_callback(EVENT, len)
    assert (await registry.trigger_callbacks(EVENT, "data"))[0].duration is None
    assert registry.trigger_callbacks_sync(EVENT, "data")[0].duration is None


def held_up(seconds: float) -> Callable[[], None]:
    def slow() -> None:
        threading.Event().wait(seconds)

    return slow


def check_slow_warning(records: list[logging.LogRecord]) -> None:
    (record,) = records
    assert record.levelno == logging.WARNING
    assert "held_up.<locals>.slow held up its caller" in record.getMessage()
    assert record.__dict__["callback_name"].endswith("slow")
    assert record.__dict__["seconds"] > 0.1


def test_a_callback_that_holds_up_a_sync_trigger_is_warned_of(
    logged: Callable[[], list[logging.LogRecord]],
):
    registry = CallbackRegistry(slow_threshold=0.1)
    registry.register_callback(EVENT, held_up(0.12))
    registry.register_callback(EVENT, len)
    registry.trigger_callbacks_sync(EVENT, "data")
    check_slow_warning(logged())


@pytest.mark.parametrize("mode", ["sequential", "concurrent"])
async def test_a_sync_callback_that_holds_up_its_loop_is_warned_of(
    mode: Any, logged: Callable[[], list[logging.LogRecord]]
):
    """One that awaits holds up nobody."""
    registry = CallbackRegistry(slow_threshold=0.1, mode=mode)

    async def waits() -> None:
        await anyio.sleep(0.12)

    registry.register_callback(EVENT, held_up(0.12))
    registry.register_callback(EVENT, waits)
    await registry.trigger_callbacks(EVENT)
    check_slow_warning(logged())


async def test_a_slow_callback_that_fails_is_warned_of_too(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.WARNING, "callbackkit")
    registry = CallbackRegistry(slow_threshold=0.02)
    blocker = threading.Event()

    def slow() -> None:
        blocker.wait(0.05)
        raise ValueError("and broken")

    registry.register_callback(EVENT, slow)
    await registry.trigger_callbacks(EVENT)
    registry.trigger_callbacks_sync(EVENT)
    levels = [record.levelno for record in caplog.records]
    assert levels.count(logging.WARNING) == 2
    assert levels.count(logging.ERROR) == 2


@pytest.mark.parametrize("way", ["sync", "awaited"])
async def test_a_thread_runs_the_callback_with_the_context_of_the_caller(
    registry: CallbackRegistry, way: str
):
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")
    variable.set("caller")
    seen: list[tuple[str, bool]] = []

    def callback() -> str:
        seen.append((variable.get(), threading.current_thread() is threading.main_thread()))
        variable.set("thread")
        return "value"

    registry.register_callback(EVENT, callback, thread=True)
    if way == "sync":
        assert values(registry, EVENT) == ["value"]
    else:
        assert (await registry.trigger_callbacks(EVENT)).values() == ["value"]
    assert seen == [("caller", False)]
    assert variable.get() == "caller"


async def test_sequential_callbacks_share_the_context_of_the_caller(registry: CallbackRegistry):
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")

    async def write() -> None:
        variable.set("written")

    registry.register_callback(EVENT, write)
    registry.register_callback(EVENT, variable.get)
    assert (await registry.trigger_callbacks(EVENT)).values() == [None, "written"]
    assert variable.get() == "written"


async def test_concurrent_callbacks_have_copies_of_the_context_of_the_caller():
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")
    variable.set("caller")
    registry = CallbackRegistry(mode="concurrent")

    async def write() -> str:
        before = variable.get()
        await anyio.lowlevel.checkpoint()
        variable.set("written")
        await anyio.lowlevel.checkpoint()
        return before

    registry.register_callback(EVENT, write)
    registry.register_callback(EVENT, write)
    assert (await registry.trigger_callbacks(EVENT)).values() == ["caller", "caller"]
    assert variable.get() == "caller"


async def test_many_triggers_at_once_do_not_stand_inside_each_other():
    """More than the depth limit, each with one nested inside."""
    registry = CallbackRegistry(depth_limit=5)
    everybody = anyio.Event()
    waiting: list[int] = []

    async def wait() -> Any:
        waiting.append(1)
        if len(waiting) == 30:
            everybody.set()
        await everybody.wait()
        sync = registry.trigger_callbacks_sync("inner")
        return [*sync.values(), *(await registry.trigger_callbacks("inner")).values()]

    registry.register_callback("inner", lambda: "inner")
    registry.register_callback(EVENT, wait)
    results: list[Any] = []

    async def trigger() -> None:
        results.extend((await registry.trigger_callbacks(EVENT)).values())

    async with anyio.create_task_group() as group:
        for _ in range(30):
            group.start_soon(trigger)
    assert results == [["inner", "inner"]] * 30


# Cancellation of ours.


@pytest.mark.parametrize("mode", ["sequential", "concurrent"])
@pytest.mark.parametrize("options", [{}, {"timeout": 60}, {"timing": True}], ids=str)
async def test_cancelling_a_trigger_cancels_who_runs_and_calls_nobody_else(
    mode: Any, options: dict[str, Any]
):
    registry = CallbackRegistry(mode=mode, **options)
    log: list[str] = []
    running = anyio.Event()

    async def waits() -> None:
        running.set()
        try:
            await anyio.sleep_forever()
        except BaseException as exc:
            log.append("cancelled" if isinstance(exc, anyio.get_cancelled_exc_class()) else "?")
            raise

    async def trigger() -> None:
        try:
            await registry.trigger_callbacks(EVENT)
        finally:
            log.append("trigger ended")

    registry.add_error_callback(lambda: log.append("error callback"))
    registry.register_callback(EVENT, waits)
    registry.register_callback(EVENT, lambda: log.append("next"))
    async with anyio.create_task_group() as group:
        group.start_soon(trigger)
        await running.wait()
        group.cancel_scope.cancel()
    expected = ["cancelled", "trigger ended"]
    assert log == (["next", *expected] if mode == "concurrent" else expected)


@pytest.mark.parametrize("mode", ["sequential", "concurrent"])
async def test_shielded_cleaning_up_is_waited_for(mode: Any):
    """Running callbacks are cancelled once, not over and over."""
    registry = CallbackRegistry(mode=mode)
    cleaned: list[str] = []
    running = anyio.Event()

    async def waits() -> None:
        try:
            running.set()
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.02)
                cleaned.append("cleaned")

    registry.register_callback(EVENT, waits)
    registry.register_callback(EVENT, Recorder().asynchronous("other"))
    async with anyio.create_task_group() as group:
        group.start_soon(registry.trigger_callbacks, EVENT)
        await running.wait()
        group.cancel_scope.cancel()
    assert cleaned == ["cleaned"]


@pytest.mark.parametrize("mode", ["sequential", "concurrent"])
async def test_a_deadline_of_the_caller_ends_the_trigger(mode: Any):
    registry = CallbackRegistry(mode=mode)

    async def waits() -> None:
        await anyio.sleep_forever()

    registry.register_callback(EVENT, waits)
    registry.register_callback(EVENT, waits)
    with pytest.raises(TimeoutError), anyio.fail_after(0.02):
        await registry.trigger_callbacks(EVENT)


async def test_a_trigger_in_a_cancelled_scope_is_cancelled_at_the_first_wait(
    registry: CallbackRegistry, notes: Recorder
):
    registry.register_callback(EVENT, notes.asynchronous("waits"))
    with anyio.CancelScope() as scope:
        scope.cancel()
        await registry.trigger_callbacks(EVENT)
    assert scope.cancelled_caught
    assert notes.called == []


@pytest.mark.parametrize("mode", ["sequential", "concurrent"])
async def test_a_cancelled_scope_of_a_callback_is_its_own(mode: Any):
    registry = CallbackRegistry(mode=mode)

    async def gives_up() -> str:
        with anyio.move_on_after(0.01):
            await anyio.sleep_forever()
        return "gave up"

    registry.register_callback(EVENT, gives_up, timeout=60)
    registry.register_callback(EVENT, gives_up)
    assert (await registry.trigger_callbacks(EVENT)).values() == ["gave up", "gave up"]


async def test_cancelling_ends_an_error_callback_too(registry: CallbackRegistry, notes: Recorder):
    async def waits() -> None:
        await anyio.sleep_forever()

    registry.add_error_callback(waits)
    registry.register_callback(EVENT, fail)
    registry.register_callback(EVENT, notes.sync("next"))
    with anyio.move_on_after(0.02) as scope:
        await registry.trigger_callbacks(EVENT)
    assert scope.cancelled_caught
    assert notes.called == []


async def test_a_cancelled_trigger_abandons_its_threads(registry: CallbackRegistry):
    release = threading.Event()
    registry.register_callback(EVENT, lambda: release.wait(30), thread=True)
    with anyio.move_on_after(0.02) as scope:
        await registry.trigger_callbacks(EVENT)
    assert scope.cancelled_caught
    assert registry.abandoned_threads == 1
    release.set()


# Synchronous triggers.


def test_a_sync_trigger_refuses_async_callbacks_before_anybody_is_called(
    registry: CallbackRegistry, notes: Recorder
):
    registry.register_callback(EVENT, notes.sync("first"))
    registry.register_callback(EVENT, notes.asynchronous("async"), when=lambda: False)
    with pytest.raises(AsyncCallbackError, match="asynchronous") as info:
        registry.trigger_callbacks_sync(EVENT)
    assert isinstance(info.value, TypeError)
    assert "asynchronous.<locals>.callback" in str(info.value)
    assert notes.called == []


def test_a_paused_async_callback_is_not_in_the_way_of_a_sync_trigger(
    registry: CallbackRegistry, notes: Recorder
):
    registry.register_callback(EVENT, notes.asynchronous("async")).pause()
    registry.register_callback(EVENT, notes.sync("sync"))
    assert values(registry, EVENT) == ["sync"]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="inspect.markcoroutinefunction is new there")
def test_a_function_marked_as_async_is_known_to_be(registry: CallbackRegistry):
    mark: Any = getattr(inspect, "markcoroutinefunction", None)
    registry.register_callback(EVENT, mark(lambda: asyncio.sleep(0)))
    with pytest.raises(AsyncCallbackError):
        registry.trigger_callbacks_sync(EVENT)


async def test_an_awaited_trigger_may_be_inside_a_sync_one_and_the_other_way_round(
    registry: CallbackRegistry,
):
    async def outer() -> list[Any]:
        return registry.trigger_callbacks_sync("inner").values()

    registry.register_callback(EVENT, outer)
    registry.register_callback("inner", lambda: "inner")
    assert (await registry.trigger_callbacks(EVENT)).values() == [["inner"]]


# Following: taps, streams, waiting, other threads.


async def test_a_tap_sees_events_before_the_callbacks_and_is_none(registry: CallbackRegistry):
    seen: list[Any] = []
    untap = registry.tap(lambda event, data: seen.append((event, data)))
    registry.register_callback(EVENT, lambda: seen.append("callback"))
    result = await registry.trigger_callbacks(EVENT, 1)
    registry.trigger_callbacks_sync(Topic.SHIPPED, 2)
    assert seen == [(EVENT, 1), "callback", ("order.shipped", 2)]
    assert len(result) == 1
    assert len(registry.listeners()) == 1
    untap()
    untap()
    await registry.trigger_callbacks(EVENT, 3)
    assert seen[3:] == ["callback"]


async def test_a_tap_sees_an_event_that_was_triggered_before(registry: CallbackRegistry):
    seen: list[Any] = []
    registry.register_callback(EVENT, len)
    registry.register_callback(EVENT, Recorder().asynchronous("async"))
    for _ in range(3):
        await registry.trigger_callbacks(EVENT, "data")
    untap = registry.tap(lambda event, _data: seen.append(event))
    async with registry.stream(EVENT) as stream:
        for _ in range(3):
            await registry.trigger_callbacks(EVENT, "data")
            assert await anext(stream) == (EVENT, "data")
    untap()
    await registry.trigger_callbacks(EVENT, "data")
    assert seen == [EVENT] * 3


def test_a_tap_may_be_for_some_events_only(registry: CallbackRegistry):
    seen: list[Any] = []
    registry.tap(lambda event, _data: seen.append(event), "order.*")
    registry.tap(lambda event, _data: seen.append(event), Order)
    values(registry, EVENT)
    values(registry, "other")
    values(registry, RushOrder)
    assert seen == [EVENT, RushOrder]


def test_a_tap_that_fails_is_logged_and_harms_nobody(
    registry: CallbackRegistry, logged: Callable[[], list[logging.LogRecord]]
):
    seen: list[Any] = []
    registry.tap(lambda _event, _data: fail())
    registry.tap(lambda event, _data: seen.append(event))
    registry.register_callback(EVENT, lambda: "called")
    assert values(registry, EVENT) == ["called"]
    assert seen == [EVENT]
    assert len(logged()) == 1
    assert logged()[0].exc_info is not None


def test_a_tap_sees_nothing_of_muted_events(registry: CallbackRegistry):
    seen: list[Any] = []
    registry.tap(lambda event, _data: seen.append(event))
    with registry.muted(EVENT):
        values(registry, EVENT)
    assert seen == []


def test_a_tap_sees_nothing_of_a_refused_trigger(registry: CallbackRegistry):
    seen: list[Any] = []
    registry.tap(lambda event, _data: seen.append(event))
    registry.register_callback(EVENT, Recorder().asynchronous("async"))
    with pytest.raises(AsyncCallbackError):
        values(registry, EVENT)
    assert seen == []


def test_a_tap_must_be_synchronous_and_callable(registry: CallbackRegistry):
    async def tap(_event: object, _data: object) -> None: ...

    with pytest.raises(AsyncCallbackError):
        registry.tap(tap)
    with pytest.raises(TypeError, match="must be callable"):
        registry.tap("tap")
    with pytest.raises(ValueError, match=r"'\*' inside a segment"):
        registry.tap(print, "a*")


async def test_a_stream_gives_events_from_its_making_on(registry: CallbackRegistry):
    await registry.trigger_callbacks(EVENT, 0)
    async with registry.stream("order.*") as stream:
        await registry.trigger_callbacks(EVENT, 1)
        registry.trigger_callbacks_sync("order.shipped", 2)
        registry.trigger_callbacks_sync("other", 3)
        assert await anext(stream) == (EVENT, 1)
        assert await anext(stream) == ("order.shipped", 2)
        assert stream.dropped == 0


async def test_a_stream_is_bounded_by_max_items(registry: CallbackRegistry):
    strict = registry.stream(EVENT, max_items=2, overflow="error")
    lossy = registry.stream(EVENT, max_items=2)
    for number in range(5):
        registry.trigger_callbacks_sync(EVENT, number)
    assert [(await anext(lossy))[1], (await anext(lossy))[1], lossy.dropped] == [3, 4, 3]
    with pytest.raises(StreamLagError):
        await anext(strict)
    assert await anext(strict) == (EVENT, 3)
    await strict.aclose()
    await lossy.aclose()


async def test_wait_for_gives_the_first_event_that_is_wanted(registry: CallbackRegistry):
    waiting = registry.wait_for(EVENT, when=lambda data: data > 1, timeout=10)
    for number in range(4):
        registry.trigger_callbacks_sync(EVENT, number)
    assert await waiting == (EVENT, 2)


async def test_wait_for_gives_up_after_its_timeout(registry: CallbackRegistry):
    with pytest.raises(TimeoutError):
        await registry.wait_for(EVENT, timeout=0.01)


async def test_a_thread_triggers_in_the_loop_that_serves(registry: CallbackRegistry):
    threads: list[int] = []

    async def callback(data: int) -> int:
        threads.append(threading.get_ident())
        return data + 1

    def trigger() -> list[Any]:
        return registry.trigger_threadsafe(EVENT, 1).result(10).values()

    registry.register_callback(EVENT, callback)
    async with registry.serving():
        assert await anyio.to_thread.run_sync(trigger) == [2]
    assert threads == [threading.get_ident()]


def test_a_thread_cannot_trigger_where_no_loop_serves(registry: CallbackRegistry):
    with pytest.raises(RuntimeError, match="no event loop serves"):
        registry.trigger_threadsafe(EVENT)


async def test_a_thread_is_told_at_once_of_a_bad_event_type(registry: CallbackRegistry):
    async with registry.serving():
        with pytest.raises(ValueError, match="is a pattern"):
            registry.trigger_threadsafe("order.*")


# Tracing and monitoring.


async def test_a_traced_registry_logs_every_call(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG, "callbackkit.trace")
    registry = CallbackRegistry(trace=True)
    registry.register_callback(EVENT, len)
    registry.register_callback(EVENT, Recorder().asynchronous("async"))
    await registry.trigger_callbacks(EVENT, "data")
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 4
    assert lines[0] == "builtins.len called"
    assert lines[1].startswith("builtins.len returned after ")
    assert "asynchronous.<locals>.callback called" in lines[2]


async def test_a_monitored_registry_measures_every_call():
    registry = CallbackRegistry(monitor=True)
    good = registry.register_callback(EVENT, len)
    bad = registry.register_callback(EVENT, fail)
    for _ in range(3):
        await registry.trigger_callbacks(EVENT, "data")
    assert good.stats is not None
    assert bad.stats is not None
    assert (good.stats.count, good.stats.errors) == (3, 0)
    assert (bad.stats.count, bad.stats.errors) == (3, 3)


# Bad input is told at once, and nothing is half done.


class Unhashable:
    __hash__ = None


BAD_REGISTRATIONS: dict[str, tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]] = {
    "callback None": ((EVENT, None), {}, TypeError, "callback must be callable, not NoneType"),
    "callback text": ((EVENT, "cb"), {}, TypeError, "callback must be callable, not str"),
    "event None": ((None, len), {}, TypeError, "an event type is a string.* not NoneType"),
    "event number": ((5, len), {}, TypeError, "an event type is a string.* not int"),
    "event bytes": ((b"order", len), {}, TypeError, "an event type is a string.* not bytes"),
    "event list": (([EVENT], len), {}, TypeError, "an event type is a string.* not list"),
    "event unhashable": ((Unhashable(), len), {}, TypeError, "an event type is a string"),
    "event object": ((Order(), len), {}, TypeError, "an event type is a string.* not Order"),
    "event empty": (("", len), {}, ValueError, "must not be empty"),
    "star in a segment": (("order.cre*", len), {}, ValueError, r"'order.cre\*'.*whole one"),
    "stars in a segment": (("order***", len), {}, ValueError, "inside a segment"),
    "stars not last": (("**.created", len), {}, ValueError, r"'\*\*' before its end"),
    "empty segment": (("order..*", len), {}, ValueError, "empty segment"),
    "trailing dot": (("*.", len), {}, ValueError, "empty segment"),
    "unknown option": ((EVENT, len), {"prio": 1}, TypeError, "prio"),
    "positional option": ((EVENT, len, 5), {}, TypeError, "positional"),
    "priority text": ((EVENT, len), {"priority": "high"}, TypeError, "priority must be a number"),
    "priority bool": ((EVENT, len), {"priority": True}, TypeError, "priority must be a number"),
    "priority None": ((EVENT, len), {"priority": None}, TypeError, "priority must be a number"),
    "priority NaN": ((EVENT, len), {"priority": float("nan")}, ValueError, "not be NaN"),
    "when text": ((EVENT, len), {"when": "yes"}, TypeError, "when must be callable"),
    "on_error text": ((EVENT, len), {"on_error": "log"}, TypeError, "on_error must be callable"),
    "timeout zero": ((EVENT, len), {"timeout": 0}, ValueError, "timeout must be positive, not 0"),
    "timeout negative": ((EVENT, len), {"timeout": -1}, ValueError, "must be positive, not -1"),
    "timeout NaN": ((EVENT, len), {"timeout": float("nan")}, ValueError, "must be positive"),
    "timeout text": ((EVENT, len), {"timeout": "5"}, TypeError, "must be a number of seconds"),
    "timeout bool": ((EVENT, len), {"timeout": True}, TypeError, "must be a number of seconds"),
}


@pytest.mark.parametrize("name", BAD_REGISTRATIONS)
def test_a_bad_registration_is_refused_and_leaves_nothing(registry: CallbackRegistry, name: str):
    arguments, options, error, message = BAD_REGISTRATIONS[name]
    before = registry.register_callback("before", len)
    with pytest.raises(error, match=message):
        registry.register_callback(*arguments, **options)
    assert registry.listeners() == [before]
    assert registry.event_types() == ["before"]


def test_a_coroutine_is_no_callback(registry: CallbackRegistry):
    """The usual slip: the function was called instead of passed."""

    async def callback() -> None: ...

    with pytest.raises(TypeError, match="pass the function itself"):
        registry.register_callback(EVENT, callback())


def test_an_async_callback_in_a_thread_is_refused(registry: CallbackRegistry):
    with pytest.raises(ValueError, match="thread=True is for synchronous callbacks"):
        registry.register_callback(EVENT, Recorder().asynchronous("async"), thread=True)
    assert registry.event_types() == []


def test_an_async_when_is_refused(registry: CallbackRegistry):
    async def when(_data: object) -> bool:
        return True

    with pytest.raises(TypeError, match="when must be synchronous"):
        registry.register_callback(EVENT, len, when=when)
    assert registry.event_types() == []


@pytest.mark.parametrize(
    ("event_type", "error"),
    [("", ValueError), ("order.*", ValueError), ("**", ValueError), (None, TypeError),
     (5, TypeError), ([], TypeError), ({}, TypeError), (Unhashable(), TypeError)],
    ids=["empty", "pattern", "stars", "None", "number", "list", "dict", "unhashable"],
)  # fmt: skip
async def test_a_bad_event_type_cannot_be_triggered(
    registry: CallbackRegistry, event_type: Any, error: type[Exception]
):
    called: list[int] = []
    registry.register_callback("**", lambda: called.append(1))
    for trigger in (registry.trigger_callbacks_sync, registry.trigger_threadsafe):
        with pytest.raises(error):
            trigger(event_type)
    with pytest.raises(error):
        await registry.trigger_callbacks(event_type)
    assert called == []


@pytest.mark.parametrize(
    "look",
    ["listeners", "has_listeners", "stream", "wait_for"],
)
def test_a_bad_event_type_cannot_be_looked_for(registry: CallbackRegistry, look: str):
    with pytest.raises(ValueError, match="inside a segment"):
        getattr(registry, look)("order.cre*")
    with pytest.raises(TypeError, match="an event type is"):
        getattr(registry, look)(5)


def test_a_bad_event_type_cannot_be_muted_or_unregistered(registry: CallbackRegistry):
    with pytest.raises(TypeError, match="an event type is"), registry.muted(5):
        pass
    with pytest.raises(TypeError, match="an event type is"):
        registry.unregister_callback([EVENT], len)
    with pytest.raises(ValueError, match="inside a segment"):
        registry.unregister_callback("order.cre*", len)


BAD_OPTIONS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "mode": ({"mode": "parallel"}, ValueError, "mode must be .* not 'parallel'"),
    "timeout zero": ({"timeout": 0}, ValueError, "timeout must be positive"),
    "timeout text": ({"timeout": "5"}, TypeError, "timeout must be a number"),
    "slow_threshold": ({"slow_threshold": -1}, ValueError, "slow_threshold must be positive"),
    "slow_threshold text": ({"slow_threshold": "1"}, TypeError, "slow_threshold must be a number"),
    "depth_limit zero": ({"depth_limit": 0}, ValueError, "depth_limit must be"),
    "depth_limit float": ({"depth_limit": 1.5}, ValueError, "depth_limit must be an int"),
    "depth_limit bool": ({"depth_limit": True}, ValueError, "depth_limit must be an int"),
    "unknown": ({"deep": 1}, TypeError, "deep"),
}


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_a_bad_option_of_a_registry_is_refused(name: str):
    options, error, message = BAD_OPTIONS[name]
    with pytest.raises(error, match=message):
        CallbackRegistry(**options)


@pytest.mark.parametrize("max_items", [0, -1])
def test_a_stream_needs_room(registry: CallbackRegistry, max_items: int):
    with pytest.raises(ValueError, match="max_items must be at least 1"):
        registry.stream(EVENT, max_items=max_items)
    with pytest.raises(ValueError, match="overflow must be"):
        registry.stream(EVENT, overflow="block")


def test_an_error_callback_must_be_callable(registry: CallbackRegistry):
    with pytest.raises(TypeError, match="error callback must be callable"):
        registry.add_error_callback("log")
    with pytest.raises(TypeError):
        registry.on(EVENT)("not callable")
    assert registry.event_types() == []


# Memory.


@pytest.mark.parametrize("way", ["sync", "awaited", "concurrent", "timed", "failing"])
async def test_nothing_of_data_and_results_is_kept(way: str, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.CRITICAL, "callbackkit")
    registry = CallbackRegistry(
        mode="concurrent" if way == "concurrent" else "sequential", timing=way == "timed"
    )
    registry.register_callback(EVENT, lambda _data: Order())
    registry.register_callback("order.*", lambda _data: Order(), with_event=True, when=lambda: True)
    if way == "failing":
        registry.register_callback(EVENT, fail)
        registry.add_error_callback(print_nothing)
    if way != "sync":
        registry.register_callback(EVENT, Recorder().asynchronous("async"))
    for _ in range(3):
        data = Order()
        if way == "sync":
            result = registry.trigger_callbacks_sync(EVENT, data)
        else:
            result = await registry.trigger_callbacks(EVENT, data)
        references = [weakref.ref(data), *(weakref.ref(value) for value in result.values()[:2])]
        del data, result
        assert [is_released(reference) for reference in references] == [True] * 3


@pytest.mark.parametrize("way", ["sync", "awaited", "failing", "all async"])
async def test_a_dispatch_leaves_no_garbage_that_only_a_collection_frees(
    way: str, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.CRITICAL, "callbackkit")
    registry = CallbackRegistry()
    if way != "all async":
        registry.register_callback(EVENT, print_nothing)
    if way == "failing":
        registry.register_callback(EVENT, fail)
    if way != "sync":
        registry.register_callback(EVENT, Recorder().asynchronous("async"))
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            data = Order()
            if way == "sync":
                result = registry.trigger_callbacks_sync(EVENT, data)
            else:
                result = await registry.trigger_callbacks(EVENT, data)
            released = weakref.ref(data)
            del data, result
            assert released() is None
    finally:
        gc.enable()


async def test_a_removed_callback_is_released(registry: CallbackRegistry):
    class Callback:
        async def __call__(self, _data: object) -> None: ...

    removals: list[Callable[[Any], object]] = [
        lambda callback: registry.unregister_callback(EVENT, callback),
        lambda _callback: registry.listeners(EVENT)[0].cancel(),
        lambda _callback: registry.clear(),
    ]
    for remove in removals:
        for options in ({}, {"timeout": 60}, {"once": True, "when": lambda: False}):
            callback = Callback()
            registry.register_callback(EVENT, callback, **options)
            await registry.trigger_callbacks(EVENT)
            released = weakref.ref(callback)
            remove(callback)
            del callback
            assert is_released(released)


async def test_a_used_up_once_is_released(registry: CallbackRegistry):
    class Callback:
        def __call__(self, _data: object) -> None: ...

    callback = Callback()
    released = weakref.ref(callback)
    registry.register_callback(EVENT, callback, once=True)
    del callback
    await registry.trigger_callbacks(EVENT)
    assert is_released(released)


async def test_a_removed_error_callback_is_released(registry: CallbackRegistry):
    owner = Owner()
    registry.add_error_callback(owner.take)
    registry.register_callback(EVENT, fail, on_error=print_nothing)
    await registry.trigger_callbacks(EVENT)
    owner.seen.clear()
    released = weakref.ref(owner)
    registry.remove_error_callback(owner.take)
    del owner
    assert is_released(released)


def test_a_registry_is_released_with_its_callbacks():
    registry = CallbackRegistry()
    owner = Owner()
    registration = registry.register_callback(EVENT, owner.take)
    registry.trigger_callbacks_sync(EVENT)
    released = [weakref.ref(registry), weakref.ref(owner)]
    del registry, registration, owner
    assert [is_released(reference) for reference in released] == [True, True]


@pytest.mark.parametrize("register", ["on", "once"])
def test_a_decorator_refuses_at_once_what_it_could_never_register(
    registry: CallbackRegistry, register: str
):
    with pytest.raises(TypeError, match="callback must be callable, not NoneType"):
        getattr(registry, register)(EVENT, None)
    with pytest.raises(ValueError, match=r"'a\*b'"):
        getattr(registry, register)("a*b")
    assert registry.event_types() == []
