"""Events, their names, positions and payloads."""

import copy
import math
import pickle
import sys
import typing
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, timezone
from enum import Enum
from types import MappingProxyType
from typing import Any, Required

import pytest
from hypothesis import given, strategies as st

from callbackkit import EventKey, events
from callbackkit.errors import PayloadError, PositionError
from callbackkit.events import (
    GAP,
    Event,
    EventType,
    Position,
    check_event_type,
    check_payload,
)
from callbackkit.wire.envelope import JsonCodec, encode_body, gap_event

# Typed names.


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


# Names.


@pytest.mark.parametrize("name", [*EventType, "a", "order.created", "a-b.c_d.9", "x" * 128])
def test_lower_case_names_with_dots_are_event_types(name: str) -> None:
    check_event_type(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "a.",
        ".a",
        "a..b",
        "Order",
        "a b",
        "a\n",
        "a/b",
        "a,b",
        "*",
        "order.*",
        "é",
        "x" * 129,
    ],
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is no event type; use up to 128 of a-z"):
        check_event_type(name)


@pytest.mark.parametrize("name", [GAP, "callbackkit.anything"])
def test_our_own_names_can_not_be_emitted(name: str) -> None:
    with pytest.raises(ValueError, match=r"names in 'callbackkit\.' are reserved"):
        check_event_type(name)


def test_what_only_begins_like_our_own_names_can() -> None:
    check_event_type("callbackkit")
    check_event_type("callbackkits.gap")


@pytest.mark.parametrize("name", [None, 1, b"progress", int])
def test_a_name_is_a_string(name: Any) -> None:
    with pytest.raises(TypeError, match="an event type is a string, not "):
        check_event_type(name)


# Positions.


@given(st.from_regex(r"[A-Za-z0-9_.]{1,32}", fullmatch=True), st.integers(0, 10**18 - 1))
def test_a_position_comes_back_from_its_text(epoch: str, seq: int) -> None:
    position = Position(epoch, seq)
    assert Position.parse(str(position)) == position


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-",
        "e",
        "e-",
        "-1",
        "e-01",
        "e--1",
        "e-+1",
        "e-1 ",
        "e-1\n",
        "e e-1",
        "a-b-1",
        "e-٣",
        "é-1",
        f"{'e' * 33}-1",
        f"e-1{'0' * 18}",
        None,
        b"e-1",
    ],
)
def test_other_texts_are_no_positions(text: Any) -> None:
    with pytest.raises(PositionError, match="is no position such as"):
        Position.parse(text)


# Payloads: what is allowed.

FULL: Mapping[str, Mapping[str, Any]] = {
    "thinking": {"thought": "hm"},
    "tool_use": {"tool_name": "search", "parameters": {"q": "x"}},
    "tool_result": {
        "tool_name": "search",
        "result": [1],
        "success": True,
        "execution_time": 0.5,
    },
    "progress": {"progress": 0.4, "message": "parsing", "current_step": 1, "total_steps": 3},
    "completion": {"result": {"a": 1}, "success": False, "total_time": 2, "tokens_used": 0},
    "workflow_start": {"workflow": "w", "steps": ["a", "b"]},
    "workflow_step": {"step": "a", "index": 0, "total": 2, "status": "running"},
    "workflow_complete": {"workflow": "w", "success": True, "total_time": 0},
    "model_selection": {"model": "m", "reason": "cheap", "candidates": ("m", "n")},
    "streaming_chunk": {"text": "", "node": "a", "span": 1},
    "error": {"error": "boom", "error_type": "OSError", "recoverable": True, "retry_count": 2},
}
REQUIRED = {
    "thinking": "thought",
    "tool_use": "tool_name",
    "tool_result": "tool_name",
    "progress": "progress",
    "workflow_start": "workflow",
    "workflow_step": "step",
    "workflow_complete": "workflow",
    "model_selection": "model",
    "streaming_chunk": "text",
    "error": "error",
}
OPTIONAL = [
    (event_type, key)
    for event_type, data in FULL.items()
    for key in data
    if key != REQUIRED.get(event_type)
]


