"""A simulated fleet: its workers, its Redis, what happens to both, and what came of it."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import attrs

from tests.benchmarks.simulation_model import Costs, Due, Fleet, Redis, State, Timetable
from tests.benchmarks.simulation_worker import Worker

__all__ = ["Outcome", "Simulation", "percentile"]


@attrs.frozen(kw_only=True)
class Outcome:
    """What was seen in a span of time.

    Attributes:
        calls: Calls a second that the server was asked, by kind.
        load: Part of its one processor that it used; 1.0 for all of it.
        peak: That of the fullest second.
        wait_p50: Seconds that a call waited for its turn, half of them.
        wait_p99: 99 of 100.
        attempt_p50: Seconds from emitting to sending; ``None`` if nothing was owed.
        attempt_p99: Likewise.
        read_p50: Seconds from emitting to reading elsewhere; ``None`` if nothing was followed.
        read_p99: Likewise.
    """

    calls: float
    load: float
    peak: float
    wait_p50: float
    wait_p99: float
    attempt_p50: float | None
    attempt_p99: float | None
    read_p50: float | None
    read_p99: float | None


class Simulation:
    """A fleet, and the time that passes for it.

    Args:
        fleet: What it is.
        costs: What its calls cost.
        seed: Of all that happens by chance.

    Attributes:
        changes: Numbers of the newest change, by partition.
        due: What is owed, by partition.
        attempts: Of each event that was sent first, when it was emitted, and how long that took.
        reads: Of each event that was read elsewhere, likewise.
        taken_over: When each delivery was sent again that a killed worker was sending.
    """

    def __init__(self, fleet: Fleet, costs: Costs, *, seed: int = 1) -> None:
        self.fleet: Fleet = fleet
        self.costs: Costs = costs
        self.random: random.Random = random.Random(seed)
        self.timetable: Timetable = Timetable()
        self.redis: Redis = Redis(self.timetable, self.random, fleet)
        self.changes: list[int] = [0] * fleet.partitions
        self.due: list[Due] = [Due() for _ in range(fleet.partitions)]
        self.attempts: list[tuple[float, float]] = []
        self.reads: list[tuple[float, float]] = []
        self.taken_over: list[float] = []
        self._emitted: dict[int, float] = {}
        # What each worker is sending, by whom.
        self._sending: dict[int, Worker] = {}
        self._owed = 0
        self.workers: list[Worker] = [Worker(self) for _ in range(fleet.workers)]
        self._plan_owed()
        self._plan_followed()

    def run(self, seconds: float) -> None:
        """Let time pass."""
        self.timetable.run(self.timetable.now + seconds)

    # What happens to it.

    def go_away(self, state: State) -> None:
        """Have the server refuse, or say nothing, from now on."""
        self.redis.state = state
        if state == "refusing":
            for worker in self.workers:
                worker.lose_connection()

    def kill(self, workers: int) -> None:
        """End workers, with all they hold."""
        for worker in self.workers[:workers]:
            worker.is_alive = worker.is_listening = False
        del self.workers[:workers]

    # Of the workers.

    def connect(self) -> None:
        """Have the server accept a connection."""
        self.redis.calls["connect"] += 1
        self.redis.work(self.costs.connect)

    def owe(self, partition: int, began: float) -> None:
        """Have an event fall due that was emitted then."""
        self._owed += 1
        self._emitted[self._owed] = began
        self.due[partition].put(self._owed, self.timetable.now)

    def note_attempt(self, number: int, by: Worker) -> None:
        """Note that an event is being sent."""
        before = self._sending.get(number)
        if before is not None and not before.is_alive:
            self.taken_over.append(self.timetable.now)
        self._sending[number] = by
        began = self._emitted.pop(number, None)
        if began is not None:
            self.attempts.append((began, self.timetable.now - began))

    def listeners(self) -> list[Worker]:
        """Return who is told that something is due."""
        if self.fleet.tells == "itself" or not self.fleet.engines:
            return []
        return [each for each in self.workers if each.is_listening]

    def tell(self, listeners: Sequence[Worker], partition: int) -> None:
        """Have workers hear that something is due."""
        now = self.timetable.now
        self.timetable.at(now + self.fleet.network, self._told, listeners, partition)

    @staticmethod
    def _told(listeners: Sequence[Worker], partition: int) -> None:
        for worker in listeners:
            worker.ring(partition)

    # Events, each some time after the one before.

    def _plan_owed(self) -> None:
        if self.fleet.owed:
            wait = self.random.expovariate(self.fleet.owed)
            self.timetable.at(self.timetable.now + wait, self._emit_owed)

    def _emit_owed(self) -> None:
        self.random.choice(self.workers).emit_owed()
        self._plan_owed()

    def _plan_followed(self) -> None:
        if self.fleet.followed:
            wait = self.random.expovariate(self.fleet.followed)
            self.timetable.at(self.timetable.now + wait, self._emit_followed)

    def _emit_followed(self) -> None:
        self.random.choice(self.workers).emit_followed(self.random.choice(self.workers))
        self._plan_followed()

    # What came of it.

    def outcome(self, begin: float, end: float | None = None) -> Outcome:
        """Return what was seen from one time to another, by default to now; whole seconds."""
        until = self.timetable.now if end is None else end
        seconds = range(int(begin), int(until))
        busy = [self.redis.busy[each] for each in seconds]
        waits = [wait for at, wait in self.redis.waits if begin <= at < until]
        attempts = [taken for at, taken in self.attempts if begin <= at < until]
        reads = [taken for at, taken in self.reads if begin <= at < until]
        return Outcome(
            calls=len(waits) / len(seconds),
            load=sum(busy) / len(busy),
            peak=max(busy),
            wait_p50=percentile(waits, 50),
            wait_p99=percentile(waits, 99),
            attempt_p50=percentile(attempts, 50) if attempts else None,
            attempt_p99=percentile(attempts, 99) if attempts else None,
            read_p50=percentile(reads, 50) if reads else None,
            read_p99=percentile(reads, 99) if reads else None,
        )

    def counted(self) -> Counter[str]:
        """Return the calls so far, by kind."""
        return Counter(self.redis.calls)


def percentile(values: Sequence[float], part: int) -> float:
    """Return the value that so many of 100 do not exceed; 0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) * part // 100, len(ordered) - 1)] if ordered else 0.0
