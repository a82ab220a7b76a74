"""The command line: the demos, sessions to look at, and what became of deliveries."""

from __future__ import annotations

import argparse
import importlib.util
import math
import os
import shutil
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Final, Protocol

import anyio

from callbackkit.client.tail import add_tail, tail
from callbackkit.errors import CallbackKitError, UnknownSessionError
from callbackkit.stores.base import (
    Attempt,
    DeadLetter,
    SessionRecord,
    SessionState,
    Store,
    steady_time,
)

# Exit codes.
FAILED: Final = 2
INTERRUPTED: Final = 130  # 128 + SIGINT, as shells tell it
PIPE_CLOSED: Final = 141  # 128 + SIGPIPE, likewise

PORT: Final = 8000
DATABASE: Final = "callbackkit-demo.db"
# How the URLs of a Redis begin, and the variable of the environment that may hold one.
REDIS: Final = ("redis://", "rediss://", "unix://")
REDIS_URL: Final = "REDIS_URL"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code."""
    parser = make_parser()
    chosen = parser.parse_args(arguments)
    if chosen.command is None:
        parser.print_help()
        return 0
    try:
        if chosen.command != "demo":
            return (
                tail(chosen)
                if chosen.command == "tail"
                else anyio.run(look, LOOKS[chosen.command], chosen.file, chosen.session_id)
            )
        takes_its_time = chosen.session or chosen.webhook or chosen.serve
        if takes_its_time and chosen.realtime is not None:
            parser.error("--session, --webhook and --serve take the time they take")
        places = chosen.port, chosen.database, chosen.redis
        if not chosen.serve and any(each is not None for each in places):
            parser.error("--port, --file and --redis are for --serve")
        if chosen.redis is not None and not chosen.redis.startswith(REDIS):
            parser.error("--redis needs a URL, redis://host:6379 say, here or in REDIS_URL")
        if chosen.session:
            return demo_session(chosen.file)
        if chosen.serve:
            port = PORT if chosen.port is None else chosen.port
            return demo_serve(chosen.file, chosen.database or chosen.redis or DATABASE, port)
        prepare = prepare_call if chosen.call else prepare_stream
        return demo(prepare_webhook if chosen.webhook else prepare, chosen.file, chosen.realtime)
    except KeyboardInterrupt:
        return INTERRUPTED


def make_parser() -> argparse.ArgumentParser:
    """Describe the commands and their options."""
    parser = argparse.ArgumentParser(
        prog="python -m callbackkit", description="Callbacks that cannot break each other."
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    about = (
        "Stream a text through a graph of nodes to five readers, two of which misbehave. With "
        "--call: play a recorded phone call into a voice bot made of callbacks, some of which "
        "fail, block and are cancelled. In a terminal it is shown live; piped, it is a transcript. "
        "With --session: kill an agent again and again, and see whether its session is whole. "
        "With --webhook: stop and break a receiver of webhooks, and see whether it gets them all. "
        "With --serve: a chat for the browser, which goes on after Ctrl-C and another start, and "
        "with --redis is shared by all that are served from there."
    )
    command = commands.add_parser("demo", help="show a text streamed", description=about)
    command.add_argument(
        "file",
        metavar="FILE",
        nargs="?",
        help="a text, or - for standard input; default: the README. With --call a WAV file",
    )
    what = command.add_mutually_exclusive_group()
    what.add_argument("--call", action="store_true", help="show a phone call handled instead")
    what.add_argument(
        "--session", action="store_true", help="show an agent killed until its work is done"
    )
    what.add_argument(
        "--webhook", action="store_true", help="show webhooks to a receiver that is in trouble"
    )
    what.add_argument(
        "--serve", action="store_true", help="serve a chat about a text, and its page"
    )
    command.add_argument(
        "--port", type=port_number, help=f"of --serve; default: {PORT}, and 0 is a free one"
    )
    place = command.add_mutually_exclusive_group()
    place.add_argument(
        "--file", dest="database", metavar="DB", help=f"of --serve; default: {DATABASE}"
    )
    place.add_argument(
        "--redis",
        metavar="URL",
        nargs="?",
        const=os.environ.get(REDIS_URL, ""),
        help="of --serve, instead of a file; default: REDIS_URL of the environment, where one "
        "with a password belongs",
    )
    pace = command.add_mutually_exclusive_group()
    pace.add_argument(
        "--realtime",
        action="store_true",
        default=None,
        help="as fast as one reads, or as it was spoken; the default in a terminal",
    )
    pace.add_argument(
        "--fast",
        dest="realtime",
        action="store_false",
        default=None,
        help="as fast as possible, the default in a pipe",
    )
    add_tail(commands)
    for name, about in (
        ("endpoints", "list where it is delivered to, and how these fare"),
        ("attempts", "list the last attempts to deliver"),
        ("dead-letters", "list what could not be delivered"),
        ("redrive", "have dead letters delivered again, by whoever has the transport"),
    ):
        command = commands.add_parser(name, help=about, description=about.capitalize() + ".")
        command.add_argument(
            "file",
            metavar="STORE",
            help="the file of an SQLiteStore, the URL of a Redis, or REDIS_URL for that in the "
            "environment",
        )
        command.add_argument(
            "session_id", metavar="SESSION", nargs="?", help="of this session; default: of all"
        )
    return parser


def port_number(given: str) -> int:
    """Read a port; argparse tells what is none."""
    if not 0 <= (port := int(given)) < 65536:
        raise ValueError(given)
    return port


# What became of deliveries.


# Dead letters of one session that are listed.
MOST_LETTERS: Final = 100_000

Look = Callable[[Store, Sequence[str]], Awaitable[None]]


async def look(show: Look, file: str, session_id: str | None) -> int:
    """Print something about the sessions of a store, or about one of them."""
    try:
        store = open_store(file)
    except (OSError, ValueError, ImportError) as exc:
        print(f"callbackkit: {reason(exc)}", file=sys.stderr)
        return FAILED
    try:
        if session_id is None:
            await show(store, await session_ids(store))
        else:
            # One that was not there, or is gone with all it left, is told.
            await store.dead_letters(session_id, limit=1)
            await show(store, [session_id])
    except CallbackKitError as exc:
        print(f"callbackkit: {exc}", file=sys.stderr)
        return FAILED
    finally:
        await store.aclose()
    return 0


def open_store(place: str) -> Store:
    """Return the store in a file, which must be there, or in the Redis that a URL names."""
    if place == REDIS_URL:
        place = os.environ.get(REDIS_URL, "")
        if not place.startswith(REDIS):
            raise ValueError(f"{REDIS_URL} is not set to a URL, redis://host:6379 say")
    if place.startswith(REDIS):
        check_installed("a Redis", ["coredis"], "'callbackkit[redis]'")
        from callbackkit.stores.redis import RedisStore

        return RedisStore.from_url(place)
    from callbackkit.stores.sqlite import SQLiteStore

    if not Path(place).is_file():
        # A store would make it.
        raise FileNotFoundError(f"{place}: no such file")
    return SQLiteStore(place)


async def show_endpoints(store: Store, ids: Sequence[str]) -> None:
    """Print each destination: how it stands, and since when or why; no secrets."""
    from callbackkit.delivery.policy import Circuit, CircuitBreaker

    counts: Counter[str] = Counter()
    for each in ids:
        with suppress(UnknownSessionError):  # gone, and delivered to nobody
            record = await store.get_session(each)
            counts.update([await endpoint_of(store, record)] if record.pushes else [])
    for name, sessions in sorted(counts.items()):
        _, state = await store.load_endpoint(name)
        circuit = Circuit.from_json(state)
        wait = CircuitBreaker().wait(circuit, now := steady_time())
        spared = f"not before {time_text(now + wait)}  " if 0 < wait < math.inf else ""
        print(
            f"{printable(name)}  {circuit.phase}  {circuit.failures} failures in a row  "
            f"{sessions} sessions  {spared}{printable(circuit.reason)}".rstrip()
        )


async def endpoint_of(store: Store, record: SessionRecord) -> str:
    """Return the name of where a session is delivered to; of a transport's own it is a guess."""
    from callbackkit.sessions.config import CallbackConfig
    from callbackkit.webhooks.transport import endpoint_name

    config = CallbackConfig.from_json(record.config)
    own = f"{record.method}:{record.id}"
    version, _ = await store.load_endpoint(own)
    # Of a transport that keeps sessions apart something is known by that name.
    return own if version or config.webhook_url is None else endpoint_name(config, record.method)


