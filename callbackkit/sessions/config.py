"""What a client asks for when it opens a session, validated."""

from __future__ import annotations

import base64
import binascii
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, Literal, cast
from urllib.parse import urlsplit

import attrs

from callbackkit.delivery.policy import Batching
from callbackkit.errors import ConfigError, PayloadError
from callbackkit.events import check_event_type
from callbackkit.wire.envelope import JsonCodec, encode_json

__all__ = ["ASKED", "CallbackConfig", "RetiredSecret"]

_JSON: Final = JsonCodec()
_MASK: Final = "***"
# The field of an error that is about no single key.
_ALL: Final = "config"

# What is wrong is named by its kind: a text that was given may be a secret in the wrong place. But
# event types and unknown keys are repeated.


def _kind(value: object) -> str:
    return "null" if value is None else type(value).__name__


# Numbers and flags.

_Validator = Callable[[Any, "attrs.Attribute[Any]", Any], None]


def _number(words: str, fits: Callable[[float], bool], *, whole: bool = False) -> _Validator:
    def check(_config: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if value is None:
            return
        if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
            raise ConfigError(attribute.name, f"must be {words}, not {_kind(value)}")
        if not fits(cast("float", value)):
            raise ConfigError(attribute.name, f"must be {words}")

    return check


# NaN is not within any bounds, and the largest float is below infinity.
_ABOVE_0: Final = _number("a finite number above 0", lambda x: 0 < x <= sys.float_info.max)
# Whoever asks for it is a stranger, and what he asks for stays so long.
_TTL: Final = _number("seconds above 0, at most 366 days", lambda x: 0 < x <= 31_622_400)
_TIMEOUT: Final = _number("seconds above 0, at most 300", lambda x: 0 < x <= 300)
_RETRIES: Final = _number("a whole number from 0 to 100", lambda x: 0 <= x <= 100, whole=True)


def _check_flag(_config: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, bool):
        raise ConfigError(attribute.name, f"must be true or false, not {_kind(value)}")


def _check_compression(_config: object, _attribute: object, value: object) -> None:
    if value is not None and value != "gzip":
        raise ConfigError("compression", "must be 'gzip' or null")


# Where to.

_MOST_METHOD: Final = 64
_MOST_URL: Final = 2_048
# Control characters and spaces, which urlsplit() would drop; "\", which browsers take for "/"; and
# halves of surrogate pairs.
_NOT_IN_URL: Final = re.compile(r"[\x00-\x20\x7f\\\ud800-\udfff]")
_NO_URL: Final = "must be a URL such as 'https://example.com/hook'"
# Standard Webhooks 1.0.0: 24 to 64 bytes of chance.
_SECRET: Final = "whsec_"
_SECRET_BYTES: Final = range(24, 65)


def _check_method(_config: object, _attribute: object, value: Any) -> None:
    if not isinstance(value, str):
        raise ConfigError("delivery_method", f"must be a string, not {_kind(value)}")
    if not value or len(value) > _MOST_METHOD or not value.isprintable():
        raise ConfigError("delivery_method", "must be a name such as 'webhook' or 'sse'")


def _check_url(_config: object, _attribute: object, value: Any) -> None:
    if value is None:
        return
    if not isinstance(value, str):
        raise ConfigError("webhook_url", f"must be a string, not {_kind(value)}")
    if reason := _wrong_with_url(value):
        raise ConfigError("webhook_url", reason)


def _wrong_with_url(url: str) -> str | None:
    if len(url) > _MOST_URL or _NOT_IN_URL.search(url):
        return f"must have up to {_MOST_URL} characters, no spaces, backslashes or control ones"
    try:
        parts = urlsplit(url)
        has_host = bool(parts.hostname) and parts.port != 0
    except ValueError:
        return _NO_URL
    if parts.scheme not in {"http", "https"} or not has_host:
        return _NO_URL
    if "#" in url:
        return "must have no fragment; it would not be sent"
    if "@" in parts.netloc:
        return "must not hold credentials; send them in headers"
    return None


def _check_secret(_config: object, _attribute: object, value: Any) -> None:
    if value is None:
        return
    if not isinstance(value, str):
        raise ConfigError("webhook_secret", f"must be a string, not {_kind(value)}")
    if not _is_secret(value):
        raise ConfigError("webhook_secret", "must be 'whsec_' and the base64 of 24 to 64 bytes")


def _is_secret(value: object) -> bool:
    if not isinstance(value, str) or not value.startswith(_SECRET):
        return False
    try:
        key = base64.b64decode(value.removeprefix(_SECRET), validate=True)
    except (binascii.Error, ValueError):
        return False
    return len(key) in _SECRET_BYTES


# Which events.

# It is looked through for each event.
_MOST_EVENTS: Final = 256


def _event_types(value: Iterable[str] | None) -> tuple[str, ...] | None:
    if value is None:
        return None
    if isinstance(value, str | bytes | dict) or not isinstance(value, Iterable):
        raise ConfigError(
            "events", f"must be a list of event types, not {_kind(cast(object, value))}"
        )
    types = dict.fromkeys(_event_type(place, name) for place, name in enumerate(value))
    if not types:
        raise ConfigError("events", "names no event type; leave it out to get all of them")
    if len(types) > _MOST_EVENTS:
        raise ConfigError("events", f"must name at most {_MOST_EVENTS}")
    return tuple(types)


def _event_type(place: int, name: str) -> str:
    try:
        check_event_type(name)
    except (TypeError, ValueError) as exc:
        raise ConfigError(f"events[{place}]", str(exc)) from None
    return str.__str__(name)


# Headers.

_MOST_HEADERS: Final = 64
_MOST_VALUE: Final = 4_096
# RFC 9110, sections 5.6.2 and 5.5: a token; visible characters with spaces between.
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")
_VALUE: Final = re.compile(r"(?:[!-~](?:[ -~]*[!-~])?)?")
_PROTOCOL: Final = frozenset({
    "connection", "content-encoding", "content-length", "content-type", "expect", "host",
    "keep-alive", "proxy", "te", "trailer", "transfer-encoding", "upgrade", "user-agent",
})  # fmt: skip
_PROTOCOLS: Final = ("proxy-", "webhook-")


def _headers(value: Mapping[str, str] | None) -> Mapping[str, str]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ConfigError("headers", f"must be an object, not {_kind(value)}")
    if len(value) > _MOST_HEADERS:
        raise ConfigError("headers", f"must be at most {_MOST_HEADERS}")
    seen: set[str] = set()
    for name, text in value.items():
        _check_header(name, text, seen)
    return {str.__str__(name): str.__str__(text) for name, text in value.items()}


def _check_header(name: object, value: object, seen: set[str]) -> None:
    if not isinstance(name, str) or not _TOKEN.fullmatch(name):
        reason = "a name must be up to 128 of letters, digits and !#$%&'*+-.^_`|~"
        raise ConfigError("headers", f"{reason}; that of number {len(seen) + 1} is not")
    field = f"headers.{name}"
    lower = name.lower()
    # Servers by CGI or WSGI give the application "_" for "-".
    dashed = lower.replace("_", "-")
    if dashed in _PROTOCOL or dashed.startswith(_PROTOCOLS):
        raise ConfigError(field, "is set by the protocol")
    if lower in seen:
        raise ConfigError(field, "is there twice; case makes no difference")
    seen.add(lower)
    if not isinstance(value, str):
        raise ConfigError(field, f"must be a string, not {_kind(value)}")
    if len(value) > _MOST_VALUE or not _VALUE.fullmatch(value):
        raise ConfigError(
            field, f"must be up to {_MOST_VALUE} printable ASCII characters, no space first or last"
        )


# Batching, options.

# Bytes of JSON.
_MOST_OPTIONS: Final = 16_384


def _batching(value: Batching | Mapping[str, Any] | None) -> Batching | None:
    if value is None or isinstance(value, Batching):
        return value
    given = _known("batching.", value, attrs.fields_dict(Batching))
    for key, number in given.items():
        one: dict[str, Any] = {key: number}
        field = f"batching.{key}"
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise ConfigError(field, f"must be a number, not {_kind(number)}")
        try:
            # One at a time, so that it is clear which one is refused.
            Batching(**one)
        except (ValueError, OverflowError) as exc:
            raise ConfigError(field, str(exc).removeprefix(f"{key} ")) from None
    return Batching(**given)


def _options(value: Mapping[str, Any] | None) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ConfigError("options", f"must be an object, not {_kind(value)}")
    try:
        # As they come back from a store; and a copy that nobody else changes.
        text = encode_json(_JSON, dict(value))
        if len(text) > _MOST_OPTIONS:
            raise ConfigError("options", f"must be at most {_MOST_OPTIONS} bytes of JSON")
        options: dict[str, Any] = _JSON.decode(text)
    except PayloadError as exc:
        field = f"options.{exc.path}" if exc.path else "options"
        raise ConfigError(field, exc.reason) from None
    return options


def _known(
    prefix: str, value: Mapping[str, Any], known: Iterable[str], *, keep: str = ""
) -> dict[str, Any]:
    """Return a mapping without the keys that are null, but for one; refuse those unknown."""
    if not isinstance(value, Mapping):
        field = prefix.rstrip(".") or _ALL
        raise ConfigError(field, f"must be an object, not {_kind(value)}")
    for key in value:
        if key not in known:
            name = key if isinstance(key, str) and key.isprintable() else ascii(key)
            words = ", ".join(known)
            raise ConfigError(f"{prefix}{name:.80}", f"is unknown; there are: {words}")
    return {key: each for key, each in value.items() if each is not None or key == keep}


# What may be shown.


def _shown_url(url: str | None) -> str | None:
    head, mark, _ = (url or "").partition("?")
    return f"{head}?{_MASK}" if mark else url


def _repr_url(url: str | None) -> str:
    return repr(_shown_url(url))


def _texts(value: object) -> Iterator[str]:
    """Yield the strings in a value of JSON, keys left out."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for each in cast("Mapping[str, object]", value).values():
            yield from _texts(each)
    elif isinstance(value, list):
        for each in cast("list[object]", value):
            yield from _texts(each)


def _masked(values: Mapping[str, Any]) -> dict[str, str]:
    return dict.fromkeys(values, _MASK)


def _repr_masked(values: Mapping[str, Any]) -> str:
    return repr(_masked(values))


def _default_method(config: CallbackConfig) -> str:
    return "sse" if config.webhook_url is None else "webhook"


@attrs.frozen
class RetiredSecret:
    """A secret that another one took over from.

    Attributes:
        secret: The secret.
        until: Seconds since 1970 up to which webhooks are signed with it too.
    """

    secret: str = attrs.field(repr=False)
    until: float


# Secrets that webhooks are signed with at the same time, besides the newest.
_MOST_RETIRED: Final = 4
_NO_RETIRED: Final = "must be a list of secrets, each with the seconds since 1970 it counts until"


def _retired(value: Iterable[RetiredSecret | Mapping[str, Any]]) -> tuple[RetiredSecret, ...]:
    try:
        found = tuple(
            each if isinstance(each, RetiredSecret) else RetiredSecret(**each) for each in value
        )
    except TypeError:
        raise ConfigError("retired_secrets", _NO_RETIRED) from None
    return found


def _check_retired(_config: object, _attribute: object, value: tuple[RetiredSecret, ...]) -> None:
    for each in value:
        until = cast("object", each.until)
        is_time = isinstance(until, int | float) and 0 <= until <= sys.float_info.max
        if isinstance(until, bool) or not is_time or not _is_secret(each.secret):
            raise ConfigError("retired_secrets", _NO_RETIRED)


@attrs.frozen(kw_only=True)
class CallbackConfig:
    """What a client asks for when it opens a session.

    It can be the field of a pydantic model, and so of a FastAPI request. ``model_dump()`` gives
    :meth:`shown` then. An error does not repeat what was given, as long as the model's other
    fields are right; ``hide_input_in_errors`` of the model covers those too.

    Attributes:
        webhook_url: Where webhooks go: ``http`` or ``https``, without credentials.
        webhook_secret: What they are signed with: ``whsec_`` and base64 of 24 to 64 bytes; one is
            made if there is none.
        delivery_method: ``"webhook"``, ``"websocket"``, ``"sse"``, ``"polling"`` or the name of a
            transport; by default ``"webhook"`` with a *webhook_url*, else ``"sse"``. Whatever it
            is, the session can be read.
        events: Event types that are kept; ``None`` for all.
        include_intermediate_results: Events that were emitted as intermediate ones are kept.
        timeout: Seconds an attempt may take, at most 300; ``None`` leaves it to the transport.
        retry_attempts: Attempts after the first one, at most 100; ``None`` leaves it to the
            transport.
        headers: Sent along with webhooks. Names as in HTTP, but for those the protocol sets;
            values of up to 4096 printable ASCII characters.
        ttl: Seconds of idleness after which the session expires, up to 366 days; ``None`` for
            never.
        batching: How many events go together; ``None`` for one at a time.
        compression: ``"gzip"``, for what is large enough; ``None`` for none.
        rate_limit: Requests per second to the destination, by each process that delivers.
        options: What a transport of your own wants to know, as JSON, up to 16 KiB; may hold
            secrets.
        retired_secrets: Secrets before *webhook_secret*, the newest first; set by
            :meth:`rotated`. No client can ask for them.

    Raises:
        ConfigError: Something can't be had; no value is repeated.
    """

    webhook_url: str | None = attrs.field(default=None, validator=_check_url, repr=_repr_url)
    webhook_secret: str | None = attrs.field(default=None, validator=_check_secret, repr=False)
    delivery_method: str = attrs.field(
        default=attrs.Factory(_default_method, takes_self=True), validator=_check_method
    )
    events: tuple[str, ...] | None = attrs.field(default=None, converter=_event_types)
    include_intermediate_results: bool = attrs.field(default=True, validator=_check_flag)
    timeout: float | None = attrs.field(default=None, validator=_TIMEOUT)
    retry_attempts: int | None = attrs.field(default=None, validator=_RETRIES)
    headers: Mapping[str, str] = attrs.field(
        factory=dict[str, str], converter=_headers, repr=_repr_masked, hash=False
    )
    ttl: float | None = attrs.field(default=3600.0, validator=_TTL)
    batching: Batching | None = None
    compression: Literal["gzip"] | None = attrs.field(default=None, validator=_check_compression)
    rate_limit: float | None = attrs.field(default=None, validator=_ABOVE_0)
    options: Mapping[str, Any] = attrs.field(factory=dict[str, Any], repr=_repr_masked, hash=False)
    retired_secrets: tuple[RetiredSecret, ...] = attrs.field(
        default=(), converter=_retired, validator=_check_retired, repr=False
    )

    def __attrs_post_init__(self) -> None:
        # No converters: pyright takes fields that have one for no properties of DeliveryConfig.
        object.__setattr__(self, "batching", _batching(self.batching))
        object.__setattr__(self, "options", _options(self.options))
        if self.delivery_method == "webhook" and self.webhook_url is None:
            raise ConfigError("webhook_url", "is required for the delivery method 'webhook'")

    @classmethod
    def of(cls, value: CallbackConfig | Mapping[str, Any] | None) -> CallbackConfig:
        """Return a configuration as such; of a mapping, each key that is null is left out.

        But for *ttl*, where null means never.

        Raises:
            ConfigError: Something can't be had, or there is a key that is unknown.
        """
        if isinstance(value, CallbackConfig):
            return value
        return cls._read(value, ASKED)

    @classmethod
    def _read(cls, value: Mapping[str, Any] | None, known: Iterable[str]) -> CallbackConfig:
        return cls(**_known("", {} if value is None else value, known, keep="ttl"))

    # Stored and shown.

    @classmethod
    def from_json(cls, text: bytes) -> CallbackConfig:
        """Read what :meth:`to_json` wrote.

        Raises:
            ConfigError: *text* is no such JSON.
        """
        try:
            value = _JSON.decode(text)
        except (ValueError, RecursionError):
            raise ConfigError(_ALL, "must be JSON in UTF-8") from None
        return cls._read(value, attrs.fields_dict(cls))

    def to_json(self) -> bytes:
        """Return all of it as JSON, secrets too: for a store."""
        return encode_json(_JSON, attrs.asdict(self))

    def shown(self) -> dict[str, Any]:
        """Return what a client may be shown, as JSON.

        The secret is left out; header values, options and the query of the URL are masked.
        """
        shown = attrs.asdict(self)
        del shown["webhook_secret"], shown["retired_secrets"]
        events = self.events
        return {
            **shown,
            "webhook_url": _shown_url(self.webhook_url),
            "events": None if events is None else list(events),
            "headers": _masked(self.headers),
            "options": _masked(self.options),
        }

    def mask(self, text: str) -> str:
        """Return *text*, for a log or an error, with ``***`` for each secret of this configuration.

        These are the webhook secret, the query of the URL and header values, those of at least 4
        characters; and words in header values, and texts in *options*, of at least 8.
        """
        secrets = self._secrets()
        if not secrets:
            return text
        # The longest first: one may be part of another.
        words = sorted(secrets, key=len, reverse=True)
        return re.sub("|".join(map(re.escape, words)), _MASK, text)

    def _secrets(self) -> set[str]:
        secrets = {value for value in self.headers.values() if len(value) >= 4}
        # "Bearer s3cr3t-t0ken": whoever answers may repeat the second word alone.
        for value in self.headers.values():
            secrets.update(word for word in value.split() if len(word) >= 8)
        secrets.update(each for each in _texts(self.options) if len(each) >= 8)
        for secret in self.secrets_at(0.0):
            secrets.update({secret, secret.removeprefix(_SECRET)})
        _, _, query = (self.webhook_url or "").partition("?")
        if len(query) >= 4:
            secrets.add(query)
        return secrets

    # Secrets.

    def secrets_at(self, now: float) -> tuple[str, ...]:
        """Return what webhooks are signed with at a time, seconds since 1970; the newest first."""
        newest = () if self.webhook_secret is None else (self.webhook_secret,)
        if not self.retired_secrets:
            return newest
        return (*newest, *(each.secret for each in self.retired_secrets if now < each.until))

    def rotated(self, secret: str, *, now: float, overlap: float) -> CallbackConfig:
        """Return it with another secret, beside which the one before counts for a while.

        Args:
            secret: The other one.
            now: Seconds since 1970.
            overlap: Seconds that webhooks are signed with both.

        Raises:
            ConfigError: *secret* can't be one.
        """
        kept = [each for each in self.retired_secrets if now < each.until]
        if self.webhook_secret is not None and overlap > 0:
            kept.insert(0, RetiredSecret(self.webhook_secret, now + overlap))
        others = [each for each in kept if each.secret != secret]
        return attrs.evolve(
            self, webhook_secret=secret, retired_secrets=tuple(others[:_MOST_RETIRED])
        )

    # What is kept.

    def names(self, event_type: str) -> bool:
        """Tell whether *events* is there and names a type."""
        return self.events is not None and event_type in self.events

    def wants(self, event_type: str, *, intermediate: bool = False) -> bool:
        """Tell whether an event of a type is kept."""
        if intermediate and not self.include_intermediate_results:
            return False
        return self.events is None or event_type in self.events

    # As a field of a pydantic model: its core schemas are plain dicts.

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: object) -> dict[str, Any]:
        del source, handler
        return {
            "type": "function-wrap",
            "function": {"type": "no-info", "function": _validate},
            "schema": _refusing(2),
            "serialization": {"type": "function-plain", "function": CallbackConfig.shown},
        }

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: object, handler: object) -> dict[str, Any]:
        del schema, handler
        return {
            "title": "CallbackConfig",
            "type": "object",
            "properties": {name: dict(each) for name, each in _PROPERTIES.items()},
            "additionalProperties": False,
        }


ASKED: Final = tuple(
    name for name in attrs.fields_dict(CallbackConfig) if name != "retired_secrets"
)
"""The keys that a client may ask for."""


# pydantic's errors tell where something is wrong by the keys that lead there, and repeat the value
# that stands there. So what was refused is validated again as {key: {key: reason}}, where each
# reason is refused in turn: it is all there is to repeat.


def _validate(value: Any, refuse: Callable[[object], Any]) -> Any:
    try:
        return CallbackConfig.of(value)
    except ConfigError as exc:
        return refuse(_where(exc.field, exc.reason))


def _where(field: str, reason: str) -> object:
    """Return ``{"batching": {"max_events": reason}}`` for ``batching.max_events``."""
    if field == _ALL:
        return reason
    for mark, key_of in ((".", str), ("[", _place)):
        key, found, rest = field.partition(mark)
        if found:
            return {key: {key_of(rest): reason}}
    return {field: reason}


def _place(text: str) -> int:
    return int(text.removesuffix("]"))


def _refuse(value: Any, into: Callable[[object], Any]) -> Any:
    if isinstance(value, str):
        raise ValueError(value)
    return into(value)


def _refusing(depth: int) -> dict[str, Any]:
    inside = _refusing(depth - 1) if depth else {"type": "any"}
    return {
        "type": "function-wrap",
        "function": {"type": "no-info", "function": _refuse},
        "schema": {"type": "dict", "keys_schema": {"type": "any"}, "values_schema": inside},
    }


# JSON Schema, for OpenAPI.


def _or_null(**schema: Any) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}], "default": None}


_PROPERTIES: Final[Mapping[str, Mapping[str, Any]]] = {
    "webhook_url": _or_null(type="string", format="uri", maxLength=_MOST_URL),
    "webhook_secret": _or_null(type="string", format="password", pattern=f"^{_SECRET}"),
    "delivery_method": {
        "type": "string",
        "minLength": 1,
        "maxLength": _MOST_METHOD,
        "description": "webhook, websocket, sse, polling or the name of a transport; by default "
        "webhook with a webhook_url, else sse.",
    },
    "events": _or_null(type="array", items={"type": "string"}, minItems=1, maxItems=_MOST_EVENTS),
    "include_intermediate_results": {"type": "boolean", "default": True},
    "timeout": _or_null(type="number", exclusiveMinimum=0, maximum=300),
    "retry_attempts": _or_null(type="integer", minimum=0, maximum=100),
    "headers": {
        "type": "object",
        "additionalProperties": {"type": "string", "maxLength": _MOST_VALUE},
        "maxProperties": _MOST_HEADERS,
    },
    "ttl": {**_or_null(type="number", exclusiveMinimum=0, maximum=31_622_400), "default": 3600.0},
    "batching": _or_null(
        type="object",
        properties={
            "max_events": {"type": "integer", "minimum": 1, "default": Batching().max_events},
            "max_bytes": {"type": "integer", "minimum": 1, "default": Batching().max_bytes},
            "max_delay": {"type": "number", "minimum": 0, "default": Batching().max_delay},
        },
        additionalProperties=False,
    ),
    "compression": _or_null(const="gzip"),
    "rate_limit": _or_null(type="number", exclusiveMinimum=0),
    "options": {"type": "object", "additionalProperties": True},
}
