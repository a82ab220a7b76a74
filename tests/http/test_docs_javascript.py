"""The blocks of docs/how-to/resume-in-javascript.md, in Node, while the server is restarted."""

import json
import re
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
import uvicorn
from fastapi import FastAPI

from callbackkit import CallbackManager
from callbackkit.http.fastapi import allow_anyone, create_router
from callbackkit.stores.sqlite import SQLiteStore
from tests.http.chat_server import find_node

pytestmark = pytest.mark.real_server

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "resume-in-javascript.md"
PATIENCE = 20.0
TEXT = 'a\nb\r\n"c" \u2028 \U0001f408'
# What a page does with it: show each event, and say when there is no more.
DRIVER = """
const [way, url] = process.argv.slice(2);
const say = (line) => process.stdout.write(JSON.stringify(line) + "\\n");
const follow = { followByEventSource, followByWebSocket, followByPolling, followByFetch }[way];
const came = [];
class Counting extends Reader {
  take(event) {
    if (event.event_type === "step") came.push(event);
    super.take(event);
  }
}
const reader = new Counting(say);
setInterval(() => {}, 1000); // a page stays, too
await follow(url, reader);
say({ hasEnded: reader.hasEnded, came: came.length });
came.slice().forEach((event) => reader.take(event)); // once more, and none is shown
process.exit(0);
"""


@pytest.fixture(scope="module")
def node() -> list[str]:
    """The command; node has an EventSource when it is asked for one."""
    return [find_node(), "--experimental-eventsource"]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The blocks of the page as one file, with what drives them."""
    blocks = re.findall(r"^```js\n(.*?)^```$", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 5
    path = tmp_path_factory.mktemp("page") / "page.mjs"
    path.write_text("\n".join([*blocks, DRIVER]), "utf-8")
    return path


@contextmanager
def serving(file: Path, port: int) -> Iterator[None]:
    """Serve the API on a port; at the end as a server does that is asked to stop."""
    manager = CallbackManager(SQLiteStore(file))
    app = FastAPI()
    app.include_router(create_router(manager, allow_anyone))
    config = uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=5)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", port)) as listening:
        thread = threading.Thread(target=server.run, args=[[listening]])
        thread.start()
        try:
            yield
        finally:
            manager.begin_drain()
            server.should_exit = True
            thread.join(PATIENCE)
            assert not thread.is_alive()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
        return port


async def create(file: Path) -> str:
    async with CallbackManager(SQLiteStore(file)) as manager:
        session = await manager.create_session()
        return session.id


def emit(file: Path, session_id: str, steps: range, *, is_last: bool = False) -> None:
    """Have another process, as it were, work on the session."""

    async def work() -> None:
        async with CallbackManager(SQLiteStore(file)) as manager:
            session = await manager.get_session(session_id)
            for step in steps:
                await session.emit("step", {"step": step, "text": TEXT})
            if is_last:
                await session.end()

    anyio.run(work)


@contextmanager
def running(command: list[str]) -> Iterator["subprocess.Popen[str]"]:
    """Run a client, not for ever."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8") as client:
        patience = threading.Timer(PATIENCE, client.kill)
        patience.start()
        try:
            yield client
        finally:
            patience.cancel()
            client.kill()


@pytest.mark.parametrize(
    "way", ["followByEventSource", "followByWebSocket", "followByPolling", "followByFetch"]
)
def test_the_page_follows_across_a_restart(
    tmp_path: Path, node: list[str], program: Path, way: str
) -> None:
    """Every event comes once and in order; the client stops by itself when that was all."""
    file, port = tmp_path / "events.db", free_port()
    session_id = anyio.run(create, file)
    url = f"http://127.0.0.1:{port}/callbacks/sessions/{session_id}"
    lines: list[dict[str, Any]] = []
    with running([*node, str(program), way, url]) as client:
        assert client.stdout is not None
        with serving(file, port):
            emit(file, session_id, range(5))
            while len(lines) < 5:
                lines.append(json.loads(client.stdout.readline()))
        emit(file, session_id, range(5, 8))
        with serving(file, port):
            emit(file, session_id, range(8, 10), is_last=True)
            rest, _ = client.communicate(timeout=PATIENCE)
        assert client.returncode == 0
    lines += map(json.loads, rest.strip("\n").split("\n"))
    # None was on its way when the server stopped, so positions alone keep them from coming twice.
    assert lines.pop() == {"hasEnded": True, "came": 10}
    assert [line["data"] for line in lines] == [{"step": n, "text": TEXT} for n in range(10)]
