"""Compile the format of special tokens, and refuse one that could not be read back.

With *name* and *params* percent-encoded, a token is written as::

    opener name [":start" | ":end"] middle [separator params] suffix

where everything but *name* and *params* is taken from the format. A token is found by its opener,
and ends with the first suffix behind it. That is only right if no name and no params can make an
opener or a suffix turn up elsewhere in it, together with what stands around them or not; such a
format is ambiguous. It is tried out here, for all names and params at once, as a walk over the
shapes that a token can have.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from string import Formatter
from typing import Final

import attrs

__all__ = ["TokenGrammar", "compile_special", "compile_text", "unquoted"]

_USUAL: Final = "<{identifier}:{token}:{params}>"
_FIELDS: Final = ("identifier", "token", "params")
_MOST_CHARACTERS: Final = 256

# Encoded in names and params whatever the format: what the grammar itself uses, and every control
# character and line end, so that a token stays on its line.
_ALWAYS_QUOTED: Final = frozenset(
    "%\\:,=\u2028\u2029" + "".join(map(chr, [*range(0x20), *range(0x7F, 0xA0)]))
)
_QUOTED: Final = re.compile("(?:%[0-9A-Fa-f]{2})+")


@attrs.frozen(eq=False)
class TokenGrammar:
    """How special tokens are written; names are those of the module's docstring.

    Attributes:
        separator: ``""`` when the format has no place for params.
        has_params: Whether it has one.
        quoted: Matches a character that is encoded in names and params.
        body: Matches what stands between opener and suffix: name, ``start`` or ``end``, params.
    """

    opener: str
    middle: str
    separator: str
    suffix: str
    has_params: bool
    quoted: re.Pattern[str]
    body: re.Pattern[str]

    def quote(self, text: str) -> str:
        """Percent-encode a name or a param."""
        # Only what is neither letter nor digit is ever encoded.
        if text.isalnum() or not self.quoted.search(text):
            return text
        return self.quoted.sub(_quote, text)


def compile_text(text: str) -> tuple[str, ...]:
    """Return what stands around ``{token}`` in the format of ordinary tokens.

    Raises:
        TypeError, ValueError: It is no format, or lacks ``{token}``.
    """
    parts = [""]
    for literal, field in _parsed("token_format", text, ("token",)):
        parts[-1] += literal
        if field:
            parts.append("")
    if len(parts) < 2:
        raise ValueError(f"token_format {text!r} lacks {{token}}, the place of the text")
    return tuple(parts)


def compile_special(identifier: str, text: str) -> TokenGrammar:
    """Compile the format of special tokens.

    Raises:
        TypeError, ValueError: It is no format, or tokens in it could not be read back.
    """
    if not isinstance(identifier, str):
        raise TypeError(f"identifier must be a string, not {identifier!r:.200}")
    if not isinstance(text, str):
        raise TypeError(f"special_token_format must be a string, not {text!r:.200}")
    return _compiled(str.__str__(identifier), str.__str__(text))


# A pure function of strings. Every run compiles its format, and nearly all runs of an application
# have the same; what is remembered saves each of them about half a millisecond.
@lru_cache(maxsize=128)
def _compiled(identifier: str, text: str) -> TokenGrammar:
    opener, middle, separator, suffix, has_params = _cut(identifier, text)
    _check(_told(identifier, text), opener, middle + separator, suffix, has_params=has_params)
    literal = opener + middle + separator + suffix
    quoted = _ALWAYS_QUOTED | {char for char in literal if not char.isalnum()}
    shapes = list(_shapes(opener, middle, separator, suffix, quoted, has_params=has_params))
    _check_unambiguous(_told(identifier, text), opener, suffix, shapes)
    return TokenGrammar(
        opener,
        middle,
        separator,
        suffix,
        has_params,
        re.compile(f"[{re.escape(''.join(sorted(quoted)))}]"),
        _body(middle, separator, quoted, has_params=has_params),
    )


def _quote(found: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in found[0].encode())


def unquoted(text: str) -> str:
    """Undo percent-encoding; what is none stays, bytes that are no UTF-8 become U+FFFD."""
    if "%" not in text:
        return text
    return _QUOTED.sub(lambda found: _decoded(found[0]), text)


def _decoded(quoted: str) -> str:
    return bytes.fromhex(quoted.replace("%", "")).decode(errors="replace")


def _body(
    middle: str, separator: str, quoted: frozenset[str], *, has_params: bool
) -> re.Pattern[str]:
    """Return the pattern of what stands between opener and suffix.

    What is no encoding of ours is taken as it comes, as GraphAI writes params, as long as they
    have a ``=``. Nothing in it can be matched in two ways, so it takes linear time.
    """
    name = f"[^{re.escape(''.join(sorted(quoted - {'%'})))}]++"
    params = f"(?:{re.escape(separator)}([^=]*+=.*|))?" if has_params else "()"
    return re.compile(f"({name})(?::(start|end))?{re.escape(middle)}{params}", re.DOTALL)


# Cutting a format up.


def _parsed(what: str, text: str, known: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Yield pairs of literal text and the field behind it."""
    if not isinstance(text, str):
        raise TypeError(f"{what} must be a string, not {text!r:.200}")
    try:
        parsed = list(Formatter().parse(text))
    except ValueError as error:
        raise ValueError(f"{what} {text!r} is no format: {error}") from None
    for literal, field, spec, conversion in parsed:
        if field is not None and field not in known:
            names = ", ".join(f"{{{name}}}" for name in known)
            raise ValueError(f"{what} {text!r} has the unknown field {{{field}}}; known: {names}")
        if spec or conversion:
            raise ValueError(f"{what} {text!r}: write {{{field}}} without a conversion or a spec")
        yield literal, field


