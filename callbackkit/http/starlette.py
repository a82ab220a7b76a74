"""For Starlette: a run as the response of an endpoint, and the API of a manager."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import suppress
from typing import Any, Literal

import anyio

from callbackkit.dispatch.deadline import check_timeout
from callbackkit.http.runs import RecentRuns, Run
from callbackkit.sessions.manager import CallbackManager
from callbackkit.streaming.callback import Callback
from callbackkit.streaming.calling import check_producer
from callbackkit.streaming.encoders import (
    EncodedStream,
    StreamFormat,
    check_heartbeat,
    headers_for,
    log_end,
    ndjson,
    position_in,
    sse,
    text,
)
from callbackkit.streaming.run import RunStream, run_stream
from callbackkit.transports.connections import leave_at_disconnect
from callbackkit.wire.eventstream import write_event

try:
    from starlette.applications import Starlette
    from starlette.background import BackgroundTask
    from starlette.datastructures import Headers
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import BaseRoute, Route
    from starlette.types import Receive, Scope, Send

    from callbackkit.http.access import Authorize, allow_anyone, set_session_cookie
    from callbackkit.http.api import Api, check_prefix
    from callbackkit.http.openapi import document_of
    from callbackkit.http.paths import UnknownPath, routes_of
except ImportError as _exc:
    raise ImportError(
        "callbackkit.http.starlette needs Starlette: install callbackkit[http]"
    ) from _exc

__all__ = [
    "RunResponse",
    "allow_anyone",
    "create_app",
    "routes",
    "set_session_cookie",
    "stream_response",
]


def stream_response(
    fn: Callable[..., Awaitable[Any] | Any],
    *args: Any,
    format: StreamFormat = "sse",  # noqa: A002 - the word of the contract
    on_disconnect: Literal["cancel", "continue"] = "cancel",
    reconnect_within: float = 1.5,
    timeout: float | None = None,
    heartbeat: float | None = 15.0,
    named_events: bool = False,
    retry_ms: int | None = 500,
    write_timeout: float | None = 30.0,
    callback: Callback | None = None,
    headers: Mapping[str, str] | None = None,
    background: BackgroundTask | None = None,
) -> RunResponse:
    """Return a response that runs a function and streams what it emits.

    For an endpoint of Starlette or FastAPI, on asyncio and trio::

        @app.get("/answer")
        async def answer(question: str):
            return stream_response(run_agent, question)

    The function starts when the response does, after the endpoint has returned. It gets
    ``callback`` if it has such a parameter; :func:`~callbackkit.emit_token` finds it anyway.
    The status is 200 in any case and the headers are sent at once: what fails later is told in
    the END and logged, never sent.

    **When the client leaves.** With ``format="sse"`` a browser whose connection was lost asks
    for the same URL again, with the id of the last event it saw. It then goes on with *its*
    run, *fn* is not called a second time: as long as the run goes on, and for five minutes
    after its end, in which the browser gets what it has missed, or a 204 that ends its
    ``EventSource`` if it has seen all, or if that is kept no longer (of the last 64 runs it is,
    of fewer if they were very long).
    Nobody can tell a connection that was lost from one that was closed on purpose, so with
    ``on_disconnect="cancel"`` a run that nobody reads has *reconnect_within* seconds before it
    is cancelled; *retry_ms* makes browsers come back sooner than that. Without ``sse`` there is
    nothing to come back with, and it is cancelled at once. With ``"continue"`` it goes on to
    its end.

    The run is owned by the request that started it, whose task ends with the run. A server that
    waits for its requests when it shuts down, as uvicorn does, waits for the run; one that
    cancels them cancels it. A client can come back only to the same process and path, so
    several workers need a proxy that keeps a client with its worker. The runs are known to the
    ``state`` of the application; without an application nobody can come back.

    Args:
        fn: Called as ``fn(*args)``, asynchronous or not; :func:`functools.partial` gives it
            keywords.
        *args: Its arguments.
        format: ``"sse"``, ``"ndjson"`` or ``"text"``; see the encoders of these names.
        on_disconnect: ``"cancel"`` or ``"continue"``.
        reconnect_within: Seconds; 0 cancels at once.
        timeout: Seconds after which the run ends with the status ``timeout``.
        heartbeat: Seconds of silence after which a comment is sent; ``None``: never. For
            ``sse``.
        named_events: Write ``event:`` fields. For ``sse``.
        retry_ms: Milliseconds after which a browser is to reconnect. For ``sse``.
        write_timeout: Seconds that a client may take to read what is sent; then it has left.
        callback: The run's, if it is not to be a new :class:`~callbackkit.Callback`.
        headers: More headers; they win over those of :func:`~callbackkit.headers_for`.
        background: What Starlette runs once the run has ended.

    Raises:
        TypeError: *fn* can't be called, or is a generator. That it does not take *args* is told
            by the response.
        ValueError: A word or number that makes no sense.
    """
    check_producer(fn, "fn")
    if on_disconnect not in ("cancel", "continue"):
        raise ValueError(f"on_disconnect must be 'cancel' or 'continue', not {on_disconnect!r}")
    check_timeout(timeout)
    check_timeout(write_timeout, "write_timeout")
    check_heartbeat(heartbeat)
    _check_seconds(reconnect_within)
    write_event(None, retry=retry_ms)
    grace = reconnect_within if format == "sse" else 0.0

    def encoded(followed: Callback, last_event_id: str | None) -> EncodedStream:
        if format == "sse":
            return sse(
                followed, last_event_id, heartbeat, named_events=named_events, retry_ms=retry_ms
            )
        return ndjson(followed) if format == "ndjson" else text(followed)

    return RunResponse(
        # Later, for an endpoint that is not async is called in a thread without an event loop.
        lambda: run_stream(fn, *args, timeout=timeout, callback=callback),
        encoded,
        grace=None if on_disconnect == "continue" else grace,
        write_timeout=write_timeout,
        can_resume=format == "sse",
        headers={**headers_for(format), **(headers or {})},
        background=background,
    )


class RunResponse(Response):
    """What :func:`stream_response` returns; to be returned from an endpoint.

    Args:
        start: Makes the run, which the response then owns.
        encoded: Writes a run, from behind the event with an id.
        grace: Seconds that the run may go on unread; ``None``: to its end.
        write_timeout: Seconds that a client may take to read what is sent.
        can_resume: Clients may come back.
        headers: All headers of the response.
        background: What is run once the run has ended.
    """

    status_code: int

    def __init__(
        self,
        start: Callable[[], RunStream[Any]],
        encoded: Callable[[Callback, str | None], EncodedStream],
        *,
        grace: float | None,
        write_timeout: float | None,
        can_resume: bool,
        headers: Mapping[str, str],
        background: BackgroundTask | None = None,
    ) -> None:
        # Not the base's: without a body it would say that its length is 0.
        self.status_code = 200
        self.background = background
        self.init_headers(headers)
        self._start = start
        self._encoded = encoded
        self._grace = grace
        self._write_timeout = write_timeout
        self._can_resume = can_resume

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request: start a run, or go on with the one that its client has lost."""
        if scope.get("method") == "HEAD":
            await self._send_empty(send, self.raw_headers)
        else:
            await self._answer(scope, receive, send)
        if self.background is not None:
            await self.background()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        last_event_id = Headers(scope=scope).get("last-event-id") if self._can_resume else None
        position = position_in(last_event_id)
        runs = _runs_of(scope)
        run = None if position is None else runs.find(position[0], scope["path"])
        if run is None or position is None:
            await self._own(runs, scope["path"], receive, send)
        elif run.callback is not None and run.has_more(position[1]):
            await self._follow(run, run.callback, last_event_id, receive, send)
        else:
            # No other status but 200 lets a browser come back; this one says that all is well.
            untyped = [header for header in self.raw_headers if header[0] != b"content-type"]
            self.status_code = 204
            await self._send_empty(send, untyped)

    async def _own(self, runs: RecentRuns, path: str, receive: Receive, send: Send) -> None:
        async with self._start() as stream:
            run = Run(stream.callback, path)
            if self._can_resume:
                runs.add(run)
            try:
                await self._follow(run, stream.callback, None, receive, send)
                await run.unneeded(self._grace)
            finally:
                if self._can_resume:
                    runs.end(run)
            if stream.callback.is_closed:
                # What the function does behind the end, such as saving the answer, is its own.
                with suppress(Exception):
                    await stream.result()
            else:
                stream.cancel("the client has left")
        if not run.is_told:
            log_end(stream.callback)

    async def _follow(
        self,
        run: Run,
        callback: Callback,
        last_event_id: str | None,
        receive: Receive,
        send: Send,
    ) -> None:
        """Send a run until it ends or the client leaves."""
        run.join()
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(leave_at_disconnect, receive, tasks.cancel_scope)
                if await self._send_all(self._encoded(callback, last_event_id), send):
                    run.is_told = True
                tasks.cancel_scope.cancel()
        finally:
            run.leave()

    async def _send_all(self, stream: EncodedStream, send: Send) -> bool:
        """Send what a run says; ``False`` if the client has left or does not read."""
        start = {
            "type": "http.response.start",
            "status": self.status_code,
            "headers": self.raw_headers,
        }
        if not await self._sent(send, start):
            return False
        async for chunk in stream:
            body = {"type": "http.response.body", "body": chunk, "more_body": True}
            if not await self._sent(send, body):
                return False
        return await self._sent(send, {"type": "http.response.body", "body": b""})

    async def _sent(self, send: Send, message: dict[str, Any]) -> bool:
        # Servers tell of a client that has left by an OSError (ASGI 2.4) or not at all.
        with anyio.move_on_after(self._write_timeout), suppress(OSError):
            await send(message)
            return True
        return False

    async def _send_empty(self, send: Send, headers: list[tuple[bytes, bytes]]) -> None:
        status = self.status_code
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b""})


