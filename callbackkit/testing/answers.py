"""What a :class:`FaultyReceiver` does about a request: answers of all kinds, most of them bad."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

import anyio
import attrs

from callbackkit.testing.requests import ReceivedRequest, is_header
from callbackkit.testing.sockets import Wire

__all__ = [
    "Answer",
    "Drip",
    "Endless",
    "Garbage",
    "Hang",
    "Reply",
    "Reset",
    "Truncate",
    "as_reply",
]

# Bytes of a body that nobody reads for what it says.
_LENGTH: Final = 1_000
_CHUNK: Final = b"x" * 65_536

_KNOWN: Final = frozenset(HTTPStatus)


class Reply(ABC):
    """What is done about one request."""

    @abstractmethod
    async def give(self, wire: Wire, request: ReceivedRequest) -> bool:
        """Do it; tell whether the connection can be used again. It is closed otherwise."""


def as_reply(reply: Reply | int) -> Reply:
    """Return a reply for what a test wrote: a status is an :class:`Answer` with it."""
    if isinstance(reply, int) and not isinstance(reply, bool):
        return Answer(reply)
    if not isinstance(reply, Reply):
        raise TypeError(f"a reply is a status, or one of callbackkit.testing, not {reply!r}")
    return reply


def _check_status(_: object, __: object, status: int) -> None:
    if not 200 <= status <= 999:
        raise ValueError(f"status must be 200 to 999, not {status!r}")


def _check_headers(_: object, __: object, headers: Mapping[str, str]) -> None:
    for name, value in headers.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError(f"the name and the value of a header are strings: {name!r}: {value!r}")
        if not is_header(name, value):
            raise ValueError(f"{name!r}: {value!r} is no header; Garbage sends what is none")


def _check_data(_: object, field: attrs.Attribute[bytes], data: bytes) -> None:
    if not isinstance(data, bytes):
        raise TypeError(f"{field.name} must be bytes, not {type(data).__name__}")


def _check_seconds(_: object, field: attrs.Attribute[float], seconds: float) -> None:
    if not 0 <= seconds < math.inf:
        raise ValueError(f"{field.name} must be 0 or more seconds, not {seconds!r}")


def _check_bytes(_: object, field: attrs.Attribute[int], count: int) -> None:
    if count < 0:
        raise ValueError(f"{field.name} must be 0 or more bytes, not {count!r}")


@attrs.frozen
class Answer(Reply):
    """An answer as it should be.

    ``Content-Length`` and ``Connection`` are added as needed. Those in *headers* are sent instead,
    whether they are true or not.

    Attributes:
        status: 200 to 999.
        headers: By name.
        body: All of it; a 204 or 304 has none.
        delay: Seconds that pass before it is sent. The request counts as received before.
        close: Close the connection after it, and say so.
    """

    status: int = attrs.field(default=204, validator=_check_status)
    headers: Mapping[str, str] = attrs.field(factory=dict[str, str], validator=_check_headers)
    body: bytes = attrs.field(default=b"", validator=_check_data)
    delay: float = attrs.field(default=0.0, validator=_check_seconds)
    close: bool = False

    def __attrs_post_init__(self) -> None:
        if self.body and not self._has_body():
            raise ValueError(f"an answer with status {self.status} has no body")

    def _has_body(self) -> bool:
        return self.status not in {204, 304}

    async def give(self, wire: Wire, request: ReceivedRequest) -> bool:
        if self.delay:
            await anyio.sleep(self.delay)
        await wire.send(self.encoded(with_body=request.method != "HEAD"))
        return not self.close

    def encoded(self, *, with_body: bool = True) -> bytes:
        """Return the bytes that are sent."""
        return _head(self.status, self._all_headers()) + (self.body if with_body else b"")

    def _all_headers(self) -> Mapping[str, str]:
        ours: dict[str, str] = {}
        if self._has_body():
            ours["Content-Length"] = str(len(self.body))
        if self.close:
            ours["Connection"] = "close"
        theirs = {name.lower() for name in self.headers}
        kept = {name: value for name, value in ours.items() if name.lower() not in theirs}
        return {**kept, **self.headers}


@attrs.frozen
class Drip(Reply):
    """The headers at once, and then a body that comes a byte at a time.

    Attributes:
        status: 200 to 999.
        interval: Seconds before each byte.
        size: Bytes in all; ``None`` for a body that goes on until the client leaves.
    """

    status: int = attrs.field(default=200, validator=_check_status)
    interval: float = attrs.field(default=0.05, validator=_check_seconds)
    size: int | None = attrs.field(default=None, validator=attrs.validators.optional(_check_bytes))

    async def give(self, wire: Wire, request: ReceivedRequest) -> bool:
        await wire.send(_head(self.status, _framing(self.size)))
        sent = 0
        while self.size is None or sent < self.size:
            await anyio.sleep(self.interval)
            await wire.send(b"x")
            sent += 1
        return True


@attrs.frozen
class Endless(Reply):
    """A body that has no end, sent as fast as the client takes it.

    Attributes:
        status: 200 to 999.
    """

    status: int = attrs.field(default=200, validator=_check_status)

    async def give(self, wire: Wire, request: ReceivedRequest) -> bool:
        await wire.send(_head(self.status, _framing(None)))
        while True:
            await wire.send(_CHUNK)


@attrs.frozen
class Hang(Reply):
    """No answer, until the client leaves."""

    async def give(self, wire: Wire, request: ReceivedRequest) -> bool:
        while await wire.receive():
            pass
        return False


@attrs.frozen
class Reset(Reply):
    """A connection that is reset (RST): before the status line, or in the middle of an answer.

    Attributes:
        after: Bytes of an answer with status 200 that are sent before.
    """

    after: int = attrs.field(default=0, validator=_check_bytes)

    async def give(self, wire: Wire, request: ReceivedRequest) -> bool:
        length = self.after + _LENGTH
        await wire.send((_head(200, _framing(length)) + b"x" * length)[: self.after])
        wire.reset()
        return False


@attrs.frozen
class Truncate(Reply):
    """An answer that says how long its body is, and is closed in order before all of it was sent.

    Attributes:
        status: 200 to 999.
    """

    status: int = attrs.field(default=200, validator=_check_status)

    async def give(self, wire: Wire, request: ReceivedRequest) -> bool:
        await wire.send(_head(self.status, _framing(_LENGTH)) + b"x" * (_LENGTH // 10))
        return False


@attrs.frozen
class Garbage(Reply):
    """Bytes that need not be HTTP; the connection is closed after them.

    Attributes:
        data: The bytes; none at all closes the connection without an answer.
    """

    data: bytes = attrs.field(validator=_check_data)

    async def give(self, wire: Wire, request: ReceivedRequest) -> bool:
        await wire.send(self.data)
        return False


def _framing(length: int | None) -> Mapping[str, str]:
    """Return the header that says where a body ends: at a length, or where the connection does."""
    return {"Connection": "close"} if length is None else {"Content-Length": str(length)}


def _head(status: int, headers: Mapping[str, str]) -> bytes:
    reason = HTTPStatus(status).phrase if status in _KNOWN else ""
    lines = [f"HTTP/1.1 {status} {reason}", *(f"{name}: {headers[name]}" for name in headers)]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")