def test_every_known_type_has_a_payload() -> None:
    assert set(FULL) == set(EventType)


@pytest.mark.parametrize("event_type", EventType)
def test_what_a_type_says_it_has_is_allowed(event_type: EventType) -> None:
    data = FULL[event_type]
    check_payload(event_type, data)
    check_payload(event_type, MappingProxyType(dict(data)))
    check_payload(event_type, {**data, "more": object()})


@pytest.mark.parametrize(("event_type", "key"), OPTIONAL)
def test_what_is_not_required_may_be_absent_or_none(event_type: str, key: str) -> None:
    data = dict(FULL[event_type])
    check_payload(event_type, {**data, key: None})
    del data[key]
    check_payload(event_type, data)


def test_a_completion_needs_nothing() -> None:
    check_payload("completion", {})


@pytest.mark.parametrize("value", [0, 1, 0.0, 1.0, sys.float_info.min])
def test_progress_goes_from_0_to_1(value: float) -> None:
    check_payload("progress", {"progress": value})


@pytest.mark.parametrize("value", [0, 10**300, sys.float_info.max])
def test_a_time_may_be_long(value: float) -> None:
    check_payload("completion", {"total_time": value})


def test_other_types_may_carry_anything() -> None:
    check_payload("order.created", {"progress": "much", "thought": None})
    check_payload("order.created", {})


# Payloads: what is refused.


@pytest.mark.parametrize(("event_type", "key"), REQUIRED.items())
def test_what_is_required_is_there(event_type: str, key: str) -> None:
    data = dict(FULL[event_type])
    for wrong in ({**data, key: None}, {k: v for k, v in data.items() if k != key}):
        with pytest.raises(PayloadError) as caught:
            check_payload(event_type, wrong)
        assert caught.value.path == key
        assert caught.value.reason == f"is required in {event_type}"


TEXT: list[Any] = [1, True, b"x", ["x"], {}]
FLAG: list[Any] = [0, 1, "true", [], 1.0]
COUNT: list[Any] = [-1, 1.0, 0.5, True, "1", math.nan, math.inf, [], -(10**400)]
TIME: list[Any] = [-1, -0.1, True, "1", math.nan, math.inf, -math.inf, [], 10**400]
SHARE: list[Any] = [-0.1, 1.1, 2, True, "0.5", math.nan, math.inf, None, [], 10**400, 10**5_000]
OBJECT: list[Any] = ["{}", [], 1, [("a", 1)]]
NAMES: list[Any] = ["ab", {"a": 1}, {"a"}, 1]
WRONG: Mapping[tuple[str, str], list[Any]] = {
    ("thinking", "thought"): TEXT,
    ("tool_use", "tool_name"): TEXT,
    ("tool_use", "parameters"): OBJECT,
    ("tool_result", "tool_name"): TEXT,
    ("tool_result", "success"): FLAG,
    ("tool_result", "execution_time"): TIME,
    ("progress", "progress"): SHARE,
    ("progress", "message"): TEXT,
    ("progress", "current_step"): COUNT,
    ("progress", "total_steps"): COUNT,
    ("completion", "success"): FLAG,
    ("completion", "total_time"): TIME,
    ("completion", "tokens_used"): COUNT,
    ("workflow_start", "workflow"): TEXT,
    ("workflow_start", "steps"): NAMES,
    ("workflow_step", "step"): TEXT,
    ("workflow_step", "index"): COUNT,
    ("workflow_step", "total"): COUNT,
    ("workflow_step", "status"): TEXT,
    ("workflow_complete", "workflow"): TEXT,
    ("workflow_complete", "success"): FLAG,
    ("workflow_complete", "total_time"): TIME,
    ("model_selection", "model"): TEXT,
    ("model_selection", "reason"): TEXT,
    ("model_selection", "candidates"): NAMES,
    ("streaming_chunk", "text"): TEXT,
    ("streaming_chunk", "node"): TEXT,
    ("streaming_chunk", "span"): COUNT,
    ("error", "error"): TEXT,
    ("error", "error_type"): TEXT,
    ("error", "recoverable"): FLAG,
    ("error", "retry_count"): COUNT,
}


