"""What a webhook is made of, and what its answer comes to."""

import asyncio
import base64
import gzip
import json
import logging
import sys
import time
from collections.abc import Iterator
from typing import Any

import anyio
import pytest
import trio
from hypothesis import given, strategies as st
from standardwebhooks import Webhook

from callbackkit import CallbackManager
from callbackkit.delivery.policy import Batching, CircuitBreaker, RetryPolicy
from callbackkit.delivery.transport import Delivery
from callbackkit.errors import (
    ConfigError,
    ForbiddenAddressError,
    Gone,
    Rejected,
    Retry,
    SendError,
)
from callbackkit.events import Event
from callbackkit.sessions.config import CallbackConfig
from callbackkit.testing import FaultyReceiver, check_transport
from callbackkit.testing.receiver import ReceivedRequest
from callbackkit.webhooks.guard import Guard
from callbackkit.webhooks.sender import PATIENCE, Sender, WebhookRequest, WebhookResponse
from callbackkit.webhooks.transport import WebhookTransport, retry_after
from callbackkit.wire.signature import sign, verify

NOW = 1_800_000_000.0
URL = "https://example.com/hook?token=hunter2"
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OLDER = "whsec_" + base64.b64encode(bytes(range(32))).decode()
# The vector of the reference implementation for Ed25519.
PRIVATE = (
    "whsk_6Xb/dCcHpPea21PS1N9VY/NZW723CEc77N4rJCubMbfVKIDij2HKpMKkioLlX0dRqSKJp4AJ6p9lMicMFs6Kvg=="
)
PUBLIC = "whpk_" + base64.b64encode(base64.b64decode(PRIVATE[5:])[32:]).decode()


class Answering(Sender):
    """Answers as it is told, 204 in the end; keeps what it was to post."""

    def __init__(self, *answers: WebhookResponse | Exception) -> None:
        self.answers = list(answers)
        self.requests: list[WebhookRequest] = []
        self.guards: list[Guard] = []
        self.closed = 0

    async def start(self, guard: Guard) -> None:
        self.guards.append(guard)

    async def send(self, request: WebhookRequest) -> WebhookResponse:
        self.requests.append(request)
        answer = self.answers.pop(0) if self.answers else WebhookResponse(204, {})
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def aclose(self) -> None:
        self.closed += 1


class Ticking:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


def asked(**options: Any) -> CallbackConfig:
    return CallbackConfig(**{"webhook_url": URL, "webhook_secret": SECRET, **options})


def event(n: int = 1, text: str = "parsing") -> Event:
    return Event.of("step", {"n": n, "message": text}, position=f"epoch-{n}", session_id="s")


def delivery(*events: Event, config: CallbackConfig | None = None, attempt: int = 1) -> Delivery:
    return Delivery(
        id="s_epoch_1",
        events=events or (event(),),
        attempt=attempt,
        session_id="s",
        config=config or asked(),
    )


async def posted(one: Delivery, **options: Any) -> WebhookRequest:
    """Return what is posted for a delivery."""
    sender = Answering()
    transport = WebhookTransport(sender=sender, clock=lambda: NOW, **options)
    await transport.start()
    await transport.send(one)
    [request] = sender.requests
    return request


async def refusal(answer: WebhookResponse | Exception, **options: Any) -> BaseException:
    """Return what an answer is taken for."""
    transport = WebhookTransport(sender=Answering(answer), clock=lambda: NOW, **options)
    await transport.start()
    with pytest.raises((Gone, Rejected, Retry, SendError)) as caught:
        await transport.send(delivery())
    return caught.value


