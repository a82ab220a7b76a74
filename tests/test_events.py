"""Typed names of events."""

import copy
import pickle
from typing import Any

import pytest

from callbackkit import EventKey


def test_a_key_is_its_name() -> None:
    key = EventKey[int]("order.created")
    assert key.name == str(key) == "order.created"
    assert repr(key) == "EventKey('order.created')"


def test_keys_of_one_name_are_one_key() -> None:
    assert EventKey[int]("a") == EventKey[str]("a")
    assert len({EventKey[int]("a"), EventKey[int]("a"), EventKey[int]("b")}) == 2


def test_a_key_does_not_change() -> None:
    key: Any = EventKey[int]("a")
    with pytest.raises(AttributeError):
        key.name = "b"


def test_a_key_can_be_copied_and_sent_to_another_process() -> None:
    key = EventKey[int]("a")
    assert copy.deepcopy(key) == pickle.loads(pickle.dumps(key)) == key


@pytest.mark.parametrize(
    ("name", "error", "reason"),
    [
        ("", ValueError, "must not be empty"),
        ("order.*", ValueError, r"'order\.\*' is a pattern"),
        ("**", ValueError, r"'\*\*' is a pattern"),
        (1, TypeError, "not int"),
        (None, TypeError, "not NoneType"),
        (b"order", TypeError, "not bytes"),
    ],
)
def test_what_names_no_single_event_is_refused(
    name: Any, error: type[Exception], reason: str
) -> None:
    with pytest.raises(error, match=reason):
        EventKey(name)
