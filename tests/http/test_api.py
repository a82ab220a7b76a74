"""What stands before and behind the handlers."""

import json
import signal
from typing import Any

import anyio
import pytest
from anyio import wait_all_tasks_blocked
from starlette.applications import Starlette

from callbackkit import CallbackManager, Limits, MemoryStore, StreamClosedError
from callbackkit.http.api import check_prefix
from callbackkit.http.starlette import allow_anyone, create_app, routes
from callbackkit.stores.base import SessionRecord
from tests.http.rig import PATIENCE, AppOf, Connection, client_of, in_both, made


def test_a_prefix_is_a_path() -> None:
    assert check_prefix("") == ""
    assert check_prefix("/a/b") == "/a/b"
    for wrong in ("a", "/", "/a/"):
        with pytest.raises(ValueError, match="prefix must be"):
            check_prefix(wrong)


# WebSockets of servers that know less.


class Handshake:
    """A WebSocket at the level of ASGI."""

    def __init__(self, path: str, query: str = "", **scope: Any) -> None:
        self.scope: dict[str, Any] = {
            "type": "websocket",
            "path": path,
            "headers": [(b"host", b"testserver")],
            "query_string": query.encode(),
            "subprotocols": [],
            **scope,
        }
        self.sent: list[dict[str, Any]] = []
        self.left = anyio.Event()
        self.accepted = anyio.Event()
        self.is_connected = False

    async def receive(self) -> Any:
        if not self.is_connected:
            self.is_connected = True
            return {"type": "websocket.connect"}
        await self.left.wait()
        return {"type": "websocket.disconnect", "code": 1005}

    async def send(self, message: Any) -> None:
        self.sent.append(message)
        if message["type"] == "websocket.accept":
            self.accepted.set()

    async def run(self, app: Any) -> None:
        with anyio.fail_after(PATIENCE):
            await app(self.scope, self.receive, self.send)


@in_both
async def test_a_server_without_denials_closes_with_1008(app_of: AppOf) -> None:
    handshake = Handshake(f"/callbacks/sessions/{'0' * 32}/ws")
    await handshake.run(app_of(CallbackManager()))
    (closed,) = handshake.sent
    assert (closed["type"], closed["code"]) == ("websocket.close", 1008)
    assert "no session" in closed["reason"]
    assert len(closed["reason"].encode()) <= 123


@in_both
@pytest.mark.parametrize("error", [ZeroDivisionError, StreamClosedError])
async def test_an_error_of_the_application_is_not_swallowed(
    app_of: AppOf, error: type[Exception]
) -> None:
    """Not even one of ours, if it is none that a client could do something about."""

    def broken(*_: object) -> bool:
        raise error

    async with CallbackManager() as manager:
        app = app_of(manager, broken)
        session = await manager.create_session()
        with pytest.raises(error):
            await Handshake(f"/callbacks/sessions/{session.id}/ws").run(app)
        with pytest.raises(error):
            await Connection(app, f"/callbacks/sessions/{session.id}").run()


@in_both
async def test_a_websocket_counts_as_a_request(app_of: AppOf) -> None:
    manager = CallbackManager(limits=Limits(max_requests=1))
    async with manager:
        app = app_of(manager, allow_anyone)
        session = await manager.create_session()
        path = f"/callbacks/sessions/{session.id}/ws"
        first, second = Handshake(path), Handshake(path)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(first.run, app)
            await first.accepted.wait()
            await second.run(app)
            first.left.set()
        assert second.sent[0]["code"] == 1008
        assert "max_requests" in second.sent[0]["reason"]


@in_both
async def test_who_is_refused_uses_up_nothing_of_the_session(app_of: AppOf) -> None:
    """Whoever knows an id, but not the token, holds up nobody."""
    manager = CallbackManager(limits=Limits(max_requests=2))
    async with manager:
        app = app_of(manager)
        session = await manager.create_session()
        path = f"/callbacks/sessions/{session.id}"
        statuses = []
        for headers in [{}] * 4 + [{"authorization": f"Bearer {session.token}"}] * 3:
            client = Connection(app, path, headers=headers)
            await client.run()
            statuses.append(client.status)
        assert statuses == [401, 401, 429, 429, 200, 200, 429]


class AsciiStore(MemoryStore):
    """Takes for an id what one may be, as a store may."""

    async def get_session(self, session_id: str) -> SessionRecord:
        assert len(session_id.encode("ascii")) <= 128
        return await super().get_session(session_id)


@in_both
@pytest.mark.parametrize("session_id", ["\udcff", "a\x00b", "é", "\u202e", "x" * 100_000])
async def test_whatever_stands_for_an_id_is_no_session(app_of: AppOf, session_id: str) -> None:
    """Servers decode what they get in one way or another."""
    async with CallbackManager(AsciiStore()) as manager:
        app = app_of(manager, allow_anyone)
        for suffix in ("", "/events", "/sse"):
            client = Connection(app, f"/callbacks/sessions/{session_id}{suffix}")
            await client.run()
            assert client.status == 404
            assert client.answered["content-type"] == "application/problem+json"


@in_both
async def test_a_connection_without_an_address_is_served(app_of: AppOf) -> None:
    """As behind a Unix socket."""
    handshake = Handshake(f"/callbacks/sessions/{'0' * 32}/ws", client=None)
    await handshake.run(app_of(CallbackManager()))
    assert handshake.sent[0]["type"] == "websocket.close"


# Streams let go of what they hold.


