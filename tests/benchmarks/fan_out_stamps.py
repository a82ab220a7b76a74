"""Events that say when they were due, and how long each client waited for them.

The clock is that of the machine, the same in every process.
"""

import re
from time import monotonic

from tests.benchmarks.fan_out_clients import MARK

_STAMP = re.compile(re.escape(MARK) + rb"(\d+) (\d+);")
# Characters of a stamp that may not have ended, at most.
_LONGEST = 64


def stamp(number: int, due: float) -> str:
    """Write what an event carries: its number, from 0, and when it was due, in seconds."""
    return f"{MARK.decode()}{number} {due * 1e6:.0f};"


class Arrivals:
    """What one client got. Events that are emitted at once may come in any order, but come once.

    Attributes:
        waits: Seconds from being due to being here, an event each.
    """

    def __init__(self) -> None:
        self.waits: list[float] = []
        self._rest = b""
        self._seen: set[int] = set()

    def begin(self) -> None:
        """Begin anew."""
        self.waits.clear()
        self._seen.clear()

    def take(self, chunk: bytes) -> None:
        """Note what has come.

        Raises:
            RuntimeError: An event comes again.
        """
        now = monotonic()
        text = self._rest + chunk
        end = 0
        for found in _STAMP.finditer(text):
            end = found.end()
            number = int(found[1])
            if number in self._seen:
                raise RuntimeError(f"event {number} comes again")
            self._seen.add(number)
            self.waits.append(now - int(found[2]) / 1e6)
        self._rest = text[max(end, len(text) - _LONGEST) :]
