"""What webhooks withstand of a receiver: outages, hangs, resets, floods, refusals, flapping."""

import gzip
import time
import tracemalloc
from email.utils import formatdate
from itertools import pairwise

import pytest

from callbackkit.delivery.policy import RetryPolicy
from callbackkit.errors import SignatureError
from callbackkit.stores.base import Store
from callbackkit.stores.memory import MemoryStore
from callbackkit.wire.signature import verify
from tests.webhooks.rig import (
    LENIENT,
    PATIENCE,
    SECRET,
    Receiver,
    ReceiverProcess,
    answer,
    in_each_way,
    repeats,
    sending,
    step,
)

pytestmark = pytest.mark.real_server

MIB = 1_048_576


# Down, and slow.


@in_each_way
async def test_what_was_down_gets_everything_in_order_when_it_is_up(
    store: Store, receiver: Receiver
) -> None:
    """Its attempts follow the schedule, at the earliest."""
    await receiver.stop()
    async with sending(store) as agent:
        sessions = [await agent.session(receiver.url(f"/{n}")) for n in range(2)]
        for session in sessions:
            await agent.emit(session, *range(5))
        for session in sessions:
            await agent.until_tried(session, 3)
        assert await receiver.arrived() == []
        await receiver.resume()
        await agent.until_settled(*sessions)
        attempts = sorted(await sessions[0].attempts(), key=lambda each: (each.at, each.number))
    agent.history.check(await receiver.arrived())
    failed = [each for each in attempts if each.error]
    assert {each.error for each in failed} == {"SendError: could not connect"}
    assert [each.number for each in failed] == list(range(1, len(failed) + 1))
    for one, two in pairwise(attempts[: len(failed) + 1]):
        assert two.at - (one.at + one.duration) >= 0.049
    assert set(repeats(await receiver.arrived()).values()) == {1}


@in_each_way
async def test_an_attempt_that_is_never_answered_ends_in_time_and_holds_up_nobody_else(
    store: Store, receiver: Receiver
) -> None:
    await receiver.on("/hangs", step("Hang"))
    async with sending(store, timeout=0.5) as agent:
        stuck = await agent.session(receiver.url("/hangs"))
        free = await agent.session(receiver.url("/free"))
        await agent.emit(stuck, 1)
        await receiver.until(1)
        await agent.emit(free, *range(10))
        await agent.until_settled(free)
        await agent.until_tried(stuck, 2)
        await receiver.on("/hangs", None)
        await agent.until_settled(stuck)
        errors = await agent.errors(stuck)
    assert errors[0] == "TimeoutError: not done within 0.5 s"
    assert [each.numbers for each in await receiver.arrived() if each.path == "/free"] == [
        [n] for n in range(10)
    ]
    agent.history.check(await receiver.arrived())


@in_each_way
@pytest.mark.parametrize("status", [200, 500])
async def test_an_answer_that_drips_for_ever_ends_in_time(
    store: Store, receiver: Receiver, status: int
) -> None:
    """With a status of success the event has arrived, whatever becomes of the rest."""
    await receiver.script(step("Drip", status=status, interval=0.05), 204)
    async with sending(store, timeout=2.0, concurrency=1) as agent:
        session = await agent.session(receiver.url())
        await agent.emit(session, 1, 2)
        await agent.until_settled(session)
        errors = await agent.errors(session)
        durations = [each.duration for each in await session.attempts()]
    assert len(await receiver.arrived()) == (2 if status == 200 else 3)
    assert [bool(error) for error in errors] == (
        [False] * 2 if status == 200 else [True, False, False]
    )
    # The deadline, and what a busy machine adds.
    assert max(durations) < 2.0 + 3.0
    agent.history.check(await receiver.arrived())


@in_each_way
@pytest.mark.parametrize("status", [200, 500])
async def test_an_answer_without_end_takes_no_memory(
    store: Store, receiver: Receiver, status: int
) -> None:
    """Ten gigabytes would take no more: it is not read beyond a few kilobytes."""
    async with sending(store, timeout=2.0) as agent:
        session = await agent.session(receiver.url())
        await agent.emit(session, 0)
        await agent.until_settled(session)
        await receiver.script(step("Endless", status=status), 204)
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            await agent.emit(session, 1, 2)
            await agent.until_settled(session)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        errors = await agent.errors(session)
    assert peak - before < 4 * MIB
    assert len([error for error in errors if error]) == (0 if status == 200 else 1)
    agent.history.check(await receiver.arrived())


