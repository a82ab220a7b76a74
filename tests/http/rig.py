"""The API in both frameworks, a client without a server, and a server that is one."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Generator
from typing import Any

import anyio
import attrs
import pytest
import uvicorn
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.testclient import TestClient

from callbackkit import CallbackManager
from callbackkit.http.fastapi import create_router
from callbackkit.http.starlette import create_app
from callbackkit.wire.eventstream import EventStreamReader, ServerSentEvent

# Nothing here takes long; what does not come is a failure.
PATIENCE = 10.0

ADDRESS = "http://testserver"


def starlette_app(manager: CallbackManager, *args: Any, **options: Any) -> Starlette:
    return create_app(manager, *args, **options)


def fastapi_app(manager: CallbackManager, *args: Any, **options: Any) -> FastAPI:
    app = FastAPI()
    app.include_router(create_router(manager, *args, **options))
    return app


# Every fact of a route holds in both.
in_both = pytest.mark.parametrize(
    "app_of", [starlette_app, fastapi_app], ids=["starlette", "fastapi"]
)

AppOf = Callable[..., Any]


@contextlib.contextmanager
def client_of(app: Any, backend: str = "asyncio", **options: Any) -> Generator[TestClient]:
    """A client in process; its application's lifespan runs meanwhile."""
    kind: Any = backend
    with TestClient(app, backend=kind, **options) as client:
        yield client


@attrs.frozen
class Made:
    """A session as its client knows it."""

    client: TestClient
    id: str
    token: str

    @property
    def path(self) -> str:
        return f"/callbacks/sessions/{self.id}"

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}

    def emit(self, **body: Any) -> dict[str, Any]:
        answer = self.client.post(f"{self.path}/test", json=body, headers=self.headers)
        assert answer.status_code == 200, answer.text
        event: dict[str, Any] = answer.json()["event"]
        return event

    def end(self, manager: CallbackManager) -> None:
        portal = self.client.portal
        assert portal is not None
        portal.call(manager.end_session, self.id)


def made(client: TestClient, **config: Any) -> Made:
    """Create a session, and forget its cookie."""
    answer = client.post("/callbacks/sessions", json=config)
    assert answer.status_code == 201, answer.text
    client.cookies.clear()
    content = answer.json()
    return Made(client, content["session_id"], content["token"])


@attrs.define(eq=False)
class Connection:
    """Calls an ASGI application as a server would, and keeps what it sends."""

    app: Callable[..., Awaitable[None]]
    path: str
    method: str = "GET"
    query: str = ""
    headers: dict[str, str] = attrs.Factory(dict)
    chunks: list[bytes] = attrs.Factory(lambda: [b""])
    root_path: str = ""
    scheme: str = "http"
    reads: bool = True
    messages: list[dict[str, Any]] = attrs.Factory(list)
    taken: int = 0
    left: anyio.Event = attrs.Factory(anyio.Event)
    grown: anyio.Event = attrs.Factory(anyio.Event)
    done: anyio.Event = attrs.Factory(anyio.Event)

    async def run(self) -> None:
        told = {"host": "testserver", **self.headers}
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": self.method,
            "path": self.path,
            "raw_path": self.path.encode(errors="surrogateescape"),
            "root_path": self.root_path,
            "scheme": self.scheme,
            "query_string": self.query.encode(),
            "headers": [(name.encode(), value.encode()) for name, value in told.items()],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 2),
        }
        try:
            await self.app(scope, self._receive, self._send)
        finally:
            self.done.set()
            self.grown.set()

    async def _receive(self) -> dict[str, Any]:
        if self.taken < len(self.chunks):
            self.taken += 1
            more = self.taken < len(self.chunks)
            return {"type": "http.request", "body": self.chunks[self.taken - 1], "more_body": more}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        if not self.reads and self.messages:
            await anyio.sleep_forever()
        self.messages.append(message)
        self.grown.set()
        self.grown = anyio.Event()

    @property
    def status(self) -> int:
        status: int = self.messages[0]["status"]
        return status

    @property
    def answered(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.messages[0]["headers"]}

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages[1:])

    @property
    def events(self) -> list[ServerSentEvent]:
        return EventStreamReader().feed(self.body)

    async def until(self, is_so: Callable[[], object]) -> None:
        with anyio.fail_after(PATIENCE):
            while not is_so():
                assert not self.done.is_set(), self.messages
                await self.grown.wait()

    async def until_done(self) -> None:
        with anyio.fail_after(PATIENCE):
            await self.done.wait()


# A real server.


@contextlib.contextmanager
def serving(app: Any, **options: Any) -> Generator[int]:
    """Serve an application with uvicorn in a thread; give its port."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_level="error", lifespan="on", **options)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(PATIENCE)
        listener.close()
        assert not thread.is_alive()


@contextlib.contextmanager
def process(program: str, *arguments: str) -> Generator[tuple["subprocess.Popen[str]", int]]:
    """Run a program that prints the port it serves; give the process and the port."""
    running = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", program, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    try:
        assert running.stdout is not None
        line = running.stdout.readline()
        assert line, running.communicate()
        yield running, int(line)
    finally:
        running.kill()
        running.communicate()
