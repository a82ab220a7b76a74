"""One connection by WebSocket."""

import math
import socket

import anyio
import httpx2
import pytest
from anyio.abc import SocketStream

from callbackkit.client.answers import BlockedError, LostError
from callbackkit.client.websocket import follow_websocket
from callbackkit.errors import (
    AccessDeniedError,
    CallbackKitError,
    SessionDeletedError,
    UnknownSessionError,
)
from callbackkit.events import Event
from tests.client.rig import (
    NO_TLS,
    PATIENCE,
    TOKEN,
    Answer,
    Request,
    Scripted,
    Taken,
    by_way,
    close_frame,
    dropped,
    end,
    event,
    frame,
    http_client,
    messages,
    numbers,
    raise_for_status,
    scripted,
    silence,
    state,
    text,
    told,
)

HEARTBEAT = frame(b'{"event_type":"callbackkit.heartbeat","data":{}}')


async def follow(*answers: Answer, **options: object) -> tuple[Taken, Scripted, object]:
    """Follow by one connection; give what came, what was asked, and where it stands."""
    taken = Taken()
    with anyio.fail_after(PATIENCE):
        async with scripted(*answers) as server, http_client() as client:
            line = taken.line(client, server.url, **options)
            try:
                await follow_websocket(line)
            except (LostError, BlockedError, CallbackKitError) as exc:
                return taken, server, (exc, str(line.place))
    return taken, server, str(line.place)


async def test_the_end_of_the_session_ends_it() -> None:
    sent = [text(event(1)), HEARTBEAT, text(event(2)), text(end(2)), close_frame(1000)]
    taken, server, place = await follow(messages(*sent, hold=True))
    assert (numbers(taken.events), place) == ([1, 2], "e-2")
    (request,) = server.requests
    assert (request.way, request.query) == ("/ws", "")
    assert request.headers["authorization"] == f"Bearer {TOKEN}"
    assert TOKEN not in request.headers["sec-websocket-protocol"]


async def test_it_goes_on_behind_its_position() -> None:
    sent = messages(text(event(1)), text(event(2)), text(end(2)))
    taken, server, _ = await follow(sent, after="e-1")
    assert (numbers(taken.events), server.requests[0].query) == ([2], "after=e-1")


async def test_now_is_looked_up_so_that_it_stays_the_same() -> None:
    answer = by_way(state=state(position="e-7"), ws=messages(close_frame(1012)))
    _, server, (error, place) = await follow(answer, after="now")
    assert (type(error), place) == (LostError, "e-7")
    assert [(each.way, each.query) for each in server.requests] == [("", ""), ("/ws", "after=e-7")]


async def test_a_message_may_come_in_parts() -> None:
    whole = text(event(1, pad="x" * 100_000))
    half = len(whole) // 2
    taken, _, _ = await follow(messages(whole[:half], whole[half:], text(end(1))))
    assert numbers(taken.events) == [1]


@pytest.mark.parametrize(
    "answer",
    [
        messages(text(event(1)), close_frame(1012), hold=True),
        messages(text(event(1)), close_frame(1006)),
        messages(text(event(1))),
        messages(text(event(1)), frame(b"{")),
        messages(text(event(1)), frame(b"\xff")),
        messages(text(event(1)), frame(b"{}", kind=2)),
        messages(text(event(1)), frame(b"", kind=7), hold=True),
        messages(text(event(1)), b"\xff" * 100, hold=True),
        messages(text(event(1)), frame(b"x" * 9_000_000), hold=True),
        messages(text(event(1)), text(event(2))[:-1]),
    ],
    ids=["1012", "1006", "drop", "json", "utf-8", "binary", "kind", "noise", "size", "half"],
)
async def test_whatever_ends_it_is_a_loss_and_moves_nothing(answer: Answer) -> None:
    taken, _, (error, place) = await follow(answer)
    assert (numbers(taken.events), type(error), place) == ([1], LostError, "e-1")


async def test_a_connection_that_is_silent_is_dead() -> None:
    _, server, (error, _) = await follow(messages(hold=True), max_silence=0.05)
    assert (type(error), server.open) == (LostError, 0)


@pytest.mark.parametrize("answer", [dropped, told(502), told(429, {"Retry-After": "1"})])
async def test_a_failed_handshake_is_a_loss(answer: Answer) -> None:
    _, _, (error, _) = await follow(answer)
    assert isinstance(error, LostError)


