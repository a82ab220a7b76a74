"""How wide text is, and where it is broken."""

import pytest
from hypothesis import given, strategies as st

from callbackkit.client.columns import cut, fold, printable, width_of

LINES = st.text(st.one_of(st.characters(), st.sampled_from(" a\u9727\u0301\ufe0f\u200d"))).map(
    printable
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("fog", "fog"),
        ("\x1b[31mred\x07", " [31mred "),
        ("\x9b31mred", " 31mred"),
        ("a\rb\nc\x00", "a b c "),
        ("\u202egnp.exe", "gnp.exe"),
        ("zero\u200bwidth\ufeff", "zerowidth"),
        ("a\u2028b\u00a0c", "a b c"),
        ("\ud800", " "),
        ("\u2764\ufe0f", "\u2764"),
        ("\u9727 e\u0301", "\u9727 e\u0301"),
        ("a\ufe00b\U000e0100c\u034fd\u180be\u17b4f\u3164g\uffa0h\u115fi", "abcdefghi"),
        ("a\u2800b", "a b"),
    ],
)
def test_what_a_terminal_would_obey_is_taken_out(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text())
def test_printable_is_printable(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert printable(shown) == shown


@pytest.mark.parametrize(
    ("text", "width"),
    [("", 0), ("fog", 3), ("\u9727", 2), ("\uff21", 2), ("\U0001f600", 2), ("e\u0301", 1)],
)
def test_wide_characters_take_two_columns_and_marks_none(text: str, width: int) -> None:
    assert width_of(text) == width


@pytest.mark.parametrize(
    ("text", "room", "shown"),
    [
        ("little cat feet", 15, "little cat feet"),
        ("little cat feet", 10, "little ..."),
        ("\u9727\u9727\u9727", 6, "\u9727\u9727\u9727"),
        ("\u9727\u9727\u9727", 5, "\u9727..."),
        ("fog in", 2, ".."),
    ],
)
def test_what_there_is_no_room_for_becomes_dots(text: str, room: int, shown: str) -> None:
    assert cut(text, room) == shown


@given(LINES, st.integers(0, 20))
def test_what_was_cut_has_room(text: str, room: int) -> None:
    assert width_of(cut(text, room)) <= room


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("", [""]),
        ("fog", ["fog"]),
        ("fog ", ["fog "]),
        ("the fog ", ["the", "fog "]),
        ("a fog b", ["a fog", "b"]),
        ("haunches", ["haunch", "es"]),
        ("a haunches", ["a", "haunch", "es"]),
        ("    indented", ["    in", "dented"]),
        ("\u9727\u9727\u9727\u9727", ["\u9727\u9727\u9727", "\u9727"]),
        ("a\u9727\u9727\u9727", ["a\u9727\u9727", "\u9727"]),
        ("two  spaces", ["two ", "spaces"]),
    ],
)
def test_lines_are_broken_at_spaces_where_there_are_some(text: str, rows: list[str]) -> None:
    assert fold(text, 6, 6) == rows


def test_the_first_row_may_have_another_width() -> None:
    assert fold("the fog comes", 4, 9) == ["the", "fog comes"]


@given(LINES, st.integers(2, 20), st.integers(2, 20))
def test_rows_have_room_and_nothing_but_spaces_is_lost(text: str, first: int, room: int) -> None:
    rows = fold(text, first, room)
    assert width_of(rows[0]) <= first
    assert all(width_of(row) <= room for row in rows[1:])
    assert "".join(rows).replace(" ", "") == text.replace(" ", "")
    assert sum(map(len, rows)) >= len(text) - (len(rows) - 1)


@given(LINES, LINES, st.integers(2, 20))
def test_rows_that_are_full_stay_as_they_are_when_more_comes(
    text: str, more: str, room: int
) -> None:
    """So only the last one need be kept."""
    *full, last = fold(text, room, room)
    assert fold(text + more, room, room) == [*full, *fold(last + more, room, room)]


@pytest.mark.parametrize("room", [2, 79, 10_000])
def test_marks_that_take_no_column_fill_a_row_all_the_same(room: int) -> None:
    rows = fold("\u0301" * 20_000, room, room)
    assert max(map(len, rows)) == min(8 * room, 4_000)
    assert len(cut("\u0301" * 20_000, room)) <= min(8 * room, 4_000) + 3
