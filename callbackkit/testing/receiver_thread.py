"""A receiver for tests that are no coroutines: it runs in a thread, and its verbs wait."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from anyio.from_thread import BlockingPortal

from callbackkit.testing.answers import Reply
from callbackkit.testing.requests import ReceivedRequest

if TYPE_CHECKING:
    from callbackkit.testing.receiver import FaultyReceiver

__all__ = ["ReceiverInThread"]


class ReceiverInThread:
    """A :class:`FaultyReceiver` as seen from other threads; :meth:`FaultyReceiver.in_thread`.

    All methods are those of the receiver; none is a coroutine.

    Args:
        receiver: The receiver, started.
        portal: The event loop it runs in.
    """

    def __init__(self, receiver: FaultyReceiver, portal: BlockingPortal) -> None:
        self._receiver = receiver
        self._portal = portal

    def __repr__(self) -> str:
        return f"<ReceiverInThread of {self._receiver!r}>"

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._receiver.port

    @property
    def url(self) -> str:
        """Its root."""
        return self._receiver.url

    def stop(self) -> None:
        """Refuse connections and close those there are."""
        self._portal.call(self._receiver.stop)

    def resume(self) -> None:
        """Listen again, at the same port."""
        self._portal.call(self._receiver.resume)

    # What it answers: said in the event loop, so that it holds when the method returns.

    def script(self, *replies: Reply | int) -> None:
        """Say what the next requests get, one each."""
        self._portal.call(self._receiver.script, *replies)

    @property
    def otherwise(self) -> Reply:
        """What requests get when the script is over."""
        return self._receiver.otherwise

    @otherwise.setter
    def otherwise(self, reply: Reply | int) -> None:
        self._receiver.otherwise = reply

    def on(self, path: str, reply: Reply | int | None) -> None:
        """Say what requests for a path get, always; ``None`` takes it back."""
        self._portal.call(self._receiver.on, path, reply)

    # What it got.

    @property
    def requests(self) -> list[ReceivedRequest]:
        """All requests so far, oldest first."""
        return self._receiver.requests

    @property
    def deliveries(self) -> dict[str, list[ReceivedRequest]]:
        """The requests by their ``webhook-id``."""
        return self._receiver.deliveries

    @property
    def connections(self) -> int:
        """Connections that are open now."""
        return self._receiver.connections

    def next_request(self, *, timeout: float | None = 10.0) -> ReceivedRequest:
        """Return the oldest request that was not returned yet; wait for it if need be."""
        return self._portal.call(partial(self._receiver.next_request, timeout=timeout))

    def wait_for(self, count: int, *, timeout: float | None = 10.0) -> list[ReceivedRequest]:
        """Wait until at least *count* requests have come; return the first *count*."""
        return self._portal.call(partial(self._receiver.wait_for, count, timeout=timeout))

    def wait_disconnected(self, *, timeout: float | None = 10.0) -> None:
        """Wait until no client is connected any more."""
        self._portal.call(partial(self._receiver.wait_disconnected, timeout=timeout))
