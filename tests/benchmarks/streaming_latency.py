"""Streaming: the time from putting a token in to its reader having it."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from statistics import quantiles
from threading import Thread
from time import perf_counter

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
    janus_queue,
    ours,
    reading,
    threadsafe_queue,
)

PAUSE = 0.0002
"""Seconds between the tokens of a thread, long enough for the loop to come to rest."""

TOKEN = "token"

Stamps = list[float]
Send = Callable[[Stream, int, Stamps, Stamps], Awaitable[None]]


@contextmanager
def on_the_loop(percentile: int, tokens: int) -> Iterator[Table]:
    """Put a token in where the reader waits, in the same loop."""
    with asyncio.Runner() as runner:
        run = partial(latency, runner, send_from_loop, percentile)
        yield Table(
            f"from put to receive on the loop, percentile {percentile} of {tokens:_} tokens",
            [
                Case("limit: asyncio.Queue", run(asyncio_queue)),
                Case("callbackkit aiter()", run(ours), 1.15),
                peer("GraphAI Callback", run, graphai),
                Case("anyio memory stream", run(anyio_stream)),
                peer("culsans", run, culsans_queue),
            ],
            number=tokens,
        )


@contextmanager
def across_threads(percentile: int, tokens: int) -> Iterator[Table]:
    """Put a token in from a thread while the loop is at rest."""
    with asyncio.Runner() as runner:
        run = partial(latency, runner, send_from_thread, percentile)
        yield Table(
            f"from put to receive out of a thread, percentile {percentile} of {tokens:_} tokens",
            [
                Case("limit: call_soon_threadsafe to a Queue", run(threadsafe_queue)),
                Case("callbackkit aiter()", run(ours), 1.15),
                peer("janus", run, partial(janus_queue, in_thread=True)),
                peer("culsans", run, partial(culsans_queue, in_thread=True)),
            ],
            number=tokens,
            repeat=3,
        )


async def send_from_loop(stream: Stream, number: int, sent: Stamps, received: Stamps) -> None:
    """Put the next token in when the last one has arrived."""
    put = stream.put
    for count in range(1, number + 1):
        sent.append(perf_counter())
        put(TOKEN)
        while len(received) < count:  # noqa: ASYNC110 - an event would be one more to wake
            await asyncio.sleep(0)
    await end(stream)


async def send_from_thread(stream: Stream, number: int, sent: Stamps, _: Stamps) -> None:
    """Put tokens in from a thread with a pause between them."""

    def send() -> None:
        put = stream.put
        try:
            for _ in range(number):
                time.sleep(PAUSE)
                sent.append(perf_counter())
                put(TOKEN)
        finally:
            stream.end()

    Thread(target=send).start()


def latency(runner: asyncio.Runner, send: Send, percentile: int, open_stream: Open) -> Measure:
    """Measure a percentile of the seconds that so many tokens take, at least two.

    As all measures it returns the cost of all runs: the percentile times their number.
    """

    async def measure(number: int) -> float:
        stream = open_stream()
        got: list[str] = []
        sent: Stamps = []
        received: Stamps = []

        def take(token: str) -> None:
            received.append(perf_counter())
            got.append(token)

        async with reading(stream, take) as read:
            await send(stream, number, sent, received)
            await read
        check_arrived(stream, [TOKEN] * number, got)
        waits = [there - here for here, there in zip(sent, received, strict=False)]
        return number * quantiles(waits, n=100, method="inclusive")[percentile - 1]

    # Once now: that a package is absent is known before the first round.
    runner.run(measure(2))
    return lambda number: runner.run(measure(number))
