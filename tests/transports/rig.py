"""A client that is nothing but the two callables of ASGI, for tests of what is sent to it."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio

from callbackkit import CallbackManager, Session
from callbackkit.stores.sqlite import SQLiteStore
from callbackkit.transports.connections import Connections, Message
from callbackkit.transports.sse import serve_sse
from callbackkit.transports.websocket import serve_websocket
from callbackkit.wire.eventstream import EventStreamReader, ServerSentEvent
from tests.sessions.rig import PATIENCE, until


class Client:
    """Keeps what it is sent, and says what it is told to.

    Attributes:
        sent: What it was sent.
        blocked: While it is set, it takes nothing.
        failure: Raised instead of taking anything.
        is_over: Its request has been answered.
    """

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.blocked: anyio.Event | None = None
        self.waiting: int = 0
        self.failure: Exception | None = None
        self.is_over: bool = False
        self._say, self._said = anyio.create_memory_object_stream[Message](math.inf)

    def say(self, message: Message) -> None:
        self._say.send_nowait(message)

    async def receive(self) -> Message:
        return await self._said.receive()

    async def send(self, message: Message) -> None:
        if self.failure is not None:
            raise self.failure
        if self.blocked is not None:
            self.waiting += 1
            try:
                await self.blocked.wait()
            finally:
                self.waiting -= 1
        self.sent.append(message)

    def block(self) -> anyio.Event:
        self.blocked = anyio.Event()
        return self.blocked

    @property
    def left(self) -> int:
        """How much it has said that nobody has received."""
        return self._said.statistics().current_buffer_used

    def close(self) -> None:
        self._say.close()
        self._said.close()

    # Of an event stream.

    @property
    def bodies(self) -> list[bytes]:
        return [each["body"] for each in self.sent if each["type"] == "http.response.body"]

    @property
    def text(self) -> bytes:
        return b"".join(self.bodies)

    @property
    def stream(self) -> list[ServerSentEvent]:
        return EventStreamReader().feed(self.text)

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(each.data) for each in self.stream]

    @property
    def numbers(self) -> list[int]:
        return numbers(self.events)

    @property
    def heartbeats(self) -> int:
        return self.bodies.count(b": \n\n")

    # Of a WebSocket.

    @property
    def messages(self) -> list[dict[str, Any]]:
        texts = [each["text"] for each in self.sent if each["type"] == "websocket.send"]
        return [json.loads(each) for each in texts]

    @property
    def closing(self) -> tuple[int, str] | None:
        last = self.sent[-1]
        return (last["code"], last["reason"]) if last["type"] == "websocket.close" else None


def numbers(events: list[dict[str, Any]]) -> list[int]:
    return [each["data"]["n"] for each in events if each["event_type"] == "n"]


def nothing_is_left(manager: CallbackManager, connections: Connections) -> None:
    """Neither connections nor readers, nor what was made for them."""
    assert len(connections) == 0
    assert connections._scope is None
    assert manager._readers.kinds().total() == 0
    assert manager._readers._open == {}
    assert manager._readers.tails == {}
    store = manager.store
    watches = store._poller if isinstance(store, SQLiteStore) else store._watches
    assert len(watches) == 0


@asynccontextmanager
async def serving(
    session: Session, serve: Callable[[Client], Awaitable[None]], connections: Connections
) -> AsyncIterator[Client]:
    """Serve a client meanwhile; see that it is over then, and nothing is left of it."""
    client = Client()

    async def run() -> None:
        await serve(client)
        client.is_over = True

    try:
        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(run)
                yield client
                await until(lambda: client.is_over)
    finally:
        client.close()
    nothing_is_left(session.manager, connections)


def sse(session: Session, connections: Connections | None = None, **options: Any) -> Any:
    connections = Connections() if connections is None else connections
    headers = options.pop("headers", ())
    subscription = session.subscribe(**options, kind="sse")

    async def serve(client: Client) -> None:
        await serve_sse(
            subscription, client.receive, client.send, connections=connections, headers=headers
        )

    return serving(session, serve, connections)


def websocket(
    session: Session,
    connections: Connections | None = None,
    on_message: Callable[[Any], Awaitable[object]] | None = None,
    **options: Any,
) -> Any:
    connections = Connections() if connections is None else connections
    subscription = session.subscribe(**options, kind="websocket")
    serve = partial(
        serve_websocket, connections=connections, on_message=on_message or session.receive
    )

    async def run(client: Client) -> None:
        await serve(subscription, client.receive, client.send)

    return serving(session, run, connections)
