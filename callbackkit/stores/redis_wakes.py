"""Who waits for a session in Redis, woken by its channel, and sure to look now and then."""

from __future__ import annotations

import asyncio
import logging
import random
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterable
from contextlib import AbstractAsyncContextManager, suppress
from functools import partial
from types import coroutine
from typing import Any, Final, Protocol

from callbackkit.stores.base import Watch, Watches
from callbackkit.stores.waking import Place, call_there, place_here

__all__ = ["Subscriber", "Wakes"]

_logger = logging.getLogger("callbackkit.stores")

# Seconds until another attempt to listen, the first time and at most; by chance up to half less.
_BACKOFF, _LONGEST_BACKOFF = 0.05, 5.0
# Seconds that changes of what is listened to are gathered for.
_GATHER: Final = 0.002
# Channels of one command.
_MOST_AT_ONCE: Final = 1_000
# So many topics that were told of at once are a load: what follows is gathered for some seconds,
# and whoever reads it then asks in few large calls. One that comes alone never waits.
_LOAD, _REST_UNDER_LOAD = 8, 0.01
# Messages that are taken before others run.
_MOST_IN_ONE_GO: Final = 500


class Subscriber(Protocol):
    """A connection that channels can be listened to with."""

    async def subscribe(self, *channels: str) -> None:
        """Listen to channels; return when the server has said that it knows."""

    async def unsubscribe(self, *channels: str) -> None:
        """Listen to channels no longer."""

    def messages(self) -> AsyncIterator[str]:
        """Yield the channel of each message; end, or raise, when the connection has."""
        ...


