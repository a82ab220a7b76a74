"""Events as JSON, and back.

What a store keeps of an event, its *body*, is JSON with these three keys in this order::

    {"conversation_id":null,"data":{"progress":0.4},"metadata":{}}

What a reader gets is the same text with four more keys before them, so that an event is encoded
once, however many read it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Final, NoReturn, Protocol, cast

from callbackkit.errors import PayloadError, PositionError, WireError
from callbackkit.events import END, GAP, Event, Position

__all__ = [
    "Codec",
    "JsonCodec",
    "decode_event",
    "encode_body",
    "encode_event",
    "encode_events",
    "encode_json",
    "end_event",
    "gap_event",
    "parse_timestamp",
    "timestamp_text",
]

# JSON.


class Codec(Protocol):
    """Writes and reads JSON; what to implement for a faster library.

    ``encode`` writes keys in their order, and raises for what it can't write; ``decode`` gives
    ``dict``, ``list``, ``str``, ``int``, ``float``, ``bool`` and ``None``, and raises for what is
    no JSON. Both may raise any ``Exception``.
    """

    def encode(self, value: Any, /) -> bytes:
        """Return *value* as JSON in UTF-8."""
        ...

    def decode(self, text: bytes, /) -> Any:
        """Return the value of JSON in UTF-8."""
        ...


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


# NaN and Infinity are what Python would write and read, and no JSON (RFC 8259, section 6).
_ENCODER: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_DECODER: Final = json.JSONDecoder(parse_constant=_refuse_constant)


class JsonCodec:
    """The codec of the standard library."""

    def __repr__(self) -> str:
        return "JsonCodec()"

    def encode(self, value: Any, /) -> bytes:
        """Return *value* as JSON in UTF-8, in one line without spaces.

        Raises:
            ValueError: A number that is not finite, half of a surrogate pair, or a cycle.
            TypeError: A value that JSON has no word for.
            RecursionError: It is nested too deep.
        """
        return _ENCODER.encode(value).encode()

    def decode(self, text: bytes, /) -> Any:
        """Return the value of JSON in UTF-8.

        Raises:
            ValueError: *text* is no JSON.
            RecursionError: It is nested too deep.
        """
        return _DECODER.decode(text.decode())


_JSON: Final = JsonCodec()


# Writing.


def encode_json(codec: Codec, value: object) -> bytes:
    """Return *value* as JSON, strictly: what is written is what will be read.

    Raises:
        PayloadError: There is something that JSON has no word for, a number that is not finite,
            a key that is no string, half of a surrogate pair, a cycle, or more than 100
            containers inside each other. Some codecs would write nulls, or other keys.
        TypeError: The codec returns something else than bytes.
    """
    return _encode(codec, value, {"": value})


def encode_body(
    codec: Codec,
    data: Mapping[str, Any],
    metadata: Mapping[str, Any] | None = None,
    conversation_id: str | None = None,
) -> bytes:
    """Return what a store keeps of an event.

    Raises:
        PayloadError: As :func:`encode_json`; the path is one in *data*, or begins with
            ``metadata`` or is ``conversation_id``.
        TypeError: The codec returns something else than bytes.
    """
    if conversation_id is not None and not isinstance(conversation_id, str):
        kind = type(conversation_id).__name__
        raise PayloadError("conversation_id", f"must be a string, not {kind}")
    content = {
        "conversation_id": conversation_id,
        "data": _plain("", data),
        "metadata": {} if metadata is None else _plain("metadata", metadata),
    }
    # The order of the search for what is wrong.
    parts = {
        "": content["data"],
        "metadata": content["metadata"],
        "conversation_id": conversation_id,
    }
    return _encode(codec, content, parts)


def _plain(path: str, value: Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    if isinstance(value, Mapping):
        return dict(value)
    raise PayloadError(path, f"must be a mapping, not {type(value).__name__}")


def _encode(codec: Codec, value: object, parts: Mapping[str, object]) -> bytes:
    """Encode *value*; if that can't be, name what is wrong with one of its *parts*, by path."""
    try:
        text = codec.encode(value)
    except Exception as exc:
        found = _first_wrong(codec, parts) or ("", f"can't be written as JSON: {exc!s:.200}")
        raise PayloadError(*found) from exc
    if not isinstance(text, bytes):
        raise TypeError(f"encode() of a codec returns bytes, not {type(text).__name__}")
    if not all(map(_is_strict, parts.values())):
        raise PayloadError(*(_first_wrong(codec, parts) or ("", _TOO_DEEP)))
    return text


