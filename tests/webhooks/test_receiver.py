"""What a receiver gets of a webhook, and what it is told came before."""

import gzip
import json
import subprocess
import sys
import threading
import tracemalloc
import zlib
from typing import Any

import pytest
from hypothesis import given, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from callbackkit.errors import SignatureError, WireError
from callbackkit.events import GAP, Event, Position
from callbackkit.testing import ManualClock
from callbackkit.webhooks.receiver import Deduper, receive
from callbackkit.wire.envelope import encode_event, encode_events, gap_event
from callbackkit.wire.signature import sign

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OTHER = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"
TIME = 1614265330
EVENT = Event.of("progress", {"progress": 0.4, "message": "é\u2028"}, metadata={"test": True})
EVENTS = [EVENT, Event.of("order.created", {"n": [1, None]}, position="test-2")]


def headers_of(
    body: bytes, encoding: Any = None, *, secret: str = SECRET, webhook_id: str = "msg_1"
) -> dict[str, str]:
    headers = {
        "Webhook-Id": webhook_id,
        "Webhook-Timestamp": str(TIME),
        "Webhook-Signature": sign(secret, id=webhook_id, timestamp=TIME, body=body),
        "Content-Type": "application/json",
    }
    return headers if encoding is None else {**headers, "Content-Encoding": encoding}


def received(body: bytes, encoding: Any = None, **options: Any) -> list[Event]:
    """Receive what was signed rightly."""
    return receive(headers_of(body, encoding), body, SECRET, now=TIME, **options)


# Events.


def test_a_single_event_is_received() -> None:
    [event] = received(encode_event(EVENT))
    assert event == EVENT
    assert (event.id, event.event_type, dict(event.data)) == (
        "test-1",
        "progress",
        {"progress": 0.4, "message": "é\u2028"},
    )
    assert event.metadata == {"test": True}
    assert event.timestamp == EVENT.timestamp


def test_a_batch_is_received_in_its_order() -> None:
    assert received(encode_events(EVENTS)) == EVENTS
    assert received(encode_events([])) == []


def test_a_gap_is_received() -> None:
    gap = gap_event("s", "e", asked=Position("e", 3), first=9, microseconds=0)
    [event] = received(encode_event(gap))
    assert event.event_type == GAP
    assert event.is_gap
    assert event.data["missed"] == 5


@given(
    st.lists(
        st.dictionaries(st.text(), st.none() | st.integers() | st.text() | st.lists(st.text())),
        max_size=5,
    ),
    st.booleans(),
)
def test_what_is_sent_is_received(payloads: list[dict[str, Any]], is_packed: bool) -> None:
    events = [
        Event.of("x", data, position=f"e-{seq}") for seq, data in enumerate(payloads, start=1)
    ]
    body = encode_events(events)
    if is_packed:
        body = gzip.compress(body)
    assert received(body, "gzip" if is_packed else None) == events


# Signatures.


def test_a_signature_is_asked_for_first() -> None:
    """What anybody may have sent is neither unpacked nor read."""
    body = b"no gzip"
    headers = headers_of(body, "unheard-of", secret=OTHER)
    with pytest.raises(SignatureError, match="is right"):
        receive(headers, body, SECRET, now=TIME)
    with pytest.raises(WireError, match="content-encoding"):
        receive(headers, body, [SECRET, OTHER], now=TIME)


def test_what_is_packed_is_signed_as_it_is_sent() -> None:
    plain = encode_event(EVENT)
    packed = gzip.compress(plain)
    with pytest.raises(SignatureError):
        receive(headers_of(plain, "gzip"), packed, SECRET, now=TIME)
    with pytest.raises(SignatureError):
        receive(headers_of(packed, "gzip"), plain, SECRET, now=TIME)


def test_now_and_tolerance_are_those_of_verify() -> None:
    body = encode_event(EVENT)
    assert receive(headers_of(body), body, SECRET, now=TIME + 300)
    for options in ({}, {"now": TIME + 301}, {"now": TIME + 1, "tolerance": 0}):
        with pytest.raises(SignatureError, match="too old"):
            receive(headers_of(body), body, SECRET, **options)
    assert receive(headers_of(body), body, SECRET, tolerance=None)


