"""A server that says what a test wants, and one that stands in between."""

import base64
import hashlib
import json
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import anyio
import attrs
import httpx2
from anyio.abc import ByteStream, SocketStream

from callbackkit.client import Backoff, Events, follow
from callbackkit.client.address import Address
from callbackkit.client.line import Line
from callbackkit.client.place import Place
from callbackkit.events import Event, Position
from callbackkit.wire.envelope import encode_event, end_event
from callbackkit.wire.eventstream import write_event

# Seconds for anything that is waited for.
PATIENCE = 10.0
# So that tests don't wait as people do.
QUICK = Backoff(first=0.01, max_delay=0.05, max_told=0.2)
TOKEN = "a-secret-that-nobody-sees"
PATH = "/callbacks/sessions/s1"
STREAM = {"Content-Type": "text/event-stream"}
JSON = {"Content-Type": "application/json"}


@attrs.frozen
class Request:
    """A request as it came."""

    path: str
    query: str
    headers: Mapping[str, str]

    @classmethod
    def parse(cls, head: bytes) -> "Request":
        first, *lines = head.decode("latin-1").split("\r\n")
        path, _, query = first.split(" ")[1].partition("?")
        pairs = (line.partition(":") for line in lines if line)
        return cls(path, query, {name.lower(): value.strip() for name, _, value in pairs})

    @property
    def way(self) -> str:
        return self.path.removeprefix(PATH)


Answer = Callable[[SocketStream, Request], Awaitable[None]]


