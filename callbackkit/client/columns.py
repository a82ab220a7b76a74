"""How wide text is in a terminal, and where it is broken."""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from typing import Final

__all__ = ["cut", "fold", "printable", "shown", "width_of"]

# Characters that a row has for each of its columns, and at all: marks take no column.
_MOST_MARKS: Final = 8
_MOST_IN_ROW: Final = 4_000
# Not to be seen: fillers, joiners, and what selects how the sign before it looks, which makes that
# wide in some terminals and not in others. Unicode 16.0, DerivedCoreProperties.txt,
# Default_Ignorable_Code_Point: first and last of each range.
_INVISIBLE: Final = (
    (0xAD, 0xAD),
    (0x34F, 0x34F),
    (0x61C, 0x61C),
    (0x115F, 0x1160),
    (0x17B4, 0x17B5),
    (0x180B, 0x180F),
    (0x200B, 0x200F),
    (0x202A, 0x202E),
    (0x2060, 0x206F),
    (0x3164, 0x3164),
    (0xFE00, 0xFE0F),
    (0xFEFF, 0xFEFF),
    (0xFFA0, 0xFFA0),
    (0xFFF0, 0xFFF8),
    (0x1BCA0, 0x1BCA3),
    (0x1D173, 0x1D17A),
    (0xE0000, 0xE0FFF),
)
# A sign of Braille without a dot.
_BLANK: Final = "\u2800"


def printable(text: str) -> str:
    """Take out what a terminal would take for a command: the text comes from anybody.

    What is invisible goes, such as marks that turn the direction of writing; all else that is
    not printable, control characters among it, becomes a space.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(shown, text))


# A pure function of single characters.
@lru_cache(maxsize=4_096)
def shown(char: str) -> str:
    """Return what is printed for a character: itself, a space, or nothing."""
    point = ord(char)
    if any(first <= point <= last for first, last in _INVISIBLE):
        return ""
    if char.isprintable():
        return " " if char == _BLANK else char
    return "" if unicodedata.category(char) == "Cf" else " "


def width_of(text: str) -> int:
    """Return how many columns printable text takes.

    >>> width_of("fog"), width_of("\u9727"), width_of("e\u0301")
    (3, 2, 1)

    Source:
        Unicode Standard Annex #11, "East Asian Width"; ambiguous characters are taken as narrow.
    """
    return len(text) if text.isascii() else sum(map(_columns, text))


# A pure function of single characters.
@lru_cache(maxsize=4_096)
def _columns(char: str) -> int:
    if unicodedata.category(char) in {"Mn", "Me"}:
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def cut(text: str, room: int) -> str:
    """Return as much of one line as there is room for, and three dots for the rest.

    >>> cut("little cat feet", 10)
    'little ...'
    """
    if _end_of_row(text, 0, room) == len(text):
        return text
    dots = "..."[:room]
    return text[: _end_of_row(text, 0, room - len(dots))] + dots


def _end_of_row(text: str, begin: int, room: int) -> int:
    """Return where the first character stands that there is no room for."""
    if text.isascii():
        return min(begin + room, len(text))
    used, most = 0, min(_MOST_MARKS * room, _MOST_IN_ROW)
    for place in range(begin, len(text)):
        used += _columns(text[place])
        if used > room or place - begin >= most:
            return place
    return len(text)


def fold(text: str, first: int, room: int) -> list[str]:
    """Break one line into rows, at spaces where there are some.

    A space at which it is broken is left out, all else is kept: there may be more to come behind
    the last row, and lines may begin with spaces for a reason.

    >>> fold("The fog comes on little cat feet.", 8, 12)
    ['The fog', 'comes on', 'little cat', 'feet.']

    Args:
        text: Printable text.
        first: Columns of the first row, at least 2.
        room: Columns of all others, at least 2.
    """
    rows: list[str] = []
    begin, width = 0, first
    while (end := _end_of_row(text, begin, width)) < len(text):
        place = text.rfind(" ", begin, end + 1)
        # Not within the spaces that a line begins with.
        if place > begin and not text[begin:place].isspace():
            rows.append(text[begin:place])
            begin = place + 1
        else:
            rows.append(text[begin:end])
            begin = end
        width = room
    return [*rows, text[begin:]]
