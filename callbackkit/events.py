"""Values that more than one room passes around: events, their names, positions and payloads."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Final, Generic, Required, TypedDict, TypeVar, cast

import attrs

from callbackkit.errors import PayloadError, PositionError

__all__ = [
    "CLIENT_MESSAGE",
    "END",
    "GAP",
    "Completion",
    "ErrorReport",
    "Event",
    "EventKey",
    "EventType",
    "ModelSelection",
    "Position",
    "Progress",
    "StreamingChunk",
    "Thinking",
    "ToolResult",
    "ToolUse",
    "WorkflowComplete",
    "WorkflowStart",
    "WorkflowStep",
    "check_event_type",
    "check_payload",
]

T = TypeVar("T")


def _check_name(_key: object, _attribute: attrs.Attribute[Any], name: object) -> None:
    if not isinstance(name, str):
        raise TypeError(f"the name of an EventKey is a string, not {type(name).__name__}")
    if not name:
        raise ValueError("an event type must not be empty")
    if "*" in name:
        raise ValueError(f"{name!r:.200} is a pattern; an EventKey names a single event type")


@attrs.frozen(repr=False)
class EventKey(Generic[T]):
    """The name of an event together with the type of its data.

    ``ORDER = EventKey[Order]("order.created")`` is the event ``"order.created"`` to
    everybody; type checkers hold callbacks registered for it to taking an ``Order``.

    Attributes:
        name: The event type, for example ``"order.created"``; no pattern.

    Raises:
        TypeError: *name* is no string.
        ValueError: It is empty or a pattern.
    """

    name: str = attrs.field(validator=_check_name)

    def __repr__(self) -> str:
        return f"EventKey({self.name!r})"

    def __str__(self) -> str:
        return self.name


# Events of sessions.


class EventType(StrEnum):
    """The event types this library knows; any other name may be used as well.

    The data of these is checked, see :func:`check_payload`.
    """

    THINKING = "thinking"
    TOOL_USE = "tool_use"
    TOOL_RESULT = "tool_result"
    PROGRESS = "progress"
    COMPLETION = "completion"
    WORKFLOW_START = "workflow_start"
    WORKFLOW_STEP = "workflow_step"
    WORKFLOW_COMPLETE = "workflow_complete"
    MODEL_SELECTION = "model_selection"
    STREAMING_CHUNK = "streaming_chunk"
    ERROR = "error"


END: Final = "callbackkit.end"
"""Type of the event that a stream ends with when its session has."""

GAP: Final = "callbackkit.gap"
"""Type of the event that stands where a reader asked for events that are no longer kept."""

CLIENT_MESSAGE: Final = "client.message"
"""Type of the event that what a client of a session sent is stored as."""

_OURS: Final = "callbackkit."
_MOST_NAME: Final = 128
_NAME: Final = re.compile(r"[a-z0-9_-]+(?:\.[a-z0-9_-]+)*")


def check_event_type(name: str) -> None:
    """Refuse what names no event that an application may emit.

    A name is up to 128 of ``a-z 0-9 _ - .``, no dot first, last or beside another: it stands in
    URLs, filters and log lines as it is. Names that begin with ``callbackkit.`` are ours.

    Raises:
        TypeError: *name* is no string.
        ValueError: It is no such name.
    """
    if not isinstance(name, str):
        raise TypeError(f"an event type is a string, not {type(name).__name__}")
    if name in _PAYLOADS:
        return
    if not _NAME.fullmatch(name) or len(name) > _MOST_NAME:
        raise ValueError(
            f"{name!r:.80} is no event type; use up to {_MOST_NAME} of a-z 0-9 _ - and dots between"
        )
    if name.startswith(_OURS):
        raise ValueError(f"{name!r} is no event type to emit; names in {_OURS!r} are reserved")


# Short and of safe characters: it goes through headers, URLs and `Last-Event-ID`.
_EPOCH: Final = re.compile(r"[A-Za-z0-9_.]{1,32}")
_SEQ: Final = re.compile(r"0|[1-9][0-9]{0,17}")


@attrs.frozen
class Position:
    """Where an event stands in its session; as text ``epoch-seq``.

    >>> Position.parse("9f86d081884c7d65-12").seq
    12

    Attributes:
        epoch: Names one life of a log. It changes when the log was lost, recreated or turned
            back, so that an old position can never mean a new event.
        seq: Number of the event, from 1; 0 stands before the first.
    """

    epoch: str
    seq: int

    def __str__(self) -> str:
        return f"{self.epoch}-{self.seq}"

    @classmethod
    def parse(cls, text: str) -> Position:
        """Read a position.

        Raises:
            PositionError: *text* is no position.
        """
        epoch, dash, seq = text.rpartition("-") if isinstance(text, str) else ("", "", "")
        if not dash or not _EPOCH.fullmatch(epoch) or not _SEQ.fullmatch(seq):
            raise PositionError(f"{text!r:.80} is no position such as '9f86d081884c7d65-12'")
        return cls(epoch, int(seq))


# What the known events carry. A value that is not required may be None as well; more keys are kept.


class Thinking(TypedDict, total=False):
    """Data of ``thinking``."""

    thought: Required[str]


class ToolUse(TypedDict, total=False):
    """Data of ``tool_use``."""

    tool_name: Required[str]
    parameters: Mapping[str, Any] | None


class ToolResult(TypedDict, total=False):
    """Data of ``tool_result``; *execution_time* is in seconds."""

    tool_name: Required[str]
    result: Any
    success: bool | None
    execution_time: float | None


class Progress(TypedDict, total=False):
    """Data of ``progress``, which goes from 0 to 1."""

    progress: Required[float]
    message: str | None
    current_step: int | None
    total_steps: int | None


class Completion(TypedDict, total=False):
    """Data of ``completion``; *total_time* is in seconds."""

    result: Any
    success: bool | None
    total_time: float | None
    tokens_used: int | None


class WorkflowStart(TypedDict, total=False):
    """Data of ``workflow_start``; *steps* are names."""

    workflow: Required[str]
    steps: list[str] | tuple[str, ...] | None


class WorkflowStep(TypedDict, total=False):
    """Data of ``workflow_step``; *step* is a name."""

    step: Required[str]
    index: int | None
    total: int | None
    status: str | None


class WorkflowComplete(TypedDict, total=False):
    """Data of ``workflow_complete``; *total_time* is in seconds."""

    workflow: Required[str]
    success: bool | None
    total_time: float | None


class ModelSelection(TypedDict, total=False):
    """Data of ``model_selection``; *candidates* are names."""

    model: Required[str]
    reason: str | None
    candidates: list[str] | tuple[str, ...] | None


class StreamingChunk(TypedDict, total=False):
    """Data of ``streaming_chunk``; *span* is a number, see :class:`~callbackkit.StreamEvent`."""

    text: Required[str]
    node: str | None
    span: int | None


class ErrorReport(TypedDict, total=False):
    """Data of ``error``."""

    error: Required[str]
    error_type: str | None
    recoverable: bool | None
    retry_count: int | None


# The one validator. A check is given the path and a value that is not None.


def _text(path: str, value: object) -> None:
    if not isinstance(value, str):
        raise PayloadError(path, f"must be a string, not {type(value).__name__}")


def _flag(path: str, value: object) -> None:
    if not isinstance(value, bool):
        raise PayloadError(path, f"must be true or false, not {type(value).__name__}")


def _number(path: str, value: object, most: float, words: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise PayloadError(path, f"must be {words}, not {type(value).__name__}")
    # NaN is not within any bounds.
    if not 0 <= value <= most:
        raise PayloadError(path, f"must be {words}, not {_shown(value)}")


def _shown(value: float) -> str:
    return f"{value!r}" if isinstance(value, float) or abs(value) < 1e18 else "so large a number"


def _share(path: str, value: object) -> None:
    _number(path, value, 1, "a number from 0 to 1")


def _seconds(path: str, value: object) -> None:
    _number(path, value, _LONGEST, "a number of seconds from 0")


def _count(path: str, value: object) -> None:
    if isinstance(value, float):
        raise PayloadError(path, "must be a whole number from 0, not float")
    _number(path, value, math.inf, "a whole number from 0")


def _names(path: str, value: object) -> None:
    if not isinstance(value, list | tuple):
        raise PayloadError(path, f"must be a list of names, not {type(value).__name__}")
    for place, name in enumerate(cast("Sequence[object]", value)):
        _text(f"{path}[{place}]", name)


def _object(path: str, value: object) -> None:
    if not isinstance(value, Mapping):
        raise PayloadError(path, f"must be an object, not {type(value).__name__}")


# The longest time that is finite.
_LONGEST: Final = sys.float_info.max

_Check = Callable[[str, object], None]

# By event type: the key without which it says nothing, and what is checked.
_PAYLOADS: Final[Mapping[str, tuple[str | None, Mapping[str, _Check]]]] = {
    "thinking": ("thought", {"thought": _text}),
    "tool_use": ("tool_name", {"tool_name": _text, "parameters": _object}),
    "tool_result": (
        "tool_name",
        {"tool_name": _text, "success": _flag, "execution_time": _seconds},
    ),
    "progress": (
        "progress",
        {"progress": _share, "message": _text, "current_step": _count, "total_steps": _count},
    ),
    "completion": (None, {"success": _flag, "total_time": _seconds, "tokens_used": _count}),
    "workflow_start": ("workflow", {"workflow": _text, "steps": _names}),
    "workflow_step": (
        "step",
        {"step": _text, "index": _count, "total": _count, "status": _text},
    ),
    "workflow_complete": (
        "workflow",
        {"workflow": _text, "success": _flag, "total_time": _seconds},
    ),
    "model_selection": ("model", {"model": _text, "reason": _text, "candidates": _names}),
    "streaming_chunk": ("text", {"text": _text, "node": _text, "span": _count}),
    "error": (
        "error",
        {"error": _text, "error_type": _text, "recoverable": _flag, "retry_count": _count},
    ),
}
_NOTHING: Final[tuple[None, Mapping[str, _Check]]] = (None, {})


def check_payload(event_type: str, data: Mapping[str, Any]) -> None:
    """Refuse data that is not what its event type says.

    Of the known types the keys that are named in :class:`Progress` and its like are checked; the
    first of each is required, but for ``completion``. All other keys, and the data of all other
    types, may be anything.

    >>> check_payload("progress", {"progress": 40})
    Traceback (most recent call last):
    callbackkit.errors.PayloadError: progress: must be a number from 0 to 1, not 40

    Raises:
        PayloadError: The path is that of the value, for example ``"steps[1]"``; ``""`` if *data*
            is no mapping with strings as keys.
    """
    if not isinstance(data, dict) and not isinstance(data, Mapping):
        raise PayloadError("", f"data must be a mapping, not {type(data).__name__}")
    required, checks = _PAYLOADS.get(event_type, _NOTHING)
    for key, value in data.items():
        if not isinstance(key, str):
            raise PayloadError("", f"the keys of data must be strings, not {type(key).__name__}")
        check = checks.get(key)
        if check is not None and value is not None:
            check(key, value)
    if required is not None and data.get(required) is None:
        raise PayloadError(required, f"is required in {event_type!s}")


_1970: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


def _microseconds(when: datetime) -> int:
    if when.tzinfo is None:
        raise ValueError(f"{when!r} is naive; give it a tzinfo such as datetime.UTC")
    return (when - _1970) // _MICROSECOND


# As the default codec writes, see callbackkit.wire.envelope.
_ENCODER: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


class Event:
    """A fact in a session; it never changes.

    Its content is decoded when first asked for: an event that is only passed on costs no parsing.
    Sessions make events, with :meth:`of` so do tests.

    Args:
        position: Where it stands in its session.
        event_type: Its type.
        microseconds: When it was stored, microseconds since 1970, UTC.
        session_id: The session.
        body: The rest of it as JSON, see :mod:`callbackkit.wire.envelope`.
        decode: Reads JSON.
    """

    __slots__ = (
        "_body",
        "_content",
        "_decode",
        "_event_type",
        "_microseconds",
        "_position",
        "_session_id",
    )

    def __init__(
        self,
        position: Position,
        event_type: str,
        microseconds: int,
        session_id: str,
        body: bytes,
        decode: Callable[[bytes], Any],
    ) -> None:
        self._position = position
        self._event_type = event_type
        self._microseconds = microseconds
        self._session_id = session_id
        self._body = body
        self._decode = decode
        self._content: dict[str, Any] | None = None

    @classmethod
    def of(
        cls,
        event_type: str,
        data: Mapping[str, Any] | None = None,
        *,
        position: Position | str = "test-1",
        timestamp: datetime | None = None,
        session_id: str = "test",
        conversation_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Event:
        """Make an event for a test of what is done with events.

        >>> event = Event.of("progress", {"progress": 0.4})
        >>> event.id, event.data["progress"]
        ('test-1', 0.4)

        Args:
            event_type: Its type.
            data: What it says, ``{}`` if nothing; checked as it is when an event is emitted.
            position: Where it stands.
            timestamp: When it was stored, aware; by default 1970 plus a second for each event
                up to it.
            session_id: Its session.
            conversation_id: What its session belongs to.
            metadata: What is said about it.

        Raises:
            TypeError: *event_type* is no string, or there is something that JSON has no word for.
            ValueError: It is no event type, *timestamp* is naive, or there is a number that is
                not finite. :exc:`~callbackkit.PayloadError` and
                :exc:`~callbackkit.PositionError` are such errors.
        """
        check_event_type(event_type)
        data = {} if data is None else data
        check_payload(event_type, data)
        where = position if isinstance(position, Position) else Position.parse(position)
        content = {
            "conversation_id": conversation_id,
            "data": dict(data),
            "metadata": dict(metadata or {}),
        }
        body = _ENCODER.encode(content).encode()
        at = where.seq * 1_000_000 if timestamp is None else _microseconds(timestamp)
        return cls(where, str.__str__(event_type), at, session_id, body, json.loads)

    def __repr__(self) -> str:
        return f"<Event {self._position} {self._event_type}>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Event):
            return NotImplemented
        return self._position == other._position and (
            self._session_id == other._session_id
            and self._event_type == other._event_type
            and self._microseconds == other._microseconds
            and self._body == other._body
        )

    def __hash__(self) -> int:
        return hash((self._session_id, self._position))

    @property
    def position(self) -> Position:
        """Where it stands in its session; a reader that comes back goes on from here."""
        return self._position

    @property
    def id(self) -> str:
        """Its position, as text."""
        return str(self._position)

    @property
    def event_type(self) -> str:
        """Its type, for example ``"progress"``."""
        return self._event_type

    @property
    def timestamp(self) -> datetime:
        """When it was stored, UTC; later than any event before it in its session."""
        return _1970 + timedelta(microseconds=self._microseconds)

    @property
    def session_id(self) -> str:
        """Its session."""
        return self._session_id

    @property
    def data(self) -> Mapping[str, Any]:
        """What it says."""
        data: Mapping[str, Any] = self._parts()["data"]
        return data

    @property
    def conversation_id(self) -> str | None:
        """What the application groups sessions by, if it does."""
        conversation_id: str | None = self._parts()["conversation_id"]
        return conversation_id

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What is said about it."""
        metadata: Mapping[str, Any] = self._parts()["metadata"]
        return metadata

    @property
    def body(self) -> bytes:
        """Conversation, data and metadata, as JSON in UTF-8."""
        return self._body

    @property
    def is_gap(self) -> bool:
        """It stands for events that are no longer kept.

        ``data`` has the positions of the first and the last one, ``from`` and ``to``, and
        ``missed``, how many, ``None`` where nobody knows.
        """
        return self._event_type == GAP

    def _parts(self) -> dict[str, Any]:
        content = self._content
        if content is None:
            content = self._content = self._decode(self._body)
        return content
