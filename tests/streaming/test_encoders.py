"""A run as bytes: what every format says, heartbeats, resuming, the end, and leaving."""

import gc
import json
import logging
import math
import threading
import weakref
from typing import Any

import anyio
import pytest
from anyio import wait_all_tasks_blocked
from hypothesis import given, strategies as st

from callbackkit import (
    Callback,
    SpecialToken,
    TokenParser,
    headers_for,
    ndjson,
    sse,
    text,
)
from callbackkit.buffer import checkpoint
from callbackkit.streaming.encoders import EncodedStream, position_in
from callbackkit.wire.eventstream import EventStreamReader, ServerSentEvent

FORMATS = {"sse": sse, "ndjson": ndjson, "text": text}
EVERY = pytest.mark.parametrize("encode", FORMATS.values(), ids=FORMATS)


def spoken() -> Callback:
    """A run that has ended, with something of everything."""
    callback = Callback()
    callback("Hel")
    with callback.node("a", params={"q": "x"}):
        callback("lo")
    callback.event("tool_use", {"tool": "search"})
    callback.close()
    return callback


async def chunks_of(stream: EncodedStream) -> list[bytes]:
    return [chunk async for chunk in stream]


async def read_sse(stream: EncodedStream) -> list[ServerSentEvent]:
    reader = EventStreamReader()
    return [event async for chunk in stream for event in reader.feed(chunk)]


async def data_of(stream: EncodedStream) -> list[dict[str, Any]]:
    return [json.loads(event.data) for event in await read_sse(stream)]


async def lines_of(stream: EncodedStream) -> list[dict[str, Any]]:
    return [json.loads(line) for line in b"".join(await chunks_of(stream)).splitlines()]


SPOKEN = [
    {"type": "token", "token": "Hel"},
    {
        "type": "node_start",
        "token": "<graphai:a:start:q=x>",
        "node": "a",
        "span": 1,
        "params": {"q": "x"},
    },
    {"type": "node_name", "token": "<graphai:a>", "node": "a", "span": 1},
    {"type": "token", "token": "lo", "node": "a", "span": 1},
    {"type": "node_end", "token": "<graphai:a:end>", "node": "a", "span": 1, "status": "ok"},
    {"type": "tool_use", "data": {"tool": "search"}},
    {"type": "stream_end", "token": "<graphai:END>", "status": "ok"},
]


# What is written.


async def test_sse_has_an_event_for_every_entry_with_its_number_as_id() -> None:
    callback = spoken()
    events = await read_sse(sse(callback))
    assert [json.loads(event.data) for event in events] == SPOKEN
    assert [event.id for event in events] == [f"{callback.run_id}-{n}" for n in range(1, 8)]
    assert {event.event for event in events} == {"message"}


async def test_named_events_are_of_their_type() -> None:
    callback = spoken()
    events = await read_sse(sse(callback, named_events=True))
    assert [event.event for event in events] == [each["type"] for each in SPOKEN]


async def test_the_name_of_an_event_cannot_break_its_line() -> None:
    callback = Callback()
    callback.event("a\r\ndata: forged\ud800")
    callback.close()
    event, _end = await read_sse(sse(callback, named_events=True))
    assert event.event == "a  data: forged?"
    assert json.loads(event.data) == {"type": "a\r\ndata: forged\ud800"}


async def test_ndjson_has_a_line_for_every_entry() -> None:
    assert await lines_of(ndjson(spoken())) == SPOKEN


async def test_text_has_the_special_tokens_and_escapes_what_looks_like_one() -> None:
    callback = Callback()
    callback("<gra")
    callback("phai:END>")
    async with callback.node("a"):
        callback("x")
    callback.close()
    whole = b"".join(await chunks_of(text(callback))).decode()
    assert whole.count("<graphai:END>") == 1
    parser = TokenParser(callback.format)
    pieces = parser.feed(whole) + parser.flush()
    assert pieces == [
        "<graphai:END>",
        "<graphai:a:start>",
        "<graphai:a>",
        "x",
        "<graphai:a:end>",
        "<graphai:END>",
    ]
    special = [isinstance(piece, SpecialToken) for piece in pieces]
    assert special == [False, True, True, False, True, True]


async def test_text_is_written_in_the_token_format_and_sse_as_it_was_given() -> None:
    callback = Callback(token_format="[{token}]")
    callback("a")
    callback.close()
    assert b"".join(await chunks_of(text(callback))) == b"[a]<graphai:END>"
    assert (await data_of(sse(callback)))[0] == {"type": "token", "token": "a"}


