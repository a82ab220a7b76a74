"""text/event-stream by the WHATWG rules: what is written is read, however it was cut."""

import itertools
import json
import re

import pytest
from hypothesis import example, given, strategies as st

from callbackkit import WireError
from callbackkit.wire.eventstream import (
    EventStreamReader,
    ServerSentEvent,
    write_comment,
    write_event,
)

TEXT = st.text(st.characters(codec="utf-8"))
# Text full of what has a meaning on the wire.
TRICKY = st.text(st.sampled_from("\r\n\0:ab \ufeffé\u2028\x85𝄞"), max_size=12)
LINE = TRICKY.map(lambda text: re.sub(r"[\r\n]", "", text))
IDS = LINE.map(lambda text: text.replace("\0", ""))


@st.composite
def writings(draw: st.DrawFn) -> dict[str, object]:
    return {
        "data": draw(st.none() | TEXT | TRICKY),
        "id": draw(st.none() | IDS),
        "event": draw(st.none() | LINE),
        "retry": draw(st.none() | st.integers(0, 10**19 - 1)),
    }


def expected(written: list[dict[str, object]]) -> tuple[list[ServerSentEvent], str, int | None]:
    """What a reader gives of it: a model that knows nothing of lines."""
    events, last_id, last_retry = [], "", None
    for each in written:
        last_id = last_id if each["id"] is None else each["id"]
        last_retry = last_retry if each["retry"] is None else each["retry"]
        if each["data"] is not None:
            data = each["data"].replace("\r\n", "\n").replace("\r", "\n")
            event = each["event"] or "message"
            events.append(ServerSentEvent(data, event, last_id, each["retry"]))
    return events, last_id, last_retry


def cut(whole: bytes | str, at: list[int]) -> list[bytes | str]:
    places = [0, *sorted(place % (len(whole) + 1) for place in at), len(whole)]
    return [whole[a:b] for a, b in itertools.pairwise(places)]


def read(chunks: list[bytes | str], **options: int) -> list[ServerSentEvent]:
    reader = EventStreamReader(**options)
    events = [event for chunk in chunks for event in reader.feed(chunk)]
    return events + reader.flush()


def read_text(stream: str) -> list[ServerSentEvent]:
    """Read it whole, then one character and one byte at a time: the same."""
    events = read([stream])
    assert read(list(stream)) == events
    assert read([bytes([byte]) for byte in stream.encode()]) == events
    return events


# The laws.


@given(st.lists(writings(), max_size=5), st.lists(st.integers(0), max_size=8), st.booleans())
def test_what_was_written_is_read_however_it_was_cut(written, places, as_text) -> None:
    whole = b"".join(write_event(**each) for each in written)
    reader = EventStreamReader()
    chunks = cut(whole.decode() if as_text else whole, places)
    events = [event for chunk in chunks for event in reader.feed(chunk)]
    assert (events, reader.last_event_id, reader.retry) == expected(written)


@given(st.lists(writings(), max_size=4), st.sampled_from(["\r", "\r\n", "\n"]), st.booleans())
def test_any_of_the_three_line_ends_and_comments_between_read_the_same(
    written, line_end, bom
) -> None:
    whole = b"".join(write_event(**each) + write_comment("x: y") for each in written).decode()
    # Only LF is written as a line end, and a CR in a value can't be: it is no line end there.
    stream = ("\ufeff" if bom else "") + whole.replace("\n", line_end)
    assert read_text(stream) == expected(written)[0]


FOREIGN = st.lists(
    st.sampled_from(["data", "event:", "id: ", "retry:", ":", " ", "\r", "\n", "x", "1", "\0"])
    | st.text(max_size=3)
).map("".join)


@given(FOREIGN.map(lambda text: text.encode("utf-8", "replace")) | st.binary(), st.integers(1, 40))
@example(b"data: \xff\xf0\x9f\n\n", 40)
def test_foreign_bytes_raise_only_wire_errors_and_no_cutting_changes_that(stream, bound) -> None:
    def outcome(chunks: list[bytes]) -> tuple[list[ServerSentEvent], bool]:
        reader, events, failed = EventStreamReader(max_event=bound), [], False
        for chunk in chunks:
            try:
                events += reader.feed(chunk)
            except WireError:
                failed = True
        try:
            assert reader.flush() == []
        except WireError:
            assert not failed
            failed = True
        return events, failed

    assert outcome([stream]) == outcome([bytes([byte]) for byte in stream])


# Reading, rule by rule. The names in brackets are files of the Web Platform Tests, eventsource/.