# How deep containers may be nested, so that whoever reads can read what was written.
_MOST_DEEP: Final = 100
_TOO_DEEP: Final = f"is nested more than {_MOST_DEEP} deep"
_LOOKED_INTO: Final = (dict, list, tuple, float)


def _is_strict(value: Any, around: int = 0) -> bool:
    """Tell whether all keys are strings, all numbers finite, and the nesting not too deep.

    For values that could be encoded. It takes about as long as encoding a small one does.
    """
    if isinstance(value, float):
        return math.isfinite(value)
    if not isinstance(value, dict | list | tuple):
        return True
    inside = cast("Iterable[Any]", value)
    if isinstance(value, dict):
        for key in inside:
            if not isinstance(key, str):
                return False
        inside = cast("dict[str, Any]", value).values()
    if around >= _MOST_DEEP:
        return False
    for each in inside:
        if isinstance(each, _LOOKED_INTO) and not _is_strict(each, around + 1):
            return False
    return True


# Only when something is wrong: where, and what.


def _first_wrong(codec: Codec, parts: Mapping[str, object]) -> tuple[str, str] | None:
    found = (_search(codec, value, path, ()) for path, value in parts.items())
    return next(filter(None, found), None)


def _search(codec: Codec, value: Any, path: str, around: tuple[int, ...]) -> tuple[str, str] | None:
    """Return path and reason of the first thing that is wrong, depth first."""
    if not isinstance(value, dict | list | tuple):
        reason = _wrong_with(codec, value)
        return (path, reason) if reason else None
    container = cast("Collection[Any]", value)
    if id(container) in around:
        return path, "contains itself"
    if len(around) >= _MOST_DEEP:
        return path, _TOO_DEEP
    if isinstance(value, dict) and (reason := _wrong_with_keys(container)):
        return path, reason
    for inner, each in _items(path, container):
        if found := _search(codec, each, inner, (*around, id(container))):
            return found
    return None


def _items(path: str, container: Collection[Any]) -> Iterator[tuple[str, Any]]:
    if isinstance(container, dict):
        for key, each in cast("dict[str, Any]", container).items():
            name = key if key.isprintable() else ascii(key)
            yield f"{path}.{name:.80}" if path else f"{name:.80}", each
    else:
        for place, each in enumerate(container):
            yield f"{path}[{place}]", each


def _wrong_with_keys(keys: Iterable[object]) -> str | None:
    for key in keys:
        if not isinstance(key, str):
            return f"keys must be strings, not {type(key).__name__}"
        if not _is_unicode(key):
            return "a key has half of a surrogate pair"
    return None


def _wrong_with(codec: Codec, value: object) -> str | None:
    if isinstance(value, float) and not math.isfinite(value):
        return f"must be finite, not {value!r}"
    if isinstance(value, str) and not _is_unicode(value):
        return "has half of a surrogate pair"
    try:
        codec.encode(value)
    except Exception:
        return f"{type(value).__name__} can't be written as JSON"
    return None


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


# Events.


def encode_event(event: Event) -> bytes:
    """Return an event as JSON, by splicing its body in; that is not decoded.

    The keys are ``id``, ``event_type``, ``timestamp``, ``session_id``, ``conversation_id``,
    ``data``, ``metadata``, in this order.
    """
    head = (
        f'{{"id":"{event.id}","event_type":{_quoted(event.event_type)},'
        f'"timestamp":"{timestamp_text(event._microseconds)}",'
        f'"session_id":{_quoted(event.session_id)},'
    )
    return head.encode() + event.body[1:]


def encode_events(events: Iterable[Event]) -> bytes:
    """Return events as one JSON object, ``{"events":[...]}``."""
    return b'{"events":[' + b",".join(map(encode_event, events)) + b"]}"


# A pure function of short texts that come again and again.
@lru_cache(maxsize=1_024)
def _quoted(text: str) -> str:
    return _ENCODER.encode(text)


def decode_event(text: bytes | str, codec: Codec = _JSON) -> Event:
    """Return the event that :func:`encode_event` wrote.

    Keys that are unknown are ignored; without ``conversation_id`` and ``metadata`` there are none.

    Raises:
        WireError: *text* is no such JSON.
    """
    try:
        content = codec.decode(text.encode() if isinstance(text, str) else bytes(text))
    except Exception as exc:
        raise WireError(f"an event must be JSON in UTF-8: {exc!s:.200}") from exc
    if not isinstance(content, dict):
        raise WireError(f"an event must be a JSON object, not {type(content).__name__}")
    return _event(cast("dict[str, Any]", content), codec)


