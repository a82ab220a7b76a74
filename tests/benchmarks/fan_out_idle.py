"""Clients that nothing is sent to: the memory their server takes for each. Linux only."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial

from tests.benchmarks.fan_out_clients import Clients, Request, get, upgrade
from tests.benchmarks.fan_out_process import Server
from tests.benchmarks.harness import Case, Measure, Table

# Files that a process has open beside its connections, at most.
_OTHERS = 500


@contextmanager
def held_open(clients: int) -> Iterator[Table]:
    """Hold streams open, each of a session of its own.

    Args:
        clients: How many; fewer if the machine does not allow a process that many files.
    """
    clients = min(clients, files_allowed(clients + _OTHERS) - _OTHERS)
    # Memory does not differ from round to round.
    resident = cache(partial(resident_each, clients))

    def each(name: str, request: Request) -> Measure:
        return lambda number: number * resident(name, request)

    def beyond(bare: str, name: str, request: Request) -> Measure:
        return lambda number: number * (resident(name, request) - resident(bare, request))

    yield Table(
        f"{clients:_} clients that nothing is sent to: memory of the server for each, once",
        [
            Case("uvicorn, a bare application, SSE", each("limit-idle", get)),
            Case(
                "callbackkit beyond that, with a session each",
                beyond("limit-idle", "ours-sse", get),
                25_000,
            ),
            Case("uvicorn, a bare application, WebSocket", each("limit-idle", upgrade)),
            Case(
                "callbackkit beyond that, with a session each, WebSocket",
                beyond("limit-idle", "ours-websocket", upgrade),
            ),
        ],
        unit="bytes",
        number=1,
    )


def files_allowed(wanted: int) -> int:
    """Have this process and those it starts allowed so many open files; return how many are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        soft = allowed
    return wanted if soft == resource.RLIM_INFINITY else soft


def resident_each(clients: int, name: str, request: Request) -> float:
    """Start a server, connect clients to it, and return the bytes it took for each."""
    with Server(name, clients) as server:
        server.begin()
        before = server.ask("resident") - server.ask("created")
        with Clients(server.port) as connected:
            connected.connect(map(request, server.paths_for(clients)))
            return (server.ask("resident") - before) / clients
