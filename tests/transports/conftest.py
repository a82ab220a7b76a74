"""A session that nobody has emitted to, in a store that does as it is told."""

import pytest

from callbackkit import CallbackManager, Session
from tests.sessions.rig import ToldStore


@pytest.fixture
def store() -> ToldStore:
    return ToldStore()


@pytest.fixture
def manager(store: ToldStore) -> CallbackManager:
    return CallbackManager(store)


@pytest.fixture
async def session(manager: CallbackManager) -> Session:
    return await manager.create_session()
