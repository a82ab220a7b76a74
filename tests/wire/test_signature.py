"""Standard Webhooks: the published vectors, any input, and the reference library beside it."""

import base64
import hashlib
import hmac
import subprocess
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import assume, example, given, strategies as st
from standardwebhooks import Webhook, WebhookVerificationError

from callbackkit.errors import SignatureError
from callbackkit.wire.signature import Signer, public_key, sign, verify

# The vectors that the reference libraries and the server of Svix have in their tests.
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
ID = "msg_p5jXN8AQM9LWM0D4loKWxJek"
TIME = 1614265330
BODY = b'{"test": 2432232314}'
SIGNED = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
PAIR = "6Xb/dCcHpPea21PS1N9VY/NZW723CEc77N4rJCubMbfVKIDij2HKpMKkioLlX0dRqSKJp4AJ6p9lMicMFs6Kvg=="
PRIVATE = f"whsk_{PAIR}"
PUBLIC = "whpk_" + base64.b64encode(base64.b64decode(PAIR)[32:]).decode()
SIGNED_A = (
    "v1a,hnO3f9T8Ytu9HwrXslvumlUpqtNVqkhqw/enGzPCXe5BdqzCInXqYXFymVJaA7AZdpXwVLPo3mNl8EM+m7TBAg=="
)
OTHER = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"


def headers_of(signature: str = SIGNED, **others: str) -> dict[str, str]:
    headers = {"webhook-id": ID, "webhook-timestamp": str(TIME), "webhook-signature": signature}
    return headers | {f"webhook-{name}": value for name, value in others.items()}


def is_right(
    headers: Mapping[str, Any], secrets: str | list[str] = SECRET, body: bytes = BODY
) -> bool:
    """Tell whether a webhook verifies; anything but yes and SignatureError is raised."""
    try:
        verify(headers, body, secrets, now=TIME)
    except SignatureError:
        return False
    return True


class Reference:
    """The reference library, asked at a time that it takes for now."""

    def __init__(self, secret: str = SECRET) -> None:
        self.webhook = Webhook(secret)

    def verify(self, headers: Mapping[str, str], body: bytes) -> None:
        self.webhook.verify(body, dict(headers), json_parse=False)


def now() -> int:
    return int(datetime.now(UTC).timestamp())


# The vectors.


@pytest.mark.parametrize(
    ("secret", "webhook_id", "timestamp", "body", "signature"),
    [
        (SECRET, ID, TIME, BODY, SIGNED),
        (
            OTHER,
            "msg_27UH4WbU6Z5A5EzD8u03UvzRbpk",
            1649367553,
            b'{"email":"test@example.com","username":"test_user"}',
            "v1,tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw=",
        ),
        (PRIVATE, ID, TIME, BODY, SIGNED_A),
    ],
    ids=["python", "rust", "svix-ed25519"],
)
def test_the_published_vectors_are_signed_byte_by_byte(
    secret: str, webhook_id: str, timestamp: int, body: bytes, signature: str
) -> None:
    assert sign(secret, id=webhook_id, timestamp=timestamp, body=body) == signature


@pytest.mark.parametrize(("secret", "signature"), [(SECRET, SIGNED), (PUBLIC, SIGNED_A)])
def test_the_published_vectors_verify(secret: str, signature: str) -> None:
    assert is_right(headers_of(signature), secret)


def test_the_public_half_is_that_of_the_pair() -> None:
    assert public_key(PRIVATE) == PUBLIC
    seed = base64.b64encode(base64.b64decode(PAIR)[:32]).decode()
    assert public_key(f"whsk_{seed}") == PUBLIC
    assert sign(f"whsk_{seed}", id=ID, timestamp=TIME, body=BODY) == SIGNED_A


# Laws.

