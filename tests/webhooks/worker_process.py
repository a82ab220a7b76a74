"""A process that emits to a session and delivers it by webhook, until it is killed or told to end.

Its argument is JSON: ``path`` of the store, ``url``, ``secret``, ``session`` to go on with or null,
``events`` to emit, ``timeout``, ``batch`` or null; ``kill`` and ``pause``: ``[verb, when, call]``
of the store, or null. It tells lines of JSON: ``session``; ``seq`` of each event that was stored;
``emitted`` after all; ``paused`` when the pause is reached. A line on stdin releases the pause; at
the end of stdin it ends, and tells what it ``logged``.
"""

import json
import logging
import sys
from typing import Any

import anyio
import anyio.to_thread

from callbackkit import CallbackManager
from callbackkit.delivery.policy import RetryPolicy
from callbackkit.sessions.session import Session
from callbackkit.stores.sqlite import SQLiteStore
from callbackkit.testing.failpoints import FailpointStore, Pause
from callbackkit.webhooks.transport import WebhookTransport


class Log(logging.Handler):
    """Keeps what was warned of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def tell(**content: Any) -> None:
    sys.stdout.write(json.dumps(content) + "\n")
    sys.stdout.flush()


async def heard() -> str:
    return await anyio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True)


async def session_of(manager: CallbackManager, asked: dict[str, Any]) -> Session:
    if asked["session"] is not None:
        return await manager.get_session(asked["session"])
    config = {"webhook_url": asked["url"], "webhook_secret": asked["secret"], "ttl": None}
    if asked["batch"] is not None:
        config["batching"] = {"max_events": asked["batch"], "max_delay": 0.0}
    return await manager.create_session(config)


async def tell_of(pause: Pause) -> None:
    if await pause.reached(None):
        tell(paused=True)


async def until_told(pause: Pause | None) -> None:
    while await heard():
        if pause is not None:
            pause.release()


async def main(asked: dict[str, Any]) -> None:
    log = Log()
    logging.getLogger("callbackkit").addHandler(log)
    store = FailpointStore(SQLiteStore(asked["path"]))
    quick = RetryPolicy(schedule=(0.05,) * 50, jitter=0.0)
    transport = WebhookTransport.for_development(
        retry=quick, breaker=None, timeout=asked["timeout"]
    )
    async with CallbackManager(store, [transport]) as manager, anyio.create_task_group() as group:
        session = await session_of(manager, asked)
        tell(session=session.id)
        if asked["kill"] is not None:
            verb, when, call = asked["kill"]
            store.kill(verb, when=when, call=call)
        pause = None
        if asked["pause"] is not None:
            verb, when, call = asked["pause"]
            pause = store.pause(verb, when=when, call=call)
            group.start_soon(tell_of, pause)
        for n in range(asked["events"]):
            event = await session.emit("step", {"n": n})
            assert event is not None
            tell(seq=event.position.seq)
        tell(emitted=asked["events"])
        await until_told(pause)
    tell(logged=log.lines)


if __name__ == "__main__":
    anyio.run(main, json.loads(sys.argv[1]))
