"""Events of all sessions, for operators."""

import gc
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from callbackkit import (
    CallbackManager,
    Event,
    LimitError,
    Limits,
    MemoryStore,
    Retention,
    Session,
    StoreUnavailableError,
)
from callbackkit.sessions.firehose import EVERYWHERE, Firehose
from callbackkit.stores.base import SessionRecord, SessionState
from callbackkit.stores.sqlite import SQLiteStore
from callbackkit.testing import FailpointStore
from tests.sessions.rig import PATIENCE, emit_numbers, numbers_of, settle, until


async def take(firehose: Firehose, count: int) -> list[Event]:
    with anyio.fail_after(PATIENCE):
        return [await anext(firehose) for _ in range(count)]


async def rest(firehose: Firehose) -> list[Event]:
    with anyio.fail_after(PATIENCE):
        return [event async for event in firehose]


def quick(manager: CallbackManager) -> None:
    """Have it look at what other processes did more often."""
    manager._pump.look_every = 0.02


@asynccontextmanager
async def two_managers(
    folder: Path,
) -> AsyncGenerator[tuple[CallbackManager, CallbackManager]]:
    """Open one file twice, as two processes do."""
    path = folder / "events.db"
    async with (
        CallbackManager(SQLiteStore(path)) as here,
        CallbackManager(SQLiteStore(path)) as there,
    ):
        yield here, there


@pytest.fixture
async def manager() -> AsyncIterator[CallbackManager]:
    async with CallbackManager() as manager:
        yield manager


async def test_events_of_all_sessions_come_in_the_order_of_each(manager: CallbackManager):
    sessions = [await manager.create_session() for _ in range(3)]
    await emit_numbers(sessions[0], [0])
    async with manager.firehose() as firehose:
        sessions.append(await manager.create_session())
        for number in range(1, 5):
            for session in sessions:
                await emit_numbers(session, [number])
        events = await take(firehose, 16)
    for session in sessions:
        own = [each for each in events if each.session_id == session.id]
        assert numbers_of(own) == [1, 2, 3, 4]
    assert (events[0].session_id, events[0].id[-2:]) == (sessions[0].id, "-2")
    assert not any(event.is_gap for event in events)


async def test_it_knows_no_past(manager: CallbackManager):
    session = await manager.create_session()
    await emit_numbers(session, [1, 2])
    async with manager.firehose() as firehose:
        await emit_numbers(session, [3])
        assert numbers_of(await take(firehose, 1)) == [3]


async def test_without_a_block_it_begins_when_the_first_event_is_asked_for(
    manager: CallbackManager,
):
    session = await manager.create_session()
    firehose = manager.firehose()
    await emit_numbers(session, [1])
    events: list[Event] = []
    async with anyio.create_task_group() as group:

        async def read() -> None:
            events.extend(await take(firehose, 2))

        group.start_soon(read)
        await until(lambda: manager._pump._known is not None)
        await emit_numbers(session, [2, 3])
    assert numbers_of(events) == [2, 3]
    firehose.close()


async def test_what_is_handed_over_from_a_thread_comes_too(manager: CallbackManager):
    session = await manager.create_session()
    async with manager.firehose() as firehose:
        await anyio.to_thread.run_sync(lambda: session.emit_soon("n", {"n": 1}).result(PATIENCE))
        assert numbers_of(await take(firehose, 1)) == [1]


async def test_messages_of_clients_come_too(manager: CallbackManager):
    session = await manager.create_session({"events": ["n"]})
    async with manager.firehose() as firehose:
        await session.receive({"text": "hi"})
        (event,) = await take(firehose, 1)
    assert (event.event_type, event.data) == ("client.message", {"text": "hi"})


async def test_events_for_operators_come_too(manager: CallbackManager):
    async with manager.firehose() as firehose:
        await manager._tell_operators("callbackkit.dead_letter", "s", {"reason": "no"})
        (event,) = await take(firehose, 1)
    assert (event.event_type, event.session_id) == ("callbackkit.dead_letter", "s")
    assert event.data == {"reason": "no"}


