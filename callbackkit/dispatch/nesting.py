"""How deep dispatches stand inside each other: counted from the stack, and only when asked."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar, Token
from types import CodeType
from typing import Any, TypeVar

from callbackkit.errors import DispatchDepthError

__all__ = ["Spawn", "is_detour", "is_loop", "is_root", "nesting"]

F = TypeVar("F", bound=Callable[..., Any])

# The code of the functions that run callbacks, a frame of which is one level, and of those that
# stand at the root of a task or thread a dispatch started. Filled where they are defined, at
# import, and never after. A counter in a context variable would cost every dispatch more than
# its whole loop, and would count a task that a callback merely started.
_LOOPS: set[CodeType] = set()
_DETOURS: set[CodeType] = set()
_ROOTS: set[CodeType] = set()

# Dispatches alive at once that one concurrent dispatch may lead to, counting those at this depth
# and below. Two callbacks that both trigger their own event double the number of tasks at each
# level, and none gets deep; a server inside a callback has many dispatches, but all are shallow.
_MAX_ALIVE = 1_000
_COUNTED_FROM = 8


def is_loop(function: F) -> F:
    """Mark a function as one that runs callbacks."""
    _LOOPS.add(function.__code__)
    return function


def is_detour(function: F) -> F:
    """Mark a function through which one loop leaves its work to another."""
    _DETOURS.add(function.__code__)
    return function


def is_root(function: F) -> F:
    """Mark a function as one that runs a callback in a task or thread of its own."""
    _ROOTS.add(function.__code__)
    return function


def nesting() -> int:
    """Return how many dispatches the caller stands in, its own included."""
    loops, is_spawned = _on_stack()
    spawn = _SPAWN.get() if is_spawned else None
    return loops if spawn is None else loops + spawn.depth


def _on_stack() -> tuple[int, bool]:
    """Return how many loops stand on the stack, and whether a dispatch began its task or thread."""
    loops = 0
    frame = inspect.currentframe()
    while frame is not None:
        loops += (frame.f_code in _LOOPS) - (frame.f_code in _DETOURS)
        if frame.f_code in _ROOTS:
            # A task that starts eagerly stands on the stack of its dispatch: stop here anyway.
            return loops, True
        frame = frame.f_back
    return loops, False


class Spawn:
    """A dispatch that runs callbacks in tasks or threads: those begun within count it.

    The outermost of those that stand in each other is their root, and counts the deeper ones.

    Raises:
        DispatchDepthError: On entering: too many are alive that stem from the same root.
    """

    __slots__ = ("_alive", "_is_doomed", "_root", "_token", "depth")

    def __init__(self) -> None:
        outer = _SPAWN.get()
        # Set, too, in a task that a callback merely started: only the stack tells them apart.
        loops, is_spawned = (0, False) if outer is None else _on_stack()
        if outer is not None and is_spawned:
            self.depth: int = outer.depth + loops
            self._root: Spawn = outer._root
        else:
            self.depth = 1
            self._root = self
            self._is_doomed: bool = False
            # Appending and popping are atomic.
            self._alive: list[None] = []

    def __enter__(self) -> Spawn:
        if self.depth >= _COUNTED_FROM:
            self._root._count()
        self._token: Token[Spawn | None] = _SPAWN.set(self)
        return self

    def __exit__(self, *_exc_info: object) -> None:
        with suppress(ValueError):
            # Garbage collection may close a coroutine that waits in here, in any context.
            _SPAWN.reset(self._token)
        if self.depth >= _COUNTED_FROM:
            self._root._alive.pop()

    def _count(self) -> None:
        if len(self._alive) >= _MAX_ALIVE:
            # From now on all fail, so that there are fewer, and not more again.
            self._is_doomed = True
        if self._is_doomed:
            raise DispatchDepthError(
                f"one dispatch led to more than {_MAX_ALIVE} others that run at once: callbacks "
                "trigger the event that calls them, directly or through others"
            )
        self._alive.append(None)


_SPAWN: ContextVar[Spawn | None] = ContextVar("callbackkit_spawn", default=None)
