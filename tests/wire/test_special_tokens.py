"""Special tokens: what they say, and that text can be told from them at the far end of any wire."""

import copy
import pickle
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from typing import Any, get_args

import pytest
from hypothesis import assume, example, given, settings, strategies as st

from callbackkit import SpecialToken, TokenFormat, TokenParser
from callbackkit.wire.special_tokens import TokenKind

DEFAULT = "<{identifier}:{token}:{params}>"

# Any format that is not refused: brackets in many shapes, that overlap, share characters, have
# letters, digits, spaces or what the grammar itself uses in them, with or without a place for
# params.

literals = st.text("<>[]|:;.@#_-= ,%x1é·{}", max_size=3).map(
    lambda text: text.replace("{", "{{").replace("}", "}}")
)
identifiers = st.sampled_from(["graphai", "", "a b", "my-app", "END", "1", "{x}"])
wild_formats = st.builds(
    "".join,
    st.tuples(
        literals,
        st.sampled_from(["{identifier}", ""]),
        literals,
        st.just("{token}"),
        st.tuples(literals, st.sampled_from(["{identifier}", ""]), literals).map("".join),
        st.sampled_from(["{params}", ""]),
        literals,
        st.sampled_from(["{identifier}", ""]),
        literals,
    ),
)
known_formats = st.sampled_from(
    [
        DEFAULT,
        "<[{identifier}|{token}|{params}]>",
        "<[{identifier} | {token} | {params}]>",
        "<|{identifier}|{token}|{params}|>",
        "<{token}:{params}>",
        "[[{token}]]",
        "__{token}__",
        "<{identifier}:{token}>",
        "-->{token}@{identifier}|{params}<--",
    ]
)


@st.composite
def formats(draw: st.DrawFn) -> TokenFormat:
    text = draw(known_formats | wild_formats)
    try:
        return TokenFormat(draw(identifiers), text, legacy_empty_params=draw(st.booleans()))
    except ValueError:
        assume(False)
        raise


def spoofs(tokens: TokenFormat) -> st.SearchStrategy[str]:
    """Text of pieces of special tokens, and of anything."""
    whole = [
        str(tokens.special("stream_end")),
        str(tokens.special("node_start", "END")),
        str(tokens.special("gap", params={"missed": 3})),
    ]
    opener, suffix = tokens._grammar.opener, tokens._grammar.suffix
    parts = {*whole, "\\", "END", ":start", "GAP", "%45", suffix, "x=1"}
    parts |= {opener[at:] for at in range(len(opener))}
    parts |= {opener[:at] for at in range(1, len(opener))}
    pieces = st.sampled_from(sorted(parts)) | st.text(max_size=3)
    return st.lists(pieces, max_size=5).map("".join)


def streams(tokens: TokenFormat) -> st.SearchStrategy[list[str]]:
    """Pieces of a stream: text and special tokens with names and params out of the same pieces."""
    text = spoofs(tokens)
    names = text.filter(bool) | st.sampled_from(["END", "GAP", "start", "a:start", "END:end"])
    params = st.dictionaries(text, text, max_size=3) if tokens._grammar.has_params else st.just({})
    kinds = st.sampled_from(["node_start", "node_name", "node_end"])
    special = st.builds(tokens.special, kinds, names, params) | st.builds(
        tokens.special, st.sampled_from(["stream_end", "gap"]), st.none(), params
    )
    return st.lists(text | special, max_size=12)


@st.composite
def cases(draw: st.DrawFn) -> tuple[TokenFormat, list[str]]:
    tokens = draw(formats())
    return tokens, draw(streams(tokens))


def cut(whole: Any, random: Any) -> list[Any]:
    """Cut a text or bytes anywhere, into empty pieces too."""
    places = sorted(random.randint(0, len(whole)) for _ in range(random.randint(0, 30)))
    ends = [0, *places, len(whole)]
    return [whole[begin:end] for begin, end in pairwise(ends)]


def parse(tokens: TokenFormat | None, chunks: Sequence[Any], **options: int) -> list[Any]:
    parser = TokenParser(tokens, **options)
    return said([*(piece for chunk in chunks for piece in parser.feed(chunk)), *parser.flush()])


