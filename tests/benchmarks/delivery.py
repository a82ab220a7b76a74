"""What the delivery engine costs an event: a transport that does nothing, a store in memory."""

import asyncio
import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from time import process_time

from callbackkit.delivery.engine import DeliveryEngine
from callbackkit.delivery.policy import Batching
from callbackkit.delivery.transport import Delivery, Transport
from callbackkit.sessions.config import CallbackConfig
from callbackkit.stores.base import NewSession
from callbackkit.stores.memory import MemoryStore
from tests.benchmarks.harness import Case, Measure, Table

BODY = b'{"conversation_id":null,"data":{"progress":0.5,"message":"parsing"},"metadata":{}}'


class Nothing(Transport):
    """Counts what it gets; may suspend, so that its deadline has to be armed."""

    name = "nothing"

    def __init__(self, *, suspends: bool = False) -> None:
        self.events = 0
        self._suspends = suspends

    async def send(self, delivery: Delivery) -> None:
        self.events += len(delivery.events)
        if self._suspends:
            await asyncio.sleep(0)


@contextmanager
def delivering(events: int) -> Iterator[Table]:
    """Deliver what some sessions owe.

    Args:
        events: How many events a round has, 1000 or more.
    """
    batched = CallbackConfig(delivery_method="nothing", batching=Batching(max_events=50))
    with asyncio.Runner() as runner:
        yield Table(
            "deliveries, microseconds an event",
            [
                Case("one by one, of 1 session", deliveries(runner, 1), 50.0, 20.0),
                Case("one by one, of 100 sessions", deliveries(runner, 100), 50.0, 20.0),
                Case("one by one, send() suspends", deliveries(runner, 100, suspends=True), 50.0),
                Case("one event of each session", deliveries(runner, events), 100.0),
                Case("in batches of 50, of 1 session", deliveries(runner, 1, batched), 5.0, 2.0),
                Case("in batches of 50, of 20", deliveries(runner, 20, batched), 5.0, 2.0),
            ],
            unit="microseconds",
            number=events,
        )


def deliveries(
    runner: asyncio.Runner,
    sessions: int,
    asked: CallbackConfig | None = None,
    *,
    suspends: bool = False,
) -> Measure:
    """Measure an engine from its start until everything is delivered."""

    async def measure(number: int) -> float:
        store = MemoryStore()
        per_session = -(-number // sessions)
        for n in range(sessions):
            await store.create_session(
                NewSession(id=f"s{n}", token_hash=b"", method="nothing", pushes=True)
            )
            for _ in range(min(per_session, max(0, number - n * per_session))):
                await store.append(f"s{n}", "progress", BODY)
        transport = Nothing(suspends=suspends)
        engine = DeliveryEngine(
            store,
            [transport],
            read_config=lambda _text: asked or CallbackConfig(delivery_method="nothing"),
            decode=json.loads,
            notify=_ignore,
        )
        gc.disable()
        began = process_time()
        try:
            running = asyncio.ensure_future(engine.run())
            await asyncio.sleep(0)
            await engine.drain()
            await running
            took = process_time() - began
        finally:
            gc.enable()
        delivered = (await store.totals()).delivered
        if not delivered == transport.events == number:
            raise RuntimeError(f"{number} events were owed, {transport.events} were sent")
        return took

    return lambda number: runner.run(measure(number))


async def _ignore(_event_type: str, _session_id: str, _data: object) -> None: ...
