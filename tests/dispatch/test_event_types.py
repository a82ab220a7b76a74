"""What names an event, and which events a pattern or class stands for."""

import enum
import re
from typing import Any

import pytest
from hypothesis import given, strategies as st

from callbackkit import EventKey
from callbackkit.dispatch.event_types import (
    compile_pattern,
    event_name,
    is_pattern,
    matches,
    pattern_key,
    trigger_key,
)


class Base: ...


class Child(Base): ...


class Kind(enum.StrEnum):
    CREATED = "order.created"


OldKind = enum.Enum("OldKind", {"CREATED": "order.created"}, type=str)


class Text(str):
    __slots__ = ()


class Coded(Text, enum.Enum):
    """Its members have a value that is not their text."""

    def __new__(cls, text: str, code: int) -> "Coded":
        member = Text.__new__(cls, text)
        member._value_ = code
        return member

    CREATED = ("order.created", 7)


class Hostile(str):
    """A string that refuses to be one."""

    def __str__(self) -> str:
        raise RuntimeError("not to be asked")

    __repr__ = __format__ = __str__
    __len__ = __contains__ = __getitem__ = split = __str__


# What names an event.


@pytest.mark.parametrize(
    "event_type",
    [
        "order.created",
        Kind.CREATED,
        OldKind.CREATED,
        Coded.CREATED,
        EventKey[int]("order.created"),
        EventKey[int](Kind.CREATED),
    ],
    ids=["str", "StrEnum", "str and Enum", "other value", "EventKey", "EventKey of an enum"],
)
@pytest.mark.parametrize("key", [trigger_key, pattern_key])
def test_strings_enums_and_keys_name_the_same_event(key: Any, event_type: Any) -> None:
    assert key(event_type) == "order.created"
    assert type(key(event_type)) is str


@pytest.mark.parametrize("key", [trigger_key, pattern_key])
def test_a_string_that_refuses_to_be_one_is_taken_by_its_text(key: Any) -> None:
    assert key(Hostile("order.created")) == "order.created"


@pytest.mark.parametrize("method", ["__eq__", "__hash__"])
@pytest.mark.parametrize("key", [trigger_key, pattern_key])
def test_a_string_with_an_equality_of_its_own_is_refused(key: Any, method: str) -> None:
    """Plans are looked up by what equals the event type: it could be given another's."""
    kind = type("Odd", (str,), {"__eq__": str.__eq__, "__hash__": str.__hash__, method: print})
    with pytest.raises(TypeError, match="Odd has an equality of its own"):
        key(kind("order.created"))


def test_a_pattern_that_refuses_to_be_a_string_is_taken_by_its_text() -> None:
    assert type(pattern_key(Hostile("order.*"))) is str


@pytest.mark.parametrize("key", [trigger_key, pattern_key])
def test_a_class_names_itself(key: Any) -> None:
    assert key(Child) is Child


@pytest.mark.parametrize("bad", [None, 1, b"order", ["order"], object(), list[int], 1.5])
@pytest.mark.parametrize("key", [trigger_key, pattern_key])
def test_what_names_no_event_is_refused_by_its_type(key: Any, bad: Any) -> None:
    with pytest.raises(TypeError, match=f"not {type(bad).__name__}$"):
        key(bad)


@pytest.mark.parametrize("key", [trigger_key, pattern_key])
def test_an_empty_name_is_refused(key: Any) -> None:
    for empty in ("", Hostile("")):
        with pytest.raises(ValueError, match="must not be empty"):
            key(empty)


@pytest.mark.parametrize("pattern", ["*", "**", "order.*", "or*er"])
def test_a_pattern_cannot_be_triggered(pattern: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(pattern)) + " is a pattern"):
        trigger_key(pattern)


# Patterns.


