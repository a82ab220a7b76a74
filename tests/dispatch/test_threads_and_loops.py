"""Many threads and event loops on one registry, and real cancellation."""

import asyncio
import contextvars
import gc
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import anyio.to_thread
import pytest

from callbackkit import CallbackRegistry, DispatchResult

EVENT = "call.ended"

# Seconds after which something hangs; never waited out by a test that passes.
BOUND = 20.0


@pytest.fixture(autouse=True)
def frequent_switches() -> Iterator[None]:
    """Have threads take turns a thousand times as often, so that a race shows."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    yield
    sys.setswitchinterval(interval)


class Workers:
    """Threads that start at the same moment and whose failures are the test's."""

    def __init__(self, *works: Callable[[], object]) -> None:
        self._barrier = threading.Barrier(len(works))
        self.failures: list[BaseException] = []
        self._threads = [
            threading.Thread(target=self._run, args=(work,), daemon=True) for work in works
        ]

    def _run(self, work: Callable[[], object]) -> None:
        try:
            self._barrier.wait(BOUND)
            work()
        except BaseException as exc:
            self.failures.append(exc)

    def run(self) -> None:
        for thread in self._threads:
            thread.start()
        for thread in self._threads:
            thread.join(BOUND)
            assert not thread.is_alive(), "threads wait for each other"
        if self.failures:
            raise self.failures[0]


def at_once(work: Callable[[int], object], count: int = 8) -> None:
    """Run ``work(number)`` in *count* threads at the same time."""
    Workers(*(lambda number=number: work(number) for number in range(count))).run()


# Registering and triggering at once.


def test_eight_threads_register_trigger_and_unregister_at_once():
    """No thread misses a callback of its own, and nothing stays behind."""
    registry = CallbackRegistry()
    permanent = registry.register_callback("**", lambda: "permanent")

    def work(number: int) -> None:
        for turn in range(60):
            mine = f"thread.{number}.{turn}"
            own = registry.register_callback(mine, lambda: "own")
            shared = registry.register_callback(EVENT, lambda: "shared")
            pattern = registry.register_callback(f"thread.{number}.*", lambda: "pattern")
            result = registry.trigger_callbacks_sync(mine)
            assert result.values() == ["permanent", "own", "pattern"]
            assert "shared" in registry.trigger_callbacks_sync(EVENT).values()
            assert registry.has_listeners(mine)
            own.pause()
            assert registry.trigger_callbacks_sync(mine).values() == ["permanent", "pattern"]
            own.resume()
            for registration in (own, shared, pattern):
                assert registration.cancel() is True
            assert registry.trigger_callbacks_sync(mine).values() == ["permanent"]

    at_once(work)
    assert registry.listeners() == [permanent]
    assert registry.event_types() == ["**"]


def test_no_thread_is_called_after_it_has_cancelled():
    """``cancel()`` has taken effect everywhere when it returns, but for a call under way."""
    registry = CallbackRegistry()
    stop = threading.Event()

    def trigger() -> None:
        while not stop.is_set():
            registry.trigger_callbacks_sync(EVENT)

    def change() -> None:
        try:
            for _ in range(200):
                calls: list[int] = []
                registration = registry.register_callback(
                    EVENT, lambda calls=calls: calls.append(1)
                )
                assert registry.trigger_callbacks_sync(EVENT).ok
                registration.cancel()
                # In each of the other threads one call may be under way.
                before = len(calls)
                for _ in range(3):
                    registry.trigger_callbacks_sync(EVENT)
                assert len(calls) <= before + 2
        finally:
            stop.set()

    Workers(trigger, trigger, change).run()


def test_registrations_of_many_threads_keep_an_order():
    """Each thread's callbacks stand in the order in which it registered them."""
    registry = CallbackRegistry()

    def work(number: int) -> None:
        for turn in range(100):
            registry.register_callback(EVENT, lambda turn=turn: (number, turn))

    at_once(work)
    values = registry.trigger_callbacks_sync(EVENT).values()
    assert len(values) == 800
    for number in range(8):
        assert [turn for who, turn in values if who == number] == list(range(100))


def test_each_registration_is_unregistered_by_one_thread():
    registry = CallbackRegistry()
    for _ in range(400):
        registry.register_callback(EVENT, len)
    removed: list[int] = []

    def work(_number: int) -> None:
        while registry.unregister_callback(EVENT, len):
            removed.append(1)

    at_once(work)
    assert len(removed) == 400
    assert registry.listeners() == []


