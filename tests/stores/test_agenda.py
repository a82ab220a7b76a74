import gc
import math
import weakref

import attrs
from hypothesis import given, strategies as st

from callbackkit.stores.agenda import Agenda, SortedIds


@attrs.define(eq=False, weakref_slot=True)
class Thing:
    due_at: float | None = None
    listed_at: float = math.inf
    entry: list[object] = attrs.field(factory=list)


def taken(agenda: Agenda[Thing], now: float) -> list[Thing]:
    found = []
    while (thing := agenda.pop(now)) is not None:
        found.append(thing)
    return found


def test_things_come_in_the_order_of_their_times_and_no_sooner() -> None:
    agenda: Agenda[Thing] = Agenda()
    late, soon = Thing(), Thing()
    agenda.put(late, 20.0)
    agenda.put(soon, 10.0)
    assert agenda.first_at() == 10.0
    assert taken(agenda, 9.9) == []
    assert taken(agenda, 20.0) == [soon, late]
    assert agenda.first_at() == math.inf


def test_a_thing_that_is_put_off_comes_once_at_its_new_time() -> None:
    agenda: Agenda[Thing] = Agenda()
    thing = Thing()
    for at in (1.0, 2.0, 3.0):
        agenda.put(thing, at)
    assert agenda.first_at() == 3.0
    assert taken(agenda, 2.5) == []
    assert taken(agenda, 3.0) == [thing]
    assert taken(agenda, 9.0) == []


def test_a_thing_that_is_put_off_a_thousand_times_takes_one_place() -> None:
    agenda: Agenda[Thing] = Agenda()
    thing = Thing()
    for at in range(1_000):
        agenda.put(thing, float(at))
    assert len(agenda._heap) == 1


def test_a_thing_may_be_brought_forward() -> None:
    agenda: Agenda[Thing] = Agenda()
    thing = Thing()
    agenda.put(thing, 50.0)
    agenda.put(thing, 5.0)
    assert taken(agenda, 5.0) == [thing]
    assert taken(agenda, 50.0) == []


def test_a_thing_that_is_due_no_more_is_passed_over() -> None:
    agenda: Agenda[Thing] = Agenda()
    thing, other = Thing(), Thing()
    agenda.put(thing, 1.0)
    agenda.put(other, 2.0)
    thing.due_at = None
    assert agenda.first_at() == 2.0
    assert taken(agenda, 3.0) == [other]
    agenda.put(thing, 4.0)
    assert taken(agenda, 4.0) == [thing]


@given(st.lists(st.tuples(st.integers(0, 4), st.none() | st.integers(0, 20), st.integers(0, 3))))
def test_it_agrees_with_a_table_of_times(steps: list[tuple[int, int | None, int]]) -> None:
    agenda: Agenda[Thing] = Agenda()
    things = [Thing() for _ in range(5)]
    now = 0
    for which, at, passes in steps:
        thing = things[which]
        if at is None:
            thing.due_at = None
        else:
            agenda.put(thing, float(at))
        now += passes
        due = {id(each) for each in things if each.due_at is not None and each.due_at <= now}
        assert {id(each) for each in taken(agenda, now)} == due
        left = [each.due_at for each in things if each.due_at is not None]
        assert agenda.first_at() == min(left, default=math.inf)


def test_what_is_brought_forward_or_taken_off_leaves_nothing_that_lives_or_grows() -> None:
    """A session with a time to live of years may end, and go, at once."""
    agenda: Agenda[Thing] = Agenda()
    alive = []
    for number in range(10_000):
        thing = Thing()
        agenda.put(thing, 1e9)
        agenda.put(thing, float(number))
        assert agenda.pop(float(number)) is thing
        agenda.put(thing, 1e9)
        agenda.discard(thing)
        alive.append(weakref.ref(thing))
        del thing
        assert len(agenda) == 0
    assert len(agenda._heap) < 200
    gc.collect()
    assert not [ref for ref in alive if ref() is not None]


def test_a_thing_that_was_taken_off_can_be_put_on_again() -> None:
    agenda: Agenda[Thing] = Agenda()
    thing = Thing()
    agenda.put(thing, 5.0)
    agenda.discard(thing)
    assert agenda.pop(9.0) is None
    agenda.put(thing, 7.0)
    assert agenda.first_at() == 7.0
    assert agenda.pop(9.0) is thing


def test_ids_come_in_order_from_behind_one() -> None:
    ids = SortedIds()
    for each in "dbac":
        ids.add(each)
    assert list(ids.after(None)) == ["a", "b", "c", "d"]
    ids.add("bb")
    ids.discard("c")
    assert list(ids.after("b")) == ["bb", "d"]
    assert list(ids.after("bc")) == ["d"]


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 20))))
def test_ids_agree_with_a_sorted_set(steps: list[tuple[bool, int]]) -> None:
    ids, model = SortedIds(), set()
    for is_new, number in steps:
        each = f"{number:02}"
        if is_new and each not in model:
            ids.add(each)
            model.add(each)
        elif not is_new and each in model:
            ids.discard(each)
            model.discard(each)
        assert list(ids.after(None)) == sorted(model)
        assert list(ids.after("10")) == sorted(one for one in model if one > "10")
    assert len(ids._ids) == len(model)
