"""Posting webhooks with aiohttp, on asyncio."""

from __future__ import annotations

import asyncio
import io
import socket
import ssl
import time
from collections import OrderedDict
from contextvars import ContextVar
from functools import lru_cache, partial
from typing import Any, Final

import anyio

try:
    import aiohttp
except ImportError as _exc:
    raise ImportError(
        "callbackkit.webhooks.aiohttp needs aiohttp: install callbackkit[webhook]"
    ) from _exc

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.client_proto import ResponseHandler
from yarl import URL

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

__all__ = ["AiohttpSender"]

# The engine has one deadline for all of an attempt; a timer for each part would cost more.
_NO_TIMEOUT: Final = aiohttp.ClientTimeout(total=None, sock_connect=None)

# What aiohttp would add that nobody asked for: above all, that answers may be compressed.
_NOT_ADDED: Final = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")

# Heads in one packet that are read one by one.
_MOST_HEADS: Final = 4

# Bytes from which aiohttp warns of a body that is given as such.
_LARGE: Final = 1_048_576

# What aiohttp raises, and what is below it: uvloop has a RuntimeError for some an OSError, and a
# ValueError is that of a name that TLS can't ask for.
_FAILURES: Final = (aiohttp.ClientError, OSError, RuntimeError, ValueError)
# The connection was closed, or reset; the first is also that of one that was never there.
_CLOSED: Final = (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError)


