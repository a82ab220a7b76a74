"""The receivers of docs/how-to/receive-webhooks.md as servers: Flask, FastAPI, Express in Node."""

import base64
import gzip
import hmac
import json
import random
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import attrs
import httpx2
import pytest
import uvicorn
from werkzeug.serving import make_server

from callbackkit.errors import SignatureError
from callbackkit.events import Event
from callbackkit.testing import ManualClock
from callbackkit.webhooks.receiver import Deduper
from callbackkit.wire.envelope import encode_event, encode_events
from callbackkit.wire.signature import sign, verify
from tests.http.chat_server import find_node

pytestmark = pytest.mark.real_server

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "receive-webhooks.md"
PATIENCE = 20.0
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OTHER = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"


def blocks(language: str) -> list[str]:
    text = PAGE.read_text("utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def python_block(name: str) -> str:
    [block] = [each for each in blocks("python") if f"from {name} import" in each]
    return block


@attrs.define
class Receiver:
    """A receiver that runs; an event of type ``fails`` fails with it the first time.

    Attributes:
        url: Where it takes webhooks.
        taken: Type and data of what it handled; to be looked at when it has stopped.
    """

    url: str
    taken: list[tuple[str, dict[str, Any]]] = attrs.field(factory=list)


class Fault(Exception):
    """What an application gets wrong."""


def fails_first() -> Any:
    """Return a function that raises for the first event of type ``fails``."""
    faults = [Fault("the disk is full")]

    def check(events: list[Event]) -> None:
        if events[0].event_type == "fails" and faults:
            raise faults.pop()

    return check


@contextmanager
def flask_receiver(_folder: Path) -> Iterator[Receiver]:
    page: dict[str, Any] = {}
    exec(python_block("flask"), page)
    handle, check = page["handle"], fails_first()
    page["handle"] = lambda events: (check(events), handle(events))
    server = make_server("127.0.0.1", 0, page["app"], threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield Receiver(f"http://127.0.0.1:{server.server_port}/callbacks", page["inbox"])
    finally:
        server.shutdown()
        thread.join(PATIENCE)
        server.server_close()
        assert not thread.is_alive()


@contextmanager
def fastapi_receiver(_folder: Path) -> Iterator[Receiver]:
    page: dict[str, Any] = {}
    exec(python_block("fastapi"), page)
    handle, check = page["handle"], fails_first()

    async def checked(events: list[Event]) -> None:
        check(events)
        await handle(events)

    page["handle"] = checked
    server = uvicorn.Server(uvicorn.Config(page["app"], log_level="critical"))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, args=[[listening]])
        thread.start()
        try:
            port = listening.getsockname()[1]
            yield Receiver(f"http://127.0.0.1:{port}/callbacks", page["inbox"])
        finally:
            server.should_exit = True
            thread.join(PATIENCE)
            assert not thread.is_alive()


# What the page needs of Express, and no more.
ADAPTER = """
import { createServer } from "node:http";

export default function express() {
  const routes = new Map();
  const serve = (request, response) => {
    response.sendStatus = (status) => response.writeHead(status).end();
    const handlers = routes.get(request.url);
    const step = (place) => handlers[place](request, response, () => step(place + 1));
    step(0);
  };
  return {
    post: (path, ...handlers) => routes.set(path, handlers),
    listen: (...where) => createServer(serve).listen(...where),
  };
}

express.raw = ({ type, limit }) => (request, response, next) => {
  if (!type(request) || limit !== "2mb") throw new Error("not what the page says");
  if (request.headers["content-encoding"]) return response.sendStatus(415); // would be unpacked
  const chunks = [];
  request.on("data", (chunk) => chunks.push(chunk));
  request.on("end", () => {
    const body = Buffer.concat(chunks);
    if (body.length > 2 * 1024 * 1024) return response.sendStatus(413);
    if (body.length) request.body = body;
    next();
  });
};
"""
# As fails_first().
DRIVER = """
const handled = handle;
let hasFailed = false;
handle = async (events) => {
  if (events[0].event_type === "fails" && !hasFailed) {
    hasFailed = true;
    throw new Error("the disk is full");
  }
  await handled(events);
};
"""


def write_page(folder: Path) -> Path:
    """Write the files of the page; return the server's."""
    library, server = blocks("js")
    (folder / "webhooks.mjs").write_text(library, "utf-8")
    path = folder / "server.mjs"
    path.write_text(server + DRIVER, "utf-8")
    return path


@contextmanager
def running(program: Path) -> Iterator[Receiver]:
    """Run a server in Node, not for ever."""
    command = [find_node(), str(program)]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env={"PORT": "0"},
    ) as process:
        patience = threading.Timer(PATIENCE, process.kill)
        patience.start()
        try:
            assert process.stdout is not None
            first = process.stdout.readline()
            assert first.startswith("listening on "), process.communicate()
            receiver = Receiver(f"http://127.0.0.1:{int(first.split()[-1])}/callbacks")
            yield receiver
        finally:
            patience.cancel()
            process.kill()
            out, _ = process.communicate(timeout=PATIENCE)
        for line in filter(None, out.split("\n")):
            event_type, _, data = line.partition(" ")
            receiver.taken.append((event_type, json.loads(data)))


