"""The connection of a store to Redis, by coredis: one script, and the channels of wakes."""

from __future__ import annotations

import asyncio
import hashlib
import random
import re
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from importlib.resources import files
from typing import Any, Final, Literal
from urllib.parse import parse_qs, urlsplit

try:
    import coredis
    from coredis.exceptions import (
        AskError,
        AuthenticationError,
        AuthorizationError,
        BusyLoadingError,
        ClusterDownError,
        NoScriptError,
        ReadOnlyError,
        RedisError,
        ResponseError,
        TryAgainError,
    )
    from coredis.retry import NoRetryPolicy
except ImportError as _exc:
    raise ImportError(
        "callbackkit.stores.redis needs coredis: install callbackkit[redis]"
    ) from _exc

from callbackkit.errors import StoreError, StoreUnavailableError
from callbackkit.stores.redis_rows import is_row
from callbackkit.stores.redis_wakes import Subscriber

__all__ = ["Client", "client_of", "refusal"]

Words = Sequence[str | bytes]

_SCRIPT: Final = (files("callbackkit.stores") / "redis_script.lua").read_text("utf-8")
_SHA: Final = hashlib.sha1(_SCRIPT.encode(), usedforsecurity=False).hexdigest()

_SCHEMES: Final = ("redis://", "rediss://", "unix://")
# Words that errors begin with which pass, or which the operator has to do something about: no
# memory left, a replica, still loading, a disk that can't be written, too few replicas ...
_PASSING: Final = frozenset(
    {
        "BUSY", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "MISCONF", "MOVED", "NOAUTH", "NOPERM",
        "NOREPLICAS", "OOM", "READONLY", "TRYAGAIN", "UNBLOCKED", "WRONGPASS",
    }
)  # fmt: skip
# Redis 6.2 puts before an error of a script which one it was, and where in it, twice.
_PLACE: Final = re.compile(r"(?:ERR )?Error running script \(call to \w+\): (?:@\w+:\s*\d+:\s*)*-?")
_PASSING_ERRORS: Final = (
    AskError,
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    ClusterDownError,
    ReadOnlyError,
    TryAgainError,
)
# What a script is told of what its user may not do, by Valkey and later versions of Redis, and by
# Redis 7.0: there no word begins it.
_DENIED: Final = ("ACL failure in script", "The user executing the script can't")
# No word begins it, and coredis takes it for a connection that broke.
_FULL: Final = "max number of clients reached"
# Seconds to the next attempt to connect from the second failure in a row on, and at most; by chance
# up to half less.
_BACKOFF, _LONGEST_BACKOFF = 0.05, 1.0
# Pushes that answer for a channel.
_ANSWERS: Final = (b"subscribe", b"unsubscribe")
# Connections. What came together by one is answered together, when all of it is done; with another
# the server works while this process looks at answers. The benchmark "redis-append" holds that: its
# throughput was up to twice as much as with one, and no more with four.
_LANES: Final = 2


class _Line:
    """A client of coredis, alive from when one task enters it until it has nothing to do."""

    def __init__(self) -> None:
        self.client: Any = None
        # Those of a client of one server; none of a cluster's, which finds them by itself.
        self.connections: list[Any] = []
        self.opened: asyncio.Event = asyncio.Event()
        self.over: asyncio.Event = asyncio.Event()
        self.error: Exception | None = None
        self.users: int = 0
        self.task: asyncio.Task[None] | None = None

    async def hold(self, new_client: Callable[[], Any], *, delay: float) -> None:
        # Entered and left by the same task: its connections are tasks of a group in there.
        try:
            await asyncio.sleep(delay)
            async with AsyncExitStack() as stack:
                client = self.client = await stack.enter_async_context(new_client())
                if getattr(client, "decode_responses", False):
                    self.error = TypeError("new_client must return a client that does not decode")
                    return
                if isinstance(client, coredis.Redis):
                    pool = client.connection_pool
                    for _ in range(min(_LANES, pool.max_connections)):
                        self.connections.append(await stack.enter_async_context(pool.acquire()))
                self.opened.set()
                await self.over.wait()
        except Exception as exc:
            self.error = exc
        finally:
            self.opened.set()

    @property
    def is_broken(self) -> bool:
        """A connection was lost, be it that nothing was asked for meanwhile."""
        return not all(each.usable for each in self.connections)

    async def evaluate(
        self, lane: int, command: Literal["EVAL", "EVALSHA"], script: str, key: str, words: Words
    ) -> Any:
        """Have a script run, named as the command wants it."""
        if not self.connections:
            run = self.client.eval if command == "EVAL" else self.client.evalsha
            return await run(script, keys=[key], args=words)
        # Past what a client does for each command, which takes twice as long as this.
        connection = self.connections[lane % len(self.connections)]
        asked = connection.create_request(command.encode(), script, 1, key, *words, decode=False)
        return await asked


