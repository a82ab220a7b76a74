"""Clients of Redis that do one plain command after the other, as one would without a store."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import Any, Protocol

from tests.benchmarks.stores import BODY

EVENT = {"t": "progress", "b": BODY}


class Plain(Protocol):
    """A client on one server."""

    async def append(self) -> None:
        """Add an event to a stream, and wait until that is done."""

    async def publish(self, channel: str) -> None:
        """Publish a message, and wait until that is done."""

    def receive(self, channel: str) -> AbstractAsyncContextManager[AsyncIterator[object]]:
        """Subscribe to a channel, and give what comes."""
        ...


Connect = Callable[[str], AbstractAsyncContextManager[Plain]]


@asynccontextmanager
async def by_coredis(url: str) -> AsyncIterator[Plain]:
    """Connect with coredis, which the store uses, too."""
    import coredis

    async with coredis.Redis.from_url(url) as client:
        yield _Coredis(client)


@asynccontextmanager
async def by_valkey(url: str) -> AsyncIterator[Plain]:
    """Connect with valkey-py, which is redis-py under another name."""
    from valkey.asyncio import Valkey

    async with Valkey.from_url(url.replace("redis://", "valkey://")) as client:
        yield _Valkey(client)


CLIENTS: dict[str, Connect] = {"coredis": by_coredis, "valkey-py": by_valkey}


class _Coredis:
    def __init__(self, client: Any) -> None:
        self._client = client

    async def append(self) -> None:
        await self._client.xadd("peer", EVENT)

    async def publish(self, channel: str) -> None:
        await self._client.publish(channel, "")

    @asynccontextmanager
    async def receive(self, channel: str) -> AsyncIterator[AsyncIterator[object]]:
        async with self._client.pubsub() as pubsub:
            await pubsub.subscribe(channel)
            await pubsub.get_message()
            yield pubsub


class _Valkey:
    def __init__(self, client: Any) -> None:
        self._client = client

    async def append(self) -> None:
        await self._client.xadd("peer", EVENT)

    async def publish(self, channel: str) -> None:
        await self._client.publish(channel, "")

    @asynccontextmanager
    async def receive(self, channel: str) -> AsyncIterator[AsyncIterator[object]]:
        async with self._client.pubsub() as pubsub:
            await pubsub.subscribe(channel)
            async with aclosing(pubsub.listen()) as messages:
                await anext(messages)
                yield messages
