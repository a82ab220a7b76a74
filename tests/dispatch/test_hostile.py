"""Callables as hostile as they come: whatever one of them is or does, the others are called."""

import asyncio
import concurrent.futures
import functools
import gc
import inspect
import logging
import sys
import threading
import types
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any
from unittest import mock

import anyio
import attrs
import pytest

from callbackkit import (
    AsyncCallbackError,
    CallbackCancelledError,
    CallbackRegistry,
    CallbackTimeoutError,
    DispatchDepthError,
    Dispatcher,
    DispatchResult,
    Outcome,
    safe_callback_execution,
    safe_callback_execution_sync,
)

EVENT = "call.ended"


# Objects that fail at whatever is asked of them.


def refuse(*_args: object, **_kwargs: object) -> Any:
    raise RuntimeError("not to be asked")


class Plain:
    """A callable object: no ``__name__``, no ``__qualname__``."""

    def __init__(self, act: Callable[[], Any]) -> None:
        object.__setattr__(self, "act", act)

    def __call__(self, *_args: object) -> Any:
        return object.__getattribute__(self, "act")()


def with_hostile(*names: str) -> Callable[[Callable[[], Any]], Plain]:
    """Return a maker of callable objects whose special methods *names* raise."""
    return type("Hostile", (Plain,), dict.fromkeys(names, refuse))


class HostileClass(Plain):
    @property
    def __class__(self) -> Any:
        raise RuntimeError("not to be asked")


class HostileName(Plain):
    """Its name is text that cannot be written."""

    class Text(str):
        __slots__ = ()
        __str__ = __repr__ = __format__ = refuse

    __module__ = None  # so it stands alone
    __qualname__ = Text("unwritable")


class HostileSignature(Plain):
    @property
    def __signature__(self) -> Any:
        raise RuntimeError("not to be asked")


class HostileMetaclass(type):
    """Its classes can be neither compared nor hashed."""

    __eq__ = __hash__ = refuse


class OfHostileMetaclass(Plain, metaclass=HostileMetaclass):
    pass


class AsyncCallable:
    def __init__(self, act: Callable[[], Any]) -> None:
        self.act = act

    async def __call__(self, _data: object) -> Any:
        await anyio.lowlevel.checkpoint()
        return self.act()


class Awaitable:
    """Can be awaited without being a coroutine."""

    def __init__(self, act: Callable[[], Any]) -> None:
        self.act = act

    def __await__(self) -> Iterator[Any]:
        yield from anyio.lowlevel.checkpoint().__await__()
        return self.act()


def function(act: Callable[[], Any]) -> Callable[[object], Any]:
    return lambda _data: act()


def async_function(act: Callable[[], Any]) -> Callable[[object], Any]:
    async def callback(_data: object) -> Any:
        await anyio.lowlevel.checkpoint()
        return act()

    return callback


def early_async_function(act: Callable[[], Any]) -> Callable[[object], Any]:
    async def callback(_data: object) -> Any:
        return act()

    return callback


def coroutine_lambda(act: Callable[[], Any]) -> Callable[[object], Any]:
    return lambda data: async_function(act)(data)


def partial(act: Callable[[], Any]) -> Callable[[object], Any]:
    return functools.partial(lambda _mode, _data: act(), "mode")


def nested_partial(act: Callable[[], Any]) -> Callable[[object], Any]:
    return functools.partial(functools.partial(Plain(act)))


def async_partial(act: Callable[[], Any]) -> Callable[[object], Any]:
    return functools.partial(async_function(act))


def async_object_partial(act: Callable[[], Any]) -> Callable[[object], Any]:
    return functools.partial(AsyncCallable(act))


def bound_method(act: Callable[[], Any]) -> Callable[[object], Any]:
    return Plain(act).__call__


def method_of_object(act: Callable[[], Any]) -> Callable[[object], Any]:
    """A bound method whose function is an object that can't be hashed."""

    class Unhashable:
        __hash__ = None

        def __call__(self, _owner: object, _data: object) -> Any:
            return act()

    return types.MethodType(Unhashable(), object())


def wrapped(act: Callable[[], Any]) -> Callable[..., Any]:
    """A synchronous wrapper around an asynchronous function."""
    inner = async_function(act)

    @functools.wraps(inner)
    def wrapper(*args: Any) -> Any:
        return inner(*args)

    return wrapper


def cached(act: Callable[[], Any]) -> Callable[[object], Any]:
    return functools.lru_cache(async_function(act))


def cached_sync(act: Callable[[], Any]) -> Callable[[object], Any]:
    return functools.lru_cache(function(act))


def static(act: Callable[[], Any]) -> Callable[[object], Any]:
    return staticmethod(function(act))


def mocked(act: Callable[[], Any]) -> Callable[[object], Any]:
    return mock.MagicMock(side_effect=Plain(act))


def async_mocked(act: Callable[[], Any]) -> Callable[[object], Any]:
    return mock.AsyncMock(side_effect=Plain(act))


def generator_coroutine(act: Callable[[], Any]) -> Callable[[object], Any]:
    @types.coroutine
    def callback(_data: object) -> Iterator[Any]:
        yield from anyio.lowlevel.checkpoint().__await__()
        return act()

    return callback


def class_with_async_call(act: Callable[[], Any]) -> Any:
    """Calling the class gives a coroutine."""

    class Meta(type):
        async def __call__(cls, _data: object) -> Any:
            await anyio.lowlevel.checkpoint()
            return act()

    return Meta("Called", (), {})


def dispatching(act: Callable[[], Any]) -> Callable[[object], Any]:
    return functools.singledispatch(function(act))


def partial_method(act: Callable[[], Any]) -> Callable[[object], Any]:
    class Owner:
        def act(self, _mode: str, _data: object) -> Any:
            return act()

        with_mode = functools.partialmethod(act, "mode")

    return Owner().with_mode


def awaitable_lambda(act: Callable[[], Any]) -> Callable[[object], Any]:
    return lambda _data: Awaitable(act)


SYNC_KINDS: dict[str, Callable[[Callable[[], Any]], Any]] = {
    "function": function,
    "partial": partial,
    "partial of a partial of an object": nested_partial,
    "object": Plain,
    "bound method": bound_method,
    "method of an unhashable object": method_of_object,
    "lru_cache": cached_sync,
    "staticmethod": static,
    "singledispatch": dispatching,
    "partialmethod": partial_method,
    "mock": mocked,
    "raising __repr__": with_hostile("__repr__"),
    "raising __str__": with_hostile("__str__", "__format__"),
    "raising __getattr__": with_hostile("__getattr__"),
    "raising __getattribute__": with_hostile("__getattribute__"),
    "raising __bool__": with_hostile("__bool__"),
    "raising __len__": with_hostile("__len__"),
    "raising __eq__": with_hostile("__eq__"),
    "raising __hash__": with_hostile("__hash__"),
    "raising everything": with_hostile(
        "__repr__", "__str__", "__getattr__", "__bool__", "__eq__", "__hash__"
    ),
    "raising __class__": HostileClass,
    "raising name": HostileName,
    "raising __signature__": HostileSignature,
    "raising metaclass": OfHostileMetaclass,
}

