"""Several processes with one file, and processes that are killed."""

import json
import random
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path

import anyio
import pytest

from callbackkit.events import Position
from callbackkit.stores.base import NewSession
from callbackkit.stores.sqlite import SQLiteStore

BODY = b'{"conversation_id":null,"data":{},"metadata":{}}'

# Appends to sessions until told to stop or killed, and says so of each that is acknowledged.
APPEND = """
import json, os, sys, anyio
from callbackkit.errors import LimitError
from callbackkit.stores.base import NewSession, Retention
from callbackkit.stores.sqlite import SQLiteStore

path, name, tasks, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])

async def main():
    store = SQLiteStore(path)
    try:
        kept = Retention(max_events=None, max_bytes=None)
        new = NewSession(
            id=name, token_hash=b"hash", pushes=True, method="m", retention=kept, max_pending=10**9
        )
        await store.create_session(new)
    except ValueError:
        pass

    async def append(task):
        for number in range(count):
            body = json.dumps({"task": f"{os.getpid()}-{task}", "number": number}).encode()
            appended = await store.append(name, "progress", body)
            line = [str(appended.epoch), appended.record.seq, body.decode()]
            os.write(1, json.dumps(line).encode() + b"\\n")

    async with anyio.create_task_group() as group:
        for task in range(tasks):
            group.start_soon(append, task)
    await store.aclose()

anyio.run(main)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SQLiteStore]:
    store = SQLiteStore(path)
    await store.create_session(NewSession(id="s", token_hash=b"hash", pushes=True, method="m"))
    yield store
    await store.aclose()


def start(program: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str]) -> list[str]:
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    return out.splitlines()


def integrity(path: Path) -> str:
    connection = sqlite3.connect(path)
    (answer,) = connection.execute("PRAGMA integrity_check").fetchone()
    connection.close()
    return str(answer)


# Killed.


class Kept:
    """What a session of a file holds."""

    def __init__(self, path: Path, session_id: str) -> None:
        self.bodies: dict[int, str] = {}
        self.epoch = ""
        anyio.run(self._read, path, session_id)

    async def _read(self, path: Path, session_id: str) -> None:
        store = SQLiteStore(path)
        position: Position | None = None
        while True:
            page = await store.read(session_id, after=position, limit=5_000)
            self.epoch = page.epoch
            for record in page.records:
                self.bodies[record.seq] = record.body.decode()
            if not page.records:
                break
            position = Position(page.epoch, page.records[-1].seq)
        session = await store.get_session(session_id)
        assert session.sent == session.top == len(self.bodies)
        await store.aclose()


def rest(process: subprocess.Popen[str]) -> tuple[str, str]:
    """What a process that is about to end still says, by the buffer `readline` filled.

    `communicate` reads past that buffer.
    """
    assert process.stdout is not None
    assert process.stderr is not None
    with process:
        return process.stdout.read(), process.stderr.read()


def killed(path: Path, tasks: int, after: int) -> Iterator[tuple[str, int, str]]:
    """Kill a process that appends, some time after so many acknowledgements; yield these."""
    process = start(APPEND, path, "s", tasks, 10**9)
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(after)]
    timer = threading.Timer(random.uniform(0, 0.003), process.send_signal, [signal.SIGKILL])
    timer.start()
    out, err = rest(process)
    timer.join()
    assert (process.returncode, err) == (-signal.SIGKILL, "")
    for line in [*lines, *out.splitlines()]:
        yield tuple(json.loads(line))


def check_kills(path: Path, rounds: int) -> None:
    acknowledged: dict[int, str] = {}
    epochs: set[str] = set()
    for _ in range(rounds):
        by_task: dict[str, int] = {}
        for epoch, seq, body in killed(path, random.choice([1, 20]), random.randint(1, 60)):
            assert seq not in acknowledged
            acknowledged[seq] = body
            epochs.add(epoch)
            # In the order in which each task got its answers.
            task = json.loads(body)["task"]
            assert seq > by_task.get(task, 0)
            by_task[task] = seq
    kept = Kept(path, "s")
    assert epochs == {kept.epoch}
    assert list(kept.bodies) == list(range(1, len(kept.bodies) + 1))
    assert {seq: kept.bodies.get(seq) for seq in acknowledged} == acknowledged
    for task, numbers in _by_task(kept.bodies.values()).items():
        assert numbers == list(range(len(numbers))), task
    assert integrity(path) == "ok"


def _by_task(bodies: Iterable[str]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for body in bodies:
        content = json.loads(body)
        found.setdefault(content["task"], []).append(content["number"])
    return found


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no kill -9")
def test_what_was_acknowledged_is_there_after_a_kill(path: Path) -> None:
    """In order, without a hole, in the same epoch, and no number is given twice."""
    check_kills(path, 20)


@pytest.mark.torture
@pytest.mark.timeout(600)
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no kill -9")
def test_what_was_acknowledged_is_there_after_many_kills(path: Path) -> None:
    check_kills(path, 200)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no kill -9")
async def test_what_a_killed_process_owed_is_claimed_by_another(path: Path) -> None:
    process = start(APPEND, path, "s", 1, 10**9)
    assert process.stdout is not None
    process.stdout.readline()
    process.kill()
    process.communicate()
    store = SQLiteStore(path)
    (claim,) = (await store.claim(methods=["m"], limit=5, lease=60)).claims
    assert (claim.session_id, claim.cursor) == ("s", 0)
    await store.aclose()


# Changes a session again and again, and says which change was acknowledged.
CHANGE = """
import os, sys, anyio
from callbackkit.stores.sqlite import SQLiteStore

