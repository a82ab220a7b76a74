"""One connection of server-sent events."""

import anyio
import pytest

from callbackkit.client.answers import BlockedError, LostError
from callbackkit.client.sse import follow_sse
from callbackkit.errors import (
    AccessDeniedError,
    CallbackKitError,
    SessionDeletedError,
    UnknownSessionError,
)
from callbackkit.wire.eventstream import write_comment, write_event
from tests.client.rig import (
    PATIENCE,
    STREAM,
    TOKEN,
    Answer,
    Scripted,
    Taken,
    by_way,
    dropped,
    end,
    event,
    http_client,
    in_turn,
    numbers,
    page,
    primed,
    scripted,
    silence,
    sse,
    state,
    streamed,
    told,
)


async def follow(*answers: Answer, **options: object) -> tuple[Taken, Scripted, object]:
    """Follow by one connection; give what came, what was asked, and where it stands."""
    taken = Taken()
    with anyio.fail_after(PATIENCE):
        async with scripted(*answers) as server, http_client() as client:
            line = taken.line(client, server.url, **options)
            try:
                await follow_sse(line)
            except (LostError, BlockedError, CallbackKitError) as exc:
                return taken, server, (exc, str(line.place))
    return taken, server, str(line.place)


async def test_the_end_of_the_session_ends_it() -> None:
    taken, server, place = await follow(streamed(primed(), sse(event(1), event(2), end(2))))
    assert (numbers(taken.events), place, taken.worked) == ([1, 2], "e-2", 1)
    (request,) = server.requests
    assert request.headers["authorization"] == f"Bearer {TOKEN}"
    assert request.headers["accept"] == "text/event-stream"
    # What is compressed is collected first, and what is kept is another time.
    assert request.headers["accept-encoding"] == "identity"
    assert request.headers["cache-control"] == "no-store"
    assert (request.query, "last-event-id" in request.headers) == ("", False)
    assert server.open == 0


async def test_it_goes_on_behind_its_position() -> None:
    answer = streamed(primed("e-1"), sse(event(1), event(2), end(2)))
    taken, server, _ = await follow(answer, after="e-1")
    assert numbers(taken.events) == [2]
    assert server.requests[0].headers["last-event-id"] == "e-1"


async def test_a_stream_that_breaks_before_its_first_event_leaves_its_beginning() -> None:
    _, _, (error, place) = await follow(streamed(primed("e-7")))
    assert isinstance(error, LostError)
    assert place == "e-7"


async def test_now_is_looked_up_so_that_it_is_not_when_a_stream_was_given_up() -> None:
    answer = by_way(state=state(position="e-7"), sse=streamed(hold=True))
    _, server, (error, place) = await follow(answer, after="now", priming=0.05)
    assert (type(error), place, server.ways) == (BlockedError, "e-7", ["", "/sse"])
    assert server.requests[1].headers["last-event-id"] == "e-7"


async def test_the_beginning_never_hides_the_events_that_come_with_it() -> None:
    taken, _, place = await follow(streamed(primed("e-0") + sse(event(1), event(2)) + sse(end(2))))
    assert (numbers(taken.events), place) == ([1, 2], "e-2")


async def test_what_is_half_there_is_not_taken() -> None:
    whole = sse(event(1), event(2))
    taken, _, (error, place) = await follow(streamed(primed(), whole[:-3]))
    assert (numbers(taken.events), place) == ([1], "e-1")
    assert isinstance(error, LostError)


async def test_a_server_that_goes_says_when_to_come_back() -> None:
    _, _, (error, _) = await follow(streamed(write_event(None, retry=1_500)))
    assert (type(error), error.told) == (LostError, 1.5)


async def test_what_a_server_collects_is_given_up() -> None:
    _, server, (error, _) = await follow(streamed(hold=True), priming=0.05)
    assert isinstance(error, BlockedError)
    assert "did not begin within 0.05 seconds" in str(error)
    assert server.open == 0


