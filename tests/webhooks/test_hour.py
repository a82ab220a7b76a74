"""An hour of a clock that is told to pass, in which a receiver comes and goes."""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from callbackkit import CallbackConfig, CallbackManager
from callbackkit.delivery.engine import DeliveryEngine
from callbackkit.delivery.observers import Observer, Observers
from callbackkit.delivery.policy import CircuitBreaker, RetryPolicy
from callbackkit.delivery.transport import Delivery
from callbackkit.sessions.session import Session
from callbackkit.stores.base import Store, steady_time
from callbackkit.stores.memory import MemoryStore
from callbackkit.stores.sqlite import SQLiteStore
from callbackkit.testing.clock import ManualClock
from tests.webhooks.rig import (
    PATIENCE,
    History,
    Receiver,
    Watched,
    development,
    repeats,
)

pytestmark = pytest.mark.real_server

# Without a breaker these are over after some seven minutes.
RETRY = RetryPolicy.exponential(first=5.0, max_delay=60.0, retries=10, jitter=0.2)


class Tries(Observer):
    """When each attempt was made, and which one of its delivery it was."""

    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock
        self.made: list[tuple[float, int]] = []

    def attempting(self, delivery: Delivery, method: str) -> None:
        self.made.append((self._clock(), delivery.attempt))

    def between(self, start: float, end: float) -> int:
        return sum(start <= at < end for at, _ in self.made)


class Hours:
    """Sessions, an engine that delivers them, and the clock of both."""

    def __init__(self, store: Store, clock: ManualClock, breaker: CircuitBreaker) -> None:
        self.clock = clock
        self.start = clock()
        self.store = Watched(store)
        self.tries = Tries(clock)
        self.history = History()
        self.told: list[str] = []
        # Nothing of it runs: it makes sessions, and emits to them.
        self.manager = CallbackManager(self.store, [development()])
        observers = Observers()
        observers.add(self.tries)
        self.engine = DeliveryEngine(
            self.store,
            [development(retry=RETRY, breaker=breaker)],
            read_config=CallbackConfig.from_json,
            decode=json.loads,
            notify=self.notify,
            clock=clock,
            observers=observers,
        )

    async def notify(self, event_type: str, _session_id: str, _data: Mapping[str, Any]) -> None:
        self.told.append(event_type)

    async def session(self, url: str) -> Session:
        session = await self.manager.create_session({"webhook_url": url, "ttl": None})
        self.history.know(session)
        return session

    async def emit(self, session: Session) -> None:
        event = await session.emit("step", {"n": len(self.history.appended[session.id])})
        assert event is not None
        self.history.note(event)

    async def owed(self, sessions: list[Session]) -> int:
        return sum([(await self.store.get_session(each.id)).queued for each in sessions])

    async def pass_by(self, seconds: float) -> None:
        """Let time pass, and wait until all that is due by then has been tried."""
        claims = self.store.claims
        self.clock.advance(seconds)
        self.engine.wake()
        with anyio.fail_after(PATIENCE):
            while not (
                self.store.claims > claims and self.store.is_idle and self.engine.serving == 0
            ):
                await checkpoint()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        await self.store.start()
        async with anyio.create_task_group() as group:
            await group.start(self.engine.run)
            yield
            group.cancel_scope.cancel()
        await self.store.aclose()


@pytest.fixture(params=["memory", "sqlite"])
def hours(request: pytest.FixtureRequest, tmp_path: Path) -> Hours:
    clock = ManualClock(start=steady_time())
    store: Store
    if request.param == "memory":
        store = MemoryStore(clock=clock)
    else:
        store = SQLiteStore(tmp_path / "events.db", clock=clock, synchronous="NORMAL")
    return Hours(store, clock, CircuitBreaker())


async def test_a_receiver_that_flaps_for_an_hour_gets_everything_and_no_try_is_burnt(
    hours: Hours, receiver: Receiver
) -> None:
    """It is down for half of it, and then there for one minute of three."""
    async with hours.running():
        sessions = [await hours.session(receiver.url()) for _ in range(6)]
        await receiver.otherwise(503)
        for second in range(0, 3600, 15):
            if second >= 1800 and second % 60 == 0:
                await receiver.otherwise(204 if second % 180 == 0 else 500)
            if second % 120 == 0:
                for session in sessions:
                    await hours.emit(session)
            await hours.pass_by(15.0)
        down = hours.tries.between(hours.start, hours.start + 1800)
        await receiver.otherwise(204)
        for _ in range(2 * 3600 // 60):
            if not await hours.owed(sessions):
                break
            await hours.pass_by(60.0)
        assert await hours.owed(sessions) == 0
        letters = [await session.dead_letters() for session in sessions]
    assert letters == [[]] * 6
    # Those that opened the breaker, with what was on its way then, and one probe at a time: after
    # 30 seconds, 60, 120, 240, 480 and 960, give or take a fifth.
    assert 6 <= down <= 5 + 8 + 7
    # Each try that was counted was a request.
    assert len(hours.tries.made) == len(await receiver.arrived())
    assert max(number for _, number in hours.tries.made) <= len(RETRY.schedule)
    assert "delivery.dead" not in hours.told
    assert "endpoint.disabled" not in hours.told
    assert hours.told.count("endpoint.failing") == hours.told.count("endpoint.recovered") >= 1
    hours.history.check(await receiver.arrived())
    assert len(repeats(await receiver.arrived())) == 6 * 30
