"""A graph: building it, running it, and the stream that always ends."""

import asyncio
import gc
import threading
import weakref

import anyio
import pytest

from callbackkit.errors import (
    GraphError,
    NodeInputError,
    StreamCancelledError,
    StreamClosedError,
)
from callbackkit.streaming.callback import Callback, emit_token
from callbackkit.streaming.graph import Graph
from callbackkit.streaming.node import node
from tests.streaming.graphs import choosing, follow, forever, graph_of, line, named, streaming

START, END = named("start", start=True), named("end", end=True)


# Building it.


async def test_nodes_run_one_after_another() -> None:
    graph = line(named("a", start=True), named("b"), named("c", end=True))
    assert await graph.execute({"query": 1}) == {"query": 1, "a": True, "b": True, "c": True}
    assert graph.get_state() == {"trace": ["a", "b", "c"]}


async def test_graphai_calls_work_as_they_are_written() -> None:
    """As on the pages of its documentation."""
    first, second = named("first", start=True), named("second")
    third, last = named("third"), named("last", end=True)
    route = choosing("route", {"choice": "second", "why": "because"})
    graph = Graph(max_steps=20, initial_state={"history": []})
    graph.add_node(first()).add_node(second).add_node(third).add_node(route()).add_node(last)
    graph.add_router(sources=[first], router=route, destinations=[second, third])
    graph.add_edge(source=second, destination="last").add_edge("third", last)
    graph.compile()
    result = await graph.execute(input={"input": {"query": "tea"}}, callback=graph.get_callback())
    assert result["why"] == "because"
    assert result["choice"] == "second"
    assert "callback" not in result
    assert graph.get_state() == {"history": [], "trace": ["first", "route", "second", "last"]}


@pytest.mark.parametrize(("fork", "join"), [("targets", "target"), ("destinations", "destination")])
async def test_forks_and_joins_take_our_names_and_those_of_graphai(fork, join) -> None:
    graph = graph_of(named("a", start=True), named("b"), named("c"), named("d", end=True))
    graph.add_parallel(source="a", **{fork: ["b", "c"]})
    graph.add_join(sources=["b", "c"], **{join: "d"})
    assert await graph.execute({}) == {"a": True, "b": True, "c": True, "d": True}
    assert graph.get_state()["trace"].count("d") == 1


async def test_the_order_of_building_does_not_matter() -> None:
    first, last = named("first", start=True), named("last", end=True)
    graph = Graph().add_edge("first", "last").add_node(last).add_node(first)
    assert list(graph.nodes) == ["last", "first"]
    assert (await graph.execute({}))["last"]
    assert repr(graph) == "<Graph of 'last', 'first'>"
    assert repr(Graph()) == "<Graph of no nodes>"


async def test_a_graph_may_grow_between_two_runs() -> None:
    graph = line(named("a", start=True), named("b", end=True))
    assert await graph.execute({}) == {"a": True, "b": True}
    graph.add_node(named("c", end=True))
    with pytest.raises(GraphError, match="'a' does not lead to 'c'"):
        graph.compile()
    graph.add_edge("a", "c")
    assert await graph.execute({}) == {"a": True, "b": True, "c": True}


def test_a_node_is_made_with_the_decorator() -> None:
    def plain():
        pass

    with pytest.raises(TypeError, match=r"not .*plain: decorate it with @node"):
        Graph().add_node(plain)
    with pytest.raises(TypeError, match=r"a node or the name of one is wanted, not .*plain"):
        Graph().add_edge(plain, "b")


def test_two_nodes_can_not_have_one_name() -> None:
    graph = graph_of(named("a"))
    with pytest.raises(GraphError, match=r"has a node 'a' already.*name="):
        graph.add_node(named("a"))


