"""What a store does when its file can't be used: one typed error, nothing half kept, and on."""

import os
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from callbackkit.errors import StoreUnavailableError
from callbackkit.stores.base import NewSession
from callbackkit.stores.sqlite import SQLiteStore

BODY = b'{"conversation_id":null,"data":{},"metadata":{}}'


def new(session_id: str = "s") -> NewSession:
    return NewSession(id=session_id, token_hash=b"hash")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SQLiteStore]:
    store = SQLiteStore(path, timeout=0.2)
    await store.create_session(new())
    await store.append("s", "progress", BODY)
    yield store
    await store.aclose()


async def unavailable(path: Path) -> StoreUnavailableError:
    """Return what a store on this path raises."""
    store = SQLiteStore(path, timeout=0.2)
    errors = []
    for verb in (store.start, store.totals, store.health):
        with pytest.raises(StoreUnavailableError, match=path.name) as caught:
            await verb()
        assert isinstance(caught.value.__cause__, sqlite3.Error | OSError)
        errors.append(caught.value)
    await store.aclose()
    return errors[0]


def exists(path: Path) -> bool:
    return path.exists()


def take_away(*paths: Path) -> None:
    for path in paths:
        path.unlink()


def move(old: Path, new: Path) -> None:
    old.replace(new)


async def numbers(store: SQLiteStore) -> list[int]:
    return [record.seq for record in (await store.read("s")).records]


# Files that are none of ours.


async def test_a_file_that_is_no_database_is_told_and_left_alone(path: Path) -> None:
    content = b"To be, or not to be" * 1000
    await anyio.Path(path).write_bytes(content)
    assert "no SQLite database" in str(await unavailable(path))
    assert await anyio.Path(path).read_bytes() == content


async def test_a_folder_is_told(path: Path) -> None:
    await anyio.Path(path).mkdir()
    await unavailable(path)


async def test_a_missing_folder_is_told_and_not_made(tmp_path: Path) -> None:
    await unavailable(tmp_path / "missing" / "events.db")
    assert not (tmp_path / "missing").exists()


async def test_a_folder_in_the_place_of_the_file_beside_it_is_told(path: Path) -> None:
    await anyio.Path(f"{path}-instance").mkdir()
    await unavailable(path)


async def test_a_file_beside_it_that_is_cut_off_is_no_reason_to_stop(store, path: Path) -> None:
    os.truncate(f"{path}-instance", 10)
    await store.append("s", "progress", BODY)
    assert await numbers(store) == [1, 2]


async def test_who_waits_is_woken_again_once_the_file_is_back(store, path: Path) -> None:
    other = SQLiteStore(path)
    await other.start()
    move(path, path.with_name("away"))
    with store.watch("s") as watch:
        assert not await watch.wait(0.2)
        move(path.with_name("away"), path)
        await other.append("s", "progress", BODY)
        assert await watch.wait(20)
    await other.aclose()


async def test_a_folder_that_is_made_later_is_used(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "later" / "events.db")
    with pytest.raises(StoreUnavailableError):
        await store.start()
    (tmp_path / "later").mkdir()
    await store.create_session(new())
    assert (await store.totals()).sessions == 1
    await store.aclose()


# Files that are taken away.


async def test_a_file_that_is_replaced_is_opened_anew(store, path: Path, tmp_path: Path) -> None:
    other = SQLiteStore(tmp_path / "other.db")
    await other.create_session(new("other"))
    await other.aclose()
    assert await numbers(store) == [1]
    move(tmp_path / "other.db", path)
    take_away(Path(f"{path}-wal"), Path(f"{path}-shm"))
    await store.append("other", "progress", BODY)
    assert [session.id for session in await store.sessions()] == ["other"]


async def test_a_file_that_is_gone_takes_no_more_events(store, path: Path) -> None:
    take_away(*path.parent.glob("events.db*"))
    with pytest.raises(LookupError):
        await store.append("s", "progress", BODY)
    assert exists(path)


async def test_a_folder_that_is_gone_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    store = SQLiteStore(folder / "events.db")
    await store.create_session(new())
    for each in folder.iterdir():
        each.unlink()
    folder.rmdir()
    with pytest.raises(StoreUnavailableError):
        await store.append("s", "progress", BODY)
    with pytest.raises(StoreUnavailableError):
        await store.read("s")
    await store.aclose()


# Locked.


async def test_a_file_locked_for_ever_is_told_and_used_again_later(store, path: Path) -> None:
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    errors: list[StoreUnavailableError] = []

    async def append() -> None:
        with pytest.raises(StoreUnavailableError, match="locked") as caught:
            await store.append("s", "progress", BODY)
        errors.append(caught.value)

    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(append)
    assert len(set(map(id, errors))) == 5
    assert all(isinstance(error.__cause__, sqlite3.OperationalError) for error in errors)
    # Reading goes on meanwhile.
    assert await numbers(store) == [1]
    other.execute("ROLLBACK")
    other.close()
    await store.append("s", "progress", BODY)
    assert await numbers(store) == [1, 2]