def said(pieces: Sequence[str]) -> list[Any]:
    """Join adjacent text, and write out what special tokens say."""
    told: list[Any] = []
    for piece in pieces:
        if isinstance(piece, SpecialToken):
            told.append((str(piece), piece.kind, piece.node, dict(piece.params)))
        elif told and isinstance(told[-1], str):
            told[-1] += piece
        elif piece:
            told.append(piece)
    return told


# The law.


@given(cases(), st.randoms(use_true_random=False))
@settings(max_examples=200)
def test_what_was_written_is_read_however_it_was_cut(case, random) -> None:
    tokens, pieces = case
    wire = tokens.encode(pieces)
    assert parse(tokens, cut(wire, random)) == said(pieces)
    assert parse(tokens, list(wire)) == said(pieces)


@given(cases(), st.randoms(use_true_random=False))
def test_what_was_written_is_read_from_bytes_however_they_were_cut(case, random) -> None:
    tokens, pieces = case
    wire = tokens.encode(pieces)
    assume(not any("\ud800" <= char <= "\udfff" for char in wire))
    assert parse(tokens, cut(wire.encode(), random)) == said(pieces)


@given(cases())
def test_nothing_is_held_back_when_writing(case) -> None:
    tokens, pieces = case
    encoder = tokens.encoder()
    written = [encoder.encode(piece) for piece in pieces]
    assert "".join(written) == tokens.encode(pieces)
    for piece, text in zip(pieces, written, strict=True):
        if isinstance(piece, SpecialToken):
            assert text == piece
        else:
            assert len(piece) <= len(text) <= 2 * len(piece)


@given(formats(), st.data(), st.randoms(use_true_random=False))
def test_any_text_is_read_and_cutting_it_makes_no_difference(tokens, data, random) -> None:
    wire = data.draw(spoofs(tokens))
    found = parse(tokens, [wire])
    assert found == parse(tokens, cut(wire, random)) == parse(tokens, list(wire))


@given(st.binary(max_size=60) | st.text().map(str.encode), st.randoms(use_true_random=False))
def test_any_bytes_are_read_and_cutting_them_makes_no_difference(wire, random) -> None:
    found = parse(None, [wire])
    assert found == parse(None, cut(wire, random))
    assert found == parse(None, [wire.decode(errors="replace")])


@given(cases(), st.randoms(use_true_random=False), st.integers(0))
def test_a_stream_that_breaks_off_gives_what_was_there(case, random, end) -> None:
    tokens, pieces = case
    wire = tokens.encode(pieces)
    whole = [item for item in parse(tokens, [wire]) if not isinstance(item, str)]
    half = parse(tokens, cut(wire[: end % (len(wire) + 1)], random))
    specials = [item for item in half if not isinstance(item, str)]
    assert specials == whole[: len(specials)]


# What is written.


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("node_start", "search"), "<graphai:search:start>"),
        (("node_name", "search"), "<graphai:search>"),
        (("node_end", "search"), "<graphai:search:end>"),
        (("stream_end",), "<graphai:END>"),
        (("node_start", "a", {"k": "v", "k2": 2}), "<graphai:a:start:k=v,k2=2>"),
        (("stream_end", None, {"status": "error"}), "<graphai:END:status=error>"),
        (("gap", None, {"missed": 3}), "<graphai:GAP:missed=3>"),
        (("node_name", "END"), "<graphai:%45ND>"),
        (("node_start", "GAP"), "<graphai:%47AP:start>"),
        (("node_start", "a:b>c"), "<graphai:a%3Ab%3Ec:start>"),
        (("node_end", "a", {"q": "x=y, z\n"}), "<graphai:a:end:q=x%3Dy%2C z%0A>"),
        (("node_name", "start"), "<graphai:start>"),
    ],
)
def test_special_tokens_look_as_documented(arguments, text: str) -> None:
    token = TokenFormat().special(*arguments)
    assert token == text
    assert hash(token) == hash(text)
    assert parse(None, [text]) == said([token])