# Packing.


@pytest.mark.parametrize("encoding", ["gzip", "GZip", " gzip ", "x-gzip"])
def test_what_is_packed_is_unpacked(encoding: str) -> None:
    assert received(gzip.compress(encode_events(EVENTS)), encoding) == EVENTS


@pytest.mark.parametrize("encoding", ["", "identity", "Identity"])
def test_what_is_not_packed_is_left_alone(encoding: str) -> None:
    assert received(encode_events(EVENTS), encoding) == EVENTS


@pytest.mark.parametrize("encoding", ["br", "deflate", "zstd", "gzip, gzip", "gzip,identity", "é"])
def test_an_unknown_packing_is_refused(encoding: str) -> None:
    body = gzip.compress(encode_event(EVENT))
    with pytest.raises(WireError, match="content-encoding must be gzip or nothing, not"):
        received(body, encoding)


@pytest.mark.parametrize("odd", [{"content-encoding": "gzip"}, {"Content-Encoding": None}])
def test_a_packing_that_nobody_knows_for_sure_is_refused(odd: dict[str, Any]) -> None:
    body = gzip.compress(encode_event(EVENT))
    headers = headers_of(body, "gzip") | odd
    with pytest.raises(WireError, match="content-encoding is there twice, or no text"):
        receive(headers, body, SECRET, now=TIME)


def test_names_of_headers_that_are_no_text_are_passed_over() -> None:
    body = encode_event(EVENT)
    headers: Any = {None: "x", b"content-encoding": "gzip", **headers_of(body)}
    assert receive(headers, body, SECRET, now=TIME) == [EVENT]


PACKED = gzip.compress(encode_event(EVENT), mtime=0)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "is cut off"),
        (b"\x1f\x8b", "is cut off"),
        (PACKED[:-1], "is cut off"),
        (PACKED[:20], "is cut off"),
        (PACKED + b"\n", "has something behind it"),
        (PACKED + PACKED, "has something behind it"),
        (encode_event(EVENT), "is broken"),
        (zlib.compress(encode_event(EVENT)), "is broken"),
        (PACKED[:-8] + bytes(8), "is broken"),
        (PACKED[:12] + b"\xff" + PACKED[13:], "is broken"),
    ],
)
def test_a_body_that_is_no_gzip_is_refused(body: bytes, words: str) -> None:
    with pytest.raises(WireError, match=words):
        received(body, "gzip")


@pytest.mark.parametrize("is_packed", [True, False])
def test_a_body_has_at_most_so_many_bytes_unpacked(is_packed: bool) -> None:
    body = encode_events(EVENTS)
    packed, encoding = (gzip.compress(body), "gzip") if is_packed else (body, None)
    assert received(packed, encoding, max_bytes=len(body)) == EVENTS
    with pytest.raises(WireError, match=f"at most {len(body) - 1} bytes, unpacked"):
        received(packed, encoding, max_bytes=len(body) - 1)
    assert received(packed, encoding, max_bytes=sys.maxsize) == EVENTS


def test_a_bomb_is_not_unpacked() -> None:
    """Of a quarter of a gigabyte, no more is made than may be."""
    packer = zlib.compressobj(9, wbits=31)
    zeros = bytes(1_048_576)
    bomb = b"".join([*(packer.compress(zeros) for _ in range(256)), packer.flush()])
    headers = headers_of(bomb, "gzip")
    tracemalloc.start()
    try:
        with pytest.raises(WireError, match="at most 1000000 bytes, unpacked"):
            receive(headers, bomb, SECRET, now=TIME, max_bytes=1_000_000)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8_000_000


@pytest.mark.parametrize("most", [0, -1, 1.5, True, None])
def test_a_bound_that_is_none_is_refused(most: Any) -> None:
    with pytest.raises(ValueError, match="max_bytes must be a whole number above 0"):
        received(encode_event(EVENT), max_bytes=most)


