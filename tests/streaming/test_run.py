"""A function and its stream: they end together, whatever either does and however it is left."""

import asyncio
import gc
import inspect
import sys
import threading
from contextvars import ContextVar

import anyio
import anyio.lowlevel
import pytest

from callbackkit.errors import StreamCancelledError
from callbackkit.streaming.callback import Callback, current_callback, emit_token
from callbackkit.streaming.graph import Graph
from callbackkit.streaming.node import node
from callbackkit.streaming.run import run_stream


async def everything(stream):
    """Return what a stream gives, and what it raises."""
    tokens = []
    try:
        async for token in stream:
            tokens += [str(token)]
    except Exception as exc:
        return tokens, exc
    return tokens, None


async def greet(name, callback):
    callback("Hello, ")
    await callback.acall(name)
    return len(name)


class Endless:
    """A producer that tells how it is."""

    def __init__(self):
        self.running = anyio.Event()
        self.over = anyio.Event()
        self.ended = None

    async def __call__(self, callback):
        callback("...")
        self.running.set()
        try:
            await anyio.sleep_forever()
        except BaseException as exc:
            self.ended = exc
            self.over.set()
            raise

    @property
    def was_cancelled(self):
        return isinstance(self.ended, anyio.get_cancelled_exc_class())


@pytest.fixture
async def tasks(anyio_backend):
    """Every task there was in the beginning, and no more in the end."""

    def count():
        if anyio_backend == "asyncio":
            return len(asyncio.all_tasks())
        import trio

        return trio.lowlevel.current_statistics().tasks_living

    before = count()
    yield
    # Ended tasks may take a turn to be gone.
    for _ in range(3):
        await anyio.lowlevel.checkpoint()
    assert count() == before


pytestmark = pytest.mark.usefixtures("tasks")

on_asyncio = pytest.mark.parametrize("anyio_backend", ["asyncio"], scope="module")
on_trio = pytest.mark.parametrize("anyio_backend", ["trio"], scope="module")


# A run that ends well.


async def test_a_function_is_run_and_read() -> None:
    async with run_stream(greet, "you") as stream:
        assert await everything(stream) == (["Hello, ", "you", "<graphai:END>"], None)
        assert await stream.result() == 3
        assert await stream.result() == 3
    assert await stream.result() == 3
    assert stream.callback.status == "ok"
    assert "greet" in repr(stream)
    assert repr(stream).endswith(", ok>")


async def test_the_result_can_be_had_without_reading() -> None:
    async with run_stream(greet, "you") as stream:
        assert await stream.result() == 3


async def test_others_may_read_the_run_too() -> None:
    async with run_stream(greet, "you") as stream:
        other = stream.callback.aiter()
    assert (await everything(other))[0][-1] in {"<graphai:END>", "<graphai:END:status=cancelled>"}


@pytest.mark.usefixtures("no_run_around")
async def test_without_a_parameter_it_finds_the_run_by_context() -> None:
    async def outer(text):
        emit_token(text)
        async with run_stream(inner) as stream:
            assert await everything(stream) == (["inner", "<graphai:END>"], None)
            emit_token(text)

    async def inner():
        emit_token("inner")

    async with run_stream(outer, "outer") as stream:
        assert current_callback() is None
        assert await everything(stream) == (["outer", "outer", "<graphai:END>"], None)


place = ContextVar("place", default="nowhere")


async def test_it_begins_in_the_context_of_the_block() -> None:
    async def look():
        return place.get()

    place.set("here")
    async with run_stream(look) as stream:
        assert await stream.result() == "here"


def sync_greet(name, *, callback):
    callback("Hello, ")
    emit_token(name)
    return threading.get_ident()


async def test_a_function_that_is_not_async_runs_in_a_thread() -> None:
    async with run_stream(sync_greet, "you") as stream:
        assert await everything(stream) == (["Hello, ", "you", "<graphai:END>"], None)
        assert await stream.result() != threading.get_ident()


async def test_the_callback_may_be_given() -> None:
    callback = Callback(identifier="own")
    async with run_stream(greet, "you", callback=callback) as stream:
        assert stream.callback is callback
        assert (await everything(stream))[0][-1] == "<own:END>"


async def test_a_graph_can_be_the_function() -> None:
    @node(start=True, end=True, stream=True)
    async def answer(query, callback):
        callback(query)
        return {"answer": query}

    graph = Graph().add_node(answer)
    async with run_stream(graph.execute, {"query": "tea"}) as stream:
        tokens, _ = await everything(stream)
        assert tokens[2:] == ["tea", "<graphai:answer:end>", "<graphai:END>"]
        assert await stream.result() == {"query": "tea", "answer": "tea"}


