"""A session as an event stream."""

import gc
import json
import threading
from datetime import UTC, datetime
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from callbackkit import (
    CallbackManager,
    Event,
    Retention,
    Session,
    StoreUnavailableError,
)
from callbackkit.sessions.tail import Tail
from callbackkit.transports.connections import Connections
from callbackkit.transports.sse import serve_drained, serve_sse
from callbackkit.wire.envelope import encode_event
from tests.sessions.rig import ToldStore, emit_numbers, settle, until
from tests.transports.rig import Client, nothing_is_left, sse


async def emitted(session: Session, *numbers: int) -> list[Event]:
    found = [await session.emit("n", {"n": number}) for number in numbers]
    return [event for event in found if event is not None]


async def epoch_of(session: Session) -> str:
    return (await session.manager.store.get_session(session.id)).epoch


def small(max_events: int) -> CallbackManager:
    return CallbackManager(ToldStore(), retention=Retention(max_events=max_events))


def frame(event: Event) -> bytes:
    return b"id: " + event.id.encode() + b"\ndata: " + encode_event(event) + b"\n\n"


# The answer.


async def test_it_begins_with_a_status_headers_and_the_position_where_it_begins(session: Session):
    epoch = await epoch_of(session)
    async with sse(session, headers=[(b"x-more", b"yes")]) as client:
        await until(lambda: len(client.sent) == 2)
        await session.end()
    start, primed = client.sent[:2]
    assert (start["type"], start["status"]) == ("http.response.start", 200)
    assert start["headers"] == [
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"cache-control", b"no-store, no-transform"),
        (b"x-accel-buffering", b"no"),
        (b"x-more", b"yes"),
    ]
    assert primed == {
        "type": "http.response.body",
        "body": f"id: {epoch}-0\n\n".encode(),
        "more_body": True,
    }


@pytest.mark.parametrize("after", ["none", "position", "now"])
async def test_the_position_is_told_before_there_is_an_event(session: Session, after: str):
    first, second = await emitted(session, 1, 2)
    epoch = first.position.epoch
    places = {
        "none": (None, f"{epoch}-0"),
        "position": (first.id, first.id),
        "now": ("now", second.id),
    }
    async with sse(session, after=places[after][0]) as client:
        await until(lambda: len(client.sent) >= 2)
        assert client.bodies[0] == f"id: {places[after][1]}\n\n".encode()
        await session.end()


async def test_of_a_session_that_was_trimmed_it_begins_before_what_is_kept():
    session = await small(2).create_session()
    events = await emitted(session, *range(5))
    async with sse(session) as client:
        await until(lambda: client.numbers == [3, 4])
        await session.end()
    assert client.bodies[0] == f"id: {events[2].id}\n\n".encode()


async def test_what_is_there_and_what_comes_is_sent_in_order_with_ids(session: Session):
    there = await emitted(session, 1, 2)
    async with sse(session) as client:
        await until(lambda: client.numbers == [1, 2])
        come = await emitted(session, 3)
        await until(lambda: client.numbers == [1, 2, 3])
        come += await emitted(session, 4)
        await until(lambda: client.numbers == [1, 2, 3, 4])
        await session.end()
    assert client.text.startswith(
        client.bodies[0] + b"".join(frame(event) for event in there + come)
    )
    assert b"event:" not in client.text.replace(b'"event', b"")
    assert [each.id for each in client.stream[:-1]] == [event.id for event in there + come]


async def test_what_was_missed_is_sent_in_one_write(session: Session):
    await emit_numbers(session, range(90))
    await session.end()
    async with sse(session) as client:
        pass
    assert client.numbers == list(range(90))
    # The position, the events, the end of the session, the end of the body.
    assert len(client.bodies) == 4


async def test_a_write_is_no_larger_than_256_kib_unless_one_event_is(session: Session):
    for number in range(5):
        await session.emit("n", {"n": number, "text": "x" * 100_000})
    await session.emit("n", {"n": 5, "text": "x" * 260_000})
    await session.end()
    async with sse(session) as client:
        pass
    assert client.numbers == [0, 1, 2, 3, 4, 5]
    assert max(map(len, client.bodies)) <= 262_144
    assert len(client.bodies) < 9


