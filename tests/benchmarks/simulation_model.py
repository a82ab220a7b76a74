"""A fleet of workers and the one Redis they share, simulated call by call."""

from __future__ import annotations

import heapq
import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable
from itertools import count
from typing import Literal

import attrs

__all__ = ["NOTED", "Costs", "Due", "Fleet", "Redis", "Timetable", "costing"]


@attrs.frozen(kw_only=True)
class Costs:
    """Microseconds of the server's processor.

    Attributes:
        ping: A ``PING``, as a measure of the machine.
        look: To ask a partition what changed, and nothing has.
        change: Each session that has.
        totals: The sums of a partition.
        sweep: To ask a partition what time asks for.
        append: An event to a session that is read.
        append_more: One more in the same call.
        read: The one event that is new.
        read_more: One more session in the same call.
        touch: To tell that a session is read.
        touch_more: One more in the same call.
        append_owed: An event to a session that is delivered.
        claim: To ask a partition what is due, and nothing is.
        claimed: Each session that is.
        endpoint: To look an endpoint up.
        ack: To settle a delivery.
        told: A process that listens, for each message.
        subscribe: To listen to a channel more.
        connect: A connection, until its first answer.
    """

    ping: float
    look: float
    change: float
    totals: float
    sweep: float
    append: float
    append_more: float
    read: float
    read_more: float
    touch: float
    touch_more: float
    append_owed: float
    claim: float
    claimed: float
    endpoint: float
    ack: float
    told: float
    subscribe: float
    connect: float


@attrs.frozen(kw_only=True)
class Fleet:
    """Workers that share a Redis, and what they do; seconds, and numbers a second of all together.

    Attributes:
        workers: Processes with a started manager.
        partitions: Those of the store.
        reconcile: Between two looks at what changed.
        jitter: How much more or less that is by chance, as a part of it.
        engines: They deliver.
        asks: Whether a worker that is rung asks all partitions what is due, or those that rang.
        tells: Whether everybody is told of what is due, or only who appended it; the others then
            find it when they look around, if it is due still.
        owed: Events to sessions that are delivered, each to one of its own.
        followed: Events to sessions that another worker follows.
        follows: Sessions that a worker follows.
        attempt: How long a delivery takes.
        lease: How long a claim is held.
        timeout: How long a call may take.
        network: There and back.
        thread: What a call takes of the worker's thread.
    """

    workers: int = 1_000
    partitions: int = 8
    reconcile: float = 1.5
    jitter: float = 0.0
    engines: bool = True
    asks: Literal["all", "rung"] = "all"
    tells: Literal["everybody", "itself"] = "everybody"
    owed: float = 0.0
    followed: float = 0.0
    follows: int = 10
    attempt: float = 0.05
    lease: float = 25.0
    timeout: float = 5.0
    network: float = 0.0003
    thread: float = 0.0002


class Timetable:
    """What happens when, in order.

    Attributes:
        now: Seconds since it began.
    """

    def __init__(self) -> None:
        self.now: float = 0.0
        self._heap: list[tuple[float, int, Callable[..., object], tuple[object, ...]]] = []
        self._numbers = count()

    def at(self, time: float, call: Callable[..., object], *arguments: object) -> None:
        """Have something happen then."""
        heapq.heappush(self._heap, (time, next(self._numbers), call, arguments))

    def run(self, until: float) -> None:
        """Have all happen until then."""
        heap = self._heap
        while heap and heap[0][0] <= until:
            self.now, _, call, arguments = heapq.heappop(heap)
            call(*arguments)
        self.now = until


