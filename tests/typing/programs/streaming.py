"""Tokens of a run, and those who read them."""

from collections.abc import AsyncIterator
from typing import Any, assert_type

from callbackkit import (
    Callback,
    EventReader,
    SpecialToken,
    StreamEvent,
    TokenFormat,
    TokenParser,
    TokenReader,
    emit_token,
    ndjson,
    run_stream,
    sse,
    text,
)

callback = Callback("myapp", token_format="{token}", history_bytes=1_000, idle_timeout=5)
Callback(history_bytes="many")  # E
Callback("graphai", "<{token}>", "{token}", 1_000)  # E
callback("token")
callback(token="token", node_name="search")
callback(3)  # E
callback.event("tool_use", {"name": "search"})
emit_token("token")
emit_token(None)  # E


async def chunks() -> AsyncIterator[dict[str, str]]:
    yield {"delta": "a"}


async def answer(question: str, callback: Callback) -> int:
    callback(question)
    return len(question)


def plain(question: str) -> str:
    return question


async def main() -> None:
    assert_type(await callback.acall("token"), None)
    await callback.start_node(node_name="a", active=True, params={"k": 1})
    await callback.end_node(node_name="a")
    async with callback.node("a") as span:
        span("token")
        span(3)  # E
    assert_type(callback.aiter(max_lag=3), TokenReader)
    callback.aiter(overflow="drop")  # E
    async for token in callback.aiter():
        assert_type(token, str)
        if isinstance(token, SpecialToken):
            print(token.kind, token.node, token.params["status"])
    assert_type(callback.events(after=3, types=["token"]), EventReader)
    async for event in callback.events():
        assert_type(event, StreamEvent)
        event.seq = 3  # E
    async for batch in callback.aiter().batches():
        assert_type(batch, list[str])
    for one in callback.iter_sync():
        assert_type(one, str)
    assert_type(await callback.pipe(chunks(), key=lambda chunk: chunk["delta"]), str)
    await callback.pipe(chunks(), key=lambda chunk: chunk.delta)  # E
    async with run_stream(answer, "why?", timeout=3.0) as stream:
        async for token in stream:
            print(token)
        assert_type(await stream.result(), int)
    async with run_stream(plain, "why?") as other:
        assert_type(await other.result(), str)
    run_stream(answer, "why?", on_disconnect="forget")  # E
    async for data in sse(callback, last_event_id=None, heartbeat=15.0):
        assert_type(data, bytes)
    async for data in ndjson(callback):
        assert_type(data, bytes)
    async for data in text(callback):
        assert_type(data, bytes)
    await callback.fail(ValueError("why"))
    await callback.fail("why")  # E
    await callback.cancel("enough")
    await callback.close()


parser = TokenParser(TokenFormat("myapp"))
pieces: list[Any] = [*parser.feed("text"), *parser.feed(b"text"), *parser.flush()]
TokenFormat(special_token_format=3)  # E
