"""The engine of a simulated worker: it claims what is due, and delivers it."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

from tests.benchmarks.simulation_model import costing

if TYPE_CHECKING:
    from tests.benchmarks.simulation_worker import Worker

__all__ = ["Engine"]

# As callbackkit has them, see delivery/engine.py; seconds.
_BACKOFF, _LONGEST_BACKOFF = 0.1, 30.0
_RECONCILE, _LEAST_WAIT = 60.0, 0.01
_MOST_CLAIMS = 64


class Engine:
    """Claims what is due when it is rung, or when the time has come that it was told."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._all = worker.all
        self._is_idle = True
        self._rung: set[int] = set()
        # When something falls due in each partition, as it was told last.
        self._next_at = [math.inf] * self._all.fleet.partitions
        self._round = 0
        self._left = 0
        self._has_failed = False
        self._failures = 0

    def ring(self, partition: int | None) -> None:
        """Ask, now or as soon as what was asked is answered."""
        every = range(self._all.fleet.partitions)
        is_all = partition is None or self._all.fleet.asks == "all"
        self._rung.update(every if is_all else [partition] if partition is not None else [])
        if self._is_idle:
            self._ask()

    def _ask(self) -> None:
        self._is_idle, self._has_failed = False, False
        asked, self._rung = sorted(self._rung), set()
        self._left = len(asked)
        for partition in asked:
            self._claim(partition, max(1, _MOST_CLAIMS // len(asked)))

    def _claim(self, partition: int, limit: int) -> None:
        all_of = self._all

        due, found = all_of.due[partition], list[int]()

        def does() -> tuple[float, object]:
            found.extend(due.claim(all_of.timetable.now, limit, all_of.fleet.lease))
            return all_of.costs.claim + len(found) * all_of.costs.claimed, None

        def answered(_: object) -> None:
            self._next_at[partition] = due.first()
            for number in found:
                self._deliver(partition, number)
            if len(found) == limit:
                self._rung.add(partition)
            self._answered()

        self._worker.ask("claim", does, answered, self._claim_failed)

    def _claim_failed(self) -> None:
        self._has_failed = True
        self._answered()

    def _answered(self) -> None:
        self._left -= 1
        if self._left:
            return
        if self._has_failed:
            self._failures += 1
            longest = _BACKOFF * 2.0 ** min(self._failures - 1, 60)
            longest = min(longest, _LONGEST_BACKOFF)
            self._rung.update(range(self._all.fleet.partitions))
            self._worker.after(longest * (0.5 + self._all.random.random() / 2), self._ask)
            return
        self._failures = 0
        if self._rung:
            self._ask()
            return
        self._is_idle = True
        self._round += 1
        rest = min(min(self._next_at) - self._all.timetable.now, _RECONCILE)
        self._worker.after(max(rest, _LEAST_WAIT), self._wake, self._round)

    def _wake(self, round_: int) -> None:
        if not self._is_idle or round_ != self._round:
            return
        now = self._all.timetable.now
        due = [each for each, at in enumerate(self._next_at) if at <= now]
        self.ring(due[0] if len(due) == 1 else None)

    def _deliver(self, partition: int, number: int) -> None:
        """Look the endpoint up, read what is owed, send it, and settle that."""
        all_of, worker = self._all, self._worker
        costs = all_of.costs

        def settle() -> tuple[float, object]:
            all_of.due[partition].remove(number)
            return costs.ack, None

        def send(_: object) -> None:
            all_of.note_attempt(number, worker)
            worker.after(all_of.fleet.attempt, lambda: worker.ask("ack", settle))

        def read(_: object) -> None:
            worker.ask("read", partial(costing, costs.read), send)

        worker.ask("endpoint", partial(costing, costs.endpoint), read)