# What inspect can tell: a synchronous trigger refuses these before it calls anybody.
KNOWN_ASYNC_KINDS: dict[str, Callable[[Callable[[], Any]], Any]] = {
    "async function": async_function,
    "async function that does not suspend": early_async_function,
    "async object": AsyncCallable,
    "partial of an async function": async_partial,
    "partial of an async object": async_object_partial,
    "async mock": async_mocked,
}

# What only the call shows.
UNKNOWN_ASYNC_KINDS: dict[str, Callable[[Callable[[], Any]], Any]] = {
    "lambda that returns a coroutine": coroutine_lambda,
    "sync wrapper around async": wrapped,
    "lru_cache around async": cached,
    "lambda that returns an awaitable": awaitable_lambda,
    "types.coroutine": generator_coroutine,
    "class with an async metaclass": class_with_async_call,
}

ASYNC_KINDS = KNOWN_ASYNC_KINDS | UNKNOWN_ASYNC_KINDS
ALL_KINDS = SYNC_KINDS | ASYNC_KINDS


# Ways to run callbacks.


@attrs.frozen
class Way:
    """How callbacks are run, and how often: a registry knows a shortcut from the second time on."""

    run: Callable[[list[Callable[..., Any]]], Any]
    times: int = 1

    async def __call__(self, callbacks: list[Callable[..., Any]]) -> DispatchResult:
        result: DispatchResult = await self.run(callbacks)
        return result


def registry_way(
    is_sync: bool = False, thread: bool = False, times: int = 1, **options: Any
) -> Way:
    async def run(callbacks: list[Callable[..., Any]]) -> DispatchResult:
        registry = CallbackRegistry(**options)
        for callback in callbacks:
            registry.register_callback(EVENT, callback, thread=thread)
        for number in range(times):
            if is_sync:
                result = registry.trigger_callbacks_sync(EVENT, number)
            else:
                result = await registry.trigger_callbacks(EVENT, number)
        return result

    return Way(run, times)


async def dispatcher_way(callbacks: list[Callable[..., Any]]) -> DispatchResult:
    return await Dispatcher().dispatch(callbacks, "data")


async def concurrent_dispatcher_way(callbacks: list[Callable[..., Any]]) -> DispatchResult:
    return await Dispatcher(mode="concurrent").dispatch(callbacks, "data")


async def sync_dispatcher_way(callbacks: list[Callable[..., Any]]) -> DispatchResult:
    return Dispatcher().dispatch_sync(callbacks, "data")


AWAITED: dict[str, Way] = {
    "sequential": registry_way(),
    "sequential again": registry_way(times=3),
    "concurrent": registry_way(mode="concurrent"),
    "concurrent again": registry_way(mode="concurrent", times=3),
    "timed": registry_way(timing=True, slow_threshold=60),
    "timed concurrent": registry_way(mode="concurrent", timing=True, slow_threshold=60),
    "timeout": registry_way(timeout=60),
    "timeout again": registry_way(timeout=60, times=3),
    "timed timeout": registry_way(timing=True, timeout=60),
    "concurrent timeout": registry_way(mode="concurrent", timeout=60),
    "observed": registry_way(trace=True, monitor=True),
    "dispatcher": Way(dispatcher_way),
    "concurrent dispatcher": Way(concurrent_dispatcher_way),
}
SYNC: dict[str, Way] = {
    "sync": registry_way(is_sync=True),
    "sync again": registry_way(is_sync=True, times=3),
    "sync timed": registry_way(is_sync=True, timing=True, slow_threshold=60),
    "sync timeout": registry_way(is_sync=True, timeout=60, times=2),
    "sync observed": registry_way(is_sync=True, trace=True, monitor=True),
    "sync dispatcher": Way(sync_dispatcher_way),
}
THREADED: dict[str, Way] = {
    "threads": registry_way(thread=True, times=2),
    "threads timeout": registry_way(thread=True, timeout=60),
    "threads sync": registry_way(thread=True, is_sync=True, times=2),
}


# What is expected of all of them.


@pytest.fixture
def records() -> Iterator[list[logging.LogRecord]]:
    """The errors that are logged, kept from pytest, which would format each traceback twice."""
    kept: list[logging.LogRecord] = []

    def keep(record: logging.LogRecord) -> bool:
        assert isinstance(record.getMessage(), str)
        if record.levelno >= logging.ERROR:
            kept.append(record)
        return False

    logger = logging.getLogger("callbackkit.dispatch")
    logger.addFilter(keep)
    yield kept
    logger.removeFilter(keep)


@attrs.define
class Neighbours:
    """Two harmless callbacks and who stands between them."""

    records: list[logging.LogRecord]

    async def around(self, way: Way, callback: Callable[..., Any]) -> Outcome:
        """Run *callback* between two others, see that those ran, and return its outcome."""
        self.records.clear()
        called: list[str] = []

        def neighbour(name: str) -> Callable[[], str]:
            def act() -> str:
                called.append(name)
                # What another callback raised is none of its business.
                assert sys.exception() is None
                return name

            return act

        result = await way([neighbour("before"), callback, neighbour("after")])
        assert called == ["before", "after"] * way.times
        assert [len(result), result[0].value, result[2].value] == [3, "before", "after"]
        outcome: Outcome = result[1]
        failures = [] if outcome.error is None else [outcome.error]
        assert [id(error) for error in result.errors] == [id(error) for error in failures]
        assert result.ok is (not failures)
        assert self.logged() == len(failures) * way.times
        return outcome

    async def everywhere(
        self, ways: dict[str, Way], make: Callable[[], Callable[..., Any]]
    ) -> list[tuple[str, Outcome]]:
        """Do so in each of *ways*, with a new callback each time."""
        outcomes = []
        for name, way in ways.items():
            try:
                outcomes.append((name, await self.around(way, make())))
            except BaseException as exc:
                exc.add_note(f"in the way called {name!r}")
                raise
        return outcomes

    def logged(self) -> int:
        """Return how many failures were logged, each with its traceback."""
        for record in self.records:
            assert isinstance(record.exc_info, tuple)
            _, error, traceback = record.exc_info
            # A CallbackCancelledError was never raised; its cause was.
            assert traceback or (error and error.__cause__ and error.__cause__.__traceback__)
        return len(self.records)


@pytest.fixture
def neighbours(records: list[logging.LogRecord]) -> Neighbours:
    return Neighbours(records)


def statuses(outcomes: list[tuple[str, Outcome]]) -> dict[str, str]:
    return {name: outcome.status for name, outcome in outcomes}


def always(status: str, ways: dict[str, Way]) -> dict[str, str]:
    return dict.fromkeys(ways, status)


def fail() -> None:
    raise ValueError("broken")


def succeed() -> int:
    return 42


