"""Which pages may use the API: those of its own host, and those of origins that are listed."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Final
from urllib.parse import urlsplit

__all__ = ["Origins"]

# RFC 6454, section 6.1; in lower case, as browsers send it.
_ORIGIN: Final = re.compile(r"[a-z][a-z0-9+.-]*://[^\s/?#@,;]+")
_PORTS: Final = {"http": 80, "https": 443, "ws": 80, "wss": 443}
# What a page may send, how long a browser remembers that, and what its script may read.
_HEADERS: Final = "Authorization, Content-Type, Last-Event-ID"
_MAX_AGE: Final = "600"
_EXPOSED: Final = "Location, Retry-After"


class Origins:
    """The origins whose pages may use the API, beside those of the host itself.

    Args:
        allowed: Origins as browsers write them, such as ``"https://app.example.com"``. ``"*"`` lets
            any page in that brings a token of its own: cookies count for the others only.

    Raises:
        TypeError: *allowed* is a single string.
        ValueError: Something is no origin.
    """

    def __init__(self, allowed: Collection[str] = ()) -> None:
        if isinstance(allowed, str):
            raise TypeError(f"allowed_origins is a list of origins, not the string {allowed!r:.80}")
        for origin in allowed:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ValueError(
                    f"allowed_origins: {origin!r:.80} is no origin such as"
                    " 'https://app.example.com' (lower case, no path)"
                )
        self._listed = frozenset(allowed)

    def __repr__(self) -> str:
        return f"<Origins {', '.join(sorted(self._listed)) or 'of the host itself'}>"

    def lets_in(self, origin: str | None, host: str | None) -> bool:
        """Tell whether a page may use the API; who sends no origin is no page."""
        return "*" in self._listed or self.trusts(origin, host)

    def trusts(self, origin: str | None, host: str | None) -> bool:
        """Tell whether a page may use what the browser adds by itself, such as cookies."""
        return origin is None or origin in self._listed or _is_of(origin, host)

    def headers(self, origin: str | None, host: str | None) -> list[tuple[str, str]]:
        """Return what has a browser hand an answer to a page of another origin."""
        if origin is None or not self.lets_in(origin, host):
            return []
        if not self.trusts(origin, host):
            return [
                ("Access-Control-Allow-Origin", "*"),
                ("Access-Control-Expose-Headers", _EXPOSED),
            ]
        return [
            ("Access-Control-Allow-Origin", origin),
            ("Access-Control-Allow-Credentials", "true"),
            ("Access-Control-Expose-Headers", _EXPOSED),
        ]

    @staticmethod
    def preflight(methods: Sequence[str]) -> list[tuple[str, str]]:
        """Return what a browser that asks first is told, beside :meth:`headers`."""
        return [
            ("Access-Control-Allow-Methods", ", ".join(methods)),
            ("Access-Control-Allow-Headers", _HEADERS),
            ("Access-Control-Max-Age", _MAX_AGE),
        ]


def _is_of(origin: str, host: str | None) -> bool:
    """Tell whether an origin is that of the host a request was sent to.

    The scheme is left out: behind a proxy that ends TLS nobody here knows it.
    """
    if host is None or not _ORIGIN.fullmatch(origin):
        return False
    scheme, _, authority = origin.partition("://")
    default = _PORTS.get(scheme)
    asked = _address(host, default)
    return asked is not None and asked == _address(authority, default)


def _address(authority: str, default: int | None) -> tuple[str, int | None] | None:
    try:
        parts = urlsplit(f"//{authority}")
        return (parts.hostname or "", parts.port or default)
    except ValueError:
        return None
