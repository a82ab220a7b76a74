"""The metrics of a manager: what they are called, what they count, and what they never do."""

import math
import subprocess
import sys
import threading
from collections.abc import Mapping
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from prometheus_client import REGISTRY, CollectorRegistry, Gauge, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from callbackkit import (
    CallbackManager,
    CircuitBreaker,
    Gone,
    Limits,
    MemoryStore,
    Rejected,
    Retention,
    RetryPolicy,
    SessionEndedError,
    StoreError,
    Transport,
)
from callbackkit.integrations.prometheus import CallbackKitCollector, render
from tests.integrations.rig import Failing, until_none, until_settled

Values = Mapping[str, float]


def values(registry: CollectorRegistry) -> Values:
    return values_in(generate_latest(registry))


def values_in(text: bytes) -> Values:
    """The samples by ``name{label=value,...}``, as Prometheus' own parser reads them."""
    found = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


class Door(Transport):
    """Fails as it is told to, one outcome a time."""

    name = "door"
    retry = RetryPolicy(schedule=(0.0,), jitter=0.0)
    timeout = 0.02
    breaker = None

    def __init__(self, *outcomes: Any) -> None:
        self.outcomes = list(outcomes)

    async def send(self, delivery) -> None:
        outcome = self.outcomes.pop(0) if self.outcomes else None
        if outcome == "hang":
            await anyio.sleep_forever()
        if outcome is not None:
            raise outcome


class Told(Door):
    name = "told"


# Figures of the store.


async def test_before_the_store_was_looked_at_its_figures_are_missing() -> None:
    """Zeros would be a lie, and a counter that is reset."""
    registry = CollectorRegistry()
    CallbackKitCollector(CallbackManager(), registry)
    found = values(registry)
    assert not [name for name in found if "events" in name or "sessions" in name]
    assert found["callbackkit_readers{kind=sse}"] == 0


async def test_the_figures_of_the_store_are_those_of_the_last_look() -> None:
    registry = CollectorRegistry()
    manager = CallbackManager(transports=[Door(Gone("no"))])
    CallbackKitCollector(manager, registry)
    async with manager:
        read = await manager.create_session()
        await read.progress(0.5)
        await read.progress(1.0)
        async with read.subscribe() as events:
            await anext(events)
        async with manager.session({"delivery_method": "door"}) as refused:
            await refused.progress(1.0)
        await until_settled(refused)
        await manager.stats()
        expected = {
            "callbackkit_sessions{state=active}": 1,
            "callbackkit_sessions{state=ended}": 1,
            "callbackkit_events_sent_total": 3,
            "callbackkit_events_delivered_total": 1,
            "callbackkit_events_failed": 1,
            "callbackkit_events_expired_total": 0,
            "callbackkit_events_queued": 1,
            "callbackkit_delivery_retries_total": 0,
        }
        assert values(registry).items() >= expected.items()


async def test_retries_and_expired_events_are_counted() -> None:
    manager = CallbackManager(
        transports=[Door(ConnectionError("away"))], retention=Retention(max_events=1)
    )
    async with manager:
        session = await manager.create_session({"delivery_method": "door"})
        await session.progress(1.0)
        await until_settled(session)
        unread = await manager.create_session()
        await unread.progress(0.5)
        await unread.progress(1.0)
        found = values_in((await render(manager))[0])
    assert found["callbackkit_delivery_retries_total"] == 1
    assert found["callbackkit_events_expired_total"] == 1


async def test_a_redriven_event_is_failed_no_more() -> None:
    """So that figure is a gauge, which may fall."""
    manager = CallbackManager(transports=[Door(Gone("not now"))])
    async with manager:
        session = await manager.create_session({"delivery_method": "door"})
        await session.progress(1.0)
        await until_settled(session)
        before = values_in((await render(manager))[0])
        await session.redrive()
        await until_none(session, "events_failed")
        body, _ = await render(manager)
    assert before["callbackkit_events_failed"] == 1
    assert values_in(body)["callbackkit_events_failed"] == 0
    assert b"# TYPE callbackkit_events_failed gauge" in body


# Readers.


