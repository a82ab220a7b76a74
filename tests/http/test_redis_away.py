"""What clients of a server see while its Redis is away: silence, as a rule, and no more."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from functools import partial

import anyio
import anyio.from_thread
import attrs
import httpx2
import pytest
from anyio.from_thread import BlockingPortal

from callbackkit.client import Backoff, Events, follow
from callbackkit.events import Event
from callbackkit.http.starlette import allow_anyone
from callbackkit.sessions.manager import CallbackManager
from callbackkit.stores.redis import RedisStore
from callbackkit.testing import FaultProxy
from tests.http.rig import fastapi_app, serving
from tests.http.withstand_rig import Sse, WebSocket
from tests.stores.redis_server import Server, fresh_prefix, marks

pytestmark = marks

HEARTBEAT = 0.1
# Seconds for anything that is waited for.
PATIENCE = 20.0
METHODS = ("sse", "websocket", "polling")
WEATHERS: list[Callable[[FaultProxy], None]] = [FaultProxy.black_hole, FaultProxy.refuse]
by_weather = pytest.mark.parametrize(
    "weather",
    [
        pytest.param(FaultProxy.black_hole, id="black hole"),
        pytest.param(FaultProxy.refuse, id="refuse", marks=pytest.mark.torture),
    ],
)


@pytest.fixture(scope="module", autouse=True)
def garbage() -> Iterator[None]:
    """What coredis leaves open is collected while its warning is passed over, see `marks`."""
    yield
    gc.collect()


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """What is logged holds tracebacks, and so what coredis leaves open, for longer than a test."""
    for name in ("callbackkit", "coredis"):
        caplog.set_level(logging.CRITICAL, name)


@attrs.frozen
class Scene:
    """A server whose way to Redis can be cut, and another machine that emits.

    Attributes:
        portal: The event loop of the other machine, and of the network.
        proxy: The way.
        redis: Where it leads.
        store: Of the server.
        port: Of the server.
        emitting: The manager of the other machine.
        session_id: A session.
    """

    portal: BlockingPortal
    proxy: FaultProxy
    redis: Server
    store: RedisStore
    port: int
    emitting: CallbackManager
    session_id: str

    @property
    def path(self) -> str:
        return f"/callbacks/sessions/{self.session_id}"

    def emit(self, *numbers: int) -> None:
        for n in numbers:
            self.portal.call(self.emitting.emit, self.session_id, "step", {"n": n})

    def change(self, weather: Callable[[FaultProxy], None]) -> None:
        """Have the way be so, and cut what is on it."""
        self.portal.call(weather, self.proxy)
        self.portal.call(self.proxy.reset)

    def health(self) -> int:
        return httpx2.get(
            f"http://127.0.0.1:{self.port}/callbacks/health", timeout=PATIENCE
        ).status_code


@pytest.fixture
def scene() -> Generator[Scene]:
    prefix = fresh_prefix()
    with ExitStack() as opened:
        redis = opened.enter_context(Server())
        portal = opened.enter_context(anyio.from_thread.start_blocking_portal())
        way = FaultProxy("127.0.0.1", redis.port)
        proxy = opened.enter_context(portal.wrap_async_context_manager(way))
        store = RedisStore.from_url(f"redis://127.0.0.1:{proxy.port}", prefix=prefix, timeout=1.5)
        app = fastapi_app(CallbackManager(store), authorize=allow_anyone, heartbeat=HEARTBEAT)
        port = opened.enter_context(serving(app))
        # It is not entered, so that it only emits.
        emitting = CallbackManager(RedisStore.from_url(redis.url, prefix=prefix))
        opened.callback(portal.call, emitting.store.aclose)
        session = portal.call(emitting.create_session, {"delivery_method": "polling"})
        made = Scene(portal, proxy, redis, store, port, emitting, session.id)
        # It listens before it serves.
        assert made.health() == 200
        yield made
        # Or it would wait for what can't be done.
        portal.call(proxy.pass_on)


# On the wire.


def beats(stream: Sse, count: int) -> None:
    """Read so many heartbeats, and no event."""
    before = stream.raw.count(b":")
    while stream.raw.count(b":") < before + count:
        assert [each for each in stream.read() if each.data] == []
        assert not stream.response.isclosed()


def pulses(socket: WebSocket, count: int) -> None:
    """Read so many heartbeats, and no event."""
    for _ in range(count):
        opcode, payload = socket.read()
        assert (opcode, b"callbackkit.heartbeat" in payload) == (1, True)


@by_weather
def test_streams_stay_open_with_heartbeats_and_then_have_what_came_meanwhile(
    scene: Scene, weather: Callable[[FaultProxy], None]
) -> None:
    """The same connections, and each event once."""
    with (
        Sse(scene.port, f"{scene.path}/sse") as stream,
        WebSocket(scene.port, f"{scene.path}/ws") as socket,
    ):
        stream.primed()
        scene.emit(0)
        assert [each["data"] for each in stream.events(1)] == [{"n": 0}]
        assert [each["data"] for each in socket.events(1)] == [{"n": 0}]
        # What was emitted is looked at once more within the next 1.5 seconds, and a stream that is
        # just being read for would be told to come back.
        beats(stream, 20)
        pulses(socket, 20)
        scene.change(weather)
        scene.emit(1, 2)
        beats(stream, 10)
        pulses(socket, 10)
        assert scene.health() == 503
        scene.change(FaultProxy.pass_on)
        assert [each["data"] for each in stream.events(2)] == [{"n": 1}, {"n": 2}]
        assert [each["data"] for each in socket.events(2)] == [{"n": 1}, {"n": 2}]
        assert scene.health() == 200


def test_who_comes_while_it_is_away_is_told_to_come_back(scene: Scene) -> None:
    scene.change(FaultProxy.refuse)
    headers = {"Accept": "text/event-stream"}
    with Sse(scene.port, f"{scene.path}/sse", headers) as stream:
        # With any other status a browser would not.
        assert stream.status == 200
        assert stream.rest().startswith(b"retry: ")
    with WebSocket(scene.port, f"{scene.path}/ws") as socket:
        assert socket.status == 503
    answer = httpx2.get(f"http://127.0.0.1:{scene.port}{scene.path}/events", timeout=PATIENCE)
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) > 0


def test_a_stream_that_looks_at_it_while_it_is_away_is_told_to_come_back(scene: Scene) -> None:
    """So each does once a minute, or sooner where something rang."""
    scene.store.reconcile = HEARTBEAT
    with (
        Sse(scene.port, f"{scene.path}/sse") as stream,
        WebSocket(scene.port, f"{scene.path}/ws") as socket,
    ):
        stream.primed()
        scene.change(FaultProxy.refuse)
        assert b"\n\nretry: " in stream.rest()
        assert socket.close_code() == 1012


# Clients of ours.


class Follower:
    """Follows by one of the methods, to the end of the session."""

    def __init__(self, scene: Scene, method: str) -> None:
        self.events: list[Event] = []
        url = f"http://127.0.0.1:{scene.port}{scene.path}"
        quick = Backoff(first=0.1, max_delay=1.0, max_told=0.5)
        self.followed: Events = follow(url, method=method, backoff=quick)  # type: ignore[arg-type]

    async def run(self) -> None:
        async with self.followed as events:
            async for event in events:
                self.events.append(event)

    @property
    def numbers(self) -> list[int]:
        return [-1 if event.is_gap else event.data["n"] for event in self.events]


async def until_all(followers: list[Follower], numbers: list[int]) -> None:
    with anyio.fail_after(PATIENCE):
        while True:
            if all(each.numbers == numbers for each in followers):
                return
            await anyio.sleep(0.01)


def check_away(scene: Scene, *, each_way: int, seconds: float, most: int) -> None:
    """Have it away for so long while many follow; count the connections to Redis."""
    followers = [Follower(scene, method) for method in METHODS for _ in range(each_way)]
    running = [scene.portal.start_task_soon(each.run) for each in followers]
    scene.emit(0)
    scene.portal.call(until_all, followers, [0])
    accepted = scene.proxy.accepted
    for n, weather in enumerate(WEATHERS, 1):
        scene.change(weather)
        scene.emit(n)
        scene.portal.call(partial(anyio.sleep, seconds))
        scene.change(FaultProxy.pass_on)
        scene.portal.call(until_all, followers, [*range(n + 1)])
    assert scene.proxy.accepted - accepted < most
    scene.portal.call(scene.emitting.end_session, scene.session_id)
    for each in running:
        each.result(PATIENCE)
    assert all(each.numbers == [0, 1, 2] for each in followers)


def test_who_follows_gets_each_event_once_whatever_becomes_of_the_way(scene: Scene) -> None:
    """Also where each stream is to come back: it looks at the store, as it does once a minute."""
    scene.store.reconcile = 0.4
    check_away(scene, each_way=3, seconds=1.0, most=100)


@pytest.mark.torture
@pytest.mark.timeout(400)
def test_who_follows_gets_each_event_once_after_a_minute(scene: Scene) -> None:
    check_away(scene, each_way=30, seconds=60.0, most=1_000)
