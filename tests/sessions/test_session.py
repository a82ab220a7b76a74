"""A session as its application holds it."""

import hashlib
import math
from collections.abc import AsyncGenerator, Callable, Coroutine
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import attrs
import pytest

from callbackkit import (
    CallbackConfig,
    CallbackManager,
    ConfigError,
    Event,
    EventType,
    LimitError,
    Limits,
    MemoryStore,
    PayloadError,
    Position,
    PositionError,
    Retention,
    Session,
    SessionDeletedError,
    SessionEndedError,
    UnknownSessionError,
)
from callbackkit.events import CLIENT_MESSAGE
from callbackkit.sessions.session import token_hash
from callbackkit.stores.base import DeadLetter
from callbackkit.stores.sqlite import SQLiteStore
from callbackkit.testing import FailpointStore, ManualClock
from tests.sessions.rig import (
    Told,
    emit_numbers,
    numbers_of,
    rest,
    take,
    until,
    until_none,
    until_some,
)


@pytest.fixture
def manager() -> CallbackManager:
    return CallbackManager()


@pytest.fixture
async def session(manager: CallbackManager) -> Session:
    return await manager.create_session()


# Its token.


async def test_only_the_handle_that_was_created_knows_the_token(
    manager: CallbackManager, session: Session
):
    other = await manager.get_session(session.id)
    assert session.token is not None
    assert len(session.token) >= 43
    assert other.token is None
    for handle in (session, other):
        assert handle.has_token(session.token)
        assert not handle.has_token(session.token[:-1])
        assert not handle.has_token("")
        assert not handle.has_token("\ud800é")


async def test_what_is_stored_is_a_hash_of_the_token(manager: CallbackManager, session: Session):
    record = await manager.store.get_session(session.id)
    assert session.token is not None
    assert record.token_hash == hashlib.sha256(session.token.encode()).digest()
    assert record.token_hash == token_hash(session.token)
    assert session.token not in repr(session) + repr(record) + repr(vars(manager))


async def test_ids_and_tokens_differ(manager: CallbackManager):
    sessions = [await manager.create_session() for _ in range(50)]
    assert len({session.id for session in sessions}) == 50
    assert len({session.token for session in sessions}) == 50
    assert all(len(session.id) == 32 for session in sessions)


# One method for each event type.

Emits = Callable[[Session], Coroutine[Any, Any, Event | None]]

TYPED: dict[str, tuple[Emits, dict[str, Any]]] = {
    "thinking": (lambda s: s.thinking("hm", depth=2), {"thought": "hm", "depth": 2}),
    "tool_use": (lambda s: s.tool_use("search", {"q": 1}),
                 {"tool_name": "search", "parameters": {"q": 1}}),
    "tool_use, short": (lambda s: s.tool_use("search"), {"tool_name": "search"}),
    "tool_result": (lambda s: s.tool_result("search", [1], execution_time=0.5),
                    {"tool_name": "search", "result": [1], "success": True,
                     "execution_time": 0.5}),
    "tool_result, short": (lambda s: s.tool_result("search", success=False),
                           {"tool_name": "search", "result": None, "success": False}),
    "progress": (lambda s: s.progress(0.4, "parsing", current_step=2, total_steps=5),
                 {"progress": 0.4, "message": "parsing", "current_step": 2, "total_steps": 5}),
    "progress, short": (lambda s: s.progress(1), {"progress": 1}),
    "completion": (lambda s: s.completion("done", total_time=1.5, tokens_used=7),
                   {"result": "done", "success": True, "total_time": 1.5, "tokens_used": 7}),
    "completion, short": (lambda s: s.completion(), {"result": None, "success": True}),
    "workflow_start": (lambda s: s.workflow_start("w", ("a", "b")),
                       {"workflow": "w", "steps": ["a", "b"]}),
    "workflow_step": (lambda s: s.workflow_step("a", 0, 2, "running"),
                      {"step": "a", "index": 0, "total": 2, "status": "running"}),
    "workflow_complete": (lambda s: s.workflow_complete("w", success=False, total_time=3),
                          {"workflow": "w", "success": False, "total_time": 3}),
    "model_selection": (lambda s: s.model_selection("m", "cheap", {"m"}),
                        {"model": "m", "reason": "cheap", "candidates": ["m"]}),
    "streaming_chunk": (lambda s: s.streaming_chunk("tok", "node", 3),
                        {"text": "tok", "node": "node", "span": 3}),
    "error": (lambda s: s.error("bad", "Kind", recoverable=True, retry_count=2),
              {"error": "bad", "error_type": "Kind", "recoverable": True, "retry_count": 2}),
    "error, of an exception": (lambda s: s.error(OSError("disk")),
                               {"error": "disk", "error_type": "OSError"}),
    "error, named": (lambda s: s.error(OSError("disk"), "Disk"),
                     {"error": "disk", "error_type": "Disk"}),
}  # fmt: skip


