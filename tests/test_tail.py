"""``python -m callbackkit tail`` against a real server: piped, in a terminal, interrupted."""

import contextlib
import errno
import fcntl
import json
import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from callbackkit import Event
from callbackkit.__main__ import main
from callbackkit.wire.envelope import encode_event
from tests.client.rig import STREAM, end, event, primed, sse
from tests.client.screen import Screen
from tests.http.rig import serving
from tests.tail_server import Room, Server

pytestmark = pytest.mark.real_server

PATIENCE = 20.0
COMMAND = [sys.executable, "-m", "callbackkit", "tail"]
# Its own terminal: there it is interrupted, and asks for what nobody is to see.
IN_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, sys.orig_argv[:1] + sys.argv[2:])
"""
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Generator[Server]:
    running = Server(tmp_path_factory.mktemp("tail") / "events.db")
    yield running
    running.kill()


@pytest.fixture
def room(server: Server, monkeypatch: pytest.MonkeyPatch) -> Room:
    room = server.room()
    monkeypatch.setenv("CALLBACKKIT_TOKEN", room.token)
    monkeypatch.delenv("NO_COLOR", raising=False)
    return room


def run(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Run the command in this process, which is quicker; give its code and what it wrote."""
    code = main(["tail", *arguments])
    told = capfd.readouterr()
    return code, told.out, told.err


@contextlib.contextmanager
def started(*arguments: str, **options: Any) -> Generator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def lines_until(process: "subprocess.Popen[str]", is_last: Callable[[str], object]) -> list[str]:
    assert process.stdout is not None
    lines: list[str] = []
    while not lines or not is_last(lines[-1]):
        line = process.stdout.readline()
        assert line, (lines, process.stderr and process.stderr.read())
        lines.append(line.rstrip("\n"))
    return lines


# Piped.


@pytest.mark.parametrize("method", ["auto", "sse", "websocket", "polling"])
def test_a_session_is_shown_until_it_has_ended(room: Room, capfd, method: str) -> None:
    room.emit("thinking", {"thought": "Hm.\x1b[31m"})
    room.emit("streaming_chunk", {"text": "The fog ", "node": "poet"})
    room.emit("streaming_chunk", {"text": "comes.", "node": "poet"})
    room.emit("progress", {"progress": 1})
    room.end()
    code, out, err = run(capfd, room.url, "--method", method)
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        f"--          following by {'sse' if method == 'auto' else method}",
        "thinking    Hm. [31m",
        "progress    " + "\u2588" * 30 + " 100%",
        "poet:       The fog comes.",
        "end         the session has ended",
    ]


def test_as_json_an_event_is_a_line_as_the_server_has_it(room: Room, capfd) -> None:
    data = {
        "text": "\u00e9\u9727 \x1b[31m \x9b31m \u2028 \u202e \U000e0041 \u3164",
        "n": [1, {"a": None}],
    }
    positions = [room.emit("custom.type", data), room.emit("progress", {"progress": 0.5})]
    room.end()
    code, out, err = run(capfd, room.url, "--json")
    assert (code, err) == (0, "")
    assert out.isprintable() is False
    assert out.replace("\n", "").isprintable()
    first, second = map(json.loads, out.split("\n")[:-1])
    assert (first["data"], first["session_id"]) == (data, room.id)
    assert [first["id"], second["id"]] == positions
    assert "\u00e9\u9727" in out
    assert "\u3164" not in out


def test_only_some_types_and_from_a_position_on(room: Room, capfd) -> None:
    room.emit("a.b", {"n": 1})
    position = room.emit("a.b", {"n": 2})
    room.emit("a.c", {"n": 3})
    room.emit("a.b", {"n": 4})
    room.end()
    code, out, _ = run(capfd, room.url, "--json", "--after", position, "--types", "a.b,x.y")
    assert code == 0
    assert [json.loads(line)["data"] for line in out.splitlines()] == [{"n": 4}]


def test_a_gap_is_shown(room: Room, capfd) -> None:
    room.emit("a.b", {"n": 1})
    room.end()
    code, out, _ = run(capfd, room.url, "--after", "0123-7")
    assert code == 0
    assert "!!! GAP !!! events are missing, nobody knows how many: between 0123-7" in out
    assert "a.b         n=1\n" in out