@pytest.mark.parametrize("pattern", ["*", "**", "a.*", "*.a", "a.**", "a.*.b.*", "*.**", "*.*"])
def test_good_patterns_are_what_they_say(pattern: str) -> None:
    assert pattern_key(pattern) == pattern
    assert is_pattern(pattern)


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("order.cre*", "inside a segment"),
        ("*order", "inside a segment"),
        ("a***", "inside a segment"),
        ("***", "inside a segment"),
        ("**.order", "before its end"),
        ("a.**.b", "before its end"),
        ("**.**", "before its end"),
        ("a..*", "empty segment"),
        (".*", "empty segment"),
        ("*.", "empty segment"),
        ("**.", "before its end"),
    ],
)
def test_bad_patterns_are_refused_with_the_reason(pattern: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as refused:
        pattern_key(pattern)
    assert repr(pattern) in str(refused.value)


@pytest.mark.parametrize("key", [trigger_key, pattern_key])
def test_a_very_long_pattern_is_cut_in_the_reason(key: Any) -> None:
    with pytest.raises(ValueError, match="pattern") as refused:
        key("a*" * 5_000)
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("order.created", ["order.created"], ["order", "order.created.twice", "Order.created"]),
        ("*", ["order", "a b", "a\nb"], ["order.created", "."]),
        ("order.*", ["order.created", "order."], ["order", "order.a.b", "orders.a", "xorder.a"]),
        ("*.created", ["order.created", ".created"], ["created", "a.order.created"]),
        ("a.*.b", ["a.x.b", "a..b"], ["a.b", "a.x.y.b"]),
        ("**", ["order", "order.created", "a\nb", "."], []),
        ("order.**", ["order", "order.a", "order.a.b", "order.a\nb.c"], ["orders", "orders.a"]),
        ("*.**", ["order", "order.a.b"], []),
        ("a+b.*", ["a+b.c"], ["aab.c", "ab.c"]),
        ("[ab].*", ["[ab].c"], ["a.c"]),
    ],
)
def test_patterns(pattern: str, yes: list[str], no: list[str]) -> None:
    assert [name for name in [*yes, *no] if matches(pattern, name)] == yes


def by_segments(pattern: list[str], name: list[str]) -> bool:
    """Say what matching means, segment by segment."""
    if not pattern:
        return not name
    if pattern[0] == "**":
        return True
    if not name:
        return False
    return pattern[0] in ("*", name[0]) and by_segments(pattern[1:], name[1:])


segments = st.text("ab+\n", max_size=3)


@given(
    st.lists(st.one_of(segments.filter(bool), st.just("*")), min_size=1, max_size=4),
    st.booleans(),
    st.lists(segments, min_size=1, max_size=5),
)
def test_matching_goes_by_segments(pattern: list[str], any_rest: bool, name: list[str]) -> None:
    pattern = [*pattern, "**"] if any_rest else pattern
    assert matches(".".join(pattern), ".".join(name)) is by_segments(pattern, name)


@pytest.mark.parametrize("length", [10, 100_000])
def test_matching_takes_no_more_than_linear_time(length: int) -> None:
    """With quadratic time the long name would run into the timeout of the suite."""
    compiled = compile_pattern(".".join(["*"] * 50 + ["end"]))
    assert compiled.fullmatch("a." * length + "endless") is None
    assert compile_pattern("a.**").fullmatch("a." * length) is not None
    assert compile_pattern("*.*.b").fullmatch("a" * length * 10) is None


# Classes.


def test_a_class_stands_for_itself_and_its_subclasses() -> None:
    assert matches(Base, Child)
    assert matches(object, Child)
    assert not matches(Child, Base)


def test_classes_and_strings_do_not_meet() -> None:
    assert not matches(Base, "Base")
    assert not matches("**", Base)
    assert not matches("Base", Base)


class Equal(type):
    """A metaclass whose classes equal everything, or say so loudly."""

    def __eq__(cls, other: object) -> bool:
        raise RuntimeError("not to be compared")

    __hash__ = type.__hash__


class Loud(metaclass=Equal): ...


def test_classes_are_told_apart_by_identity() -> None:
    assert matches(Loud, Loud)
    assert not matches(Base, Loud)
    assert not matches("Loud", Loud)


# Names for a log.


class Secretive(type):
    def __getattribute__(cls, name: str) -> Any:
        if "name" in name or name == "__module__":
            raise RuntimeError("not to be asked")
        return type.__getattribute__(cls, name)


class Nameless(metaclass=Secretive): ...


def test_an_event_is_named_by_its_text_or_its_class() -> None:
    assert event_name("order.created") == "'order.created'"
    assert event_name(Child).endswith("test_event_types.Child")


def test_a_very_long_name_is_cut() -> None:
    assert event_name("x" * 5_000) == repr("x" * 200) + "..."


def test_naming_a_class_that_tells_no_name_gives_some_name() -> None:
    assert type(event_name(Nameless)) is str
