"""A server in a process of its own, sockets that misbehave, and a network that does."""

import contextlib
import itertools
import json
import os
import re
import selectors
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from http.client import HTTPResponse
from pathlib import Path
from typing import Any, Self

import attrs

import callbackkit
from callbackkit.wire.eventstream import EventStreamReader, ServerSentEvent

HERE = Path(__file__).parent
# Seconds for anything that is waited for.
PATIENCE = 10.0
# What a server says when something went wrong that is nobody's business.
COMPLAINTS = re.compile(
    r"Traceback|Task was destroyed|never retrieved|never awaited|Exception in|Warning"
)
# How uvicorn tells of a text message that is no text.
THEIRS = re.compile(
    r"ERROR: +Invalid UTF-8 sequence[^\n]*\nTraceback.*?\nUnicodeDecodeError", re.DOTALL
)
PROBLEM = "application/problem+json"


# Requests.


@attrs.frozen
class Answer:
    """What a server answered to one request."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    def check_problem(self) -> None:
        """Hold that it is a problem document, and tells of its own status."""
        assert 400 <= self.status < 500, self
        assert self.headers["content-type"] == PROBLEM, self
        assert self.json()["status"] == self.status, self


def request_bytes(
    method: str, target: str | bytes, headers: Mapping[str, str] | None = None, body: bytes = b""
) -> bytes:
    """Return a request as a client without any checks would send it."""
    raw = target if isinstance(target, bytes) else target.encode()
    told = {"Host": "127.0.0.1", **(headers or {})}
    if body:
        told.setdefault("Content-Length", str(len(body)))
    lines = [b"%b %b HTTP/1.1" % (method.encode(), raw)]
    lines += [f"{name}: {value}".encode("latin-1") for name, value in told.items()]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def dial(port: int, *, buffer: int | None = None) -> socket.socket:
    """Connect; with a receive buffer of so many bytes."""
    made = socket.socket()
    made.settimeout(PATIENCE)
    if buffer is not None:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    made.connect(("127.0.0.1", port))
    return made


def reset(connection: socket.socket) -> None:
    """Close with RST."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def answer_to(port: int, sent: bytes, *, method: str = "GET") -> Answer:
    """Send some bytes, and read the answer to them."""
    with dial(port) as connection:
        with contextlib.suppress(ConnectionError):
            # Whoever refuses a body need not read it.
            connection.sendall(sent)
        return read_answer(connection, method)


def read_answer(connection: socket.socket, method: str = "GET") -> Answer:
    response = HTTPResponse(connection, method=method)
    try:
        response.begin()
        headers = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, headers, response.read())
    finally:
        response.close()


# Streams.


class Sse:
    """A client of one event stream; without a path of one that was asked for already."""

    def __init__(
        self,
        port: int | socket.socket,
        path: str | None,
        headers: Mapping[str, str] | None = None,
        **options: Any,
    ) -> None:
        self.socket = dial(port, **options) if isinstance(port, int) else port
        if path is not None:
            self.socket.sendall(request_bytes("GET", path, headers))
        self.response = HTTPResponse(self.socket)
        self.response.begin()
        self.status = self.response.status
        self.raw = b""
        self._reader = EventStreamReader()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        self.response.close()
        self.socket.close()

    def reset(self) -> None:
        self.response.close()
        reset(self.socket)

    @property
    def position(self) -> str:
        return self._reader.last_event_id

    def read(self) -> list[ServerSentEvent]:
        """Return what came, after waiting for something; at the end nothing."""
        chunk = self.response.read1(65_536)
        self.raw += chunk
        return self._reader.feed(chunk)

    def primed(self) -> Self:
        """Wait for the first position."""
        assert self.status == 200
        while not self.position:
            self.read()
        return self

    def events(self, count: int, *, patience: float = PATIENCE) -> list[dict[str, Any]]:
        """Return the next events, so many."""
        found: list[dict[str, Any]] = []
        before = time.monotonic()
        while len(found) < count:
            assert time.monotonic() - before < patience, (len(found), count)
            found += [json.loads(each.data) for each in self.read()]
            assert not self.response.isclosed(), (len(found), count, self.raw[-500:])
        assert len(found) == count
        return found

    def at_least(self, count: int) -> list[dict[str, Any]]:
        """Return so many events, and what came along with the last of them."""
        found: list[dict[str, Any]] = []
        while len(found) < count:
            found += [json.loads(each.data) for each in self.read()]
            assert not self.response.isclosed(), (len(found), count)
        return found

    def rest(self) -> bytes:
        """Return everything up to the end, and what came before."""
        while not self.response.isclosed():
            if not self.response.read1(0) and not (chunk := self.response.read1(65_536)):
                break
            self.raw += chunk
            self._reader.feed(chunk)
        return self.raw


