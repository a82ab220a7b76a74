"""Any sequence of changes and triggers does what a simple model says."""

import functools
from collections.abc import Callable
from typing import Any

import anyio
import anyio.lowlevel
import attrs
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from callbackkit import AsyncCallbackError, CallbackRegistry, DispatchResult, Registration

# The model.


class Base:
    pass


class Child(Base):
    pass


# Few, so that they meet often.
NAMES = ["a.b", "a.c", "b"]
# Written out rather than computed: what each pattern or class stands for.
MATCHES: dict[Any, set[Any]] = {
    **{name: {name} for name in NAMES},
    "a.*": {"a.b", "a.c"},
    "*.c": {"a.c"},
    "**": set(NAMES),
    Base: {Base, Child},
    Child: {Child},
}
EVENTS = ["a.b", "a.c", Child]

event_types = st.sampled_from(list(MATCHES))
events = st.sampled_from(EVENTS)
ways = st.sampled_from(["sync", "awaited", "three times in one loop"])


@attrs.define(eq=False)
class Entry:
    """A registration as the model sees it."""

    event_type: Any
    callback: Any
    name: str
    priority: int
    sequence: int
    is_once: bool = False
    wanted: bool = True
    is_async: bool = False
    fails: bool = False
    action: Callable[[], None] | None = None
    is_paused: bool = False
    is_gone: bool = False

    @property
    def is_active(self) -> bool:
        return not (self.is_paused or self.is_gone)

    def __repr__(self) -> str:
        return f"<{self.name} for {self.event_type!r}>"


class Model:
    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.muted: list[Any] = []
        self.count = 0

    def add(self, event_type: Any, callback: Any, **options: Any) -> Entry:
        self.count += 1
        name = options.pop("name", None) or f"callback {self.count}"
        entry = Entry(event_type, callback, name, sequence=self.count, **options)
        self.entries.append(entry)
        return entry

    def remove(self, entry: Entry) -> bool:
        was_there = not entry.is_gone
        entry.is_gone = True
        self.entries = [one for one in self.entries if one is not entry]
        return was_there

    def first(self, event_type: Any, callback: Any) -> Entry | None:
        return next(
            (
                one
                for one in self.entries
                if one.event_type == event_type and one.callback is callback
            ),
            None,
        )

    def listeners(self, event: Any) -> list[Entry]:
        found = [one for one in self.entries if one.is_active and event in MATCHES[one.event_type]]
        return sorted(found, key=lambda one: (-one.priority, one.sequence))

    def is_muted(self, event: Any) -> bool:
        return any(event in MATCHES[muted] for muted in self.muted)

    def trigger(self, event: Any) -> tuple[list[tuple[str, str | None]], list[str]]:
        """Return what the outcomes are, and who is called."""
        outcomes: list[tuple[str, str | None]] = []
        called: list[str] = []
        for entry in [] if self.is_muted(event) else self.listeners(event):
            if not entry.is_active or not entry.wanted:
                outcomes.append(("skipped", None))
                continue
            if entry.is_once:
                self.remove(entry)
            called.append(entry.name)
            if entry.action is not None:
                entry.action()
            outcomes.append(("error", None) if entry.fails else ("ok", entry.name))
        return outcomes, called

    def has_async(self, event: Any) -> bool:
        return not self.is_muted(event) and any(one.is_async for one in self.listeners(event))


class Owner:
    """Has a method that is registered weakly."""

    def __init__(self, called: list[str], name: str) -> None:
        self._called = called
        self._name = name

    def take(self, _data: object) -> str:
        self._called.append(self._name)
        return self._name


@attrs.define(eq=False)
class Handle:
    """A registration and its entry in the model."""

    registration: Registration
    entry: Entry


class Failure(Exception):
    pass


def step(**arguments: Any) -> Callable[[Any], Any]:
    """A rule that changes something, then triggers an event: changes alone show little."""

    def decorate(change: Any) -> Any:
        @rule(**arguments, event=events, way=ways)
        @functools.wraps(change)
        def changed(self: "RegistryMachine", event: Any, way: str, **drawn: Any) -> Any:
            result = change(self, **drawn)
            self.trigger(event, way)
            return result

        return changed

    return decorate


