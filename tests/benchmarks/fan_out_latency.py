"""Many sessions with a client each: the time from an event being due to its client having it.

Of the clock on the wall, so it needs two cores with nothing else to do.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from statistics import quantiles

from tests.benchmarks.fan_out_clients import Clients, get
from tests.benchmarks.fan_out_ours import RATE
from tests.benchmarks.fan_out_process import Server
from tests.benchmarks.fan_out_stamps import Arrivals
from tests.benchmarks.harness import Case, Measure, Table

AT_MOST = 100_000.0
"""Microseconds, of 99 events in 100."""


@contextmanager
def keeping_pace(clients: int, events: int) -> Iterator[Table]:
    """Emit to many sessions at a pace, each read by a client of its own.

    Args:
        clients: How many there are.
        events: How many each session has in a round.
    """
    with ExitStack() as stack:
        run = partial(_connected, stack, clients)
        yield Table(
            f"SSE, {clients:_} sessions with a client each, {RATE} events a second each:"
            " from being due to being read, percentile 99",
            [
                Case("callbackkit, in memory", run("ours-sse"), AT_MOST),
                Case("callbackkit, SQLite", run("ours-sse-sqlite")),
            ],
            unit="microseconds",
            number=events,
        )


def _connected(stack: ExitStack, clients: int, name: str) -> Measure:
    """Start a server with its clients, one of each session."""
    server = stack.enter_context(Server(name, clients))
    server.begin()
    connected = stack.enter_context(Clients(server.port))
    paths = server.paths_for(clients)
    arrivals = [Arrivals() for _ in paths]
    connected.connect(map(get, paths), lambda number: arrivals[number].take)
    return pacing(server, connected, arrivals)


def pacing(server: Server, clients: Clients, arrivals: list[Arrivals]) -> Measure:
    """Measure the percentile 99 of the seconds that events take, times their number for a session.

    The number of events of each session is that of the runs.
    """

    def measure(number: int) -> float:
        for each in arrivals:
            each.begin()
        server.order("pace", number)
        clients.expect(number)
        server.answer()
        waits = [wait for each in arrivals for wait in each.waits]
        return number * quantiles(waits, n=100, method="inclusive")[98]

    return measure
