"""A file that was copied, moved or turned back has new epochs; any other keeps them."""

import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import anyio
import pytest

from callbackkit.errors import LeaseLostError, StoreError, StoreUnavailableError
from callbackkit.stores.base import NewSession
from callbackkit.stores.sqlite import SQLiteStore
from callbackkit.stores.sqlite_instance import Instance
from callbackkit.stores.sqlite_place import Place
from callbackkit.stores.sqlite_poller import Poller
from callbackkit.stores.sqlite_presence import Presence
from callbackkit.stores.sqlite_schema import connect

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
    (claim,) = (await store.claim(methods=["m"], limit=1, lease=600)).claims
    await store.aclose()
    shutil.copyfile(path, tmp_path / "copy")
    copy = SQLiteStore(tmp_path / "copy")
    with pytest.raises(LeaseLostError):
        await copy.ack(claim, 1, None)
    (again,) = (await copy.claim(methods=["m"], limit=1, lease=600)).claims
    assert again.fence > claim.fence
    assert again.epoch != claim.epoch
    await copy.aclose()


# The write-ahead log of a process that was killed.

DIES_AFTER_APPENDING = """
import os, sys
import anyio
from callbackkit.stores.sqlite import SQLiteStore

async def main():
    store = SQLiteStore(sys.argv[1])
    for _ in range(30):
        await store.append("s", "progress", b"x" * 500)
    os._exit(137)

anyio.run(main)
"""


def append_and_die(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", DIES_AFTER_APPENDING, str(path)], capture_output=True, check=False
    )
    assert done.returncode == 137, done.stderr
    assert os.stat(f"{path}-wal").st_size > 0


def back_up(path: Path) -> Path:
    backup = path.with_name("backup")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("VACUUM INTO ?", (str(backup),))
    return backup


def copy_all(path: Path, folder: Path) -> Path:
    folder.mkdir()
    for each in path.parent.glob("events.db*"):
        shutil.copy2(each, folder)
    return folder / path.name


def contents(path: Path) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in path.parent.glob("events.db*")}


async def count(path: Path) -> int:
    store = SQLiteStore(path)
    found = len((await store.read("s", limit=1000)).records)
    await store.aclose()
    return found


async def refuse(path: Path) -> None:
    """Hold that a store refuses its file, and changes nothing."""
    before = contents(path)
    store = SQLiteStore(path)
    for verb in (store.start, store.totals, store.health):
        with pytest.raises(StoreError, match=r"not the file that was here last.*-wal.*-instance"):
            await verb()
    await store.aclose()
    assert contents(path) == before


async def test_a_backup_beside_the_log_of_a_killed_process_is_refused_unharmed(path: Path) -> None:
    """SQLite would play the log over it."""
    before = await epochs(path)
    backup = back_up(path)
    append_and_die(path)
    backup.replace(path)
    await refuse(path)
    os.unlink(f"{path}-wal")
    os.unlink(f"{path}-shm")
    assert all_differ(before, await epochs(path))
    assert await count(path) == 1
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


async def test_files_that_are_moved_together_lose_nothing(path: Path, tmp_path: Path) -> None:
    before = await epochs(path)
    append_and_die(path)
    moved = copy_all(path, tmp_path / "folder")
    await refuse(moved)
    os.unlink(f"{moved}-instance")
    assert all_differ(before, await epochs(moved))
    assert await count(moved) == 31


async def test_a_killed_process_is_no_reason_to_refuse(path: Path) -> None:
    before = await epochs(path)
    append_and_die(path)
    assert await epochs(path) == before
    assert await count(path) == 31


async def test_beside_an_empty_log_a_backup_is_taken(path: Path) -> None:
    before = await epochs(path)
    back_up(path).replace(path)
    await anyio.Path(f"{path}-wal").write_bytes(b"")
    assert all_differ(before, await epochs(path))


@pytest.mark.parametrize("content", [b"", b"x" * 200])
async def test_where_nothing_is_known_of_the_file_before_nothing_is_refused(path, content) -> None:
    before = await epochs(path)
    append_and_die(path)
    await anyio.Path(f"{path}-instance").write_bytes(content)
    assert all_differ(before, await epochs(path))
    assert await count(path) == 31


async def test_a_backup_put_over_a_file_in_use_is_refused_until_its_log_is_removed(path) -> None:
    store = SQLiteStore(path)
    await store.append("s", "progress", BODY)
    backup = back_up(path)
    await store.append("s", "progress", BODY)
    before = (await store.get_session("s")).epoch
    content = backup.read_bytes()
    backup.replace(path)
    for verb in (store.append("s", "progress", BODY), store.health()):
        with pytest.raises(StoreError, match="not the file that was here last"):
            await verb
    other = SQLiteStore(path)
    with store.watch("s"), pytest.raises(StoreError, match="not the file that was here last"):
        await other.start()
    assert path.read_bytes() == content
    os.unlink(f"{path}-wal")
    os.unlink(f"{path}-shm")
    appended = await store.append("s", "progress", BODY)
    assert (appended.record.seq, appended.epoch == before) == (3, False)
    assert (await other.read("s")).top == 3
    await other.aclose()
    await store.aclose()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


