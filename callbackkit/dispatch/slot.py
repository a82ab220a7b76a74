"""Hold one callback, or none, for a thread that may not wait: an audio driver's."""

from __future__ import annotations

import logging
import sys
import threading
import time
import weakref
from asyncio import CancelledError
from collections.abc import Callable
from typing import Any, Self

from callbackkit.buffer import Log, Overflow
from callbackkit.dispatch.callables import (
    callable_name,
    check_callable,
    give,
    is_async_callable,
)
from callbackkit.dispatch.failures import refuse_awaitable
from callbackkit.errors import AsyncCallbackError

__all__ = ["CallbackSlot", "SlotStream"]

logger: logging.Logger = logging.getLogger("callbackkit.dispatch")

# Seconds between two log records about a callback that goes on failing. An audio driver calls
# some 50 times a second.
_LOG_INTERVAL = 10.0


class CallbackSlot:
    """A place for one callback or none, called from a thread that may not wait.

    An audio driver's thread calls ``slot(chunk)``, which calls the callback in that thread and
    returns what it returns. What the callback raises is counted and logged instead, the first
    failure at once and later ones at most every ten seconds; only ``KeyboardInterrupt``,
    ``SystemExit`` and their like pass. No lock is held while it runs. Asynchronous code takes
    the chunks from :meth:`to_stream`.

    >>> slot = CallbackSlot(len)
    >>> slot(b"chunk")
    5
    >>> slot.set(None)
    >>> slot(b"chunk")

    Args:
        callback: The first callback, see :meth:`set`.
        clock: Tells seconds that only grow, for the interval between log records.
    """

    def __init__(
        self,
        callback: Callable[..., Any] | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        # Re-entrant because garbage collection may run anybody's __del__ at any time, and that
        # may use the slot.
        self._lock = threading.RLock()
        self._logs: tuple[weakref.ref[Log[Any]], ...] = ()
        self._is_closed = False
        self._failures = 0
        self._last_error: BaseException | None = None
        self._logged_at: float | None = None
        self._unlogged = 0
        self.set(callback)

    def __repr__(self) -> str:
        name = "empty" if self.callback is None else callable_name(self.callback)
        state = ", closed" if self._is_closed else ""
        return f"<CallbackSlot {name}{state}, {self._failures} failures>"

    def set(self, callback: Callable[..., Any] | None) -> None:
        """Put a callback in the place of the one there is; ``None`` clears the slot.

        Args:
            callback: A synchronous callable. It is called with the chunk, or with nothing if it
                has no parameter without a default.

        Raises:
            AsyncCallbackError: It is asynchronous.
            TypeError: It is not callable.
        """
        call = None if callback is None else _checked(callback)
        with self._lock:
            # Both in one: the driver's thread may be looking.
            self._entry = (callback, call)
            # The first failure of a new callback is logged at once.
            self._logged_at = None

    @property
    def callback(self) -> Callable[..., Any] | None:
        """The callback; ``None`` if there is none."""
        return self._entry[0]

    # In the driver's thread.

    def __call__(self, chunk: Any) -> Any:
        """Give a chunk to all streams, then to the callback; return what that returns.

        Never waits. ``None`` if there is no callback, it failed, or the slot is closed. An
        awaitable that comes back is closed and counts as a failure.
        """
        if self._logs:
            self._feed(chunk)
        callback, call = self._entry
        if call is None or self._is_closed:
            return None
        try:
            value = call(chunk)
            if value is not None:
                refuse_awaitable(callback, value)
        except (Exception, CancelledError) as exc:
            # Not by a dispatcher, which would log every failure: this thread can't afford it.
            self._fail(f"callback {callable_name(callback)}", exc)
            return None
        return value

    def _feed(self, chunk: Any) -> None:
        logs = self._logs
        try:
            kept = _kept(chunk)
            ended = [ref for ref in logs if (log := ref()) is None or not log.append(kept)]
        except Exception as exc:
            self._fail("copying a chunk for streams", exc)
            return
        if ended:
            with self._lock:
                self._logs = tuple(ref for ref in self._logs if ref not in ended)

    def _fail(self, what: str, exc: BaseException) -> None:
        now = self._clock()
        with self._lock:
            self._failures += 1
            self._last_error = exc
            self._unlogged += 1
            if self._logged_at is not None and now - self._logged_at < _LOG_INTERVAL:
                return
            count, self._unlogged, self._logged_at = self._unlogged, 0, now
        try:
            logger.error(
                "%s failed in a slot (failures since the last record: %d)",
                what,
                count,
                exc_info=exc,
                extra={"failures": count},
            )
        except Exception:
            # A filter of the application raised; the driver must not get it.
            return

    @property
    def failures(self) -> int:
        """How many calls of a callback failed, and chunks that could not be copied."""
        return self._failures

    @property
    def last_error(self) -> BaseException | None:
        """What the last failure raised."""
        return self._last_error

    # For asynchronous code.

    def to_stream(
        self,
        *,
        max_items: int = 256,
        overflow: Overflow = "drop_oldest",
        max_bytes: int | None = None,
    ) -> SlotStream:
        """Return an asynchronous iterator over the chunks, from this call on.

        A slot may have a callback and several streams at once. It holds streams weakly: one that
        nobody follows any more is forgotten. A driver may use the memory of a chunk again, so
        chunks are copied: a ``bytearray``, ``memoryview`` or other buffer becomes ``bytes``, and
        one with a ``copy()`` of its own, such as a NumPy array, stays what it is. ``bytes``
        and objects that are no buffers are passed on as they are.

        Args:
            max_items: Most chunks that wait to be read.
            overflow: What happens beyond: ``"drop_oldest"`` (counted in ``stream.dropped``) or
                ``"error"`` (the reader gets :exc:`~callbackkit.StreamLagError`).
            max_bytes: Most bytes that wait to be read; the newest chunk is kept whatever its
                size. ``None`` does not count bytes.

        Raises:
            ValueError: A bound below 1, or an unknown *overflow*.
        """
        size = None if max_bytes is None else _size
        log: Log[Any] = Log(max_items=max_items, max_bytes=max_bytes, size=size)
        stream = SlotStream(log, overflow)
        with self._lock:
            if self._is_closed:
                log.close()
            else:
                self._logs += (weakref.ref(log),)
        return stream

    def close(self) -> None:
        """End the audio: streams end once read, and chunks that still come are ignored.

        May be called from any thread, and more than once.
        """
        with self._lock:
            self._is_closed = True
            logs, self._logs = self._logs, ()
        for ref in logs:
            if (log := ref()) is not None:
                log.close()


class SlotStream:
    """The chunks given to a slot, in order: what :meth:`CallbackSlot.to_stream` returns.

    It ends when the slot is closed and all is read, with :meth:`aclose`, or at the end of
    ``async with``. One task iterates at a time, on asyncio or trio.
    """

    def __init__(self, log: Log[Any], overflow: Overflow) -> None:
        self._log = log
        self._reader = log.reader(overflow=overflow)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc_info: object) -> None:
        await self.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        """Return the next chunk, waiting for it.

        Raises:
            StreamLagError: Chunks were dropped and *overflow* is ``"error"``; told once for
                each time it happens.
        """
        return await anext(self._reader)

    @property
    def dropped(self) -> int:
        """How many chunks were lost because too many others waited to be read."""
        return self._reader.missed

    async def aclose(self) -> None:
        """End the stream, also for a task that waits for its next chunk."""
        self._reader.close()
        self._log.close()


def _checked(callback: Callable[..., Any]) -> Callable[..., Any]:
    check_callable(callback)
    if is_async_callable(callback):
        raise AsyncCallbackError(
            f"{callable_name(callback)} is asynchronous, and the thread that calls a slot can't "
            "await it; take the chunks in a task, with 'async for chunk in slot.to_stream()'"
        )
    return give(callback, 1)


# Chunks.


def _kept(chunk: Any) -> Any:
    """Return a chunk that stays as it is when the driver uses its memory again."""
    if isinstance(chunk, bytes):
        return chunk
    try:
        view = memoryview(chunk)
    except TypeError:
        return chunk
    with view:
        copy = None if isinstance(chunk, bytearray) else getattr(chunk, "copy", None)
        return bytes(view) if copy is None else copy()


def _size(chunk: Any) -> int:
    try:
        view = memoryview(chunk)
    except TypeError:
        return sys.getsizeof(chunk)
    with view:
        return view.nbytes
