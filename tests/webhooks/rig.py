"""A process that receives, a manager that sends to it, a resolver that is told what to say."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest
from standardwebhooks import Webhook

import callbackkit
from callbackkit import CallbackManager
from callbackkit.delivery.policy import CircuitBreaker, RetryPolicy
from callbackkit.delivery.transport import Transport
from callbackkit.events import Event, Position
from callbackkit.sessions.session import Session
from callbackkit.stores.base import Claims, Store
from callbackkit.testing.failpoints import FailpointStore
from callbackkit.testing.waiting import Bell
from callbackkit.webhooks.transport import WebhookTransport

HERE = Path(__file__).parent
# Seconds for anything that is waited for.
PATIENCE = 10.0
# Failures are tried again at once, nearly, and often.
QUICK = RetryPolicy(schedule=(0.05,) * 20, jitter=0.0)
SECRET = "whsec_" + "c2VjcmV0" * 4

# On both event loops, with both stores; what is left after that is left to torture.
in_each_way = pytest.mark.parametrize(
    ("anyio_backend", "store"),
    [
        ("asyncio", "sqlite"),
        ("trio", "memory"),
        pytest.param("asyncio", "memory", marks=pytest.mark.torture),
        pytest.param("trio", "sqlite", marks=pytest.mark.torture),
    ],
    indirect=["store"],
)


# Processes.


def environment() -> dict[str, str]:
    """The variables of a process that finds the same package."""
    path = [str(Path(callbackkit.__file__).parents[1]), os.environ.get("PYTHONPATH")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))}


class Process:
    """A program of ours whose lines of JSON are read by a thread, and told to all who wait."""

    def __init__(self, *arguments: object) -> None:
        self.lines: list[dict[str, Any]] = []
        self.bell = Bell()
        self.popen = subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(),
            text=True,
        )
        self.errors = ""
        self._is_read = False
        self._threads = [threading.Thread(target=each) for each in (self._read, self._listen)]
        for thread in self._threads:
            thread.start()

    def _read(self) -> None:
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            self.note(json.loads(line))
            self.bell.ring()
        self._is_read = True
        self.bell.ring()

    def _listen(self) -> None:
        assert self.popen.stderr is not None
        self.errors = self.popen.stderr.read()

    def note(self, line: dict[str, Any]) -> None:
        """Keep what was said; in the thread that reads."""
        self.lines.append(line)

    def tell(self, **order: Any) -> None:
        assert self.popen.stdin is not None
        self.popen.stdin.write(json.dumps(order) + "\n")
        self.popen.stdin.flush()

    async def until(self, is_true: Callable[[], bool]) -> None:
        """Wait for something that the process says."""
        await self.bell.wait_until(lambda: is_true() or self._is_read, PATIENCE)
        assert is_true(), (self.lines[-5:], self.popen.poll(), self.errors[-2000:])

    async def until_gone(self) -> int:
        """Wait for its end, and return its code."""
        assert await self.bell.wait_until(lambda: self._is_read, PATIENCE)
        return self.popen.wait(PATIENCE)

    def end(self) -> str:
        """Close its input, wait for its end, and return what it complained of."""
        assert self.popen.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.popen.stdin.close()
        try:
            self.popen.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait(PATIENCE)
            raise
        finally:
            for thread in self._threads:
                thread.join(PATIENCE)
            for stream in (self.popen.stdout, self.popen.stderr):
                if stream is not None:
                    stream.close()
        return self.errors


# What a receiver is to do, as a line of JSON says it.

Step = int | list[Any]


def step(name: str, **options: Any) -> Step:
    for key in ("body", "data"):
        if isinstance(options.get(key), bytes):
            options[key] = options[key].decode("latin-1")
    return [name, options]


def answer(status: int = 204, **options: Any) -> Step:
    return step("Answer", status=status, **options)


@attrs.frozen
class Request:
    """What arrived."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes
    at: float
    connection: int

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def events(self) -> list[dict[str, Any]]:
        content = json.loads(self.body)
        events: list[dict[str, Any]] = content.get("events", [content])
        return events

    @property
    def numbers(self) -> list[int]:
        """The ``n`` of each event."""
        return [event["data"]["n"] for event in self.events]

    def verify(self, secret: str) -> None:
        """Have somebody else's library check the signature."""
        Webhook(secret).verify(self.body, dict(self.headers))


