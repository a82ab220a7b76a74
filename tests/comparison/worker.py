"""Runs probes of one library, in a process of its own: ``python -m tests.comparison.worker``.

Arguments are the library and the probes; each gives a line of JSON. Whoever started this ends it
when a probe takes too long.
"""

import asyncio
import inspect
import json
import os
import sys
from collections.abc import Coroutine
from typing import Any

from tests.comparison.catalogue import PROBES, load
from tests.comparison.libraries.base import Library, NotOfferedError
from tests.comparison.verdicts import CRASHES, NOT_OFFERED, Verdict


def main(name: str, *probes: str) -> None:
    """Run the probes one after another, with a new registry each."""
    library = load(name)
    for probe in probes:
        verdict = run(library, probe)
        sys.stdout.write(json.dumps([verdict.word, verdict.detail]) + "\n")
        sys.stdout.flush()
    # Threads that hang must not keep this process.
    os._exit(0)


def run(library: type[Library], probe: str) -> Verdict:
    """Run one probe; what it lets through is a verdict, too."""
    try:
        subject = library()
        verdict = PROBES[probe](subject)
        if inspect.iscoroutine(verdict):
            verdict = asyncio.run(_running(subject, verdict))
    except NotOfferedError as error:
        return Verdict(NOT_OFFERED, str(error))
    except Exception as error:
        return Verdict(CRASHES, f"`{type(error).__name__}`: {error}")
    else:
        return verdict


async def _running(subject: Library, probe: Coroutine[Any, Any, Verdict]) -> Verdict:
    async with subject.running():
        return await probe


if __name__ == "__main__":
    main(*sys.argv[1:])
