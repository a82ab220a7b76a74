import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from itertools import count

import anyio
import pytest

from callbackkit.stores.base import Watch
from callbackkit.stores.redis_wakes import Wakes
from callbackkit.stores.waking import call_there, place_here


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


async def test_messages_that_come_together_ring_a_topic_once(server: Server, wakes: Wakes) -> None:
    with wakes.watch("a") as a, wakes.watch("b") as b:
        assert await a.wait(10)
        assert await b.wait(10)
        rings = noted(a)
        for _ in range(100):
            server.connection.say("w:a")
        server.connection.say("w:b")
        assert await b.wait(10)
        assert await a.wait(10)
        assert len(rings) == 1


async def test_what_comes_behind_many_is_rung_too(server: Server, wakes: Wakes) -> None:
    watches = [wakes.watch(f"t{n}") for n in range(20)]
    with ExitStack() as stack:
        for watch in watches:
            stack.enter_context(watch)
        for _ in range(5):
            for n, watch in enumerate(watches):
                assert await watch.wait(10)
                server.connection.say(f"w:t{n}")
        for watch in watches:
            assert await watch.wait(10)


async def test_messages_without_end_leave_room_for_others() -> None:
    connection = Endless()
    wakes = Wakes(channels_of)
    listening = asyncio.ensure_future(wakes.listen(lambda: connection))
    with wakes.watch("a") as watch:
        for _ in range(3):
            assert await watch.wait(10)
    listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)
    assert connection.said > 100


async def test_messages_hear_that_nobody_listens_any_more() -> None:
    told: list[str] = []

    class Telling(Endless):
        async def messages(self) -> AsyncIterator[str]:
            try:
                await asyncio.get_running_loop().create_future()
            except asyncio.CancelledError:
                told.append("cancelled")
                raise
            yield "w:a"

    wakes = Wakes(channels_of)
    listening = asyncio.ensure_future(wakes.listen(Telling))
    with wakes.watch("a") as watch:
        assert await watch.wait(10)
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
    assert told == ["cancelled"]


async def test_all_are_rung_at_once(wakes: Wakes) -> None:
    with wakes.watch("a") as a, wakes.watch(None) as due:
        for watch in (a, due):
            assert await watch.wait(10)
        wakes.ring_all()
        assert await a.wait(10)
        assert await due.wait(10)


class Endless(Connection):
    """One on which somebody always speaks, and who hears only lets others run in between."""

    def __init__(self) -> None:
        super().__init__(Server())
        self.said = 0

    async def __aenter__(self) -> "Endless":
        return self

    async def __aexit__(self, *_exc: object) -> None:
        return

    async def messages(self) -> AsyncIterator[str]:
        while True:
            await asyncio.sleep(0)
            self.said += 1
            yield "w:a"


async def test_topics_are_left_while_others_are_asked_for_all_the_time(
    server: Server, wakes: Wakes
) -> None:
    with wakes.watch("old") as old:
        assert await old.wait(10)
    async with asyncio.timeout(10):
        for n in count():
            with wakes.watch(f"new{n}") as new:
                assert await new.wait(10)
            if "w:old" not in server.connection.channels:
                return


# Who waits elsewhere.


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
async def test_a_watch_is_rung_in_the_event_loop_it_was_begun_in(
    server: Server, wakes: Wakes, backend: str
) -> None:
    with wakes.watch("a") as before:
        assert await before.wait(10)
    with elsewhere(wakes, "a", backend) as other, wakes.watch("b") as b:
        assert await b.wait(10)
        server.connection.say("w:a")
        server.connection.say("w:b")
        assert await b.wait(10)
        assert await asyncio.to_thread(other.rung.wait, 10)
    assert set(other.threads) == {other.thread.ident}


async def test_a_loop_that_does_not_get_on_holds_up_nobody_elsewhere(
    server: Server, wakes: Wakes
) -> None:
    with wakes.watch("a") as a, elsewhere(wakes, "a") as other, wakes.watch("b") as b:
        assert await a.wait(10)
        assert await b.wait(10)
        with other.blocked():
            server.connection.say("w:a")
            server.connection.say("w:b")
            assert await a.wait(10)
            assert await b.wait(10)


async def test_a_watch_whose_loop_has_ended_is_rung_all_the_same(
    server: Server, wakes: Wakes
) -> None:
    watch = wakes.watch("a")

    async def begin() -> None:
        watch.__enter__()

    thread = threading.Thread(target=anyio.run, args=(begin,))
    thread.start()
    await asyncio.to_thread(thread.join)
    with wakes.watch("b") as b:
        assert await b.wait(10)
        rings = noted(watch)
        server.connection.say("w:a")
        server.connection.say("w:b")
        assert await b.wait(10)
    assert rings
    watch.__exit__(None, None, None)


def noted(watch: Watch) -> list[int | None]:
    """Return what gets each ring of a watch from now on."""
    rings: list[int | None] = []
    watch.on_ring = rings.append
    return rings


class Elsewhere:
    """A watch in an event loop of another thread."""

    def __init__(self, wakes: Wakes, topic: str, backend: str) -> None:
        self.watch = wakes.watch(topic)
        self.watch.on_ring = self.note
        self.threads: list[int] = []
        self.begun = threading.Event()
        self.rung = threading.Event()
        self.thread = threading.Thread(
            target=anyio.run, args=(self.run,), kwargs={"backend": backend}
        )

    def note(self, _top: int | None) -> None:
        self.threads.append(threading.get_ident())
        self.rung.set()

    async def run(self) -> None:
        self.place = place_here()
        self.over = anyio.Event()
        with self.watch:
            self.begun.set()
            await self.over.wait()

    @contextmanager
    def blocked(self) -> Iterator[None]:
        stands, go_on = threading.Event(), threading.Event()

        def stand() -> None:
            stands.set()
            go_on.wait(10)

        call_there(self.place, stand)
        assert stands.wait(10)
        try:
            yield
        finally:
            go_on.set()


@contextmanager
def elsewhere(wakes: Wakes, topic: str, backend: str = "asyncio") -> Iterator[Elsewhere]:
    other = Elsewhere(wakes, topic, backend)
    other.thread.start()
    assert other.begun.wait(10)
    try:
        yield other
    finally:
        call_there(other.place, other.over.set)
        other.thread.join(10)
