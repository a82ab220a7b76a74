"""Functions called by name, with arguments that may arrive in pieces."""

from __future__ import annotations

import inspect
import json
import math
import threading
from collections.abc import Callable, Hashable, Mapping
from typing import Any, NoReturn, TypeVar, cast, overload

import attrs

from callbackkit.dispatch.callables import (
    callable_name,
    check_callable,
    is_async_callable,
    is_awaitable,
    wanted_arguments,
)
from callbackkit.dispatch.registration import Bound, Registration
from callbackkit.dispatch.registry import CallbackRegistry
from callbackkit.dispatch.threads import WorkerThreads
from callbackkit.errors import (
    BacklogError,
    FunctionArgumentsError,
    UnknownCallError,
    UnknownFunctionError,
)

__all__ = ["FunctionRegistry"]

F = TypeVar("F", bound=Callable[..., Any])

Arguments = Mapping[str, Any] | str | bytes | bytearray | None

# The event of `on_result`; its data is what a function returned.
_RESULT = "function result"

# CPython's own default limit, kept here because an application may have lifted it: converting
# n digits takes time in the order of n squared.
_MAX_DIGITS = 4300


class FunctionRegistry:
    """Functions that somebody else calls by name, such as a language model.

    A function is sync or async. It gets one mapping with its arguments, or nothing if it takes
    nothing::

        @functions.register
        async def look_up(arguments):
            return await database.customer(arguments["name"])

        customer = await functions.call("look_up", '{"name": "Ada"}')

    Arguments that are streamed are collected per call: :meth:`start`, :meth:`feed` any number
    of times, :meth:`finish`. Everything but running the functions may be done from any thread.

    Args:
        max_argument_chars: Most characters of JSON text a call may have; bytes, if given as
            bytes.
        max_open_calls: Most calls that may be started and not finished.

    Raises:
        ValueError: A limit below 1.
    """

    def __init__(self, *, max_argument_chars: int = 1_000_000, max_open_calls: int = 1000) -> None:
        self._max_chars = _checked_limit("max_argument_chars", max_argument_chars)
        self._max_calls = _checked_limit("max_open_calls", max_open_calls)
        self._functions: dict[str, _Function] = {}
        self._calls: dict[Hashable, _Call] = {}
        # Re-entrant because garbage collection may run anybody's __del__ at any time.
        self._lock = threading.RLock()
        self._threads = WorkerThreads()
        self._results = CallbackRegistry()

    def __repr__(self) -> str:
        functions, calls = len(self._functions), len(self._calls)
        return f"<FunctionRegistry, {functions} functions, {calls} open calls>"

    # Registering.

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the functions, in order of registration."""
        return tuple(self._functions)

    def register_function(
        self, name: str, function: Callable[..., Any], *, thread: bool = False
    ) -> None:
        """Make *function* callable as *name*.

        Args:
            thread: Run a synchronous function in a worker thread, with the caller's context. A
                call that is cancelled does not wait for it.

        Raises:
            TypeError: *function* is not callable, or wants more than one argument.
            ValueError: *name* is empty or taken; *thread* with an async function.
        """
        _check_text(name, "the name of a function")
        if not name:
            raise ValueError("the name of a function must not be empty")
        check_callable(function, f"function {name!r}")
        if thread and is_async_callable(function):
            raise ValueError(f"thread=True is for synchronous functions; {name!r} is async")
        made = _Function(name, function, _fitted(name, function), thread)
        with self._lock:
            if name in self._functions:
                raise ValueError(
                    f"a function is registered as {name!r} already; "
                    f"unregister_function({name!r}) first, or choose another name"
                )
            self._functions[name] = made

    @overload
    def register(self, function: F, /) -> F: ...

    @overload
    def register(self, name: str | None = None, /, *, thread: bool = False) -> Callable[[F], F]: ...

    def register(self, name: Any = None, /, *, thread: bool = False) -> Any:
        """:meth:`register_function` as a decorator, bare or with a name and options.

        Without a name the function goes by its own.
        """

        def register(function: F) -> F:
            chosen = _own_name(function) if name is None else name
            self.register_function(chosen, function, thread=thread)
            return function

        if name is None or isinstance(name, str):
            return register
        self.register_function(_own_name(name), name, thread=thread)
        return name

    def unregister_function(self, name: str) -> bool:
        """Take a function away; ``False`` if there is none. Calls begun with it still end."""
        with self._lock:
            return self._functions.pop(name, None) is not None

    @property
    def abandoned_threads(self) -> int:
        """How many functions in worker threads were given up on so far."""
        return self._threads.abandoned

    @property
    def hanging_threads(self) -> int:
        """How many of those have not returned yet; at 40 no more are started."""
        return self._threads.hanging

    # Calling.

    async def call(self, name: str, arguments: Arguments = None) -> Any:
        """Call a function, await it if need be, and return its value.

        Whatever it raises is raised here. Before its value is returned, the callbacks of
        :meth:`on_result` run.

        Args:
            name: As it was registered.
            arguments: A mapping, or the JSON text of an object; nothing and empty text stand for
                no arguments.

        Raises:
            UnknownFunctionError: There is no such function.
            FunctionArgumentsError: *arguments* are neither, or too large, or JSON that is
                nested too deeply or holds a number that is none or has thousands of digits.
        """
        function = self._find(name)
        return await self._run(function, self._parsed(function.name, arguments))

    def _find(self, name: object) -> _Function:
        function = self._functions.get(name) if isinstance(name, str) else None
        if function is None:
            raise UnknownFunctionError(name, self.names)
        return function

    def _parsed(self, name: str, arguments: object) -> Mapping[str, Any]:
        if isinstance(arguments, Mapping):
            return cast("Mapping[str, Any]", arguments)
        if arguments is None:
            return {}
        if not isinstance(arguments, str | bytes | bytearray):
            raise FunctionArgumentsError(
                name, f"a mapping or JSON text is wanted, not {type(arguments).__name__}"
            )
        if len(arguments) > self._max_chars:
            raise _too_long(name, self._max_chars)
        return _parse(name, arguments) if arguments else {}

    async def _run(self, function: _Function, arguments: Mapping[str, Any]) -> Any:
        if function.thread:
            entry = Bound(function.call, None, function.function)
            value = await self._threads.run(entry, arguments, None)
        else:
            value = function.call(arguments)
            if is_awaitable(value):
                value = await value
        await self._results.trigger_callbacks(_RESULT, value)
        return value

    # Calling with streamed arguments.

    def start(self, call_id: Hashable, name: str) -> None:
        """Open a call whose arguments arrive in pieces.

        The function is the one registered now.

        Args:
            call_id: Tells this call from others that are open.

        Raises:
            UnknownFunctionError: There is no such function.
            ValueError: A call with this id is open.
            BacklogError: As many calls are open as may be.
        """
        function = self._find(name)
        with self._lock:
            if call_id in self._calls:
                raise ValueError(f"a call {call_id!r:.200} is open already; finish() it first")
            if len(self._calls) >= self._max_calls:
                raise BacklogError(
                    f"{self._max_calls} function calls are open; finish() or cancel() some"
                )
            self._calls[call_id] = _Call(function)

    def feed(self, call_id: Hashable, delta: str) -> None:
        """Add a piece of the JSON text, cut anywhere, to the arguments of an open call.

        Raises:
            UnknownCallError: No such call is open.
            FunctionArgumentsError: The arguments have become too large; those that came are
                dropped, and :meth:`finish` will raise this too.
        """
        _check_text(delta, "a piece of arguments")
        with self._lock:
            call = self._calls.get(call_id)
            if call is None:
                raise UnknownCallError(call_id)
            call.chars += len(delta)
            if call.chars <= self._max_chars:
                if delta:
                    call.pieces.append(delta)
                return
            call.pieces.clear()
        raise _too_long(call.function.name, self._max_chars)

    async def finish(self, call_id: Hashable) -> Any:
        """Call the function with what was fed, and return its value, as :meth:`call` does.

        The call is closed, whatever happens.

        Raises:
            UnknownCallError: No such call is open.
            FunctionArgumentsError: As for :meth:`call`.
        """
        with self._lock:
            call = self._calls.pop(call_id, None)
        if call is None:
            raise UnknownCallError(call_id)
        name = call.function.name
        if call.chars > self._max_chars:
            raise _too_long(name, self._max_chars)
        return await self._run(call.function, self._parsed(name, "".join(call.pieces)))

    def cancel(self, call_id: Hashable) -> bool:
        """Close a call without calling its function; ``False`` if no such call is open."""
        with self._lock:
            return self._calls.pop(call_id, None) is not None

    # Looking at values.

    def on_result(
        self, predicate: Callable[[Any], object], callback: Callable[..., object]
    ) -> Registration:
        """Have *callback* called with each value for which *predicate* is true.

        It runs after the function has returned and before :meth:`call` or :meth:`finish` does,
        in order of registration, isolated: what it or *predicate* raises is logged and goes no
        further. This is where a call hangs up::

            functions.on_result(lambda value: value == "goodbye", hang_up)

        Args:
            predicate: Synchronous; called with the value.
            callback: Sync or async; called with the value.

        Returns:
            A handle that cancels, pauses and resumes.

        Raises:
            TypeError: One of them is not callable, or *predicate* is async.
        """
        check_callable(predicate, "predicate")
        if is_async_callable(predicate):
            raise TypeError(f"predicate must be synchronous; {callable_name(predicate)} is async")
        return self._results.register_callback(_RESULT, callback, when=predicate)


@attrs.frozen
class _Function:
    """A function as it was registered; *call* takes the arguments whatever it wants."""

    name: str
    function: Callable[..., Any]
    call: Callable[[Mapping[str, Any]], Any]
    thread: bool


@attrs.define
class _Call:
    """An open call: what was fed to it, unless that was too much."""

    function: _Function
    pieces: list[str] = attrs.field(factory=list[str])
    chars: int = 0


# Checking what is given.


def _check_text(text: Any, what: str) -> None:
    if not isinstance(text, str):
        raise TypeError(f"{what} is a string, not {type(text).__name__}")


def _fitted(name: str, function: Callable[..., Any]) -> Callable[[Mapping[str, Any]], Any]:
    """Return *function* made to take one mapping.

    Unlike a callback, one whose only parameter has a default gets the arguments: calling it
    without them would lose what the caller said.
    """
    wanted = wanted_arguments(function, 1)
    if wanted > 1:
        raise TypeError(f"function {name!r} wants {wanted} arguments; it is given one, a mapping")
    if wanted == 1 or _can_take_one(function):
        return function
    return lambda _arguments: function()


def _can_take_one(function: Callable[..., Any]) -> bool:
    try:
        inspect.signature(function).bind({})
    except TypeError:
        return False
    return True


def _own_name(function: object) -> str:
    check_callable(function, "function")
    name = getattr(function, "__name__", None)
    if not isinstance(name, str) or not name.isidentifier():
        raise TypeError(
            f"{callable_name(function)} has no name to go by; use register_function(name, ...)"
        )
    return name


def _checked_limit(name: str, limit: Any) -> int:
    if isinstance(limit, bool) or not isinstance(limit, int):
        raise TypeError(f"{name} must be an int, not {limit!r}")
    if limit < 1:
        raise ValueError(f"{name} must be at least 1, not {limit!r}")
    return limit


# Parsing arguments.


def _parse(name: str, text: str | bytes | bytearray) -> dict[str, Any]:
    try:
        value = json.loads(
            text, parse_int=_integer, parse_float=_float, parse_constant=_refuse_constant
        )
    except RecursionError as exc:
        raise FunctionArgumentsError(name, "nested too deeply") from exc
    except ValueError as exc:
        # UnicodeDecodeError is one too.
        raise FunctionArgumentsError(name, f"not readable as JSON: {exc}") from exc
    if not isinstance(value, dict):
        raise FunctionArgumentsError(name, f"a JSON object is wanted, not {_JSON[type(value)]}")
    return cast("dict[str, Any]", value)


# What `json.loads` makes of a text that is no object.
_JSON = {
    str: "a string",
    int: "a number",
    float: "a number",
    bool: "a boolean",
    list: "an array",
    type(None): "null",
}


def _integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"a number has more than {_MAX_DIGITS} digits")
    return int(digits)


def _float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text:.40} is too large for a number")
    return number


def _refuse_constant(name: str) -> NoReturn:
    # Python's parser knows NaN, Infinity and -Infinity; RFC 8259, section 6 does not.
    raise ValueError(f"{name} is not a number")


def _too_long(name: str, limit: int) -> FunctionArgumentsError:
    return FunctionArgumentsError(name, f"longer than {limit} characters")
