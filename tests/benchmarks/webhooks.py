"""Webhooks to a receiver in another process on loopback: how many events are posted in a second.

Beside a loop of plain POSTs by aiohttp, which sign nothing, choose nothing and keep nothing. Ours
were emitted before; what is measured is claiming, encoding, signing, guarding, posting and settling
them. Times are those of a clock on the wall: with one endpoint, most of it is waiting.
"""

import asyncio
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from itertools import chain
from pathlib import Path
from time import perf_counter
from typing import Any

import aiohttp

from callbackkit import CallbackManager
from callbackkit.delivery.transport import Delivery
from callbackkit.stores.base import Store
from callbackkit.stores.memory import MemoryStore
from callbackkit.stores.sqlite import SQLiteStore
from callbackkit.webhooks.transport import WebhookTransport
from tests.benchmarks.harness import Case, Measure, Table
from tests.benchmarks.webhooks_receiver import receiving

DATA = {"progress": 0.4, "message": "reading the third chapter", "current_step": 3}
# What that is as a webhook, and what a plain POST carries.
BODY = (
    b'{"id":"0123456789abcdef-1","event_type":"progress","timestamp":"2026-01-01T00:00:00.000000Z",'
    b'"session_id":"0123456789abcdef0123456789abcdef","conversation_id":null,"data":'
    b'{"progress":0.4,"message":"reading the third chapter","current_step":3},"metadata":{}}'
)

_ENDPOINTS = (1, 16, 64)
_TOGETHER = 20
# Without waiting for a batch to fill: what is there is sent.
_BATCHING = {"max_events": _TOGETHER, "max_delay": 0.0}
# Rounds differ by so much on a machine that has other things to do.
_NEVER_FALLS = 0.95

MakeStore = Callable[[], AbstractContextManager[Store]]


@contextmanager
def posted(events: int) -> Iterator[Table]:
    """Post events to endpoints, one request at a time to each.

    Args:
        events: How many a round has.
    """
    with receiving() as url, asyncio.Runner() as runner:
        beside_aiohttp = chain.from_iterable(_cases(runner, url, each) for each in _ENDPOINTS)
        yield Table(
            "webhooks on loopback, an event",
            [*beside_aiohttp, *_rising(runner, url)],
            ratio="speed",
            number=events,
        )


def _cases(runner: asyncio.Runner, url: str, endpoints: int) -> Iterator[Case]:
    where = "1 endpoint" if endpoints == 1 else f"{endpoints} endpoints"
    ours = partial(delivering, runner, url, endpoints)
    limit = f"{where}: aiohttp, plain POSTs"
    yield Case(limit, posting(runner, url, endpoints), beside=limit)
    yield Case(f"{where}: callbackkit", ours(_in_memory), 0.6, beside=limit)
    yield Case(
        f"{where}: callbackkit, {_TOGETHER} together",
        ours(_in_memory, batching=_BATCHING),
        5.0,
        beside=limit,
    )
    yield Case(f"{where}: callbackkit, SQLite", ours(_in_a_file), beside=limit)
    yield Case(
        f"{where}: callbackkit, SQLite, {_TOGETHER} together",
        ours(_in_a_file, batching=_BATCHING),
        beside=limit,
    )


def _rising(runner: asyncio.Runner, url: str) -> Iterator[Case]:
    """Compare what more endpoints come to with what fewer do."""
    fewer: str | None = None
    for endpoints in _ENDPOINTS:
        name = f"rising: callbackkit, {endpoints}"
        measure = delivering(runner, url, endpoints, _in_memory)
        yield Case(name, measure, _NEVER_FALLS if fewer else None, beside=fewer or name)
        fewer = name


def posting(runner: asyncio.Runner, url: str, endpoints: int) -> Measure:
    """Measure a loop of POSTs to each endpoint."""

    async def post(session: aiohttp.ClientSession, path: str, numbers: Iterator[int]) -> None:
        for _ in numbers:
            async with session.post(path, data=BODY, headers=_PLAIN) as answer:
                if answer.status != 204:
                    raise RuntimeError(f"the receiver answered {answer.status}")

    async def measure(number: int) -> float:
        numbers = iter(range(number))
        began = perf_counter()
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            async with asyncio.TaskGroup() as group:
                for n in range(endpoints):
                    group.create_task(post(session, f"{url}{n}", numbers))
            return perf_counter() - began

    return lambda number: runner.run(measure(number))


_PLAIN = {"content-type": "application/json"}


class Counting(WebhookTransport):
    """Rings when so many events have been posted."""

    def __init__(self, left: int) -> None:
        super().__init__(allowed_networks=["127.0.0.0/8"], require_https=False)
        self.done = asyncio.Event()
        self._left = left

    async def send(self, delivery: Delivery) -> None:
        await super().send(delivery)
        self._left -= len(delivery.events)
        if self._left == 0:
            self.done.set()


def delivering(
    runner: asyncio.Runner, url: str, endpoints: int, make_store: MakeStore, **config: Any
) -> Measure:
    """Measure a manager from entering it until what was emitted before has been posted."""

    async def measure(number: int) -> float:
        with make_store() as store:
            transport = Counting(number)
            manager = CallbackManager(store, [transport])
            await _emitted(manager, url, endpoints, number, config)
            began = perf_counter()
            async with manager:
                await transport.done.wait()
                took = perf_counter() - began
            delivered = (await store.totals()).delivered
            await store.aclose()
        if delivered != number:
            raise RuntimeError(f"{number} events were owed, {delivered} were delivered")
        return took

    return lambda number: runner.run(measure(number))


async def _emitted(
    manager: CallbackManager, url: str, endpoints: int, number: int, config: dict[str, Any]
) -> None:
    """Emit events to a session for each endpoint."""

    async def emit(n: int) -> None:
        session = await manager.create_session({"webhook_url": f"{url}{n}", **config})
        for _ in range(n, number, endpoints):
            await session.emit("progress", DATA)

    async with asyncio.TaskGroup() as group:
        for n in range(endpoints):
            group.create_task(emit(n))


def _in_memory() -> AbstractContextManager[Store]:
    return nullcontext(MemoryStore())


@contextmanager
def _in_a_file() -> Iterator[Store]:
    with tempfile.TemporaryDirectory() as folder:
        yield SQLiteStore(Path(folder) / "events.db")
