"""Ours: an application over a store, and sessions that are published to."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from time import monotonic

from callbackkit import CallbackManager
from callbackkit.http.starlette import allow_anyone, create_app
from callbackkit.stores.base import Store
from callbackkit.stores.memory import MemoryStore
from callbackkit.stores.sqlite import SQLiteStore
from tests.benchmarks.fan_out_service import DATA, App, Open, Service, resident_bytes
from tests.benchmarks.fan_out_stamps import stamp

RATE = 10
"""Events a second of each session, where they have a pace."""

Place = Callable[[], AbstractContextManager[Store]]


@contextmanager
def in_memory() -> Iterator[Store]:
    """Sessions in memory."""
    yield MemoryStore()


@contextmanager
def in_file() -> Iterator[Store]:
    """Sessions in a file that is removed."""
    with tempfile.TemporaryDirectory() as folder:
        yield SQLiteStore(Path(folder) / "events.db")


def application(manager: CallbackManager) -> App:
    """Serve the sessions of a manager to anyone."""
    return create_app(manager, authorize=allow_anyone)


@asynccontextmanager
async def ours(place: Place, way: str, sessions: int) -> AsyncIterator[Service]:
    """Serve some sessions, at least one.

    Args:
        place: Where they are stored.
        way: ``"sse"`` or ``"ws"``.
        sessions: How many; what is published goes to the first.
    """
    with place() as store:
        async with CallbackManager(store) as manager:
            app = application(manager)
            before = resident_bytes()
            ids = [(await manager.create_session()).id for _ in range(max(sessions, 1))]
            taken = resident_bytes() - before

            async def publish(events: int) -> None:
                for _ in range(events):
                    await manager.emit(ids[0], "progress", DATA)

            async def created(_: float) -> float:
                return taken

            async def pace(events: float) -> float:
                return await emit_at_pace(manager, ids, int(events))

            yield Service(
                publish=publish,
                app=app,
                paths=[f"/callbacks/sessions/{each}/{way}" for each in ids],
                orders={"created": created, "pace": pace},
            )


async def emit_at_pace(manager: CallbackManager, ids: list[str], events: int) -> float:
    """Emit so many events to each session, :data:`RATE` a second, spread evenly.

    Each carries the moment at which it was due, and is emitted by a task of its own: what is late
    does not hold up the next.

    Returns:
        Seconds that all of it took.
    """
    began = monotonic()
    async with asyncio.TaskGroup() as tasks:
        for number in range(events * len(ids)):
            due = began + number / len(ids) / RATE
            if (ahead := due - monotonic()) > 0:
                await asyncio.sleep(ahead)
            count, session = divmod(number, len(ids))
            data = {**DATA, "message": stamp(count, due)}
            tasks.create_task(manager.emit(ids[session], "progress", data))
    return monotonic() - began


OURS: dict[str, Open] = {
    "ours-sse": partial(ours, in_memory, "sse"),
    "ours-websocket": partial(ours, in_memory, "ws"),
    "ours-sse-sqlite": partial(ours, in_file, "sse"),
}