@pytest.mark.parametrize(
    ("identifier", "text", "end", "start"),
    [
        ("myapp", "<[{identifier}|{token}|{params}]>", "<[myapp|END]>", "<[myapp|a:start|k=v]>"),
        ("my", "<[{identifier} | {token} | {params}]>", "<[my | END]>", "<[my | a:start | k=v]>"),
        ("", "<{identifier}:{token}:{params}>", "<:END>", "<:a:start:k=v>"),
        ("x", "<{token}:{params}>", "<END>", "<a:start:k=v>"),
        ("x", "[[{token}|{identifier}|{params}]]", "[[END|x]]", "[[a:start|x|k=v]]"),
    ],
)
def test_empty_params_take_the_separator_before_them_away_in_any_format(
    identifier: str, text: str, end: str, start: str
) -> None:
    tokens = TokenFormat(identifier, text)
    assert tokens.special("stream_end") == end
    assert tokens.special("node_start", "a", {"k": "v"}) == start
    assert tokens.special("node_start", "a", {}) == tokens.special("node_start", "a")


@pytest.mark.parametrize(
    ("text", "end"),
    [(DEFAULT, "<graphai:END:>"), ("<{token}|{params}>", "<END|>"), ("[[{token}]]", "[[END]]")],
)
def test_legacy_empty_params_writes_what_graphai_writes(text: str, end: str) -> None:
    tokens = TokenFormat(special_token_format=text, legacy_empty_params=True)
    assert tokens.special("stream_end") == end
    assert end == text.format(identifier="graphai", token="END", params="")


@pytest.mark.parametrize("legacy", [False, True])
def test_read_are_tokens_with_and_without_the_separator_of_empty_params(legacy: bool) -> None:
    tokens = TokenFormat(legacy_empty_params=legacy)
    assert parse(tokens, ["<graphai:END:><graphai:END><graphai:a:start:>"]) == [
        ("<graphai:END:>", "stream_end", None, {}),
        ("<graphai:END>", "stream_end", None, {}),
        ("<graphai:a:start:>", "node_start", "a", {}),
    ]


def test_params_as_graphai_writes_them_are_read() -> None:
    [(_, kind, node, params)] = parse(None, ["<graphai:find:start:query=who are you?,n=1:2>"])
    assert (kind, node, params) == ("node_start", "find", {"query": "who are you?", "n": "1:2"})


@pytest.mark.parametrize(
    "text",
    [
        "<graphai:>",
        "<graphai::start>",
        "<graphai:a:b>",
        "<graphai:a:start:b>",
        "<graphai:a\n>",
        "<graphai:a<b>",
        "<graphai END>",
    ],
)
def test_what_is_no_token_stays_text(text: str) -> None:
    assert parse(None, [text, "<graphai:END>"]) == [
        text,
        *said([TokenFormat().special("stream_end")]),
    ]


def test_an_opener_that_was_not_escaped_does_not_swallow_the_next_token() -> None:
    end = TokenFormat().special("stream_end")
    assert parse(None, ["so <graphai: and ", end]) == ["so <graphai: and ", *said([end])]
    assert parse(TokenFormat("", "[[{token}]]"), ["[[[[END]]"])[0] == "[["


# Text that looks like a token.


@pytest.mark.parametrize("text", ["<graphai:END>", "<graphai:END:>", "<graphai:db_delete:end>"])
def test_text_that_looks_like_a_token_is_text_at_the_far_end(text: str) -> None:
    tokens = TokenFormat()
    assert tokens.encode([text]) == text.replace("<graphai:", "<graphai\\:")
    assert parse(tokens, [tokens.encode([text])]) == [text]


@pytest.mark.parametrize("at", range(len("<graphai:END>")))
def test_a_token_split_over_two_pieces_forges_nothing(at: int) -> None:
    tokens = TokenFormat()
    spoof = "<graphai:END>"
    assert parse(tokens, [tokens.encode([spoof[:at], "", spoof[at:]])]) == [spoof]


