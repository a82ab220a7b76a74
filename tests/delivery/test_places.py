"""Who has a place, and who stands aside."""

import math
import sys

import pytest

from callbackkit.delivery.places import PATIENCE, Places


def test_who_takes_long_stands_aside_and_the_next_takes_his_place() -> None:
    places = Places(2, 1)
    first, second = places.take("told", 0.0), places.take("told", 0.5)
    assert places.room == 0
    assert places.relieve(0.25) == PATIENCE - 0.25
    assert places.room == 0
    assert places.relieve(PATIENCE) == 0.5
    assert places.room == places.room_for("told") == 1
    assert places.stands_aside(first)
    assert not places.stands_aside(second)
    assert places.relieve(PATIENCE + 0.5) == math.inf
    assert places.room == 2


def test_each_delivery_has_a_time_of_its_own() -> None:
    places = Places(1, 1)
    place = places.take("told", 0.0)
    places.begin(place, 0.75)
    assert places.relieve(1.0) == 0.75
    assert places.room == 0


def test_who_comes_back_from_aside_counts_even_if_there_is_no_room() -> None:
    places = Places(1, 1)
    slow = places.take("told", 0.0)
    places.relieve(2.0)
    quick = places.take("told", 2.0)
    places.begin(slow, 3.0)
    assert places.room == places.room_for("told") == -1
    places.leave(slow)
    places.leave(quick)
    assert places.room == places.room_for("told") == 1


def test_who_leaves_from_aside_leaves_nothing_behind() -> None:
    places = Places(1, 1)
    for _ in range(100):
        place = places.take("told", 0.0)
        assert places.step_aside(place)
        # Once more changes nothing.
        assert places.step_aside(place)
        places.leave(place)
    assert places.room == 1


@pytest.mark.parametrize(("transports", "share", "aside"), [(1, 4, 64), (2, 3, 48)])
def test_one_transport_gets_a_part_of_the_places_and_of_the_room_aside(
    transports, share, aside
) -> None:
    places = Places(4, transports)
    assert places.room_for("told") == share
    taken = [places.take("told", 0.0) for _ in range(aside)]
    assert all(places.step_aside(place) for place in taken)
    one_more = places.take("told", 0.0)
    assert not places.step_aside(one_more)
    # Nobody is asked to look again who could not step aside then either.
    assert places.relieve(100.0) == math.inf
    places.leave(taken[0])
    assert places.relieve(100.0) == math.inf
    assert places.stands_aside(one_more)


@pytest.mark.parametrize(("transports", "aside"), [(1, 10), (2, 7)])
@pytest.mark.skipif(sys.platform == "win32", reason="it has no such limit")
def test_who_stands_aside_leaves_two_thirds_of_the_descriptors_to_others(
    monkeypatch, transports, aside
) -> None:
    """Each may hold a connection; a process has 1024 of them unless somebody allowed it more."""
    import resource

    monkeypatch.setattr(resource, "getrlimit", {resource.RLIMIT_NOFILE: (30, 9999)}.__getitem__)
    places = Places(4, transports)
    stepped = [places.step_aside(places.take("told", 0.0)) for _ in range(64)]
    assert stepped == [True] * aside + [False] * (64 - aside)


@pytest.mark.skipif(sys.platform == "win32", reason="it has no such limit")
def test_without_a_limit_of_descriptors_there_is_the_other_one(monkeypatch) -> None:
    import resource

    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    monkeypatch.setattr(resource, "getrlimit", lambda _which: unlimited)
    places = Places(4, 1)
    stepped = [places.step_aside(places.take("told", 0.0)) for _ in range(70)]
    assert stepped == [True] * 64 + [False] * 6


def test_those_who_find_no_room_aside_come_back_one_after_the_other() -> None:
    places = Places(1, 1)
    waits = [places.turn_in(0.0) for _ in range(5000)]
    assert waits[:3] == pytest.approx([0.5, 0.51, 0.52])
    assert waits == sorted(waits)
    assert waits[-1] == 30.0
