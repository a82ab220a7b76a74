"""What a store and ``redis_script.lua`` tell each other, as words and rows."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from typing import Any, Final, ParamSpec, TypeGuard, TypeVar

import attrs

from callbackkit.errors import (
    SessionDeletedError,
    SessionEndedError,
    StoreError,
    UnknownSessionError,
)
from callbackkit.stores.base import Attempt, Claim, DeadLetter, Page, Record, SessionRecord

__all__ = [
    "check_row",
    "is_row",
    "read_attempt",
    "read_claim",
    "read_letter",
    "read_page",
    "read_record",
    "read_session",
    "write_attempt",
    "write_flag",
    "write_number",
]

P = ParamSpec("P")
R = TypeVar("R")

# What goes there. Nothing is written as "", and a text that may be empty has "=" before it.


def write_flag(value: bool) -> str:
    """Return a truth value as a word."""
    return "1" if value else "0"


def write_number(value: float | None) -> str:
    """Return a number as a word."""
    return "" if value is None else repr(value)


def write_attempt(attempt: Attempt | None) -> tuple[str, str]:
    """Return the number of an attempt, and all of it."""
    if attempt is None:
        return "0", ""
    return str(attempt.number), json.dumps(attrs.asdict(attempt))


# What comes back.

_REFUSED: Final[dict[object, type[UnknownSessionError | SessionEndedError]]] = {
    b"unknown": UnknownSessionError,
    b"deleted": SessionDeletedError,
    b"ended": SessionEndedError,
}


def is_row(value: object) -> TypeGuard[list[Any]]:
    """Tell whether an answer has the shape that all have."""
    return isinstance(value, list)


def check_row(row: list[Any], session_id: str) -> list[Any]:
    """Return an answer, unless it is a refusal.

    Raises:
        UnknownSessionError: There is no such session, or none any more.
        SessionEndedError: It has ended.
        ValueError: There is such a session already.
    """
    word = row[0] if row else None
    error = _REFUSED.get(word)
    if error is not None:
        raise error(session_id)
    if word == b"taken":
        raise ValueError("a session with this id exists already")
    return row


def _shaped(read: Callable[P, R]) -> Callable[P, R]:
    """Have what is no row of ours told as the fault of what is stored."""

    @functools.wraps(read)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return read(*args, **kwargs)
        except (ValueError, TypeError, AttributeError) as exc:
            raise StoreError("Redis holds something that this store did not write") from exc

    return checked


def _text(data: bytes) -> str:
    # Halves of surrogate pairs went there.
    return data.decode("utf-8", "surrogatepass")


@_shaped
def read_session(row: Sequence[bytes]) -> SessionRecord:
    """Return the session that a row is."""
    (
        session_id, th, ow, cf, me, pu, un, st, ca, ep, fi, to, cu, n, se, fa, ex, re,
    ) = row  # fmt: skip
    sent, settled, failed, expired = int(n), int(se), int(fa), int(ex)
    state: Any = _text(st)
    return SessionRecord(
        id=_text(session_id),
        token_hash=bytes.fromhex(_text(th)),
        owner=_text(ow[1:]) if ow else None,
        config=cf,
        method=_text(me),
        pushes=pu == b"1",
        unowed=tuple(json.loads(un)),
        state=state,
        created_at=float(ca),
        epoch=_text(ep),
        first=int(fi),
        top=int(to),
        cursor=int(cu),
        sent=sent,
        delivered=settled - failed - expired,
        failed=failed,
        expired=expired,
        queued=sent - settled,
        retries=int(re),
    )


def read_record(row: Sequence[Any]) -> Record:
    """Return the record that a row is."""
    seq, at, event_type, body, owed, ordinal = row
    return Record(int(seq), int(at), _text(event_type), body, owed == b"1", int(ordinal))


@_shaped
def read_page(row: Sequence[Any]) -> Page:
    """Return the page that an answer is."""
    _, epoch, first, top, state, records = row
    kept: Any = _text(state)
    return Page([read_record(each) for each in records], _text(epoch), int(first), int(top), kept)


@_shaped
def read_attempt(data: bytes) -> Attempt:
    """Return the attempt that :func:`write_attempt` wrote."""
    return Attempt(**json.loads(data))


@_shaped
def read_letter(session_id: str, row: Sequence[Any]) -> DeadLetter:
    """Return the dead letter that a row is."""
    letter_id, method, epoch, reason, attempts, at, is_due, records = row
    return DeadLetter(
        id=_text(letter_id),
        session_id=session_id,
        method=_text(method),
        epoch=_text(epoch),
        records=tuple(read_record(each) for each in records),
        reason=_text(reason),
        attempts=int(attempts),
        at=float(at),
        is_due=is_due == b"1",
    )


@_shaped
def read_claim(row: Sequence[Any]) -> Claim:
    """Return the claim that a row is."""
    session_id, method, config, epoch, cursor, attempts, bound, fence, *letter = row
    claim = Claim(
        session_id=_text(session_id),
        method=_text(method),
        config=config,
        epoch=_text(epoch),
        cursor=int(cursor),
        attempts=int(attempts),
        bound=int(bound) if bound else None,
        fence=int(fence),
    )
    if not letter:
        return claim
    letter_id, reason, tries, at, is_due, letter_method, records = letter
    found = read_letter(
        claim.session_id, (letter_id, letter_method, epoch, reason, tries, at, is_due, records)
    )
    return attrs.evolve(claim, letter=found)
