"""What is to be looked at when, and ids in order, both without a pause for many sessions."""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import Any, Generic, Protocol, TypeVar

__all__ = ["Agenda", "Scheduled", "SortedIds"]


class Scheduled(Protocol):
    """Something on an agenda.

    Attributes:
        due_at: When it is to be looked at; ``None`` for never.
        listed_at: Where it stands in the heap; for the agenda alone.
        entry: What stands there for it; for the agenda alone.
    """

    due_at: float | None
    listed_at: float
    entry: list[object]


S = TypeVar("S", bound=Scheduled)

# Entries that stand for nothing any more are cleared out once there are this many, and half of
# all are such.
_COMPACT_AT = 64


class Agenda(Generic[S]):
    """Things in the order of when they are due.

    A thing that is put off, as by a lease that is renewed at each delivery, stays where it
    stands in the heap until its old time comes; so putting off costs nothing. One that is
    brought forward or taken off leaves an empty entry behind, which keeps nothing alive.
    """

    def __init__(self) -> None:
        # Time, number, and a list that holds the thing, or nothing.
        self._heap: list[tuple[float, int, list[S]]] = []
        self._count = 0
        self._empty = 0

    def __len__(self) -> int:
        return len(self._heap) - self._empty

    def put(self, thing: S, at: float) -> None:
        """Have a thing due then, and at no other time."""
        thing.due_at = at
        if at < thing.listed_at:
            self._unlist(thing)
            entry: list[Any] = [thing]
            thing.listed_at, thing.entry = at, entry
            self._count += 1
            heapq.heappush(self._heap, (at, self._count, entry))

    def discard(self, thing: S) -> None:
        """Take a thing off, if it stands there."""
        thing.due_at = None
        self._unlist(thing)
        thing.listed_at = math.inf

    def pop(self, now: float) -> S | None:
        """Take a thing that is due off the agenda."""
        while self._heap and self._heap[0][0] <= now:
            thing = self._pop()
            if thing is None or thing.due_at is None:
                continue
            if thing.due_at <= now:
                thing.due_at = None
                return thing
            self.put(thing, thing.due_at)
        return None

    def first_at(self) -> float:
        """Return when the next thing is due; infinity if there is none."""
        while self._heap:
            listed_at, _, entry = self._heap[0]
            if entry and entry[0].due_at == listed_at:
                return listed_at
            thing = self._pop()
            if thing is not None and thing.due_at is not None:
                self.put(thing, thing.due_at)
        return math.inf

    def _pop(self) -> S | None:
        _, _, entry = heapq.heappop(self._heap)
        if not entry:
            self._empty -= 1
            return None
        thing: S = entry.pop()
        thing.listed_at = math.inf
        self._compact()
        return thing

    def _unlist(self, thing: S) -> None:
        if thing.entry:
            thing.entry.clear()
            self._empty += 1
            self._compact()

    def _compact(self) -> None:
        if self._empty >= _COMPACT_AT and self._empty * 2 > len(self._heap):
            self._heap = [each for each in self._heap if each[2]]
            heapq.heapify(self._heap)
            self._empty = 0


class SortedIds:
    """Ids in order; those added since the last look are sorted in at the next one."""

    def __init__(self) -> None:
        self._ids: list[str] = []
        self._new: set[str] = set()

    def add(self, new: str) -> None:
        """Add an id that is not there."""
        self._new.add(new)

    def discard(self, old: str) -> None:
        """Take an id out."""
        if old in self._new:
            self._new.discard(old)
            return
        place = bisect_left(self._ids, old)
        if place < len(self._ids) and self._ids[place] == old:
            del self._ids[place]

    def after(self, last: str | None) -> Iterator[str]:
        """Yield the ids that follow one, in order; the caller adds and removes none meanwhile."""
        if self._new:
            self._ids += sorted(self._new)
            self._new.clear()
            # Fast, as both parts are sorted already.
            self._ids.sort()
        for place in range(0 if last is None else bisect_right(self._ids, last), len(self._ids)):
            yield self._ids[place]
