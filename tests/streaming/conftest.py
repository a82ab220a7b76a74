"""What tests of streams share."""

import pytest

from callbackkit.streaming.scope import current_scope


@pytest.fixture(autouse=True)
def nothing_left_open() -> None:
    """Tests share a context, so a node that one left open is still open in the next."""
    current_scope.set(None)


@pytest.fixture
async def no_run_around() -> None:
    """The same for async tests, which share one of their own."""
    current_scope.set(None)
