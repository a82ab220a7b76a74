"""Look at what a node or a run streams."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import anyio
import attrs

from callbackkit.dispatch.deadline import check_timeout
from callbackkit.streaming.callback import Callback
from callbackkit.streaming.events import RunStatus, StreamEvent, stream_event
from callbackkit.streaming.node import Node
from callbackkit.testing.messages import counted, listing, show
from callbackkit.wire.special_tokens import TokenFormat

__all__ = ["RecordedSpan", "StreamRecorder", "run_node"]


@attrs.frozen
class RecordedSpan:
    """One invocation of a node, as far as it was recorded.

    Attributes:
        node: Name of the node.
        number: 1 upwards in the run.
        params: Parameters it was started with.
        tokens: What it streamed.
        status: How it ended; ``None`` if it has not.
    """

    node: str
    number: int
    params: Mapping[str, str]
    tokens: tuple[str, ...]
    status: RunStatus | None


class StreamRecorder:
    """Shows every event of a run, from its beginning on, until it is closed.

    Nobody waits for it, and it changes nothing: it takes what the run keeps whenever it is looked
    at. So it can be made before the run or after it was over, and be looked at without an event
    loop. What a run no longer keeps when it is looked at stands in it as a ``gap``, and
    :meth:`assert_complete` tells: give a :class:`~callbackkit.Callback` that streams more than a
    mebibyte more *history_bytes*. What it has taken it keeps.

    As a context manager it closes itself::

        callback = Callback()
        recorder = StreamRecorder(callback)
        await graph.execute({"query": "tea"}, callback=callback)
        recorder.assert_text("Here is your tea.")
        recorder.assert_complete()

    Args:
        callback: Whose run to record.
    """

    def __init__(self, callback: Callback) -> None:
        if not isinstance(callback, Callback):
            raise TypeError(f"a StreamRecorder records a Callback, not {type(callback).__name__}")
        self._callback = callback
        self._events: list[StreamEvent] = []
        self._cursor = 0
        self._is_open = True
        # Re-entrant: garbage collection may run anybody's code at any time.
        self._lock = threading.RLock()

    def __repr__(self) -> str:
        return f"<StreamRecorder of {self._callback!r}: {counted(len(self.events), 'event')}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop recording; what was recorded stays. Closing twice is harmless."""
        self._take()
        self._is_open = False

    def _take(self) -> None:
        """Take what came since the last time."""
        run = self._callback._run
        with self._lock:
            if not self._is_open:
                return
            number, entries, _ = run.log.read(self._cursor, sys.maxsize)
            if number > self._cursor:
                self._events.append(_gap(run.format, number, number - self._cursor))
            self._cursor = number + len(entries)
            self._events += map(stream_event, range(number + 1, self._cursor + 1), entries)

    # Looking.

    @property
    def events(self) -> list[StreamEvent]:
        """The :class:`~callbackkit.StreamEvent` objects so far, in order."""
        self._take()
        return self._events.copy()

    @property
    def tokens(self) -> list[str]:
        """The ordinary tokens, as they were emitted; special ones stand in :attr:`events`."""
        return _tokens(self.events)

    def text(self, node: str | None = None) -> str:
        """Return the ordinary tokens joined: all, or those of one node, however often it ran."""
        events = self.events
        return "".join(_tokens([one for one in events if node is None or one.node == node]))

    def of(self, type: str) -> list[StreamEvent]:  # noqa: A002 - as the attribute of an event
        """Return the events of one type, in order."""
        return [event for event in self.events if event.type == type]

    @property
    def spans(self) -> list[RecordedSpan]:
        """The invocations of nodes, in the order they began."""
        events = self.events
        return [_span(one, events) for one in events if one.type == "node_start"]

    @property
    def status(self) -> RunStatus | None:
        """How the run ended; ``None`` if it has not, or the recorder was closed before."""
        last = self.events[-1:]
        return last[0].status if last and last[0].type == "stream_end" else None

    @property
    def error(self) -> BaseException | None:
        """What the readers of the run are raised at its end."""
        return self._callback.error

    async def wait_ended(self, *, timeout: float | None = 5.0) -> RunStatus:
        """Wait until the run has ended; return how.

        Args:
            timeout: Seconds to wait; ``None`` for no limit.

        Raises:
            TimeoutError: It did not end; the message lists what was recorded.
        """
        await self._follow("stream_end", 1, timeout)
        if (status := self.status) is None:
            raise TimeoutError(f"the run did not end within {timeout} seconds; {self._recorded()}")
        return status

    async def wait_for(
        self,
        type: str,  # noqa: A002 - as the attribute of an event
        count: int = 1,
        *,
        timeout: float | None = 5.0,
    ) -> list[StreamEvent]:
        """Wait until there are at least *count* events of a type; return the first *count*.

        Args:
            type: ``"token"``, ``"node_end"``, or any other.
            count: Events, those recorded before the waiting included.
            timeout: Seconds to wait; ``None`` for no limit.

        Raises:
            TimeoutError: Fewer came, or the run ended with fewer; the message lists what was
                recorded.
        """
        if count < 1:
            raise ValueError(f"count must be at least 1, not {count!r}")
        await self._follow(type, count, timeout)
        found = self.of(type)
        if len(found) < count:
            when = f"within {timeout} seconds" if self.status is None else "before the run ended"
            raise TimeoutError(
                f"{type} came {counted(len(found), 'time')} {when}, "
                f"not {counted(count, 'time')}; {self._recorded()}"
            )
        return found[:count]

    async def _follow(self, type: str, count: int, timeout: float | None) -> None:  # noqa: A002
        """Wait until there are so many events of a type, the run has ended or the time is up."""
        check_timeout(timeout)
        events = self.events
        reader = self._callback.events(after=events[-1].seq if events else 0, raise_errors=False)
        count -= sum(event.type == type for event in events)
        with anyio.move_on_after(timeout):
            while count > 0 and (event := await anext(reader, None)):
                count -= event.type == type

    # Asserting.

    def assert_tokens(self, tokens: Sequence[str]) -> None:
        """Assert that these ordinary tokens were streamed, cut exactly so, and no others."""
        if self.tokens != list(tokens):
            raise self._wrong(f"expected the tokens {show(list(tokens))}, not {show(self.tokens)}")

    def assert_text(self, text: str, node: str | None = None) -> None:
        """Assert what was streamed, however it was cut: by the run, or by a node of this name."""
        if (came := self.text(node)) != text:
            of = "" if node is None else f" of {node}"
            raise self._wrong(f"expected the text{of} to be {show(text)}, not {show(came)}")

    def assert_nodes(self, nodes: Sequence[str]) -> None:
        """Assert that these nodes ran, one name for each invocation, in the order they began."""
        if (came := [span.node for span in self.spans]) != list(nodes):
            raise self._wrong(f"expected the nodes {show(list(nodes))}, not {show(came)}")

    def assert_ended(self, status: RunStatus = "ok") -> None:
        """Assert that the run has ended, in this way."""
        if self.status == status:
            return
        error = "" if self.error is None else f" with {show(self.error)}"
        came = "has not ended" if self.status is None else f"ended {self.status!r}{error}"
        raise self._wrong(f"expected the run to end {status!r}; it {came}")

    def assert_complete(self) -> None:
        """Assert that the run ended well, each node it began too, and nothing was missed."""
        self.assert_ended()
        if gaps := self.of("gap"):
            missed = sum(gap.data["missed"] for gap in gaps)
            raise self._wrong(
                f"{counted(missed, 'event')} were no longer kept when the recorder looked: "
                "make the Callback with more history_bytes"
            )
        for span in self.spans:
            if span.status != "ok":
                came = "did not end" if span.status is None else f"ended {span.status!r}"
                raise self._wrong(f"expected each node to end 'ok'; {span.node} {came}")

    def _wrong(self, expected: str) -> AssertionError:
        return AssertionError(f"{expected}; {self._recorded()}")

    def _recorded(self) -> str:
        lines = [_line(event) for event in self.events]
        return f"recorded: {counted(len(lines), 'event')}{listing(lines)}"


