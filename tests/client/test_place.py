"""What is new to a follower."""

import pytest
from hypothesis import given, strategies as st

from callbackkit.client.place import Place
from callbackkit.errors import PositionError
from callbackkit.events import Position
from callbackkit.wire.envelope import gap_event
from tests.client.rig import event, numbers


def gap(first: int, epoch: str = "e", asked: Position | None = None):
    return gap_event("s1", epoch, asked=asked, first=first, microseconds=1)


@given(st.lists(st.integers(1, 30)))
def test_whatever_comes_again_each_event_is_new_once_and_in_order(sequence: list[int]) -> None:
    place, found = Place(None), []
    for number in sequence:
        found += place.fresh([event(number)])
    assert numbers(found) == sorted(set(numbers(found)))
    assert max(sequence, default=0) == max(numbers(found), default=0)


@given(st.integers(1, 20), st.lists(st.integers(1, 20), max_size=8))
def test_coming_back_anywhere_before_loses_and_doubles_nothing(
    count: int, restarts: list[int]
) -> None:
    """Each connection sends from somewhere before on, as a server does, and breaks anywhere."""
    place, found = Place(None), []
    for broken_at in [*restarts, count]:
        begin = 1 if place.position is None else max(place.position.seq - 3, 1)
        found += place.fresh(event(each) for each in range(begin, min(broken_at, count) + 1))
    assert numbers(found) == list(range(1, count + 1))


def test_events_of_another_epoch_are_new() -> None:
    place = Place("e-7")
    found = place.fresh([gap(1, "f", Position("e", 7)), event(1, "f"), event(2, "f")])
    assert [each.id for each in found] == ["f-0", "f-1", "f-2"]
    assert str(place) == "f-2"


def test_a_gap_is_told_once_and_led_on_from() -> None:
    place = Place("e-3")
    told = gap(10, asked=Position("e", 3))
    assert place.fresh([told, event(10)]) == [told, event(10)]
    assert place.fresh([event(10)]) == []
    assert Place("e-9").fresh([told]) == []


def test_a_gap_leads_back_from_a_position_of_the_future() -> None:
    place = Place("e-100")
    assert numbers(place.fresh([gap(5, asked=Position("e", 100)), event(5)])) == [5]


def test_where_the_server_begins_counts_as_long_as_nothing_else_is_known() -> None:
    place = Place("now")
    assert str(place) == "now"
    place.begin(Position("e", 4))
    place.begin(Position("e", 9))
    assert (str(place), str(place.begun)) == ("e-4", "e-4")
    assert repr(place) == "<Place e-4>"
    assert str(Place(None)) == ""


@pytest.mark.parametrize(("after", "error"), [("no", PositionError), (5, TypeError)])
def test_what_is_no_position_is_refused(after: object, error: type[Exception]) -> None:
    with pytest.raises(error):
        Place(after)


@pytest.mark.parametrize(
    ("after", "newest", "has_reached"),
    [
        ("e-3", "e-3", True),
        ("e-2", "e-3", False),
        ("e-4", "e-3", False),
        ("f-3", "e-3", False),
        (None, "e-3", False),
        (None, "e-0", True),
        ("now", "e-3", True),
    ],
)
def test_it_has_reached_the_newest_event_where_that_is_its_own(after, newest, has_reached) -> None:
    assert Place(after).has_reached(Position.parse(newest)) is has_reached