async def test_a_function_may_go_on_behind_a_graph() -> None:
    @node(start=True, end=True)
    async def answer():
        emit_token("graph ")
        return {}

    async def produce(callback):
        await Graph().add_node(answer).execute({}, callback)
        callback("and more")

    async with run_stream(produce) as stream:
        assert await everything(stream) == (["graph ", "and more", "<graphai:END>"], None)


async def test_it_may_be_made_anywhere() -> None:
    stream = await anyio.to_thread.run_sync(lambda: run_stream(greet, "you"))
    async with stream:
        assert await stream.result() == 3


# A run that fails.


async def test_what_the_function_raises_is_raised_to_the_reader_and_for_the_result() -> None:
    error = OSError("gone")

    async def fail(callback):
        callback("a")
        raise error

    async def read():
        async with run_stream(fail) as stream:
            async for _ in stream:
                pass

    async with run_stream(fail) as stream:
        assert await everything(stream) == (["a", "<graphai:END:status=error>"], error)
        with pytest.raises(OSError, match="gone") as raised:
            await stream.result()
        assert raised.value is error
    with pytest.raises(OSError, match="gone") as raised:
        await read()
    assert raised.value is error


async def test_a_failure_that_nobody_asked_for_is_logged(caplog) -> None:
    async def fail():
        failing.set()
        raise OSError("gone")

    failing = anyio.Event()
    async with run_stream(fail) as stream:
        await failing.wait()
        await anyio.lowlevel.checkpoint()
    assert stream.callback.status == "error"
    assert "fail failed, and nobody read it" in caplog.text
    caplog.clear()
    async with run_stream(fail) as stream:
        await everything(stream)
    assert caplog.records == []


async def test_an_exit_is_not_lost() -> None:
    async def leave():
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        async with run_stream(leave) as stream:
            await everything(stream)
    assert stream.callback.status == "cancelled"


async def test_a_thread_may_fail_too() -> None:
    def fail():
        raise OSError("gone")

    async with run_stream(fail) as stream:
        assert isinstance((await everything(stream))[1], OSError)


# Leaving.


async def test_leaving_by_break_cancels_the_function_and_waits_for_it() -> None:
    endless = Endless()
    async with run_stream(endless) as stream:
        async for _ in stream:
            break
    assert endless.was_cancelled
    assert stream.callback.status == "cancelled"
    with pytest.raises(StreamCancelledError):
        await stream.result()
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_leaving_by_an_exception_lets_it_through_as_it_is() -> None:
    async def read():
        async with run_stream(endless) as stream:
            await anext(stream)
            raise error

    endless, error = Endless(), OSError("mine")
    with pytest.raises(OSError, match="mine") as raised:
        await read()
    assert raised.value is error
    assert endless.was_cancelled


async def test_leaving_at_once_begins_nothing() -> None:
    endless = Endless()
    async with run_stream(endless) as stream:
        pass
    assert not endless.running.is_set()
    assert stream.callback.status == "cancelled"


@pytest.mark.parametrize("wait", ["read", "result", "sleep"])
async def test_being_cancelled_anywhere_ends_the_run(wait) -> None:
    endless = Endless()

    async def read():
        async with run_stream(endless) as stream:
            if wait == "read":
                await everything(stream)
            elif wait == "result":
                await stream.result()
            else:
                await anyio.sleep_forever()

    async with anyio.create_task_group() as group:
        group.start_soon(read)
        await endless.running.wait()
        group.cancel_scope.cancel()
    assert endless.was_cancelled


async def test_a_time_limit_around_it_works() -> None:
    endless = Endless()
    with anyio.move_on_after(0.01) as scope:
        async with run_stream(endless) as stream:
            await everything(stream)
    assert scope.cancelled_caught
    assert endless.was_cancelled


async def test_waiting_a_while_on_a_silent_stream_takes_nothing_from_it() -> None:
    endless = Endless()
    async with run_stream(endless) as stream:
        assert await anext(stream) == "..."
        with pytest.raises(TimeoutError):
            with anyio.fail_after(0.01):
                await anext(stream)
        stream.callback("more")
        assert await anext(stream) == "more"
        assert endless.ended is None


@on_asyncio
async def test_waiting_a_while_with_asyncio_itself() -> None:
    async with run_stream(Endless()) as stream:
        await anext(stream)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(stream), 0.01)
        stream.callback("more")
        assert await anext(stream) == "more"


