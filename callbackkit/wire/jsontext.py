"""Any value as JSON text: what JSON has no word for is shown by its ``repr``."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from typing import Any, Final, cast

__all__ = ["json_text"]

# Characters of a repr that are shown, and how deep containers may be nested.
_MOST_SHOWN: Final = 1_000
_MOST_DEEP: Final = 100


def json_text(value: object) -> str:
    r"""Return *value* as JSON, in one line of Unicode text. Never raises, whatever it is.

    What is no JSON is replaced where it stands: NaN and the infinities by ``null``, as
    ``JSON.stringify`` does; other objects by the first 1000 characters of their ``repr``;
    containers that contain themselves, and those more than 100 deep, likewise. Keys become
    strings. Half of a surrogate pair is escaped, so that the text can be encoded.

    >>> json_text({"at": 1 + 2j, "half": float("nan"), "path": b"/x"})
    '{"at":"(1+2j)","half":null,"path":"b\'/x\'"}'
    """
    try:
        text = _STRICT.encode(value)
    except Exception:
        # Numbers, keys, cycles and depth that JSON has not; or somebody's class that raises.
        text = _STRICT.encode(_plain(value, ()))
    if text.isascii():
        return text
    # Surrogates stand inside strings only, where \udXXX means them.
    return text.encode("utf-8", "backslashreplace").decode()


def _shown(value: object) -> str:
    try:
        return repr(value)[:_MOST_SHOWN]
    except Exception:
        return object.__repr__(value)


# allow_nan=False: NaN and Infinity are what Python would write, and no JSON.
_STRICT: Final = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_shown
)


def _plain(value: Any, around: tuple[int, ...]) -> object:
    """Return a copy of *value* that is JSON; *around* has the ids of what it is inside of."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int | float):
        return _number(value)
    here = id(value)
    is_container = isinstance(value, (dict, list, tuple))
    if is_container and here not in around and len(around) < _MOST_DEEP:
        with suppress(Exception):
            return _container(value, (*around, here))
    return _shown(value)


def _container(value: Any, around: tuple[int, ...]) -> object:
    if isinstance(value, dict):
        items = cast("dict[object, object]", value).items()
        return {_key(key): _plain(each, around) for key, each in items}
    return [_plain(each, around) for each in value]


def _number(value: float) -> object:
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    try:
        # More digits than sys.get_int_max_str_digits() are refused.
        int.__repr__(value)
    except ValueError:
        return hex(value)[:_MOST_SHOWN]
    return int(value)


def _key(key: object) -> str:
    if isinstance(key, str):
        return str.__str__(key)
    if key is None or isinstance(key, bool | int | float):
        # As the standard library writes such keys, but for NaN and the infinities.
        text = _STRICT.encode(_plain(key, ()))
        return json.loads(text) if text.startswith('"') else text
    return _shown(key)
