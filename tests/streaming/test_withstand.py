"""What a run has to withstand: hostile text, readers that stop, threads, loops that are gone."""

import asyncio
import gc
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from callbackkit import (
    Callback,
    SpecialToken,
    StreamCancelledError,
    StreamClosedError,
    StreamLagError,
    emit_token,
)
from callbackkit.streaming.callback import current_callback, using

END = "<graphai:END>"
# Seconds in which something that needs no waiting has happened for sure.
SOON = 20.0


async def everything(callback: Callback, **options: Any) -> list[str]:
    return [token async for token in callback.aiter(**options, raise_errors=False)]


async def read_to_the_end(reader: AsyncIterator[str]) -> tuple[list[str], Exception | None]:
    """Return what a reader gets, and what it is raised behind that."""
    got: list[str] = []
    try:
        while True:
            got.append(await anext(reader))
    except StopAsyncIteration:
        return got, None
    except Exception as exc:
        return got, exc


def in_thread(call: Callable[[], Any]) -> threading.Thread:
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    return thread


# Text.


async def test_text_that_looks_like_the_end_ends_nothing() -> None:
    callback = Callback()
    for part in (END, "<gra", "phai:END>", "after"):
        callback(part)
    await callback.close()
    tokens = await everything(callback)
    assert tokens == [END, "<gra", "phai:END>", "after", END]
    assert [isinstance(token, SpecialToken) for token in tokens] == [False] * 4 + [True]


async def test_a_special_token_that_is_emitted_is_text() -> None:
    callback = Callback()
    callback(SpecialToken(END, kind="stream_end"))
    await callback.acall(SpecialToken(END, kind="stream_end"))
    await callback.close()
    first, second, end = await everything(callback)
    assert (type(first), type(second)) == (str, str)
    assert isinstance(end, SpecialToken)


async def test_a_node_named_like_the_end_ends_nothing() -> None:
    callback = Callback()
    async with callback.node("END"):
        callback("inside")
    callback("after")
    await callback.close()
    tokens = await everything(callback)
    assert tokens[-2:] == ["after", END]
    assert tokens.count(END) == 1
    special = [token for token in tokens if isinstance(token, SpecialToken)]
    assert [token.node for token in special] == ["END", "END", "END", None]


@pytest.mark.parametrize("token", [3, None, b"bytes", ["a"]], ids=repr)
async def test_what_is_no_text_is_refused(token: Any) -> None:
    callback = Callback()
    with pytest.raises(TypeError, match="a token is a str, not"):
        callback(token)
    with pytest.raises(TypeError, match="a token is a str, not"):
        await callback.acall(token)
    await callback.close()
    assert await everything(callback) == [END]


# Nodes at once.


async def test_parallel_nodes_keep_their_tokens_apart() -> None:
    callback = Callback()

    async def work(name: str) -> None:
        async with callback.node(name):
            for _ in range(5):
                callback(name)
                await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as group:
        for name in ("a", "b", "a"):
            group.start_soon(work, name)
    await callback.close()
    events = [event async for event in callback.events()]
    tokens = [event for event in events if event.type == "token"]
    assert all(event.node == event.token for event in tokens)
    spans = {event.span for event in tokens if event.node == "a"}
    assert len(spans) == 2, "two invocations of a node are two spans"
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert sorted(event.node or "" for event in events if event.type == "node_end") == [
        "a",
        "a",
        "b",
    ]


async def test_threads_of_a_node_belong_to_it() -> None:
    callback = Callback()
    async with callback.node("outer") as span:
        await anyio.to_thread.run_sync(callback, "with the context")
        in_thread(lambda: span("without it")).join(SOON)
    await callback.close()
    tokens = [event async for event in callback.events(types=["token"])]
    assert [(event.token, event.node) for event in tokens[:-1]] == [
        ("with the context", "outer"),
        ("without it", "outer"),
    ]


async def test_a_failing_node_says_so_and_the_exception_goes_on() -> None:
    callback = Callback()

    async def fail() -> None:
        async with callback, callback.node("a"):
            callback("before")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    reader = callback.aiter()
    got, error = await read_to_the_end(reader)
    assert isinstance(error, ZeroDivisionError)
    assert error is callback.error
    assert got[-2:] == ["<graphai:a:end:status=error>", "<graphai:END:status=error>"]
    assert [token async for token in reader] == [], "the error is told once"


