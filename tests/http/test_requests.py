"""The limit of requests: so many at once, evenly refilled, in bounded memory."""

import pytest

from callbackkit import LimitError
from callbackkit.http.requests import RequestLimit, source_of
from callbackkit.testing import ManualClock


def refusals(limit: RequestLimit, key: str, count: int) -> int:
    refused = 0
    for _ in range(count):
        try:
            limit.take(key)
        except LimitError:
            refused += 1
    return refused


@pytest.mark.parametrize("most", [1, 3, 7, 1_000])
def test_so_many_are_let_in_at_once(most: int) -> None:
    limit = RequestLimit(most, clock=ManualClock())
    assert refusals(limit, "a", most) == 0
    assert refusals(limit, "a", 2) == 2
    assert refusals(limit, "b", most) == 0


def test_what_was_used_up_comes_back_evenly() -> None:
    clock = ManualClock()
    limit = RequestLimit(10, clock=clock)
    assert refusals(limit, "a", 12) == 2
    clock.advance(2.5)
    assert refusals(limit, "a", 5) == 3
    clock.advance(100)
    assert refusals(limit, "a", 12) == 2


def test_a_refusal_names_the_limit() -> None:
    limit = RequestLimit(1)
    limit.take("a")
    with pytest.raises(LimitError, match="max_requests=1"):
        limit.take("a")


def test_keys_that_say_nothing_any_more_are_forgotten() -> None:
    clock = ManualClock()
    limit = RequestLimit(10, clock=clock)
    for number in range(1_000):
        limit.take(str(number))
    assert "1000 keys" in repr(limit)
    clock.advance(10)
    for number in range(1_000):
        limit.take(f"later {number}")
    assert "1000 keys" in repr(limit)


def test_so_many_keys_are_remembered_at_most() -> None:
    limit = RequestLimit(1, clock=ManualClock(), max_keys=100)
    for number in range(1_000):
        limit.take(str(number))
    assert "100 keys" in repr(limit)
    # The newest ones.
    assert refusals(limit, "999", 1) == 1


def test_a_key_that_comes_again_is_remembered_longer() -> None:
    limit = RequestLimit(2, clock=ManualClock(), max_keys=2)
    for key in ("a", "b", "a", "c"):
        limit.take(key)
    assert refusals(limit, "a", 1) == 1
    assert refusals(limit, "b", 1) == 0


@pytest.mark.parametrize(
    ("host", "source"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("not: an address", "not: an address"),
        ("testclient", "testclient"),
        (None, ""),
    ],
)
def test_requests_are_counted_by_where_they_come_from(host: str | None, source: str) -> None:
    assert source_of(host) == source
