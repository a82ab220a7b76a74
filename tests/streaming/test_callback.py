"""The stream object of a run: feeding it, its nodes, and its one end."""

import asyncio
import contextvars
import gc
import threading
import tracemalloc
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from itertools import count
from typing import Any, Self

import anyio
import anyio.to_thread
import pytest
import trio.testing

from callbackkit import (
    Callback,
    SpecialToken,
    StreamCancelledError,
    StreamClosedError,
    emit_token,
)
from callbackkit.streaming.callback import current_callback, using

on_asyncio = pytest.mark.parametrize("anyio_backend", ["asyncio"])

END = "<graphai:END>"


def read(callback: Callback) -> list[str]:
    """Return what a run that has ended gives its readers."""
    return list(callback.iter_sync(max_lag=10**9, raise_errors=False))


def told(callback: Callback) -> list[tuple[Any, ...]]:
    """Return type, text, node and span of each entry; the run may go on."""
    reader = callback.events(raise_errors=False)
    events = []
    while reader.lag:
        events.append(at_once(reader.__anext__()))
    return [(event.type, event.token, event.node, event.span) for event in events]


def texts(callback: Callback) -> list[tuple[Any, ...]]:
    """Return text, node and span of each ordinary token."""
    return [entry[1:] for entry in told(callback) if entry[0] == "token"]


def at_once(awaitable: Any) -> Any:
    try:
        awaitable.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("it waits")


def in_threads(*calls: Callable[[], object]) -> None:
    """Run each call in a thread, all let go at once, and wait for all of them."""
    gate = threading.Barrier(len(calls))

    def run(call: Callable[[], object]) -> None:
        gate.wait(10)
        call()

    threads = [threading.Thread(target=run, args=(call,), daemon=True) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()


# What it is.


def test_a_callback_says_how_it_was_made() -> None:
    callback = Callback("me", "[{identifier}|{token}|{params}]", "<<{token}>>")
    assert callback.identifier == "me"
    assert callback.special_token_format == "[{identifier}|{token}|{params}]"
    assert callback.token_format == "<<{token}>>"
    assert callback.format.special("stream_end") == "[me|END]"


def test_a_run_has_a_name_that_nobody_can_guess() -> None:
    callback = Callback()
    assert callback.run_id == callback.run_id
    assert len(callback.run_id) == 32
    assert int(callback.run_id, 16) >= 0
    assert callback.run_id != Callback().run_id


def test_all_threads_learn_the_same_name() -> None:
    callback = Callback()
    names: list[str] = []
    in_threads(*[lambda: names.append(callback.run_id)] * 8)
    assert len(set(names)) == 1


def test_a_callback_tells_its_state() -> None:
    callback = Callback()
    assert (callback.status, callback.is_closed, callback.error) == (None, False, None)
    assert repr(callback) == "<Callback running, 0 entries>"
    callback("a")
    callback.close()
    assert (callback.status, callback.is_closed, callback.error) == ("ok", True, None)
    assert (callback.last_seq, repr(callback)) == (2, "<Callback ok, 2 entries>")


def test_a_callback_is_true_whatever_a_subclass_counts() -> None:
    class Counting(Callback):
        def __len__(self) -> int:
            return 0

    assert Callback()
    assert Counting()


@pytest.mark.parametrize(
    ("legacy", "end"), [(False, "<graphai:END>"), (True, "<graphai:END:>")], ids=["ours", "legacy"]
)
def test_empty_params_may_be_written_as_graphai_does(legacy: bool, end: str) -> None:
    callback = Callback(legacy_empty_params=legacy)
    callback.close()
    assert read(callback) == [end]
    assert callback.format.legacy_empty_params is legacy


# Bad arguments.


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"history_bytes": 0}, ValueError, "history_bytes must be at least 1, not 0"),
        ({"history_bytes": 1.5}, TypeError, "history_bytes must be an int, not 1.5"),
        ({"history_bytes": True}, TypeError, "history_bytes must be an int, not True"),
        ({"idle_timeout": 0}, ValueError, "idle_timeout must be more than 0 seconds, not 0"),
        ({"idle_timeout": float("nan")}, ValueError, "idle_timeout must be more than 0"),
        ({"idle_timeout": "1"}, TypeError, "idle_timeout must be a number of seconds, not '1'"),
        ({"idle_timeout": True}, TypeError, "idle_timeout must be a number of seconds, not True"),
        ({"special_token_format": "<{identifier}>"}, ValueError, "token"),
        ({"token_format": "no token"}, ValueError, "token"),
    ],
)
def test_bad_options_are_refused_by_name(options: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        Callback(**options)


@pytest.mark.parametrize("method", ["aiter", "events", "iter_sync"])
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"overflow": "drop"}, ValueError, "overflow must be one of coalesce, block, error"),
        ({"overflow": []}, ValueError, "overflow must be one of"),
        ({"max_lag": 0}, ValueError, "max_lag must be at least 1, not 0"),
        ({"max_lag": None}, TypeError, "max_lag must be an int, not None"),
        ({"stall_timeout": -1}, ValueError, "stall_timeout must be more than 0 seconds, not -1"),
        ({"stall_timeout": None}, TypeError, "stall_timeout must be a number of seconds, not None"),
    ],
)
def test_bad_reader_options_are_refused_by_name(
    method: str, options: Any, error: Any, message: str
) -> None:
    with pytest.raises(error, match=message):
        getattr(Callback(), method)(**options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"after": -1}, ValueError, "after must be 0 to 1, the newest entry, not -1"),
        ({"after": 2}, ValueError, "after must be 0 to 1, the newest entry, not 2"),
        ({"after": "1"}, TypeError, "after is the number of an event, not '1'"),
        ({"after": True}, TypeError, "after is the number of an event, not True"),
        ({"types": "token"}, TypeError, r"types is a collection of names: \['token'\]"),
        ({"nodes": "n"}, TypeError, r"nodes is a collection of names: \['n'\]"),
        ({"types": 1}, TypeError, "types must be a collection of str, not 1"),
        ({"nodes": [1]}, TypeError, r"nodes must be a collection of str, not \[1\]"),
    ],
)
def test_bad_filters_are_refused_by_name(options: Any, error: Any, message: str) -> None:
    callback = Callback()
    callback("a")
    with pytest.raises(error, match=message):
        callback.events(overflow="block", **options)
    assert not callback._run.has_blockers


