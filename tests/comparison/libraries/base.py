"""What the probes need of a library."""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Hashable, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from typing import Any, ClassVar, Literal

import attrs

Callback = Callable[..., Any]
EVENT = "order.created"


class NotOfferedError(Exception):
    """The library has nothing for what the probe needs."""


@attrs.frozen
class Delivery:
    """What a program learns when it has sent an event.

    Attributes:
        outcomes: For each callback what it returned or, where the library tells so, what it
            raised; ``None`` where nothing comes back.
        failures: What the program hears of callbacks that failed, on whatever way.
    """

    outcomes: Sequence[tuple[Literal["value", "error"], Any]] | None
    failures: Sequence[BaseException]


class Library(ABC):
    """A registry, emitter or set of signals of a library.

    Callbacks take any arguments, since each library calls them with its own.
    """

    name: ClassVar[str]
    """What users call it."""

    @abstractmethod
    def connect(self, callback: Callback, event: str = EVENT) -> None:
        """Register a callback, held strongly."""

    @abstractmethod
    def disconnect(self, callback: Callback, event: str = EVENT) -> None:
        """Take a callback away."""

    @abstractmethod
    def send(self, event: str = EVENT) -> Delivery:
        """Send an event to synchronous callbacks."""

    @abstractmethod
    async def asend(self, event: str = EVENT) -> Delivery:
        """Send an event to callbacks of both kinds and wait for them, one way or another."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Have ready what the library needs for async callbacks."""
        yield

    waits: ClassVar[bool] = True
    """Whether there is a way to wait until async callbacks are done."""

    has_results: ClassVar[bool] = True
    """Whether what callbacks return comes back."""

    # What not every library has.

    def connect_as_documented(self, callback: Callback) -> None:
        """Register a callback with the library's defaults."""
        self.connect(callback)

    def connect_limited(self, callback: Callback, timeout: float) -> None:
        """Register a synchronous callback that may take that many seconds."""
        self.connect(callback)

    def connect_once(self, callback: Callback) -> None:
        """Register a callback for a single call."""
        raise NotOfferedError("no way to be called only once")

    def add_error_handler(self, handler: Callback) -> None:
        """Have a function told of what callbacks raise."""
        raise NotOfferedError("no function is told of what a callback raises")

    def muted(self) -> AbstractContextManager[Any]:
        """Keep the event from being delivered for a while."""
        raise NotOfferedError("no way to mute an event for a while")

    def new_key(self, number: int) -> Hashable:
        """Make, at run time, a new object that callbacks can be registered for."""
        return "".join(["room.", str(number)])

    def connect_for(self, key: Any, callback: Callback) -> None:
        """Register a callback for such an object."""
        self.connect(callback, key)

    def send_for(self, key: Any) -> None:
        """Send an event for such an object."""
        self.send(key)
