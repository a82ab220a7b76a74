"""Clients in Node, its fetch and its WebSocket, that come back when the server was restarted."""

import json
import math
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.http.chat_server import PATIENCE, RESTARTS, ChatServer, check_whole, find_node

pytestmark = pytest.mark.real_server

CLIENT = Path(__file__).with_name("node_client.mjs")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ChatServer]:
    with ChatServer(tmp_path) as started:
        yield started


@pytest.fixture(scope="module")
def commands() -> dict[str, list[str]]:
    """The clients that node can be."""
    return {"fetch": [find_node()], "websocket": [find_node()]}


class Client:
    """A client in a process of its own.

    Attributes:
        lines: What it said.
        events: The events of it.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.lines: list[dict[str, Any]] = []

    @property
    def events(self) -> list[dict[str, Any]]:
        return [line["event"] for line in self.lines if "event" in line]

    def read(self, least: float = math.inf) -> None:
        """Read what it says, up to so many events or all."""
        assert self.process.stdout is not None
        while len(self.events) < least and (line := self.process.stdout.readline()):
            self.lines.append(json.loads(line))

    def end(self) -> int:
        with self.process as process:
            try:
                return process.wait(PATIENCE)
            finally:
                process.kill()


def test_they_go_on_behind_what_they_got(
    server: ChatServer, commands: dict[str, list[str]]
) -> None:
    chat = server.ask()
    clients = {
        way: Client([*command, str(CLIENT), way, server.path(chat), chat.token])
        for way, command in commands.items()
    }
    try:
        for least, number in RESTARTS:
            for client in clients.values():
                client.read(least)
            assert server.stop(number) == -number
            server.start()
        for client in clients.values():
            client.read()
    finally:
        assert {client.end() for client in clients.values()} == {0}
    kept = server.events(chat)
    for way, client in clients.items():
        check_whole(client.events, kept)
        begun = [line for line in client.lines if "connected" in line]
        assert len(begun) == 1 + len(RESTARTS)
        assert begun[0]["connected"] == ""
        assert {line["connected"] for line in begun[1:]} < {event["id"] for event in kept}
        if way == "websocket":
            assert {line["protocol"] for line in begun} == {"callbackkit"}
            closed = [line["closed"] for line in client.lines if "closed" in line]
            assert closed[-1] == 1000
            assert 1012 in closed
