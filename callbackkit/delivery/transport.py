"""The port of whatever carries events to a destination: what users subclass, what it is handed."""

from __future__ import annotations

import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final, Protocol, cast

import attrs

from callbackkit.delivery.policy import Batching, CircuitBreaker, RetryPolicy
from callbackkit.events import Event

__all__ = ["Delivery", "DeliveryConfig", "Transport", "by_name"]

_NAME: Final = re.compile(r"[a-z][a-z0-9_.-]{0,63}")


class DeliveryConfig(Protocol):
    """What a client asked for, as far as a delivery goes by it."""

    @property
    def delivery_method(self) -> str:
        """Name of the transport."""
        ...

    @property
    def timeout(self) -> float | None:
        """Seconds an attempt may take; ``None`` leaves it to the transport."""

    @property
    def retry_attempts(self) -> int | None:
        """Attempts after the first one; ``None`` leaves it to the transport."""

    @property
    def batching(self) -> Batching | None:
        """How many events go together; ``None`` for one at a time."""

    @property
    def rate_limit(self) -> float | None:
        """Requests per second by each process; ``None`` for no limit."""

    @property
    def options(self) -> Mapping[str, Any]:
        """What the transport itself is told."""
        ...

    def mask(self, text: str) -> str:
        """Return *text* without the secrets of this configuration."""
        ...


@attrs.frozen(kw_only=True)
class Delivery:
    """Events on their way to a destination.

    Attributes:
        id: The same for the same events, on every attempt and when they are sent again as a dead
            letter: what a destination tells repeats by.
        events: In order; more than one only with batching.
        attempt: Which try this is, from 1.
        session_id: Their session.
        config: What its client asked for; may hold secrets.
        is_redrive: It was a dead letter, and somebody asked to try again.
    """

    id: str
    events: tuple[Event, ...]
    attempt: int
    session_id: str
    config: DeliveryConfig = attrs.field(repr=False)
    is_redrive: bool = False

    @property
    def options(self) -> Mapping[str, Any]:
        """The client's ``options``, for example a recipient."""
        return self.config.options

    @property
    def event(self) -> Event:
        """The first event; the only one unless there is batching."""
        return self.events[0]


class Transport(ABC):
    """Carries events to one kind of destination; give it to the manager.

    The engine brings order, retries, batching, rate limits, a breaker per endpoint, dead letters
    and figures. A transport sends, and tells what came of it::

        class SlackTransport(Transport):
            name = "slack"

            async def send(self, delivery: Delivery) -> None:
                reply = await self.client.post(delivery.options["channel"], text_of(delivery))
                if reply.status == 429:
                    raise Retry(after=reply.retry_after)
                if reply.status == 404:
                    raise Gone("the channel was deleted")
                reply.raise_for_status()

    ``delivery_method="slack"`` has a session delivered by it.

    Attributes:
        name: Its delivery method: lower case letters, digits, ``_``, ``.`` and ``-``.
        timeout: Seconds an attempt may take in all, unless the client asked for another time.
        retry: When to try again.
        breaker: When to leave an endpoint alone; ``None`` for never.
        concurrency: Attempts at one endpoint at the same time, from 1. Each process counts for
            itself; two that deliver from one store make up to twice as many.
        only_when_named: Event types that go to it only if a client names them in ``events``.

    Raises:
        TypeError: A class attribute of the wrong type, when the subclass is made.
        ValueError: One out of its range.
    """

    name: str
    timeout: float = 15.0
    retry: RetryPolicy = RetryPolicy()
    breaker: CircuitBreaker | None = CircuitBreaker()
    concurrency: int = 8
    only_when_named: Collection[str] = frozenset()

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for attribute, check in _CHECKS.items():
            # A property is looked at when there is an instance.
            if attribute in vars(cls) and not hasattr(vars(cls)[attribute], "__get__"):
                check(f"{cls.__name__}.{attribute}", vars(cls)[attribute])

    def check(self, config: DeliveryConfig) -> None:
        """Look at what a client asked for, when its session is created.

        Raises:
            ConfigError: This transport can't do it.
        """
        del config  # By default a transport takes whatever it is told.

    def endpoint(self, session_id: str, config: DeliveryConfig) -> str:
        """Name the destination of a session; the name is stored and logged.

        Sessions with the same endpoint share its breaker, its rate limit and its concurrency: the
        breaker across all processes, the other two within each. By default each session has its
        own.
        """
        return f"{self.name}:{session_id}"

    # These two are hooks: a transport without connections has nothing to do there.

    async def start(self) -> None:  # noqa: B027
        """Get ready, before anything is sent; starting twice is harmless."""

    async def aclose(self) -> None:  # noqa: B027
        """Let go of connections, when nothing is sent any more; closing twice is harmless."""

    @abstractmethod
    async def send(self, delivery: Delivery) -> None:
        """Hand events over; return when the destination has them, all of them.

        It is cancelled when its time is up, and may be called for the same delivery again, even
        if the last time worked.

        Raises:
            Retry: It failed; the next attempt is due when the exception says.
            Rejected: These events will never be taken; they become a dead letter at once.
            Gone: It failed for good: what is owed to this endpoint becomes dead letters.
            Exception: Anything else is a failure too, and tried again by :attr:`retry`. After a
                ``TimeoutError``, or what took too long, nothing else is sent to the endpoint
                before that either, for a minute at most.
        """


