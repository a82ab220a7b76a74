"""A clock that goes only when told."""

import math
import threading

import pytest
from hypothesis import given, strategies as st

from callbackkit import Operation, monitor_callback_performance
from callbackkit.testing import ManualClock, MockCallback

SECONDS = st.floats(min_value=0, max_value=1e9)


def test_it_stands_still() -> None:
    clock = ManualClock(7)
    assert [clock(), clock()] == [7.0, 7.0]
    assert type(clock()) is float


@given(SECONDS, st.lists(SECONDS))
def test_it_goes_on_by_what_it_is_told_and_never_back(start: float, steps: list[float]) -> None:
    clock = ManualClock(start)
    for step in steps:
        before = clock()
        clock.advance(step)
        assert clock() == before + step >= before


@pytest.mark.parametrize("seconds", [-1, -0.001, math.nan, math.inf, -math.inf])
def test_a_step_back_or_into_nowhere_is_refused(seconds: float) -> None:
    clock = ManualClock()
    with pytest.raises(ValueError, match=r"0 or more seconds, not"):
        clock.advance(seconds)
    assert clock() == 0


@pytest.mark.parametrize("start", [math.nan, math.inf])
def test_it_starts_at_a_real_time(start: float) -> None:
    with pytest.raises(ValueError, match="start must be finite"):
        ManualClock(start)


def test_no_advance_is_lost_among_threads() -> None:
    clock = ManualClock()

    def advance() -> None:
        for _ in range(1000):
            clock.advance(1)

    threads = [threading.Thread(target=advance) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert clock() == 8000


def test_a_measured_callback_takes_as_long_as_the_clock_says() -> None:
    clock = ManualClock(100)
    measured = monitor_callback_performance(clock.advance, clock=clock)
    measured(2.5)
    measured(0.5)
    assert (measured.stats.count, measured.stats.total, measured.stats.max) == (2, 3.0, 2.5)


def test_progress_is_throttled_by_it() -> None:
    clock, on_progress = ManualClock(), MockCallback()
    operation = Operation(total=8, on_progress=on_progress, min_interval=2.0, clock=clock)
    for _ in range(8):
        operation.advance()
        clock.advance(1.0)
    assert [args[0] for args, _ in on_progress.calls] == [1 / 8, 3 / 8, 5 / 8, 7 / 8, 1]


def test_its_repr_shows_the_time() -> None:
    clock = ManualClock(1)
    clock.advance(0.5)
    assert repr(clock) == "<ManualClock at 1.5 s>"
