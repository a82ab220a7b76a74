"""A clock that stands still until it is told to go on."""

from __future__ import annotations

import math
import threading

__all__ = ["ManualClock"]


class ManualClock:
    """Seconds that pass only by :meth:`advance`, for whatever takes a ``clock=``.

    Calling it tells the time, as :func:`time.monotonic` does; any thread may.

    >>> clock = ManualClock()
    >>> clock.advance(90)
    >>> clock()
    90.0

    Args:
        start: Seconds it shows at first.

    Raises:
        ValueError: *start* is not finite.
    """

    def __init__(self, start: float = 0.0) -> None:
        if not math.isfinite(start):
            raise ValueError(f"start must be finite, not {start!r}")
        self._lock = threading.Lock()
        self._now = float(start)

    def __repr__(self) -> str:
        return f"<ManualClock at {self._now} s>"

    def __call__(self) -> float:
        """Return the time in seconds."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Let time pass.

        Raises:
            ValueError: *seconds* is negative or not finite: this clock never goes back.
        """
        if not 0 <= seconds < math.inf:
            raise ValueError(f"a clock advances by 0 or more seconds, not {seconds!r}")
        with self._lock:
            self._now += seconds
