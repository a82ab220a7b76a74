"""A proxy that misbehaves as a test says, between real clients and a real server."""

import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Self

import anyio
import anyio.to_thread
import httpx2
import pytest

from callbackkit.testing import FaultProxy, FaultyReceiver
from tests.testing.wires import TIMEOUT, Client, refused


class Server:
    """Takes connections in a thread; the test speaks for it."""

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._listening.settimeout(TIMEOUT)
        self.port = self._listening.getsockname()[1]
        self._open: list[socket.socket] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listening.close()
        for one in self._open:
            one.close()

    async def accept(self) -> Client:
        accepted, _ = await anyio.to_thread.run_sync(self._listening.accept)
        accepted.settimeout(TIMEOUT)
        self._open.append(accepted)
        return Client(accepted)

    async def is_left_alone(self, seconds: float = 0.2) -> bool:
        """Tell whether nobody comes for a while."""
        self._listening.settimeout(seconds)
        try:
            await self.accept()
        except TimeoutError:
            return True
        finally:
            self._listening.settimeout(TIMEOUT)
        return False


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with Server() as server:
        yield server


@pytest.fixture
async def proxy(server: Server) -> AsyncIterator[FaultProxy]:
    async with FaultProxy("127.0.0.1", server.port) as proxy:
        yield proxy


@pytest.fixture
async def client(proxy: FaultProxy) -> AsyncIterator[Client]:
    async with await Client.to(proxy.port) as client:
        yield client


@pytest.fixture
async def peer(client: Client, server: Server) -> Client:
    """Return the other end of the client's connection."""
    return await server.accept()


async def until(is_true: Callable[[], bool]) -> None:
    """Let everybody else go on until it is true, but not for ever."""
    with anyio.fail_after(TIMEOUT):
        while not is_true():
            await anyio.lowlevel.checkpoint()


async def passes(client: Client, peer: Client, size: int = 4) -> None:
    """See that bytes pass both ways."""
    await client.send(b"?" * size)
    assert await peer.exactly(size) == b"?" * size
    await peer.send(b"!" * size)
    assert await client.exactly(size) == b"!" * size


# A good network.


async def test_bytes_pass_both_ways_and_are_counted(proxy, client, peer) -> None:
    await passes(client, peer, 10)
    await client.send(b"more")
    await peer.exactly(4)
    await until(lambda: proxy.bytes_to_server == 14)
    assert (proxy.bytes_to_client, proxy.connections, proxy.accepted) == (10, 1, 1)


async def test_much_passes_whole_and_in_order(proxy, client, peer) -> None:
    much = bytes(range(256)) * 20_000
    async with anyio.create_task_group() as group:
        group.start_soon(client.send, much)
        group.start_soon(peer.send, much[::-1])
        assert await peer.exactly(len(much)) == much
        assert await client.exactly(len(much)) == much[::-1]


async def test_a_slow_reader_is_not_read_ahead_of(proxy, client, peer) -> None:
    """What the server has not taken stays with the client: the proxy keeps a piece at most."""
    sent = 0

    def fill() -> int:
        client.socket.settimeout(0.5)
        count = 0
        try:
            while count < 200_000_000:
                count += client.socket.send(b"x" * 65_536)
        except TimeoutError:
            pass
        return count

    sent = await anyio.to_thread.run_sync(fill)
    assert sent < 100_000_000
    client.end()
    assert len((await peer.rest())[0]) == sent


async def test_an_end_passes_and_the_other_direction_goes_on(client, peer) -> None:
    await client.send(b"all")
    client.end()
    assert await peer.rest() == (b"all", "in order")
    await peer.send(b"an answer")
    peer.socket.close()
    assert await client.rest() == (b"an answer", "in order")


async def test_an_end_of_the_server_passes(proxy, client, peer) -> None:
    peer.end()
    assert await client.rest() == (b"", "in order")
    await client.send(b"still")
    assert await peer.exactly(5) == b"still"
    client.end()
    await until(lambda: proxy.connections == 0)


async def test_a_reset_by_the_client_passes(proxy, client, peer) -> None:
    client.reset()
    assert await peer.rest() == (b"", "reset")
    await until(lambda: proxy.connections == 0)


