"""Following by a WebSocket."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Final

import anyio

from callbackkit.client.answers import (
    BlockedError,
    LostError,
    check_status,
    refusal,
)
from callbackkit.client.decoding import MOST_EVENT, decode_message
from callbackkit.client.line import FAILURES, Line, lost_by
from callbackkit.errors import CallbackKitError

try:
    import httpx2
    from httpx2.websockets import (
        AsyncWebSocketSession,
        HTTPXWSException,
        WebSocketDisconnect,
        WebSocketUpgradeError,
    )
    from wsproto.utilities import ProtocolError
except ImportError as _exc:
    raise ImportError("callbackkit.client needs httpx2[ws]: install callbackkit[client]") from _exc

__all__ = ["follow_websocket"]

_PROTOCOL: Final = "callbackkit"
# Close codes: RFC 6455, section 7.4.1, and the server's own for a session that is gone.
_REFUSED: Final = 1008
_GONE: Final = 4001
_ASKED_ABOUT: Final = frozenset({_REFUSED, _GONE})
# A handshake that was answered otherwise; the second is what a hook of the client may raise.
_REFUSALS: Final = (WebSocketUpgradeError, httpx2.HTTPStatusError)


async def follow_websocket(line: Line) -> None:
    """Follow a session by one connection; returns once the session has ended.

    Raises:
        LostError: The connection is over.
        BlockedError: WebSockets don't get here.
        CallbackKitError: The session can't be followed any more.

    Source:
        RFC 6455.
    """
    await line.find_now()
    outcome = await _connect(line)
    if isinstance(outcome, _REFUSALS):
        await _tell_refusal(line, outcome.response)
    if isinstance(outcome, WebSocketDisconnect):
        await _tell_close(line, outcome)
    if outcome is not None:
        raise outcome


async def _connect(line: Line) -> Exception | None:
    """Open a WebSocket and read it; return why that is over, ``None`` for the end of the session.

    What is raised around the socket comes in groups, as it has tasks of its own.
    """
    outcome: Exception | None = LostError("the server did not answer in time")
    position = str(line.place)
    with anyio.CancelScope() as opening:
        opening.deadline = anyio.current_time() + line.patience
        try:
            async with line.client.websocket(
                line.address.websocket,
                params={"after": position} if position else None,
                headers=dict(line.headers),
                subprotocols=[_PROTOCOL],
                max_message_size_bytes=MOST_EVENT,
                # The server breaks the silence; while nobody takes events, nobody hears a pong.
                keepalive_ping_interval_seconds=None,
                timeout=line.timeout,
                auth=line.auth,
                follow_redirects=False,
            ) as socket:
                opening.deadline = math.inf
                try:
                    outcome = await _read(line, socket)
                finally:
                    await _close(line, socket)
        except* _REFUSALS as group:
            outcome = _first(group)
        except* (*FAILURES, HTTPXWSException, ProtocolError) as group:
            outcome = lost_by(_first(group))
    return outcome


def _first(group: BaseExceptionGroup[Exception]) -> Exception:
    found = group.exceptions[0]
    return _first(found) if isinstance(found, BaseExceptionGroup) else found


async def _read(line: Line, socket: AsyncWebSocketSession) -> Exception | None:
    """Read a WebSocket; return why that is over, ``None`` for the end of the session."""
    try:
        while True:
            text: str | None = None
            with anyio.move_on_after(line.max_silence):
                text = await socket.receive_text()
            if text is None:
                return LostError(f"nothing was heard for {line.max_silence:g} seconds")
            line.works()
            if await line.take(decode_message(text)):
                return None
    except WebSocketDisconnect as exc:
        return exc
    except (HTTPXWSException, anyio.EndOfStream) as exc:
        return lost_by(exc)
    except (LostError, CallbackKitError) as exc:
        return exc


async def _close(line: Line, socket: AsyncWebSocketSession) -> None:
    """Close a WebSocket, in a time that has an end.

    The library would do so behind a shield, and wait there for a server that reads no more.
    """
    with (
        anyio.move_on_after(line.closing, shield=True),
        suppress(*FAILURES, HTTPXWSException, ProtocolError),
    ):
        await socket.close()


async def _tell_refusal(line: Line, response: httpx2.Response) -> None:
    """Raise what it means that a WebSocket was not let in.

    Raises:
        BlockedError: The session is there: somebody between refuses, or the server this way.
        CallbackKitError: It is not.
        LostError: Another time it may work.
    """
    status, session_id = response.status_code, line.address.session_id
    if refusal(status, session_id) is None:
        check_status(status, response.headers, session_id)
    else:
        # Many servers answer 403 whatever the reason.
        await line.ask_state()
    raise BlockedError(f"a WebSocket was answered {status}")


async def _tell_close(line: Line, closed: WebSocketDisconnect) -> None:
    """Raise what a close code means.

    Raises:
        BlockedError: The server wants no WebSocket.
        CallbackKitError: The session is gone.
        LostError: Come back.
    """
    if closed.code in _ASKED_ABOUT:
        await line.ask_state()
    if closed.code == _REFUSED:
        raise BlockedError("the server closed the WebSocket: it refuses it")
    raise LostError(f"the server closed the WebSocket: {closed.code}")
