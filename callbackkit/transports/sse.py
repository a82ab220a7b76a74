"""A session as ``text/event-stream``: framed once, for all who read it."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Final

import anyio

from callbackkit.errors import StoreError, UnknownSessionError
from callbackkit.events import Event
from callbackkit.sessions.subscription import Subscription
from callbackkit.sessions.tail import Entry
from callbackkit.transports.connections import (
    Connection,
    Connections,
    Message,
    Receive,
    Send,
    leave_at_disconnect,
)
from callbackkit.wire.envelope import encode_event, end_event
from callbackkit.wire.eventstream import write_comment, write_event

__all__ = ["HEADERS", "serve_drained", "serve_sse"]

Headers = Iterable[tuple[bytes, bytes]]

HEADERS: Final = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    # A stream is neither kept nor compressed; nginx is not to wait for more of it.
    (b"cache-control", b"no-store, no-transform"),
    (b"x-accel-buffering", b"no"),
)

# Milliseconds after which clients are to come back, from and to: not all at once.
_RETRY_MS: Final = (500, 3_000)
# Entries taken at once, and bytes of them joined into one write.
_MOST_ENTRIES: Final = 100
_MOST_BYTES: Final = 262_144
_END: Final[Message] = {"type": "http.response.body", "body": b""}


def _body(body: bytes) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": True}


_HEARTBEAT: Final = _body(write_comment())


async def serve_sse(
    subscription: Subscription,
    receive: Receive,
    send: Send,
    *,
    connections: Connections,
    headers: Headers = (),
) -> None:
    """Answer one HTTP request with the events of a session, until it ends or the client goes.

    The first write holds the position where it begins, so that a client which loses the connection
    before the first event comes back to the same place. Silence is broken by comments. At the end
    of the session stands an event of type ``callbackkit.end``; a drain, a store that fails and the
    stopping of the manager end the stream with a ``retry:`` and no more.

    Args:
        subscription: Read from where the client wants to go on; closed when this returns.
        receive: The ASGI callable.
        send: The ASGI callable.
        connections: Those of the application.
        headers: More headers, as ASGI has them.

    Source:
        WHATWG HTML, "Server-sent events"; ASGI, "HTTP".
    """
    try:
        async with anyio.create_task_group() as tasks:
            connection = Connection(subscription, tasks.cancel_scope)
            # In a task of its own: a wake-up then passes through no frames of a framework.
            serve = partial(_serve, connection, connections, send, headers)
            tasks.start_soon(connections.run, connection, serve)
            await leave_at_disconnect(receive, tasks.cancel_scope)
    finally:
        subscription.close()


async def serve_drained(send: Send, *, headers: Headers = ()) -> None:
    """Answer one HTTP request by asking the client to come back.

    With a 200: a browser does not come back after any other status.
    """
    await send(_start(headers))
    await send(_body(_retry()))
    await send(_END)


async def _serve(
    connection: Connection, connections: Connections, send: Send, headers: Headers
) -> None:
    await connections.send(connection, send, _start(headers))
    try:
        last = await _stream(connection, connections, send)
    except UnknownSessionError:
        last = write_event(_text(_marker(connection.subscription, "deleted")))
    except StoreError:
        last = _retry()
    await connections.send(connection, send, _body(last))
    await connections.send(connection, send, _END)


async def _stream(connection: Connection, connections: Connections, send: Send) -> bytes:
    """Send events as they come; return what is to be sent last of all."""
    subscription = connection.subscription
    position = await subscription.begin()
    await connections.send(connection, send, _body(write_event(None, id=str(position))))
    tail = subscription.tail
    while not subscription.is_draining:
        pending = None if connection.is_beat_due else subscription.pending()
        if pending is not None:
            await pending
        entries = subscription.take(_MOST_ENTRIES)
        if len(entries) == 1:
            entry = entries[0]
            # What `connections.send` does, without the time of its call.
            connection.since = connections.now
            connection.is_sending = True
            await send(entry.sse or _frame(entry))
            connection.is_sending = False
            if entry.seq > tail.noted:
                subscription.note_read(entry.event)
        elif entries:
            for message in _messages(subscription, entries):
                await connections.send(connection, send, message)
            subscription.note_read(entries[-1].event)
        elif subscription.has_ended:
            end = _marker(subscription, "ended")
            return write_event(_text(end), id=str(end.position))
        elif subscription.is_closed:
            break
        elif connection.is_beat_due:
            await connections.beat(connection, send, _HEARTBEAT)
        else:
            await subscription.more()
    return _retry()


# What is sent.


def _messages(subscription: Subscription, entries: Sequence[Entry]) -> Iterable[Message]:
    """Return what to send of several: as a rule one message, shared by all who read the same."""
    tail = subscription.tail
    joined, first, last = tail.joined, entries[0], entries[-1]
    # Who wants only some types may have left out what is in between.
    is_whole = last.seq - first.seq == len(entries) - 1
    if joined is not None and joined[0] is first and joined[1] is last and is_whole:
        return (joined[2],)
    messages = _join(entries)
    if len(messages) == 1 and is_whole:
        tail.joined = (first, last, messages[0])
    return messages


def _join(entries: Sequence[Entry]) -> list[Message]:
    messages: list[Message] = []
    parts: list[bytes] = []
    size = 0
    for entry in entries:
        part: bytes = (entry.sse or _frame(entry))["body"]
        if parts and size + len(part) > _MOST_BYTES:
            messages.append(_body(b"".join(parts)))
            parts, size = [], 0
        parts.append(part)
        size += len(part)
    messages.append(_body(b"".join(parts)))
    return messages


def _frame(entry: Entry) -> Message:
    event = entry.event
    text = encode_event(event)
    if b"\n" in text or b"\r" in text:
        # A codec of the application may write lines.
        frame = write_event(text.decode(), id=event.id)
    else:
        frame = b"id: %b\ndata: %b\n\n" % (event.id.encode(), text)
    message = entry.sse = _body(frame)
    return message


def _marker(subscription: Subscription, state: str) -> Event:
    now = int(time.time() * 1e6)
    return end_event(subscription.session_id, subscription.reached, state, microseconds=now)


def _text(event: Event) -> str:
    return encode_event(event).decode()


def _start(headers: Headers) -> Message:
    return {"type": "http.response.start", "status": 200, "headers": [*HEADERS, *headers]}


def _retry() -> bytes:
    return write_event(None, retry=random.randint(*_RETRY_MS))
