"""Who reads which session in this process, and how far they got."""

from __future__ import annotations

import math
import threading
import weakref
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Literal

from callbackkit.errors import LimitError
from callbackkit.sessions.tail import Tail
from callbackkit.stores.base import Store

if TYPE_CHECKING:
    from callbackkit.sessions.subscription import Subscription

__all__ = ["Readers", "Touch"]

Touch = Literal["none", "short", "all"]

# Seconds of idleness below which a session that is read is touched every second.
_SHORT: Final = 30.0


class Readers:
    """The open subscriptions of one manager, and the tail that those of one session share.

    They are held weakly: one that was left with ``break`` is forgotten. Reading is noted here at
    once, and told to the store together, now and then: one call for all of them.

    Args:
        store: Where the sessions are.
        max_readers: Subscriptions to one session at a time.

    Attributes:
        tails: The tails of the sessions that are read, by id.
        is_draining: Readers are asked to go and come back elsewhere, or later.
    """

    def __init__(self, store: Store, max_readers: int) -> None:
        self._store = store
        self._max_readers = max_readers
        # Re-entrant: a subscription may be collected while it is held.
        self._lock = threading.RLock()
        self._open: dict[str, weakref.WeakSet[Subscription]] = {}
        self._read: dict[str, int | None] = {}
        self.tails: dict[str, Tail] = {}
        self.is_draining: bool = False

    def add(self, subscription: Subscription, decode: Callable[[bytes], Any]) -> Tail:
        """Count a subscription in, and return the tail of its session.

        Raises:
            LimitError: There are ``max_readers`` of its session.
        """
        with self._lock:
            reading = self._open.get(subscription.session_id)
            if reading is None:
                reading = self._open[subscription.session_id] = weakref.WeakSet()
            if len(reading) >= self._max_readers:
                raise LimitError("max_readers", self._max_readers, "readers of one session")
            reading.add(subscription)
            tail = self.tails.get(subscription.session_id)
            if tail is None:
                tail = Tail(self._store, subscription.session_id, decode)
                self.tails[subscription.session_id] = tail
            tail.readers += 1
            return tail

    def remove(self, subscription: Subscription, tail: Tail) -> None:
        """Count a subscription out; once."""
        with self._lock:
            reading = self._open.get(subscription.session_id)
            if reading is not None:
                reading.discard(subscription)
                if not reading:
                    del self._open[subscription.session_id]
            tail.readers -= 1
            if tail.readers:
                return
            self.tails.pop(subscription.session_id, None)
        # Without the lock: a finalizer that wants it may run where a tail's is held.
        tail.close()

    def forget(self, session_id: str, before: int) -> None:
        """Drop the events with lower numbers from memory."""
        with self._lock:
            reading = list(self._open.get(session_id, ()))
        for each in reading:
            each.read_again()
        tail = self.tails.get(session_id)
        if tail is not None:
            tail.forget(before)

    def drain(self) -> None:
        """Wake every reader to tell it that it is to come back."""
        self.is_draining = True
        for each in self._all():
            each.is_draining = True
            each.poke()

    def note(self, session_id: str, seq: int) -> None:
        """Note that a session was read up to a number."""
        with self._lock:
            known = self._read.get(session_id)
            if known is None or known < seq:
                self._read[session_id] = seq

    async def flush(self, *, touch: Touch = "none") -> None:
        """Tell the store what was read.

        Args:
            touch: Which sessions it is also told are being read, so that they don't expire: those
                with a ``ttl`` so ``"short"`` that they might before the next telling, or ``"all"``.
        """
        with self._lock:
            reads, self._read = self._read, {}
            if touch != "none":
                below = _SHORT if touch == "short" else math.inf
                # A copy: the last reader of a session may be let go of while it is looked at.
                for session_id, reading in list(self._open.items()):
                    if any(each.ttl is not None and each.ttl < below for each in reading):
                        reads.setdefault(session_id, None)
        if not reads:
            return
        try:
            await self._store.touch(reads)
        except BaseException:
            # To be told next time: what is noted only grows.
            for session_id, seq in reads.items():
                if seq is not None:
                    self.note(session_id, seq)
            raise

    def kinds(self, session_id: str | None = None) -> Counter[str]:
        """Count the open subscriptions of a session, or of all, by what they are read through."""
        with self._lock:
            if session_id is None:
                wanted = list(self._open.values())
            else:
                wanted = [self._open[session_id]] if session_id in self._open else []
            return Counter(each.kind for reading in wanted for each in reading)

    def close(self) -> None:
        """End every subscription; who comes next may stay."""
        for each in self._all():
            each.close()
        self.is_draining = False

    def _all(self) -> list[Subscription]:
        with self._lock:
            return [each for reading in list(self._open.values()) for each in reading]
