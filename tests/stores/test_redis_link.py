import asyncio
import gc
import socket
import sys
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import coredis
import pytest

from callbackkit.errors import StoreError, StoreUnavailableError, UnknownSessionError
from callbackkit.stores.base import NewSession
from callbackkit.stores.redis import RedisStore
from callbackkit.stores.redis_client import client_of
from callbackkit.stores.redis_link import Link, Verb, _take
from tests.stores.redis_server import Server, call, fresh_prefix, marks, shared_server

pytestmark = marks

BODY = b'{"conversation_id":null,"data":{},"metadata":{}}'


def new(session_id: str = "s", **options: Any) -> NewSession:
    return NewSession(id=session_id, token_hash=b"hash", **options)


@pytest.fixture(scope="module")
def url() -> str:
    return shared_server()


@pytest.fixture(scope="module", autouse=True)
def garbage() -> Iterator[None]:
    """What coredis leaves open is collected while its warning is passed over, see `marks`."""
    yield
    gc.collect()


@pytest.fixture
async def store(url: str) -> AsyncIterator[RedisStore]:
    store = RedisStore.from_url(url, prefix=fresh_prefix(), partitions=2)
    await store.create_session(new())
    yield store
    await store.aclose()


def link_to(new_client: Callable[[], Any], *, timeout: float = 5.0) -> Link:
    return Link(
        new_client,
        prefix=fresh_prefix(),
        partitions=2,
        timeout=timeout,
        reconcile=0.05,
        clock=None,
    )


def threads() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == "callbackkit-redis"]


async def numbers(store: RedisStore, session_id: str = "s") -> list[int]:
    page = await store.read(session_id, limit=100_000)
    return [record.seq for record in page.records]


# Many at once.


async def test_verbs_of_many_tasks_go_in_few_calls(store: RedisStore, url: str) -> None:
    def calls() -> int:
        stats = call(url, "INFO", "commandstats").decode()
        return sum(
            int(line.partition("calls=")[2].partition(",")[0])
            for line in stats.splitlines()
            if line.startswith(("cmdstat_evalsha:", "cmdstat_eval:"))
        )

    before = calls()
    async with anyio.create_task_group() as tasks:
        for _ in range(1_000):
            tasks.start_soon(store.append, "s", "progress", BODY)
    assert calls() - before < 100
    assert await numbers(store) == list(range(1, 1_001))


async def test_partitions_share_two_connections_or_one_if_there_may_be_no_more(url: str) -> None:
    def asked_by(name: str) -> list[str]:
        clients = call(url, "CLIENT", "LIST", "TYPE", "normal").decode().splitlines()
        mine = [each for each in clients if f" name={name} " in each]
        return [each for each in mine if " cmd=eval" in each]

    for most, wanted in ((None, 2), (1, 1)):
        name = fresh_prefix()
        link = link_to(partial(coredis.Redis.from_url, url, client_name=name, max_connections=most))
        verbs = [Verb(each % 2, "count", []) for each in range(10)]
        with anyio.fail_after(10):
            await link.do(verbs)
        assert [each.result for each in verbs] == [[b"0"]] * 10
        assert len(asked_by(name)) == wanted
        await link.aclose()


async def test_connections_that_were_lost_meanwhile_are_made_anew() -> None:
    with Server() as server:
        link = link_to(client_of(server.url, timeout=5))
        await link.do([Verb(0, "count", [])])
        assert link._shift is not None
        client = link._shift._client
        lost = client._line
        assert lost is not None
        server.call("CLIENT", "KILL", "TYPE", "normal")
        with anyio.fail_after(10):
            while not lost.is_broken:
                await anyio.lowlevel.checkpoint()
        verb = Verb(0, "count", [])
        await link.do([verb])
        assert verb.error is None
        assert client._line is not lost
        await link.aclose()


