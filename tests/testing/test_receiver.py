"""A receiver that does what a test says, over real connections."""

import gzip
import http.client
import json
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from typing import Any

import anyio
import anyio.to_thread
import httpx2
import pytest
import trustme

from callbackkit.errors import SignatureError
from callbackkit.events import Event
from callbackkit.testing import (
    Answer,
    Drip,
    Endless,
    FaultyReceiver,
    Garbage,
    Hang,
    ReceivedRequest,
    Reset,
    Truncate,
)
from callbackkit.wire.envelope import encode_event
from callbackkit.wire.signature import sign
from tests.testing.wires import TIMEOUT, Client, refused, within

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@pytest.fixture
async def receiver() -> AsyncIterator[FaultyReceiver]:
    async with FaultyReceiver() as receiver:
        yield receiver


@pytest.fixture
async def client(receiver: FaultyReceiver) -> AsyncIterator[Client]:
    async with await Client.to(receiver.port) as client:
        yield client


async def status_at(port: int, path: str = "/") -> int:
    async with await Client.to(port) as client:
        return int((await client.asks(path)).split()[1])


# What it got.


async def test_a_request_is_kept_as_it_was_sent(receiver, client) -> None:
    before = time.monotonic()
    await client.asks("/hook?token=1&a=%20", b"\x00body", "X-Twice: a", "x-twice:\tb ")
    request = await within(receiver.next_request)
    assert (request.method, request.path, request.query) == ("POST", "/hook", "token=1&a=%20")
    assert request.headers == {"host": "x", "content-length": "5", "x-twice": "a, b"}
    assert (request.body, request.connection, request.version) == (b"\x00body", 1, "1.1")
    assert before <= request.at <= time.monotonic()
    assert receiver.requests == [request]
    receiver.requests.clear()  # a list of the caller's own
    assert receiver.requests == [request]


async def test_requests_are_handed_out_in_order_and_once(receiver, client) -> None:
    for path in ("/1", "/2", "/3"):
        await client.asks(path)
    assert [(await within(receiver.next_request)).path for _ in range(2)] == ["/1", "/2"]
    assert [each.path for each in receiver.requests] == ["/1", "/2", "/3"]
    assert (await within(receiver.next_request)).path == "/3"


async def test_each_of_two_who_wait_gets_a_request_of_its_own(receiver, client) -> None:
    got: list[str] = []

    async def wait() -> None:
        got.append((await receiver.next_request()).path)

    with anyio.fail_after(TIMEOUT):
        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            group.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            await client.asks("/1")
            await client.asks("/2")
    assert sorted(got) == ["/1", "/2"]


async def test_a_wait_in_vain_says_how_many_came(receiver, client) -> None:
    await client.asks()
    await within(receiver.next_request)
    with pytest.raises(TimeoutError, match=r"1 request came within 0\.01 seconds, not 2"):
        await receiver.next_request(timeout=0.01)
    with pytest.raises(TimeoutError, match=r"1 request came within 0\.01 seconds, not 3"):
        await receiver.wait_for(3, timeout=0.01)
    assert [each.path for each in await receiver.wait_for(1)] == ["/"]


async def test_as_many_are_waited_for_as_are_asked_for(receiver, client) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(client.asks, "/1")
        assert [each.path for each in await within(receiver.wait_for, 1)] == ["/1"]
    await client.asks("/2")
    await client.asks("/3")
    assert [each.path for each in await within(receiver.wait_for, 2)] == ["/1", "/2"]


async def test_deliveries_are_requests_by_their_webhook_id(receiver, client) -> None:
    for path, webhook_id in (("/1", "a"), ("/2", "b"), ("/3", "a")):
        await client.asks(path, b"", f"Webhook-Id: {webhook_id}")
    await client.asks("/4")
    paths = {key: [one.path for one in each] for key, each in receiver.deliveries.items()}
    assert paths == {"a": ["/1", "/3"], "b": ["/2"]}


async def test_the_body_is_json_packed_or_not(receiver, client) -> None:
    await client.asks("/", b'{"a": 1}')
    await client.asks("/", gzip.compress(b'{"a": 2}'), "Content-Encoding: gzip")
    first, second = await within(receiver.wait_for, 2)
    assert (first.json(), second.json()) == ({"a": 1}, {"a": 2})
    assert second.body.startswith(b"\x1f\x8b")


