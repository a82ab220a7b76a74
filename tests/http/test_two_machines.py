"""Two servers that share a Redis: an agent works on one, everybody follows on the other.

Whatever is killed meanwhile and started again, a server or Redis, every follower goes on by itself:
by each method from Python, in a terminal, and in a browser.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

import anyio.from_thread
import attrs
import httpx2
import pytest
from anyio.from_thread import BlockingPortal
from playwright.sync_api import Browser, Page, sync_playwright

from callbackkit.client.backoff import Backoff
from callbackkit.client.following import FollowMethod, follow
from callbackkit.errors import CallbackKitError
from callbackkit.testing import FaultProxy
from callbackkit.wire.envelope import encode_event
from tests.stores.redis_rig import environment
from tests.stores.redis_server import Server, marks

pytestmark = marks

# Seconds for anything that is waited for.
PATIENCE = 30.0
METHODS: tuple[FollowMethod, ...] = ("sse", "websocket", "polling")
COLUMNS = ("SSE", "WebSocket", "Polling")
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
MESSAGE = "Where is mist?"


QUICK = Backoff(first=0.1, max_delay=1.0, max_told=1.0)

# Two sections that both speak of mist.
TEXT = "".join(
    f"# Mist {part}\n\n" + "".join(f"mist-{part}-{word}\n" for word in range(words)) + "\n"
    for part, words in enumerate((50, 500))
)


# Processes.


class Process:
    """A command of the package, the lines of which are read as they come."""

    def __init__(self, *arguments: str | Path, **more: str) -> None:
        self.lines: list[str] = []
        self._news = threading.Condition()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "callbackkit", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment(**more),
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout:
            for line in self._process.stdout:
                with self._news:
                    self.lines.append(line)
                    self._news.notify_all()
        with self._news:
            self.lines.append("")
            self._news.notify_all()

    def until(self, is_so: Callable[[list[str]], object]) -> None:
        """Wait until its lines are what they should be."""
        with self._news:
            done = self._news.wait_for(
                lambda: is_so(self.lines) or self.lines[-1:] == [""], PATIENCE
            )
            assert done, "".join(self.lines[-20:])
            assert is_so(self.lines), "".join(self.lines[-20:])

    def wait(self) -> int:
        """Wait until it has ended; return the exit code."""
        code = self._process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return code

    def kill(self) -> None:
        self._process.kill()
        self.wait()


def session_url(url: str, session_id: str) -> str:
    return f"{url}/callbacks/sessions/{session_id}"


class Machine:
    """One of the servers, on a port of its own, which is killed and started again."""

    def __init__(self, folder: Path, *options: str, **more: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as found:
            self.port: int = found.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._arguments: tuple[str | Path, ...] = (
            "demo",
            folder / "text",
            "--serve",
            "--port",
            str(self.port),
            *options,
        )
        self._more = more
        self._process: Process | None = None
        self.output: list[str] = []

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.kill()

    def start(self, **more: str) -> None:
        self._process = Process(*self._arguments, **self._more | more)

    def until_it_says(self, words: str) -> None:
        assert self._process is not None
        self._process.until(lambda lines: any(words in each for each in lines))

    def wait_until_it_serves(self) -> None:
        self.until_it_says("The sessions are in Redis")
        # It listens, and answers once it serves.
        httpx2.get(f"{self.url}/callbacks/health", timeout=PATIENCE).raise_for_status()

    def kill(self) -> None:
        """End it with SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self.output += self._process.lines
            self._process = None

    def restart(self, **more: str) -> None:
        self.kill()
        self.start(**more)
        self.wait_until_it_serves()

    # What a client does.

    def ask(self) -> tuple[str, str]:
        """Begin a chat; return the id of its session, and the token."""
        answer = httpx2.post(f"{self.url}/chat", json={"message": MESSAGE}, timeout=PATIENCE)
        assert answer.status_code == 201, answer.text
        reply = answer.json()
        return reply["session_id"], reply["token"]

    def session(self, session_id: str) -> str:
        return session_url(self.url, session_id)

    def kept(self, session_id: str, token: str) -> list[dict[str, Any]]:
        """Return everything that the session has."""
        answer = httpx2.get(
            self.session(session_id) + "/events?limit=1000",
            headers={"Authorization": f"Bearer {token}"},
            timeout=PATIENCE,
        )
        page = answer.raise_for_status().json()
        assert not page["has_more"]
        events: list[dict[str, Any]] = page["events"]
        return events


