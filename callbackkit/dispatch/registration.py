"""One callback registered for an event type: what it was registered with, and whether it counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, Self

import attrs

from callbackkit.dispatch.callables import callable_name
from callbackkit.dispatch.event_types import event_name
from callbackkit.dispatch.outcome import SKIPPED, Settled

if TYPE_CHECKING:
    from callbackkit.dispatch.tracing import PerformanceStats

__all__ = ["PLAIN", "Bound", "Entry", "Options", "Registration", "inactive"]


@attrs.frozen
class Options:
    """How a callback is to be called; one instance serves all that have the same."""

    once: bool = False
    when: Callable[[Any], Any] | None = None
    with_event: bool = False
    weak: bool = False
    thread: bool = False
    timeout: float | None = None
    on_error: Callable[..., Any] | None = None
    stats: PerformanceStats | None = None


PLAIN = Options()


def inactive(*_args: object) -> Settled:
    """Stand in for a callback that is not to be called any more."""
    return SKIPPED


class Owner(Protocol):
    """Who keeps registrations."""

    def cancel(self, registration: Registration) -> bool: ...

    def pause(self, registration: Registration) -> None: ...

    def resume(self, registration: Registration) -> None: ...


class Registration:
    """A callback that listens to an event type, until it is cancelled.

    Returned by :meth:`~callbackkit.CallbackRegistry.register_callback`; as a context manager it
    cancels itself on exit::

        with registry.register_callback("order.created", audit):
            ...

    Attributes:
        event_type: The event type, pattern or class it listens to.
        priority: Higher ones are called first.
    """

    # Kept small: a registry may hold 100 000 (tests/benchmarks, "bookkeeping").
    __slots__ = (
        "_owner",
        "call",
        "event_type",
        "is_cancelled",
        "options",
        "paused_call",
        "priority",
        "sequence",
        "target",
        "timeout",
    )

    def __init__(
        self,
        owner: Owner,
        event_type: str | type[Any],
        target: Any,
        call: Callable[..., Any],
        priority: float,
        sequence: int,
        options: Options,
        timeout: float | None,
    ) -> None:
        self._owner = owner
        # Seconds that what it returns may be awaited.
        self.timeout: float | None = timeout
        self.event_type: str | type[Any] = event_type
        self.target: Any = target
        # What a dispatch calls. Removal and pause() put inactive() here, so that a dispatch under
        # way skips the callback without asking each one whether it is still active.
        self.call: Callable[..., Any] = call
        self.priority: float = priority
        self.sequence: int = sequence
        self.options: Options = options
        self.paused_call: Callable[..., Any] | None = None
        self.is_cancelled: bool = False

    def __repr__(self) -> str:
        state = "active" if self.active else "cancelled" if self.is_cancelled else "paused"
        name = callable_name(self.callback)
        return f"<Registration of {name} for {event_name(self.event_type)}, {state}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.cancel()

    @property
    def callback(self) -> Any:
        """The callback; ``None`` when it was held weakly and its object is gone."""
        return self.target() if self.options.weak else self.target

    @property
    def registration(self) -> Registration:
        """Itself: what a dispatch calls may also be a :class:`Bound` one."""
        return self

    @property
    def active(self) -> bool:
        """It is neither cancelled nor paused."""
        return self.call is not inactive

    @property
    def stats(self) -> PerformanceStats | None:
        """What was measured so far, if the registry was made with ``monitor=True``."""
        return self.options.stats

    def cancel(self) -> bool:
        """Stop listening, for good and at once; ``False`` if that had happened already."""
        return self._owner.cancel(self)

    def pause(self) -> None:
        """Stop listening until :meth:`resume`. Pausing twice is pausing once."""
        self._owner.pause(self)

    def resume(self) -> None:
        """Listen again. Does nothing unless paused."""
        self._owner.resume(self)


class Bound:
    """A callback made ready for one event type, or for one dispatch."""

    __slots__ = ("_callback", "call", "options", "registration", "timeout")

    def __init__(
        self,
        call: Callable[..., Any],
        registration: Registration | None = None,
        callback: Any = None,
        timeout: float | None = None,
    ) -> None:
        self.call: Callable[..., Any] = call
        # Seconds that what it returns may be awaited.
        self.timeout: float | None = timeout
        self.registration: Registration | None = registration
        self.options: Options = PLAIN if registration is None else registration.options
        self._callback = callback

    @property
    def callback(self) -> Any:
        return self._callback if self.registration is None else self.registration.callback


Entry = Registration | Bound
