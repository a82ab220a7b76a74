"""Runs that many threads and loops feed, follow and end at once, by chance and at length."""

import gc
import random
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import anyio
import pytest

from callbackkit import (
    Callback,
    SpecialToken,
    StreamCancelledError,
    StreamClosedError,
    StreamEvent,
    StreamLagError,
)

pytestmark = pytest.mark.torture

PRODUCERS = 4
TOKENS = 3_000


@pytest.fixture(autouse=True)
def threads_that_take_turns_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


class Count:
    """What one reader got: of each producer in order, with what is missing told."""

    def __init__(self) -> None:
        self.entries = 0
        self.ends: list[str] = []
        self.last = [-1] * PRODUCERS

    def take(self, item: Any) -> None:
        assert not self.ends, "something behind the end"
        if isinstance(item, StreamEvent):
            self.take_event(item)
        elif not isinstance(item, SpecialToken):
            self.take_text(item)
        elif item.kind == "gap":
            self.entries += int(item.params["missed"])
        elif item.kind == "stream_end":
            self.end(item)

    def take_event(self, event: StreamEvent) -> None:
        if event.type == "token":
            assert event.token is not None
            self.take_text(event.token)
        elif event.type == "gap":
            self.entries += event.data["missed"]
        elif event.type == "stream_end":
            self.end(event.token)
        assert event.seq == self.entries

    def take_text(self, text: str) -> None:
        # "p:n;" for number n of producer p, several of them if they were joined.
        for part in text.removesuffix(";").split(";"):
            producer, number = map(int, part.split(":"))
            assert number > self.last[producer]
            self.last[producer] = number
            self.entries += 1

    def end(self, token: Any) -> None:
        self.ends.append(token)
        self.entries += 1


class Torture:
    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.callback = Callback(history_bytes=self.chance.choice([1, 500, 20_000, 10**7]))
        self.accepted = [0] * PRODUCERS
        self.counts: list[Count] = []
        self.failures: list[BaseException] = []

    def produce(self, producer: int) -> None:
        for number in range(TOKENS):
            try:
                self.callback(f"{producer}:{number};")
            except (StreamClosedError, StreamCancelledError):
                return
            self.accepted[producer] += 1

    def options(self) -> dict[str, Any]:
        return {
            "overflow": self.chance.choice(["coalesce", "coalesce", "block", "error"]),
            "max_lag": self.chance.choice([1, 10, 1_000, 10**6]),
            "stall_timeout": 0.01,
            "raise_errors": False,
        }

    async def follow(self, kind: str, seed: int, options: dict[str, Any]) -> None:
        chance = random.Random(seed)
        count = Count()
        reader = getattr(self.callback, kind)(**options)
        while not count.ends:
            try:
                with anyio.move_on_after(chance.choice([0.0001, 0.01, 10])):
                    count.take(await anext(reader))
            except StreamLagError as exc:
                count.entries += exc.missed
        with pytest.raises(StopAsyncIteration):
            await anext(reader)
        self.counts.append(count)

    async def loop(self, readers: list[tuple[str, int, dict[str, Any]]]) -> None:
        async with anyio.create_task_group() as group:
            for reader in readers:
                group.start_soon(self.follow, *reader)

    def follow_in_thread(self, options: dict[str, Any]) -> None:
        count = Count()
        reader = self.callback.iter_sync(**options)
        while not count.ends:
            try:
                count.take(next(reader))
            except StreamLagError as exc:
                count.entries += exc.missed
        self.counts.append(count)

    def come_and_go(self) -> None:
        """Readers that leave without a word."""
        while not self.callback.is_closed:
            for token in self.callback.iter_sync(overflow="block", max_lag=1):
                assert token
                break

    def end(self, seed: int, gate: threading.Barrier) -> None:
        gate.wait(60)
        how = random.Random(seed).choice(["close", "cancel", "timeout"])
        if how == "timeout":
            self.callback.end("timeout")
        else:
            getattr(self.callback, how)()

    def guarded(self, call: Callable[[], object]) -> None:
        try:
            call()
        except BaseException as exc:
            self.failures.append(exc)
            self.callback.close()

    def run(self) -> None:
        chance = self.chance
        calls: list[Callable[[], object]] = []
        for backend in ("asyncio", "trio"):
            readers = [
                (chance.choice(["aiter", "events"]), chance.getrandbits(30), self.options())
                for _ in range(2)
            ]
            calls.append(partial(anyio.run, self.loop, readers, backend=backend))
        calls.append(partial(self.follow_in_thread, self.options()))
        calls.append(self.come_and_go)
        producers = [partial(self.produce, producer) for producer in range(PRODUCERS)]
        gate = threading.Barrier(2)
        ends = [partial(self.end, chance.getrandbits(30), gate) for _ in range(2)]
        followers, feeders, enders = (
            [threading.Thread(target=self.guarded, args=(call,), daemon=True) for call in some]
            for some in (calls, producers, ends)
        )
        for thread in followers + feeders:
            thread.start()
        # Half of the time the end comes in the midst of it.
        waited_for = feeders if chance.random() < 0.5 else []
        for thread in waited_for:
            thread.join(120)
        for thread in enders:
            thread.start()
        for thread in enders + feeders + followers:
            thread.join(120)
            assert not thread.is_alive(), "something hangs"


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.timeout(600)
def test_whatever_threads_and_loops_do_readers_get_everything_or_a_gap(seed: int) -> None:
    torture = Torture(seed)
    torture.run()
    if torture.failures:
        raise torture.failures[0]
    entries = sum(torture.accepted) + 1
    assert torture.callback.last_seq == entries
    assert [count.entries for count in torture.counts] == [entries] * 5
    assert len({tuple(count.ends) for count in torture.counts}) == 1
    gc.collect()
    assert not torture.callback._log._parked
    assert not torture.callback._run._blocked
