"""Where laws are checked: each on a fresh store, and a failure names the law that is broken."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Final, cast

import anyio
import attrs

from callbackkit.stores.base import Store
from callbackkit.testing.clock import ManualClock
from callbackkit.testing.store_bench import Bench, Law, TurningClock

__all__ = ["MakeStore", "Room", "broken"]

MakeStore = Callable[[ManualClock], Store | Awaitable[Store]]

# Real seconds one law may take; one that takes longer hangs.
_LONGEST: Final = 60.0


@attrs.frozen
class Room:
    """Makes stores and checks laws on them.

    Attributes:
        make: Makes an empty store.
        backend: The event loop.
        manual_time: The store goes by a clock that we set.
        patience: Real seconds a wake may take.
    """

    make: MakeStore
    backend: str
    manual_time: bool
    patience: float

    def check(self, law: Law) -> None:
        """See that a fresh store keeps a law.

        Raises:
            AssertionError: It breaks the law; the message has the docstring of *law*.
        """
        try:
            anyio.run(partial(self._keep, law), backend=self.backend)
        except Exception as error:
            text = " ".join(inspect.cleandoc(law.__doc__ or law.__name__).split())
            raise broken(text, error) from error

    async def _keep(self, law: Law) -> None:
        async with self.bench() as bench:
            with anyio.fail_after(_LONGEST):
                await law(bench)
                await bench.check_figures()

    @asynccontextmanager
    async def bench(self) -> AsyncGenerator[Bench]:
        """Make a store, and close it in the end, twice."""
        clock = TurningClock()
        made = self.make(clock)
        store = await made if inspect.isawaitable(made) else made
        try:
            yield Bench(store, clock if self.manual_time else None, self.patience)
        finally:
            with anyio.CancelScope(shield=True):
                await store.aclose()
                await store.aclose()


def broken(law: str, error: BaseException) -> AssertionError:
    """Return the error that names the law; *error* says how it is broken."""
    while isinstance(error, BaseExceptionGroup):
        error = cast("BaseExceptionGroup[BaseException]", error).exceptions[0]
    how = str(error)
    if isinstance(error, TimeoutError):
        how = "it takes for ever"
    elif not isinstance(error, AssertionError):
        how = f"{type(error).__name__}: {error}"
    return AssertionError(f"a law of Store is broken: {law}\n  {how}")
