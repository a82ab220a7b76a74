"""The block, the iterator, and what may be asked for."""

import asyncio
import logging
import ssl
from contextlib import suppress

import anyio
import httpx2
import pytest
from anyio.abc import SocketStream

from callbackkit.client import follow
from callbackkit.errors import AccessDeniedError, PositionError, UnknownSessionError
from callbackkit.events import Position
from callbackkit.wire.envelope import gap_event
from tests.client.rig import (
    STREAM,
    TOKEN,
    Answer,
    Request,
    all_of,
    end,
    event,
    following,
    head,
    http_client,
    in_turn,
    messages,
    numbers,
    primed,
    scripted,
    sse,
    streamed,
    text,
    told,
)

URL = "https://host/callbacks/sessions/7f"
HELD = streamed(primed("e-0"), sse(event(1), event(2)), hold=True)


# The block.


@pytest.mark.parametrize(
    ("method", "answer"),
    [("sse", HELD), ("websocket", messages(text(event(1)), hold=True)), ("sse", told(503))],
    ids=["sse", "websocket", "waiting"],
)
async def test_leaving_the_block_ends_the_connection(method: str, answer: Answer) -> None:
    async with scripted(answer) as server:
        async with following(server.url, method=method) as events:
            with anyio.move_on_after(0.1):
                await anext(events)
        assert events.state == "closed"
        await server.settled()


@pytest.mark.parametrize("answer", [HELD, told(503)], ids=["held", "503"])
async def test_an_error_of_the_block_comes_out_as_it_is(answer: Answer) -> None:
    async with scripted(answer) as server, http_client() as client:
        with pytest.raises(KeyError, match="mine"):
            async with follow(server.url, client=client):
                raise KeyError("mine")


async def test_cancelling_the_block_leaves_nothing() -> None:
    async with scripted(HELD) as server, http_client() as client:
        with anyio.move_on_after(0.2) as scope:
            async with follow(server.url, client=client) as events:
                async for _ in events:
                    pass
        assert scope.cancelled_caught
        await server.settled()


@pytest.mark.parametrize(
    ("answer", "state"), [(streamed(primed(), sse(end(0))), "ended"), (told(404), "failed")]
)
async def test_what_became_of_it_stays_told_when_the_block_is_left(answer, state: str) -> None:
    async with scripted(answer) as server:
        async with following(server.url) as events:
            with suppress(StopAsyncIteration, UnknownSessionError):
                await anext(events)
        assert events.state == state


async def test_it_is_used_as_a_block_and_once() -> None:
    events = follow(URL)
    with pytest.raises(RuntimeError, match="async with follow"):
        await anext(events)
    async with scripted(HELD) as server:
        async with following(server.url) as events:
            with pytest.raises(RuntimeError, match="followed once"):
                await events.__aenter__()
            assert await anext(events) == event(1)
        # What was under way is still there; then there is nothing to wait for.
        assert await anext(events) == event(2)
        with pytest.raises(RuntimeError, match="has been left"):
            await anext(events)


# The iterator.


async def test_giving_up_on_an_event_loses_none_and_keeps_the_connection() -> None:
    go_on = anyio.Event()

    async def answer(connection: SocketStream, _request: Request) -> None:
        await connection.send(head(200, STREAM) + primed())
        await go_on.wait()
        await connection.send(sse(event(1), event(2), end(2)))

    async with scripted(answer) as server, following(server.url) as events:
        for _ in range(5):
            with anyio.move_on_after(0.01) as scope:
                await anext(events)
            assert scope.cancelled_caught
        go_on.set()
        assert numbers([each async for each in events]) == [1, 2]
    assert len(server.requests) == 1


async def test_the_position_is_that_of_the_last_event_handed_on() -> None:
    async with scripted(HELD) as server, following(server.url) as events:
        assert events.position is None
        await anext(events)
        assert str(events.position) == "e-1"
        await anext(events)
        assert str(events.position) == "e-2"