async def test_a_reset_by_the_server_passes(proxy, client, peer) -> None:
    peer.reset()
    assert await client.rest() == (b"", "reset")
    await until(lambda: proxy.connections == 0)


async def test_a_server_that_is_not_there_is_a_reset_and_may_come_later(proxy, server) -> None:
    port, _ = server.port, server._listening.close()
    async with await Client.to(proxy.port) as client:
        assert await client.rest() == (b"", "reset")
    await until(lambda: proxy.connections == 0)
    server._listening = socket.create_server(("127.0.0.1", port))
    async with await Client.to(proxy.port) as client:
        await passes(client, await server.accept())


async def test_a_host_is_dialled_at_all_its_addresses(server) -> None:
    """The server is at 127.0.0.1 alone, and localhost is ::1 as well on many machines."""
    async with FaultProxy("localhost", server.port) as proxy, await Client.to(proxy.port) as client:
        await passes(client, await server.accept())


async def test_a_host_that_is_nowhere_is_a_reset() -> None:
    async with (
        FaultProxy("nowhere.invalid", 80) as proxy,
        await Client.to(proxy.port) as client,
    ):
        assert await client.rest() == (b"", "reset")


# A slow one.


async def test_a_delay_holds_up_each_piece_both_ways(proxy, client, peer) -> None:
    await passes(client, peer)
    proxy.delay(0.1)
    before = time.monotonic()
    await passes(client, peer)
    assert time.monotonic() - before >= 0.2


async def test_a_delay_holds_for_new_connections(proxy, server) -> None:
    proxy.delay(0.1)
    async with await Client.to(proxy.port) as client:
        before = time.monotonic()
        await passes(client, await server.accept())
        assert time.monotonic() - before >= 0.2


async def test_what_is_delayed_arrives_when_the_network_gets_better(proxy, client, peer) -> None:
    proxy.delay(3600)
    await client.send(b"held")
    assert await peer.is_silent()
    proxy.pass_on()
    assert await peer.exactly(4) == b"held"


async def test_a_shorter_delay_holds_for_what_is_on_its_way(proxy, client, peer) -> None:
    proxy.delay(3600)
    await client.send(b"held")
    assert await peer.is_silent(0.05)
    proxy.delay(0.1)
    assert await peer.exactly(4) == b"held"


async def test_a_delay_of_nothing_is_none(proxy, client, peer) -> None:
    proxy.delay(0)
    await passes(client, peer)


# A black hole.


async def test_nothing_passes_a_black_hole_and_all_of_it_arrives_afterwards(
    proxy, client, peer
) -> None:
    await passes(client, peer)
    proxy.black_hole()
    for piece in (b"one ", b"two ", b"three"):
        await client.send(piece)
    await peer.send(b"answer")
    assert await peer.is_silent()
    assert await client.is_silent()
    proxy.pass_on()
    assert await peer.exactly(13) == b"one two three"
    assert await client.exactly(6) == b"answer"


async def test_a_black_hole_accepts_whom_nobody_will_hear(proxy, server) -> None:
    proxy.black_hole()
    async with await Client.to(proxy.port) as client:
        await client.send(b"?")
        assert await server.is_left_alone()
        proxy.pass_on()
        peer = await server.accept()
        assert await peer.exactly(1) == b"?"


async def test_in_a_black_hole_nobody_hears_that_a_side_has_left(proxy, client, peer) -> None:
    proxy.black_hole()
    client.end()
    assert await peer.is_silent()
    proxy.pass_on()
    assert await peer.rest() == (b"", "in order")
    proxy.black_hole()
    peer.socket.close()
    assert await client.is_silent()
    proxy.pass_on()
    assert await client.rest() == (b"", "in order")


# A broken one.


async def test_a_reset_reaches_both_sides_and_no_later_connection(proxy, server) -> None:
    async with await Client.to(proxy.port) as client:
        peer = await server.accept()
        await passes(client, peer)
        proxy.reset()
        assert await client.rest() == (b"", "reset")
        assert await peer.rest() == (b"", "reset")
    await until(lambda: proxy.connections == 0)
    async with await Client.to(proxy.port) as client:
        await passes(client, await server.accept())