@pytest.mark.parametrize("name", TYPED)
async def test_each_known_event_has_a_method(session: Session, name: str):
    emits, data = TYPED[name]
    event = await emits(session)
    assert event is not None
    assert event.event_type == name.partition(",")[0]
    assert dict(event.data) == data
    assert (await take(session.subscribe(), 1)) == [event]


def test_no_known_event_is_without_a_method():
    assert {name.partition(",")[0] for name in TYPED} == set(EventType)
    for event_type in EventType:
        assert callable(getattr(Session, event_type))


WRONG: list[tuple[Emits, str]] = [
    (lambda s: s.progress(40), "progress"),
    (lambda s: s.progress(math.nan), "progress"),
    (lambda s: s.thinking(None), "thought"),
    (lambda s: s.tool_use("t", [1]), "parameters"),
    (lambda s: s.tool_result("t", object()), "result"),
    (lambda s: s.tool_result("t", {"a": [1, {2}]}), "result.a[1]"),
    (lambda s: s.workflow_start("w", [1]), "steps[0]"),
    (lambda s: s.completion(math.inf), "result"),
    (lambda s: s.emit("x", {1: 2}), ""),
    (lambda s: s.emit("x", [1]), ""),
    (lambda s: s.emit("x", {}, metadata={"m": math.nan}), "metadata.m"),
    (lambda s: s.emit("x", {}, conversation_id=5), "conversation_id"),
]


@pytest.mark.parametrize("number", range(len(WRONG)))
async def test_a_payload_that_is_wrong_is_refused_by_path_and_nothing_is_lost(
    session: Session, number: int
):
    emits, path = WRONG[number]
    await session.progress(0.1)
    with pytest.raises(PayloadError) as caught:
        await emits(session)
    assert caught.value.path == path
    assert caught.value.reason
    await session.progress(0.2)
    await session.end()
    events = await rest(session.subscribe())
    assert [event.data["progress"] for event in events] == [0.1, 0.2]
    assert [event.position.seq for event in events] == [1, 2]


@pytest.mark.parametrize("name", ["", "Progress", "a b", "callbackkit.gap", "a..b", "x" * 129])
async def test_a_name_of_no_event_is_refused(session: Session, name: str):
    with pytest.raises(ValueError, match="event type"):
        await session.emit(name)
    with pytest.raises(ValueError, match="event type"):
        session.emit_soon(name)


# Its life.


async def test_a_session_that_has_ended_takes_no_event(session: Session):
    assert await session.state() == "active"
    await session.progress(1)
    await session.end()
    await session.end()
    assert await session.state() == "ended"
    with pytest.raises(SessionEndedError, match="has ended") as caught:
        await session.progress(1)
    assert caught.value.session_id == session.id
    assert len(await rest(session.subscribe())) == 1


async def test_a_session_that_was_deleted_is_gone(manager: CallbackManager, session: Session):
    await session.progress(1)
    await manager.delete_session(session.id)
    for use in (session.progress(1), session.state(), session.end(), session.stats()):
        with pytest.raises(SessionDeletedError):
            await use
    with pytest.raises(UnknownSessionError):
        await manager.delete_session("never")
    with pytest.raises(UnknownSessionError):
        await manager.end_session("never")


async def test_a_handle_shows_nothing_secret(manager: CallbackManager):
    session = await manager.create_session({"options": {"key": "hunter2"}}, owner="alice")
    assert repr(session) == f"<Session {session.id} by sse>"
    assert (session.owner, session.manager) == ("alice", manager)
    assert session.config.delivery_method == "sse"


