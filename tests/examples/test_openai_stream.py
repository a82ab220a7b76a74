"""A model's answer in the browser: OpenAI's client against a server of its wire format."""

import json
from collections.abc import Callable
from typing import Any

import anyio
import httpx2
import openai
import pytest

from callbackkit.wire.eventstream import EventStreamReader, ServerSentEvent

pytestmark = pytest.mark.real_server


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """The event loop of the client, which has nothing to do with the server's."""
    return "asyncio"


@pytest.fixture
def model(serve: Callable[..., Any]) -> Any:
    return serve("local_model:app")


@pytest.fixture
def page(serve: Callable[..., Any], model: Any) -> Any:
    return serve(
        "openai_stream:app",
        OPENAI_BASE_URL=f"{model.url}/v1",
        OPENAI_API_KEY="none",
        MODEL="parrot",
    )


async def events_of(client: httpx2.AsyncClient, query: str, **headers: str) -> list[Any]:
    async with client.stream("GET", "/chat", params={"query": query}, headers=headers) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        reader = EventStreamReader()
        events = [event async for chunk in response.aiter_bytes() for event in reader.feed(chunk)]
        return events + reader.flush()


def said(events: list[ServerSentEvent]) -> str:
    data = [json.loads(event.data) for event in events]
    return "".join(one["token"] for one in data if one["type"] == "token")


# The model itself, asked by OpenAI's client alone.


async def test_the_model_speaks_the_wire_format(model: Any) -> None:
    async with openai.AsyncOpenAI(base_url=f"{model.url}/v1", api_key="none") as client:
        stream = await client.chat.completions.create(
            model="parrot", messages=[{"role": "user", "content": "Hello!"}], stream=True
        )
        chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == "You said: Hello!"
    assert chunks[-1].choices[0].finish_reason == "stop"


async def test_an_unknown_model_is_refused(model: Any) -> None:
    async with openai.AsyncOpenAI(base_url=f"{model.url}/v1", api_key="none") as client:
        with pytest.raises(openai.NotFoundError, match="no model gpt-1"):
            await client.chat.completions.create(
                model="gpt-1", messages=[{"role": "user", "content": "?"}], stream=True
            )


# In the browser.


async def test_the_answer_reaches_the_browser_token_by_token(page: Any) -> None:
    async with httpx2.AsyncClient(base_url=page.url, timeout=30) as client:
        events = await events_of(client, "Hello!")
    kinds = [json.loads(event.data)["type"] for event in events]
    assert kinds == ["node_start", "node_name", *["token"] * 4, "node_end", "stream_end"]
    assert said(events) == "You said: Hello!"
    assert json.loads(events[-1].data)["status"] == "ok"


async def test_eight_questions_at_once_do_not_mix(page: Any) -> None:
    answers: dict[str, str] = {}

    async def ask(client: httpx2.AsyncClient, query: str) -> None:
        answers[query] = said(await events_of(client, query))

    async with (
        httpx2.AsyncClient(base_url=page.url, timeout=30) as client,
        anyio.create_task_group() as group,
    ):
        for number in range(8):
            group.start_soon(ask, client, f"question {number}")
    assert answers == {query: f"You said: {query}" for query in answers}
    assert len(answers) == 8


async def test_a_model_that_breaks_off_ends_the_stream_with_an_error(page: Any) -> None:
    async with httpx2.AsyncClient(base_url=page.url, timeout=30) as client:
        events = await events_of(client, "fail")
    assert said(events) == "You said: fail"
    assert json.loads(events[-1].data)["status"] == "error"
    assert "flew away" not in "".join(event.data for event in events)
    assert "the parrot flew away" in page.stop()


async def test_a_browser_that_leaves_ends_the_request_to_the_model(model: Any, page: Any) -> None:
    async with httpx2.AsyncClient(base_url=page.url, timeout=30) as client:
        params = {"query": "a very long question " * 500}
        async with client.stream("GET", "/chat", params=params) as response:
            await anext(response.aiter_bytes())
    async with httpx2.AsyncClient(base_url=model.url, timeout=30) as client:
        with anyio.fail_after(20):
            while (await client.get("/answers")).json()["abandoned"] == 0:
                pass
        assert (await client.get("/answers")).json() == {"begun": 1, "finished": 0, "abandoned": 1}


async def test_a_browser_that_comes_back_asks_the_model_no_second_time(
    model: Any, page: Any
) -> None:
    async with httpx2.AsyncClient(base_url=page.url, timeout=30) as client:
        events = await events_of(client, "Hello!")
        again = await client.get(
            "/chat", params={"query": "Hello!"}, headers={"Last-Event-ID": events[-1].id}
        )
    assert again.status_code == 204
    async with httpx2.AsyncClient(base_url=model.url, timeout=30) as client:
        assert (await client.get("/answers")).json()["begun"] == 1


async def test_the_page_listens_to_the_stream(page: Any) -> None:
    async with httpx2.AsyncClient(base_url=page.url, timeout=30) as client:
        response = await client.get("/")
    assert "EventSource" in response.text
