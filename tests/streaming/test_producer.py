"""A producer in a task of its own: its result, its time, and how it is ended."""

import anyio
import pytest

from callbackkit.errors import StreamCancelledError
from callbackkit.streaming.callback import Callback
from callbackkit.streaming.producer import Producer


async def begin(call, timeout=None, task_group=None):
    producer = Producer("it", Callback(), call, timeout)
    await producer.start(task_group, lambda: None)
    return producer


async def endless():
    await anyio.sleep_forever()


async def test_its_result_can_be_waited_for() -> None:
    async def three():
        return 3

    producer = await begin(three)
    assert await producer.result() == 3
    await producer.wait()
    assert producer.is_done
    assert producer.error is None


async def test_it_is_cancelled_and_waited_for() -> None:
    producer = await begin(endless)
    await producer.cancel()
    assert producer.is_done
    with pytest.raises(StreamCancelledError):
        await producer.result()
    await producer.cancel()


async def test_whoever_is_cancelled_while_waiting_for_it_cancels_it() -> None:
    producer = await begin(endless)
    with anyio.move_on_after(0.01):
        await producer.wait()
    assert producer.is_done


async def test_whoever_is_cancelled_while_waiting_for_its_result_does_not() -> None:
    producer = await begin(endless)
    with anyio.move_on_after(0.01):
        await producer.result()
    assert not producer.is_done
    await producer.cancel()


async def test_its_time_is_limited() -> None:
    producer = await begin(endless, timeout=0.01)
    with pytest.raises(TimeoutError, match=r"the run of it took longer than 0\.01 seconds"):
        await producer.result()


async def test_it_may_run_in_a_group_that_ends() -> None:
    async with anyio.create_task_group() as group:
        producer = await begin(endless, task_group=group)
        group.cancel_scope.cancel()
    assert isinstance(producer.error, StreamCancelledError)
