"""What clients of sessions send, and who listens to it in this process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, cast

from callbackkit.dispatch.registration import Registration
from callbackkit.dispatch.registry import CallbackRegistry
from callbackkit.errors import UnknownSessionError
from callbackkit.events import Event
from callbackkit.stores.base import Store

__all__ = ["Messages", "content_of"]

# Sessions that are looked at in a row.
_AT_ONCE: Final = 20


class Messages:
    """Callbacks for what the client of one session sends, by session; any thread may register.

    They run as those of a manager do: in the order of their registration, and one that fails is
    logged and stops no other.
    """

    def __init__(self) -> None:
        # The id of the session takes the place of the event type.
        self._registry = CallbackRegistry()
        self._looked_at = 0

    def __len__(self) -> int:
        return len(self._registry.event_types())

    def register(self, session_id: str, callback: Callable[[Event], object]) -> Registration:
        """Have *callback* called with each message of a session that is stored here.

        Raises:
            TypeError: It is no callable.
        """
        return self._registry.register_callback(session_id, callback)

    async def call(self, event: Event) -> None:
        """Call the callbacks of the session of an event."""
        await self._registry.trigger_callbacks(event.session_id, event)

    def forget(self, session_id: str) -> None:
        """Cancel what is registered for a session."""
        for each in self._registry.listeners(session_id):
            each.cancel()

    async def forget_gone(self, store: Store) -> None:
        """Forget sessions that have ended elsewhere; looks at a few, at others the next time."""
        sessions = [str(each) for each in self._registry.event_types()]
        self._looked_at %= max(len(sessions), 1)
        for session_id in sessions[self._looked_at : self._looked_at + _AT_ONCE]:
            if await _is_active(store, session_id):
                self._looked_at += 1
            else:
                # The others move up.
                self.forget(session_id)


async def _is_active(store: Store, session_id: str) -> bool:
    try:
        session = await store.get_session(session_id)
    except UnknownSessionError:
        return False
    return session.state == "active"


def content_of(message: object) -> Mapping[str, Any]:
    """Return a message as the data of an event: a JSON object as it is, else under ``message``."""
    if isinstance(message, dict):
        return cast("dict[str, Any]", message)
    return {"message": message}
