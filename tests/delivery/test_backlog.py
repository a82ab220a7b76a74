"""What a session owes, cut into deliveries."""

import attrs
import pytest

from callbackkit.delivery.backlog import Backlog
from callbackkit.delivery.policy import Batching
from callbackkit.errors import LeaseLostError
from callbackkit.stores.base import Claim
from callbackkit.stores.memory import MemoryStore
from tests.delivery.rig import Rig


class Counting(MemoryStore):
    reads = 0

    async def read(self, *args, **options):
        self.reads += 1
        return await super().read(*args, **options)


async def claimed(rig: Rig, events: int) -> Claim:
    await rig.session()
    await rig.emit("s", *range(1, events + 1))
    claims = await rig.store.claim(methods=["told"], limit=1, lease=60)
    return claims.claims[0]


async def test_many_deliveries_are_served_from_one_page() -> None:
    rig = Rig(store=Counting())
    claim = await claimed(rig, 250)
    backlog = Backlog(rig.store, "s", None, rig.clock)
    for seq in range(1, 251):
        (record,), wait = await backlog.next(claim, anew=False, is_hurried=False)
        assert (record.seq, wait) == (seq, 0.0)
        claim = attrs.evolve(claim, cursor=seq)
        backlog.move_on(claim, [record])
    assert rig.store.reads == 3
    assert await backlog.next(claim, anew=False, is_hurried=False) == ((), 0.0)


async def test_what_was_read_ahead_is_ready_one_at_a_time_and_nothing_before() -> None:
    rig = Rig(store=Counting())
    claim = await claimed(rig, 3)
    backlog = Backlog(rig.store, "s", None, rig.clock)
    assert list(backlog.ready(claim)) == []
    await backlog.next(claim, anew=False, is_hurried=False)
    for seq in range(1, 4):
        (record,) = backlog.ready(claim)
        assert record.seq == seq
        claim = attrs.evolve(claim, cursor=seq)
        backlog.move_on(claim, [record])
    assert list(backlog.ready(claim)) == []
    assert rig.store.reads == 1


async def test_what_goes_together_is_not_ready_by_itself() -> None:
    """A batch has to be chosen; one that was tried has to be as it was."""
    rig = Rig()
    claim = await claimed(rig, 5)
    batched = Backlog(rig.store, "s", Batching(max_events=2, max_delay=5), rig.clock)
    await batched.next(claim, anew=False, is_hurried=False)
    assert list(batched.ready(claim)) == []
    single = Backlog(rig.store, "s", None, rig.clock)
    await single.next(claim, anew=False, is_hurried=False)
    bound = attrs.evolve(claim, bound=3)
    assert list(single.ready(bound)) == []
    records, _ = await single.next(bound, anew=False, is_hurried=False)
    assert [record.seq for record in records] == [1, 2, 3]


async def test_a_batch_that_is_not_full_is_looked_for_in_the_store_before_it_waits() -> None:
    rig = Rig()
    claim = await claimed(rig, 3)
    backlog = Backlog(rig.store, "s", Batching(max_events=2, max_delay=5), rig.clock)
    records, _ = await backlog.next(claim, anew=False, is_hurried=False)
    assert [record.seq for record in records] == [1, 2]
    claim = await rig.store.ack(claim, 2, None, lease=60)
    backlog.move_on(claim, records)
    await rig.emit("s", 4)
    records, wait = await backlog.next(claim, anew=False, is_hurried=False)
    assert ([record.seq for record in records], wait) == ([3, 4], 0.0)


async def test_what_the_store_gave_up_on_meanwhile_is_not_served_from_memory() -> None:
    rig = Rig()
    claim = await claimed(rig, 5)
    backlog = Backlog(rig.store, "s", None, rig.clock)
    records, _ = await backlog.next(claim, anew=False, is_hurried=False)
    claim = await rig.store.ack(claim, 3, None, lease=60)
    backlog.move_on(claim, records)
    (record,), _ = await backlog.next(claim, anew=False, is_hurried=False)
    assert record.seq == 4


async def test_a_session_that_has_ended_fills_no_batch() -> None:
    rig = Rig()
    claim = await claimed(rig, 1)
    backlog = Backlog(rig.store, "s", Batching(max_delay=100), rig.clock)
    assert (await backlog.next(claim, anew=False, is_hurried=False))[1] == pytest.approx(100, abs=1)
    await rig.store.end_session("s", linger=10)
    assert (await backlog.next(claim, anew=True, is_hurried=False))[1] == 0.0


async def test_a_log_that_was_made_anew_is_somebody_elses() -> None:
    rig = Rig()
    claim = attrs.evolve(await claimed(rig, 1), epoch="other")
    with pytest.raises(LeaseLostError, match="made anew"):
        await Backlog(rig.store, "s", None, rig.clock).next(claim, anew=False, is_hurried=False)


async def test_a_bound_beyond_a_page_is_read_whole() -> None:
    rig = Rig()
    claim = attrs.evolve(await claimed(rig, 150), bound=130, attempts=1)
    backlog = Backlog(rig.store, "s", Batching(max_events=2), rig.clock)
    records, wait = await backlog.next(claim, anew=False, is_hurried=False)
    assert ([record.seq for record in records], wait) == (list(range(1, 131)), 0.0)
