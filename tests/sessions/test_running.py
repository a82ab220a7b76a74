"""A function that runs with a session of its own."""

import threading
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from callbackkit import (
    Callback,
    CallbackManager,
    ConfigError,
    StoreUnavailableError,
    StreamCancelledError,
    UnknownSessionError,
    emit_token,
)
from callbackkit.sessions.running import RunningSession
from tests.sessions.rig import PATIENCE, ToldStore, rest, settle, take, until


@pytest.fixture
def store() -> ToldStore:
    return ToldStore()


@pytest.fixture
def manager(store: ToldStore) -> CallbackManager:
    return CallbackManager(store)


async def agent(message: str, callback: Callback) -> str:
    await callback.acall(message)
    await checkpoint()
    callback.event("progress", {"progress": 1})
    return message.upper()


async def types_of(session: RunningSession) -> list[str]:
    """Return the types of what it has got; it has ended."""
    assert await session.state() == "ended"
    return [event.event_type for event in await rest(session.subscribe())]


async def test_a_function_runs_with_a_session_that_ends_with_it(manager: CallbackManager):
    async with manager.run({"ttl": 60}, agent, "hi", owner="alice") as session:
        assert session.config.ttl == 60
        assert (session.owner, session.token is None) == ("alice", False)
        assert session.has_token(session.token or "")
        assert await session.result() == "HI"
    events = await rest(session.subscribe())
    assert [(event.event_type, dict(event.data)) for event in events] == [
        ("streaming_chunk", {"text": "hi"}),
        ("progress", {"progress": 1}),
    ]
    assert await session.state() == "ended"
    assert [each.id async for each in manager.sessions(owner="alice")] == [session.id]


async def test_it_can_be_read_while_it_runs(manager: CallbackManager):
    gate = anyio.Event()

    async def waits() -> None:
        emit_token("first")
        await gate.wait()

    async with manager.run(None, waits, batch=0) as session:
        async for event in session.subscribe():
            assert event.data == {"text": "first"}
            gate.set()
            break
    assert await types_of(session) == ["streaming_chunk"]


async def test_reading_it_in_the_block_ends_with_the_function(manager: CallbackManager):
    with anyio.fail_after(PATIENCE):
        async with manager.run(None, agent, "x") as session:
            got = [event.event_type async for event in session.subscribe()]
            assert await session.result() == "X"
    assert got == ["streaming_chunk", "progress"]


async def test_the_session_goes_on_until_the_function_has_ended(manager: CallbackManager):
    gate = anyio.Event()

    async def closes_early(callback: Callback) -> None:
        callback("tok")
        await callback.close()
        await gate.wait()

    async with manager.run(None, closes_early) as session:
        (event,) = await take(session.subscribe(), 1)
        await settle()
        assert await session.state() == "active"
        gate.set()
        await rest(session.subscribe(event))


async def test_a_session_that_can_not_be_ended_is_told_when_the_block_is_left(
    manager: CallbackManager, store: ToldStore, caplog: pytest.LogCaptureFixture
):
    async def fails() -> None:
        raise StoreUnavailableError("away")

    store.before["end_session"] = fails
    run = manager.run(None, checkpoint)
    session = await run.__aenter__()
    await until(lambda: caplog.records)
    assert vars(caplog.records[0])["session_id"] == session.id
    with pytest.raises(StoreUnavailableError):
        await run.__aexit__(None, None, None)


async def test_an_error_of_the_function_that_another_one_hides_is_logged(
    manager: CallbackManager, caplog: pytest.LogCaptureFixture
):
    run = manager.run(None, fail)
    session = await run.__aenter__()
    await until(lambda: session.callback.is_closed)
    await rest(session.subscribe())
    await run.__aexit__(ValueError, ValueError("mine"), None)
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "secret path" in caplog.text


async def test_a_reader_in_another_task_gets_it_all(manager: CallbackManager):
    got: list[str] = []

    async def read(session: RunningSession) -> None:
        async for event in session.subscribe():
            got.append(event.event_type)  # noqa: PERF401 - one by one

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group, manager.run(None, agent, "x") as session:
            group.start_soon(read, session)
    assert got == ["streaming_chunk", "progress"]


async def fail() -> None:
    emit_token("tok")
    await checkpoint()
    raise OSError("secret path")


async def leave_at_once(manager: CallbackManager, got: list[RunningSession]) -> None:
    async with manager.run(None, fail) as session:
        got.append(session)


async def test_what_the_function_raises_is_raised_when_the_block_is_left(
    manager: CallbackManager,
):
    got: list[RunningSession] = []
    with pytest.raises(OSError, match="secret path"):
        await leave_at_once(manager, got)
    (session,) = got
    assert await types_of(session) == ["streaming_chunk", "error"]
    events = await rest(session.subscribe())
    assert events[1].data["error_type"] == "OSError"
    assert b"secret" not in events[1].body


