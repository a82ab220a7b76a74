"""What became of the events of a store, minute by minute."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final

import attrs

from callbackkit.sessions.statistics import ManagerStats
from callbackkit.stores.base import steady_time

__all__ = ["Bucket", "History"]

_MINUTE: Final = 60.0
_MOST: Final = 60


@attrs.frozen(kw_only=True)
class Bucket:
    """What happened in a while, about a minute; the next bucket begins where it ends.

    Attributes:
        start: When it begins, UTC.
        seconds: How long it is; less than a minute for the first and the newest one, more where
            nobody looked for longer.
        events_sent: Appended, and for their session's method.
        events_delivered: Acknowledged, or read.
        events_failed: Given up on, without those that are delivered again meanwhile.
        retries: Attempts after the first ones.
    """

    start: datetime
    seconds: float = 0.0
    events_sent: int = 0
    events_delivered: int = 0
    events_failed: int = 0
    retries: int = 0


class History:
    """The buckets of the last hour, made of the figures of a store as they are looked at.

    It begins with the first look: what was before that is in no bucket.

    Args:
        clock: Seconds since 1970 that pass evenly.

    Attributes:
        last: The figures of the last look; ``None`` before the first.
        looks: How many there were.
    """

    def __init__(self, *, clock: Callable[[], float] = steady_time) -> None:
        self._clock = clock
        self._buckets: deque[Bucket] = deque(maxlen=_MOST)
        self._looked_at = 0.0
        self.last: ManagerStats | None = None
        self.looks: int = 0

    @property
    def buckets(self) -> Sequence[Bucket]:
        """The buckets of the last 60 minutes, the oldest first; the newest one still grows."""
        begin = self._clock() - _MOST * _MINUTE
        return [each for each in self._buckets if each.start.timestamp() + each.seconds > begin]

    def note(self, stats: ManagerStats, looks: int) -> None:
        """Note the figures of a look.

        Args:
            stats: The figures.
            looks: What *looks* was when it began. If there was another look meanwhile, nobody
                knows which one is the later, and this one does not count.
        """
        if looks != self.looks:
            return
        self.looks += 1
        now = self._clock()
        before, self.last = self.last, stats
        since, self._looked_at = self._looked_at, now
        if before is None:
            return
        if not self._buckets or now // _MINUTE != since // _MINUTE:
            self._buckets.append(Bucket(start=datetime.fromtimestamp(since, UTC)))
        newest = self._buckets[-1]
        self._buckets[-1] = Bucket(
            start=newest.start,
            seconds=newest.seconds + now - since,
            events_sent=newest.events_sent + _more(before, stats, "total_events_sent"),
            events_delivered=newest.events_delivered
            + _more(before, stats, "total_events_delivered"),
            events_failed=newest.events_failed + _more(before, stats, "total_events_failed"),
            retries=newest.retries + _more(before, stats, "total_retries"),
        )


def _more(before: ManagerStats, after: ManagerStats, name: str) -> int:
    # Fewer are failed once some of them were delivered after all.
    more: int = after[name] - before[name]
    return max(more, 0)
