"""Any sequence of emitting, reading and ending does what a simple model of a run says."""

import contextvars
import sys
import threading
import weakref
from collections.abc import Callable, Collection, Generator
from concurrent.futures import Future
from contextlib import ExitStack
from typing import Any

import anyio
import anyio.from_thread
import attrs
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from callbackkit import (
    Callback,
    SpecialToken,
    StreamCancelledError,
    StreamClosedError,
    StreamEvent,
    StreamLagError,
)

# Seconds after which something hangs.
SOON = 20

# Few names and types, so that they meet often.
NODES = ["a", "a", "b:start", "END", "é"]
TYPES = ["token", "node_start", "node_end", "note", "stream_end"]
TEXTS = ["", "x", "yz", "<graphai:END>", "<graphai:a:start>", "é", "🙂", "\ud83d", "a\nb", "w" * 90]

nodes = st.sampled_from(NODES)
texts = st.sampled_from(TEXTS)
ways = st.sampled_from(["loop", "thread"])
contexts = st.integers(0, 1)
# Which reader, or span, of those there are.
choices = st.integers(0, 11)


class Failure(Exception):
    pass


# The model.


@attrs.define(eq=False)
class Span:
    """One invocation of a node as the model sees it."""

    number: int | None
    node: str
    is_active: bool = True
    is_open: bool = True


@attrs.define
class Entry:
    """An entry as the model sees it."""

    type: str
    token: Any = None
    span: Span | None = None
    params: dict[str, str] = attrs.field(factory=dict)
    data: Any = None
    status: str | None = None

    @property
    def whose(self) -> tuple[int | None, str] | None:
        """Text of one and the same may be joined."""
        return None if self.span is None else (self.span.number, self.span.node)

    @property
    def size(self) -> tuple[int, int]:
        """The fewest and the most bytes that it may count for."""
        if self.type == "token":
            size = len(self.token.encode("utf-8", "surrogatepass")) or 1
            return size, size
        return (1, 300) if self.type == "note" else (8, 100)

    def piece(self, token_format: str) -> Any:
        if self.type == "token":
            return token_format.replace("{token}", self.token)
        return (self.type, None if self.span is None else self.span.node, self.params)

    def event(self, seq: int) -> Any:
        token = self.token if self.type in ("token", "note") else self.piece("")
        node, number = (None, None) if self.span is None else (self.span.node, self.span.number)
        return (seq, self.type, token, node, number, self.params, self.data, self.status)


def plain(item: Any) -> Any:
    """Return what a reader has handed out as something to compare."""
    if isinstance(item, StreamEvent):
        token = None if item.token is None else plain(item.token)
        params = dict(item.params)
        return (
            item.seq,
            item.type,
            token,
            item.node,
            item.span,
            params,
            item.data,
            item.status,
        )
    if isinstance(item, SpecialToken):
        return (item.kind, item.node, dict(item.params))
    assert type(item) is str
    return item


def missed_in(got: Any) -> int:
    """Return how many entries are missed by what was handed out, if that begins with a gap."""
    item = got[0] if isinstance(got, list) and got else got
    params = getattr(item, "params", {})
    return int(params.get("missed", 0))


@attrs.define(eq=False)
class Follower:
    """A reader, and what the model knows about it."""

    reader: Any
    shows: str
    overflow: str
    max_lag: int
    raises: bool = True
    types: Collection[str] | None = None
    nodes: Collection[str] | None = None
    cursor: int = 0
    begin: int = 0
    received: int = 0
    missed: int = 0
    ends: int = 0
    pending: list[Any] = attrs.field(factory=list)
    is_stalled: bool = False
    is_closed: bool = False
    is_told: bool = False
    waiting: Future[Any] | None = None
    waits_for_batch: bool = False
    scope: anyio.CancelScope | None = None

    def wants(self, entry: Entry) -> bool:
        if self.shows != "events":
            return entry.type != "note"
        if entry.type == "stream_end":
            return True
        node = None if entry.span is None else entry.span.node
        return (self.types is None or entry.type in self.types) and (
            self.nodes is None or node in self.nodes
        )