def _event(content: Mapping[str, Any], codec: Codec) -> Event:
    try:
        position = Position.parse(_string(content, "id"))
        body = encode_body(
            codec, content.get("data", ()), content.get("metadata"), content.get("conversation_id")
        )
    except (PayloadError, PositionError) as exc:
        raise WireError(f"no event: {exc}") from exc
    return Event(
        position,
        _string(content, "event_type"),
        parse_timestamp(_string(content, "timestamp")),
        _string(content, "session_id"),
        body,
        codec.decode,
    )


def _string(content: Mapping[str, Any], key: str) -> str:
    text = content.get(key)
    if not isinstance(text, str) or not text or not _is_unicode(text):
        raise WireError(f"no event: {key!r} must be a string that is not empty")
    return text


# Timestamps.

_1970: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_TIMESTAMP: Final = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?"
    r"(Z|[+-][0-9]{2}:[0-9]{2})"
)


def timestamp_text(microseconds: int) -> str:
    """Return microseconds since 1970 as text: RFC 3339, UTC, always six digits and ``Z``.

    So texts sort as the times do. The year must be from 1 to 9999.

    >>> timestamp_text(1_795_273_200_000_000)
    '2026-11-21T15:00:00.000000Z'
    """
    seconds, rest = divmod(microseconds, 1_000_000)
    return f"{_second_text(seconds)}.{rest:06d}Z"


# A pure function; events come in bursts of one second.
@lru_cache(maxsize=64)
def _second_text(seconds: int) -> str:
    return (_1970 + timedelta(seconds=seconds)).isoformat()[:19]


def parse_timestamp(text: str) -> int:
    """Return a timestamp of RFC 3339 as microseconds since 1970; what is smaller is cut off.

    Raises:
        WireError: It is no timestamp of RFC 3339.
    """
    upper = text.upper()
    try:
        if not _TIMESTAMP.fullmatch(upper):
            raise ValueError("not of that form")
        return (datetime.fromisoformat(upper) - _1970) // _MICROSECOND
    except (ValueError, OverflowError) as exc:
        raise WireError(
            f"{text!r:.80} is no timestamp such as '2026-11-21T15:00:00.000000Z'"
        ) from exc


# What stands in no log.


def end_event(
    session_id: str, position: Position | None, state: str, *, microseconds: int
) -> Event:
    """Return the event that tells a reader that a session is over; its ``data`` has the *state*.

    Args:
        session_id: The session.
        position: Where the reader is; its own.
        state: ``"ended"`` or ``"deleted"``.
        microseconds: Timestamp.
    """
    where = Position(_NO_EPOCH, 0) if position is None else position
    body = encode_body(_JSON, {"state": state})
    return Event(where, END, microseconds, session_id, body, _JSON.decode)


# Of a reader that knows no position yet.
_NO_EPOCH: Final = "none"


def gap_event(
    session_id: str,
    epoch: str,
    *,
    asked: Position | None,
    first: int,
    microseconds: int,
    is_exact: bool = True,
) -> Event:
    """Return the event that stands for those a reader asked for and can't get.

    Its ``data`` has ``from`` and ``to``, the positions of the first and the last one, and
    ``missed``, how many. Where the position asked for is of another epoch, or from the future,
    ``from`` is that position itself and ``missed`` is ``None``: nobody knows. Its own position is
    the one to go on from.

    Args:
        session_id: The session.
        epoch: The epoch of its log.
        asked: The last position the reader has seen; ``None`` for none.
        first: Number of the oldest record kept, the next one the reader gets.
        microseconds: Timestamp: that of the oldest record kept, or now if none is.
        is_exact: The reader misses all of these; else ``missed`` is ``None``.

    Raises:
        ValueError: The reader misses nothing.
    """
    last = Position(epoch, first - 1)
    seen = Position(epoch, 0) if asked is None else asked
    if seen == last:
        raise ValueError(f"no gap: {first} follows {seen}")
    is_known = seen.epoch == epoch and seen.seq < first
    data = {
        "from": str(Position(epoch, seen.seq + 1) if is_known else seen),
        "to": str(last),
        "missed": last.seq - seen.seq if is_known and is_exact else None,
    }
    return Event(last, GAP, microseconds, session_id, encode_body(_JSON, data), _JSON.decode)
