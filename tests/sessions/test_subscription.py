"""Reading a session from a position on."""

import gc
import threading
import time
import weakref

import anyio
import anyio.to_thread
import pytest
from anyio.lowlevel import checkpoint

from callbackkit import (
    CallbackManager,
    Event,
    Limits,
    Position,
    PositionError,
    Retention,
    Session,
    SessionDeletedError,
    StoreError,
    StoreUnavailableError,
    Subscription,
    UnknownSessionError,
)
from callbackkit.sessions.subscription import read_after
from tests.sessions.rig import (
    PATIENCE,
    ToldStore,
    collect,
    emit_numbers,
    numbers_of,
    rest,
    settle,
    take,
    told_manager,
)


@pytest.fixture
def store() -> ToldStore:
    return ToldStore()


@pytest.fixture
def manager(store: ToldStore) -> CallbackManager:
    return CallbackManager(store)


@pytest.fixture
async def session(manager: CallbackManager) -> Session:
    return await manager.create_session()


def small(max_events: int) -> CallbackManager:
    return CallbackManager(ToldStore(), retention=Retention(max_events=max_events))


def gap_of(event: Event) -> tuple[str, str, int | None]:
    assert event.is_gap
    return event.data["from"], event.data["to"], event.data["missed"]


# Where it begins.


async def test_without_a_position_it_begins_with_the_oldest_event_kept(session: Session):
    await emit_numbers(session, range(3))
    async with session.subscribe() as events:
        assert numbers_of(await take(events, 3)) == [0, 1, 2]


async def test_what_was_dropped_before_it_began_is_no_gap_to_one_without_a_position():
    session = await small(2).create_session()
    await emit_numbers(session, range(5))
    assert numbers_of(await take(session.subscribe(), 2)) == [3, 4]


@pytest.mark.parametrize("form", ["event", "position", "id"])
async def test_it_goes_on_behind_a_position_its_text_or_an_event(session: Session, form: str):
    await emit_numbers(session, range(4))
    second = (await take(session.subscribe(), 2))[1]
    after = second if form == "event" else getattr(second, form)
    assert numbers_of(await take(session.subscribe(after), 2)) == [2, 3]


async def test_now_is_behind_the_newest_event_when_reading_begins(session: Session):
    await emit_numbers(session, range(2))
    async with session.subscribe("now") as events:
        lazy = session.subscribe("now")
        await emit_numbers(session, [2])
        async with anyio.create_task_group() as group:
            group.start_soon(_expect, lazy, [3])
            await settle()
            await emit_numbers(session, [3])
        assert numbers_of(await take(events, 2)) == [2, 3]


async def _expect(events: Subscription, numbers: list[int]) -> None:
    assert numbers_of(await take(events, len(numbers))) == numbers


def test_a_text_that_is_no_position_is_refused_at_once():
    for text in ("", "later", "1", "a-b", "x-01", "-", "now ", "a" * 100 + "-1", "é-1"):
        with pytest.raises(PositionError):
            read_after(text)
    for other in (1, b"now", 1.0, ("e", 1)):
        with pytest.raises(TypeError, match="after is a position"):
            read_after(other)
    assert read_after("now") == "now"
    assert read_after(None) is None
    assert read_after("e-1") == Position("e", 1)


async def test_one_that_was_refused_leaves_nothing(manager: CallbackManager, session: Session):
    with pytest.raises(PositionError):
        session.subscribe("nonsense")
    with pytest.raises(TypeError, match="not the string 'progress'"):
        session.subscribe(types="progress")
    gc.collect()
    assert manager._readers._open == {}


async def test_a_subscription_to_no_session_fails_when_it_is_read(manager: CallbackManager):
    with pytest.raises(UnknownSessionError):
        await anext(manager.subscription("nobody"))
    with pytest.raises(UnknownSessionError):
        async with manager.subscription("nobody", after="now"):
            pytest.fail("it was entered")


# Gaps.


async def test_a_foreign_position_gives_a_gap_and_then_what_is_kept(session: Session):
    await emit_numbers(session, range(2))
    events = await take(session.subscribe("f00-7"), 3)
    epoch = events[1].position.epoch
    assert gap_of(events[0]) == ("f00-7", f"{epoch}-0", None)
    assert numbers_of(events) == [0, 1]
    assert events[0].event_type == "callbackkit.gap"


