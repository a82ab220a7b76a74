"""A run of the streaming core as events of a session, its tokens joined."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, cast

import anyio
from anyio.abc import TaskStatus

from callbackkit.errors import LimitError
from callbackkit.events import EventType
from callbackkit.sessions.background import Background
from callbackkit.streaming.callback import Callback
from callbackkit.streaming.events import StreamEvent

if TYPE_CHECKING:
    from callbackkit.sessions.session import Session

__all__ = ["Attachment"]

logger: logging.Logger = logging.getLogger("callbackkit.sessions")

# Characters of one streaming_chunk: a run that is read late does not become one huge event.
_MOST_TEXT: Final = 16_384
# Seconds that storing the rest may take once the block was left by a cancellation.
_LAST_RESORT: Final = 2.0

_ENDINGS: Final = {
    "error": "the run failed",
    "cancelled": "the run was cancelled",
    "timeout": "the run took too long",
}


class Attachment:
    """Copies a run into a session while its block is open; made by ``session.attach()``.

    The run is copied from its beginning. Adjacent tokens of a span become one ``streaming_chunk``;
    ``node_start`` and ``node_end`` say ``node`` and ``span``; events of the application's own keep
    their types; a run that did not end well ends with an ``error`` that names the class of the
    exception, not its text. When the block is left all that was emitted so far is stored, whether
    the run has ended or not. What a session refuses, such as a payload that breaks its type, is
    logged and left out; if the session itself fails, leaving the block raises that.

    Args:
        session: Where to.
        callback: The run.
        batch: Seconds tokens are joined for, at most.

    Raises:
        ValueError: *batch* is negative or not finite.
    """

    def __init__(self, session: Session, callback: Callback, *, batch: float = 0.05) -> None:
        if not 0 <= batch < float("inf"):
            raise ValueError(f"batch must be 0 or more seconds, not {batch!r}")
        self._session = session
        self._callback = callback
        self._batch = batch
        self._background = Background(self._copy)
        self._until: int | None = None
        self._seen = 0
        self._waiting: anyio.CancelScope | None = None
        self._text: list[str] = []
        self._size = 0
        # A character may take six bytes of JSON, and be half of a pair.
        most_bytes = session.manager.limits.max_event_bytes
        self._most_text = max(1, min(_MOST_TEXT, most_bytes // 12))
        self._place: tuple[str | None, int | None] = None, None
        self._flush_at = 0.0
        self._error: Exception | None = None

    async def __aenter__(self) -> Self:
        await self._background.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._until = self._callback.last_seq
        if self._waiting is not None:
            self._waiting.cancel()
        try:
            await self._background.wait()
        except BaseException:
            with anyio.move_on_after(_LAST_RESORT, shield=True):
                await self._background.wait()
            raise
        finally:
            await self._background.stop()
        if self._error is None:
            return
        if kind is None:
            raise self._error
        logger.error(
            "the rest of a run could not be stored",
            exc_info=self._error,
            extra={"session_id": self._session.id},
        )

    async def wait(self) -> None:
        """Wait until the run has ended and all of it is stored, or no more of it can be."""
        await self._background.wait()

    async def _copy(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        reader = self._callback.events(raise_errors=False)
        task_status.started()
        try:
            batches = reader.batches()
            while not self._is_done():
                for event in await self._next(batches):
                    self._seen = event.seq
                    await self._take(event)
                if self._text and time.monotonic() >= self._flush_at:
                    await self._flush()
            await self._flush()
        except Exception as exc:
            self._error = exc
        finally:
            reader.close()

    def _is_done(self) -> bool:
        return self._until is not None and self._seen >= self._until

    async def _next(self, batches: AsyncIterator[list[StreamEvent]]) -> list[StreamEvent]:
        """Return what comes next, nothing if it takes longer than tokens may wait."""
        timeout = self._flush_at - time.monotonic() if self._text else None
        with anyio.CancelScope() as scope:
            if timeout is not None:
                scope.deadline = anyio.current_time() + max(timeout, 0.0)
            self._waiting = scope
            try:
                return await anext(batches)
            except StopAsyncIteration:
                self._until = self._seen
            finally:
                self._waiting = None
        return []

    async def _take(self, event: StreamEvent) -> None:
        if event.type == "token":
            await self._take_token(event)
            return
        await self._flush()
        place = {"node": event.node, "span": event.span}
        match event.type:
            case "node_start":
                await self._emit("node_start", {**place, "params": dict(event.params)}, True)
            case "node_end":
                await self._emit("node_end", {**place, "status": event.status}, True)
            case "node_name":
                pass
            case "gap":
                await self._emit("streaming_gap", {"missed": event.data["missed"]}, True)
            case "stream_end":
                await self._take_end(event)
            case own:
                await self._emit(own, _data_of(event), False)

    async def _take_token(self, event: StreamEvent) -> None:
        text = event.token
        if not text:
            return
        place = event.node, event.span
        if self._text and place != self._place:
            await self._flush()
        if not self._text:
            self._place = place
            self._flush_at = time.monotonic() + self._batch
        while len(text) > (room := self._most_text - self._size):
            self._text.append(text[:room])
            await self._flush()
            text = text[room:]
        self._text.append(text)
        self._size += len(text)

    async def _take_end(self, event: StreamEvent) -> None:
        if event.status in _ENDINGS:
            data = {"error": _ENDINGS[event.status], "status": event.status}
            if event.status == "error" and self._callback.error is not None:
                data["error_type"] = type(self._callback.error).__name__
            await self._emit(EventType.ERROR, data, False)

    async def _flush(self) -> None:
        """Emit the tokens that wait."""
        if not self._text:
            return
        node, span = self._place
        data: dict[str, Any] = {"text": _whole("".join(self._text))}
        if node is not None:
            data |= {"node": node, "span": span}
        self._text.clear()
        self._size = 0
        await self._emit(EventType.STREAMING_CHUNK, data, True)

    async def _emit(self, event_type: str, data: Mapping[str, Any], intermediate: bool) -> None:
        try:
            await self._session.emit(event_type, data, intermediate=intermediate)
        except (ValueError, TypeError, LimitError) as exc:
            logger.warning(
                "an event %.100r of a run was refused by its session: %s",
                event_type,
                exc,
                extra={"session_id": self._session.id},
            )


def _data_of(event: StreamEvent) -> Mapping[str, Any]:
    data: object = event.data
    if isinstance(data, Mapping):
        return cast("Mapping[str, Any]", data)
    return {} if data is None else {"value": data}


def _whole(text: str) -> str:
    """Join the halves of surrogate pairs that came in two tokens; JSON has no word for others."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
