"""Two stores on one file are to each other what two processes are."""

import threading
import time
from pathlib import Path

import anyio

from callbackkit.stores.base import NewSession
from callbackkit.stores.sqlite import SQLiteStore
from callbackkit.stores.sqlite_place import Place
from callbackkit.stores.sqlite_poller import Poller


async def test_a_time_that_another_process_sets_is_told_of_so_that_it_is_waited_for_here(
    tmp_path: Path,
) -> None:
    """Whoever set it may die; nobody else would look again before the next reconciling."""
    file = tmp_path / "events.db"
    here, there = SQLiteStore(file), SQLiteStore(file)
    try:
        await there.create_session(NewSession(id="s1", token_hash=b"", method="m", pushes=True))
        await there.append("s1", "thinking", b"{}")
        [claim] = (await there.claim(methods=["m"], limit=1, lease=60)).claims
        with here.watch(None) as watch, anyio.fail_after(30):
            found = await here.claim(methods=["m"], limit=1, lease=9)
            assert found.claims == []
            assert found.next_in is not None
            assert found.next_in > 30
            while await watch.wait(1.5):
                """What was written before the watching began may ring."""
            await there.retry(claim, delay=20, attempt=None)
            assert await watch.wait(15)
            found = await here.claim(methods=["m"], limit=1, lease=9)
            assert found.next_in is not None
            assert found.next_in <= 20
    finally:
        await here.aclose()
        await there.aclose()


async def test_what_another_process_appends_wakes_who_reads_here(tmp_path: Path) -> None:
    file = tmp_path / "events.db"
    here, there = SQLiteStore(file), SQLiteStore(file)
    try:
        await there.create_session(NewSession(id="s1", token_hash=b""))
        await there.create_session(NewSession(id="s2", token_hash=b""))
        with here.watch("s1") as watch, here.watch("s2") as other, anyio.fail_after(20):
            assert not (await here.read("s1")).records
            while await other.wait(0.3):
                """What was written before the watching began may ring."""
            await there.append("s1", "thinking", b"{}")
            while not (page := await here.read("s1")).records:
                await watch.wait(15)
            assert page.top == 1
            assert not await other.wait(0.3)
    finally:
        await here.aclose()
        await there.aclose()


def test_a_finalizer_may_begin_a_watch_in_the_midst_of_another(tmp_path: Path, monkeypatch) -> None:
    """Garbage collection runs anybody's code anywhere, also where the lock is held."""
    poller = Poller(Place(str(tmp_path / "events.db"), "NORMAL", 5.0, time.time, time.time), 60)
    poller.opened(0)
    inner = poller.watch("inner")

    class Thread(threading.Thread):
        """Made with the lock held; stands for a finalizer."""

        def __init__(self, **options) -> None:
            super().__init__(**options)
            if "inner" not in poller.topics:
                inner.__enter__()

    def run() -> None:
        with poller.watch("outer"):
            inner.__exit__(None, None, None)

    outer = threading.Thread(target=run, daemon=True)
    monkeypatch.setattr(threading, "Thread", Thread)
    outer.start()
    outer.join(10)
    assert not outer.is_alive()
    running = [each for each in threading.enumerate() if each.name == "callbackkit-poll"]
    assert len(running) == 1
    poller.close()
    assert not running[0].is_alive()


def test_a_watch_that_ends_while_it_closes_keeps_its_thread_from_nothing(tmp_path: Path) -> None:
    """The thread may be between two looks: whether it is over, and whether it is wanted."""

    class Over(threading.Event):
        """Is set, and the last watch ended, just after the thread has looked."""

        def wait(self, timeout: float | None = None) -> bool:
            if not begun.is_set():
                begun.set()
                assert super().wait(10)
                assert ended.wait(10)
                return False
            return super().wait(timeout)

    begun, ended = threading.Event(), threading.Event()
    poller = Poller(Place(str(tmp_path / "events.db"), "NORMAL", 5.0, time.time, time.time), 60)
    poller._is_over = over = Over()
    watch = poller.watch("s1")
    watch.__enter__()
    poller.opened(0)
    assert begun.wait(10)
    closing = threading.Thread(target=poller.close, daemon=True)
    closing.start()
    # close() holds the guard until it waits for the thread.
    while not over.is_set():
        assert closing.is_alive()
    with poller._guard:
        watch.__exit__(None, None, None)
    ended.set()
    closing.join(5)
    assert not closing.is_alive()
