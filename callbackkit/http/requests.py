"""How many requests may come in a while: a limit for each key, in bounded memory."""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from callbackkit.errors import LimitError
from callbackkit.http.problems import WINDOW

__all__ = ["RequestLimit", "source_of"]

# About 20 MB of them.
_MOST_KEYS: Final = 100_000


class RequestLimit:
    """Lets so many requests by a key, at once or over a while; evenly refilled.

    Args:
        most: Requests in :data:`~callbackkit.http.problems.WINDOW` seconds.
        clock: Tells the seconds.
        max_keys: Keys that are remembered; beyond, the one that came least recently begins anew.
    """

    def __init__(
        self,
        most: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        max_keys: int = _MOST_KEYS,
    ) -> None:
        self._most = most
        self._max_keys = max_keys
        self._clock = clock
        # The time at which a key has used up nothing. One number says all (generic cell rate
        # algorithm): each request moves it on by a share of the window.
        self._free_at: OrderedDict[str, float] = OrderedDict()

    def __repr__(self) -> str:
        return f"<RequestLimit {self._most} in {WINDOW:g} s, {len(self._free_at)} keys>"

    def take(self, key: str) -> None:
        """Count a request.

        Raises:
            LimitError: There were too many; this one does not count.
        """
        now = self._clock()
        free_at = max(self._free_at.get(key, 0.0), now) + WINDOW / self._most
        # A millionth for what is lost in adding.
        if free_at - now > WINDOW * 1.000_001:
            hint = f"so many requests in {WINDOW:g} seconds; send fewer"
            raise LimitError("max_requests", self._most, hint)
        self._free_at[key] = free_at
        self._free_at.move_to_end(key)
        self._forget(now)

    def _forget(self, now: float) -> None:
        """Let go of the oldest keys, two at a time, while they say nothing or are too many.

        The newest one says something, so some are always left.
        """
        for _ in range(2):
            key, free_at = next(iter(self._free_at.items()))
            if free_at > now and len(self._free_at) <= self._max_keys:
                return
            del self._free_at[key]


def source_of(host: str | None) -> str:
    """Return what requests are counted by that come from an address.

    Of IPv6 that is the network of 64 bits, for whoever has one address there has all of them.

    >>> source_of("2001:db8::1")
    '2001:db8::/64'
    """
    if host is None or ":" not in host:
        return host or ""
    try:
        network = ipaddress.IPv6Network((host.partition("%")[0], 64), strict=False)
    except ValueError:
        return host
    return str(network)
