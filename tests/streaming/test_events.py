"""What a run's log holds: entries, the events they are shown as, and their sizes."""

import tracemalloc

import attrs
import pytest

from callbackkit import StreamEvent
from callbackkit.streaming.events import Marker, Span, size_of_data, sizes_of, stream_event
from callbackkit.wire.special_tokens import TokenFormat

FORMAT = TokenFormat()


def test_an_event_cannot_be_changed() -> None:
    event = StreamEvent(1, "token", "a")
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        event.token = "b"


def test_text_outside_of_any_node_is_an_event_without_a_node() -> None:
    assert stream_event(3, "a") == StreamEvent(3, "token", "a")


def test_text_of_a_node_has_its_name_and_span() -> None:
    assert stream_event(3, ("a", Span(7, "n"))) == StreamEvent(3, "token", "a", "n", 7)


def test_a_special_token_has_its_params_and_status() -> None:
    token = FORMAT.special("node_end", "n", {"status": "error"})
    event = stream_event(4, Marker("node_end", token, Span(7, "n"), status="error"))
    assert event == StreamEvent(
        4, "node_end", token, "n", 7, {"status": "error"}, None, status="error"
    )
    assert event.token is token


def test_an_event_of_the_application_has_its_data_and_no_token() -> None:
    data = {"a": 1}
    event = stream_event(4, Marker("tool_use", None, None, data))
    assert event == StreamEvent(4, "tool_use", None, data=data)
    assert event.data is data


# Sizes.


@pytest.mark.parametrize(
    ("texts", "size"),
    [
        ([], 0),
        (["abc", "d"], 4),
        (["ä", "€", "😀"], 2 + 3 + 4),
        (["", "", "a"], 3),
        (["\ud800"], 3),
    ],
)
def test_text_counts_in_utf_8_and_at_least_one_byte(texts: list[str], size: int) -> None:
    assert sizes_of([*texts]) == size
    assert sizes_of([(text, Span(1, "n")) for text in texts]) == size


def test_mixed_entries_count_one_by_one() -> None:
    token = FORMAT.special("node_start", "nö")
    entries = ["abc", ("d", Span(1, "n")), Marker("node_start", token, None)]
    assert sizes_of(entries) == 4 + len(token) + 1


def test_an_event_counts_what_it_carried_when_it_was_emitted() -> None:
    """The application may go on to use the same dictionary."""
    data = {"text": "a" * 10_000}
    marker = Marker("custom", None, None, data)
    before = sizes_of([marker])
    assert before > 10_000
    data.clear()
    assert sizes_of([marker]) == before


@pytest.mark.parametrize("data", [None, 0, "", b"", {}, [], (), set(), object], ids=repr)
def test_even_empty_data_counts(data: object) -> None:
    assert size_of_data(data) > 0


def test_large_data_counts_at_least_what_it_holds() -> None:
    text = "a" * 1000
    nested = {"rows": [{"text": text, "more": (text, {text})} for _ in range(10)]}
    assert size_of_data(nested) > 30 * 1000
    assert size_of_data("😀" * 1000) > 4000
    assert size_of_data([1] * 100_000) > 100_000 * 8
    assert size_of_data(dict.fromkeys(range(100_000))) > 100_000 * 16


def test_sizing_looks_at_a_bounded_number_of_parts() -> None:
    """However wide, deep, or in itself."""
    row = list(range(1_000))
    wide = [row] * 1_000
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    ring: list[object] = []
    ring.append(ring)
    tracemalloc.start()
    try:
        assert size_of_data(wide) > 500_000
        assert size_of_data(deep) < 200_000
        assert size_of_data(ring) < 200_000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100_000


def test_sizing_runs_no_code_of_the_data() -> None:
    class Trap(dict[str, str]):
        def __len__(self) -> int:
            raise AssertionError("called")

        __iter__ = keys = values = __sizeof__ = __len__

    assert size_of_data([Trap(), Trap]) > 0