# One frame for all.


async def test_all_readers_are_sent_the_very_same_message(session: Session):
    connections = Connections()
    await emit_numbers(session, [1, 2, 3])
    async with sse(session, connections) as one:
        await until(lambda: one.numbers == [1, 2, 3])
        async with _beside(session, connections) as two:
            await until(lambda: two.numbers == [1, 2, 3])
            await emit_numbers(session, [4])
            await until(lambda: one.numbers == two.numbers == [1, 2, 3, 4])
            await session.end()
    # Three joined, and one alone.
    assert one.sent[2]["body"] is two.sent[2]["body"]
    assert one.sent[3]["body"] is two.sent[3]["body"]
    assert one.bodies[1].count(b"data: ") == 3
    assert one.bodies[2].count(b"data: ") == 1


def _beside(session: Session, connections: Connections, **options: Any) -> Any:
    """Serve another client while the first is served."""
    return _Beside(session, connections, options)


class _Beside:
    def __init__(self, session: Session, connections: Connections, options: Any) -> None:
        self._subscription = session.subscribe(**options, kind="sse")
        self._connections = connections
        self._client = Client()

    async def __aenter__(self) -> Client:
        self._tasks = await anyio.create_task_group().__aenter__()
        client = self._client

        async def run() -> None:
            await serve_sse(
                self._subscription, client.receive, client.send, connections=self._connections
            )
            client.is_over = True

        self._tasks.start_soon(run)
        return client

    async def __aexit__(self, *failure: Any) -> Any:
        done = await self._tasks.__aexit__(*failure)
        self._client.close()
        return done


@pytest.mark.parametrize(
    "wanted", [[None, {"n", "b"}], [{"n", "b"}, None], [{"a", "n"}, {"b", "n"}]]
)
async def test_what_one_did_not_want_is_not_left_out_for_another(session: Session, wanted: Any):
    connections = Connections()
    await session.emit("n", {"n": 1})
    await session.emit("a")
    await session.emit("b")
    await session.emit("n", {"n": 2})
    got = []
    async with sse(session, connections, types={"n"}):
        # The newest events are in memory as long as somebody reads them.
        for types in wanted:
            async with _beside(session, connections, types=types) as client:
                await until(lambda: client.numbers == [1, 2])
                client.say({"type": "http.disconnect"})
            got.append([each["event_type"] for each in client.events])
        await session.end()
    everything = ["n", "a", "b", "n"]
    assert got == [[each for each in everything if not want or each in want] for want in wanted]


async def test_a_reader_that_takes_nothing_holds_up_nobody_and_misses_nothing(session: Session):
    connections = Connections()
    async with sse(session, connections) as slow:
        await until(lambda: len(slow.sent) == 2)
        blocked = slow.block()
        async with _beside(session, connections) as fast:
            await emit_numbers(session, range(600))
            await until(lambda: fast.numbers == list(range(600)))
            blocked.set()
            slow.blocked = None
            await until(lambda: slow.numbers == list(range(600)))
            await session.end()


class Indenting:
    """Writes lines, as some codecs do."""

    def __init__(self, line_end: str) -> None:
        self.line_end = line_end

    def encode(self, value: Any, /) -> bytes:
        return json.dumps(value, indent=1).replace("\n", self.line_end).encode()

    def decode(self, text: bytes, /) -> Any:
        return json.loads(text)


@pytest.mark.parametrize("line_end", ["\n", "\r", "\r\n"])
async def test_a_codec_that_writes_lines_breaks_no_frame(line_end: str):
    codec = Indenting(line_end)
    session = await CallbackManager(ToldStore(), codec=codec).create_session()
    await session.emit("n", {"n": 1, "text": "a\n\nid: evil\n"})
    await session.end()
    async with sse(session) as client:
        pass
    assert client.events[0]["data"] == {"n": 1, "text": "a\n\nid: evil\n"}
    assert "evil" not in client.stream[0].id


