"""A chat whose agent works in the background, and goes on where it was when the server restarts.

POST /chat begins a session and answers at once; the agent thinks, searches a text for what the
message asks, reads aloud what it found with the graph of text_stream.py, and says how far it is.
Its client follows by SSE, WebSocket or polling, whichever it likes, and comes back to where it was
whenever the connection, or the server, was gone.

    pip install 'callbackkit[fastapi]' 'uvicorn[standard]'
    python -m callbackkit demo --serve       # or: uvicorn --app-dir examples --factory chat_api:app
    curl -c cookies -d '{"message": "sessions"}' -H 'content-type: application/json' \
        http://127.0.0.1:8000/chat
    curl -N -b cookies http://127.0.0.1:8000/callbacks/sessions/SESSION_ID/sse

The page at http://127.0.0.1:8000/ follows a session in all three ways at once; stop the server in
the middle of it, and start it again.

With --redis several such servers, on one machine or many, share their sessions: whoever asked one
of them can follow at any other. An agent works where it was asked. When its server is killed, it
rests until that one is started again, under the same name and port; the others leave it alone, for
two that work on one session would say everything twice.
"""

import logging
import os
import re
import socket
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import FileResponse
from pydantic import BaseModel, Field
from text_stream import make_graph, read_text

from callbackkit import (
    Callback,
    CallbackConfig,
    CallbackKitError,
    CallbackManager,
    ConfigError,
    Event,
    LimitError,
    Retention,
    Session,
    Store,
    StoreError,
    StoreUnavailableError,
    UnknownSessionError,
)
from callbackkit.http.fastapi import create_router, set_session_cookie
from callbackkit.stores.sqlite import SQLiteStore

logger = logging.getLogger("chat")

PAGE = Path(__file__).with_name("chat_page.html")
PREFIX = "/callbacks"
OWNER = "chat"  # of the sessions that belong to the agents of the only server of a file
MESSAGE = "client.message"  # what a client said, in its session
A_DAY = 86_400.0
PAUSE = 0.03  # seconds for a word
AGAIN = 1.0  # seconds until an agent whose store was away begins again

# The agent.


