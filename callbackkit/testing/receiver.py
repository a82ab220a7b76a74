"""A real HTTP server for tests, that answers as it is told and as badly as servers do."""

from __future__ import annotations

import ssl
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, Self

import anyio
import anyio.lowlevel
from anyio.from_thread import start_blocking_portal

from callbackkit.testing.answers import (
    Answer,
    Drip,
    Endless,
    Garbage,
    Hang,
    Reply,
    Reset,
    Truncate,
    as_reply,
)
from callbackkit.testing.messages import counted
from callbackkit.testing.receiver_thread import ReceiverInThread
from callbackkit.testing.requests import BadRequestError, ReceivedRequest, RequestReader
from callbackkit.testing.serving import Service
from callbackkit.testing.sockets import GONE, HOST, Wire
from callbackkit.testing.waiting import Bell

__all__ = [
    "Answer",
    "Drip",
    "Endless",
    "FaultyReceiver",
    "Garbage",
    "Hang",
    "ReceivedRequest",
    "Reset",
    "Truncate",
]

# Seconds that a client has to take the answer to a request it had not finished.
_PATIENCE: Final = 1.0


class FaultyReceiver:
    """An HTTP/1.1 server on 127.0.0.1 that does what a test tells it, and keeps what it got.

    Something that posts is to survive a receiver with a bad day::

        async with FaultyReceiver() as receiver:
            receiver.script(500, Reset(), Answer(429, headers={"Retry-After": "1"}))
            ...  # tell what posts to post to receiver.url
            request = await receiver.next_request()
            request.verify(secret)

    Each request takes what is next of the script, and gets 204 when that is over. It is kept when
    all of it has arrived, before it is answered, and until the receiver itself is forgotten. What
    is no HTTP/1.1 is answered with 400 or the like and not kept, as is a body above 16 MiB.

    Leaving ``async with`` closes all connections, whatever they wait for.

    A test that is no coroutine has one by :meth:`in_thread`.

    Args:
        port: Where it listens; 0 for a port that the system chooses.
        ssl_context: With one, it speaks HTTPS.

    Raises:
        OSError: By ``async with``: the port is taken.
    """

    def __init__(self, *, port: int = 0, ssl_context: ssl.SSLContext | None = None) -> None:
        self._ssl = ssl_context
        self._script: deque[Reply] = deque()
        self._otherwise: Reply = Answer()
        self._paths: dict[str, Reply] = {}
        self._requests: list[ReceivedRequest] = []
        self._handed_out = 0
        # Why what arrived was no request.
        self._turned_down = ""
        self._bell = Bell()
        self._wires: set[Wire] = set()
        self._accepted = 0
        self._service = Service("receiver", self._meet, port=port)

    def __repr__(self) -> str:
        where = f"at {self.url}" if self._service.is_started else "not started"
        return f"<FaultyReceiver {where}, {len(self._requests)} received>"

    # Its life.

    async def __aenter__(self) -> Self:
        await self._service.__aenter__()
        return self

    async def __aexit__(self, *_exc_info: object) -> None:
        await self._service.__aexit__()

    @classmethod
    @contextmanager
    def in_thread(
        cls, *, port: int = 0, ssl_context: ssl.SSLContext | None = None
    ) -> Generator[ReceiverInThread]:
        """Run one in a thread of its own, as long as a ``with`` statement.

        >>> with FaultyReceiver.in_thread() as receiver:
        ...     receiver.script(500, Reset())
        ...     len(receiver.requests)
        0

        Args:
            port: As for the class.
            ssl_context: As for the class.
        """
        with (
            start_blocking_portal() as portal,
            portal.wrap_async_context_manager(cls(port=port, ssl_context=ssl_context)) as inner,
        ):
            yield ReceiverInThread(inner, portal)

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._service.listener.port

    @property
    def url(self) -> str:
        """Its root: ``"http://127.0.0.1:54321/"``."""
        return f"{'http' if self._ssl is None else 'https'}://{HOST}:{self.port}/"

    async def stop(self) -> None:
        """Refuse connections and close those there are, as a server that is shut down."""
        self._service.listener.close()
        for wire in list(self._wires):
            wire.close()
        await anyio.lowlevel.checkpoint()

    async def resume(self) -> None:
        """Listen again, at the same port."""
        self._service.listener.open()
        await anyio.lowlevel.checkpoint()

    # What it answers.

    def script(self, *replies: Reply | int) -> None:
        """Say what the next requests get, one each, after what was said before.

        Args:
            *replies: A status, or one of the replies of :mod:`callbackkit.testing`.
        """
        self._script.extend([as_reply(reply) for reply in replies])

    @property
    def otherwise(self) -> Reply:
        """What requests get when the script is over."""
        return self._otherwise

    @otherwise.setter
    def otherwise(self, reply: Reply | int) -> None:
        self._otherwise = as_reply(reply)

    def on(self, path: str, reply: Reply | int | None) -> None:
        """Say what requests for a path get, always; they take nothing of the script.

        Args:
            path: As in :attr:`ReceivedRequest.path`: with its slash, without a query.
            reply: ``None`` takes it back.
        """
        if not path.startswith("/"):
            raise ValueError(f"a path begins with a slash, not as {path!r} does")
        if reply is None:
            self._paths.pop(path, None)
        else:
            self._paths[path] = as_reply(reply)

    # What it got.

    @property
    def requests(self) -> list[ReceivedRequest]:
        """All requests so far, oldest first."""
        return list(self._requests)

    @property
    def deliveries(self) -> dict[str, list[ReceivedRequest]]:
        """The requests by their ``webhook-id``, those without one left out: one list a webhook."""
        deliveries: dict[str, list[ReceivedRequest]] = {}
        for request in self._requests:
            if "webhook-id" in request.headers:
                deliveries.setdefault(request.headers["webhook-id"], []).append(request)
        return deliveries

    @property
    def connections(self) -> int:
        """Connections that are open now."""
        return len(self._wires)

    async def next_request(self, *, timeout: float | None = None) -> ReceivedRequest:
        """Return the oldest request that was not returned yet; wait for it if need be.

        Args:
            timeout: Seconds to wait; ``None`` for no limit.

        Raises:
            TimeoutError: None came.
        """
        wanted = self._handed_out + 1
        if not await self._bell.wait_until(lambda: len(self._requests) > self._handed_out, timeout):
            raise self._too_few(wanted, timeout)
        self._handed_out += 1
        return self._requests[self._handed_out - 1]

    async def wait_for(self, count: int, *, timeout: float | None = None) -> list[ReceivedRequest]:
        """Wait until at least *count* requests have come; return the first *count*.

        Args:
            count: Requests, those before the waiting included.
            timeout: Seconds to wait; ``None`` for no limit.

        Raises:
            TimeoutError: Fewer came.
        """
        if not await self._bell.wait_until(lambda: len(self._requests) >= count, timeout):
            raise self._too_few(count, timeout)
        return self._requests[:count]

    async def wait_disconnected(self, *, timeout: float | None = None) -> None:
        """Wait until no client is connected any more.

        Args:
            timeout: Seconds to wait; ``None`` for no limit.

        Raises:
            TimeoutError: Some still were.
        """
        if not await self._bell.wait_until(lambda: not self._wires, timeout):
            left = counted(self.connections, "connection")
            raise TimeoutError(f"{left} were still open after {timeout} seconds")

    def _too_few(self, wanted: int, timeout: float | None) -> TimeoutError:
        came = counted(len(self._requests), "request")
        why = f"; the last that was turned down: {self._turned_down}" if self._turned_down else ""
        return TimeoutError(f"{came} came within {timeout} seconds, not {wanted}{why}")

    # Serving.

    def _meet(self, wire: Wire) -> Callable[[], Coroutine[Any, Any, None]]:
        self._accepted += 1
        self._wires.add(wire)
        return partial(self._attend, wire, self._accepted)

    async def _attend(self, wire: Wire, number: int) -> None:
        try:
            if self._ssl is not None:
                await wire.start_tls(self._ssl)
            await self._converse(wire, number)
        except GONE:
            pass  # the client has left, or was made to
        finally:
            wire.close()
            self._wires.discard(wire)
            self._bell.ring()

    async def _converse(self, wire: Wire, number: int) -> None:
        reader = RequestReader(wire, number)
        try:
            while True:
                request = await reader.next()
                is_usable = await self._take(request).give(wire, request)
                if not is_usable or request.is_last:
                    return
        except BadRequestError as exc:
            self._turned_down = str(exc)
            await _turn_down(wire, exc)

    def _take(self, request: ReceivedRequest) -> Reply:
        """Keep a request; return what it gets."""
        self._requests.append(request)
        self._bell.ring()
        if request.path in self._paths:
            return self._paths[request.path]
        return self._script.popleft() if self._script else self._otherwise


async def _turn_down(wire: Wire, why: BadRequestError) -> None:
    """Answer, and take what the client still sends: a close before that would be a reset."""
    await wire.send(Answer(why.status, body=f"{why}\n".encode(), close=True).encoded())
    wire.end()
    with anyio.move_on_after(_PATIENCE):
        while await wire.receive():
            pass
