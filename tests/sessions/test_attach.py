"""A run as events of a session."""

import json
import threading
import time
from typing import Any

import anyio
import anyio.to_thread
import pytest
from anyio.lowlevel import checkpoint

from callbackkit import (
    Callback,
    CallbackManager,
    Event,
    Limits,
    Session,
    SessionEndedError,
    StoreUnavailableError,
)
from tests.sessions.rig import PATIENCE, ToldStore, rest, settle, take, told_manager, until

# Longer than any of these tests takes: nothing is joined by time then.
LONG = 60.0


@pytest.fixture
def store() -> ToldStore:
    return ToldStore()


@pytest.fixture
async def session(store: ToldStore) -> Session:
    return await CallbackManager(store).create_session()


async def copied(session: Session) -> list[tuple[str, dict[str, Any]]]:
    """Return what the session got, and end it."""
    await session.end()
    return [(event.event_type, dict(event.data)) for event in await rest(session.subscribe())]


def chunk(text: str, node: str | None = None, span: int | None = None) -> tuple[str, Any]:
    place = {} if node is None else {"node": node, "span": span}
    return "streaming_chunk", {"text": text, **place}


# What becomes of a run.


async def test_a_run_becomes_events_of_the_session(session: Session):
    callback = Callback()
    async with session.attach(callback, batch=LONG), callback:
        callback("be")
        callback("fore")
        async with callback.node("search"):
            callback("in")
            callback("side")
        callback("af")
        callback("ter")
    assert await copied(session) == [
        chunk("before"),
        ("node_start", {"node": "search", "span": 1, "params": {}}),
        chunk("inside", "search", 1),
        ("node_end", {"node": "search", "span": 1, "status": "ok"}),
        chunk("after"),
    ]


async def test_parameters_of_a_node_are_told(session: Session):
    callback = Callback()
    async with session.attach(callback):
        await callback.start_node("a", params={"k": "v"})
        await callback.end_node("a", status="error")
    events = await copied(session)
    assert events[0][1]["params"] == {"k": "v"}
    assert events[1][1]["status"] == "error"


async def test_tokens_are_joined_per_span(session: Session):
    callback = Callback()

    async def node(name: str, turns: list[anyio.Event]) -> None:
        async with callback.node(name):
            for turn in turns:
                await turn.wait()
                callback(f"{name}1")
                callback(f"{name}2 ")

    turns = [anyio.Event() for _ in range(4)]
    async with session.attach(callback, batch=LONG), anyio.create_task_group() as group:
        group.start_soon(node, "a", turns[::2])
        await settle()
        group.start_soon(node, "b", turns[1::2])
        await settle()
        for turn in turns:
            turn.set()
            await settle()
    chunks = [data for kind, data in await copied(session) if kind == "streaming_chunk"]
    assert [(data["text"], data["node"], data["span"]) for data in chunks] == [
        ("a1a2 ", "a", 1),
        ("b1b2 ", "b", 2),
        ("a1a2 ", "a", 1),
        ("b1b2 ", "b", 2),
    ]


async def test_two_spans_of_one_node_stay_apart(session: Session):
    callback = Callback()
    async with session.attach(callback, batch=LONG):
        for text in ("one", "two"):
            async with callback.node("a"):
                callback(text)
    chunks = [data for kind, data in await copied(session) if kind == "streaming_chunk"]
    assert chunks == [
        {"text": "one", "node": "a", "span": 1},
        {"text": "two", "node": "a", "span": 2},
    ]


async def test_what_an_inactive_node_streams_is_not_copied(session: Session):
    callback = Callback()
    async with session.attach(callback, batch=LONG):
        await callback.start_node("a", active=False)
        callback("hidden")
        await callback.end_node("a")
        callback("shown")
    assert await copied(session) == [chunk("shown")]


async def test_events_of_the_application_keep_their_types(session: Session):
    callback = Callback()
    async with session.attach(callback, batch=LONG):
        callback("tok")
        callback.event("tool_use", {"tool_name": "search"})
        callback.event("own.type", [1, 2])
        callback.event("own.nothing")
    assert await copied(session) == [
        chunk("tok"),
        ("tool_use", {"tool_name": "search"}),
        ("own.type", {"value": [1, 2]}),
        ("own.nothing", {}),
    ]


async def test_what_is_refused_is_logged_and_the_rest_copied(caplog: pytest.LogCaptureFixture):
    manager, _ = told_manager(limits=Limits(max_event_bytes=2_000))
    session = await manager.create_session()
    callback = Callback()
    async with session.attach(callback):
        callback.event("progress", {"progress": 40})
        callback.event("Not A Name", {})
        callback.event("callbackkit.gap", {})
        callback.event("own", {"x": object()})
        callback.event("own", {"x": "y" * 3_000})
        callback.event("own", {"ok": 1})
    assert await copied(session) == [("own", {"ok": 1})]
    assert len(caplog.records) == 5
    for record in caplog.records:
        assert (record.name, record.levelname) == ("callbackkit.sessions", "WARNING")
        assert vars(record)["session_id"] == session.id
    assert "progress: must be a number from 0 to 1" in caplog.text


