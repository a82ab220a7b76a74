"""Callbacks in a row: what each is given, and what becomes of the run when one fails."""

import asyncio
import functools
import threading
from itertools import pairwise

import anyio
import anyio.lowlevel
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from callbackkit import (
    AsyncCallbackError,
    CallbackCancelledError,
    CallbackChain,
    ChainResult,
    DispatchDepthError,
    StopChain,
)


def fail(_value: object) -> None:
    raise ValueError("broken")


async def add_one(value: int) -> int:
    await anyio.lowlevel.checkpoint()
    return value + 1


def double(value: int) -> int:
    return value * 2


class Adder:
    async def __call__(self, value: int) -> int:
        return value + 10


# What each is given.


async def test_each_callback_is_given_what_the_one_before_returned() -> None:
    chain = CallbackChain().add_callback(double).add_callback(add_one).add_callback(double)
    assert await chain.execute_chain(1) == 6


def test_the_sync_twin_does_the_same() -> None:
    chain = CallbackChain().add_callback(double).add_callback(str)
    assert chain.execute_chain_sync(1) == "2"


async def test_a_chain_without_callbacks_returns_the_initial_value() -> None:
    chain = CallbackChain()
    assert await chain.execute_chain("x") == "x"
    assert await chain.run("x") == ChainResult("x", completed=True)
    assert chain.run_sync(None) == ChainResult(None, completed=True)


async def test_any_callable_may_stand_in_a_chain() -> None:
    chain = CallbackChain()
    for callback in (
        functools.partial(max, 5),
        functools.partial(add_one),
        Adder(),
        lambda value: add_one(value),
        functools.lru_cache(add_one),
        str,
    ):
        chain.add_callback(callback)
    assert await chain.execute_chain(1) == "18"


async def test_a_callback_without_parameters_is_given_nothing() -> None:
    chain = CallbackChain().add_callback(lambda: 7).add_callback(lambda x=1: x)
    assert await chain.execute_chain(3) == 1
    assert chain.execute_chain_sync(3) == 1


async def test_none_is_a_value_like_any_other() -> None:
    seen: list[object] = []
    chain = CallbackChain().add_callback(lambda _value: None).add_callback(seen.append)
    result = await chain.run(1)
    assert seen == [None]
    assert result == ChainResult(None, completed=True)


# What becomes of the run when one fails.


@pytest.fixture(params=["async", "sync"])
def run(request):
    """Run a chain either way; in a test without an event loop."""
    if request.param == "sync":
        return lambda chain, value=None: chain.run_sync(value)
    return lambda chain, value=None: anyio.run(chain.run, value)


def test_stop_ends_with_the_last_good_value(run, caplog) -> None:
    seen: list[object] = []
    chain = CallbackChain().add_callback(double).add_callback(fail).add_callback(seen.append)
    result = run(chain, 2)
    assert (result.value, result.completed, result.failed_at) == (4, False, 1)
    assert isinstance(result.error, ValueError)
    assert seen == []
    [record] = caplog.records
    assert "test_chain.fail" in record.message
    assert "chain[1]" in record.message
    assert "ValueError: broken" in caplog.text


def test_stop_at_the_first_returns_the_initial_value(run) -> None:
    result = run(CallbackChain().add_callback(fail), 2)
    assert (result.value, result.failed_at) == (2, 0)


def test_skip_goes_on_with_the_last_good_value(run, caplog) -> None:
    """It tells the first failure, and that the chain ran to its end."""
    chain = CallbackChain(on_error="skip")
    chain.add_callback(double).add_callback(fail).add_callback(double).add_callback(len)
    result = run(chain, 2)
    assert (result.value, result.completed, result.failed_at) == (8, True, 1)
    assert isinstance(result.error, ValueError)
    assert len(caplog.records) == 2


def test_raise_raises_the_original_and_logs_nothing(run, caplog) -> None:
    error = ValueError("mine")
    seen: list[object] = []

    def fail_so(_value: object) -> None:
        raise error

    chain = CallbackChain(on_error="raise").add_callback(fail_so).add_callback(seen.append)
    with pytest.raises(ValueError, match="mine") as caught:
        run(chain, 2)
    assert caught.value is error
    assert seen == []
    assert caplog.records == []