async def test_a_function_that_catches_its_cancellation_once_is_cancelled_again() -> None:
    caught = []

    async def stubborn(callback):
        for _ in range(2):
            try:
                callback("...")
                await anyio.sleep_forever()
            except anyio.get_cancelled_exc_class():
                caught.append(True)
                if len(caught) > 1:
                    raise
            except StreamCancelledError:
                await anyio.sleep_forever()

    with anyio.fail_after(10):
        async with run_stream(stubborn) as stream:
            await anext(stream)
    assert caught


async def test_a_function_that_cleans_up_is_waited_for() -> None:
    cleaned = []

    async def careful(callback):
        try:
            callback("...")
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.02)
            cleaned.append(True)

    with anyio.move_on_after(0.01):
        async with run_stream(careful) as stream:
            await everything(stream)
    assert cleaned == [True]


@on_asyncio
async def test_a_second_cancellation_does_not_leave_it_behind() -> None:
    running, cleaning, cleaned = asyncio.Event(), asyncio.Event(), []

    async def careful(callback):
        try:
            running.set()
            await asyncio.sleep(60)
        finally:
            cleaning.set()
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.02)
            cleaned.append(True)

    async def read():
        async with run_stream(careful) as stream:
            await everything(stream)

    task = asyncio.create_task(read())
    await running.wait()
    task.cancel()
    await cleaning.wait()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert cleaned == [True]


@on_asyncio
async def test_a_cancellation_that_comes_while_it_waits_is_not_lost() -> None:
    cleaning, left = asyncio.Event(), []

    async def careful(callback):
        try:
            callback("...")
            await asyncio.sleep(60)
        finally:
            cleaning.set()
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.02)

    async def read():
        async with run_stream(careful) as stream:
            await anext(stream)
        left.append(True)

    task = asyncio.create_task(read())
    await cleaning.wait()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert left == []


async def test_a_function_that_closed_the_stream_itself_may_finish() -> None:
    saved = []
    work = 0.01

    async def produce(callback):
        callback("a")
        await callback.close()
        await anyio.sleep(work)
        saved.append(True)
        return "saved"

    async with run_stream(produce) as stream:
        assert await everything(stream) == (["a", "<graphai:END>"], None)
    assert await stream.result() == "saved"
    work = 3_600
    with anyio.move_on_after(0.001):
        async with run_stream(produce) as stream:
            await everything(stream)
    assert saved == [True]

    async def read():
        async with run_stream(produce) as stream:
            await everything(stream)
            raise OSError("mine")

    with pytest.raises(OSError, match="mine"):
        await read()
    assert saved == [True]


async def test_a_generator_around_it_may_be_closed_in_another_task() -> None:
    endless = Endless()

    async def generate():
        async with run_stream(endless) as stream:
            async for token in stream:
                yield token

    generator = generate()

    async def begin():
        assert await anext(generator) == "..."

    async with anyio.create_task_group() as group:
        group.start_soon(begin)
    async with anyio.create_task_group() as group:
        group.start_soon(generator.aclose)
    assert endless.was_cancelled


@on_asyncio
async def test_a_generator_around_it_may_be_forgotten() -> None:
    endless = Endless()

    async def generate():
        async with run_stream(endless) as stream:
            async for token in stream:
                yield token

    generator = generate()
    assert await anext(generator) == "..."
    del generator
    gc.collect()
    await endless.over.wait()
    assert endless.was_cancelled


async def test_a_thread_is_stopped_at_its_next_token_and_not_waited_for() -> None:
    go_on, stopped = threading.Event(), threading.Event()

    def produce(callback):
        callback("a")
        assert go_on.wait(30)
        try:
            emit_token("too late")
        except StreamCancelledError:
            stopped.set()
            raise

    async with run_stream(produce) as stream:
        assert await anext(stream) == "a"
    assert not stopped.is_set()
    go_on.set()
    assert await anyio.to_thread.run_sync(stopped.wait, 30)


# Cancelling.


async def test_cancelling_from_anywhere_stops_the_function() -> None:
    for cancel in ("stream", "callback", "thread"):
        endless = Endless()
        async with run_stream(endless) as stream:
            await endless.running.wait()
            if cancel == "stream":
                stream.cancel("enough")
            elif cancel == "callback":
                stream.callback.cancel("enough")
            else:
                await anyio.to_thread.run_sync(stream.cancel, "enough")
            tokens, error = await everything(stream)
            assert tokens == ["...", "<graphai:END:status=cancelled>"]
            with pytest.raises(StreamCancelledError, match="enough"):
                await stream.result()
            assert isinstance(error, StreamCancelledError)
            assert endless.was_cancelled


