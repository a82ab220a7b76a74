"""Callbacks that note how they are called."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, TypeAlias, TypeGuard, cast
from unittest.mock import DEFAULT

from callbackkit.dispatch.callables import is_awaitable
from callbackkit.testing.messages import counted, listing, show_call
from callbackkit.testing.waiting import Bell

__all__ = ["AsyncMockCallback", "Call", "MockCallback", "SideEffect"]

Call: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]
SideEffect: TypeAlias = (
    BaseException | type[BaseException] | Callable[..., Any] | Iterable[Any] | None
)


class MockCallback:
    """A callback that notes its calls and answers as it is told.

    It takes any arguments, from any thread. Arguments are kept as they are, not copied: what
    changes later has changed in ``calls`` too.

    Args:
        return_value: What a call returns.
        side_effect: What a call does instead, as in :mod:`unittest.mock`: an exception or its
            class is raised; a callable is called with the same arguments, and its value
            returned; of an iterable, each call takes the next value, or raises it if it is an
            exception. A value of ``unittest.mock.DEFAULT`` stands for *return_value*.
        name: What messages, and logs of its failures, call it; it becomes its ``__name__``.

    Raises:
        TypeError: *side_effect* is none of these.

    Attributes:
        calls: One ``(args, kwargs)`` for each call, in order.
        return_value: As above; may be changed at any time.
    """

    _exhausted: ClassVar[type[Exception]] = StopIteration

    def __init__(
        self, return_value: Any = None, side_effect: SideEffect = None, *, name: str | None = None
    ) -> None:
        self.calls: list[Call] = []
        self.return_value: Any = return_value
        self.side_effect = side_effect
        # Code that logs its callbacks takes them for functions.
        self.__name__: str = type(self).__name__ if name is None else name
        self.__qualname__: str = self.__name__
        self._bell = Bell()

    def __repr__(self) -> str:
        kind, name = type(self).__name__, self.__name__
        label = kind if name == kind else f"{kind} {name!r}"
        last = f", last with {show_call(*self.calls[-1])}" if self.calls else ""
        return f"<{label} called {counted(self.call_count, 'time')}{last}>"

    # Being called.

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Note the call, then answer it."""
        self._note(args, kwargs)
        return self._answer(args, kwargs)

    @property
    def side_effect(self) -> SideEffect:
        """What a call does instead of returning *return_value*; may be changed at any time."""
        return self._side_effect

    @side_effect.setter
    def side_effect(self, effect: SideEffect) -> None:
        self._act = _action(effect, self._exhausted)
        self._side_effect = effect

    def _note(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.calls.append((args, kwargs))
        self._bell.ring()

    def _answer(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        answer = self._act(*args, **kwargs)
        return self.return_value if answer is DEFAULT else answer

    # Looking at the calls.

    @property
    def call_count(self) -> int:
        """How often it was called."""
        return len(self.calls)

    @property
    def called(self) -> bool:
        """It was called at least once."""
        return bool(self.calls)

    def reset(self) -> None:
        """Forget the calls. What it answers stays, an iterable where it stands."""
        self.calls.clear()

    async def wait_called(self, count: int = 1, *, timeout: float | None = 5.0) -> None:
        """Wait until it has been called at least *count* times, from wherever.

        Args:
            count: Calls, those that came before the waiting included.
            timeout: Seconds to wait; ``None`` for no limit.

        Raises:
            TimeoutError: Fewer calls came; the message says how many.
        """
        if count < 1:
            raise ValueError(f"count must be at least 1, not {count!r}")
        if not await self._bell.wait_until(lambda: len(self.calls) >= count, timeout):
            raise TimeoutError(
                f"{self.__name__} was called {counted(self.call_count, 'time')} within "
                f"{timeout} seconds, not {counted(count, 'time')}"
            )

    # Asserting. A call that raised was a call too.

    def assert_called_with(self, /, *args: Any, **kwargs: Any) -> None:
        """Assert that the last call had these arguments.

        ``assert_called_with(data)`` says them as they were passed. Given just a tuple and a
        dict, ``assert_called_with((data,), {})``, these may also be the positional and the
        keyword arguments themselves; one of both readings has to match.
        """
        if not self.calls or self.calls[-1] not in _Readings(args, kwargs):
            raise self._wrong(f"expected the last call to be {self._say(args, kwargs)}")

    def assert_called_once_with(self, /, *args: Any, **kwargs: Any) -> None:
        """Assert that there was one call, with these arguments as in ``assert_called_with``."""
        if len(self.calls) != 1 or self.calls[0] not in _Readings(args, kwargs):
            raise self._wrong(f"expected a single call, {self._say(args, kwargs)}")

    def assert_any_call(self, /, *args: Any, **kwargs: Any) -> None:
        """Assert that some call had these arguments, told as in ``assert_called_with``."""
        readings = _Readings(args, kwargs)
        if not any(call in readings for call in self.calls):
            raise self._wrong(f"expected some call to be {self._say(args, kwargs)}")

    def assert_not_called(self) -> None:
        """Assert that it was never called."""
        if self.calls:
            raise self._wrong(f"expected no call of {self.__name__}")

    def _say(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        readings = _Readings(args, kwargs).calls
        return " or ".join(self.__name__ + show_call(*call) for call in readings)

    def _wrong(self, expected: str) -> AssertionError:
        came = [self.__name__ + show_call(*call) for call in list(self.calls)]
        times = counted(len(came), "time")
        return AssertionError(f"{expected}; it was called {times}{listing(came)}")


class AsyncMockCallback(MockCallback):
    """A :class:`MockCallback` to be awaited.

    A call is noted, and answered, when its awaiting begins. What a *side_effect* returns is
    awaited if it can be.
    """

    _exhausted = StopAsyncIteration

    async def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Note the call, then answer it."""
        self._note(args, kwargs)
        answer = self._answer(args, kwargs)
        return await answer if is_awaitable(answer) else answer


# What a call does.


def _action(effect: SideEffect, exhausted: type[Exception]) -> Callable[..., Any]:
    if effect is None:
        return lambda *_args, **_kwargs: DEFAULT
    if _is_exception(effect):
        return _Answers(itertools.repeat(effect), exhausted)
    if callable(effect):
        return effect
    if isinstance(effect, Iterable):
        return _Answers(effect, exhausted)
    raise TypeError(
        f"side_effect must be an exception, a callable or an iterable, not {effect!r:.200}"
    )


def _is_exception(effect: object) -> TypeGuard[BaseException | type[BaseException]]:
    return isinstance(effect, BaseException) or (
        isinstance(effect, type) and issubclass(effect, BaseException)
    )


class _Answers:
    """Gives one after another, also to threads that call at once."""

    def __init__(self, answers: Iterable[Any], exhausted: type[Exception]) -> None:
        # Re-entrant: a generator that calls the mock it answers for is to fail, not to hang.
        self._lock = threading.RLock()
        self._answers = iter(answers)
        self._exhausted = exhausted

    def __call__(self, /, *_args: Any, **_kwargs: Any) -> Any:
        with self._lock:
            answer = next(self._answers, self)
        if answer is self:
            raise self._exhausted("side_effect has no value left for this call")
        if _is_exception(answer):
            raise answer
        return answer


class _Readings:
    """The calls that the arguments of an assertion may mean."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.calls: list[Call] = [(args, kwargs)]
        if not kwargs and [*map(type, args)] == [tuple, dict]:
            self.calls.append(cast("Call", args))

    def __contains__(self, call: Call) -> bool:
        # Expected on the left: it is asked first, and may be an ANY.
        return any(expected == call for expected in self.calls)