@pytest.mark.parametrize("token", [None, 1, b"a", ["a"]], ids=repr)
async def test_what_is_no_text_is_no_token(token: Any) -> None:
    callback = Callback()
    for _ in range(2):
        with pytest.raises(TypeError, match="a token is a str, not"):
            callback(token)
        with pytest.raises(TypeError, match="a token is a str, not"):
            await callback.acall(token)
        callback.events(overflow="block").close()
    assert callback.last_seq == 0


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda callback: callback("a", node_name=1), TypeError, "node_name must be a str, not 1"),
        (lambda callback: callback.start_node(""), ValueError, "name"),
        (lambda callback: callback.start_node(1), TypeError, "name"),
        (lambda callback: callback.node("").__enter__(), ValueError, "name"),
        (lambda callback: callback.end_node("n"), ValueError, r"end_node\('n'\): no node of that"),
        (lambda callback: callback.end_node("n", status="bad"), ValueError, "status must be one"),
        (lambda callback: callback.event(""), TypeError, "type of an event is a non-empty str"),
        (lambda callback: callback.event(1), TypeError, "type of an event is a non-empty str"),
        (lambda callback: callback.event("token"), ValueError, "'token' is a type of the stream"),
        (lambda callback: callback.event("gap"), ValueError, "'gap' is a type of the stream"),
        (lambda callback: callback.fail("why"), TypeError, r"fail\(\) takes an exception, not 'w"),
        (
            lambda callback: callback.fail(OSError),
            TypeError,
            r"fail\(\) takes an exception, not <c",
        ),
        (lambda callback: callback.end("done"), ValueError, "status must be one of ok, error, can"),
        (lambda callback: callback.end("error"), ValueError, "'error' can't have error=None"),
        (lambda callback: callback.end("ok", OSError()), ValueError, "'ok' can't have error=OSEr"),
        (lambda callback: callback.node("n")("a"), RuntimeError, "span of 'n' is not open yet"),
    ],
    ids=count(),
)
def test_misuse_is_refused_by_name_and_changes_nothing(call: Any, error: Any, message: Any) -> None:
    callback = Callback()
    with pytest.raises(error, match=message):
        call(callback)
    assert (callback.last_seq, callback.status) == (0, None)
    assert not callback._open


# Feeding it.


async def test_tokens_come_from_calls_awaited_or_not() -> None:
    callback = Callback()
    callback("a")
    callback(token="b", node_name=None)
    await callback.acall("c")
    await callback.acall(token="d", node_name=None)
    await callback.close()
    assert read(callback) == ["a", "b", "c", "d", END]


def test_a_special_token_that_is_emitted_is_text() -> None:
    callback = Callback()
    callback(callback.format.special("stream_end"))
    callback.close()
    token, end = read(callback)
    assert (token, type(token)) == (END, str)
    assert isinstance(end, SpecialToken)


def test_a_token_of_a_class_of_its_own_is_emitted_as_text() -> None:
    class Text(str):
        __slots__ = ("held",)

        def __str__(self) -> str:
            raise AssertionError

    callback = Callback()
    callback(Text("a"))
    callback.close()
    assert [type(token) for token in read(callback)] == [str, SpecialToken]


