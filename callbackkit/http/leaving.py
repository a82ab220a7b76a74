"""Notice that a client has left, while an answer is made for it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

from callbackkit.errors import CallbackKitError
from callbackkit.transports.connections import Receive, leave_at_disconnect

__all__ = ["unless_gone"]

T = TypeVar("T")


async def unless_gone(receive: Receive, ask: Callable[[], Awaitable[T]]) -> T | None:
    """Return what is asked for, or ``None`` as soon as the client has left.

    Raises:
        CallbackKitError: What *ask* raises.
    """
    found: T | None = None
    error: CallbackKitError | None = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(leave_at_disconnect, receive, tasks.cancel_scope)
        try:
            found = await ask()
        except CallbackKitError as exc:
            # Out of the group it would come in a group.
            error = exc
        tasks.cancel_scope.cancel()
    if error is not None:
        raise error
    return found
