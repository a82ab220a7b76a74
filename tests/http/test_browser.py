"""A real browser: the page of the chat, and the guide's own JavaScript, across a restart."""

import shutil
import signal
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from tests.http.chat_server import (
    MESSAGE,
    PATIENCE,
    RESTARTS,
    SPOKEN,
    Chat,
    ChatServer,
    check_whole,
)

pytestmark = pytest.mark.real_server

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
COLUMNS = ["SSE", "WebSocket", "Polling"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("there is no chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context()
    context.set_default_timeout(PATIENCE * 1000)
    yield context
    context.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ChatServer]:
    # A browser takes three seconds to come back; the agent is to be at work still.
    with ChatServer(tmp_path, pause=0.07) as started:
        yield started


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChatServer]:
    """A server that is faster, and left alone."""
    with ChatServer(tmp_path_factory.mktemp("chat"), pause=0.01) as started:
        yield started


class Blank(BaseHTTPRequestHandler):
    """An empty page."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_arguments: object) -> None:
        pass


@pytest.fixture
def other_port() -> Iterator[int]:
    """Another server of this machine: of the same site, to a browser, so cookies come along."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Blank) as other:
        thread = threading.Thread(target=other.serve_forever)
        thread.start()
        yield other.server_port
        other.shutdown()
        thread.join()


# The page.


def ask(page: Page, server: ChatServer) -> Chat:
    """Ask in the page, as somebody does who sits before it."""
    page.goto(server.url)
    page.fill("input", MESSAGE)
    page.click("button")
    page.wait_for_function("location.hash.length > 1 && columns.SSE.ids.size > 0")
    session_id = page.evaluate("location.hash.slice(1)")
    # No script of the page can read it.
    [cookie] = page.context.cookies(f"{server.url}/callbacks/sessions/{session_id}")
    assert "callbackkit" not in page.evaluate("document.cookie")
    return Chat(session_id, cookie["value"], "")


def ids(page: Page, column: str) -> list[str]:
    """Return the events that a column shows."""
    return page.evaluate("(name) => [...columns[name].ids]", column)


def check_page(page: Page, kept: list[dict[str, Any]]) -> None:
    """Hold what a page shows against what the session has."""
    page.wait_for_function("Object.values(columns).every((column) => column.isDone)")
    expected = [event["id"] for event in kept]
    assert {name: ids(page, name) for name in COLUMNS} == dict.fromkeys(COLUMNS, expected)
    assert page.locator("pre").evaluate_all("(all) => all.map((one) => one.textContent)") == [
        SPOKEN
    ] * len(COLUMNS)
    assert page.locator("progress").evaluate_all("(all) => all.map((one) => one.value)") == [1] * 3
    for number in range(len(COLUMNS)):
        items = page.locator("section").nth(number).locator("li")
        types = items.evaluate_all("(all) => all.map((one) => one.className)")
        shown = {"thinking", "tool_use", "tool_result", "progress", "completion"}
        assert types == [event["event_type"] for event in kept if event["event_type"] in shown]


def test_two_tabs_show_the_whole_in_three_ways_across_restarts(
    server: ChatServer, context: BrowserContext
) -> None:
    tabs = [context.new_page(), context.new_page()]
    errors: list[str] = []
    for tab in tabs:
        tab.on("pageerror", lambda error: errors.append(str(error)))
    chat = ask(tabs[0], server)
    tabs[1].goto(tabs[0].url)
    for least, number in RESTARTS:
        for tab in tabs:
            tab.wait_for_function(
                "(least) => Object.values(columns).every((column) => column.ids.size >= least)",
                arg=least,
            )
        assert server.stop(number) == -number
        if number == signal.SIGKILL:
            assert not tabs[0].evaluate("Object.values(columns).some((column) => column.isDone)")
        server.start()
    tabs[0].wait_for_function("Object.values(columns).every((column) => column.isDone)")
    kept = server.events(chat)
    check_whole(kept, kept)
    for tab in tabs:
        check_page(tab, kept)
    # One that comes when all is over sees it all.
    tabs[1].reload()
    check_page(tabs[1], kept)
    assert errors == []


