"""The manager: sessions, and the callbacks of its process."""

import asyncio
import base64
import gc
import inspect
import logging
import math
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from anyio.lowlevel import checkpoint

from callbackkit import (
    CallbackConfig,
    CallbackManager,
    CallbackRegistry,
    ConfigError,
    Delivery,
    DispatchResult,
    Event,
    EventKey,
    Gone,
    IdempotencyError,
    LimitError,
    Limits,
    MemoryStore,
    Position,
    Registration,
    Retention,
    Retry,
    Session,
    SessionDeletedError,
    SessionEndedError,
    StoreUnavailableError,
    UnknownSessionError,
)
from callbackkit.delivery.transport import DeliveryConfig
from callbackkit.sessions.manager import OPERATORS
from callbackkit.stores.base import Swept
from callbackkit.stores.sqlite import SQLiteStore
from callbackkit.testing import FailpointStore
from callbackkit.testing.clock import ManualClock
from tests.sessions.rig import (
    PATIENCE,
    Told,
    ToldStore,
    emit_numbers,
    numbers_of,
    rest,
    settle,
    take,
    told_manager,
    until,
    until_some,
)

EVENT = "progress"


@pytest.fixture
def manager() -> CallbackManager:
    return CallbackManager()


async def test_it_needs_nothing_to_be_set_up(manager: CallbackManager):
    manager.register_callback(EVENT, lambda data: data)
    result = await manager.trigger_callbacks(EVENT, 0.5)
    assert isinstance(result, DispatchResult)
    assert result.values() == [0.5]


def test_registering_gives_a_registration(manager: CallbackManager):
    registration = manager.register_callback(EVENT, len)
    assert isinstance(registration, Registration)
    assert registration.cancel() is True
    assert manager.unregister_callback(EVENT, len) is False


def test_unregistering_tells_whether_there_was_one(manager: CallbackManager):
    manager.register_callback(EVENT, len)
    assert manager.unregister_callback(EVENT, len) is True
    assert manager.unregister_callback(EVENT, len) is False


async def test_an_event_without_data_or_listeners_is_fine(manager: CallbackManager):
    assert (await manager.trigger_callbacks(EVENT)).ok
    manager.register_callback(EVENT, lambda data: data is None)
    assert (await manager.trigger_callbacks(EVENT)).values() == [True]


async def test_sync_and_async_callbacks_are_isolated(manager: CallbackManager):
    async def waits(data: object) -> object:
        await anyio.lowlevel.checkpoint()
        return data

    def fails(_data: object) -> None:
        raise ValueError("broken")

    for callback in (fails, waits, len):
        manager.register_callback(EVENT, callback)
    result = await manager.trigger_callbacks(EVENT, "data")
    assert [outcome.status for outcome in result] == ["error", "ok", "ok"]
    assert result.values() == ["data", 4]


async def test_it_takes_the_options_of_a_registry(manager: CallbackManager):
    called: list[Any] = []
    manager.register_callback("*", lambda event, data: called.append((event, data)),
                              with_event=True, priority=1, once=True)  # fmt: skip
    manager.register_callback(EventKey[int](EVENT), called.append, when=lambda data: data > 1)
    for number in (1, 2):
        await manager.trigger_callbacks(EVENT, number)
    assert called == [(EVENT, 1), 2]


def test_its_options_are_those_of_a_registry(manager: CallbackManager):
    with pytest.raises(TypeError, match="prio"):
        manager.register_callback(EVENT, len, prio=1)
    with pytest.raises(ValueError, match="timeout must be positive"):
        manager.register_callback(EVENT, len, timeout=0)
    with pytest.raises(TypeError, match="callback must be callable"):
        manager.register_callback(EVENT, None)
    assert manager.registry.listeners() == []


async def test_a_bad_event_type_is_refused(manager: CallbackManager):
    with pytest.raises(ValueError, match="is a pattern"):
        await manager.trigger_callbacks("*")
    with pytest.raises(TypeError, match="an event type is"):
        await manager.trigger_callbacks(5)


async def test_its_registry_has_the_rest(manager: CallbackManager):
    assert isinstance(manager.registry, CallbackRegistry)
    manager.register_callback(EVENT, lambda: "called")
    assert manager.registry.has_listeners(EVENT)
    assert manager.registry.trigger_callbacks_sync(EVENT).values() == ["called"]
    with manager.registry.muted(EVENT):
        assert (await manager.trigger_callbacks(EVENT)).values() == []


async def test_managers_do_not_see_each_other(manager: CallbackManager):
    manager.register_callback(EVENT, lambda: "here")
    assert (await CallbackManager().trigger_callbacks(EVENT)).values() == []


def test_it_shows_its_callbacks(manager: CallbackManager):
    manager.register_callback(EVENT, len)
    state = "not started, <MemoryStore, 0 sessions>, <CallbackRegistry, 1 callbacks>"
    assert repr(manager) == f"<CallbackManager {state}>"


def test_its_methods_are_called_like_those_of_a_registry():
    for name in ("unregister_callback", "trigger_callbacks"):
        ours = inspect.signature(getattr(CallbackManager, name)).parameters
        theirs = inspect.signature(getattr(CallbackRegistry, name)).parameters
        assert list(ours) == list(theirs)


# What it is made of.


def test_what_it_is_given_is_looked_at_when_it_is_made():
    bad: dict[str, Any] = {"store": {}, "retention": 5, "limits": 5}
    for name, value in bad.items():
        with pytest.raises(TypeError, match=f"{name} must be"):
            CallbackManager(**{name: value})
    for name in ("linger", "drain_timeout"):
        for number in (-1, float("nan"), float("inf")):
            with pytest.raises(ValueError, match=f"{name} must be 0 or more seconds"):
                CallbackManager(**{name: number})
        for value in ("5", None, True):
            with pytest.raises(TypeError, match=f"{name} must be a number of seconds"):
                CallbackManager(**{name: value})
    with pytest.raises(TypeError, match="no Transport"):
        CallbackManager(transports=["told"])
    with pytest.raises(ValueError, match="two transports are named 'told'"):
        CallbackManager(transports=[Told(), Told()])


@pytest.mark.parametrize("name", ["sse", "websocket", "polling"])
def test_no_transport_is_named_like_a_way_to_read(name: str):
    with pytest.raises(ValueError, match=f"'{name}': that is a way to read"):
        CallbackManager(transports=[Told(name=name)])


# Its life.


async def test_entering_starts_what_it_owns_and_leaving_stops_it():
    transport = Told()
    manager, store = told_manager(transports=[transport])
    async with manager as entered:
        assert entered is manager
        assert repr(manager).startswith("<CallbackManager running")
        await until(lambda: transport.log)
        assert (store.log, transport.log) == (["start"], ["start"])
    assert store.log[-1] == "aclose"
    assert transport.log == ["start", "aclose"]
    assert repr(manager).startswith("<CallbackManager not started")


async def test_it_nests_the_outermost_counts():
    manager, store = told_manager()
    async with manager:
        async with manager:
            session = await manager.create_session()
        assert "aclose" not in store.log
        await until(session.emit_soon("n", {"n": 1}).done)
    assert store.log.count("start") == store.log.count("aclose") == 1


async def test_two_tasks_may_enter_it_and_leave_in_any_order():
    manager, store = told_manager()
    one_entered, two_entered = anyio.Event(), anyio.Event()

    async def one() -> None:
        async with manager:
            one_entered.set()
            await two_entered.wait()

    async def two() -> None:
        await one_entered.wait()
        async with manager:
            two_entered.set()
            await settle()
            session = await manager.create_session()
            await until(session.emit_soon("n", {"n": 1}).done)

    async with anyio.create_task_group() as group:
        group.start_soon(one)
        group.start_soon(two)
    assert store.log.count("start") == store.log.count("aclose") == 1