async def run_node(
    node: Node | Callable[..., Any],
    state: Mapping[str, Any] | None = None,
    /,
    *,
    shared: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
) -> tuple[Any, list[str]]:
    """Run one node as a graph does, and return what it returned and what it streamed.

    One that is not async runs in a worker thread. What :func:`~callbackkit.emit_token` emits, in
    the node or in what it calls, is streamed too. To give a node a time limit, put
    ``anyio.fail_after`` around.

    Args:
        node: A node; or a plain function, which gets what it names as a node does, ``callback``
            too, and may return anything.
        state: What the nodes before it left, by key.
        shared: What it gets for ``state``, the state all nodes of a graph share. Unless given,
            that is *state*.
        callback: Where it streams to, if it is to be one of yours: a subclass, or one that a
            :class:`StreamRecorder` records. Its run ends with the node.

    Returns:
        The result, and the ordinary tokens as they were emitted. Special ones are not among them;
        a recorder has those.

    Raises:
        Exception: What the node raised.
        NodeInputError: It names a parameter that is no key of the state.
        NodeOutputError: A node returned no mapping.
    """
    if not callable(node):
        raise TypeError(f"run_node() runs a node or a function, not {show(node)}")
    state = {} if state is None else state
    callback = Callback(history_bytes=sys.maxsize) if callback is None else callback
    ran = node if isinstance(node, Node) else _Plain(node, stream=True, name=_name_of(node))
    with StreamRecorder(callback) as recorder:
        async with callback:
            result = await ran.invoke(state, callback, state if shared is None else shared)
    return result, recorder.tokens


class _Plain(Node):
    """A plain function: what it returns is its own business."""

    def _checked(self, output: Any) -> Any:
        return output


def _name_of(function: object) -> str | None:
    """Return a name for a function that has none, a partial say."""
    return None if hasattr(function, "__name__") else type(function).__name__


def _gap(token_format: TokenFormat, number: int, missed: int) -> StreamEvent:
    """Return what stands for entries that are gone, as readers get it."""
    token = token_format.special("gap", params={"missed": missed})
    return StreamEvent(number, "gap", token, params=token.params, data={"missed": missed})


def _tokens(events: Sequence[StreamEvent]) -> list[str]:
    return [event.token or "" for event in events if event.type == "token"]


def _span(start: StreamEvent, events: Sequence[StreamEvent]) -> RecordedSpan:
    own = [event for event in events if event.span == start.span]
    status: RunStatus | None = None
    for event in own:
        if event.type == "node_end":
            status = event.status
    return RecordedSpan(
        start.node or "", start.span or 0, start.params, tuple(_tokens(own)), status
    )


def _line(event: StreamEvent) -> str:
    what = show(event.data if event.token is None or event.type == "gap" else str(event.token))
    of = "" if event.node is None or event.type != "token" else f" of {event.node}"
    return f"{event.type}{of}: {what}"
