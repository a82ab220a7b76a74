"""Sessions delivered by webhook: a signed POST of each event, or of some together."""

from __future__ import annotations

import gzip
import hashlib
import inspect
import json
import logging
import math
import re
import time
from collections.abc import Callable, Collection, Iterable
from datetime import UTC
from email.utils import parsedate_to_datetime
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final, Self, TypedDict, Unpack, cast
from urllib.parse import urlsplit

import anyio

from callbackkit.delivery.policy import CircuitBreaker, RetryPolicy
from callbackkit.delivery.transport import Delivery, DeliveryConfig, Transport, by_name
from callbackkit.dispatch.concurrency import on_asyncio
from callbackkit.errors import ConfigError, Gone, Rejected, Retry, SendError
from callbackkit.events import EventType
from callbackkit.sessions.config import CallbackConfig
from callbackkit.webhooks.guard import PORTS, Guard
from callbackkit.webhooks.sender import Sender, WebhookRequest, WebhookResponse
from callbackkit.wire.envelope import encode_event, encode_events
from callbackkit.wire.signature import Signer

__all__ = ["WebhookTransport"]

_logger = logging.getLogger("callbackkit.webhooks")

# Bytes of a body above which it is compressed, where that was asked for.
_WORTH_IT: Final = 1_024
# Bytes of a body above which compressing it would hold up the event loop.
_LARGE: Final = 131_072
_LEVEL: Final = 6
# Seconds before the deadline of an attempt from which no more of an answer's body is waited for.
_HEADROOM: Final = 0.1

# Gateways that found nobody behind them, and who asked for less: all that goes there waits.
_THROTTLING: Final = frozenset({429, 502, 503, 504})

# Configurations whose requests are prepared.
_MOST_PREPARED: Final = 1_024

_BREAKER: Final = CircuitBreaker()

_LOOPBACK: Final = ("127.0.0.0/8", "::1/128")

_Networks = Iterable[str | IPv4Network | IPv6Network | IPv4Address | IPv6Address]


class _Options(TypedDict, total=False):
    allowed_networks: _Networks
    require_https: bool
    ports: Collection[int] | None
    timeout: float
    retry: RetryPolicy | None
    breaker: CircuitBreaker | None
    concurrency: int
    sender: Sender | None
    signing_key: str | None
    is_permanent: Callable[[WebhookResponse], bool] | None
    clock: Callable[[], float]


