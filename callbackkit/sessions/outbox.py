"""Events on their way into the store from threads that can't wait, in order for each session."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Any, Final

import anyio
import attrs
from anyio.abc import TaskGroup, TaskStatus

from callbackkit.buffer import checkpoint, new_waiter
from callbackkit.errors import LimitError
from callbackkit.events import Event
from callbackkit.stores.base import Watches

__all__ = ["Outbox", "Outgoing"]

logger: logging.Logger = logging.getLogger("callbackkit.sessions")

_STOPPED: Final = "the manager was stopped before the event was stored"


@attrs.frozen(eq=False)
class Outgoing:
    """An event that was handed over.

    Attributes:
        session_id: Its session.
        append: Stores it; returns it, and whether it is new: ``None`` if its session leaves it out.
        call: Calls the callbacks for it.
        future: Gets the stored event.
    """

    session_id: str
    append: Callable[[], Awaitable[tuple[Event | None, bool]]]
    call: Callable[[Event], Awaitable[object]]
    future: Future[Event | None]


@attrs.frozen(eq=False)
class _Mark:
    """Stands among events, and tells when it is its turn: all before it is done.

    Attributes:
        future: Gets ``None`` then.
        after_calls: It waits for the callbacks too, not only for the store.
    """

    future: Future[None]
    after_calls: bool


class _Lane:
    """What one session waits for: events to be stored, and then callbacks to be called."""

    __slots__ = ("is_calling", "is_storing", "pending", "session_id", "to_call", "to_store")

    def __init__(self, session_id: str) -> None:
        self.session_id: str = session_id
        self.to_store: deque[Outgoing | _Mark] = deque()
        self.to_call: deque[tuple[Outgoing, Event] | _Mark] = deque()
        self.is_storing: bool = False
        self.is_calling: bool = False
        # Events in both.
        self.pending: int = 0

    def futures(self) -> list[Future[Any]]:
        """Return those that somebody may wait for."""
        marks = [each.future for each in self.to_call if isinstance(each, _Mark)]
        return [*(each.future for each in self.to_store), *marks]


class Outbox:
    """What was handed over and is not done yet.

    Each session has a lane with two stages, each a task of its own while there is something to
    do: one stores, the other one calls callbacks. So a session that is slow holds up no other,
    and a callback may wait until what it emits itself is stored.

    Args:
        max_pending: Events of one session that may wait.
    """

    def __init__(self, max_pending: int) -> None:
        self._max_pending = max_pending
        self._lock = threading.RLock()
        self._lanes: dict[str, _Lane] = {}
        self._to_serve: deque[_Lane] = deque()
        self._doors = Watches()
        self._is_open = False

    def is_storing(self, session_id: str) -> bool:
        """Tell whether events of a session wait to be stored."""
        lane = self._lanes.get(session_id)
        return lane is not None and lane.is_storing

    def put(self, outgoing: Outgoing) -> None:
        """Hand an event over; from any thread.

        Raises:
            LimitError: Too many of its session wait.
            RuntimeError: Nobody serves the outbox.
        """
        with self._lock:
            if not self._is_open:
                raise RuntimeError("emit_soon needs a running manager: async with manager: ...")
            lane = self._lanes.get(outgoing.session_id)
            if lane is None:
                lane = self._lanes[outgoing.session_id] = _Lane(outgoing.session_id)
            if lane.pending >= self._max_pending:
                hint = "events handed over by emit_soon wait to be stored, or for their callbacks"
                raise LimitError("max_pending", self._max_pending, hint)
            lane.pending += 1
            self._put(lane, outgoing)
        self._doors.ring(None)

    def _put(self, lane: _Lane, what: Outgoing | _Mark) -> None:
        lane.to_store.append(what)
        if not lane.is_storing:
            lane.is_storing = True
            self._to_serve.append(lane)

    async def flush(self, session_id: str | None = None, *, after_calls: bool = False) -> None:
        """Wait until what was handed over before, to one session or all, is stored.

        Args:
            session_id: The session.
            after_calls: Wait for the callbacks too.
        """
        with self._lock:
            lanes = [each for each in self._lanes.values() if session_id in {None, each.session_id}]
            marks = [_Mark(Future(), after_calls) for _ in lanes]
            for lane, mark in zip(lanes, marks, strict=True):
                self._put(lane, mark)
        self._doors.ring(None)
        for mark in marks:
            await _settled(mark.future)

    # Its life.

    def open(self) -> None:
        """Take events from now on."""
        with self._lock:
            self._is_open = True

    def shut(self) -> None:
        """Take none any more; those that wait are served as before."""
        with self._lock:
            self._is_open = False

    def close(self) -> None:
        """Take none any more, and give up those that wait."""
        with self._lock:
            self._is_open = False
            left = [each for lane in self._lanes.values() for each in lane.futures()]
            self._lanes.clear()
            self._to_serve.clear()
        for future in left:
            _give_up(future)

    async def serve(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Store what is handed over, and call callbacks, until cancelled."""
        with self._doors.watch(None) as door:
            async with anyio.create_task_group() as group:
                task_status.started()
                while True:
                    while self._to_serve:
                        group.start_soon(self._store_all, self._to_serve.popleft(), group)
                    await door.wait(None)

    async def _store_all(self, lane: _Lane, group: TaskGroup) -> None:
        while True:
            with self._lock:
                if not lane.to_store:
                    lane.is_storing = False
                    self._leave(lane)
                    return
                first = lane.to_store[0]
            stored = None if isinstance(first, _Mark) else await _store(first)
            with self._lock:
                # It stood there until now, so that others could see that there is something.
                lane.to_store.popleft()
                if self._hand_on(lane, first, stored):
                    group.start_soon(self._call_all, lane)
            # A long lane lets others run.
            await checkpoint()

    def _hand_on(
        self, lane: _Lane, first: Outgoing | _Mark, stored: tuple[Event | None, bool] | None
    ) -> bool:
        """Pass something on to the second stage, if it is for it; tell whether to begin that."""
        if isinstance(first, _Mark):
            if not first.after_calls or not lane.is_calling:
                _pass(first)
                return False
            lane.to_call.append(first)
            return False
        event, is_new = (None, False) if stored is None else stored
        if event is None or not is_new:
            lane.pending -= 1
            return False
        lane.to_call.append((first, event))
        begins, lane.is_calling = not lane.is_calling, True
        return begins

    async def _call_all(self, lane: _Lane) -> None:
        while True:
            with self._lock:
                if not lane.to_call:
                    lane.is_calling = False
                    self._leave(lane)
                    return
                first = lane.to_call[0]
            if isinstance(first, _Mark):
                _pass(first)
            else:
                await _call(*first)
            with self._lock:
                lane.to_call.popleft()
                lane.pending -= not isinstance(first, _Mark)

    def _leave(self, lane: _Lane) -> None:
        is_idle = not lane.is_storing and not lane.is_calling
        if is_idle and self._lanes.get(lane.session_id) is lane:
            del self._lanes[lane.session_id]


