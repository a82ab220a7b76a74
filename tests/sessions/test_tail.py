"""The newest events of a session, shared by all who read it."""

import gc
import inspect
import threading
import weakref
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any

import anyio
import anyio.to_thread
import pytest
from anyio.lowlevel import checkpoint

from callbackkit import (
    CallbackManager,
    Event,
    Position,
    Session,
    StoreUnavailableError,
    Subscription,
)
from callbackkit.sessions.tail import Tail
from tests.sessions.rig import (
    PATIENCE,
    ToldStore,
    emit_numbers,
    numbers_of,
    settle,
    take,
    until,
)


@pytest.fixture
def store() -> ToldStore:
    store = ToldStore()
    # Nobody looks for himself: what rings nobody is not read.
    store.reconcile = PATIENCE * 1_000
    return store


@pytest.fixture
def manager(store: ToldStore) -> CallbackManager:
    return CallbackManager(store)


@pytest.fixture
def other(store: ToldStore) -> CallbackManager:
    """Who knows nothing of the readers of the first."""
    return CallbackManager(store)


@pytest.fixture
async def session(manager: CallbackManager) -> Session:
    return await manager.create_session()


async def begun(session: Session, after: Any = None) -> Subscription:
    """A reader that has read all there is."""
    events = session.subscribe(after)
    await events.begin()
    while events.take() or events.tail.is_stale:
        await events.tail.refresh()
    return events


def numbers(entries: Sequence[Any]) -> list[int]:
    return numbers_of([each.event for each in entries])


async def waiting(tasks: Any, events: Subscription, into: list[Event]) -> None:
    """Have somebody wait for the next event."""

    async def wait() -> None:
        into.append(await anext(events))

    tasks.start_soon(wait)
    await settle()


# Who reads what.


async def test_what_this_process_emits_is_not_read_from_the_store(
    store: ToldStore, session: Session
):
    events, second = await begun(session), await begun(session)
    store.log.clear()
    await emit_numbers(session, range(5))
    assert numbers_of(await take(events, 5)) == list(range(5))
    assert numbers_of(await take(second, 5)) == list(range(5))
    assert "read" not in store.log


async def test_readers_get_the_same_entries(session: Session):
    events, second = await begun(session), await begun(session)
    await emit_numbers(session, range(5))
    one, two = events.take(), second.take()
    assert len(one) == 5
    assert all(a is b for a, b in zip(one, two, strict=True))
    await emit_numbers(session, [5])
    assert events.take()[0] is second.take()[0]


async def test_what_others_emit_is_read_once_for_all_readers(
    store: ToldStore, session: Session, other: CallbackManager
):
    async with anyio.create_task_group() as tasks:
        got: list[Event] = []
        for _ in range(20):
            await waiting(tasks, await begun(session), got)
        store.log.clear()
        await other.emit(session.id, "n", {"n": 1})
    assert numbers_of(got) == [1] * 20
    assert store.log.count("read") == 1


async def test_who_joins_others_reads_no_store(store: ToldStore, session: Session):
    await emit_numbers(session, range(5))
    first = await begun(session)
    store.log.clear()
    late = session.subscribe()
    assert numbers_of(await take(late, 5)) == list(range(5))
    assert "read" not in store.log
    del first


async def test_a_reader_that_is_far_behind_reads_the_store_and_then_the_tail(
    store: ToldStore, session: Session
):
    ahead, behind = await begun(session), await begun(session)
    await emit_numbers(session, range(1_000))
    assert numbers_of(await take(behind, 1_000)) == list(range(1_000))
    assert numbers_of(await take(ahead, 1_000)) == list(range(1_000))
    await emit_numbers(session, [1_000])
    store.log.clear()
    assert numbers_of(await take(behind, 1) + await take(ahead, 1)) == [1_000] * 2
    assert "read" not in store.log


@pytest.mark.parametrize("size", [10, 20_000])
async def test_what_is_kept_in_memory_is_bounded(
    manager: CallbackManager, session: Session, size: int
):
    events = await begun(session)
    tail = events.tail
    most = most_bytes = 0
    for number in range(600):
        await session.emit("n", {"n": number, "text": "x" * size})
        assert tail.top == number + 1
        kept = tail.take(tail.epoch, tail.first - 1, 10_000)
        assert kept is not None
        assert kept[-1].event.data["n"] == number
        assert tail.top - tail.first + 1 == len(kept)
        most = max(most, len(kept))
        most_bytes = max(most_bytes, sum(len(each.event._body) for each in kept))
    assert most <= 256
    assert most_bytes <= 262_144 + 20_100
    # Some are kept all the same.
    assert most >= 4


