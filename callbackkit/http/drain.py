"""Have streams end when the process is asked to stop: handlers of signals that pass them on."""

from __future__ import annotations

import _thread
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Final

__all__ = ["DrainOnSignals"]

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


class DrainOnSignals:
    """Listens to SIGINT and SIGTERM while it is entered, by however many.

    A server that stops waits for its streams to end, and nobody else tells them. The first signal
    begins that, and reaches whoever handled it before at once; a second one passes. A signal that
    nobody handles is left alone: it ends the process anyway, or is to be ignored. Signals reach
    Python in the main thread only; in others this does nothing.

    Args:
        begin: Ends the streams. Called in a thread of its own, since a handler interrupts its
            thread anywhere: while it holds a lock, or sleeps in its event loop.
    """

    def __init__(self, begin: Callable[[], None]) -> None:
        self._begin = begin
        self._entered = 0
        self._handlers: dict[int, _Handler] = {}

    def __repr__(self) -> str:
        return f"<DrainOnSignals entered {self._entered} times>"

    def __enter__(self) -> None:
        """Listen; where somebody took our place meanwhile, stand before that one."""
        if _is_main():
            self._entered += 1
            for number in _SIGNALS:
                self._take(number)

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        """Give the place back once all have left, if it is still ours."""
        if _is_main():
            self._entered -= 1
            if not self._entered:
                self._give_back()

    def _take(self, number: int) -> None:
        before = signal.getsignal(number)
        if callable(before) and before is not self._handlers.get(number):
            handler = self._handlers[number] = _Handler(self._begin, before)
            signal.signal(number, handler)

    def _give_back(self) -> None:
        for number, handler in self._handlers.items():
            # Whoever stands before us may call us still.
            handler.begin = None
            before = handler.before
            if signal.getsignal(number) is handler:
                signal.signal(number, before)
        self._handlers.clear()


class _Handler:
    """Handles one signal.

    Attributes:
        begin: Called the first time.
        before: Called each time.
    """

    def __init__(
        self, begin: Callable[[], None], before: Callable[[int, FrameType | None], object]
    ) -> None:
        self.begin: Callable[[], None] | None = begin
        self.before: Callable[[int, FrameType | None], object] = before

    def __call__(self, number: int, frame: FrameType | None) -> None:
        begin, self.begin = self.begin, None
        if begin is not None:
            # Not by threading, whose locks the interrupted code may hold. It fails when Python
            # itself is about to end.
            with suppress(RuntimeError):
                _thread.start_new_thread(begin, ())
        self.before(number, frame)


def _is_main() -> bool:
    return threading.current_thread() is threading.main_thread()
