"""What several processes on one Redis withstand: killed, paused, wrong clocks, all at once."""

import gc
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import anyio
import pytest

from callbackkit.delivery.transport import Transport
from callbackkit.events import Position
from callbackkit.sessions.manager import CallbackManager
from callbackkit.stores.redis import RedisStore
from callbackkit.testing import FaultyReceiver, Hang, ReceivedRequest
from callbackkit.webhooks.transport import WebhookTransport
from tests.stores.redis_rig import PATIENCE, Told, Worker
from tests.stores.redis_server import fresh_prefix, marks, shared_server

pytestmark = marks

CONFIG: dict[str, Any] = {"delivery_method": "told"}
SECRET = "whsec_" + "c2VjcmV0" * 4


@pytest.fixture(scope="module", autouse=True)
def garbage() -> Iterator[None]:
    """What coredis leaves open is collected while its warning is passed over, see `marks`."""
    yield
    gc.collect()


@pytest.fixture
def prefix() -> str:
    return fresh_prefix()


@pytest.fixture
def clock(tmp_path: Path) -> Path:
    """Holds by how many seconds the clock of the stores is ahead."""
    path = tmp_path / "clock"
    path.write_text("0", "ascii")
    return path


def leap(clock: Path) -> None:
    """Have a minute pass for the stores, for which all leases lapse; nobody reads half of it."""
    ahead = clock.with_suffix(".next")
    ahead.write_text("60", "ascii")
    ahead.replace(clock)


def ask(url: str, prefix: str, verb: Callable[[CallbackManager], Any]) -> Any:
    """Return what a coroutine function gets of a manager that delivers nothing."""

    async def run() -> Any:
        transports: list[Transport] = [Told(), WebhookTransport.for_development()]
        manager = CallbackManager(RedisStore.from_url(url, prefix=prefix), transports)
        try:
            return await verb(manager)
        finally:
            await manager.store.aclose()

    return anyio.run(run)


def new_sessions(url: str, prefix: str, *configs: dict[str, Any]) -> list[str]:
    """Create sessions; no process of these tests serves them yet."""

    async def create(manager: CallbackManager) -> list[str]:
        return [(await manager.create_session(each)).id for each in configs]

    found: list[str] = ask(url, prefix, create)
    return found


def delivered(worker: Worker, session_id: str, kind: str = "sent") -> list[int]:
    return [n for name, numbers, *_ in worker.of(kind) if name == session_id for n in numbers]


def check_acknowledged_once(url: str, prefix: str, session_id: str, count: int) -> None:
    """See that each event is known to be delivered by one attempt; no more than 100 are kept."""

    async def look(manager: CallbackManager) -> tuple[Any, Any]:
        record = await manager.store.get_session(session_id)
        return record, await manager.store.attempts(session_id)

    record, attempts = ask(url, prefix, look)
    assert (record.sent, record.queued, record.failed, record.expired) == (count, 0, 0, 0)
    done = Counter(each.delivery_id for each in attempts if not each.error)
    assert len(done) == count
    assert set(done.values()) == {1}


# Who follows.


def check_read(events: list[list[Any]], emitted: list[list[Any]]) -> None:
    """See that who follows got each event once, in order, and all that was acknowledged."""
    positions = [Position.parse(position) for _, position, _, _ in events]
    assert len({each.epoch for each in positions}) == 1
    assert [each.seq for each in positions] == list(range(1, len(positions) + 1))
    assert "callbackkit.gap" not in {event_type for _, _, event_type, _ in events}
    read = {position: n for _, position, _, n in events}
    assert {position: read.get(position) for _, position, n, _ in emitted} == {
        position: n for _, position, n, _ in emitted
    }


