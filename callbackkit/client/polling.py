"""Following by asking again and again; an answer waits for events."""

from __future__ import annotations

from typing import Final

import anyio

from callbackkit.client.answers import BlockedError, LostError, check_status
from callbackkit.client.decoding import MOST_PAGE, Page, decode_page
from callbackkit.client.line import Line, media_type, read_body
from callbackkit.errors import WireError

__all__ = ["follow_polling"]

# Seconds that the server is asked to wait: less than proxies let a request take.
_WAIT: Final = 25.0
# Events asked for at once.
_LIMIT: Final = 200


async def follow_polling(line: Line) -> None:
    """Follow a session by one request after the other; returns once the session has ended.

    No page says that a session has ended: where a page is empty sooner than it was asked for, the
    state is looked at, and after the end once more for events.

    Raises:
        LostError: A request failed, or the server answers at once.
        BlockedError: What is answered is no page.
        CallbackKitError: The session can't be followed any more.
    """
    await line.find_now()
    has_ended = False
    while True:
        asked_at, before = anyio.current_time(), line.place.position
        page = await _ask(line, 0.0 if has_ended else _WAIT)
        line.works()
        if await line.take(page.batch):
            return
        line.place.begin(page.cursor)
        if page.batch.events:
            if line.place.position == before:
                raise BlockedError("the same page came again: somebody between keeps it")
        elif page.has_more:
            raise LostError("events were dropped while they were read")
        elif has_ended:
            return
        elif anyio.current_time() - asked_at < _WAIT / 2:
            has_ended = (await line.ask_state()).has_ended
            if not has_ended:
                raise LostError("the server does not wait for events now")


async def _ask(line: Line, wait: float) -> Page:
    params = {"limit": str(_LIMIT), "wait": f"{wait:g}"}
    position = str(line.place)
    if position:
        params["after"] = position
    headers = {"Accept": "application/json"}
    async with line.request(line.address.events, headers, params, wait=wait) as response:
        check_status(response.status_code, response.headers, line.address.session_id)
        if media_type(response) != "application/json":
            raise BlockedError(f"what came is {media_type(response)!r:.80} and no page")
        body = await read_body(response, most=MOST_PAGE, max_silence=line.max_silence)
    try:
        return decode_page(body)
    except WireError as exc:
        raise BlockedError(f"what came is no page: {exc}") from exc
