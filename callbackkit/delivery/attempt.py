"""One call of a transport under a deadline, whose failure is a value."""

from __future__ import annotations

import asyncio
from asyncio import CancelledError
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

import anyio

from callbackkit.delivery.transport import DeliveryConfig
from callbackkit.dispatch.concurrency import on_asyncio
from callbackkit.dispatch.deadline import Watch
from callbackkit.errors import CallbackCancelledError, Gone, Rejected, Retry

__all__ = ["describe", "failure_of"]

# Characters of an error that are kept.
_LONGEST: Final = 300


async def failure_of(
    function: Callable[..., Awaitable[None]], *args: Any, timeout: float
) -> Exception | None:
    """Call a function of a transport, and return what it raised.

    A timer is set only if the call suspends (tests/benchmarks, "deliveries"). Cancelling the
    caller passes through, as does any other ``BaseException``; a ``CancelledError`` that nobody
    sent to this task is a failure.

    Args:
        function: What to call and await.
        *args: What it gets.
        timeout: Seconds; then it is cancelled, and has failed with a ``TimeoutError``.
    """
    call = _on_asyncio if on_asyncio() else _on_trio
    return await call(_awaiting(function, args), timeout)


async def _on_trio(coroutine: Coroutine[Any, Any, None], timeout: float) -> Exception | None:
    try:
        with anyio.move_on_after(timeout):
            await coroutine
            return None
    except Exception as exc:
        return exc
    return _expiry(timeout)


async def _on_asyncio(coroutine: Coroutine[Any, Any, None], timeout: float) -> Exception | None:
    watch = Watch()
    watch.timeout = timeout
    try:
        await watch.over(coroutine)
    except CancelledError as exc:
        return _verdict(exc, watch)
    except Exception as exc:
        return exc
    finally:
        watch.disarm()
    return None


def _verdict(exc: CancelledError, watch: Watch) -> Exception:
    """Return the failure that a cancellation is; raise it if somebody cancelled this task."""
    if watch.disarm():
        assert watch.timeout is not None
        return _expiry(watch.timeout)
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise exc
    failure = CallbackCancelledError("cancelled, and not by us")
    failure.__cause__ = exc
    return failure


async def _awaiting(function: Callable[..., Awaitable[None]], args: tuple[Any, ...]) -> None:
    # What is no coroutine function fails in here, as a failure of the transport.
    await function(*args)


def _expiry(timeout: float) -> TimeoutError:
    return TimeoutError(f"not done within {timeout:g} s")


def describe(error: BaseException, config: DeliveryConfig | None) -> str:
    """Return the name and text of an error without secrets, to be stored and logged.

    Without a configuration nobody knows what the secrets are: then only its name.
    """
    name = type(error).__name__
    if config is None:
        return name
    try:
        told = error.reason if isinstance(error, Retry | Rejected | Gone) else str(error)
        text = str(config.mask(f"{name}: {told}" if told else name))
    except Exception:
        # Asked for its text, or for its secrets, somebody else's object may do anything.
        return name
    # A store may refuse what is no Unicode.
    return text[:_LONGEST].encode("utf-8", "replace").decode()
