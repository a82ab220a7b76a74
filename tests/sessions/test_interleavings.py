"""Whoever reads gets each event once and in order, or a gap, whatever the others do meanwhile.

The store is looked at by nobody who was not rung: a wake that is lost is a reader that hangs.
"""

from __future__ import annotations

import itertools
import random
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from hypothesis import HealthCheck, given, settings, strategies as st

from callbackkit import (
    CallbackManager,
    Event,
    MemoryStore,
    Position,
    Retention,
    Session,
    Subscription,
)
from callbackkit.stores.sqlite import SQLiteStore
from callbackkit.transports.connections import Connections
from callbackkit.transports.sse import serve_sse
from callbackkit.transports.websocket import serve_websocket
from callbackkit.wire.envelope import decode_event, encode_event
from tests.sessions.rig import PATIENCE
from tests.transports.rig import nothing_is_left

# Seconds after which somebody looks for himself: never, in here.
_NEVER = 10_000.0

MakeManagers = Callable[[Retention | None], list[CallbackManager]]


def in_memory(retention: Retention | None) -> list[CallbackManager]:
    """One store, and two who know nothing of each other."""
    store = MemoryStore()
    store.reconcile = _NEVER
    return [CallbackManager(store, retention=retention) for _ in range(2)]


def in_file(directory: Path, retention: Retention | None) -> list[CallbackManager]:
    """One file, opened twice, as by two processes."""
    path = directory / f"{next(_NAMES)}.db"
    stores = [SQLiteStore(path, poll=0.005, synchronous="NORMAL") for _ in range(2)]
    for store in stores:
        store.reconcile = _NEVER
    return [CallbackManager(store, retention=retention) for store in stores]


_NAMES = itertools.count()


