"""What a law of stores is checked with: a store, its clock, and failures that say what broke."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any, Final, TypeVar

import anyio
import attrs

from callbackkit.stores.base import (
    Attempt,
    Claim,
    NewSession,
    Record,
    SessionRecord,
    Store,
    Totals,
)
from callbackkit.testing.clock import ManualClock
from callbackkit.testing.messages import show

__all__ = ["Bench", "Law", "TurningClock", "body", "hold", "raises", "same", "tried"]

E = TypeVar("E", bound=BaseException)

# Seconds since 1970 when checks begin: a Tuesday in November 2026.
BEGIN: Final = 1_795_500_000.0

# Real seconds of a lease where time can't be set, and how much longer than a period is waited.
_REAL_PERIOD: Final = 0.2
_REAL_MARGIN: Final = 0.02


class TurningClock(ManualClock):
    """A manual clock that somebody may turn back, as the clock of a machine."""

    def __init__(self) -> None:
        super().__init__(BEGIN)

    def turn_back(self, seconds: float) -> None:
        """Show an earlier time."""
        with self._lock:
            self._now -= seconds


@attrs.define
class Bench:
    """A fresh store, and the time it goes by.

    Attributes:
        store: The store.
        clock: Its clock; ``None`` if time really passes.
        patience: Real seconds a wake may take.
    """

    store: Store
    clock: TurningClock | None
    patience: float

    # Time.

    @property
    def period(self) -> float:
        """Seconds of a lease or delay."""
        return 60.0 if self.clock else _REAL_PERIOD

    def now(self) -> float:
        """Return the time of the store, or one that passes as evenly."""
        return self.clock() if self.clock else time.monotonic()

    async def let_pass(self, seconds: float) -> None:
        """Let time pass, so long at least."""
        if self.clock:
            self.clock.advance(seconds)
        else:
            await anyio.sleep(seconds + _REAL_MARGIN)

    # Things to look at.

    async def reads(self, session_id: str = "r", **options: Any) -> SessionRecord:
        """Create a session whose clients read."""
        new = NewSession(id=session_id, token_hash=b"hash", **options)
        return await self.store.create_session(new)

    async def pushes(self, session_id: str = "p", **options: Any) -> SessionRecord:
        """Create a session that a transport delivers."""
        return await self.reads(session_id, **{"method": "push", "pushes": True, **options})

    async def add(self, session_id: str, count: int = 1, *, owed: bool = True) -> list[Record]:
        """Append so many records."""
        return [
            (await self.store.append(session_id, "progress", body(n), owed=owed)).record
            for n in range(count)
        ]

    async def kept(self, session_id: str) -> list[Record]:
        """Return the records of a session."""
        page = await self.store.read(session_id, limit=1000)
        return list(page.records)

    async def numbers(self, session_id: str) -> list[int]:
        """Return the numbers of the records kept."""
        return [record.seq for record in await self.kept(session_id)]

    async def claim(
        self,
        *,
        limit: int = 10,
        lease: float | None = None,
        methods: Collection[str] = ("push",),
    ) -> Sequence[Claim]:
        """Claim what is due."""
        lease = self.period if lease is None else lease
        found = await self.store.claim(methods=methods, limit=limit, lease=lease)
        return found.claims

    async def claim_one(self, *, lease: float | None = None) -> Claim:
        """Claim what has to be the one thing that is due."""
        claims = await self.claim(lease=lease)
        same(len(claims), 1, "how many are due")
        return claims[0]

    async def bury(self, claim: Claim, upto: int, letter_id: str = "letter") -> Claim | None:
        """Park what a claim is about."""
        return await self.store.park(
            claim, upto=upto, letter_id=letter_id, reason="refused", attempt=tried(1, "refused")
        )

    async def sweep(self) -> list[str]:
        """Do all that time asks for; return the sessions that went."""
        gone: list[str] = []
        while True:
            swept = await self.store.sweep()
            gone.extend(swept.sessions)
            if not swept.has_more:
                return gone

    async def check_figures(self) -> None:
        """See that the figures add up, those of each session and the sums."""
        totals = await self.store.totals()
        sessions = await self.store.sessions(limit=1000)
        _check_sum(totals)
        for each in sessions:
            _check_sum(each)
        for name in ("sent", "queued", "retries"):
            least = sum(getattr(each, name) for each in sessions)
            hold(getattr(totals, name) >= least, f"totals have all {name}", totals, sessions)
        same(totals.sessions, len(sessions), "sessions in the totals")


Law = Callable[[Bench], Awaitable[None]]


def _check_sum(figures: SessionRecord | Totals) -> None:
    parts = (figures.delivered, figures.failed, figures.queued, figures.expired)
    hold(min(parts) >= 0, "no figure is below 0", figures)
    same(figures.sent, sum(parts), "sent is delivered + failed + queued + expired")


def body(n: int = 0, padding: int = 0) -> bytes:
    """Return what an event with a number in its data is stored as."""
    data = f'{{"n":{n},"text":"{"x" * padding}"}}'
    return f'{{"conversation_id":null,"data":{data},"metadata":{{}}}}'.encode()


def tried(number: int, error: str = "", delivery_id: str = "d") -> Attempt:
    """Return an attempt."""
    return Attempt(
        delivery_id=delivery_id, number=number, at=BEGIN, duration=0.25, events=1, error=error
    )


# Failures.


def hold(is_so: bool, what: str, *seen: object) -> None:
    """Fail unless something is so."""
    if not is_so:
        shown = ", ".join(map(show, seen))
        raise AssertionError(f"not so: {what}" + (f"; seen: {shown}" if seen else ""))


def same(seen: Any, wanted: Any, what: str) -> None:
    """Fail unless two things are equal."""
    if seen != wanted:
        raise AssertionError(f"{what}: should be {show(wanted)}, is {show(seen)}")


async def raises(kind: type[E], doing: Awaitable[object], what: str) -> E:
    """Return the error that has to come."""
    try:
        result = await doing
    except kind as error:
        return error
    raise AssertionError(f"{what}: should raise {kind.__name__}, gives {show(result)}")
