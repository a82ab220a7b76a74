"""Formats of special tokens: which are taken, and which are refused and why."""

import re

import pytest

from callbackkit.wire.token_grammar import compile_special, compile_text, unquoted

GOOD = [
    "<{identifier}:{token}:{params}>",
    "<[{identifier}|{token}|{params}]>",
    "<[{identifier} | {token} | {params}]>",
    "<|{identifier}|{token}|{params}|>",
    "<{token}:{params}>",
    "[[{token}]]",
    "__{token}__",
    "<{identifier}:{token}>",
    "{identifier}[{token}]",
    "<{token}@{identifier}>",
    "[[{token}|{identifier}|{params}]]",
    "<{token};{params};>",
    "<{{{token}}}>",
    "<{identifier}/{token}={params}=>",
    "«{token}·{params}»",
    "{identifier}\n<{token}>\n",
]

BAD = [
    ("<{identifier}>", "must have {token} once"),
    ("plain", "must have {token} once"),
    ("", "must have {token} once"),
    ("<{token}:{token}>", "must have {token} once"),
    ("<{token}:{params}:{params}>", "{params} once"),
    ("<{params}:{token}>", "behind it {params}"),
    ("<{name}:{token}>", "unknown field {name}; known: {identifier}, {token}, {params}"),
    ("<{}:{token}>", "unknown field {}"),
    ("<{0}:{token}>", "unknown field {0}"),
    ("<{token.upper}>", "unknown field {token.upper}"),
    ("<{token!r}>", "write {token} without a conversion or a spec"),
    ("<{token:>10}>", "write {token} without a conversion or a spec"),
    ("<{token", "no format: expected '}'"),
    ("<token}>", "no format: Single '}'"),
    ("{token}>", "something before {token}"),
    ("<{token}", "something at its end"),
    ("<{token}:{params}", "something at its end"),
    ("<{token}{params}>", "between {token} and {params}"),
    ("<{token}and{params}>", "between {token} and {params}"),
    ("<{token}%{params}>", "between {token} and {params}"),
    ("<{token}:start{params}>", "':start' and ':end' belong to the token"),
    ("<{token}\\{params}>", "backslash"),
    ("<\ud800{token}>", "lone surrogate"),
    ("<" * 256 + "{token}>", "more than 256 characters"),
    ("TOKEN{token};", "'TOKEN' can turn up inside"),
    ("{identifier}:{token};", "'graphai:' can turn up inside"),
    (":{token}>", "':' can turn up inside"),
    ("%{token}>", "'%' can turn up inside"),
    ("<{token}:", "':' can turn up inside"),
    ("<{token}|{params}|", "'|' can turn up inside"),
    ("<{token};{params};;", "';;' can turn up inside"),
    ("[{token}][{params}]", "can turn up inside"),
    # The suffix within openers that overlap.
    ("->->{token}>", "can turn up inside"),
]


@pytest.mark.parametrize("text", GOOD)
@pytest.mark.parametrize("identifier", ["graphai", "", "a b", "1f0c-{x}"])
def test_a_format_that_can_be_read_back_is_taken(text: str, identifier: str) -> None:
    grammar = compile_special(identifier, text)
    written = grammar.opener + "X" + grammar.middle + grammar.suffix
    if grammar.has_params:
        assert text.format(identifier=identifier, token="X", params="P") == (
            f"{grammar.opener}X{grammar.middle}{grammar.separator}P{grammar.suffix}"
        )
    else:
        assert text.format(identifier=identifier, token="X") == written


@pytest.mark.parametrize(("text", "reason"), BAD)
def test_a_format_of_no_use_is_refused_and_named(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)) as caught:
        compile_special("graphai", text)
    assert repr(text)[:100] in str(caught.value)


def test_an_identifier_counts_for_what_is_refused() -> None:
    compile_special("a", "<{identifier}:{token}>")
    with pytest.raises(ValueError, match="backslash"):
        compile_special("a\\", "<{identifier}:{token}>")
    with pytest.raises(ValueError, match="with the identifier '' needs something before"):
        compile_special("", "{identifier}{token}>")


def test_a_format_or_an_identifier_that_is_no_string_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="identifier must be a string, not 7"):
        compile_special(7, "<{token}>")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="special_token_format must be a string, not None"):
        compile_special("x", None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="token_format must be a string, not b'x'"):
        compile_text(b"x")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("text", "lacks {token}"),
        ("{identifier}{token}", "unknown field {identifier}; known: {token}"),
        ("{token!s}", "without a conversion or a spec"),
        ("{token", "no format"),
    ],
)
def test_a_format_of_ordinary_tokens_has_the_token_and_nothing_else(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)) as caught:
        compile_text(text)
    assert repr(text) in str(caught.value)


def test_only_what_the_format_uses_and_what_ends_lines_is_encoded() -> None:
    grammar = compile_special("my-app", "<{identifier}:{token}:{params}>")
    assert grammar.quote("größe_1 & 'x'/.") == "größe_1 & 'x'/."
    assert grammar.quote("a-b<c>:d,e=f%g\\h") == "a%2Db%3Cc%3E%3Ad%2Ce%3Df%25g%5Ch"
    assert grammar.quote("\0\n\x7f\x85\u2028\u2029") == "%00%0A%7F%C2%85%E2%80%A8%E2%80%A9"


@pytest.mark.parametrize("text", ["", "a", "100 %", "%", "%4", "%zz", "a%2", "%%41"])
def test_what_is_no_percent_encoding_stays(text: str) -> None:
    assert unquoted(text) == text.replace("%41", "A")


def test_percent_encoded_bytes_that_are_no_utf_8_are_replaced() -> None:
    assert unquoted("a%FFb%C2%BB%e2%80%a8") == "a\ufffdb»\u2028"
