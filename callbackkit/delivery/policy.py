"""When to send, when to try again and when to leave an endpoint alone: time and chance are given.

Nothing here reads a clock or draws a number. What an endpoint is like is a :class:`Circuit`, a
value; a :class:`CircuitBreaker` turns it into the next one::

    phase       what happens                              next phase
    closed      too many failures                         open
    open        its time is over, somebody wants to send  half_open (he is the probe)
    half_open   the probe succeeds                        closed
                the probe fails                           open, or disabled after so many
                the probe's lease runs out, somebody ...  half_open (he is the probe)
    disabled    a dead letter sent again arrives          closed
    any         the destination is gone                   disabled
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Final, Literal, Self, cast, get_args

import attrs

__all__ = ["Batching", "Circuit", "CircuitBreaker", "Phase", "RateLimit", "RetryPolicy"]

Phase = Literal["closed", "open", "half_open", "disabled"]

# Svix's schedule; eight attempts within some 27 hours.
_SCHEDULE: Final = (5.0, 300.0, 1800.0, 7200.0, 18000.0, 36000.0, 36000.0)
# The window of a breaker is counted in so many parts; the oldest one is dropped whole.
_PARTS: Final = 10
# How far the time a breaker stays open strays, so that probes of many do not fall together.
_OPEN_JITTER: Final = 0.2
# Seconds that the clocks of two processes may differ by.
_SKEW: Final = 1.0
# Seconds after which it is saved again that an endpoint is disabled, while something is owed to it:
# a store forgets what nobody saves.
_NOTED_EVERY: Final = 3600.0


# Checks.


def _number(name: str, value: object, *, low: float, high: float = math.inf) -> None:
    """Raise unless *value* is a finite number from *low* to *high*."""
    if isinstance(value, bool) or not _is_finite(value) or not low <= cast(float, value):
        raise ValueError(f"{name} must be a number from {low:g} up, not {value!r:.80}")
    if cast(float, value) > high:
        raise ValueError(f"{name} must be at most {high:g}, not {value!r:.80}")


def _is_finite(value: object) -> bool:
    try:
        return isinstance(value, int | float) and math.isfinite(value)
    except OverflowError:
        # A whole number that no float can hold.
        return False


def _above_0(name: str, value: object) -> None:
    _number(name, value, low=0)
    if value == 0:
        raise ValueError(f"{name} must be above 0, not {value!r}")


def _count(name: str, value: object, *, high: float = math.inf) -> None:
    """Raise unless *value* is a whole number from 1 to *high*."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= high:
        upto = "" if high == math.inf else f" to {high:g}"
        raise ValueError(f"{name} must be a whole number from 1{upto}, not {value!r}")


# Trying again.


def _floats(schedule: Sequence[float]) -> tuple[float, ...]:
    if isinstance(schedule, str | bytes):
        raise ValueError(f"schedule must be a sequence of seconds, not {schedule!r}")
    values = tuple(schedule)
    for place, value in enumerate(values):
        _number(f"schedule[{place}]", value, low=0)
    return tuple(float(value) for value in values)


