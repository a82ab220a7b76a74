"""What the ways of following share: requests with a bound, and events handed on."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Final

import anyio
import attrs

from callbackkit.client.address import Address
from callbackkit.client.answers import BlockedError, LostError, check_status
from callbackkit.client.decoding import Batch, State, decode_state
from callbackkit.client.place import Place
from callbackkit.errors import SessionDeletedError, WireError
from callbackkit.events import Event

try:
    import httpx2
except ImportError as _exc:
    raise ImportError("callbackkit.client needs httpx2: install callbackkit[client]") from _exc

__all__ = [
    "FAILURES",
    "Line",
    "check_plain",
    "chunks_of",
    "lost_by",
    "media_type",
    "read_body",
    "translated",
]

# Seconds to connect and get the head of an answer, and to close a connection.
PATIENCE: Final = 10.0
_CLOSING: Final = 5.0
_MOST_STATE: Final = 1_048_576

# What libraries and the system raise for a connection that fails.
FAILURES: Final = (
    httpx2.HTTPError,
    httpx2.StreamError,
    anyio.BrokenResourceError,
    anyio.ClosedResourceError,
    OSError,
)
_PLAIN: Final = frozenset({"", "identity"})
# These say that nobody was there; after any other somebody was.
_UNREACHED: Final = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)


@attrs.define(eq=False)
class Line:
    """A follower as the ways of following see it.

    Attributes:
        client: Sends requests.
        address: The session.
        headers: Sent with each request; they may be secret.
        place: Where the follower stands.
        hand: Takes new events, and returns once they are taken.
        works: Called when the way of following turns out to work.
        max_silence: Seconds without a byte after which a connection is dead.
        priming: Seconds that a stream may take to begin.
        patience: Seconds to connect and get the head of an answer.
        closing: Seconds that closing a connection may take.
    """

    client: httpx2.AsyncClient
    address: Address
    headers: Mapping[str, str] = attrs.field(repr=False)
    place: Place
    hand: Callable[[list[Event]], Awaitable[None]]
    works: Callable[[], None]
    max_silence: float
    priming: float
    patience: float = PATIENCE
    closing: float = _CLOSING

    @property
    def auth(self) -> httpx2.Auth | None:
        """What the client has of its own; nothing where that would take the place of a header."""
        has_own = any(name.lower() == "authorization" for name in self.headers)
        return None if has_own else self.client.auth

    @property
    def timeout(self) -> httpx2.Timeout:
        """Bounds of what comes before a request; what comes after is bounded where it passes."""
        # Less than all there is, so that nobody there is told from nobody who answers.
        return httpx2.Timeout(None, connect=self.patience / 2, pool=self.patience / 2)

    async def take(self, batch: Batch) -> bool:
        """Hand on what is new; true if the session has ended behind it.

        Raises:
            LostError: What followed made no sense.
            SessionDeletedError: The session was deleted.
        """
        fresh = self.place.fresh(batch.events)
        if fresh:
            await self.hand(fresh)
        if batch.trouble is not None:
            raise LostError(f"what the server sent made no sense: {batch.trouble}")
        if batch.end == "deleted":
            raise SessionDeletedError(self.address.session_id)
        return batch.end is not None

    async def ask_state(self) -> State:
        """Ask how the session stands.

        Raises:
            UnknownSessionError: It is gone.
            AccessDeniedError: It may not be asked for.
            LostError: Nobody said.
            BlockedError: That can't be asked here.
        """
        async with self.request(self.address.session, {"Accept": "application/json"}) as response:
            check_status(response.status_code, response.headers, self.address.session_id)
            with translated(), anyio.fail_after(self.patience):
                body = await read_body(response, most=_MOST_STATE, max_silence=self.patience)
        try:
            return decode_state(body)
        except WireError as exc:
            raise BlockedError(
                f"what the server says of the session makes no sense: {exc}"
            ) from exc

    async def find_now(self) -> None:
        """Learn where now is, so that it is the same wherever the follower comes back from."""
        if self.place.is_now and self.place.position is None:
            self.place.begin((await self.ask_state()).position)

    @asynccontextmanager
    async def request(
        self,
        url: str,
        headers: Mapping[str, str],
        params: Mapping[str, str] | None = None,
        *,
        wait: float = 0.0,
    ) -> AsyncGenerator[httpx2.Response]:
        """Send a request; inside, its answer can be read.

        Args:
            url: Where.
            headers: More headers.
            params: The query.
            wait: Seconds that the server was asked to wait.

        Raises:
            LostError: There is none.
        """
        request = self.client.build_request(
            "GET",
            url,
            params=params,
            # What is compressed is collected first.
            headers={**self.headers, "Accept-Encoding": "identity", **headers},
            timeout=self.timeout,
        )
        with translated():
            with anyio.fail_after(wait + self.patience):
                response = await self._send(request)
        try:
            yield response
        finally:
            # A connection that hangs is not to hold up who leaves.
            with anyio.move_on_after(self.closing, shield=True), suppress(*FAILURES):
                await response.aclose()

    async def _send(self, request: httpx2.Request) -> httpx2.Response:
        try:
            return await self.client.send(
                request, stream=True, auth=self.auth, follow_redirects=False
            )
        except httpx2.HTTPStatusError as exc:
            # Of a hook of the client. What a status means is told by its head.
            return exc.response


@contextmanager
def translated() -> Generator[None]:
    """Have what goes wrong on a connection be a loss of it.

    Raises:
        LostError: In place of an error of the HTTP library or the system, or of a time that is up.
    """
    try:
        yield
    except TimeoutError as exc:
        raise LostError("the server did not answer in time") from exc
    except FAILURES as exc:
        raise lost_by(exc) from exc


def lost_by(error: Exception) -> LostError:
    """Return the loss of a connection that an error means."""
    reason = f"{type(error).__name__}: {error!s:.200}".removesuffix(": ")
    return LostError(reason, was_reached=not isinstance(error, _UNREACHED))


@asynccontextmanager
async def chunks_of(
    response: httpx2.Response, *, closing: float = _CLOSING
) -> AsyncGenerator[AsyncGenerator[bytes]]:
    """Read a body in pieces as they come; it need not be read to its end.

    Args:
        response: Its head is read; it is closed behind the block.
        closing: Seconds that may take.
    """
    chunks = response.aiter_raw()
    try:
        yield chunks
    finally:
        # Closed by itself the iterator would leave those inside it to the collector, which trio
        # complains about; on a connection that is closed all of them come to their end.
        with anyio.move_on_after(closing, shield=True), suppress(*FAILURES):
            await response.aclose()
            async for _ in chunks:
                pass


async def read_body(response: httpx2.Response, *, most: int, max_silence: float) -> bytes:
    """Return a whole body.

    Args:
        response: Its head is read.
        most: Bytes it may have.
        max_silence: Seconds that may pass without a byte of it.

    Raises:
        LostError: It broke off, or fell silent.
        BlockedError: It is compressed, or larger.
    """
    check_plain(response)
    body = bytearray()
    with translated(), anyio.fail_after(max_silence) as scope:
        async with chunks_of(response) as chunks:
            async for chunk in chunks:
                body += chunk
                if len(body) > most:
                    raise BlockedError(f"an answer has more than {most} bytes")
                scope.deadline = anyio.current_time() + max_silence
    return bytes(body)


def check_plain(response: httpx2.Response) -> None:
    """Raise unless a body comes as it is, which was asked for.

    Raises:
        BlockedError: It is compressed.
    """
    encoding = response.headers.get("content-encoding", "").strip().lower()
    if encoding not in _PLAIN:
        raise BlockedError(f"somebody compresses what the server sends: {encoding!r:.40}")


def media_type(response: httpx2.Response) -> str:
    """Return what kind of body an answer has, ``""`` if that is not told."""
    return response.headers.get("content-type", "").partition(";")[0].strip().lower()
