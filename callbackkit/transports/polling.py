"""A page of a session, at once or as soon as there is something."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Final

import anyio
import attrs

from callbackkit.events import Event, Position
from callbackkit.sessions.manager import CallbackManager
from callbackkit.sessions.session import Session
from callbackkit.sessions.subscription import gap_before
from callbackkit.stores.base import Page, Record
from callbackkit.wire.envelope import encode_event, gap_event

__all__ = ["MOST_EVENTS", "MOST_WAIT", "PolledPage", "poll"]

# Events of a page, and seconds to wait for them: less than proxies let a request take.
MOST_EVENTS: Final = 1_000
MOST_WAIT: Final = 30.0

# Records read from the store at once, and looked through for the wanted types by one request;
# bytes of events, but for the last one, that one answer has.
_READ: Final = 100
_MOST_LOOKED_AT: Final = 20_000
_MOST_BYTES: Final = 4_194_304


@attrs.frozen
class PolledPage:
    """What a client that polls gets.

    Attributes:
        events: The oldest first; a gap stands among them.
        cursor: Where the next request goes on.
        has_more: There is more already.
        total_count: Events the session has kept.
        gap: A gap stands among the events.
    """

    events: Sequence[Event]
    cursor: Position
    has_more: bool
    total_count: int
    gap: bool

    def encode(self) -> bytes:
        """Return it as JSON; events are not decoded for that."""
        return b'{"events":[%b],"cursor":"%b","has_more":%b,"total_count":%d,"gap":%b}' % (
            b",".join(map(encode_event, self.events)),
            str(self.cursor).encode(),
            b"true" if self.has_more else b"false",
            self.total_count,
            b"true" if self.gap else b"false",
        )


async def poll(
    manager: CallbackManager,
    session: Session,
    *,
    after: Position | None = None,
    since: int | None = None,
    limit: int = 100,
    wait: float = 0.0,
    types: Collection[str] | None = None,
) -> PolledPage:
    """Return the events that follow a position, or a moment, the oldest first.

    Asking the same again gives the same again, and what was added. Asking takes as long for the
    last of ten thousand events as for the last of a hundred.

    Args:
        manager: Where the session is.
        session: The session.
        after: Position seen last; with it *since* is not looked at.
        since: Microseconds since 1970, of what was seen last. If all that is kept is later, and
            something was dropped, there is a gap: whether that was later, nobody knows.
        limit: Most events, 1 to 1000.
        wait: Seconds to wait if there are none, at most 30.
        types: Only events of these types, and gaps.

    Raises:
        UnknownSessionError: There is no such session, or no longer.
        LimitError: Waiting, there are ``Limits.max_readers`` of the session.
        StoreError: The store failed.
    """
    gap_since = None
    if after is None and since is not None:
        after = await manager.locate(session.id, since)
        gap_since = partial(_gap_since, session, since)
    wanted = None if types is None else frozenset(types)
    page = await _read(manager, session.id, after, limit, wanted, gap_since)
    is_all = not page.events and not page.has_more
    is_to_wait = is_all and wait > 0 and not manager.is_draining
    if is_to_wait and await _wait(session, page.cursor, wait, wanted):
        page = await _read(manager, session.id, page.cursor, limit, wanted)
    if page.events:
        manager.note_read(session.id, page.cursor)
    return page


async def _wait(
    session: Session, after: Position, seconds: float, types: Collection[str] | None
) -> bool:
    """Wait for an event; ``False`` if none came, or will come."""
    events = session.subscribe(after=after, types=types, kind="polling")
    try:
        with anyio.move_on_after(seconds):
            while not events.take(1):
                if events.has_ended or events.is_draining or events.is_closed:
                    return False
                await events.more(timeout=events.looks_every)
            return True
        return False
    finally:
        events.close()


async def _read(
    manager: CallbackManager,
    session_id: str,
    after: Position | None,
    limit: int,
    types: Collection[str] | None,
    gap_since: Callable[[Page], Event | None] | None = None,
) -> PolledPage:
    """Read as many events as are wanted; where only some types are, look through those between."""
    page = await manager.store.read(session_id, after=after, limit=min(limit, _READ))
    gap = None if after is None else gap_before(session_id, after, page)
    if gap is None and gap_since is not None:
        gap = gap_since(page)
    oldest = Position(page.epoch, page.first - 1)
    cursor = oldest if after is None or gap is not None else after
    events = [] if gap is None else [gap]
    size = looked_at = 0
    while True:
        for record in page.records:
            # A gap counts as one of them.
            if len(events) >= limit or size >= _MOST_BYTES:
                break
            cursor = Position(page.epoch, record.seq)
            looked_at += 1
            if types is None or record.event_type in types:
                events.append(_event(manager, session_id, cursor, record))
                size += len(record.body)
        has_more = page.top > cursor.seq
        is_full = len(events) >= limit or size >= _MOST_BYTES or looked_at >= _MOST_LOOKED_AT
        if is_full or not has_more:
            count = max(page.top - page.first + 1, 0)
            return PolledPage(events, cursor, has_more, count, gap is not None)
        page = await manager.store.read(session_id, after=cursor, limit=_READ)
        if gap_before(session_id, cursor, page) is not None:
            # What follows has been dropped meanwhile: the next request is told.
            count = max(page.top - page.first + 1, 0)
            return PolledPage(events, cursor, True, count, gap is not None)


def _gap_since(session: Session, since: int, page: Page) -> Event | None:
    """Return the gap between a moment and the first page that was read from there."""
    record = session._record
    # Who asks for a moment before the session wants all there is.
    if page.first == 1 or not page.records or since < record.created_at * 1e6:
        return None
    oldest = page.records[0]
    # It stands just before what is kept, where somebody may go on by its timestamp.
    just_before = oldest.at - 1
    if oldest.seq != page.first or since >= just_before:
        return None
    return gap_event(
        session.id,
        page.epoch,
        asked=None,
        first=page.first,
        microseconds=just_before,
        is_exact=False,
    )


def _event(manager: CallbackManager, session_id: str, position: Position, record: Record) -> Event:
    return Event(position, record.event_type, record.at, session_id, record.body, manager._decode)