async def test_an_awaited_token_lets_other_tasks_run_every_now_and_then() -> None:
    callback = Callback()
    steps = 0

    async def step() -> None:
        nonlocal steps
        while not callback.is_closed:
            steps += 1
            await anyio.sleep(0)

    async with anyio.create_task_group() as group:
        group.start_soon(step)
        await anyio.sleep(0)
        before = steps
        for _ in range(640):
            await callback.acall("a")
        await callback.close()
    assert steps - before >= 5


async def test_awaited_tokens_can_be_cancelled() -> None:
    callback = Callback()
    with anyio.CancelScope() as scope:
        scope.cancel()
        for _ in range(1_000):
            await callback.acall("a")
    assert scope.cancelled_caught
    assert 0 < callback.last_seq < 1_000


@pytest.mark.parametrize("is_plain", [True, False])
async def test_after_the_end_every_way_in_is_closed(is_plain: bool) -> None:
    callback = Callback()
    with callback.node("n") as span:
        pass
    if is_plain:
        callback = Callback()
    callback.close()
    for call in ways_in(callback):
        with pytest.raises(StreamClosedError, match="the stream has ended"):
            await call()
    if not is_plain:
        with pytest.raises(StreamClosedError):
            span("a")
    assert read(callback)[-1] == END
    assert read(callback).count(END) == 1


async def test_after_a_cancellation_every_way_in_tells_of_it() -> None:
    callback = Callback()
    callback.cancel("enough")
    for call in ways_in(callback):
        with pytest.raises(StreamCancelledError, match="enough"):
            await call()
    assert callback.last_seq == 1


def ways_in(callback: Callback) -> list[Callable[[], Awaitable[Any]]]:
    async def awaited(call: Callable[..., Any], *args: Any) -> None:
        call(*args)

    async def piped() -> AsyncIterator[str]:
        yield "a"

    def inactive() -> None:
        with using(callback):
            span = callback.node("n", active=False)
            with span:
                span("a")

    return [
        partial(awaited, callback, "a"),
        partial(awaited, callback, "a", "n"),
        partial(callback.acall, "a"),
        partial(callback.acall, "a", "n"),
        partial(awaited, callback.start_node, "n"),
        partial(awaited, callback.start_node, "n", False),
        partial(awaited, callback.node("n").__enter__),
        partial(awaited, inactive),
        partial(awaited, callback.event, "custom"),
        lambda: callback.pipe(piped()),
    ]


def test_an_inactive_node_that_still_runs_learns_of_the_end() -> None:
    callback = Callback()
    with callback.node("n", active=False):
        callback("hidden")
        callback.cancel()
        for call in (lambda: callback("a"), lambda: callback.event("custom")):
            with pytest.raises(StreamCancelledError):
                call()


# Memory.


@pytest.mark.parametrize("is_plain", [True, False])
async def test_an_hour_of_tokens_that_nobody_reads_stays_in_bounds(is_plain: bool) -> None:
    """At 100 tokens a second."""
    callback = Callback(history_bytes=100_000)
    if not is_plain:
        await callback.start_node("n")
    tokens = [f"tok{number:02}" for number in range(100)]
    for token in tokens * 100:
        callback(token)
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(350):
            for token in tokens:
                callback(token)
            await anyio.sleep(0)
        used = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert callback.last_seq >= 45_000
    # The tokens themselves are shared here; what holds them is at most about 100 bytes each.
    assert used < 4_000_000


@pytest.mark.parametrize("way", ["call", "acall", "node", "event"])
async def test_large_tokens_stay_in_bounds_too(way: str) -> None:
    """Sizes are counted every now and then, but of large ones at once."""
    callback = Callback(history_bytes=200_000)
    gc.collect()
    tracemalloc.start()
    try:
        for number in range(200):
            text = str(number) * 20_000
            if way == "acall":
                await callback.acall(text)
            elif way == "node":
                callback(text, node_name="n")
            elif way == "event":
                callback.event("custom", [text])
            else:
                callback(text)
        used = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert used < 1_000_000


def test_a_run_that_nobody_holds_is_freed_without_the_garbage_collector() -> None:
    callback = Callback()
    callback("a")
    with callback.node("n"):
        callback("b")
    reader = callback.aiter(overflow="block")
    callback.close()
    gone = weakref.ref(callback)
    gc.disable()
    try:
        del callback
        assert gone() is None
        del reader
    finally:
        gc.enable()


# Threads.


def test_threads_feed_a_run_at_once_and_each_in_its_order() -> None:
    callback = Callback(history_bytes=10**6)

    def produce(name: str) -> None:
        for number in range(500):
            callback(f"{name}{number}")

    in_threads(*(partial(produce, name) for name in "abcd"))
    callback.close()
    got = read(callback)
    assert len(got) == 2_001
    for name in "abcd":
        assert [token for token in got if token[0] == name] == [f"{name}{n}" for n in range(500)]


