"""The program of docs/tutorial/http.md under uvicorn, and its page in a real browser."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Page, sync_playwright

import callbackkit

pytestmark = pytest.mark.real_server

TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorial" / "http.md"
PATIENCE = 20.0
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]


@pytest.fixture
def page() -> Iterator[Page]:
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("there is no chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        page = browser.new_page()
        page.set_default_timeout(PATIENCE * 1000)
        yield page
        browser.close()


def write_program(folder: Path) -> None:
    """Save the application and its page, without the tests in between, as a reader does."""
    text = TUTORIAL.read_text("utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    program = [block for block in blocks if "TestClient(" not in block and "def talk" not in block]
    (folder / "tea.py").write_text("\n\n".join(program), "utf-8")


@contextmanager
def serving(folder: Path, port: int) -> Iterator[None]:
    """Run the program, and end it as an operator does."""
    root = str(Path(callbackkit.__file__).parents[1])
    process = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", "tea:app", "--port", str(port), "--no-access-log"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": root},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    patience = threading.Timer(2 * PATIENCE, process.kill)
    patience.start()
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        while "Uvicorn running on" not in line:
            assert line
            line = process.stdout.readline()
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate()
        patience.cancel()


def test_the_page_of_the_tutorial_goes_on_after_a_restart(tmp_path: Path, page: Page) -> None:
    """The question is asked before, and answered after it."""
    write_program(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    with serving(tmp_path, port):
        page.goto(f"http://127.0.0.1:{port}/")
        page.click("button")
        page.wait_for_selector("text=How many cups?")
    with serving(tmp_path, port):
        page.fill("input", "3")
        page.press("input", "Enter")
        page.wait_for_selector("text=3 cups of tea")
        items = page.locator("li").all_text_contents()
    assert [item.partition(" ")[0] for item in items] == [
        "tea.question",
        "client.message",
        *["progress"] * 3,
        "completion",
    ]