# The constructor.


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"timeout": "15"}, TypeError, "WebhookTransport.timeout must be a number of seconds"),
        ({"timeout": True}, TypeError, "WebhookTransport.timeout must be a number of seconds"),
        ({"timeout": 0}, ValueError, "WebhookTransport.timeout must be above 0"),
        ({"timeout": float("nan")}, ValueError, "WebhookTransport.timeout must be above 0"),
        ({"retry": 3}, TypeError, "WebhookTransport.retry must be a RetryPolicy"),
        ({"breaker": False}, TypeError, "WebhookTransport.breaker must be a CircuitBreaker"),
        ({"concurrency": 0}, ValueError, "WebhookTransport.concurrency must be at least 1"),
        ({"concurrency": 1.5}, TypeError, "WebhookTransport.concurrency must be a whole number"),
        ({"allowed_networks": ["10.0.0.1/8"]}, ValueError, "allowed_networks"),
        ({"allowed_networks": "10.0.0.0/8"}, TypeError, "allowed_networks"),
        ({"require_https": None}, TypeError, "require_https must be True or False"),
        ({"ports": [0]}, ValueError, "ports"),
        ({"sender": Answering}, TypeError, r"write Answering\(\)"),
        ({"sender": object()}, TypeError, "sender must be a Sender, not object"),
        ({"signing_key": b"whsk_"}, TypeError, "signing_key must be a string, not bytes"),
        ({"signing_key": SECRET}, ValueError, "signing_key must be an Ed25519 key, 'whsk_'"),
        ({"signing_key": PUBLIC}, ValueError, "signing_key must be an Ed25519 key, 'whsk_'"),
        ({"signing_key": "whsk_hunter2"}, ValueError, "whsk_"),
        ({"is_permanent": 404}, TypeError, "is_permanent must be callable, not int"),
        ({"clock": NOW}, TypeError, "clock must be callable, such as time.time, not float"),
    ],
)
def test_what_can_not_be_had_is_told_at_once(
    options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words) as caught:
        WebhookTransport(**options)
    assert "hunter2" not in str(caught.value)
    assert SECRET not in str(caught.value)


def test_a_coroutine_function_can_not_say_what_is_permanent() -> None:
    async def always(answer: WebhookResponse) -> bool:
        return False

    with pytest.raises(TypeError, match="a plain function"):
        WebhookTransport(is_permanent=always)


def test_it_takes_what_it_is_given() -> None:
    retry, breaker = RetryPolicy(schedule=(1.0,)), CircuitBreaker(failures=2)
    transport = WebhookTransport(timeout=3, retry=retry, breaker=breaker, concurrency=2)
    assert (transport.timeout, transport.retry, transport.breaker) == (3, retry, breaker)
    assert transport.concurrency == 2
    assert WebhookTransport(breaker=None).breaker is None
    assert WebhookTransport().breaker == CircuitBreaker()
    assert WebhookTransport().retry == RetryPolicy()
    assert WebhookTransport().timeout == 15.0


@pytest.mark.parametrize("missing", [("aiohttp",), ("httpx2",), ()])
def test_one_package_that_posts_is_enough(
    monkeypatch: pytest.MonkeyPatch, missing: tuple[str, ...]
) -> None:
    for name in missing:
        monkeypatch.setitem(sys.modules, name, None)
    WebhookTransport()


def test_without_a_package_that_posts_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("aiohttp", "httpx2"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"callbackkit\[webhook\].*callbackkit\[webhook-trio\]"):
        WebhookTransport()
    WebhookTransport(sender=Answering())


def test_its_repr_shows_its_state_and_nothing_secret() -> None:
    transport = WebhookTransport(signing_key=PRIVATE, sender=Answering())
    assert repr(transport) == "<WebhookTransport 'webhook', not started>"
    asyncio.run(transport.start())
    assert repr(transport) == "<WebhookTransport 'webhook', by Answering>"


# For development.


def test_for_development_loopback_and_plain_http_are_allowed() -> None:
    transport = WebhookTransport.for_development()
    for url in ("http://127.0.0.1:5000/", "http://[::1]:81/", "http://localhost:3000/"):
        transport.check(asked(webhook_url=url))
    with pytest.raises(ConfigError):
        transport.check(asked(webhook_url="http://10.0.0.1/"))


def test_for_development_options_are_those_of_the_class() -> None:
    class Ours(WebhookTransport):
        name = "ours"

    transport = Ours.for_development(
        allowed_networks=["10.0.0.0/8"], require_https=True, timeout=2.0
    )
    assert isinstance(transport, Ours)
    assert transport.timeout == 2.0
    transport.check(asked(webhook_url="https://10.0.0.1/"))
    transport.check(asked(webhook_url="https://127.0.0.1:5000/"))
    with pytest.raises(ConfigError, match="https"):
        transport.check(asked(webhook_url="http://127.0.0.1/"))
    with pytest.raises(TypeError, match="no_option"):
        WebhookTransport.for_development(no_option=1)


