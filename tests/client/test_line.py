"""What the ways of following share."""

from contextlib import suppress

import anyio
import httpx2
import pytest
from anyio.abc import SocketStream
from hypothesis import given, settings, strategies as st

from callbackkit.client.answers import BlockedError, LostError
from callbackkit.client.follower import METHODS
from callbackkit.client.sse import follow_sse
from callbackkit.client.websocket import follow_websocket
from callbackkit.errors import CallbackKitError
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
        line = Taken().line(client, server.url, patience=0.1)
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
