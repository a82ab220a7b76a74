"""The engine: claims what the store owes, and has each claim served by a task of its own."""

from __future__ import annotations

import logging
import math
import random as chance
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup, TaskStatus

from callbackkit.delivery.attempt import Deadlines, failure_of
from callbackkit.delivery.desk import Desk
from callbackkit.delivery.observers import Observers
from callbackkit.delivery.places import Place
from callbackkit.delivery.serving import Serving
from callbackkit.delivery.transport import DeliveryConfig, Transport, by_name
from callbackkit.stores.base import Claim, Claims, Store, Watch, steady_time

__all__ = ["DeliveryEngine"]

_logger = logging.getLogger("callbackkit.delivery")

# Claims taken at once.
_MOST_CLAIMS: Final = 64
# Seconds between two looks at a store that says that more is due and gives nothing.
_LEAST_WAIT: Final = 0.01
# Seconds after a failure of the store, or of the start of a transport: the first time, and at most.
_BACKOFF, _LONGEST_BACKOFF = 0.1, 30.0
# Failures of the store in a row after which draining is given up.
_DRAIN_FAILURES: Final = 3
# Seconds that a transport may take to start and to close.
_START: Final = 60.0
_CLOSE: Final = 5.0
# Seconds that a claim under way, and letting go of what it gave, may take when the run ends.
_LET_GO: Final = 2.0