def test_for_development_one_network_instead_of_several_is_refused_too() -> None:
    with pytest.raises(TypeError, match=r"allowed_networks must be several, such as"):
        WebhookTransport.for_development(allowed_networks="10.0.0.0/8")


def test_otherwise_neither_loopback_nor_plain_http_is_allowed() -> None:
    for url in ("http://example.com/", "https://127.0.0.1/", "https://example.com:22/"):
        with pytest.raises(ConfigError) as caught:
            WebhookTransport().check(asked(webhook_url=url))
        assert caught.value.field == "webhook_url"


# What the engine asks.


def test_a_session_needs_a_url_and_something_to_sign_with() -> None:
    class Ours(WebhookTransport):
        name = "ours"

    with pytest.raises(ConfigError, match=r"webhook_url: is required .* 'ours'"):
        Ours().check(CallbackConfig(delivery_method="ours", webhook_secret=SECRET))
    without = CallbackConfig(delivery_method="ours", webhook_url=URL)
    with pytest.raises(ConfigError, match=r"webhook_secret: is required .* 'ours'"):
        Ours().check(without)
    Ours(signing_key=PRIVATE).check(without)


def test_on_trio_nobody_posts_without_httpx2(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client hears of it, and not the log of each attempt; elsewhere aiohttp is enough."""
    refused: list[str] = []

    async def check(transport: WebhookTransport) -> None:
        try:
            transport.check(asked())
        except ConfigError as exc:
            refused.append(f"{exc.field}: {exc}")

    given, default = WebhookTransport(sender=Answering()), WebhookTransport()
    trio.run(check, default)
    monkeypatch.setitem(sys.modules, "httpx2", None)
    asyncio.run(check(default))
    trio.run(check, given)
    assert refused == []
    trio.run(check, default)
    [words] = refused
    assert words.startswith("delivery_method: ")
    assert "callbackkit[webhook-trio]" in words


def test_an_endpoint_is_a_url_with_headers_and_terms() -> None:
    transport = WebhookTransport()
    one = transport.endpoint("s", asked(headers={"X-A": "1", "X-B": "2"}))
    assert one == transport.endpoint("t", asked(headers={"X-B": "2", "X-A": "1"}))
    # Who allows less time, or fewer requests, shall not have others waiting.
    others = [
        asked(headers={"X-A": "1", "X-B": "2"}, timeout=3.0),
        asked(headers={"X-A": "1", "X-B": "2"}, rate_limit=3.0),
        asked(headers={"X-A": "1", "X-B": "3"}),
        asked(headers={"X-A": "1"}),
        asked(webhook_url="https://example.com/hook"),
        asked(webhook_url="https://example.com/hook2?token=hunter2"),
    ]
    names = {one, *(transport.endpoint("s", each) for each in others)}
    assert len(names) == 7


def test_the_name_of_an_endpoint_shows_its_host_and_no_secret() -> None:
    name = WebhookTransport().endpoint("s", asked(headers={"Authorization": "Bearer hunter3"}))
    method, host, digest = name.split(":")
    assert (method, host) == ("webhook", "example.com")
    assert len(digest) == 32
    assert "hunter" not in name


def test_a_subclass_of_another_name_has_endpoints_of_its_own() -> None:
    class Ours(WebhookTransport):
        name = "ours"

    assert Ours().endpoint("s", asked()).startswith("ours:example.com:")
    assert repr(Ours()) == "<Ours 'ours', not started>"


def test_tokens_are_not_sent_unless_somebody_names_them() -> None:
    assert WebhookTransport().only_when_named == {"streaming_chunk"}


# Who posts.


async def test_a_sender_is_started_with_the_guard_and_closed() -> None:
    sender = Answering()
    transport = WebhookTransport(sender=sender, allowed_networks=["10.0.0.0/8"])
    await transport.aclose()
    assert sender.closed == 0
    await transport.start()
    await transport.start()
    assert sender.guards == [transport.guard] * 2
    await transport.aclose()
    await transport.aclose()
    assert sender.closed == 1
    await transport.start()
    await transport.send(delivery())
    assert len(sender.requests) == 1


async def test_before_it_is_started_it_sends_nothing() -> None:
    sender = Answering()
    with pytest.raises(RuntimeError, match="not started"):
        await WebhookTransport(sender=sender).send(delivery())
    assert sender.requests == []


def test_each_event_loop_gets_the_sender_that_runs_there() -> None:
    transport = WebhookTransport()
    seen: list[str] = []

    async def run() -> None:
        await transport.start()
        seen.append(repr(transport))
        await transport.aclose()

    asyncio.run(run())
    trio.run(run)
    asyncio.run(run())
    assert [each.rpartition(" ")[2] for each in seen] == [
        "AiohttpSender>",
        "Httpx2Sender>",
        "AiohttpSender>",
    ]


def test_without_aiohttp_asyncio_has_httpx2(monkeypatch: pytest.MonkeyPatch) -> None:
    transport = WebhookTransport()
    monkeypatch.setitem(sys.modules, "aiohttp", None)

    async def run() -> str:
        await transport.start()
        try:
            return repr(transport)
        finally:
            await transport.aclose()

    assert "Httpx2Sender" in asyncio.run(run())


# What is posted.


async def test_an_event_is_posted_as_its_json() -> None:
    request = await posted(delivery())
    assert request.url == URL
    assert json.loads(request.body) == {
        "id": "epoch-1",
        "event_type": "step",
        "timestamp": event().timestamp.isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "session_id": "s",
        "conversation_id": None,
        "data": {"n": 1, "message": "parsing"},
        "metadata": {},
    }


async def test_several_events_are_posted_as_a_list() -> None:
    request = await posted(delivery(event(1), event(2)))
    body = json.loads(request.body)
    assert list(body) == ["events"]
    assert [each["id"] for each in body["events"]] == ["epoch-1", "epoch-2"]


async def test_the_headers_are_those_of_standard_webhooks() -> None:
    request = await posted(delivery())
    headers = dict(request.headers)
    assert headers.pop("user-agent").startswith("callbackkit")
    assert headers == {
        "content-type": "application/json",
        "webhook-id": "s_epoch_1",
        "webhook-timestamp": "1800000000",
        "webhook-signature": sign(
            SECRET, id="s_epoch_1", timestamp=1_800_000_000, body=request.body
        ),
    }


async def test_the_reference_implementation_takes_it() -> None:
    sender = Answering()
    transport = WebhookTransport(sender=sender)
    await transport.start()
    await transport.send(delivery())
    [request] = sender.requests
    before = time.time() - 60
    assert before < int(request.headers["webhook-timestamp"]) < before + 120
    Webhook(SECRET).verify(request.body.decode(), dict(request.headers))


async def test_headers_of_the_session_are_sent_along() -> None:
    headers = {"Authorization": "Bearer s3cr3t", "X-Tenant": "7"}
    request = await posted(delivery(config=asked(headers=headers)))
    assert headers.items() <= request.headers.items()
    assert len(request.headers) == 5 + len(headers)


@pytest.mark.parametrize(
    "name",
    ["Content-Type", "Content-Encoding", "USER-AGENT", "Webhook-Id", "webhook-signature", "Host"],
)
def test_no_session_can_set_a_header_that_is_ours(name: str) -> None:
    with pytest.raises(ConfigError, match="is set by the protocol"):
        asked(headers={name: "x"})


async def test_the_body_is_the_same_on_every_attempt_and_the_time_is_not() -> None:
    clock, sender = Ticking(), Answering()
    transport = WebhookTransport(sender=sender, clock=clock)
    await transport.start()
    config = asked(compression="gzip")
    events = (event(1, "long " * 400), event(2))
    await transport.send(delivery(*events, config=config))
    clock.now += 3600.7
    await transport.send(delivery(*events, config=config, attempt=2))
    first, second = sender.requests
    assert first.body == second.body
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    assert second.headers["webhook-timestamp"] == "1800003600"
    assert first.headers["webhook-signature"] != second.headers["webhook-signature"]
    verify(dict(second.headers), second.body, SECRET, now=clock.now)


@pytest.mark.parametrize("size", [1_025, 300_000])
async def test_what_is_large_is_compressed_if_asked_for_and_signed_so(size: int) -> None:
    plain = await posted(delivery(event(1, "x" * size)))
    packed = await posted(delivery(event(1, "x" * size), config=asked(compression="gzip")))
    assert "content-encoding" not in plain.headers
    assert packed.headers["content-encoding"] == "gzip"
    assert gzip.decompress(packed.body) == plain.body
    assert len(packed.body) < len(plain.body)
    verify(dict(packed.headers), packed.body, SECRET, now=NOW)


async def test_what_is_small_is_not_compressed() -> None:
    room = 1_024 - len((await posted(delivery(event(1, "")))).body)
    config = asked(compression="gzip")
    small = await posted(delivery(event(1, "x" * room), config=config))
    assert len(small.body) == 1_024
    assert "content-encoding" not in small.headers
    large = await posted(delivery(event(1, "x" * (room + 1)), config=config))
    assert large.headers["content-encoding"] == "gzip"


async def test_every_secret_that_counts_signs_the_newest_first() -> None:
    config = asked(webhook_secret=OLDER).rotated(SECRET, now=NOW - 10, overlap=60.0)
    request = await posted(delivery(config=config))
    each = {"id": "s_epoch_1", "timestamp": int(NOW), "body": request.body}
    assert request.headers["webhook-signature"] == f"{sign(SECRET, **each)} {sign(OLDER, **each)}"


async def test_a_secret_whose_time_is_up_signs_no_more() -> None:
    config = asked(webhook_secret=OLDER).rotated(SECRET, now=NOW - 61, overlap=60.0)
    request = await posted(delivery(config=config))
    assert " " not in request.headers["webhook-signature"]
    verify(dict(request.headers), request.body, SECRET, now=NOW)


def attempt_of(config: CallbackConfig) -> Delivery:
    """Return a delivery as the engine makes them: each has the same object."""
    return delivery(config=config)


async def test_a_rotation_is_heeded_though_requests_were_made_before() -> None:
    """Also that of a configuration which itself has a secret that counts for a while yet."""
    sender, clock = Answering(), Ticking()
    transport = WebhookTransport(sender=sender, clock=clock)
    await transport.start()
    old = asked(webhook_secret=OLDER)
    await transport.send(attempt_of(old))
    at_once = old.rotated(SECRET, now=NOW, overlap=0.0)
    await transport.send(attempt_of(at_once))
    overlapping = old.rotated(SECRET, now=NOW, overlap=60.0)
    await transport.send(attempt_of(overlapping))
    clock.now += 61
    await transport.send(attempt_of(overlapping))
    await transport.send(attempt_of(old))
    assert signed_by(sender.requests) == [[OLDER], [SECRET], [SECRET, OLDER], [SECRET], [OLDER]]


def signed_by(requests: list[WebhookRequest]) -> list[list[str]]:
    """Return the secrets that each request is signed with."""
    return [
        [
            secret
            for secret in (SECRET, OLDER)
            if sign(
                secret,
                id=request.headers["webhook-id"],
                timestamp=int(request.headers["webhook-timestamp"]),
                body=request.body,
            )
            in request.headers["webhook-signature"].split(" ")
        ]
        for request in requests
    ]


async def test_configurations_that_come_and_go_are_not_taken_for_each_other() -> None:
    """Python gives the id of one that is gone to another."""
    sender = Answering()
    transport = WebhookTransport(sender=sender, clock=lambda: NOW)
    await transport.start()
    ids: set[int] = set()
    for number in range(3_000):
        config = asked(webhook_url=f"https://example.com/{number}", headers={"X-A": str(number)})
        ids.add(id(config))
        await transport.send(attempt_of(config))
        del config
        request = sender.requests.pop()
        assert request.url == f"https://example.com/{number}"
        assert request.headers["X-A"] == str(number)
        # However many there are.
        assert len(transport._prepared) <= 1_024
    assert len(ids) < 3_000
    await transport.aclose()
    assert not transport._prepared


async def test_what_is_known_of_another_object_with_the_same_id_is_not_used() -> None:
    sender = Answering()
    transport = WebhookTransport(sender=sender, clock=lambda: NOW)
    await transport.start()
    one, other = asked(webhook_secret=OLDER), asked(webhook_url="https://example.net/")
    await transport.send(attempt_of(one))
    transport._prepared[id(other)] = transport._prepared.pop(id(one))
    await transport.send(attempt_of(other))
    assert [each.url for each in sender.requests] == [URL, "https://example.net/"]
    assert signed_by(sender.requests) == [[OLDER], [SECRET]]


@pytest.mark.parametrize(
    ("timeout", "own", "rest"), [(15.0, None, 0.1), (15.0, 3.0, 0.1), (15.0, 0.2, 0.05)]
)
async def test_the_sender_is_told_until_when_an_answer_counts(
    timeout: float, own: float | None, rest: float
) -> None:
    """A little before the engine gives up on the attempt."""
    sender = Answering()
    transport = WebhookTransport(sender=sender, timeout=timeout)
    await transport.start()
    begin = anyio.current_time()
    await transport.send(delivery(config=asked(timeout=own)))
    end = anyio.current_time()
    [request] = sender.requests
    until = (timeout if own is None else own) - rest
    assert begin + until <= request.answered_by <= end + until
    # And never for longer than is waited for a body anyway.
    assert request.body_until() <= min(anyio.current_time() + PATIENCE, request.answered_by)


async def test_a_key_of_the_operator_signs_besides() -> None:
    request = await posted(delivery(), signing_key=PRIVATE)
    first, second = request.headers["webhook-signature"].split(" ")
    assert first.startswith("v1,")
    assert second.startswith("v1a,")
    for secret in (SECRET, PUBLIC):
        verify(dict(request.headers), request.body, secret, now=NOW)


async def test_without_any_secret_nothing_is_posted() -> None:
    sender = Answering()
    transport = WebhookTransport(sender=sender)
    await transport.start()
    with pytest.raises(ValueError, match="secret"):
        await transport.send(delivery(config=asked(webhook_secret=None)))
    assert sender.requests == []


# What is answered.


@pytest.mark.parametrize("status", [200, 201, 202, 204, 206, 299])
async def test_from_200_to_299_it_is_delivered(status: int) -> None:
    sender = Answering(WebhookResponse(status, {"retry-after": "60"}))
    transport = WebhookTransport(sender=sender)
    await transport.start()
    await transport.send(delivery())
    assert len(sender.requests) == 1


@pytest.mark.parametrize(
    "status",
    [
        *(199, 300, 301, 302, 304, 307, 308, 399, 400, 401, 403, 404, 408, 409, 413, 422, 425, 451),
        *(500, 501, 505, 507, 599, 600, 999),
    ],
)
async def test_other_statuses_are_tried_again_by_the_schedule(status: int) -> None:
    error = await refusal(WebhookResponse(status, {"location": "https://elsewhere.example/"}))
    assert type(error) is SendError
    assert str(error) == f"HTTP {status}"


@pytest.mark.parametrize("status", [429, 502, 503, 504])
async def test_who_is_overloaded_is_spared_as_a_whole(status: int) -> None:
    error = await refusal(WebhookResponse(status, {}))
    assert isinstance(error, Retry)
    assert (error.after, error.reason, error.throttles) == (None, f"HTTP {status}", True)


@pytest.mark.parametrize("status", [302, 400, 404, 425, 429, 500, 503])
async def test_whoever_says_when_to_come_back_is_spared_until_then(status: int) -> None:
    error = await refusal(WebhookResponse(status, {"retry-after": "120"}))
    assert isinstance(error, Retry)
    assert (error.after, error.reason, error.throttles) == (120.0, f"HTTP {status}", True)


@pytest.mark.parametrize("value", ["soon", "-5", "0", "Wed, 21 Oct 2015 07:28:00 GMT", ""])
async def test_a_time_that_can_not_be_waited_for_is_as_if_it_were_not_there(value: str) -> None:
    answer = {"retry-after": value}
    assert type(await refusal(WebhookResponse(500, answer))) is SendError
    error = await refusal(WebhookResponse(503, answer))
    assert isinstance(error, Retry)
    assert error.after is None


async def test_410_is_the_end_of_the_endpoint_whatever_else_is_said() -> None:
    answer = WebhookResponse(410, {"retry-after": "60"})
    error = await refusal(answer, is_permanent=lambda answer: True)
    assert isinstance(error, Gone)
    assert error.reason == "HTTP 410"


async def test_what_is_permanent_is_up_to_the_operator() -> None:
    asked_about: list[WebhookResponse] = []

    def is_permanent(answer: WebhookResponse) -> bool:
        asked_about.append(answer)
        return answer.status == 404 or b"never" in answer.body

    error = await refusal(WebhookResponse(404, {}), is_permanent=is_permanent)
    assert isinstance(error, Rejected)
    assert error.reason == "HTTP 404"
    never = WebhookResponse(429, {"retry-after": "60"}, b"never come back")
    assert isinstance(await refusal(never, is_permanent=is_permanent), Rejected)
    assert type(await refusal(WebhookResponse(500, {}), is_permanent=is_permanent)) is SendError
    assert [each.status for each in asked_about] == [404, 429, 500]


async def test_a_success_is_nothing_to_ask_about() -> None:
    def is_permanent(answer: WebhookResponse) -> bool:
        raise AssertionError("asked")

    sender = Answering()
    transport = WebhookTransport(sender=sender, is_permanent=is_permanent)
    await transport.start()
    await transport.send(delivery())


async def test_what_asks_and_fails_says_no_and_is_told_of_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def is_permanent(answer: WebhookResponse) -> bool:
        raise ZeroDivisionError

    sender = Answering(*[WebhookResponse(404, {})] * 3)
    transport = WebhookTransport(sender=sender, is_permanent=is_permanent)
    await transport.start()
    for _ in range(3):
        with pytest.raises(SendError, match="HTTP 404"):
            await transport.send(delivery())
    [record] = [each for each in caplog.records if each.name == "callbackkit.webhooks"]
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError


@pytest.mark.parametrize(
    "error", [SendError("no answer"), ForbiddenAddressError("the address is not public")]
)
async def test_what_the_sender_raises_passes_through(error: Exception) -> None:
    assert await refusal(error) is error


# Retry-After.


@pytest.mark.parametrize(
    ("text", "after"),
    [
        ("1", 1.0),
        (" 120 ", 120.0),
        ("0120", 120.0),
        ("Fri, 15 Jan 2027 08:00:30 GMT", 30.0),
        ("Friday, 15-Jan-27 08:00:30 GMT", 30.0),
        ("Fri Jan 15 08:00:30 2027", 30.0),
        ("Fri, 15 Jan 2027 09:00:30 +0100", 30.0),
        ("315360000", 315_360_000.0),
        ("9" * 5_000, 9_999_999_999_999_999.0),
        (None, None),
        ("0", None),
        ("-1", None),
        ("+1", None),
        ("1.5", None),
        ("1e3", None),
        ("\u0661", None),
        ("1 second", None),
        ("nan", None),
        ("Fri, 15 Jan 2027 07:59:59 GMT", None),
        ("Fri, 99 Jan 2027 08:00:30 GMT", None),
        ("Fri, 15 Jan 99999 08:00:30 GMT", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(text: str | None, after: float | None) -> None:
    assert retry_after(text, NOW) == after


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="the zone of a process is that of POSIX")
def test_a_date_without_a_zone_is_utc_wherever_the_machine_stands(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    try:
        with monkeypatch.context() as patch:
            patch.setenv("TZ", "XXX+05")
            time.tzset()
            assert retry_after("Fri Jan 15 08:00:30 2027", NOW) == 30.0
    finally:
        time.tzset()


@given(st.text() | st.from_regex(r"[A-Z][a-z]{2}, [0-9]{1,3} [A-Z][a-z]{2} [0-9]{1,6} .*"))
def test_retry_after_may_be_anything(text: str) -> None:
    after = retry_after(text, NOW)
    assert after is None or 0 < after < float("inf")


# With real connections.


async def test_a_manager_makes_the_secret_and_delivers() -> None:
    async with (
        FaultyReceiver() as receiver,
        CallbackManager(transports=[WebhookTransport.for_development()]) as manager,
    ):
        session = await manager.create_session({"webhook_url": f"{receiver.url}hook"})
        await session.progress(0.4, "parsing")
        request = await receiver.next_request(timeout=10)
        secret = session.config.webhook_secret
        assert secret is not None
        [arrived] = request.events(secret)
        assert (request.path, arrived.data["progress"]) == ("/hook", 0.4)


def ids_of(requests: list[ReceivedRequest]) -> Iterator[str]:
    for request in requests:
        content = request.json()
        for each in content.get("events", [content]):
            yield each["id"]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("batching", [None, Batching(max_events=10)])
def test_it_is_a_transport(backend: str, batching: Batching | None) -> None:
    with FaultyReceiver.in_thread() as receiver:

        def break_destination(is_down: bool) -> None:
            (receiver.stop if is_down else receiver.resume)()

        check_transport(
            lambda: WebhookTransport.for_development(timeout=2.0),
            lambda: list(ids_of(receiver.requests)),
            config=asked(webhook_url=receiver.url, batching=batching, compression="gzip"),
            break_destination=break_destination,
            backend=backend,
            examples=5,
        )