@pytest.mark.parametrize("answer", [told(200), told(405), told(426), told(501), told(301)])
async def test_whoever_does_not_know_the_handshake_blocks_it(answer: Answer) -> None:
    _, _, (error, _) = await follow(answer)
    assert isinstance(error, BlockedError)


@pytest.mark.parametrize("way", [told(403), messages(close_frame(1008), hold=True)])
async def test_a_refusal_is_asked_about(way: Answer) -> None:
    """Many servers refuse a WebSocket with 403 whatever the reason, and proxies do too."""
    _, _, (error, _) = await follow(by_way(ws=way, state=state()))
    assert isinstance(error, BlockedError)
    for status, kind in ((401, AccessDeniedError), (404, UnknownSessionError)):
        _, _, (found, _) = await follow(by_way(ws=way, state=told(status)))
        assert type(found) is kind


@pytest.mark.parametrize(
    "answer",
    [
        messages(text(event(1)), text(end(1, "deleted")), close_frame(4001), hold=True),
        by_way(ws=messages(close_frame(4001), hold=True), state=told(410)),
        by_way(ws=told(410), state=told(410)),
    ],
)
async def test_a_session_that_was_deleted_is_an_error(answer: Answer) -> None:
    _, _, (found, _) = await follow(answer)
    assert type(found) is SessionDeletedError


async def test_nobody_there_is_told_apart() -> None:
    async with scripted(silence) as server:
        url = server.url
    async with http_client() as client:
        with pytest.raises(LostError) as raised:
            await follow_websocket(Taken().line(client, url))
    assert not raised.value.was_reached


async def test_a_server_that_does_not_answer_is_left() -> None:
    _, server, (error, _) = await follow(silence, patience=0.05)
    assert (type(error), server.open) == (LostError, 0)
    assert "in time" in str(error)


async def test_one_that_works_may_live_for_longer_than_the_handshake_took() -> None:
    ends: list[float] = []

    async def hand(_: list[Event]) -> None:
        ends.append(anyio.current_effective_deadline())

    async with scripted(messages(text(event(1)), text(end(1)))) as server, http_client() as client:
        line = Taken().line(client, server.url)
        line.hand = hand
        await follow_websocket(line)
    assert ends == [math.inf]


async def test_an_event_has_a_bound() -> None:
    too_large = text(event(2, pad="x" * 9_000_000))
    taken, _, (error, place) = await follow(messages(text(event(1)), too_large, hold=True))
    assert (numbers(taken.events), type(error), place) == ([1], LostError, "e-1")


async def test_the_token_is_not_taken_to_where_a_redirect_leads() -> None:
    async with scripted(messages(text(event(1)), text(end(1)))) as other:
        elsewhere = told(302, {"Location": f"{other.url}/ws"})
        _, server, (error, _) = await follow(elsewhere)
    assert (type(error), len(server.requests), other.requests) == (BlockedError, 1, [])


@pytest.mark.parametrize(
    ("status", "kind"), [(401, AccessDeniedError), (404, UnknownSessionError), (503, LostError)]
)
async def test_a_client_that_raises_for_a_status_changes_nothing(status: int, kind: type) -> None:
    hooks = {"response": [raise_for_status]}
    with anyio.fail_after(PATIENCE):
        async with scripted(told(status)) as server, http_client(event_hooks=hooks) as client:
            with pytest.raises(kind) as raised:
                await follow_websocket(Taken().line(client, server.url))
    assert type(raised.value) is kind


# A server that reads no more.

SMALL = [
    (socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096),
    (socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096),
]


async def test_leaving_a_server_that_reads_no_more_has_a_bound() -> None:
    """It pings, and reads none of the pongs, until the client is stuck with one."""
    stuck = anyio.Event()
    pings = frame(b"x" * 125, kind=9) * 1_000

    async def answer(connection: SocketStream, request: Request) -> None:
        connection.extra(anyio.abc.SocketAttribute.raw_socket).setsockopt(*SMALL[0])
        await messages()(connection, request)
        while not stuck.is_set():
            with anyio.move_on_after(0.5) as scope:
                await connection.send(pings)
            if scope.cancelled_caught:
                stuck.set()
        await anyio.sleep_forever()

    transport = httpx2.AsyncHTTPTransport(verify=NO_TLS, socket_options=SMALL)
    with anyio.fail_after(PATIENCE):
        async with (
            scripted(answer) as server,
            httpx2.AsyncClient(transport=transport) as client,
            anyio.create_task_group() as tasks,
        ):
            line = Taken().line(client, server.url, closing=0.1)
            tasks.start_soon(follow_websocket, line)
            await stuck.wait()
            tasks.cancel_scope.cancel()
