"""Functions are called by name, with arguments whole or in pieces, and refuse what is no JSON."""

import contextvars
import functools
import itertools
import json
import sys
import threading
from types import MappingProxyType

import anyio
import pytest
from hypothesis import given, strategies as st

from callbackkit import (
    BacklogError,
    CallbackKitError,
    FunctionArgumentsError,
    FunctionRegistry,
    UnknownCallError,
    UnknownFunctionError,
)
from callbackkit.testing import MockCallback


@pytest.fixture
def functions() -> FunctionRegistry:
    """A registry with a function that returns its arguments."""
    functions = FunctionRegistry()
    functions.register_function("echo", lambda arguments: arguments)
    return functions


# Calling.


@pytest.mark.parametrize(
    ("arguments", "given"),
    [
        ({"a": 1}, {"a": 1}),
        ('{"a": [1, 2.5, null, true, "\\u00e9"]}', {"a": [1, 2.5, None, True, "é"]}),
        (b'{"a": "\xc3\xa9"}', {"a": "é"}),
        (bytearray(b"{}"), {}),
        (' {"a": 1}\n', {"a": 1}),
        ("", {}),
        (b"", {}),
        (None, {}),
    ],
)
async def test_a_function_gets_one_mapping(functions, arguments, given) -> None:
    assert await functions.call("echo", arguments) == given


async def test_a_mapping_is_passed_on_as_it_is(functions) -> None:
    arguments = MappingProxyType({"a": 1})
    assert await functions.call("echo", arguments) is arguments


async def test_functions_are_sync_or_async(functions) -> None:
    @functions.register
    async def add(arguments):
        await anyio.lowlevel.checkpoint()
        return arguments["a"] + arguments["b"]

    class Multiply:
        async def __call__(self, arguments):
            return arguments["a"] * arguments["b"]

    functions.register_function("multiply", Multiply())
    functions.register_function("lazy", lambda arguments: add(arguments))
    assert await functions.call("add", {"a": 1, "b": 2}) == 3
    assert await functions.call("multiply", {"a": 3, "b": 2}) == 6
    assert await functions.call("lazy", {"a": 1, "b": 2}) == 3


async def test_a_function_without_parameters_gets_nothing(functions) -> None:
    async def now():
        return "now"

    functions.register_function("now", now)
    functions.register_function("hang_up", lambda: "bye")
    assert await functions.call("now", {"a": 1}) == "now"
    assert await functions.call("hang_up") == "bye"


async def test_a_parameter_with_a_default_gets_the_arguments(functions) -> None:
    functions.register_function("greet", lambda arguments=None: arguments)
    assert await functions.call("greet", {"name": "Ada"}) == {"name": "Ada"}


async def test_a_decorator_may_turn_the_mapping_into_keywords(functions) -> None:
    def unpacked(function):
        @functools.wraps(function)
        def call(arguments):
            return function(**arguments)

        return call

    @functions.register
    @unpacked
    def add(a, b):
        return a + b

    @functions.register
    @unpacked
    def now():
        return "now"

    assert await functions.call("add", '{"a": 1, "b": 2}') == 3
    assert await functions.call("now") == "now"


async def test_what_a_function_raises_is_raised(functions) -> None:
    @functions.register
    def fail(arguments):
        raise LookupError(arguments["name"])

    with pytest.raises(LookupError, match="Ada"):
        await functions.call("fail", {"name": "Ada"})


@pytest.mark.parametrize("name", ["unknown", "", None, 3, ["echo"], {"echo": 1}])
async def test_an_unknown_name_is_told_with_the_known_ones(functions, name) -> None:
    functions.register_function("another", print)
    with pytest.raises(UnknownFunctionError, match="known: another, echo") as caught:
        await functions.call(name, {})
    assert caught.value.known == ("another", "echo")
    with pytest.raises(UnknownFunctionError):
        functions.start("call", name)
    assert functions.cancel("call") is False


