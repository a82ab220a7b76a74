"""The watchdog of the connections."""

import asyncio
import math

import anyio
import pytest
from anyio.lowlevel import checkpoint

from callbackkit import CallbackManager, Session
from callbackkit.transports.connections import Connection, Connections, Message
from tests.sessions.rig import PATIENCE, settle, until


@pytest.fixture
async def session() -> Session:
    return await CallbackManager().create_session()


def connection(session: Session, scope: anyio.CancelScope | None = None) -> Connection:
    return Connection(session.subscribe(), scope or anyio.CancelScope())


@pytest.mark.parametrize("seconds", [0, -1, math.nan, 0.0])
def test_seconds_must_be_above_0(seconds: float):
    with pytest.raises(ValueError, match="heartbeat must be above 0 seconds, not"):
        Connections(heartbeat=seconds)
    with pytest.raises(ValueError, match="write_timeout must be above 0 seconds, not"):
        Connections(write_timeout=seconds)


async def test_it_shows_how_many_are_open(session: Session):
    connections = Connections(write_timeout=None)
    assert repr(connections) == "<Connections, 0 open>"
    one = connection(session)
    connections.add(one)
    assert (repr(connections), len(connections)) == ("<Connections, 1 open>", 1)
    connections.discard(one)
    connections.discard(one)
    assert len(connections) == 0


async def test_time_passes_only_while_there_are_connections(session: Session):
    connections = Connections(heartbeat=0.02)
    one, two = connection(session), connection(session)
    for _ in range(2):
        began = connections.now
        connections.add(one)
        connections.add(two)
        connections.discard(one)
        await until(lambda: connections.now > began)  # noqa: B023 - called here
        connections.discard(two)
        await settle()
        ended = connections.now
        await anyio.sleep(0.03)
        assert connections.now == ended


async def test_one_task_looks_at_all(session: Session):
    """Its clock would run faster otherwise."""
    connections = Connections(heartbeat=0.02)
    kept = [connection(session) for _ in range(20)]
    with anyio.fail_after(PATIENCE):
        for _ in range(20):
            for each in kept:
                connections.add(each)
            for each in kept:
                connections.discard(each)
        connections.add(kept[0])
        began, now = anyio.current_time(), connections.now
        await until(lambda: connections.now >= now + 0.05)
        assert anyio.current_time() - began >= 0.05 * 0.9
        connections.discard(kept[0])


async def test_who_is_silent_is_asked_for_a_heartbeat_and_who_was_sent_something_is_not(
    session: Session,
):
    connections = Connections(heartbeat=0.04)
    silent, busy = connection(session), connection(session)
    connections.add(silent)
    connections.add(busy)

    async def send(_message: Message) -> None:
        await checkpoint()

    while not silent.is_beat_due:
        await connections.send(busy, send, {})
        assert not busy.is_beat_due
    # Whoever waits is told.
    with anyio.fail_after(PATIENCE):
        await silent.subscription.more()
        await silent.subscription.more()
    connections.discard(silent)
    connections.discard(busy)


async def test_who_comes_is_not_silent_yet(session: Session):
    connections = Connections(heartbeat=0.04)
    first = connection(session)
    connections.add(first)
    await until(lambda: first.is_beat_due)
    second = connection(session)
    connections.add(second)
    began = connections.now
    await until(lambda: connections.now > began)
    assert not second.is_beat_due
    connections.discard(first)
    connections.discard(second)


@pytest.mark.parametrize("kind", ["send", "beat"])
async def test_what_takes_too_long_to_send_is_cancelled(session: Session, kind: str):
    connections = Connections(write_timeout=0.04)
    with anyio.fail_after(PATIENCE), anyio.CancelScope() as scope:
        one = connection(session, scope)
        connections.add(one)

        async def send(_message: Message) -> None:
            await anyio.sleep_forever()

        await getattr(connections, kind)(one, send, {})
    assert scope.cancelled_caught
    connections.discard(one)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("write_timeout", [None, 30.0])
async def test_at_a_drain_nobody_waits_long_for_a_client(
    session: Session, write_timeout: float | None
):
    connections = Connections(write_timeout=write_timeout, heartbeat=0.1)
    with anyio.fail_after(PATIENCE), anyio.CancelScope() as scope:
        one = connection(session, scope)
        connections.add(one)

        async def send(_message: Message) -> None:
            await until(lambda: connections.now > 0.2)
            session.manager.begin_drain()
            await anyio.sleep_forever()

        await connections.send(one, send, {})
    assert scope.cancelled_caught
    assert connections.now < 10
    connections.discard(one)


async def test_it_is_looked_after_as_long_as_it_is_served(session: Session):
    connections = Connections()
    for failure in (None, ConnectionResetError(), ValueError()):
        one = connection(session)

        async def serve() -> None:
            assert len(connections) == 1
            if failure is not None:  # noqa: B023 - called here
                raise failure  # noqa: B023 - called here

        if isinstance(failure, ValueError):
            with pytest.raises(ValueError):  # noqa: PT011 - it has no text
                await connections.run(one, serve)
        else:
            await connections.run(one, serve)
        assert len(connections) == 0
        assert one.scope.cancel_called


async def test_what_is_not_sending_is_never_cancelled(session: Session):
    connections = Connections(heartbeat=1_000, write_timeout=0.02)
    with anyio.CancelScope() as scope:
        one = connection(session, scope)
        connections.add(one)
        await connections.send(one, _take, {})
        began = connections.now
        await until(lambda: connections.now > began + 0.1)
    assert not scope.cancelled_caught
    connections.discard(one)


async def _take(_message: Message) -> None:
    await checkpoint()


async def test_it_looks_at_least_once_a_second(session: Session):
    """So that nobody is given up, or has a heartbeat, much later than was asked."""
    connections = Connections(heartbeat=100, write_timeout=100)
    one = connection(session)
    connections.add(one)
    with anyio.fail_after(PATIENCE):
        await until(lambda: connections.now)
    assert connections.now == 1.0
    connections.discard(one)


async def test_every_so_many_heartbeats_the_store_is_looked_at():
    manager = CallbackManager()
    manager.store.reconcile = 30.0
    session = await manager.create_session()
    connections = Connections(heartbeat=10.0)
    one = connection(session)
    with anyio.move_on_after(0):
        await one.subscription.more(timeout=0)
    stale = []
    for _ in range(6):
        one.subscription.tail.is_stale = False
        await connections.beat(one, _take, {})
        stale.append(one.subscription.tail.is_stale)
    assert stale == [False, False, True] * 2


async def test_closing_wakes_the_sender(session: Session):
    one = connection(session)
    await one.subscription.begin()
    async with anyio.create_task_group() as tasks:

        async def read() -> None:
            while one.closing is None:
                await one.subscription.more()

        tasks.start_soon(read)
        await settle()
        one.close(1008, "no")
    assert one.closing == (1008, "no")


def test_an_event_loop_that_ended_with_connections_leaves_them_to_the_next():
    connections = Connections(heartbeat=0.02)
    manager = CallbackManager()

    async def left() -> Connection:
        one = connection(await manager.create_session())
        connections.add(one)
        return one

    async def looks(first: Connection) -> None:
        one = connection(await manager.create_session())
        connections.add(one)
        await until(lambda: one.is_beat_due and first.is_beat_due)
        connections.discard(one)
        connections.discard(first)

    # asyncio's own: the watchdog is cancelled before it began.
    first = asyncio.run(left())
    asyncio.run(looks(first))
    assert len(connections) == 0
