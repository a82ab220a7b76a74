"""The example that streams a text to five readers: what each of them got."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from callbackkit import SpecialToken
from callbackkit.__main__ import load

EXAMPLES = Path(__file__).parents[2] / "examples"
README = Path(__file__).parents[2] / "README.md"
SPOOF = "x <graphai:END> y <graphai:read_aloud:end>\n\\<graphai\\:END> <gra phai:END>"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    return load(EXAMPLES / "text_stream.py")


async def streamed(example: ModuleType, source: str) -> tuple[Any, Any, list[str]]:
    lines: list[str] = []
    stream = example.TextStream(lines.append)
    state = await stream.run(source, False)
    return stream, state, lines


def text_of(stream: Any, node: str) -> str:
    """What a node said, according to the screen."""
    said = [one.token for one in stream.screen if (one.type, one.node) == ("token", node)]
    return "".join(said)


def joined(pieces: list[str]) -> list[tuple[str, str]]:
    """Pieces with adjacent text joined, each with its kind."""
    result: list[tuple[str, str]] = []
    for piece in pieces:
        kind = piece.kind if isinstance(piece, SpecialToken) else "text"
        if kind == "text" and result and result[-1][0] == "text":
            result[-1] = ("text", result[-1][1] + piece)
        else:
            result.append((kind, str(piece)))
    return result


@pytest.mark.parametrize(
    "source",
    [README.read_text("utf-8"), SPOOF, "", "one", "# h\n" * 50, "a " * 5_000, "\u00e9\U0001f600 "],
    ids=["readme", "spoof", "empty", "word", "headings", "long", "unicode"],
)
async def test_every_reader_gets_the_whole_run(example: ModuleType, source: str) -> None:
    stream, state, lines = await streamed(example, source)
    assert text_of(stream, "read_aloud") == source
    words = len(example.cut.func(source)["words"])
    assert state["spoken"] == words
    # The screen: numbered without a gap, each span opened and closed, one end.
    assert [one.seq for one in stream.screen] == list(range(1, len(stream.screen) + 1))
    assert [one.status for one in stream.screen if one.type == "node_end"] == ["ok"] * 3
    assert [one.type for one in stream.screen].count("stream_end") == 1
    # The browser: the same events, numbered alike.
    events = [json.loads(data) for _, data in stream.sse]
    assert [(one["type"], one.get("token")) for one in events] == [
        (one.type, one.token) for one in stream.screen
    ]
    run = stream.callback.run_id
    assert [number for number, _ in stream.sse] == [f"{run}-{one.seq}" for one in stream.screen]
    # The file: the same text, though it was escaped and cut anywhere.
    assert joined(stream.escaped) == joined([one.token for one in stream.screen])
    assert "escaped    parsed back the same" in lines


async def test_the_frozen_reader_gets_a_gap_that_adds_up(example: ModuleType) -> None:
    stream, _, _ = await streamed(example, "word " * 500)
    everything = [one.token for one in stream.screen]
    [gap] = [one for one in stream.frozen if getattr(one, "kind", "") == "gap"]
    place = stream.frozen.index(gap)
    missed = int(gap.params["missed"])
    assert place == example.FROZEN_AT
    assert stream.frozen[:place] == everything[:place]
    assert stream.frozen[place + 1 :] == everything[place + missed :]


async def test_the_cancelled_reader_stops_at_once(example: ModuleType) -> None:
    stream, _, _ = await streamed(example, "word " * 500)
    assert len(stream.cancelled) == example.CANCELLED_AT
    assert stream.cancelled == [one.token for one in stream.screen][: example.CANCELLED_AT]


async def test_what_is_read_aloud_comes_from_another_thread(example: ModuleType) -> None:
    stream, _, _ = await streamed(example, SPOOF)
    assert example.read_aloud.func.__code__.co_flags & 0x80 == 0, "it is no coroutine function"
    assert text_of(stream, "outline") == ""


@pytest.mark.parametrize("data", [b"caf\xe9", b"x" * 10_000_001], ids=["latin-1", "large"])
def test_what_is_no_text_is_refused_by_name(
    example: ModuleType, tmp_path: Path, data: bytes
) -> None:
    path = tmp_path / "text"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="text: "):
        example.read_text(path)


def test_a_byte_order_mark_is_no_text(example: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"\xef\xbb\xbfword")
    assert example.read_text(path) == "word"
