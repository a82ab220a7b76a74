"""A store and a transport that do as they are told, for tests of sessions."""

from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any, TypeVar

import anyio
from anyio.lowlevel import checkpoint

from callbackkit import (
    CallbackManager,
    Delivery,
    Event,
    MemoryStore,
    Position,
    RetryPolicy,
    Session,
    Subscription,
    Transport,
)
from callbackkit.stores.base import Appended, Page, SessionRecord

T = TypeVar("T")

# So long a test waits for what other tasks do; it fails then.
PATIENCE = 10.0


class ToldStore(MemoryStore):
    """Memory that asks somebody first: ``before[verb]`` may wait or raise, so may ``after``."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.before: dict[str, Callable[[], Awaitable[None]]] = {}
        self.after: dict[str, Callable[[], Awaitable[None]]] = {}
        self.log: list[str] = []

    async def _ask(self, verb: str) -> None:
        self.log.append(verb)
        if verb in self.before:
            await self.before[verb]()

    async def start(self) -> None:
        await self._ask("start")
        await super().start()

    async def aclose(self) -> None:
        await self._ask("aclose")
        await super().aclose()

    async def append(
        self,
        session_id: str,
        event_type: str,
        body: bytes,
        *,
        owed: bool = True,
        key: str | None = None,
    ) -> Appended:
        await self._ask("append")
        return await super().append(session_id, event_type, body, owed=owed, key=key)

    async def read(
        self,
        session_id: str,
        *,
        after: Position | None = None,
        limit: int = 100,
        owed: bool = False,
    ) -> Page:
        await self._ask("read")
        page = await super().read(session_id, after=after, limit=limit, owed=owed)
        if "read" in self.after:
            await self.after["read"]()
        return page

    async def tail(self, session_id: str, *, limit: int) -> Page:
        await self._ask("read")
        page = await super().tail(session_id, limit=limit)
        if "read" in self.after:
            await self.after["read"]()
        return page

    async def end_session(self, session_id: str, *, linger: float) -> SessionRecord:
        await self._ask("end_session")
        return await super().end_session(session_id, linger=linger)

    async def touch(self, reads: Mapping[str, int | None]) -> None:
        await self._ask("touch")
        await super().touch(reads)


class Told(Transport):
    """Does what ``act`` does; keeps what it was handed, and what arrived."""

    name = "told"
    retry = RetryPolicy(schedule=(0.01, 0.01), jitter=0.0)
    breaker = None

    def __init__(
        self, act: Callable[[Delivery], Awaitable[None]] | None = None, **attributes: Any
    ) -> None:
        self.act = act
        self.log: list[str] = []
        self.tried: list[Delivery] = []
        self.done: list[Delivery] = []
        for name, value in attributes.items():
            setattr(self, name, value)

    @property
    def events(self) -> list[Event]:
        return [event for delivery in self.done for event in delivery.events]

    async def start(self) -> None:
        self.log.append("start")

    async def aclose(self) -> None:
        self.log.append("aclose")

    async def send(self, delivery: Delivery) -> None:
        self.tried.append(delivery)
        if self.act is not None:
            await self.act(delivery)
        self.done.append(delivery)


async def until(is_true: Callable[[], object]) -> None:
    """Let others run until something is so."""
    with anyio.fail_after(PATIENCE):
        while not is_true():
            await checkpoint()


async def until_some(function: Callable[[], Awaitable[T]]) -> T:
    """Let others run until a function returns something that is true; return that."""
    with anyio.fail_after(PATIENCE):
        while not (found := await function()):
            await checkpoint()
    return found


async def until_none(function: Callable[[], Awaitable[object]]) -> None:
    with anyio.fail_after(PATIENCE):
        while await function():
            await checkpoint()


async def settle(turns: int = 20) -> None:
    """Let others run as far as they get without time passing."""
    for _ in range(turns):
        await checkpoint()


async def take(subscription: Subscription, count: int) -> list[Event]:
    with anyio.fail_after(PATIENCE):
        return [await anext(subscription) for _ in range(count)]


async def collect(subscription: Subscription, into: list[Event]) -> None:
    """Keep what was read, also if reading fails then."""
    async for event in subscription:
        into.append(event)  # noqa: PERF401 - a comprehension would lose it


async def rest(subscription: Subscription) -> list[Event]:
    """Return all events up to the end."""
    with anyio.fail_after(PATIENCE):
        return [event async for event in subscription]


async def emit_numbers(session: Session, numbers: Collection[int]) -> None:
    for number in numbers:
        await session.emit("n", {"n": number})


def numbers_of(events: Collection[Event]) -> list[int]:
    return [event.data["n"] for event in events if not event.is_gap]


def told_manager(**options: Any) -> tuple[CallbackManager, ToldStore]:
    store = ToldStore()
    return CallbackManager(store, **options), store
