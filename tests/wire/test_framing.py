"""Escaping and scanning: the rules character by character, linear work and bounded memory."""

import itertools
import time

import pytest
from hypothesis import example, given, strategies as st

from callbackkit.wire.framing import Escaper, Scanner, joined

MAX_TOKEN = 64

# Openers that overlap themselves, that are but one character, that are equal to the suffix.
FRAMES = [
    ("<graphai:", ">"),
    ("<", ">"),
    ("[[", "]]"),
    ("[", "]"),
    ("__", "__"),
    ("<a<a<", ">"),
    ("aab", "b;"),
    ("-->-->", "<<<<<<<<"),
]


class Token(str):
    __slots__ = ()


class Plain(Scanner):
    """Takes what has no space in it for a token, and counts what it looks at."""

    def __init__(self, opener: str, suffix: str, max_token: int = MAX_TOKEN) -> None:
        super().__init__(opener, suffix, max_token)
        self.work = 0

    def _finished(self, text: str) -> str:
        if is_token(text, self._max_token):
            return Token(text)
        self._is_split = True
        return text

    def _text(self, source: str, at: int, pieces: list[str]) -> int:
        return self._counted(at, super()._text(source, at, pieces))

    def _token(self, source: str, at: int, pieces: list[str]) -> int:
        return self._counted(at, super()._token(source, at, pieces))

    def _overlong(self, source: str, at: int, pieces: list[str]) -> int:
        return self._counted(at, super()._overlong(source, at, pieces))

    def _counted(self, begin: int, end: int) -> int:
        self.work += end - begin
        return end

    def scanned(self, chunks: list[str]) -> list[str]:
        pieces = [piece for chunk in chunks for piece in self._parsed(chunk)]
        left = self._left()
        return joined([*pieces, left] if left else pieces)


class Escaping(Escaper):
    def escaped(self, pieces: list[str]) -> str:
        return "".join(map(self._escaped, pieces))


def is_token(text: str, max_token: int) -> bool:
    return " " not in text and len(text) <= max_token


def by_the_rules(wire: str, opener: str, suffix: str, max_token: int) -> list[str]:
    """Scan one character after the other, as the rules are written down."""
    found: list[str] = []
    text = seen = token = ""
    state = "text"
    for char in wire:
        if state == "escape":
            text, seen, state = text + char, "", "text"
        elif state == "text":
            text, seen = text + char, seen + char
            if seen.endswith(opener[:-1] + "\\"):
                text, state = text[:-1], "escape"
            elif seen.endswith(opener):
                text, token, state = text[: -len(opener)], opener, "token"
        else:
            token += char
            if token[len(opener) :].endswith(suffix):
                if is_token(token, max_token):
                    found += [text, Token(token)] if text else [Token(token)]
                    text = ""
                else:
                    text += token
                token, seen, state = "", "", "text"
            elif token[1:].endswith(opener):
                text, token = text + token[: -len(opener)], opener
    text += token + ("\\" if state == "escape" else "")
    return [*found, text] if text else found


def kinds(pieces: list[str]) -> list[tuple[type, str]]:
    return [(type(piece), str(piece)) for piece in pieces]


