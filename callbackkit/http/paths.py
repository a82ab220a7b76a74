"""The table of routes as routes of Starlette, and the answers where there is none."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route as StarletteRoute, WebSocketRoute
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket

from callbackkit.http.api import Api
from callbackkit.http.table import WEBSOCKET, Route, by_path

__all__ = ["PathApp", "UnknownPath", "routes_of"]


def routes_of(api: Api, prefix: str) -> list[BaseRoute]:
    """Return a route for each path, with all its methods."""
    found: list[BaseRoute] = [
        StarletteRoute(prefix + path, PathApp(api, methods)) for path, methods in by_path().items()
    ]

    async def talk(scope: Scope, receive: Receive, send: Send) -> None:
        await api.talk(WebSocket(scope, receive, send), receive, send)

    found.append(WebSocketRoute(prefix + WEBSOCKET, _Asgi(talk)))
    return found


class _Asgi:
    """An ASGI application that is no function: those are called with a request."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        await self._app(scope, receive, send)


class PathApp:
    """All methods of one path, as an ASGI application.

    Args:
        api: What answers.
        methods: The routes of the path, by method.
    """

    def __init__(self, api: Api, methods: Mapping[str, Route]) -> None:
        self._api = api
        self._methods = methods

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        # A stream lasts, and what was parsed of its request need not.
        response = await self._response(Request(scope, receive, send))
        await response(scope, receive, send)

    async def _response(self, request: Request) -> Response:
        method = "GET" if request.method == "HEAD" else request.method
        route = self._methods.get(method)
        if route is None:
            return await self._api.refuse(self._methods, request)
        return await self._api.answer(route, request)


class UnknownPath:
    """The answer to all paths that there are not, as an ASGI application."""

    def __init__(self, api: Api) -> None:
        self._api = api

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        response = self._api.unknown(Request(scope, receive, send))
        await response(scope, receive, send)