async def test_a_session_may_do_without_intermediate_results():
    session = await CallbackManager().create_session({"include_intermediate_results": False})
    callback = Callback()
    async with session.attach(callback):
        async with callback.node("a"):
            callback("tok")
            callback.event("tool_use", {"tool_name": "search"})
        await callback.fail(OSError("secret"))
    events = await copied(session)
    assert [event_type for event_type, _ in events] == ["tool_use", "error"]


# How a run ends.


async def test_a_run_that_ended_well_adds_nothing(session: Session):
    callback = Callback()
    async with session.attach(callback):
        await callback.close()
    assert await copied(session) == []


ENDINGS: dict[str, tuple[Any, dict[str, str]]] = {
    "fails": (lambda callback: callback.fail(OSError("secret")),
              {"error": "the run failed", "status": "error", "error_type": "OSError"}),
    "is cancelled": (lambda callback: callback.cancel("secret"),
                     {"error": "the run was cancelled", "status": "cancelled"}),
    "takes too long": (lambda callback: callback.end("timeout", TimeoutError("secret")),
                       {"error": "the run took too long", "status": "timeout"}),
}  # fmt: skip


@pytest.mark.parametrize("name", ENDINGS)
async def test_how_a_run_ends_badly_is_told_without_the_text_of_its_error(
    session: Session, name: str
):
    ends, data = ENDINGS[name]
    callback = Callback()
    async with session.attach(callback, batch=LONG):
        callback("tok")
        ends(callback)
    events = await copied(session)
    assert events == [chunk("tok"), ("error", data)]
    assert "secret" not in json.dumps(events)


async def test_a_run_that_is_silent_too_long_is_ended(session: Session):
    callback = Callback(idle_timeout=0.02)
    async with session.attach(callback):
        with anyio.fail_after(PATIENCE):
            (event,) = await take(session.subscribe(), 1)
    assert (event.event_type, event.data["status"]) == ("error", "timeout")


async def test_a_run_that_goes_on_is_copied_up_to_where_the_block_was_left(session: Session):
    callback = Callback()
    async with session.attach(callback, batch=LONG):
        callback("before")
    callback("after")
    assert not callback.is_closed
    assert await copied(session) == [chunk("before")]


async def test_a_run_in_which_nothing_happened_is_copied_at_once(session: Session):
    with anyio.fail_after(PATIENCE):
        async with session.attach(Callback()):
            pass
        async with session.attach(Callback()):
            await settle()
    assert await copied(session) == []


async def test_a_run_that_ended_before_is_copied_from_its_beginning(session: Session):
    callback = Callback()
    callback("to")
    callback("k")
    await callback.fail(OSError())
    async with session.attach(callback):
        pass
    assert [event_type for event_type, _ in await copied(session)] == ["streaming_chunk", "error"]


async def test_what_the_run_no_longer_keeps_is_a_gap(session: Session):
    callback = Callback(history_bytes=100)
    for _ in range(5_000):
        callback("0123456789")
    async with session.attach(callback):
        pass
    events = await copied(session)
    assert events[0][0] == "streaming_gap"
    text = "".join(data["text"] for _, data in events[1:])
    assert events[0][1]["missed"] + len(text) // 10 == 5_000


# Joining.


async def test_tokens_wait_so_long_at_most(session: Session):
    callback = Callback()
    events = session.subscribe()
    async with session.attach(callback, batch=0.02):
        for text in ("a", "b"):
            began = time.monotonic()
            callback(text)
            (event,) = await take(events, 1)
            assert event.data["text"] == text
            assert time.monotonic() - began >= 0.015


async def test_a_producer_that_never_pauses_does_not_keep_tokens_waiting(session: Session):
    callback = Callback()
    events = session.subscribe()
    is_done = False

    async def produce() -> None:
        while not is_done:
            await callback.acall("x")
            await checkpoint()

    async with anyio.create_task_group() as group, session.attach(callback, batch=0.01):
        group.start_soon(produce)
        got = await take(events, 3)
        is_done = True
    assert all(len(event.data["text"]) > 1 for event in got)


async def test_a_token_without_text_makes_no_event(session: Session):
    callback = Callback()
    async with session.attach(callback, batch=LONG):
        async with callback.node("a"):
            callback("")
        callback("")
        callback("tok")
    assert [data["text"] for _, data in await copied(session) if "text" in data] == ["tok"]


async def test_nothing_is_joined_for_0_seconds(session: Session):
    callback = Callback()
    events = session.subscribe()
    async with session.attach(callback, batch=0):
        for text in "abc":
            callback(text)
            (event,) = await take(events, 1)
            assert event.data["text"] == text


@pytest.mark.parametrize("batch", [-1, float("inf"), float("nan")])
async def test_a_batch_is_a_number_of_seconds(session: Session, batch: float):
    with pytest.raises(ValueError, match="batch must be 0 or more seconds"):
        session.attach(Callback(), batch=batch)


