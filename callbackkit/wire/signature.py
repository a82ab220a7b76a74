"""Standard Webhooks 1.0.0: what is signed, with what, and whether a signature is right.

A webhook carries three headers: ``webhook-id``, the same on every attempt; ``webhook-timestamp``,
whole seconds since 1970 of this attempt; ``webhook-signature``, signatures separated by spaces, of
which one has to be right. The signed text is ``{id}.{timestamp}.{body}``, of the very bytes that
are sent.

- ``v1,`` and base64 is HMAC-SHA256. Sender and receiver have one secret: ``whsec_`` and base64 of
  24 to 64 bytes.
- ``v1a,`` and base64 is Ed25519, which needs the extra ``ed25519``. The sender's key is ``whsk_``
  and base64 of 32 bytes, with or without the 32 of its public half behind them; the receiver's is
  ``whpk_`` and base64 of the public half.

As in the reference libraries, base64 alone is a secret for HMAC too, its padding may be missing,
and secrets of other lengths are taken: it is the sender who chooses. Sessions of ours take 24 to 64
bytes only.

No key is kept between calls, so that a secret is gone when whoever held it is. Whoever signs with
the same secrets again and again keeps a :class:`Signer`.

Source:
    https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md;
    for the keys of ``v1a``, which it leaves open, the server of Svix
"""

from __future__ import annotations

import base64
import hmac
import math
import re
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Protocol, cast

from callbackkit.errors import SignatureError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

__all__ = ["Headers", "Signer", "public_key", "sign", "verify"]

_ID: Final = "webhook-id"
_TIMESTAMP: Final = "webhook-timestamp"
_SIGNATURE: Final = "webhook-signature"
_HEADERS: Final = frozenset({_ID, _TIMESTAMP, _SIGNATURE})

# Visible ASCII but for the dot: with one, a text that was signed could be cut in another way, and
# what is the body's be taken for the timestamp.
_ID_FORM: Final = re.compile(r"[!-\-/-~]{1,512}")
# int() takes other digits too, underscores and signs.
_TIMESTAMP_FORM: Final = re.compile(r"[0-9]{1,15}")
_LATEST: Final = 10**15

# We send six at most. To verify one of Ed25519 takes 80 µs.
_MOST_SIGNATURES: Final = 32
_MOST_CHARACTERS: Final = 4_096

_SYMMETRIC: Final = "whsec_"
_PRIVATE: Final = "whsk_"
_PUBLIC: Final = "whpk_"


class Headers(Protocol):
    """The headers of a request: a mapping, or what frameworks have instead of one."""

    def items(self) -> Iterable[tuple[str, str]]:
        """Return names and values; case makes no difference to a name."""
        ...


def sign(
    secret: str | Sequence[str],
    *,
    id: str,  # noqa: A002 - the specification's word for it
    timestamp: int,
    body: bytes,
) -> str:
    """Return the value of ``webhook-signature``.

    >>> secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    >>> sign(secret, id="msg_1", timestamp=1614265330, body=b"{}")
    'v1,ZztYR0IIDCBCUcYzh8ZE+qsQWpIgtHU7R1hpe8htaD4='

    Args:
        secret: ``whsec_...`` or ``whsk_...``; several while one takes over from another, the
            newest first. There is a signature for each, in this order.
        id: The value of ``webhook-id``: up to 512 visible ASCII characters without a dot.
        timestamp: The value of ``webhook-timestamp``: seconds since 1970, up to 15 digits.
        body: The bytes that are sent, compressed if that is how they are sent.

    Raises:
        TypeError: A secret or an id that is no string, a timestamp that is no whole number, a
            body that is no bytes.
        ValueError: A secret, an id or a timestamp that can't be one; the text has no part of a
            secret.
        ImportError: An Ed25519 key, without cryptography.
    """
    return Signer(secret).sign(id=id, timestamp=timestamp, body=body)


class Signer:
    """Signs as :func:`sign` does, and reads its secrets once.

    That is a half of what a signature takes, of one of Ed25519 more (tests/benchmarks, "webhooks").

    Args:
        secret: As for :func:`sign`.

    Raises:
        TypeError: A secret that is no string.
        ValueError: A secret that can't be one; the text has no part of it.
        ImportError: An Ed25519 key, without cryptography.
    """

    __slots__ = ("_keys",)

    def __init__(self, secret: str | Sequence[str]) -> None:
        self._keys = [_signing_key(each) for each in _several(secret)]

    def sign(
        self,
        *,
        id: str,  # noqa: A002 - as for the function
        timestamp: int,
        body: bytes,
    ) -> str:
        """Return the value of ``webhook-signature``; arguments and errors as for :func:`sign`."""
        _check_id(id)
        _check_timestamp(timestamp)
        _check_body(body)
        content = b"%s.%d.%s" % (id.encode(), timestamp, body)
        return " ".join([key(content) for key in self._keys])


