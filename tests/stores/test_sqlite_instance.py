"""A file that was copied, moved or turned back has new epochs; any other keeps them."""

import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import anyio
import pytest

from callbackkit.errors import LeaseLostError
from callbackkit.stores.base import NewSession
from callbackkit.stores.sqlite import SQLiteStore
from callbackkit.stores.sqlite_instance import Instance

BODY = b'{"conversation_id":null,"data":{},"metadata":{}}'

# A copy is made by another process: closing a file drops the locks SQLite holds on it here.
COPY = "import shutil, sys; shutil.copyfile(*sys.argv[1:])"


async def append(path: Path, count: int = 1) -> None:
    store = SQLiteStore(path)
    for _ in range(count):
        await store.append("s", "progress", BODY)
    await store.aclose()


async def epochs(path: Path) -> tuple[str, ...]:
    store = SQLiteStore(path)
    found = tuple([session.epoch for session in await store.sessions()])
    await store.aclose()
    return found


@pytest.fixture
async def path(tmp_path: Path) -> Path:
    """A store with two sessions and a few records."""
    path = tmp_path / "events.db"
    store = SQLiteStore(path)
    for name in ("s", "t"):
        await store.create_session(NewSession(id=name, token_hash=b"hash", pushes=True, method="m"))
    await store.append("s", "progress", BODY)
    await store.aclose()
    return path


def all_differ(ours: tuple[str, ...], theirs: tuple[str, ...]) -> bool:
    return len(ours) == len(theirs) == 2 and len({*ours, *theirs}) == 4


async def test_opened_again_it_is_the_same(path: Path) -> None:
    before = await epochs(path)
    await append(path, 3)
    assert await epochs(path) == before


async def test_another_process_that_opens_it_changes_nothing(path: Path) -> None:
    store = SQLiteStore(path)
    before = (await store.get_session("s")).epoch
    other = SQLiteStore(path)
    await other.append("s", "progress", BODY)
    await store.append("s", "progress", BODY)
    assert (await other.get_session("s")).epoch == before == (await store.get_session("s")).epoch
    await other.aclose()
    await store.aclose()


