"""A slot: one callback in a driver's thread that gets no exception, and streams of its chunks."""

import array
import asyncio
import functools
import gc
import logging
import threading
import weakref

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from callbackkit import AsyncCallbackError, CallbackSlot, StreamLagError


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def fail(_chunk: object) -> None:
    raise ValueError("broken")


async def later(_chunk: object) -> None: ...


class AsyncObject:
    async def __call__(self, _chunk: object) -> None: ...


class Frame(array.array):
    """A buffer with a ``copy()`` of its own, as a NumPy array has."""

    def copy(self) -> "Frame":
        return Frame(self.typecode, self)


def in_thread(function, *args) -> threading.Thread:
    thread = threading.Thread(target=function, args=args, daemon=True)
    thread.start()
    return thread


# The callback.


def test_a_slot_calls_its_callback_in_the_calling_thread() -> None:
    seen: list[tuple[object, threading.Thread]] = []

    def callback(chunk: bytes) -> int:
        seen.append((chunk, threading.current_thread()))
        return len(chunk)

    slot = CallbackSlot(callback)
    assert slot.callback is callback
    returned: list[object] = []
    thread = in_thread(lambda: returned.append(slot(b"abc")))
    thread.join(10)
    assert seen == [(b"abc", thread)]
    assert returned == [3]


def test_an_empty_slot_does_nothing() -> None:
    slot = CallbackSlot()
    assert slot(b"abc") is None
    assert slot.callback is None
    assert slot.failures == 0


def test_set_replaces_the_callback_and_none_clears_it() -> None:
    slot = CallbackSlot(lambda _chunk: "first")
    slot.set(lambda _chunk: "second")
    assert slot(b"") == "second"
    slot.set(None)
    assert slot(b"") is None


def test_a_callback_may_take_no_argument() -> None:
    assert CallbackSlot(lambda: "called")(b"") == "called"


def test_a_callback_may_change_its_slot() -> None:
    slot = CallbackSlot(lambda _chunk: slot.set(None))
    slot(b"")
    assert slot.callback is None


@pytest.mark.parametrize(
    "callback",
    [later, AsyncObject(), functools.partial(later)],
    ids=["function", "object", "partial"],
)
def test_an_async_callback_is_refused_with_the_remedy(callback) -> None:
    """The callback there was stays."""
    slot = CallbackSlot(fail)
    with pytest.raises(AsyncCallbackError, match="to_stream"):
        slot.set(callback)
    assert slot.callback is fail
    with pytest.raises(AsyncCallbackError):
        CallbackSlot(callback)


@pytest.mark.parametrize("bad", [1, "name", b""])
def test_what_is_not_callable_is_refused(bad) -> None:
    with pytest.raises(TypeError, match="must be callable"):
        CallbackSlot().set(bad)


# Failures.


def test_a_failure_is_counted_and_never_raised(caplog) -> None:
    slot = CallbackSlot(fail)
    assert slot(b"") is None
    assert slot.failures == 1
    assert isinstance(slot.last_error, ValueError)
    [record] = caplog.records
    assert "test_slot.fail" in record.message
    assert "ValueError: broken" in caplog.text


def test_a_slot_works_on_after_a_failure() -> None:
    slot = CallbackSlot(lambda chunk: 1 / chunk)
    assert [slot(0), slot(2)] == [None, 0.5]
    assert slot.failures == 1


def test_a_cancelled_error_is_a_failure() -> None:
    def cancel(_chunk: object) -> None:
        raise asyncio.CancelledError

    slot = CallbackSlot(cancel)
    assert slot(b"") is None
    assert isinstance(slot.last_error, asyncio.CancelledError)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_passes(stop) -> None:
    def interrupt(_chunk: object) -> None:
        raise stop

    slot = CallbackSlot(interrupt)
    with pytest.raises(stop):
        slot(b"")
    assert slot.failures == 0


def test_an_awaitable_that_comes_back_is_closed_and_a_failure() -> None:
    coroutines = []

    def unforeseen(chunk: object) -> object:
        coroutines.append(later(chunk))
        return coroutines[-1]

    slot = CallbackSlot(unforeseen)
    assert slot(b"") is None
    assert slot.failures == 1
    assert isinstance(slot.last_error, AsyncCallbackError)
    assert coroutines[0].cr_frame is None


