"""The port of whatever posts a webhook: one request in; status, headers and a capped body out."""

from __future__ import annotations

import math
import socket
import ssl
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from typing import Final, TypeAlias, cast
from urllib.parse import quote, urlsplit

import anyio
import anyio.from_thread
import anyio.lowlevel
import attrs

from callbackkit.buffer import new_waiter
from callbackkit.errors import ConfigError, ForbiddenAddressError, SendError
from callbackkit.webhooks.guard import Guard, host_name

__all__ = [
    "IDLE",
    "MAX_ANSWER",
    "MOST_IDLE",
    "PATIENCE",
    "LookUp",
    "NameService",
    "Sender",
    "Target",
    "WebhookRequest",
    "WebhookResponse",
    "as_headers",
    "as_send_error",
    "check_keeping",
    "check_ssl_context",
    "look_up",
    "target_of",
]

MAX_ANSWER = 16_384
"""Most bytes of an answer's body that are read; what comes after is not."""

PATIENCE: Final = 1.0
"""Seconds that the body of an answer is waited for, once its status and headers are there."""

IDLE: Final = 30.0
"""Seconds that a connection is kept for the next request, unless told otherwise."""

MOST_IDLE: Final = 512
"""Idle connections that are kept, or hosts that they are kept for, unless told otherwise."""

LookUp: TypeAlias = Callable[[str], Iterable[str]]
"""Finds the addresses of a host name, as text, in the order they are to be tried. It runs in a
thread, and raises OSError for a name that has none."""

# Lookups at the same time. A name service that does not answer holds its thread for as long as
# the system tries, some 20 s: that is not to use up the threads of the application, which are few.
_LOOK_UPS: Final = 256


def _without_query(url: str) -> str:
    # It may hold a token.
    return repr(url.partition("?")[0])


@attrs.frozen
class WebhookRequest:
    """A POST to be made.

    Attributes:
        url: Where to; the guard has let it pass.
        headers: All of them but ``Host`` and ``Content-Length``, which the sender sets.
        body: The bytes, as they were signed.
        answered_by: When no more of an answer's body is waited for, by :func:`anyio.current_time`:
            before the caller gives up, as the status must not be lost with it.
    """

    url: str = attrs.field(repr=_without_query)
    headers: Mapping[str, str] = attrs.field(repr=False)
    body: bytes = attrs.field(repr=False)
    answered_by: float = attrs.field(repr=False, default=math.inf)

    def body_until(self) -> float:
        """Return when the rest of an answer is not waited for any longer."""
        return min(anyio.current_time() + PATIENCE, self.answered_by)


@attrs.frozen
class WebhookResponse:
    """What was answered.

    Attributes:
        status: As it came; 300 to 399 too, since nothing is followed.
        headers: Names in lower case; of several with one name, the last. None for a status from
            200 to 299.
        body: Its first :data:`MAX_ANSWER` bytes as they came, compressed if they were; of a slow or
            broken answer, those that came within :data:`PATIENCE` seconds. Empty for a status from
            200 to 299.
    """

    status: int
    headers: Mapping[str, str] = attrs.field(repr=False)
    body: bytes = attrs.field(repr=False, default=b"")


class Sender(ABC):
    """Posts webhooks; subclass it for an HTTP library of your own.

    Whoever implements it holds what :mod:`callbackkit.webhooks.transport` promises: every address
    that is dialled is put to the guard, redirects are not followed, proxies and credentials of the
    environment are not used, no cookies are kept, the certificate is that of the host, and no more
    than :data:`MAX_ANSWER` bytes of an answer are read.
    """

    @abstractmethod
    async def start(self, guard: Guard) -> None:
        """Get ready; starting twice is harmless.

        Args:
            guard: Who says which addresses may be dialled.
        """

    @abstractmethod
    async def send(self, request: WebhookRequest) -> WebhookResponse:
        """Post it, and return what was answered; the caller sets the deadline, by cancelling.

        With a status from 200 to 299 the request has arrived: what happens to the connection, or
        to the rest of the answer, after that changes nothing, and is not waited for long.

        Where an idle connection turns out to be closed, before anything of an answer came, the
        request is sent once more on a new one: whoever receives it may see it twice.

        Raises:
            ForbiddenAddressError: The guard let no address of the host pass.
            SendError: No answer came. The ``__cause__`` is the :exc:`OSError` that it was, if any;
                an exception of a library is none, for its text may have the URL, headers or
                what was answered in it.
        """

    @abstractmethod
    async def aclose(self) -> None:
        """Let go of connections; closing twice is harmless. What is being sent fails."""


# What senders share.


@attrs.frozen
class Target:
    """A URL taken apart, in ASCII.

    Attributes:
        scheme: ``"http"`` or ``"https"``.
        host: A name or an address, that of IPv6 without brackets.
        port: Given, or that of the scheme.
        path: The path and the query, as they were written; what is not ASCII is percent-encoded.
    """

    scheme: str
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """The host and, unless it is that of the scheme, the port; as ``Host`` has it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """The URL put together again."""
        return f"{self.scheme}://{self.authority}{self.path}"


_PORTS: Final = {"http": 80, "https": 443}
_ASCII: Final = "".join(map(chr, range(0x21, 0x7F)))


# A pure function; asked for with each request.
@lru_cache(maxsize=1_024)
def target_of(url: str) -> Target:
    """Take a URL apart.

    Raises:
        SendError: The host is no name that could be looked up.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    if not host.isascii():
        # What was judged is what is looked up.
        try:
            host = host_name(host)
        except ConfigError as exc:
            raise SendError(str(exc)) from None
    path = quote(parts.path or "/", safe=_ASCII)
    if parts.query:
        path = f"{path}?{quote(parts.query, safe=_ASCII)}"
    return Target(parts.scheme, host, parts.port or _PORTS[parts.scheme], path)