# Readers that stop.


@pytest.mark.parametrize("overflow", ["coalesce", "block", "error"])
async def test_a_reader_that_leaves_by_break_holds_up_nobody(overflow: Any) -> None:
    callback = Callback()
    callback("first")
    async for token in callback.aiter(overflow=overflow, max_lag=2, stall_timeout=1_000):
        assert token == "first"
        break
    with anyio.fail_after(SOON):
        for _ in range(50):
            await callback.acall("more")
        await callback.close()
        assert len(await everything(callback)) == 52


async def test_a_producer_that_waits_goes_on_when_the_reader_is_forgotten() -> None:
    callback = Callback()
    readers = [callback.aiter(overflow="block", max_lag=1, stall_timeout=1_000)]
    is_through = anyio.Event()

    async def produce() -> None:
        for _ in range(3):
            await callback.acall("token")
        is_through.set()

    with anyio.fail_after(SOON):
        async with anyio.create_task_group() as group:
            group.start_soon(produce)
            await anyio.wait_all_tasks_blocked()
            assert not is_through.is_set()
            readers.clear()
            await is_through.wait()


async def test_a_reader_that_is_cancelled_loses_nothing_and_ends_nothing() -> None:
    callback = Callback()
    reader = callback.aiter()
    with anyio.move_on_after(0) as scope:
        await anext(reader)
    assert scope.cancelled_caught
    callback("after")
    await callback.close()
    assert [token async for token in reader] == ["after", END]


async def test_a_reader_closed_from_another_task_ends() -> None:
    callback = Callback()
    reader = callback.aiter()
    got: list[str] = []

    async def follow() -> None:
        got.extend([token async for token in reader])

    with anyio.fail_after(SOON):
        async with anyio.create_task_group() as group:
            group.start_soon(follow)
            await anyio.wait_all_tasks_blocked()
            await reader.aclose()
    callback("the run goes on")
    await callback.close()
    assert got == []
    assert await everything(callback) == ["the run goes on", END]


async def test_wait_for_on_a_silent_stream_times_out_and_the_stream_goes_on() -> None:
    callback = Callback()
    reader = callback.aiter()
    with pytest.raises(TimeoutError):
        with anyio.fail_after(0.01):
            await anext(reader)
    assert not callback.is_closed
    callback("late")
    assert await anext(reader) == "late"


async def test_a_frozen_reader_gets_a_gap_that_adds_up() -> None:
    callback = Callback()
    frozen = callback.aiter(overflow="block", max_lag=3, stall_timeout=0.01)
    with anyio.fail_after(SOON):
        for number in range(10):
            await callback.acall(str(number))
        await callback.close()
    got = [token async for token in frozen]
    [gap] = [token for token in got if isinstance(token, SpecialToken) and token.kind == "gap"]
    kept = [token for token in got if not isinstance(token, SpecialToken)]
    assert got[-1] == END
    assert int(gap.params["missed"]) + len(kept) == 10
    assert kept == [str(number) for number in range(10)][-len(kept) :]


async def test_a_reader_with_overflow_error_is_told_and_may_go_on() -> None:
    callback = Callback()
    reader = callback.aiter(overflow="error", max_lag=3)
    for number in range(10):
        callback(str(number))
    with pytest.raises(StreamLagError) as caught:
        await anext(reader)
    assert caught.value.missed == 7
    await callback.close()
    assert [token async for token in reader] == ["7", "8", "9", END]


async def test_one_that_keeps_pace_gets_each_token_one_that_is_behind_gets_them_joined() -> None:
    callback = Callback(token_format="({token})")
    behind, abreast = callback.aiter(max_lag=3), callback.aiter(max_lag=4)
    for number in range(4):
        callback(str(number))
    assert await anext(abreast) == "(0)"
    assert await anext(behind) == "(0)(1)(2)(3)"


