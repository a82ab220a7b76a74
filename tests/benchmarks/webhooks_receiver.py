"""A process that answers each POST with 204: ``python -m ...``.

It says where it listens in a line of JSON, and ends when its standard input does. uvloop where that
is installed; no framework, so that it is never what is measured.
"""

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import cast

_ANSWER = b"HTTP/1.1 204 No Content\r\n\r\n"
_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)", re.IGNORECASE)

# Seconds until a receiver that was told to end is killed.
_PATIENCE = 10.0


class Receiving(asyncio.Protocol):
    """Takes requests on one connection, and looks at nothing but how long they are."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._pending = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # That of uvloop is none by its class.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._pending += data
        while (end := self._pending.find(b"\r\n\r\n") + 4) > 3:
            found = _LENGTH.search(self._pending, 0, end)
            end += int(found[1]) if found else 0
            if len(self._pending) < end:
                return
            self._pending = self._pending[end:]
            assert self._transport is not None
            self._transport.write(_ANSWER)


@contextmanager
def receiving() -> Iterator[str]:
    """Run a receiver, and give the URL of its root."""
    command = [sys.executable, "-m", __name__]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            port = json.loads(process.stdout.readline())["port"]
            yield f"http://127.0.0.1:{port}/"
        finally:
            process.stdin.close()
            try:
                process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()


async def _receive() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Receiving, "127.0.0.1", 0, backlog=4_096)
    async with server:
        print(json.dumps({"port": server.sockets[0].getsockname()[1]}), flush=True)
        await loop.run_in_executor(None, sys.stdin.read)


def main() -> None:
    """Answer until standard input ends."""
    try:
        factory = import_module("uvloop").new_event_loop
    except ModuleNotFoundError:
        factory = None
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(_receive())


if __name__ == "__main__":
    main()
