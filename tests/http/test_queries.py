"""Parameters of queries: read as they are meant, refused by name."""

import pytest
from hypothesis import given, strategies as st

from callbackkit import ConfigError, PositionError
from callbackkit.http.queries import (
    last_event_id,
    resume_point,
    types_in,
    wanted_limit,
    wanted_place,
    wanted_since,
    wanted_wait,
)


def test_a_limit_is_a_whole_number() -> None:
    assert wanted_limit({}) == 100
    assert wanted_limit({"limit": "1"}) == 1
    assert wanted_limit({"limit": "1000"}) == 1_000
    for text in ("", "0", "1001", "-1", "1.0", " 1", "+1", "1_0", "\u0661", "9" * 5_000, "ten"):
        with pytest.raises(ConfigError, match="limit"):
            wanted_limit({"limit": text})


def test_a_wait_is_some_seconds() -> None:
    assert wanted_wait({}) == 0.0
    for text, seconds in {"0": 0.0, "30": 30.0, "2.5": 2.5, "1e1": 10.0, "0.": 0.0}.items():
        assert wanted_wait({"wait": text}) == seconds
    for text in ("", "-1", "30.1", "nan", "inf", "1e999", "1_0", " 1", "1 ", "0x1", "9" * 5_000):
        with pytest.raises(ConfigError, match="wait"):
            wanted_wait({"wait": text})


@given(st.text())
def test_any_text_is_a_number_or_refused(text: str) -> None:
    for read in (wanted_limit, wanted_wait):
        try:
            assert 0 <= read({"limit": text, "wait": text}) <= 1_000
        except ConfigError:
            continue


def test_types_are_names_with_commas() -> None:
    assert types_in([]) is None
    assert types_in(["", ","]) is None
    assert types_in(["a,b", "c.d,a"]) == {"a", "b", "c.d"}
    assert types_in(["callbackkit.gap"]) == {"callbackkit.gap"}
    for wrong in ("A", "a b", "a..b", "callbackkit.x", "é", "x" * 129):
        with pytest.raises(ConfigError, match="types"):
            types_in([wrong])
    with pytest.raises(ConfigError, match="at most 256"):
        types_in([",".join(f"t{n}" for n in range(257))])


@pytest.mark.parametrize(
    ("text", "point"),
    [
        (None, None),
        ("", None),
        ("earliest", None),
        ("now", "now"),
        ("latest", "now"),
        ("e-5", "e-5"),
        ("x", "x"),
    ],
)
def test_words_for_the_two_ends_are_understood(text: str | None, point: str | None) -> None:
    assert resume_point(text) == point


def test_a_header_counts_for_more_than_the_query() -> None:
    assert last_event_id(None, {}) is None
    assert last_event_id("e-2", {"last_event_id": "e-1"}) == "e-2"
    assert last_event_id("", {"lastEventId": "e-1"}) == "e-1"
    assert last_event_id(None, {"last_event_id": "", "last-event-id": "e-1"}) == "e-1"
    assert last_event_id("earliest", {"last_event_id": "e-1"}) is None
    assert last_event_id("now", {}) == "now"


@pytest.mark.parametrize("text", ["x", "e-", "-1", "e-01", "e\r\nX: y-1", "e-1\x00", "é-1"])
def test_what_is_no_position_is_refused_wherever_it_stands(text: str) -> None:
    with pytest.raises(PositionError):
        last_event_id(text, {})
    with pytest.raises(PositionError):
        last_event_id("e-1", {"last_event_id": text})


STAMP = 1_795_273_200_000_000


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-21T15:00:00Z",
        "2026-11-21T15:00:00.000000Z",
        "2026-11-21T16:00:00+01:00",
        "2026-11-21T16:00:00 01:00",
        "2026-11-21 15:00:00Z",
        "2026-11-21 16:00:00 01:00",
        "2026-11-21t15:00:00z",
    ],
)
def test_a_timestamp_survives_what_urls_do_to_it(text: str) -> None:
    assert wanted_since({"since": text}) == STAMP
    assert wanted_place({"before": text}) == text.replace(" 01", "+01").replace(" ", "T")


def test_a_variable_without_a_value_is_no_timestamp() -> None:
    for query in ({}, {"since": ""}, {"since": "null"}, {"since": "undefined"}):
        assert wanted_since(query) is None
    for text in ("None", "0", "yesterday", "2026-11-21", "9999-99-99T00:00:00Z"):
        with pytest.raises(ConfigError, match="since"):
            wanted_since({"since": text})


def test_a_place_is_left_to_the_session() -> None:
    assert wanted_place({}) is None
    assert wanted_place({"before": "e-5"}) == "e-5"
    assert wanted_place({"before": "x"}) == "x"