async def test_of_events_larger_than_that_the_newest_is_kept(session: Session):
    events = await begun(session)
    for number in range(4):
        await session.emit("n", {"n": number, "text": "x" * 262_000})
        tail = events.tail
        kept = tail.take(tail.epoch, tail.top - 1, 10)
        assert kept is not None
        assert numbers(kept) == [number]
    assert numbers_of(await take(events, 4)) == list(range(4))


async def test_what_is_forgotten_is_in_memory_no_longer(session: Session):
    events = await begun(session)
    await emit_numbers(session, range(5))
    tail = events.tail
    tail.forget(3)
    assert (tail.first, tail.top, tail.kept_from) == (3, 5, 3)
    assert not tail.has(tail.epoch, 1)
    assert tail.has(tail.epoch, 2)
    tail.forget(1)
    assert (tail.first, tail.kept_from) == (3, 3)
    tail.forget(100)
    assert (tail.first, tail.top, tail.kept_from) == (6, 5, 6)
    assert tail.newest is None
    assert tail.take(tail.epoch, 5, 10) == []


async def test_it_shows_what_it_has(session: Session):
    events = await begun(session)
    await emit_numbers(session, range(3))
    assert repr(events.tail) == f"<Tail of {session.id}, 3 events up to 3>"


# Rings and appends.


async def test_the_ring_of_ones_own_append_does_not_have_the_store_read(
    store: ToldStore, session: Session
):
    """It comes before what was appended is put in."""
    events = await begun(session)
    got: list[Event] = []
    async with anyio.create_task_group() as tasks:
        await waiting(tasks, events, got)
        store.log.clear()
        rings = events.tail.rings
        await emit_numbers(session, [1])
        assert events.tail.rings == rings + 1
    assert numbers_of(got) == [1]
    assert store.log.count("read") == 0


async def test_appends_that_settle_in_another_order_lose_nothing(
    store: ToldStore, session: Session
):
    events = await begun(session)
    gates = [anyio.Event() for _ in range(3)]
    waits = iter(gates)
    append = store.append

    class Later(Exception):
        pass

    async def appends(*arguments: Any, **options: Any) -> Any:
        done = await append(*arguments, **options)
        await next(waits).wait()
        return done

    store.append = appends  # type: ignore[method-assign] # a store whose answers come late
    got: list[Event] = []
    async with anyio.create_task_group() as tasks:
        for number in range(3):
            tasks.start_soon(session.emit, "n", {"n": number})
            await settle()
        for place in (2, 0, 1):
            gates[place].set()
            await settle()
            got += [each.event for each in events.take()]
            if not events.take():
                with anyio.move_on_after(0.01):
                    await events.more()
                got += [each.event for each in events.take()]
    assert numbers_of(got) == [0, 1, 2]


@pytest.mark.parametrize("others", [0, 1])
async def test_an_append_whose_caller_was_cancelled_is_read(
    store: ToldStore, session: Session, others: int
):
    """It was stored, and nobody puts it in."""
    events = await begun(session)
    append, stuck = store.append, anyio.Event()

    async def appends(*arguments: Any, **options: Any) -> Any:
        done = await append(*arguments, **options)
        await stuck.wait()
        return done

    got: list[Event] = []
    async with anyio.create_task_group() as tasks:
        await waiting(tasks, events, got)
        store.append = appends  # type: ignore[method-assign] # a store whose answers come late
        async with anyio.create_task_group() as emitting:
            emitting.start_soon(session.emit, "n", {"n": 1})
            await settle()
            assert got == []
            emitting.cancel_scope.cancel()
        await until(lambda: numbers_of(got) == [1])


async def test_an_append_that_fails_leaves_nothing_expected(store: ToldStore, session: Session):
    events = await begun(session)

    async def fails() -> None:
        raise StoreUnavailableError("away")

    store.before["append"] = fails
    with pytest.raises(StoreUnavailableError):
        await session.emit("n", {"n": 0})
    del store.before["append"]
    got: list[Event] = []
    async with anyio.create_task_group() as tasks:
        await waiting(tasks, events, got)
        await CallbackManager(store).emit(session.id, "n", {"n": 1})
    assert numbers_of(got) == [1]


