"""Events as ``text/event-stream``, written and read by the rules of WHATWG HTML.

Source of every rule here: WHATWG HTML, "Server-sent events", sections "Parsing an event
stream" and "Interpreting an event stream"; where browsers go on after a lost connection,
Chromium's ``EventSourceParser``.
"""

from __future__ import annotations

import codecs
import re
from typing import Final

import attrs

from callbackkit.errors import WireError

__all__ = ["EventStreamReader", "ServerSentEvent", "write_comment", "write_event"]

# Only these end a line. str.splitlines() also splits at U+2028, U+0085 and others, which are
# text here.
_LINE_END: Final = re.compile(r"\r\n|\r|\n")

# The largest reconnection time; a browser ignores what does not fit 64 bits.
_MAX_RETRY_DIGITS: Final = 19

_BOM: Final = "\ufeff"


@attrs.frozen
class ServerSentEvent:
    """One event, as a browser's ``EventSource`` would hand it out.

    Attributes:
        data: Its text; line ends are LF.
        event: Its type.
        id: The last event id when it was dispatched, its own or an earlier event's; ``""`` if
            there was none yet.
        retry: Milliseconds to wait before reconnecting, if this event said so.
    """

    data: str
    event: str = "message"
    id: str = ""
    retry: int | None = None


# Writing.


def write_event(
    data: str | None,
    *,
    id: str | None = None,  # noqa: A002 - the name of the field on the wire
    event: str | None = None,
    retry: int | None = None,
) -> bytes:
    r"""Return one event, ready to be sent.

    >>> write_event("two\nlines", id="7")
    b'id: 7\ndata: two\ndata: lines\n\n'

    Args:
        data: Text of any number of lines; CR and CRLF arrive as LF. ``None`` writes no data:
            the client takes note of *id* and *retry* and dispatches nothing.
        id: What the client sends as ``Last-Event-ID`` when it reconnects; ``""`` clears it.
        event: Type of the event. A browser's ``onmessage`` sees only events without one.
        retry: Milliseconds the client waits before it reconnects.

    Raises:
        TypeError: An argument of another type.
        ValueError: A line end in *id* or *event*, NUL in *id* (the client would ignore it), a
            *retry* that is negative or has more than 19 digits, text that is no Unicode (a
            lone surrogate).
    """
    text = ""
    if id is not None:
        _check_line("id", id)
        if "\0" in id:
            raise ValueError(f"id must not contain NUL, clients ignore such an id: {id!r:.200}")
        text = f"id: {id}\n"
    if event is not None:
        _check_line("event", event)
        text += f"event: {event}\n"
    if retry is not None:
        _check_retry(retry)
        text += f"retry: {retry}\n"
    return _encoded("data", f"{text}{_data_lines(data)}\n")


def write_comment(text: str = "") -> bytes:
    r"""Return lines that clients skip, which keep a silent connection open.

    >>> write_comment("keepalive")
    b': keepalive\n\n'
    """
    lines = "".join(f": {line}\n" for line in _LINE_END.split(text))
    return _encoded("text", f"{lines}\n")


def _data_lines(data: str | None) -> str:
    if data is None:
        return ""
    if not isinstance(data, str):
        raise TypeError(f"data must be a str, not {type(data).__name__}")
    if "\n" in data or "\r" in data:
        return "".join(f"data: {line}\n" for line in _LINE_END.split(data))
    return f"data: {data}\n"


