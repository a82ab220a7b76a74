"""How long to wait before connecting again; chance is given."""

from __future__ import annotations

import math
from typing import Final

import attrs

__all__ = ["Backoff"]

# What the longest possible delay is multiplied by with each failure.
_GROWTH: Final = 3.0
# Beyond so many it grows no more, whatever it began with.
_MOST_FAILURES: Final = 100
# The part of a time that a server named which is added by chance: it told many the same.
_SPREAD: Final = 0.5
# Failures in a row up to which it is enough to wait as long as a server asked for.
_MOST_TRUSTED: Final = 3


@attrs.frozen(kw_only=True)
class Backoff:
    """How long to wait before connecting again.

    A delay is drawn between *first* and a bound that grows threefold with each failure in a row:
    after one 0.5 to 1.5 seconds, after two 0.5 to 4.5, from the fourth on 0.5 to 30. So thousands
    that lost the same server do not come back in one moment.

    >>> Backoff().delay(1, chance=1.0), Backoff().delay(9, chance=1.0)
    (1.5, 30.0)
    >>> Backoff().delay(3, chance=0.0, told=5)
    5.0

    Attributes:
        first: Least seconds.
        max_delay: Most seconds.
        max_told: Most seconds that a server can ask for.

    Raises:
        TypeError: Something that is no number.
        ValueError: A number that is not above 0 or not finite, a bound below *first*.
    """

    first: float = 0.5
    max_delay: float = 30.0
    max_told: float = 300.0

    def __attrs_post_init__(self) -> None:
        for name in ("first", "max_delay", "max_told"):
            _check_seconds(name, getattr(self, name))
        for name in ("max_delay", "max_told"):
            if getattr(self, name) < self.first:
                raise ValueError(f"{name} must be at least first={self.first:g}")

    def delay(self, failures: int, *, chance: float, told: float | None = None) -> float:
        """Return seconds to wait.

        Args:
            failures: How many there were in a row, from 1.
            chance: From 0 to 1.
            told: Seconds that the server asked for, if it did: those, and up to half of it more;
                from the fourth failure on, not less than without it.
        """
        if told is None:
            return self._usual(failures, chance)
        seconds = min(max(told, self.first), self.max_told) * (1 + _SPREAD * chance)
        return seconds if failures <= _MOST_TRUSTED else max(seconds, self._usual(failures, chance))

    def _usual(self, failures: int, chance: float) -> float:
        growth = _GROWTH ** min(failures, _MOST_FAILURES)
        most = min(self.max_delay, self.first * growth)
        return self.first + (most - self.first) * chance


def _check_seconds(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number of seconds, not {value!r:.80}")
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be above 0 and finite, not {value!r:.80}")