async def test_coming_back_it_goes_on_behind_what_was_handed_on() -> None:
    broken = streamed(primed(), sse(event(1), event(2), event(3))[:-5])
    answer = in_turn(broken, streamed(primed("e-2"), sse(event(2), event(3), end(3))))
    async with scripted(answer) as server:
        events, _ = await all_of(server.url)
    assert numbers(events) == [1, 2, 3]
    assert server.requests[1].headers["last-event-id"] == "e-2"


async def test_where_it_began_is_known_before_the_first_event() -> None:
    answer = in_turn(streamed(primed("e-4")), streamed(primed("e-4"), sse(event(5), end(5))))
    async with scripted(answer) as server:
        events, _ = await all_of(server.url)
    assert numbers(events) == [5]
    told_of = [each.headers.get("last-event-id") for each in server.requests]
    assert told_of == [None, "e-4"]


async def test_a_gap_is_an_event_and_another_epoch_is_gone_on_in() -> None:
    gap = gap_event("s1", "f", asked=Position("e", 2), first=4, microseconds=1)
    answer = in_turn(
        streamed(primed("e-2"), sse(gap, event(4, "f"))),
        streamed(primed("f-4"), sse(event(5, "f"), end(5))),
    )
    async with scripted(answer) as server:
        events, _ = await all_of(server.url, after=Position("e", 2), types=["count"])
    assert [(each.id, each.is_gap) for each in events] == [
        ("f-3", True),
        ("f-4", False),
        ("f-5", False),
    ]
    assert server.requests[1].headers["last-event-id"] == "f-4"


async def test_types_that_are_not_wanted_are_passed_over() -> None:
    answer = in_turn(
        streamed(primed(), sse(event(1), event(2))), streamed(primed("e-2"), sse(end(2)))
    )
    async with scripted(answer) as server:
        events, followed = await all_of(server.url, types={"other"})
    assert (events, str(followed.position)) == ([], "e-2")
    assert server.requests[1].headers["last-event-id"] == "e-2"


@pytest.mark.parametrize("method", ["sse", "websocket"])
async def test_a_slow_reader_slows_the_connection(method: str) -> None:
    """Far more is there than buffers take; the server comes to a stop until it is read."""
    count, pad = 400, "x" * 100_000
    stopped = anyio.Event()

    async def answer(connection: SocketStream, request: Request) -> None:
        begin = streamed(primed()) if method == "sse" else messages()
        await begin(connection, request)
        write = sse if method == "sse" else text
        for number in range(1, count + 1):
            sent = anyio.Event()

            async def stop(sent: anyio.Event = sent) -> None:
                with anyio.move_on_after(0.5):
                    await sent.wait()
                    return
                stopped.set()

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(stop)
                await connection.send(write(event(number, pad=pad)))
                sent.set()
        await connection.send(write(end(count)))

    async with scripted(answer) as server, following(server.url, method=method) as events:
        assert numbers([await anext(events)]) == [1]
        await stopped.wait()
        rest = [each.data["number"] async for each in events]
        assert rest == list(range(2, count + 1))
    assert len(server.requests) == 1


async def test_native_cancellation_passes_through(anyio_backend_name: str) -> None:
    if anyio_backend_name != "asyncio":
        return
    async with scripted(HELD) as server, following(server.url) as events:
        await anext(events)
        await anext(events)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(events), 0.1)
        task = asyncio.current_task()
        assert task is not None
        assert not task.cancelling()


# What is sent, and what is not shown.