async def test_readers_and_pollers_do_not_open_such_a_file_either(path: Path) -> None:
    """Whoever closes it last would write the log into it."""
    place = Place(str(path), "NORMAL", 5.0, time.time, time.time)
    backup = back_up(path)
    append_and_die(path)
    backup.replace(path)
    before = contents(path)
    with pytest.raises(StoreError, match="not the file that was here last"):
        connect(str(path), mode="rw", synchronous="NORMAL", timeout=1)
    poller = Poller(place, 0.01)
    with poller.watch("s") as watch:
        poller.opened(0)
        assert await watch.wait(5)
        # It looks, is refused, and lives.
        assert not await watch.wait(0.1)
        assert [each.name for each in threading.enumerate()].count("callbackkit-poll") == 1
        poller.close()
    assert contents(path) == before


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
    claims = await store.claim(methods=["m"], limit=9, lease=3600)
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
    return len((await store.claim(methods=["m"], limit=9, lease=3600)).claims)


async def test_whoever_opens_it_alone_need_not_wait_for_the_leases_of_the_dead(path: Path) -> None:
    claim_and_die(path)
    store = SQLiteStore(path)
    assert await claims_of(store) == 1
    await store.aclose()


async def test_the_lease_on_a_dead_letter_ends_too(path: Path) -> None:
    store = SQLiteStore(path)
    [claim] = (await store.claim(methods=["m"], limit=9, lease=60)).claims
    await store.park(claim, upto=1, letter_id="s_e_1", reason="no", attempt=None)
    assert await store.redrive("s") == 1
    await store.aclose()
    claim_and_die(path)
    store = SQLiteStore(path)
    assert await claims_of(store) == 1
    await store.aclose()


async def test_whoever_waits_for_another_to_open_the_file_is_in_nobodys_way(path: Path) -> None:
    """The other needs a transaction to get done, and would wait for this one."""
    presence = Presence(str(path))
    presence.enter(is_first=True, timeout=5)
    store = SQLiteStore(path)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(store.start)
        for _ in range(20):
            await anyio.sleep(0.01)
            with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as connection:
                connection.execute("BEGIN IMMEDIATE")
        presence.share(5)
    presence.close()
    await store.append("s", "progress", BODY)
    await store.aclose()


async def test_an_opening_that_never_ends_is_told(path: Path) -> None:
    presence = Presence(str(path))
    presence.enter(is_first=True, timeout=5)
    store = SQLiteStore(path, timeout=0.1)
    with pytest.raises(StoreUnavailableError, match="was being opened by another process"):
        await store.start()
    presence.close()
    await store.append("s", "progress", BODY)
    await store.aclose()


async def test_an_opening_that_fails_lets_others_in(path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        store = SQLiteStore(path, timeout=0.1)
        with pytest.raises(StoreUnavailableError, match="locked"):
            await store.start()
        connection.execute("ROLLBACK")
    other = SQLiteStore(path, timeout=0.1)
    await other.start()
    await store.start()
    await other.aclose()
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


async def test_an_error_of_the_disk_does_not_make_a_process_look_dead(path: Path) -> None:
    """It lets go of the file and opens it again; what it is delivering is still its own."""
    store = SQLiteStore(path)
    assert await claims_of(store) == 1
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("ALTER TABLE store RENAME TO away")
        with pytest.raises(StoreError, match="no such table"):
            await store.append("s", "progress", BODY)
        connection.execute("ALTER TABLE away RENAME TO store")
    other = SQLiteStore(path)
    assert await claims_of(other) == 0
    await store.append("s", "progress", BODY)
    await other.aclose()
    await store.aclose()


async def test_a_store_that_opens_its_file_again_ends_no_lease(path: Path) -> None:
    """After an error, say: what it is delivering itself goes on."""
    claim_and_die(path)
    presence = Presence(str(path))
    presence.enter(is_first=True, timeout=5)
    instance = Instance(str(path), presence)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        instance.check(connection, is_first=False)
        connection.execute("COMMIT")
        assert connection.execute("SELECT is_leased FROM log WHERE due_at > 0").fetchall() == [(1,)]
        connection.execute("BEGIN IMMEDIATE")
        instance.check(connection, is_first=True)
        connection.execute("COMMIT")
        assert connection.execute("SELECT is_leased FROM log WHERE due_at > 0").fetchall() == [(0,)]
    presence.close()


def make_anew(path: Path) -> None:
    """Put an empty file in the place of a database, with its log beside it."""
    path.rename(f"{path}.kept")
    path.touch()
    assert path.stat().st_ino != Path(f"{path}.kept").stat().st_ino
    assert Path(f"{path}-wal").stat().st_size > 0


async def test_a_file_that_an_opening_had_only_just_made_is_not_refused(path: Path) -> None:
    """Somebody removed the database after a kill, and the next start was killed as well."""
    append_and_die(path)
    make_anew(path)
    assert await epochs(path) == ()


async def test_a_link_to_the_file_is_the_same_store(path: Path, tmp_path: Path) -> None:
    """Two files beside it would each say that nobody else has it open."""
    link = tmp_path / "link.db"
    os.symlink(path, link)
    first = SQLiteStore(path)
    assert await claims_of(first) == 1
    second = SQLiteStore(link)
    assert await claims_of(second) == 0
    await first.aclose()
    await second.aclose()
    assert "link.db-instance" not in os.listdir(tmp_path)
