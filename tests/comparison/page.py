"""The part of the documentation that a run of the probes writes."""

import inspect
import platform
import re
from collections.abc import Mapping
from pathlib import Path

from tests.comparison.catalogue import LIBRARIES, OURS, PROBES
from tests.comparison.verdicts import Verdict

PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "comparison.md"
BEGIN = "<!-- written by `python -m tests.comparison`, from here -->"
END = "<!-- to here -->"

Verdicts = Mapping[str, Mapping[str, Verdict]]
"""By library and probe."""


def python_version() -> str:
    """Name the interpreter, as the page does."""
    return f"CPython {'.'.join(platform.python_version_tuple()[:2])}"


def block(verdicts: Verdicts, versions: Mapping[str, str]) -> str:
    """Write versions, table and details as Markdown."""
    titles = [f"{name} {versions[name]}" if name in versions else name for name in LIBRARIES]
    rows = [
        ["probe", *titles],
        ["---"] * (len(LIBRARIES) + 1),
        *([probe, *(verdicts[name][probe].word for name in LIBRARIES)] for probe in PROBES),
    ]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    details = "\n\n".join(_details(probe, verdicts) for probe in PROBES)
    return f"Run on {python_version()}.\n\n{table}\n\n## The probes\n\n{details}"


def _details(probe: str, verdicts: Verdicts) -> str:
    """Say what a probe does, and what happens to those that do not survive it."""
    what = " ".join((inspect.getdoc(PROBES[probe]) or "").split())
    alike: dict[Verdict, list[str]] = {}
    for name in LIBRARIES:
        alike.setdefault(verdicts[name][probe], []).append(name)
    told = [
        f"- *{verdict.word}*: {', '.join(names)}; {verdict.detail}."
        for verdict, names in alike.items()
        if verdict.detail
    ]
    return "\n".join([f"**{probe}.** {what}", *(["", *told] if told else [])])


def with_block(page: str, written: str) -> str:
    """Return the page with its written part exchanged."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{written}\n\n{END}{after}"


def words(page: str) -> dict[str, dict[str, str]]:
    """Read the verdicts of the table back, by library and probe."""
    heads, rows = _table(page)
    names = [head.partition(" ")[0] for head in heads]
    return {
        name: {probe: cells[index] for probe, *cells in rows} for index, name in enumerate(names)
    }


def versions(page: str) -> dict[str, str]:
    """Read the versions of the peers that the page names, and that of the interpreter."""
    heads, _ = _table(page)
    named = dict(head.split(" ") for head in heads if head != OURS)
    ran = re.search(r"Run on (CPython [\d.]+)\.", page)
    return {**named, "python": ran[1] if ran else ""}


def _table(page: str) -> tuple[list[str], list[list[str]]]:
    """Return the heads of the columns but the first, and the rows."""
    lines = re.findall(r"^\| (.+) \|$", page.partition(BEGIN)[2].partition(END)[0], re.MULTILINE)
    head, _, *rows = [line.split(" | ") for line in lines]
    return head[1:], rows
