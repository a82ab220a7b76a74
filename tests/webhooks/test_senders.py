"""What every sender does, held by the same tests for each, on each event loop it runs on."""

import gzip
import itertools
import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from callbackkit.delivery.attempt import failure_of
from callbackkit.delivery.transport import Delivery
from callbackkit.errors import ForbiddenAddressError, Gone, Retry, SendError
from callbackkit.events import Event
from callbackkit.sessions.config import CallbackConfig
from callbackkit.testing import FaultyReceiver
from callbackkit.testing.receiver import Answer, Drip, Endless, Garbage, Hang, Reset, Truncate
from callbackkit.webhooks.aiohttp import AiohttpSender
from callbackkit.webhooks.guard import Guard
from callbackkit.webhooks.httpx2 import Httpx2Sender
from callbackkit.webhooks.sender import (
    MAX_ANSWER,
    NameService,
    Sender,
    WebhookResponse,
    as_send_error,
    look_up,
    target_of,
)
from callbackkit.webhooks.transport import WebhookTransport
from tests.webhooks.sender_rig import (
    BODY,
    DAY,
    OK,
    Authority,
    Peer,
    answers,
    closed,
    end,
    leave_unread,
    loopback,
    post,
    running,
    serving,
    silent,
)

SENDERS: dict[str, tuple[type[Any], str]] = {
    "aiohttp": (AiohttpSender, "asyncio"),
    "httpx2-asyncio": (Httpx2Sender, "asyncio"),
    "httpx2-trio": (Httpx2Sender, "trio"),
}

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

# What the system may hold of what is sent to somebody who does not read.
SOCKET_BUFFERS = 8 * 1024 * 1024


