"""Secrets of a webhook stand in no log, no ``repr``, no error and no figure."""

import logging
import traceback
from base64 import b64decode
from collections.abc import Iterator
from typing import Any

import pytest

from callbackkit import CallbackConfig, ConfigError
from callbackkit.delivery.observers import Observer
from callbackkit.delivery.transport import Delivery
from callbackkit.stores.base import Store
from callbackkit.webhooks.guard import Guard
from callbackkit.webhooks.sender import Sender, WebhookRequest, WebhookResponse
from callbackkit.webhooks.transport import WebhookTransport
from tests.webhooks.rig import Names, Receiver, answer, development, in_each_way, sending, step

pytestmark = pytest.mark.real_server

KEY = "c2VjcmV0LWtleS1vZi0zMi1ieXRlcy0tLS0tLS0tLS0="
HEADER = "h3ader-t0ken-4711"
QUERY = "qu3ry-t0ken-0815"
OPTION = "0ption-t0ken-2342"
BODY = "answer-of-the-receiver"
SECRETS = (KEY, b64decode(KEY).decode(), HEADER, QUERY, OPTION)


class Keeping(Observer):
    """Keeps what is sent, and the error it ended with."""

    def __init__(self) -> None:
        self.deliveries: list[Delivery] = []
        self.errors: list[BaseException] = []

    def attempting(self, delivery: Delivery, method: str) -> Any:
        self.deliveries.append(delivery)
        return lambda error: None if error is None else self.errors.append(error)


def logged(records: list[logging.LogRecord]) -> Iterator[str]:
    """All that a handler could write of a record, whatever its format."""
    formatter = logging.Formatter()
    for record in records:
        yield formatter.format(record)
        yield repr(vars(record))


def chain(error: BaseException | None) -> Iterator[str]:
    """The text and ``repr`` of an error, and of what led to it."""
    while error is not None:
        yield "".join(traceback.format_exception(error))
        yield repr(error)
        yield repr(error.args)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


FAULTS = [
    500,
    answer(500, body=f"{BODY} {HEADER}".encode()),
    answer(302, headers={"Location": "http://127.0.0.1:1/"}),
    answer(429, headers={"Retry-After": "0"}),
    step("Reset"),
    step("Hang"),
    step("Garbage", data=b"broken\r\n\r\n"),
]
# Libraries show these in their own logs, at DEBUG, as they show all that is answered.
ECHOES = [
    answer(302, headers={"Location": f"http://127.0.0.1:1/?{QUERY}"}),
    step("Garbage", data=f"{BODY} {QUERY}\r\n\r\n".encode()),
    step("Garbage", data=f"HTTP/1.1 500 {HEADER}\r\nbroken {HEADER}\r\n\r\n".encode()),
]


@in_each_way
async def test_secrets_are_told_to_nobody_but_the_receiver(
    store: Store,
    receiver: Receiver,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.DEBUG)
    for name in ("aiohttp", "httpx2", "httpcore2", "asyncio", "callbackkit"):
        caplog.set_level(logging.DEBUG, logger=name)
    names = Names(monkeypatch)
    names.say("nowhere.test")
    names.say("inside.test", "169.254.169.254")
    keeping = Keeping()
    transport = development(timeout=0.5)
    query = f"/hook?token={QUERY}"
    config = {
        "webhook_secret": f"whsec_{KEY}",
        "headers": {"Authorization": f"Bearer {HEADER}"},
        "options": {"key": OPTION},
    }
    told: list[str] = []
    async with sending(store, transport) as agent:
        agent.manager.observers.add(keeping)
        await receiver.script(*FAULTS, 204)
        sessions = [
            await agent.session(receiver.url(query), **config),
            await agent.session(
                receiver.url(query, host="nowhere.test"), retry_attempts=0, **config
            ),
            await agent.session(
                receiver.url(query, host="inside.test"), retry_attempts=0, **config
            ),
            await agent.session(receiver.url(query, scheme="https"), retry_attempts=0, **config),
        ]
        for session in sessions:
            await agent.emit(session, 1)
            await agent.until_settled(session)
        await receiver.otherwise(410)
        await agent.emit(sessions[0], 2)
        await agent.until_settled(sessions[0])
        for session in sessions:
            told += map(repr, [session, session.config, session.config.shown()])
            told += map(repr, await session.attempts())
            told += map(repr, await session.dead_letters())
            told.append(repr(dict(await session.stats())))
        told += [repr(each) + repr(each.data) for each in agent.told]
        told += map(repr, [agent.manager, agent.store, transport, transport.guard])
        told += map(repr, keeping.deliveries)
        sender = vars(transport).get("_sender")
        told.append(repr(sender))
    told += map(repr, keeping.errors)
    told += map(str, keeping.errors)
    told += logged(caplog.records)
    everything = "\n".join(told)
    for secret in SECRETS:
        assert secret not in everything, excerpt(everything, secret)
    # It did go there.
    requests = await receiver.arrived()
    assert {each.headers["authorization"] for each in requests} == {f"Bearer {HEADER}"}
    assert {each.query for each in requests} == {f"token={QUERY}"}


