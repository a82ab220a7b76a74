"""The example of a session in a file: killed at any moment, it goes on where it was."""

import re
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "session.py"
STEPS = 25


def start(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, EXAMPLE, "events.db"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=folder)


def live(folder: Path, lines: int) -> list[str]:
    """Start it, kill it when it has printed so many lines, and return all it printed."""
    with start(folder) as program:
        assert program.stdout is not None
        printed = [line.rstrip("\n") for line in islice(program.stdout, lines)]
        program.kill()
        # What was printed in the last moment counts too, for it was noted, or was about to be.
        return printed + program.stdout.read().splitlines()


def steps(printed: list[str]) -> list[int]:
    return [int(found[1]) for line in printed if (found := re.search(r"% step (\d+)$", line))]


def test_killed_and_started_again_it_prints_every_step_in_order_then_begins_anew(
    tmp_path: Path,
) -> None:
    lives = [live(tmp_path, lines) for lines in (1, 6, 2, 9, 100)]
    [session] = {line.split()[1] for printed in lives for line in printed[:1]}
    assert [printed[0] for printed in lives[1:]] == [f"session {session} goes on"] * 4
    assert lives[-1][-1] == "session ended"
    seen: list[int] = []
    for printed in lives:
        numbers = steps(printed)
        # Killed between the line and the note of it, it prints that line again, and no other.
        if seen and numbers and numbers[0] == seen[-1]:
            numbers = numbers[1:]
        seen += numbers
    assert seen == list(range(1, STEPS + 1))
    # The next time there is nothing to go on with.
    begun, first_step = live(tmp_path, 2)[:2]
    assert begun.endswith(" begins")
    assert session not in begun
    assert steps([first_step]) == [1]


@pytest.mark.torture
def test_killed_at_any_line_it_prints_every_step(tmp_path: Path) -> None:
    for place in range(1, STEPS + 2):
        folder = tmp_path / str(place)
        folder.mkdir()
        seen = steps(live(folder, place)) + steps(live(folder, 100))
        assert sorted(set(seen)) == list(range(1, STEPS + 1))
        assert len(seen) <= STEPS + 1
