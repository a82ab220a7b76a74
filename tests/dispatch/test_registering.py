"""Options of a registration, judged before anything is registered."""

import gc
from collections.abc import Callable
from typing import Any

import pytest

from callbackkit.dispatch.outcome import SKIPPED
from callbackkit.dispatch.registering import check_priority, checked_when, weak_call, weak_method


class Mailbox:
    def __init__(self) -> None:
        self.mail: list[Any] = []

    def take(self, *letters: Any) -> int:
        self.mail += letters
        return len(self.mail)


@pytest.mark.parametrize("priority", [0, -3, 2.5, float("inf")])
def test_a_priority_is_any_number(priority: float) -> None:
    assert check_priority(priority) is None


@pytest.mark.parametrize(
    ("priority", "error", "why"),
    [
        (True, TypeError, "must be a number, not True"),
        ("high", TypeError, "must be a number, not 'high'"),
        (float("nan"), ValueError, "must not be NaN"),
    ],
)
def test_what_is_no_priority_is_named(priority: Any, error: type[Exception], why: str) -> None:
    with pytest.raises(error, match=why):
        check_priority(priority)


def test_a_condition_is_asked_with_the_data() -> None:
    assert checked_when(bool)("data")
    assert not checked_when(bool)("")
    assert checked_when(lambda: True)("data")


async def is_wanted(data: object) -> bool:
    return bool(data)


@pytest.mark.parametrize("when", [None, 7, is_wanted])
def test_a_condition_that_cannot_be_asked_is_refused(when: Any) -> None:
    with pytest.raises(TypeError, match="when must be"):
        checked_when(when)


@pytest.mark.parametrize("callback", [lambda: None, print, Mailbox, [].append])
def test_only_a_bound_method_may_be_held_weakly(callback: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="weak=True takes bound methods only"):
        weak_method(callback, print)


def test_a_weak_call_gives_the_method_what_it_wants_while_its_object_lives() -> None:
    mailbox = Mailbox()
    told: list[Any] = []
    target = weak_method(mailbox.take, told.append)
    call = weak_call(target, 1)
    assert call("a letter", "a parcel") == 1
    assert mailbox.mail == ["a letter"]
    del mailbox
    gc.collect()
    assert told == [target]
    assert call("another") is SKIPPED
