"""Who reads which session, and how far."""

import gc
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest

from callbackkit import LimitError, StoreError, Subscription
from callbackkit.sessions.readers import Readers
from tests.sessions.rig import ToldStore


class TouchedStore(ToldStore):
    """Keeps what it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.touches: list[dict[str, int | None]] = []

    async def touch(self, reads: Mapping[str, int | None]) -> None:
        await self._ask("touch")
        self.touches.append(dict(reads))


@pytest.fixture
def store() -> TouchedStore:
    return TouchedStore()


@pytest.fixture
def readers(store: TouchedStore) -> Readers:
    return Readers(store, 2)


def reader(
    readers: Readers,
    session_id: str = "s",
    kind: str = "subscriber",
    ttl: float | None = 60.0,
) -> Subscription:
    return Subscription(
        readers._store,
        readers,
        session_id,
        after=None,
        types=None,
        kind=kind,
        ttl=ttl,
        notes_reading=True,
        decode=bytes,
    )


def test_there_are_so_many_readers_of_a_session_at_most(readers: Readers):
    open_ = [reader(readers), reader(readers)]
    with pytest.raises(LimitError, match="max_readers=2 is reached: readers of one session"):
        reader(readers)
    other = reader(readers, "other")
    open_[0].close()
    again = reader(readers)
    assert readers.kinds().total() == 3
    del other, again


def test_one_that_was_refused_or_wrong_counts_for_nothing(readers: Readers):
    kept = [reader(readers), reader(readers)]
    for _ in range(3):
        with pytest.raises(LimitError):
            reader(readers)
    assert readers.kinds("s") == {"subscriber": 2}
    del kept


def test_readers_are_counted_by_what_they_read_through(readers: Readers):
    kept = [reader(readers, "a", "sse"), reader(readers, "a", "sse"), reader(readers, "b", "ws")]
    assert readers.kinds() == Counter(sse=2, ws=1)
    assert readers.kinds("a") == Counter(sse=2)
    assert readers.kinds("nobody") == Counter()
    del kept


def test_one_that_was_let_go_of_is_forgotten_at_once(readers: Readers):
    left = reader(readers)
    circle: list[Any] = [left]
    circle.append(circle)
    del left, circle
    reader(readers)
    gc.collect()
    assert readers._open == {}
    assert readers.kinds() == Counter()


def test_closing_twice_counts_once(readers: Readers):
    one, two = reader(readers), reader(readers)
    one.close()
    one.close()
    assert readers.kinds("s").total() == 1
    del two


async def test_the_store_is_told_of_all_reading_at_once_and_of_the_furthest(
    readers: Readers, store: TouchedStore
):
    for session_id, seq in (("a", 3), ("b", 1), ("a", 7), ("a", 5)):
        readers.note(session_id, seq)
    await readers.flush()
    await readers.flush()
    assert store.touches == [{"a": 7, "b": 1}]


async def test_sessions_that_are_being_read_are_touched_when_asked(
    readers: Readers, store: TouchedStore
):
    kept = [reader(readers, "a"), reader(readers, "b")]
    readers.note("b", 4)
    await readers.flush(touch="all")
    await readers.flush()
    kept[0].close()
    await readers.flush(touch="all")
    assert store.touches == [{"a": None, "b": 4}, {"b": None}]


async def test_sessions_that_expire_soon_are_touched_more_often_and_others_never(
    readers: Readers, store: TouchedStore
):
    kept = [reader(readers, "a", ttl=2.0), reader(readers, "b"), reader(readers, "c", ttl=None)]
    await readers.flush(touch="short")
    await readers.flush(touch="all")
    await readers.flush()
    assert store.touches == [{"a": None}, {"a": None, "b": None}]
    del kept


class LetsGo(str):
    """A kind of reading that, being counted, lets go of other readers."""

    others: list[Subscription]

    def __hash__(self) -> int:
        self.others.clear()
        return super().__hash__()


async def test_readers_that_are_let_go_of_while_all_are_counted_do_no_harm(readers: Readers):
    kind = LetsGo("sse")
    kind.others = []
    first = reader(readers, "a", kind=kind)
    kind.others += [reader(readers, "b"), reader(readers, "c")]
    assert readers.kinds()["sse"] == 1
    assert readers.kinds("b").total() == 0
    assert readers.kinds("a").total() == 1
    del first


async def test_what_a_store_could_not_be_told_is_told_next_time(
    readers: Readers, store: TouchedStore
):
    async def fails() -> None:
        readers.note("a", 9)
        raise StoreError("away")

    kept = reader(readers, "c")
    readers.note("a", 3)
    readers.note("b", 2)
    store.before["touch"] = fails
    with pytest.raises(StoreError):
        await readers.flush(touch="all")
    del store.before["touch"]
    await readers.flush()
    assert store.touches == [{"a": 9, "b": 2}]
    del kept


async def test_closing_ends_all(readers: Readers):
    one, two = reader(readers), reader(readers, "other")
    readers.close()
    assert readers.kinds().total() == 0
    assert [event async for event in one] == [event async for event in two] == []