symmetric = st.binary(min_size=1, max_size=64).map(
    lambda key: "whsec_" + base64.b64encode(key).decode()
)
private = st.binary(min_size=32, max_size=32).map(
    lambda seed: "whsk_" + base64.b64encode(seed).decode()
)
ids = st.text(
    st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters="."),
    min_size=1,
    max_size=80,
)
timestamps = st.integers(0, 10**15 - 1)


def verifying(secret: str) -> str:
    return public_key(secret) if secret.startswith("whsk_") else secret


@given(
    st.lists(symmetric | private, min_size=1, max_size=4),
    ids,
    timestamps,
    st.binary(max_size=200),
    st.data(),
)
def test_what_is_signed_verifies_with_each_of_the_secrets(
    secrets: list[str], webhook_id: str, timestamp: int, body: bytes, data: st.DataObject
) -> None:
    headers = {
        "webhook-id": webhook_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": sign(secrets, id=webhook_id, timestamp=timestamp, body=body),
    }
    verify(headers, body, verifying(data.draw(st.sampled_from(secrets))), now=timestamp)
    other = "whsec_" + base64.b64encode(b"x" * 65).decode()
    verify(headers, body, [other, verifying(secrets[0])], now=timestamp, tolerance=0)
    with pytest.raises(SignatureError, match="is right"):
        verify(headers, body, other, now=timestamp)


@given(st.sampled_from([(SECRET, SIGNED), (PUBLIC, SIGNED_A)]), st.data())
def test_a_change_of_one_character_is_noticed(signed: tuple[str, str], data: st.DataObject) -> None:
    """In the id, the time, the signature, its version, or the body."""
    secret, signature = signed
    content = {**headers_of(signature), "body": BODY.decode()}
    name = data.draw(st.sampled_from(sorted(content)))
    place = data.draw(st.integers(0, len(content[name]) - 1))
    there = content[name][place]
    other = data.draw(st.characters(max_codepoint=0x7F).filter(lambda each: each != there))
    # Two signatures of which one is right are as good as one.
    assume(not (name == "webhook-signature" and other == " "))
    content[name] = content[name][:place] + other + content[name][place + 1 :]
    assert not is_right(content, secret, content.pop("body").encode())


@pytest.mark.parametrize("place", range(len(SIGNED)))
@pytest.mark.parametrize("other", ["A", "=", "-", "\n", "\x00", "é"])
def test_a_change_at_any_place_of_a_signature_is_noticed(place: int, other: str) -> None:
    changed = SIGNED[:place] + other + SIGNED[place + 1 :]
    assert is_right(headers_of(changed)) == (changed == SIGNED)


@pytest.mark.parametrize(
    ("secret", "signature"),
    [
        # The last digit holds bits that are not used: other digits mean the same bytes.
        (SECRET, SIGNED.replace("OE=", "OF=")),
        (PUBLIC, SIGNED_A.replace("Ag==", "Ah==")),
        (PUBLIC, SIGNED_A.replace("=", "")),
        (SECRET, SIGNED.replace("=", "")),
    ],
)
def test_a_signature_can_be_written_in_one_way_only(secret: str, signature: str) -> None:
    assert not is_right(headers_of(signature), secret)


# Any headers, any body.

odd = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.binary(),
    st.text(st.characters(exclude_categories=())),
    st.lists(st.text(), max_size=3),
    st.sampled_from([str(TIME), ID, SIGNED, SIGNED_A]),
    st.from_regex(r"v1a?,[A-Za-z0-9+/]{0,90}={0,3}"),
    st.lists(st.sampled_from(["v1", "v1a", ",", " ", "=", SIGNED[3:], SIGNED_A[4:]])).map("".join),
)
names = st.sampled_from(
    [
        "webhook-id",
        "Webhook-Id",
        "webhook-timestamp",
        "WEBHOOK-TIMESTAMP",
        "webhook-signature",
        "wEbHoOk-SiGnAtUrE",
    ]
)


