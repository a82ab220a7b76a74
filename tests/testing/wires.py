"""A client down to the socket, which sees whether a connection ended in order or was reset."""

import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import Any, Self

import anyio
import anyio.to_thread

TIMEOUT = 10.0


class Client:
    """A blocking connection; each verb runs in a thread of its own."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected

    @classmethod
    async def to(cls, port: int, *, tls: ssl.SSLContext | None = None) -> Self:
        return cls(await anyio.to_thread.run_sync(_connect, port, tls))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.socket.close()

    async def send(self, data: bytes) -> None:
        await anyio.to_thread.run_sync(self.socket.sendall, data)

    def end(self) -> None:
        self.socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.socket.close()

    async def until(self, end: bytes) -> bytes:
        """Return what arrives up to the first *end*."""
        return await anyio.to_thread.run_sync(_until, self.socket, end)

    async def exactly(self, count: int) -> bytes:
        return await anyio.to_thread.run_sync(_exactly, self.socket, count)

    async def rest(self) -> tuple[bytes, str]:
        """Return what arrives, and how the connection ends: "in order" or "reset"."""
        return await anyio.to_thread.run_sync(_rest, self.socket)

    async def is_silent(self, seconds: float = 0.2) -> bool:
        """Tell whether nothing arrives for a while, not even an end."""
        return await anyio.to_thread.run_sync(_is_silent, self.socket, seconds)

    async def post(self, path: str = "/", body: bytes = b"", *headers: str) -> None:
        lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *headers]
        await self.send("\r\n".join([*lines, "", ""]).encode() + body)

    async def asks(self, path: str = "/", body: bytes = b"", *headers: str) -> bytes:
        """Post, and return the head of the answer."""
        await self.post(path, body, *headers)
        return await self.until(b"\r\n\r\n")


def _connect(port: int, tls: ssl.SSLContext | None) -> socket.socket:
    connected = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT)
    if tls is None:
        return connected
    try:
        return tls.wrap_socket(connected, server_hostname="localhost")
    except BaseException:
        connected.close()
        raise


def _until(connected: socket.socket, end: bytes) -> bytes:
    data = b""
    while not data.endswith(end):
        data += _exactly(connected, 1)
    return data


def _exactly(connected: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        piece = connected.recv(min(count - len(data), 65_536))
        assert piece, f"it ended after {bytes(data[-100:])!r}"
        data += piece
    return bytes(data)


def _rest(connected: socket.socket) -> tuple[bytes, str]:
    data = bytearray()
    try:
        while piece := connected.recv(65_536):
            data += piece
    except (ConnectionResetError, ssl.SSLEOFError):
        # Before Python 3.13 a reset below TLS shows as an end that TLS was not told of.
        return bytes(data), "reset"
    return bytes(data), "in order"


def _is_silent(connected: socket.socket, seconds: float) -> bool:
    connected.settimeout(seconds)
    try:
        connected.recv(1, socket.MSG_PEEK)
    except TimeoutError:
        return True
    finally:
        connected.settimeout(TIMEOUT)
    return False


async def refused(port: int) -> bool:
    """Tell whether nobody listens at a port."""
    try:
        (await Client.to(port)).socket.close()
    except ConnectionRefusedError:
        return True
    return False


async def within(verb: Callable[..., Awaitable[Any]], *args: Any) -> Any:
    """Await it, but not for ever."""
    with anyio.fail_after(TIMEOUT):
        return await verb(*args)