def test_a_server_that_is_killed_and_started_again_is_followed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(tmp_path / "events.db")
    try:
        room = server.room()
        monkeypatch.setenv("CALLBACKKIT_TOKEN", room.token)
        with started(room.url) as tail:
            for n in range(3):
                room.emit("count.up", {"n": n})
            lines_until(tail, lambda line: line.endswith("n=2"))
            server.kill()
            [*_, lost] = lines_until(tail, lambda line: line.startswith("--"))
            assert lost.endswith("; connecting again")
            server.start()
            for n in range(3, 6):
                room.emit("count.up", {"n": n})
            more = lines_until(tail, lambda line: line.endswith("n=5"))
            room.end()
            more += lines_until(tail, lambda line: line.startswith("end"))
            assert more == [
                "--          following again by sse",
                *(f"count.up    n={n}" for n in range(3, 6)),
                "end         the session has ended",
            ]
            assert tail.wait(PATIENCE) == 0
    finally:
        server.kill()


def test_as_json_what_happens_to_the_connection_goes_to_standard_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(tmp_path / "events.db")
    try:
        room = server.room()
        monkeypatch.setenv("CALLBACKKIT_TOKEN", room.token)
        with started(room.url, "--json") as tail:
            assert tail.stderr is not None
            room.emit("count.up", {"n": 1})
            lines_until(tail, lambda line: '"n":1' in line)
            server.kill()
            assert tail.stderr.readline().endswith("; connecting again\n")
            server.start()
            assert tail.stderr.readline() == "callbackkit: following again by sse\n"
            room.end()
            assert tail.communicate(timeout=PATIENCE) == ("", "")
            assert tail.returncode == 0
    finally:
        server.kill()


BUSY = PlainTextResponse("later", 503, {"Retry-After": "0"})
WHOLE = Response(primed() + sse(event(1), end(1)), headers=STREAM)


@contextlib.contextmanager
def answering(*answers: Response) -> Generator[str]:
    """A server that gives one answer after the other, whatever is asked for."""
    left = list(answers)

    async def answer(_: Request) -> Response:
        return left.pop(0)

    with serving(Starlette(routes=[Route("/{path:path}", answer)])) as port:
        yield f"http://127.0.0.1:{port}/sessions/s1"


def test_a_server_that_is_busy_when_it_begins_is_waited_for(monkeypatch, capfd) -> None:
    monkeypatch.setenv("CALLBACKKIT_TOKEN", "t")
    with answering(BUSY, BUSY, WHOLE) as url:
        code, out, err = run(capfd, url)
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "--          the server answered 503; connecting again",
        "--          following by sse",
        "count       number=1",
        "end         the session has ended",
    ]


@pytest.mark.parametrize("where", ["", "2>&-", "2>/dev/full"])
def test_as_json_it_goes_on_though_nobody_hears_of_the_connection(where: str, monkeypatch) -> None:
    monkeypatch.setenv("CALLBACKKIT_TOKEN", "t")
    with answering(BUSY, BUSY, WHOLE) as url:
        done = subprocess.run(
            ["/bin/sh", "-c", f'exec "$@" {where}', "sh", *COMMAND, url, "--json"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=50,
        )
    assert json.loads(done.stdout)["data"] == {"number": 1}
    assert done.returncode == 0
    assert done.stderr.splitlines() == (
        []
        if where
        else [
            "callbackkit: the server answered 503; connecting again",
            "callbackkit: following by sse",
        ]
    )


def test_where_streams_are_blocked_it_says_by_what_it_follows(monkeypatch) -> None:
    monkeypatch.setenv("CALLBACKKIT_TOKEN", "t")
    event = Event.of("a.b", {"n": 1}, position="ab-1")
    answers = {"events": [json.loads(encode_event(event))], "cursor": "ab-1", "has_more": False}

    async def page(request: Request) -> JSONResponse:
        is_new = request.query_params.get("after") != "ab-1"
        return JSONResponse(answers if is_new else {**answers, "events": []})

    async def state(_: Request) -> JSONResponse:
        return JSONResponse({"state": "ended", "position": "ab-1"})

    app = Starlette(routes=[Route("/sessions/s", state), Route("/sessions/s/events", page)])
    app.router.default = PlainTextResponse("no streams here", 405)
    with serving(app) as port, started(f"http://127.0.0.1:{port}/sessions/s") as tail:
        out, err = tail.communicate(timeout=PATIENCE)
        assert (tail.returncode, err) == (0, "")
    assert out.splitlines() == [
        "--          following by polling",
        "a.b         n=1",
        "end         the session has ended",
    ]


def test_what_a_node_says_is_shown_though_it_ends_no_line(room: Room) -> None:
    room.emit("streaming_chunk", {"text": "The fog", "node": "poet"})
    with started(room.url) as tail:
        lines_until(tail, lambda line: line == "poet:       The fog")


# Ended from outside.


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_it_ends_quietly_when_nobody_reads_any_more(room: Room, options: list[str]) -> None:
    """At once, not with the next event, which may never come."""
    room.emit("a.b", {})
    with started(room.url, *options) as tail:
        assert tail.stdout is not None
        assert tail.stderr is not None
        tail.stdout.readline()
        tail.stdout.close()
        assert tail.wait(PATIENCE) == 141
        assert tail.stderr.read() == ""


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_interrupted_it_ends_without_a_traceback(room: Room, options: list[str]) -> None:
    room.emit("a.b", {"n": 1})
    with started(room.url, *options) as tail:
        lines_until(tail, lambda line: "a.b" in line)
        tail.send_signal(signal.SIGINT)
        assert tail.communicate(timeout=PATIENCE) == ("", "")
        assert tail.returncode == 130


def test_one_that_waits_for_a_reader_can_be_interrupted(room: Room) -> None:
    """A pager shows a page and reads no more."""
    for n in range(40):
        room.emit("a.b", {"n": n, "text": "x" * 10_000})
    with started(room.url, "--json") as tail:
        assert tail.stdout is not None
        assert tail.stderr is not None
        assert tail.stdout.read(1) == "{"
        wait_until_full(tail.stdout.fileno())
        tail.send_signal(signal.SIGINT)
        assert tail.wait(PATIENCE) == 130
        assert tail.stderr.read() == ""


def wait_until_full(pipe: int) -> None:
    """Wait until a pipe has not grown for a while, as its writer waits."""
    count, was = -1, -2
    until = time.monotonic() + PATIENCE
    while count != was or count < 30_000:
        assert time.monotonic() < until
        was = count
        count = struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, b"\0" * 4))[0]
        select.select([], [], [], 0.05)


