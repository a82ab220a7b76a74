"""Observers hear of what is stored and delivered, and can break none of it."""

import logging
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from callbackkit import (
    CallbackManager,
    Event,
    Gone,
    IdempotencyError,
    LimitError,
    Limits,
    MemoryStore,
    Retry,
    SessionEndedError,
    Transport,
)
from callbackkit.delivery.observers import Emission, Observer, Observers
from tests.delivery.rig import Rig, Told


class Listener(Observer):
    """Keeps what it was told; says *added* of each event."""

    def __init__(self, name: str = "", log: list[Any] | None = None, **added: Any) -> None:
        self.name = name
        self.added = added
        self.log: list[Any] = [] if log is None else log
        self.emissions: list[Emission] = []

    def emitting(self, emission: Emission):
        self._note("emitting", emission.event_type)
        self.emissions.append(emission)
        emission.added.update(self.added)
        return lambda event, error: self._note("emitted", event, error)

    def attempting(self, delivery, method):
        self._note("attempting", method, delivery.attempt)
        return lambda error: self._note("attempted", error)

    def _note(self, *what: object) -> None:
        self.log.append((f"{self.name}{what[0]}", *what[1:]))


class Silent(Observer):
    """Overrides nothing."""


class Mute(Observer):
    """Wants no end told."""

    def emitting(self, emission):
        return None

    def attempting(self, delivery, method):
        return None


class Broken(Observer):
    """Fails wherever it is asked."""

    def emitting(self, emission):
        raise ZeroDivisionError("emitting")

    def attempting(self, delivery, method):
        raise ZeroDivisionError("attempting")


class Deaf(Observer):
    """Fails when it is told what operators hear."""

    def noticing(self, event_type, data):
        raise ZeroDivisionError("noticing")


class BrokenLater(Observer):
    """Fails when it is told the end."""

    def emitting(self, emission):
        return lambda _event, _error: 1 / 0

    def attempting(self, delivery, method):
        return lambda _error: 1 / 0


def observed(*observers: Observer, **options: Any) -> CallbackManager:
    manager = CallbackManager(**options)
    for each in observers:
        manager.observers.add(each)
    return manager


# Who they are.


def test_what_is_no_observer_is_refused() -> None:
    with pytest.raises(TypeError, match="no Observer; make it an instance of a subclass"):
        Observers().add(Listener)


def test_one_that_is_removed_hears_no_more_beginnings() -> None:
    observers, one, other = Observers(), Listener(), Listener()
    observers.add(one)
    observers.add(other)
    told = observers.emitting(Emission("s", "progress"))
    observers.remove(one)
    observers.remove(one)
    told(None, None)
    observers.emitting(Emission("s", "progress"))
    assert observers.all == (other,)
    assert [what for what, *_ in one.log] == ["emitting", "emitted"]
    assert len(other.log) == 3


def test_the_first_of_a_class_is_made_once() -> None:
    observers = Observers()
    observers.add(Silent())
    made = observers.first(Listener, Listener)
    assert observers.first(Listener, Listener) is made
    assert observers.all[1:] == (made,)


@pytest.fixture
def hurried_threads() -> Iterator[None]:
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("hurried_threads")
def test_one_may_come_while_another_is_made() -> None:
    """As a finalizer may do it, which runs anywhere."""
    observers, other = Observers(), Silent()

    def make() -> Mute:
        observers.add(other)
        return Mute()

    thread = threading.Thread(target=observers.first, args=(Mute, make), daemon=True)
    thread.start()
    thread.join(5)
    assert not thread.is_alive()
    assert observers.all[0] is other
    assert len(observers.all) == 2