event = ServerSentEvent


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        pytest.param("data:a\n\ndata: b\n\n", [event("a"), event("b")], id="one-space-is-cut"),
        pytest.param("data:  a\n\n", [event(" a")], id="only-one-space-is-cut"),
        pytest.param("data:\ta\n\n", [event("\ta")], id="a-tab-is-text"),
        pytest.param("data:a\ndata\ndata:b\n\n", [event("a\n\nb")], id="a-field-without-colon"),
        pytest.param("data\n\ndata:\n\n", [event(""), event("")], id="empty-data-is-data"),
        pytest.param(
            "data:a:b\n\n",
            [event("a:b")],
            id="only-the-first-colon-separates (format-field-parsing)",
        ),
        pytest.param("Data:a\n data:b\n\n", [], id="names-are-exact (format-field-unknown)"),
        pytest.param(":c\ndata:a\n:d\n\n", [event("a")], id="comments (format-comments)"),
        pytest.param(":\r:\n:\r\n\r\n", [], id="a-stream-of-comments"),
        pytest.param("\ufeffdata:a\n\n", [event("a")], id="a-bom-is-dropped (format-bom)"),
        pytest.param(
            "\ufeff\ufeffdata:a\n\ndata:b\n\n", [event("b")], id="a-second-is-not (format-bom-2)"
        ),
        pytest.param("data:a\n\n\ufeffdata:b\n\n", [event("a")], id="nor-a-later-one"),
        pytest.param("data:a\rdata:b\r\ndata:c\r\r\n", [event("a\nb\nc")], id="mixed-line-ends"),
        pytest.param(
            "data:a\u2028b\x85c\x0bd\n\n", [event("a\u2028b\x85c\x0bd")], id="no-other-line-ends"
        ),
        pytest.param("data:a\n", [], id="no-blank-line (format-data-before-final-empty-line)"),
        pytest.param("data:a\n\nid:9\ndata:b", [event("a")], id="the-rest-is-dropped"),
        pytest.param("event:x\n\ndata:a\n\n", [event("a")], id="a-type-goes-with-its-event"),
        pytest.param("event:x\nevent:\ndata:a\n\n", [event("a")], id="the-last-type-counts"),
        pytest.param("event: x \ndata:a\n\n", [event("a", "x ")], id="a-type-keeps-its-space"),
        pytest.param("id:1\n\ndata:a\n\n", [event("a", id="1")], id="an-id-alone-is-kept"),
        pytest.param(
            "id:1\ndata:a\n\ndata:b\n\nid\ndata:c\n\n",
            [event("a", id="1"), event("b", id="1"), event("c")],
            id="an-id-lasts-until-the-next-or-an-empty-one",
        ),
        pytest.param(
            "id:1\0\nid:\x002\ndata:a\n\n", [event("a")], id="nul-in-an-id (format-field-id-null)"
        ),
        pytest.param("retry:5\ndata:a\n\n", [event("a", retry=5)], id="retry"),
        pytest.param(
            "retry:1000x\nretry:-5\nretry:1.5\nretry:٣\nretry:\nretry: 1 \ndata:a\n\n",
            [event("a")],
            id="retry-of-anything-but-ascii-digits (format-field-retry-bogus)",
        ),
        pytest.param(f"retry:{'9' * 5000}\ndata:a\n\n", [event("a")], id="retry-too-large"),
        pytest.param("data:a\0b\n\n", [event("a\0b")], id="nul-in-data-is-text"),
    ],
)
def test_a_stream_is_read_by_the_rules(stream: str, events: list[ServerSentEvent]) -> None:
    assert read_text(stream) == events


def test_an_event_is_given_at_the_cr_that_ends_it() -> None:
    """Waiting for a LF that may follow would hold the event back until the next one."""
    reader = EventStreamReader()
    assert reader.feed(b"data: a\r\r") == [event("a")]
    assert reader.feed(b"\ndata: b\n\n") == [event("b")]


def test_an_empty_chunk_changes_nothing() -> None:
    reader = EventStreamReader()
    chunks = ["", "\ufeff", "", "data:a\r", "", "\n", "", "\r", "", "\n", ""]
    assert [found for chunk in chunks for found in reader.feed(chunk)] == [event("a")]


def test_bytes_that_are_no_utf_8_become_replacement_characters() -> None:
    assert read([b"data: a\xffb\n\n"]) == [event("a\ufffdb")]


def test_an_id_counts_once_its_event_is_complete() -> None:
    reader = EventStreamReader()
    reader.feed("id: 1\ndata: a\n\nid: 2\ndata: b\n")
    assert reader.last_event_id == "1"
    reader.feed("\n")
    assert reader.last_event_id == "2"


def test_a_reader_goes_on_with_the_stream_of_the_next_connection() -> None:
    reader = EventStreamReader("0")
    assert reader.feed(
        b"\xef\xbb\xbfdata: a\n\nid: 1\nretry: 7\ndata: b\n\nid: 2\ndata: c\n\r"
    ) == [
        event("a", id="0"),
        event("b", id="1", retry=7),
        event("c", id="2"),
    ]
    assert reader.feed(b"\nid: 3\nevent: x\ndata: lost\xf0") == []
    assert reader.flush() == []
    # Text this time, with a byte order mark of its own.
    assert reader.feed("\ufeffdata: d\n\n") == [event("d", id="2")]
    assert (reader.last_event_id, reader.retry) == ("2", 7)


