"""Which run, and which invocation of which node, the code at hand works for.

Kept in a context variable, so tasks and worker threads started from a node belong to it. It is
set and set back by value: a token of a context variable could be used in its own context only,
and what is closed elsewhere would fail.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Final

from callbackkit.streaming.events import Span

if TYPE_CHECKING:
    from callbackkit.streaming.callback import Callback

__all__ = ["Scope", "current_scope", "enter", "leave", "leave_ended", "span_in", "using"]


class Scope:
    """A run, a span of it or none in particular, and the scope around."""

    __slots__ = ("callback", "outer", "span")

    def __init__(self, callback: Callback, span: Span | None, outer: Scope | None) -> None:
        self.callback: Callback = callback
        self.span: Span | None = span
        self.outer: Scope | None = outer


current_scope: Final[ContextVar[Scope | None]] = ContextVar("callbackkit_scope", default=None)


def enter(callback: Callback, span: Span | None) -> Scope:
    """Have the code at hand work for a run, and a span in it if there is one."""
    leave_ended()
    scope = Scope(callback, span, current_scope.get())
    current_scope.set(scope)
    return scope


def leave(scope: Scope) -> None:
    """Go back to what was around a scope; nothing in a context that does not stand in it."""
    inner = current_scope.get()
    while inner is not None and inner is not scope:
        inner = inner.outer
    if inner is scope:
        current_scope.set(scope.outer)


def leave_ended() -> None:
    """Go back to what was around spans that have ended, here or in another context."""
    current = scope = current_scope.get()
    while scope is not None and scope.span is not None and not scope.span.is_open:
        scope = scope.outer
    if scope is not current:
        current_scope.set(scope)


def span_in(callback: Callback, node: str | None = None) -> Span | None:
    """Return the innermost open span of a run that this context stands in, of any node or one."""
    scope = current_scope.get()
    while scope is not None:
        span = scope.span
        if (
            span is not None
            and span.is_open
            and scope.callback is callback
            and (node is None or span.node == node)
        ):
            return span
        scope = scope.outer
    return None


class using:  # noqa: N801 - reads as a statement: "with using(callback)"
    """Make a run the one that :func:`~callbackkit.emit_token` finds, inside ``with``."""

    __slots__ = ("_callback", "_scope")

    def __init__(self, callback: Callback) -> None:
        self._callback = callback
        self._scope: Scope | None = None

    def __enter__(self) -> Callback:
        self._scope = enter(self._callback, None)
        return self._callback

    def __exit__(self, *_exc_info: object) -> None:
        if self._scope is not None:
            leave(self._scope)