def _runs_of(scope: Scope) -> RecentRuns:
    """Return the runs of the application, which its ``state`` holds."""
    state = getattr(scope.get("app"), "state", None)
    runs = getattr(state, "callbackkit_runs", None)
    if isinstance(runs, RecentRuns):
        return runs
    runs = RecentRuns()
    if state is not None:
        state.callbackkit_runs = runs
    return runs


def _check_seconds(reconnect_within: object) -> None:
    if isinstance(reconnect_within, bool) or not isinstance(reconnect_within, int | float):
        raise TypeError(f"reconnect_within must be a number of seconds, not {reconnect_within!r}")
    if not reconnect_within >= 0:
        raise ValueError(f"reconnect_within must be 0 or more, not {reconnect_within!r}")


# The API of a manager.


def create_app(
    manager: CallbackManager,
    authorize: Authorize | None = None,
    *,
    allowed_origins: Collection[str] = (),
    prefix: str = "/callbacks",
    query_token: bool = False,
    heartbeat: float = 15.0,
    write_timeout: float | None = 30.0,
    drain_on_signals: bool = True,
) -> Starlette:
    """Return the API as an application, to be served by itself or mounted in another.

    Served by itself, its lifespan enters the manager. Mounted, ``Mount("/api", app=create_app(
    manager))``, it has no lifespan: the application around it enters the manager in its own. The
    API is described at ``/openapi.json``.

    Arguments and errors are those of :func:`callbackkit.http.fastapi.create_router`.
    """
    api = Api(
        manager,
        authorize=authorize,
        allowed_origins=allowed_origins,
        query_token=query_token,
        heartbeat=heartbeat,
        write_timeout=write_timeout,
        drain_on_signals=drain_on_signals,
    )

    async def openapi(_request: Request) -> Response:
        return JSONResponse(document_of(api.methods, prefix=prefix))

    return Starlette(
        routes=[
            *routes_of(api, check_prefix(prefix)),
            Route("/openapi.json", openapi),
            Route("/{rest:path}", UnknownPath(api)),
        ],
        lifespan=api.lifespan,
    )


def routes(
    manager: CallbackManager,
    authorize: Authorize | None = None,
    *,
    allowed_origins: Collection[str] = (),
    prefix: str = "/callbacks",
    query_token: bool = False,
    heartbeat: float = 15.0,
    write_timeout: float | None = 30.0,
    drain_on_signals: bool = True,
) -> list[BaseRoute]:
    """Return the API as routes of an application, which enters the manager in its lifespan.

    Arguments and errors are those of :func:`callbackkit.http.fastapi.create_router`.
    """
    api = Api(
        manager,
        authorize=authorize,
        allowed_origins=allowed_origins,
        query_token=query_token,
        heartbeat=heartbeat,
        write_timeout=write_timeout,
        drain_on_signals=drain_on_signals,
    )
    found = routes_of(api, check_prefix(prefix))
    if prefix:
        found.append(Route(f"{prefix}/{{rest:path}}", UnknownPath(api)))
    return found