@given(st.dictionaries(names | odd.filter(lambda x: not isinstance(x, list)), odd), st.binary())
@example({"webhook-id": ID, "webhook-timestamp": "9" * 5_000, "webhook-signature": SIGNED}, BODY)
@example(headers_of(signature="\ud800"), BODY)
@example(headers_of(signature="v1a,\ud800"), BODY)
@example(headers_of(id="\ud800"), BODY)
@example(headers_of(timestamp="\u0661"), BODY)
@example(headers_of() | {"\udcff": "x"}, b"\xff")
def test_no_headers_and_no_body_raise_anything_else(headers: Any, body: bytes) -> None:
    for secrets in (SECRET, PUBLIC, [OTHER, PUBLIC]):
        # A right one may be found by chance: it is among what the headers are made of.
        assert not is_right(headers, secrets, body) or body == BODY
    with pytest.raises(SignatureError):
        verify(headers, body + b"\x00", SECRET, tolerance=None)


class Pairs:
    """What some frameworks have instead of a mapping."""

    def __init__(self, *pairs: tuple[str, str]) -> None:
        self.pairs = pairs

    def items(self) -> Iterator[tuple[str, str]]:
        return iter(self.pairs)


def test_case_makes_no_difference_to_a_name() -> None:
    headers = {name.title(): value for name, value in headers_of().items()}
    verify(headers, BODY, SECRET, now=TIME)
    verify(Pairs(*headers.items()), BODY, SECRET, now=TIME)


@pytest.mark.parametrize("name", sorted(headers_of()))
def test_a_header_that_came_twice_is_refused(name: str) -> None:
    """Even with the same value: which one a proxy or a framework read nobody knows."""
    value = headers_of()[name]
    with pytest.raises(SignatureError, match=f"{name} is there twice"):
        verify({**headers_of(), name.upper(): value}, BODY, SECRET, now=TIME)
    with pytest.raises(SignatureError, match=f"{name} is there twice"):
        verify(Pairs(*headers_of().items(), (name, value)), BODY, SECRET, now=TIME)


@pytest.mark.parametrize("name", sorted(headers_of()))
@pytest.mark.parametrize("value", ["", None, b"x", 7])
def test_a_header_that_is_missing_is_named(name: str, value: Any) -> None:
    headers: dict[str, Any] = headers_of()
    del headers[name]
    with pytest.raises(SignatureError, match=f"{name} is missing"):
        verify(headers, BODY, SECRET, now=TIME)
    with pytest.raises(SignatureError, match=f"{name} is missing"):
        verify({**headers, name: value}, BODY, SECRET, now=TIME)


@pytest.mark.parametrize(
    "webhook_id", ["a.b", "a b", "a\n", "é", "a" * 513, "\x7f", "."], ids=lambda each: each[:4]
)
def test_an_id_that_can_not_be_signed_is_not_verified(webhook_id: str) -> None:
    content = b"%s.%d.%s" % (webhook_id.encode(), TIME, BODY)
    key = base64.b64decode(SECRET.removeprefix("whsec_"))
    digest = base64.b64encode(hmac.digest(key, content, "sha256")).decode()
    with pytest.raises(SignatureError, match="webhook-id is no id"):
        verify(headers_of(f"v1,{digest}", id=webhook_id), BODY, SECRET, now=TIME)
    with pytest.raises(ValueError, match="id must be up to 512 visible ASCII characters"):
        sign(SECRET, id=webhook_id, timestamp=TIME, body=BODY)


def test_the_longest_id_is_signed_and_verified() -> None:
    longest = "-" * 512
    signature = sign(SECRET, id=longest, timestamp=TIME, body=b"")
    verify(headers_of(signature, id=longest), b"", SECRET, now=TIME)


def test_a_signed_text_is_cut_in_one_way_only() -> None:
    """The body of a webhook does not become the timestamp of another one."""
    signature = sign(SECRET, id="a", timestamp=TIME, body=b"9999999999.{}")
    with pytest.raises(SignatureError, match="webhook-id is no id"):
        verify(
            headers_of(signature, id=f"a.{TIME}", timestamp="9999999999"),
            b"{}",
            SECRET,
            now=9999999999,
        )


