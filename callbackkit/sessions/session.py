"""A session as its application holds it: one method for each event type it knows."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from callbackkit.dispatch.registration import Registration
from callbackkit.events import Event, EventType, Position
from callbackkit.sessions.attach import Attachment
from callbackkit.sessions.config import CallbackConfig
from callbackkit.sessions.statistics import SessionStats
from callbackkit.sessions.subscription import After, Subscription
from callbackkit.stores.base import Attempt, DeadLetter, SessionRecord, SessionState
from callbackkit.streaming.callback import Callback

if TYPE_CHECKING:
    from callbackkit.delivery.health import EndpointHealth
    from callbackkit.delivery.transport import Transport
    from callbackkit.sessions.manager import CallbackManager

__all__ = ["Session", "token_hash"]


def token_hash(token: str) -> bytes:
    """Return what is stored of a token."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


class Session:
    """A named, ordered log of events; made by a :class:`~callbackkit.CallbackManager`.

    It is a handle: several for one session, in several processes, are as good as one.

    Attributes:
        id: Its id, which nobody can guess.
        token: What proves the right to it; only where it was created, ``None`` elsewhere.
        config: What its client asked for.
        owner: Whose it is.
        created_at: When it was created, UTC.
    """

    __slots__ = (
        "__weakref__",
        "_manager",
        "_record",
        "config",
        "created_at",
        "id",
        "owner",
        "token",
    )

    def __init__(
        self,
        manager: CallbackManager,
        record: SessionRecord,
        config: CallbackConfig,
        token: str | None = None,
    ) -> None:
        self._manager = manager
        self._record = record
        self.id: str = record.id
        self.token: str | None = token
        self.config: CallbackConfig = config
        self.owner: str | None = record.owner
        self.created_at: datetime = datetime.fromtimestamp(record.created_at, UTC)

    def __repr__(self) -> str:
        return f"<Session {self.id} by {self.config.delivery_method}>"

    def has_token(self, token: str) -> bool:
        """Tell whether a token is that of the session, in constant time."""
        return hmac.compare_digest(token_hash(token), self._record.token_hash)

    # Emitting.

    async def emit(
        self,
        event_type: str,
        data: Mapping[str, Any] | None = None,
        *,
        conversation_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        intermediate: bool = False,
        idempotency_key: str | None = None,
    ) -> Event | None:
        """Store an event, wake its readers and call the callbacks of this process.

        Arguments, result and errors are those of :meth:`callbackkit.CallbackManager.emit`.
        """
        return await self._manager.emit(
            self.id,
            event_type,
            data,
            conversation_id=conversation_id,
            metadata=metadata,
            intermediate=intermediate,
            idempotency_key=idempotency_key,
        )

    def emit_soon(
        self,
        event_type: str,
        data: Mapping[str, Any] | None = None,
        *,
        conversation_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        intermediate: bool = False,
        idempotency_key: str | None = None,
    ) -> Future[Event | None]:
        """Hand an event over to be emitted; from any thread, without waiting.

        Events of one session are stored in the order they were handed over, and before what is
        emitted to it afterwards. The data is written down at once: changing it later changes
        nothing.

        Returns:
            What :meth:`emit` would return, or raise, as soon as the event is stored; callbacks
            run after that, in the same order. If the manager is stopped before, it has failed
            with a ``RuntimeError``. Waiting for it in the thread of the event loop would wait for
            ever.

        Raises:
            LimitError: ``Limits.max_pending`` events of the session wait to be stored, or for
                their callbacks.
            RuntimeError: The manager is not running.
        """
        return self._manager.emit_soon(
            self,
            event_type,
            data,
            conversation_id=conversation_id,
            metadata=metadata,
            intermediate=intermediate,
            idempotency_key=idempotency_key,
        )

    async def thinking(self, thought: str, **more: Any) -> Event | None:
        """Emit what the agent thinks."""
        return await self.emit(EventType.THINKING, {"thought": thought, **more})

    async def tool_use(
        self, tool_name: str, parameters: Mapping[str, Any] | None = None, **more: Any
    ) -> Event | None:
        """Emit that a tool is called."""
        return await self._emit(
            EventType.TOOL_USE, more, tool_name=tool_name, parameters=parameters
        )

    async def tool_result(
        self,
        tool_name: str,
        result: Any = None,
        *,
        success: bool = True,
        execution_time: float | None = None,
        **more: Any,
    ) -> Event | None:
        """Emit what a tool returned, after so many seconds."""
        data = {"tool_name": tool_name, "result": result, "success": success, **more}
        if execution_time is not None:
            data["execution_time"] = execution_time
        return await self.emit(EventType.TOOL_RESULT, data)

    async def progress(
        self,
        progress: float,
        message: str | None = None,
        *,
        current_step: int | None = None,
        total_steps: int | None = None,
        **more: Any,
    ) -> Event | None:
        """Emit how far it is, from 0 to 1."""
        return await self._emit(
            EventType.PROGRESS,
            more,
            progress=progress,
            message=message,
            current_step=current_step,
            total_steps=total_steps,
        )

    async def completion(
        self,
        result: Any = None,
        *,
        success: bool = True,
        total_time: float | None = None,
        tokens_used: int | None = None,
        **more: Any,
    ) -> Event | None:
        """Emit that the work is done, after so many seconds. The session goes on."""
        data = {"result": result, "success": success, **more}
        return await self._emit(
            EventType.COMPLETION, data, total_time=total_time, tokens_used=tokens_used
        )

    async def workflow_start(
        self, workflow: str, steps: Collection[str] | None = None, **more: Any
    ) -> Event | None:
        """Emit that a workflow begins, with the names of its steps."""
        names = None if steps is None else list(steps)
        return await self._emit(EventType.WORKFLOW_START, more, workflow=workflow, steps=names)

    async def workflow_step(
        self,
        step: str,
        index: int | None = None,
        total: int | None = None,
        status: str | None = None,
        **more: Any,
    ) -> Event | None:
        """Emit where a workflow is."""
        return await self._emit(
            EventType.WORKFLOW_STEP, more, step=step, index=index, total=total, status=status
        )

    async def workflow_complete(
        self,
        workflow: str,
        *,
        success: bool = True,
        total_time: float | None = None,
        **more: Any,
    ) -> Event | None:
        """Emit that a workflow is done, after so many seconds."""
        data = {"success": success, **more}
        return await self._emit(
            EventType.WORKFLOW_COMPLETE, data, workflow=workflow, total_time=total_time
        )

    async def model_selection(
        self,
        model: str,
        reason: str | None = None,
        candidates: Collection[str] | None = None,
        **more: Any,
    ) -> Event | None:
        """Emit which model was chosen, of which."""
        names = None if candidates is None else list(candidates)
        return await self._emit(
            EventType.MODEL_SELECTION, more, model=model, reason=reason, candidates=names
        )

    async def streaming_chunk(
        self, text: str, node: str | None = None, span: int | None = None, **more: Any
    ) -> Event | None:
        """Emit a piece of text of a node; :meth:`attach` does it for a whole run."""
        return await self._emit(EventType.STREAMING_CHUNK, more, text=text, node=node, span=span)

    async def error(
        self,
        error: str | BaseException,
        error_type: str | None = None,
        *,
        recoverable: bool | None = None,
        retry_count: int | None = None,
        **more: Any,
    ) -> Event | None:
        """Emit that something went wrong; of an exception its text and class.

        Every reader of the session sees the text.
        """
        if isinstance(error, BaseException):
            error_type = error_type or type(error).__name__
        return await self._emit(
            EventType.ERROR,
            more,
            error=str(error),
            error_type=error_type,
            recoverable=recoverable,
            retry_count=retry_count,
        )

    async def _emit(
        self, event_type: EventType, more: Mapping[str, Any], **known: Any
    ) -> Event | None:
        """Emit what is known; what is ``None`` is left out."""
        data = {name: value for name, value in known.items() if value is not None}
        return await self.emit(event_type, {**data, **more})

    # Reading.

    def subscribe(
        self, after: After = None, *, types: Collection[str] | None = None, kind: str = "subscriber"
    ) -> Subscription:
        """Read the events of the session in order, those to come too.

        Args:
            after: Where to go on: a position, its text, or an event; ``None`` for the oldest event
                kept; ``"now"`` for behind the newest one when reading begins, which is at the
                first event asked for, or at ``async with``.
            types: Only events of these types, and gaps.
            kind: What it is read through, for the statistics, such as ``"sse"``.

        Raises:
            PositionError: *after* is a text that is no position. One that means nothing to this
                session gives a gap, then what is kept.
            LimitError: There are ``Limits.max_readers`` of the session in this process.
        """
        return self._manager.subscription(
            self.id, after=after, types=types, kind=kind, ttl=self.config.ttl
        )

    async def serve(self, transport: Transport, *, after: After = None) -> None:
        """Send the events of the session through a transport that is bound to one connection.

        Returns when the session has ended and all was sent, or the transport raised
        :exc:`~callbackkit.Gone`. What it raises :exc:`~callbackkit.Retry` for is sent again, by
        its schedule; what it raises :exc:`~callbackkit.Rejected` for is skipped; anything else it
        raises ends this, and is raised.

        Args:
            transport: Carries one event at a time; its name counts in the statistics.
            after: As for :meth:`subscribe`.

        Raises:
            TimeoutError: Sending took longer than the transport's ``timeout``.
        """
        from callbackkit.sessions.serving import serve

        await serve(self, transport, after)

    # Runs.

    def attach(self, callback: Callback, *, batch: float = 0.05) -> Attachment:
        """Make the events of a run events of the session, while ``async with`` is open.

        Args:
            callback: The run.
            batch: Seconds tokens are joined for, at most, before they become an event.
        """
        return Attachment(self, callback, batch=batch)

    # What its client sends.

    def on_message(self, callback: Callable[[Event], object]) -> Registration:
        """Have *callback*, sync or async, called with what the client of the session sends.

        It gets the event that the message is stored as, of the type ``client.message``, if it came
        to this process, such as through a WebSocket; until it is cancelled, or the session has
        ended. One that fails is logged and stops nothing.

        Raises:
            TypeError: *callback* is no callable.
        """
        return self._manager.on_message(self.id, callback)

    async def receive(self, message: object) -> Event:
        """Store what the client sent, and call the callbacks of this process.

        Whatever the session's ``events`` are, it is kept; its transport delivers it only if they
        have it.

        Args:
            message: A JSON object, which becomes the data of the event; or any other value of
                JSON, which stands in it as ``message``.

        Returns:
            The event, of the type ``client.message``.

        Raises:
            PayloadError: It is no JSON.
            LimitError: It has more than ``Limits.max_event_bytes``.
            UnknownSessionError: There is no such session.
            SessionEndedError: It has ended.
        """
        return await self._manager.receive(self.id, message)

    # Its life.

    async def update(self, changes: Mapping[str, Any]) -> Session:
        """Change what its client asked for: ``await session.update({"events": None})``.

        Args:
            changes: Any of ``events``, ``webhook_url`` and ``headers``, each as a whole; ``None``
                for what it is by default.

        Returns:
            A new handle; this one goes on to show what it was.

        Raises:
            ConfigError: A key that can't be changed, or a value that can't be had.
            UnknownSessionError: There is no such session.
            SessionEndedError: It has ended.
        """
        updated = await self._manager.update_session(self.id, changes)
        updated.token = self.token
        return updated

    async def rotate_secret(self, secret: str | None = None, *, overlap: float = 86_400.0) -> str:
        """Give it another webhook secret; the one before counts for a while longer.

        Until *overlap* is over, webhooks are signed with both, so that whoever verifies them can
        change over at any time in between; with five at most, should it be done often. What is
        under way or tried again goes by it from its next attempt on.

        Args:
            secret: ``whsec_`` and base64 of 24 to 64 bytes; by default one is made.
            overlap: Seconds, up to 604 800 (7 days); 0 when the one before has become known to
                others.

        Returns:
            The secret, to be handed to whoever verifies.

        Raises:
            ConfigError: It can't be a secret; an *overlap* out of its range; or nothing of the
                session is signed.
            UnknownSessionError: There is no such session.
            SessionEndedError: It has ended.
        """
        return await self._manager.rotate_secret(self.id, secret, overlap=overlap)

    async def clear(self, before: Position | datetime | str) -> int:
        """Drop the events before a place, but none that a transport is still to deliver.

        Readers who have not come so far are told of a gap.

        Args:
            before: A position, or a moment; as text too. What stands there is kept.

        Returns:
            How many were dropped.

        Raises:
            PositionError: A position of another session, or of no event there is; a text that is
                neither a position nor a timestamp of RFC 3339.
            ValueError: A ``datetime`` without a time zone.
            UnknownSessionError: There is no such session.
        """
        return await self._manager.clear_events(self.id, before)

    @property
    def manager(self) -> CallbackManager:
        """The manager it was made by."""
        return self._manager

    async def state(self) -> SessionState:
        """Return ``"active"`` or ``"ended"``, as it stands in the store."""
        record = await self._manager.store.get_session(self.id)
        return record.state

    async def end(self) -> None:
        """End it: nothing can be emitted any more, readers finish, deliveries too.

        It can be read for the manager's *linger* seconds. Ending twice is harmless.
        """
        await self._manager.end_session(self.id)

    async def stats(self) -> SessionStats:
        """Return its figures, see :class:`~callbackkit.sessions.statistics.SessionStats`."""
        return await self._manager.session_stats(self.id)

    async def endpoint(self) -> EndpointHealth:
        """Return how its endpoint does.

        Raises:
            ConfigError: It is read, or this process has not its transport.
            UnknownSessionError: There is no such session.
        """
        return await self._manager.endpoint(self.id)

    async def attempts(self) -> list[Attempt]:
        """Return the last attempts to deliver its events, the oldest first."""
        return list(await self._manager.store.attempts(self.id))

    async def dead_letters(self) -> list[DeadLetter]:
        """Return what could not be delivered, the oldest first."""
        letters: dict[str, DeadLetter] = {}
        last: str | None = None
        while True:
            page = await self._manager.store.dead_letters(self.id, after=last)
            if not page:
                return list(letters.values())
            # Where the last one was delivered meanwhile, the list begins anew.
            letters |= {each.id: each for each in page}
            last = page[-1].id

    async def redrive(self, *letter_ids: str) -> int:
        """Have dead letters, those named or all, delivered again; return how many."""
        return await self._manager.store.redrive(self.id, letter_ids or None)