def adapted_receiver(folder: Path) -> AbstractContextManager[Receiver]:
    package = folder / "node_modules" / "express"
    package.mkdir(parents=True)
    (package / "package.json").write_text('{"type": "module", "exports": "./index.js"}', "utf-8")
    (package / "index.js").write_text(ADAPTER, "utf-8")
    return running(write_page(folder))


def express_receiver(folder: Path) -> AbstractContextManager[Receiver]:
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("there is no npm")
    command = [npm, "install", "express@5", "--no-audit", "--no-fund", "--prefix", str(folder)]
    done = subprocess.run(command, cwd=folder, capture_output=True, timeout=50, check=False)
    if done.returncode != 0:
        pytest.skip(f"Express can't be installed: {done.stderr.decode()[-200:]}")
    return running(write_page(folder))


# The receivers.


@attrs.frozen
class Sender:
    """Posts signed requests to a receiver and returns the status of the answer.

    Each on a connection of its own: after a 500 some servers close theirs without a word.
    """

    receiver: Receiver
    client: httpx2.Client

    def __call__(
        self,
        body: bytes,
        webhook_id: str,
        *,
        secret: str | list[str] = SECRET,
        at: int | None = None,
        **headers: str,
    ) -> int:
        timestamp = int(time.time()) if at is None else at
        signed = {
            "webhook-id": webhook_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": sign(secret, id=webhook_id, timestamp=timestamp, body=body),
            "content-type": "application/json",
        }
        signed |= {name.replace("_", "-"): value for name, value in headers.items()}
        return self.post(body, signed)

    def post(self, body: bytes, headers: dict[str, str]) -> int:
        return self.client.post(self.receiver.url, content=body, headers=headers).status_code

    def is_too_large(self, body: bytes) -> bool:
        """Tell whether a body is refused; some servers hang up while it is being sent."""
        try:
            return self(body, "msg_large") == 413
        except httpx2.TransportError:
            return True


