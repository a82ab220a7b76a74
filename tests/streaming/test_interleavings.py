"""Two threads on one run, the one stopped before each of its bytecodes in turn for the other.

What needs no lock in :class:`RunLog`, ``Callback`` and its readers has to be right wherever a
thread is interrupted. Chance hardly ever hits the place, so here every place is tried: the first
thread is stopped there, the second one runs until it is done or waits for a lock, and then both
go on.
"""

import asyncio
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import FrameType
from typing import Any

import pytest

from callbackkit import Callback, SpecialToken, StreamClosedError
from callbackkit.buffer import RunLog, ThreadWaiter

# Only our own code is stopped in.
WATCHED = ("/callbackkit/buffer.py", "/callbackkit/streaming/")


Call = Callable[[], Any]


class Interruption:
    """Runs *first*, and *second* in another thread before the n-th bytecode of the first.

    If the first one waits before it gets there, the second one begins then.
    """

    def __init__(self, place: int, first: Call, second: Call) -> None:
        self.left = place
        self.has_happened = False
        self.has_begun = False
        self.failures: list[BaseException] = []
        self.first = threading.Thread(target=self.guarded, args=(self.traced, first), daemon=True)
        self.second = threading.Thread(target=self.guarded, args=(second,), daemon=True)

    def guarded(self, call: Callable[..., Any], *args: Any) -> None:
        try:
            call(*args)
        except BaseException as exc:
            self.failures.append(exc)

    def traced(self, call: Call) -> None:
        # Coverage may measure this thread.
        before = sys.gettrace()
        sys.settrace(self.trace)
        try:
            call()
        finally:
            sys.settrace(before)

    def trace(self, frame: FrameType, event: str, _arg: Any) -> Any:
        if not any(part in frame.f_code.co_filename for part in WATCHED):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            self.left -= 1
            if self.left == 0 and not self.has_begun:
                self.has_happened = self.has_begun = True
                self.second.start()
                # It may wait for a lock that the first one holds.
                self.second.join(0.004)
        return self.trace

    def run(self) -> None:
        self.first.start()
        idle = 0
        for _ in range(400):
            left = self.left
            self.first.join(0.03)
            if not self.first.is_alive():
                break
            # A busy machine may hold it up for a moment, too.
            idle = idle + 1 if self.left == left else 0
            if idle == 8 and not self.has_begun:
                self.has_begun = True
                self.second.start()
        assert not self.first.is_alive(), "it hangs"
        if not self.has_begun:
            self.second.start()
        self.second.join(10)
        assert not self.second.is_alive(), "the other one hangs"
        if self.failures:
            raise self.failures[0]


# What one thread does, what the other does, and what holds afterwards.
Scene = tuple[Call, Call, Call]


class Play:
    """Plays a scene with one thread interrupted at each place, or some of them."""

    def __init__(self, step: int) -> None:
        self.step = step

    def __call__(self, scene: Callable[[], Scene], *, both: bool = True) -> None:
        """Interrupt the first one, and then the other one too."""
        self.interrupt_first(scene)
        if both:
            self.interrupt_first(lambda: swapped(*scene()))

    def interrupt_first(self, scene: Callable[[], Scene]) -> None:
        for place in range(1, 5_000, self.step):
            first, second, check = scene()
            interruption = Interruption(place, first, second)
            interruption.run()
            try:
                check()
            except AssertionError as exc:
                raise AssertionError(f"interrupted before bytecode {place}: {exc}") from exc
            # CPython 3.12 shows the bytecodes of a function from its second call on only.
            if not interruption.has_happened and interruption.left < place:
                return
        raise AssertionError("it never ends")


def swapped(first: Call, second: Call, check: Call) -> Scene:
    return second, first, check


@pytest.fixture(
    params=[
        pytest.param(7, id="some places"),
        pytest.param(1, id="every place", marks=pytest.mark.torture),
    ]
)
def play(request: pytest.FixtureRequest) -> Play:
    return Play(request.param)


def at_once(awaitable: Any) -> Any:
    """Return what an awaitable gives that need not wait."""
    try:
        awaitable.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("it waits")


def take(reader: Any, *, count: int) -> list[Any]:
    return [at_once(reader.__anext__()) for _ in range(count)]


def rest_of(reader: Any) -> list[Any]:
    """Read what there is; of a run that has ended that is all."""
    items: list[Any] = []
    while reader.lag:
        items += take(reader, count=1)
    return items


def shown(item: Any) -> str:
    """Return a token; for a gap, a question mark for each token of one character in it."""
    return "?" * int(item.params["missed"]) if isinstance(item, SpecialToken) else item


def emit(callback: Callback, *tokens: str, accepted: list[str]) -> None:
    for token in tokens:
        try:
            callback(token)
        except StreamClosedError:
            return
        accepted.append(token)


