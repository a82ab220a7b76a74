"""The connections that are open, and one watchdog for all of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from functools import partial
from typing import Any, Final

import anyio

from callbackkit.dispatch.detached import detach
from callbackkit.sessions.subscription import Subscription

__all__ = [
    "Connection",
    "Connections",
    "Message",
    "Receive",
    "Send",
    "leave_at_disconnect",
]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

# Seconds between two looks of the watchdog, at most; and how many it takes within what is asked.
_LOOK: Final = 1.0
_LOOKS: Final = 4
# Seconds that a client may take to read, once it is to come back: a server that stops waits for it.
_AT_DRAIN: Final = 2.0


class Connection:
    """One client that is sent what a subscription reads.

    Sending costs no timer: who sends notes when it began, and the watchdog cancels what takes too
    long.

    Attributes:
        subscription: What it reads.
        scope: Ends it when cancelled.
        is_sending: A send goes on.
        since: When the last send began, by the watchdog's clock.
        is_beat_due: Nothing was sent for so long that it should be.
        beats: How often that was so.
        closing: Close code and reason, once this end wants to close it.
    """

    __slots__ = ("beats", "closing", "is_beat_due", "is_sending", "scope", "since", "subscription")

    def __init__(self, subscription: Subscription, scope: anyio.CancelScope) -> None:
        self.subscription: Subscription = subscription
        self.scope: anyio.CancelScope = scope
        self.is_sending: bool = False
        self.since: float = 0.0
        self.is_beat_due: bool = False
        self.beats: int = 0
        self.closing: tuple[int, str] | None = None

    def close(self, code: int, reason: str) -> None:
        """Have its sender close it."""
        self.closing = (code, reason)
        self.subscription.poke()


class Connections:
    """All connections of one application.

    A task looks at them now and then, as long as there are any: it has the silent ones send a
    heartbeat, and ends those whose client does not read.

    Args:
        heartbeat: Seconds of silence after which a client is sent something.
        write_timeout: Seconds that a client may take to read what is sent; ``None`` for ever.

    Raises:
        ValueError: Seconds that are not above 0.

    Attributes:
        now: The time by the watchdog's clock, in seconds: it goes on by its looks, so that an event
            loop that was blocked makes nobody late.
    """

    def __init__(self, *, heartbeat: float = 15.0, write_timeout: float | None = 30.0) -> None:
        for name, value in (("heartbeat", heartbeat), ("write_timeout", write_timeout)):
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0 seconds, not {value!r}")
        self._heartbeat = heartbeat
        self._write_timeout = write_timeout
        self._every = min(_LOOK, heartbeat / _LOOKS, (write_timeout or _LOOK * _LOOKS) / _LOOKS)
        self._open: set[Connection] = set()
        self._watchdog: object = None
        self._scope: anyio.CancelScope | None = None
        self.now: float = 0.0

    def __repr__(self) -> str:
        return f"<Connections, {len(self._open)} open>"

    def __len__(self) -> int:
        return len(self._open)

    def add(self, connection: Connection) -> None:
        """Look after a connection."""
        connection.since = self.now
        self._open.add(connection)
        if self._scope is None:
            scope = self._scope = anyio.CancelScope()
            self._watchdog = detach(partial(self._watch, scope), partial(self._ended, scope))

    def discard(self, connection: Connection) -> None:
        """Look after a connection no longer."""
        self._open.discard(connection)
        if not self._open and self._scope is not None:
            self._scope.cancel()
            self._scope = None

    async def run(self, connection: Connection, serve: Callable[[], Awaitable[None]]) -> None:
        """Look after a connection as long as it is served, and end it then."""
        self.add(connection)
        try:
            await serve()
        except OSError:
            # So servers tell of a client that has left (ASGI 2.4).
            return
        finally:
            self.discard(connection)
            connection.scope.cancel()

    async def send(self, connection: Connection, send: Send, message: Message) -> None:
        """Send something, with the watchdog looking."""
        connection.since = self.now
        connection.is_sending = True
        await send(message)
        connection.is_sending = False

    async def beat(self, connection: Connection, send: Send, message: Message) -> None:
        """Send a heartbeat; now and then have the store looked at, whether it rang or not."""
        connection.is_beat_due = False
        await self.send(connection, send, message)
        connection.beats += 1
        if connection.beats * self._heartbeat >= connection.subscription.looks_every:
            connection.beats = 0
            connection.subscription.reconcile()

    async def _watch(self, scope: anyio.CancelScope) -> None:
        with scope:
            while True:
                await anyio.sleep(self._every)
                self.now += self._every
                for connection in list(self._open):
                    self._look_at(connection)

    def _look_at(self, connection: Connection) -> None:
        silent = self.now - connection.since
        if connection.is_sending:
            most = self._write_timeout
            if connection.subscription.is_draining:
                most = min(_AT_DRAIN, most or _AT_DRAIN)
            if most is not None and silent > most:
                connection.scope.cancel()
        elif silent >= self._heartbeat:
            connection.is_beat_due = True
            connection.subscription.poke()

    def _ended(self, scope: anyio.CancelScope) -> None:
        # An event loop that ends takes its watchdog along.
        if self._scope is scope:
            self._scope = None


async def leave_at_disconnect(receive: Receive, scope: anyio.CancelScope) -> None:
    """Cancel a scope as soon as the client of an HTTP request has left."""
    while (await receive())["type"] != "http.disconnect":
        # What is left of the request's body.
        continue
    scope.cancel()