@pytest.mark.parametrize(("event_type", "key"), WRONG)
def test_what_breaks_its_type_is_refused_by_name(event_type: str, key: str) -> None:
    for value in WRONG[event_type, key]:
        with pytest.raises(PayloadError) as caught:
            check_payload(event_type, {**FULL[event_type], key: value})
        assert caught.value.path == key


def test_everything_but_a_result_is_checked() -> None:
    checked = {(event_type, key) for event_type, data in FULL.items() for key in data}
    assert checked - WRONG.keys() == {("tool_result", "result"), ("completion", "result")}


@pytest.mark.parametrize(
    ("event_type", "data", "path", "reason"),
    [
        ("progress", {"progress": 40}, "progress", "must be a number from 0 to 1, not 40"),
        ("progress", {"progress": math.nan}, "progress", "must be a number from 0 to 1, not nan"),
        ("progress", {"progress": True}, "progress", "must be a number from 0 to 1, not bool"),
        (
            "progress",
            {"progress": 10**5_000},
            "progress",
            "must be a number from 0 to 1, not so large a number",
        ),
        ("workflow_start", {"workflow": "w", "steps": ["a", 2]}, "steps[1]", "not int"),
        ("model_selection", {"model": "m", "candidates": [None]}, "candidates[0]", "NoneType"),
        ("progress", {"progress": 0, 1: 2}, "", "the keys of data must be strings, not int"),
        ("x", {None: 2}, "", "the keys of data must be strings, not NoneType"),
        ("x", [("a", 1)], "", "data must be a mapping, not list"),
        ("x", None, "", "data must be a mapping, not NoneType"),
        ("progress", "0.4", "", "data must be a mapping, not str"),
        ("error", {"error": "x", "retry_count": 1.0}, "retry_count", "a whole number from 0"),
    ],
)
def test_an_error_names_path_and_reason(event_type: str, data: Any, path: str, reason: str) -> None:
    with pytest.raises(PayloadError) as caught:
        check_payload(event_type, data)
    assert caught.value.path == path
    assert reason in caught.value.reason


def test_the_typed_payloads_are_what_is_checked() -> None:
    """A type checker and the validator know the same keys, and the same ones as required."""
    classes = {name: getattr(events, name) for name in events.__all__}
    typed = {name: cls for name, cls in classes.items() if typing.is_typeddict(cls)}
    names = {each: each.title().replace("_", "") for each in EventType} | {"error": "ErrorReport"}
    assert set(typed) == set(names.values())
    for event_type, name in names.items():
        hints = typing.get_type_hints(typed[name], include_extras=True)
        assert set(hints) == set(FULL[event_type])
        required = {key for key, hint in hints.items() if typing.get_origin(hint) is Required}
        assert required == ({REQUIRED[event_type]} if event_type in REQUIRED else set())


# Events.

CODEC = JsonCodec()


def make(body: bytes | None = None, **changes: Any) -> Event:
    given = {
        "position": Position("e", 12),
        "event_type": "progress",
        "microseconds": 1_795_273_200_000_001,
        "session_id": "s1",
        "body": encode_body(CODEC, {"progress": 0.4}, {"a": 1}, "chat") if body is None else body,
        "decode": CODEC.decode,
    }
    return Event(**{**given, **changes})


def test_an_event_says_what_happened() -> None:
    event = make()
    assert event.id == str(event.position) == "e-12"
    assert event.event_type == EventType.PROGRESS
    assert event.timestamp == datetime(2026, 11, 21, 15, 0, 0, 1, tzinfo=UTC)
    assert event.session_id == "s1"
    assert event.data == {"progress": 0.4}
    assert event.metadata == {"a": 1}
    assert event.conversation_id == "chat"
    assert repr(event) == "<Event e-12 progress>"
    assert not event.is_gap


