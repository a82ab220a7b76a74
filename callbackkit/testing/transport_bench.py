"""What a law of transports is checked with: a transport, deliveries for it, what arrived."""

from __future__ import annotations

import inspect
import itertools
import json
import secrets
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, Final

import anyio
import attrs

from callbackkit.delivery.policy import Batching
from callbackkit.delivery.transport import Delivery, DeliveryConfig, Transport
from callbackkit.events import Event, Position
from callbackkit.testing.messages import show

__all__ = ["Asked", "Break", "MakeTransport", "Received", "TransportBench", "TransportLaw", "body"]

MakeTransport = Callable[[], Transport | Awaitable[Transport]]
Received = Callable[[], Collection[str] | Awaitable[Collection[str]]]
Break = Callable[[bool], object]

# 2026-11-10, in microseconds.
_BEGIN: Final = 1_794_268_800_000_000


@attrs.frozen(kw_only=True)
class Asked:
    """What a client asks for where a test does not say.

    Attributes:
        base: A configuration to go by in everything else.
    """

    delivery_method: str
    options: Mapping[str, Any] = attrs.field(factory=dict[str, Any], repr=False)
    batching: Batching | None = None
    base: DeliveryConfig | None = attrs.field(default=None, repr=False)
    timeout: float | None = None
    retry_attempts: int | None = None
    rate_limit: float | None = None

    def mask(self, text: str) -> str:
        """Return *text* without the secrets of the base."""
        return text if self.base is None else self.base.mask(text)

    def __getattr__(self, name: str) -> Any:
        # What transports of a kind look for besides, such as a URL.
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.base, name)


def body(data: object) -> bytes:
    """Return what an event holds, as a session stores it."""
    parts: dict[str, object] = {"conversation_id": None, "data": data, "metadata": {}}
    return json.dumps(parts, separators=(",", ":"), ensure_ascii=False).encode()


@attrs.define
class TransportBench:
    """A transport that was started, and its destination.

    Attributes:
        transport: The transport.
        config: What the client asked for.
        patience: Real seconds that a send may take.
    """

    transport: Transport
    config: DeliveryConfig
    patience: float
    _received: Received
    _begin: int = 0
    # A destination may know repeats by their ids.
    _epoch: str = attrs.field(factory=lambda: secrets.token_hex(8))
    _numbers: itertools.count[int] = attrs.field(factory=lambda: itertools.count(1))

    async def arrived(self) -> list[str]:
        """Return the ids of the events that the destination has, in the order they came in."""
        return (await _all(self._received))[self._begin :]

    async def begin(self) -> None:
        """Leave out of account what the destination has now."""
        self._begin = len(await _all(self._received))

    def delivery(
        self,
        events: int = 1,
        *,
        session_id: str = "check-1",
        data: Sequence[object] = (),
        attempt: int = 1,
        is_redrive: bool = False,
    ) -> Delivery:
        """Return a delivery of so many new events, or of these data."""
        contents = data or [{"message": "checking", "progress": 0.5}] * events
        made = tuple(self._event(session_id, each) for each in contents)
        return Delivery(
            id=f"{session_id}_{self._epoch}_{made[0].position.seq}",
            events=made,
            attempt=attempt,
            session_id=session_id,
            config=self.config,
            is_redrive=is_redrive,
        )

    def _event(self, session_id: str, data: object) -> Event:
        seq = next(self._numbers)
        place = Position(self._epoch, seq)
        return Event(place, "progress", _BEGIN + seq, session_id, body(data), json.loads)

    async def send(self, delivery: Delivery) -> None:
        """Have it sent, within the time a send may take."""
        with anyio.fail_after(self.patience):
            await self.transport.send(delivery)

    async def arrives(self, *deliveries: Delivery) -> None:
        """See that deliveries, sent one after the other, arrive whole, once and in order."""
        before = len(await self.arrived())
        expected: list[str] = []
        for delivery in deliveries:
            await self.send(delivery)
            expected += ids_of(delivery)
            here = (await self.arrived())[before:]
            assert here == expected, (
                f"send() returned, and the destination has {show(here)} instead of {show(expected)}"
            )


def ids_of(delivery: Delivery) -> list[str]:
    """Return the ids of the events of a delivery."""
    return [event.id for event in delivery.events]


async def _all(received: Received) -> list[str]:
    found = received()
    if inspect.isawaitable(found):
        found = await found
    return list(found)


TransportLaw = Callable[[TransportBench], Awaitable[None]]
