"""Random faults around a transport: whatever goes wrong, the engine gets everything through."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final

import anyio
import attrs
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint

from callbackkit.delivery.engine import DeliveryEngine
from callbackkit.delivery.policy import Batching, CircuitBreaker, RetryPolicy
from callbackkit.delivery.transport import Delivery, DeliveryConfig, Transport
from callbackkit.errors import Retry
from callbackkit.stores.base import NewSession
from callbackkit.stores.memory import MemoryStore
from callbackkit.testing.clock import ManualClock
from callbackkit.testing.messages import show
from callbackkit.testing.transport_bench import Asked, TransportBench, body

try:
    from hypothesis import HealthCheck, Phase, given, settings, strategies as st
except ImportError as _error:
    raise ImportError(
        "check_transport needs Hypothesis: pip install 'callbackkit[testing]'"
    ) from _error

__all__ = ["check_rounds"]

_SESSIONS: Final = 3
# Longer than any lease of a transport that is checked, and than any delay.
_LONG: Final = 10_000.0
# What goes wrong with a send: the destination refuses, asks for time, its answer is lost, the
# lease runs out first; or the whole engine is killed.
_FAULTS: Final = ("refuse", "later", "unheard", "lapse", "kill")

_steps = st.lists(
    st.one_of(
        st.tuples(st.just("emit"), st.integers(0, _SESSIONS - 1)),
        st.tuples(st.just("fault"), st.sampled_from(_FAULTS)),
        st.tuples(st.just("wait"), st.sampled_from((1, 30))),
    ),
    min_size=1,
    max_size=14,
)


def check_rounds(run: Callable[[Callable[[TransportBench], Any]], None], *, examples: int) -> None:
    """See that sequences of emits and faults end with everything delivered, in order.

    Args:
        run: Runs an async function with a transport that was made for it.
        examples: How many sequences.

    Raises:
        AssertionError: Something is missing, out of order or doubled by the transport.
    """

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        report_multiple_bugs=False,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(steps=_steps, is_batched=st.booleans())
    def check(steps: list[tuple[str, Any]], is_batched: bool) -> None:
        async def play(bench: TransportBench) -> None:
            batching = Batching(max_events=3, max_delay=0.0) if is_batched else None
            config = Asked(
                delivery_method=bench.transport.name,
                options=bench.config.options,
                base=bench.config,
                batching=batching,
            )
            await _Round(bench, config).play(steps)

        run(play)

    check()


class _Faulty(Transport):
    """The transport that is checked, with faults around it; each engine has its own."""

    def __init__(self, game: _Round, inner: Transport) -> None:
        self.name = inner.name
        self.timeout = inner.timeout
        self.concurrency = inner.concurrency
        self.retry = RetryPolicy(schedule=(1.0,) * 1000, jitter=0.0)
        self.breaker = CircuitBreaker(failures=3, open_for=5.0, max_open=5.0, disable_after=None)
        self._inner = inner
        self._game = game

    def endpoint(self, session_id: str, config: DeliveryConfig) -> str:
        return self._inner.endpoint(session_id, config)

    async def send(self, delivery: Delivery) -> None:
        fault = self._game.faults.pop() if self._game.faults else ""
        if fault == "refuse":
            raise OSError("refused")
        if fault == "later":
            raise Retry(after=0.5, reason="busy")
        if fault == "kill":
            await self._game.kill(self)
        if fault == "lapse":
            await self._game.wait(_LONG)
        for event in delivery.events:
            self._game.sends.append(event.id)
        await self._inner.send(delivery)
        if fault == "unheard":
            raise OSError("the answer was lost")


@attrs.define(eq=False)
class _Round:
    """Sessions in a store, and two engines that serve them.

    Attributes:
        bench: The transport and its destination.
        config: What the clients ask for.
        faults: What is to go wrong with the next sends, the last one first.
        sends: Ids of the events that the transport was given, once for each time.
    """

    bench: TransportBench
    config: Asked
    faults: list[str] = attrs.field(factory=list[str])
    sends: list[str] = attrs.field(factory=list[str])
    _clock: ManualClock = attrs.field(factory=ManualClock)
    _engines: dict[_Faulty, tuple[DeliveryEngine, anyio.CancelScope]] = attrs.field(
        factory=dict[_Faulty, tuple[DeliveryEngine, anyio.CancelScope]]
    )
    _store: MemoryStore = attrs.field(init=False)
    _expected: dict[str, list[str]] = attrs.field(factory=dict[str, list[str]])
    _group: TaskGroup = attrs.field(init=False)

    async def play(self, steps: list[tuple[str, Any]]) -> None:
        self._store = MemoryStore(clock=self._clock)
        for n in range(_SESSIONS):
            new = NewSession(
                id=f"check-{n}", token_hash=b"", method=self.bench.transport.name, pushes=True
            )
            await self._store.create_session(new)
            self._expected[new.id] = []
        async with anyio.create_task_group() as self._group:
            for _ in range(2):
                await self._start_engine()
            for kind, value in steps:
                await self._step(kind, value)
            self.faults.clear()
            await self._settle()
            self._group.cancel_scope.cancel()
        await self._check()

    async def _step(self, kind: str, value: Any) -> None:
        if kind == "emit":
            session_id = f"check-{value}"
            added = await self._store.append(session_id, "progress", body({"progress": 0.5}))
            self._expected[session_id].append(f"{added.epoch}-{added.record.seq}")
        elif kind == "fault":
            self.faults.insert(0, value)
        else:
            await self.wait(float(value))

    async def _start_engine(self) -> None:
        transport = _Faulty(self, self.bench.transport)
        engine = DeliveryEngine(
            self._store,
            [transport],
            read_config=lambda _text: self.config,
            decode=json.loads,
            notify=_ignore,
            clock=self._clock,
            random=lambda: 0.5,
        )
        scope = anyio.CancelScope()

        async def run(*, task_status: Any = anyio.TASK_STATUS_IGNORED) -> None:
            with scope:
                await engine.run(task_status=task_status)

        await self._group.start(run)
        self._engines[transport] = (engine, scope)

    async def kill(self, transport: _Faulty) -> None:
        """End the engine that is sending right now; another takes its place."""
        _, scope = self._engines.pop(transport)
        scope.cancel()
        self._group.start_soon(self._start_engine)
        await checkpoint()

    async def wait(self, seconds: float) -> None:
        """Let time pass, and the engines see it."""
        self._clock.advance(seconds)
        for engine, _ in tuple(self._engines.values()):
            engine.wake()
        for _ in range(5):
            await checkpoint()

    async def _settle(self) -> None:
        with anyio.move_on_after(self.bench.patience):
            while (await self._store.totals()).queued:
                await self.wait(1.0)
                await anyio.sleep(0.001)
            return
        raise AssertionError("the faults are over, and events are still not delivered")

    async def _check(self) -> None:
        totals = await self._store.totals()
        assert totals.failed == 0, f"{totals.failed} events became dead letters"
        arrived = await self.bench.arrived()
        first = list(dict.fromkeys(arrived))
        for session_id, expected in self._expected.items():
            here = [each for each in first if each in set(expected)]
            assert here == expected, (
                f"of {session_id} arrived {show(here)} instead of {show(expected)}"
            )
        for each in first:
            times, sent = arrived.count(each), self.sends.count(each)
            assert times <= sent, f"{each} was sent {sent} times, and arrived {times} times"


async def _ignore(_event_type: str, _session_id: str, _data: object) -> None:
    """Operators are told nothing here."""
