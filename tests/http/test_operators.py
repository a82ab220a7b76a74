"""The events of all sessions as one stream."""

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import attrs
import pytest

from callbackkit import CallbackManager, LimitError, Limits
from callbackkit.http.operators import serve_firehose
from callbackkit.sessions.firehose import Firehose
from tests.http.rig import PATIENCE, Connection


@attrs.frozen
class Serving:
    """An ASGI application that serves one firehose."""

    manager: CallbackManager
    heartbeat: float = 15.0
    write_timeout: float | None = None
    opened: list[Firehose] = attrs.Factory(list)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        del scope
        firehose = self.manager.firehose()
        self.opened.append(firehose)
        await firehose.__aenter__()
        await serve_firehose(
            firehose,
            receive,
            send,
            heartbeat=self.heartbeat,
            write_timeout=self.write_timeout,
            headers=[(b"vary", b"Origin")],
        )


@asynccontextmanager
async def reading(app: Serving, **options: Any) -> AsyncGenerator[Connection]:
    """A client that is there as long as the block lasts."""
    client = Connection(app, "/", **options)
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.run)
            yield client
            client.left.set()


async def test_events_of_any_session_have_no_ids() -> None:
    async with CallbackManager() as manager, reading(Serving(manager)) as client:
        await client.until(lambda: len(client.messages) > 1)
        for n in range(3):
            session = await manager.create_session()
            await session.emit("n", {"n": n})
        await client.until(lambda: len(client.events) == 3)
        assert [json.loads(event.data)["data"]["n"] for event in client.events] == [0, 1, 2]
        assert b"id:" not in client.body
        assert client.answered["content-type"].startswith("text/event-stream")
        assert client.answered["vary"] == "Origin"


async def test_silence_is_broken_by_comments() -> None:
    async with CallbackManager() as manager, reading(Serving(manager, 0.01)) as client:
        await client.until(lambda: client.body.count(b":") > 3)
        assert client.events == []
        session = await manager.create_session()
        await session.progress(0.5)
        await client.until(lambda: client.events)


async def test_a_drain_asks_the_client_to_come_back() -> None:
    async with CallbackManager() as manager, reading(Serving(manager)) as client:
        await client.until(lambda: len(client.messages) > 1)
        manager.begin_drain()
        await client.until_done()
        assert b"retry: 1000" in client.body
        assert client.messages[-1] == {"type": "http.response.body", "body": b""}


async def test_a_client_that_does_not_read_is_given_up() -> None:
    app = Serving(CallbackManager(limits=Limits(max_readers=1)), write_timeout=0.05)
    async with app.manager, reading(app, reads=False) as client:
        await client.until_done()
        # Its place is free.
        async with app.manager.firehose():
            pass


async def test_a_client_that_leaves_is_let_go() -> None:
    app = Serving(CallbackManager(limits=Limits(max_readers=1)))
    async with app.manager, reading(app) as client:
        await client.until(lambda: len(client.messages) > 1)
        with pytest.raises(LimitError):
            await app.manager.firehose().__aenter__()
        client.left.set()
        await client.until_done()
        async with app.manager.firehose():
            pass


async def test_a_send_that_fails_is_a_client_that_left() -> None:
    async with CallbackManager() as manager:

        async def receive() -> Any:
            await anyio.sleep_forever()

        async def send(message: Any) -> None:
            del message
            raise OSError("broken pipe")

        with anyio.fail_after(PATIENCE):
            await Serving(manager)({}, receive, send)
