"""The tables there are, by the name they are asked for with."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

from tests.benchmarks.async_dispatch import concurrent, sequential, timeouts
from tests.benchmarks.harness import Table
from tests.benchmarks.import_time import importing
from tests.benchmarks.registration import churn, memory, rotation
from tests.benchmarks.sync_dispatch import by_name, one_raises

Build = Callable[[], AbstractContextManager[Table]]


def all_tables(registered: int = 100_000) -> dict[str, Build]:
    """Return what builds each table.

    Args:
        registered: How many callbacks "many" are.
    """
    return {
        "sync-10": partial(by_name, 10, target=2.5, stretch=1.8),
        "sync-1": partial(by_name, 1, target=4.0),
        "sync-0": partial(by_name, 0, target=2.5),
        "awaited": sequential,
        "concurrent-suspending": partial(concurrent, "suspend", 1.2),
        "concurrent-ready": partial(concurrent, "do not suspend", 0.3),
        "timeout": timeouts,
        "failure": one_raises,
        "import": importing,
        "memory": partial(memory, registered),
        "register-empty": partial(churn, 0),
        "register-many": partial(churn, registered),
        "register-many-types": partial(churn, registered, 1_000),
        "register-oldest": partial(rotation, registered),
    }
