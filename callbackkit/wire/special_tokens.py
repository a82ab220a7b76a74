"""Special tokens: what they say, and writing and reading a stream of text and such tokens."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final, Literal, Self

import attrs

from callbackkit.wire.framing import Escaper, Scanner, joined
from callbackkit.wire.token_grammar import (
    TokenGrammar,
    compile_special,
    compile_text,
    unquoted,
)

__all__ = ["SpecialToken", "TokenEncoder", "TokenFormat", "TokenKind", "TokenParser"]

TokenKind = Literal["node_start", "node_name", "node_end", "stream_end", "gap"]
"""What a special token tells."""

# What follows the node's name, or stands in its place.
_MARKS: Final[Mapping[TokenKind, str]] = {
    "node_start": ":start",
    "node_name": "",
    "node_end": ":end",
    "stream_end": "END",
    "gap": "GAP",
}
_KIND_OF_MARK: Final[Mapping[str | None, TokenKind]] = {
    "start": "node_start",
    None: "node_name",
    "end": "node_end",
}
_KIND_OF_NAME: Final[Mapping[str, TokenKind]] = {"END": "stream_end", "GAP": "gap"}

_new: Final = str.__new__
_NO_PARAMS: Final[Mapping[str, str]] = MappingProxyType({})

# Tokens of a run repeat, and never change. Those without params are made once and kept; at most so
# many, and none longer than this.
_MOST_KEPT: Final = 512
_LONGEST_KEPT: Final = 256


class SpecialToken(str):
    """A special token: the text that is written for it, and what it says.

    It is equal to its text, which is all that code written for GraphAI looks at. To tell it from
    text that looks the same, ask whether it is a ``SpecialToken``.

    >>> TokenFormat().special("node_start", "search", {"query": "cats"})
    SpecialToken('<graphai:search:start:query=cats>')

    Args:
        text: How it is written.
        kind: What it tells.
        node: Name of the node that starts, is named or ends.
        params: Further details.

    Raises:
        ValueError: The kind is unknown, or has a node that it must not have or lacks one.
        TypeError: The node or the name of a param is no string.
    """

    __slots__ = ("_said",)

    _said: tuple[TokenKind, str | None, Mapping[str, str]]

    def __new__(
        cls,
        text: str,
        *,
        kind: TokenKind,
        node: str | None = None,
        params: Mapping[str, object] | None = None,
    ) -> Self:
        self = super().__new__(cls, text)
        self._said = kind, _checked_node(kind, node), _checked_params(params)
        return self

    @property
    def kind(self) -> TokenKind:
        """What it tells."""
        return self._said[0]

    @property
    def node(self) -> str | None:
        """Name of the node; ``None`` for the end of the stream and a gap."""
        return self._said[1]

    @property
    def params(self) -> Mapping[str, str]:
        """Further details; read-only."""
        return self._said[2]

    def __repr__(self) -> str:
        return f"SpecialToken({super().__repr__()})"

    def __reduce__(self) -> tuple[Any, ...]:
        kind, node, params = self._said
        return _again, (type(self), str(self), kind, node, dict(params))


def _again(
    cls: type[SpecialToken], text: str, kind: TokenKind, node: str | None, params: dict[str, str]
) -> SpecialToken:
    """Make a token that was pickled or copied."""
    return cls(text, kind=kind, node=node, params=params)


def _make(text: str, kind: TokenKind, node: str | None, params: Mapping[str, str]) -> SpecialToken:
    """Make a token of what is known to be right."""
    token = _new(SpecialToken, text)
    token._said = kind, node, params
    return token


def _checked_node(kind: TokenKind, node: str | None) -> str | None:
    if kind not in _MARKS:
        raise ValueError(f"unknown kind of special token {kind!r:.200}; known: {', '.join(_MARKS)}")
    if kind in {"stream_end", "gap"}:
        if node is not None:
            raise ValueError(f"a token of the kind {kind!r} has no node, and got {node!r:.200}")
        return None
    if not isinstance(node, str):
        raise TypeError(f"the name of a node must be a string, not {node!r:.200}")
    if not node:
        raise ValueError("the name of a node must not be empty")
    return str.__str__(node)


def _checked_params(params: Mapping[str, object] | None) -> Mapping[str, str]:
    if not params:
        return _NO_PARAMS
    shown: dict[str, str] = {}
    for name, value in params.items():
        if not isinstance(name, str):
            raise TypeError(f"the name of a param must be a string, not {name!r:.200}")
        shown[str.__str__(name)] = str(value)
    return MappingProxyType(shown)


@attrs.frozen(slots=True)
class TokenFormat:
    r"""How the tokens of a run are written as text.

    >>> tokens = TokenFormat("myapp", "<[{identifier}|{token}|{params}]>")
    >>> tokens.special("stream_end")
    SpecialToken('<[myapp|END]>')
    >>> tokens.encode(["the end is ", "<[myapp", "|END]>", tokens.special("stream_end")])
    'the end is <[myapp\\|END]><[myapp|END]>'

    Names and params are percent-encoded where they have characters that the format uses. Empty
    params take the separator before them away. A format without ``{params}`` writes none: a token
    that comes with params keeps them in its ``params`` only, and those of an application are
    refused.

    Args:
        identifier: What all special tokens have in common; may be empty.
        special_token_format: Has ``{token}``, and may have ``{identifier}`` and ``{params}``.
        token_format: For ordinary tokens; has ``{token}``.
        legacy_empty_params: Whether the separator stays when there are no params, as GraphAI
            writes it: ``<graphai:END:>``. Read is either.

    Raises:
        ValueError: A format lacks ``{token}``, has unknown fields, conversions or specs, or is
            ambiguous: its special tokens could not be read back.
        TypeError: A format or the identifier is no string.
    """

    identifier: str = "graphai"
    special_token_format: str = "<{identifier}:{token}:{params}>"
    token_format: str = "{token}"
    legacy_empty_params: bool = attrs.field(default=False, kw_only=True)
    _grammar: TokenGrammar = attrs.field(init=False, repr=False, eq=False)
    # What stands around an ordinary token, and behind the name in a special one without params.
    _around: tuple[str, ...] = attrs.field(init=False, repr=False, eq=False)
    _behind: Mapping[TokenKind, str] = attrs.field(init=False, repr=False, eq=False)
    _made: dict[tuple[str, str | None], SpecialToken] = attrs.field(
        init=False, repr=False, eq=False
    )

    def __attrs_post_init__(self) -> None:
        grammar = compile_special(self.identifier, self.special_token_format)
        around = compile_text(self.token_format)
        if any(grammar.opener in part for part in around):
            raise ValueError(
                f"token_format {self.token_format!r} has the opener of special tokens, "
                f"{grammar.opener!r}; ordinary tokens must look different"
            )
        object.__setattr__(self, "_grammar", grammar)
        object.__setattr__(self, "_around", around)
        end = grammar.middle + (grammar.separator if self.legacy_empty_params else "")
        end += grammar.suffix
        behind = {kind: mark + end for kind, mark in _MARKS.items()}
        object.__setattr__(self, "_behind", behind)
        object.__setattr__(self, "_made", {})

    # Special tokens.

    def special(
        self, kind: TokenKind, node: str | None = None, params: Mapping[str, object] | None = None
    ) -> SpecialToken:
        """Make a special token.

        Args:
            kind: What it tells.
            node: Name of the node that starts, is named or ends; any text but an empty one.
            params: Further details; values are written as ``str()`` gives them.

        Raises:
            ValueError: The kind is unknown, has a node that it must not have or lacks one, or a
                node starts with params for which the format has no place.
            TypeError: The node or the name of a param is no string.
        """
        if params:
            return self._with_params(kind, node, _checked_params(params))
        # tests/benchmarks, "special-tokens".
        token = self._made.get((kind, node))
        if token is not None:
            return token
        name = _checked_node(kind, node)
        token = _make(self._written(kind, name, _NO_PARAMS), kind, name, _NO_PARAMS)
        if len(token) <= _LONGEST_KEPT:
            if len(self._made) >= _MOST_KEPT:
                self._made.clear()
            self._made[kind, name] = token
        return token

    def _with_params(
        self, kind: TokenKind, node: str | None, params: Mapping[str, str]
    ) -> SpecialToken:
        name = _checked_node(kind, node)
        # Those of the others come from the run itself, which must be able to end.
        if not self._grammar.has_params and kind in {"node_start", "node_name"}:
            raise ValueError(
                f"special_token_format {self.special_token_format!r} has no place for the params "
                f"of node {name!r}; add {{params}} to it"
            )
        return _make(self._written(kind, name, params), kind, name, params)

    def _written(self, kind: TokenKind, node: str | None, params: Mapping[str, str]) -> str:
        """Return the text of a token."""
        grammar = self._grammar
        quote = grammar.quote
        if node is None:
            named = ""
        elif node in _KIND_OF_NAME:
            # A node named END must not end the stream: its first letter is encoded.
            named = f"%{ord(node[0]):02X}{node[1:]}"
        else:
            named = quote(node)
        if not params or not grammar.has_params:
            return f"{grammar.opener}{named}{self._behind[kind]}"
        listed = ",".join([f"{quote(name)}={quote(value)}" for name, value in params.items()])
        between = grammar.middle + grammar.separator
        return f"{grammar.opener}{named}{_MARKS[kind]}{between}{listed}{grammar.suffix}"

    def _rewritten(self, token: SpecialToken) -> str:
        """Return the text of a token that may have been made with another format, or by hand."""
        if not token.params:
            return self.special(token.kind, token.node)
        return self._written(*token._said)

    def _read(self, text: str) -> SpecialToken | None:
        """Return the token that a text from opener to suffix is, if it is one."""
        grammar = self._grammar
        size = len(grammar.opener)
        found = grammar.body.fullmatch(text, size, len(text) - len(grammar.suffix))
        if found is None:
            return None
        name, mark, listed = found.groups()
        params = MappingProxyType(_split(listed)) if listed else _NO_PARAMS
        if mark is None and name in _KIND_OF_NAME:
            return _make(text, _KIND_OF_NAME[name], None, params)
        return _make(text, _KIND_OF_MARK[mark], unquoted(name), params)

    # Text.

    @property
    def is_plain(self) -> bool:
        """Whether ordinary tokens are written as they are."""
        return self.token_format == "{token}"

    def text(self, token: str) -> str:
        """Write an ordinary token by *token_format*; it is not escaped yet."""
        return token if self.is_plain else token.join(self._around)

    def encoder(self) -> TokenEncoder:
        """Return what writes one stream, escaped."""
        return TokenEncoder(self)

    def encode(self, pieces: Iterable[str]) -> str:
        """Write a whole stream, escaped; see :meth:`encoder`."""
        return "".join(map(TokenEncoder(self).encode, pieces))


def _split(listed: str) -> dict[str, str]:
    """Return the params of a list of them."""
    parts = (item.partition("=") for item in listed.split(","))
    return {unquoted(name): unquoted(value) for name, _, value in parts}


class TokenEncoder(Escaper):
    """Writes one stream: special tokens as they are, and text so that it holds none.

    Nothing is held back: what goes in comes out, a backslash longer where the text, joined with
    what came before, would have begun a special token. Returned by :meth:`TokenFormat.encoder`.
    """

    __slots__ = ("_format",)

    def __init__(self, token_format: TokenFormat) -> None:
        super().__init__(token_format._grammar.opener)
        self._format: TokenFormat = token_format

    def encode(self, piece: str) -> str:
        """Return what is to be written for the next piece of the stream.

        Args:
            piece: Text, to which *token_format* was applied already, or a
                :class:`SpecialToken`, which is written in the format of this encoder whatever
                it was made with.

        Raises:
            TypeError: It is no string.
        """
        # tests/benchmarks, "special-tokens-text": nearly all tokens of a model leave here.
        if piece.__class__ is str and self._is_idle and self._first not in piece:
            return piece
        if isinstance(piece, SpecialToken):
            self._forget()
            return str.__str__(self._format._rewritten(piece))
        if not isinstance(piece, str):
            raise TypeError(f"a stream is written from strings, not from {piece!r:.200}")
        # A subclass may have ideas of its own about what is in it.
        return self._escaped(str.__str__(piece))


# Reading.


class TokenParser(Scanner):
    """Gives back the tokens of a text that comes in chunks, however it was cut.

    >>> parser = TokenParser()
    >>> parser.feed("Hello <graph"), parser.feed("ai:EN"), parser.feed("D>")
    (['Hello '], [], [SpecialToken('<graphai:END>')])

    Text comes at once, but for a few characters at the end of a chunk that may begin a token.
    Within one call adjacent text is joined. Any input is taken: what is no special token is text,
    and what is no UTF-8 becomes U+FFFD. The end of the stream is a token like any other.

    Args:
        token_format: The format the text was written in; the default one if left out.
        max_token: Characters of a special token; what is longer is text.

    Raises:
        ValueError: *max_token* leaves no room for a token in this format.
        TypeError: *token_format* is no :class:`TokenFormat`.
    """

    __slots__ = ("_decoder", "_format", "_kind", "_known")

    def __init__(self, token_format: TokenFormat | None = None, *, max_token: int = 8192) -> None:
        if token_format is None:
            token_format = TokenFormat()
        elif not isinstance(token_format, TokenFormat):
            raise TypeError(f"a parser takes a TokenFormat, not {token_format!r:.200}")
        grammar = token_format._grammar
        least = 4 * (len(grammar.opener + grammar.middle + grammar.separator + grammar.suffix) + 3)
        if max_token < least:
            raise ValueError(
                f"max_token must be at least {least} with this format, not {max_token}"
            )
        self._format: TokenFormat = token_format
        self._known: dict[str, SpecialToken] = {}
        super().__init__(grammar.opener, grammar.suffix, max_token)

    def _begin(self) -> None:
        super()._begin()
        self._kind: type[str] | type[bytes] | None = None
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, chunk: str | bytes | bytearray | memoryview) -> list[str]:
        """Return what a chunk completes: text as ``str``, special tokens as :class:`SpecialToken`.

        Args:
            chunk: The next piece of the stream, text or UTF-8 bytes; all of one stream alike.

        Raises:
            TypeError: It is neither, or text follows bytes or bytes text.
        """
        text = chunk if type(chunk) is str and self._kind is str else self._checked(chunk)
        # tests/benchmarks, "special-tokens-16": nearly all chunks leave here.
        if self._is_idle and self._first not in text:
            return [text] if text else []
        return self._parsed(text)

    def flush(self) -> list[str]:
        """Return what is left at the end of the stream, as text. The next chunk begins another."""
        end = self._decoder.decode(b"", final=True) if self._kind is bytes else ""
        pieces = self._parsed(end)
        left = self._left()
        self._begin()
        return joined([*pieces, left]) if left else pieces

    def _checked(self, chunk: str | bytes | bytearray | memoryview) -> str:
        """Return the text of a chunk that is not what the fast path takes."""
        if not isinstance(chunk, str | bytes | bytearray | memoryview):
            raise TypeError(f"a parser takes text or bytes, not {chunk!r:.200}")
        kind = str if isinstance(chunk, str) else bytes
        if self._kind not in (kind, None):
            raise TypeError(
                f"this stream came as {self._kind.__name__} so far and goes on as {kind.__name__}; "
                "flush() ends a stream"
            )
        self._kind = kind
        return str.__str__(chunk) if isinstance(chunk, str) else self._decoder.decode(bytes(chunk))

    def _finished(self, text: str) -> str:
        """Return the token that a text from opener to suffix is, or the text."""
        known = self._known.get(text)
        if known is not None:
            return known
        token = self._format._read(text) if len(text) <= self._max_token else None
        if token is None:
            self._is_split = True
            return text
        if len(text) <= _LONGEST_KEPT:
            if len(self._known) >= _MOST_KEPT:
                self._known.clear()
            self._known[text] = token
        return token
