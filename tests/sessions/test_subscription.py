"""Reading a session from a position on."""

import gc
import inspect
import json
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

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
from callbackkit.sessions.tail import Entry
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


async def test_now_is_once(store: ToldStore, session: Session):
    events = session.subscribe("now")
    await events.begin()
    await CallbackManager(store).emit(session.id, "n", {"n": 1})
    with anyio.fail_after(PATIENCE):
        while not (found := events.take()):
            await events.more()
    assert [each.event.data["n"] for each in found] == [1]


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
    # More than is kept in memory of what its readers have not got to.
    await emit_numbers(session, range(3, 600))
    got = await take(events, 6)
    assert gap_of(got[0])[2] == 593
    assert [event.position.seq for event in got] == [595, 596, 597, 598, 599, 600]


async def test_a_reader_that_keeps_up_misses_nothing_however_little_is_kept():
    session = await small(5).create_session()
    events = session.subscribe()
    await emit_numbers(session, range(3))
    assert numbers_of(await take(events, 2)) == [0, 1]
    await emit_numbers(session, range(3, 20))
    assert numbers_of(await take(events, 18)) == list(range(2, 20))


async def test_what_was_dropped_before_it_began_is_no_gap_though_others_read_before():
    session = await small(5).create_session()
    first = session.subscribe()
    await first.begin()
    await emit_numbers(session, range(600))
    late = session.subscribe()
    assert (await late.begin()).seq == 595
    assert numbers_of(await take(late, 5)) == [595, 596, 597, 598, 599]


async def test_a_filter_hides_no_gap():
    session = await small(2).create_session()
    await emit_numbers(session, range(2))
    events = session.subscribe(types=["other"])
    with anyio.move_on_after(0.01):
        await anext(events)
    await emit_numbers(session, range(600))
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
@pytest.mark.parametrize("nth", [1, 2, 3])
async def test_what_is_appended_at_any_moment_of_the_replay_comes_once(
    store: ToldStore, session: Session, nth: int, side: str
):
    """Right before or after the nth look at the log: at its end, then twice from its beginning."""
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
    # The first look is at the end of the log.
    assert numbers_of(got) == list(range(100 * max(failing - 2, 0)))
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


# For transports: many at a time, and waiting without a timer.


def seqs(entries: Sequence[Entry]) -> list[int]:
    return [each.seq for each in entries]


async def test_it_is_found_out_where_to_begin_before_anything_is_read(session: Session):
    epoch = (await session.manager.store.get_session(session.id)).epoch
    empty = session.subscribe()
    assert empty.reached is None
    assert await empty.begin() == Position(epoch, 0) == empty.reached
    assert empty.position is None
    await emit_numbers(session, range(3))
    assert await session.subscribe().begin() == Position(epoch, 0)
    assert await session.subscribe("now").begin() == Position(epoch, 3)
    assert await session.subscribe(Position("f00", 9)).begin() == Position("f00", 9)
    last = session.subscribe(types=["none"])
    assert await last.begin() == Position(epoch, 0)
    assert seqs(empty.take()) == [1, 2, 3]
    assert empty.reached == empty.position == Position(epoch, 3)


@pytest.mark.parametrize("count", [5, 100, 101, 250])
@pytest.mark.parametrize("max_events", [3, 10_000])
async def test_it_begins_before_the_first_event_it_gives(count: int, max_events: int):
    session = await small(max_events).create_session()
    await emit_numbers(session, range(count))
    events = session.subscribe()
    began = await events.begin()
    assert await events.begin() == began
    first = (await take(events, 1))[0]
    assert first.position == Position(began.epoch, began.seq + 1)
    assert began.seq == max(count - max_events, 0)


async def test_to_begin_where_there_is_no_session_fails(manager: CallbackManager):
    for after in (None, "now"):
        with pytest.raises(UnknownSessionError):
            await manager.subscription("nobody", after=after).begin()


async def test_so_many_are_taken_at_most_and_each_once(session: Session):
    await emit_numbers(session, range(5))
    events = session.subscribe()
    assert events.take() == ()
    await events.begin()
    assert seqs(events.take(2)) == [1, 2]
    assert events.position is not None
    assert events.position.seq == 2
    assert seqs(events.take(2)) == [3, 4]
    assert seqs(events.take(2)) == [5]
    assert events.take() == ()
    await emit_numbers(session, [5, 6])
    assert seqs(events.take(1)) == [6]
    # The newest alone.
    assert seqs(events.take(1)) == [7]
    assert events.position.seq == 7


