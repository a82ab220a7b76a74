"""What a server sends, as events: any bytes, and nothing but a WireError if they mean nothing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, cast

import attrs

from callbackkit.errors import PositionError, WireError
from callbackkit.events import END, Event, Position
from callbackkit.wire.envelope import JsonCodec, decode_event
from callbackkit.wire.eventstream import ServerSentEvent

__all__ = [
    "MOST_EVENT",
    "MOST_PAGE",
    "Batch",
    "Page",
    "State",
    "decode_message",
    "decode_page",
    "decode_state",
    "decode_stream",
]

# Bytes, far beyond what a server lets an event and a page have by default.
MOST_EVENT: Final = 8_388_608
MOST_PAGE: Final = 33_554_432

_HEARTBEAT: Final = "callbackkit.heartbeat"
_JSON: Final = JsonCodec()


@attrs.frozen
class Batch:
    """What came at once.

    Attributes:
        events: In order.
        end: What became of the session, ``"ended"`` or ``"deleted"``, if that was told behind them.
        trouble: What was wrong with what stood behind them.
    """

    events: tuple[Event, ...] = attrs.field(default=(), converter=tuple[Event, ...])
    end: str | None = None
    trouble: str | None = None


@attrs.frozen
class Page:
    """An answer to a poll.

    Attributes:
        batch: Its events.
        cursor: Where to go on.
        has_more: There is more already.
    """

    batch: Batch
    cursor: Position
    has_more: bool


@attrs.frozen
class State:
    """How a session stands.

    Attributes:
        has_ended: Nothing will be added.
        position: Of its last event.
    """

    has_ended: bool
    position: Position


def decode_stream(messages: Iterable[ServerSentEvent]) -> Batch:
    """Return what stands in an event stream; types of its own are nothing of ours."""
    return _batch(message.data for message in messages if message.event == "message")


def decode_message(text: str) -> Batch:
    """Return what a message of a WebSocket says; a heartbeat says nothing."""
    batch = _batch([text])
    if batch.trouble is not None and _is_heartbeat(text):
        return Batch()
    return batch


def decode_page(body: bytes) -> Page:
    """Return an answer to a poll.

    Raises:
        WireError: It is none.
    """
    content = _object(body)
    events, has_more = content.get("events"), content.get("has_more")
    if not isinstance(events, list) or not isinstance(has_more, bool):
        raise WireError("no page: 'events' must be an array, and 'has_more' true or false")
    batch = _batch(_text(each) for each in cast("list[object]", events))
    return Page(batch, _position(content, "cursor"), has_more)


def decode_state(body: bytes) -> State:
    """Return how a session stands.

    Raises:
        WireError: That was not told.
    """
    content = _object(body)
    state = content.get("state")
    if not isinstance(state, str):
        raise WireError("no session: 'state' must be a string")
    return State(state == "ended", _position(content, "position"))


def _batch(texts: Iterable[str]) -> Batch:
    events: list[Event] = []
    try:
        for text in texts:
            event = decode_event(text)
            if event.event_type == END:
                return Batch(events, str(event.data.get("state")))
            events.append(event)
    except WireError as exc:
        return Batch(events, trouble=str(exc))
    return Batch(events)


def _is_heartbeat(text: str) -> bool:
    try:
        return _object(text.encode(errors="surrogatepass")).get("event_type") == _HEARTBEAT
    except WireError:
        return False


def _text(value: object) -> str:
    try:
        return _JSON.encode(value).decode()
    except (ValueError, RecursionError) as exc:
        raise WireError(f"no event: {exc!s:.200}") from exc


def _object(body: bytes) -> dict[str, Any]:
    try:
        content = _JSON.decode(body)
    except (ValueError, RecursionError) as exc:
        raise WireError(f"an answer must be JSON in UTF-8: {exc!s:.200}") from exc
    if not isinstance(content, dict):
        raise WireError(f"an answer must be a JSON object, not {type(content).__name__}")
    return cast("dict[str, Any]", content)


def _position(content: dict[str, Any], key: str) -> Position:
    try:
        return Position.parse(content.get(key, ""))
    except PositionError as exc:
        raise WireError(f"{key!r} of an answer: {exc}") from exc
