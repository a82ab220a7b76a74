"""What a client asks for."""

import base64
import copy
import json
import pickle
import subprocess
import sys
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import attrs
import fastapi
import pydantic
import pytest
from hypothesis import given, strategies as st
from starlette.testclient import TestClient

from callbackkit.delivery.policy import Batching
from callbackkit.delivery.transport import DeliveryConfig
from callbackkit.errors import ConfigError
from callbackkit.sessions.config import ASKED, CallbackConfig, RetiredSecret

URL = "https://example.com/hook"
SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()


def refused(given: Any) -> tuple[str, str]:
    """Return field and reason of the error for what a client gave."""
    with pytest.raises(ConfigError) as caught:
        CallbackConfig.of(given)
    return caught.value.field, caught.value.reason


# Defaults.


def test_nothing_at_all_is_a_configuration() -> None:
    config = CallbackConfig()
    assert CallbackConfig.of(None) == CallbackConfig.of({}) == config
    assert CallbackConfig.of(config) is config
    assert attrs.asdict(config) == {
        "webhook_url": None,
        "webhook_secret": None,
        "delivery_method": "sse",
        "events": None,
        "include_intermediate_results": True,
        "timeout": None,
        "retry_attempts": None,
        "headers": {},
        "ttl": 3600.0,
        "batching": None,
        "compression": None,
        "rate_limit": None,
        "options": {},
        "retired_secrets": (),
    }


def test_who_gives_a_webhook_url_wants_webhooks() -> None:
    assert CallbackConfig(webhook_url=URL).delivery_method == "webhook"
    assert CallbackConfig(webhook_url=URL, delivery_method="polling").delivery_method == "polling"


def test_webhooks_need_a_url() -> None:
    assert refused({"delivery_method": "webhook"}) == (
        "webhook_url",
        "is required for the delivery method 'webhook'",
    )


def test_null_is_as_good_as_nothing_but_for_the_ttl() -> None:
    every = dict.fromkeys(ASKED)
    assert CallbackConfig.of(every) == CallbackConfig(ttl=None)
    assert CallbackConfig(headers=None, options=None) == CallbackConfig()
    assert CallbackConfig.of({"batching": {"max_events": None}}).batching == Batching()


def test_a_configuration_is_what_a_delivery_goes_by() -> None:
    config: DeliveryConfig = CallbackConfig(timeout=3, options={"to": "me"})
    assert (config.timeout, config.options) == (3, {"to": "me"})


def test_equal_configurations_have_one_hash() -> None:
    one = CallbackConfig(headers={"X-A": "1"}, options={"a": [1]}, events=["a"])
    two = CallbackConfig(headers={"X-A": "1"}, options={"a": [1]}, events=("a",))
    assert one == two
    assert hash(one) == hash(two)


# Keys.


def test_a_key_that_is_unknown_is_named() -> None:
    field, reason = refused({"webhok_url": URL})
    assert field == "webhok_url"
    assert reason.startswith("is unknown; there are: webhook_url, webhook_secret, ")
    assert refused({"batching": {"events": 1}}) == (
        "batching.events",
        "is unknown; there are: max_events, max_bytes, max_delay",
    )


def test_odd_keys_are_shown_in_one_short_line() -> None:
    assert refused({"a\nb": 1})[0] == r"'a\nb'"
    assert refused({1: 1})[0] == "1"
    assert refused({"k" * 1_000: None})[0] == "k" * 80


@pytest.mark.parametrize("value", [[], "sse", 1, b"{}"])
def test_only_an_object_is_a_configuration(value: Any) -> None:
    assert refused(value) == ("config", f"must be an object, not {type(value).__name__}")


# Values.

