"""What a manager stores and delivers, as metrics for Prometheus."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import CancelledError
from functools import partial
from time import perf_counter
from typing import Any, Final, get_args

from callbackkit.delivery.endpoint import Change
from callbackkit.delivery.observers import Attempted, Emission, Emitted, Observer
from callbackkit.delivery.transport import Delivery
from callbackkit.errors import CallbackKitError, Gone, Rejected, StoreError
from callbackkit.events import Event
from callbackkit.sessions.manager import CallbackManager
from callbackkit.sessions.statistics import ManagerStats

try:
    from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
    from prometheus_client.exposition import CONTENT_TYPE_LATEST
    from prometheus_client.metrics import MetricWrapperBase
    from prometheus_client.registry import Collector
except ImportError as _exc:
    raise ImportError(
        "callbackkit.integrations.prometheus needs prometheus-client: "
        "install callbackkit[prometheus]"
    ) from _exc

__all__ = ["CallbackKitCollector", "render"]

_logger = logging.getLogger("callbackkit.integrations")

# By what a session is read through; whatever else a caller names is "other", so that nobody can
# make more time series.
_KINDS: Final = ("sse", "websocket", "polling", "subscriber")

_EMIT_OUTCOMES: Final = ("stored", "filtered", "refused", "failed", "cancelled")

# Seconds. A store in memory takes microseconds, a disk that syncs milliseconds.
_EMIT_BUCKETS: Final = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0),
)
# Seconds. Up to the longest timeout that is usual for webhooks.
_ATTEMPT_BUCKETS: Final = (
    *(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 30.0, 60.0),
)


class CallbackKitCollector(Collector):
    """The metrics of a manager, collected when somebody asks for them.

    ::

        CallbackKitCollector(manager, REGISTRY)

    Figures of the store count what all its processes did, and are as old as the manager's last
    look at them, up to five seconds; they are missing until it has looked. Readers, histograms and
    what is told of endpoints are of this process, from when the first collector was made. No
    label has more values than there are transports, ways to read, or outcomes.

    Args:
        manager: Whose metrics.
        registry: Where it is registered; ``None`` for nowhere.

    Raises:
        ValueError: The registry has metrics of these names: one manager, one collector in it.
    """

    def __init__(self, manager: CallbackManager, registry: CollectorRegistry | None = None) -> None:
        self._manager = manager
        self._figures = manager.observers.first(_Figures, lambda: _Figures(manager._transports))
        if registry is not None:
            registry.register(self)

    def describe(self) -> Iterable[Metric]:
        """Return the metrics by name, without values; a registry asks for it when it registers."""
        yield from _of_store(None)
        yield _of_readers({})
        yield from self._figures.metrics()

    def collect(self) -> Iterable[Metric]:
        """Return the metrics as they are now; from any thread."""
        yield from _of_store(self._manager.totals)
        yield _of_readers(self._manager._readers.kinds())
        yield from self._figures.metrics()


async def render(manager: CallbackManager) -> tuple[bytes, str]:
    """Return the metrics of a manager as text, and its content type, for a route of one's own.

    Looks at the store first, so that the figures are those of now. If the store fails, they are
    those of the last look, or missing: metrics are wanted most when something is broken.

    What is of this process begins with the first call, unless a :class:`CallbackKitCollector` was
    made before.
    """
    try:
        await manager.stats()
    except StoreError:
        _logger.warning("metrics are without a look at the store", exc_info=True)
    registry = CollectorRegistry()
    CallbackKitCollector(manager, registry)
    return generate_latest(registry), CONTENT_TYPE_LATEST


# Figures of the store and readers.


def _of_store(totals: ManagerStats | None) -> Iterator[Metric]:
    """Yield the figures that all processes share; only their names if there are none."""
    sessions = GaugeMetricFamily(
        "callbackkit_sessions", "Sessions of the store that can be read", labels=["state"]
    )
    sent = CounterMetricFamily(
        "callbackkit_events_sent", "Events stored that their session's method is to deliver"
    )
    delivered = CounterMetricFamily(
        "callbackkit_events_delivered", "Events acknowledged by their destination, or read"
    )
    expired = CounterMetricFamily(
        "callbackkit_events_expired", "Events dropped before anybody read them"
    )
    retries = CounterMetricFamily(
        "callbackkit_delivery_retries", "Attempts to deliver after the first ones"
    )
    # What is redriven and arrives is not failed any more, so this one can fall.
    failed = GaugeMetricFamily("callbackkit_events_failed", "Events in dead letters")
    queued = GaugeMetricFamily(
        "callbackkit_events_queued", "Events not delivered, failed or expired yet"
    )
    if totals is not None:
        ended = totals.total_sessions - totals.active_sessions
        sessions.add_metric(["active"], totals.active_sessions)
        sessions.add_metric(["ended"], ended)
        sent.add_metric([], totals.total_events_sent)
        delivered.add_metric([], totals.total_events_delivered)
        expired.add_metric([], totals.total_events_expired)
        retries.add_metric([], totals.total_retries)
        failed.add_metric([], totals.total_events_failed)
        queued.add_metric([], totals.total_queued_events)
    yield from (sessions, sent, delivered, expired, retries, failed, queued)


def _of_readers(kinds: dict[str, int]) -> Metric:
    readers = GaugeMetricFamily(
        "callbackkit_readers", "Who reads a session in this process now", labels=["kind"]
    )
    for kind in _KINDS:
        readers.add_metric([kind], kinds.get(kind, 0))
    others = sum(count for kind, count in kinds.items() if kind not in _KINDS)
    readers.add_metric(["other"], others)
    return readers


# Of this process.


class _Figures(Observer):
    """How long storing and sending took, and what operators were told.

    One observer for both: each one costs every emit a call.
    """

    def __init__(self, methods: Collection[str]) -> None:
        # Registered nowhere: whose registry it is, is the application's business.
        self._emits = Histogram(
            "callbackkit_emit_seconds",
            "Time to store an event, in this process",
            ["outcome"],
            buckets=_EMIT_BUCKETS,
            registry=None,
        )
        self._attempts = Histogram(
            "callbackkit_delivery_attempt_seconds",
            "Time an attempt to deliver took, in this process",
            ["method", "outcome"],
            buckets=_ATTEMPT_BUCKETS,
            registry=None,
        )
        self._changes = Counter(
            "callbackkit_endpoint_changes",
            "Endpoints that began to fail, recovered or were disabled, found out by this process",
            ["method", "change"],
            registry=None,
        )
        self._letters = Counter(
            "callbackkit_dead_letters",
            "Deliveries that were given up, by this process",
            ["method"],
            registry=None,
        )
        # There from the beginning, or the first of them would be no increase.
        for method in methods:
            self._letters.labels(method)
            for change in get_args(Change):
                self._changes.labels(method, change)
        self._emits_by = {outcome: self._emits.labels(outcome) for outcome in _EMIT_OUTCOMES}

    def emitting(self, emission: Emission) -> Emitted:
        del emission
        return partial(self._emitted, perf_counter())

    def _emitted(self, began: float, event: Event | None, error: BaseException | None) -> None:
        outcome = "filtered" if event is None and error is None else _outcome_of_emit(error)
        self._emits_by[outcome].observe(perf_counter() - began)

    def attempting(self, delivery: Delivery, method: str) -> Attempted:
        del delivery
        return partial(self._attempted, perf_counter(), method)

    def _attempted(self, began: float, method: str, error: BaseException | None) -> None:
        took = perf_counter() - began
        self._attempts.labels(method, _outcome_of_attempt(error)).observe(took)

    def noticing(self, event_type: str, data: Mapping[str, Any]) -> None:
        method, (kind, _, change) = data["delivery_method"], event_type.partition(".")
        if kind == "endpoint":
            self._changes.labels(method, change).inc()
        else:
            self._letters.labels(method).inc()

    def metrics(self) -> Iterator[Metric]:
        """Yield all of them."""
        return _collected(self._emits, self._attempts, self._changes, self._letters)


def _collected(*kept: MetricWrapperBase) -> Iterator[Metric]:
    """Yield metrics without the ``_created`` series that nobody wants to pay for."""
    for each in kept:
        for metric in each.collect():
            metric.samples = [
                sample for sample in metric.samples if not sample.name.endswith("_created")
            ]
            yield metric


def _outcome_of_emit(error: BaseException | None) -> str:
    if error is None:
        return "stored"
    if isinstance(error, CancelledError) or not isinstance(error, Exception):
        return "cancelled"
    is_refused = isinstance(error, CallbackKitError) and not isinstance(error, StoreError)
    return "refused" if is_refused else "failed"


def _outcome_of_attempt(error: BaseException | None) -> str:
    if error is None:
        return "delivered"
    if isinstance(error, Gone):
        return "gone"
    if isinstance(error, Rejected):
        return "rejected"
    if isinstance(error, TimeoutError):
        return "timeout"
    return "failed" if isinstance(error, Exception) else "cancelled"
