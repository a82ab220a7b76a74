"""Own a run: it ends with its producer, and the producer with it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from functools import partial
from typing import Any, Final, TypeVar

import anyio

from callbackkit.dispatch.callables import is_awaitable
from callbackkit.dispatch.concurrency import on_asyncio
from callbackkit.errors import StreamCancelledError
from callbackkit.streaming.callback import Callback, using

__all__ = ["is_owned", "produce"]

T = TypeVar("T")

# The runs whose producers the code at hand is part of, outermost first. Set and set back by
# value, as the scope is.
_OWNED: Final[ContextVar[tuple[Callback, ...]]] = ContextVar("callbackkit_owned", default=())


def is_owned(callback: Callback) -> bool:
    """Tell whether the caller is part of the producer of a run, which somebody else will end."""
    return any(one is callback for one in _OWNED.get())


async def produce(callback: Callback, call: Callable[[], Awaitable[T]]) -> T:
    """Await *call* as the producer of a run, and end the run with what becomes of it.

    If the run is cancelled or times out before, from any thread, *call* is cancelled.

    Raises:
        StreamCancelledError: Somebody cancelled the run.
        TimeoutError: The run timed out.
        BaseException: What *call* raised. A cancellation ends the run as cancelled.
    """
    with anyio.CancelScope() as scope:
        # Whoever ends the run may do it in any thread, and a scope is cancelled in its loop.
        soon = _scheduler()
        callback.on_end(lambda: soon(scope.cancel) if _is_stopped(callback) else None)
        return await _owned(callback, call)
    # Here only if the scope has caught its own cancellation.
    raise _error_of(callback)


async def _owned(callback: Callback, call: Callable[[], Awaitable[T]]) -> T:
    outer = _OWNED.get()
    _OWNED.set((*outer, callback))
    try:
        with using(callback):
            # What was stopped before it began is not begun.
            _raise_if_stopped(callback)
            value = await call()
        await _surely(callback.close, partial(Callback.close, callback))
    except anyio.get_cancelled_exc_class():
        await _surely(callback.cancel, partial(Callback.cancel, callback))
        raise
    except BaseException as exc:
        await _surely(partial(callback.fail, exc), partial(Callback.fail, callback, exc))
        raise
    finally:
        _OWNED.set(outer)
    # The producer may have caught its cancellation; that does not make a result of a run
    # whose readers were told otherwise.
    _raise_if_stopped(callback)
    return value


async def _surely(end: Callable[[], Any], base: Callable[[], Any]) -> None:
    """End a run in the way its class has it, and at any rate end it.

    A subclass may have a ``close()`` of its own: one that fails, say, or forgets to call ours.
    """
    try:
        ending = end()
        if is_awaitable(ending):
            await ending
    finally:
        base()


def _raise_if_stopped(callback: Callback) -> None:
    """Raise what a producer is told whose run was cancelled, or timed out."""
    if _is_stopped(callback):
        raise _error_of(callback)


def _is_stopped(callback: Callback) -> bool:
    return callback.status in {"cancelled", "timeout"}


def _error_of(callback: Callback) -> BaseException:
    error = callback.error
    if error is None or isinstance(error, StreamCancelledError):
        # A new one: the traceback of the other belongs to the readers.
        return StreamCancelledError("" if error is None else error.reason)
    return error


def _scheduler() -> Callable[[Callable[[], Any]], None]:
    """Return a function that has another one called soon in the event loop, from any thread."""
    if on_asyncio():
        loop = asyncio.get_running_loop()

        def soon(function: Callable[[], Any]) -> None:
            try:
                loop.call_soon_threadsafe(function)
            except RuntimeError:
                # The loop is closed, so nothing is left to be stopped.
                return

        return soon

    import trio

    token = trio.lowlevel.current_trio_token()

    def soon_on_trio(function: Callable[[], Any]) -> None:
        try:
            token.run_sync_soon(function)
        except trio.RunFinishedError:
            # As above.
            return

    return soon_on_trio
