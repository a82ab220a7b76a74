"""A transport that is bound to one connection."""

from collections.abc import Awaitable, Callable

import anyio
import pytest

from callbackkit import (
    CallbackManager,
    Delivery,
    Gone,
    PositionError,
    Rejected,
    Retry,
    RetryPolicy,
    Session,
    SessionDeletedError,
)
from callbackkit.delivery.transport import Transport
from tests.sessions.rig import Told, emit_numbers, numbers_of, settle, until

# So long a connection that hangs is waited for.
SOON = 0.02


@pytest.fixture
def manager() -> CallbackManager:
    return CallbackManager()


@pytest.fixture
async def session(manager: CallbackManager) -> Session:
    session = await manager.create_session()
    await emit_numbers(session, range(3))
    return session


def on(number: int, does: Callable[[], Awaitable[object]]) -> Callable[[Delivery], Awaitable[None]]:
    """Return an act that does something for one of the events."""

    async def act(delivery: Delivery) -> None:
        if delivery.event.data["n"] == number:
            await does()

    return act


def raising(error: BaseException) -> Callable[[], Awaitable[object]]:
    async def does() -> None:
        raise error

    return does


async def test_it_sends_all_events_until_the_session_has_ended(session: Session):
    transport = Told()
    async with anyio.create_task_group() as group:
        group.start_soon(session.serve, transport)
        await until(lambda: len(transport.done) == 3)
        await emit_numbers(session, [3])
        await session.end()
    assert numbers_of(transport.events) == [0, 1, 2, 3]
    assert transport.log == ["start", "aclose"]
    first = transport.done[0]
    assert (first.attempt, first.session_id, first.config) == (1, session.id, session.config)
    assert first.id == f"{session.id}_{first.event.position.epoch}_1"
    assert len({delivery.id for delivery in transport.done}) == 4


async def test_it_goes_on_behind_a_position(session: Session):
    transport = Told()
    await session.end()
    await session.serve(transport)
    again = Told()
    await session.serve(again, after=transport.events[0])
    assert numbers_of(again.events) == [1, 2]
    with pytest.raises(PositionError):
        await session.serve(again, after="nonsense")


async def test_a_gap_is_sent_too(session: Session):
    transport = Told()
    await session.end()
    await session.serve(transport, after="f00-3")
    assert transport.events[0].is_gap
    assert numbers_of(transport.events) == [0, 1, 2]


async def test_a_client_that_is_gone_ends_it(session: Session):
    transport = Told(on(1, raising(Gone("closed"))))
    await session.serve(transport)
    assert numbers_of(transport.events) == [0]
    assert transport.log == ["start", "aclose"]
    stats = await session.stats()
    assert (stats.events_delivered, stats.queued_events) == (1, 2)


async def test_an_event_to_be_sent_again_is_sent_again_by_the_schedule(session: Session):
    attempts: list[int] = []

    async def act(delivery: Delivery) -> None:
        if delivery.event.data["n"] == 1:
            attempts.append(delivery.attempt)
            if delivery.attempt < 3:
                raise Retry(reason="busy")

    transport = Told(act)
    await session.end()
    await session.serve(transport)
    assert attempts == [1, 2, 3]
    assert numbers_of(transport.events) == [0, 1, 2]
    assert len({delivery.id for delivery in transport.tried}) == 3


async def test_one_that_wants_to_be_sent_again_too_often_is_an_error(session: Session):
    transport = Told(on(1, raising(Retry(reason="busy"))))
    with pytest.raises(Retry) as caught:
        await session.serve(transport)
    assert caught.value.reason == "busy"
    assert [delivery.attempt for delivery in transport.tried] == [1, 1, 2, 3]
    assert transport.log == ["start", "aclose"]


async def test_it_waits_as_long_as_the_client_says(session: Session):
    async def act(delivery: Delivery) -> None:
        if delivery.attempt == 1:
            raise Retry(after=SOON)

    transport = Told(act, retry=RetryPolicy(schedule=(3600.0,), jitter=0.0))
    await session.end()
    with anyio.fail_after(5):
        await session.serve(transport)
    assert numbers_of(transport.events) == [0, 1, 2]


