"""Many sessions followed in one process, emitted to by another: how late events are, and what for.

By a server on loopback that keeps nothing on disk. Of the clock on the wall, with three processes
that all have something to do: it needs two cores with nothing else.
"""

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import quantiles
from time import monotonic, process_time
from typing import Any

from callbackkit import CallbackManager, Session
from callbackkit.events import Event
from tests.benchmarks.fan_out_ours import RATE
from tests.benchmarks.harness import Case, Measure, Table
from tests.benchmarks.redis import Room
from tests.benchmarks.redis_echo import managing
from tests.stores.redis_server import call

AT_MOST = 150_000.0
"""Microseconds, of 99 events in 100."""

# Seconds after which what has not come is lost.
_PATIENCE = 60.0

PACE = f"{RATE} a second each, percentile 99"
BURST = "all at the same instant, percentile 99"
EMITTED = f"{RATE} a second each, being emitted, percentile 99"
READER, SERVER, EMITTER = (
    f"processor time of an event, {who}" for who in ("who follows", "the server", "who emits")
)


@contextmanager
def followed(sessions: int, events: int) -> Iterator[Table]:
    """Follow sessions that another process emits to.

    Args:
        sessions: How many.
        events: How many each has in a round.
    """
    with Room() as room:
        emitter = room.enter_context(Emitter(room.url, sessions))
        follower = Follower(room.url, emitter, room.open(managing(room.url)))
        room.runner.run(follower.begin())
        room.callback(lambda: room.runner.run(follower.end()))
        rounds = Rounds(lambda number: room.runner.run(follower.measure(number)))
        yield Table(
            f"following {sessions:_} sessions in one process, from being due to being read",
            [
                Case(f"callbackkit, {PACE}", rounds.share(PACE), AT_MOST),
                *(Case(f"callbackkit, {each}", rounds.share(each)) for each in _SHOWN),
            ],
            unit="microseconds",
            number=events,
        )


_SHOWN = (EMITTED, BURST, READER, SERVER, EMITTER)


class Rounds:
    """What a round comes to, for all the cases that are about the same round.

    Args:
        run: Runs one, and gives what each case is told, in seconds.
    """

    def __init__(self, run: Callable[[int], dict[str, float]]) -> None:
        self._run = run
        self._left: dict[str, float] = {}

    def share(self, name: str) -> Measure:
        """Measure what a case is told, times the number of runs: the table divides by that."""

        def measure(number: int) -> float:
            if name not in self._left:
                self._left = self._run(number)
            return number * self._left.pop(name)

        return measure


class Emitter:
    """A process that emits, see :mod:`tests.benchmarks.redis_follow_emitter`.

    Attributes:
        ids: The sessions that it has made.
    """

    def __init__(self, url: str, sessions: int) -> None:
        command = [sys.executable, "-m", "tests.benchmarks.redis_follow_emitter"]
        self._process = subprocess.Popen(
            [*command, url, str(sessions)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.ids: list[str] = self._answer()

    def __enter__(self) -> "Emitter":
        return self

    def __exit__(self, *_error: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def emit(self, events: int, *, together: bool) -> dict[str, float]:
        """Have it emit to each of its sessions, and wait until it has; blocks."""
        assert self._process.stdin is not None
        order = {"events": events, "rate": RATE, "together": together}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer: dict[str, float] = self._answer()
        return answer

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the process that emits has ended")
        return json.loads(line)


class Follower:
    """Follows the sessions of an emitter, a task each, and sees that nothing is lost.

    Args:
        url: The server.
        emitter: Who emits to them.
        manager: Reads them.
    """

    def __init__(self, url: str, emitter: Emitter, manager: CallbackManager) -> None:
        self._url = url
        self._emitter = emitter
        self._manager = manager
        self._tasks: list[asyncio.Task[None]] = []
        self._waits: list[float] = []
        self._left = 0
        self._changed = asyncio.Event()

    async def begin(self) -> None:
        """Follow, from the beginning of each session."""
        for each in self._emitter.ids:
            session = await self._manager.get_session(each)
            self._tasks.append(asyncio.ensure_future(self._follow(session)))
        # One of each, before anything is measured.
        await self._round(1, together=False)

    async def end(self) -> None:
        """Let go of all."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def measure(self, events: int) -> dict[str, float]:
        """Have so many events emitted to each session at a pace, and one to all at once.

        Returns:
            Seconds, for each row of the table.
        """
        number = events * len(self._tasks)
        reader, server = process_time(), _processor_time(self._url)
        emitter = await self._round(events, together=False)
        reader, server = process_time() - reader, _processor_time(self._url) - server
        pace = _late(self._waits)
        await self._round(1, together=True)
        burst = _late(self._waits)
        return {
            PACE: pace,
            EMITTED: emitter["late"],
            BURST: burst,
            READER: reader / number,
            SERVER: server / number,
            EMITTER: emitter["processor"] / number,
        }

    async def _round(self, events: int, *, together: bool) -> dict[str, float]:
        self._waits = []
        self._left = events * len(self._tasks)
        self._changed.clear()
        told = await asyncio.to_thread(self._emitter.emit, events, together=together)
        async with asyncio.timeout(_PATIENCE):
            await self._changed.wait()
        if self._left:
            raise RuntimeError(f"{self._left} events were not read") from self._failure()
        return told

    def _failure(self) -> BaseException | None:
        return next((each.exception() for each in self._tasks if each.done()), None)

    async def _follow(self, session: Session) -> None:
        before: Event | None = None
        try:
            async for event in session.subscribe():
                check_order(before, event)
                before = event
                self._waits.append(monotonic() - event.data["due"])
                self._left -= 1
                if not self._left:
                    self._changed.set()
        finally:
            # It ends only by an error.
            self._changed.set()


def check_order(before: Event | None, event: Event) -> None:
    """Raise if an event is not the next one: by its position, and by what its emitter counts."""
    expected = 1 if before is None else before.position.seq + 1
    if event.is_gap or event.position.seq != expected:
        raise RuntimeError(f"{event.position} comes where {expected} was to come")
    if before is not None and event.data["number"] not in (0, before.data["number"] + 1):
        raise RuntimeError(f"{event.data} comes behind {before.data}")


def _late(waits: list[float]) -> float:
    return quantiles(waits, n=100, method="inclusive")[98]


def _processor_time(url: str) -> float:
    """Return how many seconds of the processor the server has had."""
    lines = dict(
        line.split(":") for line in call(url, "INFO", "cpu").decode().split() if ":" in line
    )
    return float(lines["used_cpu_user"]) + float(lines["used_cpu_sys"])