@in_both
async def test_streams_that_end_leave_nothing_behind(app_of: AppOf) -> None:
    async with CallbackManager() as manager:
        app = app_of(manager, allow_anyone)
        session = await manager.create_session()
        clients = [Connection(app, f"/callbacks/sessions/{session.id}/sse") for _ in range(20)]
        sockets = [Handshake(f"/callbacks/sessions/{session.id}/ws") for _ in range(20)]
        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as tasks:
                for client in clients:
                    tasks.start_soon(client.run)
                for handshake in sockets:
                    tasks.start_soon(handshake.run, app)
                for client in clients:
                    await client.until(lambda client=client: len(client.messages) > 1)
                for handshake in sockets:
                    await handshake.accepted.wait()
                kinds = manager._readers.kinds(session.id)
                assert (kinds["sse"], kinds["websocket"]) == (20, 20)
                for each in (*clients, *sockets):
                    each.left.set()
        kinds = manager._readers.kinds(session.id)
        assert (kinds["sse"], kinds["websocket"]) == (0, 0)


@in_both
async def test_a_deleted_session_ends_its_streams(app_of: AppOf) -> None:
    async with CallbackManager() as manager:
        app = app_of(manager, allow_anyone)
        session = await manager.create_session()
        client = Connection(app, f"/callbacks/sessions/{session.id}/sse")
        handshake = Handshake(f"/callbacks/sessions/{session.id}/ws")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.run)
            tasks.start_soon(handshake.run, app)
            await client.until(lambda: len(client.messages) > 1)
            await handshake.accepted.wait()
            await manager.delete_session(session.id)
        assert b"callbackkit.end" in client.body
        assert handshake.sent[-1]["code"] == 4001


@pytest.mark.parametrize("kind", ["sse", "ws", "events?wait=30"])
async def test_as_long_as_there_are_streams_signals_are_listened_to(kind: str) -> None:
    """Also where the host has started the manager, and nothing of ours has a lifespan."""
    before = signal.signal(signal.SIGTERM, ignore)
    try:
        async with CallbackManager() as manager:
            app = Starlette(routes=routes(manager, allow_anyone))
            session = await manager.create_session()
            path, _, query = f"/callbacks/sessions/{session.id}/{kind}".partition("?")
            client = Handshake(path) if kind == "ws" else Connection(app, path, query=query)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(client.run, *([app] if kind == "ws" else []))
                with anyio.fail_after(PATIENCE):
                    while not manager._readers.kinds(session.id):
                        await anyio.lowlevel.checkpoint()
                await wait_all_tasks_blocked()
                assert signal.getsignal(signal.SIGTERM) is not ignore
                client.left.set()
            assert signal.getsignal(signal.SIGTERM) is ignore
    finally:
        signal.signal(signal.SIGTERM, before)


def ignore(*_: object) -> None:
    """Handle a signal."""


# Answers.


@in_both
async def test_over_http_2_a_connection_is_not_closed(app_of: AppOf) -> None:
    async with CallbackManager() as manager:
        app = app_of(manager, allow_anyone)

        async def over_2(scope: Any, receive: Any, send: Any) -> None:
            await app({**scope, "http_version": "2"}, receive, send)

        headers = {"content-type": "application/json", "content-length": "99999999"}
        client = Connection(over_2, "/callbacks/sessions", "POST", headers=headers)
        await client.run()
        assert client.status == 413
        assert "connection" not in client.answered


@in_both
def test_no_answer_is_kept_or_guessed(app_of: AppOf) -> None:
    with client_of(app_of(CallbackManager(), allow_anyone)) as client:
        session = made(client)
        for path in (session.path, f"{session.path}/events", "/callbacks/x", "/callbacks/stats"):
            answer = client.get(path)
            assert answer.headers["cache-control"] == "no-store"
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert set(answer.headers["vary"].split(", ")) == {"Origin", "Authorization", "Cookie"}


def test_an_api_shows_what_it_is_for() -> None:
    from callbackkit.http.api import Api

    api = Api(
        CallbackManager(MemoryStore()),
        authorize=None,
        allowed_origins=(),
        query_token=False,
        heartbeat=15.0,
        write_timeout=None,
        drain_on_signals=False,
    )
    assert repr(api).startswith("<Api of <CallbackManager not started")
    assert set(api.methods) == {"sse", "websocket", "polling"}
    with api.draining:
        pass


def test_an_application_without_drain_touches_no_signals() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with client_of(create_app(CallbackManager(), drain_on_signals=False)):
        assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


async def test_now_is_before_a_websocket_is_let_in() -> None:
    """Whatever is emitted once the client knows that it is connected comes."""
    async with CallbackManager() as manager:
        session = await manager.create_session()
        app = create_app(manager, allow_anyone, drain_on_signals=False)
        came: list[str] = []
        incoming = iter([{"type": "websocket.connect"}])
        is_over = anyio.Event()

        async def receive() -> Any:
            for message in incoming:
                return message
            await is_over.wait()
            return {"type": "websocket.disconnect", "code": 1000}

        async def send(message: Any) -> None:
            if message["type"] == "websocket.accept":
                await session.progress(0.5)
            elif message["type"] == "websocket.send":
                came.append(json.loads(message["text"])["event_type"])
                is_over.set()

        scope = {
            "type": "websocket",
            "asgi": {"version": "3.0"},
            "scheme": "ws",
            "path": f"/callbacks/sessions/{session.id}/ws",
            "query_string": b"after=now",
            "headers": [],
            "subprotocols": [],
            "client": ("127.0.0.1", 1),
        }
        with anyio.fail_after(10):
            await app(scope, receive, send)
    assert came == ["progress"]