@attrs.define(eq=False)
class Model:
    """What was emitted, and what a reader gets of it."""

    history_bytes: int
    token_format: str
    entries: list[Entry] = attrs.field(factory=list)
    # How many are known to be gone.
    gone: int = 0
    status: str | None = None
    error: BaseException | None = None

    def has_something(self, follower: Follower) -> bool:
        """Tell whether a reader need not wait, as far as that is certain."""
        ahead = self.entries[follower.cursor :]
        return bool(
            follower.pending
            or follower.is_closed
            or self.status is not None
            or (follower.overflow == "error" and self.too_many(follower) > 0)
            or any(map(follower.wants, ahead))
        )

    def holds_up(self, follower: Follower) -> bool:
        lag = len(self.entries) - follower.cursor + len(follower.pending)
        is_waited_for = follower.overflow == "block" and not follower.is_stalled
        return is_waited_for and not follower.is_closed and lag >= follower.max_lag

    def too_many(self, follower: Follower) -> int:
        """Return by how much one is behind that is not to be; the END has its own place."""
        ends = self.status is not None
        return len(self.entries) - ends - follower.cursor - follower.max_lag

    def lag_error(self, follower: Follower) -> int:
        """Skip what a reader has missed that must not be behind."""
        missed = self.too_many(follower)
        if follower.overflow != "error" or missed <= 0:
            return 0
        follower.cursor += missed
        follower.missed += missed
        return missed

    def fill(self, follower: Follower, missed: int) -> None:
        """Take out what a reader takes out, given how many entries it says it has missed."""
        end = len(self.entries)
        self.check_gap(follower, follower.cursor + missed)
        follower.is_stalled = False
        follower.cursor += missed
        follower.missed += missed
        if missed:
            follower.pending.append(self.gap(follower, missed))
        while True:
            entries = self.entries[follower.cursor :]
            is_behind = len(entries) > follower.max_lag
            if follower.overflow != "coalesce":
                entries = entries[:1]
            elif is_behind and follower.shows == "events":
                entries = entries[: follower.max_lag]
            follower.pending += self.shown(follower, entries, is_behind)
            follower.cursor += len(entries)
            follower.received += len(entries)
            if follower.pending or follower.cursor == end:
                return

    def check_gap(self, follower: Follower, number: int) -> None:
        """Nothing is missed without need, and what is gone does not come back."""
        skipped = max(self.too_many(follower), 0) if follower.is_stalled else 0
        least = follower.cursor + skipped
        assert number >= max(least, self.gone)
        kept = self.entries[number:]
        if number > least:
            self.gone = max(self.gone, number)
            held = self.entries[number - 1 :]
            assert sum(entry.size[1] for entry in held) > self.history_bytes
        assert sum(entry.size[0] for entry in kept[:-3]) <= self.history_bytes

    def gap(self, follower: Follower, missed: int) -> Any:
        piece = ("gap", None, {"missed": str(missed)})
        if follower.shows != "events":
            return piece
        return (follower.cursor, "gap", piece, None, None, piece[2], {"missed": missed}, None)

    def shown(self, follower: Follower, entries: list[Entry], is_behind: bool) -> list[Any]:
        if follower.shows == "events":
            numbered = enumerate(entries, follower.cursor + 1)
            return [entry.event(seq) for seq, entry in numbered if follower.wants(entry)]
        pieces: list[Any] = []
        before: Entry | None = None
        for entry in entries:
            piece = entry.piece(self.token_format)
            is_one = (
                before is not None
                and before.type == entry.type == "token"
                and before.whose == entry.whose
            )
            if is_one and is_behind and follower.overflow == "coalesce":
                pieces[-1] += piece
            elif follower.wants(entry):
                pieces.append(piece)
            before = entry
        return pieces


# The two side by side.


async def get(following: Any) -> Any:
    """Return what a reader hands out next, or what it raises."""
    try:
        return await anext(following)
    except Exception as exc:
        # Its traceback would hold the reader.
        return exc.with_traceback(None)


def get_sync(reader: Any) -> Any:
    try:
        return next(reader)
    except Exception as exc:
        return exc.with_traceback(None)


async def turn() -> None:
    """Let the other tasks run."""
    await anyio.sleep(0)


def is_end(item: Any) -> bool:
    return "stream_end" in (item[0], item[1]) if isinstance(item, tuple) else False


