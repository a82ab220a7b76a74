"""The example of a receiver in Flask: what is signed is kept, and kept once."""

import gzip
import io
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import anyio
import httpx2
import pytest

from callbackkit import CallbackManager, Event
from callbackkit.__main__ import load
from callbackkit.wire.envelope import encode_event, encode_events
from callbackkit.wire.signature import sign

EXAMPLE = Path(__file__).parents[2] / "examples" / "flask_receiver.py"
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OTHER = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    return load(EXAMPLE)


async def emit(number: int) -> list[Event]:
    async with CallbackManager() as manager:
        session = await manager.create_session()
        return [await session.progress(step / 10, "on my way") for step in range(number)]


@pytest.fixture(scope="module")
def events() -> list[Event]:
    return anyio.run(emit, 3)


def signed(body: bytes, webhook: str = "s_e_1", secret: str = SECRET) -> dict[str, str]:
    now = int(time.time())
    return {
        "webhook-id": webhook,
        "webhook-timestamp": str(now),
        "webhook-signature": sign(secret, id=webhook, timestamp=now, body=body),
    }


class Receiver:
    """The example in a process; what it prints is in a file."""

    def __init__(self, output: Path, *arguments: str | Path) -> None:
        self.output = output
        with output.open("ab") as file:
            self.process = subprocess.Popen(
                [sys.executable, EXAMPLE, "--port", "0", *arguments],
                stdout=file,
                stderr=subprocess.PIPE,
                text=True,
                env=os.environ | {"WEBHOOK_SECRET": SECRET},
            )
        assert self.process.stderr is not None
        self.url = self.process.stderr.readline().split()[-1]

    def post(self, body: bytes, **headers: str) -> int:
        given = {**signed(body), **{name.replace("_", "-"): text for name, text in headers.items()}}
        return httpx2.post(self.url, content=body, headers=given).status_code

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=10)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Receiver]]:
    started: list[Receiver] = []

    def start(*arguments: str | Path) -> Receiver:
        started.append(Receiver(tmp_path / "output", *arguments))
        return started[-1]

    yield start
    for receiver in started:
        receiver.kill()


@pytest.mark.real_server
def test_what_is_signed_is_kept_once_also_by_one_that_was_killed(
    start: Callable[..., Receiver], tmp_path: Path, example: ModuleType, events: list[Event]
) -> None:
    file = tmp_path / "arrived.jsonl"
    receiver = start("--file", file)
    body = encode_event(events[0])
    assert receiver.post(body) == 204
    assert receiver.post(body) == 204
    receiver.kill()
    receiver = start("--file", file)
    assert receiver.post(body) == 204
    assert receiver.post(encode_event(events[1]), **signed(encode_event(events[1]), "s_e_2")) == 204
    assert example.read_arrivals(file) == [
        example.Arrival(f"s_e_{number}", event.id, "progress", event.data)
        for number, event in enumerate(events[:2], 1)
    ]


@pytest.mark.real_server
def test_what_is_not_signed_or_makes_no_sense_is_refused_and_not_kept(
    start: Callable[..., Receiver], tmp_path: Path, events: list[Event]
) -> None:
    receiver = start()
    body = encode_event(events[0])
    assert receiver.post(body, **signed(body, secret=OTHER)) == 401
    assert receiver.post(body, **signed(body + b" ")) == 401
    assert receiver.post(body, webhook_timestamp="1614265330") == 401
    assert httpx2.post(receiver.url, content=body).status_code == 401
    assert receiver.post(b"nonsense") == 400
    assert receiver.post(b'{"events": 7}') == 400
    assert httpx2.get(receiver.url).status_code == 405
    assert receiver.output.read_text("utf-8") == ""


@pytest.mark.real_server
def test_a_batch_is_printed_one_event_a_line_unpacked(
    start: Callable[..., Receiver], example: ModuleType, events: list[Event]
) -> None:
    receiver = start()
    body = gzip.compress(encode_events(events))
    assert receiver.post(body, content_encoding="gzip") == 204
    found = example.read_arrivals(receiver.output)
    assert [arrival.event for arrival in found] == [event.id for event in events]
    assert {arrival.webhook for arrival in found} == {"s_e_1"}


@pytest.mark.parametrize("secret", [None, "whsec_hunter!"])
def test_without_a_secret_it_does_not_begin(secret: str | None) -> None:
    environment = {name: text for name, text in os.environ.items() if name != "WEBHOOK_SECRET"}
    done = subprocess.run(
        [sys.executable, EXAMPLE, "--port", "0"],
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
        env=environment | ({} if secret is None else {"WEBHOOK_SECRET": secret}),
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "error: WEBHOOK_SECRET: " in done.stderr.splitlines()[-1]
    assert "hunter" not in done.stderr


# The inbox.


class FullDisk(io.BytesIO):
    """Takes nothing at first."""

    is_full = True

    def write(self, data: Any, /) -> int:
        if self.is_full:
            raise OSError(28, "No space left on device")
        return super().write(data)


def test_what_could_not_be_written_is_wanted_once_more(
    example: ModuleType, events: list[Event]
) -> None:
    disk = FullDisk()
    app = example.make_app(SECRET, example.Inbox(disk, set())).test_client()
    body = encode_event(events[0])
    assert app.post("/callbacks", data=body, headers=signed(body)).status_code == 500
    disk.is_full = False
    assert app.post("/callbacks", data=body, headers=signed(body)).status_code == 204
    assert disk.getvalue().count(b"\n{") == 1


def test_of_many_at_once_one_is_kept(example: ModuleType, events: list[Event]) -> None:
    file = io.BytesIO()
    inbox = example.Inbox(file, set())
    begin = threading.Barrier(8)
    told: list[bool] = []

    def keep() -> None:
        begin.wait(10)
        told.append(inbox.keep("s_e_1", events[:1]))

    threads = [threading.Thread(target=keep) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert sorted(told) == [False] + [True] * 7
    assert file.getvalue().count(b"\n{") == 1


def test_half_a_line_is_nothing(example: ModuleType, tmp_path: Path, events: list[Event]) -> None:
    file = io.BytesIO()
    example.Inbox(file, set()).keep("s_e_1", events[:1])
    line = file.getvalue()
    (tmp_path / "file").write_bytes(line + line[:20] + line)
    assert len(example.read_arrivals(tmp_path / "file")) == 2
    assert example.read_arrivals(tmp_path / "nowhere") == []
