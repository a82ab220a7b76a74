"""Run the benchmarks: ``python -m tests.benchmarks``."""

import argparse
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.benchmarks.harness import Row, run_table
from tests.benchmarks.report import Progress, as_json, heading, is_binding, rendered
from tests.benchmarks.tables import all_tables


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tables asked for; return 1 for a missed target if asked to be strict."""
    options = _parser().parse_args(arguments)
    tables = all_tables()
    names = options.only or list(tables)
    rng = random.Random(options.seed)
    progress = Progress(len(names))
    print(heading(options.rounds))
    results = []
    missed: list[str] = []
    for name in names:
        progress.begin(name)
        with tables[name]() as table:
            rows = run_table(
                table,
                rounds=options.rounds,
                min_time=options.min_time,
                rng=rng,
                progress=progress.round,
            )
        print(f"\n{rendered(name, table, rows)}", flush=True)
        results.append(as_json(name, table, rows))
        missed.extend(_missed(name, rows))
    print("\n" + (f"missed: {'; '.join(missed)}" if missed else "every target met"))
    if options.json:
        document = {"ran": heading(options.rounds), "tables": results}
        options.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return 1 if options.strict and missed and is_binding(options.rounds) else 0


def _missed(name: str, rows: Sequence[Row]) -> list[str]:
    return [f"{name} ({row.name})" for row in rows if row.verdict == "MISSED"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=_at_least_one, default=11, help="rounds (default 11)")
    parser.add_argument(
        "--min-time",
        type=float,
        default=0.01,
        metavar="SECONDS",
        help="how long a case runs in a round at least (default 0.01)",
    )
    parser.add_argument(
        "--only",
        action="append",
        choices=list(all_tables()),
        metavar="TABLE",
        help=f"run this table; may be given again. One of: {', '.join(all_tables())}",
    )
    parser.add_argument("--seed", type=int, default=None, help="seed of the shuffled order")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there, too")
    parser.add_argument("--strict", action="store_true", help="exit with 1 for a missed target")
    return parser


def _at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


if __name__ == "__main__":
    sys.exit(main())
