"""A run through a graph: its steps, its branches, and where they meet."""

import anyio
import pytest
from hypothesis import given, strategies as st

from callbackkit.errors import GraphStepsError
from callbackkit.streaming.callback import Callback
from callbackkit.streaming.node import node
from tests.streaming.graphs import choosing, follow, forever, graph_of, line, named, streaming

START, END = named("start", start=True), named("end", end=True)


# Steps.


async def test_as_many_steps_as_allowed_and_no_more() -> None:
    graph = line(named("a", start=True), named("b"), named("c", end=True))
    graph.max_steps = 3
    await graph.execute({})
    graph.max_steps = 2
    with pytest.raises(
        GraphStepsError, match=r"took 2 steps and would go on with 'c': .*max_steps="
    ):
        await graph.execute({})


async def test_a_circle_is_left_by_the_router() -> None:
    graph = graph_of(START, named("b"), END, choosing("r", "b", "b", "end"), max_steps=10)
    graph.add_router(["start", "b"], "r", ["b", "end"])
    await graph.execute({})
    assert graph.get_state()["trace"] == ["start", "r", "b", "r", "b", "r", "end"]


async def test_a_long_way_needs_no_deep_stack() -> None:
    """A fork and a join in each round, but not each inside the one before."""

    @node(end=True)
    async def count():
        return {"tasks": len(anyio.get_running_tasks())}

    rounds = 100
    graph = graph_of(
        START,
        choosing("r", *[{"choices": ["a", "b"]}] * rounds, "count"),
        named("a"),
        named("b"),
        count,
        max_steps=1_000,
    )
    graph.add_router(["start"], "r", ["a", "b", "count"]).add_join(["a", "b"], "r")
    result = await graph.execute({})
    assert len(graph.get_state()["trace"]) == 2 + 3 * rounds
    assert result["tasks"] < 20


async def test_a_router_may_choose_several_at_once() -> None:
    graph = graph_of(
        START, choosing("r", {"choices": ["a", "b"]}, "end"), named("a"), named("b"), END
    )
    graph.add_router(["start"], "r", ["a", "b", "end"]).add_join(["a", "b"], "r")
    result = await graph.execute({})
    assert result["a"]
    assert result["b"]
    trace = graph.get_state()["trace"]
    assert sorted(trace[2:4]) == ["a", "b"]
    assert trace[:2] + trace[4:] == ["start", "r", "r", "end"]


# Parallel branches.


def waiting(name, *, start, end, adds, **options):
    """Return a node that begins one event, waits for another, and then adds to the state."""

    @node(name=name, **options)
    async def step(state):
        state["begun"][start].set()
        await state["begun"][end].wait()
        return adds

    return step


async def test_branches_run_at_the_same_time() -> None:
    """Each waits for the other."""
    graph = graph_of(
        START,
        waiting("a", start=0, end=1, adds={"a": 1}),
        waiting("b", start=1, end=0, adds={"b": 2}),
        END,
    )
    graph.set_state({"begun": [anyio.Event(), anyio.Event()]})
    graph.add_parallel("start", ["a", "b"]).add_join(["a", "b"], "end")
    assert await graph.execute({}) == {"start": True, "a": 1, "b": 2, "end": True}
    assert graph.get_state()["trace"] == ["start", "end"]


async def test_a_join_merges_in_the_order_of_the_fork_what_each_branch_added() -> None:
    """Not as they finish; and a key that a branch merely inherited is none that it wrote."""
    begun = [anyio.Event(), anyio.Event()]
    graph = graph_of(
        named("start", start=True, adds={"old": "start", "kept": "start"}),
        waiting("a", start=0, end=1, adds={"key": "a", "old": "a"}),
        waiting("b", start=1, end=1, adds={"key": "b"}),
        END,
    )
    graph.set_state({"begun": begun})
    graph.add_parallel("start", ["a", "b"]).add_join(["b", "a"], "end")
    result = await graph.execute({})
    assert result == {"old": "a", "kept": "start", "key": "b", "end": True}


async def test_without_a_join_each_branch_goes_on_by_itself() -> None:
    graph = graph_of(START, named("a"), named("b"), END)
    graph.add_edge("start", "a").add_edge("start", "b").add_edge("a", "end").add_edge("b", "end")
    assert await graph.execute({}) == {"start": True, "a": True, "b": True, "end": True}
    assert graph.get_state()["trace"].count("end") == 2


async def test_an_edge_beside_a_join_to_the_same_node_is_harmless() -> None:
    graph = graph_of(START, named("a"), named("b"), END)
    graph.add_parallel("start", ["a", "b"]).add_edge("a", "end").add_edge("b", "end")
    graph.add_join(["a", "b"], "end")
    await graph.execute({})
    assert graph.get_state()["trace"].count("end") == 1