def excerpt(text: str, secret: str) -> str:
    place = text.index(secret)
    return text[max(0, place - 300) : place + 100]


@in_each_way
async def test_the_error_of_an_attempt_leads_to_no_secret(store: Store, receiver: Receiver) -> None:
    """Not by what caused it either: whoever observes attempts may log it as it is."""
    keeping = Keeping()
    async with sending(store, timeout=0.5) as agent:
        agent.manager.observers.add(keeping)
        await receiver.script(*FAULTS, *ECHOES, 204)
        session = await agent.session(
            receiver.url(f"/hook?token={QUERY}"),
            webhook_secret=f"whsec_{KEY}",
            headers={"Authorization": f"Bearer {HEADER}"},
        )
        await agent.emit(session, 1)
        await agent.until_settled(session)
    # One reset was of a connection that had been used before.
    assert len(keeping.errors) == len(FAULTS) + len(ECHOES) - 1
    told = "\n".join(each for error in keeping.errors for each in chain(error))
    for secret in SECRETS:
        assert secret not in told, excerpt(told, secret)


@pytest.mark.parametrize(
    "asked",
    [
        {"webhook_url": f"http://u:{QUERY}@a.test/"},
        {"webhook_url": f"ftp://a.test/?{QUERY}"},
        {"webhook_url": f"http://a.test/?{QUERY}#"},
        {"webhook_url": f"http://a.test/?{QUERY} x"},
        {"webhook_url": f"http://127.0.0.1/?{QUERY}"},
        {"webhook_url": f"http://[{QUERY}/"},
        {"webhook_url": f"http://a.test:{QUERY}/"},
        {"webhook_url": "https://a.test/", "webhook_secret": HEADER},
        {"webhook_url": "https://a.test/", "webhook_secret": f"whsec_{HEADER}"},
        {"webhook_url": "https://a.test/", "headers": {"x": f"{HEADER}\n"}},
        {"webhook_url": "https://a.test/", "headers": {f"x {HEADER}": ""}},
        {"webhook_url": "https://a.test/", "headers": HEADER},
    ],
)
def test_what_is_refused_is_not_repeated(asked: dict[str, Any]) -> None:
    transport = WebhookTransport()
    with pytest.raises(ConfigError) as caught:
        transport.check(CallbackConfig.of(asked))
    text = "".join(traceback.format_exception(caught.value)) + repr(caught.value.args)
    # The line of this test that raises shows no value of its own.
    for secret in SECRETS:
        assert secret not in text


class Loud(Sender):
    """A sender of one's own that fails with all it knows."""

    async def start(self, guard: Guard) -> None:
        pass

    async def send(self, request: WebhookRequest) -> WebhookResponse:
        raise OSError(f"{request.url} {dict(request.headers)}")

    async def aclose(self) -> None:
        pass


@in_each_way
async def test_what_a_sender_of_ones_own_lets_out_is_masked(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """In what is stored and logged: an error of somebody else's may say anything."""
    caplog.set_level(logging.DEBUG)
    transport = development(sender=Loud())
    async with sending(store, transport) as agent:
        session = await agent.session(
            f"http://127.0.0.1:9/?{QUERY}",
            retry_attempts=0,
            webhook_secret=f"whsec_{KEY}",
            headers={"Authorization": f"Bearer {HEADER}"},
        )
        await agent.emit(session, 1)
        await agent.until_settled(session)
        told = repr(await session.attempts()) + repr(await session.dead_letters())
        told += repr([each.data for each in agent.told])
    told += "\n".join(logged(caplog.records))
    for secret in SECRETS:
        assert secret not in told, excerpt(told, secret)


def test_requests_and_answers_show_no_secret() -> None:
    request = WebhookRequest(
        f"https://a.test/?token={QUERY}", {"authorization": HEADER}, OPTION.encode()
    )
    response = WebhookResponse(500, {"x": HEADER}, OPTION.encode())
    for secret in SECRETS:
        assert secret not in f"{request!r} {request} {response!r}"
