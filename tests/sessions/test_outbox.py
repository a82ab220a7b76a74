"""Events that threads hand over."""

import threading
from collections.abc import AsyncGenerator, Awaitable, Callable
from concurrent.futures import CancelledError, Future
from contextlib import asynccontextmanager

import anyio
import anyio.to_thread
import pytest
from anyio.lowlevel import checkpoint

from callbackkit import Event, LimitError
from callbackkit.sessions.outbox import Outbox, Outgoing
from tests.sessions.rig import PATIENCE, settle, until


class Bench:
    """An outbox, what it has stored and for what it called the callbacks."""

    def __init__(self, max_pending: int = 100) -> None:
        self.outbox = Outbox(max_pending)
        self.stored: list[str] = []
        self.called: list[str] = []
        self.storing: Callable[[str], Awaitable[object]] | None = None
        self.calling: Callable[[str], Awaitable[object]] | None = None

    def put(self, name: str, session: str = "s", *, is_new: bool = True) -> Future[Event | None]:
        event = Event.of("n", {"name": name})

        async def append() -> tuple[Event, bool]:
            if self.storing is not None:
                await self.storing(name)
            self.stored.append(name)
            return event, is_new

        async def call(event: Event) -> None:
            if self.calling is not None:
                await self.calling(event.data["name"])
            self.called.append(event.data["name"])

        future: Future[Event | None] = Future()
        self.outbox.put(Outgoing(session, append, call, future))
        return future

    @asynccontextmanager
    async def serving(self) -> AsyncGenerator[None]:
        async with anyio.create_task_group() as group:
            self.outbox.open()
            await group.start(self.outbox.serve)
            yield
            group.cancel_scope.cancel()
        self.outbox.close()


async def test_events_are_stored_and_called_for_in_the_order_they_were_handed_over():
    bench = Bench(1_000)
    bench.storing = bench.calling = lambda _: checkpoint()
    async with bench.serving():
        names = [str(number) for number in range(200)]
        futures = [bench.put(name) for name in names]
        await until(lambda: len(bench.called) == 200)
    assert bench.stored == bench.called == names
    results = [future.result(0) for future in futures]
    assert [event.data["name"] for event in results if event] == names


async def test_nothing_is_taken_while_nobody_serves():
    bench = Bench()
    with pytest.raises(RuntimeError, match="async with manager"):
        bench.put("early")
    async with bench.serving():
        pass
    with pytest.raises(RuntimeError, match="running manager"):
        bench.put("late")
    assert bench.stored == []


async def test_a_failure_goes_to_its_future_and_stops_nothing():
    async def fails(name: str) -> None:
        if name == "bad":
            raise OSError("disk")

    bench = Bench()
    bench.storing = fails
    async with bench.serving():
        bad, good = bench.put("bad"), bench.put("good")
        await until(good.done)
        assert isinstance(bad.exception(0), OSError)
        await until(lambda: bench.called)
    assert bench.called == ["good"]


async def test_callbacks_that_can_not_be_called_are_logged(caplog: pytest.LogCaptureFixture):
    async def fails(name: str) -> None:
        if name == "bad":
            raise OSError("disk")

    bench = Bench()
    bench.calling = fails
    async with bench.serving():
        bench.put("bad")
        bench.put("good")
        await until(lambda: bench.called)
    assert bench.called == ["good"]
    (record,) = caplog.records
    assert record.name == "callbackkit.sessions"
    assert vars(record)["session_id"] == "s"


async def test_one_that_was_cancelled_is_not_stored():
    gate = anyio.Event()
    bench = Bench()
    bench.storing = lambda _: gate.wait()
    async with bench.serving():
        first, second, third = (bench.put(name) for name in "abc")
        await settle()
        assert second.cancel()
        assert not first.cancel()
        gate.set()
        await until(third.done)
        await until(lambda: len(bench.called) == 2)
    assert bench.stored == ["a", "c"]


async def test_a_known_key_calls_nobody():
    bench = Bench()
    async with bench.serving():
        await until(bench.put("again", is_new=False).done)
        await settle()
    assert (bench.stored, bench.called) == (["again"], [])


async def test_a_session_that_is_slow_holds_up_no_other():
    async def slow(name: str) -> None:
        if name.startswith("slow"):
            await anyio.sleep_forever()

    bench = Bench()
    bench.storing = bench.calling = slow
    async with bench.serving():
        bench.put("slow", "one")
        fast = bench.put("fast", "two")
        await until(fast.done)
        assert bench.outbox.is_storing("one")
        await until(lambda: not bench.outbox.is_storing("two"))


async def test_callbacks_do_not_hold_up_what_is_to_be_stored():
    """A callback waits for an event of its own session to be stored: nobody waits for ever."""
    bench = Bench()
    inner: list[Future[Event | None]] = []

    async def emits(name: str) -> None:
        if name == "outer":
            inner.append(bench.put("inner"))
            await until(inner[0].done)

    bench.calling = emits
    async with bench.serving():
        bench.put("outer")
        await until(lambda: len(bench.called) == 2)
    assert bench.stored == bench.called == ["outer", "inner"]