class AiohttpSender(Sender):
    """Posts with aiohttp; what a :class:`WebhookTransport` uses on asyncio unless told otherwise.

    Args:
        ssl_context: How certificates are checked; by default against those the machine trusts.
        find: Who knows the addresses of host names; by default the system.
        keepalive: Seconds that a connection is kept for the next request to its host.
        max_idle: Hosts that connections are kept for; those to others are closed at once.

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
        self._sessions: _Sessions | None = None

    async def start(self, guard: Guard) -> None:
        if self._sessions is None:
            connect = _Connect(guard, NameService(guard, self._find), self._ssl)
            self._sessions = _Sessions(connect, self._keepalive, self._max_idle)

    async def send(self, request: WebhookRequest) -> WebhookResponse:
        if self._sessions is None:
            raise RuntimeError("the sender is not started")
        try:
            return await self._sessions.post(request)
        except _FAILURES as exc:
            failure = as_send_error(exc, _words(exc))
        # Out here, so that no library's exception is its context.
        raise failure

    async def aclose(self) -> None:
        sessions, self._sessions = self._sessions, None
        if sessions is not None:
            await sessions.aclose()


def _words(exc: Exception) -> str:
    if isinstance(exc, aiohttp.ClientConnectorError):
        return "could not connect"
    if isinstance(exc, aiohttp.InvalidURL):
        return "the host was not found"
    if isinstance(exc, aiohttp.ClientResponseError):
        return "no valid HTTP answer"
    return "the connection was closed"


# A pure function; asked for with each request.
@lru_cache(maxsize=1_024)
def _route_of(url: str) -> tuple[URL, str]:
    """Return a URL as aiohttp has it, and where its connections lead."""
    target = target_of(url)
    return URL(target.url, encoded=True), f"{target.scheme}://{target.authority}"


class _Sessions:
    """A session that keeps connections for the next request, and one for hosts beyond those.

    The connector of aiohttp does not bound how many connections it keeps: only those in use, and
    those by making requests wait, so that hosts which hang would hold up others.
    """

    def __init__(self, connect: _Connect, keepalive: float, most: int) -> None:
        self._keeping = connect.session(keepalive_timeout=keepalive)
        self._closing = connect.session(force_close=True)
        self._keepalive = keepalive
        self._most = most
        # Requests by the session that keeps connections: of one host it keeps no more than there
        # were at the same time.
        self._under_way = 0
        # Hosts that connections may be kept for, and when one was used; the longest ago first.
        self._hosts: OrderedDict[str, float] = OrderedDict()

    async def post(self, request: WebhookRequest) -> WebhookResponse:
        url, host = _route_of(request.url)
        session = self._session(host)
        self._under_way += session is self._keeping
        attempt = _Attempt()
        token = _current.set(attempt)
        try:
            try:
                return await _post(session, url, request)
            except _CLOSED:
                if attempt.is_new or session.closed:
                    raise
                # Closed by the other end while it was idle, as far as can be told.
                attempt.end()
                return await _post(self._closing, url, request)
        finally:
            _current.reset(token)
            attempt.end()
            if session is self._keeping:
                self._under_way -= 1
                self._used(host)

    def _session(self, host: str) -> aiohttp.ClientSession:
        if self._under_way >= self._most:
            return self._closing
        hosts = self._hosts
        if host not in hosts:
            # The connector looks for those that are to be closed as often as they are kept.
            past = time.monotonic() - 2 * self._keepalive
            while hosts and next(iter(hosts.values())) < past:
                hosts.popitem(last=False)
            if len(hosts) >= self._most:
                return self._closing
            self._used(host)
        return self._keeping

    def _used(self, host: str) -> None:
        self._hosts[host] = time.monotonic()
        self._hosts.move_to_end(host)

    async def aclose(self) -> None:
        await self._keeping.close()
        await self._closing.close()


class _Connect:
    """How both sessions connect."""

    def __init__(self, guard: Guard, names: NameService, context: ssl.SSLContext | None) -> None:
        self._guard = guard
        self._names = names
        self._context = context

    def session(self, **options: Any) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(
            limit=0,
            resolver=_Resolver(self._names),
            use_dns_cache=False,
            socket_factory=self._new_socket,
            ssl=True if self._context is None else self._context,
            **options,
        )
        # There is no public way to have another protocol.
        factory: Any = partial(_Protocol, loop=asyncio.get_running_loop())
        connector._factory = factory
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=_NO_TIMEOUT,
            auto_decompress=False,
            trust_env=False,
            read_bufsize=MAX_ANSWER,
            response_class=_Answer,
            skip_auto_headers=_NOT_ADDED,
        )

    def _new_socket(self, info: Any) -> socket.socket:
        # The last that is asked before something is dialled, and all that is for an address that
        # stands in the URL.
        family, kind, protocol, _, address = info
        self._guard.check_address(address[0], address[1])
        _current.get().is_new = True
        return socket.socket(family, kind, protocol)


class _Protocol(ResponseHandler):
    """Reads a head by itself: what comes behind it, and is wrong, does not undo the status."""

    def data_received(self, data: bytes) -> None:
        # Some heads may come before that of the answer (1xx).
        for _ in range(_MOST_HEADS):
            head, end, data = data.partition(b"\r\n\r\n")
            super().data_received(head + end)
            if not data:
                return
        super().data_received(data)


class _Resolver(AbstractResolver):
    """Gives aiohttp the addresses that may be dialled."""

    def __init__(self, names: NameService) -> None:
        self._names = names

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=socket.IPPROTO_TCP,
                flags=socket.AI_NUMERICHOST,
            )
            for address in await self._names.addresses(host, port)
        ]

    async def close(self) -> None:
        """Nothing is open."""


class _Attempt:
    """What becomes known of a request while it is made.

    Attributes:
        is_new: Its connection was made for it.
        transport: What it is sent by, once that is known.
    """

    __slots__ = ("is_new", "transport")

    def __init__(self) -> None:
        self.is_new = False
        self.transport: asyncio.Transport | None = None

    def end(self) -> None:
        """Close the connection at once, unless it is to be used again.

        What was not sent yet would be kept, and waited for, until whoever does not read it goes.
        """
        if self.transport is not None:
            self.transport.abort()


_current: ContextVar[_Attempt] = ContextVar("callbackkit_webhook_attempt")


class _Answer(aiohttp.ClientResponse):
    async def start(self, connection: aiohttp.connector.Connection) -> aiohttp.ClientResponse:
        # There is no other way to learn what a request is sent by before it is answered.
        _current.get().transport = connection.transport
        return await super().start(connection)


async def _post(
    session: aiohttp.ClientSession, url: URL, request: WebhookRequest
) -> WebhookResponse:
    body = request.body
    answer = await session.post(
        url,
        data=body if len(body) < _LARGE else io.BytesIO(body),
        headers=request.headers,
        allow_redirects=False,
    )
    is_taken = 200 <= answer.status < 300
    try:
        # Of a success nobody asks for more, but to use the connection again.
        content = b"" if is_taken and answer.content.is_eof() else await _body_of(answer, request)
        if answer.content.is_eof():
            _current.get().transport = None
    finally:
        answer.release()
    if is_taken:
        return WebhookResponse(answer.status, {})
    return WebhookResponse(answer.status, as_headers(answer.raw_headers), content)


async def _body_of(answer: aiohttp.ClientResponse, request: WebhookRequest) -> bytes:
    """Read what comes soon of the body, and no more than may be."""
    content = answer.content
    if content.is_eof():
        return content.read_nowait(MAX_ANSWER)
    body = bytearray()
    try:
        with anyio.CancelScope(deadline=request.body_until()):
            while len(body) <= MAX_ANSWER and not content.at_eof():
                body += await content.read(MAX_ANSWER + 1 - len(body))
    except _FAILURES:
        # The status is known.
        pass
    return bytes(body[:MAX_ANSWER])
