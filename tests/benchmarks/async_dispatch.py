"""Awaited dispatch: one after another, concurrent, and with a timeout on each callback."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import Literal

import anyio

from callbackkit import CallbackRegistry
from tests.benchmarks.callbacks import (
    DATA,
    EVENT,
    Awaited,
    awaitable,
    gathered,
    isolated_await,
    plain,
    suspending,
)
from tests.benchmarks.harness import Case, Measure, Table, awaited, peer

TIMEOUT = 5.0
"""Seconds; no callback here takes that long."""


@contextmanager
def sequential() -> Iterator[Table]:
    """Await ten async callbacks one after another."""
    callbacks = awaitable(10)
    mixed = [*awaitable(5), *plain(5)]
    with asyncio.Runner() as runner, ExitStack() as stack:
        yield Table(
            "awaited trigger by event name, results collected, 10 async callbacks",
            [
                Case(
                    "limit: bare isolated await loop",
                    awaited(runner, isolated_await, callbacks, DATA),
                ),
                Case("callbackkit", _ours(runner, callbacks), 1.6, 1.3),
                Case("callbackkit, 5 async and 5 plain", _ours(runner, mixed)),
                peer("aiosignal (no isolation, no results)", _aiosignal, runner),
                peer("blinker send_async (no isolation)", _blinker, runner),
                Case("asyncio.gather", awaited(runner, gathered, callbacks, DATA)),
                peer("django asend_robust", _django, runner),
                peer("bubus", _bubus, runner, stack),
            ],
        )


@contextmanager
def concurrent(kind: Literal["suspend", "do not suspend"], target: float) -> Iterator[Table]:
    """Run ten async callbacks at the same time."""
    callbacks = suspending(10) if kind == "suspend" else awaitable(10)
    with asyncio.Runner() as runner:
        yield Table(
            f"concurrent mode, 10 async callbacks that {kind}",
            [
                Case("limit: asyncio.gather", awaited(runner, gathered, callbacks, DATA)),
                Case("callbackkit", _ours(runner, callbacks, mode="concurrent"), target),
                Case("callbackkit, one callback", _ours(runner, callbacks[:1], mode="concurrent")),
                peer("pyee AsyncIO emit and wait", _pyee, runner, callbacks),
                Case("asyncio.TaskGroup", awaited(runner, _in_task_group, callbacks, DATA)),
                Case("anyio task group", awaited(runner, _in_anyio_group, callbacks, DATA)),
            ],
        )


@contextmanager
def timeouts() -> Iterator[Table]:
    """Limit the time of each of ten async callbacks that do not suspend."""
    callbacks = awaitable(10)
    with asyncio.Runner() as runner:
        yield Table(
            "a timeout on each of 10 async callbacks that do not suspend",
            [
                Case(
                    "limit: bare isolated await loop, no timeout",
                    awaited(runner, isolated_await, callbacks, DATA),
                ),
                Case(
                    "callbackkit, timeout per callback",
                    _ours(runner, callbacks, timeout_each=TIMEOUT),
                    4.0,
                ),
                Case(
                    "callbackkit, timeout of the registry",
                    _ours(runner, callbacks, timeout=TIMEOUT),
                    4.0,
                ),
                Case("asyncio.timeout each", awaited(runner, _asyncio_timeout, callbacks, DATA)),
                Case("anyio.fail_after each", awaited(runner, _anyio_fail_after, callbacks, DATA)),
            ],
        )


def _ours(
    runner: asyncio.Runner,
    callbacks: Sequence[Callable[[object], object]],
    *,
    mode: Literal["sequential", "concurrent"] = "sequential",
    timeout: float | None = None,
    timeout_each: float | None = None,
) -> Measure:
    registry = CallbackRegistry(mode=mode, timeout=timeout)
    for callback in callbacks:
        registry.register_callback(EVENT, callback, timeout=timeout_each)
    return awaited(runner, registry.trigger_callbacks, EVENT, DATA)


# What a program would write without a dispatcher.


async def _in_task_group(callbacks: Sequence[Awaited], data: object) -> None:
    async def isolated(callback: Awaited) -> None:
        try:
            await callback(data)
        except Exception:  # one that fails must not cancel the rest
            pass

    async with asyncio.TaskGroup() as group:
        for callback in callbacks:
            group.create_task(isolated(callback))


async def _in_anyio_group(callbacks: Sequence[Awaited], data: object) -> None:
    async def isolated(callback: Awaited) -> None:
        try:
            await callback(data)
        except Exception:  # one that fails must not cancel the rest
            pass

    async with anyio.create_task_group() as group:
        for callback in callbacks:
            group.start_soon(isolated, callback)


async def _asyncio_timeout(callbacks: Sequence[Awaited], data: object) -> None:
    for callback in callbacks:
        try:
            async with asyncio.timeout(TIMEOUT):
                await callback(data)
        except Exception:  # isolates, as a dispatcher does
            pass


async def _anyio_fail_after(callbacks: Sequence[Awaited], data: object) -> None:
    for callback in callbacks:
        try:
            with anyio.fail_after(TIMEOUT):
                await callback(data)
        except Exception:  # isolates, as a dispatcher does
            pass


# Peers.


def _aiosignal(runner: asyncio.Runner) -> Measure:
    signal = import_module("aiosignal").Signal(None)
    signal.extend(awaitable(10))
    signal.freeze()
    return awaited(runner, signal.send, DATA)


def _blinker(runner: asyncio.Runner) -> Measure:
    signal = import_module("blinker").Signal()
    for callback in awaitable(10):
        signal.connect(callback, weak=False)
    return awaited(runner, signal.send_async, DATA)


def _django(runner: asyncio.Runner) -> Measure:
    signal = import_module("django.dispatch").Signal()

    def make() -> Callable[..., Awaitable[None]]:
        async def callback(**named: object) -> None:
            pass

        return callback

    for _ in range(10):
        signal.connect(make(), weak=False)

    async def send(data: object) -> None:
        await signal.asend_robust(None, data=data)

    return awaited(runner, send, DATA)


def _bubus(runner: asyncio.Runner, stack: ExitStack) -> Measure:
    bubus = import_module("bubus")
    event_class = type("OrderCreated", (bubus.BaseEvent,), {"__module__": __name__})

    def make(index: int) -> Awaited:
        async def callback(event: object) -> None:
            pass

        callback.__name__ = f"callback_{index}"  # the bus tells handlers apart by name
        return callback

    bus = bubus.EventBus()
    # Its task swallows the cancellation that the runner ends tasks with.
    stack.callback(lambda: runner.run(bus.stop()))
    for index in range(10):
        bus.on(event_class, make(index))

    async def send() -> None:
        await bus.dispatch(event_class())

    return awaited(runner, send)


def _pyee(runner: asyncio.Runner, callbacks: Sequence[Awaited]) -> Measure:
    emitter = import_module("pyee.asyncio").AsyncIOEventEmitter()
    emitter.add_listener("error", lambda error: None)
    for callback in callbacks:
        emitter.add_listener(EVENT, callback)

    async def emit(data: object) -> None:
        emitter.emit(EVENT, data)
        await emitter.wait_for_complete()

    return awaited(runner, emit, DATA)
