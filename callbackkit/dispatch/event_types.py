"""What names an event, and which events a pattern or class stands for."""

from __future__ import annotations

import re
from typing import Any

from callbackkit.dispatch.callables import callable_name
from callbackkit.events import EventKey

__all__ = ["EventName", "event_name", "is_pattern", "matches", "pattern_key", "trigger_key"]

# What event types are told apart by inside: a plain string, or a class.
EventName = str | type[Any]


def trigger_key(event_type: object) -> EventName:
    """Return the name or class that an event to trigger goes by.

    Raises:
        TypeError: It is neither a string, a ``str`` enum, an ``EventKey`` nor a class.
        ValueError: It is empty, or a pattern, which only callbacks can be registered for.
    """
    key = _key(event_type)
    if isinstance(key, str) and is_pattern(key):
        raise ValueError(f"{key!r:.200} is a pattern; only a single event type can be triggered")
    return key


def pattern_key(event_type: object) -> EventName:
    """Return the name, pattern or class that callbacks are registered for.

    Raises:
        TypeError: As :func:`trigger_key`.
        ValueError: It is empty, or a pattern with ``*`` elsewhere than as a whole segment or
            ``**`` elsewhere than at its end.
    """
    key = _key(event_type)
    if isinstance(key, str) and is_pattern(key):
        _check_pattern(key)
    return key


def _key(event_type: object) -> EventName:
    if type(event_type) is str:
        name = event_type
    elif isinstance(event_type, EventKey):
        return _key(event_type.name)
    elif isinstance(event_type, str):
        _check_equality(type(event_type))
        # The text itself: str() of an enum member is its name, and any subclass may override it.
        name = str.__str__(event_type)
    elif isinstance(event_type, type):
        if type(event_type).__hash__ is None:
            raise TypeError(f"{type(event_type).__name__} makes its classes unhashable")
        return event_type
    else:
        raise TypeError(
            "an event type is a string, a str enum, an EventKey or a class, "
            f"not {type(event_type).__name__}"
        )
    if not name:
        raise ValueError("an event type must not be empty")
    return name


def _check_equality(kind: type[str]) -> None:
    """Refuse strings that equal others: plans are looked up by what equals the event type."""
    equals: Any = kind.__eq__
    digest: Any = kind.__hash__
    if equals is not str.__eq__ or digest is not str.__hash__:
        raise TypeError(
            f"{kind.__name__} has an equality of its own, so it is no event type; pass its str()"
        )


# Patterns: "*" stands for one segment between dots, "**" at the end for any number of them,
# none included ("order.**" is also "order", as "#" is in MQTT and AMQP topics).


def is_pattern(name: str) -> bool:
    """Tell whether a string stands for many event types."""
    return "*" in name


def _check_pattern(pattern: str) -> None:
    segments = pattern.split(".")
    for place, segment in enumerate(segments):
        if not segment:
            raise ValueError(f"pattern {pattern!r:.200} has an empty segment")
        if segment == "**" and place < len(segments) - 1:
            raise ValueError(f"pattern {pattern!r:.200} has '**' before its end; use '*' there")
        if "*" in segment and segment not in ("*", "**"):
            raise ValueError(
                f"pattern {pattern!r:.200} has '*' inside a segment; it stands for a whole one"
            )


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Return the regular expression for a valid pattern; matching takes linear time."""
    head, dot, rest = pattern.rpartition(".")
    expression = r"\.".join(
        r"[^.]*" if segment == "*" else re.escape(segment)
        for segment in (head if rest == "**" else pattern).split(".")
    )
    if rest == "**":
        expression = expression + r"(?:\..*)?" if dot else ".*"
    return re.compile(expression, re.DOTALL)


def matches(pattern: EventName, event: EventName) -> bool:
    """Tell whether callbacks for *pattern* are called for *event*."""
    if isinstance(event, str):
        if not isinstance(pattern, str):
            return False
        if is_pattern(pattern):
            return compile_pattern(pattern).fullmatch(event) is not None
        return pattern == event
    return any(base is pattern for base in event.__mro__)


def event_name(event: EventName) -> str:
    """Name an event type for a log line. Never raises."""
    if isinstance(event, str):
        return repr(event) if len(event) <= 200 else f"{event[:200]!r}..."
    return callable_name(event)
