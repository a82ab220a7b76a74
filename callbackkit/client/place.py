"""Where a follower stands: what is new to it, and where it goes on."""

from __future__ import annotations

from collections.abc import Iterable

from callbackkit.events import Event, Position

__all__ = ["Place"]


class Place:
    """Where a follower stands.

    Args:
        after: Position seen last; ``None`` for the oldest event kept, ``"now"`` for the newest.

    Attributes:
        position: Where to go on; ``None`` as long as nobody said where that is.
        begun: Where it began; ``None`` likewise.
        is_now: It begins with what comes after now, wherever that is.

    Raises:
        TypeError: *after* is something else.
        PositionError: A text that is no position.
    """

    position: Position | None
    begun: Position | None
    is_now: bool

    def __init__(self, after: Position | str | None) -> None:
        if not isinstance(after, Position | str | None):
            raise TypeError(f"after must be a position, 'now' or None, not {type(after).__name__}")
        self.is_now = after == "now"
        if isinstance(after, str):
            self.position = None if self.is_now else Position.parse(after)
        else:
            self.position = after
        self.begun = self.position

    def __repr__(self) -> str:
        return f"<Place {self}>"

    def __str__(self) -> str:
        """Return it as a request names it, ``""`` for the oldest event."""
        if self.position is not None:
            return str(self.position)
        return "now" if self.is_now else ""

    def begin(self, position: Position) -> None:
        """Take note of where the server begins, unless that is known already."""
        if self.position is None:
            self.position = self.begun = position

    def has_reached(self, newest: Position) -> bool:
        """Tell whether there is nothing behind it in a log that ends with *newest*."""
        if self.position is None:
            return self.is_now or newest.seq == 0
        return self.position == newest

    def fresh(self, events: Iterable[Event]) -> list[Event]:
        """Return the events that were not seen yet, and stand behind them."""
        found: list[Event] = []
        for event in events:
            if self._is_new(event):
                found.append(event)
                self.position = event.position
        return found

    def _is_new(self, event: Event) -> bool:
        seen, position = self.position, event.position
        if seen is None or seen.epoch != position.epoch:
            # Of another epoch only what the server goes on with can come: the log was lost.
            return True
        if event.is_gap:
            # It may lead back, where the position was one of the future.
            return position != seen
        return position.seq > seen.seq