def test_a_reader_that_pauses_loses_nothing(room: Room) -> None:
    for n in range(40):
        room.emit("a.b", {"n": n, "text": "x" * 10_000})
    room.end()
    with started(room.url, "--json") as tail:
        assert tail.stdout is not None
        wait_until_full(tail.stdout.fileno())
        out, _ = tail.communicate(timeout=PATIENCE)
        assert tail.returncode == 0
    assert [json.loads(line)["data"]["n"] for line in out.splitlines()] == list(range(40))


@pytest.mark.parametrize(
    ("where", "told"),
    [(">/dev/full", "[Errno 28] No space left on device"), (">&-", "there is no standard output")],
)
def test_what_can_not_be_written_is_told(room: Room, where: str, told: str) -> None:
    room.emit("a.b", {"n": 1})
    done = subprocess.run(
        ["/bin/sh", "-c", f'exec "$@" {where}', "sh", *COMMAND, room.url],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=50,
    )
    assert done.returncode == 2
    assert one_line(done.stderr) == told


def test_a_session_that_is_deleted_meanwhile_can_be_followed_no_more(room: Room) -> None:
    room.emit("streaming_chunk", {"text": "The fog\n", "node": "poet"})
    with started(room.url) as tail:
        lines_until(tail, lambda line: "The fog" in line)
        room.delete()
        out, err = tail.communicate(timeout=PATIENCE)
        assert (tail.returncode, out) == (2, "")
        assert err == f"callbackkit: session '{room.id}' was deleted or has expired\n"


# What can't be followed.


def one_line(err: str) -> str:
    [line] = err.splitlines()
    assert line.startswith("callbackkit: ")
    return line.removeprefix("callbackkit: ")


def test_a_wrong_token_is_told(room: Room, monkeypatch, capfd) -> None:
    monkeypatch.setenv("CALLBACKKIT_TOKEN", "wrong")
    code, out, err = run(capfd, room.url)
    assert (code, out) == (2, "")
    assert "401" in one_line(err)
    assert "CALLBACKKIT_TOKEN" in err
    assert "wrong" not in err


def test_an_unknown_session_is_told(room: Room, capfd) -> None:
    code, out, err = run(capfd, room.url[:-8] + "00000000")
    assert (code, out) == (2, "")
    assert one_line(err) == f"no session '{room.id[:-8]}00000000'"


