"""An agent that is killed again and again, and whose session is whole all the same.

The agent is the graph of text_stream.py: a text is read aloud from a worker thread, word by word,
while another node makes an outline. It runs as a session in a SQLite file, and a transport hands
each event to a destination. A parent starts it, kills it at a random moment with SIGKILL, which no
process can catch, and starts it again until its work is done. Then it looks at what arrived:
nothing is missing, nothing out of order, what was acknowledged was not sent again, and the words
make the text. What had been sent but not yet acknowledged at a kill comes twice, with the same id.

    python examples/killed_agent.py [FILE] [--seed NUMBER] [--kills NUMBER] [--keep FOLDER]
"""

import argparse
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import attrs
from my_transport import EmailTransport
from text_stream import make_graph, read_text

from callbackkit import (
    Callback,
    CallbackManager,
    Delivery,
    Limits,
    Retention,
    RetryPolicy,
    Session,
    Transport,
)
from callbackkit.stores.sqlite import SQLiteStore

KILLS = 12
# Seconds of all lives together, and for each kill; there is no need of a third of it.
MOST_SECONDS, MOST_PER_KILL = 40.0, 2.0
LIFE = 0.2, 0.7  # seconds that an agent lives, a random number in between
MOST_EVENTS = 100_000

# What comes of it.


@attrs.frozen
class Arrival:
    """What arrived at the destination, once.

    Attributes:
        id: Id of the delivery.
        event: Id of the event.
        type: Its type.
        data: What it says.
        life: Which process sent it, if that is known.
    """

    id: str
    event: str
    type: str
    data: dict[str, Any]
    life: int | None = None

    @property
    def number(self) -> int:
        """Number of the event in its session."""
        return int(self.event.rpartition("-")[2])


# One life of the agent: a process of its own.


class FileTransport(Transport):
    """Appends each event to a file, as a line of JSON."""

    name = "file"

    async def send(self, delivery: Delivery) -> None:
        event = delivery.event
        arrival = Arrival(
            delivery.id, event.id, event.event_type, dict(event.data), life=os.getpid()
        )
        # Whoever was killed may have left half a line; the newline in front ends that one.
        line = f"\n{json.dumps(attrs.asdict(arrival))}\n".encode()
        async with await anyio.open_file(delivery.options["to"], "ab", buffering=0) as file:
            await file.write(line)


class ImpatientEmailTransport(EmailTransport):
    """Tries again soon; the killing does not take a day."""

    retry = RetryPolicy.exponential(first=0.05, max_delay=1.0, retries=100)
    breaker = None


async def live(folder: Path, to: str) -> None:
    """Begin the work, or go on with it, until it is done and delivered."""
    transport, config = destination(folder, to)
    manager = CallbackManager(
        store=SQLiteStore(folder / "events.db"),
        transports=[transport],
        retention=Retention(max_events=MOST_EVENTS),
        limits=Limits(max_pending=MOST_EVENTS),
        linger=86_400.0,
    )
    async with manager:
        session = await find(manager)
        if session is None:
            session = await manager.create_session({**config, "ttl": None}, owner="agent")
        if await session.state() == "active":
            await work(session, (folder / "text").read_bytes().decode())
        stats = await session.stats()
        while stats.queued_events:
            await anyio.sleep(0.02)
            stats = await session.stats()
    (folder / "done").touch()


def destination(folder: Path, to: str) -> tuple[Transport, dict[str, Any]]:
    """Return the transport to a file, or to ``host:port``, a mail server."""
    host, _, port = to.rpartition(":")
    if host:
        mail = ImpatientEmailTransport(host, int(port))
        return mail, {"delivery_method": "email", "options": {"to": "ada@example.com"}}
    return FileTransport(), {"delivery_method": "file", "options": {"to": str(folder / to)}}


async def find(manager: CallbackManager) -> Session | None:
    """Return the session of the life before, if it had come so far."""
    async for session in manager.sessions(owner="agent"):
        return session
    return None


