"""A process with a manager on Redis, which follows, emits and delivers as lines on stdin say.

Its argument is JSON, see ``Worker`` of redis_rig.py. Each line it reads is an object: ``verb`` is
``follow``, ``emit`` or ``release``, the rest its arguments. Each line it writes is one, too:
``ready``; ``event`` that was read; ``emitted``; ``sending`` and ``sent`` of what is delivered.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import anyio

from callbackkit.delivery.policy import RetryPolicy
from callbackkit.delivery.transport import Delivery, Transport
from callbackkit.errors import StoreUnavailableError
from callbackkit.sessions.manager import CallbackManager
from callbackkit.stores.redis import RedisStore
from callbackkit.webhooks.transport import WebhookTransport


def say(**what: Any) -> None:
    # In one write: whoever is killed has said all of a line or nothing.
    os.write(1, json.dumps(what).encode() + b"\n")


class Told(Transport):
    """Says what it is given; some of it hangs until it is released, or fails once."""

    name = "told"
    timeout = 30.0
    breaker = None

    def __init__(self, settings: dict[str, Any]) -> None:
        self.retry: RetryPolicy = RetryPolicy(schedule=settings["schedule"], jitter=0.0)
        self.hangs_at: int | None = settings["hangs_at"]
        self.fails_at: int | None = settings["fails_at"]
        self.released: anyio.Event = anyio.Event()

    async def send(self, delivery: Delivery) -> None:
        numbers = [event.data["n"] for event in delivery.events]
        about = [delivery.session_id, numbers, delivery.attempt, time.monotonic()]
        say(sending=about)
        if self.hangs_at in numbers:
            await self.released.wait()
        if self.fails_at in numbers and delivery.attempt == 1:
            raise OSError("refused")
        say(sent=about)


class Worker:
    """What the lines on stdin have it do."""

    def __init__(self, manager: CallbackManager, told: Told) -> None:
        self._manager = manager
        self._told = told

    async def follow(self, *, session: str, after: str | None) -> None:
        """Read a session to its end, from a position."""
        while True:
            try:
                found = await self._manager.get_session(session)
                async for event in found.subscribe(after=after):
                    after = str(event.position)
                    say(event=[session, after, event.event_type, event.data.get("n")])
                return
            except StoreUnavailableError:
                await anyio.sleep(0.1)

    async def emit(self, *, session: str, numbers: list[int], key: str | None = None) -> None:
        """Emit events, each until it is known to be there."""
        for n in numbers:
            known = key and f"{key}{n}"
            while True:
                try:
                    event = await self._manager.emit(
                        session, "step", {"n": n}, idempotency_key=known
                    )
                    break
                except StoreUnavailableError:
                    await anyio.sleep(0.05)
            assert event is not None
            say(emitted=[session, str(event.position), n, event.timestamp.timestamp()])

    async def release(self) -> None:
        """Let go on what hangs."""
        self._told.released.set()


def store_of(settings: dict[str, Any]) -> RedisStore:
    url, prefix, path = settings["url"], settings["prefix"], settings["clock"]

    def clock() -> float:
        # True, whatever the clock of this machine says, and so far ahead.
        with open(path, encoding="ascii") as file:
            return time.time() - float(settings["skew"]) + float(file.read())

    return RedisStore.from_url(url, prefix=prefix, clock=clock if path else None)


async def main(settings: dict[str, Any]) -> None:
    told = Told(settings)
    webhooks = WebhookTransport.for_development(retry=told.retry, breaker=None, timeout=30.0)
    transports = [told, webhooks] if settings["delivers"] else []
    async with (
        CallbackManager(store_of(settings), transports, drain_timeout=1) as manager,
        anyio.create_task_group() as group,
    ):
        worker = Worker(manager, told)
        verbs: dict[str, Callable[..., Any]] = {
            "follow": worker.follow,
            "emit": worker.emit,
            "release": worker.release,
        }
        say(ready=True)
        async for line in anyio.wrap_file(sys.stdin):
            command = json.loads(line)
            group.start_soon(partial(verbs[command.pop("verb")], **command))
        group.cancel_scope.cancel()


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    anyio.run(main, asked, backend=asked["backend"])
