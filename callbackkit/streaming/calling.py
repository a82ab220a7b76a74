"""Call somebody's function as a producer of tokens, whether it is async or not."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import attrs
from anyio.lowlevel import RunVar

from callbackkit.dispatch.callables import callable_name, check_callable, is_async_callable
from callbackkit.dispatch.registration import Bound
from callbackkit.dispatch.threads import WorkerThreads
from callbackkit.errors import StreamCancelledError, StreamClosedError

__all__ = ["call_anyhow", "check_producer"]

# One for each run of an event loop, so that what hangs in it is counted together.
_THREADS: Final[RunVar[WorkerThreads]] = RunVar("callbackkit_producers")


def check_producer(function: object, what: str) -> None:
    """Raise ``TypeError`` unless *function* can be called and returns its result.

    Args:
        function: What was given.
        what: The words for it in the message.
    """
    check_callable(function, what)
    inner = function
    while isinstance(inner, partial):
        inner = inner.func
    if inspect.isasyncgenfunction(inner) or inspect.isgeneratorfunction(inner):
        raise TypeError(
            f"{what} {callable_name(function)} is a generator: it has to return its result. Emit "
            "tokens with callback(token) or emit_token(token) instead of 'yield'; "
            "'await callback.pipe(generator)' emits those of an async generator"
        )


async def call_anyhow(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a function and return its result; one that is not async runs in a worker thread.

    The thread begins in the context of the caller. When the caller is cancelled it is left to
    itself, so that nothing ever waits for a thread that is blocked; its next token ends it.

    Raises:
        AbandonedThreadsError: Too many threads that were left to themselves have not ended.
    """
    if is_async_callable(function):
        return await function(*args, **kwargs)
    value = await _threads().run(_entry(function, args, kwargs), None, None)
    if isinstance(value, _Stopped):
        raise value.error
    return value


def _threads() -> WorkerThreads:
    threads = _THREADS.get(None)
    if threads is None:
        threads = WorkerThreads()
        _THREADS.set(threads)
    return threads


@attrs.frozen
class _Stopped:
    """A thread ended because its run had."""

    error: StreamClosedError | StreamCancelledError


def _entry(function: Callable[..., Any], args: Any, kwargs: Any) -> Bound:
    def call(_data: object) -> Any:
        try:
            return function(*args, **kwargs)
        except (StreamClosedError, StreamCancelledError) as exc:
            # Returned: in a thread that was left to itself this is how it is meant to end, and no
            # failure to be logged.
            return _Stopped(exc)

    return Bound(call, None, function)
