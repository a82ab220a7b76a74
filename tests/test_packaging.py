"""What the project says of itself in one place agrees with what it says in another."""

import re
import subprocess
import tomllib
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
README = (ROOT / "README.md").read_text("utf-8")


def requirements() -> Iterator[str]:
    """Yield every requirement of the project, those of development too."""
    yield from PYPROJECT["build-system"]["requires"]
    yield from PYPROJECT["project"]["dependencies"]
    for group in PYPROJECT["dependency-groups"].values():
        yield from (requirement for requirement in group if isinstance(requirement, str))


def test_three_packages_are_needed_at_run_time() -> None:
    needed = {re.split(r"[^\w-]", found)[0] for found in PYPROJECT["project"]["dependencies"]}
    assert needed == {"anyio", "attrs", "typing-extensions"}


@pytest.mark.parametrize("requirement", sorted(set(requirements())))
def test_a_dependency_has_a_floor_no_cap_and_a_reason(requirement: str) -> None:
    name, floor = re.fullmatch(r"([\w-]+)(?:\[\w+\])?>=([\d.]+)", requirement).groups()
    assert floor
    assert f"**{name}**" in (ROOT / "docs" / "decisions.md").read_text("utf-8")


def test_ci_runs_the_test_line_of_the_readme() -> None:
    script = (ROOT / ".ci" / "run").read_text("utf-8")
    pattern = re.search(r"line=\$\(grep -E '(.+)' README\.md\)", script)[1]
    lines = [line for line in README.splitlines() if re.match(pattern, line)]
    assert len(lines) == 1
    [block] = re.findall(r"```sh\n(.+?)```", README, re.DOTALL)
    assert block.splitlines()[1:] == lines


def test_ci_is_a_sound_script() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", script], check=True)


def test_the_supported_interpreters_are_the_same_everywhere() -> None:
    noxfile = (ROOT / "noxfile.py").read_text("utf-8")
    supported = re.findall(r'"(3\.\d+)"', re.search(r"SUPPORTED = \[(.+)\]", noxfile)[1])
    classified = [
        found.rpartition(" ")[2]
        for found in PYPROJECT["project"]["classifiers"]
        if re.search(r":: 3\.\d+$", found)
    ]
    assert classified == supported
    assert PYPROJECT["project"]["requires-python"] == f">={supported[0]}"
    assert PYPROJECT["tool"]["mypy"]["python_version"] == supported[0]


def test_the_package_tells_type_checkers_that_it_is_typed() -> None:
    assert files("callbackkit").joinpath("py.typed").is_file()


def test_the_changelog_has_the_version() -> None:
    assert PYPROJECT["project"]["version"] in (ROOT / "CHANGELOG.md").read_text("utf-8")
