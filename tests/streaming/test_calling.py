"""Calling a function, whether it is async or not: where it runs, and what becomes of its thread."""

import functools
import threading
from contextvars import ContextVar

import anyio
import anyio.from_thread
import anyio.lowlevel
import pytest

from callbackkit.errors import AbandonedThreadsError, StreamCancelledError
from callbackkit.streaming.callback import Callback
from callbackkit.streaming.calling import call_anyhow

place = ContextVar("place", default="nowhere")


def report():
    return threading.get_ident(), place.get()


async def later(value):
    return value, threading.get_ident()


async def test_what_is_async_runs_where_it_is() -> None:
    assert await call_anyhow(later, 1) == (1, threading.get_ident())
    assert await call_anyhow(functools.partial(later), value=1) == (1, threading.get_ident())


async def test_what_is_not_runs_in_a_thread_with_the_context() -> None:
    place.set("here")
    thread, where = await call_anyhow(report)
    assert thread != threading.get_ident()
    assert where == "here"


async def test_what_turns_out_to_be_async_is_awaited() -> None:
    assert await call_anyhow(lambda: later(1)) == (1, threading.get_ident())


async def test_what_a_thread_raises_is_raised() -> None:
    def fail():
        raise error

    error = OSError("gone")
    with pytest.raises(OSError, match="gone") as raised:
        await call_anyhow(fail)
    assert raised.value is error


def setter(event):
    """Return a function that sets an event of this loop from any thread."""
    token = anyio.lowlevel.current_token()
    return lambda: anyio.from_thread.run_sync(event.set, token=token)


async def start_and_cancel(function, *args):
    """Call a function, which sets an event when it runs, and then cancel the call."""
    running = anyio.Event()
    async with anyio.create_task_group() as group:
        group.start_soon(call_anyhow, function, setter(running), *args)
        await running.wait()
        group.cancel_scope.cancel()


async def test_cancelling_never_waits_for_a_thread_that_is_blocked() -> None:
    def block(tell):
        tell()
        assert go_on.wait(30)
        returned.append(True)

    go_on, returned = threading.Event(), []
    try:
        await start_and_cancel(block)
        assert returned == []
    finally:
        go_on.set()


async def test_a_thread_that_is_left_to_itself_ends_quietly_at_its_next_token(caplog) -> None:
    def emit(tell, callback):
        tell()
        assert go_on.wait(30)
        try:
            callback("too late")
        finally:
            threads.append(threading.current_thread())
            ended.set()

    go_on, ended, threads = threading.Event(), threading.Event(), []
    callback = Callback()
    await start_and_cancel(emit, callback)
    callback.cancel()
    go_on.set()
    assert ended.wait(30)
    threads[0].join(30)
    assert caplog.records == []


async def test_a_thread_of_a_cancelled_run_raises_so() -> None:
    callback = Callback()
    callback.cancel("enough")
    with pytest.raises(StreamCancelledError, match="enough"):
        await call_anyhow(callback, "too late")


async def test_threads_that_never_end_are_bounded() -> None:
    def block(tell):
        tell()
        assert go_on.wait(30)

    async def hang():
        for _ in range(100):
            await start_and_cancel(block)

    go_on = threading.Event()
    try:
        with pytest.RaisesGroup(AbandonedThreadsError):
            await hang()
    finally:
        go_on.set()
