"""Access: the application is asked, then the token decides, and pages are told apart."""

from collections.abc import Awaitable
from typing import Any

import pytest
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.testclient import TestClient, WebSocketDenialResponse

from callbackkit import CallbackManager, Session
from callbackkit.http.access import check_authorize
from callbackkit.http.fastapi import allow_anyone as from_fastapi
from callbackkit.http.starlette import allow_anyone, set_session_cookie
from tests.http.rig import ADDRESS, AppOf, Made, client_of, in_both, made

OURS, EVIL = "https://app.example.com", "https://evil.net"


def creating(connection: HTTPConnection, session: Session | None) -> bool | None:
    """Anybody creates sessions; then their tokens decide."""
    del connection
    return True if session is None else None


def status_of(client: TestClient, path: str, **options: Any) -> int:
    return client.get(path, **options).status_code


def websocket_status(client: TestClient, path: str, **options: Any) -> int:
    """Return 101, or what it was refused with."""
    try:
        with client.websocket_connect(path, **options):
            return 101
    except WebSocketDenialResponse as refused:
        return refused.status_code


# Tokens.


@in_both
def test_the_token_of_a_session_opens_it(app_of: AppOf) -> None:
    with client_of(app_of(CallbackManager(), creating)) as client:
        session, other = made(client), made(client)
        assert status_of(client, session.path, headers=session.headers) == 200
        refused = client.get(session.path)
        assert refused.status_code == 401
        assert refused.headers["www-authenticate"].startswith("Bearer")
        assert status_of(client, session.path, headers=other.headers) == 401
        for header in ("Bearer", "Bearer ", "Bearer x", f"Basic {session.token}", session.token):
            assert status_of(client, session.path, headers={"Authorization": header}) == 401
        lower = {"Authorization": f"bearer  {session.token}"}
        assert status_of(client, session.path, headers=lower) == 200


@in_both
def test_the_cookie_of_a_session_opens_it_and_no_other(app_of: AppOf) -> None:
    with client_of(app_of(CallbackManager(), creating)) as client:
        first = client.post("/callbacks/sessions", json={}).json()
        # The client keeps the cookie of each, and sends the one whose path it is.
        second = client.post("/callbacks/sessions", json={}).json()
        for created in (first, second):
            path = f"/callbacks/sessions/{created['session_id']}"
            assert status_of(client, path) == 200
            assert websocket_status(client, f"{path}/ws") == 101
        client.cookies.clear()
        assert status_of(client, path) == 401


@in_both
def test_another_cookie_of_the_same_name_locks_nobody_out(app_of: AppOf) -> None:
    with client_of(app_of(CallbackManager(), creating)) as client:
        session = made(client)
        ours, other = f"callbackkit_session={session.token}", "callbackkit_session=theirs"
        for header in (f"{ours}; {other}", f"{other}; a=b;{ours}", f'{other}; "; {ours};'):
            assert status_of(client, session.path, headers={"Cookie": header}) == 200
        assert status_of(client, session.path, headers={"Cookie": f"{other}; a{ours}"}) == 401


@in_both
def test_a_websocket_may_bring_its_token_as_a_protocol(app_of: AppOf) -> None:
    with client_of(app_of(CallbackManager(), creating)) as client:
        session = made(client)
        path = f"{session.path}/ws"
        assert websocket_status(client, path) == 401
        for wrong in ("callbackkit", "callbackkit.token.x", "callbackkit.token."):
            assert websocket_status(client, path, subprotocols=[wrong]) == 401
        offered = [f"callbackkit.token.{session.token}", "callbackkit"]
        with client.websocket_connect(path, subprotocols=offered) as socket:
            # Never the one with the token.
            assert socket.accepted_subprotocol == "callbackkit"
        with client.websocket_connect(path, headers=session.headers) as socket:
            assert socket.accepted_subprotocol is None


