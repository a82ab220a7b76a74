"""The tables of a store in an SQLite file, and how a file of an older version gets them."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from typing import Final, Literal
from urllib.parse import quote

from callbackkit.errors import StoreVersionError
from callbackkit.stores.sqlite_instance import refuse_foreign_log

__all__ = ["MIGRATIONS", "VERSION", "Migration", "check", "connect", "migrate"]

# Brings a file from the version before to this one, inside the transaction of the opening.
Migration = Callable[[sqlite3.Connection], None]

_TABLES: Final = (
    # One row: who this file is, how many transactions it took, and sums of what is gone.
    """
    CREATE TABLE store (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        instance TEXT NOT NULL,
        change INTEGER NOT NULL,
        now REAL NOT NULL,
        readable INTEGER NOT NULL,
        gone_sent INTEGER NOT NULL,
        gone_settled INTEGER NOT NULL,
        gone_failed INTEGER NOT NULL,
        gone_expired INTEGER NOT NULL,
        gone_retries INTEGER NOT NULL
    )
    """,
    # What a session was created with; of it only the configuration changes, and seldom.
    """
    CREATE TABLE session (
        sid INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        token_hash BLOB NOT NULL,
        owner TEXT,
        config BLOB NOT NULL,
        pushes INTEGER NOT NULL,
        unowed TEXT NOT NULL,
        ttl REAL,
        max_events REAL,
        max_bytes REAL,
        max_age REAL,
        max_pending INTEGER NOT NULL,
        created_at REAL NOT NULL
    )
    """,
    "CREATE INDEX session_owner ON session (owner, id) WHERE owner IS NOT NULL",
    # How it stands. Apart from the above, as each append writes it anew.
    """
    CREATE TABLE log (
        sid INTEGER PRIMARY KEY,
        method TEXT NOT NULL,
        epoch TEXT NOT NULL,
        first INTEGER NOT NULL,
        top INTEGER NOT NULL,
        cursor INTEGER NOT NULL,
        settled INTEGER NOT NULL,
        sent INTEGER NOT NULL,
        size INTEGER NOT NULL,
        shed INTEGER NOT NULL,
        last_at INTEGER NOT NULL,
        touched_at REAL NOT NULL,
        failed INTEGER NOT NULL,
        expired INTEGER NOT NULL,
        retries INTEGER NOT NULL,
        tries INTEGER NOT NULL,
        keys INTEGER NOT NULL,
        change INTEGER NOT NULL,
        state INTEGER NOT NULL,
        leaves_at REAL,
        check_at REAL,
        due_at REAL,
        is_leased INTEGER NOT NULL,
        fence INTEGER NOT NULL,
        attempts INTEGER NOT NULL,
        bound INTEGER,
        letters INTEGER NOT NULL
    )
    """,
    "CREATE INDEX log_change ON log (change)",
    "CREATE INDEX log_check ON log (check_at) WHERE check_at IS NOT NULL",
    "CREATE INDEX log_due ON log (method, due_at) WHERE due_at IS NOT NULL",
    # ``total`` is the bytes of all records up to here.
    """
    CREATE TABLE record (
        sid INTEGER NOT NULL,
        seq INTEGER NOT NULL,
        at INTEGER NOT NULL,
        event_type TEXT NOT NULL,
        body BLOB NOT NULL,
        owed INTEGER NOT NULL,
        ordinal INTEGER NOT NULL,
        total INTEGER NOT NULL,
        PRIMARY KEY (sid, seq)
    ) WITHOUT ROWID
    """,
    # The newest records, in the order they came: a transaction for many sessions writes a few pages
    # here, and one for each session there (tests/benchmarks, "store-append"). They are moved now
    # and then; a session's records here are newer than its records there.
    """
    CREATE TABLE fresh (
        place INTEGER PRIMARY KEY,
        sid INTEGER NOT NULL,
        seq INTEGER NOT NULL,
        at INTEGER NOT NULL,
        event_type TEXT NOT NULL,
        body BLOB NOT NULL,
        owed INTEGER NOT NULL,
        ordinal INTEGER NOT NULL,
        total INTEGER NOT NULL
    )
    """,
    "CREATE UNIQUE INDEX fresh_seq ON fresh (sid, seq)",
    """
    CREATE VIEW event AS
        SELECT sid, seq, at, event_type, body, owed, ordinal, total FROM record
        UNION ALL SELECT sid, seq, at, event_type, body, owed, ordinal, total FROM fresh
    """,
    # The record an idempotency key gave; its body is known by its SHA-256.
    """
    CREATE TABLE idempotency (
        sid INTEGER NOT NULL,
        key TEXT NOT NULL,
        until REAL NOT NULL,
        seq INTEGER NOT NULL,
        at INTEGER NOT NULL,
        event_type TEXT NOT NULL,
        digest BLOB NOT NULL,
        owed INTEGER NOT NULL,
        ordinal INTEGER NOT NULL,
        PRIMARY KEY (sid, key)
    ) WITHOUT ROWID
    """,
    "CREATE INDEX idempotency_until ON idempotency (sid, until)",
    """
    CREATE TABLE letter (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        sid INTEGER NOT NULL,
        id TEXT NOT NULL,
        method TEXT NOT NULL,
        epoch TEXT NOT NULL,
        reason TEXT NOT NULL,
        tried INTEGER NOT NULL,
        at REAL NOT NULL,
        since REAL NOT NULL,
        records INTEGER NOT NULL,
        is_due INTEGER NOT NULL,
        due_at REAL,
        is_leased INTEGER NOT NULL,
        fence INTEGER NOT NULL,
        attempts INTEGER NOT NULL,
        UNIQUE (sid, id)
    )
    """,
    "CREATE INDEX letter_due ON letter (method, due_at) WHERE due_at IS NOT NULL",
    "CREATE INDEX letter_number ON letter (sid, number)",
    """
    CREATE TABLE letter_record (
        letter INTEGER NOT NULL,
        seq INTEGER NOT NULL,
        at INTEGER NOT NULL,
        event_type TEXT NOT NULL,
        body BLOB NOT NULL,
        owed INTEGER NOT NULL,
        ordinal INTEGER NOT NULL,
        PRIMARY KEY (letter, seq)
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE attempt (
        sid INTEGER NOT NULL,
        place INTEGER NOT NULL,
        delivery_id TEXT NOT NULL,
        number INTEGER NOT NULL,
        at REAL NOT NULL,
        duration REAL NOT NULL,
        events INTEGER NOT NULL,
        error TEXT NOT NULL,
        PRIMARY KEY (sid, place)
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE endpoint (
        name TEXT PRIMARY KEY,
        version INTEGER NOT NULL,
        state BLOB NOT NULL,
        saved_at REAL NOT NULL
    ) WITHOUT ROWID
    """,
    "CREATE INDEX endpoint_saved ON endpoint (saved_at)",
    # Sessions that left no row behind, so that other processes wake their readers.
    """
    CREATE TABLE gone (
        change INTEGER NOT NULL,
        id TEXT NOT NULL,
        at REAL NOT NULL,
        PRIMARY KEY (change, id)
    ) WITHOUT ROWID
    """,
)


def _create(connection: sqlite3.Connection) -> None:
    for statement in _TABLES:
        connection.execute(statement)
    connection.execute("INSERT INTO store VALUES (1, '', 0, 0, 0, 0, 0, 0, 0, 0)")


# By the version that each leads to. A change of the tables is one more function here.
MIGRATIONS: Final[Mapping[int, Migration]] = {1: _create}
VERSION: Final = max(MIGRATIONS)

# Marks the file as ours, for `file` and the like: "cbkt".
_APPLICATION: Final = 0x63626B74


def connect(
    path: str, *, mode: Literal["rwc", "rw"], synchronous: str, timeout: float
) -> sqlite3.Connection:
    """Open a connection for the thread that calls.

    Args:
        path: The file.
        mode: ``"rwc"`` makes the file if there is none.
        synchronous: ``"FULL"`` or ``"NORMAL"``.
        timeout: Seconds to wait for another connection that is in the way.

    Raises:
        StoreError: The write-ahead log beside it is that of another file.
    """
    refuse_foreign_log(path)
    name = quote(path.encode("utf-8", "surrogateescape"))
    connection = sqlite3.connect(
        f"file:{name}?mode={mode}",
        timeout=timeout,
        isolation_level=None,
        cached_statements=256,
        uri=True,
    )
    try:
        connection.execute(f"PRAGMA synchronous = {synchronous}")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def check(
    connection: sqlite3.Connection,
    path: str,
    migrations: Mapping[int, Migration] = MIGRATIONS,
) -> int:
    """Return the version of a file; 0 if it is empty.

    Raises:
        StoreVersionError: It is of a newer version, or another application's.
    """
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if tables and application != _APPLICATION:
        raise StoreVersionError(f"{path} is a database of another application")
    version: int
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    newest = max(migrations)
    if version > newest:
        raise StoreVersionError(
            f"{path} has version {version}, this callbackkit reads up to {newest}; upgrade it"
        )
    return version


def migrate(
    connection: sqlite3.Connection,
    path: str,
    migrations: Mapping[int, Migration] = MIGRATIONS,
) -> None:
    """Bring a file to the newest version; called inside a transaction.

    Raises:
        StoreVersionError: As for :func:`check`.
    """
    version = check(connection, path, migrations)
    newest = max(migrations)
    if version == newest:
        return
    for number in range(version + 1, newest + 1):
        migrations[number](connection)
    connection.execute(f"PRAGMA application_id = {_APPLICATION}")
    connection.execute(f"PRAGMA user_version = {newest}")