# Signatures.


@pytest.mark.parametrize(
    "signature",
    [
        SIGNED,
        f"{SIGNED} {SIGNED_A}",
        f"v1,wrong {SIGNED}",
        f"v2,{SIGNED[3:]} {SIGNED}",
        f"  {SIGNED}  ",
        f"v1 v1, , é {SIGNED}",
        " ".join(["v1,x"] * 31 + [SIGNED]),
    ],
)
def test_one_right_signature_is_enough(signature: str) -> None:
    verify(headers_of(signature), BODY, [OTHER, SECRET], now=TIME)


@pytest.mark.parametrize(
    "signature",
    [
        SIGNED[3:],
        f"v2,{SIGNED[3:]}",
        f"V1,{SIGNED[3:]}",
        f"v1a,{SIGNED[3:]}",
        f"v1,{SIGNED_A[4:]}",
        f"{SIGNED},v1",
        SIGNED.replace(",", "\t"),
        f"{SIGNED}\t",
        f"x{SIGNED}",
        f"v1,\u00e9{SIGNED[3:]}",
        f"{SIGNED}\ud800",
        "v1,",
        "v1a,",
        ",",
        " ",
        "v1,None",
        f"v1a,{base64.b64encode(bytes(64)).decode()}",
        f"v1a,{base64.b64encode(bytes(63)).decode()}",
        f"v1a,{SIGNED_A[4:]},",
    ],
)
def test_what_only_looks_like_a_signature_is_none(signature: str) -> None:
    for secrets in (SECRET, PUBLIC, [PUBLIC, SECRET]):
        with pytest.raises(SignatureError, match="no signature in webhook-signature is right"):
            verify(headers_of(signature), BODY, secrets, now=TIME)


def test_a_signature_of_one_kind_is_none_of_the_other() -> None:
    """The public half is no secret: with it for one, anybody could sign."""
    forged = sign(PUBLIC.removeprefix("whpk_"), id=ID, timestamp=TIME, body=BODY)
    assert forged.startswith("v1,")
    assert not is_right(headers_of(forged), PUBLIC)
    assert not is_right(headers_of(forged.replace("v1,", "v1a,")), PUBLIC)


def test_the_work_is_bounded() -> None:
    """Ed25519 takes long, and a header is as long as whoever sends likes."""
    with pytest.raises(SignatureError, match="more than 32 signatures"):
        verify(headers_of(" ".join([SIGNED] * 33)), BODY, SECRET, now=TIME)
    with pytest.raises(SignatureError, match="more than 4096 characters"):
        verify(headers_of(SIGNED + " " * 4_096), BODY, SECRET, now=TIME)
    verify(headers_of(SIGNED.ljust(4_096)), BODY, SECRET, now=TIME)


# Time.


@pytest.mark.parametrize(
    ("distance", "tolerance", "is_lately"),
    [
        (0, 300, True),
        (300, 300, True),
        (-300, 300, True),
        (301, 300, False),
        (-301, 300, False),
        (0.9, 0, True),
        (0, 0, True),
        (1, 0, False),
        (-1, 0, False),
        (10**9, None, True),
        (-(10**9), None, True),
        (10**9, float("inf"), True),
    ],
)
def test_a_timestamp_is_taken_within_the_tolerance(
    distance: float, tolerance: float | None, is_lately: bool
) -> None:
    """0 means this very second, and does not switch it off; None does."""
    if is_lately:
        verify(headers_of(), BODY, SECRET, now=TIME + distance, tolerance=tolerance)
        return
    with pytest.raises(SignatureError, match="too old" if distance > 0 else "in the future"):
        verify(headers_of(), BODY, SECRET, now=TIME + distance, tolerance=tolerance)


