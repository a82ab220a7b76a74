"""The table of who listens to what, and who is to be called for an event."""

from __future__ import annotations

import itertools
import re
import threading
from collections import deque
from collections.abc import Callable, Iterator
from types import FunctionType, MethodType
from typing import Any, cast

from callbackkit.dispatch.callables import is_async_callable, is_coroutine_function, same_callable
from callbackkit.dispatch.dispatcher import Dispatcher
from callbackkit.dispatch.event_types import (
    EventName,
    compile_pattern,
    is_pattern,
    matches,
    pattern_key,
    trigger_key,
)
from callbackkit.dispatch.failures import refuse_awaitable
from callbackkit.dispatch.outcome import SKIPPED
from callbackkit.dispatch.registration import PLAIN, Bound, Entry, Options, Registration, inactive
from callbackkit.dispatch.threads import WorkerThreads
from callbackkit.events import EventKey

__all__ = ["NOBODY", "AsyncEntries", "Listeners", "Plan"]

# Plans kept beyond one for each event type somebody registered for: event types may be made
# up by whoever triggers, and there is no end of them.
_EXTRA_PLANS = 1024


class AsyncEntries(tuple[Entry, ...]):
    """Entries all known to be async: a loop need not ask what they return."""

    __slots__ = ()


# Stands for an event nobody listens to.
NOBODY: tuple[Entry, ...] = ()

Bucket = dict[Any, "Registration | list[Registration]"]
TapFunction = Callable[[EventName, Any], object]


class Plan:
    """Who is to be called for one event type; never changes once made."""

    __slots__ = ("entries", "event", "first_async", "plain", "plain_sync", "sync_entries", "taps")

    def __init__(
        self,
        event: EventName,
        entries: tuple[Entry, ...],
        sync_entries: tuple[Entry, ...],
        first_async: Registration | None,
        taps: tuple[TapFunction, ...],
        *,
        is_plain: bool,
    ) -> None:
        self.event: EventName = event
        self.entries: tuple[Entry, ...] = entries
        # The same, but what would be awaited is waited for or left out.
        self.sync_entries: tuple[Entry, ...] = sync_entries
        # The first one known to be async: a synchronous trigger refuses because of it.
        self.first_async: Registration | None = first_async
        self.taps: tuple[TapFunction, ...] = taps
        # What to call where nothing is to be done but that: no tasks, times, timeouts or taps.
        # None where there is more to do.
        self.plain: tuple[Entry, ...] | None = None
        self.plain_sync: tuple[Entry, ...] | None = None
        if is_plain and not taps:
            if all(is_coroutine_function(entry.callback) for entry in entries):
                entries = AsyncEntries(entries)
            if all(entry.timeout is None for entry in entries):
                self.plain = entries or NOBODY
            if first_async is None:
                self.plain_sync = sync_entries or NOBODY


