"""Register callbacks for events and have them called."""

from __future__ import annotations

import logging
from asyncio import CancelledError
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Any, Literal, TypeVar, Unpack, overload

import attrs

from callbackkit.buffer import Overflow
from callbackkit.dispatch.callables import (
    callable_name,
    check_callable,
    give,
    is_async_callable,
    is_awaitable,
    wanted_arguments,
)
from callbackkit.dispatch.callbacks import ErrorCallback
from callbackkit.dispatch.deadline import check_timeout
from callbackkit.dispatch.dispatcher import Dispatcher, Mode
from callbackkit.dispatch.event_types import EventName, pattern_key, trigger_key
from callbackkit.dispatch.failures import log, refusal, refuse_awaitable
from callbackkit.dispatch.listeners import NOBODY, AsyncEntries, Listeners, Plan
from callbackkit.dispatch.nesting import is_detour, is_loop
from callbackkit.dispatch.outcome import DispatchResult, make_result
from callbackkit.dispatch.registering import (
    CallbackOptions,
    OnceOptions,
    check_priority,
    checked_when,
    weak_call,
    weak_method,
)
from callbackkit.dispatch.registration import PLAIN, Options, Registration
from callbackkit.dispatch.serving import Serving
from callbackkit.dispatch.stream import EventStream, first_event
from callbackkit.dispatch.tracing import monitor_callback_performance, trace_callback
from callbackkit.events import EventKey

__all__ = ["CallbackRegistry"]

T = TypeVar("T")
C = TypeVar("C", bound=Callable[..., Any])
E = TypeVar("E", bound=ErrorCallback | Callable[[Exception], object] | Callable[[], object])

logger: logging.Logger = logging.getLogger("callbackkit.dispatch")

_MISSING: Any = object()
_EVENT_TYPES: tuple[type[Any], ...] = (str, EventKey, type)
_EMPTY = make_result((), ())