@pytest.mark.parametrize(
    "receiver_of",
    [
        flask_receiver,
        fastapi_receiver,
        adapted_receiver,
        pytest.param(express_receiver, marks=pytest.mark.torture),
    ],
)
def test_a_receiver_of_the_page_takes_what_is_signed_once(tmp_path: Path, receiver_of) -> None:
    """In order and unpacked; what is not signed, or no event, it refuses by the right status."""
    one = encode_event(Event.of("progress", {"progress": 0.4, "message": "é\u2028"}))
    several = [Event.of("order.created", {"n": n}, position=f"test-{n}") for n in range(100)]
    batch = encode_events(several)
    limits = httpx2.Limits(max_keepalive_connections=0)
    client = httpx2.Client(timeout=PATIENCE, limits=limits, trust_env=False)
    with receiver_of(tmp_path) as receiver, client:
        send = Sender(receiver, client)
        assert send(one, "msg_1") == 204
        assert send(one, "msg_1") == 204  # a repeat
        assert send(batch, "msg_2", secret=[OTHER, SECRET]) == 204
        assert send(gzip.compress(batch), "msg_3", content_encoding="gzip") == 204
        # Not signed: nothing of it counts, not even its id.
        assert send(one, "msg_4", secret=OTHER) == 401
        assert send(one, "msg_4", at=int(time.time()) - 1_000) == 401
        assert send(one + b" ", "msg_4", webhook_signature="v1,x v1 , v2") == 401
        assert send.post(one, {}) == 401
        assert send.post(b"", {}) == 401
        # Signed, but no events.
        assert send(b"\xff", "msg_5") == 400
        assert send(b"[", "msg_5") == 400
        assert send(one, "msg_5", content_encoding="gzip") == 400
        # The application's fault: it comes again.
        assert send(encode_event(Event.of("fails")), "msg_6") == 500
        assert send(encode_event(Event.of("fails")), "msg_6") == 204
        assert send(encode_event(Event.of("fails")), "msg_6") == 204
        # Too large to be looked at.
        assert send.is_too_large(b" " * 2_200_000 + one)
        assert send(one, "msg_4") == 204
    progress = ("progress", {"progress": 0.4, "message": "é\u2028"})
    orders = [("order.created", {"n": n}) for n in range(100)]
    assert receiver.taken == [progress, *orders, *orders, ("fails", {}), progress]


# What the page has for Node, beside ours.

ASK = """
import { readFileSync } from "node:fs";
import { Deduper, SignatureError, eventsOf, keyOf, verify } from "./webhooks.mjs";

const { cases, secrets, bad, steps, bodies } = JSON.parse(readFileSync(0, "utf-8"));
const outcome = (ask, known) => {
  try {
    return ask() ?? "right";
  } catch (error) {
    return error instanceof known ? "refused" : String(error);
  }
};
const verified = cases.map(({ headers, body, now, tolerance }) =>
  outcome(
    () => verify(headers, Buffer.from(body, "base64"), secrets.map(keyOf), { now, tolerance }),
    SignatureError,
  ),
);
let now = 0;
const deduper = new Deduper(4, 10, () => now);
const seen = steps.map(([verb, value]) => {
  if (verb === "wait") now += value;
  return verb === "wait" ? null : (deduper[verb](value) ?? null);
});
const keys = bad.map((secret) => outcome(() => keyOf(secret), Error));
const events = bodies.map(([encoding, body]) => eventsOf(encoding, Buffer.from(body, "base64")));
console.log(JSON.stringify({ verified, seen, keys, events }));
"""


