"""Those who follow a run: everything in order or a gap, the end, the error, and nothing more."""

import asyncio
import threading
import time
import weakref
from collections.abc import Callable
from itertools import chain
from typing import Any

import anyio
import anyio.to_thread
import pytest
from anyio import wait_all_tasks_blocked

from callbackkit import (
    Callback,
    EventReader,
    SpecialToken,
    StreamCancelledError,
    StreamEvent,
    StreamLagError,
    TokenReader,
)
from callbackkit.streaming.readers import SyncTokenReader

on_asyncio = pytest.mark.parametrize("anyio_backend", ["asyncio"])
overflows = pytest.mark.parametrize("overflow", ["coalesce", "block", "error"])

END = "<graphai:END>"


def emitted(*tokens: str, closed: bool = True, **options: Any) -> Callback:
    callback = Callback(**options)
    for token in tokens:
        callback(token)
    if closed:
        callback.close()
    return callback


async def rest_of(reader: Any) -> list[Any]:
    with anyio.fail_after(20):
        return [item async for item in reader]


async def failing(reader: Any) -> tuple[list[Any], Exception]:
    """Return what a reader gives, and what it raises behind that."""
    got: list[Any] = []
    while True:
        try:
            with anyio.fail_after(20):
                got.append(await anext(reader))
        except StopAsyncIteration:
            raise AssertionError("it raised nothing") from None
        except Exception as exc:
            return got, exc


def in_thread(call: Callable[..., Any], *args: Any) -> threading.Thread:
    thread = threading.Thread(target=call, args=args, daemon=True)
    thread.start()
    return thread


def until(holds: Callable[[], bool]) -> None:
    """Return as soon as another thread has made something true."""
    while not holds():
        time.sleep(0)


class Reading:
    """A task that takes one item, and what became of it."""

    def __init__(self, reader: Any) -> None:
        self.reader = reader
        self.got: list[Any] = []
        self.error: BaseException | None = None
        self.scope = anyio.CancelScope()

    async def __call__(self) -> None:
        with self.scope:
            try:
                self.got.append(await anext(self.reader))
            except (Exception, asyncio.CancelledError) as exc:
                self.error = exc
                if not isinstance(exc, Exception):
                    raise


# Everything, in order, from the beginning.


@overflows
async def test_a_reader_gets_everything_in_order_then_the_end_and_no_more(overflow: Any) -> None:
    callback = Callback()
    reader = callback.aiter(overflow=overflow)
    for token in "abc":
        callback(token)
    callback.close()
    assert await rest_of(reader) == ["a", "b", "c", END]
    for _ in range(3):
        with pytest.raises(StopAsyncIteration):
            await anext(reader)


@overflows
async def test_a_reader_that_comes_late_begins_where_the_run_began(overflow: Any) -> None:
    callback = emitted("a", "b")
    assert await rest_of(callback.aiter(overflow=overflow)) == ["a", "b", END]


async def test_readers_take_nothing_from_each_other() -> None:
    callback = emitted("a", "b")
    readers = [callback.aiter() for _ in range(3)]
    assert [await rest_of(reader) for reader in readers] == [["a", "b", END]] * 3


async def test_a_token_that_somebody_waits_for_arrives_at_once() -> None:
    callback = Callback()
    reader = callback.aiter()
    async with anyio.create_task_group() as group:
        for token in "ab":
            reading = Reading(reader)
            group.start_soon(reading)
            await wait_all_tasks_blocked()
            callback(token)
            await wait_all_tasks_blocked()
            assert reading.got == [token]


async def test_the_empty_token_is_a_token() -> None:
    assert await rest_of(emitted("", "").aiter()) == ["", "", END]


async def test_special_tokens_are_told_from_text_by_their_type() -> None:
    callback = Callback()
    with callback.node("n"):
        callback("<graphai:n:end>")
    callback(END)
    callback.close()
    got = await rest_of(callback.aiter())
    assert got == [
        "<graphai:n:start>", "<graphai:n>", "<graphai:n:end>", "<graphai:n:end>", END, END,
    ]  # fmt: skip
    assert [type(item) for item in got] == [SpecialToken] * 2 + [str] + [SpecialToken, str] + [
        SpecialToken
    ]


