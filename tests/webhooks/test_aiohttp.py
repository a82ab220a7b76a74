"""What is particular to posting with aiohttp; the rest is in test_senders.py."""

import subprocess
import sys

import pytest

from callbackkit.errors import ForbiddenAddressError, SendError
from callbackkit.testing import FaultyReceiver
from callbackkit.testing.receiver import Answer, Garbage, Reset
from callbackkit.webhooks.aiohttp import AiohttpSender
from callbackkit.webhooks.guard import Guard
from tests.webhooks.sender_rig import (
    Authority,
    answers,
    leave_unread,
    post,
    running,
    serving,
)


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """Where aiohttp runs, as many servers have it: it has sockets of its own."""
    return "asyncio", {"use_uvloop": True}


def test_a_missing_package_is_named_with_the_extra() -> None:
    program = "import sys; sys.modules['aiohttp'] = None; import callbackkit.webhooks.aiohttp"
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert "needs aiohttp: install callbackkit[webhook]" in ended.stderr


async def test_uvloop_keeps_connections_and_replaces_those_that_were_closed() -> None:
    async with FaultyReceiver() as receiver, running(AiohttpSender()) as sender:
        receiver.script(204, Answer(500, body=b"no"), Garbage(b""), 204, 204, Reset())
        for status in (204, 500, 204, 204, 204):
            assert (await sender.send(post(receiver.url))).status == status
        connections = [each.connection for each in receiver.requests]
        assert connections == [1, 1, 1, 2, 3, 3, 4]


async def test_uvloop_dials_no_forbidden_address() -> None:
    guard = Guard(allowed_networks=["127.0.0.1/32"], require_https=False)
    sender = AiohttpSender(find=lambda _: ["127.0.0.2", "127.0.0.1"])
    async with serving(answers) as server, running(sender, guard):
        assert (await sender.send(post(f"http://a.example:{server.port}/"))).status == 204
        with pytest.raises(ForbiddenAddressError):
            await sender.send(post(f"http://127.0.0.2:{server.port}/"))
        assert [peer.host for peer in server.peers] == ["127.0.0.1"]


async def test_uvloop_leaves_who_does_not_read_at_the_deadline() -> None:
    async with running(AiohttpSender()) as sender:
        await leave_unread(sender)


async def test_uvloop_has_errors_of_ours() -> None:
    authority = Authority()
    context = authority.server(authority.issue("b.example"))
    sender = AiohttpSender(ssl_context=authority.trusting(), find=lambda _: ["127.0.0.1"])
    async with running(sender):
        async with FaultyReceiver(ssl_context=context) as receiver:
            with pytest.raises(SendError, match="the certificate is not valid for the host"):
                await sender.send(post(f"https://a.example:{receiver.port}/"))
            assert (await sender.send(post(f"https://b.example:{receiver.port}/"))).status == 204
            port = receiver.port
        with pytest.raises(SendError, match="could not connect"):
            await sender.send(post(f"https://a.example:{port}/"))
