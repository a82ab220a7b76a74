import random

import attrs
import pytest

from tests.benchmarks.simulation import SCENARIOS, main, watched
from tests.benchmarks.simulation_costs import measure
from tests.benchmarks.simulation_fleet import Simulation, percentile
from tests.benchmarks.simulation_memory import measure_memory
from tests.benchmarks.simulation_model import NOTED, Call, Due, Fleet, Redis, Timetable
from tests.benchmarks.simulation_real import watched as really_watched
from tests.benchmarks.simulation_replay import replayed
from tests.benchmarks.simulation_wire import Replies, encoded
from tests.stores import redis_server

SMALL = Fleet(workers=10, follows=0)
TOLD_ITSELF = attrs.evolve(SMALL, tells="itself", asks="rung")


def test_answers_are_counted_wherever_they_are_cut() -> None:
    text = b"+OK\r\n*2\r\n*2\r\n$3\r\na\r\n\r\n$-1\r\n:7\r\n*0\r\n$4\r\n*9\r\n\r\n"
    for cut in range(len(text)):
        replies = Replies()
        assert replies.feed(text[:cut]) + replies.feed(text[cut:]) == 4


def test_an_error_that_is_answered_is_raised() -> None:
    with pytest.raises(RuntimeError, match="OOM"):
        Replies().feed(b"-OOM no memory\r\n")


def test_a_command_is_written_as_redis_reads_it() -> None:
    assert encoded("GET", 1) == b"*2\r\n$3\r\nGET\r\n$1\r\n1\r\n"


def test_what_happens_at_the_same_time_happens_in_order() -> None:
    timetable, seen = Timetable(), list[str]()
    for time, name in ((2.0, "b"), (1.0, "a"), (2.0, "c"), (4.0, "d")):
        timetable.at(time, seen.append, name)
    timetable.run(3.0)
    assert (seen, timetable.now) == (["a", "b", "c"], 3.0)


def test_what_is_claimed_is_due_again_when_its_lease_runs_out() -> None:
    due = Due()
    for number in (1, 2):
        due.put(number, 5.0)
    assert due.claim(4.0, 10, 25.0) == []
    assert due.claim(5.0, 1, 25.0) == [1]
    due.remove(2)
    assert due.first() == 30.0
    assert due.claim(30.0, 10, 25.0) == [1]


def test_calls_wait_as_long_as_theory_says() -> None:
    """Pollaczek and Khinchine: load / (1 - load) * (1 + variation) / 2 times what a call takes."""
    timetable, rng = Timetable(), random.Random(1)
    redis = Redis(timetable, rng, SMALL)
    each, load = 100.0, 0.7
    at = 0.0
    for _ in range(50_000):
        at += rng.expovariate(load / (each * 1e-6))
        timetable.at(at, redis.work, each)
    timetable.run(at)
    waited = sum(wait for _, wait in redis.waits) / len(redis.waits)
    assert waited == pytest.approx(load / (1 - load) * 1.04 / 2 * each * 1e-6, rel=0.05)


def test_who_waits_too_long_is_not_answered() -> None:
    timetable = Timetable()
    redis = Redis(timetable, random.Random(1), attrs.evolve(SMALL, timeout=1.0))
    seen: list[str] = []
    for name in ("first", "second"):
        redis.arrive(
            Call(
                "call", 0.0, lambda: (0.9e6, None),
                lambda _, name=name: seen.append(f"{name} was answered"),
                lambda name=name: seen.append(f"{name} failed"),
            )
        )  # fmt: skip
    timetable.run(9.0)
    assert seen == ["first was answered", "second failed"]


def test_an_idle_fleet_asks_as_often_as_its_intervals_say() -> None:
    looks, sweeps_and_totals, listening = 8 / 1.5, 2 * 8 / 5, 1 / 5
    each = looks + sweeps_and_totals + listening
    assert watched(SMALL, NOTED, 1, seconds=30).calls == pytest.approx(10 * each, rel=0.02)


