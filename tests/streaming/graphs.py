"""Small graphs and nodes that the tests of graphs are made of."""

from itertools import pairwise

import anyio

from callbackkit.streaming.graph import Graph
from callbackkit.streaming.node import node, router


def named(name, *, adds=None, **options):
    """Return a node that adds to the state, and to the trace that the graph shares."""

    @node(name=name, **options)
    async def step(state):
        state.setdefault("trace", []).append(name)
        return {name: True} if adds is None else adds

    return step


def choosing(name, *choices):
    """Return a router that returns one choice after the other."""
    left = list(choices)

    @router(name=name)
    async def route(state):
        state.setdefault("trace", []).append(name)
        return left.pop(0)

    return route


def graph_of(*nodes, max_steps=10):
    graph = Graph(max_steps=max_steps)
    for one in nodes:
        graph.add_node(one)
    return graph


def line(*nodes):
    graph = graph_of(*nodes)
    for one, other in pairwise(nodes):
        graph.add_edge(one, other)
    return graph


async def follow(callback):
    """Return what a reader of a run gets, and what it is raised."""
    tokens = []
    try:
        async for token in callback.aiter():
            tokens += [str(token)]
    except Exception as exc:
        return tokens, exc
    return tokens, None


def forever(name, **options):
    @node(name=name, stream=True, **options)
    async def step(callback, started=None):
        callback("...")
        if started is not None:
            started.set()
        await anyio.sleep_forever()

    return step


def streaming(name, *tokens, adds=None, error=None, **options):
    @node(name=name, stream=True, **options)
    async def step(callback):
        for token in tokens:
            callback(token)
            await anyio.sleep(0)
        if error is not None:
            raise error
        return adds or {}

    return step
