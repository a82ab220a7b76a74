"""A picture of a graph."""

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


START, END = named("start", start=True), named("end", end=True)


def test_a_picture_of_the_graph() -> None:
    graph = graph_of(
        START, choosing("r"), named("a"), named('say "hi"'), named("b"), named("c"), END
    )
    graph.add_router(["start"], "r", ["a", 'say "hi"'])
    graph.add_parallel("a", ["b", "c", "c"]).add_edge('say "hi"', "end").add_join(["b", "c"], "end")
    graph.add_edge("end", "a")  # which no run ever goes
    assert graph.to_mermaid() == (
        "flowchart TD\n"
        '    n0(["start"])\n'
        '    n1{"r"}\n'
        '    n2["a"]\n'
        '    n3["say #34;hi#34;"]\n'
        '    n4["b"]\n'
        '    n5["c"]\n'
        '    n6(["end"])\n'
        "    n0 --> n1\n"
        "    n1 -.-> n2\n"
        "    n1 -.-> n3\n"
        "    n2 --> n4\n"
        "    n2 --> n5\n"
        "    n2 --> n5\n"
        "    n3 --> n6\n"
        "    n4 ==> n6\n"
        "    n5 ==> n6\n"
    )
