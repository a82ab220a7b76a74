"""Owning a run: it ends with its producer, and the producer with it."""

import threading

import anyio
import anyio.lowlevel
import pytest

from callbackkit.errors import StreamCancelledError
from callbackkit.streaming.callback import Callback, current_callback
from callbackkit.streaming.ownership import _scheduler, is_owned, produce


@pytest.mark.usefixtures("no_run_around")
async def test_a_run_ends_with_what_becomes_of_its_producer() -> None:
    async def well():
        return current_callback()

    async def badly():
        raise error

    error, callback, other = OSError("gone"), Callback(), Callback()
    assert await produce(callback, well) is callback
    assert callback.status == "ok"
    assert current_callback() is None
    with pytest.raises(OSError, match="gone"):
        await produce(other, badly)
    assert (other.status, other.error) == ("error", error)


async def test_who_is_part_of_a_producer_knows() -> None:
    async def outer():
        assert is_owned(callback)
        await produce(inner, both)
        assert not is_owned(inner)

    async def both():
        assert is_owned(callback)
        assert is_owned(inner)

    callback, inner = Callback(), Callback()
    await produce(callback, outer)
    assert not is_owned(callback)


@pytest.mark.parametrize("status", ["cancelled", "timeout"])
async def test_a_run_that_is_ended_by_others_stops_its_producer(status) -> None:
    """In whichever thread, and whether or not they say why."""

    async def linger():
        threading.Thread(target=lambda: callback.end(status)).start()
        await anyio.sleep_forever()

    callback = Callback()
    with anyio.fail_after(10), pytest.raises(StreamCancelledError):
        await produce(callback, linger)


async def test_a_run_that_is_closed_or_failed_by_its_producer_goes_on() -> None:
    async def close():
        await callback.close()
        await anyio.sleep(0.001)
        return "done"

    async def fail():
        await other.fail(OSError("gone"))
        await anyio.sleep(0.001)
        return "done"

    callback, other = Callback(), Callback()
    assert await produce(callback, close) == "done"
    assert await produce(other, fail) == "done"
    assert (callback.status, other.status) == ("ok", "error")


class Own(Callback):
    """Has endings of its own, which forget to call those of the base."""

    def __init__(self):
        super().__init__()
        self.told = []

    async def close(self):
        self.told.append("close")
        await anyio.lowlevel.checkpoint()

    async def fail(self, exc):
        self.told.append(exc)
        raise ValueError("mine")

    def cancel(self, reason=""):
        self.told.append("cancel")


async def test_the_endings_of_a_subclass_are_called_and_the_run_ends_at_any_rate() -> None:
    async def well():
        return 1

    async def badly():
        raise error

    error, own = OSError("gone"), Own()
    assert await produce(own, well) == 1
    assert (own.told, own.status) == (["close"], "ok")
    own = Own()
    with pytest.raises(ValueError, match="mine"):
        await produce(own, badly)
    assert (own.told, own.status, own.error) == ([error], "error", error)
    own = Own()
    with anyio.move_on_after(0.001):
        await produce(own, anyio.sleep_forever)
    assert (own.told, own.status) == (["cancel"], "cancelled")


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_loop_that_is_gone_is_no_matter_to_who_ends_a_run(backend) -> None:
    async def make():
        return _scheduler()

    called = []
    anyio.run(make, backend=backend)(lambda: called.append(True))
    assert called == []
