"""The connections of a simulated worker: made by who comes first, dropped at the first failure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.benchmarks.simulation_model import Call

if TYPE_CHECKING:
    from tests.benchmarks.simulation_fleet import Simulation

__all__ = ["Line"]

# As callbackkit has them, see stores/redis_client.py; seconds, and connections for calls.
_BACKOFF, _LONGEST_BACKOFF = 0.05, 1.0
_CONNECTIONS = 2


class Line:
    """The connections of a worker, for its calls.

    Args:
        fleet: What all share.
    """

    def __init__(self, all_of: Simulation) -> None:
        self._all = all_of
        self._is_open = True
        self._is_opening = False
        self._failures = 0
        self._waiting: list[Call] = []
        # Connections that are to be made by the next calls.
        self._missing = 0
        # When the thread of the store is free.
        self._free_at = 0.0

    def send(self, call: Call) -> None:
        """Make a call, once there is a connection."""
        if self._is_open:
            self._pass(call)
            return
        self._waiting.append(call)
        if not self._is_opening:
            self._is_opening = True
            self._all.timetable.at(self._all.timetable.now + self._delay(), self._open)

    def succeeded(self) -> None:
        """Note that there was an answer."""
        self._failures = 0

    def drop(self) -> None:
        """Have the next call connect anew."""
        if self._is_open:
            self._is_open = False
            self._failures += 1

    def _pass(self, call: Call) -> None:
        now, fleet = self._all.timetable.now, self._all.fleet
        if self._missing:
            self._missing -= 1
            self._all.connect()
        self._free_at = max(now, self._free_at) + fleet.thread
        self._all.timetable.at(self._free_at + fleet.network / 2, self._all.redis.arrive, call)

    def _delay(self) -> float:
        if self._failures < 2:
            return 0.0
        longest = min(_BACKOFF * 2.0 ** min(self._failures - 2, 20), _LONGEST_BACKOFF)
        return longest * (0.5 + self._all.random.random() / 2)

    def _open(self) -> None:
        timetable = self._all.timetable
        if self._all.redis.state == "silent":
            timetable.at(timetable.now + self._all.fleet.timeout, self._refuse)
        elif self._all.redis.state == "refusing":
            self._refuse()
        else:
            self._is_open, self._is_opening = True, False
            self._missing = _CONNECTIONS
            waiting, self._waiting = self._waiting, []
            for call in waiting:
                self._pass(call)

    def _refuse(self) -> None:
        self._is_opening = False
        self._failures += 1
        waiting, self._waiting = self._waiting, []
        for call in waiting:
            call.is_over = True
            call.failed()