async def show_attempts(store: Store, ids: Sequence[str]) -> None:
    """Print the last attempts of each session, the oldest first."""
    for each in ids:
        found: Sequence[Attempt] = ()
        with suppress(UnknownSessionError):  # gone, and its attempts with it
            found = await store.attempts(each)
        for attempt in found:
            what = f"{attempt.delivery_id}  attempt {attempt.number}  {attempt.events} events"
            how = f"failed: {printable(attempt.error)}" if attempt.error else "delivered"
            print(f"{time_text(attempt.at)}  {what}  {attempt.duration:.3f} s  {how}")


async def show_letters(store: Store, ids: Sequence[str]) -> None:
    """Print what could not be delivered: when it was given up, what it is, and why."""
    for each in ids:
        await print_letters(store, each)


async def redrive_letters(store: Store, ids: Sequence[str]) -> None:
    """Print what could not be delivered, and have it delivered again."""
    count = 0
    for each in ids:
        if await print_letters(store, each):
            with suppress(UnknownSessionError):  # gone in this moment
                count += await store.redrive(each)
    print(f"{count} dead letters are to be delivered again")


async def print_letters(store: Store, session_id: str) -> bool:
    """Print the dead letters of a session; tell whether there are any."""
    found: Sequence[DeadLetter] = ()
    with suppress(UnknownSessionError):  # gone, and nothing was left of it
        found = await store.dead_letters(session_id, limit=MOST_LETTERS)
    for letter in found:
        what = f"{letter.id}  {letter.method}  {len(letter.records)} events"
        print(f"{time_text(letter.at)}  {what}  {printable(letter.reason)}")
    return bool(found)