# Followers.


class Follower:
    """Follows from Python, in the event loop of a portal."""

    def __init__(self, url: str, token: str, method: FollowMethod) -> None:
        self.events: list[dict[str, Any]] = []
        self.error: CallbackKitError | None = None
        self.is_over = False
        self._news = threading.Condition()
        self._followed = follow(url, token, method=method, backoff=QUICK)

    async def run(self) -> None:
        try:
            async with self._followed as events:
                async for event in events:
                    with self._news:
                        self.events.append(json.loads(encode_event(event)))
                        self._news.notify_all()
        except CallbackKitError as exc:
            self.error = exc
        with self._news:
            self.is_over = True
            self._news.notify_all()

    def until(self, is_so: Callable[[list[dict[str, Any]]], object]) -> None:
        with self._news:
            done = self._news.wait_for(lambda: self.is_over or is_so(self.events), PATIENCE)
            assert done, (self._followed, self._followed.trouble, self.events[-3:])
            assert is_so(self.events), (self._followed, self.error)

    def wait(self) -> None:
        with self._news:
            assert self._news.wait_for(lambda: self.is_over, PATIENCE), (
                self._followed,
                self._followed.trouble,
                self.events[-3:],
            )


class Tail(Process):
    """``python -m callbackkit tail --json``."""

    def __init__(self, url: str, token: str) -> None:
        super().__init__("tail", url, "--json", CALLBACKKIT_TOKEN=token)

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines if line.startswith("{")]


