"""stream_response: what a client gets, and what becomes of the run when it leaves."""

import asyncio
import contextlib
import json
import queue
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Generator, Iterator
from concurrent.futures import Future
from typing import Any

import anyio
import attrs
import httpx2
import pytest
import uvicorn
from anyio import wait_all_tasks_blocked
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from callbackkit import Callback, StreamCancelledError, emit_token
from callbackkit.http.runs import RecentRuns
from callbackkit.http.starlette import stream_response
from callbackkit.wire.eventstream import EventStreamReader, ServerSentEvent

# Nothing here takes long; what does not come is a failure.
PATIENCE = 20.0


# A client without a server, on both event loops.


@attrs.define(eq=False)
class Client:
    """Calls an ASGI application as a server would, and keeps what it sends."""

    app: Callable[..., Awaitable[None]]
    path: str = "/"
    method: str = "GET"
    last_event_id: str | None = None
    spec: str = "2.3"
    reads: bool = True
    sends: int = 0
    messages: list[dict[str, Any]] = attrs.Factory(list)
    left: anyio.Event = attrs.Factory(anyio.Event)
    grown: anyio.Event = attrs.Factory(anyio.Event)
    done: anyio.Event = attrs.Factory(anyio.Event)

    async def run(self) -> None:
        headers = []
        if self.last_event_id is not None:
            headers.append((b"last-event-id", self.last_event_id.encode()))
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": self.spec},
            "http_version": "1.1",
            "method": self.method,
            "path": self.path,
            "raw_path": self.path.encode(),
            "root_path": "",
            "scheme": "http",
            "query_string": b"",
            "headers": headers,
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 2),
        }
        is_asked = False

        async def receive() -> dict[str, Any]:
            nonlocal is_asked
            if not is_asked:
                is_asked = True
                return {"type": "http.request", "body": b"", "more_body": False}
            await self.left.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            self.sends += 1
            if self.left.is_set() and self.spec == "2.4":
                raise OSError("gone")
            if not self.reads and self.messages:
                await anyio.sleep_forever()
            self.messages.append(message)
            self.grown.set()
            self.grown = anyio.Event()

        await self.app(scope, receive, send)
        self.done.set()

    @property
    def status(self) -> int:
        status: int = self.messages[0]["status"]
        return status

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.messages[0]["headers"]}

    @property
    def body(self) -> bytes:
        return b"".join(message["body"] for message in self.messages[1:])

    @property
    def is_complete(self) -> bool:
        return len(self.messages) > 1 and not self.messages[-1].get("more_body", False)

    @property
    def events(self) -> list[ServerSentEvent]:
        return EventStreamReader().feed(self.body)

    @property
    def position(self) -> str:
        """What a browser would send as Last-Event-ID."""
        reader = EventStreamReader()
        reader.feed(self.body)
        return reader.last_event_id

    async def until(self, text: str) -> None:
        with anyio.fail_after(PATIENCE):
            while text.encode() not in self.body:
                await self.grown.wait()

    async def until_complete(self) -> None:
        with anyio.fail_after(PATIENCE):
            while not self.is_complete:
                await self.grown.wait()


def tokens(events: list[ServerSentEvent]) -> list[str]:
    return [json.loads(event.data)["token"] for event in events]


def ending(events: list[ServerSentEvent]) -> str:
    data = json.loads(events[-1].data)
    assert data["type"] == "stream_end"
    status: str = data["status"]
    return status


class Talk:
    """A producer that says its number, waits to be let on, and so on; and how it ended."""

    def __init__(self, steps: int = 3, **options: Any) -> None:
        self.options = options
        self.calls = 0
        self.outcome: str | None = None
        self.gates = [anyio.Event() for _ in range(steps)]
        self.app = Starlette(
            routes=[Route("/", self.endpoint, methods=["GET", "POST"]), Route("/b", self.endpoint)]
        )

    async def endpoint(self, _request: Request) -> Response:
        return stream_response(self.speak, "!", **self.options)

    async def speak(self, mark: str, callback: Callback) -> str:
        self.calls += 1
        try:
            for n, gate in enumerate(self.gates):
                callback(f"{n}{mark}")
                await gate.wait()
        except BaseException:
            self.outcome = "cancelled"
            raise
        self.outcome = "done"
        return "result"

    def let_on(self, steps: int = 3) -> None:
        for gate in self.gates[:steps]:
            gate.set()