async def test_what_was_read_behind_the_others_is_taken_bit_by_bit(session: Session):
    await emit_numbers(session, range(120))
    events = session.subscribe(Position("f00", 1))
    while not (found := events.take(30)):
        await events.more()
    assert (found[0].event.is_gap, len(found)) == (True, 30)
    got = list(found)
    while len(got) < 121:
        if not (found := events.take(30)):
            await events.more()
        got += found
    assert seqs(got) == list(range(121))
    assert events.position == events.reached
    # From here on it waits like all the others.
    while events.tail.is_stale:
        await events.more()
    waiting = Waiting(events, "pending")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(waiting.run)
        await settle()
        assert not waiting.is_over
        assert waiting.pending is not None
        await emit_numbers(session, [120])


async def test_where_some_types_are_wanted_it_has_reached_what_is_not_too(session: Session):
    for event_type in ("a", "b", "b"):
        await session.emit(event_type)
    events = session.subscribe(types=["a"])
    await events.begin()
    assert seqs(events.take(1)) == [1]
    assert events.take(1) == ()
    assert (events.position.seq, events.reached.seq) == (1, 3)  # type: ignore[union-attr]


async def test_many_in_memory_that_are_not_wanted_need_no_stack(session: Session):
    events, first = session.subscribe(types=["other"]), session.subscribe()
    await events.begin()
    await first.begin()
    await emit_numbers(session, range(250))
    await session.emit("other")
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + 60)
    try:
        assert seqs(events.take(1)) == [251]
    finally:
        sys.setrecursionlimit(limit)


async def test_nothing_is_taken_from_one_that_is_closed(session: Session):
    await emit_numbers(session, range(3))
    for after in (None, Position("f00", 1)):
        events = session.subscribe(after)
        while not events.take(1):
            await events.more()
        await emit_numbers(session, [3])
        events.close()
        assert events.take() == ()
        assert events.pending() is None
    late = session.subscribe()
    await late.begin()
    assert seqs(late.take(4)) == [1, 2, 3, 4]
    late.close()
    # The newest alone.
    assert late.tail.top == 5
    assert late.take(1) == ()


class Waiting:
    """Waits for more in a task of its own."""

    def __init__(self, events: Subscription, wait: str) -> None:
        self.events = events
        self.wait = wait
        self.is_over = False
        self.pending: Any = None

    async def run(self) -> None:
        self.pending = self.events.pending() if self.wait == "pending" else None
        await (self.events.more() if self.pending is None else self.pending)
        self.is_over = True


@pytest.mark.parametrize("wait", ["more", "pending"])
@pytest.mark.parametrize("what", ["emit", "end", "poke", "thread", "close", "reconcile", "drain"])
async def test_waiting_ends_when_something_happens(
    manager: CallbackManager, session: Session, wait: str, what: str
):
    events = session.subscribe()
    await events.begin()
    for _ in range(2):
        waiting = Waiting(events, wait)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(waiting.run)
            await settle()
            assert not waiting.is_over
            if what == "emit":
                await emit_numbers(session, [1])
            elif what == "end":
                await session.end()
            elif what == "poke":
                events.poke()
            elif what == "thread":
                await anyio.to_thread.run_sync(events.poke)
            elif what == "close":
                events.close()
            elif what == "drain":
                manager._readers.drain()
            else:
                events.reconcile()
                events.tail.wake()
            with anyio.fail_after(PATIENCE):
                while not waiting.is_over:
                    await checkpoint()
        if what in ("end", "close"):
            break
        # And can be waited for again, once what there is was seen.
        assert seqs(events.take()) == ([events.tail.top] if what == "emit" else [])
        while events.tail.is_stale or events._is_poked:
            await events.more()


async def test_a_poke_that_comes_before_is_not_lost(session: Session):
    events = session.subscribe()
    await events.begin()
    events.poke()
    assert events.pending() is None
    with anyio.fail_after(PATIENCE):
        await events.more()
    # Once.
    with anyio.move_on_after(0.02) as scope:
        await events.more()
    assert scope.cancelled_caught


@pytest.mark.parametrize("what", ["emit", "stale", "end", "queue", "closed", "new", "epoch"])
async def test_where_there_is_something_nobody_is_made_to_wait(
    store: ToldStore, session: Session, what: str
):
    await emit_numbers(session, range(3))
    events = session.subscribe(Position("f00", 1) if what == "queue" else None)
    if what != "new":
        await events.begin()
        events.take()
    if what == "emit":
        await emit_numbers(session, [3])
    elif what == "stale":
        await CallbackManager(store).emit(session.id, "n", {"n": 3})
    elif what == "end":
        await session.end()
        await events.more()
        events.has_ended = False
    elif what == "queue":
        # A page that ends where everything does.
        while events._queue is None:
            await events.more()
    elif what == "closed":
        events.close()
    elif what == "epoch":
        # Another log, as long as the first; others have noticed.
        store._sessions[session.id].epoch = "f00"
        store._watches.ring_all()
        other = session.subscribe()
        await other.begin()
        while other.tail.is_stale:
            await other.tail.refresh()
        assert other.tail.top == 3
    assert events.pending() is None
    if what != "closed":
        with anyio.fail_after(PATIENCE):
            while not (events.has_ended or events.take()):
                await events.more()