async def test_a_position_from_the_future_gives_a_gap_and_then_what_is_kept(session: Session):
    await emit_numbers(session, range(2))
    epoch = (await take(session.subscribe(), 1))[0].position.epoch
    events = await take(session.subscribe(Position(epoch, 99)), 3)
    assert gap_of(events[0])[2] is None
    assert numbers_of(events) == [0, 1]


async def test_a_position_that_was_trimmed_gives_a_gap_that_counts():
    session = await small(3).create_session()
    await emit_numbers(session, [0])
    first = (await take(session.subscribe(), 1))[0]
    await emit_numbers(session, range(1, 8))
    events = await take(session.subscribe(first), 4)
    epoch = first.position.epoch
    assert gap_of(events[0]) == (f"{epoch}-2", f"{epoch}-5", 4)
    assert numbers_of(events) == [5, 6, 7]
    # The gap is a place to go on from.
    assert numbers_of(await take(session.subscribe(events[0]), 3)) == [5, 6, 7]


async def test_the_epoch_of_another_session_is_a_foreign_one(manager: CallbackManager):
    one, two = await manager.create_session(), await manager.create_session()
    for session in (one, two):
        await emit_numbers(session, range(3))
    mine = (await take(one.subscribe(), 2))[1]
    events = await take(two.subscribe(mine), 4)
    assert events[0].is_gap
    assert numbers_of(events) == [0, 1, 2]


async def test_a_gap_comes_even_if_nothing_is_kept(session: Session):
    gap = (await take(session.subscribe("f00-7"), 1))[0]
    assert gap_of(gap)[0] == "f00-7"
    assert abs(gap.timestamp.timestamp() - time.time()) < 60
    await emit_numbers(session, [1])
    assert numbers_of(await take(session.subscribe(gap), 1)) == [1]


async def test_what_is_trimmed_faster_than_it_is_read_is_a_gap():
    session = await small(5).create_session()
    events = session.subscribe()
    await emit_numbers(session, range(3))
    assert numbers_of(await take(events, 2)) == [0, 1]
    # The third one was read from the store already.
    await emit_numbers(session, range(3, 20))
    got = await take(events, 7)
    assert numbers_of(got) == [2, 15, 16, 17, 18, 19]
    assert gap_of(got[1])[2] == 12
    assert [event.position.seq for event in got] == [3, 15, 16, 17, 18, 19, 20]


async def test_a_filter_hides_no_gap():
    session = await small(2).create_session()
    await emit_numbers(session, range(2))
    events = session.subscribe(types=["other"])
    with anyio.move_on_after(0.01):
        await anext(events)
    await emit_numbers(session, range(5))
    await session.emit("other")
    got = await take(events, 2)
    assert [event.event_type for event in got] == ["callbackkit.gap", "other"]


async def test_only_events_of_the_types_asked_for_come(session: Session):
    for event_type in ("a", "b", "c", "a"):
        await session.emit(event_type)
    await session.end()
    got = await rest(session.subscribe(types={"a", "c"}))
    assert [event.event_type for event in got] == ["a", "c", "a"]
    assert [event.position.seq for event in got] == [1, 3, 4]


async def test_many_in_a_row_that_are_not_wanted_are_passed_over(session: Session):
    await emit_numbers(session, range(350))
    await session.emit("other")
    await session.end()
    got = await rest(session.subscribe(types=["other"]))
    assert [event.position.seq for event in got] == [351]


# Backlog and live are one.


@pytest.mark.parametrize("side", ["before", "after"])
@pytest.mark.parametrize("nth", [1, 2, 3, 4])
async def test_what_is_appended_at_any_moment_of_the_replay_comes_once(
    store: ToldStore, session: Session, nth: int, side: str
):
    """Right before or after the nth look at the log; at the 4th, all of the backlog was read."""
    await emit_numbers(session, range(250))
    reads = 0

    async def appends() -> None:
        nonlocal reads
        reads += 1
        await checkpoint()
        if reads == nth:
            await emit_numbers(session, [250])

    store.reconcile = PATIENCE * 2
    getattr(store, side)["read"] = appends
    events = session.subscribe()
    assert numbers_of(await take(events, 251)) == list(range(251))
    del getattr(store, side)["read"]
    await emit_numbers(session, [251])
    assert numbers_of(await take(events, 1)) == [251]


