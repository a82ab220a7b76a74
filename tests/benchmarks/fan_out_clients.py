"""Many clients of a server in one place: plain sockets that count the events they get.

They know nothing of HTTP or WebSocket framing, so that they cost the same whatever they read: every
event carries :data:`MARK` once, and that is what is counted.
"""

import selectors
import socket
from collections.abc import Callable, Iterable
from time import monotonic
from typing import Self

MARK = b"<@>"
"""Stands in each event once, and nowhere else."""

PATIENCE = 30.0
"""Seconds after which what has not come is lost."""

# Connections that are begun before the first of them is answered; less than a server's backlog.
_AT_ONCE = 500
# The last bytes of a read that may begin a mark.
_REST = len(MARK) - 1

Take = Callable[[bytes], None]
Request = Callable[[str], bytes]
"""Writes the request for a path."""


class Client:
    """One connection.

    Attributes:
        events: How many marks came.
    """

    def __init__(self, connection: socket.socket, take: Take | None) -> None:
        self.connection: socket.socket = connection
        self.events: int = 0
        self._rest = b""
        self._take = take

    def begin(self) -> None:
        """Take the first of what the server answers.

        Raises:
            RuntimeError: It refuses.
        """
        chunk = self.connection.recv(262_144)
        if not chunk.startswith((b"HTTP/1.1 200 ", b"HTTP/1.1 101 ")):
            raise RuntimeError(f"the server answers {chunk[:300]!r}")
        self._count(chunk)

    def read(self) -> int:
        """Take what has come; return how many events that are.

        Raises:
            RuntimeError: The server has closed the connection.
        """
        chunk = self.connection.recv(262_144)
        if not chunk:
            raise RuntimeError("the server has closed a connection that was being measured")
        return self._count(chunk)

    def _count(self, chunk: bytes) -> int:
        if self._take is not None:
            self._take(chunk)
        text = self._rest + chunk
        self._rest = text[-_REST:]
        found = text.count(MARK)
        self.events += found
        return found


class Clients:
    """Connections to one server, read by whoever calls; to be closed.

    Args:
        port: Where the server listens on this machine.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._selector = selectors.DefaultSelector()
        self.all: list[Client] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection."""
        self._selector.close()
        for client in self.all:
            client.connection.close()

    def connect(self, requests: Iterable[bytes], take: Callable[[int], Take] | None = None) -> None:
        """Open a connection for each request, and wait until all are answered.

        Args:
            requests: What each client sends.
            take: Makes what gets the bytes that a client reads, by the client's number.

        Raises:
            RuntimeError: One is refused.
        """
        waiting = list(requests)
        for begin in range(0, len(waiting), _AT_ONCE):
            known = len(self.all)
            for number, request in enumerate(waiting[begin : begin + _AT_ONCE], begin):
                connection = socket.create_connection(("127.0.0.1", self._port))
                connection.sendall(request)
                self.all.append(Client(connection, take and take(number)))
            for client in self.all[known:]:
                client.connection.settimeout(PATIENCE)
                client.begin()
                client.connection.setblocking(False)
                self._selector.register(client.connection, selectors.EVENT_READ, client)

    def receive(self, events: int, seconds: float = PATIENCE) -> int:
        """Read until so many events came in all, or the seconds are over.

        Returns:
            How many came.
        """
        until = monotonic() + seconds
        came = 0
        while came < events and (left := until - monotonic()) > 0:
            for key, _ in self._selector.select(left):
                came += key.data.read()
        return came

    def expect(self, each: int, seconds: float = PATIENCE) -> None:
        """Read until every client has got so many more events, or the seconds are over.

        Raises:
            RuntimeError: One got fewer, or more.
        """
        before = [client.events for client in self.all]
        self.receive(each * len(self.all), seconds)
        got = [client.events - had for client, had in zip(self.all, before, strict=True)]
        if set(got) != {each}:
            raise RuntimeError(f"{each} events for each client: between {min(got)} and {max(got)}")


def get(path: str) -> bytes:
    """The request for a stream of events."""
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\n\r\n".encode()


def upgrade(path: str) -> bytes:
    """The request for a WebSocket, without compression. The key is that of RFC 6455."""
    return (
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    ).encode()