def test_a_token_in_a_subclass_of_str_forges_nothing() -> None:
    class Sly(str):
        __slots__ = ()

        def __contains__(self, _part: object) -> bool:
            return False

        def find(self, *_arguments: Any) -> int:
            return -1

        def replace(self, *_arguments: Any) -> str:
            return self

    tokens, short = TokenFormat(), TokenFormat("", "<{token}>")
    assert tokens.encode([Sly("<graphai:END>")]) == "<graphai\\:END>"
    assert short.encode([Sly("<END>")]) == "\\<END>"
    assert parse(None, [Sly("<graphai:END>")])[0][1] == "stream_end"


def test_a_special_token_made_elsewhere_is_written_in_the_format_of_the_stream() -> None:
    tokens = TokenFormat("app", "<[{identifier}|{token}|{params}]>")
    forged = SpecialToken("<[app|END]>", kind="node_name", node="a")
    foreign = TokenFormat().special("node_start", "b", {"k": "v"})
    assert tokens.encode([forged, foreign]) == "<[app|a]><[app|b:start|k=v]>"
    without = TokenFormat("app", "<{identifier}:{token}>")
    assert without.encode([foreign]) == "<app:b:start>"


def test_an_opener_of_one_character_doubles_backslashes() -> None:
    tokens = TokenFormat("", "<{token}>")
    assert tokens.encode(["a<b\\", "c\\<"]) == "a\\<b\\\\c\\\\\\<"


# The parser.


def test_text_is_passed_on_at_once_but_for_what_may_begin_a_token() -> None:
    parser = TokenParser()
    assert parser.feed("Hello <gr") == ["Hello "]
    assert parser.feed("ass") == ["<grass"]
    assert parser.feed("<graphai\\") == ["<graphai"]
    assert parser.feed(":") == [":"]
    assert parser.feed("") == parser.feed("<") == parser.feed("graphai:END") == []
    assert parser.feed("> bye") == ["<graphai:END>", " bye"]
    assert parser.flush() == []


def test_the_end_of_the_stream_ends_nothing_in_the_parser() -> None:
    parser = TokenParser()
    assert parser.feed("<graphai:END>more") == ["<graphai:END>", "more"]
    assert parser.feed("!") == ["!"]


def test_within_one_call_adjacent_text_is_joined() -> None:
    assert TokenParser().feed("a<graphai\\:b<graphai::>c") == ["a<graphai:b<graphai::>c"]


@pytest.mark.parametrize(
    "rest", ["<gr", "<graphai\\", "<graphai:END", "<graphai:" + "x" * 9_000, "\\"]
)
@pytest.mark.parametrize("cut_at", [1, 5, 10_000])
def test_flush_gives_what_is_left_as_text(rest: str, cut_at: int) -> None:
    chunks = [rest[at : at + cut_at] for at in range(0, len(rest), cut_at)]
    assert parse(None, chunks) == [rest]
    assert parse(None, [chunk.encode() for chunk in chunks]) == [rest]


def test_flush_begins_another_stream() -> None:
    parser = TokenParser()
    assert parser.feed(b"<graphai:EN") == []
    assert parser.flush() == ["<graphai:EN"]
    assert parser.feed("D><graphai\\") == ["D><graphai"]
    assert parser.flush() == ["\\"]
    assert parser.feed(b":\xc3") == [":"]
    assert parser.flush() == ["\ufffd"]
    assert parser.flush() == []


def test_text_and_bytes_in_one_stream_are_refused() -> None:
    parser = TokenParser()
    parser.feed("text")
    with pytest.raises(TypeError, match="came as str so far and goes on as bytes"):
        parser.feed(b"bytes")
    assert parser.feed("text") == ["text"]
    parser.flush()
    parser.feed(b"\xc3")
    with pytest.raises(TypeError, match="came as bytes so far and goes on as str"):
        parser.feed("text")
    assert parser.feed(bytearray(b"\xa9")) == ["é"]
    assert parser.feed(memoryview(b"!")) == ["!"]


@pytest.mark.parametrize("chunk", [None, 7, ["text"], object()])
def test_a_chunk_that_is_neither_text_nor_bytes_is_a_type_error(chunk: Any) -> None:
    with pytest.raises(TypeError, match="text or bytes"):
        TokenParser().feed(chunk)


