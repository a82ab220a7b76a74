"""Cut a text the way networks do, for tests of whatever puts it together again."""

from __future__ import annotations

import random as chance
from collections.abc import Iterator
from itertools import combinations, pairwise
from typing import Final, TypeVar

__all__ = ["chop", "every_chop"]

Text = TypeVar("Text", str, bytes)

# Mean lengths of pieces: some faults show with single characters only, others with few cuts.
_MEAN_LENGTHS: Final = (1, 2, 3, 8, 64, 1024)

# One piece in so many is followed by an empty one: a read that brings nothing.
_EMPTY_EVERY: Final = 16


def chop(whole: Text, random: chance.Random | int = 0) -> list[Text]:
    """Cut a text into pieces that give it when joined, bytes in the middle of characters too.

    How long the pieces are is part of what is chosen: one call cuts everywhere, another hardly at
    all. Some pieces are empty.

        >>> "".join(chop("<graphai:END>", 7))
        '<graphai:END>'
        >>> chop("<graphai:END>", 7) == chop("<graphai:END>", 7)
        True

    With Hypothesis, ``@given(strategies.randoms())`` makes what to give for *random*.

    Args:
        whole: The text; a ``str`` or ``bytes``.
        random: What chooses: the same seed, or a ``random.Random`` in the same state, cuts the
            same way.
    """
    if not isinstance(random, chance.Random):
        random = chance.Random(random)
    mean = random.choice(_MEAN_LENGTHS)
    pieces: list[Text] = []
    begin = 0
    while begin < len(whole):
        end = begin + random.randint(1, 2 * mean - 1)
        pieces.append(whole[begin:end])
        begin = end
        if random.randrange(_EMPTY_EVERY) == 0:
            pieces.append(whole[:0])
    return pieces


def every_chop(whole: Text, cuts: int = 1) -> Iterator[list[Text]]:
    """Yield every way to cut a text in so many places, for one that is short.

        >>> list(every_chop("abc"))
        [['a', 'bc'], ['ab', 'c']]
        >>> list(every_chop("abc", cuts=2))
        [['a', 'b', 'c']]

    There are ``comb(len(whole) - 1, cuts)`` of them.

    Raises:
        ValueError: *cuts* is less than 0.
    """
    if cuts < 0:
        raise ValueError(f"cuts must be 0 or more, not {cuts!r}")
    return _every_chop(whole, cuts)


def _every_chop(whole: Text, cuts: int) -> Iterator[list[Text]]:
    for bounds in _every_bounds(len(whole), cuts):
        yield [whole[begin:end] for begin, end in pairwise(bounds)]


def _every_bounds(length: int, cuts: int) -> Iterator[tuple[int, ...]]:
    for places in combinations(range(1, length), cuts):
        yield (0, *places, length)
