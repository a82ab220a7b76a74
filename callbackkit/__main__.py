"""The command line: ``python -m callbackkit demo``."""

from __future__ import annotations

import argparse
import importlib.util
import math
import os
import shutil
import sys
import textwrap
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Final, Protocol

import anyio

# Exit codes.
FAILED: Final = 2
INTERRUPTED: Final = 130  # 128 + SIGINT, as shells tell it
PIPE_CLOSED: Final = 141  # 128 + SIGPIPE, likewise


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code."""
    parser = make_parser()
    chosen = parser.parse_args(arguments)
    if chosen.command is None:
        parser.print_help()
        return 0
    try:
        return demo(chosen.wav, realtime=chosen.realtime)
    except KeyboardInterrupt:
        return INTERRUPTED


def make_parser() -> argparse.ArgumentParser:
    """Describe the commands and their options."""
    parser = argparse.ArgumentParser(
        prog="python -m callbackkit", description="Callbacks that cannot break each other."
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    about = (
        "Play a recorded phone call into a voice bot made of callbacks, some of which fail, "
        "block and are cancelled. In a terminal it is shown live; piped, it is a transcript."
    )
    command = commands.add_parser("demo", help="show a phone call handled", description=about)
    command.add_argument(
        "wav", metavar="WAV", nargs="?", type=Path, help="a recording; default: one that is here"
    )
    pace = command.add_mutually_exclusive_group()
    pace.add_argument(
        "--realtime",
        action="store_true",
        default=None,
        help="play as fast as it was spoken, the default in a terminal",
    )
    pace.add_argument(
        "--fast",
        dest="realtime",
        action="store_false",
        default=None,
        help="play as fast as possible, the default in a pipe",
    )
    return parser


# The voice bot. It is an example, so it is no part of the package: a wheel carries a copy.


class Bot(Protocol):
    """What is shown of the voice bot of ``examples/voice_bot.py``."""

    state: Any
    at: float
    level: float
    progress: float
    counts: Mapping[str, int]

    def answer(self, frames: Any, realtime: bool) -> Awaitable[object]:
        """Take a call from its beginning to its end."""
        ...


def find_example(package: Path) -> Path:
    """Return where a wheel, or else a checkout, has the source of the voice bot.

    Raises:
        FileNotFoundError: Neither does.
    """
    places = [package / "_examples", package.parent / "examples"]
    for path in (place / "voice_bot.py" for place in places):
        if path.is_file():
            return path
    raise FileNotFoundError(f"voice_bot.py is neither in {places[0]} nor in {places[1]}")


def load(path: Path) -> ModuleType:
    """Import a module from its file."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def demo(wav: Path | None, *, realtime: bool | None) -> int:
    """Show the voice bot answering a call.

    Args:
        wav: The recording; ``None`` takes the one that comes with the example.
        realtime: Whether to play it as fast as it was spoken; ``None`` does in a terminal.
    """
    try:
        example = load(find_example(Path(__file__).parent))
        frames = example.read_recording(wav or example.CALL)
    except (OSError, ValueError) as exc:
        print(f"callbackkit: {reason(exc)}", file=sys.stderr)
        return FAILED
    if sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
        return anyio.run(show_live, example.VoiceBot, frames, realtime is not False)
    return anyio.run(print_lines, example.VoiceBot, frames, realtime is True)


def reason(exc: OSError | ValueError) -> str:
    """Return one line about an exception, without the number of an :exc:`OSError`."""
    if isinstance(exc, OSError) and exc.strerror:
        return f"{exc.filename}: {exc.strerror}"
    return str(exc)


MakeBot = Callable[[Callable[[str], None]], Bot]


async def print_lines(make_bot: MakeBot, frames: Any, realtime: bool) -> int:
    """Print the transcript as it comes; end when nobody reads it any more."""

    def report(line: str) -> None:
        try:
            print(line, flush=True)
        except BrokenPipeError:
            # The interpreter flushes at its exit; let that go nowhere.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            scope.cancel()

    with anyio.CancelScope() as scope:
        await make_bot(report).answer(frames, realtime)
    return PIPE_CLOSED if scope.cancel_called else 0


async def show_live(make_bot: MakeBot, frames: Any, realtime: bool) -> int:
    """Show the call in the terminal while it goes on, then print its transcript."""
    lines: list[str] = []
    bot = make_bot(lines.append)
    try:
        async with anyio.create_task_group() as group:
            with Screen() as screen:
                group.start_soon(keep_drawing, screen, bot, lines)
                await bot.answer(frames, realtime)
                group.cancel_scope.cancel()
    finally:
        print("\n".join(lines), flush=True)
    return 0


# The live view.

RESET, BOLD, DIM, RED, GREEN, YELLOW, CYAN = (f"\x1b[{code}m" for code in (0, 1, 2, 31, 32, 33, 36))
STATE_COLOURS: Final = {"listening": GREEN, "thinking": YELLOW, "speaking": CYAN}
REDRAW_INTERVAL: Final = 0.05


async def keep_drawing(screen: Screen, bot: Bot, lines: Sequence[str]) -> None:
    """Redraw until cancelled."""
    while True:
        screen.draw(bot, lines)
        await anyio.sleep(REDRAW_INTERVAL)


class Screen:
    """The terminal's second screen, without a cursor; the first one comes back at the end."""

    def __init__(self) -> None:
        self._has_colours = not os.environ.get("NO_COLOR")
        utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
        self._full, self._empty = ("\u2588", "\u2591") if utf8 else ("#", ".")

    def __enter__(self) -> Screen:
        self._write("\x1b[?1049h\x1b[?25l")
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _exc: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._write("\x1b[?25h\x1b[?1049l")

    def draw(self, bot: Bot, lines: Sequence[str]) -> None:
        """Show where the call stands and as many of the last lines as there is room for."""
        width, height = shutil.get_terminal_size()
        # The last column stays free: what is written there may break the line.
        rows = [self._paint(row, colour, width - 1) for row, colour in self._head(bot, width - 1)]
        begin = max(len(lines) - max(height - len(rows), 0), 0)
        rows += [self._paint(line, colour_of(line), width - 1) for line in lines[begin:]]
        self._write("\x1b[H" + "\r\n".join(f"{row}\x1b[K" for row in rows[:height]) + "\x1b[J")

    def _head(self, bot: Bot, width: int) -> list[tuple[str, str]]:
        state = str(bot.state.value)
        heard = 1 + bot.level / 60  # 60 dB below full scale is an empty meter
        counts = ", ".join(f"{name} {count}" for name, count in bot.counts.items())
        return [
            ("callbackkit: a phone call", BOLD),
            (f"state    {state:<10} {bot.at:5.2f} s", STATE_COLOURS.get(state, "")),
            (f"level    {self._bar(heard, width - 17)} {bot.level:4.0f} dB", ""),
            (f"transfer {self._bar(bot.progress, width - 17)} {bot.progress:5.0%}", ""),
            *((row, "") for row in textwrap.wrap(counts, max(width, 1))),
            ("-" * width, DIM),
        ]

    def _bar(self, fraction: float, width: int) -> str:
        width = max(width, 0)
        full = math.floor(min(max(fraction, 0.0), 1.0) * width)
        return self._full * full + self._empty * (width - full)

    def _paint(self, text: str, colour: str, width: int) -> str:
        text = text[: max(width, 0)]
        return f"{colour}{text}{RESET}" if colour and self._has_colours else text

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()


def colour_of(line: str) -> str:
    """Choose the colour of a line of the transcript."""
    if "  ! " in line:
        return RED
    return CYAN if " bot: " in line else ""


if __name__ == "__main__":
    sys.exit(main())