def test_cancelling_reaches_a_thread_at_its_next_token() -> None:
    callback = Callback()
    begun = threading.Event()
    stopped: list[BaseException] = []

    def produce() -> None:
        try:
            while True:
                callback("a")
                begun.set()
        except StreamCancelledError as exc:
            stopped.append(exc)

    thread = threading.Thread(target=produce, daemon=True)
    thread.start()
    assert begun.wait(10)
    callback.cancel("enough")
    thread.join(10)
    assert [str(exc) for exc in stopped] == ["the run was cancelled: enough"]


@pytest.mark.parametrize("repeated", range(20))
async def test_of_all_that_end_a_run_at_once_one_wins_and_no_token_is_lost(repeated: int) -> None:
    """Four tasks and a thread; what was accepted is read, what was not raised."""
    callback = Callback()
    gate = threading.Event()
    accepted: list[str] = []
    reader = callback.aiter(raise_errors=False, max_lag=10**6)

    def emit(name: str) -> None:
        gate.wait(10)
        for number in count():
            try:
                callback(f"{name}{number}")
            except (StreamClosedError, StreamCancelledError):
                return
            accepted.append(f"{name}{number}")

    async def end(how: Callable[[], Any]) -> None:
        gate.set()
        await anyio.sleep(0)
        await how()

    async with anyio.create_task_group() as group:
        for name in "ab":
            group.start_soon(anyio.to_thread.run_sync, emit, name)
        for how in (
            callback.close,
            partial(callback.fail, OSError("gone")),
            callback.cancel,
            partial(anyio.to_thread.run_sync, callback.end, "timeout"),
        ):
            group.start_soon(end, how)
    *tokens, last = [token async for token in reader]
    assert sorted(tokens) == sorted(accepted)
    assert isinstance(last, SpecialToken)
    assert last.params.get("status", "ok") == callback.status
    assert callback.last_seq == len(accepted) + 1


# The end.


@pytest.mark.parametrize("first", ["close", "fail", "cancel", "timeout"])
async def test_the_first_end_wins_and_later_ones_do_nothing(first: str) -> None:
    error = OSError("gone")
    ends: dict[str, Callable[[Callback], Any]] = {
        "close": lambda callback: callback.close(),
        "fail": lambda callback: callback.fail(error),
        "cancel": lambda callback: callback.cancel("enough"),
        "timeout": lambda callback: callback.end("timeout", TimeoutError("late")),
    }
    callback = Callback()
    ends[first](callback)
    for end in ends.values():
        end(callback)
    status = {"close": "ok", "fail": "error", "cancel": "cancelled", "timeout": "timeout"}[first]
    assert callback.status == status
    assert read(callback) == [END if first == "close" else f"<graphai:END:status={status}>"]
    expected = {"close": "None", "fail": "gone", "cancel": "the run was cancelled: enough"}
    assert str(callback.error) == expected.get(first, "late")


def test_who_ends_a_run_learns_whether_it_was_the_first() -> None:
    callback = Callback()
    assert callback.end("timeout", TimeoutError())
    assert not callback.end("ok")


@pytest.mark.parametrize(
    "error",
    [KeyboardInterrupt(), SystemExit(), asyncio.CancelledError(), GeneratorExit()],
    ids=lambda error: type(error).__name__,
)
def test_what_is_no_exception_is_a_cancellation(error: BaseException) -> None:
    """A reader must not be raised somebody else's interrupt."""
    callback = Callback()
    callback.fail(error)
    assert callback.status == "cancelled"
    assert isinstance(callback.error, StreamCancelledError)
    assert callback.error.reason == type(error).__name__


def test_failing_with_a_cancelled_run_is_a_cancellation() -> None:
    """As when the producer passes on what its next token raised."""
    callback = Callback()
    error = StreamCancelledError("enough")
    callback.fail(error)
    assert (callback.status, callback.error) == ("cancelled", error)


def test_hooks_are_called_at_the_end() -> None:
    callback = Callback()
    called: list[int] = []
    forget = callback.on_end(lambda: called.append(1))
    callback.on_end(lambda: called.append(2))
    forget()
    callback.close()
    callback.on_end(lambda: called.append(3))
    assert called == [2, 3]


@pytest.mark.usefixtures("no_run_around")
async def test_a_run_is_closed_by_its_block() -> None:
    async with Callback() as callback:
        assert current_callback() is callback
        emit_token("a")
    assert current_callback() is None
    assert read(callback) == ["a", END]


@pytest.mark.usefixtures("no_run_around")
async def test_a_run_is_failed_by_an_exception_that_leaves_its_block() -> None:
    error = OSError("gone")
    with pytest.raises(OSError, match="gone"):
        async with Callback() as callback:
            raise error
    assert (callback.status, callback.error) == ("error", error)
    assert current_callback() is None


async def test_a_run_is_cancelled_with_its_block() -> None:
    callback = Callback()
    with anyio.move_on_after(0.01) as scope:
        async with callback:
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert callback.status == "cancelled"