LOOKS: Final[Mapping[str, Look]] = {
    "endpoints": show_endpoints,
    "attempts": show_attempts,
    "dead-letters": show_letters,
    "redrive": redrive_letters,
}


def time_text(seconds: float) -> str:
    """Write a time, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(" ", "seconds")


async def session_ids(store: Store) -> list[str]:
    """Return the ids of all sessions, those that are gone and may have left letters too."""
    ids: list[str] = []
    states: tuple[SessionState | None, ...] = (None, "deleted")
    for state in states:
        last: str | None = None
        while page := await store.sessions(state=state, after=last):
            ids += [record.id for record in page]
            last = page[-1].id
    return ids


# The programs shown. They are examples, so no part of the package: a wheel carries copies.


class Show(Protocol):
    """What is shown of an example that runs."""

    def head(self, bar: Bar) -> Sequence[tuple[str, str]]:
        """Return lines that tell where it stands, each with the name of a colour or ``""``."""
        ...


Bar = Callable[[float, int], str]
"""Draws a fraction with a number of columns."""
Report = Callable[[str], None]
Start = Callable[[Report], tuple[Show, Awaitable[object]]]


def find_example(package: Path, name: str) -> Path:
    """Return where a wheel, or else a checkout, has the source of an example.

    Raises:
        FileNotFoundError: Neither does.
    """
    places = [package / "_examples", package.parent / "examples"]
    for path in (place / name for place in places):
        if path.is_file():
            return path
    raise FileNotFoundError(f"{name} is neither in {places[0]} nor in {places[1]}")


def load(path: Path) -> ModuleType:
    """Import a module from its file."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Its annotations are looked up here by whoever inspects its functions.
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def load_all(*names: str) -> list[ModuleType]:
    """Import examples in this order."""
    return [load(find_example(Path(__file__).parent, name)) for name in names]