def test_a_token_longer_than_max_token_is_text_however_it_was_cut() -> None:
    tokens = TokenFormat()
    end = tokens.special("stream_end")
    for size in (60, 100):
        name = "n" * (size - len("<graphai:>"))
        fits, long = tokens.special("node_name", name), tokens.special("node_name", name + "n")
        wire = tokens.encode([fits, "a", long, "b", end])
        for step in (1, 3, 59, 60, 61, 1_000):
            chunks = [wire[at : at + step] for at in range(0, len(wire), step)]
            wanted = said([fits, "a" + long + "b", end])
            assert parse(tokens, chunks, max_token=size) == wanted


@pytest.mark.parametrize("text", [DEFAULT, "[[{token}]]", "__{token}__", "<{token}|{params}|>"])
@given(data=st.data(), random=st.randoms(use_true_random=False))
def test_a_token_that_is_too_long_forges_no_other(text: str, data, random) -> None:
    tokens = TokenFormat(special_token_format=text)
    parts = st.lists(spoofs(tokens), min_size=1, max_size=20).map("".join).filter(bool)
    name = data.draw(parts) + "long" * 50
    pieces = ["a", tokens.special("node_start", name), "b", tokens.special("stream_end")]
    found = parse(tokens, cut(tokens.encode(pieces), random), max_token=150)
    assert found == said(["a" + pieces[1] + "b", pieces[3]])


def test_a_parser_remembers_a_bounded_number_of_tokens() -> None:
    parser, tokens = TokenParser(), TokenFormat()
    for number in range(2_000):
        [token] = parser.feed(tokens.special("node_name", f"n{number}"))
        assert token.node == f"n{number}"
    assert len(parser._known) <= 512
    assert len(tokens._made) <= 512
    long = tokens.special("node_name", "n" * 1_000)
    assert parser.feed(long) == [long]
    assert long not in parser._known
    assert ("node_name", "n" * 1_000) not in tokens._made


@pytest.mark.parametrize("size", [0, -1, 10, 55])
def test_a_parser_without_room_for_a_token_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="max_token must be at least 56"):
        TokenParser(max_token=size)


def test_a_parser_takes_a_format_and_not_its_text() -> None:
    with pytest.raises(TypeError, match=r"TokenFormat, not '<{token}>'"):
        TokenParser("<{token}>")  # type: ignore[arg-type]


# The token.


def pickled(value: Any, protocol: int | None = None) -> Any:
    return pickle.loads(pickle.dumps(value, protocol))


def test_a_token_says_what_it_is() -> None:
    token = SpecialToken("<x>", kind="node_start", node="a", params={"n": 1})
    assert (token.kind, token.node, token.params) == ("node_start", "a", {"n": "1"})
    assert f"{token}" == str(token) == "<x>"
    assert type(str(token)) is str
    assert repr(token) == "SpecialToken('<x>')"
    assert set(get_args(TokenKind)) == {"node_start", "node_name", "node_end", "stream_end", "gap"}


@pytest.mark.parametrize("name", ["kind", "node", "params", "other"])
def test_a_token_never_changes(name: str) -> None:
    token = TokenFormat().special("node_start", "a", {"k": "v"})
    with pytest.raises(AttributeError):
        setattr(token, name, "x")
    with pytest.raises(TypeError):
        token.params["k"] = "x"  # type: ignore[index]


@pytest.mark.parametrize(
    "again",
    [copy.copy, copy.deepcopy, *(partial(pickled, protocol=number) for number in range(6))],
    ids=["copy", "deepcopy", *(f"protocol {number}" for number in range(6))],
)
@given(st.text(min_size=1), st.dictionaries(st.text(), st.text()))
@example("END", {"k": "v"})
def test_a_token_is_the_same_after_copying_and_pickling(again, node, params) -> None:
    token = TokenFormat().special("node_end", node, params)
    other = again(token)
    assert said([other]) == said([token])
    assert isinstance(other, SpecialToken)


def test_a_name_and_values_of_other_types_become_plain_text() -> None:
    class Name(str):
        __slots__ = ()

        def __str__(self) -> str:
            return "other"

    token = TokenFormat().special("node_start", Name("a"), {Name("k"): 1.5, "none": None})
    assert token == "<graphai:a:start:k=1.5,none=None>"
    assert type(token.node) is str


