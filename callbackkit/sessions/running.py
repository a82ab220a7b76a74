"""A function that runs with a session of its own."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, suppress
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

import anyio
from anyio.abc import TaskStatus

from callbackkit.errors import UnknownSessionError
from callbackkit.sessions.attach import Attachment
from callbackkit.sessions.background import Background
from callbackkit.sessions.config import CallbackConfig
from callbackkit.sessions.session import Session
from callbackkit.streaming.callback import Callback
from callbackkit.streaming.run import RunStream, run_stream

if TYPE_CHECKING:
    from callbackkit.sessions.manager import CallbackManager

__all__ = ["RunningSession", "SessionRun"]

logger: logging.Logger = logging.getLogger("callbackkit.sessions")


class RunningSession(Session):
    """The session of a function that runs.

    Attributes:
        callback: What the function streams to.
    """

    __slots__ = ("_stream", "callback")

    def __init__(self, created: Session, stream: RunStream[Any]) -> None:
        super().__init__(created.manager, created._record, created.config, created.token)
        self._stream = stream
        self.callback: Callback = stream.callback

    async def result(self) -> Any:
        """Wait for the function; return what it returned, or raise what it raised."""
        return await self._stream.result()


class SessionRun:
    """Create, run, end; made by :meth:`callbackkit.CallbackManager.run`, for ``async with``."""

    def __init__(
        self,
        manager: CallbackManager,
        config: CallbackConfig | Mapping[str, Any] | None,
        owner: str | None,
        agent: Callable[..., Any],
        args: tuple[Any, ...],
        batch: float,
    ) -> None:
        self._manager = manager
        self._config = config
        self._owner = owner
        self._batch = batch
        self._stream: RunStream[Any] = run_stream(agent, *args)
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> RunningSession:
        created = await self._manager.create_session(self._config, owner=self._owner)
        session = RunningSession(created, self._stream)
        try:
            self._stack.push_async_callback(_end, session)
            attachment = session.attach(self._stream.callback, batch=self._batch)
            await self._stack.enter_async_context(attachment)
            await self._stack.enter_async_context(self._stream)
            ending = Background(partial(self._end_with_run, session, attachment))
            await ending.start()
            self._stack.push_async_callback(ending.stop)
        except BaseException:
            await self._stack.aclose()
            raise
        return session

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        if kind is not None:
            return await self._stack.__aexit__(kind, error, traceback)
        async with self._stack:
            await self._stream.result()
        return None

    async def _end_with_run(
        self,
        session: RunningSession,
        attachment: Attachment,
        *,
        task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
    ) -> None:
        """End the session as soon as the function has ended, so that its readers do."""
        task_status.started()
        # Not its result: whoever asks for that has been told of its error.
        _, producer = self._stream._parts()
        await producer.wait()
        await attachment.wait()
        try:
            await _end(session)
        except Exception:
            # Leaving the block tries again, and raises.
            logger.warning(
                "the session of a run could not be ended",
                exc_info=True,
                extra={"session_id": session.id},
            )


async def _end(session: Session) -> None:
    # Unless somebody has deleted it.
    with anyio.CancelScope(shield=True), suppress(UnknownSessionError):
        await session.end()