async def test_a_node_named_end_ends_nothing() -> None:
    callback = Callback()
    with callback.node("END"):
        callback("a")
    callback("b")
    callback.close()
    got = await rest_of(callback.aiter())
    assert [item for item in got if type(item) is str] == ["a", "b"]
    assert [item.kind for item in got if type(item) is not str].count("stream_end") == 1
    assert got.count(END) == 1


async def test_text_is_formatted_in_aiter_and_not_in_events() -> None:
    callback = Callback(token_format="[{token}]")
    callback("a")
    with callback.node("n"):
        callback("b")
    callback.close()
    tokens = [item for item in await rest_of(callback.aiter()) if type(item) is str]
    assert tokens == ["[a]", "[b]"]
    events = await rest_of(callback.events(types=["token"]))
    assert [event.token for event in events] == ["a", "b", END]


# One that is behind.


async def test_text_is_joined_for_one_that_is_more_than_max_lag_behind() -> None:
    callback = emitted(*"abcd", closed=False)
    assert await anext(callback.aiter(max_lag=4)) == "a"
    assert await anext(callback.aiter(max_lag=3)) == "abcd"


async def test_each_token_is_formatted_before_it_is_joined() -> None:
    callback = emitted("a", "b", "c", token_format="[{token}]")
    assert await rest_of(callback.aiter(max_lag=1)) == ["[a][b][c]", END]


async def test_only_adjacent_text_of_one_span_is_joined() -> None:
    callback = Callback()
    callback("a")
    callback("b")
    with callback.node("n") as outer:
        callback("c")
        callback("d")
        with callback.node("n"):
            outer("e")
            callback("f")
    callback.close()
    got = await rest_of(callback.aiter(max_lag=1))
    assert [item for item in got if type(item) is str] == ["ab", "cd", "e", "f"]


async def test_text_that_says_its_node_is_joined_with_more_of_that_node() -> None:
    callback = Callback()
    for node in ["n", "n", "m", "m", None, "m"]:
        callback("a", node_name=node)
    assert [await anext(reader) for reader in [callback.aiter(max_lag=1)] for _ in range(4)] == [
        "aa", "aa", "a", "a",
    ]  # fmt: skip


async def test_one_that_keeps_pace_gets_each_token_by_itself() -> None:
    callback = Callback()
    reader = callback.aiter(max_lag=2)
    got = []
    for number in range(100):
        callback(f"{number}a")
        callback(f"{number}b")
        got += [await anext(reader), await anext(reader)]
    assert got == [f"{number}{letter}" for number in range(100) for letter in "ab"]


async def test_events_are_never_joined() -> None:
    callback = emitted(*"abcdef")
    events = await rest_of(callback.events(max_lag=1))
    assert [event.token for event in events] == [*"abcdef", END]
    assert [event.seq for event in events] == [1, 2, 3, 4, 5, 6, 7]


async def test_one_that_must_not_be_behind_is_told_and_goes_on_with_the_newest() -> None:
    callback = emitted(*"abcdef", closed=False)
    reader = callback.aiter(overflow="error", max_lag=2)
    with pytest.raises(StreamLagError) as caught:
        await anext(reader)
    assert caught.value.missed == reader.missed == 4
    assert [await anext(reader), await anext(reader)] == ["e", "f"]
    callback.close()
    assert await rest_of(reader) == [END]


async def test_the_end_makes_nobody_be_behind() -> None:
    callback = Callback()
    reader = callback.aiter(overflow="error", max_lag=1)
    callback("a")
    callback.close()
    assert await rest_of(reader) == ["a", END]


async def test_one_that_must_not_be_behind_is_told_while_it_waits_too() -> None:
    callback = Callback()
    reading = Reading(callback.aiter(overflow="error", max_lag=1))
    async with anyio.create_task_group() as group:
        group.start_soon(reading)
        await wait_all_tasks_blocked()
        callback("a")
        callback("b")
    assert isinstance(reading.error, StreamLagError)