@pytest.fixture(params=["memory", "sqlite"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> MakeManagers:
    return in_memory if request.param == "memory" else partial(in_file, tmp_path)


# Readers.


class Reading:
    """A reader, what it got, and what that has to be."""

    def __init__(self, world: World, index: int, subscription: Subscription, pace: int) -> None:
        self.world = world
        self.index = index
        self.subscription = subscription
        self.begins_at = subscription.position
        self.pace = pace
        self.got: list[Event] = []
        self.is_over = False
        self.scope = anyio.CancelScope()

    async def run(self) -> None:
        with self.scope:
            await self.read()
        self.subscription.close()
        self.is_over = True

    async def read(self) -> None:
        async for event in self.subscription:
            self.got.append(event)
            for _ in range(self.pace):
                await checkpoint()

    @property
    def reached(self) -> int:
        return self.got[-1].position.seq if self.got else 0

    def check(self) -> None:
        events = self.got
        if self.begins_at is not None and self.begins_at.epoch == self.world.epoch:
            following = self.begins_at.seq + 1
        elif events:
            following = events[0].position.seq + events[0].is_gap
        for place, event in enumerate(events):
            if event.is_gap:
                assert self.world.may_drop or place == 0
                assert event.position.seq + 1 >= following or place == 0
                following = event.position.seq + 1
                continue
            assert event.position.seq == following, [str(each.position) for each in events]
            known = self.world.known.get(following)
            # One whose emitter was cancelled nobody has heard of.
            assert known is None or encode_event(event) == encode_event(known)
            following += 1


class Served(Reading):
    """One that is served over HTTP."""

    def __init__(self, *arguments: Any, serve: Any) -> None:
        super().__init__(*arguments)
        self.serve = serve

    async def read(self) -> None:
        await self.serve(
            self.subscription,
            anyio.sleep_forever,
            self.send,
            connections=self.world.connections[self.index],
        )

    async def send(self, message: Any) -> None:
        texts = [message["text"]] if "text" in message else self._data(message)
        for text in texts:
            event = decode_event(text)
            if event.event_type != "callbackkit.end":
                self.got.append(event)
        for _ in range(self.pace):
            await checkpoint()

    def _data(self, message: Any) -> list[str]:
        lines = message.get("body", b"").decode().split("\n")
        return [line[6:] for line in lines if line.startswith("data: ")]


async def _hears_nothing(_message: object) -> None:
    pytest.fail("nobody said anything")


_SERVERS = {
    "sse": serve_sse,
    "websocket": partial(serve_websocket, on_message=_hears_nothing),
}


# What may happen.


class World:
    """Two managers at one session, and all who read it."""

    def __init__(self, managers: list[CallbackManager], tasks: Any, *, may_drop: bool) -> None:
        self.managers = managers
        self.tasks = tasks
        self.may_drop = may_drop
        self.connections = [Connections(heartbeat=_NEVER) for _ in managers]
        self.sessions: list[Session] = []
        self.epoch = ""
        self.known: dict[int, Event] = {}
        self.numbers = itertools.count()
        self.readings: list[Reading] = []
        self.emitting = 0

    async def begin(self) -> None:
        first = await self.managers[0].create_session()
        self.sessions = [first, await self.managers[1].get_session(first.id)]
        self.epoch = (await self._record()).epoch

    async def _record(self) -> Any:
        return await self.managers[0].store.get_session(self.sessions[0].id)

    async def emit(self, index: int) -> None:
        event = await self.sessions[index].emit("n", {"n": next(self.numbers)})
        assert event is not None
        self.known[event.position.seq] = event

    async def emits(self, index: int, count: int) -> None:
        """One after the other."""
        for _ in range(count):
            await self.emit(index)

    async def emits_at_once(self, index: int, count: int) -> None:
        async with anyio.create_task_group() as tasks:
            for place in range(count):
                tasks.start_soon(self.emit, (index + place) % 2)

    async def emits_later(self, index: int, count: int) -> None:
        """While the others go on."""
        self.emitting += 1

        async def emits() -> None:
            await self.emits(index, count)
            self.emitting -= 1

        self.tasks.start_soon(emits)

    async def cancels(self, index: int, turns: int) -> None:
        """An emit, in its midst."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.emit, index)
            for _ in range(turns):
                await checkpoint()
            tasks.cancel_scope.cancel()

    async def hands_over(self, index: int, count: int) -> None:
        """In a thread."""

        def emit() -> None:
            for _ in range(count):
                self.sessions[index].emit_soon("n", {"n": next(self.numbers)})

        await anyio.to_thread.run_sync(emit)

    async def clears(self, index: int, back: int) -> None:
        record = await self._record()
        if self.may_drop and record.top >= record.first:
            before = Position(record.epoch, max(record.top - back, record.first))
            await self.sessions[index].clear(before)

    async def joins(self, index: int, place: int, pace: int, kind: str) -> None:
        record = await self._record()
        after: Any = ("now", None, Position("f00", 3))[-place - 1] if place < 0 else None
        if place >= 0:
            after = Position(record.epoch, max(record.top - place, 0))
        subscription = self.sessions[index].subscribe(after)
        if after == "now":
            # So that it is known what is to come.
            await subscription.begin()
        arguments = (self, index, subscription, pace)
        reading = (
            Served(*arguments, serve=_SERVERS[kind]) if kind in _SERVERS else Reading(*arguments)
        )
        self.readings.append(reading)
        self.tasks.start_soon(reading.run)

    async def leaves(self, which: int) -> None:
        if self.readings:
            reading = self.readings.pop(which % len(self.readings))
            reading.scope.cancel()
            while not reading.is_over:
                await checkpoint()
            reading.check()

    async def waits(self, turns: int) -> None:
        for _ in range(turns):
            await checkpoint()

    async def meets(self) -> None:
        """Everybody has got everything so far: what hangs, hangs here."""
        top = (await self._record()).top
        with anyio.fail_after(PATIENCE):
            for reading in self.readings:
                begun = reading.begins_at
                while reading.reached < top and (
                    begun is None or begun.epoch != self.epoch or begun.seq < top
                ):
                    await _a_moment()
        for reading in self.readings:
            reading.check()

    async def end(self) -> None:
        while self.emitting:
            await checkpoint()
        for manager in self.managers:
            await manager._outbox.flush()
        await self.meets()
        await self.sessions[1].end()
        with anyio.fail_after(PATIENCE):
            while not all(each.is_over for each in self.readings):
                await _a_moment()
        for reading in self.readings:
            reading.check()
        for manager, connections in zip(self.managers, self.connections, strict=True):
            assert len(connections) == 0
            assert manager._readers._open == {}
            assert manager._readers.tails == {}


@asynccontextmanager
async def a_world(managers: list[CallbackManager], *, may_drop: bool) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        for manager in managers:
            await stack.enter_async_context(manager)
        async with anyio.create_task_group() as tasks:
            world = World(managers, tasks, may_drop=may_drop)
            await world.begin()
            yield world
            await world.end()
    for manager, connections in zip(managers, world.connections, strict=True):
        nothing_is_left(manager, connections)


async def _a_moment() -> None:
    """Let threads run, too, which a task that only makes way keeps from it."""
    await anyio.sleep(0.001)


_who = st.integers(0, 1)
_steps = st.one_of(
    st.tuples(st.just("emits"), _who, st.integers(1, 40)),
    st.tuples(st.just("emits_at_once"), _who, st.integers(2, 8)),
    st.tuples(st.just("emits_later"), _who, st.integers(1, 8)),
    st.tuples(st.just("cancels"), _who, st.integers(0, 6)),
    st.tuples(st.just("hands_over"), _who, st.integers(1, 20)),
    st.tuples(st.just("clears"), _who, st.integers(0, 30)),
    st.tuples(
        st.just("joins"),
        _who,
        st.integers(-3, 60),
        st.sampled_from([0, 0, 1, 20]),
        st.sampled_from(["iteration", "sse", "websocket"]),
    ),
    st.tuples(st.just("leaves"), st.integers(0, 10)),
    st.tuples(st.just("waits"), st.integers(1, 10)),
    st.tuples(st.just("meets")),
)


async def _play(
    managers: list[CallbackManager], steps: list[tuple[Any, ...]], *, may_drop: bool
) -> None:
    async with a_world(managers, may_drop=may_drop) as world:
        for name, *arguments in steps:
            await getattr(world, name)(*arguments)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@settings(suppress_health_check=list(HealthCheck))
@given(
    steps=st.lists(_steps, min_size=3, max_size=25),
    max_events=st.sampled_from([None, None, 10, 50]),
    clears=st.booleans(),
)
def test_in_any_order_everybody_gets_everything(
    make: MakeManagers, backend: str, steps: Any, max_events: int | None, clears: bool
) -> None:
    retention = None if max_events is None else Retention(max_events=max_events)
    may_drop = clears or max_events is not None
    anyio.run(partial(_play, make(retention), steps, may_drop=may_drop), backend=backend)


@pytest.mark.torture
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@settings(suppress_health_check=list(HealthCheck), max_examples=400)
@given(
    steps=st.lists(_steps, min_size=10, max_size=80),
    max_events=st.sampled_from([None, None, 10, 50]),
    clears=st.booleans(),
)
@pytest.mark.timeout(1200)
def test_in_any_order_everybody_gets_everything_for_long(
    make: MakeManagers, backend: str, steps: Any, max_events: int | None, clears: bool
) -> None:
    retention = None if max_events is None else Retention(max_events=max_events)
    may_drop = clears or max_events is not None
    anyio.run(partial(_play, make(retention), steps, may_drop=may_drop), backend=backend)


# Threads.


class Crowd:
    """Each reader has an event loop of its own, in a thread of its own; so have the emitters."""

    def __init__(
        self, session: Session, seed: int, emitters: int, readers: int, count: int
    ) -> None:
        self.session = session
        self.seed = seed
        self.count = count
        self.total = emitters * count
        self.failures: list[BaseException] = []
        self.began = threading.Barrier(emitters + readers)
        self.emitters = [self._thread(self.emit, place) for place in range(emitters)]
        self.readers = [self._thread(self.read, place) for place in range(readers)]

    def _thread(self, function: Callable[[int], Any], place: int) -> threading.Thread:
        backend = ["asyncio", "trio"][place % 2]

        def run() -> None:
            try:
                self.began.wait(PATIENCE)
                anyio.run(function, place, backend=backend)
            except BaseException as exc:
                self.failures.append(exc)

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    async def emit(self, place: int) -> None:
        for number in range(self.count):
            if place % 2:
                self.session.emit_soon("n", {"n": number})
            else:
                await self.session.emit("n", {"n": number})

    async def read(self, place: int) -> None:
        """Leave and come back now and then."""
        chance = random.Random(f"{self.seed}/{place}")
        after, seen = None, 0
        with anyio.fail_after(PATIENCE * 4):
            while seen < self.total:
                events = self.session.subscribe(after)
                for _ in range(min(chance.randint(1, 3 * self.count), self.total - seen)):
                    event = await anext(events)
                    seen += 1
                    assert event.position.seq == seen
                    if chance.random() < 0.1:
                        await checkpoint()
                after = events.position
                events.close()
            last = self.session.subscribe(after)
            assert [event async for event in last] == []


async def _in_threads(manager: CallbackManager, **figures: int) -> None:
    async with manager:
        crowd = Crowd(await manager.create_session(), **figures)
        for thread in crowd.emitters:
            await anyio.to_thread.run_sync(thread.join)
        await crowd.session.end()
        for thread in crowd.readers:
            await anyio.to_thread.run_sync(thread.join)
    assert crowd.failures == []
    nothing_is_left(manager, Connections())


@pytest.fixture
def switching_fast() -> Any:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("switching_fast")
@pytest.mark.parametrize("seed", range(3))
def test_threads_that_emit_and_read_lose_nothing(make: MakeManagers, seed: int) -> None:
    figures = {"seed": seed, "emitters": 3, "readers": 4, "count": 60}
    anyio.run(partial(_in_threads, make(None)[0], **figures))


@pytest.mark.torture
@pytest.mark.timeout(1200)
@pytest.mark.usefixtures("switching_fast")
@pytest.mark.parametrize("seed", range(40))
def test_threads_that_emit_and_read_lose_nothing_for_long(make: MakeManagers, seed: int) -> None:
    figures = {"seed": seed, "emitters": 4, "readers": 6, "count": 300}
    anyio.run(partial(_in_threads, make(None)[0], **figures))