async def test_a_run_that_was_ended_inside_its_block_stays_so() -> None:
    async with Callback() as callback:
        callback.cancel("enough")
    assert callback.status == "cancelled"


@pytest.mark.usefixtures("no_run_around")
async def test_blocks_of_one_run_nest_and_the_inner_one_ends_it() -> None:
    async with Callback() as callback:
        async with callback:
            pass
        assert current_callback() is callback
        assert callback.is_closed
    assert current_callback() is None


# What they return.


RETURNED: dict[str, Callable[[Callback], Any]] = {
    "close": lambda callback: callback.close(),
    "fail": lambda callback: callback.fail(OSError("gone")),
    "cancel": lambda callback: callback.cancel("enough"),
    "start_node": lambda callback: callback.start_node("m"),
    "end_node": lambda callback: callback.end_node("n"),
}


@pytest.mark.parametrize("method", RETURNED)
async def test_what_acts_at_once_may_be_awaited_as_often_as_one_likes_or_never(
    method: str,
) -> None:
    callback = Callback()
    callback.start_node("n")
    before = callback.last_seq
    returned = RETURNED[method](callback)
    assert callback.last_seq > before
    after = callback.last_seq
    for _ in range(3):
        assert await returned is None
    del returned
    gc.collect()
    assert callback.last_seq == after


@on_asyncio
@pytest.mark.parametrize("method", RETURNED)
async def test_what_acts_at_once_may_be_made_a_task(method: str) -> None:
    callback = Callback()
    callback.start_node("n")
    task = asyncio.create_task(RETURNED[method](callback))
    assert "Task" in repr(task)
    assert await task is None
    assert await asyncio.wait_for(RETURNED["close"](callback), 10) is None
    assert await asyncio.gather(callback.close(), callback.close()) == [None, None]
    cancelled = asyncio.ensure_future(callback.close())
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled


async def test_what_acts_at_once_may_be_started_in_a_task_group() -> None:
    callback = Callback()
    async with anyio.create_task_group() as group:
        group.start_soon(callback.close)
    assert callback.is_closed


def test_what_is_returned_can_be_run_and_closed() -> None:
    callback = Callback()
    asyncio.run(callback.close())  # type: ignore[arg-type]
    callback.close().close()  # type: ignore[attr-defined]


# Nodes.


@pytest.mark.usefixtures("no_run_around")
async def test_a_node_is_a_span_with_a_beginning_a_name_and_an_end() -> None:
    callback = Callback()
    await callback.start_node("n", params={"k": 1})
    callback("a")
    await callback.end_node("n")
    callback("b")
    assert told(callback) == [
        ("node_start", "<graphai:n:start:k=1>", "n", 1),
        ("node_name", "<graphai:n>", "n", 1),
        ("token", "a", "n", 1),
        ("node_end", "<graphai:n:end>", "n", 1),
        ("token", "b", None, None),
    ]
    assert current_callback() is None


@pytest.mark.parametrize("status", ["error", "cancelled"])
async def test_the_end_of_a_node_has_its_status(status: Any) -> None:
    callback = Callback()
    callback.start_node("n")
    callback.end_node("n", status=status)
    [event] = await first(callback.events(types=["node_end"]), 1)
    assert event.status == status
    assert event.token == f"<graphai:n:end:status={status}>"


async def first(reader: Any, count: int) -> list[Any]:
    return [await anext(reader) for _ in range(count)]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (None, "ok"),
        (OSError("gone"), "error"),
        (StreamCancelledError(), "cancelled"),
        (KeyboardInterrupt(), "cancelled"),
        (ExceptionGroup("", [OSError()]), "error"),
    ],
    ids=["ok", "error", "cancelled run", "interrupt", "group"],
)
async def test_an_exception_that_leaves_a_node_is_told_in_its_end(error: Any, status: str) -> None:
    callback = Callback()
    for number, block in enumerate(["with", "async with"]):
        try:
            if block == "with":
                with callback.node("n"):
                    raise_if(error)
            else:
                async with callback.node("n"):
                    raise_if(error)
        except BaseException as exc:
            if exc is not error:
                raise
        event = (await first(callback.events(types=["node_end"]), number + 1))[number]
        assert event.status == status


def raise_if(error: BaseException | None) -> None:
    if error is not None:
        raise error


async def test_a_node_that_is_cancelled_ends_as_cancelled() -> None:
    callback = Callback()
    with anyio.move_on_after(0.01):
        async with callback.node("n"):
            await anyio.sleep_forever()
    assert told(callback)[-1][1] == "<graphai:n:end:status=cancelled>"


def test_a_node_that_outlives_its_run_ends_quietly() -> None:
    callback = Callback()
    with callback.node("n"):
        callback.close()
    assert read(callback) == ["<graphai:n:start>", "<graphai:n>", END]


