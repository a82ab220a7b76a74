"""The parameters of a request's query, each read with an error that names it."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import Final

from callbackkit.errors import ConfigError, PositionError, WireError
from callbackkit.events import GAP, Position, check_event_type
from callbackkit.transports.polling import MOST_EVENTS, MOST_WAIT
from callbackkit.wire.envelope import parse_timestamp

__all__ = [
    "ParameterPositionError",
    "last_event_id",
    "naming",
    "resume_point",
    "types_in",
    "wanted_limit",
    "wanted_place",
    "wanted_since",
    "wanted_wait",
]

_DEFAULT_LIMIT: Final = 100
_MOST_TYPES: Final = 256
_NUMBER: Final = re.compile(r"[+-]?[0-9]{1,20}(?:\.[0-9]{0,400})?(?:[eE][+-]?[0-9]{1,4})?")
# What a script writes into a URL for a variable that has no value yet.
_UNSET: Final = frozenset({"", "null", "undefined"})
_NOW: Final = frozenset({"now", "latest"})
_EARLIEST: Final = frozenset({"", "earliest"})
# The names under which EventSource polyfills tell where they stopped.
_LAST_EVENT_ID: Final = ("last_event_id", "lastEventId", "last-event-id")


class ParameterPositionError(PositionError):
    """A parameter is no position.

    Attributes:
        field: Name of the parameter.
        reason: What is wrong with it.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field: str = field
        self.reason: str = reason


@contextmanager
def naming(field: str) -> Generator[None]:
    """Have an error about a position name the parameter that it stood in.

    Raises:
        ParameterPositionError: In place of any other :exc:`~callbackkit.PositionError`.
    """
    try:
        yield
    except PositionError as exc:
        raise ParameterPositionError(field, str(exc)) from None


def wanted_limit(query: Mapping[str, str]) -> int:
    """Return how many a page may have.

    Raises:
        ConfigError: It is no number from 1 to 1000.
    """
    text = query.get("limit")
    if text is None:
        return _DEFAULT_LIMIT
    if text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= MOST_EVENTS:
        return int(text)
    raise ConfigError("limit", f"must be a whole number from 1 to {MOST_EVENTS}")


def wanted_wait(query: Mapping[str, str]) -> float:
    """Return how many seconds a poll may wait.

    Raises:
        ConfigError: It is no number from 0 to 30.
    """
    text = query.get("wait")
    if text is None:
        return 0.0
    if _NUMBER.fullmatch(text) and 0 <= float(text) <= MOST_WAIT:
        return float(text)
    raise ConfigError("wait", f"must be seconds from 0 to {MOST_WAIT:g}")


def types_in(values: Iterable[str]) -> frozenset[str] | None:
    """Return the event types that are asked for, ``None`` for all.

    Args:
        values: What ``types`` says, however often it comes; with commas between names.

    Raises:
        ConfigError: Something is no event type, or they are too many.
    """
    names = {name for value in values for name in value.split(",") if name}
    if len(names) > _MOST_TYPES:
        raise ConfigError("types", f"must name at most {_MOST_TYPES}")
    # Gaps are told in any case; to name them is no mistake.
    for name in names - {GAP}:
        try:
            check_event_type(name)
        except ValueError as exc:
            raise ConfigError("types", str(exc)) from None
    return frozenset(names) or None


def resume_point(text: str | None) -> str | None:
    """Return where to go on: ``None`` for the oldest, ``"now"``, else a position still unread."""
    if text is None or text in _EARLIEST:
        return None
    return "now" if text in _NOW else text


def last_event_id(header: str | None, query: Mapping[str, str]) -> str | None:
    """Return where a client of SSE stopped: the header counts for more than the query.

    A browser sends the header when it comes back by itself, to the URL of its first request.

    Raises:
        ParameterPositionError: Either is no position.
    """
    told = [header, *(query.get(name) for name in _LAST_EVENT_ID)]
    points = [resume_point(text) for text in told if text]
    with naming(_LAST_EVENT_ID[0]):
        for point in points:
            if point not in {None, "now"}:
                Position.parse(point or "")
    return points[0] if points else None


def wanted_since(query: Mapping[str, str]) -> int | None:
    """Return the time whose later events are asked for, in microseconds since 1970.

    Raises:
        ConfigError: It is no timestamp.
    """
    text = query.get("since")
    if text is None or text in _UNSET:
        return None
    try:
        return parse_timestamp(_mended(text))
    except WireError as exc:
        raise ConfigError("since", str(exc)) from None


def wanted_place(query: Mapping[str, str]) -> str | None:
    """Return the position or time before which something is meant; it is read by the session."""
    text = query.get("before")
    return None if text is None else _mended(text)


def _mended(text: str) -> str:
    """Return a timestamp as it was before somebody forgot to encode it.

    In a query "+" means a space. One between date and time is how many print a time.
    """
    return text[:10] + text[10:11].replace(" ", "T") + text[11:].replace(" ", "+")