class RegistryMachine(RuleBasedStateMachine):
    """Drives a registry and the model side by side."""

    backend = "asyncio"
    handles = Bundle("handles")
    owners = Bundle("owners")
    mutes = Bundle("mutes")

    @initialize(
        mode=st.sampled_from(["sequential", "concurrent"]),
        timing=st.booleans(),
        timeout=st.sampled_from([None, 60]),
        observed=st.booleans(),
    )
    def start(self, mode: Any, timing: bool, timeout: float | None, observed: bool) -> None:
        self.registry = CallbackRegistry(
            mode=mode, timing=timing, timeout=timeout, monitor=observed, trace=observed
        )
        self.mode = mode
        self.model = Model()
        self.called: list[str] = []
        self.failures: list[Exception] = []
        self.registry.add_error_callback(self.failures.append)
        self.weak: dict[str, tuple[Owner, list[Handle]]] = {}

    # Callbacks.

    def plain(self, name: str, fails: bool = False) -> Callable[[object], str]:
        def callback(_data: object) -> str:
            self.called.append(name)
            if fails:
                raise Failure(name)
            return name

        return callback

    def awaited(self, name: str, suspends: bool, fails: bool) -> Callable[[object], Any]:
        async def callback(_data: object) -> str:
            # Noted before it suspends: that is the order in which all are called.
            self.called.append(name)
            if suspends:
                await anyio.lowlevel.checkpoint()
            if fails:
                raise Failure(name)
            return name

        return callback

    def register(self, entry: Entry, weak: bool = False) -> Handle:
        options: dict[str, Any] = {}
        if entry.is_once:
            options["once"] = True
        if not entry.wanted:
            options["when"] = lambda _data: False
        registration = self.registry.register_callback(
            entry.event_type, entry.callback, priority=entry.priority, weak=weak, **options
        )
        return Handle(registration, entry)

    # Changes.

    @step(
        target=handles,
        event_type=event_types,
        priority=st.integers(-1, 1),
        is_once=st.booleans(),
        wanted=st.sampled_from([True, True, False]),
        kind=st.sampled_from(["sync", "sync", "async", "async that does not suspend"]),
        fails=st.sampled_from([False, False, True]),
    )
    def register_new(
        self, event_type: Any, priority: int, is_once: bool, wanted: bool, kind: str, fails: bool
    ) -> Handle:
        name = f"callback {self.model.count + 1}"
        is_async = kind != "sync"
        callback = (
            self.awaited(name, kind == "async", fails) if is_async else self.plain(name, fails)
        )
        entry = self.model.add(
            event_type,
            callback,
            priority=priority,
            is_once=is_once,
            wanted=wanted,
            is_async=is_async,
            fails=fails,
        )
        return self.register(entry)

    @step(target=handles, handle=handles, event_type=event_types, priority=st.integers(-1, 1))
    def register_again(self, handle: Handle, event_type: Any, priority: int) -> Any:
        """The same callback once more, perhaps for another event."""
        known = handle.entry
        if known.action is not None or isinstance(known.callback, str):
            return multiple()
        entry = self.model.add(
            event_type,
            known.callback,
            name=known.name,
            priority=priority,
            is_async=known.is_async,
            fails=known.fails,
        )
        return self.register(entry)

    @step(
        target=handles,
        victim=handles,
        event_type=event_types,
        priority=st.integers(-1, 1),
        action=st.sampled_from(["cancel", "pause", "resume", "unregister", "clear"]),
        is_async=st.booleans(),
    )
    def register_meddler(
        self, victim: Handle, event_type: Any, priority: int, action: str, is_async: bool
    ) -> Handle:
        """A callback that changes another registration, or all, when it is called."""
        name = f"callback {self.model.count + 1}"

        def meddle(_data: object) -> str:
            self.called.append(name)
            match action:
                case "unregister":
                    callback = victim.registration.callback
                    self.registry.unregister_callback(victim.entry.event_type, callback)
                case "clear":
                    self.registry.clear()
                case _:
                    getattr(victim.registration, action)()
            return name

        def change_model() -> None:
            match action:
                case "cancel":
                    self.model.remove(victim.entry)
                case "pause":
                    victim.entry.is_paused = True
                case "resume":
                    victim.entry.is_paused = False
                case "unregister":
                    first = self.model.first(victim.entry.event_type, victim.entry.callback)
                    if first is not None:
                        self.model.remove(first)
                case _:
                    for entry in list(self.model.entries):
                        self.model.remove(entry)

        async def meddle_async(data: object) -> str:
            return meddle(data)

        # In concurrent mode an async one meddles once all have been called.
        is_async = is_async and self.mode == "sequential"
        entry = self.model.add(
            event_type,
            meddle_async if is_async else meddle,
            priority=priority,
            action=change_model,
            is_async=is_async,
        )
        return self.register(entry)

    @step(target=handles, event_type=event_types, is_once=st.booleans())
    def register_weakly(self, event_type: Any, is_once: bool) -> Handle:
        name = f"callback {self.model.count + 1}"
        owner = Owner(self.called, name)
        # In the model the owner stands for its method, which is a new object each time.
        entry = self.model.add(event_type, owner, name=name, priority=0, is_once=is_once)
        options: dict[str, Any] = {"once": True} if is_once else {}
        registration = self.registry.register_callback(event_type, owner.take, weak=True, **options)
        handle = Handle(registration, entry)
        self.weak[name] = (owner, [handle])
        entry.callback = name
        return handle

    @step(data=st.data())
    def lose_an_owner(self, data: st.DataObject) -> None:
        if not self.weak:
            return
        name = data.draw(st.sampled_from(sorted(self.weak)))
        handles = self.weak.pop(name)[1]
        for handle in handles:
            self.model.remove(handle.entry)
            assert handle.registration.callback is None
            assert not handle.registration.active

    @step(handle=handles)
    def unregister(self, handle: Handle) -> None:
        entry = handle.entry
        if entry.name in self.weak:
            callback: Any = self.weak[entry.name][0].take
        elif isinstance(entry.callback, str):
            # Held weakly, and gone.
            return
        else:
            callback = entry.callback
        first = self.model.first(entry.event_type, entry.callback)
        assert self.registry.unregister_callback(entry.event_type, callback) is (first is not None)
        if first is not None:
            self.model.remove(first)

    @step(event_type=event_types)
    def unregister_a_stranger(self, event_type: Any) -> None:
        assert self.registry.unregister_callback(event_type, self.plain("stranger")) is False

    @step(handle=handles)
    def cancel(self, handle: Handle) -> None:
        assert handle.registration.cancel() is self.model.remove(handle.entry)
        assert not handle.registration.active

    @step(handle=handles)
    def pause(self, handle: Handle) -> None:
        handle.registration.pause()
        handle.entry.is_paused = True

    @step(handle=handles)
    def resume(self, handle: Handle) -> None:
        handle.registration.resume()
        handle.entry.is_paused = False

    @precondition(lambda self: len(self.model.muted) < 2)
    @step(target=mutes, event_type=event_types)
    def mute(self, event_type: Any) -> tuple[Any, Any]:
        muting = self.registry.muted(event_type)
        muting.__enter__()
        self.model.muted.append(event_type)
        return muting, event_type

    @step(mute=consumes(mutes))
    def unmute(self, mute: tuple[Any, Any]) -> None:
        muting, event_type = mute
        muting.__exit__(None, None, None)
        self.model.muted.remove(event_type)

    @step()
    def clear(self) -> None:
        self.registry.clear()
        for entry in list(self.model.entries):
            self.model.remove(entry)

    @step(event_type=event_types)
    def tap_and_untap(self, event_type: Any) -> None:
        """A tap is no callback: nothing else changes."""
        self.registry.tap(lambda _event, _data: None, event_type)()

    # Triggers.

    @rule(event=events, way=ways, times=st.integers(1, 3))
    def trigger_again(self, event: Any, way: str, times: int) -> None:
        for _ in range(times):
            self.trigger(event, way)

    def trigger(self, event: Any, way: str) -> None:
        if way == "sync":
            self.trigger_sync(event)
        else:
            times = 1 if way == "awaited" else 3
            anyio.run(self.trigger_awaited, event, times, backend=self.backend)

    def trigger_sync(self, event: Any) -> None:
        if self.model.has_async(event):
            with pytest.raises(AsyncCallbackError):
                self.registry.trigger_callbacks_sync(event, "data")
            assert self.called == []
            return
        expected, called = self.model.trigger(event)
        self.check(self.registry.trigger_callbacks_sync(event, "data"), expected, called)

    async def trigger_awaited(self, event: Any, times: int) -> None:
        for _ in range(times):
            expected, called = self.model.trigger(event)
            self.check(await self.registry.trigger_callbacks(event, "data"), expected, called)

    def check(
        self, result: DispatchResult, expected: list[tuple[str, str | None]], called: list[str]
    ) -> None:
        assert [(outcome.status, outcome.value) for outcome in result] == expected
        # On trio, tasks that start at once start in any order.
        assert sorted(self.called) == sorted(called)
        assert [type(error) for error in result.errors] == [Failure] * len(self.failures)
        assert len(self.failures) == [status for status, _ in expected].count("error")
        self.called.clear()
        self.failures.clear()

    # What always holds.

    @invariant()
    def all_listeners_are_those_of_the_model(self) -> None:
        assert len(self.registry.listeners()) == len(self.model.entries)
        for event in EVENTS:
            expected = self.model.listeners(event)
            there = self.registry.listeners(event)
            assert [(one.event_type, one.priority) for one in there] == [
                (one.event_type, one.priority) for one in expected
            ]
            assert self.registry.has_listeners(event) is bool(expected)
        kinds = {entry.event_type for entry in self.model.entries}
        assert set(self.registry.event_types()) == kinds
        assert len(self.registry.event_types()) == len(kinds)


class TrioRegistryMachine(RegistryMachine):
    backend = "trio"


@pytest.fixture(autouse=True)
def unlogged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("CRITICAL", "callbackkit")


TestOnAsyncio = RegistryMachine.TestCase
TestOnTrio = TrioRegistryMachine.TestCase
