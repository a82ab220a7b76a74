"""How long ``import callbackkit`` takes, each time in a new interpreter."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from tests.benchmarks.harness import Case, Measure, Table

BASE = "import anyio, attrs, typing_extensions, asyncio"


@contextmanager
def importing() -> Iterator[Table]:
    """Import the package and touch its registry, against importing what it depends on."""
    with tempfile.TemporaryDirectory() as cache:
        yield Table(
            "import callbackkit over importing its three dependencies and asyncio",
            [
                Case("limit: anyio, attrs, typing_extensions, asyncio", _interpreter(BASE, cache)),
                Case(
                    "callbackkit.CallbackRegistry",
                    _interpreter("import callbackkit; callbackkit.CallbackRegistry", cache),
                    1.15,
                ),
                Case("import callbackkit alone", _interpreter("import callbackkit", cache)),
            ],
            number=1,
            repeat=3,
        )


def _interpreter(statement: str, cache: str) -> Measure:
    """Measure a statement inside an interpreter of its own, without the interpreter's start.

    All read compiled modules, from a cache of our own: whether an installer or an environment
    variable has kept others from being written must not make the difference.
    """
    program = (
        "from time import process_time; began = process_time()\n"
        f"{statement}\n"
        "print(process_time() - began)"
    )
    environment = {
        **{name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"},
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "PYTHONPYCACHEPREFIX": cache,
    }

    def measure(number: int) -> float:
        command = [sys.executable, "-P", "-c", program]
        return sum(
            float(subprocess.check_output(command, env=environment, text=True))
            for _ in range(number)
        )

    measure(1)  # compiles what is not compiled yet
    return measure