@given(st.lists(st.text(), max_size=8))
async def test_tokens_come_back_from_every_format(tokens: list[str]) -> None:
    callback = Callback()
    for token in tokens:
        callback(token)
    callback.close()
    for got in (await data_of(sse(callback)), await lines_of(ndjson(callback))):
        assert [each["token"] for each in got[:-1]] == tokens
    parser = TokenParser(callback.format)
    pieces = [piece for chunk in await chunks_of(text(callback)) for piece in parser.feed(chunk)]
    sendable = "".join(tokens).encode("utf-8", "replace").decode()
    assert [*pieces, *parser.flush()] == [*([sendable] if sendable else []), "<graphai:END>"]


async def test_half_a_surrogate_pair_can_be_written() -> None:
    callback = Callback()
    async with callback.node("n\udfff"):
        callback("a\ud800")
    callback.close()
    assert b"a?" in b"".join(await chunks_of(text(callback)))
    for got in (await data_of(sse(callback)), await lines_of(ndjson(callback))):
        assert (got[2]["token"], got[2]["node"]) == ("a\ud800", "n\udfff")


class Unspeakable:
    def __repr__(self) -> str:
        raise RuntimeError("no")


async def test_data_that_is_no_json_is_still_written() -> None:
    callback = Callback()
    loop: list[Any] = []
    loop.append(loop)
    for data in (math.nan, {"at": {1}}, loop, "\ud800\n", Unspeakable(), 10**5000):
        callback.event("odd", data)
    callback.close()
    for got in (await data_of(sse(callback)), await lines_of(ndjson(callback))):
        assert "data" in got[0]
        assert got[0]["data"] is None
        assert got[1]["data"] == {"at": "{1}"}
        assert got[2]["data"] == ["[[...]]"]
        assert got[3]["data"] == "\ud800\n"
        assert "Unspeakable object at" in got[4]["data"]
        assert got[6]["type"] == "stream_end"


@EVERY
async def test_what_waits_together_is_one_chunk(encode) -> None:
    callback = Callback()
    stream = encode(callback)
    for n in range(300):
        callback(f"{n} ")
    if encode is sse:
        await anext(stream)
    chunk = (await anext(stream)).decode()
    assert "0 " in chunk
    assert "299 " in chunk


async def test_text_passes_over_empty_tokens() -> None:
    callback = Callback()
    stream = text(callback)
    async with anyio.create_task_group() as tasks:
        got: list[bytes] = []

        async def read() -> None:
            got.append(await anext(stream))

        tasks.start_soon(read)
        await wait_all_tasks_blocked()
        callback("")
        await wait_all_tasks_blocked()
        callback("a")
    assert got == [b"a"]


@EVERY
async def test_a_long_history_is_written_in_turns(encode) -> None:
    """One that comes late and gets it all at once keeps nobody else waiting."""
    callback = Callback()
    for n in range(5_000):
        callback.start_node(str(n))
    callback.close()
    turns = 0

    async def live() -> None:
        nonlocal turns
        while not is_over:
            turns += 1
            await checkpoint()

    is_over = False
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(live)
        chunks = await chunks_of(encode(callback))
        is_over = True
    assert turns >= 15
    assert 15 <= len(chunks) <= 25
    assert b"END" in chunks[-1]


async def test_a_stream_closed_in_the_middle_of_a_batch_ends() -> None:
    callback = Callback()
    for _ in range(2_000):
        callback.event("x")
    stream = ndjson(callback)
    await anext(stream)
    await stream.aclose()
    assert await chunks_of(stream) == []


# The end.


@EVERY
@pytest.mark.parametrize("how", ["close", "fail", "cancel", "timeout"])
async def test_the_end_has_its_status_and_nothing_follows(encode, how: str, caplog) -> None:
    callback = Callback()
    stream = encode(callback)
    callback("a")
    status = {"close": "ok", "fail": "error", "cancel": "cancelled", "timeout": "timeout"}[how]
    if how == "timeout":
        callback.end("timeout", TimeoutError("secret"))
    else:
        arguments = {"fail": [ValueError("secret")], "cancel": ["secret"]}.get(how, [])
        getattr(callback, how)(*arguments)
    whole = b"".join(await chunks_of(stream))
    assert b"secret" not in whole
    tail = {"sse": f'"status":"{status}"}}\n\n', "ndjson": f'"status":"{status}"}}\n'}
    params = "" if status == "ok" else f":status={status}"
    ending = tail.get(encode.__name__, f"a<graphai:END{params}>")
    assert whole.decode().endswith(ending)
    for _ in range(2):
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
    failed = how in {"fail", "timeout"}
    assert [record.exc_info[1] is callback.error for record in caplog.records] == [True] * failed