def test_a_server_that_is_not_there_is_told(monkeypatch, capfd) -> None:
    monkeypatch.setenv("CALLBACKKIT_TOKEN", "t")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    code, out, err = run(capfd, f"http://127.0.0.1:{port}/callbacks/sessions/abc")
    assert (code, out) == (2, "")
    assert one_line(err).startswith("the session can't be reached: ")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["http://h/callbacks/sessions/s?token=secret"], "url must have no query"),
        (["http://u:secret@h/callbacks/sessions/s"], "url must hold no user or password"),
        (["ftp://h/callbacks/sessions/s"], "url must begin with http:// or https://"),
        (["http://h/somewhere/else"], "is not that of a session"),
        (["http://h/callbacks/sessions/s", "--after", "yesterday"], "'yesterday' is no position"),
        (["http://h/callbacks/sessions/s", "--types", "a,,b"], "'' is no event type"),
        (["http://h/callbacks/sessions/s", "--token-from-env", "NONE"], "the environment has no"),
        (["http://h/callbacks/sessions/s", "--token-file", "nowhere"], "nowhere"),
        (["http://h/callbacks/sessions/s", "--token-file", os.devnull], "is empty"),
        (["http://\u2603.localhost/sessions/s"], "url can't be sent"),
        (["http://h/sessions/\udcff"], "url can't be sent"),
        (["http://h/sessions/s", "--token-from-env", "A\x1b[2J\u202e"], "no A [2J, or"),
    ],
)
def test_wrong_use_is_told_in_a_line(arguments: list[str], told: str, monkeypatch, capfd) -> None:
    monkeypatch.delenv("NONE", raising=False)
    monkeypatch.setenv("CALLBACKKIT_TOKEN", "t")
    code, out, err = run(capfd, *arguments)
    assert (code, out) == (2, "")
    assert told in one_line(err)
    assert "secret" not in err


@pytest.mark.parametrize(
    ("proxy", "told"),
    [
        ("ftp://u:secret@h", "the environment names a proxy that is none"),
        ("socks5://u:secret@h", "socksio"),
    ],
)
def test_a_proxy_that_can_not_be_used_is_told(proxy: str, told: str, monkeypatch, capfd) -> None:
    monkeypatch.setenv("HTTP_PROXY", proxy)
    monkeypatch.setenv("CALLBACKKIT_TOKEN", "t")
    code, out, err = run(capfd, "http://h/callbacks/sessions/s")
    assert (code, out) == (2, "")
    assert told in one_line(err)
    assert "secret" not in err


def test_a_server_that_denies_all_ways_is_told(monkeypatch, capfd) -> None:
    monkeypatch.setenv("CALLBACKKIT_TOKEN", "t")
    with answering(*[PlainTextResponse("", 301)] * 3) as url:
        code, out, err = run(capfd, url)
    assert (code, out) == (2, "")
    assert one_line(err) == "the session can't be reached: the server answered 301"


def test_a_method_that_there_is_not_is_refused(capfd) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["tail", "http://h/callbacks/sessions/s", "--method", "pigeon"])
    assert caught.value.code == 2
    assert "pigeon" in capfd.readouterr().err


def test_without_an_http_library_it_names_what_to_install() -> None:
    program = (
        "import sys; sys.modules['httpx2'] = None; from callbackkit.__main__ import main; "
        "sys.exit(main(['tail', 'http://h/callbacks/sessions/s']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "install callbackkit[client]" in one_line(done.stderr)


# The token.


def test_the_token_is_taken_from_another_variable(room: Room, monkeypatch, capfd) -> None:
    monkeypatch.delenv("CALLBACKKIT_TOKEN")
    monkeypatch.setenv("MY_TOKEN", room.token)
    room.end()
    assert run(capfd, room.url, "--token-from-env", "MY_TOKEN")[0] == 0


def test_the_token_is_taken_from_a_file(room: Room, monkeypatch, capfd, tmp_path: Path) -> None:
    monkeypatch.delenv("CALLBACKKIT_TOKEN")
    (tmp_path / "token").write_text(f"{room.token}\n", "utf-8")
    room.end()
    assert run(capfd, room.url, "--token-file", str(tmp_path / "token"))[0] == 0


# In a terminal.


class Terminal:
    """The command in a pseudo-terminal."""

    def __init__(self, width: int, *arguments: str, **environment: str) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 24, width, 0, 0))
        unset = {"COLUMNS", "LINES", "NO_COLOR"}
        kept = {name: value for name, value in os.environ.items() if name not in unset}
        self.process = subprocess.Popen(
            [sys.executable, "-c", IN_TERMINAL, *COMMAND, *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**kept, "TERM": "xterm", "PYTHONIOENCODING": "utf-8", **environment},
            start_new_session=True,
        )
        os.close(slave)
        self.text = ""

    def until(self, is_so: Callable[[str], object]) -> None:
        until = time.monotonic() + PATIENCE
        while not is_so(self.text):
            ready, _, _ = select.select([self._master], [], [], until - time.monotonic())
            assert ready, self.text
            self.text += os.read(self._master, 65_536).decode()

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def wait(self) -> int:
        """Read the rest, and return the exit code."""
        try:
            self.until(lambda _: False)
        except OSError as exc:
            if exc.errno != errno.EIO:  # what Linux says when the other end is closed
                raise
        code = self.process.wait(PATIENCE)
        os.close(self._master)
        return code

    def rows(self, width: int) -> list[str]:
        screen = Screen(width, 24)
        screen.write(self.text)
        return screen.rows