# Gaps.


@overflows
async def test_what_had_to_be_dropped_is_a_gap_to_whoever_missed_it(overflow: Any) -> None:
    callback = emitted(*map(str, range(10, 30)), history_bytes=4)
    reader = callback.aiter(overflow=overflow)
    gap, *rest = await rest_of(reader)
    assert isinstance(gap, SpecialToken)
    assert gap.kind == "gap"
    assert gap == f"<graphai:GAP:missed={20 - (len(rest) - 1)}>"
    assert reader.missed == int(gap.params["missed"])
    assert rest == [*map(str, range(30 - (len(rest) - 1), 30)), END]


async def test_a_gap_stands_where_something_is_missing() -> None:
    callback = Callback(history_bytes=1)
    reader = callback.aiter()
    callback("a")
    assert await anext(reader) == "a"
    for token in "bcde":
        callback(token)
    assert [await anext(reader), await anext(reader)] == ["<graphai:GAP:missed=3>", "e"]


async def test_an_event_for_a_gap_has_the_number_of_the_last_one_missed() -> None:
    callback = emitted(*"abcd", closed=False, history_bytes=1)
    reader = callback.events()
    gap, event = await anext(reader), await anext(reader)
    assert (gap.type, gap.seq, gap.data) == ("gap", 3, {"missed": 3})
    assert gap.params == {"missed": "3"}
    assert isinstance(gap.token, SpecialToken)
    assert (event.seq, event.token) == (4, "d")


async def test_a_reader_that_missed_nothing_has_missed_nothing() -> None:
    reader = emitted("a").aiter()
    await rest_of(reader)
    assert reader.missed == 0


# Filters.


def tree() -> Callback:
    callback = Callback()
    callback("a")
    with callback.node("n"):
        callback("b")
        callback.event("custom", 1)
    with callback.node("m"):
        callback("c")
    callback.close()
    return callback


@pytest.mark.parametrize(
    ("types", "nodes", "numbers"),
    [
        (None, None, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]),
        (["token"], None, [1, 4, 9, 11]),
        ({"token", "custom"}, None, [1, 4, 5, 9, 11]),
        (None, ("n",), [2, 3, 4, 5, 6, 11]),
        (["token"], ["m"], [9, 11]),
        ([], None, [11]),
        (None, [], [11]),
        (["unheard of"], None, [11]),
    ],
)
async def test_events_are_filtered_but_for_the_end(types: Any, nodes: Any, numbers: Any) -> None:
    events = await rest_of(tree().events(types=types, nodes=nodes))
    assert [event.seq for event in events] == numbers
    assert events[-1].type == "stream_end"


async def test_a_gap_is_shown_whatever_the_filter() -> None:
    callback = emitted(*"abcd", history_bytes=1)
    assert [event.type async for event in callback.events(types=["custom"])] == [
        "gap", "stream_end",
    ]  # fmt: skip


async def test_events_go_on_behind_a_number_and_filter_there_too() -> None:
    callback = tree()
    assert [event.seq async for event in callback.events(after=4)] == [5, 6, 7, 8, 9, 10, 11]
    assert [event.seq async for event in callback.events(after=4, nodes=["m"])] == [7, 8, 9, 10, 11]
    assert [event.seq async for event in callback.events(after=11)] == []


async def test_what_a_filter_hides_does_not_wake_its_reader_up_for_good() -> None:
    callback = Callback()
    reading = Reading(callback.events(types=["custom"]))
    async with anyio.create_task_group() as group:
        group.start_soon(reading)
        for _ in range(3):
            await wait_all_tasks_blocked()
            callback("a")
        await wait_all_tasks_blocked()
        assert not reading.got
        callback.event("custom", 1)
    assert [event.seq for event in reading.got] == [4]


# The end, and the error behind it.