def test_the_same_seed_is_the_same_run() -> None:
    fleet = attrs.evolve(SMALL, owed=5.0)
    assert watched(fleet, NOTED, 1) == watched(fleet, NOTED, 1)
    assert watched(fleet, NOTED, 1) != watched(fleet, NOTED, 2)


def test_every_event_is_delivered_once() -> None:
    simulation = Simulation(attrs.evolve(SMALL, owed=20.0), NOTED)
    simulation.run(5)
    assert len(simulation.attempts) > 50
    assert simulation.redis.calls["ack"] == pytest.approx(len(simulation.attempts), abs=5)
    assert not simulation.taken_over


def test_what_is_told_to_all_costs_calls_of_all() -> None:
    everybody, itself = (
        watched(attrs.evolve(each, owed=1.0), NOTED, 1, seconds=30) for each in (SMALL, TOLD_ITSELF)
    )
    idle = watched(SMALL, NOTED, 1, seconds=30).calls
    assert everybody.calls - idle > SMALL.workers * SMALL.partitions
    assert itself.calls - idle < 10


def test_what_a_killed_worker_held_is_taken_over_after_its_lease() -> None:
    simulation = Simulation(attrs.evolve(TOLD_ITSELF, owed=20.0, attempt=2.0), NOTED)
    simulation.run(10)
    simulation.kill(5)
    simulation.run(40)
    assert len(simulation.taken_over) > 5
    assert 10 + 25 - 2 <= min(simulation.taken_over) <= max(simulation.taken_over) <= 10 + 25 + 1.6


@pytest.mark.parametrize("state", ["refusing", "silent"])
def test_a_fleet_comes_back_to_rest_behind_an_outage(state) -> None:
    fleet = attrs.evolve(TOLD_ITSELF, owed=5.0, followed=5.0, follows=3)
    simulation = Simulation(fleet, NOTED)
    simulation.run(10)
    simulation.go_away(state)
    before = simulation.redis.calls.total()
    simulation.run(60)
    assert simulation.redis.calls.total() <= before + 5
    simulation.redis.go_on()
    simulation.run(70)
    usual, behind = simulation.outcome(2, 10), simulation.outcome(110)
    assert behind.load == pytest.approx(usual.load, rel=0.15)
    assert simulation.outcome(105).attempt_p99 is not None


def test_a_percentile_is_a_value_that_was_seen() -> None:
    assert [percentile([3.0, 1.0, 2.0], part) for part in (0, 50, 99)] == [1.0, 2.0, 3.0]
    assert percentile([], 50) == 0.0


def test_the_command_prints_each_scenario(capsys) -> None:
    assert main(["--workers", "10", "--only", "killed", "--only", "idle"]) == 0
    out = capsys.readouterr().out
    assert "killed, 10 workers" in out
    assert "32 partitions" in out


def test_every_scenario_has_lines() -> None:
    for scenario in SCENARIOS.values():
        assert len(list(scenario(2, NOTED, 1))) > 2


@pytest.mark.torture
@pytest.mark.real_server
def test_costs_can_be_measured() -> None:
    with redis_server.Server() as server:
        costs = measure(server, number=640)
    assert all(cost > 0 for name, cost in attrs.asdict(costs).items() if name != "change")
    assert costs.append_more < costs.append


@pytest.mark.torture
@pytest.mark.real_server
def test_memory_can_be_measured() -> None:
    with redis_server.Server() as server:
        memory = measure_memory(server, sessions=2_000)
    assert 300 < memory.event < 600
    assert memory.session > 300


@pytest.mark.torture
@pytest.mark.real_server
def test_real_managers_ask_as_often_as_simulated_ones() -> None:
    fleet = Fleet(workers=4, follows=0)
    with redis_server.Server() as server:
        seen = really_watched(server, fleet, seconds=10.0)
    assert seen.calls == pytest.approx(watched(fleet, NOTED, 1, seconds=20).calls, rel=0.3)


@pytest.mark.torture
@pytest.mark.real_server
def test_replayed_workers_are_answered() -> None:
    with redis_server.Server() as server:
        told = replayed(server, Fleet(workers=4, follows=0), seconds=3.0)
    assert told.calls > 10