@pytest.mark.parametrize("kind", ALL_KINDS)
async def test_any_kind_of_callable_can_be_awaited(kind: str, neighbours: Neighbours):
    outcomes = await neighbours.everywhere(AWAITED, lambda: ALL_KINDS[kind](succeed))
    assert statuses(outcomes) == always("ok", AWAITED)
    assert {outcome.value for _, outcome in outcomes} == {42}


@pytest.mark.parametrize("kind", ALL_KINDS)
async def test_any_kind_of_callable_may_fail_when_awaited(kind: str, neighbours: Neighbours):
    outcomes = await neighbours.everywhere(AWAITED, lambda: ALL_KINDS[kind](fail))
    assert statuses(outcomes) == always("error", AWAITED)
    assert {type(outcome.error) for _, outcome in outcomes} == {ValueError}
    assert {outcome.value for _, outcome in outcomes} == {None}


@pytest.mark.parametrize("kind", SYNC_KINDS)
async def test_any_kind_of_sync_callable_can_run_synchronously(kind: str, neighbours: Neighbours):
    outcomes = await neighbours.everywhere(SYNC, lambda: SYNC_KINDS[kind](succeed))
    assert statuses(outcomes) == always("ok", SYNC)
    assert {outcome.value for _, outcome in outcomes} == {42}


@pytest.mark.parametrize("kind", SYNC_KINDS)
async def test_any_kind_of_sync_callable_may_fail_synchronously(kind: str, neighbours: Neighbours):
    outcomes = await neighbours.everywhere(SYNC, lambda: SYNC_KINDS[kind](fail))
    assert statuses(outcomes) == always("error", SYNC)
    assert {type(outcome.error) for _, outcome in outcomes} == {ValueError}


@pytest.mark.parametrize("way", SYNC)
@pytest.mark.parametrize("kind", KNOWN_ASYNC_KINDS)
async def test_a_sync_run_refuses_a_known_async_callable_before_anybody_is_called(
    kind: str, way: str
):
    called: list[int] = []
    callback = KNOWN_ASYNC_KINDS[kind](succeed)
    with pytest.raises(AsyncCallbackError, match="asynchronous"):
        await SYNC[way]([lambda: called.append(1), callback, lambda: called.append(2)])
    assert called == []


@pytest.mark.parametrize("kind", UNKNOWN_ASYNC_KINDS)
async def test_a_sync_run_closes_an_unforeseen_awaitable(kind: str, neighbours: Neighbours):
    """The coroutine is not left to complain that it was never awaited."""
    outcomes = await neighbours.everywhere(SYNC, lambda: UNKNOWN_ASYNC_KINDS[kind](succeed))
    assert statuses(outcomes) == always("error", SYNC)
    assert {type(outcome.error) for _, outcome in outcomes} == {AsyncCallbackError}


@pytest.mark.parametrize("kind", SYNC_KINDS | UNKNOWN_ASYNC_KINDS)
async def test_any_kind_of_callable_may_run_in_a_thread(kind: str, neighbours: Neighbours):
    expected = always("ok", THREADED)
    if kind in UNKNOWN_ASYNC_KINDS:
        expected["threads sync"] = "error"
    outcomes = await neighbours.everywhere(THREADED, lambda: ALL_KINDS[kind](succeed))
    assert statuses(outcomes) == expected


@pytest.mark.parametrize("kind", SYNC_KINDS | UNKNOWN_ASYNC_KINDS)
async def test_any_kind_of_callable_may_fail_in_a_thread(kind: str, neighbours: Neighbours):
    outcomes = await neighbours.everywhere(THREADED, lambda: ALL_KINDS[kind](fail))
    assert statuses(outcomes) == always("error", THREADED)


@pytest.mark.parametrize("kind", ALL_KINDS)
async def test_any_kind_of_callable_can_be_registered_listed_and_removed(kind: str):
    registry = CallbackRegistry()
    callback = ALL_KINDS[kind](fail)
    registration = registry.register_callback(EVENT, callback)
    assert registry.listeners(EVENT) == [registration]
    assert isinstance(repr(registration), str)
    assert registration.callback is callback
    assert registry.unregister_callback(EVENT, callback) is True
    assert registry.unregister_callback(EVENT, callback) is False
    assert registry.event_types() == []


@pytest.mark.parametrize("kind", ALL_KINDS)
async def test_any_kind_of_callable_may_be_an_error_callback(kind: str, neighbours: Neighbours):
    """It is called with the failure; its own failure goes no further than the log."""
    seen: list[int] = []

    def act() -> None:
        seen.append(1)
        raise LookupError("the error callback fails too")

    registry = CallbackRegistry()
    # Some of these take one argument only.
    registry.add_error_callback(ALL_KINDS[kind](act))
    registry.register_callback(EVENT, fail, on_error=ALL_KINDS[kind](act))
    registry.register_callback(EVENT, succeed)
    result = await registry.trigger_callbacks(EVENT)
    assert [outcome.status for outcome in result] == ["error", "ok"]
    assert len(seen) == 2
    assert neighbours.logged() == 3


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_a_failure_of_any_kind_of_callable_can_be_written_to_a_log(
    kind: str, caplog: pytest.LogCaptureFixture
):
    anyio.run(AWAITED["sequential"], [ALL_KINDS[kind](fail)])
    assert "ValueError: broken" in caplog.text


# What they raise.


class SilentError(Exception):
    """Can't be shown."""

    __str__ = __repr__ = refuse


class FalseError(Exception):
    """Is false, as an exception with a length of 0 would be."""

    def __bool__(self) -> bool:
        return False


class IncomparableError(Exception):
    """Can be neither compared nor hashed."""

    __eq__ = __hash__ = refuse


EXCEPTIONS: dict[str, Callable[[], Exception]] = {
    "StopIteration": lambda: StopIteration(1),
    "StopAsyncIteration": StopAsyncIteration,
    "InvalidStateError": asyncio.InvalidStateError,
    "TimeoutError": TimeoutError,
    "CallbackTimeoutError": CallbackTimeoutError,
    "CallbackCancelledError": CallbackCancelledError,
    "AsyncCallbackError": AsyncCallbackError,
    "RecursionError": RecursionError,
    "DispatchDepthError": DispatchDepthError,
    "MemoryError": MemoryError,
    "AssertionError": AssertionError,
    "ExceptionGroup": lambda: ExceptionGroup("several", [ValueError(), TypeError()]),
    "unshowable": SilentError,
    "false": FalseError,
    "incomparable": IncomparableError,
    "WouldBlock": anyio.WouldBlock,
    "ClosedResourceError": anyio.ClosedResourceError,
}


def raising(make: Callable[[], BaseException]) -> Callable[[], Any]:
    def act() -> None:
        raise make()

    return act


