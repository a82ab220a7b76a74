"""The laws of a store's log: appended in order, read after a position, kept as long as agreed."""

from __future__ import annotations

from itertools import pairwise
from typing import Final

import anyio

from callbackkit.errors import IdempotencyError
from callbackkit.events import Position
from callbackkit.stores.base import KEY_KEPT, Appended, Record, Retention
from callbackkit.testing.store_bench import Bench, Law, body, hold, raises, same

__all__ = ["LOG_CLOCK_LAWS", "LOG_LAWS"]


# Appending.


async def records_are_numbered(bench: Bench) -> None:
    """Records get the numbers 1, 2, 3 ... of the one epoch of their session."""
    session = await bench.reads()
    for seq in (1, 2, 3):
        appended = await bench.store.append("r", "progress", body(seq))
        same(appended.record.seq, seq, "its number")
        same(appended.epoch, session.epoch, "its epoch")
        hold(appended.is_new, "it is new")
    after = await bench.store.get_session("r")
    same((after.first, after.top, after.epoch), (1, 3, session.epoch), "first, top and epoch")


async def records_are_kept_as_given(bench: Bench) -> None:
    """Type, body and what is owed come back byte by byte as they were appended."""
    await bench.reads()
    texts = [body(1), '{"data":{"ü":"€ 𝄞\\u0000"}}'.encode(), body(3, padding=1_000_000)]
    wanted = [
        (await bench.store.append("r", f"type.{n}", text, owed=n != 1)).record
        for n, text in enumerate(texts)
    ]
    same(
        [(each.event_type, each.body, each.owed) for each in wanted],
        [(f"type.{n}", text, n != 1) for n, text in enumerate(texts)],
        "what append gives back",
    )
    same(await bench.kept("r"), wanted, "what read gives")


async def ordinals_count_the_owed(bench: Bench) -> None:
    """The ordinal of a record is how many owed ones there are up to it, itself included."""
    await bench.reads()
    flags = [False, True, True, False, True]
    records = [(await bench.add("r", owed=owed))[0] for owed in flags]
    same([record.ordinal for record in records], [0, 1, 2, 2, 3], "ordinals")
    same((await bench.store.get_session("r")).sent, 3, "sent")


async def times_rise(bench: Bench) -> None:
    """No two records of a session have the same time, even if the clock stands still."""
    await bench.reads()
    times = [record.at for record in await bench.add("r", 50)]
    hold(all(a < b for a, b in pairwise(times)), "times rise", times)