GOOD: Mapping[str, list[Any]] = {
    "delivery_method": ["sse", "websocket", "polling", "slack", "x" * 64],
    "webhook_url": [
        URL,
        "http://localhost:8000",
        "https://[::1]:80/",
        "https://bücher.example/ü?a=@b",
        "HTTPS://EXAMPLE.COM",
    ],
    "webhook_secret": [
        SECRET,
        "whsec_" + base64.b64encode(bytes(24)).decode(),
        "whsec_" + base64.b64encode(bytes(64)).decode(),
    ],
    "include_intermediate_results": [True, False],
    "timeout": [0.001, 1, 300],
    "retry_attempts": [0, 100],
    "ttl": [None, 0.5, 31_622_400],
    "rate_limit": [0.1, 1_000],
    "compression": ["gzip"],
}
NUMBER = "must be a finite number above 0"
TTL = "must be seconds above 0, at most 366 days"
NO_NUMBER: list[Any] = ["1", True, [], {}, b"1"]
NOT_ABOVE_0: list[Any] = [0, -1, float("nan"), float("inf"), 10**400]
URL_WORDS = "must be a URL such as 'https://example.com/hook'"
NOT_IN_URL = "must have up to 2048 characters, no spaces, backslashes or control ones"
NO_SECRET = "must be 'whsec_' and the base64 of 24 to 64 bytes"
BAD: list[tuple[str, list[Any], str]] = [
    ("delivery_method", ["", "x" * 65, "a\nb", "\ud800"], "must be a name such as"),
    ("delivery_method", [1, True, []], "must be a string, not "),
    ("webhook_url", [1, ["x"], b"https://example.com"], "must be a string, not "),
    (
        "webhook_url",
        [
            "",
            "example.com",
            "ftp://example.com",
            "javascript:alert(1)",
            "file:///etc/passwd",
            "https://",
            "https:///path",
            "https://:80/",
            "https://[::1",
            "https://a:b/",
            "https://a:99999/",
            "https://a:0/",
            "https:example.com",
            "//example.com",
        ],
        URL_WORDS,
    ),
    (
        "webhook_url",
        [f"{URL} ", f" {URL}", f"{URL}\n", "https://a\tb", "https://a\\@b", "https://a/\x7f",
         "https://a/\ud800", f"{URL}?{'x' * 2048}"],
        NOT_IN_URL,
    ),
    ("webhook_url", [f"{URL}#", f"{URL}#top"], "must have no fragment"),
    ("webhook_url", ["https://me:pw@a/", "https://me@a/", "https://@a/"], "must not hold cred"),
    ("webhook_secret", [1, b"whsec_"], "must be a string, not "),
    (
        "webhook_secret",
        [
            "",
            "whsec_",
            SECRET.removeprefix("whsec_"),
            SECRET[:-1],
            SECRET + "\n",
            SECRET.replace("A", "*"),
            "whsec_é",
            "whsec_" + base64.b64encode(bytes(23)).decode(),
            "whsec_" + base64.b64encode(bytes(65)).decode(),
        ],
        NO_SECRET,
    ),
    ("include_intermediate_results", [0, 1, "true", "no", []], "must be true or false, not "),
    ("timeout", [0, -1, 300.1, float("nan"), float("inf")], "must be seconds above 0, at most 300"),
    ("timeout", NO_NUMBER, "must be seconds above 0, at most 300, not "),
    ("retry_attempts", [-1, 101], "must be a whole number from 0 to 100"),
    ("retry_attempts", [1.0, True, "1"], "must be a whole number from 0 to 100, not "),
    ("ttl", [*NOT_ABOVE_0, 31_622_401, 1e308], TTL),
    ("ttl", NO_NUMBER, f"{TTL}, not "),
    ("rate_limit", NOT_ABOVE_0, NUMBER),
    ("rate_limit", NO_NUMBER, f"{NUMBER}, not "),
    ("compression", ["br", "", "GZIP", True, 1, ["gzip"]], "must be 'gzip' or null"),
    ("events", ["progress", b"progress", 1, {"progress": True}], "must be a list of event types"),
    ("events", [[f"x{n}" for n in range(257)]], "must name at most 256"),
    ("events", [[], ()], "names no event type; leave it out to get all of them"),
    ("headers", ["X-A: 1", 1, [("X-A", "1")]], "must be an object, not "),
    ("headers", [{f"X-{n}": "1" for n in range(65)}], "must be at most 64"),
    ("batching", [True, 10, "on", []], "must be an object, not "),
    ("options", ["a", 1, [1]], "must be an object, not "),
]  # fmt: skip


