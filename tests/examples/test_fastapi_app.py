"""The FastAPI example under a real server, asked by a real client."""

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import anyio
import httpx2
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"

pytestmark = pytest.mark.real_server


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """The event loop of the client, which has nothing to do with the server's."""
    return "asyncio"


class Server:
    """The example under uvicorn, in a process of its own."""

    def __init__(self, log: Path) -> None:
        self._log = log
        # The socket listens before the process starts, so nobody has to wait for the server.
        with socket.create_server(("127.0.0.1", 0)) as listening, log.open("wb") as output:
            self.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
            command = [sys.executable, "-m", "uvicorn", "fastapi_app:app"]
            command += ["--app-dir", str(EXAMPLES), "--fd", str(listening.fileno())]
            self._process = subprocess.Popen(
                command,
                pass_fds=[listening.fileno()],
                stdout=output,
                stderr=subprocess.STDOUT,
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
def server(tmp_path: Path) -> Iterator[Server]:
    started = Server(tmp_path / "server.log")
    yield started
    started.stop()


async def test_the_answer_tells_which_follow_ups_worked(server: Server) -> None:
    async with httpx2.AsyncClient(base_url=server.url, timeout=30) as client:
        answer = await client.post("/orders", json={"item": "tea", "quantity": 2})
        health = (await client.get("/health")).json()
    assert answer.status_code == 201
    assert answer.json() == {
        "number": 1,
        "follow_ups": {"take_from_stock": "ok", "send_receipt": "ok", "tell_crm": "error"},
    }
    assert health["stock"]["tea"] == 998
    [problem] = health["problems"]
    assert problem.endswith("Shop.tell_crm for 'order.created': ConnectionError")


async def test_several_follow_ups_may_fail(server: Server) -> None:
    async with httpx2.AsyncClient(base_url=server.url, timeout=30) as client:
        answer = await client.post("/orders", json={"item": "coffee", "quantity": 1})
    assert answer.status_code == 201
    assert answer.json()["follow_ups"] == {
        "take_from_stock": "error",
        "send_receipt": "ok",
        "tell_crm": "error",
    }


async def test_no_answer_tells_what_an_exception_said(server: Server) -> None:
    async with httpx2.AsyncClient(base_url=server.url, timeout=30) as client:
        answers = [await client.post("/orders", json={"item": "tea", "quantity": 1})]
        answers.append(await client.get("/health"))
    assert "crm.internal" not in "".join(answer.text for answer in answers)
    assert "crm.internal:5432 is down" in server.stop()


async def test_a_handler_in_a_worker_thread_triggers_in_the_loop(server: Server) -> None:
    async with httpx2.AsyncClient(base_url=server.url, timeout=30) as client:
        await client.post("/orders", json={"item": "tea", "quantity": 1})
        shipped = await client.post("/orders/1/shipment")
        unknown = await client.post("/orders/99/shipment")
    assert shipped.json() == {"number": 1, "follow_ups": {"print_label": "ok"}}
    assert unknown.status_code == 404


async def test_eight_requests_at_once_do_not_mix(server: Server) -> None:
    numbers: list[int] = []

    async def order_and_ship(client: httpx2.AsyncClient) -> None:
        created = (await client.post("/orders", json={"item": "tea", "quantity": 1})).json()
        assert list(created["follow_ups"].values()) == ["ok", "ok", "error"]
        shipped = (await client.post(f"/orders/{created['number']}/shipment")).json()
        assert shipped == {"number": created["number"], "follow_ups": {"print_label": "ok"}}
        numbers.append(created["number"])

    async with httpx2.AsyncClient(base_url=server.url, timeout=30) as client:
        async with anyio.create_task_group() as group:
            for _ in range(8):
                group.start_soon(order_and_ship, client)
        health = (await client.get("/health")).json()
    assert sorted(numbers) == list(range(1, 9))
    assert health["stock"]["tea"] == 992
    assert len(health["problems"]) == 8


async def test_the_server_shuts_down_in_order(server: Server) -> None:
    async with httpx2.AsyncClient(base_url=server.url, timeout=30) as client:
        await client.post("/orders", json={"item": "tea", "quantity": 1})
    log = server.stop()
    assert "Application shutdown complete." in log
    assert "Traceback" not in log
