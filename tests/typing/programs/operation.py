"""Progress of long work, and the slot of an audio thread."""

from typing import assert_type

from callbackkit import CallbackSlot, CompletionCallback, Operation, ProgressCallback


def show(fraction: float) -> None:
    print(fraction)


def show_message(fraction: float, message: str | None) -> None:
    print(fraction, message)


async def done(result: int) -> None:
    print(result)


progress: ProgressCallback = show
completion: CompletionCallback[int] = done
wrong: CompletionCallback[str] = done  # E

operation = Operation(total=3, on_progress=show, on_complete=done, on_error=print)
Operation(total=3, on_progress=show_message, min_interval=0)
Operation(total="three")  # E
Operation(on_progress="show")  # E
for item in operation.track([1, 2, 3]):
    assert_type(item, int)
operation.advance(1)
operation.update(0.5, "half")
operation.update("half")  # E
operation.complete(3)
operation.fail(ValueError("no"))
operation.fail("no")  # E

slot = CallbackSlot()
slot.set(print)
slot.set(None)
slot.set(3)  # E
assert_type(slot.failures, int)