@pytest.mark.parametrize("name", EXCEPTIONS)
@pytest.mark.parametrize("kind", ["function", "async function", "lambda that returns a coroutine"])
async def test_any_exception_stays_with_its_callback(name: str, kind: str, neighbours: Neighbours):
    make = EXCEPTIONS[name]
    outcomes = await neighbours.everywhere(AWAITED, lambda: ALL_KINDS[kind](raising(make)))
    assert statuses(outcomes) == always("error", AWAITED)
    # A coroutine can't raise StopIteration: Python makes that a RuntimeError (PEP 479).
    is_replaced = kind != "function" and name == "StopIteration"
    expected = RuntimeError if is_replaced else type(make())
    assert {type(outcome.error) for _, outcome in outcomes} == {expected}


@pytest.mark.parametrize("name", EXCEPTIONS)
async def test_any_exception_stays_with_its_callback_in_a_sync_run(
    name: str, neighbours: Neighbours
):
    make = EXCEPTIONS[name]
    outcomes = await neighbours.everywhere(SYNC, lambda: function(raising(make)))
    assert statuses(outcomes) == always("error", SYNC)
    assert {type(outcome.error) for _, outcome in outcomes} == {type(make())}


@pytest.mark.parametrize("name", EXCEPTIONS)
async def test_any_exception_stays_with_its_callback_in_a_thread(name: str, neighbours: Neighbours):
    outcomes = await neighbours.everywhere(THREADED, lambda: function(raising(EXCEPTIONS[name])))
    assert statuses(outcomes) == always("error", THREADED)


@pytest.mark.parametrize("name", EXCEPTIONS)
async def test_any_exception_can_be_raised_as_part_of_a_group(name: str):
    registry = CallbackRegistry()
    registry.register_callback(EVENT, raising(EXCEPTIONS[name]))
    result = await registry.trigger_callbacks(EVENT)
    with pytest.raises(ExceptionGroup) as info:
        result.raise_for_errors()
    assert info.value.exceptions[0] is result[0].error


# A cancellation nobody sent to the dispatch.


@pytest.mark.parametrize("kind", ALL_KINDS)
async def test_a_foreign_cancellation_is_an_outcome(kind: str, neighbours: Neighbours):
    outcomes = await neighbours.everywhere(
        AWAITED, lambda: ALL_KINDS[kind](raising(asyncio.CancelledError))
    )
    assert statuses(outcomes) == always("cancelled", AWAITED)
    for _, outcome in outcomes:
        assert type(outcome.error) is CallbackCancelledError
        assert isinstance(outcome.error.__cause__, asyncio.CancelledError)


@pytest.mark.parametrize("kind", SYNC_KINDS)
async def test_a_foreign_cancellation_is_an_outcome_of_a_sync_run(
    kind: str, neighbours: Neighbours
):
    outcomes = await neighbours.everywhere(
        SYNC, lambda: SYNC_KINDS[kind](raising(asyncio.CancelledError))
    )
    assert statuses(outcomes) == always("cancelled", SYNC)


async def test_a_foreign_cancellation_is_an_outcome_of_a_thread(neighbours: Neighbours):
    outcomes = await neighbours.everywhere(
        THREADED, lambda: function(raising(asyncio.CancelledError))
    )
    assert statuses(outcomes) == always("cancelled", THREADED)


def test_a_foreign_cancellation_is_an_outcome_where_no_loop_runs():
    registry = CallbackRegistry()
    registry.register_callback(EVENT, raising(asyncio.CancelledError))
    registry.register_callback(EVENT, succeed)
    result = registry.trigger_callbacks_sync(EVENT)
    assert [outcome.status for outcome in result] == ["cancelled", "ok"]


def test_a_foreign_cancellation_is_an_outcome_in_a_loop_without_a_task():
    registry = CallbackRegistry()
    registry.register_callback(EVENT, raising(asyncio.CancelledError))
    registry.register_callback(EVENT, succeed)

    async def main() -> DispatchResult:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[DispatchResult] = loop.create_future()
        loop.call_soon(lambda: done.set_result(registry.trigger_callbacks_sync(EVENT)))
        return await done

    result = asyncio.run(main())
    assert [outcome.status for outcome in result] == ["cancelled", "ok"]


def cancelled_task() -> asyncio.Future[None]:
    task = asyncio.ensure_future(asyncio.sleep(60))
    task.cancel()
    return task


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_awaiting_a_task_that_somebody_cancelled_is_an_outcome(neighbours: Neighbours):
    async def follow() -> None:
        await cancelled_task()

    outcomes = await neighbours.everywhere(AWAITED, lambda: follow)
    assert statuses(outcomes) == always("cancelled", AWAITED)


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_returning_a_task_that_somebody_cancelled_is_an_outcome(neighbours: Neighbours):
    outcomes = await neighbours.everywhere(AWAITED, lambda: cancelled_task)
    assert statuses(outcomes) == always("cancelled", AWAITED)


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_a_callback_that_cancels_its_own_concurrent_task_is_an_outcome(
    neighbours: Neighbours,
):
    """In concurrent mode that task is not the one that triggered."""

    async def cancel_myself() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(60)

    outcome = await neighbours.around(AWAITED["concurrent"], cancel_myself)
    assert outcome.status == "cancelled"


@pytest.mark.parametrize("mode", ["sequential", "concurrent"])
async def test_a_foreign_cancellation_goes_to_the_error_callbacks(mode: Any):
    failures: list[Exception] = []
    registry = CallbackRegistry(mode=mode)
    registry.add_error_callback(failures.append)
    registry.register_callback(EVENT, async_function(raising(asyncio.CancelledError)))
    registry.register_callback(EVENT, async_function(succeed))
    await registry.trigger_callbacks(EVENT)
    assert [type(failure) for failure in failures] == [CallbackCancelledError]


async def test_an_error_callback_may_raise_a_foreign_cancellation(neighbours: Neighbours):
    registry = CallbackRegistry()
    registry.add_error_callback(raising(asyncio.CancelledError))
    registry.add_error_callback(async_function(raising(asyncio.CancelledError)))
    registry.register_callback(EVENT, fail)
    registry.register_callback(EVENT, succeed)
    result = await registry.trigger_callbacks(EVENT)
    assert [outcome.status for outcome in result] == ["error", "ok"]
    assert neighbours.logged() == 3


# What is no Exception goes through, at once and as it is.


class Halt(BaseException):
    """Somebody's own."""


PASSING: list[type[BaseException]] = [KeyboardInterrupt, SystemExit, GeneratorExit, Halt]


async def passes(
    way: Way, callbacks: Callable[[Callable[[], Any]], list[Callable[..., Any]]]
) -> None:
    for exception in PASSING:
        with pytest.raises(exception):
            await way(callbacks(raising(exception)))


@pytest.mark.parametrize("way", AWAITED | SYNC)
async def test_what_is_no_exception_passes_through_at_once(way: str):
    called: list[int] = []
    await passes((AWAITED | SYNC)[way], lambda act: [act, lambda: called.append(1)])
    assert called == []


