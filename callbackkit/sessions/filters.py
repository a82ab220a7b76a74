"""What emitting to a session has to know of it, kept at hand for a while."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

import attrs

from callbackkit.sessions.config import CallbackConfig
from callbackkit.stores.base import SessionRecord, Store

__all__ = ["Filters", "Known"]

# Sessions that are kept at hand.
_MOST: Final = 10_000
# Seconds after which a session is looked at again: another process may have changed it.
_LIVES: Final = 10.0


@attrs.frozen(eq=False)
class Known:
    """What emitting to a session has to know of it.

    Attributes:
        config: What its client asked for.
        unowed: Event types that its transport is not to deliver, as the store knows them: whoever
            emits need not have the transport.
        until: When it is looked at again.
    """

    config: CallbackConfig
    unowed: tuple[str, ...]
    until: float


class Filters:
    """What is known of sessions here, so that emitting need not ask the store each time.

    What this process changes is forgotten at once; what another one changes is noticed within ten
    seconds.

    Args:
        store: Where the sessions are.
        read_config: Reads a configuration as it is stored.
        clock: Seconds that pass evenly.
    """

    def __init__(
        self,
        store: Store,
        read_config: Callable[[bytes], CallbackConfig],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._read_config = read_config
        self._clock = clock
        self._known: OrderedDict[str, Known] = OrderedDict()
        # Counts what was forgotten: what was read of the store before may be old by now.
        self._forgotten = 0

    def __len__(self) -> int:
        return len(self._known)

    def at_hand(self, session_id: str) -> Known | None:
        """Return what is known of a session, if that is not too long ago; from any thread."""
        known = self._known.get(session_id)
        if known is None or known.until <= self._clock():
            return None
        return known

    async def learn(self, session_id: str) -> Known:
        """Return what is known of a session; ask the store if that is too long ago.

        Raises:
            UnknownSessionError: There is none.
        """
        known = self.at_hand(session_id)
        if known is not None:
            return known
        _, known = await self._read(session_id)
        return known

    async def look_up(self, session_id: str) -> SessionRecord:
        """Return a session as it stands in the store, and know it from now on.

        Raises:
            UnknownSessionError: There is none.
        """
        record, _ = await self._read(session_id)
        return record

    async def _read(self, session_id: str) -> tuple[SessionRecord, Known]:
        forgotten = self._forgotten
        record = await self._store.get_session(session_id)
        config = self._read_config(record.config)
        known = Known(config, record.unowed, self._clock() + _LIVES)
        if forgotten == self._forgotten:
            self._keep(session_id, known)
        return record, known

    def note(self, session_id: str, config: CallbackConfig, unowed: tuple[str, ...]) -> None:
        """Know a session as it was made or changed just now, by this process."""
        self.forget(session_id)
        self._keep(session_id, Known(config, unowed, self._clock() + _LIVES))

    def forget(self, session_id: str) -> None:
        """Know nothing of a session any more."""
        self._forgotten += 1
        self._known.pop(session_id, None)

    def _keep(self, session_id: str, known: Known) -> None:
        # Those that became known first stand first, and go first.
        if len(self._known) >= _MOST:
            self._known.popitem(last=False)
        self._known[session_id] = known
