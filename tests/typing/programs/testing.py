"""The test kit."""

from typing import Any, assert_type

from callbackkit import CallbackManager, CallbackRegistry
from callbackkit.testing import AsyncMockCallback, MockCallback, Recorder

manager = CallbackManager()
mock = MockCallback(return_value=3)
MockCallback(returns=3)  # E
manager.register_callback("test_event", mock)
manager.register_callback("test_event", AsyncMockCallback())
manager.register_callback("test_event", 3)  # E
assert_type(mock.call_count, int)
assert_type(mock.calls, list[tuple[tuple[Any, ...], dict[str, Any]]])
mock.assert_called_with({"data": "test"})
mock.assert_called_with(({"data": "test"},), {})
recorder = Recorder(CallbackRegistry())
Recorder("registry")  # E


async def main() -> None:
    await manager.trigger_callbacks("test_event", {"data": "test"})
    assert_type(manager.unregister_callback("test_event", mock), bool)
    await mock.wait_called(2, timeout=1)
    await mock.wait_called("two")  # E
