"""How much a manager lets its sessions take."""

from __future__ import annotations

from typing import Any

import attrs

__all__ = ["Limits"]


def _at_least_1(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{attribute.name} must be an int, not {value!r}")
    if value < 1:
        raise ValueError(f"{attribute.name} must be at least 1, not {value!r}")


@attrs.frozen(kw_only=True)
class Limits:
    """Bounds that are refused to be passed, with a :exc:`~callbackkit.LimitError` that names them.

    Attributes:
        max_sessions: Sessions of a store that can be read at a time.
        max_event_bytes: Bytes of an event's data and metadata as JSON.
        max_readers: Subscriptions to one session at a time, in this process.
        max_pending: Events of one session that wait, for a transport or to be stored. Those for a
            transport become dead letters, the oldest first, instead of being refused.
        max_requests: HTTP requests for one session in 10 seconds, in this process; where there is
            no session, those from one address. The HTTP API counts them, the manager does not.

    Raises:
        ValueError: A limit below 1.
        TypeError: One that is no int.
    """

    max_sessions: int = attrs.field(default=200_000, validator=_at_least_1)
    max_event_bytes: int = attrs.field(default=262_144, validator=_at_least_1)
    max_readers: int = attrs.field(default=1_000, validator=_at_least_1)
    max_pending: int = attrs.field(default=10_000, validator=_at_least_1)
    max_requests: int = attrs.field(default=1_000, validator=_at_least_1)
