"""The stream object of one run, which tokens are fed to."""

from __future__ import annotations

import math
import time
from collections.abc import (
    AsyncIterable,
    Awaitable,
    Callable,
    Collection,
    Coroutine,
    Mapping,
)
from contextlib import suppress
from secrets import token_hex
from types import TracebackType
from typing import Any, Final, Literal, NoReturn, Self, TypeVar

import anyio

from callbackkit.buffer import checkpoint
from callbackkit.errors import StreamCancelledError, StreamClosedError
from callbackkit.streaming.events import Marker, RunStatus, Span
from callbackkit.streaming.readers import (
    EventReader,
    ReaderOverflow,
    SyncTokenReader,
    TokenReader,
)
from callbackkit.streaming.scope import (
    Scope,
    current_scope,
    enter,
    leave,
    leave_ended,
    span_in,
    using,
)
from callbackkit.streaming.state import RunState
from callbackkit.wire.special_tokens import TokenFormat

__all__ = ["Callback", "NodeSpan", "current_callback", "emit_token", "using"]

T = TypeVar("T")
R = TypeVar("R", TokenReader, SyncTokenReader, EventReader)

# acall() lets other tasks run after so many tokens, or so many seconds; it looks at the clock
# every few tokens.
_YIELD_EVERY: Final = 64
_YIELD_AFTER: Final = 0.001
_LOOK_EVERY: Final = 8

# Seconds that the stream given to pipe() may take to close.
_CLOSE_TIMEOUT: Final = 5.0

_KINDS: Final = frozenset({"token", "node_start", "node_name", "node_end", "stream_end", "gap"})
_OVERFLOWS: Final = ("coalesce", "block", "error")
_STATUSES: Final = ("ok", "error", "cancelled", "timeout")

SpanStatus = Literal["ok", "error", "cancelled"]
_SPAN_STATUSES: Final = ("ok", "error", "cancelled")