async def test_readers_are_counted_by_what_they_read_through() -> None:
    registry = CollectorRegistry()
    async with CallbackManager() as manager:
        CallbackKitCollector(manager, registry)
        session = await manager.create_session()
        kinds = ["sse", "sse", "websocket", "polling", "subscriber"]
        open_ones = [session.subscribe(kind=kind) for kind in kinds]
        found = values(registry)
        assert [found[f"callbackkit_readers{{kind={kind}}}"] for kind in kinds] == [2, 2, 1, 1, 1]
        for each in open_ones:
            each.close()
        assert sum(values(registry)[f"callbackkit_readers{{kind={kind}}}"] for kind in kinds) == 0


async def test_kinds_that_callers_make_up_are_one_series() -> None:
    registry = CollectorRegistry()
    async with CallbackManager() as manager:
        CallbackKitCollector(manager, registry)
        session = await manager.create_session()
        kept = [session.subscribe(kind=f"user-{n}") for n in range(5)]
        found = values(registry)
        assert found["callbackkit_readers{kind=other}"] == len(kept)
        assert len([name for name in found if name.startswith("callbackkit_readers")]) == 5


# Times.


async def test_the_time_to_store_is_counted_by_what_came_of_it() -> None:
    registry, store = CollectorRegistry(), Failing()
    async with CallbackManager(store=store) as manager:
        CallbackKitCollector(manager, registry)
        session = await manager.create_session()
        await session.progress(0.5)
        await session.progress(0.6)
        store.on_append = StoreError("the disk is full")
        with pytest.raises(StoreError):
            await session.progress(0.7)
        store.on_append = None
        await session.end()
        with pytest.raises(SessionEndedError):
            await session.progress(0.8)
    found = values(registry)
    counts = [
        found[f"callbackkit_emit_seconds_count{{outcome={outcome}}}"]
        for outcome in ("stored", "failed", "refused")
    ]
    assert counts == [2, 1, 1]
    total = found["callbackkit_emit_seconds_sum{outcome=stored}"]
    assert 0 < total < 60
    assert found["callbackkit_emit_seconds_bucket{le=+Inf,outcome=stored}"] == 2


async def test_what_a_session_turns_out_to_leave_out_was_not_stored() -> None:
    """Handed over where its filter is not at hand; what is left out at once is no emission."""
    registry, store = CollectorRegistry(), MemoryStore()
    async with CallbackManager(store=store) as manager:
        CallbackKitCollector(manager, registry)
        session = await manager.create_session({"events": ["progress"]})
        await session.emit("note")
        manager._filters.forget(session.id)
        left_out = session.emit_soon("note")
        await session.progress(0.5)
        assert left_out.result(timeout=0) is None
    found = values(registry)
    counts = [
        found[f"callbackkit_emit_seconds_count{{outcome={outcome}}}"]
        for outcome in ("stored", "filtered")
    ]
    assert counts == [1, 1]


async def test_who_is_cancelled_did_not_fail() -> None:
    """A client that leaves is no failure of the store; nor is an event that is taken back."""

    class Stuck(MemoryStore):
        async def append(self, *_args, **_options):
            leaving.cancel()
            await anyio.sleep_forever()

    registry = CollectorRegistry()
    manager = CallbackManager(store=Stuck(), drain_timeout=0.0)
    CallbackKitCollector(manager, registry)
    async with manager:
        session = await manager.create_session()
        assert session.emit_soon("note").cancel()
        with anyio.CancelScope() as leaving:
            await session.progress(0.5)
    found = values(registry)
    assert found["callbackkit_emit_seconds_count{outcome=cancelled}"] == 2
    assert found["callbackkit_emit_seconds_count{outcome=failed}"] == 0


