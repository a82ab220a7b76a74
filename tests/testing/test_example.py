"""The tests that the examples and the documentation show pass, and find mistakes."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"

Run = Callable[[str, str], pytest.RunResult]


@pytest.fixture
def run(pytester: pytest.Pytester, plugin: list[str]) -> Run:
    """Return a function that runs the example with a text of the tested module replaced."""

    def run(old: str, new: str) -> pytest.RunResult:
        orders = (EXAMPLES / "orders.py").read_text("utf-8")
        assert old in orders
        pytester.makepyfile(
            orders=orders.replace(old, new),
            test_orders=(EXAMPLES / "test_orders.py").read_text("utf-8"),
        )
        return pytester.runpytest_inprocess(*plugin)

    return run


def test_it_passes_on_both_event_loops(run: Run) -> None:
    run("", "").assert_outcomes(passed=10)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("(ORDER_PLACED, order)", "(ORDER_PLACED, item)"),
        ("left >= 0", "True"),
        ("left == 0", "left == 1"),
        ("(STOCK_DELIVERED, item)", "(STOCK_DELIVERED, quantity)"),
    ],
)
def test_a_mistake_is_found_on_both(run: Run, old: str, new: str) -> None:
    assert run(old, new).parseoutcomes()["failed"] >= 2


def test_the_test_on_the_page_passes(pytester: pytest.Pytester, plugin: list[str]) -> None:
    page = (ROOT / "docs" / "how-to" / "test-callbacks.md").read_text("utf-8")
    pytester.makepyfile("\n".join(re.findall(r"```python\n(.+?)```", page, re.DOTALL)))
    result = pytester.runpytest_inprocess(*plugin, "-o", "anyio_mode=auto")
    result.assert_outcomes(passed=2)
