"""One run through a graph: from node to node, in branches, and together again at joins."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import anyio
import attrs

from callbackkit.errors import GraphStepsError
from callbackkit.streaming.callback import Callback
from callbackkit.streaming.plan import Plan

__all__ = ["Walk"]

T = TypeVar("T")

logger: logging.Logger = logging.getLogger("callbackkit.streaming")

_NOTHING: frozenset[str] = frozenset()


@attrs.frozen
class _Branch:
    """Where a branch goes on.

    Attributes:
        name: The node that is next.
        changes: What the branch has added to the state since the fork.
        steps: Nodes run one after another so far.
    """

    name: str
    changes: Mapping[str, Any] = attrs.field(factory=dict[str, Any])
    steps: int = 0


@attrs.frozen
class _Stop:
    """Where a branch has stopped.

    Attributes:
        changes: As of the branch.
        steps: As of the branch.
        source: The node it stopped behind.
        join: The node that it waits for others to go on at; ``None`` at an end of the graph.
    """

    changes: Mapping[str, Any]
    steps: int
    source: str
    join: str | None


class Walk:
    """One run of a graph.

    Where several nodes follow, the run forks: each branch gets a copy of the state, and stops at
    an end or at a join. When all branches of a fork have stopped, those at the same join go on as
    one, with what each has added to the state, in the order of the fork: of a key that several
    wrote, the last one's counts. A join whose nodes are in different forks goes on in the outer.
    """

    def __init__(
        self, plan: Plan, callback: Callback, shared: Mapping[str, Any], max_steps: int
    ) -> None:
        self._plan = plan
        self._callback = callback
        self._shared = shared
        self._max_steps = max_steps

    async def run(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Go from the start to the end, or ends; return the state with all that was added."""
        stops = await self._go(_Branch(self._plan.start), _without_callback(state), None)
        return {**_without_callback(state), **_merged(stops)}

    async def _go(
        self, branch: _Branch, base: Mapping[str, Any], outside: frozenset[str] | None
    ) -> list[_Stop]:
        """Follow a branch to where it stops; several places if it has forked.

        Args:
            branch: Where it begins.
            base: The state at the fork it belongs to.
            outside: The nodes that its siblings may still run, ``None`` for none: it is no branch
                of a fork, and waits for nobody at a join.
        """
        plan = self._plan
        while True:
            node = plan.nodes[branch.name]
            state = {**base, **branch.changes}
            steps = self._step(branch)
            output = await node.invoke(state, self._callback, self._shared)
            changes = {**branch.changes, **_without_callback(output)}
            join = plan.join_of.get(node.name)
            if node.is_end or (join is not None and outside is not None):
                return [_Stop(changes, steps, node.name, None if node.is_end else join)]
            following = plan.after(node, output) if join is None else [join]
            if len(following) == 1:
                branch = _Branch(following[0], changes, steps)
                continue
            branches = [_Branch(name, steps=steps) for name in following]
            stops, joined = await self._fork(branches, {**base, **changes}, outside or _NOTHING)
            if joined is None:
                return [attrs.evolve(stop, changes={**changes, **stop.changes}) for stop in stops]
            branch = attrs.evolve(joined, changes={**changes, **joined.changes})

    def _step(self, branch: _Branch) -> int:
        if branch.steps >= self._max_steps:
            raise GraphStepsError(
                f"the graph took {self._max_steps} steps and would go on with {branch.name!r}: "
                "give Graph a larger max_steps=, or see why it goes round in a circle"
            )
        return branch.steps + 1

    async def _fork(
        self, branches: Sequence[_Branch], base: Mapping[str, Any], outside: frozenset[str]
    ) -> tuple[list[_Stop], _Branch | None]:
        """Run branches at the same time until none can go on, or all go on as one."""
        stopped: list[_Stop] = []
        while True:
            stopped += await self._go_all(branches, base, outside, stopped)
            ready = self._ready(stopped, outside)
            if not ready:
                return stopped, None
            branches = [_joined(join, stopped) for join in ready]
            stopped = [stop for stop in stopped if stop.join not in ready]
            if len(branches) == 1 and not stopped:
                return [], branches[0]

    async def _go_all(
        self,
        branches: Sequence[_Branch],
        base: Mapping[str, Any],
        outside: frozenset[str],
        stopped: Iterable[_Stop],
    ) -> list[_Stop]:
        ahead = [self._plan.ahead(branch.name) for branch in branches]
        # Those that wait at a join already count as if they were yet to arrive.
        waiting = [self._awaited(stop) for stop in stopped if stop.join is not None]

        def go(place: int) -> Callable[[], Awaitable[list[_Stop]]]:
            others = ahead[:place] + ahead[place + 1 :] + waiting
            return lambda: self._go(branches[place], base, outside.union(*others))

        parts = await _together([go(place) for place in range(len(branches))])
        return [stop for part in parts for stop in part]

    def _awaited(self, stop: _Stop) -> frozenset[str]:
        return _NOTHING if stop.join is None else self._plan.ahead(stop.join) | {stop.source}

    def _ready(self, stopped: Sequence[_Stop], outside: frozenset[str]) -> list[str]:
        """Return the joins that go on: nothing that they wait for can arrive any more."""
        joins = list(dict.fromkeys(stop.join for stop in stopped if stop.join is not None))
        ready = [join for join in joins if self._is_ready(join, joins, stopped, outside)]
        if not ready and not outside:
            # They wait for each other.
            return joins[:1]
        return ready

    def _is_ready(
        self, join: str, joins: Iterable[str], stopped: Iterable[_Stop], outside: frozenset[str]
    ) -> bool:
        there = {stop.source for stop in stopped if stop.join == join}
        others = [self._plan.ahead(other) for other in joins if other != join]
        return not (self._plan.sources[join] - there) & outside.union(*others)


def _joined(join: str, stopped: Iterable[_Stop]) -> _Branch:
    arrived = [stop for stop in stopped if stop.join == join]
    return _Branch(join, _merged(arrived), max(stop.steps for stop in arrived))


def _merged(stops: Iterable[_Stop]) -> dict[str, Any]:
    return {key: value for stop in stops for key, value in stop.changes.items()}


def _without_callback(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what may become part of the state: a run's stream is none of its results."""
    if not isinstance(values.get("callback"), Callback):
        return values
    return {key: value for key, value in values.items() if key != "callback"}


async def _together(calls: Sequence[Callable[[], Awaitable[T]]]) -> list[T]:
    """Await all at the same time; the first exception cancels the others, and is raised."""
    results: dict[int, T] = {}
    failures: list[BaseException] = []
    cancellations: list[BaseException] = []

    async def run(place: int, call: Callable[[], Awaitable[T]]) -> None:
        try:
            results[place] = await call()
        except anyio.get_cancelled_exc_class() as exc:
            cancellations.append(exc)
            raise
        except BaseException as exc:
            # Raised below as it is: a task group would wrap it.
            failures.append(exc)
            group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        for place, call in enumerate(calls):
            group.start_soon(run, place, call)
    for failure in failures[1:]:
        logger.error("another branch failed, too", exc_info=failure)
    # A branch may be cancelled by itself, by something it awaits; then so is the run.
    for exc in (*failures, *cancellations):
        raise exc
    return [results[place] for place in range(len(calls))]
