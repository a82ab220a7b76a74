"""Log and measure the calls of a callback without changing what it does."""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator
from time import perf_counter
from types import FunctionType
from typing import Any, ParamSpec, Protocol, TypeVar, cast, overload

from callbackkit.dispatch.callables import (
    callable_name,
    check_callable,
    is_async_callable,
    is_awaitable,
)
from callbackkit.dispatch.failures import dispose
from callbackkit.errors import AsyncCallbackError

__all__ = ["Monitored", "PerformanceStats", "monitor_callback_performance", "trace_callback"]

logger: logging.Logger = logging.getLogger("callbackkit.trace")

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

_End = Callable[[BaseException | None], None]
_Begin = Callable[[], _End]

# Durations the percentiles are told from: the last ones.
_WINDOW = 1024


class PerformanceStats:
    """How often a callback was called and how long it took, in seconds, awaited time included.

    ``count``, ``errors``, ``total``, ``min``, ``max`` and ``mean`` speak of all calls, the
    percentiles of the last 1024. All are 0 before the first call ends.

    Attributes:
        count: Calls that ended.
        errors: How many of them raised or were cancelled.
        total: Seconds all of them took.
        min: Seconds the shortest took.
        max: Seconds the longest took.
    """

    def __init__(self) -> None:
        # Re-entrant: garbage collection may run anybody's code at any time.
        self._lock = threading.RLock()
        self._recent: deque[float] = deque(maxlen=_WINDOW)
        self.count: int = 0
        self.errors: int = 0
        self.total: float = 0.0
        self.min: float = 0.0
        self.max: float = 0.0

    def __repr__(self) -> str:
        return f"<PerformanceStats count={self.count} errors={self.errors} mean={self.mean:.6f}>"

    @property
    def mean(self) -> float:
        """Seconds a call took on average."""
        return self.total / self.count if self.count else 0.0

    @property
    def p50(self) -> float:
        """Seconds that half of the recent calls did not exceed."""
        return self.percentile(50)

    @property
    def p95(self) -> float:
        """Seconds that 95 % of the recent calls did not exceed."""
        return self.percentile(95)

    @property
    def p99(self) -> float:
        """Seconds that 99 % of the recent calls did not exceed."""
        return self.percentile(99)

    def percentile(self, percent: float) -> float:
        """Return the seconds that *percent* of the recent calls did not exceed (nearest rank)."""
        if not 0 < percent <= 100:
            raise ValueError(f"percent must be above 0 and at most 100, not {percent!r}")
        with self._lock:
            ordered = sorted(self._recent)
        rank = max(1, math.ceil(len(ordered) * percent / 100))
        return ordered[rank - 1] if ordered else 0.0

    def add(self, seconds: float, *, is_error: bool = False) -> None:
        """Count a call. Any thread may."""
        with self._lock:
            self.min = min(self.min, seconds) if self.count else seconds
            self.max = max(self.max, seconds)
            self.count += 1
            self.errors += is_error
            self.total += seconds
            self._recent.append(seconds)


class Monitored(Protocol[P, R_co]):
    """A callable that measures its calls."""

    @property
    def stats(self) -> PerformanceStats: ...

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...


def monitor_callback_performance(
    callback: Callable[P, R], *, clock: Callable[[], float] = perf_counter
) -> Monitored[P, R]:
    """Return *callback* made to measure its calls; see ``stats`` of what is returned.

    Also a decorator. A sync callback stays sync, an async one stays async, what it raises is
    raised. A coroutine that a sync one returns is measured to its end, a future is not.

    Args:
        callback: Any callable.
        clock: Returns seconds, never going back.
    """
    check_callable(callback)
    stats = PerformanceStats()

    def begin() -> _End:
        start = clock()
        return lambda error: stats.add(clock() - start, is_error=error is not None)

    wrapper: Any = _wrap(callback, begin)
    wrapper.stats = stats
    return cast("Monitored[P, R]", wrapper)