@overflows
@pytest.mark.parametrize("kind", ["aiter", "events", "batches"])
async def test_behind_the_end_the_error_is_raised_once(overflow: Any, kind: str) -> None:
    callback = emitted("a", closed=False)
    error = OSError("gone")
    callback.fail(error)
    reader: Any = callback.events(overflow=overflow) if kind == "events" else None
    reader = reader or callback.aiter(overflow=overflow)
    iterator = reader.batches() if kind == "batches" else reader
    got, raised = await failing(iterator)
    assert raised is error
    assert "status=error" in str(got[-1])
    for _ in range(2):
        with pytest.raises(StopAsyncIteration):
            await anext(iterator)


async def test_every_reader_is_raised_the_error() -> None:
    callback = Callback()
    callback.cancel("enough")
    for reader in (callback.aiter(), callback.aiter(), callback.events()):
        got, raised = await failing(reader)
        assert len(got) == 1
        assert isinstance(raised, StreamCancelledError)
        assert raised.reason == "enough"


async def test_errors_can_be_left_out() -> None:
    callback = emitted("a", closed=False)
    callback.fail(OSError("gone"))
    assert await rest_of(callback.aiter(raise_errors=False)) == ["a", "<graphai:END:status=error>"]
    assert [event.status async for event in callback.events(raise_errors=False)] == [None, "error"]


async def test_an_error_that_looks_like_the_end_of_an_iteration_is_none() -> None:
    callback = Callback()
    callback.fail(StopAsyncIteration())
    _, raised = await failing(callback.aiter())
    assert isinstance(raised, RuntimeError)


async def test_who_waits_is_told_the_end_and_the_error() -> None:
    callback = Callback()
    got: list[Any] = []

    async def read() -> None:
        items, error = await failing(callback.aiter())
        got.extend([*items, error])

    async with anyio.create_task_group() as group:
        group.start_soon(read)
        await wait_all_tasks_blocked()
        callback.fail(error := OSError("gone"))
    assert got == ["<graphai:END:status=error>", error]


# Leaving.


async def test_leaving_with_break_neither_ends_nor_holds_the_run() -> None:
    callback = Callback()
    callback("a")
    async for _ in callback.aiter():
        break
    callback("b")
    assert callback.status is None
    callback.close()
    assert await rest_of(callback.aiter()) == ["a", "b", END]


async def test_a_reader_that_nobody_holds_is_freed_at_once() -> None:
    callback = Callback()
    reader = callback.aiter(overflow="block")
    gone = weakref.ref(reader)
    del reader
    assert gone() is None


@pytest.mark.parametrize("kind", ["aiter", "events"])
async def test_a_waiting_reader_that_is_cancelled_passes_it_on_and_misses_nothing(
    kind: str,
) -> None:
    callback = Callback()
    reader: Any = getattr(callback, kind)()
    reading = Reading(reader)
    async with anyio.create_task_group() as group:
        group.start_soon(reading)
        await wait_all_tasks_blocked()
        reading.scope.cancel()
    assert reading.scope.cancelled_caught
    assert not reading.got
    assert not callback._log._parked
    callback("a")
    item = await anext(reader)
    assert getattr(item, "token", item) == "a"


@on_asyncio
async def test_a_token_that_comes_with_the_cancellation_is_not_lost() -> None:
    callback = Callback()
    reader = callback.aiter()
    task = asyncio.ensure_future(anext(reader))
    await wait_all_tasks_blocked()
    callback("a")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await anext(reader) == "a"


@on_asyncio
async def test_waiting_with_a_timeout_for_a_silent_stream_raises_and_the_stream_goes_on() -> None:
    callback = Callback()
    reader = callback.aiter()
    for _ in range(2):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(reader), 0.01)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(rest_of(reader), 0.01)
    assert callback.status is None
    callback("a")
    assert await asyncio.wait_for(anext(reader), 10) == "a"


@overflows
@pytest.mark.parametrize("where", ["task", "thread"])
async def test_a_reader_that_waits_is_ended_by_closing_it_elsewhere(
    overflow: Any, where: str
) -> None:
    callback = Callback()
    reader = callback.aiter(overflow=overflow)
    reading = Reading(reader)
    async with anyio.create_task_group() as group:
        group.start_soon(reading)
        await wait_all_tasks_blocked()
        if where == "task":
            await reader.aclose()
        else:
            await anyio.to_thread.run_sync(reader.close)
    assert isinstance(reading.error, StopAsyncIteration)
    callback("a")
    assert callback.status is None