async def test_many_read_one_session_each_at_its_own_place(session: Session):
    got: dict[int, list[int]] = {}

    async def read(reader: int) -> None:
        numbers = []
        async for event in session.subscribe():
            numbers.append(event.data["n"])
            if reader % 2:
                await checkpoint()
        got[reader] = numbers

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            for reader in range(1_000):
                group.start_soon(read, reader)
            await emit_numbers(session, range(3))
            await settle(3)
            await emit_numbers(session, range(3, 5))
            await session.end()
    assert len(got) == 1_000
    assert all(numbers == [0, 1, 2, 3, 4] for numbers in got.values())


async def test_a_reader_that_is_always_behind_lets_others_run(session: Session):
    await emit_numbers(session, range(1_000))
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await checkpoint()

    async with anyio.create_task_group() as group:
        group.start_soon(others)
        await take(session.subscribe(), 1_000)
        group.cancel_scope.cancel()
    assert turns >= 5


async def test_what_another_process_did_is_noticed_after_a_while(
    store: ToldStore, session: Session
):
    store.reconcile = 0.02
    events = session.subscribe()
    async with anyio.create_task_group() as group:
        group.start_soon(_expect, events, [1])
        await settle()
        store._watches._by_topic.clear()
        await emit_numbers(session, [1])


# Its end.


async def test_it_ends_with_the_session_after_everything(session: Session):
    await emit_numbers(session, range(150))
    events = session.subscribe()
    await take(events, 10)
    async with anyio.create_task_group() as group:
        group.start_soon(session.end)
        got = await rest(events)
    assert numbers_of(got) == list(range(10, 150))
    assert events.has_ended
    assert session.manager._readers.kinds().total() == 0
    with pytest.raises(StopAsyncIteration):
        await anext(events)


async def test_one_that_waits_is_woken_by_the_end(session: Session):
    events = session.subscribe()
    async with anyio.create_task_group() as group:
        group.start_soon(rest, events)
        await settle()
        await session.end()
    assert events.has_ended


async def test_a_session_that_has_ended_can_be_read(session: Session):
    await emit_numbers(session, range(3))
    await session.end()
    assert numbers_of(await rest(session.subscribe())) == [0, 1, 2]
    assert await rest(session.subscribe("now")) == []


async def test_two_tasks_do_not_share_one(session: Session):
    """Both would get the same events."""
    events = session.subscribe()
    async with anyio.create_task_group() as group:
        group.start_soon(_expect, events, [1])
        await settle()
        with pytest.raises(RuntimeError, match="a subscription of its own"):
            await anext(events)
        await emit_numbers(session, [1])


async def test_deleting_the_session_wakes_and_is_told(manager: CallbackManager, session: Session):
    events = session.subscribe()
    async with anyio.create_task_group() as group:

        async def read() -> None:
            with pytest.raises(SessionDeletedError):
                await anext(events)

        group.start_soon(read)
        await settle()
        await manager.delete_session(session.id)
    assert not events.has_ended


async def test_another_task_may_close_it(session: Session):
    events = session.subscribe()
    async with anyio.create_task_group() as group:
        group.start_soon(rest, events)
        await settle()
        events.close()
        events.close()
    assert not events.has_ended
    assert "closed" in repr(events)


async def test_another_thread_may_close_it(session: Session):
    events = session.subscribe()
    async with anyio.create_task_group() as group:
        group.start_soon(rest, events)
        await settle()
        await anyio.to_thread.run_sync(events.close)


async def test_nothing_comes_after_it_was_closed(store: ToldStore, session: Session):
    await emit_numbers(session, range(5))
    events = session.subscribe()
    await take(events, 2)
    events.close()
    assert await rest(events) == []
    closing = session.subscribe()

    async def closes() -> None:
        closing.close()

    store.before["read"] = closes
    assert await rest(closing) == []


async def test_threads_close_readers_while_these_read(session: Session):
    await emit_numbers(session, range(300))
    for _ in range(20):
        events = session.subscribe()
        closing = threading.Thread(target=events.close)
        got = []
        closing.start()
        async for event in events:
            got.append(event.data["n"])
            if len(got) == 300:
                break
        await anyio.to_thread.run_sync(closing.join)
        assert got == list(range(len(got)))


