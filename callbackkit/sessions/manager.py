"""The manager an application holds: its sessions, and the callbacks of this process."""

from __future__ import annotations

import logging
import math
import secrets
import time
from base64 import b64encode
from collections import OrderedDict
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Collection,
    Mapping,
    Sequence,
)
from concurrent.futures import Future
from contextlib import asynccontextmanager, suppress
from functools import lru_cache, partial
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeVar, Unpack, overload

import anyio
import attrs

from callbackkit.delivery.engine import DeliveryEngine
from callbackkit.delivery.transport import Transport, by_name
from callbackkit.dispatch.outcome import DispatchResult
from callbackkit.dispatch.registering import CallbackOptions
from callbackkit.dispatch.registration import Registration
from callbackkit.dispatch.registry import CallbackRegistry
from callbackkit.errors import ConfigError, LimitError, UnknownSessionError
from callbackkit.events import Event, EventKey, Position, check_event_type, check_payload
from callbackkit.sessions.config import CallbackConfig
from callbackkit.sessions.limits import Limits
from callbackkit.sessions.outbox import Outbox, Outgoing
from callbackkit.sessions.readers import Readers
from callbackkit.sessions.running import SessionRun
from callbackkit.sessions.service import Service
from callbackkit.sessions.session import Session, token_hash
from callbackkit.sessions.statistics import ManagerStats, SessionStats
from callbackkit.sessions.subscription import After, Subscription
from callbackkit.stores.base import (
    NewSession,
    Retention,
    SessionRecord,
    SessionState,
    Store,
)
from callbackkit.stores.memory import MemoryStore
from callbackkit.wire.envelope import Codec, JsonCodec, encode_body

__all__ = ["OPERATORS", "CallbackManager"]

T = TypeVar("T")

logger: logging.Logger = logging.getLogger("callbackkit.sessions")

READ_METHODS: Final = frozenset({"websocket", "sse", "polling"})

# The epoch of the events for operators, which no log has: they stand in none.
OPERATORS: Final = "operator"

# Sessions whose filters are kept at hand, and different configurations read.
_MOST_KNOWN: Final = 10_000
_MOST_CONFIGS: Final = 1_000
# Characters of an owner and of an idempotency key.
_MOST_TEXT: Final = 255


@attrs.frozen(eq=False)
class _Known:
    """What emitting to a session has to know of it.

    Attributes:
        config: What its client asked for.
        unowed: Event types that its transport is not to deliver, as the store knows them: whoever
            emits need not have the transport.
    """

    config: CallbackConfig
    unowed: tuple[str, ...]


