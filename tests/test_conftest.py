"""The rules of the suite itself hold: what is skipped in CI, and which event loops run."""

from pathlib import Path

import pytest

import callbackkit

ROOT = Path(__file__).parents[1]

SKIPPED = """
import pytest

@pytest.mark.real_server
def test_needs_a_server():
    pytest.skip("none here")

def test_needs_nothing():
    pytest.skip("not today")
"""

HEAVY = """
import pytest

@pytest.mark.torture
def test_for_hours(): pass

@pytest.mark.typing
def test_types(): pass

def test_at_once(): pass
"""


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch):
    """Return a function that runs a module as a suite with our configuration and conftest."""
    monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)  # not worth measuring
    monkeypatch.setenv("PYTHONPATH", str(Path(callbackkit.__file__).parents[1]))

    def run(source: str, *options: str) -> pytest.RunResult:
        for name in ("pyproject.toml", "tests/conftest.py"):
            (pytester.path / Path(name).name).write_bytes((ROOT / name).read_bytes())
        pytester.makepyfile(source)
        return pytester.runpytest_subprocess(".", *options)

    return run


@pytest.mark.parametrize(("ci", "failed"), [("true", 1), ("", 0)])
def test_ci_allows_no_skip_of_a_real_server(run, monkeypatch, ci: str, failed: int) -> None:
    monkeypatch.setenv("CI", ci)
    run(SKIPPED).assert_outcomes(failed=failed, skipped=2 - failed)


def test_an_async_test_runs_on_both_event_loops(run) -> None:
    result = run("async def test_it(): pass", "-v")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines_random(["*test_it?asyncio? PASSED*", "*test_it?trio? PASSED*"])


def test_heavy_tests_are_left_out_unless_asked_for(run) -> None:
    run(HEAVY).assert_outcomes(passed=1, deselected=2)
    run(HEAVY, "-m", "torture").assert_outcomes(passed=1, deselected=2)


def test_a_warning_is_an_error(run) -> None:
    run("import warnings\ndef test_it(): warnings.warn('careful')").assert_outcomes(failed=1)