def by_name(transports: Iterable[Transport]) -> dict[str, Transport]:
    """Return transports by their names.

    Raises:
        TypeError: One is no transport, or has an attribute of the wrong type.
        ValueError: A name that is taken, or an attribute out of its range.
    """
    found: dict[str, Transport] = {}
    for transport in transports:
        if not isinstance(cast(object, transport), Transport):
            what = "a class; give an instance" if isinstance(transport, type) else "no Transport"
            raise TypeError(f"{transport!r:.200} is {what}")
        kind = type(transport).__name__
        if getattr(transport, "name", None) is None:
            raise TypeError(f"{kind} has no name; write `name = ...` in the class")
        for attribute, check in _CHECKS.items():
            check(f"{kind}.{attribute}", getattr(transport, attribute))
        if transport.name in found:
            raise ValueError(f"two transports are named {transport.name!r}")
        found[transport.name] = transport
    return found


# What attributes may be.


def _check_name(what: str, value: object) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{what} must be a string, not {value!r:.200}")
    if not _NAME.fullmatch(value):
        raise ValueError(
            f"{what} must be up to 64 lower case letters, digits, '_', '.' or '-' and begin with "
            f"a letter, not {value!r:.200}"
        )


def _check_timeout(what: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{what} must be a number of seconds, not {value!r:.200}")
    # Above that a whole number is no float any more, and can't be reckoned with.
    if not 0 < value <= sys.float_info.max:
        raise ValueError(f"{what} must be above 0 and finite, not {value!r}")


def _check_retry(what: str, value: object) -> None:
    if not isinstance(value, RetryPolicy):
        raise TypeError(f"{what} must be a RetryPolicy, not {value!r:.200}")


def _check_breaker(what: str, value: object) -> None:
    if value is not None and not isinstance(value, CircuitBreaker):
        raise TypeError(f"{what} must be a CircuitBreaker or None, not {value!r:.200}")


def _check_concurrency(what: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{what} must be a whole number, not {value!r:.200}")
    if value < 1:
        raise ValueError(f"{what} must be at least 1, not {value!r}")


def _check_only_when_named(what: str, value: object) -> None:
    if isinstance(value, str) or not isinstance(value, Collection):
        raise TypeError(f"{what} must be a set of event types, not {value!r:.200}")
    if not all(isinstance(item, str) for item in cast(Collection[object], value)):
        raise TypeError(f"{what} must hold strings only, not {value!r:.200}")


_CHECKS: Final = {
    "name": _check_name,
    "timeout": _check_timeout,
    "retry": _check_retry,
    "breaker": _check_breaker,
    "concurrency": _check_concurrency,
    "only_when_named": _check_only_when_named,
}