async def test_only_events_of_some_types_may_be_asked_for(manager: CallbackManager):
    session = await manager.create_session()
    async with manager.firehose(types=["b"]) as firehose:
        for event_type in "abcb":
            await session.emit(event_type)
        assert [each.event_type for each in await take(firehose, 2)] == ["b", "b"]
    with pytest.raises(TypeError, match="not the string 'progress'"):
        manager.firehose(types="progress")


async def test_several_readers_share_one_reading(manager: CallbackManager):
    store = manager.store
    assert isinstance(store, MemoryStore)
    session = await manager.create_session()
    reads = 0
    read = store.read

    async def counted(session_id: str, **options):
        nonlocal reads
        reads += 1
        return await read(session_id, **options)

    store.read = counted  # type: ignore[method-assign]
    async with manager.firehose() as one, manager.firehose() as two, manager.firehose() as three:
        await emit_numbers(session, range(10))
        for firehose in (one, two, three):
            assert numbers_of(await take(firehose, 10)) == list(range(10))
    assert reads <= 11


# Other processes.


async def test_what_another_process_does_comes_within_two_seconds(tmp_path: Path):
    path = tmp_path / "events.db"
    async with (
        CallbackManager(SQLiteStore(path)) as here,
        CallbackManager(SQLiteStore(path)) as there,
    ):
        old = await there.create_session()
        await emit_numbers(old, [0])
        async with here.firehose() as firehose:
            await emit_numbers(old, [1, 2])
            new = await there.create_session()
            await emit_numbers(new, [1, 2])
            await new.end()
            with anyio.fail_after(5):
                events = [await anext(firehose) for _ in range(4)]
            for session in (old, new):
                own = [each for each in events if each.session_id == session.id]
                assert numbers_of(own) == [1, 2]
                assert own[0].timestamp < own[1].timestamp
            # And what follows goes on from there.
            await emit_numbers(old, [3])
            assert numbers_of(await take(firehose, 1)) == [3]
            mine = await here.get_session(old.id)
            await emit_numbers(mine, [4])
            assert numbers_of(await take(firehose, 1)) == [4]


async def test_a_session_that_both_emit_to_comes_in_order(tmp_path: Path):
    path = tmp_path / "events.db"
    async with (
        CallbackManager(SQLiteStore(path)) as here,
        CallbackManager(SQLiteStore(path)) as there,
    ):
        session = await there.create_session()
        twin = await here.get_session(session.id)
        async with here.firehose() as firehose:
            for number in range(20):
                await emit_numbers((session, twin)[number % 2], [number])
            assert numbers_of(await take(firehose, 20)) == list(range(20))


async def test_all_of_many_sessions_and_all_of_many_events_come():
    """More than are read at once."""
    store = MemoryStore()
    manager = CallbackManager(store)
    quick(manager)
    async with manager, CallbackManager(store) as other, manager.firehose() as firehose:
        sessions = [await other.create_session() for _ in range(450)]
        for session in sessions:
            await emit_numbers(session, [0])
        events = await take(firehose, 450)
        assert {each.session_id for each in events} == {each.id for each in sessions}
        await emit_numbers(sessions[0], range(1, 251))
        assert numbers_of(await take(firehose, 250)) == list(range(1, 251))
        assert not any(event.is_gap for event in events)


