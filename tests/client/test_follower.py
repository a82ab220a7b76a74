"""Which way, and when to come back."""

from typing import Any

import anyio
import attrs
import pytest
from anyio.abc import SocketStream

from callbackkit.events import Event
from callbackkit.wire.eventstream import write_event
from tests.client.rig import (
    Answer,
    Noting,
    Request,
    all_of,
    by_way,
    close_frame,
    dropped,
    end,
    event,
    following,
    in_turn,
    listening,
    messages,
    numbers,
    page,
    primed,
    scripted,
    sse,
    state,
    streamed,
    text,
    told,
)

BY_WEBSOCKET = messages(text(event(1)), text(end(1)))
BY_SSE = streamed(primed(), sse(event(1), end(1)))


async def test_a_stream_that_somebody_collects_is_replaced_by_a_websocket() -> None:
    async with scripted(by_way(sse=streamed(hold=True), ws=BY_WEBSOCKET)) as server:
        events, followed = await all_of(server.url, priming=0.05)
    assert (numbers(events), followed.method) == ([1], "websocket")
    assert server.ways == ["/sse", "/ws"]


@pytest.mark.parametrize("status", [400, 405, 426, 501])
async def test_where_both_are_denied_it_polls(status: int) -> None:
    polled = in_turn(page(event(1)), page(cursor="e-1"), page(cursor="e-1"))
    denied = told(status)
    answer = by_way(sse=denied, ws=denied, events=polled, state=state("ended"))
    async with scripted(answer) as server:
        events, followed = await all_of(server.url)
    assert (numbers(events), followed.method) == ([1], "polling")
    assert server.ways[:3] == ["/sse", "/ws", "/events"]


async def test_where_all_are_denied_it_begins_again_after_a_while() -> None:
    noting, denied = Noting(), told(405)
    answer = by_way(sse=in_turn(denied, denied, BY_SSE), ws=denied, events=denied)
    async with scripted(answer) as server:
        events, _ = await all_of(server.url, backoff=noting)
    assert numbers(events) == [1]
    assert server.ways == [*(["/sse", "/ws", "/events"] * 2), "/sse"]
    assert noting.noted == [(1, None), (2, None)]


async def test_what_works_is_kept() -> None:
    lost = messages(text(event(1)), close_frame(1012))
    again = messages(text(event(2)), text(end(2)))
    async with scripted(by_way(sse=told(405), ws=in_turn(lost, again))) as server:
        events, _ = await all_of(server.url)
    assert numbers(events) == [1, 2]
    assert server.ways == ["/sse", "/ws", "/ws"]


async def test_three_connections_that_bring_nothing_are_enough() -> None:
    async with scripted(by_way(sse=streamed(primed()), ws=BY_WEBSOCKET)) as server:
        events, _ = await all_of(server.url, backoff=Noting())
    assert numbers(events) == [1]
    assert server.ways == ["/sse", "/sse", "/sse", "/ws"]


async def test_an_event_that_never_makes_sense_does_not_hold_up_for_ever() -> None:
    answer = by_way(sse=streamed(primed(), b"data: {}\n\n"), ws=BY_WEBSOCKET)
    async with scripted(answer) as server:
        events, _ = await all_of(server.url, backoff=Noting())
    assert numbers(events) == [1]


async def test_a_server_that_asks_for_patience_is_no_reason_to_change() -> None:
    going = streamed(write_event(None, retry=1_000))
    async with scripted(by_way(sse=in_turn(*[going] * 5, BY_SSE))) as server:
        _, followed = await all_of(server.url, backoff=Noting())
    assert followed.method == "sse"


@pytest.mark.parametrize("method", ["sse", "websocket", "polling"])
async def test_a_way_that_was_asked_for_is_kept_whatever_happens(method: str) -> None:
    noting = Noting()
    answer = in_turn(*[told(405)] * 4, *[dropped] * 4, told(410))
    async with (
        scripted(answer) as server,
        following(server.url, method=method, backoff=noting) as events,
    ):
        with pytest.raises(LookupError, match="was deleted"):
            await anext(events)
    assert events.method == method
    assert [failures for failures, _ in noting.noted] == list(range(1, 9))
    assert len(set(server.ways[:9])) == 1


async def test_what_the_server_asks_for_is_waited() -> None:
    noting = Noting()
    answer = in_turn(
        told(503, {"Retry-After": "3"}),
        told(429, {"Retry-After": "5"}),
        streamed(primed(), write_event(None, retry=2_500)),
        BY_SSE,
    )
    async with scripted(answer) as server:
        await all_of(server.url, method="sse", backoff=noting)
    assert noting.noted == [(1, 3.0), (2, 5.0), (3, 2.5)]


