"""What those who serve claims share."""

import anyio
import pytest

from callbackkit.delivery.desk import Desk
from callbackkit.delivery.observers import Observers
from callbackkit.stores.memory import MemoryStore
from tests.delivery.rig import Config, Told


def desk(**options) -> Desk:
    async def notify(*_event) -> None: ...

    return Desk(
        MemoryStore(),
        {"told": Told(timeout=options.pop("timeout", 5.0))},
        read_config=options.pop("read_config", lambda _text: Config()),
        decode=bytes.decode,
        notify=options.pop("notify", notify),
        clock=lambda: 0.0,
        random=lambda: 0.5,
        worker="w",
        concurrency=1,
        observers=Observers(),
    )


def test_probes_have_names_of_their_own() -> None:
    shared = desk()
    assert len({shared.new_probe() for _ in range(100)}) == 100


def test_a_configuration_is_read_once() -> None:
    read: list[bytes] = []

    def read_config(text: bytes) -> Config:
        read.append(text)
        return Config()

    shared = desk(read_config=read_config)
    assert shared.read_config(b"a") is shared.read_config(b"a")
    assert read == [b"a"]


@pytest.mark.parametrize(("timeout", "lease"), [(5.0, 15.0), (30.0, 40.0), (600.0, 40.0)])
def test_a_lease_is_longer_than_a_timeout_that_is_not_long_itself(timeout, lease) -> None:
    assert desk(timeout=timeout).lease == lease


async def test_a_pause_ends_by_itself_or_by_being_woken() -> None:
    shared = desk()
    await shared.pause(0.001)
    async with anyio.create_task_group() as group:
        group.start_soon(shared.pause, 60)
        await anyio.wait_all_tasks_blocked()
        shared.wake()


async def test_who_waits_for_a_batch_takes_no_place() -> None:
    shared = desk()
    place = shared.places.take("told", 0.0)
    assert shared.places.room == 0
    got: list[bool] = []

    async def wait() -> None:
        with shared.store.watch("s") as watch:
            got.append(await shared.wait_on(watch, 60, place))

    async with anyio.create_task_group() as group:
        group.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        assert shared.places.room == 1
        assert shared.may_wait
        shared.wake()
    assert got == [True]
    assert shared.places.room == 0


async def test_that_operators_can_not_be_told_is_logged(caplog) -> None:
    async def notify(*_event) -> None:
        raise RuntimeError("no operators")

    await desk(notify=notify).tell("delivery.dead", "s", {})
    assert caplog.records[0].delivery_event == "delivery.dead"