# Gaps.


async def test_what_is_no_longer_kept_is_a_gap_in_the_stream():
    session = await small(3).create_session()
    (first,) = await emitted(session, 0)
    await emit_numbers(session, range(1, 8))
    async with sse(session, after=first.id) as client:
        await until(lambda: client.numbers == [5, 6, 7])
        await session.end()
    gap = client.events[0]
    assert gap["event_type"] == "callbackkit.gap"
    assert (gap["id"], gap["data"]["missed"]) == (f"{first.position.epoch}-5", 4)
    assert client.stream[0].id == gap["id"]


@pytest.mark.parametrize("count", [0, 1, 2, 99, 100, 101, 250])
async def test_a_position_of_another_log_is_a_gap_and_then_all_comes(session: Session, count: int):
    await emit_numbers(session, range(count))
    async with sse(session, after="f00-7") as client:
        await until(lambda: client.numbers == list(range(count)) and len(client.bodies) > 1)
        await emit_numbers(session, [count])
        await until(lambda: client.numbers == list(range(count + 1)))
        await session.end()
    assert [each["event_type"] for each in client.events[:2]] == ["callbackkit.gap", "n"]


@pytest.mark.parametrize(
    "behind", [1, 2, 16, 17, 32, 64, 99, 100, 101, 128, 129, 255, 256, 257, 300]
)
async def test_whoever_comes_back_gets_all_that_he_missed(session: Session, behind: int):
    """However much of it is in memory, because somebody else reads."""
    connections = Connections()
    async with sse(session, connections) as first:
        await until(lambda: len(first.sent) == 2)
        events = await emitted(session, *range(320))
        await until(lambda: first.numbers == list(range(320)))
        async with _beside(session, connections, after=events[-behind - 1].id) as back:
            await until(lambda: back.numbers == list(range(320 - behind, 320)))
            await emit_numbers(session, [320])
            await until(lambda: back.numbers[-1:] == [320])
            await session.end()


async def test_clearing_is_a_gap_to_whoever_comes_back_though_others_read(session: Session):
    connections = Connections()
    async with sse(session, connections) as first:
        events = await emitted(session, 1, 2, 3)
        await until(lambda: first.numbers == [1, 2, 3])
        assert await session.clear(datetime(9999, 1, 1, tzinfo=UTC)) == 3
        for after in (events[0], events[1]):
            async with _beside(session, connections, after=after) as back:
                await until(lambda: len(back.events) == 1)
                assert back.events[0]["event_type"] == "callbackkit.gap"
                back.say({"type": "http.disconnect"})
        async with _beside(session, connections) as new:
            await until(lambda: len(new.bodies) == 1)
            await emit_numbers(session, [4])
            await until(lambda: new.numbers == [4])
            await session.end()


# Heartbeats.


async def test_silence_is_broken_by_comments(session: Session):
    async with sse(session, Connections(heartbeat=0.02)) as client:
        await until(lambda: client.heartbeats >= 3)
        await emit_numbers(session, [1])
        await until(lambda: client.numbers == [1])
        await session.end()
    assert [each["event_type"] for each in client.events] == ["n", "callbackkit.end"]


async def test_where_events_come_there_is_no_comment(session: Session):
    connections = Connections(heartbeat=0.02)
    async with sse(session, connections) as client:
        number = 0
        while connections.now < 0.2:
            await emit_numbers(session, [number])
            await until(lambda: client.numbers[-1:] == [number])  # noqa: B023 - called here
            number += 1
        assert client.heartbeats == 0
        await session.end()


async def test_what_rang_nobody_is_looked_for_in_silence(store: ToldStore, session: Session):
    store.reconcile = 0.04
    async with sse(session, Connections(heartbeat=0.02)) as client:
        await until(lambda: len(client.sent) == 2)
        await settle()
        store._watches._by_topic.clear()
        other = CallbackManager(store)
        await other.emit(session.id, "n", {"n": 1})
        await until(lambda: client.numbers == [1])
        await other.end_session(session.id)
    assert client.heartbeats >= 2


