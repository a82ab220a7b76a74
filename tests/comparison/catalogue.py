"""Which probes and which libraries there are."""

from collections.abc import Callable, Coroutine
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from tests.comparison.libraries.base import Library
from tests.comparison.probes import changes, isolation, threads, waiting
from tests.comparison.verdicts import Verdict

Probe = Callable[[Library], Verdict | Coroutine[Any, Any, Verdict]]

PROBES: dict[str, Probe] = {
    probe.__name__.replace("_", "-"): probe
    for module in (isolation, waiting, changes, threads)
    for probe in module.PROBES
}
"""What each probe does and asks for stands in its docstring."""

OURS = "callbackkit"
LIBRARIES = {
    OURS: "ours.OurLibrary",
    "blinker": "blinker.BlinkerLibrary",
    "pyee": "pyee.PyeeLibrary",
    "psygnal": "psygnal.PsygnalLibrary",
    "django.dispatch": "django.DjangoLibrary",
}
"""Where each library is, by the name users call it."""

DISTRIBUTIONS = {
    "blinker": "blinker",
    "pyee": "pyee",
    "psygnal": "psygnal",
    "django.dispatch": "django",
}
"""What the peers are installed as."""


def load(name: str) -> type[Library]:
    """Import a library; only a worker does, so that peers stay out of other processes."""
    module, _, attribute = LIBRARIES[name].partition(".")
    found: type[Library] = getattr(import_module(f"tests.comparison.libraries.{module}"), attribute)
    return found


def installed() -> dict[str, str]:
    """Return the version of each peer that is installed."""
    versions = {}
    for name, distribution in DISTRIBUTIONS.items():
        try:
            versions[name] = version(distribution)
        except PackageNotFoundError:
            continue
    return versions