async def test_a_signature_is_verified(receiver, client) -> None:
    now = int(time.time())
    signature = sign(SECRET, id="msg_1", timestamp=now, body=b"{}")
    await client.asks(
        "/",
        b"{}",
        "webhook-id: msg_1",
        f"webhook-timestamp: {now}",
        f"webhook-signature: {signature}",
    )
    request = await within(receiver.next_request)
    request.verify(SECRET)
    request.verify(["whsec_" + "A" * 32, SECRET])
    with pytest.raises(SignatureError):
        request.verify("whsec_" + "A" * 32)


async def test_the_events_of_a_session_are_read_from_a_signed_request(receiver, client) -> None:
    body, now = encode_event(Event.of("progress", {"progress": 0.5})), int(time.time())
    signature = sign(SECRET, id="msg_1", timestamp=now, body=body)
    stamp = f"webhook-timestamp: {now}"
    await client.asks("/", body, "webhook-id: msg_1", stamp, f"webhook-signature: {signature}")
    await client.asks("/", body)
    signed, unsigned = await within(receiver.wait_for, 2)
    assert [each.data for each in signed.events(SECRET)] == [{"progress": 0.5}]
    with pytest.raises(SignatureError):
        unsigned.events(SECRET)


async def test_what_may_be_secret_is_not_shown(receiver, client) -> None:
    await client.asks("/?token=hush", b"hush", "Authorization: hush")
    request = await within(receiver.next_request)
    assert "hush" not in repr(request) + str(request) + repr(receiver)
    assert "'POST'" in repr(request)


