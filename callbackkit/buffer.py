"""A bounded log in memory that any thread appends to and any number of readers follow.

Items get numbers, 0 upwards, and never change. Each reader has a cursor of its own; a
reader that is slow loses the oldest items, is told how many, and holds up nobody.
"""

from __future__ import annotations

import _thread
import asyncio
import sys
import threading
import weakref
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Generic, Literal, Protocol, Self, TypeVar, cast

import anyio

from callbackkit.errors import StreamLagError

__all__ = [
    "Log",
    "Overflow",
    "Reader",
    "RunLog",
    "ThreadWaiter",
    "Waiter",
    "checkpoint",
    "in_event_loop",
    "new_waiter",
]

T = TypeVar("T")

Overflow = Literal["drop_oldest", "error"]

# Items a reader takes in a row before it lets other tasks run. Without it a producer thread
# that is faster than its reader would keep the reader's event loop busy for ever.
_YIELD_EVERY = 256

# Read items are cut off the list once there are this many and they are half of it, so that
# dropping one is a step of constant cost.
_COMPACT_AT = 64


class Log(Generic[T]):
    """The last items appended, numbered, until a bound is reached.

    Args:
        max_items: Most items kept.
        max_bytes: Most bytes kept, as *size* counts them; the newest item is kept whatever
            its size. ``None`` does not count bytes.
        size: Bytes of an item.
        keep_read: Keep items that every reader has read, for readers that come later.

    Raises:
        ValueError: A bound below 1.
    """

    # Faster than a __dict__ (tests/benchmarks, "burst").
    __slots__ = (
        "__weakref__",
        "_bytes",
        "_closed",
        "_first",
        "_head",
        "_items",
        "_keep_read",
        "_lock",
        "_max_bytes",
        "_max_items",
        "_parked",
        "_readers",
        "_size",
        "_sizes",
    )

    def __init__(
        self,
        *,
        max_items: int,
        max_bytes: int | None = None,
        size: Callable[[T], int] | None = None,
        keep_read: bool = False,
    ) -> None:
        _check_bound("max_items", max_items)
        if max_bytes is not None:
            _check_bound("max_bytes", max_bytes)
            if size is None:
                raise ValueError("max_bytes needs size, which tells the bytes of an item")
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._size = size
        self._keep_read = keep_read
        # Re-entrant: garbage collection may run anybody's code at any time, an append too.
        self._lock = threading.RLock()
        # Item number n stands at _items[_head + n - _first]; what is before _head is gone.
        self._items: list[T | None] = []
        self._head: int = 0
        self._first: int = 0
        # Sizes of the items kept, counted once: a bytearray may change behind our back.
        self._sizes: deque[int] = deque()
        self._bytes = 0
        self._closed = False
        self._parked: list[Waiter | ThreadWaiter] = []
        # Who must have read an item before it is dropped; with keep_read nobody.
        self._readers: list[weakref.ref[Reader[T]]] = []

    def __len__(self) -> int:
        with self._lock:
            return len(self._items) - self._head

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open"
        return f"<Log {state}, {len(self)} items from {self._first}>"

    @property
    def is_closed(self) -> bool:
        """Nothing can be appended any more."""
        return self._closed

    # Writing, from any thread.

    def append(self, item: T) -> bool:
        """Add an item and wake who waits for it; ``False`` if the log is closed."""
        size = 0 if self._size is None else self._size(item)
        with self._lock:
            if self._closed:
                return False
            self._items.append(item)
            if self._size is not None:
                self._sizes.append(size)
                self._bytes += size
            if len(self._items) - self._head > self._max_items or self._is_too_large():
                self._make_room()
        if self._parked:
            self.wake()
        return True

    def close(self) -> None:
        """Let readers end once they have read what is there. Closing twice is harmless."""
        with self._lock:
            self._closed = True
        self.wake()

    # Waiting, without the lock: a list is appended to and popped from atomically.

    def wake(self) -> None:
        """Wake all who wait, so that they look again."""
        parked = self._parked
        # So many and no more, the oldest first: whoever parks again meanwhile has looked already,
        # and waking that one too might never end.
        for _ in range(len(parked)):
            try:
                waiter = parked.pop(0)
            except IndexError:
                # Another thread was faster.
                return
            waiter.wake()

    def unpark(self, waiter: Waiter | ThreadWaiter) -> None:
        """Forget a waiter; one that was woken already does no harm."""
        with suppress(ValueError):
            self._parked.remove(waiter)

    # Reading.

    def reader(self, *, overflow: Overflow = "drop_oldest", from_now: bool = False) -> Reader[T]:
        """Follow the log from the oldest item kept.

        Args:
            overflow: What a reader gets that missed items: ``"drop_oldest"`` goes on with the
                oldest one kept and counts (:attr:`Reader.missed`), ``"error"`` raises
                :exc:`~callbackkit.errors.StreamLagError` first.
            from_now: Start behind the newest item instead.

        The log does not keep the reader alive: one that nobody holds is forgotten.
        """
        if overflow not in ("drop_oldest", "error"):
            raise ValueError(f"overflow must be 'drop_oldest' or 'error', not {overflow!r}")
        with self._lock:
            reader = Reader(self, overflow, self._end if from_now else self._first)
            if not self._keep_read:
                self._readers = [ref for ref in self._readers if ref() is not None]
                self._readers.append(weakref.ref(reader))
        return reader

    # Everything below is called with the lock held.

    @property
    def _end(self) -> int:
        return self._first + len(self._items) - self._head

    def _is_too_large(self) -> bool:
        return self._max_bytes is not None and self._bytes > self._max_bytes

    def _make_room(self) -> None:
        while (count := len(self._items) - self._head) > self._max_items or (
            count > 1 and self._is_too_large()
        ):
            self._drop_first()

    def _drop_first(self) -> T | None:
        head = self._head
        self._head = head + 1
        self._first += 1
        item, self._items[head] = self._items[head], None
        if self._size is not None:
            self._bytes -= self._sizes.popleft()
        if self._head >= _COMPACT_AT and self._head * 2 >= len(self._items):
            del self._items[: self._head]
            self._head = 0
        # Let go of last, when all is in order again: its __del__ may come back in here.
        return item

    def _forget_read(self) -> None:
        """Drop what every living reader has read."""
        if len(self._readers) == 1 and (only := self._readers[0]()) is not None:
            while self._first < only._cursor:
                self._drop_first()
            return
        readers = [reader for ref in self._readers if (reader := ref()) is not None]
        if len(readers) < len(self._readers):
            self._readers = [weakref.ref(reader) for reader in readers]
        lowest = min((reader._cursor for reader in readers), default=self._end)
        while self._first < lowest:
            self._drop_first()