async def test_what_is_cancelled_before_it_begins_does_not_begin() -> None:
    callback = Callback()
    callback.cancel("never")
    endless = Endless()
    async with run_stream(endless, callback=callback) as stream:
        with pytest.raises(StreamCancelledError, match="never"):
            await stream.result()
    assert not endless.running.is_set()


async def test_a_time_limit_ends_the_run_as_such() -> None:
    endless = Endless()
    async with run_stream(endless, timeout=0.02) as stream:
        tokens, error = await everything(stream)
        assert tokens == ["...", "<graphai:END:status=timeout>"]
        assert isinstance(error, TimeoutError)
        with pytest.raises(TimeoutError, match=r"Endless took longer than 0\.02 seconds"):
            await stream.result()
    assert endless.was_cancelled
    assert stream.callback.status == "timeout"


async def test_a_time_limit_is_told_at_once_though_the_function_lingers() -> None:
    async def lingering(callback):
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await read.wait()

    read = anyio.Event()
    async with run_stream(lingering, timeout=0.01) as stream:
        assert (await everything(stream))[0] == ["<graphai:END:status=timeout>"]
        read.set()


async def test_a_time_limit_that_is_not_reached_is_no_matter() -> None:
    async with run_stream(greet, "you", timeout=60) as stream:
        assert await stream.result() == 3
    async with run_stream(Endless(), timeout=60) as stream:
        await anext(stream)
    assert stream.callback.status == "cancelled"


# Going on.


async def test_a_function_may_go_on_when_its_reader_leaves() -> None:
    saved = []

    async def produce(callback):
        callback("a")
        await go_on.wait()
        callback("b")
        saved.append(True)
        return "saved"

    go_on = anyio.Event()
    async with anyio.create_task_group() as group:
        async with run_stream(produce, on_disconnect="continue", task_group=group) as stream:
            assert await anext(stream) == "a"
        assert stream.callback.status is None
        late = stream.callback.aiter()
        go_on.set()
    assert saved == [True]
    assert await stream.result() == "saved"
    assert await everything(late) == (["a", "b", "<graphai:END>"], None)


async def test_what_goes_on_still_has_its_time_limit_and_its_end() -> None:
    endless = Endless()
    async with anyio.create_task_group() as group:
        options = {"on_disconnect": "continue", "task_group": group, "timeout": 0.02}
        async with run_stream(endless, **options) as stream:
            await anext(stream)
        assert endless.ended is None
    assert stream.callback.status == "timeout"


async def test_a_group_that_ends_cancels_what_goes_on_in_it() -> None:
    endless = Endless()
    async with anyio.create_task_group() as group:
        async with run_stream(endless, on_disconnect="continue", task_group=group) as stream:
            await anext(stream)
        group.cancel_scope.cancel()
    assert endless.was_cancelled
    assert stream.callback.status == "cancelled"
    with pytest.raises(StreamCancelledError):
        await stream.result()


async def test_what_fails_when_nobody_reads_it_any_more_is_logged(caplog) -> None:
    async def fail(callback):
        callback("a")
        await go_on.wait()
        raise OSError("gone")

    go_on = anyio.Event()
    async with anyio.create_task_group() as group:
        async with run_stream(fail, on_disconnect="continue", task_group=group):
            pass
        go_on.set()
    assert "fail failed, and nobody read it" in caplog.text


async def test_what_fails_in_a_group_while_it_is_read_is_told_to_its_reader(caplog) -> None:
    async def fail():
        raise OSError("gone")

    async with anyio.create_task_group() as group:
        async with run_stream(fail, on_disconnect="continue", task_group=group) as stream:
            assert isinstance((await everything(stream))[1], OSError)
        async with run_stream(fail, on_disconnect="continue", task_group=group) as stream:
            await everything(stream.callback.aiter())
    assert "fail failed, and nobody read it" in caplog.text
    assert len(caplog.records) == 1


@on_trio  # an exit in a task ends asyncio's whole loop
async def test_an_exit_in_a_group_ends_the_group() -> None:
    async def leave(callback):
        await go_on.wait()
        raise SystemExit(3)

    async def read():
        async with anyio.create_task_group() as group:
            async with run_stream(leave, on_disconnect="continue", task_group=group):
                pass
            go_on.set()

    go_on = anyio.Event()
    with pytest.RaisesGroup(SystemExit):
        await read()


async def test_a_function_in_a_group_may_be_cancelled_by_leaving() -> None:
    endless = Endless()
    async with anyio.create_task_group() as group:
        async with run_stream(endless, task_group=group) as stream:
            await anext(stream)
        assert endless.was_cancelled