async def test_series_of_emits_are_there_before_the_first_one() -> None:
    """What begins at 1 is no increase, and the first failure would raise no alarm."""
    registry = CollectorRegistry()
    CallbackKitCollector(CallbackManager(), registry)
    assert values(registry)["callbackkit_emit_seconds_count{outcome=failed}"] == 0


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        ([None], {"delivered": 1}),
        ([ConnectionError("away")], {"failed": 1, "delivered": 1}),
        (["hang"], {"timeout": 1, "delivered": 1}),
        ([Gone("never")], {"gone": 1}),
        ([Rejected("malformed")], {"rejected": 1}),
    ],
    ids=["delivered", "failed", "timeout", "gone", "rejected"],
)
async def test_attempts_are_counted_by_transport_and_outcome(outcomes, expected) -> None:
    registry = CollectorRegistry()
    manager = CallbackManager(transports=[Door(*outcomes)])
    CallbackKitCollector(manager, registry)
    async with manager:
        session = await manager.create_session({"delivery_method": "door"})
        await session.progress(1.0)
        await until_settled(session)
    prefix = "callbackkit_delivery_attempt_seconds_count"
    found = {name: count for name, count in values(registry).items() if name.startswith(prefix)}
    assert found == {
        f"{prefix}{{method=door,outcome={outcome}}}": count for outcome, count in expected.items()
    }


async def test_an_attempt_that_is_cancelled_is_one_of_its_own() -> None:
    registry = CollectorRegistry()
    door = Door("hang")
    door.timeout = 60.0
    manager = CallbackManager(transports=[door], drain_timeout=0.0)
    CallbackKitCollector(manager, registry)
    async with manager:
        session = await manager.create_session({"delivery_method": "door"})
        await session.progress(1.0)
        with anyio.fail_after(10):
            while door.outcomes:
                await checkpoint()
    found = values(registry)
    assert found["callbackkit_delivery_attempt_seconds_count{method=door,outcome=cancelled}"] == 1


# Endpoints.


async def test_what_operators_hear_is_counted_by_transport() -> None:
    registry = CollectorRegistry()
    door = Door(Rejected("malformed"), ConnectionError("away"), None, Gone("never"))
    door.breaker = CircuitBreaker(failures=2, open_for=0.01)
    manager = CallbackManager(transports=[door, Told()])
    CallbackKitCollector(manager, registry)
    async with manager:
        session = await manager.create_session({"delivery_method": "door"})
        for _ in range(4):
            await session.progress(1.0)
        await until_settled(session)
    found = values(registry)
    changes = ("failing", "recovered", "disabled")
    prefix = "callbackkit_endpoint_changes_total"
    assert [found[f"{prefix}{{change={each},method=door}}"] for each in changes] == [1, 1, 1]
    assert [found[f"{prefix}{{change={each},method=told}}"] for each in changes] == [0, 0, 0]
    assert found["callbackkit_dead_letters_total{method=door}"] == 3
    assert found["callbackkit_dead_letters_total{method=told}"] == 0


# What is never so.


async def test_no_series_has_a_session_or_was_created_at_some_time() -> None:
    async with CallbackManager(transports=[Door()]) as manager:
        await render(manager)
        session = await manager.create_session({"delivery_method": "door"})
        await session.progress(1.0)
        await until_settled(session)
        body, _ = await render(manager)
    assert session.id.encode() not in body
    assert b"_created" not in body
    assert b"delivery_attempt_seconds_count" in body


async def test_names_and_units_are_those_of_prometheus() -> None:
    async with CallbackManager(transports=[Door()]) as manager:
        body, _ = await render(manager)
    for family in text_string_to_metric_families(body.decode()):
        assert family.name.startswith("callbackkit_")
        assert family.documentation
        if family.type == "counter":
            assert {each.name for each in family.samples} == {f"{family.name}_total"}
        assert family.name.endswith("_seconds") == (family.type == "histogram")


def test_the_global_registry_is_left_alone() -> None:
    before = generate_latest(REGISTRY).count(b"callbackkit")
    CallbackKitCollector(CallbackManager())
    assert generate_latest(REGISTRY).count(b"callbackkit") == before == 0


def test_a_second_one_in_a_registry_is_refused() -> None:
    """Two of them would be a page that Prometheus does not read."""
    registry = CollectorRegistry()
    CallbackKitCollector(CallbackManager(), registry)
    with pytest.raises(ValueError, match="Duplicated timeseries"):
        CallbackKitCollector(CallbackManager(), registry)