class Receiver:
    """One receiver of the process; what it got, in order."""

    def __init__(self, process: "ReceiverProcess", number: int) -> None:
        self._process = process
        self._number = number
        self.requests: list[Request] = []
        self.port = 0

    def url(self, path: str = "/hook", *, host: str = "127.0.0.1", scheme: str = "http") -> str:
        return f"{scheme}://{host}:{self.port}{path}"

    async def order(self, do: str, **told: Any) -> int:
        """Have it do something; return how many requests it has seen."""
        done = await self._process.order(do, receiver=self._number, **told)
        self.port = done["port"]
        return int(done["requests"])

    async def script(self, *steps: Step) -> None:
        await self.order("script", steps=steps)

    async def otherwise(self, step: Step) -> None:
        await self.order("otherwise", step=step)

    async def on(self, path: str, step: Step | None) -> None:
        await self.order("on", path=path, step=step)

    async def stop(self) -> None:
        await self.order("stop")

    async def resume(self) -> None:
        await self.order("resume")

    async def until(self, count: int) -> None:
        """Wait until so many requests are there."""
        await self._process.until(lambda: len(self.requests) >= count)

    async def arrived(self) -> list[Request]:
        """Return all that it has seen up to now."""
        await self.until(await self.order("count"))
        return self.requests


class ReceiverProcess(Process):
    """A process of receivers; starting it takes long, so tests share it."""

    def __init__(self) -> None:
        self._receivers: list[Receiver] = []
        self._done: list[dict[str, Any]] = []
        self._ordered = 0
        super().__init__(HERE / "receiver_process.py")

    def note(self, line: dict[str, Any]) -> None:
        if "done" in line:
            self._done.append(line)
            return
        told = line["request"]
        body = told.pop("body").encode("latin-1")
        self._receivers[line["receiver"]].requests.append(Request(body=body, **told))

    async def order(self, do: str, **told: Any) -> dict[str, Any]:
        self._ordered += 1
        mine = self._ordered
        self.tell(do=do, **told)
        await self.until(lambda: len(self._done) >= mine)
        done = self._done[mine - 1]
        assert "wrong" not in done, done
        return done

    async def open(self, certificate: Path | None = None) -> Receiver:
        """Have one more receiver."""
        receiver = Receiver(self, len(self._receivers))
        self._receivers.append(receiver)
        await receiver.order("open", certificate=certificate and str(certificate))
        return receiver


# Who sends.


class Watched(FailpointStore):
    """A store that tells when deliveries were settled, so that nobody has to sleep."""

    def __init__(self, inner: Store) -> None:
        super().__init__(inner)
        # All that look at the same events.
        self._together: list[Watched] = [self]
        self._changed = anyio.Event()
        # Claims that were asked for, and whether the last answer was all that is due.
        self.claims = 0
        self.is_idle = False

    def join(self, other: "Watched") -> None:
        """Hear what happens through another one, and let it hear."""
        self._together = other._together
        self._together.append(self)

    def ring(self) -> None:
        for each in self._together:
            each._changed.set()
            each._changed = anyio.Event()

    async def claim(self, **options: Any) -> Claims:
        self.claims += 1
        mine = self.claims
        claims = await super().claim(**options)
        self.is_idle = mine == self.claims and claims.next_in != 0
        self.ring()
        return claims

    async def ack(self, *args: Any, **options: Any) -> Any:
        try:
            return await super().ack(*args, **options)
        finally:
            self.ring()

    async def retry(self, *args: Any, **options: Any) -> None:
        try:
            await super().retry(*args, **options)
        finally:
            self.ring()

    async def park(self, *args: Any, **options: Any) -> Any:
        try:
            return await super().park(*args, **options)
        finally:
            self.ring()

    async def until(
        self, is_true: Callable[[], Awaitable[bool]], patience: float = PATIENCE
    ) -> None:
        """Wait for something that the store shows."""
        with anyio.fail_after(patience):
            while True:
                changed = self._changed
                if await is_true():
                    return
                await changed.wait()