@contextlib.asynccontextmanager
async def asking(*clients: Client):
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            for client in clients:
                tasks.start_soon(client.run)
            yield tasks


async def ask(app: Callable[..., Awaitable[None]], **options: Any) -> Client:
    client = Client(app, **options)
    with anyio.fail_after(PATIENCE):
        await client.run()
    return client


def app_of(fn: Callable[..., Any], *args: Any, **options: Any) -> Starlette:
    async def endpoint(_request: Request) -> Response:
        return stream_response(fn, *args, **options)

    return Starlette(routes=[Route("/", endpoint, methods=["GET", "POST"])])


# What a client gets.


async def greet(name: str, callback: Callback) -> None:
    async with callback.node("hello"):
        await callback.acall(f"Hello {name}")


async def test_a_client_gets_the_run_as_server_sent_events() -> None:
    client = await ask(app_of(greet, "Ada"))
    assert client.status == 200
    assert client.headers == {
        "content-type": "text/event-stream",
        "cache-control": "no-store, no-transform",
        "x-accel-buffering": "no",
        "x-content-type-options": "nosniff",
    }
    assert tokens(client.events)[2] == "Hello Ada"
    assert ending(client.events) == "ok"
    assert client.is_complete
    run = client.position.partition("-")[0]
    assert [event.id for event in client.events] == [f"{run}-{n}" for n in range(1, 6)]


async def test_a_client_gets_the_run_as_json_lines() -> None:
    client = await ask(app_of(greet, "Ada", format="ndjson"))
    assert client.headers["content-type"] == "application/x-ndjson"
    lines = [json.loads(line) for line in client.body.splitlines()]
    assert [line["type"] for line in lines][2:] == ["token", "node_end", "stream_end"]


async def test_a_client_gets_the_run_as_text() -> None:
    client = await ask(app_of(greet, "<graphai:END>", format="text"))
    assert client.headers["content-type"] == "text/plain; charset=utf-8"
    assert client.body.decode() == (
        "<graphai:hello:start><graphai:hello>Hello <graphai\\:END><graphai:hello:end><graphai:END>"
    )


async def test_a_function_without_callback_finds_it_by_context() -> None:
    async def deep() -> None:
        emit_token("found")

    assert tokens((await ask(app_of(deep))).events)[0] == "found"


async def test_a_synchronous_function_runs_in_a_thread() -> None:
    def work(callback: Callback) -> None:
        callback(str(threading.current_thread() is threading.main_thread()))

    assert tokens((await ask(app_of(work))).events)[0] == "False"


async def test_the_callback_may_be_the_callers() -> None:
    callback = Callback(token_format="[{token}]", identifier="my")
    client = await ask(app_of(greet, "Ada", callback=callback, format="text"))
    assert "[Hello Ada]<my:hello:end>" in client.body.decode()


async def test_options_of_the_encoder_are_passed_on() -> None:
    client = await ask(app_of(greet, "Ada", named_events=True, retry_ms=77))
    assert client.events[0].event == "node_start"
    assert b"retry: 77\n" in client.body


async def test_headers_may_be_added_and_replaced() -> None:
    headers = {"X-Run": "7", "Content-Type": "text/event-stream; charset=utf-8"}

    async def endpoint(_request: Request) -> Response:
        response = stream_response(greet, "Ada", headers=headers)
        response.set_cookie("seen", "1")
        return response

    client = await ask(Starlette(routes=[Route("/", endpoint)]))
    assert client.headers["x-run"] == "7"
    assert "set-cookie" in client.headers


