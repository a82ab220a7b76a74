"""A receiver of webhooks in Flask: verifies what comes, tells repeats apart, keeps the rest.

A webhook comes at least once. If its answer got lost it comes again, under the same `webhook-id`;
so the id is kept in the same write as what came under it, and a repeat is answered like the first
one and changes nothing, also when the receiver was killed in between. Here that is a line of JSON;
elsewhere it is a row of a table, whose key is the id.

    pip install callbackkit flask
    WEBHOOK_SECRET=whsec_... python examples/flask_receiver.py [--port 5000] [--file FILE]

The secret is read from the environment, because every user of a machine sees the arguments of its
programs.
"""

import argparse
import json
import os
import sys
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import attrs
from flask import Flask, request
from werkzeug.serving import make_server

from callbackkit import Event, SignatureError, WireError
from callbackkit.webhooks.receiver import receive
from callbackkit.wire.signature import sign

PORT = 5000
SECRET = "WEBHOOK_SECRET"  # the variable of the environment
MOST_BYTES = 16 * 1024 * 1024  # of a request

# What arrived.


@attrs.frozen
class Arrival:
    """An event that arrived.

    Attributes:
        webhook: The `webhook-id` it came under.
        event: Its own id.
        type: Its type.
        data: What it says.
    """

    webhook: str
    event: str
    type: str
    data: Any


class Inbox:
    """Keeps what arrived as lines of JSON, each webhook once; several threads may ask at once.

    Args:
        file: Where it is written.
        kept: Ids of the webhooks that are there already.
    """

    def __init__(self, file: BinaryIO, kept: set[str]) -> None:
        self._file = file
        self._kept = kept
        self._lock = threading.Lock()

    def keep(self, webhook: str, events: Sequence[Event]) -> bool:
        """Keep the events of a webhook, unless they are there already; tell whether they were."""
        arrivals = [Arrival(webhook, event.id, event.event_type, event.data) for event in events]
        lines = "".join(f"{json.dumps(attrs.asdict(each))}\n" for each in arrivals)
        with self._lock:
            if webhook in self._kept:
                return True
            # Whoever was killed may have left half a line; the newline in front ends that one.
            self._file.write(f"\n{lines}".encode())
            self._file.flush()
            # Only now: had the write failed, the webhook would be wanted once more.
            self._kept.add(webhook)
        return False


def read_arrivals(path: Path) -> list[Arrival]:
    """Read what was kept; half a line, of somebody who was killed while writing, is nothing."""
    arrivals = []
    for line in path.read_bytes().split(b"\n") if path.exists() else []:
        try:
            found = json.loads(line)
        except ValueError:
            continue
        arrivals.append(Arrival(**found))
    return arrivals


# The receiver.


def make_app(secret: str, inbox: Inbox) -> Flask:
    """Return the application; webhooks go to `/callbacks`."""
    app = Flask(__name__)
    app.config["MAX_CONTENT_LENGTH"] = MOST_BYTES

    @app.route("/callbacks", methods=["POST"])
    def callbacks() -> tuple[str, int]:
        # The bytes as they came: those are signed.
        body = request.get_data()
        try:
            events = receive(request.headers, body, secret)
        except SignatureError as exc:
            return f"{exc}\n", 401
        except WireError as exc:
            return f"{exc}\n", 400
        inbox.keep(request.headers["webhook-id"], events)
        return "", 204

    return app


def main() -> int:
    """Receive until interrupted."""
    parser = argparse.ArgumentParser(description="Receive webhooks.")
    parser.add_argument("--port", type=int, default=PORT, help="0 is a free one")
    parser.add_argument(
        "--file", type=Path, help="where to keep what arrives; by default it is printed"
    )
    chosen = parser.parse_args()
    secret = os.environ.get(SECRET, "")
    try:
        sign(secret, id="check", timestamp=0, body=b"")
    except ValueError as exc:
        parser.error(f"{SECRET}: {exc}")
    try:
        with ExitStack() as stack:
            if chosen.file is None:
                inbox = Inbox(sys.stdout.buffer, set())
            else:
                kept = {arrival.webhook for arrival in read_arrivals(chosen.file)}
                inbox = Inbox(stack.enter_context(chosen.file.open("ab")), kept)
            app = make_app(secret, inbox)
            server = make_server("127.0.0.1", chosen.port, app, threaded=True)
            stack.callback(server.server_close)
            url = f"http://127.0.0.1:{server.server_port}/callbacks"
            print(f"receiving at {url}", file=sys.stderr, flush=True)
            server.serve_forever()
    except KeyboardInterrupt:
        return 130  # 128 + SIGINT, as shells tell it
    return 0


if __name__ == "__main__":
    sys.exit(main())
