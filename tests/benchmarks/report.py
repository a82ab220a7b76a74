"""Show the rows of a table, and how far a run has come."""

import platform
import sys
from collections.abc import Sequence

import attrs

from tests.benchmarks.harness import MIN_ROUNDS, Row, Table

BINDING = ("CPython", "3.13")
"""The interpreter the targets are set for."""


def is_binding(rounds: int) -> bool:
    """Tell whether the verdicts of this run count."""
    version = ".".join(platform.python_version_tuple()[:2])
    return (platform.python_implementation(), version) == BINDING and rounds >= MIN_ROUNDS


def heading(rounds: int) -> str:
    """Say what runs, and whether its verdicts count."""
    ran = f"{platform.python_implementation()} {platform.python_version()}, {rounds} rounds"
    if is_binding(rounds):
        return ran
    return f"{ran}; targets bind on {' '.join(BINDING)} with at least {MIN_ROUNDS} rounds"


def rendered(name: str, table: Table, rows: Sequence[Row]) -> str:
    """Lay out a table as text."""
    sign = ">=" if table.ratio == "speed" else "<="
    head = (
        "",
        "each",
        "ratio" if table.ratio == "cost" else "faster",
        "spread",
        "target",
        "verdict",
    )
    cells = [head, *(_cells(row, sign) for row in rows)]
    if table.unit != "seconds":
        show = _SHOWN[table.unit]
        cells = [show(line, row) for line, row in zip(cells, [None, *rows], strict=True)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if index else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]
    return "\n".join([f"{name}: {table.title}", *lines])


def as_json(name: str, table: Table, rows: Sequence[Row]) -> dict[str, object]:
    """Make a table of plain values."""
    return {
        "name": name,
        "title": table.title,
        "unit": table.unit,
        "ratio": table.ratio,
        "rows": [attrs.asdict(row) for row in rows],
    }


class Progress:
    """Tells on standard error how far a run is; outside a terminal, one line for each table."""

    def __init__(self, tables: int) -> None:
        self._tables = tables
        self._table = 0
        self._name = ""

    def begin(self, name: str) -> None:
        """Say that a table begins."""
        self._table += 1
        self._name = f"[{self._table}/{self._tables}] {name}"
        self._write(f"{self._name}: preparing", last=not sys.stderr.isatty())

    def round(self, done: int, total: int) -> None:
        """Say how many rounds are done."""
        if sys.stderr.isatty():
            self._write(f"{self._name}: round {done}/{total}", last=done == total)

    def _write(self, text: str, *, last: bool) -> None:
        start = "\r\x1b[K" if sys.stderr.isatty() else ""
        print(f"{start}{text}", end="\n" if last else "", file=sys.stderr, flush=True)


def _cells(row: Row, sign: str) -> tuple[str, ...]:
    if row.cost is None:
        return (row.name, "absent", "", "", "", "")
    target = "" if row.target is None else f"{sign} {row.target:g}"
    if row.stretch is not None:
        target += f" ({row.stretch:g})"
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
    spread = "" if row.spread is None else f"{row.spread:.2f}"
    return (row.name, _time(row.cost), ratio, spread, target, row.verdict)


def _in_bytes(line: tuple[str, ...], row: Row | None) -> tuple[str, ...]:
    each = line[1] if row is None or row.cost is None else f"{row.cost:.0f} B"
    return (line[0], each, *line[4:])


def _in_microseconds(line: tuple[str, ...], row: Row | None) -> tuple[str, ...]:
    each = line[1] if row is None or row.cost is None else f"{row.cost * 1e6:.2f} us"
    return (line[0], each, *line[4:])


def _in_a_second(line: tuple[str, ...], row: Row | None) -> tuple[str, ...]:
    each = line[1] if row is None or row.cost is None else f"{row.cost:.1f} a second"
    return (line[0], each, *line[4:])


_SHOWN = {"bytes": _in_bytes, "microseconds": _in_microseconds, "a second": _in_a_second}


def _time(seconds: float) -> str:
    """Write a duration with the unit that suits it."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.2f} {unit}"
    return f"{seconds / 1e-9:.0f} ns"
