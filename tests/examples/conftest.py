"""What the checks of the examples share: web applications in processes, and a mail server."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller

import callbackkit

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(autouse=True)
def checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have programs find the package in a checkout that is not installed."""
    root = Path(callbackkit.__file__).parents[1]
    if (root / "examples").is_dir():
        monkeypatch.setenv("PYTHONPATH", str(root))


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


class MailServer:
    """A mail server that refuses what it is told to, and can be away for a while.

    Attributes:
        mails: What it accepted.
        answers: What it says to the next mails instead of accepting them: ``(command, answer)``.
        refused: Recipients it refuses for good.
    """

    def __init__(self) -> None:
        self.mails: list[EmailMessage] = []
        self.answers: list[tuple[str, str]] = []
        self.refused: set[str] = set()
        self._controller: Controller | None = None
        with socket.create_server(("127.0.0.1", 0)) as found:
            self.port: int = found.getsockname()[1]

    @property
    def ids(self) -> list[str]:
        """The ids of the deliveries that arrived."""
        return [mail["Message-ID"].strip("<>").partition("@")[0] for mail in self.mails]

    @property
    def events(self) -> list[dict[str, Any]]:
        """The events that arrived, one a line of a mail."""
        lines = [line for mail in self.mails for line in mail.get_content().split("\n")]
        return [json.loads(line) for line in lines if line]

    def start(self) -> None:
        self._controller = Controller(self, hostname="127.0.0.1", port=self.port)
        self._controller.start()

    def stop(self) -> None:
        if self._controller is not None:
            self._controller.stop()
        self._controller = None

    # What the server calls.

    async def handle_RCPT(
        self, _server: Any, _session: Any, envelope: Any, address: str, options: list[str]
    ) -> str:
        if address in self.refused:
            return "550 5.1.1 no such mailbox"
        if answer := self._answer("RCPT"):
            return answer
        envelope.rcpt_tos.append(address)
        envelope.rcpt_options.extend(options)
        return "250 OK"

    async def handle_DATA(self, _server: Any, _session: Any, envelope: Any) -> str:
        if answer := self._answer("DATA"):
            return answer
        self.mails.append(message_from_bytes(envelope.content, policy=policy.default))
        return "250 OK"

    def _answer(self, command: str) -> str | None:
        if self.answers and self.answers[0][0] == command:
            return self.answers.pop(0)[1]
        return None


@pytest.fixture
def mail() -> Iterator[MailServer]:
    """A mail server that runs in a thread of its own."""
    server = MailServer()
    server.start()
    yield server
    server.stop()
