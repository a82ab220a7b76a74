"""Following sessions of real servers, which are killed and started again meanwhile."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import attrs
import pytest

from callbackkit.client import Backoff, Events, follow
from callbackkit.errors import AccessDeniedError, SessionDeletedError, UnknownSessionError
from callbackkit.events import Event
from tests.client.rig import PATIENCE, http_client, numbers
from tests.http.withstand_rig import Server, Session

pytestmark = pytest.mark.real_server

QUICK = Backoff(first=0.05, max_delay=0.3, max_told=0.3)
METHODS = ["sse", "websocket", "polling"]
by_each = pytest.mark.parametrize("method", METHODS)
# Events that the server below keeps of a session.
KEPT = 50


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("client")
    with Server(folder / "events.db", open=False, max_events=KEPT) as started:
        yield started


def url_of(server: Server, session: Session) -> str:
    return f"http://127.0.0.1:{server.port}{session.path}"


async def all_of(server: Server, session: Session, **options: Any) -> tuple[list[Event], Events]:
    """Follow a session to its end, with bounded patience."""
    options = {"backoff": QUICK, "token": session.token, **options}
    url = url_of(server, session)
    with anyio.fail_after(PATIENCE):
        async with http_client() as client, follow(url, client=client, **options) as events:
            return [each async for each in events], events


@by_each
async def test_a_session_is_followed_to_its_end(server: Server, method: str) -> None:
    session = server.session()
    server.emit(session, count=3)
    got: list[Event] = []
    with anyio.fail_after(PATIENCE):
        url = url_of(server, session)
        async with (
            http_client() as client,
            follow(url, session.token, method=method, client=client) as events,
        ):
            async for event in events:
                got.append(event)
                if len(got) == 3:
                    server.emit(session, first=3, count=3)
                if len(got) == 6:
                    server.tell(f"end/{session.id}", {})
    assert numbers(got) == list(range(6))
    assert (events.method, events.state, events.position) == (method, "ended", got[-1].position)


@by_each
async def test_who_comes_when_it_has_ended_gets_what_is_kept(server: Server, method: str) -> None:
    session = server.session()
    server.emit(session, count=4)
    server.tell(f"end/{session.id}", {})
    events, _ = await all_of(server, session, method=method)
    assert numbers(events) == [0, 1, 2, 3]
    rest, _ = await all_of(server, session, method=method, after=events[1].position)
    assert numbers(rest) == [2, 3]
    for after in (str(events[-1].position), "now"):
        nothing, _ = await all_of(server, session, method=method, after=after)
        assert nothing == []


@by_each
async def test_what_is_no_longer_kept_is_told(server: Server, method: str) -> None:
    session = server.session()
    server.emit(session, count=1)
    with anyio.fail_after(PATIENCE):
        url = url_of(server, session)
        async with (
            http_client() as client,
            follow(url, session.token, method=method, client=client) as events,
        ):
            first = await anext(events)
    server.emit(session, first=1, count=2 * KEPT)
    server.tell(f"end/{session.id}", {})
    (gap, *rest), _ = await all_of(server, session, method=method, after=first.position)
    assert gap.is_gap
    assert gap.data["missed"] == 2 * KEPT - len(rest)
    assert numbers(rest) == list(range(gap.data["missed"] + 1, 2 * KEPT + 1))


@by_each
async def test_a_position_of_another_log_is_told_too(server: Server, method: str) -> None:
    session = server.session()
    server.emit(session, count=2)
    server.tell(f"end/{session.id}", {})
    (gap, *rest), _ = await all_of(server, session, method=method, after="0123456789abcdef-7")
    assert (gap.is_gap, gap.data["missed"], numbers(rest)) == (True, None, [0, 1])


@by_each
async def test_who_has_no_right_is_told(server: Server, method: str) -> None:
    session = server.session()
    for token in (None, "wrong", server.session().token):
        with pytest.raises(AccessDeniedError) as raised:
            await all_of(server, session, method=method, token=token)
        assert raised.value.status == 401


@by_each
async def test_a_session_that_there_is_not_is_told(server: Server, method: str) -> None:
    session = server.session()
    unknown = attrs.evolve(session, path=session.path.replace(session.id, "0" * 32))
    with pytest.raises(UnknownSessionError):
        await all_of(server, unknown, method=method)
    server.tell(f"delete/{session.id}", {})
    with pytest.raises(SessionDeletedError):
        await all_of(server, session, method=method)


@by_each
async def test_a_session_that_is_deleted_meanwhile_is_told(server: Server, method: str) -> None:
    session = server.session()
    server.emit(session, count=1)
    with anyio.fail_after(PATIENCE):
        url = url_of(server, session)
        async with (
            http_client() as client,
            follow(url, session.token, method=method, client=client, backoff=QUICK) as events,
        ):
            await anext(events)
            server.tell(f"delete/{session.id}", {})
            with pytest.raises(SessionDeletedError):
                await anext(events)


async def test_nothing_is_left_at_the_server(server: Server) -> None:
    session = server.session()
    server.emit(session, count=1)
    # Its store opens files when it likes.
    base = {name: count for name, count in server.base().items() if name != "descriptors"}
    with anyio.fail_after(PATIENCE):
        for method in METHODS:
            url = url_of(server, session)
            async with (
                http_client() as client,
                follow(url, session.token, method=method, client=client) as events,
            ):
                await anext(events)
    await anyio.to_thread.run_sync(server.check_settled, base)


# Killed.


@attrs.define(eq=False)
class Reader:
    """Reads one session by one way, whatever becomes of the server."""

    method: str
    got: list[Event] = attrs.Factory(list)
    wanted: int = 0
    reached: anyio.Event = attrs.Factory(anyio.Event)

    async def read(self, url: str, token: str) -> None:
        async with http_client() as client:
            options: Any = {"method": self.method, "client": client, "backoff": QUICK}
            async with follow(url, token, **options) as events:
                async for event in events:
                    self.got.append(event)
                    if len(self.got) >= self.wanted:
                        self.reached.set()
            assert events.method == self.method.replace("auto", "sse")

    async def until(self, count: int) -> None:
        self.wanted, self.reached = count, anyio.Event()
        if len(self.got) < count:
            await self.reached.wait()


async def test_a_server_that_is_killed_or_stopped_loses_and_doubles_nothing(
    tmp_path: Path,
) -> None:
    readers = [Reader(method) for method in ("auto", *METHODS)]
    run = anyio.to_thread.run_sync
    with Server(tmp_path / "events.db", open=False) as server, anyio.fail_after(5 * PATIENCE):
        session = await run(server.session)
        async with anyio.create_task_group() as tasks:
            for reader in readers:
                tasks.start_soon(reader.read, url_of(server, session), session.token)
            count = 0
            for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
                await run(server.emit, session, count, 20)
                count += 20
                for reader in readers:
                    # Each is somewhere else when it happens.
                    await reader.until(count - readers.index(reader))
                await run(server.emit, session, count, 5)
                count += 5
                await run(server.stop, number)
                await run(server.start)
            await run(server.emit, session, count, 10)
            await run(server.tell, f"end/{session.id}", {})
            count += 10
    for reader in readers:
        assert numbers(reader.got) == list(range(count)), reader.method
        assert not any(event.is_gap for event in reader.got)