async def test_a_lock_that_is_held_for_a_while_is_waited_for(path: Path) -> None:
    store = SQLiteStore(path)
    await store.create_session(new())
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(store.append, "s", "progress", BODY)
        await anyio.sleep(0.3)
        other.execute("COMMIT")
    other.close()
    assert await numbers(store) == [1]
    await store.aclose()


async def test_a_file_locked_while_it_is_opened_is_told(path: Path) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("BEGIN IMMEDIATE")
    store = SQLiteStore(path, timeout=0.2)
    with pytest.raises(StoreUnavailableError, match="locked"):
        await store.start()
    connection.execute("ROLLBACK")
    connection.close()
    await store.start()
    await store.aclose()


# Disks.

LIMITED = """
import resource, signal, sys, anyio
from callbackkit.errors import StoreUnavailableError
from callbackkit.stores.base import NewSession
from callbackkit.stores.sqlite import SQLiteStore

BODY = b"x" * 100

def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

async def main():
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    store = SQLiteStore(sys.argv[1])
    await store.create_session(NewSession(id="s", token_hash=b"hash"))
    limit(300_000)
    kept = 0
    try:
        while True:
            kept = (await store.append("s", "progress", BODY)).record.seq
    except StoreUnavailableError as error:
        assert error.__cause__ is not None
    for _ in range(3):
        try:
            await store.append("s", "progress", BODY * 10_000)
        except StoreUnavailableError:
            pass
        else:
            raise AssertionError("a full disk took it")
    page = await store.read("s", limit=100_000)
    assert [each.seq for each in page.records] == list(range(1, kept + 1)), (kept, page.top)
    limit(resource.RLIM_INFINITY)
    last = await store.append("s", "progress", BODY * 10_000)
    assert last.record.seq == kept + 1
    await store.aclose()

anyio.run(main)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of file sizes as Linux has them")
def test_a_full_disk_is_told_and_used_again_once_there_is_room(path: Path) -> None:
    run(LIMITED, path)
    assert integrity(path) == "ok"


READ_ONLY = """
import os, sys, anyio
from callbackkit.errors import StoreUnavailableError
from callbackkit.stores.base import NewSession
from callbackkit.stores.sqlite import SQLiteStore

path = sys.argv[1]

async def main():
    store = SQLiteStore(path)
    await store.start()
    await store.aclose()
    os.chmod(path, 0o444)
    os.chmod(os.path.dirname(path), 0o555)
    if os.geteuid() == 0:
        # Who is root may write everything.
        os.chown(os.path.dirname(path), 65534, 65534)
        for name in os.listdir(os.path.dirname(path)):
            os.chown(os.path.join(os.path.dirname(path), name), 65534, 65534)
        os.seteuid(65534)
    store = SQLiteStore(path)
    for verb in (store.start, store.health):
        try:
            await verb()
        except StoreUnavailableError as error:
            assert error.__cause__ is not None
        else:
            raise AssertionError("it was written to")
    os.chmod(os.path.dirname(path), 0o755)
    os.chmod(path, 0o644)
    await store.create_session(NewSession(id="s", token_hash=b"hash"))
    await store.aclose()
    os.seteuid(user)

user = os.geteuid()
anyio.run(main)
"""


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="permissions as POSIX has them")
def test_a_read_only_file_is_told_and_used_again_once_it_may_be_written() -> None:
    # Not below tmp_path: the folders above have to be open to whoever the program becomes.
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        path = Path(folder) / "inner" / "events.db"
        path.parent.mkdir()
        run(READ_ONLY, path)


def run(program: str, *arguments: object) -> None:
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def integrity(path: Path) -> str:
    connection = sqlite3.connect(path)
    (answer,) = connection.execute("PRAGMA integrity_check").fetchone()
    connection.close()
    return str(answer)


async def test_a_damaged_file_is_told_and_used_again_once_repaired(store, path: Path) -> None:
    for _ in range(100):
        await store.append("s", "progress", BODY)
    await store.aclose()
    file = anyio.Path(path)
    content = await file.read_bytes()
    await file.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))
    damaged = SQLiteStore(path)
    for _ in range(2):
        with pytest.raises(StoreUnavailableError, match="damaged"):
            await damaged.append("s", "progress", BODY)
    await file.write_bytes(content)
    assert (await damaged.append("s", "progress", BODY)).record.seq == 102
    await damaged.aclose()