@pytest.mark.parametrize(("field", "values"), GOOD.items())
def test_what_fits_is_taken_as_it_is(field: str, values: list[Any]) -> None:
    for value in values:
        assert getattr(CallbackConfig.of({field: value}), field) == value


@pytest.mark.parametrize(("field", "values", "words"), BAD)
def test_what_does_not_fit_is_refused_by_field_and_reason(
    field: str, values: list[Any], words: str
) -> None:
    for value in values:
        where, reason = refused({field: value})
        assert (where, reason[: len(words)]) == (field, words)


@pytest.mark.parametrize(("field", "values", "words"), BAD)
def test_a_value_is_checked_again_when_a_copy_is_made(
    field: str, values: list[Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{field}: {words[:5]}"):
        attrs.evolve(CallbackConfig(), **{field: values[0]})


# Events.


def names(*some: str) -> Iterator[str]:
    yield from some


def test_event_types_are_kept_once_and_in_order() -> None:
    assert CallbackConfig(events=["b", "a", "b"]).events == ("b", "a")
    assert CallbackConfig(events=names("b", "a")).events == ("b", "a")
    assert CallbackConfig.of({"events": {"a"}}).events == ("a",)


def test_a_name_that_is_no_event_type_is_told_by_its_place() -> None:
    field, reason = refused({"events": ["progress", "Tool Use"]})
    assert field == "events[1]"
    assert reason.startswith("'Tool Use' is no event type")
    assert refused({"events": [1]})[0] == "events[0]"
    assert refused({"events": ["callbackkit.gap"]})[0] == "events[0]"


def test_without_a_list_every_event_is_wanted_and_none_is_named() -> None:
    config = CallbackConfig()
    assert config.wants("progress")
    assert config.wants("progress", intermediate=True)
    assert not config.names("progress")


def test_with_a_list_what_it_names_is_wanted() -> None:
    config = CallbackConfig(events=["progress"])
    assert config.wants("progress")
    assert config.names("progress")
    assert not config.wants("progress.more")
    assert not config.names("error")


def test_intermediate_results_can_be_left_out() -> None:
    config = CallbackConfig(events=["progress"], include_intermediate_results=False)
    assert config.wants("progress")
    assert not config.wants("progress", intermediate=True)
    assert not CallbackConfig(include_intermediate_results=False).wants("x", intermediate=True)


# Headers.


@pytest.mark.parametrize(
    ("name", "value"),
    [("X-Foo", "a b"), ("authorization", "Bearer x"), ("a!#$%&'*+.^_`|~9-", ""), ("X", "x" * 4096)],
)
def test_headers_are_taken_as_they_are(name: str, value: str) -> None:
    assert CallbackConfig(headers={name: value}).headers == {name: value}


@pytest.mark.parametrize(
    "name",
    [
        "Host",
        "CONTENT-LENGTH",
        "transfer-encoding",
        "Connection",
        "Keep-Alive",
        "TE",
        "Trailer",
        "Upgrade",
        "Expect",
        "Proxy-Authorization",
        "proxy-",
        "Content-Type",
        "content-encoding",
        "User-Agent",
        "Webhook-Id",
        "webhook-signature",
        "Proxy",
        # Behind CGI and WSGI these are the same.
        "Webhook_Id",
        "webhook_signature",
        "Transfer_Encoding",
        "CONTENT_LENGTH",
        "proxy_authorization",
    ],
)
def test_headers_of_the_protocol_can_not_be_set(name: str) -> None:
    assert refused({"headers": {"X-A": "1", name: "x"}}) == (
        f"headers.{name}",
        "is set by the protocol",
    )


@pytest.mark.parametrize("name", ["", "a b", "a:", "a\r\nb", "é", "a\n", "x" * 129, 1, None])
def test_a_name_of_a_header_is_a_token(name: Any) -> None:
    field, reason = refused({"headers": {"X-A": "1", name: "secret"}})
    assert field == "headers"
    assert reason.endswith("that of number 2 is not")


@pytest.mark.parametrize(
    "value",
    ["a\r\nX-Evil: 1", "a\n", "a\r", "\x00", "a\tb", "\x7f", " a", "a ", "é", "\ud800", "x" * 4097],
)
def test_a_value_of_a_header_is_printable_ascii(value: str) -> None:
    field, reason = refused({"headers": {"X-Foo": value}})
    assert field == "headers.X-Foo"
    assert reason.startswith("must be up to 4096 printable ASCII characters")
    assert repr(value)[1:-1] not in f"{field} {reason}"


@pytest.mark.parametrize("value", [1, None, True, ["a"]])
def test_a_value_of_a_header_is_a_string(value: Any) -> None:
    assert refused({"headers": {"X-Foo": value}})[0] == "headers.X-Foo"


def test_case_makes_no_second_header() -> None:
    assert refused({"headers": {"X-A": "1", "x-a": "2"}}) == (
        "headers.x-a",
        "is there twice; case makes no difference",
    )


def test_what_was_given_is_copied() -> None:
    headers, options = {"X-A": "1"}, {"a": [1]}
    config = CallbackConfig(headers=headers, options=options)
    headers["X-A"] = "2"
    options["a"].append(2)
    assert (config.headers, config.options) == ({"X-A": "1"}, {"a": [1]})


def test_what_was_given_is_not_changed() -> None:
    given = {"events": ["b", "b"], "headers": {"X-A": "1"}, "ttl": None, "timeout": None}
    before = copy.deepcopy(given)
    CallbackConfig.of(given)
    assert given == before


def test_any_mapping_will_do() -> None:
    given = MappingProxyType(
        {
            "headers": MappingProxyType({"X-A": "1"}),
            "options": MappingProxyType({"a": 1}),
            "batching": MappingProxyType({"max_events": 2}),
        }
    )
    config = CallbackConfig.of(given)
    assert config == CallbackConfig.of({key: dict(value) for key, value in given.items()})


# Batching, options.


def test_batching_is_read_from_an_object() -> None:
    config = CallbackConfig.of({"batching": {"max_events": 2, "max_delay": 0}})
    assert config.batching == Batching(max_events=2, max_delay=0)
    assert CallbackConfig(batching=Batching(max_events=2)).batching == Batching(max_events=2)
    assert CallbackConfig.of({"batching": {}}).batching == Batching()


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("max_events", 0, "must be "),
        ("max_events", 1.5, "must be "),
        ("max_bytes", -1, "must be "),
        ("max_delay", float("nan"), "must be "),
        ("max_delay", 10**400, "must be a number"),
        ("max_delay", "1", "must be a number, not str"),
        ("max_events", True, "must be a number, not bool"),
    ],
)
def test_what_batching_refuses_is_named(key: str, value: Any, words: str) -> None:
    field, reason = refused({"batching": {"max_delay": 1, key: value}})
    assert field == f"batching.{key}"
    assert reason.startswith(words)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"a": {"b": [float("nan")]}}, "options.a.b[0]"),
        ({"a": object()}, "options.a"),
        ({1: 2}, "options"),
    ],
)
def test_options_are_json(options: Any, field: str) -> None:
    assert refused({"options": options})[0] == field