@in_both
def test_a_token_in_the_query_has_to_be_asked_for(app_of: AppOf) -> None:
    for query_token, status in ((False, 401), (True, 200)):
        app = app_of(CallbackManager(), creating, query_token=query_token)
        with client_of(app) as client:
            session = made(client)
            assert status_of(client, f"{session.path}?token={session.token}") == status
            assert status_of(client, f"{session.path}?token=x") == 401


@in_both
def test_each_token_that_is_brought_counts(app_of: AppOf) -> None:
    """The application may want the header for itself."""
    with client_of(app_of(CallbackManager(), creating)) as client:
        session = made(client)
        headers = {
            "Authorization": "Bearer of-the-application",
            "Cookie": f"callbackkit_session={session.token}",
        }
        assert status_of(client, session.path, headers=headers) == 200


# The application.


@in_both
def test_without_the_application_nobody_creates_sessions(app_of: AppOf) -> None:
    manager = CallbackManager()
    with client_of(app_of(manager)) as client:
        assert client.post("/callbacks/sessions", json={}).status_code == 403
        for path in ("/callbacks/sessions", "/callbacks/stats", "/callbacks/metrics"):
            assert status_of(client, path) == 403
        assert status_of(client, "/callbacks/events/sse") == 403
        assert status_of(client, "/callbacks/health") == 200
        portal = client.portal
        assert portal is not None
        created = portal.call(manager.create_session)
        assert created.token is not None
        session = Made(client, created.id, created.token)
        assert status_of(client, session.path, headers=session.headers) == 200


@in_both
@pytest.mark.parametrize("is_async", [False, True])
def test_the_application_is_asked_first(app_of: AppOf, is_async: bool) -> None:
    said: list[bool | None] = [None]
    asked: list[str | None] = []

    def authorize(
        connection: HTTPConnection, session: Session | None
    ) -> bool | Awaitable[bool | None] | None:
        asked.append(None if session is None else session.id)
        assert connection.headers["host"] == "testserver"

        async def later() -> bool | None:
            return said[0]

        return later() if is_async else said[0]

    manager = CallbackManager()
    with client_of(app_of(manager, authorize)) as client:
        said[0] = True
        session = made(client)
        assert status_of(client, session.path) == 200
        assert websocket_status(client, f"{session.path}/ws") == 101
        said[0] = False
        assert status_of(client, session.path, headers=session.headers) == 403
        assert websocket_status(client, f"{session.path}/ws", headers=session.headers) == 403
        assert status_of(client, "/callbacks/health") == 403
        said[0] = None
        assert status_of(client, session.path, headers=session.headers) == 200
        assert status_of(client, session.path) == 401
        assert status_of(client, "/callbacks/stats") == 403
        assert set(asked) == {None, session.id}


@in_both
def test_the_application_may_refuse_in_its_own_words(app_of: AppOf) -> None:
    def authorize(*_: object) -> bool:
        raise HTTPException(402, "pay first", {"X-Price": "5"})

    with client_of(app_of(CallbackManager(), authorize)) as client:
        answer = client.get("/callbacks/stats")
        assert answer.status_code == 402
        assert answer.json()["detail"] == "pay first"
        assert answer.headers["x-price"] == "5"


@in_both
def test_another_answer_is_a_mistake_of_the_application(app_of: AppOf) -> None:
    answer: Any = "yes"
    with (
        client_of(app_of(CallbackManager(), lambda *_: answer)) as client,
        pytest.raises(TypeError, match="True, False or None, not str"),
    ):
        client.get("/callbacks/stats")


def test_only_a_function_can_be_asked() -> None:
    check_authorize(None)
    with pytest.raises(TypeError, match="authorize must be a function or None, not bool"):
        check_authorize(True)


def test_anyone_is_the_same_in_both() -> None:
    assert from_fastapi is allow_anyone


# Pages.