@pytest.mark.parametrize("way", ["sequential", "sequential again", "timed", "observed"])
async def test_what_is_no_exception_passes_out_of_a_coroutine(way: str):
    called: list[int] = []
    await passes(AWAITED[way], lambda act: [early_async_function(act), lambda: called.append(1)])
    assert called == []


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("way", AWAITED)
@pytest.mark.parametrize("exception", [KeyboardInterrupt, Halt])
def test_what_is_no_exception_passes_out_of_a_coroutine_through_the_loop(
    exception: type[BaseException], way: str, backend: str
):
    callbacks = [async_function(raising(exception)), early_async_function(raising(exception))]
    with pytest.raises(exception):
        anyio.run(AWAITED[way], callbacks, backend=backend)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("exception", [KeyboardInterrupt, SystemExit, Halt])
def test_what_is_no_exception_ends_callbacks_that_run_at_the_same_time(
    exception: type[BaseException], backend: str
):
    ended: list[str] = []

    async def wait() -> None:
        try:
            await anyio.sleep(60)
        finally:
            ended.append("waiting")

    with pytest.raises(exception):
        anyio.run(
            AWAITED["concurrent"], [wait, async_function(raising(exception))], backend=backend
        )
    assert ended == ["waiting"]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("first", [0, 1, 2])
def test_an_interrupt_leaves_no_coroutine_behind(first: int, backend: str):
    """Those that were not begun are closed; none says that it was never awaited."""
    callbacks: list[Callable[..., Any]] = [async_function(succeed), async_function(succeed)]
    callbacks.insert(first, early_async_function(raising(KeyboardInterrupt)))
    with pytest.raises(KeyboardInterrupt):
        anyio.run(AWAITED["concurrent"], callbacks, backend=backend)
    gc.collect()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("way", ["concurrent", "concurrent timeout", "timed concurrent"])
def test_an_interrupt_by_a_later_sync_callback_closes_what_was_not_begun(way: str, backend: str):
    callbacks = [async_function(succeed), coroutine_lambda(succeed), raising(KeyboardInterrupt)]
    with pytest.raises(KeyboardInterrupt):
        anyio.run(AWAITED[way], callbacks, backend=backend)
    gc.collect()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("exception", [KeyboardInterrupt, SystemExit])
def test_what_is_no_exception_passes_from_a_thread(exception: type[BaseException], backend: str):
    with pytest.raises(exception):
        anyio.run(THREADED["threads"], [raising(exception), succeed], backend=backend)
    with pytest.raises(exception):
        anyio.run(THREADED["threads sync"], [raising(exception), succeed], backend=backend)


@pytest.mark.parametrize("exception", [KeyboardInterrupt, SystemExit])
def test_what_is_no_exception_passes_from_an_error_callback(exception: type[BaseException]):
    registry = CallbackRegistry()
    registry.add_error_callback(raising(exception))
    registry.register_callback(EVENT, fail)
    with pytest.raises(exception):
        registry.trigger_callbacks_sync(EVENT)
    with pytest.raises(exception):
        anyio.run(registry.trigger_callbacks, EVENT)


@pytest.mark.parametrize("exception", [KeyboardInterrupt, SystemExit])
def test_what_is_no_exception_passes_from_a_single_call(exception: type[BaseException]):
    with pytest.raises(exception):
        safe_callback_execution_sync(raising(exception))
    with pytest.raises(exception):
        anyio.run(safe_callback_execution, raising(exception))


# What they return.


class UnhashableKind(type):
    def __eq__(cls, _other: object) -> bool:
        return False

    __hash__ = None


class OfUnhashableKind(metaclass=UnhashableKind):
    pass


async def agen() -> AsyncIterator[int]:
    yield 1


VALUES: dict[str, Callable[[], Any]] = {
    "raising __class__": lambda: HostileClass(succeed),
    "raising __eq__": lambda: with_hostile("__eq__", "__hash__", "__bool__")(succeed),
    "raising __getattr__": lambda: with_hostile("__getattr__")(succeed),
    "raising __getattribute__": lambda: with_hostile("__getattribute__")(succeed),
    "of an unhashable class": OfUnhashableKind,
    "of a hostile class": lambda: OfHostileMetaclass(succeed),
    "generator": lambda: (number for number in range(3)),
    "async generator": agen,
    "future of a thread": concurrent.futures.Future,
    "exception": lambda: ValueError("returned, not raised"),
    "class": lambda: HostileName,
    "NotImplemented": lambda: NotImplemented,
    "mock": mock.MagicMock,
}


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("kind", ["function", "async function"])
async def test_whatever_a_callback_returns_is_its_value(
    name: str, kind: str, neighbours: Neighbours
):
    value = VALUES[name]()
    outcomes = await neighbours.everywhere(AWAITED, lambda: ALL_KINDS[kind](lambda: value))
    assert statuses(outcomes) == always("ok", AWAITED)
    assert {id(outcome.value) for _, outcome in outcomes} == {id(value)}


@pytest.mark.parametrize("name", VALUES)
async def test_whatever_a_callback_returns_in_a_sync_run_is_its_value(
    name: str, neighbours: Neighbours
):
    value = VALUES[name]()
    outcomes = await neighbours.everywhere(SYNC, lambda: lambda: value)
    assert statuses(outcomes) == always("ok", SYNC)
    assert {id(outcome.value) for _, outcome in outcomes} == {id(value)}


async def test_a_cached_coroutine_fails_from_its_second_run_on(neighbours: Neighbours):
    """``lru_cache`` gives the same coroutine again, and that can be awaited only once."""
    callback = cached(succeed)
    assert (await neighbours.around(AWAITED["dispatcher"], callback)).status == "ok"
    outcome = await neighbours.around(AWAITED["dispatcher"], callback)
    assert outcome.status == "error"
    assert isinstance(outcome.error, RuntimeError)


@pytest.mark.parametrize("way", AWAITED)
async def test_a_coroutine_returned_by_two_callbacks_fails_for_one_of_them(way: str):
    """For the second; on trio tasks that start at once start in any order."""
    coroutines: dict[object, Any] = {}

    def give(data: object) -> Any:
        if data not in coroutines:
            coroutines[data] = async_function(succeed)(data)
        return coroutines[data]

    result = await AWAITED[way]([give, give, succeed])
    assert sorted(outcome.status for outcome in result[:2]) == ["error", "ok"]
    assert result[2].value == 42


async def test_a_callback_that_takes_too_many_arguments_fails_alone(neighbours: Neighbours):
    outcomes = await neighbours.everywhere(AWAITED, lambda: lambda one, two, three: None)
    assert {type(outcome.error) for _, outcome in outcomes} == {TypeError}


async def test_an_awaitable_whose_close_raises_stays_with_its_callback(neighbours: Neighbours):
    class Unclosable(Awaitable):
        close = refuse

    outcomes = await neighbours.everywhere(SYNC, lambda: lambda: Unclosable(succeed))
    assert statuses(outcomes) == always("error", SYNC)


async def test_an_awaitable_whose_close_is_async_leaves_no_coroutine_behind(
    neighbours: Neighbours,
):
    """As a connection that is awaited to open it."""

    class Connection(Awaitable):
        async def close(self) -> None: ...

    outcomes = await neighbours.everywhere(SYNC, lambda: lambda: Connection(succeed))
    assert {type(outcome.error) for _, outcome in outcomes} == {AsyncCallbackError}
    gc.collect()


