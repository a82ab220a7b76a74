"""How many claims are served at a time, and who stands aside because his destination is slow."""

from __future__ import annotations

import math
import sys
from collections import Counter
from typing import Final

__all__ = ["PATIENCE", "Place", "Places"]

# Seconds that one delivery may hold a place that others could use.
PATIENCE: Final = 1.0
# Claims that may stand aside, for each that may be served, where there are descriptors enough.
_ASIDE: Final = 16
# Seconds until who finds no room aside asks again, at least and at most, and between two of these.
_NEAR, _FAR, _APART = 0.5, 30.0, 0.01


class Place:
    """The place of one claim.

    Attributes:
        method: Its transport.
    """

    __slots__ = ("method",)

    def __init__(self, method: str) -> None:
        self.method: str = method


class Places:
    """The places of all claims.

    Claims are served at so many places. A delivery that is not done after :data:`PATIENCE`
    stands aside: its place is free for another, which so waits for no destination that hangs. Who
    stands aside is bounded too, by a much larger number; one transport gets a part of either.

    Nothing happens here by itself: :meth:`relieve` is asked when a place is short, so that
    deliveries cost no timer.

    Args:
        concurrency: Claims served at the same time.
        transports: How many transports there are. With several, one gets up to three quarters.

    Attributes:
        concurrency: As given.
    """

    def __init__(self, concurrency: int, transports: int) -> None:
        self.concurrency: int = concurrency
        self._share = _share(concurrency, transports)
        # Each may hold a connection, and others want descriptors too.
        aside = min(_ASIDE * concurrency, _descriptors() // 3)
        self._most_aside = _share(aside, transports)
        self._busy: Counter[str] = Counter()
        self._aside: Counter[str] = Counter()
        # Since when those that don't stand aside are at their delivery, the oldest first.
        self._since: dict[Place, float] = {}
        self._next_turn = -math.inf

    @property
    def room(self) -> int:
        """How many claims more may be served; below 0 if some came back from aside."""
        return self.concurrency - len(self._since)

    def room_for(self, method: str) -> int:
        """Return how many claims more of one transport may be served."""
        return min(self.room, self._share - self._busy[method])

    def take(self, method: str, now: float) -> Place:
        """Return a place for a claim."""
        place = Place(method)
        self.come_back(place, now)
        return place

    def leave(self, place: Place) -> None:
        """Give a place up."""
        if self._since.pop(place, None) is None:
            self._aside[place.method] -= 1
        else:
            self._busy[place.method] -= 1

    def come_back(self, place: Place, now: float) -> None:
        """Take a place that was given up again."""
        self._busy[place.method] += 1
        self._since[place] = now

    def begin(self, place: Place, now: float) -> None:
        """Turn to another delivery; who stood aside counts again."""
        if self._since.pop(place, None) is None:
            self._aside[place.method] -= 1
            self._busy[place.method] += 1
        self._since[place] = now

    def stands_aside(self, place: Place) -> bool:
        """Tell whether it does not count."""
        return place not in self._since

    def step_aside(self, place: Place) -> bool:
        """Make room for others; ``False`` if too many stand aside already."""
        if place not in self._since:
            return True
        if self._aside[place.method] >= self._most_aside:
            return False
        self.leave(place)
        self._aside[place.method] += 1
        return True

    def relieve(self, now: float) -> float:
        """Have those step aside that take long; return the seconds until the next one may."""
        for place, since in tuple(self._since.items()):
            wait = since + PATIENCE - now
            if self._aside[place.method] >= self._most_aside:
                continue
            if wait > 0:
                return wait
            self.step_aside(place)
        return math.inf

    def turn_in(self, now: float) -> float:
        """Return the seconds after which to ask again for room aside, each caller later."""
        turn = min(max(self._next_turn, now + _NEAR), now + _FAR)
        self._next_turn = turn + _APART
        return turn - now


def _descriptors() -> int:
    """Return how many files and connections the process may have open."""
    if sys.platform == "win32":
        return sys.maxsize
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def _share(places: int, transports: int) -> int:
    return places if transports < 2 else max(1, places * 3 // 4)
