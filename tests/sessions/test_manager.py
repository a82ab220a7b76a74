"""The manager as far as it serves the callbacks of its process."""

import inspect
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from callbackkit import (
    CallbackManager,
    CallbackRegistry,
    DispatchResult,
    EventKey,
    Registration,
)

EVENT = "progress"


@pytest.fixture
def manager() -> CallbackManager:
    return CallbackManager()


async def test_it_needs_nothing_to_be_set_up(manager: CallbackManager):
    manager.register_callback(EVENT, lambda data: data)
    result = await manager.trigger_callbacks(EVENT, 0.5)
    assert isinstance(result, DispatchResult)
    assert result.values() == [0.5]


def test_registering_gives_a_registration(manager: CallbackManager):
    registration = manager.register_callback(EVENT, len)
    assert isinstance(registration, Registration)
    assert registration.cancel() is True
    assert manager.unregister_callback(EVENT, len) is False


def test_unregistering_tells_whether_there_was_one(manager: CallbackManager):
    manager.register_callback(EVENT, len)
    assert manager.unregister_callback(EVENT, len) is True
    assert manager.unregister_callback(EVENT, len) is False


async def test_an_event_without_data_or_listeners_is_fine(manager: CallbackManager):
    assert (await manager.trigger_callbacks(EVENT)).ok
    manager.register_callback(EVENT, lambda data: data is None)
    assert (await manager.trigger_callbacks(EVENT)).values() == [True]


async def test_sync_and_async_callbacks_are_isolated(manager: CallbackManager):
    async def waits(data: object) -> object:
        await anyio.lowlevel.checkpoint()
        return data

    def fails(_data: object) -> None:
        raise ValueError("broken")

    for callback in (fails, waits, len):
        manager.register_callback(EVENT, callback)
    result = await manager.trigger_callbacks(EVENT, "data")
    assert [outcome.status for outcome in result] == ["error", "ok", "ok"]
    assert result.values() == ["data", 4]


async def test_it_takes_the_options_of_a_registry(manager: CallbackManager):
    called: list[Any] = []
    manager.register_callback("*", lambda event, data: called.append((event, data)),
                              with_event=True, priority=1, once=True)  # fmt: skip
    manager.register_callback(EventKey[int](EVENT), called.append, when=lambda data: data > 1)
    for number in (1, 2):
        await manager.trigger_callbacks(EVENT, number)
    assert called == [(EVENT, 1), 2]


def test_its_options_are_those_of_a_registry(manager: CallbackManager):
    with pytest.raises(TypeError, match="prio"):
        manager.register_callback(EVENT, len, prio=1)
    with pytest.raises(ValueError, match="timeout must be positive"):
        manager.register_callback(EVENT, len, timeout=0)
    with pytest.raises(TypeError, match="callback must be callable"):
        manager.register_callback(EVENT, None)
    assert manager.registry.listeners() == []


async def test_a_bad_event_type_is_refused(manager: CallbackManager):
    with pytest.raises(ValueError, match="is a pattern"):
        await manager.trigger_callbacks("*")
    with pytest.raises(TypeError, match="an event type is"):
        await manager.trigger_callbacks(5)


async def test_its_registry_has_the_rest(manager: CallbackManager):
    assert isinstance(manager.registry, CallbackRegistry)
    manager.register_callback(EVENT, lambda: "called")
    assert manager.registry.has_listeners(EVENT)
    assert manager.registry.trigger_callbacks_sync(EVENT).values() == ["called"]
    with manager.registry.muted(EVENT):
        assert (await manager.trigger_callbacks(EVENT)).values() == []


async def test_managers_do_not_see_each_other(manager: CallbackManager):
    manager.register_callback(EVENT, lambda: "here")
    assert (await CallbackManager().trigger_callbacks(EVENT)).values() == []


def test_it_shows_its_callbacks(manager: CallbackManager):
    manager.register_callback(EVENT, len)
    assert repr(manager) == "<CallbackManager of <CallbackRegistry, 1 callbacks>>"


def test_its_methods_are_called_like_those_of_a_registry():
    for name in ("unregister_callback", "trigger_callbacks"):
        ours = inspect.signature(getattr(CallbackManager, name)).parameters
        theirs = inspect.signature(getattr(CallbackRegistry, name)).parameters
        assert list(ours) == list(theirs)
