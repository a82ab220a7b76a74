"""A consumer of special tokens: who said what, in process and from text cut anywhere.

The consumer is that of GraphAI's documentation, but asks what a token is instead of what it looks
like, so that text which looks like a token is text. Over a network the same tokens arrive as one
text, cut wherever packets end; `TokenParser` gives them back.

    pip install callbackkit
    python examples/token_consumer.py
"""

import asyncio
import random
from collections.abc import AsyncIterable, AsyncIterator

from callbackkit import Callback, SpecialToken, TokenParser, text
from callbackkit.testing import chop


async def write(callback: Callback) -> None:
    """Stream two nodes; the second writes what looks like the end of the stream."""
    async with callback:
        async with callback.node("search"):
            for token in ("three ", "pages ", "found"):
                await callback.acall(token)
        async with callback.node("answer"):
            for token in ("A stream ends with <graphai", ":END>", ", says page 2."):
                await callback.acall(token)


async def process_stream(tokens: AsyncIterable[str]) -> dict[str, str]:
    """Return what each node said, and how it all ended."""
    said: dict[str, str] = {}
    node = ""
    async for token in tokens:
        if not isinstance(token, SpecialToken):
            said[node] += token
        elif token.kind == "node_start":
            node = token.node or ""
            said[node] = ""
        elif token.kind == "stream_end":
            said["END"] = token.params.get("status", "ok")
    return said


async def parse(chunks: AsyncIterable[bytes]) -> AsyncIterator[str]:
    """Yield the tokens of a text that arrives in chunks."""
    parser = TokenParser()
    async for chunk in chunks:
        for token in parser.feed(chunk):
            yield token
    for token in parser.flush():
        yield token


async def send(callback: Callback, chance: random.Random) -> AsyncIterator[bytes]:
    """Yield the bytes of a response as a network delivers them: cut anywhere."""
    body = b"".join([chunk async for chunk in text(callback)])
    for packet in chop(body, chance):
        yield packet


async def main() -> None:
    callback = Callback()
    await write(callback)
    here = await process_stream(callback.aiter())
    there = await process_stream(parse(send(callback, random.Random())))
    for node, words in there.items():
        print(f"{node}: {words}")
    print("the same from the text as in process:", here == there)


if __name__ == "__main__":
    asyncio.run(main())
