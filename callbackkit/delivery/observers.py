"""Who watches what a manager stores and delivers, as metrics and traces do."""

from __future__ import annotations

import logging
import threading
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import CancelledError, Future
from functools import partial
from typing import Any, TypeVar, cast

import attrs

from callbackkit.delivery.attempt import failure_of
from callbackkit.delivery.transport import Delivery, Transport
from callbackkit.events import Event

__all__ = [
    "Attempted",
    "Emission",
    "Emitted",
    "Observer",
    "Observers",
    "tell_at_end",
    "telling",
]

AnObserver = TypeVar("AnObserver", bound="Observer")
Told = TypeVar("Told")

_logger = logging.getLogger("callbackkit.delivery")

Emitted = Callable[[Event | None, BaseException | None], object]
"""Told the event as it was stored, or what kept it from that."""

Attempted = Callable[[BaseException | None], object]
"""Told what an attempt failed with, ``None`` if it worked."""


@attrs.frozen(eq=False)
class Emission:
    """An event on its way into its session; it is valid, and its session wants it.

    Attributes:
        session_id: The session.
        event_type: Its type.
        data: What it says.
        metadata: What its emitter says about it.
        conversation_id: What it belongs to.
        idempotency_key: What it is known by, should it be emitted again.
        added: For observers to say more in the metadata: string keys, JSON values. What the
            emitter said under a key stands. Left out where the event has an idempotency key, since
            emitting it again must give the same event, and where it would become larger than is
            allowed.
    """

    session_id: str
    event_type: str
    data: Mapping[str, Any] | None = None
    metadata: Mapping[str, Any] | None = None
    conversation_id: str | None = None
    idempotency_key: str | None = None
    added: dict[str, Any] = attrs.field(factory=dict[str, Any])


class Observer:
    """Told of what is stored, of attempts to deliver and of what operators hear; override any.

    It is called where that happens, before and after, and everybody waits for it: it must be
    quick, and not block. What it raises is logged, and changes nothing.
    """

    def emitting(self, emission: Emission) -> Emitted | None:
        """Hear that an event is about to be stored, in the context of who emits it.

        Returns:
            What to call once, when it is stored or is not; after :meth:`Session.emit_soon` that
            may be in another thread. ``None`` for nothing.
        """
        del emission
        return None

    def attempting(self, delivery: Delivery, method: str) -> Attempted | None:
        """Hear that a transport is about to send.

        Args:
            delivery: What it sends.
            method: Its name.

        Returns:
            What to call once, in the same task, when it has sent or failed. ``None`` for nothing.
        """
        del delivery, method
        return None

    def noticing(self, event_type: str, data: Mapping[str, Any]) -> None:
        """Hear what operators are told: ``endpoint.failing``, ``delivery.dead`` and so on."""
        del event_type, data


class Observers:
    """The observers of one manager.

    Attributes:
        all: They, in the order they came; a new tuple with each change, so that a hot path can ask
            without a lock whether there is any.
    """

    def __init__(self) -> None:
        self.all: tuple[Observer, ...] = ()
        # Re-entrant: a finalizer may add or remove one while it is held.
        self._lock = threading.RLock()

    def add(self, observer: Observer) -> None:
        """Have one told from now on.

        Raises:
            TypeError: It is no :class:`Observer`.
        """
        if not isinstance(cast(object, observer), Observer):
            raise TypeError(f"{observer!r:.200} is no Observer; make it an instance of a subclass")
        with self._lock:
            self.all = (*self.all, observer)

    def remove(self, observer: Observer) -> None:
        """Have one told nothing any more but the end of what it heard begin."""
        with self._lock:
            self.all = tuple(each for each in self.all if each is not observer)

    def first(self, kind: type[AnObserver], make: Callable[[], AnObserver]) -> AnObserver:
        """Return the first one of a class; if there is none, make and add it."""
        with self._lock:
            for each in self.all:
                if isinstance(each, kind):
                    return each
            made = make()
            self.all = (*self.all, made)
            return made

    def emitting(self, emission: Emission) -> Emitted:
        """Tell all that an event is about to be stored; return what tells them how it went."""
        told = [_asked(each.emitting, emission) for each in self.all]
        return partial(_tell, told)

    def notice(self, event_type: str, data: Mapping[str, Any]) -> None:
        """Tell all what operators are told."""
        for each in self.all:
            _asked(each.noticing, event_type, data)

    async def attempt(
        self, transport: Transport, delivery: Delivery, *, timeout: float
    ) -> Exception | None:
        """Send by a transport, as :func:`~callbackkit.delivery.attempt.failure_of` does."""
        told = [_asked(each.attempting, delivery, transport.name) for each in self.all]
        try:
            error = await failure_of(transport.send, delivery, timeout=timeout)
        except BaseException as exc:
            _tell(told, exc)
            raise
        _tell(told, error)
        return error


async def telling(told: Emitted, stored: Awaitable[tuple[Event, bool]]) -> tuple[Event, bool]:
    """Await the storing of an event, and tell how it went."""
    try:
        event, is_new = await stored
    except BaseException as exc:
        told(None, exc)
        raise
    told(event, None)
    return event, is_new


def tell_at_end(told: Emitted, future: Future[Event | None]) -> None:
    """Tell how it went as soon as a future is done."""

    def tell(done: Future[Event | None]) -> None:
        error = CancelledError() if done.cancelled() else done.exception()
        told(None if error is not None else done.result(), error)

    future.add_done_callback(tell)


def _asked(ask: Callable[..., Told], *args: object) -> Told | None:
    try:
        return ask(*args)
    except Exception:
        _logger.exception("an observer failed", extra={"observer": f"{ask!r:.200}"})
        return None


def _tell(told: list[Callable[..., object] | None], *args: object) -> None:
    """Call what observers gave, the last one first, so that they nest."""
    for each in reversed(told):
        if each is not None:
            _asked(each, *args)
