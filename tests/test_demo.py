"""``python -m callbackkit``: the demos, piped, in a real terminal and served; deliveries."""

import errno
import fcntl
import os
import pty
import re
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
import wave
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import httpx2
import pytest

from callbackkit import (
    CallbackConfig,
    CallbackManager,
    CircuitBreaker,
    Delivery,
    Gone,
    RetryPolicy,
    Session,
    Transport,
)
from callbackkit.__main__ import exit_code, find_example, main
from callbackkit.delivery.transport import DeliveryConfig
from callbackkit.stores.sqlite import SQLiteStore
from callbackkit.webhooks.transport import endpoint_name

ROOT = Path(__file__).parents[1]
CALL = ROOT / "examples" / "data" / "call.wav"
TRANSCRIPT = (ROOT / "tests" / "examples" / "transcript.txt").read_text("utf-8").splitlines()

COMMAND = [sys.executable, "-m", "callbackkit"]
HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"
OTHER_SCREEN, FIRST_SCREEN = "\x1b[?1049h", "\x1b[?1049l"


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, check=False, timeout=50
    )


# Piped.


def test_piped_it_prints_the_transcript() -> None:
    done = run("demo", "--call")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == TRANSCRIPT


def test_it_plays_another_recording(tmp_path: Path) -> None:
    other = tmp_path / "other.wav"
    other.write_bytes(CALL.read_bytes())
    assert run("demo", "--call", other).stdout.splitlines() == TRANSCRIPT


def test_real_time_takes_as_long_as_the_recording(tmp_path: Path) -> None:
    second = tmp_path / "second.wav"
    with wave.open(str(second), "wb") as wav:
        wav.setparams((1, 2, 8000, 0, "NONE", "not compressed"))
        wav.writeframes(CALL.read_bytes()[44 : 44 + 16000])
    begin = time.monotonic()
    done = run("demo", "--call", "--realtime", second)
    assert time.monotonic() - begin >= 1.0
    assert done.stdout.splitlines()[:2] == TRANSCRIPT[:2]
    assert "frames 50, dropped 0" in done.stdout