@attrs.frozen(kw_only=True)
class RetryPolicy:
    """How long to wait after a failure, and how often to try.

    >>> RetryPolicy(schedule=(5, 60), jitter=0).delay(1, chance=0.5)
    5.0
    >>> RetryPolicy(schedule=(5, 60)).delay(3, chance=0.5) is None
    True

    Attributes:
        schedule: Seconds to wait after the first failure, the second and so on; one more failure
            is the last. Empty: no failure is tried again.
        jitter: Part of a delay, 0 to 1, that it may be shorter or longer by.
        max_retry_after: Most seconds waited because the destination asked for it.

    Raises:
        ValueError: A number that is negative, not finite or, for *jitter*, above 1.
    """

    schedule: tuple[float, ...] = attrs.field(default=_SCHEDULE, converter=_floats)
    jitter: float = 0.2
    max_retry_after: float = 86_400.0

    def __attrs_post_init__(self) -> None:
        _number("jitter", self.jitter, low=0, high=1)
        _number("max_retry_after", self.max_retry_after, low=0)

    @classmethod
    def exponential(
        cls,
        *,
        first: float = 1.0,
        factor: float = 2.0,
        max_delay: float = 3600.0,
        retries: int = 10,
        jitter: float = 0.2,
        max_retry_after: float = 86_400.0,
    ) -> Self:
        """Return a policy whose delays grow by a factor.

        >>> RetryPolicy.exponential(max_delay=5, retries=4).schedule
        (1.0, 2.0, 4.0, 5.0)

        Args:
            first: Seconds after the first failure.
            factor: What each delay is multiplied by for the next, from 1.
            max_delay: Most seconds.
            retries: Attempts after the first one.
            jitter: As for the class.
            max_retry_after: As for the class.

        Raises:
            ValueError: A number out of its range.
        """
        _number("first", first, low=0)
        _number("factor", factor, low=1)
        _number("max_delay", max_delay, low=0)
        _count("retries", retries, high=10_000)
        schedule: list[float] = []
        delay = min(first, max_delay)
        for _ in range(retries):
            schedule.append(delay)
            delay = min(delay * factor, max_delay)
        return cls(schedule=tuple(schedule), jitter=jitter, max_retry_after=max_retry_after)

    def delay(
        self,
        attempt: int,
        *,
        chance: float,
        retry_after: float | None = None,
        attempts_allowed: int | None = None,
    ) -> float | None:
        """Return the seconds to wait after an attempt that failed; ``None`` to give up.

        Args:
            attempt: Number of that attempt, from 1.
            chance: From 0 to 1, drawn by the caller.
            retry_after: Seconds the destination asked for, instead of the schedule; up to
                *max_retry_after* of them, without jitter. What is no number asks for nothing.
            attempts_allowed: Retries after the first attempt: the first so many delays of the
                schedule, its last one repeated if there are more. ``None``: the whole schedule.
        """
        retries = len(self.schedule) if attempts_allowed is None else attempts_allowed
        if attempt > retries or not self.schedule:
            return None
        asked = self.asked(retry_after)
        if asked is not None:
            return asked
        base = self.schedule[min(attempt, len(self.schedule)) - 1]
        return base * (1.0 + self.jitter * (2.0 * chance - 1.0))

    def asked(self, retry_after: float | None) -> float | None:
        """Return the seconds a destination asked for, up to *max_retry_after*.

        What is no number asks for nothing: ``None``.
        """
        if retry_after is None or not -math.inf <= retry_after <= math.inf:
            return None
        return float(min(max(retry_after, 0.0), self.max_retry_after))

    def rest(self, attempt: int, *, most: float, retry_after: float | None = None) -> float:
        """Return the seconds that a whole endpoint is spared for after an attempt that failed.

        Args:
            attempt: Number of that attempt, from 1; it may have been the last.
            most: Most seconds, unless the destination asked for a time.
            retry_after: As for :meth:`delay`.
        """
        asked = self.asked(retry_after)
        if asked is not None or not self.schedule:
            return asked or 0.0
        return min(self.schedule[min(attempt, len(self.schedule)) - 1], most)


# Leaving an endpoint alone.


@attrs.frozen(kw_only=True)
class Circuit:
    """What is known of an endpoint; a value that any process may save and load.

    Attributes:
        phase: Whether it is sent to.
        until: When it is open until, or how long the probe may take: seconds of the clock.
        lasts: Seconds that *until* lay ahead when it was set; 0 if that is not known.
        noted_at: When it was saved that it is disabled.
        probe: Who tries it out while it is half open.
        failures: Failures in a row.
        reopened: How often in a row a probe failed.
        reason: Why it is disabled.
        window: ``(start, requests, failures)`` of the parts of the window, the oldest first.
        resumes_at: When it may be sent to again, whatever its phase: it asked to be spared.
        rests: Seconds that *resumes_at* lay ahead when it was set.
    """

    phase: Phase = "closed"
    until: float = 0.0
    lasts: float = 0.0
    noted_at: float = 0.0
    probe: str = ""
    failures: int = 0
    reopened: int = 0
    reason: str = ""
    window: tuple[tuple[float, int, int], ...] = ()
    resumes_at: float = 0.0
    rests: float = 0.0

    @property
    def is_spotless(self) -> bool:
        """It is sent to, and did not fail lately: another success changes nothing."""
        return self.phase == "closed" and self.failures == 0

    def to_json(self) -> bytes:
        """Return it as JSON."""
        return json.dumps(attrs.asdict(self), separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, text: bytes) -> Self:
        """Read it; what can't be read is an endpoint of which nothing is known: it is sent to."""
        try:
            found = json.loads(text)
            known = {name: found[name] for name in attrs.fields_dict(cls) if name in found}
            known["window"] = tuple(
                (float(start), int(requests), int(failures))
                for start, requests, failures in known.get("window", ())
            )
            circuit = cls(**known)
        except (ValueError, TypeError, KeyError, OverflowError):
            return cls()
        return circuit if circuit._is_sound() else cls()

    def _is_sound(self) -> bool:
        counts = (self.failures, self.reopened)
        times = (self.until, self.lasts, self.noted_at, self.resumes_at, self.rests)
        texts = (self.probe, self.reason)
        return (
            self.phase in get_args(Phase)
            and all(_is_finite(time) for time in times)
            and all(type(count) is int and count >= 0 for count in counts)
            and all(isinstance(text, str) for text in texts)
        )