def verify(
    headers: Headers,
    body: bytes,
    secrets: str | Sequence[str],
    *,
    now: float | None = None,
    tolerance: float | None = 300.0,
) -> None:
    """Return if a webhook was signed with one of the secrets, and lately.

    Whatever the headers and the body hold, there is no other error than ``SignatureError``. Of a
    header that came twice nobody knows which one was meant: that is one. A signature of a version
    that is unknown is passed over; up to 32 of 4096 characters in all are looked at.

    A webhook that was sent again within the tolerance is as right as the first one:
    :class:`callbackkit.webhooks.receiver.Deduper` tells.

    Args:
        headers: Those of the request.
        body: The bytes as they came: not decoded, not decompressed.
        secrets: One or several, ``whsec_...`` or ``whpk_...``.
        now: Seconds since 1970; ``None`` asks the clock of the machine.
        tolerance: Whole seconds that the timestamp may lie in the past or the future: 0 for this
            very second, ``None`` for any time.

    Raises:
        SignatureError: It was not.
        TypeError: A secret that is no string, a body that is no bytes, *headers* without names.
        ValueError: A secret that can't be one, or none at all; a *tolerance* below 0; a *now* that
            is not finite. The text has no part of a secret.
        ImportError: An Ed25519 key, without cryptography.
    """
    # The caller's mistakes first: they are to show whoever sends.
    keys = [_verifier(each) for each in _several(secrets)]
    _check_body(body)
    earliest, latest = _times(now, tolerance)
    webhook_id, text, signatures = _read(headers)
    if int(text) < earliest:
        raise SignatureError(f"{_TIMESTAMP} is too old")
    if int(text) > latest:
        raise SignatureError(f"{_TIMESTAMP} is in the future")
    content = b"%s.%s.%s" % (webhook_id.encode(), text.encode(), body)
    if not any(key.matches(content, signatures) for key in keys):
        raise SignatureError(f"no signature in {_SIGNATURE} is right")


def public_key(secret: str) -> str:
    """Return the public half of an Ed25519 key, ``whpk_...``: what to give to who verifies.

    >>> public_key("whsk_nWGxne/9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A=")
    'whpk_11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo='

    Args:
        secret: ``whsk_...``; the base64 of 32 random bytes makes one.

    Raises:
        TypeError: It is no string.
        ValueError: It is no such key.
        ImportError: Without cryptography.
    """
    _check_secret(secret)
    if not secret.startswith(_PRIVATE):
        raise ValueError("only a secret that begins with 'whsk_' has a public half")
    return _PUBLIC + _base64(_private_key(secret).public_key().public_bytes_raw())


# What the caller gives.


def _check_id(value: object) -> None:
    if not isinstance(value, str):
        raise TypeError(f"id must be a string, not {type(value).__name__}")
    if not _ID_FORM.fullmatch(value):
        raise ValueError(
            f"id must be up to 512 visible ASCII characters, none a dot, not {value!r:.80}"
        )


def _check_timestamp(value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"timestamp must be whole seconds, an int, not {type(value).__name__}")
    if not 0 <= value < _LATEST:
        raise ValueError("timestamp must be seconds since 1970, of up to 15 digits")


def _check_body(value: object) -> None:
    if not isinstance(value, bytes | bytearray | memoryview):
        raise TypeError(
            f"body must be the bytes of the request, as they are sent, not {type(value).__name__}"
        )


def _check_secret(value: object) -> None:
    if not isinstance(value, str):
        raise TypeError(f"a secret must be a string, not {type(value).__name__}")


def _several(secrets: str | Sequence[str]) -> tuple[str, ...]:
    if isinstance(cast(object, secrets), bytes) or not isinstance(secrets, Iterable):
        raise TypeError(
            f"secrets must be a string or several strings, not {type(secrets).__name__}"
        )
    several = (secrets,) if isinstance(secrets, str) else tuple(secrets)
    if not several:
        raise ValueError("there must be a secret")
    for each in several:
        _check_secret(each)
    return several


def _times(now: float | None, tolerance: float | None) -> tuple[float, float]:
    """Return the first and the last second that a timestamp may be of."""
    if tolerance is None:
        return 0, _LATEST
    if not tolerance >= 0:
        raise ValueError(f"tolerance must be seconds from 0, or None for any, not {tolerance!r}")
    moment = datetime.now(UTC).timestamp() if now is None else now
    if not math.isfinite(moment):
        raise ValueError(f"now must be seconds since 1970, not {now!r}")
    second = math.floor(moment)
    return second - tolerance, second + tolerance


# What came.


def _read(headers: Headers) -> tuple[str, str, list[bytes]]:
    """Return id, timestamp and signatures; the first two are of the form they must have."""
    found = _found(headers)
    webhook_id, text, signatures = found[_ID], found[_TIMESTAMP], found[_SIGNATURE]
    if not _ID_FORM.fullmatch(webhook_id):
        raise SignatureError(f"{_ID} is no id")
    if not _TIMESTAMP_FORM.fullmatch(text):
        raise SignatureError(f"{_TIMESTAMP} is no time")
    return webhook_id, text, _entries(signatures)