async def test_a_closed_reader_gives_nothing_more_not_even_what_it_took_out() -> None:
    callback = emitted(*"abc")
    for reader in (callback.aiter(), callback.events()):
        await anext(reader)
        reader.close()
        reader.close()
        assert await rest_of(reader) == []
        assert "closed" in repr(reader)


async def test_a_closed_reader_is_not_raised_the_error() -> None:
    callback = Callback()
    reader = callback.aiter()
    callback.fail(OSError("gone"))
    async with reader as same:
        assert same is reader
    assert await rest_of(reader) == []


async def test_closing_a_reader_wakes_the_others_for_nothing() -> None:
    callback = Callback()
    one, other = callback.aiter(), Reading(callback.aiter())
    async with anyio.create_task_group() as group:
        group.start_soon(other)
        await wait_all_tasks_blocked()
        one.close()
        await wait_all_tasks_blocked()
        assert not other.got
        callback("a")
    assert other.got == ["a"]


async def test_a_second_task_on_one_reader_is_refused_while_the_first_waits() -> None:
    """It would take what the first one waits for, and the first one would wait for ever."""
    callback = Callback()
    reader = callback.aiter()
    reading = Reading(reader)
    async with anyio.create_task_group() as group:
        group.start_soon(reading)
        await wait_all_tasks_blocked()
        for iterator in (reader, reader.batches()):
            with pytest.raises(RuntimeError, match="a reader of its own"):
                await anext(iterator)
        callback("a")
    assert reading.got == ["a"]
    callback("b")
    assert await anext(reader) == "b"


# Batches.


@overflows
async def test_batches_hold_everything_and_are_never_empty(overflow: Any) -> None:
    callback = Callback()
    reader = callback.aiter(overflow=overflow)
    batches: list[list[str]] = []

    async def read() -> None:
        batches.extend(await rest_of(reader.batches()))

    async with anyio.create_task_group() as group:
        group.start_soon(read)
        await wait_all_tasks_blocked()
        for number in range(10):
            callback(f"{number}a")
            callback(f"{number}b")
            await wait_all_tasks_blocked()
        callback.close()
    assert all(batches)
    tokens = [f"{number}{letter}" for number in range(10) for letter in "ab"]
    assert list(chain(*batches)) == [*tokens, END]


async def test_batches_and_single_items_of_one_reader_take_turns() -> None:
    reader = emitted(*"abcd").aiter()
    assert await anext(reader) == "a"
    assert await anext(reader.batches()) == ["b", "c", "d", END]
    with pytest.raises(StopAsyncIteration):
        await anext(reader.batches())


# Other tasks get their turn.


@pytest.mark.parametrize(
    "follow",
    [
        lambda callback: callback.aiter(max_lag=10**9),
        lambda callback: callback.aiter(overflow="block", max_lag=10**9),
        lambda callback: callback.events(),
        lambda callback: callback.events(types=[]),
        lambda callback: callback.aiter(max_lag=10**9).batches(),
    ],
    ids=["aiter", "block", "events", "filtered", "batches"],
)
async def test_a_reader_with_much_to_read_lets_other_tasks_run(follow: Any) -> None:
    callback = emitted(*["ab"] * 20_000, history_bytes=10**6)
    steps = 0
    is_over = False

    async def step() -> None:
        nonlocal steps
        while not is_over:
            steps += 1
            await anyio.sleep(0)

    async with anyio.create_task_group() as group:
        group.start_soon(step)
        await rest_of(follow(callback))
        is_over = True
    assert steps >= 10


# Blocking readers.


async def test_producers_wait_for_a_blocking_reader_that_is_behind() -> None:
    callback = Callback()
    reader = callback.aiter(overflow="block", max_lag=2)
    sent: list[int] = []

    async def produce() -> None:
        for number in range(5):
            await callback.acall(str(number))
            sent.append(number)

    async with anyio.create_task_group() as group:
        group.start_soon(produce)
        await wait_all_tasks_blocked()
        assert sent == [0, 1]
        for number in range(5):
            assert await anext(reader) == str(number)
            await wait_all_tasks_blocked()
            assert len(sent) == min(number + 3, 5)