async def test_what_others_do_comes_however_much_this_process_does():
    store = MemoryStore()
    manager = CallbackManager(store)
    quick(manager)
    emitted = 0
    async with manager, CallbackManager(store) as other, manager.firehose() as firehose:
        mine, theirs = await manager.create_session(), await other.create_session()
        async with anyio.create_task_group() as group:

            async def emit_much() -> None:
                nonlocal emitted
                for emitted in range(30_000):
                    await emit_numbers(mine, [emitted])
                    await settle(1)

            group.start_soon(emit_much)
            await take(firehose, 1)
            await emit_numbers(theirs, [1])
            while (await anext(firehose)).session_id != theirs.id:
                assert emitted < 29_999
            # And once nobody follows any more, nothing is read.
            firehose.close()
            await until(lambda: manager._pump._known is None)
            assert emitted < 29_999
            group.cancel_scope.cancel()


async def test_all_that_this_process_does_comes_without_looking_at_all_sessions():
    store = FailpointStore(MemoryStore())
    async with CallbackManager(store) as manager:
        manager._pump.look_every = 1000.0
        session = await manager.create_session()
        async with manager.firehose() as firehose:
            pause = store.pause("read")
            await emit_numbers(session, range(250))
            assert await pause.reached()
            pause.release()
            assert numbers_of(await take(firehose, 250)) == list(range(250))


# Being slow.


async def test_a_slow_reader_is_told_how_many_it_missed_and_goes_on():
    async with CallbackManager() as manager:
        session = await manager.create_session()
        async with manager.firehose() as slow, manager.firehose() as quick:
            seen = 0
            for begin in range(0, 10_300, 100):
                await emit_numbers(session, range(begin, begin + 100))
                seen += len(await take(quick, 100))
            assert seen == 10_300
            gap, *events = await take(slow, 10_001)
            assert gap.is_gap
            assert gap.session_id == EVERYWHERE
            assert dict(gap.data) == {"from": None, "to": None, "missed": 300}
            assert numbers_of(events) == list(range(300, 10_300))
            await emit_numbers(session, [7])
            assert numbers_of(await take(slow, 1)) == [7]


async def test_what_waits_for_slow_readers_is_bounded_in_bytes():
    async with CallbackManager() as manager:
        session = await manager.create_session()
        async with manager.firehose() as slow:
            for _ in range(100):
                await session.emit("big", {"text": "x" * 200_000})
            await until(lambda: manager._pump._known == {session.id: _position(manager, session)})
            events = await take(slow, 2)
            assert events[0].data["missed"] > 10
            assert manager._pump._log._bytes <= 16_777_216


def _position(manager: CallbackManager, session: Session):
    store = manager.store
    assert isinstance(store, MemoryStore)
    return store._sessions[session.id].record().position


async def test_what_is_no_longer_kept_is_a_gap_of_its_session():
    """The reading of the pump is held up while retention drops what it was to read."""
    store = FailpointStore(MemoryStore())
    async with CallbackManager(store, retention=Retention(max_events=5)) as manager:
        session = await manager.create_session()
        async with manager.firehose(types=["n"]) as firehose:
            pause = store.pause("read")
            await emit_numbers(session, [0])
            assert await pause.reached()
            await emit_numbers(session, range(1, 10))
            pause.release()
            gap, *events = await take(firehose, 6)
    assert (gap.is_gap, gap.session_id, gap.data["missed"]) == (True, session.id, 5)
    assert numbers_of(events) == [5, 6, 7, 8, 9]


# Beginning and ending.


async def test_it_needs_a_running_manager():
    manager = CallbackManager()
    with pytest.raises(RuntimeError, match="async with manager"):
        async with manager.firehose():
            pass


async def test_there_are_so_many_readers_at_most():
    async with CallbackManager(limits=Limits(max_readers=2)) as manager:
        one, two = manager.firehose(), manager.firehose()
        async with one, two:
            with pytest.raises(LimitError, match="max_readers=2") as caught:
                await anext(manager.firehose())
            assert caught.value.limit == "max_readers"
        async with manager.firehose(), manager.firehose():
            pass


