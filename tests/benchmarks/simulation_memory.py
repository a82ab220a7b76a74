"""How many bytes of Redis what a fleet keeps takes, measured on a server."""

from __future__ import annotations

import asyncio

import attrs

from tests.benchmarks.simulation_costs import append_to, fill, noting, probing
from tests.benchmarks.simulation_wire import encoded
from tests.stores.redis_server import Server

__all__ = ["Memory", "measure_memory"]


@attrs.frozen(kw_only=True)
class Memory:
    """Bytes of the server.

    Attributes:
        session: A session without events.
        event: An event of 300 bytes, of a session that has a hundred.
        connection: A connection that is silent.
        channel: A session that a process follows, with a name of 32 letters.
    """

    session: float
    event: float
    connection: float
    channel: float


def measure_memory(server: Server, *, sessions: int = 4_000, events: int = 100) -> Memory:
    """Measure it on a server that nobody else uses."""
    return asyncio.run(_measure(server, sessions, events))


async def _measure(server: Server, sessions: int, events: int) -> Memory:
    ids = [f"{n:032x}" for n in range(sessions)]
    async with noting(server) as noted:
        store = noted.store
        before = _used(server)
        await fill(store, ids)
        created = _used(server)
        some = ids[: max(sessions // 20, 1)]
        await append_to(store, some, events=events)
        appended = _used(server)
    connections = max(sessions // 8, 1)
    alone = _used(server)
    with probing(server, connections):
        connected = _used(server)
    with probing(server, 1) as probe:
        empty = _used(server)
        for each in ids:
            probe.send([encoded("SUBSCRIBE", f"{{callbackkit:0}}:w:{each}")])
        subscribed = _used(server)
    return Memory(
        session=(created - before) / sessions,
        event=(appended - created) / len(some) / events,
        connection=(connected - alone) / connections,
        channel=(subscribed - empty) / sessions,
    )


def _used(server: Server) -> int:
    text = server.call("INFO", "memory").decode()
    return int(text.partition("used_memory:")[2].split()[0])