@in_each_way
@pytest.mark.parametrize("status", [200, 500])
async def test_a_compressed_answer_is_not_unpacked(
    store: Store, receiver: Receiver, status: int
) -> None:
    bomb = gzip.compress(bytes(64 * MIB), 9)
    packed = answer(status, body=bomb, headers={"Content-Encoding": "gzip"})
    async with sending(store) as agent:
        session = await agent.session(receiver.url())
        await agent.emit(session, 0)
        await agent.until_settled(session)
        await receiver.script(packed, 204)
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            await agent.emit(session, 1, 2)
            await agent.until_settled(session)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak - before < 4 * MIB
    agent.history.check(await receiver.arrived())


# Broken off.


@in_each_way
@pytest.mark.parametrize(
    "broken", [step("Reset", after=400), step("Truncate", status=200)], ids=["reset", "cut"]
)
async def test_a_success_that_breaks_off_after_its_headers_is_one(
    store: Store, receiver: Receiver, broken: object
) -> None:
    """The status line said that it arrived: it is not sent again."""
    await receiver.script(broken, broken)
    async with sending(store) as agent:
        session = await agent.session(receiver.url())
        await agent.emit(session, 1, 2, 3)
        await agent.until_settled(session)
        assert await agent.errors(session) == ["", "", ""]
    assert [each.numbers for each in await receiver.arrived()] == [[1], [2], [3]]
    agent.history.check(await receiver.arrived())


@in_each_way
@pytest.mark.parametrize(
    "broken",
    [
        step("Reset"),
        step("Reset", after=8),
        step("Garbage", data=b"\x00\xff" * 40 + b"\r\n\r\n"),
        step("Garbage", data=b"HTTP/1.1 2147483648 OK\r\n\r\n"),
        step("Garbage", data=b""),
        step("Garbage", data=b"HTTP/1.1 204 No Content\r\n" + b"X: " + b"a" * 300_000),
    ],
    ids=["reset", "reset in the status", "no HTTP", "huge status", "closed", "endless header"],
)
async def test_what_breaks_off_before_its_status_is_sent_again_by_the_same_id(
    store: Store, receiver: Receiver, broken: object
) -> None:
    """Signed anew, for the time it is sent."""
    await receiver.script(broken, broken)
    async with sending(store, retry=RetryPolicy(schedule=(0.05, 1.05), jitter=0)) as agent:
        session = await agent.session(receiver.url())
        await agent.emit(session, 1, 2)
        await agent.until_settled(session)
        errors = await agent.errors(session)
    assert [each.numbers for each in await receiver.arrived()] == [[1], [1], [1], [2]]
    first, _, third, _ = await receiver.arrived()
    assert first.id == third.id
    assert int(first.headers["webhook-timestamp"]) < int(third.headers["webhook-timestamp"])
    assert first.headers["webhook-signature"] != third.headers["webhook-signature"]
    assert [error.partition(":")[0] for error in errors] == ["SendError", "SendError", "", ""]
    agent.history.check(await receiver.arrived())


@in_each_way
async def test_a_connection_that_is_reset_when_it_is_used_again_costs_no_attempt(
    store: Store, receiver: Receiver
) -> None:
    """It may have been closed long ago: the same request goes out on a new one, once."""
    await receiver.script(204, step("Reset"))
    async with sending(store) as agent:
        session = await agent.session(receiver.url())
        for n in range(3):
            await agent.emit(session, n)
            await agent.until_settled(session)
        assert await agent.errors(session) == ["", "", ""]
    assert [each.numbers for each in await receiver.arrived()] == [[0], [1], [1], [2]]
    agent.history.check(await receiver.arrived())


# Statuses.


@in_each_way
async def test_each_status_has_its_delay_and_none_does_harm(
    store: Store, receiver: Receiver
) -> None:
    asked = [
        "1",
        formatdate(time.time() + 30, usegmt=True),
        formatdate(time.time() + 10 * 366 * 86_400, usegmt=True),
        str(10 * 366 * 86_400),
        "9" * 400,
        "-1",
        "soon",
        "",
        "Mon, 99 Foo 99999 99:99:99 GMT",
        "1e400",
    ]
    waiting = [answer(429, headers={"Retry-After": each}) for each in asked]
    plain = [500, 502, 503, 504, 429, 400, 404, 304, 100 + 399]
    await receiver.script(*plain, *waiting)
    # The longest that anybody may ask for is longer than the schedule.
    retry = RetryPolicy(schedule=(0.01,) * 30, jitter=0, max_retry_after=0.3)
    async with sending(store, retry=retry) as agent:
        session = await agent.session(receiver.url())
        await agent.emit(session, 1, 2)
        await agent.until_settled(session)
        errors = await agent.errors(session)
        assert list(await session.dead_letters()) == []
    kinds = ["SendError", "Retry", "Retry", "Retry", "Retry", *["SendError"] * 4]
    assert errors[: len(plain)] == [
        f"{kind}: HTTP {status}" for kind, status in zip(kinds, plain, strict=True)
    ]
    assert errors[len(plain) :] == ["Retry: HTTP 429"] * len(asked) + ["", ""]
    at = [request.at for request in await receiver.arrived()]
    waits = [two - one for one, two in pairwise(at)][len(plain) :]
    assert all(wait >= 0.29 for wait in waits[:4]), waits
    agent.history.check(await receiver.arrived())