@in_both
def test_a_page_of_another_origin_opens_no_websocket(app_of: AppOf) -> None:
    app = app_of(CallbackManager(), creating, allowed_origins=[OURS])
    with client_of(app) as client:
        session = made(client)
        path = f"{session.path}/ws"
        for origin, status in {EVIL: 403, "null": 403, OURS: 101, ADDRESS: 101}.items():
            headers = {**session.headers, "Origin": origin}
            assert websocket_status(client, path, headers=headers) == status


@in_both
@pytest.mark.parametrize(
    ("method", "suffix"), [("POST", "/test"), ("DELETE", ""), ("POST", "/dead-letters/redrive")]
)
def test_a_page_of_another_origin_changes_nothing(app_of: AppOf, method: str, suffix: str) -> None:
    with client_of(app_of(CallbackManager(), creating, allowed_origins=[OURS])) as client:
        session = made(client)
        cookie = {"Cookie": f"callbackkit_session={session.token}"}

        def ask(headers: dict[str, str]) -> int:
            return client.request(method, session.path + suffix, headers=headers).status_code

        assert ask({**cookie, "Origin": EVIL}) == 403
        assert ask({**cookie, "Origin": "null"}) == 403
        assert ask({**cookie, "Origin": OURS}) in {200, 204}


@in_both
def test_a_page_of_another_origin_creates_nothing(app_of: AppOf) -> None:
    with client_of(app_of(CallbackManager(), allow_anyone)) as client:
        answer = client.post("/callbacks/sessions", headers={"Origin": EVIL})
        assert answer.status_code == 403
        assert EVIL in answer.json()["detail"]


@in_both
def test_a_bearer_token_is_as_good_from_anywhere(app_of: AppOf) -> None:
    with client_of(app_of(CallbackManager(), creating)) as client:
        session = made(client)
        answer = client.post(
            f"{session.path}/test", headers={**session.headers, "Origin": EVIL}, json={}
        )
        assert answer.status_code == 200


@in_both
def test_under_a_star_cookies_count_for_own_pages_only(app_of: AppOf) -> None:
    with client_of(app_of(CallbackManager(), creating, allowed_origins=["*"])) as client:
        session = made(client)
        cookie = {"Cookie": f"callbackkit_session={session.token}"}
        foreign = {**cookie, "Origin": EVIL}
        assert status_of(client, session.path, headers=foreign) == 401
        assert status_of(client, session.path, headers={**cookie, "Origin": ADDRESS}) == 200
        assert client.post(f"{session.path}/test", headers=foreign).status_code == 403
        assert websocket_status(client, f"{session.path}/ws", headers=foreign) == 403
        headers = {**session.headers, "Origin": EVIL}
        assert status_of(client, session.path, headers=headers) == 200
        assert websocket_status(client, f"{session.path}/ws", headers=headers) == 101
        assert client.post("/callbacks/sessions", headers={"Origin": EVIL}).status_code == 201


# Cookies of one's own.


async def test_an_endpoint_of_ones_own_gives_the_right_to_a_session() -> None:
    manager = CallbackManager()
    session = await manager.create_session()
    response = Response()
    set_session_cookie(response, session, path="/api/callbacks/", secure=True)
    assert response.headers["set-cookie"] == (
        f"callbackkit_session={session.token}; HttpOnly; "
        f"Path=/api/callbacks/sessions/{session.id}; SameSite=strict; Secure"
    )
    with pytest.raises(ValueError, match="nobody knows its token"):
        set_session_cookie(response, await manager.get_session(session.id))


async def test_the_path_of_a_cookie_can_not_end_it() -> None:
    session = await CallbackManager().create_session()
    response = Response()
    set_session_cookie(response, session, path="/a;Domain=evil\r\nX: y/é")
    header = response.headers["set-cookie"]
    assert "Domain" not in header.replace("%3BDomain", "")
    assert "\r" not in header
    assert "Path=/a%3BDomain=evil%0D%0AX:%20y/%C3%A9/sessions/" in header
