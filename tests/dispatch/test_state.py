"""A state tells its callbacks of every change, once, in order, after it has happened."""

import copy
import itertools
import pickle
import sys
import threading

import anyio
import pytest
from hypothesis import given, strategies as st

from callbackkit import ANY, AsyncCallbackError, BacklogError, DispatchDepthError, ObservableState


@pytest.fixture
def state() -> ObservableState:
    return ObservableState("idle")


def recorder(state, **options):
    """Return a list of the changes that a callback of *state* is told of."""
    changes = []
    state.add_change_callback(lambda old, new: changes.append((old, new)), **options)
    return changes


# Changes.


def test_a_change_is_told_after_it_has_happened(state) -> None:
    seen = []
    state.add_change_callback(lambda old, new: seen.append((old, new, state.value)))
    assert len(state.set("running")) == 1
    assert seen == [("idle", "running", "running")]


async def test_aset_awaits_the_callbacks(state) -> None:
    told = []

    async def tell(old, new) -> None:
        await anyio.lowlevel.checkpoint()
        told.append((old, new))

    state.add_change_callback(tell)
    result = await state.aset("running")
    assert [outcome.callback for outcome in result] == [tell]
    assert told == [("idle", "running")]


async def test_an_equal_value_is_no_change() -> None:
    state = ObservableState(1)
    told = recorder(state)
    assert not state.set(1)
    assert not state.set(1.0)
    assert not await state.aset(True)
    assert told == []
    assert type(state.value) is int


class Array:
    """Compares like an array: element by element, to something without a truth value."""

    def __eq__(self, other):
        return Array()

    def __bool__(self):
        raise ValueError("the truth value of an array is ambiguous")

    __hash__ = None


class Uncomparable:
    def __eq__(self, other):
        raise RuntimeError("no")

    __hash__ = None


@pytest.mark.parametrize("kind", [Array, Uncomparable, lambda: float("nan")])
def test_what_cannot_be_compared_changes_unless_it_is_the_same_object(kind) -> None:
    old, new = kind(), kind()
    state = ObservableState(old)
    told = recorder(state)
    state.set(old)
    assert told == []
    state.set(new)
    assert state.value is new
    assert [(one is old, other is new) for one, other in told] == [(True, True)]


def test_a_state_without_callbacks_just_changes(state) -> None:
    assert len(state.set("running")) == 0
    assert state.value == "running"
    assert repr(state) == "<ObservableState 'running'>"


# Callbacks.


def test_callbacks_may_take_fewer_arguments(state) -> None:
    state.add_change_callback(lambda: "none")
    state.add_change_callback(lambda old: old)
    state.add_change_callback(lambda old, new, more="more": (old, new, more))
    assert state.set("running").values() == ["none", "idle", ("idle", "running", "more")]


def test_callbacks_run_in_order_of_registration_and_isolated(state, caplog) -> None:
    heard = []
    state = ObservableState(0, on_error=lambda exc, context: heard.append(context.data))
    state.add_change_callback(lambda: 1 / 0)
    state.add_change_callback(lambda: "ran")
    result = state.set(1)
    assert [outcome.status for outcome in result] == ["error", "ok"]
    assert heard == [(0, 1)]
    assert state.value == 1
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize(
    ("options", "heard"),
    [
        ({}, ["ab", "bc", "ca", "ac"]),
        ({"old": "a"}, ["ab", "ac"]),
        ({"new": "c"}, ["bc", "ac"]),
        ({"old": "b", "new": "c"}, ["bc"]),
        ({"old": ANY, "new": "a"}, ["ca"]),
        ({"new": None}, []),
    ],
)
def test_a_callback_may_want_some_changes_only(options, heard) -> None:
    state = ObservableState("a")
    told = recorder(state, **options)
    for new in "bcac":
        state.set(new)
    assert ["".join(pair) for pair in told] == heard


def test_old_and_new_are_positional_too(state) -> None:
    state.add_change_callback(lambda old, new: (old, new), "idle", "running")
    assert state.set("running").values() == [("idle", "running")]
    assert [outcome.status for outcome in state.set("idle")] == ["skipped"]