# Handing over.


async def test_a_thread_hands_events_over_and_gets_them(manager: CallbackManager):
    async with manager:
        session = await manager.create_session()

        def work() -> list[Event | None]:
            futures = [session.emit_soon("n", {"n": number}) for number in range(50)]
            return [future.result(10) for future in futures]

        stored = await anyio.to_thread.run_sync(work)
        await session.end()
        events = await rest(session.subscribe())
    assert numbers_of(events) == list(range(50))
    assert stored == events


async def test_what_is_handed_over_is_written_down_at_once(manager: CallbackManager):
    async with manager:
        session = await manager.create_session()
        data = {"n": [1]}
        future = session.emit_soon("n", data, metadata={"m": 1}, conversation_id="c")
        data["n"].append(2)
        await until(future.done)
        event = future.result(0)
    assert event is not None
    assert (event.data, event.metadata, event.conversation_id) == ({"n": [1]}, {"m": 1}, "c")


async def test_what_is_wrong_is_refused_when_it_is_handed_over(manager: CallbackManager):
    async with manager:
        session = await manager.create_session()
        with pytest.raises(PayloadError, match="progress"):
            session.emit_soon("progress", {"progress": 40})
        await session.end()
        future = session.emit_soon("progress", {"progress": 1})
        await until(future.done)
        assert isinstance(future.exception(0), SessionEndedError)


async def test_what_is_filtered_out_is_none_at_once(manager: CallbackManager):
    session = await manager.create_session(
        {"events": ["progress"], "include_intermediate_results": False}
    )
    assert session.emit_soon("thinking", {"thought": "hm"}).result(0) is None
    assert session.emit_soon("progress", {"progress": 1}, intermediate=True).result(0) is None


async def test_the_key_of_an_event_that_was_handed_over_counts(manager: CallbackManager):
    async with manager:
        session = await manager.create_session()
        futures = [session.emit_soon("n", {"n": 1}, idempotency_key="k") for _ in range(3)]
        await until(futures[-1].done)
        assert len({future.result(0) for future in futures}) == 1
        await session.end()
        assert len(await rest(session.subscribe())) == 1


async def test_handing_over_needs_a_running_manager(session: Session):
    with pytest.raises(RuntimeError, match="running manager"):
        session.emit_soon("n", {"n": 1})


# What could not be delivered.


class Letters(MemoryStore):
    """Has dead letters, one of which is delivered while they are listed."""

    def __init__(self) -> None:
        super().__init__()
        self.ids = [f"letter-{number}" for number in range(5)]
        self.goes: str | None = None

    async def dead_letters(
        self, session_id: str, *, after: str | None = None, limit: int = 100
    ) -> list[DeadLetter]:
        begin = self.ids.index(after) + 1 if after in self.ids else 0
        page = self.ids[begin : begin + 2]
        if self.goes in page:
            self.ids.remove(self.goes)
        return [
            DeadLetter(id=letter_id, session_id=session_id, method="told", epoch="e", records=(),
                       reason="", attempts=1, at=0.0)
            for letter_id in page
        ]  # fmt: skip


async def test_all_dead_letters_are_listed():
    store = Letters()
    session = await CallbackManager(store).create_session()
    assert [each.id for each in await session.dead_letters()] == store.ids
    store.ids.clear()
    assert await session.dead_letters() == []


@pytest.mark.parametrize("goes", range(5))
async def test_a_dead_letter_that_goes_while_they_are_listed_stands_in_the_list_once(goes: int):
    store = Letters()
    store.goes = f"letter-{goes}"
    session = await CallbackManager(store).create_session()
    with anyio.fail_after(5):
        found = [each.id for each in await session.dead_letters()]
    assert len(found) == len(set(found))
    assert set(found) >= set(store.ids)


async def test_dead_letters_are_listed_and_redriven():
    works = False

    async def act(_delivery: object) -> None:
        if not works:
            raise OSError("down")

    transport = Told(act)
    async with CallbackManager(transports=[transport]) as manager:
        session = await manager.create_session({"delivery_method": "told", "retry_attempts": 0})
        await session.emit("n", {"n": 1})
        await until(lambda: transport.tried)
        letters = await until_some(session.dead_letters)
        assert [attempt.error for attempt in await session.attempts()] == ["OSError: down"]
        assert (await session.stats()).events_failed == 1
        works = True
        assert await session.redrive("other") == 0
        assert await session.redrive(letters[0].id) == 1
        await until(lambda: transport.done)
        await until_none(session.dead_letters)
    assert transport.done[0].is_redrive
    assert transport.done[0].id == letters[0].id


