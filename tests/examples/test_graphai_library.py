"""The GraphAI library with callbackkit's Callback: every stream ends."""

import asyncio
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from callbackkit import Callback, SpecialToken
from callbackkit.__main__ import load
from callbackkit.testing import StreamRecorder

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """GraphAI knows asyncio only."""
    return "asyncio"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    return load(EXAMPLES / "graphai_library.py")


async def recorded(example: ModuleType, name: str, query: str) -> tuple[Any, StreamRecorder]:
    """Return the result of a graph and its stream, when the run is over."""
    callback = example.GRAPHS[name].get_callback()
    recorder = StreamRecorder(callback)
    result = await example.run(example.GRAPHS[name], query, callback)
    await recorder.wait_ended()
    return result, recorder


def test_the_graphs_make_our_callback(example: ModuleType) -> None:
    assert {type(graph.get_callback()) for graph in example.GRAPHS.values()} == {Callback}


async def test_a_sequence_streams_and_ends(example: ModuleType) -> None:
    result, recorder = await recorded(example, "sequential", "one two")
    assert result["count"] == 2
    recorder.assert_nodes(["read"])
    recorder.assert_tokens(["reading 'one two'"])
    recorder.assert_complete()


@pytest.mark.parametrize(
    ("query", "chosen", "said"),
    [
        ("one two", "short", "That is short."),
        ("one two three", "long", "That is 3 words long."),
    ],
)
async def test_a_router_leads_to_one_node(
    example: ModuleType, query: str, chosen: str, said: str
) -> None:
    result, recorder = await recorded(example, "router", query)
    assert result["verdict"] == chosen
    recorder.assert_nodes(["read", chosen])
    recorder.assert_text(said, node=chosen)
    recorder.assert_complete()


async def test_parallel_nodes_keep_their_tokens_apart(example: ModuleType) -> None:
    result, recorder = await recorded(example, "parallel", "ab cd")
    assert result["done"] is True
    spans = {span.node: span for span in recorder.spans}
    assert spans["shout"].tokens == ("AB", "CD")
    assert spans["spell"].tokens == ("a-b", "c-d")
    assert [event.node for event in recorder.of("node_end")] == ["shout", "spell"]
    # They did run at the same time.
    assert [event.node for event in recorder.of("token")] == ["shout", "spell"] * 2
    recorder.assert_complete()


async def test_a_graph_in_which_nothing_streams_ends_all_the_same(example: ModuleType) -> None:
    result, recorder = await recorded(example, "silent", "four")
    assert result == {"query": "four", "length": 4}
    assert [event.token for event in recorder.events] == ["<graphai:END>"]


async def test_a_node_that_raises_ends_the_stream_with_an_error(example: ModuleType) -> None:
    result, recorder = await recorded(example, "broken", "why?")
    assert result is None
    recorder.assert_text("so far ", node="broken")
    recorder.assert_ended("error")
    assert isinstance(recorder.error, ConnectionError)
    assert recorder.events[-1].token == "<graphai:END:status=error>"


async def test_without_an_owner_the_silence_ends_the_stream(example: ModuleType) -> None:
    callback = Callback(idle_timeout=0.05)
    result = await example.GRAPHS["silent"].execute({"query": "four"}, callback=callback)
    assert result["length"] == 4
    tokens = [token async for token in callback.aiter(raise_errors=False)]
    assert tokens == ["<graphai:END:status=timeout>"]


async def test_eight_runs_of_one_graph_at_once_do_not_mix(example: ModuleType) -> None:
    queries = [f"a{number} b{number}" for number in range(8)]
    runs = await asyncio.gather(*(recorded(example, "parallel", query) for query in queries))
    for query, (_, recorder) in zip(queries, runs, strict=True):
        assert recorder.text("shout") == query.upper().replace(" ", "")
        recorder.assert_complete()


async def test_a_reader_meanwhile_gets_special_tokens(example: ModuleType) -> None:
    graph = example.GRAPHS["sequential"]
    callback = graph.get_callback()
    task = asyncio.create_task(example.run(graph, "one two", callback))
    tokens = [token async for token in callback.aiter()]
    await task
    assert tokens == [
        "<graphai:read:start>",
        "<graphai:read>",
        "reading 'one two'",
        "<graphai:read:end>",
        "<graphai:END>",
    ]
    assert [isinstance(token, SpecialToken) for token in tokens] == [True, True, False, True, True]


def test_the_program_runs_without_a_warning() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / "graphai_library.py")],
        capture_output=True,
        text=True,
        check=True,
        cwd=EXAMPLES.parent,
        env={"PYTHONPATH": str(EXAMPLES.parent)} if _from_checkout() else None,
        timeout=50,
    )
    assert done.stderr == ""
    assert done.stdout.count("<graphai:END>") == 4
    assert done.stdout.count("<graphai:END:status=error>") == 1


def _from_checkout() -> bool:
    return (EXAMPLES.parent / "callbackkit").is_dir()