def test_a_filter_survives_what_cannot_be_compared() -> None:
    state = ObservableState(Uncomparable())
    wanted = Uncomparable()
    told = recorder(state, new=wanted)
    state.set(Uncomparable())
    state.set(wanted)
    assert len(told) == 1


def test_the_handle_cancels_pauses_and_ends_with_its_block(state) -> None:
    told = []
    with state.add_change_callback(lambda old, new: told.append(new)) as handle:
        state.set("a")
        handle.pause()
        state.set("b")
        handle.resume()
        state.set("c")
    state.set("d")
    assert told == ["a", "c"]
    assert not handle.active


def test_a_callback_can_be_removed_by_itself(state) -> None:
    told = []

    def tell(old, new) -> None:
        told.append(new)

    state.add_change_callback(tell)
    assert state.remove_change_callback(tell) is True
    assert state.remove_change_callback(tell) is False
    state.set("a")
    assert told == []


def test_once_is_for_the_first_change_it_wants(state) -> None:
    told = recorder(state, new="done", once=True)
    for new in ("a", "done", "b", "done"):
        state.set(new)
    assert told == [("a", "done")]


async def test_a_callback_may_have_a_timeout_and_an_error_callback(state) -> None:
    errors = []
    state.add_change_callback(
        lambda: anyio.sleep_forever(), timeout=0.01, on_error=lambda exc: errors.append(exc)
    )
    assert [outcome.status for outcome in await state.aset("a")] == ["timeout"]
    assert [type(exc).__name__ for exc in errors] == ["CallbackTimeoutError"]


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        (("no callback",), {}),
        ((print,), {"timeout": "1"}),
        ((print,), {"on_error": 3}),
        ((print,), {"new": 1, "priority": 3}),
    ],
)
def test_a_wrong_argument_registers_nothing(state, arguments, options) -> None:
    with pytest.raises(TypeError):
        state.add_change_callback(*arguments, **options)
    assert len(state.set("a")) == 0


def test_a_negative_timeout_is_refused(state) -> None:
    with pytest.raises(ValueError, match="timeout must be positive"):
        state.add_change_callback(print, timeout=-1)


def test_any_is_one_object_with_a_name() -> None:
    assert repr(ANY) == "ANY"
    assert copy.deepcopy(ANY) is ANY
    assert pickle.loads(pickle.dumps(ANY)) is ANY


# Async callbacks and the synchronous set.


async def noticed(old, new) -> str:
    return "noticed"


async def test_set_refuses_async_callbacks_before_anything_changes(state) -> None:
    told = recorder(state)
    handle = state.add_change_callback(noticed, new="done")
    with pytest.raises(AsyncCallbackError, match=r"noticed is asynchronous.*aset"):
        state.set("running")
    assert state.value == "idle"
    assert told == []
    handle.cancel()
    state.set("running")
    assert told == [("idle", "running")]


def test_an_awaitable_that_comes_back_unforeseen_is_that_callbacks_error(state) -> None:
    state.add_change_callback(lambda: noticed(1, 2))
    result = state.set("a")
    assert [type(error) for error in result.errors] == [AsyncCallbackError]
    assert state.value == "a"


# The order of changes.


def test_a_change_made_by_a_callback_is_told_after_the_one_before(state) -> None:
    told = []
    left = []

    def first(old, new) -> None:
        told.append(("first", old, new))
        if new == "a":
            left.append(len(state.set("b")))

    state.add_change_callback(first)
    state.add_change_callback(lambda old, new: told.append(("second", old, new)))
    assert len(state.set("a")) == 2
    assert left == [0]
    assert told == [
        ("first", "idle", "a"),
        ("second", "idle", "a"),
        ("first", "a", "b"),
        ("second", "a", "b"),
    ]


