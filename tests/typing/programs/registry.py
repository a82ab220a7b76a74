"""Typed events: a callback takes what the event carries."""

from concurrent.futures import Future
from enum import Enum
from typing import Any, assert_type

import attrs

from callbackkit import (
    CallbackRegistry,
    DispatchResult,
    ErrorContext,
    EventKey,
    Outcome,
    Registration,
)


@attrs.frozen
class Order:
    number: int


class Topic(str, Enum):
    SHIPPED = "order.shipped"


CREATED = EventKey[Order]("order.created")
registry = CallbackRegistry(mode="concurrent", timeout=1.5, timing=True)


def take_order(order: Order) -> None:
    print(order.number)


async def take_order_async(order: Order) -> str:
    return str(order.number)


def take_int(number: int) -> None:
    print(number)


def take_nothing() -> None:
    print("an event")


def take_event(event_type: str, order: Order) -> None:
    print(event_type, order.number)


def has_number(order: Order) -> bool:
    return order.number > 0


# A key holds its callbacks to its type.
assert_type(registry.register_callback(CREATED, take_order), Registration)
registry.register_callback(CREATED, take_order_async)
registry.register_callback(CREATED, take_nothing)
registry.register_callback(CREATED, lambda order: print(order.number))
registry.register_callback(CREATED, take_order, when=has_number, priority=3, once=True)
registry.register_callback(CREATED, take_int)  # E

# So does a class, whose instances are the data.
registry.register_callback(Order, take_order)
registry.register_callback(Order, take_nothing)
registry.register_callback(Order, take_int)  # E

# A string promises nothing.
registry.register_callback("order.created", take_order)
registry.register_callback("order.*", take_int)
registry.register_callback(Topic.SHIPPED, take_nothing)

# With the event's name before the data.
registry.register_callback(CREATED, take_event, with_event=True)
registry.register_callback(CREATED, take_event)  # E
registry.register_callback(CREATED, take_order, with_event=True)  # E

# Options are known by name and type.
registry.register_callback("x", take_int, prio=1)  # E
registry.register_callback("x", take_int, priority="high")  # E
registry.register_callback("x", take_int, timeout="soon")  # E
registry.register_callback("x", 42)  # E
registry.register_callback(42, take_int)  # E
CallbackRegistry(mode="parallel")  # E
CallbackRegistry(retries=3)  # E


# A decorator leaves the function as it was.
@registry.on(CREATED, priority=1)
def on_created(order: Order) -> int:
    return order.number


@registry.once(CREATED)
async def once_created(order: Order) -> str:
    return str(order.number)


assert_type(on_created(Order(1)), int)
on_created("one")  # E
assert_type(registry.on(CREATED, take_order), Registration)
assert_type(registry.off(CREATED, take_order), bool)
assert_type(registry.unregister_callback("order.created", take_order), bool)


def hear(exception: Exception, context: ErrorContext) -> None:
    print(exception, context)


async def hear_async(exception: Exception) -> None:
    print(exception)


registry.add_error_callback(hear)
registry.add_error_callback(hear_async)
registry.add_error_callback(print)
registry.add_error_callback("log")  # E
registry.register_callback(CREATED, take_order, on_error=hear)
registry.trigger_callbacks_sync("order.created", {"number": 1})


async def main() -> None:
    result = await registry.trigger_callbacks(CREATED, Order(1))
    assert_type(result, DispatchResult)
    for outcome in result:
        assert_type(outcome, Outcome)
    assert_type(result[0], Outcome)
    assert_type(result.ok, bool)
    assert_type(len(result), int)
    result.missing  # E
    result[0].status == "fine"  # E
    result[0] = result[1]  # E

    await registry.trigger_callbacks("order.created", {"number": 1})
    assert_type(await registry.emit(CREATED, Order(1)), DispatchResult)
    assert_type(await registry.emit(Order(1)), DispatchResult)
    assert_type(registry.trigger_callbacks_sync(CREATED, Order(1)), DispatchResult)
    async with registry.serving():
        future = registry.trigger_threadsafe(CREATED, Order(1))
        assert_type(future, Future[DispatchResult])

    async with registry.stream("order.*", max_items=10, overflow="error") as stream:
        async for _, anything in stream:
            assert_type(anything, Any)
    registry.stream("order.*", overflow="block")  # E
    _, anything = await registry.wait_for("order.created", when=has_number, timeout=5)
    assert_type(anything, Any)

    with registry.muted("order.*"), registry.register_callback(CREATED, take_order) as registration:
        assert_type(registration, Registration)
        assert_type(registration.cancel(), bool)
