"""A process that answers each event, or message: ``python -m ... NAME URL THERE BACK``.

It writes a line once it listens, and ends when its standard input does.
"""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial

from callbackkit import CallbackManager
from callbackkit.stores.redis import RedisStore
from tests.benchmarks.redis_peers import CLIENTS, Connect
from tests.benchmarks.sessions import DATA

OURS = "callbackkit"

# Seconds until a process that was told to end is killed.
_PATIENCE = 10.0


@contextmanager
def echoing(name: str, url: str, there: str, back: str) -> Iterator[None]:
    """Run one, which listens from here on.

    Args:
        name: What it answers by: a client of :data:`CLIENTS`, or :data:`OURS`.
        url: The server.
        there: The channel, or the session, that it listens to.
        back: That which it answers in.
    """
    command = [sys.executable, "-m", __name__, name, url, there, back]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            if not process.stdout.readline():
                raise RuntimeError(f"the process that answers by {name} ended before it listened")
            yield
        finally:
            process.stdin.close()
            try:
                process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()


@asynccontextmanager
async def managing(url: str) -> AsyncIterator[CallbackManager]:
    """Open a manager on a server."""
    async with CallbackManager(store=RedisStore.from_url(url)) as manager:
        yield manager


async def _echo(connect: Connect, url: str, there: str, back: str) -> None:
    async with connect(url) as client, client.receive(there) as messages:
        print("listens", flush=True)
        async for _ in messages:
            await client.publish(back)


async def _echo_events(url: str, there: str, back: str) -> None:
    async with managing(url) as manager:
        session = await manager.get_session(back)
        async with (await manager.get_session(there)).subscribe(after="now") as events:
            print("listens", flush=True)
            async for _ in events:
                await session.emit("progress", DATA)


async def _answer(name: str, *arguments: str) -> None:
    echo = partial(_echo, CLIENTS[name]) if name in CLIENTS else _echo_events
    task = asyncio.ensure_future(echo(*arguments))
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


if __name__ == "__main__":
    asyncio.run(_answer(*sys.argv[1:]))
