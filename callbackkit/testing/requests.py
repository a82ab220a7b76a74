"""What a client sent to the receiver: HTTP/1.1, as little of it as tests of clients need."""

from __future__ import annotations

import gzip
import json
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import attrs

from callbackkit.events import Event
from callbackkit.testing.sockets import Wire
from callbackkit.webhooks.receiver import receive
from callbackkit.wire.signature import verify

__all__ = ["BadRequestError", "ReceivedRequest", "RequestReader", "is_header"]

# Bytes of a request line with its headers, and of a body, that are taken.
_MAX_HEAD: Final = 65_536
_MAX_BODY: Final = 16 * 1024 * 1024

# RFC 9112, section 3: method, target, version.
_REQUEST_LINE: Final = re.compile(r"([!#$%&'*+.^_`|~\w-]+) (\S+) HTTP/(1\.[01])", re.ASCII)
# RFC 9110, section 5: the name and the value of a header.
_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~\w-]+", re.ASCII)
_VALUE: Final = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_DIGITS: Final = re.compile(r"[0-9]{1,18}")
_CHUNK_SIZE: Final = re.compile(r"([0-9A-Fa-f]{1,15})[ \t]*(?:;.*)?")


@attrs.frozen
class ReceivedRequest:
    """A request that arrived complete.

    Attributes:
        method: As it was sent: ``"POST"``.
        path: Of the target, up to the question mark, not decoded.
        query: Of the target, after the question mark; ``""`` without one.
        headers: By lower-case name; values of a name that came twice are joined by ``", "``.
        body: As it was sent, compressed if it was; chunks are put together.
        at: Seconds on :func:`time.monotonic` when its last byte had arrived.
        connection: Which connection it came on, counted from 1.
        version: ``"1.1"`` or ``"1.0"``.
    """

    method: str
    path: str
    query: str = attrs.field(repr=False)
    # Neither is for a log: they may hold what is secret.
    headers: Mapping[str, str] = attrs.field(repr=False)
    body: bytes = attrs.field(repr=False)
    at: float
    connection: int
    version: str = attrs.field(default="1.1", repr=False)

    def json(self) -> Any:
        """Return the value of the body, unpacked if ``content-encoding`` says gzip."""
        is_packed = self.headers.get("content-encoding") == "gzip"
        return json.loads(gzip.decompress(self.body) if is_packed else self.body)

    def verify(self, secret: str | Sequence[str]) -> None:
        """Return if it was signed with the secret, or with one of several, in the last 5 minutes.

        Raises:
            SignatureError: It was not.
        """
        verify(self.headers, self.body, secret)

    def events(self, secret: str | Sequence[str]) -> list[Event]:
        """Return the events of a session that it carries, its signature verified.

        Raises:
            SignatureError: As from :meth:`verify`.
            WireError: It carries no events.
        """
        return receive(self.headers, self.body, secret)

    @property
    def is_last(self) -> bool:
        """The client sends no other one on this connection."""
        said = self.headers.get("connection", "").lower()
        return said != "keep-alive" if self.version == "1.0" else said == "close"


class BadRequestError(Exception):
    """What arrived is no request, or too much of one.

    Args:
        status: What it is answered with.
        reason: Why, for whoever reads the answer.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class RequestReader:
    """Reads one request after another from a connection.

    Args:
        wire: The connection.
        number: Its number.
    """

    def __init__(self, wire: Wire, number: int) -> None:
        self._wire = wire
        self._number = number
        self._buffer = bytearray()

    async def next(self) -> ReceivedRequest:
        """Return the next request.

        Raises:
            BadRequestError: It breaks the rules of HTTP/1.1.
            ConnectionError: The client has left, between two requests or in one.
        """
        head = await self._until(b"\r\n\r\n", _MAX_HEAD)
        first, *lines = head.split("\r\n")
        if not (line := _REQUEST_LINE.fullmatch(first)):
            raise BadRequestError(400, "this is no request line of HTTP/1.1")
        method, target, version = line.groups()
        headers = _headers(lines)
        body = await self._body(headers)
        path, _, query = target.partition("?")
        return ReceivedRequest(
            method, path, query, headers, body, time.monotonic(), self._number, version
        )

    async def _body(self, headers: Mapping[str, str]) -> bytes:
        length, coding = headers.get("content-length"), headers.get("transfer-encoding")
        if length is not None and coding is not None:
            raise BadRequestError(400, "content-length and transfer-encoding exclude each other")
        if length is None and coding is None:
            return b""
        if coding is not None and coding.lower() != "chunked":
            raise BadRequestError(501, "the only transfer-encoding known here is chunked")
        if length is not None and not _DIGITS.fullmatch(length):
            raise BadRequestError(400, "content-length is no number")
        _check_size(int(length or 0))
        if headers.get("expect", "").lower() == "100-continue":
            await self._wire.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        return await (self._exactly(int(length)) if length is not None else self._chunks())

    async def _chunks(self) -> bytes:
        body = bytearray()
        while True:
            size = _CHUNK_SIZE.fullmatch(await self._until(b"\r\n", _MAX_HEAD))
            if not size:
                raise BadRequestError(400, "the size of a chunk is no number")
            count = int(size[1], 16)
            _check_size(len(body) + count)
            if count == 0:
                break
            body += await self._exactly(count)
            if await self._exactly(2) != b"\r\n":
                raise BadRequestError(400, "a chunk is longer than it said")
        while await self._until(b"\r\n", _MAX_HEAD):
            pass  # trailers
        return bytes(body)

    # From the wire.

    async def _until(self, end: bytes, limit: int) -> str:
        while (found := self._buffer.find(end)) < 0:
            if len(self._buffer) > limit:
                raise BadRequestError(431, f"more than {limit} bytes without an end")
            await self._more()
        taken = await self._exactly(found + len(end))
        return taken.removesuffix(end).decode("latin-1")

    async def _exactly(self, count: int) -> bytes:
        while len(self._buffer) < count:
            await self._more()
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken

    async def _more(self) -> None:
        data = await self._wire.receive()
        if not data:
            raise ConnectionAbortedError("the client has left")
        self._buffer += data


def is_header(name: str, value: str) -> bool:
    """Tell whether a header may be called that and have that value."""
    return bool(_NAME.fullmatch(name) and _VALUE.fullmatch(value))


def _headers(lines: Sequence[str]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not is_header(name, value):
            raise BadRequestError(400, "this is no header")
        name, value = name.lower(), value.strip(" \t")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


def _check_size(size: int) -> None:
    if size > _MAX_BODY:
        raise BadRequestError(413, f"a body may have {_MAX_BODY} bytes")
