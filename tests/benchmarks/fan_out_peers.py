"""What others offer to send an event to many clients, each as its own guide says.

Those that can be given an event that is encoded already are given that. Imports are inside, for
whoever runs this may not have them all.
"""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tests.benchmarks.fan_out_service import CONTENT, EVENT_ID, FRAME, TEXT, Open, Service


class Queues:
    """A queue for each client."""

    def __init__(self) -> None:
        self._all: set[asyncio.Queue[Any]] = set()

    async def read(self) -> AsyncIterator[Any]:
        """Yield what is put from now on."""
        queue: asyncio.Queue[Any] = asyncio.Queue()
        self._all.add(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self._all.discard(queue)

    def service(self, app: Any, item: Any) -> Service:
        """Serve an application that reads them, and put *item* into all."""

        async def publish(events: int) -> None:
            for _ in range(events):
                for queue in self._all:
                    queue.put_nowait(item)

        return Service(publish=publish, app=app)


@asynccontextmanager
async def starlette_stream(_: int) -> AsyncIterator[Service]:
    """A ``StreamingResponse`` of what comes out of a queue."""
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import StreamingResponse
    from starlette.routing import Route

    queues = Queues()

    async def stream(_: Request) -> StreamingResponse:
        return StreamingResponse(queues.read(), media_type="text/event-stream")

    yield queues.service(Starlette(routes=[Route("/", stream)]), FRAME)


@asynccontextmanager
async def sse_starlette_stream(_: int) -> AsyncIterator[Service]:
    """An ``EventSourceResponse`` of sse-starlette."""
    from sse_starlette import EventSourceResponse, ServerSentEvent
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.routing import Route

    queues = Queues()

    async def stream(_: Request) -> EventSourceResponse:
        return EventSourceResponse(queues.read())

    event = ServerSentEvent(TEXT, id=EVENT_ID)
    yield queues.service(Starlette(routes=[Route("/", stream)]), event)


@asynccontextmanager
async def fastapi_raw(_: int) -> AsyncIterator[Service]:
    """FastAPI's own events, of text that is encoded already."""
    from fastapi import FastAPI
    from fastapi.sse import EventSourceResponse, ServerSentEvent

    queues = Queues()
    app = FastAPI()

    @app.get("/", response_class=EventSourceResponse)
    async def stream() -> AsyncIterable[ServerSentEvent]:
        async for event in queues.read():
            yield event

    yield queues.service(app, ServerSentEvent(raw_data=TEXT, id=EVENT_ID))


@asynccontextmanager
async def fastapi_data(_: int) -> AsyncIterator[Service]:
    """FastAPI's own events, of a dictionary."""
    from fastapi import FastAPI
    from fastapi.sse import EventSourceResponse, ServerSentEvent

    queues = Queues()
    app = FastAPI()

    @app.get("/", response_class=EventSourceResponse)
    async def stream() -> AsyncIterable[ServerSentEvent]:
        async for content in queues.read():
            yield ServerSentEvent(data=content, id=EVENT_ID)

    yield queues.service(app, CONTENT)


@asynccontextmanager
async def starlette_websocket(_: int) -> AsyncIterator[Service]:
    """``send_text`` of what comes out of a queue."""
    from starlette.applications import Starlette
    from starlette.routing import WebSocketRoute
    from starlette.websockets import WebSocket

    queues = Queues()

    async def stream(websocket: WebSocket) -> None:
        await websocket.accept()
        async for text in queues.read():
            await websocket.send_text(text)

    yield queues.service(Starlette(routes=[WebSocketRoute("/", stream)]), TEXT)


@asynccontextmanager
async def broadcaster_websocket(_: int) -> AsyncIterator[Service]:
    """A channel of broadcaster, in memory."""
    from broadcaster import Broadcast
    from starlette.applications import Starlette
    from starlette.routing import WebSocketRoute
    from starlette.websockets import WebSocket

    async with Broadcast("memory://") as broadcast:

        async def stream(websocket: WebSocket) -> None:
            await websocket.accept()
            async with broadcast.subscribe("events") as subscriber:
                async for event in subscriber:
                    await websocket.send_text(event.message)

        async def publish(events: int) -> None:
            for _ in range(events):
                await broadcast.publish("events", TEXT)

        app = Starlette(routes=[WebSocketRoute("/", stream)])
        yield Service(publish=publish, app=app)


@asynccontextmanager
async def litestar_websocket(_: int) -> AsyncIterator[Service]:
    """A channel of Litestar, in memory."""
    from litestar import Litestar, WebSocket, websocket
    from litestar.channels import ChannelsPlugin
    from litestar.channels.backends.memory import MemoryChannelsBackend

    channels = ChannelsPlugin(MemoryChannelsBackend(), channels=["events"])

    async def stream(socket: WebSocket[Any, Any, Any]) -> None:
        await socket.accept()
        async with channels.start_subscription("events") as subscriber:
            async for text in subscriber.iter_events():
                await socket.send_text(text.decode())

    async def publish(events: int) -> None:
        for _ in range(events):
            channels.publish(TEXT, "events")

    yield Service(
        publish=publish,
        app=Litestar([websocket("/")(stream)], plugins=[channels], openapi_config=None),
    )


PEERS: dict[str, Open] = {
    "starlette-sse": starlette_stream,
    "sse-starlette": sse_starlette_stream,
    "fastapi-raw": fastapi_raw,
    "fastapi-data": fastapi_data,
    "starlette-websocket": starlette_websocket,
    "broadcaster": broadcaster_websocket,
    "litestar": litestar_websocket,
}
