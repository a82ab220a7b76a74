"""Those who follow a run, each with a cursor of its own."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, ClassVar, Final, Generic, Literal, Self, TypeVar, cast

import anyio

from callbackkit.buffer import ThreadWaiter, Waiter, checkpoint, in_event_loop, new_waiter
from callbackkit.errors import StreamLagError
from callbackkit.streaming.events import Entry, Marker, Span, StreamEvent, stream_event
from callbackkit.streaming.state import RunState
from callbackkit.wire.special_tokens import TokenFormat

__all__ = [
    "EventReader",
    "ReaderOverflow",
    "SyncTokenReader",
    "TokenReader",
]

ReaderOverflow = Literal["coalesce", "block", "error"]
"""What happens when a reader is more than *max_lag* entries behind."""

T = TypeVar("T")

# Entries taken out of the log at a time, and read in a row before other tasks get a turn.
# Taking one at a time would cost as much as all the rest (tests/benchmarks, "burst").
_BATCH: Final = 1024

# Entries joined at a time for a reader that is behind.
_MOST_JOINED: Final = 65_536

_NOT_ALONE: Final = "another task waits for this reader: give each task a reader of its own"


class _Reader(Generic[T]):
    """A cursor over the log of a run, and what is taken out of it but not handed out yet."""

    _shows_text: ClassVar[bool] = False

    __slots__ = (
        "__weakref__",
        "_batch",
        "_batch_size",
        "_cursor",
        "_in_a_row",
        "_is_closed",
        "_is_fast",
        "_is_stalled",
        "_is_told",
        "_is_waiting",
        "_log",
        "_max_lag",
        "_missed",
        "_overflow",
        "_raise_errors",
        "_run",
        "_waiter",
        "stall_timeout",
    )

    def __init__(
        self,
        run: RunState,
        overflow: ReaderOverflow,
        max_lag: int,
        stall_timeout: float,
        *,
        raise_errors: bool,
        cursor: int = 0,
    ) -> None:
        self._run = run
        self._log = run.log
        self._overflow = overflow
        self._max_lag = max_lag
        # Seconds that producers wait for it.
        self.stall_timeout: float = stall_timeout
        self._raise_errors = raise_errors
        self._cursor = cursor
        # The next one stands last.
        self._batch: list[T] = []
        self._in_a_row = 0
        self._missed = 0
        self._is_stalled = False
        self._is_closed = False
        self._is_told = False
        self._is_waiting = False
        self._waiter: Waiter | None = None
        # Entries of a plain log can be handed out as they are (tests/benchmarks, "burst").
        self._is_fast = (
            overflow == "coalesce"
            and self._shows_text
            and run.format.is_plain
            and run.idle_timeout is None
        )
        # Those that are waited for, or must not be behind, take one at a time: what was taken
        # out is still to be read.
        self._batch_size = min(max_lag, _BATCH) if overflow == "coalesce" else 1

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else f"at {self.position}"
        return f"<{type(self).__name__} {state}, {self.lag} behind, missed {self._missed}>"

    @property
    def position(self) -> int:
        """The number of the last entry handed out, 0 before the first; about, when it joins."""
        return self._cursor - len(self._batch)

    @property
    def lag(self) -> int:
        """How many entries wait to be read, counting those it has missed but was not told of."""
        return self._log.end - self.position

    @property
    def missed(self) -> int:
        """How many entries it was told that it has missed."""
        return self._missed

    def close(self) -> None:
        """End the iteration, also one that waits now. Closing twice is harmless."""
        self._is_closed = True
        # A new one: somebody may be about to pop from the other, in another thread.
        self._batch = []
        self._log.wake()
        self._run.room_made()

    # What a producer asks that waits for readers.

    def holds_up(self) -> bool:
        """Tell whether producers have to wait for this reader."""
        return not self._is_stalled and not self._is_closed and self.lag >= self._max_lag

    def give_up(self) -> None:
        """Wait for this reader no longer, until it reads again."""
        self._is_stalled = True

    # Reading.

    @abstractmethod
    def _shown(self, number: int, entries: list[Entry], is_behind: bool) -> list[T]:
        """Return what is handed out for entries, the first of which has this number."""

    @abstractmethod
    def _gap(self, number: int, missed: int) -> T:
        """Return what is handed out for entries that are gone; the last has this number."""

    def _fill(self) -> bool:
        """Take out what there is; ``False`` if there is nothing, or nothing to be shown.

        Raises:
            StreamLagError: It is too far behind, and *overflow* is ``"error"``.
        """
        if self._is_fast:
            # Without the lock. It may be wrong if something was dropped meanwhile or the log is
            # closed, which the version tells, or plain no more, which comes before what is not.
            log = self._log
            version = log._version
            cursor = self._cursor
            begin = cursor - log._shift
            count = len(log._items) - begin
            if 0 < count <= self._batch_size and cursor >= log._first:
                entries: Any = log._items[begin:]
                if log.is_plain and not version & 1 and version == log._version:
                    self._take(cursor, entries)
                    return self._hand_out(entries)
        return not self._is_closed and self._fill_slowly()

    def _fill_slowly(self) -> bool:
        before = self._cursor
        if self._overflow == "coalesce":
            number, entries, is_behind = self._read_unbounded()
        else:
            number, entries, is_behind = *self._read_bounded(), False
            before = self._cursor
        if not entries:
            return False
        self._take(number, entries)
        shown = self._shown(number, entries, is_behind)
        if number > before:
            self._missed += number - before
            shown.insert(0, self._gap(number, number - before))
        if not shown and self._overflow == "block":
            self._run.room_made()
        return self._hand_out(shown)

    def _take(self, number: int, entries: list[Entry]) -> None:
        count = len(entries)
        self._cursor = number + count
        self._in_a_row += count

    def _hand_out(self, batch: list[T]) -> bool:
        if len(batch) > 1:
            batch.reverse()
        self._batch = batch
        if self._is_closed:
            # Just now, by another thread, which may have emptied the batch before.
            self._batch = []
        return bool(self._batch)

    def _read_unbounded(self) -> tuple[int, list[Entry], bool]:
        """Return entries, the number of the first, and whether the reader is behind."""
        log = self._log
        cursor = self._cursor
        number, entries, more = log.read(cursor, self._batch_size)
        if not more or not self._shows_text or len(entries) + more <= self._max_lag:
            return number, entries, False
        number, entries, _ = log.read(cursor, _MOST_JOINED)
        return number, entries, True

    def _read_bounded(self) -> tuple[int, list[Entry]]:
        """Read as a reader does that producers wait for, or that must not be behind."""
        log = self._log
        cursor = self._cursor
        # The end of the run has a place of its own.
        lag = log.end - cursor - log.is_closed
        if self._is_stalled:
            self._is_stalled = False
            cursor += max(lag - self._max_lag, 0)
        elif self._overflow == "error" and lag > self._max_lag:
            missed = lag - self._max_lag
            self._cursor += missed
            self._missed += missed
            raise StreamLagError(missed)
        number, entries, _ = log.read(cursor, self._batch_size)
        return number, entries

    def _ending(self) -> BaseException | None:
        """Return what to raise at the end: nothing is left, and nothing more will come."""
        if self._is_closed or self._is_told or not self._raise_errors:
            return None
        self._is_told = True
        return self._run.ending()

    @property
    def _is_over(self) -> bool:
        return self._is_closed or (self._log.is_closed and self._cursor >= self._log.end)


class _AsyncReader(_Reader[T]):
    """A reader in a task."""

    __slots__ = ()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        _type: type[BaseException] | None,
        _exc: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.close()

    async def aclose(self) -> None:
        """End the iteration, also one that waits now. Closing twice is harmless."""
        self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:  # noqa: C901, PLR0912 - the hot path
        """Return the next item, waiting for it.

        Raises:
            Exception: The run failed: its own exception, once, behind the END.
            StreamCancelledError: The run was cancelled; likewise.
            TimeoutError: The run took too long, or was silent too long; likewise.
            StreamLagError: It is too far behind, and *overflow* is ``"error"``. Reading on goes
                on with the last *max_lag* entries.
        """
        batch = self._batch
        if batch:
            item = batch.pop()
            if self._overflow == "block":
                self._run.room_made()
            return item
        if self._is_waiting:
            raise RuntimeError(_NOT_ALONE)
        log = self._log
        # One token that this reader waits for, written out (tests/benchmarks, "latency").
        if self._is_fast and len(log._items) + log._shift == self._cursor:
            waiter = self._waiter
            if waiter is None or not waiter.renew():
                waiter = self._waiter = new_waiter()
            if log.park(waiter, self._cursor):
                self._in_a_row = 0
                self._is_waiting = True
                try:
                    if not self._is_closed:
                        await waiter.wait()
                except BaseException:
                    log.unpark(waiter)
                    raise
                finally:
                    self._is_waiting = False
                version = log._version
                cursor = self._cursor
                entries: Any = log._items[cursor - log._shift :]
                # More than one are handed out by the way below, all of them at once.
                if len(entries) == 1:
                    is_same = not version & 1 and version == log._version
                    if is_same and log.is_plain and cursor >= log._first and not self._is_closed:
                        self._cursor = cursor + 1
                        return cast("T", entries[0])
        if self._in_a_row >= _BATCH or not self._fill():
            await self._more()
        batch = self._batch
        if not batch:
            # Another thread has closed this reader just now.
            raise StopAsyncIteration
        item = batch.pop()
        if self._overflow == "block":
            self._run.room_made()
        return item

    def batches(self) -> AsyncIterator[list[T]]:
        """Iterate over lists of what waits to be read, never empty ones.

        Many times faster than one by one when tokens come in bursts, for whoever joins them
        anyway.
        """
        return _Batches(self)

    async def _more(self) -> None:
        """Wait until there is something to hand out, or raise.

        Written out for speed (tests/benchmarks, "every 16"): each coroutine less is cheaper.
        """
        self._is_waiting = True
        log = self._log
        try:
            while True:
                if self._in_a_row >= _BATCH:
                    self._in_a_row = 0
                    await checkpoint()
                is_empty = len(log._items) + log._shift == self._cursor
                if not is_empty or log._closed or self._is_closed:
                    if self._fill():
                        return
                    if self._is_over:
                        error = self._ending()
                        raise StopAsyncIteration if error is None else error
                if self._run.idle_timeout is not None:
                    await self._wait_a_while()
                    continue
                waiter = self._waiter
                if waiter is None or not waiter.renew():
                    waiter = self._waiter = new_waiter()
                if not log.park(waiter, self._cursor):
                    continue
                self._in_a_row = 0
                try:
                    # Whoever closes this reader sets the mark first and wakes who is parked then.
                    if not self._is_closed:
                        await waiter.wait()
                except BaseException:
                    log.unpark(waiter)
                    raise
        finally:
            self._is_waiting = False

    async def _wait_a_while(self) -> None:
        """Wait for the log to grow, as long as the run may be silent."""
        log = self._log
        waiter = new_waiter()
        if not log.park(waiter, self._cursor):
            return
        self._in_a_row = 0
        try:
            if not self._is_closed:
                with anyio.move_on_after(max(self._run.idle_left() or 0.0, 0.0)):
                    await waiter.wait()
        finally:
            log.unpark(waiter)
        self._run.end_if_silent()


class _Batches(Generic[T]):
    """What :meth:`_AsyncReader.batches` returns."""

    __slots__ = ("_reader",)

    def __init__(self, reader: _AsyncReader[T]) -> None:
        self._reader = reader

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[T]:
        reader = self._reader
        if reader._is_waiting:
            raise RuntimeError(_NOT_ALONE)
        if not reader._batch:
            await reader._more()
        batch, reader._batch = reader._batch, []
        if not batch:
            # Another thread has closed the reader just now.
            raise StopAsyncIteration
        batch.reverse()
        if reader._overflow == "block":
            reader._run.room_made()
        return batch


class _Tokens(_Reader[str]):
    """Shows a run as ordinary and special tokens."""

    __slots__ = ()

    _shows_text = True

    def _shown(self, number: int, entries: list[Entry], is_behind: bool) -> list[str]:
        if self._is_fast and self._log.is_plain:
            # All text, but for the end of the run.
            texts = cast("list[str]", entries)
            if type(entries[-1]) is str:
                return ["".join(texts)] if is_behind else texts
            if is_behind and len(entries) > 1:
                return ["".join(texts[:-1]), *_pieces(entries[-1:], self._run.format)]
        if is_behind:
            return _joined(entries, self._run.format)
        return _pieces(entries, self._run.format)

    def _gap(self, number: int, missed: int) -> str:
        return self._run.format.special("gap", params={"missed": missed})


class TokenReader(_Tokens, _AsyncReader[str]):
    """The tokens of a run: ``str``, and :class:`~callbackkit.SpecialToken` for its structure.

    Returned by :meth:`~callbackkit.Callback.aiter`. It begins where the run began. One task
    iterates at a time; any task or thread may close. Leaving it with ``break`` is enough: the
    run does not hold its readers.
    """

    __slots__ = ()


class SyncTokenReader(_Tokens):
    """The tokens of a run, for a thread that waits for them.

    Returned by :meth:`~callbackkit.Callback.iter_sync`.
    """

    __slots__ = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _exc: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        """Return the next token, waiting for it; raises as :meth:`TokenReader.__anext__`.

        Raises:
            RuntimeError: It would have to wait in a thread that runs an event loop.
        """
        batch = self._batch
        while not batch:
            if not self._fill():
                if self._is_over:
                    error = self._ending()
                    raise StopIteration if error is None else error
                self._wait()
            batch = self._batch
        item = batch.pop()
        if self._overflow == "block":
            self._run.room_made()
        return item

    def _wait(self) -> None:
        if in_event_loop():
            raise RuntimeError("iter_sync() would block the event loop of this thread: use aiter()")
        log = self._log
        waiter = ThreadWaiter()
        left = self._run.idle_left()
        if not log.park(waiter, self._cursor):
            return
        try:
            if self._is_closed or waiter.wait_in_thread(left):
                return
        finally:
            log.unpark(waiter)
        self._run.end_if_silent()


class EventReader(_AsyncReader[StreamEvent]):
    """The entries of a run with number, span and data; never joined.

    Returned by :meth:`~callbackkit.Callback.events`; otherwise like :class:`TokenReader`.
    """

    __slots__ = ("_nodes", "_types")

    _types: frozenset[str] | None
    _nodes: frozenset[str] | None

    def filter(self, types: frozenset[str] | None, nodes: frozenset[str] | None) -> Self:
        """Show only events of these types and nodes, and the end and gaps in any case."""
        self._types = types
        self._nodes = nodes
        return self

    def _shown(self, number: int, entries: list[Entry], is_behind: bool) -> list[StreamEvent]:
        events = [stream_event(seq, entry) for seq, entry in enumerate(entries, number + 1)]
        if self._types is None and self._nodes is None:
            return events
        return [event for event in events if self._is_wanted(event)]

    def _is_wanted(self, event: StreamEvent) -> bool:
        if event.type == "stream_end":
            return True
        if self._types is not None and event.type not in self._types:
            return False
        return self._nodes is None or event.node in self._nodes

    def _gap(self, number: int, missed: int) -> StreamEvent:
        token = self._run.format.special("gap", params={"missed": missed})
        data: Any = {"missed": missed}
        return StreamEvent(number, "gap", token, params=token.params, data=data)


# Entries as tokens.


def _pieces(entries: list[Entry], token_format: TokenFormat) -> list[str]:
    """Return each ordinary token as it is formatted, each special one as it is."""
    text = None if token_format.is_plain else token_format.text
    pieces: list[str] = []
    for entry in entries:
        if isinstance(entry, Marker):
            if entry.token is not None:
                pieces.append(entry.token)
            continue
        token = entry if isinstance(entry, str) else entry[0]
        pieces.append(token if text is None else text(token))
    return pieces


def _joined(entries: list[Entry], token_format: TokenFormat) -> list[str]:
    """Join adjacent text of a span, each token formatted first."""
    text = None if token_format.is_plain else token_format.text
    joined: list[str] = []
    parts: list[str] = []
    span: Span | None = None
    for entry in entries:
        if isinstance(entry, Marker):
            _flush(parts, joined)
            if entry.token is not None:
                joined.append(entry.token)
            continue
        token, of = (entry, None) if isinstance(entry, str) else entry
        if of is not span and not _is_one(of, span):
            _flush(parts, joined)
        span = of
        parts.append(token if text is None else text(token))
    _flush(parts, joined)
    return joined


def _is_one(one: Span | None, other: Span | None) -> bool:
    """Tell whether two tokens come from one span, or one node of which no span is known."""
    if one is None or other is None:
        return False
    return one.number == other.number and one.node == other.node


def _flush(parts: list[str], joined: list[str]) -> None:
    if parts:
        joined.append("".join(parts))
        parts.clear()