@pytest.mark.parametrize("width", [40, 80, 200])
def test_in_a_terminal_a_bar_moves_below_running_text(room: Room, width: int) -> None:
    terminal = Terminal(width, room.url)
    room.emit("thinking", {"thought": "Hm.\x1b[2J"})
    for n in range(10):
        room.emit("streaming_chunk", {"text": f"word{n} ", "node": "poet"})
        room.emit("progress", {"progress": n / 10})
    terminal.until(lambda text: " 90%" in text)
    room.end()
    assert terminal.wait() == 0
    assert "\x1b[34m" in terminal.text
    rows = terminal.rows(width)
    assert rows[:2] == ["--          following by sse", "thinking    Hm. [2J"]
    assert rows[-3].startswith("progress    \u2588\u2588\u2588")
    assert rows[-3].endswith("\u2591  90%")
    assert rows[-2:] == ["end         the session has ended", ""]
    assert " ".join(" ".join(rows[2:-3]).split()) == "poet: " + " ".join(
        f"word{n}" for n in range(10)
    )


@pytest.mark.parametrize(
    ("options", "environment"),
    [(["--no-color"], {}), ([], {"NO_COLOR": "1"})],
    ids=["option", "environment"],
)
def test_colours_can_be_done_without(
    room: Room, options: list[str], environment: dict[str, str]
) -> None:
    room.emit("error", {"error": "boom"})
    room.end()
    terminal = Terminal(80, room.url, *options, **environment)
    assert terminal.wait() == 0
    assert COLOUR.findall(terminal.text) == []
    assert "error       boom" in terminal.rows(80)


@pytest.mark.parametrize("kind", ["dumb", ""])
def test_a_dumb_terminal_gets_neither_colours_nor_moves(room: Room, kind: str) -> None:
    room.emit("progress", {"progress": 0.5})
    room.end()
    terminal = Terminal(40, room.url, TERM=kind)
    assert terminal.wait() == 0
    assert "\x1b" not in terminal.text
    assert any(row.endswith(" 50%") for row in terminal.rows(40))


def test_interrupted_in_a_terminal_it_leaves_the_cursor_below(room: Room) -> None:
    terminal = Terminal(80, room.url)
    room.emit("streaming_chunk", {"text": "The fog", "node": "poet"})
    room.emit("progress", {"progress": 0.5})
    terminal.until(lambda text: " 50%" in text)
    terminal.type("\x03")
    assert terminal.wait() == 130
    assert "Traceback" not in terminal.text
    assert terminal.rows(80)[-1] == ""


def test_in_a_terminal_the_token_is_asked_for_and_not_shown(room: Room, monkeypatch) -> None:
    monkeypatch.delenv("CALLBACKKIT_TOKEN")
    room.emit("a.b", {"n": 1})
    room.end()
    terminal = Terminal(80, room.url)
    terminal.until(lambda text: "Token of the session" in text)
    terminal.type(f"{room.token}\n")
    assert terminal.wait() == 0
    assert "a.b         n=1" in terminal.text
    assert room.token not in terminal.text


def test_who_is_asked_for_a_token_and_gives_none_is_told(monkeypatch) -> None:
    """Ctrl-D at the prompt."""
    monkeypatch.delenv("CALLBACKKIT_TOKEN", raising=False)
    terminal = Terminal(80, "http://h/callbacks/sessions/s")
    terminal.until(lambda text: "Token of the session" in text)
    terminal.type("\x04")
    assert terminal.wait() == 2
    assert "callbackkit: no token was given; where there is none, press Enter" in terminal.text
    assert "Traceback" not in terminal.text
