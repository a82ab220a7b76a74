"""A text streamed through a graph of nodes, to five readers at once.

Three nodes stream: one reads the text aloud, word by word, from a worker thread; one makes an
outline meanwhile; one sums up when both are done. Their tokens go to five readers: the screen;
a browser, as server-sent events; a text file, escaped, which is cut into random pieces and parsed
back; one that freezes, and that the producers wait for in vain; one that is cancelled. Whatever
the text says, and be it `<graphai:END>`: every reader gets the same, and none holds up another.

    python examples/text_stream.py [FILE | -] [--realtime]
"""

import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import anyio

from callbackkit import (
    Callback,
    Graph,
    SpecialToken,
    StreamEvent,
    TokenFormat,
    TokenParser,
    node,
    sse,
    text,
)
from callbackkit.wire.eventstream import EventStreamReader

MOST_BYTES = 10_000_000
SECONDS_PER_WORD = 0.004  # in real time
PATIENCE = 0.2  # seconds that producers wait for the frozen reader
FROZEN_AT, CANCELLED_AT = 3, 10  # tokens


def read_text(path: Path | None) -> str:
    """Return the text of a file, or of standard input; a ValueError says what is wrong with it."""
    with open(path, "rb") if path else open(sys.stdin.fileno(), "rb", closefd=False) as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise ValueError(f"{path or 'standard input'}: more than {MOST_BYTES:,} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise ValueError(f"{path or 'standard input'}: no UTF-8 text: {exc.reason}") from exc


# The graph.


@node(start=True)
def cut(source: str) -> dict[str, Any]:
    """Cut a text into words, each with the blanks behind it."""
    return {"words": re.findall(r"\s*\S+\s*|\s+", source)}


@node(stream=True)
def read_aloud(words: list[str], pause: float, callback: Callback) -> dict[str, Any]:
    """Stream the words. A node that is no coroutine runs in a worker thread."""
    for word in words:
        callback(word)
        if pause:
            time.sleep(pause)
    return {"spoken": len(words)}


@node(stream=True)
async def outline(source: str, callback: Callback) -> dict[str, Any]:
    """Stream the headings, of a Markdown text."""
    headings = re.findall(r"^#+ .*$", source, re.MULTILINE)
    for heading in headings:
        await callback.acall(heading + "\n")
    return {"headings": len(headings)}


@node(end=True, stream=True)
async def sum_up(spoken: int, headings: int, callback: Callback) -> dict[str, Any]:
    """Stream one sentence."""
    for word in f"{spoken} words under {headings} headings.".split(" "):
        await callback.acall(word + " ")
    return {"spoken": spoken, "headings": headings}


def make_graph() -> Graph:
    """Return the graph: both nodes at once, then the last one."""
    graph = Graph()
    for each in (cut, read_aloud, outline, sum_up):
        graph.add_node(each)
    graph.add_parallel(cut, [read_aloud, outline])
    graph.add_join([read_aloud, outline], sum_up)
    return graph


# The readers.


class TextStream:
    """One run of the graph with its five readers, each of which keeps what it got.

    Args:
        report: Called with each line of the transcript.
    """

    def __init__(self, report: Callable[[str], None]) -> None:
        self.report = report
        self.callback = Callback()
        self.screen: list[StreamEvent] = []
        self.sse: list[tuple[str | None, str]] = []  # id and data
        self.escaped: list[str | SpecialToken] = []
        self.frozen: list[str] = []
        self.cancelled: list[str] = []
        self.words, self.all_words = 0, 0
        self.lines: dict[str, str] = {}
        self.counts: Counter[str] = Counter()
        self._random = random.Random(4)

    async def run(self, source: str, realtime: bool) -> Mapping[str, Any]:
        """Stream a text, and return the state of the graph at its end."""
        self.all_words = len(cut.func(source)["words"])
        thawed = anyio.Event()
        state: Mapping[str, Any] = {}
        async with anyio.create_task_group() as readers:
            for read in (self.show, self.keep_sse, self.keep_escaped):
                readers.start_soon(read)
            readers.start_soon(self.freeze, thawed)
            readers.start_soon(self.be_cancelled)
            given = {"source": source, "pause": SECONDS_PER_WORD if realtime else 0.0}
            state = await make_graph().execute(given, callback=self.callback)
            thawed.set()
        self.sum_up()
        return state

    async def show(self) -> None:
        """Print what the nodes stream, line by line as each line is complete."""
        async for event in self.callback.events():
            self.screen.append(event)
            self.counts["screen"] += 1
            name = event.node or ""
            if event.type == "node_start":
                self.lines[name] = ""
            elif event.type == "token":
                self.words += name == "read_aloud"
                *complete, self.lines[name] = (self.lines[name] + (event.token or "")).split("\n")
                for line in complete:
                    self.report(f"{name}: {line}")
            elif event.type == "node_end" and (rest := self.lines.pop(name)):
                self.report(f"{name}: {rest}")

    async def keep_sse(self) -> None:
        """Read what a browser would, from bytes that arrive in any pieces."""
        reader = EventStreamReader()
        async for chunk in sse(self.callback):
            cut_at = self._random.randrange(len(chunk) + 1)
            for piece in (chunk[:cut_at], chunk[cut_at:]):
                self.sse += [(event.id, event.data) for event in reader.feed(piece)]
            self.counts["sse"] = len(self.sse)

    async def keep_escaped(self) -> None:
        """Parse the escaped text back."""
        parser = TokenParser(TokenFormat())
        async for chunk in text(self.callback):
            cut_at = self._random.randrange(len(chunk) + 1)
            for piece in (chunk[:cut_at], chunk[cut_at:]):
                self.escaped += parser.feed(piece)
            self.counts["escaped"] = len(self.escaped)
        self.escaped += parser.flush()

    async def freeze(self, thawed: anyio.Event) -> None:
        """Read a little, do nothing till the run is over, then find the gap."""
        reader = self.callback.aiter(overflow="block", max_lag=8, stall_timeout=PATIENCE)
        async for token in reader:
            self.frozen.append(token)
            self.counts["frozen"] += 1
            if len(self.frozen) == FROZEN_AT:
                await thawed.wait()

    async def be_cancelled(self) -> None:
        """Read a little, then be cancelled."""
        with anyio.CancelScope() as scope:
            async for token in self.callback.aiter(max_lag=1_000_000):
                self.cancelled.append(token)
                self.counts["cancelled"] += 1
                if len(self.cancelled) == CANCELLED_AT:
                    scope.cancel()
                    await anyio.sleep_forever()

    # What is shown.

    def head(self, bar: Callable[[float, int], str]) -> list[tuple[str, str]]:
        """Return lines for a live view, each with a colour."""
        spoken = self.words / max(self.all_words, 1)
        counts = ", ".join(f"{name} {count}" for name, count in sorted(self.counts.items()))
        saying = (self.lines.get("read_aloud") or "")[-60:]
        return [
            ("callbackkit: a text streamed to five readers", "bold"),
            (f"reading  {bar(spoken, 17)} {spoken:5.0%}", "green"),
            (f"says     {saying}", ""),
            (f"open     {', '.join(self.lines) or 'no node'}", "cyan"),
            (f"readers  {counts}", ""),
        ]

    def sum_up(self) -> None:
        """Tell how each reader fared."""
        said = "".join(event.token or "" for event in self.screen)
        parsed = "".join(self.escaped) == said
        missed = [
            one.params["missed"]
            for one in self.frozen
            if isinstance(one, SpecialToken) and one.kind == "gap"
        ]
        self.report("")
        self.report(f"screen     {len(self.screen)} events, status {self.callback.status}")
        self.report(f"sse        {len(self.sse)} events, the last is {self.sse[-1][1]}")
        self.report(f"escaped    parsed back {'the same' if parsed else 'DIFFERENT'}")
        self.report(f"frozen     {len(self.frozen)} tokens, missed {', '.join(missed) or 'none'}")
        self.report(f"cancelled  after {len(self.cancelled)} tokens")


if __name__ == "__main__":
    arguments = [argument for argument in sys.argv[1:] if argument != "--realtime"]
    file = Path(arguments[0]) if arguments else Path(__file__).parents[1] / "README.md"
    source = read_text(None if str(file) == "-" else file)
    anyio.run(TextStream(print).run, source, "--realtime" in sys.argv)
