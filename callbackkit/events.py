"""Values that more than one room passes around: typed names of events."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import attrs

__all__ = ["EventKey"]

T = TypeVar("T")


def _check_name(_key: object, _attribute: attrs.Attribute[Any], name: object) -> None:
    if not isinstance(name, str):
        raise TypeError(f"the name of an EventKey is a string, not {type(name).__name__}")
    if not name:
        raise ValueError("an event type must not be empty")
    if "*" in name:
        raise ValueError(f"{name!r:.200} is a pattern; an EventKey names a single event type")


@attrs.frozen(repr=False)
class EventKey(Generic[T]):
    """The name of an event together with the type of its data.

    ``ORDER = EventKey[Order]("order.created")`` is the event ``"order.created"`` to
    everybody; type checkers hold callbacks registered for it to taking an ``Order``.

    Attributes:
        name: The event type, for example ``"order.created"``; no pattern.

    Raises:
        TypeError: *name* is no string.
        ValueError: It is empty or a pattern.
    """

    name: str = attrs.field(validator=_check_name)

    def __repr__(self) -> str:
        return f"EventKey({self.name!r})"

    def __str__(self) -> str:
        return self.name
