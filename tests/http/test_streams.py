"""Answers that last: their headers, and what is entered meanwhile."""

import re
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from callbackkit.http.streams import Stream, come_back, only_head
from tests.http.rig import Connection


async def test_a_stream_is_sent_with_its_headers() -> None:
    log: list[str] = []

    @contextmanager
    def logged() -> Any:
        log.append("in")
        yield
        log.append("out")

    async def serve(receive: Any, send: Any, headers: list[tuple[bytes, bytes]]) -> None:
        log.append("serve")
        assert (await receive())["type"] == "http.request"
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"x"})

    stream = Stream(serve)
    stream.headers["X-More"] = "1"
    meanwhile: AbstractContextManager[None] = logged()
    stream.meanwhile = meanwhile
    client = Connection(stream, "/")
    await client.run()
    assert client.answered == {"x-more": "1"}
    assert client.body == b"x"
    assert log == ["in", "serve", "out"]


async def test_whoever_is_to_come_back_is_told_when() -> None:
    client = Connection(come_back(), "/")
    await client.run()
    assert client.status == 200
    assert client.answered["content-type"].startswith("text/event-stream")
    told = re.fullmatch(rb"retry: ([0-9]+)\n\n", client.body)
    assert told is not None
    assert 500 <= int(told[1]) <= 3_000


async def test_a_head_is_headers_alone() -> None:
    client = Connection(only_head(), "/")
    await client.run()
    assert client.status == 200
    assert "content-length" not in client.answered
    assert client.answered["content-type"].startswith("text/event-stream")
    assert client.body == b""
