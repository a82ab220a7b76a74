"""What the ways of following share."""

from collections.abc import AsyncGenerator
from contextlib import suppress

import anyio
import anyio.lowlevel
import httpx2
import pytest
from anyio.abc import SocketStream
from hypothesis import given, settings, strategies as st

from callbackkit.client.answers import BlockedError, LostError
from callbackkit.client.follower import METHODS
from callbackkit.client.line import chunks_of
from callbackkit.client.sse import follow_sse
from callbackkit.client.websocket import follow_websocket
from callbackkit.errors import AccessDeniedError, CallbackKitError, UnknownSessionError
from tests.client.rig import (
    JSON,
    NO_TLS,
    PATIENCE,
    TOKEN,
    Answer,
    Request,
    Taken,
    frame,
    http_client,
    messages,
    primed,
    raise_for_status,
    scripted,
    state,
    streamed,
    told,
)


@pytest.mark.parametrize("follow", [follow_sse, follow_websocket])
async def test_a_pool_without_room_is_nobody_answering(follow) -> None:
    """So the way is not changed for it."""
    limits = httpx2.Limits(max_connections=1)
    async with (
        scripted(streamed(primed(), hold=True)) as server,
        httpx2.AsyncClient(verify=NO_TLS, limits=limits) as client,
        client.stream("GET", server.url),
    ):
        line = Taken().line(client, server.url, patience=1.0)
        with anyio.fail_after(PATIENCE), pytest.raises(LostError, match="PoolTimeout") as raised:
            await follow(line)
        assert not raised.value.was_reached


async def test_now_is_looked_up_once() -> None:
    answers = state(position="e-7"), state(position="e-9")
    async with scripted(*answers) as server, http_client() as client:
        line = Taken().line(client, server.url, after="now")
        await line.find_now()
        await line.find_now()
    assert (str(line.place), len(server.requests)) == ("e-7", 1)


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"state": "active", "position": 5}'])
async def test_a_state_that_makes_no_sense_is_blocked(body: bytes) -> None:
    async with scripted(told(200, JSON, body)) as server, http_client() as client:
        with pytest.raises(BlockedError, match="makes no sense"):
            await Taken().line(client, server.url).ask_state()


async def test_its_headers_are_not_shown() -> None:
    async with http_client() as client:
        assert TOKEN not in repr(Taken().line(client, "http://host/sessions/s1"))


async def test_a_state_has_to_be_there_in_time() -> None:
    """Not only each byte of it: the end of that time does not move."""
    body = b'{"state": "active", "position": "e-7"}'
    ends: list[float] = []

    async def drip() -> AsyncGenerator[bytes]:
        for at in range(len(body)):
            ends.append(anyio.current_effective_deadline())
            yield body[at : at + 1]

    def answer(_: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, headers=JSON, content=drip())

    async with httpx2.AsyncClient(transport=httpx2.MockTransport(answer)) as client:
        found = await Taken().line(client, "http://host/sessions/s1").ask_state()
    assert str(found.position) == "e-7"
    assert len(ends) == len(body)
    assert len(set(ends)) == 1


# A client of the user.


@pytest.mark.parametrize("way", sorted(METHODS))
async def test_the_token_is_sent_though_the_client_has_a_login_of_its_own(way) -> None:
    answer = told(401)
    async with scripted(answer) as server, http_client(auth=("me", "hunter2")) as client:
        with anyio.fail_after(PATIENCE), pytest.raises(AccessDeniedError):
            await METHODS[way](Taken().line(client, server.url))
    assert {each.headers["authorization"] for each in server.requests} == {f"Bearer {TOKEN}"}


@pytest.mark.parametrize("way", sorted(METHODS))
async def test_without_a_token_the_login_of_the_client_is_sent(way) -> None:
    async with scripted(told(401)) as server, http_client(auth=("me", "hunter2")) as client:
        line = Taken().line(client, server.url)
        line.headers = {}
        with anyio.fail_after(PATIENCE), pytest.raises(AccessDeniedError):
            await METHODS[way](line)
    assert all(each.headers["authorization"].startswith("Basic ") for each in server.requests)


@pytest.mark.parametrize("way", ["polling", "sse"])
@pytest.mark.parametrize(
    ("status", "kind"), [(404, UnknownSessionError), (503, LostError), (302, BlockedError)]
)
async def test_a_client_that_raises_for_a_status_changes_nothing(way, status, kind) -> None:
    hooks = {"response": [raise_for_status]}
    async with scripted(told(status)) as server, http_client(event_hooks=hooks) as client:
        with anyio.fail_after(PATIENCE), pytest.raises(kind) as raised:
            await METHODS[way](Taken().line(client, server.url))
    assert type(raised.value) is kind


# Closing.


class Closing(httpx2.AsyncByteStream):
    """A body whose connection takes a moment to close, and notes how long it might have taken."""

    def __init__(self) -> None:
        self.is_closed = False
        self.left = 0.0

    async def __aiter__(self) -> AsyncGenerator[bytes]:
        while not self.is_closed:
            yield b"a"

    async def aclose(self) -> None:
        self.left = anyio.current_effective_deadline() - anyio.current_time()
        await anyio.lowlevel.checkpoint()
        self.is_closed = True


async def test_a_connection_is_closed_though_the_reader_is_cancelled() -> None:
    stream = Closing()
    with anyio.CancelScope() as scope:
        async with chunks_of(httpx2.Response(200, stream=stream)) as chunks:
            assert await anext(chunks) == b"a"
            scope.cancel()
    assert stream.is_closed


async def test_a_connection_that_does_not_close_holds_nobody_up_for_long() -> None:
    stream = Closing()
    async with chunks_of(httpx2.Response(200, stream=stream), closing=4.0) as chunks:
        assert await anext(chunks) == b"a"
    assert 0 < stream.left <= 4


# Whatever is answered.


def raw(content: bytes) -> Answer:
    async def answer(connection: SocketStream, _request: Request) -> None:
        await connection.send(content)

    return answer


async def check_harmless(follow, answer: Answer) -> None:
    """Hold that it ends in one of the ways that are known."""
    with anyio.fail_after(PATIENCE):
        async with scripted(answer) as server, http_client() as client:
            line = Taken().line(client, server.url)
            with suppress(LostError, BlockedError, CallbackKitError):
                await follow(line)
        await server.settled()


HEADS = st.sampled_from([
    b"",
    b"HTTP/1.1 200 OK\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\n",
])  # fmt: skip
FUZZED = settings(max_examples=25)


@FUZZED
@given(head=HEADS, content=st.binary(max_size=300), way=st.sampled_from(sorted(METHODS)))
async def test_an_answer_of_any_bytes_is_a_loss_or_a_block(head, content, way) -> None:
    await check_harmless(METHODS[way], raw(head + content))


@FUZZED
@given(content=st.binary(max_size=300), kind=st.integers(0, 15), is_framed=st.booleans())
async def test_a_websocket_of_any_bytes_is_a_loss_or_a_block(content, kind, is_framed) -> None:
    await check_harmless(follow_websocket, messages(frame(content, kind) if is_framed else content))


@FUZZED
@given(content=st.binary(max_size=300))
async def test_a_stream_of_any_bytes_is_a_loss_or_a_block(content: bytes) -> None:
    await check_harmless(follow_sse, streamed(primed(), content))