BAD_ARGUMENTS = {
    "malformed": ('{"a": ', "Expecting value"),
    "two values": ("{} {}", "Extra data"),
    "no JSON": ("hello", "Expecting value"),
    "blank": ("  ", "Expecting value"),
    "not UTF-8": (b'{"a": "\xff"}', "decode"),
    "array": ("[1]", "not an array"),
    "string": ('"a"', "not a string"),
    "number": ("1", "not a number"),
    "fraction": ("1.5", "not a number"),
    "boolean": ("true", "not a boolean"),
    "null": ("null", "not null"),
    "NaN": ('{"a": NaN}', "NaN is not a number"),
    "infinity": ('{"a": [-Infinity]}', "-Infinity is not a number"),
    "too large a number": ('{"a": 1e999}', "1e999 is too large"),
    "too many digits": ('{"a": ' + "1" * 4301 + "}", "4300 digits"),
    "nested": ('{"a": ' + "[" * 200_000 + "]" * 200_000 + "}", "nested too deeply"),
    "a list": ([1], "not list"),
    "an int": (3, "not int"),
}


@pytest.mark.parametrize("name", BAD_ARGUMENTS)
async def test_arguments_that_are_no_json_object_are_refused(functions, name) -> None:
    arguments, reason = BAD_ARGUMENTS[name]
    ran = MockCallback()
    functions.register_function("function", ran)
    with pytest.raises(FunctionArgumentsError) as caught:
        await functions.call("function", arguments)
    assert caught.value.name == "function"
    assert reason in caught.value.reason
    assert isinstance(caught.value, ValueError)
    assert ran.call_count == 0


