"""Random sequences of verbs give what the model says."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Final

import anyio.from_thread
from anyio.from_thread import BlockingPortal

from callbackkit.testing.store_bench import Bench
from callbackkit.testing.store_delivery_driver import DeliveryDriver
from callbackkit.testing.store_driver import LONG
from callbackkit.testing.store_room import Room, broken

try:
    from hypothesis import HealthCheck, Phase, settings, strategies as st
    from hypothesis.stateful import (
        RuleBasedStateMachine,
        initialize,
        invariant,
        precondition,
        rule,
        run_state_machine_as_test,
    )
except ImportError as _error:
    raise ImportError(
        "check_store needs Hypothesis: pip install 'callbackkit[testing]'"
    ) from _error

__all__ = ["check_machine"]

_STEPS: Final = 40
_DELAYS: Final = (0.0, 5.25, 30.25)

_picks = st.integers(0, 7)
_flags = st.booleans()
# Those that make a way to the rest stand more than once.
_settling = st.sampled_from(["ack", "ack", "ack", "retry", "retry", "park", "park", "renew"])
_adding = st.sampled_from(["owed", "owed", "not owed", "a", "b"])
_afters = st.none() | st.just("elsewhere") | st.integers(0, 12)
_limits = st.integers(1, 6)
_configs = st.sampled_from([b"{}", b'{"a":1}', b'{"a":2}'])
_unowed = st.sampled_from([(), ("progress",), ("thinking", "progress")])
_seldom = st.sampled_from([False, False, False, True])


def check_machine(room: Room, *, examples: int, shrink: bool = True) -> None:
    """See that random sequences of verbs give what the model says.

    Args:
        room: Where.
        examples: How many sequences.
        shrink: Look for a short sequence once one has failed.

    Raises:
        AssertionError: One does not; the message has the sequence.
    """
    phases = [Phase.generate, Phase.shrink][: 1 + shrink]
    chosen = settings(
        max_examples=examples,
        stateful_step_count=_STEPS,
        deadline=None,
        database=None,
        phases=phases,
        report_multiple_bugs=False,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
    with anyio.from_thread.start_blocking_portal(room.backend) as portal:

        class Here(StoreMachine):
            def __init__(self) -> None:
                super().__init__(portal, room)

        try:
            run_state_machine_as_test(Here, settings=chosen)
        except Exception as error:
            notes = "\n".join(getattr(error, "__notes__", ()))
            raise broken(
                f"random sequences of verbs give what the model says\n{notes}", error
            ) from error


class StoreMachine(RuleBasedStateMachine):
    """Verbs of a store, in any order, beside its model."""

    def __init__(self, portal: BlockingPortal, room: Room) -> None:
        super().__init__()
        self._manager: AbstractContextManager[Bench] = portal.wrap_async_context_manager(
            room.bench()
        )
        self._driver = DeliveryDriver(portal, self._manager.__enter__())

    def teardown(self) -> None:
        self._manager.__exit__(None, None, None)

    @property
    def has_claims(self) -> bool:
        return bool(self._driver.model.held)

    @initialize()
    def begin(self) -> None:
        self._driver.create(pushes=True, is_small=True, expires=False)
        self._driver.create(pushes=False, is_small=True, expires=False)

    @precondition(lambda self: len(self._driver.model.sessions) < 5)
    @rule(pushes=_flags, is_small=_flags, expires=_flags)
    def create(self, pushes: bool, is_small: bool, expires: bool) -> None:
        self._driver.create(pushes, is_small, expires)

    @precondition(lambda self: len(self._driver.model.readable()) > 2)
    @rule(number=_picks, way=st.sampled_from(["end", "end later", "delete"]))
    def leave(self, number: int, way: str) -> None:
        if way == "delete":
            self._driver.delete(number)
        else:
            self._driver.end(number, 20.125 if way == "end" else LONG)

    @rule(number=_picks, config=_configs, unowed=_unowed, is_late=_seldom)
    def update(self, number: int, config: bytes, unowed: tuple[str, ...], is_late: bool) -> None:
        self._driver.update(number, config, unowed, is_late)

    @rule(number=_picks, adds=st.lists(st.tuples(_adding, _flags), min_size=1, max_size=6))
    def append(self, number: int, adds: list[tuple[str, bool]]) -> None:
        for way, text in adds:
            key = way if way in {"a", "b"} else None
            self._driver.append(number, owed=way != "not owed", key=key, text=int(text))

    @rule(
        number=_picks, reads=st.lists(st.tuples(_afters, _limits, _flags), min_size=1, max_size=4)
    )
    def read(self, number: int, reads: list[tuple[int | str | None, int, bool]]) -> None:
        for after, limit, owed in reads:
            self._driver.read(number, after, limit, owed)
            self._driver.tail(number, limit)

    @rule(number=_picks, touches=st.lists(st.none() | st.integers(0, 12), max_size=4))
    def touch(self, number: int, touches: list[int | None]) -> None:
        for upto in touches:
            self._driver.touch(number, upto)

    @rule(number=_picks, before=st.integers(0, 12))
    def trim(self, number: int, before: int) -> None:
        self._driver.trim(number, before)

    @rule(limit=st.integers(1, 4))
    def claim(self, limit: int) -> None:
        self._driver.claim(limit)

    @precondition(lambda self: self.has_claims)
    @rule(
        number=_picks,
        way=_settling,
        part=st.integers(1, 4),
        goes_on=_flags,
        notes=_flags,
        delay=st.sampled_from(_DELAYS),
    )
    def settle(
        self, number: int, way: str, part: int, goes_on: bool, notes: bool, delay: float
    ) -> None:
        self._settle(number, way, part, goes_on, notes, delay)

    @rule(jobs=st.lists(st.tuples(_settling, _flags, st.integers(1, 4), _flags), max_size=6))
    def work(self, jobs: list[tuple[str, bool, int, bool]]) -> None:
        """Append, claim and settle, again and again: the way to what is seldom reached."""
        for way, redrives, part, notes in jobs:
            self._driver.append(0, owed=True, key=None, text=0)
            if redrives:
                self._driver.redrive(0, None)
            self._driver.claim(4)
            if self.has_claims:
                self._settle(part, way, part, False, notes, 5.25 if redrives else 0.0)

    def _settle(
        self, number: int, way: str, part: int, goes_on: bool, notes: bool, delay: float
    ) -> None:
        driver = self._driver
        if way == "ack":
            driver.ack(number, part, goes_on, notes)
        elif way == "park":
            driver.park(number, part, goes_on, notes)
        elif way == "retry":
            driver.retry(number, delay, part - 1, notes)
        else:
            driver.renew(number, part - 1)

    @rule(number=_picks, chosen=st.none() | st.integers(0, 3))
    def redrive(self, number: int, chosen: int | None) -> None:
        self._driver.redrive(number, chosen)

    @rule(state=st.sampled_from([b"one", b"two"]), is_stale=_flags)
    def save_endpoint(self, state: bytes, is_stale: bool) -> None:
        self._driver.save_endpoint(state, is_stale)

    @precondition(lambda self: self._driver.has_manual_time)
    @rule(seconds=st.sampled_from([2.0, 6.0, 11.0, 45.0]))
    def advance(self, seconds: float) -> None:
        self._driver.advance(seconds)

    @invariant()
    def all_is_as_the_model_says(self) -> None:
        self._driver.all_is_as_the_model_says()
