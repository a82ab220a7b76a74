"""The connection of a store to Redis, by coredis: one script, and the channels of wakes."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from importlib.resources import files
from typing import Any, Final

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
_PASSING_ERRORS: Final = (
    AskError,
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    ClusterDownError,
    ReadOnlyError,
    TryAgainError,
)
# Seconds to the next attempt to connect from the second failure in a row on, and at most; by chance
# up to half less.
_BACKOFF, _LONGEST_BACKOFF = 0.05, 1.0


class _Line:
    """A client of coredis, alive from when one task enters it until it has nothing to do."""

    def __init__(self) -> None:
        self.client: Any = None
        self.opened: asyncio.Event = asyncio.Event()
        self.over: asyncio.Event = asyncio.Event()
        self.error: Exception | None = None
        self.users: int = 0
        self.task: asyncio.Task[None] | None = None

    async def hold(self, new_client: Callable[[], Any], *, delay: float) -> None:
        # Entered and left by the same task: its connections are tasks of a group in there.
        try:
            await asyncio.sleep(delay)
            async with new_client() as self.client:
                if getattr(self.client, "decode_responses", False):
                    self.error = TypeError("new_client must return a client that does not decode")
                    return
                self.opened.set()
                await self.over.wait()
        except Exception as exc:
            self.error = exc
        finally:
            self.opened.set()


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

    async def run_script(self, key: str, arguments: Sequence[str | bytes]) -> list[Any]:
        """Have the script run, and return what it does.

        Args:
            key: The key of the partition.
            arguments: See ``redis_script.lua``.

        Raises:
            StoreUnavailableError: Nobody answered in time, or the server can't do it now.
            StoreError: The server finds fault with it.
        """
        line = self._current()
        line.users += 1
        try:
            async with asyncio.timeout(self._timeout):
                rows = await _evaluate(line, key, arguments)
        except Exception as exc:
            self._drop(line)
            raise _failure(exc) from exc
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
        options = {"retry_policy": NoRetryPolicy(), "subscription_timeout": self._timeout}
        async with self._new_client() as client, client.pubsub(**options) as pubsub:
            yield _Subscriber(pubsub)

    async def aclose(self) -> None:
        """Let go of all connections."""
        self._line = None
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _current(self) -> _Line:
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


async def _evaluate(line: _Line, key: str, arguments: Sequence[str | bytes]) -> list[Any]:
    await line.opened.wait()
    if line.error is not None:
        raise line.error
    try:
        result: Any = await line.client.evalsha(_SHA, keys=[key], args=arguments)
    except NoScriptError:
        # On whichever server it was: that one has it from now on.
        result = await line.client.eval(_SCRIPT, keys=[key], args=arguments)
    if not is_row(result):
        raise TypeError(f"Redis answered a {type(result).__name__}, not a list")
    return result


def _is_of_replica(row: Any) -> bool:
    return is_row(row) and row[:1] == [b"error"] and row[1].startswith(b"READONLY")


def _failure(exc: Exception) -> StoreError:
    if isinstance(exc, _PASSING_ERRORS):
        return StoreUnavailableError(f"Redis refuses: {exc}")
    if isinstance(exc, ResponseError):
        return refusal(str(exc))
    if isinstance(exc, (RedisError, OSError, TimeoutError, ExceptionGroup)):
        return StoreUnavailableError("Redis did not answer")
    return StoreError(f"Redis could not be asked: {exc!r:.200}")


def refusal(text: str) -> StoreError:
    """Return the error that a text of the server, such as ``"OOM command not allowed"``, means."""
    is_passing = text.partition(" ")[0] in _PASSING
    kind = StoreUnavailableError if is_passing else StoreError
    return kind(f"Redis refuses: {text:.300}")


class _Subscriber:
    """A subscriber on a connection of coredis."""

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


def _encoded(channel: str) -> bytes:
    return channel.encode("utf-8", "surrogatepass")


def client_of(url: str, *, timeout: float) -> Callable[[], Any]:
    """Return what makes clients of a URL.

    Raises:
        ValueError: It is none that coredis knows; the message does not show it, for its password.
    """
    new_client = partial(
        coredis.Redis.from_url,
        url,
        retry_policy=NoRetryPolicy(),
        decode_responses=False,
        decode_components=True,
        connect_timeout=timeout,
    )
    try:
        if not url.startswith(_SCHEMES):
            raise ValueError
        new_client()
    except Exception as exc:
        reason = type(exc).__name__
        raise ValueError(f"url is not one of Redis, redis://host:port/db ({reason})") from None
    return new_client
