import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from callbackkit.stores.redis_wakes import Wakes


def channels_of(topic: str | None) -> list[str]:
    return ["due:0", "due:1"] if topic is None else [f"w:{topic}"]


class Server:
    """Channels, and who listens to them; its connections can be broken."""

    def __init__(self) -> None:
        self.connections: list[Connection] = []
        self.changed = asyncio.Event()
        self.failures = 0

    @asynccontextmanager
    async def connect(self) -> AsyncGenerator["Connection"]:
        if self.failures:
            self.failures -= 1
            raise OSError("no connection")
        connection = Connection(self)
        self.connections.append(connection)
        yield connection

    @property
    def connection(self) -> "Connection":
        return self.connections[-1]

    async def until(self, is_true: Callable[[], object]) -> None:
        async with asyncio.timeout(10):
            while not is_true():
                self.changed.clear()
                await self.changed.wait()


class Connection:
    def __init__(self, server: Server) -> None:
        self.server = server
        self.channels: set[str] = set()
        self.commands = 0
        self.is_silent = False
        self._said: asyncio.Queue[str | Exception] = asyncio.Queue()

    async def subscribe(self, *channels: str) -> None:
        if self.is_silent:
            raise TimeoutError
        self.commands += 1
        self.channels |= set(channels)
        self.server.changed.set()

    async def unsubscribe(self, *channels: str) -> None:
        self.channels -= set(channels)
        self.server.changed.set()

    async def messages(self) -> AsyncIterator[str]:
        while True:
            said = await self._said.get()
            if isinstance(said, Exception):
                raise said
            yield said

    def say(self, channel: str) -> None:
        self._said.put_nowait(channel)

    def break_down(self) -> None:
        self._said.put_nowait(ConnectionError("lost"))


@pytest.fixture(params=["asyncio"], scope="module")
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """It listens in an event loop of asyncio, whatever rings it."""
    backend: str = request.param
    return backend


@pytest.fixture
async def server() -> Server:
    return Server()


@pytest.fixture
async def wakes(server: Server) -> AsyncIterator[Wakes]:
    wakes = Wakes(channels_of, rest=0.05)
    wakes.listen_by(wakes.look)
    listening = asyncio.ensure_future(wakes.listen(server.connect))
    yield wakes
    wakes.listen_by(None)
    listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)


async def test_who_begins_to_wait_is_rung_once_his_channel_is_listened_to(
    server: Server, wakes: Wakes
) -> None:
    with wakes.watch("a") as watch:
        assert await watch.wait(10)
        assert server.connection.channels == {"w:a"}


async def test_a_message_rings_its_topic_and_no_other(server: Server, wakes: Wakes) -> None:
    with wakes.watch("a") as a, wakes.watch("b") as b, wakes.watch(None) as due:
        for watch in (a, b, due):
            assert await watch.wait(10)
        server.connection.say("w:a")
        server.connection.say("due:1")
        assert await a.wait(10)
        assert await due.wait(10)
        assert not await b.wait(0)


async def test_a_message_of_a_channel_that_is_not_known_is_passed_over(
    server: Server, wakes: Wakes
) -> None:
    with wakes.watch("a") as watch:
        assert await watch.wait(10)
        server.connection.say("w:b")
        server.connection.say("w:a")
        assert await watch.wait(10)


async def test_many_topics_are_listened_to_with_few_commands(server: Server, wakes: Wakes) -> None:
    watches = [wakes.watch(f"t{n}") for n in range(3_000)]
    for watch in watches:
        watch.__enter__()
    for watch in watches:
        assert await watch.wait(10)
    assert server.connection.commands <= 6
    assert len(server.connection.channels) == 3_000
    for watch in watches:
        watch.__exit__(None, None, None)


async def test_after_a_break_everybody_is_rung_once_it_is_listened_again(
    server: Server, wakes: Wakes
) -> None:
    with wakes.watch("a") as a, wakes.watch("b") as b:
        assert await a.wait(10)
        assert await b.wait(10)
        server.failures = 2
        server.connection.break_down()
        assert await a.wait(10)
        assert await b.wait(10)
        assert len(server.connections) == 2
        assert server.connection.channels == {"w:a", "w:b"}
        server.connection.say("w:b")
        assert await b.wait(10)


async def test_a_topic_nobody_waits_for_any_more_is_left(server: Server, wakes: Wakes) -> None:
    with wakes.watch("a") as a:
        with wakes.watch("b") as b:
            assert await a.wait(10)
            assert await b.wait(10)
        await server.until(lambda: server.connection.channels == {"w:a"})
        with wakes.watch("b") as b:
            assert await b.wait(10)
            assert server.connection.channels == {"w:a", "w:b"}


async def test_a_connection_that_nobody_answers_on_is_made_anew(
    server: Server, wakes: Wakes
) -> None:
    with wakes.watch("a") as watch:
        assert await watch.wait(10)
        server.connection.is_silent = True
        assert await watch.wait(10)
        assert len(server.connections) == 2


async def test_what_is_watched_before_it_listens_is_listened_to(server: Server) -> None:
    wakes = Wakes(channels_of)
    with wakes.watch("a") as watch:
        listening = asyncio.ensure_future(wakes.listen(server.connect))
        assert await watch.wait(10)
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
