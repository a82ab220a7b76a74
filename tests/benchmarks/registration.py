"""What a registration costs: bytes each, and the time to register and unregister."""

import gc
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from itertools import cycle
from typing import Any

from callbackkit import CallbackRegistry
from tests.benchmarks.callbacks import DATA, EVENT, Plain, plain
from tests.benchmarks.harness import Case, Measure, Table, peer, timed

SLOW_LIMIT = 3_000
"""Most callbacks for peers whose registration gets slower with each callback there is."""


@contextmanager
def memory(registered: int) -> Iterator[Table]:
    """Count the bytes that are kept per registered callback, the callbacks themselves left out."""
    callbacks = plain(registered)
    yield Table(
        f"bookkeeping per registered callback at {registered} on one event type, after a trigger",
        [
            Case("callbackkit", _bytes(_register_ours, callbacks), 300),
            Case("callbackkit, registrations kept", _bytes(_register_and_keep, callbacks)),
            peer("pyee", _peer_bytes, _pyee, callbacks),
            peer("blinker", _peer_bytes, _blinker, callbacks),
            peer("blinker, weak", _peer_bytes, _blinker_weak, callbacks),
            peer(f"psygnal at {SLOW_LIMIT}", _peer_bytes, _psygnal, callbacks[:SLOW_LIMIT]),
            peer(f"django at {SLOW_LIMIT}", _peer_bytes, _django, callbacks[:SLOW_LIMIT]),
        ],
        unit="bytes",
        number=1,
    )


@contextmanager
def churn(registered: int, event_types: int = 1) -> Iterator[Table]:
    """Register a callback and unregister it again, with others registered already."""
    others = plain(registered)
    names = [EVENT, *(f"order.{number}" for number in range(1, event_types))]
    registry = CallbackRegistry()
    _fill(registry.register_callback, names, others)
    ours = {"register": registry.register_callback, "unregister": registry.unregister_callback}
    new = plain(1)[0]
    there = f"{registered} callbacks there" if registered else "an empty registry"
    spread = f" on {event_types} event types" if event_types > 1 else ""
    yield Table(
        f"register and unregister, {there}{spread}",
        [
            peer("limit: pyee", _pyee_churn, names, others),
            Case(
                "callbackkit, unregister_callback",
                timed("register(e, c); unregister(e, c)", **ours, e=EVENT, c=new),
                1.2,
            ),
            Case(
                "callbackkit, cancel", timed("register(e, c).cancel()", **ours, e=EVENT, c=new), 1.2
            ),
            peer("blinker", _blinker_churn, names, others),
            *(
                []
                if registered
                else [peer("psygnal", _psygnal_churn), peer("django", _django_churn)]
            ),
        ],
    )


@contextmanager
def rotation(registered: int) -> Iterator[Table]:
    """Unregister the callback that has been there longest and register it again."""
    callbacks = plain(registered)
    registry = CallbackRegistry()
    _fill(registry.register_callback, [EVENT], callbacks)
    statement = "c = next(oldest); unregister(e, c); register(e, c)"
    yield Table(
        f"unregister the oldest of {registered} callbacks and register it again",
        [
            peer("limit: pyee", _pyee_rotation, callbacks, statement),
            Case(
                "callbackkit",
                timed(
                    statement,
                    oldest=cycle(callbacks),
                    register=registry.register_callback,
                    unregister=registry.unregister_callback,
                    e=EVENT,
                ),
                1.2,
            ),
        ],
    )


def _fill(
    register: Callable[[str, Plain], object], names: Sequence[str], callbacks: Sequence[Plain]
) -> None:
    """Register the callbacks on the event types in turn."""
    for name, callback in zip(cycle(names), callbacks, strict=False):
        register(name, callback)


# Bytes.

Kept = object
"""Whatever keeps the registered callbacks alive."""


