"""The application of docs/how-to/several-workers.md, with two workers of uvicorn on one file."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

import callbackkit

pytestmark = pytest.mark.real_server

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "several-workers.md"
PATIENCE = 20.0
# Connections that are opened until each worker has taken one.
MOST_TRIES = 500


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Run the command of the page; yield the URL."""
    text = PAGE.read_text("utf-8")
    [app, *_] = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert "uvicorn app:app --workers 2\n" in text
    (folder / "app.py").write_text(app, "utf-8")
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "app:app", "--workers", "2", "--port", str(port)]
    root = str(Path(callbackkit.__file__).parents[1])
    process = subprocess.Popen(
        [*command, "--no-access-log", "--timeout-graceful-shutdown", "5"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": root},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    patience = threading.Timer(PATIENCE * 2, process.kill)
    patience.start()
    assert process.stdout is not None
    log: list[str] = []
    try:
        while sum("startup complete" in line for line in log) < 2:
            line = process.stdout.readline()
            assert line, "".join(log)
            log.append(line)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.communicate()
        patience.cancel()


@contextmanager
def one_of_each(url: str) -> Iterator[dict[int, httpx2.Client]]:
    """Yield clients by the process that has taken their one connection."""
    with ExitStack() as opened:
        clients: dict[int, httpx2.Client] = {}
        for _ in range(MOST_TRIES):
            one = httpx2.Limits(max_connections=1)
            client = httpx2.Client(base_url=url, timeout=PATIENCE, limits=one)
            opened.callback(client.close)
            clients.setdefault(client.get("/whoami").json()["process"], client)
            if len(clients) == 2:
                break
        yield clients


def emit(client: httpx2.Client, session: str, step: int) -> None:
    body = {"event_type": "step", "test_data": {"step": step}}
    assert client.post(f"{session}/test", json=body).status_code == 200


def next_event(lines: Iterator[str]) -> dict[str, Any]:
    line = next(line for line in lines if line.startswith("data: "))
    event: dict[str, Any] = json.loads(line.removeprefix("data: "))
    return event


def test_a_session_of_one_worker_is_followed_in_the_other(tmp_path: Path) -> None:
    """Live, and by who comes back."""
    with serving(tmp_path) as url, one_of_each(url) as clients:
        here, there = clients.values()
        session = here.post("/callbacks/sessions").headers["location"]
        with there.stream("GET", f"{session}/sse") as stream:
            lines = stream.iter_lines()
            for step in range(3):
                emit(here, session, step)
                last = next_event(lines)
                assert last["data"] == {"step": step}
        emit(here, session, 3)
        page = here.get(f"{session}/events", params={"after": last["id"]}).json()
        assert [event["data"] for event in page["events"]] == [{"step": 3}]


def test_a_worker_that_is_killed_takes_no_event_along(tmp_path: Path) -> None:
    """Its clients find everything with the other one."""
    with serving(tmp_path) as url, one_of_each(url) as clients:
        (killed, here), (_, there) = clients.items()
        session = here.post("/callbacks/sessions").headers["location"]
        with here.stream("GET", f"{session}/sse") as stream:
            lines = stream.iter_lines()
            emit(there, session, 0)
            assert next_event(lines)["data"] == {"step": 0}
            os.kill(killed, signal.SIGKILL)
            with pytest.raises(httpx2.RemoteProtocolError):
                list(lines)
        emit(there, session, 1)
        page = there.get(f"{session}/events").json()
        assert [event["data"] for event in page["events"]] == [{"step": 0}, {"step": 1}]
