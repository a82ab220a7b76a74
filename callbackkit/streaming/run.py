"""Run a function as the producer of a stream that ends with it, and it with the stream."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Awaitable, Callable, Coroutine
from types import TracebackType
from typing import Any, Generic, Literal, Self, TypeVar, overload

from callbackkit.dispatch.callables import callable_name, short_repr
from callbackkit.errors import StreamCancelledError
from callbackkit.streaming.callback import Callback
from callbackkit.streaming.calling import call_anyhow, check_producer
from callbackkit.streaming.producer import Producer, TaskGroup
from callbackkit.streaming.readers import ReaderOverflow, TokenReader

__all__ = ["OnDisconnect", "RunStream", "run_stream"]

T = TypeVar("T")

logger: logging.Logger = logging.getLogger("callbackkit.streaming")

OnDisconnect = Literal["cancel", "continue"]
"""What becomes of a producer whose reader leaves."""


class RunStream(Generic[T]):
    """A function that runs, and what it streams; made by :func:`run_stream`.

    ``async with`` starts it; iterating gives its tokens as :meth:`~callbackkit.Callback.aiter`
    does. Nothing is held across an iteration but the place in the stream, so it may be used in a
    generator that is closed anywhere.

    Attributes:
        callback: Its run, which others may read, too.
    """

    def __init__(
        self,
        call: Callable[[], Awaitable[T]],
        name: str,
        callback: Callback,
        *,
        on_disconnect: OnDisconnect,
        timeout: float | None,
        task_group: TaskGroup | None,
        follow: Callable[[], TokenReader],
    ) -> None:
        self.callback: Callback = callback
        self._call = call
        self._name = name
        self._on_disconnect: OnDisconnect = on_disconnect
        self._timeout = timeout
        self._task_group = task_group
        self._follow = follow
        self._begun: tuple[TokenReader, Producer[T]] | None = None
        # Somebody reads it or has asked for the result, and so was told how it ended.
        self._is_followed = False
        self._is_left = False

    def __repr__(self) -> str:
        return f"<RunStream of {self._name}, {self.callback.status or 'running'}>"

    # Reading it.

    def __aiter__(self) -> Self:
        self._is_followed = True
        return self

    def __anext__(self) -> Coroutine[Any, Any, str]:
        reader, _ = self._parts()
        return reader.__anext__()

    async def result(self) -> T:
        """Wait for the function, and return what it returned.

        Raises:
            StreamCancelledError: The run was cancelled, by leaving the block or otherwise.
            TimeoutError: It took longer than *timeout*.
            Exception: What the function raised.
        """
        _, producer = self._parts()
        self._is_followed = True
        return await producer.result()

    def cancel(self, reason: str = "") -> None:
        """Cancel the run, from any thread; its readers are told so at once."""
        self.callback.cancel(reason)

    def _parts(self) -> tuple[TokenReader, Producer[T]]:
        if self._begun is None:
            raise RuntimeError("a run begins with 'async with run_stream(...) as stream:'")
        return self._begun

    # As a block.

    async def __aenter__(self) -> Self:
        if self._begun is not None:
            raise RuntimeError("a run is entered once: call run_stream() again for the next one")
        producer = Producer(self._name, self.callback, self._call, self._timeout)
        self._begun = self._follow(), producer
        try:
            await producer.start(self._task_group, self._tell_group)
        except BaseException as exc:
            # The group is closed, say: nobody will ever feed this run.
            self.callback.fail(exc)
            raise
        return self

    async def __aexit__(
        self,
        _type: type[BaseException] | None,
        exc: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        reader, producer = self._parts()
        # First, so that a producer waits for this reader no more.
        reader.close()
        self._is_left = True
        if self._on_disconnect == "cancel":
            await self._leave(producer, exc)
        if producer.is_done:
            self._tell(exc)

    async def _leave(self, producer: Producer[T], exc: BaseException | None) -> None:
        if exc is None and self.callback.status == "ok":
            # It has closed the stream itself, and may have something left to do.
            await producer.wait()
        else:
            self.callback.cancel("its reader has left")
            await producer.cancel()

    def _tell_group(self) -> None:
        if self._is_left:
            # Nobody else would be told.
            self._tell(None)

    def _tell(self, exc: BaseException | None) -> None:
        """See to an error of the producer that nobody was told of."""
        _, producer = self._parts()
        error = producer.error
        if error is None or error is exc or isinstance(error, StreamCancelledError):
            return
        if not isinstance(error, Exception):
            # An exit or interrupt is not to be lost in a task.
            raise error
        if not self._is_followed:
            logger.error("the run of %s failed, and nobody read it", self._name, exc_info=error)


# Functions that are known to be asynchronous come first: what they return is awaited.


@overload
def run_stream(
    fn: Callable[..., Awaitable[T]],
    *args: Any,
    on_disconnect: OnDisconnect = "cancel",
    timeout: float | None = None,
    task_group: TaskGroup | None = None,
    callback: Callback | None = None,
    overflow: ReaderOverflow = "coalesce",
    max_lag: int = 1024,
    stall_timeout: float = 30.0,
) -> RunStream[T]: ...


@overload
def run_stream(
    fn: Callable[..., T],
    *args: Any,
    on_disconnect: OnDisconnect = "cancel",
    timeout: float | None = None,
    task_group: TaskGroup | None = None,
    callback: Callback | None = None,
    overflow: ReaderOverflow = "coalesce",
    max_lag: int = 1024,
    stall_timeout: float = 30.0,
) -> RunStream[T]: ...


def run_stream(
    fn: Callable[..., Any],
    *args: Any,
    on_disconnect: OnDisconnect = "cancel",
    timeout: float | None = None,
    task_group: TaskGroup | None = None,
    callback: Callback | None = None,
    overflow: ReaderOverflow = "coalesce",
    max_lag: int = 1024,
    stall_timeout: float = 30.0,
) -> RunStream[Any]:
    """Run a function, and read what it streams while it does.

    ::

        async with run_stream(answer, "why?") as stream:
            async for token in stream:
                print(token, end="")
            text = await stream.result()

    The stream ends with the function, and the function with the block: leaving it by ``break``,
    an exception or a cancellation cancels the function and waits until it has ended. One that is
    not async runs in a worker thread, which can't be cancelled: its next token raises
    :exc:`~callbackkit.StreamCancelledError` in it, and nobody waits for that.

    Args:
        fn: The function. It gets ``callback`` if it has such a parameter; otherwise
            :func:`~callbackkit.emit_token` in it finds the run.
        args: Its arguments.
        on_disconnect: What becomes of it when the block is left: ``"cancel"``, or ``"continue"``
            in the *task_group*.
        timeout: Seconds it may take; then the run ends with the status ``timeout``.
        task_group: Where it is to run, a task group of anyio or a nursery of trio. What it raises
            does not go there, but to the readers and to :meth:`RunStream.result`.
        callback: The run, if it is to be one of yours.
        overflow: As of :meth:`~callbackkit.Callback.aiter`, like the next two.
        max_lag: Entries.
        stall_timeout: Seconds.

    Raises:
        TypeError: *fn* can't be called with these arguments, or is a generator.
        ValueError: ``on_disconnect="continue"`` without a *task_group*, or an option out of range.
    """
    _check_options(on_disconnect, timeout, task_group)
    check_producer(fn, "fn")
    if callback is not None and not isinstance(callback, Callback):
        raise TypeError(f"callback must be a callbackkit.Callback, not {short_repr(callback)}")
    run = Callback() if callback is None else callback
    kwargs = {"callback": run} if _wants_callback(fn, args) else {}
    return RunStream(
        lambda: call_anyhow(fn, *args, **kwargs),
        callable_name(fn),
        run,
        on_disconnect=on_disconnect,
        timeout=timeout,
        task_group=task_group,
        follow=lambda: run.aiter(overflow=overflow, max_lag=max_lag, stall_timeout=stall_timeout),
    )


def _check_options(on_disconnect: object, timeout: object, task_group: object) -> None:
    if on_disconnect not in {"cancel", "continue"}:
        raise ValueError(f"on_disconnect must be 'cancel' or 'continue', not {on_disconnect!r}")
    if on_disconnect == "continue" and task_group is None:
        raise ValueError(
            "on_disconnect='continue' needs task_group=, a task group that outlives the block: "
            "the function goes on in there"
        )
    if task_group is not None and not callable(getattr(task_group, "start", None)):
        raise TypeError(
            f"task_group must be a task group of anyio or a nursery of trio, not "
            f"{short_repr(task_group)}"
        )
    if timeout is None:
        return
    if isinstance(timeout, bool) or not isinstance(timeout, int | float):
        raise TypeError(f"timeout must be a number of seconds, not {timeout!r}")
    if math.isnan(timeout) or timeout <= 0:
        raise ValueError(f"timeout must be more than 0 seconds, not {timeout!r}")


def _wants_callback(fn: Callable[..., Any], args: tuple[Any, ...]) -> bool:
    """Tell whether a function has a parameter ``callback``; check its arguments by the way.

    Raises:
        TypeError: It can't be called with them.
    """
    try:
        signature = inspect.signature(fn)
    except ValueError:
        # Some built-ins have none.
        return False
    wants = "callback" in signature.parameters
    try:
        signature.bind(*args, **({"callback": None} if wants else {}))
    except TypeError as exc:
        hint = "; the callback is given as run_stream(..., callback=...)" if wants else ""
        raise TypeError(f"{callable_name(fn)} can't be called like that: {exc}{hint}") from None
    return wants