def test_the_body_is_decoded_once_and_only_when_asked_for() -> None:
    decoded: list[bytes] = []

    def decode(body: bytes) -> Any:
        decoded.append(body)
        return CODEC.decode(body)

    event = make(decode=decode)
    assert (event.id, event.event_type, event.timestamp.year, event.body) == (
        "e-12",
        "progress",
        2026,
        make().body,
    )
    assert decoded == []
    assert event.data is event.data
    assert event.metadata
    assert len(decoded) == 1


def test_events_are_equal_by_what_they_say() -> None:
    assert make() == make(decode=str)
    assert hash(make()) == hash(make(decode=str))
    others = [
        make(position=Position("e", 13)),
        make(event_type="x"),
        make(microseconds=0),
        make(session_id="s2"),
        make(b"{}"),
    ]
    assert all(other != make() for other in others)
    assert make() != "e-12"


def test_an_event_does_not_change() -> None:
    event: Any = make()
    with pytest.raises(AttributeError):
        event.data = {}
    with pytest.raises(AttributeError):
        event.more = 1


def test_an_event_can_be_copied_and_sent_to_another_process() -> None:
    event = make()
    assert copy.deepcopy(event) == pickle.loads(pickle.dumps(event)) == event


def test_a_gap_is_an_event() -> None:
    gap = gap_event("s1", "e", asked=None, first=3, microseconds=0)
    assert gap.is_gap
    assert gap.data["missed"] == 2


# Events for tests.


def test_a_test_makes_an_event_of_type_and_data() -> None:
    event = Event.of("progress", {"progress": 0.4})
    assert (event.id, event.session_id, event.data) == ("test-1", "test", {"progress": 0.4})
    assert (event.metadata, event.conversation_id) == ({}, None)
    assert event.timestamp == datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC)
    assert Event.of("custom").data == {}
    assert copy.deepcopy(event) == pickle.loads(pickle.dumps(event)) == event


def test_a_test_says_as_much_of_an_event_as_it_likes() -> None:
    when = datetime(2026, 11, 21, 16, 0, 0, 1, tzinfo=timezone(timedelta(hours=1)))
    event = Event.of(
        EventType.PROGRESS,
        MappingProxyType({"progress": 0.4}),
        position=Position("e", 12),
        timestamp=when,
        session_id="s1",
        conversation_id="chat",
        metadata={"a": 1},
    )
    assert event == make()
    assert type(event.event_type) is str
    assert Event.of("x", position="e-12").position == Position("e", 12)


def test_later_positions_have_later_timestamps() -> None:
    one, two = Event.of("x", position="e-1"), Event.of("x", position="e-2")
    assert two.timestamp - one.timestamp == timedelta(seconds=1)


class Shade(str, Enum):
    DARK = "dark"


def test_the_type_of_an_event_is_the_text_of_an_enum() -> None:
    event = Event.of(Shade.DARK)
    assert event.event_type == "dark"
    assert type(event.event_type) is str


@pytest.mark.parametrize(
    ("arguments", "options", "error"),
    [
        (("Bad Name",), {}, ValueError),
        ((1,), {}, TypeError),
        (("progress",), {}, PayloadError),
        (("progress", {"progress": 2}), {}, PayloadError),
        (("x", []), {}, PayloadError),
        (("x", {"a": math.nan}), {}, ValueError),
        (("x", {"a": object()}), {}, TypeError),
        (("x",), {"position": "nowhere"}, PositionError),
        (("x",), {"timestamp": datetime(2026, 1, 1, tzinfo=UTC).replace(tzinfo=None)}, ValueError),
    ],
)
def test_a_test_can_make_no_event_that_could_not_be(
    arguments: Any, options: Any, error: type[Exception]
) -> None:
    with pytest.raises(error):
        Event.of(*arguments, **options)
