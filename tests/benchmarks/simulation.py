"""Simulate many workers that share one Redis: ``python -m tests.benchmarks.simulation``.

What each call costs the server is noted, or measured with ``--measure``; ``--check`` holds the
simulation against real managers on a real server.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence

import attrs

from tests.benchmarks.simulation_fleet import Outcome, Simulation
from tests.benchmarks.simulation_model import NOTED, Costs, Fleet, State

# Seconds until a fleet is at rest, and that it is watched for then.
_WARM, _WATCHED = 5, 10

Line = tuple[str, Outcome]
Scenario = Callable[[int, Costs, int], Iterator[Line]]


def watched(fleet: Fleet, costs: Costs, seed: int, *, seconds: int = _WATCHED) -> Outcome:
    """Return what a fleet does, once it is at rest."""
    simulation = Simulation(fleet, costs, seed=seed)
    simulation.run(_WARM + seconds)
    return simulation.outcome(_WARM)


def idle(workers: int, costs: Costs, seed: int) -> Iterator[Line]:
    """Workers with a transport, to which nothing happens."""
    fleet = Fleet(workers=workers, follows=0)
    for name, each in (
        ("as it is", fleet),
        ("without a transport", attrs.evolve(fleet, engines=False)),
        ("1 partition", attrs.evolve(fleet, partitions=1)),
        ("32 partitions", attrs.evolve(fleet, partitions=32)),
        ("looking around every 5 s", attrs.evolve(fleet, reconcile=5.0)),
        ("10 sessions followed by each", attrs.evolve(fleet, follows=10)),
        ("100 sessions followed by each", attrs.evolve(fleet, follows=100)),
    ):
        yield name, watched(each, costs, seed)


def following(workers: int, costs: Costs, seed: int) -> Iterator[Line]:
    """Events of sessions that another worker follows; no transports, one partition."""
    fleet = Fleet(workers=workers, engines=False, follows=10, partitions=1)
    for part in (0.01, 0.1, 1.0, 2.0):
        rate = workers * part
        outcome = watched(attrs.evolve(fleet, followed=rate), costs, seed)
        yield f"{rate:,g} events a second", outcome


def delivering(workers: int, costs: Costs, seed: int) -> Iterator[Line]:
    """Events that a transport delivers, told to all workers, or to the one that appends them."""
    for size in (workers // 100, workers // 10, workers):
        for rate in (1, 10, 100):
            for fleet in _rules(Fleet(workers=max(size, 1), follows=0, owed=rate)):
                # There is nothing to be learned from a queue that only grows.
                if fleet.tells == "everybody" and size * rate > 2_000:
                    continue
                name = f"{fleet.workers:_} workers, {rate} a second, told to {fleet.tells}"
                yield name, watched(fleet, costs, seed)


def _rules(fleet: Fleet) -> tuple[Fleet, Fleet]:
    return fleet, attrs.evolve(fleet, tells="itself", asks="rung")


def away(workers: int, costs: Costs, seed: int) -> Iterator[Line]:
    """A server that is away, and comes back with all it had; nothing is owed."""
    outages: tuple[tuple[str, State, int], ...] = (
        ("refuses for 60 s", "refusing", 60),
        ("says nothing for 60 s", "silent", 60),
        ("says nothing for 3 s", "silent", 3),
    )
    for name, state, seconds in outages:
        for jitter in (0.0, 0.25):
            fleet = Fleet(workers=workers, follows=10, jitter=jitter)
            simulation = Simulation(fleet, costs, seed=seed)
            simulation.run(_WARM)
            simulation.go_away(state)
            simulation.run(seconds)
            back = _WARM + seconds
            simulation.redis.go_on()
            simulation.run(40)
            for begin, end in ((0, 5), (5, 10), (10, 40)):
                span = f"second {begin} to {end}, jitter {jitter:.0%}"
                yield f"{name}: {span}", simulation.outcome(back + begin, back + end)


def killed(workers: int, costs: Costs, seed: int) -> Iterator[Line]:
    """A tenth of the workers deliver what takes 10 s; half of them are killed. A lease is 25 s."""
    size = max(workers // 10, 2)
    for fleet in _rules(Fleet(workers=size, follows=0, owed=size / 20, attempt=10.0)):
        simulation = Simulation(fleet, costs, seed=seed)
        simulation.run(30)
        simulation.kill(size // 2)
        simulation.run(40)
        for begin, end in ((-10, 0), (0, 15), (15, 25), (25, 40)):
            span = f"{begin} s to {end} s after, told to {fleet.tells}"
            yield span, simulation.outcome(30 + begin, 30 + end)
        taken_over = [at - 30 for at in simulation.taken_over]
        when = f", {min(taken_over):.1f} to {max(taken_over):.1f} s after" if taken_over else ""
        yield f"{len(taken_over)} deliveries taken over{when}", simulation.outcome(30)


SCENARIOS: dict[str, Scenario] = {
    "idle": idle,
    "following": following,
    "delivering": delivering,
    "away": away,
    "killed": killed,
}


def check(costs: Costs, seed: int) -> Iterator[str]:
    """Hold the simulation against real managers, and against a thousand that are replayed."""
    from tests.benchmarks.simulation_real import watched as really_watched
    from tests.benchmarks.simulation_replay import replayed
    from tests.stores.redis_server import Server

    for workers, rate in ((20, 0.0), (20, 2.0), (50, 0.0), (50, 1.0), (10, 10.0)):
        fleet = Fleet(workers=workers, owed=rate, follows=0)
        said = watched(fleet, costs, seed, seconds=20)
        with Server() as server:
            seen = really_watched(server, fleet, seconds=15.0, seed=seed)
        yield (
            f"{workers} managers, {rate:g} deliveries a second: {seen.calls:.0f} calls a second,"
            f" simulated {said.calls:.0f}; {seen.load:.1%} of a processor,"
            f" simulated {said.load:.1%}; {seen.cost:.0f} us each;"
            f" {seen.connections:.0f} connections each"
        )
    for workers in (100, 400, 1_000):
        fleet = Fleet(workers=workers, follows=0)
        said = watched(fleet, costs, seed)
        with Server() as server:
            told = replayed(server, fleet, seconds=10.0, seed=seed)
        cost = told.load / max(told.calls, 1.0) * 1e6
        yield (
            f"{workers} replayed: {told.calls:.0f} calls a second, simulated {said.calls:.0f};"
            f" {cost:.0f} us each, simulated {said.load / said.calls * 1e6:.0f}"
        )


def shown(lines: Iterator[Line]) -> Iterator[str]:
    """Lay outcomes out as text."""
    heads = ("calls/s", "load", "peak", "wait p50", "p99", "sent p50", "p99", "read p50", "p99")
    widths = (9, 7, 7, 10, 10, 10, 10, 10, 10)
    yield " " * 58 + "".join(f" {head:>{wide}}" for head, wide in zip(heads, widths, strict=True))
    for name, each in lines:
        times = (
            each.wait_p50, each.wait_p99, each.attempt_p50, each.attempt_p99, each.read_p50,
            each.read_p99,
        )  # fmt: skip
        told = " ".join(f"{'' if at is None else f'{at * 1e3:.1f} ms':>10}" for at in times)
        yield f"{name:58} {each.calls:9.0f} {each.load:7.1%} {each.peak:7.1%} {told}".rstrip()


def main(arguments: Sequence[str] | None = None) -> int:
    """Simulate what was asked for, and print it."""
    options = _parser().parse_args(arguments)
    costs = NOTED
    if options.measure:
        from tests.benchmarks.simulation_costs import measure
        from tests.stores.redis_server import Server

        with Server() as server:
            costs = measure(server)
    print("microseconds of the server:", end=" ")
    print(", ".join(f"{name} {cost:.1f}" for name, cost in attrs.asdict(costs).items()))
    for name in options.only or SCENARIOS:
        scenario = SCENARIOS[name]
        print(f"\n{name}, {options.workers:_} workers: {scenario.__doc__}")
        for line in shown(scenario(options.workers, costs, options.seed)):
            print(line, flush=True)
    if options.check:
        print("\nheld against real ones:")
        for line in check(costs, options.seed):
            print(line, flush=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.simulation",
        description=__doc__,
    )
    parser.add_argument("--workers", type=int, default=1_000, help="how many (default 1000)")
    parser.add_argument("--seed", type=int, default=1, help="seed of all chance (default 1)")
    parser.add_argument(
        "--only",
        action="append",
        choices=list(SCENARIOS),
        metavar="SCENARIO",
        help=f"simulate this; may be given again. One of: {', '.join(SCENARIOS)}",
    )
    parser.add_argument("--measure", action="store_true", help="measure what calls cost first")
    parser.add_argument("--check", action="store_true", help="hold it against real managers")
    return parser


if __name__ == "__main__":
    sys.exit(main())
