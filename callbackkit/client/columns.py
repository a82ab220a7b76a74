"""How wide text is in a terminal, and where it is broken."""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from typing import Final

__all__ = ["cut", "fold", "printable", "width_of"]

# It makes the sign before it wide in some terminals and not in others.
_SELECTOR: Final = "\ufe0f"


def printable(text: str) -> str:
    """Take out what a terminal would take for a command: the text comes from anybody.

    What is invisible goes, such as marks that turn the direction of writing; all else that is
    not printable, control characters among it, becomes a space.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(char if char.isprintable() else _instead(char) for char in text).replace(
        _SELECTOR, ""
    )


def _instead(char: str) -> str:
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
    used = 0
    for place in range(begin, len(text)):
        used += _columns(text[place])
        if used > room:
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
