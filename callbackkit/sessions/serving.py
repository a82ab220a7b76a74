"""Drive a transport that is bound to one connection."""

from __future__ import annotations

import logging
import random
from typing import TYPE_CHECKING, Final

import anyio

from callbackkit.delivery.attempt import describe, failure_of
from callbackkit.delivery.transport import Delivery, Transport
from callbackkit.errors import Gone, Rejected, Retry
from callbackkit.events import Event
from callbackkit.sessions.subscription import After
from callbackkit.stores.base import delivery_id

if TYPE_CHECKING:
    from callbackkit.sessions.session import Session

__all__ = ["serve"]

logger: logging.Logger = logging.getLogger("callbackkit.sessions")

# Seconds that a transport may take to close.
_CLOSE: Final = 5.0


async def serve(session: Session, transport: Transport, after: After) -> None:
    """Send events through a transport until the session ends or the client goes.

    Raises:
        Exception: What the transport raised, :exc:`~callbackkit.Retry` once its schedule is used
            up.
    """
    subscription = session.manager.subscription(
        session.id, after=after, kind=transport.name, notes_reading=False
    )
    async with subscription as events:
        try:
            await transport.start()
            async for event in events:
                await _send(session, transport, event)
                events.note_read(event)
        except Gone:
            return
        finally:
            with anyio.CancelScope(shield=True):
                await _close(session, transport)


async def _send(session: Session, transport: Transport, event: Event) -> None:
    attempt = 1
    while True:
        delivery = Delivery(
            id=delivery_id(session.id, event.position.epoch, event.position.seq),
            events=(event,),
            attempt=attempt,
            session_id=session.id,
            config=session.config,
        )
        error = await session.manager.observers.attempt(
            transport, delivery, timeout=transport.timeout
        )
        if error is None:
            return
        if isinstance(error, Rejected):
            _skip(delivery, transport, error)
            return
        if not isinstance(error, Retry):
            raise error
        delay = transport.retry.delay(attempt, chance=random.random(), retry_after=error.after)
        if delay is None:
            raise error
        await anyio.sleep(delay)
        attempt += 1


def _skip(delivery: Delivery, transport: Transport, error: Rejected) -> None:
    """Go on without an event that will never be taken: there are no dead letters here."""
    logger.warning(
        "an event was rejected, and is skipped",
        extra={
            "session_id": delivery.session_id,
            "delivery_method": transport.name,
            "delivery_id": delivery.id,
            "delivery_error": describe(error, delivery.config),
        },
    )


async def _close(session: Session, transport: Transport) -> None:
    error = await failure_of(transport.aclose, timeout=_CLOSE)
    if error is not None:
        logger.warning(
            "a transport could not be closed",
            exc_info=error,
            extra={"session_id": session.id, "delivery_method": transport.name},
        )