async def test_silence_shorter_than_the_store_wants_to_be_looked_at_does_not_read_it(
    store: ToldStore, session: Session
):
    store.reconcile = 1_000.0
    async with sse(session, Connections(heartbeat=0.01)) as client:
        await until(lambda: len(client.sent) == 2)
        reads = store.log.count("read")
        await until(lambda: client.heartbeats >= 5)
        assert store.log.count("read") == reads
        await session.end()


# Clients that do not read.


@pytest.mark.parametrize("what", ["start", "event", "events", "heartbeat"])
async def test_a_client_that_takes_nothing_is_given_up(session: Session, what: str):
    connections = Connections(heartbeat=0.02 if what == "heartbeat" else 1_000, write_timeout=0.04)
    async with sse(session, connections) as client:
        if what != "start":
            await until(lambda: len(client.sent) == 2)
        client.block()
        if what.startswith("event"):
            await emit_numbers(session, range(2 if what == "events" else 1))
    assert len(client.sent) == (0 if what == "start" else 2)


async def test_without_a_deadline_it_waits_for_the_client(session: Session):
    connections = Connections(heartbeat=0.02, write_timeout=None)
    async with sse(session, connections) as client:
        await until(lambda: len(client.sent) == 2)
        blocked = client.block()
        await emit_numbers(session, [1])
        began = connections.now
        await until(lambda: connections.now > began + 0.2)
        client.blocked = None
        blocked.set()
        await until(lambda: client.numbers == [1])
        await session.end()


@pytest.mark.parametrize("count", [1, 2])
async def test_the_deadline_begins_with_the_write(session: Session, count: int):
    """Not with the silence before it."""
    connections = Connections(heartbeat=1_000, write_timeout=0.08)
    async with sse(session, connections) as client:
        await until(lambda: connections.now > 0.2)
        blocked = client.block()
        await emit_numbers(session, range(count))
        await until(lambda: client.waiting)
        began = connections.now
        await until(lambda: connections.now > began)
        client.blocked = None
        blocked.set()
        await until(lambda: client.numbers == list(range(count)))
        await session.end()


@pytest.mark.parametrize("count", [0, 1, 2])
async def test_a_client_that_has_taken_all_is_never_given_up(session: Session, count: int):
    connections = Connections(heartbeat=1_000, write_timeout=0.02)
    async with sse(session, connections) as client:
        await emit_numbers(session, range(count))
        await until(lambda: len(client.sent) >= 2 and len(client.numbers) == count)
        began = connections.now
        await until(lambda: connections.now > began + 0.1)
        await session.end()
    assert client.events[-1]["event_type"] == "callbackkit.end"


async def test_a_client_that_reads_slowly_is_not_given_up(session: Session):
    """The deadline is that of each write."""
    connections = Connections(write_timeout=0.08)
    async with sse(session, connections) as client:
        await until(lambda: len(client.sent) == 2)
        for number in range(6):
            blocked = client.block()
            await emit_numbers(session, [number])
            await until(lambda: client.waiting)
            began = connections.now
            await until(lambda: connections.now > began)  # noqa: B023 - called here
            client.blocked = None
            blocked.set()
            await until(lambda: client.numbers[-1:] == [number])  # noqa: B023 - called here
        await session.end()


# Clients that go.


@pytest.mark.parametrize("when", ["waiting", "sending", "at once"])
async def test_a_client_that_goes_is_let_go(session: Session, when: str):
    async with sse(session) as client:
        client.say({"type": "http.request", "body": b"", "more_body": False})
        if when == "at once":
            client.block()
        else:
            await until(lambda: len(client.sent) == 2)
            await settle()
        if when == "sending":
            client.block()
            await emit_numbers(session, [1])
            await until(lambda: client.waiting)
        client.say({"type": "http.disconnect"})
    assert not client.text.endswith(b"retry")