async def test_a_huge_burst_becomes_events_of_bearable_size(session: Session):
    callback = Callback(history_bytes=50_000_000)
    async with session.attach(callback, batch=LONG):
        for _ in range(100_000):
            callback("0123456789")
        callback("x" * 1_000_000)
        callback("\x00" * 100_000)
    await session.end()
    events = await rest(session.subscribe())
    text = "".join(event.data["text"] for event in events)
    assert text == "0123456789" * 100_000 + "x" * 1_000_000 + "\x00" * 100_000
    assert max(len(event.body) for event in events) < 262_144
    assert len(events) < 200


async def test_events_are_as_small_as_the_session_wants_them():
    manager, _ = told_manager(limits=Limits(max_event_bytes=1_000))
    session = await manager.create_session()
    callback = Callback()
    async with session.attach(callback, batch=LONG):
        callback("\x01" * 500)
        callback("tok")
    events = await copied(session)
    assert "".join(data["text"] for _, data in events) == "\x01" * 500 + "tok"


async def test_halves_of_a_character_are_put_together_and_others_replaced(session: Session):
    callback = Callback()
    async with session.attach(callback, batch=LONG):
        for token in ("é", "\ud83d", "\ude00", "x\ud83d"):
            callback(token)
    assert await copied(session) == [chunk("é\U0001f600x\ufffd")]


async def test_threads_may_feed_the_run(session: Session):
    callback = Callback()
    ready = threading.Barrier(3)

    def work(name: str) -> None:
        ready.wait(PATIENCE)
        with callback.node(name):
            for number in range(200):
                callback(f"{name}{number} ")

    async with session.attach(callback, batch=0.01), anyio.create_task_group() as group:
        for name in "abc":
            group.start_soon(anyio.to_thread.run_sync, work, name)
    events = await copied(session)
    for name in "abc":
        mine = [data["text"] for kind, data in events if "text" in data and data["node"] == name]
        assert "".join(mine) == "".join(f"{name}{number} " for number in range(200))


# Trouble.


async def fail_in_block(session: Session, callback: Callback) -> None:
    async with session.attach(callback, batch=LONG):
        callback("tok")
        raise ValueError("mine")


async def test_a_block_left_by_an_exception_stores_the_rest(session: Session):
    callback = Callback()
    with pytest.raises(ValueError, match="mine"):
        await fail_in_block(session, callback)
    assert await copied(session) == [chunk("tok")]


async def test_a_block_left_by_a_cancellation_stores_the_rest(session: Session, store: ToldStore):
    callback = Callback()
    store.before["append"] = settle
    with anyio.CancelScope() as scope:
        async with session.attach(callback, batch=LONG):
            callback("tok")
            scope.cancel()
            await checkpoint()
    assert scope.cancelled_caught
    assert await copied(session) == [chunk("tok")]


async def test_a_store_that_hangs_holds_up_a_cancellation_for_a_while_only(
    session: Session, store: ToldStore
):
    store.before["append"] = anyio.sleep_forever
    callback = Callback()
    with anyio.fail_after(PATIENCE), anyio.CancelScope() as scope:
        async with session.attach(callback):
            callback("tok")
            scope.cancel()
    assert scope.cancelled_caught
    del store.before["append"]
    assert await copied(session) == []


async def test_a_session_that_fails_is_told_when_the_block_is_left(
    session: Session, store: ToldStore
):
    async def fails() -> None:
        raise StoreUnavailableError("away")

    callback = Callback()
    store.before["append"] = fails
    with pytest.raises(StoreUnavailableError):
        async with session.attach(callback):
            callback("tok")


async def test_an_exception_of_the_block_comes_before_that(
    session: Session, caplog: pytest.LogCaptureFixture
):
    callback = Callback()
    await session.end()
    with pytest.raises(ValueError, match="mine"):
        await fail_in_block(session, callback)
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert vars(record)["session_id"] == session.id
    with pytest.raises(SessionEndedError):
        async with session.attach(callback):
            pass


async def test_the_run_holds_no_reader_when_the_block_is_left(session: Session):
    callback = Callback()
    async with session.attach(callback):
        callback("tok")
    assert not callback._log._parked
    # Nobody follows it any more: this waits for nobody.
    callback("more")


async def test_several_runs_may_be_attached_to_one_session(session: Session):
    callbacks = [Callback() for _ in range(3)]
    async with (
        session.attach(callbacks[0], batch=0),
        session.attach(callbacks[1], batch=0),
        session.attach(callbacks[2], batch=0),
    ):
        for number, callback in enumerate(callbacks):
            callback(str(number))
    texts = [data["text"] for _, data in await copied(session)]
    assert sorted(texts) == ["0", "1", "2"]


async def test_callbacks_of_the_process_see_the_run(session: Session):
    got: list[Event] = []
    session.manager.register_callback("streaming_chunk", got.append)
    callback = Callback()
    async with session.attach(callback):
        callback("tok")
    await until(lambda: got)
    assert got[0].data == {"text": "tok"}
