"""One call of a transport: what becomes of it is a value."""

import asyncio
from asyncio import CancelledError
from functools import partial

import anyio
import pytest
from anyio.lowlevel import checkpoint

from callbackkit.delivery.attempt import Deadlines, describe, failure_of
from callbackkit.dispatch.concurrency import on_asyncio
from callbackkit.errors import CallbackCancelledError, Gone, Retry
from tests.delivery.rig import PATIENCE, Config


async def test_what_works_is_no_failure() -> None:
    got: list[int] = []

    async def send(n: int) -> None:
        await checkpoint()
        got.append(n)

    assert await failure_of(send, 3, timeout=5) is None
    assert got == [3]


async def test_an_exception_is_returned() -> None:
    async def send() -> None:
        raise OSError("refused")

    error = await failure_of(send, timeout=5)
    assert isinstance(error, OSError)


@pytest.mark.parametrize(
    "function", [lambda: None, lambda: 1 / 0, None], ids=["none", "raise", "x"]
)
async def test_what_is_no_coroutine_function_fails_too(function) -> None:
    assert isinstance(await failure_of(function, timeout=5), TypeError | ZeroDivisionError)


async def test_it_ends_at_the_deadline() -> None:
    error = await failure_of(anyio.sleep_forever, timeout=0.02)
    assert isinstance(error, TimeoutError)
    assert str(error) == "not done within 0.02 s"


async def test_what_it_raises_when_its_time_is_up_is_its_failure() -> None:
    async def send() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise OSError("connection closed")

    assert isinstance(await failure_of(send, timeout=0.02), OSError)
    # Nothing of the deadline is left behind.
    await anyio.sleep(0)


async def test_a_timeout_of_its_own_is_its_own() -> None:
    async def send() -> None:
        with anyio.fail_after(0.01):
            await anyio.sleep_forever()

    error = await failure_of(send, timeout=5)
    assert isinstance(error, TimeoutError)
    assert "5" not in str(error)


async def test_cancelling_the_caller_passes_through() -> None:
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as group:

            async def call() -> None:
                await failure_of(anyio.sleep_forever, timeout=60)
                pytest.fail("it went on")

            group.start_soon(call)
            await anyio.wait_all_tasks_blocked()
            scope.cancel()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_cancellation_that_nobody_sent_is_a_failure(anyio_backend) -> None:
    async def send() -> None:
        raise CancelledError

    async def awaits_what_was_cancelled() -> None:
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    for function in (send, awaits_what_was_cancelled):
        error = await failure_of(function, timeout=5)
        assert isinstance(error, CallbackCancelledError)
        assert isinstance(error.__cause__, CancelledError)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
async def test_what_is_to_end_the_program_passes_through(kind) -> None:
    async def send() -> None:
        raise kind

    with pytest.raises(kind):
        await failure_of(send, timeout=5)


# The deadlines of many.


async def test_each_attempt_ends_at_its_own_time() -> None:
    """Those with the same timeout one after the other; those with a long one not with them."""
    ended: list[tuple[str, float]] = []
    deadlines = Deadlines()

    async def attempt(name: str, timeout: float) -> None:
        begin = anyio.current_time()
        error = await deadlines.failure_of(anyio.sleep_forever, timeout=timeout)
        assert str(error) == f"not done within {timeout:g} s"
        # Timers may be a little early, and what they have end comes a little later.
        assert anyio.current_time() - begin >= timeout - 0.002
        ended.append((name, timeout))
        if len(ended) == 4:
            group.cancel_scope.cancel()

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            for name, timeout in (("z", 60.0), ("a", 0.08), ("b", 0.02), ("c", 0.08), ("d", 0.02)):
                group.start_soon(attempt, name, timeout)
                begin = anyio.current_time()
                while anyio.current_time() < begin + 0.01:
                    await checkpoint()
    deadlines.close()
    assert sorted(ended) == [("a", 0.08), ("b", 0.02), ("c", 0.08), ("d", 0.02)]


async def test_of_many_attempts_those_that_hang_end_and_the_others_do_not() -> None:
    deadlines = Deadlines()
    errors: dict[int, Exception | None] = {}
    proceed = anyio.Event()

    async def attempt(n: int) -> None:
        act = anyio.sleep_forever if n % 2 else proceed.wait
        errors[n] = await deadlines.failure_of(act, timeout=0.1 if n % 2 else 60.0)
        if len(errors) == 50:
            proceed.set()

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            for n in range(100):
                group.start_soon(attempt, n)
    deadlines.close()
    assert [n for n in range(100) if errors[n] is None] == list(range(0, 100, 2))
    assert {str(errors[n]) for n in range(1, 100, 2)} == {"not done within 0.1 s"}


