"""Events as JSON, and back."""

import json
import math
from collections import OrderedDict
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import example, given, strategies as st

from callbackkit.errors import PayloadError, WireError
from callbackkit.events import END, GAP, Event, Position
from callbackkit.wire.envelope import (
    Codec,
    JsonCodec,
    decode_event,
    encode_body,
    encode_event,
    encode_events,
    encode_json,
    end_event,
    gap_event,
    parse_timestamp,
    timestamp_text,
)

CODEC = JsonCodec()

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20
)
objects = st.dictionaries(st.text(), values, max_size=4)
# Years 1 to 9999.
times = st.integers(-62_135_596_800_000_000, 253_402_300_799_999_999)


class Escaping:
    """Writes the same JSON in other words: ASCII only, with spaces."""

    def encode(self, value: Any, /) -> bytes:
        return json.dumps(value).encode()

    def decode(self, text: bytes, /) -> Any:
        return json.loads(text)


class Picky(Escaping):
    """Raises an exception of its own."""

    class Refused(Exception):
        pass

    def encode(self, value: Any, /) -> bytes:
        try:
            return super().encode(value)
        except Exception as exc:
            raise self.Refused("no") from exc

    def decode(self, text: bytes, /) -> Any:
        try:
            return super().decode(text)
        except Exception as exc:
            raise self.Refused("no") from exc


class Lax(Escaping):
    """Writes null for what is not finite, as several fast codecs do."""

    def encode(self, value: Any, /) -> bytes:
        text = json.dumps(value)
        return text.replace("NaN", "null").replace("-Infinity", "null").encode()


@st.composite
def events(draw: st.DrawFn) -> Event:
    body = encode_body(CODEC, draw(objects), draw(objects), draw(st.none() | st.text()))
    return Event(
        Position(
            draw(st.from_regex(r"[A-Za-z0-9_.]{1,32}", fullmatch=True)),
            draw(st.integers(0, 10**17)),
        ),
        draw(st.text(min_size=1)),
        draw(times),
        draw(st.text(min_size=1)),
        body,
        CODEC.decode,
    )


# The codec.


@given(values)
def test_what_is_written_is_read(value: Any) -> None:
    assert CODEC.decode(CODEC.encode(value)) == value


def test_json_is_compact_unicode() -> None:
    assert CODEC.encode({"a": [1, "é"], "b": None}) == '{"a":[1,"é"],"b":null}'.encode()
    assert repr(CODEC) == "JsonCodec()"


@pytest.mark.parametrize(
    "text", [b"NaN", b"[Infinity]", b"-Infinity", b"", b"{", b"\xff", "1".encode("utf-16")]
)
def test_what_is_no_json_in_utf_8_is_not_read(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"is no JSON|Expecting|decode"):
        CODEC.decode(text)


# Bodies.


def test_a_body_has_three_keys_in_order() -> None:
    assert encode_body(CODEC, {"b": 1, "a": 2}, {"test": True}, "chat") == (
        b'{"conversation_id":"chat","data":{"b":1,"a":2},"metadata":{"test":true}}'
    )
    assert encode_body(CODEC, {}) == b'{"conversation_id":null,"data":{},"metadata":{}}'


def test_any_mapping_is_data() -> None:
    expected = encode_body(CODEC, {"a": 1}, {"b": 2})
    assert encode_body(CODEC, MappingProxyType({"a": 1}), MappingProxyType({"b": 2})) == expected
    assert encode_body(CODEC, OrderedDict(a=1), OrderedDict(b=2)) == expected


@given(data=objects, metadata=objects, conversation=st.none() | st.text())
def test_a_body_keeps_what_it_is_given(
    data: dict[str, Any], metadata: dict[str, Any], conversation: str | None
) -> None:
    for codec in (CODEC, Escaping(), Picky()):
        body = encode_body(codec, data, metadata, conversation)
        assert json.loads(body) == {
            "conversation_id": conversation,
            "data": data,
            "metadata": metadata,
        }
        assert body.startswith(b'{"conversation_id"')


def nested(depth: int) -> Any:
    """Return so many lists inside each other."""
    value: Any = []
    for _ in range(depth - 1):
        value = [value]
    return value


def cycle() -> Any:
    value: list[Any] = []
    value.append({"again": value})
    return value