async def test_what_is_known_already_wakes_nobody_and_has_nothing_read(session: Session):
    """A ring that comes late, an answer that comes after others have read the event."""
    events = await begun(session)
    event = await session.emit("n", {"n": 1})
    assert event is not None
    tail = events.tail
    rings = tail.rings
    tail._on_ring(1)
    tail.offer(event)
    tail.expect()
    tail._on_ring(1)
    tail.settle()
    assert (tail.rings, tail.is_stale, tail.top) == (rings, False, 1)
    assert numbers(events.take()) == [1]
    assert events.take() == ()


@pytest.mark.parametrize("emits", ["emit", "other"])
async def test_a_thread_with_an_event_loop_of_its_own_wakes_who_waits_here(
    session: Session, other: CallbackManager, emits: str
):
    """Though nothing else happens here."""
    events = await begun(session)
    is_waiting = threading.Event()

    def run() -> None:
        is_waiting.wait(PATIENCE)
        emit = session.manager.emit if emits == "emit" else other.emit
        anyio.run(emit, session.id, "n", {"n": 1})

    thread = threading.Thread(target=run)
    thread.start()
    async with anyio.create_task_group() as tasks:

        async def tell() -> None:
            await settle()
            is_waiting.set()

        tasks.start_soon(tell)
        with anyio.fail_after(PATIENCE) as patience:
            assert (await anext(events)).data == {"n": 1}
        assert anyio.current_time() < patience.deadline - PATIENCE / 2
    thread.join()


async def test_an_event_that_came_before_is_not_put_in_again(session: Session):
    events = await begun(session)
    for _ in range(3):
        await session.emit("n", {"n": 1}, idempotency_key="k")
    await emit_numbers(session, [2])
    assert numbers_of(await take(events, 2)) == [1, 2]
    assert events.take() == ()


async def test_what_another_stores_between_two_of_ours_is_not_left_out(
    session: Session, other: CallbackManager, store: ToldStore
):
    events = await begun(session)
    # Its ring comes while one of ours goes on.
    asked = False

    async def first_another() -> None:
        nonlocal asked
        if not asked:
            asked = True
            await other.emit(session.id, "n", {"n": 1})

    store.before["append"] = first_another
    await session.emit("n", {"n": 2})
    assert numbers_of(await take(events, 2)) == [1, 2]


async def test_what_another_stores_while_ours_fails_is_read(
    session: Session, other: CallbackManager, store: ToldStore
):
    events = await begun(session)
    got: list[Event] = []
    asked = False

    async def another_and_fail() -> None:
        nonlocal asked
        if not asked:
            asked = True
            await other.emit(session.id, "n", {"n": 1})
            raise StoreUnavailableError("away")

    async with anyio.create_task_group() as tasks:
        await waiting(tasks, events, got)
        store.before["append"] = another_and_fail
        with pytest.raises(StoreUnavailableError):
            await session.emit("n", {"n": 2})
    assert numbers_of(got) == [1]


async def test_an_end_while_an_append_goes_on_is_told_at_once(
    session: Session, other: CallbackManager, store: ToldStore
):
    events = await begun(session)
    stuck = anyio.Event()
    store.before["append"] = stuck.wait
    async with anyio.create_task_group() as tasks:

        async def read() -> None:
            with pytest.raises(StopAsyncIteration):
                await anext(events)
            tasks.cancel_scope.cancel()

        tasks.start_soon(read)
        tasks.start_soon(session.emit, "n", {"n": 1})
        await settle()
        await other.end_session(session.id)
        with anyio.fail_after(PATIENCE):
            await anyio.sleep_forever()
    assert events.has_ended


# Reading the store.


async def test_one_of_several_reads_and_its_failure_is_its_own(
    store: ToldStore, session: Session, other: CallbackManager
):
    results: list[str] = []
    readers = [await begun(session) for _ in range(3)]
    reads = 0

    async def fails_once() -> None:
        nonlocal reads
        reads += 1
        await settle(3)
        if reads == 1:
            raise StoreUnavailableError("away")

    async with anyio.create_task_group() as tasks:

        async def read(events: Subscription) -> None:
            try:
                results.append(f"{(await anext(events)).data['n']}")
            except StoreUnavailableError:
                results.append("failed")

        for events in readers:
            tasks.start_soon(read, events)
        await settle()
        store.before["read"] = fails_once
        await other.emit(session.id, "n", {"n": 1})
    assert sorted(results) == ["1", "1", "failed"]
    assert reads == 2


