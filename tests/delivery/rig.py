"""A store, an engine, a transport that does as it is told, and a clock that stands still."""

import json
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import anyio
import attrs
from anyio.lowlevel import checkpoint

from callbackkit.delivery.engine import DeliveryEngine
from callbackkit.delivery.policy import Batching, CircuitBreaker, RetryPolicy
from callbackkit.delivery.transport import Delivery, DeliveryConfig, Transport
from callbackkit.stores.base import NewSession, Store
from callbackkit.stores.memory import MemoryStore
from callbackkit.testing.clock import ManualClock

# So long a test waits for what other tasks do; it fails then.
PATIENCE = 3.0


@attrs.frozen(kw_only=True)
class Config:
    """What a client asked for."""

    delivery_method: str = "told"
    timeout: float | None = None
    retry_attempts: int | None = None
    batching: Batching | None = None
    rate_limit: float | None = None
    options: Mapping[str, Any] = attrs.field(factory=dict)

    def mask(self, text: str) -> str:
        return text.replace("hunter2", "***")


def body(n: int) -> bytes:
    return b'{"conversation_id":null,"data":{"n":%d},"metadata":{}}' % n


class Told(Transport):
    """Does what ``act`` does; keeps what it was handed, and what arrived."""

    name = "told"
    timeout = 5.0
    retry = RetryPolicy(schedule=(10.0, 20.0, 40.0), jitter=0.0)
    breaker: CircuitBreaker | None = None

    def __init__(
        self, act: Callable[[Delivery], Awaitable[None]] | None = None, **attributes: Any
    ) -> None:
        self.act = act
        self.tried: list[Delivery] = []
        self.done: list[Delivery] = []
        self.shared: str | None = None
        self.changed = anyio.Event()
        for name, value in attributes.items():
            setattr(self, name, value)

    def endpoint(self, session_id: str, config: DeliveryConfig) -> str:
        return self.shared or super().endpoint(session_id, config)

    async def send(self, delivery: Delivery) -> None:
        self.tried.append(delivery)
        self._ring()
        if self.act is not None:
            await self.act(delivery)
        self.done.append(delivery)
        self._ring()

    def _ring(self) -> None:
        self.changed.set()
        self.changed = anyio.Event()

    async def until(self, is_true: Callable[[], bool]) -> None:
        with anyio.fail_after(PATIENCE):
            while not is_true():
                await self.changed.wait()

    async def until_tried(self, times: int) -> None:
        await self.until(lambda: len(self.tried) >= times)

    async def until_done(self, times: int) -> None:
        await self.until(lambda: len(self.done) >= times)

    def numbers(self, session_id: str | None = None) -> list[int]:
        """The data of what arrived, in the order of its arrival."""
        return [
            event.data["n"]
            for delivery in self.done
            if session_id in {None, delivery.session_id}
            for event in delivery.events
        ]


class Rig:
    """Sessions, engines and what operators were told."""

    def __init__(
        self, *transports: Transport, store: Store | None = None, config: Config | None = None
    ) -> None:
        self.clock = ManualClock(start=1000.0)
        self.store: Any = store or MemoryStore(clock=self.clock)
        self.transports = transports
        self.configs: dict[bytes, Any] = defaultdict(lambda: config or Config())
        self.told: list[tuple[str, str, Mapping[str, Any]]] = []
        self.engines: list[DeliveryEngine] = []
        self.chance = 0.5

    async def session(
        self,
        session_id: str = "s",
        *,
        method: str = "told",
        config: Config | None = None,
        **new: Any,
    ) -> str:
        if config is not None:
            self.configs[session_id.encode()] = config
        await self.store.create_session(
            NewSession(
                id=session_id,
                token_hash=b"",
                method=method,
                pushes=True,
                config=session_id.encode(),
                **new,
            )
        )
        return session_id

    async def emit(self, session_id: str, *numbers: int) -> None:
        for n in numbers:
            await self.store.append(session_id, "progress", body(n))

    def engine(self, **options: Any) -> DeliveryEngine:
        engine = DeliveryEngine(
            options.pop("store", self.store),
            options.pop("transports", self.transports),
            read_config=options.pop("read_config", self.configs.__getitem__),
            decode=json.loads,
            notify=options.pop("notify", self.notify),
            clock=self.clock,
            random=lambda: self.chance,
            **options,
        )
        self.engines.append(engine)
        return engine

    async def notify(self, event_type: str, session_id: str, data: Mapping[str, Any]) -> None:
        self.told.append((event_type, session_id, data))

    @property
    def events(self) -> list[str]:
        return [event_type for event_type, _, _ in self.told]

    @asynccontextmanager
    async def running(self, *engines: DeliveryEngine) -> AsyncIterator[DeliveryEngine]:
        """Have engines run; they are cancelled at the end."""
        engines = engines or (self.engine(),)
        async with anyio.create_task_group() as group:
            for engine in engines:
                await group.start(engine.run)
            yield engines[0]
            group.cancel_scope.cancel()

    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)
        for engine in self.engines:
            engine.wake()

    async def until(self, is_true: Callable[[], Awaitable[bool]]) -> None:
        with anyio.fail_after(PATIENCE):
            while not await is_true():
                await checkpoint()

    async def until_settled(self, session_id: str = "s") -> None:
        async def is_settled() -> bool:
            return (await self.store.get_session(session_id)).queued == 0

        await self.until(is_settled)

    async def until_failed(self, times: int, session_id: str = "s") -> None:
        """Wait until so many attempts are noted."""

        async def is_noted() -> bool:
            return len(await self.store.attempts(session_id)) >= times

        await self.until(is_noted)
