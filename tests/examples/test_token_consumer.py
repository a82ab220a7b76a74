"""The consumer of special tokens: on a callback, and on its text cut anywhere."""

from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, strategies as st

from callbackkit import Callback, text
from callbackkit.__main__ import load
from callbackkit.testing import every_chop

EXAMPLES = Path(__file__).parents[2] / "examples"
SAID = {
    "search": "three pages found",
    "answer": "A stream ends with <graphai:END>, says page 2.",
    "END": "ok",
}


@pytest.fixture(scope="module")
def example() -> ModuleType:
    return load(EXAMPLES / "token_consumer.py")


async def body_of(example: ModuleType) -> bytes:
    callback = Callback()
    await example.write(callback)
    return b"".join([chunk async for chunk in text(callback)])


async def each(chunks: list[bytes]) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def documented(tokens: AsyncIterator[str]) -> tuple[list[str], str, bool]:
    """Consume special tokens by what they look like, as GraphAI's documentation does it."""
    nodes: list[str] = []
    said = ""
    is_over = False
    async for token in tokens:
        if token.startswith("<graphai:") and token.endswith(">"):
            if ":start" in token:
                nodes.append(token.split(":")[1])
            elif token == "<graphai:END>":
                is_over = True
        else:
            said += token
    return nodes, said, is_over


async def test_who_said_what_is_told_apart(example: ModuleType) -> None:
    callback = Callback()
    await example.write(callback)
    assert await example.process_stream(callback.aiter()) == SAID


async def test_wherever_the_text_is_cut_it_is_the_same(example: ModuleType) -> None:
    body = await body_of(example)
    for chunks in every_chop(body):
        assert await example.process_stream(example.parse(each(chunks))) == SAID


@given(st.randoms(use_true_random=False))
async def test_cut_in_any_number_of_places_it_is_the_same(example: ModuleType, random) -> None:
    callback = Callback()
    await example.write(callback)
    packets = example.send(callback, random)
    assert await example.process_stream(example.parse(packets)) == SAID


async def test_the_documented_consumer_works_on_the_callback_and_on_the_text(
    example: ModuleType,
) -> None:
    callback = Callback()
    async with callback, callback.node("search"):
        for token in ("three ", "pages"):
            await callback.acall(token)
    found = ["search"], "three pages", True
    assert await documented(callback.aiter()) == found
    body = b"".join([chunk async for chunk in text(callback)])
    for chunks in every_chop(body):
        assert await documented(example.parse(each(chunks))) == found


async def test_a_run_that_failed_says_so(example: ModuleType) -> None:
    callback = Callback()
    callback.start_node("search")
    callback("so far")
    callback.fail(OSError("gone"))
    body = b"".join([chunk async for chunk in text(callback)])
    said = await example.process_stream(example.parse(each([body])))
    assert said == {"search": "so far", "END": "error"}


async def test_of_a_text_that_breaks_off_nothing_is_lost(example: ModuleType) -> None:
    chunks = [b"<graphai:search:start><graphai:search>half <gra", b"phai"]
    said = await example.process_stream(example.parse(each(chunks)))
    assert said == {"search": "half <graphai"}


async def test_the_program_says_that_both_are_the_same(
    example: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    await example.main()
    assert capsys.readouterr().out.splitlines() == [
        "search: three pages found",
        "answer: A stream ends with <graphai:END>, says page 2.",
        "END: ok",
        "the same from the text as in process: True",
    ]
