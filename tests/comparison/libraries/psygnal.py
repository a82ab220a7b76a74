"""psygnal: signals with the asyncio backend."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager

import psygnal
from psygnal import SignalInstance

from tests.comparison.libraries.base import (
    EVENT,
    Callback,
    Delivery,
    Library,
    NotOfferedError,
)


class PsygnalLibrary(Library):
    name = "psygnal"
    waits = False
    has_results = False

    def __init__(self) -> None:
        self.signals: dict[str, SignalInstance] = {}

    def connect(self, callback: Callback, event: str = EVENT) -> None:
        self._signal(event).connect(callback)

    def disconnect(self, callback: Callback, event: str = EVENT) -> None:
        self._signal(event).disconnect(callback)

    def send(self, event: str = EVENT) -> Delivery:
        self._signal(event).emit(None)
        return Delivery(None, [])

    async def asend(self, event: str = EVENT) -> Delivery:
        """Emit, then wait for a signal of our own at the end of the backend's queue."""
        self.send(event)
        reached = asyncio.Event()

        async def fence(data: object) -> None:
            reached.set()

        end = SignalInstance((object,))
        end.connect(fence)
        end.emit(None)
        await reached.wait()
        return Delivery(None, [])

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        backend = psygnal.set_async_backend("asyncio")
        await backend.running.wait()
        try:
            yield
        finally:
            backend.close()

    def muted(self) -> AbstractContextManager[None]:
        return self._signal(EVENT).blocked()

    def new_key(self, number: int) -> str:
        raise NotOfferedError("a signal is an attribute; callbacks are not registered for a value")

    def _signal(self, event: str) -> SignalInstance:
        return self.signals.setdefault(event, SignalInstance((object,)))
