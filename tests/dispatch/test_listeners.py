"""The table of who listens: plans that are kept, forgotten and bounded; changes from anywhere."""

import gc
import threading
import tracemalloc
import weakref
from collections.abc import Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from callbackkit import CallbackRegistry, Dispatcher, EventKey
from callbackkit.dispatch.listeners import Listeners, Plan
from callbackkit.dispatch.registration import PLAIN

EVENT = "call.ended"


@pytest.fixture
def registry() -> CallbackRegistry:
    return CallbackRegistry()


class Event:
    pass


class Special(Event):
    pass


def values(registry: CallbackRegistry, event_type: Any = EVENT) -> list[Any]:
    """Return the value of each outcome; that of a skipped one would be ``None``."""
    return [outcome.value for outcome in registry.trigger_callbacks_sync(event_type)]


def plans_alive() -> int:
    gc.collect()
    return sum(type(one) is Plan for one in gc.get_objects())


# A plan is made once and forgotten with every change that touches it.


def test_a_plan_is_made_once():
    listeners = Listeners(Dispatcher())
    plan = listeners.plan(EVENT)
    assert listeners.plan(EVENT) is plan
    assert listeners.plan(EventKey[int](EVENT)) is plan
    assert listeners.plan("other") is not plan


def entered(manager: Any) -> Any:
    manager.__enter__()
    return manager


CHANGES: dict[str, tuple[Callable[[CallbackRegistry], Any], list[Any]]] = {
    "register": (lambda r: r.register_callback(EVENT, lambda: "new"), ["old", "new"]),
    "register first": (
        lambda r: r.register_callback(EVENT, lambda: "new", priority=1),
        ["new", "old"],
    ),
    "register a pattern": (lambda r: r.register_callback("call.*", lambda: "new"), ["old", "new"]),
    "register for all": (lambda r: r.register_callback("**", lambda: "new"), ["old", "new"]),
    "register elsewhere": (lambda r: r.register_callback("other", lambda: "new"), ["old"]),
    "cancel": (lambda r: r.listeners(EVENT)[0].cancel(), []),
    "unregister": (lambda r: r.unregister_callback(EVENT, r.listeners()[0].callback), []),
    "pause": (lambda r: r.listeners(EVENT)[0].pause(), []),
    "clear": (lambda r: r.clear(), []),
    "mute": (lambda r: entered(r.muted(EVENT)), []),
    "mute a pattern": (lambda r: entered(r.muted("*.ended")), []),
    "tap": (lambda r: r.tap(lambda _event, _data: None), ["old"]),
    "untap": (lambda r: r.tap(lambda _event, _data: None)(), ["old"]),
}


@pytest.mark.parametrize("trigger", [EVENT, EventKey[int](EVENT)], ids=["string", "key"])
@pytest.mark.parametrize("change", CHANGES)
def test_every_change_counts_from_the_next_trigger_on(
    registry: CallbackRegistry, change: str, trigger: Any
):
    """However often the event was triggered before, and by whatever name."""
    make, expected = CHANGES[change]
    registry.register_callback(EVENT, lambda: "old")
    for _ in range(3):
        assert values(registry, trigger) == ["old"]
    # A mute ends with its context manager.
    _kept = make(registry)
    for _ in range(3):
        assert values(registry, trigger) == expected


def test_a_change_for_a_class_counts_for_its_subclasses(registry: CallbackRegistry):
    registry.register_callback(Special, lambda: "special")
    assert values(registry, Special) == ["special"]
    base = registry.register_callback(Event, lambda: "base")
    assert values(registry, Special) == ["special", "base"]
    base.pause()
    assert values(registry, Special) == ["special"]
    base.resume()
    assert values(registry, Special) == ["special", "base"]


def test_changes_of_one_event_leave_the_plans_of_others():
    listeners = Listeners(Dispatcher())
    plan = listeners.plan(EVENT)
    registration = listeners.add("other", len, len, 0, PLAIN)
    listeners.pause(registration)
    listeners.resume(registration)
    listeners.cancel(registration)
    assert listeners.plan(EVENT) is plan


# Bounds.


