"""Right and wrong programs: type checkers complain about the wrong lines and about no other.

A wrong line ends with ``# E``; where only one checker sees it, with ``# E mypy`` or
``# E pyright``, and the line above says why.
"""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytestmark = [pytest.mark.typing, pytest.mark.timeout(300)]

PROGRAMS = sorted(Path(__file__).parent.joinpath("programs").glob("*.py"))
MARK = re.compile(r"  # E(?: (mypy|pyright))?$")

# A wrong line: name of the program and number of the line.
Line = tuple[str, int]


def marked(checker: str, program: Path) -> Iterator[Line]:
    for number, text in enumerate(program.read_text("utf-8").splitlines(), 1):
        mark = MARK.search(text)
        if mark and mark[1] in {None, checker}:
            yield program.name, number


def run(*command: str | Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, text=True, check=False
    )
    assert done.returncode in {0, 1}, done.stdout + done.stderr
    return done.stdout


def mypy(folder: Path, programs: list[Path]) -> dict[Line, str]:
    """Return the errors that mypy finds."""
    config = folder / "mypy.ini"
    config.write_text("[mypy]\nstrict = true\n", "utf-8")
    cache = f"--cache-dir={folder}"
    report = run("mypy", "--config-file", config, cache, "--output=json", *programs)
    found = [json.loads(line) for line in report.splitlines() if line.startswith("{")]
    return {
        (Path(error["file"]).name, error["line"]): error["message"]
        for error in found
        if error["severity"] == "error"
    }


def pyright(folder: Path, programs: list[Path]) -> dict[Line, str]:
    """Return the errors that pyright finds."""
    config = folder / "pyrightconfig.json"
    include = [os.path.relpath(program, folder) for program in programs]
    settings = {"include": include, "typeCheckingMode": "strict"}
    config.write_text(json.dumps(settings), "utf-8")
    report = run("pyright", "--project", config, "--pythonpath", sys.executable, "--outputjson")
    return {
        (Path(error["file"]).name, error["range"]["start"]["line"] + 1): error["message"]
        for error in json.loads(report)["generalDiagnostics"]
        if error["severity"] == "error"
    }


CHECKERS = [mypy, pyright]
Checker = Callable[[Path, list[Path]], dict[Line, str]]


@pytest.mark.parametrize("checker", CHECKERS)
def test_the_wrong_lines_are_found_and_no_other(checker: Checker, tmp_path: Path) -> None:
    found = checker(tmp_path, PROGRAMS)
    wrong = {line for program in PROGRAMS for line in marked(checker.__name__, program)}
    assert {line: message for line, message in found.items() if line not in wrong} == {}
    assert wrong - found.keys() == set()


@pytest.mark.parametrize("checker", CHECKERS)
def test_a_checker_finds_what_is_wrong(checker: Checker, tmp_path: Path) -> None:
    """Without this, a checker that reads nothing would pass."""
    program = tmp_path / "program.py"
    program.write_text("x: int = 1\ny: int = 'one'\n", "utf-8")
    assert checker(tmp_path, [program]).keys() == {("program.py", 2)}


def test_every_program_has_right_and_wrong_lines() -> None:
    counts = Counter(name for program in PROGRAMS for name, _ in marked("mypy", program))
    assert counts.keys() == {program.name for program in PROGRAMS}
