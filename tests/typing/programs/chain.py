"""Callbacks in a row."""

from typing import assert_type

from callbackkit import CallbackChain, ChainResult, StopChain


def double(value: int) -> int:
    return value * 2


async def shout(value: str) -> str:
    return value.upper()


chain = CallbackChain(on_error="skip")
CallbackChain(on_error="retry")  # E
chain.add_callback(double)
chain.add_callback(shout)
chain.add_callback("double")  # E
value = chain.execute_chain_sync(1)
print(value)


async def main() -> None:
    await chain.execute_chain(1)
    result = await chain.run(1)
    assert_type(result.completed, bool)
    assert_type(result.error, Exception | None)
    wanted: ChainResult = result
    print(wanted.value)
    result.steps_left  # E
    raise StopChain(2)