def test_a_router_is_made_with_the_decorator() -> None:
    with pytest.raises(TypeError, match=r"<Node 'a'> is no router: decorate it with @router"):
        Graph().add_router([], named("a"), ["b"])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda graph: graph.add_parallel("a", "b"), r"targets is a list.*write \['b'\]"),
        (lambda graph: graph.add_parallel("a", destinations="b"), r"destinations is a list"),
        (lambda graph: graph.add_router("a", "r", ["b"]), r"sources is a list"),
        (lambda graph: graph.add_join("a", "b"), r"sources is a list"),
        (lambda graph: graph.add_join(["a"]), r"add_join\(\) takes one target"),
        (
            lambda graph: graph.add_join(["a"], "b", destination="c"),
            r"add_join\(\) takes one target",
        ),
        (lambda graph: graph.set_state([]), r"the state is a dict, not \[\]"),
        (lambda graph: graph.set_callback(3), r"callback_class must be callable, not int"),
        (lambda graph: graph.set_callback(dict), r"dict is no subclass of callbackkit\.Callback"),
        (lambda _: Graph(max_steps="many"), r"max_steps must be an int"),
        (lambda _: Graph(max_steps=True), r"max_steps must be an int"),
    ],
    ids=range(11),
)
def test_arguments_of_another_type_are_refused(build, message) -> None:
    with pytest.raises(TypeError, match=message):
        build(Graph())


def test_sizes_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="max_steps must be at least 1, not 0"):
        Graph(max_steps=0)
    with pytest.raises(ValueError, match="sources is empty"):
        Graph().add_join([], "a")


# The state.


def test_the_state_that_is_shared() -> None:
    own = {}
    graph = Graph(initial_state=own)
    assert graph.get_state() is own
    assert graph.update_state({"a": 1}) is graph
    assert own == {"a": 1}
    other = {"b": 2}
    assert graph.set_state(other).get_state() is other
    assert graph.reset_state().get_state() == {}
    assert other == {"b": 2}


async def test_the_input_is_left_as_it_is() -> None:
    given = {"query": 1}
    assert await line(START, END).execute(given) == {"query": 1, "start": True, "end": True}
    assert given == {"query": 1}
    with pytest.raises(TypeError, match=r"execute\(\) takes a mapping, not 'query'"):
        await line(START, END).execute("query")


async def test_the_callback_is_no_part_of_the_result() -> None:
    @node(start=True, stream=True)
    async def first(input, callback):  # noqa: A002 - as GraphAI has it
        assert "callback" not in input
        return {"callback": callback, "a": 1}

    @node(end=True)
    async def last(input):  # noqa: A002
        return {"keys": list(input)}

    callback = Callback()
    assert await line(first, last).execute({"callback": callback}, callback) == {
        "a": 1,
        "keys": ["a"],
    }


# The stream.


async def test_the_stream_of_a_run() -> None:
    graph = line(streaming("a", "1", start=True), named("b"), streaming("END", "2", end=True))
    callback = Callback()
    await graph.execute({}, callback)
    assert await follow(callback) == (
        [
            "<graphai:a:start>",
            "<graphai:a>",
            "1",
            "<graphai:a:end>",
            *["<graphai:%45ND:start>", "<graphai:%45ND>", "2", "<graphai:%45ND:end>"],
            "<graphai:END>",
        ],
        None,
    )


async def test_a_graph_in_which_nothing_streams_ends_too() -> None:
    callback = Callback()
    await line(START, END).execute({}, callback)
    assert await follow(callback) == (["<graphai:END>"], None)


async def test_a_node_that_raises_is_told_to_everybody() -> None:
    error = OSError("gone")
    graph = line(streaming("a", "1", error=error, start=True), END)
    callback = Callback()
    with pytest.raises(OSError, match="gone") as raised:
        await graph.execute({}, callback)
    assert raised.value is error
    tokens, raised_to_reader = await follow(callback)
    assert raised_to_reader is error
    assert tokens[2:] == ["1", "<graphai:a:end:status=error>", "<graphai:END:status=error>"]


async def test_a_node_that_lacks_something_ends_the_stream() -> None:
    @node(start=True, end=True)
    async def only(query):
        return {}

    callback = Callback()
    with pytest.raises(NodeInputError, match="'only' names 'query'"):
        await line(only).execute({}, callback)
    assert (await follow(callback))[0] == ["<graphai:END:status=error>"]


async def test_a_run_that_is_cancelled_ends_its_stream_so() -> None:
    started, callback = anyio.Event(), Callback()
    async with anyio.create_task_group() as group:
        group.start_soon(
            line(forever("a", start=True, end=True)).execute, {"started": started}, callback
        )
        await started.wait()
        group.cancel_scope.cancel()
    tokens, error = await follow(callback)
    assert tokens[-2:] == ["<graphai:a:end:status=cancelled>", "<graphai:END:status=cancelled>"]
    assert isinstance(error, StreamCancelledError)