async def test_a_server_that_tells_by_an_error_that_the_client_has_left_is_understood(
    session: Session,
):
    async with sse(session) as client:
        await until(lambda: len(client.sent) == 2)
        client.failure = ConnectionResetError()
        await emit_numbers(session, [1])
    assert len(client.sent) == 2


async def test_any_other_error_of_the_server_is_raised_and_leaves_nothing(session: Session):
    client, connections = Client(), Connections()
    client.failure = ValueError("a bug")
    with pytest.RaisesGroup(ValueError):
        await serve_sse(session.subscribe(), client.receive, client.send, connections=connections)
    client.close()
    nothing_is_left(session.manager, connections)


async def test_a_request_that_is_cancelled_leaves_nothing(session: Session):
    client, connections = Client(), Connections()
    async with anyio.create_task_group() as tasks:

        async def run() -> None:
            await serve_sse(
                session.subscribe(), client.receive, client.send, connections=connections
            )

        tasks.start_soon(run)
        await until(lambda: len(client.sent) == 2)
        tasks.cancel_scope.cancel()
    client.close()
    nothing_is_left(session.manager, connections)


# Ends.


def has_asked_back(client: Client) -> bool:
    retry, end = client.sent[-2:]
    text = retry["body"].decode()
    assert text.startswith("retry: ")
    assert text.endswith("\n\n")
    assert 500 <= int(text[7:]) <= 3_000
    assert end == {"type": "http.response.body", "body": b""}
    return "callbackkit.end" not in client.text.decode()


async def test_the_last_event_tells_of_the_end(session: Session):
    events = await emitted(session, 1, 2)
    await session.end()
    async with sse(session) as client:
        pass
    last = client.events[-1]
    assert (last["event_type"], last["data"]) == ("callbackkit.end", {"state": "ended"})
    assert last["session_id"] == session.id
    # Whoever comes back with it has seen everything.
    assert client.stream[-1].id == last["id"] == events[1].id
    assert client.sent[-1] == {"type": "http.response.body", "body": b""}
    assert b"retry" not in client.text


async def test_the_end_of_a_session_without_events_has_its_position(session: Session):
    await session.end()
    async with sse(session) as client:
        pass
    assert client.stream[-1].id == f"{await epoch_of(session)}-0"


async def test_the_end_stands_behind_what_was_not_wanted_too(session: Session):
    await session.emit("n", {"n": 1})
    other = await session.emit("other")
    await session.end()
    async with sse(session, types={"n"}) as client:
        pass
    assert other is not None
    assert client.numbers == [1]
    assert client.stream[-1].id == other.id


async def test_one_that_waits_is_told_of_the_end(session: Session):
    async with sse(session) as client:
        await until(lambda: len(client.sent) == 2)
        await settle()
        await session.end()
    assert client.events[-1]["event_type"] == "callbackkit.end"


@pytest.mark.parametrize("when", ["before", "waiting"])
async def test_of_a_deleted_session_that_is_told(
    manager: CallbackManager, session: Session, when: str
):
    await emit_numbers(session, [1])
    if when == "before":
        await manager.delete_session(session.id)
    async with sse(session) as client:
        if when == "waiting":
            await until(lambda: client.numbers == [1])
            await settle()
            await manager.delete_session(session.id)
    last = client.events[-1]
    assert (last["event_type"], last["data"]) == ("callbackkit.end", {"state": "deleted"})
    assert client.bodies[-2].startswith(b"data: ")
    assert client.sent[-1] == {"type": "http.response.body", "body": b""}


@pytest.mark.parametrize("when", ["before", "waiting", "sending", "thread"])
async def test_a_drain_asks_the_client_to_come_back(
    manager: CallbackManager, session: Session, when: str
):
    if when == "before":
        manager.begin_drain()
    async with sse(session) as client:
        if when != "before":
            await until(lambda: len(client.sent) == 2)
            await settle()
        if when == "sending":
            blocked = client.block()
            await emit_numbers(session, [1])
            await until(lambda: client.waiting)
            manager.begin_drain()
            client.blocked = None
            blocked.set()
        elif when == "waiting":
            manager.begin_drain()
        elif when == "thread":
            thread = threading.Thread(target=manager.begin_drain)
            thread.start()
            thread.join()
    assert has_asked_back(client)