@attrs.frozen
class Audience:
    """Everybody who follows one session at one server."""

    followers: Sequence[Follower]
    tail: Tail
    page: Page

    def until_more(self, more: int) -> None:
        """Wait until each is so many events further than anybody is now."""
        known = [number_of(each.events) for each in self.followers]
        least = max(known) + more
        for each in self.followers:
            each.until(lambda events: number_of(events) >= least)
        self.tail.until(lambda _: number_of(self.tail.events) >= least)
        self.page.wait_for_function(
            """(least) => Object.values(columns).every(
              (column) => Number([...column.ids].at(-1)?.split('-')[1]) >= least)""",
            arg=least,
        )

    def columns(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = self.page.evaluate(
            "Object.fromEntries(Object.entries(columns).map(([name, all]) => [name, [...all.ids]]))"
        )
        return found


@pytest.fixture(scope="module")
def browser() -> Generator[Browser]:
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("there is no chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def redis() -> Generator[Server]:
    with Server(appendonly="yes", appendfsync="always") as server:
        yield server


@pytest.fixture(scope="module")
def machines(
    redis: Server, tmp_path_factory: pytest.TempPathFactory
) -> Generator[tuple[Machine, Machine]]:
    folder = tmp_path_factory.mktemp("chat")
    (folder / "text").write_text(TEXT, "utf-8")
    # The agents are slow enough not to come to an end before they are told to be quick.
    here = Machine(folder, "--redis", redis.url, CHAT_PAUSE="0.1")
    there = Machine(folder, "--redis", CHAT_PAUSE="0.1", REDIS_URL=redis.url)
    with here, there:
        for each in (here, there):
            each.wait_until_it_serves()
        yield here, there
    for line in here.output + there.output:
        assert "Traceback" not in line, "".join(here.output + there.output)


@pytest.fixture
def portal() -> Generator[BlockingPortal]:
    with anyio.from_thread.start_blocking_portal() as portal:
        yield portal


@contextmanager
def following(
    browser: Browser, portal: BlockingPortal, asked: Machine, at: str
) -> Generator[tuple[str, str, Audience]]:
    """Ask at one server and follow at the URL of another, in every way."""
    with ExitStack() as opened:
        page = opened.enter_context(browser.new_page())
        page.set_default_timeout(PATIENCE * 1000)
        # As somebody does who sits before it. The cookie of the session is for both ports.
        page.goto(asked.url)
        page.fill("input", MESSAGE)
        page.click("button")
        page.wait_for_function("location.hash.length > 1 && columns.SSE.ids.size > 0")
        session_id = page.evaluate("location.hash.slice(1)")
        [cookie] = page.context.cookies(asked.session(session_id))
        token = cookie["value"]
        page.goto(f"{at}/#{session_id}")
        followers = [Follower(session_url(at, session_id), token, method) for method in METHODS]
        for each in followers:
            opened.callback(portal.start_task_soon(each.run).cancel)
        tail = Tail(session_url(at, session_id), token)
        opened.callback(tail.kill)
        yield session_id, token, Audience(followers, tail, page)


# What each got.


def number_of(events: Sequence[dict[str, Any]]) -> int:
    """Return how far somebody is in the log, whatever its epoch is."""
    return int(events[-1]["id"].rpartition("-")[2]) if events else 0


def check_whole(
    events: Sequence[dict[str, Any]], kept: Sequence[dict[str, Any]], *, gaps: int | None
) -> None:
    """Hold what somebody got against what is kept: nothing is lost or twice but over a gap."""
    found = [n for n, event in enumerate(events) if event["event_type"] == "callbackkit.gap"]
    assert gaps is None or len(found) == gaps
    begin = 0
    for gap in found:
        # Of another log: nobody knows how many are missed.
        assert events[gap]["data"]["from"] == events[gap - 1]["id"]
        assert events[gap]["data"]["missed"] is None
        check_part(events[begin:gap], kept)
        begin = gap + 1
    assert list(events[begin:]) == list(kept)


def check_part(events: Sequence[dict[str, Any]], kept: Sequence[dict[str, Any]]) -> None:
    """What came before a gap is what is kept, from its beginning, by other positions."""
    assert [event["data"] for event in events] == [event["data"] for event in kept[: len(events)]]
    numbers = [int(event["id"].rpartition("-")[2]) for event in events]
    assert numbers == list(range(1, len(events) + 1))
    assert len({event["id"].rpartition("-")[0] for event in events}) <= 1


def check_audience(audience: Audience, kept: Sequence[dict[str, Any]], *, gaps: int | None) -> None:
    """Wait until everybody has seen the end, and hold what each got against what is kept."""
    for each in audience.followers:
        each.wait()
        assert each.error is None
        check_whole(each.events, kept, gaps=gaps)
    assert audience.tail.wait() == 0
    check_whole(audience.tail.events, kept, gaps=gaps)
    audience.page.wait_for_function("Object.values(columns).every((column) => column.isDone)")
    last = [event["id"] for event in kept]
    for ids in audience.columns().values():
        assert ids[-len(last) :] == last
    said = audience.page.locator("pre").evaluate_all("(all) => all.map((one) => one.innerText)")
    assert said == [TEXT] * len(COLUMNS)


def spoken(events: Sequence[dict[str, Any]]) -> str:
    chunks = [event["data"] for event in events if event["event_type"] == "streaming_chunk"]
    return "".join(chunk["text"] for chunk in chunks if chunk["node"] == "read_aloud")


@contextmanager
def leading_to(portal: BlockingPortal, machine: Machine) -> Generator[tuple[FaultProxy, str]]:
    """What stands before the servers, and leads to the one that works; with its URL."""
    door = FaultProxy("127.0.0.1", machine.port)
    with portal.wrap_async_context_manager(door):
        yield door, f"http://127.0.0.1:{door.port}"


def test_everybody_goes_on_whatever_is_killed(
    browser: Browser, portal: BlockingPortal, redis: Server, machines: tuple[Machine, Machine]
) -> None:
    """The server of the agent, the one of the followers, and Redis, which keeps all on disk.

    Who followed at the one that is gone goes on at the other, and back.
    """
    here, there = machines
    with (
        leading_to(portal, there) as (door, url),
        following(browser, portal, here, url) as (session_id, token, audience),
    ):
        audience.until_more(5)
        here.restart()
        audience.until_more(5)
        portal.call(door.lead_to, "127.0.0.1", here.port)
        there.kill()
        audience.until_more(5)
        redis.kill()
        here.until_it_says("goes on when the store is back")
        redis.start()
        there.start()
        there.wait_until_it_serves()
        audience.until_more(5)
        portal.call(door.lead_to, "127.0.0.1", there.port)
        here.restart(CHAT_PAUSE="0")
        for each in audience.followers:
            each.wait()
        kept = there.kept(session_id, token)
        assert spoken(kept) == TEXT
        assert [event["event_type"] for event in kept].count("completion") == 1
        check_audience(audience, kept, gaps=1)


@pytest.mark.torture
@pytest.mark.timeout(300)
def test_everybody_goes_on_through_many_kills(
    browser: Browser, portal: BlockingPortal, redis: Server, machines: tuple[Machine, Machine]
) -> None:
    """In any order, and no more often told of a gap than Redis was killed."""
    here, there = machines
    here.restart()
    chance = random.Random(os.environ.get("TWO_MACHINES_SEED", "7"))
    deeds: list[Callable[[], None]] = [redis.restart, here.restart, there.restart]
    kills = 0
    with following(browser, portal, here, there.url) as (session_id, token, audience):
        # A tail that nobody ever answered gives up.
        audience.until_more(1)
        for _ in range(20):
            for deed in chance.sample(deeds, chance.choice((1, 1, 2, 3))):
                kills += deed == redis.restart
                deed()
            if chance.random() < 0.7:
                audience.until_more(chance.randrange(1, 8))
        here.restart(CHAT_PAUSE="0")
        for each in audience.followers:
            each.wait()
        kept = there.kept(session_id, token)
        assert spoken(kept) == TEXT
        check_audience(audience, kept, gaps=None)
        for each in audience.followers:
            gaps = [event for event in each.events if event["event_type"] == "callbackkit.gap"]
            assert 1 <= len(gaps) <= kills


def test_everybody_is_told_when_redis_has_lost_the_session(
    browser: Browser, portal: BlockingPortal, redis: Server, machines: tuple[Machine, Machine]
) -> None:
    """It has nothing on disk; nobody waits for what never comes."""
    there, here = machines
    with following(browser, portal, here, there.url) as (session_id, _, audience):
        audience.until_more(5)
        redis.kill()
        shutil.rmtree(redis.folder / "appendonlydir")
        redis.start()
        for each in audience.followers:
            each.wait()
            assert type(each.error).__name__ in {"UnknownSessionError", "SessionDeletedError"}
            assert session_id in str(each.error)
        assert audience.tail.wait() == 2
        assert session_id in "".join(audience.tail.lines[-3:])
        audience.page.wait_for_function("Object.values(columns).every((column) => column.isDone)")
        notes = audience.page.locator("small").evaluate_all(
            "(all) => all.map((one) => one.innerText)"
        )
        assert notes == ["the session is gone"] * len(COLUMNS)
    # The servers are as they were.
    session_id, token = here.ask()
    answer = httpx2.get(
        f"{there.session(session_id)}/events",
        params={"wait": 10},
        headers={"Authorization": f"Bearer {token}"},
        timeout=PATIENCE,
    )
    assert answer.json()["events"][0]["data"] == {"message": MESSAGE}


def test_a_redis_that_is_not_there_is_told_in_a_line(redis: Server, tmp_path: Path) -> None:
    """Nothing serves then, and the password stays where it was."""
    (tmp_path / "text").write_text(TEXT, "utf-8")
    url = redis.url.replace("//", "//:hunter2@").replace(str(redis.port), "1")
    for process in [
        Process("demo", tmp_path / "text", "--serve", "--port", "0", "--redis", REDIS_URL=each)
        for each in (url, "redis://:hunter2@127.0.0.1:port")
    ]:
        assert process.wait() == 2
        [line, _] = process.lines
        assert line.startswith("callbackkit: ")
        assert "Redis" in line
        assert "hunter2" not in line
