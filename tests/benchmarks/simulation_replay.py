"""A thousand idle workers without a store: what stores sent goes to a real server again."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from time import perf_counter

import attrs

from tests.benchmarks.simulation_costs import looks_of, noting, used_by
from tests.benchmarks.simulation_fleet import percentile
from tests.benchmarks.simulation_model import Fleet
from tests.benchmarks.simulation_wire import Replies
from tests.stores.redis_server import Server

__all__ = ["Replayed", "replayed"]

# Seconds between two sweeps, until all have begun, and until the server has to have answered.
_SWEEP_EVERY = 5.0
_WARM = 3.0
_PATIENCE = 30.0


@attrs.frozen
class Replayed:
    """What the server did.

    Attributes:
        calls: Calls a second.
        load: Part of one processor that it used.
        took_p50: Seconds until an answer, half of them.
        took_p99: 99 of 100.
    """

    calls: float
    load: float
    took_p50: float
    took_p99: float


class _Connection(asyncio.Protocol):
    """Sends calls together, and waits until all have been answered."""

    def __init__(self) -> None:
        self._replies = Replies()
        self._left = 0
        self._answered: asyncio.Future[None] | None = None
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._left -= self._replies.feed(data)
        if not self._left and self._answered is not None and not self._answered.done():
            self._answered.set_result(None)

    async def ask(self, calls: Sequence[bytes]) -> None:
        assert self.transport is not None
        self._left = len(calls)
        self._answered = asyncio.get_running_loop().create_future()
        self.transport.write(b"".join(calls))
        await asyncio.wait_for(self._answered, _PATIENCE)


def replayed(server: Server, fleet: Fleet, *, seconds: float, seed: int = 1) -> Replayed:
    """Have so many idle workers on one server, each with a connection, and watch it."""
    return asyncio.run(_replayed(server, fleet, seconds, random.Random(seed)))


async def _replayed(server: Server, fleet: Fleet, seconds: float, rng: random.Random) -> Replayed:
    async with noting(server, partitions=fleet.partitions) as noted:
        looks = await looks_of(noted)
        sweeps = await noted.by(noted.store.sweep(limit=100))
        totals = await noted.by(noted.store.totals())
    loop = asyncio.get_running_loop()
    pairs = [
        await loop.create_connection(_Connection, "127.0.0.1", server.port)
        for _ in range(2 * fleet.workers)
    ]
    connections = [each for _, each in pairs]
    took: list[float] = []
    tasks = [
        loop.create_task(each)
        for one, other in zip(connections[::2], connections[1::2], strict=True)
        for each in (
            _look(one, looks, fleet.reconcile, rng, took),
            _look_after(other, [sweeps, totals], rng),
        )
    ]
    await asyncio.sleep(_WARM)
    del took[:]
    calls, used, began = _count(server), used_by(server), perf_counter()
    await asyncio.sleep(seconds)
    taken = perf_counter() - began
    calls, used = _count(server) - calls, used_by(server) - used
    for task in tasks:
        task.cancel()
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    for transport, _ in pairs:
        transport.abort()
    for error in ended:
        if not isinstance(error, asyncio.CancelledError):
            raise RuntimeError("a worker ended") from error
    return Replayed(calls / taken, used / taken, percentile(took, 50), percentile(took, 99))


async def _look(
    connection: _Connection,
    looks: Sequence[bytes],
    every: float,
    rng: random.Random,
    took: list[float],
) -> None:
    await asyncio.sleep(rng.random() * every)
    while True:
        for look in looks:
            began = perf_counter()
            await connection.ask([look])
            took.append(perf_counter() - began)
        await asyncio.sleep(every)


async def _look_after(
    connection: _Connection, rounds: Sequence[Sequence[bytes]], rng: random.Random
) -> None:
    await asyncio.sleep(rng.random() * _SWEEP_EVERY)
    while True:
        for calls in rounds:
            await connection.ask(calls)
        await asyncio.sleep(_SWEEP_EVERY)


def _count(server: Server) -> int:
    text = server.call("INFO", "commandstats").decode()
    return int(text.partition("cmdstat_evalsha:calls=")[2].partition(",")[0] or 0)