WRONG = [
    ({"a": [1, {"b": math.nan}]}, "a[1].b", "must be finite, not nan"),
    ({"a": [1, 2], "b": math.nan}, "b", "must be finite, not nan"),
    ({"a": -math.inf}, "a", "must be finite, not -inf"),
    ({"a": (1, math.inf)}, "a[1]", "must be finite, not inf"),
    ({"a": {1: 2}}, "a", "keys must be strings, not int"),
    ({"a": [{None: 2}]}, "a[0]", "keys must be strings, not NoneType"),
    ({True: 2}, "", "keys must be strings, not bool"),
    ({"a": {(1, 2): 2}}, "a", "keys must be strings, not tuple"),
    ({"a": object()}, "a", "object can't be written as JSON"),
    ({"a": [b"bytes"]}, "a[0]", "bytes can't be written as JSON"),
    ({"a": {"b": {1, 2}}}, "a.b", "set can't be written as JSON"),
    ({"a": 10**5_000}, "a", "int can't be written as JSON"),
    ({"a": nested(100)}, "a" + "[0]" * 99, "is nested more than 100 deep"),
    ({"a": nested(100_000)}, "a" + "[0]" * 99, "is nested more than 100 deep"),
    ({"a": cycle()}, "a[0].again", "contains itself"),
    ({"line\nfeed": math.nan}, r"'line\nfeed'", "must be finite, not nan"),
    ({"k" * 100: math.nan}, "k" * 80, "must be finite, not nan"),
    ([], "", "must be a mapping, not list"),
]


@pytest.mark.parametrize("codec", [CODEC, Escaping(), Picky(), Lax()])
@pytest.mark.parametrize(("data", "path", "reason"), WRONG)
def test_what_is_wrong_is_named_with_its_path(
    codec: Codec, data: Any, path: str, reason: str
) -> None:
    with pytest.raises(PayloadError) as caught:
        encode_body(codec, data)
    assert (caught.value.path, caught.value.reason) == (path, reason)


@pytest.mark.parametrize(
    ("data", "path", "reason"),
    [
        ({"a": ["\ud800"]}, "a[0]", "has half of a surrogate pair"),
        ({"a": {"b\udfff": 1}}, "a", "a key has half of a surrogate pair"),
    ],
)
def test_half_of_a_surrogate_pair_is_refused(data: Any, path: str, reason: str) -> None:
    with pytest.raises(PayloadError) as caught:
        encode_body(CODEC, data)
    assert (caught.value.path, caught.value.reason) == (path, reason)


def test_metadata_and_conversation_are_checked_like_data() -> None:
    wrong: Any = []
    number: Any = 1
    with pytest.raises(PayloadError, match=r"^metadata\.a\[0\]: must be finite"):
        encode_body(CODEC, {}, {"a": [math.nan]})
    with pytest.raises(PayloadError, match=r"^metadata: must be a mapping, not list"):
        encode_body(CODEC, {}, wrong)
    with pytest.raises(PayloadError, match=r"^conversation_id: must be a string, not int"):
        encode_body(CODEC, {}, {}, number)
    with pytest.raises(PayloadError, match=r"^conversation_id: has half of a surrogate pair"):
        encode_body(CODEC, {}, {}, "\ud800")


def test_what_is_just_not_too_deep_is_written() -> None:
    # The data is a container itself.
    data = {"a": nested(99)}
    assert CODEC.decode(encode_body(CODEC, data))["data"] == data


def test_a_container_may_stand_in_two_places() -> None:
    twice = [1]
    assert encode_json(CODEC, {"a": twice, "b": [twice]}) == b'{"a":[1],"b":[[1]]}'


@pytest.mark.parametrize("value", ["text", 1.5, None, [1], (1,)])
def test_any_json_can_be_written(value: Any) -> None:
    assert CODEC.decode(encode_json(CODEC, value)) == (list(value) if value == (1,) else value)


def test_a_codec_must_give_bytes() -> None:
    class Text(Escaping):
        def encode(self, value: Any, /) -> Any:
            return json.dumps(value)

    with pytest.raises(TypeError, match=r"encode\(\) of a codec returns bytes, not str"):
        encode_body(Text(), {})


def test_a_codec_that_breaks_is_told_even_if_no_part_is_wrong() -> None:
    class Broken(Escaping):
        def encode(self, value: Any, /) -> bytes:
            if isinstance(value, dict):
                raise OSError("broken")
            return super().encode(value)

    with pytest.raises(PayloadError, match=r"^can't be written as JSON: broken") as caught:
        encode_body(Broken(), {"a": 1})
    assert isinstance(caught.value.__cause__, OSError)


# Events.


def test_an_event_as_json() -> None:
    event = Event(
        Position("9f86d081", 12),
        "progress",
        1_795_273_200_000_001,
        "s1",
        encode_body(CODEC, {"progress": 0.4}, {"test": True}, "chat"),
        CODEC.decode,
    )
    assert encode_event(event) == (
        b'{"id":"9f86d081-12","event_type":"progress","timestamp":"2026-11-21T15:00:00.000001Z",'
        b'"session_id":"s1","conversation_id":"chat","data":{"progress":0.4},'
        b'"metadata":{"test":true}}'
    )


