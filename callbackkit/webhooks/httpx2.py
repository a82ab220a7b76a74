"""Posting webhooks with httpcore2, which is what httpx2 stands on; on asyncio and trio."""

from __future__ import annotations

import ssl
from collections import OrderedDict
from contextlib import aclosing
from functools import cache, lru_cache
from typing import Any, Final, cast

import anyio
import attrs

try:
    import httpcore2
except ImportError as _exc:
    raise ImportError(
        "callbackkit.webhooks.httpx2 needs httpx2: install callbackkit[webhook-trio]"
    ) from _exc

from callbackkit.webhooks.guard import Guard
from callbackkit.webhooks.sender import (
    IDLE,
    MAX_ANSWER,
    MOST_IDLE,
    LookUp,
    NameService,
    Sender,
    WebhookRequest,
    WebhookResponse,
    as_headers,
    as_send_error,
    check_keeping,
    check_ssl_context,
    look_up,
    target_of,
)

__all__ = ["Httpx2Sender"]

# Seconds after which the next address is tried besides the one that has not answered yet.
# Source: RFC 8305, section 5, "Connection Attempt Delay".
_NEXT_ADDRESS: Final = 0.25

# Bytes of a request that are written before an answer is looked for; more are written meanwhile,
# as whoever refuses a large body may answer without having read it.
_AT_ONCE: Final = 16_384

# What httpcore2 raises, and sockets below it; ValueError is that of a name TLS can't ask for.
_FAILURES: Final = (
    httpcore2.NetworkError,
    httpcore2.ProtocolError,
    httpcore2.TimeoutException,
    OSError,
    ValueError,
)


