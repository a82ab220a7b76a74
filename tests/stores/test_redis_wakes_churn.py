"""What is listened to while those who wait come and go."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from functools import partial

import pytest

from callbackkit.stores.redis_wakes import Wakes


class Connection:
    """What is listened to, and each command that changed it; leaving can be held up."""

    def __init__(self) -> None:
        self.channels: set[str] = set()
        self.left: list[tuple[str, ...]] = []
        self.changed = asyncio.Event()
        self.may_leave = asyncio.Event()
        self.may_leave.set()

    @asynccontextmanager
    async def connect(self) -> AsyncGenerator["Connection"]:
        yield self

    async def subscribe(self, *channels: str) -> None:
        self.channels |= set(channels)
        self.changed.set()

    async def unsubscribe(self, *channels: str) -> None:
        self.left.append(channels)
        self.changed.set()
        await self.may_leave.wait()
        self.channels -= set(channels)
        self.changed.set()

    async def messages(self) -> AsyncIterator[str]:
        await asyncio.Event().wait()
        yield ""

    async def until(self, is_true: Callable[[], object]) -> None:
        async with asyncio.timeout(10):
            while not is_true():
                self.changed.clear()
                await self.changed.wait()

    def has_left(self, channel: str) -> bool:
        return any(channel in each for each in self.left)


@pytest.fixture(params=["asyncio"], scope="module")
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """It listens in an event loop of asyncio, whatever rings it."""
    backend: str = request.param
    return backend


@pytest.fixture
async def connection() -> Connection:
    return Connection()


@pytest.fixture
async def wakes(connection: Connection) -> AsyncIterator[Wakes]:
    wakes = Wakes(lambda topic: [f"w:{topic}"], rest=0.05)
    wakes.listen_by(wakes.look)
    listening = asyncio.ensure_future(wakes.listen(connection.connect))
    yield wakes
    wakes.listen_by(None)
    listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)


async def visit(wakes: Wakes, topic: str) -> None:
    """Wait for a topic until its channel is listened to."""
    with wakes.watch(topic) as watch:
        assert await watch.wait(10)


async def test_what_nobody_waits_for_is_left_while_others_keep_coming(
    connection: Connection, wakes: Wakes
) -> None:
    count = 0
    async with asyncio.timeout(5):
        while not connection.has_left("w:t0"):
            await visit(wakes, f"t{count}")
            count += 1
    assert count > 2


async def test_what_is_waited_for_is_never_left(connection: Connection, wakes: Wakes) -> None:
    with wakes.watch("a") as watch:
        assert await watch.wait(10)
        for topic in ("b", "c", "d"):
            await visit(wakes, topic)
            await connection.until(partial(connection.has_left, f"w:{topic}"))
        assert not connection.has_left("w:a")
        # Nor is he disturbed by that.
        assert not await watch.wait(0)


async def test_who_begins_to_wait_while_his_channel_is_left_is_rung_and_listened_to(
    connection: Connection, wakes: Wakes
) -> None:
    await visit(wakes, "a")
    connection.may_leave.clear()
    await connection.until(lambda: connection.has_left("w:a"))
    with wakes.watch("a") as watch:
        connection.may_leave.set()
        assert await watch.wait(10)
        assert connection.channels == {"w:a"}


async def test_many_channels_are_left_by_commands_of_a_thousand_at_most(
    connection: Connection, wakes: Wakes
) -> None:
    with ExitStack() as stack:
        for n in range(2_500):
            stack.enter_context(wakes.watch(f"t{n}"))
        await connection.until(lambda: len(connection.channels) == 2_500)
    await connection.until(lambda: not connection.channels)
    assert sum(map(len, connection.left)) == 2_500
    assert max(map(len, connection.left)) <= 1_000
