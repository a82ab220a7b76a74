"""Where webhooks do not go: what a name leads to is judged when it is dialled, each time."""

import ssl
from pathlib import Path
from typing import Any

import pytest
import trustme

from callbackkit import CallbackManager, ConfigError
from callbackkit.errors import CallbackKitError
from callbackkit.http.starlette import allow_anyone, create_app
from callbackkit.stores.base import Store
from callbackkit.stores.memory import MemoryStore
from callbackkit.webhooks.sender import Sender
from callbackkit.webhooks.transport import WebhookTransport
from tests.http.rig import client_of
from tests.webhooks.rig import (
    QUICK,
    Agent,
    Names,
    Receiver,
    ReceiverProcess,
    Watched,
    development,
    in_each_way,
    sending,
)

pytestmark = pytest.mark.real_server

FORBIDDEN = "ForbiddenAddressError: the address is not public"


def strict(**options: Any) -> WebhookTransport:
    """A transport that goes to public addresses only, at any port, so that ports hide nothing."""
    told = {"require_https": False, "ports": None, "retry": QUICK, "breaker": None}
    return WebhookTransport(**{**told, **options})


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    return Names(monkeypatch)


# Names that lead elsewhere.


@in_each_way
async def test_a_name_that_does_not_exist_yet_is_tried_again(
    store: Store, receiver: Receiver, names: Names
) -> None:
    names.say("hooks.test")
    async with sending(store) as agent:
        session = await agent.session(receiver.url(host="hooks.test"))
        await agent.emit(session, 1, 2)
        await agent.until_tried(session, 2)
        names.say("hooks.test", "127.0.0.1")
        await agent.until_settled(session)
        errors = await agent.errors(session)
    assert set(errors[:-2]) == {"SendError: the host was not found"}
    assert {each.headers["host"] for each in await receiver.arrived()} == {
        f"hooks.test:{receiver.port}"
    }
    agent.history.check(await receiver.arrived())


@in_each_way
async def test_a_name_that_was_public_when_it_was_registered_leads_nowhere_else_later(
    store: Store, receiver: Receiver, names: Names
) -> None:
    """It is recorded, tried again for a while, and then a dead letter."""
    names.say("rebound.test", "93.184.216.34")
    async with sending(store, strict()) as agent:
        session = await agent.session(receiver.url(host="rebound.test"), retry_attempts=2)
        # Nobody asked while it was registered, so nothing that was found out is relied upon.
        assert names.asked == []
        names.say("rebound.test", "127.0.0.1")
        await agent.emit(session, 1)
        await agent.until_settled(session)
        assert await agent.errors(session) == [FORBIDDEN] * 3
        [letter] = await session.dead_letters()
        assert letter.reason == FORBIDDEN
    assert await receiver.arrived() == []


@in_each_way
async def test_a_name_is_judged_anew_by_each_attempt(
    store: Store, receiver: Receiver, names: Names
) -> None:
    """The connection that was there is not used for what it leads to now, nor the other way."""
    names.say("moving.test", "127.0.0.1")
    async with sending(store, strict(allowed_networks=["127.0.0.1/32"])) as agent:
        session = await agent.session(receiver.url(host="moving.test"), retry_attempts=0)
        await agent.emit(session, 1)
        await agent.until_settled(session)
    names.say("moving.test", "127.0.0.2")
    other = Watched(MemoryStore())
    async with sending(other, strict(allowed_networks=["127.0.0.1/32"])) as agent:
        session = await agent.session(receiver.url(host="moving.test"), retry_attempts=0)
        await agent.emit(session, 2)
        await agent.until_settled(session)
        assert await agent.errors(session) == [FORBIDDEN]
    assert [each.numbers for each in await receiver.arrived()] == [[1]]


