"""What becomes of an exception that a callback raised."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import threading
from asyncio import CancelledError
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, cast

from callbackkit.dispatch.callables import (
    callable_name,
    check_callable,
    give,
    is_awaitable,
    same_callable,
)
from callbackkit.dispatch.deadline import is_expiry
from callbackkit.dispatch.nesting import nesting
from callbackkit.dispatch.outcome import SKIPPED, ErrorContext, OutcomeStatus
from callbackkit.dispatch.registration import Entry
from callbackkit.errors import (
    AsyncCallbackError,
    CallbackCancelledError,
    CallbackKitError,
    DispatchDepthError,
)

__all__ = ["Failures", "dispose", "dispose_unstarted", "log", "refusal", "refuse_awaitable"]

logger: logging.Logger = logging.getLogger("callbackkit.dispatch")


# A RecursionError in this many dispatches inside each other is taken for their doing; in fewer, for
# a bug of the callback.
_RECURSION_OF_OURS = 8

# What may mean something else than that the callback failed by itself.
_SPECIAL = (CancelledError, CallbackKitError, RecursionError)


class Failures:
    """Makes outcomes of exceptions: logs each once and tells the error callbacks."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._callbacks: tuple[tuple[Any, Callable[..., Any]], ...] = ()

    def add_callback(self, callback: Callable[..., Any]) -> None:
        """Have *callback* called with ``(exception, context)`` for each failure."""
        check_callable(callback, "error callback")
        with self._lock:
            self._callbacks += ((callback, give(callback, 2)),)

    def remove_callback(self, callback: Callable[..., Any]) -> bool:
        """Take the first such error callback away; ``False`` if there is none."""
        for there, _ in self._callbacks:
            if same_callable(there, callback):
                return self._remove(there)
        return False

    def _remove(self, callback: Any) -> bool:
        with self._lock:
            for index, (there, _) in enumerate(self._callbacks):
                if there is callback:
                    self._callbacks = self._callbacks[:index] + self._callbacks[index + 1 :]
                    return True
        return False

    def fail_sync(
        self, entry: Entry, exc: BaseException, event_type: Any, data: Any
    ) -> ErrorContext:
        """Return what stands for the failure; raise *exc* if it is not the callback's own.

        Written for speed like the loops that call it (tests/benchmarks, "one of 10 raises").
        """
        context = _context(entry, exc, event_type, data)
        callbacks = self._callbacks if entry.options.on_error is None else self._for(entry)
        for callback, call in callbacks:
            try:
                value = call(context.error, context)
                if value is not None:
                    refuse_awaitable(callback, value)
            except (Exception, CancelledError) as failure:
                _log_error_callback(callback, failure)
        return context

    async def fail(
        self, entry: Entry, exc: BaseException, event_type: Any, data: Any
    ) -> ErrorContext:
        """Like :meth:`fail_sync`, awaiting error callbacks."""
        context = _context(entry, exc, event_type, data)
        callbacks = self._callbacks if entry.options.on_error is None else self._for(entry)
        for callback, call in callbacks:
            try:
                value = call(context.error, context)
                if is_awaitable(value):
                    await value
            except (Exception, CancelledError) as failure:
                _log_error_callback(callback, failure)
        return context

    def _for(self, entry: Entry) -> tuple[tuple[Any, Callable[..., Any]], ...]:
        """Return the error callbacks for a failed entry: its own, then everybody's."""
        own = entry.options.on_error
        return self._callbacks if own is None else ((own, give(own, 2)), *self._callbacks)


def _context(entry: Entry, exc: Any, event_type: Any, data: Any) -> ErrorContext:
    if isinstance(exc, _SPECIAL):
        context = _special(entry, exc, event_type, data)
    else:
        # ErrorContext.of(), written out.
        context = ErrorContext()
        context.status = "error"
        context.error = exc
        context._entry = entry
        context._event = event_type
        context.data = data
    if logger.isEnabledFor(logging.ERROR):
        _log_failure(context)
    return context


