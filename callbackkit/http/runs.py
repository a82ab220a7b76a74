"""The runs of an application that a client which lost its connection may come back to."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

import anyio

from callbackkit.buffer import Waiter, new_waiter
from callbackkit.streaming.callback import Callback

__all__ = ["RecentRuns", "Run"]

# Seconds that an ended run is known; how many of them with all they said, and how many in all.
_KEEP_FOR: Final = 300.0
_MOST_KEPT: Final = 64
_MOST_KNOWN: Final = 10_000

# Entries that the ended runs may have together, which bounds what a callback's history, counted
# in bytes of text, does not: a token of one character takes fifty bytes.
_MOST_ENTRIES: Final = 500_000


class Run:
    """A run, and how many clients read it now.

    Attributes:
        callback: What it says; ``None`` once that is no longer kept.
        run_id: Its name.
        path: Of the request that started it. Requests to another path can't join it, whatever
            they know.
        is_told: A client was sent the END.
    """

    def __init__(self, callback: Callback, path: str) -> None:
        self.callback: Callback | None = callback
        self.run_id: str = callback.run_id
        self.path: str = path
        self.is_told: bool = False
        self._lock = threading.Lock()
        self._clients = 0
        self._waiter: Waiter | None = None
        callback.on_end(self._wake)

    def __repr__(self) -> str:
        return f"<Run {self.run_id}, {self._clients} clients>"

    def has_more(self, seen: int) -> bool:
        """Tell whether there is, or may come, something else than a client has seen."""
        callback = self.callback
        return callback is not None and (not callback.is_closed or seen != callback.last_seq)

    def join(self) -> None:
        """Count a client that reads."""
        self._count(1)

    def leave(self) -> None:
        """Count a client that has left."""
        self._count(-1)

    def _count(self, change: int) -> None:
        with self._lock:
            self._clients += change
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None:
            self._waiter.wake()

    async def unneeded(self, grace: float | None) -> None:
        """Wait until the run has ended, or nobody has read it for so many seconds.

        Args:
            grace: Seconds; ``None`` waits for the end, whoever reads.
        """
        while True:
            # The waking is only a hint: whoever wakes changes something first, and here it is
            # looked at afterwards.
            waiter = self._waiter = new_waiter()
            if self._is_over:
                return
            if self._clients or grace is None:
                await waiter.wait()
                continue
            with anyio.move_on_after(grace) as scope:
                await waiter.wait()
            if scope.cancelled_caught and not self._clients:
                return

    @property
    def _is_over(self) -> bool:
        return self.callback is None or self.callback.is_closed


class RecentRuns:
    """Runs by their id: those that go on, and those that ended a short while ago.

    Args:
        keep_for: Seconds that an ended run is known.
        max_kept: Most ended runs kept with all they said; of older ones only the name is known.
        max_entries: Most entries that they may have together; the newest is kept in any case.
        max_known: Most ended runs known.
        clock: Tells the seconds.
    """

    def __init__(
        self,
        *,
        keep_for: float = _KEEP_FOR,
        max_kept: int = _MOST_KEPT,
        max_entries: int = _MOST_ENTRIES,
        max_known: int = _MOST_KNOWN,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._keep_for = keep_for
        self._max_kept = max_kept
        self._max_entries = max_entries
        self._max_known = max_known
        self._clock = clock
        self._lock = threading.Lock()
        self._going: dict[str, Run] = {}
        # In the order in which they ended; the value has the time until which it is known.
        self._ended: dict[str, tuple[float, Run]] = {}
        self._kept: deque[tuple[int, Run]] = deque()
        self._entries = 0

    def __repr__(self) -> str:
        return f"<RecentRuns, {len(self._going)} going on, {len(self._ended)} ended>"

    def add(self, run: Run) -> None:
        """Take in a run that goes on."""
        with self._lock:
            self._going[run.run_id] = run

    def end(self, run: Run) -> None:
        """Note that a run goes on no longer."""
        with self._lock:
            self._going.pop(run.run_id, None)
            self._ended[run.run_id] = (self._clock() + self._keep_for, run)
            self._keep(run)
            self._forget()

    def find(self, run_id: str, path: str) -> Run | None:
        """Return the run of that name which a request to this path started."""
        with self._lock:
            self._forget()
            _, run = self._ended.get(run_id, (0.0, self._going.get(run_id)))
        return run if run is not None and run.path == path else None

    def _keep(self, run: Run) -> None:
        entries = 0 if run.callback is None else run.callback.last_seq
        self._kept.append((entries, run))
        self._entries += entries
        while len(self._kept) > self._max_kept or (
            len(self._kept) > 1 and self._entries > self._max_entries
        ):
            entries, oldest = self._kept.popleft()
            self._entries -= entries
            oldest.callback = None

    def _forget(self) -> None:
        """Let go of runs that are too old or too many."""
        now = self._clock()
        while self._ended:
            run_id, (until, run) = next(iter(self._ended.items()))
            if until > now and len(self._ended) <= self._max_known:
                return
            run.callback = None
            del self._ended[run_id]
