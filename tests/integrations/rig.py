"""A store that fails when it is told to, and waiting for what is delivered."""

import anyio
from anyio.lowlevel import checkpoint

from callbackkit import MemoryStore


class Failing(MemoryStore):
    """Fails with what it is given, where it is given something."""

    on_append: BaseException | None = None
    on_totals: BaseException | None = None

    async def append(self, *args, **options):
        if self.on_append is not None:
            raise self.on_append
        return await super().append(*args, **options)

    async def totals(self):
        if self.on_totals is not None:
            raise self.on_totals
        return await super().totals()


async def until_none(session, figure: str) -> None:
    with anyio.fail_after(10):
        while (await session.stats())[figure]:
            await checkpoint()


async def until_settled(session) -> None:
    await until_none(session, "queued_events")
