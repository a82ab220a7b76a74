"""Callbacks that fail: do the others run, and does the program hear of it?"""

import asyncio
import functools
from collections.abc import Callable
from typing import Any

from tests.comparison.libraries.base import Delivery, Library
from tests.comparison.verdicts import HANGS, STOPS, Verdict, judged

PATIENCE = 2.0
"""Seconds until something that waits counts as hanging."""


class _Neighbours:
    """Two callbacks, registered before and after the one that fails."""

    def __init__(self, library: Library, bad: Callable[..., Any]) -> None:
        self.called: list[str] = []
        library.connect(self.before)
        library.connect(bad)
        library.connect(self.after)

    def before(self, *args: Any, **kwargs: Any) -> None:
        self.called.append("before")

    def after(self, *args: Any, **kwargs: Any) -> None:
        self.called.append("after")

    def verdict(self, delivery: Delivery | BaseException) -> Verdict:
        """Judge by whether all were called and the failure is known."""
        if isinstance(delivery, BaseException):
            return _stopped(delivery)
        return judged(
            (sorted(self.called) == ["after", "before"], STOPS, "the others are not called"),
            (bool(delivery.failures), "hides it", "the program never hears of the failure"),
        )


def _stopped(error: BaseException) -> Verdict:
    name = type(error).__name__
    return Verdict(STOPS, f"`{name}` reaches the sender, the callbacks after it are not called")


def failing_function(library: Library) -> Verdict:
    """A function raises.

    The callbacks around it are called, the failure is told.
    """

    def fail(*args: Any, **kwargs: Any) -> None:
        raise ValueError("no")

    return _send_around(library, fail)


def failing_partial(library: Library) -> Verdict:
    """A `functools.partial` raises.

    The callbacks around it are called, the failure is told.
    """

    def fail(reason: str, *args: Any, **kwargs: Any) -> None:
        raise ValueError(reason)

    return _send_around(library, functools.partial(fail, "no"))


def nameless_object(library: Library) -> Verdict:
    """A callable object without `__name__` raises.

    The callbacks around it are called, the failure is told.
    """

    class Nameless:
        def __call__(self, *args: Any, **kwargs: Any) -> None:
            raise ValueError("no")

    return _send_around(library, Nameless())


def raising_repr(library: Library) -> Verdict:
    """A callable object that has a name raises, and so does its `__repr__`.

    The callbacks around it are called, the failure is told.
    """

    class Shy:
        def __init__(self) -> None:
            self.__name__ = self.__qualname__ = "shy"

        def __call__(self, *args: Any, **kwargs: Any) -> None:
            raise ValueError("no")

        def __repr__(self) -> str:
            raise RuntimeError("not you, too")

    return _send_around(library, Shy())


def _send_around(library: Library, bad: Callable[..., Any]) -> Verdict:
    neighbours = _Neighbours(library, bad)
    try:
        return neighbours.verdict(library.send())
    except Exception as error:
        return neighbours.verdict(error)


def raising_error_handler(library: Library) -> Verdict:
    """The function that is told of failures fails itself.

    It is told once, the other callbacks are called.
    """
    told: list[object] = []

    def handler(*args: Any) -> None:
        told.append(args)
        raise RuntimeError("the handler fails, too")

    def fail(*args: Any, **kwargs: Any) -> None:
        raise ValueError("no")

    library.add_error_handler(handler)
    verdict = _send_around(library, fail)
    if len(told) > 1:
        return Verdict("recurses", "the handler is told of its own failure, again and again")
    return verdict


async def foreign_cancellation(library: Library) -> Verdict:
    """An async callback awaits a task that somebody else cancelled.

    The others are called, the sender goes on, the failure is told.
    """

    async def bad(*args: Any, **kwargs: Any) -> None:
        task = asyncio.ensure_future(asyncio.sleep(PATIENCE))
        task.cancel()
        await task

    called: list[str] = []

    async def other(*args: Any, **kwargs: Any) -> None:
        called.append("other")

    library.connect(bad)
    library.connect(other)
    try:
        async with asyncio.timeout(PATIENCE):
            delivery = await library.asend()
    except TimeoutError:
        word = HANGS if library.waits else "loses calls"
        return Verdict(word, "async callbacks are never called again")
    except asyncio.CancelledError as error:
        return _stopped(error)
    return judged(
        (called == ["other"], STOPS, "the others are not called"),
        (bool(delivery.failures), "hides it", "the program never hears of the failure"),
    )


def keyboard_interrupt(library: Library) -> Verdict:
    """A callback is interrupted by `KeyboardInterrupt`.

    It reaches the sender at once.
    """

    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    library.connect(interrupted)
    try:
        library.send()
    except KeyboardInterrupt:
        return judged()
    return Verdict("swallows it", "the program goes on as if nothing had happened")


def failures_in_results(library: Library) -> Verdict:
    """One callback returns 7, one returns an exception as its value, one raises.

    The sender can tell the three apart.
    """

    def give(*args: Any, **kwargs: Any) -> int:
        return 7

    def give_exception(*args: Any, **kwargs: Any) -> Exception:
        return ValueError("a value like any other")

    def fail(*args: Any, **kwargs: Any) -> None:
        raise ValueError("no")

    if not library.has_results:
        return Verdict("not offered", "what callbacks return does not come back")
    for callback in (give, give_exception, fail):
        library.connect(callback)
    try:
        outcomes = library.send().outcomes or []
    except ValueError as error:
        return _stopped(error)
    kinds = sorted(kind for kind, _ in outcomes)
    return judged(
        (kinds == ["error", "value", "value"], "cannot tell", "both exceptions come back alike"),
    )


PROBES = (
    failing_function,
    failing_partial,
    nameless_object,
    raising_repr,
    raising_error_handler,
    foreign_cancellation,
    keyboard_interrupt,
    failures_in_results,
)