async def test_max_pending_counts_what_waits_to_be_stored_or_called_for():
    gate = anyio.Event()
    bench = Bench(2)
    bench.calling = lambda _: gate.wait()
    async with bench.serving():
        await until(bench.put("a").done)
        await until(bench.put("b").done)
        with pytest.raises(LimitError, match="max_pending=2") as caught:
            bench.put("c")
        assert caught.value.limit == "max_pending"
        # That of another session is another matter.
        bench.put("d", "other")
        gate.set()
        await until(lambda: len(bench.called) == 3)
        await settle()
        bench.put("c")
        await until(lambda: len(bench.called) == 4)


async def test_one_that_failed_was_cancelled_or_called_for_is_pending_no_more():
    gate = anyio.Event()

    async def storing(name: str) -> None:
        if name == "bad":
            raise OSError
        if name == "held":
            await gate.wait()

    bench = Bench(4)
    bench.storing = storing
    async with bench.serving():
        bad, taken_back, good = bench.put("bad"), bench.put("taken back"), bench.put("good")
        taken_back.cancel()
        # It keeps the lane busy: there is no new one to count anew.
        bench.put("held")
        await until(lambda: bench.called == ["good"])
        await settle()
        for name in ("next", "next", "next"):
            bench.put(name)
        with pytest.raises(LimitError):
            bench.put("one too many")
        gate.set()
        await until(lambda: len(bench.called) == 5)
    assert isinstance(bad.exception(0), OSError)
    assert good.result(0)


async def test_a_long_lane_lets_others_run():
    bench = Bench(1_000)
    async with bench.serving():
        for _ in range(500):
            bench.put("x")
        await until(lambda: bench.stored)
        assert len(bench.stored) < 250


async def test_flushing_waits_for_what_was_handed_over_before_and_for_no_more():
    gates = {name: anyio.Event() for name in "abc"}
    bench = Bench()
    bench.storing = lambda name: gates[name].wait()
    flushed: list[str] = []

    async def flush(session: str | None) -> None:
        await bench.outbox.flush(session)
        flushed.append(session or "all")

    async with bench.serving(), anyio.create_task_group() as group:
        bench.put("a", "one")
        bench.put("b", "two")
        group.start_soon(flush, "one")
        group.start_soon(flush, None)
        group.start_soon(flush, "three")
        await settle()
        assert flushed == ["three"]
        bench.put("c", "one")
        gates["a"].set()
        await until(lambda: "one" in flushed)
        assert "all" not in flushed
        gates["b"].set()
        await until(lambda: "all" in flushed)
        assert bench.stored == ["a", "b"]
        gates["c"].set()


async def test_flushing_waits_for_callbacks_if_asked():
    gate = anyio.Event()
    bench = Bench()
    bench.calling = lambda _: gate.wait()
    flushed: list[bool] = []

    async def flush(after_calls: bool) -> None:
        await bench.outbox.flush(after_calls=after_calls)
        flushed.append(after_calls)

    async with bench.serving(), anyio.create_task_group() as group:
        bench.put("a")
        group.start_soon(flush, True)
        await settle()
        group.start_soon(flush, False)
        await settle()
        assert flushed == [False]
        gate.set()
        await until(lambda: flushed == [False, True])
        await bench.outbox.flush(after_calls=True)


@pytest.mark.parametrize("stage", ["storing", "calling"])
async def test_when_it_is_stopped_nobody_waits_for_ever(stage: str):
    bench = Bench()
    setattr(bench, stage, lambda _: anyio.sleep_forever())
    ended: list[str] = []

    async def flush() -> None:
        await bench.outbox.flush(after_calls=True)
        ended.append("flushed")

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group, bench.serving():
            futures = [bench.put(name) for name in "abc"]
            group.start_soon(flush)
            await settle()
            futures[2].cancel()
    assert ended == ["flushed"]
    if stage == "storing":
        for future in futures[:2]:
            with pytest.raises(RuntimeError, match="stopped before the event was stored"):
                future.result(0)
        with pytest.raises(CancelledError):
            futures[2].result(0)
    assert bench.outbox._lanes == {}


async def test_one_that_is_shut_serves_the_rest():
    bench = Bench()
    async with bench.serving():
        future = bench.put("a")
        bench.outbox.shut()
        with pytest.raises(RuntimeError):
            bench.put("b")
        await until(future.done)


async def test_nothing_is_kept_of_a_session_that_waits_for_nothing():
    bench = Bench()
    async with bench.serving():
        for number in range(50):
            bench.put("x", f"session-{number}")
        await until(lambda: len(bench.called) == 50)
        await until(lambda: not bench.outbox._lanes)


async def test_threads_hand_over_at_once_each_in_its_own_order():
    bench = Bench(10_000)
    ready = threading.Barrier(4)

    def work(thread: int) -> None:
        ready.wait(PATIENCE)
        futures = [bench.put(f"{thread}-{number}", str(thread % 2)) for number in range(100)]
        for future in futures:
            assert future.result(PATIENCE) is not None

    async with bench.serving(), anyio.create_task_group() as group:
        for thread in range(4):
            group.start_soon(anyio.to_thread.run_sync, work, thread)
    for thread in range(4):
        mine = [name for name in bench.stored if name.startswith(f"{thread}-")]
        assert mine == [f"{thread}-{number}" for number in range(100)]