class Due:
    """What a partition owes, by when it is due."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int]] = []
        self._at: dict[int, float] = {}

    def put(self, number: int, at: float) -> None:
        """Have something due then, and at no other time."""
        self._at[number] = at
        heapq.heappush(self._heap, (at, number))

    def remove(self, number: int) -> None:
        """Have it due never."""
        self._at.pop(number, None)

    def first(self) -> float:
        """Return when the next is due; infinity if nothing is."""
        while self._heap and self._at.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else math.inf

    def claim(self, now: float, limit: int, lease: float) -> list[int]:
        """Take what is due, and have it due again when the lease runs out."""
        found: list[int] = []
        while len(found) < limit and self.first() <= now:
            found.append(heapq.heappop(self._heap)[1])
            self.put(found[-1], now + lease)
        return found


class Call:
    """A call of a worker.

    Attributes:
        kind: What it is counted as.
        sent: When it was made.
        does: What it does there and then; returns what it costs, in microseconds, and its answer.
        answered: Called with the answer.
        failed: Called if there is none.
        is_over: Whoever made it waits no longer.
    """

    __slots__ = ("answered", "does", "failed", "is_over", "kind", "sent")

    def __init__(
        self,
        kind: str,
        sent: float,
        does: Callable[[], tuple[float, object]],
        answered: Callable[[object], object],
        failed: Callable[[], object],
    ) -> None:
        self.kind: str = kind
        self.sent: float = sent
        self.does: Callable[[], tuple[float, object]] = does
        self.answered: Callable[[object], object] = answered
        self.failed: Callable[[], object] = failed
        self.is_over: bool = False


def costing(microseconds: float) -> tuple[float, object]:
    """Do what takes so long and matters to nobody else; what calls do, see :class:`Call`."""
    return microseconds, None


State = Literal["up", "refusing", "silent"]


class Redis:
    """The server: one queue, one call at a time.

    Args:
        timetable: When things happen.
        random: Varies what calls cost: by a fifth as a rule, a few times as much now and then.
        fleet: For the network, and how long is waited.

    Attributes:
        state: It answers, refuses connections, or says nothing at all.
        calls: How many there were, by kind.
        busy: Seconds of work, by the second in which they began.
        waits: Of each call, when it arrived, and the seconds until its turn.
    """

    def __init__(self, timetable: Timetable, random: random.Random, fleet: Fleet) -> None:
        self._timetable = timetable
        self._random = random
        self._network = fleet.network / 2
        self._timeout = fleet.timeout
        self._free_at = 0.0
        self._held: list[Call] = []
        self.state: State = "up"
        self.calls: Counter[str] = Counter()
        self.busy: defaultdict[int, float] = defaultdict(float)
        self.waits: list[tuple[float, float]] = []

    def arrive(self, call: Call) -> None:
        """Take a call that has come through the network."""
        if self.state == "refusing":
            self._timetable.at(self._timetable.now + self._network, self._fail, call)
        elif self.state == "silent":
            # It stays in the buffer of its connection, whoever has left meanwhile.
            self._held.append(call)
            self._timetable.at(call.sent + self._timeout, self._fail, call)
        else:
            self._serve(call)

    def go_on(self) -> None:
        """Answer again; first what has come in meanwhile."""
        self.state = "up"
        held, self._held = self._held, []
        for call in held:
            self._serve(call)

    def work(self, microseconds: float) -> float:
        """Do something when it is its turn; return when that is done."""
        now = self._timetable.now
        begins = max(now, self._free_at)
        # Never less than four fifths of the mean.
        taken = microseconds * 1e-6 * (0.8 + self._random.expovariate(5.0))
        self._free_at = begins + taken
        self.busy[int(begins)] += taken
        self.waits.append((now, begins - now))
        return self._free_at

    def _serve(self, call: Call) -> None:
        cost, answer = call.does()
        self.calls[call.kind] += 1
        there_at = self.work(cost) + self._network
        if there_at > call.sent + self._timeout:
            self._timetable.at(call.sent + self._timeout, self._fail, call)
        else:
            self._timetable.at(there_at, self._answer, call, answer)

    def _answer(self, call: Call, answer: object) -> None:
        if not call.is_over:
            call.is_over = True
            call.answered(answer)

    def _fail(self, call: Call) -> None:
        if not call.is_over:
            call.is_over = True
            call.failed()


NOTED = Costs(
    ping=5.6, look=27.0, change=0.25, totals=39.0, sweep=45.0, append=48.0, append_more=18.0,
    read=40.0, read_more=15.5, touch=58.0, touch_more=20.0, append_owed=54.0, claim=45.0,
    claimed=27.0, endpoint=40.0, ack=85.0, told=6.3, subscribe=6.6, connect=85.0,
)  # fmt: skip
"""What :mod:`tests.benchmarks.simulation_costs` measured, the least of four times."""