async def test_text_of_two_spans_is_not_joined() -> None:
    callback = Callback()
    reader = callback.aiter(max_lag=1)
    callback("a")
    callback("b")
    callback("c", node_name="one")
    callback("d", node_name="one")
    callback("e", node_name="two")
    await callback.close()
    assert [token async for token in reader] == ["ab", "cd", "e", END]


async def test_what_was_dropped_is_a_gap_to_a_late_reader() -> None:
    callback = Callback(history_bytes=10)
    for number in range(100):
        callback(f"{number:02}")
    await callback.close()
    tokens = await everything(callback)
    assert tokens[0] == "<graphai:GAP:missed=95>"
    assert "".join(tokens[1:-1]) == "9596979899"
    events = [event async for event in callback.events()]
    assert (events[0].type, events[0].data, events[0].seq) == ("gap", {"missed": 95}, 95)


# The end.


@pytest.mark.parametrize(
    ("end", "status", "error"),
    [
        (lambda callback: callback.close(), "ok", None),
        (lambda callback: callback.fail(KeyError("x")), "error", KeyError),
        (lambda callback: callback.cancel("enough"), "cancelled", StreamCancelledError),
        (lambda callback: callback.end("timeout", TimeoutError()), "timeout", TimeoutError),
    ],
    ids=["close", "fail", "cancel", "timeout"],
)
async def test_the_first_end_wins(end: Any, status: str, error: type[Exception] | None) -> None:
    callback = Callback()
    callback("token")
    end(callback)
    for late in (callback.close, callback.cancel, lambda: callback.fail(ValueError())):
        await late()
    assert callback.status == status
    text = END if status == "ok" else f"<graphai:END:status={status}>"
    got, raised = await read_to_the_end(callback.aiter())
    assert (None if raised is None else type(raised)) is error
    assert got == ["token", text]
    refusal = StreamCancelledError if status == "cancelled" else StreamClosedError
    for emit in (callback, callback.event, callback.start_node):
        with pytest.raises(refusal):
            emit("late")
    with pytest.raises(refusal):
        await callback.acall("late")


async def test_a_terminal_race_has_one_winner_and_loses_no_token() -> None:
    for _ in range(20):
        callback = Callback()
        accepted: list[int] = []
        barrier = threading.Barrier(2)

        def produce(
            callback: Callback = callback,
            accepted: list[int] = accepted,
            barrier: threading.Barrier = barrier,
        ) -> None:
            barrier.wait(SOON)
            try:
                for number in range(100_000):
                    callback("x")
                    accepted.append(number)
            except (StreamClosedError, StreamCancelledError):
                return

        thread = in_thread(produce)
        barrier.wait(SOON)
        async with anyio.create_task_group() as group:
            for end in (callback.close, callback.cancel, callback.close):
                group.start_soon(_run, end)
            group.start_soon(_run, lambda: callback.fail(ValueError()))  # noqa: B023
        await anyio.to_thread.run_sync(thread.join, SOON)
        tokens = await everything(callback, max_lag=10**6)
        assert len(accepted) == len(tokens) - 1
        assert [token.kind for token in tokens if isinstance(token, SpecialToken)] == ["stream_end"]


async def _run(call: Callable[[], Any]) -> None:
    await anyio.lowlevel.checkpoint()
    await call()


async def test_silence_ends_a_run_that_may_not_be_silent() -> None:
    callback = Callback(idle_timeout=0.02)
    callback("token")
    with anyio.fail_after(SOON):
        got, error = await read_to_the_end(callback.aiter())
    assert got == ["token", "<graphai:END:status=timeout>"]
    assert isinstance(error, TimeoutError)
    assert "0.02 seconds" in str(error)
    assert callback.status == "timeout"


# Threads and loops.


async def test_a_thread_wakes_an_idle_loop() -> None:
    callback = Callback()
    reader = callback.aiter()
    begun = threading.Event()
    emitted: list[float] = []

    def produce() -> None:
        begun.wait(SOON)
        emitted.append(time.monotonic())
        callback("token")

    thread = in_thread(produce)
    with anyio.fail_after(SOON):
        async with anyio.create_task_group() as group:

            async def follow() -> None:
                assert await anext(reader) == "token"

            group.start_soon(follow)
            await anyio.wait_all_tasks_blocked()
            # Nothing else is there to wake the loop: were it not woken, this would time out.
            begun.set()
    await anyio.to_thread.run_sync(thread.join, SOON)