async def times_are_those_of_the_clock(bench: Bench) -> None:
    """A record has the time it was appended, in microseconds since 1970."""
    await bench.reads()
    [first] = await bench.add("r")
    same(first.at // 1_000_000, int(bench.now()), "the second it was appended")
    await bench.let_pass(5)
    [second] = await bench.add("r")
    same(second.at - first.at, 5_000_000, "microseconds between two records")


async def appends_at_once_are_in_order(bench: Bench) -> None:
    """Many tasks append at once: no number twice, and each task's records in its order."""
    await bench.reads()
    taken: list[list[Record]] = []

    async def append_some() -> None:
        taken.append(await bench.add("r", 5))

    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(append_some)
    for records in taken:
        numbers = [record.seq for record in records]
        same(numbers, sorted(numbers), "the numbers of one task")
    by_number = sorted(record for records in taken for record in records)
    same([record.seq for record in by_number], list(range(1, 101)), "all numbers")
    same(await bench.kept("r"), by_number, "what is kept")


async def a_cancelled_append_happened_or_not(bench: Bench) -> None:
    """An append that is cancelled happened or it did not; what follows it is as ever."""
    await bench.reads()
    for n in range(10):
        with anyio.move_on_after(0 if n < 5 else 0.0001):
            await bench.store.append("r", "progress", body(n), key=str(n))
    page = await bench.store.read("r")
    same([record.seq for record in page.records], list(range(1, page.top + 1)), "numbers")
    again = [await bench.store.append("r", "progress", body(n), key=str(n)) for n in range(10)]
    same(sorted(each.record.seq for each in again), list(range(1, 11)), "numbers by key")
    same(len(await bench.kept("r")), 10, "records, each key once")


# Reading.


async def reading_follows_a_position(bench: Bench) -> None:
    """A read gives what follows a position, in order, so many at most."""
    session = await bench.reads()
    records = await bench.add("r", 7)
    for after in range(8):
        for limit in (1, 3, 100):
            position = Position(session.epoch, after)
            page = await bench.store.read("r", after=position, limit=limit)
            what = f"after {after}, limit {limit}"
            same(list(page.records), records[after : after + limit], what)
            bounds = (page.epoch, page.first, page.top, page.state)
            same(bounds, (session.epoch, 1, 7, "active"), f"the page {what}")
    page = await bench.store.read("r", limit=2)
    same(list(page.records), records[:2], "without a position, from the oldest on")


async def an_empty_log_is_read(bench: Bench) -> None:
    """A log without records gives an empty page, with first 1 and top 0."""
    session = await bench.reads()
    for after in (None, Position(session.epoch, 0), Position("elsewhere", 4)):
        page = await bench.store.read("r", after=after)
        same((list(page.records), page.first, page.top), ([], 1, 0), f"after {after}")


async def strange_positions_read_from_the_oldest(bench: Bench) -> None:
    """A foreign position, a future one, one too old: all read from the oldest record kept."""
    session = await bench.reads()
    other = await bench.reads("other")
    await bench.add("other", 4)
    records = (await bench.add("r", 6))[2:]
    same(await bench.store.trim("r", before=3), 2, "dropped")
    strange = [
        ("of another session", Position(other.epoch, 4)),
        ("of an unknown epoch", Position("0", 4)),
        ("beyond the newest record", Position(session.epoch, 7)),
        ("far beyond", Position(session.epoch, 10**17)),
        ("older than the oldest kept", Position(session.epoch, 1)),
        ("before the first", Position(session.epoch, 0)),
        ("just before the oldest kept", Position(session.epoch, 2)),
    ]
    for what, position in strange:
        page = await bench.store.read("r", after=position)
        same((list(page.records), page.first), (records, 3), f"a position {what}")
    page = await bench.store.read("r", after=Position(session.epoch, 6))
    same(list(page.records), [], "after the newest record")


async def only_owed_ones_are_read(bench: Bench) -> None:
    """A read of the owed ones leaves out the others, and the limit counts what is given."""
    session = await bench.reads()
    records = [(await bench.add("r", owed=n % 3 == 0))[0] for n in range(10)]
    page = await bench.store.read("r", owed=True, limit=3)
    same(list(page.records), [records[0], records[3], records[6]], "the first owed three")
    page = await bench.store.read("r", after=Position(session.epoch, 5), owed=True)
    same(list(page.records), [records[6], records[9]], "the owed ones after 5")
    same((page.first, page.top), (1, 10), "first and top")


async def the_tail_is_read(bench: Bench) -> None:
    """The tail is the newest records, in order."""
    await bench.reads()
    same(list((await bench.store.tail("r", limit=3)).records), [], "the tail of nothing")
    records = await bench.add("r", 6)
    for limit in (1, 4, 6, 100):
        page = await bench.store.tail("r", limit=limit)
        same(list(page.records), records[-limit:], f"the last {limit}")
        same((page.first, page.top, page.state), (1, 6, "active"), "the page")
    await bench.store.trim("r", before=5)
    page = await bench.store.tail("r", limit=4)
    same((list(page.records), page.first), (records[4:], 5), "the tail of what is kept")


# Dropping.


async def trimming_drops_lower_numbers(bench: Bench) -> None:
    """Trimming drops the records with lower numbers, tells how many, and reuses no number."""
    session = await bench.reads()
    await bench.add("r", 5)
    same(await bench.store.trim("r", before=1), 0, "dropped before 1")
    same(await bench.store.trim("r", before=4), 3, "dropped before 4")
    same(await bench.store.trim("r", before=4), 0, "dropped before 4 again")
    same(await bench.numbers("r"), [4, 5], "what is kept")
    same(await bench.store.trim("r", before=99), 2, "dropped before 99")
    after = await bench.store.get_session("r")
    same((after.first, after.top, after.epoch), (6, 5, session.epoch), "first, top and epoch")
    [record] = await bench.add("r")
    same(record.seq, 6, "the next number")


async def trimming_leaves_what_is_owed(bench: Bench) -> None:
    """Trimming drops nothing that a transport is still to deliver."""
    await bench.pushes()
    await bench.add("p", 1, owed=False)
    await bench.add("p", 3)
    same(await bench.store.trim("p", before=99), 1, "dropped")
    claim = await bench.claim_one()
    await bench.store.ack(claim, 3, None)
    same(await bench.store.trim("p", before=99), 2, "dropped once two are delivered")
    same(await bench.numbers("p"), [4], "what is kept")
    same((await bench.store.get_session("p")).queued, 1, "queued")


async def unread_ones_expire(bench: Bench) -> None:
    """Where clients read, what is dropped unread has expired, and what was read is delivered."""
    await bench.reads()
    await bench.add("r", 2)
    await bench.add("r", 1, owed=False)
    await bench.add("r", 3)
    await bench.store.touch({"r": 1})
    await bench.store.trim("r", before=5)
    session = await bench.store.get_session("r")
    figures = (session.delivered, session.expired, session.queued)
    same(figures, (1, 2, 2), "delivered, expired, queued")
    hold(session.cursor >= 4, "the cursor is behind what was dropped", session.cursor)


async def retention_counts_events(bench: Bench) -> None:
    """Of the records, the newest *max_events* are kept."""
    await bench.reads(retention=Retention(max_events=3))
    for n in range(1, 7):
        await bench.add("r")
        same(await bench.numbers("r"), list(range(max(1, n - 2), n + 1)), f"kept of {n}")
    session = await bench.store.get_session("r")
    same((session.first, session.expired), (4, 3), "first, expired")


async def retention_counts_bytes(bench: Bench) -> None:
    """Of the records, *max_bytes* of JSON are kept, the newest in any case."""
    await bench.reads(retention=Retention(max_bytes=10_500))
    for n in range(30):
        await bench.store.append("r", "progress", body(n, padding=900))
    numbers = await bench.numbers("r")
    # A store may count the rest of the event, which is in its JSON too.
    hold(8 <= len(numbers) <= 11, "10 500 bytes hold 8 to 11 events of 1000", numbers)
    same(numbers[-1], 30, "the newest")
    await bench.store.append("r", "progress", body(0, padding=20_000))
    same(await bench.numbers("r"), [31], "an event larger than the bound is kept alone")


async def pending_ones_are_exempt(bench: Bench) -> None:
    """What a transport still owes is exempt from the retention, up to *max_pending* of them."""
    await bench.pushes(retention=Retention(max_events=3), max_pending=10)
    await bench.add("p", 2, owed=False)
    await bench.add("p", 8)
    await bench.add("p", 2, owed=False)
    same(await bench.numbers("p"), list(range(3, 13)), "kept while owed")
    claim = await bench.claim_one()
    await bench.store.ack(claim, 10, None)
    await bench.add("p", 1, owed=False)
    same(await bench.numbers("p"), [11, 12, 13], "kept once delivered")
    session = await bench.store.get_session("p")
    same((session.delivered, session.failed, session.expired), (8, 0, 0), "figures")


async def beyond_that_they_are_dead_letters(bench: Bench) -> None:
    """The oldest owed ones beyond *max_pending* become dead letters, by copy; none is lost."""
    session = await bench.pushes(retention=Retention(max_events=3), max_pending=5)
    records = await bench.add("p", 8)
    same(await bench.numbers("p"), [4, 5, 6, 7, 8], "kept")
    letters = await bench.store.dead_letters("p")
    same([each for letter in letters for each in letter.records], records[:3], "in letters")
    for letter in letters:
        seen = (letter.session_id, letter.method, letter.epoch, letter.is_due)
        same(seen, ("p", "push", session.epoch, False), "the letter")
        hold(bool(letter.reason), "the letter has a reason")
    same(len({letter.id for letter in letters}), len(letters), "letters with ids of their own")
    after = await bench.store.get_session("p")
    same((after.failed, after.queued, after.expired), (3, 5, 0), "failed, queued, expired")
    claim = await bench.claim_one()
    same(claim.cursor, 3, "the claim goes on behind them")


async def retention_counts_age(bench: Bench) -> None:
    """Records older than *max_age* are dropped, the newest and what is owed never."""
    await bench.reads(retention=Retention(max_age=100))
    await bench.pushes(retention=Retention(max_age=100))
    for _ in range(3):
        await bench.add("r")
        await bench.add("p")
        await bench.let_pass(60)
    await bench.sweep()
    same(await bench.numbers("r"), [3], "kept after 180, 120 and 60 seconds")
    same(await bench.numbers("p"), [1, 2, 3], "kept while owed")
    await bench.let_pass(1000)
    await bench.sweep()
    same(await bench.numbers("r"), [3], "the newest, however old")
    await bench.store.ack(await bench.claim_one(), 3, None)
    await bench.let_pass(1000)
    await bench.sweep()
    same(await bench.numbers("p"), [3], "kept once delivered")


# Keys.


async def a_key_appends_once(bench: Bench) -> None:
    """Appending again with a key gives the first record back and appends nothing."""
    await bench.reads()
    first = await bench.store.append("r", "progress", body(1), key="k")
    await bench.add("r")
    again = await bench.store.append("r", "progress", body(1), key="k")
    same(again, Appended(first.epoch, first.record, False), "what the second append gives")
    same(await bench.numbers("r"), [1, 2], "what is kept")
    other = await bench.store.append("r", "progress", body(1), key="K")
    same((other.is_new, other.record.seq), (True, 3), "another key is new")


async def a_key_stands_for_one_event(bench: Bench) -> None:
    """A key that comes with another type or body is refused, and nothing is appended."""
    await bench.reads()
    await bench.store.append("r", "progress", body(1), key="k")
    for event_type, text in (("progress", body(2)), ("error", body(1))):
        again = bench.store.append("r", event_type, text, key="k")
        await raises(IdempotencyError, again, "the key again")
    same(await bench.numbers("r"), [1], "what is kept")


async def keys_are_of_one_session(bench: Bench) -> None:
    """The key of one session says nothing in another."""
    for session_id in ("r", "other"):
        await bench.reads(session_id)
        appended = await bench.store.append(session_id, "progress", body(1), key="k")
        hold(appended.is_new, f"it is new in {session_id!r}")


async def a_key_at_once_appends_once(bench: Bench) -> None:
    """The same key from many tasks at once: one record, given to all."""
    await bench.reads()
    given: list[Appended] = []

    async def append() -> None:
        given.append(await bench.store.append("r", "progress", body(1), key="k"))

    async with anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(append)
    same(sum(each.is_new for each in given), 1, "how many were new")
    same({each.record.seq for each in given}, {1}, "numbers given")
    same(await bench.numbers("r"), [1], "what is kept")


async def a_key_is_answered_when_the_log_is_not(bench: Bench) -> None:
    """A known key is answered after its record was dropped and after the session ended."""
    await bench.reads()
    first = await bench.store.append("r", "progress", body(1), key="k")
    await bench.store.trim("r", before=99)
    await bench.store.end_session("r", linger=1000)
    again = await bench.store.append("r", "progress", body(1), key="k")
    same((again.record, again.is_new), (first.record, False), "what the key gives")


async def a_key_is_forgotten(bench: Bench) -> None:
    """A key is remembered for :data:`KEY_KEPT` seconds, and forgotten by a sweep after."""
    await bench.reads(retention=Retention(max_age=None))
    await bench.store.append("r", "progress", body(1), key="k")
    for seconds, is_new in ((KEY_KEPT - 60, False), (120, True)):
        await bench.let_pass(seconds)
        await bench.sweep()
        again = await bench.store.append("r", "progress", body(1), key="k")
        same(again.is_new, is_new, f"is it new {seconds} seconds later")


LOG_LAWS: Final[tuple[Law, ...]] = (
    records_are_numbered,
    records_are_kept_as_given,
    ordinals_count_the_owed,
    times_rise,
    appends_at_once_are_in_order,
    a_cancelled_append_happened_or_not,
    reading_follows_a_position,
    an_empty_log_is_read,
    strange_positions_read_from_the_oldest,
    only_owed_ones_are_read,
    the_tail_is_read,
    trimming_drops_lower_numbers,
    trimming_leaves_what_is_owed,
    unread_ones_expire,
    retention_counts_events,
    retention_counts_bytes,
    pending_ones_are_exempt,
    beyond_that_they_are_dead_letters,
    a_key_appends_once,
    a_key_stands_for_one_event,
    keys_are_of_one_session,
    a_key_at_once_appends_once,
    a_key_is_answered_when_the_log_is_not,
)
LOG_CLOCK_LAWS: Final[tuple[Law, ...]] = (
    times_are_those_of_the_clock,
    retention_counts_age,
    a_key_is_forgotten,
)