async def test_an_async_failure_is_raised_likewise(caplog) -> None:
    async def fail_later(_value: object) -> None:
        await anyio.lowlevel.checkpoint()
        raise ValueError("later")

    chain = CallbackChain(on_error="raise").add_callback(fail_later)
    with pytest.raises(ValueError, match="later"):
        await chain.execute_chain(1)
    assert caplog.records == []
    result = await CallbackChain().add_callback(fail_later).run(1)
    assert (result.value, result.failed_at) == (1, 0)


def test_a_failing_partial_without_a_name_is_a_failure_like_any_other(run) -> None:
    class Hostile:
        def __call__(self, _value: object) -> None:
            raise ValueError

        def __repr__(self) -> str:
            raise RuntimeError

    chain = CallbackChain(on_error="skip")
    chain.add_callback(functools.partial(Hostile())).add_callback(Hostile()).add_callback(double)
    assert run(chain, 1).value == 2


def test_a_run_does_not_remember_the_one_before(run) -> None:
    chain = CallbackChain(on_error="skip").add_callback(lambda value: 1 // value)
    assert run(chain, 0).failed_at == 0
    assert run(chain, 1) == ChainResult(1, completed=True)


@pytest.mark.parametrize("on_error", ["stop", "skip", "raise"])
def test_stop_chain_ends_early_with_its_value(run, caplog, on_error) -> None:
    def stop(value: int) -> None:
        raise StopChain(value + 5)

    chain = CallbackChain(on_error=on_error).add_callback(stop).add_callback(fail)
    assert run(chain, 2) == ChainResult(7, completed=True)
    assert caplog.records == []


async def test_an_async_callback_may_stop_the_chain() -> None:
    async def stop(_value: object) -> None:
        await anyio.lowlevel.checkpoint()
        raise StopChain("early")

    assert await CallbackChain().add_callback(stop).add_callback(fail).execute_chain(1) == "early"


def test_stop_chain_ends_the_inner_chain_only(run) -> None:
    def stop(value: int) -> None:
        raise StopChain(value + 1)

    inner = CallbackChain().add_callback(stop).add_callback(fail)
    outer = CallbackChain().add_callback(inner.execute_chain_sync).add_callback(double)
    assert run(outer, 1).value == 4


async def test_a_chain_may_stand_in_a_chain() -> None:
    inner = CallbackChain().add_callback(add_one)
    outer = CallbackChain().add_callback(inner.execute_chain).add_callback(double)
    assert await outer.execute_chain(1) == 4


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("on_error", ["stop", "skip", "raise"])
def test_an_interrupt_passes(on_error, stop) -> None:
    def interrupt(_value: object) -> None:
        raise stop

    with pytest.raises(stop):
        CallbackChain(on_error=on_error).add_callback(interrupt).execute_chain_sync(None)


# Cancellation.


def cancelled_by_itself(_value: object) -> None:
    raise asyncio.CancelledError


async def awaits_a_cancelled_task(_value: object) -> None:
    task = asyncio.ensure_future(asyncio.sleep(10))
    task.cancel()
    await task


@pytest.mark.parametrize("callback", [cancelled_by_itself, awaits_a_cancelled_task])
def test_a_foreign_cancellation_is_a_failure(callback) -> None:
    async def main() -> None:
        chain = CallbackChain(on_error="skip").add_callback(callback).add_callback(double)
        result = await chain.run(1)
        assert (result.value, result.completed, result.failed_at) == (2, True, 0)
        assert isinstance(result.error, CallbackCancelledError)
        result = await CallbackChain().add_callback(callback).add_callback(double).run(1)
        assert (result.value, result.completed) == (1, False)
        with pytest.raises(CallbackCancelledError):
            await CallbackChain(on_error="raise").add_callback(callback).run(1)

    asyncio.run(main())


def test_a_foreign_cancellation_is_a_failure_without_a_loop_too() -> None:
    result = CallbackChain().add_callback(cancelled_by_itself).run_sync(1)
    assert isinstance(result.error, CallbackCancelledError)


@pytest.mark.parametrize("on_error", ["stop", "skip", "raise"])
async def test_a_cancelled_run_is_cancelled(on_error, caplog) -> None:
    seen: list[object] = []

    async def wait(_value: object) -> None:
        await anyio.sleep_forever()

    chain = CallbackChain(on_error=on_error).add_callback(wait).add_callback(seen.append)
    with anyio.move_on_after(0.01) as scope:
        await chain.run(1)
    assert scope.cancelled_caught
    assert seen == []
    assert caplog.records == []


def test_wait_for_times_out() -> None:
    async def main() -> None:
        chain = CallbackChain(on_error="skip").add_callback(lambda _value: asyncio.sleep(10))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(chain.run(1), 0.01)

    asyncio.run(main())


# Async callbacks in a synchronous run.


@pytest.mark.parametrize("callback", [add_one, Adder(), functools.partial(add_one)])
@pytest.mark.parametrize("on_error", ["stop", "skip", "raise"])
def test_an_async_callback_is_refused_before_anything_is_called(callback, on_error) -> None:
    seen: list[object] = []
    chain = CallbackChain(on_error=on_error).add_callback(seen.append).add_callback(callback)
    with pytest.raises(AsyncCallbackError, match=r"test_chain\.(add_one|Adder)"):
        chain.run_sync(1)
    assert seen == []


def test_an_awaitable_that_comes_back_is_closed_and_a_failure() -> None:
    coroutines = []

    def unforeseen(value: int) -> object:
        coroutines.append(add_one(value))
        return coroutines[-1]

    chain = CallbackChain(on_error="skip").add_callback(unforeseen).add_callback(double)
    result = chain.run_sync(1)
    assert (result.value, result.failed_at) == (2, 0)
    assert isinstance(result.error, AsyncCallbackError)
    assert coroutines[0].cr_frame is None
    with pytest.raises(AsyncCallbackError):
        CallbackChain(on_error="raise").add_callback(unforeseen).run_sync(1)


# Changing.


def test_a_change_during_a_run_counts_from_the_next(run) -> None:
    seen: list[str] = []

    def change(_value: object) -> None:
        chain.add_callback(lambda _value: seen.append("added"))
        chain.remove_callback(last)

    def last(_value: object) -> None:
        seen.append("last")

    chain = CallbackChain().add_callback(change).add_callback(last)
    run(chain)
    assert seen == ["last"]
    run(chain)
    assert seen == ["last", "added"]


def test_a_callback_is_removed_once() -> None:
    chain = CallbackChain().add_callback(double).add_callback(str).add_callback(double)
    assert chain.remove_callback(double)
    assert chain.execute_chain_sync(2) == "22"
    assert chain.remove_callback(double)
    assert not chain.remove_callback(double)
    assert len(chain) == 1


def test_removing_compares_under_no_lock() -> None:
    """An object's ``__eq__`` may itself change the chain."""

    class Meddling:
        def __call__(self, value: int) -> int:
            return value

        def __eq__(self, other: object) -> bool:
            if len(chain) < 3:
                chain.add_callback(double)
            return self is other

        __hash__ = None

    meddling = Meddling()
    chain = CallbackChain().add_callback(Meddling()).add_callback(meddling)
    assert chain.remove_callback(meddling)
    assert chain.execute_chain_sync(1) == 2


def test_many_threads_may_run_and_change_a_chain() -> None:
    chain = CallbackChain()
    values: list[int] = []
    start = threading.Barrier(8)

    def work() -> None:
        start.wait(10)
        for _ in range(50):
            chain.add_callback(lambda value: value + 1)
            values.append(chain.execute_chain_sync(0))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(chain) == 400
    assert max(values) == 400


def test_a_chain_that_runs_itself_for_ever_is_stopped() -> None:
    result: list[ChainResult] = []
    chain = CallbackChain()
    chain.add_callback(chain.execute_chain_sync)
    result.append(chain.run_sync(1))
    assert isinstance(result[0].error, DispatchDepthError)


@pytest.mark.parametrize("bad", [None, 1, "name"])
def test_what_is_not_callable_is_refused(bad) -> None:
    chain = CallbackChain()
    with pytest.raises(TypeError, match="must be callable"):
        chain.add_callback(bad)
    assert len(chain) == 0


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(ValueError, match="'stop', 'skip' or 'raise', not 'ignore'"):
        CallbackChain(on_error="ignore")


def test_a_chain_tells_its_callbacks() -> None:
    chain = CallbackChain(on_error="skip")
    assert repr(chain) == "<CallbackChain on_error='skip': no callbacks>"
    chain.add_callback(str).add_callback(len)
    assert repr(chain) == "<CallbackChain on_error='skip': builtins.str -> builtins.len>"


# Against a model.


class Step:
    """A callback of a kind, and what the model expects of it."""

    def __init__(self, kind: str, number: int) -> None:
        self.kind = kind
        self.number = number
        self.given: list[int] = []

    def then(self, value: int) -> int:
        return value * 3 + self.number

    def body(self, value: int) -> int:
        self.given.append(value)
        if "fails" in self.kind:
            raise ValueError(self.number)
        if "stops" in self.kind:
            raise StopChain(self.then(value))
        return self.then(value)

    def callback(self):
        if not self.kind.startswith("async"):
            return self.body

        async def later(value: int) -> int:
            await anyio.lowlevel.checkpoint()
            return self.body(value)

        return later


def expected(steps: list[Step], value: int, on_error: str):
    """Return the result, or the number of the step that raises, and what was given to whom."""
    given: list[tuple[int, int]] = []
    failed_at, number = None, None
    for index, step in enumerate(steps):
        given.append((index, value))
        if "fails" in step.kind:
            if on_error == "raise":
                return step.number, given
            if failed_at is None:
                failed_at, number = index, step.number
            if on_error == "stop":
                return (value, False, failed_at, number), given
            continue
        value = step.then(value)
        if "stops" in step.kind:
            break
    return (value, True, failed_at, number), given


def found(steps: list[Step], run):
    try:
        result = run()
    except ValueError as exc:
        outcome = exc.args[0]
    else:
        number = None if result.error is None else result.error.args[0]
        outcome = (result.value, result.completed, result.failed_at, number)
    given = [(index, value) for index, step in enumerate(steps) for value in step.given]
    for step in steps:
        step.given.clear()
    return outcome, given


KINDS = ["returns", "returns", "fails", "stops", "async returns", "async fails", "async stops"]


class ChainMachine(RuleBasedStateMachine):
    """A chain and a list of steps are changed and run side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.chains = {kind: CallbackChain(on_error=kind) for kind in ("stop", "skip", "raise")}
        self.steps: list[tuple[Step, object]] = []
        self.number = 0

    @rule(kind=st.sampled_from(KINDS))
    def add(self, kind: str) -> None:
        self.number += 1
        step = Step(kind, self.number)
        self.steps.append((step, step.callback()))
        for chain in self.chains.values():
            assert chain.add_callback(self.steps[-1][1]) is chain

    @rule(index=st.integers(0, 5))
    def remove(self, index: int) -> None:
        if index >= len(self.steps):
            assert not any(chain.remove_callback(fail) for chain in self.chains.values())
            return
        _, callback = self.steps.pop(index)
        assert all(chain.remove_callback(callback) for chain in self.chains.values())

    @rule(
        on_error=st.sampled_from(["stop", "skip", "raise"]),
        value=st.integers(-3, 3),
        backend=st.sampled_from(["asyncio", "trio"]),
    )
    def run_async(self, on_error: str, value: int, backend: str) -> None:
        chain, steps = self.chains[on_error], [step for step, _ in self.steps]
        outcome = found(steps, lambda: anyio.run(chain.run, value, backend=backend))
        assert outcome == expected(steps, value, on_error)

    @rule(on_error=st.sampled_from(["stop", "skip", "raise"]), value=st.integers(-3, 3))
    def run_sync(self, on_error: str, value: int) -> None:
        chain, steps = self.chains[on_error], [step for step, _ in self.steps]
        if any(step.kind.startswith("async") for step in steps):
            with pytest.raises(AsyncCallbackError):
                chain.run_sync(value)
            assert not any(step.given for step in steps)
            return
        outcome = found(steps, lambda: chain.run_sync(value))
        assert outcome == expected(steps, value, on_error)

    @invariant()
    def chains_are_as_long_as_the_list(self) -> None:
        lengths = [len(self.steps), *map(len, self.chains.values())]
        assert all(one == other for one, other in pairwise(lengths))


TestChainMachine = ChainMachine.TestCase