def test_events_made_up_without_end_keep_a_bounded_number_of_plans(registry: CallbackRegistry):
    registry.register_callback("**", lambda: "all")
    before = plans_alive()
    for number in range(5_000):
        assert values(registry, f"made.up.{number}") == ["all"]
    assert plans_alive() - before <= 1_100


def test_classes_made_up_without_end_are_forgotten(registry: CallbackRegistry):
    registry.register_callback(object, lambda: "all")
    made: weakref.WeakSet[type] = weakref.WeakSet()
    for number in range(3_000):
        event = type(f"MadeUp{number}", (), {})
        made.add(event)
        assert values(registry, event) == ["all"]
    gc.collect()
    assert len(made) <= 1_100


def peak_of(work: Callable[[], object]) -> int:
    work()
    return tracemalloc.get_traced_memory()[1]


@pytest.mark.parametrize("make", [str, EventKey])
def test_events_made_up_without_end_take_a_bounded_amount_of_memory(
    registry: CallbackRegistry, make: Callable[[str], Any]
):
    registry.register_callback("**", lambda: "all")

    def trigger(first: int, last: int) -> None:
        for number in range(first, last):
            assert values(registry, make(f"made.up.{number}")) == ["all"]

    tracemalloc.start()
    try:
        few = peak_of(lambda: trigger(0, 1_100))
        many = peak_of(lambda: trigger(1_100, 7_000))
    finally:
        tracemalloc.stop()
    assert many < 2.5 * few


