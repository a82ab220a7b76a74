"""A page of a session, at once or as soon as there is something."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import pytest

from callbackkit import (
    CallbackManager,
    Event,
    LimitError,
    Limits,
    Position,
    Retention,
    Session,
    SessionDeletedError,
    StoreUnavailableError,
    UnknownSessionError,
)
from callbackkit.transports.polling import MOST_EVENTS, MOST_WAIT, PolledPage, poll
from callbackkit.wire.envelope import encode_event
from tests.sessions.rig import PATIENCE, ToldStore, emit_numbers, settle, until

# So long that a test which waited it out would fail.
LONG = PATIENCE * 2
_1970 = datetime(1970, 1, 1, tzinfo=UTC)


def numbers(page: PolledPage) -> list[int]:
    return [event.data["n"] for event in page.events if not event.is_gap]


async def ask(session: Session, **options: Any) -> PolledPage:
    with anyio.fail_after(PATIENCE):
        return await poll(session.manager, session, **options)


async def emitted(session: Session, *which: int) -> list[Event]:
    found = [await session.emit("n", {"n": number}) for number in which]
    return [event for event in found if event is not None]


def small(max_events: int) -> CallbackManager:
    return CallbackManager(ToldStore(), retention=Retention(max_events=max_events))


# A page.


async def test_a_page_has_the_oldest_first_and_tells_where_to_go_on(session: Session):
    events = await emitted(session, *range(5))
    page = await ask(session)
    assert list(page.events) == events
    assert (page.cursor, page.has_more, page.total_count, page.gap) == (
        events[-1].position,
        False,
        5,
        False,
    )


async def test_pages_of_any_size_have_each_event_once(session: Session):
    await emit_numbers(session, range(250))
    for limit in (1, 7, 99, 100, 101, 249, 250, 251, 1000):
        got, after, pages = [], None, 0
        while True:
            page = await ask(session, after=after, limit=limit)
            got += numbers(page)
            after = page.cursor
            pages += 1
            assert len(page.events) <= limit
            if not page.has_more:
                break
            assert len(page.events) == limit
        assert got == list(range(250))
        assert pages == -(-250 // limit)


async def test_without_a_limit_a_page_has_100(session: Session):
    await emit_numbers(session, range(150))
    page = await ask(session)
    assert (len(page.events), page.has_more) == (100, True)


async def test_asking_again_gives_the_same_and_what_was_added(session: Session):
    first, *more = await emitted(session, 1, 2, 3)
    for _ in range(2):
        page = await ask(session, after=first.position)
        assert list(page.events) == more
    more += await emitted(session, 4)
    assert list((await ask(session, after=first.position)).events) == more


async def test_where_nothing_is_new_the_place_stays(session: Session):
    events = await emitted(session, 1, 2)
    page = await ask(session, after=events[1].position)
    assert (page.events, page.cursor, page.has_more) == ([], events[1].position, False)
    page = await ask(await session.manager.create_session())
    assert (page.events, page.cursor.seq, page.total_count) == ([], 0, 0)


async def test_a_page_is_json_without_decoding_any_event(session: Session):
    events = await emitted(session, 1, 2)
    page = await ask(session, limit=1)
    assert json.loads(page.encode()) == {
        "events": [json.loads(encode_event(events[0]))],
        "cursor": events[0].id,
        "has_more": True,
        "total_count": 2,
        "gap": False,
    }
    gap = await ask(session, after=Position("f00", 1), limit=1)
    shown = json.loads(gap.encode())
    assert (shown["gap"], shown["events"][0]["event_type"]) == (True, "callbackkit.gap")
    assert json.loads((await ask(session)).encode())["has_more"] is False


async def test_the_bytes_of_a_page_are_bounded_but_for_its_last_event(session: Session):
    for number in range(50):
        await session.emit("n", {"n": number, "text": "x" * 100_000})
    got: list[int] = []
    after, pages = None, 0
    while not got or got[-1] < 49:
        page = await ask(session, after=after, limit=MOST_EVENTS)
        assert len(page.encode()) <= 4_194_304 + 101_000
        got += numbers(page)
        after = page.cursor
        pages += 1
    assert got == list(range(50))
    assert pages == 2


async def test_what_a_page_gave_counts_as_read(session: Session):
    await emit_numbers(session, range(5))
    await ask(session, limit=3)
    assert (await session.stats()).events_delivered == 3
    other = await session.manager.create_session()
    page = await ask(other)
    assert page.events == []
    assert (await other.stats()).events_delivered == 0


async def test_of_no_session_there_is_no_page(manager: CallbackManager, session: Session):
    await manager.delete_session(session.id)
    with pytest.raises(SessionDeletedError):
        await ask(session)


async def test_an_ended_session_can_be_asked(session: Session):
    await emit_numbers(session, [1])
    await session.end()
    assert numbers(await ask(session)) == [1]
    page = await ask(session, after=(await ask(session)).cursor, wait=LONG)
    assert page.events == []


# Moments.


async def test_what_came_after_a_moment_is_asked_for_by_a_timestamp(session: Session):
    events = await emitted(session, 1, 2, 3)
    for place, event in enumerate(events):
        moment = (event.timestamp - _1970) // timedelta(microseconds=1)
        assert numbers(await ask(session, since=moment)) == [1, 2, 3][place + 1 :]
        assert numbers(await ask(session, since=moment - 1)) == [1, 2, 3][place:]
    assert numbers(await ask(session, since=0)) == [1, 2, 3]
    assert numbers(await ask(session, since=2**60)) == []


async def test_a_position_goes_before_a_moment(session: Session):
    first, *_ = await emitted(session, 1, 2)
    assert numbers(await ask(session, after=first.position, since=0)) == [2]


def moment_of(event: Event) -> int:
    return (event.timestamp - _1970) // timedelta(microseconds=1)


async def test_a_moment_before_the_session_means_all_that_is_kept():
    session = await small(2).create_session()
    await emit_numbers(session, range(5))
    page = await ask(session, since=0)
    assert (numbers(page), page.gap) == ([3, 4], False)


async def test_a_moment_whose_next_events_are_gone_gives_a_gap():
    session = await small(2).create_session()
    [seen, *_, kept] = await emitted(session, *range(5))
    page = await ask(session, since=moment_of(seen))
    assert (numbers(page), page.gap, page.total_count) == ([3, 4], True, 2)
    gap = page.events[0]
    epoch = gap.position.epoch
    assert gap.data == {"from": f"{epoch}-1", "to": f"{epoch}-3", "missed": None}
    for event in (page.events[1], kept):
        assert not (await ask(session, since=moment_of(event))).gap


async def test_a_gap_can_be_gone_on_from_by_its_timestamp():
    session = await small(2).create_session()
    [seen, *_] = await emitted(session, *range(5))
    found, since = [], moment_of(seen)
    for _ in range(3):
        [event] = (await ask(session, since=since, limit=1)).events
        found.append(event.event_type if event.is_gap else event.data["n"])
        since = moment_of(event)
    assert found == ["callbackkit.gap", 3, 4]


async def test_a_moment_is_before_no_gap_when_nothing_or_all_is_kept(session: Session):
    [first, second] = await emitted(session, 1, 2)
    created = int(session._record.created_at * 1e6) + 1
    for moment in (created, moment_of(first) - 1):
        page = await ask(session, since=moment)
        assert (numbers(page), page.gap) == ([1, 2], False)
    await session.clear(Position(second.position.epoch, 2))
    assert not (await ask(session, since=moment_of(first) + 10**12)).gap
    await session.clear(second.timestamp + timedelta(seconds=1))
    page = await ask(session, since=moment_of(first))
    assert (page.events, page.gap) == ([], False)


# Types.


async def test_only_events_of_the_types_asked_for_come_and_the_place_goes_on(session: Session):
    for event_type in ("a", "b", "c", "a", "b"):
        await session.emit(event_type)
    page = await ask(session, types=["a", "c"])
    assert [event.event_type for event in page.events] == ["a", "c", "a"]
    assert (page.cursor.seq, page.has_more, page.total_count) == (5, False, 5)
    page = await ask(session, types=["a"], limit=1)
    assert (page.cursor.seq, page.has_more) == (1, True)
    page = await ask(session, types=["a"], after=page.cursor, limit=1)
    assert (page.cursor.seq, page.has_more) == (4, True)
    page = await ask(session, types=["none"])
    assert (page.events, page.cursor.seq, page.has_more) == ([], 5, False)
    assert (await ask(session, types=[])).events == []


async def test_what_is_not_wanted_is_passed_over_however_much(session: Session):
    await emit_numbers(session, range(350))
    await session.emit("other")
    page = await ask(session, types=["other"])
    assert [event.position.seq for event in page.events] == [351]
    page = await ask(session, types=["nothing"], wait=0)
    assert (page.events, page.cursor.seq) == ([], 351)


async def test_one_request_looks_through_so_many_and_says_that_there_are_more():
    manager = CallbackManager(ToldStore(), retention=Retention(max_events=30_000))
    session = await manager.create_session()
    body = b'{"conversation_id":null,"data":{},"metadata":{}}'
    for _ in range(20_100):
        await manager.store.append(session.id, "a", body)
    await session.emit("other")
    # It does not wait for what is there.
    page = await ask(session, types=["other"], wait=LONG)
    assert (page.events, page.has_more, page.cursor.seq) == ([], True, 20_000)
    page = await ask(session, types=["other"], after=page.cursor)
    assert [event.position.seq for event in page.events] == [20_101]


# Gaps.


async def test_what_is_no_longer_kept_is_a_gap():
    session = await small(3).create_session()
    first, *_ = await emitted(session, *range(8))
    page = await ask(session, after=first.position)
    gap = page.events[0]
    assert (page.gap, gap.is_gap, gap.data["missed"], numbers(page)) == (True, True, 4, [5, 6, 7])
    assert (page.total_count, page.has_more) == (3, False)
    # The gap is a place to go on from.
    assert numbers(await ask(session, after=gap.position)) == [5, 6, 7]


@pytest.mark.parametrize("after", [Position("f00", 1), "future"])
async def test_a_foreign_position_is_a_gap_and_then_all_comes(session: Session, after: Any):
    events = await emitted(session, 1, 2)
    place = Position(events[0].position.epoch, 99) if after == "future" else after
    page = await ask(session, after=place)
    assert (page.gap, numbers(page), page.events[0].data["missed"]) == (True, [1, 2], None)
    assert page.cursor == events[1].position


async def test_a_gap_counts_as_one_of_the_events(session: Session):
    await emit_numbers(session, range(3))
    page = await ask(session, after=Position("f00", 1), limit=1)
    assert ([event.is_gap for event in page.events], page.has_more) == ([True], True)
    page = await ask(session, after=page.cursor, limit=2)
    assert (numbers(page), page.gap) == ([0, 1], False)
    page = await ask(session, after=Position("f00", 1), limit=3)
    assert (len(page.events), numbers(page), page.cursor.seq) == (3, [0, 1], 2)


async def test_a_gap_comes_though_nothing_is_kept_and_whatever_is_wanted(session: Session):
    page = await ask(session, after=Position("f00", 1), types=["other"], wait=LONG)
    assert ([event.is_gap for event in page.events], page.cursor.seq) == ([True], 0)
    assert page.total_count == 0


async def test_a_gap_between_two_looks_is_told_by_the_next_request():
    manager = small(150)
    session = await manager.create_session()
    await emit_numbers(session, range(150))
    store = manager.store
    assert isinstance(store, ToldStore)

    async def drops() -> None:
        if store.log.count("read") == 2:
            await emit_numbers(session, range(150, 290))

    store.before["read"] = drops
    page = await ask(session, limit=MOST_EVENTS)
    assert (numbers(page), page.has_more, page.gap) == (list(range(100)), True, False)
    page = await ask(session, after=page.cursor, limit=MOST_EVENTS)
    assert (page.gap, numbers(page)) == (True, list(range(140, 290)))
    assert page.total_count == 150


async def test_the_gap_a_page_begins_with_is_told_though_there_is_another_behind_it():
    manager = small(150)
    session = await manager.create_session()
    await emit_numbers(session, range(150))
    store = manager.store
    assert isinstance(store, ToldStore)

    async def drops() -> None:
        if store.log.count("read") == 2:
            await emit_numbers(session, range(150, 290))

    store.before["read"] = drops
    page = await ask(session, after=Position("f00", 1), limit=MOST_EVENTS)
    assert [event.is_gap for event in page.events] == [True] + [False] * 100
    assert (page.has_more, page.gap) == (True, True)


# Waiting.


async def _emit_later(session: Session, event_type: str = "n") -> None:
    await settle()
    await session.emit(event_type, {"n": 1})


async def test_it_waits_for_an_event(session: Session):
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_emit_later, session)
        page = await ask(session, wait=LONG)
    assert (numbers(page), page.cursor.seq, page.total_count) == ([1], 1, 1)
    assert (await session.stats()).events_delivered == 1


async def test_where_there_is_something_it_does_not_wait(store: ToldStore, session: Session):
    await emit_numbers(session, [1])
    store.log.clear()
    assert numbers(await ask(session, wait=LONG)) == [1]
    assert store.log == ["read"]


async def test_it_waits_for_the_types_asked_for(session: Session):
    async def emits() -> None:
        await _emit_later(session, "other")
        await _emit_later(session, "n")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(emits)
        page = await ask(session, wait=LONG, types=["n"])
    assert (numbers(page), page.cursor.seq) == ([1], 2)


async def test_it_waits_no_longer_than_asked(session: Session):
    (event,) = await emitted(session, 1)
    began = anyio.current_time()
    page = await ask(session, after=event.position, wait=0.05)
    assert anyio.current_time() - began >= 0.05 * 0.9
    assert (page.events, page.cursor) == ([], event.position)


async def test_it_sees_what_rang_nobody(store: ToldStore, session: Session):
    store.reconcile = 0.02
    async with anyio.create_task_group() as tasks:

        async def emits() -> None:
            await until(lambda: len(store._watches))
            await settle()
            store._watches._by_topic.clear()
            await CallbackManager(store).emit(session.id, "n", {"n": 1})

        tasks.start_soon(emits)
        assert numbers(await ask(session, wait=LONG)) == [1]


@pytest.mark.parametrize("what", ["end", "drain", "close"])
async def test_waiting_is_cut_short(manager: CallbackManager, session: Session, what: str):
    async def cuts() -> None:
        await settle()
        if what == "end":
            await session.end()
        elif what == "drain":
            manager.begin_drain()
        else:
            manager._readers.close()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(cuts)
        page = await ask(session, wait=LONG)
    assert (page.events, page.has_more) == ([], False)


async def test_deleting_the_session_cuts_waiting_short(manager: CallbackManager, session: Session):
    async with anyio.create_task_group() as tasks:

        async def deletes() -> None:
            await settle()
            await manager.delete_session(session.id)

        tasks.start_soon(deletes)
        with pytest.raises(UnknownSessionError):
            await ask(session, wait=LONG)


async def test_while_draining_nobody_waits(manager: CallbackManager, session: Session):
    manager.begin_drain()
    manager._readers._max_readers = 0
    assert (await ask(session, wait=LONG)).events == []


async def test_those_who_wait_are_readers_and_limited(manager: CallbackManager):
    manager = CallbackManager(ToldStore(), limits=Limits(max_readers=1))
    session = await manager.create_session()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: ask(session, wait=LONG))
        await until(lambda: manager._readers.kinds() == {"polling": 1})
        with pytest.raises(LimitError):
            await ask(session, wait=LONG)
        # Not waiting takes no place.
        assert (await ask(session)).events == []
        await emit_numbers(session, [1])
    assert manager._readers.kinds() == {}


@pytest.mark.parametrize("how", ["event", "timeout", "cancel", "failure"])
async def test_waiting_leaves_nothing(
    store: ToldStore, manager: CallbackManager, session: Session, how: str
):
    async def fails() -> None:
        raise StoreUnavailableError("away")

    async with anyio.create_task_group() as tasks:

        async def asks() -> None:
            if how == "failure":
                with pytest.raises(StoreUnavailableError):
                    await ask(session, wait=LONG)
            else:
                await ask(session, wait=0.02 if how == "timeout" else LONG)

        tasks.start_soon(asks)
        await until(lambda: len(store._watches))
        await settle()
        if how == "failure":
            store.before["read"] = fails
            await CallbackManager(store).emit(session.id, "n", {"n": 1})
        elif how == "event":
            await emit_numbers(session, [1])
        elif how == "cancel":
            tasks.cancel_scope.cancel()
    assert manager._readers.tails == {}
    assert manager._readers._open == {}
    assert len(store._watches) == 0


# What it costs.


@pytest.mark.parametrize("count", [100, 10_000])
async def test_the_last_events_cost_the_same_however_many_there_are(
    store: ToldStore, manager: CallbackManager, count: int
):
    session = await manager.create_session()
    await emit_numbers(session, range(count))
    epoch = (await store.get_session(session.id)).epoch
    store.log.clear()
    page = await ask(session, after=Position(epoch, count - 10))
    assert numbers(page) == list(range(count - 10, count))
    assert store.log == ["read"]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_emit_later, session)
        await ask(session, after=Position(epoch, count), wait=LONG)
    # The page, what the waiting begins with, and the page again.
    assert store.log.count("read") == 4


def test_the_bounds_are_those_of_the_api():
    assert (MOST_EVENTS, MOST_WAIT) == (1_000, 30.0)
