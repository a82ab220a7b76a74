"""The table of routes: whole, and each has a handler."""

import inspect

from callbackkit.http.handlers import Handlers
from callbackkit.http.table import ROUTES, WEBSOCKET, by_path


def test_each_route_has_a_handler_that_takes_what_it_gets() -> None:
    for route in ROUTES:
        taken = list(inspect.signature(getattr(Handlers, route.name)).parameters)
        assert taken == ["self", "request", *(["session"] if route.needs == "session" else [])]
        assert ("{session_id}" in route.path) == (route.needs == "session")


def test_routes_are_found_by_path_and_method() -> None:
    found = by_path()
    assert sum(len(methods) for methods in found.values()) == len(ROUTES)
    assert found["/sessions"].keys() == {"POST", "GET"}
    assert found[WEBSOCKET]["GET"].name == "open_websocket"
