"""The callbacks that do nothing, and the loops that pure Python cannot beat."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

EVENT = "order.created"
DATA = {"order": 7}

Plain = Callable[[object], object]
Awaited = Callable[[object], Awaitable[object]]


def plain(count: int) -> list[Plain]:
    """Make that many functions of one parameter that do nothing."""

    def make() -> Plain:
        def callback(data: object) -> None:
            pass

        return callback

    return [make() for _ in range(count)]


def named(count: int) -> list[Callable[..., object]]:
    """Make that many functions that do nothing and take whatever keywords come."""

    def make() -> Callable[..., object]:
        def callback(**named: object) -> None:
            pass

        return callback

    return [make() for _ in range(count)]


def awaitable(count: int) -> list[Awaited]:
    """Make that many async functions that do nothing and do not suspend."""

    def make() -> Awaited:
        async def callback(data: object) -> None:
            pass

        return callback

    return [make() for _ in range(count)]


def suspending(count: int) -> list[Awaited]:
    """Make that many async functions that give the loop one turn."""

    def make() -> Awaited:
        async def callback(data: object) -> None:
            await asyncio.sleep(0)

        return callback

    return [make() for _ in range(count)]


def fail(*data: object, **named: object) -> None:
    """Raise, whatever is given."""
    raise ValueError("no")


def isolated(callbacks: Sequence[Plain], data: object) -> None:
    """Call each in a bare loop: the limit of synchronous dispatch."""
    for callback in callbacks:
        try:
            callback(data)
        except Exception:  # the limit isolates, as a dispatcher does
            pass


def isolated_telling(
    callbacks: Sequence[Plain], data: object, on_error: Callable[[Exception, object], object]
) -> None:
    """Call each in a bare loop and hand what they raise to an error callback."""
    for callback in callbacks:
        try:
            callback(data)
        except Exception as error:
            on_error(error, None)


async def isolated_await(callbacks: Sequence[Awaited], data: object) -> None:
    """Await each in a bare loop: the limit of awaited dispatch."""
    for callback in callbacks:
        try:
            await callback(data)
        except Exception:  # the limit isolates, as a dispatcher does
            pass


async def gathered(callbacks: Sequence[Awaited], data: object) -> None:
    """Run each in a task of its own and wait for all: the limit of concurrent dispatch."""
    await asyncio.gather(*[callback(data) for callback in callbacks], return_exceptions=True)