async def test_what_the_function_raises_is_told_to_who_asks_for_the_result(
    manager: CallbackManager,
):
    run = manager.run(None, fail)
    session = await run.__aenter__()
    for waiting in (session.result(), session.result(), run.__aexit__(None, None, None)):
        with pytest.raises(OSError, match="secret"):
            await waiting


async def fail_in_block(manager: CallbackManager, function: Any, got: list[Any]) -> None:
    async with manager.run(None, function) as session:
        got.append(session)
        await until(lambda: session.callback.last_seq)
        raise ValueError("mine")


async def test_a_body_that_fails_cancels_the_function(manager: CallbackManager):
    got: list[Any] = []

    async def forever() -> None:
        emit_token("tok")
        try:
            await anyio.sleep_forever()
        finally:
            got.append("cancelled")

    with anyio.fail_after(PATIENCE), pytest.raises(ValueError, match="mine"):
        await fail_in_block(manager, forever, got)
    session, word = got
    assert word == "cancelled"
    assert await types_of(session) == ["streaming_chunk", "error"]


async def test_a_function_that_is_not_async_runs_in_a_thread(manager: CallbackManager):
    def works(callback: Callback) -> int:
        callback("tok")
        return threading.get_ident()

    async with manager.run(None, works) as session:
        assert await session.result() != threading.get_ident()
    assert await types_of(session) == ["streaming_chunk"]


async def test_a_thread_is_stopped_at_its_next_token(manager: CallbackManager):
    got: list[Any] = []
    gone = threading.Event()

    def works(callback: Callback) -> None:
        try:
            while True:
                callback("tok")
        except StreamCancelledError:
            gone.set()
            raise

    with anyio.fail_after(PATIENCE), pytest.raises(ValueError, match="mine"):
        await fail_in_block(manager, works, got)
    assert await anyio.to_thread.run_sync(gone.wait, PATIENCE)
    assert (await types_of(got[0]))[-1] == "error"


async def test_cancelling_the_block_ends_function_and_session(manager: CallbackManager):
    sessions: list[RunningSession] = []
    ended: list[str] = []

    async def forever() -> None:
        emit_token("tok")
        try:
            await anyio.sleep_forever()
        finally:
            ended.append("function")

    async def run() -> None:
        async with manager.run(None, forever) as session:
            sessions.append(session)
            await anyio.sleep_forever()

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            group.start_soon(run)
            await until(lambda: sessions and sessions[0].callback.last_seq)
            group.cancel_scope.cancel()
    assert ended == ["function"]
    assert await types_of(sessions[0]) == ["streaming_chunk", "error"]


async def test_a_run_that_is_cancelled_is_told_when_the_block_is_left(manager: CallbackManager):
    with pytest.raises(StreamCancelledError):
        async with manager.run(None, anyio.sleep_forever) as session:
            session.callback.cancel("enough")
    assert await types_of(session) == ["error"]


async def test_a_session_that_was_deleted_meanwhile_is_no_error(manager: CallbackManager):
    async with manager.run(None, checkpoint) as session:
        await manager.delete_session(session.id)
    with pytest.raises(UnknownSessionError):
        await session.state()


async def test_what_is_wrong_is_refused_before_anything_begins(manager: CallbackManager):
    with pytest.raises(TypeError, match="can't be called like that"):
        manager.run(None, agent)
    with pytest.raises(ConfigError, match="nonsense"):
        async with manager.run({"nonsense": 1}, agent, "x"):
            pytest.fail("it was entered")
    assert [each async for each in manager.sessions()] == []


async def test_a_run_that_can_not_be_attached_leaves_no_session_open(manager: CallbackManager):
    with pytest.raises(ValueError, match="batch"):
        async with manager.run(None, agent, "x", batch=-1):
            pytest.fail("it was entered")
    assert [await each.state() async for each in manager.sessions()] == ["ended"]


async def test_a_run_that_is_cancelled_when_it_begins_leaves_no_session_open(
    manager: CallbackManager,
):
    with anyio.CancelScope() as scope:
        scope.cancel()
        async with manager.run(None, anyio.sleep_forever):
            await anyio.sleep_forever()
    assert [await each.state() async for each in manager.sessions(state="active")] == []


async def test_many_run_at_once(manager: CallbackManager):
    sessions: list[RunningSession] = []

    async def run(number: int) -> None:
        async with manager.run(None, agent, str(number)) as session:
            sessions.append(session)
            assert await session.result() == str(number)

    async with anyio.create_task_group() as group:
        for number in range(50):
            group.start_soon(run, number)
    assert len({session.id for session in sessions}) == 50
    for session in sessions:
        assert await types_of(session) == ["streaming_chunk", "progress"]
    await settle()
