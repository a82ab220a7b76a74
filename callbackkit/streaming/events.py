"""What a run's log holds, and what its readers are shown of it."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from itertools import islice
from typing import Any, Final, Literal, cast

import attrs

from callbackkit.wire.special_tokens import SpecialToken

__all__ = ["Entry", "Marker", "RunStatus", "Span", "StreamEvent", "sizes_of", "stream_event"]

RunStatus = Literal["ok", "error", "cancelled", "timeout"]
"""How a run, or one invocation of a node, ended."""

NO_PARAMS: Final[Mapping[str, str]] = {}


@attrs.frozen
class StreamEvent:
    """One entry of a run.

    Attributes:
        seq: Its number in the run, 1 upwards. A gap has that of the last entry it stands for.
        type: ``token``, ``node_start``, ``node_name``, ``node_end``, ``stream_end``, ``gap``, or
            the name of an event of the application's own.
        token: The text, as it was given; of a special token how it is written, a
            :class:`SpecialToken`; ``None`` for an event of the application's own.
        node: Name of the node it comes from.
        span: Which invocation of the node, 1 upwards in the run.
        params: Parameters of a special token.
        data: What an event of the application's own carries, as it was given; of a gap
            ``{"missed": n}``.
        status: How it ended, of ``stream_end`` and ``node_end``.
    """

    seq: int
    type: str
    token: str | None = None
    node: str | None = None
    span: int | None = None
    params: Mapping[str, str] = NO_PARAMS
    data: Any = None
    status: RunStatus | None = None


class Span:
    """One invocation of a node.

    Attributes:
        number: 1 upwards in the run; ``None`` if only the node's name is known.
        node: Name of the node.
        is_active: Whether what it streams is shown.
        is_open: It has not ended yet.
    """

    __slots__ = ("is_active", "is_open", "node", "number")

    def __init__(self, number: int | None, node: str, *, is_active: bool = True) -> None:
        self.number: int | None = number
        self.node: str = node
        self.is_active: bool = is_active
        self.is_open: bool = True


class Marker:
    """An entry that is no ordinary token.

    Attributes:
        size: Its bytes, about. Counted once: the application may go on to change the data.
    """

    __slots__ = ("data", "size", "span", "status", "token", "type")

    def __init__(
        self,
        type: str,  # noqa: A002 - the word of the contract
        token: SpecialToken | None,
        span: Span | None,
        data: Any = None,
        status: RunStatus | None = None,
    ) -> None:
        self.type: str = type
        self.token: SpecialToken | None = token
        self.span: Span | None = span
        self.data: Any = data
        self.status: RunStatus | None = status
        self.size: int = size_of_data(data) if token is None else _size_of_text(token)


Entry = str | tuple[str, Span] | Marker
"""A token outside of any node, a token of a node, or anything else."""


def stream_event(seq: int, entry: Entry) -> StreamEvent:
    """Return what readers are shown of an entry."""
    if isinstance(entry, str):
        return StreamEvent(seq, "token", entry)
    if isinstance(entry, tuple):
        return StreamEvent(seq, "token", entry[0], entry[1].node, entry[1].number)
    span = entry.span
    return StreamEvent(
        seq,
        entry.type,
        entry.token,
        None if span is None else span.node,
        None if span is None else span.number,
        NO_PARAMS if entry.token is None else entry.token.params,
        entry.data,
        entry.status,
    )


def sizes_of(entries: list[Entry]) -> int:
    """Return the bytes of entries: of text in UTF-8, of other data an estimate; at least 1 each."""
    try:
        # As they mostly are: one by one would cost more than all the rest of emitting them.
        text = "".join(cast("list[str]", entries))
    except TypeError:
        return sum(map(_size_of, entries))
    empty = 0 if all(entries) else entries.count("")
    return _size_of_text(text) + empty


def _size_of(entry: Entry) -> int:
    if isinstance(entry, Marker):
        return entry.size
    return _size_of_text(entry if isinstance(entry, str) else entry[0]) or 1


def _size_of_text(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


# Of the data of an event, so many parts are looked at to estimate its size; the others, and what is
# unknown, count as so many bytes each.
_MOST_PARTS: Final = 1_000
_OVERHEAD: Final = 64

_SIMPLE: Final = frozenset({str, bytes, bytearray, int, float, bool, type(None)})
_CONTAINERS: Final = frozenset({dict, list, tuple, set, frozenset})


def size_of_data(data: object) -> int:
    """Estimate the bytes of plain data; never runs its code."""
    size = 0
    parts = [data]
    for _ in range(_MOST_PARTS):
        if not parts:
            break
        part = parts.pop()
        known = type(part) in _SIMPLE or type(part) in _CONTAINERS
        size += sys.getsizeof(part) if known else _OVERHEAD
        if type(part) in _CONTAINERS:
            for inside in _insides(cast("Collection[object]", part)):
                room = max(_MOST_PARTS - len(parts), 0)
                parts += islice(inside, room)
                size += _OVERHEAD * max(len(inside) - room, 0)
    return size + _OVERHEAD * len(parts)


def _insides(container: Collection[object]) -> list[Collection[object]]:
    return [container, container.values()] if isinstance(container, dict) else [container]
