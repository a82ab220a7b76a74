import resource
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from importlib import import_module
from time import monotonic

import pytest

from tests.benchmarks.fan_out import Audience
from tests.benchmarks.fan_out_clients import MARK, Client, Clients, get
from tests.benchmarks.fan_out_idle import files_allowed
from tests.benchmarks.fan_out_process import Server
from tests.benchmarks.fan_out_server import main
from tests.benchmarks.fan_out_service import FRAME, TEXT, Service
from tests.benchmarks.fan_out_stamps import Arrivals, stamp


@pytest.fixture
def server() -> Iterator[Server]:
    with Server("limit-sse") as server:
        server.begin()
        yield server


def test_an_event_is_counted_wherever_it_is_cut() -> None:
    text = FRAME + FRAME
    for cut in range(1, len(text)):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            client = Client(ours, None)
            theirs.sendall(text[:cut])
            first = client.read()
            theirs.sendall(text[cut:])
            assert first + client.read() == client.events == 2


def test_a_connection_that_ends_is_not_measured() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        theirs.close()
        with pytest.raises(RuntimeError, match="closed"):
            Client(ours, None).read()


@pytest.mark.real_server
def test_a_client_that_is_refused_is_told() -> None:
    with Server("ours-sse") as server:
        server.begin()
        with Clients(server.port) as clients, pytest.raises(RuntimeError, match=r"HTTP/1\.1 404"):
            clients.connect([get("/callbacks/sessions/unknown/sse")])


def test_arrivals_are_noted_wherever_they_are_cut() -> None:
    text = f"data: {stamp(0, monotonic() - 5)}\n\ndata: {stamp(1, monotonic() - 7)}\n\n".encode()
    for cut in range(1, len(text)):
        arrivals = Arrivals()
        arrivals.take(text[:cut])
        arrivals.take(text[cut:])
        assert [5 <= arrivals.waits[0] < 6, 7 <= arrivals.waits[1] < 8] == [True, True]


def test_an_event_that_comes_twice_is_told() -> None:
    arrivals = Arrivals()
    for number in (0, 2, 1):
        arrivals.take(stamp(number, 0.0).encode())
    with pytest.raises(RuntimeError, match="event 2 comes again"):
        arrivals.take(stamp(2, 0.0).encode())


def test_a_round_begins_anew() -> None:
    arrivals = Arrivals()
    for _ in range(2):
        arrivals.begin()
        arrivals.take(stamp(0, 0.0).encode())
        assert len(arrivals.waits) == 1


def test_what_is_not_installed_is_told(capsys) -> None:
    @asynccontextmanager
    async def absent(_: int) -> AsyncIterator[Service]:
        import_module("no_such_package_here")
        yield Service(publish=lambda _: None)

    main(absent, 0)
    assert capsys.readouterr().out == '{"absent": "no_such_package_here"}\n'


def test_an_event_is_as_long_as_others_have_it() -> None:
    assert TEXT.count(MARK.decode()) == 1
    assert 270 <= len(TEXT) <= 310


def test_files_that_are_allowed_already_stay_so() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert files_allowed(10) >= 10
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == before


@pytest.mark.real_server
def test_a_run_in_which_an_event_is_lost_is_not_measured(server: Server) -> None:
    with Clients(server.port) as clients:
        clients.connect(map(get, server.paths_for(2)))
        server.order("publish", 1)
        clients.expect(1)
        with pytest.raises(RuntimeError, match="1 events for each client: between 0 and 0"):
            clients.expect(1, seconds=0.05)


@pytest.mark.real_server
def test_a_server_tells_what_it_has_used(server: Server) -> None:
    assert server.ask("processor") > 0
    assert server.ask("resident") > 1_000_000


@pytest.mark.real_server
def test_a_server_that_can_not_begin_is_told() -> None:
    with Server("no-such") as server, pytest.raises(RuntimeError, match="no-such ended"):
        server.begin()


@pytest.mark.real_server
def test_an_event_of_ours_is_as_long_as_those_of_others() -> None:
    got: list[bytes] = []
    with Server("ours-sse") as server:
        server.begin()
        with Clients(server.port) as clients:
            clients.connect([get(server.paths_for(1)[0])], lambda _: got.append)
            Audience(server, clients).attend()
            got.clear()
            server.order("publish", 1)
            clients.expect(1)
    assert len(b"".join(got)) == pytest.approx(len(FRAME), rel=0.1)