async def test_cancelling_the_callback_stops_the_nodes() -> None:
    stopped = []

    @node(start=True, end=True, stream=True)
    async def step(callback):
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(anyio.sleep_forever)
                callback.cancel("enough")
                await anyio.sleep_forever()
        finally:
            stopped.append(True)

    callback = Callback()
    with pytest.raises(StreamCancelledError, match="enough") as raised:
        await line(step).execute({}, callback)
    assert stopped == [True]
    assert raised.value is not callback.error


async def test_cancelling_from_a_thread_stops_the_nodes() -> None:
    callback = Callback()
    thread = threading.Thread(target=lambda: [callback.iter_sync().__next__(), callback.cancel()])
    thread.start()
    with pytest.raises(StreamCancelledError):
        await line(forever("a", start=True, end=True)).execute({}, callback)
    thread.join()


async def test_a_run_that_times_out_is_stopped() -> None:
    async def read(callback):
        await follow(callback)

    callback = Callback(idle_timeout=0.02)
    async with anyio.create_task_group() as group:
        group.start_soon(read, callback)
        with pytest.raises(TimeoutError) as raised:
            await line(forever("a", start=True, end=True)).execute({}, callback)
    assert raised.value is callback.error
    assert callback.status == "timeout"


async def test_a_run_that_was_cancelled_before_it_began_does_not_begin() -> None:
    graph, callback = line(START, END), Callback()
    callback.cancel("gone")
    with pytest.raises(StreamCancelledError, match="gone"):
        await graph.execute({}, callback)
    assert graph.get_state() == {}


async def test_a_node_that_catches_its_cancellation_does_not_make_a_result() -> None:
    @node(start=True, end=True)
    async def stubborn():
        callback.cancel()
        with anyio.CancelScope(shield=True):
            await anyio.sleep(0.01)
        return {}

    callback = Callback()
    with pytest.raises(StreamCancelledError):
        await line(stubborn).execute({}, callback)


async def test_a_node_may_close_the_stream_itself() -> None:
    """As nodes written for GraphAI do."""

    @node(start=True, end=True, stream=True)
    async def only(callback):
        callback("a")
        await callback.close()
        return {"done": True}

    callback = Callback()
    assert await line(only).execute({}, callback) == {"done": True}
    assert (await follow(callback))[0][-1] == "<graphai:END>"


async def test_other_exits_end_the_stream_too() -> None:
    @node(start=True, end=True)
    async def leave():
        raise SystemExit(3)

    callback = Callback()
    with pytest.raises(SystemExit):
        await line(leave).execute({}, callback)
    assert callback.status == "cancelled"


@pytest.mark.parametrize("anyio_backend", ["asyncio"], scope="module")
async def test_a_node_that_is_cancelled_by_what_it_awaits_ends_the_stream() -> None:
    @node(name="a")
    async def step():
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    callback = Callback()
    graph = graph_of(START, step, named("b"), END)
    graph.add_parallel("start", ["a", "b"]).add_join(["a", "b"], "end")
    with pytest.raises(asyncio.CancelledError):
        await graph.execute({}, callback)
    assert callback.status == "cancelled"


async def test_a_graph_in_a_node_of_another_leaves_the_stream_open() -> None:
    inner = line(streaming("inner", "1", start=True, end=True))

    @node(start=True, end=True, stream=True)
    async def outer(callback):
        await inner.execute({}, callback)
        callback("2")
        return {}

    callback = Callback()
    await line(outer).execute({}, callback)
    assert (await follow(callback))[0][2:] == [
        *["<graphai:inner:start>", "<graphai:inner>", "1", "<graphai:inner:end>"],
        *["2", "<graphai:outer:end>", "<graphai:END>"],
    ]
    with pytest.raises(StreamClosedError):
        callback("3")