async def test_tasks_that_enter_at_once_start_it_once():
    manager, store = told_manager()
    store.before["start"] = settle
    inside = 0

    async def enter() -> None:
        nonlocal inside
        async with manager:
            inside += 1
            assert "aclose" not in store.log
            await until(lambda: inside == 5)

    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(enter)
    assert store.log.count("start") == store.log.count("aclose") == 1


async def test_who_enters_while_it_is_left_waits_and_starts_it_anew():
    manager, store = told_manager()
    store.before["aclose"] = settle
    entered = anyio.Event()

    async def enter() -> None:
        async with manager:
            entered.set()
            assert store.log.count("start") == 2
            assert store.log.count("aclose") == 1
            session = await manager.create_session()
            await until(session.emit_soon("n", {"n": 1}).done)

    async with anyio.create_task_group() as group:
        async with manager:
            pass_on = await manager.create_session()
        group.start_soon(enter)
        await entered.wait()
    assert pass_on.id
    assert store.log.count("start") == store.log.count("aclose") == 2


async def test_it_may_be_entered_again_and_nothing_is_lost():
    transport = Told()
    manager, _ = told_manager(transports=[transport])
    async with manager:
        session = await manager.create_session({"delivery_method": "told"})
        await emit_numbers(session, [0])
    await emit_numbers(session, [1])
    async with manager:
        await emit_numbers(session, [2])
        await until(session.emit_soon("n", {"n": 3}).done)
        await until(lambda: len(transport.events) == 4)
    assert numbers_of(transport.events) == [0, 1, 2, 3]
    assert transport.log == ["start", "aclose"] * 2


def test_a_manager_serves_one_event_loop_after_another():
    manager, _ = told_manager()

    async def main() -> None:
        async with manager:
            session = await manager.create_session()
            await until(session.emit_soon("n", {"n": 1}).done)

    for backend in ("asyncio", "trio", "asyncio"):
        anyio.run(main, backend=backend)


async def test_a_store_that_can_not_start_is_told_and_nothing_is_left_running():
    manager, store = told_manager()

    async def fails() -> None:
        raise StoreUnavailableError("away")

    store.before["start"] = fails
    with pytest.raises(StoreUnavailableError, match="away"):
        await manager.__aenter__()
    assert store.log == ["start", "aclose"]
    session = await manager.create_session()
    with pytest.raises(RuntimeError, match="running manager"):
        session.emit_soon("n")
    del store.before["start"]
    async with manager:
        await until(session.emit_soon("n").done)


async def test_being_cancelled_while_it_starts_leaves_nothing_running():
    manager, store = told_manager()
    store.before["start"] = anyio.sleep_forever
    with anyio.move_on_after(0.01):
        await manager.__aenter__()
    assert store.log == ["start", "aclose"]
    del store.before["start"]
    async with manager:
        assert store.log[-1] == "start"


async def test_an_exception_in_the_block_comes_through_and_what_waits_is_delivered():
    transport = Told()
    manager, store = told_manager(transports=[transport])

    async def work() -> None:
        async with manager:
            session = await manager.create_session({"delivery_method": "told"})
            session.emit_soon("n", {"n": 1})
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        await work()
    assert numbers_of(transport.events) == [1]
    assert store.log[-1] == "aclose"


async def test_being_cancelled_in_the_block_stops_it_without_draining():
    transport = Told(lambda _: anyio.sleep_forever())
    manager, store = told_manager(transports=[transport])
    with anyio.fail_after(PATIENCE), anyio.CancelScope() as scope:
        async with manager:
            session = await manager.create_session({"delivery_method": "told"})
            await emit_numbers(session, [0])
            await until(lambda: transport.tried)
            scope.cancel()
            await checkpoint()
    assert store.log[-1] == "aclose"
    assert transport.log == ["start", "aclose"]
    assert manager._readers.kinds().total() == 0


async def test_a_program_that_exits_in_the_block_does_not_wait_for_deliveries():
    transport = Told()
    manager, store = told_manager(transports=[transport])

    async def work() -> None:
        async with manager:
            session = await manager.create_session({"delivery_method": "told"})
            await emit_numbers(session, [1])
            raise SystemExit(3)

    with pytest.raises(SystemExit):
        await work()
    assert transport.tried == []
    assert store.log[-1] == "aclose"


async def test_being_cancelled_loses_no_note_of_what_was_read():
    manager, store = told_manager()
    with anyio.CancelScope() as scope:
        async with manager:
            session = await manager.create_session()
            await emit_numbers(session, range(3))
            await settle()
            events = session.subscribe()
            await take(events, 2)
            scope.cancel()
            await checkpoint()
    assert await delivered(store, session) == 2


async def test_being_cancelled_while_it_drains_stops_it():
    transport = Told(lambda _: anyio.sleep_forever())
    manager, store = told_manager(transports=[transport])
    with anyio.fail_after(PATIENCE), anyio.CancelScope() as scope:
        async with manager:
            session = await manager.create_session({"delivery_method": "told"})
            await emit_numbers(session, [0])
            scope.deadline = anyio.current_time() + 0.02
    assert scope.cancelled_caught
    assert store.log[-1] == "aclose"
    assert transport.log == ["start", "aclose"]


def test_a_cancellation_of_asyncios_own_stops_it_all():
    manager, store = told_manager()
    store.before["aclose"] = settle

    async def main() -> None:
        async def work() -> None:
            async with manager:
                await asyncio.sleep(3600)

        task = asyncio.create_task(work())
        await until(lambda: "start" in store.log)
        await settle()
        task.cancel()
        await until(lambda: "aclose" in store.log)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())
    assert store.log.count("aclose") == 1


async def test_leaving_delivers_what_is_due_also_when_the_block_was_short():
    transport = Told()
    manager, _ = told_manager(transports=[transport])
    async with manager:
        session = await manager.create_session({"delivery_method": "told"})
        await emit_numbers(session, range(20))
    assert numbers_of(transport.events) == list(range(20))


async def test_leaving_takes_no_longer_than_it_may():
    transport = Told(lambda _: anyio.sleep_forever())
    manager, _ = told_manager(transports=[transport], drain_timeout=0.05)
    manager.register_callback("n", anyio.sleep_forever)
    with anyio.fail_after(PATIENCE):
        async with manager:
            session = await manager.create_session({"delivery_method": "told"})
            await until(session.emit_soon("n", {"n": 1}).done)
    assert len(transport.tried) == 1


async def test_leaving_ends_subscriptions():
    manager, _ = told_manager()
    session = await manager.create_session()
    async with anyio.create_task_group() as group, manager:
        events = session.subscribe()
        group.start_soon(rest, events)
        await settle()
    assert not events.has_ended


async def test_draining_attempts_what_is_due_and_begins_nothing_after():
    transport = Told()
    manager, _ = told_manager(transports=[transport])
    async with manager:
        session = await manager.create_session({"delivery_method": "told"})
        session.emit_soon("n", {"n": 0})
        await manager.drain()
        assert numbers_of(transport.events) == [0]
        await emit_numbers(session, [1])
        await settle(50)
        assert numbers_of(transport.events) == [0]
    assert (await session.stats()).queued_events == 1
    async with manager:
        await until(lambda: len(transport.events) == 2)


async def test_draining_a_manager_that_is_not_running_is_harmless():
    await CallbackManager(transports=[Told()]).drain()


async def test_a_store_that_can_not_be_told_of_reading_does_not_keep_it_from_closing(
    caplog: pytest.LogCaptureFixture,
):
    manager, store = told_manager()

    async def fails() -> None:
        raise StoreUnavailableError("away")

    async with manager:
        session = await manager.create_session()
        await emit_numbers(session, [1])
        events = session.subscribe()
        await take(events, 1)
        store.before["touch"] = fails
    assert store.log[-1] == "aclose"
    assert {record.name for record in caplog.records} == {"callbackkit.sessions"}


