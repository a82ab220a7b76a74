"""A run as the bytes of a response: server-sent events, JSON lines or escaped text."""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, Self, TypeVar

import anyio

from callbackkit.buffer import checkpoint
from callbackkit.streaming.events import StreamEvent
from callbackkit.wire.eventstream import write_comment, write_event
from callbackkit.wire.jsontext import json_text

if TYPE_CHECKING:
    from callbackkit.streaming.callback import Callback
    from callbackkit.streaming.readers import _AsyncReader

__all__ = [
    "EncodedStream",
    "StreamFormat",
    "check_heartbeat",
    "headers_for",
    "log_end",
    "ndjson",
    "position_in",
    "sse",
    "text",
]

logger: Final = logging.getLogger("callbackkit.streaming")

T = TypeVar("T")

StreamFormat = Literal["sse", "ndjson", "text"]
"""How a run is written into a response."""

_MEDIA_TYPES: Final[dict[str, str]] = {
    "sse": "text/event-stream",
    "ndjson": "application/x-ndjson",
    "text": "text/plain; charset=utf-8",
}

# Entries written at a time, before other tasks get a turn: a reader that comes late may be given
# all of the history at once.
_MOST_WRITTEN: Final = 512

_KEEPALIVE: Final = write_comment("keepalive")

# <run>-<seq>: short and of letters, digits and "-" only, or a browser would ask a server of
# another origin for permission to send it (WPT eventsource, cors-unsafe-last-event-id).
_EVENT_ID: Final = re.compile(r"([0-9a-f]{32})-([0-9]{1,18})")


# The three formats.


def sse(
    callback: Callback,
    last_event_id: str | None = None,
    heartbeat: float | None = 15.0,
    *,
    named_events: bool = False,
    retry_ms: int | None = None,
) -> EncodedStream:
    """Write a run as server-sent events, for a browser's ``EventSource``.

    Each entry of the run is an event with the id ``<run>-<number>``, whose data is a JSON
    object of these keys, those without a value left out: ``type``, ``token`` (the text),
    ``node``, ``span``, ``params``, ``data`` and ``status``, as in
    :class:`~callbackkit.StreamEvent`. The last one has the type ``stream_end`` and the status
    of the run. Why it failed is logged (``callbackkit.streaming``) and not sent.

    Data that JSON has no word for is sent as its ``repr``, NaN as ``null``.

    Args:
        callback: The run. Any number of encoders may follow it.
        last_event_id: What the client sent as ``Last-Event-ID``: the stream goes on behind
            that event. An id of another run, or that is none at all, begins at the beginning.
        heartbeat: Seconds of silence after which a comment is sent, so that proxies keep the
            connection open. ``None``: never.
        named_events: Write the type as ``event:`` too. The client then listens with
            ``addEventListener(type, ...)``; ``onmessage`` sees nothing.
        retry_ms: Milliseconds after which the browser is to reconnect when the connection is
            lost; ``None`` leaves that to the browser.

    Raises:
        ValueError: *heartbeat* is not positive, or *retry_ms* negative.
    """
    check_heartbeat(heartbeat)
    run_id = callback.run_id
    after = _resume_after(callback, last_event_id)

    def written(events: list[StreamEvent]) -> bytes:
        return b"".join(
            [
                write_event(
                    _json(event),
                    id=f"{run_id}-{event.seq}",
                    event=_one_line(event.type) if named_events else None,
                )
                for event in events
            ]
        )

    # Tells the client where it stands before there is anything to read, so that one that loses
    # its connection at once asks for this run again and not for another one. And a proxy that
    # holds the headers back until there is a body lets them go.
    first = write_event(None, id=f"{run_id}-{after}", retry=retry_ms)
    reader = callback.events(after=after, raise_errors=False)
    return EncodedStream(callback, _Batches(reader, written), heartbeat, first)


def ndjson(callback: Callback) -> EncodedStream:
    """Write a run as lines of JSON, one object an entry, with the keys that :func:`sse` has."""

    def written(events: list[StreamEvent]) -> bytes:
        return "".join([f"{_json(event)}\n" for event in events]).encode()

    return EncodedStream(callback, _Batches(callback.events(raise_errors=False), written))


def text(callback: Callback) -> EncodedStream:
    """Write a run as text with special tokens, which :class:`~callbackkit.TokenParser` reads.

    Text that looks like a special token is escaped, also when it comes in pieces. Half of a
    surrogate pair becomes ``?``.
    """
    encode = callback.format.encoder().encode

    def written(tokens: list[str]) -> bytes:
        return "".join(map(encode, tokens)).encode("utf-8", "replace")

    return EncodedStream(callback, _Batches(callback.aiter(raise_errors=False), written))


def headers_for(format: StreamFormat) -> dict[str, str]:  # noqa: A002 - the word of the contract
    """Return the headers of a response that is written as it comes.

    They name its type, and keep caches from storing, proxies from buffering and browsers from
    guessing.

    >>> headers_for("sse")["X-Accel-Buffering"]
    'no'

    Raises:
        ValueError: *format* is none of ``"sse"``, ``"ndjson"`` and ``"text"``.
    """
    if format not in _MEDIA_TYPES:
        raise ValueError(f"format must be 'sse', 'ndjson' or 'text', not {format!r:.200}")
    return {
        "Content-Type": _MEDIA_TYPES[format],
        "Cache-Control": "no-store, no-transform",
        "X-Accel-Buffering": "no",
        "X-Content-Type-Options": "nosniff",
    }


