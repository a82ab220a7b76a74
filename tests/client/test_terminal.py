"""A session as text for a terminal and for a pipe."""

import re
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, strategies as st

from callbackkit import Event, EventType, Position
from callbackkit.client.columns import width_of
from callbackkit.client.terminal import LEAST_WIDTH, TerminalView
from callbackkit.events import GAP
from callbackkit.wire.envelope import JsonCodec, encode_body, gap_event
from tests.client.screen import Screen

COLOUR = re.compile(r"\x1b\[[0-9;]*m")
HAIKU = "The fog comes on little cat feet. It sits looking over harbor and city."


def chunk(text: str, node: str | None = "poet", span: int | None = None) -> Event:
    return Event.of("streaming_chunk", {"text": text, "node": node, "span": span})


def progress(share: float, **more: Any) -> Event:
    return Event.of("progress", {"progress": share, **more})


def thinking(thought: str) -> Event:
    return Event.of("thinking", {"thought": thought})


def terminal(width: int, height: int = 24, **options: Any) -> tuple[TerminalView, Screen]:
    view = TerminalView(width, height, is_live=True, **options)
    return view, Screen(width, height)


def show(view: TerminalView, screen: Screen, *events: Event) -> list[str]:
    for event in events:
        screen.write(view.show(event))
    return screen.rows


# In a pipe.


def test_in_a_pipe_an_event_is_a_line_without_escapes() -> None:
    view = TerminalView(None)
    text = "".join(
        [
            view.note("following by sse"),
            view.show(Event.of("workflow_start", {"workflow": "ingest", "steps": ["a", "b"]})),
            view.show(thinking("one\ntwo\x1b[31m " + "long " * 40)),
            view.show(progress(0.5, message="parsing")),
            view.show(Event.of("order.created", {"id": 7})),
            view.show(gap_event("s", "ab", asked=None, first=13, microseconds=0)),
            view.end("the session has ended"),
        ]
    )
    assert text.splitlines() == [
        "--          following by sse",
        "workflow    ingest begins: a, b",
        "thinking    one two [31m " + " ".join(["long"] * 40),
        "progress    ###############...............  50% parsing",
        "order.created id=7",
        "!!! GAP !!! 12 events are missing, no longer kept: ab-1 to ab-12",
        "end         the session has ended",
    ]


def test_in_a_pipe_what_a_node_says_is_written_by_lines() -> None:
    view = TerminalView(None)
    assert [view.show(chunk(text)) for text in ("The ", "fog\n\ncomes", " on")] == [
        "",
        "poet:       The fog\npoet:\n",
        "",
    ]
    assert view.show(thinking("Hm.")) == "poet:       comes on\nthinking    Hm.\n"


def test_in_a_pipe_progress_does_not_break_a_line() -> None:
    view = TerminalView(None)
    assert view.show(chunk("The ")) == ""
    assert view.show(progress(1)).startswith("progress    ###")
    assert view.show(chunk("fog\n")) == "poet:       The fog\n"


def test_in_a_pipe_a_line_that_nobody_ends_is_written_when_nothing_comes() -> None:
    view = TerminalView(None)
    assert view.show(chunk("The fog")) == ""
    assert view.pause() == "poet:       The fog\n"
    assert view.pause() == ""


def test_in_a_pipe_nodes_that_speak_at_once_keep_their_lines() -> None:
    view = TerminalView(None)
    for place in range(3):
        assert view.show(chunk(f"a{place} ", "a", 1)) == ""
        assert view.show(chunk(f"b{place} ", "b", 2)) == ""
    assert view.end() == "a:          a0 a1 a2\nb:          b0 b1 b2\n"


def test_in_a_pipe_a_line_that_never_ends_is_cut_into_lines() -> None:
    view = TerminalView(None)
    lines = "".join(view.show(chunk("word " * 100)) for _ in range(40)).splitlines()
    assert len(lines) == 4
    assert all(len(line) < 4_020 for line in lines)


def test_in_a_pipe_a_huge_event_is_cut_and_says_so() -> None:
    [line] = TerminalView(None).show(thinking("x" * 50_000)).splitlines()
    assert line.endswith("xxx ... (50000 characters in all)")
    assert len(line) < 4_100


def test_in_a_pipe_a_huge_name_is_cut() -> None:
    view = TerminalView(None)
    view.show(chunk("fog", "n" * 50_000))
    assert len(view.end()) < 200
    assert len(view.show(foreign("t" * 50_000, {}))) < 200


def test_only_a_terminal_of_known_width_is_live() -> None:
    with pytest.raises(ValueError, match="is_live needs the width"):
        TerminalView(None, is_live=True)