async def test_each_of_its_names_is_taken_when_it_registers() -> None:
    """So that a clash is an error at the start, and not a page that Prometheus does not read."""
    async with CallbackManager() as manager:
        await manager.stats()
        collector = CallbackKitCollector(manager)
        names = [metric.name for metric in collector.collect()]
    for name in names:
        registry = CollectorRegistry()
        Gauge(name, "Somebody else's", registry=registry)
        with pytest.raises(ValueError, match="Duplicated timeseries"):
            CallbackKitCollector(CallbackManager(), registry)


async def test_one_that_was_taken_out_can_be_put_in_again() -> None:
    registry = CollectorRegistry()
    manager = CallbackManager()
    collector = CallbackKitCollector(manager, registry)
    registry.unregister(collector)
    assert generate_latest(registry) == b""
    CallbackKitCollector(manager, registry)
    assert b"callbackkit_readers" in generate_latest(registry)


async def test_two_collectors_of_a_manager_show_the_same_and_count_once() -> None:
    manager = CallbackManager()
    registries = [CollectorRegistry(), CollectorRegistry()]
    for registry in registries:
        CallbackKitCollector(manager, registry)
    session = await manager.create_session()
    await session.progress(0.5)
    one, other = map(values, registries)
    assert one == other
    assert one["callbackkit_emit_seconds_count{outcome=stored}"] == 1
    assert len(manager.observers.all) == 1


async def test_metrics_can_be_collected_in_another_thread_meanwhile() -> None:
    """As ``start_http_server`` of prometheus_client does."""
    registry = CollectorRegistry()
    failures: list[BaseException] = []
    stop = threading.Event()

    def scrape() -> None:
        try:
            while not stop.is_set():
                found = values(registry)
                stored = "callbackkit_emit_seconds_count{outcome=stored}"
                bucket = "callbackkit_emit_seconds_bucket{le=+Inf,outcome=stored}"
                assert not math.isnan(found[stored])
                assert found[stored] >= 0
                assert found[bucket] >= 0
        except BaseException as exc:
            failures.append(exc)

    async with CallbackManager(limits=Limits(max_readers=1000)) as manager:
        CallbackKitCollector(manager, registry)
        session = await manager.create_session()
        thread = threading.Thread(target=scrape)
        thread.start()
        try:
            for n in range(300):
                await session.progress(n / 300)
                reader = session.subscribe(kind="sse")
                reader.close()
        finally:
            stop.set()
            await anyio.to_thread.run_sync(thread.join)
    assert failures == []


# As text.


async def test_render_looks_at_the_store_first() -> None:
    manager = CallbackManager()
    session = await manager.create_session()
    await session.progress(0.5)
    body, content_type = await render(manager)
    assert values_in(body)["callbackkit_events_sent_total"] == 1
    assert content_type.startswith("text/plain; version=")
    await session.progress(0.6)
    body, _ = await render(manager)
    assert values_in(body)["callbackkit_events_sent_total"] == 2
    assert values_in(body)["callbackkit_emit_seconds_count{outcome=stored}"] == 1


async def test_render_works_while_the_store_does_not(caplog) -> None:
    store = Failing()
    manager = CallbackManager(store=store)
    session = await manager.create_session()
    await session.progress(0.5)
    store.on_totals = StoreError("the disk is gone")
    body, _ = await render(manager)
    assert "callbackkit_events_sent_total" not in values_in(body)
    assert "callbackkit_readers{kind=sse}" in values_in(body)
    [record] = caplog.records
    assert record.message == "metrics are without a look at the store"
    store.on_totals = None
    await render(manager)
    store.on_totals = StoreError("the disk is gone again")
    body, _ = await render(manager)
    assert values_in(body)["callbackkit_events_sent_total"] == 1


def test_without_the_package_the_extra_is_named() -> None:
    module = "callbackkit.integrations.prometheus"
    program = f"import sys; sys.modules['prometheus_client'] = None; import {module}"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert (
        f"ImportError: {module} needs prometheus-client: install callbackkit[prometheus]"
        in done.stderr
    )
    assert done.returncode == 1