async def test_a_failure_is_logged_with_its_run(caplog) -> None:
    callback = Callback()
    callback.fail(ValueError("boom"))
    await chunks_of(ndjson(callback))
    (record,) = caplog.records
    assert record.name == "callbackkit.streaming"
    assert record.levelno == logging.ERROR
    assert record.getMessage() == f"run {callback.run_id} ended: error"


async def test_a_log_filter_that_raises_does_not_break_the_response() -> None:
    def refuse(_record: logging.LogRecord) -> bool:
        raise RuntimeError("no")

    callback = Callback()
    callback.fail(ValueError("boom"))
    logger = logging.getLogger("callbackkit.streaming")
    logger.addFilter(refuse)
    try:
        assert len(await data_of(sse(callback))) == 1
    finally:
        logger.removeFilter(refuse)


# Heartbeats.


async def test_silence_is_filled_with_comments() -> None:
    callback = Callback()
    stream = sse(callback, heartbeat=0.005)
    await anext(stream)
    assert [await anext(stream) for _ in range(3)] == [b": keepalive\n\n"] * 3
    callback("a")
    assert b'"token":"a"' in await anext(stream)
    assert await anext(stream) == b": keepalive\n\n"
    callback.close()
    assert b"stream_end" in await anext(stream)
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_heartbeats_lose_and_double_nothing() -> None:
    callback = Callback()

    async def produce() -> None:
        async with callback:
            for n in range(150):
                await anyio.sleep(0.001 * (n % 3))
                callback(str(n))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(produce)
        events = await data_of(sse(callback, heartbeat=0.000_5))
    assert [event["token"] for event in events] == [*map(str, range(150)), "<graphai:END>"]


async def test_a_run_that_speaks_has_no_heartbeats() -> None:
    """What is there comes first, however late it is."""
    callback = Callback()
    stream = sse(callback, heartbeat=1e-9)
    callback("a")
    first = await anext(stream)
    assert b"keepalive" not in first + await anext(stream)


async def test_without_a_heartbeat_it_is_silent() -> None:
    callback = Callback()
    stream = sse(callback, heartbeat=None)
    await anext(stream)
    with anyio.move_on_after(0.02) as scope:
        await anext(stream)
    assert scope.cancelled_caught


@pytest.mark.parametrize(
    ("heartbeat", "error"),
    [
        (0, ValueError),
        (-1.0, ValueError),
        (math.nan, ValueError),
        ("1", TypeError),
        (True, TypeError),
    ],
)
def test_a_heartbeat_that_makes_no_sense_is_refused(heartbeat, error) -> None:
    with pytest.raises(error, match="heartbeat must be"):
        sse(Callback(), heartbeat=heartbeat)


# Resuming.


async def test_the_first_bytes_tell_the_client_where_it_stands() -> None:
    callback = Callback()
    assert await anext(sse(callback)) == f"id: {callback.run_id}-0\n\n".encode()
    first = await anext(sse(callback, retry_ms=250))
    assert first == f"id: {callback.run_id}-0\nretry: 250\n\n".encode()
    callback("a")
    first = await anext(sse(callback, f"{callback.run_id}-1"))
    assert first == f"id: {callback.run_id}-1\n\n".encode()


@pytest.mark.parametrize("seen", range(8))
async def test_a_stream_goes_on_behind_the_event_that_was_seen(seen: int) -> None:
    callback = spoken()
    assert await data_of(sse(callback, f"{callback.run_id}-{seen}")) == SPOKEN[seen:]


@pytest.mark.parametrize(
    "last_event_id",
    [
        "",
        "3",
        "-3",
        "{run}",
        "{run}-",
        "{run}-x",
        "{run}--1",
        "{run}-3.0",
        "{run}-٣",
        "{run}-3\n",
        " {run}-3",
        "{run}-8",
        "{run}-999999999999999999",
        "{run}-9999999999999999999999999999",
        f"{'0' * 32}-3",
        "{RUN}-3",
        "x" * 100_000,
    ],
)
async def test_a_foreign_id_begins_at_the_beginning(last_event_id: str) -> None:
    callback = spoken()
    run = callback.run_id
    sent = last_event_id.replace("{run}", run).replace("{RUN}", run.upper() + "!")
    assert await data_of(sse(callback, sent)) == SPOKEN