def test_a_callback_whose_name_cannot_be_told_is_a_failure_like_any_other() -> None:
    class Hostile:
        def __call__(self, _chunk: object) -> None:
            raise ValueError

        def __getattr__(self, name: str) -> object:
            raise RuntimeError

        def __repr__(self) -> str:
            raise RuntimeError

    slot = CallbackSlot(functools.partial(Hostile()))
    assert slot(b"") is None
    assert slot.failures == 1


def test_failures_are_logged_at_most_every_ten_seconds(caplog) -> None:
    """The first at once; a later record tells how many there were since."""
    clock = Clock()
    slot = CallbackSlot(fail, clock=clock)
    for _ in range(500):
        slot(b"")
        clock.now += 0.02
    assert [record.failures for record in caplog.records] == [1]
    clock.now = 10.0
    slot(b"")
    slot(b"")
    assert [record.failures for record in caplog.records] == [1, 500]
    assert "failures since the last record: 500" in caplog.text
    assert slot.failures == 502


def test_the_first_failure_of_a_new_callback_is_logged(caplog) -> None:
    slot = CallbackSlot(fail, clock=Clock())
    slot(b"")
    slot(b"")
    slot.set(lambda: 1 / 0)
    slot(b"")
    assert [record.failures for record in caplog.records] == [1, 2]


def test_a_log_filter_that_raises_does_not_reach_the_driver() -> None:
    def refuse(_record: object) -> bool:
        raise RuntimeError

    logger = logging.getLogger("callbackkit.dispatch")
    logger.addFilter(refuse)
    try:
        slot = CallbackSlot(fail)
        assert slot(b"") is None
    finally:
        logger.removeFilter(refuse)
    assert slot.failures == 1


def test_failures_of_many_threads_are_all_counted() -> None:
    slot = CallbackSlot(fail, clock=Clock())
    start = threading.Barrier(8)

    def drive() -> None:
        start.wait(10)
        for _ in range(500):
            slot(b"")

    threads = [in_thread(drive) for _ in range(8)]
    for thread in threads:
        thread.join(20)
    assert slot.failures == 4000


def test_no_lock_is_held_while_a_callback_runs() -> None:
    is_running, may_end = threading.Event(), threading.Event()

    def slow(_chunk: object) -> str:
        is_running.set()
        assert may_end.wait(10)
        return "slow"

    returned: list[object] = []
    slot = CallbackSlot(slow)
    thread = in_thread(lambda: returned.append(slot(b"")))
    assert is_running.wait(10)

    def use() -> None:
        slot.to_stream()
        slot.set(fail)
        slot(b"")
        slot.close()

    user = in_thread(use)
    user.join(10)
    assert not user.is_alive()
    assert slot.failures == 1
    may_end.set()
    thread.join(10)
    assert returned == ["slow"]


# Streams.


async def test_a_stream_has_the_chunks_from_its_start_on() -> None:
    slot = CallbackSlot()
    slot(b"before")
    stream = slot.to_stream()
    for chunk in (b"one", b"two"):
        slot(chunk)
    slot.close()
    assert [chunk async for chunk in stream] == [b"one", b"two"]


async def test_a_chunk_from_a_thread_wakes_an_idle_loop() -> None:
    slot = CallbackSlot()
    stream = slot.to_stream()
    seen: list[bytes] = []

    async def follow() -> None:
        async for chunk in stream:
            seen.append(chunk)
            has_read.set()

    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            has_read = anyio.Event()
            group.start_soon(follow)
            await anyio.wait_all_tasks_blocked()
            thread = in_thread(slot, b"chunk")
            await has_read.wait()
            closer = in_thread(slot.close)
    assert seen == [b"chunk"]
    thread.join(10)
    closer.join(10)


async def test_a_driver_that_never_pauses_is_followed_in_order() -> None:
    slot = CallbackSlot()
    stream = slot.to_stream(max_items=5000)

    def drive() -> None:
        for number in range(5000):
            slot(number.to_bytes(2))
        slot.close()

    thread = in_thread(drive)
    with anyio.fail_after(20):
        seen = [int.from_bytes(chunk) async for chunk in stream]
    assert seen == list(range(5000))
    assert stream.dropped == 0
    thread.join(10)


