"""A session as messages of a WebSocket, and what its client says."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

import anyio

from callbackkit.delivery.policy import RateLimit
from callbackkit.errors import (
    LimitError,
    PayloadError,
    SessionEndedError,
    StoreError,
    UnknownSessionError,
)
from callbackkit.sessions.subscription import Subscription
from callbackkit.sessions.tail import Entry
from callbackkit.transports.connections import Connection, Connections, Message, Receive, Send
from callbackkit.wire.envelope import JsonCodec, encode_event, end_event, timestamp_text

__all__ = ["GOING_AWAY", "REFUSED", "RESTART", "SESSION_GONE", "serve_websocket"]

# Close codes: RFC 6455, section 7.4, its registry at IANA, and one of our own.
DONE: Final = 1000
GOING_AWAY: Final = 1001
NOT_TEXT: Final = 1007
REFUSED: Final = 1008
TOO_BIG: Final = 1009
INTERNAL: Final = 1011
RESTART: Final = 1012
SESSION_GONE: Final = 4001

# What a client may say: bytes of a message, and messages a second; faster ones wait.
_MOST_MESSAGE: Final = 65_536
_MESSAGES: Final = RateLimit(20.0)
_MOST_ENTRIES: Final = 100

_JSON: Final = JsonCodec()


async def serve_websocket(
    subscription: Subscription,
    receive: Receive,
    send: Send,
    *,
    connections: Connections,
    on_message: Callable[[Any], Awaitable[object]],
) -> None:
    """Send the events of a session as messages of an accepted WebSocket, until either side goes.

    Each message is one event as JSON. The last one is of type ``callbackkit.end``, and the close
    code 1000 when the session has ended, 4001 when it was deleted; 1012 asks the client to come
    back. Silence is broken by messages of type ``callbackkit.heartbeat``, as a page can't see what
    servers send for that.

    Args:
        subscription: Read from where the client wants to go on; closed when this returns.
        receive: The ASGI callable.
        send: The ASGI callable.
        connections: Those of the application.
        on_message: Called with what the client says, one after the other: JSON decoded, anything
            else as text. A :exc:`~callbackkit.PayloadError` or :exc:`~callbackkit.LimitError`
            refuses the client, with 1008.

    Source:
        RFC 6455; ASGI, "WebSocket".
    """
    try:
        async with anyio.create_task_group() as tasks:
            connection = Connection(subscription, tasks.cancel_scope)
            # In a task of its own: a wake-up then passes through no frames of a framework.
            serve = partial(_serve, connection, connections, send)
            tasks.start_soon(connections.run, connection, serve)
            await _listen(connection, receive, on_message)
    finally:
        subscription.close()


# What the client says.


async def _listen(
    connection: Connection, receive: Receive, on_message: Callable[[Any], Awaitable[object]]
) -> None:
    full_at = 0.0
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            connection.scope.cancel()
            return
        # Meanwhile nothing more is received, which reaches back to the client.
        await anyio.sleep(_MESSAGES.wait(full_at, anyio.current_time()))
        full_at = _MESSAGES.take(full_at, anyio.current_time())
        refusal = await _heard(message, on_message)
        if refusal is not None:
            connection.close(*refusal)
            return


async def _heard(
    message: Message, on_message: Callable[[Any], Awaitable[object]]
) -> tuple[int, str] | None:
    """Hand on a message; return why it is refused, if it is."""
    content = message.get("bytes")
    if content is None:
        # Half a surrogate pair is no UTF-8, which is what it is refused for.
        content = (message.get("text") or "").encode(errors="surrogatepass")
    if len(content) > _MOST_MESSAGE:
        return TOO_BIG, f"a message may have {_MOST_MESSAGE} bytes"
    try:
        value = _value(content)
    except UnicodeDecodeError:
        return NOT_TEXT, "a message must be UTF-8"
    try:
        await on_message(value)
    except (PayloadError, LimitError) as exc:
        return REFUSED, str(exc)
    except StoreError:
        return INTERNAL, "the message could not be stored"
    except (SessionEndedError, UnknownSessionError):
        # Its sender tells.
        return None
    return None


def _value(content: bytes) -> Any:
    """Return what JSON means, or the text that is none."""
    try:
        return _JSON.decode(content)
    except UnicodeDecodeError:
        raise
    except (ValueError, RecursionError):
        return content.decode()


# What it is sent.


async def _serve(connection: Connection, connections: Connections, send: Send) -> None:
    try:
        code, reason = await _stream(connection, connections, send)
    except UnknownSessionError:
        await _tell_end(connection, connections, send, "deleted")
        code, reason = SESSION_GONE, "the session is gone"
    except StoreError:
        code, reason = RESTART, "the store can't be read now; come back"
    # RFC 6455, section 5.5: 125 bytes, of which the code takes two.
    reason = reason.encode()[:123].decode(errors="ignore")
    await connections.send(
        connection, send, {"type": "websocket.close", "code": code, "reason": reason}
    )


async def _stream(connection: Connection, connections: Connections, send: Send) -> tuple[int, str]:
    """Send events as they come; return the close code and reason."""
    subscription = connection.subscription
    tail = subscription.tail
    # Whoever is refused is not sent what is left, of which there may always be more.
    while not subscription.is_draining and connection.closing is None:
        pending = None if connection.is_beat_due else subscription.pending()
        if pending is not None:
            await pending
        entries = subscription.take(_MOST_ENTRIES)
        if entries:
            for entry in entries:
                # What `connections.send` does, without the time of its call.
                connection.since = connections.now
                connection.is_sending = True
                await send(entry.text or _frame(entry))
            connection.is_sending = False
            if entries[-1].seq > tail.noted:
                subscription.note_read(entries[-1].event)
        elif subscription.has_ended:
            await _tell_end(connection, connections, send, "ended")
            return DONE, "the session has ended"
        elif subscription.is_closed:
            break
        elif connection.is_beat_due:
            await _beat(connection, connections, send)
        else:
            await subscription.more()
    return connection.closing or (RESTART, "come back")


async def _tell_end(
    connection: Connection, connections: Connections, send: Send, state: str
) -> None:
    subscription = connection.subscription
    now = int(time.time() * 1e6)
    event = end_event(subscription.session_id, subscription.reached, state, microseconds=now)
    await connections.send(connection, send, _frame(Entry(event)))


async def _beat(connection: Connection, connections: Connections, send: Send) -> None:
    now = timestamp_text(int(time.time() * 1e6))
    text = f'{{"event_type":"callbackkit.heartbeat","timestamp":"{now}","data":{{}}}}'
    await connections.beat(connection, send, {"type": "websocket.send", "text": text})


def _frame(entry: Entry) -> Message:
    text = encode_event(entry.event).decode()
    message = entry.text = {"type": "websocket.send", "text": text}
    return message