async def test_a_cancelled_task_goes_on_at_once_and_its_append_is_done(url: str) -> None:
    with Server() as server:
        store = RedisStore.from_url(server.url, prefix=fresh_prefix())
        await store.create_session(new())
        server.pause()
        with anyio.move_on_after(0.05) as scope:
            await store.append("s", "progress", BODY)
        assert scope.cancelled_caught
        server.resume()
        await store.append("s", "progress", BODY)
        assert await numbers(store) == [1, 2]
        await store.aclose()


async def test_answers_stay_with_those_who_asked_while_others_are_cancelled(
    store: RedisStore,
) -> None:
    names = [f"n{n}" for n in range(20)]
    for name in names:
        await store.create_session(new(name))

    async def ask(name: str) -> None:
        for n in range(30):
            with anyio.move_on_after(0 if n % 3 == 0 else 10):
                assert (await store.get_session(name)).id == name

    async with anyio.create_task_group() as tasks:
        for name in names:
            tasks.start_soon(ask, name)


def test_several_event_loops_use_one_store(url: str) -> None:
    store = RedisStore.from_url(url, prefix=fresh_prefix())

    async def work(name: str) -> None:
        await store.create_session(new(name))
        for _ in range(20):
            await store.append(name, "progress", BODY)
        assert await numbers(store, name) == list(range(1, 21))

    runs = [
        threading.Thread(target=anyio.run, args=(work, backend), kwargs={"backend": backend})
        for backend in ("asyncio", "trio")
    ]
    for run in runs:
        run.start()
    for run in runs:
        run.join(10)

    async def check() -> None:
        assert [each.top for each in await store.sessions()] == [20, 20]
        await store.aclose()

    anyio.run(check)


# Its life.


async def test_closing_ends_the_thread_and_twice_is_harmless(url: str) -> None:
    before = threads()
    store = RedisStore.from_url(url, prefix=fresh_prefix())
    await store.aclose()
    await store.start()
    (thread,) = set(threads()) - set(before)
    await store.aclose()
    await anyio.to_thread.run_sync(thread.join, 10)
    assert not thread.is_alive()
    await store.aclose()


async def test_a_verb_after_closing_begins_anew(store: RedisStore) -> None:
    for n in range(3):
        await store.append("s", "progress", BODY)
        await store.aclose()
        assert await numbers(store) == list(range(1, n + 2))


async def test_closing_waits_for_what_was_asked_for(store: RedisStore) -> None:
    done: list[int] = []

    async def append() -> None:
        done.append((await store.append("s", "progress", BODY)).record.seq)

    async with anyio.create_task_group() as tasks:
        for _ in range(500):
            tasks.start_soon(append)
        await anyio.wait_all_tasks_blocked()
        await store.aclose()
    assert sorted(done) == list(range(1, 501))


async def test_closing_does_not_wait_for_a_server_that_does_not_answer() -> None:
    with Server() as server:
        store = RedisStore.from_url(server.url, prefix=fresh_prefix(), timeout=0.2)
        await store.create_session(new())
        server.pause()
        errors: list[StoreUnavailableError] = []

        async def append() -> None:
            try:
                await store.append("s", "progress", b"x" * 500_000)
            except StoreUnavailableError as error:
                errors.append(error)

        with anyio.fail_after(10):
            async with anyio.create_task_group() as tasks:
                for _ in range(40):
                    tasks.start_soon(append)
                await anyio.wait_all_tasks_blocked()
                await store.aclose()
        assert len(errors) == 40


async def test_a_store_used_before_a_fork_says_so_after_it(url: str) -> None:
    script = """
import os, sys, anyio
from callbackkit.errors import StoreError
from callbackkit.stores.redis import RedisStore
store = RedisStore.from_url(sys.argv[1], prefix="fork")
unused = RedisStore.from_url(sys.argv[1], prefix="fork")
anyio.run(store.start)
read, write = os.pipe()
if os.fork() == 0:
    try:
        anyio.run(store.start)
    except StoreError as error:
        os.write(write, str(error).encode())
    anyio.run(store.aclose)
    anyio.run(unused.start)
    os.write(write, b"; unused is fine")
    os._exit(0)
os.close(write)
os.wait()
print(os.read(read, 1000).decode())
anyio.run(store.start)
anyio.run(store.aclose)
"""
    # Python warns of forking where there are threads; that is what this is about.
    command = [sys.executable, "-W", "ignore", "-c", script, url]
    run = await anyio.run_process(command, check=False)
    assert (run.returncode, run.stderr) == (0, b"")
    assert run.stdout.decode().strip() == (
        "the store was used before this process was forked; make one anew; unused is fine"
    )


