"""What a process can serve to many clients, what an event is there, and the bare limits."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import attrs

from tests.benchmarks.fan_out_clients import MARK

DATA = {
    "progress": 0.4,
    "message": f"reading the third chapter of this book, page 41 {MARK.decode()}",
    "current_step": 3,
}
"""What an event says; with what stands around it about 290 bytes of JSON."""

EVENT_ID = "0123456789abcdef-1000"
CONTENT: dict[str, Any] = {
    "event_id": EVENT_ID,
    "event_type": "progress",
    "timestamp": "2026-11-21T12:00:00.123456Z",
    "session_id": "0123456789abcdef0123456789abcdef",
    "conversation_id": None,
    "data": DATA,
    "metadata": {},
}
TEXT = json.dumps(CONTENT, separators=(",", ":"))
FRAME = f"id: {EVENT_ID}\ndata: {TEXT}\n\n".encode()
"""An event as the others send it by SSE, ready."""

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Any, Any, Any], Awaitable[None]]


@attrs.frozen(kw_only=True)
class Service:
    """What a process serves.

    Attributes:
        publish: Publishes so many events, one behind the other, to every client.
        app: An application for uvicorn.
        protocol: What serves connections itself, where there is no application.
        paths: What the clients ask for; if there are more clients, from the first again.
        orders: More that it can be told to do, with a number, by name.
    """

    publish: Callable[[int], Awaitable[None]]
    app: App | None = None
    protocol: Callable[[], asyncio.Protocol] | None = None
    paths: list[str] = attrs.field(factory=lambda: ["/"])
    orders: dict[str, Callable[[float], Awaitable[float | None]]] = attrs.field(factory=dict)


Open = Callable[[int], AbstractAsyncContextManager[Service]]
"""Opens a service, with a number that it may need. Imports what it needs then."""


class Ready(asyncio.Protocol):
    """Answers whatever comes first with a head, and has its transport written to."""

    def __init__(self, head: bytes, opened: set[asyncio.Transport]) -> None:
        self._head = head
        self._opened = opened
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not asked whether it is one: those of uvloop only look like it.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        transport = self._transport
        if transport is not None and transport not in self._opened:
            transport.write(self._head)
            self._opened.add(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._transport is not None:
            self._opened.discard(self._transport)


@asynccontextmanager
async def bare_writes(head: bytes, frame: bytes, _: int) -> AsyncIterator[Service]:
    """Write bytes that are ready to every connection; each write is a call to the system."""
    opened: set[asyncio.Transport] = set()

    async def publish(events: int) -> None:
        for _ in range(events):
            for transport in opened:
                transport.write(frame)

    yield Service(publish=publish, protocol=partial(Ready, head, opened))


@asynccontextmanager
async def bare_application(_: int) -> AsyncIterator[Service]:
    """Hold streams and WebSockets open, with nothing but an application's few calls."""

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return
        if scope["type"] == "websocket":
            await send({"type": "websocket.accept"})
        else:
            headers = [(b"content-type", b"text/event-stream")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": b": open\n\n", "more_body": True})
        while not (await receive())["type"].endswith("disconnect"):
            pass

    async def publish(_: int) -> None:
        raise RuntimeError("nothing is published here")

    async def created(_: float) -> float:
        return 0.0

    yield Service(publish=publish, app=app, orders={"created": created})


def resident_bytes() -> float:
    """Return how much memory this process has. Linux only."""
    text = Path("/proc/self/status").read_text("ascii")
    [kilobytes] = [line.split()[1] for line in text.splitlines() if line.startswith("VmRSS:")]
    return int(kilobytes) * 1024


def _chunk(data: bytes) -> bytes:
    """Frame a chunk of a response (RFC 9112, section 7.1)."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def _text_message(text: bytes) -> bytes:
    """Frame a text message of 126 bytes to 64 KiB (RFC 6455, section 5.2)."""
    return b"\x81\x7e" + len(text).to_bytes(2, "big") + text


_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
    b"cache-control: no-store\r\ntransfer-encoding: chunked\r\n\r\n"
)
_SWITCHED = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)

LIMITS: dict[str, Open] = {
    "limit-sse": partial(bare_writes, _STREAM_HEAD, _chunk(FRAME)),
    "limit-websocket": partial(bare_writes, _SWITCHED, _text_message(TEXT.encode())),
    "limit-idle": bare_application,
}