# Sessions.


async def test_a_session_is_created_with_what_its_client_asked_for(manager: CallbackManager):
    config = {"events": ["progress"], "ttl": 60, "options": {"a": 1}}
    session = await manager.create_session(config, owner="alice")
    assert session.config.events == ("progress",)
    again = await manager.get_session(session.id)
    assert (again.config, again.owner, again.id) == (session.config, "alice", session.id)
    record = await manager.store.get_session(session.id)
    assert (record.method, record.pushes) == ("sse", False)


async def test_what_can_not_be_had_is_refused_and_nothing_is_created(manager: CallbackManager):
    refused: list[tuple[Mapping[str, Any], str]] = [
        ({"nonsense": 1}, "nonsense"),
        ({"ttl": -1}, "ttl"),
        ({"delivery_method": "slack"}, "delivery_method"),
        ({"webhook_url": "https://example.com"}, "delivery_method"),
        ({"delivery_method": "webhook"}, "webhook_url"),
    ]
    for config, field in refused:
        with pytest.raises(ConfigError) as caught:
            await manager.create_session(config)
        assert caught.value.field == field
    assert [each async for each in manager.sessions()] == []


async def test_a_method_without_its_transport_is_refused_with_those_there_are():
    manager = CallbackManager(transports=[Told()])
    with pytest.raises(ConfigError, match=r"no transport 'slack' here; known: .*sse, told, web"):
        await manager.create_session({"delivery_method": "slack"})


async def test_a_transport_may_refuse_what_a_client_asks_for():
    class Picky(Told):
        def check(self, config: DeliveryConfig) -> None:
            if "channel" not in config.options:
                raise ConfigError("options.channel", "is required")

    manager = CallbackManager(transports=[Picky()])
    with pytest.raises(ConfigError, match="channel: is required"):
        await manager.create_session({"delivery_method": "told"})
    good = {"delivery_method": "told", "options": {"channel": "#a"}}
    session = await manager.create_session(good)
    record = await manager.store.get_session(session.id)
    assert (record.method, record.pushes) == ("told", True)


async def test_the_secret_of_a_webhook_is_made_when_absent():
    manager = CallbackManager(transports=[Told(name="webhook")])
    config = {"webhook_url": "https://example.com/hook"}
    sessions = [await manager.create_session(config) for _ in range(2)]
    secrets = [session.config.webhook_secret or "" for session in sessions]
    assert len(set(secrets)) == 2
    for secret in secrets:
        assert secret.startswith("whsec_")
        assert len(base64.b64decode(secret.removeprefix("whsec_"))) == 24
    own = secrets[0]
    mine = await manager.create_session({**config, "webhook_secret": own})
    assert mine.config.webhook_secret == own
    assert (await manager.get_session(mine.id)).config.webhook_secret == own
    assert (await manager.create_session()).config.webhook_secret is None
    assert own not in f"{mine!r}{mine.config!r}{manager!r}"


async def test_sessions_are_limited():
    manager = CallbackManager(limits=Limits(max_sessions=2))
    first, _ = await manager.create_session(), await manager.create_session()
    with pytest.raises(LimitError, match="max_sessions=2"):
        await manager.create_session()
    await manager.delete_session(first.id)
    await manager.create_session()


async def test_a_second_manager_on_the_same_store_knows_the_sessions():
    """As after a restart."""
    store = MemoryStore()
    async with CallbackManager(store) as manager:
        session = await manager.create_session({"events": ["n"]}, owner="alice")
        await emit_numbers(session, range(3))
        seen = (await take(session.subscribe(), 2))[1]
    async with CallbackManager(store) as manager:
        again = await manager.get_session(session.id)
        assert again.owner == "alice"
        assert again.has_token(session.token or "")
        assert await again.emit("other") is None
        await emit_numbers(again, [3])
        await again.end()
        assert numbers_of(await rest(again.subscribe(seen))) == [2, 3]


async def test_what_is_emitted_by_another_manager_is_read_here():
    store = MemoryStore()
    one, two = CallbackManager(store), CallbackManager(store)
    session = await one.create_session()
    events = session.subscribe()
    there = await two.get_session(session.id)
    async with anyio.create_task_group() as group:
        group.start_soon(emit_numbers, there, range(3))
        assert numbers_of(await take(events, 3)) == [0, 1, 2]


async def test_all_sessions_are_listed_by_state_and_owner(manager: CallbackManager):
    created = [
        await manager.create_session(owner="alice" if number % 2 else "bob")
        for number in range(250)
    ]
    for session in created[:30]:
        await session.end()
    await manager.delete_session(created[249].id)

    async def listed(**wanted: Any) -> set[str]:
        found = [session.id async for session in manager.sessions(**wanted)]
        assert len(found) == len(set(found))
        return set(found)

    ids = [session.id for session in created]
    assert await listed() == set(ids[:249])
    assert await listed(state="active") == set(ids[30:249])
    assert await listed(state="ended") == set(ids[:30])
    assert await listed(owner="alice") == set(ids[1:249:2])
    assert await listed(owner="alice", state="ended") == set(ids[1:30:2])
    assert await listed(owner="nobody") == set()


async def test_a_session_that_is_unknown_is_told(manager: CallbackManager):
    with pytest.raises(UnknownSessionError, match="no session 'never'"):
        await manager.get_session("never")
    session = await manager.create_session()
    await manager.delete_session(session.id)
    with pytest.raises(SessionDeletedError):
        await manager.get_session(session.id)


async def test_a_session_lingers_after_its_end():
    clock = ManualClock(1e9)
    manager = CallbackManager(MemoryStore(clock=clock), linger=60)
    session = await manager.create_session()
    await emit_numbers(session, [1])
    await session.end()
    clock.advance(59)
    await manager.store.sweep()
    assert numbers_of(await rest(session.subscribe())) == [1]
    clock.advance(2)
    await manager.store.sweep()
    with pytest.raises(UnknownSessionError):
        await manager.get_session(session.id)


async def test_a_session_may_be_a_block(manager: CallbackManager):
    async with manager.session({"ttl": 5}, owner="alice") as session:
        assert (session.config.ttl, session.owner) == (5, "alice")
        assert session.token
        await session.progress(1)
    assert await session.state() == "ended"


async def test_a_session_ends_with_its_block_however_that_is_left(manager: CallbackManager):
    left: list[Session] = []

    async def fail() -> None:
        async with manager.session() as session:
            left.append(session)
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        await fail()
    with anyio.CancelScope() as scope:
        async with manager.session() as session:
            left.append(session)
            scope.cancel()
            await checkpoint()
    assert [await session.state() for session in left] == ["ended", "ended"]


async def test_a_session_that_was_deleted_in_its_block_is_no_error(manager: CallbackManager):
    async with manager.session() as session:
        await manager.delete_session(session.id)


# Emitting.


async def test_an_event_is_filtered_stored_told_to_readers_and_then_to_callbacks():
    manager, store = told_manager()
    session = await manager.create_session({"events": ["n"]})
    log: list[str] = []

    async def callback(event: Event) -> None:
        # Stored by now, and its reader has been woken.
        page = await store.read(session.id)
        log.append(f"callback {event.event_type}, {len(page.records)} stored")
        await until(lambda: "reader" in log)

    async def read() -> None:
        await take(events, 1)
        log.append("reader")

    async def appends() -> None:
        log.append("append")
        await settle()

    store.before["append"] = appends
    manager.register_callback("*", callback)
    events = session.subscribe()
    async with anyio.create_task_group() as group:
        group.start_soon(read)
        await settle()
        assert await session.emit("other") is None
        assert log == []
        stored = await session.emit("n", {"n": 1})
    assert log == ["append", "callback n, 1 stored", "reader"]
    assert stored is not None
    assert stored.position.seq == 1