async def test_closing_ends_who_waits(manager: CallbackManager):
    firehose = manager.firehose()
    events: list[Event] = []
    async with anyio.create_task_group() as group:

        async def read() -> None:
            events.extend(await rest(firehose))

        group.start_soon(read)
        await until(lambda: manager._pump._known is not None)
        await anyio.to_thread.run_sync(firehose.close)
    assert events == []
    assert await rest(firehose) == []
    await firehose.aclose()
    assert repr(firehose) == "<Firehose closed>"


async def test_one_that_never_began_is_closed_too(manager: CallbackManager):
    firehose = manager.firehose()
    assert repr(firehose) == "<Firehose open>"
    await firehose.aclose()
    assert await rest(firehose) == []
    assert not len(manager._pump._open)


async def test_beginning_twice_is_beginning_once(manager: CallbackManager):
    session = await manager.create_session()
    async with manager.firehose() as firehose:
        await emit_numbers(session, [1])
        async with firehose:
            assert numbers_of(await take(firehose, 1)) == [1]


async def test_the_end_of_the_manager_ends_it():
    async with anyio.create_task_group() as group, CallbackManager() as manager:
        session = await manager.create_session()
        firehose = manager.firehose()
        done: list[list[Event]] = []

        async def read() -> None:
            done.append(await rest(firehose))

        group.start_soon(read)
        await until(lambda: manager._pump._known is not None)
        await emit_numbers(session, [1])
        await settle()
    assert [numbers_of(events) for events in done] == [[1]]
    # What is emitted without it running is noted nowhere.
    await emit_numbers(session, [2])
    assert (manager._pump._marked, manager._pump._known) == ({}, None)


async def test_a_manager_that_is_cancelled_ends_it():
    firehoses: list[Firehose] = []

    async def run() -> None:
        async with CallbackManager() as manager:
            firehoses.append(await manager.firehose().__aenter__())
            await anyio.sleep_forever()

    async with anyio.create_task_group() as group:
        group.start_soon(run)
        await until(lambda: firehoses)
        group.cancel_scope.cancel()
    assert await rest(firehoses[0]) == []


async def test_draining_ends_it(manager: CallbackManager):
    async with manager.firehose() as firehose:
        manager.begin_drain()
        assert await rest(firehose) == []
    async with manager.firehose() as firehose:
        await manager.drain()
        assert await rest(firehose) == []


async def test_nothing_is_read_or_kept_while_nobody_follows(manager: CallbackManager):
    session = await manager.create_session()
    pump = manager._pump
    await emit_numbers(session, [1])
    assert not pump._marked
    async with manager.firehose():
        await emit_numbers(session, [2])
    await until(lambda: pump._known is None)
    await emit_numbers(session, [3])
    await settle()
    assert (pump._known, pump._marked, len(pump._log)) == (None, {}, 0)
    async with manager.firehose() as firehose:
        await emit_numbers(session, [4])
        assert numbers_of(await take(firehose, 1)) == [4]


async def test_one_that_nobody_holds_counts_no_more(manager: CallbackManager):
    firehose = manager.firehose()
    async with anyio.create_task_group() as group:
        group.start_soon(firehose.__aenter__)
    assert len(manager._pump._open) == 1
    del firehose
    await until(lambda: gc.collect() is None or not len(manager._pump._open))
    assert not len(manager._pump._open)


async def test_sessions_that_are_gone_are_forgotten(manager: CallbackManager):
    quick(manager)
    session = await manager.create_session()
    async with manager.firehose() as firehose:
        await emit_numbers(session, [1])
        await take(firehose, 1)
        await session.end()
        await manager.delete_session(session.id)
        await until(lambda: not manager._pump._known)


# Failures.


async def test_a_store_that_fails_for_a_while_loses_nothing(caplog: pytest.LogCaptureFixture):
    store = FailpointStore(MemoryStore())
    async with CallbackManager(store) as manager:
        quick(manager)
        session = await manager.create_session()
        async with manager.firehose() as firehose:
            store.fail("read", StoreUnavailableError("no connection"))
            with caplog.at_level(logging.ERROR):
                await emit_numbers(session, [1, 2])
                assert numbers_of(await take(firehose, 2)) == [1, 2]
    assert "can't be read; trying again" in caplog.text