def test_an_error_of_options_carries_none_of_them() -> None:
    with pytest.raises(ConfigError) as caught:
        CallbackConfig(options={"a": "s3cret\ud800"})
    assert str(caught.value) == "options.a: has half of a surrogate pair"
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


# Stored.

headers = st.dictionaries(
    st.from_regex(r"x-[a-z0-9]{1,8}", fullmatch=True),
    st.from_regex(r"([!-~]([ -~]{0,20}[!-~])?)?", fullmatch=True),
    max_size=3,
)
options = st.dictionaries(
    st.text(max_size=5),
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner),
        max_leaves=8,
    ),
    max_size=3,
)


def secret_of(key: bytes) -> str:
    return "whsec_" + base64.b64encode(key).decode()


above_0 = st.floats(min_value=0, exclude_min=True, allow_nan=False, allow_infinity=False)
configs = st.builds(
    CallbackConfig,
    webhook_url=st.none() | st.just(URL) | st.just(f"{URL}?token=abc"),
    webhook_secret=st.none()
    | st.binary(min_size=24, max_size=64).map(secret_of),
    delivery_method=st.sampled_from(["sse", "websocket", "polling", "slack"]),
    events=st.none()
    | st.lists(st.from_regex(r"[a-z]{1,5}(\.[a-z]{1,5})?", fullmatch=True), min_size=1),
    include_intermediate_results=st.booleans(),
    timeout=st.none() | st.floats(min_value=0.001, max_value=300),
    retry_attempts=st.none() | st.integers(0, 100),
    headers=headers,
    ttl=st.none() | st.floats(min_value=0, max_value=31_622_400, exclude_min=True),
    batching=st.none()
    | st.builds(Batching, max_events=st.integers(1, 1_000), max_delay=st.floats(0, 60)),
    compression=st.sampled_from([None, "gzip"]),
    rate_limit=st.none() | above_0,
    options=options,
)  # fmt: skip


