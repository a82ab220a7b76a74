"""The shapes of callbacks, for annotations; each may also take fewer arguments, or be async."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

__all__ = [
    "CompletionCallback",
    "ErrorCallback",
    "EventCallback",
    "ProgressCallback",
    "StateChangeCallback",
]

T_contra = TypeVar("T_contra", contravariant=True)


class EventCallback(Protocol[T_contra]):
    """Called with the data of an event; an awaitable it returns is awaited."""

    def __call__(self, data: T_contra, /) -> Any: ...


class StateChangeCallback(Protocol[T_contra]):
    """Called with the old and the new state, after the change."""

    def __call__(self, old: T_contra, new: T_contra, /) -> Any: ...


class ErrorCallback(Protocol):
    """Called with what a callback raised and where.

    *context* is an :class:`~callbackkit.ErrorContext`; ``str()`` of it is a line for a log.
    """

    def __call__(self, exception: Exception, context: Any, /) -> Any: ...


class CompletionCallback(Protocol[T_contra]):
    """Called once with the result of an operation."""

    def __call__(self, result: T_contra, /) -> Any: ...


class ProgressCallback(Protocol):
    """Called with how much of an operation is done, 0 to 1."""

    def __call__(self, fraction: float, /) -> Any: ...