async def work(session: Session, source: str) -> None:
    """Run the graph from its beginning; what is in the session already does not come twice."""
    callback = Callback(history_bytes=2**40)
    async with anyio.create_task_group() as group:
        group.start_soon(copy, session, callback)
        state = await make_graph().execute({"source": source, "pause": 0.0}, callback=callback)
    result = {"spoken": state["spoken"], "headings": state["headings"]}
    await session.emit("completion", {"result": result}, idempotency_key="completion")
    await session.end()


async def copy(session: Session, callback: Callback) -> None:
    """Emit what the nodes say, each word under a key: the node, and which of its words it is.

    Two nodes speak at once, each time in another mixture, but each says the same words.
    """
    count: dict[str, int] = {}
    async for event in callback.events(types=["token"]):
        if event.type == "token" and event.node is not None and event.token is not None:
            count[event.node] = number = count.get(event.node, 0) + 1
            await session.emit(
                "streaming_chunk",
                {"text": event.token, "node": event.node},
                idempotency_key=f"{event.node}-{number}",
            )


# The parent.


def read_arrivals(file: Path) -> list[Arrival]:
    """Read what arrived; half a line, of somebody who was killed while writing, is nothing."""
    arrivals = []
    for line in file.read_bytes().split(b"\n") if file.exists() else []:
        try:
            found = json.loads(line)
        except ValueError:
            continue
        arrivals.append(Arrival(**found))
    return arrivals


class Lives:
    """The lives of one agent.

    Args:
        folder: Where everything is kept.
        source: The text.
        seed: Of the moments at which it is killed.
        to: Where events go: a file in the folder, or ``host:port`` of a mail server.
    """

    def __init__(self, folder: Path, source: str, seed: int, to: str = "arrived.jsonl") -> None:
        self.folder, self.to = folder, to
        self.kills = self.lives = 0
        self._random = random.Random(seed)
        self._arrived, self._stretch = -1, 1.0
        # As bytes: its line ends stay what they are.
        (folder / "text").write_bytes(source.encode())

    @property
    def is_done(self) -> bool:
        """The work is done, and all of it was delivered."""
        return (self.folder / "done").exists()

    def live(self, seconds: float | None = None) -> bool:
        """Start the agent, kill it after so many seconds, and tell whether that was needed."""
        self.lives += 1
        command = [sys.executable, __file__, "--life", str(self.folder), self.to]
        # An interrupt waits until the agent is known; and the agent, born like that, hears of none.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        agent = subprocess.Popen(command)
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
            code = agent.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.kills += 1
            return True
        finally:
            agent.kill()
            agent.wait()
        if code:
            raise RuntimeError(f"the agent ended by itself with exit code {code}")
        return False

    def seconds(self, arrived: int) -> float:
        """Return how long the next life is to be: longer, if the last one came to nothing."""
        self._stretch *= 1.0 if arrived > self._arrived else 1.2
        self._arrived = arrived
        return self._random.uniform(*LIFE) * self._stretch

    def arrivals(self) -> list[Arrival]:
        """Return what arrived in the file so far."""
        return read_arrivals(self.folder / self.to)


# The verdict.


def judge(arrivals: Sequence[Arrival], source: str) -> list[str]:
    """Return what is wrong with what arrived; nothing, if all is well."""
    wrong: list[str] = []
    whole: list[Arrival] = []
    for before, arrival in zip([None, *arrivals], arrivals, strict=False):
        number = arrival.number
        if before is None or number == before.number + 1:
            whole.append(arrival)
        elif (number, arrival.id, arrival.data) != (before.number, before.id, before.data):
            wrong.append(f"event {number} came behind event {before.number}")
        elif arrival.life is not None and arrival.life == before.life:
            wrong.append(f"event {number} came twice, and nobody had been killed in between")
    if not whole or whole[0].number != 1:
        wrong.append("the beginning is missing")
    if not whole or whole[-1].type != "completion":
        wrong.append("the end is missing")
    if said_by("read_aloud", whole) != source:
        wrong.append("the words do not make the text")
    return wrong


