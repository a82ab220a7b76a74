"""Answers that last, as responses of Starlette."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext

from starlette.background import BackgroundTask
from starlette.responses import Response
from starlette.types import Scope

from callbackkit.transports.connections import Receive, Send
from callbackkit.transports.sse import HEADERS, serve_drained

__all__ = ["Stream", "come_back", "only_head"]


class Stream(Response):
    """An answer that lasts.

    Args:
        serve: Sends all of it, with more headers.

    Attributes:
        meanwhile: Entered as long as it lasts.
    """

    status_code: int
    raw_headers: list[tuple[bytes, bytes]]

    def __init__(
        self, serve: Callable[[Receive, Send, list[tuple[bytes, bytes]]], Awaitable[None]]
    ) -> None:
        # Not the base's, which would say how long it is.
        self.status_code = 200
        self.background: BackgroundTask | None = None
        self.raw_headers = []
        self.meanwhile: AbstractContextManager[None] = nullcontext()
        self._serve = serve

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        del scope
        with self.meanwhile:
            await self._serve(receive, send, self.raw_headers)


def come_back() -> Stream:
    """Return a stream that does nothing but ask its client to come back."""

    async def serve(receive: Receive, send: Send, headers: list[tuple[bytes, bytes]]) -> None:
        del receive
        await serve_drained(send, headers=headers)

    return Stream(serve)


def only_head() -> Response:
    """Return the headers of a stream, and nothing more."""
    response = Response()
    response.raw_headers = list(HEADERS)
    return response
