"""What one session owes, read ahead and cut into deliveries."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from callbackkit.delivery.batches import choose, page_size, time_left
from callbackkit.delivery.policy import Batching
from callbackkit.errors import LeaseLostError
from callbackkit.events import Position
from callbackkit.stores.base import Claim, Record, Store

__all__ = ["Backlog"]


class Backlog:
    """The records behind the cursor of a claim.

    Args:
        store: Where they are.
        session_id: Their session.
        batching: What the client asked for.
        clock: Seconds since 1970.
    """

    __slots__ = ("_ahead", "_at", "_batching", "_clock", "_is_ended", "_session_id", "_store")

    def __init__(
        self,
        store: Store,
        session_id: str,
        batching: Batching | None,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._session_id = session_id
        self._batching = batching
        self._clock = clock
        # Records that were read ahead, from a place on.
        self._ahead: Sequence[Record] = ()
        self._at = 0
        self._is_ended = False

    def ready(self, claim: Claim) -> Sequence[Record]:
        """Return the records of the next delivery if they are known; else there are none."""
        if self._batching is not None or claim.bound is not None:
            return ()
        return self._ahead[self._at : self._at + 1]

    async def next(
        self, claim: Claim, *, anew: bool, is_hurried: bool
    ) -> tuple[Sequence[Record], float]:
        """Return the records that go together, and the seconds they wait to become more.

        Args:
            claim: The claim as it stands.
            anew: Look into the store in any case.
            is_hurried: They wait for nothing.
        """
        is_read = False
        while True:
            ahead = self._ahead[self._at : self._upto(claim)]
            if ahead and is_read >= anew:
                chosen, is_full = choose(
                    ahead, self._batching, bound=claim.bound, session_id=self._session_id
                )
                if is_full or (is_read and (is_hurried or self._goes_as_it_is(claim))):
                    return chosen, 0.0
                if is_read:
                    return chosen, time_left(chosen[0], self._batching, self._clock())
            elif is_read:
                return (), 0.0
            await self._read(claim)
            is_read = True

    def move_on(self, claim: Claim, settled: Sequence[Record]) -> None:
        """Go on behind records that are settled."""
        self._at += len(settled)
        if claim.cursor != settled[-1].seq:
            # The store gave up on some of the others meanwhile.
            self._ahead, self._at = (), 0

    def _upto(self, claim: Claim) -> int | None:
        """Return where in the records read ahead the next delivery ends at the latest."""
        if claim.bound is not None:
            return None
        return self._at + (1 if self._batching is None else self._batching.max_events)

    def _goes_as_it_is(self, claim: Claim) -> bool:
        return self._is_ended or claim.attempts > 0 or claim.bound is not None

    async def _read(self, claim: Claim) -> None:
        limit = page_size(self._batching)
        if claim.bound is not None:
            limit = max(limit, claim.bound - claim.cursor)
        page = await self._store.read(
            self._session_id, after=Position(claim.epoch, claim.cursor), limit=limit, owed=True
        )
        if page.epoch != claim.epoch:
            raise LeaseLostError("the log was made anew")
        self._ahead, self._at = page.records, 0
        self._is_ended = page.state != "active"