def test_threads_add_and_remove_and_none_is_lost() -> None:
    observers = Observers()
    old, new = [Silent() for _ in range(1_000)], [Silent() for _ in range(1_000)]
    for each in old:
        observers.add(each)

    def run(change: Callable[[Observer], None], some: list[Silent]) -> None:
        for each in some:
            change(each)

    threads = [
        threading.Thread(target=run, args=(change, some[n::2]))
        for change, some in ((observers.add, new), (observers.remove, old))
        for n in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(observers.all) == set(new)


def test_the_ends_are_told_the_other_way_round() -> None:
    log: list[Any] = []
    observers = Observers()
    observers.add(Listener("a ", log))
    observers.add(Listener("b ", log))
    observers.emitting(Emission("s", "progress"))(None, None)
    assert [what for what, *_ in log] == ["a emitting", "b emitting", "b emitted", "a emitted"]


# Storing.


async def test_an_event_is_told_before_and_after_it_is_stored() -> None:
    listener = Listener()
    manager = observed(listener)
    session = await manager.create_session()
    event = await session.emit("note", {"a": 1}, metadata={"b": 2}, conversation_id="c")
    assert listener.log == [("emitting", "note"), ("emitted", event, None)]
    [told] = listener.emissions
    assert (told.session_id, told.data, told.metadata) == (session.id, {"a": 1}, {"b": 2})
    assert (told.conversation_id, told.idempotency_key) == ("c", None)


async def test_what_a_client_sends_is_told_as_any_event() -> None:
    manager, listener = CallbackManager(), Listener(trace="t1")
    session = await manager.create_session()
    manager.observers.add(listener)
    event = await session.receive({"text": "hi"})
    assert listener.log == [("emitting", "client.message"), ("emitted", event, None)]
    assert listener.emissions[0].data == {"text": "hi"}
    assert (event.data, event.metadata) == ({"text": "hi"}, {"trace": "t1"})
    await session.end()
    with pytest.raises(SessionEndedError) as caught:
        await session.receive({"text": "there?"})
    assert listener.log[2:] == [("emitting", "client.message"), ("emitted", None, caught.value)]


async def test_what_is_filtered_or_wrong_is_not_told() -> None:
    listener = Listener()
    manager = observed(listener)
    session = await manager.create_session({"events": ["progress"]})
    assert await session.thinking("hm") is None
    assert session.emit_soon("thinking", {"thought": "hm"}).result(0) is None
    with pytest.raises(ValueError, match="progress"):
        await session.emit("progress", {"progress": 2})
    assert listener.log == []


async def test_what_could_not_be_stored_is_told_with_its_error() -> None:
    listener = Listener()
    manager = observed(listener)
    session = await manager.create_session()
    await session.end()
    with pytest.raises(SessionEndedError) as caught:
        await session.progress(0.5)
    assert listener.log[1:] == [("emitted", None, caught.value)]


async def test_one_that_is_cancelled_is_told_too() -> None:
    listener = Listener()

    class Stuck(MemoryStore):
        async def append(self, *_args, **_options):
            await anyio.sleep_forever()

    manager = observed(listener, store=Stuck())
    session = await manager.create_session()
    with anyio.move_on_after(0.01):
        await session.progress(0.5)
    [_, (_, event, error)] = listener.log
    assert event is None
    assert isinstance(error, anyio.get_cancelled_exc_class())


async def test_what_observers_add_stands_in_the_metadata() -> None:
    manager = observed(Listener(trace="1", more=[1]), Listener(other="x"))
    session = await manager.create_session()
    event = await session.progress(0.5)
    assert event is not None
    assert event.metadata == {"trace": "1", "more": [1], "other": "x"}
    assert event.data == {"progress": 0.5}


async def test_what_the_emitter_said_stands() -> None:
    manager = observed(Listener(trace="ours", more=1))
    session = await manager.create_session()
    event = await session.emit("note", metadata={"trace": "theirs"}, conversation_id="c")
    assert event is not None
    assert event.metadata == {"trace": "theirs", "more": 1}
    assert event.conversation_id == "c"


async def test_an_event_with_a_key_stays_as_it_is() -> None:
    """The second emit brings another trace; the event is the same."""
    listener = Listener(trace="1")
    manager = observed(listener)
    session = await manager.create_session()
    first = await session.emit("note", idempotency_key="k", metadata={"a": 1})
    listener.added = {"trace": "2"}
    assert await session.emit("note", idempotency_key="k", metadata={"a": 1}) == first
    assert first is not None
    assert first.metadata == {"a": 1}
    with pytest.raises(IdempotencyError):
        await session.emit("note", idempotency_key="k", metadata={"a": 2})


async def test_what_is_added_makes_no_event_too_large() -> None:
    manager = observed(Listener(trace="x" * 200), limits=Limits(max_event_bytes=150))
    session = await manager.create_session()
    event = await session.emit("note", {"text": "short enough"})
    assert event is not None
    assert event.metadata == {}


async def test_what_is_added_and_is_no_json_is_left_out() -> None:
    manager = observed(Listener(trace=object()))
    session = await manager.create_session()
    event = await session.emit("note")
    assert event is not None
    assert event.metadata == {}


@pytest.mark.parametrize("observer", [Silent(), Mute()])
async def test_one_that_wants_no_end_gets_none(observer: Observer) -> None:
    manager = observed(observer)
    session = await manager.create_session()
    assert await session.progress(0.5) is not None


@pytest.mark.parametrize("observer", [Broken(), BrokenLater()])
async def test_one_that_fails_is_logged_and_changes_nothing(observer, caplog) -> None:
    listener = Listener()
    manager = observed(listener, observer)
    session = await manager.create_session()
    event = await session.progress(0.5)
    assert listener.log[1:] == [("emitted", event, None)]
    [record] = caplog.records
    assert (record.message, record.name) == ("an observer failed", "callbackkit.delivery")
    assert record.levelno == logging.ERROR
    assert record.exc_info[0] is ZeroDivisionError


# Handing over.


async def test_what_is_handed_over_is_told_when_it_is_stored() -> None:
    listener = Listener(trace="1")
    async with observed(listener) as manager:
        session = await manager.create_session()
        future = session.emit_soon("note", {"a": 1})
        await manager._outbox.flush(session.id)
        event = future.result(0)
    assert event is not None
    assert event.metadata == {"trace": "1"}
    assert listener.log == [("emitting", "note"), ("emitted", event, None)]


async def test_what_is_handed_over_in_a_thread_is_told_there() -> None:
    """So the context of that thread is the one it is emitted in."""
    threads: list[str] = []

    class Where(Observer):
        def emitting(self, emission):
            threads.append(threading.current_thread().name)

    async with observed(Where()) as manager:
        session = await manager.create_session()
        thread = threading.Thread(target=session.emit_soon, args=("note",), name="worker")
        thread.start()
        await anyio.to_thread.run_sync(thread.join)
    assert threads == ["worker"]


async def test_what_can_not_be_handed_over_is_told() -> None:
    listener = Listener()
    async with observed(listener, limits=Limits(max_pending=1)) as manager:
        session = await manager.create_session()
        session.emit_soon("note")
        with pytest.raises(LimitError) as caught:
            session.emit_soon("note")
        assert listener.log[2:] == [("emitted", None, caught.value)]


async def test_what_is_taken_back_is_told_as_cancelled() -> None:
    listener = Listener()
    async with observed(listener) as manager:
        session = await manager.create_session()
        assert session.emit_soon("note").cancel()
    [_, (_, event, error)] = listener.log
    assert event is None
    assert isinstance(error, CancelledError)


# Delivering.


def rig_with(listener: Observer, *transports: Transport) -> tuple[Rig, Any]:
    rig = Rig(*transports)
    observers = Observers()
    observers.add(listener)
    return rig, rig.engine(observers=observers)


async def test_each_attempt_is_told_with_what_came_of_it() -> None:
    failure = ConnectionError("away")

    async def once(delivery) -> None:
        if delivery.attempt == 1:
            raise failure

    listener, told = Listener(), Told(once)
    rig, engine = rig_with(listener, told)
    await rig.session()
    await rig.emit("s", 1)
    async with rig.running(engine):
        await rig.until_failed(1)
        rig.advance(10)
        await rig.until_settled()
    assert listener.log == [
        ("attempting", "told", 1),
        ("attempted", failure),
        ("attempting", "told", 2),
        ("attempted", None),
    ]


async def test_an_attempt_that_takes_too_long_is_told_so() -> None:
    async def hang(_delivery) -> None:
        await anyio.sleep_forever()

    listener = Listener()
    rig, engine = rig_with(listener, Told(hang, timeout=0.01))
    await rig.session()
    await rig.emit("s", 1)
    async with rig.running(engine):
        await rig.until_failed(1)
    assert isinstance(listener.log[1][1], TimeoutError)


async def test_an_attempt_that_is_cancelled_is_told_so() -> None:
    async def hang(_delivery) -> None:
        await anyio.sleep_forever()

    told, listener = Told(hang), Listener()
    rig, engine = rig_with(listener, told)
    await rig.session()
    await rig.emit("s", 1)
    async with rig.running(engine):
        await told.until_tried(1)
    assert isinstance(listener.log[1][1], anyio.get_cancelled_exc_class())


@pytest.mark.parametrize("observer", [Broken(), BrokenLater(), Silent(), Mute()])
async def test_an_observer_makes_no_delivery_fail(observer) -> None:
    told = Told()
    rig, engine = rig_with(observer, told)
    await rig.session()
    await rig.emit("s", 1, 2)
    async with rig.running(engine):
        await rig.until_settled()
    assert told.numbers() == [1, 2]


async def test_a_manager_has_its_engine_tell_its_observers() -> None:
    """Also one that comes when the engine runs."""
    told, listener = Told(), Listener()
    async with CallbackManager(transports=[told]) as manager:
        manager.observers.add(listener)
        session = await manager.create_session({"delivery_method": "told"})
        await session.progress(1.0)
        await told.until_done(1)
    kinds = [what for what, *_ in listener.log]
    assert kinds == ["emitting", "emitted", "attempting", "attempted"]


@pytest.mark.parametrize("deaf", [None, Deaf()], ids=["alone", "one fails"])
async def test_what_operators_hear_is_told(deaf, caplog) -> None:
    async def act(_delivery) -> None:
        raise Gone("HTTP 410")

    class Hearing(Observer):
        def noticing(self, event_type, data) -> None:
            heard.append((event_type, data["delivery_method"]))

    heard: list[tuple[str, str]] = []
    async with CallbackManager(transports=[Told(act)]) as manager:
        for observer in (deaf, Listener(), Hearing()):
            if observer is not None:
                manager.observers.add(observer)
        session = await manager.create_session({"delivery_method": "told"})
        await session.progress(1.0)
        with anyio.fail_after(10):
            while len(heard) < 2:
                await checkpoint()
    assert heard == [("endpoint.disabled", "told"), ("delivery.dead", "told")]
    failed = [each for each in caplog.records if each.message == "an observer failed"]
    assert len(failed) == (0 if deaf is None else 2)


async def test_what_goes_by_one_connection_is_told_too() -> None:
    outcomes = [Retry(after=0.0), None, Gone()]

    class Door(Transport):
        name = "door"

        async def send(self, delivery) -> None:
            if (outcome := outcomes.pop(0)) is not None:
                raise outcome

    listener = Listener()
    async with observed(listener) as manager:
        session = await manager.create_session()
        await session.progress(0.5)
        await session.progress(1.0)
        await session.serve(Door())
    attempts = [entry for entry in listener.log if entry[0].startswith("attempt")]
    assert [type(error).__name__ for _, error in attempts[1::2]] == ["Retry", "NoneType", "Gone"]
    assert [entry[1:] for entry in attempts[::2]] == [("door", 1), ("door", 2), ("door", 1)]


async def test_events_that_are_told_can_be_read() -> None:
    """What is told is the event, as readers get it."""
    listener = Listener()
    manager = observed(listener)
    session = await manager.create_session()
    await session.progress(0.5)
    async with session.subscribe() as events:
        event: Event = await anext(events)
    await checkpoint()
    assert listener.log[1][1] == event