class Wakes(Watches):
    """The watches of this process.

    A wake may get lost: between the connection and its end, or because the connection broke. So
    whoever begins to wait is rung once his channel is listened to, everybody is when the
    connection was made anew; and the store looks now and then for what nobody was told of.

    Args:
        channels_of: Names the channels of a topic.
        rest: Seconds that nobody has to wait for a topic before its channels are left, and after
            which a connection that is silent is seen to be alive.
    """

    def __init__(
        self, channels_of: Callable[[str | None], list[str]], *, rest: float = 5.0
    ) -> None:
        super().__init__()
        self._rest = rest
        self._channels_of = channels_of
        self._topics: dict[str, str | None] = {}
        self._pending: set[str | None] = set()
        # Where those who watch a topic are; None if that is not one place.
        self._places: dict[str | None, Place | None] = {}
        self._guard = threading.RLock()
        self._call: Callable[[], object] | None = None
        # Of the event loop that listens.
        self._is_asked: asyncio.Event | None = None
        self._heard: dict[str | None, float] = {}

    # From any thread.

    def add(self, topic: str | None, watch: Watch) -> None:
        """Have a watch rung from now on."""
        here = place_here()
        with self._guard:
            is_here = self._places.get(topic, here) is here
            self._places[topic] = here if is_here else None
        super().add(topic, watch)
        with self._guard:
            self._pending.add(topic)
            call = self._call
        if call is not None:
            call()

    def remove(self, topic: str | None, watch: Watch) -> None:
        """Ring a watch no longer."""
        super().remove(topic, watch)
        with self._guard:
            if topic not in self._by_topic:
                self._places.pop(topic, None)

    def ring_all(self) -> None:
        """Ring every watch."""
        self.ring_each(self.topics)

    def ring_each(self, topics: Iterable[str | None]) -> None:
        """Ring the watches of some topics, each in the event loop it was begun in.

        Each loop is told once: if it were for each topic, its thread and this one would take turns
        at every one of them. One that does not get on holds up nobody elsewhere.
        """
        by_place: dict[Place | None, list[str | None]] = {}
        for topic in topics:
            by_place.setdefault(self._places.get(topic), []).append(topic)
        for place, some in by_place.items():
            if place is None or not call_there(place, partial(self._ring_here, some)):
                self._ring_here(some)

    def _ring_here(self, topics: Iterable[str | None]) -> None:
        for topic in topics:
            self.ring(topic)

    def listen_by(self, call: Callable[[], object] | None) -> None:
        """Set what has the event loop look at what is to be listened to; from any thread."""
        with self._guard:
            self._call = call

    # In the event loop.

    def look(self) -> None:
        """Look at what is to be listened to."""
        if self._is_asked is not None:
            self._is_asked.set()

    async def listen(self, connect: Callable[[], AbstractAsyncContextManager[Subscriber]]) -> None:
        """Listen until cancelled; a connection that breaks is made anew, less and less often."""
        self._is_asked = asyncio.Event()
        failures = 0
        while True:
            try:
                async with connect() as subscriber:
                    failures = 0
                    self._heard = {}
                    self._topics = {}
                    await self._serve(subscriber)
            except Exception as exc:
                _logger.debug("wakes are not heard", exc_info=exc)
            failures += 1
            longest = min(_BACKOFF * 2.0 ** min(failures, 20), _LONGEST_BACKOFF)
            await asyncio.sleep(longest * (0.5 + random.random() / 2))

    async def _serve(self, subscriber: Subscriber) -> None:
        keeping = asyncio.ensure_future(self._keep_up(subscriber))
        hearing = asyncio.ensure_future(self._hear(subscriber))
        try:
            await asyncio.wait([keeping, hearing], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (keeping, hearing):
                task.cancel()
            await asyncio.gather(keeping, hearing, return_exceptions=True)
        for task in (keeping, hearing):
            if not task.cancelled() and (exc := task.exception()) is not None:
                raise exc

    async def _hear(self, subscriber: Subscriber) -> None:
        heard = _Heard(self.ring_each)
        await _in_one_go(self._take(subscriber, heard), heard.tell)

    async def _take(self, subscriber: Subscriber, heard: _Heard) -> None:
        async for channel in subscriber.messages():
            if channel in self._topics:
                heard.topics.add(self._topics[channel])

    async def _keep_up(self, subscriber: Subscriber) -> None:
        assert self._is_asked is not None
        loop = asyncio.get_running_loop()
        rests_at = loop.time() + self._rest
        with self._guard:
            self._pending = set(self.topics)
        while True:
            self._is_asked.clear()
            with self._guard:
                asked, self._pending = self._pending, set()
            fresh = [each for each in asked if each not in self._heard]
            for begin in range(0, len(fresh), _MOST_AT_ONCE):
                await self._begin(subscriber, fresh[begin : begin + _MOST_AT_ONCE])
            with suppress(TimeoutError):
                async with asyncio.timeout_at(rests_at):
                    await self._is_asked.wait()
            # Also where there is always somebody who asks.
            if loop.time() >= rests_at:
                rests_at = loop.time() + self._rest
                await self._leave(subscriber)
                # One that nobody answers on any more would be silent, too.
                if self._topics:
                    await subscriber.subscribe(next(iter(self._topics)))
            await asyncio.sleep(_GATHER)

    async def _begin(self, subscriber: Subscriber, topics: list[str | None]) -> None:
        channels = {channel: each for each in topics for channel in self._channels_of(each)}
        self._topics |= channels
        await subscriber.subscribe(*channels)
        self._heard |= dict.fromkeys(topics, asyncio.get_running_loop().time())
        # What happened before that is not known.
        self.ring_each(topics)

    async def _leave(self, subscriber: Subscriber) -> None:
        """Listen no longer to what nobody has waited for lately."""
        now = asyncio.get_running_loop().time()
        for topic in self.topics:
            if topic in self._heard:
                self._heard[topic] = now
        old = [topic for topic, at in self._heard.items() if now - at > self._rest]
        channels = [channel for each in old for channel in self._channels_of(each)]
        for topic in old:
            del self._heard[topic]
        for channel in channels:
            self._topics.pop(channel, None)
        # Whoever begins to wait meanwhile has his topic looked at again, see add().
        for begin in range(0, len(channels), _MOST_AT_ONCE):
            await subscriber.unsubscribe(*channels[begin : begin + _MOST_AT_ONCE])


class _Heard:
    """Topics that messages have told of, rung together.

    Args:
        ring: Rings them.

    Attributes:
        topics: Those that are not rung yet.
    """

    def __init__(self, ring: Callable[[Iterable[str | None]], object]) -> None:
        self._ring = ring
        self._is_resting = False
        self.topics: set[str | None] = set()

    def tell(self) -> None:
        """Ring them now, or soon if there are many all the time."""
        if self._is_resting or not self.topics:
            return
        topics, self.topics = self.topics, set()
        if len(topics) >= _LOAD:
            self._is_resting = True
            asyncio.get_running_loop().call_later(_REST_UNDER_LOAD, self._go_on)
        self._ring(topics)

    def _go_on(self) -> None:
        self._is_resting = False
        self.tell()


@coroutine
def _in_one_go(
    work: Coroutine[Any, Any, None], pause: Callable[[], object]
) -> Generator[Any, Any, None]:
    """Run what takes one thing after another; call *pause* whenever it has to wait for the next.

    Where it would only let others run it goes on: anyio does so before each item of a stream, and a
    round of the event loop for each message is most of what a message costs.
    """
    step: Callable[[Any], Any] = work.send
    argument: Any = None
    left = _MOST_IN_ONE_GO
    try:
        while True:
            awaited = step(argument)
            step, argument = work.send, None
            if awaited is None and left:
                left -= 1
                continue
            pause()
            left = _MOST_IN_ONE_GO
            try:
                yield awaited
            except BaseException as exc:
                step, argument = work.throw, exc
    except StopIteration:
        return
    finally:
        work.close()
