"""What tests of Redis under failure need: clients that return, and other processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any, Self

import anyio

import callbackkit
from callbackkit.delivery.policy import RetryPolicy
from callbackkit.delivery.transport import Delivery, Transport
from callbackkit.errors import StoreUnavailableError, UnknownSessionError
from callbackkit.events import Event
from callbackkit.sessions.manager import CallbackManager

__all__ = ["Follower", "Told", "TwoWays", "Worker", "emit", "environment", "until"]

# Seconds that something which is to happen is waited for.
PATIENCE = 20.0


async def until(is_true: Callable[[], bool]) -> None:
    """Wait for what other tasks and threads do."""
    with anyio.fail_after(PATIENCE):
        while True:
            if is_true():
                return
            await anyio.sleep(0.005)


class TwoWays:
    """A client of Redis that asks by one connection and listens to channels by another way.

    Args:
        asking: Makes the client that asks.
        listening: Makes the one that listens.
    """

    def __init__(self, asking: Callable[[], Any], listening: Callable[[], Any]) -> None:
        self._asking = asking()
        self._listening = listening()
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        await self._stack.enter_async_context(self._asking)
        await self._stack.enter_async_context(self._listening)
        return self

    async def __aexit__(self, *_exc_info: object) -> None:
        await self._stack.aclose()

    async def evalsha(self, *args: Any, **options: Any) -> Any:
        return await self._asking.evalsha(*args, **options)

    async def eval(self, *args: Any, **options: Any) -> Any:
        return await self._asking.eval(*args, **options)

    def pubsub(self, **options: Any) -> Any:
        return self._listening.pubsub(**options)


# In this process.


class Told(Transport):
    """Keeps what arrived, or refuses it; what fails is tried again soon.

    Attributes:
        events: What arrived.
        is_refusing: Nothing arrives.
    """

    name = "told"
    timeout = 2.0
    retry = RetryPolicy(schedule=(0.05,) * 100)
    breaker = None

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.is_refusing: bool = False

    async def send(self, delivery: Delivery) -> None:
        if self.is_refusing:
            raise OSError("refused")
        self.events += delivery.events

    @property
    def numbers(self) -> list[int]:
        """What arrived, each the first time: before it was acknowledged it may come again."""
        return [*dict.fromkeys(event.data["n"] for event in self.events)]


async def emit(manager: CallbackManager, session_id: str, numbers: Iterable[int]) -> None:
    """Emit events until each is known to be there; Redis may be away for a minute."""
    for n in numbers:
        with anyio.fail_after(60 + PATIENCE):
            while True:
                try:
                    await manager.emit(session_id, "step", {"n": n}, idempotency_key=f"k{n}")
                    break
                except StoreUnavailableError:
                    await anyio.sleep(0.02)


class Follower:
    """A client that reads a session, and comes back after each failure with its last position.

    Attributes:
        events: What it got, gaps too.
        failures: How often it had to come back.
        is_gone: The session is unknown.
    """

    def __init__(self, manager: CallbackManager, session_id: str) -> None:
        self._manager = manager
        self._session_id = session_id
        self.events: list[Event] = []
        self.failures: int = 0
        self.is_gone: bool = False

    async def run(self) -> None:
        while True:
            after = self.events[-1].position if self.events else None
            try:
                session = await self._manager.get_session(self._session_id)
                async for event in session.subscribe(after=after):
                    self.events.append(event)
            except StoreUnavailableError:
                self.failures += 1
                await anyio.sleep(0.05)
            except UnknownSessionError:
                self.is_gone = True
                return

    @property
    def numbers(self) -> list[int]:
        return [event.data["n"] for event in self.events if not event.is_gap]

    @property
    def gaps(self) -> list[Event]:
        return [event for event in self.events if event.is_gap]

    @property
    def epochs(self) -> list[str]:
        """The epochs of the events, each once, in order."""
        return list(dict.fromkeys(each.position.epoch for each in self.events))


# In processes of their own.


def environment(**more: str) -> dict[str, str]:
    """Return the variables of a process that finds the same package."""
    root = str(Path(callbackkit.__file__).parents[1])
    paths = [root, os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))} | more


# The clock of its machine is wrong from the beginning, whoever looks at it.
_START = """
import json, runpy, sys, time
path, settings = sys.argv[1], json.loads(sys.argv[2])
true_time, true_time_ns, skew = time.time, time.time_ns, settings["skew"]
time.time = lambda: true_time() + skew
time.time_ns = lambda: true_time_ns() + skew * 10**9
sys.argv = sys.argv[1:]
runpy.run_path(path, run_name="__main__")
"""
_SCRIPT = Path(__file__).with_name("redis_worker.py")

_DEFAULTS: dict[str, Any] = {
    "clock": None,
    "skew": 0,
    "hangs_at": None,
    "fails_at": None,
    "delivers": True,
    "schedule": [0.2] * 20,
    "backend": "asyncio",
}


class Worker:
    """A server process with a manager, which follows and emits as it is told.

    Args:
        url: Of Redis.
        prefix: Of its store.
        settings: ``backend``; ``clock``, a file that holds by how many seconds the store is ahead;
            ``skew``, the seconds by which the clock of its machine is wrong; ``delivers``;
            ``schedule`` of retries; ``hangs_at`` and ``fails_at``, numbers whose delivery does,
            the one until it is told to ``release`` it, the other once.

    Attributes:
        said: What it said so far.
    """

    def __init__(self, url: str, prefix: str, **settings: Any) -> None:
        self.said: list[dict[str, Any]] = []
        self._changed = threading.Condition()
        # Closed where this is left.
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        every = {**_DEFAULTS, **settings, "url": url, "prefix": prefix}
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", _START, _SCRIPT, json.dumps(every)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment(),
        )
        self._reading = threading.Thread(target=self._read)
        self._reading.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.process.kill()
        self._end()
        self._errors.close()

    def tell(self, verb: str, **arguments: Any) -> None:
        """Have it follow, or emit."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"verb": verb, **arguments}).encode() + b"\n")
        self.process.stdin.flush()

    def of(self, kind: str) -> list[Any]:
        """Return what it said of a kind."""
        with self._changed:
            return [each[kind] for each in self.said if kind in each]

    def wait(self, is_true: Callable[[], bool]) -> None:
        """Wait until what it said makes something true."""
        deadline = time.monotonic() + PATIENCE
        with self._changed:
            while not is_true():
                left = deadline - time.monotonic()
                if left <= 0 or (self.process.poll() is not None and not self._reading.is_alive()):
                    raise TimeoutError(f"it said {self.said[-3:]} and {self.errors()}")
                # Others may be asked about as well, who do not ring here.
                self._changed.wait(min(left, 0.05))

    def wait_for(self, kind: str, count: int = 1) -> list[Any]:
        """Wait until it said so many things of a kind; return them."""
        self.wait(lambda: len(self.of(kind)) >= count)
        return self.of(kind)

    def pause(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it at once; what it said until then is there."""
        self.process.kill()
        self._end()

    def stop(self) -> int:
        """Have it end in good order; return its exit status."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(PATIENCE)
        self._end()
        return self.process.returncode

    def errors(self) -> str:
        """Return the end of what it wrote to stderr."""
        self._errors.seek(0)
        return self._errors.read().decode()[-2_000:]

    def _end(self) -> None:
        self.process.wait(PATIENCE)
        self._reading.join(PATIENCE)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with suppress(OSError):
            self.process.stdin.close()
        self.process.stdout.close()

    def _read(self) -> None:
        for line in self._lines():
            with self._changed:
                self.said.append(json.loads(line))
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    def _lines(self) -> Iterator[bytes]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.endswith(b"\n"):
                yield line