async def test_a_function_that_fails_before_its_first_token_ends_the_stream(caplog) -> None:
    async def fail() -> None:
        raise ValueError("secret")

    client = await ask(app_of(fail))
    assert client.status == 200
    assert len(client.events) == 1
    assert ending(client.events) == "error"
    assert b"secret" not in client.body
    assert client.is_complete
    (record,) = caplog.records
    assert record.name == "callbackkit.streaming"
    assert str(record.exc_info[1]) == "secret"


async def test_a_run_that_takes_too_long_times_out(caplog) -> None:
    talk = Talk(timeout=0.05)
    client = await ask(talk.app)
    assert (ending(client.events), talk.outcome) == ("timeout", "cancelled")
    assert len(caplog.records) == 1


async def test_silence_is_filled_with_heartbeats() -> None:
    talk = Talk(heartbeat=0.005)
    client = Client(talk.app)
    async with asking(client):
        await client.until(": keepalive\n\n: keepalive\n\n")
        talk.let_on()
    assert tokens(client.events) == ["0!", "1!", "2!", "<graphai:END>"]


async def test_head_calls_nothing() -> None:
    talk = Talk()
    client = await ask(talk.app, method="HEAD")
    assert (client.status, client.body, talk.calls) == (200, b"", 0)
    assert client.headers["content-type"] == "text/event-stream"


async def test_the_background_task_runs_behind_the_run() -> None:
    talk = Talk()
    seen: list[str | None] = []
    talk.options["background"] = BackgroundTask(lambda: seen.append(talk.outcome))
    client = Client(talk.app)
    async with asking(client):
        await client.until("0!")
        assert seen == []
        talk.let_on()
    assert seen == ["done"]


async def test_what_a_function_does_behind_the_end_is_not_cut_off() -> None:
    talk = Talk()

    async def save(callback: Callback) -> None:
        await callback.close()
        await talk.speak("!", Callback())

    client = Client(app_of(save))
    async with asking(client):
        await client.until_complete()
        client.left.set()
        await wait_all_tasks_blocked()
        talk.let_on()
    assert talk.outcome == "done"


# A client that leaves.


@pytest.mark.parametrize("spec", ["2.3", "2.4"])
@pytest.mark.parametrize(
    "options",
    [
        {"reconnect_within": 0},
        {"format": "ndjson", "reconnect_within": 3600},
        {"format": "text", "reconnect_within": 3600},
    ],
)
async def test_a_client_that_leaves_cancels_the_run(options: dict[str, Any], spec: str) -> None:
    talk = Talk(**options)
    client = Client(talk.app, spec=spec)
    async with asking(client):
        await client.until("0!")
        client.left.set()
    assert talk.outcome == "cancelled"
    assert not client.is_complete


def deaf(talk: Talk) -> Callable[..., Awaitable[None]]:
    """An application whose server tells only by a failed send that the client has left."""

    async def never() -> dict[str, Any]:
        await anyio.sleep_forever()
        raise AssertionError

    async def app(scope: Any, _receive: Any, send: Any) -> None:
        await talk.app(scope, never, send)

    return app


async def test_a_failed_send_is_a_client_that_left() -> None:
    talk = Talk(reconnect_within=0)
    client = Client(deaf(talk), spec="2.4")
    async with asking(client):
        await client.until("0!")
        client.left.set()
        talk.let_on(1)
    assert talk.outcome == "cancelled"


async def test_a_client_may_have_left_before_the_first_byte() -> None:
    talk = Talk(reconnect_within=0)
    client = Client(deaf(talk), spec="2.4")
    client.left.set()
    await client.run()
    assert (client.messages, client.sends) == ([], 1)
    assert talk.outcome != "done"


async def test_a_client_that_leaves_lets_the_run_continue() -> None:
    talk = Talk(on_disconnect="continue")
    client = Client(talk.app)
    async with asking(client):
        await client.until("0!")
        client.left.set()
        await wait_all_tasks_blocked()
        assert talk.outcome is None
        talk.let_on()
    assert talk.outcome == "done"
    again = await ask(talk.app, last_event_id=client.position)
    assert tokens(again.events) == ["1!", "2!", "<graphai:END>"]
    assert talk.calls == 1