@pytest.mark.parametrize("hold", [FaultProxy.black_hole, lambda proxy: proxy.delay(3600)])
async def test_a_reset_ends_what_is_held_up(proxy, client, peer, hold: Any) -> None:
    hold(proxy)
    await client.send(b"held")
    assert await peer.is_silent()
    proxy.reset()
    assert (await client.rest())[1] == "reset"
    assert await peer.rest() == (b"", "reset")
    await until(lambda: proxy.connections == 0)


async def test_a_connection_that_is_reset_in_a_black_hole_never_reaches_the_server(
    proxy, server
) -> None:
    proxy.black_hole()
    async with await Client.to(proxy.port) as client:
        await until(lambda: proxy.connections == 1)
        proxy.reset()
        assert await client.rest() == (b"", "reset")
    await until(lambda: proxy.connections == 0)
    proxy.pass_on()
    assert await server.is_left_alone()


async def test_refusing_resets_those_there_and_refuses_those_to_come(proxy, client, peer) -> None:
    proxy.refuse()
    assert await client.rest() == (b"", "reset")
    assert await peer.rest() == (b"", "reset")
    assert await refused(proxy.port)
    proxy.refuse()
    assert await refused(proxy.port)


@pytest.mark.parametrize(
    "change",
    [
        FaultProxy.pass_on,
        FaultProxy.black_hole,
        lambda proxy: proxy.delay(0.01),
        lambda proxy: proxy.cut(after=1),
    ],
    ids=["pass_on", "black_hole", "delay", "cut"],
)
async def test_anything_but_refusing_opens_the_same_port_again(proxy, server, change: Any) -> None:
    port = proxy.port
    for _ in range(5):
        proxy.refuse()
        assert await refused(port)
        change(proxy)
        assert not await refused(port)
    proxy.pass_on()
    proxy.reset()
    assert proxy.port == port


async def test_a_reset_leaves_a_refusing_port_closed(proxy) -> None:
    proxy.refuse()
    proxy.reset()
    assert await refused(proxy.port)


@pytest.mark.parametrize("after", [0, 1, 5, 10])
async def test_a_connection_is_cut_when_so_much_of_the_answers_has_passed(
    proxy, client, peer, after: int
) -> None:
    await passes(client, peer)
    proxy.cut(after=after)
    await client.send(b"requests pass")
    assert await peer.exactly(13) == b"requests pass"
    await peer.send(b"0123")
    if after > 4:
        assert await client.exactly(4) == b"0123"
        await peer.send(b"456789")
        assert await client.rest() == (b"456789"[: after - 4], "in order")
    else:
        assert await client.rest() == (b"0123"[:after], "in order")
    assert proxy.bytes_to_client == 4 + after
    await until(lambda: proxy.connections == 0)


async def test_each_new_connection_is_cut_after_the_same_number(proxy, server) -> None:
    proxy.cut(after=3)
    for _ in range(2):
        async with await Client.to(proxy.port) as client:
            peer = await server.accept()
            await peer.send(b"0123456")
            assert await client.rest() == (b"012", "in order")
            await until(lambda: proxy.connections == 0)


async def test_what_passed_before_does_not_count_and_a_cut_is_taken_back(
    proxy, client, peer
) -> None:
    proxy.cut(after=10)
    await peer.send(b"012345678")
    await client.exactly(9)
    proxy.cut(after=10)
    await peer.send(b"012345678")
    await client.exactly(9)
    proxy.pass_on()
    await passes(client, peer, 100)


# A failover.


async def test_who_comes_after_a_failover_meets_another_server(proxy, client, peer) -> None:
    async with Server() as other:
        proxy.lead_to("127.0.0.1", other.port)
        await passes(client, peer)
        async with await Client.to(proxy.port) as later:
            await passes(later, await other.accept())
        await passes(client, peer)


async def test_a_failover_changes_no_weather(proxy) -> None:
    async with Server() as other:
        proxy.refuse()
        proxy.lead_to("127.0.0.1", other.port)
        assert await refused(proxy.port)
        proxy.black_hole()
        async with await Client.to(proxy.port) as client:
            await client.send(b"?")
            # Where it leads is asked when it is left to pass.
            proxy.pass_on()
            assert await (await other.accept()).exactly(1) == b"?"


