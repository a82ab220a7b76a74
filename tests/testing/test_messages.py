"""How values stand in the messages of failed assertions."""

import attrs
import pytest
from hypothesis import given, strategies as st

from callbackkit.testing.messages import counted, listing, show, show_call

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-999, 999) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.integers(0, 9), inner, max_size=3)
        | st.tuples(inner, inner)
    ),
    max_leaves=6,
)


class Hostile:
    def __repr__(self) -> str:
        raise RuntimeError("no repr today")


class HostileList(list):
    def __iter__(self):
        raise RuntimeError("no iteration either")

    def __len__(self):
        raise RuntimeError("no length at all")


HostileList.__name__ = "list"  # reprlib goes by the name of the class


@attrs.frozen
class Order:
    number: int


@given(VALUES)
def test_an_ordinary_value_is_shown_as_it_is(value) -> None:
    assert eval(show(value)) == value


def test_what_stands_deep_inside_is_shown() -> None:
    assert show([[[[[[[["deep"]]]]]]]]) == "[[[[[[[['deep']]]]]]]]"


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: [x], lambda x: {"k": (x,)}], ids="abc")
@pytest.mark.parametrize("value", [Hostile(), HostileList()], ids="hl")
def test_a_value_without_a_repr_is_shown_all_the_same(value, wrap) -> None:
    assert "object at 0x" in show(wrap(value)) or "instance at 0x" in show(wrap(value))


@pytest.mark.parametrize(
    "value", ["x" * 10**6, [0] * 10**6, {n: n for n in range(10**5)}], ids="sld"
)
def test_a_huge_value_is_shortened(value) -> None:
    assert 100 < len(show(value)) < 1100
    assert "..." in show(value)


def test_a_call_is_shown_as_it_stands_in_a_program() -> None:
    assert show_call((), {}) == "()"
    assert show_call((1, Order(2)), {"key": "v"}) == "(1, Order(number=2), key='v')"


def test_a_list_has_numbers_and_its_last_lines() -> None:
    assert listing([]) == ""
    assert listing(["a", "b"]) == "\n    1. a\n    2. b"
    lines = listing([str(n) for n in range(1, 26)]).splitlines()
    assert lines[1] == "    (5 before these)"
    assert lines[2] == "    6. 6"
    assert lines[-1] == "    25. 25"
    assert len(lines) == 22


def test_one_is_singular() -> None:
    assert [counted(n, "call") for n in (0, 1, 2)] == ["0 calls", "1 call", "2 calls"]
