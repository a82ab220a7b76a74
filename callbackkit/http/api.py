"""The API of one manager: each request is let in, answered, and what goes wrong is told."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from functools import partial
from typing import Any, Final

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import Response
from starlette.types import Scope
from starlette.websockets import WebSocket

from callbackkit.dispatch.deadline import check_timeout
from callbackkit.errors import (
    CallbackKitError,
    LimitError,
    SessionDeletedError,
    StoreError,
    UnknownSessionError,
)
from callbackkit.http.access import PROTOCOL, Access, Authorize
from callbackkit.http.cors import Origins
from callbackkit.http.drain import DrainOnSignals
from callbackkit.http.handlers import Handlers
from callbackkit.http.problems import Problem, problem_of
from callbackkit.http.requests import RequestLimit, source_of
from callbackkit.http.streams import Stream, come_back
from callbackkit.http.table import Route
from callbackkit.sessions.manager import READ_METHODS, CallbackManager
from callbackkit.sessions.session import Session
from callbackkit.transports.connections import Connections, Message, Receive, Send
from callbackkit.transports.websocket import REFUSED, serve_websocket

__all__ = ["Api", "check_prefix"]

# Characters of a session's id; longer ones are none, nor are those of other than ASCII.
_MOST_ID: Final = 128
_DENIAL: Final = "websocket.http.response"
_VARY: Final = "Origin, Authorization, Cookie"


def check_prefix(prefix: object) -> str:
    """Return a prefix of paths, which begins with a slash and ends without one, or is empty.

    Raises:
        TypeError: It is no string.
        ValueError: It is no such prefix.
    """
    if not isinstance(prefix, str):
        raise TypeError(f"prefix must be a string, not {type(prefix).__name__}")
    if prefix and (not prefix.startswith("/") or prefix.endswith("/")):
        raise ValueError(f"prefix must be '' or like '/callbacks', not {prefix!r:.80}")
    return prefix


class Api:
    """The handlers, and what stands before and behind them.

    Args:
        manager: Whose sessions.
        authorize: Asked first who may.
        allowed_origins: Whose pages may, beside those of the host itself.
        query_token: ``?token=`` counts as a token.
        heartbeat: Seconds of silence after which a stream says something.
        write_timeout: Seconds that a client may take to read what is sent.
        drain_on_signals: SIGINT and SIGTERM end the streams.

    Attributes:
        manager: Whose sessions.
    """

    def __init__(
        self,
        manager: CallbackManager,
        *,
        authorize: Authorize | None,
        allowed_origins: Collection[str],
        query_token: bool,
        heartbeat: float,
        write_timeout: float | None,
        drain_on_signals: bool,
    ) -> None:
        if not isinstance(manager, CallbackManager):
            raise TypeError(f"manager must be a CallbackManager, not {type(manager).__name__}")
        check_timeout(heartbeat, "heartbeat")
        check_timeout(write_timeout, "write_timeout")
        self.manager: CallbackManager = manager
        self._origins = Origins(allowed_origins)
        self._access = Access(authorize, self._origins, query_token=query_token)
        self._requests = RequestLimit(manager.limits.max_requests)
        self._connections = Connections(heartbeat=heartbeat, write_timeout=write_timeout)
        self._handlers = Handlers(
            manager=manager,
            connections=self._connections,
            heartbeat=heartbeat,
            write_timeout=write_timeout,
        )
        self._drain: AbstractContextManager[None] = (
            DrainOnSignals(manager.begin_drain) if drain_on_signals else nullcontext()
        )

    def __repr__(self) -> str:
        return f"<Api of {self.manager!r}>"

    @property
    def methods(self) -> Collection[str]:
        """The delivery methods that can be had."""
        return READ_METHODS | self.manager._transports.keys()

    @asynccontextmanager
    async def lifespan(self, _app: object) -> AsyncGenerator[None]:
        """Enter the manager, and listen to signals, as long as an application runs."""
        async with self.manager:
            with self._drain:
                yield

    @property
    def draining(self) -> AbstractContextManager[None]:
        """Entered as long as there may be streams."""
        return self._drain

    # HTTP.

    async def answer(self, route: Route, request: Request) -> Response:
        """Answer a request."""
        try:
            response = await self._answer(route, request)
        except ClientDisconnect:
            # Nobody gets this.
            response = Response(status_code=400)
        except (CallbackKitError, HTTPException) as exc:
            response = _told(exc, route, request)
        return self._finished(request, response)

    async def refuse(self, methods: Mapping[str, Route], request: Request) -> Response:
        """Answer a request by a method that a path has not, or a question of a browser."""
        allowed = sorted({*methods, "OPTIONS"} | ({"HEAD"} if "GET" in methods else set()))
        headers = {"Allow": ", ".join(allowed)}
        if request.method != "OPTIONS":
            detail = f"{request.method[:20]} is not for this path"
            response = Problem(status=405, detail=detail, headers=headers).response()
        elif self._is_foreign(request):
            response = Problem(status=403, detail="the origin is not in allowed_origins").response()
        else:
            response = Response(status_code=204, headers=headers)
            if "access-control-request-method" in request.headers:
                response.headers.update(dict(self._origins.preflight(allowed)))
        return self._finished(request, response)

    def unknown(self, request: Request) -> Response:
        """Answer a request for a path that there is not."""
        problem = Problem(status=404, detail="there is no such path")
        return self._finished(request, problem.response())

    async def _answer(self, route: Route, request: Request) -> Response:
        self._access.check_page(request)
        handler: Callable[..., Awaitable[Response]] = getattr(self._handlers, route.name)
        if route.needs == "session":
            handler = partial(handler, session=await self._session(request))
        else:
            await self._let_in(route, request)
        if not route.streams:
            return await handler(request)
        with self._drain:
            response = await handler(request)
        if isinstance(response, Stream):
            response.meanwhile = self._drain
        return response

    async def _let_in(self, route: Route, request: Request) -> None:
        """Let in a request that is about no session, or refuse it."""
        kind = "" if route.needs == "operator" else route.name
        self._requests.take(f"{kind} {_source(request)}")
        if route.needs == "operator":
            await self._access.check(request, None)
        else:
            await self._access.check_open(request)

    async def _session(self, connection: HTTPConnection) -> Session:
        """Return the session that a request is about, if it may be; and count it."""
        session_id: str = connection.path_params["session_id"]
        try:
            if len(session_id) > _MOST_ID or not session_id.isascii():
                raise UnknownSessionError(session_id)
            session = await self.manager.get_session(session_id)
            await self._access.check(connection, session)
        except (UnknownSessionError, HTTPException):
            # By who asks: nobody else is to use up what the session may have.
            self._requests.take(f" {_source(connection)}")
            raise
        self._requests.take(session_id)
        return session

    def _is_foreign(self, connection: HTTPConnection) -> bool:
        headers = connection.headers
        return not self._origins.lets_in(headers.get("origin"), headers.get("host"))

    def _finished(self, request: Request, response: Response) -> Response:
        headers = response.headers
        if not isinstance(response, Stream):
            headers.setdefault("Cache-Control", "no-store")
        headers["Vary"] = _VARY
        headers["X-Content-Type-Options"] = "nosniff"
        origin, host = request.headers.get("origin"), request.headers.get("host")
        for name, value in self._origins.headers(origin, host):
            headers[name] = value
        return response

    # WebSockets.

    async def talk(self, websocket: WebSocket, receive: Receive, send: Send) -> None:
        """Serve a WebSocket, from before its handshake on.

        Args:
            websocket: As it came.
            receive: The ASGI callable.
            send: The ASGI callable.
        """
        try:
            self._access.check_page(websocket)
            session = await self._session(websocket)
            subscription = self._handlers.subscription(websocket, session)
            # Before the client is let in: what "now" is must not depend on what it does then.
            await subscription.begin()
        except (CallbackKitError, HTTPException) as exc:
            await _deny(exc, websocket, receive, send)
            return
        await receive()
        offered: Collection[str] = websocket.scope.get("subprotocols", ())
        chosen = PROTOCOL if PROTOCOL in offered else None
        with self._drain:
            await send({"type": "websocket.accept", "subprotocol": chosen, "headers": []})
            await serve_websocket(
                subscription,
                receive,
                send,
                connections=self._connections,
                on_message=session.receive,
            )


def _source(connection: HTTPConnection) -> str:
    return source_of(None if connection.client is None else connection.client.host)


def _told(error: Exception, route: Route, request: Request) -> Response:
    """Return the answer that tells of an error.

    Raises:
        Exception: The error, if it is nobody's outside.
    """
    if isinstance(error, SessionDeletedError) and route.gone == 204:
        return Response(status_code=204)
    if isinstance(error, StoreError) and _is_event_source(request):
        # After a 503 a browser would never come back.
        return come_back()
    problem = problem_of(error)
    if problem is None:
        raise error
    response = problem.response()
    if isinstance(error, LimitError) and error.limit == "max_body_bytes":
        version: str = request.scope.get("http_version", "1.1")
        if version.startswith("1"):
            # What is left of the body is not read.
            response.headers["Connection"] = "close"
    return response


def _is_event_source(request: Request) -> bool:
    return "text/event-stream" in request.headers.get("accept", "")


async def _deny(error: Exception, websocket: WebSocket, receive: Receive, send: Send) -> None:
    """Refuse a WebSocket before it is accepted: with a problem, where the server can send one."""
    problem = problem_of(error)
    if problem is None:
        raise error
    await receive()
    extensions: Mapping[str, Any] = websocket.scope.get("extensions") or {}
    if _DENIAL not in extensions:
        reason = problem.detail.encode()[:120].decode(errors="ignore")
        await send({"type": "websocket.close", "code": REFUSED, "reason": reason})
        return

    async def send_denial(message: Message) -> None:
        await send({**message, "type": f"websocket.{message['type']}"})

    response = problem.response()
    response.headers["Cache-Control"] = "no-store"
    scope: Scope = {"type": "http", "method": "GET", "extensions": {}}
    await response(scope, receive, send_denial)