def test_the_clock_of_the_machine_is_asked() -> None:
    moment = now()
    for distance in (-290, 0, 290):
        timestamp = moment + distance
        signature = sign(SECRET, id=ID, timestamp=timestamp, body=BODY)
        verify(headers_of(signature, timestamp=str(timestamp)), BODY, SECRET)
    with pytest.raises(SignatureError, match="too old"):
        verify(headers_of(), BODY, SECRET)


def test_a_retry_is_signed_anew() -> None:
    """With the same id; the signature of the first attempt does not hold for the next one."""
    assert not is_right(headers_of(timestamp=str(TIME + 5)))
    assert is_right(
        headers_of(sign(SECRET, id=ID, timestamp=TIME + 5, body=BODY), timestamp=str(TIME + 5))
    )


@pytest.mark.parametrize(
    "text",
    [
        f"{TIME}.9",
        "1614_265330",
        f"+{TIME}",
        f"-{TIME}",
        f" {TIME}",
        f"{TIME}\n",
        "1614265330e0",
        "\u0661\u0666\u0661\u0664\u0662\u0666\u0665\u0663\u0663\u0660",
        "\u00b2",
        "nan",
        "inf",
        "1" * 16,
        "9" * 5_000,
        "0x60379532",
        "soon",
    ],
    ids=lambda text: ascii(text)[:20],
)
def test_a_timestamp_is_ascii_digits(text: str) -> None:
    key = base64.b64decode(SECRET.removeprefix("whsec_"))
    content = f"{ID}.{text}.".encode() + BODY
    signature = "v1," + base64.b64encode(hmac.digest(key, content, hashlib.sha256)).decode()
    with pytest.raises(SignatureError, match="webhook-timestamp is no time"):
        verify(headers_of(signature, timestamp=text), BODY, SECRET, now=TIME, tolerance=None)


# Misuse.


def without_it(exc: BaseException, secret: str) -> bool:
    """Tell whether a secret is nowhere in an error, or in what led to it."""
    found: BaseException | None = exc
    while found is not None:
        shown = f"{found} {found!r} {found.args} {vars(found)}"
        if secret in shown or isinstance(found, UnicodeError):
            return False
        found = found.__cause__ or found.__context__
    return True