# What is no event.


def changed(**content: Any) -> bytes:
    return json.dumps({**json.loads(encode_event(EVENT)), **content}).encode()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "must be JSON in UTF-8"),
        (b"{", "must be JSON in UTF-8"),
        (b"\xff\xfe", "must be JSON in UTF-8"),
        (b"NaN", "must be JSON in UTF-8"),
        (b"\xef\xbb\xbf{}", "must be JSON in UTF-8"),
        (b"[" * 200_000, "must be JSON in UTF-8"),
        (b'{"n":' + b"9" * 5_000 + b"}", "must be JSON in UTF-8"),
        (b"null", "must be a JSON object, not NoneType"),
        (b"[]", "must be a JSON object, not list"),
        (b'"events"', "must be a JSON object, not str"),
        (b"{}", "no event: 'id' must be a string"),
        # As Standard Webhooks recommends it, and many send it.
        (b'{"type":"a.b","timestamp":"2022-11-03T20:26:10Z","data":{}}', "no event: 'id'"),
        (b'{"events":null}', "'events' must be a list, not NoneType"),
        (b'{"events":{}}', "'events' must be a list, not dict"),
        (b'{"events":[1]}', "an event must be a JSON object, not int"),
        (b'{"events":[{}]}', "no event: 'id'"),
        (changed(id="nowhere"), "no event: 'nowhere' is no position"),
        (changed(timestamp="yesterday"), "'yesterday' is no timestamp"),
        (changed(event_type=None), "no event: 'event_type'"),
        (changed(event_type="\ud800"), "no event: 'event_type'"),
        (changed(session_id=7), "no event: 'session_id'"),
        (changed(data=[]), "no event: must be a mapping"),
        (changed(data={"a": "\ud800"}), "no event: a: has half of a surrogate pair"),
        (changed(data=json.loads("[" * 150 + "]" * 150)), "no event"),
        (changed(metadata=1), "no event: metadata"),
        (changed(conversation_id=1), "no event: conversation_id"),
    ],
)
def test_what_is_signed_but_holds_no_events_is_refused(body: bytes, words: str) -> None:
    """Not as a wrong signature: whoever sent it is who he says."""
    with pytest.raises(WireError, match=words) as caught:
        received(body)
    assert not isinstance(caught.value, SignatureError)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
keys = st.sampled_from(["events", "id", "event_type", "timestamp", "session_id", "data"])


@given(st.dictionaries(keys, json_values | st.just("e-1")) | json_values | st.binary())
def test_no_body_raises_anything_else(content: Any) -> None:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    for encoding in (None, "gzip"):
        try:
            events = received(body, encoding)
        except WireError:
            continue
        assert all(isinstance(each, Event) for each in events)


def test_importing_it_imports_no_event_loop() -> None:
    """Nor anything else that a receiver in a small function would wait for."""
    program = (
        "import sys\n"
        "from callbackkit.webhooks.receiver import Deduper, receive, verify\n"
        "from callbackkit.wire.signature import verify as same\n"
        "assert verify is same\n"
        "loaded = {name.partition('.')[0] for name in sys.modules}\n"
        "assert not {'anyio', 'asyncio', 'aiohttp', 'httpx2', 'cryptography'} & loaded"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)


# Repeats.


def test_a_repeat_is_told() -> None:
    deduper = Deduper()
    assert not deduper.seen("msg_1")
    assert deduper.seen("msg_1")
    assert deduper.seen("msg_1")
    assert not deduper.seen("msg_2")


def test_what_failed_is_no_repeat_the_next_time() -> None:
    deduper = Deduper()
    assert not deduper.seen("msg_1")
    deduper.forget("msg_1")
    assert not deduper.seen("msg_1")
    assert deduper.seen("msg_1")
    deduper.forget("never heard of")


def test_the_oldest_are_forgotten_when_there_are_too_many() -> None:
    deduper = Deduper(size=3)
    assert not any(deduper.seen(each) for each in "abc")
    assert deduper.seen("a")  # and is the newest again
    assert not deduper.seen("d")
    assert [deduper.seen(each) for each in "acd"] == [True, True, True]
    assert not deduper.seen("b")
    assert not deduper.seen("a")


