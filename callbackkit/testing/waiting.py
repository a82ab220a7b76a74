"""Wait for what other tasks and threads do."""

from __future__ import annotations

import threading
from collections.abc import Callable

import anyio

from callbackkit.buffer import Waiter, new_waiter
from callbackkit.dispatch.deadline import check_timeout

__all__ = ["Bell"]


class Bell:
    """Rung from any thread whenever something happened; tasks wait for their condition.

    Works on asyncio and trio, for several loops at once, and polls nothing.
    """

    def __init__(self) -> None:
        # Re-entrant: garbage collection may run a finalizer that rings while the lock is held.
        self._lock = threading.RLock()
        self._waiters: list[Waiter] = []

    def ring(self) -> None:
        """Have everybody who waits look again."""
        with self._lock:
            waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.wake()

    async def wait_until(self, is_true: Callable[[], bool], timeout: float | None) -> bool:
        """Wait until *is_true* says so, at most *timeout* seconds; return what it says then."""
        check_timeout(timeout)
        with anyio.move_on_after(timeout):
            while not is_true():
                waiter = new_waiter()
                with self._lock:
                    self._waiters.append(waiter)
                # Asked again now that no ringing can be missed.
                if not is_true():
                    await waiter.wait()
        return is_true()
