"""A graph checked: what is wrong with one, and what a router may choose."""

import pytest

from callbackkit.errors import GraphError, NodeOutputError
from callbackkit.streaming.callback import Callback
from callbackkit.streaming.graph import Graph
from callbackkit.streaming.node import node
from tests.streaming.graphs import choosing, follow, graph_of, line, named

START, END = named("start", start=True), named("end", end=True)


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (Graph(), r"no nodes: add_node\(\) them"),
        (graph_of(END), r"no start: mark the first node"),
        (graph_of(START, named("other", start=True), END), r"2 starts, 'start', 'other'"),
        (graph_of(START), r"no end: mark the last node"),
        (line(START, END).add_edge("start", "x"), r"edge from 'start' to 'x' names 'x', which"),
        (line(START, END).add_edge("y", "end"), r"edge from 'y' to 'end' names 'y'"),
        (line(START, END).add_join(["start", "z"], "end"), r"join of 'start', 'z' at 'end' names"),
        (line(START, END).add_node(named("b", end=True)), r"'start' does not lead to 'b'"),
        (line(START, END).add_node(named("b")).add_edge("start", "b"), r"comes after node 'b'"),
        (
            graph_of(START, END, choosing("r")).add_edge("start", "r").add_edge("start", "end"),
            r"router 'r' has nothing to choose from",
        ),
        (
            line(START, END, named("behind", end=True)),
            r"'start' does not lead to 'behind'",
        ),
        (line(START, END).add_edge("start", "end"), r"was added twice: leave one, or"),
        (
            line(START, named("b"), END).add_join(["b"], "start"),
            r"after 'b' the graph also goes on at 'end'",
        ),
        (
            line(START, END)
            .add_node(choosing("r"))
            .add_router(["start"], "r", ["end"])
            .add_join(["r"], "end"),
            r"'r' is a router, whose choice",
        ),
        (line(START, END).add_join(["end"], "start"), r"'end' is an end, after which"),
        (
            line(START, END).add_edge(named("start"), named("end")),
            r"another node 'start' than the graph has",
        ),
    ],
    ids=range(16),
)
async def test_a_graph_that_can_not_run_says_why(graph, message) -> None:
    with pytest.raises(GraphError, match=message):
        graph.compile()
    with pytest.raises(GraphError, match=message):
        graph.to_mermaid()
    callback = Callback()
    with pytest.raises(GraphError, match=message) as raised:
        await graph.execute({}, callback)
    assert await follow(callback) == (["<graphai:END:status=error>"], raised.value)


def test_a_router_may_be_told_its_choices_twice() -> None:
    graph = graph_of(START, named("b"), END, choosing("r"))
    graph.add_router(["start"], "r", ["b", "end"]).add_router(["b"], "r", ["b", "end"]).compile()


def test_a_circle_is_an_error_only_if_asked_for() -> None:
    graph = line(START, named("b"), named("c"), END).add_node(choosing("r"))
    graph.add_router(["b"], "r", ["start"])
    assert graph.compile() is graph
    circle = r"circle: ('start' -> 'b' -> 'r'|'b' -> 'r' -> 'start'|'r' -> 'start' -> 'b') -> "
    with pytest.raises(GraphError, match=circle):
        graph.compile(strict=True)
    line(START, END).compile(strict=True)


def test_the_methods_of_an_object_can_be_a_graph() -> None:
    class Assistant:
        @node(start=True)
        async def think(self):
            return {}

        @node(end=True)
        async def answer(self):
            return {}

    one = Assistant()
    graph_of(one.think, one.answer).add_edge(one.think, one.answer).compile()
    with pytest.raises(GraphError, match="another node 'think'"):
        graph_of(one.think, one.answer).add_edge(Assistant().think, "answer").compile()


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("x", r"'r' chose 'x', but it leads to 'b', 'end' only"),
        ({"choice": None}, r"chose None"),
        ({"choice": "start"}, r"chose 'start'"),
        ({"choices": []}, r"returned \[\] as \"choices\""),
        ({"choices": "b"}, r"returned 'b' as \"choices\""),
        ({"choices": ["b", 3]}, r"chose 3"),
    ],
)
async def test_a_router_chooses_what_it_leads_to(choice, message) -> None:
    graph = graph_of(START, named("b", end=True), END, choosing("r", choice))
    graph.add_router(["start"], "r", ["b", "end"])
    with pytest.raises(NodeOutputError, match=message):
        await graph.execute({})


async def test_a_router_may_choose_a_node_itself() -> None:
    graph = graph_of(START, named("b", end=True), END, choosing("r", END))
    graph.add_router([START], "r", ["b", END])
    await graph.execute({})
    assert graph.get_state()["trace"] == ["start", "r", "end"]
