"""The manager an application holds: its sessions, and the callbacks of this process."""

from __future__ import annotations

import logging
import math
import secrets
import time
from base64 import b64encode
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
from datetime import datetime
from functools import lru_cache, partial
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeVar, Unpack, overload
from urllib.parse import urlsplit

import anyio
import attrs

from callbackkit.delivery.engine import DeliveryEngine
from callbackkit.delivery.health import EndpointHealth, health_of
from callbackkit.delivery.observers import (
    Emission,
    Emitted,
    Observers,
    tell_at_end,
    telling,
)
from callbackkit.delivery.transport import Transport, by_name
from callbackkit.dispatch.outcome import DispatchResult
from callbackkit.dispatch.registering import CallbackOptions
from callbackkit.dispatch.registration import Registration
from callbackkit.dispatch.registry import CallbackRegistry
from callbackkit.errors import ConfigError, LimitError, UnknownSessionError
from callbackkit.events import (
    CLIENT_MESSAGE,
    Event,
    EventKey,
    Position,
    check_event_type,
    check_payload,
)
from callbackkit.sessions.config import ASKED, CallbackConfig
from callbackkit.sessions.filters import Filters, Known
from callbackkit.sessions.firehose import Firehose
from callbackkit.sessions.history import Bucket, History
from callbackkit.sessions.limits import Limits
from callbackkit.sessions.locating import locate, number_before
from callbackkit.sessions.messages import Messages, content_of
from callbackkit.sessions.outbox import Outbox, Outgoing
from callbackkit.sessions.pump import Pump
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
    steady_time,
)
from callbackkit.stores.memory import MemoryStore
from callbackkit.wire.envelope import Codec, JsonCodec, encode_body

__all__ = ["OPERATORS", "CallbackManager"]

T = TypeVar("T")

logger: logging.Logger = logging.getLogger("callbackkit.sessions")

READ_METHODS: Final = frozenset({"websocket", "sse", "polling"})

# The epoch of the events for operators, which no log has: they stand in none.
OPERATORS: Final = "operator"

