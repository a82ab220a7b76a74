"""A function made a step of a graph: what it gets, what it may return, and what it can be."""

import functools
import threading
from contextvars import ContextVar

import anyio
import pytest

from callbackkit.errors import NodeInputError, NodeOutputError
from callbackkit.streaming.callback import Callback, emit_token
from callbackkit.streaming.node import Node, node, router


async def read(callback):
    """Return the entries of a run so far."""
    reader = callback.events()
    return [await anext(reader) for _ in range(callback.last_seq)]


async def events_of(callback):
    return [(event.type, event.node, event.token) for event in await read(callback)]


# Decorating.


def test_the_decorator_works_with_and_without_options() -> None:
    @node
    def plain(query):
        """Answer."""

    @node(start=True, end=True, stream=True, name="given")
    def told(query):
        pass

    assert (plain.name, plain.stream, plain.is_start, plain.is_end, plain.is_router) == (
        "plain",
        False,
        False,
        False,
        False,
    )
    assert (told.name, told.stream, told.is_start, told.is_end) == ("given", True, True, True)
    assert plain.__doc__ == "Answer."
    assert repr(plain) == "<Node 'plain'>"
    assert repr(told) == "<Node 'given': start, end, stream>"


def test_the_function_stays_a_plain_one() -> None:
    def double(x):
        return {"x": 2 * x}

    assert node(double).func is double
    assert node(double).func(2) == {"x": 4}


def test_calling_a_node_is_the_node() -> None:
    @node
    def step():
        pass

    assert step() is step


def test_a_router_is_a_node_that_says_so() -> None:
    @router
    def route():
        pass

    @router(start=True, stream=True, name="first")
    def other():
        pass

    assert route.is_router
    assert repr(other) == "<Node 'first': router, start, stream>"


def test_a_callback_parameter_without_stream_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match=r"'answer' has a parameter 'callback'.*stream=True"):

        @node
        async def answer(query, callback):
            pass


async def generator():
    yield "x"


def greet():
    return {}


def sync_generator():
    yield "x"


@pytest.mark.parametrize("make", [node, router])
@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (generator, TypeError, r"generator is a generator: it has to return its result"),
        (functools.partial(sync_generator), TypeError, r"is a generator"),
        (lambda *args: {}, TypeError, r"takes \*args"),
        ("name", TypeError, r"name='name'"),
        (3, TypeError, r"must be callable, not int"),
        (functools.partial(len), ValueError, r"has no name: give it one"),
        (node(greet), TypeError, r"is a node already"),
        (staticmethod(len), TypeError, r"goes below @staticmethod"),
        (classmethod(min), TypeError, r"goes below @staticmethod"),
        (type, TypeError, r"can't tell the parameters of"),
    ],
)
def test_what_can_be_no_node_is_refused(make, function, error, message) -> None:
    with pytest.raises(error, match=message):
        make(function)


@pytest.mark.parametrize(("name", "error"), [("", ValueError), (3, TypeError)])
def test_a_name_is_a_non_empty_string(name, error) -> None:
    with pytest.raises(error, match="the name of a node"):
        node(name=name)(dict)


# What it gets.


async def test_a_node_gets_the_keys_it_names() -> None:
    @node
    async def step(a, *, b, c=3):
        return {"got": (a, b, c)}

    assert await step.invoke({"a": 1, "b": 2, "z": 9}) == {"got": (1, 2, 3)}
    assert await step.invoke({"a": 1, "b": 2, "c": None}) == {"got": (1, 2, None)}


async def test_positional_only_parameters_are_filled_too() -> None:
    @node
    async def step(a, b=2, /, c=3):
        return {"got": (a, b, c)}

    assert await step.invoke({"a": 1, "c": 9}) == {"got": (1, 2, 9)}


async def test_input_is_the_key_or_else_a_copy_of_all() -> None:
    @node
    async def step(input):  # noqa: A002 - as GraphAI has it
        input["more"] = True
        return {"got": input}

    whole = {"query": "tea"}
    assert await step.invoke(whole) == {"got": {"query": "tea", "more": True}}
    assert whole == {"query": "tea"}
    assert await step.invoke({"input": {"q": 1}}) == {"got": {"q": 1, "more": True}}


async def test_state_is_what_the_graph_shares() -> None:
    @node
    async def step(state, more=None):
        state["seen"] = True
        return {"got": state}

    shared = {}
    assert await step.invoke({"state": 3}, state=shared) == {"got": {"seen": True}}
    assert shared == {"seen": True}
    assert await step.invoke({}) == {"got": {"seen": True}}
    assert await step.invoke({"state": {"own": 1}}) == {"got": {"own": 1, "seen": True}}


async def test_double_starred_parameters_get_the_rest() -> None:
    @node(stream=True)
    async def step(a, callback, **rest):
        return rest

    assert await step.invoke({"a": 1, "b": 2, "rest": 3, "callback": 4}) == {"b": 2, "rest": 3}


async def test_what_the_state_lacks_is_named_with_what_it_has() -> None:
    @node
    async def step(query, limit, size=3):
        return {}

    with pytest.raises(NodeInputError, match=r"'step' names 'query', 'limit'.*has 'q'\. Have"):
        await step.invoke({"q": 1})
    with pytest.raises(NodeInputError, match=r"the state has no keys at all"):
        await step.invoke({})


# Streaming.