def test_what_leaves_a_node_that_outlives_its_run_is_not_lost() -> None:
    callback = Callback()
    span = callback.node("n")
    with pytest.raises(OSError, match="gone"), span:
        cancel_and_raise(callback, OSError("gone"))


def cancel_and_raise(callback: Callback, error: Exception) -> None:
    callback.cancel()
    raise error


def test_an_inactive_node_shows_nothing_of_what_it_streams() -> None:
    callback = Callback()
    with callback.node("n", active=False) as span:
        callback("a")
        span("b")
        callback("c", node_name="n")
        callback.event("custom")
        with callback.node("m"):
            callback("d")
    callback.start_node("n", active=False)
    callback("e")
    callback.end_node("n")
    callback("f")
    callback.close()
    assert read(callback) == [
        "<graphai:m:start>", "<graphai:m>", "d", "<graphai:m:end>", "f", END,
    ]  # fmt: skip


def test_nodes_nest() -> None:
    callback = Callback()
    with callback.node("a"):
        callback("1")
        with callback.node("b"):
            callback("2")
        callback("3")
    assert texts(callback) == [("1", "a", 1), ("2", "b", 2), ("3", "a", 1)]


async def test_the_same_node_twice_at_once_is_two_spans() -> None:
    callback = Callback()
    both = anyio.Event()
    waiting = 0

    async def work(text: str) -> None:
        nonlocal waiting
        async with callback.node("n"):
            callback(f"{text}1")
            waiting += 1
            if waiting == 2:
                both.set()
            await both.wait()
            await callback.acall(f"{text}2")

    async with anyio.create_task_group() as group:
        group.start_soon(work, "a")
        group.start_soon(work, "b")
    spans = {text: span for text, node, span in texts(callback)}
    assert spans["a1"] == spans["a2"]
    assert spans["b1"] == spans["b2"]
    assert {spans["a1"], spans["b1"]} == {1, 2}
    assert sorted(span for kind, _, _, span in told(callback) if kind == "node_end") == [1, 2]


async def test_nodes_in_parallel_started_and_ended_by_name_keep_their_own() -> None:
    callback = Callback()
    both = anyio.Event()

    async def work(name: str) -> None:
        await callback.start_node(name)
        if callback._spans == 2:
            both.set()
        await both.wait()
        callback(name)
        await callback.end_node(name)

    async with anyio.create_task_group() as group:
        group.start_soon(work, "a")
        group.start_soon(work, "b")
    assert sorted(texts(callback)) == sorted(
        ("a" if node == "a" else "b", node, span) for _, node, span in texts(callback)
    )
    ends = [(node, span) for kind, _, node, span in told(callback) if kind == "node_end"]
    starts = [(node, span) for kind, _, node, span in told(callback) if kind == "node_start"]
    assert sorted(ends) == sorted(starts)


async def test_ending_a_node_by_name_ends_the_innermost_of_this_context() -> None:
    callback = Callback()

    async def other() -> None:
        # Newer than all of the other context.
        callback.start_node("n")
        await anyio.sleep(0)

    callback.start_node("n")
    callback.start_node("n")
    callback.start_node("m")
    async with anyio.create_task_group() as group:
        group.start_soon(other)
    callback.end_node("n")
    callback.end_node("n")
    ends = [span for kind, _, _, span in told(callback) if kind == "node_end"]
    assert ends == [2, 1]
    callback("a")
    assert texts(callback) == [("a", "m", 3)]


async def test_a_node_may_be_ended_in_another_context_and_then_gets_nothing_more() -> None:
    callback = Callback()
    contextvars.copy_context().run(callback.start_node, "elsewhere")
    callback.end_node("elsewhere")
    for active in (True, False):
        callback.start_node("n", active=active)
        contextvars.copy_context().run(callback.end_node, "n")
        callback("a")
    assert texts(callback) == [("a", None, None)] * 2
    callback.end_node  # noqa: B018 - nothing is open
    with pytest.raises(ValueError, match="no node of that name is open"):
        callback.end_node("n")


async def test_spans_started_here_and_ended_elsewhere_do_not_pile_up() -> None:
    callback = Callback()
    for _ in range(100):
        callback.start_node("n")
        contextvars.copy_context().run(callback.end_node, "n")
    assert not callback._open
    callback.start_node("n")
    scope = callback_scope_depth()
    assert scope == 1


def callback_scope_depth() -> int:
    from callbackkit.streaming.scope import current_scope

    scope, depth = current_scope.get(), 0
    while scope is not None:
        scope, depth = scope.outer, depth + 1
    return depth


def test_the_name_of_a_node_may_be_given_with_the_token() -> None:
    callback = Callback()
    callback("a", node_name="n")
    with callback.node("n"), callback.node("m"):
        callback("b", node_name="n")
        callback("c", node_name="other")
    assert texts(callback) == [("a", "n", None), ("b", "n", 1), ("c", "other", None)]