async def test_a_gap_is_an_event_to_resume_from() -> None:
    callback = Callback(history_bytes=1_000)
    for n in range(5_000):
        callback(str(n))
    callback.close()
    gap, after, *_ = events = await read_sse(sse(callback))
    missed = json.loads(gap.data)["data"]["missed"]
    assert json.loads(gap.data)["type"] == "gap"
    assert json.loads(after.data)["token"] == str(missed)
    assert await read_sse(sse(callback, gap.id)) == events[1:]


def test_an_id_says_run_and_number() -> None:
    run = Callback().run_id
    assert position_in(f"{run}-12") == (run, 12)
    assert position_in(None) is None


# Leaving.


@EVERY
async def test_a_cancelled_read_loses_nothing(encode) -> None:
    callback = Callback()
    stream = encode(callback)
    if encode is sse:
        await anext(stream)
    with anyio.move_on_after(0.005) as scope:
        await anext(stream)
    assert scope.cancelled_caught
    callback("a")
    assert b"a" in await anext(stream)


@EVERY
async def test_closing_wakes_who_waits_and_logs_nothing(encode, caplog) -> None:
    callback = Callback()
    stream = encode(callback)
    got: list[bytes] = []
    async with anyio.create_task_group() as tasks:

        async def read() -> None:
            got.extend(await chunks_of(stream))

        tasks.start_soon(read)
        await wait_all_tasks_blocked()
        await stream.aclose()
    assert len(got) == (encode is sse)
    callback.fail(ValueError("boom"))
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
    assert caplog.records == []


async def test_who_left_before_the_end_logs_nothing(caplog) -> None:
    callback = Callback()
    stream = ndjson(callback)
    callback.fail(ValueError("boom"))
    await stream.aclose()
    assert await chunks_of(stream) == []
    assert caplog.records == []


async def test_leaving_the_context_closes() -> None:
    callback = spoken()
    async with sse(callback) as stream:
        await anext(stream)
    assert await chunks_of(stream) == []
    assert callback.status == "ok"


async def test_one_task_may_begin_and_another_go_on() -> None:
    """No cancel scope and no context variable lives from one chunk to the next."""
    callback = Callback()
    stream = sse(callback, heartbeat=0.005)
    got: list[bytes] = []

    async def read() -> None:
        got.append(await anext(stream))

    for _ in range(3):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
    assert got[1:] == [b": keepalive\n\n"] * 2


@EVERY
async def test_a_stream_that_was_left_is_forgotten(encode) -> None:
    callback = Callback()
    stream = encode(callback)
    callback("a")
    await anext(stream)
    held = weakref.ref(stream._chunks.reader)
    del stream
    gc.collect()
    assert held() is None


@EVERY
async def test_a_run_is_followed_from_a_thread_by_many(encode) -> None:
    callback = Callback()

    def produce() -> None:
        for n in range(500):
            callback(f"{n},")
        callback.close()

    wholes: list[bytes] = []

    async def read() -> None:
        stream = encode(callback)
        wholes.append(b"".join(await chunks_of(stream)))

    thread = threading.Thread(target=produce)
    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(read)
        thread.start()
    thread.join()
    assert len(wholes) == 3
    assert len({whole.replace(b": keepalive\n\n", b"") for whole in wholes}) == 1
    assert b"499," in wholes[0]


# Headers.


@pytest.mark.parametrize(
    ("name", "media_type"),
    [
        ("sse", "text/event-stream"),
        ("ndjson", "application/x-ndjson"),
        ("text", "text/plain; charset=utf-8"),
    ],
)
def test_headers_name_the_type_and_keep_proxies_from_buffering(name, media_type: str) -> None:
    assert headers_for(name) == {
        "Content-Type": media_type,
        "Cache-Control": "no-store, no-transform",
        "X-Accel-Buffering": "no",
        "X-Content-Type-Options": "nosniff",
    }
    headers_for(name).clear()
    assert headers_for(name)


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(ValueError, match="format must be 'sse', 'ndjson' or 'text', not 'xml'"):
        headers_for("xml")
