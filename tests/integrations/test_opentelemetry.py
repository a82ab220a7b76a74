"""Spans of what a manager stores and delivers, and the trace that an event carries."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence

import anyio
import pytest
from anyio.lowlevel import checkpoint
from opentelemetry import baggage, context, trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanContext, SpanKind, StatusCode, TraceFlags, TraceState
from opentelemetry.trace.span import format_span_id, format_trace_id

from callbackkit import (
    CallbackManager,
    Event,
    Gone,
    RetryPolicy,
    SessionEndedError,
    Transport,
)
from callbackkit.integrations.opentelemetry import extract, instrument, span_for
from callbackkit.wire.envelope import encode_event
from tests.integrations.rig import until_settled

HERE = "00-11111111111111111111111111111111-2222222222222222-01"

ABOVE = SpanContext(
    1, 2, is_remote=True, trace_flags=TraceFlags(1), trace_state=TraceState([("vendor", "1")])
)


class Traces:
    """Spans that have ended, by name."""

    def __init__(self) -> None:
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.exporter = InMemorySpanExporter()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.provider.get_tracer("tests")

    @property
    def spans(self) -> Sequence[ReadableSpan]:
        return self.exporter.get_finished_spans()

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.spans if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        [span] = self.named(name)
        return span


@pytest.fixture
def traces() -> Iterator[Traces]:
    made = Traces()
    yield made
    made.provider.shutdown()


class Door(Transport):
    """Fails as it is told to; keeps what span was the current one."""

    name = "door"
    retry = RetryPolicy(schedule=(0.0,), jitter=0.0)
    breaker = None
    timeout = 5.0

    def __init__(self, *outcomes: Exception | None) -> None:
        self.outcomes = list(outcomes)
        self.spans: list[SpanContext] = []

    async def send(self, delivery) -> None:
        await checkpoint()
        self.spans.append(trace.get_current_span().get_span_context())
        if self.outcomes and (outcome := self.outcomes.pop(0)) is not None:
            raise outcome


def traced(traces: Traces, **options) -> CallbackManager:
    manager = CallbackManager(**options)
    instrument(manager, tracer_provider=traces.provider)
    return manager


def parent_in(event: Event) -> str:
    traceparent: str = event.metadata["traceparent"]
    return traceparent


def header(span: ReadableSpan) -> str:
    at = span.context
    assert at is not None
    flags = f"{at.trace_flags:02x}"
    return f"00-{format_trace_id(at.trace_id)}-{format_span_id(at.span_id)}-{flags}"


# Emitting.


async def test_an_emit_is_a_span_of_a_producer_and_a_child_of_the_current_one(traces) -> None:
    manager = traced(traces)
    session = await manager.create_session()
    with traces.tracer.start_as_current_span("request"):
        event = await session.emit("note", {"a": 1}, conversation_id="c")
    assert event is not None
    span, request = traces.one("emit note"), traces.one("request")
    assert span.kind is SpanKind.PRODUCER
    assert span.parent == request.context
    assert span.status.status_code is StatusCode.UNSET
    assert span.instrumentation_scope is not None
    assert span.instrumentation_scope.name == "callbackkit"
    assert dict(span.attributes or {}) == {
        "messaging.system": "callbackkit",
        "messaging.operation.name": "emit",
        "messaging.operation.type": "create",
        "messaging.destination.name": session.id,
        "messaging.message.id": event.id,
        "messaging.message.conversation_id": "c",
        "cloudevents.event_type": "note",
    }


async def test_an_event_carries_the_span_that_emitted_it(traces) -> None:
    manager = traced(traces)
    session = await manager.create_session()
    event = await session.emit("note", metadata={"mine": 1})
    assert event is not None
    assert event.metadata == {"mine": 1, "traceparent": header(traces.one("emit note"))}


async def test_the_state_of_a_trace_goes_along_and_baggage_does_not(traces) -> None:
    """Every reader of a session sees the metadata of its events."""
    manager = traced(traces)
    session = await manager.create_session()
    around = trace.set_span_in_context(trace.NonRecordingSpan(ABOVE))
    token = context.attach(baggage.set_baggage("user", "alice", around))
    try:
        event = await session.emit("note")
    finally:
        context.detach(token)
    assert event is not None
    assert event.metadata.keys() == {"traceparent", "tracestate"}
    assert event.metadata["tracestate"] == "vendor=1"
    assert parent_in(event).split("-")[1] == format_trace_id(1)


async def test_a_trace_that_the_emitter_gives_stands_and_is_linked(traces) -> None:
    """For example that of an event which is passed on from another session; ours has a state."""
    manager = traced(traces)
    session = await manager.create_session()
    with trace.use_span(trace.NonRecordingSpan(ABOVE)):
        event = await session.emit("note", metadata={"traceparent": HERE})
    assert event is not None
    assert event.metadata == {"traceparent": HERE}
    [link] = traces.one("emit note").links
    assert format_span_id(link.context.span_id) == "2" * 16


async def test_an_event_with_a_key_is_the_same_however_often_it_is_emitted(traces) -> None:
    """Each emit has a span; none of them goes into an event that has to be the same."""
    manager = traced(traces)
    session = await manager.create_session()
    events = [await session.emit("note", idempotency_key="k") for _ in range(2)]
    assert events[0] == events[1]
    assert events[0] is not None
    assert events[0].metadata == {}
    assert [span.attributes["messaging.message.id"] for span in traces.spans] == [events[0].id] * 2


async def test_an_emit_that_fails_is_a_span_that_failed(traces) -> None:
    manager = traced(traces)
    session = await manager.create_session()
    await session.end()
    with pytest.raises(SessionEndedError) as caught:
        await session.progress(0.5)
    span = traces.one("emit progress")
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description == str(caught.value)
    assert (span.attributes or {})["error.type"] == "SessionEndedError"


async def test_what_is_handed_over_is_a_child_of_the_span_where_that_was(traces) -> None:
    async with traced(traces) as manager:
        session = await manager.create_session()

        def work() -> None:
            with traces.tracer.start_as_current_span("in a thread"):
                session.emit_soon("note")

        thread = threading.Thread(target=work)
        thread.start()
        await anyio.to_thread.run_sync(thread.join)
    span = traces.one("emit note")
    assert span.parent == traces.one("in a thread").context
    assert "messaging.message.id" in (span.attributes or {})


async def test_callbacks_run_in_the_trace_of_who_emits(traces) -> None:
    manager = traced(traces)
    seen: list[SpanContext] = []
    manager.register_callback(
        "note", lambda _event: seen.append(trace.get_current_span().get_span_context())
    )
    session = await manager.create_session()
    with traces.tracer.start_as_current_span("request"):
        await session.emit("note")
        assert seen == [trace.get_current_span().get_span_context()]


# Delivering.


async def test_an_attempt_is_a_span_of_a_client_linked_to_the_emit(traces) -> None:
    door = Door()
    async with traced(traces, transports=[door]) as manager:
        session = await manager.create_session({"delivery_method": "door"})
        event = await session.progress(1.0)
        await until_settled(session)
    assert event is not None
    span = traces.one("deliver door")
    assert span.kind is SpanKind.CLIENT
    [link] = span.links
    producer = traces.one("emit progress").context
    assert producer is not None
    assert (link.context.trace_id, link.context.span_id) == (producer.trace_id, producer.span_id)
    attributes = dict(span.attributes or {})
    assert attributes.pop("callbackkit.delivery.id")
    assert attributes == {
        "messaging.system": "callbackkit",
        "messaging.operation.name": "deliver",
        "messaging.operation.type": "send",
        "messaging.destination.name": session.id,
        "messaging.message.id": event.id,
        "messaging.batch.message_count": 1,
        "cloudevents.event_type": "progress",
        "callbackkit.delivery.method": "door",
        "callbackkit.delivery.attempt": 1,
        "callbackkit.delivery.is_redrive": False,
    }
    # What the transport's own client does belongs to it.
    assert door.spans == [span.context]


async def test_each_attempt_has_a_span_and_none_is_left_current(traces) -> None:
    door = Door(ConnectionError("away"), None)
    async with traced(traces, transports=[door]) as manager:
        session = await manager.create_session({"delivery_method": "door"})
        await session.progress(0.5)
        await session.progress(1.0)
        await until_settled(session)
    spans = traces.named("deliver door")
    attempts = [(span.attributes or {})["callbackkit.delivery.attempt"] for span in spans]
    assert attempts == [1, 2, 1]
    assert all(span.parent is None for span in spans)
    assert not trace.get_current_span().get_span_context().is_valid


async def test_a_batch_is_linked_to_each_of_its_events(traces) -> None:
    config = {"delivery_method": "door", "batching": {"max_events": 3, "max_delay": 60}}
    async with traced(traces, transports=[Door()]) as manager:
        session = await manager.create_session(config)
        for n in range(3):
            await session.progress(n / 3)
        await until_settled(session)
    span = traces.one("deliver door")
    emits = [each.context.span_id for each in traces.named("emit progress") if each.context]
    assert [link.context.span_id for link in span.links] == emits
    assert (span.attributes or {})["messaging.batch.message_count"] == 3
    assert "messaging.message.id" not in (span.attributes or {})


async def test_an_attempt_that_fails_tells_no_secret(traces) -> None:
    """Libraries put URLs and headers into what they raise; spans go to many places."""
    secret = "hunter2-hunter2-hunter2"
    failure = ConnectionError(f"no answer to Authorization: {secret}")
    config = {"delivery_method": "door", "headers": {"Authorization": secret}}
    async with traced(traces, transports=[Door(failure)]) as manager:
        session = await manager.create_session(config)
        await session.progress(1.0)
        await until_settled(session)
    failed, _ = traces.named("deliver door")
    assert failed.status.status_code is StatusCode.ERROR
    assert failed.status.description is not None
    assert failed.status.description.startswith("ConnectionError: no answer to")
    assert (failed.attributes or {})["error.type"] == "ConnectionError"
    assert secret not in failed.to_json()
    assert failed.events == ()


async def test_a_redriven_delivery_is_told_from_others(traces) -> None:
    async with traced(traces, transports=[Door(Gone("not now"))]) as manager:
        session = await manager.create_session({"delivery_method": "door"})
        await session.progress(1.0)
        await until_settled(session)
        await session.redrive()
        with anyio.fail_after(10):
            while (await session.stats()).events_failed:
                await checkpoint()
    redriven = [
        (span.attributes or {})["callbackkit.delivery.is_redrive"]
        for span in traces.named("deliver door")
    ]
    assert redriven == [False, True]


async def test_an_attempt_that_is_cancelled_ends_its_span(traces) -> None:
    started = anyio.Event()

    class Stuck(Transport):
        name = "stuck"

        async def send(self, delivery) -> None:
            started.set()
            await anyio.sleep_forever()

    async with traced(traces, transports=[Stuck()], drain_timeout=0.0) as manager:
        session = await manager.create_session({"delivery_method": "stuck"})
        await session.progress(1.0)
        with anyio.fail_after(10):
            await started.wait()
    assert traces.one("deliver stuck").status.status_code is StatusCode.ERROR


# Handling.


async def test_handling_is_a_span_of_a_consumer_linked_to_the_emit(traces) -> None:
    manager = traced(traces)
    session = await manager.create_session()
    event = await session.emit("note", conversation_id="c")
    assert event is not None
    with (
        traces.tracer.start_as_current_span("worker") as worker,
        span_for(event, tracer_provider=traces.provider) as current,
    ):
        assert trace.get_current_span() is current
    span = traces.one("process note")
    assert span.kind is SpanKind.CONSUMER
    assert span.parent == worker.get_span_context()
    [link] = span.links
    producer = traces.one("emit note").context
    assert producer is not None
    assert link.context.span_id == producer.span_id
    assert dict(span.attributes or {}) == {
        "messaging.system": "callbackkit",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": session.id,
        "messaging.message.id": event.id,
        "messaging.message.conversation_id": "c",
        "cloudevents.event_type": "note",
    }


async def test_json_that_another_process_got_is_as_good_as_the_event(traces) -> None:
    manager = traced(traces)
    session = await manager.create_session()
    event = await session.emit("note")
    assert event is not None
    payload = json.loads(encode_event(event))
    with span_for(payload, name="mine", tracer_provider=traces.provider):
        pass
    with span_for(event, tracer_provider=traces.provider):
        pass
    by_json, by_event = traces.one("mine"), traces.one("process note")
    assert by_json.attributes == by_event.attributes
    assert [link.context for link in by_json.links] == [link.context for link in by_event.links]


def test_a_child_of_the_emit_is_made_with_its_context(traces) -> None:
    event = Event.of("note", metadata={"traceparent": HERE})
    span = traces.tracer.start_span("child", context=extract(event))
    assert format_trace_id(span.get_span_context().trace_id) == "1" * 32
    span.end()
    assert format_span_id(traces.one("child").parent.span_id) == "2" * 16


def test_handling_that_fails_is_a_span_that_failed(traces) -> None:
    with (
        pytest.raises(ZeroDivisionError),
        span_for(Event.of("note"), tracer_provider=traces.provider),
    ):
        _ = 1 / 0
    assert traces.one("process note").status.status_code is StatusCode.ERROR


@pytest.mark.parametrize(
    "payload",
    [
        {},
        {"metadata": None},
        {"metadata": "x"},
        {"metadata": {}},
        {"metadata": {"traceparent": 7}},
        {"metadata": {"traceparent": ["00", None]}},
        {"metadata": {"traceparent": "00-0-0-0"}},
        {"metadata": {"traceparent": "00-" + "0" * 32 + "-" + "0" * 16 + "-01"}},
        {"metadata": {"traceparent": "x" * 100_000}},
        {"event_type": 3, "session_id": [], "id": None},
    ],
    ids=lambda value: str(value)[:40],
)
def test_an_event_without_a_valid_trace_is_handled_without_a_link(payload, traces) -> None:
    """It may come from anybody."""
    assert extract(payload) == {}
    with span_for(payload, tracer_provider=traces.provider):
        pass
    span = traces.one("process event")
    assert span.links == ()
    assert (span.attributes or {}).keys() == {
        "messaging.system",
        "messaging.operation.name",
        "messaging.operation.type",
    }


def test_there_is_no_link_to_nowhere() -> None:
    """This SDK leaves them out by itself; another one need not."""
    seen: list[object] = []

    class Tracer(trace.NoOpTracer):
        def start_as_current_span(self, name, *, links, **options):
            seen.append(links)
            return super().start_as_current_span(name, links=links, **options)

    class Provider(trace.NoOpTracerProvider):
        def get_tracer(self, *_args, **_options):
            return Tracer()

    with span_for({}, tracer_provider=Provider()):
        pass
    assert seen == [[]]


def test_a_state_that_is_none_leaves_the_trace(traces) -> None:
    event = Event.of("note", metadata={"traceparent": HERE, "tracestate": 7})
    at = trace.get_current_span(extract(event)).get_span_context()
    assert at.is_valid
    assert not at.trace_state


# Without an SDK, with sampling, and undone.


async def test_without_an_sdk_nothing_is_added() -> None:
    manager = CallbackManager()
    instrument(manager)
    session = await manager.create_session()
    event = await session.progress(0.5)
    assert event is not None
    assert event.metadata == {}
    with span_for(event) as span:
        assert not span.is_recording()


async def test_a_trace_that_is_not_sampled_is_passed_on_as_such() -> None:
    provider = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False)
    manager = CallbackManager()
    instrument(manager, tracer_provider=provider)
    session = await manager.create_session()
    event = await session.progress(0.5)
    assert event is not None
    flags = int(parent_in(event).rpartition("-")[2], 16)
    assert not flags & TraceFlags.SAMPLED


async def test_undone_there_are_no_more_spans(traces) -> None:
    manager = CallbackManager()
    undo = instrument(manager, tracer_provider=traces.provider)
    session = await manager.create_session()
    await session.progress(0.5)
    undo()
    undo()
    event = await session.progress(0.6)
    assert event is not None
    assert event.metadata == {}
    assert len(traces.spans) == 1
    instrument(manager, tracer_provider=traces.provider)
    await session.progress(0.7)
    assert len(traces.spans) == 2


def test_a_manager_is_instrumented_once(traces) -> None:
    """Else each event would have two spans."""
    manager = traced(traces)
    with pytest.raises(RuntimeError, match=r"already.*what the first instrument\(\) returned"):
        instrument(manager)
    assert len(manager.observers.all) == 1


def test_without_the_package_the_extra_is_named() -> None:
    module = "callbackkit.integrations.opentelemetry"
    program = f"import sys; sys.modules['opentelemetry'] = None; import {module}"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert f"ImportError: {module} needs opentelemetry-api: install callbackkit[otel]" in (
        done.stderr
    )
    assert done.returncode == 1


def test_it_needs_no_sdk() -> None:
    module = "callbackkit.integrations.opentelemetry"
    program = f"import sys; sys.modules['opentelemetry.sdk'] = None; import {module}"
    subprocess.run([sys.executable, "-c", program], timeout=60, check=True)
