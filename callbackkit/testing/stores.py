"""The suite that every store passes, ours or yours: :func:`check_store`."""

from __future__ import annotations

from collections.abc import Iterator

from callbackkit.testing.store_bench import Law
from callbackkit.testing.store_clock_laws import TURNED_CLOCK_LAWS
from callbackkit.testing.store_delivery_laws import DELIVERY_LAWS
from callbackkit.testing.store_endpoint_laws import ENDPOINT_CLOCK_LAWS, ENDPOINT_LAWS
from callbackkit.testing.store_keeping_laws import KEEPING_CLOCK_LAWS, KEEPING_LAWS
from callbackkit.testing.store_letter_laws import LETTER_CLOCK_LAWS, LETTER_LAWS
from callbackkit.testing.store_log_laws import LOG_CLOCK_LAWS, LOG_LAWS
from callbackkit.testing.store_orders import ORDER_LAWS
from callbackkit.testing.store_room import MakeStore, Room
from callbackkit.testing.store_session_laws import SESSION_LAWS
from callbackkit.testing.store_wake_laws import WAKE_LAWS

__all__ = ["check_store", "store_laws"]


def check_store(
    make: MakeStore,
    *,
    backend: str = "asyncio",
    manual_time: bool = True,
    patience: float = 5.0,
    examples: int = 25,
) -> None:
    """See that a store keeps every law of :class:`~callbackkit.stores.base.Store`.

    It is a whole test::

        @pytest.mark.parametrize("backend", ["asyncio", "trio"])
        def test_it_is_a_store(tmp_path, backend):
            names = map(str, itertools.count())
            check_store(lambda clock: MyStore(tmp_path / next(names), clock=clock), backend=backend)

    Each law is checked on a store of its own. Then readers, writers and workers meet at one in
    every order of their awaits. In the end random sequences of verbs are compared with a model;
    that takes Hypothesis, which ``callbackkit[testing]`` brings.

    Args:
        make: Makes an empty store, or an awaitable of one, that goes by the clock it is given.
        backend: The event loop, ``"asyncio"`` or ``"trio"``.
        manual_time: The store goes by that clock. ``False`` is for one whose time can't be set:
            then the laws of time wait, for some ten seconds in all, and those of hours and days
            are left out.
        patience: Real seconds a wake may take.
        examples: How many random sequences are tried.

    Raises:
        AssertionError: The store breaks a law; the message names it.
        ImportError: Hypothesis is not installed.
    """
    # Here, so that whoever checks no store needs no Hypothesis.
    from callbackkit.testing.store_machine import check_machine

    room = Room(make, backend, manual_time, patience)
    for law in store_laws(manual_time=manual_time):
        room.check(law)
    check_machine(room, examples=examples)


def store_laws(*, manual_time: bool = True) -> Iterator[Law]:
    """Yield the laws that are checked one by one."""
    yield from (*LOG_LAWS, *SESSION_LAWS, *WAKE_LAWS, *ENDPOINT_LAWS, *DELIVERY_LAWS, *LETTER_LAWS)
    yield from (*KEEPING_LAWS, *ORDER_LAWS)
    if manual_time:
        yield from (*LOG_CLOCK_LAWS, *KEEPING_CLOCK_LAWS, *ENDPOINT_CLOCK_LAWS)
        yield from (*LETTER_CLOCK_LAWS, *TURNED_CLOCK_LAWS)
