"""The GraphAI library itself, streaming to callbackkit's `Callback`.

`graph.set_callback(Callback)` is all that changes. GraphAI ends a stream only when its last state
has passed through a streaming node, and not when one raises, so a reader could wait for ever:
`async with callback` around the run ends the stream in each case, and tells how. Where the run is
out of reach, `Callback(idle_timeout=30.0)` does it.

    pip install callbackkit graphai-lib
    python examples/graphai_library.py
"""

# GraphAI does not annotate its decorators.
# mypy: allow-untyped-decorators

import asyncio
from typing import Any

import graphai
from graphai import node, router

from callbackkit import Callback, SpecialToken

State = dict[str, Any]


@node(start=True, stream=True)
async def read(query: str, callback: Callback) -> State:
    """Say what was asked, and split it."""
    await callback.acall(f"reading {query!r}")
    return {"words": query.split()}


@node(end=True)
async def count(words: list[str]) -> State:
    """Count the words."""
    return {"count": len(words)}


@router
async def choose(words: list[str]) -> State:
    """Choose by how many words there are."""
    return {"choice": "short" if len(words) < 3 else "long"}


@node(end=True, stream=True)
async def short(words: list[str], callback: Callback) -> State:
    """Judge a short question."""
    await callback.acall("That is short.")
    return {"verdict": "short"}


@node(end=True, stream=True)
async def long(words: list[str], callback: Callback) -> State:
    """Judge a long question."""
    await callback.acall(f"That is {len(words)} words long.")
    return {"verdict": "long"}


@node(start=True)
async def split(query: str) -> State:
    """Split what was asked."""
    return {"words": query.split()}


@node(stream=True)
async def shout(words: list[str], callback: Callback) -> State:
    """Stream each word in capitals."""
    for word in words:
        await callback.acall(word.upper())
        await asyncio.sleep(0)
    return {"shouted": True}


@node(stream=True)
async def spell(words: list[str], callback: Callback) -> State:
    """Stream the letters of each word."""
    for word in words:
        await callback.acall("-".join(word))
        await asyncio.sleep(0)
    return {"spelled": True}


@node(end=True)
async def done(shouted: bool, spelled: bool) -> State:
    """Tell that both have been at work."""
    return {"done": shouted and spelled}


@node(start=True, end=True)
async def silent(query: str) -> State:
    """Stream nothing."""
    return {"length": len(query)}


@node(start=True, end=True, stream=True)
async def broken(query: str, callback: Callback) -> State:
    """Break off in the middle."""
    await callback.acall("so far ")
    raise ConnectionError("the model is gone")


def new_graph(*nodes: Any) -> Any:
    """Return a graph with our callback; Any, because GraphAI's types don't take its own nodes."""
    graph: Any = graphai.Graph()
    graph.set_callback(Callback)
    for each in nodes:
        graph.add_node(each)
    return graph


GRAPHS = {
    "sequential": new_graph(read, count).add_edge(read, count),
    "router": new_graph(read, choose, short, long).add_router([read], choose, [short, long]),
    "parallel": new_graph(split, shout, spell, done)
    .add_parallel(split, [shout, spell])
    .add_join([shout, spell], done),
    "silent": new_graph(silent),
    "broken": new_graph(broken),
}


async def run(graph: Any, query: str, callback: Callback) -> State | None:
    """Run a graph so that its stream ends; what went wrong stands in the stream."""
    try:
        async with callback:
            result: State = await graph.execute({"query": query}, callback=callback)
            return result
    except ConnectionError:
        return None


async def main() -> None:
    for name, graph in GRAPHS.items():
        callback = graph.get_callback()
        task = asyncio.create_task(run(graph, "streams that end", callback))
        print(f"{name}:")
        async for token in callback.aiter(raise_errors=False):
            print("   ", token if isinstance(token, SpecialToken) else repr(token))
        print("    result:", await task)


if __name__ == "__main__":
    asyncio.run(main())
