"""What goes with a typed key: the data of a trigger, a condition, what a stream gives."""

from typing import Any, assert_type

import attrs

from callbackkit import CallbackManager, CallbackRegistry, EventKey, EventStream, Registration


@attrs.frozen
class Order:
    number: int


CREATED = EventKey[Order]("order.created")
DONE = EventKey[None]("order.done")
registry = CallbackRegistry()
manager = CallbackManager()


def take_order(order: Order) -> None:
    print(order.number)


def take_int(number: int) -> None:
    print(number)


def take_nothing() -> None:
    print("an event")


def take_event(event_type: str, order: Order) -> None:
    print(event_type, order.number)


def take_number(event_type: str, number: int) -> None:
    print(event_type, number)


def has_number(order: Order) -> bool:
    return order.number > 0


def is_even(number: int) -> bool:
    return number % 2 == 0


registry.on(CREATED, take_order, when=has_number)
registry.on(CREATED, take_int)  # E
registry.on(CREATED, take_order, when=is_even)  # E
registry.on(Order, take_order, when=has_number)
registry.on(Order, take_int)  # E
registry.on(CREATED, lambda order: print(order.number), when=lambda order: order.number > 0)
registry.on(CREATED, take_nothing)
registry.on(CREATED, take_event, with_event=True)
registry.on(CREATED, take_event)  # E
registry.on(CREATED, take_number, with_event=True)  # E
registry.on("order.*", take_event, with_event=True, when=is_even)
registry.on("order.*", take_order, when=lambda order: order)
registry.on(42, take_int)  # E
assert_type(registry.once(CREATED, take_order), Registration)
registry.once(CREATED, take_int)  # E
registry.once(CREATED, take_order, once=True)  # E
registry.register_callback(CREATED, take_order, when=is_even)  # E
registry.trigger_callbacks_sync(CREATED, Order(1))
registry.trigger_callbacks_sync(CREATED, 1)  # E
registry.trigger_callbacks_sync(CREATED)  # E
registry.trigger_callbacks_sync(DONE)
registry.trigger_callbacks_sync(Order, Order(1))
registry.trigger_callbacks_sync(42)  # E
registry.trigger_threadsafe(CREATED, 1)  # E

manager.register_callback(CREATED, take_order, when=has_number, priority=1)
manager.register_callback(CREATED, take_event, with_event=True)
manager.register_callback(CREATED, take_int)  # E
manager.register_callback(CREATED, take_order, when=is_even)  # E


# A condition is held to the type also where a decorator registers.
@registry.on(CREATED, when=lambda order: order.number > 0)
def take_positive(order: Order) -> int:
    return order.number


@registry.on(CREATED, when=is_even)  # E
def take_even(order: Order) -> int:
    return order.number


@registry.once("order.*", when=lambda order: order)
async def take_any(order: Order) -> int:
    return order.number


assert_type(take_positive(Order(1)), int)


async def main() -> None:
    await registry.trigger_callbacks(CREATED, Order(1))
    await registry.trigger_callbacks(CREATED, 1)  # E
    await registry.trigger_callbacks("order.created", 1)
    await registry.emit(CREATED, Order(1))
    await registry.emit(CREATED, 1)  # E
    await registry.emit(Order(1))
    await registry.emit("order.created", 1)
    await registry.emit(DONE)
    await manager.trigger_callbacks(CREATED, Order(1))
    await manager.trigger_callbacks(CREATED, 1)  # E

    async for event_type, order in registry.stream(CREATED):
        assert_type(event_type, str)
        assert_type(order, Order)
    async for name, anything in registry.stream("order.*"):
        assert_type(name, str)
        assert_type(anything, Any)
    async for kind, instance in registry.stream(Order):
        assert_type(kind, type[Order])
        assert_type(instance, Order)

    # A stream of orders will do where one of anything is wanted.
    orders = registry.stream(CREATED, max_items=10)
    assert_type(orders, EventStream[str, Order])
    objects: EventStream[str, object] = orders
    print(objects.dropped)

    event_type, order = await registry.wait_for(CREATED, when=has_number, timeout=5)
    assert_type(event_type, str)
    assert_type(order, Order)
    await registry.wait_for(CREATED, when=is_even)  # E
    kind, instance = await registry.wait_for(Order, when=has_number)
    assert_type(kind, type[Order])
    assert_type(instance, Order)
    _, anything = await registry.wait_for("order.*", when=is_even)
    assert_type(anything, Any)
