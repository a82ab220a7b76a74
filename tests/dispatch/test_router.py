"""Handlers are found by what a payload says of itself, and no payload breaks anything."""

import asyncio
import gc
import threading
from collections import UserDict
from enum import StrEnum

import attrs
import pytest
from hypothesis import given, strategies as st

from callbackkit import CallbackRegistry, EventKey, EventRouter
from callbackkit.dispatch.listeners import Plan


@pytest.fixture
def router() -> EventRouter:
    return EventRouter()


class Kind(StrEnum):
    START = "start"


@attrs.define
class Message:
    type: object


@attrs.define
class Started:
    call: str


class StartedTwice(Started):
    pass


# Where the event type stands.


@pytest.mark.parametrize(
    "payload",
    [
        {"type": "start"},
        {"type": Kind.START},
        {"type": EventKey[int]("start")},
        UserDict(type="start"),
        Message("start"),
    ],
    ids=["dict", "enum", "key", "mapping", "attribute"],
)
async def test_the_key_is_looked_up_in_a_mapping_or_on_an_object(router, payload) -> None:
    router.register_handler("start", lambda given: given)
    assert (await router.handle_event(payload)).values() == [payload]


async def test_a_mapping_is_not_asked_for_attributes() -> None:
    router = EventRouter("keys")
    assert router._event_type({"other": 1}) is None
    assert router._event_type({"keys": "a"}) == "a"


async def test_a_function_may_tell_the_event_type() -> None:
    router = EventRouter(lambda payload: payload["header"]["kind"])
    router.register_handler("media", lambda: "played")
    payload = {"header": {"kind": "media"}}
    assert (await router.handle_event(payload)).values() == ["played"]


async def test_objects_can_be_routed_by_class_and_base() -> None:
    router = EventRouter(type)
    router.register_handler(Started, lambda started: started.call)
    assert (await router.handle_event(StartedTwice("a"))).values() == ["a"]
    assert not await router.handle_event("a string")


@pytest.mark.parametrize("key", [3, None, ["type"]])
def test_a_key_that_is_neither_string_nor_function_is_refused(key) -> None:
    with pytest.raises(TypeError, match="key must be a string or a function"):
        EventRouter(key)


def test_an_async_key_is_refused() -> None:
    async def kind(payload):
        return payload["kind"]

    with pytest.raises(TypeError, match="kind is async"):
        EventRouter(kind)


# Handlers are callbacks of a registry.


async def test_handlers_run_in_order_of_priority_then_registration(router) -> None:
    ran = []
    router.register_handler("call.*", lambda: ran.append("pattern"))
    router.register_handler("call.start", lambda: ran.append("exact"))
    router.register_handler("**", lambda: ran.append("high"), priority=1)

    async def last() -> None:
        ran.append("async")

    router.register_handler("call.start", last)
    result = await router.handle_event({"type": "call.start"})
    assert result.ok
    assert ran == ["high", "pattern", "exact", "async"]


async def test_a_handler_gets_the_payload_or_the_event_type_too(router) -> None:
    router.register_handler("**", lambda event, payload: (event, payload), with_event=True)
    payload = {"type": "a.b"}
    assert (await router.handle_event(payload)).values() == [("a.b", payload)]


async def test_a_handler_that_fails_does_not_stop_the_next(router) -> None:
    def cancelled() -> None:
        raise asyncio.CancelledError

    router.register_handler("a", lambda: 1 / 0)
    router.register_handler("a", cancelled)
    router.register_handler("a", lambda: "ran")
    result = await router.handle_event({"type": "a"})
    assert [outcome.status for outcome in result] == ["error", "cancelled", "ok"]
    assert result.values() == ["ran"]


async def test_registering_gives_a_registration_with_its_options(router) -> None:
    registration = router.register_handler("a", lambda: 1, once=True)
    assert len(await router.handle_event({"type": "a"})) == 1
    assert not registration.active
    with router.register_handler("a", lambda: 2):
        assert (await router.handle_event({"type": "a"})).values() == [2]
    assert not await router.handle_event({"type": "a"})


async def test_the_decorator_registers_for_each_type_and_returns_the_function(router) -> None:
    @router.route("media", "mark", priority=3, with_event=True)
    def on_media(event, payload):
        return event

    assert on_media("x", {}) == "x"
    assert [one.priority for one in router.registry.listeners()] == [3, 3]
    assert (await router.handle_event({"type": "mark"})).values() == ["mark"]


@pytest.mark.parametrize("event_types", [(), (lambda: 1,), ("good", "b*d"), ("good", 3)])
def test_the_decorator_refuses_what_is_no_event_type_and_registers_nothing(
    router, event_types
) -> None:
    with pytest.raises((TypeError, ValueError)):
        router.route(*event_types)
    assert router.registry.listeners() == []


