"""Endpoints that were not reached and wait for their next attempt: the memory of each."""

import asyncio
import gc
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager

from anyio.lowlevel import checkpoint

from callbackkit import CallbackManager
from callbackkit.delivery.policy import RetryPolicy
from callbackkit.errors import SendError
from callbackkit.sessions.session import Session
from callbackkit.webhooks.guard import Guard
from callbackkit.webhooks.sender import Sender, WebhookRequest, WebhookResponse
from callbackkit.webhooks.transport import WebhookTransport
from tests.benchmarks.harness import Case, Measure, Table

DATA = {"progress": 0.4, "message": "reading the third chapter", "current_step": 3}


@contextmanager
def waiting(endpoints: int) -> Iterator[Table]:
    """Count the bytes that sessions take when each has an event, and what waiting adds."""
    with asyncio.Runner() as runner:
        counted: dict[int, tuple[float, float]] = {}

        def each(place: int) -> Measure:
            def measure(number: int) -> float:
                # Memory does not differ from round to round.
                if 0 not in counted:
                    counted[0] = runner.run(_bytes(endpoints))
                return number * counted[0][place]

            return measure

        yield Table(
            f"{endpoints:_} endpoints that were not reached, in memory, each",
            [
                Case("its session, with an event", each(0)),
                Case("callbackkit beyond that, waiting for its next attempt", each(1), 3_000),
            ],
            unit="bytes",
            number=1,
        )


class Unreached(Sender):
    """Reaches nobody, and rings when it has tried so many times."""

    def __init__(self, left: int) -> None:
        self.done = asyncio.Event()
        self._left = left

    async def start(self, guard: Guard) -> None: ...

    async def send(self, request: WebhookRequest) -> WebhookResponse:
        self._left -= 1
        if self._left == 0:
            self.done.set()
        raise SendError("could not connect")

    async def aclose(self) -> None: ...


async def _bytes(endpoints: int) -> tuple[float, float]:
    """Return the bytes of a session with an event, and those of its waiting."""
    gc.collect()
    tracemalloc.start()
    try:
        sender = Unreached(endpoints)
        transport = WebhookTransport(sender=sender, retry=RetryPolicy(schedule=(3_600.0,)))
        manager = CallbackManager(transports=[transport])
        sessions: list[Session] = []
        for n in range(endpoints):
            session = await manager.create_session(
                {"webhook_url": f"https://example.com/hook/{n}", "ttl": None}
            )
            await session.emit("progress", DATA)
            sessions.append(session)
        before = _held()
        async with manager:
            await sender.done.wait()
            # The last ones are put back meanwhile.
            left = sessions
            while left := [each for each in left if not await each.attempts()]:
                await checkpoint()
            after = _held()
        return before / endpoints, (after - before) / endpoints
    finally:
        tracemalloc.stop()


def _held() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]
