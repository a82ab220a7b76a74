"""What is known of a session here, and for how long."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import pytest

from callbackkit import CallbackConfig, MemoryStore, UnknownSessionError
from callbackkit.sessions.filters import Filters
from callbackkit.stores.base import NewSession, SessionRecord, Store
from callbackkit.stores.sqlite import SQLiteStore
from callbackkit.testing import ManualClock
from tests.sessions.rig import settle

ALL = CallbackConfig()
SOME = CallbackConfig(events=["n"])


async def made(store: Store, session_id: str = "s", config: CallbackConfig = ALL) -> None:
    await store.create_session(
        NewSession(id=session_id, token_hash=b"hash", config=config.to_json())
    )


def filters_of(store: Store, clock: Callable[[], float]) -> Filters:
    return Filters(store, CallbackConfig.from_json, clock=clock)


async def update(store: Store, config: CallbackConfig, unowed: tuple[str, ...] = ()) -> None:
    known = (await store.get_session("s")).config
    await store.update_session("s", known=known, config=config.to_json(), unowed=unowed)


class AskedStore(MemoryStore):
    """Counts who asks for a session, and lets them wait once it was read."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0
        self.after_reading: Callable[[], Awaitable[None]] | None = None

    async def get_session(self, session_id: str) -> SessionRecord:
        self.asked += 1
        record = await super().get_session(session_id)
        if self.after_reading is not None:
            await self.after_reading()
        return record


async def test_a_session_is_asked_for_once_in_ten_seconds():
    clock, store = ManualClock(), AskedStore()
    await made(store, config=SOME)
    filters = filters_of(store, clock)
    assert filters.at_hand("s") is None
    for _ in range(3):
        known = await filters.learn("s")
        assert known.config == SOME
        clock.advance(3.3)
    assert store.asked == 1
    assert filters.at_hand("s") is known
    clock.advance(0.2)
    assert filters.at_hand("s") is None
    await filters.learn("s")
    assert store.asked == 2


async def test_a_session_that_was_looked_up_is_known():
    store = AskedStore()
    await made(store)
    filters = filters_of(store, ManualClock())
    assert (await filters.look_up("s")).id == "s"
    await filters.learn("s")
    assert store.asked == 1


async def test_what_another_process_changes_is_known_ten_seconds_later(tmp_path: Path):
    clock = ManualClock()
    here, there = (SQLiteStore(tmp_path / "events.db") for _ in range(2))
    await made(here)
    filters = filters_of(here, clock)
    await filters.learn("s")
    await update(there, SOME, ("a", "b"))
    clock.advance(9.9)
    assert (await filters.learn("s")).config == ALL
    clock.advance(0.2)
    known = await filters.learn("s")
    assert (known.config, known.unowed) == (SOME, ("a", "b"))
    await here.aclose()
    await there.aclose()


async def test_what_is_noted_counts_at_once():
    clock, store = ManualClock(), AskedStore()
    await made(store)
    filters = filters_of(store, clock)
    await filters.learn("s")
    filters.note("s", SOME, ("a",))
    known = await filters.learn("s")
    assert (known.config, known.unowed, store.asked) == (SOME, ("a",), 1)


async def test_what_was_read_before_a_change_is_not_kept():
    store = AskedStore()
    await made(store)
    filters = filters_of(store, ManualClock())
    may_go_on = anyio.Event()
    store.after_reading = may_go_on.wait
    async with anyio.create_task_group() as group:
        group.start_soon(filters.learn, "s")
        await settle()
        filters.note("s", SOME, ())
        may_go_on.set()
    known = filters.at_hand("s")
    assert known is not None
    assert known.config == SOME


async def test_what_is_forgotten_is_asked_for_again():
    store = AskedStore()
    await made(store)
    filters = filters_of(store, ManualClock())
    await filters.learn("s")
    filters.forget("s")
    filters.forget("never")
    assert (filters.at_hand("s"), len(filters)) == (None, 0)
    await store.delete_session("s", linger=0)
    with pytest.raises(UnknownSessionError):
        await filters.learn("s")


async def test_of_many_sessions_the_ones_learned_last_are_kept():
    store = MemoryStore()
    filters = filters_of(store, ManualClock())
    filters.note("s", ALL, ())
    for number in range(9_999):
        filters.note(str(number), ALL, ())
    filters.note("s", ALL, ())
    assert len(filters) == 10_000
    filters.note("one more", ALL, ())
    assert len(filters) == 10_000
    assert filters.at_hand("0") is None
    assert filters.at_hand("s") is not None
