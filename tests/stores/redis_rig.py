"""What tests of Redis under failure need: a bad network, clients that return, other processes."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import AsyncExitStack, suppress
from typing import Any, Self

import anyio

from callbackkit.delivery.policy import RetryPolicy
from callbackkit.delivery.transport import Delivery, Transport
from callbackkit.errors import StoreUnavailableError, UnknownSessionError
from callbackkit.events import Event
from callbackkit.sessions.manager import CallbackManager

__all__ = ["FaultProxy", "Follower", "Told", "TwoWays", "Worker", "emit", "until"]

# Seconds that something which is to happen is waited for.
PATIENCE = 20.0


async def until(is_true: Callable[[], bool]) -> None:
    """Wait for what other tasks and threads do."""
    with anyio.fail_after(PATIENCE):
        while True:
            if is_true():
                return
            await anyio.sleep(0.005)


class FaultProxy:
    """Passes TCP on between clients and a server as it is told; it runs in a thread of its own.

    Attributes:
        port: Where it listens, on ``host``.
        accepted: Connections that were accepted so far.
    """

    host: str = "127.0.0.1"

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self.port: int = 0
        self.accepted: int = 0
        self._delay = 0.0
        self._left: int | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._is_open = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> Self:
        self._thread.start()
        self.pass_on()
        return self

    async def __aexit__(self, *_exc_info: object) -> None:
        self.refuse()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE)
        self._loop.close()

    @property
    def connections(self) -> int:
        """Connections of clients that are there now."""
        return len(self._tasks)

    # The weather.

    def pass_on(self) -> None:
        """Be a good network: everything passes, what was held back first."""
        self._do(self._change(is_open=True))

    def delay(self, seconds: float) -> None:
        """Let every piece take that long, in each direction."""
        self._do(self._change(is_open=True, delay=seconds))

    def black_hole(self) -> None:
        """Accept connections and pass nothing; what is sent is kept."""
        self._do(self._change(is_open=False))

    def cut(self, *, after: int) -> None:
        """Close each connection as soon as so many bytes of answers have passed on it."""
        self._do(self._change(is_open=True, left=after))

    def refuse(self) -> None:
        """Refuse connections, and reset those there are."""
        self._do(self._close())

    def reset(self) -> None:
        """Reset the connections there are."""
        self._do(self._reset())

    def _do(self, verb: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(verb, self._loop).result(PATIENCE)

    async def _change(self, *, is_open: bool, delay: float = 0.0, left: int | None = None) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._meet, self.host, self.port)
            self.port = self._server.sockets[0].getsockname()[1]
        self._delay, self._left = delay, left
        if is_open:
            self._is_open.set()
        else:
            self._is_open.clear()

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
            # Those that were just accepted begin.
            await asyncio.sleep(0.01)
        await self._reset()

    async def _reset(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # And those who met them end.
        await asyncio.sleep(0)

    # Passing on.

    async def _meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        task = asyncio.ensure_future(self._join(reader, writer))
        self._tasks.add(task)
        with suppress(asyncio.CancelledError):
            await asyncio.wait([task])
        self._tasks.discard(task)
        # Here too: one that is cancelled before it begins has no "finally".
        _reset(writer)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends = [writer]
        tasks: list[asyncio.Task[None]] = []
        try:
            await self._is_open.wait()
            back, forth = await asyncio.open_connection(*self._target)
            ends.append(forth)
            tasks += [
                asyncio.ensure_future(self._pass(reader, forth, None)),
                asyncio.ensure_future(self._pass(back, writer, self._left)),
            ]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        except OSError:
            pass  # the server is not there
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for each in ends:
                _reset(each)

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, left: int | None
    ) -> None:
        with suppress(OSError):
            while data := await reader.read(65_536):
                await self._is_open.wait()
                await asyncio.sleep(self._delay)
                writer.write(data if left is None else data[:left])
                await writer.drain()
                left = None if left is None else left - len(data)
                if left is not None and left <= 0:
                    return
            await self._is_open.wait()


def _reset(writer: asyncio.StreamWriter) -> None:
    raw = writer.get_extra_info("socket")
    with suppress(OSError):
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


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

_WORKER = """
import functools, json, os, sys, time
settings = json.loads(sys.argv[1])
true_time, true_time_ns, skew = time.time, time.time_ns, settings["skew"]
time.time = lambda: true_time() + skew
time.time_ns = lambda: true_time_ns() + skew * 10**9
import anyio
from callbackkit.delivery.policy import RetryPolicy
from callbackkit.delivery.transport import Transport
from callbackkit.errors import StoreUnavailableError
from callbackkit.sessions.manager import CallbackManager
from callbackkit.stores.redis import RedisStore

def say(**what):
    os.write(1, json.dumps(what).encode() + b"\\n")

def clock():
    with open(settings["clock"]) as file:
        return true_time() + float(file.read())

class Told(Transport):
    name = "told"
    timeout = 30.0
    retry = RetryPolicy(schedule=settings["schedule"], jitter=0.0)

    def __init__(self):
        self.failed = set()

    async def send(self, delivery):
        numbers = [event.data["n"] for event in delivery.events]
        about = [delivery.session_id, numbers, delivery.attempt, time.monotonic()]
        say(sending=about)
        if settings["hangs_at"] in numbers:
            await anyio.sleep(settings["hangs_for"])
        if settings["fails_at"] in numbers and delivery.attempt == 1:
            raise OSError("refused")
        say(sent=about)

async def follow(manager, id, after):
    while True:
        try:
            session = await manager.get_session(id)
            async for event in session.subscribe(after=after):
                after = event.position
                say(event=[id, str(event.position), event.event_type, event.data.get("n")])
            return
        except StoreUnavailableError:
            await anyio.sleep(0.1)

async def emit(manager, id, numbers, key=None):
    for n in numbers:
        while True:
            try:
                known = key and f"{key}{n}"
                event = await manager.emit(id, "step", {"n": n}, idempotency_key=known)
                say(emitted=[id, str(event.position), n, event.timestamp.timestamp()])
                break
            except StoreUnavailableError:
                await anyio.sleep(0.05)

async def main():
    store = RedisStore.from_url(
        settings["url"], prefix=settings["prefix"], clock=clock if settings["clock"] else None
    )
    transports = [Told()] if settings["delivers"] else []
    async with CallbackManager(store, transports, drain_timeout=1) as manager:
        async with anyio.create_task_group() as group:
            say(ready=True)
            async for line in anyio.wrap_file(sys.stdin):
                command = json.loads(line)
                verb = {"follow": follow, "emit": emit}[command.pop("verb")]
                group.start_soon(functools.partial(verb, manager, **command))
            group.cancel_scope.cancel()

anyio.run(main, backend=settings["backend"])
"""

_DEFAULTS = {
    "clock": None,
    "skew": 0,
    "hangs_at": None,
    "hangs_for": 4.0,
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
            the one for ``hangs_for`` seconds, the other once.

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
            [sys.executable, "-W", "ignore", "-c", _WORKER, json.dumps(every)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
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
                self._changed.wait(min(left, 0.5))

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
