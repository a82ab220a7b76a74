"""What an answer means."""

from datetime import UTC, datetime

import pytest
from hypothesis import given, strategies as st

from callbackkit.client.answers import (
    BlockedError,
    LostError,
    check_status,
    retry_after,
)
from callbackkit.errors import (
    AccessDeniedError,
    CallbackKitError,
    SessionDeletedError,
    UnknownSessionError,
)

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("statuses", "error"),
    [
        ([401, 403], AccessDeniedError),
        ([404], UnknownSessionError),
        ([410], SessionDeletedError),
        ([408, 425, 429, 500, 502, 503, 504, 520], LostError),
        ([201, 301, 307, 400, 405, 406, 422, 426, 431, 501, 505], BlockedError),
    ],
)
def test_a_status_means_stop_come_back_or_try_another_way(
    statuses: list[int], error: type[Exception]
) -> None:
    for status in statuses:
        with pytest.raises(error) as raised:
            check_status(status, {}, "s1")
        assert type(raised.value) is error, status


@given(st.integers(100, 999))
def test_every_status_means_something(status: int) -> None:
    try:
        check_status(status, {}, "s1")
    except (CallbackKitError, LostError, BlockedError):
        return
    assert status == 200


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5", 5),
        (" 5 ", 5),
        ("0", 0),
        ("Sat, 21 Nov 2026 12:01:00 GMT", 60),
        ("Sat, 21 Nov 2026 12:01:00 -0000", 60),
        ("Sat, 21 Nov 2026 11:00:00 GMT", 0),
        ("", None),
        ("soon", None),
        ("-5", None),
        ("1e3", None),
        ("9" * 400, None),
    ],
)
def test_retry_after_is_seconds_or_a_date(text: str, seconds: float | None) -> None:
    assert retry_after({"retry-after": text}, NOW) == seconds


@given(st.text())
def test_any_retry_after_is_some_time_or_none(text: str) -> None:
    for date in ("", text, "Sat, 21 Nov 2026 12:01:00 GMT"):
        found = retry_after({"retry-after": text, "date": date}, NOW)
        assert found is None or found >= 0


def test_a_date_is_by_the_clock_of_the_server() -> None:
    when = "Sat, 21 Nov 2026 15:01:00 GMT"
    sent = "Sat, 21 Nov 2026 15:00:00 GMT"
    assert retry_after({"retry-after": when, "date": sent}, NOW) == 60
    assert retry_after({"retry-after": when, "date": "today"}, NOW) == 3 * 3_600 + 60


def test_the_wait_that_is_asked_for_is_told() -> None:
    with pytest.raises(LostError) as raised:
        check_status(429, {"retry-after": "7"}, "s1")
    assert raised.value.told == 7


def test_a_refusal_names_the_session_and_the_remedy() -> None:
    with pytest.raises(
        PermissionError, match=r"'s1' may not be followed \(401\): give the .* token"
    ):
        check_status(401, {}, "s1")