async def _store(outgoing: Outgoing) -> tuple[Event | None, bool] | None:
    """Store an event, and settle its future; return what came of it, ``None`` if nothing did."""
    future = outgoing.future
    if not future.set_running_or_notify_cancel():
        return None
    try:
        stored = await outgoing.append()
    except Exception as exc:
        future.set_exception(exc)
        return None
    except BaseException:
        # The manager stops; whoever waits in a thread must not wait for ever.
        future.set_exception(RuntimeError(_STOPPED))
        raise
    future.set_result(stored[0])
    return stored


async def _call(outgoing: Outgoing, event: Event) -> None:
    try:
        await outgoing.call(event)
    except Exception:
        logger.exception(
            "the callbacks for an event could not be called",
            extra={"session_id": outgoing.session_id, "event_type": event.event_type},
        )


def _pass(mark: _Mark) -> None:
    if mark.future.set_running_or_notify_cancel():
        mark.future.set_result(None)


def _give_up(future: Future[Any]) -> None:
    # One that is being stored now is settled by who does that.
    if future.running() or future.done():
        return
    if future.set_running_or_notify_cancel():
        future.set_exception(RuntimeError(_STOPPED))


async def _settled(future: Future[None]) -> None:
    """Wait until a future is done, however; from a task."""
    waiter = new_waiter()
    future.add_done_callback(lambda _: waiter.wake())
    await waiter.wait()