async def main():
    store = SQLiteStore(sys.argv[1])
    config = (await store.get_session("s")).config
    for number in range(1, 10**9):
        known, config = config, b"%d" % number
        session = await store.update_session("s", known=known, config=config, unowed=(str(number),))
        assert session.config == config
        os.write(1, b"%d\\n" % number)

anyio.run(main)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no kill -9")
async def test_a_change_that_was_acknowledged_is_there_after_a_kill(
    store: SQLiteStore, path: Path
) -> None:
    process = start(CHANGE, path)
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(20)]
    process.kill()
    out, err = rest(process)
    assert (process.returncode, err) == (-signal.SIGKILL, "")
    last = int([*lines, *out.splitlines()][-1])
    session = await store.get_session("s")
    # One more may have been made, and not been told.
    assert session.config in {b"%d" % last, b"%d" % (last + 1)}
    assert session.unowed == (session.config.decode(),)


async def test_a_change_by_another_process_counts_in_this_one(
    store: SQLiteStore, path: Path
) -> None:
    """Though this one remembers the session as it was."""
    await store.append("s", "a", BODY)
    (claim,) = (await store.claim(methods=["m"], limit=1, lease=60)).claims
    other = SQLiteStore(path)
    await other.update_session("s", known=claim.config, config=b"2", unowed=("b",))
    await store.append("s", "a", BODY)
    following = await store.ack(claim, 1, None, lease=60)
    assert following is not None
    assert following.config == b"2"
    late = await store.update_session("s", known=claim.config, config=b"3", unowed=())
    assert (late.config, late.unowed) == (b"2", ("b",))
    await other.aclose()


# Several at once.


def test_processes_that_write_at_once_never_see_a_lock(path: Path) -> None:
    names = ["one", "one", "two", "three"]
    processes = [start(APPEND, path, name, 4, 60) for name in names]
    outs = [finish(process) for process in processes]
    for name in set(names):
        lines = [
            json.loads(line)
            for out, each in zip(outs, names, strict=True)
            for line in out
            if each == name
        ]
        kept = Kept(path, name)
        assert {seq: body for _, seq, body in lines} == kept.bodies
        assert {epoch for epoch, _, _ in lines} == {kept.epoch}
    assert integrity(path) == "ok"


KEYED = """
import sys, anyio
from callbackkit.stores.sqlite import SQLiteStore

async def main():
    store = SQLiteStore(sys.argv[1])
    await store.start()
    print("ready", flush=True)
    sys.stdin.readline()
    for number in range(50):
        appended = await store.append("s", "progress", b"%d" % number, key=f"key {number}")
        print(appended.record.seq, int(appended.is_new), flush=True)
    await store.aclose()

anyio.run(main)
"""


