"""What became of events, minute by minute."""

import time
from datetime import UTC, datetime
from typing import Any

import anyio
import attrs
import pytest

from callbackkit import CallbackManager, MemoryStore
from callbackkit.sessions.history import Bucket, History
from callbackkit.sessions.statistics import ManagerStats
from callbackkit.stores.base import Totals
from callbackkit.testing import ManualClock
from tests.sessions.rig import emit_numbers, until

# Seconds since 1970: the beginning of a minute in November 2026.
BEGIN = 1_795_500_000.0


def figures(sent: int = 0, **more: int) -> ManagerStats:
    names = ("delivered", "failed", "expired")
    totals: dict[str, Any] = {f"total_events_{name}": more.get(name, 0) for name in names}
    return ManagerStats(
        total_sessions=1,
        active_sessions=1,
        total_events_sent=sent,
        total_queued_events=0,
        total_retries=more.get("retries", 0),
        active_websockets=0,
        active_sse=0,
        delivery_rate=0.0,
        **totals,
    )


def look(history: History, sent: int = 0, **more: int) -> None:
    history.note(figures(sent, **more), history.looks)


def spans(history: History) -> list[tuple[float, float, int]]:
    """Return the buckets: seconds since BEGIN, length, events sent."""
    return [
        (each.start.timestamp() - BEGIN, each.seconds, each.events_sent) for each in history.buckets
    ]


def test_the_first_look_is_the_base_line():
    clock = ManualClock(BEGIN)
    history = History(clock=clock)
    assert (history.last, history.buckets) == (None, [])
    look(history, 100)
    assert history.buckets == []
    assert history.last == figures(100)


def test_what_comes_between_two_looks_is_in_a_bucket():
    clock = ManualClock(BEGIN + 10)
    history = History(clock=clock)
    look(history, 100, delivered=90, failed=5, retries=7)
    clock.advance(5)
    look(history, 103, delivered=92, failed=6, retries=11)
    assert history.buckets == [
        Bucket(
            start=datetime.fromtimestamp(BEGIN + 10, UTC),
            seconds=5.0,
            events_sent=3,
            events_delivered=2,
            events_failed=1,
            retries=4,
        )
    ]
    assert history.buckets[0].start.tzinfo is UTC


def test_looks_of_one_minute_share_a_bucket_and_the_next_one_begins_where_it_ends():
    clock = ManualClock(BEGIN + 48)
    history = History(clock=clock)
    for sent in range(0, 60, 10):
        look(history, sent)
        clock.advance(5)
    assert spans(history) == [(48, 10, 20), (58, 15, 30)]


def test_where_nobody_looked_for_long_a_bucket_is_long():
    clock = ManualClock(BEGIN)
    history = History(clock=clock)
    look(history)
    clock.advance(600)
    look(history, 9)
    clock.advance(5)
    look(history, 10)
    assert spans(history) == [(0, 605, 10)]


def test_an_hour_is_kept():
    clock = ManualClock(BEGIN)
    history = History(clock=clock)
    for minute in range(90):
        look(history, minute)
        clock.advance(60)
    kept = spans(history)
    assert len(kept) == 59
    assert kept[-1] == (88 * 60, 60, 1)
    clock.advance(3599)
    assert history.buckets == []


def test_there_are_sixty_buckets_at_most():
    clock = ManualClock(BEGIN)
    history = History(clock=clock)
    for _ in range(90):
        look(history)
        clock.advance(59.5)
    assert len(history.buckets) <= 60
    assert len(history._buckets) == 60


def test_figures_that_go_down_count_as_none():
    clock = ManualClock(BEGIN)
    history = History(clock=clock)
    look(history, 100, failed=10)
    clock.advance(5)
    look(history, 90, failed=4)
    clock.advance(5)
    look(history, 92, failed=5)
    (bucket,) = history.buckets
    assert (bucket.events_sent, bucket.events_failed) == (2, 1)


def test_of_two_looks_at_a_time_one_counts():
    """Nobody knows which is the later one: counting both might count events twice."""
    clock = ManualClock(BEGIN)
    history = History(clock=clock)
    look(history)
    clock.advance(5)
    began = history.looks
    history.note(figures(12), began)
    history.note(figures(10), began)
    clock.advance(5)
    look(history, 13)
    assert spans(history) == [(0, 10, 13)]
    assert history.last == figures(13)


def test_a_bucket_is_a_value():
    bucket = Bucket(start=datetime.fromtimestamp(BEGIN, UTC))
    assert (bucket.seconds, bucket.retries) == (0.0, 0)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        bucket.retries = 1  # type: ignore[misc]


# The manager's.


async def test_asking_for_figures_is_a_look():
    manager = CallbackManager()
    assert (manager.totals, manager.history) == (None, [])
    session = await manager.create_session()
    await emit_numbers(session, [1])
    stats = await manager.stats()
    assert manager.totals is stats
    assert manager.history == []
    await emit_numbers(session, [2, 3])
    await manager.stats()
    # A minute may begin between two looks.
    assert sum(each.events_sent for each in manager.history) == 2
    assert manager.totals is not None
    assert manager.totals.total_events_sent == 3


async def test_a_manager_looks_by_itself_when_it_is_entered():
    manager = CallbackManager()
    async with manager:
        await until(lambda: manager.totals is not None)
        assert manager.history == []
        session = await manager.create_session()
        await emit_numbers(session, [1, 2])
    async with manager:
        await until(lambda: manager.history)
    assert sum(each.events_sent for each in manager.history) == 2


@pytest.mark.torture
async def test_a_running_manager_looks_every_five_seconds():
    store = CountedStore()
    async with CallbackManager(store) as manager:
        began = time.monotonic()
        with anyio.fail_after(30):
            await store.looked[2].wait()
        assert 9 < time.monotonic() - began < 20
        assert manager.totals is not None


class CountedStore(MemoryStore):
    """Tells the first, the second and the third look."""

    def __init__(self) -> None:
        super().__init__()
        self.looks = 0
        self.looked = [anyio.Event() for _ in range(3)]

    async def totals(self) -> Totals:
        self.looked[self.looks].set()
        self.looks += 1
        return await super().totals()
