"""Streaming: how many tokens go through in a time."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from threading import Thread
from time import perf_counter, process_time

from tests.benchmarks.harness import Case, Measure, Table, peer
from tests.benchmarks.streams import (
    Open,
    Stream,
    anyio_stream,
    asyncio_queue,
    check_arrived,
    culsans_queue,
    end,
    graphai,
    graphai_events,
    janus_queue,
    ours,
    ours_in_batches,
    ours_with_readers,
    reading,
    threadsafe_queue,
)

Parts = Sequence[Sequence[str]]
Produce = Callable[[Stream, Parts], Awaitable[None]]

NEVER_JOINED = 10**9
"""A lag that no reader here reaches, so that it gets each token by itself."""

READERS = 5

TOKENS = [f"t{place:02} " for place in range(100)]
"""They come round and round: all of them are in the processor's cache, as a token just made is."""


@contextmanager
def burst(tokens: int) -> Iterator[Table]:
    """Put all tokens in at once; then the reader gets its turn."""
    with asyncio.Runner() as runner:
        run = partial(streaming, runner, put_parts)
        yield Table(
            f"a burst of {tokens:_} tokens, one reader",
            [
                peer("GraphAI Callback", run, graphai),
                Case("callbackkit aiter()", run(ours), 3.0),
                Case("callbackkit aiter(), to Queue", run(ours), 1.5, beside="asyncio.Queue"),
                Case("callbackkit aiter(), one by one", run(_one_by_one)),
                Case("callbackkit batches()", run(ours_in_batches), 6.0),
                Case("asyncio.Queue", run(asyncio_queue)),
                peer("GraphAI EventCallback", run, graphai_events),
                peer("culsans", run, culsans_queue),
                Case("anyio memory stream", run(anyio_stream)),
                peer("janus", run, janus_queue),
            ],
            ratio="speed",
            number=tokens,
        )


@contextmanager
def awaited_burst(tokens: int) -> Iterator[Table]:
    """Put tokens in by a call that is awaited."""
    with asyncio.Runner() as runner:
        run = partial(streaming, runner, aput_parts)
        yield Table(
            f"{tokens:_} tokens by acall(), one reader",
            [
                peer("GraphAI Callback", run, graphai),
                Case("callbackkit", run(ours), 1.5),
            ],
            ratio="speed",
            number=tokens,
        )


@contextmanager
def in_turns(tokens: int, together: int) -> Iterator[Table]:
    """Let the reader have its turn after every few tokens."""
    with asyncio.Runner() as runner:
        run = partial(streaming, runner, put_parts, together=together)
        yield Table(
            f"a producer that yields every {together} tokens, one reader",
            [
                peer("GraphAI Callback", run, graphai),
                Case("callbackkit aiter()", run(ours), 1.8),
                Case("callbackkit batches()", run(ours_in_batches)),
                Case("asyncio.Queue", run(asyncio_queue)),
                peer("GraphAI EventCallback", run, graphai_events),
                peer("culsans", run, culsans_queue),
                Case("anyio memory stream", run(anyio_stream)),
            ],
            ratio="speed",
            number=tokens,
        )


@contextmanager
def from_thread(tokens: int) -> Iterator[Table]:
    """Put tokens in from a thread as fast as it can. The time is that of a clock on the wall."""
    with asyncio.Runner() as runner:
        run = partial(streaming, runner, put_from_thread, clock=perf_counter)
        yield Table(
            f"{tokens:_} tokens from a thread, one reader",
            [
                Case("call_soon_threadsafe per token", run(threadsafe_queue)),
                Case("callbackkit aiter()", run(ours), 15.0),
                Case("callbackkit aiter(), one by one", run(_one_by_one)),
                Case("callbackkit batches()", run(ours_in_batches)),
                peer("janus", run, partial(janus_queue, in_thread=True)),
                peer("culsans", run, partial(culsans_queue, in_thread=True)),
            ],
            ratio="speed",
            number=tokens,
            repeat=3,
        )


@contextmanager
def several_readers(tokens: int) -> Iterator[Table]:
    """Follow one run with several readers."""
    with asyncio.Runner() as runner:
        run = partial(streaming, runner, put_parts)
        many = partial(ours_with_readers, READERS)
        each = partial(ours_with_readers, max_lag=NEVER_JOINED)
        yield Table(
            f"a burst of {tokens:_} tokens, {READERS} readers",
            [
                Case("limit: callbackkit, one reader", run(partial(ours_with_readers, 1))),
                Case(f"callbackkit, {READERS} readers", run(many), 3.0),
                Case("callbackkit, one, one by one", run(partial(each, 1))),
                Case(
                    f"callbackkit, {READERS}, one by one",
                    run(partial(each, READERS)),
                    3.0,
                    beside="callbackkit, one, one by one",
                ),
            ],
            number=tokens,
        )


_one_by_one = partial(ours, max_lag=NEVER_JOINED)


# Producers. Each part is put in without a pause.


async def put_parts(stream: Stream, parts: Parts) -> None:
    put = stream.put
    for part in parts:
        for token in part:
            put(token)
        await asyncio.sleep(0)
    await end(stream)


async def aput_parts(stream: Stream, parts: Parts) -> None:
    put = stream.aput
    if put is None:
        raise TypeError("this stream has no call that is awaited")
    for part in parts:
        for token in part:
            await put(token)
    await end(stream)


async def put_from_thread(stream: Stream, parts: Parts) -> None:
    def produce() -> None:
        put = stream.put
        try:
            for part in parts:
                for token in part:
                    put(token)
        finally:
            stream.end()

    Thread(target=produce).start()


# Measuring.


def streaming(
    runner: asyncio.Runner,
    produce: Produce,
    open_stream: Open,
    *,
    together: int | None = None,
    clock: Callable[[], float] = process_time,
) -> Measure:
    """Measure a stream of as many tokens as it is to run, from the first put to the last read.

    Args:
        runner: The loop of the reader, and of the producer unless that makes a thread.
        produce: Puts the tokens in.
        open_stream: Opens the stream.
        together: How many tokens a part has; ``None`` makes one part of all.
        clock: Tells the time.

    Raises:
        RuntimeError: Not every token arrived, or not in order.
    """

    async def measure(number: int) -> float:
        tokens = (TOKENS * (number // len(TOKENS) + 1))[:number]
        size = together or number
        parts = [tokens[place : place + size] for place in range(0, number, size)]
        stream = open_stream()
        got: list[str] = []
        async with reading(stream, got.append) as read:
            began = clock()
            await produce(stream, parts)
            await read
            took = clock() - began
        check_arrived(stream, tokens, got)
        return took

    # Once now: that a package is absent is known before the first round.
    runner.run(measure(1))
    return lambda number: runner.run(measure(number))