class Callback:
    """One run: tokens go in from any thread, any number of readers follow.

    Every reader gets everything, in order, from the beginning of the run, then exactly one
    END, and then the exception with which the run failed, if it did. The run ends with
    :meth:`close`, :meth:`fail` or :meth:`cancel`, whichever comes first; ``async with`` does
    one of these in any case.

    Args:
        identifier: Stands in every special token.
        special_token_format: How a special token is written; made of ``{identifier}``,
            ``{token}`` and ``{params}``.
        token_format: How ordinary tokens are shown by :meth:`aiter`.
        history_bytes: Bytes of text that are kept for readers that are behind or come later.
            What had to be dropped is a gap to whoever missed it.
        idle_timeout: Seconds of silence after which a waiting reader ends the run with the
            status ``timeout``: for producers that may vanish without a word.
        legacy_empty_params: Write ``<graphai:END:>`` as GraphAI does, instead of
            ``<graphai:END>``.

    Raises:
        ValueError: A format that can't be told apart from text, or a size that makes no sense.
    """

    # Faster than a __dict__ (tests/benchmarks, "burst"); subclasses have one.
    __slots__ = (
        "__weakref__",
        "_entered",
        "_format",
        "_log",
        "_open",
        "_run",
        "_run_id",
        "_spans",
        "_unyielded",
        "_yielded_at",
    )

    def __init__(
        self,
        identifier: str = "graphai",
        special_token_format: str = "<{identifier}:{token}:{params}>",
        token_format: str = "{token}",
        *,
        history_bytes: int = 1_048_576,
        idle_timeout: float | None = None,
        legacy_empty_params: bool = False,
    ) -> None:
        if idle_timeout is not None:
            _check_seconds("idle_timeout", idle_timeout)
        _check_count("history_bytes", history_bytes)
        self._format = TokenFormat(
            identifier,
            special_token_format,
            token_format,
            legacy_empty_params=legacy_empty_params,
        )
        self._run = RunState(self._format, history_bytes, idle_timeout)
        self._log = self._run.log
        self._run_id: str | None = None
        self._spans = 0
        self._open: dict[Span, None] = {}
        self._entered: list[Scope] = []
        self._unyielded = 0
        self._yielded_at = 0.0

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.status or 'running'}, {self.last_seq} entries>"

    def __bool__(self) -> bool:
        """Be true, whatever a subclass counts: GraphAI asks ``if callback``."""
        return True

    # What it is.

    @property
    def format(self) -> TokenFormat:
        """How special tokens are written."""
        return self._format

    @property
    def identifier(self) -> str:
        """Stands in every special token."""
        return self._format.identifier

    @property
    def special_token_format(self) -> str:
        """How a special token is written."""
        return self._format.special_token_format

    @property
    def token_format(self) -> str:
        """How ordinary tokens are shown by :meth:`aiter`."""
        return self._format.token_format

    @property
    def run_id(self) -> str:
        """The name of the run: 32 hexadecimal digits that nobody can guess."""
        if self._run_id is None:
            with self._log._lock:
                self._run_id = self._run_id or token_hex(16)
        return self._run_id

    @property
    def status(self) -> RunStatus | None:
        """How the run ended; ``None`` while it goes on."""
        return self._run.status

    @property
    def is_closed(self) -> bool:
        """The run has ended, in whatever way."""
        return self._run.status is not None

    @property
    def error(self) -> BaseException | None:
        """What readers are told behind the END; ``None`` if there is nothing to tell."""
        return self._run.error

    @property
    def last_seq(self) -> int:
        """The number of the newest entry, 0 before the first."""
        return self._log.end

    # Feeding it.

    def __call__(self, token: str, node_name: str | None = None) -> None:
        """Emit a token, from any thread.

        On the thread of an event loop it never blocks. In another thread it waits for readers
        with ``overflow="block"``.

        Args:
            token: A piece of text. A special token given here is ordinary text.
            node_name: Node that it comes from, if it is not the one that runs.

        Raises:
            StreamClosedError: The run has ended.
            StreamCancelledError: The run was cancelled; let it end the producer.
        """
        log = self._log
        if node_name is None and type(token) is str and log.is_plain:
            # RunLog.append() written out (tests/benchmarks, "burst").
            items = log._items
            items.append(token)
            if log._parked:
                log.wake()
            if len(token) + len(items) > log._check_at and not log.attend(token):
                raise self._run.closed_error()
            return
        text = _text(token)
        run = self._run
        if run.has_blockers:
            run.wait_for_room_in_thread()
        self._put(text, node_name)

    async def acall(self, token: str, node_name: str | None = None) -> None:
        """Emit a token, and let other tasks run every now and then.

        Waits for readers with ``overflow="block"``; otherwise like calling the callback.
        """
        run = self._run
        if node_name is None and type(token) is str and self._log.is_plain:
            if not self._log.append(token, len(token)):
                raise run.closed_error()
        else:
            text = _text(token)
            if run.has_blockers:
                await run.wait_for_room()
            self._put(text, node_name)
        count = self._unyielded = self._unyielded + 1
        if not count % _LOOK_EVERY and self._is_time_to_yield():
            await checkpoint()
            self._yielded_at = time.monotonic()

    def _is_time_to_yield(self) -> bool:
        if self._unyielded < _YIELD_EVERY and time.monotonic() - self._yielded_at < _YIELD_AFTER:
            return False
        self._unyielded = 0
        return True

    def _put(self, token: str, node_name: str | None) -> None:
        span = span_in(self) if node_name is None else self._span_named(node_name)
        if span is None:
            self._run.append(token, len(token))
        elif span.is_active:
            self._run.append((token, span), len(token))
        elif self.is_closed:
            raise self._run.closed_error()

    async def pipe(
        self, iterator: AsyncIterable[T], key: Callable[[T], str | None] | None = None
    ) -> str:
        """Emit what an asynchronous iterator yields, and return all of it joined.

        The iterator is closed in any case.

        Args:
            iterator: The stream of a language model's client, say.
            key: Gets the text out of what is yielded; ``None`` and ``""`` are passed over.
        """
        if not isinstance(iterator, AsyncIterable):
            raise TypeError(f"pipe() takes an asynchronous iterator, not {iterator!r}")
        parts: list[str] = []
        stream = aiter(iterator)
        try:
            async for chunk in stream:
                token = _text_of(chunk, key)
                if token:
                    await self.acall(token)
                    parts.append(token)
        except BaseException as exc:
            try:
                await _close(stream, iterator)
            except Exception as error:
                # The first error counts, a cancellation above all.
                exc.add_note(f"Closing {iterator!r} failed too: {error!r}")
            raise
        await _close(stream, iterator)
        return "".join(parts)

    def event(self, type: str, data: Any = None) -> None:  # noqa: A002 - the word of the contract
        """Emit an event of the application's own.

        :meth:`events` and the encoders for SSE and NDJSON show it; :meth:`aiter` does not.

        Args:
            type: Its name; those of :class:`~callbackkit.StreamEvent` are taken.
            data: What it carries, best something that JSON knows.
        """
        if not isinstance(type, str) or not type:
            raise TypeError(f"the type of an event is a non-empty str, not {type!r}")
        if type in _KINDS:
            raise ValueError(f"{type!r} is a type of the stream itself: choose another name")
        span = span_in(self)
        self._log.is_plain = False
        if span is None or span.is_active:
            self._append(Marker(type, None, span, data))
        elif self.is_closed:
            raise self._run.closed_error()

    def _append(self, marker: Marker) -> None:
        self._run.append(marker, marker.size)

    # Nodes.

    def start_node(
        self,
        node_name: str,
        active: bool = True,
        params: Mapping[str, object] | None = None,
    ) -> Awaitable[None]:
        """Open a span: what this context emits from here on belongs to it.

        Acts at once; the awaitable is there for symmetry.

        Args:
            node_name: Name of the node.
            active: Whether what the node streams is shown.
            params: Written into the special token.
        """
        enter(self, self._start(node_name, active, params))
        return _DONE

    def end_node(self, node_name: str, *, status: SpanStatus = "ok") -> Awaitable[None]:
        """Close the innermost open span of that name in this context, or else the newest of all.

        Acts at once; the awaitable is there for symmetry.

        Raises:
            ValueError: No span of that name is open.
        """
        if status not in _SPAN_STATUSES:
            raise ValueError(f"status must be one of {', '.join(_SPAN_STATUSES)}, not {status!r}")
        span = span_in(self, node_name) or self._newest(node_name)
        if span is None:
            raise ValueError(f"end_node({node_name!r}): no node of that name is open")
        self._finish(span, status)
        leave_ended()
        return _DONE

    def node(
        self, name: str, *, active: bool = True, params: Mapping[str, object] | None = None
    ) -> NodeSpan:
        """Open a span with ``with`` or ``async with``.

        An exception that leaves the block is told in the span's end, ``status=error`` or
        ``status=cancelled``, and goes on.
        """
        return NodeSpan(self, name, active, params)

    def _start(self, node_name: str, active: bool, params: Mapping[str, object] | None) -> Span:
        token = self._format.special("node_start", node_name, params)
        name = self._format.special("node_name", node_name)
        # First of all: an emit that sees it unset must come from before the span.
        self._log.is_plain = False
        with self._log._lock:
            if self.is_closed:
                raise self._run.closed_error()
            self._spans += 1
            span = Span(self._spans, node_name, is_active=active)
            self._open[span] = None
            if active:
                self._append(Marker("node_start", token, span))
                self._append(Marker("node_name", name, span))
        return span

    def _finish(self, span: Span, status: SpanStatus) -> None:
        params = None if status == "ok" else {"status": status}
        token = self._format.special("node_end", span.node, params)
        with self._log._lock:
            if not span.is_open:
                return
            span.is_open = False
            del self._open[span]
            if span.is_active:
                self._append(Marker("node_end", token, span, status=status))

    def _span_named(self, node_name: str) -> Span:
        """Return the span that a token belongs to which says where it comes from."""
        if not isinstance(node_name, str):
            raise TypeError(f"node_name must be a str, not {node_name!r}")
        self._log.is_plain = False
        return span_in(self, node_name) or self._newest(node_name) or Span(None, node_name)

    def _newest(self, node_name: str) -> Span | None:
        with self._log._lock:
            spans = reversed(self._open)
            return next((span for span in spans if span.node == node_name), None)

    # Ending it: the first one wins.

    def close(self) -> Awaitable[None]:
        """End the run well. Acts at once, from any thread."""
        self._run.end("ok")
        return _DONE

    def fail(self, exc: BaseException) -> Awaitable[None]:
        """End the run with an exception, which its readers are raised. Acts at once."""
        if not isinstance(exc, BaseException):
            raise TypeError(f"fail() takes an exception, not {exc!r}")
        if isinstance(exc, StreamCancelledError):
            self._run.end("cancelled", exc)
        elif isinstance(exc, Exception):
            self._run.end("error", exc)
        else:
            # Nobody else's KeyboardInterrupt or cancellation is to be raised in a reader.
            self.cancel(type(exc).__name__)
        return _DONE

    def cancel(self, reason: str = "") -> Awaitable[None]:
        """End the run and stop its producers: at their next token, or sooner with an owner.

        Acts at once, from any thread.
        """
        self._run.end("cancelled", StreamCancelledError(reason))
        return _DONE

    def end(self, status: RunStatus, error: BaseException | None = None) -> bool:
        """End the run with a status; ``False`` if it had ended already.

        What the other three call. For owners that know more: that it was a timeout, say.

        Args:
            status: How it ended.
            error: What readers are raised behind the END; if it is left out after a cancellation
                or timeout, a new :exc:`StreamCancelledError` or :exc:`TimeoutError`.
        """
        if status not in _STATUSES:
            raise ValueError(f"status must be one of {', '.join(_STATUSES)}, not {status!r}")
        if (status == "ok" and error is not None) or (status == "error" and error is None):
            raise ValueError(
                f"a run that ends with the status {status!r} can't have error={error!r}"
            )
        return self._run.end(status, error)

    def on_end(self, hook: Callable[[], None]) -> Callable[[], None]:
        """Have *hook* called when the run ends, at once if it has; return what undoes that.

        It is called in the thread that ends the run, and must not block or raise.
        """
        return self._run.on_end(hook)

    async def __aenter__(self) -> Self:
        """Own the run: at the end of the block it is closed, failed or cancelled."""
        self._entered.append(enter(self, None))
        return self

    async def __aexit__(
        self,
        _type: type[BaseException] | None,
        exc: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        leave(self._entered.pop())
        if exc is None:
            self._run.end("ok")
        else:
            self.fail(exc)

    # Following it.

    def aiter(
        self,
        *,
        overflow: ReaderOverflow = "coalesce",
        max_lag: int = 1024,
        stall_timeout: float = 30.0,
        raise_errors: bool = True,
    ) -> TokenReader:
        """Follow the run as tokens, from its beginning.

        What it yields is not escaped: text that looks like a special token is told apart by its
        type here, and no more once both are written into a response.

        Args:
            overflow: What happens when this reader is more than *max_lag* entries behind.
                ``"coalesce"``: it gets adjacent text of a span joined. ``"block"``: producers
                wait for it. ``"error"``: it gets a
                :exc:`~callbackkit.errors.StreamLagError`.
            max_lag: Entries.
            stall_timeout: Seconds that producers wait for a reader that does not move; then it
                gets a gap.
            raise_errors: Whether the error of a run that did not end well is raised behind the
                END.
        """
        return self._follow(TokenReader, overflow, max_lag, stall_timeout, raise_errors)

    def iter_sync(
        self,
        *,
        overflow: ReaderOverflow = "coalesce",
        max_lag: int = 1024,
        stall_timeout: float = 30.0,
        raise_errors: bool = True,
    ) -> SyncTokenReader:
        """Follow the run as :meth:`aiter` does, in a thread that waits."""
        return self._follow(SyncTokenReader, overflow, max_lag, stall_timeout, raise_errors)

    def events(
        self,
        *,
        after: int | None = None,
        types: Collection[str] | None = None,
        nodes: Collection[str] | None = None,
        overflow: ReaderOverflow = "coalesce",
        max_lag: int = 1024,
        stall_timeout: float = 30.0,
        raise_errors: bool = True,
    ) -> EventReader:
        """Follow the run entry by entry; nothing is ever joined.

        Args:
            after: Begin behind the entry with this number instead of at the beginning.
            types: Show only events of these types; the end and gaps are shown in any case.
            nodes: Show only what comes from these nodes; likewise.
            overflow: As in :meth:`aiter`; with ``"coalesce"`` it may be behind as far as the
                history goes.
            max_lag: Entries.
            stall_timeout: Seconds.
            raise_errors: As in :meth:`aiter`.
        """
        cursor = self._check_after(after)
        wanted = _names("types", types), _names("nodes", nodes)
        reader = self._follow(
            EventReader, overflow, max_lag, stall_timeout, raise_errors, cursor=cursor
        )
        return reader.filter(*wanted)

    def _check_after(self, after: int | None) -> int:
        if after is None:
            return 0
        if isinstance(after, bool) or not isinstance(after, int):
            raise TypeError(f"after is the number of an event, not {after!r}")
        if not 0 <= after <= self.last_seq:
            raise ValueError(f"after must be 0 to {self.last_seq}, the newest entry, not {after}")
        return after

    def _follow(
        self,
        kind: type[R],
        overflow: ReaderOverflow,
        max_lag: int,
        stall_timeout: float,
        raise_errors: bool,
        cursor: int = 0,
    ) -> R:
        if overflow not in _OVERFLOWS:
            raise ValueError(f"overflow must be one of {', '.join(_OVERFLOWS)}, not {overflow!r}")
        _check_count("max_lag", max_lag)
        _check_seconds("stall_timeout", stall_timeout)
        reader = kind(
            self._run, overflow, max_lag, stall_timeout, raise_errors=raise_errors, cursor=cursor
        )
        if overflow == "block":
            self._run.add_blocker(reader)
        return reader


class NodeSpan:
    """One invocation of a node, opened with ``with`` or ``async with``.

    Returned by :meth:`Callback.node`. Calling it emits a token of this very span, from wherever
    it is called: a thread that was started without the context, say.
    """

    __slots__ = ("_active", "_callback", "_name", "_params", "_scope", "_span")

    def __init__(
        self, callback: Callback, name: str, active: bool, params: Mapping[str, object] | None
    ) -> None:
        self._callback = callback
        self._name = name
        self._active = active
        self._params = params
        self._span: Span | None = None
        self._scope: Scope | None = None

    def __call__(self, token: str) -> None:
        """Emit a token of this span, as calling the callback does."""
        scope = self._enter()
        try:
            self._callback(token)
        finally:
            leave(scope)

    async def acall(self, token: str) -> None:
        """Emit a token of this span, as :meth:`Callback.acall` does."""
        scope = self._enter()
        try:
            await self._callback.acall(token)
        finally:
            leave(scope)

    def __enter__(self) -> Self:
        if self._span is not None:
            raise RuntimeError("a span is opened once: call node() again for the next one")
        self._span = self._callback._start(self._name, self._active, self._params)
        self._scope = enter(self._callback, self._span)
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        exc: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        if self._span is None or self._scope is None:
            return
        leave(self._scope)
        # The run may have ended inside; then there is nobody to tell.
        with suppress(StreamClosedError, StreamCancelledError):
            self._callback._finish(self._span, _status(exc))

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self,
        type_: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.__exit__(type_, exc, traceback)

    def _enter(self) -> Scope:
        span = self._span
        if span is None:
            raise RuntimeError(f"the span of {self._name!r} is not open yet: use it in 'with'")
        if not span.is_open and not self._callback.is_closed:
            raise RuntimeError(f"the span of {self._name!r} has ended: nothing can be added to it")
        return enter(self._callback, span)


class _Done(Coroutine[Any, Any, None]):
    """A coroutine that has nothing left to do, for ever."""

    __slots__ = ()

    def __await__(self) -> Any:
        return iter(())

    def send(self, value: Any, /) -> NoReturn:
        raise StopIteration

    def throw(self, typ: Any, val: Any = None, tb: Any = None, /) -> NoReturn:
        raise typ if val is None else val

    def close(self) -> None:
        return


_DONE: Final = _Done()


def current_callback() -> Callback | None:
    """Return the run that the code at hand works for: the innermost by context."""
    scope = current_scope.get()
    return None if scope is None else scope.callback


def emit_token(token: str) -> None:
    """Emit a token to the run that the code at hand works for; without one do nothing.

    For tools and helpers deep inside a node, which nobody hands a callback. Raises as calling
    the callback does.
    """
    scope = current_scope.get()
    if scope is not None:
        scope.callback(token)


def _status(exc: BaseException | None) -> SpanStatus:
    if exc is None:
        return "ok"
    is_error = isinstance(exc, Exception) and not isinstance(exc, StreamCancelledError)
    return "error" if is_error else "cancelled"


def _text_of(chunk: Any, key: Callable[[Any], str | None] | None) -> str:
    token = chunk if key is None else key(chunk)
    if token is None:
        return ""
    if not isinstance(token, str):
        raise TypeError(f"pipe() got {token!r}, no str: give it a key that gets the text")
    return token


async def _close(*streams: object) -> None:
    """Close streams: generators have aclose(), clients of language models close()."""
    for stream in streams:
        close: Any = getattr(stream, "aclose", None) or getattr(stream, "close", None)
        if callable(close):
            with anyio.move_on_after(_CLOSE_TIMEOUT, shield=True):
                closing = close()
                if isinstance(closing, Awaitable):
                    await closing


def _text(token: object) -> str:
    if type(token) is str:
        return token
    if isinstance(token, str):
        return str.__str__(token)
    raise TypeError(f"a token is a str, not {token!r}")


def _check_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, not {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, not {value!r}")


def _check_seconds(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number of seconds, not {value!r}")
    if math.isnan(value) or value <= 0:
        raise ValueError(f"{name} must be more than 0 seconds, not {value!r}")


def _names(name: str, value: Collection[str] | None) -> frozenset[str] | None:
    if value is None:
        return None
    if isinstance(value, str):
        raise TypeError(f"{name} is a collection of names: [{value!r}], not {value!r}")
    if not isinstance(value, Collection) or not all(isinstance(one, str) for one in value):
        raise TypeError(f"{name} must be a collection of str, not {value!r}")
    return frozenset(value)
