"""A session followed from another process, as an iterator that outlives its connections."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from types import TracebackType
from typing import Final, Literal, Self, TypeAlias, get_args

import anyio
from anyio.abc import TaskGroup

from callbackkit.client.address import Address
from callbackkit.client.backoff import Backoff
from callbackkit.client.follower import Follower, FollowState, Way
from callbackkit.client.handover import Handover
from callbackkit.client.line import Line
from callbackkit.client.place import Place
from callbackkit.events import GAP, Event, Position, check_event_type

try:
    import httpx2
except ImportError as _exc:
    raise ImportError("callbackkit.client needs httpx2: install callbackkit[client]") from _exc

__all__ = ["Events", "FollowMethod", "follow"]

FollowMethod: TypeAlias = Literal["auto", "sse", "websocket", "polling"]

_WAYS: Final[tuple[Way, ...]] = get_args(Way)
# RFC 6750, section 2.1.
_TOKEN: Final = re.compile(r"[A-Za-z0-9._~+/-]+=*")
# RFC 9110, section 5: names, and values that are sent as they are.
_HEADER: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE: Final = re.compile(r"[\x21-\x7e](?:[\x20-\x7e\t]*[\x21-\x7e])?|")
# What the protocols say themselves.
_OURS: Final = frozenset({
    "accept",
    "accept-encoding",
    "connection",
    "content-length",
    "host",
    "last-event-id",
    "transfer-encoding",
    "upgrade",
})  # fmt: skip
# Seconds of a stream that has nothing of its own to say: three heartbeats of the server.
_MAX_SILENCE: Final = 45.0
# Seconds within which a stream says where it begins.
_PRIMING: Final = 5.0


class Events:
    """The events of a session, as they come; what :func:`follow` returns.

    ``async with`` it, then iterate: the loop ends when the session has. Leaving the block ends the
    connection and the task that reads it. Being cancelled while waiting for an event loses
    none: who iterates again goes on behind the last one it got.
    """

    def __init__(
        self,
        address: Address,
        *,
        place: Place,
        headers: Mapping[str, str],
        types: frozenset[str] | None,
        follower: Follower,
        client: httpx2.AsyncClient | None,
        max_silence: float,
        priming: float,
    ) -> None:
        self._address = address
        self._place = place
        self._headers = headers
        self._types = types
        self._follower = follower
        self._given_client = client
        self._max_silence = max_silence
        self._priming = priming
        self._position = place.position
        self._begun: tuple[TaskGroup, Handover] | None = None

    def __repr__(self) -> str:
        return f"<Events of {self._address.session} by {self.method}, {self.state}>"

    @property
    def position(self) -> Position | None:
        """Where to go on: that of the last event handed on, or where the session was begun.

        ``None`` as long as neither is known. As ``after=`` it has another process go on here.
        """
        return self._position or self._place.begun

    @property
    def method(self) -> Way:
        """The way in use: ``"sse"``, ``"websocket"`` or ``"polling"``."""
        return self._follower.way

    @property
    def state(self) -> FollowState:
        """What it is doing.

        ``"connecting"``; ``"following"``; ``"waiting"`` to connect again; ``"ended"`` with the
        session; ``"failed"``, as iterating tells; ``"closed"``, the block was left before.
        """
        return self._follower.state

    @property
    def trouble(self) -> str | None:
        """Why it had to connect again or go another way; ``None`` while all is well."""
        return self._follower.trouble

    @property
    def was_reached(self) -> bool:
        """A server was there, if only to say that it is not the time, or to break off.

        ``False`` as long as nobody answered, or all that came was a status that stays, such as 405.
        """
        return self._follower.was_reached

    # As a block.

    async def __aenter__(self) -> Self:
        if self._begun is not None:
            raise RuntimeError("a session is followed once: call follow() again for the next time")
        handover, tasks = Handover(), anyio.create_task_group()
        await tasks.__aenter__()
        self._begun = tasks, handover
        tasks.start_soon(self._run, handover)
        return self

    async def __aexit__(
        self,
        _type: type[BaseException] | None,
        _exc: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        tasks, handover = self._parts()
        tasks.cancel_scope.cancel()
        try:
            # Not told of an error of the block, which would come out in a group.
            await tasks.__aexit__(None, None, None)
        finally:
            if self._follower.state not in {"ended", "failed"}:
                self._follower.state = "closed"
            handover.close(RuntimeError("the block that followed the session has been left"))

    # Reading it.

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        """Return the next event.

        Raises:
            AccessDeniedError: The token is missing or wrong, or the server lets nobody in.
            UnknownSessionError: There is no such session.
            SessionDeletedError: The session was deleted, or has expired.
            ValueError: The environment names a proxy that is none; ``ImportError``, one that needs
                another library.
        """
        _, handover = self._parts()
        while True:
            event = await handover.take()
            if event is None:
                raise StopAsyncIteration
            self._position = event.position
            if self._types is None or event.is_gap or event.event_type in self._types:
                return event

    def _parts(self) -> tuple[TaskGroup, Handover]:
        if self._begun is None:
            raise RuntimeError("following begins with 'async with follow(...) as events:'")
        return self._begun

    # In a task of its own.

    async def _run(self, handover: Handover) -> None:
        follower = self._follower
        try:
            if self._given_client is None:
                async with _new_client() as client:
                    await follower.run(self._line(client, handover))
            else:
                await follower.run(self._line(self._given_client, handover))
        except Exception as exc:
            # Told to whoever iterates; out of the group it would come in a group.
            follower.state, follower.trouble = "failed", str(exc)
            handover.close(exc)
        else:
            follower.state = "ended"
            handover.close()

    def _line(self, client: httpx2.AsyncClient, handover: Handover) -> Line:
        async def hand(events: list[Event]) -> None:
            await handover.put(events)
            self._follower.note_event()

        return Line(
            client=client,
            address=self._address,
            headers=self._headers,
            place=self._place,
            hand=hand,
            works=self._follower.note_work,
            max_silence=self._max_silence,
            priming=self._priming,
        )


def follow(
    url: str,
    token: str | None = None,
    *,
    method: FollowMethod = "auto",
    after: Position | str | None = None,
    types: Collection[str] | None = None,
    headers: Mapping[str, str] | None = None,
    client: httpx2.AsyncClient | None = None,
    backoff: Backoff | None = None,
    max_silence: float = _MAX_SILENCE,
    priming: float = _PRIMING,
) -> Events:
    """Follow a session that another process has, until it has ended.

    ::

        async with follow("https://host/callbacks/sessions/ID", token) as events:
            async for event in events:
                print(event.event_type, event.data)

    Events come in order, each once, whatever happens to the connection and the server: it connects
    again, after a delay that grows and has chance in it, and goes on behind the last event that
    was handed on. What the server no longer keeps is told as a gap, ``event.is_gap``, and then
    it goes on behind that. What the server says of the session is raised: that it may not be
    followed, is not there, was deleted. All else is not, for it may pass: neither errors of the
    network, nor a status such as 301 or 405, which anybody between may have answered;
    :attr:`Events.trouble` tells it.

    No more is read than is asked for: a slow reader slows the connection, and may have to connect
    again, which loses nothing.

    Args:
        url: Of the session, ``https://host/callbacks/sessions/ID``, or of its ``/sse``, ``/ws`` or
            ``/events``.
        token: Of the session. It is sent as ``Authorization: Bearer``, and never shown.
        method: ``"sse"``, ``"websocket"``, ``"polling"``; ``"auto"`` begins with the first, and
            takes the next one where it is blocked: by a status, a proxy that collects what is
            streamed, three connections in a row that brought nothing. What works is kept.
        after: Position behind which to begin; ``None`` for the oldest event kept, ``"now"`` for
            what comes from now on.
        types: Only events of these types, and gaps.
        headers: Sent with each request, for a gateway, say.
        client: Sends the requests, and is not closed; for proxies, certificates of your own, and
            to share one among many sessions. Give that one a pool that is large enough:
            ``httpx2.Limits(max_connections=None)``. Its ``auth`` is used where there is no *token*.
        backoff: When to connect again.
        max_silence: Seconds without a byte after which a connection is given up. A server breaks
            the silence every 15 seconds, unless it is told otherwise. By WebSocket, without a
            whole message: where a large event takes longer than that, it never comes by this way.
        priming: Seconds that a stream may take to begin; later, somebody collects it.

    Raises:
        TypeError: An argument of another type.
        ValueError: *url* is not that of a session, or holds a password or a query; an option that
            there is not. What may be secret is not repeated. A :exc:`~callbackkit.PositionError`
            is such an error.
    """
    address = Address.parse(url)
    _check_sendable(address)
    if method not in {"auto", *_WAYS}:
        raise ValueError(f"method must be auto, {', '.join(_WAYS)}, not {method!r:.80}")
    ways = _WAYS if method == "auto" else (method,)
    if client is not None and not isinstance(client, httpx2.AsyncClient):
        raise TypeError(f"client must be an httpx2.AsyncClient, not {type(client).__name__}")
    if backoff is not None and not isinstance(backoff, Backoff):
        raise TypeError(f"backoff must be a Backoff, not {type(backoff).__name__}")
    _check_seconds("max_silence", max_silence)
    _check_seconds("priming", priming)
    return Events(
        address,
        place=Place(after),
        headers=_checked_headers(headers, token),
        types=_checked_types(types),
        follower=Follower(f"session {address.session_id}", ways, backoff or Backoff()),
        client=client,
        max_silence=max_silence,
        priming=priming,
    )


def _check_sendable(address: Address) -> None:
    try:
        httpx2.URL(address.events)
    except (httpx2.InvalidURL, UnicodeError):
        raise ValueError("url can't be sent: its host is none, or its path no text") from None


def _new_client() -> httpx2.AsyncClient:
    """Make a client as the environment has it."""
    try:
        return httpx2.AsyncClient()
    except (httpx2.InvalidURL, ValueError):
        # Its text may hold a password.
        raise ValueError(
            "the environment names a proxy that is none: see HTTP_PROXY, HTTPS_PROXY, ALL_PROXY"
        ) from None


def _checked_headers(headers: Mapping[str, str] | None, token: object) -> dict[str, str]:
    """Return all headers; what is wrong with a value is told without it."""
    checked = {} if headers is None else dict(headers)
    for name, value in checked.items():
        if not isinstance(name, str) or not _HEADER.fullmatch(name):
            raise ValueError(f"headers: {name!r:.80} is no name of a header")
        if not isinstance(value, str) or not _VALUE.fullmatch(value):
            raise ValueError(f"headers: the value of {name!r:.80} must be printable ASCII")
        lower = name.lower()
        if lower in _OURS or lower.startswith("sec-websocket-"):
            raise ValueError(f"headers: {name!r:.80} is set by the protocol")
        if lower == "authorization" and token is not None:
            raise ValueError("headers: with token=, 'Authorization' is set already")
    if token is not None:
        if not isinstance(token, str):
            raise TypeError(f"token must be a string, not {type(token).__name__}")
        if not _TOKEN.fullmatch(token):
            raise ValueError("token must be letters, digits and -._~+/ as RFC 6750 has it")
        checked["Authorization"] = f"Bearer {token}"
    return checked


def _checked_types(types: Collection[str] | None) -> frozenset[str] | None:
    if types is None:
        return None
    if isinstance(types, str | bytes):
        raise TypeError("types must be a collection of event types, not a single text")
    for name in types:
        if name != GAP:
            check_event_type(name)
    return frozenset(types)


def _check_seconds(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number of seconds, not {value!r:.80}")
    if not value > 0:
        raise ValueError(f"{name} must be above 0, not {value!r:.80}")
