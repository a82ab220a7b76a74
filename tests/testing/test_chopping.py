"""Cutting texts for parser tests."""

from math import comb
from random import Random

import pytest
from hypothesis import given, strategies as st

from callbackkit.testing import chop, every_chop

WHOLES = st.text() | st.binary()


@given(WHOLES, st.randoms(use_true_random=False))
def test_the_pieces_joined_are_the_whole(whole: str | bytes, random: Random) -> None:
    pieces = chop(whole, random)
    assert whole[:0].join(pieces) == whole
    assert {type(piece) for piece in pieces} <= {type(whole)}


@given(WHOLES, st.integers())
def test_the_same_seed_cuts_the_same_way(whole: str | bytes, seed: int) -> None:
    assert chop(whole, seed) == chop(whole, seed) == chop(whole, Random(seed))


def test_without_a_seed_it_is_the_same_each_time() -> None:
    assert chop("a text to cut") == chop("a text to cut")


def test_a_generator_goes_on_where_it_is() -> None:
    random = Random(1)
    assert len({tuple(chop("a text to cut", random)) for _ in range(100)}) > 50


def test_some_calls_cut_everywhere_and_some_nowhere() -> None:
    cut = [[piece for piece in chop("a text to cut", seed) if piece] for seed in range(200)]
    assert list("a text to cut") in cut
    assert ["a text to cut"] in cut


def test_some_pieces_are_empty() -> None:
    assert "" in chop("a text to cut" * 10, 1)
    assert any("" in chop("ab", seed) for seed in range(100))


def test_bytes_are_cut_in_the_middle_of_characters() -> None:
    def is_whole(piece: bytes) -> bool:
        return piece.decode("utf-8", "replace").isprintable() and b"\xe2" in piece

    assert not all(is_whole(piece) for piece in chop("€€€€".encode(), 3) if piece)


def test_nothing_is_cut_into_nothing() -> None:
    assert chop("") == []
    assert chop(b"") == []


# Every way.


def test_every_single_cut_comes_once() -> None:
    assert list(every_chop("abcd")) == [["a", "bcd"], ["ab", "cd"], ["abc", "d"]]
    assert list(every_chop(b"ab")) == [[b"a", b"b"]]


@given(st.text(max_size=8), st.integers(0, 3))
def test_there_are_as_many_ways_as_it_says(whole: str, cuts: int) -> None:
    ways = [tuple(way) for way in every_chop(whole, cuts)]
    assert len(ways) == comb(max(len(whole) - 1, 0), cuts)
    assert {"".join(way) for way in ways} <= {whole}
    assert {len(way) for way in ways} <= {cuts + 1}


def test_without_cuts_there_is_one_way() -> None:
    assert list(every_chop("abc", 0)) == [["abc"]]


def test_a_number_of_cuts_that_makes_no_sense_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="cuts must be 0 or more, not -1"):
        every_chop("abc", -1)
