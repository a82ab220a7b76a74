"""A session as its application holds it."""

import hashlib
import math
from collections.abc import Callable, Coroutine
from typing import Any

import anyio
import anyio.to_thread
import pytest

from callbackkit import (
    CallbackManager,
    Event,
    EventType,
    MemoryStore,
    PayloadError,
    Session,
    SessionDeletedError,
    SessionEndedError,
    UnknownSessionError,
)
from callbackkit.sessions.session import token_hash
from callbackkit.stores.base import DeadLetter
from tests.sessions.rig import Told, numbers_of, rest, take, until, until_none, until_some


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
