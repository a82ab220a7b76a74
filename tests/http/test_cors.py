"""Origins: which pages may use the API, and what their browsers are told."""

import pytest

from callbackkit import CallbackManager
from callbackkit.http.cors import Origins
from callbackkit.http.starlette import allow_anyone
from tests.http.rig import AppOf, client_of, in_both, made

OURS = "https://app.example.com"


@pytest.mark.parametrize(
    ("origin", "host", "is_trusted"),
    [
        (None, "example.com", True),
        ("https://example.com", "example.com", True),
        ("https://example.com", "example.com:443", True),
        ("http://example.com", "example.com", True),
        ("http://example.com:80", "example.com", True),
        ("http://localhost:8000", "localhost:8000", True),
        ("http://localhost:8000", "LOCALHOST:8000", True),
        ("http://[::1]:8000", "[::1]:8000", True),
        ("http://localhost:8001", "localhost:8000", False),
        ("http://localhost", "localhost:8000", False),
        ("https://example.com:80", "example.com", False),
        ("https://example.com.evil.net", "example.com", False),
        ("https://evil.net", "example.com", False),
        ("null", "example.com", False),
        ("null", "null", False),
        ("", "", False),
        ("https://", "", False),
        ("https://example.com", None, False),
        ("https://example.com/", "example.com", False),
        ("https://user@example.com", "example.com", False),
        ("https://example.com:x", "example.com:x", False),
        (OURS, "api.example.com", True),
        (OURS + ".evil.net", "api.example.com", False),
        ("http://app.example.com", "api.example.com", False),
    ],
)
def test_pages_of_the_host_and_those_listed_are_trusted(
    origin: str | None, host: str | None, is_trusted: bool
) -> None:
    origins = Origins([OURS])
    assert origins.trusts(origin, host) is is_trusted
    assert origins.lets_in(origin, host) is is_trusted
    assert bool(origins.headers(origin, host)) is (is_trusted and origin is not None)


def test_a_star_lets_in_all_and_trusts_none() -> None:
    origins = Origins(["*"])
    for origin in ("https://evil.net", "null"):
        assert origins.lets_in(origin, "example.com")
        assert not origins.trusts(origin, "example.com")
        told = dict(origins.headers(origin, "example.com"))
        assert told["Access-Control-Allow-Origin"] == "*"
        assert "Access-Control-Allow-Credentials" not in told
    assert dict(origins.headers("https://example.com", "example.com"))[
        "Access-Control-Allow-Origin"
    ] == ("https://example.com")


@pytest.mark.parametrize(
    "origin", ["app.example.com", "https://app.example.com/", "HTTPS://A.b", "null", "", "https://"]
)
def test_what_is_no_origin_is_refused(origin: str) -> None:
    with pytest.raises(ValueError, match="allowed_origins"):
        Origins([origin])


def test_a_single_string_is_no_list() -> None:
    with pytest.raises(TypeError, match="list of origins"):
        Origins(OURS)


def test_origins_show_what_they_are() -> None:
    assert repr(Origins()) == "<Origins of the host itself>"
    assert OURS in repr(Origins([OURS]))


# Over HTTP.


@in_both
def test_a_browser_that_asks_first_is_answered(app_of: AppOf) -> None:
    with client_of(app_of(CallbackManager(), allow_anyone, allowed_origins=[OURS])) as client:
        asked = {"Origin": OURS, "Access-Control-Request-Method": "PATCH"}
        answer = client.options("/callbacks/sessions/x", headers=asked)
        assert answer.status_code == 204
        assert answer.headers["access-control-allow-origin"] == OURS
        assert answer.headers["access-control-allow-credentials"] == "true"
        assert "PATCH" in answer.headers["access-control-allow-methods"]
        assert "Authorization" in answer.headers["access-control-allow-headers"]
        assert "Last-Event-ID" in answer.headers["access-control-allow-headers"]
        assert answer.headers["access-control-max-age"] == "600"
        assert "origin" in answer.headers["vary"].lower()
        answer = client.options(
            "/callbacks/sessions/x", headers={**asked, "Origin": "https://evil.net"}
        )
        assert answer.status_code == 403
        assert "access-control-allow-origin" not in answer.headers
        answer = client.options("/callbacks/stats")
        assert answer.headers["allow"] == "GET, HEAD, OPTIONS"
        assert "access-control-allow-methods" not in answer.headers


@in_both
def test_answers_are_for_pages_that_may_have_them(app_of: AppOf) -> None:
    manager = CallbackManager()
    with client_of(app_of(manager, allow_anyone, allowed_origins=[OURS])) as client:
        session = made(client)
        session.end(manager)
        for path in (
            session.path,
            f"{session.path}/sse",
            "/callbacks/nothing",
            f"{session.path}/ws",
        ):
            answer = client.get(path, headers={"Origin": OURS})
            assert answer.headers["access-control-allow-origin"] == OURS
            answer = client.get(path, headers={"Origin": "https://evil.net"})
            assert "access-control-allow-origin" not in answer.headers
