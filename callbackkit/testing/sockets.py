"""TCP on either event loop, down to what tidy streams hide: a refused connection, and a reset."""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final, TypeVar

import anyio
import anyio.lowlevel

__all__ = ["GONE", "HOST", "Listener", "Wire", "dial", "dial_any"]

T = TypeVar("T")

HOST: Final = "127.0.0.1"

# What the verbs of a `Wire` raise when the other side has left, or this side was closed meanwhile.
GONE: Final = (OSError, anyio.ClosedResourceError)

_CHUNK: Final = 65_536
# l_onoff and l_linger: a socket that is closed with these resets its connection.
_RESETTING: Final = struct.pack("ii", 1, 0)


class Listener:
    """A port of this machine that listens, or refuses whoever comes; the port stays the same.

    Args:
        port: A port; 0 for one that the system chooses.

    Raises:
        OSError: The port is taken.
    """

    def __init__(self, port: int = 0) -> None:
        self._socket = _bound(port)
        self.port: int = self._socket.getsockname()[1]
        self._opened = anyio.Event()

    @property
    def is_open(self) -> bool:
        return self._opened.is_set()

    def open(self) -> None:
        """Listen."""
        if not self.is_open:
            self._socket.listen(1_024)
            self._opened.set()

    def close(self) -> None:
        """Refuse connections; those that nobody has accepted yet are reset."""
        if self.is_open:
            self._opened = anyio.Event()
            anyio.notify_closing(self._socket)
            self._socket.close()
            # A socket that is bound and does not listen keeps the port from anybody else.
            self._socket = _bound(self.port)

    def release(self) -> None:
        """Give the port back."""
        self.close()
        self._socket.close()

    async def accept(self) -> Wire:
        """Wait for a connection, across any closing and opening."""
        while True:
            # Asked again: it may have been closed before this task had its turn.
            while not self.is_open:
                await self._opened.wait()
            listening = self._socket
            try:
                await anyio.wait_readable(listening)
                accepted, _ = listening.accept()
            except GONE as exc:
                # Whoever came has left again, or the port was closed meanwhile.
                has_left = isinstance(exc, BlockingIOError | ConnectionAbortedError)
                if listening is self._socket and not has_left:
                    raise
                continue
            return Wire(accepted)


def _bound(port: int) -> socket.socket:
    bound = socket.socket()
    try:
        # Connections that the last listener accepted may still be there.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((HOST, port))
        bound.setblocking(False)
    except BaseException:
        bound.close()
        raise
    return bound


class Wire:
    """One end of a TCP connection, with or without TLS.

    One task may receive while another one sends.

    Args:
        connected: The socket; the wire's own from now on.
    """

    def __init__(self, connected: socket.socket) -> None:
        connected.setblocking(False)
        # Or the bytes of a drip would wait for each other.
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = connected

    async def start_tls(self, context: ssl.SSLContext) -> None:
        """Be the server of a TLS handshake."""
        wrapped = context.wrap_socket(self._socket, server_side=True, do_handshake_on_connect=False)
        self._socket = wrapped
        await self._whenever_ready(wrapped.do_handshake, anyio.wait_readable)

    async def receive(self) -> bytes:
        """Return what arrived; nothing when the other side has ended."""
        return await self._whenever_ready(lambda: self._socket.recv(_CHUNK), anyio.wait_readable)

    async def send(self, data: bytes) -> None:
        """Send all of it."""
        left = memoryview(data)
        while left:
            sent = await self._whenever_ready(partial(self._socket.send, left), anyio.wait_writable)
            left = left[sent:]

    def end(self) -> None:
        """Send nothing any more; the other side may go on."""
        try:
            if isinstance(self._socket, ssl.SSLSocket):
                # Says so in TLS, and then wants to wait for the other side's word.
                self._socket.unwrap()
        except (OSError, ValueError):
            pass
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def close(self) -> None:
        """End in order, as far as this side knows."""
        self.end()
        self._drop()

    def reset(self) -> None:
        """End with RST: the other side sees an error, and what it has not got yet is lost."""
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESETTING)
        except OSError:
            pass
        self._drop()

    def _drop(self) -> None:
        if self._socket.fileno() >= 0:
            anyio.notify_closing(self._socket)
            self._socket.close()

    async def _whenever_ready(
        self, verb: Callable[[], T], usual: Callable[[socket.socket], Awaitable[None]]
    ) -> T:
        # A fast peer must not keep everybody else from their turn.
        await anyio.lowlevel.checkpoint()
        while True:
            try:
                return verb()
            except ssl.SSLWantReadError:
                wait: Callable[[socket.socket], Awaitable[None]] = anyio.wait_readable
            except ssl.SSLWantWriteError:
                wait = anyio.wait_writable
            except BlockingIOError:
                wait = usual
            await wait(self._socket)


async def dial(host: str, port: int) -> Wire:
    """Connect to the first address of a host that answers.

    Raises:
        OSError: None does, or it has none.
    """
    found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return await dial_any([(family, address) for family, _, _, _, address in found])


async def dial_any(addresses: Sequence[tuple[int, tuple[str, int]]]) -> Wire:
    """Connect to the first of some addresses, each with its family, that answers.

    Raises:
        OSError: What the last one came to.
    """
    *others, last = addresses
    for family, address in others:
        try:
            return await _dial(family, address)
        except OSError:
            continue
    return await _dial(*last)


async def _dial(family: int, address: tuple[str, int]) -> Wire:
    dialling = socket.socket(family, socket.SOCK_STREAM)
    try:
        await _connect(dialling, address)
    except BaseException:
        dialling.close()
        raise
    return Wire(dialling)


async def _connect(dialling: socket.socket, address: tuple[str, int]) -> None:
    dialling.setblocking(False)
    try:
        dialling.connect(address)
    except BlockingIOError:
        await anyio.wait_writable(dialling)
        code = dialling.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, f"could not connect to port {address[1]}") from None