async def test_a_graph_that_is_given_the_outer_callback_is_in_it_wherever_it_stands() -> None:
    @node(start=True, end=True)
    async def emit():
        emit_token("1")
        return {}

    @node(start=True, end=True)
    async def outer():
        async with Callback():
            await line(emit).execute({}, callback)
        return {}

    callback = Callback()
    await line(outer).execute({}, callback)
    assert (await follow(callback))[0] == ["1", "<graphai:END>"]


# The callback of the context.


async def test_a_run_takes_the_callback_of_its_context_once() -> None:
    graph = line(streaming("a", "1", start=True, end=True))
    callback = graph.get_callback()
    async with anyio.create_task_group() as group:
        group.start_soon(graph.execute, {})
    assert (await follow(callback))[0][2] == "1"
    entries = callback.last_seq
    await graph.execute({})
    assert callback.last_seq == entries


async def test_the_newest_callback_is_taken() -> None:
    graph = line(START, END)
    first, second = graph.get_callback(), graph.get_callback()
    await graph.execute({})
    assert (first.status, second.status) == (None, "ok")
    await graph.execute({})
    assert first.status is None


async def test_a_callback_given_by_hand_is_not_taken_again() -> None:
    graph = line(streaming("a", "1", start=True, end=True))
    callback = graph.get_callback()
    await graph.execute({}, callback)
    await graph.execute({})
    other = graph.get_callback()
    await graph.execute({}, Callback())
    assert other.status is None
    await graph.execute({})
    assert other.status == "ok"


async def test_each_graph_takes_its_own() -> None:
    one, other = line(START, END), line(START, END)
    callback, others = one.get_callback(), other.get_callback()
    await one.execute({})
    assert (callback.status, others.status) == ("ok", None)
    await other.execute({})
    assert others.status == "ok"


async def test_eight_requests_at_once_never_mix_their_callbacks() -> None:
    @node(start=True, stream=True)
    async def answer(query, callback):
        for _ in range(20):
            await callback.acall(query)
            await anyio.sleep(0)
        return {"answer": query}

    graph = line(answer, END)
    answers = {}

    async def request(query):
        callback = graph.get_callback()
        async with anyio.create_task_group() as group:
            group.start_soon(graph.execute, {"query": query})
            await anyio.sleep(0)
            answers[query] = (await follow(callback))[0]

    graph.get_callback()
    async with anyio.create_task_group() as group:
        for number in range(8):
            group.start_soon(request, str(number))
    assert {query: tokens[2:-2] for query, tokens in answers.items()} == {
        str(number): [str(number)] * 20 for number in range(8)
    }


async def test_a_graph_is_not_held_by_the_callbacks_it_gave() -> None:
    graph = Graph()
    callback = graph.get_callback()
    gone = weakref.ref(graph)
    del graph
    gc.collect()
    assert gone() is None
    other = line(START, END)
    assert other.get_callback() is not callback
    await other.execute({})


class Loud(Callback):
    async def acall(self, token, node_name=None):
        await super().acall(token.upper(), node_name)


async def test_the_class_of_callbacks_can_be_set() -> None:
    @node(start=True, end=True, stream=True)
    async def answer(callback):
        await callback.acall("a")
        return {"kind": type(callback)}

    graph = line(answer)
    assert graph.set_callback(Loud) is graph
    callback = graph.get_callback()
    assert await graph.execute({}) == {"kind": Loud}
    assert (await follow(callback))[0][2] == "A"
    assert (await graph.execute({}))["kind"] is Loud
    graph.set_callback(lambda: Callback(identifier="own"))
    assert graph.get_callback().identifier == "own"
    graph.set_callback(lambda: None)
    with pytest.raises(TypeError, match=r"returned None, no callbackkit\.Callback"):
        graph.get_callback()


async def test_what_is_no_callback_is_refused() -> None:
    with pytest.raises(TypeError, match=r"callback must be a callbackkit\.Callback, not 3"):
        await line(START, END).execute({}, 3)


async def test_emit_token_finds_the_run_anywhere_in_it() -> None:
    @node(start=True)
    def first():
        emit_token("a")
        return {}

    @node(end=True, stream=True)
    async def last():
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.to_thread.run_sync, emit_token, "b")
        return {}

    callback = Callback()
    await line(first, last).execute({}, callback)
    assert [token for token in (await follow(callback))[0] if "<" not in token] == ["a", "b"]