async def test_a_process_ends_without_closing_its_store(url: str) -> None:
    script = """
import sys, anyio
from callbackkit.stores.redis import RedisStore
store = RedisStore.from_url(sys.argv[1], prefix="end")
anyio.run(store.start)
"""
    with anyio.fail_after(20):
        run = await anyio.run_process(
            [sys.executable, "-W", "error", "-c", script, url], check=False
        )
    assert (run.returncode, run.stdout, run.stderr) == (0, b"", b"")


# What goes wrong.


async def test_a_server_that_is_not_there_is_told_and_found_once_it_is() -> None:
    server = Server()
    store = RedisStore.from_url(server.url, prefix=fresh_prefix(), timeout=2.0)
    with anyio.fail_after(10), pytest.raises(StoreUnavailableError, match="did not answer"):
        await store.start()
    with server:
        await store.start()
        await store.create_session(new())
    with pytest.raises(StoreUnavailableError):
        await store.get_session("s")
    await store.aclose()


async def test_one_that_never_answers_is_told_within_the_timeout() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        store = RedisStore.from_url(
            f"redis://127.0.0.1:{silent.getsockname()[1]}", prefix=fresh_prefix(), timeout=0.2
        )
        with anyio.fail_after(5), pytest.raises(StoreUnavailableError):
            await store.start()
        await store.aclose()


async def test_after_a_pause_longer_than_the_timeout_all_goes_on() -> None:
    with Server() as server:
        store = RedisStore.from_url(server.url, prefix=fresh_prefix(), timeout=0.2)
        await store.create_session(new())
        server.pause()
        for _ in range(3):
            with pytest.raises(StoreUnavailableError) as caught:
                await store.append("s", "progress", BODY)
            assert isinstance(caught.value.__cause__, TimeoutError)
        server.resume()
        with anyio.fail_after(10):
            while True:
                try:
                    last = await store.append("s", "progress", BODY)
                    break
                except StoreUnavailableError:
                    continue
        # Those that timed out may have been done: never twice, never out of order.
        assert await numbers(store) == list(range(1, last.record.seq + 1))
        await store.aclose()


async def test_connections_of_calls_that_failed_are_let_go() -> None:
    with Server() as server:
        store = RedisStore.from_url(server.url, prefix=fresh_prefix(), timeout=0.1)
        await store.create_session(new())
        for _ in range(5):
            server.pause()
            with pytest.raises(StoreUnavailableError):
                await store.get_session("s")
            server.resume()
            with anyio.fail_after(10):
                while True:
                    try:
                        await store.get_session("s")
                        break
                    except StoreUnavailableError:
                        continue
        # One that listens, some that ask, and the one that counts.
        with anyio.fail_after(10):
            while clients(server) > 6:
                await anyio.lowlevel.checkpoint()
        await store.aclose()


def clients(server: Server) -> int:
    return len(server.call("CLIENT", "LIST").splitlines())


class Boom(Exception):
    pass


async def test_one_that_makes_no_client_fails_each_verb_and_strands_nobody() -> None:
    def new_client() -> Any:
        raise Boom("no client")

    link = link_to(new_client)
    for _ in range(3):
        verb = Verb(0, "count", [])
        with anyio.fail_after(10):
            await link.do([verb])
        assert isinstance(verb.error, StoreError)
        assert isinstance(verb.error.__cause__, Boom)
    await link.aclose()