class Client:
    """What a store says to Redis; for one event loop of asyncio.

    What fails is not tried again here: whether it happened is not known. The connections are made
    anew by whoever comes next, and after one failure upon another less and less often: who comes
    meanwhile waits for the same attempt, so that a server that is in trouble is not stormed.

    Args:
        new_client: Makes a client of coredis that does not try again by itself.
        timeout: Seconds a call may take.
    """

    def __init__(self, new_client: Callable[[], Any], *, timeout: float) -> None:
        self._new_client = new_client
        self._timeout = timeout
        self._line: _Line | None = None
        # Lines in a row that nothing came of.
        self._failures = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def run_script(self, key: str, words: Words, *, lane: int = 0) -> list[Any]:
        """Have the script run, and return what it does.

        Args:
            key: The key of the partition.
            words: See ``redis_script.lua``.
            lane: A number; what has the same is done in the order it is asked for.

        Raises:
            StoreUnavailableError: Nobody answered in time, or the server can't do it now.
            StoreError: The server finds fault with it.
        """
        line = self._current()
        line.users += 1
        try:
            async with asyncio.timeout(self._timeout):
                rows = await _evaluate(line, lane, key, words)
        except Exception as exc:
            failure = _failure(exc)
            # What the server finds fault with says nothing against the connection of the others.
            is_fault = isinstance(exc, ResponseError) and line.error is None
            if not is_fault or isinstance(failure, StoreUnavailableError):
                self._drop(line)
            raise failure from exc
        else:
            if any(map(_is_of_replica, rows)):
                # The name may lead to another one by now.
                self._drop(line)
            elif self._line is line:
                self._failures = 0
            return rows
        finally:
            line.users -= 1
            self._end_if_idle(line)

    @asynccontextmanager
    async def subscriber(self) -> AsyncGenerator[Subscriber]:
        """Connect to listen to channels."""
        async with self._new_client() as client:
            listening = _listening if isinstance(client, coredis.Redis) else _listening_by_any
            async with listening(client, self._timeout) as subscriber:
                yield subscriber

    async def aclose(self) -> None:
        """Let go of all connections."""
        self._line = None
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _current(self) -> _Line:
        if self._line is not None and self._line.is_broken:
            broken, self._line = self._line, None
            self._end_if_idle(broken)
        if self._line is None:
            line = self._line = _Line()
            holding = line.hold(self._new_client, delay=self._delay())
            line.task = asyncio.get_running_loop().create_task(holding)
            self._tasks.add(line.task)
            line.task.add_done_callback(self._tasks.discard)
        return self._line

    def _delay(self) -> float:
        """Return the seconds until the next attempt to connect; most of a call's time is left."""
        if self._failures < 2:
            return 0.0
        longest = min(_BACKOFF * 2.0 ** min(self._failures - 2, 20), _LONGEST_BACKOFF)
        return min(longest, self._timeout / 4) * (0.5 + random.random() / 2)

    def _drop(self, line: _Line) -> None:
        # Others may wait for answers on it: it ends with the last of them.
        if self._line is line:
            self._line = None
            self._failures += 1

    def _end_if_idle(self, line: _Line) -> None:
        if self._line is line or line.users:
            return
        line.over.set()
        if line.client is None and line.task is not None:
            line.task.cancel()  # it never got as far


async def _evaluate(line: _Line, lane: int, key: str, words: Words) -> list[Any]:
    await line.opened.wait()
    if line.error is not None:
        raise line.error
    try:
        result = await line.evaluate(lane, "EVALSHA", _SHA, key, words)
    except NoScriptError:
        # On whichever server it was: that one has it from now on.
        result = await line.evaluate(lane, "EVAL", _SCRIPT, key, words)
    if not is_row(result):
        raise TypeError(f"Redis answered a {type(result).__name__}, not a list")
    return result


def _is_of_replica(row: Any) -> bool:
    return is_row(row) and row[:1] == [b"error"] and row[1].startswith(b"READONLY")


def _failure(exc: Exception) -> StoreError:
    inner: Sequence[Any] = getattr(exc, "exceptions", ())
    if inner:
        # What went wrong while a connection was made.
        return _failure(inner[0])
    if isinstance(exc, _PASSING_ERRORS):
        return StoreUnavailableError(f"Redis refuses: {exc}")
    if isinstance(exc, ResponseError):
        return refusal(str(exc))
    if _FULL in str(exc):
        return StoreUnavailableError(f"Redis refuses: {_FULL}")
    if isinstance(exc, (RedisError, OSError, TimeoutError)):
        return StoreUnavailableError("Redis did not answer")
    return StoreError(f"Redis could not be asked: {exc!r:.200}")