@pytest.mark.parametrize(
    ("secret", "words"),
    [
        ("", "base64"),
        ("whsec_", "base64"),
        ("whsec_not base64", "base64"),
        ("whsec_s3cr3t-t0ken-in-base64url_", "base64"),
        ("whsec_sécret", "base64"),
        ("whsec_\ud800secret", "base64"),
        ("whsec_QQ==QQ==", "base64"),
        ("whsec_QQQQQ", "base64"),
        ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n", "base64"),
        ("whsec_ MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "base64"),
        ("WHSEC_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "base64"),
        ("sk_live_0123456789", "base64"),
    ],
)
def test_a_secret_that_can_not_be_one_is_refused_and_not_repeated(secret: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as signing:
        sign(secret, id=ID, timestamp=TIME, body=BODY)
    with pytest.raises(ValueError, match=words) as verifying:
        verify(headers_of(), BODY, [SECRET, secret], now=TIME)
    for caught in (signing, verifying):
        assert not isinstance(caught.value, SignatureError)
        assert without_it(caught.value, secret.removeprefix("whsec_") or "none of it")


@pytest.mark.parametrize(
    ("secret", "words"),
    [
        ("whsk_", "32 or 64 bytes"),
        ("whsk_" + "A" * 44, "32 or 64 bytes"),
        ("whsk_not_base64", "32 or 64 bytes"),
        (f"whsk_{PAIR[:43]}{'A' * 43}==", "not of one pair"),
        (PUBLIC, "a public key signs nothing"),
    ],
)
def test_an_ed25519_key_that_signs_nothing_is_refused(secret: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        sign(secret, id=ID, timestamp=TIME, body=BODY)
    assert without_it(caught.value, secret[5:] or "none of it")


@pytest.mark.parametrize(
    ("secret", "words"),
    [
        ("whpk_", "must be 'whpk_' and base64 of 32 bytes"),
        ("whpk_" + "A" * 44, "must be 'whpk_' and base64 of 32 bytes"),
        ("whpk_é", "must be 'whpk_' and base64 of 32 bytes"),
        (PRIVATE, "verify with the public half, 'whpk_'"),
    ],
)
def test_an_ed25519_key_that_verifies_nothing_is_refused(secret: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        verify(headers_of(SIGNED_A), BODY, secret, now=TIME)
    assert without_it(caught.value, secret[5:] or "none of it")


@pytest.mark.parametrize("secret", [SECRET, PUBLIC, "", PAIR])
def test_only_a_secret_key_has_a_public_half(secret: str) -> None:
    with pytest.raises(ValueError, match="'whsk_'"):
        public_key(secret)


@pytest.mark.parametrize("secrets", [[], (), iter([])])
def test_without_a_secret_nothing_is_signed_or_verified(secrets: Any) -> None:
    """A list of secrets that is empty by mistake lets nothing in, and says so."""
    with pytest.raises(ValueError, match="there must be a secret"):
        verify(headers_of(), BODY, secrets, now=TIME)
    with pytest.raises(ValueError, match="there must be a secret"):
        sign(secrets, id=ID, timestamp=TIME, body=BODY)


def test_secrets_may_come_from_an_iterator() -> None:
    secrets: Any = iter([OTHER, SECRET])
    signature = sign(secrets, id=ID, timestamp=TIME, body=BODY)
    assert signature.split(" ")[1] == SIGNED
    secrets = iter([SECRET])
    verify(headers_of(signature), BODY, secrets, now=TIME)


@pytest.mark.parametrize("secret", [None, 7, SECRET.encode(), [None], [SECRET.encode()]])
def test_a_secret_of_another_type_is_refused(secret: Any) -> None:
    with pytest.raises(TypeError):
        sign(secret, id=ID, timestamp=TIME, body=BODY)
    with pytest.raises(TypeError):
        verify(headers_of(), BODY, secret, now=TIME)
    with pytest.raises(TypeError):
        public_key(secret)


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        ({"id": 7}, TypeError, "id must be a string, not int"),
        ({"id": ""}, ValueError, "id must be"),
        ({"id": "a\r\nx: y"}, ValueError, "id must be"),
        ({"timestamp": 1.5}, TypeError, "timestamp must be whole seconds, an int, not float"),
        ({"timestamp": True}, TypeError, "timestamp must be whole seconds, an int, not bool"),
        ({"timestamp": -1}, ValueError, "timestamp must be seconds since 1970"),
        ({"timestamp": 10**15}, ValueError, "timestamp must be seconds since 1970"),
        ({"body": "{}"}, TypeError, "body must be the bytes of the request"),
        ({"body": {}}, TypeError, "body must be the bytes of the request"),
    ],
)
def test_what_can_not_be_signed_is_refused(
    wrong: dict[str, Any], error: type[Exception], words: str
) -> None:
    arguments: dict[str, Any] = {"id": ID, "timestamp": TIME, "body": BODY}
    with pytest.raises(error, match=words):
        sign(SECRET, **{**arguments, **wrong})


@pytest.mark.parametrize("body", [BODY.decode(), {"test": 2432232314}, None])
def test_a_body_that_was_decoded_is_refused_with_the_remedy(body: Any) -> None:
    with pytest.raises(TypeError, match="body must be the bytes of the request, as they are sent"):
        verify(headers_of(), body, SECRET, now=TIME)


@pytest.mark.parametrize("body", [bytearray(BODY), memoryview(BODY)])
def test_bytes_of_any_kind_are_a_body(body: Any) -> None:
    assert sign(SECRET, id=ID, timestamp=TIME, body=body) == SIGNED
    verify(headers_of(), body, SECRET, now=TIME)


@pytest.mark.parametrize("tolerance", [-1, float("nan"), -0.1])
def test_a_tolerance_below_0_is_refused(tolerance: float) -> None:
    with pytest.raises(ValueError, match="tolerance must be seconds from 0, or None for any"):
        verify(headers_of(), BODY, SECRET, now=TIME, tolerance=tolerance)


@pytest.mark.parametrize("moment", [float("nan"), float("inf")])
def test_a_time_that_is_none_is_refused(moment: float) -> None:
    with pytest.raises(ValueError, match="now must be seconds since 1970"):
        verify(headers_of(), BODY, SECRET, now=moment)


def test_the_callers_mistake_shows_whatever_came() -> None:
    """A secret that is wrong is found with the first request, not with the first that is signed."""
    with pytest.raises(ValueError, match="base64"):
        verify({}, BODY, "whsec_*", now=TIME)


# Secrets of others.


@pytest.mark.parametrize(
    "secret",
    [
        SECRET.removeprefix("whsec_"),
        "whsec_QQ==",
        "whsec_QQ",
        "whsec_" + base64.b64encode(bytes(range(200))).decode(),
    ],
)
def test_secrets_of_others_are_taken_as_the_reference_library_takes_them(secret: str) -> None:
    signature = sign(secret, id=ID, timestamp=TIME, body=BODY)
    at = datetime.fromtimestamp(TIME, UTC)
    assert signature == Webhook(secret).sign(ID, at, BODY.decode())
    verify(headers_of(signature), BODY, secret, now=TIME)


# Without cryptography.

ED25519 = "cryptography.hazmat.primitives.asymmetric.ed25519"


def test_without_cryptography_an_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, ED25519, None)
    for call in (
        lambda: sign(PRIVATE, id=ID, timestamp=TIME, body=BODY),
        lambda: verify(headers_of(SIGNED_A), BODY, PUBLIC, now=TIME),
        lambda: verify({}, BODY, PUBLIC, now=TIME),
        lambda: public_key(PRIVATE),
    ):
        with pytest.raises(ImportError, match=r"install callbackkit\[ed25519\]"):
            call()
    verify(headers_of(f"{SIGNED_A} {SIGNED}"), BODY, SECRET, now=TIME)


def test_importing_it_imports_neither_cryptography_nor_anyio() -> None:
    program = (
        "import sys, callbackkit.wire.signature as s\n"
        f"s.verify({headers_of()!r}, {BODY!r}, {SECRET!r}, now={TIME})\n"
        "assert not {'cryptography', 'anyio'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)


# Beside the reference library, which asks the clock of the machine.


@given(symmetric, ids, st.text(max_size=100), st.integers(-290, 290))
def test_what_we_sign_the_reference_library_verifies(
    secret: str, webhook_id: str, text: str, distance: int
) -> None:
    timestamp = now() + distance
    signature = sign(secret, id=webhook_id, timestamp=timestamp, body=text.encode())
    headers = headers_of(signature, id=webhook_id, timestamp=str(timestamp))
    Reference(secret).verify(headers, text.encode())


@given(symmetric, ids, st.text(max_size=100), st.integers(0, 253_402_300_799))
def test_what_the_reference_library_signs_we_verify(
    secret: str, webhook_id: str, text: str, timestamp: int
) -> None:
    at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=timestamp)
    signature = Webhook(secret).sign(webhook_id, at, text)
    assert signature == sign(secret, id=webhook_id, timestamp=timestamp, body=text.encode())
    headers = headers_of(signature, id=webhook_id, timestamp=str(timestamp))
    verify(headers, text.encode(), secret, now=timestamp)


parts = st.sampled_from(["v1", "v1a", "v2", ",", " ", "x", SIGNED, "=", "QUJD", "é"])


@given(st.lists(parts, max_size=6).map("".join), st.sampled_from(["", "wrong ", "v1,x "]))
def test_what_we_let_in_the_reference_library_does_too(header: str, before: str) -> None:
    """Or it fails on an entry that is not its own; it never says no to what we say yes to."""
    timestamp = str(now())
    right = sign(SECRET, id=ID, timestamp=int(timestamp), body=BODY)
    headers = headers_of(before + header.replace(SIGNED, right), timestamp=timestamp)
    try:
        verify(headers, BODY, SECRET)
    except SignatureError:
        return
    try:
        Reference().verify(headers, BODY)
    except WebhookVerificationError:
        pytest.fail(f"the reference library refuses {headers!r}")
    except ValueError:
        pass  # one of its defects, below


@pytest.mark.parametrize(
    ("signature", "defect"),
    [
        ("g0hM9SsE", ValueError),
        ("v1,a,b", ValueError),
        ("v1,aaaa  v1,bbbb", ValueError),
        ("v1,a", ValueError),
        ("v1,é", ValueError),
    ],
    ids=["no-comma", "two-commas", "two-spaces", "bad-base64", "not-ascii"],
)
def test_a_header_that_the_reference_library_fails_on_is_refused(
    signature: str, defect: type[Exception]
) -> None:
    headers = headers_of(signature, timestamp=str(now()))
    with pytest.raises(defect):
        Reference().verify(headers, BODY)
    with pytest.raises(SignatureError):
        verify(headers, BODY, SECRET)


def test_a_body_that_the_reference_library_fails_on_is_refused_or_verified() -> None:
    body, timestamp = b"\xff\x00", now()
    with pytest.raises(UnicodeDecodeError):
        Reference().verify(headers_of(timestamp=str(timestamp)), body)
    with pytest.raises(SignatureError):
        verify(headers_of(timestamp=str(timestamp)), body, SECRET)
    signature = sign(SECRET, id=ID, timestamp=timestamp, body=body)
    verify(headers_of(signature, timestamp=str(timestamp)), body, SECRET)


@pytest.mark.parametrize("form", ["{}.9", "{:_}"])
def test_a_timestamp_that_the_reference_library_takes_is_refused(form: str) -> None:
    timestamp = now()
    signature = sign(SECRET, id=ID, timestamp=timestamp, body=BODY)
    headers = headers_of(signature, timestamp=form.format(timestamp))
    Reference().verify(headers, BODY)
    with pytest.raises(SignatureError, match="is no time"):
        verify(headers, BODY, SECRET)


def test_the_timestamp_that_is_signed_is_the_one_that_is_given() -> None:
    """The reference library takes a time in another zone for one in UTC, and signs that."""
    east = datetime.fromtimestamp(TIME, timezone(timedelta(hours=5)))
    assert Webhook(SECRET).sign(ID, east, BODY.decode()) != SIGNED
    assert sign(SECRET, id=ID, timestamp=int(east.timestamp()), body=BODY) == SIGNED


@pytest.mark.parametrize("secrets", [None, 7, b"whsec_", [b"whsec_"]])
def test_secrets_of_the_wrong_type_are_named(secrets: Any) -> None:
    with pytest.raises(TypeError, match=r"secret.* must be a string"):
        verify({}, b"", secrets)


@pytest.mark.parametrize("headers", [None, [("webhook-id", "a")], "webhook-id: a"])
def test_headers_of_the_wrong_type_are_named(headers: Any) -> None:
    with pytest.raises(TypeError, match="headers must be a mapping"):
        verify(headers, b"", "whsec_" + "A" * 32)


def test_a_signer_signs_as_the_function_does() -> None:
    secrets = ["whsec_" + "A" * 32, "whsec_" + "B" * 32]
    signer = Signer(secrets)
    for number in range(3):
        body = b"%d" % number
        assert signer.sign(id="a", timestamp=number, body=body) == sign(
            secrets, id="a", timestamp=number, body=body
        )
