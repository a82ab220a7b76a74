"""The router of FastAPI: native, with the dependencies of whoever includes it."""

import inspect
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from fastapi import APIRouter, Depends, FastAPI, HTTPException, WebSocketException
from fastapi.requests import HTTPConnection
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from callbackkit import CallbackManager, Session
from callbackkit.http import fastapi, starlette
from callbackkit.http.fastapi import allow_anyone, create_router
from callbackkit.http.table import ROUTES
from tests.http.rig import client_of


def app_with(router: APIRouter, **options: Any) -> FastAPI:
    app = FastAPI()
    app.include_router(router, **options)
    return app


async def key_needed(connection: HTTPConnection) -> None:
    if connection.headers.get("x-key") == "right":
        return
    if connection.scope["type"] == "websocket":
        raise WebSocketException(1008, "no key")
    raise HTTPException(401, "no key")


def test_dependencies_hold_for_every_route() -> None:
    router = create_router(CallbackManager(), allow_anyone)
    key = {"X-Key": "right"}
    with client_of(app_with(router, dependencies=[Depends(key_needed)])) as client:
        created = client.post("/callbacks/sessions", headers=key).json()
        path = f"/callbacks/sessions/{created['session_id']}"
        for route in ROUTES:
            asked = "/callbacks" + route.path.format(session_id=created["session_id"])
            for method in {route.method, "HEAD" if route.method == "GET" else route.method}:
                assert client.request(method, asked).status_code == 401, route
        assert client.get(path, headers=key).status_code == 200
        assert client.head(path, headers=key).status_code == 200
        with pytest.raises(WebSocketDisconnect) as refused, client.websocket_connect(f"{path}/ws"):
            raise AssertionError("it was let in")
        assert refused.value.code == 1008
        with client.websocket_connect(f"{path}/ws", headers=key):
            pass


def test_preflights_need_no_dependency() -> None:
    origin = "https://app.example.com"
    router = create_router(CallbackManager(), allow_anyone, allowed_origins=[origin])
    with client_of(app_with(router, dependencies=[Depends(key_needed)])) as client:
        asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        assert client.options("/callbacks/sessions", headers=asked).status_code == 204


def test_its_lifespan_starts_the_manager_beside_that_of_the_application() -> None:
    log: list[str] = []
    manager = CallbackManager()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        del app
        log.append("up")
        yield
        log.append("down")

    app = FastAPI(lifespan=lifespan)
    app.include_router(create_router(manager))
    assert "not started" in repr(manager)
    with client_of(app):
        assert "running" in repr(manager)
        assert log == ["up"]
    assert "not started" in repr(manager)
    assert log == ["up", "down"]


def test_a_manager_that_runs_already_goes_on() -> None:
    manager = CallbackManager()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        del app
        async with manager:
            yield
            assert "running" in repr(manager)

    app = FastAPI(lifespan=lifespan)
    app.include_router(create_router(manager))
    with client_of(app):
        assert "running" in repr(manager)


@pytest.mark.parametrize("prefix", ["", "/events-of/callbacks"])
def test_prefixes_add_up(prefix: str) -> None:
    router = create_router(CallbackManager(), allow_anyone, prefix=prefix)
    with client_of(app_with(router, prefix="/api")) as client:
        answer = client.post(f"/api{prefix}/sessions")
        assert answer.headers["location"].startswith(f"/api{prefix}/sessions/")
        assert f"Path=/api{prefix}/sessions/" in answer.headers["set-cookie"]
        # By its cookie.
        assert client.get(answer.headers["location"]).status_code == 200


def test_without_a_prefix_other_paths_are_the_applications() -> None:
    app = app_with(create_router(CallbackManager(), allow_anyone, prefix=""))

    @app.get("/mine")
    def mine() -> str:
        return "mine"

    with client_of(app) as client:
        assert client.get("/mine").json() == "mine"
        assert client.get("/health").json() == {"status": "ok"}
        assert client.get("/nothing").json() == {"detail": "Not Found"}


def test_paths_outside_are_untouched() -> None:
    app = app_with(create_router(CallbackManager(), allow_anyone))

    @app.post("/chat")
    def chat() -> str:
        return "hello"

    with client_of(app) as client:
        assert client.post("/chat").json() == "hello"
        assert client.get("/chat").json() == {"detail": "Method Not Allowed"}


