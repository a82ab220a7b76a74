"""What the calls of a fleet cost the processor of Redis, measured on a server."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial

import attrs

from callbackkit.events import Position
from callbackkit.stores.base import Attempt, Claim, NewSession, delivery_id
from callbackkit.stores.redis import RedisStore
from tests.benchmarks.simulation_model import Costs
from tests.benchmarks.simulation_wire import Recorder, Replies, encoded
from tests.stores.redis_server import Server

__all__ = ["BODY", "append_to", "cost_of", "fill", "looks_of", "measure", "noting", "used_by"]

# An event of 300 bytes.
BODY = b'{"text":"' + b"x" * 289 + b'"}'
_METHOD = "webhook"
# Connections, each with one call at a time.
_CONNECTIONS = 64
# Parts that the calls of one kind are made in.
_PARTS = 5
# Sessions that are read, and those that are delivered: a multiple of the partitions and of that.
_READ, _OWED = 512, 2_560
# Seconds in which a store has looked around twice.
_LOOKS = 3.5


def measure(server: Server, *, number: int = 9_600) -> Costs:
    """Measure what a server that nobody else uses takes; each call is made *number* times."""
    return asyncio.run(_measure(server, number))


async def _measure(server: Server, number: int) -> Costs:
    async with noting(server) as noted:
        cost = partial(cost_of, server, number=number)
        once = partial(cost_of, server)
        found = await _of_reading(noted, cost, once)
        found |= await _of_delivering(noted, cost, once)
    return Costs(
        **found,
        ping=cost([encoded("PING")]),
        told=_of_publishing(server),
        subscribe=cost([encoded("SUBSCRIBE", f"channel{n}") for n in range(number)]),
        connect=await _of_connecting(server),
    )


Cost = Callable[..., float]


async def _of_reading(noted: Noted, cost: Cost, once: Cost) -> dict[str, float]:
    """Measure what is done for sessions that are read."""
    store, ids = noted.store, [f"r{n}" for n in range(_READ)]
    await fill(store, ids)
    looks = await looks_of(noted)
    found = {"look": cost(looks)}
    await append_to(store, ids)
    found |= {
        "change": (cost(looks) - found["look"]) / (_READ / len(looks)),
        "totals": cost(await noted.by(store.totals())),
        "sweep": cost(await noted.by(store.sweep(limit=100))),
        "append": cost(await noted.each([partial(store.append, i, "progress", BODY) for i in ids])),
        "touch": cost(await noted.each([partial(store.touch, {i: 1}) for i in ids])),
    }
    seen = {each: await _before_the_newest(store, each) for each in ids}
    found["read"] = cost(await noted.each([partial(store.read, i, after=seen[i]) for i in ids]))
    several: dict[str, list[Awaitable[object]]] = {
        "read": [store.read(each, after=seen[each]) for each in ids],
        "touch": [store.touch(dict.fromkeys(ids, 1))],
        "append": [store.append(each, "progress", BODY) for each in ids],
    }
    for name, verbs in several.items():
        calls = await noted.by(*verbs)
        found[f"{name}_more"] = once(calls * _CONNECTIONS) * len(calls) / _READ
    return found


async def _of_delivering(noted: Noted, cost: Cost, once: Cost) -> dict[str, float]:
    """Measure what is done for sessions that are delivered."""
    store, ids = noted.store, [f"o{n}" for n in range(_OWED)]
    await fill(store, ids, pushes=True)
    claims = await noted.by(_claim(store))
    found = {
        "claim": cost(claims),
        "endpoint": cost(await noted.by(store.load_endpoint("https://example.org/hook"))),
        "append_owed": cost(
            await noted.each([partial(store.append, i, "progress", BODY) for i in ids])
        ),
    }
    # More than are due: the partitions are not equally full.
    several = claims * 64
    found["claimed"] = (once(several, parts=1) - found["claim"]) * len(several) / _OWED
    acks = [await _ack(store, each) for each in ids]
    noted.is_dry = True
    found["ack"] = once(await noted.each(acks))
    noted.is_dry = False
    for each in ids:
        if (session := await store.get_session(each)).queued:
            raise RuntimeError(f"not all of a session was settled: {session}")
    return found


async def _claim(store: RedisStore) -> None:
    await store.claim(methods=[_METHOD], limit=64, lease=60.0)


async def _ack(store: RedisStore, session_id: str) -> Callable[[], Awaitable[object]]:
    """Return what settles all that a session owes, with the fence of a first claim."""
    session = await store.get_session(session_id)
    claim = Claim(
        session_id=session_id, method=_METHOD, config=b"", epoch=session.epoch, cursor=0,
        attempts=0, bound=None, fence=1,
    )  # fmt: skip
    attempt = Attempt(
        delivery_id=delivery_id(session_id, session.epoch, 1),
        number=1,
        at=0.0,
        duration=0.1,
        events=1,
    )
    return partial(store.ack, claim, session.top, attempt)


async def _before_the_newest(store: RedisStore, session_id: str) -> Position:
    session = await store.get_session(session_id)
    return Position(session.epoch, session.top - 1)


async def looks_of(noted: Noted) -> list[bytes]:
    """Return what a store asks when it looks around, once it knows how things stand."""
    del noted.calls[:]
    with noted.store.watch(None):
        await asyncio.sleep(_LOOKS)
    looks = [each for each in noted.calls if b"changes" in each]
    return looks[-(len(looks) // 2) :]


def _of_publishing(server: Server, listeners: int = 512, messages: int = 64) -> float:
    with probing(server, listeners) as audience:
        audience.send([encoded("SUBSCRIBE", "channel")])
        used = used_by(server)
        for _ in range(messages):
            server.call("PUBLISH", "channel", "")
            audience.wait()
        return (used_by(server) - used) / listeners / messages * 1e6


async def _of_connecting(server: Server, times: int = 200) -> float:
    used = used_by(server)
    for _ in range(times):
        async with server.client() as client:
            await client.ping()
    return (used_by(server) - used) / times * 1e6


# Sending again what a store sent.


class Probe:
    """Connections, each with one call at a time."""

    def __init__(self, server: Server, connections: int) -> None:
        self._server = server
        self._sockets = [_connected(server.port) for _ in range(connections)]
        self._replies = [Replies() for _ in range(connections)]

    def close(self) -> None:
        """Hang up."""
        for each in self._sockets:
            each.close()

    def send(self, calls: Sequence[bytes]) -> None:
        """Make calls by the connections in turn, and wait for the answers."""
        for begin in range(0, max(len(calls), len(self._sockets)), len(self._sockets)):
            for number, connection in enumerate(self._sockets, begin):
                connection.sendall(calls[number % len(calls)])
            self.wait()

    def wait(self) -> None:
        """Wait until each connection has an answer, or a message."""
        for connection, replies in zip(self._sockets, self._replies, strict=True):
            while not replies.feed(_received(connection)):
                continue


@contextmanager
def probing(server: Server, connections: int) -> Generator[Probe]:
    """Connect, and hang up in the end."""
    probe = Probe(server, connections)
    try:
        yield probe
    finally:
        probe.close()


def cost_of(
    server: Server, calls: Sequence[bytes], number: int = 0, *, parts: int = _PARTS
) -> float:
    """Return the microseconds of the server that one of the calls takes.

    Args:
        server: The server.
        calls: Made in turn, in whole rounds of the connections.
        number: How many, if that is not one of each.
        parts: How many parts they are made in, of which the cheapest counts: what else the machine
            does makes none cheaper.
    """
    wanted = [calls[n % len(calls)] for n in range(number or len(calls))]
    size = max(len(wanted) // parts // _CONNECTIONS, 1) * _CONNECTIONS
    found = []
    with probing(server, _CONNECTIONS) as probe:
        for begin in range(0, len(wanted), size):
            part = wanted[begin : begin + size]
            used = used_by(server)
            probe.send(part)
            found.append((used_by(server) - used) / max(len(part), _CONNECTIONS) * 1e6)
    return min(found)


def used_by(server: Server) -> float:
    """Return the seconds of processors that a server has used."""
    lines = server.call("INFO", "cpu").decode().splitlines()
    told = dict(line.split(":") for line in lines if ":" in line)
    return float(told["used_cpu_sys"]) + float(told["used_cpu_user"])


def _connected(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), 10.0)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _received(connection: socket.socket) -> bytes:
    data = connection.recv(1_048_576)
    if not data:
        raise ConnectionError("the server hung up")
    return data


# A store whose calls are noted.


@attrs.define
class Noted:
    """A store, and what it sends.

    Attributes:
        store: The store.
        calls: What it has sent, the newest last.
        is_dry: It is done where there are no sessions, to be done later.
    """

    store: RedisStore
    calls: list[bytes]
    is_dry: bool = False

    async def by(self, *verbs: Awaitable[object]) -> list[bytes]:
        """Return what verbs have the store send, all at once."""
        del self.calls[:]
        for error in await asyncio.gather(*verbs, return_exceptions=True):
            if isinstance(error, BaseException) and not self.is_dry:
                raise error
        return list(self.calls)

    async def each(self, verbs: Sequence[Callable[[], Awaitable[object]]]) -> list[bytes]:
        """Return what verbs have the store send, one after the other."""
        return [call for verb in verbs for call in await self.by(verb())]


@asynccontextmanager
async def noting(server: Server, *, partitions: int = 8) -> AsyncGenerator[Noted]:
    """Open a store that notes what it sends."""
    calls: list[bytes] = []
    store = RedisStore(
        lambda: Recorder(server.client(), calls, lambda: noted.is_dry), partitions=partitions
    )
    noted = Noted(store, calls)
    try:
        await store.start()
        yield noted
    finally:
        await store.aclose()


async def fill(store: RedisStore, ids: Sequence[str], *, pushes: bool = False) -> None:
    """Begin sessions with these ids."""
    method = _METHOD if pushes else "sse"
    for some in _split(ids):
        new = [
            NewSession(id=each, token_hash=b"h" * 32, method=method, pushes=pushes, ttl=3600.0)
            for each in some
        ]
        await asyncio.gather(*map(store.create_session, new))


async def append_to(store: RedisStore, ids: Sequence[str], *, events: int = 1) -> None:
    """Append to each of the sessions."""
    for _ in range(events):
        for some in _split(ids):
            await asyncio.gather(*[store.append(each, "progress", BODY) for each in some])


def _split(ids: Sequence[str]) -> list[Sequence[str]]:
    return [ids[begin : begin + 64] for begin in range(0, len(ids), 64)]