async def test_a_drain_does_not_wait_until_everything_was_sent(
    manager: CallbackManager, session: Session
):
    await emit_numbers(session, range(1_000))
    async with sse(session) as client:
        client.block()
        await until(lambda: client.waiting)
        manager.begin_drain()
        assert client.blocked is not None
        client.blocked.set()
        client.blocked = None
    assert len(client.numbers) <= 100
    assert has_asked_back(client)


async def test_clients_do_not_all_come_back_at_once():
    texts = set()
    for _ in range(20):
        client = Client()
        await serve_drained(client.send, headers=[(b"x-more", b"yes")])
        assert client.sent[0]["headers"][-1] == (b"x-more", b"yes")
        assert client.sent[0]["status"] == 200
        assert has_asked_back(client)
        texts.add(client.text)
        client.close()
    assert len(texts) > 1


@pytest.mark.parametrize("reads", [1, 2])
async def test_a_store_that_fails_asks_the_client_to_come_back(
    store: ToldStore, session: Session, reads: int
):
    await emit_numbers(session, range(150))

    async def fails() -> None:
        if store.log.count("read") >= reads:
            raise StoreUnavailableError("away")

    store.before["read"] = fails
    async with sse(session) as client:
        pass
    assert has_asked_back(client)
    assert client.numbers == []


async def test_a_store_that_fails_while_it_waits_asks_the_client_to_come_back(
    store: ToldStore, session: Session
):
    async def fails() -> None:
        raise StoreUnavailableError("away")

    async with sse(session) as client:
        await until(lambda: len(client.sent) == 2)
        await settle()
        store.before["read"] = fails
        await CallbackManager(store).emit(session.id, "n", {"n": 1})
    assert has_asked_back(client)


async def test_a_manager_that_stops_asks_the_client_to_come_back(store: ToldStore):
    manager = CallbackManager(store)
    async with manager:
        session = await manager.create_session()
        client, connections = Client(), Connections()
        async with anyio.create_task_group() as tasks:

            async def run() -> None:
                await serve_sse(
                    session.subscribe(), client.receive, client.send, connections=connections
                )

            tasks.start_soon(run)
            await until(lambda: len(client.sent) == 2)
            await settle()
            await manager.__aexit__(None, None, None)
        await manager.__aenter__()
    assert has_asked_back(client)
    client.close()
    nothing_is_left(manager, connections)


async def test_one_that_is_closed_asks_the_client_to_come_back(session: Session):
    client, connections = Client(), Connections()
    subscription = session.subscribe()
    async with anyio.create_task_group() as tasks:

        async def run() -> None:
            await serve_sse(subscription, client.receive, client.send, connections=connections)

        tasks.start_soon(run)
        await until(lambda: len(client.sent) == 2)
        await settle()
        subscription.close()
    assert has_asked_back(client)
    client.close()


# Figures.


async def test_what_was_sent_counts_as_read(session: Session):
    async with sse(session) as client:
        for number in range(3):
            await emit_numbers(session, [number])
            await until(lambda: client.numbers[-1:] == [number])  # noqa: B023 - called here
        stats = await session.stats()
        assert (stats.events_delivered, stats.has_sse) == (3, True)
        await session.end()
    assert not (await session.stats()).has_sse


async def test_what_was_sent_together_counts_as_read(session: Session):
    await emit_numbers(session, range(5))
    await session.end()
    async with sse(session):
        pass
    assert (await session.stats()).events_delivered == 5


async def test_streams_that_are_over_leave_nothing_to_collect(session: Session):
    await emit_numbers(session, range(3))
    for _ in range(5):
        async with sse(session) as client:
            await until(lambda: len(client.numbers) == 3)
            client.say({"type": "http.disconnect"})
    await checkpoint()
    gc.collect()
    tails = [each for each in gc.get_objects() if type(each) is Tail]
    assert not [each for each in tails if session.id in repr(each)]
