"""Clients in Python, httpx2, that come back when the server was killed, and when it was stopped."""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import httpx2
import pytest
from httpx2.websockets import HTTPXWSException

from tests.http.chat_server import PATIENCE, RESTARTS, Chat, ChatServer, check_whole

pytestmark = pytest.mark.real_server


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """The event loop of the client, which has nothing to do with the server's."""
    return "asyncio"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ChatServer]:
    with ChatServer(tmp_path) as started:
        yield started


class Client(ABC):
    """Follows a session until it has ended, whatever becomes of the server.

    Attributes:
        events: What it got, in order.
        last_id: The id of the last one.
        connections: How often it had to connect.
    """

    def __init__(self, followed: "Followed") -> None:
        self.followed = followed
        self.server, self.chat = followed.server, followed.chat
        self.events: list[dict[str, Any]] = []
        self.last_id = ""
        self.connections = 0
        self.has_ended = False

    async def follow(self) -> None:
        async with httpx2.AsyncClient(timeout=PATIENCE, headers=self.chat.bearer) as http:
            while not self.has_ended:
                self.connections += 1
                try:
                    await self.connect(http)
                except* (httpx2.TransportError, HTTPXWSException):
                    pass  # one alone, or in a group of the WebSocket's
                await self.followed.serves.wait()

    @abstractmethod
    async def connect(self, http: httpx2.AsyncClient) -> None: ...

    def take(self, event: dict[str, Any]) -> None:
        if event["event_type"] == "callbackkit.end":
            self.has_ended = True
        elif event["event_type"] != "callbackkit.heartbeat":
            self.events.append(event)
            self.last_id = event["id"]
            self.followed.note()


class EventSourceClient(Client):
    async def connect(self, http: httpx2.AsyncClient) -> None:
        url, headers = self.server.path(self.chat, "/sse"), {"Last-Event-ID": self.last_id}
        async with http.sse(url, headers=headers) as stream:
            async for event in stream:
                if event.data:
                    assert event.event == "message"
                    self.take(json.loads(event.data))
                    assert event.id == self.last_id


class WebSocketClient(Client):
    async def connect(self, http: httpx2.AsyncClient) -> None:
        url = self.server.path(self.chat, f"/ws?after={self.last_id}").replace("http", "ws", 1)
        async with http.websocket(url) as socket:
            while not self.has_ended:
                self.take(json.loads(await socket.receive_text(PATIENCE)))


class PollingClient(Client):
    async def connect(self, http: httpx2.AsyncClient) -> None:
        while not self.has_ended:
            url = self.server.path(self.chat, f"/events?after={self.last_id}&wait=5&limit=5")
            page = (await http.get(url)).raise_for_status().json()
            for event in page["events"]:
                self.take(event)
                self.has_ended = event["event_type"] == "completion"


class Followed:
    """A session that is followed, while its server is ended and started again.

    Attributes:
        serves: The server can be connected to.
    """

    def __init__(self, server: ChatServer) -> None:
        self.server = server
        self.chat: Chat = server.ask()
        self.clients = [each(self) for each in (EventSourceClient, WebSocketClient, PollingClient)]
        self.serves = anyio.Event()
        self.serves.set()
        self._least = 0
        self._reached = anyio.Event()

    def note(self) -> None:
        if all(len(client.events) >= self._least for client in self.clients):
            self._reached.set()

    async def restart(self) -> None:
        for self._least, number in RESTARTS:
            self._reached = anyio.Event()
            await self._reached.wait()
            self.serves = anyio.Event()
            assert await anyio.to_thread.run_sync(self.server.stop, number) == -number
            await anyio.to_thread.run_sync(self.server.start)
            self.serves.set()


async def test_each_way_goes_on_behind_what_it_got(server: ChatServer) -> None:
    followed = Followed(server)
    with anyio.fail_after(50):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(followed.restart)
            for client in followed.clients:
                tasks.start_soon(client.follow)
    kept = server.events(followed.chat)
    for client in followed.clients:
        check_whole(client.events, kept)
        assert client.connections == 1 + len(RESTARTS)
