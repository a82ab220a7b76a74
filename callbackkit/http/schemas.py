"""What the routes answer with, as types: the OpenAPI document is made of them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, TypeAlias, TypedDict

import attrs
from msgspec import Meta

from callbackkit.delivery.policy import Batching, Phase
from callbackkit.sessions.history import Bucket
from callbackkit.sessions.statistics import SessionStats

__all__ = [
    "Attempts",
    "Cleared",
    "ConfigChanges",
    "ConfigShown",
    "DeadLetters",
    "EndpointShown",
    "EventPage",
    "EventShown",
    "Health",
    "Problem",
    "RedriveRequest",
    "Redriven",
    "RotateRequest",
    "Rotated",
    "SampleRequest",
    "SampleResult",
    "SessionCreated",
    "SessionPage",
    "SessionShown",
    "SessionStats",
    "StatsShown",
]


When: TypeAlias = Annotated[datetime, Meta(tz=True)]


class ConfigShown(TypedDict):
    """What the client of a session asked for; header values, options and URL queries are masked."""

    webhook_url: str | None
    delivery_method: str
    events: list[str] | None
    include_intermediate_results: bool
    timeout: float | None
    retry_attempts: int | None
    headers: dict[str, str]
    ttl: float | None
    batching: Batching | None
    compression: Literal["gzip"] | None
    rate_limit: float | None
    options: dict[str, str]


class _Created(TypedDict):
    session_id: str
    token: str
    config: ConfigShown
    created_at: When
    status: Literal["active"]


class SessionCreated(_Created, total=False):
    """A new session, with what is told only once: its token, and the secret of its webhooks."""

    webhook_secret: str


class SessionShown(TypedDict):
    """A session as it stands."""

    session_id: str
    state: Literal["active", "ended"]
    status: Literal["active", "ended"]
    owner: str | None
    created_at: When
    config: ConfigShown
    position: str
    first_position: str | None
    total_count: int
    stats: SessionStats


class SessionPage(TypedDict):
    """Sessions in the order of their ids; the cursor is where the next page goes on."""

    sessions: list[SessionShown]
    cursor: str | None
    has_more: bool


class EventShown(TypedDict):
    """An event."""

    id: str
    event_type: str
    timestamp: When
    session_id: str
    conversation_id: str | None
    data: dict[str, Any]
    metadata: dict[str, Any]


class EventPage(TypedDict):
    """Events, the oldest first; where some are no longer kept, a gap stands among them."""

    events: list[EventShown]
    cursor: str | None
    has_more: bool
    total_count: int
    gap: bool


class Cleared(TypedDict):
    """How many events were dropped."""

    cleared_count: int
    session_id: str


class SampleResult(TypedDict):
    """The test event as it is stored; null where the session's filter leaves it out."""

    session_id: str
    event: EventShown | None


class StatsShown(TypedDict):
    """Figures of all sessions, and of the last hour by the minute."""

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
    buckets: list[Bucket]


class DeadLetterShown(TypedDict):
    """Events that could not be delivered."""

    id: str
    method: str
    reason: str
    attempts: int
    at: When
    is_due: bool
    events: list[EventShown]


class DeadLetters(TypedDict):
    """Dead letters, the oldest first; the cursor is where the next page goes on."""

    session_id: str
    dead_letters: list[DeadLetterShown]
    cursor: str | None
    has_more: bool


class Redriven(TypedDict):
    """How many dead letters are delivered again."""

    session_id: str
    redriven: int


class AttemptShown(TypedDict):
    """One try to deliver."""

    delivery_id: str
    number: int
    at: When
    duration: float
    events: int
    error: str


class Attempts(TypedDict):
    """The last attempts, the oldest first."""

    session_id: str
    attempts: list[AttemptShown]


class EndpointShown(TypedDict):
    """How the endpoint of a session does, and what became of the session's last attempts."""

    session_id: str
    name: str
    phase: Phase
    is_healthy: bool
    failures: int
    reason: str
    retry_at: When | None
    attempts: int
    failed_attempts: int
    p50: float | None
    p95: float | None
    last_success_at: When | None
    last_failure_at: When | None


class Rotated(TypedDict):
    """The new secret, which is told only here, and how long the one before counts too."""

    session_id: str
    webhook_secret: str
    previous_until: When | None


class Health(TypedDict):
    """The store can be reached."""

    status: Literal["ok"]


class Problem(TypedDict, total=False):
    """What went wrong (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    field: str
    reason: str


# What the routes take.


@attrs.frozen
class SampleRequest:
    """A test event.

    Attributes:
        event_type: Its type.
        test_data: Its data. What its type asks for and is left out is filled in.
    """

    event_type: str = "progress"
    test_data: dict[str, Any] | None = None


@attrs.frozen
class RedriveRequest:
    """Which dead letters are to be delivered again.

    Attributes:
        ids: Their ids; ``None`` for all.
    """

    ids: list[str] | None = None


@attrs.frozen
class RotateRequest:
    """Which secret a session is to have.

    Attributes:
        webhook_secret: The secret; ``None`` to have one made.
        overlap: Seconds that webhooks are signed with the one before too.
    """

    webhook_secret: str | None = None
    overlap: float = 86_400.0


class ConfigChanges(TypedDict, total=False):
    """What can be changed of a session; null for what it is by default."""

    events: list[str] | None
    webhook_url: str | None
    headers: dict[str, str] | None
