"""The suite that every transport passes, ours or yours: :func:`check_transport`."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Final, cast

import anyio

from callbackkit.delivery.transport import DeliveryConfig, Transport
from callbackkit.testing.transport_bench import (
    Asked,
    Break,
    MakeTransport,
    Received,
    TransportBench,
    TransportLaw,
)
from callbackkit.testing.transport_laws import TRANSPORT_LAWS, survives_an_outage

__all__ = ["check_transport"]

# Real seconds one law may take; one that takes longer hangs.
_LONGEST: Final = 60.0


def check_transport(
    make: MakeTransport,
    received: Received,
    *,
    options: Mapping[str, Any] | None = None,
    config: DeliveryConfig | None = None,
    break_destination: Break | None = None,
    backend: str = "asyncio",
    patience: float = 5.0,
    examples: int = 15,
) -> None:
    """See that a transport keeps every law of :class:`~callbackkit.Transport`.

    It is a whole test, with the real destination or one made for it::

        def test_it_is_a_transport(tmp_path):
            path = tmp_path / "events.jsonl"
            path.touch()
            check_transport(
                lambda: FileTransport(path),
                lambda: [json.loads(line)["id"] for line in path.read_text().splitlines()],
            )

    Each law is checked on a transport of its own. In the end it is driven by two engines while
    sends fail, answers get lost, leases run out and engines are killed at random; that takes
    Hypothesis, which ``callbackkit[testing]`` brings.

    Args:
        make: Makes a transport, or an awaitable of one; all of one destination.
        received: Returns, or is awaited for, the ids of the events that the destination has, in
            the order in which they came in, from the first one ever. So the transport has to
            carry ``event.id`` somewhere.
        options: The ``options`` of the session.
        config: All that the client asked for, if the transport wants more than options.
        break_destination: Called with ``True``, or awaited, to put the destination out of order,
            and with ``False`` to put it in order. Without it outages are not checked.
        backend: The event loop, ``"asyncio"`` or ``"trio"``.
        patience: Real seconds that a send may take.
        examples: How many random sequences are tried.

    Raises:
        AssertionError: The transport breaks a law; the message names it.
        ImportError: Hypothesis is not installed.
    """
    # Here, so that whoever checks no transport needs no Hypothesis.
    from callbackkit.testing.transport_rounds import check_rounds

    def run(function: Callable[[TransportBench], Awaitable[None]], text: str) -> None:
        try:
            anyio.run(partial(_on_bench, function), backend=backend)
        except Exception as error:
            raise _broken(text, error) from error

    async def _on_bench(function: Callable[[TransportBench], Awaitable[None]]) -> None:
        made = make()
        transport = await made if inspect.isawaitable(made) else made
        if not isinstance(cast(object, transport), Transport):
            raise AssertionError(f"make() gave {transport!r:.200}, which is no Transport")
        asked = config or Asked(
            delivery_method=getattr(transport, "name", ""), options=options or {}
        )
        bench = TransportBench(transport, asked, patience, received)
        with anyio.fail_after(_LONGEST):
            await bench.begin()
            # Twice, here and below: that is a law too.
            await transport.start()
            await transport.start()
            try:
                await function(bench)
            finally:
                with anyio.move_on_after(patience, shield=True):
                    await transport.aclose()
                    await transport.aclose()

    laws: list[TransportLaw] = [*TRANSPORT_LAWS]
    if break_destination is not None:
        laws.append(survives_an_outage(break_destination))
    for law in laws:
        run(law, " ".join(inspect.cleandoc(law.__doc__ or "").split()))
    faults = "Whatever goes wrong around it, every event arrives, in order, once for each send."
    check_rounds(lambda play: run(play, faults), examples=examples)


def _broken(law: str, error: BaseException) -> AssertionError:
    """Return the error that names the law; *error* says how it is broken."""
    while isinstance(error, BaseExceptionGroup):
        error = cast("BaseExceptionGroup[BaseException]", error).exceptions[0]
    how = str(error)
    if isinstance(error, TimeoutError):
        how = f"it takes for ever ({how})" if how else "it takes for ever"
    elif not isinstance(error, AssertionError):
        how = f"{type(error).__name__}: {error}"
    return AssertionError(f"a law of Transport is broken: {law}\n  {how}")