def frame(opcode: int, payload: bytes, *, last: bool = True, masked: bool = True) -> bytes:
    """Return a frame as a client of a WebSocket sends it (RFC 6455, section 5.2)."""
    head = bytes([(0x80 if last else 0) | opcode])
    flag = 0x80 if masked else 0
    if len(payload) < 126:
        head += bytes([flag | len(payload)])
    elif len(payload) < 65_536:
        head += struct.pack("!BH", flag | 126, len(payload))
    else:
        head += struct.pack("!BQ", flag | 127, len(payload))
    # Masked with zeros it stays what it is.
    return head + (b"\0\0\0\0" if masked else b"") + payload


def handshake(path: str, headers: Mapping[str, str] | None = None) -> bytes:
    return request_bytes(
        "GET",
        path,
        {
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
            "Sec-WebSocket-Version": "13",
            **(headers or {}),
        },
    )


class WebSocket:
    """A client of one WebSocket that may do anything."""

    def __init__(
        self,
        port: int | socket.socket,
        path: str,
        headers: Mapping[str, str] | None = None,
        **options: Any,
    ) -> None:
        self.socket = dial(port, **options) if isinstance(port, int) else port
        self.socket.sendall(handshake(path, headers))
        self._file = self.socket.makefile("rb")
        self.status = int(self._file.readline().split()[1])
        self.headers: dict[str, str] = {}
        while (line := self._file.readline()) not in {b"\r\n", b""}:
            name, _, value = line.decode("latin-1").partition(":")
            self.headers[name.lower()] = value.strip()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()
        self.socket.close()

    def reset(self) -> None:
        self._file.close()
        reset(self.socket)

    def send(self, payload: bytes, opcode: int = 1, *, last: bool = True) -> None:
        self.socket.sendall(frame(opcode, payload, last=last))

    def read(self) -> tuple[int, bytes]:
        """Return the next frame: its opcode, and what it holds; 8 and nothing at the end."""
        head = self._file.read(2)
        if len(head) < 2:
            return 8, b""
        size = head[1] & 0x7F
        if size == 126:
            (size,) = struct.unpack("!H", self._file.read(2))
        elif size == 127:
            (size,) = struct.unpack("!Q", self._file.read(8))
        return head[0] & 0x0F, self._file.read(size)

    def events(self, count: int) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        while len(found) < count:
            opcode, payload = self.read()
            assert opcode in {1, 9, 10}, (opcode, payload, len(found), count)
            if opcode == 1:
                event = json.loads(payload)
                if event["event_type"] != "callbackkit.heartbeat":
                    found.append(event)
        return found

    def at_least(self, count: int) -> list[dict[str, Any]]:
        return self.events(count)

    def close_code(self) -> int | None:
        """Read on until it is closed, and return with which code; ``None`` if without one."""
        while True:
            try:
                opcode, payload = self.read()
            except ConnectionError:
                return None
            if opcode == 8:
                return struct.unpack("!H", payload[:2])[0] if len(payload) >= 2 else None


# A network.


