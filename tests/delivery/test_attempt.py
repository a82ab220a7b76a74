"""One call of a transport: what becomes of it is a value."""

import asyncio
from asyncio import CancelledError

import anyio
import pytest
from anyio.lowlevel import checkpoint

from callbackkit.delivery.attempt import describe, failure_of
from callbackkit.errors import CallbackCancelledError, Gone, Retry
from tests.delivery.rig import Config


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