async def test_a_thread_waits_for_a_blocking_reader_that_is_behind() -> None:
    callback = Callback()
    reader = callback.aiter(overflow="block", max_lag=2)
    sent: list[int] = []

    def produce() -> None:
        for number in range(100):
            callback(str(number))
            sent.append(number)
        callback.close()

    thread = in_thread(produce)
    until(lambda: len(sent) == 2)
    until(lambda: bool(callback._run._blocked))
    assert len(sent) == 2
    assert await rest_of(reader) == [*map(str, range(100)), END]
    thread.join(10)
    assert reader.missed == 0


@pytest.mark.parametrize("how", ["break", "close", "end"])
async def test_a_blocking_reader_that_leaves_frees_producers_at_once(how: str) -> None:
    callback = Callback()
    reader: Any = callback.aiter(overflow="block", max_lag=1)
    callback("a")
    refused: list[Exception] = []

    async def produce() -> None:
        try:
            await callback.acall("b")
        except RuntimeError as exc:
            refused.append(exc)

    def produce_in_thread() -> None:
        anyio.run(produce)

    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(produce)
            group.start_soon(anyio.to_thread.run_sync, produce_in_thread)
            await wait_all_tasks_blocked()
            until(lambda: len(callback._run._blocked) == 2)
            if how == "close":
                reader.close()
            elif how == "end":
                callback.close()
            else:
                reader = None
    assert len(refused) == (2 if how == "end" else 0)


async def test_what_a_blocking_reader_does_not_show_makes_room_too() -> None:
    """Or its producers would wait for one that waits for them."""
    callback = Callback()
    readers = [
        callback.events(types=["custom"], overflow="block", max_lag=1),
        callback.events(nodes=["n"], overflow="block", max_lag=1),
    ]
    got: list[Any] = []

    async def read(reader: Any) -> None:
        got.append(await rest_of(reader))

    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            for reader in readers:
                group.start_soon(read, reader)
            await wait_all_tasks_blocked()
            for number in range(10):
                await callback.acall(str(number))
            callback.close()
    assert [len(items) for items in got] == [1, 1]


async def test_a_frozen_blocking_reader_is_given_up_and_gets_a_gap() -> None:
    callback = Callback()
    frozen = callback.aiter(overflow="block", max_lag=2, stall_timeout=0.02)
    with anyio.fail_after(20):
        for number in range(50):
            await callback.acall(str(number))
        await anyio.to_thread.run_sync(callback, "thread")
    callback.close()
    assert frozen.missed == 0
    assert await rest_of(frozen) == ["<graphai:GAP:missed=49>", "49", "thread", END]
    assert frozen.missed == 49


async def test_a_reader_that_was_given_up_is_waited_for_again_once_it_reads() -> None:
    callback = Callback()
    reader = callback.aiter(overflow="block", max_lag=1, stall_timeout=0.02)
    callback("a")
    await callback.acall("b")
    assert [await anext(reader), await anext(reader)] == ["<graphai:GAP:missed=1>", "b"]
    assert not reader.holds_up()
    callback("c")
    assert reader.holds_up()


async def test_calls_in_the_thread_of_the_loop_never_wait() -> None:
    callback = Callback()
    reader = callback.aiter(overflow="block", max_lag=1)
    for number in range(10):
        callback(str(number))
    callback.close()
    assert await rest_of(reader) == [*map(str, range(10)), END]


async def test_markers_and_events_wait_for_nobody() -> None:
    callback = Callback()
    reader = callback.aiter(overflow="block", max_lag=1)
    with anyio.fail_after(10):
        async with callback.node("n"):
            callback.event("custom")
        await callback.close()
    assert reader.lag == 5


# In a thread.


@overflows
def test_a_thread_reads_everything_and_the_end(overflow: Any) -> None:
    callback = Callback()
    reader = callback.iter_sync(overflow=overflow, max_lag=100)
    got: list[str] = []
    thread = in_thread(got.extend, reader)
    for number in range(50):
        callback(str(number))
    callback.close()
    thread.join(10)
    assert got == [*map(str, range(50)), END]
    with pytest.raises(StopIteration):
        next(reader)


