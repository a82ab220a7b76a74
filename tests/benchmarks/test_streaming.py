import asyncio
from collections.abc import Callable
from functools import partial

import attrs
import pytest

from tests.benchmarks.streaming import aput_parts, put_from_thread, put_parts, streaming
from tests.benchmarks.streaming_latency import (
    TOKEN,
    Stamps,
    latency,
    send_from_loop,
    send_from_thread,
)
from tests.benchmarks.streams import (
    Stream,
    asyncio_queue,
    check_arrived,
    end,
    ours,
    ours_in_batches,
    ours_with_readers,
    threadsafe_queue,
)


def changed(change: Callable[[str], str]) -> Stream:
    """A stream that hands out something else than was put in."""
    stream = asyncio_queue()
    return attrs.evolve(stream, read=lambda take: stream.read(lambda token: take(change(token))))


def test_a_run_in_which_a_token_is_lost_is_not_measured() -> None:
    with asyncio.Runner() as runner, pytest.raises(RuntimeError, match="1 tokens went in"):
        streaming(runner, put_parts, partial(changed, lambda token: ""))


def test_latency_is_not_measured_where_a_token_is_lost() -> None:
    with asyncio.Runner() as runner, pytest.raises(RuntimeError, match="2 tokens went in"):
        latency(runner, send_from_loop, 50, partial(changed, lambda token: ""))


def test_tokens_out_of_order_have_not_arrived() -> None:
    with asyncio.Runner() as runner:
        stream = runner.run(_opened(asyncio_queue))
    with pytest.raises(RuntimeError):
        check_arrived(stream, ["a", "b"], ["b", "a"])


def test_every_reader_has_to_get_everything() -> None:
    with asyncio.Runner() as runner:
        stream = runner.run(_opened(partial(ours_with_readers, 2)))
    check_arrived(stream, ["a"], ["a<graphai:END>", "a<graphai:END>"])
    with pytest.raises(RuntimeError):
        check_arrived(stream, ["a"], ["a<graphai:END>"])


@pytest.mark.parametrize("open_stream", [ours, ours_in_batches, partial(ours_with_readers, 3)])
def test_ours_end_with_their_end(open_stream: Callable[[], Stream]) -> None:
    async def run() -> str:
        stream = open_stream()
        stream.put("a")
        stream.end()
        got: list[str] = []
        await stream.read(got.append)
        return "".join(got)

    text = asyncio.run(run())
    assert text.startswith("a<graphai:END>")
    assert text.count("<graphai:END>") == asyncio.run(_opened(open_stream)).readers


@pytest.mark.parametrize("number", [1, 16, 50])
def test_a_stream_takes_some_time(number: int) -> None:
    with asyncio.Runner() as runner:
        assert streaming(runner, put_parts, ours, together=16)(number) > 0
        assert streaming(runner, aput_parts, ours)(number) > 0
        assert streaming(runner, put_from_thread, ours)(number) > 0


def test_a_stream_without_an_awaited_call_is_not_measured_by_one() -> None:
    with asyncio.Runner() as runner, pytest.raises(TypeError):
        streaming(runner, aput_parts, asyncio_queue)


async def after_seconds(stream: Stream, number: int, sent: Stamps, received: Stamps) -> None:
    """Say of the first token that it took a second, of the next two, and so on."""
    for _ in range(number):
        stream.put(TOKEN)
    # So many turns are enough for the reader to get them all.
    for _ in range(number):
        await asyncio.sleep(0)
    sent.extend(stamp - count for count, stamp in enumerate(received, 1))
    await end(stream)


@pytest.mark.parametrize("percentile", [50, 99])
def test_a_percentile_is_multiplied_by_the_number_of_tokens(percentile: int) -> None:
    with asyncio.Runner() as runner:
        total = latency(runner, after_seconds, percentile, ours)(101)
    assert total == pytest.approx(101 * (percentile + 1))


def test_a_token_from_a_thread_takes_some_time() -> None:
    with asyncio.Runner() as runner:
        assert latency(runner, send_from_thread, 50, threadsafe_queue)(5) > 0


async def _opened(open_stream: Callable[[], Stream]) -> Stream:
    return open_stream()
