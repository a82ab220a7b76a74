"""Where a moment stands in a log."""

from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from callbackkit import MemoryStore, Position, PositionError, UnknownSessionError
from callbackkit.sessions.locating import locate, number_before
from callbackkit.stores.base import NewSession, Page, Store
from callbackkit.stores.sqlite import SQLiteStore
from callbackkit.testing import ManualClock

# Seconds since 1970: a Tuesday in November 2026.
BEGIN = 1_795_500_000.0


async def filled(store: Store, clock: ManualClock, count: int = 20) -> None:
    """Append so many records, a second apart from BEGIN on."""
    await store.create_session(NewSession(id="s", token_hash=b"hash"))
    for _ in range(count):
        await store.append("s", "n", b"{}")
        clock.advance(1)


def at(seconds: float) -> int:
    return int((BEGIN + seconds) * 1e6)


@pytest.fixture(params=["memory", "sqlite"])
async def log(request, tmp_path: Path):
    clock = ManualClock(BEGIN)
    if request.param == "memory":
        store: Store = MemoryStore(clock=clock)
    else:
        store = SQLiteStore(tmp_path / "events.db", clock=clock)
    await filled(store, clock)
    yield store
    await store.aclose()


async def test_a_moment_stands_behind_the_last_record_that_is_not_later(log: Store):
    for number in range(20):
        for offset, wanted in ((-0.000001, number), (0, number + 1), (0.5, number + 1)):
            found = await locate(log, "s", at(number + offset))
            assert found.seq == wanted
    assert found.epoch == (await log.get_session("s")).epoch
    assert (await locate(log, "s", at(1e6))).seq == 20


async def test_what_is_no_longer_kept_is_not_looked_for(log: Store):
    await log.trim("s", before=8)
    for seconds, wanted in ((-5, 7), (3, 7), (6.9, 7), (7, 8), (11.5, 12)):
        assert (await locate(log, "s", at(seconds))).seq == wanted
    await log.trim("s", before=99)
    assert (await locate(log, "s", at(3))).seq == 20


async def test_an_empty_log_has_one_place(tmp_path: Path):
    store = MemoryStore()
    await filled(store, ManualClock(), count=0)
    assert (await locate(store, "s", at(0))).seq == 0
    with pytest.raises(UnknownSessionError):
        await locate(store, "never", at(0))


class Counted(MemoryStore):
    """Counts what is read, and may drop records before the next reading."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock=clock)
        self.reads = 0
        self.trims: dict[int, int] = {}
        self.turned_back_at: int | None = None

    async def read(
        self,
        session_id: str,
        *,
        after: Position | None = None,
        limit: int = 100,
        owed: bool = False,
    ) -> Page:
        self.reads += 1
        if self.reads in self.trims:
            await self.trim(session_id, before=self.trims[self.reads])
        if self.reads == self.turned_back_at:
            self._sessions[session_id].epoch = "another"
        return await super().read(session_id, after=after, limit=limit, owed=owed)


async def test_few_records_are_read():
    clock = ManualClock(BEGIN)
    store = Counted(clock)
    await filled(store, clock, count=1000)
    assert (await locate(store, "s", at(777))).seq == 778
    assert store.reads <= 11


@pytest.mark.parametrize("when", [2, 3, 4])
@pytest.mark.parametrize("before", [3, 8, 11, 15, 16, 20, 99])
@pytest.mark.parametrize("seconds", [-1, 6, 10, 14, 15, 30])
async def test_what_is_dropped_meanwhile_is_not_missed(when: int, before: int, seconds: int):
    """The answer is that of a search that began once it was dropped."""
    clock = ManualClock(BEGIN)
    store = Counted(clock)
    await filled(store, clock)
    store.trims[when] = before
    found = await locate(store, "s", at(seconds))
    if store.reads >= when:
        assert found in {await locate(store, "s", at(seconds)), Position(found.epoch, seconds + 1)}


async def test_of_another_log_everything_comes():
    clock = ManualClock(BEGIN)
    store = Counted(clock)
    await filled(store, clock)
    store.turned_back_at = 3
    assert await locate(store, "s", at(12)) == Position("another", 0)


# What somebody calls a place.


async def before(log: Store, place: object) -> int:
    return await number_before(log, await log.get_session("s"), place)


async def test_a_position_is_its_number(log: Store):
    epoch = (await log.get_session("s")).epoch
    assert await before(log, Position(epoch, 7)) == 7
    assert await before(log, f"{epoch}-20") == 20
    assert await before(log, f"{epoch}-0") == 0


async def test_a_moment_is_that_of_the_first_record_not_before_it(log: Store):
    moment = datetime.fromtimestamp(BEGIN, UTC)
    for seconds, wanted in ((-9, 1), (0, 1), (0.5, 2), (3, 4), (18.5, 20), (99, 21)):
        when = moment + timedelta(seconds=seconds)
        assert await before(log, when) == wanted
        assert await before(log, when.astimezone(timezone(timedelta(hours=2)))) == wanted
        assert await before(log, when.isoformat()) == wanted


async def test_what_is_no_place_is_refused(log: Store):
    epoch = (await log.get_session("s")).epoch
    for wrong in (f"{epoch}-21", Position(epoch, 21), "elsewhere-1", Position("elsewhere", 0)):
        with pytest.raises(PositionError, match=r"-\d+' is no position of this session's events"):
            await before(log, wrong)
    for text in ("", "yesterday", "2026-11-21", "0", f"{epoch}-x"):
        with pytest.raises(PositionError, match="neither a position nor a timestamp"):
            await before(log, text)
    with pytest.raises(ValueError, match="is naive"):
        await before(log, datetime.fromtimestamp(BEGIN, UTC).replace(tzinfo=None))
    with pytest.raises(TypeError, match="a position or a datetime, not int"):
        await before(log, 5)
