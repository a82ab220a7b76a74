"""Which records go together."""

from hypothesis import given, strategies as st

from callbackkit.delivery.batches import choose, page_size, time_left
from callbackkit.delivery.policy import Batching
from callbackkit.stores.base import Record

BATCHING = Batching(max_events=3, max_bytes=1000, max_delay=2.0)


def records(*sizes: int, first: int = 1) -> list[Record]:
    return [
        Record(seq, 1_000_000 + seq, "t", b"x" * size, True, seq)
        for seq, size in enumerate(sizes, first)
    ]


def seqs(chosen) -> list[int]:
    return [record.seq for record in chosen]


def test_without_batching_one_goes_at_a_time() -> None:
    chosen, is_full = choose(records(1, 1), None, bound=None, session_id="s")
    assert (seqs(chosen), is_full) == ([1], True)


def test_as_many_go_together_as_may() -> None:
    assert choose(records(1, 1, 1, 1), BATCHING, bound=None, session_id="s")[1]
    chosen, is_full = choose(records(1, 1), BATCHING, bound=None, session_id="s")
    assert (seqs(chosen), is_full) == ([1, 2], False)


def test_a_batch_is_full_when_the_next_would_be_too_much() -> None:
    chosen, is_full = choose(records(300, 300, 300), BATCHING, bound=None, session_id="s")
    assert (seqs(chosen), is_full) == ([1, 2], True)


def test_one_that_is_too_large_goes_alone() -> None:
    assert choose(records(5000), BATCHING, bound=None, session_id="s") == (records(5000), True)
    chosen, is_full = choose(records(5000, 1), BATCHING, bound=None, session_id="s")
    assert (seqs(chosen), is_full) == ([1], True)


def test_a_bound_stands_whatever_is_asked_for_now() -> None:
    for batching in (None, BATCHING):
        chosen, is_full = choose(records(*[900] * 6), batching, bound=5, session_id="s")
        assert (seqs(chosen), is_full) == ([1, 2, 3, 4, 5], True)


def test_a_bound_that_was_not_read_yet_is_not_full() -> None:
    assert not choose(records(1, 1), BATCHING, bound=9, session_id="s")[1]


def test_a_bound_behind_which_all_is_gone_is_none() -> None:
    chosen, _ = choose(records(1, 1, first=7), BATCHING, bound=5, session_id="s")
    assert seqs(chosen) == [7, 8]


@given(
    sizes=st.lists(st.integers(0, 2000), min_size=1, max_size=20),
    max_events=st.integers(1, 10),
    max_bytes=st.integers(1, 5000),
)
def test_a_batch_begins_with_the_first_and_keeps_its_bounds(sizes, max_events, max_bytes) -> None:
    batching = Batching(max_events=max_events, max_bytes=max_bytes)
    chosen, is_full = choose(records(*sizes), batching, bound=None, session_id="s")
    assert seqs(chosen) == list(range(1, len(chosen) + 1))
    assert 1 <= len(chosen) <= max_events
    assert len(chosen) == 1 or sum(len(record.body) for record in chosen) <= max_bytes
    assert is_full or len(chosen) == len(sizes)


def test_a_batch_waits_since_its_oldest_came_and_no_longer_than_asked() -> None:
    (oldest,) = records(1)
    assert time_left(oldest, None, 0.0) == 0.0
    assert abs(time_left(oldest, BATCHING, 2.0) - 1.0) < 0.001
    assert time_left(oldest, BATCHING, 50.0) == 0.0
    # The clock that stamped it goes ahead of ours.
    assert time_left(oldest, BATCHING, -500.0) == 2.0


def test_a_page_holds_several_batches() -> None:
    assert page_size(None) == 100
    assert page_size(Batching(max_events=5)) == 100
    assert page_size(Batching(max_events=50)) == 200
    assert page_size(Batching(max_events=500)) == 1000
    assert page_size(Batching(max_events=5000)) == 5000
