"""What goes wrong, as a problem document (RFC 9457)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from http.client import responses as phrases
from typing import Final

import attrs
from starlette.exceptions import HTTPException
from starlette.responses import Response

from callbackkit.errors import (
    CallbackKitError,
    ConfigError,
    IdempotencyError,
    LimitError,
    PayloadError,
    PositionError,
    SessionDeletedError,
    SessionEndedError,
    StoreError,
    UnknownSessionError,
    WireError,
)
from callbackkit.http.queries import ParameterPositionError
from callbackkit.wire.jsontext import json_text

__all__ = ["PROBLEM_JSON", "WINDOW", "Problem", "UnsuitedSessionError", "problem_of"]

PROBLEM_JSON: Final = "application/problem+json"
"""The media type of every answer that tells of an error."""

WINDOW: Final = 10.0
"""Seconds that ``Limits.max_requests`` is counted in."""

# Nothing more is known than the status (RFC 9457, section 4.2.1).
_BLANK: Final = "about:blank"
# Seconds after which trying again makes sense: somebody else has to go, or the store to come back.
_LATER: Final = 5
_SOON: Final = 1


class UnsuitedSessionError(CallbackKitError):
    """What is asked for can't be had of a session as it was created."""


@attrs.frozen(kw_only=True)
class Problem:
    """One problem.

    Attributes:
        status: Of the answer.
        type: What kind it is, a URI; nothing stands there to be fetched.
        detail: What happened, for people.
        field: What is wrong, such as ``"batching.max_events"`` or the name of a parameter.
        reason: What is wrong with it.
        headers: More headers of the answer.
    """

    status: int
    type: str = _BLANK
    detail: str = ""
    field: str | None = None
    reason: str | None = None
    headers: Mapping[str, str] = attrs.field(factory=dict[str, str])

    def document(self) -> dict[str, object]:
        """Return it as JSON."""
        known = {"detail": self.detail or None, "field": self.field, "reason": self.reason}
        return {
            "type": self.type,
            "title": phrases.get(self.status, "Error"),
            "status": self.status,
            **{name: value for name, value in known.items() if value is not None},
        }

    def response(self) -> Response:
        """Return the answer that tells of it."""
        text = json_text(self.document())
        return Response(text, self.status, dict(self.headers), PROBLEM_JSON)


def problem_of(error: Exception) -> Problem | None:
    """Return what a client is told of an error; ``None`` of one that is not its business."""
    if isinstance(error, HTTPException):
        headers = dict(error.headers or {})
        return Problem(status=error.status_code, detail=str(error.detail), headers=headers)
    if isinstance(error, LimitError):
        return _of_limit(error)
    if isinstance(error, ConfigError | ParameterPositionError):
        kind = "config" if isinstance(error, ConfigError) else "position"
        return _unfit(kind, error, error.field, error.reason)
    if isinstance(error, PayloadError):
        return _unfit("payload", error, error.path, error.reason)
    for plain, (status, name) in _PLAIN.items():
        if isinstance(error, plain):
            headers = {"Retry-After": str(_LATER)} if status == 503 else {}
            detail = "the store can't be reached" if status == 503 else str(error)
            return Problem(
                status=status, type=f"callbackkit:{name}", detail=detail, headers=headers
            )
    return None


# The first that fits. Of a store that failed nobody outside is told more than that.
_PLAIN: Final[Mapping[type[CallbackKitError], tuple[int, str]]] = {
    SessionDeletedError: (410, "session-deleted"),
    UnknownSessionError: (404, "unknown-session"),
    SessionEndedError: (409, "session-ended"),
    IdempotencyError: (409, "idempotency-key"),
    UnsuitedSessionError: (409, "unsuited-session"),
    PositionError: (422, "position"),
    WireError: (400, "malformed"),
    StoreError: (503, "store"),
}


def _unfit(kind: str, error: Exception, field: str, reason: str) -> Problem:
    return Problem(
        status=422,
        type=f"callbackkit:{kind}",
        detail=str(error),
        field=field or None,
        reason=reason,
    )


def _of_limit(error: LimitError) -> Problem:
    """Return 413 for what is too large whenever it comes, 429 for what may come later."""
    is_size = error.limit in {"max_event_bytes", "max_body_bytes"}
    wait = _SOON if is_size else _LATER
    if error.limit == "max_requests":
        # So often another request has become possible.
        wait = math.ceil(WINDOW / error.value)
    return Problem(
        status=413 if is_size else 429,
        type="callbackkit:limit",
        detail=str(error),
        field=error.limit,
        reason=error.hint or None,
        headers={} if is_size else {"Retry-After": str(wait)},
    )