async def test_a_clock_that_raises_fails_the_verb_and_not_the_thread(url: str) -> None:
    times = iter([Boom("no time"), 1.0])

    def clock() -> float:
        time = next(times)
        if isinstance(time, Boom):
            raise time
        return time

    store = RedisStore.from_url(url, prefix=fresh_prefix(), partitions=1, clock=clock)
    with pytest.raises(StoreError, match="no time"):
        await store.start()
    await store.start()
    await store.aclose()


async def test_an_answer_of_another_shape_is_an_error_of_each_verb(url: str) -> None:
    class Odd:
        """A server that is none of ours: it answers one row, whatever was asked."""

        async def __aenter__(self) -> Any:
            return self

        async def __aexit__(self, *_exc: object) -> None:
            pass

        async def evalsha(self, *_args: object, **_options: object) -> object:
            return answers.pop(0)

        def pubsub(self, **_options: object) -> Any:
            raise Boom("no channels")

    answers: list[object] = [b"OK", [[b"ok"]], [[b"ok"], None], [[b"ok", b"1"], [b"ok"]]]
    link = link_to(Odd)
    for _ in range(3):
        verbs = [Verb(0, "count", []), Verb(0, "count", [])]
        with anyio.fail_after(10):
            await link.do(verbs)
        assert isinstance(verbs[1].error, StoreError)
        assert not isinstance(verbs[1].error, StoreUnavailableError)
    verbs = [Verb(0, "count", []), Verb(0, "count", [])]
    await link.do(verbs)
    assert [each.result for each in verbs] == [[b"ok", b"1"], [b"ok"]]
    await link.aclose()


async def test_it_is_closed_though_its_end_is_taken_for_a_failure_to_connect(url: str) -> None:
    class Stubborn(Half):
        def pubsub(self, **_options: object) -> Any:
            return self.listen()

        @asynccontextmanager
        async def listen(self) -> AsyncIterator[Any]:
            connecting.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                raise Boom("could not connect") from None
            yield self

    connecting = threading.Event()
    link = link_to(lambda: Stubborn(url, []))
    await link.do([Verb(0, "count", [])])
    with anyio.fail_after(10):
        await anyio.to_thread.run_sync(connecting.wait)
        await link.aclose()


async def test_an_unknown_verb_is_an_error_of_its_own(url: str) -> None:
    link = link_to(client_of(url, timeout=5))
    verbs = [Verb(0, "count", []), Verb(0, "nonsense", []), Verb(0, "count", [])]
    await link.do(verbs)
    assert [each.error is None for each in verbs] == [True, False, True]
    assert not isinstance(verbs[1].error, StoreUnavailableError)
    await link.aclose()


# What no wake told of.


async def test_what_no_wake_told_of_is_found_by_looking(url: str) -> None:
    prefix = fresh_prefix()
    writer = RedisStore.from_url(url, prefix=prefix, partitions=2)
    await writer.create_session(new())

    def deaf() -> Any:
        return Half(url, [])

    link = Link(deaf, prefix=prefix, partitions=2, timeout=5, reconcile=0.05, clock=None)
    with link.wakes.watch("s") as watch:
        await link.do([Verb(0, "count", [])])
        assert await watch.wait(10)  # the first look knows nothing
        while await watch.wait(0.2):
            pass
        await writer.append("s", "progress", BODY)
        assert await watch.wait(10)
    await link.aclose()
    await writer.aclose()


class Half:
    """A client of a cluster that a part is gone of, and that nobody can listen to."""

    def __init__(self, url: str, gone: list[str]) -> None:
        self._client = client_of(url, timeout=5)()
        self._gone = gone

    async def __aenter__(self) -> Any:
        await self._client.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._client.__aexit__(*exc)

    async def evalsha(self, *args: Any, **options: Any) -> Any:
        if options["keys"] == self._gone:
            raise ConnectionError("nobody there")
        return await self._client.evalsha(*args, **options)

    async def eval(self, *args: Any, **options: Any) -> Any:
        return await self._client.eval(*args, **options)

    def pubsub(self, **_options: object) -> Any:
        raise Boom("no channels")


