"""Many threads at once."""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tests.comparison.libraries.base import Library
from tests.comparison.verdicts import HANGS, Verdict, judged

THREADS = 8
ROUNDS = 200
PATIENCE = 2.0
"""Seconds until threads that wait for each other count as hanging."""


def eight_threads(library: Library) -> Verdict:
    """Eight threads register, send and unregister at once.

    Nothing fails, a callback that was there all the time hears every event, nothing stays behind.
    """
    heard: list[None] = []
    calls: list[None] = []
    library.connect(lambda *args, **kwargs: heard.append(None))

    def work() -> None:
        for _ in range(ROUNDS):

            def mine(*args: Any, **kwargs: Any) -> None:
                calls.append(None)

            library.connect(mine)
            library.send()
            library.disconnect(mine)

    failures = _in_threads([work] * THREADS)
    if isinstance(failures, Verdict):
        return failures
    everything = len(heard) == THREADS * ROUNDS
    calls.clear()
    library.send()
    said = f"`{type(failures[0]).__name__}` in a thread" if failures else ""
    return judged(
        (not failures, "fails", said),
        (everything, "loses calls", "not every event is delivered"),
        (not calls, "still calls it", "an unregistered callback is called"),
    )


def once_in_a_race(library: Library) -> Verdict:
    """Eight threads send at once what a callback wants to hear a single time.

    It is called once.
    """
    called: list[None] = []
    barrier = threading.Barrier(THREADS)

    def work() -> None:
        for _ in range(ROUNDS):
            if barrier.wait(PATIENCE) == 0:
                library.connect_once(lambda *args, **kwargs: called.append(None))
            barrier.wait(PATIENCE)
            library.send()

    library.connect_once(lambda *args, **kwargs: None)
    library.send()
    failures = _in_threads([work] * THREADS)
    if isinstance(failures, Verdict):
        return failures
    more = f"called {'more' if len(called) > ROUNDS else 'less'} than once"
    return judged(
        (not failures, "fails", "an exception in a thread"),
        (len(called) == ROUNDS, "miscounts", more),
    )


def two_registries(library: Library) -> Verdict:
    """In two threads, a callback of one registry sends an event of the other.

    Both threads are done soon.
    """
    other = type(library)()
    meeting = threading.Barrier(2)
    inside = threading.local()

    def sends(target: Library) -> Callable[..., None]:
        def callback(*args: Any, **kwargs: Any) -> None:
            if getattr(inside, "yes", False):
                return
            inside.yes = True
            meeting.wait(PATIENCE)
            target.send()

        return callback

    library.connect(sends(other))
    other.connect(sends(library))
    failures = _in_threads([library.send, other.send])
    if isinstance(failures, Verdict):
        return failures
    return judged((not failures, "fails", "an exception in a thread"))


def _in_threads(work: list[Callable[[], object]]) -> Verdict | list[BaseException]:
    """Run functions in threads; return what they raise, or the verdict that they hang."""
    failures: list[BaseException] = []

    def run(function: Callable[[], object]) -> None:
        try:
            function()
        except BaseException as error:
            failures.append(error)

    # Daemons: threads that wait for each other for good must not keep the process.
    threads = [threading.Thread(target=run, args=(each,), daemon=True) for each in work]
    with _switching_often():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
    if any(thread.is_alive() for thread in threads):
        return Verdict(HANGS, "the threads wait for each other for good")
    return failures


@contextmanager
def _switching_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


PROBES = (eight_threads, once_in_a_race, two_registries)