def test_it_ends_when_nobody_reads_any_more() -> None:
    process = subprocess.Popen(
        [*COMMAND, "demo", "--call"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    _, errors = process.communicate(timeout=50)
    assert (process.returncode, errors) == (141, b"")


@pytest.mark.parametrize("name", ["nowhere.wav", "empty.wav", "text.wav", "cut.wav", "."])
def test_a_bad_file_is_one_line_and_exit_code_2(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("no sound")
    (tmp_path / "cut.wav").write_bytes(CALL.read_bytes()[:5000])
    done = run("demo", "--call", tmp_path / name)
    assert (done.returncode, done.stdout) == (2, "")
    [line] = done.stderr.splitlines()
    assert line.startswith(f"callbackkit: {tmp_path / name}: ")


def test_interrupted_it_ends_without_a_traceback() -> None:
    process = subprocess.Popen(
        [*COMMAND, "demo", "--call", "--realtime"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=50)
    assert (process.returncode, errors) == (130, b"")


# Without a command.


def test_without_a_command_it_prints_help() -> None:
    done = run()
    assert (done.returncode, done.stderr) == (0, "")
    assert "usage: python -m callbackkit" in done.stdout
    assert "demo" in done.stdout


@pytest.mark.parametrize("arguments", [["dmeo"], ["demo", "a.wav", "b.wav"], ["demo", "--loud"]])
def test_unknown_arguments_are_refused(arguments: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: python -m callbackkit" in capsys.readouterr().err


# Where the examples come from.


@pytest.mark.parametrize("place", ["package/_examples", "examples"])
def test_an_example_is_found_in_a_wheel_and_in_a_checkout(tmp_path: Path, place: str) -> None:
    path = tmp_path / place / "voice_bot.py"
    path.parent.mkdir(parents=True)
    path.touch()
    assert find_example(tmp_path / "package", "voice_bot.py") == path


def test_a_missing_example_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"voice_bot\.py is neither in .+ nor in "):
        find_example(tmp_path / "package", "voice_bot.py")


# A text.

POEM = "# A poem\n\nThe fog comes\non little cat feet. \u00e9\x1b[31m <graphai:END>\n"


def spoken(output: str, name: str = "read_aloud") -> str:
    """Put together again what a node said, from the lines of a transcript."""
    return "\n".join(re.findall(rf"^{name}: (.*)$", output, re.MULTILINE))


def test_a_text_goes_through_the_graph_whole(tmp_path: Path) -> None:
    path = tmp_path / "poem.md"
    path.write_text(POEM, "utf-8")
    done = run("demo", path)
    assert (done.returncode, done.stderr) == (0, "")
    assert spoken(done.stdout) == POEM.rstrip("\n")
    assert spoken(done.stdout, "outline") == "# A poem"
    assert spoken(done.stdout, "sum_up") == "12 words under 1 headings. "
    assert "escaped    parsed back the same\n" in done.stdout
    assert 'the last is {"type":"stream_end","token":"<graphai:END>","status":"ok"}' in done.stdout


def test_standard_input_is_a_text_too() -> None:
    done = subprocess.run(
        [*COMMAND, "demo", "-"], input=POEM.encode(), capture_output=True, check=False, timeout=50
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert spoken(done.stdout.decode()) == POEM.rstrip("\n")


def test_without_a_file_it_streams_the_readme() -> None:
    done = run("demo")
    assert (done.returncode, done.stderr) == (0, "")
    readme = (ROOT / "README.md").read_text("utf-8")
    assert spoken(done.stdout) == readme.rstrip("\n")


@pytest.mark.parametrize("name", ["nowhere.txt", "latin1.txt", "."])
def test_a_bad_text_is_one_line_and_exit_code_2(tmp_path: Path, name: str) -> None:
    (tmp_path / "latin1.txt").write_bytes(b"caf\xe9")
    done = run("demo", tmp_path / name)
    assert (done.returncode, done.stdout) == (2, "")
    [line] = done.stderr.splitlines()
    assert line.startswith(f"callbackkit: {tmp_path / name}: ")


# An agent that is killed.


def test_an_agent_that_is_killed_does_its_work(tmp_path: Path) -> None:
    path = tmp_path / "poem.md"
    path.write_text(POEM, "utf-8")
    done = run("demo", "--session", path)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert done.stdout.startswith("seed ")
    assert done.stdout.splitlines()[-1].startswith("ALL WELL")


@pytest.mark.parametrize("arguments", [["--call", "--session"], ["--session", "--fast"]])
def test_a_killed_agent_takes_no_other_way_of_showing(arguments: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["demo", *arguments])
    assert caught.value.code == 2
    assert "--session" in capsys.readouterr().err


def test_interrupted_it_leaves_no_agent_and_no_traceback() -> None:
    process = subprocess.Popen(
        [*COMMAND, "demo", "--session"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    process.stdout.readline()
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, errors = process.communicate(timeout=50)
    assert (process.returncode, errors) == (130, b"")


# Webhooks to a receiver that is in trouble.

TROUBLES = "could not connect", "HTTP 500", "TimeoutError: not done within 0.5 s"


@pytest.mark.real_server
@pytest.mark.timeout(120)
def test_a_receiver_that_is_stopped_breaks_and_hangs_gets_everything_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, folder = tmp_path / "poem.md", tmp_path / "folder"
    path.write_bytes((POEM * 5 + "of\r\nanother\rline\x00").encode())
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    done = subprocess.run(
        [*COMMAND, "demo", "--webhook", path],
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert done.stdout.splitlines()[-1].startswith("ALL WELL")
    # It was in trouble indeed, each kind of it, and so was the agent.
    for trouble in TROUBLES:
        assert re.search(rf"^ +\d+ times .*{trouble}$", done.stdout, re.MULTILINE), done.stdout
    assert "endpoint.failing: " in done.stdout
    assert "endpoint.recovered: " in done.stdout
    assert re.search(r"the agent is killed while \d+ events wait", done.stdout)
    # What was kept but not answered came again.
    [repeats] = re.findall(r"^repeats +(\d+),", done.stdout, re.MULTILINE)
    assert int(repeats) > 0
    assert "whsec_" not in done.stdout
    assert list(folder.iterdir()) == []


@pytest.mark.real_server
def test_webhooks_interrupted_leave_no_process_no_file_and_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    process = subprocess.Popen(
        [*COMMAND, "demo", "--webhook"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline().endswith("the receiver is well\n")
    assert process.stdout.readline().endswith("the agent begins\n")
    # The folder is in the arguments of both.
    [folder] = tmp_path.iterdir()
    assert len(processes_with(folder.name)) == 2
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=50)
    assert (process.returncode, errors) == (130, "")
    assert list(tmp_path.iterdir()) == []
    assert processes_with(folder.name) == []


def processes_with(word: str) -> list[str]:
    """Return the command lines of this machine that a word is in."""
    found = subprocess.run(["ps", "-ww", "-eo", "args"], capture_output=True, text=True, check=True)
    return [line for line in found.stdout.splitlines() if word in line]


@pytest.mark.parametrize("name", ["aiohttp", "flask"])
def test_what_webhooks_need_is_named_with_its_remedy(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    assert main(["demo", "--webhook"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == (
        f"callbackkit: --webhook needs {name}: pip install 'callbackkit[webhook]' flask\n"
    )


def test_webhooks_of_a_bad_text_are_one_line_and_exit_code_2(tmp_path: Path) -> None:
    done = run("demo", "--webhook", tmp_path / "nowhere.txt")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"callbackkit: {tmp_path / 'nowhere.txt'}: No such file or directory\n"


@pytest.mark.parametrize("other", ["--call", "--session", "--serve", "--fast", "--realtime"])
def test_webhooks_are_shown_in_no_other_way(other: str, capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["demo", "--webhook", other])
    assert caught.value.code == 2
    assert "--webhook" in capsys.readouterr().err


# A chat that is served.


class Chat:
    """``demo --serve`` in a process."""

    def __init__(self, *arguments: str | Path) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, "demo", "--serve", "--port", "0", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[str] = []
        self.url = self.read_to(" is the page").split()[0]

    def read_to(self, words: str) -> str:
        """Read its output to a line that has some words, and return that."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if words in line:
                return line
        raise AssertionError("".join(self.lines))

    def stop(self, number: signal.Signals = signal.SIGKILL) -> int:
        """End it with a signal, unless it has ended; return the exit code."""
        self.process.send_signal(number)
        try:
            rest, _ = self.process.communicate(timeout=20)
            self.lines.append(rest)
        finally:
            self.process.kill()
        return self.process.returncode


@pytest.fixture
def serve() -> Iterator[Callable[..., Chat]]:
    """Start chats that end with the test."""
    chats: list[Chat] = []

    def start(*arguments: str | Path) -> Chat:
        chats.append(Chat(*arguments))
        return chats[-1]

    yield start
    for chat in chats:
        if chat.process.poll() is None:
            chat.stop()


@pytest.mark.real_server
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -15)])
def test_a_chat_goes_on_when_it_is_served_again(
    tmp_path: Path, serve: Callable[..., Chat], number: signal.Signals, code: int
) -> None:
    path, database = tmp_path / "poem.md", tmp_path / "chat.db"
    path.write_text(POEM + "\n# Another\n\n" + "fog " * 40, "utf-8")
    chat = serve(path, "--file", database)
    page = httpx2.get(chat.url)
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    answer = httpx2.post(f"{chat.url}chat", json={"message": "Another \x1b[31m poem"})
    assert answer.status_code == 201
    assert "Another  [31m poem" in chat.read_to("client.message")
    assert "50% A poem" in chat.read_to(" progress ")
    assert chat.stop(number) == code
    again = serve(path, "--file", database)
    assert "100% Another" in again.read_to(" progress ")
    assert "'sections': 2" in again.read_to(" completion ")
    assert again.stop(number) == code
    output = "".join(chat.lines + again.lines)
    assert output.count("Where does the text") == 1
    assert "Traceback" not in output
    # What a client says is never a command to the terminal.
    assert "\x1b" not in output


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nowhere.md"], "nowhere.md: No such file"),
        (["--file", "nowhere/chat.db"], "nowhere/chat.db"),
        (["--port", "{port}"], "Address already in use"),
    ],
)
def test_what_can_not_be_served_is_one_line_and_exit_code_2(
    tmp_path: Path, arguments: list[str], told: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        given = [each.format(port=taken.getsockname()[1]) for each in arguments]
        done = subprocess.run(
            [*COMMAND, "demo", "--serve", *given],
            capture_output=True,
            text=True,
            check=False,
            timeout=50,
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
    assert (done.returncode, done.stdout) == (2, "")
    [line] = done.stderr.splitlines()
    assert line.startswith("callbackkit: ")
    assert told in line


@pytest.mark.parametrize("name", ["fastapi", "msgspec", "uvicorn", "websockets"])
def test_what_serving_needs_is_named_with_its_remedy(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    assert main(["demo", "--serve"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    [line] = said.err.splitlines()
    assert line.startswith(f"callbackkit: --serve needs {name}: pip install ")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--serve", "--call"],
        ["--serve", "--fast"],
        ["--serve", "--port", "65536"],
        ["--serve", "--port", "http"],
        ["--port", "80"],
        ["--file", "chat.db"],
        ["--redis", "redis://127.0.0.1"],
        ["--serve", "--redis", "http://127.0.0.1"],
        ["--serve", "--redis"],
        ["--serve", "--redis", "redis://127.0.0.1", "--file", "chat.db"],
    ],
)
def test_what_serving_can_not_be_told_is_refused(
    arguments: list[str], capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("REDIS_URL", raising=False)
    with pytest.raises(SystemExit) as caught:
        main(["demo", *arguments])
    assert caught.value.code == 2
    assert "usage: python -m callbackkit" in capsys.readouterr().err


# Dead letters.


class Wall(Transport):
    """Delivers nothing, or everything."""

    name = "wall"
    retry = RetryPolicy(schedule=())
    breaker = None

    def __init__(self) -> None:
        self.door: list[str] | None = None

    async def send(self, delivery: Delivery) -> None:
        if self.door is None:
            raise ConnectionError("a\x1b[31m wall")
        self.door.append(delivery.id)


async def until_settled(session: Session) -> None:
    while True:
        if (await session.stats()).queued_events == 0:
            return
        await anyio.sleep(0.01)


def make_letters(file: Path) -> list[str]:
    """Have two sessions with a dead letter each, and one with none; return the ids of these two."""

    async def fail() -> list[str]:
        async with CallbackManager(SQLiteStore(file), [Wall()]) as manager:
            await (await manager.create_session()).progress(1.0)
            deleted = await manager.create_session()
            await manager.delete_session(deleted.id)
            sessions = [await manager.create_session({"delivery_method": "wall"}) for _ in "ab"]
            for session in sessions:
                await session.progress(0.5)
                await until_settled(session)
            return [session.id for session in sessions]

    return anyio.run(fail)


def deliver(file: Path, session_ids: list[str]) -> list[str]:
    """Deliver what is owed of sessions now, and return the ids of the deliveries."""
    wall = Wall()
    wall.door = []

    async def go_on() -> None:
        async with CallbackManager(SQLiteStore(file), [wall]) as manager:
            for session_id in session_ids:
                await until_settled(await manager.get_session(session_id))

    anyio.run(go_on)
    return wall.door


def test_dead_letters_are_listed_one_a_line(tmp_path: Path) -> None:
    sessions = make_letters(tmp_path / "events.db")
    done = run("dead-letters", tmp_path / "events.db")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert sorted(line.split()[2].split("_")[0] for line in lines) == sorted(sessions)
    for line in lines:
        assert line.endswith("  wall  1 events  ConnectionError: a [31m wall")
    assert deliver(tmp_path / "events.db", sessions) == []


def test_dead_letters_of_all_sessions_are_delivered_again(tmp_path: Path) -> None:
    sessions = make_letters(tmp_path / "events.db")
    done = run("redrive", tmp_path / "events.db")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "2 dead letters are to be delivered again"
    delivered = deliver(tmp_path / "events.db", sessions)
    assert sorted(each.split("_")[0] for each in delivered) == sorted(sessions)
    assert run("dead-letters", tmp_path / "events.db").stdout == ""


def test_dead_letters_of_one_session_are_delivered_again(tmp_path: Path) -> None:
    sessions = make_letters(tmp_path / "events.db")
    done = run("redrive", tmp_path / "events.db", sessions[1])
    assert done.stdout.splitlines()[-1] == "1 dead letters are to be delivered again"
    [delivered] = deliver(tmp_path / "events.db", sessions)
    assert delivered.startswith(sessions[1])


def test_an_unknown_session_or_file_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    make_letters(tmp_path / "events.db")
    done = run("redrive", tmp_path / "events.db", "nobody")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "callbackkit: no session 'nobody'\n"
    done = run("dead-letters", tmp_path / "nowhere.db")
    assert (done.returncode, done.stderr) == (
        2,
        f"callbackkit: {tmp_path / 'nowhere.db'}: no such file\n",
    )
    assert not (tmp_path / "nowhere.db").exists()


# Endpoints and attempts.

URL = "https://hooks.example.com/callbacks?token=hunter2"
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


class Hook(Transport):
    """Has endpoints that are named like those of webhooks, and is in no state to deliver."""

    name = "webhook"
    retry = RetryPolicy(schedule=(600.0,), jitter=0)
    breaker = CircuitBreaker(failures=2, open_for=600.0)

    def endpoint(self, session_id: str, config: DeliveryConfig) -> str:
        assert isinstance(config, CallbackConfig)
        return endpoint_name(config, self.name)

    async def send(self, delivery: Delivery) -> None:
        if delivery.event.data["progress"] == 1.0:
            raise Gone("moved\x1b[31m away")
        if delivery.event.data["progress"] == 0.75:
            return
        raise ConnectionError("a\x1b[31m wall")


def make_endpoints(file: Path) -> list[str]:
    """Have four sessions delivered to three endpoints; return their ids."""
    webhook = {"webhook_url": URL, "webhook_secret": SECRET}
    other = {**webhook, "headers": {"Authorization": "Bearer hunter2"}}
    configs = [webhook, webhook, other, {"delivery_method": "wall"}]

    async def fail() -> list[str]:
        async with CallbackManager(SQLiteStore(file), [Hook(), Wall()]) as manager:
            await (await manager.create_session()).progress(1.0)
            deleted = await manager.create_session({"delivery_method": "wall"})
            await manager.delete_session(deleted.id)
            sessions = [await manager.create_session(config) for config in configs]
            for session, progress in zip(sessions, (0.1, 0.2, 0.75, 0.5), strict=True):
                await session.progress(progress)
                await until_tried(session, 1)
            await sessions[2].progress(1.0)
            await until_tried(sessions[2], 2)
            return [session.id for session in sessions]

    return anyio.run(fail)


async def until_tried(session: Session, times: int) -> None:
    while True:
        if len(await session.attempts()) >= times:
            return
        await anyio.sleep(0.01)


def test_endpoints_are_listed_with_how_they_stand_and_no_secrets(tmp_path: Path) -> None:
    ids = make_endpoints(tmp_path / "events.db")
    done = run("endpoints", tmp_path / "events.db")
    assert (done.returncode, done.stderr) == (0, "")
    wall, *hooks = sorted(done.stdout.splitlines(), key=lambda line: line.startswith("webhook:"))
    assert wall == f"wall:{ids[3]}  closed  0 failures in a row  1 sessions"
    name = r"webhook:hooks\.example\.com:\w+  "
    [opened] = [line for line in hooks if "  open  " in line]
    time_text = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\+00:00"
    assert re.fullmatch(
        rf"{name}open  2 failures in a row  2 sessions  not before {time_text}", opened
    )
    [disabled] = [line for line in hooks if line != opened]
    assert re.fullmatch(
        rf"{name}disabled  0 failures in a row  1 sessions  Gone: moved \[31m away", disabled
    )
    assert "hunter2" not in done.stdout
    assert "whsec" not in done.stdout


def test_the_endpoint_of_one_session_is_listed(tmp_path: Path) -> None:
    ids = make_endpoints(tmp_path / "events.db")
    [line] = run("endpoints", tmp_path / "events.db", ids[0]).stdout.splitlines()
    assert "  open  2 failures in a row  1 sessions  not before " in line


def test_endpoints_of_a_transport_that_keeps_sessions_apart_show_how_they_stand(
    tmp_path: Path,
) -> None:
    """It names them as it likes, also where a session has a URL; the store knows of them."""
    file = tmp_path / "events.db"

    class Apart(Wall):
        name = "apart"
        retry = RetryPolicy(schedule=(600.0,), jitter=0)
        breaker = CircuitBreaker(failures=1, open_for=600.0)

    async def fail() -> str:
        async with CallbackManager(SQLiteStore(file), [Apart()]) as manager:
            session = await manager.create_session({"delivery_method": "apart", "webhook_url": URL})
            await session.progress(0.5)
            await until_tried(session, 1)
            return session.id

    session_id = anyio.run(fail)
    done = run("endpoints", file)
    assert (done.returncode, done.stderr) == (0, "")
    [line] = done.stdout.splitlines()
    assert line.startswith(f"apart:{session_id}  open  1 failures in a row  1 sessions  not before")


def test_attempts_are_listed_one_a_line(tmp_path: Path) -> None:
    ids = make_endpoints(tmp_path / "events.db")
    done = run("attempts", tmp_path / "events.db")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert sorted(line.split()[2].split("_")[0] for line in lines) == sorted([*ids, ids[2]])
    of_one = [line for line in lines if ids[2] in line]
    assert run("attempts", tmp_path / "events.db", ids[2]).stdout.splitlines() == of_one
    when = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\+00:00"
    what = rf"{ids[2]}_\w+_{{}}  attempt 1  1 events  \d\.\d{{{{3}}}} s"
    for number, (line, how) in enumerate(
        zip(of_one, ("delivered", r"failed: Gone: moved \[31m away"), strict=True), 1
    ):
        assert re.fullmatch(f"{when}  {what.format(number)}  {how}", line)


@pytest.mark.parametrize("command", ["endpoints", "attempts"])
def test_a_session_that_is_gone_has_nothing_to_list(tmp_path: Path, command: str) -> None:
    file = tmp_path / "events.db"
    [first, second] = make_letters(file)

    async def delete() -> None:
        async with CallbackManager(SQLiteStore(file)) as manager:
            await manager.delete_session(first)

    anyio.run(delete)
    done = run(command, file)
    assert (done.returncode, done.stderr) == (0, "")
    [line] = done.stdout.splitlines()
    assert second in line
    done = run(command, file, "nobody")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "callbackkit: no session 'nobody'\n"


# The same of a Redis.


@pytest.fixture(scope="module")
def redis() -> Iterator[str]:
    """The URL of one that nobody else uses: the command looks at the usual prefix."""
    from tests.stores.redis_server import Server

    server = Server()
    server.start()
    yield server.url
    server.close()


@pytest.mark.real_server
@pytest.mark.parametrize("how", ["URL", "environment"])
def test_letters_and_endpoints_in_a_redis_are_listed(
    redis: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from callbackkit.stores.redis import RedisStore

    async def fail() -> str:
        async with CallbackManager(RedisStore.from_url(redis), [Wall()]) as manager:
            session = await manager.create_session({"delivery_method": "wall"})
            await session.progress(0.5)
            await until_settled(session)
            return session.id

    async def succeed() -> None:
        wall = Wall()
        wall.door = []
        async with CallbackManager(RedisStore.from_url(redis), [wall]) as manager:
            await until_settled(await manager.get_session(session_id))

    session_id = anyio.run(fail)
    if how == "environment":
        monkeypatch.setenv("REDIS_URL", redis)
    place = redis if how == "URL" else "REDIS_URL"
    assert run("endpoints", place, session_id).stdout.startswith(f"wall:{session_id}  closed  ")
    assert "failed: ConnectionError: a [31m wall" in run("attempts", place, session_id).stdout
    assert session_id in run("dead-letters", place).stdout
    done = run("redrive", place, session_id)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "1 dead letters are to be delivered again"
    anyio.run(succeed)
    assert run("dead-letters", place).stdout == ""


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("REDIS_URL", "REDIS_URL is not set to a URL, redis://host:6379 say"),
        ("redis://:hunter2@[::1", ""),
    ],
)
def test_where_there_can_be_no_redis_that_is_told(
    place: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("REDIS_URL", raising=False)
    done = run("dead-letters", place)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"callbackkit: {told}")
    assert len(done.stderr.splitlines()) == 1
    assert "hunter2" not in done.stderr


def test_a_redis_that_does_not_answer_is_one_line_and_exit_code_2() -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    done = run("dead-letters", f"redis://:hunter2@127.0.0.1:{port}")
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert "hunter2" not in done.stderr


# In a terminal.


class Terminal:
    """A pseudo-terminal with the demo in it."""

    def __init__(self, *arguments: str, columns: int = 80, rows: int = 24, **variables: str):
        self.columns, self.rows = columns, rows
        self.output = ""
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))
        unset = {"COLUMNS", "LINES", "NO_COLOR"}
        kept = {name: value for name, value in os.environ.items() if name not in unset}
        self.process = subprocess.Popen(
            [*COMMAND, "demo", *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**kept, "TERM": "xterm", "PYTHONIOENCODING": "utf-8", **variables},
        )
        os.close(slave)

    def read(self, until: Callable[[str], object] = lambda _: False) -> None:
        """Read what it writes until it ends, or until a condition on all of it holds."""
        while not until(self.output):
            try:
                data = os.read(self._master, 65536)
            except OSError as exc:
                if exc.errno != errno.EIO:  # what Linux says when the other end is closed
                    raise
                data = b""
            if not data:
                break
            self.output += data.decode("utf-8", "replace")

    def close(self) -> int:
        """Read to the end and return the exit code."""
        self.read()
        os.close(self._master)
        return self.process.wait(timeout=50)

    @property
    def pictures(self) -> list[list[str]]:
        """What stood on the screen after each redraw, without colours."""
        found = re.findall(r"\x1b\[H(.*?)\x1b\[J", self.output, re.DOTALL)
        return [re.sub(r"\x1b\[\d*[mK]|\r", "", picture).split("\n") for picture in found]

    @property
    def rest(self) -> list[str]:
        """What was printed after the live view."""
        return self.output.rpartition(FIRST_SCREEN)[2].splitlines()


@pytest.mark.real_server
def test_a_terminal_shows_the_call_live() -> None:
    terminal = Terminal("--call")
    assert terminal.close() == 0
    assert terminal.rest == TRANSCRIPT
    states = [picture[1].split()[1] for picture in terminal.pictures]
    assert {"listening", "thinking", "speaking"} <= set(states)
    assert len(terminal.pictures) > 10
    levels = {picture[2] for picture in terminal.pictures}
    assert len(levels) > 10
    assert any("33%" in picture[3] for picture in terminal.pictures)
    assert len(terminal.pictures[-1]) == 24


@pytest.mark.real_server
@pytest.mark.parametrize("rows", [12, 24, 80])
def test_as_many_of_the_last_lines_are_shown_as_there_is_room_for(rows: int) -> None:
    terminal = Terminal("--call", "--fast", rows=rows)
    assert terminal.close() == 0
    for picture in terminal.pictures:
        shown = picture[6:]  # below five lines and a ruler
        if not shown:
            continue
        last = [line[:79] for line in TRANSCRIPT].index(shown[-1])
        assert shown == [line[:79] for line in TRANSCRIPT[: last + 1]][-(rows - 6) :]


@pytest.mark.real_server
@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (40, 15), (12, 4), (1, 1)])
def test_the_live_view_fits_the_terminal(columns: int, rows: int) -> None:
    terminal = Terminal("--call", "--fast", columns=columns, rows=rows)
    assert terminal.close() == 0
    assert terminal.pictures
    for picture in terminal.pictures:
        assert len(picture) <= rows
        assert all(len(line) < columns for line in picture)


@pytest.mark.real_server
def test_the_cursor_comes_back() -> None:
    terminal = Terminal("--call", "--fast")
    assert terminal.close() == 0
    assert terminal.output.startswith(OTHER_SCREEN + HIDE_CURSOR)
    assert terminal.output.count(SHOW_CURSOR + FIRST_SCREEN) == 1


@pytest.mark.real_server
def test_the_cursor_comes_back_after_an_interrupt() -> None:
    terminal = Terminal("--call")
    terminal.read(until=lambda output: "listening" in output)
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.close() == 130
    assert terminal.output.count(SHOW_CURSOR + FIRST_SCREEN) == 1
    assert "Traceback" not in terminal.output
    assert terminal.rest == TRANSCRIPT[: len(terminal.rest)]


@pytest.mark.real_server
def test_colours_can_be_turned_off() -> None:
    coloured, plain = Terminal("--call", "--fast"), Terminal("--call", "--fast", NO_COLOR="1")
    assert coloured.close() == plain.close() == 0
    assert re.search(r"\x1b\[\d+m", coloured.output)
    assert not re.search(r"\x1b\[\d*m", plain.output)


@pytest.mark.real_server
def test_a_terminal_without_utf8_gets_ascii() -> None:
    terminal = Terminal("--call", "--fast", PYTHONIOENCODING="ascii")
    assert terminal.close() == 0
    assert terminal.output.isascii()
    assert "transfer ...." in terminal.output


@pytest.mark.real_server
def test_a_dumb_terminal_gets_plain_lines() -> None:
    terminal = Terminal("--call", "--fast", TERM="dumb")
    assert terminal.close() == 0
    assert terminal.output.splitlines() == TRANSCRIPT


@pytest.mark.real_server
def test_a_terminal_shows_the_text_live(tmp_path: Path) -> None:
    path = tmp_path / "poem.md"
    path.write_text(POEM * 20, "utf-8")
    terminal = Terminal(str(path))
    assert terminal.close() == 0
    done = {picture[1].split()[-1] for picture in terminal.pictures}
    assert len(done) > 3, "the bar moves"
    assert any(
        "sum_up" in picture[3] or "read_aloud" in picture[3] for picture in terminal.pictures
    )
    assert all("readers" in picture[4] for picture in terminal.pictures)
    # What the text says is never a command to the terminal.
    assert "\x1b[31m <graphai" not in terminal.output
    assert terminal.rest.count("read_aloud: # A poem") == 20
    assert terminal.rest[-1].startswith("cancelled  after ")


@pytest.mark.real_server
@pytest.mark.parametrize(("columns", "rows"), [(40, 15), (12, 4), (1, 1)])
def test_the_live_view_of_a_text_fits_the_terminal(columns: int, rows: int) -> None:
    terminal = Terminal("--fast", columns=columns, rows=rows)
    assert terminal.close() == 0
    for picture in terminal.pictures:
        assert len(picture) <= rows
        assert all(len(line) < columns for line in picture)


@pytest.mark.real_server
def test_letters_that_a_terminal_has_not_are_replaced(tmp_path: Path) -> None:
    path = tmp_path / "poem.md"
    path.write_text(POEM, "utf-8")
    terminal = Terminal("--fast", str(path), PYTHONIOENCODING="ascii")
    assert terminal.close() == 0
    assert terminal.output.isascii()
    assert any("cat feet. ?" in line for line in terminal.rest)


@pytest.mark.real_server
def test_a_terminal_shows_the_trouble_live_until_it_is_interrupted(tmp_path: Path) -> None:
    path = tmp_path / "poem.md"
    path.write_text(POEM * 5, "utf-8")
    terminal = Terminal("--webhook", str(path), columns=60, rows=20)
    terminal.read(until=lambda output: "the receiver is answering 500" in output)
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.close() == 130
    assert terminal.output.count(SHOW_CURSOR + FIRST_SCREEN) == 1
    assert "Traceback" not in terminal.output
    assert terminal.rest[0].endswith("the receiver is well")
    moods = {picture[1].removeprefix("receiver  ") for picture in terminal.pictures}
    assert {"well", "stopped", "answering 500"} <= moods
    assert len({picture[3] for picture in terminal.pictures}) > 5, "the bar moves"
    for picture in terminal.pictures:
        assert len(picture) <= 20
        assert all(len(line) < 60 for line in picture)


def test_an_example_that_judges_itself_gives_the_exit_code() -> None:
    assert (exit_code(1), exit_code(0), exit_code({"spoken": 3}), exit_code(None)) == (1, 0, 0, 0)
