"""Callbacks in a FastAPI application: what follows when an order comes in.

The application owns a registry. Creating an order triggers "order.created"; the answer tells
which follow-ups worked, while an error callback gets the details that are no customer's
business. FastAPI runs the handler that is not async in a worker thread, which triggers its
event in the application's event loop.

    pip install callbackkit fastapi uvicorn
    uvicorn --app-dir examples fastapi_app:app
    curl -d '{"item": "tea", "quantity": 2}' -H 'content-type: application/json' \
        http://127.0.0.1:8000/orders
"""

import itertools
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import anyio
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, Field

from callbackkit import CallbackRegistry, DispatchResult, ErrorContext, EventKey, Outcome

logger = logging.getLogger("shop")


class NewOrder(BaseModel):
    """What a customer asks for."""

    item: str
    quantity: int = Field(ge=1)


class Order(NewOrder):
    """An order that was accepted."""

    number: int


class Receipt(BaseModel):
    """The answer: the order's number, and how each follow-up ended."""

    number: int
    follow_ups: dict[str, str]


# With a typed key, type checkers hold every callback below to taking an Order.
ORDER_CREATED = EventKey[Order]("order.created")
ORDER_SHIPPED = EventKey[Order]("order.shipped")


class Shop:
    """Orders, stock and what the shop notices of its follow-ups."""

    def __init__(self) -> None:
        self.orders: dict[int, Order] = {}
        self.stock = {"tea": 1000, "coffee": 0}
        self.problems: list[str] = []
        self._numbers = itertools.count(1)

    def accept(self, wanted: NewOrder) -> Order:
        """Number an order and keep it."""
        order = Order(number=next(self._numbers), **wanted.model_dump())
        self.orders[order.number] = order
        return order

    # Callbacks, sync and async as it suits them.

    def take_from_stock(self, order: Order) -> None:
        """Count what is left; fails when that would be less than nothing."""
        left = self.stock.get(order.item, 0) - order.quantity
        if left < 0:
            raise LookupError(f"{order.item} is out of stock")
        self.stock[order.item] = left

    async def send_receipt(self, order: Order) -> None:
        """Write to the customer."""
        await anyio.sleep(0.01)  # the mail server takes its time
        logger.info("receipt for order %d sent", order.number)

    async def tell_crm(self, order: Order) -> None:
        """Fail, as the customer database does today."""
        raise ConnectionError(f"crm.internal:5432 is down, order {order.number} is lost")

    def print_label(self, order: Order) -> None:
        """Print, which blocks until the printer is done."""
        logger.info("label for order %d printed", order.number)

    async def note_problem(self, exception: Exception, context: ErrorContext) -> None:
        """Keep what a callback raised; ``str(context)`` names the callback and the event."""
        self.problems.append(f"{context}: {type(exception).__name__}")
        logger.warning("%s failed: %s", context, exception)


def open_registry(shop: Shop) -> CallbackRegistry:
    """Say what follows from which event."""
    registry = CallbackRegistry(timeout=5.0)
    registry.register_callback(ORDER_CREATED, shop.take_from_stock, priority=10)
    registry.register_callback(ORDER_CREATED, shop.send_receipt)
    registry.register_callback(ORDER_CREATED, shop.tell_crm)
    registry.register_callback(ORDER_SHIPPED, shop.print_label, thread=True)
    registry.add_error_callback(shop.note_problem)
    return registry


def create_app() -> FastAPI:
    """Make the application, with a shop and a registry of its own."""
    shop = Shop()
    registry = open_registry(shop)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        async with registry.serving():  # now trigger_threadsafe() finds this event loop
            yield

    app = FastAPI(title="Shop", lifespan=lifespan)

    @app.post("/orders", status_code=201)
    async def create_order(wanted: NewOrder) -> Receipt:
        order = shop.accept(wanted)
        result = await registry.trigger_callbacks(ORDER_CREATED, order)
        return receipt(order, result)

    @app.post("/orders/{number}/shipment")
    def ship_order(number: int) -> Receipt:
        if number not in shop.orders:
            raise HTTPException(404, f"no order {number}")
        order = shop.orders[number]
        future = registry.trigger_threadsafe(ORDER_SHIPPED, order)
        return receipt(order, future.result(timeout=10))

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"stock": shop.stock, "problems": shop.problems}

    return app


def receipt(order: Order, result: DispatchResult) -> Receipt:
    """Tell how the follow-ups ended, and nothing of why."""
    return Receipt(
        number=order.number,
        follow_ups={name_of(outcome): outcome.status for outcome in result},
    )


def name_of(outcome: Outcome) -> str:
    return str(outcome.callback.__name__)


app = create_app()
