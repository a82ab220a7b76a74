"""Callbacks that come and go, while an event is sent and otherwise."""

import gc
from typing import Any

from tests.comparison.libraries.base import Library
from tests.comparison.verdicts import Verdict, judged

TRIES = 10_000
"""How many objects are made at most until one reuses an address."""


def unregisters_itself(library: Library) -> Verdict:
    """A callback unregisters itself.

    The others are called all the same, it never again.
    """
    called: list[str] = []

    def once(*args: Any, **kwargs: Any) -> None:
        called.append("once")
        library.disconnect(once)

    def second(*args: Any, **kwargs: Any) -> None:
        called.append("second")

    def third(*args: Any, **kwargs: Any) -> None:
        called.append("third")

    for callback in (once, second, third):
        library.connect(callback)
    library.send()
    first_time = sorted(called)
    library.send()
    return judged(
        (first_time == ["once", "second", "third"], "skips one", "the next one is skipped"),
        (called.count("once") == 1, "still calls it", "it is called again"),
    )


def unregisters_another(library: Library) -> Verdict:
    """Two callbacks unregister each other.

    Only one of them is called.
    """
    called: list[str] = []

    def left(*args: Any, **kwargs: Any) -> None:
        called.append("left")
        library.disconnect(right)

    def right(*args: Any, **kwargs: Any) -> None:
        called.append("right")
        library.disconnect(left)

    library.connect(left)
    library.connect(right)
    library.send()
    return judged((len(called) == 1, "still calls it", "the unregistered one is called once more"))


def registers_another(library: Library) -> Verdict:
    """A callback registers another.

    That one is called from the next event on.
    """
    called: list[str] = []

    def late(*args: Any, **kwargs: Any) -> None:
        called.append("late")

    def registers(*args: Any, **kwargs: Any) -> None:
        if not registered:
            registered.append(late)
            library.connect(late)

    registered: list[object] = []
    library.connect(registers)
    library.send()
    at_once = bool(called)
    library.send()
    return judged(
        (not at_once, "calls it at once", "it is called by the event that is under way"),
        (called == ["late"], "loses it", "it is not called"),
    )


def endless_recursion(library: Library) -> Verdict:
    """A callback sends the event that calls it, without end.

    The sender gets its call back, the failure is told, the next event is delivered.
    """
    runs_away = True
    called: list[str] = []

    def again(*args: Any, **kwargs: Any) -> None:
        if runs_away:
            library.send()

    def other(*args: Any, **kwargs: Any) -> None:
        called.append("other")

    library.connect(again)
    library.connect(other)
    try:
        failures = library.send().failures
    except Exception as error:
        return Verdict("stops", f"`{type(error).__name__}` reaches the sender")
    runs_away = False
    called.clear()
    library.send()
    return judged(
        (bool(failures), "hides it", "the program never hears of the failure"),
        (called == ["other"], "breaks", "the next event is not delivered"),
    )


def short_lived_lambda(library: Library) -> Verdict:
    """A lambda is registered with the library's defaults and kept by nobody else.

    It is called, or refused with an error.
    """
    called: list[str] = []

    def register() -> None:
        library.connect_as_documented(lambda *args, **kwargs: called.append("lambda"))

    register()
    gc.collect()
    library.send()
    return judged((called == ["lambda"], "loses it", "it is forgotten at once, without a word"))


def reused_address(library: Library) -> Verdict:
    """A callback is registered for a tuple or string that is dropped; a new one gets its address.

    The callback is not called for the new one.
    """
    called: list[str] = []

    def callback(*args: Any, **kwargs: Any) -> None:
        called.append("callback")

    key = library.new_key(0)
    address = id(key)
    library.connect_for(key, callback)
    del key
    kept = []
    for number in range(1, TRIES):
        key = library.new_key(number)
        if id(key) == address:
            library.send_for(key)
            break
        kept.append(key)
    return judged((not called, "misdelivers", "the callback is called for the wrong object"))


def nested_mute(library: Library) -> Verdict:
    """A block that mutes an event stands inside another.

    The event stays muted until both have ended, and is then delivered again.
    """
    called: list[str] = []

    def callback(*args: Any, **kwargs: Any) -> None:
        called.append("callback")

    library.connect(callback)
    with library.muted():
        with library.muted():
            library.send()
        library.send()
    while_muted = list(called)
    library.send()
    return judged(
        (not while_muted, "unmutes", "the end of the inner block ends the outer one's mute"),
        (called == ["callback"], "stays mute", "the event is never delivered again"),
    )


PROBES = (
    unregisters_itself,
    unregisters_another,
    registers_another,
    endless_recursion,
    short_lived_lambda,
    reused_address,
    nested_mute,
)
