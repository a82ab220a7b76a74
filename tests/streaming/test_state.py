"""One run: it ends once, whoever ends it, and producers wait for readers that hold them up."""

import gc
import threading
import time
import weakref
from typing import Any

import anyio
import anyio.to_thread
import pytest
from anyio.lowlevel import checkpoint

from callbackkit import StreamCancelledError, StreamClosedError
from callbackkit.streaming.events import Marker
from callbackkit.streaming.state import Patience, RunState
from callbackkit.wire.special_tokens import TokenFormat

LONG = 1000.0
"""Seconds that no test waits."""


def run_state(idle_timeout: float | None = None) -> RunState:
    return RunState(TokenFormat(), 1_000, idle_timeout)


def entries_of(run: RunState) -> list[Any]:
    return run.log.read(0, 1_000)[1]


class Reader:
    """Holds producers up as long as it is said to."""

    def __init__(self, stall_timeout: float = LONG) -> None:
        self.stall_timeout = stall_timeout
        self.position = 0
        self.is_slow = True
        self.given_up = 0

    def holds_up(self) -> bool:
        return self.is_slow

    def give_up(self) -> None:
        self.given_up += 1
        self.is_slow = False


def in_thread(call: Any, *args: Any) -> threading.Thread:
    thread = threading.Thread(target=call, args=args, daemon=True)
    thread.start()
    return thread


def until_queued(run: RunState, count: int = 1) -> None:
    """Return as soon as so many producers wait."""
    while len(run._blocked) < count:
        time.sleep(0)


# The end.


def test_the_first_end_counts() -> None:
    run = run_state()
    error = OSError("gone")
    assert run.status is None
    assert run.end("error", error)
    assert not run.end("ok")
    assert (run.status, run.error) == ("error", error)
    [last] = entries_of(run)
    assert isinstance(last, Marker)
    assert last.token == "<graphai:END:status=error>"


def test_a_format_that_fails_leaves_the_run_open() -> None:
    """So that another end can end it: a run with a status, but without an END, would hang."""

    class Broken(TokenFormat):
        is_broken = True

        def special(self, *args: Any, **kwargs: Any) -> Any:
            if self.is_broken:
                raise MemoryError
            return super().special(*args, **kwargs)

    run = RunState(Broken(), 1_000, None)
    with pytest.raises(MemoryError):
        run.end("ok")
    assert run.status is None
    Broken.is_broken = False
    assert run.end("ok")
    assert run.log.is_closed


def test_what_is_appended_after_the_end_is_refused() -> None:
    run = run_state()
    run.end("ok")
    with pytest.raises(StreamClosedError, match="the stream has ended"):
        run.append("a", 1)
    assert len(entries_of(run)) == 1


def test_after_a_cancellation_producers_are_told_its_reason_each_anew() -> None:
    run = run_state()
    error = StreamCancelledError("enough")
    run.end("cancelled", error)
    told = run.closed_error()
    assert isinstance(told, StreamCancelledError)
    assert told.reason == "enough"
    assert told is not error


def test_a_cancellation_without_an_error_is_one_all_the_same() -> None:
    run = run_state()
    run.end("cancelled")
    assert isinstance(run.closed_error(), StreamCancelledError)
    assert isinstance(run.ending(), StreamCancelledError)


def test_a_timeout_without_an_error_is_told_as_one() -> None:
    run = run_state()
    run.end("timeout")
    assert isinstance(run.ending(), TimeoutError)
    assert isinstance(run.closed_error(), StreamClosedError)


def test_a_good_end_raises_nothing() -> None:
    run = run_state()
    run.end("ok")
    assert run.ending() is None


def test_each_reader_is_raised_the_error_with_the_traceback_it_had() -> None:
    run = run_state()
    try:
        raise OSError("gone")
    except OSError as exc:
        error = exc
    run.end("error", error)
    before = error.__traceback__
    for _ in range(3):
        ending = run.ending()
        assert ending is error
        with pytest.raises(OSError, match="gone"):
            raise ending
        assert error.__traceback__ is not before
    assert run.ending() is error
    assert error.__traceback__ is before