class StreamMachine(RuleBasedStateMachine):
    """Drives a run with its readers, and the model."""

    backend = "asyncio"

    @initialize(
        history_bytes=st.sampled_from([1_048_576, 1_048_576, 1, 1, 40, 300]),
        token_format=st.sampled_from(["{token}", "{token}", "[{token}]"]),
        idle_timeout=st.sampled_from([None, None, 1_000.0]),
        stall_timeout=st.sampled_from([0.001, 60.0]),
    )
    def start(
        self,
        history_bytes: int,
        token_format: str,
        idle_timeout: float | None,
        stall_timeout: float,
    ) -> None:
        self.callback = Callback(
            token_format=token_format, history_bytes=history_bytes, idle_timeout=idle_timeout
        )
        self.model = Model(history_bytes, token_format)
        self.stall_timeout = stall_timeout
        self.followers: list[Follower] = []
        # Two tasks that emit, and the spans that each of them stands in.
        self.contexts = [contextvars.copy_context() for _ in range(2)]
        self.stacks: list[list[Span]] = [[], []]
        self.spans: list[Span] = []
        self.opened: list[tuple[Any, Span]] = []
        self.ends = 0
        self.callback.on_end(self.note_end)
        self.exits = ExitStack()
        portal = anyio.from_thread.start_blocking_portal(self.backend)
        self.portal = self.exits.enter_context(portal)

    def note_end(self) -> None:
        self.ends += 1

    # Emitting.

    def act(self, way: str, context: int, call: Callable[..., Any], *args: Any) -> Any:
        """Call in one of the two contexts, on the loop's thread or in another one."""
        if way == "loop":
            return self.portal.call(self.contexts[context].run, call, *args)
        return self.contexts[context].run(call, *args)

    def act_alone(self, way: str, context: int, call: Callable[..., Any], *args: Any) -> Any:
        """Likewise, for what emits several entries: no reader may come in between."""
        is_watched = any(one.waiting is not None for one in self.followers)
        return self.act("loop" if is_watched else way, context, call, *args)

    def close_error(self) -> type[Exception]:
        return StreamCancelledError if self.model.status == "cancelled" else StreamClosedError

    def span_in(self, context: int, node: str | None = None) -> Span | None:
        stack = self.stacks[context]
        found = (one for one in reversed(stack) if one.is_open and node in (None, one.node))
        return next(found, None)

    def newest(self, node: str) -> Span | None:
        found = (one for one in reversed(self.spans) if one.is_open and one.node == node)
        return next(found, None)

    def span_of(self, context: int, node: str | None) -> Span | None:
        if node is None:
            return self.span_in(context)
        return self.span_in(context, node) or self.newest(node) or Span(None, node)

    def holders(self) -> list[Follower]:
        if self.model.status is not None:
            return []
        return [one for one in self.followers if self.model.holds_up(one)]

    def is_emitted(self, entry: Entry) -> None:
        if entry.span is None or entry.span.is_active:
            self.model.entries.append(entry)
        self.settle()

    @rule(
        text=texts,
        node=st.one_of(st.none(), st.none(), nodes),
        way=ways,
        context=contexts,
        special=st.booleans(),
        times=st.sampled_from([1, 1, 2, 6]),
    )
    def emit(
        self, text: str, node: str | None, way: str, context: int, special: bool, times: int
    ) -> None:
        token = self.callback.format.special("node_end", "a") if special else text
        if self.model.status is not None:
            with pytest.raises(self.close_error()):
                self.act(way, context, self.callback, token, node)
            return
        for _ in range(times):
            holders = self.holders()
            chosen = "loop" if self.stall_timeout > 1 and holders else way
            self.act(chosen, context, self.callback, token, node)
            for one in holders if chosen == "thread" else []:
                one.is_stalled = True
            self.is_emitted(Entry("token", str.__str__(token), self.span_of(context, node)))

    @rule(text=texts, node=st.one_of(st.none(), nodes), context=contexts)
    def acall(self, text: str, node: str | None, context: int) -> None:
        holders = self.holders()
        is_patient = self.stall_timeout > 1
        if is_patient and not all(map(self.model.has_something, holders)):
            return
        call = self.callback.acall
        emitting: Future[None] = self.contexts[context].run(
            self.portal.start_task_soon, call, text, node
        )
        if self.model.status is not None:
            with pytest.raises(self.close_error()):
                emitting.result(SOON)
            return
        if is_patient:
            self.make_room(holders, emitting)
        emitting.result(SOON)
        for one in [] if is_patient else holders:
            one.is_stalled = True
        self.is_emitted(Entry("token", text, self.span_of(context, node)))

    def make_room(self, holders: list[Follower], emitting: Future[None]) -> None:
        for one in holders:
            while self.model.holds_up(one) and self.model.has_something(one):
                self.portal.call(turn)
                assert not emitting.done()
                self.read(one)
            if self.model.holds_up(one):
                # Only entries are left that it is not shown: it passes over them.
                one.reader.close()
                one.is_closed = True
                one.pending.clear()

    @rule(data=st.sampled_from([None, 1, "text", {"a": [1, 2]}]), way=ways, context=contexts)
    def note(self, data: Any, way: str, context: int) -> None:
        if self.model.status is not None:
            with pytest.raises(self.close_error()):
                self.act(way, context, self.callback.event, "note", data)
            return
        self.act(way, context, self.callback.event, "note", data)
        self.is_emitted(Entry("note", None, self.span_in(context), data=data))

    # Nodes.

    def is_opened(self, node: str, context: int, active: bool, params: dict[str, str]) -> Span:
        span = Span(sum(one.number is not None for one in self.spans) + 1, node, active)
        self.spans.append(span)
        stack = self.stacks[context]
        while stack and not stack[-1].is_open:
            stack.pop()
        stack.append(span)
        if active:
            self.model.entries.append(Entry("node_start", span=span, params=params))
            self.model.entries.append(Entry("node_name", span=span))
        self.settle()
        return span

    def is_finished(self, span: Span, status: str) -> None:
        if span.is_open and span.is_active and self.model.status is None:
            params = {} if status == "ok" else {"status": status}
            entry = Entry("node_end", span=span, params=params, status=status)
            self.model.entries.append(entry)
        span.is_open = False
        self.settle()

    @rule(
        node=nodes,
        context=contexts,
        way=ways,
        active=st.sampled_from([True, True, False]),
        params=st.sampled_from([{}, {"k": "v,="}]),
    )
    def start_node(
        self, node: str, context: int, way: str, active: bool, params: dict[str, str]
    ) -> None:
        if self.model.status is not None:
            with pytest.raises(self.close_error()):
                self.act(way, context, self.callback.start_node, node, active)
            return
        self.act_alone(way, context, self.callback.start_node, node, active, params)
        self.is_opened(node, context, active, params)

    @rule(node=nodes, context=contexts, way=ways, status=st.sampled_from(["ok", "error"]))
    def end_node(self, node: str, context: int, way: str, status: Any) -> None:
        def call() -> None:
            self.callback.end_node(node, status=status)

        span = self.span_in(context, node) or self.newest(node)
        if span is None:
            with pytest.raises(ValueError, match="no node of that name"):
                self.act(way, context, call)
        elif self.model.status is not None and span.is_active:
            with pytest.raises(self.close_error()):
                self.act(way, context, call)
            span.is_open = False
        else:
            self.act(way, context, call)
            self.is_finished(span, status)

    @precondition(lambda self: self.model.status is None)
    @rule(node=nodes, context=contexts, way=ways, active=st.sampled_from([True, True, False]))
    def open_a_span(self, node: str, context: int, way: str, active: bool) -> None:
        spanning = self.callback.node(node, active=active)
        self.act_alone(way, context, spanning.__enter__)
        self.opened.append((spanning, self.is_opened(node, context, active, {})))

    @precondition(lambda self: self.opened)
    @rule(
        choice=choices,
        context=contexts,
        way=ways,
        exc=st.sampled_from([None, Failure(), StreamCancelledError()]),
    )
    def leave_a_span(self, choice: int, context: int, way: str, exc: Any) -> None:
        spanning, span = self.opened.pop(choice % len(self.opened))
        self.act(way, context, spanning.__exit__, type(exc), exc, None)
        stack = self.stacks[context]
        if span in stack:
            del stack[stack.index(span) :]
        status = {Failure: "error", StreamCancelledError: "cancelled"}.get(type(exc), "ok")
        self.is_finished(span, status)

    @precondition(lambda self: self.opened)
    @rule(choice=choices, text=texts, context=contexts)
    def emit_to_a_span(self, choice: int, text: str, context: int) -> None:
        spanning, span = self.opened[choice % len(self.opened)]
        if self.model.status is not None:
            with pytest.raises(self.close_error()):
                self.act("loop", context, spanning, text)
        elif not span.is_open:
            with pytest.raises(RuntimeError, match="has ended"):
                self.act("loop", context, spanning, text)
        else:
            self.act("loop", context, spanning, text)
            self.is_emitted(Entry("token", text, span))

    @precondition(lambda self: self.model.status is None and self.opened)
    @rule(texts=st.lists(texts, min_size=4, max_size=12))
    def emit_to_all_spans(self, texts: list[str]) -> None:
        """Text of several nodes that run at the same time."""
        for number, text in enumerate(texts):
            spanning, span = self.opened[number % len(self.opened)]
            if span.is_open:
                self.act("loop", 0, spanning, text)
                self.is_emitted(Entry("token", text, span))

    @precondition(lambda self: self.model.status is None)
    @rule(text=texts, count=st.sampled_from([3, 70, 500]), context=contexts)
    def emit_many(self, text: str, count: int, context: int) -> None:
        if any(one.waiting is not None for one in self.followers):
            return

        def burst() -> None:
            for _ in range(count):
                self.callback(text)

        self.act("loop", context, burst)
        entry = Entry("token", text, self.span_in(context))
        if entry.span is None or entry.span.is_active:
            self.model.entries += [entry] * count

    # Following.

    @precondition(lambda self: len(self.followers) < 8)
    @rule(
        shows=st.sampled_from(["tokens", "tokens", "events", "sync"]),
        overflow=st.sampled_from(["coalesce", "coalesce", "block", "error"]),
        max_lag=st.sampled_from([1, 1, 2, 5, 1024]),
        raises=st.sampled_from([True, True, False]),
        types=st.one_of(st.none(), st.sets(st.sampled_from(TYPES), max_size=2)),
        names=st.one_of(st.none(), st.none(), st.sets(nodes, max_size=2)),
        after=st.one_of(st.none(), st.integers(0, 1_000)),
    )
    def follow(
        self,
        shows: str,
        overflow: Any,
        max_lag: int,
        raises: bool,
        types: Any,
        names: Any,
        after: int | None,
    ) -> None:
        options: dict[str, Any] = {"overflow": overflow, "max_lag": max_lag}
        options |= {"raise_errors": raises, "stall_timeout": self.stall_timeout}
        follower = Follower(None, shows, overflow, max_lag, raises)
        if shows == "events":
            after = None if after is None else after % (len(self.model.entries) + 1)
            follower.reader = self.callback.events(after=after, types=types, nodes=names, **options)
            follower.cursor = follower.begin = after or 0
            follower.types, follower.nodes = types, names
        else:
            make = self.callback.aiter if shows == "tokens" else self.callback.iter_sync
            follower.reader = make(**options)
        self.followers.append(follower)

    def chosen(self, choice: int) -> Follower:
        return self.followers[choice % len(self.followers)]

    def read(self, one: Follower, batch: bool = False) -> None:
        """Read what need not be waited for."""
        if one.shows == "sync":
            self.check(one, get_sync(one.reader))
            return
        following = one.reader.batches() if batch else one.reader
        self.check(one, self.portal.call(get, following))

    @precondition(lambda self: self.followers)
    @rule(choice=choices, batch=st.booleans())
    def read_once(self, choice: int, batch: bool) -> None:
        one = self.chosen(choice)
        if one.waiting is not None:
            got = self.portal.call(get, one.reader)
            assert isinstance(got, RuntimeError)
            assert "another task" in str(got)
        elif self.model.has_something(one):
            self.read(one, batch)

    @precondition(lambda self: self.followers)
    @rule(choice=choices, batch=st.booleans())
    def read_what_is_there(self, choice: int, batch: bool) -> None:
        one = self.chosen(choice)
        while one.waiting is None and self.model.has_something(one):
            self.read(one, batch)
            if one.is_closed or one.is_told:
                return

    @precondition(lambda self: self.followers)
    @rule(choice=choices, batch=st.booleans())
    def wait(self, choice: int, batch: bool) -> None:
        """Read in a task that goes on waiting while other things happen."""
        one = self.chosen(choice)
        if one.waiting is not None or one.shows == "sync":
            return
        one.scope = self.portal.call(anyio.CancelScope)
        one.waits_for_batch = batch
        following = one.reader.batches() if batch else one.reader
        one.waiting = self.portal.start_task_soon(self.get_in, one.scope, following)
        self.settle()

    @staticmethod
    async def get_in(scope: anyio.CancelScope, following: Any) -> Any:
        with scope:
            return await get(following)

    def settle(self) -> None:
        """Have those who wait go on as far as they can."""
        for one in self.followers:
            if one.waiting is not None:
                self.settle_one(one, one.waiting)

    def settle_one(self, one: Follower, waiting: Future[Any]) -> None:
        must_end = self.model.has_something(one)
        while not must_end and not waiting.done() and one.reader.lag:
            self.portal.call(turn)
        self.portal.call(turn)
        if must_end or waiting.done():
            one.waiting = one.scope = None
            self.check(one, waiting.result(SOON))
            return
        # It has passed over what it is not shown.
        one.received += len(self.model.entries) - one.cursor
        if one.cursor < len(self.model.entries):
            one.is_stalled = False
        one.cursor = len(self.model.entries)

    @precondition(lambda self: any(one.waiting is not None for one in self.followers))
    @rule(choice=choices)
    def cancel_who_waits(self, choice: int) -> None:
        """Nothing is lost by it."""
        there = [one for one in self.followers if one.waiting is not None]
        one = there[choice % len(there)]
        assert one.scope is not None
        assert one.waiting is not None
        self.portal.call(one.scope.cancel)
        assert one.waiting.result(SOON) is None
        one.waiting = one.scope = None

    @precondition(lambda self: self.followers)
    @rule(choice=choices, way=ways)
    def close_a_reader(self, choice: int, way: str) -> None:
        one = self.chosen(choice)
        self.act(way, 0, one.reader.close)
        one.is_closed = True
        one.pending.clear()
        self.settle()

    @precondition(lambda self: self.followers)
    @rule(choice=choices)
    def forget_a_reader(self, choice: int) -> None:
        one = self.chosen(choice)
        if one.waiting is not None:
            return
        self.followers.remove(one)
        reference = weakref.ref(one.reader)
        del one
        # The loop may still hold what it did last.
        for _ in range(5):
            if reference() is not None:
                self.portal.call(turn)
        assert reference() is None or self.model.status is not None

    # What a reader has got.

    def check(self, one: Follower, got: Any) -> None:
        if one.is_closed:
            assert isinstance(got, (StopIteration, StopAsyncIteration))
            return
        if not one.pending:
            if one.cursor == len(self.model.entries):
                self.check_over(one, got)
                return
            missed = self.model.lag_error(one)
            if missed:
                assert isinstance(got, StreamLagError)
                assert got.missed == missed
                return
            self.model.fill(one, missed_in(got))
        assert not isinstance(got, Exception), got
        items = [plain(item) for item in got] if isinstance(got, list) else [plain(got)]
        expected = one.pending[:] if isinstance(got, list) else one.pending[:1]
        assert items == expected
        del one.pending[: len(expected)]
        one.ends += sum(map(is_end, items))
        assert one.reader.missed == one.missed

    def check_over(self, one: Follower, got: Any) -> None:
        """Behind the END comes the error, once, and then nothing more."""
        assert self.model.status is not None, f"{got!r} out of nowhere"
        assert one.ends == (1 if one.begin < len(self.model.entries) else 0)
        assert one.received + one.missed == len(self.model.entries) - one.begin
        assert one.reader.lag == 0
        error = self.model.error if one.raises and not one.is_told else None
        one.is_told = True
        if error is None:
            assert isinstance(got, (StopIteration, StopAsyncIteration)), got
        elif isinstance(error, StopAsyncIteration):
            assert type(got) is RuntimeError
            assert got.__cause__ is error
        elif isinstance(error, Failure):
            assert got is error
        else:
            assert type(got) is type(error)
            assert str(got) == str(error)

    # The end.

    @precondition(lambda self: self.steps() > 6)
    @rule(
        how=st.sampled_from(["close", "fail", "fail oddly", "cancel", "interrupt", "timeout"]),
        way=ways,
    )
    def end(self, how: str, way: str) -> None:
        status, error, call = self.ending(how)
        if self.model.status is not None:
            self.act(way, 0, call)
            assert self.callback.end("ok") is False
            return
        self.act(way, 0, call)
        self.model.status, self.model.error = status, error
        params = {} if status == "ok" else {"status": status}
        self.model.entries.append(Entry("stream_end", params=params, status=status))
        self.settle()

    def ending(self, how: str) -> tuple[str, BaseException | None, Callable[[], object]]:
        callback = self.callback
        failure = StopAsyncIteration("odd") if how == "fail oddly" else Failure()
        return {
            "close": ("ok", None, callback.close),
            "fail": ("error", failure, lambda: callback.fail(failure)),
            "fail oddly": ("error", failure, lambda: callback.fail(failure)),
            "cancel": ("cancelled", StreamCancelledError("why"), lambda: callback.cancel("why")),
            "interrupt": (
                "cancelled",
                StreamCancelledError("KeyboardInterrupt"),
                lambda: callback.fail(KeyboardInterrupt()),
            ),
            "timeout": (
                "timeout",
                TimeoutError("the run timed out"),
                lambda: callback.end("timeout"),
            ),
        }[how]

    def steps(self) -> int:
        return len(self.model.entries) + len(self.followers)

    # What always holds.

    @invariant()
    def all_is_as_the_model_says(self) -> None:
        assert self.callback.status == self.model.status
        assert self.callback.last_seq == len(self.model.entries)
        assert self.ends == (self.model.status is not None)
        for one in self.followers:
            joins = one.overflow == "coalesce" and one.shows != "events"
            if not joins and one.types is one.nodes is None and not one.is_closed:
                position = one.cursor - len(one.pending)
                assert one.reader.position == position

    def teardown(self) -> None:
        if not hasattr(self, "exits"):
            return
        with self.exits:
            try:
                self.read_all()
            finally:
                for one in self.followers:
                    one.reader.close()

    def read_all(self) -> None:
        if self.model.status is None:
            self.end("close", "thread")
        for one in self.followers:
            while not (one.is_told or one.is_closed):
                self.read(one)
            # And then nothing more, however often it is asked.
            self.read(one)