@in_each_way
async def test_of_several_addresses_only_those_allowed_are_dialled(
    store: Store, receiver: Receiver, names: Names
) -> None:
    names.say("mixed.test", "169.254.169.254", "10.0.0.1", "127.0.0.1", "::1")
    names.say("bad.test", "127.0.0.1", "169.254.169.254", "::ffff:127.0.0.1", "fd00:ec2::254")
    async with sending(store, strict(allowed_networks=["127.0.0.1/32"])) as agent:
        session = await agent.session(receiver.url(host="mixed.test"))
        await agent.emit(session, 1, 2)
        await agent.until_settled(session)
        assert await agent.errors(session) == ["", ""]
    assert [each.numbers for each in await receiver.arrived()] == [[1], [2]]
    other = MemoryStore()
    async with sending(other, strict()) as agent:
        session = await agent.session(receiver.url(host="bad.test"), retry_attempts=0)
        await agent.emit(session, 3)
        await agent.until_settled(session)
        assert await agent.errors(session) == [FORBIDDEN]
    assert len(await receiver.arrived()) == 2


# Disguises.

# Each of these is this machine, or a network of nobody, for somebody's resolver or socket.
HOSTS = [
    "127.0.0.1", "127.1", "127.0.1", "127.255.255.254", "2130706433", "0x7f000001", "0x7f.0.0.1",
    "0x7f.1", "0177.0.0.1", "017700000001", "00000177.0.0.1", "127.0.0.1.", "127.000.000.001",
    "0", "0.0.0.0", "0x0", "localhost", "LOCALHOST", "localhost.", "a.localhost",
    "\uff11\uff12\uff17.0.0.1", "127\u30020\u30020\u30021", "\u2460\u2461\u2466.0.0.1",
    "\u24db\u24de\u24d2\u24d0\u24db\u24d7\u24de\u24e2\u24e3", "%31%32%37.0.0.1",
    "127.0.0.1%00.example.com",
    "[::1]", "[::]", "[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]",
    "[0:0:0:0:0:ffff:127.0.0.1]", "[::127.0.0.1]", "[::7f00:1]", "[::ffff:0:127.0.0.1]",
    "[64:ff9b::127.0.0.1]", "[64:ff9b::7f00:1]", "[64:ff9b:1::7f00:1]", "[2002:7f00:1::]",
    "[2002:7f00:1::1]", "[2001:0:7f00:1::]", "[2001::80ff:fffe]", "[fe80::1]", "[fe80::1%25lo]",
    "[::1%25lo]", "[fec0::1]", "[fc00::1]", "[fd00:ec2::254]", "[ff02::1]", "[2001:db8::1]",
    "[3fff::1]", "[5f00::1]", "[100::1]", "[::ffff:169.254.169.254]", "[64:ff9b::a9fe:a9fe]",
    "[2002:a9fe:a9fe::1]", "169.254.169.254", "2852039166", "0xa9fea9fe", "168.63.129.16",
    "100.100.100.200", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.0.1", "100.64.0.1",
    "192.0.0.8", "192.0.2.1", "192.88.99.1", "198.18.0.1", "198.51.100.1", "203.0.113.1",
    "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255", "[::ffff:10.0.0.1]",
]  # fmt: skip


async def tries(agent: Agent, url: str, **config: Any) -> str:
    """Post to a URL if it can be registered; return what became of that."""
    try:
        session = await agent.session(url, retry_attempts=0, **config)
    except ConfigError as exc:
        return f"refused: {exc.field}"
    await agent.emit(session, 1)
    await agent.until_settled(session)
    [error] = await agent.errors(session)
    return error


@in_each_way
async def test_no_disguise_of_a_forbidden_address_is_dialled(
    store: Store, receiver: Receiver
) -> None:
    """They are refused when they are registered or, if the resolver knows better, when dialled."""
    await receiver.otherwise(204)
    async with sending(store, strict(timeout=3.0)) as agent:
        found = {host: await tries(agent, receiver.url(host=host)) for host in HOSTS}
    allowed = {"refused: webhook_url", FORBIDDEN, "SendError: the host was not found"}
    assert {host: text for host, text in found.items() if text not in allowed} == {}
    assert await receiver.arrived() == []