# In a terminal: events.

GOLDEN_40 = """\
workflow    ingest begins: parse, chunk
thinking    Which of the two files is
            meant?
            The one about fog.
tool_use    search(query="fog",
            limit=3)
tool_result search in 0.12 s: 3 hits
model       small: it is cheap
step        (1/3) parse
error       OSError: no such file
            (final)
completion  done in 3.20 s, 512 tokens
order.created.version2 id=7
an.event.with.a.very.long.name.indeed
            a=1
"""
GOLDEN_80 = """\
workflow    ingest begins: parse, chunk
thinking    Which of the two files is meant?
            The one about fog.
tool_use    search(query="fog", limit=3)
tool_result search in 0.12 s: 3 hits
model       small: it is cheap
step        (1/3) parse
error       OSError: no such file (final)
completion  done in 3.20 s, 512 tokens
order.created.version2 id=7
an.event.with.a.very.long.name.indeed a=1
"""
EVENTS = [
    Event.of("workflow_start", {"workflow": "ingest", "steps": ["parse", "chunk"]}),
    thinking("Which of the two files is meant?\r\nThe one about fog."),
    Event.of("tool_use", {"tool_name": "search", "parameters": {"query": "fog", "limit": 3}}),
    Event.of("tool_result", {"tool_name": "search", "result": "3 hits", "execution_time": 0.12}),
    Event.of("model_selection", {"model": "small", "reason": "it is cheap"}),
    Event.of("workflow_step", {"step": "parse", "index": 1, "total": 3}),
    Event.of("error", {"error": "no such file", "error_type": "OSError", "recoverable": False}),
    Event.of("completion", {"total_time": 3.2, "tokens_used": 512}),
    Event.of("order.created.version2", {"id": 7}),
    Event.of("an.event.with.a.very.long.name.indeed", {"a": 1}),
]


@pytest.mark.parametrize(("width", "golden"), [(40, GOLDEN_40), (80, GOLDEN_80), (200, GOLDEN_80)])
def test_events_are_rows_that_fit(width: int, golden: str) -> None:
    view, screen = terminal(width)
    assert "\n".join(show(view, screen, *EVENTS)) == golden


@pytest.mark.parametrize(("width", "golden"), [(40, GOLDEN_40), (80, GOLDEN_80)])
def test_a_terminal_without_a_cursor_gets_the_same_rows(width: int, golden: str) -> None:
    view = TerminalView(width)
    assert "".join(map(view.show, EVENTS)) == golden


def test_colours_change_nothing_but_colours() -> None:
    plain, coloured = TerminalView(40), TerminalView(40, has_colours=True)
    for event in [*EVENTS, chunk(HAIKU), progress(1)]:
        text = coloured.show(event)
        assert "\x1b" not in plain.show(event)
        assert COLOUR.sub("", text)
    assert (
        COLOUR.sub("", "".join(map(TerminalView(40, has_colours=True).show, EVENTS))) == GOLDEN_40
    )


def test_a_gap_is_loud_and_a_note_is_dim() -> None:
    view = TerminalView(80, has_colours=True)
    gap = view.show(gap_event("s", "ab", asked=None, first=13, microseconds=0))
    assert gap.startswith("\x1b[1;7;31m!!! GAP !!! \x1b[0m\x1b[1;7;31m12 events are missing")
    assert view.note("following by sse").startswith("\x1b[2m--")


def test_wide_characters_break_where_there_is_no_room_for_them() -> None:
    view, screen = terminal(20)
    assert show(view, screen, thinking("\u9727" * 12))[:2] == [
        "thinking " + "\u9727" * 5,
        "  " + "\u9727" * 7,
    ]


def test_a_long_event_is_cut_and_says_how_long_it_is() -> None:
    view, screen = terminal(40)
    rows = show(view, screen, thinking("word " * 2_000))
    assert rows[20:] == ["            ... (10000 characters in", "            all)", ""]


# In a terminal: what nodes say.


def test_tokens_become_running_text() -> None:
    view, screen = terminal(40)
    words = re.findall(r"\S+\s*", HAIKU)
    assert show(view, screen, *map(chunk, words)) == [
        "poet:       The fog comes on little cat",
        "            feet. It sits looking over",
        "            harbor and city.",
    ]
    row, column = screen.cursor
    assert (row, column) == (2, len("            harbor and city."))