@given(events())
def test_an_event_comes_back_as_it_was(event: Event) -> None:
    text = encode_event(event)
    for back in (decode_event(text, CODEC), decode_event(text.decode())):
        assert back == event
        assert encode_event(back) == text
        assert (back.data, back.metadata) == (event.data, event.metadata)
        assert back.conversation_id == event.conversation_id


@given(events())
def test_every_codec_reads_the_same_event(event: Event) -> None:
    for codec in (Escaping(), Picky()):
        back = decode_event(encode_event(event), codec)
        assert json.loads(encode_event(back)) == json.loads(encode_event(event))
        assert decode_event(encode_event(back)) == event


def test_an_event_is_encoded_without_being_decoded() -> None:
    def refuse(_body: bytes) -> Any:
        raise AssertionError

    body = encode_body(CODEC, {"a": 1})
    event = Event(Position("e", 1), "x", 0, "s", body, refuse)
    assert encode_event(event).endswith(body[1:])


@given(st.lists(events(), max_size=3))
def test_several_events_are_one_object(some: list[Event]) -> None:
    found = json.loads(encode_events(some))
    assert found == {"events": [json.loads(encode_event(event)) for event in some]}


def changed(**keys: Any) -> str:
    """Return an event as JSON, with other values for some keys; ``...`` takes a key away."""
    content = {**json.loads(encode_event(Event.of("progress", {"progress": 1}))), **keys}
    return json.dumps({key: value for key, value in content.items() if value is not ...})


def test_unknown_keys_are_ignored_and_two_may_be_missing() -> None:
    text = changed(more=1, metadata=..., conversation_id=...)
    assert decode_event(text) == Event.of("progress", {"progress": 1})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "must be JSON"),
        (b"\xff", "must be JSON"),
        ("\ud800", "must be JSON"),
        ("[" * 200_000, "must be JSON"),
        ("[]", "must be a JSON object, not list"),
        (changed(id=...), "'id' must be a string"),
        (changed(id=""), "'id' must be a string"),
        (changed(id=1), "'id' must be a string"),
        (changed(id="x"), "'x' is no position"),
        (changed(event_type=None), "'event_type' must be a string"),
        (changed(event_type="\ud800"), "'event_type' must be a string"),
        (changed(session_id=""), "'session_id' must be a string"),
        (changed(timestamp="yesterday"), "'yesterday' is no timestamp"),
        (changed(data=...), "must be a mapping"),
        (changed(data=None), "must be a mapping"),
        (changed(data=["a"]), "must be a mapping"),
        (changed(data={"a": "\ud800"}), "a: has half of a surrogate pair"),
        (changed(metadata="x"), "metadata: must be a mapping"),
        (changed(conversation_id=1), "conversation_id: must be a string"),
        (changed(data=nested(2)), "must be a mapping"),
        (changed(data={"a": nested(200)}), "nested more than 100 deep"),
        ('{"id":"e-1","data":{"a":1e999}}', "a: must be finite"),
        ('{"id":"e-1","data":{"a":NaN}}', "must be JSON"),
    ],
)
def test_what_is_no_event_is_a_wire_error(text: bytes | str, reason: str) -> None:
    with pytest.raises(WireError, match=reason):
        decode_event(text, CODEC)


def test_whatever_a_codec_raises_is_a_wire_error() -> None:
    with pytest.raises(WireError, match="must be JSON in UTF-8: no"):
        decode_event("{", Picky())


@given(st.binary() | st.text() | values.map(json.dumps))
@example("[" * 100)
def test_foreign_input_raises_only_wire_errors(text: bytes | str) -> None:
    with pytest.raises(WireError):
        decode_event(text)


@given(st.dictionaries(st.sampled_from(list(json.loads(changed()))), values))
def test_foreign_values_raise_only_wire_errors(keys: dict[str, Any]) -> None:
    try:
        event = decode_event(changed(**keys))
    except WireError:
        return
    assert decode_event(encode_event(event)) == event


# Timestamps.


@given(times)
@example(0)
@example(-1)
@example(999_999)
def test_a_timestamp_comes_back_as_it_was(microseconds: int) -> None:
    text = timestamp_text(microseconds)
    assert parse_timestamp(text) == microseconds
    # The standard library's own text is the oracle.
    when = datetime.fromisoformat(text)
    assert text == when.isoformat(timespec="microseconds").replace("+00:00", "Z")
    assert len(text) == len("2026-11-21T15:00:00.000000Z")