async def test_the_token_is_nowhere_but_in_its_header(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    answer = in_turn(told(405), told(405), told(405), told(503), told(401))
    async with scripted(answer) as server, following(server.url) as events:
        with pytest.raises(AccessDeniedError) as raised:
            await anext(events)
        shown = [repr(events), str(events.trouble), str(raised.value), repr(raised.value)]
    assert {each.headers["authorization"] for each in server.requests} == {f"Bearer {TOKEN}"}
    assert "can't be followed by sse: the server answered 405; next by websocket" in caplog.text
    for each in (caplog.text, *shown, *(request.query for request in server.requests)):
        assert TOKEN not in each


async def test_headers_are_sent_and_a_client_is_left_open() -> None:
    async with scripted(streamed(primed(), sse(end(0)))) as server, http_client() as client:
        headers = {"X-Gateway": "key"}
        async with follow(server.url, headers=headers, client=client) as events:
            assert [each async for each in events] == []
        assert not client.is_closed
    (request,) = server.requests
    assert (request.headers["x-gateway"], "authorization" in request.headers) == ("key", False)


async def test_without_a_client_it_makes_one() -> None:
    answer = streamed(primed(), sse(event(1), end(1)))
    async with scripted(answer) as server, follow(server.url) as events:
        assert numbers([each async for each in events]) == [1]


# What may be asked for.


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"method": "carrier pigeon"}, ValueError, "method must be auto, sse, websocket, polling"),
        ({"after": "yesterday"}, PositionError, "yesterday"),
        ({"after": 5}, TypeError, "after must be"),
        ({"types": "progress"}, TypeError, "types must be a collection"),
        ({"types": ["No Type"]}, ValueError, "No Type"),
        ({"token": "secret\r\nX: y"}, ValueError, "token must be"),
        ({"token": b"secret"}, TypeError, "token must be a string"),
        ({"headers": {"X-A": "secret\n"}}, ValueError, "'X-A'"),
        ({"headers": {"X A": "secret"}}, ValueError, "'X A'"),
        ({"headers": {"Last-Event-ID": "e-1"}}, ValueError, "set by the protocol"),
        ({"headers": {"Sec-WebSocket-Key": "a"}}, ValueError, "set by the protocol"),
        ({"headers": {"authorization": "secret"}, "token": "a"}, ValueError, "token="),
        ({"client": "httpx2"}, TypeError, "httpx2.AsyncClient"),
        ({"backoff": 5}, TypeError, "Backoff"),
        ({"max_silence": 0}, ValueError, "max_silence"),
        ({"priming": float("nan")}, ValueError, "priming"),
        ({"priming": "5"}, TypeError, "priming"),
    ],
)
def test_what_can_not_be_had_is_refused_by_name(options, error, match: str) -> None:
    with pytest.raises(error, match=match) as raised:
        follow(URL, **options)
    assert "secret" not in str(raised.value)


def test_a_gap_may_be_named_among_the_types() -> None:
    assert repr(follow(URL, types=["callbackkit.gap"])) == f"<Events of {URL} by sse, connecting>"


def test_a_url_with_a_password_is_refused() -> None:
    with pytest.raises(ValueError, match="no user or password") as raised:
        follow("https://me:hunter2@host/callbacks/sessions/7f")
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    "url", ["http://\u2603.localhost/sessions/x", "http://host/sessions/\ud800"]
)
def test_a_url_that_can_not_be_sent_is_refused_at_once(url: str) -> None:
    with pytest.raises(ValueError, match="url can't be sent") as raised:
        follow(url)
    assert type(raised.value) is ValueError


@pytest.mark.parametrize("proxy", ["ftp://me:hunter2@host", "http://\u2603", "http://[::hunter2"])
async def test_a_proxy_that_is_none_is_told_without_its_secrets(
    proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", proxy)
    async with follow(URL) as events:
        with pytest.raises(ValueError, match="see HTTP_PROXY") as raised:
            await anext(events)
    assert "hunter2" not in str(raised.value)


async def test_a_client_that_is_closed_is_told_to_who_iterates() -> None:
    client = httpx2.AsyncClient(verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    await client.aclose()
    async with follow(URL, client=client) as events:
        with pytest.raises(RuntimeError, match="closed"):
            await anext(events)