# Callbacks that change the registry while it calls them.


def called_names(registry: CallbackRegistry, event: str = EVENT) -> list[str]:
    return [str(value) for value in registry.trigger_callbacks_sync(event).values()]


def test_a_callback_that_unregisters_itself_does_not_make_the_next_be_skipped():
    registry = CallbackRegistry()

    def leave() -> str:
        assert registry.unregister_callback(EVENT, leave)
        return "leave"

    registry.register_callback(EVENT, leave)
    registry.register_callback(EVENT, lambda: "next")
    registry.register_callback(EVENT, lambda: "last")
    assert called_names(registry) == ["leave", "next", "last"]
    assert called_names(registry) == ["next", "last"]


@pytest.mark.parametrize(
    "options", [{}, {"timing": True}, {"timeout": 60}, {"trace": True}], ids=str
)
async def test_a_callback_that_was_unregistered_before_its_turn_is_skipped(options: Any):
    registry = CallbackRegistry(**options)
    registrations = []
    registry.register_callback(EVENT, lambda: registrations[0].cancel())
    registrations.append(registry.register_callback(EVENT, succeed))
    registry.register_callback(EVENT, lambda: "last")
    result = await registry.trigger_callbacks(EVENT)
    assert [outcome.status for outcome in result] == ["ok", "skipped", "ok"]
    assert result.values() == [True, "last"]
    assert result.ok


async def test_a_concurrent_callback_that_was_unregistered_before_its_turn_is_skipped():
    """Its turn is its call; those called before go on."""
    registry = CallbackRegistry(mode="concurrent")
    registrations = []
    registry.register_callback(EVENT, async_function(succeed))
    registry.register_callback(EVENT, lambda: registry.clear())
    registrations.append(registry.register_callback(EVENT, async_function(succeed)))
    result = await registry.trigger_callbacks(EVENT)
    assert [outcome.status for outcome in result] == ["ok", "ok", "skipped"]


REMOVALS: dict[str, Callable[[CallbackRegistry, Any], Any]] = {
    "clear": lambda registry, _callback: registry.clear(),
    "unregister": lambda registry, callback: registry.unregister_callback(EVENT, callback),
    "cancel": lambda registry, _callback: [one.cancel() for one in registry.listeners()],
    "pause": lambda registry, _callback: [one.pause() for one in registry.listeners()],
}


@pytest.mark.parametrize("how", REMOVALS)
def test_whoever_is_removed_during_a_dispatch_is_not_called_by_it(how: str):
    registry, remove = CallbackRegistry(), REMOVALS[how]
    called: list[str] = []

    def second() -> None:
        called.append("second")

    registry.register_callback(EVENT, lambda: remove(registry, second))
    registry.register_callback(EVENT, second)
    registry.trigger_callbacks_sync(EVENT)
    assert called == []


@pytest.mark.parametrize("mode", ["sequential", "concurrent"])
async def test_whoever_is_registered_during_a_dispatch_waits_for_the_next(mode: Any):
    registry = CallbackRegistry(mode=mode)
    called: list[str] = []
    registry.register_callback(
        EVENT, lambda: registry.register_callback(EVENT, lambda: called.append("new"))
    )
    await registry.trigger_callbacks(EVENT)
    assert called == []
    await registry.trigger_callbacks(EVENT)
    assert called == ["new"]


def test_a_callback_may_register_without_end():
    """Each dispatch calls who stood there when it began, so it ends."""
    registry = CallbackRegistry()

    def breed() -> None:
        registry.register_callback(EVENT, breed)

    registry.register_callback(EVENT, breed)
    for generation in (1, 2, 4, 8):
        assert len(registry.trigger_callbacks_sync(EVENT)) == generation


async def test_a_callback_that_replaces_itself_is_called_once_a_dispatch():
    registry = CallbackRegistry()
    calls: list[int] = []

    async def replace() -> None:
        calls.append(1)
        registry.unregister_callback(EVENT, replace)
        registry.register_callback(EVENT, replace)

    registry.register_callback(EVENT, replace)
    for _ in range(3):
        await registry.trigger_callbacks(EVENT)
    assert len(calls) == 3


# The same where all callbacks are async, and where the event was triggered before.


@pytest.mark.parametrize("mode", ["sequential", "concurrent"])
@pytest.mark.parametrize("how", ["cancel", "pause", "clear"])
async def test_an_async_callback_may_remove_the_next_however_often_it_was_called(
    how: str, mode: Any
):
    """In concurrent mode the next has been called by then."""
    registry = CallbackRegistry(mode=mode)
    is_time: list[int] = []

    async def remove() -> None:
        if is_time:
            {"cancel": later.cancel, "pause": later.pause, "clear": registry.clear}[how]()

    async def follow() -> str:
        return "followed"

    registry.register_callback(EVENT, remove)
    later = registry.register_callback(EVENT, follow)
    registry.register_callback(EVENT, follow, when=lambda: False)
    for _ in range(3):
        result = await registry.trigger_callbacks(EVENT)
        assert [outcome.status for outcome in result] == ["ok", "ok", "skipped"]
    is_time.append(1)
    result = await registry.trigger_callbacks(EVENT)
    expected = "skipped" if mode == "sequential" else "ok"
    assert [outcome.status for outcome in result] == ["ok", expected, "skipped"]
    assert result.ok


@pytest.mark.parametrize("mode", ["sequential", "concurrent"])
async def test_async_callbacks_that_are_skipped_are_skipped_however_often(mode: Any):
    registry = CallbackRegistry(mode=mode)
    owner = [AsyncCallable(succeed)]
    wanted = [False]
    registry.register_callback(EVENT, async_function(succeed), once=True)
    registry.register_callback(EVENT, async_function(succeed), when=lambda: wanted[0])
    registry.register_callback(EVENT, owner[0].__call__, weak=True)
    registry.register_callback(EVENT, async_function(fail))
    expected = ["ok", "skipped", "ok", "error"]
    for _ in range(3):
        result = await registry.trigger_callbacks(EVENT, "data")
        assert [outcome.status for outcome in result] == expected
        expected = ["skipped", "ok", "error"]
    owner.clear()
    wanted[0] = True
    result = await registry.trigger_callbacks(EVENT, "data")
    assert [outcome.status for outcome in result] == ["ok", "error"]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="inspect.markcoroutinefunction is new there")
async def test_a_function_marked_as_async_may_return_a_plain_value(neighbours: Neighbours):
    """As one does that has the value already, and else a coroutine that gets it."""
    mark: Any = getattr(inspect, "markcoroutinefunction", None)
    outcomes = await neighbours.everywhere(AWAITED, lambda: mark(lambda _data: 42))
    assert {outcome.value for _, outcome in outcomes} == {42}
    registry = CallbackRegistry()
    registry.register_callback(EVENT, mark(lambda _data: 42))
    registry.register_callback(EVENT, async_function(succeed))
    for _ in range(3):
        assert (await registry.trigger_callbacks(EVENT)).values() == [42, 42]