class Listeners:
    """Registrations, mutes and taps, changed under a lock; reading a plan takes none.

    No callback is called in here, and no user's ``__eq__`` or ``__hash__`` while the lock is
    held. The lock is re-entrant because garbage collection may run anybody's ``__del__`` at any
    time, and that may register or cancel.

    Attributes:
        plans: The plans made since the last change, by event type.
    """

    def __init__(self, dispatcher: Dispatcher) -> None:
        self.plans: dict[Any, Plan] = {}
        # Counts changes: garbage collection may make one while a plan is being made.
        self._changes = 0
        self._dispatcher = dispatcher
        self._timeout = dispatcher.timeout
        self._lock = threading.RLock()
        self._acquire, self._release = self._lock.acquire, self._lock.release
        self._sequence = itertools.count()
        self._buckets: dict[EventName, Bucket] = {}
        self._patterns: dict[str, re.Pattern[str]] = {}
        self._muted: dict[EventName, int] = {}
        self._taps: dict[int, tuple[EventName | None, TapFunction]] = {}
        # Those to be taken out that garbage collection brought: weakly held ones whose object
        # died, and ones cancelled by somebody's __del__ in the middle of another change.
        self._dead: deque[Registration] = deque()
        self._is_changing = False
        self._weak_count = 0
        self._has_aliases = False

    # Changing.

    def add(
        self,
        event: EventName,
        target: Any,
        call: Callable[..., Any],
        priority: float,
        options: Options,
    ) -> Registration:
        """Register a callback, held as *target* and called through *call*."""
        # Written for speed, as is the way out (tests/benchmarks, "register and unregister"): "with"
        # on a lock costs twice what acquire and release cost.
        self._acquire()
        was_changing, self._is_changing = self._is_changing, True
        try:
            timeout = self._timeout if options.timeout is None else options.timeout
            registration = Registration(
                self, event, target, call, priority, next(self._sequence), options, timeout
            )
            bucket = self._buckets.get(event)
            if bucket is None:
                bucket = self._open(event)
            key = target if type(target) is FunctionType else _bucket_key(registration)
            there = bucket.setdefault(key, registration)
            if there is not registration:
                bucket[key] = [*(there if isinstance(there, list) else [there]), registration]
            if options is not PLAIN:
                self._weak_count += options.weak
            self._changes += 1
            if self.plans:
                self._forget_plans(event)
        finally:
            self._is_changing = was_changing
            self._release()
        return registration

    def _open(self, event: EventName) -> Bucket:
        bucket: Bucket = {}
        self._buckets[event] = bucket
        if isinstance(event, str) and is_pattern(event):
            self._patterns[event] = compile_pattern(event)
        return bucket

    def cancel(self, registration: Registration) -> bool:
        """Take a registration out; ``False`` if it was out already."""
        self._acquire()
        if self._is_changing:
            return self._cancel_amid(registration)
        try:
            if self._dead:
                self._bury_dead()
            self._is_changing = True
            if registration.is_cancelled:
                return False
            self._remove(registration)
        finally:
            self._is_changing = False
            self._release()
        return True

    def _cancel_amid(self, registration: Registration) -> bool:
        """Cancel while this thread is in the middle of a change: some ``__del__`` does that."""
        try:
            if registration.is_cancelled or registration in self._dead:
                return False
            self.died(registration)
        finally:
            self._release()
        return True

    def cancel_first(self, event_type: Any, callback: Any) -> bool:
        """Take out the first registration of *callback* for *event_type*."""
        is_name = type(event_type) is str and "*" not in event_type
        event: EventName = event_type if is_name else pattern_key(event_type)
        self._acquire()
        was_changing = self._is_changing
        try:
            if self._dead:
                self._bury_dead()
            self._is_changing = True
            bucket = self._buckets.get(event)
            if bucket is None:
                return False
            is_function = type(callback) is FunctionType
            key = callback if is_function else _key_of(callback)
            there = bucket.get(key)
            is_sure = not self._weak_count and not was_changing
            if there is not None and is_sure and (is_function or _is_itself(callback)):
                first = there[0] if isinstance(there, list) else there
                self._take_out(first, bucket, key)
                return True
            candidates = sorted(_flat(bucket), key=_by_sequence)
        finally:
            self._is_changing = was_changing
            self._release()
        # Not under the lock: comparing may run anybody's __eq__.
        return any(same_callable(one.callback, callback) and self.cancel(one) for one in candidates)

    def pause(self, registration: Registration) -> None:
        """Keep a registration from being called."""
        with self._lock:
            if registration.active:
                registration.paused_call = registration.call
                registration.call = inactive
                self._changes += 1
                self._forget_plans(registration.event_type)

    def resume(self, registration: Registration) -> None:
        """Undo :meth:`pause`."""
        with self._lock:
            if registration.paused_call is not None:
                registration.call = registration.paused_call
                registration.paused_call = None
                self._changes += 1
                self._forget_plans(registration.event_type)

    def clear(self) -> None:
        """Cancel everything."""
        with self._lock:
            for registration in self.registrations():
                self.cancel(registration)

    def mute(self, event: EventName, count: int) -> None:
        """Count mutes of an event type, pattern or class up or down."""
        with self._lock:
            self._muted[event] = self._muted.get(event, 0) + count
            if not self._muted[event]:
                del self._muted[event]
            self._forget_all_plans()

    def add_tap(self, event: EventName | None, tap: TapFunction) -> int:
        """Have *tap* see events before callbacks do, all of them if *event* is ``None``."""
        with self._lock:
            number = next(self._sequence)
            self._taps[number] = (event, tap)
            self._forget_all_plans()
        return number

    def remove_tap(self, number: int) -> None:
        """Take a tap away; one that is gone already does no harm."""
        with self._lock:
            self._taps.pop(number, None)
            self._forget_all_plans()

    def _remove(self, registration: Registration) -> None:
        target = registration.target
        key = target if type(target) is FunctionType else _bucket_key(registration)
        self._take_out(registration, self._buckets[registration.event_type], key)

    def _take_out(self, registration: Registration, bucket: Bucket, key: Any) -> None:
        registration.call = inactive
        registration.paused_call = None
        registration.is_cancelled = True
        event = registration.event_type
        there = bucket.pop(key)
        if type(there) is list and len(there) > 1:
            bucket[key] = [other for other in there if other is not registration]
        elif not bucket:
            del self._buckets[event]
            if self._patterns:
                self._patterns.pop(cast("str", event), None)
        if registration.options is not PLAIN:
            self._weak_count -= registration.options.weak
        self._changes += 1
        if self.plans:
            self._forget_plans(event)

    def _forget_plans(self, event: EventName) -> None:
        """Forget the plans that a change to *event* may touch."""
        if self._has_aliases or not isinstance(event, str) or is_pattern(event):
            self._forget_all_plans()
            self._has_aliases = False
        else:
            self.plans.pop(event, None)

    def _forget_all_plans(self) -> None:
        self._changes += 1
        self.plans.clear()

    # Weak registrations.

    def died(self, registration: Registration) -> None:
        """Note that the object of a weak registration is gone; called by garbage collection."""
        registration.call = inactive
        registration.paused_call = None
        self._dead.append(registration)
        self.plans.clear()

    def _bury_dead(self) -> None:
        if self._is_changing:
            return
        self._is_changing = True
        while self._dead:
            registration = self._dead.popleft()
            if not registration.is_cancelled:
                self._remove(registration)
        self._is_changing = False

    # Reading.

    def plan(self, event_type: object) -> Plan:
        """Return who is to be called for an event type, which may be an enum member or key."""
        try:
            plan = self.plans.get(event_type)
        except TypeError:
            # Unhashable: trigger_key() says so in our words.
            plan = None
        return self._make(event_type) if plan is None else plan

    def _make(self, event_type: object) -> Plan:
        event = trigger_key(event_type)
        with self._lock:
            plan = self.plans.get(event)
            if plan is None:
                if len(self.plans) >= len(self._buckets) + _EXTRA_PLANS:
                    self._forget_all_plans()
                changes = self._changes
                plan = self._make_plan(event)
                if changes != self._changes:
                    # Good for this trigger, which began before the change.
                    return plan
                self.plans[event] = plan
            if type(event_type) is EventKey:
                self.plans[event_type] = plan
                self._has_aliases = True
            if self._dead:
                # One that died meanwhile may stand in there: see died().
                self.plans.clear()
        return plan

    def matching(self, event_type: object) -> list[Registration]:
        """Return the active registrations for an event type, in the order they are called.

        For a pattern, those registered for this very pattern.
        """
        event = pattern_key(event_type)
        with self._lock:
            self._bury_dead()
            return self._matching(event)

    def registrations(self) -> list[Registration]:
        """Return all registrations, paused ones too, in order of registration."""
        with self._lock:
            self._bury_dead()
            found = [one for bucket in list(self._buckets.values()) for one in _flat(bucket)]
        return sorted(found, key=_by_sequence)

    def event_types(self) -> list[EventName]:
        """Return what callbacks are registered for: names, patterns and classes."""
        with self._lock:
            self._bury_dead()
            return list(self._buckets)

    def _matching(self, event: EventName) -> list[Registration]:
        buckets = [self._buckets[name] for name in self._names_for(event) if name in self._buckets]
        found = [one for bucket in buckets for one in _flat(bucket) if one.active]
        found.sort(key=_by_priority)
        return found

    def _names_for(self, event: EventName) -> Iterator[EventName]:
        if not isinstance(event, str):
            yield from event.__mro__
            return
        yield event
        if is_pattern(event):
            return
        for name, pattern in list(self._patterns.items()):
            if pattern.fullmatch(event):
                yield name

    def _make_plan(self, event: EventName) -> Plan:
        self._bury_dead()
        if any(matches(muted, event) for muted in list(self._muted)):
            return Plan(event, (), (), None, (), is_plain=self._dispatcher.is_plain)
        found = self._matching(event)
        entries = tuple(self._entry(one, event, is_sync=False) for one in found)
        sync_entries = entries
        if any(one.options.thread for one in found):
            sync_entries = tuple(self._entry(one, event, is_sync=True) for one in found)
        first_async = next((one for one in found if is_async_callable(one.callback)), None)
        taps = tuple(
            tap for name, tap in list(self._taps.values()) if name is None or matches(name, event)
        )
        is_plain = self._dispatcher.is_plain
        return Plan(event, entries, sync_entries, first_async, taps, is_plain=is_plain)

    def _entry(self, registration: Registration, event: EventName, *, is_sync: bool) -> Entry:
        """Return what a dispatch of *event* calls: most registrations as they are."""
        options = registration.options
        if not (options.once or options.with_event or options.thread or options.when is not None):
            return registration
        # The claim of a single call makes the registration inactive before the call.
        entry: Entry = Bound(registration.call, registration) if options.once else registration
        if options.with_event:
            entry = _with_event(entry, event)
        if options.thread:
            entry = _in_thread(self._dispatcher.threads, entry, is_sync=is_sync)
        return self._gated(registration, entry)

    def _gated(self, registration: Registration, entry: Entry) -> Bound:
        """Return *entry* made to ask, at its turn, whether it is to be called."""
        when, once = registration.options.when, registration.options.once

        def gated(data: Any) -> Any:
            if registration.call is inactive:
                return SKIPPED
            if when is not None and not _decide(when, data):
                return SKIPPED
            if once and not self.cancel(registration):
                return SKIPPED
            return entry.call(data)

        # A thread keeps the time itself, to abandon it.
        timeout = None if registration.options.thread else registration.timeout
        return Bound(gated, registration, timeout=timeout)


