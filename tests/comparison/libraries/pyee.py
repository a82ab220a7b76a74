"""pyee: ``AsyncIOEventEmitter`` with a listener for ``error``, then ``wait_for_complete``."""

from collections.abc import Callable

from pyee.asyncio import AsyncIOEventEmitter

from tests.comparison.libraries.base import EVENT, Callback, Delivery, Library


class PyeeLibrary(Library):
    name = "pyee"
    has_results = False

    def __init__(self) -> None:
        self.emitter = AsyncIOEventEmitter()
        self.failures: list[BaseException] = []
        self.emitter.add_listener("error", self.failures.append)

    def connect(self, callback: Callback, event: str = EVENT) -> None:
        self.emitter.add_listener(event, callback)

    def disconnect(self, callback: Callback, event: str = EVENT) -> None:
        self.emitter.remove_listener(event, callback)

    def send(self, event: str = EVENT) -> Delivery:
        self.emitter.emit(event)
        return Delivery(None, list(self.failures))

    async def asend(self, event: str = EVENT) -> Delivery:
        self.emitter.emit(event)
        await self.emitter.wait_for_complete()
        return Delivery(None, list(self.failures))

    def connect_once(self, callback: Callback) -> None:
        self.emitter.once(EVENT, callback)

    def add_error_handler(self, handler: Callable[..., object]) -> None:
        self.emitter.add_listener("error", handler)