class Late:
    """A waiter for which something happens in another thread just before it can be woken."""

    def __init__(self, happens: Callable[[], object]) -> None:
        self.happens = happens

    def renew(self) -> bool:
        self.happens()
        return True

    def wake(self) -> None:
        """Too early."""

    async def wait(self) -> None:
        await anyio.sleep_forever()


@pytest.mark.parametrize("wait", ["more", "pending"])
@pytest.mark.parametrize("what", ["poke", "close", "emit", "ring"])
async def test_what_happens_while_it_gets_ready_to_wait_is_not_lost(
    session: Session, what: str, wait: str
):
    events = session.subscribe()
    began = await events.begin()
    body = b'{"conversation_id":null,"data":{"n":1},"metadata":{}}'
    event = Event(Position(began.epoch, 1), "n", 1, session.id, body, json.loads)
    happens = {
        "poke": events.poke,
        "close": events.close,
        "emit": lambda: events.tail.offer(event),
        "ring": lambda: events.tail._on_ring(None),
    }
    events._waiter = Late(happens[what])
    if wait == "pending":
        assert events.pending() is None
    else:
        with anyio.fail_after(PATIENCE):
            await events.more()
    assert numbers_of([each.event for each in events.take()]) == [1] * (what == "emit")


async def test_after_the_timeout_the_store_is_looked_at(store: ToldStore, session: Session):
    events = session.subscribe()
    await events.begin()
    store._watches._by_topic.clear()
    await CallbackManager(store).emit(session.id, "n", {"n": 1})
    assert not events.tail.is_stale
    await events.more(timeout=0.01)
    with anyio.fail_after(PATIENCE):
        while not (found := events.take()):
            await events.more()
    assert seqs(found) == [1]


async def test_who_reconciles_looks_at_the_store(store: ToldStore, session: Session):
    events = session.subscribe()
    await events.begin()
    assert events.looks_every == store.reconcile
    store._watches._by_topic.clear()
    await CallbackManager(store).emit(session.id, "n", {"n": 1})
    events.reconcile()
    with anyio.fail_after(PATIENCE):
        while not (found := events.take()):
            await events.more()
    assert seqs(found) == [1]


async def test_whoever_waits_with_a_filter_is_not_returned_to_for_nothing(session: Session):
    events = session.subscribe(types=["other"])
    async with anyio.create_task_group() as tasks:

        async def read() -> None:
            assert (await anext(events)).event_type == "other"

        tasks.start_soon(read)
        await settle()
        for count in (1, 3):
            await emit_numbers(session, range(count))
            await settle()
        await session.emit("other")


async def test_who_subscribes_while_it_drains_is_told(manager: CallbackManager, session: Session):
    before = session.subscribe()
    assert not before.is_draining
    manager.begin_drain()
    assert before.is_draining
    assert session.subscribe().is_draining
    manager._readers.close()
    assert not session.subscribe().is_draining
    assert before.is_closed


async def test_a_drain_asked_for_while_nothing_runs_is_over_when_it_runs(
    manager: CallbackManager, session: Session
):
    async with manager:
        assert not session.subscribe().is_draining
    # A signal that comes late.
    manager.begin_drain()
    async with manager:
        assert not session.subscribe().is_draining
        assert not manager.is_draining


async def test_a_drain_that_begins_while_one_subscribes_is_not_overlooked(
    manager: CallbackManager, session: Session
):
    readers = manager._readers
    add = readers.add

    def adds(*arguments: Any) -> Any:
        readers.is_draining = True
        return add(*arguments)

    readers.add = adds  # type: ignore[method-assign] # what another thread may do meanwhile
    assert session.subscribe().is_draining


async def test_reading_is_noted_for_all_readers_by_the_one_that_is_ahead(
    manager: CallbackManager, session: Session
):
    await emit_numbers(session, range(5))
    one, two = session.subscribe(), session.subscribe()
    got = await take(one, 4)
    await take(two, 2)
    assert (await session.stats()).events_delivered == 4
    assert one.tail.noted == 4
    two.note_read(got[1])
    assert one.tail.noted == 4
    await take(two, 3)
    assert (await session.stats()).events_delivered == 5


async def test_one_may_go_on_in_another_event_loop(session: Session):
    """What it waited for in the first is of no use there."""
    events = session.subscribe()
    await events.begin()
    await events.more(timeout=0.01)

    def elsewhere() -> list[int]:
        async def read() -> list[int]:
            await emit_numbers(session, [1])
            first = await take(events, 1)
            waiting = Waiting(events, "more")
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(waiting.run)
                await settle()
                await emit_numbers(session, [2])
            return numbers_of(first + await take(events, 1))

        return anyio.run(read)

    assert await anyio.to_thread.run_sync(elsewhere) == [1, 2]