@overload
def trace_callback(callback: Callable[P, R], name: str | None = None) -> Callable[P, R]: ...


@overload
def trace_callback(
    callback: None = None, name: str | None = None
) -> Callable[[Callable[P, R]], Callable[P, R]]: ...


def trace_callback(callback: Any = None, name: str | None = None) -> Any:
    """Return *callback* made to log its calls at ``DEBUG`` to ``callbackkit.trace``.

    Also a decorator: ``@trace_callback`` or ``@trace_callback(name="audit")``. A sync callback
    stays sync, an async one stays async, what it raises is raised. Arguments are not logged;
    they may hold secrets.

    Args:
        callback: Any callable.
        name: What the log calls it; by default its own name.
    """
    if callback is None:
        return functools.partial(trace_callback, name=name)
    check_callable(callback)
    label = callable_name(callback) if name is None else name

    def begin() -> _End:
        logger.debug("%s called", label)
        start = perf_counter()

        def end(error: BaseException | None) -> None:
            took = perf_counter() - start
            how = "returned" if error is None else f"raised {type(error).__name__}"
            logger.debug("%s %s after %.6f s", label, how, took, extra={"seconds": took})

        return end

    return _wrap(callback, begin)


# What both have in common: something to do before a call and at its end.


def _wrap(callback: Callable[..., Any], begin: _Begin) -> Callable[..., Any]:
    if is_async_callable(callback):

        async def observed_async(*args: Any, **kwargs: Any) -> Any:
            end = begin()
            try:
                value = callback(*args, **kwargs)
                if is_awaitable(value):
                    value = await value
            except BaseException as exc:
                # Looked at, not handled: whatever it is, a cancellation too, goes on.
                end(exc)
                raise
            end(None)
            return value

        return _dressed(observed_async, callback)

    def observed(*args: Any, **kwargs: Any) -> Any:
        end = begin()
        try:
            value = callback(*args, **kwargs)
        except BaseException as exc:
            # As above.
            end(exc)
            raise
        if is_awaitable(value) and not asyncio.isfuture(value):
            # A lambda may return a coroutine: the call ends when that does. A future or task is
            # on its way already, and whoever made it may want to cancel it.
            return _Unfinished(value, end)
        end(None)
        return value

    return _dressed(observed, callback)


class _Unfinished(Coroutine[Any, Any, Any]):
    """What a synchronous callback returned to be awaited; the call ends when that does."""

    def __init__(self, awaitable: Awaitable[Any], end: _End) -> None:
        self._awaitable = awaitable
        self._end = end
        self._rest: Coroutine[Any, Any, Any] | None = None

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._begun().__await__()

    def send(self, value: Any) -> Any:
        return self._begun().send(value)

    def throw(self, typ: Any, val: Any = None, tb: Any = None) -> Any:
        return self._begun().throw(typ if val is None else val)

    def close(self) -> None:
        if self._rest is None:
            # Where it was made nothing can be awaited.
            self._begun().close()
            dispose(self._awaitable)
            self._end(AsyncCallbackError("never awaited"))
        self._begun().close()

    def _begun(self) -> Coroutine[Any, Any, Any]:
        if self._rest is None:
            self._rest = self._finish()
        return self._rest

    async def _finish(self) -> Any:
        try:
            value = await self._awaitable
        except BaseException as exc:
            # As above.
            self._end(exc)
            raise
        self._end(None)
        return value


def _dressed(wrapper: Callable[..., Any], callback: Callable[..., Any]) -> Callable[..., Any]:
    """Give a wrapper the looks of what it wraps: name, docstring, signature."""
    # The attributes of a callable object are its state, not its looks.
    updated = ("__dict__",) if type(callback) is FunctionType else ()
    try:
        return functools.wraps(callback, updated=updated)(wrapper)
    except Exception:
        # Its __getattr__ raises something else than AttributeError; it goes without looks.
        return wrapper