def test_a_name_stands_for_the_node_of_this_context_if_there_is_one() -> None:
    callback = Callback()
    with callback.node("n"):
        contextvars.copy_context().run(callback.start_node, "n")
        callback("a", node_name="n")
    assert texts(callback) == [("a", "n", 1)]


def test_a_name_stands_for_the_newest_open_node_of_that_name_elsewhere() -> None:
    callback = Callback()
    for _ in range(2):
        contextvars.copy_context().run(callback.start_node, "n")
    callback("a", node_name="n")
    assert texts(callback) == [("a", "n", 2)]


async def test_a_span_is_called_from_wherever_one_likes() -> None:
    callback = Callback()
    async with callback.node("n") as span, callback.node("m"):
        span("a")
        await span.acall("b")
        contextvars.Context().run(span, "c")
        thread = threading.Thread(target=span, args=("d",))
        thread.start()
        thread.join(10)
        callback("e")
    assert texts(callback) == [
        ("a", "n", 1), ("b", "n", 1), ("c", "n", 1), ("d", "n", 1), ("e", "m", 2),
    ]  # fmt: skip


async def test_a_span_that_has_ended_takes_nothing_more() -> None:
    callback = Callback()
    with callback.node("n") as span:
        pass
    with pytest.raises(RuntimeError, match="the span of 'n' has ended"):
        span("a")
    with pytest.raises(RuntimeError, match="the span of 'n' has ended"):
        await span.acall("a")
    with pytest.raises(RuntimeError, match=r"call node\(\) again"), span:
        pass
    assert texts(callback) == []


def test_a_span_that_was_ended_by_name_ends_once() -> None:
    callback = Callback()
    with callback.node("n"):
        callback.end_node("n")
        callback("a")
    assert [kind for kind, *_ in told(callback)].count("node_end") == 1
    assert texts(callback) == [("a", None, None)]


def test_a_span_that_was_never_entered_is_left_quietly() -> None:
    callback = Callback()
    callback.node("n").__exit__(None, None, None)
    assert callback.last_seq == 0


async def test_a_generator_that_is_closed_by_another_task_leaves_that_tasks_run_alone() -> None:
    mine, other = Callback(), Callback()

    async def produce() -> AsyncIterator[int]:
        async with other.node("n"):
            yield 1

    generator = produce()
    opened = anyio.Event()

    async def open_it() -> None:
        await anext(generator)
        opened.set()

    async with anyio.create_task_group() as group:
        group.start_soon(open_it)
    with using(mine):
        await generator.aclose()  # type: ignore[attr-defined]
        assert current_callback() is mine
    assert told(other)[-1][1] == "<graphai:n:end:status=cancelled>"


def test_spans_of_many_threads_have_numbers_of_their_own() -> None:
    callback = Callback()

    def work() -> None:
        for _ in range(20):
            with callback.node("n") as span:
                span("a")
                callback("b", node_name="n")

    in_threads(*[work] * 6)
    numbers = [span for kind, _, _, span in told(callback) if kind == "node_start"]
    assert numbers == list(range(1, 121))
    assert not callback._open


# Events of the application.


async def test_an_event_is_shown_by_events_and_not_by_aiter() -> None:
    callback = Callback()
    data = {"name": "search"}
    callback.event("tool_use", data)
    with callback.node("n"):
        callback.event("tool_result")
    callback.close()
    events = [event async for event in callback.events(types=["tool_use", "tool_result"])]
    assert [(event.type, event.node, event.span) for event in events] == [
        ("tool_use", None, None), ("tool_result", "n", 2 - 1), ("stream_end", None, None),
    ]  # fmt: skip
    assert events[0].data is data
    assert events[1].data is None
    assert "tool_use" not in read(callback)


# By context.


async def test_tokens_find_their_run_in_tasks_threads_and_nested_runs() -> None:
    outer, inner = Callback(), Callback()

    async def task(text: str) -> None:
        await anyio.sleep(0)
        emit_token(text)

    async with outer.node("n"):
        async with anyio.create_task_group() as group:
            group.start_soon(task, "task")
        await anyio.to_thread.run_sync(emit_token, "thread")
        async with inner:
            emit_token("inner")
            outer("both")
        emit_token("again")
    emit_token("nobody")
    assert texts(outer) == [(text, "n", 1) for text in ("task", "thread", "both", "again")]
    assert texts(inner) == [("inner", None, None)]


async def test_a_token_by_context_raises_as_any_other() -> None:
    async with Callback() as callback:
        callback.cancel()
        with pytest.raises(StreamCancelledError):
            emit_token("a")


# A language model's client.


class Client:
    """Yields chunks, as the clients of language models do, and notes that it was closed."""

    def __init__(self, *chunks: Any, error: BaseException | None = None) -> None:
        self.chunks = list(chunks)
        self.error = error
        self.closed = 0

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        await anyio.sleep(0)
        if self.chunks:
            return self.chunks.pop(0)
        raise self.error or StopAsyncIteration

    async def close(self) -> None:
        # As one does that has something to tell the other side.
        await anyio.sleep(0)
        self.closed += 1


