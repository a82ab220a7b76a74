"""The laws of what a store lets go of: old records, delivered ones, old letters, old keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import anyio

from callbackkit.errors import UnknownSessionError
from callbackkit.stores.base import KEY_KEPT, Claim, Retention, SessionRecord
from callbackkit.testing.store_bench import Bench, Law, body, hold, raises, same, tried
from callbackkit.testing.store_late import check_refused

__all__ = ["KEEPING_CLOCK_LAWS", "KEEPING_LAWS"]

HOUR: Final = 3600.0


# Records.


async def what_was_delivered_is_let_go_of(bench: Bench) -> None:
    """What was kept for a delivery only is dropped when that is acknowledged, at once."""
    await bench.pushes(retention=Retention(max_events=10))
    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(bench.add, "p", 50)
    same(len(await bench.kept("p")), 1000, "how many are kept while owed")
    claim = await bench.claim_one(lease=HOUR)
    rest = await bench.store.ack(claim, 400, tried(1), lease=HOUR)
    same(await bench.numbers("p"), list(range(401, 1001)), "kept once 400 are delivered")
    await bench.store.ack(rest or claim, 1000, tried(1))
    same(await bench.numbers("p"), list(range(991, 1001)), "kept once all are delivered")
    session = await bench.store.get_session("p")
    figures = (session.first, session.delivered, session.expired)
    same(figures, (991, 1000, 0), "first, delivered and expired")


async def what_was_given_up_is_let_go_of(bench: Bench) -> None:
    """What was kept for a delivery only is dropped when that is given up; the letter has it."""
    await bench.pushes(retention=Retention(max_events=3))
    records = await bench.add("p", 8)
    claim = await bench.claim_one(lease=HOUR)
    await bench.bury(claim, upto=4, letter_id="a")
    same(await bench.numbers("p"), [5, 6, 7, 8], "kept once four are given up")
    await bench.bury(await bench.claim_one(), upto=8, letter_id="b")
    same(await bench.numbers("p"), [6, 7, 8], "kept once all are given up")
    letters = await bench.store.dead_letters("p")
    same([each for letter in letters for each in letter.records], records, "in dead letters")


async def age_goes_on_after_a_lone_record(bench: Bench) -> None:
    """A sweep that finds a lone record, which stays, does not end the looking for old ones."""
    retention = Retention(max_age=100)
    await bench.reads(retention=retention)
    await bench.reads("lives long", retention=retention, ttl=1e6)
    top = 0
    for count in (1, 5, 5, 1, 2):
        top += count
        for name in ("r", "lives long"):
            await bench.add(name, count)
        await bench.let_pass(110)
        await bench.sweep()
        for name in ("r", "lives long"):
            same(await bench.numbers(name), [top], f"kept of {count} more in {name!r}, once old")


# Dead letters.


async def letters_are_bounded(bench: Bench) -> None:
    """A session keeps *max_pending* dead letters, the newest; figures count them all."""
    await bench.pushes(retention=Retention(max_events=1), max_pending=3)
    records = await bench.add("p", 10)
    session = await _check_letters(bench, [[5], [6], [7]], "too much was owed")
    same((session.failed, session.queued), (7, 3), "failed and queued")
    await bench.bury(await bench.claim_one(), upto=9, letter_id="last")
    session = await _check_letters(bench, [[6], [7], [8, 9]], "one more is given up")
    figures = (session.failed, session.queued, session.delivered)
    same(figures, (9, 1, 0), "failed, queued and delivered")
    same(await bench.store.redrive("p", ["last"]), 1, "how many are redriven")
    [claim] = [each for each in await bench.claim(lease=HOUR) if each.letter]
    same(claim.letter and claim.letter.records, tuple(records[7:9]), "what is redriven")
    await bench.store.ack(claim, 9, tried(1))
    session = await _check_letters(bench, [[6], [7]], "one is delivered after all")
    figures = (session.failed, session.queued, session.delivered)
    same(figures, (7, 1, 2), "failed, queued and delivered then")
    totals = await bench.store.totals()
    same((totals.failed, totals.delivered), (7, 2), "failed and delivered in the totals")


async def letters_are_bounded_each_session(bench: Bench) -> None:
    """The dead letters of one session take no room of another's."""
    for name in ("p", "q"):
        await bench.pushes(name, retention=Retention(max_events=1), max_pending=2)
    await bench.add("q", 4)
    await bench.add("p", 8)
    await _check_letters(bench, [[5], [6]], "too much was owed")
    await _check_letters(bench, [[1], [2]], "too much was owed", "q")


