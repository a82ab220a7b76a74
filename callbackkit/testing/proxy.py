"""A network between a client and a server, for tests, that misbehaves as it is told."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Final, Self

import anyio
import attrs

from callbackkit.testing.serving import Service
from callbackkit.testing.sockets import GONE, HOST, Wire, dial
from callbackkit.testing.waiting import Bell

__all__ = ["FaultProxy"]


@attrs.frozen
class _Weather:
    """How things are with the network.

    Attributes:
        name: What that is called.
        delay: Seconds that everything takes on its way; without end where nothing arrives.
        cut: Bytes of answers after which a connection is closed.
    """

    name: str
    delay: float = 0.0
    cut: int | None = None


_FAIR: Final = _Weather("passing on")


@attrs.define(eq=False)
class _Link:
    """A connection of a client, and the one to the server that belongs to it."""

    client: Wire
    server: Wire | None = None
    #: Bytes of answers until it is closed.
    left: int | None = None
    is_over: bool = False

    def reset(self) -> None:
        self._end(Wire.reset)

    def close(self) -> None:
        self._end(Wire.close)

    def _end(self, verb: Callable[[Wire], None]) -> None:
        self.is_over = True
        verb(self.client)
        if self.server is not None:
            verb(self.server)


class FaultProxy:
    """Passes TCP on between clients and a server: late, in part or not at all, if a test says so.

    Whatever speaks to a server over TCP is to survive the network between them::

        async with FaultProxy("127.0.0.1", 6379) as proxy:
            ...  # connect the client to proxy.host and proxy.port
            proxy.black_hole()
            ...  # see that it gives up
            proxy.pass_on()
            ...  # see that it comes back

    What a method says holds at once, for connections that are there and for those to come, until
    another one says something else. The port stays the same, whichever server it leads to. Leaving
    ``async with`` closes everything.

    Args:
        host: Where the server is.
        port: Its port.
    """

    host: str = HOST

    def __init__(self, host: str, port: int) -> None:
        self._server = (host, port)
        self._weather = _FAIR
        self._bell = Bell()
        self._links: set[_Link] = set()
        self._service = Service("proxy", self._meet)
        #: Connections that were accepted so far.
        self.accepted: int = 0
        #: Bytes that were passed on to the server so far, and to its clients.
        self.bytes_to_server: int = 0
        self.bytes_to_client: int = 0

    def __repr__(self) -> str:
        where = f"at port {self.port}" if self._service.is_started else "not started"
        return f"<FaultProxy {where}, {self.connections} open, {self._weather.name}>"

    # Its life.

    async def __aenter__(self) -> Self:
        await self._service.__aenter__()
        return self

    async def __aexit__(self, *_exc_info: object) -> None:
        await self._service.__aexit__()

    @property
    def port(self) -> int:
        """Where it listens, on 127.0.0.1."""
        return self._service.listener.port

    @property
    def connections(self) -> int:
        """Connections of clients that are there now."""
        return len(self._links)

    # The weather.

    def pass_on(self) -> None:
        """Be a good network: everything passes, what was held back first."""
        self._change(_FAIR)

    def delay(self, seconds: float) -> None:
        """Let every piece take that long, in each direction.

        Raises:
            ValueError: *seconds* is negative or not finite.
        """
        if not 0 <= seconds < math.inf:
            raise ValueError(f"seconds must be 0 or more, not {seconds!r}")
        self._change(_Weather(f"delaying by {seconds} s", delay=seconds))

    def black_hole(self) -> None:
        """Accept connections and pass nothing, not even that a side has left.

        What is sent is kept: it arrives, late, if the network gets better again.
        """
        self._change(_Weather("a black hole", delay=math.inf))

    def cut(self, *, after: int) -> None:
        """Close each connection as soon as *after* more bytes of answers have passed on it.

        Raises:
            ValueError: *after* is negative.
        """
        if after < 0:
            raise ValueError(f"after must be 0 or more bytes, not {after!r}")
        self._change(_Weather(f"cutting after {after} bytes", cut=after))

    def refuse(self) -> None:
        """Refuse connections, and reset those there are: the machine is there, the server not."""
        self._change(_Weather("refusing"), is_open=False)
        self.reset()

    def reset(self) -> None:
        """Reset (RST) the connections there are, on both sides; nothing else changes."""
        for link in list(self._links):
            link.reset()
        self._bell.ring()

    def lead_to(self, host: str, port: int) -> None:
        """Connect whoever comes from now on to another server, as a failover does.

        The connections there are stay where they are, and nothing else changes.
        """
        self._server = (host, port)

    def _change(self, weather: _Weather, *, is_open: bool = True) -> None:
        listener = self._service.listener
        self._weather = weather
        for link in self._links:
            link.left = weather.cut
        self._bell.ring()
        if is_open:
            listener.open()
        else:
            listener.close()

    # Passing on.

    def _meet(self, wire: Wire) -> Callable[[], Coroutine[Any, Any, None]]:
        link = _Link(wire, left=self._weather.cut)
        self.accepted += 1
        self._links.add(link)
        return partial(self._join, link)

    async def _join(self, link: _Link) -> None:
        try:
            await self._let_pass(link)
            if link.is_over:
                return
            link.server = await dial(*self._server)
            async with anyio.create_task_group() as group:
                group.start_soon(self._pass_requests, link, link.server)
                group.start_soon(self._pass_answers, link, link.server)
        except GONE:
            link.reset()  # the server could not be reached
        finally:
            self._links.discard(link)
            link.close()

    async def _pass_requests(self, link: _Link, server: Wire) -> None:
        try:
            while data := await link.client.receive():
                await self._let_pass(link)
                await server.send(data)
                self.bytes_to_server += len(data)
            await self._let_pass(link)
            server.end()
        except GONE:
            server.reset()

    async def _pass_answers(self, link: _Link, server: Wire) -> None:
        try:
            while data := await server.receive():
                await self._let_pass(link)
                passing = data if link.left is None else data[: link.left]
                if link.left is not None:
                    link.left -= len(passing)
                await link.client.send(passing)
                self.bytes_to_client += len(passing)
                if link.left == 0:
                    link.close()
                    return
            await self._let_pass(link)
            link.client.end()
        except GONE:
            link.client.reset()

    async def _let_pass(self, link: _Link) -> None:
        """Wait as long as a piece that has just come is held back."""
        came = time.monotonic()
        while (left := self._left(link, came)) > 0:
            is_changed = partial(self._is_changed, self._weather, link)
            await self._bell.wait_until(is_changed, left if left < math.inf else None)

    def _left(self, link: _Link, came: float) -> float:
        """Return the seconds that are left; none where nothing is to be passed any more."""
        return 0.0 if link.is_over else came + self._weather.delay - time.monotonic()

    def _is_changed(self, weather: _Weather, link: _Link) -> bool:
        return self._weather is not weather or link.is_over
