"""What runs while a manager is entered: storing, delivering, and what time asks for."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextlib import AsyncExitStack, contextmanager
from typing import Any, Final

import anyio
from anyio.abc import TaskStatus

from callbackkit.buffer import checkpoint
from callbackkit.delivery.engine import DeliveryEngine
from callbackkit.errors import StoreError
from callbackkit.sessions.background import Background
from callbackkit.sessions.outbox import Outbox
from callbackkit.sessions.pump import Pump
from callbackkit.sessions.readers import Readers
from callbackkit.stores.base import Store

__all__ = ["Service"]

logger: logging.Logger = logging.getLogger("callbackkit.sessions")

# Seconds between tellings of what was read, and every how many of them time is looked after.
_FLUSH_EVERY: Final = 1.0
_SWEEP_EVERY: Final = 5
# Sessions that are swept in a row before others may run; a slice takes about a millisecond.
_SLICE: Final = 100


class Service:
    """Started by whoever enters first, stopped by whoever leaves last.

    Args:
        store: Opened first, closed last.
        readers: Told to the store now and then, ended when it stops.
        outbox: Served as long as it runs.
        pump: Likewise.
        new_engine: Makes the delivery engine, if there is anything to deliver by.
        forget: Called with the id of each session that time has removed.
        look_around: Called every five seconds.
        drain_timeout: Seconds that draining may take.
    """

    def __init__(
        self,
        store: Store,
        readers: Readers,
        outbox: Outbox,
        pump: Pump,
        *,
        new_engine: Callable[[], DeliveryEngine | None],
        forget: Callable[[str], object],
        look_around: Callable[[], Awaitable[None]],
        drain_timeout: float,
    ) -> None:
        self._store = store
        self._readers = readers
        self._outbox = outbox
        self._pump = pump
        self._new_engine = new_engine
        self._forget = forget
        self._look_around = look_around
        self._drain_timeout = drain_timeout
        self._entered = 0
        # While it is started or stopped: entering waits for that.
        self._changing: anyio.Event | None = None
        self._running = AsyncExitStack()
        self._engine: DeliveryEngine | None = None

    @property
    def is_entered(self) -> bool:
        """Somebody has entered it and not left."""
        return self._entered > 0

    async def enter(self) -> None:
        """Start what is not running yet."""
        while self._changing is not None:
            await self._changing.wait()
        if not self._entered:
            with self._change():
                await self._start()
        self._entered += 1

    async def leave(self, *, in_peace: bool) -> None:
        """Stop everything if nobody else is in here; drain it first, if left *in_peace*."""
        self._entered -= 1
        if self._entered:
            return
        with self._change():
            try:
                if in_peace:
                    await self.drain()
                    # What came meanwhile is stored too, and left there.
                    self._outbox.shut()
                    with anyio.move_on_after(self._drain_timeout):
                        await self._outbox.flush(after_calls=True)
            finally:
                # Whatever comes, what was started is stopped.
                with anyio.CancelScope(shield=True):
                    await self._running.aclose()

    async def drain(self) -> None:
        """Store what was handed over, attempt what is due, and begin no delivery after that."""
        self._readers.drain()
        self._pump.end_all()
        until = anyio.current_time() + self._drain_timeout
        with anyio.move_on_after(self._drain_timeout):
            await self._outbox.flush(after_calls=True)
        if self._engine is not None:
            await self._engine.drain(max(until - anyio.current_time(), 0.0))
        await self._tell_reads()

    @contextmanager
    def _change(self) -> Generator[None]:
        changing = self._changing = anyio.Event()
        try:
            yield
        finally:
            self._changing = None
            changing.set()

    async def _start(self) -> None:
        # What has begun is stopped again if the next step fails.
        async with AsyncExitStack() as stack:
            stack.push_async_callback(_shielded, self._store.aclose)
            await self._store.start()
            stack.callback(self._readers.close)
            stack.push_async_callback(_shielded, self._tell_reads)
            functions: list[Callable[..., Coroutine[Any, Any, None]]] = [
                self._outbox.serve,
                self._look_after,
                self._pump.run,
            ]
            self._engine = self._new_engine()
            if self._engine is not None:
                functions.append(self._engine.run)
                stack.callback(self._drop_engine)
            # A drain that was asked for while nothing ran is over.
            self._readers.is_draining = False
            self._outbox.open()
            stack.callback(self._outbox.close)
            background = Background(*functions)
            await background.start()
            stack.push_async_callback(background.stop)
            self._running = stack.pop_all()

    def _drop_engine(self) -> None:
        self._engine = None

    async def _tell_reads(self) -> None:
        try:
            await self._readers.flush()
        except StoreError:
            logger.warning(
                "the store could not be told what was read",
                exc_info=True,
                extra={"store": repr(self._store)},
            )

    async def _look_after(
        self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        """Tell the store now and then what was read, and have it do what time asks for."""
        task_status.started()
        rounds = 0
        while True:
            try:
                if rounds % _SWEEP_EVERY == 0:
                    await self._readers.flush(touch="all")
                    await self._sweep()
                    await self._look_around()
                else:
                    await self._readers.flush(touch="short")
            except Exception:
                logger.exception(
                    "the store could not be looked after; trying again",
                    extra={"store": repr(self._store)},
                )
            rounds += 1
            await anyio.sleep(_FLUSH_EVERY)

    async def _sweep(self) -> None:
        while True:
            swept = await self._store.sweep(limit=_SLICE)
            for session_id in swept.sessions:
                self._forget(session_id)
            if not swept.has_more:
                return
            await checkpoint()


async def _shielded(function: Callable[[], Awaitable[None]]) -> None:
    with anyio.CancelScope(shield=True):
        await function()
