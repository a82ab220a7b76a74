"""What this process knows of an endpoint, and shares with others through the store."""

from __future__ import annotations

import logging
import math
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Final, Literal

import anyio

from callbackkit.delivery.places import PATIENCE
from callbackkit.delivery.policy import Circuit, CircuitBreaker, RateLimit
from callbackkit.errors import StoreError
from callbackkit.stores.base import Store

__all__ = ["Change", "Endpoint", "Endpoints"]

_logger = logging.getLogger("callbackkit.delivery")

Change = Literal["failing", "recovered", "disabled"]

# Seconds after which it is looked up what other processes found out.
_FRESH: Final = 1.0
# Claims that wait here for their turn, for each that may be sending.
_LINE: Final = 2
# Times that a state is saved anew because another process was faster.
_MOST_TRIES: Final = 20
# Seconds that those who found the line full stay away, at least and at most.
_NEAR, _FAR = 0.05, 30.0
# Endpoints remembered that nobody uses.
_MOST_IDLE: Final = 4096


class Endpoint:
    """One destination: its breaker, its places, its rate.

    Args:
        name: What it is called.
        store: Where its state is kept.
        breaker: When to leave it alone; ``None`` unless it says that it is gone.
        concurrency: Attempts at the same time.

    Attributes:
        users: Claims that are being served for it.
        circuit: Its state, as far as known.
    """

    def __init__(
        self, name: str, store: Store, breaker: CircuitBreaker | None, concurrency: int
    ) -> None:
        self.name: str = name
        self.users: int = 0
        self.circuit: Circuit = Circuit()
        self._store = store
        self._has_breaker = breaker is not None
        self._breaker = breaker or CircuitBreaker()
        self._version = 0
        self._loaded_at = -math.inf
        # Successes that were not worth saving, since when.
        self._unsaved = 0
        self._unsaved_since = 0.0
        self._concurrency = concurrency
        self._free = concurrency
        self._line: deque[anyio.Event] = deque()
        self._left_at = -math.inf
        self._duration = 0.0
        self._was_slow = False
        self._full_at = -math.inf
        # When the next one that was sent away may come back.
        self._next_turn = -math.inf

    # Places.

    @property
    def has_line(self) -> bool:
        """Somebody waits for a place."""
        return bool(self._line)

    @property
    def is_suspect(self) -> bool:
        """It failed last time, or took long."""
        return self._was_slow or not self.circuit.is_spotless

    def enter_now(self) -> bool:
        """Take a place if there is one."""
        if self._free > 0:
            self._free -= 1
            return True
        return False

    async def enter(self, *, may_refuse: bool) -> bool:
        """Take a place, or wait in line for one; ``False`` if the line is too long."""
        if self.enter_now():
            return True
        if may_refuse and len(self._line) >= _LINE * self._concurrency:
            return False
        turn = anyio.Event()
        self._line.append(turn)
        try:
            await turn.wait()
        except BaseException:
            if turn.is_set():
                self._pass_on()
            else:
                self._line.remove(turn)
            raise
        return True

    def leave(self, now: float, duration: float | None) -> None:
        """Give a place up, after an attempt that took so long, if there was one."""
        self._left_at = now
        if duration is not None:
            self._duration += (duration - self._duration) / 4
            self._was_slow = duration >= PATIENCE
        self._pass_on()

    def _pass_on(self) -> None:
        if self._line:
            self._line.popleft().set()
        else:
            self._free += 1

    def come_back_in(self, now: float) -> float:
        """Return the seconds after which to ask for a place again, each caller later.

        The longer nobody left, the longer: who hangs is not asked about all the time.
        """
        if self._left_at == -math.inf:
            # From here on it counts that nobody leaves, though nobody ever has.
            self._left_at = now
        duration = max(self._duration, now - self._left_at)
        most = min(max(8 * duration, 2 * _NEAR), _FAR)
        turn = min(max(self._next_turn, now + _NEAR), now + most)
        self._next_turn = turn + duration / self._concurrency
        return turn - now

    # Rate.

    def wait_for_rate(self, limit: RateLimit, now: float) -> float:
        """Return the seconds until a request may be made, 0 for now."""
        return limit.wait(self._full_at, now)

    def take_rate(self, limit: RateLimit, now: float) -> None:
        """Count a request."""
        self._full_at = limit.take(self._full_at, now)

    def turn_in(self, limit: RateLimit, wait: float, now: float) -> float:
        """Return the seconds after which to come back, each caller later by one request."""
        turn = max(self._next_turn, now + max(wait, _NEAR))
        self._next_turn = turn + limit.interval
        return turn - now

    # The breaker.

    def is_fresh(self, now: float) -> bool:
        """Tell whether the state was looked up just now."""
        return 0 <= now - self._loaded_at < _FRESH

    async def load(self, now: float) -> None:
        """Look its state up."""
        version, state = await self._store.load_endpoint(self.name)
        if version != self._version:
            self._version = version
            self.circuit = Circuit.from_json(state)
        self._loaded_at = now

    @property
    def is_clear(self) -> bool:
        """Whoever wants to send may."""
        return self.circuit.phase == "closed" and self.circuit.resumes_at == 0

    def wait(self, now: float) -> float:
        """Return the seconds until somebody may send, 0 for now, infinity for never."""
        return self._breaker.wait(self.circuit, now)

    async def try_out(self, now: float, *, probe: str, lease: float) -> bool:
        """Become the one who tries it out; ``False`` if somebody else was faster."""
        circuit = self._breaker.try_out(self.circuit, now, probe=probe, lease=lease)
        return await self._save(circuit, now)

    def succeeds_again(self, now: float) -> bool:
        """Note an attempt that worked, unless that changes anything."""
        if not self.circuit.is_spotless:
            return False
        if not 0 <= now - self._unsaved_since < self._breaker.window:
            self._unsaved = 0
            self._unsaved_since = now
        self._unsaved += 1
        return True

    async def succeeded(self, now: float, *, probe: str, redriven: bool) -> Change | None:
        """Note an attempt that worked, and return what that changed."""
        if self.succeeds_again(now):
            return None

        def change(circuit: Circuit) -> Circuit:
            return self._breaker.succeeded(circuit, now, probe=probe, redriven=redriven)

        return await self._change(change, now)

    async def failed(self, now: float, *, chance: float, probe: str, reason: str) -> Change | None:
        """Note an attempt that failed, and return what that changed."""
        if not self._has_breaker:
            return None

        def change(circuit: Circuit) -> Circuit:
            if self._unsaved and circuit.phase == "closed":
                circuit = self._breaker.succeeded(circuit, now, times=self._unsaved)
            return self._breaker.failed(circuit, now, chance=chance, probe=probe, reason=reason)

        return await self._change(change, now)

    async def throttle(self, now: float, seconds: float) -> None:
        """Have nothing sent to it for so many seconds."""
        await self._change(lambda circuit: self._breaker.throttled(circuit, now, seconds), now)

    async def disable(self, now: float, reason: str) -> Change | None:
        """Have nothing sent to it any more."""

        def change(circuit: Circuit) -> Circuit:
            if circuit.phase == "disabled":
                return self._breaker.noted(circuit, now)
            return self._breaker.disabled(circuit, now, reason)

        return await self._change(change, now)

    async def keep_disabled(self, now: float) -> None:
        """Have the store remember that it is disabled; to be told when something is owed to it."""
        await self._change(lambda circuit: self._breaker.noted(circuit, now), now)

    async def _change(self, change: Callable[[Circuit], Circuit], now: float) -> Change | None:
        """Change the state, also if others change it meanwhile; tell what came of it, once.

        A store that fails costs what this process found out its audience, not its effect here.
        """
        for _ in range(_MOST_TRIES):
            before = self.circuit
            after = change(before)
            if after == before:
                return None
            try:
                if await self._save(after, now):
                    return _told(before, after)
            except StoreError as exc:
                _logger.warning(
                    "the state of an endpoint could not be saved",
                    exc_info=exc,
                    extra={"delivery_endpoint": self.name},
                )
                self.circuit = after
                return _told(before, after)
        return None

    async def _save(self, circuit: Circuit, now: float) -> bool:
        """Save a state; if another process was faster, look its state up instead."""
        if await self._store.save_endpoint(self.name, self._version, circuit.to_json()):
            self._version += 1
            self.circuit = circuit
            self._loaded_at = now
            self._unsaved = 0
            return True
        await self.load(now)
        return False


def _told(before: Circuit, after: Circuit) -> Change | None:
    if before.phase == after.phase:
        return None
    if after.phase == "disabled":
        return "disabled"
    if after.phase == "closed":
        return "recovered"
    return "failing" if before.phase == "closed" else None


class Endpoints:
    """The endpoints in use, and those used last."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: OrderedDict[str, Endpoint] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def get(self, name: str, breaker: CircuitBreaker | None, concurrency: int) -> Endpoint:
        """Return an endpoint."""
        endpoint = self._known.get(name)
        if endpoint is None:
            endpoint = Endpoint(name, self._store, breaker, concurrency)
            self._known[name] = endpoint
            self._forget()
        else:
            self._known.move_to_end(name)
        return endpoint

    def _forget(self) -> None:
        """Forget the one used longest ago, if there are too many."""
        if len(self._known) <= _MOST_IDLE:
            return
        for name, endpoint in self._known.items():
            if endpoint.users == 0:
                del self._known[name]
                return