# As addresses that a resolver gives.
ADDRESSES = [
    "127.0.0.1", "127.0.0.2", "0.0.0.0", "10.0.0.1", "100.64.0.1", "169.254.169.254", "172.16.0.1",
    "192.168.1.1", "192.0.0.8", "192.88.99.1", "198.18.0.1", "168.63.129.16", "224.0.0.1",
    "255.255.255.255", "::1", "::", "::ffff:127.0.0.1", "::127.0.0.1", "64:ff9b::7f00:1",
    "64:ff9b:1::7f00:1", "2002:7f00:1::", "2001:0:7f00:1::1", "fe80::1", "fec0::1", "fc00::1",
    "fd00:ec2::254", "ff02::1", "2001:db8::1", "3fff::1", "5f00::1", "100::1", "::ffff:0:7f00:1",
]  # fmt: skip


@in_each_way
async def test_no_forbidden_address_that_a_name_leads_to_is_dialled(
    store: Store, receiver: Receiver, names: Names
) -> None:
    for number, address in enumerate(ADDRESSES):
        names.say(f"name{number}.test", address)
    async with sending(store, strict(timeout=3.0)) as agent:
        found = {
            address: await tries(agent, receiver.url(host=f"name{number}.test"))
            for number, address in enumerate(ADDRESSES)
        }
    assert {address: text for address, text in found.items() if text != FORBIDDEN} == {}
    assert await receiver.arrived() == []


@in_each_way
async def test_a_public_address_is_dialled_at_no_port_but_those_allowed(
    store: Store, receiver: Receiver, names: Names
) -> None:
    """A port is told from a public address before anything is sent there."""
    names.say("public.test", "93.184.216.34")
    async with sending(store, strict(ports={443}, timeout=3.0)) as agent:
        assert await tries(agent, "http://93.184.216.34:22/") == "refused: webhook_url"
        found = await tries(agent, "http://public.test:22/")
    assert found in {"refused: webhook_url", "ForbiddenAddressError: the port is not allowed"}


@in_each_way
async def test_proxies_and_credentials_of_the_environment_are_not_used(
    store: Store,
    receiver: Receiver,
    receivers: ReceiverProcess,
    names: Names,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    trap = await receivers.open()
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, trap.url(""))
    netrc = tmp_path / "netrc"
    netrc.write_text("machine hooks.test login me password hunter2\ndefault login a password b\n")
    monkeypatch.setenv("NETRC", str(netrc))
    names.say("hooks.test", "127.0.0.1")
    async with sending(store) as agent:
        session = await agent.session(receiver.url(host="hooks.test"))
        await agent.emit(session, 1)
        await agent.until_settled(session)
    assert await trap.arrived() == []
    assert len(await receiver.arrived()) == 1
    assert "authorization" not in (await receiver.arrived())[0].headers


# Certificates.


def trusting(backend: str, authority: trustme.CA) -> Sender:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    if backend == "asyncio":
        from callbackkit.webhooks.aiohttp import AiohttpSender

        return AiohttpSender(ssl_context=context)
    from callbackkit.webhooks.httpx2 import Httpx2Sender

    return Httpx2Sender(ssl_context=context)


@in_each_way
async def test_a_certificate_has_to_be_that_of_the_host_and_one_that_is_trusted(
    store: Store,
    receivers: ReceiverProcess,
    names: Names,
    tmp_path: Path,
    anyio_backend: str,
) -> None:
    """The host is that of the URL, whatever address is dialled for it."""
    authority, stranger = trustme.CA(), trustme.CA()
    paths = [tmp_path / "ours.pem", tmp_path / "theirs.pem"]
    for issuer, path in zip((authority, stranger), paths, strict=True):
        issuer.issue_cert("hooks.test").private_key_and_cert_chain_pem.write_to_path(path)
    ours, theirs = [await receivers.open(path) for path in paths]
    for name in ("hooks.test", "other.test"):
        names.say(name, "127.0.0.1")
    transport = development(sender=trusting(anyio_backend, authority))
    async with sending(store, transport) as agent:
        good = await agent.session(ours.url(host="hooks.test", scheme="https"))
        await agent.emit(good, 1)
        await agent.until_settled(good)
        wrong = [
            await tries(agent, receiver.url(host=host, scheme="https"))
            for receiver, host in (
                (ours, "other.test"),
                (ours, "127.0.0.1"),
                (theirs, "hooks.test"),
            )
        ]
    host = "SendError: the certificate is not valid for the host"
    assert wrong[:2] == [host, host]
    assert wrong[2].startswith("SendError: ")
    assert "certificate" in wrong[2]
    assert [each.numbers for each in await ours.arrived()] == [[1]]
    assert await theirs.arrived() == []


