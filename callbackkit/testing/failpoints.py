"""A store that fails, stops or takes the process down at the verb a test names."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Final, Literal, NoReturn, ParamSpec, TypeVar

import attrs

from callbackkit.events import Position
from callbackkit.stores.base import (
    Appended,
    Attempt,
    Claim,
    Claims,
    DeadLetter,
    NewSession,
    Page,
    SessionRecord,
    SessionState,
    Store,
    Swept,
    Totals,
    Watch,
)
from callbackkit.testing.waiting import Bell

__all__ = ["FailpointStore", "Pause"]

P = ParamSpec("P")
T = TypeVar("T")

When = Literal["before", "after"]

# What a process that was sent SIGKILL exits with, as a shell sees it.
_KILLED: Final = 137

_VERBS: Final = frozenset(Store.__abstractmethods__ - {"watch"})


class Pause:
    """A call that is held up, until :meth:`release`."""

    def __init__(self) -> None:
        self._bell = Bell()
        self._is_reached = False
        self._is_released = False

    async def reached(self, timeout: float | None = 5.0) -> bool:
        """Wait until a call is held up here; tell whether one was, *timeout* seconds at most."""
        return await self._bell.wait_until(lambda: self._is_reached, timeout)

    def release(self) -> None:
        """Let the call go on, and do not hold up any later one; from any thread."""
        self._is_released = True
        self._bell.ring()

    async def hold(self) -> None:
        """Wait for the release."""
        self._is_reached = True
        self._bell.ring()
        await self._bell.wait_until(lambda: self._is_released, None)


@attrs.define
class _Failpoint:
    """What happens at calls of a verb.

    Attributes:
        when: Before the verb is done, or after.
        act: What happens.
        call: Calls until then, this one included.
        times: Calls it happens to; ``None`` for all from then on.
    """

    when: When
    act: Callable[[], Awaitable[None]]
    call: int
    times: int | None

    def is_hit(self) -> bool:
        """Count a call; tell whether it happens to this one."""
        self.call -= 1
        return self.call <= 0 and (self.times is None or -self.call < self.times)


class FailpointStore(Store):
    """A store before another one, where a test says at which call something goes wrong.

    The process is killed when a delivery was sent and before it is acknowledged::

        store = FailpointStore(SQLiteStore("events.db"))
        store.kill("ack", when="before")

    Run that in a process of its own, and see in the next one what was kept. Or a disk is full for
    three appends::

        store.fail("append", StoreUnavailableError("disk full"), times=3)

    Or a worker stops in the middle, longer than its lease::

        pause = store.pause("ack", when="before")
        ...
        await pause.reached()
        clock.advance(60)
        pause.release()

    Args:
        inner: The store that does the work.
    """

    def __init__(self, inner: Store) -> None:
        self._inner = inner
        self.reconcile: float = inner.reconcile
        self._points: dict[str, list[_Failpoint]] = {}

    def __repr__(self) -> str:
        return (
            f"<FailpointStore before {self._inner!r}, armed: {', '.join(self._points) or 'none'}>"
        )

    # Saying what is to happen.

    def fail(
        self,
        verb: str,
        error: BaseException,
        *,
        when: When = "before",
        call: int = 1,
        times: int | None = 1,
    ) -> None:
        """Raise an error; *after* the verb, it is done all the same.

        Args:
            verb: Name of a method of :class:`~callbackkit.stores.base.Store`.
            error: The error.
            when: Before the verb is done, or after.
            call: At which call from now on.
            times: At how many calls; ``None`` for all from then on, until :meth:`disarm`.

        Raises:
            ValueError: There is no such verb, or *call* or *times* is below 1.
        """

        async def act() -> None:
            raise error

        self._arm(verb, when, act, call, times)

    def pause(self, verb: str, *, when: When = "before", call: int = 1) -> Pause:
        """Hold up one call, the first one or the one with that number, until it is released."""
        pause = Pause()
        self._arm(verb, when, pause.hold, call, 1)
        return pause

    def kill(self, verb: str, *, when: When = "before", call: int = 1) -> None:
        """End this process at a call, as ``kill -9`` does: nothing is closed or written out."""
        self._arm(verb, when, _kill, call, 1)

    def disarm(self, verb: str | None = None) -> None:
        """Have nothing happen any more, at one verb or at all."""
        if verb is None:
            self._points.clear()
        else:
            self._points.pop(verb, None)

    def _arm(
        self,
        verb: str,
        when: When,
        act: Callable[[], Awaitable[None]],
        call: int,
        times: int | None,
    ) -> None:
        if verb not in _VERBS:
            raise ValueError(f"a store has no verb {verb!r}; it has {', '.join(sorted(_VERBS))}")
        if when not in {"before", "after"}:
            raise ValueError(f"when must be 'before' or 'after', not {when!r}")
        for name, value in (("call", call), ("times", times)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be 1 or more, not {value!r}")
        self._points.setdefault(verb, []).append(_Failpoint(when, act, call, times))

    async def _pass(
        self,
        name: str,
        verb: Callable[P, Awaitable[T]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        points = self._points.get(name)
        if not points:
            return await verb(*args, **kwargs)
        # Counted before anything happens: each of them sees each call.
        hit = [point for point in points if point.is_hit()]
        for point in hit:
            if point.when == "before":
                await point.act()
        result = await verb(*args, **kwargs)
        for point in hit:
            if point.when == "after":
                await point.act()
        return result

    # The verbs.

    async def start(self) -> None:
        await self._pass("start", self._inner.start)

    async def aclose(self) -> None:
        await self._pass("aclose", self._inner.aclose)

    async def create_session(
        self, new: NewSession, *, max_sessions: int | None = None
    ) -> SessionRecord:
        create = self._inner.create_session
        return await self._pass("create_session", create, new, max_sessions=max_sessions)

    async def get_session(self, session_id: str) -> SessionRecord:
        return await self._pass("get_session", self._inner.get_session, session_id)

    async def sessions(
        self,
        *,
        state: SessionState | None = None,
        owner: str | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> Sequence[SessionRecord]:
        sessions = self._inner.sessions
        return await self._pass(
            "sessions", sessions, state=state, owner=owner, after=after, limit=limit
        )

    async def update_session(
        self, session_id: str, *, known: bytes, config: bytes, unowed: tuple[str, ...]
    ) -> SessionRecord:
        update = self._inner.update_session
        return await self._pass(
            "update_session", update, session_id, known=known, config=config, unowed=unowed
        )

    async def touch(self, reads: Mapping[str, int | None]) -> None:
        await self._pass("touch", self._inner.touch, reads)

    async def end_session(self, session_id: str, *, linger: float) -> SessionRecord:
        end = self._inner.end_session
        return await self._pass("end_session", end, session_id, linger=linger)

    async def delete_session(self, session_id: str, *, linger: float) -> None:
        delete = self._inner.delete_session
        await self._pass("delete_session", delete, session_id, linger=linger)

    async def append(
        self,
        session_id: str,
        event_type: str,
        body: bytes,
        *,
        owed: bool = True,
        key: str | None = None,
    ) -> Appended:
        append = self._inner.append
        return await self._pass("append", append, session_id, event_type, body, owed=owed, key=key)

    async def read(
        self,
        session_id: str,
        *,
        after: Position | None = None,
        limit: int = 100,
        owed: bool = False,
    ) -> Page:
        read = self._inner.read
        return await self._pass("read", read, session_id, after=after, limit=limit, owed=owed)

    async def tail(self, session_id: str, *, limit: int) -> Page:
        return await self._pass("tail", self._inner.tail, session_id, limit=limit)

    def watch(self, session_id: str | None) -> Watch:
        return self._inner.watch(session_id)

    async def trim(self, session_id: str, *, before: int) -> int:
        return await self._pass("trim", self._inner.trim, session_id, before=before)

    async def sweep(self, *, limit: int = 100) -> Swept:
        return await self._pass("sweep", self._inner.sweep, limit=limit)

    async def claim(self, *, methods: Collection[str], limit: int, lease: float) -> Claims:
        claim = self._inner.claim
        return await self._pass("claim", claim, methods=methods, limit=limit, lease=lease)

    async def renew(self, claim: Claim, *, lease: float, bound: int | None = None) -> Claim:
        return await self._pass("renew", self._inner.renew, claim, lease=lease, bound=bound)

    async def ack(
        self, claim: Claim, upto: int, attempt: Attempt | None, *, lease: float | None = None
    ) -> Claim | None:
        return await self._pass("ack", self._inner.ack, claim, upto, attempt, lease=lease)

    async def retry(
        self, claim: Claim, *, delay: float, attempt: Attempt | None, bound: int | None = None
    ) -> None:
        retry = self._inner.retry
        await self._pass("retry", retry, claim, delay=delay, attempt=attempt, bound=bound)

    async def park(
        self,
        claim: Claim,
        *,
        upto: int,
        letter_id: str,
        reason: str,
        attempt: Attempt | None,
        lease: float | None = None,
    ) -> Claim | None:
        return await self._pass(
            "park",
            self._inner.park,
            claim,
            upto=upto,
            letter_id=letter_id,
            reason=reason,
            attempt=attempt,
            lease=lease,
        )

    async def dead_letters(
        self, session_id: str, *, after: str | None = None, limit: int = 100
    ) -> Sequence[DeadLetter]:
        letters = self._inner.dead_letters
        return await self._pass("dead_letters", letters, session_id, after=after, limit=limit)

    async def redrive(self, session_id: str, ids: Collection[str] | None = None) -> int:
        return await self._pass("redrive", self._inner.redrive, session_id, ids)

    async def attempts(self, session_id: str) -> Sequence[Attempt]:
        return await self._pass("attempts", self._inner.attempts, session_id)

    async def load_endpoint(self, endpoint: str) -> tuple[int, bytes]:
        return await self._pass("load_endpoint", self._inner.load_endpoint, endpoint)

    async def save_endpoint(self, endpoint: str, version: int, state: bytes) -> bool:
        save = self._inner.save_endpoint
        return await self._pass("save_endpoint", save, endpoint, version, state)

    async def totals(self) -> Totals:
        return await self._pass("totals", self._inner.totals)

    async def health(self) -> None:
        await self._pass("health", self._inner.health)


async def _kill() -> NoReturn:
    os._exit(_KILLED)
