r"""Keep tokens apart from the text around them by an opener, a suffix and bit-stuffing.

With ``O`` for the opener, and ``Q`` for ``O`` without its last character ``x``:

* Text in which ``Q`` is followed by ``x`` is written with a backslash between the two. So
  ``<graphai:END>`` becomes ``<graphai\:END>``.
* Text in which ``Q`` is followed by a backslash is written with one more between the two.

So an opener is never in text, all other text is as it was, and whoever writes needs to know no
more of the text than how much of ``Q`` stands at its end. Nothing is held back.

On the way back ``Q``, backslash, character is that character, and ``O`` begins a token. It ends
with the first suffix. Should an opener be complete before that, it begins one there, and the
first was text: a stream that somebody else wrote gets in step again, and openers that overlap, as
in ``[[[END]]``, are told apart. What turns out to be no token is text, up to and with the suffix.
All this is decided character by character, so cutting the text elsewhere changes nothing.
``docs/explanation/framing.md`` has the same rules as a table.
"""

from __future__ import annotations

from abc import abstractmethod

__all__ = ["Escaper", "Scanner", "joined"]


class Escaper:
    """Escapes the text of one stream.

    Args:
        opener: What begins a token; has no backslash.
    """

    __slots__ = ("_begun", "_first", "_is_idle", "_matched", "_opener")

    def __init__(self, opener: str) -> None:
        self._opener: str = opener
        self._first: str = opener[0]
        self._begun: str = opener[:-1]
        self._forget()

    def _forget(self) -> None:
        """Begin anew: what was written last is no text."""
        # How many characters of the opener stand at the end of the text written so far.
        self._matched: int = 0
        # Whether text without the opener's first character needs no escape. If the opener is but
        # one character, any backslash is escaped.
        self._is_idle: bool = bool(self._begun)

    def _escaped(self, piece: str) -> str:
        """Return the next piece of text as it is to be written."""
        opener, begun = self._opener, self._begun
        if not begun:
            return piece.replace("\\", "\\\\").replace(opener, "\\" + opener)
        before = self._matched
        text = opener[:before] + piece
        found = text.find(begun)
        if found < 0:
            self._matched = _overlap(text, 0, opener)
            self._is_idle = not self._matched
            return piece
        parts: list[str] = []
        at = 0
        while found >= 0:
            end = found + len(begun)
            following = text[end : end + 1]
            if following and following in (opener[-1], "\\"):
                parts += text[at:end], "\\", following
                # Whoever reads starts anew behind an escape, and so does the search.
                at = end + 1
                found = text.find(begun, at)
            else:
                found = text.find(begun, found + 1)
        self._matched = _overlap(text, at, opener)
        self._is_idle = not self._matched
        parts.append(text[at:])
        return "".join(parts)[before:]


def _overlap(text: str, at: int, opener: str) -> int:
    """Return how many characters of an opener, not all, stand at the end of a text from a place."""
    start = text.find(opener[0], max(at, len(text) - len(opener) + 1))
    while start >= 0:
        if opener.startswith(text[start:]):
            return len(text) - start
        start = text.find(opener[0], start + 1)
    return 0


_TEXT, _ESCAPE, _TOKEN, _OVERLONG = range(4)
"""What a scanner is in: text, behind a backslash that escapes, a token, one that is too long."""