async def test_an_older_copy_put_over_it_is_recognised(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copyfile(path, copy)
    before = await epochs(path)
    await append(path)
    inode = os.stat(path).st_ino
    shutil.copyfile(copy, path)
    assert os.stat(path).st_ino == inode
    assert all_differ(before, await epochs(path))


async def test_an_older_copy_moved_over_it_is_recognised(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copyfile(path, copy)
    before = await epochs(path)
    await append(path)
    copy.replace(path)
    assert all_differ(before, await epochs(path))


async def test_a_copy_elsewhere_is_another_store(path: Path, tmp_path: Path) -> None:
    before = await epochs(path)
    copy = tmp_path / "copy"
    shutil.copyfile(path, copy)
    assert all_differ(before, await epochs(copy))
    assert await epochs(path) == before


async def test_a_copy_with_all_that_stands_beside_it_is_another_store(path, tmp_path) -> None:
    before = await epochs(path)
    folder = tmp_path / "folder"
    folder.mkdir()
    for each in tmp_path.glob("events.db*"):
        shutil.copy2(each, folder)
    assert all_differ(before, await epochs(folder / "events.db"))


async def test_a_copy_that_went_on_is_recognised_where_it_came_from(path, tmp_path) -> None:
    before = await epochs(path)
    copy = tmp_path / "copy"
    shutil.copyfile(path, copy)
    await append(copy, 5)
    theirs = await epochs(copy)
    shutil.copyfile(copy, path)
    after = await epochs(path)
    assert all_differ(before, after)
    assert all_differ(theirs, after)


async def test_a_backup_by_vacuum_is_another_store(path: Path, tmp_path: Path) -> None:
    before = await epochs(path)
    connection = sqlite3.connect(path)
    connection.execute("VACUUM INTO ?", (str(tmp_path / "copy"),))
    connection.close()
    assert all_differ(before, await epochs(tmp_path / "copy"))
    assert await epochs(path) == before


async def test_a_backup_that_is_restored_is_recognised(path: Path, tmp_path: Path) -> None:
    before = await epochs(path)
    copy, ours = sqlite3.connect(tmp_path / "copy"), sqlite3.connect(path)
    ours.backup(copy)
    await append(path)
    copy.backup(ours)
    copy.close()
    ours.close()
    after = await epochs(path)
    assert all_differ(before, after)
    assert await epochs(path) == after


async def test_a_copy_made_while_it_is_open_is_another_store(path: Path, tmp_path: Path) -> None:
    store = SQLiteStore(path)
    before = tuple([session.epoch for session in await store.sessions()])
    await store.append("s", "progress", BODY)
    for end in ("", "-wal"):
        paths = (f"{path}{end}", f"{tmp_path / 'copy'}{end}")
        await anyio.run_process([sys.executable, "-c", COPY, *paths])
    assert all_differ(before, await epochs(tmp_path / "copy"))
    await store.aclose()
    assert await epochs(path) == before


async def test_what_stands_beside_it_being_lost_gives_new_epochs(path: Path) -> None:
    before = await epochs(path)
    os.unlink(f"{path}-instance")
    after = await epochs(path)
    assert all_differ(before, after)
    assert await epochs(path) == after


@pytest.mark.parametrize("content", [b"", b"short", b"x" * 200])
async def test_what_stands_beside_it_being_damaged_gives_new_epochs(path, content: bytes) -> None:
    before = await epochs(path)
    await anyio.Path(f"{path}-instance").write_bytes(content)
    after = await epochs(path)
    assert all_differ(before, after)
    assert await epochs(path) == after


async def test_what_stands_beside_it_being_behind_changes_nothing(path: Path) -> None:
    before = await epochs(path)
    beside = anyio.Path(f"{path}-instance")
    old = await beside.read_bytes()
    await append(path, 3)
    assert await beside.read_bytes() != old
    await beside.write_bytes(old)
    assert await epochs(path) == before


async def test_a_claim_from_before_is_refused_in_a_copy(path: Path, tmp_path: Path) -> None:
    store = SQLiteStore(path)
    (claim,) = (await store.claim("w", methods=["m"], limit=1, lease=600)).claims
    await store.aclose()
    shutil.copyfile(path, tmp_path / "copy")
    copy = SQLiteStore(tmp_path / "copy")
    with pytest.raises(LeaseLostError):
        await copy.ack(claim, 1, None)
    (again,) = (await copy.claim("w", methods=["m"], limit=1, lease=600)).claims
    assert again.fence > claim.fence
    assert again.epoch != claim.epoch
    await copy.aclose()


OPEN = """
import sys, anyio
from callbackkit.errors import LeaseLostError
from callbackkit.stores.base import NewSession
from callbackkit.stores.sqlite import SQLiteStore

async def main():
    store = SQLiteStore(sys.argv[1])
    print("ready", flush=True)
    sys.stdin.readline()
    session = await store.create_session(NewSession(id=sys.argv[2], token_hash=b"hash"))
    print(session.epoch, flush=True)
    sys.stdin.readline()
    print((await store.get_session(sys.argv[2])).epoch, flush=True)
    await store.aclose()

anyio.run(main)
"""


def test_processes_that_open_it_at_once_for_the_first_time_agree(tmp_path: Path) -> None:
    path = tmp_path / "events.db"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", OPEN, path, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in "abcd"
    ]

    def ask(order: str | None) -> list[str]:
        for process in processes:
            assert process.stdin is not None
            if order is not None:
                process.stdin.write(order)
                process.stdin.flush()
        return [process.stdout.readline().strip() for process in processes if process.stdout]

    assert ask(None) == ["ready"] * 4
    first = ask("\n")
    second = ask("\n")
    for process in processes:
        process.communicate(timeout=20)
    assert len(set(first)) == 4
    assert second == first
    assert sorted(anyio.run(epochs, path)) == sorted(first)


# Leases of those who are gone.

DIES_WITH_A_CLAIM = """
import os, sys
import anyio
from callbackkit.stores.sqlite import SQLiteStore

async def main():
    store = SQLiteStore(sys.argv[1])
    claims = await store.claim("dead", methods=["m"], limit=9, lease=3600)
    os.write(1, str(len(claims.claims)).encode())
    os._exit(137)

anyio.run(main)
"""


def claim_and_die(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", DIES_WITH_A_CLAIM, str(path)], capture_output=True, check=False
    )
    assert (done.returncode, done.stdout) == (137, b"1"), done.stderr


async def claims_of(store: SQLiteStore) -> int:
    return len((await store.claim("worker", methods=["m"], limit=9, lease=3600)).claims)


async def test_whoever_opens_it_alone_need_not_wait_for_the_leases_of_the_dead(path: Path) -> None:
    claim_and_die(path)
    store = SQLiteStore(path)
    assert await claims_of(store) == 1
    await store.aclose()


async def test_the_lease_on_a_dead_letter_ends_too(path: Path) -> None:
    store = SQLiteStore(path)
    [claim] = (await store.claim("w", methods=["m"], limit=9, lease=60)).claims
    await store.park(claim, upto=1, letter_id="s_e_1", reason="no", attempt=None)
    assert await store.redrive("s") == 1
    await store.aclose()
    claim_and_die(path)
    store = SQLiteStore(path)
    assert await claims_of(store) == 1
    await store.aclose()


async def test_beside_another_process_leases_run_out_by_themselves(path: Path) -> None:
    """The one that holds it may be alive, and in the midst of sending."""
    other = SQLiteStore(path)
    await other.start()
    claim_and_die(path)
    store = SQLiteStore(path)
    assert await claims_of(store) == 0
    await other.aclose()
    await store.aclose()


async def test_a_store_that_opens_its_file_again_ends_no_lease(path: Path) -> None:
    """After an error, say: what it is delivering itself goes on."""
    claim_and_die(path)
    instance = Instance(str(path))
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        instance.check(connection, is_first=False)
        connection.execute("COMMIT")
        assert connection.execute("SELECT is_leased FROM log WHERE due_at > 0").fetchall() == [(1,)]
        connection.execute("BEGIN IMMEDIATE")
        instance.check(connection, is_first=True)
        connection.execute("COMMIT")
        assert connection.execute("SELECT is_leased FROM log WHERE due_at > 0").fetchall() == [(0,)]
    instance.close()