async def test_a_run_that_fails_with_nobody_there_is_logged_once(caplog) -> None:
    gate = anyio.Event()

    async def fail(callback: Callback) -> None:
        callback("a")
        await gate.wait()
        raise ValueError("boom")

    client = Client(app_of(fail, on_disconnect="continue"))
    async with asking(client):
        await client.until('"a"')
        client.left.set()
        await wait_all_tasks_blocked()
        gate.set()
    assert [str(record.exc_info[1]) for record in caplog.records] == ["boom"]


async def test_a_thread_is_stopped_at_its_next_token() -> None:
    let_on, ended = threading.Event(), threading.Event()
    caught: list[BaseException] = []

    def work(callback: Callback) -> None:
        try:
            callback("a")
            let_on.wait(PATIENCE)
            callback("b")
        except BaseException as exc:
            caught.append(exc)
            raise
        finally:
            ended.set()

    client = Client(app_of(work, reconnect_within=0))
    async with asking(client):
        await client.until('"a"')
        client.left.set()
        await client.done.wait()
        let_on.set()
    assert ended.wait(PATIENCE)
    assert isinstance(caught[0], StreamCancelledError)


async def test_a_client_that_does_not_read_has_left_after_a_while() -> None:
    talk = Talk(write_timeout=0.02, reconnect_within=0)
    client = await ask(talk.app, reads=False)
    assert talk.outcome == "cancelled"
    assert len(client.messages) == 1


async def test_a_request_that_is_cancelled_cancels_its_run() -> None:
    talk = Talk(on_disconnect="continue")
    client = Client(talk.app)
    async with asking(client) as tasks:
        await client.until("0!")
        tasks.cancel_scope.cancel()
    assert talk.outcome == "cancelled"


# A client that comes back.


@pytest.mark.parametrize("on_disconnect", ["cancel", "continue"])
async def test_a_browser_that_comes_back_goes_on_with_its_run(on_disconnect: str) -> None:
    talk = Talk(on_disconnect=on_disconnect, reconnect_within=PATIENCE)
    first = Client(talk.app)
    async with asking(first) as tasks:
        await first.until("0!")
        first.left.set()
        await wait_all_tasks_blocked()
        second = Client(talk.app, last_event_id=first.position)
        tasks.start_soon(second.run)
        talk.let_on(1)
        await second.until("1!")
        second.left.set()
        await wait_all_tasks_blocked()
        third = Client(talk.app, last_event_id=second.position)
        tasks.start_soon(third.run)
        talk.let_on()
    assert [tokens(client.events) for client in (first, second, third)] == [
        ["0!"],
        ["1!"],
        ["2!", "<graphai:END>"],
    ]
    assert (talk.calls, talk.outcome, ending(third.events)) == (1, "done", "ok")


async def test_one_that_was_cut_off_before_the_first_event_comes_back_too() -> None:
    gate = anyio.Event()
    calls = 0

    async def think(callback: Callback) -> None:
        nonlocal calls
        calls += 1
        await gate.wait()
        callback("a")

    app = app_of(think)
    first = Client(app)
    async with asking(first) as tasks:
        await first.until("id: ")
        first.left.set()
        await wait_all_tasks_blocked()
        second = Client(app, last_event_id=first.position)
        tasks.start_soon(second.run)
        await second.until("id: ")
        gate.set()
    assert tokens(second.events) == ["a", "<graphai:END>"]
    assert calls == 1


async def test_a_run_is_not_cancelled_while_anybody_reads_it() -> None:
    """The old connection of a browser may be noticed to be dead after it has a new one."""
    talk = Talk(reconnect_within=0)
    first = Client(talk.app)
    async with asking(first) as tasks:
        await first.until("0!")
        second = Client(talk.app, last_event_id=first.position)
        tasks.start_soon(second.run)
        await second.until("id: ")
        first.left.set()
        await wait_all_tasks_blocked()
        talk.let_on()
    assert tokens(second.events) == ["1!", "2!", "<graphai:END>"]
    assert talk.outcome == "done"


