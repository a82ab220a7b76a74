"""callbackkit."""

from collections.abc import Callable
from contextlib import AbstractContextManager

from callbackkit import CallbackRegistry, DispatchResult
from tests.comparison.libraries.base import EVENT, Callback, Delivery, Library


class OurLibrary(Library):
    name = "callbackkit"

    def __init__(self) -> None:
        self.registry = CallbackRegistry()

    def connect(self, callback: Callback, event: str = EVENT) -> None:
        self.registry.register_callback(event, callback)

    def disconnect(self, callback: Callback, event: str = EVENT) -> None:
        self.registry.unregister_callback(event, callback)

    def send(self, event: str = EVENT) -> Delivery:
        return _delivery(self.registry.trigger_callbacks_sync(event))

    async def asend(self, event: str = EVENT) -> Delivery:
        return _delivery(await self.registry.trigger_callbacks(event))

    def connect_limited(self, callback: Callback, timeout: float) -> None:
        self.registry.register_callback(EVENT, callback, thread=True, timeout=timeout)

    def connect_once(self, callback: Callback) -> None:
        self.registry.register_callback(EVENT, callback, once=True)

    def add_error_handler(self, handler: Callable[..., object]) -> None:
        self.registry.add_error_callback(handler)

    def muted(self) -> AbstractContextManager[None]:
        return self.registry.muted(EVENT)


def _delivery(result: DispatchResult) -> Delivery:
    outcomes = [
        ("value", outcome.value) if outcome.ok else ("error", outcome.error) for outcome in result
    ]
    return Delivery(outcomes, result.errors)
