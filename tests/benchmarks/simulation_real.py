"""A small fleet of real managers on a real server, to hold the simulation against."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from contextlib import AsyncExitStack
from time import perf_counter
from typing import Any

import attrs

from callbackkit.delivery.transport import Delivery, DeliveryConfig, Transport
from callbackkit.sessions.manager import CallbackManager
from callbackkit.sessions.session import Session
from callbackkit.stores.redis import RedisStore
from tests.benchmarks.simulation_costs import used_by
from tests.benchmarks.simulation_fleet import percentile
from tests.benchmarks.simulation_model import Fleet
from tests.stores.redis_server import Server

__all__ = ["Seen", "watched"]

# Seconds until all have begun and are at rest.
_WARM = 4.0
_SESSIONS = 64


@attrs.frozen
class Seen:
    """What a real fleet did.

    Attributes:
        calls: Calls of the script a second.
        load: Part of one processor that the server used.
        cost: Microseconds of the server for each call.
        attempt_p50: Seconds from emitting to sending, half of the events.
        connections: Connections of each worker.
    """

    calls: float
    load: float
    cost: float
    attempt_p50: float | None
    connections: float


class _Post(Transport):
    """Takes as long as it is told to, and notes when it begins."""

    name = "post"

    def __init__(self, duration: float, arrived: dict[str, float]) -> None:
        super().__init__()
        self._duration = duration
        self._arrived = arrived

    def endpoint(self, session_id: str, config: DeliveryConfig) -> str:
        """Give each session an endpoint of its own."""
        return session_id

    async def send(self, delivery: Delivery) -> None:
        """Note and wait."""
        for event in delivery.events:
            self._arrived[str(event.data["number"])] = perf_counter()
        await asyncio.sleep(self._duration)


def watched(server: Server, fleet: Fleet, *, seconds: float, seed: int = 1) -> Seen:
    """Run as many managers as the fleet has workers, in this process, and watch the server."""
    return asyncio.run(_watched(server, fleet, seconds, random.Random(seed)))


async def _watched(server: Server, fleet: Fleet, seconds: float, rng: random.Random) -> Seen:
    arrived: dict[str, float] = {}
    async with AsyncExitStack() as stack:
        managers: list[CallbackManager] = []
        for _ in range(fleet.workers):
            store = RedisStore.from_url(server.url, partitions=fleet.partitions)
            transports = [_Post(fleet.attempt, arrived)] if fleet.engines else []
            managers.append(await stack.enter_async_context(CallbackManager(store, transports)))
        config: Any = {"delivery_method": "post"} if fleet.engines else None
        sessions = [
            await managers[n % len(managers)].create_session(config) for n in range(_SESSIONS)
        ]
        await asyncio.sleep(_WARM)
        calls, used, began = _scripts(server), used_by(server), perf_counter()
        waits = await _emit(sessions, fleet.owed, began + seconds, rng)
        taken = perf_counter() - began
        calls, used = _scripts(server) - calls, used_by(server) - used
        connections = server.call("INFO", "clients").decode().partition("connected_clients:")[2]
        found = [arrived[number] - at for number, at in waits.items() if number in arrived]
    return Seen(
        calls=calls / taken,
        load=used / taken,
        cost=used / max(calls, 1) * 1e6,
        attempt_p50=percentile(found, 50) if found else None,
        connections=(int(connections.split()[0]) - 1) / fleet.workers,
    )


async def _emit(
    sessions: Sequence[Session], rate: float, until: float, rng: random.Random
) -> dict[str, float]:
    """Emit now and then, each time to another session; return when each event began."""
    began: dict[str, float] = {}
    emits: set[asyncio.Task[Any]] = set()
    while perf_counter() < until:
        wait = rng.expovariate(rate) if rate else until - perf_counter()
        await asyncio.sleep(max(min(wait, until - perf_counter()), 0.0))
        if rate:
            number = str(len(began))
            began[number] = perf_counter()
            session = sessions[len(began) % len(sessions)]
            emits.add(asyncio.ensure_future(session.emit("measured", {"number": number})))
    await asyncio.gather(*emits)
    return began


def _scripts(server: Server) -> int:
    text = server.call("INFO", "commandstats").decode()
    return int(text.partition("cmdstat_evalsha:calls=")[2].partition(",")[0] or 0)