def _cut(identifier: str, text: str) -> tuple[str, str, str, str, bool]:
    """Return opener, middle, separator, suffix, and whether there is a place for params."""
    texts: list[str] = [""]
    fields: list[str] = []
    mark = 0
    for literal, field in _parsed("special_token_format", text, _FIELDS):
        texts[-1] += literal
        if field == "identifier":
            texts[-1] += identifier
            # Of what stands before params, only what follows an identifier goes with them.
            mark = len(texts[-1]) if len(texts) == 2 else mark
        elif field:
            texts.append("")
            fields.append(field)
    if fields == ["token"]:
        return texts[0], "", "", texts[1], False
    if fields == ["token", "params"]:
        return texts[0], texts[1][:mark], texts[1][mark:], texts[2], True
    raise ValueError(
        f"special_token_format {text!r} must have {{token}} once, and behind it {{params}} once or "
        f"not at all, as in {_USUAL!r}"
    )


def _told(identifier: str, text: str) -> str:
    return f"special_token_format {text!r} with the identifier {identifier!r}"


def _check(told: str, opener: str, between: str, suffix: str, *, has_params: bool) -> None:
    """Refuse a format whose parts are of no use."""
    literal = opener + between + suffix
    if len(literal) > _MOST_CHARACTERS:
        raise ValueError(f"{told:.200}... has more than {_MOST_CHARACTERS} characters")
    if "\\" in literal:
        raise ValueError(f"{told} has a backslash, which is what escapes text; use another")
    if any("\ud800" <= char <= "\udfff" for char in literal):
        raise ValueError(f"{told} has a lone surrogate, which no UTF-8 can carry")
    if not opener:
        raise ValueError(f"{told} needs something before {{token}} that begins a special token")
    if not suffix:
        raise ValueError(f"{told} needs something at its end that ends a special token")
    if has_params and (not between or between[0].isalnum() or between[0] == "%"):
        raise ValueError(
            f"{told} needs something between {{token}} and {{params}} that does not begin with a "
            "letter, a digit or %, such as a colon"
        )
    if has_params and between.startswith((":start", ":end")):
        raise ValueError(f"{told} is ambiguous: ':start' and ':end' belong to the token")


# Ambiguity.

_Shape = list[str | frozenset[str]]
"""What a token can look like: a character, or one or more of all but those in a set."""


def _shapes(
    opener: str,
    middle: str,
    separator: str,
    suffix: str,
    quoted: frozenset[str],
    *,
    has_params: bool,
) -> Iterator[_Shape]:
    name, params = quoted - {"%"}, quoted - {*"%,="}
    tails = [_Shape(middle)]
    if has_params:
        # Empty params with their separator are what GraphAI writes.
        tails += [_Shape(middle + separator), [*middle, *separator, params]]
    for mark in ("", ":start", ":end"):
        for tail in tails:
            yield [*opener, name, *mark, *tail, *suffix]


def _check_unambiguous(told: str, opener: str, suffix: str, shapes: Sequence[_Shape]) -> None:
    """Refuse a format in which openers or suffixes can turn up inside a token.

    Neither may end anywhere in a token but at its very end. A suffix counts from the end of the
    opener on, but if openers overlap, as in ``[[[``, an earlier one may have been found.
    """
    size = len(opener)
    overlaps = any(opener.startswith(opener[start:]) for start in range(1, size))
    for shape in shapes:
        if _ends(opener, shape, range(1, len(shape))) - {len(shape)}:
            raise ValueError(
                f"{told} is ambiguous: {opener!r} can turn up inside a special token, so nobody "
                "could tell where one begins; begin it with a character that stands nowhere else"
            )
        if _ends(suffix, shape, range(1 if overlaps else size, len(shape))) - {len(shape)}:
            raise ValueError(
                f"{told} is ambiguous: {suffix!r} can turn up inside a special token, so nobody "
                "could tell where one ends; end it with a character that stands nowhere else"
            )


def _ends(text: str, shape: _Shape, starts: Sequence[int]) -> set[int]:
    """Return where a text can end within a shape, if it begins at one of these places."""
    places = set(starts)
    for char in text:
        places = {end for place in places for end in _steps(char, shape, place)}
    return places


def _steps(char: str, shape: _Shape, place: int) -> tuple[int, ...]:
    """Return where one is in a shape after a character."""
    if place == len(shape):
        return ()
    item = shape[place]
    if isinstance(item, str):
        return (place + 1,) if char == item else ()
    return () if char in item else (place, place + 1)
