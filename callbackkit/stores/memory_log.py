"""The records of one session in memory, in blocks."""

from __future__ import annotations

from typing import Any, Final, cast

from callbackkit.stores.base import Record

__all__ = ["Kept", "Log"]

# Records of a block.
_BLOCK: Final = 64

Kept = tuple[int, int, str, bytes, bool, int]
"""The fields of a :class:`~callbackkit.stores.base.Record`."""


class Log:
    """Records, counted from the oldest one kept, which is number 0 here.

    The garbage collector of CPython takes tuples of plain values off its lists, and tuples of such
    tuples, but not classes of tuples; and it looks at each item of a list. So a full block is a
    tuple of tuples, and what is kept is next to nothing to it: to look at a million records would
    stop the process for tenths of a second (tests/benchmarks, "fan-out-latency").

    Attributes:
        size: Bytes of all bodies.
    """

    __slots__ = ("_blocks", "_head", "_open", "size")

    def __init__(self) -> None:
        # Number n is at [_head + n]: in a full block, or behind all of them among the open ones.
        # The first block is a list once records of it were dropped; they are None there.
        self._blocks: list[tuple[Kept, ...] | list[Kept | None]] = []
        self._open: list[Kept | None] = []
        self._head = 0
        self.size: int = 0

    def append(self, kept: Kept) -> None:
        """Add the fields of a record behind the others."""
        opened = self._open
        opened.append(kept)
        self.size += len(kept[3])
        if len(opened) == _BLOCK:
            is_whole = self._blocks or not self._head
            self._blocks.append(cast("tuple[Kept, ...]", tuple(opened)) if is_whole else opened)
            self._open = []

    def slice(self, begin: int, end: int | None) -> list[Record]:
        """Return the records from one number up to before another."""
        blocks = self._blocks
        low = self._head + begin
        high = len(blocks) * _BLOCK + len(self._open)
        if end is not None:
            high = min(high, self._head + end)
        found: list[Kept] = []
        for number in range(low // _BLOCK, -(-high // _BLOCK)):
            block = blocks[number] if number < len(blocks) else self._open
            before = number * _BLOCK
            # Only what was dropped is None.
            found += cast("list[Kept]", block[max(low - before, 0) : high - before])
        return list(map(Record._make, found))

    def at(self, number: int) -> Record:
        """Return the record with a number, which is kept."""
        return Record._make(self.kept_at(number))

    def kept_at(self, number: int) -> Kept:
        """Return the fields of the record with a number, which is kept."""
        place, rest = divmod(self._head + number, _BLOCK)
        blocks = self._blocks
        # No cast(): it is a call, and this is where a delivery is settled.
        kept: Any = blocks[place][rest] if place < len(blocks) else self._open[rest]
        found: Kept = kept
        return found

    def drop(self) -> None:
        """Drop the oldest record; there has to be one."""
        blocks, head = self._blocks, self._head
        block = blocks[0] if blocks else self._open
        if isinstance(block, tuple):
            block = blocks[0] = list(block)
        kept = block[head]
        assert kept is not None
        self.size -= len(kept[3])
        block[head] = None
        self._head = head + 1
        if self._head == _BLOCK:
            del blocks[0]
            self._head = 0
