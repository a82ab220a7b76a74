"""Which of the records that are owed go together in the next delivery."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from callbackkit.delivery.policy import Batching
from callbackkit.stores.base import Record

__all__ = ["choose", "page_size", "time_left"]

# Records read at once; several deliveries are served from one page.
_PAGE: Final = 100
_MOST_AHEAD: Final = 1000
# What the JSON of an event adds to its body, its type and the id of its session, at most:
# the keys, a position and a timestamp.
_ENVELOPE: Final = 150


def page_size(batching: Batching | None) -> int:
    """Return how many records to read at once."""
    if batching is None:
        return _PAGE
    return max(_PAGE, min(4 * batching.max_events, _MOST_AHEAD), batching.max_events)


def choose(
    records: Sequence[Record], batching: Batching | None, *, bound: int | None, session_id: str
) -> tuple[Sequence[Record], bool]:
    """Return the records of the next delivery, and whether there is no room for another.

    Args:
        records: What is owed, in order; at least one.
        batching: What the client asked for.
        bound: Number of the last record, if that was fixed before: then these it is.
        session_id: Their session.
    """
    if bound is not None and records[0].seq <= bound:
        return [each for each in records if each.seq <= bound], records[-1].seq >= bound
    if batching is None:
        return records[:1], True
    size = 0
    for place, record in enumerate(records[: batching.max_events]):
        size += len(record.body) + len(record.event_type) + len(session_id) + _ENVELOPE
        if place and size > batching.max_bytes:
            return records[:place], True
    is_full = len(records) >= batching.max_events or size >= batching.max_bytes
    return records[: batching.max_events], is_full


def time_left(oldest: Record, batching: Batching | None, now: float) -> float:
    """Return the seconds that a batch may still wait for others.

    Args:
        oldest: Its first record.
        batching: What the client asked for.
        now: Seconds since 1970.
    """
    if batching is None:
        return 0.0
    # No longer than max_delay, whatever the clock was that stamped the record.
    age = max(0.0, now - oldest.at / 1e6)
    return max(0.0, batching.max_delay - age)