async def test_leaving_the_block_closes_it(manager: CallbackManager, session: Session):
    async with session.subscribe() as events:
        assert manager._readers.kinds().total() == 1
    assert manager._readers.kinds().total() == 0
    assert await rest(events) == []


async def test_one_left_with_break_leaks_nothing(manager: CallbackManager, session: Session):
    await emit_numbers(session, range(3))
    for _ in range(3):
        async for _event in session.subscribe():
            break
    left = session.subscribe()
    async for _event in left:
        break
    gone = weakref.ref(left)
    del left
    gc.collect()
    assert gone() is None
    assert manager._readers._open == {}
    assert len(manager.store._watches) == 0


# Trouble.


async def test_a_cancellation_loses_no_event(session: Session):
    events = session.subscribe()
    got: list[Event] = []
    with anyio.fail_after(PATIENCE):
        for number in range(30):
            with anyio.CancelScope() as scope:
                if number % 3 == 0:
                    scope.cancel()
                elif number % 3 == 1:
                    scope.deadline = anyio.current_time() + 0.001
                else:
                    await emit_numbers(session, [number, number])
                got.append(await anext(events))
        while len(got) < 20:
            got.append(await anext(events))
    assert numbers_of(got) == [n for n in range(2, 30, 3) for _ in range(2)]


@pytest.mark.parametrize("failing", [1, 2, 3])
async def test_a_store_that_fails_in_the_middle_goes_on_at_the_same_place(
    store: ToldStore, session: Session, failing: int
):
    await emit_numbers(session, range(250))
    await session.end()
    reads = 0

    async def fails() -> None:
        nonlocal reads
        reads += 1
        if reads == failing:
            raise StoreUnavailableError("away")

    store.before["read"] = fails
    events = session.subscribe()
    got: list[Event] = []
    with pytest.raises(StoreError, match="away"):
        await collect(events, got)
    assert numbers_of(got) == list(range(100 * (failing - 1)))
    assert numbers_of(got + await rest(events)) == list(range(250))


async def test_a_store_that_fails_does_not_keep_it_from_closing(
    store: ToldStore, manager: CallbackManager, session: Session
):
    async def fails() -> None:
        raise StoreUnavailableError("away")

    await emit_numbers(session, range(2))
    store.before["touch"] = fails
    async with session.subscribe() as events:
        await take(events, 2)
    del store.before["touch"]
    assert (await session.stats()).events_delivered == 2


# What it tells.


async def test_its_position_is_that_of_the_last_event_returned(session: Session):
    await emit_numbers(session, range(3))
    events = session.subscribe()
    assert events.position is None
    got = await take(events, 2)
    assert events.position == got[1].position
    assert session.subscribe(got[0]).position == got[0].position
    async with session.subscribe("now") as late:
        assert late.position == Position(got[0].position.epoch, 3)


async def test_what_it_returned_is_read(session: Session):
    await emit_numbers(session, range(3))
    events = session.subscribe()
    await take(events, 2)
    stats = await session.stats()
    assert (stats.events_delivered, stats.queued_events) == (2, 1)


async def test_reading_is_not_noted_unless_asked(manager: CallbackManager, session: Session):
    await emit_numbers(session, range(3))
    events = manager.subscription(session.id, notes_reading=False)
    got = await take(events, 3)
    assert (await session.stats()).events_delivered == 0
    events.note_read(got[1])
    assert (await session.stats()).events_delivered == 2


async def test_events_are_those_that_were_emitted(session: Session):
    stored = await session.emit(
        "custom.type", {"a": [1, "é"]}, conversation_id="c", metadata={"m": None}
    )
    assert stored is not None
    (read,) = await take(session.subscribe(), 1)
    assert read == stored
    assert (read.data, read.conversation_id, read.metadata) == ({"a": [1, "é"]}, "c", {"m": None})
    assert read.session_id == session.id


async def test_readers_are_limited():
    manager, _ = told_manager(limits=Limits(max_readers=1))
    session = await manager.create_session()
    events = session.subscribe()
    with pytest.raises(Exception, match="max_readers=1"):
        session.subscribe()
    events.close()
    session.subscribe().close()
