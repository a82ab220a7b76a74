"""The events of all sessions as ``text/event-stream``, for few readers."""

from __future__ import annotations

from collections.abc import Iterable

import anyio

from callbackkit.errors import StoreError
from callbackkit.sessions.firehose import Firehose
from callbackkit.transports.connections import Message, Receive, Send, leave_at_disconnect
from callbackkit.transports.sse import HEADERS
from callbackkit.wire.envelope import encode_event
from callbackkit.wire.eventstream import write_comment, write_event

__all__ = ["serve_firehose"]

# Milliseconds. What happens meanwhile is not told: this has no past.
_RETRY_MS = 1_000


async def serve_firehose(
    firehose: Firehose,
    receive: Receive,
    send: Send,
    *,
    heartbeat: float,
    write_timeout: float | None,
    headers: Iterable[tuple[bytes, bytes]] = (),
) -> None:
    """Answer one HTTP request with what happens from now on, until the client goes.

    Events have no ``id:`` field: there is nothing to come back to. When the manager stops or
    drains, the client is told to come back.

    Args:
        firehose: Begun already; closed when this returns.
        receive: The ASGI callable.
        send: The ASGI callable.
        heartbeat: Seconds of silence after which a comment is sent.
        write_timeout: Seconds that a client may take to read what is sent.
        headers: More headers, as ASGI has them.
    """
    stream = _Stream(send, write_timeout)
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(leave_at_disconnect, receive, tasks.cancel_scope)
            start = {"type": "http.response.start", "status": 200}
            await stream.send({**start, "headers": [*HEADERS, *headers]})
            await stream.write(write_comment())
            await _serve(firehose, stream, heartbeat)
            tasks.cancel_scope.cancel()
    finally:
        firehose.close()


async def _serve(firehose: Firehose, stream: _Stream, heartbeat: float) -> None:
    while not stream.is_over:
        text: str | None = None
        with anyio.move_on_after(heartbeat):
            try:
                text = encode_event(await anext(firehose)).decode()
            except (StopAsyncIteration, StoreError):
                await stream.write(write_event(None, retry=_RETRY_MS))
                await stream.send({"type": "http.response.body", "body": b""})
                return
        await stream.write(write_comment() if text is None else write_event(text))


class _Stream:
    """Sends, and knows when nobody reads.

    Attributes:
        is_over: The client has left, or does not read.
    """

    def __init__(self, send: Send, write_timeout: float | None) -> None:
        self._send = send
        self._write_timeout = write_timeout
        self.is_over: bool = False

    async def write(self, body: bytes) -> None:
        await self.send({"type": "http.response.body", "body": body, "more_body": True})

    async def send(self, message: Message) -> None:
        with anyio.move_on_after(self._write_timeout) as scope:
            try:
                await self._send(message)
            except OSError:
                # So servers tell of a client that has left (ASGI 2.4).
                self.is_over = True
        self.is_over = self.is_over or scope.cancelled_caught
