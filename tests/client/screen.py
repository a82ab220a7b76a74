"""As much of a terminal as the view needs, to see what it would show."""

import re
import unicodedata

_SEQUENCE = re.compile(r"\x1b\[([0-9;]*)([A-Za-z])")


class Screen:
    """Rows of columns, and a cursor; fails on anything the view has no business with.

    A row that is written over its end, and a cursor that leaves the screen at the top, fail: a
    real terminal would go on somewhere else.
    """

    def __init__(self, width: int, height: int) -> None:
        self.width = width
        self.height = height
        self.scrolled: list[str] = []
        self._rows: list[list[str]] = [[]]
        self._row = 0
        self._column = 0

    @property
    def rows(self) -> list[str]:
        """What is shown, and what has left it at the top."""
        return [*self.scrolled, *("".join(row).rstrip() for row in self._rows)]

    @property
    def cursor(self) -> tuple[int, int]:
        return len(self.scrolled) + self._row, self._column

    def write(self, text: str) -> None:
        place = 0
        while place < len(text):
            char = text[place]
            if char == "\x1b":
                found = _SEQUENCE.match(text, place)
                assert found, ascii(text[place : place + 10])
                self._obey(found[2], found[1])
                place = found.end()
                continue
            place += 1
            if char == "\n":
                self._feed()
            elif char == "\r":
                self._column = 0
            else:
                assert char.isprintable(), ascii(char)
                self._put(char)

    def _obey(self, name: str, arguments: str) -> None:
        row = self._rows[self._row]
        if name == "A":
            self._row -= int(arguments)
            assert self._row >= 0, "above the top"
        elif name == "K":
            assert not arguments
            del row[self._column :]
        elif name == "J":
            assert not arguments
            del row[self._column :], self._rows[self._row + 1 :]
        else:
            assert name == "m", name

    def _feed(self) -> None:
        self._row, self._column = self._row + 1, 0
        if self._row == len(self._rows):
            self._rows.append([])
        if len(self._rows) > self.height:
            self.scrolled.append("".join(self._rows.pop(0)).rstrip())
            self._row -= 1

    def _put(self, char: str) -> None:
        row = self._rows[self._row]
        if unicodedata.category(char) in {"Mn", "Me"}:
            if self._column:
                row[self._column - 1] += char
            return
        columns = 2 if unicodedata.east_asian_width(char) in "WF" else 1
        row.extend(" " * (self._column - len(row)))
        row[self._column : self._column + columns] = [char, ""][:columns]
        self._column += columns
        assert self._column < self.width, "in the last column"
