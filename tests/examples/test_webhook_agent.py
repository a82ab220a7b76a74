"""The example of an agent whose receiver is in trouble: all of it arrives, once and in order."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import anyio
import attrs
import pytest

from callbackkit import CallbackManager, Delivery, RetryPolicy, Session, Transport
from callbackkit.__main__ import load
from callbackkit.stores.sqlite import SQLiteStore

EXAMPLES = Path(__file__).parents[2] / "examples"
PARTS = "text_stream.py", "flask_receiver.py", "webhook_agent.py"
WORDS = "".join(f"word-{number} " for number in range(60))


@pytest.fixture
def example() -> ModuleType:
    return [load(EXAMPLES / name) for name in PARTS][-1]


def run(folder: Path, text: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, folder / "webhook_agent.py", text]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=110)


@pytest.fixture
def words(tmp_path: Path) -> Path:
    path = tmp_path / "words"
    path.write_text(WORDS, "utf-8")
    return path


@pytest.mark.real_server
@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("line", "other", "told"),
    [
        pytest.param(
            # It tells that it has what it has not.
            "if webhook in self._kept:",
            'if webhook.endswith("_7"):',
            "event 8 came behind event 6",
            id="hole",
            # It takes as long as the whole demonstration, which test_demo.py has.
            marks=pytest.mark.torture,
        ),
        pytest.param(
            "app = Flask(__name__)",
            "raise SystemExit(3)",
            "receiver ended by itself with exit code",
            id="gone",
        ),
    ],
)
def test_a_receiver_that_is_worse_than_that_is_found_out(
    words: Path, tmp_path: Path, line: str, other: str, told: str
) -> None:
    folder = tmp_path / "examples"
    folder.mkdir()
    for name in PARTS:
        shutil.copy(EXAMPLES / name, folder)
    receiver = folder / "flask_receiver.py"
    source = receiver.read_text("utf-8")
    assert source.count(line) == 1
    receiver.write_text(source.replace(line, other), "utf-8")
    done = run(folder, words)
    assert (done.returncode, done.stderr) == (1, ""), done.stdout
    assert f"FAILED: {told}" in done.stdout or f"FAILED: the {told}" in done.stdout
    assert "ALL WELL" not in done.stdout


def test_a_bad_text_is_told_before_anybody_works(tmp_path: Path) -> None:
    done = run(EXAMPLES, tmp_path / "nowhere.txt")
    assert (done.returncode, done.stdout) == (2, "")
    assert "nowhere.txt" in done.stderr.splitlines()[-1]


# The children.


@pytest.mark.real_server
@pytest.mark.parametrize("what", ["--agent", "--receiver"])
def test_a_child_ends_with_its_parent(
    what: str, words: Path, tmp_path: Path, example: ModuleType
) -> None:
    (tmp_path / "text").write_text(WORDS, "utf-8")
    with example.socket.socket() as held:
        held.setsockopt(example.socket.SOL_SOCKET, example.socket.SO_REUSEPORT, 1)
        held.bind(("127.0.0.1", 0))
        child = subprocess.Popen(
            [sys.executable, EXAMPLES / PARTS[-1], what, tmp_path, str(held.getsockname()[1])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n")
        child.stdin.flush()
        assert '"kind"' in child.stdout.readline()
        # As when the parent is killed.
        child.stdin.close()
        try:
            assert child.wait(timeout=10) == 1
        finally:
            child.kill()
            child.stdout.close()


async def test_a_child_that_ends_by_itself_is_told(example: ModuleType) -> None:
    for code in ("raise SystemExit(3)", "print('{}'); raise SystemExit(3)"):
        process = await anyio.open_process([sys.executable, "-c", code])
        child = example.Child("agent", process)
        with pytest.raises(RuntimeError, match="the agent ended by itself with exit code 3"):
            await child.listen(lambda _: None)
        await child.aclose()


async def test_a_child_that_was_killed_is_no_surprise(example: ModuleType) -> None:
    process = await anyio.open_process([sys.executable, "-c", "input()"])
    child = example.Child("agent", process)
    await child.kill()
    await child.listen(lambda _: None)
    await child.aclose()


# The judge.


def arrived(example: ModuleType, words: str = "ab") -> list[Any]:
    """What is kept of a short text."""
    chunks: list[tuple[str, dict[str, Any]]] = [
        ("streaming_chunk", {"text": word, "node": "read_aloud"}) for word in words
    ]
    return [
        example.Arrival(f"s_e_{number}", f"e-{number}", event_type, data)
        for number, (event_type, data) in enumerate([*chunks, ("completion", {})], 1)
    ]


def test_what_came_whole_is_well(example: ModuleType) -> None:
    assert example.judge(arrived(example), "ab") == []


def test_what_came_twice_by_the_same_webhook_is_well(example: ModuleType) -> None:
    first, *rest = arrived(example)
    assert example.judge([first, first, *rest, first], "ab") == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda a: [a[0], *a[2:]], "event 3 came behind event 1"),
        (lambda a: [a[1], a[0], a[2]], "event 1 came behind event 2"),
        (lambda a: [a[0], attrs.evolve(a[0], webhook="w_e_9"), *a[1:]], "1 came behind event 1"),
        (lambda a: [a[0], attrs.evolve(a[0], data={}), *a[1:]], "s_e_1 came as something else"),
        (lambda a: [attrs.evolve(a[0], event="e-x"), *a[1:]], "event -1 came behind event 0"),
        (lambda a: a[1:], "event 2 came behind event 0"),
        (lambda a: a[:-1], "the end is missing"),
        (lambda a: [], "the end is missing; the words do not make the text"),
    ],
    ids=["hole", "swapped", "twice", "another", "no number", "beginning", "end", "nothing"],
)
def test_what_is_wrong_is_told(
    example: ModuleType, change: Callable[[list[Any]], list[Any]], told: str
) -> None:
    assert told in "; ".join(example.judge(change(arrived(example)), "ab"))


def requests(example: ModuleType, *numbers: int, wrong: str = "") -> list[Any]:
    return [example.Seen(f"s_e_{number}", wrong, example.WELL) for number in numbers]


def test_requests_that_come_again_until_they_worked_are_well(example: ModuleType) -> None:
    seen = requests(example, 1, 1, 1, 2, 2, 3)
    assert example.judge_requests(seen, arrived(example)) == []


@pytest.mark.parametrize(
    ("numbers", "told"),
    [
        ((1, 2, 1, 3), "event 1 was sent behind event 2"),
        ((1, 3), "event e-2 was never sent"),
        ((), "event e-1 was never sent"),
    ],
)
def test_requests_out_of_order_are_told(
    example: ModuleType, numbers: tuple[int, ...], told: str
) -> None:
    wrong = example.judge_requests(requests(example, *numbers), arrived(example))
    assert told in "; ".join(wrong)


def test_a_wrong_signature_is_told_also_of_a_request_that_failed(example: ModuleType) -> None:
    seen = requests(example, 1, 2, 3)
    seen.insert(1, attrs.evolve(seen[0], wrong="no signature is right", mood=example.BROKEN))
    wrong = example.judge_requests(seen, arrived(example))
    assert wrong == ["webhook s_e_1: no signature is right"]


# The store.


class Wall(Transport):
    """Delivers what it is told to deliver, and gives up on the rest."""

    name = "wall"
    retry = RetryPolicy(schedule=())
    breaker = None

    async def send(self, delivery: Delivery) -> None:
        if delivery.event.data["progress"] < 0.5:
            raise ConnectionError("a wall")


async def until_settled(session: Session) -> None:
    while True:
        if (await session.stats()).queued_events == 0:
            return
        await anyio.sleep(0.01)


async def test_a_store_that_has_another_number_or_dead_letters_is_told(
    example: ModuleType, tmp_path: Path
) -> None:
    file = tmp_path / "events.db"
    async with CallbackManager(SQLiteStore(file), [Wall()], linger=600.0) as manager:
        session = await manager.create_session({"delivery_method": "wall"}, owner="agent")
        await session.progress(1.0)
        await until_settled(session)
    assert await example.judge_store(file, 1) == []
    [told] = await example.judge_store(file, 2)
    assert told.startswith("2 events arrived, but the store says ")
    async with CallbackManager(SQLiteStore(file), [Wall()]) as manager:
        [session] = [each async for each in manager.sessions(owner="agent")]
        await session.progress(0.0)
        await until_settled(session)
    assert "1 dead letters" in await example.judge_store(file, 2)
    async with CallbackManager(SQLiteStore(file)) as manager:
        await manager.delete_session(session.id)
    assert await example.judge_store(file, 0) == ["the session is gone"]


# Heavy rounds.


@pytest.mark.torture
@pytest.mark.timeout(1000)
def test_again_and_again_it_is_all_well(tmp_path: Path) -> None:
    for _ in range(10):
        done = run(EXAMPLES, EXAMPLES / "webhook_agent.py")
        assert (done.returncode, done.stderr) == (0, ""), done.stdout
