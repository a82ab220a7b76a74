"""Recording runs, and running single nodes."""

import contextvars
import re
import threading
from functools import partial

import anyio
import anyio.to_thread
import pytest

from callbackkit import (
    Callback,
    NodeInputError,
    NodeOutputError,
    SpecialToken,
    StreamCancelledError,
    emit_token,
    node,
)
from callbackkit.testing import RecordedSpan, StreamRecorder, run_node


def two_nodes(callback: Callback) -> None:
    """Stream two nodes, one of them with parameters, and an event."""
    with callback.node("search", params={"index": "books"}):
        callback("three ")
        callback("pages")
        callback.event("found", {"pages": 3})
    with callback.node("answer"):
        callback("Here.")


def recorded(*tokens: str) -> StreamRecorder:
    """Return a recorder of a run with these tokens that ended well."""
    callback = Callback()
    recorder = StreamRecorder(callback)
    for token in tokens:
        callback(token)
    callback.close()
    return recorder


# What is recorded.


def test_every_event_is_there_as_soon_as_it_was_emitted() -> None:
    callback = Callback()
    recorder = StreamRecorder(callback)
    assert recorder.events == []
    callback("a")
    assert recorder.tokens == ["a"]
    two_nodes(callback)
    callback.close()
    assert [event.type for event in recorder.events] == [
        "token",
        "node_start",
        "node_name",
        "token",
        "token",
        "found",
        "node_end",
        "node_start",
        "node_name",
        "token",
        "node_end",
        "stream_end",
    ]
    assert [event.seq for event in recorder.events] == list(range(1, 13))


async def test_what_is_recorded_is_what_readers_of_events_get() -> None:
    callback = Callback()
    recorder = StreamRecorder(callback)
    async with callback:
        two_nodes(callback)
    assert recorder.events == [event async for event in callback.events()]


@pytest.mark.parametrize("emitted", [0, 1, 3])
def test_one_that_comes_late_has_the_beginning_too(emitted: int) -> None:
    callback = Callback()
    for number in range(emitted):
        callback(str(number))
    recorder = StreamRecorder(callback)
    callback("last")
    assert recorder.tokens == [*map(str, range(emitted)), "last"]


def test_a_run_that_is_over_can_be_recorded() -> None:
    callback = Callback()
    two_nodes(callback)
    callback.close()
    recorder = StreamRecorder(callback)
    recorder.assert_complete()
    recorder.assert_text("three pagesHere.")


def test_what_was_looked_at_stays_when_the_run_keeps_it_no_more() -> None:
    callback = Callback(history_bytes=10)
    recorder = StreamRecorder(callback)
    for number in range(1000):
        callback(f"{number} ")
        assert recorder.tokens[-1] == f"{number} "
    callback.close()
    assert recorder.tokens == [f"{number} " for number in range(1000)]
    recorder.assert_complete()


async def test_what_the_run_keeps_no_more_is_a_gap() -> None:
    callback = Callback(history_bytes=1000)
    recorder = StreamRecorder(callback)
    for _ in range(1000):
        callback("abcd")
    callback.close()
    assert recorder.events == [event async for event in callback.events()]
    [gap] = recorder.of("gap")
    assert gap is recorder.events[0]
    missed = gap.data["missed"]
    assert gap.seq == missed > 0
    with pytest.raises(AssertionError, match=f"{missed} events .* more history_bytes"):
        recorder.assert_complete()


def test_it_holds_nobody_up() -> None:
    callback = Callback()
    reader = callback.aiter(overflow="block", max_lag=10, stall_timeout=60)
    recorder = StreamRecorder(callback)
    reader.close()
    for _ in range(100):
        callback("a")
    assert len(recorder.tokens) == 100


def test_several_recorders_have_the_same() -> None:
    callback = Callback()
    first, second = StreamRecorder(callback), StreamRecorder(callback)
    two_nodes(callback)
    callback.close()
    assert first.events == second.events
    assert len(first.events) == 11