async def a_letter_let_go_of_is_not_due(bench: Bench) -> None:
    """A dead letter that is let go of falls due no more; who delivers it is refused."""
    await bench.pushes(max_pending=2)
    await bench.add("p", 4)
    rest: Claim | None = await bench.claim_one(lease=HOUR)
    for number, name in enumerate("ab", 1):
        rest = await _park(bench, rest, number, name)
    await bench.store.redrive("p", ["a"])
    held = await bench.claim_one(lease=HOUR)
    await bench.store.redrive("p", ["b"])
    for number, name in enumerate("cd", 3):
        rest = await _park(bench, rest, number, name)
    await check_refused(bench, held, "the letter let go of")
    same(list(await bench.claim()), [], "what is due")
    same(await bench.store.redrive("p", ["a", "b"]), 0, "how many can be redriven")
    session = await _check_letters(bench, [[3], [4]], "two more were given up")
    same((session.failed, session.delivered, session.queued), (4, 0, 0), "the figures")


async def _park(bench: Bench, claim: Claim | None, upto: int, name: str) -> Claim | None:
    if claim is None:
        raise AssertionError(f"not so: a claim goes on while more is owed, before letter {name!r}")
    return await bench.store.park(
        claim, upto=upto, letter_id=name, reason="refused", attempt=None, lease=HOUR
    )


async def _check_letters(
    bench: Bench, wanted: Sequence[Sequence[int]], when: str, session_id: str = "p"
) -> SessionRecord:
    letters = await bench.store.dead_letters(session_id)
    numbers = [[each.seq for each in letter.records] for letter in letters]
    same(numbers, wanted, f"records of the dead letters, {when}")
    return await bench.store.get_session(session_id)


# Keys.


async def an_old_key_is_new(bench: Bench) -> None:
    """A key is not answered :data:`KEY_KEPT` seconds after it came, swept or not."""
    await bench.reads(retention=Retention(max_age=None))
    first = await bench.store.append("r", "progress", body(1), key="k")
    await bench.store.append("r", "progress", body(1), key="K")
    await bench.let_pass(KEY_KEPT - 60)
    again = await bench.store.append("r", "progress", body(1), key="k")
    same((again.record, again.is_new), (first.record, False), "what the key gives before")
    await bench.let_pass(120)
    for key, number in (("k", 1), ("K", 2)):
        later = await bench.store.append("r", "progress", body(number), key=key)
        same((later.is_new, later.record.seq), (True, number + 2), f"{key!r} is new after")
        again = await bench.store.append("r", "progress", body(number), key=key)
        same((again.record, again.is_new), (later.record, False), f"what {key!r} stands for")
    await bench.sweep()
    again = await bench.store.append("r", "progress", body(2), key="K")
    hold(not again.is_new, "a sweep leaves the new ones")
    same(await bench.numbers("r"), [1, 2, 3, 4], "what is kept")


# Sessions.


async def an_ended_session_leaves_nothing(bench: Bench) -> None:
    """An ended session goes after its linger however long its ttl, and its id is free."""
    long = 1e7
    epochs = [(await bench.reads(ttl=long)).epoch, (await bench.pushes(ttl=long)).epoch]
    for name in ("r", "p"):
        await bench.store.append(name, "progress", body(1), key="k")
        await bench.store.touch({name: 1})
    await bench.store.ack(await bench.claim_one(), 1, tried(1))
    for name in ("r", "p"):
        await bench.store.end_session(name, linger=bench.period / 4)
    await bench.let_pass(bench.period / 2)
    same(sorted(await bench.sweep()), ["p", "r"], "sessions that went")
    for state in (None, "active", "ended", "deleted"):
        same(list(await bench.store.sessions(state=state)), [], f"sessions, state={state}")
    for name in ("r", "p"):
        error = await raises(UnknownSessionError, bench.store.attempts(name), "its attempts")
        same(type(error), UnknownSessionError, "the error")
    totals = await bench.store.totals()
    same((totals.sessions, totals.active, totals.delivered), (0, 0, 2), "totals")
    same(await bench.sweep(), [], "sessions that go later")
    again = await bench.pushes(ttl=long)
    hold(again.epoch not in epochs, "an epoch of its own", again.epoch)
    same((again.top, again.sent, again.retries), (0, 0, 0), "the new session")
    same(list(await bench.store.attempts("p")), [], "its attempts")
    appended = await bench.store.append("p", "progress", body(2), key="k")
    same((appended.is_new, appended.record.seq), (True, 1), "the old key")


KEEPING_LAWS: Final[tuple[Law, ...]] = (
    what_was_delivered_is_let_go_of,
    what_was_given_up_is_let_go_of,
    letters_are_bounded,
    letters_are_bounded_each_session,
    a_letter_let_go_of_is_not_due,
    an_ended_session_leaves_nothing,
)
KEEPING_CLOCK_LAWS: Final[tuple[Law, ...]] = (
    age_goes_on_after_a_lone_record,
    an_old_key_is_new,
)