# The guide's own JavaScript, as it is written there but for the session's id.

FOLLOW = """
([HOST, ID]) => {
  window.got = { socket: [], stream: [], polled: [] }
  const ws = new WebSocket('ws://' + HOST + '/callbacks/sessions/' + ID + '/ws')
  ws.onmessage = (event) => {
    const callback = JSON.parse(event.data)
    switch (callback.event_type) {
      case 'thinking': window.thought = callback.data.thought; break
      case 'progress': window.progress = callback.data.progress; break
      case 'completion': window.completion = callback.data.result; break
    }
    if (!callback.event_type.startsWith('callbackkit.')) window.got.socket.push(callback)
  }
  ws.onclose = (event) => { window.closeCode = event.code }
  const eventSource = new EventSource('/callbacks/sessions/' + ID + '/sse')
  eventSource.onmessage = (event) => {
    const callback = JSON.parse(event.data)
    if (!callback.event_type.startsWith('callbackkit.')) window.got.stream.push(callback)
  }
  let lastTimestamp
  const poll = async () => {
    const response = await fetch('/callbacks/sessions/' + ID + '/events?since=' + lastTimestamp)
    const page = await response.json()
    for (const callback of page.events) {
      lastTimestamp = callback.timestamp
      window.got.polled.push(callback)
    }
    if (window.got.polled.at(-1)?.event_type !== 'completion') setTimeout(poll, 100)
  }
  poll()
}
"""
DONE = """() => Object.values(window.got).every((all) => all.at(-1)?.event_type === 'completion')"""


def test_the_javascript_of_the_guide_works_as_it_is_written(
    shared: ChatServer, context: BrowserContext
) -> None:
    page = context.new_page()
    page.goto(shared.url)
    reply = page.evaluate(
        """async (message) => (await fetch('/chat', {
          method: 'POST', headers: {'Content-Type': 'application/json'},
          body: JSON.stringify({message, callback_config: {delivery_method: 'websocket'}}),
        })).json()""",
        MESSAGE,
    )
    chat = Chat(reply["session_id"], reply["token"], "")
    page.evaluate(FOLLOW, [shared.host, chat.id])
    page.wait_for_function(DONE)
    kept = shared.events(chat)
    for way in ("socket", "stream", "polled"):
        check_whole(page.evaluate("(way) => window.got[way]", way), kept)
    assert page.evaluate("[window.thought, window.progress]") == ["I read 'More'.", 1]
    page.wait_for_function("window.closeCode === 1000")
    # Having seen all, an EventSource that comes back is told to stop, and does for good.
    url = f"/callbacks/sessions/{chat.id}/sse?last_event_id={kept[-1]['id']}"
    page.evaluate("(url) => { window.again = new EventSource(url) }", url)
    page.wait_for_function("window.again.readyState === EventSource.CLOSED")


def test_the_page_of_another_origin_gets_nothing(
    shared: ChatServer, context: BrowserContext, other_port: int
) -> None:
    chat = ask(context.new_page(), shared)
    stranger = context.new_page()
    stranger.goto(f"http://127.0.0.1:{other_port}/")
    got = stranger.evaluate(
        """([HOST, ID]) => {
          const base = HOST + '/callbacks/sessions/' + ID
          const first = (target, names) => new Promise((resolve) => {
            for (const name of names) target['on' + name] = () => resolve(name)
          })
          const stream = 'http://' + base + '/sse', credentials = 'include'
          return Promise.all([
            first(new WebSocket('ws://' + base + '/ws'), ['open', 'error']),
            first(new EventSource(stream, { withCredentials: true }), ['open', 'error']),
            fetch('http://' + base + '/events', { credentials }).then(() => 'open', () => 'error'),
          ])
        }""",
        [shared.host, chat.id],
    )
    assert got == ["error", "error", "error"]
