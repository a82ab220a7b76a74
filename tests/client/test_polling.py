"""Asking again and again."""

from collections.abc import AsyncGenerator

import anyio
import httpx2
import pytest

from callbackkit.client.answers import BlockedError, LostError
from callbackkit.client.polling import follow_polling
from callbackkit.errors import (
    AccessDeniedError,
    CallbackKitError,
    SessionDeletedError,
    UnknownSessionError,
)
from callbackkit.wire.envelope import encode_event
from tests.client.rig import (
    JSON,
    PATIENCE,
    TOKEN,
    Answer,
    Scripted,
    Taken,
    dropped,
    end,
    event,
    http_client,
    numbers,
    page,
    scripted,
    silence,
    state,
    told,
)


async def follow(*answers: Answer, **options: object) -> tuple[Taken, Scripted, object]:
    """Follow until that is over; give what came, what was asked, and where it stands."""
    taken = Taken()
    with anyio.fail_after(PATIENCE):
        async with scripted(*answers) as server, http_client() as client:
            line = taken.line(client, server.url, **options)
            try:
                await follow_polling(line)
            except (LostError, BlockedError, CallbackKitError) as exc:
                return taken, server, (exc, str(line.place))
    return taken, server, str(line.place)


async def test_an_empty_answer_that_comes_early_is_asked_about_and_may_be_the_end() -> None:
    taken, server, place = await follow(
        page(event(1), event(2), has_more=True),
        page(event(3)),
        page(cursor="e-3"),
        state("ended"),
        page(event(4)),
        page(cursor="e-4"),
    )
    assert (numbers(taken.events), place) == ([1, 2, 3, 4], "e-4")
    assert server.ways == ["/events", "/events", "/events", "", "/events", "/events"]
    assert server.requests[0].query == "limit=200&wait=25"
    assert server.requests[1].query == "limit=200&wait=25&after=e-2"
    # Once it has ended there is nothing to wait for.
    assert server.requests[4].query == "limit=200&wait=0&after=e-3"
    assert {each.headers["authorization"] for each in server.requests} == {f"Bearer {TOKEN}"}


async def test_a_server_that_does_not_wait_is_not_asked_in_a_circle() -> None:
    _, server, (error, place) = await follow(page(cursor="e-5"), state())
    assert (type(error), place, server.ways) == (LostError, "e-5", ["/events", ""])


async def test_an_end_that_stands_in_a_page_is_one() -> None:
    taken, _, place = await follow(page(event(1), end(1)))
    assert (numbers(taken.events), place) == ([1], "e-1")


async def test_now_is_looked_up_so_that_it_stays_the_same() -> None:
    _, server, (_, place) = await follow(state(position="e-7"), dropped, after="now")
    assert (place, server.requests[1].query) == ("e-7", "limit=200&wait=25&after=e-7")


async def test_a_page_that_comes_again_was_kept_by_somebody() -> None:
    taken, _, (error, _) = await follow(page(event(1), event(2)))
    assert (numbers(taken.events), type(error)) == ([1, 2], BlockedError)


async def test_a_page_that_promises_more_and_has_nothing_is_a_loss() -> None:
    _, _, (error, _) = await follow(page(cursor="e-5", has_more=True))
    assert isinstance(error, LostError)


@pytest.mark.parametrize(
    "answer",
    [
        told(200, {"Content-Type": "text/html"}, b"<html>"),
        told(200, JSON, b"[]"),
        told(200, JSON, b'{"events": [], "has_more": false, "cursor": "x"}'),
        told(200, {**JSON, "Content-Encoding": "gzip"}, b"{}"),
        told(405),
    ],
    ids=["html", "array", "cursor", "gzip", "405"],
)
async def test_what_is_no_page_is_blocked(answer: Answer) -> None:
    _, _, (error, _) = await follow(answer)
    assert isinstance(error, BlockedError)


async def test_a_page_is_read_up_to_a_bound() -> None:
    body = b'{"events": [], "has_more": false, "cursor": "e-0"}' + b" " * 40_000_000
    _, _, (error, _) = await follow(told(200, JSON, body))
    assert str(error) == "an answer has more than 33554432 bytes"


@pytest.mark.parametrize(
    "answer", [dropped, told(503), told(200, {**JSON, "Content-Length": "9"}, b"{")]
)
async def test_a_failure_is_a_loss(answer: Answer) -> None:
    _, _, (error, _) = await follow(answer)
    assert isinstance(error, LostError)


async def test_what_stood_before_nonsense_is_handed_on() -> None:
    body = b'{"events": [%b, 5], "has_more": false, "cursor": "e-2"}'
    one = encode_event(event(1))
    taken, _, (error, place) = await follow(told(200, JSON, body % one))
    assert (len(taken.events), type(error), place) == (1, LostError, "e-1")


@pytest.mark.parametrize(
    ("status", "error"),
    [(401, AccessDeniedError), (404, UnknownSessionError), (410, SessionDeletedError)],
)
async def test_what_stays_is_raised(status: int, error: type[Exception]) -> None:
    _, _, (found, _) = await follow(told(status))
    assert type(found) is error


async def test_a_server_that_does_not_answer_is_left() -> None:
    _, _, (error, _) = await follow(silence, after="now", patience=0.05)
    assert type(error) is LostError
    assert "in time" in str(error)


async def test_a_page_may_take_as_long_as_bytes_of_it_come() -> None:
    """With each of them the time begins anew that may pass until the next."""
    body = b'{"events": [], "has_more": false, "cursor": "e-5"}'
    left: list[float] = []

    async def drip() -> AsyncGenerator[bytes]:
        ends = 0.0
        for at in range(len(body)):
            assert anyio.current_effective_deadline() > ends
            ends = anyio.current_effective_deadline()
            left.append(ends - anyio.current_time())
            yield body[at : at + 1]

    def answer(request: httpx2.Request) -> httpx2.Response:
        content = drip() if request.url.path.endswith("/events") else b""
        return httpx2.Response(200 if content else 410, headers=JSON, content=content)

    async with httpx2.AsyncClient(transport=httpx2.MockTransport(answer)) as client:
        line = Taken().line(client, "http://host/sessions/s1", max_silence=45.0)
        with pytest.raises(SessionDeletedError):
            await follow_polling(line)
    assert (str(line.place), len(left)) == ("e-5", len(body))
    assert 40 < min(left) <= max(left) <= 45


async def test_nothing_is_compressed_on_the_way() -> None:
    _, server, _ = await follow(page(cursor="e-5"), state())
    assert [each.headers["accept-encoding"] for each in server.requests] == ["identity"] * 2
