"""Starts a worker for each library and makes verdicts of hangs and crashes."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.comparison.verdicts import CRASHES, HANGS, Verdict

ROOT = Path(__file__).parents[2]
PATIENCE = 20.0
"""Seconds a probe may take."""

Progress = Callable[[str, str], None]


def probed(
    library: str, probes: Sequence[str], progress: Progress = lambda library, probe: None
) -> dict[str, Verdict]:
    """Run probes of a library; one that hangs or crashes does not keep the others from running.

    Args:
        library: Which one.
        probes: Which ones.
        progress: Called with library and probe before each.
    """
    verdicts: dict[str, Verdict] = {}
    remaining = list(probes)
    while remaining:
        with _worker(library, remaining) as process:
            while remaining:
                progress(library, remaining[0])
                verdict = next_verdict(process)
                verdicts[remaining.pop(0)] = verdict
                if process.returncode is not None:
                    break
    return verdicts


def _worker(library: str, probes: Sequence[str]) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.comparison.worker", library, *probes],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def next_verdict(process: subprocess.Popen[str], patience: float = PATIENCE) -> Verdict:
    """Read what a worker says next; end it if it says nothing for that many seconds."""
    assert process.stdout is not None
    overdue = threading.Timer(patience, process.kill)
    overdue.start()
    line = process.stdout.readline()
    overdue.cancel()
    if line:
        return Verdict(*json.loads(line))
    code = process.wait()
    if code == -signal.SIGKILL:
        return Verdict(HANGS, "nothing happens any more")
    return Verdict(CRASHES, f"the process ends with code {code}")