async def test_an_event_makes_all_well_again() -> None:
    noting = Noting()
    answer = in_turn(dropped, dropped, streamed(primed(), sse(event(1))), dropped, BY_SSE)
    async with scripted(answer) as server:
        await all_of(server.url, method="sse", backoff=noting)
    assert [failures for failures, _ in noting.noted] == [1, 2, 1, 2]


async def test_a_connection_that_lasted_was_of_use_though_nothing_came() -> None:
    noting = Noting(first=0.01, max_delay=0.02)

    async def lasting(connection: SocketStream, request: Request) -> None:
        await streamed(primed())(connection, request)
        await anyio.sleep(0.1)

    async with scripted(in_turn(*[lasting] * 5, BY_SSE)) as server:
        _, followed = await all_of(server.url, backoff=noting)
    assert followed.method == "sse"
    assert [failures for failures, _ in noting.noted] == [1] * 5


async def test_it_waits_for_a_server_that_is_not_there() -> None:
    noting = Noting()
    async with listening(lambda _: anyio.sleep(0)) as port:
        pass
    url = f"http://127.0.0.1:{port}/callbacks/sessions/s1"
    async with following(url, backoff=noting) as events:
        await noting.grown.wait()
        assert events.method == "sse"
        assert events.trouble is not None
        assert "ConnectError" in events.trouble


async def test_its_state_and_its_trouble_are_told() -> None:
    answer = in_turn(dropped, streamed(primed(), sse(event(1)), hold=True))
    async with scripted(answer) as server:
        async with following(server.url) as events:
            assert (events.state, events.trouble) == ("connecting", None)
            await anext(events)
            assert (events.state, events.trouble) == ("following", None)
        assert events.state == "closed"
    async with scripted(BY_SSE) as server:
        _, events = await all_of(server.url)
    assert events.state == "ended"
    async with scripted(told(404)) as server, following(server.url) as events:
        with pytest.raises(LookupError):
            await anext(events)
        assert (events.state, events.trouble) == ("failed", "no session 's1'")


@pytest.mark.parametrize("answer", [dropped, told(503)])
async def test_a_server_that_breaks_off_or_is_busy_was_reached(answer: Answer) -> None:
    noting = Noting()
    async with scripted(answer) as server, following(server.url, backoff=noting) as events:
        await noting.grown.wait()
        assert events.was_reached


async def test_a_server_that_lets_it_in_was_reached() -> None:
    async with scripted(BY_SSE) as server, following(server.url) as events:
        assert not events.was_reached
        await anext(events)
        assert events.was_reached


async def test_where_nobody_is_or_all_is_denied_none_was_reached() -> None:
    async with listening(lambda _: anyio.sleep(0)) as port:
        pass
    noting = Noting()
    url = f"http://127.0.0.1:{port}/callbacks/sessions/s1"
    async with following(url, backoff=noting) as events:
        await noting.grown.wait()
        assert not events.was_reached
    noting = Noting()
    async with scripted(told(405)) as server, following(server.url, backoff=noting) as events:
        await noting.grown.wait()
        assert not events.was_reached


# Broken anywhere.


def log_from(request: Request, count: int) -> list[Event]:
    """Return what follows the position that a request names."""
    place = request.headers.get("last-event-id") or request.query.rpartition("after=")[2]
    first = int(place.rpartition("-")[2]) if "e-" in place else 0
    return [event(number) for number in range(first + 1, count + 1)]


def written(method: str, events: list[Event], count: int) -> Answer:
    if method == "sse":
        begin = f"e-{count - len(events)}"
        return streamed(primed(begin) + sse(*events, end(count)))
    if method == "websocket":
        return messages(b"".join(map(text, [*events, end(count)])))
    return page(*events[:4], cursor=f"e-{count}", has_more=len(events) > 4)


@attrs.frozen
class Cut:
    """A connection that ends after so many bytes."""

    connection: SocketStream
    left: list[int]

    async def send(self, content: bytes) -> None:
        sent = content[: self.left[0]]
        self.left[0] -= len(sent)
        await self.connection.send(sent)
        if len(sent) < len(content):
            raise anyio.BrokenResourceError


@pytest.mark.parametrize("method", ["sse", "websocket", "polling"])
async def test_connections_that_break_after_any_byte_lose_and_double_nothing(method: str) -> None:
    count = 12
    cuts = iter(range(60, 1_500, 17))

    async def answer(connection: SocketStream, request: Request) -> None:
        if request.way == "":
            await state("ended", f"e-{count}")(connection, request)
            return
        cut: Any = Cut(connection, [next(cuts, 1_000_000)])
        await written(method, log_from(request, count), count)(cut, request)

    async with scripted(answer) as server:
        events, _ = await all_of(server.url, method=method, backoff=Noting())
    assert numbers(events) == list(range(1, count + 1))
    assert len(server.requests) > 5
