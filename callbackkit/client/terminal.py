"""A session as text for a terminal: events in, text out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import attrs

from callbackkit.client.columns import cut, fold, printable, width_of
from callbackkit.client.wording import Wording, word
from callbackkit.errors import PayloadError
from callbackkit.events import Event, EventType, check_payload

__all__ = ["LEAST_WIDTH", "TerminalView"]

LEAST_WIDTH: Final = 12
"""Columns that are used at least, however few there are."""

# Columns of the labels, a space behind them included, and what is left of that where it is narrow.
_INDENT: Final = 12
_LEAST_INDENT: Final = 2
_NARROW: Final = 30
# Columns that a label leaves at least for what is behind it.
_LEAST_ROOM: Final = 8
# Columns of a bar, at most.
_MOST_BAR: Final = 30
# Rows of one event in a terminal, characters of one anywhere, and of a label; --json has all.
_MOST_ROWS: Final = 20
_MOST_CHARACTERS: Final = 4_000
_MOST_LABEL: Final = 128
# Texts that are open at a time: of that many nodes each goes on in a row of its own.
_MOST_OPEN: Final = 4

_TAB: Final = "    "

_RESET: Final = "\x1b[0m"
_COLOURS: Final[Mapping[str, str]] = {
    "bold": "\x1b[1m",
    "dim": "\x1b[2m",
    "red": "\x1b[31m",
    "green": "\x1b[32m",
    "yellow": "\x1b[33m",
    "blue": "\x1b[34m",
    "magenta": "\x1b[35m",
    "cyan": "\x1b[36m",
    "loud": "\x1b[1;7;31m",
}

# A node, and the number of the span that speaks.
_Speaker = tuple[str | None, int | None]


@attrs.define(eq=False)
class _Text:
    """What a node says: what is not yet a full row of it.

    Attributes:
        text: Printable text of one line.
        began: When this row began, as a number that grows with each event.
        changed: When it last grew, likewise.
    """

    text: str
    began: int
    changed: int


@attrs.define(eq=False)
class TerminalView:
    """Tells what to write into a terminal, or a pipe, so that a session can be read there.

    In a terminal that understands how to move the cursor the last rows are live: what nodes are
    saying, then the bar of the progress; the cursor stays behind them. What is above never
    changes. Nothing is longer than a row, whose last column stays free: what is written there
    may break the line.

    Args:
        width: Columns; ``None`` for a pipe, where an event is a line, however long.
        height: Rows.
        has_colours: Colours may be used.
        is_live: The cursor may be moved. Needs a *width*.
        has_blocks: There are block characters, to draw bars with.
    """

    width: int | None = None
    height: int = 24
    has_colours: bool = attrs.field(default=False, kw_only=True)
    is_live: bool = attrs.field(default=False, kw_only=True)
    has_blocks: bool = attrs.field(default=False, kw_only=True)
    _texts: dict[_Speaker, _Text] = attrs.field(factory=dict[_Speaker, _Text], init=False)
    _bar: Event | None = attrs.field(default=None, init=False)
    # Whose text the last row that is done is of.
    _last: _Speaker | None = attrs.field(default=None, init=False)
    # Rows of the terminal that are live.
    _drawn: int = attrs.field(default=0, init=False)
    _now: int = attrs.field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        if self.is_live and self.width is None:
            raise ValueError("is_live needs the width of the terminal")

    # What is to be shown.

    def show(self, event: Event) -> str:
        """Return what to write for an event."""
        self._now += 1
        if _is_sound(event, EventType.STREAMING_CHUNK):
            return self._chunk(event.data)
        if _is_sound(event, EventType.PROGRESS):
            return self._progress(event)
        return self._write([*self._settle(), *self._lines(word(event))])

    def note(self, text: str) -> str:
        """Return what to write for something that is said about the connection."""
        wording = Wording("--", text, "dim", is_loud=True)
        return self._write([*self._settle(), *self._lines(wording)])

    def pause(self) -> str:
        """Return what to write when nothing has come for a while: in a pipe, lines not yet full."""
        return "" if self.is_live else self._write(self._settle())

    def end(self, text: str = "") -> str:
        """Return what to write at the end; the cursor is below everything then.

        Args:
            text: What is said about the end, if anything.
        """
        lines = self._settle()
        if self._bar is not None:
            lines.append(self._bar_row(self._bar))
            self._bar = None
        if text:
            lines += self._lines(Wording("end", text, "bold", is_loud=True))
        return self._write(lines)

    def resize(self, width: int, height: int) -> str:
        """Take note of the size of the terminal; return what to write if it is another one.

        What is live stays where it is: how a terminal breaks it anew is its own affair.
        """
        self.height = height
        if width == self.width:
            return ""
        if self.is_live:
            self._texts.clear()  # they stand there
            text = "\n" if self._drawn else ""
            self._drawn = 0
        else:
            text = self._write(self._settle())
        self.width = width
        self._last = None
        return text

    # What nodes say.

    def _chunk(self, data: Mapping[str, Any]) -> str:
        speaker = data.get("node"), data.get("span")
        told = self._texts.pop(speaker, None) or _Text("", self._now, self._now)
        *full, last = _split_lines(told.text + data["text"])
        *more, told.text = self._fold(last, speaker)
        lines: list[str] = []
        if full or more:
            # A node that fell silent before this row began stands above it.
            lines += self._settle(before=told.began)
            for line in [*full, *more]:
                lines += self._said(line, speaker)
            told.began = self._now
        told.changed = self._now
        self._texts[speaker] = told  # the one that grew last stands last
        if len(self._texts) > _MOST_OPEN:
            lines += self._settle_one(next(iter(self._texts)))
        return self._write(lines)

    def _fold(self, line: str, speaker: _Speaker) -> list[str]:
        """Break what a node says into rows, as they will stand there."""
        if self.width is None:
            return fold(line, _MOST_CHARACTERS, _MOST_CHARACTERS)
        _, _, room = self._head(self._name(speaker))
        return fold(line, room, self._columns - self._indent)

    def _name(self, speaker: _Speaker) -> str:
        """Return the label of what a node says, none where the row before has it."""
        if speaker == self._last and self.width is not None:
            return ""
        return f"{printable((speaker[0] or 'text')[:_MOST_LABEL])}:"

    def _said(self, line: str, speaker: _Speaker) -> list[str]:
        """Return the rows of a line that is done."""
        name = self._name(speaker)
        if self.width is not None and name and not line.strip():
            return []  # an empty line before the first
        rows = self._rows(name, line, "bold")
        self._last = speaker
        return rows

    def _settle(self, before: int | None = None) -> list[str]:
        """Return the rows of all that nodes say, or of those that last spoke before."""
        lines: list[str] = []
        for speaker, told in list(self._texts.items()):
            if before is None or told.changed < before:
                lines += self._settle_one(speaker)
        return lines

    def _settle_one(self, speaker: _Speaker) -> list[str]:
        text = self._texts.pop(speaker).text
        return self._said(text, speaker) if text.strip() else []

    # The bar.

    def _progress(self, event: Event) -> str:
        if self.is_live and event.data["progress"] < 1:
            self._bar = event
            return self._write([])
        self._bar = None
        # In a pipe a node goes on below it, or every few words would be a line.
        lines = self._settle() if self.is_live else []
        return self._write([*lines, self._bar_row(event)])

    def _bar_row(self, event: Event) -> str:
        """Return the bar, which is cut where there is no room for all that is behind it."""
        share, wording = event.data["progress"], word(event)
        # Only what is done is 100 %.
        percent = 100 if share == 1 else min(round(share * 100), 99)
        behind = f" {percent:3}% {printable(wording.text[:_MOST_CHARACTERS])}".rstrip()
        _, head, room = self._head(wording.label)
        columns = min(room // 3, _MOST_BAR) if self.width is not None else _MOST_BAR
        full = int(share * columns)
        signs = "\u2588\u2591" if self.has_blocks else "#."
        bar = signs[0] * full + signs[1] * (columns - full)
        self._last = None
        if self.width is not None:
            behind = cut(behind, room - columns)
        return self._paint(head, wording.colour) + self._paint(bar, wording.colour) + behind

    # Rows.

    @property
    def _columns(self) -> int:
        """How many may be used; of a pipe as many as anybody wants."""
        return _MOST_CHARACTERS if self.width is None else max(self.width, LEAST_WIDTH) - 1

    @property
    def _indent(self) -> int:
        return _INDENT if self._columns >= _NARROW else _LEAST_INDENT

    def _lines(self, wording: Wording) -> list[str]:
        """Return the rows of an event."""
        self._last = None
        text = wording.text[:_MOST_CHARACTERS]
        lines = [printable(text)] if self.width is None else _split_lines(text)
        colour = wording.colour if wording.is_loud else ""
        rows = self._rows(printable(wording.label[:_MOST_LABEL]), lines[0], wording.colour, colour)
        for line in lines[1:]:
            rows += self._rows("", line, "", colour)
        is_cut = len(text) < len(wording.text)
        if self.width is not None and len(rows) > _MOST_ROWS:
            rows, is_cut = rows[:_MOST_ROWS], True
        if is_cut:
            note = f"... ({len(wording.text)} characters in all)"
            if self.width is None:
                return [f"{rows[0]} {note}"]
            rows += self._rows("", note, "", "dim")
        return rows

    def _head(self, label: str) -> tuple[list[str], str, int]:
        """Return a label with spaces behind it, and the columns that are left of that row.

        One that leaves too little has rows of its own, which stand first in what is returned.
        """
        columns, indent = self._columns, self._indent
        used = width_of(label)
        if used < indent:
            return [], label + " " * (indent - used), columns - indent
        if self.width is None or columns - used > _LEAST_ROOM:
            return [], f"{label} ", max(columns - used - 1, _LEAST_ROOM)
        return [cut(label, columns)], " " * indent, columns - indent

    def _rows(self, label: str, line: str, colour: str, text_colour: str = "") -> list[str]:
        """Return the rows of a printable line, behind a label or what that leaves free."""
        above, head, room = self._head(label)
        if self.width is None:
            return [self._paint(head, colour) + self._paint(line, text_colour)]
        first, *others = fold(line, room, self._columns - self._indent)
        return [
            *(self._paint(row, colour) for row in above),
            self._paint(head, colour) + self._paint(first, text_colour),
            *(" " * self._indent + self._paint(row, text_colour) for row in others),
        ]

    def _paint(self, text: str, colour: str) -> str:
        if not colour or not self.has_colours or not text.strip():
            return text
        return f"{_COLOURS[colour]}{text}{_RESET}"

    # Writing.

    def _write(self, lines: Sequence[str]) -> str:
        """Return what writes rows that are done, and those that are live anew below them."""
        if not self.is_live:
            return "".join(f"{line.rstrip()}\n" for line in lines)
        live = self._live()
        up = f"\r\x1b[{self._drawn - 1}A" if self._drawn > 1 else "\r"
        if not lines and not live and not self._drawn:
            return ""
        self._drawn = len(live)
        # Row by row, each cleared behind its end: clearing all of them first would flicker.
        return up + "\x1b[K\n".join([*lines, *(live or [""])]) + "\x1b[J"

    def _live(self) -> list[str]:
        """Return the rows that are live; not more than stand in a terminal."""
        last, rows = self._last, list[str]()
        for speaker, told in self._texts.items():
            if told.text.strip():
                rows += self._said(told.text, speaker)
        if self._bar is not None:
            rows.append(self._bar_row(self._bar))
        self._last = last
        return rows[-max(self.height - 1, 1) :]


def _is_sound(event: Event, event_type: EventType) -> bool:
    """Tell whether an event is of a type, and has what that asks for."""
    if event.event_type != event_type:
        return False
    try:
        check_payload(event_type, event.data)
    except PayloadError:
        return False
    return True


def _split_lines(text: str) -> list[str]:
    """Return the lines of a text, at least one, each printable."""
    lines = text.replace("\r\n", "\n").replace("\t", _TAB).split("\n")
    return [printable(line) for line in lines]