@given(times, times)
def test_timestamps_sort_as_the_times_do(one: int, two: int) -> None:
    assert (one < two) == (timestamp_text(one) < timestamp_text(two))


@pytest.mark.parametrize(
    ("text", "when"),
    [
        ("2026-11-21T15:00:00Z", datetime(2026, 11, 21, 15, tzinfo=UTC)),
        ("2026-11-21t15:00:00z", datetime(2026, 11, 21, 15, tzinfo=UTC)),
        ("2026-11-21T16:30:00.5+01:30", datetime(2026, 11, 21, 15, 0, 0, 500_000, tzinfo=UTC)),
        ("2026-11-21T15:00:00.123456789-00:00", datetime(2026, 11, 21, 15, 0, 0, 123_456, UTC)),
    ],
)
def test_every_timestamp_of_the_rfc_is_read(text: str, when: datetime) -> None:
    assert parse_timestamp(text) == round(when.timestamp() * 1_000_000)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2026-11-21",
        "2026-11-21T15:00:00",
        "2026-11-21 15:00:00Z",
        "20261121T150000Z",
        "2026-W47-6T15:00:00Z",
        "2026-02-30T15:00:00Z",
        "2026-11-21T15:00:60Z",
        "2026-11-21T15:00:00.Z",
        "2026-11-21T15:00:00+01:30:15",
        "2026-11-21T15:00:00.000000Z\n",
        "٢026-11-21T15:00:00Z",
        "0000-11-21T15:00:00Z",
    ],
)
def test_other_timestamps_are_wire_errors(text: str) -> None:
    with pytest.raises(WireError, match="is no timestamp such as"):
        parse_timestamp(text)


# Ends.


@pytest.mark.parametrize("state", ["ended", "deleted"])
def test_the_end_of_a_session_stands_where_its_reader_is(state: str) -> None:
    event = end_event("s", Position("e", 7), state, microseconds=1_795_273_200_000_001)
    assert encode_event(event).decode() == (
        '{"id":"e-7","event_type":"callbackkit.end","timestamp":"2026-11-21T15:00:00.000001Z",'
        f'"session_id":"s","conversation_id":null,"data":{{"state":"{state}"}},"metadata":{{}}}}'
    )
    assert (event.event_type, event.is_gap, event.data) == (END, False, {"state": state})


def test_the_end_for_a_reader_that_knows_no_position_is_no_place_of_any_log() -> None:
    event = end_event("s", None, "deleted", microseconds=1)
    assert event.position == Position("none", 0)
    # It can be given back as a position: a gap is what comes of it.
    assert gap_event("s", "e", asked=event.position, first=1, microseconds=1).is_gap


# Gaps.


def gap(asked: str | None, first: int, epoch: str = "e") -> Event:
    position = None if asked is None else Position.parse(asked)
    return gap_event("s", epoch, asked=position, first=first, microseconds=7)


@pytest.mark.parametrize(
    ("asked", "first", "said"),
    [
        ("e-5", 10, {"from": "e-6", "to": "e-9", "missed": 4}),
        ("e-8", 10, {"from": "e-9", "to": "e-9", "missed": 1}),
        (None, 10, {"from": "e-1", "to": "e-9", "missed": 9}),
        ("e-0", 10, {"from": "e-1", "to": "e-9", "missed": 9}),
        # Of another epoch, of the future: nobody knows how many.
        ("f-5", 10, {"from": "f-5", "to": "e-9", "missed": None}),
        ("f-5", 1, {"from": "f-5", "to": "e-0", "missed": None}),
        ("e-99", 10, {"from": "e-99", "to": "e-9", "missed": None}),
        ("e-10", 10, {"from": "e-10", "to": "e-9", "missed": None}),
    ],
)
def test_a_gap_says_what_is_missed_and_where_to_go_on(
    asked: str | None, first: int, said: dict[str, Any]
) -> None:
    event = gap(asked, first)
    assert event.data == said
    assert event.is_gap
    assert event.event_type == GAP
    assert event.id == said["to"]
    assert (event.session_id, event.conversation_id, event.metadata) == ("s", None, {})
    assert encode_event(event).startswith(b'{"id":"e-')
    assert timestamp_text(7) == json.loads(encode_event(event))["timestamp"]
    assert decode_event(encode_event(event)) == event


@pytest.mark.parametrize(("asked", "first"), [("e-9", 10), (None, 1), ("e-0", 1)])
def test_where_nothing_is_missed_is_no_gap(asked: str | None, first: int) -> None:
    with pytest.raises(ValueError, match="no gap: "):
        gap(asked, first)
