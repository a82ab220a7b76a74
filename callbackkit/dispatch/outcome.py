"""What callbacks did: one outcome each, and the result of a whole dispatch."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, TypeVar, overload

import attrs

from callbackkit.dispatch.callables import callable_name, short_repr
from callbackkit.dispatch.event_types import EventName, event_name, pattern_key

if TYPE_CHECKING:
    from callbackkit.dispatch.registration import Registration

__all__ = ["DispatchResult", "ErrorContext", "Outcome", "OutcomeStatus"]

D = TypeVar("D")

OutcomeStatus = Literal["ok", "error", "timeout", "cancelled", "skipped"]


@attrs.frozen
class Outcome:
    """What one callback did in one dispatch.

    Attributes:
        registration: The registration it was called for; ``None`` where there is none, as in
            :meth:`~callbackkit.Dispatcher.dispatch`.
        status: ``"ok"``, ``"error"`` (it raised), ``"timeout"`` (it was given up on),
            ``"cancelled"`` (by somebody else, not with its dispatch) or ``"skipped"`` (removed,
            paused, used up or not wanted by ``when`` at its turn).
        value: What it returned; ``None`` unless *status* is ``"ok"``.
        error: Why it failed: its own exception, :exc:`~callbackkit.CallbackTimeoutError` or
            :exc:`~callbackkit.CallbackCancelledError`; ``None`` if it did not.
        duration: Seconds it took, its awaited time included; ``None`` unless timing is on.
        callback: The callable itself; ``None`` if it was held weakly and is gone.
    """

    registration: Registration | None
    status: OutcomeStatus
    value: Any = attrs.field(default=None, repr=short_repr)
    error: Exception | None = attrs.field(default=None, repr=short_repr)
    duration: float | None = None
    callback: Any = attrs.field(default=None, kw_only=True, repr=callable_name)

    @property
    def ok(self) -> bool:
        """It did not fail; one that was skipped did not either."""
        return self.error is None


class Entry(Protocol):
    """A callback ready to be called in a dispatch."""

    @property
    def registration(self) -> Registration | None: ...

    @property
    def callback(self) -> Any: ...


class Settled:
    """Stands among the values of a dispatch for a callback that gave none."""

    __slots__ = ("error", "status")

    status: OutcomeStatus
    error: Exception | None


class _Skipped(Settled):
    __slots__ = ()

    def __await__(self) -> Generator[None, None, Self]:
        """Give itself: where an async callback was to be called nobody looks before awaiting."""
        return self
        yield


SKIPPED = _Skipped()
SKIPPED.status = "skipped"
SKIPPED.error = None


class ErrorContext(Settled):
    """Where a callback failed: the second argument of error callbacks.

    ``str()`` of it is one line for a log.

    Attributes:
        status: ``"error"``, ``"timeout"`` or ``"cancelled"``, as in its outcome.
        error: What it failed with.
        data: What the callback was given.
    """

    # One object serves as context and as the value that stands for the failure: a second one
    # would cost as much as three calls (tests/benchmarks, "one of 10 raises").
    __slots__ = ("_entry", "_event", "data")

    _entry: Entry
    _event: Any
    data: Any

    @classmethod
    def of(
        cls, status: OutcomeStatus, error: Exception, entry: Entry, event: Any, data: Any
    ) -> Self:
        """Return the context of a failure.

        Not ``__init__``, as for :class:`DispatchResult`.
        """
        context = cls()
        context.status = status
        context.error = error
        context._entry = entry
        context._event = event
        context.data = data
        return context

    @property
    def event_type(self) -> EventName | None:
        """The event that was triggered, a name or a class.

        For a call without one, the text it was named with, or ``None``.
        """
        if self._event is None or type(self._event) is str:
            return self._event
        return pattern_key(self._event)

    @property
    def callback(self) -> Any:
        """The callback that failed."""
        return self._entry.callback

    @property
    def registration(self) -> Registration | None:
        """Its registration, where there is one."""
        return self._entry.registration

    def __repr__(self) -> str:
        return f"<ErrorContext {self}>"

    def __str__(self) -> str:
        name, event = callable_name(self.callback), self.event_type
        return name if event is None else f"{name} for {event_name(event)}"


class DispatchResult(Sequence[Outcome]):
    """The outcomes of a dispatch, in the order the callbacks stood.

    Outcomes are made when looked at, so a result nobody reads costs next to nothing.
    """

    # Made by make_result(), or written out like it in the loops: calling a class that has an
    # __init__ would be a third of a trigger of one callback (tests/benchmarks, "sync trigger").
    __slots__ = ("_entries", "_values")

    _entries: Sequence[Entry]
    _values: Sequence[Any]

    def __len__(self) -> int:
        return len(self._values)

    @overload
    def __getitem__(self, index: int) -> Outcome: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Outcome]: ...

    def __getitem__(self, index: int | slice) -> Outcome | Sequence[Outcome]:
        if isinstance(index, slice):
            return [self._outcome(i) for i in range(*index.indices(len(self)))]
        return self._outcome(range(len(self))[index])

    def __iter__(self) -> Iterator[Outcome]:
        return map(self._outcome, range(len(self)))

    def __repr__(self) -> str:
        statuses = ", ".join(outcome.status for outcome in self)
        return f"<DispatchResult [{statuses}]>"

    @property
    def ok(self) -> bool:
        """No callback failed. A dispatch that found none to call is fine too."""
        return next(self._failures(), None) is None

    @property
    def errors(self) -> list[Exception]:
        """Why callbacks failed, in order: their exceptions, timeouts and cancellations."""
        return list(self._failures())

    def values(self) -> list[Any]:
        """What the callbacks returned that did not fail and were not skipped, in order."""
        return [value for index, value in enumerate(self._values) if self._settled(index) is None]

    @overload
    def first(self) -> Any: ...

    @overload
    def first(self, default: D) -> Any | D: ...

    def first(self, default: Any = None) -> Any:
        """Return the first value that is not ``None``, else *default*."""
        return next((value for value in self.values() if value is not None), default)

    def raise_for_errors(self) -> None:
        """Raise what went wrong, if anything did.

        Raises:
            ExceptionGroup: All of :attr:`errors`, whether there is one or many.
        """
        if errors := self.errors:
            raise ExceptionGroup(f"{len(errors)} of {len(self)} callbacks failed", errors)

    def _failures(self) -> Iterator[Exception]:
        for index in range(len(self._values)):
            settled = self._settled(index)
            if settled is not None and settled.error is not None:
                yield settled.error

    def _settled(self, index: int) -> Settled | None:
        """Return what stands for a callback that gave no value.

        The class tells, for a value may be anybody's object, with a ``__class__`` that raises;
        and a callback may return the context of somebody else's failure.
        """
        value: object = self._values[index]
        if value is SKIPPED:
            return SKIPPED
        if type(value) is ErrorContext and value._entry is self._entries[index]:
            return value
        return None

    def _duration(self, _index: int) -> float | None:
        return None

    def _outcome(self, index: int) -> Outcome:
        entry, value = self._entries[index], self._values[index]
        duration = self._duration(index)
        registration, callback = entry.registration, entry.callback
        if (settled := self._settled(index)) is not None:
            status: OutcomeStatus = settled.status
            return Outcome(registration, status, None, settled.error, duration, callback=callback)
        return Outcome(registration, "ok", value, None, duration, callback=callback)


class TimedResult(DispatchResult):
    """A result that knows how long each callback took."""

    __slots__ = ("_durations",)

    _durations: Sequence[float]

    def _duration(self, index: int) -> float | None:
        return self._durations[index]


def make_result(
    entries: Sequence[Entry], values: Sequence[Any], durations: Sequence[float] | None = None
) -> DispatchResult:
    """Return the result of a dispatch that called *entries* and got *values*."""
    if durations is None:
        result = DispatchResult()
    else:
        result = timed = TimedResult()
        timed._durations = durations
    result._entries = entries
    result._values = values
    return result