class TrioStreamMachine(StreamMachine):
    backend = "trio"


TestOnAsyncio = StreamMachine.TestCase
TestOnTrio = TrioStreamMachine.TestCase


# What chance seldom finds.


async def test_who_reads_on_behind_a_gap_lets_producers_go_on() -> None:
    callback = Callback(history_bytes=1)
    callback("gone")
    callback("kept")
    reader = callback.aiter(overflow="block", max_lag=1, stall_timeout=1_000)
    with anyio.fail_after(SOON):
        async with anyio.create_task_group() as group:
            group.start_soon(callback.acall, "waited")
            got: list[Any] = []
            for _ in range(3):
                # Each time the producer looks again, and waits.
                await anyio.wait_all_tasks_blocked()
                got.append(plain(await anext(reader)))
    assert got == [("gap", None, {"missed": "1"}), "kept", "waited"]


def test_what_two_spans_of_one_node_emit_is_not_joined() -> None:
    callback = Callback()
    first, second = callback.node("a"), callback.node("a")
    with first, second:
        for spanning in (first, first, second, second, first):
            spanning("x")
    callback.close()
    texts = [piece for piece in callback.iter_sync(max_lag=1) if type(piece) is str]
    assert texts == ["xx", "xx", "x"]


# With real threads.


@pytest.fixture
def many_switches() -> Generator[None, None, None]:
    """Threads take turns much more often."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@attrs.define(eq=False)
class Race:
    """Threads that emit until the run has ended, and readers of all kinds."""

    callback: Callback
    most: int
    accepted: list[int] = attrs.field(factory=list)
    failures: list[BaseException] = attrs.field(factory=list)
    read: list[tuple[list[Any], int, BaseException | None]] = attrs.field(factory=list)

    def guarded(self, call: Callable[..., None], *args: Any) -> None:
        try:
            call(*args)
        except BaseException as exc:
            self.failures.append(exc)

    def emit(self, producer: int, start: threading.Barrier) -> None:
        start.wait(SOON)
        try:
            for number in range(self.most):
                self.callback(f"{producer}.{number};")
                self.accepted[producer] += 1
        except (StreamClosedError, StreamCancelledError):
            return

    def end(self, how: str, at: int, start: threading.Barrier) -> None:
        start.wait(SOON)
        while sum(self.accepted) < at:
            pass
        match how:
            case "fail":
                self.callback.fail(Failure())
            case "cancel":
                self.callback.cancel()
            case _:
                self.callback.close()

    async def follow(self, reader: Any) -> None:
        got: list[Any] = []
        missed = 0
        while not isinstance(item := await get(reader), Exception):
            got.append(item)
        while isinstance(item, StreamLagError):
            missed += item.missed
            while not isinstance(item := await get(reader), Exception):
                got.append(item)
        assert isinstance(await get(reader), StopAsyncIteration)
        self.read.append((got, missed, item))

    def follow_sync(self, reader: Any) -> None:
        got: list[Any] = []
        while not isinstance(item := get_sync(reader), Exception):
            got.append(item)
        self.read.append((got, 0, item))

    async def follow_all(self, readers: list[Any]) -> None:
        with anyio.fail_after(SOON):
            async with anyio.create_task_group() as group:
                for reader in readers:
                    group.start_soon(self.follow, reader)

    def check(self, how: str) -> None:
        kinds = {"fail": Failure, "cancel": StreamCancelledError}
        total = sum(self.accepted)
        for got, missed, error in self.read:
            assert type(error) in (kinds.get(how), StopAsyncIteration, StopIteration)
            assert isinstance(error, kinds.get(how, (StopAsyncIteration, StopIteration)))
            *items, end = got
            if isinstance(end, StreamEvent):
                assert [end.type, end.seq] == ["stream_end", total + 1]
                assert len(items) + missed == total
                items = [item.token for item in items]
            else:
                assert end.kind == "stream_end"
            assert {type(item) for item in items} <= {str}
            self.check_text("".join(items), is_whole=not missed)

    def check_text(self, text: str, is_whole: bool) -> None:
        """What one thread has emitted comes in order, and all of it."""
        tokens = [token.split(".") for token in text.split(";")[:-1]]
        for producer, accepted in enumerate(self.accepted):
            numbers = [int(number) for of, number in tokens if int(of) == producer]
            if is_whole:
                assert numbers == list(range(accepted))
            else:
                assert numbers == sorted(set(numbers))
                assert set(numbers) <= set(range(accepted))


@pytest.mark.torture
@pytest.mark.usefixtures("many_switches")
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@settings(max_examples=200)
@given(
    producers=st.integers(1, 3),
    most=st.integers(1, 400),
    share=st.floats(0, 1),
    how=st.sampled_from(["close", "fail", "cancel"]),
    max_lag=st.sampled_from([1, 3, 1024]),
    kinds=st.lists(st.sampled_from(["coalesce", "block", "error", "events", "sync"]), max_size=4),
)
def test_in_a_race_to_the_end_what_was_accepted_is_what_is_read(
    backend: str,
    producers: int,
    most: int,
    share: float,
    how: str,
    max_lag: int,
    kinds: list[str],
) -> None:
    callback = Callback()
    race = Race(callback, most, [0] * producers)
    start = threading.Barrier(producers + 1)
    makers: dict[str, Callable[[], Any]] = {
        "coalesce": lambda: callback.aiter(max_lag=max_lag),
        "block": lambda: callback.aiter(max_lag=max_lag, overflow="block"),
        "error": lambda: callback.events(max_lag=max_lag, overflow="error"),
        "events": lambda: callback.events(max_lag=max_lag),
        "sync": lambda: callback.iter_sync(max_lag=max_lag),
    }
    tasks = [makers[kind]() for kind in kinds if kind != "sync"]
    calls: list[tuple[Any, ...]] = [(race.emit, producer, start) for producer in range(producers)]
    calls.append((race.end, how, int(share * most * producers), start))
    calls += [(race.follow_sync, makers["sync"]()) for kind in kinds if kind == "sync"]
    threads = [threading.Thread(target=race.guarded, args=call, daemon=True) for call in calls]
    for thread in threads:
        thread.start()
    anyio.run(race.follow_all, tasks, backend=backend)
    for thread in threads:
        thread.join(SOON)
        assert not thread.is_alive(), "it hangs"
    assert race.failures == []
    late = callback.aiter()
    anyio.run(race.follow_all, [late], backend=backend)
    assert len(race.read) == len(kinds) + 1
    race.check(how)
