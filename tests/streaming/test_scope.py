"""Which run and span the code at hand works for, by context."""

import asyncio
import contextvars

import anyio
import anyio.to_thread
import pytest

from callbackkit import Callback, emit_token
from callbackkit.streaming.callback import current_callback, using
from callbackkit.streaming.events import Span
from callbackkit.streaming.scope import current_scope, enter, leave, leave_ended, span_in


def depth() -> int:
    scope, count = current_scope.get(), 0
    while scope is not None:
        scope, count = scope.outer, count + 1
    return count


def ended(span: Span) -> Span:
    span.is_open = False
    return span


@pytest.fixture(autouse=True)
def outside() -> None:
    """Whatever a test before has left open."""
    current_scope.set(None)


def test_outside_of_any_run_there_is_none() -> None:
    assert current_callback() is None
    emit_token("a")


def test_using_makes_a_run_current_inside_the_block() -> None:
    callback = Callback()
    with using(callback) as given:
        assert given is callback
        assert current_callback() is callback
        emit_token("a")
    assert current_callback() is None
    assert callback.last_seq == 1


def test_runs_nest_and_the_innermost_counts() -> None:
    outer, inner = Callback(), Callback()
    with using(outer):
        with using(inner):
            emit_token("inner")
        emit_token("outer")
    assert (outer.last_seq, inner.last_seq) == (1, 1)


def test_an_exception_leaves_the_block_as_its_end_does() -> None:
    with pytest.raises(OSError, match="gone"), using(Callback()):
        raise OSError("gone")
    assert current_callback() is None


def test_a_run_has_its_innermost_open_span_whatever_run_is_inside() -> None:
    one, other = Callback(), Callback()
    spans = [Span(1, "a"), Span(2, "b"), Span(1, "c")]
    enter(one, spans[0])
    enter(one, spans[1])
    enter(other, spans[2])
    enter(one, None)
    assert span_in(one) is spans[1]
    assert span_in(other) is spans[2]
    assert span_in(one, "a") is spans[0]
    assert span_in(one, "c") is None
    spans[1].is_open = False
    assert span_in(one) is spans[0]


def test_leaving_goes_back_to_what_was_around_whatever_was_left_open_inside() -> None:
    callback = Callback()
    outer = enter(callback, Span(1, "a"))
    scope = enter(callback, Span(2, "b"))
    enter(callback, Span(3, "c"))
    leave(scope)
    assert current_scope.get() is outer


def test_leaving_what_this_context_does_not_stand_in_changes_nothing() -> None:
    """A generator may be closed by another task, which works for another run."""
    callback = Callback()
    foreign = contextvars.copy_context().run(enter, callback, Span(1, "a"))
    mine = enter(Callback(), None)
    leave(foreign)
    assert current_scope.get() is mine
    leave(foreign)


def test_spans_that_ended_elsewhere_do_not_pile_up() -> None:
    callback = Callback()
    with using(callback):
        for number in range(100):
            enter(callback, ended(Span(number, "a")))
        assert depth() == 2
        leave_ended()
        assert depth() == 1
        assert current_callback() is callback


async def test_tasks_and_threads_belong_to_the_run_they_were_started_from() -> None:
    callback = Callback()
    with using(callback):
        await anyio.to_thread.run_sync(emit_token, "thread")
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep, 0)
            group.start_soon(emit_later)
    assert callback.last_seq == 2


async def emit_later() -> None:
    await anyio.sleep(0)
    emit_token("task")


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_to_thread_of_asyncio_too() -> None:
    callback = Callback()
    with using(callback):
        await asyncio.to_thread(emit_token, "thread")
    assert callback.last_seq == 1


@pytest.mark.usefixtures("no_run_around")
async def test_what_one_task_enters_is_not_the_others() -> None:
    """Nor when both are in the midst of it."""
    seen: list[bool] = []

    async def work() -> None:
        callback = Callback()
        with using(callback):
            await anyio.sleep(0)
            seen.append(current_callback() is callback)

    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(work)
    assert seen == [True] * 3
    assert current_callback() is None
