"""Laws that hold in every order of the awaits of those who meet at a store.

Each actor is a coroutine that a scheduler lets go on from one await to the next, one actor at a
time. All orders are tried, first to last, as one counts: the last choice that can be another is
made another.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Coroutine, Generator, Sequence
from random import Random
from typing import Any, Final

import anyio
import anyio.lowlevel
import attrs

from callbackkit.errors import LeaseLostError
from callbackkit.events import Position
from callbackkit.stores.base import Appended, Page, Retention
from callbackkit.testing.store_bench import Bench, Law, body, hold, same

__all__ = ["ORDER_LAWS", "in_every_order"]

# Orders tried of one law. A store without awaits of its own has fewer.
_MOST_ORDERS: Final = 200
# Steps of an order that chance chooses.
_MOST_CHOICES: Final = 100

# Turns of the event loop in which an actor that is not really waiting gets to its next step.
_TURNS: Final = 3

_step = anyio.lowlevel.checkpoint

Actor = Coroutine[Any, Any, None]


class _Gated:
    """An actor whose every resumption waits for the scheduler."""

    def __init__(self, actor: Actor, notify: Callable[[], None]) -> None:
        self._actor = actor
        self._notify = notify
        self._gate = anyio.Event()
        self.is_ready: bool = False
        self.is_done: bool = False

    def go_on(self) -> None:
        self.is_ready = False
        self._gate.set()

    async def run(self) -> None:
        try:
            await self
        finally:
            self.is_done = True
            self._notify()

    async def _pass(self) -> None:
        self._gate = anyio.Event()
        self.is_ready = True
        self._notify()
        await self._gate.wait()

    def __await__(self) -> Generator[Any, Any, None]:
        # What the actor waits for goes through to the event loop, and what comes back is held
        # at the gate.
        come: Any = None
        error: BaseException | None = None
        while True:
            try:
                yield from self._pass().__await__()
            except BaseException as thrown:  # cancelled: the actor is to know
                error = thrown
            try:
                waits_for = self._actor.send(come) if error is None else self._actor.throw(error)
            except StopIteration:
                return
            come = error = None
            try:
                come = yield waits_for
            except BaseException as thrown:
                error = thrown


@attrs.define
class _Scheduler:
    """Lets actors go on in one order, and notes what other choices there were.

    Attributes:
        choices: Which of the ready actors goes on, step by step; the first one after these.
        patience: Seconds until something has to be ready.
    """

    choices: Sequence[int]
    patience: float
    _changed: anyio.Event = attrs.field(factory=anyio.Event)

    def notify(self) -> None:
        self._changed.set()

    async def drive(self, actors: Sequence[Actor]) -> list[tuple[int, int]]:
        """Run actors to their end; return what was chosen, and of how many."""
        trail: list[tuple[int, int]] = []
        gated = [_Gated(actor, self.notify) for actor in actors]
        async with anyio.create_task_group() as tasks:
            for each in gated:
                tasks.start_soon(each.run)
            while ready := await self._ready(gated):
                step = len(trail)
                choice = self.choices[step] if step < len(self.choices) else 0
                choice = min(choice, len(ready) - 1)
                trail.append((choice, len(ready)))
                ready[choice].go_on()
        return trail

    async def _ready(self, actors: Sequence[_Gated]) -> list[_Gated]:
        """Wait until an actor can go on; none can when all are done."""
        for _ in range(_TURNS):
            await _step()
        while True:
            self._changed = anyio.Event()
            ready = [each for each in actors if each.is_ready]
            if ready or all(each.is_done for each in actors):
                return ready
            with anyio.fail_after(2 * self.patience):
                await self._changed.wait()


async def in_every_order(
    meet: Callable[[str], Awaitable[Sequence[Actor]]],
    patience: float,
    *,
    most: int = _MOST_ORDERS,
) -> int:
    """Have actors meet in every order of their awaits; return how many were tried.

    Args:
        meet: Makes the actors for one order, whose name it is given.
        patience: Seconds until something has to happen.
        most: Orders that are tried. If there are more, half of these are taken one by one, which
            differ in their ends, and half by chance, which differ anywhere.
    """
    choices: list[int] = []
    for count in range(1, most + 1):
        trail = await _Scheduler(choices, patience).drive(await meet(f"order{count}"))
        if 2 * count >= most:
            choices = _some_choices(count)
            continue
        while trail and trail[-1][0] + 1 == trail[-1][1]:
            trail.pop()
        if not trail:
            return count
        choices = [choice for choice, _ in trail]
        choices[-1] += 1
    return most


def _some_choices(seed: int) -> list[int]:
    """Return choices by chance, the same ones each time."""
    random = Random(seed)
    return [random.randrange(2) for _ in range(_MOST_CHOICES)]


# A reader and a writer.


async def nothing_is_missed(bench: Bench) -> None:
    """Append during replay, in every order: a reader sees each event, once, and waits for none."""

    async def meet(name: str) -> Sequence[Actor]:
        await bench.reads(name)
        return [_read(bench, name, lambda page, seen: len(seen) == 3), _write(bench, name)]

    await in_every_order(meet, bench.patience)


async def the_end_comes_last(bench: Bench) -> None:
    """A session that ends while somebody reads, in every order: he sees each event before."""

    async def meet(name: str) -> Sequence[Actor]:
        await bench.reads(name)
        return [_read(bench, name, _is_end), _write(bench, name, ends=True)]

    await in_every_order(meet, bench.patience)


async def what_is_missed_is_told(bench: Bench) -> None:
    """Events that are dropped while somebody reads, in every order: he is told which."""

    async def meet(name: str) -> Sequence[Actor]:
        await bench.reads(name, retention=Retention(max_events=1))
        return [_read(bench, name, _is_end, may_miss={1, 2}), _write(bench, name, ends=True)]

    await in_every_order(meet, bench.patience)


async def _write(bench: Bench, name: str, ends: bool = False) -> None:
    await bench.add(name)
    await _step()
    await bench.add(name, 2)
    if ends:
        await _step()
        await bench.store.end_session(name, linger=1000)


async def _read(
    bench: Bench,
    name: str,
    is_over: Callable[[Page, Sequence[int]], bool],
    may_miss: Collection[int] = (),
) -> None:
    after: Position | None = None
    seen: list[int] = []
    with bench.store.watch(name) as watch:
        while True:
            page = await bench.store.read(name, after=after, limit=2)
            await _step()
            numbers = [record.seq for record in page.records]
            if numbers:
                hold(_follows(page, numbers, seen), "what is read follows", seen, page)
                seen.extend(numbers)
                after = Position(page.epoch, numbers[-1])
            if is_over(page, seen):
                break
            if not numbers:
                woken = await watch.wait(bench.patience)
                hold(woken, "a reader that waits is woken", seen)
    same(sorted({1, 2, 3} - set(may_miss) - set(seen)), [], "events that were missed")


def _is_end(page: Page, _: Sequence[int]) -> bool:
    return page.state == "ended" and not page.records


def _follows(page: Page, numbers: Sequence[int], seen: Sequence[int]) -> bool:
    """Tell whether numbers follow on, or what is between them is known to be dropped."""
    last = seen[-1] if seen else 0
    is_row = list(numbers) == list(range(numbers[0], numbers[-1] + 1))
    return is_row and (numbers[0] == last + 1 or last < numbers[0] == page.first)


# Two of a kind.


async def a_key_is_appended_once(bench: Bench) -> None:
    """Two writers with the same key, in every order: one event, the same for both."""

    async def meet(name: str) -> Sequence[Actor]:
        await bench.reads(name)
        given: list[Appended] = []
        return [_append_once(bench, name, given) for _ in range(2)]

    await in_every_order(meet, bench.patience)


async def _append_once(bench: Bench, name: str, given: list[Appended]) -> None:
    given.append(await bench.store.append(name, "progress", body(), key="k"))
    await _step()
    if len(given) == 2:
        same({each.record.seq for each in given}, {1}, "numbers of the record")
        same([each.is_new for each in given].count(True), 1, "how many were new")


async def each_thing_is_claimed_by_one(bench: Bench) -> None:
    """Two workers, in every order: each event is acknowledged once, by the one who holds it."""

    async def meet(name: str) -> Sequence[Actor]:
        await bench.pushes(name, method=name)
        await bench.add(name, 2)
        done: list[int] = []
        return [_work(bench, name, done) for _ in range(2)]

    await in_every_order(meet, bench.patience)


async def _work(bench: Bench, name: str, done: list[int]) -> None:
    for _ in range(3):
        await _step()
        for claim in await bench.claim(methods=[name], lease=1000):
            await _step()
            hold(claim.cursor not in done, "what was acknowledged is not claimed", done, claim)
            done.append(claim.cursor)
            try:
                await bench.store.ack(claim, claim.cursor + 1, None)
            except LeaseLostError:
                hold(False, "a claim is held until its lease is over", claim)
    session = await bench.store.get_session(name)
    same(session.delivered + session.queued, 2, "delivered and queued")
    same(sorted(set(done)), sorted(done), "what was acknowledged")


ORDER_LAWS: Final[tuple[Law, ...]] = (
    nothing_is_missed,
    the_end_comes_last,
    what_is_missed_is_told,
    a_key_is_appended_once,
    each_thing_is_claimed_by_one,
)