async def test_when_the_one_that_reads_is_cancelled_another_reads(
    store: ToldStore, session: Session, other: CallbackManager
):
    got: list[Event] = []
    readers = [await begun(session) for _ in range(3)]
    mine: ContextVar[anyio.CancelScope] = ContextVar("mine")
    reading: list[anyio.CancelScope] = []

    async def sticks_once() -> None:
        reading.append(mine.get())
        if len(reading) == 1:
            await anyio.sleep_forever()

    async with anyio.create_task_group() as tasks:

        async def read(events: Subscription) -> None:
            with anyio.CancelScope() as scope:
                mine.set(scope)
                got.append(await anext(events))

        for events in readers:
            tasks.start_soon(read, events)
        await settle()
        store.before["read"] = sticks_once
        await other.emit(session.id, "n", {"n": 1})
        await settle()
        assert len(reading) == 1
        reading[0].cancel()
        await until(lambda: numbers_of(got) == [1, 1])
    assert len(reading) == 2


async def test_who_comes_while_it_is_read_waits_for_that(
    store: ToldStore, session: Session, other: CallbackManager
):
    one, two = await begun(session), await begun(session)
    got: list[Event] = []
    answers = anyio.Event()

    async def sticks_once() -> None:
        del store.before["read"]
        await answers.wait()

    store.before["read"] = sticks_once
    async with anyio.create_task_group() as tasks:
        await waiting(tasks, one, got)
        for number in (1, 2):
            # The second makes stale what is just being read.
            await other.emit(session.id, "n", {"n": number})
            await settle()
        assert one.tail.is_stale
        store.log.clear()
        await waiting(tasks, two, got)
        assert store.log == []
        answers.set()
    assert numbers_of(got) == [1, 1]


@pytest.mark.parametrize("count", [1, 99, 100, 101, 350])
async def test_however_much_others_stored_it_is_all_read(
    session: Session, other: CallbackManager, count: int
):
    events = await begun(session)
    for number in range(count):
        await other.emit(session.id, "n", {"n": number})
    assert numbers_of(await take(events, count)) == list(range(count))
    assert (events.tail.top, events.tail.is_stale) == (count, False)


async def test_what_is_appended_while_it_is_read_comes_too(
    store: ToldStore, session: Session, other: CallbackManager
):
    events = await begun(session)
    asked = 0

    async def appends() -> None:
        nonlocal asked
        asked += 1
        if asked == 1:
            # Between the page and its being put in: one of ours, and one of theirs.
            await emit_numbers(session, [2])
            await other.emit(session.id, "n", {"n": 3})

    store.after["read"] = appends
    await other.emit(session.id, "n", {"n": 1})
    assert numbers_of(await take(events, 3)) == [1, 2, 3]
    assert events.take() == ()


async def test_an_end_while_it_is_read_is_not_overlooked(
    store: ToldStore, session: Session, other: CallbackManager
):
    events = await begun(session)

    async def ends() -> None:
        del store.after["read"]
        await other.end_session(session.id)

    store.after["read"] = ends
    await other.emit(session.id, "n", {"n": 1})
    with anyio.fail_after(PATIENCE):
        assert numbers_of([event async for event in events]) == [1]


# Another log.


async def test_a_log_that_was_made_anew_is_a_gap_to_all(store: ToldStore, session: Session):
    await emit_numbers(session, range(3))
    events, second = await begun(session), await begun(session)
    kept = store._sessions[session.id]
    await emit_numbers(session, [3])
    # As if the file had been replaced by another one with a session of this name.
    kept.epoch = "f00"
    store._watches.ring_all()
    for reader in (events, second):
        reader.take()
        got = await take(reader, 5)
        assert [each.is_gap for each in got] == [True, False, False, False, False]
        assert numbers_of(got) == [0, 1, 2, 3]
        assert got[-1].position == Position("f00", 4)
    await emit_numbers(session, [4])
    assert numbers_of(await take(events, 1)) == [4]
    assert (await session.stats()).events_delivered == 5


async def test_a_log_that_was_turned_back_is_a_gap(store: ToldStore, session: Session):
    await emit_numbers(session, range(3))
    events = await begun(session)
    await store.delete_session(session.id, linger=0)
    await store.sweep()
    record = session._record
    fresh = await CallbackManager(store).create_session()
    store._sessions[session.id] = kept = store._sessions.pop(fresh.id)
    kept.epoch = record.epoch
    store._watches.ring(session.id)
    got = await take(events, 1)
    assert got[0].is_gap
    await CallbackManager(store).emit(session.id, "n", {"n": 9})
    assert numbers_of(await take(events, 1)) == [9]


# Nothing is left.


