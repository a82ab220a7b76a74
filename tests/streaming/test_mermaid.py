"""A picture of a graph."""

from tests.streaming.graphs import choosing, graph_of, named

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
