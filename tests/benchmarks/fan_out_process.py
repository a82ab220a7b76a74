"""A server in a process of its own, as whoever measures it sees it."""

import json
import os
import socket
import subprocess
import sys
from itertools import cycle, islice
from typing import Self

from tests.benchmarks.fan_out_clients import PATIENCE


class Server:
    """A process that serves something, see :mod:`tests.benchmarks.fan_out_server`.

    It starts at once; entering gives it as it is, leaving ends it.

    Args:
        name: What it serves.
        argument: A number that what it serves may need.

    Attributes:
        port: Where it listens, once it does.
    """

    def __init__(self, name: str, argument: int = 0) -> None:
        self.name: str = name
        self.port: int = 0
        self._paths: list[str] = []
        command = [sys.executable, "-m", "tests.benchmarks.fan_out_server", name, str(argument)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self._process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, text=True
        )
        self._orders: socket.socket | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        if self._orders is not None:
            self._orders.close()
        elif self._process.poll() is None:
            self._process.kill()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._process.wait(PATIENCE)

    def begin(self) -> None:
        """Wait until it listens.

        Raises:
            ModuleNotFoundError: What it needs is not installed.
            RuntimeError: It ended.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the server of {self.name} ended before it listened")
        hello = json.loads(line)
        if "absent" in hello:
            raise ModuleNotFoundError(f"{self.name} needs {hello['absent']}")
        self.port = hello["port"]
        self._paths = hello["paths"]
        self._orders = socket.create_connection(("127.0.0.1", hello["orders"]), PATIENCE)

    def paths_for(self, clients: int) -> list[str]:
        """Return what so many clients are to ask for."""
        return list(islice(cycle(self._paths), clients))

    def order(self, order: str, number: float = 0) -> None:
        """Have it do something."""
        assert self._orders is not None
        self._orders.sendall(f"{order} {number}\n".encode())

    def answer(self) -> float:
        """Wait for what it answers to an order."""
        assert self._orders is not None
        answer = b""
        while not answer.endswith(b"\n"):
            piece = self._orders.recv(100)
            if not piece:
                raise RuntimeError(f"the server of {self.name} has ended")
            answer += piece
        return float(answer)

    def ask(self, order: str, number: float = 0) -> float:
        """Have it do something, and return what it answers."""
        self.order(order, number)
        return self.answer()
