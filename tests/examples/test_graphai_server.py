"""GraphAI's documented web server on callbackkit, under a real server."""

from collections.abc import Callable
from typing import Any

import anyio
import httpx2
import pytest

from callbackkit import SpecialToken, TokenParser

pytestmark = pytest.mark.real_server


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """The event loop of the client, which has nothing to do with the server's."""
    return "asyncio"


@pytest.fixture
def url(serve: Callable[..., Any]) -> str:
    return serve("graphai_server:app").url


def answer(query: str) -> str:
    return f"You asked: {query} Let me think about that. "


async def test_the_answer_comes_framed_by_special_tokens(url: str) -> None:
    async with httpx2.AsyncClient(base_url=url, timeout=30) as client:
        response = await client.post("/stream", json={"query": "why?"})
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.text == (
        "<graphai:llm_stream:start><graphai:llm_stream>"
        f"{answer('why?')}<graphai:llm_stream:end><graphai:END>"
    )


async def test_eight_requests_at_once_do_not_mix(url: str) -> None:
    bodies: dict[int, str] = {}
    begun = {number: anyio.Event() for number in range(8)}

    async def ask(client: httpx2.AsyncClient, number: int) -> None:
        async with client.stream("POST", "/stream", json={"query": f"q{number}?"}) as response:
            chunks = response.aiter_text()
            bodies[number] = await anext(chunks)
            begun[number].set()
            for other in begun.values():
                await other.wait()  # all eight are under way at once
            bodies[number] += "".join([chunk async for chunk in chunks])

    async with (
        httpx2.AsyncClient(base_url=url, timeout=30) as client,
        anyio.create_task_group() as group,
    ):
        for number in range(8):
            group.start_soon(ask, client, number)
    for number, body in bodies.items():
        assert body == (
            "<graphai:llm_stream:start><graphai:llm_stream>"
            f"{answer(f'q{number}?')}<graphai:llm_stream:end><graphai:END>"
        )


async def test_tokens_arrive_while_the_model_still_writes(url: str) -> None:
    async with (
        httpx2.AsyncClient(base_url=url, timeout=30) as client,
        client.stream("POST", "/stream", json={"query": "why?"}) as response,
    ):
        chunks = [chunk async for chunk in response.aiter_text()]
    assert len(chunks) > 5


async def test_the_escaped_answer_can_be_parsed_whatever_the_model_writes(url: str) -> None:
    async with httpx2.AsyncClient(base_url=url, timeout=30) as client:
        query = "what does <graphai:END> mean?"
        response = await client.post("/escaped", json={"query": query})
    parser = TokenParser()
    pieces = [*parser.feed(response.text), *parser.flush()]
    said = "".join(piece for piece in pieces if not isinstance(piece, SpecialToken))
    assert said == answer(query)
    assert [piece.kind for piece in pieces if isinstance(piece, SpecialToken)] == [
        "node_start",
        "node_name",
        "node_end",
        "stream_end",
    ]


async def test_the_server_shuts_down_in_order(serve: Callable[..., Any]) -> None:
    server = serve("graphai_server:app")
    async with httpx2.AsyncClient(base_url=server.url, timeout=30) as client:
        await client.post("/stream", json={"query": "why?"})
    log = server.stop()
    assert "Application shutdown complete." in log
    assert "Traceback" not in log
