"""The laws of a transport, one function each; its docstring is the law."""

from __future__ import annotations

import inspect
from typing import Final

import anyio
from anyio.lowlevel import checkpoint

from callbackkit.delivery.transport import Delivery, by_name
from callbackkit.testing.messages import show
from callbackkit.testing.transport_bench import Break, TransportBench, TransportLaw, ids_of

__all__ = ["TRANSPORT_LAWS", "survives_an_outage"]

# Turns of the loop, then seconds, after which a send is cancelled.
_TURNS: Final = range(12)
_DELAYS: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05)
_LARGE: Final = 100_000


async def attributes_are_sound(bench: TransportBench) -> None:
    """Its name and its other attributes are what a manager takes."""
    by_name([bench.transport])


async def endpoints_are_named(bench: TransportBench) -> None:
    """It takes the configuration, and names the same endpoint for a session every time."""
    transport, config = bench.transport, bench.config
    transport.check(config)
    names = {transport.endpoint("check-1", config) for _ in range(3)}
    assert len(names) == 1, f"endpoint() gave {show(sorted(names))} for one session"
    assert all(isinstance(name, str) and name for name in names), f"endpoint() gave {show(names)}"


async def an_event_has_arrived(bench: TransportBench) -> None:
    """When send() returns, the destination has the event."""
    await bench.arrives(bench.delivery())


async def events_keep_their_order(bench: TransportBench) -> None:
    """Events arrive in the order in which they were sent, each once."""
    await bench.arrives(*(bench.delivery() for _ in range(5)))


async def batches_are_whole(bench: TransportBench) -> None:
    """A batch arrives whole and in order."""
    await bench.arrives(bench.delivery(7), bench.delivery(2), bench.delivery())


async def anything_arrives(bench: TransportBench) -> None:
    """What an event holds does not matter: any text, nothing, a lot."""
    odd: list[object] = [
        {},
        {"": None, "a.b": [], "nested": {"list": [1, {"x": True}]}},
        {"text": "line\r\n.\r\nnext\u2028 tab\t nul\x00 quote\"' é 漢字 \U0001f600"},
        {"number": 1e308, "negative": -0.5, "long": 2**63},
        {"large": "x" * _LARGE},
    ]
    await bench.arrives(*(bench.delivery(data=[each]) for each in odd), bench.delivery(data=odd))


async def repeats_are_harmless(bench: TransportBench) -> None:
    """The same delivery can be sent again, later and as a dead letter, and others behind it."""
    delivery = bench.delivery(2)
    await bench.arrives(delivery)
    again = Delivery(
        id=delivery.id,
        events=delivery.events,
        attempt=3,
        session_id=delivery.session_id,
        config=delivery.config,
        is_redrive=True,
    )
    await bench.send(delivery)
    await bench.send(again)
    behind = bench.delivery()
    await bench.send(behind)
    arrived = await bench.arrived()
    assert arrived[-1:] == ids_of(behind), f"the next event came as {show(arrived[-1:])}"
    assert set(arrived) == {*ids_of(delivery), *ids_of(behind)}, f"it has {show(arrived)}"


async def several_at_a_time(bench: TransportBench) -> None:
    """As many as ``concurrency`` are sent at the same time, each session's in order."""
    sessions = [f"check-{n}" for n in range(min(bench.transport.concurrency, 20))]
    sent: dict[str, list[str]] = {session_id: [] for session_id in sessions}

    async def follow(session_id: str) -> None:
        for _ in range(3):
            delivery = bench.delivery(session_id=session_id)
            sent[session_id] += ids_of(delivery)
            await bench.send(delivery)

    async with anyio.create_task_group() as group:
        for session_id in sessions:
            group.start_soon(follow, session_id)
    arrived = await bench.arrived()
    for session_id, expected in sent.items():
        here = [each for each in arrived if each in set(expected)]
        assert here == expected, f"of {session_id} it has {show(here)}, not {show(expected)}"


async def cancelling_leaves_it_usable(bench: TransportBench) -> None:
    """Cancelled at any point, as when its time is up, it ends and can send afterwards."""
    for turns in _TURNS:
        if await _cancel(bench, turns, 0.0):
            break
    for delay in _DELAYS:
        if await _cancel(bench, 0, delay):
            break


async def _cancel(bench: TransportBench, turns: int, delay: float) -> bool:
    """Cancel a send after a while, then send another; tell whether the first was done."""
    delivery, is_done = bench.delivery(), False
    was_done = False

    async def send() -> None:
        nonlocal is_done
        await bench.transport.send(delivery)
        is_done = True

    with anyio.fail_after(bench.patience):
        async with anyio.create_task_group() as group:
            group.start_soon(send)
            for _ in range(turns):
                await checkpoint()
            if delay:
                await anyio.sleep(delay)
            was_done = is_done
            group.cancel_scope.cancel()
    assert not is_done or set(ids_of(delivery)) <= set(await bench.arrived()), (
        "cancelled, send() returned as if the event had arrived; let the cancellation pass"
    )
    following = bench.delivery()
    await bench.send(following)
    # What was cancelled may arrive still, even later.
    arrived = set(await bench.arrived())
    assert arrived >= set(ids_of(following)), "after a send was cancelled the next did not arrive"
    return was_done


TRANSPORT_LAWS: Final[tuple[TransportLaw, ...]] = (
    attributes_are_sound,
    endpoints_are_named,
    an_event_has_arrived,
    events_keep_their_order,
    batches_are_whole,
    anything_arrives,
    repeats_are_harmless,
    several_at_a_time,
    cancelling_leaves_it_usable,
)


def survives_an_outage(break_destination: Break) -> TransportLaw:
    """Return the law on a destination that is down for a while."""

    async def outages_are_told(bench: TransportBench) -> None:
        """While the destination is down send() raises, and works when it is up again."""
        await bench.arrives(bench.delivery())
        delivery = bench.delivery(2)
        await _call(break_destination, True)
        try:
            for _ in range(2):
                await _fails(bench, delivery)
        finally:
            await _call(break_destination, False)
        await bench.send(delivery)
        arrived = await bench.arrived()
        expected = ids_of(delivery)
        assert set(expected) <= set(arrived), f"afterwards it has no {show(expected)}"

    return outages_are_told


async def _fails(bench: TransportBench, delivery: Delivery) -> None:
    try:
        await bench.send(delivery)
    except Exception:
        # Any exception will do, the one for taking too long too.
        return
    raise AssertionError("send() returned, and the destination was down")


async def _call(break_destination: Break, is_down: bool) -> None:
    done = break_destination(is_down)
    if inspect.isawaitable(done):
        await done
