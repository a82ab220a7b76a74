"""One event to many clients: the processor time that their server takes for each of them."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from time import monotonic

from tests.benchmarks.fan_out_clients import PATIENCE, Clients, Request, get, upgrade
from tests.benchmarks.fan_out_process import Server
from tests.benchmarks.harness import Case, Measure, Table

_SSE = {
    "limit-sse": "limit: transport.write of ready bytes",
    "ours-sse": "callbackkit",
    "starlette-sse": "Starlette StreamingResponse, a queue each",
    "sse-starlette": "sse-starlette, a queue each",
    "fastapi-raw": "FastAPI raw_data, a queue each",
    "fastapi-data": "FastAPI data, a queue each",
}
_WEBSOCKET = {
    "limit-websocket": "limit: transport.write of a ready frame",
    "ours-websocket": "callbackkit",
    "starlette-websocket": "Starlette send_text, a queue each",
    "broadcaster": "broadcaster, in memory",
    "litestar": "Litestar channels, in memory",
}
_TOGETHER = 20

# Events of a round, to each client.
_EVENTS = 200


@contextmanager
def server_sent(clients: int) -> Iterator[Table]:
    """Send events to many clients by SSE, one at a time and in bursts."""
    with ExitStack() as stack:
        audiences = _gathered(stack, clients, get, _SSE)
        yield Table(
            f"SSE to {clients} clients: processor time of the server for each event and client",
            [*_cases(_SSE, audiences, 1, 1.9), *_cases(_SSE, audiences, _TOGETHER, 0.3)],
            number=clients * _EVENTS,
        )


@contextmanager
def websockets(clients: int) -> Iterator[Table]:
    """Send events to many clients through WebSockets, one at a time."""
    with ExitStack() as stack:
        audiences = _gathered(stack, clients, upgrade, _WEBSOCKET)
        yield Table(
            f"WebSocket to {clients} clients: processor time of the server for each event and"
            " client",
            _cases(_WEBSOCKET, audiences, 1, 2.2),
            number=clients * _EVENTS,
        )


class Audience:
    """A server, with clients that get what is published there.

    Args:
        server: It listens.
        clients: They are connected.
    """

    def __init__(self, server: Server, clients: Clients) -> None:
        self._server = server
        self._clients = clients

    def publishing(self, together: int) -> Measure:
        """Measure the server while it publishes so many events together.

        The next when all clients have the last ones.
        """

        def measure(number: int) -> float:
            began = self._server.ask("processor")
            for _ in range(-(-number // len(self._clients.all) // together)):
                self._server.order("publish", together)
                self._clients.expect(together)
            return self._server.ask("processor") - began

        return measure

    def attend(self) -> None:
        """Publish until every client gets what is published.

        Raises:
            RuntimeError: One of them never does.
        """
        clients = self._clients
        until = monotonic() + PATIENCE
        while not all(client.events for client in clients.all):
            if monotonic() > until:
                raise RuntimeError(f"a client of {self._server.name} gets nothing")
            self._server.order("publish", 1)
            clients.receive(len(clients.all), 0.1)
        # What was published before some of them were there still comes to the others.
        while clients.receive(1, 0.1):
            pass


def _gathered(
    stack: ExitStack, clients: int, request: Request, names: Mapping[str, str]
) -> dict[str, Audience]:
    """Start servers, and connect clients to each; leave out what is not installed."""
    # All at once, for most of it is importing.
    servers = [stack.enter_context(Server(name)) for name in names]
    audiences = {}
    for server in servers:
        try:
            server.begin()
        except ModuleNotFoundError:
            continue
        connected = stack.enter_context(Clients(server.port))
        connected.connect(map(request, server.paths_for(clients)))
        audience = audiences[server.name] = Audience(server, connected)
        audience.attend()
    return audiences


def _cases(
    names: Mapping[str, str], audiences: Mapping[str, Audience], together: int, target: float
) -> list[Case]:
    """Make the rows for so many events together; the first is the limit of the others."""
    rows = {
        name: title if together == 1 else f"{title}, {together} together"
        for name, title in names.items()
    }
    limit = next(iter(rows.values()))
    return [
        Case(
            row,
            audiences[name].publishing(together) if name in audiences else None,
            target if name.startswith("ours") else None,
            beside=limit,
        )
        for name, row in rows.items()
    ]
