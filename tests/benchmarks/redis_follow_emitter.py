"""A process that emits to sessions in Redis at a pace: ``python -m ... URL SESSIONS``.

It says which sessions it has made in a line of JSON, then does what each line of its standard input
orders, answers with a line, and ends with that input. uvloop where that is installed.
"""

import asyncio
import json
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from statistics import quantiles
from time import monotonic, process_time
from typing import Any

from callbackkit import Session
from tests.benchmarks.fan_out_service import DATA
from tests.benchmarks.redis_echo import managing

# Seconds from an order to the first event.
_AHEAD = 0.05


async def emit_at_pace(session: Session, began: float, events: int, interval: float) -> list[float]:
    """Emit so many events, each with its number from 0 and when it was due.

    Returns:
        Seconds that each was emitted late: behind the one before, or for want of a processor.
    """
    late: list[float] = []
    for number in range(events):
        due = began + number * interval
        if (ahead := due - monotonic()) > 0:
            await asyncio.sleep(ahead)
        late.append(monotonic() - due)
        await session.emit("progress", {**DATA, "number": number, "due": due})
    return late


async def obey(sessions: Sequence[Session], order: dict[str, Any]) -> dict[str, float]:
    """Emit so many events to each session, so many a second, in turn or all *together*.

    Returns:
        Seconds of the processor that it took, and percentile 99 of the seconds that what was
        emitted was late.
    """
    began, used = monotonic() + _AHEAD, process_time()
    interval = 1 / order["rate"]
    spread = 0.0 if order["together"] else interval / len(sessions)
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(emit_at_pace(session, began + n * spread, order["events"], interval))
            for n, session in enumerate(sessions)
        ]
    late = [each for task in tasks for each in task.result()]
    return {
        "processor": process_time() - used,
        "late": quantiles(late, n=100, method="inclusive")[98],
    }


async def _serve(url: str, sessions: int) -> None:
    loop = asyncio.get_running_loop()
    async with managing(url) as manager:
        made = [await manager.create_session() for _ in range(sessions)]
        print(json.dumps([each.id for each in made]), flush=True)
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            print(json.dumps(await obey(made, json.loads(line))), flush=True)


def main(url: str, sessions: int) -> None:
    """Obey until standard input ends."""
    factory: Callable[[], asyncio.AbstractEventLoop] | None
    try:
        factory = import_module("uvloop").new_event_loop
    except ModuleNotFoundError:
        factory = None
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(_serve(url, sessions))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
