"""Standard output of a program that does other things meanwhile."""

from __future__ import annotations

import os
import select
import stat
from typing import Final

import anyio

__all__ = ["NobodyReadsError", "Output"]

# Bytes that can be written without waiting where some can (POSIX, "write"): a pipe with less
# room than that says that it has none.
_PIECE: Final = getattr(select, "PIPE_BUF", 512)


class NobodyReadsError(Exception):
    """Whoever read what was written does so no more."""


class Output:
    """Writes to a file descriptor that may be slow; who writes waits, and nobody else.

    Args:
        descriptor: Of a terminal, a pipe, a file; it is left as it is, for others may have it too.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        # Windows can't tell, and has those waiting who have others to wait for them.
        self._poll = select.poll() if hasattr(select, "poll") else None
        if self._poll is not None:
            self._poll.register(descriptor, select.POLLOUT)

    async def write(self, text: bytes) -> None:
        """Write all of it.

        Raises:
            NobodyReadsError: It went nowhere.
            OSError: It could not be written, on a full disk, say.
        """
        rest = memoryview(text)
        while rest:
            if self._poll is not None and not self._poll.poll(0):
                await anyio.wait_writable(self._descriptor)
            try:
                rest = rest[os.write(self._descriptor, rest[:_PIECE]) :]
            except BrokenPipeError:
                raise NobodyReadsError from None

    async def wait_until_nobody_reads(self) -> bool:
        """Return once that is so, true; false at once where it can't be told.

        Without it, a program that has nothing to write would not notice.
        """
        mode = os.fstat(self._descriptor).st_mode
        if self._poll is None or not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
            return False
        await anyio.wait_readable(self._descriptor)
        if any(event & (select.POLLERR | select.POLLHUP) for _, event in self._poll.poll(0)):
            raise NobodyReadsError
        return False