def refusal(text: str) -> StoreError:
    """Return the error that a text of the server, such as ``"OOM command not allowed"``, means."""
    text = _PLACE.sub("", text, count=1)
    is_passing = text.partition(" ")[0] in _PASSING or any(each in text for each in _DENIED)
    kind = StoreUnavailableError if is_passing else StoreError
    return kind(f"Redis refuses: {text:.300}")


@asynccontextmanager
async def _listening(client: Any, timeout: float) -> AsyncGenerator[Subscriber]:
    async with client.connection_pool.acquire() as connection:
        try:
            yield _Subscriber(connection, timeout)
        finally:
            # It still gets messages: it is of no use to anybody else.
            connection.invalidate()


@asynccontextmanager
async def _listening_by_any(client: Any, timeout: float) -> AsyncGenerator[Subscriber]:
    options = {"retry_policy": NoRetryPolicy(), "subscription_timeout": timeout}
    async with client.pubsub(**options) as pubsub:
        yield _AnySubscriber(pubsub)


class _AnySubscriber:
    """A subscriber by what any client has, that of a cluster too."""

    def __init__(self, pubsub: Any) -> None:
        self._pubsub = pubsub

    async def subscribe(self, *channels: str) -> None:
        await self._pubsub.subscribe(*map(_encoded, channels))

    async def unsubscribe(self, *channels: str) -> None:
        await self._pubsub.unsubscribe(*map(_encoded, channels))

    async def messages(self) -> AsyncIterator[str]:
        while True:
            message = await self._pubsub.get_message(ignore_subscribe_messages=True)
            if message is not None:
                yield message["channel"].decode("utf-8", "surrogatepass")


class _Subscriber:
    """A subscriber on a connection of coredis that it has for itself.

    Past its ``PubSub``, which hands each message from task to task once more: with it a message
    takes twice as long, and what comes together comes one by one.

    Args:
        connection: The connection.
        timeout: Seconds that the server may take to answer.
    """

    def __init__(self, connection: Any, timeout: float) -> None:
        self._connection = connection
        self._timeout = timeout
        # Channels that the server was told of, and that it has answered for, one by one in order.
        self._told = 0
        self._answered = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def subscribe(self, *channels: str) -> None:
        await self._tell(b"SUBSCRIBE", channels)

    async def unsubscribe(self, *channels: str) -> None:
        await self._tell(b"UNSUBSCRIBE", channels)

    async def messages(self) -> AsyncIterator[str]:
        async for kind, channel, _ in self._connection.push_messages:
            if kind == b"message":
                yield channel.decode("utf-8", "surrogatepass")
            elif kind in _ANSWERS:
                self._note_answer()

    async def _tell(self, command: bytes, channels: Sequence[str]) -> None:
        self._connection.send_command(command, *map(_encoded, channels))
        self._told += len(channels)
        answered = asyncio.get_running_loop().create_future()
        self._waiting.append((self._told, answered))
        async with asyncio.timeout(self._timeout):
            await answered

    def _note_answer(self) -> None:
        self._answered += 1
        while self._waiting and self._waiting[0][0] <= self._answered:
            _, answered = self._waiting.popleft()
            if not answered.done():
                answered.set_result(None)


def _encoded(channel: str) -> bytes:
    return channel.encode("utf-8", "surrogatepass")


def _with_name_checked(url: str) -> str:
    """Return a URL by which the certificate has to be of the host, unless it says otherwise."""
    base = url.partition("#")[0]
    asked = parse_qs(base.partition("?")[2])
    is_told = "ssl_check_hostname" in asked or asked.get("ssl_cert_reqs") == ["none"]
    if is_told or not url.startswith("rediss://"):
        return url
    return f"{base}{'&' if '?' in base else '?'}ssl_check_hostname=true"


def client_of(url: str, *, timeout: float) -> Callable[[], Any]:
    """Return what makes clients of a URL.

    Raises:
        ValueError: It is none that coredis knows; the message does not show it, for its password.
    """
    new_client = partial(
        coredis.Redis.from_url,
        _with_name_checked(url),
        retry_policy=NoRetryPolicy(),
        decode_responses=False,
        decode_components=True,
        connect_timeout=timeout,
    )
    try:
        if not url.startswith(_SCHEMES):
            raise ValueError
        path = urlsplit(url).path.strip("/")
        # coredis passes over one that is no number, and the sessions would go into number 0.
        if path and not url.startswith("unix://") and not (path.isascii() and path.isdecimal()):
            raise ValueError
        new_client()
    except Exception as exc:
        reason = type(exc).__name__
        raise ValueError(f"url is not one of Redis, redis://host:port/db ({reason})") from None
    return new_client
