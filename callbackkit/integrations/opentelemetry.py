"""Traces that go on across a session: who emitted an event, who delivered it, who handled it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from contextvars import Token
from functools import partial
from typing import Any, Final, cast

from callbackkit.delivery.attempt import describe
from callbackkit.delivery.observers import Attempted, Emission, Emitted, Observer
from callbackkit.delivery.transport import Delivery
from callbackkit.events import Event
from callbackkit.sessions.manager import CallbackManager

try:
    from opentelemetry import context, trace
    from opentelemetry.context import Context
    from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode, TracerProvider
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
    from opentelemetry.util.types import AttributeValue
except ImportError as _exc:
    raise ImportError(
        "callbackkit.integrations.opentelemetry needs opentelemetry-api: install callbackkit[otel]"
    ) from _exc

__all__ = ["extract", "instrument", "span_for"]

# Only this, whatever propagators the application has: who reads a session reads the metadata of
# its events, and baggage is nobody's business there.
_W3C: Final = TraceContextTextMapPropagator()
_TRACEPARENT, _TRACESTATE = "traceparent", "tracestate"

# Names of the semantic conventions for messaging and CloudEvents, in development still, which is
# why they are written out: the package that has them may rename them in any release.
_SYSTEM: Final = "messaging.system"
_OPERATION: Final = "messaging.operation.name"
_OPERATION_TYPE: Final = "messaging.operation.type"
_DESTINATION: Final = "messaging.destination.name"
_MESSAGE_ID: Final = "messaging.message.id"
_CONVERSATION_ID: Final = "messaging.message.conversation_id"
_BATCH: Final = "messaging.batch.message_count"
_EVENT_TYPE: Final = "cloudevents.event_type"
_ERROR_TYPE: Final = "error.type"
# Ours, for what they have no word for.
_METHOD: Final = "callbackkit.delivery.method"
_DELIVERY_ID: Final = "callbackkit.delivery.id"
_ATTEMPT: Final = "callbackkit.delivery.attempt"
_IS_REDRIVE: Final = "callbackkit.delivery.is_redrive"

# By the names that an event has for them.
_SAID: Final = {
    "session_id": _DESTINATION,
    "id": _MESSAGE_ID,
    "event_type": _EVENT_TYPE,
    "conversation_id": _CONVERSATION_ID,
}

_NO_METADATA: Final[Mapping[str, Any]] = {}


def instrument(
    manager: CallbackManager, *, tracer_provider: TracerProvider | None = None
) -> Callable[[], None]:
    """Trace what a manager stores and delivers, from now on.

    Storing an event is a span of kind PRODUCER, a child of the current one, and its context goes
    into the event's metadata as ``traceparent`` and ``tracestate``, unless the emitter put one
    there, or the event has an idempotency key: emitted again it has to be the same. An attempt to
    deliver is a span of kind CLIENT with a link to the span of each of its events; it is the
    current one while the transport sends. Without an SDK there are no spans.

    Args:
        manager: The manager.
        tracer_provider: Where spans go; by default what OpenTelemetry is configured with.

    Returns:
        What to call to undo it.

    Raises:
        RuntimeError: The manager is instrumented.
    """
    tracing = _Tracing(_tracer(tracer_provider))
    if manager.observers.first(_Tracing, lambda: tracing) is not tracing:
        raise RuntimeError(
            "the manager is instrumented already; to do it anew, "
            "call what the first instrument() returned"
        )
    return partial(manager.observers.remove, tracing)


def extract(event: Event | Mapping[str, Any]) -> Context:
    """Return the context of the span that emitted an event.

    Args:
        event: An event, or its JSON as a mapping, as another process gets it.

    Returns:
        A context with that span; an empty one if the event has none, or none that is valid.
    """
    return _context_in(_metadata_of(event))


def span_for(
    event: Event | Mapping[str, Any],
    *,
    name: str | None = None,
    tracer_provider: TracerProvider | None = None,
) -> AbstractContextManager[Span]:
    """Return a span of kind CONSUMER for the handling of an event, current in a ``with`` block.

    It is a child of the current span, and linked to the one that emitted the event. A link, since
    an event may be handled many times and long afterwards; for a child of it, pass
    :func:`extract` to a tracer.

    Args:
        event: An event, or its JSON as a mapping.
        name: Of the span; by default ``"process"`` and the event type.
        tracer_provider: Where the span goes; by default what OpenTelemetry is configured with.
    """
    attributes, event_type = _attributes_of(event)
    return _tracer(tracer_provider).start_as_current_span(
        f"process {event_type}" if name is None else name,
        kind=SpanKind.CONSUMER,
        links=_links([_metadata_of(event)]),
        attributes=_operation("process", "process") | attributes,
    )


class _Tracing(Observer):
    """Begins and ends spans."""

    def __init__(self, tracer: trace.Tracer) -> None:
        self._tracer = tracer

    def emitting(self, emission: Emission) -> Emitted:
        metadata = emission.metadata or _NO_METADATA
        attributes = _operation("emit", "create")
        attributes[_DESTINATION] = emission.session_id
        attributes[_EVENT_TYPE] = emission.event_type
        if emission.conversation_id is not None:
            attributes[_CONVERSATION_ID] = emission.conversation_id
        span = self._tracer.start_span(
            f"emit {emission.event_type}",
            kind=SpanKind.PRODUCER,
            links=_links([metadata]),
            attributes=attributes,
        )
        if _TRACEPARENT not in metadata:
            _W3C.inject(emission.added, trace.set_span_in_context(span))
        return partial(_end_emit, span)

    def attempting(self, delivery: Delivery, method: str) -> Attempted:
        attributes = _operation("deliver", "send")
        attributes[_DESTINATION] = delivery.session_id
        attributes[_METHOD] = method
        attributes[_DELIVERY_ID] = delivery.id
        attributes[_ATTEMPT] = delivery.attempt
        attributes[_IS_REDRIVE] = delivery.is_redrive
        attributes[_BATCH] = len(delivery.events)
        if len(delivery.events) == 1:
            attributes[_MESSAGE_ID] = delivery.event.id
            attributes[_EVENT_TYPE] = delivery.event.event_type
        span = self._tracer.start_span(
            f"deliver {method}",
            kind=SpanKind.CLIENT,
            links=_links(event.metadata for event in delivery.events),
            attributes=attributes,
        )
        token = context.attach(trace.set_span_in_context(span))
        return partial(_end_attempt, span, token, delivery)


def _end_emit(span: Span, event: Event | None, error: BaseException | None) -> None:
    if event is not None:
        span.set_attribute(_MESSAGE_ID, event.id)
    if error is not None:
        _fail(span, error, str(error))
    span.end()


def _end_attempt(
    span: Span, token: Token[Context], delivery: Delivery, error: BaseException | None
) -> None:
    context.detach(token)
    if error is not None:
        # As it is stored and logged: what a client's library says may hold the client's secrets.
        _fail(span, error, describe(error, delivery.config))
    span.end()


def _fail(span: Span, error: BaseException, description: str) -> None:
    span.set_attribute(_ERROR_TYPE, type(error).__qualname__)
    span.set_status(Status(StatusCode.ERROR, description))


def _tracer(provider: TracerProvider | None) -> trace.Tracer:
    return trace.get_tracer("callbackkit", tracer_provider=provider)


def _operation(name: str, kind: str) -> dict[str, AttributeValue]:
    return {_SYSTEM: "callbackkit", _OPERATION: name, _OPERATION_TYPE: kind}


# What an event says. That of another process may be anything.


def _metadata_of(event: Event | Mapping[str, Any]) -> Mapping[str, Any]:
    found: object = event.metadata if isinstance(event, Event) else event.get("metadata")
    return cast(Mapping[str, Any], found) if isinstance(found, Mapping) else _NO_METADATA


def _context_in(metadata: Mapping[str, Any]) -> Context:
    fields = (_TRACEPARENT, _TRACESTATE)
    carrier = {key: metadata[key] for key in fields if isinstance(metadata.get(key), str)}
    return _W3C.extract(carrier)


def _links(metadata: Iterable[Mapping[str, Any]]) -> list[Link]:
    found = (trace.get_current_span(_context_in(each)).get_span_context() for each in metadata)
    return [Link(each) for each in found if each.is_valid]


def _attributes_of(event: Event | Mapping[str, Any]) -> tuple[dict[str, AttributeValue], str]:
    """Return the attributes that tell an event, and its type."""
    attributes: dict[str, AttributeValue] = {}
    for key, name in _SAID.items():
        value: object = getattr(event, key) if isinstance(event, Event) else event.get(key)
        if isinstance(value, str):
            attributes[name] = value
    return attributes, str(attributes.get(_EVENT_TYPE, "event"))