async def test_what_the_filter_leaves_out_is_none_and_nowhere(manager: CallbackManager):
    called: list[Event] = []
    manager.register_callback("**", called.append)
    session = await manager.create_session(
        {"events": ["progress"], "include_intermediate_results": False}
    )
    assert await session.thinking("hm") is None
    assert await session.emit("progress", {"progress": 1}, intermediate=True) is None
    event = await session.progress(1)
    assert called == [event]
    stats = await session.stats()
    assert (stats.events_sent, stats.queued_events) == (1, 1)


async def test_what_the_filter_leaves_out_is_checked_all_the_same(manager: CallbackManager):
    session = await manager.create_session({"events": ["progress"]})
    with pytest.raises(ValueError, match="thought"):
        await session.emit("thinking", {})


async def test_a_callback_that_fails_does_not_make_emitting_fail(
    manager: CallbackManager, caplog: pytest.LogCaptureFixture
):
    def fails(_event: Event) -> None:
        raise OSError("broken")

    called: list[Event] = []
    manager.register_callback("n", fails)
    manager.register_callback("n", called.append)
    session = await manager.create_session()
    event = await session.emit("n")
    assert called == [event]
    assert len(caplog.records) == 1


async def test_callbacks_get_the_event_of_any_session(manager: CallbackManager):
    called: list[Event] = []
    manager.register_callback("n", called.append)
    manager.register_callback("n", lambda event: called.append(event), when=lambda event: False)
    for _ in range(2):
        await emit_numbers(await manager.create_session(), [1])
    assert len({event.session_id for event in called}) == 2


async def test_emitting_waits_for_no_delivery():
    transport = Told(lambda _: anyio.sleep_forever())
    manager, _ = told_manager(transports=[transport], drain_timeout=0)
    with anyio.fail_after(PATIENCE):
        async with manager:
            session = await manager.create_session({"delivery_method": "told"})
            await emit_numbers(session, range(10))
            await until(lambda: transport.tried)
            await emit_numbers(session, range(10, 20))
            assert (await session.stats()).queued_events == 20


async def test_several_tasks_emit_at_once_each_in_its_own_order(manager: CallbackManager):
    session = await manager.create_session()

    async def work(task: int) -> None:
        for number in range(50):
            await session.emit("n", {"n": [task, number]})
            await checkpoint()

    async with anyio.create_task_group() as group:
        for task in range(10):
            group.start_soon(work, task)
    await session.end()
    events = await rest(session.subscribe())
    assert [event.position.seq for event in events] == list(range(1, 501))
    for task in range(10):
        mine = [event.data["n"][1] for event in events if event.data["n"][0] == task]
        assert mine == list(range(50))
    times = [event.timestamp for event in events]
    assert times == sorted(set(times))


async def test_a_key_stores_once_and_calls_once(manager: CallbackManager):
    called: list[Event] = []
    manager.register_callback("n", called.append)
    session = await manager.create_session()
    emits = [await session.emit("n", {"n": 1}, idempotency_key="k") for _ in range(3)]
    assert len(set(emits)) == 1
    assert called == emits[:1]
    with pytest.raises(IdempotencyError, match="'k'"):
        await session.emit("n", {"n": 2}, idempotency_key="k")
    # A key belongs to its session.
    other = await manager.create_session()
    await other.emit("n", {"n": 2}, idempotency_key="k")


async def test_an_event_that_is_too_large_is_refused_with_its_size():
    manager = CallbackManager(limits=Limits(max_event_bytes=200))
    session = await manager.create_session()
    with pytest.raises(LimitError, match=r"max_event_bytes=200 .* has \d+ bytes") as caught:
        await session.emit("n", {"n": "x" * 200})
    assert caught.value.limit == "max_event_bytes"
    with pytest.raises(LimitError):
        session.emit_soon("n", {"n": "x" * 200})
    room = 200 - len(b'{"conversation_id":null,"data":{"n":""},"metadata":{}}')
    assert await session.emit("n", {"n": "x" * room}) is not None


async def test_emitting_to_no_session_is_told(manager: CallbackManager):
    with pytest.raises(UnknownSessionError):
        await manager.emit("never", "n")
    session = await manager.create_session()
    await session.emit("n")
    await session.end()
    with pytest.raises(SessionEndedError):
        await manager.emit(session.id, "n")
    await manager.delete_session(session.id)
    with pytest.raises(SessionDeletedError):
        await manager.emit(session.id, "n")
    filtered = await manager.create_session({"events": ["n"]})
    assert await filtered.emit("other") is None
    await manager.delete_session(filtered.id)
    with pytest.raises(SessionDeletedError):
        await filtered.emit("other")


async def test_a_store_that_fails_is_told_and_the_event_can_be_emitted_again():
    manager, store = told_manager()
    session = await manager.create_session()

    async def fails() -> None:
        raise StoreUnavailableError("disk full")

    store.before["append"] = fails
    with pytest.raises(StoreUnavailableError, match="disk full"):
        await emit_numbers(session, [1])
    del store.before["append"]
    await emit_numbers(session, [1])
    await session.end()
    assert numbers_of(await rest(session.subscribe())) == [1]


async def test_a_codec_of_ones_own_writes_and_reads():
    class Codec:
        def __init__(self) -> None:
            self.log: list[str] = []

        def encode(self, value: Any) -> bytes:
            self.log.append("encode")
            return repr(value).replace("'", '"').replace("None", "null").encode()

        def decode(self, text: bytes) -> Any:
            self.log.append("decode")
            return eval(text.replace(b"null", b"None"))

    codec = Codec()
    session = await CallbackManager(codec=codec).create_session()
    event = await session.emit("n", {"n": 1})
    assert event is not None
    assert codec.log == ["encode"]
    assert event.data == {"n": 1}
    assert codec.log == ["encode", "decode"]


async def test_filters_of_many_sessions_are_kept_at_hand_and_not_of_all():
    manager, _ = told_manager(limits=Limits(max_sessions=20_000))
    for _ in range(10_050):
        session = await manager.create_session({"events": ["n"]})
        assert await session.emit("other") is None
    assert len(manager._filters) == 10_000


# Handing over.


async def test_what_is_emitted_after_handing_over_comes_after_it():
    manager, store = told_manager()
    store.before["append"] = settle
    async with manager:
        session = await manager.create_session()
        for number in range(0, 20, 4):
            for soon in range(3):
                session.emit_soon("n", {"n": number + soon})
            await emit_numbers(session, [number + 3])
        session.emit_soon("n", {"n": 20})
        await session.end()
        assert numbers_of(await rest(session.subscribe())) == list(range(21))


async def test_a_callback_may_emit_into_its_own_session_in_any_way():
    manager, _ = told_manager()
    futures = []

    async def callback(event: Event) -> None:
        number = event.data["n"]
        if number in {0, 10}:
            futures.append(session.emit_soon("n", {"n": number + 1}))
            await emit_numbers(session, [number + 2])
            futures.append(session.emit_soon("n", {"n": number + 3}))
            await session.manager.emit(session.id, "n", {"n": number + 4})

    manager.register_callback("n", callback)
    async with manager:
        session = await manager.create_session()
        with anyio.fail_after(PATIENCE):
            session.emit_soon("n", {"n": 0})
            await until(lambda: len(futures) == 2 and futures[1].done())
            await settle()
            await emit_numbers(session, [10])
            await session.end()
        got = numbers_of(await rest(session.subscribe()))
    assert got == [0, 1, 2, 3, 4, 10, 11, 12, 13, 14]


