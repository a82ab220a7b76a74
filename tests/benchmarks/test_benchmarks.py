import json
import random
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.__main__ import main
from tests.benchmarks.harness import Case, Measure, Row, Table, peer, run_table, verdict
from tests.benchmarks.report import is_binding, rendered
from tests.benchmarks.tables import Build, all_tables

TINY = all_tables(registered=20, streamed=200, clients=2)
run_once = partial(run_table, rounds=1, min_time=0.0, rng=random.Random(1))


def costing(each: float) -> Measure:
    return lambda number: number * each


def ours(rows: list[Row]) -> list[Row]:
    return [row for row in rows if "callbackkit" in row.name and "limit" not in row.name]


def starts_a_server(name: str) -> bool:
    return name.startswith(("fan-out", "redis")) or name == "webhooks"


# Those that take seconds whatever their size, of which another one of the kind is tried always.
SLOW = {
    "fan-out-idle", "fan-out-sse", "memory", "redis-hand-over", "redis-idle", "stream-thread",
    "stream-thread-latency-p50", "stream-thread-latency-p99",
}  # fmt: skip


def parameters() -> list[Any]:
    """Each table, those that start servers marked so, and the slow ones left to torture."""
    assert TINY.keys() >= SLOW
    return [
        pytest.param(
            build,
            id=name,
            marks=[pytest.mark.real_server] * starts_a_server(name)
            + [pytest.mark.torture] * (name in SLOW),
        )
        for name, build in TINY.items()
    ]


@pytest.mark.parametrize("build", parameters())
def test_every_case_of_a_table_runs(build: Build) -> None:
    with build() as table:
        rows = run_once(table)
    assert [row.name for row in rows] == [case.name for case in table.cases]
    assert all(row.cost is not None for row in ours(rows))
    judged = [row for row in rows if row.target is not None]
    assert judged
    assert all(row.cost is not None for row in judged)


def test_a_ratio_is_to_the_limit_of_the_same_round() -> None:
    slower_each_round = iter([1.0, 10.0, 100.0])
    speed = {"now": 1.0}

    def limit(number: int) -> float:
        return number * speed["now"]

    def case(number: int) -> float:
        return 3 * number * speed["now"]

    def next_round(done: int, total: int) -> None:
        speed["now"] = next(slower_each_round, 0.0)

    table = Table("t", [Case("limit", limit), Case("case", case, target=2.0)], number=5)
    rows = run_table(table, rounds=3, rng=random.Random(1), progress=next_round)
    assert rows[1] == Row("case", 30.0, 3.0, 0.0, 2.0, None, "MISSED")


def test_bytes_are_judged_as_they_are() -> None:
    table = Table("t", [Case("case", costing(299), target=300)], unit="bytes", number=1)
    [row] = run_once(table)
    assert (row.cost, row.ratio, row.verdict) == (299, None, "met")


def test_microseconds_are_judged_as_they_are() -> None:
    cases = [Case("quick", costing(5e-6), target=5), Case("slow", costing(6e-6), target=5)]
    table = Table("t", cases, unit="microseconds", number=1)
    rows = run_once(table)
    assert [row.verdict for row in rows] == ["met", "MISSED"]
    assert "6.00 us" in rendered("t", table, rows)


def test_what_there_is_in_a_second_is_judged_as_it_is() -> None:
    cases = [Case("few", costing(20), target=20), Case("many", costing(20.5), target=20)]
    table = Table("t", cases, unit="a second", number=1)
    rows = run_once(table)
    assert [row.verdict for row in rows] == ["met", "MISSED"]
    assert "20.5 a second" in rendered("t", table, rows)


@pytest.mark.parametrize(
    ("value", "said"), [(1.0, "stretch"), (1.5, "stretch"), (2.0, "met"), (2.1, "MISSED")]
)
def test_a_target_is_met_by_what_does_not_pass_it(value: float, said: str) -> None:
    assert verdict(value, 2.0, 1.5) == said


@pytest.mark.parametrize(
    ("value", "said"), [(7.0, "stretch"), (6.5, "stretch"), (6.0, "met"), (5.9, "MISSED")]
)
def test_a_least_target_is_met_by_what_reaches_it(value: float, said: str) -> None:
    assert verdict(value, 6.0, 6.5, at_least=True) == said


def test_a_ratio_of_speed_says_how_many_times_faster_than_the_limit() -> None:
    cases = [Case("limit", costing(6.0)), Case("case", costing(2.0), target=3.0)]
    table = Table("t", cases, ratio="speed", number=1)
    rows = run_once(table)
    assert (rows[1].ratio, rows[1].verdict) == (3.0, "met")
    assert ">= 3" in rendered("name", table, rows)


def test_a_case_may_have_another_limit_than_the_first() -> None:
    table = Table(
        "t",
        [
            Case("limit", costing(1.0)),
            Case("other", costing(4.0)),
            Case("case", costing(6.0), target=2.0, beside="other"),
        ],
        number=1,
    )
    assert run_once(table)[2].ratio == 1.5


def test_a_peer_that_is_not_installed_is_shown_as_absent() -> None:
    def build() -> Measure:
        import_module("no_such_package_here")
        return costing(1.0)

    table = Table("t", [Case("limit", costing(1.0)), peer("somebody", build)])
    rows = run_once(table)
    assert rows[1].verdict == "absent"
    assert "absent" in rendered("name", table, rows)


def test_without_its_limit_a_case_has_no_verdict() -> None:
    table = Table("t", [Case("limit", None), Case("case", costing(1.0), target=2.0)])
    assert run_once(table)[1].verdict == ""


def test_few_rounds_give_no_binding_verdict() -> None:
    assert not is_binding(rounds=6)


def test_the_command_prints_tables_and_writes_json(tmp_path: Path, capsys) -> None:
    results = tmp_path / "results.json"
    quick = ["--rounds", "1", "--min-time", "0", "--seed", "1", "--strict", "--json", str(results)]
    assert main(["--only", "failure", "--only", "sync-1", *quick]) == 0
    out, err = capsys.readouterr()
    assert "failure: one of 10 callbacks raises" in out
    assert "[2/2] sync-1" in err
    tables = json.loads(results.read_text("utf-8"))["tables"]
    assert [table["name"] for table in tables] == ["failure", "sync-1"]
    assert tables[0]["rows"][1]["target"] == 2.0
