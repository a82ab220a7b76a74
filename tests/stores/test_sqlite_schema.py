import sqlite3
from pathlib import Path

import anyio
import pytest

from callbackkit.errors import StoreVersionError
from callbackkit.stores.base import NewSession
from callbackkit.stores.sqlite import SQLiteStore
from callbackkit.stores.sqlite_schema import MIGRATIONS, VERSION, migrate


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store with one session."""
    path = tmp_path / "events.db"

    async def fill() -> None:
        store = SQLiteStore(path)
        await store.create_session(NewSession(id="s", token_hash=b"hash"))
        await store.aclose()

    anyio.run(fill)
    return path


def run(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


def content(path: Path) -> bytes:
    return path.read_bytes()


async def refused(path: Path) -> str:
    store = SQLiteStore(path)
    with pytest.raises(StoreVersionError) as caught:
        await store.start()
    # And not only the first time.
    with pytest.raises(StoreVersionError):
        await store.get_session("s")
    await store.aclose()
    return str(caught.value)


async def test_a_file_of_a_newer_version_is_refused(path: Path) -> None:
    run(path, f"PRAGMA user_version = {VERSION + 1}")
    assert "upgrade" in await refused(path)


async def test_a_refused_file_is_left_as_it_was(path: Path) -> None:
    run(path, f"PRAGMA user_version = {VERSION + 1}", "CREATE TABLE newer (a)")
    before = content(path)
    await refused(path)
    assert content(path) == before


async def test_a_database_of_another_application_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    run(path, "CREATE TABLE session (a)")
    before = content(path)
    assert "another application" in await refused(path)
    assert content(path) == before


async def test_a_refused_file_is_read_once_it_is_in_order(path: Path) -> None:
    run(path, "PRAGMA user_version = 99")
    store = SQLiteStore(path)
    with pytest.raises(StoreVersionError):
        await store.start()
    run(path, f"PRAGMA user_version = {VERSION}")
    assert (await store.get_session("s")).id == "s"
    await store.aclose()


async def test_an_empty_file_becomes_a_store(tmp_path: Path) -> None:
    path = tmp_path / "empty.db"
    path.touch()
    store = SQLiteStore(path)
    await store.health()
    await store.aclose()


def make_1(connection: sqlite3.Connection) -> None:
    connection.execute("CREATE TABLE thing (name)")


def make_2(connection: sqlite3.Connection) -> None:
    connection.execute("ALTER TABLE thing ADD COLUMN size DEFAULT 7")


def make_3(connection: sqlite3.Connection) -> None:
    connection.execute("UPDATE thing SET size = size + 1")


ALL = {1: make_1, 2: make_2, 3: make_3}


def migrated(connection: sqlite3.Connection, newest: int) -> None:
    connection.execute("BEGIN IMMEDIATE")
    migrate(connection, "f", {each: ALL[each] for each in range(1, newest + 1)})
    connection.execute("COMMIT")


@pytest.mark.parametrize("older", [1, 2, 3])
def test_a_file_of_an_older_version_takes_every_step_to_the_newest(older: int) -> None:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    migrated(connection, older)
    connection.execute("INSERT INTO thing (name) VALUES ('a')")
    migrated(connection, 3)
    expected = 7 if older == 3 else 8
    assert connection.execute("SELECT name, size FROM thing").fetchall() == [("a", expected)]
    assert connection.execute("PRAGMA user_version").fetchone() == (3,)
    connection.close()


def test_a_step_that_fails_leaves_the_file_as_it_was() -> None:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    migrated(connection, 1)

    def fail(connection: sqlite3.Connection) -> None:
        connection.execute("DROP TABLE thing")
        raise sqlite3.OperationalError("no")

    connection.execute("BEGIN IMMEDIATE")
    with pytest.raises(sqlite3.OperationalError):
        migrate(connection, "f", {1: make_1, 2: fail})
    connection.execute("ROLLBACK")
    assert connection.execute("PRAGMA user_version").fetchone() == (1,)
    assert connection.execute("SELECT * FROM thing").fetchall() == []
    connection.close()


def test_there_is_a_step_to_every_version() -> None:
    assert list(MIGRATIONS) == list(range(1, VERSION + 1))