async def test_every_registry_of_the_router_is_made_by_the_function_given() -> None:
    heard = []

    def new_registry() -> CallbackRegistry:
        registry = CallbackRegistry()
        registry.add_error_callback(lambda exc, context: heard.append(context.event_type))
        return registry

    router = EventRouter(new_registry=new_registry)
    router.default(lambda: 1 / 0)
    router.channel("a").register_handler("known", lambda: 1 / 0)
    await router.channel("a").handle_event({"type": "known"})
    await router.channel("a").handle_event({"type": "unknown"})
    assert heard == ["known", "unknown"]


def test_a_router_shows_its_key_and_handlers(router) -> None:
    router.register_handler("a", lambda: None)
    assert repr(router) == "<EventRouter by 'type', 1 handlers>"
    assert repr(EventRouter(type)) == "<EventRouter by builtins.type, 0 handlers>"


# What nobody handles.


class HostileMapping(dict):
    def get(self, key, default=None):
        raise SystemError("no")

    def __repr__(self):
        raise SystemError("no")

    def __len__(self):
        raise SystemError("no")


class HostileObject:
    @property
    def type(self):
        raise LookupError("no")

    def __repr__(self):
        raise LookupError("no")


class HostileClass:
    @property
    def __class__(self):
        raise LookupError("no")


class HostileString(str):
    def __str__(self):
        raise LookupError("no")

    def __hash__(self):
        raise LookupError("no")

    def __eq__(self, other):
        raise LookupError("no")


class HostileKey:
    def __hash__(self):
        return hash("type")

    def __eq__(self, other):
        raise LookupError("no")


# By name, for pytest looks at parameters too closely for some of these.
WITHOUT_TYPE = {
    "none": None,
    "number": 3,
    "string": "start",
    "bytes": b"start",
    "list": [{"type": "start"}],
    "empty": {},
    "huge number": 10**5000,
    "class": dict,
    "mixed keys": {1: 2, "a": 3},
    "hostile mapping": HostileMapping(type="start"),
    "hostile attribute": HostileObject(),
    "hostile class": HostileClass(),
    "hostile element": [HostileObject()],
    "hostile key": {HostileKey(): 1},
}
NO_TYPES = {
    "none": None,
    "boolean": True,
    "number": 3,
    "huge number": 10**5000,
    "empty": "",
    "pattern": "a.*",
    "all": "**",
    "bad pattern": "a*",
    "bytes": b"start",
    "list": ["start"],
    "mapping": {"start": 1},
    "set": {"start"},
    "object": object(),
    "too long": "x" * 1001,
    "hostile class": HostileClass(),
}
PAYLOADS = {**WITHOUT_TYPE, **{f"type {name}": {"type": no} for name, no in NO_TYPES.items()}}


@pytest.mark.parametrize("name", PAYLOADS)
async def test_a_payload_without_an_event_type_goes_to_the_default_handler(router, name) -> None:
    router.register_handler("start", lambda: "start")
    router.register_handler("**", lambda: "pattern")
    router.default(lambda given: given is PAYLOADS[name])
    assert (await router.handle_event(PAYLOADS[name])).values() == [True]


@pytest.mark.parametrize("name", PAYLOADS)
async def test_without_a_default_handler_there_is_a_short_warning(router, caplog, name) -> None:
    assert len(await router.handle_event(PAYLOADS[name])) == 0
    warning = caplog.records[-1]
    assert warning.levelname == "WARNING"
    assert warning.getMessage().startswith("a payload has no event type: ")
    assert len(warning.getMessage()) < 300
    assert len(caplog.records) == 1 or "hostile" in name


async def test_the_warning_names_an_unknown_type(router, caplog) -> None:
    assert not await router.handle_event({"type": "call.lost", "secret": "hunter2"})
    assert caplog.messages == ["no handler for event type 'call.lost'"]


@pytest.mark.parametrize("size", [1000, 100_000])
async def test_a_long_payload_makes_a_short_warning(router, caplog, size) -> None:
    nested: object = "x" * size
    for _ in range(50):
        nested = [nested] * 50
    await router.handle_event({"type": "y" * size})
    await router.handle_event({"data": nested})
    assert all(len(message) < 300 for message in caplog.messages)


async def test_a_string_with_an_equality_of_its_own_is_no_event_type(router) -> None:
    router.register_handler("start", lambda: "start")
    router.default(lambda: "default")
    assert (await router.handle_event({"type": HostileString("start")})).values() == ["default"]


