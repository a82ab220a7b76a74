"""Synchronous dispatch by event name, and with one callback that raises."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

from callbackkit import CallbackRegistry
from tests.benchmarks.callbacks import DATA, EVENT, fail, isolated, isolated_telling, named, plain
from tests.benchmarks.harness import Case, Measure, Table, peer, timed


@contextmanager
def by_name(count: int, *, target: float, stretch: float | None = None) -> Iterator[Table]:
    """Trigger one event type synchronously, with that many callbacks, results collected."""
    registry = CallbackRegistry()
    callbacks = plain(count)
    for callback in callbacks:
        registry.register_callback(EVENT, callback)
    trigger = registry.trigger_callbacks_sync
    yield Table(
        f"synchronous trigger by event name, results collected, {count} callbacks",
        [
            Case(
                "limit: bare isolated loop", timed("run(c, d)", run=isolated, c=callbacks, d=DATA)
            ),
            Case(
                "callbackkit",
                timed("trigger(e, d)", trigger=trigger, e=EVENT, d=DATA),
                target,
                stretch,
            ),
            Case(
                "callbackkit, every outcome looked at",
                timed("[o.value for o in trigger(e, d)]", trigger=trigger, e=EVENT, d=DATA),
            ),
            peer("Events (no isolation, no results)", _events, count),
            peer("pyee (no isolation, no results)", _pyee, count),
            peer("psygnal (compiled; no isolation, no results)", _psygnal, count),
            peer("pluggy (no isolation)", _pluggy, count),
            peer("django send_robust", _django, count),
            peer("blinker (no isolation)", _blinker, count),
        ],
    )


@contextmanager
def one_raises() -> Iterator[Table]:
    """One of ten callbacks raises; an error callback hears of it, nothing is logged."""
    callbacks = plain(10)
    callbacks[4] = fail

    def on_error(error: Exception, context: object) -> None:
        pass

    registry = CallbackRegistry()
    registry.add_error_callback(on_error)
    for callback in callbacks:
        registry.register_callback(EVENT, callback)
    limit = timed("run(c, d, e)", run=isolated_telling, c=callbacks, d=DATA, e=on_error)
    trigger = registry.trigger_callbacks_sync
    with _silenced("callbackkit", "django.dispatch"):
        yield Table(
            "one of 10 callbacks raises, with an error callback, logging off",
            [
                Case("limit: bare isolated loop that tells", limit),
                Case("callbackkit", timed("t(e, d)", t=trigger, e=EVENT, d=DATA), 2.0),
                peer("pyee AsyncIO, error listener", _pyee_failing),
                peer("django send_robust", _django_failing),
            ],
        )


@contextmanager
def _silenced(*loggers: str) -> Iterator[None]:
    """Let these loggers log nothing."""
    before = [(logger := logging.getLogger(name), logger.level) for name in loggers]
    for logger, _ in before:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in before:
            logger.setLevel(level)


# Peers.


def _events(count: int) -> Measure:
    events = import_module("events").Events()
    for callback in plain(count):
        events.order_created += callback
    if not count:
        events.order_created.targets.clear()
    return timed("events.order_created(d)", events=events, d=DATA)


def _pyee(count: int) -> Measure:
    emitter = import_module("pyee").EventEmitter()
    for callback in plain(count):
        emitter.add_listener(EVENT, callback)
    return timed("emit(e, d)", emit=emitter.emit, e=EVENT, d=DATA)


def _psygnal(count: int) -> Measure:
    signal = import_module("psygnal").SignalInstance((object,))
    for callback in plain(count):
        signal.connect(callback)
    return timed("emit(d)", emit=signal.emit, d=DATA)


def _pluggy(count: int) -> Measure:
    pluggy = import_module("pluggy")

    class Specification:
        @pluggy.HookspecMarker("shop")
        def order_created(self, data: object) -> None:
            pass

    class Plugin:
        @pluggy.HookimplMarker("shop")
        def order_created(self, data: object) -> None:
            pass

    manager = pluggy.PluginManager("shop")
    manager.add_hookspecs(Specification)
    for _ in range(count):
        manager.register(Plugin())
    return timed("hook.order_created(data=d)", hook=manager.hook, d=DATA)


def _django(count: int) -> Measure:
    signal = import_module("django.dispatch").Signal()
    for callback in named(count):
        signal.connect(callback, weak=False)
    return timed("send(None, data=d)", send=signal.send_robust, d=DATA)


def _blinker(count: int) -> Measure:
    signal = import_module("blinker").Namespace().signal(EVENT)
    for callback in plain(count):
        signal.connect(callback, weak=False)
    return timed("send(d)", send=signal.send, d=DATA)


def _pyee_failing() -> Measure:
    emitter = import_module("pyee.asyncio").AsyncIOEventEmitter()
    emitter.add_listener("error", lambda error: None)
    for callback in [*plain(9), fail]:
        emitter.add_listener(EVENT, callback)
    return timed("emit(e, d)", emit=emitter.emit, e=EVENT, d=DATA)


def _django_failing() -> Measure:
    signal = import_module("django.dispatch").Signal()
    for callback in [*named(9), fail]:
        signal.connect(callback, weak=False)
    return timed("send(None, data=d)", send=signal.send_robust, d=DATA)
