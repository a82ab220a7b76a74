"""What the API withstands: clients that misbehave, networks that fail, servers that stop."""

import contextlib
import functools
import hashlib
import itertools
import json
import os
import shutil
import signal
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Generator
from http.client import HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import quote

import anyio
import pytest
from hypothesis import given, strategies as st
from starlette.applications import Starlette
from starlette.routing import Mount

from callbackkit import CallbackManager, Delivery, Transport
from callbackkit.http.starlette import allow_anyone, create_app
from tests.http.rig import AppOf, Connection, client_of, in_both
from tests.http.withstand_rig import (
    PATIENCE,
    PROBLEM,
    Proxy,
    Server,
    Session,
    Sse,
    WebSocket,
    check_told,
    connect_and_reset,
    dial,
    frame,
    grown,
    handshake,
    many,
    numbers,
    read_answer,
    request_bytes,
    requests_of,
    sse_of,
    storm,
    streams_of,
    waiting_poll,
    websocket_of,
)

pytestmark = pytest.mark.real_server

# Quick, so that whoever does not read is given up soon.
QUICK = {"heartbeat": 0.3, "write_timeout": 3.0}
# Bytes of an event, and how many of them no buffers between two processes can hold.
LARGE, MUCH = 200_000, 80
ALIVE = ("tasks", "Subscription", "Tail", "Watch", "Connection", "readers", "tails")


FRAMEWORKS = ("fastapi", "starlette")


@contextlib.contextmanager
def both(folder: Path, **options: Any) -> Generator[dict[str, Server]]:
    """Serve in both frameworks."""
    with contextlib.ExitStack() as stack:
        made = {
            name: Server(folder / f"{name}.db", framework=name, **options) for name in FRAMEWORKS
        }
        for each in made.values():
            stack.enter_context(each)
            session = each.session()
            with sse_of(each.port, session, headers=session.headers):
                # So that threads and connections to the file are there.
                pass
        yield made


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Generator[dict[str, Server]]:
    """Servers that let anybody in."""
    with both(tmp_path_factory.mktemp("open"), **QUICK) as made:
        yield made


@pytest.fixture(params=FRAMEWORKS)
def server(request: pytest.FixtureRequest, servers: dict[str, Server]) -> Server:
    return servers[request.param]


def alive(server: Server) -> dict[str, int]:
    """Return what is alive, once nothing goes on any more."""
    found = server.base()
    return {**{name: found[name] for name in ALIVE}, "Subscription": 0, "Connection": 0}


def in_background(call: Callable[..., Any], *arguments: Any) -> threading.Thread:
    thread = threading.Thread(target=call, args=arguments)
    thread.start()
    return thread


# Clients.


def test_who_takes_nothing_is_given_up_and_delays_nobody(server: Server) -> None:
    session = server.session()
    before = alive(server)
    with Proxy(server.port) as proxy, sse_of(server.port, session) as other:
        # Some vanish without a word, some are there and do not read.
        clients = itertools.product((proxy.port, server.port), (sse_of, websocket_of))
        with many(opened(port, session, buffer=4096) for port, opened in clients):
            proxy.lose()
            began = time.monotonic()
            emitting = in_background(server.emit, session, 0, MUCH, LARGE)
            assert numbers(other.events(MUCH)) == list(range(MUCH))
            assert time.monotonic() - began < PATIENCE
            emitting.join()
            # The one that reads is the only one left.
            server.check_settled({"readers": 1, "Connection": 1})
            server.emit(session, MUCH)
            assert numbers(other.events(1)) == [MUCH]
    server.check_settled(before)


@pytest.mark.parametrize("stream_of", [sse_of, websocket_of], ids=["sse", "ws"])
def test_who_reads_late_hears_of_what_was_dropped(
    tmp_path: Path, stream_of: Callable[..., Any]
) -> None:
    with Server(tmp_path / "events.db", max_events=20) as server:
        session = server.session()
        with stream_of(server.port, session, buffer=4096) as late:
            server.emit(session, 0, MUCH, LARGE)
            server.emit(session, MUCH)
            expected, is_gap_told = 0, False
            while expected <= MUCH:
                for event in late.at_least(1):
                    if event["event_type"] == "callbackkit.gap":
                        expected += event["data"]["missed"]
                        is_gap_told = True
                    else:
                        # Each event is there, or in a gap.
                        assert event["data"]["number"] == expected
                        expected += 1
            assert is_gap_told


def test_a_session_that_is_deleted_sends_its_clients_away(server: Server) -> None:
    session = server.session()
    before = alive(server)
    with (
        sse_of(server.port, session) as stream,
        websocket_of(server.port, session) as websocket,
        waiting_poll(server.port, session) as poll,
    ):
        grown(server, readers=before["readers"] + 3)
        server.tell(f"delete/{session.id}", {})
        assert b'"state":"deleted"' in stream.rest()
        assert websocket.close_code() == 4001
        assert read_answer(poll).status == 410
        # A browser that comes back is told to stop.
        header = {"Last-Event-ID": stream.position}
        assert server.ask("GET", f"{session.path}/sse", header).status == 204
    server.check_settled(before)


