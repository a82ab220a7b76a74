"""A session as messages of a WebSocket."""

from typing import Any

import anyio
import pytest

from callbackkit import (
    CallbackManager,
    Event,
    LimitError,
    PayloadError,
    Session,
    SessionDeletedError,
    SessionEndedError,
    StoreUnavailableError,
)
from callbackkit.transports.connections import Connections
from callbackkit.transports.websocket import serve_websocket
from callbackkit.wire.envelope import encode_event
from tests.sessions.rig import PATIENCE, ToldStore, emit_numbers, settle, until
from tests.transports.rig import Client, nothing_is_left, numbers, websocket


def text(value: str) -> dict[str, Any]:
    return {"type": "websocket.receive", "text": value}


class Heard:
    """Keeps what the client said."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.all: list[Any] = []
        self.failure = failure

    async def __call__(self, message: Any) -> None:
        self.all.append(message)
        if self.failure is not None:
            raise self.failure


# What it is sent.


async def test_each_event_is_a_message(session: Session):
    first = await session.emit("n", {"n": 1})
    async with websocket(session) as client:
        await until(lambda: numbers(client.messages) == [1])
        second = await session.emit("n", {"n": 2})
        await until(lambda: numbers(client.messages) == [1, 2])
        await session.end()
    assert isinstance(first, Event)
    assert isinstance(second, Event)
    assert client.sent[:2] == [
        {"type": "websocket.send", "text": encode_event(event).decode()}
        for event in (first, second)
    ]


async def test_all_readers_are_sent_the_very_same_text(session: Session):
    connections = Connections()
    async with websocket(session, connections) as one:
        await emit_numbers(session, [1, 2])
        two = Client()
        async with anyio.create_task_group() as tasks:

            async def run() -> None:
                await serve_websocket(
                    session.subscribe(),
                    two.receive,
                    two.send,
                    connections=connections,
                    on_message=Heard(),
                )

            tasks.start_soon(run)
            await until(lambda: numbers(one.messages) == numbers(two.messages) == [1, 2])
            await session.end()
    two.close()
    assert one.sent[0]["text"] is two.sent[0]["text"]
    assert one.sent[1]["text"] is two.sent[1]["text"]


@pytest.mark.parametrize("count", [0, 1, 99, 100, 101, 150])
async def test_a_gap_is_a_message_and_then_all_comes(session: Session, count: int):
    await emit_numbers(session, range(count))
    async with websocket(session, after="f00-7") as client:
        await until(lambda: numbers(client.messages) == list(range(count)) and client.sent)
        await emit_numbers(session, [count])
        await until(lambda: numbers(client.messages) == list(range(count + 1)))
        await session.end()
    assert [each["event_type"] for each in client.messages[:2]] == ["callbackkit.gap", "n"]


async def test_silence_is_broken_by_messages_that_are_no_events(session: Session):
    async with websocket(session, Connections(heartbeat=0.02)) as client:
        await until(lambda: len(client.sent) >= 2)
        await emit_numbers(session, [1])
        await until(lambda: numbers(client.messages) == [1])
        await session.end()
    beat = client.messages[0]
    assert set(beat) == {"event_type", "timestamp", "data"}
    assert (beat["event_type"], beat["data"]) == ("callbackkit.heartbeat", {})
    assert beat["timestamp"].endswith("Z")


async def test_what_was_sent_counts_as_read(session: Session):
    await emit_numbers(session, range(3))
    async with websocket(session) as client:
        await until(lambda: len(client.sent) == 3)
        await session.emit("n", {"n": 3})
        await until(lambda: len(client.sent) == 4)
        stats = await session.stats()
        assert (stats.events_delivered, stats.has_websocket) == (4, True)
        await session.end()


# How it ends.


async def test_the_end_is_a_message_and_a_close(session: Session):
    last = await session.emit("n", {"n": 1})
    async with websocket(session) as client:
        await until(lambda: numbers(client.messages) == [1])
        await settle()
        await session.end()
    end = client.messages[-1]
    assert (end["event_type"], end["data"]) == ("callbackkit.end", {"state": "ended"})
    assert last is not None
    assert end["id"] == last.id
    assert client.closing == (1000, "the session has ended")


async def test_the_end_of_a_session_without_events_has_its_position(session: Session):
    await session.end()
    async with websocket(session) as client:
        pass
    epoch = (await session.manager.store.get_session(session.id)).epoch
    assert client.messages[0]["id"] == f"{epoch}-0"


async def test_a_deleted_session_is_gone(manager: CallbackManager, session: Session):
    async with websocket(session) as client:
        await settle()
        await manager.delete_session(session.id)
    assert client.messages[-1]["data"] == {"state": "deleted"}
    assert client.closing == (4001, "the session is gone")


@pytest.mark.parametrize("when", ["before", "waiting"])
async def test_a_drain_asks_the_client_to_come_back(
    manager: CallbackManager, session: Session, when: str
):
    if when == "before":
        manager.begin_drain()
    async with websocket(session) as client:
        if when == "waiting":
            await emit_numbers(session, [1])
            await until(lambda: client.sent)
            await settle()
            manager.begin_drain()
    assert client.closing == (1012, "come back")


async def test_one_that_is_closed_asks_the_client_to_come_back(
    manager: CallbackManager, session: Session
):
    async with websocket(session) as client:
        await settle()
        manager._readers.close()
    assert client.closing == (1012, "come back")


async def test_a_store_that_fails_asks_the_client_to_come_back(store: ToldStore, session: Session):
    async def fails() -> None:
        raise StoreUnavailableError("away")

    store.before["read"] = fails
    async with websocket(session) as client:
        pass
    assert client.closing == (1012, "the store can't be read now; come back")


@pytest.mark.parametrize("when", ["waiting", "sending"])
async def test_a_client_that_goes_is_let_go(session: Session, when: str):
    async with websocket(session) as client:
        await settle()
        if when == "sending":
            client.block()
            await emit_numbers(session, [1])
            await until(lambda: client.waiting)
        client.say({"type": "websocket.disconnect", "code": 1001})
    assert client.sent == []


async def test_a_server_that_tells_by_an_error_that_the_client_has_left_is_understood(
    session: Session,
):
    async with websocket(session) as client:
        client.failure = OSError()
        await emit_numbers(session, [1])
    assert client.sent == []


@pytest.mark.parametrize("what", ["event", "heartbeat", "close"])
async def test_a_client_that_takes_nothing_is_given_up(session: Session, what: str):
    connections = Connections(heartbeat=0.02 if what == "heartbeat" else 1_000, write_timeout=0.04)
    async with websocket(session, connections) as client:
        client.block()
        if what == "event":
            await emit_numbers(session, [1])
        elif what == "close":
            client.say(text("x" * 65_537))
    assert client.sent == []


@pytest.mark.parametrize("count", [1, 2])
async def test_the_deadline_begins_with_the_write(session: Session, count: int):
    """Not with the silence before it."""
    connections = Connections(heartbeat=1_000, write_timeout=0.08)
    async with websocket(session, connections) as client:
        await until(lambda: connections.now > 0.2)
        blocked = client.block()
        await emit_numbers(session, range(count))
        await until(lambda: client.waiting)
        began = connections.now
        await until(lambda: connections.now > began)
        client.blocked = None
        blocked.set()
        await until(lambda: numbers(client.messages) == list(range(count)))
        await session.end()


@pytest.mark.parametrize("count", [0, 1, 2])
async def test_a_client_that_has_taken_all_is_never_given_up(session: Session, count: int):
    connections = Connections(heartbeat=1_000, write_timeout=0.02)
    async with websocket(session, connections) as client:
        await emit_numbers(session, range(count))
        await until(lambda: len(client.sent) == count)
        began = connections.now
        await until(lambda: connections.now > began + 0.1)
        await session.end()
    assert client.closing == (1000, "the session has ended")


async def test_a_connection_that_is_cancelled_leaves_nothing(session: Session):
    client, connections = Client(), Connections()
    async with anyio.create_task_group() as tasks:

        async def run() -> None:
            await serve_websocket(
                session.subscribe(),
                client.receive,
                client.send,
                connections=connections,
                on_message=Heard(),
            )

        tasks.start_soon(run)
        await emit_numbers(session, [1])
        await until(lambda: client.sent)
        tasks.cancel_scope.cancel()
    client.close()
    nothing_is_left(session.manager, connections)


# What the client says.


@pytest.mark.parametrize(
    ("said", "heard"),
    [
        (text('{"a": [1, null]}'), {"a": [1, None]}),
        (text("[1, 2]"), [1, 2]),
        (text("not JSON"), "not JSON"),
        (text(""), ""),
        (text("NaN"), "NaN"),
        (text("[" * 60_000), "[" * 60_000),
        (text("9" * 5_000), "9" * 5_000),
        ({"type": "websocket.receive", "bytes": b'{"a": "\xc3\xa9"}'}, {"a": "é"}),
        ({"type": "websocket.receive", "bytes": b"\xc3\xa9"}, "é"),
        ({"type": "websocket.receive", "bytes": b"1", "text": None}, 1),
        ({"type": "websocket.receive", "bytes": None, "text": "2"}, 2),
        (text("x" * 65_536), "x" * 65_536),
        (text("é" * 32_768), "é" * 32_768),
    ],
)
async def test_json_is_decoded_and_anything_else_is_text(session: Session, said: Any, heard: Any):
    hears = Heard()
    async with websocket(session, on_message=hears) as client:
        client.say(said)
        await until(lambda: hears.all)
        await session.end()
    assert hears.all == [heard]


@pytest.mark.parametrize(
    ("said", "code", "reason"),
    [
        (text("x" * 65_537), 1009, "a message may have 65536 bytes"),
        (text("é" * 32_769), 1009, "a message may have 65536 bytes"),
        ({"type": "websocket.receive", "bytes": b"\xff"}, 1007, "a message must be UTF-8"),
        ({"type": "websocket.receive", "bytes": b'{"a": "\xff"}'}, 1007, "a message must be UTF-8"),
        ({"type": "websocket.receive", "bytes": b"x\xff"}, 1007, "a message must be UTF-8"),
        (text("\ud800"), 1007, "a message must be UTF-8"),
    ],
)
async def test_what_is_no_message_is_refused(session: Session, said: Any, code: int, reason: str):
    hears = Heard()
    async with websocket(session, on_message=hears) as client:
        client.say(said)
    assert client.closing == (code, reason)
    assert hears.all == []


@pytest.mark.parametrize("said", ['{"a": 1e999}', '"\\ud800"', "[" * 200 + "]" * 200])
async def test_what_can_not_be_stored_is_refused(session: Session, said: str):
    async with websocket(session) as client:
        client.say(text(said))
    assert client.closing is not None
    assert client.closing[0] == 1008


@pytest.mark.parametrize(
    ("failure", "closing"),
    [
        (PayloadError("data.a", "is wrong"), (1008, str(PayloadError("data.a", "is wrong")))),
        (
            LimitError("max_event_bytes", 1, "bytes"),
            (1008, str(LimitError("max_event_bytes", 1, "bytes"))),
        ),
        (
            StoreUnavailableError("disk full, secret path"),
            (1011, "the message could not be stored"),
        ),
    ],
)
async def test_a_refusal_closes_with_its_reason(
    session: Session, failure: Exception, closing: tuple[int, str]
):
    async with websocket(session, on_message=Heard(failure)) as client:
        client.say(text("1"))
        client.say(text("2"))
    assert client.closing == closing


@pytest.mark.parametrize("word", ["x" * 300, "é" * 300, "€" * 300, "x" + "é" * 300])
async def test_a_reason_has_no_more_bytes_than_a_close_frame_takes(session: Session, word: str):
    error = PayloadError("", word)
    async with websocket(session, on_message=Heard(error)) as client:
        client.say(text("1"))
    assert client.closing is not None
    reason = client.closing[1]
    assert 120 < len(reason.encode()) <= 123
    assert str(error).startswith(reason)


@pytest.mark.parametrize("gone", [SessionEndedError("s"), SessionDeletedError("s")])
async def test_what_is_said_to_a_session_that_is_over_is_passed_over(
    session: Session, gone: Exception
):
    hears = Heard(gone)
    async with websocket(session, on_message=hears) as client:
        client.say(text("1"))
        client.say(text("2"))
        await until(lambda: hears.all == [1, 2])
        await session.end()
    assert client.closing == (1000, "the session has ended")


async def test_who_is_refused_is_not_sent_all_that_there_is(session: Session):
    """There may always be more."""
    await emit_numbers(session, range(1_000))
    async with websocket(session, on_message=Heard(PayloadError("", "no"))) as client:
        blocked = client.block()
        await until(lambda: client.waiting)
        client.say(text("1"))
        await settle()
        client.blocked = None
        blocked.set()
    assert len(client.messages) <= 100
    assert client.closing is not None
    assert client.closing[0] == 1008


async def test_what_is_said_is_stored_and_comes_back(session: Session):
    async with websocket(session) as client:
        client.say(text('{"a": 1}'))
        client.say(text("hello"))
        await until(lambda: len(client.messages) == 2)
        await session.end()
    assert [(each["event_type"], each["data"]) for each in client.messages[:2]] == [
        ("client.message", {"a": 1}),
        ("client.message", {"message": "hello"}),
    ]


async def test_a_client_that_says_much_is_slowed_down_and_loses_nothing(session: Session):
    """20 a second: so it is not received faster either."""
    hears = Heard()
    async with websocket(session, on_message=hears) as client:
        with anyio.fail_after(PATIENCE):
            began = anyio.current_time()
            for number in range(8):
                client.say(text(str(number)))
            await until(lambda: len(hears.all) == 2)
            await settle()
            # It was not even received.
            assert client.left >= 5
            await until(lambda: len(hears.all) == 8)
            assert anyio.current_time() - began >= (8 - 2) / 20 * 0.99
            await session.end()
    assert hears.all == list(range(8))


async def test_one_message_after_the_other_is_handed_on(session: Session):
    running = 0

    async def one_by_one(_message: Any) -> None:
        nonlocal running
        assert running == 0
        running += 1
        await settle(3)
        running -= 1

    async with websocket(session, on_message=one_by_one) as client:
        client.say(text("1"))
        client.say(text("2"))
        await until(lambda: client.left == 0 and not running)
        await session.end()
