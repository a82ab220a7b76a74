"""Keeps a session followed: which way, and when to come back."""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, Literal

import anyio

from callbackkit.client.answers import BlockedError, LostError
from callbackkit.client.backoff import Backoff
from callbackkit.client.line import Line
from callbackkit.client.polling import follow_polling
from callbackkit.client.sse import follow_sse
from callbackkit.client.websocket import follow_websocket

__all__ = ["METHODS", "FollowState", "Follower", "Way"]

Way = Literal["sse", "websocket", "polling"]
FollowState = Literal["connecting", "following", "waiting", "ended", "failed", "closed"]

_logger = logging.getLogger("callbackkit.client")

METHODS: Final[Mapping[Way, Callable[[Line], Awaitable[None]]]] = {
    "sse": follow_sse,
    "websocket": follow_websocket,
    "polling": follow_polling,
}

# Connections in a row that were made and brought nothing, after which another way is tried.
_MOST_FRUITLESS: Final = 3


class Follower:
    """Follows a session until it has ended, by whatever way works.

    Args:
        name: What is followed, for log lines.
        ways: To be tried in this order, again and again.
        backoff: When to come back.

    Attributes:
        way: The one in use.
        state: What it is doing.
        trouble: Why it last had to come back, or try another way; ``None`` once that works.
        was_reached: A server has let it in, or may do so another time.
    """

    way: Way
    state: FollowState
    trouble: str | None
    was_reached: bool

    def __init__(self, name: str, ways: Sequence[Way], backoff: Backoff) -> None:
        self._name = name
        self._ways = ways
        self._backoff = backoff
        self._failures = 0
        self._fruitless = 0
        # Ways that turned out blocked since one last worked.
        self._blocked = 0
        # Since when the connection has been known to work, if it is.
        self._works_since: float | None = None
        self.way = ways[0]
        self.state = "connecting"
        self.trouble = None
        self.was_reached = False

    def note_work(self) -> None:
        """Take note that the way in use works."""
        if self._works_since is None:
            self._works_since = anyio.current_time()
        self.state = "following"
        self.trouble = None
        self.was_reached = True

    def note_event(self) -> None:
        """Take note that an event was handed on: whatever was, all is well again."""
        self._failures = self._fruitless = self._blocked = 0

    async def run(self, line: Line) -> None:
        """Follow; returns once the session has ended.

        Raises:
            CallbackKitError: The session can't be followed any more.
        """
        while True:
            self.state = "connecting"
            self._works_since = None
            try:
                await METHODS[self.way](line)
                return
            except BlockedError as exc:
                delay = self._after_block(str(exc))
            except LostError as exc:
                if self._has_lasted():
                    self.note_event()
                delay = self._after_loss(exc)
            self.state = "waiting"
            await anyio.sleep(delay)

    def _has_lasted(self) -> bool:
        """Tell whether the connection was of use, even if the session had nothing to say."""
        since = self._works_since
        return since is not None and anyio.current_time() - since > self._backoff.max_delay

    def _after_loss(self, lost: LostError) -> float:
        """Return seconds to wait; go another way if this one has brought nothing for long."""
        self._failures += 1
        self.trouble = str(lost)
        self.was_reached = self.was_reached or lost.was_reached
        if lost.was_reached and lost.told is None:
            self._fruitless += 1
        if self._fruitless >= _MOST_FRUITLESS and len(self._ways) > 1:
            self._next_way()
        delay = self._delay(lost.told)
        _logger.info("%s: %s; again in %.1f s by %s", self._name, lost, delay, self.way)
        return delay

    def _after_block(self, reason: str) -> float:
        """Go another way, at once unless all have been tried; return seconds to wait."""
        self._blocked += 1
        self.trouble = reason
        blocked = self.way
        self._next_way()
        delay = 0.0
        if self._blocked % len(self._ways) == 0:
            self._failures += 1
            delay = self._delay(None)
        _logger.warning(
            "%s can't be followed by %s: %s; next by %s", self._name, blocked, reason, self.way
        )
        return delay

    def _next_way(self) -> None:
        self._fruitless = 0
        self.way = self._ways[(self._ways.index(self.way) + 1) % len(self._ways)]

    def _delay(self, told: float | None) -> float:
        return self._backoff.delay(self._failures, chance=random.random(), told=told)
