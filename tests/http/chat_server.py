"""The example of a chat under uvicorn, stopped and started again on its port, for real clients."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import attrs
import httpx2
import playwright

import callbackkit

EXAMPLES = Path(__file__).parents[2] / "examples"
# Two sections speak of mist; the words between them are nobody's business.
TEXT = (
    "# Mist\n\nThe mist comes\non little cat feet. \u00e9 \U0001f408 <b>&amp;</b> \u2028\n\n"
    "## Nothing\n\nSilence.\n\n"
    "## More\n\n" + "".join(f"mist-{number}\n" for number in range(100))
)
MESSAGE = "Where is mist?"
SPOKEN = TEXT.replace("## Nothing\n\nSilence.\n\n", "")
# What is done to the server under its clients, and after how many events each has got.
RESTARTS = ((12, signal.SIGKILL), (30, signal.SIGTERM))
# Seconds for anything that is waited for.
PATIENCE = 20.0


def find_node() -> str:
    """Return the node that playwright brings: the machine's may be missing, or too old."""
    return str(Path(playwright.__file__).with_name("driver") / "node")


@attrs.frozen
class Chat:
    """A session that the server began."""

    id: str
    token: str
    cookie: str

    @property
    def bearer(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}


class ChatServer:
    """The server, with a database of its own."""

    def __init__(self, folder: Path, *, pause: float = 0.04) -> None:
        with socket.create_server(("127.0.0.1", 0)) as found:
            self.port: int = found.getsockname()[1]
        self.host = f"127.0.0.1:{self.port}"
        self.url = f"http://{self.host}"
        self.log: list[str] = []
        (folder / "text").write_text(TEXT, "utf-8")
        self._environment = os.environ | {
            "CHAT_FILE": str(folder / "text"),
            "CHAT_DATABASE": str(folder / "chat.db"),
            "CHAT_PAUSE": str(pause),
        }
        root = Path(callbackkit.__file__).parents[1]
        if (root / "examples").is_dir():
            # A checkout, which need not be installed.
            self._environment["PYTHONPATH"] = os.pathsep.join(
                filter(None, [str(root), os.environ.get("PYTHONPATH")])
            )
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.stop()
        assert "Traceback" not in "".join(self.log), "".join(self.log)

    def start(self) -> None:
        """Start it, and return when it serves."""
        command = [sys.executable, "-m", "uvicorn", "--factory", "chat_api:app", "--no-access-log"]
        self._process = subprocess.Popen(
            [*command, "--app-dir", str(EXAMPLES), "--port", str(self.port)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self._environment,
        )
        serves = threading.Event()
        self._reader = threading.Thread(target=self._read, args=[self._process, serves])
        self._reader.start()
        if not serves.wait(PATIENCE):
            self.stop(signal.SIGKILL)
            raise TimeoutError("".join(self.log))

    def _read(self, process: "subprocess.Popen[str]", serves: threading.Event) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                self.log.append(line)
                if "Uvicorn running on" in line:
                    serves.set()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End it with a signal, and return its exit code."""
        process, self._process = self._process, None
        if process is None:
            return 0
        process.send_signal(number)
        try:
            return process.wait(PATIENCE)
        finally:
            process.kill()
            process.wait()
            self._reader.join()

    # What a client does.

    def ask(self, message: str = MESSAGE, **more: Any) -> Chat:
        """Begin a chat."""
        answer = httpx2.post(f"{self.url}/chat", json={"message": message, **more})
        assert answer.status_code == 201, answer.text
        reply = answer.json()
        cookie = answer.headers["set-cookie"].partition(";")[0]
        return Chat(reply["session_id"], reply["token"], cookie)

    def path(self, chat: Chat, route: str = "") -> str:
        return f"{self.url}/callbacks/sessions/{chat.id}{route}"

    def events(self, chat: Chat) -> list[dict[str, Any]]:
        """Return everything that the session has."""
        events: list[dict[str, Any]] = []
        cursor = ""
        while True:
            query = f"?after={cursor}&limit=1000"
            answer = httpx2.get(self.path(chat, f"/events{query}"), headers=chat.bearer)
            page = answer.raise_for_status().json()
            events += page["events"]
            cursor = page["cursor"]
            if not page["has_more"]:
                return events


def spoken(events: Sequence[dict[str, Any]]) -> str:
    """Return what was read aloud."""
    chunks = [event["data"] for event in events if event["event_type"] == "streaming_chunk"]
    return "".join(chunk["text"] for chunk in chunks if chunk["node"] == "read_aloud")


def check_whole(events: Sequence[dict[str, Any]], kept: Sequence[dict[str, Any]]) -> None:
    """Hold what a client got against what is kept, and that against the text."""
    assert [event["id"] for event in events] == [event["id"] for event in kept]
    assert list(events) == list(kept)
    assert spoken(kept) == SPOKEN
    types = [event["event_type"] for event in kept]
    assert types[:4] == ["client.message", "thinking", "tool_use", "tool_result"]
    assert types.count("progress") == 2
    assert types.count("completion") == 1
    assert types[-1] == "completion"