async def test_a_request_that_is_not_complete_is_not_kept(receiver, client) -> None:
    await client.send(b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nbod")
    client.end()
    assert await client.rest() == (b"", "in order")
    await within(receiver.wait_disconnected)
    assert receiver.requests == []


# How requests are written.


async def test_a_body_in_chunks_is_put_together(receiver, client) -> None:
    await client.send(
        b"POST / HTTP/1.1\r\nTransfer-Encoding: Chunked\r\n\r\n"
        b"3\r\nabc\r\nA ;name=value\r\n0123456789\r\n0\r\nTrailer: x\r\nAnother: y\r\n\r\n"
    )
    assert b" 204 " in await client.until(b"\r\n\r\n")
    assert b" 204 " in await client.asks("/next")
    assert [each.body for each in receiver.requests] == [b"abc0123456789", b""]


async def test_a_body_in_any_pieces_is_the_same(receiver, client) -> None:
    whole = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    for byte in whole:
        await client.send(bytes([byte]))
    await client.until(b"\r\n\r\n")
    assert receiver.requests[0].body == b"abc"


async def test_a_client_that_expects_a_100_gets_it_before_it_sends_the_body(
    receiver, client
) -> None:
    head = b"POST / HTTP/1.1\r\nContent-Length: 3\r\nExpect: 100-Continue\r\n\r\n"
    await client.send(head)
    assert await client.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    await client.send(b"abc")
    assert b" 204 " in await client.until(b"\r\n\r\n")
    assert receiver.requests[0].body == b"abc"


@pytest.mark.parametrize(
    ("request_text", "status", "reason"),
    [
        (b"GET / HTTP/2.0\r\n\r\n", 400, "no request line"),
        (b"hello\r\n\r\n", 400, "no request line"),
        (b"G@T / HTTP/1.1\r\n\r\n", 400, "no request line"),
        (b"GET / HTTP/1.1\r\nno header\r\n\r\n", 400, "no header"),
        (b"GET / HTTP/1.1\r\na: 1\r\n folded\r\n\r\n", 400, "no header"),
        (b"GET / HTTP/1.1\r\na : 1\r\n\r\n", 400, "no header"),
        (b"GET / HTTP/1.1\r\na: 1\nb: 2\r\n\r\n", 400, "no header"),
        (b"GET / HTTP/1.1\r\na: \0\r\n\r\n", 400, "no header"),
        (b"GET / HTTP/1.1\r\nContent-Length: +1\r\n\r\n", 400, "no number"),
        (b"GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n", 400, "no number"),
        (
            b"GET / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            400,
            "exclude each other",
        ),
        (b"GET / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501, "chunked"),
        (b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n", 400, "no number"),
        (b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc", 400, "longer"),
        (b"GET / HTTP/1.1\r\nContent-Length: 16777217\r\n\r\n", 413, "16777216"),
        (b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1000001\r\n", 413, "16777216"),
        (b"GET / HTTP/1.1\r\na: " + b"x" * 65_536, 431, "65536"),
    ],
)
async def test_what_is_no_request_is_turned_down_and_says_why(
    receiver, client, request_text: bytes, status: int, reason: str
) -> None:
    await client.send(request_text)
    head = await client.until(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"Connection: close" in head
    client.end()
    body, end = await client.rest()
    assert (reason in body.decode(), end) == (True, "in order")
    assert receiver.requests == []


async def test_who_waits_for_it_in_vain_is_told_that_it_was_turned_down(receiver, client) -> None:
    await client.send(b"hello\r\n\r\n")
    client.end()
    await client.rest()
    with pytest.raises(TimeoutError, match=r"^0 requests came .*: this is no request line"):
        await receiver.next_request(timeout=0.01)


async def test_who_sends_too_much_reads_why_before_the_connection_ends(receiver, client) -> None:
    """A close with something unread would be a reset, and a reset takes the answer away."""
    much = b"POST / HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n" + b"x" * 10_000_000
    await client.send(much)
    data, end = await client.rest()
    assert (data[:13], end) == (b"HTTP/1.1 413 ", "in order")


async def test_who_never_stops_sending_is_not_listened_to_for_ever(receiver, client) -> None:
    await client.send(b"no request\r\n\r\n")
    await within(receiver.wait_disconnected)


async def test_a_body_of_the_largest_size_is_taken(receiver, client) -> None:
    body = b"x" * (16 * 1024 * 1024)
    assert b" 204 " in await client.asks("/", body)
    assert receiver.requests[0].body == body


# What it answers.


async def test_each_request_takes_what_is_next_of_the_script(receiver, client) -> None:
    receiver.script(500, Answer(404))
    receiver.script(302)
    receiver.otherwise = 200
    heads = [await client.asks() for _ in range(5)]
    assert [int(head.split()[1]) for head in heads] == [500, 404, 302, 200, 200]
    assert heads[1].startswith(b"HTTP/1.1 404 Not Found\r\n")
    assert receiver.otherwise == Answer(200)


async def test_what_is_said_for_a_path_holds_always_and_takes_nothing_of_the_script(
    receiver,
) -> None:
    receiver.script(500)
    receiver.on("/gone", 410)
    assert [await status_at(receiver.port, "/gone?now") for _ in range(2)] == [410, 410]
    assert await status_at(receiver.port, "/other") == 500
    receiver.on("/gone", None)
    receiver.on("/never-said", None)
    assert await status_at(receiver.port, "/gone") == 204


async def test_an_answer_is_sent_as_it_was_said(receiver, client) -> None:
    receiver.script(Answer(299, headers={"X-A": "1", "x-b": "é"}, body=b"hello"))
    head = await client.asks()
    assert head.split(b"\r\n") == [
        b"HTTP/1.1 299 ",
        b"Content-Length: 5",
        b"X-A: 1",
        "x-b: é".encode("latin-1"),
        b"",
        b"",
    ]
    assert await client.exactly(5) == b"hello"
    assert await client.asks() == b"HTTP/1.1 204 No Content\r\n\r\n"
    assert [each.connection for each in receiver.requests] == [1, 1]


async def test_headers_may_lie(receiver, client) -> None:
    lies = {"content-length": "9", "connection": "keep-alive"}
    receiver.script(Answer(200, headers=lies, body=b"x", close=True))
    head = await client.asks()
    assert head == b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\nconnection: keep-alive\r\n\r\n"
    assert await client.rest() == (b"x", "in order")


async def test_a_head_request_gets_no_body(receiver, client) -> None:
    receiver.otherwise = Answer(200, body=b"hello")
    for _ in range(2):
        await client.send(b"HEAD / HTTP/1.1\r\n\r\n")
        head = await client.until(b"\r\n\r\n")
        assert head == b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"


async def test_an_answer_may_come_late_to_a_request_that_was_kept(receiver, client) -> None:
    receiver.script(Answer(delay=3600))
    await client.post("/slow")
    assert (await within(receiver.next_request)).path == "/slow"
    assert await client.is_silent()
    receiver.script(Answer(delay=0.1))
    before = time.monotonic()
    assert await status_at(receiver.port) == 204
    assert time.monotonic() - before >= 0.1


@pytest.mark.parametrize(
    ("request_text", "is_closed"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", False),
        (b"GET / HTTP/1.1\r\nConnection: Close\r\n\r\n", True),
        (b"GET / HTTP/1.0\r\n\r\n", True),
        (b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", False),
    ],
)
async def test_a_connection_is_kept_as_long_as_its_client_wants(
    receiver, client, request_text: bytes, is_closed: bool
) -> None:
    await client.send(request_text)
    await client.until(b"\r\n\r\n")
    if is_closed:
        assert await client.rest() == (b"", "in order")
    else:
        assert b" 204 " in await client.asks()


async def test_an_answer_may_be_the_last_of_its_connection(receiver, client) -> None:
    receiver.script(Answer(200, body=b"bye", close=True))
    assert b"\r\nConnection: close\r\n" in await client.asks()
    assert await client.rest() == (b"bye", "in order")


async def test_a_drip_sends_its_headers_at_once(receiver, client) -> None:
    receiver.script(Drip(202, interval=3600))
    assert await client.asks() == b"HTTP/1.1 202 Accepted\r\nConnection: close\r\n\r\n"
    assert await client.is_silent()


async def test_a_drip_of_some_bytes_ends_and_the_connection_goes_on(receiver, client) -> None:
    receiver.script(Drip(interval=0.01, size=5))
    before = time.monotonic()
    assert b"\r\nContent-Length: 5\r\n" in await client.asks()
    assert await client.exactly(5) == b"xxxxx"
    assert time.monotonic() - before >= 0.05
    assert b" 204 " in await client.asks()


@pytest.mark.parametrize("reply", [Drip(interval=0.001), Endless(201)])
async def test_a_body_without_end_goes_on_until_the_client_leaves(receiver, reply) -> None:
    receiver.script(reply)
    async with await Client.to(receiver.port) as client:
        head = await client.asks()
        assert head.startswith(b"HTTP/1.1 %d " % reply.status)
        assert b"Connection: close" in head
        assert b"Content-Length" not in head
        await client.exactly(100 if isinstance(reply, Drip) else 30_000_000)
        assert receiver.connections == 1
    await within(receiver.wait_disconnected)
    assert receiver.connections == 0


async def test_a_body_without_end_leaves_others_their_turn(receiver) -> None:
    receiver.script(*[Endless()] * 3)
    is_over = threading.Event()

    def read() -> None:
        with socket.create_connection(("127.0.0.1", receiver.port), timeout=TIMEOUT) as reading:
            reading.sendall(b"GET / HTTP/1.1\r\n\r\n")
            while not is_over.is_set():
                reading.recv(1 << 20)

    with anyio.fail_after(TIMEOUT):
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(anyio.to_thread.run_sync, read)
            await receiver.wait_for(3)
            for _ in range(5):
                assert await status_at(receiver.port) == 204
            is_over.set()


async def test_a_hanging_request_is_kept_and_never_answered(receiver) -> None:
    receiver.script(Hang())
    async with await Client.to(receiver.port) as client:
        await client.post("/", b"abc")
        assert (await within(receiver.next_request)).body == b"abc"
        await client.send(b"more")
        assert await client.is_silent()
    await within(receiver.wait_disconnected)


async def test_a_reset_comes_before_the_status_line(receiver, client) -> None:
    receiver.script(Reset())
    await client.post()
    assert await client.rest() == (b"", "reset")
    assert len(receiver.requests) == 1


@pytest.mark.parametrize("after", [1, 40, 5_000])
async def test_a_reset_comes_after_so_many_bytes_of_an_answer(receiver, client, after: int) -> None:
    receiver.script(Reset(after=after))
    await client.post()
    data, end = await client.rest()
    assert (len(data), end) == (after, "reset")
    assert data.startswith(b"HTTP/1.1 200 OK\r\nContent-Length: "[:after])
    assert (b"\r\n\r\nxxx" in data) == (after == 5_000)


async def test_a_truncated_answer_ends_in_order_before_its_length(receiver, client) -> None:
    receiver.script(Truncate(201))
    head = await client.asks()
    assert head == b"HTTP/1.1 201 Created\r\nContent-Length: 1000\r\n\r\n"
    assert await client.rest() == (b"x" * 100, "in order")


@pytest.mark.parametrize("data", [b"\x16\x03\x01 not HTTP", b""])
async def test_garbage_is_sent_as_it_is(receiver, client, data: bytes) -> None:
    receiver.script(Garbage(data))
    await client.post()
    assert await client.rest() == (data, "in order")


async def test_hundreds_of_connections_are_answered_at_once(receiver) -> None:
    receiver.otherwise = Hang()
    receiver.on("/ok", 200)
    sockets = [socket.create_connection(("127.0.0.1", receiver.port)) for _ in range(300)]
    try:
        for one in sockets:
            one.sendall(b"GET / HTTP/1.1\r\n\r\n")
        await within(receiver.wait_for, 300)
        assert await status_at(receiver.port, "/ok") == 200
        assert sorted(each.connection for each in receiver.requests) == list(range(1, 302))
    finally:
        for one in sockets:
            one.close()
    await within(receiver.wait_disconnected)


# Saying what can't be.


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Answer(199), "status must be 200 to 999, not 199"),
        (lambda: Answer(1000), "status must be 200 to 999, not 1000"),
        (lambda: Drip(0), "999, not 0$"),
        (lambda: Endless(100), "999, not 100$"),
        (lambda: Truncate(1), "999, not 1$"),
        (lambda: Answer(204, body=b"x"), "with status 204 has no body"),
        (lambda: Answer(304, body=b"x"), "with status 304 has no body"),
        (lambda: Answer(headers={"a b": "c"}), "'a b': 'c' is no header"),
        (lambda: Answer(headers={"a": "b\r\nc: d"}), "is no header; Garbage sends"),
        (lambda: Answer(headers={"a": "€"}), "is no header"),
        (lambda: Answer(delay=-1), "delay must be 0 or more seconds, not -1"),
        (lambda: Answer(delay=float("inf")), "delay must be 0 or more seconds, not inf"),
        (lambda: Drip(interval=float("nan")), "interval must be 0 or more seconds"),
        (lambda: Drip(size=-1), "size must be 0 or more bytes, not -1"),
        (lambda: Reset(after=-1), "after must be 0 or more bytes, not -1"),
        (lambda: FaultyReceiver().on("hook", 200), "begins with a slash, not as 'hook'"),
    ],
)
def test_a_reply_that_can_not_be_is_a_value_error(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Answer(headers={"Retry-After": 1}), "are strings: 'Retry-After': 1"),
        (lambda: Answer(headers={1: "a"}), "are strings: 1: 'a'"),
        (lambda: Answer(200, body="ok"), "body must be bytes, not str"),
        (lambda: Garbage("?"), "data must be bytes, not str"),
    ],
)
def test_a_reply_of_other_types_is_a_type_error(make: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        make()


@pytest.mark.parametrize("reply", ["500", True, None, Answer])
def test_what_is_no_reply_is_a_type_error(reply: Any) -> None:
    with pytest.raises(TypeError, match=r"a reply is a status, or one of callbackkit\.testing"):
        FaultyReceiver().script(200, reply)
    with pytest.raises(TypeError, match="a reply is"):
        FaultyReceiver().otherwise = reply


async def test_a_script_with_a_mistake_in_it_is_not_begun(receiver) -> None:
    with pytest.raises(TypeError):
        receiver.script(500, "no")
    assert await status_at(receiver.port) == 204


# Its life.


async def test_stopped_it_refuses_and_resumed_it_is_at_the_same_port(receiver, client) -> None:
    receiver.script(Hang())
    await client.post()
    await within(receiver.next_request)
    port = receiver.port
    for _ in range(3):
        await receiver.stop()
        await receiver.stop()
        assert await refused(port)
        await receiver.resume()
        await receiver.resume()
        assert await status_at(port) == 204
    assert await client.rest() == (b"", "in order")
    assert (receiver.port, receiver.url) == (port, f"http://127.0.0.1:{port}/")


async def test_while_it_is_stopped_nobody_else_gets_its_port(receiver) -> None:
    await receiver.stop()
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", receiver.port))


async def test_leaving_ends_connections_whatever_they_do() -> None:
    replies = [Hang(), Endless(), Drip(interval=3600), Answer(delay=3600)]
    clients = []
    with anyio.fail_after(TIMEOUT):
        async with FaultyReceiver() as receiver:
            receiver.script(*replies)
            for _ in replies:
                clients.append(client := await Client.to(receiver.port))
                await client.post()
            clients.append(silent := await Client.to(receiver.port))
            await silent.send(b"POST")
            await receiver.wait_for(len(replies))
        assert await refused(receiver.port)
        for client in clients:
            async with client:
                await client.rest()
    assert receiver.connections == 0


async def test_the_port_is_free_again_when_it_was_left() -> None:
    async with FaultyReceiver() as first:
        await status_at(first.port)
    async with FaultyReceiver(port=first.port) as second:
        assert second.port == first.port
        assert await status_at(second.port) == 204


async def test_a_port_that_is_taken_is_an_error_at_once(receiver) -> None:
    with pytest.raises(OSError, match="in use"):
        async with FaultyReceiver(port=receiver.port):
            raise AssertionError


async def test_what_the_test_raises_comes_out_as_it_is() -> None:
    with pytest.raises(ZeroDivisionError):
        async with FaultyReceiver():
            _ = 1 / 0


async def test_a_test_that_is_cancelled_ends_it() -> None:
    with anyio.move_on_after(0.05) as scope:
        async with FaultyReceiver() as receiver:
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert await refused(receiver.port)


async def test_a_test_that_was_cancelled_before_leaves_no_port_open() -> None:
    receiver = FaultyReceiver()
    with anyio.CancelScope() as scope:
        scope.cancel()
        async with receiver:
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert await refused(receiver.port)


async def test_it_can_be_entered_again() -> None:
    receiver = FaultyReceiver()
    for _ in range(2):
        async with receiver:
            assert await status_at(receiver.port) == 204
    assert len(receiver.requests) == 2


async def test_before_it_is_entered_it_is_nowhere() -> None:
    receiver = FaultyReceiver()
    assert repr(receiver) == "<FaultyReceiver not started, 0 received>"
    with pytest.raises(RuntimeError, match="not started; enter it by 'async with'"):
        _ = receiver.url
    with pytest.raises(RuntimeError, match="not started"):
        await receiver.stop()
    async with receiver:
        assert repr(receiver) == f"<FaultyReceiver at {receiver.url}, 0 received>"


async def test_a_wait_for_clients_to_leave_says_how_many_are_there(receiver, client) -> None:
    await client.asks()
    with pytest.raises(TimeoutError, match=r"1 connection .* after 0\.01 seconds"):
        await receiver.wait_disconnected(timeout=0.01)


# Over TLS.


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def context(authority) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost", "127.0.0.1").configure_cert(context)
    return context


@pytest.fixture
def trusting(authority) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


async def test_it_speaks_https(context, trusting) -> None:
    async with FaultyReceiver(ssl_context=context) as receiver:
        assert receiver.url == f"https://127.0.0.1:{receiver.port}/"
        receiver.otherwise = Answer(200, body=b"x" * 3_000_000)
        async with await Client.to(receiver.port, tls=trusting) as client:
            for _ in range(2):
                await client.asks("/", b"y" * 1_000_000)
                assert await client.exactly(3_000_000) == b"x" * 3_000_000
        assert [each.connection for each in receiver.requests] == [1, 1]
        assert receiver.requests[1].body == b"y" * 1_000_000


async def test_over_tls_an_end_in_order_is_told_and_a_reset_is_not(context, trusting) -> None:
    async with FaultyReceiver(ssl_context=context) as receiver:
        receiver.script(Truncate(), Reset())
        for ending in ("in order", "reset"):
            async with await Client.to(receiver.port, tls=trusting) as client:
                assert isinstance(client.socket, ssl.SSLSocket)
                client.socket.suppress_ragged_eofs = False
                await client.post()
                assert (await client.rest())[1] == ending


async def test_a_handshake_that_fails_ends_that_connection_alone(context, trusting) -> None:
    async with FaultyReceiver(ssl_context=context) as receiver:
        async with await Client.to(receiver.port) as plain:
            await plain.post()
            await plain.rest()
        with pytest.raises(ssl.SSLCertVerificationError):
            await Client.to(receiver.port, tls=ssl.create_default_context())
        async with await Client.to(receiver.port, tls=trusting) as client:
            assert b" 204 " in await client.asks()
        assert len(receiver.requests) == 1


async def test_leaving_ends_a_handshake_that_hangs(context) -> None:
    with anyio.fail_after(TIMEOUT):
        async with FaultyReceiver(ssl_context=context) as receiver:
            client = await Client.to(receiver.port)
            await client.send(b"\x16\x03\x01")
            while not receiver.connections:
                await anyio.lowlevel.checkpoint()
        async with client:
            await client.rest()


# Real clients.


async def test_httpx2_gets_what_the_script_says(receiver) -> None:
    receiver.script(Answer(429, headers={"Retry-After": "1"}), Reset(), Truncate(), Garbage(b"?"))
    async with httpx2.AsyncClient(timeout=TIMEOUT, trust_env=False) as client:
        answer = await client.post(receiver.url, json={"a": 1})
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
        with pytest.raises(httpx2.ReadError):
            await client.post(receiver.url)
        for _ in range(2):
            with pytest.raises(httpx2.RemoteProtocolError):
                await client.post(receiver.url)
        assert (await client.post(receiver.url)).status_code == 204
    assert receiver.requests[0].json() == {"a": 1}


async def test_http_client_sends_chunks_to_it(receiver) -> None:
    def post() -> int:
        connection = http.client.HTTPConnection("127.0.0.1", receiver.port, timeout=TIMEOUT)
        try:
            connection.request("POST", "/", body=iter([b"ab", b"c"]), encode_chunked=True)
            return connection.getresponse().status
        finally:
            connection.close()

    assert await anyio.to_thread.run_sync(post) == 204
    assert receiver.requests[0].body == b"abc"


# Without a coroutine.


def post(url: str, body: bytes = b"", **headers: str) -> int:
    request = urllib.request.Request(url, data=body, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_in_a_thread_it_serves_tests_that_are_no_coroutines() -> None:
    with FaultyReceiver.in_thread() as receiver:
        receiver.script(500, Reset())
        receiver.on("/teapot", 418)
        receiver.otherwise = 202
        url = receiver.url
        assert post(url, b"1", **{"webhook-id": "a"}) == 500
        assert post(url + "teapot", b"2") == 418
        with pytest.raises(ConnectionResetError):
            post(url, b"3")
        assert post(url, b"4") == 202
        assert (receiver.otherwise, receiver.port) == (Answer(202), int(url[:-1].split(":")[2]))
        assert receiver.next_request().body == b"1"
        assert [each.body for each in receiver.wait_for(4)] == [b"1", b"2", b"3", b"4"]
        assert [each.body for each in receiver.requests] == [b"1", b"2", b"3", b"4"]
        assert [each.body for each in receiver.deliveries["a"]] == [b"1"]
        receiver.wait_disconnected()
        assert receiver.connections == 0
        assert repr(receiver) == f"<ReceiverInThread of <FaultyReceiver at {url}, 4 received>>"


def test_in_a_thread_it_stops_and_resumes() -> None:
    with FaultyReceiver.in_thread() as receiver:
        receiver.stop()
        with pytest.raises(urllib.error.URLError, match="refused"):
            post(receiver.url)
        receiver.resume()
        assert post(receiver.url) == 204
        with pytest.raises(TimeoutError, match="1 request came"):
            receiver.wait_for(2, timeout=0.01)


def test_in_a_thread_it_ends_what_hangs() -> None:
    with FaultyReceiver.in_thread() as receiver:
        receiver.script(Hang())
        hanging = socket.create_connection(("127.0.0.1", receiver.port), timeout=TIMEOUT)
        hanging.sendall(b"GET / HTTP/1.1\r\n\r\n")
        receiver.next_request()
    with hanging:
        assert hanging.recv(1) == b""


def test_a_request_can_be_made_by_hand() -> None:
    """For tests of what takes requests."""
    request = ReceivedRequest("POST", "/", "", {}, json.dumps([1]).encode(), 0.0, 1)
    assert request.json() == [1]
    assert not request.is_last