async def test_callbacks_of_two_sessions_may_emit_into_each_other():
    manager, _ = told_manager()

    async def callback(event: Event) -> None:
        if event.data["n"] == 0:
            other = two if event.session_id == one.id else one
            other.emit_soon("n", {"n": 1})
            await emit_numbers(other, [2])

    manager.register_callback("n", callback)
    async with manager:
        one, two = await manager.create_session(), await manager.create_session()
        with anyio.fail_after(PATIENCE):
            one.emit_soon("n", {"n": 0})
            two.emit_soon("n", {"n": 0})
            await manager.drain()
        for session in (one, two):
            await session.end()
            assert numbers_of(await rest(session.subscribe())) == [0, 1, 2]


async def test_a_callback_in_a_thread_may_hand_over_and_wait():
    manager, _ = told_manager()
    inner: list[Event | None] = []

    def callback(event: Event) -> None:
        if event.data["n"] == 0:
            inner.append(session.emit_soon("n", {"n": 1}).result(PATIENCE))

    manager.register_callback("n", callback, thread=True)
    async with manager:
        session = await manager.create_session()
        session.emit_soon("n", {"n": 0})
        await until(lambda: inner)
    assert inner[0] is not None


async def test_a_callback_may_end_its_own_session():
    manager, _ = told_manager()
    manager.register_callback("completion", lambda: session.end())
    async with manager:
        session = await manager.create_session()
        session.emit_soon("completion")
        with anyio.fail_after(PATIENCE):
            assert len(await rest(session.subscribe())) == 1


async def test_what_waits_when_the_manager_is_stopped_hangs_nobody():
    manager, store = told_manager(drain_timeout=0.02)
    store.before["append"] = anyio.sleep_forever
    results: list[BaseException | None] = []

    def wait() -> None:
        futures = [session.emit_soon("n", {"n": number}) for number in range(3)]
        results.extend(future.exception(PATIENCE) for future in futures)

    async with anyio.create_task_group() as group, manager:
        session = await manager.create_session()
        group.start_soon(anyio.to_thread.run_sync, wait)
        await until(lambda: "append" in store.log)
    assert [type(result) for result in results] == [RuntimeError] * 3
    assert "stopped" in str(results[0])


async def test_what_is_handed_over_while_it_is_left_is_stored_or_refused():
    stored: list[int] = []

    def work() -> None:
        number = 0
        while True:
            try:
                future = session.emit_soon("n", {"n": number})
            except RuntimeError:
                return
            # What was taken is stored.
            assert future.result(PATIENCE) is not None
            stored.append(number)
            number += 1

    manager, store = told_manager(transports=[Told()])
    store.before["append"] = settle
    async with anyio.create_task_group() as group, manager:
        session = await manager.create_session()
        group.start_soon(anyio.to_thread.run_sync, work)
        await until(lambda: len(stored) > 5)
    await session.end()
    assert numbers_of(await rest(session.subscribe())) == stored


async def test_what_is_handed_over_while_it_drains_is_stored():
    futures: list[Future[Event | None]] = []

    async def act(_delivery: Delivery) -> None:
        futures.append(read.emit_soon("n", {"n": 1}))

    manager, store = told_manager(transports=[Told(act)])
    async with manager:
        read = await manager.create_session()
        await emit_numbers(await manager.create_session({"delivery_method": "told"}), [0])
        store.before["append"] = lambda: settle(200)
    assert [future.exception(0) for future in futures] == [None]


async def test_too_much_handed_over_is_refused_and_emitting_still_works():
    manager, store = told_manager(limits=Limits(max_pending=3))
    gate = anyio.Event()
    store.before["append"] = gate.wait
    async with manager:
        session = await manager.create_session()
        for number in range(3):
            session.emit_soon("n", {"n": number})
        with pytest.raises(LimitError, match="max_pending=3"):
            session.emit_soon("n", {"n": 3})
        async with anyio.create_task_group() as group:
            group.start_soon(emit_numbers, session, [3])
            await settle()
            gate.set()
        await session.end()
        assert numbers_of(await rest(session.subscribe())) == [0, 1, 2, 3]


async def test_emitting_behind_what_was_handed_over_may_be_cancelled():
    manager, store = told_manager()
    gate = anyio.Event()
    store.before["append"] = gate.wait
    async with manager:
        session = await manager.create_session()
        session.emit_soon("n", {"n": 0})
        with anyio.move_on_after(0.01) as scope:
            await emit_numbers(session, [1])
        assert scope.cancelled_caught
        gate.set()
        await session.end()
        assert numbers_of(await rest(session.subscribe())) == [0]


# Deliveries and figures.


def adds_up(stats: Mapping[str, Any]) -> bool:
    names = ("events_delivered", "events_failed", "events_expired", "queued_events")
    return bool(stats["events_sent"] == sum(stats[name] for name in names))


async def all_add_up(manager: CallbackManager, *sessions: Session) -> None:
    every = [await session.stats() for session in sessions]
    assert all(map(adds_up, every))
    total = await manager.stats()
    for name in ("events_sent", "events_delivered", "events_failed", "events_expired"):
        assert total[f"total_{name}"] == sum(stats[name] for stats in every), name
    assert total.total_queued_events == sum(stats.queued_events for stats in every)
    assert total.total_retries == sum(stats.retries for stats in every)
    parts = total.total_events_delivered + total.total_events_failed
    assert total.total_events_sent == parts + (
        total.total_events_expired + total.total_queued_events
    )


async def test_figures_add_up_whatever_becomes_of_events():
    async def act(delivery: Delivery) -> None:
        number = delivery.event.data["n"]
        if number == 1 and delivery.attempt == 1:
            raise OSError("once")
        if number == 2:
            raise Gone("never")

    transport = Told(act)
    manager = CallbackManager(transports=[transport], retention=Retention(max_events=3))
    assert dict(await manager.stats())["delivery_rate"] == 0
    read, pushed, ended = [
        await manager.create_session(config)
        for config in ({}, {"delivery_method": "told"}, {"delivery_method": "told"})
    ]
    sessions = read, pushed, ended
    await all_add_up(manager, *sessions)
    async with manager:
        for session in sessions:
            await emit_numbers(session, range(2))
            await all_add_up(manager, *sessions)
        await until(lambda: len(transport.done) == 4)
        await take(read.subscribe(), 1)
        await all_add_up(manager, *sessions)
        assert (await read.stats()).events_delivered == 1
        # Those read are dropped, and one that nobody has read.
        await emit_numbers(read, range(3))
        await all_add_up(manager, *sessions)
        assert (await read.stats()).events_expired == 1
        await emit_numbers(pushed, [2])
        await until_some(pushed.dead_letters)
        await all_add_up(manager, *sessions)
        stats = await pushed.stats()
        assert (stats.events_failed, stats.retries) == (1, 1)
        assert stats.delivery_rate == pytest.approx(2 / 3)
        await ended.end()
        await all_add_up(manager, *sessions)
    total = await manager.stats()
    assert (total.total_sessions, total.active_sessions) == (3, 2)
    await manager.delete_session(read.id)
    after = await manager.stats()
    assert after.total_events_sent == total.total_events_sent
    assert after.total_sessions == 2
    parts = after.total_events_delivered + after.total_events_failed + after.total_events_expired
    assert after.total_events_sent == parts + after.total_queued_events


async def test_what_was_read_counts_at_once(manager: CallbackManager):
    session = await manager.create_session()
    await emit_numbers(session, range(4))
    events = session.subscribe()
    await take(events, 1)
    total = await manager.stats()
    assert (total.total_events_delivered, total.delivery_rate) == (1, 0.25)


async def test_readers_count_in_the_figures_while_they_read(manager: CallbackManager):
    session = await manager.create_session()
    readers = [session.subscribe(kind=kind) for kind in ("sse", "sse", "websocket", "polling")]
    stats, total = await session.stats(), await manager.stats()
    assert (stats.has_sse, stats.has_websocket) == (True, True)
    assert (total.active_sse, total.active_websockets) == (2, 1)
    for reader in readers:
        reader.close()
    stats, total = await session.stats(), await manager.stats()
    assert (stats.has_sse, stats.has_websocket) == (False, False)
    assert (total.active_sse, total.active_websockets) == (0, 0)