async def test_while_a_part_of_a_cluster_is_gone_the_rest_is_looked_at(url: str) -> None:
    prefix = fresh_prefix()
    writer = RedisStore.from_url(url, prefix=prefix, partitions=2)
    gone: list[str] = []
    link = Link(
        lambda: Half(url, gone), prefix=prefix, partitions=2, timeout=5, reconcile=0.05, clock=None
    )
    by_partition = {link.partition_of(name): name for name in "abcdefgh"}
    for partition, name in by_partition.items():
        await writer.create_session(new(name))
        gone[:] = [link.key(1 - partition)]
        with link.wakes.watch(name) as watch:
            await link.do([Verb(partition, "count", [])])
            while await watch.wait(0.5):
                pass  # the first look knows nothing
            await writer.append(name, "progress", BODY)
            assert await watch.wait(10)
    assert len(by_partition) == 2
    await link.aclose()
    await writer.aclose()


async def test_who_waits_for_a_session_that_was_lost_is_told_when_somebody_finds_out(
    url: str,
) -> None:
    prefix = fresh_prefix()
    writer = RedisStore.from_url(url, prefix=prefix, partitions=1)
    await writer.create_session(new())
    link = Link(
        client_of(url, timeout=5), prefix=prefix, partitions=1, timeout=5, reconcile=60, clock=None
    )
    with link.wakes.watch("s") as watch:
        await link.do([Verb(0, "count", [])])
        assert await watch.wait(10)  # it is listened to
        while await watch.wait(0.2):
            pass
        call(url, "DEL", f"{{{prefix}:0}}:s:s")
        with pytest.raises(UnknownSessionError):
            await writer.append("s", "progress", BODY)
        assert await watch.wait(10)
    await link.aclose()
    await writer.aclose()


async def test_a_list_of_changes_that_was_lost_is_told(url: str) -> None:
    prefix = fresh_prefix()
    link = Link(
        client_of(url, timeout=5), prefix=prefix, partitions=1, timeout=5, reconcile=60, clock=None
    )
    store = RedisStore.from_url(url, prefix=prefix, partitions=1)

    async def changes(gen: bytes, after: bytes) -> list[Any]:
        verb = Verb(0, "changes", [gen, after, "100"])
        await link.do([verb])
        assert verb.result is not None
        return verb.result[1:]

    await store.create_session(new())
    gen, before, are_all_known, _ = await changes(b"", b"0")
    assert are_all_known == b"0"
    await store.append("s", "progress", BODY)
    _, newest, are_all_known, ids = await changes(gen, before)
    assert (are_all_known, ids) == (b"1", [b"s"])
    assert (await changes(gen, newest))[2:] == [b"1", []]
    await store.create_session(new("t"))
    await store.delete_session("t", linger=0)
    await store.sweep()
    assert (await changes(gen, newest))[2:] == [b"1", [b""]]
    await store.append("s", "progress", BODY)
    call(url, "DEL", f"{{{prefix}:0}}:ch")
    assert (await changes(gen, newest))[2:] == [b"0", []]
    assert (await changes(gen, b"1000"))[2] == b"0"
    call(url, "DEL", f"{{{prefix}:0}}:meta")
    assert (await changes(gen, b"0"))[0] != gen
    await store.aclose()
    await link.aclose()


def test_a_call_is_bounded_in_verbs_and_bytes() -> None:
    small = deque(Verb(0, "append", ["s", ""]) for _ in range(300))
    assert [len(_take(small)) for _ in range(3)] == [128, 128, 44]
    light = deque(Verb(0, "touch", ["s", ""]) for _ in range(600))
    assert [len(_take(light)) for _ in range(2)] == [512, 88]
    large = deque(Verb(0, "append", [b"x" * 262_144]) for _ in range(5))
    assert [len(_take(large)) for _ in range(2)] == [4, 1]
    reads = deque(Verb(0, "read", ["s"]) for _ in range(100))
    assert len(_take(reads)) == 64