def nearly_cut() -> Callback:
    """A run that drops a token at each new one, and is about to cut its list."""
    callback = Callback(history_bytes=1)
    while callback._log._head < 63:
        callback("....")
    return callback


# Emitting against closing: what was accepted is read, and nothing else.


@pytest.mark.parametrize("is_plain", [True, False])
def test_what_is_emitted_while_a_run_closes_is_read_or_refused(is_plain, play: Play) -> None:
    def scene() -> Scene:
        callback = Callback()
        if not is_plain:
            callback.events(overflow="block").close()
        accepted: list[str] = []

        def check() -> None:
            *tokens, end = rest_of(callback.aiter())
            assert end.kind == "stream_end"
            assert tokens == accepted

        return lambda: emit(callback, "a", "b", accepted=accepted), callback.close, check

    play(scene)


# Waiting against emitting: no wake-up is lost.


def waiting_scene(callback: Callback, second: Callable[[], Any], awaited: str) -> Scene:
    reader = callback.iter_sync()
    got: list[str] = []
    while reader.lag:
        next(reader)

    def check() -> None:
        assert got == [awaited]

    return lambda: got.append(next(reader)), second, check


def test_a_reader_that_begins_to_wait_misses_no_token(play: Play) -> None:
    def scene() -> Scene:
        callback = Callback()
        return waiting_scene(callback, lambda: callback("a"), "a")

    play(scene)


def test_a_reader_that_begins_to_wait_misses_no_token_when_the_log_drops(play: Play) -> None:
    def scene() -> Scene:
        callback = nearly_cut()
        return waiting_scene(callback, lambda: callback("a"), "a")

    play(scene)


def test_a_reader_that_begins_to_wait_misses_no_end(play: Play) -> None:
    def scene() -> Scene:
        callback = Callback()
        return waiting_scene(callback, callback.close, "<graphai:END>")

    play(scene)


def test_who_parks_is_woken_or_told_when_the_log_is_cut_meanwhile(play: Play) -> None:
    """The list is cut by another thread between two looks at it."""

    def scene() -> Scene:
        log: RunLog[str] = RunLog(max_bytes=1, sizes=lambda items: sum(map(len, items)))
        # The next one cuts it.
        while log._head < 62 or len(log._items) < log._check_at:
            log.append("x")
        end = log.end
        waiter = ThreadWaiter()
        parked: list[bool] = []

        def check() -> None:
            assert not parked[0] or waiter.wait_in_thread(0)

        return lambda: parked.append(log.park(waiter, end)), lambda: log.append("y"), check

    play(scene)


# Reading without the lock, against all that changes the list.


def test_reading_is_right_wherever_the_log_drops_and_is_cut(play: Play) -> None:
    def scene() -> Scene:
        callback = nearly_cut()
        reader = callback.aiter()
        got: list[Any] = take(reader, count=2)
        callback("a")
        accepted: list[str] = []

        def check() -> None:
            callback.close()
            got.extend(rest_of(reader))
            *items, _end = got[2:]
            told = "".join(map(shown, items))
            assert len(told) == 5
            assert all(one in {"?", other} for one, other in zip(told, "a1234", strict=True))

        def produce() -> None:
            emit(callback, *"1234", accepted=accepted)

        return lambda: got.append(at_once(reader.__anext__())), produce, check

    play(scene)


