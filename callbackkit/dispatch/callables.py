"""What can be told of a callable before it is called: its name, arity, and whether it is async."""

from __future__ import annotations

import functools
import inspect
import reprlib
from collections.abc import Awaitable, Callable
from types import CoroutineType, FunctionType, GeneratorType, MethodType
from typing import Any, cast

from typing_extensions import TypeIs

__all__ = [
    "callable_name",
    "check_callable",
    "decider",
    "give",
    "is_async_callable",
    "is_awaitable",
    "is_coroutine_function",
    "same_callable",
    "short_repr",
    "wanted_arguments",
]

AnyCallable = Callable[..., Any]

_SHORT = reprlib.Repr()
_SHORT.maxlevel = 2

_COROUTINE = inspect.CO_COROUTINE
_ITERABLE_COROUTINE = inspect.CO_ITERABLE_COROUTINE
_VARARGS = inspect.CO_VARARGS


def check_callable(callback: object, what: str = "callback") -> None:
    """Raise ``TypeError`` unless *callback* can be called."""
    if not callable(callback):
        hint = (
            "; a coroutine is already the result of a call, pass the function itself"
            if inspect.iscoroutine(callback)
            else ""
        )
        if inspect.iscoroutine(callback):
            callback.close()
        raise TypeError(f"{what} must be callable, not {type(callback).__name__}{hint}")


def callable_name(callback: object) -> str:
    """Name a callable for a log line. Never raises, whatever the object does."""
    try:
        callback = _unwrapped(callback)
        name = _plain(getattr(callback, "__qualname__", None))
        owner = callback if name else type(callback)
        module = _plain(getattr(owner, "__module__", None))
        name = name or _plain(type(callback).__qualname__)
        return f"{module}.{name}" if module else name
    except Exception:
        # Only a hostile __getattr__ or metaclass comes here.
        return object.__repr__(callback)


def _plain(name: object) -> str:
    """Return a string without what a subclass of it may do when it is formatted."""
    return str.__str__(name) if isinstance(name, str) else ""


def _unwrapped(callback: object) -> object:
    """Return what partials are of."""
    inmost: Any = callback
    while isinstance(inmost, functools.partial):
        inmost = inmost.func
    return inmost


def same_callable(one: object, other: object) -> bool:
    """Tell whether two callables are the same or say they are equal. Never raises."""
    try:
        return one is other or bool(one == other)
    except Exception:
        return False


def short_repr(value: object) -> str:
    """Return a short text of a value, for a log line. Never raises, whatever the object does."""
    try:
        return _SHORT.repr(value)[:200]
    except Exception:
        return object.__repr__(value)


# Asynchronous or not.


def is_awaitable(value: object) -> TypeIs[Awaitable[Any]]:
    """Tell whether ``await`` takes *value*; the class decides, as it does for ``await``."""
    kind = type(value)
    if kind is CoroutineType or hasattr(kind, "__await__"):
        return True
    # What types.coroutine() made of a generator function.
    return kind is GeneratorType and bool(
        cast("GeneratorType[Any, Any, Any]", value).gi_code.co_flags & _ITERABLE_COROUTINE
    )


def is_async_callable(callback: object) -> bool:
    """Tell whether calling *callback* is known to give an awaitable.

    ``False`` means "not known": a lambda may still return a coroutine.
    """
    if type(callback) is FunctionType:
        if callback.__code__.co_flags & _COROUTINE:
            return True
        # Set by inspect.markcoroutinefunction(); reading __dict__ would create one per function.
        return getattr(callback, "_is_coroutine_marker", None) is not None
    if type(callback) is MethodType:
        return is_async_callable(callback.__func__)
    return _is_async_object(callback)


def is_coroutine_function(callback: object) -> bool:
    """Tell whether *callback* is an ``async def`` itself, so that it can return nothing else."""
    function = callback.__func__ if type(callback) is MethodType else callback
    return type(function) is FunctionType and bool(function.__code__.co_flags & _COROUTINE)


def _is_async_object(callback: object) -> bool:
    try:
        callback = _unwrapped(callback)
        if inspect.iscoroutinefunction(callback):
            return True
        # The class decides, as it does for a call; of a class, its metaclass, which is no matter.
        return not isinstance(callback, type) and inspect.iscoroutinefunction(
            type(callback).__call__
        )
    except Exception:
        # Its __getattribute__ raises something else than AttributeError.
        return False


# How many arguments.


def give(callback: AnyCallable, given: int) -> AnyCallable:
    """Return *callback* made to take *given* positional arguments, the last ones dropped.

    A callable may want fewer arguments than there are. Only parameters without a default
    count: ``lambda row=row: ...`` keeps its row. One that wants more stays as it is; its call
    fails with the usual ``TypeError``.
    """
    if type(callback) is FunctionType and callback.__defaults__ is None:
        code = callback.__code__
        if code.co_argcount == given and not code.co_flags & _VARARGS:
            return callback
    wanted = wanted_arguments(callback, given)
    if wanted >= given:
        return callback
    if wanted == 0:
        return lambda *_args: callback()
    return lambda *args: callback(*args[:wanted])


def decider(callback: AnyCallable) -> AnyCallable:
    """Return *callback* made to take one argument, which it gets if it can take one at all.

    For functions that are asked rather than told: ``when=bool`` is to look at the data, though
    the parameter of ``bool`` has a default.
    """
    try:
        inspect.signature(callback).bind(None)
    except TypeError:
        return give(callback, 1)
    except Exception:
        # No signature to be had: it gets the data.
        return callback
    return callback


def wanted_arguments(callback: object, given: int) -> int:
    """Return how many positional arguments *callback* wants, all if it takes any number."""
    if type(callback) is FunctionType:
        code = callback.__code__
        if not code.co_flags & _VARARGS:
            return code.co_argcount - len(callback.__defaults__ or ())
    elif type(callback) is MethodType and type(callback.__func__) is FunctionType:
        function = callback.__func__
        if not function.__code__.co_flags & _VARARGS:
            # At least 0: a method may keep even its self in *args or a default.
            return max(0, function.__code__.co_argcount - 1 - len(function.__defaults__ or ()))
    return _wanted_by_signature(callback, given)


def _wanted_by_signature(callback: Any, given: int) -> int:
    """Ask :func:`inspect.signature`, which looks through partials and ``functools.wraps``."""
    try:
        parameters = inspect.signature(callback).parameters.values()
    except Exception:
        # Some built-ins have no signature, and a hostile __signature__ may raise anything.
        return given
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters):
        return given
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(
        parameter.kind in positional and parameter.default is parameter.empty
        for parameter in parameters
    )
