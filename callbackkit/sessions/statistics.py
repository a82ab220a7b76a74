"""Figures of a session, and of all of them, under the names their readers know."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import attrs

from callbackkit.stores.base import SessionRecord, Totals

__all__ = ["ManagerStats", "SessionStats"]


@attrs.frozen
class _Figures(Mapping[str, Any]):
    """Attributes that can be looked up by name too, so that ``dict(stats)`` is what JSON shows."""

    def __getitem__(self, name: str) -> Any:
        if name not in attrs.fields_dict(type(self)):
            raise KeyError(name)
        return getattr(self, name)

    def __iter__(self) -> Iterator[str]:
        return iter(attrs.fields_dict(type(self)))

    def __len__(self) -> int:
        return len(attrs.fields_dict(type(self)))


@attrs.frozen(kw_only=True)
class SessionStats(_Figures):
    """What became of the events of a session.

    Sent is what was appended and is owed to the session's method. Each of those is delivered,
    failed, expired or queued, so the four add up to it.

    Attributes:
        session_id: The session.
        events_sent: Appended, and for the session's method.
        events_delivered: Acknowledged by the destination; of a method that is read, all up to the
            furthest event that a reader got to.
        events_failed: In dead letters.
        events_expired: Dropped before anybody read them.
        queued_events: None of these yet.
        retries: Attempts after the first ones.
        has_websocket: Somebody reads it through a WebSocket, in this process.
        has_sse: Somebody reads it through SSE, in this process.
        delivery_rate: Delivered of sent, 0 to 1; 0 when nothing was sent.
    """

    session_id: str
    events_sent: int
    events_delivered: int
    events_failed: int
    events_expired: int
    queued_events: int
    retries: int
    has_websocket: bool
    has_sse: bool
    delivery_rate: float

    @classmethod
    def of(cls, record: SessionRecord, readers: Counter[str]) -> SessionStats:
        """Return the figures of a session that so many read, by what they read it through."""
        return cls(
            session_id=record.id,
            events_sent=record.sent,
            events_delivered=record.delivered,
            events_failed=record.failed,
            events_expired=record.expired,
            queued_events=record.queued,
            retries=record.retries,
            has_websocket=readers["websocket"] > 0,
            has_sse=readers["sse"] > 0,
            delivery_rate=_rate(record.delivered, record.sent),
        )


@attrs.frozen(kw_only=True)
class ManagerStats(_Figures):
    """Figures of all sessions of a store; those that are gone stay in the sums of events.

    Attributes:
        total_sessions: Sessions that can be read now.
        active_sessions: Of those, not ended.
        total_events_sent: Appended, and for their session's method.
        total_events_delivered: Acknowledged, or read.
        total_events_failed: In dead letters.
        total_events_expired: Dropped before anybody read them.
        total_queued_events: None of these yet.
        total_retries: Attempts after the first ones.
        active_websockets: Readers through a WebSocket, in this process.
        active_sse: Readers through SSE, in this process.
        delivery_rate: Delivered of sent, 0 to 1; 0 when nothing was sent.
    """

    total_sessions: int
    active_sessions: int
    total_events_sent: int
    total_events_delivered: int
    total_events_failed: int
    total_events_expired: int
    total_queued_events: int
    total_retries: int
    active_websockets: int
    active_sse: int
    delivery_rate: float

    @classmethod
    def of(cls, totals: Totals, readers: Counter[str]) -> ManagerStats:
        """Return the figures of a store that so many read, by what they read through."""
        return cls(
            total_sessions=totals.sessions,
            active_sessions=totals.active,
            total_events_sent=totals.sent,
            total_events_delivered=totals.delivered,
            total_events_failed=totals.failed,
            total_events_expired=totals.expired,
            total_queued_events=totals.queued,
            total_retries=totals.retries,
            active_websockets=readers["websocket"],
            active_sse=readers["sse"],
            delivery_rate=_rate(totals.delivered, totals.sent),
        )


def _rate(delivered: int, sent: int) -> float:
    return delivered / sent if sent else 0.0