async def test_branches_of_different_length_meet_at_a_join() -> None:
    graph = graph_of(START, named("a"), named("b"), named("c"), END, max_steps=4)
    graph.add_parallel("start", ["a", "c"]).add_edge("a", "b").add_join(["b", "c"], "end")
    await graph.execute({})
    assert graph.get_state()["trace"].count("end") == 1
    graph.max_steps = 3
    with pytest.raises(GraphStepsError):
        await graph.execute({})


async def test_a_join_that_only_one_branch_comes_to_waits_for_nobody() -> None:
    graph = graph_of(START, choosing("r", "a"), named("a"), named("b"), END)
    graph.add_router(["start"], "r", ["a", "b"]).add_join(["a", "b"], "end")
    await graph.execute({})
    assert graph.get_state()["trace"] == ["start", "r", "a", "end"]


async def test_a_branch_that_ends_does_not_hold_up_the_others() -> None:
    graph = graph_of(
        START, named("a", end=True, adds={"key": "a"}), named("b"), named("c"), named("last")
    )
    graph.add_node(named("end", end=True, adds={"key": "end"}))
    graph.add_parallel("start", ["a", "b", "c"]).add_join(["b", "c"], "last")
    graph.add_edge("last", "end")
    assert (await graph.execute({}))["key"] == "end"
    assert graph.get_state()["trace"].count("last") == 1


async def test_branches_may_meet_at_different_joins() -> None:
    graph = graph_of(START, *map(named, "abcdef"), END)
    graph.add_parallel("start", ["a", "b", "c", "d"])
    graph.add_join(["a", "b"], "e").add_join(["c", "d"], "f").add_join(["e", "f"], "end")
    result = await graph.execute({})
    trace = graph.get_state()["trace"]
    assert sorted(trace) == sorted(["start", *"abcdef", "end"])
    assert trace[-1] == "end"
    assert len(result) == 8


async def test_a_fork_in_a_branch_has_its_own_join() -> None:
    graph = graph_of(START, *map(named, "abcde"), END)
    graph.add_parallel("start", ["a", "b"]).add_parallel("a", ["c", "d"])
    graph.add_join(["c", "d"], "e").add_join(["e", "b"], "end")
    await graph.execute({})
    trace = graph.get_state()["trace"]
    assert sorted(trace) == sorted(["start", *"abcde", "end"])
    assert trace[-1] == "end"


async def test_a_join_of_branches_of_different_forks_is_one() -> None:
    graph = graph_of(START, *map(named, "abcd"), END)
    graph.add_parallel("start", ["a", "b"]).add_parallel("a", ["c", "d"])
    graph.add_join(["c", "d", "b"], "end")
    result = await graph.execute({})
    assert graph.get_state()["trace"].count("end") == 1
    assert {"a", "b", "c", "d", "end"} <= result.keys()


async def test_a_join_waits_for_one_that_stands_before_it() -> None:
    """The inner one lacks a branch, which its router never chose."""
    graph = graph_of(START, *map(named, "abcde"), choosing("r", {"choices": ["c", "e"]}), END)
    graph.add_parallel("start", ["a", "b"]).add_router(["a"], "r", ["c", "d", "e"])
    graph.add_node(named("inner")).add_join(["c", "d", "e"], "inner")
    graph.add_join(["inner", "b"], "end")
    await graph.execute({})
    trace = graph.get_state()["trace"]
    assert sorted(trace) == sorted(["start", *"abce", "r", "inner", "end"])
    assert trace[-1] == "end"


async def test_of_two_joins_that_wait_the_one_behind_waits_for_the_other() -> None:
    """Though the first one lacks a branch, which was never chosen."""
    graph = graph_of(choosing("r", {"choices": ["b", "c", "e"]}), *map(named, "bcde"), START, END)
    graph.add_node(named("inner")).add_router(["start"], "r", ["b", "c", "d", "e"])
    graph.add_join(["c", "d", "e"], "inner").add_join(["b", "inner"], "end")
    await graph.execute({})
    trace = graph.get_state()["trace"]
    assert sorted(trace) == sorted(["start", "r", *"bce", "inner", "end"])


async def test_a_branch_that_waits_at_a_join_is_found_by_one_that_comes_much_later() -> None:
    """From another fork, behind another join."""
    graph = graph_of(START, *map(named, "abcdeg"), named("h", end=True), END)
    graph.add_parallel("start", ["a", "b", "c"]).add_join(["a", "b"], "d")
    graph.add_parallel("d", ["e", "h"]).add_join(["c", "e"], "g").add_edge("g", "end")
    await graph.execute({})
    assert sorted(graph.get_state()["trace"]) == sorted(["start", *"abcdegh", "end"])


async def test_branches_get_what_was_there_at_the_fork() -> None:
    @node(name="a")
    async def needs(query, mid, start):
        return {"a": (query, mid, start)}

    @node(name="b")
    async def inner(query, mid, start, a):
        return {"b": a}

    graph = graph_of(START, named("mid"), needs, named("c"), inner, named("d"), END)
    graph.add_edge("start", "mid").add_parallel("mid", ["a", "c"]).add_parallel("a", ["b", "d"])
    graph.add_join(["b", "d"], "end").add_edge("c", "end")
    assert (await graph.execute({"query": 1}))["b"] == (1, True, True)