def _check_line(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, not {type(value).__name__}")
    if "\n" in value or "\r" in value:
        raise ValueError(f"{name} must be one line, not {value!r:.200}")


def _check_retry(retry: object) -> None:
    if isinstance(retry, bool) or not isinstance(retry, int):
        raise TypeError(f"retry must be an int (milliseconds), not {retry!r:.200}")
    if not 0 <= retry < 10**_MAX_RETRY_DIGITS:
        raise ValueError(
            f"retry must be 0 or more milliseconds, in {_MAX_RETRY_DIGITS} digits at most"
        )


def _encoded(name: str, text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as exc:
        surrogate = exc.object[exc.start]
        raise ValueError(f"{name} must be Unicode text; {surrogate!r} is half a pair") from None


# Reading.


class EventStreamReader:
    r"""Takes an event stream in any pieces and gives its events.

    >>> reader = EventStreamReader()
    >>> reader.feed(b"id: 1\ndata: a")
    []
    >>> reader.feed(b"b\n\n")
    [ServerSentEvent(data='ab', event='message', id='1', retry=None)]

    Args:
        last_event_id: The id to start from, when the stream goes on with an earlier one.
        max_event: Most characters of one event, and of one line, before it is given up.

    Attributes:
        last_event_id: Id of the last complete event that had one, to be sent as
            ``Last-Event-ID``; ``""`` for none.
        retry: Milliseconds the server last asked to wait before reconnecting.
    """

    last_event_id: str
    retry: int | None
    _is_first: bool
    _skip_lf: bool
    _failure: WireError | None
    _events: list[ServerSentEvent]

    def __init__(self, last_event_id: str = "", *, max_event: int = 1_048_576) -> None:
        if isinstance(max_event, bool) or not isinstance(max_event, int):
            raise TypeError(f"max_event must be an int, not {max_event!r}")
        if max_event < 1:
            raise ValueError(f"max_event must be at least 1, not {max_event!r}")
        self.last_event_id = last_event_id
        self.retry = None
        self._max_event = max_event
        self._start()

    def __repr__(self) -> str:
        return (
            f"<EventStreamReader last_event_id={self.last_event_id!r:.200}, "
            f"{self._line_size + self._data_size} characters unfinished>"
        )

    def feed(self, chunk: str | bytes) -> list[ServerSentEvent]:
        """Return the events that *chunk* completes.

        Bytes that are no UTF-8 become U+FFFD, as the standard has it.

        Raises:
            TypeError: Neither ``str`` nor ``bytes``, or one after the other in one stream.
            WireError: An event or a line is larger than *max_event*. What came before it is
                returned first. The stream is of no use from then on, only :meth:`flush` leads
                on.
        """
        text = self._decoded(chunk)
        if self._is_first and text:
            # One byte order mark is no part of the stream; a second one is text.
            self._is_first = False
            text = text.removeprefix(_BOM)
        if self._skip_lf and text:
            # The CR that ended the last chunk has ended the line: its LF may come now.
            self._skip_lf = False
            text = text.removeprefix("\n")
        self._skip_lf = self._skip_lf or text.endswith("\r")
        if self._failure is None:
            try:
                self._take_lines(text)
            except WireError as exc:
                self._failure = exc
                self._forget()
        events, self._events = self._events, []
        if self._failure is not None and not events:
            self._is_told = True
            raise self._failure
        return events

    def flush(self) -> list[ServerSentEvent]:
        """Say that the stream has ended, and return the events that completes: none.

        An event that no blank line has ended is dropped, as the standard has it. The reader is
        ready for the stream of the next connection; it goes on with :attr:`last_event_id` and
        :attr:`retry`.

        Raises:
            WireError: The stream was given up, and no call of :meth:`feed` has told yet.
        """
        untold = None if self._is_told else self._failure
        self._start()
        if untold is not None:
            raise untold
        return []

    def _start(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._takes: type[str] | type[bytes] | None = None
        self._is_first = True
        self._skip_lf = False
        self._events = []
        self._failure = None
        self._is_told = False
        # An id counts from the blank line on that ends its event.
        self._id = self.last_event_id
        self._forget()

    def _forget(self) -> None:
        # The unfinished line, in the pieces it came in: joined once, whatever their number.
        self._line: list[str] = []
        self._line_size = 0
        self._clear()

    def _clear(self) -> None:
        self._data: list[str] = []
        self._data_size = 0
        self._event = ""
        self._event_retry: int | None = None

    def _decoded(self, chunk: object) -> str:
        if not isinstance(chunk, str | bytes):
            raise TypeError(f"chunk must be a str or bytes, not {type(chunk).__name__}")
        takes = str if isinstance(chunk, str) else bytes
        if self._takes is not takes:
            if self._takes is not None:
                raise TypeError(f"the stream is {self._takes.__name__}, not {takes.__name__}")
            self._takes = takes
        return chunk if isinstance(chunk, str) else self._decoder.decode(chunk)

    def _take_lines(self, text: str) -> None:
        *lines, rest = _LINE_END.split(text)
        for piece in lines:
            self._end_line(piece)
        self._hold(rest)

    def _hold(self, piece: str) -> None:
        """Keep a piece of a line that has not ended."""
        if piece:
            self._line_size += len(piece)
            self._check_size()
            self._line.append(piece)

    def _check_size(self) -> None:
        if self._line_size + self._data_size > self._max_event:
            raise WireError(f"an event is larger than {self._max_event} characters (max_event)")

    def _end_line(self, piece: str) -> None:
        """Process a line, whose last piece this is; the blank one ends an event."""
        self._hold(piece)
        line = "".join(self._line)
        self._line.clear()
        self._line_size = 0
        if not line:
            self._dispatch()
            return
        # A line that starts with a colon is a comment: a field without a name, so ignored.
        name, _, value = line.partition(":")
        self._take_field(name, value.removeprefix(" "))

    def _take_field(self, name: str, value: str) -> None:
        """Process a field; unknown ones are ignored."""
        if name == "data":
            # The LF behind it counts too, or empty lines of data could be many.
            self._data_size += len(value) + 1
            self._check_size()
            self._data.append(value)
        elif name == "event":
            self._event = value
        elif name == "id":
            if "\0" not in value:
                self._id = value
        elif name == "retry" and _is_retry(value):
            self.retry = self._event_retry = int(value)

    def _dispatch(self) -> None:
        """End an event; one without data only leaves its id behind."""
        self.last_event_id = self._id
        if self._data:
            data, event = "\n".join(self._data), self._event or "message"
            self._events.append(ServerSentEvent(data, event, self._id, self._event_retry))
        self._clear()


def _is_retry(value: str) -> bool:
    """ASCII digits only: no sign, no space, no digits of other scripts."""
    return value.isascii() and value.isdigit() and len(value) <= _MAX_RETRY_DIGITS
