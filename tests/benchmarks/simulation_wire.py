"""What stores send to Redis, noted down to be sent again, and how it is sent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

__all__ = ["Recorder", "Replies", "encoded"]


def encoded(*words: str | bytes | float) -> bytes:
    """Return a command as it goes to Redis."""
    parts = [b"*%d\r\n" % len(words)]
    for word in words:
        data = word if isinstance(word, bytes) else str(word).encode()
        parts.append(b"$%d\r\n%s\r\n" % (len(data), data))
    return b"".join(parts)


class Replies:
    """Counts the answers in what Redis sends, however it is cut."""

    def __init__(self) -> None:
        self._data = b""
        # What is still to come of each list that has begun, the outermost first.
        self._open: list[int] = []

    def feed(self, data: bytes) -> int:
        """Take what has arrived; return how many answers it completed.

        Raises:
            RuntimeError: One of them is an error.
        """
        data = self._data + data
        at = done = 0
        while (end := data.find(b"\r\n", at)) >= 0:
            kind = data[at : at + 1]
            if kind == b"-":
                raise RuntimeError(data[at + 1 : end].decode())
            if kind == b"$" and (size := int(data[at + 1 : end])) >= 0:
                if len(data) < end + 2 + size + 2:
                    break
                at = end + 2 + size + 2
            else:
                size = int(data[at + 1 : end]) if kind == b"*" else 0
                at = end + 2
                if size > 0:
                    self._open.append(size)
                    continue
            done += self._has_ended()
        self._data = data[at:]
        return done

    def _has_ended(self) -> bool:
        """Count what has just ended; tell whether that was an answer."""
        while self._open and self._open[-1] == 1:
            self._open.pop()
        if self._open:
            self._open[-1] -= 1
            return False
        return True


class Recorder:
    """A client of coredis that notes the calls of a store down.

    Args:
        client: The client.
        calls: What was called, as it goes to Redis.
        is_dry: Tells whether to have it done elsewhere, where there are no sessions.
    """

    decode_responses: bool = False

    def __init__(self, client: Any, calls: list[bytes], is_dry: Callable[[], bool]) -> None:
        self._client = client
        self._calls = calls
        self._is_dry = is_dry
        self.pubsub: Callable[..., Any] = client.pubsub

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._client.__aexit__(kind, error, traceback)

    async def evalsha(self, sha: str, *, keys: Sequence[str], args: Sequence[str | bytes]) -> Any:
        """Have a script run that the server knows."""
        self._calls.append(encoded("EVALSHA", sha, len(keys), *keys, *args))
        if self._is_dry():
            keys = ["{elsewhere:0}:meta"]
        return await self._client.evalsha(sha, keys=keys, args=args)

    async def eval(self, script: str, *, keys: Sequence[str], args: Sequence[str | bytes]) -> Any:
        """Have a script run that the server does not know yet."""
        return await self._client.eval(script, keys=keys, args=args)
