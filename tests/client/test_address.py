"""The URL of a session."""

import pytest
from hypothesis import given, strategies as st

from callbackkit.client.address import Address

SESSION = "https://host:8443/api/callbacks/sessions/7f"


@pytest.mark.parametrize("route", ["", "/", "/sse", "/ws", "/events", "/events/"])
@pytest.mark.parametrize("scheme", ["https", "wss"])
def test_a_session_and_its_routes_are_one_address(scheme: str, route: str) -> None:
    address = Address.parse(SESSION.replace("https", scheme) + route)
    assert (address.session, address.session_id) == (SESSION, "7f")
    assert address.sse == f"{SESSION}/sse"
    assert address.events == f"{SESSION}/events"
    assert address.websocket == f"wss://{SESSION.removeprefix('https://')}/ws"


def test_an_id_may_be_quoted() -> None:
    assert Address.parse("http://host/sessions/a%20b/sse").session_id == "a b"


@pytest.mark.parametrize(
    ("url", "match"),
    [
        ("http://user:hunter2@host/callbacks/sessions/7f", "use token="),
        ("http://hunter2@host/callbacks/sessions/7f", "use token="),
        (f"{SESSION}/ws?token=hunter2", "use token="),
        (f"{SESSION}#hunter2", "use token="),
        ("ftp://host/callbacks/sessions/7f", "http://"),
        ("/callbacks/sessions/7f", "http://"),
        ("http:///callbacks/sessions/7f", "http://"),
        ("http://host:x/callbacks/sessions/7f", "url is none"),
        ("http://[::1/callbacks/sessions/7f", "url is none"),
        ("http://host:0/callbacks/sessions/7f", "http://"),
        ("http://host/callbacks/events/sse", "not that of a session"),
        ("http://host/callbacks/sessions", "not that of a session"),
        ("http://host/callbacks/sessions/7f/stats", "not that of a session"),
        ("http://host/callbacks/sessions/7f\n", "control characters"),
        (" http://host/callbacks/sessions/7f", "spaces"),
    ],
)
def test_what_is_no_such_url_is_refused_without_its_secrets(url: str, match: str) -> None:
    with pytest.raises(ValueError, match=match) as raised:
        Address.parse(url)
    assert "hunter2" not in str(raised.value)
    assert raised.value.__cause__ is None


def test_no_text_is_refused() -> None:
    with pytest.raises(TypeError, match="url must be a string, not bytes"):
        Address.parse(SESSION.encode())


@given(st.text())
def test_any_text_is_an_address_or_refused(url: str) -> None:
    try:
        address = Address.parse(url)
    except ValueError:
        return
    assert Address.parse(address.sse) == address
