"""Fixtures that fail a test when a callback failed unnoticed.

A callback that raises stops nobody, so a test may pass although one did. With the fixture
``callback_failures`` it does not: at its end it fails with the name and traceback of each callback
that failed, but for those the test said it expects. For the tests of a whole project, name the
fixture in the configuration of pytest: ``usefixtures = ["callback_failures"]``.
"""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest

if TYPE_CHECKING:
    from callbackkit.dispatch.registry import CallbackRegistry

__all__ = ["CallbackFailure", "CallbackFailures", "callback_failures", "callback_registry"]

# pytest imports this module in every run: nothing of ours but the fixtures' own needs, and those
# when a fixture is used. Hence a dataclass, which pytest has imported anyway.


@pytest.fixture
def callback_failures() -> Generator[CallbackFailures]:
    """Fail the test at its end if a callback failed that it did not expect to.

    See CallbackFailures.expect() for those it does.
    """
    failures = CallbackFailures()
    listener = _Listener(failures.unexpected)
    with _listening(listener) as logger:
        yield failures
        is_deaf = not logger.isEnabledFor(logging.ERROR) or listener not in logger.handlers
    if failures.unexpected:
        pytest.fail(_report(failures.unexpected), pytrace=False)
    if is_deaf:
        pytest.fail(_DEAF, pytrace=False)


@pytest.fixture
def callback_registry(callback_failures: CallbackFailures) -> CallbackRegistry:
    """Give a new CallbackRegistry, and fail the test if a callback fails unexpectedly."""
    from callbackkit.dispatch.registry import CallbackRegistry

    return CallbackRegistry()


@dataclass(frozen=True, eq=False)
class CallbackFailure:
    """A callback that failed.

    Attributes:
        message: What was logged: which callback failed, and for which event.
        error: Why: its exception, :exc:`~callbackkit.CallbackTimeoutError` or
            :exc:`~callbackkit.CallbackCancelledError`.
        callback: Name of the callback, ``None`` where none is known.
        event_type: The event it was called for, a name or a class; ``None`` without one.
    """

    message: str
    error: BaseException
    callback: str | None
    event_type: Any


class CallbackFailures:
    """The callbacks that failed during a test, whatever called them and in whatever thread.

    They are those that are logged to ``callbackkit.dispatch``: each failure once, that of an error
    callback too, and an operation that failed with nobody told. A slot whose callback fails with
    every chunk logs only some.

    Attributes:
        unexpected: The failures so far that nothing expected.
    """

    def __init__(self) -> None:
        self.unexpected: list[CallbackFailure] = []

    @contextmanager
    def expect(
        self,
        error: type[BaseException] | tuple[type[BaseException], ...],
        *,
        match: str | None = None,
    ) -> Generator[list[CallbackFailure]]:
        """Expect callbacks to fail in the block, at least one; other failures still count.

        Gives a list, which holds what was expected and came once the block has ended.

        Args:
            error: What they fail with, a class or several.
            match: A regular expression to be found in the exception's text.

        Raises:
            AssertionError: The block ended and no callback had failed like that.
        """
        before = len(self.unexpected)
        expected: list[CallbackFailure] = []
        yield expected
        expected += [one for one in self.unexpected[before:] if _fits(one.error, error, match)]
        for failure in expected:
            self.unexpected.remove(failure)
        if not expected:
            raise AssertionError(f"no callback failed with {_wanted(error, match)}")


_Classes: TypeAlias = type[BaseException] | tuple[type[BaseException], ...]


def _fits(came: BaseException, wanted: _Classes, match: str | None) -> bool:
    if not isinstance(came, wanted):
        return False
    return match is None or re.search(match, str(came)) is not None


def _wanted(error: _Classes, match: str | None) -> str:
    errors = error if isinstance(error, tuple) else (error,)
    names = " or ".join(one.__name__ for one in errors)
    return names if match is None else f"{names} and a text matching {match!r}"


# Listening.


class _Listener(logging.Handler):
    """Adds the failures that are logged to a list."""

    def __init__(self, failures: list[CallbackFailure]) -> None:
        super().__init__(logging.ERROR)
        self._failures = failures

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            callback = getattr(record, "callback_name", None)
            event_type = getattr(record, "event_type", None)
            self._failures.append(CallbackFailure(record.getMessage(), error, callback, event_type))


@contextmanager
def _listening(listener: logging.Handler) -> Generator[logging.Logger]:
    """Have errors of the dispatch room reach *listener*, however the application logs."""
    logger = logging.getLogger("callbackkit.dispatch")
    with ExitStack() as undo:
        # A level of its own, so that none set above it while the test runs counts.
        undo.callback(logger.setLevel, logger.level)
        logger.setLevel(min(logger.getEffectiveLevel(), logging.ERROR))
        undo.callback(setattr, logger, "disabled", logger.disabled)
        logger.disabled = False
        disabled = logger.manager.disable
        if disabled >= logging.ERROR:
            undo.callback(logging.disable, disabled)
            logging.disable(logging.ERROR - 1)
        undo.callback(logger.removeHandler, listener)
        logger.addHandler(listener)
        yield logger


_DEAF = (
    "callback_failures could not hear of all failures: during the test something turned off the "
    "logger 'callbackkit.dispatch' or removed its handlers. logging.config does so to loggers that "
    "exist already, unless told disable_existing_loggers=False."
)


# Telling.


def _report(failures: list[CallbackFailure]) -> str:
    parts = [f"Unexpected failures of callbacks: {len(failures)}"]
    for number, failure in enumerate(failures, 1):
        trace = "".join(traceback.format_exception(failure.error)).rstrip()
        parts.append(f"{number}. {failure.message}\n{trace}")
    kind = type(failures[0].error).__name__
    parts.append(f"Where that is right: with callback_failures.expect({kind}): ...")
    return "\n\n".join(parts)