async def test_one_that_comes_back_too_late_gets_what_was_said_and_the_end() -> None:
    talk = Talk(reconnect_within=0.01)
    first = Client(talk.app)
    async with asking(first):
        await first.until("0!")
        first.left.set()
    assert talk.outcome == "cancelled"
    second = await ask(talk.app, last_event_id=first.position)
    assert second.status == 200
    assert tokens(second.events) == ["<graphai:END:status=cancelled>"]
    assert talk.calls == 1


async def test_one_that_has_seen_the_end_gets_204() -> None:
    talk = Talk()
    talk.let_on()
    first = await ask(talk.app)
    for _ in range(3):
        again = await ask(talk.app, last_event_id=first.position)
        assert (again.status, again.body, again.is_complete) == (204, b"", True)
        assert "content-type" not in again.headers
    assert talk.calls == 1


async def test_one_whose_run_is_known_by_name_only_gets_204() -> None:
    talk = Talk()
    talk.app.state.callbackkit_runs = RecentRuns(max_kept=0)
    talk.let_on()
    first = await ask(talk.app)
    again = await ask(talk.app, last_event_id=first.events[0].id)
    assert (again.status, talk.calls) == (204, 1)


async def test_one_of_an_unknown_run_begins_a_run() -> None:
    talk = Talk()
    talk.let_on()
    first = await ask(talk.app)
    for last_event_id in (f"{'0' * 32}-1", "", "x", "3", first.position[:32]):
        other = await ask(talk.app, last_event_id=last_event_id)
        assert (other.status, tokens(other.events)) == (200, tokens(first.events))
        assert other.position != first.position
    assert talk.calls == 6


async def test_a_run_cannot_be_had_from_another_path() -> None:
    talk = Talk()
    talk.let_on()
    first = await ask(talk.app)
    other = await ask(talk.app, path="/b", last_event_id=first.position)
    assert (other.status, talk.calls) == (200, 2)


@pytest.mark.parametrize("other", ["ndjson", "text"])
async def test_other_formats_have_no_ids_to_come_back_with(other: str) -> None:
    talk = Talk()
    talk.let_on()
    first = await ask(talk.app)
    talk.options["format"] = other
    assert (await ask(talk.app, last_event_id=first.position)).status == 200
    assert talk.calls == 2


async def test_without_an_application_nobody_comes_back() -> None:
    talk = Talk()
    talk.let_on()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await stream_response(talk.speak, "!")(scope, receive, send)

    first = await ask(app)
    assert (await ask(app, last_event_id=first.position)).status == 200
    assert talk.calls == 2


# What makes no sense.


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"format": "xml"}, ValueError, "format must be 'sse', 'ndjson' or 'text', not 'xml'"),
        ({"on_disconnect": "stop"}, ValueError, "on_disconnect must be 'cancel' or 'continue'"),
        ({"reconnect_within": -1}, ValueError, "reconnect_within must be 0 or more, not -1"),
        ({"reconnect_within": None}, TypeError, "reconnect_within must be a number of seconds"),
        ({"timeout": 0}, ValueError, "timeout must be positive"),
        ({"write_timeout": "1"}, TypeError, "write_timeout must be a number of seconds"),
        ({"heartbeat": 0}, ValueError, "heartbeat must be positive"),
        ({"retry_ms": -1}, ValueError, "retry must be 0 or more milliseconds"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused_at_once(options, error, message) -> None:
    with pytest.raises(error, match=message):
        stream_response(greet, "Ada", **options)


def test_what_cannot_be_run_is_refused_at_once() -> None:
    async def generator():
        yield "a"

    with pytest.raises(TypeError, match="generator"):
        stream_response(generator)
    with pytest.raises(TypeError, match="callable"):
        stream_response("greet")


async def test_wrong_arguments_are_an_error_and_no_stream() -> None:
    client = Client(app_of(greet))
    with pytest.raises(TypeError, match="missing a required argument: 'name'"):
        await client.run()
    assert client.status == 500


def test_without_starlette_the_extra_is_named() -> None:
    program = "import sys; sys.modules['starlette'] = None; import callbackkit.http.starlette"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert "ImportError: callbackkit.http.starlette needs Starlette: install callbackkit[http]" in (
        done.stderr
    )
    assert done.returncode == 1


# Under uvicorn, with real connections.


class Served:
    """A producer in the event loop of a server, steered from the thread of the test."""

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.calls = 0
        self.gates: list[Future[None]] = [Future() for _ in range(3)]
        self.outcomes: queue.Queue[str] = queue.Queue()

    async def speak(self, size: int = 1, callback: Callback | None = None) -> None:
        self.calls += 1
        assert callback is not None
        try:
            for n, gate in enumerate(self.gates):
                callback(str(n) * size)
                await asyncio.wrap_future(gate)
        except BaseException:
            self.outcomes.put("cancelled")
            raise
        self.outcomes.put("done")

    def let_on(self, steps: int = 3) -> None:
        for gate in self.gates[:steps]:
            if not gate.done():
                gate.set_result(None)

    def outcome(self) -> str:
        return self.outcomes.get(timeout=PATIENCE)


@attrs.frozen
class Address:
    port: int
    server: uvicorn.Server

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextlib.contextmanager
def serving(app: Any) -> Iterator[Address]:
    # Bound and listening before the server is up: clients wait in its queue.
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=10)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield Address(listener.getsockname()[1], server)
        finally:
            server.should_exit = True
            thread.join(PATIENCE)
            assert not thread.is_alive()


