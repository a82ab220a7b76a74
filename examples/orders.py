"""The order book of a small shop, which tells whoever wants to know; tested in test_orders.py."""

import itertools
import threading
from dataclasses import dataclass

from callbackkit import CallbackRegistry, EventKey


@dataclass(frozen=True)
class Order:
    """What a customer asked for."""

    number: int
    item: str
    quantity: int


ORDER_PLACED = EventKey[Order]("order.placed")
ORDER_REFUSED = EventKey[Order]("order.refused")
STOCK_EMPTY = EventKey[str]("stock.empty")
STOCK_DELIVERED = EventKey[str]("stock.delivered")


class OrderBook:
    """Takes orders from customers and deliveries from the warehouse."""

    def __init__(self, registry: CallbackRegistry, stock: dict[str, int]) -> None:
        self.stock = stock
        self._registry = registry
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)

    async def place(self, item: str, quantity: int) -> bool:
        """Take an order if there is enough of the item."""
        order = Order(next(self._numbers), item, quantity)
        with self._lock:
            left = self.stock.get(item, 0) - quantity
            if left >= 0:
                self.stock[item] = left
        if left < 0:
            await self._registry.trigger_callbacks(ORDER_REFUSED, order)
            return False
        await self._registry.trigger_callbacks(ORDER_PLACED, order)
        if left == 0:
            await self._registry.trigger_callbacks(STOCK_EMPTY, item)
        return True

    def deliver(self, item: str, quantity: int) -> None:
        """Take in what was delivered; called by the thread of the warehouse's scanner."""
        with self._lock:
            self.stock[item] = self.stock.get(item, 0) + quantity
        self._registry.trigger_threadsafe(STOCK_DELIVERED, item)
