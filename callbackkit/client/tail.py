"""The command ``tail``: follows a session in a terminal, or in a pipe."""

from __future__ import annotations

import argparse
import getpass
import os
import shutil
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import anyio

from callbackkit.client.columns import printable, shown
from callbackkit.client.output import NobodyReadsError, Output
from callbackkit.client.terminal import TerminalView
from callbackkit.errors import CallbackKitError
from callbackkit.events import Event
from callbackkit.wire.envelope import encode_event

if TYPE_CHECKING:
    from callbackkit.client.following import Events

__all__ = ["add_tail", "tail"]

_FAILED: Final = 2
_PIPE_CLOSED: Final = 141  # 128 + SIGPIPE, as shells tell it

_TOKEN: Final = "CALLBACKKIT_TOKEN"
_ABOUT: Final = (
    "Follow a session in the terminal until it has ended; connect again whenever that is "
    "necessary. In a pipe an event is a line. The token is taken from the environment or a file, "
    "never from the command line, which everybody on the machine may see; without one, it is "
    "asked for in a terminal. Exit codes: 0, the session has ended; 2, it can't be followed; 130, "
    "interrupted; 141, nobody reads the pipe any more."
)
# Seconds between two looks at the connection, after which nothing more is waited for before what
# was said is shown, and in which a terminal gets the last rows.
_TICK: Final = 0.1
_PAUSE: Final = 1.0
_LAST_WORDS: Final = 0.5