def wires(opener: str, suffix: str) -> st.SearchStrategy[list[str]]:
    """Chunks of anything, above all of what matters."""
    parts = {opener, suffix, "\\", " ", "x", "word"}
    parts |= {text[at:] for text in (opener, suffix) for at in range(len(text))}
    parts |= {text[:at] for text in (opener, suffix) for at in range(1, len(text))}
    parts |= {opener + "x" + suffix, opener + " " + suffix, "x" * (MAX_TOKEN // 3)}
    chunk = st.lists(st.sampled_from(sorted(parts)), max_size=4).map("".join)
    return st.lists(chunk | st.text(max_size=5), max_size=20)


frames_and_wires = st.sampled_from(FRAMES).flatmap(
    lambda frame: st.tuples(st.just(frame), wires(*frame))
)


@given(frames_and_wires)
@example((("[[", "]]"), ["[\\[[[x]]"]))
@example((("[[", "]]"), ["[[[[[x]]]"]))
@example((("[", "]"), ["\\"]))
@example((("<a<a<", ">"), ["<a<a", "<a<x>"]))
# Another opener after a token that is too long, and one that the suffix overlaps.
@example((("<graphai:", ">"), ["<graphai:" + "x" * 99, "y<graphai:x>"]))
@example((("<graphai:", ">"), ["<graphai:" + "x" * 99, "y>y<graphai:x>"]))
@example((("aab", "b;"), ["aabxaab;xb;"]))
def test_a_scanner_goes_by_the_rules_however_the_text_is_cut(given_) -> None:
    (opener, suffix), chunks = given_
    wire = "".join(chunks)
    wanted = kinds(by_the_rules(wire, opener, suffix, MAX_TOKEN))
    assert kinds(Plain(opener, suffix).scanned(chunks)) == wanted
    assert kinds(Plain(opener, suffix).scanned([wire])) == wanted
    assert kinds(Plain(opener, suffix).scanned(list(wire))) == wanted


@given(frames_and_wires)
def test_escaped_text_holds_no_token_and_comes_back(given_) -> None:
    (opener, suffix), pieces = given_
    wire = Escaping(opener).escaped(pieces)
    assert by_the_rules(wire, opener, suffix, MAX_TOKEN) == joined(list(pieces))
    assert wire == Escaping(opener).escaped(["".join(pieces)])


@given(frames_and_wires)
def test_text_without_most_of_an_opener_stays_as_it_is(given_) -> None:
    (opener, _), pieces = given_
    text = "".join(pieces).replace(opener[:-1] or "\\", "")
    if (opener[:-1] or opener) not in text:
        assert Escaping(opener).escaped([text]) == text


@pytest.mark.parametrize("text", ["a < b", "</p>", "\\n \\<x", "<graph", "graphai:END", "<graphai"])
def test_other_text_stays_as_it_is(text: str) -> None:
    assert Escaping("<graphai:").escaped([text]) == text


# What can be done to it from outside.

MEAN = {
    "an unfinished token": lambda size: "<graphai:" + "x" * size,
    "openers": lambda size: "<graphai:" * (size // 9),
    "almost openers": lambda size: "<graphai" * (size // 8),
    "escapes": lambda size: "<graphai\\:" * (size // 10),
    "backslashes": lambda size: "\\" * size,
    "no tokens": lambda size: "<graphai: >" * (size // 11),
    "tokens": lambda size: "<graphai:x>" * (size // 11),
    "suffixes": lambda size: ">" * size,
    "openers, then a suffix": lambda size: "<graphai:" * (size // 9) + ">",
}
mean = pytest.mark.parametrize("make", MEAN.values(), ids=MEAN.keys())


@mean
@pytest.mark.parametrize("cut", [1, 7, 100, 10**9])
def test_no_character_is_looked_at_more_than_a_few_times(make, cut: int) -> None:
    wire = make(20_000)
    scanner = Plain("<graphai:", ">", max_token=8_192)
    scanner.scanned([wire[at : at + cut] for at in range(0, len(wire), cut)])
    # A token that is kept is looked at again when it may have ended, at cuts within openers too.
    assert scanner.work <= 10 * len(wire)


@mean
def test_no_more_is_kept_than_a_token_may_be_long(make) -> None:
    wire = make(20_000)
    scanner = Plain("<graphai:", ">", max_token=1_000)
    for char in wire:
        scanner._parsed(char)
        assert len(scanner._left()) <= 1_000
    assert len(scanner._parts) <= 1_000
    assert len(scanner._tail) < len("<graphai:")


@pytest.mark.torture
@mean
@pytest.mark.parametrize("cut", [1, 16, 10**9])
def test_time_grows_as_the_text_does(make, cut: int) -> None:
    def seconds(size: int) -> float:
        wire = make(size)
        chunks = [wire[at : at + cut] for at in range(0, len(wire), cut)]
        took = []
        for _ in range(5):
            began = time.process_time()
            Plain("<graphai:", ">", max_token=size * 2).scanned(chunks)
            Escaping("<graphai:").escaped(chunks)
            took.append(time.process_time() - began)
        return min(took)

    seconds(1_000)
    # Quadratic time would be 64 times as much.
    assert seconds(400_000) <= 8 * 4 * seconds(50_000) + 0.02


def test_adjacent_text_is_joined_and_tokens_are_left_alone() -> None:
    pieces = ["a", "", "b", Token("t"), Token("t"), "", Token("t"), "c"]
    assert kinds(joined(pieces)) == kinds(["ab", Token("t"), Token("t"), Token("t"), "c"])
    assert joined([]) == joined([""]) == []


def test_all_cuttings_of_a_short_text_give_the_same() -> None:
    wire = "a<graphai\\:<graphai:x><b"
    wanted = kinds(["a<graphai:", Token("<graphai:x>"), "<b"])
    for cuts in itertools.combinations(range(1, len(wire)), 3):
        ends = [0, *cuts, len(wire)]
        chunks = [wire[begin:end] for begin, end in itertools.pairwise(ends)]
        assert kinds(Plain("<graphai:", ">").scanned(chunks)) == wanted