async def test_a_key_function_that_raises_is_logged(router, caplog) -> None:
    def kind(payload):
        return payload["kind"]

    router = EventRouter(kind)
    router.default(lambda: "default")
    assert (await router.handle_event({})).values() == ["default"]
    [record] = caplog.records
    assert record.callback_name.endswith("kind")
    assert record.exc_info is not None
    assert record.exc_info[0] is KeyError


async def test_a_key_function_that_returns_a_coroutine_is_logged(caplog) -> None:
    async def kind():
        raise AssertionError

    router = EventRouter(lambda payload: kind())
    assert not await router.handle_event({})
    assert "returned a coroutine" in caplog.text


async def test_a_key_function_may_not_stop_the_application() -> None:
    """`KeyboardInterrupt` is nobody's payload."""

    def kind(payload):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await EventRouter(kind).handle_event({})


json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text() | st.just("type"), inner, max_size=3)
    ),
    max_leaves=5,
)
anything = (
    json | st.binary() | st.builds(Message, json) | st.dictionaries(st.integers(), json, max_size=3)
)


@given(payload=st.fixed_dictionaries({"type": json | st.text("ab.*")}) | anything)
async def test_no_payload_raises(payload) -> None:
    """Whatever a stranger sends is handled, by exactly one kind of handler."""
    router = EventRouter()
    router.register_handler("a.**", lambda: "handler")
    router.default(lambda: "default")
    assert (await router.handle_event(payload)).values() in (["handler"], ["default"])
    assert not await EventRouter().handle_event(payload)


async def test_invented_event_types_take_bounded_memory(router) -> None:
    router.default(lambda: None)
    router.register_handler("a", lambda: None)
    before = sum(type(one) is Plan for one in gc.get_objects())
    for number in range(5000):
        await router.handle_event({"type": f"invented.{number}"})
    after = sum(type(one) is Plan for one in gc.get_objects())
    assert after - before < 2100


# The default handler.


async def test_an_event_type_with_handlers_does_not_reach_the_default(router) -> None:
    router.default(lambda: "default")
    router.register_handler("a", lambda: None, when=lambda payload: False)
    assert [one.status for one in await router.handle_event({"type": "a"})] == ["skipped"]


async def test_the_default_is_a_decorator_and_the_last_one_counts(router) -> None:
    router.default(lambda: "first")

    @router.default
    async def second(payload):
        return "second"

    assert await second({}) == "second"
    assert (await router.handle_event({})).values() == ["second"]


async def test_a_default_handler_that_fails_is_isolated(router, caplog) -> None:
    router.default(lambda: 1 / 0)
    result = await router.handle_event({"type": "lost"})
    assert [type(error) for error in result.errors] == [ZeroDivisionError]
    assert "'lost'" in caplog.messages[0]


async def test_a_muted_event_type_is_not_unknown(router, caplog) -> None:
    router.register_handler("a", lambda: "ran")
    router.default(lambda: "default")
    with router.registry.muted("a"):
        assert not await router.handle_event({"type": "a"})
    assert caplog.messages == []


# Channels.


async def test_a_channel_has_its_own_handlers_and_the_same_key() -> None:
    router = EventRouter(key="kind")
    channel = router.channel("telephony")
    assert router.channel("telephony") is channel
    router.register_handler("a", lambda: "router")
    channel.register_handler("a", lambda: "channel")
    assert (await channel.handle_event({"kind": "a"})).values() == ["channel"]
    assert (await router.handle_event({"kind": "a"})).values() == ["router"]
    assert not await router.channel("realtime").handle_event({"kind": "a"})


async def test_a_channel_without_a_default_uses_its_parents(router) -> None:
    inner = router.channel("a").channel("b")
    router.default(lambda: "router")
    assert (await inner.handle_event({"type": "x"})).values() == ["router"]
    router.channel("a").default(lambda: "a")
    assert (await inner.handle_event({"type": "x"})).values() == ["a"]
    inner.default(lambda: "b")
    assert (await inner.handle_event({"type": "x"})).values() == ["b"]
    assert (await router.handle_event({"type": "x"})).values() == ["router"]


@pytest.mark.parametrize("name", [None, 3, ["telephony"]])
def test_a_channels_name_is_a_string(router, name) -> None:
    with pytest.raises(TypeError, match="name of a channel"):
        router.channel(name)


def test_threads_that_ask_for_a_channel_get_the_same() -> None:
    both_are_making_it, got = threading.Barrier(2), []

    def new_registry() -> CallbackRegistry:
        if threading.current_thread() is not threading.main_thread():
            both_are_making_it.wait(10)
        return CallbackRegistry()

    router = EventRouter(new_registry=new_registry)
    threads = [
        threading.Thread(target=lambda: got.append(router.channel("telephony"))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 2
    assert got[0] is got[1] is router.channel("telephony")
