"""What is to be looked at when, and ids in order, both without a pause for many sessions."""

from __future__ import annotations

import heapq
import math
from bisect import bisect_right
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

__all__ = ["Agenda", "Scheduled", "SortedIds"]


class Scheduled(Protocol):
    """Something on an agenda.

    Attributes:
        due_at: When it is to be looked at; ``None`` for never.
        listed_at: Where it stands in the heap; for the agenda alone.
    """

    due_at: float | None
    listed_at: float


S = TypeVar("S", bound=Scheduled)


class Agenda(Generic[S]):
    """Things in the order of when they are due.

    A thing that is put off, as by a lease that is renewed at each delivery, stays where it
    stands in the heap until its old time comes; so putting off costs nothing.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, S]] = []
        self._count = 0

    def put(self, thing: S, at: float) -> None:
        """Have a thing due then, and at no other time."""
        thing.due_at = at
        if at < thing.listed_at:
            thing.listed_at = at
            self._count += 1
            heapq.heappush(self._heap, (at, self._count, thing))

    def pop(self, now: float) -> S | None:
        """Take a thing that is due off the agenda."""
        while self._heap and self._heap[0][0] <= now:
            listed_at, _, thing = heapq.heappop(self._heap)
            if listed_at != thing.listed_at:
                continue
            thing.listed_at = math.inf
            due_at = thing.due_at
            if due_at is None:
                continue
            if due_at <= now:
                thing.due_at = None
                return thing
            self.put(thing, due_at)
        return None

    def first_at(self) -> float:
        """Return when the next thing is due; infinity if there is none."""
        while self._heap:
            listed_at, _, thing = self._heap[0]
            if listed_at == thing.listed_at and thing.due_at == listed_at:
                return listed_at
            heapq.heappop(self._heap)
            if listed_at == thing.listed_at:
                thing.listed_at = math.inf
                if thing.due_at is not None:
                    self.put(thing, thing.due_at)
        return math.inf


class SortedIds:
    """Ids in order; those added since the last look are sorted in at the next one."""

    def __init__(self) -> None:
        self._ids: list[str] = []
        self._is_sorted = True
        self._gone: set[str] = set()

    def add(self, new: str) -> None:
        """Add an id that is not there."""
        if new in self._gone:
            self._gone.discard(new)
            return
        self._ids.append(new)
        self._is_sorted = False

    def discard(self, old: str) -> None:
        """Take an id out."""
        self._gone.add(old)
        if len(self._gone) * 2 > len(self._ids):
            self._ids = [each for each in self._ids if each not in self._gone]
            self._gone.clear()

    def after(self, last: str | None) -> Iterator[str]:
        """Yield the ids that follow one, in order; the caller adds and removes none meanwhile."""
        if not self._is_sorted:
            # Fast, as all but the newest are sorted already.
            self._ids.sort()
            self._is_sorted = True
        for place in range(0 if last is None else bisect_right(self._ids, last), len(self._ids)):
            if self._ids[place] not in self._gone:
                yield self._ids[place]
