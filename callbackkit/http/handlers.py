"""What each route does, once it is known who asks; the rules are the core's."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final, cast
from urllib.parse import quote

import attrs
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response

from callbackkit.errors import ConfigError, PayloadError, SessionEndedError
from callbackkit.events import Event, Position, check_event_type
from callbackkit.http.access import set_session_cookie
from callbackkit.http.bodies import check_media_type, convert, decode_object, read_body
from callbackkit.http.leaving import unless_gone
from callbackkit.http.operators import serve_firehose
from callbackkit.http.problems import UnsuitedSessionError
from callbackkit.http.queries import (
    last_event_id,
    naming,
    resume_point,
    types_in,
    wanted_limit,
    wanted_place,
    wanted_since,
    wanted_wait,
)
from callbackkit.http.schemas import RedriveRequest, RotateRequest, SampleRequest
from callbackkit.http.streams import Stream, come_back, only_head
from callbackkit.sessions.manager import CallbackManager, new_secret
from callbackkit.sessions.session import Session
from callbackkit.sessions.statistics import SessionStats
from callbackkit.sessions.subscription import Subscription
from callbackkit.stores.base import DeadLetter, SessionRecord, SessionState
from callbackkit.transports.connections import Connections, Receive, Send
from callbackkit.transports.polling import PolledPage, poll
from callbackkit.transports.sse import serve_sse
from callbackkit.wire.envelope import encode_event, timestamp_text

__all__ = ["Handlers"]

# Bytes of a body: the largest configuration, or an event written with more escapes than it needs.
_LEAST_BODY: Final = 1_048_576
_ESCAPES: Final = 4
# What stands for all time, where events before some time are to go.
_LATEST: Final = datetime(9999, 12, 31, tzinfo=UTC)
_IN_PATH: Final = "/!$&'()*+,;:=@~"

# What a test event says unless something else is given, for the types that ask for it.
_SAMPLES: Final[Mapping[str, Mapping[str, Any]]] = {
    "thinking": {"thought": "a test"},
    "tool_use": {"tool_name": "test"},
    "tool_result": {"tool_name": "test"},
    "progress": {"progress": 0.0},
    "workflow_start": {"workflow": "test"},
    "workflow_step": {"step": "test"},
    "workflow_complete": {"workflow": "test"},
    "model_selection": {"model": "test"},
    "streaming_chunk": {"text": "a test"},
    "error": {"error": "a test"},
}


@attrs.frozen(eq=False, kw_only=True)
class Handlers:
    """The handlers; each is called as the table of routes names it.

    Attributes:
        manager: Whose sessions.
        connections: The streams.
        heartbeat: Seconds of silence after which a stream says something.
        write_timeout: Seconds that a client may take to read what is sent.
    """

    manager: CallbackManager
    connections: Connections
    heartbeat: float
    write_timeout: float | None

    # Sessions.

    async def create_session(self, request: Request) -> Response:
        session = await self.manager.create_session(await self._body(request))
        secret = session.config.webhook_secret
        content = {
            "session_id": session.id,
            "token": session.token,
            "config": session.config.shown(),
            "created_at": _time(session._record.created_at),
            "status": "active",
            **({} if secret is None else {"webhook_secret": secret}),
        }
        path = seen_path(request)
        response = self._json(content, 201)
        response.headers["Location"] = f"{quote(path, safe=_IN_PATH)}/{session.id}"
        set_session_cookie(
            response,
            session,
            path=path.removesuffix("/sessions"),
            secure=request.scope.get("scheme") == "https",
        )
        return response

    async def list_sessions(self, request: Request) -> Response:
        query = request.query_params
        limit = wanted_limit(query)
        state = query.get("state")
        if state not in {None, "active", "ended"}:
            raise ConfigError("state", "must be active or ended")
        found = await self.manager.store.sessions(
            state=cast("SessionState | None", state),
            after=query.get("after") or None,
            limit=limit + 1,
        )
        page = found[:limit]
        return self._json({
            "sessions": [self._shown(record) for record in page],
            "cursor": page[-1].id if page else query.get("after") or None,
            "has_more": len(found) > limit,
        })  # fmt: skip

    async def get_session(self, request: Request, session: Session) -> Response:
        del request
        return self._json(self._shown(session._record))

    async def update_session(self, request: Request, session: Session) -> Response:
        changed = await session.update(await self._body(request))
        return self._json(self._shown(changed._record))

    async def rotate_secret(self, request: Request, session: Session) -> Response:
        asked = convert(await self._body(request), RotateRequest)
        if session.config.webhook_secret is None:
            raise UnsuitedSessionError("nothing of this session is signed")
        secret = new_secret() if asked.webhook_secret is None else asked.webhook_secret
        config = await self.manager._rotate(session.id, secret, asked.overlap)
        until = max((each.until for each in config.retired_secrets), default=None)
        return self._json({
            "session_id": session.id,
            "webhook_secret": secret,
            "previous_until": None if until is None else _time(until),
        })  # fmt: skip

    async def delete_session(self, request: Request, session: Session) -> Response:
        del request
        await self.manager.delete_session(session.id)
        return Response(status_code=204)

    def _shown(self, record: SessionRecord) -> dict[str, Any]:
        readers = self.manager._readers.kinds(record.id)
        first = Position(record.epoch, record.first)
        return {
            "session_id": record.id,
            "state": record.state,
            "status": record.state,
            "owner": record.owner,
            "created_at": _time(record.created_at),
            "config": self.manager._read_config(record.config).shown(),
            "position": str(record.position),
            "first_position": str(first) if record.first <= record.top else None,
            "total_count": max(record.top - record.first + 1, 0),
            "stats": dict(SessionStats.of(record, readers)),
        }

    # Events.

    async def get_events(self, request: Request, session: Session) -> Response:
        query = request.query_params
        with naming("after"):
            after = _position(resume_point(query.get("after")), session)
        wait = wanted_wait(query)
        since, limit = wanted_since(query), wanted_limit(query)
        types = types_in(query.getlist("types"))

        async def ask() -> PolledPage:
            return await poll(
                self.manager,
                session,
                after=after,
                since=since,
                limit=limit,
                wait=wait,
                types=types,
            )

        page = await (unless_gone(request.receive, ask) if wait else ask())
        if page is None:
            # Nobody gets this.
            return Response(status_code=204)
        return Response(page.encode(), media_type="application/json")

    async def clear_events(self, request: Request, session: Session) -> Response:
        before = wanted_place(request.query_params)
        if session._record.state != "active":
            # What has ended can be read for a while, by everybody.
            raise SessionEndedError(session.id)
        with naming("before"):
            count = await session.clear(_LATEST if before is None else before)
        return self._json({"cleared_count": count, "session_id": session.id})

    async def stream_events(self, request: Request, session: Session) -> Response:
        header = request.headers.get("last-event-id")
        after = last_event_id(header, request.query_params)
        if _has_seen_all(after, session._record):
            return Response(status_code=204)
        if request.method == "HEAD":
            return only_head()
        if self.manager.is_draining:
            return come_back()
        subscription = session.subscribe(after=after, kind="sse")

        async def serve(receive: Receive, send: Send, headers: list[tuple[bytes, bytes]]) -> None:
            await serve_sse(
                subscription, receive, send, connections=self.connections, headers=headers
            )

        return Stream(serve)

    async def open_websocket(self, request: Request, session: Session) -> Response:
        """Tell a client that came without the handshake; :meth:`subscription` is for the others."""
        del request, session
        raise HTTPException(426, "open this as a WebSocket", {"Upgrade": "websocket"})

    def subscription(self, connection: HTTPConnection, session: Session) -> Subscription:
        """Return what the WebSocket of a client reads."""
        after = resume_point(connection.query_params.get("after"))
        with naming("after"):
            return session.subscribe(after=after, kind="websocket")

    async def emit_test_event(self, request: Request, session: Session) -> Response:
        asked = convert(await self._body(request), SampleRequest)
        try:
            check_event_type(asked.event_type)
        except ValueError as exc:
            raise ConfigError("event_type", str(exc)) from None
        data = {**_SAMPLES.get(asked.event_type, {}), **(asked.test_data or {})}
        try:
            event = await session.emit(
                asked.event_type,
                data,
                metadata={"test": True},
            )
        except PayloadError as exc:
            field = f"test_data.{exc.path}" if exc.path else "test_data"
            raise ConfigError(field, exc.reason) from None
        shown = None if event is None else self._event(event)
        return self._json({"session_id": session.id, "event": shown})

    async def stream_all_events(self, request: Request) -> Response:
        if request.method == "HEAD":
            return only_head()
        if self.manager.is_draining:
            return come_back()
        firehose = self.manager.firehose()
        try:
            await firehose.__aenter__()
        except RuntimeError as exc:
            raise HTTPException(503, str(exc)) from exc

        async def serve(receive: Receive, send: Send, headers: list[tuple[bytes, bytes]]) -> None:
            await serve_firehose(
                firehose,
                receive,
                send,
                heartbeat=self.heartbeat,
                write_timeout=self.write_timeout,
                headers=headers,
            )

        return Stream(serve)

    # Deliveries.

    async def list_dead_letters(self, request: Request, session: Session) -> Response:
        query = request.query_params
        limit, after = wanted_limit(query), query.get("after") or None
        found = await self.manager.store.dead_letters(session.id, after=after, limit=limit + 1)
        page = found[:limit]
        return self._json({
            "session_id": session.id,
            "dead_letters": [self._letter(letter) for letter in page],
            "cursor": page[-1].id if page else after,
            "has_more": len(found) > limit,
        })  # fmt: skip

    async def redrive_dead_letters(self, request: Request, session: Session) -> Response:
        asked = convert(await self._body(request), RedriveRequest)
        count = await self.manager.store.redrive(session.id, asked.ids)
        return self._json({"session_id": session.id, "redriven": count})

    async def get_endpoint(self, request: Request, session: Session) -> Response:
        del request
        try:
            health = await session.endpoint()
        except ConfigError as exc:
            raise UnsuitedSessionError(exc.reason) from None
        shown = {
            name: _time(each.timestamp()) if isinstance(each, datetime) else each
            for name, each in attrs.asdict(health).items()
        }
        return self._json({"session_id": session.id, **shown})

    async def list_attempts(self, request: Request, session: Session) -> Response:
        del request
        attempts = [
            {**attrs.asdict(each), "at": _time(each.at)} for each in await session.attempts()
        ]
        return self._json({"session_id": session.id, "attempts": attempts})

    def _letter(self, letter: DeadLetter) -> dict[str, Any]:
        decode = self.manager._codec.decode
        events = [
            Event(
                Position(letter.epoch, record.seq),
                record.event_type,
                record.at,
                letter.session_id,
                record.body,
                decode,
            )
            for record in letter.records
        ]
        return {
            "id": letter.id,
            "method": letter.method,
            "reason": letter.reason,
            "attempts": letter.attempts,
            "at": _time(letter.at),
            "is_due": letter.is_due,
            "events": [self._event(event) for event in events],
        }

    # Figures.

    async def get_session_stats(self, request: Request, session: Session) -> Response:
        del request
        return self._json(dict(await session.stats()))

    async def get_stats(self, request: Request) -> Response:
        del request
        stats = dict(await self.manager.stats())
        buckets = [
            {**attrs.asdict(each), "start": _time(each.start.timestamp())}
            for each in self.manager.history
        ]
        return self._json({**stats, "buckets": buckets})

    async def get_health(self, request: Request) -> Response:
        del request
        await self.manager.store.health()
        return self._json({"status": "ok"})

    async def get_metrics(self, request: Request) -> Response:
        del request
        try:
            from callbackkit.integrations.prometheus import render
        except ImportError as exc:
            raise HTTPException(501, str(exc)) from exc
        text, content_type = await render(self.manager)
        return Response(text, headers={"Content-Type": content_type})

    # Bodies.

    async def _body(self, request: Request) -> dict[str, Any]:
        most = max(_LEAST_BODY, _ESCAPES * self.manager.limits.max_event_bytes)
        body = await read_body(request.stream(), request.headers, most=most)
        if body:
            check_media_type(request.headers.get("content-type"))
        return decode_object(body)

    def _event(self, event: Event) -> object:
        content: object = self.manager._codec.decode(encode_event(event))
        return content

    def _json(self, content: Mapping[str, Any], status: int = 200) -> Response:
        text = self.manager._codec.encode(content)
        return Response(text, status, media_type="application/json")


def seen_path(connection: HTTPConnection) -> str:
    """Return the path of a request as its client sees it.

    Servers give the path with what the application is mounted below (ASGI, ``root_path``); what
    stands before it where a proxy has taken it off may be told too.
    """
    path: str = connection.scope["path"]
    root: str = connection.scope.get("root_path", "").rstrip("/")
    return path if path.startswith(f"{root}/") else root + path


def _position(after: str | None, session: Session) -> Position | None:
    if after is None:
        return None
    return session._record.position if after == "now" else Position.parse(after)


def _has_seen_all(after: str | None, record: SessionRecord) -> bool:
    """Tell whether a session is over for a client which comes back."""
    if after is None or after == "now" or record.state == "active":
        return False
    position = Position.parse(after)
    return position.epoch == record.epoch and position.seq >= record.top


def _time(seconds: float) -> str:
    return timestamp_text(round(seconds * 1e6))
