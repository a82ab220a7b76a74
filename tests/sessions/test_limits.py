"""What a manager lets its sessions take."""

from typing import Any

import pytest

from callbackkit import CallbackManager, LimitError, Limits, MemoryStore, Retention, Transport
from callbackkit.stores.base import NewSession

NAMES = ("max_sessions", "max_event_bytes", "max_readers", "max_pending", "max_requests")
# What an event without anything in it has, as JSON.
ENVELOPE = len(b'{"conversation_id":null,"data":{"text":""},"metadata":{}}')


class Noting(MemoryStore):
    """Notes what is asked for, so that nobody has to create 200 000 sessions."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[NewSession, int | None]] = []

    async def create_session(self, new: NewSession, *, max_sessions: int | None = None) -> Any:
        self.asked.append((new, max_sessions))
        return await super().create_session(new, max_sessions=max_sessions)


class Never(Transport):
    name = "never"

    async def send(self, delivery: Any) -> None:
        raise ConnectionError("nobody is in")


# What is refused unless somebody says otherwise.


async def test_unless_told_otherwise_an_event_has_256_kibibytes():
    session = await CallbackManager().create_session()
    room = 262_144 - ENVELOPE
    assert await session.emit("note", {"text": "x" * room}) is not None
    with pytest.raises(LimitError, match="max_event_bytes=262144"):
        await session.emit("note", {"text": "x" * (room + 1)})
    assert (await session.stats()).events_sent == 1


async def test_unless_told_otherwise_a_session_has_1000_readers():
    session = await CallbackManager().create_session()
    readers = [session.subscribe() for _ in range(1_000)]
    with pytest.raises(LimitError, match="max_readers=1000"):
        session.subscribe()
    for reader in readers:
        reader.close()


async def test_unless_told_otherwise_10_000_events_wait_to_be_stored():
    async with CallbackManager() as manager:
        session = await manager.create_session()
        # Nothing is stored meanwhile: nobody else gets a turn.
        futures = [session.emit_soon("note", {"text": "x"}) for _ in range(10_000)]
        with pytest.raises(LimitError, match="max_pending=10000"):
            session.emit_soon("note", {"text": "x"})
    assert all(future.done() and future.exception() is None for future in futures)


async def test_unless_told_otherwise_a_store_has_200_000_sessions_and_owes_each_10_000_events():
    store = Noting()
    await CallbackManager(store, [Never()]).create_session({"delivery_method": "never"})
    [(new, max_sessions)] = store.asked
    assert (max_sessions, new.max_pending) == (200_000, 10_000)


def test_unless_told_otherwise_a_session_has_1000_requests_in_10_seconds():
    assert Limits().max_requests == 1_000


async def test_what_a_transport_does_not_take_is_bounded_twice():
    """So many events wait for it, so many dead letters are kept; the figures tell of the rest."""
    manager = CallbackManager(
        transports=[Never()], retention=Retention(max_events=5), limits=Limits(max_pending=5)
    )
    session = await manager.create_session({"delivery_method": "never"})
    for number in range(50):
        await session.emit("note", {"n": number})
    stats = await session.stats()
    assert (stats.events_sent, stats.queued_events, stats.events_failed) == (50, 5, 45)
    letters = [letter.records[0].seq for letter in await session.dead_letters()]
    assert letters == [41, 42, 43, 44, 45]
    page = await manager.store.read(session.id)
    assert [record.seq for record in page.records] == [46, 47, 48, 49, 50]


@pytest.mark.parametrize("name", NAMES)
def test_a_limit_is_a_whole_number_from_1(name: str):
    assert getattr(Limits(**{name: 1}), name) == 1
    with pytest.raises(ValueError, match=f"{name} must be at least 1, not 0"):
        Limits(**{name: 0})
    for bad in (1.0, True, None, "1"):
        with pytest.raises(TypeError, match=f"{name} must be an int"):
            Limits(**{name: bad})