class CallbackManager:
    """Sessions of events, and callbacks of this process, by event type.

    ::

        async with CallbackManager(store=SQLiteStore("events.db")) as manager:
            session = await manager.create_session()
            await session.progress(0.4, "parsing")
            async for event in session.subscribe():
                ...

    ``async with`` starts what it owns: the store, the transports, the delivery engine and the
    looking after expired sessions; leaving it drains the engine and closes them. It may be entered
    several times; the first entering starts, the last leaving stops. Callbacks of this process need
    none of that.

    Args:
        store: Where sessions are kept; by default in memory.
        transports: What delivers sessions whose ``delivery_method`` is its name.
        retention: How much of each new session is kept.
        limits: What is refused.
        linger: Seconds an ended session can be read, and a deleted one is remembered.
        codec: Writes and reads JSON; by default that of the standard library.
        drain_timeout: Seconds that leaving may take to deliver what is due.

    Raises:
        TypeError: Something of the wrong type.
        ValueError: Two transports of one name, or one named like a way to read; seconds below 0.

    Attributes:
        registry: Where its callbacks are registered.
        store: Where its sessions are.
        limits: What is refused.
    """

    def __init__(
        self,
        store: Store | None = None,
        transports: Sequence[Transport] = (),
        *,
        retention: Retention | None = None,
        limits: Limits | None = None,
        linger: float = 300.0,
        codec: Codec | None = None,
        drain_timeout: float = 10.0,
    ) -> None:
        if store is not None and not isinstance(store, Store):
            raise TypeError(f"store must be a Store, not {type(store).__name__}")
        if retention is not None and not isinstance(retention, Retention):
            raise TypeError(f"retention must be a Retention, not {type(retention).__name__}")
        if limits is not None and not isinstance(limits, Limits):
            raise TypeError(f"limits must be Limits, not {type(limits).__name__}")
        _check_seconds("linger", linger)
        _check_seconds("drain_timeout", drain_timeout)
        self.registry: CallbackRegistry = CallbackRegistry()
        self.store: Store = MemoryStore() if store is None else store
        self.limits: Limits = Limits() if limits is None else limits
        self._retention = Retention() if retention is None else retention
        self._linger = linger
        self._codec: Codec = JsonCodec() if codec is None else codec
        self._transports = by_name(transports)
        if taken := READ_METHODS & self._transports.keys():
            raise ValueError(f"a transport can't be named {min(taken)!r}: that is a way to read")
        self._readers = Readers(self.store, self.limits.max_readers)
        self._outbox = Outbox(self.limits.max_pending)
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._read_config: Callable[[bytes], CallbackConfig] = lru_cache(_MOST_CONFIGS)(
            CallbackConfig.from_json
        )
        self._service = Service(
            self.store,
            self._readers,
            self._outbox,
            new_engine=self._new_engine,
            forget=lambda session_id: self._known.pop(session_id, None),
            drain_timeout=drain_timeout,
        )
        self._operator_events = 0

    def __repr__(self) -> str:
        state = "running" if self._service.is_entered else "not started"
        return f"<CallbackManager {state}, {self.store!r}, {self.registry!r}>"

    # Its life.

    async def __aenter__(self) -> Self:
        await self._service.enter()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        await self._service.leave(in_peace=kind is None or issubclass(kind, Exception))

    async def drain(self) -> None:
        """Store what was handed over, attempt what is due, and begin no delivery after that.

        Takes up to the manager's *drain_timeout*. What could not be delivered stays in the store,
        for whoever opens it next. Leaving ``async with`` does this.
        """
        await self._service.drain()

    def _new_engine(self) -> DeliveryEngine | None:
        if not self._transports:
            return None
        return DeliveryEngine(
            self.store,
            list(self._transports.values()),
            read_config=self._read_config,
            decode=self._codec.decode,
            notify=self._tell_operators,
        )

    # Sessions.

    async def create_session(
        self, config: CallbackConfig | Mapping[str, Any] | None = None, *, owner: str | None = None
    ) -> Session:
        """Begin a session.

        Args:
            config: What its client asks for, such as the ``callback_config`` of a chat request;
                ``None`` for a session that is read.
            owner: Whose it is, for your own use; up to 255 characters.

        Returns:
            The session, the only handle that knows its token.

        Raises:
            ConfigError: A field that is unknown or wrong, or a method without its transport.
            LimitError: There are ``Limits.max_sessions``.
        """
        _check_text("owner", owner)
        wanted = self._with_secret(CallbackConfig.of(config))
        transport = self._transport_for(wanted)
        token = secrets.token_urlsafe(32)
        new = NewSession(
            id=secrets.token_hex(16),
            token_hash=token_hash(token),
            owner=owner,
            config=wanted.to_json(),
            method=wanted.delivery_method,
            pushes=transport is not None,
            unowed=() if transport is None else _unnamed(transport, wanted),
            ttl=wanted.ttl,
            retention=self._retention,
            max_pending=self.limits.max_pending,
        )
        record = await self.store.create_session(new, max_sessions=self.limits.max_sessions)
        return Session(self, record, wanted, token)

    def _with_secret(self, config: CallbackConfig) -> CallbackConfig:
        if config.delivery_method != "webhook" or config.webhook_secret is not None:
            return config
        return attrs.evolve(config, webhook_secret=new_secret())

    def _transport_for(self, config: CallbackConfig) -> Transport | None:
        method = config.delivery_method
        if method in READ_METHODS:
            return None
        transport = self._transports.get(method)
        if transport is None:
            known = ", ".join(sorted(READ_METHODS | self._transports.keys()))
            raise ConfigError(
                "delivery_method", f"no transport {method!r:.80} here; known: {known}"
            )
        transport.check(config)
        return transport

    async def get_session(self, session_id: str) -> Session:
        """Return a session that was created here or elsewhere, now or before a restart.

        Raises:
            UnknownSessionError: There is none.
            SessionDeletedError: It was deleted not long ago.
        """
        return self._handle(await self.store.get_session(session_id))

    async def sessions(
        self, *, state: SessionState | None = None, owner: str | None = None
    ) -> AsyncIterator[Session]:
        """Yield the sessions in a state, or of somebody; by default all that can be read."""
        last: str | None = None
        while True:
            page = await self.store.sessions(state=state, owner=owner, after=last)
            for record in page:
                yield self._handle(record)
            if not page:
                return
            last = page[-1].id

    def _handle(self, record: SessionRecord) -> Session:
        return Session(self, record, self._read_config(record.config))

    async def end_session(self, session_id: str) -> None:
        """End a session, see :meth:`callbackkit.sessions.session.Session.end`.

        Raises:
            UnknownSessionError: There is none.
        """
        await self._outbox.flush(session_id)
        await self.store.end_session(session_id, linger=self._linger)

    async def delete_session(self, session_id: str) -> None:
        """Delete a session now, with its events and dead letters.

        Raises:
            UnknownSessionError: There is none.
        """
        self._known.pop(session_id, None)
        await self.store.delete_session(session_id, linger=self._linger)

    @asynccontextmanager
    async def session(
        self, config: CallbackConfig | Mapping[str, Any] | None = None, *, owner: str | None = None
    ) -> AsyncGenerator[Session]:
        """Create a session that ends with the block."""
        session = await self.create_session(config, owner=owner)
        try:
            yield session
        finally:
            # Unless somebody has deleted it.
            with anyio.CancelScope(shield=True), suppress(UnknownSessionError):
                await session.end()

    def run(
        self,
        config: CallbackConfig | Mapping[str, Any] | None,
        agent: Callable[..., Any],
        *args: Any,
        owner: str | None = None,
        batch: float = 0.05,
    ) -> SessionRun:
        """Run a function with a session of its own, which ends with it.

        ::

            async with manager.run(config, agent, message) as session:
                async for event in session.subscribe():
                    ...

        The function gets ``callback`` if it has such a parameter, else finds it by context, as
        with :func:`~callbackkit.run_stream`; what it streams becomes events of the session. The
        session ends as soon as the function has and all that is stored, so reading it in the
        block ends too. Leaving the block waits for that; leaving by an exception cancels the
        function. What it raised is raised when the block is left.

        Args:
            config: As for :meth:`create_session`.
            agent: The function.
            args: Its arguments.
            owner: As for :meth:`create_session`.
            batch: Seconds tokens are joined for.
        """
        return SessionRun(self, config, owner, agent, args, batch)

    # Events.

    async def emit(
        self,
        session_id: str,
        event_type: str,
        data: Mapping[str, Any] | None = None,
        *,
        conversation_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        intermediate: bool = False,
        idempotency_key: str | None = None,
    ) -> Event | None:
        """Store an event, wake the readers of its session and call the callbacks of this process.

        Never waits for a delivery; a callback that fails does not make it fail.

        Args:
            session_id: The session.
            event_type: A member of :class:`~callbackkit.EventType`, or a name of your own.
            data: What happened, as JSON has it.
            conversation_id: What you group sessions by.
            metadata: What is said about the event.
            intermediate: Left out by sessions without ``include_intermediate_results``.
            idempotency_key: Up to 255 characters. Emitting again with it, within 24 hours, gives
                the event that was stored the first time, and calls no callbacks.

        Returns:
            The event as it is stored, or ``None`` if the session's filter leaves it out.

        Raises:
            PayloadError: The data breaks its type, or is no JSON.
            ValueError: *event_type* is no name of an event.
            LimitError: The event has more than ``Limits.max_event_bytes``.
            UnknownSessionError: There is no such session.
            SessionEndedError: It has ended.
            IdempotencyError: The key came before with another event.
            StoreError: It could not be stored.
        """
        _check_text("idempotency_key", idempotency_key)
        known = self._known.get(session_id)
        if known is None:
            known = await self._learn(session_id)
        event_type, body = self._encode(event_type, data, metadata, conversation_id)
        if not known.config.wants(event_type, intermediate=intermediate):
            return None
        if self._outbox.is_storing(session_id):
            # What was handed over by emit_soon comes first.
            await self._outbox.flush(session_id)
        event, is_new = await self._append(session_id, known, event_type, body, idempotency_key)
        if is_new:
            await self._call(event)
        return event

    def emit_soon(
        self,
        session: Session,
        event_type: str,
        data: Mapping[str, Any] | None = None,
        *,
        conversation_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        intermediate: bool = False,
        idempotency_key: str | None = None,
    ) -> Future[Event | None]:
        """Hand an event over, see :meth:`callbackkit.sessions.session.Session.emit_soon`."""
        _check_text("idempotency_key", idempotency_key)
        known = _Known(session.config, session._record.unowed)
        name, body = self._encode(event_type, data, metadata, conversation_id)
        future: Future[Event | None] = Future()
        if not known.config.wants(name, intermediate=intermediate):
            future.set_result(None)
            return future
        append = partial(self._append, session.id, known, name, body, idempotency_key)
        self._outbox.put(Outgoing(session.id, append, self._call, future))
        return future

    async def _learn(self, session_id: str) -> _Known:
        record = await self.store.get_session(session_id)
        config = self._read_config(record.config)
        known = _Known(config, record.unowed)
        if len(self._known) >= _MOST_KNOWN:
            self._known.popitem(last=False)
        self._known[session_id] = known
        return known

    def _encode(
        self,
        event_type: str,
        data: Mapping[str, Any] | None,
        metadata: Mapping[str, Any] | None,
        conversation_id: str | None,
    ) -> tuple[str, bytes]:
        check_event_type(event_type)
        name = str.__str__(event_type)
        content: Mapping[str, Any] = {} if data is None else data
        check_payload(name, content)
        body = encode_body(self._codec, content, metadata, conversation_id)
        if len(body) > self.limits.max_event_bytes:
            hint = f"the event has {len(body)} bytes of JSON"
            raise LimitError("max_event_bytes", self.limits.max_event_bytes, hint)
        return name, body

    async def _append(
        self, session_id: str, known: _Known, event_type: str, body: bytes, key: str | None
    ) -> tuple[Event, bool]:
        owed = event_type not in known.unowed
        appended = await self.store.append(session_id, event_type, body, owed=owed, key=key)
        record = appended.record
        position = Position(appended.epoch, record.seq)
        decode = self._codec.decode
        event = Event(position, record.event_type, record.at, session_id, record.body, decode)
        return event, appended.is_new

    async def _call(self, event: Event) -> None:
        await self.registry.trigger_callbacks(event.event_type, event)

    def subscription(
        self,
        session_id: str,
        *,
        after: After = None,
        types: Collection[str] | None = None,
        kind: str = "subscriber",
        ttl: float | None = 0.0,
        notes_reading: bool = True,
    ) -> Subscription:
        """Read a session by its id, see :meth:`callbackkit.sessions.session.Session.subscribe`.

        Args:
            session_id: The session.
            after: Where to go on.
            types: Only events of these types.
            kind: What it is read through.
            ttl: The ``ttl`` of the session, if it is known: a short one is looked after more often.
            notes_reading: What is returned counts as read; otherwise call
                :meth:`Subscription.note_read`.
        """
        return Subscription(
            self.store,
            self._readers,
            session_id,
            after=after,
            types=types,
            kind=kind,
            ttl=ttl,
            notes_reading=notes_reading,
            decode=self._codec.decode,
        )

    async def _tell_operators(
        self, event_type: str, session_id: str, data: Mapping[str, Any]
    ) -> None:
        """Call the callbacks for something that operators hear of; it is in no session's log."""
        self._operator_events += 1
        body = encode_body(self._codec, data)
        position = Position(OPERATORS, self._operator_events)
        microseconds = int(time.time() * 1e6)
        event = Event(position, event_type, microseconds, session_id, body, self._codec.decode)
        await self._call(event)

    # Figures.

    async def stats(self) -> ManagerStats:
        """Return the figures of all sessions of the store."""
        await self._readers.flush()
        return ManagerStats.of(await self.store.totals(), self._readers.kinds())

    async def session_stats(self, session_id: str) -> SessionStats:
        """Return the figures of a session, see :class:`~callbackkit.SessionStats`."""
        await self._readers.flush()
        record = await self.store.get_session(session_id)
        return SessionStats.of(record, self._readers.kinds(session_id))

    # Callbacks of this process.

    @overload
    def register_callback(
        self,
        event_type: EventKey[T] | type[T],
        callback: Callable[[T], object] | Callable[[], object],
        *,
        with_event: Literal[False] = False,
        when: Callable[[T], object] | None = None,
        **options: Unpack[CallbackOptions],
    ) -> Registration: ...

    @overload
    def register_callback(
        self,
        event_type: EventKey[T] | type[T],
        callback: Callable[[Any, T], object] | Callable[[Any], object] | Callable[[], object],
        *,
        with_event: Literal[True],
        when: Callable[[T], object] | None = None,
        **options: Unpack[CallbackOptions],
    ) -> Registration: ...

    @overload
    def register_callback(
        self,
        event_type: str,
        callback: Callable[..., object],
        *,
        with_event: bool = False,
        when: Callable[[Any], object] | None = None,
        **options: Unpack[CallbackOptions],
    ) -> Registration: ...

    def register_callback(
        self, event_type: Any, callback: Callable[..., object], **options: Any
    ) -> Registration:
        """Have *callback* called for an event type.

        Arguments and errors are those of :meth:`callbackkit.CallbackRegistry.register_callback`.
        """
        return self.registry.register_callback(event_type, callback, **options)

    def unregister_callback(self, event_type: Any, callback: Callable[..., Any]) -> bool:
        """Cancel the first registration of *callback*; ``False`` if there is none."""
        return self.registry.unregister_callback(event_type, callback)

    @overload
    async def trigger_callbacks(self, event_type: EventKey[T], data: T) -> DispatchResult: ...

    @overload
    async def trigger_callbacks(self, event_type: EventKey[None]) -> DispatchResult: ...

    @overload
    async def trigger_callbacks(
        self, event_type: str | type[Any], data: Any = None
    ) -> DispatchResult: ...

    async def trigger_callbacks(self, event_type: Any, data: Any = None) -> DispatchResult:
        """Call and await the callbacks for an event.

        Result and errors are those of :meth:`callbackkit.CallbackRegistry.trigger_callbacks`.
        """
        return await self.registry.trigger_callbacks(event_type, data)


def new_secret() -> str:
    """Return a webhook secret: 24 random bytes as Standard Webhooks writes them."""
    return "whsec_" + b64encode(secrets.token_bytes(24)).decode()


def _unnamed(transport: Transport, config: CallbackConfig) -> tuple[str, ...]:
    """Return the event types that go to a transport only if they are named, and are not."""
    return tuple(sorted(each for each in transport.only_when_named if not config.names(each)))


def _check_text(name: str, value: object) -> None:
    """Refuse what can't be stored, and looked for, as it is."""
    if value is None:
        return
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, not {type(value).__name__}")
    if not value or len(value) > _MOST_TEXT:
        raise ValueError(f"{name} must have 1 to {_MOST_TEXT} characters, not {len(value)}")
    if not value.isascii() and any(0xD800 <= ord(each) <= 0xDFFF for each in value):
        raise ValueError(f"{name} holds half of a surrogate pair, which is no character")


def _check_seconds(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number of seconds, not {value!r}")
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} must be 0 or more seconds, not {value!r}")