def said_by(node: str, arrivals: Sequence[Arrival]) -> str:
    """Return what a node said."""
    chunks = [arrival.data for arrival in arrivals if arrival.type == "streaming_chunk"]
    return "".join(chunk["text"] for chunk in chunks if chunk["node"] == node)


async def judge_store(lives: Lives, events: int) -> list[str]:
    """Return what is wrong with the store, if it was to deliver so many events."""
    file = lives.folder / "events.db"
    async with CallbackManager(store=SQLiteStore(file)) as manager:
        session = await find(manager)
        if session is None:
            return ["the session is gone"]
        stats = await session.stats()
    wrong = []
    if (stats.events_sent, stats.events_delivered) != (events, events):
        wrong.append(f"{events} events arrived, but the store says {stats}")
    with closing(sqlite3.connect(file)) as connection:
        found = connection.execute("PRAGMA integrity_check").fetchall()
    return wrong if found == [("ok",)] else [*wrong, f"the file is damaged: {found}"]


def run(source: str, folder: Path, seed: int, kills: int) -> int:
    """Let the agent live until its work is done, print how it went; return an exit code."""
    lives = Lives(folder, source, seed)
    begin = time.monotonic()
    most = MOST_SECONDS + MOST_PER_KILL * kills
    arrivals: list[Arrival] = []
    while not lives.is_done:
        left = begin + most - time.monotonic()
        if left <= 0:
            print(f"FAILED: not done within {most:.0f} s", flush=True)
            return 1
        life = lives.seconds(len(arrivals)) if lives.kills < kills else left
        was_killed = lives.live(min(life, left))
        arrivals = lives.arrivals()
        how = f"killed after {life:.2f} s" if was_killed else "lived to the end"
        print(f"life {lives.lives:3}  {how}  {len(arrivals):5} events arrived", flush=True)
    twice = len(arrivals) - len({arrival.id for arrival in arrivals})
    wrong = judge(arrivals, source)
    wrong += anyio.run(judge_store, lives, len(arrivals) - twice)
    print()
    print(f"killed      {lives.kills} times within {time.monotonic() - begin:.1f} s")
    print(f"arrived     {len(arrivals) - twice} events, {len(source)} characters of text")
    print(f"duplicates  {twice}, sent but not yet acknowledged at a kill; each has the same id")
    for line in wrong:
        print(f"FAILED: {line}")
    if not wrong:
        print("ALL WELL: nothing missing, nothing out of order, nothing acknowledged twice")
    return 1 if wrong else 0


def main() -> int:
    """Read the arguments and run a life, or all of them."""
    if sys.argv[1:2] == ["--life"]:
        folder, to = sys.argv[2:]
        anyio.run(live, Path(folder), to)
        return 0
    parser = argparse.ArgumentParser(description="Kill an agent until its work is done.")
    parser.add_argument(
        "file",
        nargs="?",
        type=Path,
        help="a text, or - for standard input; by default this program",
    )
    parser.add_argument("--seed", type=int, default=random.randrange(1000))
    parser.add_argument("--kills", type=int, default=KILLS, help="at most; by default %(default)s")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where to leave everything")
    chosen = parser.parse_args()
    try:
        source = read_text(None if str(chosen.file) == "-" else chosen.file or Path(__file__))
    except (OSError, ValueError) as exc:
        parser.error(str(exc))
    try:
        print(f"seed {chosen.seed}", flush=True)
        if chosen.keep is not None:
            chosen.keep.mkdir(parents=True)
            return run(source, chosen.keep, chosen.seed, chosen.kills)
        with tempfile.TemporaryDirectory(prefix="killed_agent-") as folder:
            return run(source, Path(folder), chosen.seed, chosen.kills)
    except KeyboardInterrupt:
        return 130  # 128 + SIGINT, as shells tell it


if __name__ == "__main__":
    sys.exit(main())
