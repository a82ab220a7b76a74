"""Bodies: read up to a bound, and strictly JSON."""

import json
from collections.abc import AsyncGenerator
from typing import Any

import attrs
import pytest
from hypothesis import given, strategies as st

from callbackkit import ConfigError, LimitError, WireError
from callbackkit.http.bodies import check_media_type, convert, decode_object, read_body

# Reading.


class Chunks:
    """A body in pieces, and how many of them were taken."""

    def __init__(self, *chunks: bytes) -> None:
        self.chunks = chunks
        self.taken = 0

    async def stream(self) -> AsyncGenerator[bytes]:
        for chunk in self.chunks:
            self.taken += 1
            yield chunk


async def test_a_body_is_read_up_to_its_bound() -> None:
    assert await read_body(Chunks(b"ab", b"", b"cd").stream(), {}, most=4) == b"abcd"
    assert await read_body(Chunks().stream(), {}, most=4) == b""
    body = Chunks(b"abc", b"de", b"more", b"more")
    with pytest.raises(LimitError) as refused:
        await read_body(body.stream(), {}, most=4)
    assert (refused.value.limit, refused.value.value) == ("max_body_bytes", 4)
    assert body.taken == 2


@pytest.mark.parametrize("length", ["5", "9" * 18, "9" * 5_000])
async def test_a_length_that_is_too_large_refuses_unread(length: str) -> None:
    body = Chunks(b"abcde")
    with pytest.raises(LimitError):
        await read_body(body.stream(), {"content-length": length}, most=4)
    assert body.taken == 0


@pytest.mark.parametrize("length", ["4", "x", "", "-1", "\u0665"])
async def test_a_length_that_fits_or_is_none_says_nothing(length: str) -> None:
    headers = {"content-length": length}
    assert await read_body(Chunks(b"abcd").stream(), headers, most=4) == b"abcd"


@pytest.mark.parametrize(
    "media_type",
    [
        "application/json",
        "APPLICATION/JSON",
        "application/json; charset=utf-8",
        'application/json;charset="UTF-8"',
        "application/merge-patch+json",
        "application/problem+json ; q=1",
    ],
)
def test_json_may_call_itself_so(media_type: str) -> None:
    check_media_type(media_type)


@pytest.mark.parametrize(
    "media_type",
    [None, "", "text/plain", "text/json", "application/jsonp", "application/json; charset=utf-16"],
)
def test_what_does_not_call_itself_json_is_refused(media_type: str | None) -> None:
    with pytest.raises(WireError):
        check_media_type(media_type)


# Decoding.

OBJECTS = st.dictionaries(
    st.text(),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inside: st.lists(inside) | st.dictionaries(st.text(), inside),
        max_leaves=10,
    ),
)


@given(OBJECTS)
def test_what_json_says_is_what_is_read(value: dict[str, Any]) -> None:
    try:
        text = json.dumps(value, allow_nan=False)
    except ValueError:
        return
    assert decode_object(text.encode()) == value


@given(st.binary())
def test_whatever_comes_is_an_object_or_refused(body: bytes) -> None:
    try:
        found: object = decode_object(body)
    except WireError as exc:
        found = exc
    assert isinstance(found, dict) or (isinstance(found, WireError) and len(str(found)) < 400)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b" ", "JSON"),
        (b"[]", "object"),
        (b"null", "object"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "Infinity"),
        (b'{"a": 1e400}', "1e400"),
        (b'{"a": 1, "b": 2, "a": 3}', "'a' is there twice"),
        (b'{"x": {"a": 1, "a": 1}}', "'a' is there twice"),
        (b'{"a": "\xff"}', "UTF-8"),
        (b"\xef\xbb\xbf{}", "JSON"),
        (b'{"a":' * 50_000, "JSON"),
        (b'{"a": ' + b"9" * 5_000 + b"}", "JSON"),
    ],
)
def test_what_is_no_json_object_is_refused(body: bytes, words: str) -> None:
    with pytest.raises(WireError, match=words):
        decode_object(body)


def test_a_whole_number_is_one_however_it_is_written() -> None:
    found = decode_object(b'{"a": 5.0, "b": 5.5, "c": 1e3, "d": 1e300, "e": -0.0}')
    assert found == {"a": 5, "b": 5.5, "c": 1000, "d": 1e300, "e": 0}
    assert [type(each) for each in found.values()] == [int, float, int, float, int]


def test_many_keys_that_come_twice_are_refused_soon() -> None:
    keys = [f'"{n}":0' for n in range(100_000)]
    with pytest.raises(WireError, match="twice"):
        decode_object(("{" + ",".join([*keys, *keys]) + "}").encode())


# Converting.


@attrs.frozen
class Asked:
    name: str
    counts: list[int] = attrs.field(factory=list)
    data: dict[str, Any] | None = None


def test_an_object_becomes_what_a_route_takes() -> None:
    assert convert({"name": "a", "counts": [1]}, Asked) == Asked("a", [1])
    assert convert({"name": "a", "data": {"b": None}}, Asked).data == {"b": None}


@pytest.mark.parametrize(
    ("value", "field", "words"),
    [
        ({"name": 5}, "name", "expected `str`, got `int`"),
        ({"name": "a", "counts": [1, "x"]}, "counts[1]", "expected `int`, got `str`"),
        ({"name": "a", "counts": ["5"]}, "counts[0]", "expected `int`"),
        ({"name": "a", "data": []}, "data", "object"),
        ({}, "body", "missing required field `name`"),
        ({"name": "a", "nmae": 1}, "nmae", "unknown; there are: counts, data, name"),
        ({"name": "a", "x\n\ud800": 1}, "'x\\n\\ud800'", "unknown"),
    ],
)
def test_what_a_route_does_not_take_is_named(value: Any, field: str, words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        convert(value, Asked)
    assert refused.value.field == field
    assert words in refused.value.reason