def check_kill_under_load(url: str, prefix: str, *, after: int, sessions: int) -> None:
    """Kill a process that emits and is followed as fast as it can, and go on at another."""
    ids = new_sessions(url, prefix, *[CONFIG] * sessions)
    share = after // sessions
    with Worker(url, prefix) as first, Worker(url, prefix, backend="trio") as second:
        for worker in (first, second):
            worker.wait_for("ready")
        for each in ids:
            first.tell("follow", session=each, after=None)
            first.tell("emit", session=each, numbers=list(range(10_000)))
            second.tell("emit", session=each, numbers=list(range(20_000, 20_000 + share)))
        first.wait_for("event", after)
        first.kill()
        read = first.of("event")
        for each in ids:
            places = [Position.parse(place) for name, place, *_ in read if name == each]
            last = max(places, key=lambda position: position.seq, default=None)
            second.tell("follow", session=each, after=None if last is None else str(last))
        second.wait_for("emitted", share * sessions)
        # What comes last is read last.
        for each in ids:
            second.tell("emit", session=each, numbers=[99_999])
        second.wait(lambda: sum(n == 99_999 for *_, n in second.of("event")) == sessions)
        # It was in the middle of it.
        assert 0 < len(first.of("emitted")) < 10_000 * sessions
        emitted = first.of("emitted") + second.wait_for("emitted", (share + 1) * sessions)
        for each in ids:
            check_read(
                [event for event in [*read, *second.of("event")] if event[0] == each],
                [event for event in emitted if event[0] == each],
            )
        assert second.stop() == 0


def test_clients_of_a_killed_process_go_on_at_another_and_miss_nothing(prefix: str) -> None:
    check_kill_under_load(shared_server(), prefix, after=60, sessions=2)


