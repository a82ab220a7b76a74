"""A process of receivers that tests share, and both stores."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from callbackkit.stores.base import Store
from callbackkit.stores.memory import MemoryStore
from callbackkit.stores.sqlite import SQLiteStore
from tests.webhooks.rig import Receiver, ReceiverProcess


@pytest.fixture(scope="session")
def receivers() -> Iterator[ReceiverProcess]:
    """A process whose receivers do as they are told."""
    process = ReceiverProcess()
    yield process
    assert process.end() == ""


@pytest.fixture
async def receiver(receivers: ReceiverProcess) -> Receiver:
    """One receiver of that process, which nobody else uses."""
    return await receivers.open()


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """A store that is not started."""
    return MemoryStore() if request.param == "memory" else SQLiteStore(tmp_path / "events.db")