class WebhookTransport(Transport):
    """Posts events to the ``webhook_url`` of their session, signed by Standard Webhooks 1.0.0.

    A single event is posted as its JSON; several together as ``{"events": [...]}``. Give it to the
    manager: ``CallbackManager(transports=[WebhookTransport()])``.

    A status from 200 to 299 is a success. 410 disables the endpoint. 429, 502, 503 and 504 hold
    back all that goes there. Everything else is tried again: other statuses, redirects, which are
    not followed, and no answer.

    Sessions with the same URL, headers, timeout and rate limit have one endpoint: they share its
    breaker, its rate and its concurrency.

    Args:
        allowed_networks: Networks that webhooks may go to although they are not public, such as
            ``"10.1.0.0/16"``; there at any port.
        require_https: Refuse plain HTTP.
        ports: Ports that webhooks may go to elsewhere; ``None`` for any.
        timeout: Seconds an attempt may take in all: connecting, sending, and the answer.
        retry: When to try again.
        breaker: When to leave an endpoint alone; ``None`` for never.
        concurrency: Attempts at one endpoint at the same time, by each process.
        sender: Who posts; by default aiohttp on asyncio if it is installed, otherwise httpx2.
        signing_key: An Ed25519 key, ``whsk_...``, that everything is signed with besides the
            secret of its session. Whoever verifies needs its public half only.
        is_permanent: Told an answer that is neither a success nor 410, says whether trying again
            is no use: then the events become a dead letter at once. It must be quick; what it
            raises is logged once, and taken for no.
        clock: Seconds since 1970, for timestamps.

    Raises:
        TypeError: Something of the wrong type.
        ValueError: A number out of its range; what is no network, port or key.
        ImportError: Neither aiohttp nor httpx2 is installed, and there is no *sender*; or there is
            a *signing_key* without cryptography.

    Attributes:
        guard: Says which addresses may be dialled.
    """

    name = "webhook"
    only_when_named: Collection[str] = frozenset({EventType.STREAMING_CHUNK.value})

    def __init__(
        self,
        *,
        allowed_networks: _Networks = (),
        require_https: bool = True,
        ports: Collection[int] | None = PORTS,
        timeout: float = 15.0,
        retry: RetryPolicy | None = None,
        breaker: CircuitBreaker | None = _BREAKER,
        concurrency: int = 8,
        sender: Sender | None = None,
        signing_key: str | None = None,
        is_permanent: Callable[[WebhookResponse], bool] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.guard: Guard = Guard(
            allowed_networks=allowed_networks, require_https=require_https, ports=ports
        )
        self.timeout: float = timeout
        self.retry: RetryPolicy = RetryPolicy() if retry is None else retry
        self.breaker: CircuitBreaker | None = breaker
        self.concurrency: int = concurrency
        by_name([self])
        self._given = _checked_sender(sender)
        self._sender: Sender | None = None
        self._signing_key = _checked_key(signing_key)
        self._is_permanent = _checked_predicate(is_permanent)
        self._has_told = False
        self._prepared: dict[int, _Prepared] = {}
        self._clock = _checked_clock(clock)

    @classmethod
    def for_development(cls, **options: Unpack[_Options]) -> Self:
        """Return one that may go to this machine too, without HTTPS.

        Args:
            **options: As for the class; *allowed_networks* come on top of loopback.
        """
        given: _Options = {"require_https": False, **options}
        networks = options.get("allowed_networks", ())
        # One text is left to the guard, which tells that there must be several.
        if not isinstance(networks, str):
            given["allowed_networks"] = (*_LOOPBACK, *networks)
        return cls(**given)

    def __repr__(self) -> str:
        state = "not started" if self._sender is None else f"by {type(self._sender).__name__}"
        return f"<{type(self).__name__} {self.name!r}, {state}>"

    # What the engine asks.

    def check(self, config: DeliveryConfig) -> None:
        """Refuse a URL that may never be posted to; a host name is judged when it is dialled.

        Raises:
            ConfigError: As said.
        """
        asked = _of(config)
        if asked.webhook_url is None:
            raise ConfigError("webhook_url", f"is required for the delivery method {self.name!r}")
        if asked.webhook_secret is None and self._signing_key is None:
            raise ConfigError(
                "webhook_secret", f"is required for the delivery method {self.name!r}"
            )
        self.guard.check_url(asked.webhook_url)
        if self._given is None and not on_asyncio() and find_spec("httpx2") is None:
            raise ConfigError(
                "delivery_method", "webhooks on trio need httpx2: install callbackkit[webhook-trio]"
            )

    def endpoint(self, session_id: str, config: DeliveryConfig) -> str:
        """Name where a session is delivered to: the host, and a digest of the rest."""
        del session_id
        return endpoint_name(_of(config), self.name)

    async def start(self) -> None:
        """Get connections ready."""
        if self._sender is None:
            # Made here: which one it is depends on the event loop.
            self._sender = _new_sender() if self._given is None else self._given
        await self._sender.start(self.guard)

    async def aclose(self) -> None:
        """Close connections."""
        sender, self._sender = self._sender, None
        self._prepared.clear()
        if sender is not None:
            await sender.aclose()

    async def send(self, delivery: Delivery) -> None:
        """Post it; return when the answer is a success."""
        if self._sender is None:
            raise RuntimeError("the transport is not started; the manager does that")
        began = anyio.current_time()
        prepared = self._prepared.get(id(delivery.config))
        if prepared is None or prepared.config is not delivery.config:
            prepared = self._prepare(_of(delivery.config))
        body = _body(delivery)
        is_compressed = prepared.config.compression == "gzip" and len(body) > _WORTH_IT
        if is_compressed:
            body = await _compressed(body)
        headers = prepared.headers(delivery.id, self._clock(), body)
        if is_compressed:
            headers["content-encoding"] = "gzip"
        timeout = self.timeout if prepared.config.timeout is None else prepared.config.timeout
        answered_by = began + timeout - min(_HEADROOM, timeout / 4)
        answer = await self._sender.send(WebhookRequest(prepared.url, headers, body, answered_by))
        if not 200 <= answer.status < 300:
            self._refuse(answer)

    def _prepare(self, config: CallbackConfig) -> _Prepared:
        """Note what all requests of a configuration have; the engine hands on the same object."""
        if len(self._prepared) >= _MOST_PREPARED:
            self._prepared.clear()
        prepared = self._prepared[id(config)] = _Prepared(config, self._signing_key)
        return prepared

    # The answer.

    def _refuse(self, answer: WebhookResponse) -> None:
        """Raise what the engine is to do about an answer that is no success."""
        reason = f"HTTP {answer.status}"
        if answer.status == 410:
            raise Gone(reason)
        if self._never_again(answer):
            raise Rejected(reason)
        after = retry_after(answer.headers.get("retry-after"), self._clock())
        if after is not None or answer.status in _THROTTLING:
            raise Retry(after, reason, throttles=True)
        raise SendError(reason)

    def _never_again(self, answer: WebhookResponse) -> bool:
        if self._is_permanent is None:
            return False
        try:
            return bool(self._is_permanent(answer))
        except Exception:
            # Rather too often than never: what is a dead letter has to be sent by hand.
            if not self._has_told:
                _logger.exception("is_permanent failed; it is told once")
                self._has_told = True
            return False


class _Prepared:
    """What all requests of one configuration have.

    Attributes:
        config: The configuration; held, so that no other one has its ``id``.
        url: Where they go.
    """

    __slots__ = ("_always", "_key", "_signer", "config", "url")

    def __init__(self, config: CallbackConfig, signing_key: str | None) -> None:
        self.config: CallbackConfig = config
        self.url: str = config.webhook_url or ""
        self._key = () if signing_key is None else (signing_key,)
        # Ours come last. No configuration has one of these names, whatever its case.
        self._always = {
            **config.headers,
            "content-type": "application/json",
            "user-agent": _user_agent(),
        }
        # Which secrets sign is a question of time only after a rotation.
        has_one = not config.retired_secrets
        self._signer = Signer((*config.secrets_at(0.0), *self._key)) if has_one else None

    def headers(self, delivery_id: str, now: float, body: bytes) -> dict[str, str]:
        """Return the headers of an attempt that begins now."""
        signer = self._signer
        if signer is None:
            signer = Signer((*self.config.secrets_at(now), *self._key))
        timestamp = int(now)
        return {
            **self._always,
            "webhook-id": delivery_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": signer.sign(id=delivery_id, timestamp=timestamp, body=body),
        }


def endpoint_name(config: CallbackConfig, method: str) -> str:
    """Return the name of the endpoint of a webhook."""
    headers = tuple(sorted(config.headers.items()))
    terms = (config.timeout, config.rate_limit)
    return _endpoint_name(method, config.webhook_url or "", headers, terms)


# A pure function; asked for with each claim.
@lru_cache(maxsize=1_024)
def _endpoint_name(
    method: str,
    url: str,
    headers: tuple[tuple[str, str], ...],
    terms: tuple[float | None, float | None],
) -> str:
    # Nobody is to find a token in the query by trying: what is hashed has all of the URL in it.
    digest = hashlib.sha256(json.dumps([url, headers, terms]).encode()).hexdigest()
    return f"{method}:{urlsplit(url).hostname}:{digest[:32]}"


def _of(config: DeliveryConfig) -> CallbackConfig:
    return cast(CallbackConfig, config)


def _body(delivery: Delivery) -> bytes:
    events = delivery.events
    return encode_event(events[0]) if len(events) == 1 else encode_events(events)


async def _compressed(body: bytes) -> bytes:
    if len(body) < _LARGE:
        return gzip.compress(body, _LEVEL, mtime=0)
    return await anyio.to_thread.run_sync(lambda: gzip.compress(body, _LEVEL, mtime=0))


_DIGITS: Final = re.compile(r"[0-9]+")


def retry_after(text: str | None, now: float) -> float | None:
    """Return the seconds that ``Retry-After`` asks for; ``None`` if it asks for nothing.

    A time that is not ahead asks for nothing: to whoever says 0 while he restarts, all attempts
    would be made in one second.

    Args:
        text: Seconds, or a date.
        now: Seconds since 1970.

    Source:
        RFC 9110, section 10.2.3.
    """
    if text is None:
        return None
    text = text.strip()
    # Sixteen digits are as good as for ever, and none too many for a float.
    after = float(text[:16]) if _DIGITS.fullmatch(text) else _seconds_until(text[:64], now)
    return after if 0 < after < math.inf else None


def _seconds_until(date: str, now: float) -> float:
    try:
        moment = parsedate_to_datetime(date)
        # A date without a zone is of none but UTC there.
        moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
        return moment.timestamp() - now
    except (ValueError, OverflowError, TypeError, IndexError):
        return 0.0


@lru_cache(maxsize=1)
def _user_agent() -> str:
    try:
        return f"callbackkit/{version('callbackkit')}"
    except PackageNotFoundError:
        # It runs from a folder, and was not installed.
        return "callbackkit"


# What the constructor takes.


def _checked_sender(sender: Sender | None) -> Sender | None:
    if sender is None:
        if find_spec("aiohttp") is None and find_spec("httpx2") is None:
            raise ImportError(
                "webhooks need aiohttp or httpx2: install callbackkit[webhook], or for trio "
                "callbackkit[webhook-trio]"
            )
        return None
    if isinstance(sender, type):
        raise TypeError(f"sender must be an instance: write {sender.__name__}()")
    if not isinstance(sender, Sender):
        raise TypeError(f"sender must be a Sender, not {type(sender).__name__}")
    return sender


def _checked_key(key: str | None) -> str | None:
    if key is None:
        return None
    # What was given may be a secret, if not this one.
    if not isinstance(key, str):
        raise TypeError(f"signing_key must be a string, not {type(key).__name__}")
    if not key.startswith("whsk_"):
        raise ValueError("signing_key must be an Ed25519 key, 'whsk_' and base64")
    Signer(key)
    return key


def _checked_predicate(
    function: Callable[[WebhookResponse], bool] | None,
) -> Callable[[WebhookResponse], bool] | None:
    if function is None:
        return None
    if not callable(function):
        raise TypeError(f"is_permanent must be callable, not {type(function).__name__}")
    if inspect.iscoroutinefunction(function):
        raise TypeError("is_permanent must be a plain function: a coroutine is always true")
    return function


def _checked_clock(clock: Callable[[], float]) -> Callable[[], float]:
    if not callable(clock):
        raise TypeError(f"clock must be callable, such as time.time, not {type(clock).__name__}")
    return clock


# Who posts.


def _new_sender() -> Sender:
    if on_asyncio() and find_spec("aiohttp") is not None:
        from callbackkit.webhooks.aiohttp import AiohttpSender

        return AiohttpSender()
    from callbackkit.webhooks.httpx2 import Httpx2Sender

    return Httpx2Sender()