async def test_what_is_piped_is_emitted_and_returned_joined() -> None:
    callback, client = Callback(), Client("a", "b", "", None, "c")
    assert await callback.pipe(client) == "abc"
    callback.close()
    assert read(callback) == ["a", "b", "c", END]
    assert client.closed >= 1


async def test_a_key_gets_the_text_out_of_what_is_piped() -> None:
    callback = Callback()
    chunks = [{"text": "a"}, {}, {"text": ""}, {"text": "b"}]
    assert await callback.pipe(Client(*chunks), key=lambda chunk: chunk.get("text")) == "ab"
    assert [text for text, *_ in texts(callback)] == ["a", "b"]


async def test_what_is_piped_must_be_text() -> None:
    callback = Callback()
    for client, key in [(Client(b"a"), None), (Client("a"), len), (Client(0), None)]:
        with pytest.raises(TypeError, match="no str: give it a key that gets the text"):
            await callback.pipe(client, key)  # type: ignore[arg-type]
        assert client.closed >= 1
    for wrong in ("abc", ["a"], None):
        with pytest.raises(TypeError, match=r"pipe\(\) takes an asynchronous iterator, not"):
            await callback.pipe(wrong)  # type: ignore[arg-type]
    assert callback.last_seq == 0


async def test_a_pipe_closes_its_stream_when_that_or_the_key_fails() -> None:
    callback, error = Callback(), OSError("gone")
    client = Client("a", error=error)
    with pytest.raises(OSError, match="gone") as caught:
        await callback.pipe(client)
    assert caught.value is error
    assert client.closed >= 1
    client = Client("a")
    with pytest.raises(ZeroDivisionError):
        await callback.pipe(client, key=lambda _: 1 / 0)  # type: ignore[arg-type,return-value]
    assert client.closed >= 1


async def test_a_pipe_closes_its_stream_when_the_run_ends_or_is_cancelled() -> None:
    callback, client = Callback(), Client("a")
    callback.cancel()
    with pytest.raises(StreamCancelledError):
        await callback.pipe(client)
    assert client.closed >= 1
    callback, client = Callback(), Client(*"abc")
    with anyio.CancelScope() as scope:
        scope.cancel()
        await callback.pipe(client)
    assert scope.cancelled_caught
    assert client.closed >= 1


async def test_the_first_error_counts_when_closing_fails_too() -> None:
    class Stubborn(Client):
        async def close(self) -> None:
            raise RuntimeError("stuck")

    with pytest.raises(OSError, match="gone") as caught:
        await Callback().pipe(Stubborn("a", error=OSError("gone")))
    assert any("stuck" in note for note in caught.value.__notes__)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await Callback().pipe(Stubborn("a"))
    assert scope.cancelled_caught
    with pytest.raises(RuntimeError, match="stuck"):
        await Callback().pipe(Stubborn("a"))


async def test_a_generator_behind_an_iterable_is_closed_too() -> None:
    ended: list[str] = []

    class Stream:
        async def __aiter__(self) -> AsyncIterator[str]:
            try:
                yield "a"
                yield "b"
            finally:
                ended.append("generator")

        def close(self) -> None:
            ended.append("stream")

    callback = Callback()
    assert await callback.pipe(Stream()) == "ab"
    callback.cancel()
    with pytest.raises(StreamCancelledError):
        await callback.pipe(Stream())
    assert ended == ["generator", "stream"] * 2


def test_a_stream_that_will_not_close_holds_nobody_up_for_ever() -> None:
    class Endless(Client):
        async def close(self) -> None:
            await anyio.sleep_forever()

    async def pipe() -> str:
        return await Callback().pipe(Endless("a"))

    # A clock that goes on by itself as soon as everybody waits.
    options = {"clock": trio.testing.MockClock(autojump_threshold=0)}
    assert anyio.run(pipe, backend="trio", backend_options=options) == "a"


# Subclasses.


async def test_a_subclass_is_honoured_wherever_tokens_come_from() -> None:
    class Loud(Callback):
        def __call__(self, token: str, node_name: str | None = None) -> None:
            super().__call__(token.upper(), node_name)

        async def acall(self, token: str, node_name: str | None = None) -> None:
            await super().acall(f"{token}!", node_name)

    callback = Loud()
    callback.note = "it has a __dict__"  # type: ignore[attr-defined]
    with callback.node("n") as span:
        callback("a")
        span("b")
        emit_token("c")
        await callback.acall("d")
        await span.acall("e")
    await callback.pipe(Client("f"))
    assert [text for text, *_ in texts(callback)] == ["A", "B", "C", "d!", "e!", "f!"]
    assert repr(callback).startswith("<Loud running")