async def test_an_attempt_that_has_ended_does_not_end_the_next_of_its_task() -> None:
    """Nor whatever else the task does, when the time of that one would be up."""
    deadlines = Deadlines()
    begin = anyio.current_time()
    assert await deadlines.failure_of(checkpoint, timeout=0.03) is None

    async def longer() -> None:
        while anyio.current_time() < begin + 0.06:
            await checkpoint()

    assert await deadlines.failure_of(longer, timeout=60.0) is None
    begin = anyio.current_time()
    assert isinstance(await deadlines.failure_of(raise_error, timeout=0.03), OSError)
    await longer()
    # One that began behind it has all of its time.
    begin = anyio.current_time()
    assert await deadlines.failure_of(checkpoint, timeout=0.05) is None
    while anyio.current_time() < begin + 0.03:
        await checkpoint()
    begin = anyio.current_time()
    error = await deadlines.failure_of(anyio.sleep_forever, timeout=0.05)
    assert isinstance(error, TimeoutError)
    assert anyio.current_time() - begin >= 0.048
    deadlines.close()


async def raise_error() -> None:
    raise OSError("refused")


async def test_a_deadline_leaves_no_cancellation_behind() -> None:
    """What ends at its deadline can be followed by another, and by anything else."""
    deadlines = Deadlines()
    for _ in range(3):
        error = await deadlines.failure_of(anyio.sleep_forever, timeout=0.01)
        assert isinstance(error, TimeoutError)
        await checkpoint()
        assert await deadlines.failure_of(checkpoint, timeout=5) is None

    async def swallows() -> None:
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            raise OSError("connection closed") from None

    assert isinstance(await deadlines.failure_of(swallows, timeout=0.01), OSError)
    if on_asyncio():
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
    deadlines.close()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_timeouts_that_nobody_uses_are_forgotten(anyio_backend) -> None:
    """Clients choose them: there may be as many as there are sessions."""
    deadlines = Deadlines()
    for n in range(100):
        assert await deadlines.failure_of(checkpoint, timeout=0.01 + n / 100_000) is None
    assert isinstance(await deadlines.failure_of(anyio.sleep_forever, timeout=0.05), TimeoutError)
    assert deadlines._rows == {}
    # Those in use are not.
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as group:
            group.start_soon(partial(deadlines.failure_of, anyio.sleep_forever, timeout=60.0))
            await anyio.wait_all_tasks_blocked()
            error = await deadlines.failure_of(anyio.sleep_forever, timeout=0.02)
            assert isinstance(error, TimeoutError)
            assert list(deadlines._rows) == [60.0]
            scope.cancel()
    deadlines.close()
    assert deadlines._rows == {}


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_closing_lets_go_of_timers_and_leaves_what_is_under_way_to_itself(
    anyio_backend,
) -> None:
    deadlines = Deadlines()
    proceed = anyio.Event()
    errors: list[Exception | None] = []

    async def attempt() -> None:
        errors.append(await deadlines.failure_of(proceed.wait, timeout=0.02))

    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(attempt)
        await anyio.wait_all_tasks_blocked()
        deadlines.close()
        begin = anyio.current_time()
        while anyio.current_time() < begin + 0.05:
            await checkpoint()
        assert errors == []
        proceed.set()
    assert errors == [None] * 3
    # Twice is harmless, and it may be used again.
    deadlines.close()
    assert isinstance(await deadlines.failure_of(anyio.sleep_forever, timeout=0.02), TimeoutError)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("earlier", [0.005, -0.005], ids=["before", "behind"])
async def test_being_cancelled_in_the_moment_the_time_is_up_stands(anyio_backend, earlier) -> None:
    """Both happen before the task runs again: whoever cancelled it has it end."""
    loop = asyncio.get_running_loop()
    deadlines = Deadlines()
    begun = loop.create_future()

    async def send() -> None:
        begun.set_result(loop.time())
        await anyio.sleep_forever()

    task = asyncio.create_task(deadlines.failure_of(send, timeout=0.05))
    ends_at = await begun + 0.05
    cancelled: list[bool] = []
    loop.call_at(ends_at - earlier, lambda: cancelled.append(task.cancel()))
    # The event loop comes to both in one turn.
    while loop.time() < ends_at + 0.02:
        pass
    with pytest.raises(CancelledError):
        await task
    assert cancelled == [True]
    assert task.cancelled()
    assert task.cancelling() == 1
    deadlines.close()


# Describing.


class Rude(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")


class Careless(Config):
    def mask(self, text: str) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError("refused"), "OSError: refused"),
        (OSError(), "OSError"),
        (ValueError("key hunter2 is bad"), "ValueError: key *** is bad"),
        (Retry(after=5, reason="busy"), "Retry: busy"),
        (Retry(), "Retry"),
        (Gone("deleted hunter2"), "Gone: deleted ***"),
        (Rude(), "Rude"),
        (ValueError("x" * 1000), "ValueError: " + "x" * 288),
        (ValueError("a\udcffb"), "ValueError: a?b"),
    ],
    ids=["text", "none", "secret", "retry", "bare", "gone", "rude", "long", "surrogate"],
)
def test_an_error_is_told_by_name_and_text_without_secrets(error, text) -> None:
    assert describe(error, Config()) == text


def test_where_the_secrets_are_not_known_only_the_name_is_told() -> None:
    assert describe(ValueError("hunter2"), None) == "ValueError"
    assert describe(ValueError("hunter2"), Careless()) == "ValueError"
