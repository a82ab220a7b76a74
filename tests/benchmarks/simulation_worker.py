"""One worker of a simulated fleet: what its manager and its store do, call by call."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from tests.benchmarks.simulation_engine import Engine
from tests.benchmarks.simulation_line import Line
from tests.benchmarks.simulation_model import Call, costing

if TYPE_CHECKING:
    from tests.benchmarks.simulation_fleet import Simulation

__all__ = ["Worker"]

# As callbackkit has them, see stores/redis_wakes.py, sessions/service.py and stores/redis_link.py;
# seconds, and verbs in one call.
_REST = 5.0
_BACKOFF, _LONGEST_BACKOFF = 0.05, 5.0
_FLUSH_EVERY, _SWEEP_EVERY = 1.0, 5
_MOST_VERBS = 128


def _nothing(_: object = None) -> None:
    return


class Worker:
    """A process: it looks around, looks after time, listens, delivers and reads.

    Attributes:
        is_alive: It was not killed.
    """

    def __init__(self, all_of: Simulation) -> None:
        self._all = all_of
        self._line = Line(all_of)
        fleet, random = all_of.fleet, all_of.random
        self.is_alive: bool = True
        self.is_listening: bool = True
        self._listen_failures = 0
        self._seen = [0] * fleet.partitions
        # Sessions that were read since the store was told.
        self._noted = 0
        self._engine = Engine(self) if fleet.engines else None
        self.after(random.random() * fleet.reconcile, self._look, 0)
        self.after(random.random() * _FLUSH_EVERY, self._flush, random.randrange(_SWEEP_EVERY))
        self.after(random.random() * _REST, self._keep_up)

    @property
    def all(self) -> Simulation:
        """What all share."""
        return self._all

    def after(self, seconds: float, call: Callable[..., object], *arguments: object) -> None:
        """Have something happen some seconds from now, unless it is killed before."""
        self._all.timetable.at(self._all.timetable.now + seconds, self._if_alive, call, arguments)

    def _if_alive(self, call: Callable[..., object], arguments: tuple[object, ...]) -> None:
        if self.is_alive:
            call(*arguments)

    def ask(
        self,
        kind: str,
        does: Callable[[], tuple[float, object]],
        answered: Callable[[object], object] = _nothing,
        failed: Callable[[], object] = _nothing,
    ) -> None:
        """Make a call."""

        def has_answer(answer: object) -> None:
            self._line.succeeded()
            if self.is_alive:
                answered(answer)

        def has_failed() -> None:
            self._line.drop()
            if self.is_alive:
                failed()

        self._line.send(Call(kind, self._all.timetable.now, does, has_answer, has_failed))

    # Looking around: one partition after the other.

    def _look(self, partition: int) -> None:
        fleet = self._all.fleet
        if partition == fleet.partitions or not (self._engine or fleet.follows):
            by_chance = 1.0 + fleet.jitter * (2.0 * self._all.random.random() - 1.0)
            self.after(fleet.reconcile * by_chance, self._look, 0)
            return

        def does() -> tuple[float, object]:
            changes = self._all.changes[partition]
            changed, self._seen[partition] = changes - self._seen[partition], changes
            is_due = self._all.due[partition].first() <= self._all.timetable.now
            is_rung = is_due if fleet.tells == "itself" else changed > 0
            return self._all.costs.look + self._all.costs.change * changed, is_rung

        def answered(is_rung: object) -> None:
            if is_rung:
                self.ring(partition)
            self._look(partition + 1)

        self.ask("look", does, answered, lambda: self._look(fleet.partitions))

    # Looking after time.

    def _flush(self, turn: int) -> None:
        noted, self._noted = self._noted, 0
        following = turn % _SWEEP_EVERY == 0
        self._touch(max(noted, self._all.fleet.follows) if following else noted)
        if following:
            self._each("sweep", self._all.costs.sweep, self._total)
        self.after(_FLUSH_EVERY, self._flush, turn + 1)

    def _touch(self, sessions: int) -> None:
        costs, partitions = self._all.costs, self._all.fleet.partitions
        for share in _shares(sessions, partitions):
            cost = costs.touch + (share - 1) * costs.touch_more
            self.ask("touch", partial(costing, cost))

    def _total(self) -> None:
        self._each("totals", self._all.costs.totals, _nothing)

    def _each(self, kind: str, cost: float, then: Callable[[], object]) -> None:
        """Ask all partitions at once; go on when the last has answered."""
        left = self._all.fleet.partitions

        def answered(_: object) -> None:
            nonlocal left
            left -= 1
            if not left:
                then()

        for _ in range(self._all.fleet.partitions):
            self.ask(kind, partial(costing, cost), answered)

    # Listening.

    def _keep_up(self) -> None:
        redis = self._all.redis
        if redis.state == "up":
            redis.work(self._all.costs.subscribe)
            redis.calls["subscribe"] += 1
            self.after(_REST, self._keep_up)
        elif redis.state == "silent":
            self.after(self._all.fleet.timeout, self._lose_connection)
        else:
            self._lose_connection()

    def lose_connection(self) -> None:
        """Notice that the connection that listens has broken."""
        if self.is_alive and self.is_listening:
            self._lose_connection()

    def _lose_connection(self) -> None:
        self.is_listening = False
        self._listen_failures += 1
        longest = _BACKOFF * 2.0 ** min(self._listen_failures, 20)
        longest = min(longest, _LONGEST_BACKOFF)
        self.after(longest * (0.5 + self._all.random.random() / 2), self._listen)

    def _listen(self) -> None:
        redis, fleet, costs = self._all.redis, self._all.fleet, self._all.costs
        if redis.state == "refusing":
            self._lose_connection()
        elif redis.state == "silent":
            self.after(fleet.timeout, self._lose_connection)
        else:
            self.is_listening, self._listen_failures = True, 0
            channels = fleet.partitions * fleet.engines + fleet.follows
            redis.calls["connect"] += 1
            redis.work(costs.connect + channels * costs.subscribe)
            self.after(fleet.network, self._catch_up)
            self.after(_REST, self._keep_up)

    def _catch_up(self) -> None:
        """Look at all that may have rung before it was listened to."""
        costs = self._all.costs
        self.ring(None)
        for share in _shares(self._all.fleet.follows, self._all.fleet.partitions):
            cost = costs.read + (share - 1) * costs.read_more
            self.ask("read", partial(costing, cost))

    def ring(self, partition: int | None) -> None:
        """Hear that something may be due in a partition, or in any."""
        if self._engine is not None and self.is_alive:
            self._engine.ring(partition)

    # Sessions.

    def emit_owed(self) -> None:
        """Append an event that a transport delivers."""
        all_of = self._all
        began = all_of.timetable.now
        partition = all_of.random.randrange(all_of.fleet.partitions)

        def does() -> tuple[float, object]:
            listeners = all_of.listeners()
            all_of.changes[partition] += 1
            all_of.owe(partition, began)
            all_of.tell(listeners, partition)
            return all_of.costs.append_owed + len(listeners) * all_of.costs.told, None

        self.ask("append", does, lambda _: self.ring(partition))

    def emit_followed(self, follower: Worker) -> None:
        """Append an event that another worker follows."""
        all_of = self._all
        began = all_of.timetable.now
        partition = all_of.random.randrange(all_of.fleet.partitions)

        def does() -> tuple[float, object]:
            all_of.changes[partition] += 1
            follower.after(2 * all_of.fleet.network, follower.read, began)
            return all_of.costs.append + all_of.costs.told, None

        # Of a session that nothing delivers: today that rings, too.
        is_rung = all_of.fleet.tells == "everybody"
        self.ask("append", does, lambda _: self.ring(partition) if is_rung else None)

    def read(self, began: float) -> None:
        """Read an event that was rung for."""

        def answered(_: object) -> None:
            self._noted += 1
            self._all.reads.append((began, self._all.timetable.now - began))

        self.ask("read", partial(costing, self._all.costs.read), answered)


def _shares(sessions: int, partitions: int) -> list[int]:
    """Return how many sessions go into each call that is made for all of them."""
    each, more = divmod(sessions, partitions)
    found: list[int] = []
    for partition in range(partitions):
        left = each + (partition < more)
        while left > 0:
            found.append(min(left, _MOST_VERBS))
            left -= found[-1]
    return found