def test_a_thread_that_waits_is_woken_by_each_token() -> None:
    callback = Callback()
    reader = callback.iter_sync()
    got: list[str] = []

    def read() -> None:
        got.extend(reader)

    thread = in_thread(read)
    for token in "ab":
        until(lambda: bool(callback._log._parked))
        callback(token)
        until(lambda token=token: got[-1:] == [token])  # type: ignore[misc]
    until(lambda: bool(callback._log._parked))
    reader.close()
    thread.join(10)
    assert got == ["a", "b"]


def test_a_thread_is_raised_the_error_once() -> None:
    callback = emitted("a", closed=False)
    callback.fail(error := OSError("gone"))
    with callback.iter_sync() as reader:
        assert [next(reader), next(reader)] == ["a", "<graphai:END:status=error>"]
        with pytest.raises(OSError, match="gone") as caught:
            next(reader)
        assert caught.value is error
        assert list(reader) == []
    assert list(callback.iter_sync(raise_errors=False)) == ["a", "<graphai:END:status=error>"]


def test_a_reader_in_a_thread_is_closed_by_its_block() -> None:
    callback = emitted("a", "b")
    with callback.iter_sync() as reader:
        next(reader)
    assert list(reader) == []


def test_a_thread_makes_room_as_it_reads() -> None:
    callback = Callback()
    reader = callback.iter_sync(overflow="block", max_lag=1)
    got: list[str] = []
    thread = in_thread(got.extend, reader)
    for number in range(100):
        callback(str(number))
    callback.close()
    thread.join(10)
    assert got == [*map(str, range(100)), END]


def test_a_thread_ends_a_run_that_is_silent_too_long() -> None:
    callback = Callback(idle_timeout=0.02)
    got: list[str] = []
    with pytest.raises(TimeoutError, match=r"0\.02 seconds"):
        got.extend(callback.iter_sync())
    assert callback.status == "timeout"
    [end] = callback.iter_sync(raise_errors=False)
    assert end == "<graphai:END:status=timeout>"


async def test_a_thread_of_an_event_loop_reads_what_is_there_but_must_not_wait() -> None:
    callback = emitted("a", "b", closed=False)
    reader = callback.iter_sync()
    assert [next(reader), next(reader)] == ["a", "b"]
    with pytest.raises(RuntimeError, match=r"use aiter\(\)"):
        next(reader)
    callback.close()
    assert list(reader) == [END]


# Silence.


@pytest.mark.parametrize("kind", ["aiter", "events"])
async def test_a_run_that_is_silent_too_long_is_ended_by_whoever_waits(kind: str) -> None:
    callback = Callback(idle_timeout=0.02)
    callback("a")
    got, raised = await failing(getattr(callback, kind)())
    assert isinstance(raised, TimeoutError)
    assert len(got) == 2
    assert callback.status == "timeout"
    assert callback.error is raised


async def test_a_run_that_nobody_waits_for_may_be_silent() -> None:
    callback = Callback(idle_timeout=0.001)
    await anyio.sleep(0.01)
    callback("a")
    assert callback.status is None


async def test_tokens_put_the_end_of_patience_off() -> None:
    callback = Callback(idle_timeout=0.5)
    reader = callback.aiter()

    async def produce() -> None:
        for number in range(8):
            await anyio.sleep(0.1)
            callback(str(number))
        callback.close()

    async with anyio.create_task_group() as group:
        group.start_soon(produce)
        assert await rest_of(reader) == [*map(str, range(8)), END]


async def test_a_reader_with_an_idle_timeout_is_cancelled_and_closed_as_others_are() -> None:
    callback = Callback(idle_timeout=1_000)
    reader = callback.aiter()
    for end in ("cancel", "close"):
        reading = Reading(reader)
        async with anyio.create_task_group() as group:
            group.start_soon(reading)
            await wait_all_tasks_blocked()
            if end == "cancel":
                reading.scope.cancel()
            else:
                reader.close()
        assert not reading.got
    assert not callback._log._parked
    assert callback.status is None


