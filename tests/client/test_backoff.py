"""How long to wait before connecting again."""

import pytest
from hypothesis import given, strategies as st

from callbackkit.client import Backoff


@given(failures=st.integers(1, 10_000), chance=st.floats(0, 1))
def test_a_delay_is_within_its_bounds(failures: int, chance: float) -> None:
    backoff = Backoff()
    delay = backoff.delay(failures, chance=chance)
    assert backoff.first <= delay <= backoff.max_delay


def test_what_is_possible_grows_with_each_failure_up_to_the_bound() -> None:
    assert [Backoff().delay(each, chance=1) for each in (1, 2, 3, 4, 5)] == [1.5, 4.5, 13.5, 30, 30]


def test_many_that_lost_the_same_server_do_not_come_back_in_one_moment() -> None:
    assert len({Backoff().delay(1, chance=each / 100) for each in range(100)}) == 100


@given(told=st.floats(0, allow_infinity=True, allow_nan=False), chance=st.floats(0, 1))
def test_what_a_server_asks_for_is_kept_to_within_bounds(told: float, chance: float) -> None:
    backoff = Backoff(max_told=60)
    delay = backoff.delay(1, chance=chance, told=told)
    assert min(told, 60) <= delay <= 90
    assert delay >= backoff.first


@pytest.mark.parametrize("name", ["first", "max_delay", "max_told"])
@pytest.mark.parametrize("value", [0, -1, float("inf"), float("nan")])
def test_a_number_out_of_range_is_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        Backoff(**{name: value})


@pytest.mark.parametrize("value", [True, "1", None])
def test_no_number_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match="first"):
        Backoff(first=value)


def test_a_bound_below_the_least_is_refused() -> None:
    with pytest.raises(ValueError, match="max_delay must be at least first=40"):
        Backoff(first=40)


@given(told=st.floats(0, 1_000), chance=st.floats(0, 1), failures=st.integers(1, 100))
def test_who_is_told_to_come_at_once_again_and_again_waits_longer(told, chance, failures) -> None:
    backoff = Backoff()
    delay = backoff.delay(failures, chance=chance, told=told)
    if failures > 3:
        assert delay >= backoff.delay(failures, chance=chance)
    else:
        assert delay == min(max(told, 0.5), 300) * (1 + 0.5 * chance)