class Proxy:
    """Passes on what comes, until it is told to lose it all: then nobody hears of anybody."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._wake, self._woken = socket.socketpair()
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._is_lost = False
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self._wake.send(b"x")
        self._thread.join()
        for each in (self._listener, self._wake, self._woken, *self._pairs):
            each.close()
        self._selector.close()

    def lose(self) -> None:
        """Hand on nothing more, and tell nobody: no data, no FIN, no RST."""
        self._is_lost = True

    def _run(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._woken:
                    return
                if key.fileobj is self._listener:
                    self._accept()
                else:
                    self._pass_on(key.fileobj)

    def _accept(self) -> None:
        near, _ = self._listener.accept()
        far = socket.create_connection(("127.0.0.1", self._target))
        self._pairs[near], self._pairs[far] = far, near
        self._selector.register(near, selectors.EVENT_READ)
        self._selector.register(far, selectors.EVENT_READ)

    def _pass_on(self, source: Any) -> None:
        if self._is_lost:
            # Left where it is, so that buffers fill.
            self._selector.unregister(source)
            return
        try:
            chunk = source.recv(65_536)
        except ConnectionError:
            chunk = b""
        if chunk:
            with contextlib.suppress(ConnectionError):
                self._pairs[source].sendall(chunk)
        else:
            self._selector.unregister(source)
            with contextlib.suppress(OSError):
                self._pairs[source].shutdown(socket.SHUT_WR)


# The server.


@attrs.frozen
class Session:
    """A session as its client knows it."""

    id: str
    token: str
    path: str

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}


class Server:
    """The application under uvicorn."""

    def __init__(
        self,
        database: Path,
        *,
        framework: str = "fastapi",
        workers: int = 1,
        arguments: tuple[str, ...] = (),
        **options: Any,
    ) -> None:
        self.prefix = "/callbacks" if framework == "fastapi" else "/api/callbacks"
        self.log: list[str] = []
        self.port = 0
        self.workers = workers
        self._arguments = arguments if workers == 1 else (*arguments, "--workers", str(workers))
        told = {"database": str(database), "framework": framework, **options}
        path = [str(Path(callbackkit.__file__).parents[1]), os.environ.get("PYTHONPATH")]
        self._environment = os.environ | {
            "WITHSTAND": json.dumps(told),
            "PYTHONPATH": os.pathsep.join(filter(None, path)),
        }
        self.process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()
        if exc_info[0] is None:
            self.check_log()

    def start(self) -> None:
        """Start it, on the port that it had before, and return when it serves."""
        command = [sys.executable, "-m", "uvicorn", "--factory", "withstand_app:app"]
        self.process = subprocess.Popen(
            [*command, "--app-dir", str(HERE), "--port", str(self.port), *self._arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=self._environment,
        )
        self._serves = False
        serves = threading.Event()
        self._reader = threading.Thread(target=self._read, args=[self.process, serves])
        self._reader.start()
        serves.wait(2 * PATIENCE)
        if not self._serves:
            self.stop(signal.SIGKILL)
            raise TimeoutError(self.said)

    def _read(self, process: "subprocess.Popen[str]", serves: threading.Event) -> None:
        assert process.stdout is not None
        started, is_bound = 0, False
        with process.stdout:
            for line in process.stdout:
                self.log.append(line)
                if found := re.search(r"Uvicorn running on http://127.0.0.1:(\d+)", line):
                    self.port, is_bound = int(found[1]), True
                started += "Application startup complete" in line
                if is_bound and started >= self.workers:
                    self._serves = True
                    serves.set()
        serves.set()

    def kill(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def wait(self, seconds: float = PATIENCE) -> int:
        """Return the exit code, once it has ended by itself."""
        assert self.process is not None
        code = self.process.wait(seconds)
        self._reader.join()
        return code

    def stop(self, number: int = signal.SIGTERM) -> None:
        process, self.process = self.process, None
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(PATIENCE)
        finally:
            process.kill()
            process.wait()
            self._reader.join()

    @property
    def said(self) -> str:
        return "".join(self.log)

    def check_log(self) -> None:
        """Hold that nothing went wrong inside it."""
        said = THEIRS.sub("", self.said)
        found = COMPLAINTS.search(said)
        assert found is None, said[max(found.start() - 1_000, 0) : found.end() + 5_000]

    # What a test asks of it.

    def ask(
        self,
        method: str,
        target: str | bytes,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
    ) -> Answer:
        return answer_to(self.port, request_bytes(method, target, headers, body), method=method)

    def tell(self, path: str, content: Any) -> Any:
        kind = {"Content-Type": "application/json"}
        answer = self.ask("POST", f"/debug/{path}", kind, json.dumps(content).encode())
        assert answer.status == 200, answer
        return answer.json()

    def session(self, **config: Any) -> Session:
        made = self.tell("sessions", config)
        path = f"{self.prefix}/sessions/{made['session_id']}"
        return Session(made["session_id"], made["token"], path)

    def emit(self, session: Session, first: int = 0, count: int = 1, size: int = 0) -> None:
        self.tell(f"emit/{session.id}", {"first": first, "count": count, "size": size})

    def counts(self) -> dict[str, int]:
        found: dict[str, int] = self.ask("GET", "/debug/counts").json()
        return found

    def reads(self, session: Session) -> int:
        """Return how often its log was read."""
        target = f"/debug/read?session_id={session.id}"
        reads: int = self.ask("GET", target).json()["reads"]
        return reads

    def base(self) -> dict[str, int]:
        """Return what is alive now, without what goes up and down by itself."""
        found = self.counts()
        return {name: found[name] for name in found if name not in {"rss", "pid"}}

    def check_settled(self, base: Mapping[str, int], *, turns: int = 2) -> None:
        """Hold that no more is alive than before."""
        for _ in range(turns):
            found = self.tell("settled", base)
            if all(found[name] <= base[name] for name in base):
                return
        assert all(found[name] <= base[name] for name in base), (found, base)


def numbers(events: list[dict[str, Any]]) -> list[int]:
    return [event["data"]["number"] for event in events]


@contextlib.contextmanager
def many(made: Iterator[Any]) -> Generator[list[Any]]:
    """Have several clients, and close all of them."""
    found: list[Any] = []
    try:
        found.extend(made)
        yield found
    finally:
        for each in found:
            each.close()


# Clients that behave, and some that do not.


def sse_of(port: int, session: Session, **options: Any) -> Sse:
    return Sse(port, f"{session.path}/sse", **options).primed()


def storm(port: int, path: str, positions: Iterable[str]) -> Iterator[Sse]:
    """Have clients come back at once, each to where it was."""
    requests = [request_bytes("GET", path, {"Last-Event-ID": each}) for each in positions]
    sockets = [dial(port) for _ in requests]
    for each, request in zip(sockets, requests, strict=True):
        each.sendall(request)
    return (Sse(each, None) for each in sockets)


def websocket_of(port: int, session: Session, **options: Any) -> WebSocket:
    return WebSocket(port, f"{session.path}/ws?after=now", **options)


def after_connect(_connection: socket.socket, _request: bytes) -> None:
    """Say nothing at all."""


def after_half(connection: socket.socket, request: bytes) -> None:
    connection.sendall(request[: len(request) // 2])


def after_request(connection: socket.socket, request: bytes) -> None:
    connection.sendall(request)


def after_headers(connection: socket.socket, request: bytes) -> None:
    connection.sendall(request)
    connection.recv(1)


MOMENTS = (after_connect, after_half, after_request, after_headers)


def requests_of(session: Session) -> list[bytes]:
    """Return a request of every kind that takes a while."""
    path = session.path
    kind = {"Content-Type": "application/json", "Content-Length": "1000"}
    return [
        request_bytes("GET", f"{path}/sse"),
        handshake(f"{path}/ws"),
        request_bytes("GET", f"{path}/events?wait=20&after=now"),
        request_bytes("GET", path.partition("/sessions")[0] + "/events/sse"),
        request_bytes("POST", f"{path}/test", kind) + b'{"event',
    ]


def connect_and_reset(port: int, requests: list[bytes], times: int) -> None:
    """Begin requests, and reset the connection at every moment in turn."""
    turns = itertools.cycle(itertools.product(MOMENTS, requests))
    for moment, request in itertools.islice(turns, times):
        connection = dial(port)
        is_waiting = b"wait=20" in request or b"POST" in request
        if not (moment is after_headers and is_waiting):
            moment(connection, request)
        reset(connection)


def grown(server: Server, **wanted: int) -> None:
    """Wait until so many are alive."""
    ends = time.monotonic() + PATIENCE
    while any((found := server.counts())[name] < count for name, count in wanted.items()):
        assert time.monotonic() < ends, found


def check_told(streams: list[Any]) -> None:
    """Hold that every client is told to come back."""
    for each in streams:
        if isinstance(each, Sse):
            assert b"retry: " in each.rest().rpartition(b"\n\n")[0].rpartition(b"\n\n")[2]
        elif isinstance(each, WebSocket):
            assert each.close_code() == 1012
        else:
            answer = read_answer(each)
            assert (answer.status, answer.json()["events"]) == (200, [])


def waiting_poll(port: int, session: Session) -> socket.socket:
    connection = dial(port)
    target = f"{session.path}/events?wait=30&after=now"
    connection.sendall(request_bytes("GET", target))
    return connection


def streams_of(server: Server, count: int) -> Iterator[Any]:
    """Open streams of every kind, so many in all."""
    sessions = [server.session() for _ in range(10)]
    for number in range(count):
        session = sessions[number % len(sessions)]
        if number % 5 < 2:
            yield sse_of(server.port, session)
        elif number % 5 < 4:
            yield websocket_of(server.port, session)
        else:
            yield waiting_poll(server.port, session)
