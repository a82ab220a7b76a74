"""django.dispatch: ``send_robust`` and ``asend_robust``, which also log what fails."""

import logging
from collections.abc import Hashable
from typing import Any

from django.dispatch import Signal

from tests.comparison.libraries.base import EVENT, Callback, Delivery, Library


class DjangoLibrary(Library):
    name = "django.dispatch"

    def __init__(self) -> None:
        self.signals: dict[str, Signal] = {}
        self.log = _Log()
        logging.getLogger("django.dispatch").addHandler(self.log)

    def connect(self, callback: Callback, event: str = EVENT) -> None:
        self._signal(event).connect(callback, weak=False)

    def disconnect(self, callback: Callback, event: str = EVENT) -> None:
        self._signal(event).disconnect(callback)

    def send(self, event: str = EVENT) -> Delivery:
        return self._delivery(self._signal(event).send_robust(None))

    async def asend(self, event: str = EVENT) -> Delivery:
        return self._delivery(await self._signal(event).asend_robust(None))

    def connect_as_documented(self, callback: Callback) -> None:
        self._signal(EVENT).connect(callback)

    def new_key(self, number: int) -> Hashable:
        return ("room", number)

    def connect_for(self, key: Any, callback: Callback) -> None:
        self._signal(EVENT).connect(callback, sender=key, weak=False)

    def send_for(self, key: Any) -> None:
        self._signal(EVENT).send_robust(key)

    def _signal(self, event: str) -> Signal:
        return self.signals.setdefault(event, Signal())

    def _delivery(self, results: list[tuple[Callback, Any]]) -> Delivery:
        # By its documentation, a result that is an exception is one that was raised.
        outcomes = [
            ("error" if isinstance(value, Exception) else "value", value) for _, value in results
        ]
        return Delivery(outcomes, list(self.log.failures))


class _Log(logging.Handler):
    """Formats records, as any handler does, and keeps the exceptions."""

    def __init__(self) -> None:
        super().__init__()
        self.failures: list[BaseException] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.format(record)
        if record.exc_info and record.exc_info[1]:
            self.failures.append(record.exc_info[1])