def position_in(last_event_id: str | None) -> tuple[str, int] | None:
    """Return the run and the number of an event id; ``None`` if it is none of :func:`sse`."""
    found = None if last_event_id is None else _EVENT_ID.fullmatch(last_event_id)
    return None if found is None else (found[1], int(found[2]))


# Writing.


class EncodedStream(AsyncIterator[bytes]):
    """The bytes of a run, chunk by chunk as it goes on; what waits together is one chunk.

    It writes the END with its status, then it ends; it raises nothing of the run. One task
    iterates at a time; any task or thread may close. Leaving it is enough: the run does not
    hold those who follow it.
    """

    __slots__ = ("_callback", "_chunks", "_first", "_heartbeat", "_is_over")

    def __init__(
        self,
        callback: Callback,
        chunks: _Batches[Any],
        heartbeat: float | None = None,
        first: bytes = b"",
    ) -> None:
        self._callback = callback
        self._chunks = chunks
        self._heartbeat = heartbeat
        self._first = first
        self._is_over = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        _type: type[BaseException] | None,
        _exc: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        """Return the next bytes, never empty ones, waiting for them."""
        if self._is_over:
            raise StopAsyncIteration
        if self._first:
            first, self._first = self._first, b""
            return first
        try:
            return await self._next_chunk()
        except StopAsyncIteration:
            if not self._is_over:
                self._is_over = True
                log_end(self._callback)
            raise

    async def aclose(self) -> None:
        """End the iteration, also one that waits now; the run goes on."""
        self._is_over = True
        self._chunks.close()

    async def _next_chunk(self) -> bytes:
        if self._heartbeat is None:
            return await anext(self._chunks)
        # Cancelling the read loses nothing: it takes entries out only once it does not wait any
        # more. The scope ends before anything is handed out.
        chunk = b""
        with anyio.move_on_after(self._heartbeat):
            chunk = await anext(self._chunks)
        return chunk or _KEEPALIVE


class _Batches(Generic[T]):
    """What a reader gives, written."""

    __slots__ = ("_batch", "_batches", "_written", "reader")

    def __init__(self, reader: _AsyncReader[T], written: Callable[[list[T]], bytes]) -> None:
        self.reader: _AsyncReader[T] = reader
        self._batches = reader.batches()
        self._batch: list[T] = []
        self._written = written

    async def __anext__(self) -> bytes:
        while True:
            if self._batch:
                await checkpoint()
            else:
                self._batch = await anext(self._batches)
            part, self._batch = self._batch[:_MOST_WRITTEN], self._batch[_MOST_WRITTEN:]
            chunk = self._written(part)
            # An empty token is no text.
            if chunk:
                return chunk

    def close(self) -> None:
        self._batch.clear()
        self.reader.close()


def log_end(callback: Callback) -> None:
    """Log why a run failed; a filter or handler of the application may raise."""
    error = callback.error
    if error is None or callback.status == "cancelled":
        return
    shown = (type(error), error, error.__traceback__)
    try:
        logger.error("run %s ended: %s", callback.run_id, callback.status, exc_info=shown)
    except Exception:
        return


# What is written.


def _json(event: StreamEvent) -> str:
    if event.type == "token":
        # Most are; written out it takes a third of the time.
        node = "" if event.node is None else f',"node":{json_text(event.node)}'
        span = "" if event.span is None else f',"span":{event.span}'
        return f'{{"type":"token","token":{json_text(event.token)}{node}{span}}}'
    fields: dict[str, object] = {"type": event.type}
    if event.token is not None:
        fields["token"] = event.token
    if event.node is not None:
        fields["node"] = event.node
    if event.span is not None:
        fields["span"] = event.span
    if event.params:
        fields["params"] = dict(event.params)
    if event.data is not None:
        fields["data"] = event.data
    if event.status is not None:
        fields["status"] = event.status
    return json_text(fields)


def _one_line(name: str) -> str:
    """Return the name of an application's event without what would end its line."""
    return name.replace("\r", " ").replace("\n", " ").encode("utf-8", "replace").decode()


def _resume_after(callback: Callback, last_event_id: str | None) -> int:
    found = position_in(last_event_id)
    if found is None or found[0] != callback.run_id or found[1] > callback.last_seq:
        return 0
    return found[1]


def check_heartbeat(heartbeat: object) -> None:
    """Raise unless *heartbeat* is ``None`` or a positive number of seconds."""
    if heartbeat is None:
        return
    if isinstance(heartbeat, bool) or not isinstance(heartbeat, int | float):
        raise TypeError(f"heartbeat must be a number of seconds, not {heartbeat!r:.200}")
    if not heartbeat > 0:
        raise ValueError(f"heartbeat must be positive, not {heartbeat!r}; None sends none")
