"""The example of an agent that is killed at random: its session is whole all the same."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs
import pytest

from callbackkit.__main__ import load

EXAMPLES = Path(__file__).parents[2] / "examples"
WORDS = "".join(f"word-{number} " for number in range(60))


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(EXAMPLES)
    return load(EXAMPLES / "killed_agent.py")


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, EXAMPLES / "killed_agent.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)


def test_an_agent_that_is_killed_again_and_again_does_its_work(tmp_path: Path) -> None:
    done = run("--seed", "4", "--kills", "6", "--keep", tmp_path / "kept")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert done.stdout.splitlines()[-1].startswith("ALL WELL")
    assert "killed after" in done.stdout
    assert (tmp_path / "kept" / "events.db").is_file()


def test_the_line_ends_of_a_text_stay_what_they_are(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_bytes(b"# Tea\r\n\r\nboil, wait, pour\r\n")
    done = run(text, "--kills", "1")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout


def test_a_bad_text_is_told_before_anybody_is_killed(tmp_path: Path) -> None:
    done = run(tmp_path / "nowhere.txt")
    assert (done.returncode, done.stdout) == (2, "")
    assert "nowhere.txt" in done.stderr.splitlines()[-1]


@pytest.mark.real_server
def test_killed_while_it_sends_mails_it_sends_them_all(
    example: ModuleType, tmp_path: Path, mail: Any
) -> None:
    lives = example.Lives(tmp_path, WORDS, 7, f"127.0.0.1:{mail.port}")
    for seconds in (0.7, 0.9):
        lives.live(seconds)
        # Away, then back: whatever it was about to be handed is handed to it later.
        mail.stop()
        lives.live(0.7)
        mail.start()
    lives.live(30)
    assert lives.is_done
    arrivals = [
        example.Arrival(delivery_id, event["id"], event["event_type"], event["data"])
        for delivery_id, event in zip(mail.ids, mail.events, strict=True)
    ]
    assert example.judge(arrivals, WORDS) == []


# The judge.


def arrived(example: ModuleType, words: str = "ab") -> list[Any]:
    """What arrives if nobody is killed."""
    chunks: list[tuple[str, dict[str, Any]]] = [
        ("streaming_chunk", {"text": word, "node": "read_aloud"}) for word in words
    ]
    return [
        example.Arrival(f"s_e_{number}", f"e-{number}", event_type, data, 1)
        for number, (event_type, data) in enumerate([*chunks, ("completion", {})], 1)
    ]


def test_what_came_whole_is_well(example: ModuleType) -> None:
    assert example.judge(arrived(example), "ab") == []


def test_what_came_twice_over_a_kill_is_well(example: ModuleType) -> None:
    first, *rest = arrived(example)
    assert example.judge([first, attrs.evolve(first, life=2), *rest], "ab") == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda a: [a[0], *a[2:]], "event 3 came behind event 1"),
        (lambda a: [a[1], a[0], a[2]], "event 1 came behind event 2"),
        (lambda a: [*a[:2], a[0], a[2]], "event 1 came behind event 2"),
        (lambda a: [a[0], *a], "nobody had been killed"),
        (lambda a: [a[0], attrs.evolve(a[0], id="other", life=2), *a[1:]], "behind event 1"),
        (lambda a: [a[0], attrs.evolve(a[0], data={}, life=2), *a[1:]], "behind event 1"),
        (lambda a: a[1:], "the beginning is missing"),
        (lambda a: a[:-1], "the end is missing"),
        (lambda a: [], "the words do not make the text"),
    ],
    ids=["hole", "swapped", "back", "twice", "id", "data", "beginning", "end", "nothing"],
)
def test_what_is_wrong_is_told(
    example: ModuleType, change: Callable[[list[Any]], list[Any]], told: str
) -> None:
    wrong = example.judge(change(arrived(example)), "ab")
    assert told in "; ".join(wrong)


def test_half_a_line_is_nothing(example: ModuleType, tmp_path: Path) -> None:
    whole = arrived(example)[0]
    line = example.json.dumps(attrs.asdict(whole))
    (tmp_path / "file").write_text(f"\n{line}\n\n{line[:20]}\n{line}\n")
    assert example.read_arrivals(tmp_path / "file") == [whole, whole]


# Heavy rounds.


@pytest.mark.torture
@pytest.mark.parametrize("seed", range(10))
def test_fifty_kills_change_nothing(seed: int, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text((EXAMPLES / "killed_agent.py").read_text("utf-8") * 3, "utf-8")
    done = run(text, "--seed", str(seed), "--kills", "50")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
