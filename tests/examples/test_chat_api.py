"""The example of a chat, asked as curl asks it."""

import json
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.cookies import SimpleCookie
from pathlib import Path
from types import ModuleType
from typing import Any

import anyio
import httpx2
import pytest

from callbackkit.__main__ import load
from tests.http.chat_server import EXAMPLES, MESSAGE, PATIENCE, Chat, ChatServer, check_whole

pytestmark = pytest.mark.real_server


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """The event loop of the client, which has nothing to do with the server's."""
    return "asyncio"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChatServer]:
    """One for all tests: its sessions do not know each other."""
    with ChatServer(tmp_path_factory.mktemp("chat"), pause=0.005) as started:
        yield started


def follow(server: ChatServer, chat: Chat, **headers: str) -> list[dict[str, Any]]:
    """Return what a stream says until it ends, but for the marker of the end."""
    url = server.path(chat, "/sse")
    with httpx2.Client(timeout=PATIENCE) as http, http.sse(url, headers=headers) as stream:
        events = [json.loads(event.data) for event in stream if event.data]
    assert events.pop()["event_type"] == "callbackkit.end"
    return events


# Following it.


def test_a_reply_names_the_session_that_has_the_answer(server: ChatServer) -> None:
    chat = server.ask()
    events = follow(server, chat, **chat.bearer)
    check_whole(events, server.events(chat))
    for event in events:
        assert {"id", "event_type", "timestamp", "session_id", "data"} <= event.keys()
        assert event["session_id"] == chat.id


def test_its_steps_tell_what_the_agent_did(server: ChatServer) -> None:
    chat = server.ask()
    events = follow(server, chat, **chat.bearer)
    steps = [event["data"] for event in events if event["event_type"] != "streaming_chunk"]
    assert steps[:4] == [
        {"message": MESSAGE},
        {"thought": f"Where does the text speak of {MESSAGE!r}?"},
        {"tool_name": "search", "parameters": {"words": ["where", "mist"]}},
        {"tool_name": "search", "result": ["Mist", "More"], "success": True},
    ]
    shares = [step["progress"] for step in steps if "progress" in step]
    assert shares == [0.5, 1.0]
    assert steps[-1] == {"result": {"sections": 2, "words": 114}}


def test_the_cookie_of_the_reply_is_for_this_session_only(server: ChatServer) -> None:
    answer = httpx2.post(f"{server.url}/chat", json={"message": MESSAGE})
    [cookie] = SimpleCookie(answer.headers["set-cookie"]).values()
    reply = answer.json()
    assert cookie.value == reply["token"]
    assert cookie["path"] == f"/callbacks/sessions/{reply['session_id']}"
    assert cookie["httponly"]
    assert cookie["samesite"].lower() == "strict"
    chat = Chat(reply["session_id"], reply["token"], f"{cookie.key}={cookie.value}")
    check_whole(follow(server, chat, Cookie=chat.cookie), server.events(chat))


@pytest.mark.parametrize("route", ["", "/events", "/sse", "/stats"])
def test_who_has_neither_token_nor_cookie_gets_nothing(server: ChatServer, route: str) -> None:
    chat, other = server.ask(), server.ask()
    for headers in ({}, other.bearer, {"Cookie": other.cookie}, {"Authorization": chat.token}):
        answer = httpx2.get(server.path(chat, route), headers=headers)
        assert answer.status_code == 401
        assert answer.headers["content-type"] == "application/problem+json"
    assert httpx2.get(f"{server.url}/callbacks/sessions").status_code == 403


def test_only_what_the_client_asked_for_is_kept(server: ChatServer) -> None:
    chat = server.ask(callback_config={"delivery_method": "polling", "events": ["progress"]})
    events = follow(server, chat, **chat.bearer)
    assert Counter(event["event_type"] for event in events) == {"client.message": 1, "progress": 2}


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({}, "message"),
        ({"message": ""}, "message"),
        ({"message": MESSAGE, "callback_config": {"speed": 9}}, "speed"),
        ({"message": MESSAGE, "callback_config": {"delivery_method": "pigeon"}}, "pigeon"),
    ],
)
def test_what_makes_no_sense_is_refused(
    server: ChatServer, asked: dict[str, Any], named: str
) -> None:
    answer = httpx2.post(f"{server.url}/chat", json=asked)
    assert answer.status_code == 422
    assert named in answer.text