async def test_the_last_reader_ends_it(manager: CallbackManager, session: Session):
    one, two = await begun(session), await begun(session)
    tail = manager._readers.tails[session.id]
    assert len(manager.store._watches) == 1
    assert tail.readers == 2
    one.close()
    assert manager._readers.tails == {session.id: tail}
    two.close()
    assert manager._readers.tails == {}
    assert len(manager.store._watches) == 0
    three = await begun(session)
    assert manager._readers.tails[session.id] is not tail
    # Nobody is rung for one that is over, though a ring be on its way.
    assert not tail.is_stale
    three.close()


async def test_one_that_leaves_while_the_store_is_read_leaves_no_watch(
    store: ToldStore, manager: CallbackManager, session: Session
):
    events = session.subscribe()
    watch = store.watch

    def watches(session_id: str | None) -> Any:
        found = watch(session_id)
        # As a finalizer may: before it is entered.
        events.close()
        return found

    store.watch = watches  # type: ignore[method-assign] # a store that takes its time
    await events.begin()
    assert events.is_closed
    assert len(store._watches) == 0
    assert manager._readers.tails == {}


async def test_readers_that_are_left_leave_nothing(manager: CallbackManager, session: Session):
    await emit_numbers(session, range(3))
    for _ in range(3):
        events: Any = session.subscribe()
        await take(events, 1)
        circle = [events]
        circle.append(circle)  # type: ignore[arg-type] # only the collector finds it
        del events, circle
    gc.collect()
    assert manager._readers.tails == {}
    assert len(manager.store._watches) == 0
    await emit_numbers(session, [4])


async def test_a_reader_that_is_cancelled_while_it_waits_is_not_woken_any_more(session: Session):
    events = await begun(session)
    async with anyio.create_task_group() as tasks:
        await waiting(tasks, events, [])
        assert len(events.tail._listed) == 1
        tasks.cancel_scope.cancel()
    assert len(events.tail._listed) == 0


async def test_a_reader_that_closes_while_it_is_listed_is_kept_by_nobody(session: Session):
    stays, events = await begun(session), await begun(session)
    pending = events.pending()
    assert inspect.isawaitable(pending)
    if inspect.iscoroutine(pending):
        pending.close()
    events.close()
    gone = weakref.ref(events)
    del events
    gc.collect()
    assert gone() is None
    stays.close()


# Locks: a finalizer may close a reader anywhere, so that nobody may hold two of them.


async def _in_thread(function: Callable[[], object]) -> None:
    """Run a function elsewhere, which has to come to its end."""
    done = threading.Event()

    def run() -> None:
        function()
        done.set()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert await anyio.to_thread.run_sync(done.wait, PATIENCE)


async def test_while_a_tail_is_locked_readers_come_and_go(session: Session):
    """A finalizer that runs in there wants what those who come hold."""
    first = await begun(session)
    with first.tail._lock:
        coming: list[Subscription] = []
        await _in_thread(lambda: coming.append(session.subscribe()))
        await _in_thread(coming[0].close)


async def test_whoever_ends_the_last_reader_does_not_hold_the_lock_of_all(
    manager: CallbackManager, session: Session
):
    last = await begun(session)
    other = await manager.create_session()
    with last.tail._lock:
        closing = threading.Thread(target=last.close, daemon=True)
        closing.start()
        await _in_thread(lambda: other.subscribe().close())
    await anyio.to_thread.run_sync(closing.join, PATIENCE)
    assert manager._readers.tails == {}


async def test_while_a_watch_begins_the_tail_is_not_locked(store: ToldStore, session: Session):
    events = session.subscribe()
    tail = events.tail
    began = threading.Event()

    def begin() -> None:
        began.set()
        tail._begin_watch()

    with store._watches._lock:
        thread = threading.Thread(target=begin, daemon=True)
        thread.start()
        await anyio.to_thread.run_sync(began.wait)
        while tail._watch is None:
            await checkpoint()
        await _in_thread(lambda: tail.take(None, 0, 1))
    await anyio.to_thread.run_sync(thread.join, PATIENCE)


async def test_of_two_threads_that_want_to_read_one_reads(store: ToldStore, session: Session):
    """What the slower one has read is older, and it is not to be put over the newer."""
    events = session.subscribe()
    tail: Tail = events.tail
    gates = [tail._come_to_gate() for _ in range(2)]
    assert [is_mine for _, is_mine in gates] == [True, False]
    assert gates[0][0] is gates[1][0]
    await tail._read(gates[0][0])
    assert tail._come_to_gate()[1]
    events.close()
