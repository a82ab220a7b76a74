"""What the tests of the test kit share."""

from importlib import import_module
from importlib.metadata import entry_points

import anyio
import anyio.lowlevel
import pytest


@pytest.fixture(scope="session")
def imported() -> None:
    """Import what runs of pytest inside this process need.

    What such a run imports itself is forgotten after it, and would later be there twice.
    """
    for name in ("clock", "mocks", "recorder"):
        import_module(f"callbackkit.testing.{name}")
    for backend in ("asyncio", "trio"):
        anyio.run(anyio.lowlevel.checkpoint, backend=backend)


@pytest.fixture
def plugin(imported: None) -> list[str]:
    """Return what a run of pytest is to be told so that it has our plugin.

    An installed package brings it by itself; a checkout is asked for it.
    """
    is_installed = entry_points(group="pytest11", name="callbackkit")
    return [] if is_installed else ["-p", "callbackkit.testing.pytest_plugin"]