@attrs.frozen(kw_only=True)
class CircuitBreaker:
    """When an endpoint that fails is left alone, and how it is tried again: by one at a time.

    Attributes:
        failures: Failures in a row that open it.
        rate: Part of the requests within the window, above 0 up to 1, whose failure opens it ...
        min_requests: ... if there were so many.
        window: Seconds.
        open_for: Seconds until it is tried again, give or take a fifth; twice as many each time
            that fails ...
        max_open: ... up to these.
        disable_after: Probes failing in a row that disable it; ``None`` for never.

    Raises:
        ValueError: A number out of its range.
    """

    failures: int = 5
    rate: float = 0.5
    min_requests: int = 10
    window: float = 60.0
    open_for: float = 30.0
    max_open: float = 3600.0
    disable_after: int | None = 10

    def __attrs_post_init__(self) -> None:
        _count("failures", self.failures)
        _above_0("rate", self.rate)
        _number("rate", self.rate, low=0, high=1)
        _count("min_requests", self.min_requests)
        _above_0("window", self.window)
        _above_0("open_for", self.open_for)
        _number("max_open", self.max_open, low=self.open_for)
        if self.disable_after is not None:
            _count("disable_after", self.disable_after)

    def wait(self, circuit: Circuit, now: float) -> float:
        """Return the seconds until somebody may send, 0 for now, infinity for never.

        What lies further ahead than was asked for is over: the clock was set back since.
        """
        if circuit.phase == "disabled":
            return math.inf
        spared = self.spared(circuit, now)
        if circuit.phase == "closed":
            return spared
        return max(spared, _ahead(circuit.until, circuit.lasts, now))

    @staticmethod
    def spared(circuit: Circuit, now: float) -> float:
        """Return the seconds until it wants to be sent to again, 0 for now."""
        return _ahead(circuit.resumes_at, circuit.rests, now) if circuit.rests > 0 else 0.0

    @staticmethod
    def throttled(circuit: Circuit, now: float, seconds: float) -> Circuit:
        """Return the state in which nothing is sent for so many seconds, or for longer already."""
        if circuit.phase == "disabled" or CircuitBreaker.spared(circuit, now) >= seconds:
            return circuit
        return attrs.evolve(circuit, resumes_at=now + seconds, rests=seconds)

    def try_out(self, circuit: Circuit, now: float, *, probe: str, lease: float) -> Circuit:
        """Return the state in which *probe* tries it out, for *lease* seconds at most.

        To be asked for when :meth:`wait` is 0 while it is not closed.
        """
        return attrs.evolve(circuit, phase="half_open", until=now + lease, lasts=lease, probe=probe)

    def succeeded(
        self,
        circuit: Circuit,
        now: float,
        *,
        probe: str = "",
        redriven: bool = False,
        times: int = 1,
    ) -> Circuit:
        """Return the state after attempts that worked.

        Args:
            circuit: The state before.
            now: The time.
            probe: Who sent, if it was to try it out. Others began before it opened, so they say
                nothing about it now.
            redriven: It was a dead letter, sent although the endpoint was disabled.
            times: How many attempts.
        """
        if circuit.phase == "closed":
            return attrs.evolve(circuit, failures=0, window=self._count(circuit, now, times, 0))
        is_probe = circuit.phase == "half_open" and probe == circuit.probe
        if not is_probe and not (circuit.phase == "disabled" and redriven):
            return circuit
        # Somebody else may have been asked to spare it meanwhile.
        return Circuit(resumes_at=circuit.resumes_at, rests=circuit.rests)

    def failed(
        self, circuit: Circuit, now: float, *, chance: float, probe: str = "", reason: str = ""
    ) -> Circuit:
        """Return the state after an attempt that failed.

        Args:
            circuit: The state before.
            now: The time.
            chance: From 0 to 1, drawn by the caller.
            probe: As for :meth:`succeeded`.
            reason: Why it failed, to be told should that disable it.
        """
        if circuit.phase == "closed":
            window = self._count(circuit, now, 1, 1)
            circuit = attrs.evolve(circuit, failures=circuit.failures + 1, window=window)
            return self._opened(circuit, now, chance) if self._is_too_much(circuit) else circuit
        if circuit.phase != "half_open" or probe != circuit.probe:
            return circuit
        circuit = attrs.evolve(circuit, reopened=circuit.reopened + 1)
        if self.disable_after is not None and circuit.reopened >= self.disable_after:
            return self.disabled(circuit, now, reason)
        return self._opened(circuit, now, chance)

    @staticmethod
    def disabled(circuit: Circuit, now: float, reason: str) -> Circuit:
        """Return the state in which nothing is sent any more."""
        return attrs.evolve(
            circuit,
            phase="disabled",
            until=0.0,
            lasts=0.0,
            noted_at=now,
            probe="",
            reason=reason,
        )

    @staticmethod
    def noted(circuit: Circuit, now: float) -> Circuit:
        """Return the state with a newer time, if it is disabled and was not saved for an hour."""
        is_old = not 0 <= now - circuit.noted_at < _NOTED_EVERY
        return (
            attrs.evolve(circuit, noted_at=now)
            if is_old and circuit.phase == "disabled"
            else circuit
        )

    def _count(
        self, circuit: Circuit, now: float, requests: int, failures: int
    ) -> tuple[tuple[float, int, int], ...]:
        part = self.window / _PARTS
        # What lies in the future was counted by a clock that was set back since.
        recent = [counts for counts in circuit.window if now - self.window < counts[0] <= now]
        if recent and now < recent[-1][0] + part:
            start, before, failed = recent.pop()
            return (*recent, (start, before + requests, failed + failures))
        return (*recent, (now, requests, failures))

    def _is_too_much(self, circuit: Circuit) -> bool:
        if circuit.failures >= self.failures:
            return True
        requests = sum(counts[1] for counts in circuit.window)
        failures = sum(counts[2] for counts in circuit.window)
        return requests >= self.min_requests and failures >= self.rate * requests

    def _opened(self, circuit: Circuit, now: float, chance: float) -> Circuit:
        # Above 2 ** 1000 a float has no room.
        stay = self.open_for * 2.0 ** min(circuit.reopened, 1000)
        stay = min(stay * (1.0 + _OPEN_JITTER * (2.0 * chance - 1.0)), self.max_open)
        return attrs.evolve(
            circuit, phase="open", until=now + stay, lasts=stay, probe="", window=()
        )