def test_two_managers_stand_side_by_side() -> None:
    first, second = CallbackManager(), CallbackManager()
    app = FastAPI()
    app.include_router(create_router(first, allow_anyone, prefix="/a"))
    app.include_router(create_router(second, allow_anyone, prefix="/b"))
    with client_of(app) as client:
        session_id = client.post("/a/sessions").json()["session_id"]
        assert client.get(f"/a/sessions/{session_id}").status_code == 200
        assert client.get(f"/b/sessions/{session_id}").status_code == 404


async def test_a_send_that_fails_means_that_the_client_has_left() -> None:
    manager = CallbackManager()
    app = app_with(create_router(manager, allow_anyone))
    async with manager:
        session = await manager.create_session()
        await session.progress(0.5)
        sent: list[str] = []
        scope = {
            "type": "websocket",
            "path": f"/callbacks/sessions/{session.id}/ws",
            "headers": [],
            "query_string": b"",
            "subprotocols": [],
            "app": app,
        }
        messages = [{"type": "websocket.connect"}]

        async def receive() -> dict[str, str]:
            if not messages:
                await anyio.sleep_forever()
            return messages.pop()

        async def send(message: Any) -> None:
            sent.append(message["type"])
            if message["type"] == "websocket.send":
                raise OSError("broken pipe")

        await app(scope, receive, send)
        assert sent == ["websocket.accept", "websocket.send"]
        assert not manager._readers.kinds(session.id)["websocket"]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"prefix": "callbacks"}, ValueError),
        ({"prefix": "/callbacks/"}, ValueError),
        ({"prefix": None}, TypeError),
        ({"heartbeat": 0}, ValueError),
        ({"write_timeout": -1}, ValueError),
        ({"write_timeout": "x"}, TypeError),
        ({"allowed_origins": "https://a.b"}, TypeError),
        ({"allowed_origins": ["a.b"]}, ValueError),
        ({"authorize": True}, TypeError),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(
    options: dict[str, Any], error: type[Exception]
) -> None:
    for make in (create_router, starlette.create_app, starlette.routes):
        with pytest.raises(error):
            make(CallbackManager(), **options)
    wrong: Any = "manager"
    with pytest.raises(TypeError, match="manager must be a CallbackManager, not str"):
        create_router(wrong)


def test_both_frameworks_take_the_same_arguments() -> None:
    expected = inspect.signature(create_router).parameters
    for make in (starlette.create_app, starlette.routes):
        assert inspect.signature(make).parameters == expected
    assert {"allow_anyone", "create_router", "set_session_cookie"} <= set(fastapi.__all__)


def test_a_session_of_the_application_is_followed_by_its_page() -> None:
    """As the tutorial has it: an endpoint of one's own gives the cookie."""
    from starlette.requests import Request
    from starlette.responses import JSONResponse

    manager = CallbackManager()
    app = app_with(create_router(manager))

    @app.post("/chat")
    async def chat(request: Request) -> JSONResponse:
        session: Session = await manager.create_session()
        await session.thinking("hm")
        await session.end()
        response = JSONResponse({"session_id": session.id})
        fastapi.set_session_cookie(response, session, secure=request.url.scheme == "https")
        return response

    with client_of(app) as client:
        session_id = client.post("/chat").json()["session_id"]
        path = f"/callbacks/sessions/{session_id}"
        assert len(client.get(f"{path}/events").json()["events"]) == 1
        assert b"thinking" in client.get(f"{path}/sse").content
        with client.websocket_connect(f"{path}/ws") as socket:
            assert socket.receive_json()["event_type"] == "thinking"
        assert TestClient(app).get(path).status_code == 401


@pytest.mark.parametrize("missing", ["fastapi", "msgspec"])
def test_without_its_packages_the_extra_is_named(missing: str) -> None:
    program = f"import sys; sys.modules[{missing!r}] = None; import callbackkit.http.fastapi"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert "needs FastAPI: install callbackkit[fastapi]" in done.stderr
    assert done.returncode == 1