def test_a_registration_is_cancelled_by_one_thread():
    for _ in range(50):
        registration = CallbackRegistry().register_callback(EVENT, len)
        cancelled: list[bool] = []
        at_once(
            lambda _number, registration=registration, cancelled=cancelled: cancelled.append(
                registration.cancel()
            ),
            count=4,
        )
        assert sorted(cancelled) == [False, False, False, True]


def test_once_is_called_once_under_a_race():
    for _ in range(20):
        registry = CallbackRegistry()
        calls: list[int] = []
        registry.register_callback(EVENT, lambda calls=calls: calls.append(1), once=True)
        registry.register_callback("call.*", lambda calls=calls: calls.append(2), once=True)
        results: list[DispatchResult] = []
        at_once(
            lambda _number, registry=registry, results=results: results.append(
                registry.trigger_callbacks_sync(EVENT)
            )
        )
        assert sorted(calls) == [1, 2]
        statuses = [outcome.status for result in results for outcome in result]
        assert statuses.count("ok") == 2
        assert set(statuses) <= {"ok", "skipped"}


def test_muting_and_error_callbacks_survive_many_threads():
    registry = CallbackRegistry()
    failures: list[Exception] = []
    registry.add_error_callback(failures.append)
    registry.register_callback(EVENT, lambda: "called")

    def work(number: int) -> None:
        def mine(_exception: Exception) -> None: ...

        for _ in range(50):
            with registry.muted(f"other.{number}"), registry.muted("other.**"):
                assert registry.trigger_callbacks_sync(EVENT).values() == ["called"]
            registry.add_error_callback(mine)
            assert registry.remove_error_callback(mine) is True

    at_once(work)
    registry.register_callback("other.1", lambda: 1 // 0)
    assert not registry.trigger_callbacks_sync("other.1").ok
    assert len(failures) == 1


def test_weak_callbacks_die_while_threads_trigger():
    registry = CallbackRegistry()
    stop = threading.Event()

    class Owner:
        def take(self) -> str:
            return "alive"

    def trigger() -> None:
        while not stop.is_set():
            assert registry.trigger_callbacks_sync(EVENT).ok

    def live_and_die() -> None:
        try:
            for _ in range(200):
                owner = Owner()
                registry.register_callback(EVENT, owner.take, weak=True)
                assert "alive" in registry.trigger_callbacks_sync(EVENT).values()
                del owner
        finally:
            stop.set()

    Workers(trigger, trigger, live_and_die).run()
    gc.collect()
    assert registry.listeners() == []


# Locks.


@pytest.mark.parametrize("thread", [False, True])
def test_two_registries_that_trigger_each_other_do_not_deadlock(thread: bool):
    """Each thread stands in a callback of one registry and needs the other one."""
    one, other = CallbackRegistry(), CallbackRegistry()
    both_inside = threading.Barrier(2)

    def cross(target: CallbackRegistry) -> Callable[[], list[Any]]:
        def callback() -> list[Any]:
            both_inside.wait(BOUND)
            target.register_callback("new", len)
            return target.trigger_callbacks_sync("inner").values()

        return callback

    for mine, its in ((one, other), (other, one)):
        mine.register_callback(EVENT, cross(its), thread=thread)
        mine.register_callback("inner", lambda: "inner", thread=thread)
    results: list[DispatchResult] = []
    Workers(
        lambda: results.append(one.trigger_callbacks_sync(EVENT)),
        lambda: results.append(other.trigger_callbacks_sync(EVENT)),
    ).run()
    assert [result.values() for result in results] == [[["inner"]], [["inner"]]]


def test_a_callback_that_blocks_holds_up_no_other_thread():
    registry = CallbackRegistry()
    inside, release = threading.Event(), threading.Event()

    def block() -> None:
        inside.set()
        assert release.wait(BOUND)

    registry.register_callback(EVENT, block)

    def meanwhile() -> None:
        assert inside.wait(BOUND)
        registration = registry.register_callback("other", lambda: "other")
        assert registry.trigger_callbacks_sync("other").values() == ["other"]
        registry.add_error_callback(print)
        assert registry.has_listeners(EVENT)
        assert len(registry.listeners()) == 2
        with registry.muted("other"):
            assert registry.trigger_callbacks_sync("other").values() == []
        registration.cancel()
        registry.clear()
        release.set()

    Workers(lambda: registry.trigger_callbacks_sync(EVENT), meanwhile).run()


@pytest.mark.parametrize("place", ["callback", "when", "on_error", "error callback", "tap"])
def test_no_callback_of_any_kind_runs_under_a_lock(place: str):
    """From inside it, another thread can change the registry."""
    registry = CallbackRegistry()
    ran: list[str] = []

    def use_from_another_thread(*_args: object) -> bool:
        done = threading.Event()

        def use() -> None:
            registry.register_callback("other", len).cancel()
            registry.add_error_callback(len)
            registry.remove_error_callback(len)
            registry.trigger_callbacks_sync("other")
            done.set()

        threading.Thread(target=use, daemon=True).start()
        assert done.wait(BOUND), f"a lock is held while a {place} runs"
        ran.append(place)
        return True

    def fail() -> None:
        raise ValueError

    options: dict[str, Any] = {}
    callback: Callable[..., Any] = len
    match place:
        case "callback":
            callback = use_from_another_thread
        case "when":
            options["when"] = use_from_another_thread
        case "on_error":
            callback, options["on_error"] = fail, use_from_another_thread
        case "error callback":
            callback = fail
            registry.add_error_callback(use_from_another_thread)
        case _:
            registry.tap(use_from_another_thread, EVENT)
    registry.register_callback(EVENT, callback, **options)
    registry.trigger_callbacks_sync(EVENT, "data")
    assert ran == [place]


def test_a_finalizer_may_use_the_registry_at_any_time():
    """Garbage collection may run it in the middle of a change."""
    registry = CallbackRegistry()
    finalized: list[int] = []

    class Finalized:
        def __init__(self) -> None:
            self.cycle = self

        def __call__(self) -> None: ...

        def __del__(self) -> None:
            finalized.append(1)
            registry.register_callback("finalized", len)
            registry.unregister_callback("finalized", len)
            registry.trigger_callbacks_sync("finalized")

    threshold = gc.get_threshold()
    gc.set_threshold(20)
    try:
        for turn in range(200):
            registration = registry.register_callback(f"{EVENT}.{turn % 7}", Finalized())
            registry.trigger_callbacks_sync(f"{EVENT}.{turn % 7}")
            registration.cancel()
    finally:
        gc.set_threshold(*threshold)
    registration = None
    gc.collect()
    assert len(finalized) == 200
    assert registry.listeners() == []


# Context variables.

WHO: contextvars.ContextVar[str] = contextvars.ContextVar("who", default="nobody")


def test_each_thread_triggers_with_its_own_context():
    registry = CallbackRegistry()
    registry.register_callback(EVENT, WHO.get)
    registry.register_callback(EVENT, WHO.get, thread=True)

    def work(number: int) -> None:
        WHO.set(f"thread {number}")
        for _ in range(10):
            values = registry.trigger_callbacks_sync(EVENT).values()
            assert values == [f"thread {number}"] * 2

    at_once(work)
    assert WHO.get() == "nobody"


@pytest.mark.parametrize("mode", ["sequential", "concurrent"])
async def test_tasks_that_trigger_at_once_keep_their_contexts(mode: Any):
    registry = CallbackRegistry(mode=mode)

    async def read() -> str:
        await anyio.lowlevel.checkpoint()
        return WHO.get()

    registry.register_callback(EVENT, read)
    registry.register_callback(EVENT, WHO.get)
    registry.register_callback(EVENT, WHO.get, thread=True)

    async def work(number: int) -> None:
        WHO.set(f"task {number}")
        for _ in range(3):
            values = (await registry.trigger_callbacks(EVENT)).values()
            assert values == [f"task {number}"] * 3

    async with anyio.create_task_group() as group:
        for number in range(8):
            group.start_soon(work, number)


async def test_a_thread_triggers_in_the_loop_with_its_own_context():
    registry = CallbackRegistry()
    registry.register_callback(EVENT, WHO.get)

    def work() -> list[Any]:
        WHO.set("thread")
        return registry.trigger_threadsafe(EVENT).result(BOUND).values()

    async with registry.serving():
        WHO.set("loop")
        assert await anyio.to_thread.run_sync(work) == ["thread"]


# Event loops.


def test_two_event_loops_in_two_threads_share_a_registry():
    """What a loop awaits runs in that loop, never in the other one."""
    registry = CallbackRegistry(mode="concurrent")
    both = threading.Barrier(2)

    async def which() -> int:
        await asyncio.sleep(0)
        return id(asyncio.get_running_loop())

    async def main() -> None:
        mine = id(asyncio.get_running_loop())
        await asyncio.to_thread(both.wait, BOUND)
        for _ in range(50):
            values = (await registry.trigger_callbacks(EVENT)).values()
            assert values == [mine, mine, mine]

    for _ in range(3):
        registry.register_callback(EVENT, which, timeout=60)
    Workers(lambda: asyncio.run(main()), lambda: asyncio.run(main())).run()


def test_asyncio_and_trio_in_two_threads_share_a_registry():
    registry = CallbackRegistry()

    async def library() -> str:
        await anyio.lowlevel.checkpoint()
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return "trio"
        return "asyncio"

    async def main(backend: str) -> None:
        for _ in range(50):
            result = await registry.trigger_callbacks(EVENT)
            assert result.values() == [backend, backend]

    registry.register_callback(EVENT, library)
    registry.register_callback(EVENT, library, timeout=60)
    Workers(
        *(
            lambda backend=backend: anyio.run(main, backend, backend=backend)
            for backend in ("asyncio", "trio")
        )
    ).run()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_registry_outlives_an_event_loop(backend: str):
    registry = CallbackRegistry(mode="concurrent", timeout=60)

    async def callback() -> str:
        await anyio.lowlevel.checkpoint()
        return "called"

    registry.register_callback(EVENT, callback)
    registry.register_callback(EVENT, callback)
    for _ in range(3):
        result = anyio.run(registry.trigger_callbacks, EVENT, backend=backend)
        assert result.values() == ["called", "called"]


@pytest.mark.parametrize("mode", ["sequential", "concurrent"])
@pytest.mark.parametrize("options", [{}, {"timeout": 60}, {"timing": True}], ids=str)
async def test_a_trigger_in_a_cancelled_scope_leaves_no_coroutine_behind(
    mode: Any, options: dict[str, Any]
):
    registry = CallbackRegistry(mode=mode, **options)
    finished: list[int] = []

    async def wait() -> None:
        await anyio.sleep(BOUND)
        finished.append(1)

    for _ in range(3):
        registry.register_callback(EVENT, wait)
    for _ in range(2):
        with anyio.CancelScope() as scope:
            scope.cancel()
            await registry.trigger_callbacks(EVENT)
        assert scope.cancelled_caught
    assert finished == []
    gc.collect()


async def test_threads_and_the_loop_trigger_at_once():
    registry = CallbackRegistry()
    threads: set[int] = set()

    async def callback(data: int) -> int:
        await anyio.lowlevel.checkpoint()
        threads.add(threading.get_ident())
        return data

    def work(number: int) -> None:
        for turn in range(20):
            future = registry.trigger_threadsafe(EVENT, number * 100 + turn)
            assert future.result(BOUND).values() == [number * 100 + turn]

    registry.register_callback(EVENT, callback)
    async with registry.serving(), anyio.create_task_group() as group:
        group.start_soon(anyio.to_thread.run_sync, at_once, work)
        for turn in range(50):
            assert (await registry.trigger_callbacks(EVENT, turn)).values() == [turn]
    assert threads == {threading.get_ident()}


# Real cancellation, as asyncio does it.

MODES = pytest.mark.parametrize("mode", ["sequential", "concurrent"])
OPTIONS = pytest.mark.parametrize(
    "options", [{}, {"timeout": 60}, {"timing": True}, {"timing": True, "timeout": 60}], ids=str
)
TIMES = pytest.mark.parametrize("times", [0, 2])


class Waiter:
    """A registry whose first callback waits until it is cancelled, and what it saw."""

    def __init__(self, mode: Any, **options: Any) -> None:
        self.registry = CallbackRegistry(mode=mode, **options)
        self.mode = mode
        self.seen: list[str] = []
        self.running = asyncio.Event()
        self.is_quick = False
        self.registry.add_error_callback(lambda: self.seen.append("error callback"))
        self.registry.register_callback(EVENT, self.wait)
        self.registry.register_callback(EVENT, self.next)

    async def warm_up(self, times: int) -> None:
        """Trigger before: from the second time on there is a shortcut."""
        self.is_quick = True
        for _ in range(times):
            assert (await self.registry.trigger_callbacks(EVENT)).ok
        self.is_quick = False
        self.seen.clear()
        self.running.clear()

    async def wait(self) -> None:
        self.running.set()
        try:
            await asyncio.sleep(0 if self.is_quick else BOUND)
        except asyncio.CancelledError:
            self.seen.append("cancelled")
            raise

    async def next(self) -> None:
        self.seen.append("next")
        await asyncio.sleep(0 if self.is_quick else BOUND)

    def check(self) -> None:
        """What ran was cancelled once; in order, the next was not even called."""
        expected = ["cancelled"] if self.mode == "sequential" else ["next", "cancelled"]
        assert self.seen == expected


@MODES
@OPTIONS
@TIMES
def test_cancelling_the_task_cancels_the_trigger(mode: Any, options: dict[str, Any], times: int):
    async def main() -> None:
        waiter = Waiter(mode, **options)
        await waiter.warm_up(times)
        task = asyncio.ensure_future(waiter.registry.trigger_callbacks(EVENT))
        await waiter.running.wait()
        task.cancel("enough")
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()
        waiter.check()

    asyncio.run(main())


@MODES
@OPTIONS
@TIMES
def test_wait_for_around_a_trigger_times_out(mode: Any, options: dict[str, Any], times: int):
    async def main() -> None:
        waiter = Waiter(mode, **options)
        await waiter.warm_up(times)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(waiter.registry.trigger_callbacks(EVENT), 0.02)
        waiter.check()

    asyncio.run(main())


@MODES
@OPTIONS
@TIMES
def test_a_timeout_scope_around_a_trigger_times_out(mode: Any, options: dict[str, Any], times: int):
    async def main() -> None:
        waiter = Waiter(mode, **options)
        await waiter.warm_up(times)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await waiter.registry.trigger_callbacks(EVENT)
        waiter.check()
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    asyncio.run(main())


@MODES
@OPTIONS
def test_a_task_group_that_fails_cancels_a_trigger(mode: Any, options: dict[str, Any]):
    async def main() -> None:
        waiter = Waiter(mode, **options)

        async def fail() -> None:
            await waiter.running.wait()
            raise LookupError

        async def both() -> None:
            async with asyncio.TaskGroup() as group:
                group.create_task(waiter.registry.trigger_callbacks(EVENT))
                group.create_task(fail())

        with pytest.raises(ExceptionGroup) as info:
            await both()
        assert [type(error) for error in info.value.exceptions] == [LookupError]
        waiter.check()

    asyncio.run(main())


@MODES
def test_the_end_of_the_loop_cancels_a_trigger(mode: Any):
    waiters: list[Waiter] = []

    async def main() -> None:
        waiters.append(Waiter(mode))
        main.task = asyncio.ensure_future(waiters[0].registry.trigger_callbacks(EVENT))
        await waiters[0].running.wait()

    asyncio.run(main())
    waiters[0].check()


@MODES
def test_cancelling_before_the_first_step_calls_nobody(mode: Any):
    """A task may be cancelled before it has begun; no coroutine is left unawaited."""

    async def main() -> None:
        waiter = Waiter(mode)
        task = asyncio.ensure_future(waiter.registry.trigger_callbacks(EVENT))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert waiter.seen == []

    asyncio.run(main())
    gc.collect()


@OPTIONS
def test_cancelling_right_after_concurrent_callbacks_were_called_leaves_nothing_unawaited(
    options: dict[str, Any],
):
    """Their tasks may not have begun yet."""

    async def main() -> None:
        waiter = Waiter("concurrent", **options)
        task = asyncio.ensure_future(waiter.registry.trigger_callbacks(EVENT))
        waiter.registry.register_callback(EVENT, lambda: task.cancel(), priority=-1)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert set(waiter.seen) <= {"cancelled", "next"}

    asyncio.run(main())
    gc.collect()


@MODES
def test_cancelling_twice_does_not_cut_cleaning_up_short_without_need(mode: Any):
    """The second reaches the callback as it would without us."""

    async def main() -> list[str]:
        seen: list[str] = []
        running = asyncio.Event()

        async def wait() -> None:
            try:
                running.set()
                await asyncio.sleep(BOUND)
            finally:
                seen.append("cleaning up")
                await asyncio.sleep(0)
                seen.append("clean")

        registry = CallbackRegistry(mode=mode)
        registry.register_callback(EVENT, wait)
        registry.register_callback(EVENT, asyncio.sleep, when=lambda: False)
        task = asyncio.ensure_future(registry.trigger_callbacks(EVENT))
        await running.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return seen

    assert asyncio.run(main()) == ["cleaning up", "clean"]


@MODES
@pytest.mark.parametrize("scope", ["timeout", "wait_for", "inner task"])
def test_a_deadline_inside_a_callback_is_its_own(scope: str, mode: Any):
    async def main() -> None:
        registry = CallbackRegistry(mode=mode, timeout=60)

        async def gives_up() -> str:
            try:
                if scope == "timeout":
                    async with asyncio.timeout(0.01):
                        await asyncio.sleep(BOUND)
                elif scope == "wait_for":
                    await asyncio.wait_for(asyncio.sleep(BOUND), 0.01)
                else:
                    inner = asyncio.ensure_future(asyncio.sleep(BOUND))
                    asyncio.get_running_loop().call_later(0.01, inner.cancel)
                    await inner
            except (TimeoutError, asyncio.CancelledError) as exc:
                return type(exc).__name__
            return "never"

        registry.register_callback(EVENT, gives_up)
        registry.register_callback(EVENT, gives_up)
        expected = "CancelledError" if scope == "inner task" else "TimeoutError"
        for _ in range(2):
            assert (await registry.trigger_callbacks(EVENT)).values() == [expected] * 2

    asyncio.run(main())


@MODES
def test_a_foreign_and_our_own_cancellation_are_told_apart(mode: Any):
    """The same exception: once nobody cancels us, once somebody does."""

    async def main() -> None:
        registry = CallbackRegistry(mode=mode)
        other = asyncio.ensure_future(asyncio.sleep(BOUND))

        async def follow() -> None:
            await asyncio.shield(other)

        registry.register_callback(EVENT, follow)
        registry.register_callback(EVENT, lambda: "next")
        task = asyncio.ensure_future(registry.trigger_callbacks(EVENT))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not other.cancelled()

        for _ in range(3):
            other = asyncio.ensure_future(asyncio.sleep(BOUND))
            task = asyncio.ensure_future(registry.trigger_callbacks(EVENT))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            other.cancel()
            result = await task
            assert [outcome.status for outcome in result] == ["cancelled", "ok"]

    asyncio.run(main())


@MODES
def test_a_timeout_of_ours_and_one_of_the_caller_at_once_is_the_callers(mode: Any):
    """Whichever fires first, the caller's own deadline ends the trigger."""

    async def main() -> None:
        registry = CallbackRegistry(mode=mode, timeout=0.02)

        async def stubborn() -> None:
            try:
                await asyncio.sleep(BOUND)
            finally:
                await asyncio.sleep(0.06)

        registry.register_callback(EVENT, stubborn)
        registry.register_callback(EVENT, stubborn)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.04):
                await registry.trigger_callbacks(EVENT)

    asyncio.run(main())


