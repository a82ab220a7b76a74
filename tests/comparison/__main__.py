"""Run the probes over every library that is installed: ``python -m tests.comparison``."""

import argparse
import sys
from collections.abc import Sequence

from tests.comparison.catalogue import DISTRIBUTIONS, LIBRARIES, OURS, PROBES, installed
from tests.comparison.page import PAGE, block, with_block
from tests.comparison.runner import probed
from tests.comparison.verdicts import Verdict


def main(arguments: Sequence[str] | None = None) -> int:
    """Print who survives what; write the page if every peer is there."""
    parser = argparse.ArgumentParser(prog="python -m tests.comparison", description=__doc__)
    parser.add_argument("--dry-run", action="store_true", help="do not write the page")
    options = parser.parse_args(arguments)
    versions = installed()
    verdicts = {
        name: probed(name, list(PROBES), _say) for name in LIBRARIES if name in {OURS, *versions}
    }
    sys.stdout.write(_table(verdicts))
    if absent := [name for name in DISTRIBUTIONS if name not in versions]:
        sys.stdout.write(f"not installed: {', '.join(absent)}; the page needs all of them\n")
        return 1
    if not options.dry_run:
        page = PAGE.read_text("utf-8")
        PAGE.write_text(with_block(page, block(verdicts, versions)), "utf-8")
        sys.stdout.write(f"wrote {PAGE}\n")
    return 0


def _say(library: str, probe: str) -> None:
    sys.stderr.write(f"{library}: {probe}\n")


def _table(verdicts: dict[str, dict[str, Verdict]]) -> str:
    rows = [["", *verdicts]]
    rows += [[probe, *(found[probe].word for found in verdicts.values())] for probe in PROBES]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        + "\n"
        for row in rows
    )


if __name__ == "__main__":
    sys.exit(main())