@pytest.mark.parametrize("options", [{}, {"timing": True}, {"mode": "concurrent"}], ids=str)
@pytest.mark.parametrize("is_sync", [True, False], ids=["sync", "awaited"])
async def test_triggers_without_end_take_no_memory(
    options: dict[str, Any], is_sync: bool, caplog: pytest.LogCaptureFixture
):
    caplog.set_level("CRITICAL", "callbackkit")
    registry = CallbackRegistry(**options)

    async def waits() -> None:
        await anyio.lowlevel.checkpoint()

    async def trigger(times: int) -> int:
        for _ in range(times):
            if is_sync:
                registry.trigger_callbacks_sync(EVENT)
            else:
                await registry.trigger_callbacks(EVENT)
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    registry.add_error_callback(len)
    for callback in (lambda: None, lambda: 1 // 0, *([] if is_sync else [waits])):
        registry.register_callback(EVENT, callback, when=lambda: True)
        registry.register_callback(EVENT, callback)
    tracemalloc.start()
    try:
        before = await trigger(50)
        after = await trigger(500)
    finally:
        tracemalloc.stop()
    # Less than a pointer for each.
    assert after - before < 3_500


def test_events_nobody_listens_to_are_no_event_types(registry: CallbackRegistry):
    registry.register_callback("**", lambda: "all")
    for number in range(100):
        values(registry, f"made.up.{number}")
    assert registry.event_types() == ["**"]


def test_event_types_that_are_listened_to_all_keep_their_plans():
    """The bound is on those nobody registered for."""
    listeners = Listeners(Dispatcher())
    for number in range(3_000):
        listeners.add(f"{number}", len, len, 0, PLAIN)
    plans = [listeners.plan(f"{number}") for number in range(3_000)]
    assert all(listeners.plan(f"{number}") is plans[number] for number in range(3_000))


def test_registering_and_removing_leaves_nothing_behind(registry: CallbackRegistry):
    def round_trip(first: int, last: int) -> None:
        for number in range(first, last):
            for event_type in (f"event.{number}", f"pattern.{number}.*"):
                with registry.register_callback(event_type, lambda: None, once=number % 2 == 0):
                    values(registry, f"event.{number}")
            with registry.muted(f"muted.{number}"):
                pass
            registry.tap(lambda _event, _data: None)()
        gc.collect()

    # The cache of the re module has to be full first.
    round_trip(0, 600)
    tracemalloc.start()
    try:
        round_trip(600, 1_200)
        before = tracemalloc.get_traced_memory()[0]
        round_trip(1_200, 1_800)
        after = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    # 100 bytes for each thing registered, at most: the cache of re varies by as much.
    assert after - before < 150_000
    assert registry.listeners() == registry.event_types() == []


# Objects that die at any moment.


class Owner:
    def take(self) -> str:
        return "alive"


class Dropper:
    """A callable that lets an object die while it is looked at for the *nth* time."""

    def __init__(self, owners: list[Owner]) -> None:
        self.owners = owners
        self.left = 0

    def __call__(self) -> str:
        return "dropper"

    def __getattr__(self, name: str) -> Any:
        if self.left:
            self.left -= 1
            if not self.left:
                self.owners.clear()
        raise AttributeError(name)


@pytest.mark.parametrize("moment", range(1, 20))
def test_an_object_may_die_while_it_is_looked_up_who_listens(
    registry: CallbackRegistry, moment: int
):
    """Garbage collection comes at any time: the dead one is gone, and no later one is missed."""
    owners = [Owner()]
    dropper = Dropper(owners)
    registry.register_callback(EVENT, dropper)
    registry.register_callback(EVENT, owners[0].take, weak=True)
    dropper.left = moment
    first = registry.trigger_callbacks_sync(EVENT)
    dropper.left = 0
    owners.clear()
    assert first[0].value == "dropper"
    assert [outcome.status for outcome in registry.trigger_callbacks_sync(EVENT)] == ["ok"]
    registry.register_callback(EVENT, lambda: "new")
    assert values(registry) == ["dropper", "new"]


class Subscription:
    """A handle as users write it, which ends with its last reference, or is collected."""

    def __init__(self, registry: CallbackRegistry, callback: Any) -> None:
        self.registration = registry.register_callback(EVENT, callback)
        self.cycle = self

    def __del__(self) -> None:
        self.registration.cancel()


@pytest.mark.parametrize("kind", ["function", "method", "object"])
def test_handles_that_cancel_when_collected_do_no_harm(registry: CallbackRegistry, kind: str):
    """Collections come at any moment, in the middle of other changes too."""
    threshold = gc.get_threshold()
    try:
        for turn in range(1_500):
            owner = Called()
            callback = {"function": lambda: "mine", "method": owner.take, "object": owner}[kind]
            Subscription(registry, callback)
            gc.set_threshold(1 + turn % 7)
            mine = registry.register_callback(EVENT, callback)
            Subscription(registry, callback)
            gc.set_threshold(*threshold)
            assert mine in registry.listeners(EVENT)
            assert "mine" in values(registry)
            gc.set_threshold(1 + turn % 5)
            mine.cancel()
            gc.set_threshold(*threshold)
            assert all(one.active for one in registry.listeners())
    finally:
        gc.set_threshold(*threshold)
    gc.collect()
    assert registry.listeners() == registry.event_types() == []


class Called:
    def take(self) -> str:
        return "mine"

    def __call__(self) -> str:
        return "mine"


def test_callbacks_are_not_lost_while_objects_die_in_other_threads(registry: CallbackRegistry):
    stop = threading.Event()
    lost: list[int] = []

    def trigger() -> None:
        while not stop.is_set():
            values(registry)

    def die() -> None:
        while not stop.is_set():
            owner = Owner()
            registry.register_callback("other", owner.take, weak=True)
            del owner

    def check() -> None:
        for turn in range(1_500):
            registration = registry.register_callback(EVENT, lambda: "mine")
            if values(registry) != ["mine"]:
                lost.append(turn)
            registration.cancel()
            if values(registry) != []:
                lost.append(-turn)
        stop.set()

    threads = [threading.Thread(target=work, daemon=True) for work in (trigger, die, check)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert lost == []


class Removing:
    """Its hash is fine; being collected it takes its tap away, whenever that is."""

    def __init__(self, registry: CallbackRegistry) -> None:
        self.cycle = self
        self.remove = registry.tap(lambda *_: None)

    def __del__(self) -> None:
        self.remove()


def test_what_garbage_collection_changes_while_a_plan_is_made_does_no_harm() -> None:
    registry = CallbackRegistry()
    registry.register_callback("**", lambda: "heard")
    threshold = gc.get_threshold()
    gc.set_threshold(1)
    try:
        for number in range(200):
            for _ in range(3):
                Removing(registry)
            assert registry.trigger_callbacks_sync(f"e{number}").values() == ["heard"]
    finally:
        gc.set_threshold(*threshold)