class CallbackRegistry:
    """Callbacks by event type, called so that none of them can stop another.

    Everything may be used from any thread; ``await`` on asyncio and trio alike. An event type
    is a string, a ``str`` enum, an :class:`~callbackkit.EventKey` or a class; callbacks may also
    be registered for patterns (``*`` stands for one segment between dots, ``**`` at the end for
    any rest) and for base classes.

    Args:
        mode: ``"sequential"`` awaits one callback after another in the caller's task;
            ``"concurrent"`` awaits them at the same time.
        timeout: Seconds a callback may take, unless it was registered with a *timeout*.
        timing: Fill in ``duration`` of outcomes.
        slow_threshold: Seconds a synchronous callback may hold up its caller before a warning
            is logged.
        depth_limit: How deep triggers may stand inside each other before
            :exc:`~callbackkit.DispatchDepthError`.
        trace: Log the beginning and end of every call, see
            :func:`~callbackkit.trace_callback`.
        monitor: Measure every call, see :attr:`Registration.stats
            <callbackkit.Registration.stats>`.

    Raises:
        ValueError: An option is out of range.
    """

    def __init__(
        self,
        *,
        mode: Mode = "sequential",
        timeout: float | None = None,
        timing: bool = False,
        slow_threshold: float | None = None,
        depth_limit: int = 100,
        trace: bool = False,
        monitor: bool = False,
    ) -> None:
        self._dispatcher = Dispatcher(
            mode=mode,
            timeout=timeout,
            timing=timing,
            slow_threshold=slow_threshold,
            depth_limit=depth_limit,
        )
        self._listeners = Listeners(self._dispatcher)
        # The same dictionary for good: triggers look plans up in it without a lock.
        self._running = self._dispatcher.running
        self._depth_limit = depth_limit
        self._plans = self._listeners.plans
        self._serving: Serving[DispatchResult] = Serving()
        self._trace = trace
        self._monitor = monitor
        self._is_observed = trace or monitor

    def __repr__(self) -> str:
        return f"<CallbackRegistry, {len(self._listeners.registrations())} callbacks>"

    # Registering.

    @overload
    def register_callback(
        self,
        event_type: EventKey[T] | type[T],
        callback: Callable[[T], object] | Callable[[], object],
        *,
        with_event: Literal[False] = False,
        when: Callable[[T], object] | None = None,
        **options: Unpack[CallbackOptions],
    ) -> Registration: ...

    @overload
    def register_callback(
        self,
        event_type: EventKey[T],
        callback: Callable[[str, T], object] | Callable[[str], object] | Callable[[], object],
        *,
        with_event: Literal[True],
        when: Callable[[T], object] | None = None,
        **options: Unpack[CallbackOptions],
    ) -> Registration: ...

    @overload
    def register_callback(
        self,
        event_type: type[T],
        callback: Callable[[type[T], T], object]
        | Callable[[type[T]], object]
        | Callable[[], object],
        *,
        with_event: Literal[True],
        when: Callable[[T], object] | None = None,
        **options: Unpack[CallbackOptions],
    ) -> Registration: ...

    @overload
    def register_callback(
        self,
        event_type: str,
        callback: Callable[..., object],
        *,
        with_event: bool = False,
        when: Callable[[Any], object] | None = None,
        **options: Unpack[CallbackOptions],
    ) -> Registration: ...

    def register_callback(
        self,
        event_type: Any,
        callback: Callable[..., object],
        *,
        priority: float = 0,
        once: bool = False,
        when: Callable[[Any], object] | None = None,
        with_event: bool = False,
        weak: bool = False,
        thread: bool = False,
        timeout: float | None = None,
        on_error: Callable[..., Any] | None = None,
    ) -> Registration:
        """Have *callback* called for an event type, from the next trigger on.

        Args:
            event_type: What to listen to: an event type, a pattern or a class.
            callback: Any callable, sync or async. It is called with the event's data, or with
                nothing if it has no parameter without a default. The same callback may be
                registered several times and is then called several times.
            priority: Higher ones are called first; equal ones in order of registration.
            once: Call it a single time. The claim comes before the call, so of two triggers at
                once only one calls it.
            when: Called with the data; the callback is skipped unless it returns a true value.
            with_event: Call it with ``(event_type, data)``.
            weak: Do not keep the object of a bound method alive; it is forgotten with it.
            thread: Run a synchronous callback in a worker thread, with the caller's context.
            timeout: Seconds it may take before it is given up on. What does not suspend can't be
                interrupted, unless it runs in a thread, which is then abandoned.
            on_error: Called with ``(exception, context)`` when it fails.

        Raises:
            TypeError: *event_type* is none, or a callable isn't one.
            ValueError: A pattern is malformed; *weak* with something else than a bound method;
                an option is out of range.
        """
        is_name = type(event_type) is str and event_type and "*" not in event_type
        event = event_type if is_name else pattern_key(event_type)
        if not callable(callback):
            check_callable(callback)
        if priority != 0:
            check_priority(priority)
        # One question for all flags, for the sake of those that register often.
        special = once or with_event or weak or thread or self._is_observed
        if special or not (when is None and timeout is None and on_error is None):
            options = Options(
                once=once,
                when=None if when is None else checked_when(when),
                with_event=with_event,
                weak=weak,
                thread=thread,
                timeout=timeout,
                on_error=on_error,
            )
            return self._register_special(event, callback, priority, options)
        return self._listeners.add(event, callback, give(callback, 1), priority, PLAIN)

    def _register_special(
        self, event: EventName, callback: Callable[..., Any], priority: float, options: Options
    ) -> Registration:
        check_timeout(options.timeout)
        if options.on_error is not None:
            check_callable(options.on_error, "on_error")
        if options.thread and is_async_callable(callback):
            raise ValueError(
                f"thread=True is for synchronous callbacks; {callable_name(callback)} is async"
            )
        given = 2 if options.with_event else 1
        call, target = callback, callback
        born: list[Registration] = []
        if options.weak:
            target = weak_method(callback, lambda _: self._listeners.died(born[0]))
            call = weak_call(target, wanted_arguments(callback, given))
        if self._trace:
            call = trace_callback(call, name=callable_name(callback))
        if self._monitor:
            monitored = monitor_callback_performance(call)
            call, options = monitored, attrs.evolve(options, stats=monitored.stats)
        registration = self._listeners.add(event, target, give(call, given), priority, options)
        born.append(registration)
        return registration

    def unregister_callback(self, event_type: Any, callback: Callable[..., Any]) -> bool:
        """Cancel the first registration of *callback* for exactly this type or pattern.

        Returns:
            Whether there was one.
        """
        return self._listeners.cancel_first(event_type, callback)

    def clear(self) -> None:
        """Cancel all registrations. Error callbacks, mutes and streams stay."""
        self._listeners.clear()

    def add_error_callback(self, callback: E) -> E:
        """Have *callback* called with ``(exception, context)`` whenever a callback fails.

        It may be sync or async, though a synchronous trigger can't await one. What it raises
        itself is logged and given to no error callback. *context* is an
        :class:`~callbackkit.ErrorContext`.

        Returns:
            The callback, so that this is a decorator too.
        """
        self._dispatcher.failures.add_callback(callback)
        return callback

    def remove_error_callback(self, callback: Callable[..., Any]) -> bool:
        """Take the first such error callback away; ``False`` if there is none."""
        return self._dispatcher.failures.remove_callback(callback)

    # Triggering.

    @overload
    async def trigger_callbacks(self, event_type: EventKey[T], data: T) -> DispatchResult: ...

    @overload
    async def trigger_callbacks(self, event_type: EventKey[None]) -> DispatchResult: ...

    @overload
    async def trigger_callbacks(
        self, event_type: str | type[Any], data: Any = None
    ) -> DispatchResult: ...

    @is_loop
    async def trigger_callbacks(self, event_type: Any, data: Any = None) -> DispatchResult:
        """Call the callbacks for an event, await them, and return what each of them did.

        Called is whoever is active now and still active at its turn. That nobody listens is no
        error.

        Raises:
            TypeError: *event_type* is none.
            ValueError: It is a pattern.
            DispatchDepthError: Triggers stand inside each other too deep; only inside a
                callback, whose outcome it becomes.
        """
        try:
            entries = self._plans[event_type].plain
        except (KeyError, TypeError):
            # New, or unhashable: the latter is said in our words below.
            entries = None
        if entries is None:
            return await self._trigger(event_type, data)
        if entries is NOBODY:
            return _EMPTY
        # Here and below: Dispatcher.run without what is not wanted, written out because calling
        # it costs a third of the whole (tests/benchmarks, "awaited trigger", "sync trigger").
        running = self._running
        if len(running) >= self._depth_limit:
            self._dispatcher.check_depth()
        running.append(None)
        values: list[Any] = []
        try:
            if type(entries) is AsyncEntries:
                for entry in entries:
                    # Not a comprehension, which would lose the values before a failure.
                    values.append(await entry.call(data))  # noqa: PERF401
            else:
                for entry in entries:
                    value = entry.call(data)
                    if value is not None and is_awaitable(value):
                        value = await value
                    values.append(value)
        except (Exception, CancelledError) as exc:
            failed: list[BaseException] = [exc]
        else:
            result = DispatchResult()
            result._entries = entries
            result._values = values
            return result
        finally:
            running.pop()
        # Here the callbacks that follow do not see the exception as the one being handled. Its
        # traceback holds this frame, which must hold neither it nor the values, which are going
        # to hold it: only a garbage collection would free all that.
        done, values = [values], []
        return await self._dispatcher.resume(entries, done, failed, event_type, data)

    @overload
    def trigger_callbacks_sync(self, event_type: EventKey[T], data: T) -> DispatchResult: ...

    @overload
    def trigger_callbacks_sync(self, event_type: EventKey[None]) -> DispatchResult: ...

    @overload
    def trigger_callbacks_sync(
        self, event_type: str | type[Any], data: Any = None
    ) -> DispatchResult: ...

    @is_loop
    def trigger_callbacks_sync(self, event_type: Any, data: Any = None) -> DispatchResult:
        """Like :meth:`trigger_callbacks`, for synchronous callbacks only.

        Raises:
            AsyncCallbackError: A callback is known to be async; none has been called then. An
                awaitable that comes back unforeseen is closed and becomes its callback's error.
        """
        try:
            entries = self._plans[event_type].plain_sync
        except (KeyError, TypeError):
            entries = None
        if entries is None:
            return self._trigger_sync(event_type, data)
        if entries is NOBODY:
            return _EMPTY
        running = self._running
        if len(running) >= self._depth_limit:
            self._dispatcher.check_depth()
        running.append(None)
        values: list[Any] = []
        try:
            for entry in entries:
                value = entry.call(data)
                if value is not None:
                    refuse_awaitable(entry.callback, value)
                values.append(value)
        except (Exception, CancelledError) as exc:
            failed: list[BaseException] = [exc]
        else:
            result = DispatchResult()
            result._entries = entries
            result._values = values
            return result
        finally:
            running.pop()
        # Here the callbacks that follow do not see the exception as the one being handled. Its
        # traceback holds this frame, which must hold neither it nor the values, which are going
        # to hold it: only a garbage collection would free all that.
        done, values = [values], []
        return self._dispatcher.resume_sync(entries, done, failed, event_type, data)

    @is_detour
    async def _trigger(self, event_type: Any, data: Any) -> DispatchResult:
        plan = self._listeners.plan(event_type)
        if plan.taps:
            _show(plan, data)
        return await self._dispatcher.run(plan.entries, data, plan.event)

    @is_detour
    def _trigger_sync(self, event_type: Any, data: Any) -> DispatchResult:
        plan = self._listeners.plan(event_type)
        if plan.first_async is not None:
            raise refusal(plan.first_async.callback)
        if plan.taps:
            _show(plan, data)
        return self._dispatcher.run_sync(plan.sync_entries, data, plan.event)

    def serving(self) -> AbstractAsyncContextManager[None]:
        """Let threads trigger events in this event loop: ``async with registry.serving():``.

        The end of the block waits until all triggers handed over are done.

        Raises:
            RuntimeError: On entering: the registry is being served already.
        """
        return self._serving.open()

    @overload
    def trigger_threadsafe(self, event_type: EventKey[T], data: T) -> Future[DispatchResult]: ...

    @overload
    def trigger_threadsafe(self, event_type: EventKey[None]) -> Future[DispatchResult]: ...

    @overload
    def trigger_threadsafe(
        self, event_type: str | type[Any], data: Any = None
    ) -> Future[DispatchResult]: ...

    def trigger_threadsafe(self, event_type: Any, data: Any = None) -> Future[DispatchResult]:
        """Trigger an event from any thread in the loop that is :meth:`serving`.

        Callbacks run with the context variables of the calling thread. Triggers begin in the
        order they are handed over; wait for the future of one to have it done before the next.

        Raises:
            RuntimeError: No loop is serving.
            BacklogError: 10 000 triggers handed over have not finished.
        """
        trigger_key(event_type)
        return self._serving.submit(lambda: self.trigger_callbacks(event_type, data))

    # Looking.

    def listeners(self, event_type: Any = None) -> list[Registration]:
        """Return who would be called for an event type, in order; without one, all there are.

        For a pattern, who is registered for this very pattern.
        """
        if event_type is None:
            return self._listeners.registrations()
        return self._listeners.matching(event_type)

    def has_listeners(self, event_type: Any) -> bool:
        """Tell whether anybody would be called for an event type."""
        return bool(self._listeners.matching(event_type))

    def event_types(self) -> list[EventName]:
        """Return the event types, patterns and classes callbacks are registered for."""
        return self._listeners.event_types()

    @property
    def abandoned_threads(self) -> int:
        """How many callbacks with ``thread=True`` were given up on so far."""
        return self._dispatcher.threads.abandoned

    @property
    def hanging_threads(self) -> int:
        """How many of those have not returned yet; at 40 no more are started."""
        return self._dispatcher.threads.hanging

    # Following.

    @contextmanager
    def muted(self, event_type: Any) -> Generator[None, None, None]:
        """Let an event type, all of a pattern, or a class and its subclasses happen unnoticed.

        Counted: what two blocks mute stays muted until both have ended.
        """
        event = pattern_key(event_type)
        self._listeners.mute(event, 1)
        try:
            yield
        finally:
            self._listeners.mute(event, -1)

    @overload
    def stream(
        self, event_type: EventKey[T], *, max_items: int = ..., overflow: Overflow = ...
    ) -> EventStream[str, T]: ...

    @overload
    def stream(
        self, event_type: str, *, max_items: int = ..., overflow: Overflow = ...
    ) -> EventStream[str, Any]: ...

    @overload
    def stream(
        self, event_type: type[T], *, max_items: int = ..., overflow: Overflow = ...
    ) -> EventStream[type[T], T]: ...

    def stream(
        self, event_type: Any, *, max_items: int = 1024, overflow: Overflow = "drop_oldest"
    ) -> EventStream[Any, Any]:
        """Return an asynchronous iterator over ``(event_type, data)``, from this call on.

        Args:
            event_type: An event type, a pattern or a class.
            max_items: Most events that wait to be read.
            overflow: What happens beyond: ``"drop_oldest"`` (counted in ``stream.dropped``) or
                ``"error"`` (the reader gets :exc:`~callbackkit.StreamLagError`).
        """
        return EventStream(self._listeners, pattern_key(event_type), max_items, overflow)

    @overload
    def wait_for(
        self,
        event_type: EventKey[T],
        *,
        when: Callable[[T], object] | None = None,
        timeout: float | None = None,
    ) -> Coroutine[Any, Any, tuple[str, T]]: ...

    @overload
    def wait_for(
        self,
        event_type: str,
        *,
        when: Callable[[Any], object] | None = None,
        timeout: float | None = None,
    ) -> Coroutine[Any, Any, tuple[str, Any]]: ...

    @overload
    def wait_for(
        self,
        event_type: type[T],
        *,
        when: Callable[[T], object] | None = None,
        timeout: float | None = None,
    ) -> Coroutine[Any, Any, tuple[type[T], T]]: ...

    def wait_for(
        self,
        event_type: Any,
        *,
        when: Callable[[Any], object] | None = None,
        timeout: float | None = None,
    ) -> Coroutine[Any, Any, Any]:
        """Return ``(event_type, data)`` of the first event from this call on; await it.

        Args:
            event_type: An event type, a pattern or a class.
            when: Called with the data where the event is triggered; others are passed over. What
                it raises is raised here.
            timeout: Seconds to wait.

        Raises:
            TimeoutError: No such event came.
        """
        return first_event(self._listeners, pattern_key(event_type), when, timeout)

    def tap(
        self, callback: Callable[[EventName, Any], object], event_type: Any = None
    ) -> Callable[[], None]:
        """Show every event to *callback* before any listener, as ``(event_type, data)``.

        For recorders and the like: a tap is no listener, stands in no result, is called in the
        triggering thread and must be synchronous and quick. What it raises is logged.

        Returns:
            A function that takes the tap away.
        """
        check_callable(callback)
        if is_async_callable(callback):
            raise refusal(callback)
        event = None if event_type is None else pattern_key(event_type)
        number = self._listeners.add_tap(event, callback)
        return lambda: self._listeners.remove_tap(number)

    # Aliases, for those who know them from other libraries.

    @overload
    def on(
        self,
        event_type: EventKey[T] | type[T],
        callback: Callable[[T], object] | Callable[[], object],
        /,
        *,
        with_event: Literal[False] = False,
        when: Callable[[T], object] | None = None,
        **options: Unpack[CallbackOptions],
    ) -> Registration: ...

    @overload
    def on(
        self,
        event_type: EventKey[T] | type[T],
        callback: Callable[[Any, T], object] | Callable[[Any], object] | Callable[[], object],
        /,
        *,
        with_event: Literal[True],
        when: Callable[[T], object] | None = None,
        **options: Unpack[CallbackOptions],
    ) -> Registration: ...

    @overload
    def on(
        self,
        event_type: str,
        callback: Callable[..., object],
        /,
        *,
        with_event: bool = False,
        when: Callable[[Any], object] | None = None,
        **options: Unpack[CallbackOptions],
    ) -> Registration: ...

    @overload
    def on(
        self,
        event_type: EventKey[T] | type[T],
        /,
        *,
        with_event: bool = False,
        when: Callable[[T], object] | None = None,
        **options: Unpack[CallbackOptions],
    ) -> Callable[[C], C]: ...

    @overload
    def on(
        self,
        event_type: str,
        /,
        *,
        with_event: bool = False,
        when: Callable[[Any], object] | None = None,
        **options: Unpack[CallbackOptions],
    ) -> Callable[[C], C]: ...

    def on(
        self, event_type: Any, callback: Callable[..., Any] = _MISSING, /, **options: Any
    ) -> Any:
        """:meth:`register_callback`; without a callback a decorator, which returns it as it is."""
        if callback is not _MISSING:
            return self.register_callback(event_type, callback, **options)
        pattern_key(event_type)

        def register(decorated: C) -> C:
            self.register_callback(event_type, decorated, **options)
            return decorated

        return register

    @overload
    def once(
        self,
        event_type: EventKey[T] | type[T],
        callback: Callable[[T], object] | Callable[[], object],
        /,
        *,
        with_event: Literal[False] = False,
        when: Callable[[T], object] | None = None,
        **options: Unpack[OnceOptions],
    ) -> Registration: ...

    @overload
    def once(
        self,
        event_type: EventKey[T] | type[T],
        callback: Callable[[Any, T], object] | Callable[[Any], object] | Callable[[], object],
        /,
        *,
        with_event: Literal[True],
        when: Callable[[T], object] | None = None,
        **options: Unpack[OnceOptions],
    ) -> Registration: ...

    @overload
    def once(
        self,
        event_type: str,
        callback: Callable[..., object],
        /,
        *,
        with_event: bool = False,
        when: Callable[[Any], object] | None = None,
        **options: Unpack[OnceOptions],
    ) -> Registration: ...

    @overload
    def once(
        self,
        event_type: EventKey[T] | type[T],
        /,
        *,
        with_event: bool = False,
        when: Callable[[T], object] | None = None,
        **options: Unpack[OnceOptions],
    ) -> Callable[[C], C]: ...

    @overload
    def once(
        self,
        event_type: str,
        /,
        *,
        with_event: bool = False,
        when: Callable[[Any], object] | None = None,
        **options: Unpack[OnceOptions],
    ) -> Callable[[C], C]: ...

    def once(
        self, event_type: Any, callback: Callable[..., Any] = _MISSING, /, **options: Any
    ) -> Any:
        """:meth:`on` with ``once=True``."""
        on: Any = self.on
        return on(event_type, callback, once=True, **options)

    def off(self, event_type: Any, callback: Callable[..., Any]) -> bool:
        """:meth:`unregister_callback`."""
        return self.unregister_callback(event_type, callback)

    @overload
    async def emit(self, event: EventKey[T], data: T) -> DispatchResult: ...

    @overload
    async def emit(self, event: object) -> DispatchResult: ...

    @overload
    async def emit(self, event: str | type[Any], data: Any) -> DispatchResult: ...

    async def emit(self, event: Any, data: Any = _MISSING) -> DispatchResult:
        """:meth:`trigger_callbacks`; given only an object, triggers its class and its bases."""
        if data is _MISSING and not isinstance(event, _EVENT_TYPES):
            instance: object = event
            return await self.trigger_callbacks(type(instance), instance)
        return await self.trigger_callbacks(event, None if data is _MISSING else data)


def _show(plan: Plan, data: Any) -> None:
    for tap in plan.taps:
        try:
            tap(plan.event, data)
        except Exception as exc:
            log(logging.ERROR, "tap %s failed", callable_name(tap), error=exc)