async def test_an_event_that_is_rejected_is_skipped(
    manager: CallbackManager, caplog: pytest.LogCaptureFixture
):
    session = await manager.create_session({"headers": {"X-Key": "hunter2"}})
    await emit_numbers(session, range(3))
    transport = Told(on(1, raising(Rejected("no hunter2"))))
    await session.end()
    await session.serve(transport)
    assert numbers_of(transport.events) == [0, 2]
    assert [delivery.attempt for delivery in transport.tried] == [1, 1, 1]
    (record,) = caplog.records
    assert record.message == "an event was rejected, and is skipped"
    assert record.__dict__["delivery_error"] == "Rejected: no ***"
    assert record.__dict__["delivery_id"] == transport.tried[1].id


async def test_anything_else_that_is_raised_ends_it_and_is_raised(session: Session):
    transport = Told(on(2, raising(OSError("broken pipe"))))
    with pytest.raises(OSError, match="broken pipe"):
        await session.serve(transport)
    assert transport.log == ["start", "aclose"]
    assert (await session.stats()).events_delivered == 2


async def test_a_client_that_does_not_read_is_given_up(session: Session):
    transport = Told(on(1, anyio.sleep_forever), timeout=SOON)
    with anyio.fail_after(5), pytest.raises(TimeoutError):
        await session.serve(transport)
    assert numbers_of(transport.events) == [0]


async def test_a_transport_that_can_not_start_is_closed(session: Session):
    class Broken(Told):
        async def start(self) -> None:
            raise OSError("no socket")

    transport = Broken()
    with pytest.raises(OSError, match="no socket"):
        await session.serve(transport)
    assert transport.log == ["aclose"]
    assert session.manager._readers.kinds().total() == 0


async def test_one_that_can_not_be_closed_hides_nothing(
    session: Session, caplog: pytest.LogCaptureFixture
):
    class Broken(Told):
        async def aclose(self) -> None:
            raise OSError("closed twice")

    with pytest.raises(OSError, match="broken pipe"):
        await session.serve(Broken(on(0, raising(OSError("broken pipe")))))
    (record,) = caplog.records
    assert record.name == "callbackkit.sessions"
    assert vars(record)["session_id"] == session.id


async def test_only_what_was_sent_counts_as_read(session: Session):
    gate = anyio.Event()
    transport = Told(on(1, gate.wait))
    async with anyio.create_task_group() as group:
        group.start_soon(session.serve, transport)
        await until(lambda: len(transport.tried) == 2)
        assert (await session.stats()).events_delivered == 1
        gate.set()
        await until(lambda: len(transport.done) == 3)
        await settle()
        assert (await session.stats()).events_delivered == 3
        await session.end()


@pytest.mark.parametrize(("name", "figure"), [("sse", "has_sse"), ("websocket", "has_websocket")])
async def test_what_it_is_read_through_is_counted(session: Session, name: str, figure: str):
    transport = Told(name=name)
    async with anyio.create_task_group() as group:
        group.start_soon(session.serve, transport)
        await until(lambda: transport.done)
        assert (await session.stats())[figure]
        await session.end()
    assert not (await session.stats())[figure]


async def test_cancelling_it_closes_the_connection(session: Session):
    transport = Told(on(1, anyio.sleep_forever))
    async with anyio.create_task_group() as group:
        group.start_soon(session.serve, transport)
        await until(lambda: len(transport.tried) == 2)
        group.cancel_scope.cancel()
    assert transport.log == ["start", "aclose"]
    assert session.manager._readers.kinds().total() == 0


async def test_deleting_the_session_is_told(manager: CallbackManager, session: Session):
    transport: Transport = Told()

    async def serve() -> None:
        with pytest.raises(SessionDeletedError):
            await session.serve(transport)

    async with anyio.create_task_group() as group:
        group.start_soon(serve)
        await settle()
        await manager.delete_session(session.id)


async def test_a_session_may_be_served_to_several_clients_at_once(session: Session):
    transports = [Told() for _ in range(5)]
    async with anyio.create_task_group() as group:
        for transport in transports:
            group.start_soon(session.serve, transport)
        await settle()
        await session.end()
    assert all(numbers_of(transport.events) == [0, 1, 2] for transport in transports)