class Agent:
    """Looks for what a message asks in a text, and reads aloud what it finds.

    It begins at the beginning whenever it is started, and the session has everything once all the
    same. Of what it says step by step, each step has a key. Of what its nodes stream, as many
    characters are passed over as the session has of that node already: the log itself is where it
    notes how far it is.

    Args:
        session: Where it says it.
        text: What it knows.
        pause: Seconds for each word.
    """

    def __init__(self, session: Session, text: str, pause: float) -> None:
        self.session = session
        self.text = text
        self.pause = pause
        self.said: Counter[str | None] = Counter()  # characters, by node

    async def live(self) -> None:
        """Work, and tell the client if that fails."""
        try:
            await self.keep_working()
        except UnknownSessionError:
            logger.info("%s was deleted by its client, or lost", self.session.id)
        except StoreError:
            logger.exception("%s goes on when the server is started again", self.session.id)
        except Exception as exc:
            logger.exception("the agent of %s failed", self.session.id)
            with suppress(CallbackKitError):
                await self.session.error("the agent failed", type(exc).__name__)
                await self.session.end()

    async def keep_working(self) -> None:
        """Work, and begin again as often as the store is away meanwhile."""
        while True:
            try:
                await self.work()
                return
            except StoreUnavailableError as exc:
                logger.warning("%s goes on when the store is back: %s", self.session.id, exc)
            await anyio.sleep(AGAIN)

    async def work(self) -> None:
        """Do what the message asks, and end the session."""
        message = await self.remember()
        if not message:
            # The server was stopped before it kept the message, or the client has cleared it away.
            await self.session.end()
            return
        words = re.findall(r"\w{4,}", message.lower())
        await self.say("thinking", 0, thought=f"Where does the text speak of {message!r}?")
        await self.say("tool_use", 0, tool_name="search", parameters={"words": words})
        found = search(self.text, words)
        await self.say("tool_result", 0, tool_name="search", result=list(found), success=True)
        spoken = 0
        for step, (title, section) in enumerate(found.items(), 1):
            await self.say("thinking", step, thought=f"I read {title!r}.")
            spoken += await self.read_aloud(section)
            how_far = {"current_step": step, "total_steps": len(found)}
            await self.say("progress", step, progress=step / len(found), message=title, **how_far)
        await self.say("completion", 0, result={"sections": len(found), "words": spoken})
        await self.session.end()

    async def remember(self) -> str:
        """Read the session up to now: return the message, and know what was said about it."""
        message = ""
        self.said.clear()
        now = await self.session.manager.store.get_session(self.session.id)
        async with self.session.subscribe() as log:
            while now.first <= now.top:
                event = await anext(log)
                if event.event_type == MESSAGE:
                    message = message or event.data["message"]
                elif event.event_type == "streaming_chunk" and not event.metadata.get("test"):
                    self.said[event.data.get("node")] += len(event.data["text"])
                if event.position.seq >= now.top:
                    break
        return message

    async def say(self, event_type: str, number: int, **data: Any) -> None:
        """Emit something once, however often this is called."""
        await self.session.emit(event_type, data, idempotency_key=f"{event_type}-{number}")

    async def read_aloud(self, section: str) -> int:
        """Run the graph on a section; return how many words it has."""
        run, rest = Callback(), Callback()
        spoken = 0
        # Left from the inside out: all is copied, then all is stored. If no more can be stored, it
        # is left at once, and that raises why.
        async with self.session.attach(rest) as stored, anyio.create_task_group() as watch:
            watch.start_soon(cancel_after, stored.wait, watch.cancel_scope)
            async with anyio.create_task_group() as group:
                group.start_soon(self.copy, run, rest)
                state = await make_graph().execute({"source": section, "pause": 0.0}, callback=run)
                spoken = int(state["spoken"])
            watch.cancel_scope.cancel()
        return spoken

    async def copy(self, run: Callback, rest: Callback) -> None:
        """Copy the tokens of a run that are new; its nodes, one in a thread, wait for each."""
        tokens = run.events(types=["token"], overflow="block", max_lag=1, raise_errors=False)
        async for event in tokens:
            if event.token is None or event.type != "token":
                continue  # the end is told in any case
            known = min(self.said[event.node], len(event.token))
            self.said[event.node] -= known
            if new := event.token[known:]:
                rest(new, event.node)
                await anyio.sleep(self.pause)


async def cancel_after(wait: Callable[[], Awaitable[None]], scope: anyio.CancelScope) -> None:
    await wait()
    scope.cancel()


def search(text: str, words: list[str]) -> dict[str, str]:
    """Return the sections of a Markdown text that have any of the words, or else all of them."""
    sections: dict[str, str] = {}
    for section in filter(None, re.split(r"^(?=#+ )", text, flags=re.MULTILINE)):
        title = section.partition("\n")[0].strip("# ") or "the beginning"
        sections[title] = sections.get(title, "") + section
    found = {title: body for title, body in sections.items() if mentions(body, words)}
    return found or sections


def mentions(section: str, words: list[str]) -> bool:
    return any(word in section.lower() for word in words)


# The application.


class ChatRequest(BaseModel):
    """What a client asks."""

    message: str = Field(min_length=1, max_length=2000)
    callback_config: CallbackConfig | None = None


class ChatReply(BaseModel):
    """Where the answer is: with the token from anywhere, with the cookie from this page."""

    session_id: str
    token: str


def create_manager(database: Path | str) -> CallbackManager:
    """Return a manager of sessions that can be read for a day.

    Args:
        database: A file, or the URL of a Redis.
    """
    retention = Retention(max_events=100_000, max_bytes=None, max_age=None)
    return CallbackManager(open_store(database), retention=retention, linger=A_DAY)


def open_store(database: Path | str) -> Store:
    if not is_redis(database):
        return SQLiteStore(database)
    from callbackkit.stores.redis import RedisStore  # only then is coredis needed

    return RedisStore.from_url(str(database))


def is_redis(database: Path | str) -> bool:
    return str(database).startswith(("redis://", "rediss://", "unix://"))


def owner_of(database: Path | str, server: str) -> str:
    """Return whose the sessions are that a server begins, and goes on with when it is started.

    Args:
        database: A file, or the URL of a Redis.
        server: What tells it from the others of its machine.
    """
    return f"{OWNER}@{socket.gethostname()}:{server}" if is_redis(database) else OWNER