class DeliveryEngine:
    """Delivers what sessions owe to transports, in order, again until it worked or is dead.

    Args:
        store: Where it is owed.
        transports: What delivers, each for the sessions whose method is its name. The engine
            starts and closes them.
        read_config: Reads what a client asked for.
        decode: Reads JSON.
        notify: Awaited with an operator event: its type (``endpoint.failing``,
            ``endpoint.recovered``, ``endpoint.disabled``, ``delivery.dead``), a session, its data.
        clock: Seconds since 1970, passing evenly; the store's own, or another like it. Whoever
            makes it jump calls :meth:`wake` then.
        random: Gives numbers from 0 to 1.
        concurrency: Claims served at the same time, by this process. Those whose destination
            takes longer than a second, or failed last time, do not count, so that others wait for
            none of them; of these there are up to 16 times as many. With several transports, one
            gets up to three quarters of either.
        observers: Who is told of attempts.

    Raises:
        TypeError: Something given as a transport is none.
        ValueError: Two transports with one name; a *concurrency* below 1.
    """

    def __init__(
        self,
        store: Store,
        transports: Sequence[Transport],
        *,
        read_config: Callable[[bytes], DeliveryConfig],
        decode: Callable[[bytes], Any],
        notify: Callable[[str, str, Mapping[str, Any]], Awaitable[None]],
        clock: Callable[[], float] = steady_time,
        random: Callable[[], float] = chance.random,
        concurrency: int = 256,
        observers: Observers | None = None,
    ) -> None:
        if concurrency < 1:
            raise ValueError(f"concurrency must be at least 1, not {concurrency!r}")
        self._store = store
        self._transports = by_name(transports)
        self._desk = Desk(
            store,
            self._transports,
            read_config=read_config,
            decode=decode,
            notify=notify,
            clock=clock,
            random=random,
            worker=secrets.token_hex(16),
            concurrency=concurrency,
            observers=Observers() if observers is None else observers,
        )
        self._clock = clock
        self._random = random
        self._ready: list[str] = []
        self._starting = 0
        self._serving = 0
        # Claimed, and not begun.
        self._fresh: dict[Place, Claim] = {}
        self._claiming: anyio.CancelScope | None = None
        # Seconds until a delivery steps aside, if one may.
        self._relief = math.inf
        self._scope: anyio.CancelScope | None = None
        self._ended: anyio.Event | None = None

    def __repr__(self) -> str:
        names = ", ".join(self._transports) or "nothing"
        return f"<DeliveryEngine of {names}, {self.serving} claims>"

    @property
    def serving(self) -> int:
        """Claims that are being served."""
        return self._serving

    # Life.

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Deliver until cancelled or drained; no task outlives this.

        A store that fails, or a transport that can't start, is tried again and again.

        Raises:
            RuntimeError: It runs already.
        """
        if self._ended is not None:
            raise RuntimeError("the engine runs already")
        ended, finished = anyio.Event(), anyio.Event()
        self._ended = ended
        self._desk.is_draining = False
        self._desk.deadlines = Deadlines()
        self._starting = len(self._transports)
        try:
            with anyio.CancelScope() as self._scope:
                async with anyio.create_task_group() as group:
                    for transport in self._transports.values():
                        group.start_soon(self._start, transport)
                    task_status.started()
                    # A task of its own: whoever cancels this one natively passes shields by.
                    group.start_soon(self._claim_and_serve, group, finished)
                    await self._until(finished)
        finally:
            with anyio.CancelScope(shield=True):
                await self._let_go()
                self._desk.deadlines.close()
                for transport in self._transports.values():
                    await self._close(transport)
            self._ready.clear()
            self._scope = self._ended = None
            ended.set()

    async def drain(self, timeout: float | None = None) -> None:
        """Attempt what is due now once, and end :meth:`run` when that is done.

        Batches go as they are. What has to wait, for a retry or because its endpoint is left
        alone, stays in the store for whoever runs next.

        Args:
            timeout: Seconds, after which attempts that are not done are cancelled; whoever runs
                next makes them again. ``None`` waits for them.
        """
        ended, scope = self._ended, self._scope
        if ended is None:
            return
        self._desk.is_draining = True
        self.wake()
        with anyio.move_on_after(timeout):
            await ended.wait()
            return
        if scope is not None:
            scope.cancel()
        await ended.wait()

    async def _until(self, finished: anyio.Event) -> None:
        """Wait; if that is cancelled, a claim under way has a little time to tell what it got."""
        try:
            await finished.wait()
        except BaseException:
            if self._claiming is not None:
                self._claiming.deadline = anyio.current_time() + _LET_GO
            raise

    def wake(self) -> None:
        """Have it look at the clock and the store now; only needed if the clock has jumped."""
        self._desk.wake()

    # Transports.

    async def _start(self, transport: Transport) -> None:
        """Start a transport, until it works; what it is to deliver is not claimed before."""
        failures = 0
        while error := await failure_of(transport.start, timeout=_START):
            self._starting -= failures == 0
            failures += 1
            _logger.error(
                "a transport could not start",
                exc_info=error,
                extra={"delivery_method": transport.name},
            )
            self.wake()
            if self._desk.is_draining:
                return
            await self._desk.pause(self._backoff(failures))
        self._starting -= failures == 0
        self._ready.append(transport.name)
        self.wake()

    @staticmethod
    async def _close(transport: Transport) -> None:
        error = await failure_of(transport.aclose, timeout=_CLOSE)
        if error is not None:
            _logger.warning(
                "a transport could not close",
                exc_info=error,
                extra={"delivery_method": transport.name},
            )

    # Claiming.

    async def _claim_and_serve(self, group: TaskGroup, finished: anyio.Event) -> None:
        failures = 0
        with self._store.watch(None) as self._desk.watch:
            while True:
                # Stores and watches need not suspend, and what is let go falls due at once.
                await anyio.lowlevel.checkpoint_if_cancelled()
                leased_at = self._clock()
                try:
                    claims = await self._claim()
                except Exception as exc:
                    # Whatever its store raises, the engine goes on.
                    failures += 1
                    self._tell_of_store(exc, failures)
                    if self._desk.is_draining and failures >= _DRAIN_FAILURES:
                        break
                    await self._desk.pause(self._backoff(failures))
                    continue
                failures = 0
                await self._begin(claims, leased_at, group)
                if self._is_done(claims):
                    break
                await self._wait(claims, self._desk.watch)
        self._desk.watch = None
        # Nobody claims any more, so nobody is to let go of what he serves.
        self._desk.is_crowded = False
        finished.set()

    async def _begin(self, claims: Claims, leased_at: float, group: TaskGroup) -> None:
        """Have claims served, each by a task; none if the run has ended meanwhile."""
        fresh = {self._desk.places.take(each.method, leased_at): each for each in claims.claims}
        self._fresh |= fresh
        self._serving += len(fresh)
        await anyio.lowlevel.checkpoint_if_cancelled()
        for place in fresh:
            group.start_soon(self._serve, place, leased_at + self._desk.lease)

    async def _claim(self) -> Claims:
        """Claim as much as there is room for."""
        desk = self._desk
        self._relief = desk.places.relieve(self._clock())
        rooms = {name: desk.places.room_for(name) for name in self._ready}
        methods = [name for name, room in rooms.items() if room > 0]
        desk.is_crowded = len(methods) < len(rooms) or desk.places.room <= 0
        if not methods:
            return Claims((), None)
        # The store takes them in this order: each is to come first in its turn.
        self._ready.append(self._ready.pop(0))
        # Its outcome has to be known, or what it gave would be leased to nobody.
        with anyio.CancelScope(shield=True) as self._claiming:
            return await self._store.claim(
                methods=methods,
                limit=min(_MOST_CLAIMS, *(rooms[name] for name in methods)),
                lease=desk.lease,
            )
        # It did not end within the time that was left.
        return Claims((), None)

    async def _let_go(self) -> None:
        """Have others take over what was claimed and not begun."""
        with anyio.move_on_after(_LET_GO):
            while self._fresh:
                place, claim = self._fresh.popitem()
                self._forget(place)
                try:
                    await self._store.retry(claim, delay=0.0, attempt=None)
                except Exception:
                    _logger.info(
                        "a claim was left to its lease",
                        extra={"delivery_session": claim.session_id},
                    )
        while self._fresh:
            self._forget(self._fresh.popitem()[0])

    def _is_done(self, claims: Claims) -> bool:
        """Tell whether all that is due has been claimed, and that was to be the end."""
        is_all = not claims.claims and claims.next_in != 0
        return (
            is_all and self._desk.is_draining and not self._desk.is_crowded and not self._starting
        )

    async def _wait(self, claims: Claims, watch: Watch) -> None:
        """Wait until more may be due, or there is room for more."""
        rest = self._store.reconcile
        if self._desk.is_crowded:
            rest = min(rest, self._relief)
        if claims.next_in is not None:
            rest = min(rest, claims.next_in)
        if claims.claims and (rest == 0 or self._desk.is_draining):
            await anyio.lowlevel.checkpoint()
            return
        await watch.wait(max(rest, _LEAST_WAIT))

    async def _serve(self, place: Place, leased_until: float) -> None:
        claim = self._fresh.pop(place)
        try:
            await Serving(self._desk, claim, place, leased_until).run()
        except Exception:
            # The claim lapses; the others know nothing of it.
            _logger.exception(
                "a delivery failed in an unforeseen way",
                extra={"delivery_session": claim.session_id, "delivery_method": claim.method},
            )
        finally:
            self._forget(place)

    def _forget(self, place: Place) -> None:
        self._serving -= 1
        self._desk.places.leave(place)
        self._desk.make_room()

    def _backoff(self, failures: int) -> float:
        longest = min(_BACKOFF * 2.0 ** min(failures - 1, 60), _LONGEST_BACKOFF)
        return longest * (0.5 + self._random() / 2)

    @staticmethod
    def _tell_of_store(error: Exception, failures: int) -> None:
        _logger.log(
            logging.ERROR if failures == 1 else logging.WARNING,
            "the store failed when asked what is due",
            exc_info=error,
            extra={"delivery_failures": failures},
        )