def _ahead(until: float, lasts: float, now: float) -> float:
    """Return the seconds until a time that lay *lasts* ahead when it was set."""
    ahead = max(0.0, until - now)
    return 0.0 if 0 < lasts < ahead - _SKEW else ahead


# Not sending too fast.


@attrs.frozen
class RateLimit:
    """So many requests per second, and a tenth of a second's worth at once.

    A bucket of tokens, kept as one number: the time at which it will be full. In any time of *t*
    seconds there are at most ``per_second * t + burst`` requests. Each process counts for itself:
    so many processes, so many times the rate.

    Attributes:
        per_second: Requests.

    Raises:
        ValueError: It is not above 0.
    """

    per_second: float

    def __attrs_post_init__(self) -> None:
        _above_0("per_second", self.per_second)

    @property
    def interval(self) -> float:
        """Seconds between two requests."""
        return 1.0 / self.per_second

    @property
    def burst(self) -> float:
        """Requests that may follow at once after a pause."""
        return max(1.0, self.per_second / 10)

    def wait(self, full_at: float, now: float) -> float:
        """Return the seconds until a request may be made, 0 for now."""
        return max(0.0, full_at - now - (self.burst - 1) * self.interval)

    def take(self, full_at: float, now: float) -> float:
        """Return when the bucket will be full if a request is made now."""
        return max(full_at, now) + self.interval


# Sending several at once.


@attrs.frozen(kw_only=True)
class Batching:
    """How many events go together.

    Attributes:
        max_events: Most of them, 1 to 10 000.
        max_bytes: Most bytes of their JSON, but for one event that is larger by itself.
        max_delay: Seconds the oldest one waits for others, 0 to 3600; a full batch goes at once.

    Raises:
        ValueError: A number out of its range.
    """

    max_events: int = 50
    max_bytes: int = 1_048_576
    max_delay: float = 1.0

    def __attrs_post_init__(self) -> None:
        _count("max_events", self.max_events, high=10_000)
        _count("max_bytes", self.max_bytes)
        _number("max_delay", self.max_delay, low=0, high=3600)
