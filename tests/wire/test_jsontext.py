"""Any value has a JSON text: valid JSON, valid Unicode, and what was JSON comes back."""

import datetime
import enum
import json
import math
from typing import Any, Never

import pytest
from hypothesis import given, strategies as st

from callbackkit.wire.jsontext import json_text


class Hostile:
    """Has no repr, and its class no name that could be read."""

    def __repr__(self) -> str:
        raise RuntimeError("no")

    __str__ = __repr__


class HostileMapping(dict[str, Any]):
    def items(self) -> Never:
        raise KeyError("no")


class HostileList(list[Any]):
    def __iter__(self) -> Never:
        raise KeyError("no")


class Text(str):
    __slots__ = ()

    def __str__(self) -> str:
        raise RuntimeError("no")


class Number(int):
    def __repr__(self) -> str:
        return "no number"


class Colour(enum.StrEnum):
    RED = "red"


def read(text: str) -> Any:
    """Read it as strictly as a browser does."""

    def refuse(word: str) -> Never:
        raise AssertionError(word)

    return json.loads(text.encode(), parse_constant=refuse)


LEAVES = st.none() | st.booleans() | st.integers() | st.text(st.characters())
JSON = st.recursive(
    LEAVES | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
ODD = LEAVES | st.floats() | st.binary() | st.complex_numbers() | st.builds(Hostile)
ANYTHING = st.recursive(
    ODD,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(ODD, inner)
        | st.lists(inner).map(HostileList)
        | st.dictionaries(st.text(), inner).map(HostileMapping)
    ),
)


@given(JSON)
def test_what_is_json_comes_back(value) -> None:
    assert read(json_text(value)) == value


@given(ANYTHING)
def test_anything_is_one_line_of_json_that_can_be_sent(value) -> None:
    text = json_text(value)
    assert not {"\n", "\r"} & set(text)
    read(text)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ([math.nan, math.inf, -math.inf, 0.5], "[null,null,null,0.5]"),
        ({"a": math.nan, "b": (1, True)}, '{"a":null,"b":[1,true]}'),
        ({2: math.nan, None: 2, True: 3, 0.5: 4}, '{"2":null,"null":2,"true":3,"0.5":4}'),
        ({math.inf: 1, (1, 2): 2, b"x": 3}, '{"null":1,"(1, 2)":2,"b\'x\'":3}'),
        ({10**5000: "x"}, None),
        (datetime.date(2026, 1, 2), '"datetime.date(2026, 1, 2)"'),
        ({"s": {1}}, '{"s":"{1}"}'),
        (Colour.RED, '"red"'),
        ([Text("a"), math.nan], '["a",null]'),
        ([Number(7), math.nan], "[7,null]"),
        ({Text("a"): math.nan}, '{"a":null}'),
        ("é\u2028\n", '"é\u2028\\n"'),
        ("a\ud800é", '"a\\ud800é"'),
        ({"\udfff": 1}, '{"\\udfff":1}'),
    ],
)
def test_a_value_is_written_as(value, text: str | None) -> None:
    written = json_text(value)
    read(written)
    assert text is None or written == text


def test_what_has_no_repr_is_named() -> None:
    for value in (Hostile(), [Hostile(), math.nan]):
        assert "test_jsontext.Hostile object at 0x" in json_text(value)


def test_a_long_repr_is_cut() -> None:
    assert len(json_text({1} | {str(n) for n in range(10_000)})) < 1_500
    assert json_text(10**10_000).startswith('"0x')
    assert len(json_text(10**10_000)) == 1_002


def test_what_contains_itself_ends() -> None:
    loop: list[Any] = [1]
    loop.append(loop)
    mapping: dict[str, Any] = {}
    mapping["self"] = mapping
    assert json_text(loop) == '[1,"[1, [...]]"]'
    assert json_text(mapping) == '{"self":"{\'self\': {...}}"}'
    # The same twice is no loop.
    assert json_text([same := [math.nan], same]) == "[[null],[null]]"


def test_what_is_nested_too_deep_is_shown_from_there() -> None:
    value: Any = math.nan
    for _ in range(100_000):
        value = [value]
    text = json_text(value)
    assert text.startswith("[" * 100 + '"')
    read(text)


@pytest.mark.parametrize("value", [HostileMapping(a=1), HostileList([math.nan])])
def test_a_container_that_cannot_be_read_is_shown(value) -> None:
    assert isinstance(read(json_text([value, math.nan]))[0], str)
