"""The handle of a registered callback."""

import gc
import sys
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from callbackkit import CallbackRegistry, EventKey, PerformanceStats

EVENT = "call.ended"


@pytest.fixture
def registry() -> CallbackRegistry:
    return CallbackRegistry()


def called(registry: CallbackRegistry) -> bool:
    return bool(registry.trigger_callbacks_sync(EVENT, "data").values())


class Owner:
    def handle(self, data: object) -> object:
        return data


# What it tells.


def test_it_names_event_type_callback_and_priority(registry: CallbackRegistry):
    registration = registry.register_callback(EVENT, len, priority=3)
    assert registration.event_type == EVENT
    assert registration.callback is len
    assert registration.priority == 3
    assert registration.active


def test_it_names_the_event_of_a_key_and_the_class_of_a_class(registry: CallbackRegistry):
    assert registry.register_callback(EventKey[str](EVENT), len).event_type == EVENT
    assert registry.register_callback(Owner, print).event_type is Owner


@pytest.mark.parametrize("options", [{}, {"trace": True}, {"monitor": True}, {"timeout": 1}])
def test_its_callback_is_the_one_that_was_given(options: dict[str, Any]):
    """Also where the registry wraps it to look at its calls."""
    callback = Owner().handle
    assert CallbackRegistry(**options).register_callback(EVENT, callback).callback is callback


def test_it_shows_its_callback_event_and_state(registry: CallbackRegistry):
    registration = registry.register_callback(EVENT, Owner().handle)
    assert repr(registration) == (
        f"<Registration of {__name__}.Owner.handle for 'call.ended', active>"
    )
    registration.pause()
    assert repr(registration).endswith("paused>")
    registration.cancel()
    assert repr(registration).endswith("cancelled>")


def test_it_has_figures_with_monitoring_only(registry: CallbackRegistry):
    assert registry.register_callback(EVENT, len).stats is None
    monitored = CallbackRegistry(monitor=True)
    registration = monitored.register_callback(EVENT, len)
    assert isinstance(registration.stats, PerformanceStats)
    monitored.trigger_callbacks_sync(EVENT, "data")
    monitored.trigger_callbacks_sync(EVENT, 5)
    assert (registration.stats.count, registration.stats.errors) == (2, 1)


def test_two_registrations_of_one_callback_are_two(registry: CallbackRegistry):
    first, second = (registry.register_callback(EVENT, len) for _ in range(2))
    assert first != second
    first.cancel()
    assert second.active


def test_it_has_no_room_for_other_attributes(registry: CallbackRegistry):
    """A registry may hold 100 000."""
    registration = registry.register_callback(EVENT, len)
    assert not hasattr(registration, "__dict__")
    assert sys.getsizeof(registration) < 200
    with pytest.raises(AttributeError):
        registration.nothing = 1


# Cancelling.


def test_cancelling_takes_it_out_and_tells_whether_it_was_in(registry: CallbackRegistry):
    registration = registry.register_callback(EVENT, len)
    assert registration.cancel() is True
    assert registration.cancel() is False
    assert not registration.active
    assert not called(registry)
    assert registry.listeners() == []


def test_cancelling_takes_out_this_registration_and_no_other_of_the_callback(
    registry: CallbackRegistry,
):
    registrations = [registry.register_callback(EVENT, len) for _ in range(3)]
    registrations[1].cancel()
    assert registry.listeners(EVENT) == [registrations[0], registrations[2]]
    registrations[2].cancel()
    assert registry.listeners(EVENT) == [registrations[0]]


def test_as_a_context_manager_it_ends_with_its_block(registry: CallbackRegistry):
    with registry.register_callback(EVENT, len) as registration:
        assert registration.active
        assert called(registry)
    assert not registration.active
    assert not called(registry)


def test_as_a_context_manager_it_ends_with_an_exception_too(registry: CallbackRegistry):
    with pytest.raises(LookupError), registry.register_callback(EVENT, len):
        raise LookupError
    assert registry.event_types() == []


def test_a_block_leaves_other_registrations_of_the_callback_alone(registry: CallbackRegistry):
    permanent = registry.register_callback(EVENT, len)
    with registry.register_callback(EVENT, len):
        pass
    assert registry.listeners(EVENT) == [permanent]


def test_leaving_the_block_of_one_cancelled_before_is_harmless(registry: CallbackRegistry):
    with registry.register_callback(EVENT, len) as registration:
        registration.cancel()
    assert not registration.active


def test_unregistering_makes_the_handle_inactive(registry: CallbackRegistry):
    registration = registry.register_callback(EVENT, len)
    registry.unregister_callback(EVENT, len)
    assert not registration.active
    assert registration.cancel() is False


def test_clearing_makes_the_handles_inactive(registry: CallbackRegistry):
    registrations = [registry.register_callback(name, len) for name in ("a", "b", "a")]
    registry.clear()
    assert [one.active for one in registrations] == [False] * 3
    assert [one.cancel() for one in registrations] == [False] * 3


# Pausing.