async def test_what_a_transport_takes_only_when_named_is_kept_and_not_owed():
    transport = Told(only_when_named=frozenset({"streaming_chunk"}))
    manager = CallbackManager(transports=[transport])
    async with manager:
        plain = await manager.create_session({"delivery_method": "told"})
        named = await manager.create_session(
            {"delivery_method": "told", "events": ["streaming_chunk", "progress"]}
        )
        for session in (plain, named):
            await session.streaming_chunk("tok")
            await session.progress(1)
            session.emit_soon("streaming_chunk", {"text": "tok"})
            await session.end()
        await until(lambda: len(transport.events) == 4)
        for session, owed in ((plain, 1), (named, 3)):
            assert len(await rest(session.subscribe())) == 3
            stats = await session.stats()
            assert (stats.events_sent, stats.events_delivered) == (owed, owed)
    mine = [event.event_type for event in transport.events if event.session_id == plain.id]
    assert mine == ["progress"]


async def test_whoever_emits_need_not_have_the_transport_to_know_what_it_takes():
    """A process that serves clients, and another one that delivers."""
    store = MemoryStore()
    transport = Told(only_when_named=frozenset({"streaming_chunk"}))
    here, there = CallbackManager(store), CallbackManager(store, transports=[transport])
    session = await there.create_session({"delivery_method": "told"})
    twin = await here.get_session(session.id)
    await twin.streaming_chunk("tok")
    await twin.progress(1)
    assert (await twin.stats()).events_sent == 1
    async with here:
        await anyio.to_thread.run_sync(
            lambda: twin.emit_soon("streaming_chunk", {"text": "tok"}).result(5)
        )
    assert (await twin.stats()).events_sent == 1


@pytest.mark.parametrize("text", ["", "x" * 256, "\ud800"])
async def test_an_owner_or_key_that_can_not_be_stored_as_it_is_is_refused(text: str):
    manager = CallbackManager()
    session = await manager.create_session(owner="x" * 255)
    with pytest.raises(ValueError, match=r"^owner (must have 1 to 255|holds half)"):
        await manager.create_session(owner=text)
    with pytest.raises(ValueError, match=r"^idempotency_key (must have 1 to 255|holds half)"):
        await session.emit("step", {}, idempotency_key=text)
    with pytest.raises(ValueError, match=r"^idempotency_key (must have 1 to 255|holds half)"):
        session.emit_soon("step", {}, idempotency_key=text)
    with pytest.raises(TypeError, match="idempotency_key must be a string, not int"):
        await session.emit("step", {}, idempotency_key=5)  # type: ignore[arg-type]
    assert (await session.stats()).events_sent == 0
    assert await session.emit("step", {}, idempotency_key="ключ") is not None


async def test_a_session_that_is_read_does_not_expire_though_another_process_looks():
    """Its reader is told of every second, if its time to live is short."""
    clock = ManualClock(1e9)
    store = ToldStore(clock=clock)
    reads, sweeps = CallbackManager(store), CallbackManager(store)
    session = await reads.create_session({"ttl": 2.0})
    async with reads, session.subscribe():
        for _ in range(3):
            told = store.log.count("touch")
            await until(lambda told=told: store.log.count("touch") > told)
            clock.advance(1.5)
            await sweeps.store.sweep()
        assert (await reads.get_session(session.id)).id == session.id


async def test_a_session_that_is_pushed_can_be_read_too():
    transport = Told()
    async with CallbackManager(transports=[transport]) as manager:
        session = await manager.create_session({"delivery_method": "told"})
        await emit_numbers(session, range(3))
        events = await take(session.subscribe(), 3)
        await until(lambda: len(transport.events) == 3)
    assert transport.events == events


async def test_operators_hear_of_deliveries_that_are_given_up():
    async def act(_delivery: Delivery) -> None:
        raise Gone("410")

    heard: list[Event] = []
    manager = CallbackManager(transports=[Told(act)])
    manager.register_callback("delivery.dead", heard.append)
    async with manager:
        session = await manager.create_session({"delivery_method": "told"})
        await emit_numbers(session, [1])
        await until(lambda: heard)
        assert len(await take(session.subscribe(), 1)) == 1
        assert (await session.stats()).events_sent == 1
    (event,) = heard
    assert (event.event_type, event.session_id) == ("delivery.dead", session.id)
    assert event.position.epoch == OPERATORS
    assert isinstance(event.data, dict)


# What is looked after.


async def test_a_session_that_is_read_does_not_expire_and_one_that_is_not_does():
    clock = ManualClock(1e9)
    manager = CallbackManager(MemoryStore(clock=clock))
    idle = await manager.create_session({"ttl": 60})
    read = await manager.create_session({"ttl": 60})
    for_ever = await manager.create_session({"ttl": None})
    events = read.subscribe()
    for _ in range(3):
        clock.advance(50)
        # Entering looks after all of it first.
        async with manager:
            await until_swept(manager)
            events = events if not events._is_closed else read.subscribe()
        events = read.subscribe()
    assert {each.id async for each in manager.sessions()} == {read.id, for_ever.id}
    with pytest.raises(UnknownSessionError):
        await idle.progress(1)
    del events


async def until_swept(manager: CallbackManager) -> None:
    """Wait until the manager has looked after its sessions once."""
    probe = await manager.create_session({"ttl": None})
    await settle(50)
    await manager.delete_session(probe.id)


async def test_a_store_that_fails_is_looked_after_again_later(caplog: pytest.LogCaptureFixture):
    class Failing(MemoryStore):
        def __init__(self) -> None:
            super().__init__()
            self.sweeps = 0

        async def sweep(self, *, limit: int = 100) -> Swept:
            self.sweeps += 1
            raise StoreUnavailableError("hunter2 is away")

    store = Failing()
    async with CallbackManager(store) as manager:
        await until(lambda: store.sweeps)
        session = await manager.create_session()
        await until(session.emit_soon("n").done)
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("callbackkit.sessions", "ERROR")
    assert vars(record)["store"].startswith("<MemoryStore")


async def test_what_was_read_is_told_to_the_store_now_and_then():
    manager, store = told_manager()
    async with manager:
        session = await manager.create_session()
        await emit_numbers(session, range(3))
        events = session.subscribe()
        await take(events, 2)
        await until_some(lambda: delivered(store, session))
    assert await delivered(store, session) == 2


async def delivered(store: MemoryStore, session: Session) -> int:
    return (await store.get_session(session.id)).delivered