class Httpx2Sender(Sender):
    """Posts with httpx2; what a :class:`WebhookTransport` uses on trio unless told otherwise.

    Args:
        ssl_context: How certificates are checked; by default against those the machine trusts.
        find: Who knows the addresses of host names; by default the system.
        keepalive: Seconds that a connection is kept for the next request to its host.
        max_idle: Connections that are kept; of more, those that were not used the longest are
            closed.

    Raises:
        ValueError: The *ssl_context* would let any certificate pass; a number out of its range.
    """

    def __init__(
        self,
        *,
        ssl_context: ssl.SSLContext | None = None,
        find: LookUp = look_up,
        keepalive: float = IDLE,
        max_idle: int = MOST_IDLE,
    ) -> None:
        self._ssl = check_ssl_context(ssl_context)
        check_keeping(keepalive, max_idle)
        self._find = find
        self._keepalive = keepalive
        self._max_idle = max_idle
        self._pool: _Pool | None = None

    async def start(self, guard: Guard) -> None:
        if self._pool is None:
            context = _default_context() if self._ssl is None else self._ssl
            names = NameService(guard, self._find)
            self._pool = _Pool(names, context, self._keepalive, self._max_idle)

    async def send(self, request: WebhookRequest) -> WebhookResponse:
        if self._pool is None:
            raise RuntimeError("the sender is not started")
        try:
            return await self._pool.post(_route_of(request.url), request)
        except _FAILURES as exc:
            failure = as_send_error(exc, _words(exc))
        # Out here, so that no library's exception is its context.
        raise failure

    async def aclose(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.aclose()


# One for all: to load the certificates of the authorities takes tens of milliseconds.
@cache
def _default_context() -> ssl.SSLContext:
    context = httpcore2.default_ssl_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


def _words(exc: Exception) -> str:
    if isinstance(exc, httpcore2.ConnectError):
        return "could not connect"
    if isinstance(exc, httpcore2.ProtocolError):
        return "no valid HTTP answer"
    return "the connection was closed"


# A URL as httpcore2 has it.


@attrs.frozen
class _Route:
    """Where a request goes.

    Attributes:
        key: What connections are kept under: scheme, host and port.
    """

    key: str
    scheme: str
    host: str
    port: int
    url: httpcore2.URL
    authority: bytes


# A pure function; asked for with each request.
@lru_cache(maxsize=1_024)
def _route_of(url: str) -> _Route:
    target = target_of(url)
    authority = target.authority
    return _Route(
        key=f"{target.scheme}://{authority}",
        scheme=target.scheme,
        host=target.host,
        port=target.port,
        url=httpcore2.URL(
            scheme=target.scheme, host=target.host, port=target.port, target=target.path
        ),
        authority=authority.encode("ascii"),
    )


# Connections. A pool of httpcore2 looks at each connection it has for each request: with a
# thousand endpoints that would be most of the work, so that this one keeps them by host.


class _Pool:
    """Dials, posts, and keeps connections for the next request to the same host."""

    def __init__(
        self, names: NameService, context: ssl.SSLContext, keepalive: float, most: int
    ) -> None:
        self._names = names
        self._context = context
        self._keepalive = keepalive
        self._most = most
        # It is there with anyio, and for trio too; its type is that of a missing one as well.
        self._backend = cast(httpcore2.AsyncNetworkBackend, httpcore2.AnyIOBackend())
        self._is_closed = False
        self._open: set[_Connection] = set()
        # Those that are idle, the longest first, and the same by where they lead.
        self._idle: OrderedDict[_Connection, None] = OrderedDict()
        self._by_key: dict[str, list[_Connection]] = {}

    async def post(self, route: _Route, request: WebhookRequest) -> WebhookResponse:
        kept = await self._take(route.key)
        if kept is not None:
            try:
                return await self._exchange(kept, route, request)
            except _FAILURES:
                if kept.stream.has_answered or self._is_closed:
                    raise
                # Closed by the other end while it was idle, as far as can be told.
        return await self._exchange(await self._connect(route), route, request)

    async def _exchange(
        self, connection: _Connection, route: _Route, request: WebhookRequest
    ) -> WebhookResponse:
        try:
            return await connection.post(route, request)
        finally:
            await self._give_back(connection)

    async def aclose(self) -> None:
        self._is_closed = True
        self._idle.clear()
        self._by_key.clear()
        for connection in tuple(self._open):
            await self._close(connection)

    # Idle connections.

    async def _take(self, key: str) -> _Connection | None:
        """Return the connection that was used last, if it still seems to be open."""
        while idle := self._by_key.get(key):
            connection = idle[-1]
            self._forget(connection)
            if not connection.http.has_expired():
                return connection
            await self._close(connection)
        return None

    def _forget(self, connection: _Connection) -> None:
        del self._idle[connection]
        idle = self._by_key[connection.key]
        idle.remove(connection)
        if not idle:
            del self._by_key[connection.key]

    async def _give_back(self, connection: _Connection) -> None:
        if self._is_closed or not connection.is_reusable:
            await self._close(connection)
            return
        self._idle[connection] = None
        self._by_key.setdefault(connection.key, []).append(connection)
        await self._trim()

    async def _trim(self) -> None:
        """Close those that are too many, or have been idle for too long."""
        while self._idle:
            oldest = next(iter(self._idle))
            if len(self._idle) <= self._most and not oldest.http.has_expired():
                return
            self._forget(oldest)
            await self._close(oldest)

    async def _close(self, connection: _Connection) -> None:
        self._open.discard(connection)
        await connection.stream.aclose()

    # New connections.

    async def _connect(self, route: _Route) -> _Connection:
        addresses = await self._names.addresses(route.host, route.port)
        stream = await self._dial(addresses, route.port)
        if route.scheme == "https":
            stream = await self._secure(stream, route.host)
        connection = _Connection(route, stream, self._keepalive)
        self._open.add(connection)
        if self._is_closed:
            await self._close(connection)
            raise httpcore2.ReadError("closed while it was made")
        return connection

    async def _secure(
        self, stream: httpcore2.AsyncNetworkStream, host: str
    ) -> httpcore2.AsyncNetworkStream:
        try:
            # Certificates have no dot at the end of a name.
            return await stream.start_tls(self._context, server_hostname=host.rstrip("."))
        except BaseException:
            # httpcore2 closes it too, but not when it is cancelled.
            await _close(stream)
            raise

    async def _dial(self, addresses: list[str], port: int) -> httpcore2.AsyncNetworkStream:
        """Connect to the first that answers; the next is tried when one has not for a moment."""
        if len(addresses) == 1:
            return await self._backend.connect_tcp(addresses[0], port)
        race = _Race(self._backend, port)
        try:
            await race.run(addresses)
        except BaseException:
            await race.close_but(None)
            raise
        return await race.winner()


class _Race:
    """Attempts at the addresses of one host, each begun when those before it take long."""

    def __init__(self, backend: httpcore2.AsyncNetworkBackend, port: int) -> None:
        self._backend = backend
        self._port = port
        self._streams: list[httpcore2.AsyncNetworkStream] = []
        self._failures: list[Exception] = []

    async def run(self, addresses: list[str]) -> None:
        async with anyio.create_task_group() as group:
            for address in addresses:
                ended = anyio.Event()
                group.start_soon(self._attempt, address, ended, group.cancel_scope)
                with anyio.move_on_after(_NEXT_ADDRESS):
                    await ended.wait()

    async def _attempt(self, address: str, ended: anyio.Event, others: anyio.CancelScope) -> None:
        try:
            self._streams.append(await self._backend.connect_tcp(address, self._port))
            others.cancel()
        except (httpcore2.ConnectError, OSError) as exc:
            self._failures.append(exc)
        finally:
            ended.set()

    async def winner(self) -> httpcore2.AsyncNetworkStream:
        if not self._streams:
            raise self._failures[0]
        await self.close_but(self._streams[0])
        return self._streams[0]

    async def close_but(self, winner: httpcore2.AsyncNetworkStream | None) -> None:
        for stream in self._streams:
            if stream is not winner:
                await _close(stream)


async def _close(stream: httpcore2.AsyncNetworkStream) -> None:
    # Nothing is waited for in there, but it must not be left half way either.
    with anyio.CancelScope(shield=True):
        await stream.aclose()


# One connection.


class _Connection:
    """A connection over which one request after the other is posted."""

    def __init__(
        self, route: _Route, stream: httpcore2.AsyncNetworkStream, keepalive: float
    ) -> None:
        self.key = route.key
        self.stream = _Stream(stream)
        self.http = httpcore2.AsyncHTTP11Connection(
            origin=route.url.origin, stream=self.stream, keepalive_expiry=keepalive
        )

    @property
    def is_reusable(self) -> bool:
        return self.http.is_idle() and self.stream.is_sent and not self._has_more

    @property
    def _has_more(self) -> bool:
        """Bytes came behind the answer, and would be taken for the next one."""
        # There is no public way to see them. Without this one no connection is used again.
        state: Any = getattr(self.http, "_h11_state", None)
        return state is None or bool(state.trailing_data[0])

    async def post(self, route: _Route, request: WebhookRequest) -> WebhookResponse:
        self.stream.has_answered = False
        answer = await self.http.handle_async_request(_request(route, request))
        try:
            body = await _body_of(answer, request.body_until())
        finally:
            with anyio.CancelScope(shield=True):
                await answer.aclose()
        if 200 <= answer.status < 300:
            # Nobody asks for more.
            return WebhookResponse(answer.status, {})
        return WebhookResponse(answer.status, as_headers(answer.headers), body)


def _request(route: _Route, request: WebhookRequest) -> httpcore2.Request:
    headers = [
        (b"host", route.authority),
        (b"content-length", b"%d" % len(request.body)),
    ]
    headers += [(name.encode(), value.encode()) for name, value in request.headers.items()]
    return httpcore2.Request("POST", route.url, headers=headers, content=request.body)


async def _body_of(answer: httpcore2.Response, until: float) -> bytes:
    """Read what comes soon of the body, and no more than may be."""
    body = bytearray()
    try:
        with anyio.CancelScope(deadline=until):
            async with aclosing(answer.aiter_stream()) as parts:
                async for part in parts:
                    body += part
                    if len(body) > MAX_ANSWER:
                        break
    except _FAILURES:
        # The status is known.
        pass
    return bytes(body[:MAX_ANSWER])


class _Stream(httpcore2.AsyncNetworkStream):
    """A stream that sends a request in one piece, and says whether anything was answered.

    Attributes:
        has_answered: Something was read.
        is_sent: All that was written has been sent.
    """

    def __init__(self, stream: httpcore2.AsyncNetworkStream) -> None:
        self._stream = stream
        self._unsent = bytearray()
        self.has_answered = False
        self.is_sent = True

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        # Sent when an answer is asked for: head and body are one packet, not two.
        self._unsent += buffer

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if self._unsent:
            data = await self._send_and_read(max_bytes)
        else:
            data = await self._stream.read(max_bytes)
        if data:
            self.has_answered = True
        elif not self.has_answered:
            raise httpcore2.ReadError("closed before anything was answered")
        return data

    async def _send_and_read(self, max_bytes: int) -> bytes:
        unsent, self._unsent = bytes(self._unsent), bytearray()
        self.is_sent = False
        if len(unsent) <= _AT_ONCE:
            await self._send(unsent)
            return await self._stream.read(max_bytes)
        return await self._send_while_reading(unsent, max_bytes)

    async def _send_while_reading(self, unsent: bytes, max_bytes: int) -> bytes:
        data: bytes | Exception = b""
        async with anyio.create_task_group() as group:
            group.start_soon(self._send, unsent)
            try:
                data = await self._stream.read(max_bytes)
            # Raised below, so that it is not in a group.
            except _FAILURES as exc:
                data = exc
            group.cancel_scope.cancel()
        if isinstance(data, Exception):
            raise data
        return data

    async def _send(self, unsent: bytes) -> None:
        try:
            await self._stream.write(unsent)
            self.is_sent = True
        except httpcore2.WriteError:
            # There may be an answer all the same, to a request that was not read to its end.
            pass

    async def aclose(self) -> None:
        await _close(self._stream)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