async def test_several_streams_and_a_callback_get_every_chunk() -> None:
    seen: list[bytes] = []
    slot = CallbackSlot(seen.append)
    streams = [slot.to_stream(), slot.to_stream()]
    slot(b"one")
    slot(b"two")
    slot.close()
    for stream in streams:
        assert [chunk async for chunk in stream] == [b"one", b"two"]
    assert seen == [b"one", b"two"]


async def test_a_failing_callback_takes_no_chunk_from_a_stream() -> None:
    slot = CallbackSlot(fail)
    stream = slot.to_stream()
    slot(b"one")
    slot.close()
    assert [chunk async for chunk in stream] == [b"one"]


async def test_a_full_stream_drops_the_oldest_chunks_and_counts_them() -> None:
    slot = CallbackSlot()
    stream = slot.to_stream(max_items=2)
    for number in range(5):
        slot(bytes([number]))
    slot.close()
    assert [chunk async for chunk in stream] == [b"\3", b"\4"]
    assert stream.dropped == 3


async def test_a_full_stream_may_tell_its_reader() -> None:
    slot = CallbackSlot()
    stream = slot.to_stream(max_items=2, overflow="error")
    for number in range(5):
        slot(bytes([number]))
    with pytest.raises(StreamLagError, match="3 items"):
        await anext(stream)
    assert await anext(stream) == b"\3"


@pytest.mark.parametrize("chunk", [bytes(10), Frame("h", [0] * 5)])
async def test_the_bytes_of_a_stream_are_bounded(chunk) -> None:
    slot = CallbackSlot()
    stream = slot.to_stream(max_bytes=25)
    for _ in range(5):
        slot(chunk)
    slot.close()
    assert len([chunk async for chunk in stream]) == 2


async def test_other_objects_are_bounded_in_bytes_too() -> None:
    slot = CallbackSlot()
    stream = slot.to_stream(max_bytes=1)
    for number in range(3):
        slot({"frame": number})
    slot.close()
    assert [chunk async for chunk in stream] == [{"frame": 2}]


@pytest.mark.parametrize("bad", [{"max_items": 0}, {"max_bytes": 0}, {"overflow": "block"}])
def test_a_bad_bound_is_refused(bad) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        CallbackSlot().to_stream(**bad)


# Chunks whose memory the driver uses again.


@pytest.mark.parametrize(
    ("make", "kept"),
    [
        (bytearray, b"ab"),
        (lambda data: memoryview(bytearray(data)), b"ab"),
        (functools.partial(array.array, "B"), b"ab"),
        (functools.partial(Frame, "B"), Frame("B", b"ab")),
    ],
    ids=["bytearray", "memoryview", "array", "copies itself"],
)
async def test_a_chunk_that_is_overwritten_stays_what_it_was(make, kept) -> None:
    slot = CallbackSlot()
    stream = slot.to_stream()
    chunk = make(b"ab")
    slot(chunk)
    chunk[0] = 0
    got = await anext(stream)
    assert got == kept
    assert type(got) is type(kept)


@pytest.mark.parametrize("chunk", [b"ab", "cd", {"a": 1}, None])
async def test_what_is_no_writable_buffer_is_passed_on_as_it_is(chunk) -> None:
    slot = CallbackSlot()
    stream = slot.to_stream()
    slot(chunk)
    assert await anext(stream) is chunk


def test_the_callback_gets_the_chunk_itself() -> None:
    seen: list[object] = []
    slot = CallbackSlot(seen.append)
    stream = slot.to_stream()
    chunk = bytearray(b"ab")
    slot(chunk)
    assert seen[0] is chunk
    del stream


async def test_a_callback_that_changes_the_chunk_does_not_change_the_stream() -> None:
    def silence(chunk: bytearray) -> None:
        chunk[:] = bytes(len(chunk))

    slot = CallbackSlot(silence)
    stream = slot.to_stream()
    slot(bytearray(b"ab"))
    assert await anext(stream) == b"ab"


def test_a_chunk_that_cannot_be_copied_is_a_failure(caplog) -> None:
    """The callback gets it all the same."""
    seen: list[object] = []
    slot = CallbackSlot(seen.append)
    stream = slot.to_stream()
    released = memoryview(b"ab")
    released.release()
    slot(released)
    assert seen == [released]
    assert slot.failures == 1
    assert "copying a chunk" in caplog.text
    del stream


