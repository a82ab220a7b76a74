"""Where the routes stand: by themselves, mounted, behind a proxy, with any prefix."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route

from callbackkit import CallbackManager
from callbackkit.http.starlette import allow_anyone, create_app, routes
from tests.http.rig import AppOf, Connection, client_of, in_both


def hosting(manager: CallbackManager, *found: object) -> Starlette:
    """An application that starts the manager itself."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncGenerator[None]:
        del app
        async with manager:
            yield

    return Starlette(routes=list(found), lifespan=lifespan)


@pytest.mark.parametrize("prefix", ["", "/callbacks", "/a/b"])
def test_an_application_can_be_mounted(prefix: str) -> None:
    manager = CallbackManager()
    app = hosting(manager, Mount("/api", app=create_app(manager, allow_anyone, prefix=prefix)))
    with client_of(app) as client:
        answer = client.post(f"/api{prefix}/sessions", json={})
        location = answer.headers["location"]
        assert location.startswith(f"/api{prefix}/sessions/")
        assert f"Path={location};" in answer.headers["set-cookie"]
        assert client.get(location).status_code == 200
        with client.websocket_connect(f"{location}/ws"):
            pass
        assert client.get("/api/openapi.json").json()["openapi"] == "3.1.0"
        answer = client.get("/api/nothing")
        assert answer.headers["content-type"] == "application/problem+json"


def test_routes_stand_beside_those_of_the_host() -> None:
    async def mine(request: Request) -> Response:
        del request
        return PlainTextResponse("mine")

    manager = CallbackManager()
    app = hosting(manager, *routes(manager, allow_anyone), Route("/mine", mine))
    with client_of(app) as client:
        assert client.get("/mine").text == "mine"
        assert client.get("/callbacks/health").status_code == 200
        answer = client.get("/callbacks/nothing")
        assert answer.headers["content-type"] == "application/problem+json"
        answer = client.get("/nothing")
        assert answer.headers["content-type"].startswith("text/plain")
        assert client.get("/openapi.json").status_code == 404


def test_routes_without_a_prefix_leave_other_paths_to_the_host() -> None:
    async def mine(request: Request) -> Response:
        del request
        return PlainTextResponse("mine")

    manager = CallbackManager()
    app = hosting(manager, *routes(manager, allow_anyone, prefix=""), Route("/mine", mine))
    with client_of(app) as client:
        assert client.get("/health").status_code == 200
        assert client.get("/mine").text == "mine"


def test_an_application_served_by_itself_starts_the_manager() -> None:
    manager = CallbackManager()
    with client_of(create_app(manager)) as client:
        assert "running" in repr(manager)
        assert client.get("/").headers["content-type"] == "application/problem+json"
    assert "not started" in repr(manager)


@in_both
@pytest.mark.parametrize("path", ["/proxied/callbacks/sessions", "/callbacks/sessions"])
async def test_behind_a_proxy_paths_are_as_the_client_sees_them(app_of: AppOf, path: str) -> None:
    """Servers tell the path with or without what the proxy has taken off."""
    async with CallbackManager() as manager:
        client = Connection(app_of(manager, allow_anyone), path, "POST", root_path="/proxied")
        await client.run()
        assert client.status == 201
        assert client.answered["location"].startswith("/proxied/callbacks/sessions/")
        cookie = client.answered["set-cookie"]
        assert f"Path={client.answered['location']};" in cookie


async def test_a_path_can_not_break_out_of_a_header() -> None:
    async with CallbackManager() as manager:
        app = create_app(manager, allow_anyone)
        mounted = Starlette(routes=[Mount("/{tenant}", app=app)])
        path = "/a;b\r\nX-Bad: 1 é/callbacks/sessions"
        client = Connection(mounted, path, "POST")
        await client.run()
        assert client.status == 201
        for name in ("location", "set-cookie"):
            assert "\r" not in client.answered[name]
            assert "%0D%0AX-Bad:%201%20%C3%A9/callbacks" in client.answered[name]
        assert "x-bad" not in client.answered
