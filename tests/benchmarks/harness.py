"""Run the cases of a table side by side and divide each by the limit case of the same round.

Time is that of the processor spent by this process: none of the cases waits for anything, and what
else runs on the machine then matters less.
"""

import asyncio
import gc
import random
from collections.abc import Awaitable, Callable, Sequence
from itertools import repeat
from statistics import median, quantiles
from time import process_time
from timeit import Timer
from typing import Literal

import attrs

#: Runs something the given number of times and returns what that cost in all, in the table's unit.
Measure = Callable[[int], float]
Unit = Literal["seconds", "microseconds", "bytes", "a second"]
Ratio = Literal["cost", "speed"]
Verdict = Literal["stretch", "met", "MISSED", "absent", ""]

MIN_ROUNDS = 7
"""Fewer rounds than this give no verdict."""


@attrs.frozen
class Case:
    """One row of a table.

    Attributes:
        name: What the row is called.
        measure: How it is measured; ``None`` says that the package it needs is not installed.
        target: The most that is allowed, of a speed the least; ``None`` for a row that is only
            shown.
        stretch: What would be better than the target.
        beside: Name of the case that is its limit, if that is not the first of the table.
    """

    name: str
    measure: Measure | None
    target: float | None = None
    stretch: float | None = None
    beside: str | None = None


@attrs.frozen
class Table:
    """Cases that are measured together.

    Attributes:
        title: What is measured, in a line.
        cases: The rows. The first is the limit when the unit is seconds.
        unit: Of seconds, targets are ratios to the limit; of microseconds, bytes and what there is
            in a second, they are the value itself. What is measured is in seconds, in bytes, or
            how many in a second.
        ratio: Whether a ratio says how much more than the limit a case costs, or how many times
            faster than the limit it is.
        number: How often a case runs in a round; ``None`` finds a number that takes long enough.
        repeat: Rounds are multiplied by this.
    """

    title: str
    cases: Sequence[Case]
    unit: Unit = "seconds"
    ratio: Ratio = "cost"
    number: int | None = None
    repeat: int = 1


@attrs.frozen
class Row:
    """What a case came to.

    Attributes:
        cost: Median cost of one run, in the table's unit; ``None`` when absent.
        ratio: Median of the ratios to the limit case of the same round.
        spread: Distance between the quartiles of the ratios.
    """

    name: str
    cost: float | None
    ratio: float | None
    spread: float | None
    target: float | None
    stretch: float | None
    verdict: Verdict


def timed(statement: str, **names: object) -> Measure:
    """Measure a synchronous statement; garbage collection is off while it runs."""
    return Timer(statement, timer=process_time, globals=names).timeit


def awaited(
    runner: asyncio.Runner, call: Callable[..., Awaitable[object]], *arguments: object
) -> Measure:
    """Measure an awaited call in the runner's loop; garbage collection is off while it runs."""

    async def measure(number: int) -> float:
        gc.disable()
        began = process_time()
        try:
            for _ in repeat(None, number):
                await call(*arguments)
            return process_time() - began
        finally:
            gc.enable()

    return lambda number: runner.run(measure(number))


def peer(name: str, build: Callable[..., Measure], *arguments: object) -> Case:
    """Build the case of another package, or an absent one when it is not installed."""
    try:
        return Case(name, build(*arguments))
    except ModuleNotFoundError:
        return Case(name, None)


def run_table(
    table: Table,
    *,
    rounds: int,
    min_time: float = 0.01,
    rng: random.Random,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Row]:
    """Measure every case once per round, in a new order each round.

    Args:
        table: What to measure.
        rounds: How many rounds, before the table's own factor.
        min_time: How long a case runs in a round at least, in seconds.
        rng: Shuffles the cases.
        progress: Called with the rounds done and the rounds there are.

    Returns:
        A row for each case, in the table's order.
    """
    present = [(case.name, case.measure) for case in table.cases if case.measure is not None]
    numbers = {name: table.number or _enough(measure, min_time) for name, measure in present}
    costs: dict[str, list[float]] = {case.name: [] for case in table.cases}
    total = rounds * table.repeat
    for done in range(total):
        progress(done, total)
        for name, measure in rng.sample(present, len(present)):
            gc.collect()
            costs[name].append(measure(numbers[name]) / numbers[name])
    progress(total, total)
    first = table.cases[0].name
    return [
        _row(table, case, costs[case.name], costs[case.beside or first]) for case in table.cases
    ]


def verdict(
    value: float | None, target: float | None, stretch: float | None, *, at_least: bool = False
) -> Verdict:
    """Judge a value that should be small, or large where it is to be *at_least* the target."""
    if value is None or target is None:
        return ""
    if at_least:
        value, target, stretch = -value, -target, None if stretch is None else -stretch
    if stretch is not None and value <= stretch:
        return "stretch"
    return "met" if value <= target else "MISSED"


def _row(table: Table, case: Case, costs: list[float], limit: list[float]) -> Row:
    """Sum up the rounds of a case."""
    if not costs:
        return Row(case.name, None, None, None, case.target, case.stretch, "absent")
    cost = median(costs)
    is_speed = table.ratio == "speed"
    pairs = zip(limit, costs, strict=True) if is_speed else zip(costs, limit, strict=True)
    ratios = [one / other for one, other in pairs] if limit else []
    ratio = median(ratios) if ratios and table.unit == "seconds" else None
    value = ratio if table.unit == "seconds" else cost
    if table.unit == "microseconds":
        value = cost * 1e6
    judged = verdict(value, case.target, case.stretch, at_least=is_speed)
    spread = _spread(ratios) if ratio is not None else None
    return Row(case.name, cost, ratio, spread, case.target, case.stretch, judged)


def _spread(values: list[float]) -> float:
    """The distance between the quartiles."""
    if len(values) < 2:
        return 0.0
    first, _, third = quantiles(values, n=4)
    return third - first


def _enough(measure: Measure, min_time: float) -> int:
    """Find a number of runs that takes at least that many seconds."""
    number = 1
    while (took := measure(number)) < min_time and number < 1_000_000:
        wanted = number * min_time / took if took else number * 10
        number = min(number * 10, int(wanted) + 1)
    return number