def test_after_closing_nothing_more_is_recorded() -> None:
    callback = Callback()
    with StreamRecorder(callback) as recorder:
        callback("a")
    recorder.close()
    callback("b")
    callback.close()
    assert recorder.tokens == ["a"]
    assert recorder.status is None


def test_threads_that_emit_at_once_are_recorded_each_in_its_order() -> None:
    callback = Callback()
    recorder = StreamRecorder(callback)
    barrier = threading.Barrier(4)

    def produce(name: str) -> None:
        barrier.wait()
        for number in range(500):
            callback(f"{name}{number}")

    threads = [threading.Thread(target=produce, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    callback.close()
    recorder.assert_complete()
    assert [event.seq for event in recorder.events] == list(range(1, 2002))
    for name in "abcd":
        own = [token for token in recorder.tokens if token.startswith(name)]
        assert own == [f"{name}{number}" for number in range(500)]


async def test_readers_and_recorders_do_not_disturb_each_other() -> None:
    callback = Callback()
    recorder = StreamRecorder(callback)
    tokens: list[str] = []

    async def read() -> None:
        tokens.extend([token async for token in callback.aiter()])

    async with anyio.create_task_group() as group:
        group.start_soon(read)
        async with callback:
            for number in range(1000):
                await callback.acall(f"{number}")
    assert tokens[:-1] == recorder.tokens == [f"{number}" for number in range(1000)]


def test_of_what_is_no_callback_nothing_is_recorded() -> None:
    with pytest.raises(TypeError, match="records a Callback, not function"):
        StreamRecorder(two_nodes)


# Looking.


def test_tokens_are_as_they_were_emitted_without_format_and_special_ones() -> None:
    callback = Callback(token_format="[{token}]")
    recorder = StreamRecorder(callback)
    two_nodes(callback)
    callback("<graphai:END>")
    callback.close()
    assert recorder.tokens == ["three ", "pages", "Here.", "<graphai:END>"]
    assert not any(isinstance(token, SpecialToken) for token in recorder.tokens)


def test_text_may_be_that_of_one_node() -> None:
    callback = Callback()
    recorder = StreamRecorder(callback)
    two_nodes(callback)
    callback("!")
    assert recorder.text() == "three pagesHere.!"
    assert recorder.text("search") == recorder.text(node="search") == "three pages"
    assert recorder.text("nobody") == ""


def test_invocations_of_one_node_are_spans_of_their_own() -> None:
    callback = Callback()
    recorder = StreamRecorder(callback)
    with callback.node("a", params={"k": 1}) as outer:
        with callback.node("a") as inner:
            inner("in")
            outer("out")
        assert recorder.spans == [
            RecordedSpan("a", 1, {"k": "1"}, ("out",), None),
            RecordedSpan("a", 2, {}, ("in",), "ok"),
        ]
    assert recorder.spans[0].status == "ok"
    assert recorder.text("a") == "inout"


async def test_a_span_tells_how_it_ended() -> None:
    callback = Callback()
    recorder = StreamRecorder(callback)

    async def fail() -> None:
        async with callback, callback.node("a"):
            raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        await fail()
    assert [span.status for span in recorder.spans] == ["error"]
    assert recorder.status == "error"
    assert str(recorder.error) == "gone"


def test_of_gives_the_events_of_one_type() -> None:
    callback = Callback()
    recorder = StreamRecorder(callback)
    two_nodes(callback)
    assert [event.data for event in recorder.of("found")] == [{"pages": 3}]
    assert [event.node for event in recorder.of("node_end")] == ["search", "answer"]


def test_a_run_that_goes_on_has_no_status() -> None:
    callback = Callback()
    recorder = StreamRecorder(callback)
    assert recorder.status is None
    two_nodes(callback)
    assert recorder.events[-1].status == "ok"
    assert recorder.status is None
    assert recorder.error is None
    callback.cancel("enough")
    assert recorder.status == "cancelled"
    assert isinstance(recorder.error, StreamCancelledError)


def test_what_it_shows_can_be_changed_without_changing_it() -> None:
    recorder = recorded("a")
    recorder.events.clear()
    assert recorder.tokens == ["a"]


def test_its_repr_says_how_much_it_has() -> None:
    assert repr(recorded("a")) == "<StreamRecorder of <Callback ok, 2 entries>: 2 events>"


# Waiting.


async def test_waiting_ends_when_the_run_does() -> None:
    callback = Callback()
    recorder = StreamRecorder(callback)
    thread = threading.Thread(target=lambda: (callback("a"), callback.cancel()))
    thread.start()
    assert await recorder.wait_ended() == "cancelled"
    thread.join()
    assert await recorder.wait_ended(timeout=None) == "cancelled"


async def test_a_run_that_does_not_end_is_told_with_what_it_did() -> None:
    callback = Callback()
    callback("so far")
    recorder = StreamRecorder(callback)
    wanted = "the run did not end within 0.01 seconds; recorded: 1 event\n    1. token: 'so far'"
    with pytest.raises(TimeoutError, match=re.escape(wanted)):
        await recorder.wait_ended(timeout=0.01)


async def test_a_timeout_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="timeout must be positive, not 0"):
        await recorded().wait_ended(timeout=0)


async def test_events_of_a_type_can_be_waited_for() -> None:
    callback = Callback()
    recorder = StreamRecorder(callback)

    async def produce() -> None:
        async with callback:
            two_nodes(callback)

    async with anyio.create_task_group() as group:
        group.start_soon(produce)
        ends = await recorder.wait_for("node_end", count=2)
    assert [event.node for event in ends] == ["search", "answer"]
    assert len(await recorder.wait_for("token", count=2)) == 2


async def test_what_is_there_already_is_not_waited_for() -> None:
    callback = Callback()
    recorder = StreamRecorder(callback)
    callback("a")
    callback("b")
    with anyio.fail_after(5):
        [first] = await recorder.wait_for("token", timeout=None)
    assert first.token == "a"


async def test_what_is_there_already_counts_once_and_what_is_of_another_type_not() -> None:
    callback = Callback()
    recorder = StreamRecorder(callback)
    callback("a")
    found: list[str | None] = []

    async def wait() -> None:
        events = await recorder.wait_for("token", count=2, timeout=None)
        found.extend([event.token for event in events])

    async with anyio.create_task_group() as group:
        group.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        callback.event("other")
        await anyio.wait_all_tasks_blocked()
        callback("b")
    assert found == ["a", "b"]


async def test_a_run_that_fails_meanwhile_has_ended() -> None:
    callback = Callback()
    recorder = StreamRecorder(callback)
    statuses: list[str] = []

    async def wait() -> None:
        statuses.append(await recorder.wait_ended())

    async with anyio.create_task_group() as group:
        group.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        callback.fail(OSError("gone"))
    assert statuses == ["error"]


async def test_waiting_in_vain_tells_what_came() -> None:
    callback = Callback()
    recorder = StreamRecorder(callback)
    with pytest.raises(TimeoutError, match=r"came 0 times within 0\.01 seconds, not 1 time; rec"):
        await recorder.wait_for("found", timeout=0.01)
    callback.fail(ValueError("gone"))
    with pytest.raises(TimeoutError, match="came 0 times before the run ended, not 1 time; rec"):
        await recorder.wait_for("found", timeout=None)
    with pytest.raises(ValueError, match="count must be at least 1, not 0"):
        await recorder.wait_for("found", count=0)


# Asserting.


def test_assertions_that_hold_say_nothing() -> None:
    callback = Callback()
    recorder = StreamRecorder(callback)
    two_nodes(callback)
    callback.close()
    recorder.assert_tokens(["three ", "pages", "Here."])
    recorder.assert_tokens(("three ", "pages", "Here."))
    recorder.assert_text("three pagesHere.")
    recorder.assert_text("three pages", node="search")
    recorder.assert_nodes(["search", "answer"])
    recorder.assert_ended()
    recorder.assert_complete()


def test_wrong_tokens_are_told_with_the_right_ones() -> None:
    wanted = (
        "expected the tokens ['a', 'c'], not ['a', 'b']; recorded: 3 events\n"
        "    1. token: 'a'\n"
        "    2. token: 'b'\n"
        "    3. stream_end: '<graphai:END>'"
    )
    with pytest.raises(AssertionError, match=re.escape(wanted)):
        recorded("a", "b").assert_tokens(["a", "c"])


def test_wrong_text_is_told() -> None:
    with pytest.raises(AssertionError, match="expected the text to be 'b', not 'a'"):
        recorded("a").assert_text("b")
    with pytest.raises(AssertionError, match="expected the text of x to be 'a', not ''"):
        recorded("a").assert_text("a", node="x")


def test_wrong_nodes_are_told() -> None:
    callback = Callback()
    recorder = StreamRecorder(callback)
    two_nodes(callback)
    wanted = "expected the nodes ['answer', 'search'], not ['search', 'answer']"
    with pytest.raises(AssertionError, match=re.escape(wanted)) as caught:
        recorder.assert_nodes(["answer", "search"])
    assert "\n    3. token of search: 'three '\n" in str(caught.value)
    assert "\n    5. found: {'pages': 3}\n" in str(caught.value)


def test_a_wrong_end_is_told_with_its_reason() -> None:
    callback = Callback()
    recorder = StreamRecorder(callback)
    with pytest.raises(AssertionError, match="to end 'ok'; it has not ended; recorded: 0 events"):
        recorder.assert_ended()
    callback.fail(OSError("gone"))
    wanted = "expected the run to end 'ok'; it ended 'error' with OSError('gone')"
    with pytest.raises(AssertionError, match=re.escape(wanted)):
        recorder.assert_ended()
    recorder.assert_ended("error")


@pytest.mark.parametrize(("status", "came"), [("error", "ended 'error'"), (None, "did not end")])
def test_a_node_that_did_not_end_well_is_told(status: str | None, came: str) -> None:
    callback = Callback()
    recorder = StreamRecorder(callback)
    # In a context of its own: a span that does not end is in the one that began it for good.
    contextvars.copy_context().run(callback.start_node, "search")
    if status is not None:
        callback.end_node("search", status=status)
    callback.close()
    with pytest.raises(AssertionError, match=f"each node to end 'ok'; search {came}"):
        recorder.assert_complete()


def test_a_run_that_is_not_complete_has_not_ended_well() -> None:
    callback = Callback()
    recorder = StreamRecorder(callback)
    callback.cancel()
    with pytest.raises(AssertionError, match="it ended 'cancelled'"):
        recorder.assert_complete()


# Running a node.


@node(stream=True)
async def shout(query: str, callback: Callback) -> dict[str, str]:
    for word in query.split():
        await callback.acall(word.upper())
    return {"shouted": query.upper()}


@node
def count(query: str) -> dict[str, int]:
    return {"words": len(query.split())}


@node
async def remember(query: str, state: dict[str, str]) -> dict[str, str]:
    return {"before": state["last"], "now": query}


async def test_a_node_gives_its_result_and_its_tokens() -> None:
    assert await run_node(shout, {"query": "two words"}) == (
        {"shouted": "TWO WORDS"},
        ["TWO", "WORDS"],
    )


async def test_a_node_that_streams_nothing_gives_its_result() -> None:
    assert await run_node(count, {"query": "two words"}) == ({"words": 2}, [])


async def test_a_node_gets_the_shared_state() -> None:
    result, _ = await run_node(remember, {"query": "b"}, shared={"last": "a"})
    assert result == {"before": "a", "now": "b"}


async def test_without_a_shared_state_a_node_gets_the_state() -> None:
    result, _ = await run_node(remember, {"query": "b", "last": "a"})
    assert result == {"before": "a", "now": "b"}


async def test_a_method_that_is_a_node_is_run_with_its_object() -> None:
    class Assistant:
        manner = "please"

        @node(stream=True)
        async def ask(self, query: str, callback: Callback) -> dict[str, str]:
            callback(f"{query}, {self.manner}")
            return {}

    assert await run_node(Assistant().ask, {"query": "tea"}) == ({}, ["tea, please"])


async def test_a_node_has_to_return_a_mapping_and_a_plain_function_has_not() -> None:
    with pytest.raises(NodeOutputError, match="'four' returned 4"):
        await run_node(node(name="four")(lambda: 4))
    assert await run_node(lambda: 4) == (4, [])
    assert await run_node(partial(pow, 2), {"exp": 3, "mod": None}) == (8, [])


async def test_what_is_no_function_is_refused() -> None:
    with pytest.raises(TypeError, match="runs a node or a function, not 'shout'"):
        await run_node("shout")


async def test_a_plain_function_runs_as_a_node_would() -> None:
    def spell(query: str, callback: Callback, times: int = 1) -> dict[str, int]:
        for letter in query * times:
            callback(letter)
        return {"letters": len(query)}

    assert await run_node(spell, {"query": "ab", "other": 1}) == ({"letters": 2}, ["a", "b"])
    assert await run_node(spell, {"query": "a", "times": 2}) == ({"letters": 1}, ["a", "a"])


async def test_an_async_function_runs_as_a_node_would() -> None:
    async def spell(query: str, callback: Callback) -> dict[str, int]:
        for letter in query:
            await callback.acall(letter)
        return {"letters": len(query)}

    assert await run_node(spell, {"query": "ab"}) == ({"letters": 2}, ["a", "b"])


async def test_a_sync_function_runs_in_a_thread() -> None:
    def where() -> dict[str, int]:
        return {"thread": threading.get_ident()}

    result, _ = await run_node(where)
    assert result["thread"] != threading.get_ident()


async def test_what_is_emitted_by_context_is_streamed_too() -> None:
    @node
    async def chat() -> dict[str, str]:
        emit_token("from the loop ")
        await anyio.to_thread.run_sync(emit_token, "and a thread")
        return {}

    assert await run_node(chat) == ({}, ["from the loop ", "and a thread"])


async def test_what_a_node_raises_is_raised() -> None:
    @node(stream=True)
    async def broken(callback: Callback) -> dict[str, str]:
        await callback.acall("so far")
        raise OSError("gone")

    callback = Callback()
    recorder = StreamRecorder(callback)
    with pytest.raises(OSError, match="gone"):
        await run_node(broken, callback=callback)
    recorder.assert_tokens(["so far"])
    recorder.assert_ended("error")


async def test_a_key_that_the_state_lacks_is_told() -> None:
    with pytest.raises(NodeInputError, match="query"):
        await run_node(shout, {})


async def test_a_callback_of_ones_own_has_the_special_tokens_as_well() -> None:
    callback = Callback("myapp")
    _, tokens = await run_node(shout, {"query": "tea"}, callback=callback)
    assert tokens == ["TEA"]
    assert [token async for token in callback.aiter()] == [
        "<myapp:shout:start>",
        "<myapp:shout>",
        "TEA",
        "<myapp:shout:end>",
        "<myapp:END>",
    ]


async def test_however_much_a_node_streams_all_of_it_is_there() -> None:
    def flood(callback: Callback) -> None:
        for _ in range(3):
            callback("a" * 1_000_000)

    _, tokens = await run_node(flood)
    assert [len(token) for token in tokens] == [1_000_000] * 3


async def test_the_state_given_is_not_changed() -> None:
    state = {"query": "tea"}
    await run_node(shout, state)
    assert state == {"query": "tea"}


async def test_a_node_that_hangs_can_be_given_up() -> None:
    callback = Callback()

    async def hang(callback: Callback) -> dict[str, str]:
        callback("waiting")
        await anyio.sleep_forever()
        return {}

    with pytest.raises(TimeoutError):
        with anyio.fail_after(0.01):
            await run_node(hang, callback=callback)
    assert callback.status == "cancelled"
