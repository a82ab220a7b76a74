"""A client that leaves ends what is done for it, and nothing else does."""

from typing import Any

import anyio
import pytest

from callbackkit import StoreError
from callbackkit.http.leaving import unless_gone
from tests.http.rig import PATIENCE


class Client:
    """Sends a body in two pieces; leaves when it is told to."""

    def __init__(self) -> None:
        self.left = anyio.Event()
        self.sent: list[Any] = [{"type": "http.request"}, {"type": "http.request"}]

    async def receive(self) -> Any:
        if self.sent:
            return self.sent.pop()
        await self.left.wait()
        return {"type": "http.disconnect"}


async def test_what_is_asked_for_is_returned() -> None:
    async def ask() -> int:
        await anyio.lowlevel.checkpoint()
        return 5

    assert await unless_gone(Client().receive, ask) == 5


async def test_a_client_that_leaves_gets_nothing() -> None:
    client = Client()
    was_cancelled = False

    async def ask() -> int:
        nonlocal was_cancelled
        client.left.set()
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            was_cancelled = True
            raise
        return 5

    with anyio.fail_after(PATIENCE):
        assert await unless_gone(client.receive, ask) is None
    assert was_cancelled


async def test_an_error_comes_by_itself() -> None:
    async def ask() -> int:
        await anyio.lowlevel.checkpoint()
        raise StoreError("away")

    with pytest.raises(StoreError, match="away"):
        await unless_gone(Client().receive, ask)