# Changing what its client asked for.


async def test_it_knows_when_it_was_created(manager: CallbackManager):
    before = datetime.now(UTC)
    session = await manager.create_session()
    assert before <= session.created_at <= datetime.now(UTC)
    assert session.created_at.tzinfo is UTC
    assert (await manager.get_session(session.id)).created_at == session.created_at


@pytest.fixture(params=["memory", "sqlite"])
async def kept(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[Session]:
    """A session of a store in memory, then of one in a file."""
    store = MemoryStore() if request.param == "memory" else SQLiteStore(tmp_path / "events.db")
    async with CallbackManager(store, [Told()]) as manager:
        yield await manager.create_session({"events": ["n"], "headers": {"a": "1"}})


async def test_what_is_changed_counts_from_now_on(kept: Session):
    assert await kept.emit("m") is None
    changed = await kept.update({"events": ["m"], "headers": {"b": "2"}})
    assert (changed.id, changed.token, changed.owner) == (kept.id, kept.token, kept.owner)
    assert (changed.config.events, changed.config.headers) == (("m",), {"b": "2"})
    assert kept.config.events == ("n",)
    for handle in (kept, changed, await kept.manager.get_session(kept.id)):
        assert await handle.emit("m") is not None
        assert await handle.emit("n") is None
        assert handle.emit_soon("n").result(0) is None
        future = handle.emit_soon("m")
        await until(future.done)
        assert future.result(0) is not None
    again = await kept.manager.get_session(kept.id)
    assert again.config == changed.config
    assert again.created_at == kept.created_at


async def test_what_is_null_is_as_it_was_never_asked_for(kept: Session):
    changed = await kept.update({"events": None, "headers": None, "webhook_url": None})
    assert changed.config == CallbackConfig(delivery_method="sse")
    assert await kept.emit("anything") is not None


async def test_what_is_not_named_stays(kept: Session):
    changed = await kept.update({"webhook_url": "https://example.com/hook"})
    assert changed.config == attrs.evolve(kept.config, webhook_url="https://example.com/hook")
    # How it is delivered does not follow from the URL any more.
    assert changed.config.delivery_method == "sse"
    assert (await changed.update({})).config == changed.config


REFUSED: list[tuple[Any, str, str]] = [
    ({"delivery_method": "polling"}, "delivery_method", "can't be changed"),
    ({"ttl": 5, "events": None}, "ttl", "what can be: events, headers, webhook_url"),
    ({"webhook_secret": None}, "webhook_secret", "can't be changed"),
    ({"evnets": []}, "evnets", "is unknown"),
    ({5: 1}, "5", "is unknown"),
    ({"\n": 1}, r"'\n'", "is unknown"),
    ({"events": []}, "events", "names no event type"),
    ({"events": ["n", "No!"]}, "events[1]", "no event type"),
    ({"headers": {"Host": "x"}}, "headers.Host", "set by the protocol"),
    ({"webhook_url": "ftp://example.com"}, "webhook_url", "must be a URL"),
    ([("events", None)], "config", "must be an object, not list"),
    (None, "config", "must be an object, not NoneType"),
]


@pytest.mark.parametrize("number", range(len(REFUSED)))
async def test_what_can_not_be_had_is_refused_by_its_name_and_nothing_changes(
    kept: Session, number: int
):
    changes, field, reason = REFUSED[number]
    with pytest.raises(ConfigError) as caught:
        await kept.update(changes)
    assert caught.value.field == field
    assert reason in caught.value.reason
    assert (await kept.manager.get_session(kept.id)).config == kept.config


async def test_only_a_session_that_goes_on_can_be_changed(kept: Session):
    await kept.end()
    with pytest.raises(SessionEndedError):
        await kept.update({"events": None})
    await kept.manager.delete_session(kept.id)
    with pytest.raises(SessionDeletedError):
        await kept.update({"events": None})
    with pytest.raises(UnknownSessionError):
        await kept.manager.update_session("never", {"events": None})


# Dropping what is old.


async def test_what_stands_before_a_position_is_dropped(kept: Session):
    await emit_numbers(kept, range(10))
    events = await take(kept.subscribe(), 10)
    assert await kept.clear(events[4].position) == 4
    assert await kept.clear(events[4].id) == 0
    assert await kept.clear(events[2].id) == 0
    (gap, *others) = await take(kept.subscribe(after=events[0].position), 7)
    assert (gap.is_gap, gap.data["missed"]) == (True, 3)
    assert numbers_of(others) == [4, 5, 6, 7, 8, 9]
    stats = await kept.stats()
    assert (stats.events_sent, stats.events_expired) == (10, 0)


async def test_what_is_older_than_a_moment_is_dropped(kept: Session):
    await emit_numbers(kept, range(10))
    events = await take(kept.subscribe(), 10)
    assert await kept.clear(events[3].timestamp) == 3
    text = events[6].timestamp.astimezone(timezone(timedelta(hours=2))).isoformat()
    assert await kept.clear(text) == 3
    assert await kept.clear(datetime(1999, 12, 31, tzinfo=UTC)) == 0
    assert await kept.clear(datetime(2999, 12, 31, tzinfo=UTC)) == 4
    await emit_numbers(kept, [10])
    assert (await kept.emit("n", {"n": 11})) is not None
    assert numbers_of(await take(kept.subscribe(), 2)) == [10, 11]


async def test_what_was_dropped_is_not_read_by_who_is_slow(kept: Session):
    """One that is subscribed already, and whose events were in memory, is told of the gap."""
    async with kept.subscribe() as slow:
        await emit_numbers(kept, range(10))
        assert numbers_of(await take(slow, 2)) == [0, 1]
        last = (await take(kept.subscribe(), 10))[-1]
        assert await kept.clear(last.position) == 9
        gap, event = await take(slow, 2)
        assert (gap.is_gap, gap.data["missed"]) == (True, 7)
        assert numbers_of([event]) == [9]


async def test_what_was_dropped_is_not_read_from_a_page_that_was_read_before(kept: Session):
    await emit_numbers(kept, range(300))
    slow, new, foreign = kept.subscribe(), kept.subscribe(), kept.subscribe(after="f00-1")
    assert numbers_of(await take(slow, 2)) == [0, 1]
    for each in (new, foreign):
        await each.more()
    position = slow.position
    assert position is not None
    assert await kept.clear(Position(position.epoch, 250)) == 249
    for subscription, missed in ((slow, 247), (new, 249), (foreign, None)):
        gap, *events = await take(subscription, 52)
        assert (gap.is_gap, gap.data["missed"]) == (True, missed)
        assert numbers_of(events) == list(range(249, 300))
        subscription.close()


async def test_what_was_dropped_is_not_read_though_retention_dropped_some_meanwhile():
    store = FailpointStore(MemoryStore())
    manager = CallbackManager(store, retention=Retention(max_events=10))
    session = await manager.create_session()
    slow = session.subscribe()
    assert await slow.begin()
    await emit_numbers(session, range(10))
    last = (await take(session.subscribe(), 10))[-1]
    assert numbers_of(await take(slow, 5)) == [0, 1, 2, 3, 4]
    pause = store.pause("trim")
    async with anyio.create_task_group() as group:
        group.start_soon(session.clear, last.position)
        assert await pause.reached()
        await emit_numbers(session, range(10, 15))
        pause.release()
    gap, *events = await take(slow, 7)
    assert (gap.is_gap, gap.data["missed"]) == (True, 4)
    assert numbers_of(events) == [9, 10, 11, 12, 13, 14]


async def test_what_a_place_is_not_is_refused_and_nothing_dropped(kept: Session):
    await emit_numbers(kept, range(3))
    position = (await take(kept.subscribe(), 1))[0].position
    for wrong in (Position(position.epoch, 4), "elsewhere-1", "yesterday", ""):
        with pytest.raises(PositionError):
            await kept.clear(wrong)
    assert len(await take(kept.subscribe(), 3)) == 3
    with pytest.raises(UnknownSessionError):
        await kept.manager.clear_events("never", position)


async def test_what_is_owed_is_not_dropped():
    async def act(_delivery: object) -> None:
        raise OSError("down")

    manager = CallbackManager(transports=[Told(act)])
    session = await manager.create_session({"delivery_method": "told"})
    await emit_numbers(session, range(5))
    assert await session.clear(datetime(2999, 12, 31, tzinfo=UTC)) == 0
    assert numbers_of(await take(session.subscribe(), 5)) == [0, 1, 2, 3, 4]


# What its client sends.


async def test_what_a_client_sends_is_an_event_and_calls_who_listens(kept: Session):
    heard: list[tuple[str, Event]] = []

    async def listen(event: Event) -> None:
        heard.append(("session", event))

    kept.on_message(listen)
    other = await kept.manager.create_session()
    other.on_message(lambda event: heard.append(("other", event)))
    kept.manager.register_callback("client.message", lambda event: heard.append(("manager", event)))
    await emit_numbers(kept, [1])
    event = await kept.receive({"text": "hi", "n": 2})
    assert event.event_type == CLIENT_MESSAGE
    assert (event.data, event.metadata) == ({"text": "hi", "n": 2}, {})
    assert event.position.seq == 2
    assert heard == [("session", event), ("manager", event)]
    assert (await take(kept.subscribe(), 2))[1] == event


@pytest.mark.parametrize("message", ["hi", 5, 0.5, None, [1, {"a": 2}], True])
async def test_a_message_that_is_no_object_stands_in_one(session: Session, message: object):
    event = await session.receive(message)
    assert event.data == {"message": message}


async def test_a_message_comes_after_what_was_handed_over_before(kept: Session):
    for number in range(20):
        kept.emit_soon("n", {"n": number})
    assert (await kept.receive("hi")).position.seq == 21


@pytest.mark.parametrize("message", [{"a": math.nan}, {1: 2}, "\ud800", object()])
async def test_a_message_that_is_no_json_is_refused(session: Session, message: object):
    with pytest.raises(PayloadError):
        await session.receive(message)
    assert (await session.stats()).events_sent == 0


async def test_a_message_is_not_larger_than_an_event():
    session = await CallbackManager(limits=Limits(max_event_bytes=1000)).create_session()
    await session.receive("x" * 900)
    with pytest.raises(LimitError, match="max_event_bytes=1000"):
        await session.receive("x" * 1000)


async def test_a_transport_gets_messages_only_if_they_were_asked_for():
    transport = Told()
    async with CallbackManager(transports=[transport]) as manager:
        for events in (["n"], ["n", "client.message"], None):
            session = await manager.create_session({"delivery_method": "told", "events": events})
            await session.receive("hi")
            await emit_numbers(session, [1])
            await until(lambda: transport.done and transport.done[-1].events[-1].event_type == "n")
            kinds = [each.event_type for each in transport.events]
            assert kinds == ["n"] if events == ["n"] else ["client.message", "n"]
            # Whoever reads the session gets it all the same.
            assert len(await take(session.subscribe(), 2)) == 2
            transport.done.clear()


async def test_who_listens_hears_nothing_any_more_once_cancelled_or_at_the_end(
    manager: CallbackManager,
):
    heard: list[Event] = []
    first, second, third = [await manager.create_session() for _ in range(3)]
    registration = first.on_message(heard.append)
    registration.cancel()
    await first.receive("hi")
    second.on_message(heard.append)
    third.on_message(heard.append)
    assert len(manager._messages) == 2
    await second.end()
    await manager.delete_session(third.id)
    assert len(manager._messages) == 0
    with pytest.raises(SessionEndedError):
        await second.receive("hi")
    with pytest.raises(SessionDeletedError):
        await third.receive("hi")
    assert heard == []


async def test_who_listens_to_a_session_that_expires_or_ends_elsewhere_is_forgotten():
    clock = ManualClock()
    store = MemoryStore(clock=clock)
    manager = CallbackManager(store)
    expires = await manager.create_session({"ttl": 60})
    ends = await manager.create_session({"ttl": None})
    for session in (expires, ends):
        session.on_message(len)
    await CallbackManager(store).end_session(ends.id)
    clock.advance(61)
    async with manager:
        await until(lambda: not len(manager._messages))