def add_tail(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command and its options."""
    command = commands.add_parser("tail", help="follow a session", description=_ABOUT)
    command.add_argument("url", metavar="URL", help="https://host/callbacks/sessions/ID")
    token = command.add_mutually_exclusive_group()
    token.add_argument(
        "--token-from-env", metavar="NAME", help=f"a variable other than {_TOKEN} that has it"
    )
    token.add_argument("--token-file", metavar="FILE", help="a file that has nothing else in it")
    command.add_argument(
        "--method", choices=("auto", "sse", "websocket", "polling"), default="auto"
    )
    command.add_argument(
        "--after", metavar="POSITION", help="or 'now'; default: from the oldest event kept"
    )
    command.add_argument("--types", metavar="A,B", help="only these event types, and gaps")
    command.add_argument("--json", action="store_true", help="an event is a line of JSON")
    command.add_argument("--no-color", action="store_true", help="as with NO_COLOR set")


def tail(chosen: argparse.Namespace) -> int:
    """Follow a session as the command line says; return the exit code."""
    try:
        from callbackkit.client.following import follow

        events = follow(
            chosen.url,
            _read_token(chosen.token_from_env, chosen.token_file),
            method=chosen.method,
            after=chosen.after,
            types=None if chosen.types is None else chosen.types.split(","),
        )
    except (ImportError, OSError, ValueError) as exc:
        return _fail(str(exc))
    if sys.stdout is None:
        return _fail("there is no standard output")
    shown = _Json() if chosen.json else _Screen(has_colours=not chosen.no_color)
    return anyio.run(_Tail(events, shown, Output(sys.stdout.fileno())).run)


def _fail(reason: str) -> int:
    _say(reason)
    return _FAILED


def _say(text: str) -> None:
    """Write a line to standard error; nobody has to hear it."""
    if sys.stderr is not None:
        with suppress(OSError):
            sys.stderr.write(f"callbackkit: {printable(text)}\n")


def _read_token(variable: str | None, file: str | None) -> str | None:
    """Return the token of the session, ``None`` if there is none.

    Raises:
        OSError: The file can't be read.
        ValueError: There is none where it was said to be, or nobody gave one who was asked.
    """
    if file is not None:
        token = Path(file).read_text("utf-8").strip()
        if not token:
            raise ValueError(f"{file} is empty; it should hold the token of the session")
        return token
    token = os.environ.get(_TOKEN if variable is None else variable, "").strip()
    if not token and variable is not None:
        raise ValueError(f"the environment has no {variable}, or it is empty")
    if not token and sys.stdin is not None and sys.stdin.isatty():
        token = _ask_token()
    return token or None


def _ask_token() -> str:
    try:
        return getpass.getpass("Token of the session (Enter for none): ").strip()
    except EOFError:
        raise ValueError("no token was given; where there is none, press Enter") from None


# What is shown.


class _Shown(Protocol):
    """How events are shown; each returns what to write."""

    def show(self, event: Event) -> bytes: ...

    def note(self, text: str) -> bytes: ...

    def pause(self) -> bytes: ...

    def end(self, text: str = "") -> bytes: ...


class _Json:
    """Shows events as JSON; what there is to be said about them goes to standard error."""

    def show(self, event: Event) -> bytes:
        text = encode_event(event).decode()
        if not text.isascii() or not text.isprintable():
            # Within strings only. JSON lets stand what some terminals obey.
            text = "".join(map(_escaped, text))
        return text.encode() + b"\n"

    def note(self, text: str) -> bytes:
        _say(text)
        return b""

    def pause(self) -> bytes:
        return b""

    def end(self, text: str = "") -> bytes:
        return b""


def _escaped(char: str) -> str:
    if shown(char) == char:
        return char
    units = char.encode("utf-16-be")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))


class _Screen:
    """Shows events in the terminal, or as lines where there is none."""

    def __init__(self, *, has_colours: bool) -> None:
        is_terminal = sys.stdout.isatty()
        is_live = is_terminal and os.environ.get("TERM") not in {"", "dumb"}
        self._encoding = sys.stdout.encoding or "utf-8"
        width, height = shutil.get_terminal_size()
        self._view = TerminalView(
            width if is_terminal else None,
            height,
            has_colours=has_colours and is_live and not os.environ.get("NO_COLOR"),
            is_live=is_live,
            has_blocks=self._encoding.lower().replace("-", "") == "utf8",
        )

    def show(self, event: Event) -> bytes:
        return self._encode(self._resize() + self._view.show(event))

    def note(self, text: str) -> bytes:
        return self._encode(self._resize() + self._view.note(text))

    def pause(self) -> bytes:
        return self._encode(self._view.pause())

    def end(self, text: str = "") -> bytes:
        return self._encode(self._resize() + self._view.end(text))

    def _resize(self) -> str:
        if self._view.width is None:
            return ""
        return self._view.resize(*shutil.get_terminal_size())

    def _encode(self, text: str) -> bytes:
        # The text may have letters that the terminal has not.
        return text.encode(self._encoding, "replace")


# Following.


class _Tail:
    """Shows a session until it has ended, or nobody looks any more."""

    def __init__(self, events: Events, shown: _Shown, output: Output) -> None:
        self._events = events
        self._shown = shown
        self._output = output
        self._writing = anyio.Lock()
        # What was last told of the connection: by which way it works, or "", that it is lost.
        self._told: str | None = None
        self._has_followed = False
        # When something was last shown.
        self._shown_at = 0.0
        self._code = 0

    async def run(self) -> int:
        """Return the exit code."""
        async with anyio.create_task_group() as tasks:
            for work in (self._follow, self._watch, self._output.wait_until_nobody_reads):
                tasks.start_soon(self._until_over, work, tasks.cancel_scope)
        return self._code

    async def _until_over(
        self, work: Callable[[], Awaitable[bool]], scope: anyio.CancelScope
    ) -> None:
        """Do what may end all of it; nothing is left open in the terminal."""
        try:
            if await work():
                scope.cancel()
        except NobodyReadsError:
            self._code = _PIPE_CLOSED
            scope.cancel()
        except OSError as exc:
            self._code = _fail(str(exc))
            scope.cancel()

    async def _follow(self) -> bool:
        try:
            async with self._events as events:
                async for event in events:
                    await self._notice()
                    await self._write(self._shown.show, event)
                    self._shown_at = anyio.current_time()
            await self._write(self._shown.end, "the session has ended")
        except CallbackKitError as exc:
            await self._write(self._shown.end)
            self._code = _fail(_reason(exc))
        except (ImportError, ValueError) as exc:
            if self._events.state != "failed":
                raise
            # What the environment says of proxies is of no use.
            self._code = _fail(str(exc))
        except anyio.get_cancelled_exc_class():
            with anyio.move_on_after(_LAST_WORDS, shield=True):
                await self._output.write(self._shown.end())
            raise
        return True

    async def _write(self, show: Callable[..., bytes], *arguments: object) -> None:
        async with self._writing:
            await self._output.write(show(*arguments))

    # The connection.

    async def _watch(self) -> bool:
        """Tell what becomes of the connection; true if nobody is there to wait for."""
        waited = 0
        while True:
            await anyio.sleep(_TICK)
            await self._notice()
            if anyio.current_time() - self._shown_at >= _PAUSE:
                await self._write(self._shown.pause)
            # One that goes another way seems to wait for a moment.
            waited = waited + 1 if self._events.state == "waiting" else 0
            if waited < 2:
                continue
            trouble = self._events.trouble or "the connection was lost"
            if not self._events.was_reached:
                self._code = _fail(f"the session can't be reached: {trouble}")
                return True
            if self._told != "":
                self._told = ""
                await self._write(self._shown.note, f"{trouble}; connecting again")

    async def _notice(self) -> None:
        """Tell that there is a connection, if that is news."""
        method = self._events.method
        if self._events.state == "following" and self._told != method:
            again = " again" if self._has_followed else ""
            is_news = self._told is not None or not isinstance(self._shown, _Json)
            self._told, self._has_followed = method, True
            if is_news:
                await self._write(self._shown.note, f"following{again} by {method}")


def _reason(exc: CallbackKitError) -> str:
    if getattr(exc, "status", None) == 401:
        return f"{exc}, in the environment as {_TOKEN}"
    return str(exc)