def demo(
    prepare: Callable[[str | None, bool], Start], file: str | None, realtime: bool | None
) -> int:
    """Show an example at work.

    Args:
        prepare: Finds the example.
        file: What it works on; ``None`` takes what comes with it.
        realtime: Whether to take the time that it would take; ``None`` does in a terminal.
    """
    # The text may have letters that the terminal has not.
    reconfigure: Callable[..., None] | None = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="replace")
    is_live = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    try:
        start = prepare(file, is_live if realtime is None else realtime)
    except (OSError, ValueError, ImportError) as exc:
        print(f"callbackkit: {reason(exc)}", file=sys.stderr)
        return FAILED
    return anyio.run(show_live if is_live else print_lines, start)


def demo_session(file: str | None) -> int:
    """Show the example that kills itself, in a process of its own; return its exit code.

    Args:
        file: The text that its agent works on; ``None`` takes what comes with it.
    """
    example = find_example(Path(__file__).parent, "killed_agent.py")
    command = [sys.executable, str(example), *([] if file is None else [file])]
    environment = dict(os.environ)
    if example.parent.name == "examples":
        # A checkout, which need not be installed.
        environment["PYTHONPATH"] = str(example.parents[1])
    with subprocess.Popen(command, env=environment) as shown:
        try:
            return shown.wait()
        except KeyboardInterrupt:
            # It heard of that too, and ends what it started.
            return shown.wait()


POSTING: Final = "aiohttp", "flask"
SERVING: Final = "fastapi", "msgspec", "uvicorn", "websockets"


def demo_serve(file: str | None, database: str, port: int) -> int:
    """Serve the example of a chat to this machine until interrupted.

    Args:
        file: The text that its agents know; ``None`` takes what comes with it.
        database: The file of its sessions, or the URL of a Redis.
        port: Where it listens; 0 takes a free one.
    """
    try:
        check_installed("--serve", SERVING, "'callbackkit[fastapi]' 'uvicorn[standard]'")
        # The last one imports the other.
        stream, chat = load_all("text_stream.py", "chat_api.py")
        chat.serve(read_source(stream, file), database, port)
        return 0
    except (OSError, ValueError, ImportError, CallbackKitError) as exc:
        print(f"callbackkit: {reason(exc)}", file=sys.stderr)
        return FAILED


def check_installed(option: str, names: Sequence[str], packages: str) -> None:
    """Raise an :exc:`ImportError` with the remedy unless all of some modules are installed."""
    if missing := [name for name in names if importlib.util.find_spec(name) is None]:
        raise ImportError(f"{option} needs {', '.join(missing)}: pip install {packages}")


def prepare_call(file: str | None, realtime: bool) -> Start:
    """Return what starts the voice bot on a recording."""
    example = load(find_example(Path(__file__).parent, "voice_bot.py"))
    frames = example.read_recording(example.CALL if file is None else Path(file))

    def start(report: Report) -> tuple[Show, Awaitable[object]]:
        bot = example.VoiceBot(report)
        return bot, bot.answer(frames, realtime)

    return start


def prepare_stream(file: str | None, realtime: bool) -> Start:
    """Return what starts the stream of a text."""
    example = load(find_example(Path(__file__).parent, "text_stream.py"))
    source = read_source(example, file)

    def start(report: Report) -> tuple[Show, Awaitable[object]]:
        stream = example.TextStream(report)
        return stream, stream.run(source, realtime)

    return start


def prepare_webhook(file: str | None, _realtime: bool) -> Start:
    """Return what starts the agent whose receiver is in trouble; it takes the time it takes."""
    check_installed("--webhook", POSTING, "'callbackkit[webhook]' flask")
    # The last one imports the others.
    stream, _, agent = load_all("text_stream.py", "flask_receiver.py", "webhook_agent.py")
    source = read_source(stream, file)

    def start(report: Report) -> tuple[Show, Awaitable[object]]:
        shown = agent.WebhookAgent(report)
        return shown, shown.run(source)

    return start


def read_source(example: ModuleType, file: str | None) -> str:
    """Return the text that was chosen, or the README."""
    if file is None:
        return read_readme()
    text: str = example.read_text(None if file == "-" else Path(file))
    return text