@attrs.define(eq=False)
class Scripted:
    """A server that gives one answer after the other, and the last one again and again."""

    answers: list[Answer]
    port: int = 0
    requests: list[Request] = attrs.Factory(list)
    open: int = 0
    changed: anyio.Event = attrs.Factory(anyio.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{PATH}"

    @property
    def ways(self) -> list[str]:
        return [request.way for request in self.requests]

    async def serve(self, connection: SocketStream) -> None:
        self.open += 1
        try:
            async with connection:
                request = Request.parse(await head_of(connection))
                self.requests.append(request)
                place = min(len(self.requests), len(self.answers)) - 1
                await self.answers[place](connection, request)
        except (anyio.BrokenResourceError, anyio.EndOfStream, anyio.ClosedResourceError):
            pass  # the client has left
        finally:
            self.open -= 1
            self.changed.set()

    async def settled(self) -> None:
        """Wait until no connection is open."""
        with anyio.fail_after(PATIENCE):
            while self.open:
                self.changed = anyio.Event()
                await self.changed.wait()


@asynccontextmanager
async def scripted(*answers: Answer) -> AsyncGenerator[Scripted]:
    server = Scripted(list(answers))
    async with listening(server.serve) as server.port:
        yield server


@asynccontextmanager
async def listening(serve: Callable[[SocketStream], Awaitable[None]]) -> AsyncGenerator[int]:
    """Serve connections on a free port, as long as the block lasts."""
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        yield listener.extra(anyio.abc.SocketAttribute.local_port)
        tasks.cancel_scope.cancel()


async def head_of(connection: ByteStream) -> bytes:
    """Return the head of a request; nothing of ours has a body."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += await connection.receive()
    return head


# Answers.


def head(status: int, headers: Mapping[str, str]) -> bytes:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status} Told\r\n{lines}\r\n".encode()


def told(status: int, headers: Mapping[str, str] | None = None, body: bytes = b"") -> Answer:
    """A whole answer."""

    async def answer(connection: SocketStream, _request: Request) -> None:
        full = {"Content-Length": str(len(body)), "Connection": "close", **(headers or {})}
        if status == 204:
            del full["Content-Length"]
        await connection.send(head(status, full) + body)

    return named(answer, str(status))


def streamed(*chunks: bytes, headers: Mapping[str, str] = STREAM, hold: bool = False) -> Answer:
    """A stream; it breaks off behind the last chunk, or stays open."""

    async def answer(connection: SocketStream, _request: Request) -> None:
        await connection.send(head(200, headers))
        for chunk in chunks:
            await connection.send(chunk)
        if hold:
            await until_left(connection)

    return answer


async def silence(connection: SocketStream, _request: Request) -> None:
    await until_left(connection)


async def dropped(connection: SocketStream, _request: Request) -> None:
    await connection.aclose()


async def until_left(connection: SocketStream) -> None:
    while True:
        await connection.receive()


def in_turn(*answers: Answer) -> Answer:
    """One answer after the other, the last one again and again."""
    left = list(answers)

    async def answer(connection: SocketStream, request: Request) -> None:
        await (left.pop(0) if len(left) > 1 else left[0])(connection, request)

    return answer


def named(answer: Any, name: str) -> Answer:
    """Name an answer, for the ids of tests."""
    answer.__name__ = name
    return answer


def by_way(**answers: Answer) -> Answer:
    """An answer for each of the routes ``sse``, ``ws``, ``events`` and ``state``."""

    async def answer(connection: SocketStream, request: Request) -> None:
        await answers[request.way.removeprefix("/") or "state"](connection, request)

    return named(answer, "-".join(each.__name__ for each in answers.values()))


def page(*events: Event, cursor: str = "e-0", has_more: bool = False) -> Answer:
    content = {
        "events": [json.loads(encode_event(event)) for event in events],
        "cursor": events[-1].id if events else cursor,
        "has_more": has_more,
    }
    return told(200, JSON, json.dumps(content).encode())


def state(name: str = "active", position: str = "e-0") -> Answer:
    return told(200, JSON, json.dumps({"state": name, "position": position}).encode())


def messages(*frames: bytes, hold: bool = False) -> Answer:
    """A WebSocket that sends these frames."""

    async def answer(connection: SocketStream, request: Request) -> None:
        key = request.headers["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
        headers = {
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Accept": accept,
            "Sec-WebSocket-Protocol": "callbackkit",
        }
        await connection.send(head(101, headers))
        for frame in frames:
            await connection.send(frame)
        if hold:
            await until_left(connection)

    return answer


def frame(content: bytes, kind: int = 1) -> bytes:
    """A frame of a server: RFC 6455, section 5.2."""
    size = len(content)
    if size < 126:
        return bytes([0x80 | kind, size]) + content
    wide = size >= 65_536
    return bytes([0x80 | kind, 126 + wide]) + size.to_bytes(8 if wide else 2, "big") + content


def close_frame(code: int) -> bytes:
    return bytes([0x88, 2]) + code.to_bytes(2, "big")


# What follows.

# Made once: that takes longer than a test.
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def http_client(**options: Any) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(verify=NO_TLS, limits=httpx2.Limits(max_connections=None), **options)


async def raise_for_status(response: httpx2.Response) -> None:
    """A hook that many a client has."""
    response.raise_for_status()


@attrs.frozen(kw_only=True)
class Noting(Backoff):
    """Waits not at all, and notes how long it should have."""

    noted: list[tuple[int, float | None]] = attrs.Factory(list)
    grown: anyio.Event = attrs.Factory(anyio.Event)

    def delay(self, failures: int, *, chance: float, told: float | None = None) -> float:
        assert super().delay(failures, chance=chance, told=told) > 0
        self.noted.append((failures, told))
        if len(self.noted) >= 5:
            self.grown.set()
        return 0.0


@asynccontextmanager
async def following(url: str, **options: Any) -> AsyncGenerator[Events]:
    """Follow as an application does, with bounded patience."""
    with anyio.fail_after(PATIENCE):
        async with http_client() as client:
            options = {"client": client, "backoff": QUICK, **options}
            async with follow(url, options.pop("token", TOKEN), **options) as events:
                yield events


async def all_of(url: str, **options: Any) -> tuple[list[Event], Events]:
    """Follow to the end; give what came."""
    async with following(url, **options) as events:
        return [each async for each in events], events


# What is sent.


def event(number: int, epoch: str = "e", **data: Any) -> Event:
    where = Position(epoch, number)
    return Event.of("count", {"number": number, **data}, position=where, session_id="s1")


def end(number: int, name: str = "ended") -> Event:
    return end_event("s1", Position("e", number), name, microseconds=1)


def primed(position: str = "e-0") -> bytes:
    return write_event(None, id=position)


def sse(*events: Event) -> bytes:
    return b"".join(write_event(encode_event(each).decode(), id=each.id) for each in events)


def text(each: Event) -> bytes:
    return frame(encode_event(each))


def numbers(events: list[Event]) -> list[int]:
    return [each.data["number"] for each in events if not each.is_gap]


# One way alone.


@attrs.define(eq=False)
class Taken:
    """What one connection gives."""

    events: list[Event] = attrs.Factory(list)
    worked: int = 0

    async def take(self, events: list[Event]) -> None:
        self.events += events

    def work(self) -> None:
        self.worked += 1

    def line(self, client: Any, url: str, **options: Any) -> Line:
        return Line(
            client=client,
            address=Address.parse(url),
            headers={"Authorization": f"Bearer {TOKEN}"},
            place=Place(options.get("after")),
            hand=self.take,
            works=self.work,
            max_silence=options.get("max_silence", PATIENCE),
            priming=options.get("priming", PATIENCE),
            patience=options.get("patience", PATIENCE),
            closing=options.get("closing", PATIENCE),
        )