@given(st.lists(st.integers(1, len(HAIKU) - 1), max_size=20), st.integers(LEAST_WIDTH, 90))
def test_it_is_the_same_text_however_it_was_cut(places: list[int], width: int) -> None:
    whole_view, whole = terminal(width)
    view, screen = terminal(width)
    cuts = [0, *sorted(places), len(HAIKU)]
    parts = [HAIKU[begin:end] for begin, end in pairwise(cuts)]
    assert show(view, screen, *map(chunk, parts)) == show(whole_view, whole, chunk(HAIKU))


def test_a_very_long_token_is_broken_anywhere() -> None:
    view, screen = terminal(40)
    rows = show(view, screen, chunk("x" * 1_000))
    assert "".join(rows).replace(" ", "") == "poet:" + "x" * 1_000
    assert all(len(row) == 39 for row in rows[:-1])


def test_lines_and_the_spaces_they_begin_with_stay() -> None:
    view, screen = terminal(40)
    assert show(view, screen, chunk("\n\ndef f():\n\treturn 1\n\nf()")) == [
        "poet:       def f():",
        "                return 1",
        "",
        "            f()",
    ]


def test_another_event_ends_what_was_being_said() -> None:
    view, screen = terminal(40)
    assert show(view, screen, chunk("Let me see."), thinking("Hm."), chunk("Yes.")) == [
        "poet:       Let me see.",
        "thinking    Hm.",
        "poet:       Yes.",
    ]


def test_nodes_that_speak_at_once_have_a_row_each() -> None:
    view, screen = terminal(40)
    events = [chunk(f"{name}{n} ", name) for n in range(3) for name in ("left", "right")]
    assert show(view, screen, *events) == [
        "left:       left0 left1 left2",
        "right:      right0 right1 right2",
    ]


def test_invocations_of_a_node_that_run_at_once_have_a_row_each() -> None:
    view, screen = terminal(40)
    events = [chunk(f"{span}-{n} ", "poet", span) for n in range(3) for span in (1, 2)]
    assert show(view, screen, *events) == [
        "poet:       1-0 1-1 1-2",
        "poet:       2-0 2-1 2-2",
    ]


def test_a_node_that_fell_silent_stands_above_one_that_speaks() -> None:
    view, screen = terminal(40)
    events = [chunk("I am done.", "first"), *[chunk(f"word{n} ", "second") for n in range(8)]]
    assert show(view, screen, *events) == [
        "first:      I am done.",
        "second:     word0 word1 word2 word3",
        "            word4 word5 word6 word7",
    ]


def test_more_nodes_than_there_are_rows_for_end_the_one_that_was_silent_longest() -> None:
    view, screen = terminal(40)
    events = [chunk(f"word{n}", f"node{n}") for n in range(50)]
    assert show(view, screen, *events) == [
        f"node{n}:{' ' * (6 - len(str(n)))} word{n}" for n in range(50)
    ]


def test_a_node_without_a_name_speaks_too() -> None:
    view, screen = terminal(40)
    assert show(view, screen, chunk("fog", None)) == ["text:       fog"]


# In a terminal: the bar.


def test_a_bar_moves_in_place() -> None:
    view, screen = terminal(60, has_blocks=True)
    rows = show(view, screen, *(progress(n / 10, message="parsing") for n in range(6)))
    assert rows == ["progress    " + "\u2588" * 7 + "\u2591" * 8 + "  50% parsing"]


def test_the_bar_stays_below_everything() -> None:
    view, screen = terminal(40)
    events = [progress(0.5), thinking("Hm."), chunk("The fog "), progress(0.6), chunk("comes")]
    assert show(view, screen, *events) == [
        "thinking    Hm.",
        "poet:       The fog comes",
        "progress    #####....  60%",
    ]


def test_a_bar_that_is_full_stays_where_it_is() -> None:
    view, screen = terminal(40)
    assert show(view, screen, progress(0.5), progress(1), thinking("Hm."), progress(0.999)) == [
        "progress    ######### 100%",
        "thinking    Hm.",
        "progress    ########.  99%",
    ]


def test_what_is_behind_a_bar_is_cut() -> None:
    view, screen = terminal(40)
    rows = show(view, screen, progress(0.5, message="parsing a very long document"))
    assert rows == ["progress    ####.....  50% parsing a..."]


def test_at_the_end_the_cursor_is_below_everything() -> None:
    view, screen = terminal(40)
    show(view, screen, progress(0.5), chunk("The fog"))
    screen.write(view.end("the session has ended"))
    assert screen.rows == [
        "poet:       The fog",
        "progress    ####.....  50%",
        "end         the session has ended",
        "",
    ]
    assert screen.cursor == (3, 0)
    assert view.end() == ""


def test_an_end_without_words_closes_what_is_open() -> None:
    view, screen = terminal(40)
    show(view, screen, chunk("The fog"))
    screen.write(view.end())
    assert screen.cursor == (1, 0)