class Agent:
    """A manager with webhooks, its sessions and what operators were told."""

    def __init__(self, manager: CallbackManager, store: Watched) -> None:
        self.manager = manager
        self.store = store
        self.told: list[Event] = []
        self._heard = anyio.Event()
        self.history = History()
        for each in (
            "endpoint.failing",
            "endpoint.recovered",
            "endpoint.disabled",
            "delivery.dead",
        ):
            manager.register_callback(each, self._hear)

    def _hear(self, event: Event) -> None:
        self.told.append(event)
        heard, self._heard = self._heard, anyio.Event()
        heard.set()

    async def until_told(self, event_type: str, times: int) -> None:
        """Wait for what operators are told, which is after what the store shows."""
        with anyio.fail_after(PATIENCE):
            while self.operators.count(event_type) < times:
                await self._heard.wait()

    @property
    def operators(self) -> list[str]:
        return [event.event_type for event in self.told]

    async def session(self, url: str, **config: Any) -> Session:
        session = await self.manager.create_session({"webhook_url": url, **config})
        self.history.know(session)
        return session

    async def emit(self, session: Session, *numbers: int) -> None:
        for n in numbers:
            event = await session.emit("step", {"n": n})
            assert event is not None
            self.history.note(event)

    async def until_settled(self, *sessions: Session, patience: float = PATIENCE) -> None:
        """Wait until nothing is owed any more."""
        for session in sessions:

            async def is_settled(session_id: str = session.id) -> bool:
                return (await self.store.get_session(session_id)).queued == 0

            await self.store.until(is_settled, patience)

    async def until_redriven(self, *sessions: Session) -> None:
        """Wait until there is no dead letter any more."""
        for session in sessions:

            async def is_empty(session_id: str = session.id) -> bool:
                return not await self.store.dead_letters(session_id)

            await self.store.until(is_empty)

    async def until_tried(self, session: Session, times: int) -> None:
        """Wait until so many attempts are noted."""

        async def is_noted() -> bool:
            return len(await self.store.attempts(session.id)) >= times

        await self.store.until(is_noted)

    async def errors(self, session: Session) -> list[str]:
        """What each attempt failed with, the oldest first; nothing for one that worked."""
        attempts = sorted(await session.attempts(), key=lambda each: (each.at, each.number))
        return [attempt.error for attempt in attempts]


@asynccontextmanager
async def sending(store: Store, *transports: Transport, **options: Any) -> AsyncIterator[Agent]:
    """Have a manager run, as a user would."""
    watched = store if isinstance(store, Watched) else Watched(store)
    made = transports or (development(**options),)
    async with CallbackManager(watched, made, drain_timeout=2.0) as manager:
        yield Agent(manager, watched)


def development(**options: Any) -> WebhookTransport:
    """A transport that may go to this machine, and tries again at once."""
    return WebhookTransport.for_development(**{"retry": QUICK, "breaker": None, **options})


LENIENT = CircuitBreaker(failures=3, open_for=0.1, max_open=0.2, disable_after=None)


# What has to be true of all that arrived.


class History:
    """What was appended; knows what of it has to arrive, and how."""

    def __init__(self) -> None:
        self.appended: dict[str, list[int]] = defaultdict(list)
        self._secrets: dict[str, str] = {}

    def know(self, session: Session) -> None:
        secret = session.config.webhook_secret
        assert secret is not None
        self._secrets[session.id] = secret

    def note(self, event: Event) -> None:
        self.appended[event.session_id].append(event.position.seq)

    def check(self, requests: Iterable[Request], *, signed_by: str | None = None) -> None:
        """Hold that all arrived, in order, repeats with one id and one body, signed each time."""
        arrived: dict[str, set[int]] = defaultdict(set)
        begun: dict[str, list[int]] = defaultdict(list)
        bodies: dict[str, bytes] = {}
        first_id: dict[tuple[str, int], str] = {}
        for request in requests:
            assert request.method == "POST"
            assert bodies.setdefault(request.id, request.body) == request.body, request.id
            [session_id] = {event["session_id"] for event in request.events}
            seqs = [Position.parse(event["id"]).seq for event in request.events]
            assert seqs == list(range(seqs[0], seqs[0] + len(seqs)))
            for seq in seqs:
                assert first_id.setdefault((session_id, seq), request.id) == request.id
            arrived[session_id].update(seqs)
            begun[session_id].append(seqs[0])
            request.verify(signed_by or self._secrets[session_id])
        for session_id, appended in self.appended.items():
            assert set(appended) == arrived[session_id], session_id
        for session_id, numbers in begun.items():
            assert numbers == sorted(numbers), session_id


def repeats(requests: Iterable[Request]) -> dict[str, int]:
    """How often each id came."""
    counted: dict[str, int] = defaultdict(int)
    for request in requests:
        counted[request.id] += 1
    return dict(counted)


# The world.


class Names:
    """A resolver: for some names it says what it is told, for others it asks the real one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._ask = socket.getaddrinfo
        self.addresses: dict[str, tuple[str, ...]] = {}
        self.asked: list[str] = []
        monkeypatch.setattr(socket, "getaddrinfo", self)

    def say(self, name: str, *addresses: str) -> None:
        """Have a name stand for addresses from now on; for none: it does not exist."""
        self.addresses[name] = addresses

    def __call__(self, host: Any, port: Any, *args: Any, **options: Any) -> list[Any]:
        name = host.decode() if isinstance(host, bytes) else host
        if name not in self.addresses:
            return list(self._ask(host, port, *args, **options))
        self.asked.append(name)
        if not self.addresses[name]:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [
            found
            for address in self.addresses[name]
            for found in self._ask(address, port, *args, **options)
        ]