@pytest.mark.parametrize("error", [StopIteration(1), StopAsyncIteration()], ids=repr)
def test_an_error_that_would_end_an_iteration_well_is_told_by_another(error: Exception) -> None:
    run = run_state()
    run.end("error", error)
    ending = run.ending()
    assert isinstance(ending, RuntimeError)
    assert ending.__cause__ is error
    assert repr(error) in str(ending)


# Hooks.


def test_hooks_are_called_once_when_the_run_ends_in_the_thread_that_ends_it() -> None:
    run = run_state()
    called: list[Any] = []
    run.on_end(lambda: called.append((threading.get_ident(), run.status)))
    thread = in_thread(run.end, "ok")
    thread.join()
    run.end("ok")
    assert called == [(thread.ident, "ok")]


def test_a_hook_that_comes_too_late_is_called_at_once() -> None:
    run = run_state()
    run.end("ok")
    called: list[int] = []
    forget = run.on_end(lambda: called.append(1))
    assert called == [1]
    forget()


def test_a_hook_that_was_taken_back_is_not_called() -> None:
    run = run_state()
    called: list[int] = []
    keep = called.append
    forget = run.on_end(lambda: keep(1))
    run.on_end(lambda: keep(2))
    forget()
    forget()
    run.end("ok")
    assert called == [2]


def test_a_hook_may_end_the_run_and_add_hooks() -> None:
    run = run_state()
    called: list[int] = []

    def hook() -> None:
        run.end("error", OSError())
        run.on_end(lambda: called.append(1))

    run.on_end(hook)
    run.end("ok")
    assert called == [1]
    assert run.status == "ok"


# Silence.


def test_without_a_timeout_a_run_may_be_silent_for_ever() -> None:
    run = run_state()
    assert run.idle_left() is None
    run.end_if_silent()
    assert run.status is None


def test_silence_begins_with_the_first_who_waits_and_again_with_each_entry() -> None:
    run = run_state(idle_timeout=LONG)
    first = run.idle_left()
    assert first is not None
    assert LONG - 10 < first <= LONG
    run._touched = time.monotonic() - LONG + 5
    left = run.idle_left()
    assert left is not None
    assert left <= 5
    run.append("a", 1)
    left = run.idle_left()
    assert left is not None
    assert left > LONG - 10


def test_silence_that_lasted_too_long_ends_the_run() -> None:
    run = run_state(idle_timeout=0.5)
    run.idle_left()
    run.end_if_silent()
    assert run.status is None
    run._touched = time.monotonic() - 1
    run.end_if_silent()
    assert run.status == "timeout"
    assert isinstance(run.error, TimeoutError)
    assert "0.5 seconds" in str(run.error)


# Waiting for room.


async def test_nobody_waits_for_readers_that_are_quick_gone_or_absent() -> None:
    run = run_state()
    await run.wait_for_room()
    assert not run.has_blockers
    quick, gone = Reader(), Reader()
    quick.is_slow = False
    run.add_blocker(quick)
    run.add_blocker(gone)
    assert run.has_blockers
    del gone
    await run.wait_for_room()
    await anyio.to_thread.run_sync(run.wait_for_room_in_thread)


def test_readers_that_are_gone_are_forgotten() -> None:
    run = run_state()
    for _ in range(100):
        run.add_blocker(Reader())
    assert len(run._blockers) == 1


async def test_a_thread_that_runs_a_loop_never_waits() -> None:
    run = run_state()
    reader = Reader()
    run.add_blocker(reader)
    run.wait_for_room_in_thread()
    assert reader.is_slow


