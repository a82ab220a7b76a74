"""Each guarantee names the tests that hold it; here are those that are no module's own."""

import gc
import logging
import re
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from callbackkit import CallbackRegistry

ROOT = Path(__file__).parents[1]
EXPLANATIONS = ROOT / "docs" / "explanation"
PAGES = [EXPLANATIONS / name for name in ("dispatch.md", "delivery.md", "webhooks.md")]
EVENT = "order.created"


# The tables of promises.


def promises(pages: Iterable[Path] = PAGES) -> list[tuple[str, str]]:
    """Return name and text of each row of the tables that are headed so."""
    rows: list[tuple[str, str]] = []
    for page in pages:
        for table in re.findall(
            r"^\| promise \|.*\n(?:\|.*\n)+", page.read_text("utf-8"), re.MULTILINE
        ):
            rows += re.findall(r"^\| (.+?) \| (.+) \|$", table, re.MULTILINE)[2:]
    return rows


@pytest.mark.parametrize("text", [pytest.param(text, id=name) for name, text in promises()])
def test_each_promise_ends_with_the_tests_that_hold_it(text: str) -> None:
    """That those exist is held for all pages by tests/test_docs.py."""
    path = r"`tests/[\w/]+\.py::test_\w+`"
    assert re.fullmatch(rf".+[.] {path}(, {path})*", text)
    assert len(re.findall(path, text)) == text.count("tests/")


def test_no_promise_is_made_twice() -> None:
    for page, least in zip(PAGES, (20, 25, 10), strict=True):
        names = [name for name, _ in promises([page])]
        assert len(names) >= least
        assert len(set(names)) == len(names)


# Memory.


@attrs.define(eq=False)
class Thing:
    """Something that is waited for to be freed."""


class BrokenError(Exception):
    """Unlike those built in, it can be watched."""


def fail(data: Thing) -> None:
    """Raise an exception whose traceback holds the data."""
    raise BrokenError(id(data))


async def fail_async(data: Thing) -> None:
    fail(data)


@pytest.fixture
def no_collection() -> Iterator[None]:
    """Keep the garbage collector from coming by."""
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def silence() -> Iterator[None]:
    """Keep pytest from keeping what is logged, exceptions among it."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.usefixtures("no_collection", "silence")
@pytest.mark.parametrize("again", [False, True], ids=["first", "again"])
@pytest.mark.parametrize(
    "options",
    [{}, {"timing": True}, {"timeout": 60}, {"mode": "concurrent"}],
    ids=["plain", "timing", "timeout", "concurrent"],
)
@pytest.mark.parametrize("way", ["sync", "awaited"])
async def test_what_a_dispatch_leaves_is_freed_without_a_garbage_collection(
    way: str, options: dict[str, Any], again: bool
) -> None:
    registry = CallbackRegistry(**options)
    registry.register_callback(EVENT, lambda _data: Thing())
    for _ in range(2):
        registry.register_callback(EVENT, fail if way == "sync" else fail_async)
    registry.add_error_callback(lambda _error, _context: None)
    if again:
        await registry.trigger_callbacks(EVENT, Thing())
    data = Thing()
    if way == "sync":
        result = registry.trigger_callbacks_sync(EVENT, data)
    else:
        result = await registry.trigger_callbacks(EVENT, data)
    left: list[Any] = [data, *result.values(), *result.errors]
    references = [weakref.ref(thing) for thing in left]
    del data, result, left
    assert [reference() for reference in references] == [None] * 4