# Different configurations that were read.
_MOST_CONFIGS: Final = 1_000
# What of a configuration a session may be given anew.
_CHANGEABLE: Final = frozenset({"events", "webhook_url", "headers"})
# Seconds that webhooks may be signed with an older secret too.
_MOST_OVERLAP: Final = 604_800.0
# Characters of an owner and of an idempotency key.
_MOST_TEXT: Final = 255


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
        observers: Who is told of what it stores and delivers, such as metrics.
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
        self.observers: Observers = Observers()
        self._retention = Retention() if retention is None else retention
        self._linger = linger
        self._codec: Codec = JsonCodec() if codec is None else codec
        # Made once: each event holds it.
        self._decode: Callable[[bytes], Any] = self._codec.decode
        self._transports = by_name(transports)
        if taken := READ_METHODS & self._transports.keys():
            raise ValueError(f"a transport can't be named {min(taken)!r}: that is a way to read")
        self._readers = Readers(self.store, self.limits.max_readers)
        self._outbox = Outbox(self.limits.max_pending)
        self._read_config: Callable[[bytes], CallbackConfig] = lru_cache(_MOST_CONFIGS)(
            CallbackConfig.from_json
        )
        self._filters = Filters(self.store, self._read_config)
        self._messages = Messages()
        self._history = History()
        self._pump = Pump(self.store, self._decode, self.limits.max_readers)
        self._service = Service(
            self.store,
            self._readers,
            self._outbox,
            self._pump,
            new_engine=self._new_engine,
            forget=self._forget,
            look_around=self._look_around,
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

        Streams over HTTP end, and tell their clients to come back. Takes up to the manager's
        *drain_timeout*. What could not be delivered stays in the store, for whoever opens it next.
        Leaving ``async with`` does this.
        """
        await self._service.drain()

    def begin_drain(self) -> None:
        """End the streams over HTTP, at once and for those who come next; from any thread.

        For a handler of signals; :meth:`drain` does it too, and what takes time.
        """
        self._readers.drain()
        self._pump.end_all()

    @property
    def is_draining(self) -> bool:
        """Streams over HTTP are told to come back elsewhere, or later."""
        return self._readers.is_draining

    def _new_engine(self) -> DeliveryEngine | None:
        if not self._transports:
            return None
        return DeliveryEngine(
            self.store,
            list(self._transports.values()),
            read_config=self._read_config,
            decode=self._decode,
            notify=self._tell_operators,
            observers=self.observers,
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
        self._filters.note(record.id, wanted, record.unowed)
        return Session(self, record, wanted, token)

    def _with_secret(self, config: CallbackConfig) -> CallbackConfig:
        is_posted = config.webhook_url is not None and config.delivery_method not in READ_METHODS
        if not is_posted or config.webhook_secret is not None:
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
        return self._handle(await self._filters.look_up(session_id))

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
        self._messages.forget(session_id)

    async def delete_session(self, session_id: str) -> None:
        """Delete a session now, with its events and dead letters.

        Raises:
            UnknownSessionError: There is none.
        """
        self._forget(session_id)
        await self.store.delete_session(session_id, linger=self._linger)

    def _forget(self, session_id: str) -> None:
        self._filters.forget(session_id)
        self._messages.forget(session_id)

    async def update_session(self, session_id: str, changes: Mapping[str, Any]) -> Session:
        """Change what the client of a session asked for.

        What is emitted from now on goes by it; other processes notice within 10 seconds. What a
        delivery owes goes where the session points to then.

        Args:
            session_id: The session.
            changes: Any of ``events``, ``webhook_url`` and ``headers``, each as a whole; ``None``
                for what it is by default. Where *webhook_url* leads to another server, the headers
                for the one before are gone, unless there are new ones beside it.

        Returns:
            A new handle, which does not know the token.

        Raises:
            ConfigError: A key that can't be changed, or a value that can't be had, also together
                with the rest; or this process has not the transport of the session.
            UnknownSessionError: There is no such session.
            SessionEndedError: It has ended.
        """
        _check_changes(changes)
        record = await self.store.get_session(session_id)
        while True:
            known = record.config
            before = self._read_config(known)
            config = attrs.evolve(before, **changes)
            if "headers" not in changes:
                config = _with_headers_of(before, config)
            transport = self._transport_for(config)
            unowed = () if transport is None else _unnamed(transport, config)
            wanted = config.to_json()
            record = await self.store.update_session(
                session_id, known=known, config=wanted, unowed=unowed
            )
            # Otherwise somebody else was faster: his changes are to stay.
            if record.config == wanted:
                self._filters.note(session_id, config, unowed)
                return Session(self, record, config)

    async def rotate_secret(
        self, session_id: str, secret: str | None = None, *, overlap: float = 86_400.0
    ) -> str:
        """Give a session another secret; see :meth:`.Session.rotate_secret`.

        Raises:
            UnknownSessionError: There is no such session.
        """
        wanted = new_secret() if secret is None else secret
        await self._rotate(session_id, wanted, overlap)
        return wanted

    async def _rotate(self, session_id: str, secret: str, overlap: float) -> CallbackConfig:
        _check_overlap(overlap)
        record = await self.store.get_session(session_id)
        while True:
            known = record.config
            config = self._read_config(known)
            if config.webhook_secret is None:
                raise ConfigError("webhook_secret", "nothing of this session is signed")
            config = config.rotated(secret, now=time.time(), overlap=overlap)
            wanted = config.to_json()
            record = await self.store.update_session(
                session_id, known=known, config=wanted, unowed=record.unowed
            )
            # As in update_session().
            if record.config == wanted:
                self._filters.note(session_id, config, record.unowed)
                return config

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
        known = self._filters.at_hand(session_id)
        if known is None:
            known = await self._filters.learn(session_id)
        event_type, body = self._encode(event_type, data, metadata, conversation_id)
        if not known.config.wants(event_type, intermediate=intermediate):
            return None
        if self._outbox.is_storing(session_id):
            # What was handed over by emit_soon comes first.
            await self._outbox.flush(session_id)
        if self.observers.all:
            said = (data, metadata, conversation_id, idempotency_key)
            append = self._append_observed(Emission(session_id, event_type, *said), known, body)
        else:
            append = self._append(session_id, known, event_type, body, idempotency_key)
        event, is_new = await append
        if is_new:
            await self._call(event)
        return event

    async def receive(self, session_id: str, message: object) -> Event:
        """Store what a client sent, see :meth:`callbackkit.sessions.session.Session.receive`."""
        known = await self._filters.learn(session_id)
        content = content_of(message)
        name, body = self._encode(CLIENT_MESSAGE, content, None, None)
        if not known.config.wants(name):
            # It is kept all the same; but a transport delivers what was asked for.
            known = attrs.evolve(known, unowed=(*known.unowed, name))
        await self._outbox.flush(session_id)
        event, _ = await self._append_observed(Emission(session_id, name, content), known, body)
        await self._messages.call(event)
        await self._call(event)
        return event

    def on_message(self, session_id: str, callback: Callable[[Event], object]) -> Registration:
        """Listen to a client, see :meth:`callbackkit.sessions.session.Session.on_message`."""
        return self._messages.register(session_id, callback)

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
        known = self._filters.at_hand(session.id)
        name, body = self._encode(event_type, data, metadata, conversation_id)
        future: Future[Event | None] = Future()
        if known is not None and not known.config.wants(name, intermediate=intermediate):
            future.set_result(None)
            return future
        if self.observers.all:
            said = (data, metadata, conversation_id, idempotency_key)
            body, told = self._observed(Emission(session.id, name, *said), body)
            tell_at_end(told, future)
        append = partial(
            self._filter_and_append, session.id, name, body, idempotency_key, intermediate
        )
        try:
            self._outbox.put(Outgoing(session.id, append, self._call, future))
        except Exception as exc:
            future.set_exception(exc)
            raise
        return future

    def _observed(self, emission: Emission, body: bytes) -> tuple[bytes, Emitted]:
        """Tell the observers of an event; return its body with what they add, and whom to tell."""
        told = self.observers.emitting(emission)
        # By a key, the same body has to come each time, and what is added need not be the same.
        if emission.added and emission.idempotency_key is None:
            metadata = {**emission.added, **(emission.metadata or {})}
            with suppress(LimitError, ValueError):
                body = self._encode(
                    emission.event_type, emission.data, metadata, emission.conversation_id
                )[1]
        return body, told

    async def _append_observed(
        self, emission: Emission, known: Known, body: bytes
    ) -> tuple[Event, bool]:
        body, told = self._observed(emission, body)
        key = emission.idempotency_key
        return await telling(
            told, self._append(emission.session_id, known, emission.event_type, body, key)
        )

    async def _filter_and_append(
        self, session_id: str, event_type: str, body: bytes, key: str | None, intermediate: bool
    ) -> tuple[Event | None, bool]:
        known = await self._filters.learn(session_id)
        if not known.config.wants(event_type, intermediate=intermediate):
            return None, False
        return await self._append(session_id, known, event_type, body, key)

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
        self, session_id: str, known: Known, event_type: str, body: bytes, key: str | None
    ) -> tuple[Event, bool]:
        owed = event_type not in known.unowed
        # Its readers here get it as it is, and need not read the store for it.
        tail = self._readers.tails.get(session_id)
        if tail is not None:
            tail.expect()
        try:
            appended = await self.store.append(session_id, event_type, body, owed=owed, key=key)
            record = appended.record
            position = Position(appended.epoch, record.seq)
            event = Event(
                position, record.event_type, record.at, session_id, record.body, self._decode
            )
            if tail is not None and appended.is_new:
                tail.offer(event)
            self._pump.mark(event)
        finally:
            if tail is not None:
                tail.settle()
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
            decode=self._decode,
        )

    def firehose(self, *, types: Collection[str] | None = None) -> Firehose:
        """Follow the events of all sessions from now on, for operators.

        ::

            async with manager.firehose() as events:
                async for event in events:
                    ...

        Args:
            types: Only events of these types, and gaps.
        """
        return Firehose(self._pump, types)

    async def locate(self, session_id: str, microseconds: int) -> Position:
        """Return the position of the last event kept that is not later than a moment.

        Reading on from there gives what came after it. Where all that is kept is later, it is the
        position just before that.

        Args:
            session_id: The session.
            microseconds: The moment, since 1970, UTC.

        Raises:
            UnknownSessionError: There is no such session.
        """
        return await locate(self.store, session_id, microseconds)

    async def clear_events(self, session_id: str, before: Position | datetime | str) -> int:
        """Drop old events, see :meth:`callbackkit.sessions.session.Session.clear`."""
        session = await self.store.get_session(session_id)
        number = await number_before(self.store, session, before)
        # What was read does not count as dropped unread.
        await self._readers.flush()
        dropped = await self.store.trim(session_id, before=number)
        # Those that a delivery still owes have stayed.
        first = (await self.store.get_session(session_id)).first
        self._readers.forget(session_id, min(first, number))
        return dropped

    def note_read(self, session_id: str, position: Position) -> None:
        """Note that somebody read a session up to a position, for the statistics.

        Subscriptions do so by themselves; whoever answers with a page does it here.
        """
        self._readers.note(session_id, position.seq)

    async def _look_around(self) -> None:
        """Do what is to be done now and then."""
        await self.stats()
        await self._messages.forget_gone(self.store)

    async def _tell_operators(
        self, event_type: str, session_id: str, data: Mapping[str, Any]
    ) -> None:
        """Call the callbacks for something that operators hear of; it is in no session's log."""
        self._operator_events += 1
        self.observers.notice(event_type, data)
        body = encode_body(self._codec, data)
        position = Position(OPERATORS, self._operator_events)
        microseconds = int(time.time() * 1e6)
        event = Event(position, event_type, microseconds, session_id, body, self._decode)
        self._pump.put(event)
        await self._call(event)

    # Figures.

    async def stats(self) -> ManagerStats:
        """Return the figures of all sessions of the store."""
        looks = self._history.looks
        await self._readers.flush()
        stats = ManagerStats.of(await self.store.totals(), self._readers.kinds())
        self._history.note(stats, looks)
        return stats

    @property
    def totals(self) -> ManagerStats | None:
        """The figures as they were looked at last: every five seconds while it runs.

        ``None`` before the first time.
        """
        return self._history.last

    @property
    def history(self) -> Sequence[Bucket]:
        """What became of events in the last 60 minutes, by the minute, the oldest first.

        It begins when this manager is entered, or asked for its figures.
        """
        return self._history.buckets

    async def session_stats(self, session_id: str) -> SessionStats:
        """Return the figures of a session, see :class:`~callbackkit.SessionStats`."""
        await self._readers.flush()
        record = await self.store.get_session(session_id)
        return SessionStats.of(record, self._readers.kinds(session_id))

    async def endpoint(self, session_id: str) -> EndpointHealth:
        """Return how the endpoint of a session does.

        Raises:
            ConfigError: The session is read, or this process has not its transport.
            UnknownSessionError: There is no such session.
        """
        record = await self.store.get_session(session_id)
        method = record.method
        if method in READ_METHODS:
            raise ConfigError("delivery_method", f"{method!r} is read, and has no endpoint")
        transport = self._transports.get(method)
        if transport is None:
            raise ConfigError("delivery_method", f"no transport {method!r:.80} here")
        config = self._read_config(record.config)
        return await health_of(self.store, transport, session_id, config, now=steady_time())

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


def _check_changes(changes: Mapping[str, Any]) -> None:
    if not isinstance(changes, Mapping):
        raise ConfigError("config", f"must be an object, not {type(changes).__name__}")
    for key in changes:
        if key not in _CHANGEABLE:
            reason = "can't be changed" if key in ASKED else "is unknown"
            words = ", ".join(sorted(_CHANGEABLE))
            name = key if isinstance(key, str) and key.isprintable() else ascii(key)
            raise ConfigError(f"{name:.80}", f"{reason}; what can be: {words}")


def _check_overlap(overlap: float) -> None:
    is_number = isinstance(overlap, int | float) and not isinstance(overlap, bool)
    if not is_number or not 0 <= overlap <= _MOST_OVERLAP:
        raise ConfigError("overlap", f"must be seconds from 0 to {_MOST_OVERLAP:g}")


def _with_headers_of(before: CallbackConfig, after: CallbackConfig) -> CallbackConfig:
    """Take the headers of one server away from a configuration that leads to another one.

    They are shown to nobody: whoever may change the URL could have them sent to himself.
    """
    was, now = _origin(before.webhook_url), _origin(after.webhook_url)
    return after if was in {None, now} else attrs.evolve(after, headers={})


def _origin(url: str | None) -> tuple[str, str] | None:
    return None if url is None else urlsplit(url)[:2]


def _check_seconds(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number of seconds, not {value!r}")
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} must be 0 or more seconds, not {value!r}")