def test_a_loop_that_is_gone_does_no_harm() -> None:
    callback = Callback()
    reader = callback.aiter()

    async def wait_for_ever() -> None:
        # Parked, and left there: this loop is closed around it.
        coroutine = anext(reader).__await__()
        coroutine.send(None)
        waiting.append(coroutine)

    waiting: list[Any] = []
    asyncio.run(wait_for_ever())
    callback("token")
    callback.close()

    async def read_all() -> list[str]:
        return [token async for token in callback.aiter()]

    assert asyncio.run(read_all()) == ["token", END]
    waiting.pop().close()


def test_two_loops_read_one_run() -> None:
    callback = Callback()
    got: list[list[str]] = []

    async def follow() -> None:
        got.append([token async for token in callback.aiter(max_lag=1_000)])

    threads = [
        in_thread(lambda backend=backend: anyio.run(follow, backend=backend))
        for backend in ("asyncio", "trio")
    ]
    for number in range(100):
        callback(str(number))
    callback.close()
    for thread in threads:
        thread.join(SOON)
    assert got == [[*map(str, range(100)), END]] * 2


async def test_a_cancel_stops_a_thread_at_its_next_token() -> None:
    callback = Callback()
    stopped: list[BaseException] = []
    begun = threading.Event()

    def produce() -> None:
        try:
            while True:
                callback("token")
                begun.set()
        except StreamCancelledError as exc:
            stopped.append(exc)

    thread = in_thread(produce)
    await anyio.to_thread.run_sync(begun.wait, SOON)
    await callback.cancel("enough")
    await anyio.to_thread.run_sync(thread.join, SOON)
    assert [str(error) for error in stopped] == ["the run was cancelled: enough"]


async def test_a_thread_waits_for_a_reader_and_the_loop_does_not() -> None:
    callback = Callback()
    reader = callback.aiter(overflow="block", max_lag=2, stall_timeout=1_000)
    for number in range(5):
        callback(f"loop {number}")
    count = callback.last_seq
    thread = in_thread(lambda: [callback(f"thread {number}") for number in range(5)])
    got: list[str] = []
    with anyio.fail_after(SOON):
        while len(got) < 10:
            got.append(await anext(reader))
            assert callback.last_seq <= max(count, reader.position + 2)
    thread.join(SOON)
    assert got == [f"loop {n}" for n in range(5)] + [f"thread {n}" for n in range(5)]


def test_a_thread_reads_a_run() -> None:
    callback = Callback()
    got: list[str] = []
    thread = in_thread(lambda: got.extend(callback.iter_sync()))
    for number in range(200):
        callback(str(number))
    callback.close()
    thread.join(SOON)
    assert "".join(got) == "".join(map(str, range(200))) + END


async def test_a_thread_that_runs_a_loop_may_not_wait_for_tokens() -> None:
    callback = Callback()
    callback("there")
    reader = callback.iter_sync()
    assert next(reader) == "there"
    with pytest.raises(RuntimeError, match=r"use aiter\(\)"):
        next(reader)


async def test_a_burst_of_a_thread_leaves_other_tasks_their_turn() -> None:
    callback = Callback()
    is_over = threading.Event()

    def produce() -> None:
        while not is_over.is_set():
            callback("token")

    thread = in_thread(produce)
    turns = 0

    async def other() -> None:
        nonlocal turns
        while turns < 20:
            await anyio.lowlevel.checkpoint()
            turns += 1

    try:
        with anyio.fail_after(SOON):
            async with anyio.create_task_group() as group:
                group.start_soon(other)
                async for _ in callback.aiter():
                    if turns >= 20:
                        break
    finally:
        is_over.set()
        thread.join(SOON)


async def test_acall_lets_a_reader_run() -> None:
    callback = Callback()
    got: list[str] = []

    async def follow() -> None:
        got.extend([token async for token in callback.aiter()])

    async with anyio.create_task_group() as group:
        group.start_soon(follow)
        seen = []
        for _ in range(1_000):
            await callback.acall("x")
            seen.append(len(got))
        await callback.close()
    assert "".join(got) == "x" * 1_000 + END