def test_str_after_bytes_is_refused_as_any_other_type() -> None:
    reader = EventStreamReader()
    reader.feed(b"data: a")
    with pytest.raises(TypeError, match="the stream is bytes, not str"):
        reader.feed("\n\n")
    with pytest.raises(TypeError, match="must be a str or bytes, not int"):
        reader.feed(3)


def test_a_reader_shows_its_state() -> None:
    reader = EventStreamReader("7")
    reader.feed("data: abc\nda")
    assert repr(reader) == "<EventStreamReader last_event_id='7', 6 characters unfinished>"


# Bounds.


@pytest.mark.parametrize(
    "line", ["x" * 11, "data:" + "x" * 7, ":" + "x" * 10, "id:" + "x" * 8, "data\n" * 11]
)
def test_what_is_larger_than_the_bound_is_given_up(line: str) -> None:
    reader = EventStreamReader(max_event=10)
    assert reader.feed("data:ok\n\n" + line) == [event("ok")]
    for more in ("\n\n", "data:b\n\n"):
        with pytest.raises(WireError, match="larger than 10 characters"):
            reader.feed(more)
    assert reader.flush() == []
    assert reader.feed("data:c\n\n") == [event("c")]


def test_a_stream_given_up_in_its_last_chunk_tells_so_at_the_end() -> None:
    reader = EventStreamReader(max_event=10)
    assert reader.feed("data:ok\n\n" + "x" * 11) == [event("ok")]
    with pytest.raises(WireError):
        reader.flush()
    assert reader.flush() == []


def test_many_small_events_in_one_chunk_are_within_the_bound() -> None:
    assert len(read(["data:abcde\n\n" * 1_000], max_event=10)) == 1_000


def test_an_event_of_many_pieces_costs_linear_time() -> None:
    """A hundred times the pieces: quadratic joining would take hours."""
    reader = EventStreamReader(max_event=10_000_000)
    reader.feed("data:")
    for _ in range(1_000_000):
        reader.feed("abcd")
    (found,) = reader.feed("\n\n")
    assert found.data == "abcd" * 1_000_000


@pytest.mark.parametrize(
    ("bound", "error"), [(0, ValueError), (True, TypeError), ("9", TypeError), (1.5, TypeError)]
)
def test_a_bound_that_makes_no_sense_is_refused(bound, error) -> None:
    with pytest.raises(error, match="max_event must be"):
        EventStreamReader(max_event=bound)


# Writing.


@pytest.mark.parametrize(
    ("written", "on_the_wire"),
    [
        (write_event("a"), b"data: a\n\n"),
        (write_event(""), b"data: \n\n"),
        (write_event(" a"), b"data:  a\n\n"),
        (write_event("a\r\nb\rc\nd"), b"data: a\ndata: b\ndata: c\ndata: d\n\n"),
        (write_event("a\n"), b"data: a\ndata: \n\n"),
        (write_event("a\u2028b"), "data: a\u2028b\n\n".encode()),
        (
            write_event("a", id="1", event="x", retry=0),
            b"id: 1\nevent: x\nretry: 0\ndata: a\n\n",
        ),
        (write_event(None, id="1"), b"id: 1\n\n"),
        (write_event("a", id=""), b"id: \ndata: a\n\n"),
        (write_comment(), b": \n\n"),
        (write_comment("a\r\nb"), b": a\n: b\n\n"),
    ],
)
def test_an_event_is_written_as(written: bytes, on_the_wire: bytes) -> None:
    assert written == on_the_wire


@given(TEXT)
def test_a_comment_is_never_anything_else(text: str) -> None:
    assert read([write_comment(text), b"data: a\n\n"]) == [event("a")]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"id": "a\nb"}, ValueError, r"id must be one line, not 'a\\nb'"),
        ({"id": "a\rb"}, ValueError, "id must be one line"),
        ({"id": "a\0b"}, ValueError, "id must not contain NUL"),
        ({"id": 3}, TypeError, "id must be a str, not int"),
        ({"event": "a\nb"}, ValueError, "event must be one line"),
        ({"event": "a\rb"}, ValueError, "event must be one line"),
        ({"event": b"a"}, TypeError, "event must be a str, not bytes"),
        ({"retry": -1}, ValueError, "retry must be 0 or more"),
        ({"retry": 10**19}, ValueError, "retry must be 0 or more milliseconds, in 19 digits"),
        ({"retry": 1.0}, TypeError, "retry must be an int"),
        ({"retry": True}, TypeError, "retry must be an int"),
        ({"data": b"a"}, TypeError, "data must be a str, not bytes"),
        ({"data": "a\ud800"}, ValueError, "data must be Unicode text"),
    ],
)
def test_what_a_client_would_misread_is_refused(options, error, message: str) -> None:
    with pytest.raises(error, match=message):
        write_event(**{"data": "x"} | options)


@given(st.recursive(TEXT | st.integers() | st.none(), st.lists))
def test_json_comes_back_as_it_was(value) -> None:
    (found,) = read([write_event(json.dumps(value, ensure_ascii=False))])
    assert json.loads(found.data) == value