@in_each_way
async def test_what_speaks_no_tls_is_a_failure(store: Store, receiver: Receiver) -> None:
    async with sending(store, timeout=0.5) as agent:
        found = await tries(agent, receiver.url(scheme="https"))
    assert found.startswith(("SendError: ", "TimeoutError: "))
    assert await receiver.arrived() == []


# Injection.

EVIL = "x\r\nX-Evil: 1\r\n\r\nPOST / HTTP/1.1"
BAD_HEADERS: list[dict[str, Any]] = [
    {"x-a": EVIL},
    {"x-a": "a\nb"},
    {"x-a": "a\rb"},
    {"x-a": "a\0b"},
    {"x-a": "caf\xe9"},
    {"x-a": "\u010a\u010d"},
    {"x-a": " a"},
    {"x-a": "a" * 5_000},
    {EVIL: "a"},
    {"x a": "a"},
    {"x:a": "a"},
    {"": "a"},
    {"x-\u010a": "a"},
    {"Host": "evil.test"},
    {"content-length": "0"},
    {"Transfer-Encoding": "chunked"},
    {"Connection": "upgrade"},
    {"Webhook-Id": "1"},
    {"webhook-signature": "v1,"},
    {"Proxy-Authorization": "a"},
    {"Content-Type": "text/html"},
    {"User-Agent": "a"},
    {"Expect": "100-continue"},
    {"X-A": "1", "x-a": "2"},
]
BAD_URLS = ["/hook\r\nX-Evil: 1", "/ho ok", "/hook\0", "/hook\t", "/\\evil.test", "/#\r\n"]


async def test_nothing_can_be_smuggled_into_a_request(receiver: Receiver) -> None:
    """Headers, URLs, event types and ids of sessions: refused, and nothing is sent."""
    async with sending(MemoryStore()) as agent:
        for headers in BAD_HEADERS:
            with pytest.raises(ConfigError, match=r"^headers") as caught:
                await agent.session(receiver.url(), headers=headers)
            assert "\n" not in str(caught.value)
        for path in BAD_URLS:
            with pytest.raises(ConfigError, match=r"^webhook_url"):
                await agent.session(receiver.url(path))
        session = await agent.session(receiver.url())
        for event_type in (EVIL, "a\nb", "a\0", ""):
            with pytest.raises((CallbackKitError, ValueError)):
                await session.emit(event_type, {})
            with pytest.raises(LookupError):
                await agent.manager.emit(f"{session.id}{event_type or EVIL}", "step", {})
        assert (await session.stats()).events_sent == 0
    assert await receiver.arrived() == []


def test_nothing_can_be_smuggled_into_a_request_over_http(receivers: ReceiverProcess) -> None:
    manager = CallbackManager(transports=[development()])
    with client_of(create_app(manager, allow_anyone)) as client:
        portal = client.portal
        assert portal is not None
        receiver: Receiver = portal.call(receivers.open)
        for headers in BAD_HEADERS:
            asked = {"webhook_url": receiver.url(), "headers": headers}
            answer = client.post("/callbacks/sessions", json=asked)
            assert 400 <= answer.status_code < 500, headers
        for path in BAD_URLS:
            answer = client.post("/callbacks/sessions", json={"webhook_url": receiver.url(path)})
            assert 400 <= answer.status_code < 500, path
        answer = client.post("/callbacks/sessions", json={"webhook_url": receiver.url()})
        made = answer.json()["session_id"]
        for event_type in (EVIL, "a\nb", "a\0", ""):
            answer = client.post(
                f"/callbacks/sessions/{made}/test", json={"event_type": event_type}
            )
            assert 400 <= answer.status_code < 500, event_type
        for session_id in (f"{made}%0d%0aX-Evil:%201", "%0d%0a", "..%2f..", "%00"):
            answer = client.post(
                f"/callbacks/sessions/{session_id}/test", json={"event_type": "step"}
            )
            assert 400 <= answer.status_code < 500, session_id
            assert "x-evil" not in answer.headers
        assert portal.call(receiver.arrived) == []