class Scanner:
    """Cuts a text that comes in chunks into text and tokens.

    Args:
        opener: What begins a token; has no backslash.
        suffix: What ends it.
        max_token: Characters of a token, opener and suffix with it; what is longer is text. Must
            be some times that of opener and suffix.
    """

    __slots__ = (
        "_first",
        "_held",
        "_is_idle",
        "_is_split",
        "_keep",
        "_max_token",
        "_opener",
        "_parts",
        "_size",
        "_state",
        "_suffix",
        "_tail",
    )

    def __init__(self, opener: str, suffix: str, max_token: int) -> None:
        self._opener: str = opener
        self._suffix: str = suffix
        self._max_token: int = max_token
        self._first: str = opener[0]
        # So many characters may be the beginning of an opener or a suffix.
        self._keep: int = max(len(opener), len(suffix)) - 1
        self._begin()

    def _begin(self) -> None:
        """Begin a stream."""
        self._state: int = _TEXT
        # Whether a chunk without the opener's first character is text as it is. If the opener is
        # but one character, a backslash matters as well.
        self._is_idle: bool = len(self._opener) > 1
        # Whether text was put out in pieces that are to be joined.
        self._is_split: bool = False
        # What is kept for the next chunk: of a token in parts, or joining it with each chunk would
        # take quadratic time.
        self._held: str = ""
        self._parts: list[str] = []
        self._size: int = 0
        self._tail: str = ""

    @abstractmethod
    def _finished(self, text: str) -> str:
        """Return the token that a text from opener to suffix is, or the text.

        A token is of a subclass of ``str``. For text, ``_is_split`` is to be set.
        """

    def _left(self) -> str:
        """Return what is kept, as text."""
        return "\\" if self._state == _ESCAPE else "".join(self._parts) + self._held

    def _parsed(self, chunk: str) -> list[str]:
        """Return what a chunk completes."""
        if not chunk or (self._state == _TOKEN and not self._may_end(chunk)):
            return []
        source = "".join(self._parts) + self._held + chunk
        self._parts = []
        self._held = ""
        self._is_split = False
        pieces: list[str] = []
        at, size = 0, len(source)
        while at < size:
            if self._state == _TEXT:
                at = self._text(source, at, pieces)
            elif self._state == _TOKEN:
                at = self._token(source, at, pieces)
            elif self._state == _ESCAPE:
                pieces.append(source[at])
                self._state = _TEXT
                at += 1
                self._is_split = True
            else:
                at = self._overlong(source, at, pieces)
        self._is_idle = self._state == _TEXT and not self._held and len(self._opener) > 1
        return joined(pieces) if self._is_split else pieces

    # Each of these takes the source from a place on, up to the next that concerns another of
    # them, or all of it, and returns how far it came. None looks at the same characters twice.

    def _text(self, source: str, at: int, pieces: list[str]) -> int:
        opener = self._opener
        size = len(opener)
        begin = source.find(opener, at)
        end = begin if begin >= 0 else len(source)
        if source.find("\\", at, end) >= 0:
            escape = opener[:-1] + "\\"
            found = source.find(escape, at, end)
            while found >= 0:
                self._is_split = True
                pieces.append(source[at : found + size - 1])
                at = found + size
                if at == len(source):
                    self._state = _ESCAPE
                    return at
                pieces.append(source[at])
                at += 1
                if 0 <= begin < at:
                    # What was escaped is no part of an opener.
                    begin = source.find(opener, at)
                    end = begin if begin >= 0 else len(source)
                found = source.find(escape, at, end)
        if begin < 0:
            end -= _overlap(source, at, opener)
            self._held = source[end:]
        else:
            self._state = _TOKEN
        if at < end:
            pieces.append(source[at:end])
        return begin if begin >= 0 else len(source)

    def _token(self, source: str, at: int, pieces: list[str]) -> int:
        opener, suffix = self._opener, self._suffix
        lowest = at + len(opener)
        while True:
            found = source.find(suffix, lowest)
            end = found + len(suffix) if found >= 0 else len(source) + 1
            # Any other opener that is complete before the suffix is; only the last one counts.
            other = source.rfind(opener, at + 1, end - 1)
            if other >= 0:
                self._is_split = True
                pieces.append(source[at:other])
                at = other
                lowest = at + len(opener)
            if found < 0:
                return self._unfinished(source, at, pieces)
            if found >= lowest:
                pieces.append(self._finished(source[at:end]))
                self._state = _TEXT
                return end

    def _unfinished(self, source: str, at: int, pieces: list[str]) -> int:
        """Keep the beginning of a token, unless it is too long already."""
        self._size = len(source) - at
        if self._size >= self._max_token:
            self._state = _OVERLONG
            self._is_split = True
            pieces.append(source[at : at + len(self._opener)])
            return at + len(self._opener)
        self._parts = [source[at:]]
        self._tail = source[max(at, len(source) - self._keep) :]
        return len(source)

    def _may_end(self, chunk: str) -> bool:
        """Tell whether a chunk may end the token that is kept; if it can't, keep it as well."""
        near = self._tail + chunk
        if self._suffix in near or self._opener in near:
            return True
        if self._size + len(chunk) >= self._max_token:
            return True
        self._parts.append(chunk)
        self._size += len(chunk)
        self._tail = near[max(0, len(near) - self._keep) :]
        return False

    def _overlong(self, source: str, at: int, pieces: list[str]) -> int:
        """Pass on as text what is too long for a token, up to its end or another opener."""
        self._is_split = True
        opener, suffix = self._opener, self._suffix
        found = source.find(suffix, at)
        end = found + len(suffix)
        other = source.find(opener, at, end - 1) if found >= 0 else source.find(opener, at)
        if other >= 0:
            self._state = _TOKEN
            end = other
        elif found >= 0:
            self._state = _TEXT
        else:
            end = max(at, len(source) - self._keep)
            self._held = source[end:]
        if at < end:
            pieces.append(source[at:end])
        return end if other >= 0 or found >= 0 else len(source)


def joined(pieces: list[str]) -> list[str]:
    """Join adjacent text; whatever is of a subclass stays as it is."""
    result: list[str] = []
    text: list[str] = []
    for piece in pieces:
        if piece.__class__ is str:
            text.append(piece)
            continue
        if run := "".join(text):
            result.append(run)
        text = []
        result.append(piece)
    if run := "".join(text):
        result.append(run)
    return result
