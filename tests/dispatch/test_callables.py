"""What is told of a callable before it is called: name, arity, async or not, whatever it is."""

import asyncio
import builtins
import functools
import inspect
import sys
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from types import MethodType
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, strategies as st

from callbackkit.dispatch.callables import (
    callable_name,
    check_callable,
    decider,
    give,
    is_async_callable,
    is_awaitable,
    same_callable,
    wanted_arguments,
)

# The callables of the tables below.


def sync_one(data: object) -> object:
    return data


async def async_one(data: object) -> object:
    return data


async def async_generator(data: object) -> Any:
    yield data


def passes_on(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


class Many:
    """Methods of every kind."""

    def method(self, data: object) -> None: ...

    async def async_method(self, data: object) -> None: ...

    def no_argument(self) -> None: ...

    def two(self, data: object, more: object) -> None: ...

    def some(self, *args: object) -> None: ...

    def keeps(self, data: object, kept: object = 1) -> None: ...

    def only_default(self, data: object = 1) -> None: ...

    def takes_even_itself(*args: object) -> None: ...

    def takes_itself_by_default(self: object = None) -> None: ...

    @classmethod
    def of_class(cls, data: object) -> None: ...

    @classmethod
    async def async_of_class(cls, data: object) -> None: ...

    @staticmethod
    def static(data: object) -> None: ...

    @staticmethod
    async def async_static(data: object) -> None: ...

    bound_part = functools.partialmethod(two, "first")
    async_bound_part = functools.partialmethod(async_method)


class SyncObject:
    def __call__(self, data: object) -> object: ...


class AsyncObject:
    async def __call__(self, data: object) -> object: ...


class StaticCall:
    @staticmethod
    async def __call__(data: object) -> None: ...


class AsyncMeta(type):
    async def __call__(cls, *args: object) -> Any: ...


class MadeByAsyncMeta(metaclass=AsyncMeta): ...


class Asks:
    """Answers every question about itself with an error, but can be called."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError("not to be asked")

    def __call__(self, data: object) -> None: ...


class SaysYes:
    """Has every attribute one may ask for, as mocks and proxies do."""

    def __getattr__(self, name: str) -> Any:
        return SaysYes()

    def __call__(self, data: object) -> None: ...


class HostileSignature:
    @property
    def __signature__(self) -> Any:
        raise RuntimeError("no signature")

    def __call__(self, data: object) -> None: ...


class AwaitableClass:
    def __init__(self, data: object) -> None: ...

    def __await__(self) -> Generator[Any, Any, None]:
        yield


@types.coroutine
def old_style(data: object) -> Generator[Any, Any, None]:
    yield


many = Many()
marked: Any = functools.partial(sync_one)
if sys.version_info >= (3, 12):
    marked = inspect.markcoroutinefunction(lambda data: async_one(data))


# Asynchronous or not.

ASYNC = {
    "function": async_one,
    "method": many.async_method,
    "method of the class": many.async_of_class,
    "static method": many.async_static,
    "partial": functools.partial(async_one, 1),
    "partial of a partial": functools.partial(functools.partial(async_one)),
    "partial of a method": functools.partial(many.async_method),
    "partial method": many.async_bound_part,
    "method made of a partial": MethodType(functools.partial(async_one), many),
    "callable object": AsyncObject(),
    "partial of a callable object": functools.partial(AsyncObject()),
    "object with a static __call__": StaticCall(),
    "AsyncMock": mock.AsyncMock(),
}

NOT_KNOWN = {
    "function": sync_one,
    "method": many.method,
    "partial": functools.partial(sync_one, 1),
    "callable object": SyncObject(),
    "lambda that returns a coroutine": lambda data: async_one(data),
    "wraps around async": passes_on(async_one),
    "lru_cache around async": functools.lru_cache(async_one),
    "staticmethod object": Many.__dict__["async_static"],
    "class": Many,
    "class with async __call__": AsyncObject,
    "class whose instances can be awaited": AwaitableClass,
    "class of an async metaclass": MadeByAsyncMeta,
    "built-in": print,
    "method of a built-in": [].append,
    "class of a built-in": dict,
    "async generator": async_generator,
    "generator coroutine": old_style,
    "object that answers nothing": Asks(),
    "object that answers anything": SaysYes(),
    "Mock": mock.Mock(),
    "MagicMock": mock.MagicMock(),
}


@pytest.mark.parametrize("name", ASYNC)
def test_known_to_be_async(name: str) -> None:
    assert is_async_callable(ASYNC[name])


@pytest.mark.parametrize("name", NOT_KNOWN)
def test_not_known_to_be_async(name: str) -> None:
    assert not is_async_callable(NOT_KNOWN[name])


@pytest.mark.skipif(sys.version_info < (3, 12), reason="inspect has no mark before 3.12")
def test_a_function_marked_as_coroutine_function_is_known_to_be_async() -> None:
    assert is_async_callable(marked)
    assert is_async_callable(functools.partial(marked))


# Awaitable or not.


class Slotted(Awaitable[int]):
    def __await__(self) -> Generator[Any, Any, int]:
        return (yield)


class PretendsByInstance:
    def __init__(self) -> None:
        self.__await__ = lambda: iter(())


class PretendsByClass:
    """Says it is a future, as ``Mock(spec=Future)`` does; ``await`` does not believe it."""

    @property
    def __class__(self) -> Any:
        return asyncio.Future


class RefusesToSay:
    """As a proxy of werkzeug does outside of a request."""

    @property
    def __class__(self) -> Any:
        raise RuntimeError("no request")


def plain_generator() -> Generator[Any, Any, None]:
    yield


def test_what_await_takes_is_awaitable() -> None:
    coroutine = async_one(1)
    loop = asyncio.new_event_loop()
    awaitables: list[object] = [
        coroutine,
        old_style(1),
        AwaitableClass(1),
        Slotted(),
        loop.create_future(),
    ]
    assert all(map(is_awaitable, awaitables))
    coroutine.close()
    loop.close()


def test_what_await_refuses_is_not_awaitable() -> None:
    values: list[object] = [
        None,
        1,
        "text",
        plain_generator(),
        async_generator(1),
        async_one,
        AwaitableClass,
        PretendsByInstance(),
        PretendsByClass(),
        RefusesToSay(),
        Asks(),
        mock.MagicMock(),
    ]
    assert not any(map(is_awaitable, values))


# How many arguments.

WANTED: dict[str, tuple[Any, int]] = {
    "none": (lambda: None, 0),
    "one": (sync_one, 1),
    "two": (lambda data, more: None, 2),
    "three": (lambda data, more, most: None, 3),
    "one and any": (lambda data, *rest: None, 2),
    "any": (lambda *args: None, 2),
    "a default": (lambda data=1: None, 0),
    "one and a default": (lambda data, kept=1: None, 1),
    "keyword only": (lambda *, data=1: None, 0),
    "one and keywords": (lambda data, **more: None, 1),
    "positional only": (lambda data, /: None, 1),
    "async": (async_one, 1),
    "method": (many.method, 1),
    "method of none": (many.no_argument, 0),
    "method of two": (many.two, 2),
    "method of any": (many.some, 2),
    "method with a default": (many.keeps, 1),
    "method with only a default": (many.only_default, 0),
    "method of any, itself among them": (many.takes_even_itself, 2),
    "method with a default for itself": (many.takes_itself_by_default, 0),
    "method of the class": (many.of_class, 1),
    "static method": (many.static, 1),
    "unbound method": (Many.two, 3),
    "partial method": (many.bound_part, 1),
    "partial with one left": (functools.partial(many.two, 1), 1),
    "partial by name": (functools.partial(many.two, more=1), 1),
    "partial with none left": (functools.partial(sync_one, 1), 0),
    "nested partial": (functools.partial(functools.partial(many.two, 1), 2), 0),
    "method made of a partial": (MethodType(functools.partial(many.two), many), 1),
    "callable object": (SyncObject(), 1),
    "async callable object": (AsyncObject(), 1),
    "class": (AwaitableClass, 1),
    "class of none": (Many, 0),
    "wraps": (passes_on(sync_one), 1),
    "wraps of none": (passes_on(lambda: None), 0),
    "lru_cache": (functools.lru_cache(sync_one), 1),
    "built-in of any": (print, 2),
    "method of a built-in": ([].append, 1),
    "method of a built-in, of none": ([].clear, 0),
    "built-in without a signature": (vars(builtins)["max"], 2),
    "hostile signature": (HostileSignature(), 2),
    "answers nothing": (Asks(), 2),
    "answers anything": (SaysYes(), 2),
}


@pytest.mark.parametrize("name", WANTED)
def test_wanted_arguments(name: str) -> None:
    callback, wanted = WANTED[name]
    assert wanted_arguments(callback, 2) == wanted


def test_arguments_too_many_are_dropped_from_the_end() -> None:
    assert give(lambda: "none", 2)(1, 2) == "none"
    assert give(lambda data: data, 2)(1, 2) == 1
    assert give(lambda data, more: (data, more), 3)(1, 2, 3) == (1, 2)


def test_a_callable_that_takes_all_is_left_as_it_is() -> None:
    assert give(sync_one, 1) is sync_one
    assert give(print, 2) is print


def test_a_loop_variable_kept_in_a_default_is_kept() -> None:
    callbacks = [lambda row=row: row for row in range(3)]
    assert [give(callback, 1)("data") for callback in callbacks] == [0, 1, 2]


def test_one_that_wants_more_than_there_is_fails_when_it_is_called() -> None:
    with pytest.raises(TypeError, match="more"):
        give(many.two, 1)("data")


def test_a_decorator_that_adds_an_argument_still_gets_what_it_takes() -> None:
    @functools.wraps(many.two)
    def adds(data: object) -> object:
        return data

    assert give(adds, 1)("data") == "data"


def test_one_that_is_asked_gets_the_argument_if_it_can_take_it() -> None:
    assert decider(bool)(0) is False
    assert decider(lambda data=1: data)("data") == "data"
    assert decider(lambda *args: args)("data") == ("data",)
    assert decider(functools.partial(lambda more, data: data, 1))("data") == "data"
    assert decider(lambda: "none")("data") == "none"
    assert decider(vars(builtins)["max"])([1, 3]) == 3, "it has no signature"
    assert decider(HostileSignature())("data") is None


def test_one_that_is_asked_and_wants_more_fails_when_it_is_called() -> None:
    with pytest.raises(TypeError, match="more"):
        decider(many.two)("data")


# Names.

NAMES: dict[str, tuple[Any, str]] = {
    "function": (sync_one, "test_callables.sync_one"),
    "method": (many.method, "test_callables.Many.method"),
    "class": (Many, "test_callables.Many"),
    "callable object": (SyncObject(), "test_callables.SyncObject"),
    "partial": (functools.partial(sync_one), "test_callables.sync_one"),
    "nested partial": (
        functools.partial(functools.partial(many.two), 1),
        "test_callables.Many.two",
    ),
    "partial of an object": (functools.partial(SyncObject()), "test_callables.SyncObject"),
    "built-in": (print, "builtins.print"),
    "method of a built-in": ([].append, "list.append"),
    "no callable at all": (1, "builtins.int"),
}


@pytest.mark.parametrize("name", NAMES)
def test_names_tell_module_and_place(name: str) -> None:
    callback, expected = NAMES[name]
    assert callable_name(callback).endswith(expected)


class Unwritable(str):
    def __format__(self, spec: str) -> str:
        raise RuntimeError("not to be written")

    __str__ = __repr__ = __format__


def test_a_name_that_is_a_hostile_string_is_taken_as_plain_text() -> None:
    callback = SyncObject()
    callback.__qualname__ = Unwritable("mine")
    callback.__module__ = Unwritable("here")
    assert type(callable_name(callback)) is str
    assert callable_name(callback) == "here.mine"


class HostileMeta(type):
    def __getattribute__(cls, name: str) -> Any:
        raise RuntimeError("not to be asked")


class OfHostileMeta(metaclass=HostileMeta):
    def __call__(self) -> None: ...


HOSTILE = {
    "answers nothing": Asks(),
    "answers anything": SaysYes(),
    "class that refuses": RefusesToSay(),
    "class of a hostile metaclass": OfHostileMeta(),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_naming_a_hostile_object_gives_some_name(name: str) -> None:
    assert type(callable_name(HOSTILE[name])) is str


names = ["__qualname__", "__module__", "__name__", "__class__", "func", "__wrapped__", "__call__"]
answers = st.one_of(
    st.none(),
    st.integers(),
    st.text(),
    st.text().map(Unwritable),
    st.sampled_from([ValueError, RecursionError, AttributeError, StopIteration]),
)


@given(st.dictionaries(st.sampled_from(names), answers))
def test_whatever_its_attributes_are_an_object_can_be_looked_at(attributes: dict[str, Any]) -> None:
    class Odd:
        def __getattribute__(self, name: str) -> Any:
            answer = attributes.get(name, AttributeError(name))
            if type(answer) is type or isinstance(answer, AttributeError):
                raise answer
            return answer

        def __call__(self, data: object) -> object:
            return data

    odd = Odd()
    assert type(callable_name(odd)) is str
    assert is_async_callable(odd) is False
    assert is_awaitable(odd) is False
    assert give(odd, 1)("data") == "data"
    check_callable(odd)


# The rest.


def test_what_cannot_be_called_is_refused_by_its_type() -> None:
    with pytest.raises(TypeError, match=r"^when must be callable, not int$"):
        check_callable(1, "when")


def test_a_coroutine_is_refused_with_the_remedy_and_closed() -> None:
    coroutine: Coroutine[Any, Any, object] = async_one(1)
    with pytest.raises(TypeError, match="pass the function itself"):
        check_callable(coroutine)
    assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED


class Unlike:
    def __call__(self) -> None: ...

    __hash__ = None

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("not to be compared")


def test_the_same_callable_is_itself_or_an_equal_one() -> None:
    unlike = Unlike()
    assert same_callable(many.method, many.method)
    assert same_callable(unlike, unlike)
    assert not same_callable(unlike, Unlike())
    assert not same_callable(sync_one, async_one)
