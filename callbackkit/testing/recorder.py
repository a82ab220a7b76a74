"""Record the events of a registry or a session, for a test to look at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self, TypeAlias
from unittest.mock import ANY

from callbackkit.dispatch.event_types import EventName, event_name, matches, pattern_key
from callbackkit.dispatch.outcome import ErrorContext
from callbackkit.dispatch.registry import CallbackRegistry
from callbackkit.events import Event
from callbackkit.sessions.manager import OPERATORS, CallbackManager
from callbackkit.sessions.session import Session
from callbackkit.testing.messages import counted, listing, show
from callbackkit.testing.waiting import Bell

__all__ = ["RecordedEvent", "Recorder"]

RecordedEvent: TypeAlias = tuple[EventName, Any]


class Recorder:
    """Keeps every event that is triggered from its creation on, until it is closed.

    It is no listener: it stands in no result, and an event nobody listens to is recorded too. An
    event that is muted is not, and neither is a synchronous trigger that is refused because of an
    async callback. Events are recorded before their callbacks run, from any thread, with their
    data as it is, not copied. Nothing is ever dropped, so one that is left open grows.

    As a context manager it closes itself::

        with Recorder(registry) as recorder:
            await shop.accept(order)
        recorder.assert_emitted_once("order.created", order)

    Where its methods take an event type, a pattern or a class will do, as for
    :meth:`~callbackkit.CallbackRegistry.register_callback`.

    Of a session it records what this process emits to it, from the moment it is stored: not what
    its filter leaves out, nor what it had before. The data is that of the event then, such as
    ``{"progress": 0.4}``; of a manager it is the :class:`~callbackkit.Event`, of whatever session,
    and what operators are told.

    Args:
        source: Whose events to record: a registry, a manager for those of its registry, or a
            session.

    Raises:
        TypeError: *source* is none of these.

    Attributes:
        events: ``(event_type, data)`` of each event, in order.
        failures: ``(exception, context)`` of each callback that failed, in order.
    """

    def __init__(self, source: CallbackRegistry | CallbackManager | Session) -> None:
        self.events: list[RecordedEvent] = []
        self.failures: list[tuple[Exception, ErrorContext]] = []
        self._bell = Bell()
        self._registry = _registry_of(source)
        self._session_id = source.id if isinstance(source, Session) else None
        self._remove_tap = self._registry.tap(self._note_event)
        self._registry.add_error_callback(self._note_failure)

    def __repr__(self) -> str:
        events = counted(len(self.events), "event")
        failures = counted(len(self.failures), "failure")
        return f"<Recorder of {self._registry!r}: {events}, {failures}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop recording; what was recorded stays. Closing twice is harmless."""
        self._remove_tap()
        self._registry.remove_error_callback(self._note_failure)

    def _note_event(self, event_type: EventName, data: Any) -> None:
        if self._session_id is not None:
            if not self._is_of_session(data):
                return
            data = data.data
        self.events.append((event_type, data))
        self._bell.ring()

    def _note_failure(self, exception: Exception, context: ErrorContext) -> None:
        if self._session_id is None or self._is_of_session(context.data):
            self.failures.append((exception, context))

    def _is_of_session(self, data: Any) -> bool:
        """Tell whether it is an event that stands in the log of the session."""
        return (
            isinstance(data, Event)
            and data.session_id == self._session_id
            and data.position.epoch != OPERATORS
        )

    # Looking.

    def of(self, event_type: Any) -> list[RecordedEvent]:
        """Return the events of one type, pattern or class, in order."""
        wanted = pattern_key(event_type)
        return [event for event in list(self.events) if matches(wanted, event[0])]

    def count(self, event_type: Any) -> int:
        """Return how many events of a type there were."""
        return len(self.of(event_type))

    async def wait_for(
        self, event_type: Any, count: int = 1, *, timeout: float | None = 5.0
    ) -> list[RecordedEvent]:
        """Wait until there are at least *count* events of a type; return the first *count*.

        Args:
            event_type: An event type, a pattern or a class.
            count: Events, those recorded before the waiting included.
            timeout: Seconds to wait; ``None`` for no limit.

        Raises:
            TimeoutError: Fewer came; the message lists what was recorded.
        """
        if count < 1:
            raise ValueError(f"count must be at least 1, not {count!r}")
        search = _Search(self.events, pattern_key(event_type))
        if not await self._bell.wait_until(lambda: search.has_found(count), timeout):
            raise TimeoutError(
                f"{_name(event_type)} came {counted(len(search.found), 'time')} within "
                f"{timeout} seconds, not {counted(count, 'time')}; {self._recorded()}"
            )
        return search.found

    # Asserting.

    def assert_emitted(self, event_type: Any, data: Any = ANY) -> None:
        """Assert that there was an event of a type, with equal *data* if it is given."""
        if not any(data == came for _, came in self.of(event_type)):
            raise self._wrong(f"expected {_name(event_type)}{_with(data)}")

    def assert_emitted_once(self, event_type: Any, data: Any = ANY) -> None:
        """Assert that there was one event of a type, with equal *data* if it is given."""
        found = self.of(event_type)
        if len(found) != 1 or not data == found[0][1]:
            raise self._wrong(f"expected a single {_name(event_type)}{_with(data)}")

    def assert_not_emitted(self, event_type: Any) -> None:
        """Assert that there was no event of a type."""
        if self.of(event_type):
            raise self._wrong(f"expected no {_name(event_type)}")

    def assert_order(self, event_types: Sequence[Any]) -> None:
        """Assert that events of these types came in this order, whatever came between them."""
        wanted = [pattern_key(event_type) for event_type in event_types]
        rest = iter(list(self.events))
        for place, name in enumerate(wanted):
            if not any(matches(name, came) for came, _ in rest):
                before = f" after {event_name(wanted[place - 1])}" if place else ""
                order = ", ".join(map(event_name, wanted))
                raise self._wrong(
                    f"expected the order {order}; there is no {event_name(name)}{before}"
                )

    def raise_for_failures(self) -> None:
        """Raise what callbacks raised, if any did.

        Raises:
            ExceptionGroup: The exceptions of all of :attr:`failures`.
        """
        if failures := list(self.failures):
            message = f"callbacks failed {counted(len(failures), 'time')}"
            raise ExceptionGroup(message, [error for error, _ in failures])

    def _wrong(self, expected: str) -> AssertionError:
        return AssertionError(f"{expected}; {self._recorded()}")

    def _recorded(self) -> str:
        lines = [f"{event_name(event)}: {_shown(data)}" for event, data in list(self.events)]
        return f"recorded: {counted(len(lines), 'event')}{listing(lines)}"


def _registry_of(source: object) -> CallbackRegistry:
    if isinstance(source, Session):
        return source.manager.registry
    registry = source.registry if isinstance(source, CallbackManager) else source
    if not isinstance(registry, CallbackRegistry):
        raise TypeError(
            "a Recorder records a CallbackRegistry, a CallbackManager or a Session, "
            f"not {type(source).__name__}"
        )
    return registry


class _Search:
    """Looks for events in a list that grows, at each of them once."""

    def __init__(self, events: list[RecordedEvent], wanted: EventName) -> None:
        self.found: list[RecordedEvent] = []
        self._events = events
        self._wanted = wanted
        self._position = 0

    def has_found(self, count: int) -> bool:
        while len(self.found) < count and self._position < len(self._events):
            event = self._events[self._position]
            self._position += 1
            if matches(self._wanted, event[0]):
                self.found.append(event)
        return len(self.found) == count


def _name(event_type: Any) -> str:
    return event_name(pattern_key(event_type))


def _shown(data: Any) -> str:
    # What an event of a session says stands nowhere in its repr.
    return f"{data!r} {show(data.data)}" if isinstance(data, Event) else show(data)


def _with(data: Any) -> str:
    return "" if data is ANY else f" with {show(data)}"