def test_what_came_long_ago_is_forgotten() -> None:
    clock = ManualClock()
    deduper = Deduper(ttl=60.0, clock=clock)
    assert not deduper.seen("a")
    clock.advance(59.0)
    assert deduper.seen("a")
    clock.advance(59.0)
    assert deduper.seen("a")
    clock.advance(60.0)
    assert not deduper.seen("a")


def test_what_came_long_ago_takes_no_memory() -> None:
    clock = ManualClock()
    deduper = Deduper(ttl=60.0, clock=clock)
    for number in range(5):
        deduper.seen(str(number))
    assert repr(deduper) == "<Deduper size=10000 ttl=60.0 known=5>"
    clock.advance(61.0)
    deduper.seen("new")
    assert repr(deduper) == "<Deduper size=10000 ttl=60.0 known=1>"


def test_by_default_it_keeps_ten_thousand_for_a_day() -> None:
    assert repr(Deduper()) == "<Deduper size=10000 ttl=86400.0 known=0>"
    assert not Deduper().seen("a")


@pytest.mark.parametrize("webhook_id", [None, 7, b"msg_1"])
def test_an_id_that_is_none_is_refused(webhook_id: Any) -> None:
    """All webhooks without one would be repeats of the first."""
    deduper = Deduper()
    for _ in range(2):
        with pytest.raises(TypeError, match="webhook_id must be a string"):
            deduper.seen(webhook_id)
        with pytest.raises(ValueError, match="must not be empty"):
            deduper.seen("")


@pytest.mark.parametrize("size", [0, -1, 1.5, True])
def test_a_size_that_is_none_is_refused(size: Any) -> None:
    with pytest.raises(ValueError, match="size must be a whole number above 0"):
        Deduper(size)


@pytest.mark.parametrize("ttl", [0, -1.0, float("nan")])
def test_a_ttl_that_is_none_is_refused(ttl: float) -> None:
    with pytest.raises(ValueError, match="ttl must be seconds above 0"):
        Deduper(ttl=ttl)


@pytest.mark.parametrize("size", [10_000, 10])
def test_of_many_threads_one_is_first(size: int) -> None:
    """Of each id, whatever the others ask for at the same time."""
    interval = sys.getswitchinterval()
    deduper = Deduper(size)
    firsts: list[int] = []
    gate = threading.Barrier(8)

    def ask() -> None:
        for number in range(300):
            gate.wait(10)
            if not deduper.seen(f"msg_{number}"):
                firsts.append(number)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    finally:
        sys.setswitchinterval(interval)
    assert firsts == list(range(300))


class Repeats(RuleBasedStateMachine):
    """A model that keeps everything, and knows by size and time what counts."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.deduper = Deduper(size=4, ttl=10.0, clock=self.clock)
        self.last: dict[str, float] = {}

    def known(self) -> list[str]:
        newest = list(self.last)[-4:]
        return [each for each in newest if self.clock() - self.last[each] < 10.0]

    @rule(webhook_id=st.sampled_from("abcdefg"))
    def see(self, webhook_id: str) -> None:
        known = self.known()
        assert self.deduper.seen(webhook_id) == (webhook_id in known)
        self.last.pop(webhook_id, None)
        self.last[webhook_id] = self.clock()
        # What fell out by number stays out, even if others are forgotten.
        self.last = {each: self.last[each] for each in list(self.last)[-4:]}

    @rule(webhook_id=st.sampled_from("abcdefg"))
    def forget(self, webhook_id: str) -> None:
        self.deduper.forget(webhook_id)
        self.last.pop(webhook_id, None)

    @rule(seconds=st.sampled_from([0.5, 5.0, 10.0]))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @invariant()
    def is_bounded(self) -> None:
        assert int(repr(self.deduper).partition("known=")[2].rstrip(">")) <= 4


TestRepeats = Repeats.TestCase