def fastapi_of(served: Served) -> FastAPI:
    app = FastAPI()

    # Not async: FastAPI calls it in a worker thread.
    @app.get("/")
    def talk(size: int = 1) -> Any:
        return stream_response(served.speak, size, **served.options)

    return app


@contextlib.contextmanager
def connected(
    address: Address, last_event_id: str | None = None
) -> Generator[tuple[httpx2.Response, Iterator[ServerSentEvent]], None, None]:
    """A browser's EventSource: leaving the block drops the connection."""
    headers = {} if last_event_id is None else {"Last-Event-ID": last_event_id}
    with httpx2.stream("GET", address.url, headers=headers, timeout=PATIENCE) as response:
        reader = EventStreamReader()

        def events() -> Iterator[ServerSentEvent]:
            for chunk in response.iter_raw():
                yield from reader.feed(chunk)

        yield response, events()


async def pass_on(
    request: Request, call_next: Callable[[Request], Awaitable[Response]]
) -> Response:
    return await call_next(request)


MIDDLEWARE = {
    "plain": [],
    "base": [Middleware(BaseHTTPMiddleware, dispatch=pass_on)],
    "gzip": [Middleware(GZipMiddleware, minimum_size=1)],
}


@pytest.mark.real_server
@pytest.mark.parametrize("middleware", MIDDLEWARE.values(), ids=MIDDLEWARE)
def test_tokens_arrive_as_they_come(middleware: list[Middleware]) -> None:
    served = Served()
    app = fastapi_of(served)
    app.user_middleware.extend(middleware)
    with serving(app) as address, connected(address) as (response, events):
        assert response.headers["content-type"] == "text/event-stream"
        assert "content-length" not in response.headers
        for n in range(3):
            assert tokens([next(events)]) == [str(n)]
            served.let_on(n + 1)
        assert ending(list(events)) == "ok"


@pytest.mark.real_server
@pytest.mark.parametrize("middleware", MIDDLEWARE.values(), ids=MIDDLEWARE)
def test_under_uvicorn_a_client_that_leaves_cancels_the_run(middleware: list[Middleware]) -> None:
    served = Served(reconnect_within=0.05)
    app = fastapi_of(served)
    app.user_middleware.extend(middleware)
    with serving(app) as address:
        with connected(address) as (_, events):
            last = next(events).id
        assert served.outcome() == "cancelled"
        with connected(address, last) as (response, events):
            assert response.status_code == 200
            seen = list(events)
            assert ending(seen) == "cancelled"
        with connected(address, seen[-1].id) as (response, _):
            assert response.status_code == 204
        assert served.calls == 1


