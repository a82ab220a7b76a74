"""A value whose changes are told to callbacks, in the order they happen."""

from __future__ import annotations

import threading
from collections.abc import Callable
from enum import Enum
from typing import Any, Final, Generic, Literal, TypeVar

import anyio

from callbackkit.buffer import new_waiter
from callbackkit.dispatch.callables import callable_name, check_callable, give
from callbackkit.dispatch.callbacks import StateChangeCallback
from callbackkit.dispatch.deadline import check_timeout
from callbackkit.dispatch.dispatcher import Dispatcher
from callbackkit.dispatch.event_types import EventName
from callbackkit.dispatch.listeners import Listeners, Plan
from callbackkit.dispatch.ordered import InOrder
from callbackkit.dispatch.outcome import DispatchResult, make_result
from callbackkit.dispatch.registration import Options, Registration
from callbackkit.errors import AsyncCallbackError

__all__ = ["ANY", "ObservableState"]

T = TypeVar("T")
Q = TypeVar("Q")


class _Any(Enum):
    ANY = "any value"

    def __repr__(self) -> str:
        return "ANY"


#: Stands for any value, where :meth:`ObservableState.add_change_callback` takes one.
ANY: Final = _Any.ANY

# The only event of a state; its data is the pair (old, new).
_CHANGE = "state change"


