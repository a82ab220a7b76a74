"""Who may do what: the application is asked, then the token of the session decides."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Collection, Iterator
from typing import Final, TypeAlias
from urllib.parse import quote

from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.responses import Response

from callbackkit.http.cors import Origins
from callbackkit.sessions.session import Session

__all__ = [
    "COOKIE",
    "PROTOCOL",
    "Access",
    "Authorize",
    "allow_anyone",
    "check_authorize",
    "set_session_cookie",
]

Authorize: TypeAlias = Callable[
    [HTTPConnection, Session | None], bool | Awaitable[bool | None] | None
]
"""Says who may: ``True`` lets in, ``False`` refuses, ``None`` leaves it to the session's token."""

COOKIE: Final = "callbackkit_session"
"""Name of the cookie that has a session's token."""

PROTOCOL: Final = "callbackkit"
"""The WebSocket subprotocol that is chosen where a client offers it."""

# A page's WebSocket can set no headers; what it can offer are protocols.
_TOKEN_PROTOCOL: Final = "callbackkit.token."
_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
# Of RFC 3986 what needs no quoting in a path, but for ";", which ends an attribute of a cookie.
_IN_PATH: Final = "/!$&'()*+,:=@~"


def allow_anyone(connection: HTTPConnection, session: Session | None) -> bool:
    """Let everybody do everything: for a development server, as ``authorize``."""
    del connection, session
    return True


def check_authorize(authorize: object) -> None:
    """Raise unless it is ``None`` or can be called."""
    if authorize is not None and not callable(authorize):
        raise TypeError(f"authorize must be a function or None, not {type(authorize).__name__}")


def set_session_cookie(
    response: Response, session: Session, *, path: str = "/callbacks", secure: bool = False
) -> None:
    """Give a browser the right to a session, so that its page can follow it without more.

    For an endpoint of your own that creates a session; ``POST /sessions`` does it by itself. The
    cookie is for the routes of this session only, can't be read by scripts, and is sent along with
    requests from pages of the same site only.

    Args:
        response: What is answered.
        session: As it was created: only that handle has the token.
        path: Where the routes are as the browser sees them: the prefix, with what stands before it.
        secure: Over TLS only.

    Raises:
        ValueError: The handle has no token.
    """
    if session.token is None:
        raise ValueError(f"{session!r} was not created here, so nobody knows its token")
    response.set_cookie(
        COOKIE,
        session.token,
        path=f"{quote(path.rstrip('/'), safe=_IN_PATH)}/sessions/{session.id}",
        secure=secure,
        httponly=True,
        samesite="strict",
    )


class Access:
    """What decides.

    Args:
        authorize: Asked first. It runs on the event loop.
        origins: Whose pages may.
        query_token: ``?token=`` counts too; it ends in access logs.
    """

    def __init__(
        self, authorize: Authorize | None, origins: Origins, *, query_token: bool = False
    ) -> None:
        check_authorize(authorize)
        self._authorize = authorize
        self._origins = origins
        self._query_token = query_token

    def check_page(self, connection: HTTPConnection) -> None:
        """Refuse pages of foreign origins, where the browser does not do it for us.

        That is for WebSockets, and for requests that change something and need no preflight.

        Raises:
            HTTPException: 403.
        """
        method = connection.scope.get("method")
        if method in _SAFE or (method is not None and _bearer(connection) is not None):
            return
        origin, host = connection.headers.get("origin"), connection.headers.get("host")
        if not self._origins.lets_in(origin, host):
            raise HTTPException(403, f"the origin {origin!r:.200} is not in allowed_origins")
        if "cookie" in connection.headers and not self._origins.trusts(origin, host):
            # Let in by "*": what the browser adds by itself is not the page's to use.
            raise HTTPException(403, f"cookies don't count from the origin {origin!r:.200}")

    async def check(self, connection: HTTPConnection, session: Session | None) -> None:
        """Refuse who may not.

        Raises:
            HTTPException: 403; 401 where the right token would help.
            TypeError: ``authorize`` returned something else.
        """
        answer = await self._ask(connection, session)
        if answer is True:
            return
        if answer is False:
            raise HTTPException(403, "not allowed")
        if session is None:
            raise HTTPException(403, "nobody may but whom the application lets in")
        if not any(session.has_token(token) for token in self._tokens(connection)):
            raise HTTPException(
                401,
                "the token of the session is needed: as Authorization: Bearer, or as its cookie",
                {"WWW-Authenticate": 'Bearer realm="callbackkit"'},
            )

    async def check_open(self, connection: HTTPConnection) -> None:
        """Refuse only whom the application refuses.

        Raises:
            HTTPException: 403.
        """
        if await self._ask(connection, None) is False:
            raise HTTPException(403, "not allowed")

    async def _ask(self, connection: HTTPConnection, session: Session | None) -> bool | None:
        if self._authorize is None:
            return None
        answer: object = self._authorize(connection, session)
        if inspect.isawaitable(answer):
            answer = await answer
        if answer is None or isinstance(answer, bool):
            return answer
        raise TypeError(f"authorize returns True, False or None, not {type(answer).__name__}")

    def _tokens(self, connection: HTTPConnection) -> Iterator[str]:
        """Yield every token that was brought: the application may need a header for itself."""
        bearer = _bearer(connection)
        if bearer is not None:
            yield bearer
        protocols: Collection[str] = connection.scope.get("subprotocols", ())
        for name in protocols:
            if name.startswith(_TOKEN_PROTOCOL):
                yield name.removeprefix(_TOKEN_PROTOCOL)
        headers = connection.headers
        if self._origins.trusts(headers.get("origin"), headers.get("host")):
            yield from _cookies(connection)
        if self._query_token:
            yield from connection.query_params.getlist("token")


def _bearer(connection: HTTPConnection) -> str | None:
    scheme, _, token = connection.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def _cookies(connection: HTTPConnection) -> Iterator[str]:
    """Yield every cookie of the name: a neighbour of the host may have set one for all paths.

    Source:
        RFC 6265, section 4.2.2: servers should not rely on their order.
    """
    for header in connection.headers.getlist("cookie"):
        for each in header.split(";"):
            name, _, value = each.partition("=")
            if name.strip() == COOKIE:
                yield value.strip().strip('"')
