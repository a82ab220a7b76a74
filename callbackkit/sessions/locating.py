"""Where a moment, or what somebody calls a place, stands in the log of a session."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final

from callbackkit.errors import PositionError, WireError
from callbackkit.events import Position
from callbackkit.stores.base import SessionRecord, Store
from callbackkit.wire.envelope import parse_timestamp

__all__ = ["locate", "number_before"]

_1970: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


async def locate(store: Store, session_id: str, microseconds: int) -> Position:
    """Return the position of the last record kept that is not later than a moment.

    Where all that is kept is later, that is the position just before. Timestamps rise in a log, so
    few records are looked at, one at a time.

    Args:
        store: Where the session is.
        session_id: The session.
        microseconds: The moment, since 1970, UTC.

    Raises:
        UnknownSessionError: There is no such session.
    """
    page = await store.read(session_id, limit=1)
    epoch = page.epoch
    # What is sought is one of these numbers, both included; the lowest is just before the records.
    low, high = page.first - 1, page.top
    while low < high:
        middle = (low + high + 1) // 2
        page = await store.read(session_id, after=Position(epoch, middle - 1), limit=1)
        if not page.records or page.epoch != epoch:
            return Position(page.epoch, page.first - 1)
        record = page.records[0]
        if record.at <= microseconds:
            low = record.seq
        elif record.seq == middle:
            high = middle - 1
        else:
            # What was before it has been dropped meanwhile.
            low = high = record.seq - 1
    return Position(epoch, low)


async def number_before(store: Store, session: SessionRecord, before: Any) -> int:
    """Return the number of the first record of a session that does not stand before a place.

    Args:
        store: Where the session is.
        session: The session as it stands.
        before: A position, or a moment; a text is a position or a timestamp of RFC 3339.

    Raises:
        PositionError: A text that is neither, or a position of another session, or of no event
            there is.
        ValueError: A ``datetime`` without a time zone.
        TypeError: Anything else.
    """
    place = _read_place(before) if isinstance(before, str) else before
    if isinstance(place, Position):
        if place.epoch != session.epoch or place.seq > session.top:
            raise PositionError(f"{str(place)!r} is no position of this session's events")
        return place.seq
    if not isinstance(place, datetime):
        raise TypeError(f"before is a position or a datetime, not {type(before).__name__}")
    if place.tzinfo is None:
        raise ValueError(f"{place!r} is naive; give it a tzinfo such as datetime.UTC")
    moment = (place - _1970) // _MICROSECOND
    last = await locate(store, session.id, moment - 1)
    return last.seq + 1


def _read_place(text: str) -> Position | datetime:
    try:
        return Position.parse(text)
    except PositionError:
        pass
    try:
        return _1970 + timedelta(microseconds=parse_timestamp(text))
    except (WireError, OverflowError):
        # With its offset taken off a moment may lie outside of the years 1 to 9999.
        raise PositionError(
            f"{text!r:.80} is neither a position nor a timestamp such as '2026-11-21T15:00:00Z'"
        ) from None
