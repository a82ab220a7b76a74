"""A server for the tests of ``tail``, as a process that does what it is told line by line."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import attrs

PROGRAM = """
import json, socket, sys
import anyio, uvicorn
from callbackkit import CallbackManager, Position
from callbackkit.http.starlette import create_app
from callbackkit.stores.sqlite import SQLiteStore

async def obey(manager):
    async for line in anyio.wrap_file(sys.stdin):
        name, *arguments = json.loads(line)
        if name == "create":
            session = await manager.create_session({"delivery_method": "sse"})
            answer = [session.id, session.token]
        elif name == "emit":
            session_id, event_type, data = arguments
            answer = (await manager.emit(session_id, event_type, data)).id
        elif name == "end":
            answer = await manager.end_session(*arguments)
        else:
            answer = await manager.delete_session(*arguments)
        print(json.dumps(answer), flush=True)

async def main(database, port):
    async with CallbackManager(store=SQLiteStore(database)) as manager:
        listener = socket.create_server(("127.0.0.1", int(port)))
        server = uvicorn.Server(uvicorn.Config(create_app(manager), log_level="error"))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.serve, [listener])
            print(listener.getsockname()[1], flush=True)
            await obey(manager)

anyio.run(main, *sys.argv[1:])
"""


@attrs.frozen
class Room:
    """A session of the server."""

    server: "Server"
    id: str
    token: str

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.port}/callbacks/sessions/{self.id}"

    def emit(self, event_type: str, data: dict[str, Any]) -> str:
        position: str = self.server.ask("emit", self.id, event_type, data)
        return position

    def end(self) -> None:
        self.server.ask("end", self.id)

    def delete(self) -> None:
        self.server.ask("delete", self.id)


class Server:
    """A process, with its sessions in a file; killed, it can be started again."""

    def __init__(self, database: Path) -> None:
        self._database = database
        self.port = 0
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", PROGRAM, self._database, str(self.port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        self.port = self._answer()

    def ask(self, *words: object) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(words) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, self._process.communicate()
        return json.loads(line)

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()

    def room(self) -> Room:
        return Room(self, *self.ask("create"))