def _special(entry: Entry, exc: BaseException, event_type: Any, data: Any) -> ErrorContext:
    _check_passes(exc)
    callback = entry.callback
    if isinstance(exc, CancelledError):
        error = CallbackCancelledError(
            f"{callable_name(callback)} was cancelled, and not by its dispatch"
        )
        error.__cause__ = exc
        return ErrorContext.of("cancelled", error, entry, event_type, data)
    status: OutcomeStatus = "timeout" if is_expiry(exc, entry) else "error"
    return ErrorContext.of(status, cast("Exception", exc), entry, event_type, data)


def _check_passes(exc: BaseException) -> None:
    """Raise *exc* if it is not the callback's own: a cancellation of us, or too deep a nest."""
    if isinstance(exc, CancelledError) and not _is_foreign():
        raise exc
    # Unwound to the outermost dispatch: were it an outcome at every level, two callbacks that
    # trigger each other's event would run 2 ** depth times.
    if isinstance(exc, DispatchDepthError) and nesting() > 1:
        raise exc
    if isinstance(exc, RecursionError) and (depth := nesting()) > _RECURSION_OF_OURS:
        raise DispatchDepthError(
            f"the interpreter's recursion limit was reached in {depth} dispatches inside each other"
        ) from exc


def _is_foreign() -> bool:
    """Tell whether a ``CancelledError`` here was sent by nobody who cancels this task.

    ``Task.cancel`` counts up ``cancelling()``; timeouts and scopes use it too. Awaiting
    something that somebody else cancelled does not.
    """
    try:
        task = asyncio.current_task()
    except RuntimeError:
        return True
    return task is None or task.cancelling() == 0


def _log_failure(context: ErrorContext) -> None:
    extra = {
        "callback_name": callable_name(context.callback),
        "event_type": context.event_type,
        "status": context.status,
    }
    log(
        logging.ERROR,
        "callback %s failed (%s)",
        context,
        context.status,
        error=context.error,
        extra=extra,
    )


def log(
    level: int, message: str, *args: object, error: BaseException | None = None, extra: Any = None
) -> None:
    """Log, whatever becomes of it: a filter or handler of the application may raise."""
    # Of a bare exception logging asks whether it is true.
    shown = None if error is None else (type(error), error, error.__traceback__)
    with contextlib.suppress(Exception):
        logger.log(level, message, *args, exc_info=shown, extra=extra)


def _log_error_callback(callback: object, failure: BaseException) -> None:
    """Log what an error callback raised; that goes to no error callback."""
    _check_passes(failure)
    name = callable_name(callback)
    extra = {"callback_name": name}
    log(logging.ERROR, "error callback %s failed", name, error=failure, extra=extra)


# Awaitables where nothing can be awaited.


def refusal(callback: object) -> AsyncCallbackError:
    """Return the error for an async callback in a synchronous run."""
    return AsyncCallbackError(
        f"{callable_name(callback)} is asynchronous and can't run here; await the trigger instead"
    )


def refuse_awaitable(callback: object, value: object) -> None:
    """Raise if a callback of a synchronous run returned something to await."""
    if value is not SKIPPED and is_awaitable(value):
        dispose(value)
        raise AsyncCallbackError(
            f"{callable_name(callback)} returned a {type(value).__name__}, which a synchronous "
            "run can't await; await the trigger instead"
        )


def dispose_unstarted(awaitable: Awaitable[Any]) -> None:
    """Close a coroutine that nobody has begun to await and nobody will."""
    if inspect.iscoroutine(awaitable) and inspect.getcoroutinestate(awaitable) == "CORO_CREATED":
        awaitable.close()


def dispose(awaitable: Awaitable[Any]) -> None:
    """Close a coroutine nobody will await; a task or future goes its own way."""
    if issubclass(type(awaitable), Coroutine | Generator):
        cast("Coroutine[Any, Any, Any]", awaitable).close()
