"""Sessions: what an emit costs, and a session that nobody uses."""

import asyncio
import gc
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager

from callbackkit import CallbackManager
from tests.benchmarks.harness import Case, Measure, Table, awaited

DATA = {"progress": 0.4, "message": "reading the third chapter", "current_step": 3}


@contextmanager
def emitting() -> Iterator[Table]:
    """Emit a mapping of three keys to a session in memory."""
    with asyncio.Runner() as runner:
        manager = CallbackManager()
        plain = runner.run(manager.create_session())
        listened = CallbackManager()
        listened.register_callback("progress", lambda event: None)
        heard = runner.run(listened.create_session())
        yield Table(
            "manager.emit of a mapping, in memory",
            [
                Case("callbackkit, nobody listens", _emit(runner, manager, plain.id), 20),
                Case("callbackkit, one callback", _emit(runner, listened, heard.id)),
            ],
            unit="microseconds",
            number=5_000,
        )


@contextmanager
def idle(sessions: int) -> Iterator[Table]:
    """Count the bytes of a session that was created and has no events."""
    with asyncio.Runner() as runner:
        yield Table(
            f"an idle session in memory, of {sessions:_}",
            [Case("callbackkit", _bytes(runner, sessions), 2_000)],
            unit="bytes",
            number=1,
        )


def _emit(runner: asyncio.Runner, manager: CallbackManager, session_id: str) -> Measure:
    return awaited(runner, manager.emit, session_id, "progress", DATA)


def _bytes(runner: asyncio.Runner, sessions: int) -> Measure:
    async def create() -> CallbackManager:
        manager = CallbackManager()
        for _ in range(sessions):
            await manager.create_session()
        return manager

    def measure(number: int) -> float:
        gc.collect()
        tracemalloc.start()
        try:
            kept = [runner.run(create()) for _ in range(number)]
            gc.collect()
            used = tracemalloc.get_traced_memory()[0]
            del kept
            return used / sessions
        finally:
            tracemalloc.stop()

    return measure
