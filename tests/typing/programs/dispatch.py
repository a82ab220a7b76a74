"""Running callables without event types."""

from typing import assert_type

from callbackkit import (
    Dispatcher,
    DispatchResult,
    Outcome,
    OutcomeStatus,
    safe_callback_execution,
    safe_callback_execution_sync,
)


def take(number: int) -> int:
    return number


async def take_async(number: int) -> int:
    return number


dispatcher = Dispatcher(mode="sequential", timeout=1.0)
Dispatcher(mode="random")  # E
Dispatcher("concurrent")  # E
assert_type(dispatcher.dispatch_sync([take, print], 1), DispatchResult)
dispatcher.dispatch_sync(take, 1)  # E
assert_type(safe_callback_execution_sync(take, 1), Outcome)
safe_callback_execution_sync("take", 1)  # E


async def main() -> None:
    assert_type(await dispatcher.dispatch([take, take_async], 1), DispatchResult)
    outcome = await safe_callback_execution(take_async, 1, context="on call")
    assert_type(outcome, Outcome)
    assert_type(outcome.error, Exception | None)
    assert_type(outcome.duration, float | None)
    status: OutcomeStatus = outcome.status
    print(status)
    outcome.status = "ok"  # E
