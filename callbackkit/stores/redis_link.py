"""One thread that asks Redis for all tasks of a process, many verbs in one call."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from contextvars import Context
from typing import Any, Final

from callbackkit.buffer import Waiter, new_waiter
from callbackkit.errors import StoreError, StoreUnavailableError
from callbackkit.stores.redis_client import Client, refusal
from callbackkit.stores.redis_rows import is_row
from callbackkit.stores.redis_wakes import Wakes
from callbackkit.stores.waking import wake_all

__all__ = ["Link", "Verb"]

_logger = logging.getLogger("callbackkit.stores")

# About how many bytes one call may be: Redis serves nobody else meanwhile.
_MOST_BYTES: Final = 1_048_576
# What a verb counts as at least, as that takes Redis some time, too: a call is 128 of most; less of
# what answers with events, which may be many, and more of what is told of all sessions that are
# read, every few seconds.
_LEAST_BYTES: Final = 8_192
_WEIGHTS: Final = {
    "read": 16_384, "tail": 16_384, "letters": 65_536, "claim": 65_536, "touch": 2_048,
}  # fmt: skip
# What a verb answers that is to be asked for again.
_LATER: Final = [b"later"]
# Sessions that are rung one by one after a look at what changed; beyond, all are.
_MOST_CHANGES: Final = 10_000


class Verb:
    """A verb for one partition; whoever wants it done may be gone when it is.

    Attributes:
        partition: Number of the partition.
        name: Name of the verb.
        arguments: What it is given.
        waiter: Wakes who waits; ``None`` if nobody does.
        result: What it answered.
        error: What went wrong instead.
        until: By the clock of the event loop, when nobody is to wait for it any longer.
    """

    __slots__ = ("arguments", "error", "name", "partition", "result", "until", "waiter")

    def __init__(
        self,
        partition: int,
        name: str,
        arguments: Sequence[str | bytes],
        waiter: Waiter | None = None,
    ) -> None:
        self.partition: int = partition
        self.name: str = name
        # Halves of surrogate pairs go there and come back.
        self.arguments: list[bytes] = [
            each if isinstance(each, bytes) else each.encode("utf-8", "surrogatepass")
            for each in arguments
        ]
        self.waiter: Waiter | None = waiter
        self.result: list[Any] | None = None
        self.error: StoreError | None = None
        self.until: float = math.inf

    @property
    def weight(self) -> int:
        """About how many bytes go there and come back, or what takes Redis as long."""
        return max(sum(map(len, self.arguments)), _WEIGHTS.get(self.name, _LEAST_BYTES))


class Link:
    """What a store has Redis do, from any task of any event loop; for one process.

    Args:
        new_client: Makes a client of coredis, in the thread; it may not try again by itself.
        prefix: What all keys begin with.
        partitions: How many parts the sessions are in.
        timeout: Seconds a call may take.
        reconcile: Seconds between two looks at what changed.
        clock: Seconds since 1970, for tests; ``None`` asks the server.

    Attributes:
        wakes: The watches of this process.
    """

    def __init__(
        self,
        new_client: Callable[[], Any],
        *,
        prefix: str,
        partitions: int,
        timeout: float,
        reconcile: float,
        clock: Callable[[], float] | None,
    ) -> None:
        self.new_client: Callable[[], Any] = new_client
        self.prefix: str = prefix
        self.partitions: int = partitions
        self.timeout: float = timeout
        self.reconcile: float = reconcile
        self.clock: Callable[[], float] | None = clock
        self.wakes: Wakes = Wakes(self._channels_of)
        # Re-entrant: a finalizer may hand over a verb while the lock is held.
        self._lock = threading.RLock()
        self._shift: _Shift | None = None
        self._before: threading.Thread | None = None

    def key(self, partition: int) -> str:
        """Return the key that names a partition."""
        return f"{{{self.prefix}:{partition}}}:meta"

    def partition_of(self, name: str) -> int:
        """Return the partition of a session, or of an endpoint."""
        return zlib.crc32(name.encode("utf-8", "surrogatepass")) % self.partitions

    def _channels_of(self, topic: str | None) -> list[str]:
        if topic is None:
            return [f"{{{self.prefix}:{each}}}:due" for each in range(self.partitions)]
        return [f"{{{self.prefix}:{self.partition_of(topic)}}}:w:{topic}"]

    async def do(self, verbs: Sequence[Verb]) -> None:
        """Have verbs done; each has its result or its error then.

        Cancelled, the task goes on at once, and the verbs are done all the same.
        """
        for verb in verbs:
            verb.waiter = new_waiter()
        with self._lock:
            shift = self._shift or self._begin()
            if shift.process != os.getpid():
                raise StoreError("the store was used before this process was forked; make one anew")
            shift.hand_over(verbs)
        for verb in verbs:
            if verb.waiter is not None:
                await verb.waiter.wait()

    async def aclose(self) -> None:
        """Wait until what was asked for is done, and the thread has let go of Redis."""
        waiter = new_waiter()
        with self._lock:
            shift, self._shift = self._shift, None
            if shift is None or shift.process != os.getpid():
                return
            self._before = shift.thread
            shift.end(waiter)
        await waiter.wait()

    def _begin(self) -> _Shift:
        shift = _Shift(self, self._before)
        shift.begin()
        self._shift = shift
        return shift

    def forget(self, shift: _Shift) -> list[Verb]:
        """Have nothing more handed over to a shift; return what was and is not done."""
        with self._lock:
            if self._shift is shift:
                self._shift = None
            return shift.leave()


class _Shift:
    """The thread, from the first verb until the link is closed."""

    def __init__(self, link: Link, before: threading.Thread | None) -> None:
        self.process: int = os.getpid()
        self.thread: threading.Thread = threading.Thread(
            target=self._run, args=(before,), name="callbackkit-redis", daemon=True
        )
        self._link = link
        self._loop = asyncio.new_event_loop()
        self._jobs: deque[Verb] = deque()
        self._is_kicked = False
        self._ended: list[Waiter] = []
        # Of the thread.
        self._client = Client(link.new_client, timeout=link.timeout)
        self._queues: list[deque[Verb]] = [deque() for _ in range(link.partitions)]
        self._workers: dict[int, asyncio.Task[None]] = {}
        # Who is to be woken once all answers that are there were looked at.
        self._done: list[Waiter] = []
        self._over = asyncio.Event()
        self._seen: list[tuple[bytes, int]] = [(b"", 0)] * link.partitions
        # The partition that is looked at next.
        self._turn = 0

    # With the lock of the link.

    def begin(self) -> None:
        """Start the thread."""
        try:
            self.thread.start()
        except RuntimeError:
            self._loop.close()
            raise

    def hand_over(self, verbs: Sequence[Verb]) -> None:
        """Have verbs done."""
        self._jobs.extend(verbs)
        if not self._is_kicked:
            self._is_kicked = True
            # Not in the context of the caller, who may be a task of trio.
            self._loop.call_soon_threadsafe(self._kick, context=Context())

    def end(self, waiter: Waiter) -> None:
        """Do what is left, then end; wake who waits for that."""
        self._ended.append(waiter)
        self._loop.call_soon_threadsafe(self._over.set, context=Context())

    def leave(self) -> list[Verb]:
        """Return what is not done."""
        return [*self._jobs, *(verb for queue in self._queues for verb in queue)]

    # In the thread.

    def _run(self, before: threading.Thread | None) -> None:
        if before is not None:
            before.join()
        try:
            Context().run(self._loop.run_until_complete, self._serve())
        except Exception:
            _logger.exception("the thread that asks Redis failed")
        finally:
            left = self._link.forget(self)
            _refuse(left, StoreUnavailableError("the store was closed before Redis answered"))
            wake_all([*self._done, *(each.waiter for each in left if each.waiter is not None)])
            self._loop.close()
            wake_all(self._ended)

    async def _serve(self) -> None:
        wakes = self._link.wakes
        wakes.listen_by(self._look_soon)
        tasks = [
            asyncio.ensure_future(each)
            for each in (wakes.listen(self._client.subscriber), self._look_around())
        ]
        try:
            await self._over.wait()
            self._kick()
            # A server that does not answer is not waited for longer than one call takes.
            if self._workers:
                await asyncio.wait(self._workers.values(), timeout=self._link.timeout + 1)
        finally:
            wakes.listen_by(None)
            await _cancel([*tasks, *self._workers.values()])
            await self._client.aclose()

    def _look_soon(self) -> None:
        # The loop may be closed by now; then there is nothing to listen by.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._link.wakes.look, context=Context())

    def _kick(self) -> None:
        with self._link._lock:
            self._is_kicked = False
            jobs, self._jobs = self._jobs, deque()
        until = self._loop.time() + self._link.timeout
        for job in jobs:
            job.until = until
            self._queues[job.partition].append(job)
            if job.partition not in self._workers:
                self._workers[job.partition] = self._loop.create_task(self._work(job.partition))

    async def _work(self, partition: int) -> None:
        queue = self._queues[partition]
        try:
            while queue:
                verbs = self._refuse_late(_take(queue))
                if verbs:
                    queue.extendleft(reversed(await self._call(partition, verbs)))
        finally:
            del self._workers[partition]

    def _refuse_late(self, verbs: list[Verb]) -> list[Verb]:
        """Return those that can still be done in time; the others are refused."""
        now = self._loop.time()
        late = [each for each in verbs if each.until < now]
        _refuse(late, StoreUnavailableError("Redis took too long for what was asked before"))
        self._wake(late)
        return [each for each in verbs if each.until >= now] if late else verbs

    async def _call(self, partition: int, verbs: list[Verb]) -> list[Verb]:
        """Have verbs done; whatever happens, each has its result or its error, and is woken.

        But for those that Redis wants to be asked again, since its answer was large enough: these
        are returned.
        """
        again: list[Verb] = []
        try:
            results = await self._client.run_script(
                self._link.key(partition), self._words(verbs), lane=partition
            )
            for verb, result in zip(verbs, results, strict=True):
                _settle(verb, result)
            again = [each for each in verbs if each.result == _LATER]
            for verb in again:
                verb.result = None
        except StoreError as error:
            _refuse(verbs, error)
        except Exception as exc:
            _logger.exception("Redis could not be asked")
            failure = StoreError(f"Redis could not be asked: {exc!r:.200}")
            failure.__cause__ = exc
            _refuse(verbs, failure)
        finally:
            if again:
                verbs = [each for each in verbs if each not in again]
            _refuse(verbs, StoreUnavailableError("the store was closed before Redis answered"))
            self._wake(verbs)
        return again

    def _wake(self, verbs: Iterable[Verb]) -> None:
        waiters = [each.waiter for each in verbs if each.waiter is not None]
        if len(self._workers) < 2:
            wake_all(waiters)
            return
        # Of several partitions together: to wake another thread takes as long as an append.
        if not self._done:
            self._loop.call_soon(self._wake_done)
        self._done += waiters

    def _wake_done(self) -> None:
        done, self._done = self._done, []
        wake_all(done)

    def _words(self, verbs: Sequence[Verb]) -> list[str | bytes]:
        words: list[str | bytes] = [self._time(verbs), str(self._link.partitions)]
        for verb in verbs:
            words += [verb.name, str(len(verb.arguments)), *verb.arguments]
        return words

    def _time(self, verbs: Sequence[Verb]) -> str:
        if all(verb.name == "changes" for verb in verbs):
            return "-"
        return "" if self._link.clock is None else repr(self._link.clock())

    # Looking at what no wake told of.

    async def _look_around(self) -> None:
        count = self._link.partitions
        while True:
            await asyncio.sleep(self._link.reconcile)
            for _ in range(count):
                # Where nobody waits, nobody is asked; behind one that does not answer, the others
                # have their turn next time.
                if not len(self._link.wakes):
                    break
                partition, self._turn = self._turn, (self._turn + 1) % count
                if not await self._look(partition):
                    break

    async def _look(self, partition: int) -> bool:
        gen, seen = self._seen[partition]
        verb = Verb(partition, "changes", [gen, str(seen), str(_MOST_CHANGES)])
        await self._call(partition, [verb])
        if verb.error is not None or verb.result is None:
            return False
        _, now_gen, newest, are_all_known, ids = verb.result
        self._seen[partition] = (now_gen, int(newest))
        wakes = self._link.wakes
        if are_all_known != b"1" or len(ids) == _MOST_CHANGES:
            wakes.ring_all()
            return True
        for each in ids:
            wakes.ring(each.decode("utf-8", "surrogatepass"))
        if ids:
            wakes.ring(None)
        return True


async def _cancel(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Have tasks end: told once, one that just connects may take that for a failure to connect."""
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=0.1)
    await asyncio.gather(*tasks, return_exceptions=True)


def _take(queue: deque[Verb]) -> list[Verb]:
    """Take verbs for one call, at least one."""
    verbs = [queue.popleft()]
    weight = verbs[0].weight
    while queue:
        weight += queue[0].weight
        if weight > _MOST_BYTES:
            break
        verbs.append(queue.popleft())
    return verbs


def _settle(verb: Verb, result: Any) -> None:
    if not is_row(result):
        verb.error = StoreError(f"Redis answered {result!r:.200}")
    elif result and result[0] == b"error":
        verb.error = refusal(result[1].decode("utf-8", "replace"))
    else:
        verb.result = result


def _refuse(verbs: Iterable[Verb], error: StoreError) -> None:
    for verb in verbs:
        if verb.result is None and verb.error is None:
            # One each: what is raised by many tasks would gather their tracebacks.
            verb.error = type(error)(*error.args)
            verb.error.__cause__ = error.__cause__