def create_app(
    manager: CallbackManager, text: str, pause: float = PAUSE, owner: str = OWNER
) -> FastAPI:
    """Make the application.

    Args:
        manager: Keeps its sessions; started and stopped along with it.
        text: What its agents know.
        pause: Seconds they take for a word.
        owner: Whose the sessions of its agents are; no two that run at once have the same.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        async with manager, anyio.create_task_group() as agents:
            app.state.agents = agents
            async for session in manager.sessions(state="active", owner=owner):
                agents.start_soon(Agent(session, text, pause).live)
            yield
            # Each stores what it has said so far.
            agents.cancel_scope.cancel()

    app = FastAPI(title="Chat", lifespan=lifespan)
    app.include_router(create_router(manager, prefix=PREFIX))

    @app.post("/chat", status_code=201)
    async def chat(asked: ChatRequest, request: Request, response: Response) -> ChatReply:
        try:
            session = await manager.create_session(asked.callback_config, owner=owner)
            await session.receive({"message": asked.message})
        except ConfigError as exc:
            raise HTTPException(422, str(exc)) from exc
        except LimitError as exc:
            raise HTTPException(429, str(exc)) from exc
        except StoreUnavailableError as exc:
            raise HTTPException(503, "the sessions can't be reached now") from exc
        app.state.agents.start_soon(Agent(session, text, pause).live)
        secure = request.url.scheme == "https"
        set_session_cookie(response, session, path=PREFIX, secure=secure)
        return ChatReply(session_id=session.id, token=session.token or "")

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE)

    return app


def app() -> FastAPI:
    """Make the application from CHAT_FILE, a text, CHAT_DATABASE, CHAT_SERVER and CHAT_PAUSE.

    CHAT_DATABASE is a file or the URL of a Redis, and CHAT_SERVER what tells those of one machine
    that share one apart.
    """
    readme = Path(__file__).parents[1] / "README.md"
    text = read_text(Path(os.environ.get("CHAT_FILE", readme)))
    database = os.environ.get("CHAT_DATABASE", "chat.db")
    owner = owner_of(database, os.environ.get("CHAT_SERVER", ""))
    return create_app(create_manager(database), text, read_pause(), owner)


def read_pause() -> float:
    """Return CHAT_PAUSE, the seconds for a word."""
    return float(os.environ.get("CHAT_PAUSE", PAUSE))


# The demo.

# What is printed of an event: its type, and the key of what it says.
TOLD = {
    MESSAGE: "message",
    "thinking": "thought",
    "tool_use": "parameters",
    "tool_result": "result",
    "progress": "message",
    "completion": "result",
    "error": "error",
}


def serve(text: str, database: Path | str, port: int) -> None:
    """Serve this machine until interrupted, and print what the agents do.

    Args:
        text: What the agents know.
        database: Where the sessions are: a file, or the URL of a Redis.
        port: 0 takes a free one.

    Raises:
        OSError: The port is taken.
        StoreError: There is no such file, and none can be made, or no such Redis.
        ValueError: It is no such URL.
    """
    anyio.run(open_and_close, create_manager(database))
    manager = create_manager(database)
    for event_type in TOLD:
        manager.register_callback(event_type, tell)
    with socket.create_server(("127.0.0.1", port)) as listening:
        port = listening.getsockname()[1]
        owner = owner_of(database, str(port))
        config = uvicorn.Config(
            create_app(manager, text, read_pause(), owner),
            log_level="warning",
            timeout_graceful_shutdown=5,
        )
        print(f"http://127.0.0.1:{port}/ is the page; Ctrl-C ends it.")
        # The URL may have a password.
        where, again = ("Redis", f" on port {port}") if is_redis(database) else (database, "")
        print(f"The sessions are in {where}: start it again{again}, and they go on.", flush=True)
        uvicorn.Server(config).run([listening])


async def open_and_close(manager: CallbackManager) -> None:
    """Find out what is wrong before anybody connects."""
    async with manager:
        pass


def tell(event: Event) -> None:
    """Print an event."""
    what = event.data.get(TOLD[event.event_type])
    how_far = f"{event.data['progress']:4.0%} " if event.event_type == "progress" else ""
    line = f"{event.session_id[:6]} {event.event_type:15}{how_far}{what}"
    # What a client says is no command to the terminal.
    print("".join(each if each.isprintable() else " " for each in line), flush=True)