def look_up(host: str) -> list[str]:
    """Ask the system for the addresses of a host, in the order of RFC 6724."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


class NameService:
    """Finds the addresses of a host that may be dialled.

    Args:
        guard: Who says which.
        find: Who knows the addresses.
    """

    def __init__(self, guard: Guard, find: LookUp) -> None:
        self._guard = guard
        self._find = find
        self._limiter = anyio.CapacityLimiter(_LOOK_UPS)

    async def addresses(self, host: str, port: int) -> list[str]:
        """Look a host up, and leave out what the guard forbids.

        Raises:
            ForbiddenAddressError: That is all of them.
            SendError: The host has none.
        """
        try:
            found = await self._asked(host)
        # UnicodeError is a ValueError: a label that is empty, or longer than 63.
        except (OSError, ValueError) as exc:
            raise SendError("the host was not found") from exc
        return self._allowed(found, port)

    async def _asked(self, host: str) -> list[str]:
        """Ask in a thread, which counts until it ends, and not until nobody waits for it.

        A daemon thread: a name server that does not answer holds up no exit.
        """
        asker, waiter, token = object(), new_waiter(), anyio.lowlevel.current_token()
        told: list[list[str] | BaseException] = []

        def ask() -> None:
            try:
                told.append(list(self._find(host)))
            except BaseException as exc:
                # Whatever it is, it belongs to who asked.
                told.append(exc)
            waiter.wake()
            with suppress(RuntimeError):  # the event loop has ended
                anyio.from_thread.run_sync(self._limiter.release_on_behalf_of, asker, token=token)

        await self._limiter.acquire_on_behalf_of(asker)
        try:
            threading.Thread(target=ask, name="callbackkit-names", daemon=True).start()
        except RuntimeError as exc:
            self._limiter.release_on_behalf_of(asker)
            raise OSError("no thread can be started") from exc
        await waiter.wait()
        found = told[0]
        if isinstance(found, BaseException):
            raise found
        return found

    def _allowed(self, found: list[str], port: int) -> list[str]:
        allowed: list[str] = []
        forbidden: ForbiddenAddressError | None = None
        for address in dict.fromkeys(found):
            try:
                self._guard.check_address(address, port)
                allowed.append(address)
            except ForbiddenAddressError as exc:
                forbidden = exc
        if forbidden is not None and not allowed:
            raise forbidden
        if not allowed:
            raise SendError("the host was not found")
        return allowed


def as_headers(raw: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Return the headers of an answer as text, names in lower case."""
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in raw}


def check_keeping(keepalive: float, max_idle: int) -> None:
    """Refuse numbers that no connections can be kept by.

    Raises:
        ValueError: As said.
    """
    if not 0 < keepalive < math.inf:
        raise ValueError(f"keepalive must be more than 0 seconds, not {keepalive!r}")
    if max_idle < 0:
        raise ValueError(f"max_idle must be 0 or more, not {max_idle!r}")


def check_ssl_context(context: ssl.SSLContext | None) -> ssl.SSLContext | None:
    """Refuse a context that would let any certificate pass.

    Raises:
        ValueError: It does not check certificates, or not the host name.
    """
    if context is None or (context.check_hostname and context.verify_mode is ssl.CERT_REQUIRED):
        return context
    raise ValueError(
        "ssl_context must check certificates and host names; "
        "for an authority of your own call its load_verify_locations()"
    )


def as_send_error(exc: BaseException, otherwise: str) -> SendError:
    """Put into words of ours, that a client may see, why something was not sent.

    Args:
        exc: What the library raised.
        otherwise: What is said when nothing more exact is known of it.
    """
    reasons = tuple(_reasons(exc))
    for each in reasons:
        if isinstance(each, SendError):
            return each
    words = [words for kind, words in _WORDS if any(isinstance(each, kind) for each in reasons)]
    error = SendError(words[0] if words else otherwise)
    error.__cause__ = next((each for each in reasons if _is_of_the_system(each)), None)
    return error


def _is_of_the_system(exc: BaseException) -> bool:
    return isinstance(exc, OSError) and type(exc).__module__ in {"builtins", "socket", "ssl"}


# The first that fits.
_WORDS: Final[tuple[tuple[type[BaseException], str], ...]] = (
    (ssl.SSLCertVerificationError, "the certificate is not valid for the host"),
    (ssl.CertificateError, "the certificate is not valid for the host"),
    (ssl.SSLError, "TLS failed"),
    (socket.gaierror, "the host was not found"),
)


def _reasons(exc: BaseException | None, depth: int = 0) -> Iterator[BaseException]:
    """Yield an exception, what it came from, and what those hold."""
    while exc is not None and depth < 16:
        yield exc
        if isinstance(exc, BaseExceptionGroup):
            for each in cast(BaseExceptionGroup[BaseException], exc).exceptions:
                yield from _reasons(each, depth + 1)
        exc, depth = exc.__cause__ or exc.__context__, depth + 1