@pytest.fixture
def ask(tmp_path: Path) -> Any:
    """Return a function that asks the library of the page in Node."""
    write_page(tmp_path)
    (tmp_path / "ask.mjs").write_text(ASK, "utf-8")

    def ask(**questions: list[Any]) -> dict[str, list[Any]]:
        nothing: dict[str, list[Any]] = {
            "cases": [], "secrets": [], "bad": [], "steps": [], "bodies": [],
        }  # fmt: skip
        done = subprocess.run(
            [find_node(), "ask.mjs"],
            cwd=tmp_path,
            input=json.dumps(nothing | questions).encode(),
            capture_output=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()
        return json.loads(done.stdout)

    return ask


ID = "msg_p5jXN8AQM9LWM0D4loKWxJek"
TIME = 1614265330
BODY = b'{"test": 2432232314}'
SIGNED = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
RIGHT = {"webhook-id": ID, "webhook-timestamp": str(TIME), "webhook-signature": SIGNED}


def case(body: bytes = BODY, now: float = TIME, **headers: str | None) -> dict[str, Any]:
    given = RIGHT | {f"webhook-{name}": value for name, value in headers.items()}
    return {
        "headers": {name: value for name, value in given.items() if value is not None},
        "body": base64.b64encode(body).decode(),
        "now": now,
        "tolerance": 300,
    }


def resigned(**headers: str) -> dict[str, Any]:
    """Return a case with a right signature, whatever the headers are."""
    names = {"id": ID, "timestamp": str(TIME)} | headers
    key = base64.b64decode(SECRET.removeprefix("whsec_"))
    content = f"{names['id']}.{names['timestamp']}.".encode() + BODY
    digest = base64.b64encode(hmac.digest(key, content, "sha256")).decode()
    return case(**headers, signature=f"v1,{digest}")


def is_right(case: dict[str, Any]) -> str:
    headers, body = case["headers"], base64.b64decode(case["body"])
    try:
        verify(headers, body, [OTHER, SECRET], now=case["now"], tolerance=case["tolerance"])
    except SignatureError:
        return "refused"
    return "right"


def cases() -> Iterator[dict[str, Any]]:
    yield case()
    yield from (case(now=TIME + distance) for distance in (300, 301, -300, -301, 0.9, 300.9, 1e12))
    yield case() | {"tolerance": 0}
    yield case(now=TIME + 1) | {"tolerance": 0}
    yield from (case(**{name: None}) for name in ("id", "timestamp", "signature"))
    yield from (case(**{name: ""}) for name in ("id", "timestamp", "signature"))
    for timestamp in (f"{TIME}.9", f"+{TIME}", f" {TIME}", f"{TIME}\n", "9" * 400, "\u0661", "1e9"):
        yield resigned(timestamp=timestamp)
    for webhook_id in (f"{ID}.", f"{ID}\n", f"{ID}é", "x" * 600, f"{ID}, {ID}"):
        yield resigned(id=webhook_id)
    for signature in (
        f"v1,x {SIGNED}",
        f"v1  é {SIGNED} v2,x",
        f"{SIGNED},",
        SIGNED[3:],
        "v1,",
        ",",
    ):
        yield case(signature=signature)
    yield from (case(signature=SIGNED[:n] + "A" + SIGNED[n + 1 :]) for n in range(len(SIGNED)))
    yield from (case(signature=SIGNED[:n]) for n in range(len(SIGNED)))
    yield from (case(body=body) for body in (b"", BODY + b" ", b"\xff\x00"))
    binary = sign(SECRET, id=ID, timestamp=TIME, body=b"\xff\x00")
    yield case(body=b"\xff\x00", signature=binary)


def test_the_page_verifies_in_node_as_we_do(ask: Any) -> None:
    asked = list(cases())
    expected = [is_right(each) for each in asked]
    assert expected[0] == expected[-1] == "right"
    assert expected.count("right") == 9
    assert ask(cases=asked, secrets=[OTHER, SECRET])["verified"] == expected


def test_the_page_takes_no_short_key_in_node(ask: Any) -> None:
    """With an empty one anybody could sign."""
    bad = ["", "whsec_", "whsec_QUJD", "?" * 60]
    assert ask(bad=bad)["keys"] == ["refused"] * 4


def test_the_page_unpacks_in_node(ask: Any) -> None:
    events = [{"event_type": "a", "data": {"é": 1}}, {"event_type": "b", "data": {}}]
    single, batch = json.dumps(events[0]).encode(), json.dumps({"events": events}).encode()
    bodies = [
        (None, single),
        ("", batch),
        ("gzip", gzip.compress(batch)),
        ("GZIP", gzip.compress(single)),
    ]
    coded = [(encoding, base64.b64encode(body).decode()) for encoding, body in bodies]
    assert ask(bodies=coded)["events"] == [events[:1], events, events, events[:1]]


def test_the_page_tells_repeats_in_node_as_we_do(ask: Any) -> None:
    chance = random.Random(7)
    verbs = ["seen"] * 8 + ["forget", "wait"]
    steps = [
        (verb, chance.choice([0.5, 5, 10]) if verb == "wait" else chance.choice("abcdef"))
        for verb in chance.choices(verbs, k=2_000)
    ]
    clock = ManualClock()
    deduper = Deduper(4, 10, clock)
    verb_of = {"seen": deduper.seen, "forget": deduper.forget, "wait": clock.advance}
    expected = [verb_of[verb](value) for verb, value in steps]
    assert ask(steps=steps)["seen"] == expected
    assert expected.count(True) > 100
    assert expected.count(False) > 100