async def test_digits_are_counted_whatever_the_interpreter_allows(functions) -> None:
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        with pytest.raises(FunctionArgumentsError, match="4300 digits"):
            await functions.call("echo", '{"a": ' + "1" * 4301 + "}")
        assert await functions.call("echo", '{"a": ' + "1" * 4300 + "}") == {"a": 10**4300 // 9}
    finally:
        sys.set_int_max_str_digits(limit)


async def test_arguments_may_be_limited(functions) -> None:
    functions = FunctionRegistry(max_argument_chars=8)
    functions.register_function("echo", lambda arguments: arguments)
    assert await functions.call("echo", '{"a": 1}') == {"a": 1}
    for arguments in ('{"a": 11}', b'{"a": 11}'):
        with pytest.raises(FunctionArgumentsError, match="longer than 8 characters"):
            await functions.call("echo", arguments)


# Registering.


def test_names_are_known_in_order_of_registration(functions) -> None:
    functions.register_function("add", print)
    assert functions.names == ("echo", "add")
    assert functions.unregister_function("echo") is True
    assert functions.unregister_function("echo") is False
    assert functions.names == ("add",)


async def test_a_name_is_taken_once(functions) -> None:
    with pytest.raises(ValueError, match=r"unregister_function\('echo'\) first"):
        functions.register_function("echo", lambda: "other")
    assert await functions.call("echo") == {}
    functions.unregister_function("echo")
    functions.register_function("echo", lambda: "other")
    assert await functions.call("echo") == "other"


async def test_the_decorator_takes_the_functions_name_or_another(functions) -> None:
    @functions.register
    def first():
        return 1

    @functions.register("another")
    def second():
        return 2

    @functions.register()
    def third():
        return 3

    assert (first(), second(), third()) == (1, 2, 3)
    assert functions.names == ("echo", "first", "another", "third")
    assert await functions.call("another") == 2


BAD_FUNCTIONS = {
    "no callable": (lambda f: f.register_function("a", "b"), "function 'a' must be callable"),
    "no string": (lambda f: f.register_function(3, print), "is a string, not int"),
    "empty": (lambda f: f.register_function("", print), "must not be empty"),
    "two parameters": (lambda f: f.register_function("a", lambda a, b: a), "wants 2 arguments"),
    "bare decorator": (lambda f: f.register(3), "must be callable"),
    "decorator": (lambda f: f.register("a")(3), "must be callable"),
    "lambda": (lambda f: f.register(lambda: 1), "no name to go by"),
    "partial": (lambda f: f.register(functools.partial(print)), "no name to go by"),
}


@pytest.mark.parametrize("name", BAD_FUNCTIONS)
def test_what_cannot_be_registered_is_refused_at_once(functions, name) -> None:
    register, message = BAD_FUNCTIONS[name]
    with pytest.raises((TypeError, ValueError), match=message):
        register(functions)
    assert functions.names == ("echo",)


def test_limits_are_checked() -> None:
    with pytest.raises(ValueError, match="max_open_calls must be at least 1, not 0"):
        FunctionRegistry(max_open_calls=0)
    with pytest.raises(TypeError, match="max_argument_chars must be an int, not True"):
        FunctionRegistry(max_argument_chars=True)


def test_threads_that_register_one_name_register_it_once(functions) -> None:
    barrier, refused = threading.Barrier(8), []

    def register() -> None:
        barrier.wait()
        try:
            functions.register_function("one", print)
        except ValueError as exc:
            refused.append(exc)

    threads = [threading.Thread(target=register) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 7


def test_a_registry_shows_how_much_it_holds(functions) -> None:
    functions.start("a", "echo")
    assert repr(functions) == "<FunctionRegistry, 1 functions, 1 open calls>"


# In worker threads.


async def test_a_function_may_run_in_a_thread_with_the_callers_context(functions) -> None:
    variable = contextvars.ContextVar("variable", default="unset")
    variable.set("set")

    @functions.register(thread=True)
    def where(arguments):
        return threading.get_ident(), variable.get(), arguments

    thread, value, arguments = await functions.call("where", '{"a": 1}')
    assert thread != threading.get_ident()
    assert (value, arguments) == ("set", {"a": 1})


async def test_a_call_in_a_thread_that_is_cancelled_is_not_waited_for(functions) -> None:
    release = threading.Event()
    functions.register_function("block", lambda: release.wait(10), thread=True)
    with anyio.move_on_after(0.01) as scope:
        await functions.call("block")
    assert scope.cancelled_caught
    assert (functions.abandoned_threads, functions.hanging_threads) == (1, 1)
    release.set()


def test_an_async_function_is_not_for_threads(functions) -> None:
    async def look_up(arguments):
        return arguments

    with pytest.raises(ValueError, match="'look_up' is async"):
        functions.register(thread=True)(look_up)


# Streamed arguments.


async def test_arguments_arrive_in_pieces(functions) -> None:
    functions.start("call-1", "echo")
    for delta in ('{"na', 'me": "A', "", 'da"}'):
        functions.feed("call-1", delta)
    assert await functions.finish("call-1") == {"name": "Ada"}
    with pytest.raises(UnknownCallError):
        await functions.finish("call-1")


async def test_no_pieces_are_no_arguments(functions) -> None:
    functions.start("call-1", "echo")
    assert await functions.finish("call-1") == {}


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(
    arguments=st.dictionaries(st.text(), json_values),
    cuts=st.lists(st.integers(0, 200)),
    ascii_only=st.booleans(),
)
async def test_any_cutting_of_the_text_gives_the_same_arguments(
    arguments, cuts, ascii_only
) -> None:
    functions = FunctionRegistry()
    functions.register_function("echo", lambda arguments: arguments)
    text = json.dumps(arguments, ensure_ascii=ascii_only)
    functions.start(0, "echo")
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    for start, end in itertools.pairwise(places):
        functions.feed(0, text[start:end])
    assert await functions.finish(0) == arguments == await functions.call("echo", text)


# The chunks of a streamed answer with two tool calls, as chat completion APIs send them: the
# first chunk of a call has its id and name, later ones only its index and a piece of the text.
TOOL_CALL_CHUNKS = [
    {"index": 0, "id": "call_a", "function": {"name": "get_weather", "arguments": ""}},
    {"index": 0, "function": {"arguments": '{"'}},
    {"index": 0, "function": {"arguments": "city"}},
    {"index": 1, "id": "call_b", "function": {"name": "hang_up", "arguments": ""}},
    {"index": 0, "function": {"arguments": '": "K\\u00f6'}},
    {"index": 1, "function": {"arguments": '{"reason": "'}},
    {"index": 0, "function": {"arguments": 'ln", "days'}},
    {"index": 1, "function": {"arguments": 'done"}'}},
    {"index": 0, "function": {"arguments": '": 3}'}},
]


async def test_a_stream_of_tool_calls_interleaves_them(functions) -> None:
    functions.register_function("get_weather", lambda a: f"{a['city']}, {a['days']} days")
    functions.register_function("hang_up", lambda a: a["reason"])
    ids = {}
    for chunk in TOOL_CALL_CHUNKS:
        if "id" in chunk:
            ids[chunk["index"]] = chunk["id"]
            functions.start(chunk["id"], chunk["function"]["name"])
        functions.feed(ids[chunk["index"]], chunk["function"]["arguments"])
    assert await functions.finish("call_a") == "Köln, 3 days"
    assert await functions.finish("call_b") == "done"


async def test_threads_feed_different_calls(functions) -> None:
    def feed(call: int) -> None:
        functions.start(call, "echo")
        for delta in json.dumps({"numbers": list(range(call, call + 100))}):
            functions.feed(call, delta)

    async with anyio.create_task_group() as group:
        for call in range(8):
            group.start_soon(anyio.to_thread.run_sync, feed, call)
    for call in range(8):
        assert await functions.finish(call) == {"numbers": list(range(call, call + 100))}


async def test_an_open_call_has_its_id_alone(functions) -> None:
    functions.start("a", "echo")
    with pytest.raises(ValueError, match="'a' is open already"):
        functions.start("a", "echo")
    functions.feed("a", '{"kept": 1}')
    assert await functions.finish("a") == {"kept": 1}
    functions.start("a", "echo")


async def test_a_call_that_is_not_open_is_unknown(functions) -> None:
    with pytest.raises(UnknownCallError) as caught:
        functions.feed("a", "{")
    assert caught.value.call_id == "a"
    with pytest.raises(UnknownCallError):
        await functions.finish("a")
    assert functions.cancel("a") is False


async def test_cancel_closes_a_call(functions) -> None:
    ran = MockCallback()
    functions.register_function("function", ran)
    functions.start("a", "function")
    assert functions.cancel("a") is True
    with pytest.raises(UnknownCallError):
        await functions.finish("a")
    assert ran.call_count == 0


@pytest.mark.parametrize("delta", ["{", '{"a": 0}'], ids=["bad arguments", "failing function"])
async def test_finish_closes_the_call_whatever_happens(functions, delta) -> None:
    functions.register_function("divide", lambda arguments: 1 / arguments["a"])
    functions.start("a", "divide")
    functions.feed("a", delta)
    with pytest.raises((FunctionArgumentsError, ZeroDivisionError)):
        await functions.finish("a")
    with pytest.raises(UnknownCallError):
        await functions.finish("a")


async def test_finish_closes_a_call_that_is_cancelled(functions) -> None:
    functions.register_function("block", lambda: anyio.sleep_forever())
    functions.start("a", "block")
    with anyio.CancelScope() as scope:
        scope.cancel()
        await functions.finish("a")
    assert scope.cancelled_caught
    assert functions.cancel("a") is False


async def test_a_call_keeps_the_function_it_was_started_with(functions) -> None:
    functions.start("a", "echo")
    functions.unregister_function("echo")
    assert await functions.finish("a") == {}


async def test_too_long_arguments_are_dropped_and_refused_to_the_end(functions) -> None:
    functions = FunctionRegistry(max_argument_chars=10)
    functions.register_function("echo", lambda arguments: arguments)
    functions.start("a", "echo")
    functions.feed("a", '{"a": 1')
    for delta in ("x" * 4, "}"):
        with pytest.raises(FunctionArgumentsError, match="longer than 10 characters"):
            functions.feed("a", delta)
    assert functions._calls["a"].pieces == []
    with pytest.raises(FunctionArgumentsError, match="longer than 10 characters"):
        await functions.finish("a")
    assert functions.cancel("a") is False


async def test_open_calls_are_limited(functions) -> None:
    functions = FunctionRegistry(max_open_calls=2)
    functions.register_function("echo", lambda arguments: arguments)
    functions.start(1, "echo")
    functions.start(2, "echo")
    with pytest.raises(BacklogError, match="2 function calls are open"):
        functions.start(3, "echo")
    assert isinstance(BacklogError(), CallbackKitError)
    functions.cancel(1)
    functions.start(3, "echo")


async def test_many_empty_pieces_take_no_memory(functions) -> None:
    functions.start("a", "echo")
    for _ in range(1000):
        functions.feed("a", "")
    assert len(functions._calls["a"].pieces) == 0
    assert await functions.finish("a") == {}


@pytest.mark.parametrize("delta", [None, b"{}", 3])
def test_a_piece_is_a_string(functions, delta) -> None:
    functions.start("a", "echo")
    with pytest.raises(TypeError, match="a piece of arguments is a string"):
        functions.feed("a", delta)


# What comes of values.


async def test_callbacks_see_the_values_they_want_before_call_returns(functions) -> None:
    ran = []
    functions.register_function("say", lambda arguments: arguments["text"])
    functions.on_result(lambda value: True, lambda value: ran.append(("first", value)))
    functions.on_result(lambda value: value == "goodbye", lambda: ran.append("hang up"))

    async def last(value) -> None:
        await anyio.lowlevel.checkpoint()
        ran.append(("last", value))

    functions.on_result(lambda value: True, last)
    assert await functions.call("say", {"text": "hello"}) == "hello"
    assert ran == [("first", "hello"), ("last", "hello")]
    ran.clear()
    functions.start("a", "say")
    functions.feed("a", '{"text": "goodbye"}')
    await functions.finish("a")
    assert ran == [("first", "goodbye"), "hang up", ("last", "goodbye")]


async def test_a_predicate_or_callback_that_fails_stops_nothing(functions, caplog) -> None:
    hung_up = MockCallback()
    functions.on_result(lambda value: value["missing"], print)
    functions.on_result(lambda value: True, lambda: 1 / 0)
    functions.on_result(lambda value: True, hung_up)
    assert await functions.call("echo", {"a": 1}) == {"a": 1}
    hung_up.assert_called_with({"a": 1})
    assert [record.exc_info[0] for record in caplog.records] == [KeyError, ZeroDivisionError]


async def test_a_function_that_fails_has_no_result(functions) -> None:
    seen = MockCallback()
    functions.register_function("fail", lambda: 1 / 0)
    functions.on_result(lambda value: True, seen)
    with pytest.raises(ZeroDivisionError):
        await functions.call("fail")
    assert seen.call_count == 0


async def test_a_result_callback_can_be_cancelled(functions) -> None:
    seen = MockCallback()
    with functions.on_result(lambda value: True, seen):
        await functions.call("echo")
    await functions.call("echo")
    assert seen.call_count == 1


@pytest.mark.parametrize("predicate", ["goodbye", None])
def test_a_predicate_is_callable(functions, predicate) -> None:
    with pytest.raises(TypeError, match="predicate must be callable"):
        functions.on_result(predicate, print)


def test_a_predicate_is_synchronous(functions) -> None:
    async def is_final(value):
        return True

    with pytest.raises(TypeError, match=r"predicate must be synchronous; .*is_final is async"):
        functions.on_result(is_final, print)
