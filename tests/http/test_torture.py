"""Heavy rounds: many clients that misbehave, for long, against one server."""

import itertools
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.http.withstand_rig import (
    PATIENCE,
    Proxy,
    Server,
    Session,
    Sse,
    WebSocket,
    check_told,
    connect_and_reset,
    grown,
    many,
    numbers,
    requests_of,
    sse_of,
    storm,
    streams_of,
    websocket_of,
)

pytestmark = [pytest.mark.torture, pytest.mark.real_server, pytest.mark.timeout(600)]

QUICK = {"heartbeat": 0.5, "write_timeout": 2.0}
MEGABYTE = 1_000_000


@pytest.mark.parametrize("framework", ["fastapi", "starlette"])
def test_ten_thousand_resets_leave_nothing(tmp_path: Path, framework: str) -> None:
    with Server(tmp_path / "events.db", framework=framework, **QUICK) as server:
        session = server.session()
        requests = requests_of(session)
        server.emit(session, 0, 3)
        connect_and_reset(server.port, requests, 1_000)
        server.check_settled({"readers": 0, "Connection": 0})
        before = server.counts()
        stop, delays = threading.Event(), [0.0]
        with sse_of(server.port, session) as other:
            other.events(3)
            watching = threading.Thread(target=watch, args=[server, session, other, stop, delays])
            watching.start()
            connect_and_reset(server.port, requests, 10_000)
            stop.set()
            watching.join()
        assert max(delays) < 2.0
        del before["pid"]
        rss = before.pop("rss")
        server.check_settled({**before, "descriptors": before["descriptors"] + 8})
        assert server.counts()["rss"] - rss < 20 * MEGABYTE


def watch(
    server: Server, session: Session, other: Sse, stop: threading.Event, delays: list[float]
) -> None:
    """Emit one event after the other, and note how long each takes to come."""
    for number in itertools.count(3):
        if stop.is_set():
            return
        began = time.monotonic()
        server.emit(session, number)
        assert numbers(other.events(1)) == [number]
        delays.append(time.monotonic() - began)


@pytest.mark.parametrize("framework", ["fastapi", "starlette"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_thousand_streams_are_told_to_come_back(
    tmp_path: Path, framework: str, number: signal.Signals
) -> None:
    with (
        Server(tmp_path / "events.db", framework=framework) as server,
        many(streams_of(server, 1_000)) as streams,
    ):
        grown(server, readers=1_000)
        began = time.monotonic()
        server.kill(number)
        check_told(streams)
        server.wait()
        assert time.monotonic() - began < PATIENCE


def test_a_thousand_readers_that_take_nothing_are_given_up(tmp_path: Path) -> None:
    with Server(tmp_path / "events.db", **QUICK) as server:
        session = server.session()
        server.emit(session, 0)
        with sse_of(server.port, session) as other, Proxy(server.port) as proxy:
            other.events(1)
            before = server.counts()
            openers = itertools.cycle((sse_of, websocket_of))
            made = (next(openers)(proxy.port, session, buffer=4096) for _ in range(1_000))
            with many(made):
                proxy.lose()
                for number in range(1, 41):
                    server.emit(session, number, size=200_000)
                    assert numbers(other.events(1)) == [number]
                # A quiet while: who took nothing is given up, whatever the rest is sent.
                server.check_settled({"readers": 1, "Connection": 1}, turns=8)
                # What lies in sockets is the server's; by then it holds what it wrote, once.
                assert server.counts()["rss"] - before["rss"] < 1_000 * MEGABYTE
        server.check_settled({"readers": 0, "tasks": before["tasks"]})


@pytest.mark.parametrize("clients", [3_000])
def test_a_storm_of_thousands_reads_the_store_once(tmp_path: Path, clients: int) -> None:
    with Server(tmp_path / "events.db", **QUICK) as server:
        session = server.session()
        server.emit(session, 0, 20)
        cursor = server.ask("GET", f"{session.path}/events?limit=20").json()["cursor"]
        epoch = cursor.rpartition("-")[0]
        path = f"{session.path}/sse"
        for _ in range(3):
            before = server.reads(session)
            positions = [f"{epoch}-{19 - number % 20}" for number in range(clients)]
            with many(storm(server.port, path, positions)) as open_streams:
                for number, client in enumerate(open_streams):
                    first = 19 - number % 20
                    assert numbers(client.events(20 - first)) == list(range(first, 20))
                for client in open_streams:
                    client.reset()
            server.check_settled({"readers": 0})
            assert server.reads(session) - before <= 30


def test_clients_follow_through_twenty_restarts(tmp_path: Path) -> None:
    chance = random.Random(5)
    with Server(tmp_path / "events.db", framework="starlette") as server:
        session = server.session()
        seen: dict[int, list[int]] = {client: [] for client in range(10)}
        positions: dict[int, str] = dict.fromkeys(seen, "")
        last = 0
        for _ in range(20):
            streams: dict[int, Any] = {}
            for client in seen:
                if client % 2:
                    query = f"?after={positions[client]}"
                    streams[client] = WebSocket(server.port, f"{session.path}/ws{query}")
                else:
                    headers = {"Last-Event-ID": positions[client]}
                    streams[client] = Sse(server.port, f"{session.path}/sse", headers)
            count = chance.randrange(1, 150)
            server.emit(session, last, count)
            last += count
            for client, stream in streams.items():
                # Not all that there is: where it stops is where it goes on.
                missing = last - len(seen[client])
                wanted = missing if client < 4 else 1
                events = stream.at_least(wanted)
                seen[client] += numbers(events)
                positions[client] = events[-1]["id"]
            server.stop(chance.choice([signal.SIGTERM, signal.SIGKILL]))
            for stream in streams.values():
                stream.close()
            server.start()
        for client, got in seen.items():
            assert got == list(range(len(got))), client
        assert seen[0] == list(range(last))


def test_two_workers_tell_all_to_many_while_both_go(tmp_path: Path) -> None:
    with Server(tmp_path / "events.db", workers=2) as server:
        session = server.session()
        path = session.path
        with (
            many(Sse(server.port, f"{path}/sse") for _ in range(100)) as streams,
            many(WebSocket(server.port, f"{path}/ws") for _ in range(100)) as websockets,
        ):
            emitting = [
                threading.Thread(target=server.emit, args=[session, 1_000 * turn, 250])
                for turn in range(4)
            ]
            for each in emitting:
                each.start()
            first = numbers(streams[0].events(1_000, patience=60))
            for each in (*streams[1:], *websockets):
                assert numbers(each.events(1_000)) == first
            for each in emitting:
                each.join()
            for turn in range(4):
                own = [number for number in first if number // 1_000 == turn]
                assert own == list(range(1_000 * turn, 1_000 * turn + 250))
