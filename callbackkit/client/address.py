"""Where a session is: its URL, and those of its routes."""

from __future__ import annotations

import re
from typing import Final, Self
from urllib.parse import SplitResult, unquote, urlsplit

import attrs

__all__ = ["Address"]

_SCHEMES: Final = {"http": "http", "https": "https", "ws": "http", "wss": "https"}
# The path of a session, and of the routes by which it is followed.
_PATH: Final = re.compile(
    r"(?P<session>(?:/[^/]+)*/sessions/(?P<id>[^/]+))(?:/(?:sse|ws|events))?/?"
)
_EXAMPLE: Final = "https://host/callbacks/sessions/ID"
# What no URL has: urlsplit() would drop some of it without a word.
_STRAY: Final = re.compile(r"[\x00-\x20\x7f]")


@attrs.frozen
class Address:
    """The URLs of a session.

    Attributes:
        session: Of the session itself, where its state is asked for.
        session_id: Its id.
    """

    session: str
    session_id: str

    @classmethod
    def parse(cls, url: str) -> Self:
        """Read the URL of a session, or of its route ``/sse``, ``/ws`` or ``/events``.

        >>> Address.parse("https://host/callbacks/sessions/7f/sse").session
        'https://host/callbacks/sessions/7f'

        Raises:
            TypeError: It is no string.
            ValueError: It is no such URL, or has what does not belong there: a password, a query.
                What may be secret is not repeated.
        """
        if not isinstance(url, str):
            raise TypeError(f"url must be a string, not {type(url).__name__}")
        if _STRAY.search(url):
            raise ValueError("url must have no spaces or control characters")
        parts = _split(url)
        found = _PATH.fullmatch(parts.path)
        if found is None:
            raise ValueError(
                f"the path {parts.path!r:.200} is not that of a session, such as {_EXAMPLE}"
            )
        session = f"{_SCHEMES[parts.scheme]}://{parts.netloc}{found['session']}"
        return cls(session, unquote(found["id"]))

    @property
    def sse(self) -> str:
        """Where its events are streamed."""
        return f"{self.session}/sse"

    @property
    def websocket(self) -> str:
        """Where a WebSocket is opened."""
        return f"{self.session.replace('http', 'ws', 1)}/ws"

    @property
    def events(self) -> str:
        """Where its events are polled."""
        return f"{self.session}/events"


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError(f"url is none; it must be such as {_EXAMPLE}") from None
    if parts.username is not None or parts.password is not None:
        raise ValueError("url must hold no user or password, as URLs end in logs: use token=")
    if parts.scheme not in _SCHEMES or not parts.hostname or port == 0:
        raise ValueError(f"url must begin with http:// or https:// and a host, such as {_EXAMPLE}")
    if parts.query or parts.fragment:
        raise ValueError("url must have no query or fragment: use token=, after=, types=, headers=")
    return parts
