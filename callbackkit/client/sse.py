"""Following by server-sent events."""

from __future__ import annotations

from typing import Final

import anyio

from callbackkit.client.answers import BlockedError, LostError, check_status
from callbackkit.client.decoding import MOST_EVENT, Batch, decode_stream
from callbackkit.client.line import Line, check_plain, chunks_of, media_type, translated
from callbackkit.client.polling import follow_polling
from callbackkit.errors import PositionError, WireError
from callbackkit.events import Position
from callbackkit.wire.eventstream import EventStreamReader

try:
    import httpx2
except ImportError as _exc:
    raise ImportError("callbackkit.client needs httpx2: install callbackkit[client]") from _exc

__all__ = ["follow_sse"]

_MEDIA_TYPE: Final = "text/event-stream"


async def follow_sse(line: Line) -> None:
    """Follow a session by one connection; returns once the session has ended.

    Raises:
        LostError: The connection is over.
        BlockedError: Streams don't get here.
        CallbackKitError: The session can't be followed any more.

    Source:
        WHATWG HTML, "Server-sent events".
    """
    await line.find_now()
    position = str(line.place)
    headers = {"Accept": _MEDIA_TYPE, "Cache-Control": "no-store"}
    if position:
        headers["Last-Event-ID"] = position
    async with line.request(line.address.sse, headers) as response:
        if response.status_code != 204:
            check_status(response.status_code, response.headers, line.address.session_id)
            _check_stream(response)
            await _read(line, response)
            return
    await _check_end(line)


async def _check_end(line: Line) -> None:
    """Hold that nothing more will come, as a 204 says; somebody between may have said it.

    Raises:
        LostError: The session goes on.
        CallbackKitError: The session was deleted.
    """
    state = await line.ask_state()
    if not state.has_ended:
        raise LostError("the server has no stream now")
    if not line.place.has_reached(state.position):
        await follow_polling(line)


def _check_stream(response: httpx2.Response) -> None:
    found = media_type(response)
    if found != _MEDIA_TYPE:
        raise BlockedError(f"what came is {found!r:.80} and no event stream")
    check_plain(response)


async def _read(line: Line, response: httpx2.Response) -> None:
    """Read a stream until the session has ended.

    Raises:
        LostError: The stream has.
        BlockedError: It does not begin.
    """
    reader = EventStreamReader(max_event=MOST_EVENT)
    begins_until = anyio.current_time() + line.priming
    has_begun = False
    async with chunks_of(response, closing=line.closing) as chunks:
        while True:
            wait = line.max_silence if has_begun else begins_until - anyio.current_time()
            chunk: bytes | None = None
            with anyio.move_on_after(wait) as scope, translated():
                chunk = await anext(chunks, None)
            if scope.cancelled_caught:
                raise _silence(line, has_begun)
            if chunk is None:
                raise _ended(reader)
            batch = _feed(reader, chunk)
            if not has_begun and reader.last_event_id:
                has_begun = True
                line.works()
                if batch == Batch():
                    # Else it is the id of something that is yet to be taken.
                    _begin(line, reader.last_event_id)
            if await line.take(batch):
                return


def _silence(line: Line, has_begun: bool) -> Exception:
    if has_begun:
        return LostError(f"nothing was heard for {line.max_silence:g} seconds")
    return BlockedError(
        f"a stream did not begin within {line.priming:g} seconds: somebody between collects it"
    )


def _feed(reader: EventStreamReader, chunk: bytes) -> Batch:
    try:
        return decode_stream(reader.feed(chunk))
    except WireError as exc:
        return Batch(trouble=str(exc))


def _ended(reader: EventStreamReader) -> LostError:
    told = None if reader.retry is None else reader.retry / 1_000
    return LostError("the server ended the stream", told=told)


def _begin(line: Line, position: str) -> None:
    """Take note of where a stream begins, so that coming back before its first event is exact."""
    try:
        line.place.begin(Position.parse(position))
    except PositionError:
        raise BlockedError("the ids of the stream are no positions") from None
