"""A session in a file: kill this program whenever you like, start it again, and it goes on.

Someone works in five-and-twenty steps and says how far it is; someone else reads along and prints.
Both are in this program for once. What is emitted is in the file before `emit` returns, so nothing
is lost; the reader notes its position after each line it printed, and goes on behind it. Killed
between the two, it prints that line twice, and never misses one.

    pip install callbackkit
    python examples/session.py events.db     # Ctrl-C, or from elsewhere: kill -9
    python examples/session.py events.db     # goes on where it was
"""

import sys
from collections.abc import AsyncIterator

import anyio

from callbackkit import CallbackManager, Session
from callbackkit.stores.sqlite import SQLiteStore

STEPS = 25
PAUSE = 0.1  # seconds that a step takes
OWNER = "session.py"


async def find(sessions: AsyncIterator[Session]) -> Session | None:
    """Return the first session there is, if there is one."""
    async for session in sessions:
        return session
    return None


async def work(session: Session) -> None:
    """Do the steps that are not in the session yet, and end it."""
    done = (await session.stats()).events_sent
    for step in range(done + 1, STEPS + 1):
        await anyio.sleep(PAUSE)
        # With a key a step is in the session once, however often it is emitted.
        await session.emit(
            "progress",
            {"progress": step / STEPS, "message": f"step {step}"},
            idempotency_key=f"step-{step}",
        )
    await session.end()


async def read(session: Session, noted: anyio.Path) -> None:
    """Print what happens, from the noted position on, until the session has ended."""
    new = noted.with_name(f"{noted.name}.new")
    position = await noted.read_text("utf-8") if await noted.exists() else None
    async with session.subscribe(after=position) as events:
        async for event in events:
            print(event.id, f"{event.data['progress']:4.0%}", event.data["message"], flush=True)
            # Replaced whole: a file that is written in place is empty for a moment.
            await new.write_text(event.id, "utf-8")
            await new.replace(noted)


async def main(file: str) -> None:
    """Go on with the session in a file, or begin one."""
    noted = anyio.Path(f"{file}.position")
    async with CallbackManager(store=SQLiteStore(file)) as manager:
        session = await find(manager.sessions(owner=OWNER))
        if session is None:
            await noted.unlink(missing_ok=True)
            session = await manager.create_session(owner=OWNER)
            print(f"session {session.id} begins", flush=True)
        else:
            print(f"session {session.id} goes on", flush=True)
        async with anyio.create_task_group() as group:
            group.start_soon(work, session)
            group.start_soon(read, session, noted)
        # Read to its end; otherwise it would be found once more by whoever starts this next.
        await manager.delete_session(session.id)
    print("session ended", flush=True)


if __name__ == "__main__":
    anyio.run(main, sys.argv[1] if len(sys.argv) > 1 else "events.db")
