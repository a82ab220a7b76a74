"""Handlers found by what a payload says of itself."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

from typing_extensions import Unpack

from callbackkit.dispatch.callables import (
    callable_name,
    is_async_callable,
    is_awaitable,
    short_repr,
)
from callbackkit.dispatch.dispatcher import Dispatcher
from callbackkit.dispatch.event_types import EventName, event_name, pattern_key, trigger_key
from callbackkit.dispatch.outcome import DispatchResult, make_result
from callbackkit.dispatch.registering import CallbackOptions
from callbackkit.dispatch.registration import Bound, Registration
from callbackkit.dispatch.registry import CallbackRegistry
from callbackkit.events import EventKey

__all__ = ["EventRouter"]

C = TypeVar("C", bound=Callable[..., Any])

logger: logging.Logger = logging.getLogger("callbackkit.dispatch")

# Strangers make event types up, and a registry remembers the last thousand it was asked for.
_MAX_NAME = 1000

# What a payload without an event type goes by on its way to the default handler.
_UNTYPED = "(no event type)"


class EventRouter:
    """Calls the handlers for the event type that a payload carries.

    Handlers are callbacks of a :class:`~callbackkit.CallbackRegistry`: sync or async, isolated,
    for event types, patterns or classes, in order of priority and registration. They get the
    whole payload::

        router = EventRouter("type")
        router.register_handler("call.started", answer)
        await router.handle_event({"type": "call.started", "from": "+49 30 1234"})

    A payload may come from a stranger: whatever it is, handling it raises nothing.

    Args:
        key: Where the event type stands: a key of a payload that is a mapping, which is an
            attribute of any other payload; or a synchronous function from the payload to its
            event type. ``key=type`` routes objects by their class.
        new_registry: Makes the registries that hold the handlers of the router and of each of
            its channels, for example one with a *timeout* and an error callback.

    Attributes:
        registry: Holds the handlers: to list, mute, stream or unregister them.

    Raises:
        TypeError: *key* is neither a string nor a synchronous function.
    """

    def __init__(
        self,
        key: str | Callable[[Any], object] = "type",
        *,
        new_registry: Callable[[], CallbackRegistry] = CallbackRegistry,
    ) -> None:
        read = _reader(key)
        self._key = key
        # The dispatcher isolates the key function too, and what a hostile payload does to it.
        self._dispatcher = Dispatcher()
        self._entry = Bound(_checking(read), None, read)
        self._new_registry = new_registry
        self.registry: CallbackRegistry = new_registry()
        self._defaults = new_registry()
        self._default: Registration | None = None
        self._lock = threading.Lock()
        self._channels: dict[str, EventRouter] = {}
        self._parent: EventRouter | None = None

    def __repr__(self) -> str:
        key = repr(self._key) if isinstance(self._key, str) else callable_name(self._key)
        return f"<EventRouter by {key}, {len(self.registry.listeners())} handlers>"

    # Registering.

    def register_handler(
        self,
        event_type: str | EventKey[Any] | type[Any],
        handler: Callable[..., object],
        *,
        when: Callable[[Any], object] | None = None,
        with_event: bool = False,
        **options: Unpack[CallbackOptions],
    ) -> Registration:
        """Have *handler* called with the payloads of an event type, a pattern or a class.

        Args:
            with_event: Call it with ``(event_type, payload)``.
            options: As for :meth:`CallbackRegistry.register_callback
                <callbackkit.CallbackRegistry.register_callback>`.
        """
        event: Any = event_type
        return self.registry.register_callback(
            event, handler, when=when, with_event=with_event, **options
        )

    def route(
        self,
        *event_types: str | EventKey[Any] | type[Any],
        when: Callable[[Any], object] | None = None,
        with_event: bool = False,
        **options: Unpack[CallbackOptions],
    ) -> Callable[[C], C]:
        """:meth:`register_handler` as a decorator, for one event type or several."""
        if not event_types:
            raise TypeError("route() needs an event type: @router.route('call.started')")
        for event_type in event_types:
            pattern_key(event_type)

        def register(handler: C) -> C:
            for event_type in event_types:
                self.register_handler(
                    event_type, handler, when=when, with_event=with_event, **options
                )
            return handler

        return register

    def default(
        self,
        handler: C,
        *,
        when: Callable[[Any], object] | None = None,
        **options: Unpack[CallbackOptions],
    ) -> C:
        """Have *handler* called with the payloads nobody else handles; usable as a decorator.

        Those are payloads of a type without handlers, of none, or of something that is no event
        type. A router has one default handler: the last one set.
        """
        registration = self._defaults.register_callback("**", handler, when=when, **options)
        with self._lock:
            previous, self._default = self._default, registration
        if previous is not None:
            previous.cancel()
        return handler

    def channel(self, name: str) -> EventRouter:
        """Return a router with handlers of its own, the same one for the same name.

        It reads event types as this one does. What it does not handle goes to its own default
        handler, else to this router's. Channels are kept, so name them yourself: a name taken
        from payloads has no end.
        """
        _check_name(name)
        channel = self._channels.get(name)
        if channel is None:
            new = EventRouter(self._key, new_registry=self._new_registry)
            new._parent = self
            # Of two threads that come here at once, both get the first one's.
            channel = self._channels.setdefault(name, new)
        return channel

    # Handling.

    async def handle_event(self, payload: Any) -> DispatchResult:
        """Call the handlers for the payload's event type, else the default handler.

        Returns:
            What each of them did; empty if there was none, which is logged as a warning.
        """
        event = self._event_type(payload)
        if event is not None:
            result = await self.registry.trigger_callbacks(event, payload)
            # Nobody is called for a muted event, and that is no reason to complain.
            if result or self.registry.has_listeners(event):
                return result
        return await self._handle_unknown(event, payload)

    def _event_type(self, payload: Any) -> EventName | None:
        """Return the event type of a payload; ``None`` if it has none that could be one."""
        found: EventName | None = self._dispatcher.run_sync(
            [self._entry], payload, "the event type of a payload"
        ).first()
        return found

    async def _handle_unknown(self, event: EventName | None, payload: Any) -> DispatchResult:
        name = event if isinstance(event, str) else _UNTYPED
        router: EventRouter | None = self
        while router is not None:
            result = await router._defaults.trigger_callbacks(name, payload)
            if result:
                return result
            router = router._parent
        if event is None:
            logger.warning("a payload has no event type: %s", short_repr(payload))
        else:
            logger.warning(
                "no handler for event type %s", event_name(event), extra={"event_type": event}
            )
        return make_result((), ())


def _check_name(name: Any) -> None:
    if not isinstance(name, str):
        raise TypeError(f"the name of a channel is a string, not {type(name).__name__}")


# Reading event types.


def _reader(key: str | Callable[[Any], Any]) -> Callable[[Any], Any]:
    if isinstance(key, str):
        return _by_name(key)
    if not callable(key):
        raise TypeError(f"key must be a string or a function, not {type(key).__name__}")
    if is_async_callable(key):
        raise TypeError(f"key must be a synchronous function; {callable_name(key)} is async")
    return key


def _by_name(key: str) -> Callable[[Any], Any]:
    def read(payload: object) -> Any:
        if isinstance(payload, Mapping):
            return cast("Mapping[str, Any]", payload).get(key)
        return getattr(payload, key, None)

    return read


def _checking(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return *read* made to give a plain string or a class; ``None`` for what is no event type."""

    def checked(payload: Any) -> Any:
        found = read(payload)
        try:
            event = trigger_key(found)
        except (TypeError, ValueError):
            # What is to be awaited is passed on: the dispatcher closes and reports it.
            return found if is_awaitable(found) else None
        return event if not isinstance(event, str) or len(event) <= _MAX_NAME else None

    return checked
