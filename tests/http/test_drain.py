"""Draining: who is asked to stop has its streams end, and nothing of the server is changed."""

import contextlib
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Generator
from types import FrameType
from typing import Any

import httpx2
import pytest
from httpx2.websockets import WebSocketDisconnect

from callbackkit.http.drain import DrainOnSignals
from tests.http.rig import PATIENCE, process

# So long nothing may come that is not to come.
MOMENT = 0.2

# By itself.


class Log:
    """Who was called, in order; what is begun comes from another thread."""

    def __init__(self) -> None:
        self.entries: list[str] = []
        self.began = threading.Event()
        self.thread: threading.Thread | None = None

    def begin(self) -> None:
        self.thread = threading.current_thread()
        self.began.set()

    def server(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.entries.append(f"server {signal.Signals(number).name}")

    def other(self, number: int, frame: FrameType | None) -> None:
        self.entries.append("other")
        self.server(number, frame)


@contextlib.contextmanager
def handled(**handlers: Any) -> Generator[None]:
    """Have signals handled so, and find them so afterwards."""
    numbers = {getattr(signal, name): handler for name, handler in handlers.items()}
    before = {number: signal.signal(number, each) for number, each in numbers.items()}
    try:
        yield
        assert {number: signal.getsignal(number) for number in numbers} == numbers
    finally:
        for number, each in before.items():
            signal.signal(number, each)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_the_first_signal_begins_and_reaches_who_was_there(name: str) -> None:
    log = Log()
    with handled(SIGTERM=log.server, SIGINT=log.server), DrainOnSignals(log.begin):
        signal.raise_signal(getattr(signal, name))
        assert log.began.wait(PATIENCE)
        assert log.thread is not threading.main_thread()
        assert log.entries == [f"server {name}"]
        log.began.clear()
        signal.raise_signal(getattr(signal, name))
        assert log.entries == [f"server {name}"] * 2
        assert not log.began.wait(MOMENT)


def test_it_listens_as_long_as_anybody_is_in() -> None:
    log = Log()
    drain = DrainOnSignals(log.begin)
    with handled(SIGTERM=log.server, SIGINT=log.server):
        with drain:
            ours = signal.getsignal(signal.SIGTERM)
            assert ours != log.server
            with drain:
                assert signal.getsignal(signal.SIGTERM) is ours
                assert "entered 2 times" in repr(drain)
            assert signal.getsignal(signal.SIGTERM) is ours
        assert signal.getsignal(signal.SIGTERM) == log.server


def test_who_came_after_is_left_in_place() -> None:
    log = Log()
    with handled(SIGTERM=log.server, SIGINT=log.server):
        with DrainOnSignals(log.begin):
            ours: Any = signal.signal(signal.SIGTERM, log.other)
        assert signal.getsignal(signal.SIGTERM) == log.other
        # It may call us still, and we pass it on.
        ours(signal.SIGTERM, None)
        assert log.entries == ["server SIGTERM"]
        assert not log.began.wait(MOMENT)
        signal.signal(signal.SIGTERM, log.server)


def test_who_took_the_place_meanwhile_is_passed_on_to() -> None:
    log = Log()
    drain = DrainOnSignals(log.begin)
    with handled(SIGTERM=log.server, SIGINT=log.server):
        with drain:
            signal.signal(signal.SIGTERM, log.other)
            with drain:
                signal.raise_signal(signal.SIGTERM)
                assert log.began.wait(PATIENCE)
                assert log.entries == ["other", "server SIGTERM"]
        assert signal.getsignal(signal.SIGTERM) == log.other
        signal.signal(signal.SIGTERM, log.server)


@pytest.mark.parametrize("handler", [signal.SIG_DFL, signal.SIG_IGN])
def test_a_signal_that_nobody_handles_is_left_alone(handler: signal.Handlers) -> None:
    with handled(SIGTERM=handler), DrainOnSignals(lambda: None):
        assert signal.getsignal(signal.SIGTERM) is handler


def test_in_another_thread_it_does_nothing() -> None:
    log = Log()
    seen: list[object] = []

    def run() -> None:
        with DrainOnSignals(log.begin):
            seen.append(signal.getsignal(signal.SIGTERM))

    with handled(SIGTERM=log.server):
        thread = threading.Thread(target=run)
        thread.start()
        thread.join(PATIENCE)
        assert seen == [log.server]


# Under a real server.

SERVER = """
import socket, sys
import uvicorn
from fastapi import FastAPI
from starlette.applications import Starlette
from contextlib import asynccontextmanager
from callbackkit import CallbackManager
from callbackkit.http.fastapi import create_router
from callbackkit.http.starlette import allow_anyone, create_app, routes

manager = CallbackManager()
kind = sys.argv[1]
if kind == "fastapi":
    app = FastAPI()
    app.include_router(create_router(manager, allow_anyone))
elif kind == "starlette":
    app = create_app(manager, allow_anyone)
else:
    # The host starts the manager, and nothing of ours has a lifespan.
    @asynccontextmanager
    async def lifespan(app):
        async with manager:
            yield
    app = Starlette(routes=routes(manager, allow_anyone), lifespan=lifespan)

class Server(uvicorn.Server):
    async def startup(self, sockets=None):
        await super().startup(sockets)
        print(sockets[0].getsockname()[1], flush=True)

listener = socket.create_server(("127.0.0.1", 0))
server = Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=20))
server.run([listener])
"""

STREAMS = 50


@pytest.mark.real_server
@pytest.mark.parametrize(
    ("kind", "name"),
    [("fastapi", "SIGTERM"), ("starlette", "SIGTERM"), ("routes", "SIGTERM"), ("routes", "SIGINT")],
)
def test_a_server_that_stops_tells_its_clients_to_come_back(kind: str, name: str) -> None:
    """Fifty streams; the process is gone well within its grace."""
    with process(SERVER, kind) as (running, port), contextlib.ExitStack() as stack:
        created = httpx2.post(f"http://127.0.0.1:{port}/callbacks/sessions", json={}).json()
        path = f"/callbacks/sessions/{created['session_id']}"
        streams = [stack.enter_context(asking(port, f"{path}/sse")) for _ in range(STREAMS)]
        for stream in streams:
            # The position where it begins.
            read_until(stream, b"id: ")
        began = time.monotonic()
        running.send_signal(getattr(signal, name))
        for stream in streams:
            assert b"retry: " in read_rest(stream)
        running.wait(PATIENCE)
        assert time.monotonic() - began < PATIENCE
        _, complaints = running.communicate()
        assert running.returncode in {0, -getattr(signal, name)}, complaints
        assert "ERROR" not in complaints


@pytest.mark.real_server
@pytest.mark.parametrize("kind", ["fastapi", "routes"])
def test_a_poll_that_waits_is_answered(kind: str) -> None:
    with process(SERVER, kind) as (running, port):
        created = httpx2.post(f"http://127.0.0.1:{port}/callbacks/sessions", json={}).json()
        path = f"/callbacks/sessions/{created['session_id']}/events?wait=30"
        with asking(port, path) as polling:
            until_polled(port)
            running.send_signal(signal.SIGTERM)
            assert b'"events":[]' in read_rest(polling)
        running.wait(PATIENCE)


def until_polled(port: int) -> None:
    """Wait until the server has a poll that waits."""
    deadline = time.monotonic() + PATIENCE
    wanted = 'callbackkit_readers{kind="polling"} 1.0'
    while wanted not in (text := httpx2.get(f"http://127.0.0.1:{port}/callbacks/metrics").text):
        assert time.monotonic() < deadline, text


@contextlib.contextmanager
def asking(port: int, path: str) -> Generator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as raw:
        raw.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
        yield raw


def read_until(raw: socket.socket, text: bytes) -> bytes:
    seen = b""
    while text not in seen:
        chunk = raw.recv(65_536)
        assert chunk, seen
        seen += chunk
    return seen


def read_rest(raw: socket.socket) -> bytes:
    seen = b""
    with contextlib.suppress(ConnectionResetError):
        while chunk := raw.recv(65_536):
            seen += chunk
    return seen


@pytest.mark.real_server
@pytest.mark.parametrize("kind", ["fastapi", "routes"])
def test_a_websocket_is_told_to_come_back_too(kind: str) -> None:
    with process(SERVER, kind) as (running, port):
        url = f"http://127.0.0.1:{port}/callbacks/sessions"
        with httpx2.Client(timeout=PATIENCE) as client:
            created = client.post(url, json={}).json()
            path = f"{url}/{created['session_id']}"
            with client.websocket(f"{path}/ws".replace("http", "ws", 1)) as connection:
                client.post(f"{path}/test", json={})
                assert json.loads(connection.receive_text())["event_type"] == "progress"
                os.kill(running.pid, signal.SIGTERM)
                with pytest.raises(WebSocketDisconnect) as closed:
                    connection.receive_text()
                assert closed.value.code == 1012
        running.wait(PATIENCE)