@pytest.fixture(scope="module", params=SENDERS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def anyio_backend(kind: str) -> str:
    return SENDERS[kind][1]


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@asynccontextmanager
async def started(kind: str, guard: Guard | None = None, **options: Any) -> AsyncIterator[Sender]:
    async with running(SENDERS[kind][0](**options), guard) as sender:
        yield sender


@pytest.fixture
async def sender(kind: str) -> AsyncIterator[Sender]:
    async with started(kind) as sender:
        yield sender


@pytest.fixture
async def receiver(anyio_backend: str) -> AsyncIterator[FaultyReceiver]:
    async with FaultyReceiver() as receiver:
        yield receiver


async def send(sender: Sender, url: str, body: bytes = BODY, **headers: str) -> WebhookResponse:
    with anyio.fail_after(10):
        return await sender.send(post(url, body, **headers))


async def failure(sender: Sender, url: str, body: bytes = BODY) -> SendError:
    with pytest.raises(SendError) as caught:
        await send(sender, url, body)
    return caught.value


async def outcome(sender: Sender, url: str) -> str:
    """Return the status, or the text of the error."""
    try:
        return str((await send(sender, url)).status)
    except SendError as exc:
        return str(exc)


# What is sent.


async def test_a_request_arrives_as_it_is(sender: Sender, receiver: FaultyReceiver) -> None:
    answer = await send(
        sender, f"{receiver.url}hook/%7Ea?b=c%2Fd&e", b"\x00{}", **{"webhook-id": "m", "x-a": "ü"}
    )
    request = await receiver.next_request()
    assert answer == WebhookResponse(204, answer.headers)
    assert request.method == "POST"
    assert request.body == b"\x00{}"
    assert request.headers["webhook-id"] == "m"
    assert request.headers["host"] == f"127.0.0.1:{receiver.port}"


async def test_the_head_has_what_was_given_and_no_more(sender: Sender) -> None:
    heads = []

    async def handle(peer: Peer) -> None:
        heads.append(await peer.request())
        await peer.send(OK)

    async with serving(handle) as server:
        await send(sender, f"{server.url}h%7Ea/?b=c%2Fd&e", **{"x-a": "1"})
    line, *fields = heads[0].decode().split("\r\n")
    assert line == "POST /h%7Ea/?b=c%2Fd&e HTTP/1.1"
    assert {each.lower() for each in fields} == {
        f"host: 127.0.0.1:{server.port}",
        "content-type: application/json",
        "x-a: 1",
        f"content-length: {len(BODY)}",
    }


async def test_what_is_not_ascii_in_a_path_is_percent_encoded(sender: Sender) -> None:
    heads = []

    async def handle(peer: Peer) -> None:
        heads.append(await peer.request())
        await peer.send(OK)

    async with serving(handle) as server:
        await send(sender, f"{server.url}\N{SNOWMAN}?q=\N{SNOWMAN}")
    assert heads[0].startswith(b"POST /%E2%98%83?q=%E2%98%83 HTTP/1.1\r\n")


async def test_an_empty_body_is_a_body(sender: Sender, receiver: FaultyReceiver) -> None:
    assert (await send(sender, receiver.url, b"")).status == 204
    assert (await receiver.next_request()).body == b""


async def test_a_large_body_arrives(sender: Sender, receiver: FaultyReceiver) -> None:
    body = bytes(range(256)) * 8_192
    for _ in range(2):
        assert (await send(sender, receiver.url, body)).status == 204
        assert (await receiver.next_request()).body == body
    assert {each.connection for each in receiver.requests} == {1}


# What is answered.


@pytest.mark.parametrize("status", [200, 202, 204, 299, 304, 400, 410, 500, 599, 600, 999])
async def test_a_status_is_returned_whatever_it_is(
    sender: Sender, receiver: FaultyReceiver, status: int
) -> None:
    receiver.script(Answer(status, headers={"Retry-After": "7", "X-A": "1"}))
    answer = await send(sender, receiver.url)
    assert answer.status == status
    told = {} if status < 300 else {"retry-after": "7", "x-a": "1"}
    assert {name: answer.headers.get(name) for name in told} == told
    assert bool(answer.headers) == bool(told)


async def test_the_body_of_a_refusal_is_returned(sender: Sender, receiver: FaultyReceiver) -> None:
    receiver.script(Answer(400, body=b"no such hook"), Answer(200, body=b"thanks"))
    assert (await send(sender, receiver.url)).body == b"no such hook"
    assert (await send(sender, receiver.url)).body == b""


@pytest.mark.parametrize("size", [MAX_ANSWER - 1, MAX_ANSWER, MAX_ANSWER + 1, 10 * MAX_ANSWER])
async def test_a_body_is_cut_at_the_most(
    sender: Sender, receiver: FaultyReceiver, size: int
) -> None:
    receiver.script(Answer(500, body=b"x" * size))
    assert (await send(sender, receiver.url)).body == b"x" * min(size, MAX_ANSWER)
    assert (await send(sender, receiver.url)).status == 204


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed(
    sender: Sender, receiver: FaultyReceiver, status: int
) -> None:
    receiver.script(Answer(status, headers={"Location": f"{receiver.url}elsewhere"}))
    assert (await send(sender, receiver.url)).status == status
    assert len(receiver.requests) == 1


async def test_no_cookie_is_kept(kind: str, receiver: FaultyReceiver) -> None:
    """Of a host with a name: of an address nobody keeps one anyway."""
    receiver.script(Answer(200, headers={"Set-Cookie": "a=b; Path=/"}))
    async with started(kind, find=lambda _: ["127.0.0.1"]) as sender:
        for _ in range(2):
            await send(sender, f"http://hooks.example:{receiver.port}/")
            assert "cookie" not in (await receiver.next_request()).headers


async def test_a_compressed_answer_is_not_unpacked(
    sender: Sender, receiver: FaultyReceiver
) -> None:
    bomb = gzip.compress(bytes(10_000_000))
    receiver.script(Answer(500, headers={"Content-Encoding": "gzip"}, body=bomb))
    assert (await send(sender, receiver.url)).body == bomb[:MAX_ANSWER]


async def test_of_the_environment_no_proxy_and_no_password_is_used(
    kind: str, receiver: FaultyReceiver, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login ada password lovelace\n")
    netrc.chmod(0o600)
    async with FaultyReceiver() as proxy:
        monkeypatch.setenv("NETRC", str(netrc))
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.delenv("NO_PROXY", raising=False)
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
            monkeypatch.setenv(name.upper(), proxy.url)
        async with started(kind) as sender:
            assert (await send(sender, receiver.url)).status == 204
        assert proxy.requests == []
    assert "authorization" not in (await receiver.next_request()).headers


async def test_informational_answers_come_before_the_answer(sender: Sender) -> None:
    async def handle(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        await peer.send(b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n" * 3 + OK)

    async with serving(handle) as server:
        assert (await send(sender, server.url)).status == 204


async def test_an_upgrade_nobody_asked_for_is_a_status(sender: Sender) -> None:
    async def handle(peer: Peer) -> None:
        await peer.request()
        await peer.send(
            b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\nhi"
        )
        await peer.until_gone()

    async with serving(handle) as server:
        assert await outcome(sender, server.url) in {"101", "no valid HTTP answer"}
        await closed(await server.peer())


# Connections.


async def test_twenty_requests_take_one_connection(
    sender: Sender, receiver: FaultyReceiver
) -> None:
    receiver.script(*[200, Answer(500, body=b"x" * 100), 204, Answer(302)] * 5)
    for _ in range(20):
        await send(sender, receiver.url)
    assert {each.connection for each in receiver.requests} == {1}


async def test_hosts_that_hang_hold_up_no_other(sender: Sender, receiver: FaultyReceiver) -> None:
    """There is no number of connections above which a request waits."""
    receiver.on("/hang", Hang())
    async with anyio.create_task_group() as group:
        for _ in range(150):
            group.start_soon(sender.send, post(f"{receiver.url}hang"))
        await receiver.wait_for(150)
        assert (await send(sender, receiver.url)).status == 204
        group.cancel_scope.cancel()


async def test_a_kept_connection_that_was_closed_is_replaced(
    sender: Sender, receiver: FaultyReceiver
) -> None:
    await send(sender, receiver.url)
    await receiver.stop()
    await receiver.resume()
    assert (await send(sender, receiver.url)).status == 204
    assert [each.connection for each in receiver.requests] == [1, 2]


@pytest.mark.parametrize("reset", [False, True])
async def test_a_request_on_a_kept_connection_that_ends_is_sent_once_more(
    sender: Sender, receiver: FaultyReceiver, reset: bool
) -> None:
    """As when the other end closes it in the moment the request is on its way."""
    receiver.script(204, Reset() if reset else Garbage(b""))
    await send(sender, receiver.url)
    assert (await send(sender, receiver.url)).status == 204
    assert [each.connection for each in receiver.requests] == [1, 1, 2]


async def test_a_request_is_not_sent_a_third_time(sender: Sender, receiver: FaultyReceiver) -> None:
    receiver.script(204, Garbage(b""), Garbage(b""))
    await send(sender, receiver.url)
    assert str(await failure(sender, receiver.url)) == "the connection was closed"
    assert len(receiver.requests) == 3


async def test_a_request_on_a_new_connection_is_sent_once(
    sender: Sender, receiver: FaultyReceiver
) -> None:
    receiver.script(Garbage(b""), Reset())
    for _ in range(2):
        assert str(await failure(sender, receiver.url)) == "the connection was closed"
    assert len(receiver.requests) == 2


async def test_what_is_no_answer_is_not_asked_for_again(
    sender: Sender, receiver: FaultyReceiver
) -> None:
    receiver.script(204, Garbage(b"hello\r\n\r\n"))
    await send(sender, receiver.url)
    assert str(await failure(sender, receiver.url)) == "no valid HTTP answer"
    assert len(receiver.requests) == 2


async def test_closing_lets_go_of_kept_connections(kind: str) -> None:
    async with serving(answers) as server:
        async with started(kind) as sender:
            await send(sender, server.url)
            peer = await server.peer()
            assert not peer.gone.is_set()
        await closed(peer)


@pytest.mark.parametrize("moment", ["connected", "asked"])
async def test_closing_ends_what_is_being_sent(kind: str, moment: str) -> None:
    async def handle(peer: Peer) -> None:
        await peer.request()
        asked.set()
        await peer.until_gone()

    asked = anyio.Event()
    errors = []

    async def attempt() -> None:
        errors.append(await failure(sender, server.url))

    async with serving(handle) as server, started(kind) as sender:
        async with anyio.create_task_group() as group:
            group.start_soon(attempt)
            peer = await server.peer()
            if moment == "asked":
                await asked.wait()
            await end(sender)
        await closed(peer)
    assert [str(each) for each in errors] == ["the connection was closed"]


async def test_a_sender_starts_again_after_it_was_closed(
    kind: str, receiver: FaultyReceiver
) -> None:
    sender = SENDERS[kind][0]()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="not started"):
            await sender.send(post(receiver.url))
        for _ in range(2):
            await sender.start(loopback())
        assert (await send(sender, receiver.url)).status == 204
        for _ in range(2):
            await end(sender)


async def test_requests_at_the_same_time_keep_their_connections(sender: Sender) -> None:
    asked = 0
    all_asked = anyio.Event()

    async def handle(peer: Peer) -> None:
        nonlocal asked, all_asked
        while True:
            await peer.request()
            asked += 1
            if asked % 5 == 0:
                all_asked.set()
                all_asked = anyio.Event()
            else:
                await all_asked.wait()
            await peer.send(OK)

    async with serving(handle) as server:
        for _ in range(2):
            async with anyio.create_task_group() as group:
                for _ in range(5):
                    group.start_soon(send, sender, server.url)
        assert (asked, len(server.peers)) == (10, 5)


async def test_no_more_connections_are_kept_than_may_be(kind: str) -> None:
    async with (
        serving(answers) as server,
        started(kind, find=lambda _: ["127.0.0.1"], max_idle=5) as sender,
    ):
        for number in range(20):
            assert (await send(sender, f"http://h{number}.example:{server.port}/")).status == 204
        async with anyio.create_task_group() as group:
            gone = []

            async def note(peer: Peer) -> None:
                await closed(peer)
                gone.append(peer)
                if len(gone) == 15:
                    group.cancel_scope.cancel()

            for peer in server.peers:
                group.start_soon(note, peer)
        assert len(gone) == 15


async def test_of_one_host_no_more_connections_are_kept_either(kind: str) -> None:
    """Where all sessions are delivered to one host, it has as many as there were at a time."""
    asked = 0
    all_asked = anyio.Event()

    async def handle(peer: Peer) -> None:
        nonlocal asked
        while True:
            await peer.request()
            asked += 1
            if asked == 8:
                all_asked.set()
            await all_asked.wait()
            await peer.send(OK)

    async with serving(handle) as server, started(kind, max_idle=3) as sender:
        async with anyio.create_task_group() as group:
            for _ in range(8):
                group.start_soon(send, sender, server.url)
        assert len(server.peers) == 8
        with anyio.fail_after(10):
            while sum(peer.gone.is_set() for peer in server.peers) < 5:
                await anyio.lowlevel.checkpoint()
        # Those that are kept carry what comes next.
        for _ in range(3):
            await send(sender, server.url)
        assert len(server.peers) == 8
        assert sum(peer.gone.is_set() for peer in server.peers) == 5


async def test_a_connection_is_not_kept_for_ever(kind: str) -> None:
    async with (
        serving(answers) as server,
        started(kind, find=lambda _: ["127.0.0.1"], keepalive=0.05) as sender,
    ):
        await send(sender, f"http://a.example:{server.port}/")
        peer = await server.peer()
        with anyio.fail_after(10):
            # What was kept for too long is looked for when something else is sent.
            while not peer.gone.is_set():
                await send(sender, f"http://b.example:{server.port}/")


async def test_a_host_is_kept_again_once_others_were_not_used_for_long(kind: str) -> None:
    async with (
        serving(answers) as server,
        started(kind, find=lambda _: ["127.0.0.1"], keepalive=0.05, max_idle=1) as sender,
    ):
        await send(sender, f"http://a.example:{server.port}/")
        count = 0
        with anyio.fail_after(10):
            while len(server.peers) > count:
                count = len(server.peers)
                await send(sender, f"http://b.example:{server.port}/")


@pytest.mark.parametrize(
    "options", [{"keepalive": 0}, {"keepalive": float("inf")}, {"max_idle": -1}]
)
def test_numbers_out_of_their_range_are_refused(kind: str, options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be"):
        SENDERS[kind][0](**options)


# Answers that do not end.


@pytest.mark.parametrize("status", [200, 500])
async def test_a_body_without_end_is_not_read(sender: Sender, status: int) -> None:
    """Ten gigabytes cost what the sockets hold."""

    async def handle(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 %d X\r\ncontent-length: 10000000000\r\n\r\n" % status)
        while True:
            await peer.send(bytes(65_536))

    async with serving(handle) as server:
        answer = await send(sender, server.url)
        assert (answer.status, len(answer.body)) == (status, 0 if status == 200 else MAX_ANSWER)
        peer = await server.peer()
        await closed(peer)
        assert peer.sent < SOCKET_BUFFERS
        assert (await send(sender, server.url)).status == status
        assert len(server.peers) == 2


async def test_chunks_without_end_are_not_read(sender: Sender, receiver: FaultyReceiver) -> None:
    receiver.otherwise = Endless(200)
    assert (await send(sender, receiver.url)).status == 200
    receiver.otherwise = Endless(500)
    assert len((await send(sender, receiver.url)).body) == MAX_ANSWER
    assert [each.connection for each in receiver.requests] == [1, 2]


@pytest.mark.parametrize("status", [200, 503])
async def test_a_body_that_drips_is_not_waited_for(
    sender: Sender, receiver: FaultyReceiver, status: int
) -> None:
    receiver.script(Drip(status))
    before = anyio.current_time()
    assert (await send(sender, receiver.url)).status == status
    assert anyio.current_time() - before < 5.0
    assert (await send(sender, receiver.url)).status == 204
    assert [each.connection for each in receiver.requests] == [1, 2]


@pytest.mark.parametrize("own", [None, 0.5], ids=["transport", "session"])
@pytest.mark.parametrize(
    ("head", "verdict"),
    [
        (b"200 OK", None),
        (b"410 Gone", Gone),
        (b"503 X\r\nretry-after: 7", Retry),
        (b"429 X\r\nretry-after: 7", Retry),
    ],
)
async def test_an_answer_that_drips_past_the_timeout_counts_by_its_status(
    kind: str, head: bytes, verdict: type[Exception] | None, own: float | None
) -> None:
    """Given up on, it would be sent again; and who is gone, or asks for a rest, would not be."""

    async def handle(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 " + head + b"\r\ncontent-length: 1000000\r\n\r\n")
        while True:
            await peer.send(b"x")
            await anyio.sleep(0.02)

    transport = WebhookTransport.for_development(
        sender=SENDERS[kind][0](), timeout=0.5 if own is None else 60.0
    )
    async with serving(handle) as server:
        await transport.start()
        config = CallbackConfig(webhook_url=server.url, webhook_secret=SECRET, timeout=own)
        event = Event.of("step", {}, position="epoch-1", session_id="s")
        one = Delivery(id="s_1", events=(event,), attempt=1, session_id="s", config=config)
        # It is done at 0.4 s, and would not be before a second if that were all.
        with anyio.fail_after(0.9):
            error = await failure_of(transport.send, one, timeout=60.0)
        await transport.aclose()
    assert error is None if verdict is None else type(error) is verdict
    if isinstance(error, Retry):
        assert error.after == 7.0


@pytest.mark.parametrize(
    ("status", "rest"),
    [
        (204, b"\r\n\r\nOK"),
        (204, b"\r\ncontent-length: 0\r\n\r\nHTTP/1.1 500 X\r\n\r\n"),
        (200, b"\r\ncontent-length: 0\r\n\r\nOK"),
        (410, b"\r\ncontent-length: 0\r\n\r\nOK"),
        (200, b"\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nhello"),
        (410, b"\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nhello"),
        (200, b"\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello world"),
        (200, b"\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\nOK"),
        (410, b"\r\ncontent-length: 3\r\n\r\nOK\r\n\r\nOK\r\n\r\n"),
    ],
)
async def test_what_comes_behind_a_head_and_is_wrong_does_not_undo_the_status(
    sender: Sender, status: int, rest: bytes
) -> None:
    """In the same packet: what was delivered is not sent again, and who is gone is gone."""

    async def handle(peer: Peer) -> None:
        if peer.number == 1:
            await peer.request()
            await peer.send(b"HTTP/1.1 %d X" % status + rest)
        await answers(peer)

    async with serving(handle) as server:
        assert await outcome(sender, server.url) == str(status)
        # None of it is taken for the answer to the next request.
        assert await outcome(sender, server.url) == "204"


async def test_a_body_that_comes_a_little_late_leaves_the_connection_usable(
    sender: Sender, receiver: FaultyReceiver
) -> None:
    receiver.script(Drip(200, interval=0.01, size=5), Drip(500, interval=0.01, size=5))
    assert (await send(sender, receiver.url)).body == b""
    assert (await send(sender, receiver.url)).body == b"xxxxx"
    assert (await send(sender, receiver.url)).status == 204
    assert {each.connection for each in receiver.requests} == {1}


async def test_a_body_that_is_cut_off_keeps_its_status(
    sender: Sender, receiver: FaultyReceiver
) -> None:
    receiver.script(Truncate(200), Truncate(500), Reset(after=500))
    assert (await send(sender, receiver.url)).status == 200
    assert (await send(sender, receiver.url)).status == 500
    assert (await send(sender, receiver.url)).status == 200


@pytest.mark.parametrize(
    "filler",
    [b"x-a: " + b"a" * 8_000_000, b"x-a: b\r\n" * 1_000_000, b"x" * 8_000_000],
    ids=["long", "many", "no-colon"],
)
async def test_headers_without_end_are_no_answer(sender: Sender, filler: bytes) -> None:
    async def handle(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\n")
        for start in range(0, len(filler), 10_000):
            await peer.send(filler[start : start + 10_000])
        await peer.until_gone()

    async with serving(handle) as server:
        assert str(await failure(sender, server.url)) == "no valid HTTP answer"


@pytest.mark.parametrize(
    "head",
    [
        b"hello",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"<html>HTTP/0.9</html>",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 99999 OK\r\n\r\n",
        b"HTTP/1.1 OK 200\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5, 6\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\ncontent-length: -5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\ncontent-length: five\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\na b: c\r\n\r\n",
        b"HTTP/1.1 200 OK\r\na: b\x00\r\n\r\n",
    ],
)
async def test_what_is_no_http_is_no_answer(
    sender: Sender, receiver: FaultyReceiver, head: bytes
) -> None:
    receiver.script(Garbage(head))
    error = await failure(sender, receiver.url)
    assert str(error) in {"no valid HTTP answer", "the connection was closed"}
    # A library's exception may have in its text what was sent, or answered.
    assert error.__cause__ is None or isinstance(error.__cause__, OSError)
    assert error.__context__ is None


async def test_an_answer_of_two_lengths_is_no_way_into_the_next(
    sender: Sender, receiver: FaultyReceiver
) -> None:
    """Chunked and a length: whatever is made of it, the connection is not used again."""
    receiver.script(
        Garbage(
            b"HTTP/1.1 500 X\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n"
            b"0\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
        )
    )
    assert await outcome(sender, receiver.url) in {"500", "no valid HTTP answer"}
    assert (await send(sender, receiver.url)).status == 204
    assert len(receiver.requests) == 2


HEADS = st.builds(
    lambda *parts: b"".join(parts),
    st.sampled_from([b"HTTP/1.1 ", b"HTTP/1.0 ", b"HTTP/9.9 ", b"ICY ", b""]),
    st.sampled_from([b"200 OK", b"204 X", b"100 Go", b"500", b"101 Up", b"1000 X", b"304", b""]),
    st.sampled_from([b"\r\n", b"\n", b"\r", b" \r\n"]),
    st.lists(
        st.sampled_from(
            [
                b"content-length: 5\r\n",
                b"content-length: 0\r\n",
                b"content-length: 5\n",
                b"content-length: 99999999999999999999999999\r\n",
                b"transfer-encoding: chunked\r\n",
                b"transfer-encoding: gzip, chunked\r\n",
                b"transfer-encoding: identity\r\n",
                b"connection: close\r\n",
                b"connection: upgrade\r\nupgrade: h2c\r\n",
                b"content-encoding: gzip\r\n",
                b"set-cookie: a=\xff\r\n",
                b"x: \xe2\x98\x83\r\n",
                b" folded\r\n",
                b"\x00: a\r\n",
            ]
        ),
        max_size=4,
    ).map(b"".join),
    st.sampled_from([b"\r\n", b"\n", b""]),
    st.sampled_from(
        [b"hello", b"5\r\nhello\r\n0\r\n\r\n", b"fffffffffffffffff\r\n", b"-1\r\n", b""]
    ),
    st.binary(max_size=20),
)


@settings(
    max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(answer=st.one_of(HEADS, st.binary(max_size=200)))
async def test_whatever_is_answered_is_a_status_or_a_send_error(
    sender: Sender, receiver: FaultyReceiver, answer: bytes
) -> None:
    receiver.script(Garbage(answer))
    told = await outcome(sender, receiver.url)
    assert told.isdigit() or told in {"no valid HTTP answer", "the connection was closed"}


# Requests that are not read.


async def test_a_refusal_before_the_body_was_read_is_an_answer(sender: Sender) -> None:
    async def handle(peer: Peer) -> None:
        await peer.head()
        await peer.send(b"HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\n\r\n")
        await anyio.sleep_forever()

    async with serving(handle) as server:
        for _ in range(2):
            answer = await send(sender, server.url, bytes(32 * 1024 * 1024))
            assert answer.status == 413
        # What is left of the first body would be taken for the second request.
        assert len(server.peers) == 2


@pytest.mark.parametrize("read", ["nothing", "the head"])
@pytest.mark.parametrize("size", [100, 32 * 1024 * 1024])
async def test_who_closes_before_the_body_was_read_has_not_answered(
    sender: Sender, read: str, size: int
) -> None:
    async def handle(peer: Peer) -> None:
        if read == "the head":
            await peer.head()

    async with serving(handle) as server:
        error = await failure(sender, server.url, bytes(size))
        assert str(error) == "the connection was closed"
        assert len(server.peers) == 1


async def test_who_does_not_read_is_left_at_the_deadline(sender: Sender) -> None:
    await leave_unread(sender)


# Being cancelled.


@pytest.mark.parametrize(
    "part", [b"", b"HTTP/1.1 ", b"HTTP/1.1 500 X\r\ncontent-length: 9\r\n\r\nab"]
)
async def test_being_cancelled_closes_the_connection(sender: Sender, part: bytes) -> None:
    async def handle(peer: Peer) -> None:
        await peer.request()
        await peer.send(part)
        asked.set()
        await peer.until_gone()

    asked = anyio.Event()
    async with serving(handle) as server, anyio.create_task_group() as group:
        group.start_soon(sender.send, post(server.url))
        await asked.wait()
        group.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            await closed(await server.peer())


@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["127.0.0.2", "127.0.0.1"]])
async def test_being_cancelled_at_any_moment_leaks_nothing(
    kind: str, authority: Authority, addresses: list[str]
) -> None:
    """After every number of steps of the event loop that a request takes."""
    context = authority.server(authority.issue("localhost"))
    async with (
        serving(answers, context=context) as server,
        started(kind, ssl_context=authority.trusting(), find=lambda _: addresses) as sender,
    ):
        url = f"https://localhost:{server.port}/"
        for steps in itertools.count():
            async with anyio.create_task_group() as group:
                done = anyio.Event()
                group.start_soon(_send_once, sender, url, done)
                for _ in range(steps):
                    await anyio.lowlevel.checkpoint()
                if not done.is_set():
                    group.cancel_scope.cancel()
            if done.is_set() or steps > 5_000:
                break
        assert done.is_set()
        await end(sender)
        for peer in server.peers:
            await closed(peer)


async def _send_once(sender: Sender, url: str, done: anyio.Event) -> None:
    assert (await sender.send(post(url))).status == 204
    done.set()


# Addresses.


@pytest.mark.parametrize(
    "host",
    [
        "no-such-host.invalid",
        "a..b.invalid",
        ".invalid",
        "a" * 64 + ".invalid",
        ".".join(["a" * 60] * 5),
        "%00.invalid",
    ],
)
async def test_a_host_that_has_no_address_is_not_found(sender: Sender, host: str) -> None:
    for scheme in ("http", "https"):
        error = await failure(sender, f"{scheme}://{host}/")
        assert str(error) == "the host was not found"
        assert type(error) is SendError


async def test_a_name_service_that_knows_no_address_has_not_found_it(kind: str) -> None:
    async with started(kind, find=lambda _: []) as sender:
        assert str(await failure(sender, "http://a.example/")) == "the host was not found"


async def test_what_was_judged_is_what_is_looked_up(kind: str) -> None:
    """A host name in other letters than those of ASCII goes as the guard has read it."""
    asked: list[str] = []

    def find(host: str) -> list[str]:
        asked.append(host)
        return []

    async with started(kind, find=find) as sender:
        await failure(sender, "http://B\u00fccher.example/")
        await failure(sender, "http://\u24d4xample.example/")
    assert asked == ["xn--bcher-kva.example", "example.example"]


async def test_nobody_there_is_an_error_that_names_nothing(sender: Sender) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        error = await failure(sender, f"http://127.0.0.1:{port}/secret?token=s3cret")
    assert str(error) == "could not connect"
    assert isinstance(error.__cause__, OSError)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0x7f.1", "[::ffff:127.0.0.1]", "0"])
async def test_a_forbidden_address_is_not_dialled(kind: str, host: str) -> None:
    async with serving(answers) as server:
        async with started(kind, Guard(require_https=False, ports=None)) as sender:
            for scheme in ("http", "https"):
                with pytest.raises((ForbiddenAddressError, SendError)) as caught:
                    await send(sender, f"{scheme}://{host}:{server.port}/")
                if host in {"127.0.0.1", "localhost", "[::ffff:127.0.0.1]"}:
                    assert caught.type is ForbiddenAddressError
        assert server.peers == []


async def test_of_several_addresses_only_the_allowed_are_dialled(kind: str) -> None:
    guard = Guard(allowed_networks=["127.0.0.1/32"], require_https=False)
    async with serving(answers) as server:
        for found in (["127.0.0.2", "127.0.0.1"], ["127.0.0.1", "127.0.0.2", "10.0.0.1"]):
            async with started(kind, guard, find=lambda _, found=found: found) as sender:
                assert (await send(sender, f"http://a.example:{server.port}/")).status == 204
        assert [peer.host for peer in server.peers] == ["127.0.0.1", "127.0.0.1"]


async def test_a_host_with_forbidden_addresses_only_is_forbidden(kind: str) -> None:
    guard = Guard(allowed_networks=["127.0.0.1/32"], require_https=False, ports=None)
    async with (
        serving(answers) as server,
        started(kind, guard, find=lambda _: ["127.0.0.2", "::1", "127.0.0.2"]) as sender,
    ):
        with pytest.raises(ForbiddenAddressError):
            await send(sender, f"http://a.example:{server.port}/")
        assert server.peers == []


async def test_an_address_is_judged_each_time_it_is_dialled(kind: str) -> None:
    """A name that leads to us the second time, once its first address was found good."""
    addresses = iter([["127.0.0.1"], ["127.0.0.2"]])
    guard = Guard(allowed_networks=["127.0.0.1/32"], require_https=False)
    async with (
        FaultyReceiver() as receiver,
        started(kind, guard, find=lambda _: next(addresses)) as sender,
    ):
        receiver.script(Answer(200, close=True))
        url = f"http://a.example:{receiver.port}/"
        assert (await send(sender, url)).status == 200
        with pytest.raises(ForbiddenAddressError):
            await send(sender, url)


async def test_an_address_where_nobody_is_does_not_hide_the_next(kind: str) -> None:
    async with (
        FaultyReceiver() as receiver,
        started(kind, find=lambda _: ["127.0.0.9", "::1", "127.0.0.1"]) as sender,
    ):
        assert (await send(sender, f"http://a.example:{receiver.port}/")).status == 204


async def test_an_address_that_does_not_answer_holds_up_little(kind: str) -> None:
    """As where the way of one family of addresses leads nowhere."""
    async with (
        FaultyReceiver() as receiver,
        started(kind, find=lambda _: ["127.0.0.5", "127.0.0.1"]) as sender,
    ):
        with silent("127.0.0.5", receiver.port):
            assert (await send(sender, f"http://a.example:{receiver.port}/")).status == 204


async def test_all_addresses_may_be_where_nobody_is(kind: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        async with started(kind, find=lambda _: ["127.0.0.1", "::1", "127.0.0.2"]) as sender:
            assert str(await failure(sender, f"http://a.example:{port}/")) == "could not connect"


async def test_names_that_are_looked_up_for_long_hold_up_no_other(
    kind: str, receiver: FaultyReceiver
) -> None:
    """More than the threads that an event loop has for everybody."""
    proceed = threading.Event()
    waiting = threading.Semaphore(0)

    def find(host: str) -> list[str]:
        if host == "slow.example":
            waiting.release()
            proceed.wait(10)
        return ["127.0.0.1"]

    async with started(kind, find=find) as sender, anyio.create_task_group() as group:
        for _ in range(60):
            group.start_soon(sender.send, post("http://slow.example/"))
        while not waiting.acquire(blocking=False):
            await anyio.lowlevel.checkpoint()
        assert (await send(sender, f"http://a.example:{receiver.port}/")).status == 204
        group.cancel_scope.cancel()
        proceed.set()


async def test_lookups_that_hang_make_so_many_threads_and_no_more(kind: str) -> None:
    """Also when nobody waits for them any longer: each attempt is given up on, and made again."""
    proceed = threading.Event()
    asked: list[str] = []
    begun: list[threading.Thread] = []

    def find(host: str) -> list[str]:
        begun.append(threading.current_thread())
        asked.append(host)
        if host == "slow.example":
            proceed.wait(60)
        return ["127.0.0.1"]

    def threads() -> list[threading.Thread]:
        return [each for each in begun if each.is_alive()]

    names = NameService(loopback(), find)
    try:
        for _ in range(3):
            async with anyio.create_task_group() as group:
                for _ in range(200):
                    group.start_soon(names.addresses, "slow.example", 443)
                await anyio.wait_all_tasks_blocked()
                group.cancel_scope.cancel()
        with anyio.fail_after(10):
            while len(begun) < 256:
                await anyio.lowlevel.checkpoint()
        assert len(threads()) == 256
        # Whoever comes now waits, and can give up too.
        with anyio.move_on_after(0.01) as scope:
            await names.addresses("a.example", 443)
        assert scope.cancelled_caught
    finally:
        proceed.set()
    with anyio.fail_after(10):
        assert await names.addresses("a.example", 443) == ["127.0.0.1"]
        while threads():
            await anyio.lowlevel.checkpoint()
    assert sorted(asked) == ["a.example"] + ["slow.example"] * 256
    # All of the room is there again.
    async with anyio.create_task_group() as group:
        for _ in range(300):
            group.start_soon(names.addresses, "a.example", 443)
    assert len(asked) == 557


def test_a_name_service_that_does_not_answer_holds_up_no_exit(kind: str) -> None:
    sender, backend = SENDERS[kind]
    program = f"""
import threading, anyio
from {sender.__module__} import {sender.__name__}
from tests.webhooks.sender_rig import post, running

asked = threading.Event()

def find(host):
    asked.set()
    threading.Event().wait()

async def main():
    async with running({sender.__name__}(find=find)) as sender:
        async with anyio.create_task_group() as group:
            group.start_soon(sender.send, post("http://slow.example/"))
            while not asked.is_set():
                await anyio.sleep(0)
            group.cancel_scope.cancel()

anyio.run(main, backend={backend!r})
print("done")
"""
    root = str(Path(__file__).parents[2])
    ended = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
        cwd=root,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([root, *sys.path])},
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "done\n", "")


async def test_hosts_at_one_address_share_no_connection(
    kind: str, receiver: FaultyReceiver
) -> None:
    async with started(kind, find=lambda _: ["127.0.0.1"]) as sender:
        for host in ("a.example", "b.example", "a.example"):
            assert (await send(sender, f"http://{host}:{receiver.port}/")).status == 204
    assert [each.connection for each in receiver.requests] == [1, 2, 1]
    assert [each.headers["host"].split(":")[0] for each in receiver.requests] == [
        "a.example",
        "b.example",
        "a.example",
    ]


# Certificates.


@asynccontextmanager
async def https(kind: str, authority: Authority, context: ssl.SSLContext) -> AsyncIterator[Any]:
    """Yield a receiver with a certificate, and a sender that takes every name for its host's."""
    async with (
        FaultyReceiver(ssl_context=context) as receiver,
        started(kind, ssl_context=authority.trusting(), find=lambda _: ["127.0.0.1"]) as sender,
    ):
        yield receiver, sender


@pytest.mark.parametrize("host", ["hooks.example", "hooks.example.", "HOOKS.example"])
async def test_the_certificate_of_the_host_is_taken(
    kind: str, authority: Authority, host: str
) -> None:
    context = authority.server(authority.issue("hooks.example"))
    async with https(kind, authority, context) as (receiver, sender):
        for _ in range(20):
            assert (await send(sender, f"https://{host}:{receiver.port}/")).status == 204
        assert {each.connection for each in receiver.requests} == {1}


async def test_the_certificate_of_an_address_is_taken(kind: str, authority: Authority) -> None:
    context = authority.server(authority.issue("127.0.0.1"))
    async with https(kind, authority, context) as (receiver, sender):
        assert (await send(sender, receiver.url)).status == 204


async def test_a_name_is_not_taken_for_that_of_another_at_its_address(
    kind: str, authority: Authority
) -> None:
    """Nor does a connection that was made for one host carry requests to another."""
    context = authority.server(authority.issue("a.example"))
    async with https(kind, authority, context) as (receiver, sender):
        assert (await send(sender, f"https://a.example:{receiver.port}/")).status == 204
        error = await failure(sender, f"https://b.example:{receiver.port}/")
        assert str(error) == "the certificate is not valid for the host"
        assert len(receiver.requests) == 1


async def test_the_name_of_the_host_is_asked_for(kind: str, authority: Authority) -> None:
    names = []
    context = authority.server(authority.issue("hooks.example"))
    context.sni_callback = lambda _socket, name, _context: names.append(name)
    async with https(kind, authority, context) as (receiver, sender):
        await send(sender, f"https://hooks.example:{receiver.port}/")
    assert names == ["hooks.example"]


@pytest.mark.parametrize("wrong", ["unknown", "self-signed", "expired", "not yet"])
async def test_a_certificate_that_is_not_good_is_refused(
    kind: str, authority: Authority, wrong: str
) -> None:
    now = datetime.now(UTC)
    name = "hooks.example"
    contexts = {
        "unknown": lambda: authority.server(Authority().issue(name)),
        "self-signed": lambda: authority.self_signed(name),
        "expired": lambda: authority.server(
            authority.issue(name, not_before=now - 2 * DAY, not_after=now - DAY)
        ),
        "not yet": lambda: authority.server(authority.issue(name, not_before=now + DAY)),
    }
    async with https(kind, authority, contexts[wrong]()) as (receiver, sender):
        error = await failure(sender, f"https://hooks.example:{receiver.port}/")
        assert str(error) == "the certificate is not valid for the host"
        assert isinstance(error.__cause__, ssl.SSLError)
        assert receiver.requests == []


async def test_an_authority_that_the_machine_does_not_know_is_refused(
    kind: str, authority: Authority
) -> None:
    context = authority.server(authority.issue("127.0.0.1"))
    async with FaultyReceiver(ssl_context=context) as receiver, started(kind) as sender:
        assert "certificate" in str(await failure(sender, receiver.url))
        assert receiver.requests == []


async def test_a_server_without_tls_is_refused(sender: Sender) -> None:
    async def handle(peer: Peer) -> None:
        await peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await peer.until_gone()

    async with serving(handle) as server:
        error = await failure(sender, f"https://127.0.0.1:{server.port}/")
        assert str(error) == "TLS failed"


async def test_a_server_that_closes_at_once_has_no_tls(sender: Sender) -> None:
    async def handle(peer: Peer) -> None:
        pass

    async with serving(handle) as server:
        error = await failure(sender, f"https://127.0.0.1:{server.port}/")
        assert str(error) in {"could not connect", "TLS failed"}


async def test_a_handshake_that_hangs_is_left_at_the_deadline(sender: Sender) -> None:
    async def handle(peer: Peer) -> None:
        asked.set()
        await peer.until_gone()

    asked = anyio.Event()
    async with serving(handle) as server, anyio.create_task_group() as group:
        group.start_soon(sender.send, post(f"https://127.0.0.1:{server.port}/"))
        await asked.wait()
        group.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            await closed(await server.peer())


@pytest.mark.parametrize("lenient", ["names", "certificates"])
def test_certificates_can_not_be_left_unchecked(kind: str, lenient: str) -> None:
    context = ssl.create_default_context()
    context.check_hostname = False
    if lenient == "certificates":
        context.verify_mode = ssl.CERT_NONE
    with pytest.raises(ValueError, match="ssl_context must check"):
        SENDERS[kind][0](ssl_context=context)


# What is told.


async def test_no_error_shows_where_it_was_sent_or_what(
    kind: str, authority: Authority, receiver: FaultyReceiver
) -> None:
    receiver.otherwise = Garbage(b"s3cret answer\r\n\r\n")
    async with started(kind) as sender:
        request = post(f"{receiver.url}s3cret", b"s3cret", authorization="s3cret")
        with pytest.raises(SendError) as caught:
            await sender.send(request)
        assert "s3cret" not in f"{caught.value}{caught.value!r}{sender!r}"
    assert "s3cret" not in repr(attrs.evolve(request, url=""))


def test_an_error_of_ours_is_found_below_those_of_a_library() -> None:
    """As when all addresses of a host were refused, and a library says that none answered."""
    forbidden = ForbiddenAddressError("the address is not public")
    library = OSError("Multiple exceptions")
    library.__cause__ = ExceptionGroup("all failed", [OSError("refused"), forbidden])
    assert as_send_error(library, "could not connect") is forbidden


@pytest.mark.parametrize(
    ("below", "words"),
    [
        (ssl.SSLCertVerificationError("x"), "the certificate is not valid for the host"),
        (ssl.SSLEOFError("x"), "TLS failed"),
        (socket.gaierror("x"), "the host was not found"),
        (ConnectionResetError("x"), "no answer"),
    ],
)
def test_an_error_is_put_into_words_of_ours(below: Exception, words: str) -> None:
    error = OSError("s3cret")
    error.__context__ = ExceptionGroup("s3cret", [below])
    assert str(as_send_error(error, "no answer")) == words
    assert type(as_send_error(error, "no answer")) is SendError


def test_errors_that_come_from_each_other_have_an_end() -> None:
    error, other = OSError("a"), OSError("b")
    error.__cause__, other.__cause__ = other, error
    assert str(as_send_error(error, "no answer")) == "no answer"


# URLs.


@pytest.mark.parametrize(
    ("url", "authority", "path"),
    [
        ("https://a.example", "a.example", "/"),
        ("https://a.example:443/b?c", "a.example", "/b?c"),
        ("http://a.example:443/", "a.example:443", "/"),
        ("http://A.Example:80?b", "a.example", "/?b"),
        ("http://[::1]:8080/%20;a=b?c=d%26e", "[::1]:8080", "/%20;a=b?c=d%26e"),
        ("http://a.example/\u00fc?\u00fc", "a.example", "/%C3%BC?%C3%BC"),
        ("http://a.example/a%zz'(b)", "a.example", "/a%zz'(b)"),
    ],
)
def test_a_url_is_taken_apart(url: str, authority: str, path: str) -> None:
    target = target_of(url)
    assert (target.authority, target.path) == (authority, path)
    assert target_of(target.url) == target


def test_the_system_knows_addresses() -> None:
    assert "127.0.0.1" in look_up("localhost")
    assert look_up("::1") == ["::1"]