# Callbacks that block.


async def test_a_callback_that_blocks_in_a_thread_is_given_up_on(neighbours: Neighbours):
    release, returned = threading.Event(), threading.Event()

    def block() -> None:
        release.wait(30)
        returned.set()

    registry = CallbackRegistry()
    registry.register_callback(EVENT, block, thread=True, timeout=0.05)
    registry.register_callback(EVENT, succeed)
    result = await registry.trigger_callbacks(EVENT)
    assert [outcome.status for outcome in result] == ["timeout", "ok"]
    assert isinstance(result[0].error, CallbackTimeoutError)
    assert (registry.abandoned_threads, registry.hanging_threads) == (1, 1)
    release.set()
    assert await anyio.to_thread.run_sync(returned.wait, 30)
    assert registry.abandoned_threads == 1


def test_a_callback_that_blocks_in_a_thread_is_given_up_on_synchronously():
    release = threading.Event()
    registry = CallbackRegistry()
    registry.register_callback(EVENT, lambda: release.wait(30), thread=True, timeout=0.05)
    registry.register_callback(EVENT, succeed)
    result = registry.trigger_callbacks_sync(EVENT)
    assert [outcome.status for outcome in result] == ["timeout", "ok"]
    release.set()


async def test_callbacks_that_block_in_threads_block_no_other_at_the_same_time():
    """The first waits for the second, so each must have its own thread."""
    released = threading.Event()
    registry = CallbackRegistry(mode="concurrent")
    registry.register_callback(EVENT, lambda: released.wait(30), thread=True)
    registry.register_callback(EVENT, released.set, thread=True)
    result = await registry.trigger_callbacks(EVENT)
    assert result.values() == [True, None]


# Callbacks that recurse.


class Bounded(Exception):
    """The recursion went on where it should have ended long ago."""


@attrs.define
class Counter:
    """Counts calls, and ends a run that would never end by itself."""

    limit: int = 5_000
    calls: int = 0

    def count(self) -> None:
        self.calls += 1
        if self.calls > self.limit:
            # Not an Exception: those are isolated, and the run would go on for ever.
            raise SystemExit(f"{self.calls} calls")


def through(frames: int, call: Callable[[], Any]) -> Any:
    """Call something with *frames* of the caller's own between."""
    return call() if frames == 0 else through(frames - 1, call)


@pytest.mark.usefixtures("records", "without_collection")
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("frames", [0, 8, 30])
@pytest.mark.parametrize("options", [{}, {"timing": True, "timeout": 60}], ids=str)
def test_sync_callbacks_that_recurse_end(options: Any, frames: int, count: int):
    """Also where Python's own recursion limit is met before the registry's."""
    registry = CallbackRegistry(**options)
    counter = Counter()

    def recurse() -> Any:
        counter.count()
        return through(frames, lambda: registry.trigger_callbacks_sync(EVENT))

    for _ in range(count):
        registry.register_callback(EVENT, recurse)
    registry.register_callback(EVENT, succeed, priority=-1)
    result = registry.trigger_callbacks_sync(EVENT)
    assert [outcome.status for outcome in result] == ["error"] * count + ["ok"]
    assert all(isinstance(error, RecursionError) for error in result.errors)


@pytest.mark.usefixtures("records", "without_collection")
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("options", [{}, {"timeout": 60}, {"timing": True}], ids=str)
async def test_async_callbacks_that_recurse_end(options: Any, count: int):
    registry = CallbackRegistry(**options)
    counter = Counter()

    async def recurse() -> Any:
        counter.count()
        return await registry.trigger_callbacks(EVENT)

    for _ in range(count):
        registry.register_callback(EVENT, recurse)
    registry.register_callback(EVENT, succeed, priority=-1)
    result = await registry.trigger_callbacks(EVENT)
    assert [outcome.status for outcome in result] == ["error"] * count + ["ok"]
    assert all(isinstance(error, DispatchDepthError) for error in result.errors)
    assert counter.calls <= 200 * count


@pytest.mark.usefixtures("records", "without_collection")
def test_the_depth_error_says_what_to_look_for():
    registry = CallbackRegistry(depth_limit=7)
    registry.register_callback(EVENT, lambda: registry.trigger_callbacks_sync(EVENT))
    (error,) = registry.trigger_callbacks_sync(EVENT).errors
    assert isinstance(error, DispatchDepthError)
    assert "depth_limit=7" in str(error)
    assert "a callback triggers the event that calls it" in str(error)


@pytest.mark.usefixtures("records", "without_collection")
@pytest.mark.parametrize("limit", [1, 2, 5, 50])
def test_the_depth_limit_is_the_number_of_dispatches_inside_each_other(limit: int):
    registry = CallbackRegistry(depth_limit=limit)
    depths: list[int] = []

    def nest(depth: int) -> None:
        depths.append(depth)
        registry.trigger_callbacks_sync(EVENT, depth + 1)

    registry.register_callback(EVENT, nest)
    result = registry.trigger_callbacks_sync(EVENT, 1)
    assert isinstance(result[0].error, DispatchDepthError)
    assert depths == list(range(1, limit + 1))


@pytest.mark.usefixtures("records", "without_collection")
@pytest.mark.parametrize("registries", [2, 5])
def test_callbacks_that_recurse_across_registries_end(registries: int):
    ring = [CallbackRegistry() for _ in range(registries)]
    counter = Counter()
    for place, registry in enumerate(ring):
        following = ring[(place + 1) % registries]

        def pass_on(following: CallbackRegistry = following) -> None:
            counter.count()
            following.trigger_callbacks_sync(EVENT)

        registry.register_callback(EVENT, pass_on)
        registry.register_callback(EVENT, pass_on)
    result = ring[0].trigger_callbacks_sync(EVENT)
    assert [outcome.status for outcome in result] == ["error", "error"]
    assert all(isinstance(error, RecursionError) for error in result.errors)


@pytest.mark.usefixtures("records", "without_collection")
@pytest.mark.parametrize("count", [1, 2])
async def test_concurrent_callbacks_that_recurse_end(count: int):
    """Two that recurse in concurrent mode double the tasks at each level: that is stopped too."""
    registry = CallbackRegistry(mode="concurrent")
    counter = Counter()

    async def recurse() -> Any:
        counter.count()
        return await registry.trigger_callbacks(EVENT)

    for _ in range(count):
        registry.register_callback(EVENT, recurse)
    registry.register_callback(EVENT, async_function(succeed))
    with anyio.fail_after(20):
        result = await registry.trigger_callbacks(EVENT)
    assert [outcome.status for outcome in result] == ["error"] * count + ["ok"]
    assert all(isinstance(error, DispatchDepthError) for error in result.errors)


