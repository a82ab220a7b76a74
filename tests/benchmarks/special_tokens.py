"""Special tokens as text: what one costs to format, and how fast a stream is written and read."""

import asyncio
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from importlib import import_module
from itertools import count, cycle

from callbackkit import TokenFormat, TokenParser
from tests.benchmarks.harness import Case, Measure, Table, awaited, peer, timed

PROSE = "The quick brown fox jumps over the lazy dog, and if a < b it does so again. "
PARAMS = {"query": "what is this", "top_k": 5}
OPENER = "<graphai:"
LENGTH = 1 << 17


@contextmanager
def formatted() -> Iterator[Table]:
    """Format the token of a node that starts."""
    special = TokenFormat().special
    new = map("node{}".format, count())
    with asyncio.Runner() as runner:
        yield Table(
            "format a special token",
            [
                peer("limit: GraphAI", _graphai, runner),
                Case("callbackkit", timed("special('node_start', 'search')", special=special), 5),
                Case(
                    "callbackkit, a node it has not seen",
                    timed("special('node_start', next(new))", special=special, new=new),
                ),
                peer("GraphAI, two params", _graphai, runner, PARAMS),
                Case(
                    "callbackkit, two params",
                    timed("special('node_start', 'search', p)", special=special, p=PARAMS),
                ),
            ],
            ratio="speed",
        )


@contextmanager
def escaped() -> Iterator[Table]:
    """Write the tokens of a model; nearly none has a character that matters."""
    words = PROSE.split(" ")
    encode = TokenFormat().encoder().encode
    yield Table(
        "escape a token of ordinary text",
        [
            Case("limit: html.escape", timed("escape(next(w))", escape=escape, w=cycle(words))),
            Case("callbackkit", timed("encode(next(w))", encode=encode, w=cycle(words)), 0.7),
        ],
        ratio="speed",
    )


@contextmanager
def parsed(between: int, size: int, target: float) -> Iterator[Table]:
    """Read a text with special tokens.

    Args:
        between: Characters of text between two special tokens.
        size: Characters in a chunk.
        target: Million characters a second.
    """
    stream = _stream(between, nodes=50)
    chunks = _cut(stream, size)
    new = _cut(_stream(between, nodes=LENGTH), size)
    yield Table(
        f"parse, million characters a second; chunks of {size}, a token every {between} characters",
        [
            Case("limit: one million a second", lambda number: number * len(stream) / 1e6),
            Case("callbackkit", _parser(chunks), target),
            Case("callbackkit, no token twice", _parser(new)),
            Case("one by one, without escapes", timed("scan(stream)", scan=_scan, stream=stream)),
        ],
        ratio="speed",
    )


def _stream(between: int, nodes: int) -> str:
    """Return a text with a token every so many characters, of that many nodes in turn."""
    text = (PROSE * (between // len(PROSE) + 1))[:between]
    special = TokenFormat().special
    names = cycle(range(nodes))
    parts = (text + special("node_start", f"node{next(names)}") for _ in range(LENGTH // between))
    return "".join(parts)[:LENGTH]


def _cut(stream: str, size: int) -> list[str]:
    return [stream[at : at + size] for at in range(0, len(stream), size)]


def _parser(chunks: Sequence[str]) -> Measure:
    return timed(
        "parser = TokenParser()\nfor chunk in chunks: parser.feed(chunk)\nparser.flush()",
        TokenParser=TokenParser,
        chunks=chunks,
    )


def _scan(stream: str) -> list[str]:
    """Cut a stream looking at each character: what everybody writes first."""
    pieces: list[str] = []
    matched = 0
    held: list[str] = []
    for char in stream:
        held.append(char)
        if matched == len(OPENER):
            if char == ">":
                pieces.append("".join(held))
                held, matched = [], 0
        elif char == OPENER[matched]:
            matched += 1
        else:
            matched = int(char == OPENER[0])
            if len(held) > 60:
                pieces.append("".join(held))
                held = []
    return pieces


def _graphai(runner: asyncio.Runner, params: object = None) -> Measure:
    graphai = import_module("graphai.callback")
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        callback = graphai.Callback()
    return awaited(runner, callback._build_special_token, "search:start", params)