async def test_a_change_awaited_in_a_callback_is_told_after_the_one_before(state) -> None:
    told = []
    left = []

    async def first(old, new) -> None:
        told.append(("first", new))
        if new == "a":
            left.append(len(await state.aset("b")))

    async def second(old, new) -> None:
        told.append(("second", new))

    state.add_change_callback(first)
    state.add_change_callback(second)
    assert len(await state.aset("a")) == 2
    assert left == [0]
    assert told == [("first", "a"), ("second", "a"), ("first", "b"), ("second", "b")]


async def test_changes_of_tasks_are_told_in_the_order_they_happen() -> None:
    state = ObservableState(0)
    told = []

    async def tell(old, new) -> None:
        told.append((old, new))
        for _ in range(3):
            await anyio.lowlevel.checkpoint()
        told.append((old, new))

    state.add_change_callback(tell)
    async with anyio.create_task_group() as group:
        for number in range(1, 6):
            group.start_soon(state.aset, number)
    assert told[::2] == told[1::2]
    told = told[::2]
    assert [old for old, _ in told] == [0, *(new for _, new in told[:-1])]
    assert len(told) == 5


@pytest.fixture
def hasty_threads():
    """Let threads take turns as often as they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("hasty_threads")
def test_changes_of_threads_are_told_once_each_and_in_order() -> None:
    state = ObservableState(None)
    told = recorder(state)
    barrier = threading.Barrier(8)

    def change(thread: int) -> None:
        barrier.wait()
        for number in range(1000):
            state.set((thread, number))

    threads = [threading.Thread(target=change, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(told) == 8 * 1000
    assert [old for old, _ in told] == [None, *(new for _, new in told[:-1])]
    assert told[-1][1] == state.value


async def test_a_thread_and_a_loop_may_change_one_state() -> None:
    """A callback that came to be async meanwhile is awaited by the task, not lost in the thread."""
    state = ObservableState(0)
    in_callback, go_on = threading.Event(), threading.Event()

    def hold(old, new) -> None:
        in_callback.set()
        assert go_on.wait(10)

    told = []

    async def tell(old, new) -> None:
        told.append((old, new))

    handle = state.add_change_callback(hold)
    async with anyio.create_task_group() as group:
        group.start_soon(anyio.to_thread.run_sync, state.set, 1)
        await anyio.to_thread.run_sync(in_callback.wait)
        handle.cancel()
        state.add_change_callback(tell)
        group.start_soon(state.aset, 2)
        await state.wait_for(2)
        assert told == []
        go_on.set()
    assert told == [(1, 2)]


def test_who_listens_when_a_value_changes_is_told_and_no_one_else(state) -> None:
    """A callback registered between a change and its telling does not hear of it."""
    late = []

    def first(old, new) -> None:
        if new == "a":
            state.set("b")
            state.add_change_callback(lambda old, new: late.append((old, new)))

    state.add_change_callback(first)
    state.set("a")
    state.set("c")
    assert late == [("b", "c")]


def test_a_callback_registered_while_values_are_compared_hears_of_the_change(state) -> None:
    told = []

    class New:
        def __eq__(self, other):
            if not told:
                told.append("compared")
                state.add_change_callback(lambda: told.append("told"))
            return False

        __hash__ = None

    state.set(New())
    assert told == ["compared", "told"]


def test_an_async_callback_registered_while_values_are_compared_is_refused(state) -> None:
    class New:
        def __eq__(self, other):
            state.add_change_callback(noticed)
            return False

        __hash__ = None

    with pytest.raises(AsyncCallbackError):
        state.set(New())
    assert state.value == "idle"


def test_a_callback_cancelled_before_its_turn_is_not_called(state) -> None:
    told = []
    state.add_change_callback(lambda: handle.cancel())
    handle = state.add_change_callback(lambda: told.append(1))
    assert [outcome.status for outcome in state.set("a")] == ["ok", "skipped"]
    assert told == []


def test_callbacks_that_cause_changes_without_end_are_stopped() -> None:
    state = ObservableState(0)
    state.add_change_callback(lambda old, new: state.set(new + 1))
    errors = []
    state.add_change_callback(lambda: None)
    state.add_change_callback(lambda old, new: errors.append(new))
    state.set(1)
    assert errors == list(range(1, state.value + 1))
    assert 50 < state.value < 1000
    state.set(0)
    assert state.value > 50


def test_a_refused_change_leaves_the_value() -> None:
    state = ObservableState(0)
    seen = []

    def further(old, new) -> None:
        try:
            state.set(new + 1)
        except DispatchDepthError:
            seen.append(state.value == new)

    state.add_change_callback(further)
    state.set(1)
    assert seen == [True]


def test_more_changes_than_can_wait_are_refused_and_leave_the_value() -> None:
    state = ObservableState(-1)
    refused = []

    def flood(old, new) -> None:
        if new == 0:
            for number in range(1, 10_001):
                state.set(number)
            with pytest.raises(BacklogError):
                state.set(-1)
            refused.append(state.value)

    state.add_change_callback(flood)
    told = recorder(state)
    state.set(0)
    assert refused == [10_000]
    assert [new for _, new in told] == list(range(10_001))


def test_no_code_of_a_value_runs_under_a_lock(state) -> None:
    """A comparison that waits for another thread to change the state would wait for ever."""

    class Slow:
        done = False

        def __eq__(self, other):
            if not self.done:
                self.done = True
                thread = threading.Thread(target=state.set, args=("other",))
                thread.start()
                thread.join(10)
                assert not thread.is_alive()
            return False

        __hash__ = None

    told = recorder(state)
    slow = Slow()
    state.set(slow)
    assert told == [("idle", "other"), ("other", slow)]


async def test_a_cancelled_aset_passes_and_the_next_change_is_told(state) -> None:
    told = []

    async def tell(old, new) -> None:
        told.append(new)
        if new == "a":
            await anyio.sleep_forever()

    state.add_change_callback(tell)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await state.aset("a")
    assert scope.cancelled_caught
    await state.aset("b")
    assert told == ["a", "b"]


def test_an_interrupt_passes_and_the_next_change_is_told(state) -> None:
    def interrupt(old, new) -> None:
        if new == "a":
            raise KeyboardInterrupt

    state.add_change_callback(interrupt)
    told = recorder(state)
    with pytest.raises(KeyboardInterrupt):
        state.set("a")
    state.set("b")
    assert told == [("a", "b")]


@given(st.lists(st.sampled_from([0, 1, 1.0, True, "a", None, (), float("nan")])))
def test_the_changes_told_are_the_values_set_without_repetitions(values) -> None:
    """Each change begins where the last ended, and none is from a value to its equal."""
    state: ObservableState[object] = ObservableState(-1)
    told = recorder(state)
    for value in values:
        state.set(value)
    expected = [-1]
    for value in values:
        if not (value is expected[-1] or value == expected[-1]):
            expected.append(value)
    assert told == list(itertools.pairwise(expected))
    assert state.value is expected[-1]


# Waiting.


async def test_wait_for_returns_at_once_when_the_value_is_there(state) -> None:
    await state.wait_for("idle", timeout=1)


async def test_wait_for_wakes_when_the_value_comes(state) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(state.wait_for, "done")
        await anyio.wait_all_tasks_blocked()
        assert not state.set("running")
        await state.aset("done")
        state.set("gone")


async def test_wait_for_is_woken_from_a_thread(state) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(state.wait_for, "done")
        await anyio.wait_all_tasks_blocked()
        await anyio.to_thread.run_sync(state.set, "done")


async def test_wait_for_times_out_and_leaves_nothing_behind(state) -> None:
    with pytest.raises(TimeoutError):
        await state.wait_for("done", timeout=0.01)
    assert state._listeners.plan("state change").taps == ()
    with pytest.raises(ValueError, match="timeout must be positive"):
        await state.wait_for("done", timeout=0)


async def test_wait_for_does_not_depend_on_callbacks_being_told(state) -> None:
    """The change of an `aset` that is cancelled has happened all the same."""
    state.add_change_callback(lambda: anyio.sleep_forever())
    async with anyio.create_task_group() as group:
        group.start_soon(state.wait_for, "a")
        await anyio.wait_all_tasks_blocked()
        with anyio.CancelScope() as scope:
            scope.cancel()
            await state.aset("a")