def read_readme() -> str:
    """Return the README, which an installed package has in its metadata."""
    readme = Path(__file__).parents[1] / "README.md"
    if readme.is_file() and (readme.parent / "examples").is_dir():
        return readme.read_text("utf-8")
    about = metadata.distribution("callbackkit").read_text("METADATA") or ""
    return about.partition("\n\n")[2]


def reason(exc: Exception) -> str:
    """Return one line about an exception, without the number of an :exc:`OSError`."""
    if isinstance(exc, OSError) and exc.strerror:
        return exc.strerror if exc.filename is None else f"{exc.filename}: {exc.strerror}"
    return str(exc)


async def print_lines(start: Start) -> int:
    """Print the transcript as it comes; end when nobody reads it any more."""

    def report(line: str) -> None:
        try:
            print(line, flush=True)
        except BrokenPipeError:
            # The interpreter flushes at its exit; let that go nowhere.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            scope.cancel()

    code: object = 0
    with anyio.CancelScope() as scope:
        code = await start(report)[1]
    return PIPE_CLOSED if scope.cancel_called else exit_code(code)


async def show_live(start: Start) -> int:
    """Show in the terminal what goes on, then print the transcript."""
    lines: list[str] = []
    code = 0
    shown, work = start(lines.append)
    try:
        async with anyio.create_task_group() as group:
            with Screen() as screen:
                group.start_soon(keep_drawing, screen, shown, lines)
                code = exit_code(await work)
                group.cancel_scope.cancel()
    finally:
        print("\n".join(map(printable, lines)), flush=True)
    return code


def exit_code(result: object) -> int:
    """Return what an example that judges itself returned, or 0."""
    return result if isinstance(result, int) else 0


# The live view.

RESET = "\x1b[0m"
COLOURS: Final = {
    "bold": "\x1b[1m",
    "dim": "\x1b[2m",
    "red": "\x1b[31m",
    "green": "\x1b[32m",
    "yellow": "\x1b[33m",
    "cyan": "\x1b[36m",
}
REDRAW_INTERVAL: Final = 0.05


async def keep_drawing(screen: Screen, shown: Show, lines: Sequence[str]) -> None:
    """Redraw until cancelled."""
    while True:
        screen.draw(shown, lines)
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

    def draw(self, shown: Show, lines: Sequence[str]) -> None:
        """Show where it stands and as many of the last lines as there is room for."""
        width, height = shutil.get_terminal_size()
        # The last column stays free: what is written there may break the line.
        head = [
            (row, colour)
            for line, colour in shown.head(lambda part, less: self._bar(part, width - 1 - less))
            for row in textwrap.wrap(line, max(width - 1, 1), drop_whitespace=False) or [""]
        ]
        head.append(("-" * (width - 1), "dim"))
        rows = [self._paint(row, colour, width - 1) for row, colour in head]
        begin = max(len(lines) - max(height - len(rows), 0), 0)
        rows += [self._paint(line, colour_of(line), width - 1) for line in lines[begin:]]
        self._write("\x1b[H" + "\r\n".join(f"{row}\x1b[K" for row in rows[:height]) + "\x1b[J")

    def _bar(self, fraction: float, width: int) -> str:
        width = max(width, 0)
        full = math.floor(min(max(fraction, 0.0), 1.0) * width)
        return self._full * full + self._empty * (width - full)

    def _paint(self, text: str, colour: str, width: int) -> str:
        text = printable(text)[: max(width, 0)]
        return f"{COLOURS[colour]}{text}{RESET}" if colour and self._has_colours else text

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()


def printable(line: str) -> str:
    """Replace what a terminal would take for a command: the text comes from anybody."""
    return "".join(char if char.isprintable() else " " for char in line)


def colour_of(line: str) -> str:
    """Choose the colour of a line of the transcript."""
    if "  ! " in line:
        return "red"
    return "cyan" if " bot: " in line or line.startswith("outline: ") else ""


if __name__ == "__main__":
    sys.exit(main())
