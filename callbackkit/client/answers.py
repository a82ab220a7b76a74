"""What an answer of a server means to one who follows: go on, come back, try another way, stop."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

from callbackkit.errors import (
    AccessDeniedError,
    CallbackKitError,
    SessionDeletedError,
    UnknownSessionError,
)

__all__ = [
    "BlockedError",
    "LostError",
    "check_status",
    "refusal",
    "retry_after",
]

# Time out of the server's control: an overload, a restart, somebody between. RFC 9110, section 15;
# RFC 6585; RFC 8470.
_LATER: Final = frozenset({408, 425, 429})
# Of the 5xx those that will be the same next time.
_NEVER: Final = frozenset({501, 505})
_DIGITS: Final = re.compile(r"[0-9]{1,9}")


class LostError(Exception):
    """A connection is over, or was never made: come back. It stays in this room.

    Attributes:
        told: Seconds after which the server wants to see its clients again, if it said so.
        was_reached: Somebody did answer.
    """

    def __init__(self, reason: str, *, told: float | None = None, was_reached: bool = True) -> None:
        super().__init__(reason)
        self.told: float | None = told
        self.was_reached: bool = was_reached


class BlockedError(Exception):
    """This way of following does not work here: try another. It stays in this room."""


def refusal(status: int, session_id: str) -> CallbackKitError | None:
    """Return the error that a status means for good, if it does."""
    if status in {401, 403}:
        return AccessDeniedError(session_id, status)
    if status == 404:
        return UnknownSessionError(session_id)
    return SessionDeletedError(session_id) if status == 410 else None


def check_status(status: int, headers: Mapping[str, str], session_id: str) -> None:
    """Raise unless a request got what it asked for.

    Raises:
        AccessDeniedError: 401, 403.
        UnknownSessionError: 404; 410 is a :exc:`~callbackkit.SessionDeletedError`.
        LostError: Another time it may work.
        BlockedError: It never will.
    """
    if status == 200:
        return
    for_good = refusal(status, session_id)
    if for_good is not None:
        raise for_good
    if status in _LATER or (status >= 500 and status not in _NEVER):
        raise LostError(f"the server answered {status}", told=retry_after(headers))
    raise BlockedError(f"the server answered {status}")


def retry_after(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """Return the seconds that ``Retry-After`` asks to wait, ``None`` if it says nothing of use.

    Args:
        headers: Of the answer.
        now: Taken for the time of the answer if that has no ``Date``.

    Source:
        RFC 9110, section 10.2.3: whole seconds, or a date. By the clock of the server, that is,
        which section 6.6.1 has it tell.
    """
    text = headers.get("retry-after", "").strip()
    if _DIGITS.fullmatch(text):
        return float(text)
    when = _date(text)
    if when is None:
        return None
    sent = _date(headers.get("date", "")) or now or datetime.now(UTC)
    return max((when - sent).total_seconds(), 0.0)


def _date(text: str) -> datetime | None:
    try:
        when = parsedate_to_datetime(text.strip())
    except (ValueError, OverflowError):
        return None
    return when if when.tzinfo is not None else when.replace(tzinfo=UTC)