async def test_a_key_used_in_two_processes_at_once_gives_one_record(store, path: Path) -> None:
    processes = [start(KEYED, path) for _ in range(2)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    one, two = [[line.split() for line in finish(process)] for process in processes]
    assert [seq for seq, _ in one] == [seq for seq, _ in two]
    assert [int(ours) + int(theirs) for (_, ours), (_, theirs) in zip(one, two, strict=True)] == [
        1
    ] * 50
    page = await store.read("s", limit=1000)
    assert [record.body for record in page.records] == [b"%d" % number for number in range(50)]


SERVE = """
import sys, anyio
from callbackkit.stores.base import NewSession
from callbackkit.stores.sqlite import SQLiteStore

async def main():
    store = SQLiteStore(sys.argv[1])
    for line in sys.stdin:
        verb, name = line.split()
        if verb == "create":
            await store.create_session(NewSession(id=name, token_hash=b"h", ttl=0.001))
        if verb == "append":
            await store.append(name, "progress", b"{}")
        if verb == "end":
            await store.end_session(name, linger=60)
        if verb == "delete":
            await store.delete_session(name, linger=60)
        if verb == "touch":
            await store.touch({name: None})
        if verb == "sweep":
            await store.sweep()
        print("done", flush=True)
    await store.aclose()

anyio.run(main)
"""


class Other:
    """Another process with a store on the same file."""

    def __init__(self, path: Path) -> None:
        self.process = start(SERVE, path)

    def do(self, verb: str, name: str) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{verb} {name}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n"


@pytest.fixture
def other(path: Path) -> Iterator[Other]:
    other = Other(path)
    yield other
    finish(other.process)


@pytest.mark.parametrize("verb", ["append", "end", "delete"])
async def test_another_process_wakes_who_waits_here(store, other, verb: str) -> None:
    with store.watch("s") as watch:
        other.do(verb, "s")
        assert await watch.wait(20)


async def test_a_session_that_another_process_let_expire_wakes_who_waits(store, other) -> None:
    other.do("create", "gone")
    with store.watch("gone") as watch:
        # That it was created may wake.
        await watch.wait(0.3)
        other.do("sweep", "any")
        assert await watch.wait(20)
    with pytest.raises(LookupError):
        await store.get_session("gone")


async def test_what_another_process_owes_wakes_who_claims(store, other) -> None:
    with store.watch(None) as watch:
        other.do("append", "s")
        assert await watch.wait(20)
    assert (await store.claim(methods=["m"], limit=1, lease=60)).claims


async def test_only_what_changed_is_woken(store: SQLiteStore, other: Other) -> None:
    await store.create_session(NewSession(id="t", token_hash=b"hash"))
    with store.watch("s") as changed, store.watch("t") as unchanged, store.watch(None) as due:
        other.do("append", "t")
        assert await unchanged.wait(20)
        assert not await changed.wait(0.2)
        assert not await due.wait(0)
        other.do("touch", "t")
        assert not await unchanged.wait(0.2)


async def test_a_wake_comes_also_after_a_time_in_which_nobody_waited(store, other) -> None:
    for _ in range(3):
        other.do("append", "s")
        await store.append("s", "progress", BODY)
        with store.watch("s") as watch:
            # What was before may wake, once.
            await watch.wait(0.2)
            other.do("append", "s")
            assert await watch.wait(20)


async def test_own_appends_wake_at_once_without_a_look(path: Path) -> None:
    store = SQLiteStore(path, poll=3600)
    await store.create_session(NewSession(id="s", token_hash=b"hash"))
    with store.watch("s") as watch:
        await store.append("s", "progress", BODY)
        assert await watch.wait(20)
        assert not await watch.wait(0.1)
    await store.aclose()


async def test_an_own_append_does_not_hide_that_of_another_process(store, other, path) -> None:
    slow = SQLiteStore(path, poll=0.5)
    await slow.create_session(NewSession(id="t", token_hash=b"hash"))
    with slow.watch("s") as watch:
        await watch.wait(1)
        other.do("append", "s")
        await slow.append("t", "progress", BODY)
        assert await watch.wait(20)
    await slow.aclose()


async def test_watching_before_it_is_opened_misses_nothing(store, other, path: Path) -> None:
    late = SQLiteStore(path)
    with late.watch("s") as watch:
        await late.start()
        await watch.wait(0.3)
        other.do("append", "s")
        assert await watch.wait(20)
    await late.aclose()


PAUSE = """
import sys, anyio
from callbackkit.errors import LeaseLostError
from callbackkit.stores.sqlite import SQLiteStore

async def main():
    store = SQLiteStore(sys.argv[1])
    (claim,) = (await store.claim(methods=["m"], limit=1, lease=0.2)).claims
    print("claimed", flush=True)
    sys.stdin.readline()
    try:
        await store.ack(claim, 1, None)
    except LeaseLostError:
        print("lost", flush=True)
    await store.aclose()

anyio.run(main)
"""


async def test_a_worker_that_was_stopped_longer_than_its_lease_is_refused(store, path) -> None:
    await store.append("s", "progress", BODY)
    process = start(PAUSE, path)
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == "claimed\n"
    process.send_signal(signal.SIGSTOP)
    with anyio.fail_after(20):
        while True:
            claims = await store.claim(methods=["m"], limit=1, lease=60)
            if claims.claims:
                break
            await anyio.sleep(claims.next_in or 0)
    process.stdin.write("\n")
    process.stdin.flush()
    process.send_signal(signal.SIGCONT)
    assert finish(process) == ["lost"]
    assert (await store.get_session("s")).cursor == 0
    await store.ack(claims.claims[0], 1, None)
    assert (await store.get_session("s")).cursor == 1
