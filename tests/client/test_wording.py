"""What an event says in one line of words."""

from typing import Any

import pytest
from hypothesis import given, strategies as st

from callbackkit import Event, Position
from callbackkit.client.wording import Wording, word
from callbackkit.events import GAP, EventType
from callbackkit.wire.envelope import JsonCodec, encode_body, gap_event

JSON = JsonCodec()


def event_of(event_type: str, data: dict[str, Any]) -> Event:
    """An event as a server may send it: nothing of it is checked."""
    return Event(Position("a", 1), event_type, 0, "s", encode_body(JSON, data), JSON.decode)


@pytest.mark.parametrize(
    ("event_type", "data", "label", "text"),
    [
        ("thinking", {"thought": "Hm."}, "thinking", "Hm."),
        ("tool_use", {"tool_name": "now"}, "tool_use", "now()"),
        (
            "tool_use",
            {"tool_name": "search", "parameters": {"query": "fog", "limit": 3}},
            "tool_use",
            'search(query="fog", limit=3)',
        ),
        ("tool_result", {"tool_name": "now"}, "tool_result", "now"),
        (
            "tool_result",
            {"tool_name": "f", "result": {"a": 1}, "success": True, "execution_time": 0.125},
            "tool_result",
            'f in 0.12 s: {"a": 1}',
        ),
        (
            "tool_result",
            {"tool_name": "f", "result": "refused", "success": False, "execution_time": 2},
            "tool_result",
            "f failed after 2.00 s: refused",
        ),
        ("progress", {"progress": 0.4}, "progress", ""),
        (
            "progress",
            {"progress": 0.4, "message": "parsing", "current_step": 1, "total_steps": 3},
            "progress",
            "(1/3) parsing",
        ),
        ("progress", {"progress": 0.4, "current_step": 2}, "progress", "(2)"),
        ("completion", {}, "completion", "done"),
        (
            "completion",
            {"result": [1], "success": True, "total_time": 3, "tokens_used": 512},
            "completion",
            "done in 3.00 s, 512 tokens: [1]",
        ),
        ("completion", {"success": False}, "completion", "failed"),
        ("workflow_start", {"workflow": "w"}, "workflow", "w begins"),
        ("workflow_start", {"workflow": "w", "steps": ["a", "b"]}, "workflow", "w begins: a, b"),
        ("workflow_step", {"step": "parse"}, "step", "parse"),
        (
            "workflow_step",
            {"step": "parse", "index": 1, "total": 3, "status": "begun"},
            "step",
            "(1/3) parse begun",
        ),
        ("workflow_step", {"step": "parse", "index": 1}, "step", "(1) parse"),
        (
            "workflow_complete",
            {"workflow": "w", "success": False, "total_time": 1},
            "workflow",
            "w failed after 1.00 s",
        ),
        ("model_selection", {"model": "small"}, "model", "small"),
        (
            "model_selection",
            {"model": "small", "reason": "it is cheap", "candidates": ["small", "large"]},
            "model",
            "small of small, large: it is cheap",
        ),
        ("error", {"error": "boom"}, "error", "boom"),
        (
            "error",
            {"error": "boom", "error_type": "OSError", "recoverable": True, "retry_count": 2},
            "error",
            "OSError: boom (can be retried, retry 2)",
        ),
        ("error", {"error": "boom", "recoverable": False}, "error", "boom (final)"),
        ("order.created", {"id": 7, "items": ["a"]}, "order.created", 'id=7, items=["a"]'),
        ("order.created", {}, "order.created", ""),
        ("completion", {"total_time": 1e300}, "completion", "done in ages"),
    ],
)
def test_a_type_is_said_in_its_words(
    event_type: str, data: dict[str, Any], label: str, text: str
) -> None:
    said = word(Event.of(event_type, data))
    assert (said.label, said.text) == (label, text)


@pytest.mark.parametrize(
    ("event_type", "data"),
    [
        ("thinking", {"thought": "Hm."}),
        ("tool_use", {"tool_name": "f"}),
        ("tool_result", {"tool_name": "f"}),
        ("progress", {"progress": 1}),
        ("completion", {}),
        ("workflow_start", {"workflow": "w"}),
        ("workflow_step", {"step": "s"}),
        ("workflow_complete", {"workflow": "w"}),
        ("model_selection", {"model": "m"}),
        ("error", {"error": "e"}),
    ],
)
def test_what_an_application_added_is_said_too(event_type: str, data: dict[str, Any]) -> None:
    said = word(Event.of(event_type, {**data, "cost": 0.5, "who": "me"}))
    assert said.text.endswith('[cost=0.5, who="me"]')


def test_a_gap_says_how_many_and_which() -> None:
    gap = gap_event("s", "ab", asked=None, first=1205, microseconds=0)
    said = word(gap)
    assert said.text == "1204 events are missing, no longer kept: ab-1 to ab-1204"
    assert (said.label, said.colour, said.is_loud) == ("!!! GAP !!!", "loud", True)


def test_a_gap_of_one_event_says_which() -> None:
    gap = gap_event("s", "ab", asked=None, first=2, microseconds=0)
    assert word(gap).text == "1 event is missing, no longer kept: ab-1"


def test_a_gap_of_a_log_that_was_lost_says_that_nobody_knows() -> None:
    gap = gap_event("s", "cd", asked=Position("ab", 7), first=1, microseconds=0)
    said = word(gap)
    assert said.text == "events are missing, nobody knows how many: between ab-7 and cd-0"


def test_an_event_of_a_test_says_so() -> None:
    event = Event.of("thinking", {"thought": "Hm."}, metadata={"test": True})
    assert word(event).text == "Hm. (test)"


@pytest.mark.parametrize(
    ("event_type", "data", "text"),
    [
        ("progress", {"progress": "half"}, 'progress="half"'),
        ("thinking", {}, ""),
        ("error", {"error": None}, "error=null"),
        ("tool_use", {"tool_name": "f", "parameters": [1]}, 'tool_name="f", parameters=[1]'),
        (GAP, {"from": 1, "to": None}, "from=1, to=null"),
    ],
)
def test_data_that_is_not_what_its_type_asks_for_is_shown_as_it_is(
    event_type: str, data: dict[str, Any], text: str
) -> None:
    assert word(event_of(event_type, data)) == Wording(event_type, text)


KNOWN = st.sampled_from([*EventType, GAP])
KEYS = st.sampled_from(
    [
        *("thought", "tool_name", "parameters", "result", "success", "execution_time", "progress"),
        *("message", "current_step", "total_steps", "total_time", "tokens_used", "workflow"),
        *("steps", "step", "index", "total", "status", "model", "reason", "candidates", "text"),
        *("node", "span", "error", "error_type", "recoverable", "retry_count"),
        *("from", "to", "missed"),
    ]
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=5,
)


@given(KNOWN, st.dictionaries(KEYS, VALUES, max_size=5))
def test_there_are_words_for_anything(event_type: str, data: dict[str, Any]) -> None:
    said = word(event_of(event_type, data))
    assert said.label


def test_there_are_words_for_numbers_that_no_float_holds() -> None:
    said = word(event_of("completion", {"total_time": 10**400, "tokens_used": 10**400}))
    assert said.text.startswith("total_time=1000")
