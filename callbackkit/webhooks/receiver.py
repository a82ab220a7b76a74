"""For who receives webhooks: the events of a request, and whether it came before."""

from __future__ import annotations

import sys
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from threading import Lock
from typing import Any, Final, cast

from callbackkit.errors import WireError
from callbackkit.events import Event
from callbackkit.wire.envelope import JsonCodec, _event
from callbackkit.wire.signature import Headers, verify

__all__ = ["Deduper", "receive"]

_JSON: Final = JsonCodec()

_ENCODING: Final = "content-encoding"
_PLAIN: Final = frozenset({"", "identity"})
# RFC 9110, section 8.4.1.3: the two are the same.
_GZIP: Final = frozenset({"gzip", "x-gzip"})
# zlib's way to say: with the header and the checksum of gzip, nothing else.
_GZIP_BITS: Final = 16 + zlib.MAX_WBITS


def receive(
    headers: Headers,
    body: bytes,
    secrets: str | Sequence[str],
    *,
    now: float | None = None,
    tolerance: float | None = 300.0,
    max_bytes: int = 16_777_216,
) -> list[Event]:
    """Verify a webhook that a session of callbackkit sent, and return its events.

    Only what was signed is unpacked. A webhook of somebody else is verified by
    :func:`callbackkit.wire.signature.verify`, whatever its body.

    Args:
        headers: Those of the request: a mapping, or what frameworks have instead of one; case
            makes no difference.
        body: The bytes as they came: not decoded, not decompressed.
        secrets: One or several, ``whsec_...`` or ``whpk_...``.
        now: Seconds since 1970; ``None`` asks the clock of the machine.
        tolerance: Whole seconds that the timestamp may lie in the past or the future: 0 for this
            very second, ``None`` for any time.
        max_bytes: Most bytes that the body may have, unpacked.

    Returns:
        One event, or those of a batch, in their order.

    Raises:
        SignatureError: It was not signed with one of the secrets, or not lately.
        WireError: It was, but holds no events: it is packed in an unknown way or too large, or of
            another form.
        TypeError: A secret that is no string, a body that is no bytes.
        ValueError: A secret that can't be one, or none at all; a number out of its range.
        ImportError: An Ed25519 key, without cryptography.
    """
    _check_count("max_bytes", max_bytes)
    verify(headers, body, secrets, now=now, tolerance=tolerance)
    return _events(_unpacked(_encoding(headers), body, max_bytes))


class Deduper:
    """Tells webhooks that came before by their ``webhook-id``; from any thread.

    Delivered means delivered at least once: an answer that got lost is a webhook that comes again.
    So, in this order: verify, ask :meth:`seen`, handle, and when that failed :meth:`forget`, or the
    next attempt would be taken for a repeat and the events be lost.

    It knows what this process received. Where several do, and to remember across a restart, put the
    id into the database, in the transaction in which the events are handled.

    Args:
        size: Most ids that are kept; above that, those are forgotten that came longest ago.
        ttl: Seconds that an id is kept after it came last. It should be longer than the sender
            waits between two attempts.
        clock: Seconds since whenever, never going back.

    Raises:
        ValueError: A number out of its range.
    """

    def __init__(
        self,
        size: int = 10_000,
        ttl: float = 86_400.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        _check_count("size", size)
        if not ttl > 0:
            raise ValueError(f"ttl must be seconds above 0, not {ttl!r}")
        self.size = size
        self.ttl = ttl
        self._clock = clock
        # Id -> when it came last; the oldest first.
        self._known: OrderedDict[str, float] = OrderedDict()
        self._lock = Lock()

    def __repr__(self) -> str:
        return f"<Deduper size={self.size} ttl={self.ttl} known={len(self._known)}>"

    def seen(self, webhook_id: str) -> bool:
        """Tell whether an id came before; from now on it did.

        Of several who ask at the same time one is told that it did not.

        Raises:
            TypeError: It is no string. A header that is missing would else be a repeat of another
                one that was.
            ValueError: It is empty.
        """
        if not isinstance(webhook_id, str):
            raise TypeError(f"webhook_id must be a string, not {type(webhook_id).__name__}")
        if not webhook_id:
            raise ValueError("webhook_id must not be empty")
        with self._lock:
            now = self._clock()
            self._expire(now)
            is_known = webhook_id in self._known
            self._known[webhook_id] = now
            self._known.move_to_end(webhook_id)
            if len(self._known) > self.size:
                self._known.popitem(last=False)
            return is_known

    def forget(self, webhook_id: str) -> None:
        """Have an id be new again: handling it failed, and the sender will try again."""
        with self._lock:
            self._known.pop(webhook_id, None)

    def _expire(self, now: float) -> None:
        while self._known:
            oldest = next(iter(self._known))
            if now - self._known[oldest] < self.ttl:
                return
            del self._known[oldest]


# Unpacking.


def _encoding(headers: Headers) -> str:
    """Return what ``Content-Encoding`` says, in lower case; ``""`` for nothing."""
    found = [
        value
        for name, value in headers.items()
        if isinstance(name, str) and name.lower() == _ENCODING
    ]
    if len(found) > 1 or not all(isinstance(each, str) for each in found):
        raise WireError(f"{_ENCODING} is there twice, or no text")
    return "".join(found).strip().lower()


def _unpacked(encoding: str, body: bytes, most: int) -> bytes:
    if encoding in _PLAIN:
        content = bytes(body)
    elif encoding in _GZIP:
        content = _gunzipped(body, most)
    else:
        raise WireError(f"{_ENCODING} must be gzip or nothing, not {encoding!r:.80}")
    if len(content) > most:
        raise WireError(f"a body must be at most {most} bytes, unpacked")
    return content


def _gunzipped(body: bytes, most: int) -> bytes:
    """Return what was packed, or the first bytes of it if it is too large."""
    packed = zlib.decompressobj(wbits=_GZIP_BITS)
    try:
        # One byte more than there may be tells that there is more.
        content = packed.decompress(body, min(most + 1, sys.maxsize))
    except zlib.error as exc:
        raise WireError("a body in gzip is broken") from exc
    if len(content) <= most and not packed.eof:
        raise WireError("a body in gzip is cut off")
    if packed.unused_data:
        raise WireError("a body in gzip has something behind it")
    return content


# Reading.


def _events(text: bytes) -> list[Event]:
    content = _object("a webhook", _decoded(text))
    if "events" not in content:
        return [_event(content, _JSON)]
    events = content["events"]
    if not isinstance(events, list):
        raise WireError(f"'events' must be a list, not {type(events).__name__}")
    return [_event(_object("an event", each), _JSON) for each in cast("list[object]", events)]


def _decoded(text: bytes) -> object:
    try:
        return _JSON.decode(text)
    except (ValueError, RecursionError) as exc:
        raise WireError(f"a webhook must be JSON in UTF-8: {exc!s:.200}") from exc


def _object(what: str, value: object) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise WireError(f"{what} must be a JSON object, not {type(value).__name__}")
    return cast("dict[str, Any]", value)


def _check_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number above 0, not {value!r}")