# Memory.


def test_a_large_token_makes_room_at_once() -> None:
    callback = Callback(history_bytes=10_000)
    for _ in range(100):
        callback("x" * 9_000)
    log = callback._run.log
    assert len(log) <= 2


def test_a_run_that_nobody_holds_is_freed() -> None:
    from weakref import ref

    callback = Callback()
    reader = callback.aiter(overflow="block")
    callback("token")
    references = [ref(callback), ref(reader)]
    gc.disable()
    try:
        del callback, reader
        assert [one() for one in references] == [None, None]
    finally:
        gc.enable()


# Context.


@pytest.mark.usefixtures("no_run_around")
async def test_a_token_finds_its_run_by_context() -> None:
    emit_token("nobody hears it")
    assert current_callback() is None
    outer, inner = Callback(), Callback()
    async with outer:
        emit_token("outer")
        async with inner, inner.node("deep"):
            emit_token("inner")
            with using(outer):
                emit_token("outer again")
            await anyio.to_thread.run_sync(emit_token, "thread")
        emit_token("and outer")
        assert current_callback() is outer
    assert current_callback() is None
    texts = [event.token async for event in outer.events(types=["token"])][:-1]
    assert texts == ["outer", "outer again", "and outer"]
    said = [(event.token, event.node) async for event in inner.events(types=["token"])][:-1]
    assert said == [("inner", "deep"), ("thread", "deep")]


# A model's stream passed through.


class Chunks:
    """The stream of a client: it says whether it was closed."""

    def __init__(self, *chunks: Any) -> None:
        self.chunks = iter(chunks)
        self.is_closed = False

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        await anyio.lowlevel.checkpoint()
        for chunk in self.chunks:
            return chunk
        raise StopAsyncIteration

    async def close(self) -> None:
        await anyio.lowlevel.checkpoint()
        self.is_closed = True


async def test_a_stream_is_passed_through_and_returned_joined() -> None:
    callback = Callback()
    stream = Chunks({"d": "a"}, {"d": None}, {"d": ""}, {"d": "b"})
    assert await callback.pipe(stream, key=lambda chunk: chunk["d"]) == "ab"
    assert stream.is_closed
    await callback.close()
    assert await everything(callback) == ["a", "b", END]


async def test_a_stream_is_closed_when_the_run_is_cancelled() -> None:
    callback = Callback()
    stream = Chunks("a", "b")
    await callback.cancel()
    with pytest.raises(StreamCancelledError):
        await callback.pipe(stream)
    assert stream.is_closed


async def test_chunks_without_text_are_refused_with_the_remedy() -> None:
    stream = Chunks({"d": "a"})
    with pytest.raises(TypeError, match="give it a key"):
        await Callback().pipe(stream)
    assert stream.is_closed
    with pytest.raises(TypeError, match="an asynchronous iterator, not"):
        await Callback().pipe(["a"])  # type: ignore[arg-type]


# Subclasses, and what stands around.


async def test_a_subclass_may_override_acall() -> None:
    class Shouting(Callback):
        async def acall(self, token: str, node_name: str | None = None) -> None:
            await super().acall(token.upper(), node_name)

        def __len__(self) -> int:
            return 0

    callback = Shouting()
    assert callback
    assert await callback.pipe(Chunks("a")) == "a"
    async with callback.node("n") as span:
        await span.acall("b")
    await callback.close()
    texts = [event.token async for event in callback.events(types=["token"])]
    assert texts[:-1] == ["A", "B"]


async def test_what_acts_at_once_may_be_awaited_or_not(caplog: Any) -> None:
    callback = Callback()
    callback.start_node("a")
    callback("x")
    await callback.end_node(node_name="a")
    done = callback.close()
    await done
    await done
    assert await everything(callback) == [
        "<graphai:a:start>",
        "<graphai:a>",
        "x",
        "<graphai:a:end>",
        END,
    ]
    assert caplog.records == []
    assert logging.getLogger("callbackkit").level == logging.NOTSET