@in_each_way
async def test_a_429_holds_back_all_that_goes_there(store: Store, receiver: Receiver) -> None:
    await receiver.script(answer(429, headers={"Retry-After": "1"}))
    async with sending(store) as agent:
        sessions = [await agent.session(receiver.url()) for _ in range(4)]
        await agent.emit(sessions[0], 1)
        await agent.until_tried(sessions[0], 1)
        for session in sessions[1:]:
            await agent.emit(session, 1)
        await agent.until_settled(*sessions)
    first, *others = await receiver.arrived()
    assert min(each.at for each in others) - first.at >= 0.99
    assert len(others) == 4
    agent.history.check(await receiver.arrived())


@in_each_way
async def test_an_endpoint_that_is_gone_is_sent_nothing_more_and_what_is_owed_is_kept(
    store: Store, receiver: Receiver
) -> None:
    await receiver.otherwise(410)
    async with sending(store) as agent:
        sessions = [await agent.session(receiver.url()) for _ in range(3)]
        await agent.emit(sessions[0], 1, 2, 3)
        await agent.until_settled(sessions[0])
        assert len(await receiver.arrived()) == 1
        for session in sessions[1:]:
            await agent.emit(session, 1, 2)
        await agent.until_settled(*sessions)
        assert len(await receiver.arrived()) == 1
        await agent.until_told("delivery.dead", 7)
        assert agent.operators.count("delivery.dead") == 7
        assert agent.operators.count("endpoint.disabled") == 1
        letters = [await session.dead_letters() for session in sessions]
        assert [len(each) for each in letters] == [3, 2, 2]
        await receiver.otherwise(204)
        for session in sessions:
            await session.redrive()
        await agent.until_redriven(*sessions)
        await agent.until_told("endpoint.recovered", 1)
        assert agent.operators.count("endpoint.recovered") == 1
    first, *again = await receiver.arrived()
    assert {each.id for each in again} == {one.id for letter in letters for one in letter}
    assert first.id in {each.id for each in again}
    # They are sent again in no order.
    agent.history.check(sorted(again, key=lambda each: each.events[0]["id"]))


@in_each_way
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_a_failure_and_never_followed(
    store: Store, receiver: Receiver, receivers: ReceiverProcess, status: int
) -> None:
    trap = await receivers.open()
    places = [trap.url(), "http://169.254.169.254/latest/meta-data/", "/elsewhere", "//["]
    await receiver.script(*(answer(status, headers={"Location": each}) for each in places))
    async with sending(store) as agent:
        session = await agent.session(receiver.url())
        await agent.emit(session, 1)
        await agent.until_settled(session)
        assert await agent.errors(session) == [f"SendError: HTTP {status}"] * 4 + [""]
    assert await trap.arrived() == []
    assert {each.path for each in await receiver.arrived()} == {"/hook"}
    agent.history.check(await receiver.arrived())


@in_each_way
async def test_what_was_answered_too_late_comes_again_by_the_same_id(
    store: Store, receiver: Receiver
) -> None:
    await receiver.script(answer(200, delay=5.0))
    async with sending(store, timeout=0.3) as agent:
        session = await agent.session(receiver.url())
        await agent.emit(session, 1, 2)
        await agent.until_settled(session)
        assert (await agent.errors(session))[0].startswith("TimeoutError")
    assert [each.numbers for each in await receiver.arrived()] == [[1], [1], [2]]
    assert sorted(repeats(await receiver.arrived()).values()) == [1, 2]
    agent.history.check(await receiver.arrived())