@pytest.mark.parametrize("how", ["room", "end", "gone"])
def test_a_thread_waits_until_there_is_room_or_no_need(how: str) -> None:
    run = run_state()
    reader: Reader | None = Reader()
    assert reader is not None
    run.add_blocker(reader)
    threads = [in_thread(run.wait_for_room_in_thread) for _ in range(3)]
    until_queued(run, 3)
    # Woken for nothing, they wait again.
    run.room_made()
    until_queued(run, 3)
    if how == "room":
        reader.is_slow = False
        run.room_made()
    elif how == "end":
        run.end("ok")
    else:
        reader = None
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


@pytest.mark.parametrize("how", ["room", "end", "gone"])
async def test_a_task_waits_until_there_is_room_or_no_need(how: str) -> None:
    run = run_state()
    reader: Reader | None = Reader()
    assert reader is not None
    run.add_blocker(reader)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(run.wait_for_room)
            await anyio.wait_all_tasks_blocked()
            assert len(run._blocked) == 3
            if how == "room":
                reader.is_slow = False
                run.room_made()
            elif how == "end":
                run.end("ok")
            else:
                reader = None


async def test_a_task_that_is_cancelled_while_it_waits_leaves_nothing_behind() -> None:
    run = run_state()
    reader = Reader()
    run.add_blocker(reader)
    with anyio.move_on_after(0.01) as scope:
        await run.wait_for_room()
    assert scope.cancelled_caught
    assert not run._blocked
    assert not reader.given_up


def test_room_that_is_made_while_nobody_waits_is_harmless() -> None:
    run_state().room_made()


async def test_a_reader_that_does_not_move_is_given_up() -> None:
    run = run_state()
    reader = Reader(stall_timeout=0.01)
    run.add_blocker(reader)
    await run.wait_for_room()
    assert reader.given_up == 1
    reader.is_slow = True
    await anyio.to_thread.run_sync(run.wait_for_room_in_thread)
    assert reader.given_up == 2
    assert not run._blocked


async def test_a_reader_that_moves_in_time_is_waited_for() -> None:
    run = run_state()
    reader = Reader(stall_timeout=0.2)
    run.add_blocker(reader)

    async def move() -> None:
        for _ in range(6):
            await anyio.sleep(0.05)
            reader.position += 1
            run.room_made()
        reader.is_slow = False
        run.room_made()

    async with anyio.create_task_group() as group:
        group.start_soon(move)
        await run.wait_for_room()
    assert not reader.given_up


def test_a_reader_may_be_waited_for_without_end() -> None:
    """An infinite time is more than a lock may be waited for."""
    run = run_state()
    reader = Reader(stall_timeout=float("inf"))
    run.add_blocker(reader)
    thread = in_thread(run.wait_for_room_in_thread)
    until_queued(run)
    reader.is_slow = False
    run.room_made()
    thread.join(10)
    assert not thread.is_alive()


def test_each_reader_has_a_time_of_its_own() -> None:
    """Two that stand at the same place are two readers."""
    patience = Patience()
    hasty, patient = Reader(stall_timeout=0.0), Reader(stall_timeout=LONG)
    assert patience.left(hasty) == 0
    patience.lose()
    assert hasty.given_up == 1
    assert patience.left(patient) > LONG - 10
    patience.lose()
    assert not patient.given_up


def test_a_reader_that_moved_after_all_is_not_given_up() -> None:
    patience = Patience()
    reader = Reader(stall_timeout=0.0)
    assert patience.left(reader) == 0
    reader.position += 1
    reader.stall_timeout = LONG
    patience.lose()
    assert not reader.given_up


def test_patience_for_nobody_or_one_that_is_gone_is_never_lost() -> None:
    patience = Patience()
    patience.lose()
    patience.left(Reader(0.0))
    patience.lose()


async def test_a_run_is_freed_without_the_garbage_collector() -> None:
    """Its history may be large."""
    run = run_state()
    reader = Reader()
    run.add_blocker(reader)
    await checkpoint()
    gone = weakref.ref(run.log)
    gc.disable()
    try:
        del run
        assert gone() is None
    finally:
        gc.enable()