async def test_a_group_that_is_closed_ends_the_run_at_once() -> None:
    async with anyio.create_task_group() as group:
        pass
    stream = run_stream(greet, "you", on_disconnect="continue", task_group=group)
    with pytest.raises(RuntimeError):
        async with stream:
            pass
    assert stream.callback.status == "error"


# What is refused.


async def generator():
    yield "a"


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ([3], {}, TypeError, r"fn must be callable, not int"),
        ([generator], {}, TypeError, r"fn .*generator is a generator.*pipe"),
        ([greet], {}, TypeError, r"greet can't be called like that: missing a required .*'name'"),
        (
            [greet, "a", "b"],
            {},
            TypeError,
            r"multiple values.*'callback'; the callback is given as",
        ),
        ([len], {}, TypeError, r"len can't be called like that"),
        (
            [greet, "a"],
            {"callback": 3},
            TypeError,
            r"callback must be a callbackkit\.Callback, not 3",
        ),
        (
            [greet, "a"],
            {"on_disconnect": "stop"},
            ValueError,
            r"'cancel' or 'continue', not 'stop'",
        ),
        ([greet, "a"], {"on_disconnect": "continue"}, ValueError, r"needs task_group="),
        ([greet, "a"], {"task_group": 3}, TypeError, r"task group of anyio or a nursery"),
        ([greet, "a"], {"timeout": "1"}, TypeError, r"timeout must be a number of seconds"),
        ([greet, "a"], {"timeout": True}, TypeError, r"timeout must be a number of seconds"),
        ([greet, "a"], {"timeout": 0}, ValueError, r"timeout must be more than 0 seconds, not 0"),
        ([greet, "a"], {"timeout": float("nan")}, ValueError, r"timeout must be more than 0"),
    ],
    ids=range(13),
)
def test_what_makes_no_sense_is_refused_at_once(arguments, options, error, message) -> None:
    with pytest.raises(error, match=message):
        run_stream(*arguments, **options)


def test_a_coroutine_is_not_the_function() -> None:
    with pytest.raises(TypeError, match="pass the function itself"):
        run_stream(greet("you", None))


async def test_options_of_the_reader_are_passed_on() -> None:
    with pytest.raises(ValueError, match="overflow must be one of"):
        async with run_stream(greet, "you", overflow="lose"):
            pass
    async with run_stream(greet, "you", overflow="block", max_lag=1, stall_timeout=60) as stream:
        assert (await everything(stream))[0] == ["Hello, ", "you", "<graphai:END>"]


async def test_a_producer_that_waits_for_its_reader_is_let_go_when_that_leaves() -> None:
    async def flood(callback):
        for _ in range(100):
            await callback.acall("x")

    with anyio.fail_after(10):
        async with run_stream(flood, overflow="block", max_lag=1, stall_timeout=60) as stream:
            await anext(stream)
    assert stream.callback.status == "cancelled"


async def test_a_run_is_used_inside_its_block_and_once() -> None:
    stream = run_stream(greet, "you")
    with pytest.raises(RuntimeError, match="begins with 'async with"):
        await anext(stream)
    with pytest.raises(RuntimeError, match="begins with 'async with"):
        await stream.result()
    async with stream:
        await stream.result()
    with pytest.raises(RuntimeError, match="entered once"):
        async with stream:
            pass


async def test_a_function_without_a_signature_is_called_as_it_is() -> None:
    with pytest.raises(ValueError, match="no signature"):
        inspect.signature(type)
    async with run_stream(type, 3) as stream:
        assert await stream.result() is int


@on_asyncio
async def test_tasks_that_are_cancelled_before_they_begin_end_the_run() -> None:
    """As those of an event loop that is shut down."""
    async with run_stream(Endless()) as stream:
        for task in asyncio.all_tasks():
            if "Producer" in task.get_coro().__qualname__:
                task.cancel()
        tokens, error = await everything(stream)
        assert tokens == ["<graphai:END:status=cancelled>"]
        assert isinstance(error, StreamCancelledError)
        with pytest.raises(StreamCancelledError):
            await stream.result()


@on_asyncio
@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
async def test_tasks_may_begin_eagerly() -> None:
    loop = asyncio.get_running_loop()
    loop.set_task_factory(asyncio.eager_task_factory)
    try:
        async with run_stream(greet, "you") as stream:
            assert await everything(stream) == (["Hello, ", "you", "<graphai:END>"], None)
        async with run_stream(Endless()) as stream:
            await anext(stream)
    finally:
        loop.set_task_factory(None)
