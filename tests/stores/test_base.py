import threading
import time

import anyio
import pytest

from callbackkit import Position, Retention
from callbackkit.stores.base import SessionRecord, Watch, Watches, delivery_id, steady_time


def test_a_retention_has_bounds_above_0_or_none() -> None:
    assert Retention(max_events=1, max_bytes=None, max_age=0.5).max_events == 1
    for bound in ({"max_events": 0}, {"max_bytes": -1}, {"max_age": float("nan")}):
        with pytest.raises(ValueError, match=f"{next(iter(bound))} must be a number above 0"):
            Retention(**bound)
    with pytest.raises(ValueError, match="max_events must be"):
        Retention(max_events=True)


def test_the_id_of_a_delivery_names_where_it_begins() -> None:
    assert delivery_id("s1", "e1", 7) == "s1_e1_7"


def test_a_session_record_shows_no_secret() -> None:
    record = SessionRecord(
        id="s1", token_hash=b"hash-of-it", owner=None, config=b'{"webhook_secret":"whsec_x"}',
        method="sse", pushes=False, unowed=(), state="active",
        created_at=0.0, epoch="e1", first=1, top=3, cursor=0, sent=3,
        delivered=0, failed=0, expired=0, queued=3, retries=0,
    )  # fmt: skip
    assert "whsec" not in repr(record)
    assert "hash-of-it" not in repr(record)
    assert record.position == Position("e1", 3)


async def test_a_ring_before_the_wait_is_not_missed() -> None:
    watches = Watches()
    with watches.watch("s1") as watch:
        watches.ring("s1")
        with anyio.fail_after(5):
            assert await watch.wait(None)
        assert not await watch.wait(0)


async def test_a_ring_from_a_thread_wakes_who_waits() -> None:
    watches = Watches()
    with watches.watch("s1") as watch, anyio.fail_after(5):
        thread = threading.Thread(target=watches.ring, args=("s1",))
        async with anyio.create_task_group() as group:
            group.start_soon(watch.wait, None)
            thread.start()
        thread.join()


async def test_a_wait_ends_when_its_time_is_up() -> None:
    watches = Watches()
    with watches.watch("s1") as watch, anyio.fail_after(5):
        watches.ring("s2")
        assert not await watch.wait(0.01)


async def test_a_wait_that_is_cancelled_can_be_begun_again() -> None:
    watches = Watches()
    with watches.watch("s1") as watch, anyio.fail_after(5):
        with anyio.move_on_after(0.01):
            await watch.wait(None)
        watches.ring("s1")
        assert await watch.wait(None)


async def test_every_watch_of_a_topic_is_rung() -> None:
    watches = Watches()
    with watches.watch(None) as first, watches.watch(None) as second, watches.watch("s") as other:
        watches.ring(None)
        assert await first.wait(0)
        assert await second.wait(0)
        assert not await other.wait(0)
        watches.ring_all()
        assert await other.wait(0)


def test_a_ring_is_told_with_the_newest_record_if_it_is_for_that_alone() -> None:
    watches = Watches()
    rings: list[int | None] = []
    with watches.watch("s1") as watch, watches.watch("s1") as silent:
        watch.on_ring = rings.append
        watches.ring("s1", 7)
        watches.ring("s1")
        watches.ring("s2", 8)
        watches.ring_all()
        watch.ring(9)
        assert silent.on_ring is None
    watches.ring("s1", 10)
    assert rings == [7, None, None, 9]


def test_a_ring_may_come_while_another_thread_ends_the_watch() -> None:
    rings: list[int | None] = []
    seen: list[object] = [rings.append, None]

    class Ending(Watch):
        """Is looked at, and before it is looked at again somebody has taken it back."""

        @property
        def on_ring(self):  # type: ignore[override]
            return seen.pop(0)

        @on_ring.setter
        def on_ring(self, callback):
            del callback

    Ending(Watches(), "s1").ring(7)
    assert rings == [7]


def test_nothing_is_left_of_a_watch_that_is_over() -> None:
    watches = Watches()
    with watches.watch("s1"), watches.watch("s1"):
        assert watches.topics == ["s1"]
    assert len(watches) == 0
    watches.ring("s1")


def test_a_watch_that_is_over_twice_harms_no_other() -> None:
    watches = Watches()
    with watches.watch("s1"):
        watch = watches.watch("s1")
        with watch:
            pass
        watches.remove("s1", watch)
        assert watches.topics == ["s1"]


def test_steady_time_is_close_to_the_clock_and_never_goes_back() -> None:
    assert abs(steady_time() - time.time()) < 60
    seen = [steady_time() for _ in range(1_000)]
    assert seen == sorted(seen)