@pytest.mark.torture
@pytest.mark.timeout(300)
@pytest.mark.parametrize("after", [1, 7, 50, 300, 1_000])
def test_clients_of_processes_killed_at_any_time_miss_nothing(prefix: str, after: int) -> None:
    check_kill_under_load(shared_server(), prefix, after=after, sessions=1 + after // 50)


# What is owed.


@pytest.mark.parametrize(
    "pauses",
    [pytest.param(False, marks=pytest.mark.torture, id="killed"), pytest.param(True, id="paused")],
)
def test_what_a_process_had_claimed_is_taken_over_in_order_and_acknowledged_once(
    prefix: str, clock: Path, pauses: bool
) -> None:
    """One that was only paused says that it is done while another one holds the lease."""
    url = shared_server()
    stuck, other = new_sessions(url, prefix, CONFIG, CONFIG)
    settings = {"backend": "trio", "hangs_at": 5 if pauses else None}
    with ExitStack() as opened:
        first = opened.enter_context(Worker(url, prefix, clock=str(clock), hangs_at=3))
        first.wait_for("ready")
        for each, numbers in ((stuck, [*range(10)]), (other, [100])):
            first.tell("emit", session=each, numbers=numbers)
        # The other is done, and this is being sent.
        first.wait(lambda: 3 in delivered(first, stuck, "sending"))
        first.wait(lambda: 100 in delivered(first, other))
        first.wait_for("emitted", 11)
        first.pause() if pauses else first.kill()
        second = opened.enter_context(Worker(url, prefix, clock=str(clock), **settings))
        second.wait_for("ready")
        second.tell("emit", session=other, numbers=[101])
        second.wait(lambda: 101 in delivered(second, other))
        # While it is leased nobody takes it.
        assert delivered(second, stuck, "sending") == []
        leap(clock)
        # Who waits until it is due waits by his own clock: this has him look.
        second.tell("emit", session=other, numbers=[102])
        if pauses:
            second.wait(lambda: 5 in delivered(second, stuck, "sending"))
            first.resume()
            first.tell("release")
            first.wait(lambda: 3 in delivered(first, stuck))
            # It has had its answer to that once this is done.
            first.tell("emit", session=other, numbers=[103])
            first.wait_for("emitted", 12)
            second.tell("release")
        # By whom the rest is sent is all the same.
        second.wait(lambda: 9 in delivered(first, stuck) + delivered(second, stuck))
        if pauses:
            assert first.stop() == 0
        assert second.stop() == 0
        assert delivered(first, stuck)[:3] == [0, 1, 2]
        assert delivered(second, stuck)[:2] == [3, 4]
        tries = [each for worker in (first, second) for each in worker.of("sending")]
        in_order = sorted((at, numbers) for name, numbers, _, at in tries if name == stuck)
        # One whose clock was read before the pause, and is sent after it, has time leap once more
        # in the store: then what hangs at the other one may be tried again, too.
        numbers = [n for _, (n,) in in_order]
        assert numbers == sorted(numbers)
        assert [*dict.fromkeys(numbers)] == [*range(10)]
        assert numbers.count(3) == 2
    check_acknowledged_once(url, prefix, stuck, 10)


@pytest.fixture(scope="module")
def apart() -> Iterator[tuple[str, Worker, Worker]]:
    """A prefix, and two processes on it whose clocks differ by twenty minutes."""
    prefix = fresh_prefix()
    settings: dict[str, Any] = {"hangs_at": 2, "fails_at": 4, "schedule": [0.5]}
    with (
        Worker(shared_server(), prefix, skew=600, **settings) as fast,
        Worker(shared_server(), prefix, skew=-600, backend="trio", **settings) as slow,
    ):
        for worker in (fast, slow):
            worker.wait_for("ready")
        yield prefix, fast, slow
        for worker in (fast, slow):
            assert worker.stop() == 0


def test_workers_whose_clocks_are_wrong_lease_and_retry_as_if_they_were_not(
    apart: tuple[str, Worker, Worker],
) -> None:
    url = shared_server()
    prefix, fast, slow = apart
    both = (fast, slow)
    *ids, other = new_sessions(url, prefix, *[CONFIG] * 5)
    now = time.time()
    for n, each in enumerate(ids):
        follower, emitter = both if n % 2 else (slow, fast)
        follower.tell("follow", session=each, after=None)
        emitter.tell("emit", session=each, numbers=[*range(6)])
    for worker in both:
        worker.wait_for("emitted", 12)
        worker.wait_for("event", 12)

    def hanging() -> int:
        return sum(2 in delivered(worker, each, "sending") for each in ids for worker in both)

    # Each hangs once, and nobody takes it from whom it is leased to, whoever looks.
    fast.wait(lambda: hanging() == 4)
    for n in range(100, 120):
        for worker in both:
            worker.tell("emit", session=other, numbers=[n])
        fast.wait(lambda n=n: sum(len(delivered(each, other)) for each in both) >= 2 * (n - 99))
        if all(delivered(worker, other) for worker in both):
            break
    assert hanging() == 4
    for worker in both:
        worker.tell("release")
    for each in ids:
        fast.wait(lambda each=each: len(delivered(fast, each) + delivered(slow, each)) >= 6)
        ask(url, prefix, lambda manager, each=each: settled(manager, [each]))
        # By the clock of Redis, whoever emitted.
        times = [at for worker in both for name, *_, at in worker.of("emitted") if name == each]
        assert all(abs(at - now) < 60 for at in times)
        tries = [
            (at, numbers, attempt)
            for worker in both
            for name, numbers, attempt, at in worker.of("sending")
            if name == each
        ]
        check_tries(sorted(tries))
        check_acknowledged_once(url, prefix, each, 6)


def check_tries(tries: Sequence[tuple[float, list[int], int]]) -> None:
    """See that each number was tried once, but for the one that failed: when that was due."""
    assert [(n, attempt) for _, (n,), attempt in tries] == [
        (0, 1), (1, 1), (2, 1), (3, 1), (4, 1), (4, 2), (5, 1),
    ]  # fmt: skip
    assert 0.45 < tries[5][0] - tries[4][0] < 10


def test_webhooks_of_a_killed_process_are_sent_by_the_other_one(prefix: str, clock: Path) -> None:
    """In order, and what comes again comes by the same id and with the same body."""
    url = shared_server()
    with (
        FaultyReceiver.in_thread() as receiver,
        Worker(url, prefix, clock=str(clock)) as first,
        Worker(url, prefix, clock=str(clock), backend="trio") as second,
    ):
        stuck, *others = ids = new_sessions(
            url,
            prefix,
            *[
                {"webhook_url": f"{receiver.url}{n}", "webhook_secret": SECRET, "ttl": None}
                for n in range(4)
            ],
        )
        receiver.on("/0", Hang())
        first.wait_for("ready")
        first.tell("emit", session=stuck, numbers=[*range(20)])
        [hung] = receiver.wait_for(1)
        assert hung.path == "/0"
        second.wait_for("ready")
        for each in others:
            for worker, begin in ((first, 0), (second, 20)):
                worker.tell("emit", session=each, numbers=[*range(begin, begin + 20)])
        # Some of it on its way, some not.
        receiver.wait_for(20)
        first.kill()
        receiver.on("/0", None)
        second.wait(lambda: all(in_turn(second, each) == 20 for each in others))
        # While it is leased nobody takes it.
        assert [request.path for request in receiver.requests].count("/0") == 1
        leap(clock)
        known = {each: [n for name, _, n, _ in first.of("emitted") if name == each] for each in ids}
        second.tell("emit", session=stuck, numbers=[*range(20, 40)])
        second.wait(lambda: in_turn(second, stuck) == 20)
        counts = ask(url, prefix, lambda manager: settled(manager, ids))
        requests = list(receiver.requests)
        assert second.stop() == 0
    for place, (each, count) in enumerate(zip(ids, counts, strict=True)):
        mine = [request for request in requests if request.path == f"/{place}"]
        numbers = check_arrived(mine, count)
        assert set(numbers) >= {*known[each], *range(20, 40)}
        check_acknowledged_once(url, prefix, each, count)
    again = hung.headers["webhook-id"]
    assert [request.headers["webhook-id"] for request in requests].count(again) == 2


def in_turn(worker: Worker, session_id: str) -> int:
    return sum(name == session_id for name, *_ in worker.of("emitted"))


async def settled(manager: CallbackManager, ids: Sequence[str]) -> list[int]:
    """Wait until nothing is owed any more; return how much was."""
    with anyio.fail_after(PATIENCE):
        while True:
            records = [await manager.store.get_session(each) for each in ids]
            if not any(each.queued for each in records):
                return [each.sent for each in records]
            await anyio.sleep(0.02)


def check_arrived(requests: Sequence[ReceivedRequest], count: int) -> list[int]:
    """See that all events of a session arrived, in order, repeats alike; return their numbers."""
    bodies: dict[str, bytes] = {}
    seqs: list[int] = []
    numbers: dict[int, int] = {}
    for request in requests:
        assert bodies.setdefault(request.headers["webhook-id"], request.body) == request.body
        [event] = request.events(SECRET)
        seqs.append(event.position.seq)
        numbers[event.position.seq] = event.data["n"]
    assert seqs == sorted(seqs)
    assert sorted(numbers) == [*range(1, count + 1)]
    assert len(bodies) == count
    return list(numbers.values())


# Both at once.


def test_the_same_key_from_two_processes_at_once_is_one_event(
    apart: tuple[str, Worker, Worker],
) -> None:
    url = shared_server()
    prefix, *both = apart
    (session_id,) = new_sessions(url, prefix, {"delivery_method": "polling"})
    for n in range(100):
        for worker in both:
            worker.tell("emit", session=session_id, numbers=[n], key="k")
    for worker in both:
        worker.wait(lambda worker=worker: in_turn(worker, session_id) == 100)
    emitted = [
        {n: (position, at) for name, position, n, at in worker.of("emitted") if name == session_id}
        for worker in both
    ]
    # Each was told the very same, and nothing else is there.
    assert emitted[0] == emitted[1]
    seqs = sorted(Position.parse(position).seq for position, _ in emitted[0].values())
    assert seqs == [*range(1, 101)]
    record = ask(url, prefix, lambda manager: manager.store.get_session(session_id))
    assert (record.top, record.sent) == (100, 100)
