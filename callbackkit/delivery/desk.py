"""What everybody who serves a claim shares: the store, time and chance, and how it is told."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import lru_cache
from typing import Any, Final

from callbackkit.delivery.attempt import Deadlines
from callbackkit.delivery.endpoint import Endpoints
from callbackkit.delivery.observers import Observers
from callbackkit.delivery.places import Place, Places
from callbackkit.delivery.transport import DeliveryConfig, Transport
from callbackkit.stores.base import Store, Watch, Watches

__all__ = ["MARGIN", "Desk", "Notify"]

_logger = logging.getLogger("callbackkit.delivery")

Notify = Callable[[str, str, Mapping[str, Any]], Awaitable[None]]
"""Told the type of an operator event, the id of a session and the data of the event."""

# Seconds that a lease outlives the deadline of an attempt by, at least: Svix warns below these.
MARGIN: Final = 5.0
# Seconds of a timeout that the leases of all claims are made for: after a crash nobody waits longer
# because one transport is slow. Longer ones are renewed for before they begin.
_LONGEST: Final = 30.0
# Claims that may be held while their batches fill, for each that may be served.
_MOST_WAITING: Final = 4
# Configurations that are read once.
_MOST_CONFIGS: Final = 1024


class Desk:
    """The collaborators of the engine, and what its loop wants of those who serve.

    Attributes:
        store: Where deliveries are owed.
        transports: By name.
        endpoints: The endpoints.
        observers: Who is told of attempts.
        deadlines: Those of attempts; made anew for each run, as they belong to its event loop.
        worker: Names the probes of this engine, unlike those of any other.
        places: How many claims are served at the same time; those that wait for a batch do not
            count.
        lease: Seconds of a lease, unless a timeout asks for more.
        is_draining: Nobody waits any more for a batch to fill.
        is_crowded: More may be due than can be served at once.
        watch: What the engine waits on.
    """

    def __init__(
        self,
        store: Store,
        transports: Mapping[str, Transport],
        *,
        read_config: Callable[[bytes], DeliveryConfig],
        decode: Callable[[bytes], Any],
        notify: Notify,
        clock: Callable[[], float],
        random: Callable[[], float],
        worker: str,
        concurrency: int,
        observers: Observers,
    ) -> None:
        self.store: Store = store
        self.transports: Mapping[str, Transport] = transports
        self.endpoints: Endpoints = Endpoints(store)
        self.observers: Observers = observers
        self.deadlines: Deadlines = Deadlines()
        self.worker: str = worker
        self.places: Places = Places(concurrency, len(transports))
        timeouts = [transport.timeout for transport in transports.values()]
        self.lease: float = min(max(timeouts, default=0.0), _LONGEST) + 2 * MARGIN
        self.is_draining: bool = False
        self.is_crowded: bool = False
        self.read_config: Callable[[bytes], DeliveryConfig] = lru_cache(_MOST_CONFIGS)(read_config)
        self.decode: Callable[[bytes], Any] = decode
        self.clock: Callable[[], float] = clock
        self.random: Callable[[], float] = random
        self.watch: Watch | None = None
        self._notify = notify
        self._pauses = Watches()
        self._waiting: set[Watch] = set()
        self._probes = 0

    @property
    def may_wait(self) -> bool:
        """One more claim may be held until a batch is full."""
        return len(self._waiting) < _MOST_WAITING * self.places.concurrency

    def new_probe(self) -> str:
        """Return a name for who tries an endpoint out."""
        self._probes += 1
        return f"{self.worker}.{self._probes}"

    async def tell(self, event_type: str, session_id: str, data: Mapping[str, Any]) -> None:
        """Have operators hear of something; that it fails is logged."""
        try:
            await self._notify(event_type, session_id, data)
        except Exception:
            _logger.exception("operators could not be told", extra={"delivery_event": event_type})

    # Waiting. All of it ends early when the clock may have jumped.

    async def pause(self, seconds: float) -> None:
        """Wait so long, or until :meth:`wake`."""
        with self._pauses.watch(None) as watch:
            await watch.wait(seconds)

    async def wait_on(self, watch: Watch, seconds: float, place: Place) -> bool:
        """Wait so long, or until something is appended, or :meth:`wake`; take no place meanwhile.

        Returns:
            There is a place again.
        """
        self._waiting.add(watch)
        self.places.leave(place)
        self.make_room()
        try:
            await watch.wait(seconds)
            return self.places.room > 0
        finally:
            self.places.come_back(place, self.clock())
            self._waiting.discard(watch)

    def step_aside(self, place: Place) -> bool:
        """Leave a place to others for one delivery; ``False`` if too many did."""
        has_stepped = self.places.step_aside(place)
        self.make_room()
        return has_stepped

    def make_room(self) -> None:
        """Have the engine claim more, now that there is room, if more is due."""
        if self.is_crowded and self.watch is not None:
            self.watch.ring()

    def wake(self) -> None:
        """Have everybody who waits look again."""
        self._pauses.ring_all()
        for watch in (*self._waiting, *([self.watch] if self.watch else ())):
            watch.ring()