async def test_comments_are_no_beginning() -> None:
    _, _, (error, _) = await follow(streamed(write_comment(), hold=True), priming=0.05)
    assert isinstance(error, BlockedError)


async def test_a_connection_that_is_silent_is_dead() -> None:
    _, server, (error, place) = await follow(streamed(primed("e-3"), hold=True), max_silence=0.05)
    assert isinstance(error, LostError)
    assert (place, server.open) == ("e-3", 0)


@pytest.mark.parametrize(
    "answer",
    [
        streamed(b"<html>", headers={"Content-Type": "text/html"}),
        streamed(primed(), headers={**STREAM, "Content-Encoding": "gzip"}),
        streamed(primed(), headers={}),
        streamed(primed("no position"), hold=True),
        told(405),
        told(302, {"Location": "http://127.0.0.1:9/"}),
    ],
    ids=["html", "gzip", "untyped", "ids", "405", "redirect"],
)
async def test_what_is_no_stream_of_ours_is_blocked(answer: Answer) -> None:
    _, _, (error, place) = await follow(answer)
    assert (type(error), place) == (BlockedError, "")


@pytest.mark.parametrize(
    "answer",
    [
        streamed(primed("e-0"), sse(event(1)) + b"data: {\nid: e-9\n\n"),
        streamed(primed("e-0"), sse(event(1)), b"data: " + b"x" * 9_000_000),
        streamed(primed("e-0"), sse(event(1)), headers={**STREAM, "Content-Length": "999"}),
    ],
    ids=["json", "size", "length"],
)
async def test_nonsense_is_a_loss_and_moves_nothing(answer: Answer) -> None:
    taken, _, (error, place) = await follow(answer)
    assert (numbers(taken.events), type(error), place) == ([1], LostError, "e-1")


@pytest.mark.parametrize("answer", [dropped, told(503, {"Retry-After": "3"}), told(429)])
async def test_a_failure_is_a_loss(answer: Answer) -> None:
    taken, _, (error, _) = await follow(answer)
    assert (type(error), error.was_reached, taken.worked) == (LostError, True, 0)


async def test_nobody_there_is_told_apart() -> None:
    async with scripted(silence) as server:
        url = server.url
    async with http_client() as client:
        with pytest.raises(LostError) as raised:
            await follow_sse(Taken().line(client, url))
    assert not raised.value.was_reached


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (told(401), AccessDeniedError),
        (told(404), UnknownSessionError),
        (told(410), SessionDeletedError),
        (streamed(primed(), sse(event(1), end(1, "deleted"))), SessionDeletedError),
        (by_way(sse=told(204), state=told(410)), SessionDeletedError),
        (by_way(sse=told(204), state=told(404)), UnknownSessionError),
    ],
)
async def test_what_stays_is_raised(answer: Answer, error: type[Exception]) -> None:
    _, _, (found, _) = await follow(answer)
    assert type(found) is error


async def test_nothing_more_means_that_the_session_has_ended_if_it_has() -> None:
    await follow(by_way(sse=told(204), state=state("ended")))
    _, _, (error, _) = await follow(by_way(sse=told(204), state=state("active")))
    assert isinstance(error, LostError)


@pytest.mark.parametrize(
    ("after", "expected"), [("e-1", [2, 3]), (None, [2, 3]), ("e-3", []), ("now", [])]
)
async def test_nothing_more_is_not_believed_where_the_session_has_more(after, expected) -> None:
    """Somebody between may answer 204, too."""
    rest = in_turn(page(event(2), event(3)), page(cursor="e-3"))
    answer = by_way(sse=told(204), state=state("ended", "e-3"), events=rest)
    taken, server, place = await follow(answer, after=after)
    assert (numbers(taken.events), place) == (expected, "e-3")
    assert ("/events" in server.ways) is bool(expected)


async def test_a_server_that_does_not_answer_is_left() -> None:
    _, server, (error, _) = await follow(silence, patience=0.05)
    assert (type(error), server.open) == (LostError, 0)
    assert "in time" in str(error)