def test_the_page_is_served(server: ChatServer) -> None:
    answer = httpx2.get(server.url)
    assert answer.text == (EXAMPLES / "chat_page.html").read_text("utf-8")
    assert len(answer.text.splitlines()) <= 60


# The guide's load test.


async def test_a_hundred_posted_test_events_arrive_once_and_in_order(tmp_path: Path) -> None:
    got: list[dict[str, Any]] = []

    async def follow_live(http: httpx2.AsyncClient, chat: Chat) -> None:
        async with http.sse(server.path(chat, "/sse")) as stream:
            async for event in stream:
                if event.data:
                    got.append(json.loads(event.data))
                if sum("test" in event["metadata"] for event in got) == 100:
                    return

    async def post(http: httpx2.AsyncClient, chat: Chat, number: int) -> None:
        body = {"event_type": "progress", "test_data": {"progress": number / 100}}
        answer = await http.post(server.path(chat, "/test"), json=body)
        assert answer.status_code == 200, answer.text
        assert answer.json()["event"]["data"] == body["test_data"]

    # The agent is busy all the time.
    with ChatServer(tmp_path, pause=60.0) as server:
        chat = server.ask()
        http = httpx2.AsyncClient(timeout=PATIENCE, headers=chat.bearer)
        async with http, anyio.create_task_group() as tasks:
            tasks.start_soon(follow_live, http, chat)
            for number in range(100):
                tasks.start_soon(post, http, chat, number)
        kept = server.events(chat)
    assert got == kept[: len(got)]
    tests = [event["data"]["progress"] for event in kept if event["metadata"].get("test")]
    assert sorted(tests) == [number / 100 for number in range(100)]
    moments = [event["timestamp"] for event in kept]
    assert moments == sorted(set(moments))


# What goes wrong.


def test_an_agent_whose_session_is_deleted_stops(server: ChatServer) -> None:
    chat = server.ask()
    assert httpx2.delete(server.path(chat), headers=chat.bearer).status_code in {200, 204}
    assert httpx2.get(server.path(chat), headers=chat.bearer).status_code == 410
    # The server is as it was.
    other = server.ask()
    check_whole(follow(server, other, **other.bearer), server.events(other))


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(EXAMPLES)
    return load(EXAMPLES / "chat_api.py")


async def test_an_agent_that_fails_tells_its_client(example: ModuleType, tmp_path: Path) -> None:
    async with example.create_manager(tmp_path / "chat.db") as manager:
        session = await manager.create_session(owner=example.OWNER)
        await session.receive({"message": MESSAGE})
        # Its text has changed since it began, so its second step is another one.
        await session.emit("thinking", {"thought": "of tea"}, idempotency_key="thinking-0")
        await example.Agent(session, "# Tea", 0.0).live()
        events = [event async for event in session.subscribe()]
    assert events[-1].event_type == "error"
    assert events[-1].data == {"error": "the agent failed", "error_type": "IdempotencyError"}


async def test_a_session_without_its_message_is_ended(example: ModuleType, tmp_path: Path) -> None:
    async with example.create_manager(tmp_path / "chat.db") as manager:
        never = await manager.create_session(owner=example.OWNER)
        cleared = await manager.create_session(owner=example.OWNER)
        await cleared.receive({"message": MESSAGE})
        await cleared.clear(datetime.now(UTC) + timedelta(days=1))
        for session in (never, cleared):
            await example.Agent(session, "# Tea", 0.0).live()
            assert await session.state() == "ended"


async def test_what_a_client_posts_is_no_word_of_the_agent(
    example: ModuleType, tmp_path: Path
) -> None:
    async with example.create_manager(tmp_path / "chat.db") as manager:
        session = await manager.create_session(owner=example.OWNER)
        await session.receive({"message": MESSAGE})
        await session.receive({"message": "What else?"})
        chunk = {"text": "# mist", "node": "read_aloud"}
        await session.emit("streaming_chunk", chunk, metadata={"test": True})
        await example.Agent(session, "# mist", 0.0).live()
        events = [event async for event in session.subscribe(types=["streaming_chunk"])]
    said = [dict(event.data)["text"] for event in events if event.data["node"] == "read_aloud"]
    assert said == ["# mist", "# mist"]
