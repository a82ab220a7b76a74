"""The API as a router of FastAPI."""

from __future__ import annotations

from collections.abc import Callable, Collection, Coroutine, MutableMapping
from typing import Any

try:
    from fastapi import APIRouter
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route as StarletteRoute
    from starlette.websockets import WebSocket, WebSocketDisconnect

    from callbackkit.http.access import Authorize, allow_anyone, set_session_cookie
    from callbackkit.http.api import Api, check_prefix
    from callbackkit.http.openapi import Document, operations_of
    from callbackkit.http.paths import PathApp, UnknownPath
    from callbackkit.http.table import WEBSOCKET, Route, by_path
    from callbackkit.sessions.manager import CallbackManager
except ImportError as _exc:
    raise ImportError(
        "callbackkit.http.fastapi needs FastAPI: install callbackkit[fastapi]"
    ) from _exc

__all__ = ["allow_anyone", "create_router", "set_session_cookie"]

_SUMMARY_KEYS = ("summary", "operationId", "tags")


def create_router(
    manager: CallbackManager,
    authorize: Authorize | None = None,
    *,
    allowed_origins: Collection[str] = (),
    prefix: str = "/callbacks",
    query_token: bool = False,
    heartbeat: float = 15.0,
    write_timeout: float | None = 30.0,
    drain_on_signals: bool = True,
) -> APIRouter:
    """Return the API as a router, for ``app.include_router()``.

    ::

        app = FastAPI()
        app.include_router(create_router(manager, authorize))

    The lifespan of the application then enters the manager. Dependencies given to
    ``include_router()`` hold for every route, also streams and WebSockets; there they have to ask
    for an ``HTTPConnection``, for a WebSocket has no ``Request``.

    Args:
        manager: Whose sessions.
        authorize: Asked first, with the connection and the session, or ``None`` on a route that is
            about none: ``True`` lets in, ``False`` refuses, ``None`` leaves it to the token of the
            session. Sync or async; it runs on the event loop. Without it nobody creates sessions
            over HTTP. :func:`allow_anyone` is for a development server.
        allowed_origins: Origins whose pages may use it, such as ``"https://app.example.com"``;
            those of the host itself always may. ``"*"`` lets in any page that brings a token.
        prefix: Before every path.
        query_token: ``?token=`` counts as the token of a session; it ends in access logs.
        heartbeat: Seconds of silence after which a stream says something.
        write_timeout: Seconds that a client may take to read what is sent, before it is given up.
        drain_on_signals: SIGINT and SIGTERM have the streams end, and their clients come back;
            then they reach the server.

    Raises:
        TypeError: Something of the wrong type.
        ValueError: An origin or prefix that is none, seconds that are not above 0.
    """
    prefix = check_prefix(prefix)
    api = Api(
        manager,
        authorize=authorize,
        allowed_origins=allowed_origins,
        query_token=query_token,
        heartbeat=heartbeat,
        write_timeout=write_timeout,
        drain_on_signals=drain_on_signals,
    )

    router = APIRouter(lifespan=api.lifespan)
    operations = operations_of(api.methods)
    for path, routes in by_path().items():
        for route in routes.values():
            _add(router, prefix + path, route, _endpoint(api, route), operations[route.name])
        # For what is left, which is other methods: no dependency is asked about these.
        router.routes.append(StarletteRoute(prefix + path, PathApp(api, routes)))
    router.add_api_websocket_route(prefix + WEBSOCKET, _websocket(api))
    if prefix:
        router.routes.append(StarletteRoute(f"{prefix}/{{rest:path}}", UnknownPath(api)))
    return router


def _add(
    router: APIRouter,
    path: str,
    route: Route,
    endpoint: Callable[..., Any],
    operation: Document,
) -> None:
    """Add a route natively: so dependencies hold, and it is shown."""
    status = next(iter(operation["responses"]))
    extra = {key: value for key, value in operation.items() if key not in _SUMMARY_KEYS}
    router.add_api_route(
        path,
        endpoint,
        methods=[route.method],
        name=f"callbackkit_{route.name}",
        operation_id=operation["operationId"],
        summary=operation["summary"],
        tags=[*operation["tags"]],
        status_code=int(status),
        response_class=Response,
        response_model=None,
        openapi_extra=extra,
    )
    if route.method == "GET":
        router.add_api_route(
            path,
            endpoint,
            methods=["HEAD"],
            response_class=Response,
            response_model=None,
            include_in_schema=False,
        )


def _endpoint(api: Api, route: Route) -> Callable[[Request], Coroutine[Any, Any, Response]]:
    async def endpoint(request: Request) -> Response:
        return await api.answer(route, request)

    return endpoint


def _websocket(api: Api) -> Callable[[WebSocket], Coroutine[Any, Any, None]]:
    async def endpoint(websocket: WebSocket) -> None:
        async def send(message: MutableMapping[str, Any]) -> None:
            try:
                await websocket.send(message)
            except WebSocketDisconnect as exc:
                # As the server told it.
                raise OSError("the client has left") from exc

        await api.talk(websocket, websocket.receive, send)

    return endpoint