async def test_a_store_that_fails_at_the_beginning_is_told_and_it_may_begin_again():
    store = FailpointStore(MemoryStore())
    async with CallbackManager(store) as manager:
        quick(manager)
        session = await manager.create_session()
        firehose = manager.firehose()
        store.fail("sessions", StoreUnavailableError("no connection"))
        with pytest.raises(StoreUnavailableError, match="can't be read now") as caught:
            await anext(firehose)
        assert str(caught.value.__cause__) == "no connection"
        assert not len(manager._pump._open)
        async with firehose:
            await emit_numbers(session, [1])
            assert numbers_of(await take(firehose, 1)) == [1]


@pytest.mark.parametrize("way", ["close", "drain", "leave"])
async def test_what_ends_it_while_it_begins_ends_it(way: str):
    store = FailpointStore(MemoryStore())
    pause = store.pause("sessions")
    firehose: Firehose | None = None
    done: list[list[Event]] = []
    async with anyio.create_task_group() as group, CallbackManager(store) as manager:
        firehose = manager.firehose()

        async def read() -> None:
            done.append(await rest(firehose))

        group.start_soon(read)
        assert await pause.reached()
        if way == "close":
            firehose.close()
        elif way == "drain":
            manager.begin_drain()
        if way != "leave":
            await until(lambda: done)
        assert not len(manager._pump._open) or way == "leave"
    assert done == [[]]


async def test_who_is_cancelled_while_it_begins_is_counted_out():
    store = FailpointStore(MemoryStore())
    pause = store.pause("sessions")
    async with CallbackManager(store) as manager:
        firehose = manager.firehose()
        async with anyio.create_task_group() as group:
            group.start_soon(anext, firehose)
            assert await pause.reached()
            group.cancel_scope.cancel()
        assert not len(manager._pump._open)
        pause.release()


class GoneStore(MemoryStore):
    """Deletes each session between being listed and being read."""

    is_gone = False

    async def sessions(
        self,
        *,
        state: SessionState | None = None,
        owner: str | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> Sequence[SessionRecord]:
        found = await super().sessions(state=state, owner=owner, after=after, limit=limit)
        if self.is_gone:
            for each in found:
                await self.delete_session(each.id, linger=0)
        return found


async def test_a_session_that_goes_while_it_is_looked_at_is_passed_over():
    store = GoneStore()
    manager = CallbackManager(store)
    quick(manager)
    async with manager, CallbackManager(store) as other, manager.firehose() as firehose:
        store.is_gone = True
        await emit_numbers(await other.create_session(), [1])
        await until(lambda: not store._readable)
        store.is_gone = False
        await emit_numbers(await manager.create_session(), [2])
        assert numbers_of(await take(firehose, 1)) == [2]


@pytest.mark.torture
async def test_many_sessions_of_two_processes_lose_nothing(tmp_path: Path):
    path = tmp_path / "events.db"
    async with (
        CallbackManager(SQLiteStore(path)) as here,
        CallbackManager(SQLiteStore(path)) as there,
    ):
        managers = (here, there)
        async with here.firehose() as firehose:

            async def emit(number: int) -> None:
                session = await managers[number % 2].create_session()
                await emit_numbers(session, range(20))

            async with anyio.create_task_group() as group:
                for number in range(200):
                    group.start_soon(emit, number)
            with anyio.fail_after(60):
                events = [await anext(firehose) for _ in range(4_000)]
    by_session: dict[str, list[Event]] = {}
    for event in events:
        by_session.setdefault(event.session_id, []).append(event)
    assert len(by_session) == 200
    assert all(numbers_of(each) == list(range(20)) for each in by_session.values())
