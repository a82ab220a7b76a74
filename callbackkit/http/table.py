"""The routes of the API: method, path, who may, and the name of what answers."""

from __future__ import annotations

from typing import Final, Literal

import attrs

__all__ = ["ROUTES", "WEBSOCKET", "Route", "by_path"]

Needs = Literal["session", "operator", "nobody"]


@attrs.frozen
class Route:
    """One route.

    Attributes:
        method: Of HTTP.
        path: Below the prefix, ``{session_id}`` in it where it is about a session.
        name: Of the handler, and in OpenAPI.
        needs: Who is let in: who has the right to the session, whom the application names, or
            anybody.
        streams: It may last, so that a server which stops has to tell it.
        gone: Status for a session that was deleted. A browser's ``EventSource`` gives up quietly
            after a 204.
    """

    method: str
    path: str
    name: str
    needs: Needs
    streams: bool = False
    gone: int = 410


_SESSION: Final = "/sessions/{session_id}"

WEBSOCKET: Final = f"{_SESSION}/ws"
"""The path that answers over HTTP too: with how to use it."""

ROUTES: Final = (
    Route("POST", "/sessions", "create_session", "operator"),
    Route("GET", "/sessions", "list_sessions", "operator"),
    Route("GET", _SESSION, "get_session", "session"),
    Route("PATCH", _SESSION, "update_session", "session"),
    Route("DELETE", _SESSION, "delete_session", "session"),
    Route("GET", f"{_SESSION}/events", "get_events", "session", streams=True),
    Route("DELETE", f"{_SESSION}/events", "clear_events", "session"),
    Route("GET", f"{_SESSION}/sse", "stream_events", "session", streams=True, gone=204),
    Route("GET", WEBSOCKET, "open_websocket", "session"),
    Route("POST", f"{_SESSION}/secret", "rotate_secret", "session"),
    Route("GET", f"{_SESSION}/endpoint", "get_endpoint", "session"),
    Route("POST", f"{_SESSION}/test", "emit_test_event", "session"),
    Route("GET", f"{_SESSION}/stats", "get_session_stats", "session"),
    Route("GET", f"{_SESSION}/dead-letters", "list_dead_letters", "session"),
    Route("POST", f"{_SESSION}/dead-letters/redrive", "redrive_dead_letters", "session"),
    Route("GET", f"{_SESSION}/attempts", "list_attempts", "session"),
    Route("GET", "/stats", "get_stats", "operator"),
    Route("GET", "/events/sse", "stream_all_events", "operator", streams=True),
    Route("GET", "/health", "get_health", "nobody"),
    Route("GET", "/metrics", "get_metrics", "operator"),
)


def by_path() -> dict[str, dict[str, Route]]:
    """Return the routes by path, then by method."""
    found: dict[str, dict[str, Route]] = {}
    for route in ROUTES:
        found.setdefault(route.path, {})[route.method] = route
    return found
