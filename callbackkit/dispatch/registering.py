"""What a callback is registered with: the options, what is wrong with them, and weak methods."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import MethodType
from typing import Any, TypedDict
from weakref import WeakMethod

from callbackkit.dispatch.callables import (
    callable_name,
    check_callable,
    decider,
    is_async_callable,
)
from callbackkit.dispatch.outcome import SKIPPED

__all__ = [
    "CallbackOptions",
    "OnceOptions",
    "check_priority",
    "checked_when",
    "weak_call",
    "weak_method",
]


class OnceOptions(TypedDict, total=False):
    """The options of :meth:`CallbackRegistry.once` the type of which no event type decides."""

    priority: float
    weak: bool
    thread: bool
    timeout: float | None
    on_error: Callable[..., Any] | None


class CallbackOptions(OnceOptions, total=False):
    """Likewise those of :meth:`CallbackRegistry.register_callback`."""

    once: bool


def check_priority(priority: float) -> None:
    """Raise ``TypeError`` or ``ValueError`` unless *priority* is a number to sort by."""
    if isinstance(priority, bool) or not isinstance(priority, int | float):
        raise TypeError(f"priority must be a number, not {priority!r}")
    # isnan() takes no int beyond the floats.
    if isinstance(priority, float) and math.isnan(priority):
        raise ValueError("priority must not be NaN")


def checked_when(when: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return *when* made to take the data; ``TypeError`` unless it is a synchronous callable."""
    check_callable(when, "when")
    if is_async_callable(when):
        raise TypeError(f"when must be synchronous; {callable_name(when)} is async")
    return decider(when)


# Weakly held bound methods.


def weak_method(callback: Any, dead: Callable[[Any], None]) -> WeakMethod[Any]:
    """Return a weak reference to a bound method; *dead* is called when its object goes."""
    if type(callback) is not MethodType:
        raise ValueError(
            f"weak=True takes bound methods only, not {callable_name(callback)}: nothing else "
            "may hold a function or lambda, so it would vanish at once; register it without weak"
        )
    try:
        return WeakMethod(callback, dead)
    except TypeError as exc:
        owner = type(callback.__self__).__name__
        raise TypeError(
            f"a {owner} can't be held weakly; add '__weakref__' to its __slots__, or register "
            f"{callable_name(callback)} without weak"
        ) from exc


def weak_call(target: WeakMethod[Any], wanted: int) -> Callable[..., Any]:
    """Return what calls the method with the first *wanted* arguments while its object lives."""

    def call(*args: Any) -> Any:
        method = target()
        return SKIPPED if method is None else method(*args[:wanted])

    return call