class ObservableState(Generic[T]):
    """Holds a value and tells callbacks ``(old, new)`` whenever it has changed.

    ::

        status = ObservableState("idle")
        status.add_change_callback(log_change)
        status.add_change_callback(hang_up, new="done")
        await status.aset("running")

    A change is a new value that is not equal to the old one; where ``==`` raises or gives no
    truth value, as with arrays, one that is another object. Callbacks run after the change,
    isolated from each other, in order of registration. Everything may be used from any thread
    and, where it is awaited, on asyncio and trio.

    Changes are told in the order they happen, one after another. So a change made from inside a
    callback is told when all callbacks have heard of the one before, and by then :attr:`value`
    may be newer than what a callback is given.

    Args:
        initial: The value to begin with.
        on_error: Called with ``(exception, context)`` for each callback that fails.
    """

    def __init__(self, initial: T, *, on_error: Callable[..., Any] | None = None) -> None:
        self._value = initial
        self._dispatcher = Dispatcher(on_error=on_error)
        self._listeners = Listeners(self._dispatcher)
        self._order = InOrder()
        # Re-entrant because garbage collection may run anybody's __del__ at any time, and that
        # may set a state.
        self._lock = threading.RLock()

    def __repr__(self) -> str:
        return f"<ObservableState {self._value!r}>"

    @property
    def value(self) -> T:
        """The current value."""
        return self._value

    # Listening.

    def add_change_callback(
        self,
        callback: StateChangeCallback[T] | Callable[[T], object] | Callable[[], object],
        old: T | Literal[_Any.ANY] = ANY,
        new: T | Literal[_Any.ANY] = ANY,
        *,
        once: bool = False,
        timeout: float | None = None,
        on_error: Callable[..., Any] | None = None,
    ) -> Registration:
        """Have *callback* called with ``(old, new)`` after each change from now on.

        Args:
            callback: Sync or async; it may take fewer arguments.
            old: Only for changes from this value.
            new: Only for changes to this value.
            once: Only for the first of these changes.
            timeout: Seconds it may take once it suspends.
            on_error: Called with ``(exception, context)`` when it fails.

        Returns:
            A handle that cancels, pauses and resumes; as a context manager it cancels on exit.

        Raises:
            TypeError: A callable isn't one.
            ValueError: *timeout* is out of range.
        """
        check_callable(callback)
        check_timeout(timeout)
        if on_error is not None:
            check_callable(on_error, "on_error")
        when = None if old is ANY and new is ANY else _filter(old, new)
        options = Options(once=once, when=when, timeout=timeout, on_error=on_error)
        given = give(callback, 2)

        def call(pair: tuple[T, T]) -> Any:
            return given(*pair)

        return self._listeners.add(_CHANGE, callback, call, 0, options)

    def remove_change_callback(self, callback: Callable[..., object]) -> bool:
        """Cancel the first registration of *callback*; ``False`` if there is none."""
        return self._listeners.cancel_first(_CHANGE, callback)

    async def wait_for(self, value: T, *, timeout: float | None = None) -> None:
        """Wait until the state has *value*, or has had it since the call.

        Args:
            timeout: Seconds to wait.

        Raises:
            TimeoutError: It did not come to that in time.
        """
        check_timeout(timeout)
        waiter = new_waiter()

        def look(_event: EventName, pair: tuple[T, T]) -> None:
            if _same(pair[1], value):
                waiter.wake()

        # Listen first, then look: whatever happens in between is not missed.
        tap = self._listeners.add_tap(_CHANGE, look)
        try:
            if not _same(self._value, value):
                with anyio.fail_after(timeout):
                    await waiter.wait()
        finally:
            self._listeners.remove_tap(tap)

    # Changing.

    def set(self, new: T) -> DispatchResult:
        """Change the value and call the callbacks.

        Returns:
            What they did. Empty if the value is the same, or if the callbacks are left to
            somebody who calls some at this moment: another thread or task, or whoever called
            the callback that this is called from.

        Raises:
            AsyncCallbackError: A callback is known to be async. Nothing has changed.
            BacklogError: 10 000 changes wait to be told. Nothing has changed.
            DispatchDepthError: Callbacks make the changes that call them, without end. Nothing
                has changed.
        """
        change = _Change(self._dispatcher)
        turn = self._begin(change, new, lambda: self._order.queue(change.tell_sync), is_sync=True)
        if turn is not None:
            turn.take()
        return change.result

    async def aset(self, new: T) -> DispatchResult:
        """Change the value, call the callbacks and await them.

        The value changes at once; the callbacks come after those of earlier changes. When this
        is cancelled, those not called yet never are, and the value stays changed.

        Returns:
            What they did. Empty if the value is the same, or if this is called from inside a
            callback: then the callbacks are left to whoever calls some at this moment.

        Raises:
            BacklogError: As for :meth:`set`.
            DispatchDepthError: As for :meth:`set`.
        """
        change = _Change(self._dispatcher)
        turn = self._begin(change, new, lambda: self._order.aqueue(change.tell), is_sync=False)
        if turn is not None:
            await turn.take()
        return change.result

    def _begin(self, change: _Change, new: T, queue: Callable[[], Q], *, is_sync: bool) -> Q | None:
        """Change the value and queue its callbacks; ``None`` if nothing changed or nobody listens.

        No ``==`` and nothing else of the user's runs under the lock. So what was seen before is
        looked at again under it: the value, and who listens.
        """
        while True:
            old, plan = self._value, self._listeners.plan(_CHANGE)
            if _same(old, new):
                return None
            if is_sync and plan.first_async is not None:
                raise _refusal(plan.first_async.callback)
            with self._lock:
                if self._value is old and self._listeners.plans.get(_CHANGE) is plan:
                    turn = self._commit(old, new, plan, change, queue)
                    break
        for tap in plan.taps:
            tap(_CHANGE, (old, new))
        return turn

    def _commit(
        self, old: T, new: T, plan: Plan, change: _Change, queue: Callable[[], Q]
    ) -> Q | None:
        self._value = new
        if not plan.entries:
            return None
        change.plan, change.pair = plan, (old, new)
        try:
            return queue()
        except BaseException:
            self._value = old
            raise


class _Change:
    """A change on its way to the callbacks that listened when it happened."""

    plan: Plan
    pair: tuple[Any, Any]

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self.result = make_result((), ())

    def tell_sync(self) -> None:
        self.result = self._dispatcher.run_sync(self.plan.sync_entries, self.pair, _CHANGE)

    async def tell(self) -> None:
        self.result = await self._dispatcher.run(self.plan.entries, self.pair, _CHANGE)


# Comparing values.


def _same(one: object, other: object) -> bool:
    """Tell whether values are equal; what can't be compared is the same if it is one object."""
    if one is other:
        return True
    try:
        return bool(one == other)
    except Exception:
        return False


def _filter(old: object, new: object) -> Callable[[tuple[Any, Any]], bool]:
    def accepts(pair: tuple[Any, Any]) -> bool:
        return (old is ANY or _same(pair[0], old)) and (new is ANY or _same(pair[1], new))

    return accepts


def _refusal(callback: object) -> AsyncCallbackError:
    return AsyncCallbackError(
        f"{callable_name(callback)} is asynchronous and set() can't await it; use "
        "'await state.aset(...)'"
    )