@in_each_way
async def test_cookies_are_not_kept(store: Store, receiver: Receiver) -> None:
    await receiver.otherwise(answer(204, headers={"Set-Cookie": "session=1; Path=/"}))
    async with sending(store) as agent:
        session = await agent.session(receiver.url())
        await agent.emit(session, 1, 2)
        await agent.until_settled(session)
    assert not any("cookie" in each.headers for each in await receiver.arrived())


# Flapping.


@in_each_way
async def test_a_receiver_that_fails_every_other_time_gets_everything_and_no_try_is_burnt(
    store: Store, receiver: Receiver
) -> None:
    await receiver.script(*[500, 204] * 20)
    async with sending(store, breaker=LENIENT, concurrency=2) as agent:
        sessions = [await agent.session(receiver.url()) for _ in range(4)]
        for n in range(8):
            for session in sessions:
                await agent.emit(session, n)
        await agent.until_settled(*sessions)
        assert agent.operators.count("endpoint.failing") >= 1
        assert "delivery.dead" not in agent.operators
        attempts = [await session.attempts() for session in sessions]
    # Each try that was counted was one: none while nobody was to send.
    assert sum(map(len, attempts)) == len(await receiver.arrived()) == 4 * 8 + 20
    agent.history.check(await receiver.arrived())


async def check_bulkhead(store: Store, receiver: Receiver, count: int, events: int) -> list[float]:
    """Have one of many endpoints hang; return how long the attempts at the others took."""
    await receiver.on("/e/0", step("Hang"))
    async with sending(store, timeout=30.0) as agent:
        sessions = [await agent.session(receiver.url(f"/e/{n}")) for n in range(count)]
        stuck, *others = sessions
        await agent.emit(stuck, *range(events))
        await receiver.until(1)
        for n in range(events):
            for session in others:
                await agent.emit(session, n)
        await agent.until_settled(*others, patience=60.0)
        # All that time one hung.
        assert (await agent.store.get_session(stuck.id)).queued == events
        assert await stuck.attempts() == []
        took = [each.duration for session in others for each in await session.attempts()]
        await receiver.on("/e/0", None)
        agent.history.appended.pop(stuck.id)
        agent.manager.store.disarm()
    agent.history.check([each for each in await receiver.arrived() if each.path != "/e/0"])
    return sorted(took)


@in_each_way
async def test_one_endpoint_that_hangs_holds_up_none_of_many(
    store: Store, receiver: Receiver
) -> None:
    took = await check_bulkhead(store, receiver, 60, 2)
    assert len(took) == 59 * 2


@pytest.mark.torture
@pytest.mark.timeout(300)
@in_each_way
async def test_one_endpoint_that_hangs_makes_none_of_a_thousand_slower(
    store: Store, receiver: Receiver, receivers: ReceiverProcess
) -> None:
    """The slowest hundredth of their attempts takes no longer than when nothing hangs."""
    usual: list[float] = []
    other = await receivers.open()
    async with sending(MemoryStore(), timeout=30.0) as agent:
        sessions = [await agent.session(other.url(f"/e/{n}")) for n in range(1_000)]
        for n in range(3):
            for session in sessions:
                await agent.emit(session, n)
        await agent.until_settled(*sessions, patience=60.0)
        for session in sessions:
            usual += [each.duration for each in await session.attempts()]
    usual.sort()
    took = await check_bulkhead(store, receiver, 1_000, 3)
    assert len(took) == 999 * 3
    # What hangs would take 30 seconds; the rest is what a busy machine adds.
    assert took[-len(took) // 100] < 3 * usual[-len(usual) // 100] + 0.5


# Secrets that change.


@in_each_way
async def test_a_rotated_secret_and_the_one_before_both_verify_until_that_is_over(
    store: Store, receiver: Receiver
) -> None:
    await receiver.script(500)
    async with sending(store) as agent:
        session = await agent.session(receiver.url(), webhook_secret=SECRET)
        gate = agent.store.pause("retry")
        await agent.emit(session, 1)
        assert await gate.reached(PATIENCE)
        newest = await session.rotate_secret(overlap=600.0)
        gate.release()
        await agent.until_settled(session)
        last = await session.rotate_secret(overlap=0.0)
        await agent.emit(session, 2)
        await agent.until_settled(session)
    failed, again, late = await receiver.arrived()
    assert failed.id == again.id
    failed.verify(SECRET)
    again.verify(SECRET)
    again.verify(newest)
    late.verify(last)
    assert newest not in {SECRET, last}
    for request, secret in ((failed, newest), (again, last), (late, newest)):
        with pytest.raises(SignatureError):
            verify(request.headers, request.body, secret)
    # It was rotated for ten minutes, which are not over.
    late.verify(SECRET)