CHANGES: dict[str, Callable[[Callback], object]] = {
    "start": lambda callback: callback.start_node("n"),
    "event": lambda callback: callback.event("custom", 1),
    "node_name": lambda callback: callback("b", node_name="n"),
    "close": lambda callback: callback.close(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_reading_gives_only_tokens_wherever_something_else_is_emitted(change, play: Play) -> None:
    def scene() -> Scene:
        callback = Callback()
        callback("a")
        reader = callback.aiter()
        got: list[Any] = []

        def check() -> None:
            callback.close()
            got.extend(rest_of(reader))
            assert all(isinstance(item, str) for item in got)
            assert got == rest_of(callback.aiter())

        return (
            lambda: got.append(at_once(reader.__anext__())),
            lambda: CHANGES[change](callback),
            check,
        )

    play(scene)


def test_a_reader_of_what_is_not_shown_gets_the_end_wherever_the_run_closes(play: Play) -> None:
    """It has looked, found nothing for it, and asks whether the run is over."""

    def scene() -> Scene:
        callback = Callback()
        callback.event("other")
        reader = callback.iter_sync()
        got: list[str] = []
        return lambda: got.extend(reader), callback.close, lambda: check(got)

    def check(got: list[str]) -> None:
        assert got == ["<graphai:END>"]

    play(scene)


@pytest.mark.parametrize("overflow", ["coalesce", "block"])
def test_closing_a_reader_in_another_thread_ends_it_wherever_it_is(overflow, play: Play) -> None:
    def scene() -> Scene:
        callback = Callback()
        for token in "abc":
            callback(token)
        reader = callback.iter_sync(overflow=overflow)
        got: list[str] = []
        counts: list[int] = []

        def read() -> None:
            # Each one by itself, so that it is seen how many there are.
            got.extend(token for token in reader)

        def close() -> None:
            reader.close()
            counts.append(len(got))

        def check() -> None:
            assert got == ["a", "b", "c"][: len(got)]
            # One may have been on its way out.
            assert len(got) <= counts[0] + 1
            with pytest.raises(StopIteration):
                next(reader)

        return read, close, check

    play(scene)


@pytest.mark.parametrize("change", CHANGES)
def test_a_waiting_reader_reads_right_wherever_the_emitting_thread_is_interrupted(
    change, play: Play
) -> None:
    """It is woken by the first of several entries, and looks while the others come."""

    def scene() -> Scene:
        callback = Callback()
        got: list[Any] = []

        async def read() -> None:
            async for token in callback.aiter():
                got.append(token)
                if token == "x":
                    return

        thread = threading.Thread(target=asyncio.run, args=(read(),), daemon=True)
        thread.start()
        while not callback._log._parked:
            assert thread.is_alive()

        def change_and_emit() -> None:
            CHANGES[change](callback)
            with suppress(StreamClosedError):
                callback("x")

        def check() -> None:
            thread.join(10)
            assert not thread.is_alive(), "the reader hangs"
            assert all(isinstance(token, str) for token in got)
            assert got == rest_of(callback.aiter())

        # What the other one does is to let the reader run for a moment.
        return change_and_emit, partial(thread.join, 0.002), check

    play(scene, both=False)


@pytest.mark.parametrize("change", [*CHANGES, "burst"])
def test_a_reader_that_is_woken_reads_right_wherever_it_is_interrupted(change, play: Play) -> None:
    """Between its looks at a log that is cut, closed, or no longer plain."""

    def scene() -> Scene:
        callback = nearly_cut() if change == "burst" else Callback()
        reader = callback.aiter()
        rest_of(reader)
        got: list[Any] = []

        async def read() -> None:
            asyncio.get_running_loop().call_soon(emit_x)
            async with reader:
                got.append(await anext(reader))
                if reader.lag and change != "event":
                    got.append(await anext(reader))

        def emit_x() -> None:
            with suppress(StreamClosedError):
                callback("x")

        def second() -> None:
            if change == "burst":
                emit(callback, *"1234", accepted=[])
            else:
                CHANGES[change](callback)

        def check() -> None:
            assert got
            assert all(isinstance(item, str) for item in got)
            whole = rest_of(callback.aiter())
            if change != "burst":
                assert got == whole[: len(got)]
            elif not isinstance(got[0], SpecialToken):
                digits = [item for item in got if item in "1234"]
                assert digits == sorted(set(digits))

        return lambda: asyncio.run(read()), second, check

    play(scene, both=False)


# Waiting for room against making it.


def test_a_producer_that_begins_to_wait_for_room_is_let_go(play: Play) -> None:
    def scene() -> Scene:
        callback = Callback()
        reader = callback.iter_sync(overflow="block", max_lag=1)
        callback("a")
        accepted: list[str] = []

        def check() -> None:
            assert accepted == ["b"]

        return lambda: emit(callback, "b", accepted=accepted), lambda: next(reader), check

    play(scene)


def test_a_producer_that_begins_to_wait_for_room_is_let_go_by_the_end(play: Play) -> None:
    def scene() -> Scene:
        callback = Callback()
        reader = callback.iter_sync(overflow="block", max_lag=1)
        callback("a")
        accepted: list[str] = []

        def check() -> None:
            assert [*reader] == ["a", *accepted, "<graphai:END>"]

        return lambda: emit(callback, "b", accepted=accepted), callback.close, check

    play(scene)


# Ending.


def test_of_two_ends_one_wins_wherever_they_meet(play: Play) -> None:
    def scene() -> Scene:
        callback = Callback()
        won: list[str] = []

        def end(status: Any, error: Any) -> None:
            if callback.end(status, error):
                won.append(status)

        def check() -> None:
            [token] = rest_of(callback.aiter(raise_errors=False))
            assert won == [callback.status]
            assert token.params == ({} if won == ["ok"] else {"status": "error"})

        return lambda: end("ok", None), lambda: end("error", OSError()), check

    play(scene)


def test_a_hook_is_called_once_wherever_the_run_ends(play: Play) -> None:
    def scene() -> Scene:
        callback = Callback()
        called: list[int] = []

        def check() -> None:
            assert called == [1]

        return lambda: callback.on_end(lambda: called.append(1)), callback.close, check

    play(scene)