def _decide(when: Callable[[Any], Any], data: Any) -> bool:
    wanted = when(data)
    refuse_awaitable(when, wanted)
    return bool(wanted)


def _with_event(entry: Entry, event: EventName) -> Bound:
    def call(data: Any) -> Any:
        return entry.call(event, data)

    return Bound(call, entry.registration)


def _in_thread(threads: WorkerThreads, entry: Entry, *, is_sync: bool) -> Bound:
    run, registration = threads.run_sync if is_sync else threads.run, entry.registration
    timeout = None if registration is None else registration.timeout

    def call(data: Any) -> Any:
        return run(entry, data, timeout)

    return Bound(call, registration)


# Where in its bucket a registration stands. Functions and their methods are told apart by
# themselves: hashing and comparing them runs nobody's code. Other callables go by id, which is
# safe as long as the bucket holds them, and weak ones by their registration.


def _is_hashed(callback: object) -> bool:
    if type(callback) is FunctionType:
        return True
    return type(callback) is MethodType and type(callback.__func__) is FunctionType


def _is_itself(callback: Any) -> bool:
    """Tell whether nothing else can say it is equal."""
    equals: Any = type(callback).__eq__
    return _is_hashed(callback) or equals is object.__eq__


def _key_of(callback: Any) -> Any:
    return callback if _is_hashed(callback) else id(callback)


def _bucket_key(registration: Registration) -> Any:
    return registration if registration.options.weak else _key_of(registration.callback)


def _flat(bucket: Bucket) -> list[Registration]:
    flat: list[Registration] = []
    for there in list(bucket.values()):
        flat.extend(there if isinstance(there, list) else [there])
    return flat


def _by_sequence(registration: Registration) -> int:
    return registration.sequence


def _by_priority(registration: Registration) -> tuple[float, int]:
    return (-registration.priority, registration.sequence)