@pytest.mark.usefixtures("records", "without_collection")
def test_callbacks_that_recurse_through_threads_end():
    registry = CallbackRegistry()
    results: list[DispatchResult] = []
    registry.register_callback(EVENT, lambda: registry.trigger_callbacks_sync(EVENT), thread=True)
    # In a thread of its own, so that a deadlock fails the test rather than hangs the suite.
    runner = threading.Thread(
        target=lambda: results.append(registry.trigger_callbacks_sync(EVENT)), daemon=True
    )
    runner.start()
    runner.join(10)
    assert results, "the worker threads wait for each other"
    assert isinstance(results[0][0].error, DispatchDepthError)


@pytest.mark.usefixtures("records", "without_collection")
async def test_async_triggers_that_recurse_through_threads_end():
    registry = CallbackRegistry()
    registry.register_callback(EVENT, lambda: registry.trigger_callbacks_sync(EVENT), thread=True)
    with anyio.fail_after(10):
        result = await registry.trigger_callbacks(EVENT)
    assert isinstance(result[0].error, DispatchDepthError)


@pytest.mark.usefixtures("records", "without_collection")
def test_nested_thread_callbacks_do_not_wait_for_each_other():
    """Sixty at once that each trigger another in a thread: none needs a slot another holds."""
    registry = CallbackRegistry()
    many = 60
    started = threading.Semaphore(0)
    go = threading.Event()

    def outer() -> Any:
        started.release()
        go.wait(20)
        return registry.trigger_callbacks_sync("inner").first()

    registry.register_callback(EVENT, outer, thread=True)
    registry.register_callback("inner", lambda: "inner", thread=True)
    results: list[Any] = []
    threads = [
        threading.Thread(
            target=lambda: results.append(registry.trigger_callbacks_sync(EVENT).first()),
            daemon=True,
        )
        for _ in range(many)
    ]
    for thread in threads:
        thread.start()
    for _ in range(40):
        assert started.acquire(timeout=10)
    go.set()
    for thread in threads:
        thread.join(10 / many)
    assert results == ["inner"] * many


@pytest.mark.usefixtures("records", "without_collection")
@pytest.mark.parametrize("count", [1, 2])
def test_error_callbacks_that_recurse_end(count: int):
    registry = CallbackRegistry()
    counter = Counter()

    def again() -> None:
        counter.count()
        registry.trigger_callbacks_sync(EVENT)

    for _ in range(count):
        registry.register_callback(EVENT, fail)
        registry.add_error_callback(again)
    result = registry.trigger_callbacks_sync(EVENT)
    assert [type(error) for error in result.errors] == [ValueError] * count


@pytest.mark.usefixtures("records", "without_collection")
@pytest.mark.parametrize("count", [1, 2])
async def test_async_error_callbacks_that_recurse_end(count: int):
    registry = CallbackRegistry()
    counter = Counter()

    async def again() -> None:
        counter.count()
        await registry.trigger_callbacks(EVENT)

    for _ in range(count):
        registry.register_callback(EVENT, fail)
        registry.add_error_callback(again)
    result = await registry.trigger_callbacks(EVENT)
    assert [type(error) for error in result.errors] == [ValueError] * count


@pytest.mark.usefixtures("records", "without_collection")
@pytest.mark.parametrize("mode", ["sequential", "concurrent"])
async def test_a_recursion_error_of_a_nested_callback_is_its_own(mode: Any):
    """It recursed by itself, not through triggers: its neighbours are called."""
    registry = CallbackRegistry(mode=mode)

    def recurse() -> None:
        recurse()

    async def nest() -> list[str]:
        sync = registry.trigger_callbacks_sync("inner")
        awaited = await registry.trigger_callbacks("inner")
        return [outcome.status for result in (sync, awaited) for outcome in result]

    registry.register_callback("inner", recurse)
    registry.register_callback("inner", succeed)
    registry.register_callback(EVENT, nest)
    registry.register_callback(EVENT, nest)
    for _ in range(2):
        result = await registry.trigger_callbacks(EVENT)
        assert result.values() == [["error", "ok", "error", "ok"]] * 2


@pytest.mark.usefixtures("records", "without_collection")
def test_a_registry_works_after_a_recursion():
    registry = CallbackRegistry()
    recursion = registry.register_callback(EVENT, lambda: registry.trigger_callbacks_sync(EVENT))
    registry.trigger_callbacks_sync(EVENT)
    recursion.cancel()
    registry.register_callback(EVENT, succeed)
    for _ in range(sys.getrecursionlimit()):
        assert registry.trigger_callbacks_sync(EVENT).values() == [42]


@pytest.mark.usefixtures("records", "without_collection")
async def test_a_finite_recursion_works():
    """A callback may well trigger its own event, as long as that ends."""
    registry = CallbackRegistry()

    async def count_down(number: int) -> int:
        if number == 0:
            return 0
        return 1 + (await registry.trigger_callbacks(EVENT, number - 1)).first()

    registry.register_callback(EVENT, count_down)
    assert (await registry.trigger_callbacks(EVENT, 50)).first() == 50


# Hostile equality and hashes never run under a lock, and never stop a removal.


def test_unregistering_survives_a_hostile_equality():
    registry = CallbackRegistry()
    hostile = with_hostile("__eq__", "__hash__", "__bool__")
    first, second = hostile(succeed), hostile(succeed)
    registry.register_callback(EVENT, first)
    registry.register_callback(EVENT, second)
    assert registry.unregister_callback(EVENT, hostile(succeed)) is False
    assert registry.unregister_callback(EVENT, second) is True
    (left,) = registry.listeners(EVENT)
    assert left.callback is first


def test_unregistering_survives_a_hostile_equality_beside_a_weak_callback():
    owner = Plain(succeed)
    registry = CallbackRegistry()
    registry.register_callback(EVENT, owner.__call__, weak=True)
    assert registry.unregister_callback(EVENT, with_hostile("__eq__")(succeed)) is False
    assert registry.unregister_callback(EVENT, owner.__call__) is True


def test_removing_an_error_callback_survives_a_hostile_equality():
    registry = CallbackRegistry()
    hostile = with_hostile("__eq__")(succeed)
    registry.add_error_callback(hostile)
    registry.add_error_callback(succeed)
    assert registry.remove_error_callback(succeed) is True
    assert registry.remove_error_callback(succeed) is False
    assert registry.remove_error_callback(hostile) is True


def test_an_equality_that_uses_the_registry_does_not_deadlock():
    registry = CallbackRegistry()

    class Meddler(Plain):
        def __eq__(self, _other: object) -> bool:
            done = threading.Event()

            def meddle() -> None:
                registry.register_callback("other", succeed)
                registry.add_error_callback(succeed)
                done.set()

            threading.Thread(target=meddle, daemon=True).start()
            assert done.wait(10), "the lock is held while an __eq__ runs"
            return False

        __hash__ = None

    registry.register_callback(EVENT, Meddler(succeed))
    registry.add_error_callback(Meddler(succeed))
    assert registry.unregister_callback(EVENT, Meddler(succeed)) is False
    assert registry.remove_error_callback(Meddler(succeed)) is False