# Loops and threads.


async def test_a_thread_wakes_an_idle_loop_at_once() -> None:
    """Not at the next timer of the loop: there is none here."""
    callback = Callback()
    reader = callback.aiter()
    seen = threading.Event()
    times: list[float] = []

    def produce() -> None:
        for number in range(20):
            until(lambda: bool(callback._log._parked))
            begun = time.perf_counter()
            callback(str(number))
            assert seen.wait(10)
            times.append(time.perf_counter() - begun)
            seen.clear()
        callback.close()

    thread = in_thread(produce)
    with anyio.fail_after(20):
        async for _ in reader:
            seen.set()
    thread.join(10)
    # The best of them: a machine under load delays any single one.
    assert min(times) < 0.05


@pytest.mark.parametrize("kind", ["aiter", "events"])
def test_a_loop_that_is_gone_disturbs_nobody(kind: str) -> None:
    """It was closed while its reader waited, as when a program ends."""
    callback = Callback()
    reader: Any = getattr(callback, kind)()
    loop = asyncio.new_event_loop()
    task = loop.create_task(anext(reader))
    loop.run_until_complete(asyncio.sleep(0))
    assert len(callback._log._parked) == 1
    loop.close()
    callback("a")
    callback.close()
    assert list(callback.iter_sync()) == ["a", END]
    assert not task.done()
    # Or asyncio would complain of it.
    task._log_destroy_pending = False  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "backends", [("asyncio", "asyncio"), ("asyncio", "trio"), ("trio", "trio")], ids="-".join
)
def test_two_loops_in_two_threads_follow_one_run(backends: tuple[str, str]) -> None:
    callback = Callback(history_bytes=10**6)
    readers = [callback.aiter(max_lag=10**6), callback.aiter(max_lag=10**6)]
    got: list[list[str]] = [[], []]

    async def read(place: int) -> None:
        got[place] = await rest_of(readers[place])

    threads = [
        in_thread(lambda place=place: anyio.run(read, place, backend=backends[place]))
        for place in range(2)
    ]
    for number in range(2_000):
        callback(str(number))
    callback.close()
    for thread in threads:
        thread.join(20)
    assert got[0] == got[1] == [*map(str, range(2_000)), END]


@on_asyncio
async def test_a_reader_may_go_on_in_another_loop() -> None:
    callback = Callback()
    reader = callback.aiter()
    got: list[str] = []

    async def read() -> None:
        got.append(await anext(reader))

    for backend in ("asyncio", "trio", "asyncio"):
        thread = in_thread(lambda backend=backend: anyio.run(read, backend=backend))
        await anyio.to_thread.run_sync(until, lambda: bool(callback._log._parked))
        callback(backend)
        await anyio.to_thread.run_sync(thread.join, 10)
    reading = Reading(reader)
    async with anyio.create_task_group() as group:
        group.start_soon(reading)
        await wait_all_tasks_blocked()
        callback("here")
    assert got + reading.got == ["asyncio", "trio", "asyncio", "here"]


# What they look like.


async def test_readers_say_where_they_are() -> None:
    callback = emitted(*"abc", closed=False)
    reader = callback.aiter()
    assert (reader.position, reader.lag) == (0, 3)
    await anext(reader)
    assert (reader.position, reader.lag) == (1, 2)
    assert repr(reader) == "<TokenReader at 1, 2 behind, missed 0>"
    reader.close()
    assert repr(reader) == "<TokenReader closed, 0 behind, missed 0>"


def test_readers_have_the_types_that_are_documented() -> None:
    callback = Callback()
    assert type(callback.aiter()) is TokenReader
    assert type(callback.events()) is EventReader
    assert type(callback.iter_sync()) is SyncTokenReader


async def test_an_event_reader_gives_events() -> None:
    assert await rest_of(emitted("a").events(types=["token"], nodes=None)) == [
        StreamEvent(1, "token", "a"),
        StreamEvent(2, "stream_end", END, status="ok"),
    ]
