"""What tests of a RedisStore in trouble begin with: sessions, keys that hold something else."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import anyio

from callbackkit.errors import StoreUnavailableError
from callbackkit.stores.base import Attempt, Claim, NewSession
from callbackkit.stores.redis import RedisStore
from tests.stores.redis_server import Server, call

__all__ = [
    "ATTEMPT",
    "BODY",
    "claim_one",
    "counted",
    "key",
    "names_in",
    "new",
    "pushing",
    "spoilt",
    "until_it_answers",
]

BODY = b'{"conversation_id":null,"data":{},"metadata":{}}'
ATTEMPT = Attempt(delivery_id="d", number=1, at=1.0, duration=0.1, events=1, error="no")
# Seconds that something which is to happen is waited for.
PATIENCE = 10.0


def new(session_id: str = "s", **options: Any) -> NewSession:
    return NewSession(id=session_id, token_hash=b"hash", **options)


def pushing(session_id: str = "s", **options: Any) -> NewSession:
    return new(session_id, method="webhook", pushes=True, **options)


def key(prefix: str, name: str, partition: int = 0) -> str:
    """Return the name of a key in Redis, such as ``{p:0}:meta``."""
    return f"{{{prefix}:{partition}}}:{name}"


async def claim_one(store: RedisStore, *, lease: float = 60.0) -> Claim:
    """Claim the only delivery that is due."""
    (claim,) = (await store.claim(methods=["webhook"], limit=10, lease=lease)).claims
    return claim


async def names_in(
    store: RedisStore, url: str, prefix: str, partition: int, count: int
) -> list[str]:
    """Create sessions, and return so many that are in one partition."""
    found: list[str] = []
    for n in range(100 * count):
        name = f"p{partition}-{n}"
        await store.create_session(new(name))
        if call(url, "EXISTS", key(prefix, f"s:{name}", partition)):
            found.append(name)
        if len(found) == count:
            break
    return found


@contextmanager
def spoilt(url: str, name: str) -> Generator[None]:
    """Have a key hold what nothing can be done with, and then again what it held."""
    call(url, "RENAME", name, f"{name}-saved")
    call(url, "SET", name, "junk")
    try:
        yield
    finally:
        call(url, "DEL", name)
        call(url, "RENAME", f"{name}-saved", name)


def counted(server: Server, section: str, name: str) -> int:
    """Return a number that a server tells by INFO."""
    text: str = server.call("INFO", section).decode()
    (line,) = (each for each in text.splitlines() if each.startswith(f"{name}:"))
    return int(line.partition(":")[2])


async def until_it_answers(store: RedisStore) -> None:
    """Wait until all can be done."""
    with anyio.fail_after(PATIENCE):
        while True:
            try:
                return await store.health()
            except StoreUnavailableError:
                await anyio.sleep(0.01)