def test_a_paused_one_is_not_called_until_it_is_resumed(registry: CallbackRegistry):
    registration = registry.register_callback(EVENT, len)
    registration.pause()
    assert not registration.active
    assert not called(registry)
    assert registry.listeners(EVENT) == []
    registration.resume()
    assert registration.active
    assert called(registry)


def test_a_paused_one_stays_registered(registry: CallbackRegistry):
    registration = registry.register_callback(EVENT, len)
    registration.pause()
    assert registry.listeners() == [registration]
    assert registry.event_types() == [EVENT]
    assert not registry.has_listeners(EVENT)


def test_pausing_twice_is_pausing_once(registry: CallbackRegistry):
    registration = registry.register_callback(EVENT, len)
    registration.pause()
    registration.pause()
    registration.resume()
    assert called(registry)


def test_resuming_one_that_is_not_paused_does_nothing(registry: CallbackRegistry):
    registration = registry.register_callback(EVENT, len)
    registration.resume()
    assert called(registry)


@pytest.mark.parametrize("order", ["pause first", "cancel first"])
def test_a_cancelled_one_cannot_be_resumed(registry: CallbackRegistry, order: str):
    registration = registry.register_callback(EVENT, len)
    steps: list[Callable[[], Any]] = [registration.pause, registration.cancel]
    for step in steps if order == "pause first" else reversed(steps):
        step()
    registration.resume()
    assert not registration.active
    assert not called(registry)


def test_a_paused_one_can_be_unregistered(registry: CallbackRegistry):
    registry.register_callback(EVENT, len).pause()
    assert registry.unregister_callback(EVENT, len) is True
    assert registry.listeners() == []


def test_pausing_one_keeps_its_place(registry: CallbackRegistry):
    registry.register_callback(EVENT, lambda: "first")
    middle = registry.register_callback(EVENT, lambda: "middle")
    registry.register_callback(EVENT, lambda: "last")
    middle.pause()
    middle.resume()
    assert registry.trigger_callbacks_sync(EVENT).values() == ["first", "middle", "last"]


def test_one_paused_during_a_dispatch_before_its_turn_is_skipped(registry: CallbackRegistry):
    registry.register_callback(EVENT, lambda: later.pause())
    later = registry.register_callback(EVENT, len)
    result = registry.trigger_callbacks_sync(EVENT, "data")
    assert [outcome.status for outcome in result] == ["ok", "skipped"]


def test_one_resumed_during_a_dispatch_waits_for_the_next(registry: CallbackRegistry):
    """It was not active when the dispatch began."""
    registry.register_callback(EVENT, lambda: later.resume())
    later = registry.register_callback(EVENT, lambda: "later")
    later.pause()
    assert registry.trigger_callbacks_sync(EVENT).values() == [None]
    assert registry.trigger_callbacks_sync(EVENT).values() == [None, "later"]


def test_one_paused_and_resumed_before_its_turn_is_called(registry: CallbackRegistry):
    def pause_and_resume() -> None:
        later.pause()
        later.resume()

    registry.register_callback(EVENT, pause_and_resume)
    later = registry.register_callback(EVENT, lambda: "later")
    assert registry.trigger_callbacks_sync(EVENT).values() == [None, "later"]


@pytest.mark.parametrize(
    "options",
    [{"once": True}, {"timeout": 5}, {"with_event": True}, {"when": len}, {"thread": True}],
    ids=["once", "timeout", "with_event", "when", "thread"],
)
def test_pausing_works_with_every_option(registry: CallbackRegistry, options: dict[str, Any]):
    registration = registry.register_callback(EVENT, lambda *_args: "called", **options)
    registration.pause()
    assert not called(registry)
    registration.resume()
    assert called(registry)


# Held weakly.


def test_the_object_of_a_weak_one_may_die(registry: CallbackRegistry):
    owner = Owner()
    registration = registry.register_callback(EVENT, owner.handle, weak=True)
    assert registration.callback == owner.handle
    assert called(registry)
    del owner
    gc.collect()
    assert registration.callback is None
    assert not registration.active
    assert isinstance(repr(registration), str)
    assert registry.listeners() == []
    assert registration.cancel() is False


def test_a_paused_weak_one_whose_object_died_cannot_be_resumed(registry: CallbackRegistry):
    owner = Owner()
    registration = registry.register_callback(EVENT, owner.handle, weak=True)
    registration.pause()
    del owner
    gc.collect()
    registration.resume()
    assert not registration.active
    assert registry.listeners(EVENT) == []


def test_a_weak_one_cancelled_before_its_object_dies_stays_cancelled(registry: CallbackRegistry):
    owner = Owner()
    registration = registry.register_callback(EVENT, owner.handle, weak=True)
    assert registration.cancel() is True
    del owner
    gc.collect()
    assert registration.cancel() is False
    assert registry.listeners() == []


# Nothing is kept of what is gone.


def test_a_cancelled_callback_is_released_with_its_handle(registry: CallbackRegistry):
    owner = Owner()
    released = weakref.ref(owner)
    with registry.register_callback(EVENT, owner.handle) as registration:
        called(registry)
    del owner, registration
    gc.collect()
    assert released() is None