@MODES
async def test_cancelling_one_trigger_leaves_another_alone(mode: Any):
    registry = CallbackRegistry(mode=mode)
    both = anyio.Event()
    go = anyio.Event()
    waiting: list[int] = []
    results: list[DispatchResult] = []

    async def wait() -> str:
        waiting.append(1)
        if len(waiting) >= 2:
            both.set()
        await go.wait()
        return "done"

    async def first(scope: anyio.CancelScope) -> None:
        with scope:
            await registry.trigger_callbacks(EVENT)

    async def second() -> None:
        results.append(await registry.trigger_callbacks(EVENT))

    registry.register_callback(EVENT, wait)
    async with anyio.create_task_group() as group:
        scope = anyio.CancelScope()
        group.start_soon(first, scope)
        group.start_soon(second)
        await both.wait()
        scope.cancel()
        await anyio.lowlevel.checkpoint()
        go.set()
    assert scope.cancelled_caught
    assert results[0].values() == ["done"]


@pytest.mark.parametrize("library", ["asyncio", "anyio"])
def test_concurrent_callbacks_may_use_scopes_and_groups_of_either_library(library: str):
    async def main() -> None:
        registry = CallbackRegistry(mode="concurrent", timeout=60)

        async def with_asyncio() -> str:
            async with asyncio.timeout(BOUND), asyncio.TaskGroup() as group:
                group.create_task(asyncio.sleep(0))
            return "asyncio"

        async def with_anyio() -> str:
            with anyio.fail_after(BOUND):
                async with anyio.create_task_group() as group:
                    group.start_soon(anyio.lowlevel.checkpoint)
            return "anyio"

        callback = with_asyncio if library == "asyncio" else with_anyio
        registry.register_callback(EVENT, callback)
        registry.register_callback(EVENT, callback)
        assert (await registry.trigger_callbacks(EVENT)).values() == [library, library]

    asyncio.run(main())