def _bytes(register: Callable[[Sequence[Plain]], Kept], callbacks: Sequence[Plain]) -> Measure:
    """Measure what registering these callbacks keeps, per callback."""

    def measure(number: int) -> float:
        register(callbacks[:1])  # what is made once per process is not counted
        gc.collect()
        tracemalloc.start()
        try:
            kept = register(callbacks)
            gc.collect()
            size = tracemalloc.get_traced_memory()[0]
            del kept
        finally:
            tracemalloc.stop()
        return number * size / len(callbacks)

    return measure


def _register_ours(callbacks: Sequence[Plain]) -> Kept:
    registry = CallbackRegistry()
    for callback in callbacks:
        registry.register_callback(EVENT, callback)
    registry.trigger_callbacks_sync(EVENT, DATA)
    return registry


def _register_and_keep(callbacks: Sequence[Plain]) -> Kept:
    registry = CallbackRegistry()
    kept = [registry.register_callback(EVENT, callback) for callback in callbacks]
    registry.trigger_callbacks_sync(EVENT, DATA)
    return registry, kept


def _peer_bytes(register: Callable[[Sequence[Plain]], Kept], callbacks: Sequence[Plain]) -> Measure:
    register([])  # tells at once whether the package is there
    return _bytes(register, callbacks)


def _pyee(callbacks: Sequence[Plain]) -> Kept:
    emitter = import_module("pyee").EventEmitter()
    for callback in callbacks:
        emitter.add_listener(EVENT, callback)
    emitter.emit(EVENT, DATA)
    return emitter


def _blinker(callbacks: Sequence[Plain], weak: bool = False) -> Kept:
    signal = import_module("blinker").Signal()
    for callback in callbacks:
        signal.connect(callback, weak=weak)
    signal.send(DATA)
    return signal


def _blinker_weak(callbacks: Sequence[Plain]) -> Kept:
    return _blinker(callbacks, weak=True)


def _psygnal(callbacks: Sequence[Plain]) -> Kept:
    signal = import_module("psygnal").SignalInstance((object,))
    for callback in callbacks:
        signal.connect(callback)
    signal.emit(DATA)
    return signal


def _django(callbacks: Sequence[Plain]) -> Kept:
    signal = import_module("django.dispatch").Signal()
    for callback in callbacks:
        signal.connect(callback, weak=False)
    return signal


# Time.


def _pyee_churn(names: Sequence[str], others: Sequence[Plain]) -> Measure:
    emitter = import_module("pyee").EventEmitter()
    _fill(emitter.add_listener, names, others)
    return timed(
        "add(e, c); remove(e, c)",
        add=emitter.add_listener,
        remove=emitter.remove_listener,
        e=EVENT,
        c=plain(1)[0],
    )


def _pyee_rotation(callbacks: Sequence[Plain], statement: str) -> Measure:
    emitter = import_module("pyee").EventEmitter()
    _fill(emitter.add_listener, [EVENT], callbacks)
    return timed(
        statement,
        oldest=cycle(callbacks),
        register=emitter.add_listener,
        unregister=emitter.remove_listener,
        e=EVENT,
    )


def _blinker_churn(names: Sequence[str], others: Sequence[Plain]) -> Measure:
    namespace = import_module("blinker").Namespace()

    def register(name: str, callback: Plain) -> None:
        namespace.signal(name).connect(callback, weak=False)

    _fill(register, names, others)
    signal = namespace.signal(EVENT)
    return timed("connect(c, weak=False); disconnect(c)", **_both(signal), c=plain(1)[0])


def _psygnal_churn() -> Measure:
    signal = import_module("psygnal").SignalInstance((object,))
    return timed("connect(c); disconnect(c)", **_both(signal), c=plain(1)[0])


def _django_churn() -> Measure:
    signal = import_module("django.dispatch").Signal()
    return timed("connect(c, weak=False); disconnect(c)", **_both(signal), c=plain(1)[0])


def _both(signal: Any) -> dict[str, object]:
    return {"connect": signal.connect, "disconnect": signal.disconnect}
