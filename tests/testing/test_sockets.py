"""Connections down to the socket, on either event loop."""

import socket
import ssl
from collections.abc import AsyncIterator

import anyio
import pytest
import trustme

from callbackkit.testing.sockets import GONE, Listener, Wire, dial, dial_any
from tests.testing.wires import TIMEOUT, refused


@pytest.fixture
async def listener() -> AsyncIterator[Listener]:
    listener = Listener()
    listener.open()
    yield listener
    listener.release()


@pytest.fixture
async def ends(listener: Listener) -> AsyncIterator[tuple[Wire, Wire]]:
    """Return the two ends of a connection."""
    with anyio.fail_after(TIMEOUT):
        ends = await dial("127.0.0.1", listener.port), await listener.accept()
    yield ends
    for end in ends:
        end.close()


async def test_who_need_not_wait_lets_others_have_their_turn_all_the_same(ends) -> None:
    """Or one fast peer would keep everybody else waiting."""
    here, there = ends
    turns: list[str] = []

    async def note(turn: str) -> None:
        turns.append(turn)

    async with anyio.create_task_group() as group:
        group.start_soon(note, "while sending")
        for _ in range(100):
            await here.send(b"x")
        assert turns == ["while sending"]
        await there.receive()
        group.start_soon(note, "while receiving")
        for _ in range(100):
            here._socket.send(b"x")
            await there.receive()
        assert turns == ["while sending", "while receiving"]


async def test_small_pieces_are_not_held_back_for_larger_ones(ends) -> None:
    for end in ends:
        assert end._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_closing_ends_who_waits_and_may_come_twice(ends) -> None:
    here, there = ends
    ended: list[bool] = []

    async def wait() -> None:
        with pytest.raises(GONE):
            await here.receive()
        ended.append(True)

    with anyio.fail_after(TIMEOUT):
        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            here.close()
        here.close()
        here.reset()
        assert ended == [True]
        assert await there.receive() == b""
        for verb in (here.receive, lambda: here.send(b"x")):
            with pytest.raises(GONE):
                await verb()


async def start_tls(here: Wire, there: Wire) -> None:
    """Be both sides of a handshake."""
    authority = trustme.CA()
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(serving)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    here._socket = trusting.wrap_socket(
        here._socket, server_hostname="localhost", do_handshake_on_connect=False
    )
    async with anyio.create_task_group() as group:
        group.start_soon(there.start_tls, serving)
        await here._whenever_ready(here._socket.do_handshake, anyio.wait_readable)


@pytest.mark.parametrize("with_tls", [False, True])
async def test_much_is_sent_whole(ends, with_tls: bool) -> None:
    here, there = ends
    much = bytes(range(251)) * 40_000

    async def send() -> None:
        await there.send(much)
        there.end()

    with anyio.fail_after(TIMEOUT):
        if with_tls:
            await start_tls(here, there)
        async with anyio.create_task_group() as group:
            group.start_soon(send)
            got = bytearray()
            while piece := await here.receive():
                got += piece
    assert got == much


async def test_tls_says_what_is_waited_for(ends) -> None:
    """It may have to read before it can write, and the other way round."""
    here, _ = ends
    asked: list[str] = []

    def want_to_read() -> None:
        asked.append("read")
        raise ssl.SSLWantReadError

    def want_to_write() -> str:
        asked.append("write")
        if asked.count("write") < 3:
            raise ssl.SSLWantWriteError
        return "written"

    with anyio.move_on_after(0.05):
        await here._whenever_ready(want_to_read, anyio.wait_writable)
    assert asked == ["read"]
    with anyio.fail_after(TIMEOUT):
        assert await here._whenever_ready(want_to_write, anyio.wait_readable) == "written"


async def test_of_several_addresses_the_first_that_answers_is_taken(listener) -> None:
    silent = Listener()
    to = [(socket.AF_INET, ("127.0.0.1", each.port)) for each in (silent, listener, silent)]
    with anyio.fail_after(TIMEOUT):
        here = await dial_any(to)
        there = await listener.accept()
        with pytest.raises(ConnectionRefusedError):
            await dial_any([to[0], to[2]])
    for wire in (here, there):
        wire.close()
    silent.release()


async def test_dialling_where_nobody_listens_is_an_os_error() -> None:
    listener = Listener()
    with pytest.raises(ConnectionRefusedError):
        await dial("127.0.0.1", listener.port)
    listener.release()


async def test_dialling_that_is_cancelled_leaves_nothing_open(listener) -> None:
    with anyio.CancelScope() as scope:
        scope.cancel()
        await dial("127.0.0.1", listener.port)
    assert scope.cancelled_caught


async def test_a_listener_that_is_closed_while_somebody_accepts_is_accepted_from_later(
    listener,
) -> None:
    wires: list[Wire] = []

    async def accept() -> None:
        wires.append(await listener.accept())

    with anyio.fail_after(TIMEOUT):
        async with anyio.create_task_group() as group:
            group.start_soon(accept)
            await anyio.wait_all_tasks_blocked()
            listener.close()
            assert await refused(listener.port)
            await anyio.wait_all_tasks_blocked()
            listener.open()
            here = await dial("127.0.0.1", listener.port)
    for wire in (here, *wires):
        wire.close()
    assert len(wires) == 1


async def test_what_the_system_refuses_is_raised(listener) -> None:
    listener._socket.shutdown(socket.SHUT_RDWR)
    with anyio.fail_after(TIMEOUT), pytest.raises(OSError, match="Invalid argument"):
        await listener.accept()
