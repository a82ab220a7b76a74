"""Calls made one at a time, in the order they were asked for, and none of them under a lock."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from contextvars import ContextVar, copy_context
from typing import Literal, TypeVar

import anyio

from callbackkit.buffer import Waiter, new_waiter
from callbackkit.errors import BacklogError, DispatchDepthError

__all__ = ["AsyncTurn", "InOrder", "Turn"]

logger: logging.Logger = logging.getLogger("callbackkit.dispatch")

E = TypeVar("E", bound=BaseException)

# Calls that wait. Only somebody who asks faster than the calls are made meets this limit.
_MAX_WAITING = 10_000


class InOrder:
    """Makes calls that any thread or task asks for, one at a time.

    ::

        calls.run(call)           # or, where the order is decided under a lock of one's own:
        with self._lock:
            turn = calls.queue(call)
        turn.take()

    - Who asks makes the call itself, and goes on with whatever was asked for meanwhile. If
      somebody is making calls already, a synchronous call is left to them and its asker goes
      on at once; it is made with the context variables of its asker.
    - An asynchronous call is made by the task that asked for it: it waits for its turn. One
      asked for from inside another call, of whichever ``InOrder``, does not wait while calls
      are being made, and is left too: two tasks would else wait for each other.
    - What is asked for from inside a call is made after it, not within it.
    - A call that raises does not keep others from being made. Its exception goes to who asked if
      they make it themselves, else to the log. ``KeyboardInterrupt`` and ``SystemExit`` pass at
      once; what waits is then made by who comes next.
    - A task that is cancelled before its turn leaves; its call is not made.

    Args:
        max_waiting: Most calls that may wait.
        depth_limit: How many calls may be asked for each from inside the one before.
    """

    def __init__(self, *, max_waiting: int = _MAX_WAITING, depth_limit: int = 100) -> None:
        self._max_waiting = max_waiting
        self._depth_limit = depth_limit
        # Re-entrant because garbage collection may run anybody's __del__ at any time, and that
        # may ask for a call.
        self._lock = threading.RLock()
        self._waiting: deque[Turn | AsyncTurn] = deque()
        # Somebody makes calls; who is synchronous can make synchronous ones only.
        self._maker: Literal["sync", "async"] | None = None

    @property
    def waiting(self) -> int:
        """How many calls wait."""
        return len(self._waiting)

    def run(self, call: Callable[[], object]) -> None:
        """Make a synchronous call in its turn, or leave it to who is making calls now."""
        self.queue(call).take()

    async def arun(self, call: Callable[[], Awaitable[object]]) -> None:
        """Make and await an asynchronous call in its turn."""
        await self.aqueue(call).take()

    def queue(self, call: Callable[[], object]) -> Turn:
        """Settle when a synchronous call is made, before others; then :meth:`Turn.take` it.

        Calls nothing, so a lock may be held.

        Raises:
            BacklogError: *max_waiting* calls wait.
            DispatchDepthError: Each of *depth_limit* calls was asked for from inside another.
        """
        turn = Turn(self, call, self._depth())
        self._waiting.append(turn)
        return turn

    def aqueue(self, call: Callable[[], Awaitable[object]]) -> AsyncTurn:
        """Like :meth:`queue`, for an asynchronous call; ``await`` its :meth:`AsyncTurn.take`."""
        turn = AsyncTurn(self, call, self._depth())
        self._waiting.append(turn)
        return turn

    def _depth(self) -> int:
        if len(self._waiting) >= self._max_waiting:
            raise BacklogError(f"{self._max_waiting} calls wait for the one being made")
        outer = _outer()
        depth = 1 if outer is None else outer.depth + 1
        if depth > self._depth_limit:
            raise DispatchDepthError(
                f"{depth} calls were each asked for from inside another (depth_limit="
                f"{self._depth_limit}): a callback causes the change that calls it, directly or "
                "through others"
            )
        return depth

    # Who makes calls. `mine` is the turn of the task that asks, None for who is synchronous.

    def begin(self, mine: AsyncTurn | None) -> bool:
        """Start making calls, unless somebody does or the next one is not ours to make."""
        with self._lock:
            if self._maker is None and self._can_make(mine):
                self._maker = "sync" if mine is None else "async"
                return True
            if mine is not None:
                # A call left now is made by the task that makes calls, or by the one whose turn
                # comes next: who is synchronous could not.
                mine.wait_or_leave(can_leave=self._maker != "sync")
            return False

    def next_turn(self, mine: AsyncTurn | None) -> Turn | AsyncTurn | None:
        """Return the next call to make; if there is none, stop making calls."""
        with self._lock:
            while not self._can_make(mine):
                self._stop()
                # Look again: garbage collection may have asked for a call just before.
                if not self._can_make(mine):
                    return None
                self._maker = "sync" if mine is None else "async"
            return self._waiting.popleft()

    def abort(self) -> None:
        """Stop making calls at once."""
        with self._lock:
            # Nobody is left to make these.
            for turn in [turn for turn in self._waiting if turn.is_left]:
                self._waiting.remove(turn)
            self._stop()

    def withdraw(self, mine: AsyncTurn) -> bool:
        """Take a call back before its turn; ``True`` if it is now on us to make the others."""
        with self._lock:
            self._waiting.remove(mine)
            if self._maker is not None:
                return False
            if self._can_make(mine):
                self._maker = "async"
                return True
            self._stop()
            return False

    def _can_make(self, mine: AsyncTurn | None) -> bool:
        if not self._waiting:
            return False
        turn = self._waiting[0]
        return isinstance(turn, Turn) or (mine is not None and (turn is mine or turn.is_left))

    def _stop(self) -> None:
        self._maker = None
        if self._waiting and isinstance(turn := self._waiting[0], AsyncTurn):
            turn.wake()


class Turn:
    """The place of a synchronous call among others."""

    __slots__ = ("_call", "_context", "_order", "depth", "is_running")

    is_left = False

    def __init__(self, order: InOrder, call: Callable[[], object], depth: int) -> None:
        self._order = order
        self._call = call
        self._context = copy_context()
        self.depth: int = depth
        self.is_running: bool = False

    def take(self) -> None:
        """Make the call, and what waits before and behind it, or leave it to who does."""
        order = self._order
        if not order.begin(None):
            return
        failure: Exception | None = None
        while (turn := order.next_turn(None)) is not None:
            assert isinstance(turn, Turn)
            try:
                turn.make(self)
            except Exception as exc:
                if turn is self:
                    failure = exc
                else:
                    _log(exc)
            except BaseException:
                order.abort()
                raise
        if failure is not None:
            raise failure

    def make(self, mine: object) -> None:
        """Make the call; in the context of who asked for it if that is somebody else."""
        if mine is self:
            self._make_here()
        else:
            self._context.run(self._make_here)

    def _make_here(self) -> None:
        token = _TURN.set(self)
        self.is_running = True
        try:
            self._call()
        finally:
            self.is_running = False
            _TURN.reset(token)


class AsyncTurn:
    """The place of an asynchronous call among others."""

    __slots__ = ("_call", "_order", "_waiter", "depth", "is_left", "is_running")

    def __init__(self, order: InOrder, call: Callable[[], Awaitable[object]], depth: int) -> None:
        self._order = order
        self._call = call
        self._waiter: Waiter | None = None
        self.depth: int = depth
        # Its task has gone on; the next task that makes calls makes this one.
        self.is_left: bool = False
        self.is_running: bool = False

    async def take(self) -> None:
        """Wait for the turn, make and await the call, and then what waits behind it."""
        order = self._order
        cancelled = anyio.get_cancelled_exc_class()
        try:
            while not order.begin(self):
                if self._waiter is None:
                    return
                await self._waiter.wait()
        except cancelled:
            if order.withdraw(self):
                await self._make_all(cancelled, is_cancelled=True)
            raise
        except BaseException:
            if order.withdraw(self):
                order.abort()
            raise
        await self._make_all(cancelled, is_cancelled=False)

    async def _make_all(self, cancelled: type[BaseException], *, is_cancelled: bool) -> None:
        order = self._order
        failure: BaseException | None = None
        while (turn := order.next_turn(self)) is not None:
            try:
                if isinstance(turn, Turn):
                    turn.make(self)
                elif is_cancelled:
                    await turn.begin()
                else:
                    await turn.make()
            except Exception as exc:
                if turn is self:
                    failure = exc
                else:
                    _log(exc)
            except cancelled as exc:
                # What others have left is begun all the same, and ends where it suspends.
                is_cancelled, failure = True, exc
            except BaseException:
                order.abort()
                raise
        if failure is not None:
            raise failure

    async def make(self) -> None:
        """Make and await the call."""
        token = _TURN.set(self)
        self.is_running = True
        try:
            await self._call()
        finally:
            self.is_running = False
            _TURN.reset(token)

    async def begin(self) -> None:
        """Make the call and await it as far as it does not suspend."""
        with anyio.CancelScope() as scope:
            scope.cancel()
            await self.make()

    def wait_or_leave(self, *, can_leave: bool) -> None:
        """Prepare for a wait; or leave the call to a task that makes calls, or is about to."""
        self.is_left = can_leave and _outer() is not None
        self._waiter = None if self.is_left else new_waiter()

    def wake(self) -> None:
        """Let the task look whether its turn has come."""
        if self._waiter is not None:
            self._waiter.wake()


def _log(exc: Exception) -> None:
    """Log what a call raised that was left to us."""
    logger.error("a call left to another thread or task failed", exc_info=exc)


# The call being made here.

_TURN: ContextVar[Turn | AsyncTurn | None] = ContextVar("callbackkit_turn", default=None)


def _outer() -> Turn | AsyncTurn | None:
    """Return the call we are inside of; a task it started is inside as long as it lasts."""
    turn = _TURN.get()
    return turn if turn is not None and turn.is_running else None
