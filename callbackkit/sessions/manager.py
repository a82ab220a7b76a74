"""The manager an application holds: for now, the callbacks of its process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeVar, Unpack, overload

from callbackkit.dispatch.outcome import DispatchResult
from callbackkit.dispatch.registering import CallbackOptions
from callbackkit.dispatch.registration import Registration
from callbackkit.dispatch.registry import CallbackRegistry
from callbackkit.events import EventKey

__all__ = ["CallbackManager"]

T = TypeVar("T")


class CallbackManager:
    """Callbacks of this process, by event type; needs nothing to be set up or started.

    It owns a :class:`~callbackkit.CallbackRegistry`, reachable as :attr:`registry` for what the
    three methods here do not offer.

    Attributes:
        registry: Where its callbacks are registered.
    """

    def __init__(self) -> None:
        self.registry: CallbackRegistry = CallbackRegistry()

    def __repr__(self) -> str:
        return f"<CallbackManager of {self.registry!r}>"

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