async def test_a_streaming_node_has_a_span() -> None:
    @node(stream=True)
    async def answer(callback):
        callback("a")
        await callback.acall("b")
        return {}

    callback = Callback()
    await answer.invoke({}, callback)
    assert await events_of(callback) == [
        ("node_start", "answer", "<graphai:answer:start>"),
        ("node_name", "answer", "<graphai:answer>"),
        ("token", "answer", "a"),
        ("token", "answer", "b"),
        ("node_end", "answer", "<graphai:answer:end>"),
    ]


async def test_a_streaming_node_needs_no_parameter() -> None:
    @node(stream=True)
    async def answer():
        emit_token("a")
        return {}

    callback = Callback()
    await answer.invoke({}, callback)
    assert ("token", "answer", "a") in await events_of(callback)


async def test_other_nodes_have_no_span_but_find_the_run() -> None:
    @node
    async def quiet():
        emit_token("a")
        return {}

    callback = Callback()
    await quiet.invoke({}, callback)
    assert await events_of(callback) == [("token", None, "a")]
    emit_token("nobody's")
    assert len(await read(callback)) == 1


async def test_the_span_of_a_node_that_fails_says_so() -> None:
    @node(stream=True)
    async def answer(callback):
        callback("a")
        raise OSError("gone")

    @node(stream=True)
    async def nothing():
        pass

    callback = Callback()
    with pytest.raises(OSError, match="gone"):
        await answer.invoke({}, callback)
    with pytest.raises(NodeOutputError):
        await nothing.invoke({}, callback)
    assert [event.status for event in await read(callback) if event.type == "node_end"] == [
        "error"
    ] * 2


async def test_without_a_callback_it_streams_to_the_run_of_the_context() -> None:
    @node(stream=True)
    async def answer(callback):
        callback("a")
        return {"callback": callback}

    callback = Callback()
    async with callback:
        assert (await answer.invoke({}))["callback"] is callback
    assert ("token", "answer", "a") in await events_of(callback)
    nobodys = (await answer.invoke({}))["callback"]
    assert nobodys.status == "ok"


async def test_the_same_node_twice_at_once_has_two_spans() -> None:
    @node(stream=True)
    async def answer(callback, word, other):
        callback(word)
        mine.set()
        await other.wait()
        callback(word.upper())
        return {}

    callback = Callback()
    async with anyio.create_task_group() as group:
        first, mine = anyio.Event(), anyio.Event()
        group.start_soon(answer.invoke, {"word": "a", "other": first}, callback)
        await mine.wait()
        group.start_soon(answer.invoke, {"word": "b", "other": first}, callback)
        mine = anyio.Event()
        await mine.wait()
        first.set()
    spans = {}
    for event in await read(callback):
        if event.type == "token":
            spans.setdefault(event.span, []).append(event.token)
    assert sorted(spans.values()) == [["a", "A"], ["b", "B"]]


# What it returns.


@pytest.mark.parametrize("output", [None, 3, [("a", 1)], "text"])
async def test_a_node_that_returns_no_mapping_is_told(output) -> None:
    @node
    async def step():
        return output

    with pytest.raises(NodeOutputError, match=r"'step' returned .*\{\} for nothing"):
        await step.invoke({})


async def test_a_router_may_return_the_name_alone() -> None:
    @node
    async def tea():
        return {}

    returned = {"value": "tea"}

    @router
    async def route():
        return returned["value"]

    assert await route.invoke({}) == {"choice": "tea"}
    returned["value"] = tea
    assert await route.invoke({}) == {"choice": tea}
    returned["value"] = {"choices": ["tea"], "more": 1}
    assert await route.invoke({}) == {"choices": ["tea"], "more": 1}


@pytest.mark.parametrize("output", [None, {"next": "tea"}])
async def test_a_router_without_a_choice_is_told(output) -> None:
    @router
    async def route():
        return output

    with pytest.raises(NodeOutputError, match="'route' returned"):
        await route.invoke({})


# What it can be.


place = ContextVar("place", default="nowhere")


async def test_a_node_that_is_not_async_runs_in_a_thread_with_the_context() -> None:
    @node(stream=True)
    def step(callback):
        callback("a")
        emit_token("b")
        return {"thread": threading.get_ident(), "place": place.get()}

    place.set("here")
    callback = Callback()
    result = await step.invoke({}, callback)
    assert result["thread"] != threading.get_ident()
    assert result["place"] == "here"
    assert [event.node for event in await read(callback) if event.type == "token"] == [
        "step",
        "step",
    ]


async def test_what_a_thread_raises_is_raised() -> None:
    @node
    def step():
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        await step.invoke({})


async def test_a_method_can_be_a_node() -> None:
    class Assistant:
        def __init__(self, greeting):
            self.greeting = greeting

        @node(start=True, stream=True)
        async def greet(self, name, callback):
            """Greet."""
            return {"said": f"{self.greeting}, {name}"}

        @staticmethod
        @node
        async def bow():
            return {"bowed": True}

    one, other = Assistant("Hello"), Assistant("Hi")
    assert await one.greet.invoke({"name": "you"}) == {"said": "Hello, you"}
    assert one.greet.name == "greet"
    assert one.greet.is_start
    assert one.greet.stream
    assert one.greet.is_same(one.greet)
    assert not one.greet.is_same(other.greet)
    assert isinstance(Assistant.greet, Node)
    assert await one.bow.invoke({}) == {"bowed": True}


async def test_an_object_that_can_be_called_can_be_a_node() -> None:
    class Step:
        async def __call__(self, a):
            return {"a": a + 1}

    class Holder:
        step = node(name="step")(Step())

    assert await Holder.step.invoke({"a": 1}) == {"a": 2}
    assert await Holder().step.invoke({"a": 1}) == {"a": 2}