def by_hand(kind: Any, node: Any = None, params: Any = None) -> SpecialToken:
    return SpecialToken("text", kind=kind, node=node, params=params)


@pytest.mark.parametrize("make", [TokenFormat().special, by_hand], ids=["format", "by hand"])
@pytest.mark.parametrize(
    ("arguments", "error", "reason"),
    [
        (("other", "a"), ValueError, "unknown kind of special token 'other'; known: node_start"),
        (("node_start",), TypeError, "name of a node must be a string, not None"),
        (("node_end", 7), TypeError, "name of a node must be a string, not 7"),
        (("node_start", ""), ValueError, "must not be empty"),
        (("node_start", "", {"k": 1}), ValueError, "must not be empty"),
        (("stream_end", "a"), ValueError, "'stream_end' has no node, and got 'a'"),
        (("gap", "a"), ValueError, "'gap' has no node, and got 'a'"),
        (("node_start", "a", {1: 2}), TypeError, "name of a param must be a string, not 1"),
    ],
)
def test_a_token_that_makes_no_sense_is_refused(make, arguments, error, reason) -> None:
    with pytest.raises(error, match=reason):
        make(*arguments)


# The format.


def test_without_a_place_for_params_those_of_an_application_are_refused() -> None:
    tokens = TokenFormat("app", "<{identifier}:{token}>")
    with pytest.raises(ValueError, match=r"no place for the params of node 'a'; add {params}"):
        tokens.special("node_start", "a", {"k": "v"})
    end = tokens.special("stream_end", params={"status": "error"})
    assert end == "<app:END>"
    assert end.params == {"status": "error"}


def test_formats_are_equal_by_what_they_were_given() -> None:
    assert TokenFormat() == TokenFormat("graphai", DEFAULT, "{token}", legacy_empty_params=False)
    assert hash(TokenFormat("a")) == hash(TokenFormat("a"))
    assert TokenFormat("a") != TokenFormat("b")
    assert TokenFormat() != TokenFormat(legacy_empty_params=True)
    assert TokenFormat() != TokenFormat(token_format="{token} ")
    assert repr(TokenFormat("a")) == (
        f"TokenFormat(identifier='a', special_token_format={DEFAULT!r}, token_format='{{token}}', "
        "legacy_empty_params=False)"
    )


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, pickled])
def test_a_format_works_after_copying_and_pickling(again) -> None:
    tokens = TokenFormat("app", "[[{token}|{params}]]")
    tokens.special("node_start", "a")
    other = again(tokens)
    assert other == tokens
    assert other.encode(["[[", other.special("node_start", "a")]) == "[\\[[[a:start]]"


@pytest.mark.parametrize(
    ("text", "token", "written"),
    [("{token}", "a", "a"), ("TOKEN: {token}\n", "a", "TOKEN: a\n"), ("{token}{token}", "a", "aa")],
)
def test_token_format_is_applied_to_text(text: str, token: str, written: str) -> None:
    tokens = TokenFormat(token_format=text)
    assert tokens.text(token) == written
    assert tokens.is_plain is (text == "{token}")


def test_a_token_format_with_the_opener_in_it_is_refused() -> None:
    with pytest.raises(ValueError, match="has the opener of special tokens, '<graphai:'"):
        TokenFormat(token_format="<graphai:{token}>")


def test_a_format_that_is_wrong_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match=r"lacks {token}"):
        TokenFormat(token_format="x")
    with pytest.raises(ValueError, match="once"):
        TokenFormat(special_token_format="<{identifier}>")


@pytest.mark.parametrize("piece", [None, b"bytes", 7])
def test_a_piece_that_is_no_string_is_a_type_error(piece: Any) -> None:
    with pytest.raises(TypeError, match="written from strings"):
        TokenFormat().encode([piece])


def test_a_format_serves_many_threads() -> None:
    tokens = TokenFormat()

    def make(first: int) -> bool:
        names = [f"n{number % 700}" for number in range(first, first + 3_000)]
        return all(tokens.special("node_name", name).node == name for name in names)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(make, range(0, 800, 100)))
