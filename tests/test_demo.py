"""``python -m callbackkit demo``, piped and in a real terminal."""

import errno
import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
import wave
from collections.abc import Callable
from pathlib import Path

import pytest

from callbackkit.__main__ import find_example, main

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
    done = run("demo")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == TRANSCRIPT


def test_it_plays_another_recording(tmp_path: Path) -> None:
    other = tmp_path / "other.wav"
    other.write_bytes(CALL.read_bytes())
    assert run("demo", other).stdout.splitlines() == TRANSCRIPT


def test_real_time_takes_as_long_as_the_recording(tmp_path: Path) -> None:
    second = tmp_path / "second.wav"
    with wave.open(str(second), "wb") as wav:
        wav.setparams((1, 2, 8000, 0, "NONE", "not compressed"))
        wav.writeframes(CALL.read_bytes()[44 : 44 + 16000])
    begin = time.monotonic()
    done = run("demo", "--realtime", second)
    assert time.monotonic() - begin >= 1.0
    assert done.stdout.splitlines()[:2] == TRANSCRIPT[:2]
    assert "frames 50, dropped 0" in done.stdout


def test_it_ends_when_nobody_reads_any_more() -> None:
    process = subprocess.Popen([*COMMAND, "demo"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
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
    done = run("demo", tmp_path / name)
    assert (done.returncode, done.stdout) == (2, "")
    [line] = done.stderr.splitlines()
    assert line.startswith(f"callbackkit: {tmp_path / name}: ")


def test_interrupted_it_ends_without_a_traceback() -> None:
    process = subprocess.Popen(
        [*COMMAND, "demo", "--realtime"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
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


# Where the bot comes from.


@pytest.mark.parametrize("place", ["package/_examples", "examples"])
def test_the_bot_is_found_in_a_wheel_and_in_a_checkout(tmp_path: Path, place: str) -> None:
    path = tmp_path / place / "voice_bot.py"
    path.parent.mkdir(parents=True)
    path.touch()
    assert find_example(tmp_path / "package") == path


def test_a_missing_bot_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"voice_bot\.py is neither in .+ nor in "):
        find_example(tmp_path / "package")


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
    terminal = Terminal()
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
    terminal = Terminal("--fast", rows=rows)
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
    terminal = Terminal("--fast", columns=columns, rows=rows)
    assert terminal.close() == 0
    assert terminal.pictures
    for picture in terminal.pictures:
        assert len(picture) <= rows
        assert all(len(line) < columns for line in picture)


@pytest.mark.real_server
def test_the_cursor_comes_back() -> None:
    terminal = Terminal("--fast")
    assert terminal.close() == 0
    assert terminal.output.startswith(OTHER_SCREEN + HIDE_CURSOR)
    assert terminal.output.count(SHOW_CURSOR + FIRST_SCREEN) == 1


@pytest.mark.real_server
def test_the_cursor_comes_back_after_an_interrupt() -> None:
    terminal = Terminal()
    terminal.read(until=lambda output: "listening" in output)
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.close() == 130
    assert terminal.output.count(SHOW_CURSOR + FIRST_SCREEN) == 1
    assert "Traceback" not in terminal.output
    assert terminal.rest == TRANSCRIPT[: len(terminal.rest)]


@pytest.mark.real_server
def test_colours_can_be_turned_off() -> None:
    coloured, plain = Terminal("--fast"), Terminal("--fast", NO_COLOR="1")
    assert coloured.close() == plain.close() == 0
    assert re.search(r"\x1b\[\d+m", coloured.output)
    assert not re.search(r"\x1b\[\d*m", plain.output)


@pytest.mark.real_server
def test_a_terminal_without_utf8_gets_ascii() -> None:
    terminal = Terminal("--fast", PYTHONIOENCODING="ascii")
    assert terminal.close() == 0
    assert terminal.output.isascii()
    assert "transfer ...." in terminal.output


@pytest.mark.real_server
def test_a_dumb_terminal_gets_plain_lines() -> None:
    terminal = Terminal("--fast", TERM="dumb")
    assert terminal.close() == 0
    assert terminal.output.splitlines() == TRANSCRIPT