@pytest.mark.real_server
@pytest.mark.parametrize("middleware", MIDDLEWARE.values(), ids=MIDDLEWARE)
def test_under_uvicorn_a_run_continues_without_its_client(middleware: list[Middleware]) -> None:
    served = Served(on_disconnect="continue")
    app = fastapi_of(served)
    app.user_middleware.extend(middleware)
    with serving(app) as address:
        with connected(address) as (_, events):
            last = next(events).id
        served.let_on(1)
        with connected(address, last) as (_, events):
            event = next(events)
            assert tokens([event]) == ["1"]
        served.let_on()
        assert served.outcome() == "done"
        with connected(address, event.id) as (_, events):
            assert tokens(list(events)) == ["2", "<graphai:END>"]
        assert served.calls == 1


@pytest.mark.real_server
def test_by_default_a_browser_has_time_to_come_back() -> None:
    served = Served()
    with serving(fastapi_of(served)) as address:
        with connected(address) as (_, events):
            last = next(events).id
        with connected(address, last) as (_, events):
            served.let_on()
            assert tokens(list(events)) == ["1", "2", "<graphai:END>"]
        assert served.outcome() == "done"


@pytest.mark.real_server
@pytest.mark.parametrize("linger", [None, 0], ids=["FIN", "RST"])
def test_a_connection_that_breaks_is_a_client_that_left(linger: int | None) -> None:
    served = Served(reconnect_within=0)
    with serving(fastapi_of(served)) as address:
        with socket.create_connection(("127.0.0.1", address.port), PATIENCE) as raw:
            raw.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            while b'"token":"0"' not in raw.recv(65_536):
                pass
            if linger is not None:
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, linger))
        assert served.outcome() == "cancelled"


@pytest.mark.real_server
def test_a_frozen_client_is_given_up() -> None:
    served = Served(write_timeout=0.1, reconnect_within=0)
    served.let_on(2)
    with (
        serving(fastapi_of(served)) as address,
        socket.create_connection(("127.0.0.1", address.port), PATIENCE) as raw,
    ):
        # More than the buffers of both sides hold, and none of it is read.
        raw.sendall(b"GET /?size=8000000 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert served.outcome() == "cancelled"


@pytest.mark.real_server
def test_many_requests_at_once_keep_their_runs_apart() -> None:
    app = FastAPI()

    async def count(name: str, callback: Callback) -> None:
        for n in range(50):
            await callback.acall(f"{name}{n}")
            await asyncio.sleep(0)

    @app.get("/{name}")
    async def endpoint(name: str) -> Any:
        return stream_response(count, name, format="text")

    async def get(client: httpx2.AsyncClient, name: str) -> None:
        response = await client.get(f"/{name}")
        assert response.text == "".join(f"{name}{n}" for n in range(50)) + "<graphai:END>"

    async def main() -> None:
        async with (
            httpx2.AsyncClient(base_url=address.url) as client,
            anyio.create_task_group() as tasks,
        ):
            for name in "abcdefgh":
                tasks.start_soon(get, client, name)

    with serving(app) as address:
        anyio.run(main)


@pytest.mark.real_server
def test_a_connection_is_used_again_while_the_function_still_works() -> None:
    gate: Future[None] = Future()
    outcomes: queue.Queue[str] = queue.Queue()

    async def save(callback: Callback) -> None:
        await callback.close()
        await asyncio.wrap_future(gate)
        outcomes.put("saved")

    with serving(app_of(save)) as address, httpx2.Client(base_url=address.url) as client:
        assert "stream_end" in client.get("/").text
        assert "stream_end" in client.post("/").text
        gate.set_result(None)
        assert [outcomes.get(timeout=PATIENCE) for _ in range(2)] == ["saved"] * 2


@pytest.mark.real_server
def test_a_server_that_shuts_down_waits_for_the_run() -> None:
    served = Served(on_disconnect="continue")
    with serving(fastapi_of(served)) as address:
        with connected(address) as (_, events):
            next(events)
        address.server.should_exit = True
        served.let_on()
        assert served.outcome() == "done"