class RunLog(Log[T]):
    """A log that keeps what was read, bounded in bytes, whose :meth:`append` takes no lock.

    An item is put into the list first; who waits, and a threshold, are looked at afterwards.
    Who parks or closes does so first, and looks at the list afterwards. So one of the two always
    sees the other (operations of a list are atomic), and the lock is for the rare case.

    Garbage collection and signal handlers run anybody's code at any time, also in the thread that
    holds the lock; that code may append and close.

    Args:
        max_bytes: Most bytes kept, but for the newest item, and a few more for a while: sizes
            are counted now and then, and must not change.
        sizes: Bytes of so many items together.

    Attributes:
        is_plain: For whoever appends: that nothing has to be looked at before. It stands here
            because one look-up less is a tenth of emitting a token.
    """

    __slots__ = (
        "_check_at",
        "_closed_end",
        "_counted",
        "_is_tidying",
        "_limit",
        "_shift",
        "_sizes_of",
        "_stride",
        "_version",
        "is_plain",
    )

    def __init__(self, *, max_bytes: int, sizes: Callable[[list[T]], int]) -> None:
        _check_bound("max_bytes", max_bytes)
        super().__init__(max_items=sys.maxsize, keep_read=True)
        self._limit = max_bytes
        self._sizes_of = sizes
        # Item number n stands at _items[n - _shift].
        self._shift = 0
        # Items up to here are in _bytes.
        self._counted = 0
        # After how many small items, or characters of one, sizes are counted again.
        self._stride = min(max(max_bytes // 4096, 1), 256)
        # The length from which on attend() has to be called. -1 as soon as the log is being closed:
        # whoever appends from then on looks again, and waits for the lock.
        self._check_at = self._stride
        self._is_tidying = False
        self._closed_end = 0
        # Odd while items are being dropped, and once the log is closed: then what was read without
        # the lock is not to be trusted.
        self._version = 0
        self.is_plain: bool = True

    @property
    def end(self) -> int:
        """The number that the next item gets."""
        with self._lock:
            return self._end

    def append(self, item: T, weight: int = 0) -> bool:
        """Add an item and wake who waits for it; ``False`` if the log is closed.

        Args:
            weight: About the bytes of the item: the sizes of large ones are counted sooner.
        """
        items = self._items
        items.append(item)
        if self._parked:
            self.wake()
        return len(items) + weight <= self._check_at or self.attend(item)

    def attend(self, item: T) -> bool:
        """Do what an append asks for once the threshold is passed; the item is in the list."""
        with self._lock:
            if self._check_at < 0:
                return not self._take_back(item)
            # Called in the midst of itself, by a finalizer: the outer call does it.
            if not self._is_tidying:
                self._is_tidying = True
                try:
                    self._make_room()
                finally:
                    self._is_tidying = False
        return True

    def close(self, last: T | None = None) -> None:
        """Append *last*, then let readers end behind it."""
        with self._lock:
            if self._check_at < 0:
                return
            self._check_at = -1
            self._version |= 1
            if last is not None:
                self._items.append(last)
            place = len(self._items)
            # Others may have appended behind it: their attend() finds out.
            while last is not None and self._items[place - 1] is not last:
                place -= 1
            self._closed_end = self._shift + place
            # Last of all: a finalizer may look at it in between.
            self._closed = True
        self.wake()

    def read(self, cursor: int, limit: int) -> tuple[int, list[T], int]:
        """Return items from *cursor* on, so many at most.

        Returns:
            The number of the first, which is higher than *cursor* if some are gone; the items;
            how many more there are.
        """
        # On a lock, acquire and release take half the time of "with".
        self._lock.acquire()
        try:
            number = max(cursor, self._first)
            begin = number - self._shift
            end = self._closed_end - self._shift if self._closed else len(self._items)
            until = begin + limit
            if until >= end:
                return number, cast("list[T]", self._items[begin:end]), 0
            return number, cast("list[T]", self._items[begin:until]), end - until
        finally:
            self._lock.release()

    def park(self, waiter: Waiter | ThreadWaiter, cursor: int) -> bool:
        """Have *waiter* woken by the next item; ``False`` if there is one or will be none."""
        self._parked.append(waiter)
        # In this order: _drop() may make the log look longer for a moment, but never shorter.
        if not self._closed and len(self._items) + self._shift <= cursor:
            return True
        self.unpark(waiter)
        return False

    # Everything below is called with the lock held.

    @property
    def _end(self) -> int:
        return self._closed_end if self._closed else len(self._items) + self._shift

    def _take_back(self, item: T) -> bool:
        """Take an item out again that came behind the last one."""
        items = self._items
        # While it is being closed only a finalizer or signal handler comes here: its item is
        # behind everything that close() has looked at.
        last = self._closed_end - self._shift if self._closed else 0
        for place in range(len(items) - 1, last - 1, -1):
            if items[place] is item:
                del items[place]
                return True
        return False

    def _make_room(self) -> None:
        items = cast("list[T]", self._items)
        newest = len(items)
        self._bytes += self._sizes_of(items[self._counted : newest])
        self._counted = newest
        head = self._head
        while self._bytes > self._limit and head < newest - 1:
            self._bytes -= self._sizes_of(items[head : head + 1])
            head += 1
        gone = self._drop(head) if head > self._head else None
        check_at = len(items) + self._stride
        # It may have been closed meanwhile; between these two lines it can't be.
        if self._check_at >= 0:
            self._check_at = check_at
        # Let go of last, when all is in order again: a __del__ may come back in here.
        del gone

    def _drop(self, head: int) -> list[T | None]:
        """Drop what stands before a place, and return it."""
        items = self._items
        self._version |= 1
        gone = items[self._head : head]
        items[self._head : head] = [None] * len(gone)
        self._first += len(gone)
        self._head = head
        if head >= _COMPACT_AT and head * 2 >= len(items):
            before = slice(head)
            # Nothing that may run foreign code stands between these lines.
            self._shift += head
            del items[before]
            self._head = 0
            self._counted -= head
        if self._check_at >= 0:
            self._version += 1
        return gone


class Reader(Generic[T]):
    """One cursor over a log: an asynchronous iterator over its items.

    Made by :meth:`Log.reader`. Iteration ends when the log is closed and read to its end, or
    when the reader is closed. Cancellation passes through and loses no item. One task
    iterates at a time; any task or thread may close.
    """

    def __init__(self, log: Log[T], overflow: Overflow, cursor: int) -> None:
        self._log = log
        self._overflow = overflow
        self._cursor = cursor
        self._closed = False
        self._in_a_row = 0
        self._missed = 0

    def __repr__(self) -> str:
        return f"<Reader at {self._cursor} of {self._log!r}, missed {self._missed}>"

    @property
    def missed(self) -> int:
        """How many items were dropped before this reader got to them."""
        with self._log._lock:
            if self._closed:
                return self._missed
            return self._missed + max(0, self._log._first - self._cursor)

    @property
    def lag(self) -> int:
        """How many items wait to be read, those it has missed among them."""
        with self._log._lock:
            return self._log._end - self._cursor

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        """Return the next item, waiting for it.

        Raises:
            StreamLagError: Items were missed and *overflow* is ``"error"``; reading on goes on
                with the oldest item kept.
        """
        while True:
            if self._in_a_row >= _YIELD_EVERY:
                self._in_a_row = 0
                await checkpoint()
            if not self._is_ready():
                await self._park()
            with self._log._lock:
                if self._closed:
                    raise StopAsyncIteration
                if self._cursor < self._log._first:
                    self._skip_missed()
                if self._cursor < self._log._end:
                    return self._take()
                if self._log._closed:
                    raise StopAsyncIteration

    def close(self) -> None:
        """End the iteration, also one that waits now. Closing twice is harmless."""
        log = self._log
        with log._lock:
            self._missed = self.missed
            self._closed = True
            log._readers = [ref for ref in log._readers if ref() not in (None, self)]
            if not log._keep_read:
                log._forget_read()
        log.wake()

    def _is_ready(self) -> bool:
        return self._cursor < self._log._end or self._closed or self._log._closed

    def _take(self) -> T:
        log = self._log
        item = log._items[log._head + self._cursor - log._first]
        self._cursor += 1
        self._in_a_row += 1
        if not log._keep_read:
            log._forget_read()
        return cast("T", item)

    def _skip_missed(self) -> None:
        missed = self._log._first - self._cursor
        self._missed += missed
        self._cursor = self._log._first
        if self._overflow == "error":
            raise StreamLagError(missed)

    async def _park(self) -> None:
        """Wait until something is appended or closed; the waking is only a hint."""
        log = self._log
        waiter = new_waiter()
        with log._lock:
            if self._is_ready():
                return
            log._parked.append(waiter)
        self._in_a_row = 0
        try:
            await waiter.wait()
        finally:
            with log._lock:
                log.unpark(waiter)


# Waiting for another thread.


class Waiter(Protocol):
    """Something one task waits for and any thread may wake, at most once."""

    def wake(self) -> None:
        """Let the waiting task go on. Never blocks or raises; more than once is harmless."""
        ...

    def wait(self) -> Awaitable[None]:
        """Wait until somebody calls :meth:`wake`."""
        ...

    def renew(self) -> bool:
        """Be ready to be waited for again; ``False`` if that takes a new waiter.

        Somebody late may wake it for what it waited for before: the waking is only a hint.
        """
        ...


def new_waiter() -> Waiter:
    """Return a waiter for the event loop that runs now, asyncio or trio."""
    loop = asyncio._get_running_loop()
    return _TrioWaiter() if loop is None or _is_trio_guest() else _AsyncioWaiter(loop)


def _is_trio_guest() -> bool:
    """Trio may run as a guest inside an asyncio loop; its tasks are no asyncio tasks."""
    return asyncio.current_task() is None


class _AsyncioWaiter:
    __slots__ = ("_future", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._future: asyncio.Future[None] = loop.create_future()

    def wake(self) -> None:
        if asyncio._get_running_loop() is self._loop:
            future = self._future
            if not future.done():
                future.set_result(None)
            return
        try:
            self._loop.call_soon_threadsafe(self._settle)
        except RuntimeError:
            # The loop is closed, so nobody waits any more.
            return

    def _settle(self) -> None:
        if not self._future.done():
            self._future.set_result(None)

    def wait(self) -> Awaitable[None]:
        return self._future

    def renew(self) -> bool:
        loop = self._loop
        if asyncio._get_running_loop() is not loop:
            return False
        self._future = loop.create_future()
        return True


class _TrioWaiter:
    __slots__ = ("_closed", "_event", "_token")

    def __init__(self) -> None:
        import trio

        self._event = trio.Event()
        self._token = trio.lowlevel.current_trio_token()
        self._closed: type[Exception] = trio.RunFinishedError

    def wake(self) -> None:
        try:
            self._token.run_sync_soon(self._event.set)
        except self._closed:
            # The run is over, so nobody waits any more.
            return

    def wait(self) -> Awaitable[None]:
        return self._event.wait()

    def renew(self) -> bool:
        return False


class ThreadWaiter:
    """Something one thread waits for and any thread may wake, at most once."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        # A bare lock: garbage collection may call wake() at any time, also while this very
        # thread is inside one of threading's classes.
        self._lock = _thread.allocate_lock()
        self._lock.acquire()

    def wake(self) -> None:
        try:
            self._lock.release()
        except RuntimeError:
            # It has been woken already.
            return

    def wait_in_thread(self, timeout: float | None = None) -> bool:
        """Wait, so many seconds at most; ``False`` if nobody called :meth:`wake`."""
        seconds = -1 if timeout is None else min(max(timeout, 0.0), _thread.TIMEOUT_MAX)
        return self._lock.acquire(timeout=seconds)


async def checkpoint() -> None:
    """Let other tasks run, and be cancelled."""
    if asyncio._get_running_loop() is None or _is_trio_guest():
        await anyio.sleep(0)  # noqa: ASYNC115 - the import of anyio.lowlevel costs 2 ms
    else:
        # A tenth of the time of anyio's.
        await asyncio.sleep(0)


def in_event_loop() -> bool:
    """Tell whether this thread runs an event loop, which must not be kept waiting."""
    if asyncio._get_running_loop() is not None:
        return True
    trio: Any = sys.modules.get("trio")
    return trio is not None and bool(trio.lowlevel.in_trio_run())


def _check_bound(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, not {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, not {value!r}")
