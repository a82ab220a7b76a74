import json
from typing import Any

import pytest

from callbackkit.events import Event, Position
from callbackkit.wire.envelope import gap_event
from tests.benchmarks.redis_follow import Rounds, check_order


def event(seq: int, **data: Any) -> Event:
    body = json.dumps({"data": data}).encode()
    return Event(Position("e", seq), "progress", 0, "session", body, json.loads)


def test_the_next_event_is_in_order() -> None:
    check_order(None, event(1, number=0))
    check_order(event(1, number=0), event(2, number=1))
    check_order(event(2, number=1), event(3, number=0))


@pytest.mark.parametrize(
    "found", [event(3, number=2), event(1, number=0), event(2, number=2)], ids=str
)
def test_an_event_that_is_lost_or_comes_again_is_told(found: Event) -> None:
    with pytest.raises(RuntimeError, match="comes"):
        check_order(event(1, number=0), found)


def test_a_gap_is_a_loss() -> None:
    gap = gap_event("session", "e", asked=Position("e", 1), first=3, microseconds=0)
    with pytest.raises(RuntimeError, match="comes where 2"):
        check_order(event(1, number=0), gap)


def test_each_case_has_its_share_of_the_same_round() -> None:
    ran: list[int] = []

    def run(number: int) -> dict[str, float]:
        ran.append(number)
        return {"a": 1.0 * len(ran), "b": 2.0 * len(ran)}

    rounds = Rounds(run)
    a, b = rounds.share("a"), rounds.share("b")
    assert [a(5), b(5), b(5), a(5)] == [5.0, 10.0, 20.0, 10.0]
    assert ran == [5, 5]