def _found(headers: Headers) -> dict[str, str]:
    """Return the three headers by their names."""
    if not hasattr(headers, "items"):
        raise TypeError(f"headers must be a mapping of strings, not {type(headers).__name__}")
    found: dict[str, str] = {}
    for name, value in headers.items():
        # What is no text is no header.
        lower = name.lower() if isinstance(name, str) else ""
        if lower not in _HEADERS:
            continue
        if lower in found:
            raise SignatureError(f"{lower} is there twice")
        found[lower] = value if isinstance(value, str) else ""
    for name in (_ID, _TIMESTAMP, _SIGNATURE):
        if not found.get(name):
            raise SignatureError(f"{name} is missing")
    return found


def _entries(text: str) -> list[bytes]:
    """Return the signatures of a header; as bytes, which alone compare in constant time."""
    if len(text) > _MOST_CHARACTERS:
        raise SignatureError(f"{_SIGNATURE} has more than {_MOST_CHARACTERS} characters")
    # A "?" is in no signature.
    entries = [each for each in text.encode("ascii", "replace").split(b" ") if each]
    if len(entries) > _MOST_SIGNATURES:
        raise SignatureError(f"{_SIGNATURE} has more than {_MOST_SIGNATURES} signatures")
    return entries


# Keys.


def _signing_key(secret: str) -> Callable[[bytes], str]:
    """Return what makes the entry of a signature."""
    if secret.startswith(_PRIVATE):
        private = _private_key(secret)
        return lambda content: f"v1a,{_base64(private.sign(content))}"
    if secret.startswith(_PUBLIC):
        raise ValueError("a public key signs nothing; sign with its secret half, 'whsk_'")
    keyed = hmac.new(_symmetric_key(secret), digestmod="sha256")

    def entry(content: bytes) -> str:
        signing = keyed.copy()
        signing.update(content)
        return f"v1,{_base64(signing.digest())}"

    return entry


class _Symmetric:
    def __init__(self, secret: str) -> None:
        self._key = _symmetric_key(secret)

    def matches(self, content: bytes, signatures: Iterable[bytes]) -> bool:
        digest = hmac.digest(self._key, content, "sha256")
        expected = b"v1," + base64.b64encode(digest)
        return any(hmac.compare_digest(expected, each) for each in signatures)


class _Public:
    def __init__(self, secret: str) -> None:
        self._key = _ed25519_public(secret)

    def matches(self, content: bytes, signatures: Iterable[bytes]) -> bool:
        return any(self._is_right(content, each) for each in signatures)

    def _is_right(self, content: bytes, signature: bytes) -> bool:
        from cryptography.exceptions import InvalidSignature

        version, _, text = signature.partition(b",")
        decoded = _decoded(text.decode()) if version == b"v1a" else None
        # Base64 can be written in several ways, of which one counts.
        if decoded is None or base64.b64encode(decoded) != text:
            return False
        try:
            self._key.verify(decoded, content)
        except InvalidSignature:
            return False
        return True


def _verifier(secret: str) -> _Symmetric | _Public:
    if secret.startswith(_PUBLIC):
        return _Public(secret)
    if secret.startswith(_PRIVATE):
        raise ValueError("verify with the public half, 'whpk_', of a key: public_key() tells it")
    return _Symmetric(secret)


def _symmetric_key(secret: str) -> bytes:
    key = _decoded(_padded(secret.removeprefix(_SYMMETRIC)))
    if not key:
        raise ValueError("a secret must be 'whsec_' and base64 of 24 to 64 bytes")
    return key


def _private_key(secret: str) -> Ed25519PrivateKey:
    key = _decoded(_padded(secret.removeprefix(_PRIVATE)))
    if key is None or len(key) not in {32, 64}:
        raise ValueError("a secret key must be 'whsk_' and base64 of 32 or 64 bytes")
    private = _ed25519_private(key[:32])
    if key[32:] and private.public_key().public_bytes_raw() != key[32:]:
        raise ValueError("the two halves of a secret key, 'whsk_', are not of one pair")
    return private


def _ed25519_private(seed: bytes) -> Ed25519PrivateKey:
    try:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    except ImportError as exc:
        raise ImportError(_NOT_INSTALLED) from exc
    return Ed25519PrivateKey.from_private_bytes(seed)


def _ed25519_public(secret: str) -> Ed25519PublicKey:
    key = _decoded(_padded(secret.removeprefix(_PUBLIC)))
    if key is None or len(key) != 32:
        raise ValueError("a public key must be 'whpk_' and base64 of 32 bytes")
    try:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    except ImportError as exc:
        raise ImportError(_NOT_INSTALLED) from exc
    return Ed25519PublicKey.from_public_bytes(key)


_NOT_INSTALLED: Final = (
    "Ed25519 keys ('whsk_', 'whpk_') need cryptography: install callbackkit[ed25519]"
)


# Base64.


def _base64(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _padded(text: str) -> str:
    return text + "=" * (-len(text) % 4)


def _decoded(text: str) -> bytes | None:
    """Return the bytes of base64; ``None`` if it is none.

    The errors are not passed on: that of a text that is not ASCII has the text in it.
    """
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        return None
