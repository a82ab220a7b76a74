"""Unit tests of an application with callbacks: the order book in orders.py.

The fixtures ``callback_registry`` and ``callback_failures`` come with callbackkit's pytest plugin.
They fail a test if a callback fails and the test did not expect it.

    pip install callbackkit pytest trio
    cd examples && python -m pytest test_orders.py
"""

import threading

import pytest
from orders import ORDER_PLACED, ORDER_REFUSED, STOCK_DELIVERED, STOCK_EMPTY, Order, OrderBook

from callbackkit import CallbackRegistry
from callbackkit.testing import AsyncMockCallback, MockCallback, Recorder
from callbackkit.testing.pytest_plugin import CallbackFailures

pytestmark = pytest.mark.anyio  # each async test runs on asyncio and on trio


@pytest.fixture
def book(callback_registry: CallbackRegistry) -> OrderBook:
    return OrderBook(callback_registry, stock={"tea": 3})


async def test_who_wants_to_know_hears_of_an_order(
    book: OrderBook, callback_registry: CallbackRegistry
) -> None:
    print_label, send_receipt = MockCallback(), AsyncMockCallback()
    callback_registry.register_callback(ORDER_PLACED, print_label)
    callback_registry.register_callback(ORDER_PLACED, send_receipt)
    assert await book.place("tea", 2)
    print_label.assert_called_once_with(Order(1, "tea", 2))
    send_receipt.assert_called_once_with(Order(1, "tea", 2))


async def test_an_order_for_more_than_there_is_is_refused(
    book: OrderBook, callback_registry: CallbackRegistry
) -> None:
    with Recorder(callback_registry) as recorder:
        assert not await book.place("tea", 4)
    recorder.assert_emitted_once(ORDER_REFUSED, Order(1, "tea", 4))
    recorder.assert_not_emitted(ORDER_PLACED)
    assert book.stock == {"tea": 3}


async def test_the_last_piece_is_told_after_its_order(
    book: OrderBook, callback_registry: CallbackRegistry
) -> None:
    with Recorder(callback_registry) as recorder:
        await book.place("tea", 1)
        await book.place("tea", 2)
    assert recorder.count("order.*") == 2
    recorder.assert_order([ORDER_PLACED, ORDER_PLACED, STOCK_EMPTY])


async def test_a_printer_on_fire_stops_no_receipt(
    book: OrderBook, callback_registry: CallbackRegistry, callback_failures: CallbackFailures
) -> None:
    send_receipt = AsyncMockCallback()
    callback_registry.register_callback(ORDER_PLACED, MockCallback(side_effect=OSError("on fire")))
    callback_registry.register_callback(ORDER_PLACED, send_receipt)
    with callback_failures.expect(OSError, match="on fire"):
        assert await book.place("tea", 1)
    send_receipt.assert_called_once_with(Order(1, "tea", 1))


async def test_a_delivery_scanned_in_a_thread_is_told_in_the_event_loop(
    book: OrderBook, callback_registry: CallbackRegistry
) -> None:
    restocked = MockCallback(name="restocked")
    callback_registry.register_callback(STOCK_DELIVERED, restocked)
    async with callback_registry.serving():
        scanner = threading.Thread(target=book.deliver, args=("coffee", 5))
        scanner.start()
        await restocked.wait_called(timeout=5)
        scanner.join()
    restocked.assert_called_once_with("coffee")
    assert book.stock == {"tea": 3, "coffee": 5}