async def test_joins_that_wait_for_each_other_go_on_all_the_same() -> None:
    graph = graph_of(
        START, *map(named, "abcd"), choosing("x", "end", "b"), choosing("y", "end", "d")
    )
    graph.add_node(END)
    graph.add_parallel("start", ["a", "c"])
    graph.add_join(["a", "d"], "x").add_join(["c", "b"], "y")
    graph.add_edge("x", "b").add_edge("x", "end").add_edge("y", "d").add_edge("y", "end")
    await graph.execute({})
    assert graph.get_state()["trace"].count("x") == 1


async def test_the_same_branch_twice_at_once_has_its_own_fork_and_join() -> None:
    @node(name="count")
    async def count(state, number=0):
        state["met"] = [*state.get("met", []), number]
        return {"number": number + 1}

    graph = graph_of(START, named("a"), named("b"), named("c"), count, END)
    graph.add_parallel("start", ["a", "a"]).add_parallel("a", ["b", "c"])
    graph.add_join(["b", "c"], "count").add_edge("count", "end")
    await graph.execute({})
    trace = graph.get_state()["trace"]
    assert {name: trace.count(name) for name in ("a", "b", "c", "end")} == dict.fromkeys(
        ("a", "b", "c"), 2
    ) | {"end": 2}
    assert graph.get_state()["met"] == [0, 0]


async def test_parallel_branches_each_have_their_own_span() -> None:
    graph = graph_of(
        named("start", start=True), streaming("a", "1", "2"), streaming("b", "3", "4"), END
    )
    graph.add_parallel("start", ["a", "b", "b"]).add_join(["a", "b"], "end")
    callback = Callback()
    await graph.execute({}, callback)
    spans = {}
    async for event in callback.events():
        if event.type in {"token", "node_end"}:
            spans.setdefault((event.node, event.span), []).append(event.token)
    assert sorted((node, tokens) for (node, _), tokens in spans.items()) == [
        ("a", ["1", "2", "<graphai:a:end>"]),
        ("b", ["3", "4", "<graphai:b:end>"]),
        ("b", ["3", "4", "<graphai:b:end>"]),
    ]


async def test_a_branch_that_fails_cancels_the_others() -> None:
    error = OSError("gone")
    graph = graph_of(START, streaming("a", "1", error=error), forever("b"), END)
    graph.add_parallel("start", ["b", "a"]).add_join(["a", "b"], "end")
    callback = Callback()
    with pytest.raises(OSError, match="gone") as raised:
        await graph.execute({}, callback)
    assert raised.value is error
    tokens, raised_to_reader = await follow(callback)
    assert raised_to_reader is error
    assert tokens[-1] == "<graphai:END:status=error>"
    assert "<graphai:a:end:status=error>" in tokens
    assert "<graphai:b:end:status=cancelled>" in tokens


async def test_of_two_branches_that_fail_the_first_is_raised_and_the_other_logged(caplog) -> None:
    @node
    async def late():
        try:
            await anyio.sleep_forever()
        finally:
            raise ValueError("cleanup")

    graph = graph_of(START, streaming("a", "1", error=OSError("gone")), late, END)
    graph.add_parallel("start", ["late", "a"]).add_join(["a", "late"], "end")
    with pytest.raises(OSError, match="gone"):
        await graph.execute({})
    assert [record.getMessage() for record in caplog.records] == ["another branch failed, too"]
    assert "cleanup" in caplog.text


# Any graph of forks that are joined.


def blocks(inner):
    """Nodes and forks one after another; a fork is a list of branches."""
    fork = st.lists(st.lists(inner, min_size=1, max_size=3), min_size=2, max_size=3)
    return st.one_of(st.none(), fork)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@given(st.lists(st.recursive(st.none(), blocks, max_leaves=12), min_size=1, max_size=3))
def test_where_every_fork_is_joined_every_node_runs_once(backend, sequence) -> None:
    graph = graph_of(START, max_steps=1_000)

    def add(**options):
        name = f"n{len(graph.nodes)}"
        graph.add_node(named(name, **options))
        return name

    def build(last, sequence):
        """Add what follows a node; return the last one."""
        for block in sequence:
            if block is None:
                graph.add_edge(last, last := add())
                continue
            firsts = [add() for _ in block]
            graph.add_parallel(last, firsts)
            lasts = [build(*pair) for pair in zip(firsts, block, strict=True)]
            last = add()
            graph.add_join(lasts, last)
        return last

    graph.add_edge(build("start", sequence), add(end=True))
    result = anyio.run(graph.execute, {}, backend=backend)
    trace = graph.get_state()["trace"]
    assert sorted(trace) == sorted(graph.nodes)
    assert result == dict.fromkeys(graph.nodes, True)
    assert trace[-1] == list(graph.nodes)[-1]