def test_two_hundred_resets_leave_nothing_and_delay_nobody(server: Server) -> None:
    session = server.session()
    server.emit(session, 0, 3)
    connect_and_reset(server.port, requests_of(session), 20)
    before = server.base()
    with sse_of(server.port, session) as other:
        other.events(3)
        resetting = in_background(connect_and_reset, server.port, requests_of(session), 200)
        for number in range(3, 30):
            server.emit(session, number)
            assert numbers(other.events(1)) == [number]
        resetting.join()
    # SQLite has a connection for each thread that reads, and may begin another.
    server.check_settled({**before, "Watch": 2, "descriptors": before["descriptors"] + 8})


# Servers that stop.


@pytest.mark.parametrize("framework", ["fastapi", "starlette"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_has_every_client_come_back_and_the_server_go(
    tmp_path: Path, framework: str, number: signal.Signals
) -> None:
    with Server(tmp_path / "events.db", framework=framework) as server:
        operators = Sse(server.port, f"{server.prefix}/events/sse")
        with operators, many(streams_of(server, 50)) as streams:
            grown(server, readers=50)
            began = time.monotonic()
            server.kill(number)
            check_told([*streams, operators])
            server.wait()
            assert time.monotonic() - began < PATIENCE


def test_a_second_signal_passes(tmp_path: Path) -> None:
    with Server(tmp_path / "events.db") as server:
        with dial(server.port) as hanging, many(streams_of(server, 5)) as streams:
            hanging.sendall(request_bytes("GET", "/debug/hang"))
            grown(server, readers=5, tasks=8)
            server.kill(signal.SIGINT)
            check_told(streams)
            # Somebody else's request holds it.
            assert server.process is not None
            assert server.process.poll() is None
            server.kill(signal.SIGINT)
            server.wait()
        server.log.clear()


def test_who_takes_nothing_does_not_keep_the_server(tmp_path: Path) -> None:
    grace = ("--timeout-graceful-shutdown", "3")
    with Server(tmp_path / "events.db", arguments=grace, heartbeat=0.3) as server:
        session = server.session()
        openers = (sse_of, websocket_of)
        with many(each(server.port, session, buffer=4096) for each in openers):
            server.emit(session, 0, MUCH, LARGE)
            server.kill(signal.SIGTERM)
            server.wait()


# Several clients of one session.


def test_of_two_tabs_one_may_close(server: Server) -> None:
    session = server.session()
    for stream_of in (sse_of, websocket_of):
        with stream_of(server.port, session) as first, stream_of(server.port, session) as second:
            server.emit(session, 0)
            assert numbers(first.events(1)) == numbers(second.events(1)) == [0]
            first.reset()
            for number in range(1, 20):
                server.emit(session, number)
                assert numbers(second.events(1)) == [number]


def test_readers_beyond_the_limit_wait_for_a_place(tmp_path: Path) -> None:
    with Server(tmp_path / "events.db", max_readers=2, **QUICK) as server:
        session, other = server.session(), server.session()
        base = server.base()
        with sse_of(server.port, session) as first, websocket_of(server.port, session):
            with Sse(server.port, f"{session.path}/sse") as third:
                assert third.status == 429
                assert int(third.response.headers["retry-after"]) >= 1
            with websocket_of(server.port, session) as third:
                assert third.status == 429
            with waiting_poll(server.port, session) as poll:
                read_answer(poll).check_problem()
            # What takes no place, and what is about another session, goes on.
            assert server.ask("GET", f"{session.path}/events").status == 200
            sse_of(server.port, other).close()
            first.reset()
            server.check_settled({"readers": 1})
            sse_of(server.port, session).close()
        server.check_settled({"readers": base["readers"], "tails": base["tails"]})


def test_a_storm_of_reconnects_reads_the_store_once(server: Server) -> None:
    session = server.session()
    server.emit(session, 0, 20)
    with many(sse_of(server.port, session) for _ in range(300)) as clients:
        ids = [[event["id"] for event in client.events(20)] for client in clients]
        for client in clients:
            client.reset()
    server.check_settled({"readers": 0})
    server.emit(session, 20, 60)
    before = server.reads(session)
    path = f"{session.path}/sse"
    # Each saw as much as it did, before it dropped; who saw most is the first.
    seen = [20 - number % 20 for number in range(300)]
    positions = [told[count - 1] for told, count in zip(ids, seen, strict=True)]
    with many(storm(server.port, path, positions)) as clients:
        for client, first in zip(clients, seen, strict=True):
            assert numbers(client.events(80 - first)) == list(range(first, 80))
    # For each place where some were at most, not for each of them.
    assert server.reads(session) - before <= 60


# Positions.

FOREIGN = "0123456789abcdef-1"
MALFORMED = (
    "x", "-", "-1", "1", "0123456789abcdef-", "0123456789abcdef",
    "0123456789abcdef--1", "0123456789abcdef-01", "0123456789abcdef-1 ", "0123456789abcdef-1.0",
    "0123456789abcdef-" + "9" * 40, "0123456789abcdef-1%00", "%D9%A1123456789abcdef-1", "%FF",
    "0123456789abcdef-%C2%B2", "x" * 4000, "%0D%0Aid:%201", "*",
)  # fmt: skip


def first_of(server: Server, session: Session, position: str, way: str) -> list[dict[str, Any]]:
    """Return the first three events behind a position, however they are asked for."""
    if way == "page":
        target = f"{session.path}/events?limit=3&after={position}"
        events: list[dict[str, Any]] = server.ask("GET", target).json()["events"]
        return events
    if way == "websocket":
        with WebSocket(server.port, f"{session.path}/ws?after={position}") as websocket:
            return websocket.events(3)
    headers = {"Last-Event-ID": position} if way == "header" else {}
    query = "" if way == "header" else f"?{way}={position}"
    with Sse(server.port, f"{session.path}/sse{query}", headers) as stream:
        found = stream.events(4)[:3] if way == "nothing" else []
        while len(found) < 3:
            found += [json.loads(each.data) for each in stream.read()]
        return found[:3]


WAYS = ("page", "websocket", "header", "last_event_id", "lastEventId", "last-event-id")


@pytest.mark.parametrize("way", WAYS)
def test_a_position_that_is_none_of_the_session_gives_a_gap_and_its_own_events(
    server: Server, way: str
) -> None:
    session, other = server.session(), server.session()
    server.emit(session, 0, 3)
    server.emit(other, 100, 5)
    (newest,) = (server.ask("GET", f"{session.path}/events?after=now&limit=1").json(),)
    epoch = newest["cursor"].rpartition("-")[0]
    theirs = server.ask("GET", f"{other.path}/events").json()["cursor"]
    for position in (FOREIGN, f"{epoch}-4", f"{epoch}-999999999999999", theirs):
        gap, *events = first_of(server, session, position, way)
        assert gap["event_type"] == "callbackkit.gap"
        assert gap["data"]["from"] == position
        assert gap["id"] == f"{epoch}-0"
        assert numbers(events) == [0, 1]
        assert {each["session_id"] for each in (gap, *events)} == {session.id}


@pytest.mark.parametrize("way", WAYS)
def test_what_was_cleared_is_a_gap(server: Server, way: str) -> None:
    session = server.session()
    server.emit(session, 0, 10)
    cursor = server.ask("GET", f"{session.path}/events?limit=5").json()["cursor"]
    epoch = cursor.rpartition("-")[0]
    cleared = server.ask("DELETE", f"{session.path}/events?before={cursor}")
    assert cleared.json()["cleared_count"] == 4
    gap, *events = first_of(server, session, f"{epoch}-2", way)
    assert gap["data"] == {"from": f"{epoch}-3", "to": f"{epoch}-4", "missed": 2}
    assert numbers(events) == [4, 5]


def test_a_malformed_position_is_refused_wherever_one_is_taken(server: Server) -> None:
    session = server.session()
    server.emit(session, 0, 3)
    for position in MALFORMED:
        targets = [
            ("GET", f"{session.path}/events?after={position.replace(' ', '%20')}"),
            ("DELETE", f"{session.path}/events?before={position.replace(' ', '%20')}"),
            *(
                ("GET", f"{session.path}/sse?{name}={position.replace(' ', '%20')}")
                for name in WAYS[3:]
            ),
        ]
        for method, target in targets:
            answer = server.ask(method, target)
            assert answer.status == 422, (target, answer)
            answer.check_problem()
        with WebSocket(server.port, f"{session.path}/ws?after={position.strip()}x") as refused:
            assert refused.status == 422
        header = position.replace(" ", "x")
        answer = server.ask("GET", f"{session.path}/sse", {"Last-Event-ID": header})
        assert answer.status == 422, (header, answer)
    foreign = server.ask("DELETE", f"{session.path}/events?before={FOREIGN}")
    assert foreign.status == 422
    assert len(server.ask("GET", f"{session.path}/events").json()["events"]) == 3


@pytest.mark.parametrize(
    "moment",
    [
        "0001-01-01T00:00:00+23:59",
        "9999-12-31T23:59:59-23:59",
        "9999-12-31T23:59:60Z",
        "2026-02-30",
    ],
)
def test_a_moment_outside_of_the_calendar_is_refused_or_means_what_it_says(
    server: Server, moment: str
) -> None:
    session = server.session()
    server.emit(session, 0, 3)
    quoted = moment.replace("+", "%2B")
    server.ask("DELETE", f"{session.path}/events?before={quoted}").check_problem()
    assert server.ask("GET", f"{session.path}/events?since={quoted}").status in {200, 422}
    assert len(server.ask("GET", f"{session.path}/events").json()["events"]) == 3


def test_clients_go_on_after_a_restart_and_hear_of_a_lost_file(tmp_path: Path) -> None:
    database = tmp_path / "events.db"
    with Server(database) as server:
        session = server.session()
        streams = [sse_of(server.port, session) for _ in range(3)]
        server.emit(session, 0, 3)
        for each in streams:
            each.events(3)
        seen = [each.position for each in streams]
        server.stop(signal.SIGKILL)
        for each in streams:
            each.close()
        server.start()
        server.emit(session, 3, 3)
        for position in seen:
            with Sse(server.port, f"{session.path}/sse", {"Last-Event-ID": position}) as again:
                assert numbers(again.events(3)) == [3, 4, 5]
        server.stop()
        for each in tmp_path.iterdir():
            each.unlink()
        server.start()
        answer = server.ask("GET", f"{session.path}/sse", {"Last-Event-ID": seen[0]})
        assert answer.status == 404
        answer.check_problem()


def test_a_file_that_was_turned_back_is_a_gap_and_never_silence(tmp_path: Path) -> None:
    database, copy = tmp_path / "events.db", tmp_path / "copy"
    with Server(database) as server:
        session = server.session()
        server.emit(session, 0, 3)
        server.stop()
        shutil.copy(database, copy)
        server.start()
        server.emit(session, 3, 3)
        seen = server.ask("GET", f"{session.path}/events").json()["cursor"]
        server.stop()
        for each in tmp_path.glob("events.db*"):
            each.unlink()
        shutil.copy(copy, database)
        server.start()
        server.emit(session, 100, 5)
        gap, *events = first_of(server, session, seen, "header")
        assert gap["event_type"] == "callbackkit.gap"
        assert numbers(events) == [0, 1]


# Rubbish.

JSON = {"Content-Type": "application/json"}


def nested(depth: int, before: bytes, opening: bytes, closing: bytes) -> bytes:
    return before + opening * depth + b"1" + closing * depth + b"}"


BODIES = {
    "nul": b"\0",
    "half": b"{",
    "array": b"[]",
    "null": b"null",
    "nan": b'{"event_type":"x","test_data":{"a":NaN}}',
    "infinity": b'{"ttl":-Infinity}',
    "beyond-a-float": b'{"ttl":1e999}',
    "huge": b'{"ttl":' + b"9" * 400 + b"}",
    "more-digits-than-python-reads": b'{"ttl":' + b"9" * 5_000 + b"}",
    "twice": b'{"ttl":1,"ttl":2}',
    "not-utf-8": b'{"event_type":"\xff"}',
    "utf-16": '{"ttl":1}'.encode("utf-16"),
    "bom": b"\xef\xbb\xbf{}",
    "surrogate": b'{"event_type":"\\ud800"}',
    "surrogate-key": b'{"event_type":"x","test_data":{"\\ud800":1}}',
    "surrogate-url": b'{"webhook_url":"https://\\ud800/"}',
    "surrogate-header": b'{"headers":{"\\ud800":"x"}}',
    "unknown-surrogate": b'{"\\ud800":1}',
    "nul-inside": b'{"event_type":"a\\u0000b","ids":["\\u0000"],"events":["\\u0000"]}',
    "crlf-in-a-header": b'{"headers":{"X-A":"b\\r\\nX-C: d"}}',
    "crlf-in-a-url": b'{"webhook_url":"http://a/\\r\\nX: y"}',
    "types": b'{"event_type":1,"test_data":[],"ttl":"1","events":{},"ids":{}}',
    "ours": b'{"event_type":"callbackkit.gap"}',
    "batching": b'{"batching":{"max_events":1e300}}',
    "true": b'{"ttl":true}',
    "many-keys": json.dumps({str(number): number for number in range(50_000)}).encode(),
    "long-key": json.dumps({"k" * 500_000: 1}).encode(),
    **{
        f"{name}-{depth}": nested(depth, *parts)
        for depth in (200, 990, 5_000, 100_000)
        for name, parts in {
            "objects": (b'{"event_type":"x","test_data":', b'{"a":', b"}"),
            "arrays": (b'{"event_type":"x","test_data":{"a":[', b"[", b"]"),
            "options": (b'{"options":', b'{"a":', b"}"),
        }.items()
    },
}


@pytest.mark.parametrize("name", BODIES)
def test_a_body_of_rubbish_is_a_problem_on_every_route(server: Server, name: str) -> None:
    session = server.session()
    routes = [
        ("POST", f"{server.prefix}/sessions"),
        ("PATCH", session.path),
        ("POST", f"{session.path}/test"),
        ("POST", f"{session.path}/dead-letters/redrive"),
    ]
    for method, path in routes:
        answer = server.ask(method, path, JSON, BODIES[name])
        answer.check_problem()
        assert answer.status in {400, 413, 422}, (path, answer)
    assert server.ask("GET", f"{session.path}/events").json()["events"] == []


def chunked(connection: socket.socket, size: int) -> None:
    """Send a body in chunks of 64 KiB, until nobody takes them."""
    piece = b"10000\r\n" + b"x" * 65_536 + b"\r\n"
    try:
        for _ in range(size // 65_536):
            connection.sendall(piece)
        connection.sendall(b"0\r\n\r\n")
    except ConnectionError:
        # Whoever refuses it does not read it.
        return


def test_large_bodies_are_refused_and_take_no_memory(server: Server) -> None:
    session = server.session()
    path = f"{session.path}/test"
    before = server.counts()["rss"]
    for _ in range(10):
        declared = request_bytes("POST", path, {**JSON, "Content-Length": "10000000"})
        with dial(server.port) as connection:
            connection.sendall(declared)
            answer = read_answer(connection)
            answer.check_problem()
            assert answer.status == 413
        with dial(server.port) as connection:
            connection.sendall(
                request_bytes("POST", path, {**JSON, "Transfer-Encoding": "chunked"})
            )
            chunked(connection, 10_000_000)
            with contextlib.suppress(ConnectionError):
                assert read_answer(connection).status == 413
    # A body that comes a byte at a time is one that comes.
    with dial(server.port) as connection:
        body = b'{"event_type":"x"}'
        connection.sendall(request_bytes("POST", path, {**JSON, "Content-Length": str(len(body))}))
        for byte in body:
            connection.sendall(bytes([byte]))
        assert read_answer(connection).status == 200
    assert server.counts()["rss"] - before < 30_000_000


METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND")


def test_every_method_on_every_path_is_answered(server: Server) -> None:
    session = server.session()
    below = ("sessions", "stats", "events/sse", "health", "metrics", "nothing", "", "sessions/")
    of_session = ("", "/events", "/sse", "/ws", "/test", "/stats", "/dead-letters", "/attempts")
    paths = [f"{server.prefix}/{path}" for path in below]
    paths += [f"{session.path}{path}" for path in (*of_session, "/dead-letters/redrive", "/x")]
    for path, method in itertools.product(paths, METHODS):
        if (path, method) == (session.path, "DELETE"):
            continue
        with dial(server.port) as connection:
            connection.sendall(request_bytes(method, path))
            response = HTTPResponse(connection, method=method)
            response.begin()
            status, kind = response.status, response.headers.get("content-type", "")
            body = b"" if kind.startswith("text/event-stream") else response.read()
            response.close()
        assert status < 500, (method, path, body)
        assert status < 300 or kind == PROBLEM, (method, path, status, body)


def tricks(path: str) -> list[str]:
    """Return what some servers take for the same path."""
    prefix, _, rest = path.partition("/sessions/")
    return [
        f"{path}/", f"/{path}", path.replace("/sessions/", "//sessions/"), path.upper(),
        f"{prefix}/x/../sessions/{rest}", f"{prefix}/%2e%2e{path}", f"{prefix}/./sessions/{rest}",
        path.replace("/sessions/", "/sessions/%2F"), path.replace("/sessions/", "/%73essions//"),
        f"{path}%00", f"{path}%0d%0a", f"{path};x", f"{path}%20", f"{path}%c0%af", f"{path}/%2e",
        f"{path}%3Fa", f"{prefix}/sessions/{rest.title()}", f"{path}\\", f"{path}%5c..",
    ]  # fmt: skip


def test_a_path_that_is_nearly_one_is_none(server: Server) -> None:
    session = server.session()
    for path in tricks(session.path):
        answer = server.ask("GET", path)
        assert answer.status in {400, 404}, (path, answer)
    assert server.ask("GET", session.path).status == 200


HEADERS = ("Last-Event-ID", "Authorization", "Cookie", "Origin", "Host", "Accept", "Content-Type")


@pytest.mark.parametrize("framework", FRAMEWORKS)
@given(
    path=st.sampled_from(["", "/events", "/sse", "/ws", "/test", "/attempts", "/dead-letters"]),
    extra=st.binary(max_size=3),
    query=st.sampled_from([b"after", b"since", b"limit", b"types", b"last_event_id", b"before"]),
    value=st.binary(max_size=40),
    is_quoted=st.booleans(),
    header=st.sampled_from(HEADERS),
    content=st.text(st.characters(max_codepoint=255), max_size=40),
    method=st.sampled_from(["GET", "HEAD", "OPTIONS", "PATCH", "POST"]),
)
def test_no_bytes_are_an_internal_error(
    servers: dict[str, Server],
    framework: str,
    path: str,
    extra: bytes,
    query: bytes,
    value: bytes,
    is_quoted: bool,
    header: str,
    content: str,
    method: str,
) -> None:
    server = servers[framework]
    session = rubbish_session(server)
    text = quote(value).encode() if is_quoted else value
    target = f"{session.path}{path}{quote(extra)}?".encode() + query + b"=" + text
    with dial(server.port) as connection:
        connection.sendall(request_bytes(method, target, {header: content, "Connection": "close"}))
        response = HTTPResponse(connection, method=method)
        response.begin()
        assert response.status < 500
        response.close()


@functools.cache
def rubbish_session(server: Server) -> Session:
    session = server.session()
    server.emit(session, 0, 3)
    return session


def test_what_stands_in_a_mounted_path_is_no_header() -> None:
    manager = CallbackManager()
    inner = Mount("/{tenant}", app=create_app(manager, allow_anyone))
    with client_of(Starlette(routes=[inner])) as client:
        for tenant in ("%0d%0aX-Evil:%20y", "a;%20Domain=evil", "%ff", "%00", "a,b", "%e2%80%a8"):
            answer = client.post(f"/{tenant}/callbacks/sessions")
            assert answer.status_code == 201
            assert "x-evil" not in answer.headers
            assert "domain" not in answer.headers["set-cookie"].lower().split(";")[0]
            assert "Domain" not in answer.headers["set-cookie"].replace("%20Domain", "")
            assert answer.headers["location"].isascii()
            assert answer.headers["location"].isprintable()


# WebSockets that misbehave.


def sent(payload: bytes, opcode: int = 1) -> bytes:
    return frame(opcode, payload)


def closed_with(code: int) -> bytes:
    return frame(8, struct.pack("!H", code) + b"bye")


def deflated(content: bytes) -> bytes:
    """Return a frame of permessage-deflate (RFC 7692)."""
    packer = zlib.compressobj(wbits=-15)
    payload = (packer.compress(content) + packer.flush(zlib.Z_SYNC_FLUSH))[:-4]
    whole = bytearray(frame(1, payload))
    whole[0] |= 0x40
    return bytes(whole)


DEFLATE = {"Sec-WebSocket-Extensions": "permessage-deflate"}
REFUSED = {
    "not-utf-8": (sent(b"\xff\xfe"), {1007}),
    "binary-not-utf-8": (sent(b"\xff\xfe", 2), {1007}),
    "70-kb": (sent(b"x" * 70_000), {1009}),
    "10-mb": (sent(b"x" * 10_000_000), {1009, None}),
    "10-mb-inflated": (deflated(b"x" * 10_000_000), {1009}),
    "half-a-surrogate": (sent(b'"\\ud800"'), {1008}),
    "half-a-surrogate-key": (sent(b'{"\\ud800":1}'), {1008}),
    "infinite": (sent(b"1e999"), {1008}),
    "900-deep": (sent(b'{"a":' * 900 + b"1" + b"}" * 900), {1008}),
    "continues-nothing": (sent(b"x", 0), {1002}),
    "no-such-opcode": (sent(b"x", 3), {1002}),
    "unmasked": (frame(1, b'"a"', masked=False), {1002}),
    "large-ping": (sent(b"x" * 126, 9), {1002}),
    "half-a-code": (frame(8, b"\x03"), {1002}),
    "a-reason-not-utf-8": (frame(8, b"\x03\xe8\xff"), {1007}),
    **{f"code-{code}": (closed_with(code), {1002}) for code in (0, 999, 1005, 1006, 1015, 2999)},
    **{f"code-{code}": (closed_with(code), {code}) for code in (1000, 1001, 1011, 3000, 4999)},
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_websocket_that_says_nonsense_is_closed_with_a_code(server: Server, name: str) -> None:
    said, codes = REFUSED[name]
    session = server.session()
    with WebSocket(server.port, f"{session.path}/ws", DEFLATE) as websocket:
        assert websocket.status == 101
        with contextlib.suppress(ConnectionError):
            websocket.socket.sendall(said)
        assert websocket.close_code() in codes
    server.check_settled({"readers": 0, "Connection": 0})
    assert server.ask("GET", f"{session.path}/events").json()["events"] == []


MESSAGES: dict[str, tuple[bytes, Any]] = {
    "object": (sent(b'{"a":1}'), {"a": 1}),
    "binary": (sent(b'{"a":1}', 2), {"a": 1}),
    "text": (sent(b"hello"), {"message": "hello"}),
    "empty": (sent(b""), {"message": ""}),
    "nul": (sent(b"\0"), {"message": "\0"}),
    "nan": (sent(b"NaN"), {"message": "NaN"}),
    "many-digits": (sent(b"9" * 5_000), {"message": "9" * 5_000}),
    "30000-deep": (sent(b"[" * 30_000 + b"]" * 30_000), {"message": "[" * 30_000 + "]" * 30_000}),
    "in-pieces": (
        frame(1, b'{"a"', last=False)
        + frame(9, b"?")
        + frame(0, b":", last=False)
        + frame(0, b"2}"),
        {"a": 2},
    ),
    "byte-by-byte": (
        frame(1, b'"', last=False) + frame(0, b"y", last=False) * 3_000 + frame(0, b'"'),
        {"message": "y" * 3_000},
    ),
    "behind-2000-pings": (frame(9, b"?") * 2_000 + sent(b'"x"'), {"message": "x"}),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_whatever_is_text_is_a_message(server: Server, name: str) -> None:
    said, data = MESSAGES[name]
    session = server.session()
    with WebSocket(server.port, f"{session.path}/ws") as websocket:
        websocket.socket.sendall(said)
        (event,) = websocket.events(1)
        assert (event["event_type"], event["data"]) == ("client.message", data)


HANDSHAKES = {
    "old": {"Sec-WebSocket-Version": "8"},
    "key": {"Sec-WebSocket-Key": "x"},
    "upgrade": {"Upgrade": "tcp"},
    "connection": {"Connection": "close"},
    "origin": {"Origin": "https://evil.example"},
    "null": {"Origin": "null"},
}


@pytest.mark.parametrize("name", HANDSHAKES)
def test_a_handshake_that_is_none_is_refused(server: Server, name: str) -> None:
    session = server.session()
    with WebSocket(server.port, f"{session.path}/ws", HANDSHAKES[name]) as websocket:
        assert 400 <= websocket.status < 500
    with dial(server.port) as never:
        never.sendall(handshake(f"{session.path}/ws")[:-2])
        server.check_settled({"readers": 0, "Connection": 0})


def drained(websocket: WebSocket) -> None:
    """Read what comes and forget it, until it is closed."""
    with contextlib.suppress(OSError, ValueError):
        websocket.close_code()


def test_a_flood_of_messages_is_held_back_and_delays_nobody(server: Server) -> None:
    session = server.session()
    before = server.counts()["rss"]
    with WebSocket(server.port, f"{session.path}/ws") as flooding:
        reading = in_background(drained, flooding)
        message = sent(b'"' + b"x" * 60_000 + b'"')
        told, ends = 0, time.monotonic() + 1.5
        while time.monotonic() < ends and told < 10_000:
            flooding.socket.sendall(message)
            told += 1
        # Some lie in buffers; 20 a second are taken.
        assert told < 1_000
        taken = server.ask("GET", f"{session.path}/events?limit=1").json()["total_count"]
        assert taken <= 40 + 20 * (time.monotonic() - ends + 1.5)
        assert server.counts()["rss"] - before < 40_000_000
        with Sse(server.port, f"{session.path}/sse?last_event_id=now") as other:
            other.primed()
            server.emit(session, 7)
            while not any(json.loads(each.data)["event_type"] == "count" for each in other.read()):
                assert not other.response.isclosed()
        flooding.socket.shutdown(socket.SHUT_RDWR)
        reading.join()
    server.check_settled({"readers": 0, "Connection": 0})


# Who may.


@pytest.fixture(scope="module")
def closed_servers(tmp_path_factory: pytest.TempPathFactory) -> Generator[dict[str, Server]]:
    """Servers that let nobody in but with the token of a session."""
    with both(tmp_path_factory.mktemp("closed"), open=False) as made:
        yield made


@pytest.fixture(params=FRAMEWORKS)
def closed(request: pytest.FixtureRequest, closed_servers: dict[str, Server]) -> Server:
    return closed_servers[request.param]


def session_routes(session: Session) -> list[tuple[str, str]]:
    of_session = ("", "/events", "/sse", "/ws", "/stats", "/dead-letters", "/attempts")
    return [
        *(("GET", f"{session.path}{path}") for path in of_session),
        ("DELETE", f"{session.path}/events"),
        ("POST", f"{session.path}/test"),
        ("POST", f"{session.path}/dead-letters/redrive"),
        ("PATCH", session.path),
        ("DELETE", session.path),
    ]


def keys_that_fit_not(token: str, other: str) -> dict[str, dict[str, str]]:
    """Return headers that are nearly a right to a session."""
    cookie = f"callbackkit_session={token}"
    foreign = {"Origin": "https://evil.example"}
    hashed = hashlib.sha256(token.encode()).hexdigest()
    return {
        "none": {},
        "empty": {"Authorization": "Bearer "},
        "no-space": {"Authorization": f"Bearer{token}"},
        "scheme": {"Authorization": f"Basic {token}"},
        "bare": {"Authorization": token},
        "others": {"Authorization": f"Bearer {other}"},
        "two": {"Authorization": f"Bearer {other} {token}"},
        "longer": {"Authorization": f"Bearer {token}x"},
        "shorter": {"Authorization": f"Bearer {token[:-1]}"},
        "case": {"Authorization": f"Bearer {token.swapcase()}"},
        "hash": {"Authorization": f"Bearer {hashed}"},
        "latin": {"Authorization": "Bearer \xff\xe9"},
        "others-cookie": {"Cookie": f"callbackkit_session={other}"},
        "cookie-name": {"Cookie": f"Callbackkit_Session={token}"},
        "foreign-page": {"Cookie": cookie, **foreign},
        "null-page": {"Cookie": cookie, "Origin": "null"},
        "near-page": {"Cookie": cookie, "Origin": "http://127.0.0.1.evil.example"},
        "port-page": {"Cookie": cookie, "Origin": "http://127.0.0.1:81"},
        "user-page": {"Cookie": cookie, "Origin": "http://127.0.0.1@evil.example"},
        "forwarded-page": {"Cookie": cookie, **foreign, "X-Forwarded-Host": "evil.example"},
        "protocol": {"Sec-WebSocket-Protocol": f"callbackkit.token.{other}"},
        "protocol-bare": {"Sec-WebSocket-Protocol": f"callbackkit, {token}"},
        "protocol-case": {"Sec-WebSocket-Protocol": f"Callbackkit.Token.{token}"},
        "protocol-empty": {"Sec-WebSocket-Protocol": "callbackkit.token."},
        "x-token": {"X-Token": token, "X-Original-Authorization": f"Bearer {token}"},
        "proxy": {"X-Forwarded-For": "127.0.0.1", "X-Forwarded-User": "admin"},
    }


def test_there_is_no_way_round_the_token(closed: Server) -> None:
    session, other = closed.session(), closed.session()
    closed.emit(session, 0, 3)
    wrong = keys_that_fit_not(session.token, other.token)
    for name, headers in wrong.items():
        for method, path in session_routes(session):
            answer = closed.ask(method, path, headers)
            assert answer.status in {401, 403}, (name, method, path, answer)
            answer.check_problem()
            assert session.token.encode() not in answer.body
        with WebSocket(closed.port, f"{session.path}/ws", headers) as websocket:
            assert websocket.status in {401, 403}, (name, websocket.status)
    for path in [session.path, *tricks(session.path), session.path.replace("ons/", "ons%2F")]:
        for query in ("", f"?token={other.token}", "?authorization=Bearer"):
            answer = closed.ask("GET", path + query)
            assert answer.status in {400, 401, 404}, (path, query, answer)
    for path in ("/sessions", "/stats", "/metrics", "/events/sse"):
        for headers in (session.headers, {}):
            assert closed.ask("GET", f"{closed.prefix}{path}", headers).status == 403
    assert closed.ask("POST", f"{closed.prefix}/sessions", session.headers).status == 403
    # Nothing of it had an effect, and whoever has the token is let in, however the header is cased.
    page = closed.ask("GET", f"{session.path}/events", {"AUTHORIZATION": f"bearer {session.token}"})
    assert numbers(page.json()["events"]) == [0, 1, 2]
    cookie = {"cookie": f"a=b; callbackkit_session={session.token}", "origin": "http://127.0.0.1"}
    assert closed.ask("GET", session.path, cookie).status == 200
    protocols = {"Sec-WebSocket-Protocol": f"callbackkit, callbackkit.token.{session.token}"}
    with WebSocket(closed.port, f"{session.path}/ws", protocols) as websocket:
        assert websocket.headers["sec-websocket-protocol"] == "callbackkit"
        websocket.events(3)
    assert session.token not in closed.said
    assert hashlib.sha256(session.token.encode()).hexdigest() not in closed.said


def test_a_token_in_the_query_counts_for_nothing(closed: Server) -> None:
    session = closed.session()
    for name in ("token", "access_token", "TOKEN", "token[]"):
        for route in ("", "/sse", "/events", "/ws"):
            target = f"{session.path}{route}?{name}={session.token}"
            assert closed.ask("GET", target).status == 401
        with WebSocket(closed.port, f"{session.path}/ws?{name}={session.token}") as websocket:
            assert websocket.status == 401


def raising(_connection: Any, _session: Any) -> bool:
    raise RuntimeError("the application's own")


async def hanging(_connection: Any, _session: Any) -> bool:
    await anyio.sleep_forever()
    return True


NONSENSE: dict[str, Any] = {
    "raises": raising,
    "says-1": lambda _connection, _session: 1,
    "says-yes": lambda _connection, _session: "yes",
    "says-truth": lambda _connection, _session: [True],
}


@in_both
@pytest.mark.parametrize("name", NONSENSE)
def test_a_function_that_says_nonsense_lets_nobody_in(app_of: AppOf, name: str) -> None:
    manager = CallbackManager()
    app = app_of(manager, NONSENSE[name])
    with client_of(app, raise_server_exceptions=False) as client:
        assert client.portal is not None
        session = client.portal.call(manager.create_session)
        path = f"/callbacks/sessions/{session.id}"
        headers = {"Authorization": f"Bearer {session.token}"}
        for route in ("", "/events", "/sse", "/stats"):
            assert client.get(path + route, headers=headers).status_code == 500
        opening = client.websocket_connect(f"{path}/ws", headers=headers)
        with pytest.raises((RuntimeError, TypeError)), opening:
            pass


@in_both
async def test_a_function_that_hangs_lets_nobody_in_and_holds_up_nobody(app_of: AppOf) -> None:
    async with CallbackManager() as manager:
        session = await manager.create_session()

        async def authorize(connection: Any, _session: Any) -> bool:
            return await hanging(connection, _session) if connection.url.query else True

        app = app_of(manager, authorize)
        path = f"/callbacks/sessions/{session.id}"
        stuck = Connection(app, path, query="x")
        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(stuck.run)
                await anyio.wait_all_tasks_blocked()
                other = Connection(app, path)
                await other.run()
                assert other.status == 200
                assert stuck.messages == []
                tasks.cancel_scope.cancel()


class Hook(Transport):
    name = "webhook"

    async def send(self, delivery: Delivery) -> None:
        """Deliver nothing."""


async def test_no_representation_tells_a_secret() -> None:
    async with CallbackManager(transports=[Hook()]) as manager:
        url, headers = "https://a.example/?key=s3cr3t", {"X-Key": "h1dden"}
        made = await manager.create_session({"webhook_url": url, "headers": headers})
        session = await manager.get_session(made.id)
        app = create_app(manager)
        shown = "".join(map(repr, (made, session, session.config, manager, app, app.routes)))
        secret = session.config.webhook_secret
        for each in (made.token, secret, "s3cr3t", "h1dden"):
            assert each is not None
            assert each not in shown, each


# Several processes on one file.


def opened(server: Server, open_stream: Callable[..., Any], path: str) -> tuple[int, Any]:
    """Return a stream, and the process that serves it."""
    connection = dial(server.port)
    connection.sendall(request_bytes("GET", "/debug/read"))
    pid: int = read_answer(connection).json()["pid"]
    return pid, open_stream(connection, path)


def from_each(server: Server, open_stream: Callable[..., Any], path: str) -> dict[int, Any]:
    """Return a stream of each process."""
    found: dict[int, Any] = {}
    ends = time.monotonic() + PATIENCE
    while len(found) < server.workers:
        assert time.monotonic() < ends
        pid, stream = opened(server, open_stream, path)
        if pid in found:
            stream.close()
        else:
            found[pid] = stream
    return found


def test_either_of_two_workers_tells_all_and_one_may_go(tmp_path: Path) -> None:
    with Server(tmp_path / "events.db", workers=2) as server:
        session = server.session()
        streams = from_each(server, Sse, f"{session.path}/sse")
        websockets = from_each(server, WebSocket, f"{session.path}/ws")
        for number in range(40):
            server.emit(session, number)
        for each in (*streams.values(), *websockets.values()):
            assert numbers(each.events(40)) == list(range(40))
        going, staying = sorted(streams)
        os.kill(going, signal.SIGTERM)
        check_told([streams[going], websockets[going]])
        server.emit(session, 40)
        for each in (streams[staying], websockets[staying]):
            assert numbers(each.events(1)) == [40]
        headers = {"Last-Event-ID": streams[going].position}
        ends, events = time.monotonic() + PATIENCE, []
        # The one that goes may still answer, and says so again.
        while not events:
            assert time.monotonic() < ends
            with Sse(server.port, f"{session.path}/sse", headers) as again:
                while not again.response.isclosed() and not events:
                    events = again.read()
        assert json.loads(events[0].data)["data"]["number"] == 40
        for each in (*streams.values(), *websockets.values()):
            each.close()