@given(configs)
def test_a_configuration_comes_back_from_a_store(config: CallbackConfig) -> None:
    assert CallbackConfig.from_json(config.to_json()) == config


@given(configs)
def test_a_configuration_can_be_copied_and_sent_to_another_process(config: CallbackConfig) -> None:
    assert copy.deepcopy(config) == pickle.loads(pickle.dumps(config)) == config


@pytest.mark.parametrize("text", [b"", b"{", b"\xff", b'{"ttl":NaN}', b"[" * 200_000])
def test_what_is_no_json_is_no_configuration(text: bytes) -> None:
    with pytest.raises(ConfigError, match=r"^config: must be JSON in UTF-8"):
        CallbackConfig.from_json(text)


def test_what_is_stored_is_validated() -> None:
    with pytest.raises(ConfigError, match=r"^config: must be an object, not list"):
        CallbackConfig.from_json(b"[]")
    with pytest.raises(ConfigError, match=r"^more: is unknown"):
        CallbackConfig.from_json(b'{"more":1}')


# Shown.

FULL = CallbackConfig(
    webhook_url=f"{URL}?token=query-s3cret",
    webhook_secret=SECRET,
    events=["progress"],
    headers={"Authorization": "Bearer header-s3cret"},
    batching=Batching(max_events=2),
    options={"token": "option-s3cret"},
)


def test_a_client_is_shown_no_secrets() -> None:
    assert FULL.shown() == {
        "webhook_url": f"{URL}?***",
        "delivery_method": "webhook",
        "events": ["progress"],
        "include_intermediate_results": True,
        "timeout": None,
        "retry_attempts": None,
        "headers": {"Authorization": "***"},
        "ttl": 3600.0,
        "batching": {"max_events": 2, "max_bytes": 1_048_576, "max_delay": 1.0},
        "compression": None,
        "rate_limit": None,
        "options": {"token": "***"},
    }


@given(configs)
def test_what_is_shown_is_json(config: CallbackConfig) -> None:
    shown = config.shown()
    assert json.loads(json.dumps(shown)) == shown


def test_no_secret_is_in_a_repr() -> None:
    text = f"{FULL!r} {FULL} {[FULL]}"
    assert "s3cret" not in text
    assert SECRET[6:] not in text
    assert "whsec_" not in text
    assert "https://example.com/hook?***" in text
    assert "{'Authorization': '***'}" in text
    assert "webhook_url=None" in repr(CallbackConfig())


@pytest.mark.parametrize("field", attrs.fields_dict(CallbackConfig))
def test_no_text_that_was_given_is_in_an_error(field: str) -> None:
    """But for event types; who mixes up two fields tells no secret to a log."""
    if field == "delivery_method":
        value: Any = "s3cret\n"
    else:
        value = ["s3cret"] if field == "webhook_url" else "s3cret"
    with pytest.raises(ConfigError) as caught:
        CallbackConfig.of({field: value})
    assert "s3cret" not in f"{caught.value} {caught.value!r}"
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        (f"signed with {SECRET}", "signed with ***"),
        (f"key {SECRET[6:]}!", "key ***!"),
        ("sent Bearer header-s3cret", "sent ***"),
        ("wrong token header-s3cret.", "wrong token ***."),
        (f"POST {URL}?token=query-s3cret failed", f"POST {URL}?*** failed"),
        ("Bearer of news", "Bearer of news"),
        ("", ""),
    ],
)
def test_secrets_are_masked_in_a_text(text: str, masked: str) -> None:
    assert FULL.mask(text) == masked


