"""The bodies of requests: read up to a bound, decoded strictly."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any, Final, NoReturn, TypeVar, cast

import attrs
import msgspec

from callbackkit.errors import ConfigError, LimitError, WireError

__all__ = ["check_media_type", "convert", "decode_object", "read_body"]

T = TypeVar("T")

# Names of JSON: application/json, application/merge-patch+json and such.
_JSON_TYPE: Final = re.compile(r"application/(?:[\w.+-]+\+)?json", re.ASCII)
# "Expected `str`, got `int` - at `$.event_type`".
_AT: Final = re.compile(r"(.*) - at `\$\.?(.*)`", re.DOTALL)


# Up to here a float is exact, and a whole number the same in every language.
_EXACT: Final = 2.0**53


async def read_body(
    chunks: AsyncGenerator[bytes], headers: Mapping[str, str], *, most: int
) -> bytes:
    """Return a body; one that is too large is not read to its end.

    Args:
        chunks: The body as it comes.
        headers: Of the request; a length that is too large refuses it unread.
        most: Bytes.

    Raises:
        LimitError: It is larger; its name is ``max_body_bytes``.
    """
    told = headers.get("content-length", "")
    if told.isascii() and told.isdigit() and (len(told) > 18 or int(told) > most):
        raise LimitError("max_body_bytes", most, "the body is larger")
    body = bytearray()
    async with aclosing(chunks):
        async for chunk in chunks:
            body += chunk
            if len(body) > most:
                raise LimitError("max_body_bytes", most, "the body is larger")
    return bytes(body)


def check_media_type(media_type: str | None) -> None:
    """Refuse a body that does not say that it is JSON.

    That also keeps out forms of foreign pages, which a browser sends without asking.

    Raises:
        WireError: It says something else, or nothing.
    """
    kind, _, parameters = (media_type or "").partition(";")
    if not _JSON_TYPE.fullmatch(kind.strip().lower()):
        raise WireError("send the body with Content-Type: application/json")
    charset = parameters.lower().replace(" ", "").replace('"', "")
    if "charset=" in charset and "charset=utf-8" not in charset:
        raise WireError("JSON is UTF-8; leave charset out")


def decode_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object that a body is; no body is an empty one.

    Stricter than the standard library: no key twice, no number beyond a float.

    Raises:
        WireError: It is no JSON in UTF-8, or something else than an object.
    """
    if not body:
        return {}
    try:
        value: object = _DECODER.decode(body.decode())
    except (ValueError, RecursionError) as exc:
        raise WireError(f"the body must be JSON in UTF-8: {exc!s:.200}") from exc
    if not isinstance(value, dict):
        raise WireError("the body must be a JSON object")
    return cast("dict[str, Any]", value)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {twice!r:.80} is there twice")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _number(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text:.40} is too large a number")
    # JSON has one kind of number: 5.0 is 5, wherever a whole one is asked for.
    return int(number) if number.is_integer() and abs(number) < _EXACT else number


_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_object, parse_constant=_refuse_constant, parse_float=_number
)


def convert(value: Mapping[str, Any], into: type[T]) -> T:
    """Return an object as what a route takes.

    Args:
        value: The object.
        into: A class of attrs.

    Raises:
        ConfigError: A key that is unknown, missing or of the wrong type.
    """
    known = {field.name for field in attrs.fields(cast("Any", into))}
    for key in value:
        if key not in known:
            name = key if key.isprintable() else ascii(key)
            raise ConfigError(f"{name:.80}", f"is unknown; there are: {', '.join(sorted(known))}")
    try:
        return msgspec.convert(value, into)
    except msgspec.ValidationError as exc:
        raise _refusal(str(exc)) from None


def _refusal(text: str) -> ConfigError:
    found = _AT.fullmatch(text)
    reason, field = found.groups() if found else (text, "body")
    return ConfigError(field, reason[:1].lower() + reason[1:])
