"""The streams that are measured: ours and the peers', each opened for one run."""

import asyncio
import gc
import warnings
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from importlib import import_module
from typing import Any

import anyio
import attrs

from callbackkit import Callback

Take = Callable[[str], object]


@attrs.frozen
class Stream:
    """Something that tokens are put into at one end and taken out of at the other.

    Attributes:
        put: Puts a token in, as a user would.
        end: Puts the end in, from where tokens are put in; may have to be awaited.
        read: Reads to the end, and gives all that comes to a function.
        aput: Puts a token in and is awaited, if there is such a way.
        last: What comes behind the last token.
        release: Awaited when all is read.
        readers: How many readers it has.
    """

    put: Take
    end: Callable[[], Awaitable[object] | None]
    read: Callable[[Take], Awaitable[None]]
    aput: Callable[[str], Awaitable[object]] | None = None
    last: str = ""
    release: Callable[[], Awaitable[object]] | None = None
    readers: int = 1


Open = Callable[[], Stream]
"""Opens a stream in the running loop."""


# Ours.


def ours(**options: Any) -> Stream:
    """A run with one reader; *options* are those of ``aiter()``."""
    callback = Callback()
    return _ours(callback, lambda take: _iterate(callback.aiter(**options), take))


def ours_in_batches() -> Stream:
    """A run with a reader that joins each batch, as one would before writing it out."""
    callback = Callback()
    return _ours(callback, lambda take: _iterate_batches(callback, take))


def ours_with_readers(readers: int, **options: Any) -> Stream:
    """A run with several readers, each of which joins what it got."""
    callback = Callback()

    async def follow(take: Take) -> None:
        mine: list[str] = []
        await _iterate(callback.aiter(**options), mine.append)
        take("".join(mine))

    async def read(take: Take) -> None:
        await asyncio.gather(*(follow(take) for _ in range(readers)))

    return attrs.evolve(_ours(callback, read), readers=readers)


def _ours(callback: Callback, read: Callable[[Take], Awaitable[None]]) -> Stream:
    def end() -> None:
        callback.close()

    return Stream(callback, end, read, callback.acall, "<graphai:END>")


async def _iterate(items: AsyncIterable[str], take: Take) -> None:
    async for token in items:
        take(token)


async def _iterate_batches(callback: Callback, take: Take) -> None:
    async for batch in callback.aiter().batches():
        take("".join(batch))


# GraphAI's.


def graphai() -> Stream:
    """The class ours takes the place of."""
    module = import_module("graphai.callback")
    with warnings.catch_warnings():
        # Every construction says that the class is deprecated.
        warnings.simplefilter("ignore", DeprecationWarning)
        callback = module.Callback()
    return Stream(
        callback,
        callback.close,
        lambda take: _iterate(callback.aiter(), take),
        callback.acall,
        "<graphai:END:>",
    )


def graphai_events() -> Stream:
    """The one that is recommended instead; it makes an object of each token."""
    module = import_module("graphai.callback")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        callback = module.EventCallback()

    async def read(take: Take) -> None:
        async for event in callback.aiter():
            take(event.token or "")

    return Stream(callback, callback.close, read, callback.acall)


# Queues. All end with None.


def asyncio_queue() -> Stream:
    """What one would use without a library."""
    queue: asyncio.Queue[str | None] = asyncio.Queue()
    return Stream(
        queue.put_nowait, lambda: queue.put_nowait(None), lambda take: _get(queue.get, take)
    )


def threadsafe_queue() -> Stream:
    """What one would use without a library, from another thread."""
    queue: asyncio.Queue[str | None] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def put(token: str | None) -> None:
        loop.call_soon_threadsafe(queue.put_nowait, token)

    return Stream(put, lambda: put(None), lambda take: _get(queue.get, take))


def anyio_stream() -> Stream:
    """A memory object stream without a bound."""
    inlet, outlet = anyio.create_memory_object_stream[str](float("inf"))

    async def read(take: Take) -> None:
        async with outlet:
            await _iterate(outlet, take)

    return Stream(inlet.send_nowait, inlet.close, read)


def janus_queue(*, in_thread: bool = False) -> Stream:
    """A queue with one end for threads and one for tasks."""
    return _two_ended(import_module("janus").Queue(), in_thread)


def culsans_queue(*, in_thread: bool = False) -> Stream:
    """Another of the kind."""
    return _two_ended(import_module("culsans").Queue(), in_thread)


def _two_ended(queue: Any, in_thread: bool) -> Stream:
    put = queue.sync_q.put if in_thread else queue.async_q.put_nowait
    read = queue.async_q.get
    return Stream(put, lambda: put(None), lambda take: _get(read, take), release=queue.aclose)


async def _get(get: Callable[[], Awaitable[str | None]], take: Take) -> None:
    while (token := await get()) is not None:
        take(token)


# Running one.


@asynccontextmanager
async def reading(stream: Stream, take: Take) -> AsyncIterator[asyncio.Task[None]]:
    """Read a stream in a task, which waits by now; garbage collection is off meanwhile."""
    task = asyncio.ensure_future(stream.read(take))
    for _ in range(5):
        await asyncio.sleep(0)
    gc.disable()
    try:
        yield task
    finally:
        gc.enable()
        task.cancel()
        if stream.release is not None:
            await stream.release()


async def end(stream: Stream) -> None:
    """End a stream from the loop."""
    ending = stream.end()
    if ending is not None:
        await ending


def check_arrived(stream: Stream, sent: Sequence[str], got: Sequence[str]) -> None:
    """Raise if not every reader got the text that was sent, and the end behind it."""
    if "".join(got) != ("".join(sent) + stream.last) * stream.readers:
        raise RuntimeError(f"{len(sent)} tokens went in, and something else came out")