def test_short_values_are_no_secrets() -> None:
    config = CallbackConfig(
        webhook_url=f"{URL}?a=1", headers={"X-A": "abc", "X-B": "abcd", "X-C": "one two"}
    )
    assert config.mask("abc one abcd a=1") == "abc one *** a=1"


def test_the_longest_secret_is_masked_first() -> None:
    config = CallbackConfig(headers={"X-A": "secret", "X-B": "secret-and-more", "X-C": "a.*b"})
    assert config.mask("secret-and-more secret a.*b axxb") == "*** *** *** axxb"


def test_without_secrets_a_text_stays() -> None:
    assert CallbackConfig().mask("a text") == "a text"


# As a field of a pydantic model.


class Request(pydantic.BaseModel):
    message: str = ""
    callback_config: CallbackConfig | None = None


def test_a_model_takes_an_object() -> None:
    given = {"events": ["progress"], "batching": {"max_events": 2}, "ttl": None}
    expected = CallbackConfig.of(given)
    assert Request.model_validate({"callback_config": given}).callback_config == expected
    text = json.dumps({"callback_config": given})
    assert Request.model_validate_json(text).callback_config == expected
    assert Request(callback_config=expected).callback_config is expected
    assert Request().callback_config is None


@pytest.mark.parametrize(
    ("given", "where", "words"),
    [
        ({"timeout": 0}, ("timeout",), "must be seconds above 0"),
        ({"webhok": 1}, ("webhok",), "is unknown; there are: "),
        ({"batching": {"max_events": 0}}, ("batching", "max_events"), "must be a whole number"),
        ({"batching": 1}, ("batching",), "must be an object, not int"),
        ({"events": ["a", "B"]}, ("events", 1), "'B' is no event type"),
        ({"headers": {"Host": "a"}}, ("headers", "Host"), "is set by the protocol"),
        ({"headers": {"X.A": "\n"}}, ("headers", "X.A"), "must be up to 4096 printable"),
        ({"options": {"a": {"b": [{1}]}}}, ("options", "a.b[0]"), "set can't be written as JSON"),
        ({"delivery_method": "webhook"}, ("webhook_url",), "is required"),
        ("sse", (), "must be an object, not str"),
    ],
)
def test_an_error_of_a_model_names_the_place(given: Any, where: tuple[Any], words: str) -> None:
    with pytest.raises(pydantic.ValidationError) as caught:
        Request.model_validate({"callback_config": given})
    (error,) = caught.value.errors()
    assert error["type"] == "value_error"
    assert error["loc"] == ("callback_config", *where)
    assert error["msg"].startswith(f"Value error, {words}")


@pytest.mark.parametrize(
    "given",
    [
        {"webhook_secret": "whsec_s3cret"},
        {"webhook_url": "https://me:s3cret@example.com"},
        {"headers": {"X-A": "s3cret\n"}},
        {"options": {"a": "s3cret"}, "timeout": "s3cret"},
        "s3cret",
    ],
)
def test_an_error_of_a_model_repeats_no_secret(given: Any) -> None:
    with pytest.raises(pydantic.ValidationError) as caught:
        Request.model_validate({"callback_config": given})
    assert "s3cret" not in f"{caught.value} {caught.value.errors()!r} {caught.value.json()}"


def test_a_model_dumps_what_may_be_shown() -> None:
    request = Request(callback_config=FULL)
    assert request.model_dump() == {"message": "", "callback_config": FULL.shown()}
    assert json.loads(request.model_dump_json()) == request.model_dump()
    assert "s3cret" not in repr(request)


def test_a_model_can_be_copied_and_sent_to_another_process() -> None:
    request = Request(callback_config=FULL)
    assert request.model_copy(deep=True) == pickle.loads(pickle.dumps(request)) == request


