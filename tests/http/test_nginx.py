"""The configuration of docs/how-to/behind-nginx.md, with nginx in front of uvicorn."""

import json
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
import uvicorn
from httpx2.websockets import WebSocketUpgradeError

from callbackkit import CallbackManager
from callbackkit.http.starlette import allow_anyone, create_app

pytestmark = pytest.mark.real_server

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "behind-nginx.md"
PATIENCE = 10.0
AROUND = """
daemon off;
master_process off;
pid {folder}/pid;
error_log {folder}/error.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    # So it is the page's line that has events passed on, and not what the application says.
    proxy_ignore_headers X-Accel-Buffering;
    {site}
}}
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
        return port


def find_nginx() -> str | None:
    # Debian has it where only root looks.
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")


@contextmanager
def proxy(folder: Path, port: int, *, read_timeout: str = "75s") -> Iterator[str]:
    """Run nginx as the page says; yield its URL."""
    program = find_nginx()
    if program is None:
        pytest.skip("there is no nginx")
    [site] = re.findall(r"^```nginx\n(.*?)^```$", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    listen = free_port()
    for told, here in (
        ("listen 80;", f"listen 127.0.0.1:{listen};"),
        ("server 127.0.0.1:8000;", f"server 127.0.0.1:{port};"),
        ("proxy_read_timeout 75s;", f"proxy_read_timeout {read_timeout};"),
    ):
        assert told in site
        site = site.replace(told, here)
    config = folder / "nginx.conf"
    config.write_text(AROUND.format(folder=folder, site=site), "utf-8")
    command = [program, "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(config)]
    subprocess.run([*command, "-t", "-q"], check=True, timeout=PATIENCE)
    process = subprocess.Popen(command)
    try:
        wait_for(lambda: is_open(listen))
        yield f"http://127.0.0.1:{listen}"
    finally:
        process.terminate()
        process.wait(PATIENCE)


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait for something that tells nobody; not for ever."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        threading.Event().wait(0.02)


def is_open(port: int) -> bool:
    with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


@contextmanager
def application(port: int, **options: float) -> Iterator[None]:
    """Serve the API."""
    manager = CallbackManager()
    app = create_app(manager, allow_anyone, **options)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=5))
    with socket.create_server(("127.0.0.1", port)) as listening:
        thread = threading.Thread(target=server.run, args=[[listening]])
        thread.start()
        try:
            yield
        finally:
            manager.begin_drain()
            server.should_exit = True
            thread.join(PATIENCE)
            assert not thread.is_alive()


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    port = free_port()
    with application(port), proxy(tmp_path, port) as found:
        yield found


@pytest.fixture
def client(url: str) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=url, timeout=PATIENCE) as made:
        yield made


def create(client: httpx2.Client) -> str:
    answer = client.post("/callbacks/sessions")
    assert answer.status_code == 201
    session: str = answer.headers["location"]
    return session


def emit(client: httpx2.Client, session: str, step: int) -> None:
    body = {"event_type": "step", "test_data": {"step": step}}
    assert client.post(f"{session}/test", json=body).status_code == 200


def data_of(lines: Iterator[str]) -> dict[str, Any]:
    line = next(line for line in lines if line.startswith("data: "))
    data: dict[str, Any] = json.loads(line.removeprefix("data: "))["data"]
    return data


def test_server_sent_events_pass_one_by_one(client: httpx2.Client) -> None:
    """Each is here before the next one is emitted; a proxy that collects would wait for ever."""
    session = create(client)
    with client.stream("GET", f"{session}/sse") as stream:
        assert stream.headers["content-type"] == "text/event-stream; charset=utf-8"
        lines = stream.iter_lines()
        assert next(lines).startswith("id: ")
        for step in range(5):
            emit(client, session, step)
            assert data_of(lines) == {"step": step}


def test_a_websocket_passes_both_ways(client: httpx2.Client, url: str) -> None:
    session = create(client)
    headers = {"Origin": url}
    with client.websocket(f"{session}/ws", headers=headers) as websocket:
        for step in range(5):
            emit(client, session, step)
            assert websocket.receive_json(timeout=PATIENCE)["data"] == {"step": step}
        websocket.send_json({"said": "enough"})
        said = websocket.receive_json(timeout=PATIENCE)
    assert (said["event_type"], said["data"]) == ("client.message", {"said": "enough"})


def test_pages_of_other_origins_are_refused(client: httpx2.Client) -> None:
    session = create(client)
    headers = {"Origin": "https://evil.example"}
    with (
        pytest.raises(WebSocketUpgradeError) as refused,
        client.websocket(f"{session}/ws", headers=headers),
    ):
        pass
    assert refused.value.response.status_code == 403


def test_heartbeats_keep_a_silent_stream_open(tmp_path: Path) -> None:
    """Twice as long as nginx waits, nothing happens; then the stream is still there."""
    port = free_port()
    with (
        application(port, heartbeat=0.25),
        proxy(tmp_path, port, read_timeout="1s") as url,
        httpx2.Client(base_url=url, timeout=PATIENCE) as client,
    ):
        session = create(client)
        with client.stream("GET", f"{session}/sse") as stream:
            lines = stream.iter_lines()
            comments = 0
            while comments < 8:
                comments += next(lines).startswith(":")
            emit(client, session, 1)
            assert data_of(lines) == {"step": 1}


def test_a_client_that_never_reads_is_given_up(tmp_path: Path) -> None:
    """nginx takes only what it can hand on, so the application can't send, and notices."""
    port = free_port()
    with (
        application(port, write_timeout=0.5),
        proxy(tmp_path, port) as url,
        httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE) as client,
    ):
        session = create(client)
        address = urlsplit(url)
        with socket.create_connection((address.hostname, address.port)) as stuck:
            stuck.sendall(f"GET {session}/sse HTTP/1.1\r\nHost: {address.netloc}\r\n\r\n".encode())
            wait_for(lambda: is_followed(client, session))
            body = {"event_type": "step", "test_data": {"text": "x" * 250_000}}
            for _ in range(100):
                assert client.post(f"{session}/test", json=body).status_code == 200
            wait_for(lambda: not is_followed(client, session))


def is_followed(client: httpx2.Client, session: str) -> bool:
    has_sse: bool = client.get(f"{session}/stats").json()["has_sse"]
    return has_sse


def test_a_browser_is_told_to_come_back_while_the_application_is_away(tmp_path: Path) -> None:
    """After a 502 it never would."""
    with (
        proxy(tmp_path, free_port()) as url,
        httpx2.Client(base_url=url, timeout=PATIENCE) as client,
    ):
        answer = client.get("/callbacks/sessions/any/sse")
        assert (answer.status_code, answer.text) == (200, "retry: 2000\n\n")
        assert answer.headers["content-type"] == "text/event-stream"
        assert client.get("/callbacks/sessions/any").status_code == 502
