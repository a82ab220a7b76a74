"""A client that polls for the last events of a session: of a few, and of many."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from urllib.parse import quote

from callbackkit import CallbackManager, Limits
from callbackkit.events import Event
from callbackkit.sessions.session import Session
from callbackkit.transports.polling import poll
from tests.benchmarks.fan_out_ours import application
from tests.benchmarks.fan_out_service import DATA, App, Message
from tests.benchmarks.harness import Case, Measure, Table, awaited

NEWEST = 10

Poll = Callable[[], Awaitable[bytes]]
"""Returns the body of the answer."""


@contextmanager
def polled(few: int, many: int) -> Iterator[Table]:
    """Poll for the last events of a few and of many, in memory."""
    with asyncio.Runner() as runner:
        # Nobody is to be told to ask less often.
        manager = CallbackManager(limits=Limits(max_requests=1_000_000_000))
        app = application(manager)
        cases = []
        for name, way in (
            ("a page by position", _page),
            ("a request by position", partial(_request, app)),
            ("a request by timestamp", partial(_since, app)),
        ):
            limit = f"callbackkit, {name}, of {few:_}"
            cases.append(Case(limit, _measure(runner, manager, way, few)))
            measure = _measure(runner, manager, way, many)
            cases.append(Case(f"callbackkit, {name}, of {many:_}", measure, 1.3, beside=limit))
        yield Table(f"poll for the last {NEWEST} events, by how many there are", cases)


def _measure(
    runner: asyncio.Runner,
    manager: CallbackManager,
    way: Callable[[CallbackManager, Session, Event], Poll],
    events: int,
) -> Measure:
    async def fill() -> Poll:
        session = await manager.create_session()
        emitted = [await manager.emit(session.id, "progress", DATA) for _ in range(events)]
        last_seen = emitted[-NEWEST - 1]
        assert last_seen is not None
        return way(manager, session, last_seen)

    ask = runner.run(fill())
    found = len(json.loads(runner.run(ask()))["events"])
    if found != NEWEST:
        raise RuntimeError(f"{found} events were polled, not {NEWEST}")
    return awaited(runner, ask)


def _page(manager: CallbackManager, session: Session, last_seen: Event) -> Poll:
    async def ask() -> bytes:
        return (await poll(manager, session, after=last_seen.position)).encode()

    return ask


def _request(app: App, _: CallbackManager, session: Session, last_seen: Event) -> Poll:
    return partial(_ask, app, session, f"after={last_seen.id}")


def _since(app: App, _: CallbackManager, session: Session, last_seen: Event) -> Poll:
    return partial(_ask, app, session, f"since={quote(last_seen.timestamp.isoformat())}")


async def _ask(app: App, session: Session, query: str) -> bytes:
    """Ask an application as a server would, and return the body of its answer."""
    path = f"/callbacks/sessions/{session.id}/events"
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": query.encode(),
        "headers": [(b"host", b"127.0.0.1")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
    }
    parts: list[bytes] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        parts.append(message.get("body", b""))

    await app(scope, receive, send)
    return b"".join(parts)