@pytest.mark.parametrize("mode", ["validation", "serialization"])
def test_a_model_has_a_schema_that_names_every_key(mode: Any) -> None:
    class Whole(pydantic.BaseModel):
        config: CallbackConfig

    schema = Whole.model_json_schema(mode=mode)["properties"]["config"]
    assert set(schema["properties"]) == set(ASKED)
    assert set(ASKED) == set(attrs.fields_dict(CallbackConfig)) - {"retired_secrets"}
    assert schema["additionalProperties"] is False
    batching = schema["properties"]["batching"]["anyOf"][0]["properties"]
    assert {key: each["default"] for key, each in batching.items()} == attrs.asdict(Batching())
    defaults = {key: each.get("default") for key, each in schema["properties"].items()}
    shown = CallbackConfig().shown()
    for key in defaults.keys() - {"delivery_method", "headers", "options", "webhook_secret"}:
        assert defaults[key] == shown[key]


def test_a_request_of_fastapi_takes_a_configuration() -> None:
    app = fastapi.FastAPI()

    @app.post("/chat")
    def chat(request: Request) -> dict[str, Any]:
        config = CallbackConfig.of(request.callback_config)
        return {"method": config.delivery_method}

    client = TestClient(app)
    body = {"message": "hi", "callback_config": {"webhook_url": URL}}
    assert client.post("/chat", json=body).json() == {"method": "webhook"}
    refusal = client.post("/chat", json={"callback_config": {"headers": {"Host": "s3cret"}}})
    assert refusal.status_code == 422
    (detail,) = refusal.json()["detail"]
    assert detail["loc"] == ["body", "callback_config", "headers", "Host"]
    assert detail["msg"] == "Value error, is set by the protocol"
    assert "s3cret" not in refusal.text
    openapi = client.get("/openapi.json").json()
    assert "webhook_url" in json.dumps(openapi["components"]["schemas"]["Request"])


def test_pydantic_is_not_imported() -> None:
    program = "import sys, callbackkit.sessions.config; print('pydantic' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"


def test_texts_of_options_are_masked_wherever_they_stand() -> None:
    config = CallbackConfig(
        options={"token": "s3cr3t-t0ken", "to": [{"channel": "general-chat"}, "abc"], "n": 5}
    )
    text = "s3cr3t-t0ken for general-chat, abc, token"
    assert config.mask(text) == "*** for ***, abc, token"


def test_options_have_a_bound() -> None:
    assert CallbackConfig(options={"text": "x" * 16_000}).options["text"]
    with pytest.raises(ConfigError, match=r"^options: must be at most 16384 bytes of JSON$"):
        CallbackConfig(options={"text": "x" * 16_384})


# Secrets that are replaced.

OTHER = "whsec_" + base64.b64encode(bytes(range(32, 64))).decode()


def secret_number(n: int) -> str:
    return "whsec_" + base64.b64encode(bytes([n]) * 24).decode()


def test_both_secrets_count_until_the_overlap_is_over() -> None:
    config = FULL.rotated(OTHER, now=100.0, overlap=10.0)
    assert FULL.secrets_at(100.0) == (SECRET,)
    assert config.secrets_at(100.0) == config.secrets_at(109.9) == (OTHER, SECRET)
    assert config.secrets_at(110.0) == (OTHER,)
    assert config.webhook_secret == OTHER
    assert config.retired_secrets == (RetiredSecret(SECRET, 110.0),)
    assert attrs.evolve(config, webhook_secret=SECRET, retired_secrets=()) == FULL


def test_without_an_overlap_the_one_before_counts_no_more() -> None:
    assert FULL.rotated(OTHER, now=100.0, overlap=0).secrets_at(100.0) == (OTHER,)


def test_the_first_secret_takes_over_from_none() -> None:
    config = CallbackConfig().rotated(SECRET, now=100.0, overlap=10.0)
    assert CallbackConfig().secrets_at(100.0) == ()
    assert (config.webhook_secret, config.retired_secrets) == (SECRET, ())