# Its life.


async def test_leaving_ends_connections_whatever_the_weather(server) -> None:
    with anyio.fail_after(TIMEOUT):
        async with FaultProxy("127.0.0.1", server.port) as proxy:
            clients = [await Client.to(proxy.port)]
            peer = await server.accept()
            await clients[0].send(b"first")
            await peer.exactly(5)
            proxy.black_hole()
            clients.append(await Client.to(proxy.port))
            await clients[0].send(b"second")
            await until(lambda: proxy.connections == 2)
        for client in clients:
            async with client:
                await client.rest()
        await peer.rest()
        assert await refused(proxy.port)
    assert proxy.connections == 0


async def test_what_the_test_raises_comes_out_as_it_is(server) -> None:
    with pytest.raises(ZeroDivisionError):
        async with FaultProxy("127.0.0.1", server.port):
            _ = 1 / 0


async def test_it_says_where_it_is_and_what_it_does(server) -> None:
    proxy = FaultProxy("127.0.0.1", server.port)
    assert repr(proxy) == "<FaultProxy not started, 0 open, passing on>"
    with pytest.raises(RuntimeError, match="not started; enter it by 'async with'"):
        proxy.refuse()
    async with proxy:
        where = f"<FaultProxy at port {proxy.port}, 0 open, "
        said = []
        for change in (
            proxy.refuse,
            proxy.black_hole,
            lambda: proxy.delay(0.5),
            lambda: proxy.cut(after=3),
            proxy.pass_on,
        ):
            change()
            said.append(repr(proxy).removeprefix(where))
    assert said == [
        "refusing>",
        "a black hole>",
        "delaying by 0.5 s>",
        "cutting after 3 bytes>",
        "passing on>",
    ]
    assert proxy.host == "127.0.0.1"


async def test_what_can_not_be_is_a_value_error_and_changes_nothing(proxy) -> None:
    proxy.refuse()
    for seconds in (-1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="seconds must be 0 or more"):
            proxy.delay(seconds)
    with pytest.raises(ValueError, match="after must be 0 or more bytes, not -1"):
        proxy.cut(after=-1)
    assert await refused(proxy.port)


# Real clients.


async def test_a_client_of_http_meets_each_weather() -> None:
    async with (
        FaultyReceiver() as receiver,
        FaultProxy("127.0.0.1", receiver.port) as proxy,
        httpx2.AsyncClient(timeout=TIMEOUT, trust_env=False) as client,
    ):
        url = f"http://{proxy.host}:{proxy.port}/"
        assert (await client.post(url)).status_code == 204
        proxy.black_hole()
        with pytest.raises(httpx2.TimeoutException):
            await client.post(url, timeout=0.2)
        proxy.pass_on()
        proxy.refuse()
        with pytest.raises(httpx2.NetworkError):
            await client.post(url)
        with pytest.raises(httpx2.ConnectError):
            await client.post(url)
        proxy.cut(after=5)
        with pytest.raises(httpx2.RemoteProtocolError):
            await client.post(url)
        proxy.delay(0.01)
        assert (await client.post(url)).status_code == 204


async def test_many_connections_at_once_are_kept_apart(proxy, server) -> None:
    def echo(connected: socket.socket) -> None:
        with connected:
            while data := connected.recv(65_536):
                connected.sendall(data)

    async def speak(number: int) -> None:
        async with await Client.to(proxy.port) as client:
            said = b"%d," % number * 1_000
            await client.send(said)
            assert await client.exactly(len(said)) == said

    threads = []
    with anyio.fail_after(TIMEOUT):
        async with anyio.create_task_group() as group:
            for number in range(20):
                group.start_soon(speak, number)
            for _ in range(20):
                peer = await server.accept()
                threads.append(threading.Thread(target=echo, args=[peer.socket]))
                threads[-1].start()
    for thread in threads:
        await anyio.to_thread.run_sync(thread.join)
    assert proxy.accepted == 20
