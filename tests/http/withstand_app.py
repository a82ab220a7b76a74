"""The API in an application that lets a test look inside it; served in a process of its own."""

import asyncio
import gc
import json
import os
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route

from callbackkit import CallbackManager, Limits, Position, Retention
from callbackkit.http.fastapi import create_router
from callbackkit.http.starlette import allow_anyone, create_app
from callbackkit.sessions.subscription import Subscription
from callbackkit.sessions.tail import Tail
from callbackkit.stores.base import Page, Watch
from callbackkit.stores.sqlite import SQLiteStore
from callbackkit.transports.connections import Connection

COUNTED = (Subscription, Tail, Watch, Connection)
PAGE_SIZE = os.sysconf("SC_PAGE_SIZE")


class CountingStore(SQLiteStore):
    """Counts how often the log of each session is read."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.reads = Counter[str]()

    async def read(
        self, session_id: str, *, after: Position | None = None, limit: int = 100
    ) -> Page:
        self.reads[session_id] += 1
        return await super().read(session_id, after=after, limit=limit)

    async def tail(self, session_id: str, *, limit: int) -> Page:
        self.reads[session_id] += 1
        return await super().tail(session_id, limit=limit)


def app() -> Any:
    options: dict[str, Any] = json.loads(os.environ["WITHSTAND"])
    store = CountingStore(options["database"])
    manager = CallbackManager(
        store=store,
        limits=Limits(
            max_requests=options.get("max_requests", 1_000_000),
            max_readers=options.get("max_readers", 20_000),
        ),
        retention=Retention(max_events=options.get("max_events", 10_000)),
    )
    settings = {
        "authorize": allow_anyone if options.get("open", True) else None,
        "heartbeat": options.get("heartbeat", 15.0),
        "write_timeout": options.get("write_timeout", 30.0),
    }
    debug = Debug(manager, store)
    if options["framework"] == "fastapi":
        served = FastAPI()
        served.include_router(create_router(manager, **settings))
        served.router.routes.extend(debug.routes)
        return served

    @asynccontextmanager
    async def lifespan(_app: object) -> AsyncGenerator[None]:
        async with manager:
            yield

    routes = [*debug.routes, Mount("/api", app=create_app(manager, **settings))]
    return Starlette(routes=routes, lifespan=lifespan)


def resident() -> int:
    """Return the bytes of memory that the process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_SIZE


class Debug:
    """What is alive in the process."""

    def __init__(self, manager: CallbackManager, store: CountingStore) -> None:
        self.manager = manager
        self.store = store
        self.routes = [
            Route("/debug/counts", self.show, methods=["GET"]),
            Route("/debug/settled", self.settle, methods=["POST"]),
            Route("/debug/sessions", self.create, methods=["POST"]),
            Route("/debug/emit/{session_id}", self.emit, methods=["POST"]),
            Route("/debug/end/{session_id}", self.end, methods=["POST"]),
            Route("/debug/delete/{session_id}", self.delete, methods=["POST"]),
            Route("/debug/read", self.read, methods=["GET"]),
            Route("/debug/hang", self.hang, methods=["GET"]),
        ]

    def counts(self) -> dict[str, int]:
        gc.collect()
        kinds = Counter(type(each) for each in gc.get_objects())
        readers = self.manager._readers
        return {
            "tasks": len(asyncio.all_tasks()),
            **{kind.__name__: kinds[kind] for kind in COUNTED},
            "readers": sum(readers.kinds().values()),
            "tails": len(readers.tails),
            "descriptors": len(list(Path("/proc/self/fd").iterdir())),
        }

    async def show(self, _request: Request) -> Response:
        return JSONResponse({**self.counts(), "rss": resident(), "pid": os.getpid()})

    async def settle(self, request: Request) -> Response:
        """Answer once at most so many are alive, or after eight seconds."""
        wanted = await request.json()
        ends = anyio.current_time() + 8
        # Nobody tells that something is gone.
        while any(self.counts()[name] > wanted[name] for name in wanted):
            if anyio.current_time() > ends:
                break
            await anyio.sleep(0.05)
        return JSONResponse(self.counts())

    async def create(self, request: Request) -> Response:
        session = await self.manager.create_session(await request.json())
        return JSONResponse({"session_id": session.id, "token": session.token})

    async def emit(self, request: Request) -> Response:
        asked = await request.json()
        session_id = request.path_params["session_id"]
        for number in range(asked["first"], asked["first"] + asked["count"]):
            data = {"number": number, "pad": "x" * asked.get("size", 0)}
            await self.manager.emit(session_id, "count", data)
        return JSONResponse({})

    async def end(self, request: Request) -> Response:
        await self.manager.end_session(request.path_params["session_id"])
        return JSONResponse({})

    async def delete(self, request: Request) -> Response:
        await self.manager.delete_session(request.path_params["session_id"])
        return JSONResponse({})

    async def hang(self, _request: Request) -> Response:
        await anyio.sleep_forever()
        return Response()

    async def read(self, request: Request) -> Response:
        reads = self.store.reads[request.query_params.get("session_id", "")]
        return JSONResponse({"reads": reads, "pid": os.getpid()})
