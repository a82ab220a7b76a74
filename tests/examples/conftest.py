"""What the checks of the examples share: a web application in a process of its own."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


class Served:
    """An example under uvicorn."""

    def __init__(self, app: str, log: Path, environment: dict[str, str]) -> None:
        self._log = log
        # The socket listens before the process starts, so nobody has to wait for the server.
        with socket.create_server(("127.0.0.1", 0)) as listening, log.open("wb") as output:
            self.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
            command = [sys.executable, "-m", "uvicorn", app, "--app-dir", str(EXAMPLES)]
            self._process = subprocess.Popen(
                [*command, "--fd", str(listening.fileno())],
                pass_fds=[listening.fileno()],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | environment,
            )

    def stop(self) -> str:
        """End the process as an operator does, and return what it wrote."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(timeout=20)
        finally:
            self._process.kill()
        return self._log.read_text("utf-8")


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """Start examples by their name, ``module:app``, with variables of the environment."""
    started: list[Served] = []

    def start(app: str, **environment: str) -> Served:
        served = Served(app, tmp_path / f"server-{len(started)}.log", environment)
        started.append(served)
        return served

    yield start
    for served in started:
        served.stop()