def test_no_event_is_lost_where_there_is_no_room_for_what_is_live() -> None:
    view, screen = terminal(40, height=3)
    events = [chunk(f"{n}{name} ", name) for n in range(30) for name in "abcd"]
    show(view, screen, progress(0.5), *events)
    screen.write(view.end())
    shown = " ".join(screen.rows)
    assert [name for n in range(30) for name in "abcd" if f" {n}{name}" not in shown] == []


# Another size.


def test_a_terminal_that_changes_its_width_goes_on_below() -> None:
    view, screen = terminal(40)
    show(view, screen, chunk("The fog "), progress(0.5))
    assert view.resize(40, 30) == ""
    screen.write(view.resize(32, 24))
    assert show(view, screen, chunk("comes on little cat feet"))[2:] == [
        "poet:       comes on little cat",
        "            feet",
        "progress    ###...  50%",
    ]


def test_a_terminal_that_gets_lower_has_fewer_live_rows() -> None:
    view, screen = terminal(40)
    show(view, screen, chunk("a", "left"), chunk("b", "right"), progress(0.5))
    assert view.resize(40, 3) == ""
    assert show(view, screen, progress(0.6)) == ["right:      b", "progress    #####....  60%"]


def test_spaces_alone_are_nothing_to_show() -> None:
    view, screen = terminal(40)
    assert show(view, screen, chunk("  ", "left"), chunk(" ", "right"), progress(0.5)) == [
        "progress    ####.....  50%"
    ]
    assert show(view, screen, chunk("fog\n  ", "left")) == [
        "left:         fog",
        "progress    ####.....  50%",
    ]


def test_a_terminal_without_a_cursor_that_changes_its_width_loses_no_word() -> None:
    view = TerminalView(40)
    assert view.show(chunk("The fog ")) == ""
    assert view.resize(30, 24) == "poet:       The fog\n"
    assert view.resize(30, 24) == ""


# Anything.

KEYS = st.sampled_from(
    [
        *("thought", "tool_name", "parameters", "result", "success", "progress", "message"),
        *("text", "node", "span", "error", "workflow", "steps", "step", "model", "x\x1b[2J"),
    ]
)
TEXTS = st.text(
    st.one_of(
        st.characters(exclude_categories=["Cs"]), st.sampled_from(" \n\r\t\x1b\x9b\u9727\u0301")
    )
)
VALUES = st.recursive(
    TEXTS | st.none() | st.booleans() | st.floats(0, 1) | st.integers(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=4,
)
CODEC = JsonCodec()


def foreign(event_type: str, data: dict[str, Any]) -> Event:
    return Event(Position("a", 1), event_type, 0, "s", encode_body(CODEC, data), CODEC.decode)


FOREIGN = st.one_of(
    st.builds(
        foreign,
        st.one_of(st.sampled_from([*EventType, GAP]), TEXTS.filter(bool)),
        st.dictionaries(KEYS, VALUES, max_size=4),
    ),
    st.builds(
        chunk, TEXTS, st.sampled_from(["a", "b\x1b[H", "\u9727" * 30, None]), st.integers(0, 3)
    ),
    st.builds(lambda share, message: progress(share, message=message), st.floats(0, 1), TEXTS),
)


@given(st.lists(FOREIGN, max_size=12), st.integers(LEAST_WIDTH, 100), st.booleans())
def test_any_event_is_printable_text_within_the_width(
    events: list[Event], width: int, has_colours: bool
) -> None:
    view = TerminalView(width, has_colours=has_colours)
    text = COLOUR.sub("", "".join(map(view.show, events)) + view.note("well") + view.end())
    for row in text.split("\n"):
        assert row.isprintable()
        assert width_of(row) < width


@given(st.lists(FOREIGN, max_size=12), st.integers(LEAST_WIDTH, 100), st.integers(1, 12))
def test_any_event_is_shown_within_the_screen(events: list[Event], width: int, height: int) -> None:
    """The screen fails on what is in the last column, above the top, or no character."""
    view, screen = terminal(width, height, has_colours=True, has_blocks=True)
    show(view, screen, *events)
    screen.write(view.end("done"))
    assert screen.rows[-2].endswith("done")
    assert screen.rows[-1] == ""


@given(st.lists(FOREIGN, max_size=12))
def test_any_event_is_printable_lines_in_a_pipe(events: list[Event]) -> None:
    view = TerminalView(None)
    text = "".join(map(view.show, events)) + view.end()
    assert all(line.isprintable() for line in text.split("\n"))
