"""How values and lists of them stand in the messages of failed assertions."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["counted", "listing", "show", "show_call"]

# Lines of a listing: the last ones are the ones a test waits for.
_LINES = 20


def show(value: object) -> str:
    """Return ``repr(value)``, shortened if it is huge; never raises."""
    try:
        return _REPR.repr(value)
    except Exception:
        # reprlib asks elements for their repr with care, but a container it walks through itself.
        return object.__repr__(value)


def show_call(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """Return the arguments of a call as they stand in a program, with their parentheses."""
    positional = [show(value) for value in args]
    keywords = [f"{name}={show(value)}" for name, value in kwargs.items()]
    return f"({', '.join(positional + keywords)})"


def listing(lines: Sequence[str]) -> str:
    """Return numbered, indented lines, the last ones if there are many."""
    left_out = max(0, len(lines) - _LINES)
    shown = [f"\n    {number}. {line}" for number, line in enumerate(lines, 1)][left_out:]
    return "".join([f"\n    ({left_out} before these)"] * bool(left_out) + shown)


def counted(count: int, noun: str) -> str:
    """Return a number of things in words: ``1 call``, ``2 calls``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _long_repr() -> reprlib.Repr:
    long = reprlib.Repr()
    long.maxlevel = 10
    long.maxtuple = long.maxlist = long.maxdict = long.maxset = long.maxfrozenset = 50
    long.maxstring = long.maxother = long.maxlong = 1000
    return long


_REPR = _long_repr()
