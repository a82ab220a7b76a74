"""The laws of a store's sessions: from their creation to what is remembered of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import attrs

from callbackkit.errors import (
    LimitError,
    SessionDeletedError,
    SessionEndedError,
    UnknownSessionError,
)
from callbackkit.events import Position
from callbackkit.stores.base import NewSession, SessionRecord
from callbackkit.testing.store_bench import Bench, Law, body, hold, raises, same

__all__ = ["SESSION_LAWS"]

# So long that it does not end while a law is checked.
_LONG: Final = 1000.0
# A store may take a second to look again at what it has looked at.
_SLACK: Final = 1.2


def _verbs(bench: Bench, session_id: str) -> dict[str, Callable[[], Awaitable[object]]]:
    store = bench.store
    return {
        "get_session": lambda: store.get_session(session_id),
        "append": lambda: store.append(session_id, "progress", body()),
        "read": lambda: store.read(session_id),
        "tail": lambda: store.tail(session_id, limit=1),
        "trim": lambda: store.trim(session_id, before=1),
        "dead_letters": lambda: store.dead_letters(session_id),
        "redrive": lambda: store.redrive(session_id),
        "attempts": lambda: store.attempts(session_id),
        "update_session": lambda: store.update_session(
            session_id, known=b"{}", config=b"{}", unowed=()
        ),
        "end_session": lambda: store.end_session(session_id, linger=1),
        "delete_session": lambda: store.delete_session(session_id, linger=1),
    }


async def _check_unknown(bench: Bench, session_id: str, kind: type[UnknownSessionError]) -> None:
    for name, verb in _verbs(bench, session_id).items():
        error = await raises(kind, verb(), name)
        same(type(error), kind, f"the error of {name}")
        same(error.session_id, session_id, f"the id in the error of {name}")


# Creating and finding them.


async def a_session_begins_empty(bench: Bench) -> None:
    """A new session is what it was created with, active, with an empty log."""
    session = await bench.pushes(owner="me", config=b'{"a":1}', ttl=_LONG)
    seen = (session.id, session.token_hash, session.owner, session.config)
    same(seen, ("p", b"hash", "me", b'{"a":1}'), "id, token hash, owner and config")
    same((session.method, session.pushes, session.state), ("push", True, "active"), "the rest")
    same((session.first, session.top, session.cursor), (1, 0, 0), "first, top and cursor")
    same(session.sent + session.queued + session.retries, 0, "its figures")
    same(await bench.store.get_session("p"), session, "what get_session gives")
    same(Position.parse(str(session.position)), Position(session.epoch, 0), "its position as text")


async def what_is_not_owed_comes_back(bench: Bench) -> None:
    """The event types that a transport is not to deliver come back as they were given."""
    types = ("progress", "a.b-c_d", "thinking")
    session = await bench.pushes(unowed=types)
    same(session.unowed, types, "what create_session gives")
    same((await bench.pushes("all")).unowed, (), "of a session that leaves out none")
    same((await bench.store.get_session("p")).unowed, types, "what get_session gives")
    listed = {each.id: each.unowed for each in await bench.store.sessions()}
    same(listed, {"all": (), "p": types}, "what sessions gives")
    ended = await bench.store.end_session("p", linger=_LONG)
    same(ended.unowed, types, "what end_session gives")


async def an_id_is_used_once(bench: Bench) -> None:
    """An id that is taken is refused."""
    session = await bench.reads()
    await raises(ValueError, bench.reads(), "an id that is taken")
    same(await bench.store.get_session("r"), session, "the session")


async def no_epoch_comes_again(bench: Bench) -> None:
    """Each log has an epoch of its own, a new log under an old id too."""
    epochs = {(await bench.reads(f"r{n}")).epoch for n in range(20)}
    for _ in range(3):
        await bench.store.delete_session("r1", linger=0)
        await bench.let_pass(0.01)
        await bench.sweep()
        epochs.add((await bench.reads("r1")).epoch)
    same(len(epochs), 23, "different epochs")
    page = await bench.store.read("r1")
    same((list(page.records), page.top), ([], 0), "the new log")


async def sessions_are_limited(bench: Bench) -> None:
    """A session beyond *max_sessions* that can be read is refused by the name of the limit."""
    await bench.reads("a")
    await bench.reads("b")
    await bench.store.end_session("a", linger=_LONG)
    more = NewSession(id="c", token_hash=b"hash")
    for limit in (1, 2):
        creating = bench.store.create_session(more, max_sessions=limit)
        error = await raises(LimitError, creating, f"a third session with max_sessions={limit}")
        same((error.limit, error.value), ("max_sessions", limit), "the limit")
    await bench.store.delete_session("a", linger=_LONG)
    await bench.store.create_session(more, max_sessions=2)


async def sessions_are_listed(bench: Bench) -> None:
    """Sessions are listed by id, page by page, those of a state or owner only if asked for."""
    for name in ("d", "b", "e", "a", "c"):
        await bench.reads(name, owner="me" if name in "abd" else None)
    await bench.store.end_session("b", linger=_LONG)
    await bench.store.delete_session("c", linger=_LONG)
    store = bench.store
    listed = {
        "that can be read": (await store.sessions(), "abde"),
        "so many at most": (await store.sessions(limit=2), "ab"),
        "after one": (await store.sessions(after="b", limit=1), "d"),
        "after one that is gone": (await store.sessions(after="bb"), "de"),
        "after the last": (await store.sessions(after="e"), ""),
        "that are active": (await store.sessions(state="active"), "ade"),
        "that have ended": (await store.sessions(state="ended"), "b"),
        "that were deleted": (await store.sessions(state="deleted"), "c"),
        "of an owner": (await store.sessions(owner="me"), "abd"),
        "of an owner and active": (await store.sessions(owner="me", state="active"), "ad"),
        "of an owner, the second": (await store.sessions(owner="me", after="a", limit=1), "b"),
        "of nobody": (await store.sessions(owner="you"), ""),
    }
    for what, (found, wanted) in listed.items():
        same("".join(each.id for each in found), wanted, f"sessions {what}")
    same(list(await store.sessions(limit=1)), [await store.get_session("a")], "what is listed")


async def an_id_used_again_is_listed_once(bench: Bench) -> None:
    """A session whose id another one had before is listed once, in its place."""
    for name in ("a", "b", "c", "d", "e"):
        await bench.reads(name)
    await bench.store.delete_session("b", linger=0)
    await bench.let_pass(0.01)
    await bench.sweep()
    same(_ids(await bench.store.sessions()), "acde", "without it")
    await bench.reads("b")
    same(_ids(await bench.store.sessions()), "abcde", "with the new one")


async def a_session_that_never_was_is_unknown(bench: Bench) -> None:
    """Every verb refuses a session that never was."""
    await _check_unknown(bench, "never", UnknownSessionError)


# Changing them.


async def a_session_is_changed(bench: Bench) -> None:
    """A session that is given another configuration has it, and is otherwise as it was."""
    before = await bench.pushes(owner="me", config=b'{"a":1}', unowed=("a",), ttl=_LONG)
    other = await bench.pushes("other", config=b'{"a":1}')
    await bench.add("p", 2)
    update = bench.store.update_session
    changed = await update("p", known=b'{"a":1}', config=b'{"a":2}', unowed=("b", "c"))
    same((changed.config, changed.unowed), (b'{"a":2}', ("b", "c")), "what update_session gives")
    wanted = attrs.evolve(before, config=b'{"a":2}', unowed=("b", "c"), top=2, sent=2, queued=2)
    same(await bench.store.get_session("p"), wanted, "what get_session gives")
    listed = {each.id: each for each in await bench.store.sessions()}
    same(listed, {"p": wanted, "other": other}, "what sessions gives")
    same(len(await bench.kept("p")), 2, "how many records are kept")
    same((await bench.store.end_session("p", linger=_LONG)).unowed, ("b", "c"), "at the end")


async def a_change_of_what_is_old_changes_nothing(bench: Bench) -> None:
    """Of two changes made of the same configuration one is made; the other sees what is now."""
    await bench.reads(config=b"1")
    update = bench.store.update_session
    await update("r", known=b"1", config=b"2", unowed=("a",))
    late = await update("r", known=b"1", config=b"3", unowed=("b",))
    same((late.config, late.unowed), (b"2", ("a",)), "what the later one gives")
    session = await bench.store.get_session("r")
    same((session.config, session.unowed), (b"2", ("a",)), "the session")
    again = await update("r", known=b"2", config=b"3", unowed=())
    same((again.config, again.unowed), (b"3", ()), "what it gives, made of what is now")


async def an_ended_session_is_not_changed(bench: Bench) -> None:
    """A session that has ended keeps its configuration."""
    await bench.reads(config=b"1")
    ended = await bench.store.end_session("r", linger=_LONG)
    update = bench.store.update_session("r", known=b"1", config=b"2", unowed=())
    error = await raises(SessionEndedError, update, "a change")
    same(error.session_id, "r", "the id in the error")
    same(await bench.store.get_session("r"), ended, "the session")


async def what_is_owed_goes_by_the_change(bench: Bench) -> None:
    """Claims from now on have the new configuration, dead letters and the next claim too."""
    await bench.pushes(config=b"1")
    await bench.add("p", 4)
    claim = await bench.claim_one()
    same(claim.config, b"1", "the configuration of a claim before")
    await bench.store.update_session("p", known=b"1", config=b"2", unowed=("progress",))
    next_one = await bench.store.ack(claim, 1, None, lease=bench.period)
    hold(next_one is not None, "what was owed stays owed")
    assert next_one is not None
    same(next_one.config, b"2", "the configuration of the next claim")
    await bench.bury(next_one, upto=4)
    await bench.store.redrive("p")
    same((await bench.claim_one()).config, b"2", "the configuration of a claim on a dead letter")


async def a_change_does_not_keep_a_session(bench: Bench) -> None:
    """Being changed is no use: a session expires as if it had not been."""
    await bench.reads(ttl=bench.period, config=b"1")
    await bench.let_pass(bench.period * 0.6)
    await bench.store.update_session("r", known=b"1", config=b"2", unowed=())
    await bench.let_pass(max(bench.period * 0.6, _SLACK))
    same(await bench.sweep(), ["r"], "sessions that went")


# Reading them.


async def the_cursor_never_goes_back(bench: Bench) -> None:
    """Touching moves the cursor of a session that is read, never back."""
    await bench.reads()
    await bench.add("r", 2)
    await bench.add("r", 1, owed=False)
    await bench.add("r", 2)
    for upto, delivered in ((2, 2), (1, 2), (None, 2), (3, 2), (4, 3), (2, 3), (5, 4)):
        await bench.store.touch({"r": upto, "never": 3})
        session = await bench.store.get_session("r")
        figures = (session.delivered, session.queued)
        same(figures, (delivered, 4 - delivered), f"delivered and queued, read up to {upto}")
    same(session.cursor, 5, "the cursor")
    same(await bench.numbers("r"), [1, 2, 3, 4, 5], "what is kept")


async def nobody_reads_what_is_not_there(bench: Bench) -> None:
    """A number beyond the newest record moves the cursor no further than that."""
    await bench.reads()
    await bench.add("r", 2)
    await bench.store.touch({"r": 9})
    await bench.add("r", 2)
    session = await bench.store.get_session("r")
    same((session.delivered, session.queued), (2, 2), "delivered and queued")


async def reading_delivers_nothing_that_is_pushed(bench: Bench) -> None:
    """Touching leaves the cursor of a session alone that a transport delivers."""
    await bench.pushes()
    await bench.add("p", 3)
    await bench.store.touch({"p": 3})
    session = await bench.store.get_session("p")
    same((session.cursor, session.delivered, session.queued), (0, 0, 3), "its cursor and figures")


# Ending and deleting them.


async def an_ended_session_is_read_only(bench: Bench) -> None:
    """An ended session is read as before, and takes no more events."""
    await bench.reads()
    records = await bench.add("r", 3)
    ended = await bench.store.end_session("r", linger=_LONG)
    same((ended.state, ended.top), ("ended", 3), "state and top")
    same(await bench.store.end_session("r", linger=_LONG), ended, "ending twice")
    append = bench.store.append("r", "progress", body())
    error = await raises(SessionEndedError, append, "an append")
    same(error.session_id, "r", "the id in the error")
    page = await bench.store.read("r")
    same((list(page.records), page.state), (records, "ended"), "what is read")
    await bench.store.touch({"r": 2})
    same((await bench.store.get_session("r")).delivered, 2, "delivered")
    await bench.sweep()
    same(await bench.kept("r"), records, "what is read while it lingers")


async def an_ended_session_goes(bench: Bench) -> None:
    """An ended session goes when its linger is over, and is unknown from then on."""
    await bench.reads()
    await bench.add("r", 2)
    await bench.store.end_session("r", linger=bench.period / 2)
    await bench.let_pass(bench.period)
    same(await bench.sweep(), ["r"], "sessions that went")
    await _check_unknown(bench, "r", UnknownSessionError)
    totals = await bench.store.totals()
    same((totals.sessions, totals.sent, totals.expired), (0, 2, 2), "totals")


async def a_session_that_owes_stays(bench: Bench) -> None:
    """A session that owes a delivery outlives its ttl and its linger until it is settled."""
    await bench.pushes("ended")
    await bench.pushes("idle", ttl=bench.period / 4)
    await bench.add("ended", 2)
    await bench.add("idle", 2)
    await bench.store.end_session("ended", linger=0)
    await bench.let_pass(bench.period)
    same(await bench.sweep(), [], "sessions that went while something is owed")
    for claim in await bench.claim():
        await bench.store.ack(claim, 2, None)
    await bench.let_pass(max(bench.period, _SLACK))
    same(sorted(await bench.sweep()), ["ended", "idle"], "sessions that went then")
    totals = await bench.store.totals()
    same((totals.delivered, totals.expired), (4, 0), "totals")


async def a_deleted_session_is_remembered(bench: Bench) -> None:
    """A deleted session is told apart from one that never was, for its linger."""
    await bench.reads()
    await bench.add("r", 3)
    await bench.store.touch({"r": 1})
    await bench.store.delete_session("r", linger=_LONG)
    await bench.sweep()
    await _check_unknown(bench, "r", SessionDeletedError)
    await bench.store.touch({"r": 2})
    totals = await bench.store.totals()
    same((totals.sessions, totals.active), (0, 0), "sessions in the totals")
    same((totals.sent, totals.delivered, totals.expired), (3, 1, 2), "totals")


async def a_deleted_session_is_forgotten(bench: Bench) -> None:
    """When its linger is over, a deleted session is as if it had never been; keys are gone."""
    await bench.reads()
    await bench.store.append("r", "progress", body(1), key="k")
    await bench.store.delete_session("r", linger=bench.period / 4)
    await bench.let_pass(bench.period / 2)
    await bench.sweep()
    await _check_unknown(bench, "r", UnknownSessionError)
    await bench.reads()
    appended = await bench.store.append("r", "progress", body(1), key="k")
    same((appended.is_new, appended.record.seq), (True, 1), "its key in a new session")


async def deleting_drops_what_is_owed(bench: Bench) -> None:
    """Of a deleted session nothing falls due, and no dead letter is left."""
    await bench.pushes()
    await bench.add("p", 3)
    await bench.bury(await bench.claim_one(), upto=1)
    await bench.store.redrive("p")
    await bench.store.delete_session("p", linger=_LONG)
    same(list(await bench.claim()), [], "what is due")
    totals = await bench.store.totals()
    same((totals.queued, totals.failed, totals.expired), (0, 1, 2), "queued, failed, expired")


async def an_idle_session_goes(bench: Bench) -> None:
    """A session goes when nobody appended or touched for its ttl; without one it stays."""
    ttl = bench.period
    for name in ("idle", "written", "touched"):
        await bench.reads(name, ttl=ttl)
    await bench.reads("for ever")
    await bench.let_pass(ttl * 0.6)
    await bench.add("written")
    await bench.store.touch({"touched": None})
    touched_at = bench.now()
    await bench.let_pass(ttl * 0.6)
    gone = await bench.sweep()
    if bench.now() - touched_at < ttl:
        same(gone, ["idle"], "sessions that went")
    await bench.let_pass(max(ttl, _SLACK))
    same(sorted({*gone, *await bench.sweep()}), ["idle", "touched", "written"], "all that went")
    same(_ids(await bench.store.sessions()), "for ever", "what is left")


async def a_sweep_is_limited(bench: Bench) -> None:
    """A sweep looks at so many sessions at most, and tells if there is more to do."""
    for name in "abcde":
        await bench.reads(name, ttl=bench.period / 4)
    await bench.let_pass(bench.period / 2)
    gone: list[str] = []
    has_more = True
    while has_more:
        swept = await bench.store.sweep(limit=2)
        hold(len(swept.sessions) <= 2, "two sessions at most", swept)
        hold(bool(swept.sessions) or not swept.has_more, "it comes to an end", swept)
        gone.extend(swept.sessions)
        has_more = swept.has_more
    same(sorted(gone), list("abcde"), "sessions that went")


# All of it.


async def totals_are_sums(bench: Bench) -> None:
    """The totals are the sums of the sessions, those that are gone included."""
    store = bench.store
    for name in ("a", "b", "c"):
        await bench.reads(name)
        await bench.add(name, 4)
        await store.touch({name: 1})
    await store.end_session("b", linger=_LONG)
    totals = await store.totals()
    same((totals.sessions, totals.active), (3, 2), "sessions and active ones")
    same((totals.sent, totals.delivered, totals.queued), (12, 3, 9), "the sums")
    await store.delete_session("a", linger=0)
    await bench.let_pass(0.01)
    await bench.sweep()
    totals = await store.totals()
    same((totals.sessions, totals.active), (2, 1), "sessions and active ones then")
    parts = (totals.sent, totals.delivered, totals.queued, totals.expired)
    same(parts, (12, 3, 6, 3), "the sums then")


async def it_is_healthy(bench: Bench) -> None:
    """A store says that it is well, and starts twice without harm."""
    await bench.reads()
    await bench.store.start()
    await bench.store.start()
    await bench.store.health()
    same(_ids(await bench.store.sessions()), "r", "the sessions")


def _ids(sessions: Sequence[SessionRecord]) -> str:
    return "".join(session.id for session in sessions)


SESSION_LAWS: Final[tuple[Law, ...]] = (
    a_session_begins_empty,
    what_is_not_owed_comes_back,
    an_id_is_used_once,
    no_epoch_comes_again,
    sessions_are_limited,
    sessions_are_listed,
    an_id_used_again_is_listed_once,
    a_session_that_never_was_is_unknown,
    a_session_is_changed,
    a_change_of_what_is_old_changes_nothing,
    an_ended_session_is_not_changed,
    what_is_owed_goes_by_the_change,
    a_change_does_not_keep_a_session,
    the_cursor_never_goes_back,
    nobody_reads_what_is_not_there,
    reading_delivers_nothing_that_is_pushed,
    an_ended_session_is_read_only,
    an_ended_session_goes,
    a_session_that_owes_stays,
    a_deleted_session_is_remembered,
    a_deleted_session_is_forgotten,
    deleting_drops_what_is_owed,
    an_idle_session_goes,
    a_sweep_is_limited,
    totals_are_sums,
    it_is_healthy,
)
