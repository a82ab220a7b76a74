"""One run: its log, its one end, and those who wait for room."""

from __future__ import annotations

import time
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Protocol

import anyio

from callbackkit.buffer import RunLog, ThreadWaiter, Waiter, in_event_loop, new_waiter
from callbackkit.errors import StreamCancelledError, StreamClosedError
from callbackkit.streaming.events import Entry, Marker, RunStatus, sizes_of
from callbackkit.wire.special_tokens import TokenFormat

__all__ = ["Blocker", "RunState"]


class Blocker(Protocol):
    """A reader that producers wait for."""

    stall_timeout: float

    @property
    def position(self) -> int:
        """Changes whenever it reads."""
        ...

    def holds_up(self) -> bool:
        """Tell whether producers have to wait for this reader."""
        ...

    def give_up(self) -> None:
        """Wait for this reader no longer, until it reads again."""
        ...


class RunState:
    """What a :class:`~callbackkit.Callback` and its readers share.

    Attributes:
        log: The entries.
        format: How special tokens are written.
        status: How the run ended; ``None`` while it goes on.
        error: What readers are told behind the end; ``None`` if it ended well.
        traceback: Of the error, as it was when the run ended.
        idle_timeout: Seconds of silence after which a waiting reader ends the run.
    """

    def __init__(
        self, token_format: TokenFormat, history_bytes: int, idle_timeout: float | None
    ) -> None:
        self.log: RunLog[Entry] = RunLog(max_bytes=history_bytes, sizes=sizes_of)
        self.format: TokenFormat = token_format
        # As long as nothing but tokens outside of any node was appended, the last entry of all
        # aside, and nobody has to be waited for.
        self.log.is_plain = idle_timeout is None
        self.status: RunStatus | None = None
        self.error: BaseException | None = None
        self.traceback: TracebackType | None = None
        self.idle_timeout: float | None = idle_timeout
        self._touched: float | None = None
        self._hooks: dict[object, Callable[[], None]] = {}
        self._blockers: list[weakref.ref[Blocker]] = []
        self._blocked: deque[Waiter | ThreadWaiter] = deque()

    # Appending.

    def append(self, entry: Entry, weight: int) -> None:
        """Append an entry of about so many bytes.

        Raises:
            StreamClosedError: The run has ended.
            StreamCancelledError: It was cancelled.
        """
        if self.idle_timeout is not None:
            self._touched = time.monotonic()
        if not self.log.append(entry, weight):
            raise self.closed_error()

    def closed_error(self) -> Exception:
        """Return what a producer is told that emits to a run that has ended."""
        if self.status == "cancelled":
            reason = self.error.reason if isinstance(self.error, StreamCancelledError) else ""
            return StreamCancelledError(reason)
        return StreamClosedError("the stream has ended: nothing can be emitted to it any more")

    # The end.

    def end(self, status: RunStatus, error: BaseException | None = None) -> bool:
        """End the run, from any thread; ``False`` if it had ended already."""
        params = None if status == "ok" else {"status": status}
        token = self.format.special("stream_end", params=params)
        last = Marker("stream_end", token, None, status=status)
        with self.log._lock:
            if self.status is not None:
                return False
            self.status = status
            self.error = error
            self.traceback = None if error is None else error.__traceback__
            self.log.close(last)
            hooks = list(self._hooks.values())
            self._hooks.clear()
        self.room_made()
        for hook in hooks:
            hook()
        return True

    def on_end(self, hook: Callable[[], None]) -> Callable[[], None]:
        """Have *hook* called when the run ends, at once if it has; return what undoes that."""
        key = object()
        with self.log._lock:
            is_late = self.status is not None
            if not is_late:
                self._hooks[key] = hook
        if is_late:
            hook()
        return lambda: self._forget(key)

    def _forget(self, key: object) -> None:
        with self.log._lock:
            self._hooks.pop(key, None)

    def ending(self) -> BaseException | None:
        """Return what readers are raised behind the end; ``None`` if it ended well."""
        error = self.error
        if isinstance(error, (StopIteration, StopAsyncIteration)):
            # Raised by a reader, this would be a good end. Generators do the same (PEP 479).
            stopped = RuntimeError(f"the run failed with {error!r}")
            stopped.__cause__ = error
            return stopped
        if error is not None:
            # Raised by each reader: what one adds to the traceback is not the next one's.
            return error.with_traceback(self.traceback)
        if self.status == "cancelled":
            return StreamCancelledError()
        return TimeoutError("the run timed out") if self.status == "timeout" else None

    # Silence.

    def idle_left(self) -> float | None:
        """Return the seconds of silence that are left; ``None`` if it may be silent for ever.

        Silence begins with the first one who waits, or the last entry.
        """
        if self.idle_timeout is None:
            return None
        if self._touched is None:
            self._touched = time.monotonic()
        return self._touched + self.idle_timeout - time.monotonic()

    def end_if_silent(self) -> None:
        """End the run with a timeout if it was silent for too long."""
        left = self.idle_left()
        if left is not None and left <= 0:
            error = TimeoutError(f"nothing was emitted for {self.idle_timeout} seconds")
            self.end("timeout", error)

    # Producers that wait for readers.

    def add_blocker(self, reader: Blocker) -> None:
        """Have producers wait for a reader from now on, as long as somebody holds it."""
        self.log.is_plain = False
        blocked = self._blocked
        reference = weakref.ref(reader, lambda _: _wake(blocked))
        with self.log._lock:
            self._blockers = [ref for ref in self._blockers if ref() is not None]
            self._blockers.append(reference)

    def room_made(self) -> None:
        """Wake the producers that wait."""
        _wake(self._blocked)

    @property
    def has_blockers(self) -> bool:
        """Somebody may have to be waited for."""
        return bool(self._blockers)

    def _slowest(self) -> Blocker | None:
        """Return a reader that has to be waited for."""
        if self.status is not None:
            return None
        readers = (ref() for ref in self._blockers)
        return next((one for one in readers if one is not None and one.holds_up()), None)

    def wait_for_room_in_thread(self) -> None:
        """Wait until no reader holds producers up; never in a thread that runs an event loop."""
        if in_event_loop():
            return
        patience = Patience()
        while (reader := self._slowest()) is not None:
            waiter = ThreadWaiter()
            left = self._queue_up(waiter, reader, patience)
            # Held no longer than this: whoever drops its last reference makes room.
            del reader
            if left is not None and not waiter.wait_in_thread(left):
                self._leave_queue(waiter)
                patience.lose()

    async def wait_for_room(self) -> None:
        """Wait until no reader holds producers up."""
        patience = Patience()
        while (reader := self._slowest()) is not None:
            waiter = new_waiter()
            left = self._queue_up(waiter, reader, patience)
            del reader
            if left is None:
                continue
            try:
                with anyio.move_on_after(left) as scope:
                    await waiter.wait()
            finally:
                self._leave_queue(waiter)
            if scope.cancelled_caught:
                patience.lose()

    def _queue_up(
        self, waiter: Waiter | ThreadWaiter, reader: Blocker, patience: Patience
    ) -> float | None:
        """Return the seconds to wait for a reader; ``None`` if it has made room."""
        self._blocked.append(waiter)
        left = patience.left(reader)
        return left if reader.holds_up() and self.status is None else None

    def _leave_queue(self, waiter: Waiter | ThreadWaiter) -> None:
        with suppress(ValueError):
            self._blocked.remove(waiter)


def _wake(blocked: deque[Waiter | ThreadWaiter]) -> None:
    """Wake all who wait. Takes no lock: garbage collection calls it too."""
    # So many and no more: who queues up meanwhile has looked already.
    for _ in range(len(blocked)):
        try:
            waiter = blocked.popleft()
        except IndexError:
            # Another thread was faster.
            return
        waiter.wake()


class Patience:
    """How much longer a producer waits for a reader that does not move."""

    __slots__ = ("_deadline", "_position", "_reader")

    def __init__(self) -> None:
        self._reader: weakref.ref[Blocker] | None = None
        self._position = -1
        self._deadline = 0.0

    def left(self, reader: Blocker) -> float:
        """Return the seconds left; what a reader reads gives it all its time again."""
        now = time.monotonic()
        known = None if self._reader is None else self._reader()
        if reader is not known or reader.position != self._position:
            self._reader = weakref.ref(reader)
            self._position = reader.position
            self._deadline = now + reader.stall_timeout
        return max(self._deadline - now, 0.0)

    def lose(self) -> None:
        """Give the reader up, unless it has moved after all."""
        reader = None if self._reader is None else self._reader()
        if reader is not None and self.left(reader) <= 0:
            reader.give_up()
