"""blinker: ``send_async`` with a wrapper for synchronous receivers."""

from collections.abc import Callable, Coroutine, Hashable
from contextlib import AbstractContextManager
from typing import Any

import blinker

from tests.comparison.libraries.base import EVENT, Callback, Delivery, Library


class BlinkerLibrary(Library):
    name = "blinker"

    def __init__(self) -> None:
        self.signals = blinker.Namespace()

    def connect(self, callback: Callback, event: str = EVENT) -> None:
        self.signals.signal(event).connect(callback, weak=False)

    def disconnect(self, callback: Callback, event: str = EVENT) -> None:
        self.signals.signal(event).disconnect(callback)

    def send(self, event: str = EVENT) -> Delivery:
        return _delivery(self.signals.signal(event).send())

    async def asend(self, event: str = EVENT) -> Delivery:
        signal = self.signals.signal(event)
        return _delivery(await signal.send_async(_sync_wrapper=_as_coroutine_function))

    def connect_as_documented(self, callback: Callback) -> None:
        self.signals.signal(EVENT).connect(callback)

    def muted(self) -> AbstractContextManager[None]:
        return self.signals.signal(EVENT).muted()

    def new_key(self, number: int) -> Hashable:
        return ("room", number)

    def connect_for(self, key: Any, callback: Callback) -> None:
        self.signals.signal(EVENT).connect(callback, sender=key, weak=False)

    def send_for(self, key: Any) -> None:
        self.signals.signal(EVENT).send(key)


def _as_coroutine_function(
    receiver: Callable[..., Any],
) -> Callable[..., Coroutine[Any, Any, Any]]:
    """The wrapper of blinker's documentation."""

    async def inner(*args: Any, **kwargs: Any) -> Any:
        return receiver(*args, **kwargs)

    return inner


def _delivery(results: list[tuple[Callback, Any]]) -> Delivery:
    return Delivery([("value", value) for _, value in results], [])
