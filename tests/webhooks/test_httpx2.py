"""What is particular to posting with httpx2; the rest is in test_senders.py."""

import subprocess
import sys

import anyio
import pytest

from callbackkit.errors import SendError
from callbackkit.testing import FaultyReceiver
from callbackkit.testing.receiver import Garbage
from callbackkit.webhooks.httpx2 import Httpx2Sender
from tests.webhooks.sender_rig import OK, Peer, post, running, serving, silent


def test_a_missing_package_is_named_with_the_extra() -> None:
    program = "import sys; sys.modules['httpcore2'] = None; import callbackkit.webhooks.httpx2"
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert "needs httpx2: install callbackkit[webhook-trio]" in ended.stderr


async def test_a_request_whose_answer_has_begun_is_not_sent_again() -> None:
    async with FaultyReceiver() as receiver, running(Httpx2Sender()) as sender:
        receiver.script(204, Garbage(b"HTTP/1.1 2"))
        assert (await sender.send(post(receiver.url))).status == 204
        with pytest.raises(SendError, match="no valid HTTP answer"):
            await sender.send(post(receiver.url))
        assert len(receiver.requests) == 2


async def test_a_request_is_one_packet() -> None:
    """Head and body together: what a receiver gets of it first is all of it."""
    firsts = []

    async def handle(peer: Peer) -> None:
        firsts.append(await peer.receive())
        await peer.send(OK)

    async with serving(handle) as server, running(Httpx2Sender()) as sender:
        await sender.send(post(server.url, b"all of it"))
    assert firsts[0].endswith(b"\r\n\r\nall of it")


async def test_being_cancelled_between_two_addresses_leaks_nothing() -> None:
    sender = Httpx2Sender(find=lambda _: ["127.0.0.5", "127.0.0.6"])
    async with FaultyReceiver() as receiver, running(sender):
        with silent("127.0.0.5", receiver.port), silent("127.0.0.6", receiver.port):
            with anyio.move_on_after(0.4) as deadline:
                await sender.send(post(f"http://a.example:{receiver.port}/"))
    assert deadline.cancelled_caught