def test_many_sessions_expire_and_leave_nothing_behind():
    """100 000 of them; whoever else runs meanwhile gets his turn between slices."""
    clock = ManualClock(1e9)
    store = SlicedStore(clock=clock)
    manager = CallbackManager(store)
    turns = 0

    async def fill() -> None:
        for number in range(100_000):
            session = await manager.create_session({"ttl": 60})
            if number % 100 == 0:
                await emit_numbers(session, [number])

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await checkpoint()

    async def sweep() -> None:
        async with anyio.create_task_group() as group, manager:
            group.start_soon(others)
            await until(lambda: not store._sessions)
            group.cancel_scope.cancel()

    gc.collect()
    before = sys.getallocatedblocks()
    anyio.run(fill)
    held = sys.getallocatedblocks() - before
    clock.advance(61)
    anyio.run(sweep)
    gc.collect()
    assert not len(manager._filters)
    assert sys.getallocatedblocks() - before < held / 20
    assert anyio.run(manager.stats).total_sessions == 0
    assert store.largest == 100
    assert turns >= 500
    # A slice takes about a millisecond; of the processor, so that others don't count.
    assert sorted(store.took)[len(store.took) * 99 // 100] < 0.01


class SlicedStore(MemoryStore):
    """Notes how many sessions each sweep took, and how long."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.took: list[float] = []
        self.largest = 0

    async def sweep(self, *, limit: int = 100) -> Swept:
        began = time.thread_time()
        swept = await super().sweep(limit=limit)
        self.took.append(time.thread_time() - began)
        self.largest = max(self.largest, len(swept.sessions))
        return swept


async def test_nothing_secret_stands_in_the_log(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG, "callbackkit")

    async def act(_delivery: Delivery) -> None:
        raise OSError("down")

    manager = CallbackManager(transports=[Told(act, name="webhook")], drain_timeout=0.2)
    config = {
        "webhook_url": "https://example.com/hook?key=hunter2-query",
        "headers": {"Authorization": "Bearer hunter2-header"},
        "options": {"secret": "hunter2-option"},
        "retry_attempts": 0,
    }
    async with manager:
        session = await manager.create_session(config)
        await session.emit("n", {"password": "hunter2-data"})
        await until_some(session.dead_letters)
    text = "".join(f"{record.getMessage()} {vars(record)}" for record in caplog.records)
    assert caplog.records
    assert "hunter2" not in text
    for secret in (session.token, session.config.webhook_secret):
        assert secret is not None
        assert secret not in text


# Several processes, and changes that meet.


async def two_handles(tmp_path: Path, config: Any) -> tuple[Session, Session, FailpointStore]:
    """Return a session as two managers of one file hold it, and the store of the first."""
    path = tmp_path / "events.db"
    store = FailpointStore(SQLiteStore(path))
    here, there = CallbackManager(store), CallbackManager(SQLiteStore(path))
    session = await here.create_session(config)
    return session, await there.get_session(session.id), store


async def close(*sessions: Session) -> None:
    for session in sessions:
        await session.manager.store.aclose()


async def test_changes_that_meet_are_both_kept(tmp_path: Path):
    here, there, store = await two_handles(tmp_path, {"events": ["n"], "headers": {"a": "1"}})
    pause = store.pause("update_session")
    async with anyio.create_task_group() as group:
        group.start_soon(here.update, {"events": ["m"]})
        assert await pause.reached()
        await there.update({"headers": {"b": "2"}})
        pause.release()
    for handle in (here, there):
        config = (await handle.manager.get_session(handle.id)).config
        assert (config.events, config.headers) == (("m",), {"b": "2"})
    await close(here, there)


async def test_a_change_that_is_undone_meanwhile_is_made_all_the_same(tmp_path: Path):
    here, there, store = await two_handles(tmp_path, {"events": ["n"]})
    pause = store.pause("update_session")
    async with anyio.create_task_group() as group:
        group.start_soon(here.update, {"events": ["m"]})
        assert await pause.reached()
        await there.update({"events": None})
        await there.update({"events": ["n"]})
        pause.release()
    assert (await there.manager.get_session(here.id)).config.events == ("m",)
    await close(here, there)


async def test_a_change_that_failed_changed_nothing(tmp_path: Path):
    here, there, store = await two_handles(tmp_path, {"events": ["n"]})
    store.fail("update_session", StoreUnavailableError("disk full"))
    with pytest.raises(StoreUnavailableError):
        await here.update({"events": ["m"]})
    assert await here.emit("m") is None
    assert (await there.manager.get_session(here.id)).config.events == ("n",)
    assert (await here.update({"events": ["m"]})).config.events == ("m",)
    await close(here, there)


class Choosy(Told):
    """Takes no URL but one, and some events only if they are named."""

    only_when_named = frozenset({"m"})

    def check(self, config: DeliveryConfig) -> None:
        if config.webhook_url == "https://example.com/wrong":
            raise ConfigError("webhook_url", "is wrong")


async def test_a_change_is_checked_by_the_transport_and_what_it_is_owed_goes_by_it():
    transport = Choosy()
    async with CallbackManager(transports=[transport]) as manager:
        session = await manager.create_session({"delivery_method": "told"})
        with pytest.raises(ConfigError, match="webhook_url: is wrong"):
            await session.update({"webhook_url": "https://example.com/wrong"})
        await session.emit("m")
        await session.update({"headers": {"a": "1"}})
        await session.emit("m")
        await session.update({"events": ["m"], "webhook_url": "https://example.com/right"})
        await session.emit("m")
        await until(lambda: transport.done)
        (delivery,) = transport.done
        assert [each.position.seq for each in delivery.events] == [3]
        assert delivery.config.webhook_url == "https://example.com/right"


async def test_a_change_takes_the_transport_of_the_session():
    store = MemoryStore()
    session = await CallbackManager(store, [Told()]).create_session({"delivery_method": "told"})
    with pytest.raises(ConfigError, match="no transport 'told' here"):
        await CallbackManager(store).update_session(session.id, {"events": None})


async def test_the_headers_of_one_server_are_not_sent_to_another():
    """Nobody is shown them; who may change the URL shall not have them sent to himself."""
    manager = CallbackManager(transports=[Hook()])
    wanted = {"webhook_url": "https://example.com/hook", "headers": {"authorization": "Bearer 1"}}
    session = await manager.create_session(wanted)
    session = await session.update({"webhook_url": "https://example.com/other"})
    assert session.config.headers == {"authorization": "Bearer 1"}
    for other in ("https://example.net/", "http://example.com/", "https://example.com:8443/"):
        assert (await session.update({"webhook_url": other})).config.headers == {}
        session = await session.update(wanted)
    changes = {"webhook_url": "https://example.net/", "headers": {"a": "2"}}
    assert (await session.update(changes)).config.headers == {"a": "2"}


async def test_a_webhook_keeps_its_url_and_its_secret():
    manager = CallbackManager(transports=[Hook()])
    session = await manager.create_session({"webhook_url": "https://example.com/hook"})
    changed = await session.update({"webhook_url": "https://example.com/other"})
    assert changed.config.webhook_secret == session.config.webhook_secret is not None
    with pytest.raises(ConfigError, match="webhook_url: is required"):
        await session.update({"webhook_url": None})


class Hook(Told):
    name = "webhook"


async def test_what_other_processes_clear_is_a_gap_here(tmp_path: Path):
    here, there, _ = await two_handles(tmp_path, None)
    await emit_numbers(here, range(5))
    last = (await take(here.subscribe(), 5))[-1]
    assert await there.clear(last.position) == 4
    async with here.subscribe(after=f"{last.position.epoch}-1") as reader:
        gap, event = await take(reader, 2)
    assert (gap.is_gap, numbers_of([event])) == (True, [4])
    await close(here, there)


# Noting what was read otherwise.


async def test_what_was_answered_with_a_page_counts_as_read():
    manager = CallbackManager()
    session = await manager.create_session()
    await emit_numbers(session, range(5))
    page = await manager.store.read(session.id, limit=3)
    manager.note_read(session.id, Position(page.epoch, page.records[-1].seq))
    stats = await session.stats()
    assert (stats.events_delivered, stats.queued_events) == (3, 2)


async def test_a_moment_is_located():
    manager = CallbackManager()
    session = await manager.create_session()
    await emit_numbers(session, range(5))
    events = await take(session.subscribe(), 5)
    for event in events:
        moment = round(event.timestamp.timestamp() * 1e6)
        assert await manager.locate(session.id, moment) == event.position
    with pytest.raises(UnknownSessionError):
        await manager.locate("never", 0)


# Filters that change while events are handed over.


async def test_what_is_handed_over_goes_by_the_filter_as_it_is_when_it_is_not_at_hand():
    store = MemoryStore()
    async with CallbackManager(store) as manager, CallbackManager(store) as other:
        session = await manager.create_session({"events": ["n"]})
        await other.update_session(session.id, {"events": ["m"]})
        manager._filters.forget(session.id)
        futures = [session.emit_soon(name) for name in "nmn"]
        await until(lambda: all(each.done() for each in futures))
        assert [each.result(0) is None for each in futures] == [True, False, True]
        await manager.delete_session(session.id)
        future = session.emit_soon("m")
        await until(future.done)
        assert isinstance(future.exception(0), SessionDeletedError)


# Another secret.

SECRETS = ["whsec_" + base64.b64encode(bytes([n]) * 24).decode() for n in range(8)]
HOOKED = {"webhook_url": "https://example.com/hook", "webhook_secret": SECRETS[0]}


def secrets_of(session: Session) -> tuple[str, ...]:
    return session.config.secrets_at(time.time())


async def looked_up(session: Session) -> Session:
    return await session.manager.get_session(session.id)


async def test_a_secret_is_made_and_signs_beside_the_one_before():
    manager = CallbackManager(transports=[Hook()])
    session = await manager.create_session(HOOKED)
    secret = await session.rotate_secret()
    assert secret not in SECRETS
    assert secrets_of(await looked_up(session)) == (secret, SECRETS[0])
    (retired,) = (await looked_up(session)).config.retired_secrets
    assert 86_390 < retired.until - time.time() <= 86_400
    assert await manager.rotate_secret(session.id) != secret


async def test_a_secret_may_be_given_and_sign_alone_at_once():
    session = await CallbackManager(transports=[Hook()]).create_session(HOOKED)
    assert await session.rotate_secret(SECRETS[1], overlap=0) == SECRETS[1]
    assert secrets_of(await looked_up(session)) == (SECRETS[1],)


async def test_a_change_keeps_the_secrets():
    session = await CallbackManager(transports=[Hook()]).create_session(HOOKED)
    await session.rotate_secret(SECRETS[1], overlap=604_800)
    changed = await session.update({"webhook_url": "https://example.com/other"})
    assert secrets_of(changed) == (SECRETS[1], SECRETS[0])
    assert changed.config.shown().keys() == CallbackConfig().shown().keys()
    for changes in ({"retired_secrets": []}, {"webhook_secret": SECRETS[2]}):
        with pytest.raises(ConfigError, match="what can be: events"):
            await session.update(changes)
    with pytest.raises(ConfigError, match="retired_secrets: is unknown"):
        await session.update({"retired_secrets": []})


@pytest.mark.parametrize("overlap", [-1, 604_801, math.nan, math.inf, True, "1", None], ids=repr)
async def test_two_secrets_count_a_week_at_most(overlap: Any):
    session = await CallbackManager(transports=[Hook()]).create_session(HOOKED)
    with pytest.raises(ConfigError, match=r"^overlap: must be seconds from 0 to 604800$"):
        await session.rotate_secret(overlap=overlap)
    assert secrets_of(await looked_up(session)) == (SECRETS[0],)


@pytest.mark.parametrize("secret", ["", "s3cret", "whsec_s3cret", 7], ids=repr)
async def test_what_is_no_secret_is_refused_and_not_repeated(secret: Any):
    session = await CallbackManager(transports=[Hook()]).create_session(HOOKED)
    with pytest.raises(ConfigError, match=r"^webhook_secret: must be") as caught:
        await session.rotate_secret(secret)
    assert "s3cret" not in repr(caught.value)
    assert secrets_of(await looked_up(session)) == (SECRETS[0],)


async def test_a_session_that_is_not_signed_has_no_secret_to_replace():
    manager = CallbackManager(transports=[Told()])
    for config in (None, {"delivery_method": "told"}):
        session = await manager.create_session(config)
        with pytest.raises(ConfigError, match=r"^webhook_secret: nothing of this"):
            await session.rotate_secret()


async def test_a_session_that_has_ended_keeps_its_secret():
    session = await CallbackManager(transports=[Hook()]).create_session(HOOKED)
    await session.end()
    with pytest.raises(SessionEndedError):
        await session.rotate_secret()
    with pytest.raises(UnknownSessionError):
        await session.manager.rotate_secret("x")


async def test_a_secret_can_be_replaced_where_nothing_is_delivered():
    store = MemoryStore()
    hook = Hook(only_when_named=frozenset({"m"}))
    session = await CallbackManager(store, [hook]).create_session(HOOKED)
    await CallbackManager(store).rotate_secret(session.id, SECRETS[1])
    assert secrets_of(await looked_up(session)) == (SECRETS[1], SECRETS[0])
    assert (await store.get_session(session.id)).unowed == ("m",)


async def test_rotations_and_changes_that_meet_are_all_kept(tmp_path: Path):
    here, there, store = await two_handles(tmp_path, {"webhook_secret": SECRETS[0]})
    pause = store.pause("update_session")
    async with anyio.create_task_group() as group:
        group.start_soon(here.rotate_secret, SECRETS[1])
        assert await pause.reached()
        await there.rotate_secret(SECRETS[2])
        await there.update({"events": ["n"]})
        pause.release()
    for handle in (here, there):
        found = await looked_up(handle)
        assert secrets_of(found) == (SECRETS[1], SECRETS[2], SECRETS[0])
        assert found.config.events == ("n",)
    await close(here, there)


class Signing(Hook):
    """Keeps what each attempt would have signed with."""

    def __init__(self, act: Callable[[Delivery], Awaitable[None]]) -> None:
        super().__init__(act)
        self.signed: list[tuple[str, ...]] = []

    async def send(self, delivery: Delivery) -> None:
        config = delivery.config
        assert isinstance(config, CallbackConfig)
        self.signed.append(config.secrets_at(time.time()))
        await super().send(delivery)


@pytest.mark.parametrize("kind", [MemoryStore, SQLiteStore])
async def test_what_is_under_way_signs_with_both_from_its_next_attempt_on(
    kind: type[Any], tmp_path: Path
):
    async def act(delivery: Delivery) -> None:
        if len(transport.tried) == 1:
            await session.rotate_secret(SECRETS[1])
            raise Retry(0.0)
        if len(transport.tried) == 2:
            await session.rotate_secret(SECRETS[2], overlap=0.0)

    transport = Signing(act)
    store = kind(tmp_path / "events.db") if kind is SQLiteStore else kind()
    async with CallbackManager(store, [transport]) as manager:
        session = await manager.create_session(HOOKED)
        await session.emit("n")
        await session.emit("n")
        await until(lambda: len(transport.done) == 2)
    # The last one follows at once, without the session having been let go in between.
    assert transport.signed == [
        (SECRETS[0],),
        (SECRETS[1], SECRETS[0]),
        (SECRETS[2], SECRETS[0]),
    ]


# Endpoints.


async def test_an_endpoint_tells_how_it_does():
    async def act(delivery: Delivery) -> None:
        raise Gone("HTTP 410")

    async with CallbackManager(transports=[Hook(act)]) as manager:
        session = await manager.create_session(HOOKED)
        health = await session.endpoint()
        assert (health.name, health.phase, health.is_healthy) == (
            f"webhook:{session.id}",
            "closed",
            True,
        )
        await session.emit("n")
        await until_some(session.dead_letters)
        health = await manager.endpoint(session.id)
        assert (health.phase, health.is_healthy) == ("disabled", False)
        assert (health.reason, health.attempts) == ("Gone: HTTP 410", 1)


async def test_what_is_read_or_not_delivered_here_has_no_endpoint():
    store = MemoryStore()
    manager = CallbackManager(store, [Hook()])
    read = await manager.create_session()
    with pytest.raises(ConfigError, match=r"^delivery_method: 'sse' is read, and has no endpoint"):
        await read.endpoint()
    session = await manager.create_session(HOOKED)
    with pytest.raises(ConfigError, match=r"^delivery_method: no transport 'webhook' here"):
        await CallbackManager(store).endpoint(session.id)
    with pytest.raises(UnknownSessionError):
        await manager.endpoint("x")