# The end.


async def test_closing_the_slot_ends_its_streams() -> None:
    slot = CallbackSlot()
    stream = slot.to_stream()

    async def follow() -> None:
        assert [chunk async for chunk in stream] == []

    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(follow)
            await anyio.wait_all_tasks_blocked()
            slot.close()
    slot.close()


async def test_a_closed_slot_ignores_chunks() -> None:
    seen: list[object] = []
    slot = CallbackSlot(seen.append)
    slot.close()
    assert slot(b"late") is None
    assert seen == []
    assert [chunk async for chunk in slot.to_stream()] == []
    assert repr(slot).endswith(", closed, 0 failures>")


async def test_closing_a_stream_ends_the_task_that_waits_for_it() -> None:
    slot = CallbackSlot()

    async def follow() -> None:
        assert [chunk async for chunk in stream] == []

    with anyio.fail_after(10):
        async with slot.to_stream() as stream, anyio.create_task_group() as group:
            group.start_soon(follow)
            await anyio.wait_all_tasks_blocked()
            await stream.aclose()


async def test_a_stream_ends_with_its_block_and_others_go_on() -> None:
    slot = CallbackSlot()
    other = slot.to_stream()
    async with slot.to_stream() as stream:
        slot(b"one")
        assert await anext(stream) == b"one"
    slot(b"two")
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
    slot.close()
    assert [chunk async for chunk in other] == [b"one", b"two"]


def test_a_slot_does_not_keep_a_stream_alive() -> None:
    """Nor are chunks copied any more once it has noticed."""
    copies: list[object] = []

    class Counted(Frame):
        def copy(self) -> Frame:
            copies.append(self)
            return self

    slot = CallbackSlot()
    stream = slot.to_stream()
    slot(Counted("B", b"ab"))
    gone = weakref.ref(stream)
    del stream
    gc.collect()
    assert gone() is None
    slot(b"noticed")
    slot(Counted("B", b"ab"))
    assert len(copies) == 1


async def test_cancelling_a_reader_loses_no_chunk() -> None:
    slot = CallbackSlot()
    stream = slot.to_stream()
    with anyio.move_on_after(0) as scope:
        await anext(stream)
    assert scope.cancelled_caught
    slot(b"one")
    assert await anext(stream) == b"one"


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_driver_goes_on_when_the_loop_is_gone(backend) -> None:
    """Also when a task of that loop was waiting."""
    slot = CallbackSlot()
    streams = []

    async def leave() -> None:
        streams.append(slot.to_stream())
        with anyio.move_on_after(0):
            await anext(streams[0])

    anyio.run(leave, backend=backend)
    thread = in_thread(slot, b"late")
    thread.join(10)
    assert not thread.is_alive()
    assert slot.failures == 0
    assert anyio.run(anext, streams[0], backend=backend) == b"late"


def test_a_loop_that_was_stopped_under_a_reader_does_not_disturb_the_driver() -> None:
    slot = CallbackSlot()
    stream = slot.to_stream()
    loop = asyncio.new_event_loop()
    reader = anext(stream)
    task = loop.create_task(reader)
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    thread = in_thread(slot, b"late")
    thread.join(10)
    assert not thread.is_alive()
    assert slot.failures == 0
    # Nothing will ever run this task; tell nobody.
    task._log_destroy_pending = False
    reader.close()


def test_two_loops_follow_one_slot() -> None:
    slot = CallbackSlot()
    ready = threading.Barrier(3)
    seen: dict[str, list[bytes]] = {}

    async def follow(backend: str) -> None:
        stream = slot.to_stream()
        await anyio.to_thread.run_sync(ready.wait, 10)
        seen[backend] = [chunk async for chunk in stream]

    threads = [
        in_thread(lambda backend: anyio.run(follow, backend, backend=backend), backend)
        for backend in ("asyncio", "trio")
    ]
    ready.wait(10)
    chunks = [bytes([number]) for number in range(100)]
    for chunk in chunks:
        slot(chunk)
    slot.close()
    for thread in threads:
        thread.join(20)
    assert seen == {"asyncio": chunks, "trio": chunks}
