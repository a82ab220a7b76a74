"""What a server sends, decoded; whatever it is."""

import json

import pytest
from hypothesis import given, strategies as st

from callbackkit.client.decoding import (
    Batch,
    decode_message,
    decode_page,
    decode_state,
    decode_stream,
)
from callbackkit.errors import WireError
from callbackkit.events import Position
from callbackkit.wire.envelope import encode_event
from callbackkit.wire.eventstream import EventStreamReader, ServerSentEvent
from tests.client.rig import end, event, primed, sse

EVENTS = [event(number, text="\u00e9\u2028") for number in (1, 2, 3)]
STREAM = primed() + sse(*EVENTS, end(3))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


def as_text(each) -> str:
    return encode_event(each).decode()


def test_events_come_as_they_were() -> None:
    batch = decode_stream(EventStreamReader().feed(STREAM))
    assert batch == Batch(EVENTS, "ended")
    assert decode_message(as_text(EVENTS[0])) == Batch(EVENTS[:1])


def test_a_heartbeat_says_nothing() -> None:
    assert decode_message('{"data":{}, "event_type":"callbackkit.heartbeat"}') == Batch()


def test_what_came_before_nonsense_is_kept() -> None:
    told = [ServerSentEvent(as_text(EVENTS[0])), ServerSentEvent("{"), ServerSentEvent("{}")]
    batch = decode_stream(told)
    assert batch.events == (EVENTS[0],)
    assert batch.trouble is not None


def test_nothing_counts_behind_the_end() -> None:
    told = [ServerSentEvent(as_text(each)) for each in (end(3, "deleted"), EVENTS[0])]
    assert decode_stream(told) == Batch([], "deleted")


def test_events_with_a_name_are_somebody_elses() -> None:
    assert decode_stream([ServerSentEvent("{", event="ping")]) == Batch()


@given(st.data())
def test_a_stream_cut_anywhere_gives_the_same(data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(STREAM)), max_size=6)))
    reader, found = EventStreamReader(), []
    for first, last in zip([0, *cuts], [*cuts, len(STREAM)], strict=True):
        found += decode_stream(reader.feed(STREAM[first:last])).events
    assert found == EVENTS


@given(st.text() | VALUES.map(json.dumps))
def test_a_message_of_any_text_is_a_batch(text: str) -> None:
    decode_message(text)


@given(st.binary() | VALUES.map(lambda value: json.dumps(value).encode()))
def test_of_any_body_only_a_wire_error_comes(body: bytes) -> None:
    for decode in (decode_page, decode_state):
        with pytest.raises(WireError):
            decode(body)


@given(events=VALUES | st.lists(VALUES), cursor=VALUES, has_more=VALUES)
def test_of_any_page_only_a_wire_error_comes(events, cursor, has_more) -> None:
    content = {"events": events, "cursor": cursor, "has_more": has_more}
    try:
        decode_page(json.dumps(content).encode())
    except WireError:
        pass


@given(st.data())
def test_a_page_that_was_damaged_gives_events_or_a_wire_error(data: st.DataObject) -> None:
    content = {"events": [json.loads(as_text(each)) for each in EVENTS], "cursor": "e-3"}
    body = bytearray(json.dumps({**content, "has_more": False}).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        page = decode_page(bytes(body))
    except WireError:
        return
    assert len(page.batch.events) == 3 or page.batch.trouble is not None


def test_a_page_and_a_state_are_read() -> None:
    body = {"events": [json.loads(as_text(EVENTS[0]))], "cursor": "e-1", "has_more": True}
    page = decode_page(json.dumps(body).encode())
    assert (page.batch, page.cursor, page.has_more) == (Batch(EVENTS[:1]), Position("e", 1), True)
    found = decode_state(b'{"state":"ended","position":"e-4"}')
    assert (found.has_ended, found.position) == (True, Position("e", 4))
    assert not decode_state(b'{"state":"active","position":"e-4"}').has_ended


def test_half_of_a_pair_is_no_text() -> None:
    page = decode_page(b'{"events":["\\ud800"],"cursor":"e-1","has_more":false}')
    assert page.batch.trouble is not None


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"state":1}', b'{"events":[],"has_more":1}'])
def test_what_means_nothing_is_a_wire_error(body: bytes) -> None:
    with pytest.raises(WireError):
        decode_state(body)
    with pytest.raises(WireError):
        decode_page(body)