def test_the_same_secret_once_more_changes_nothing() -> None:
    config = FULL.rotated(OTHER, now=100.0, overlap=10.0)
    assert config.rotated(OTHER, now=101.0, overlap=50.0) == config


def test_a_secret_that_comes_back_is_not_retired_too() -> None:
    config = FULL.rotated(OTHER, now=100.0, overlap=10.0).rotated(SECRET, now=101.0, overlap=10.0)
    assert config.secrets_at(101.0) == (SECRET, OTHER)


def test_the_newest_four_are_kept_beside_it_and_none_whose_time_is_over() -> None:
    config = FULL.rotated(OTHER, now=0.0, overlap=1.0)
    for n in range(6):
        config = config.rotated(secret_number(n), now=10.0 + n, overlap=100.0)
    assert config.secrets_at(16.0) == tuple(secret_number(n) for n in (5, 4, 3, 2, 1))
    late = config.rotated(SECRET, now=113.5, overlap=1.0)
    assert late.secrets_at(113.5) == (SECRET, *map(secret_number, (5, 4, 3)))


def test_those_whose_time_is_over_take_no_place_of_one_that_counts() -> None:
    config = FULL.rotated(OTHER, now=0.0, overlap=1000.0)
    for n in range(4):
        config = config.rotated(secret_number(n), now=10.0 * n, overlap=1.0)
    assert config.secrets_at(40.0) == (secret_number(3), SECRET)


@pytest.mark.parametrize("secret", ["", "whsec_", "s3cret", "whsec_s3cret", 7, b"s3cret"], ids=repr)
def test_what_can_be_no_secret_takes_over_from_nothing(secret: Any) -> None:
    with pytest.raises(ConfigError, match=r"^webhook_secret: must be ") as caught:
        FULL.rotated(secret, now=0.0, overlap=1.0)
    assert "s3cret" not in f"{caught.value!r}"


def test_retired_secrets_are_stored_and_neither_shown_nor_logged() -> None:
    config = FULL.rotated(OTHER, now=100.0, overlap=10.0)
    assert CallbackConfig.from_json(config.to_json()) == config
    assert hash(CallbackConfig.from_json(config.to_json())) == hash(config)
    assert config.shown() == FULL.shown()
    for secret in (SECRET, OTHER):
        assert (
            secret.removeprefix("whsec_")
            not in f"{config!r} {config.shown()} {config.retired_secrets}"
        )
        # Whose time is over, too.
        assert config.mask(f"not {secret}, {secret[6:]}!") == "not ***, ***!"


def test_what_was_stored_before_there_were_any_can_be_read() -> None:
    stored = json.loads(FULL.to_json())
    del stored["retired_secrets"]
    assert CallbackConfig.from_json(json.dumps(stored).encode()) == FULL


@pytest.mark.parametrize("given", [[{"secret": SECRET, "until": 1e10}], [], None, "x"])
def test_no_client_can_ask_for_retired_secrets(given: Any) -> None:
    field, reason = refused({"retired_secrets": given})
    assert (field, reason[:10]) == ("retired_secrets", "is unknown")
    assert "retired_secrets" not in reason
    with pytest.raises(pydantic.ValidationError, match="is unknown"):
        Request.model_validate({"callback_config": {"retired_secrets": given}})


@pytest.mark.parametrize(
    "stored",
    [
        5,
        True,
        "x",
        {"a": 1},
        [5],
        [[]],
        [{}],
        [{"secret": SECRET}],
        [{"secret": SECRET, "until": 1.0, "more": 2}],
        *([{"secret": SECRET, "until": until}] for until in (None, True, "1", -1.0)),
        *([{"secret": secret, "until": 1.0}] for secret in (None, "s3cret", 7)),
    ],
    ids=repr,
)
def test_retired_secrets_that_were_broken_in_the_store_are_an_error(stored: Any) -> None:
    text = json.dumps(json.loads(FULL.to_json()) | {"retired_secrets": stored}).encode()
    with pytest.raises(ConfigError, match=r"^retired_secrets: must be a list") as caught:
        CallbackConfig.from_json(text)
    assert "s3cret" not in f"{caught.value!r} {caught.value.__context__!r}"
